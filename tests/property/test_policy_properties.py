"""What holds for every rule set and every input: the check finds what is there, and choices fit."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tbc.axes import NANO
from tbc.errors import InvalidPolicyError
from tbc.policy import (
    DEFAULT,
    Condition,
    LatencyHistory,
    Policy,
    Rule,
    Tier,
    TierChoice,
    evaluate,
    parse_policy,
)

COSTS = {"a": 1, "b": 2, "c": 3}
#: Whose latencies rise with their costs, and whose do not.
RISING = {"a": 100, "b": 200, "c": 300}
FALLING = {"a": 300, "b": 200, "c": 100}
MIXED = {"a": 200, "b": 300, "c": 100}

CONSTANTS: dict[str, Sequence[str]] = {
    "step": ["x", "y"],
    "budget_share": ["-0.5", "0", "0.25", "0.5", "1"],
    "budget_usd": ["0", "100", "200"],
    "sla_ms": ["0", "100", "200", "201", "300"],
    "priority": ["1", "2", "4"],
    "confidence": ["0", "0.5", "1"],
}
SIGNS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@st.composite
def rule_sets(draw: st.DrawFn) -> tuple[Rule, ...]:
    """Draw rules over a few fields, so that an oracle can try everything."""
    fields = draw(st.lists(st.sampled_from(list(CONSTANTS)), min_size=1, max_size=3, unique=True))
    rules = []
    for index in range(draw(st.integers(1, 5))):
        when = []
        for field in draw(st.lists(st.sampled_from(fields), max_size=2)):
            sign = draw(st.sampled_from(["==", "!="] if field == "step" else list(SIGNS)))
            when.append(Condition(field, sign, draw(st.sampled_from(CONSTANTS[field]))))
        tier = draw(st.sampled_from([None, "a", "b", "c"]))
        rules.append(Rule(when=when, tier=tier, hard_stop=tier is None, reason=f"rule{index}"))
    return tuple(rules)


def tiers_of(latencies: dict[str, int]) -> list[Tier]:
    return [Tier(name, latencies[name], cost_usd=cost) for name, cost in COSTS.items()]


def listed(rules: Sequence[Rule], latencies: dict[str, int], *, degrade: bool = True) -> Policy:
    return Policy(name="p", tiers=tiers_of(latencies), rules=rules, degrade=degrade, on_findings="list")


# --- the oracle: every input there is, on a grid finer than the constants -----------------------------------

INFINITE = math.inf
#: (share, total in dollars): below, at and between all constants. A share of nothing is None.
SHARES = [Fraction(n, 8) for n in (-8, -4, -2, 0, 1, 2, 3, 4, 6, 8, 10)]
TOTALS = [50, 100, 150, 200, 250]
BUDGETS: list[tuple[Any, Any]] = [
    (-INFINITE, 0),
    (None, 0),
    *itertools.product(SHARES, TOTALS),
    (INFINITE, INFINITE),
]
SLAS = [0, 50, 99, 100, 101, 150, 199, 200, 201, 202, 250, 299, 300, 301, 999, INFINITE]
OTHERS: dict[str, list[Any]] = {
    "step": ["x", "y", "z"],
    "priority": [1, 2, 3, 4, 5],
    "confidence": [None, 0, Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), 1],
}


def holds(condition: Condition, values: dict[str, Any]) -> bool:
    value = values[condition.field]
    if value is None:
        return False
    bound = condition.value if condition.field == "step" else Fraction(condition.value)
    return bool(SIGNS[condition.operator](value, bound))


def deciding(rules: Sequence[Rule], values: dict[str, Any]) -> int | None:
    for index, rule in enumerate(rules):
        if all(holds(condition, values) for condition in rule.when):
            return index
    return None


def is_less(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Whether a budget is smaller: less left, and neither a larger total nor a larger share."""
    (share, total), (share_2, total_2) = one, other
    if one == other or total > total_2 or (share or 0) > (share_2 or 0):
        return False
    # Of debts, the same share of a smaller total is more; with a total of 0 a debt can be of any size.
    return total == total_2 or (share_2 or 0) >= 0 or total == 0


LESS_AND_MORE = [pair for pair in itertools.permutations(BUDGETS, 2) if is_less(*pair)]


def given_tier(tier: str | None, affordable: int, sla: float, latencies: dict[str, int]) -> str | None:
    if tier is None:
        return None
    fitting = [
        name
        for name, cost in COSTS.items()
        if cost <= min(affordable, COSTS[tier]) and latencies[name] <= sla
    ]
    return max(fitting, default=None)


def wrong_by_trying(rules: Sequence[Rule], latencies: dict[str, int]) -> tuple[set[str], set[int]]:
    """Return the kinds of findings that some input shows, and the rules that no input reaches."""
    kinds, reached = set(), set()
    used = {condition.field for rule in rules for condition in rule.when}
    axes = [OTHERS[field] if field in used else OTHERS[field][:1] for field in OTHERS]
    bound = used & {"budget_share", "budget_usd"}
    budgets = BUDGETS if bound else BUDGETS[-1:]
    pairs = LESS_AND_MORE if bound else []
    slas = SLAS if "sla_ms" in used or latencies else SLAS[-1:]
    cost = {None: 0, **COSTS}
    latency = {None: -1, **latencies}
    for others in itertools.product(*axes):
        values = dict(zip(OTHERS, others, strict=True))
        table: dict[tuple[Any, Any], int | None] = {}
        for budget, sla in itertools.product(budgets, slas):
            values |= {"budget_share": budget[0], "budget_usd": budget[1], "sla_ms": sla}
            table[budget, sla] = deciding(rules, values)
        reached |= set(table.values())
        if None in table.values():
            kinds.add("gap")
        tier = {place: None if decided is None else rules[decided].tier for place, decided in table.items()}

        def answer(budget: Any, sla: float, affordable: int, tier: Any = tier) -> str | None:
            owes = budget[0] is not None and budget[0] < 0
            return given_tier(tier[budget, sla], 0 if owes else affordable, sla, latencies)

        for (less, more), sla in itertools.product(pairs, slas):
            if tier[less, sla] != tier[more, sla] and (
                cost[answer(less, sla, 3)] > cost[answer(more, sla, 3)]
            ):
                kinds.add("dearer_for_less")
        for budget, (tight, loose), affordable in itertools.product(
            budgets, itertools.pairwise(slas), range(4)
        ):
            if latency[answer(budget, tight, affordable)] > latency[answer(budget, loose, affordable)]:
                kinds.add("slower_for_tighter")
    return kinds, set(range(len(rules))) - reached


def rule(tier: str | None, *when: str) -> Rule:
    return Rule(when=map(Condition.parse, when), tier=tier, hard_stop=tier is None, reason="r")


@pytest.mark.parametrize(
    ("rules", "wrong"),
    [
        ([rule("a")], (set(), set())),
        ([rule("a"), rule("b")], (set(), {1})),
        ([rule("a", "step == x")], ({"gap"}, set())),
        ([rule("c", "budget_share < 0.25"), rule("b")], ({"dearer_for_less"}, set())),
        ([rule("b", "budget_usd < 100"), rule("a")], ({"dearer_for_less"}, set())),
        ([rule("c", "sla_ms < 301"), rule("b")], ({"slower_for_tighter"}, set())),
        ([rule("b", "budget_share < 0.25"), rule("c")], ({"dearer_for_less"}, set())),  # 0 of 0 is no share
        ([rule("a", "budget_usd <= 0"), rule("b", "budget_share < 0.25"), rule("c")], (set(), set())),
    ],
)
def test_the_oracle_tells_right_from_wrong(rules, wrong):
    assert wrong_by_trying(rules, RISING) == wrong


# --- the check ----------------------------------------------------------------------------------------------


@given(rule_sets(), st.sampled_from([RISING, FALLING, MIXED]))
@example((rule("b", "budget_share < 0.25"), rule("c")), RISING)
@example((rule("c", "sla_ms <= 300"), rule("a")), MIXED)
def test_the_check_finds_exactly_what_some_input_shows(rules, latencies):
    found = listed(rules, latencies).findings
    unreachable = {each.rules[0] for each in found if each.kind == "unreachable"}
    kinds = {each.kind for each in found} - {"unreachable"}
    assert (kinds, unreachable) == wrong_by_trying(rules, latencies)


def ranks(policy: Policy, examples: Any) -> Iterator[tuple[int, TierChoice]]:
    names = [None, *(tier.name for tier in policy.tiers)]
    for situation in examples:
        choice = evaluate(policy, **attrs.asdict(situation))
        yield names.index(choice.tier), choice


@given(rule_sets(), st.sampled_from([RISING, FALLING, MIXED]), st.booleans())
@example((rule("b", "budget_share < 0.25"), rule("c")), RISING, True)
@example((rule("c", "sla_ms <= 300"), rule("a")), RISING, False)
def test_every_finding_shows_itself(rules, latencies, degrade):
    policy = listed(rules, latencies, degrade=degrade)
    for finding in policy.findings:
        if not finding.examples or "tiers are affordable" in finding.message:
            continue
        # Why: examples suppose that everything is affordable.
        free = [Tier(tier.name, tier.latency_ms, cost_usd=0) for tier in policy.tiers]
        rich, examples = attrs.evolve(policy, tiers=free), finding.examples
        shown = list(ranks(rich, examples))
        if finding.kind == "gap":
            assert shown[0][1].cause == "no_rule"
        elif finding.kind == "dearer_for_less":
            assert shown[0][0] > shown[1][0]
            assert finding.examples[0].left <= finding.examples[1].left
        elif finding.kind == "slower_for_tighter":
            assert finding.examples[0].sla_ms is not None
            assert shown[0][1].expected_latency_ms > shown[1][1].expected_latency_ms or shown[1][0] == 0
        else:
            assert finding.kind == "too_slow"
            assert shown[0][1].expected_latency_ms > (finding.examples[0].sla_ms or 0)


# --- choices ------------------------------------------------------------------------------------------------

steps = st.sampled_from(["plan", "execute", "search", "summarize", "validate", "other"])
amounts = st.integers(0, 3_000_000) | st.integers(0, 10 * NANO)
slas = st.none() | st.integers(0, 600)


@st.composite
def budgets(draw: st.DrawFn) -> tuple[int, int]:
    total = draw(amounts)
    tenths = st.integers(0, 100).map(lambda percent: total * percent // 100)
    return draw(tenths | st.integers(-total, total)), total


@st.composite
def histories(draw: st.DrawFn) -> LatencyHistory | None:
    if draw(st.booleans()):
        return None
    history = LatencyHistory(enough=1)
    for tier in ("cheap", "standard", "premium"):
        for latency in draw(st.lists(st.integers(0, 600), max_size=3)):
            history.observe(tier, latency)
    return history


def choose(step: str, budget: tuple[int, int], sla: int | None, history: Any, **more: Any) -> TierChoice:
    tokens = {"input_tokens": 1000, "max_output_tokens": 200}
    return evaluate(
        DEFAULT, step, remaining=budget[0], total=budget[1], sla_ms=sla, history=history, **{**tokens, **more}
    )


def rank(choice: TierChoice) -> int:
    return [None, *(tier.name for tier in DEFAULT.tiers)].index(choice.tier)


@given(steps, budgets(), slas, histories())
def test_a_choice_is_affordable_fast_enough_and_says_why(step, budget, sla, history):
    choice = choose(step, budget, sla, history)

    assert choice == choose(step, budget, sla, history)
    assert choice.policy_version == DEFAULT.version
    assert choice.reason.startswith(f"{choice.cause}: ") and choice.reason.endswith(".")
    assert choice.hard_stop == (choice.tier is None) == (choice.model is None)
    if choice.hard_stop:
        assert (choice.expected_cost, choice.expected_latency_ms) == (0, 0)
    else:
        assert choice.expected_cost is not None and choice.expected_cost <= budget[0]
        assert sla is None or choice.expected_latency_ms <= sla


@given(steps, budgets(), slas, histories())
def test_the_dearest_that_fits_is_chosen_and_the_cause_is_the_true_one(step, budget, sla, history):
    choice = choose(step, budget, sla, history)
    if choice.wanted is None:
        assert choice.cause == "budget_exhausted"
        assert budget[1] == 0 or Fraction(*budget) < Fraction(1, 10)
        return
    names = [tier.name for tier in DEFAULT.tiers]
    best = best_without_budget = best_without_sla = 0
    for place, tier in enumerate(DEFAULT.tiers[: names.index(choice.wanted) + 1], 1):
        cost = tier.cost(1000, 200)
        assert cost is not None
        latency = tier.latency_ms if history is None else history.expected_ms(tier.name, tier.latency_ms)
        cheap, fast = cost <= budget[0], sla is None or latency <= sla
        best = place if cheap and fast else best
        best_without_budget = place if fast else best_without_budget
        best_without_sla = place if cheap else best_without_sla
    assert rank(choice) == best
    wanted = names.index(choice.wanted) + 1
    if best == wanted:
        assert choice.rule is not None and choice.cause == DEFAULT.rules[choice.rule].reason
    # Each constraint that the cause names keeps the wanted tier away by itself, and one that it does not name
    # would have let it, or if nothing is left, something, through.
    if choice.cause in ("degraded_by_sla", "latency_sla_unachievable"):
        assert best_without_budget < wanted
        assert best_without_sla == wanted or (best == 0 and best_without_sla > 0)
    if choice.cause in ("degraded_by_budget", "budget_unaffordable"):
        assert best_without_sla < wanted
        assert best_without_budget == wanted or (best == 0 and best_without_budget > 0)


@given(steps, budgets(), st.integers(0, 10 * NANO), slas, histories())
def test_less_budget_never_buys_a_dearer_tier(step, budget, less, sla, history):
    left, total = budget
    more = choose(step, budget, sla, history)
    assert rank(choose(step, (left - less, total), sla, history)) <= rank(more)
    # The same share of a smaller budget, and no budget at all.
    parts = Fraction(1, 1 + less % 7)
    if (left * parts).denominator == 1 == (total * parts).denominator:
        assert rank(choose(step, (int(left * parts), int(total * parts)), sla, history)) <= rank(more)
    none = evaluate(
        DEFAULT,
        step,
        remaining=None,
        total=None,
        sla_ms=sla,
        history=history,
        input_tokens=1000,
        max_output_tokens=200,
    )
    assert rank(more) <= rank(none)


@given(steps, budgets(), st.integers(0, 600), st.integers(0, 600), histories())
def test_a_tighter_sla_never_gets_a_slower_tier(step, budget, one, other, history):
    tight, loose = sorted((one, other))
    slower = choose(step, budget, tight, history)
    assert slower.hard_stop or slower.expected_latency_ms <= tight
    for sla in (loose, None):
        faster = choose(step, budget, sla, history)
        if not slower.hard_stop:
            assert slower.expected_latency_ms <= faster.expected_latency_ms and not faster.hard_stop


@given(steps, budgets(), slas, st.integers(1, 9), st.none() | st.floats(0, 1))
def test_the_default_does_not_look_at_priority_or_confidence(step, budget, sla, priority, confidence):
    plain = choose(step, budget, sla, None)
    assert choose(step, budget, sla, None, priority=priority, confidence=confidence) == plain


# --- conditions, latencies, files ---------------------------------------------------------------------------

numbers = st.integers(-(10**9), 10**9) | st.decimals(-100, 100, places=9)


@given(
    st.sampled_from([field for field in CONSTANTS if field != "step"]), st.sampled_from(list(SIGNS)), numbers
)
def test_a_condition_is_read_as_it_is_written(field, sign, number):
    condition = Condition(field, sign, number)
    assert Condition.parse(str(condition)) == condition
    for value in (Fraction(number), Fraction(number) - 1, Fraction(number) + Fraction(1, 10**10), INFINITE):
        assert condition.holds_for(value) == SIGNS[sign](value, Fraction(number))


@given(st.integers(0, 100), st.integers(1, 10**12), st.integers(0, 10**15))
def test_shares_are_compared_with_whole_numbers(percent, total, left):
    situation: dict[str, Any] = {"remaining": left, "total": total}
    rules = [rule("a", f"budget_share >= {percent / 100:.2f}"), rule(None)]
    choice = evaluate(listed(rules, RISING, degrade=False), "x", **situation)
    assert (choice.tier == "a") == (left * 100 >= percent * total)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60), st.integers(1, 100), st.integers(1, 40))
def test_the_expected_latency_is_the_quantile_of_the_window(latencies, percent, window):
    history = LatencyHistory(percent / 100, window=window, enough=1)
    for latency in latencies:
        history.observe("a", latency)
    expected, last = history.expected_ms("a", -1), latencies[-window:]
    assert expected in last
    assert sum(each <= expected for each in last) * 100 >= percent * len(last)
    assert sum(each < expected for each in last) * 100 < percent * len(last)


@given(rule_sets())
def test_a_file_makes_the_same_policy(rules):
    lines = ["name: p", "tiers:"]
    lines += [
        f"  - {{name: {each.name}, latency_ms: {each.latency_ms}, cost_usd: {each.cost_usd}}}"
        for each in tiers_of(RISING)
    ]
    lines.append("rules:")
    for each in rules:
        when = ", ".join(f'"{condition}"' for condition in each.when)
        what = "hard_stop: true" if each.tier is None else f"tier: {each.tier}"
        lines.append(f"  - {{when: [{when}], {what}, reason: {each.reason}}}")
    own = listed(rules, RISING)
    read = parse_policy("\n".join(lines), on_findings="list")
    assert read == own and read.version == own.version and read.findings == own.findings


@given(st.text("name: tiersrul[]{}-,\n#'\"0.<>=", max_size=60))
def test_any_text_is_a_policy_or_a_typed_error(text):
    with pytest.raises(InvalidPolicyError) as caught:
        parse_policy(text)
    assert str(caught.value).startswith("policy.yaml: ")
