"""How large a reserve is: chosen on training runs."""

from __future__ import annotations

import numpy as np
import pytest

from tbc.swarm import choose
from tbc.swarm.choose import FOLDS, QUANTILES, choose_reserve
from tbc.swarm.driver import Estimate, Outcome, actual_output, replay_alone
from tbc.swarm.fit import Fit, fit_runs
from tbc.swarm.policies import Policy, SharedPool
from tbc.swarm.traces import Call, Run
from tbc.swarm.workload import make_runs

MADE = make_runs("research", 24, np.random.default_rng(8))


def run_of(name: str, **sizes: int) -> Run:
    calls = (Call(role, role, i, 0.0, 1.0, 0.0, n, 0, 100) for i, (role, n) in enumerate(sizes.items()))
    return Run(name, "research", tuple(calls))


def chosen(runs: list[Run] | tuple[Run, ...], pressure: float = 0.8) -> float:
    need = choose_reserve(runs, pressure=pressure).roles["research", "finalize"].late
    assert need is not None
    return need.quantile


def test_the_chosen_contract_is_fitted_on_all_training_runs() -> None:
    fit = choose_reserve(MADE, pressure=0.8)

    assert (need := fit.roles["research", "finalize"].late) is not None
    assert need.quantile in QUANTILES
    assert fit == fit_runs(MADE, late_quantile=need.quantile)


def test_a_higher_target_chooses_no_smaller_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make_runs("research", 40, np.random.default_rng(8))
    monkeypatch.setattr(choose, "QUANTILES", (0.7, 0.8, 1.0))
    found = []
    for target in (0.0, 0.95, 2.0):
        monkeypatch.setattr(choose, "TARGET", target)
        found.append(chosen(runs))

    assert found == sorted(found)
    assert found[0] == 0.7  # nothing to reach: the most tokens
    assert found[-1] == 1.0  # never reached: the highest share


def test_of_the_reserves_that_reach_the_target_the_one_that_strands_least_is_chosen() -> None:
    # On 80 % of its demand, a small run is served its agent only if 5,000 are kept for the writer, not 9,000;
    # a large run is served its writer only if 9,000 are.
    small = run_of("small", agent=5_000, planner=4_000, finalize=5_000)
    large = run_of("large", agent=5_000, planner=4_000, finalize=9_000)

    assert chosen([small] * 40) == 1.0  # all the same: the larger of equals
    assert chosen([large if i == 11 else small for i in range(40)]) == 0.95  # 39 of 40 are enough
    assert chosen([large if i in (0, 11, 22, 33) else small for i in range(40)]) == 1.0  # 36 of 40 are not


def test_every_run_with_a_late_call_is_judged_once_per_trial_by_a_fit_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played: list[tuple[str, float]] = []

    def watched(run: Run, pressure: float, policy: Policy, estimate: Estimate, fit: Fit) -> Outcome:
        need = fit.roles["research", "finalize"].late
        assert need is not None
        others = [other for i, other in enumerate(MADE) if i % FOLDS != MADE.index(run) % FOLDS]
        assert run not in others
        assert fit == fit_runs(others, late_quantile=need.quantile)
        played.append((run.name, need.quantile))
        return replay_alone(run, pressure, policy, estimate, fit)

    monkeypatch.setattr(choose, "replay_alone", watched)
    choose_reserve(MADE, pressure=0.8)

    late = [run.name for run in MADE if "finalize" in run.roles.values()]
    assert sorted(played) == sorted((name, quantile) for name in late for quantile in QUANTILES)


def test_with_nothing_to_judge_by_the_largest_reserve_is_chosen() -> None:
    alone = [run_of(f"r{i}", agent=3_000) for i in range(6)] + [run_of("late", agent=3_000, finalize=3_000)]

    assert chosen(alone) == max(QUANTILES)
    assert chosen([run_of("late", agent=3_000, finalize=3_000)]) == max(QUANTILES)
    assert choose_reserve(alone[:6], pressure=0.8).late_role("research") is None


def test_a_run_alone_has_a_pool_of_its_own() -> None:
    run = run_of("r", agent=600, finalize=500)
    fit = fit_runs([run])
    outcome = replay_alone(run, 0.6, SharedPool(), actual_output, fit)

    assert outcome.budget == 660
    assert [fate.served for fate in outcome.fates] == [True, False]
    assert outcome.fates[1].starved
