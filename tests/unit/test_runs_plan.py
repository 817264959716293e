"""The plan of a workflow: layers, the arithmetic of admission, and what it may cost."""

from __future__ import annotations

import pytest

import tbc
from tbc.errors import CarveOutError
from tbc.pricing import Prices
from tbc.runs.config import parse_workflow
from tbc.runs.plan import Admission, Estimate, Range, admissions, estimate, layers
from tbc.runs.workflow import Workflow
from tbc.tokens import EstimateCounter, count

PRICES = """
prices:
  small: {input_per_million: 1, output_per_million: 10}
  large: {input_per_million: 5, output_per_million: 50}
  local: {free: true}
"""


def workflow(*steps: str, agents: str = "{a: {}}", more: str = "") -> Workflow:
    lines = "".join(f"  - {{agent: a, call: 'a.b:c', {line}}}\n" for line in steps or ("id: s",))
    return parse_workflow(f"name: t\nagents: {agents}\n{PRICES}{more}\nsteps:\n{lines}")


def guess(*steps: str) -> Estimate:
    found = workflow(*steps)
    return estimate(found, Prices(found.prices, default=False), lambda model: EstimateCounter())


# --- layers -----------------------------------------------------------------------------------------------


def test_a_layer_holds_what_may_run_at_once_in_the_order_of_the_file():
    found = workflow(
        "id: d, after: [b, c]", "id: c, input: '{{ steps.a }}'", "id: b, after: [a]", "id: a", "id: z"
    )

    assert layers(found) == (("a", "z"), ("c", "b"), ("d",))


# --- admission --------------------------------------------------------------------------------------------


def team(*terms: str) -> str:
    return "{a: {}, " + ", ".join(f"r{i}: {{{each}}}" for i, each in enumerate(terms)) + "}"


def test_story_07_fan_out_admission_states_the_arithmetic_before_any_call():
    found = admissions(
        workflow(agents=team(*["max_tokens: 40000"] * 4), more="limits: {budget_tokens: 120000}")
    )

    assert [str(each) for each in found] == ["4 x 40,000 = 160,000 > 120,000: refused; 3 would fit"]
    assert found[0].admitted == ("r0", "r1", "r2")
    assert not found[0].fits


@pytest.mark.parametrize(
    ("terms", "limits", "said"),
    [
        (["max_tokens: 30000"] * 4, "budget_tokens: 120000", ["4 x 30,000 = 120,000 <= 120,000: fits"]),
        (
            ["max_tokens: 50", "max_tokens: 70", "max_tokens: 50"],
            "budget_tokens: 130",
            ["2 x 50 + 70 = 170 > 130: refused; 2 would fit (r0, r1)"],
        ),
        (["max_tokens: 131"], "budget_tokens: 130", ["131 > 130: refused; none would fit"]),
        (["max_tokens: 5"], "budget_tokens: 0", ["5 > 0: refused; none would fit"]),
        (["max_tokens: 0"], "budget_tokens: 0", []),
        (
            ["max_usd: 0.4"] * 3,
            "budget_usd: 1, budget_tokens: 5",
            ["3 x $0.40 = $1.20 > $1.00: refused; 2 would fit"],
        ),
        (["max_tokens: 9, max_calls: 5"], "budget_usd: 1", []),
        (
            ["max_calls: 5", "max_calls: 4, parent: r0", "max_calls: 2, parent: r0"],
            "budget_usd: 1",
            ["4 + 2 = 6 > 5: refused; 1 would fit (r1)"],
        ),
        (
            ["max_tokens: 100, min_reserve: 30", "max_tokens: 75, parent: r0"],
            "budget_tokens: 100",
            ["100 <= 100: fits", "75 > 100 - reserve 30 = 70: refused; none would fit"],
        ),
        (
            ["max_usd: 1, min_reserve_usd: 0.25", "max_usd: 0.75, parent: r0"],
            "budget_tokens: 100",
            ["$0.75 <= $1.00 - reserve $0.25 = $0.75: fits"],
        ),
        (
            ["priority: 2", "max_tokens: 9, parent: r0"],
            "budget_tokens: 10",
            ["9 > 0: refused; none would fit"],
        ),
        (["priority: 2", "max_tokens: 9, parent: r0"], "budget_usd: 10", []),
    ],
)
def test_the_arithmetic_of_admission(terms, limits, said):
    found = admissions(workflow(agents=team(*terms), more=f"limits: {{{limits}}}"))

    assert [str(each) for each in found] == said


@pytest.mark.parametrize("budget", [0, 69, 70, 99, 100, 119, 120, 121])
@pytest.mark.parametrize("caps", [(60, 40, 20), (None, 40, 20), (70, 60, 9), (70, 63, 1), (70, 64, 0)])
def test_admission_says_what_registering_the_agents_says(budget, caps):
    outer, inner, other = ("" if cap is None else f"max_tokens: {cap}, " for cap in caps)
    agents = f"{{a: {{}}, o: {{{outer}}}, i: {{{inner}parent: o}}, p: {{{other}}}}}"
    found = workflow(agents=agents, more=f"limits: {{budget_tokens: {budget}}}")
    manager = tbc.BudgetManager(max_tokens=budget)
    refused = False
    for name, agent in found.agents.items():
        try:
            manager.register_agent(name, agent.priority, agent.max_tokens, parent=agent.parent)
        except CarveOutError:
            refused = True
            break

    assert refused == (not all(each.fits for each in admissions(found)))


def test_a_record_of_admission_has_the_numbers():
    one = Admission(parent="p", axis="tokens", owned=10, reserve=2, caps=(("x", 5), ("y", 4)))

    assert (one.spare, one.asked, one.fits, one.admitted) == (8, 9, False, ("x",))


# --- the estimate -----------------------------------------------------------------------------------------

PROMPT = "How far is it to the sea?"
WORDS = count(PROMPT, EstimateCounter())


def test_low_is_the_input_and_high_adds_the_output_cap():
    (step,) = guess(f"id: s, model: small, max_output_tokens: 100, input: '{PROMPT}'").steps

    assert step.tokens == Range(WORDS, WORDS + 100)
    assert step.usd == Range(WORDS * 1000, WORDS * 1000 + 100 * 10_000)
    assert (step.calls, step.notes, step.unpriced) == (1, (), ())


def test_without_an_output_cap_high_is_unknown():
    (step,) = guess(f"id: s, model: small, input: '{PROMPT}'").steps

    assert step.tokens == Range(WORDS, None)
    assert step.usd == Range(WORDS * 1000, None)
    assert step.notes == ("no max_output_tokens, so the output has no bound",)


def test_an_unknown_price_is_unknown_not_free():
    found = guess(
        f"id: s, model: nobodys, max_output_tokens: 9, input: '{PROMPT}'", "id: t, max_output_tokens: 1"
    )

    assert [step.usd for step in found.steps] == [Range(None, None)] * 2
    assert [step.unpriced for step in found.steps] == [("nobodys",), ("(no model named)",)]
    assert found.total("usd", "low") == "at least $0.00 (2 steps unknown)"
    assert found.total("tokens", "high") == f"{WORDS + 9 + 1} tokens"


def test_an_assumed_price_is_used_and_said():
    found = workflow("id: s, model: nobodys, max_output_tokens: 9, input: x", more="unknown_price: 2")
    (step,) = estimate(found, Prices(found.prices, default=False), lambda model: EstimateCounter()).steps

    assert step.usd == Range(2_000, 10 * 2_000)
    assert step.notes == ("the price of nobodys is assumed",)


def test_a_free_model_costs_nothing_however_much_it_says():
    found = guess("id: s, model: local, input: x")

    assert found.steps[0].usd == Range(0, 0)
    assert found.steps[0].tokens.high is None
    assert (found.total("usd", "high"), found.total("tokens", "high")) == (
        "$0.00",
        "at least 0 tokens (1 step unknown)",
    )


def test_a_list_is_counted_item_by_item():
    (step,) = guess(
        "id: s, model: small, max_output_tokens: 10, for_each: [one, two words], input: 'Of {{ item }}'"
    ).steps
    counter = EstimateCounter()
    words = counter.count("Of one") + counter.count("Of two words")

    assert step.calls == 2
    assert step.tokens == Range(words, words + 20)


def test_an_input_from_an_earlier_step_is_bounded_by_its_output_caps():
    found = guess(
        "id: s, model: small, max_output_tokens: 10, for_each: [1, 2, 3], input: x",
        f"id: t, model: small, max_output_tokens: 5, input: ['{PROMPT}', "
        "'{{ steps.s }}', '{{ steps.s.0 }}']",
    )

    assert found.steps[1].tokens == Range(WORDS, WORDS + 2 * 30 + 5)
    assert found.steps[1].notes == ("the input takes what s returns: up to 30 tokens by its output cap",)


def test_items_that_take_results_are_bounded_too():
    found = guess(
        "id: s, model: small, max_output_tokens: 10",
        "id: t, model: small, max_output_tokens: 5, for_each: ['{{ steps.s }}', x], input: '{{ item }}'",
    )

    assert found.steps[1].tokens == Range(1, 1 + 10 + 2 * 5)


def test_what_an_unbounded_step_returns_is_unknown_further_down():
    found = guess("id: s, model: small", "id: t, model: small, max_output_tokens: 5, input: '{{ steps.s }}'")

    assert found.steps[1].tokens == Range(0, None)
    assert found.steps[1].notes == ("the input takes what s returns, which has no bound",)
    assert found.unknown("usd", "high") == ("s", "t")


def test_a_list_that_is_not_known_yet_may_be_empty_or_long():
    found = guess(
        "id: s, model: small, max_output_tokens: 5",
        "id: t, model: small, max_output_tokens: 5, for_each: '{{ steps.s.names }}', input: 'Of {{ item }}'",
        "id: u, model: small, max_output_tokens: 5, input: '{{ steps.t }}'",
    )

    assert found.steps[1].calls is None
    assert found.steps[1].tokens == Range(0, None)
    assert found.steps[1].usd == Range(0, None)
    assert found.steps[2].tokens.high is None


def test_with_a_fallback_model_the_cheaper_is_low_and_the_dearer_high():
    (step,) = guess("id: s, model: large, fallback_model: small, max_output_tokens: 10, input: x").steps

    assert step.usd == Range(1_000, 5_000 + 500_000)
    (step,) = guess("id: s, model: small, fallback_model: nobodys, max_output_tokens: 10, input: x").steps
    assert (step.usd, step.unpriced) == (Range(None, None), ("nobodys",))


def test_totals_are_the_sums():
    found = guess(
        "id: s, model: small, max_output_tokens: 10, input: x", "id: t, model: small, max_output_tokens: 5"
    )

    assert found.tokens == Range(1, 16)
    assert found.usd == Range(1_000, 1_000 + 150_000)
    assert found.total("usd", "high") == "$0.000151"
    assert found.estimated
