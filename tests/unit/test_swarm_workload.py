"""Made runs resemble the published statistics of the recorded ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from tbc.swarm.compose import ARRIVALS_S, compose, lay_deadlines, make_mixed
from tbc.swarm.traces import Run
from tbc.swarm.workload import MADE_KINDS, make_runs


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Run, ...]]:
    rng = np.random.default_rng(2026)
    return {kind: make_runs(kind, 600, rng) for kind in MADE_KINDS}


def test_equal_seeds_make_equal_runs() -> None:
    for kind in MADE_KINDS:
        one, same, other = (make_runs(kind, 5, np.random.default_rng(seed)) for seed in (3, 3, 4))
        assert one == same
        assert one != other


@pytest.mark.parametrize(
    ("kind", "statistic", "published", "tolerance"),
    [
        # tokens per run, as published: mean and median
        ("research", "mean", 74_840, 0.10),
        ("research", "p50", 65_040, 0.10),
        ("research", "p95", 144_517, 0.20),
        ("coding", "mean", 131_873, 0.15),
        ("coding", "p50", 96_645, 0.15),
        ("coding", "p95", 319_195, 0.25),
        ("social", "mean", 195_257, 0.15),
        ("social", "p50", 122_946, 0.20),
        ("social", "p95", 529_780, 0.25),
    ],
)
def test_tokens_of_a_run_are_as_published(
    made: dict[str, tuple[Run, ...]], kind: str, statistic: str, published: int, tolerance: float
) -> None:
    demand = np.array([run.demand for run in made[kind]])
    found = demand.mean() if statistic == "mean" else np.quantile(demand, int(statistic[1:]) / 100)

    assert found == pytest.approx(published, rel=tolerance)


def test_sizes_of_research_calls_are_as_published(made: dict[str, tuple[Run, ...]]) -> None:
    def median(sizes: Iterable[int]) -> float:
        return float(np.median(list(sizes)))

    calls = [call for run in made["research"] for call in run.calls]
    for role, input_p50, output_p50 in [
        ("planner", 633, 1_194),
        ("agent", 5_834, 281),
        ("summarize", 2_776, 4_357),
        ("finalize", 9_521, 1_392),
    ]:
        of_role = [call for call in calls if call.role == role]
        assert median(call.input_tokens for call in of_role) == pytest.approx(input_p50, rel=0.15)
        assert median(call.output_tokens for call in of_role) == pytest.approx(output_p50, rel=0.15)


def test_inputs_grow_and_the_late_call_comes_last(made: dict[str, tuple[Run, ...]]) -> None:
    growth = [run.calls[-1].input_tokens / run.calls[0].input_tokens for run in made["coding"]]
    assert np.median(growth) == pytest.approx(5.6, rel=0.15)
    for run in made["research"]:
        assert all(call.role != "finalize" for call in run.calls[:-1])
    late = sum(run.calls[-1].role == "finalize" for run in made["research"])
    assert late / len(made["research"]) == pytest.approx(113 / 139, abs=0.05)


def test_made_runs_are_possible(made: dict[str, tuple[Run, ...]]) -> None:
    for kind, runs in made.items():
        assert len({run.name for run in runs}) == len(runs)
        for run in runs:
            assert run.kind == kind
            assert [call.step for call in run.calls] == list(range(len(run.calls)))
            starts = [call.start_s for call in run.calls]
            assert starts == sorted(starts)
            for call in run.calls:
                assert call.input_tokens > 0
                assert 0 < call.output_tokens <= call.output_cap
                assert call.duration_s > 0
                assert call.wait_s >= 0


def test_unknown_kinds_and_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        make_runs("chess", 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="count must be at least 1"):
        make_runs("coding", 0, np.random.default_rng(0))


@pytest.mark.parametrize("agents", [5, 20, 101])
def test_a_swarm_is_whole_teams_with_exactly_so_many_agents(agents: int) -> None:
    rng = np.random.default_rng(5)
    runs = make_mixed(rng)
    teams = compose(runs, agents, rng)

    assert sum(len(team.run.roles) for team in teams) == agents
    assert {team.run for team in teams} <= set(runs)
    assert len({team.name for team in teams}) == len(teams)
    starts = [team.start_s for team in teams]
    assert starts == sorted(starts)
    assert starts[0] == 0.0
    assert starts[-1] <= ARRIVALS_S


def test_a_large_swarm_has_the_mix_of_kinds() -> None:
    rng = np.random.default_rng(6)
    agents = dict.fromkeys(MADE_KINDS, 0)
    for team in compose(make_mixed(rng), 2_000, rng):
        agents[team.run.kind] += len(team.run.roles)

    for kind, percent in {"social": 40, "research": 30, "coding": 30}.items():
        assert agents[kind] / 2_000 == pytest.approx(percent / 100, abs=0.06)


def test_a_swarm_that_no_team_fits_has_one_team() -> None:
    rng = np.random.default_rng(7)
    [team] = compose(make_runs("social", 3, rng), 2, rng)

    assert len(team.run.roles) == 5


def test_deadlines_change_roles_of_coding_agents_only() -> None:
    rng = np.random.default_rng(8)
    runs = (*make_runs("coding", 200, rng), *make_runs("research", 5, rng))
    laid = lay_deadlines(runs, rng)

    urgent = sum(run.calls[0].role == "urgent coder" for run in laid)
    assert urgent / 200 == pytest.approx(0.25, abs=0.08)
    assert [run.demand for run in laid] == [run.demand for run in runs]
    assert laid[200:] == runs[200:]
