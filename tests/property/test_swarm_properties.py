"""What holds for every replay: the books add up, the future does not matter, equal input, equal results."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbc.swarm.driver import Estimate, Event, Outcome, Team, actual_output, p90_output, replay
from tbc.swarm.experiment import run_by_run, splits
from tbc.swarm.fit import Fit, fit_runs
from tbc.swarm.market import Contracts, Market
from tbc.swarm.measure import score
from tbc.swarm.policies import EqualSplit, Policy, SharedPool
from tbc.swarm.traces import Call, Run
from tbc.swarm.workload import make_runs

#: Whole replays: each costs as much as several examples elsewhere.
FEWER = settings(max_examples=settings().max_examples // 2)
RARE = settings(max_examples=max(1, settings().max_examples // 20))
ROLES = ("planner", "agent", "summarize", "finalize")
FIT = fit_runs(make_runs("research", 60, np.random.default_rng(11)))
POLICIES: dict[str, Callable[[], Policy]] = {
    "equal": EqualSplit,
    "pool": SharedPool,
    "reserve": lambda: Market(FIT, Contracts.RESERVE),
    "shares": lambda: Market(FIT, Contracts.SHARES),
}

sizes = st.integers(0, 20_000)
calls = st.builds(
    lambda role, sent, received, wait, duration: Call(
        role, role, 0, 0.0, duration, wait, sent, received, 16_384
    ),
    st.sampled_from(ROLES),
    sizes,
    st.integers(0, 6_000),
    st.sampled_from([0.0, 1.0, 7.5]),
    st.sampled_from([0.0, 2.0, 30.0]),
)
runs = st.lists(calls, min_size=1, max_size=8).map(lambda found: Run("r", "research", tuple(found)))
teams = st.lists(st.tuples(runs, st.sampled_from([0.0, 1.0, 20.0])), min_size=1, max_size=3).map(
    lambda found: [Team(f"t{i}", run, start_s) for i, (run, start_s) in enumerate(found)]
)
policies = st.sampled_from(sorted(POLICIES))


def play(
    teams: list[Team],
    budget: int,
    policy: Policy,
    estimate: Estimate | None = None,
    watch: Callable[[Event], None] | None = None,
) -> Outcome:
    estimate = p90_output(FIT) if estimate is None else estimate
    return replay(teams, budget, policy, estimate, FIT.priority, top=FIT.top, watch=watch)


@FEWER
@given(teams=teams, budget=st.integers(0, 120_000), name=policies)
def test_pool_grants_held_and_spent_are_the_budget_after_every_event(
    teams: list[Team], budget: int, name: str
) -> None:
    policy = POLICIES[name]()
    spent: list[int] = [0]

    def check(event: Event) -> None:
        books = policy.books()
        assert books.total == budget
        assert books.held >= 0
        assert books.spent >= spent[-1]
        spent.append(books.spent)

    outcome = play(teams, budget, policy, watch=check)

    assert outcome.books.held == 0
    assert outcome.books.total == budget
    assert outcome.books.spent == sum(fate.call.tokens for fate in outcome.fates if fate.served)
    assert len(outcome.fates) == sum(len(team.run.calls) for team in teams)


@FEWER
@given(teams=teams, budget=st.integers(0, 120_000), name=policies)
def test_no_grant_is_above_the_budget_and_only_overruns_overspend(
    teams: list[Team], budget: int, name: str
) -> None:
    found = score(play(teams, budget, POLICIES[name]()))

    assert found.grants_above == 0
    assert found.overspent <= found.overrun_tokens
    exact = score(play(teams, budget, POLICIES[name](), actual_output))
    assert exact.overrun_tokens == exact.overspent == exact.grants_above == 0


@FEWER
@given(teams=teams, budget=st.integers(0, 120_000), name=policies)
def test_equal_input_gives_equal_results(teams: list[Team], budget: int, name: str) -> None:
    assert play(teams, budget, POLICIES[name]()) == play(teams, budget, POLICIES[name]())


@FEWER
@given(
    run=st.lists(calls, min_size=2, max_size=12),
    cut=st.integers(1, 11),
    future=st.randoms(use_true_random=False),
    budget=st.integers(0, 120_000),
    name=policies,
)
def test_permuting_the_future_changes_no_decision_made_so_far(
    run: list[Call], cut: int, future: object, budget: int, name: str
) -> None:
    """Leaks: calls to come are shuffled and resized; who takes part is known at arrival and stays."""
    cut = min(cut, len(run) - 1)
    past, to_come = run[:cut], run[cut:]
    shuffled = list(to_come)
    future.shuffle(shuffled)  # type: ignore[attr-defined]
    changed = [
        attrs.evolve(call, input_tokens=3 * call.input_tokens + 17, output_tokens=call.output_tokens // 2)
        for call in shuffled
    ]

    def decisions(calls: list[Call]) -> list[bool]:
        team = Team("t", Run("r", "research", tuple(calls)))
        return [fate.served for fate in play([team], budget, POLICIES[name]()).fates][:cut]

    assert decisions(past + to_come) == decisions(past + shuffled) == decisions(past + changed)


@FEWER
@given(teams=teams, at_s=st.sampled_from([3.0, 10.0, 40.0]), budget=st.integers(0, 120_000), name=policies)
def test_what_happens_later_in_a_swarm_changes_no_decision_made_so_far(
    teams: list[Team], at_s: float, budget: int, name: str
) -> None:
    first = play(teams, budget, POLICIES[name]()).fates
    asked = {team.name: sum(f.arrival.team == team.name and f.at_s <= at_s for f in first) for team in teams}

    def later(team: Team) -> Team:
        known = asked[team.name]
        calls = team.run.calls
        # The output of a call in flight is not known yet; its size becomes known when it is settled.
        changed = tuple(attrs.evolve(call, input_tokens=call.input_tokens // 3 + 1) for call in calls[known:])
        return attrs.evolve(team, run=attrs.evolve(team.run, calls=calls[:known] + changed))

    second = play([later(team) for team in teams], budget, POLICIES[name]()).fates

    def until(fates: tuple[object, ...]) -> list[tuple[str, bool]]:
        return [(f.arrival.agent, f.served) for f in fates if f.at_s <= at_s]  # type: ignore[attr-defined]

    assert until(first) == until(second)


def test_the_leak_test_can_fail() -> None:
    """A policy that peeks at its run is caught by the comparison above."""

    class Peeking(SharedPool):
        def __init__(self, run: list[Call]) -> None:
            super().__init__()
            self._last = run[-1].tokens

        def request(self, request: object) -> bool:
            return self._last < 100 and super().request(request)  # type: ignore[arg-type]

    def decisions(calls: list[Call]) -> list[bool]:
        team = Team("t", Run("r", "research", tuple(calls)))
        return [fate.served for fate in play([team], 10_000, Peeking(calls)).fates][:1]

    small, large = (Call("agent", "agent", 0, 0.0, 1.0, 0.0, size, 0, 100) for size in (50, 500))
    with pytest.raises(AssertionError):
        assert decisions([small, large, small]) == decisions([small, small, large])


@given(seed=st.integers(0, 10_000), count=st.integers(5, 12))
def test_a_fit_sees_training_runs_only_and_does_not_depend_on_their_order(seed: int, count: int) -> None:
    made = list(make_runs("research", count, np.random.default_rng(seed)))
    fit, backwards = fit_runs(made), fit_runs(made[::-1])

    assert isinstance(fit, Fit)
    assert dict(fit.roles) == dict(backwards.roles)


@RARE
@given(seed=st.integers(0, 10_000), count=st.integers(6, 10), pressure=st.sampled_from([0.5, 0.8]))
def test_runs_that_are_reported_on_do_not_change_the_contracts(
    seed: int, count: int, pressure: float
) -> None:
    """No peeking: they are put in another order, and then others in their place; the fit stays as it was."""
    made = list(make_runs("research", count, np.random.default_rng(seed)))
    strangers = make_runs("research", count, np.random.default_rng(seed + 1))
    [(_, training, reported)] = splits(made, 1, seed)
    places = [made.index(run) for run in reported]

    def fitted(runs: list[Run]) -> Fit:
        [fit] = run_by_run(runs, repetitions=1, seed=seed, pressure=pressure).fits
        return fit

    def with_reported(others: list[Run]) -> list[Run]:
        runs = list(made)
        for place, run in zip(places, others, strict=True):
            runs[place] = run
        return runs

    fit = fitted(made)
    assert fit.roles
    assert fitted(with_reported(reported[::-1])) == fit
    assert fitted(with_reported(list(strangers[: len(reported)]))) == fit
    changed = [strangers[made.index(run)] if run in training else run for run in made]
    assert fitted(changed) != fit  # it is the training runs that count: this test can fail
