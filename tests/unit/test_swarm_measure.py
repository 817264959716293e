"""Scores of replays, and how reports show them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import tbc
from tbc.swarm.driver import Event, Outcome, Team, actual_output, budget_for, replay
from tbc.swarm.experiment import (
    ALL_RUNS,
    EQUAL,
    LATE_RUNS,
    MARKET,
    POOL,
    Report,
    run_by_run,
    swarm,
)
from tbc.swarm.measure import score, spread, total
from tbc.swarm.policies import EqualSplit, SharedPool
from tbc.swarm.story import tell
from tbc.swarm.summary import explain, figures, rows
from tbc.swarm.traces import Call, Run
from tbc.swarm.workload import make_runs


def call(agent: str, tokens: int, *, step: int = 0, output_tokens: int = 0) -> Call:
    return Call(agent, agent, step, 0.0, 1.0, 0.5, tokens, output_tokens, 16_384)


def priority(kind: str, role: str) -> int:
    return 2 if role == "lead" else 1


RUN = Run("r", "calls", (call("aide", 600), call("aide", 300, step=1), call("lead", 400, step=2)))


def play(budget: int, policy: EqualSplit | SharedPool, run: Run = RUN) -> Outcome:
    return replay([Team("r", run)], budget, policy, lambda kind, call: 0, priority, top=2)


def test_a_score_counts_what_was_served_stranded_and_starved() -> None:
    pool = score(play(1_000, SharedPool()))

    assert (pool.served, pool.asked) == ({"aide": 2}, {"aide": 2, "lead": 1})
    assert (pool.tokens_served, pool.tokens_asked) == (900, 1_300)
    assert (pool.stranded, pool.stranded_avoidable) == (100, 100)
    assert (pool.starved, pool.starved_avoidable) == (1, 0)
    assert pool.grants_above == 0

    split = score(play(1_000, EqualSplit()))
    assert split.served == {"aide": 1, "lead": 1}
    assert (split.stranded, split.starved) == (300, 0)
    split = score(play(700, EqualSplit()))  # 350 each: the lead starves while the aide's share idles
    assert (split.served, split.starved, split.starved_avoidable) == ({"aide": 1}, 1, 1)


def test_overruns_are_counted_apart_from_grants() -> None:
    run = Run("r", "calls", (call("aide", 900, output_tokens=300), call("aide", 50, step=1)))
    found = score(play(1_000, SharedPool(), run))

    assert (found.overrun_calls, found.overrun_tokens) == (1, 300)
    assert (found.overspent, found.overspent_pools, found.stranded) == (200, 1, 0)
    assert found.grants_above == 0


def test_a_policy_that_promises_too_much_is_found_out() -> None:
    class Generous(SharedPool):
        def request(self, request: object) -> bool:
            super().request(request)  # type: ignore[arg-type]
            self._held.setdefault(request.agent, request.tokens)  # type: ignore[attr-defined]
            return True

    assert score(play(800, Generous())).grants_above == 2


def test_scores_add_up() -> None:
    one, other = score(play(1_000, SharedPool())), score(play(500, SharedPool()))
    both = total([one, other])

    assert both.pools == 2
    assert both.budget == 1_500
    assert both.tokens_served == one.tokens_served + other.tokens_served
    assert both.calls_asked == 6
    assert both.share("aide") == both.served["aide"] / 4
    assert math.isnan(both.share("nobody"))


def test_a_spread_is_the_mean_with_a_seeded_interval() -> None:
    found = spread([0.4, 0.6, float("nan"), 0.5])

    assert found.mean == pytest.approx(0.5)
    assert 0.4 <= found.low < 0.5 < found.high <= 0.6
    assert found == spread([0.4, 0.6, float("nan"), 0.5])
    assert math.isnan(spread([]).mean)


@pytest.mark.parametrize(("demand", "pressure", "budget"), [(10, 0.3, 3), (65_041, 0.8, 52_032), (7, 1.0, 7)])
def test_budgets_are_floored_exactly(demand: int, pressure: float, budget: int) -> None:
    assert budget_for(demand, pressure) == budget


def test_calls_follow_each_other_in_time_and_refused_ones_are_skipped() -> None:
    events: list[Event] = []
    replay([Team("r", RUN, 2.0)], 1_000, SharedPool(), actual_output, priority, top=2, watch=events.append)

    assert [(event.at_s, event.what) for event in events] == [
        (2.0, "granted"),
        (3.0, "settled"),
        (3.5, "granted"),
        (4.5, "settled"),
        (5.0, "refused"),
    ]


def test_a_story_has_a_moment_for_every_call() -> None:
    _, story = tell("r", [Team("r", RUN)], 1_000, SharedPool(), actual_output, priority, top=2)

    assert [(moment.what, moment.role) for moment in story.moments] == [
        ("settled", "aide"),
        ("settled", "aide"),
        ("refused", "lead"),
    ]
    assert story.moments[-1].books.spent == 900


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    runs = make_runs("research", 30, np.random.default_rng(1))
    return {
        "runs": run_by_run(runs, repetitions=2, seed=1),
        "swarm": swarm(runs, 12, repetitions=2, seed=1),
        "once": run_by_run(runs, repetitions=1, seed=1),
    }


def test_a_report_compares_the_policies_by_role(reports: dict[str, Report]) -> None:
    report = reports["runs"]

    assert report.groups == (LATE_RUNS, ALL_RUNS)
    assert list(report.scores[ALL_RUNS])[:3] == [EQUAL, POOL, MARKET]
    assert report.late_role == "finalize"
    assert report.priorities["finalize"] == max(report.priorities.values())
    assert [story.policy for story in report.stories] == [POOL, MARKET]
    table = {cells[0].strip(): cells[1:] for cells in rows(report, LATE_RUNS)}
    assert len(table["finalize served (priority 4)"]) == 3
    assert table["tokens served / shared pool's"][1] == "1.000"
    assert table["grants above the budget"] == ("0", "0", "0")


def test_figures_are_plain_data_without_nan(reports: dict[str, Report]) -> None:
    for report in reports.values():
        found = figures(report)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        for group in report.groups:
            whole = found["groups"][group][MARKET]["sum_over_repetitions"]
            assert whole["tokens_served"] == report.sum(group, MARKET).tokens_served
            assert whole["grants_above"] == 0


def test_the_explanation_says_what_was_assumed(reports: dict[str, Report]) -> None:
    for name, report in reports.items():
        text = " ".join(explain(report, "30 runs"))
        assert "30 runs" in text
        assert "laid on" in text
        assert "open loop" in text
        assert ("Flattered" in text) == (name != "swarm")


def test_too_few_runs_are_refused_with_the_numbers() -> None:
    runs = make_runs("research", 4, np.random.default_rng(1))
    with pytest.raises(tbc.TraceError, match="holds 4 runs;"):
        run_by_run(runs)


def test_a_kind_without_its_late_role_is_replayed_without_a_reserve() -> None:
    runs = [
        Run(run.name, run.kind, calls)
        for run in make_runs("research", 20, np.random.default_rng(2))
        if (calls := tuple(call for call in run.calls if call.role != "finalize"))
    ]
    report = run_by_run(runs, repetitions=1)

    assert report.late_role is None
    assert report.groups == (ALL_RUNS,)
