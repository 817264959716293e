"""What is learned from training runs."""

from __future__ import annotations

import pytest

from tbc.swarm.fit import LateNeed, fit_runs, quantile
from tbc.swarm.traces import Call, Run


def call(role: str, input_tokens: int, output_tokens: int, step: int = 0) -> Call:
    return Call(role, role, step, 0.0, 1.0, 0.0, input_tokens, output_tokens, 800)


def research(*calls: Call) -> Run:
    return Run(f"r{id(calls)}", "research", calls)


RUNS = [
    research(call("agent", 1_000, 100), call("agent", 2_000, 300, 1), call("finalize", 3_000, 500)),
    research(call("agent", 4_000, 200), call("finalize", 4_000, 700)),
]


def test_a_quantile_is_one_of_the_values_that_a_share_does_not_exceed() -> None:
    values = [5, 1, 4, 2, 3]

    assert [quantile(values, share) for share in (0.0, 0.2, 0.21, 0.8, 0.9, 1.0)] == [1, 1, 2, 4, 5, 5]
    # 0.55 * 20 is a little more than 11 in floats
    assert quantile(range(1, 21), 0.55) == 11


def test_roles_are_fitted_on_outputs_and_demand() -> None:
    fit = fit_runs(RUNS)

    agent, finalize = fit.roles["research", "agent"], fit.roles["research", "finalize"]
    assert (agent.output, agent.demand, agent.late) == (300, (1_100 + 2_300 + 4_200) // 2, None)
    assert (finalize.output, finalize.demand) == (700, (3_500 + 4_700) // 2)
    assert finalize.priority == fit.top > agent.priority


def test_the_late_need_is_learned_from_inputs_and_growth() -> None:
    need, median = (
        fit_runs(RUNS, late_quantile=share).roles["research", "finalize"].late for share in (0.9, 0.5)
    )

    # its input is 3,000 after 2,000 in the one run, and 4,000 after 4,000 in the other
    assert need == LateNeed(usual_input=4_000, largest_input=4_000, growth=1_000, output=700, quantile=0.9)
    assert median == LateNeed(usual_input=3_000, largest_input=4_000, growth=1_000, output=700, quantile=0.5)


def test_a_late_role_that_needs_less_than_what_came_before_has_no_growth() -> None:
    run = research(call("agent", 4_000, 200), call("finalize", 1_000, 700, 1))

    assert (need := fit_runs([run]).roles["research", "finalize"].late) is not None
    assert need.growth == 0


def test_a_reserve_grows_with_the_run_up_to_the_usual_need() -> None:
    need = LateNeed(usual_input=9_000, largest_input=12_000, growth=2_000, output=1_000)

    assert [need.reserve(largest) for largest in (0, 1_000, 7_500, 50_000)] == [3_000, 4_000, 10_000, 10_000]
    assert need.most == 13_000


def test_an_estimate_is_the_p90_and_never_above_the_cap() -> None:
    fit = fit_runs(RUNS)

    assert fit.output("research", "agent", 16_384) == 300
    assert fit.output("research", "agent", 250) == 250
    assert fit.output("research", "never seen", 512) == 512


@pytest.mark.parametrize("role", ["agent", "finalize"])
def test_any_role_can_be_protected(role: str) -> None:
    fit = fit_runs(RUNS, late_roles={"research": role})

    assert fit.late_role("research") == role
    assert fit.priority("research", role) == fit.top
    assert fit_runs(RUNS, late_roles={}).late_role("research") is None
