"""Policies, and the choice that one makes: a pure function of its arguments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import attrs

from tbc.axes import USD, format_amount
from tbc.contract import check_amount
from tbc.errors import InvalidAmountError, InvalidPolicyError
from tbc.policy.check import Finding, findings_of
from tbc.policy.conditions import Situation
from tbc.policy.latency import LatencyHistory
from tbc.policy.rules import Rule, Tier, first_match, fit
from tbc.pricing import Price
from tbc.reading import hint

__all__ = ["Policy", "TierChoice", "evaluate"]


def _tiers(tiers: Iterable[Tier]) -> tuple[Tier, ...]:
    return tuple(tiers)


def _rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rules)


@attrs.frozen(kw_only=True)
class Policy:
    """A rule set, checked when it is made.

    Raises
    ------
    InvalidPolicyError
        With every problem; findings of the check are problems too unless they are to be listed.
    """

    #: Its name.
    name: str
    #: From the cheapest to the dearest.
    tiers: tuple[Tier, ...] = attrs.field(converter=_tiers)
    #: The first that matches decides.
    rules: tuple[Rule, ...] = attrs.field(converter=_rules)
    #: Whether a tier that is too dear or too slow gives way to the dearest cheaper one that is neither.
    degrade: bool = True
    #: What the check finds is an error (``refuse``), or listed in `findings` (``list``).
    on_findings: Literal["refuse", "list"] = attrs.field(default="refuse", eq=False)
    #: What the check found.
    findings: tuple[Finding, ...] = attrs.field(init=False, eq=False, repr=False)
    #: Its name, and a hash of everything that its choices depend on: tiers, prices, rules.
    version: str = attrs.field(init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InvalidPolicyError(str(self.name), problems)
        found = findings_of(self.name, self.tiers, self.rules, degrade=self.degrade)
        if found and self.on_findings == "refuse":
            raise InvalidPolicyError(self.name, [(_path(each), each.message) for each in found])
        object.__setattr__(self, "findings", tuple(found))
        object.__setattr__(self, "version", f"{self.name}-{_hash(self)}")

    def _problems(self) -> Iterable[tuple[str, str]]:
        if not isinstance(self.name, str) or not self.name.strip():
            yield "name", f"must be text, not {self.name!r}"
        if self.on_findings not in ("refuse", "list"):
            yield "on_findings", f'must be "refuse" or "list", not {self.on_findings!r}'
        for key in ("tiers", "rules"):
            if not getattr(self, key):
                yield key, "must hold at least one"
        names = [tier.name for tier in self.tiers]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield f"tiers[{index}].name", f"there is a tier {name!r} before; names must differ"
        for index, rule in enumerate(self.rules):
            if rule.tier is not None and rule.tier not in names:
                near = hint(rule.tier, names) or f"; there is {', '.join(names)}"
                yield f"rules[{index}].tier", f"no tier is called {rule.tier!r}{near}"


def _path(finding: Finding) -> str:
    return f"rules[{finding.rules[0]}]" if finding.rules else "tiers"


def _hash(policy: Policy) -> str:
    tiers = [
        [tier.name, tier.model, tier.latency_ms, str(tier.cost_usd), _rates(tier.price)]
        for tier in policy.tiers
    ]
    rules = [
        [[[each.field, each.operator, str(each.bound)] for each in rule.when], rule.tier, rule.reason]
        for rule in policy.rules
    ]
    content = json.dumps([tiers, rules, policy.degrade], separators=(",", ":"))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _rates(price: Price | None) -> list[Any] | None:
    if price is None:
        return None
    rates = [(0, price.rates), *((tier.above + 1, tier.rates) for tier in price.tiers)]
    return [str(price.per_request), [[start, *map(str, each.charged)] for start, each in rates]]


@attrs.frozen(kw_only=True)
class TierChoice:
    """What a policy answers."""

    #: The name of the tier; ``None``: a hard stop, nothing is to be called.
    tier: str | None
    #: The model of the tier, if it names one.
    model: str | None
    hard_stop: bool
    #: Why, in a word for counters: the reason of the rule; or ``degraded_by_budget``, ``degraded_by_sla``,
    #: ``degraded_by_budget_and_sla`` where a cheaper tier than the rule's was taken; or, for a hard stop that
    #: no rule wants, ``budget_unaffordable``, ``latency_sla_unachievable``, ``budget_and_sla_unachievable``
    #: or ``no_rule``.
    cause: str
    #: Why, in a sentence with the numbers that decided.
    reason: str
    #: `Policy.version`.
    policy_version: str
    #: The most that the call costs at list prices, in nano-dollars, which is what a hold sets aside; 0 for a
    #: hard stop; ``None`` if it depends on tokens that were not stated.
    expected_cost: int | None
    #: How long the call is expected to take, in milliseconds; 0 for a hard stop.
    expected_latency_ms: int
    #: The position of the rule that decided; ``None`` if none did.
    rule: int | None
    #: The tier that the rule wants; ``None`` for a hard stop.
    wanted: str | None


def evaluate(
    policy: Policy,
    step: str,
    *,
    remaining: int | None,
    total: int | None,
    sla_ms: int | None = None,
    priority: int = 1,
    confidence: float | None = None,
    history: LatencyHistory | None = None,
    input_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> TierChoice:
    """Choose a tier. The first rule that matches decides which is wanted.

    If the wanted tier costs more than is left, or is expected to take longer than the SLA allows, the dearest
    cheaper tier that does neither is taken; without one it is a hard stop. (Not if the policy does not
    degrade.) What costs exactly what is left is affordable, and what takes exactly the SLA is fast enough.

    Parameters
    ----------
    policy : Policy
        The rules.
    step : str
        The type of the step.
    remaining, total : int or None
        What is left of the budget, and all of it, in nano-dollars; ``None``, both: there is no budget.
    sla_ms : int, optional
        Milliseconds that the step may take. ``None``: there is no SLA, which is not an SLA of 0.
    priority : int, default 1
        That of the agent.
    confidence : float, optional
        The one reported last.
    history : LatencyHistory, optional
        Observed latencies; it is read only. Without it, each tier is expected to take its prior.
    input_tokens, max_output_tokens : int, optional
        What the call is of. Needed if tiers are priced by tokens and there is a budget that they must fit.

    Returns
    -------
    TierChoice
        The same for the same arguments.

    Raises
    ------
    InvalidAmountError
        For arguments that cannot be, and for tokens that are needed and not stated.
    """
    situation = Situation(
        step, remaining=remaining, total=total, sla_ms=sla_ms, priority=priority, confidence=confidence
    )
    for name, tokens in (("input_tokens", input_tokens), ("max_output_tokens", max_output_tokens)):
        if tokens is not None:
            check_amount(name, tokens)
        elif policy.degrade and remaining is not None and any(tier.price for tier in policy.tiers):
            rule = "stated: the tiers are priced by tokens, and there is a budget"
            raise InvalidAmountError(name, tokens, rule)
    costs = [tier.cost(input_tokens, max_output_tokens) for tier in policy.tiers]
    latencies = [
        tier.latency_ms if history is None else history.expected_ms(tier.name, tier.latency_ms)
        for tier in policy.tiers
    ]
    return _Choosing(policy, situation, costs, latencies).choose()


@attrs.frozen
class _Choosing:
    policy: Policy
    asked: Situation
    costs: Sequence[int | None]
    latencies: Sequence[int]

    def choose(self) -> TierChoice:
        rules, tiers = self.policy.rules, self.policy.tiers
        index = first_match(rules, self.asked)
        if index is None:
            return self._answer(None, "no_rule", "no_rule: no rule of the policy matches.", None, None)
        rule = rules[index]
        said = f"{rule.reason}: {self._because(rule)}"
        if rule.tier is None:
            return self._answer(None, rule.reason, f"{said}.", index, None)
        wanted = [tier.name for tier in tiers].index(rule.tier)
        if not self.policy.degrade:
            return self._answer(wanted, rule.reason, f"{said}.", index, wanted)
        affordable = [cost is None or cost <= self.asked.left for cost in self.costs]
        given = fit(wanted, affordable, self.latencies, self.asked.sla_ms)
        if given == wanted:
            return self._answer(wanted, rule.reason, f"{said}.", index, wanted)
        by_budget = fit(wanted, affordable, self.latencies, None)
        by_sla = fit(wanted, [True] * len(tiers), self.latencies, self.asked.sla_ms)
        cause = _cause(wanted, given, by_budget, by_sla)
        tried = "; ".join(self._unfit(tier) for tier in range(wanted, -1 if given is None else given, -1))
        end = "no cheaper tier is left" if given is None else f"so {tiers[given].name}"
        return self._answer(given, cause, f"{cause}: {tried}; {end} ({said}).", index, wanted)

    def _answer(
        self, given: int | None, cause: str, reason: str, rule: int | None, wanted: int | None
    ) -> TierChoice:
        tiers = self.policy.tiers
        return TierChoice(
            tier=None if given is None else tiers[given].name,
            model=None if given is None else tiers[given].model,
            hard_stop=given is None,
            cause=cause,
            reason=reason,
            policy_version=self.policy.version,
            expected_cost=0 if given is None else self.costs[given],
            expected_latency_ms=0 if given is None else self.latencies[given],
            rule=rule,
            wanted=None if wanted is None else tiers[wanted].name,
        )

    def _because(self, rule: Rule) -> str:
        if not rule.when:
            return "no rule before it matches"
        conditions = " and ".join(map(str, rule.when))
        numbers = [self.asked.tell(each.field) for each in rule.when if each.field != "step"]
        return conditions + (f" ({', '.join(dict.fromkeys(numbers))})" if numbers else "")

    def _unfit(self, tier: int) -> str:
        """Return what is wrong with a tier, with the numbers."""
        cost, left, sla_ms = self.costs[tier], self.asked.remaining, self.asked.sla_ms
        words = []
        if cost is not None and left is not None and cost > left:
            words.append(f"costs {format_amount(USD, cost)} with {format_amount(USD, left)} left")
        if sla_ms is not None and self.latencies[tier] > sla_ms:
            words.append(f"takes {self.latencies[tier]} ms under an SLA of {sla_ms} ms")
        return f"{self.policy.tiers[tier].name} {' and '.join(words)}"


def _cause(wanted: int, given: int | None, by_budget: int | None, by_sla: int | None) -> str:
    """Return what kept the wanted tier away, and if nothing is given, what left nothing.

    `by_budget` and `by_sla` are what would be given if only the one or the other had to be kept.
    """
    if given is None:
        if by_budget is None and by_sla is not None:
            return "budget_unaffordable"
        if by_sla is None and by_budget is not None:
            return "latency_sla_unachievable"
        return "budget_and_sla_unachievable"
    if by_sla == wanted:
        return "degraded_by_budget"
    if by_budget == wanted:
        return "degraded_by_sla"
    return "degraded_by_budget_and_sla"
