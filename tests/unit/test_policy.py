"""The tier policy: the old table row by row, the defects it had and the default has not, files, latencies."""

from __future__ import annotations

import itertools
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import pytest

from tbc import catalogue
from tbc.axes import NANO
from tbc.errors import InvalidAmountError, InvalidPolicyError, TBCError, UnknownPriceError
from tbc.policy import (
    DEFAULT,
    V1,
    Condition,
    LatencyHistory,
    Policy,
    Rule,
    Situation,
    Tier,
    TierChoice,
    evaluate,
    load_policy,
    parse_policy,
)
from tbc.policy.check import CELLS_MAX
from tbc.policy.presets import default_policy
from tbc.pricing import Prices

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "policy.md"
STOP = None
THREE = (
    Tier("cheap", 80, cost_usd="0.005"),
    Tier("standard", 200, cost_usd="0.015"),
    Tier("premium", 450, cost_usd="0.030"),
)


def rule(reason: str, tier: str | None, *when: str) -> Rule:
    return Rule(when=map(Condition.parse, when), tier=tier, hard_stop=tier is None, reason=reason)


def policy(*rules: Rule, tiers: Any = THREE, listed: bool = False, degrade: bool = True) -> Policy:
    on_findings: Any = "list" if listed else "refuse"
    return Policy(name="own", tiers=tiers, rules=rules, on_findings=on_findings, degrade=degrade)


def ask(of: Policy, step: str, cents: int | None, of_cents: int | None = 100, **more: Any) -> TierChoice:
    if of is DEFAULT:
        more = {"input_tokens": 1, "max_output_tokens": 1, **more}
    left, total = (None if one is None else one * NANO // 100 for one in (cents, of_cents))
    return evaluate(of, step, remaining=left, total=total, **more)


# --- the old table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "cents", "sla_ms", "tier", "reason"),
    [
        ("plan", 9, 1000, STOP, "budget_exhausted"),
        ("summarize", 9, 1000, STOP, "budget_exhausted"),
        ("summarize", 10, 0, "cheap", "summarize_forced_cheap"),
        ("summarize", 100, 1000, "cheap", "summarize_forced_cheap"),
        ("plan", 40, 450, "premium", "planning_premium_allowed"),
        ("plan", 40, 449, "standard", "planning_standard_sla_constrained"),
        ("plan", 39, 450, "standard", "planning_standard_sla_constrained"),
        ("plan", 25, 200, "standard", "planning_standard_sla_constrained"),
        ("plan", 24, 200, "standard", "budget_protection_standard"),
        ("plan", 39, 199, "cheap", "budget_protection_cheap"),
        ("plan", 39, 79, STOP, "latency_sla_unachievable"),
        ("plan", 40, 199, "standard", "default_allow"),
        ("execute", 40, 200, "standard", "execution_standard"),
        ("execute", 40, 199, "cheap", "execution_cheap_sla_constrained"),
        ("execute", 39, 200, "cheap", "execution_cheap_sla_constrained"),
        ("execute", 15, 80, "cheap", "execution_cheap_sla_constrained"),
        ("execute", 14, 200, "standard", "budget_protection_standard"),
        ("execute", 14, 80, "cheap", "budget_protection_cheap"),
        ("execute", 39, 79, STOP, "latency_sla_unachievable"),
        ("execute", 40, 79, "standard", "default_allow"),
        ("review", 39, 200, "standard", "budget_protection_standard"),
        ("review", 10, 80, "cheap", "budget_protection_cheap"),
        ("review", 10, 79, STOP, "latency_sla_unachievable"),
        ("review", 40, 0, "standard", "default_allow"),
        # Steps that a later version knew are like any other here.
        ("search", 15, 80, "cheap", "budget_protection_cheap"),
        ("validate", 100, 0, "standard", "default_allow"),
    ],
)
def test_every_row_of_the_old_table_is_as_it_was(step, cents, sla_ms, tier, reason):
    choice = ask(V1, step, cents, sla_ms=sla_ms)

    assert (choice.tier, choice.cause, choice.hard_stop) == (tier, reason, tier is None)
    assert choice.reason.startswith(f"{reason}: ")
    costs = {"cheap": 5_000_000, "standard": 15_000_000, "premium": 30_000_000, None: 0}
    latencies = {"cheap": 80, "standard": 200, "premium": 450, None: 0}
    assert (choice.expected_cost, choice.expected_latency_ms) == (costs[tier], latencies[tier])


def as_it_was_written(step: str, r: float, sla: int) -> tuple[str | None, str]:
    """Return what the old code said, branch by branch."""
    if r < 0.10:
        return STOP, "budget_exhausted"
    if step == "summarize":
        return "cheap", "summarize_forced_cheap"
    if step == "plan":
        if sla >= 450 and r >= 0.40:
            return "premium", "planning_premium_allowed"
        if sla >= 200 and r >= 0.25:
            return "standard", "planning_standard_sla_constrained"
    if step == "execute":
        if sla >= 200 and r >= 0.40:
            return "standard", "execution_standard"
        if sla >= 80 and r >= 0.15:
            return "cheap", "execution_cheap_sla_constrained"
    if r < 0.40:
        if sla >= 200:
            return "standard", "budget_protection_standard"
        if sla >= 80:
            return "cheap", "budget_protection_cheap"
        return STOP, "latency_sla_unachievable"
    return "standard", "default_allow"


def test_the_old_table_says_what_the_old_code_said():
    steps = ("plan", "execute", "summarize", "search", "else")
    for step, cents, sla in itertools.product(steps, range(-5, 105), (0, 79, 80, 199, 200, 449, 450, 9999)):
        choice = ask(V1, step, cents, sla_ms=sla)
        assert (choice.tier, choice.cause) == as_it_was_written(step, cents / 100, sla)


@pytest.mark.parametrize(("cents", "r"), [(0, float("nan")), (-1, float("-inf"))])
@pytest.mark.parametrize("step", ["plan", "execute", "summarize", "else"])
def test_the_old_table_divides_by_nothing_as_it_did(step, cents, r):
    for sla in (0, 80, 200, 450):
        choice = ask(V1, step, cents, 0, sla_ms=sla)
        assert (choice.tier, choice.cause) == as_it_was_written(step, r, sla)


def test_the_old_table_lists_its_defects():
    assert sorted((each.kind, each.rules) for each in V1.findings) == [
        ("dearer_for_less", (1, 0)),  # a total of 0 is let through
        ("dearer_for_less", (6, 5)),  # protection inverted
        ("dearer_for_less", (9, 0)),  # a total of 0 is let through
        ("slower_for_tighter", (9, 5)),  # an SLA below 80 ms gets the slower tier
        ("too_slow", (1,)),
        ("too_slow", (9,)),  # a tight SLA is not honoured
        ("unaffordable", (1, 2, 3, 4, 5, 6, 7, 9)),  # fails instead of degrading
    ]
    inverted = next(each for each in V1.findings if each.rules == (6, 5))
    less, more = (evaluate(V1, **attrs.asdict(each)) for each in inverted.examples)
    assert (less.tier, more.tier) == ("standard", "cheap")
    assert "rules[6] (budget_protection_standard) gives standard" in inverted.message


def test_the_old_table_is_refused_where_findings_are_not_to_be_listed():
    with pytest.raises(InvalidPolicyError) as caught:
        attrs.evolve(V1, on_findings="refuse")
    assert {path for path, _ in caught.value.problems} == {"rules[1]", "rules[6]", "rules[9]"}
    assert len(caught.value.problems) == len(V1.findings)


def test_a_version_names_exactly_one_table():
    assert V1.version == "v1-6ac0dccb080f"
    assert attrs.evolve(V1, name="v1").version == V1.version
    slower = [attrs.evolve(V1.tiers[0], latency_ms=81), *V1.tiers[1:]]
    others = [
        attrs.evolve(V1, tiers=slower),
        attrs.evolve(V1, rules=V1.rules[::-1]),
        attrs.evolve(V1, degrade=True),
        attrs.evolve(V1, tiers=[attrs.evolve(each, model="m") for each in V1.tiers]),
        attrs.evolve(V1, tiers=[attrs.evolve(each, cost_usd=1) for each in V1.tiers]),
    ]
    assert len({each.version for each in [V1, DEFAULT, *others]}) == 7


# --- the default ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "cents", "tier", "cause"),
    [
        ("plan", 9, STOP, "budget_exhausted"),
        ("plan", 10, "cheap", "budget_protection_cheap"),
        ("plan", 24, "cheap", "budget_protection_cheap"),
        ("plan", 25, "standard", "planning_standard_budget_constrained"),
        ("plan", 39, "standard", "planning_standard_budget_constrained"),
        ("plan", 40, "premium", "planning_premium_allowed"),
        ("execute", 14, "cheap", "budget_protection_cheap"),
        ("execute", 15, "cheap", "execution_cheap_budget_constrained"),
        ("execute", 40, "standard", "execution_standard"),
        ("search", 14, "cheap", "budget_protection_cheap"),
        ("search", 15, "cheap", "search_cheap_budget_constrained"),
        ("search", 30, "standard", "search_standard"),
        ("summarize", 10, "cheap", "summarize_forced_cheap"),
        ("summarize", 9, STOP, "budget_exhausted"),
        ("validate", 100, "cheap", "validate_cheap"),
        ("review", 39, "cheap", "budget_protection_cheap"),
        ("review", 40, "standard", "default_allow"),
        ("review", 9, STOP, "budget_exhausted"),
    ],
)
def test_the_default_keeps_the_thresholds(step, cents, tier, cause):
    choice = ask(DEFAULT, step, cents)
    assert (choice.tier, choice.cause, choice.wanted) == (tier, cause, tier)


def test_the_default_has_no_findings():
    assert DEFAULT.findings == ()
    assert DEFAULT is default_policy()


@pytest.mark.parametrize("step", ["plan", "execute", "search", "summarize", "validate", "else"])
def test_a_tight_sla_is_honoured(step):
    wanted = {"plan": "premium"}.get(step, "cheap" if step in ("summarize", "validate") else "standard")
    for sla, most in ((450, "premium"), (449, "standard"), (200, "standard"), (199, "cheap"), (80, "cheap")):
        order = ["cheap", "standard", "premium"]
        assert ask(DEFAULT, step, 100, sla_ms=sla).tier == min(wanted, most, key=order.index)
    for sla in (79, 0):
        choice = ask(DEFAULT, step, 100, sla_ms=sla)
        assert (choice.hard_stop, choice.cause) == (True, "latency_sla_unachievable")


def test_no_sla_is_not_an_sla_of_0():
    assert ask(DEFAULT, "plan", 100).tier == "premium"
    assert ask(DEFAULT, "plan", 100, sla_ms=0).tier is None
    assert ask(V1, "plan", 100).cause == "planning_premium_allowed"
    assert ask(V1, "plan", 100, sla_ms=0).cause == "default_allow"


def test_no_budget_is_not_a_budget_of_0():
    assert ask(DEFAULT, "plan", None, None).tier == "premium"
    assert ask(DEFAULT, "plan", 0, 0).cause == "budget_exhausted"
    assert ask(DEFAULT, "plan", -1, 0).cause == "budget_exhausted"
    choice = evaluate(DEFAULT, "plan", remaining=None, total=None)
    assert (choice.tier, choice.expected_cost) == ("premium", None)
    assert "there is no budget" in choice.reason


@pytest.mark.parametrize(
    ("left", "sla_ms", "tier", "cause"),
    [
        (30_000_000, 450, "premium", "planning_premium_allowed"),
        (29_999_999, None, "standard", "degraded_by_budget"),
        (30_000_000, 449, "standard", "degraded_by_sla"),
        (29_999_999, 449, "standard", "degraded_by_budget_and_sla"),
        (14_999_999, None, "cheap", "degraded_by_budget"),
        (14_999_999, 450, "cheap", "degraded_by_budget"),
        (30_000_000, 199, "cheap", "degraded_by_sla"),
        (14_999_999, 199, "cheap", "degraded_by_budget_and_sla"),
        (4_999_999, 450, STOP, "budget_unaffordable"),
        (30_000_000, 79, STOP, "latency_sla_unachievable"),
        (4_999_999, 79, STOP, "budget_and_sla_unachievable"),
    ],
)
def test_what_does_not_fit_gives_way_to_the_dearest_that_does_and_says_why(left, sla_ms, tier, cause):
    own = policy(rule("planning_premium_allowed", "premium"))
    choice = evaluate(own, "plan", remaining=left, total=left, sla_ms=sla_ms)

    assert (choice.tier, choice.cause, choice.wanted) == (tier, cause, "premium")
    assert choice.hard_stop == (tier is None)
    if "budget" in cause:
        assert re.search(r"premium costs \$0\.03 with \$0\.[0-9]+ left", choice.reason)
    if "sla" in cause:
        assert f"under an SLA of {sla_ms} ms" in choice.reason
    if cause == "degraded_by_budget":
        assert "SLA" not in choice.reason


def test_budget_and_sla_may_leave_nothing_only_together():
    tiers = [Tier("cheap", 300, cost_usd="0.01"), Tier("standard", 100, cost_usd="0.02")]
    own = policy(rule("any", "standard"), tiers=tiers)
    choice = evaluate(own, "x", remaining=10_000_000, total=NANO, sla_ms=200)
    assert choice.cause == "budget_and_sla_unachievable"
    assert choice.reason == (
        "budget_and_sla_unachievable: standard costs $0.02 with $0.01 left; cheap takes 300 ms under an SLA "
        "of 200 ms; no cheaper tier is left (any: no rule before it matches)."
    )


def test_costs_are_those_of_the_real_models():
    for tier in DEFAULT.tiers:
        price = Prices().find(tier.model)
        assert price is not None and tier.price == price
        assert tier.cost(1000, 300) == price.ceiling(1000, 300)
    choice = ask(DEFAULT, "plan", 100, input_tokens=1000, max_output_tokens=300)
    premium = DEFAULT.tiers[2].price
    assert premium is not None
    assert (choice.model, choice.expected_cost) == ("gpt-4.1", premium.ceiling(1000, 300))


def test_the_default_needs_prices_and_says_where_they_are(monkeypatch):
    monkeypatch.setattr(catalogue, "installed", lambda: False)
    catalogue.find.cache_clear()
    try:
        with pytest.raises(UnknownPriceError, match=r"tbc\[prices\]"):
            default_policy.__wrapped__()
    finally:
        catalogue.find.cache_clear()


def test_tokens_that_are_needed_are_asked_for():
    with pytest.raises(InvalidAmountError, match="input_tokens must be stated"):
        evaluate(DEFAULT, "plan", remaining=1, total=1, max_output_tokens=5)
    with pytest.raises(InvalidAmountError, match="max_output_tokens must be stated"):
        evaluate(DEFAULT, "plan", remaining=1, total=1, input_tokens=5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": ""},
        {"step": None},
        {"remaining": None},
        {"total": None},
        {"total": -1},
        {"remaining": 0.5},
        {"remaining": True},
        {"remaining": 1, "total": 0},
        {"sla_ms": -1},
        {"sla_ms": 0.5},
        {"priority": 0},
        {"confidence": 1.5},
        {"confidence": float("nan")},
        {"input_tokens": -1},
        {"max_output_tokens": 1.5},
    ],
)
def test_arguments_that_cannot_be_are_refused(wrong):
    given: dict[str, Any] = {"step": "plan", "remaining": 1, "total": 1, **wrong}
    with pytest.raises(InvalidAmountError):
        evaluate(V1, **given)


# --- conditions -------------------------------------------------------------------------------------------


def test_shares_are_compared_exactly():
    condition = Condition.parse("budget_share < 0.10")
    assert not condition.holds(Situation("x", remaining=3, total=30))
    huge = 2**53 - 1
    assert condition.holds(Situation("x", remaining=huge // 10, total=huge))
    assert 0.1 * 3 != 0.3  # what floats make of it
    assert Condition("budget_share", "==", 0.3).holds(Situation("x", remaining=3, total=10))


def test_a_confidence_that_nobody_reported_satisfies_nothing():
    for sign in ("<", "<=", ">", ">=", "==", "!="):
        assert not Condition("confidence", sign, 0.5).holds(Situation("x", remaining=None, total=None))
    assert Condition("confidence", ">=", 0.1).holds(
        Situation("x", remaining=None, total=None, confidence=0.1)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget_shar < 0.1", "did you mean budget_share?"),
        ("load < 3", "known are step, budget_share"),
        ("sla_ms < fast", "a number of at most 9 decimals"),
        ("sla_ms < 1e3", "a number of at most 9 decimals"),
        ("sla_ms < nan", "a number of at most 9 decimals"),
        ("confidence < 0.1234567891", "a number of at most 9 decimals"),
        ("step < plan", "step is compared by == !=, not by '<'"),
        ("step == ", "the type of a step"),
        ("sla_ms", "field, operator and constant"),
        (5, "field, operator and constant"),
    ],
)
def test_conditions_that_are_none_are_refused(text, said):
    with pytest.raises(InvalidPolicyError) as caught:
        Condition.parse(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [True, None, float("inf"), Decimal("NaN"), 2**60, Fraction(1, 2)])
def test_constants_that_are_none_are_refused(value):
    with pytest.raises(InvalidPolicyError):
        Condition("sla_ms", "<", value)


# --- what the check finds ---------------------------------------------------------------------------------

LAST = rule("else", "cheap")


@pytest.mark.parametrize(
    ("rules", "kind", "places"),
    [
        ([rule("a", "cheap"), rule("b", "cheap", "step == x")], "unreachable", (1,)),
        ([rule("a", "cheap", "priority >= 3", "priority < 3"), LAST], "unreachable", (0,)),
        ([rule("a", "cheap", "sla_ms > 5", "sla_ms < 6"), LAST], "unreachable", (0,)),
        ([rule("a", "cheap", "confidence > 1"), LAST], "unreachable", (0,)),
        (
            [rule("a", "cheap", "priority < 3"), rule("b", "cheap", "priority >= 3"), LAST],
            "unreachable",
            (2,),
        ),
        ([rule("a", "cheap", "budget_share >= 0")], "gap", ()),
        ([rule("a", "cheap", "step == x")], "gap", ()),
        ([rule("a", "cheap", "confidence < 2")], "gap", ()),
        ([rule("a", "premium", "budget_share < 0.4"), LAST], "dearer_for_less", (0, 1)),
        ([rule("a", "premium", "budget_usd < 5"), LAST], "dearer_for_less", (0, 1)),
        ([rule("a", None, "budget_share > 0.4"), LAST], "dearer_for_less", (1, 0)),
        ([rule("a", "premium", "sla_ms < 900"), LAST], "slower_for_tighter", (0, 1)),
        # Above every amount there is only: no SLA, no budget.
        ([rule("a", None, "sla_ms > 9007199254740991"), LAST], "slower_for_tighter", (1, 0)),
        ([rule("a", None, "budget_usd > 9007199.254740991"), LAST], "dearer_for_less", (1, 0)),
    ],
)
def test_a_planted_defect_is_found_and_nothing_else(rules, kind, places):
    found = policy(*rules, listed=True).findings
    assert {(each.kind, each.rules) for each in found} == {(kind, places)}
    with pytest.raises(InvalidPolicyError, match=re.escape(found[0].message)):
        policy(*rules)


def test_nothing_of_nothing_is_no_share():
    rules = [rule("a", "cheap", "budget_share <= 0.4"), rule("b", "cheap", "budget_share > 0.4")]
    gap = next(each for each in policy(*rules, listed=True).findings if each.kind == "gap")
    assert [(each.remaining, each.total) for each in gap.examples] == [(0, 0)]
    assert policy(rule("z", None, "budget_usd <= 0"), *rules).findings == ()


def test_tiers_must_be_listed_from_the_cheapest():
    found = policy(rule("a", "cheap"), tiers=[THREE[1], THREE[0]], listed=True).findings
    assert [each.kind for each in found] == ["unordered_tiers"]
    assert "standard costs more than cheap: $0.0150 a call" in found[0].message


def test_real_prices_must_rise_with_the_tiers():
    # The models that were once suggested: the cheap one costs more than the standard one.
    tiers = [Tier.of_model("cheap", "gpt-3.5-turbo", 80), Tier.of_model("standard", "gpt-4o-mini", 200)]
    with pytest.raises(InvalidPolicyError, match="cheap costs more than standard: a token of input"):
        policy(rule("a", "cheap"), tiers=tiers)
    assert policy(rule("a", "cheap"), tiers=tiers[::-1]).findings == ()


def test_prices_of_long_prompts_count_too():
    plain = {"input_per_million": 1, "output_per_million": 1}
    long = {"above": 1000, "input_per_million": 1, "output_per_million": 9}
    prices = Prices({"a": {**plain, "tiers": [long]}, "b": {**plain, "output_per_million": 2}}, default=False)
    tiers = [Tier.of_model("one", "a", 1, prices), Tier.of_model("two", "b", 1, prices)]
    with pytest.raises(InvalidPolicyError, match="output, in prompts from 1,001 tokens"):
        policy(rule("a", "one"), tiers=tiers)


def test_a_price_and_a_cost_cannot_be_ordered():
    with pytest.raises(InvalidPolicyError, match="give all a cost, or all a price"):
        policy(rule("a", "cheap"), tiers=[THREE[0], Tier.of_model("two", "gpt-4o", 5)])


def test_where_latencies_do_not_rise_a_tier_may_be_slower_by_what_is_affordable():
    tiers = [
        Tier("a", 100, cost_usd=1),
        Tier("b", 400, cost_usd=2),
        Tier("c", 50, cost_usd=3),
    ]
    found = policy(rule("tight", "c", "sla_ms <= 500"), rule("loose", "a"), tiers=tiers, listed=True).findings
    assert [(each.kind, each.rules) for each in found] == [("slower_for_tighter", (0, 1))]
    assert "where only 2 of the tiers are affordable" in found[0].message


def test_too_many_constants_are_refused_with_the_number():
    many = [
        rule(f"{field}{n}", "cheap", f"{field} == {n}")
        for field in ("sla_ms", "budget_usd", "priority")
        for n in range(2, 50)
    ]
    with pytest.raises(InvalidPolicyError, match=rf"cells, more than {CELLS_MAX:,}"):
        policy(*many, LAST)


def test_a_gap_is_a_hard_stop_with_a_reason():
    own = policy(rule("a", "cheap", "step == x"), listed=True)
    choice = evaluate(own, "y", remaining=None, total=None)
    assert (choice.hard_stop, choice.cause, choice.rule) == (True, "no_rule", None)
    assert choice.reason


def test_records_that_contradict_themselves_are_refused():
    for make in (
        lambda: Rule(reason="x"),
        lambda: Rule(reason="x", tier="cheap", hard_stop=True),
        lambda: Rule(reason=" ", tier="cheap"),
        lambda: Rule(reason="two\nlines", tier="cheap"),
        lambda: Rule(reason="z" * 101, tier="cheap"),
        lambda: Rule(reason="x", tier="cheap", when=["step == x"]),  # type: ignore[list-item]
        lambda: Tier("x", 5),
        lambda: Tier("", 5, cost_usd=1),
        lambda: Tier("x", -5, cost_usd=1),
        lambda: policy(),
        lambda: policy(LAST, tiers=[]),
        lambda: policy(LAST, tiers=[*THREE, THREE[0]]),
        lambda: policy(rule("x", "cheep")),
        lambda: attrs.evolve(V1, on_findings="ignore"),
        lambda: attrs.evolve(V1, name=""),
    ):
        with pytest.raises(TBCError):
            make()


# --- latencies --------------------------------------------------------------------------------------------


def test_the_prior_holds_until_enough_calls_were_observed():
    history = LatencyHistory(enough=3, window=4)
    for latency in (10, 20):
        history.observe("cheap", latency)
        assert history.expected_ms("cheap", 80) == 80
    history.observe("cheap", 29.2)
    assert history.expected_ms("cheap", 80) == 30
    assert history.expected_ms("standard", 200) == 200
    for latency in (1, 2, 3, 4):
        history.observe("cheap", latency)
    assert (history.observed("cheap"), history.expected_ms("cheap", 80)) == (4, 4)


def test_of_ten_calls_the_second_slowest_is_expected():
    history = LatencyHistory(enough=10)
    for latency in (5, 1, 9, 3, 7, 2, 10, 8, 4, 6):
        history.observe("cheap", latency)
    assert history.expected_ms("cheap", 80) == 9


def test_observed_latencies_decide():
    history = LatencyHistory(enough=1)
    history.observe("premium", 900)
    assert ask(DEFAULT, "plan", 100, sla_ms=500, history=history).tier == "standard"
    history.observe("standard", 501)
    choice = ask(DEFAULT, "plan", 100, sla_ms=500, history=history)
    assert (choice.tier, choice.cause, choice.expected_latency_ms) == ("cheap", "degraded_by_sla", 80)
    assert "standard takes 501 ms under an SLA of 500 ms" in choice.reason


@pytest.mark.parametrize(
    "terms", [{"quantile": 0}, {"quantile": 1.1}, {"window": 0}, {"enough": 0}, {"enough": 3, "window": 2}]
)
def test_histories_that_cannot_be_are_refused(terms):
    with pytest.raises(InvalidAmountError):
        LatencyHistory(**terms)


@pytest.mark.parametrize("latency", [-1, float("nan"), float("inf"), True, "5", None])
def test_latencies_that_cannot_be_are_refused(latency):
    with pytest.raises(InvalidAmountError):
        LatencyHistory().observe("cheap", latency)


# --- files ------------------------------------------------------------------------------------------------

SMALL = """
name: small
tiers:
  - {name: cheap, model: own-small, latency_ms: 900}
  - {name: dear, model: own-large, latency_ms: 2500}
prices:
  own-small: {free: true}
  own-large: {input_per_million: 3, output_per_million: 15}
rules:
  - {when: [budget_share < 0.1], hard_stop: true, reason: exhausted}
  - {when: [step == plan, budget_share >= 0.5], tier: dear, reason: plenty}
  - {tier: cheap, reason: else}
"""
TOML = """
name = "small"
[prices]
own-small = {free = true}
own-large = {input_per_million = 3, output_per_million = 15}
[[tiers]]
name = "cheap"
model = "own-small"
latency_ms = 900
[[tiers]]
name = "dear"
model = "own-large"
latency_ms = 2500
[[rules]]
when = ["budget_share < 0.1"]
hard_stop = true
reason = "exhausted"
[[rules]]
when = ["step == plan", "budget_share >= 0.5"]
tier = "dear"
reason = "plenty"
[[rules]]
tier = "cheap"
reason = "else"
"""


def problems(text: str, path: str = "p.yaml") -> dict[str, str]:
    with pytest.raises(InvalidPolicyError) as caught:
        parse_policy(text, path)
    return dict(caught.value.problems)


def test_a_file_makes_a_policy_in_both_notations(tmp_path):
    # `budget_share < 0.1` is not asked where nothing is left of nothing, and the last rule is free.
    (tmp_path / "p.yaml").write_text(SMALL)
    (tmp_path / "p.toml").write_text(TOML)
    one, other = (
        load_policy(tmp_path / "p.yaml", on_findings="list"),
        load_policy(tmp_path / "p.toml", on_findings="list"),
    )
    assert one == other and one.version == other.version
    assert [each.kind for each in one.findings] == ["dearer_for_less"]
    choice = ask(one, "plan", 50, input_tokens=1000, max_output_tokens=100)
    assert (choice.tier, choice.expected_cost) == ("dear", 4_500_000)


def test_what_the_check_finds_is_a_problem_of_the_file():
    found = problems(SMALL)
    assert list(found) == ["rules[2]"]
    assert "less budget buys a dearer tier" in found["rules[2]"]
    fixed = SMALL.replace("rules:", "rules:\n  - {when: [budget_usd <= 0], hard_stop: true, reason: none}")
    assert parse_policy(fixed).findings == ()


def test_every_problem_of_a_file_is_named_at_once():
    found = problems(
        """
name: p
degrade: maybe
tires: []
tiers:
  - {name: cheap, model: nobody-s-model, latency_ms: 80}
  - {name: dear, latency_ms: -1, cost_usd: 5}
  - {name: none, latency_ms: 1}
prices:
  m: {input_per_milion: 3}
rules:
  - {when: [budget_shar < 0.1, sla_ms], tier: cheap, reason: a}
  - {when: budget_share < 0.1, tier: cheap, reason: a}
  - {tier: cheap, hard_stop: true, reason: a}
  - {tier: cheap}
  - {teir: cheap, reason: a}
  - 7
"""
    )
    assert {path: found[path] for path in ("degrade", "tires", "rules[4].teir")} == {
        "degrade": "must be true or false, not 'maybe'",
        "tires": "unknown key; did you mean tiers?",
        "rules[4].teir": "unknown key; did you mean tier?",
    }
    assert set(found) - {"degrade", "tires", "rules[4].teir"} == {
        "tiers[0].model",
        "tiers[1].latency_ms",
        "tiers[2]",
        "prices['m']['input_per_milion']",
        "rules[0].when[0]",
        "rules[0].when[1]",
        "rules[1].when",
        "rules[2]",
        "rules[3].reason",
        "rules[4]",
        "rules[5]",
    }


def test_unknown_tiers_are_named_with_the_nearest():
    found = problems(SMALL.replace("tier: dear", "tier: deer"))
    assert found == {"rules[1].tier": "no tier is called 'deer'; did you mean dear?"}


@pytest.mark.parametrize("text", ["", "[]", "a: b: c", "name: x\nname: y"])
def test_texts_that_are_no_policy_are_refused(text):
    assert problems(text)
    assert problems("nonsense", "p.toml")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "p.yaml").write_bytes(b"name: \xff")
    with pytest.raises(InvalidPolicyError, match="not UTF-8: byte 6"):
        load_policy(tmp_path / "p.yaml")


def test_the_file_of_the_document_is_a_policy_without_findings():
    blocks = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        assert parse_policy(block).findings == ()
