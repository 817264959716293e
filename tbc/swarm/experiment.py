"""The two experiments: every run on a pool of its own, and a swarm of teams on one pool.

Both fit on 60 % of the runs, drawn anew in every repetition, and report on the other 40 % only. All policies
of a repetition get the same runs, the same budget and the same seed, so that differences are paired. What is
reported on comes into no fit: neither sizes, nor contracts, nor the choice of how large a reserve is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from attrs import frozen

from tbc.errors import TraceError
from tbc.swarm.choose import choose_reserve
from tbc.swarm.compose import compose, lay_deadlines
from tbc.swarm.driver import (
    Estimate,
    Team,
    actual_output,
    budget_for,
    p90_output,
    replay,
    replay_alone,
)
from tbc.swarm.fit import LATE_ROLES, Fit, fit_runs
from tbc.swarm.market import Contracts, Flow, Market
from tbc.swarm.measure import Score, Spread, score, spread, total
from tbc.swarm.policies import EqualSplit, Policy, SharedPool
from tbc.swarm.story import Story, tell
from tbc.swarm.traces import Run

__all__ = ["ALL_RUNS", "EQUAL", "LATE_RUNS", "MARKET", "POOL", "Report", "run_by_run", "splits", "swarm"]

#: The policies' names, in the order of tables.
EQUAL, POOL, MARKET = EqualSplit.name, SharedPool.name, Market.name
#: Groups of runs.
LATE_RUNS, ALL_RUNS = "runs with a late call", "all runs"
#: Share of the runs that contracts and estimates are fitted on.
_TRAINING_PERCENT = 60
#: Runs that a fit and a report need at least together.
_FEWEST_RUNS = 5

#: Tells the chance of deadlines from that of the splits.
_DEADLINES = 2**32 - 1

#: Told after each repetition: how many are done, of how many.
Progress = Callable[[int, int], None]


@frozen
class Arm:
    """A policy with an estimate."""

    #: What tables call it.
    name: str
    #: Makes the policy, fresh.
    make: Callable[[Fit], Policy]
    #: Makes the estimate.
    estimate: Callable[[Fit], Estimate]


@frozen
class Report:
    """What an experiment found."""

    #: ``"runs"``: every run on a pool of its own; ``"swarm"``: teams on one pool.
    experiment: str
    #: Budget over demand.
    pressure: float
    #: Repetitions.
    repetitions: int
    #: What everything was drawn from.
    seed: int
    #: Runs in the workload, and agents in a pool (mean).
    runs: int
    agents: float
    #: The role that is protected, if there is one.
    late_role: str | None
    #: Role → priority, laid on; in order of first appearance.
    priorities: Mapping[str, int]
    #: Group → policy → one score per repetition.
    scores: Mapping[str, Mapping[str, tuple[Score, ...]]]
    #: One pool of the first repetition: the run whose demand is nearest to the median (of those with a late
    #: call), as the shared pool and the market dealt with it; of a swarm, as the market dealt with it.
    stories: tuple[Story, ...]
    #: What was learned from the training runs of each repetition.
    fits: tuple[Fit, ...]
    #: What the market moved between roles in the first repetition (of a swarm).
    flows: tuple[Flow, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of runs, the main one first."""
        return tuple(self.scores)

    def share(self, group: str, policy: str, role: str) -> Spread:
        """Return the share of a role's calls that were served, over the repetitions."""
        return spread(one.share(role) for one in self.scores[group][policy])

    def ratio(self, group: str, policy: str, to: str = POOL) -> Spread:
        """Return tokens served over those of another policy in the same repetition."""
        pairs = zip(self.scores[group][policy], self.scores[group][to], strict=True)
        return spread(one.tokens_served / other.tokens_served for one, other in pairs if other.tokens_served)

    def of_budget(self, group: str, policy: str, figure: str) -> Spread:
        """Return a token figure of the scores, e.g. ``"stranded"``, over the budget."""
        return spread(getattr(one, figure) / one.budget for one in self.scores[group][policy] if one.budget)

    @property
    def late_quantiles(self) -> tuple[float, ...]:
        """Which quantile of the late role's inputs was chosen in each repetition; empty if none was."""
        if self.experiment != "runs":
            return ()
        needs = (known.late for fit in self.fits for known in fit.roles.values())
        return tuple(need.quantile for need in needs if need is not None)

    def sum(self, group: str, policy: str) -> Score:
        """Return the sum over the repetitions."""
        return total(self.scores[group][policy])


def run_by_run(
    runs: Sequence[Run],
    *,
    pressure: float = 0.8,
    repetitions: int = 30,
    seed: int = 0,
    late_roles: Mapping[str, str] = LATE_ROLES,
    progress: Progress | None = None,
) -> Report:
    """Give every run of the reported 40 % a pool of `pressure` times what it used, and compare the policies.

    Parameters
    ----------
    runs : sequence of Run
        Of one kind.
    pressure : float, default 0.8
        Budget over the run's own demand.
    repetitions : int, default 30
        Random splits into training and reported runs.
    seed : int, default 0
        Where all chance comes from.
    late_roles : mapping of str to str
        Kind → role that is protected.
    progress : callable, optional
        Told after every repetition.

    Returns
    -------
    Report
        Groups: `LATE_RUNS` (if the kind has a late role) and `ALL_RUNS`. The policies, and the two baselines
        once more with the actual output as their estimate: better than they could be. How large the late
        role's reserve is, is chosen by `choose_reserve` on the training runs of each repetition.

    Raises
    ------
    TraceError
        There are too few runs to fit on some and report on others.
    """
    kind = runs[0].kind
    late = late_roles.get(kind)
    if not any(late in run.roles.values() for run in runs):
        late = None
    contracts = Contracts.SHARES if late is None else Contracts.RESERVE
    arms = (*_arms(contracts), *_flattered_arms())
    groups = (ALL_RUNS,) if late is None else (LATE_RUNS, ALL_RUNS)
    scores: dict[str, dict[str, list[Score]]] = {g: {arm.name: [] for arm in arms} for g in groups}
    stories: tuple[Story, ...] = ()
    fits: list[Fit] = []
    for repetition, (_, training, reported) in enumerate(splits(runs, repetitions, seed)):
        if late is None:
            fit = fit_runs(training, late_roles=late_roles)
        else:
            fit = choose_reserve(training, pressure=pressure, late_roles=late_roles)
        fits.append(fit)
        for arm in arms:
            estimate = arm.estimate(fit)
            found = [
                (run, score(replay_alone(run, pressure, arm.make(fit), estimate, fit))) for run in reported
            ]
            for group in groups:
                chosen = [one for run, one in found if group == ALL_RUNS or late in run.roles.values()]
                if chosen:
                    scores[group][arm.name].append(total(chosen))
        if not stories:
            stories = _typical(reported, late, arms, fit, pressure)
        if progress is not None:
            progress(repetition + 1, repetitions)
    return Report(
        experiment="runs",
        pressure=pressure,
        repetitions=repetitions,
        seed=seed,
        runs=len(runs),
        agents=sum(len(run.roles) for run in runs) / len(runs),
        late_role=late,
        priorities=_priorities(runs, fits[-1]),
        scores={
            g: {name: tuple(s) for name, s in by_arm.items()} for g, by_arm in scores.items() if by_arm[POOL]
        },
        stories=stories,
        fits=tuple(fits),
    )


def swarm(
    runs: Sequence[Run],
    agents: int,
    *,
    pressure: float = 0.8,
    repetitions: int = 30,
    seed: int = 0,
    late_roles: Mapping[str, str] = LATE_ROLES,
    progress: Progress | None = None,
) -> Report:
    """Put teams with `agents` agents in all on one pool and compare the policies.

    Parameters
    ----------
    runs : sequence of Run
        What teams are drawn from (with replacement, from the reported 40 %); of one kind or of several.
    agents : int
        Agents in the pool, 1 or more; a few less where no drawn team fits the last places.
    pressure, repetitions, seed, late_roles, progress
        As `run_by_run`; the budget is `pressure` times what all teams together used.

    Returns
    -------
    Report
        Group: `ALL_RUNS`.
    """
    runs = lay_deadlines(runs, np.random.default_rng([seed, _DEADLINES]))
    arms = _arms(Contracts.SHARES)
    scores: dict[str, list[Score]] = {arm.name: [] for arm in arms}
    stories: list[Story] = []
    flows: tuple[Flow, ...] = ()
    sizes: list[int] = []
    fits: list[Fit] = []
    for repetition, (rng, training, reported) in enumerate(splits(runs, repetitions, seed)):
        fit = fit_runs(training, late_roles=late_roles)
        fits.append(fit)
        teams = compose(reported, agents, rng)
        sizes.append(sum(len(team.run.roles) for team in teams))
        budget = budget_for(sum(team.run.demand for team in teams), pressure)
        for arm in arms:
            policy = arm.make(fit)
            estimate = arm.estimate(fit)
            if repetition or not isinstance(policy, Market):
                outcome = replay(teams, budget, policy, estimate, fit.priority, top=fit.top)
            else:
                title = f"{sizes[0]} agents"
                outcome, story = tell(title, teams, budget, policy, estimate, fit.priority, top=fit.top)
                stories.append(story)
                flows = policy.flows()
            scores[arm.name].append(score(outcome))
        if progress is not None:
            progress(repetition + 1, repetitions)
    return Report(
        experiment="swarm",
        pressure=pressure,
        repetitions=repetitions,
        seed=seed,
        runs=len(runs),
        agents=sum(sizes) / len(sizes),
        late_role=next(
            (role for kind, role in late_roles.items() if any(r.kind == kind for r in runs)), None
        ),
        priorities=_priorities(runs, fits[-1]),
        scores={ALL_RUNS: {name: tuple(s) for name, s in scores.items()}},
        stories=tuple(stories),
        fits=tuple(fits),
        flows=flows,
    )


def _arms(contracts: Contracts) -> tuple[Arm, ...]:
    return (
        Arm(EQUAL, lambda fit: EqualSplit(), p90_output),
        Arm(POOL, lambda fit: SharedPool(), p90_output),
        Arm(MARKET, lambda fit: Market(fit, contracts), p90_output),
    )


def _flattered_arms() -> tuple[Arm, ...]:
    return (
        Arm(f"{EQUAL}, all-knowing", lambda fit: EqualSplit(), lambda fit: actual_output),
        Arm(f"{POOL}, all-knowing", lambda fit: SharedPool(), lambda fit: actual_output),
    )


def splits(
    runs: Sequence[Run], repetitions: int, seed: int
) -> Iterator[tuple[np.random.Generator, list[Run], list[Run]]]:
    """Yield per repetition: its generator, the training runs and the reported runs, in random order."""
    if len(runs) < _FEWEST_RUNS:
        count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
        raise TraceError(
            f"the trace holds {count}; fitting on {_TRAINING_PERCENT} % and reporting on the rest "
            f"needs at least {_FEWEST_RUNS}"
        )
    for repetition in range(repetitions):
        rng = np.random.default_rng([seed, repetition])
        order = rng.permutation(len(runs)).tolist()
        cut = len(runs) * _TRAINING_PERCENT // 100
        yield rng, [runs[i] for i in order[:cut]], [runs[i] for i in order[cut:]]


def _typical(
    reported: Sequence[Run], late: str | None, arms: Sequence[Arm], fit: Fit, pressure: float
) -> tuple[Story, ...]:
    """Tell the story of the run whose demand is nearest to the median: typical, not picked."""
    runs = [run for run in reported if late is None or late in run.roles.values()]
    if not runs:
        return ()
    median = sorted(run.demand for run in runs)[len(runs) // 2]
    run = min(runs, key=lambda run: abs(run.demand - median))
    return tuple(
        tell(
            run.name,
            [Team(run.name, run)],
            budget_for(run.demand, pressure),
            arm.make(fit),
            arm.estimate(fit),
            fit.priority,
            top=fit.top,
        )[1]
        for arm in arms
        if arm.name in (POOL, MARKET)
    )


def _priorities(runs: Sequence[Run], fit: Fit) -> dict[str, int]:
    found: dict[str, int] = {}
    for run in runs:
        for role in run.roles.values():
            found.setdefault(role, fit.priority(run.kind, role))
    return found
