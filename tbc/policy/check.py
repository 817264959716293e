"""What is wrong with a rule set, found by trying every kind of input there is.

The check is exact: the constants of the rules cut the inputs into finitely many cells (`tbc.policy.cells`),
and every cell is tried, with the expected latencies that the tiers are configured with. What a call costs is
not known: whoever owes nothing is supposed to afford every tier, and for SLAs every number of the cheapest
ones. Shares of totals of a few nano-dollars, which cannot be divided so, are not tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Final, Literal

import attrs

from tbc.axes import USD, format_amount
from tbc.errors import InvalidPolicyError
from tbc.money import to_nano
from tbc.policy.cells import Axes, Budget, Cell, cut, situation
from tbc.policy.conditions import Situation
from tbc.policy.rules import Rule, Tier, fit
from tbc.rates import CLASSES, Price

__all__ = ["CELLS_MAX", "Finding", "Kind", "findings_of"]

Kind = Literal[
    "unreachable",
    "gap",
    "dearer_for_less",
    "slower_for_tighter",
    "too_slow",
    "unaffordable",
    "unordered_tiers",
]

#: Combinations of cells that are tried; more constants than that cut are refused.
CELLS_MAX: Final = 300_000
_STOP: Final = -1
#: What a text input may turn out to be.
_TEXT_INPUT: Final = ("input", "cached_read", "cached_write", "cached_write_1h")


@attrs.frozen
class Finding:
    """Something that is wrong with a rule set."""

    #: ``unreachable``: a rule that never decides. ``gap``: no rule decides. ``dearer_for_less``: less budget
    #: buys a dearer tier. ``slower_for_tighter``: a tighter SLA gets a slower one. ``too_slow``: a tier that
    #: is expected to break the SLA. ``unaffordable``: a tier is chosen whatever is left. ``unordered_tiers``:
    #: a tier is not dearer than the one before.
    kind: Kind
    #: In words.
    message: str
    #: The rules concerned, by position; with two, the first decides where there is less.
    rules: tuple[int, ...] = ()
    #: Inputs that show it where every tier is affordable; with two, the first is the one with less.
    examples: tuple[Situation, ...] = ()


def findings_of(name: str, tiers: Sequence[Tier], rules: Sequence[Rule], *, degrade: bool) -> list[Finding]:
    """Return all that is wrong with a rule set, each thing once.

    Parameters
    ----------
    name : str
        Of the policy.
    tiers : sequence of Tier
        From the cheapest to the dearest.
    rules : sequence of Rule
        In the order in which they are tried; their tiers are among `tiers`.
    degrade : bool
        Whether a tier that is too dear or too slow gives way to a cheaper one.

    Raises
    ------
    InvalidPolicyError
        If the rules cut the inputs into more than `CELLS_MAX` cells.
    """
    axes = cut(rules, (tier.latency_ms for tier in tiers))
    if axes.size > CELLS_MAX:
        what = f"cut the inputs into {axes.size:,} cells, more than {CELLS_MAX:,}; use fewer constants"
        raise InvalidPolicyError(name, [("rules", what)])
    found = [*_unordered(tiers), *_Check(tiers, rules, degrade, axes).run()]
    costly = {tier.name for tier in tiers if tier.cost_usd or not (tier.price is None or tier.price.is_free)}
    spending = tuple(index for index, rule in enumerate(rules) if rule.tier in costly)
    if spending and not degrade:
        what = "tiers are given however little is left, because degrade is off"
        found.append(Finding("unaffordable", what, spending))
    return found


class _Check:
    def __init__(self, tiers: Sequence[Tier], rules: Sequence[Rule], degrade: bool, axes: Axes) -> None:
        self.rules = rules
        self.names = [tier.name for tier in tiers]
        self.latencies = [tier.latency_ms for tier in tiers]
        self.degrade = degrade
        self.axes = axes
        self.wanted = [_STOP if rule.tier is None else self.names.index(rule.tier) for rule in rules]
        self.wanted.append(_STOP)  # of the rule at -1, which is none
        # How many tiers are affordable at most: whoever owes can afford none.
        self.most = [0 if degrade and each.value.is_debt else len(tiers) for each in axes.budgets]
        self.found: dict[tuple[object, ...], Finding] = {}
        # By wanted tier, SLA, and how many tiers are affordable.
        self.given = {wanted: self._given(wanted) for wanted in {*self.wanted}}

    def _given(self, wanted: int) -> list[list[int]]:
        """Return the tier that is given, by SLA and by how many tiers are affordable; by none, all are."""
        most = len(self.names)
        if wanted == _STOP or not self.degrade:
            return [[wanted] * (most + 1) for _ in self.axes.slas]
        affordable = [[tier < count for tier in range(most)] for count in range(most + 1)]
        return [
            [
                _STOP if tier is None else tier
                for tier in (fit(wanted, each, self.latencies, sla.value) for each in affordable)
            ]
            for sla in self.axes.slas
        ]

    def run(self) -> Iterator[Finding]:
        decided: set[int] = set()
        axes = self.axes
        for place in itertools.product(axes.steps, axes.priorities, axes.confidences):
            rules = place[0].rules & place[1].rules & place[2].rules
            table = [
                [_lowest(rules & budget.rules & sla.rules) for sla in axes.slas] for budget in axes.budgets
            ]
            decided.update(*table)
            self._alone(place, table)
            self._by_budget(place, table)
            self._by_sla(place, table)
        for index, rule in enumerate(self.rules):
            if index not in decided:
                what = f"{self._named(index)} never decides: rules before it match all that it would"
                if not rule.when or index == 0:
                    what = f"{self._named(index)} never decides"
                yield Finding("unreachable", what + ", or its conditions exclude each other", (index,))
        yield from self.found.values()

    def _alone(self, place: tuple[Cell, ...], table: list[list[int]]) -> None:
        """Find what a single input shows."""
        for budget, row in zip(self.axes.budgets, table, strict=True):
            for sla, rule in zip(self.axes.slas, row, strict=True):
                if rule < 0:
                    self._note("gap", (place[0].value,), (), "no rule decides", place, (budget, sla))
                    continue
                tier = self.wanted[rule]
                if self.degrade or tier == _STOP:
                    continue
                if sla.value < self.latencies[tier]:
                    what = f"{self._gives(rule)}, expected to take {self.latencies[tier]} ms"
                    self._note("too_slow", (rule,), (rule,), what, place, (budget, sla))

    def _by_budget(self, place: tuple[Cell, ...], table: list[list[int]]) -> None:
        for less, more in self.axes.less_and_more:
            for column, (one, other) in enumerate(zip(table[less], table[more], strict=True)):
                if one == other:
                    continue
                dearer = self.given[self.wanted[one]][column][self.most[less]]
                cheaper = self.given[self.wanted[other]][column][self.most[more]]
                if dearer > cheaper:
                    what = f"less budget buys a dearer tier: {self._gives(one)}, {self._gives(other)}"
                    sla = self.axes.slas[column]
                    budgets = (self.axes.budgets[less], self.axes.budgets[more])
                    self._note(
                        "dearer_for_less",
                        (one, other),
                        (one, other),
                        what,
                        place,
                        *((budget, sla) for budget in budgets),
                    )

    def _by_sla(self, place: tuple[Cell, ...], table: list[list[int]]) -> None:
        for budget, most, row in zip(self.axes.budgets, self.most, table, strict=True):
            for column, (one, other) in enumerate(itertools.pairwise(row)):
                if one == other:
                    continue
                tight = self.given[self.wanted[one]][column]
                loose = self.given[self.wanted[other]][column + 1]
                # Why from the end: what shows with all tiers affordable is plainer.
                for count in range(most, -1, -1):
                    if self._latency(tight[count]) > self._latency(loose[count]):
                        what = f"a tighter SLA gets a slower tier: {self._gives(one)}, {self._gives(other)}"
                        if count < len(self.names):
                            what += f", where only {count} of the tiers are affordable"
                        slas = (self.axes.slas[column], self.axes.slas[column + 1])
                        places = ((budget, sla) for sla in slas)
                        self._note("slower_for_tighter", (one, other), (one, other), what, place, *places)
                        break

    def _latency(self, tier: int) -> int:
        return _STOP if tier == _STOP else self.latencies[tier]

    def _note(
        self,
        kind: Kind,
        key: tuple[object, ...],
        rules: tuple[int, ...],
        what: str,
        place: tuple[Cell, ...],
        *budgets_and_slas: tuple[Cell, Cell],
    ) -> None:
        """Keep the first finding of each kind and rules."""
        if (kind, *key) in self.found:
            return
        budgets: list[Budget] = [budget.value for budget, _ in budgets_and_slas]
        shares = [each.share.denominator for each in budgets if isinstance(each.share, Fraction)]
        parts = math.lcm(*shares)
        examples = []
        for (_, sla), budget in zip(budgets_and_slas, budgets, strict=True):
            amounts = budget.amounts(parts) or budget.amounts() or (None, None)
            examples.append(situation(place[0], place[1], place[2], sla, amounts))
        shown = " against ".join(map(_shown, examples))
        decided = tuple(rule for rule in rules if rule >= 0)
        self.found[kind, *key] = Finding(kind, f"{what}: {shown}", decided, tuple(examples))

    def _named(self, rule: int) -> str:
        return f"rules[{rule}] ({self.rules[rule].reason})"

    def _gives(self, rule: int) -> str:
        if rule < 0:
            return "no rule, which stops"
        tier = self.wanted[rule]
        return f"{self._named(rule)} {'stops' if tier == _STOP else f'gives {self.names[tier]}'}"


def _lowest(mask: int) -> int:
    """Return the position of the lowest bit; -1 for none."""
    return (mask & -mask).bit_length() - 1


def _shown(situation: Situation) -> str:
    words = [f"step {situation.step}", situation.tell("budget_share"), situation.tell("sla_ms")]
    if situation.priority != 1:
        words.append(f"priority {situation.priority}")
    if situation.confidence is not None:
        words.append(f"confidence {situation.confidence}")
    return ", ".join(words)


def _unordered(tiers: Sequence[Tier]) -> Iterator[Finding]:
    for cheaper, dearer in itertools.pairwise(tiers):
        what = _dearer(cheaper, dearer)
        if what:
            yield Finding(
                "unordered_tiers",
                f"tiers are listed from the cheapest to the dearest, but {cheaper.name} costs more than "
                f"{dearer.name}: {what}",
            )


def _dearer(one: Tier, other: Tier) -> str:
    """Return in which respect the first tier is the dearer one; empty if in none."""
    if one.cost_usd is not None and other.cost_usd is not None:
        cost = format_amount(USD, to_nano("cost_usd", one.cost_usd))
        return f"{cost} a call" if one.cost_usd > other.cost_usd else ""
    if one.price is None or other.price is None:
        return "one has a cost of its own, the other a price; give all a cost, or all a price"
    starts = {0, *(tier.above + 1 for price in (one.price, other.price) for tier in price.tiers)}
    for start in sorted(starts):
        for name, first, second in zip(
            ("a token of input", "a token of output", "a request"),
            _rates(one.price, start),
            _rates(other.price, start),
            strict=True,
        ):
            if first > second:
                return f"{name}, in prompts from {start:,} tokens" if start else name
    return ""


def _rates(price: Price, prompt: int) -> tuple[Fraction, Fraction, Fraction]:
    """Return what a hold takes for a token of input and of output, and for a request."""
    rates = next((tier.rates for tier in reversed(price.tiers) if prompt > tier.above), price.rates)
    charged = dict(zip(CLASSES, rates.charged, strict=True))
    return max(charged[name] for name in _TEXT_INPUT), charged["output"], Fraction(price.per_request)
