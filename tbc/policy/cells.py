"""The inputs of a rule set, cut into finitely many cells: within one, every condition has one answer.

The constants of the conditions cut each axis (the step, the budget, the SLA, the priority, the confidence)
into points and the intervals between them. A cell is represented by a value of it, with the rules of which no
condition on that axis fails, as the bits of an ``int``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from typing import Any, Final

import attrs

from tbc.axes import MAX_AMOUNT, NANO
from tbc.policy.conditions import Situation, Value
from tbc.policy.rules import Rule

__all__ = ["Axes", "Budget", "Cell", "cut", "situation"]

#: What a budget is in examples, where the rules leave a choice.
_EXAMPLE: Final = 100 * NANO


@attrs.frozen
class Cell:
    """A value of an axis that stands for all of its cell, and the rules that do not fail there."""

    value: Any
    rules: int


@attrs.frozen
class Budget:
    """Budgets between two totals of which the same share is left. No totals: no budget."""

    low: int | None
    high: int
    #: ``None``: nothing of nothing.
    share: Value

    @property
    def is_debt(self) -> bool:
        """Whether less than nothing is left."""
        return isinstance(self.share, (Fraction, float)) and self.share < 0

    def amounts(self, parts: int = 1) -> tuple[int | None, int | None] | None:
        """Return what is left, and the total, of such a budget; ``None`` if there is none.

        The total can be divided by `parts`.
        """
        if self.low is None:
            return None, None
        if self.high == 0:
            return (0 if self.share is None else -MAX_AMOUNT), 0
        assert isinstance(self.share, Fraction)
        parts = math.lcm(parts, self.share.denominator)
        total = min(-(-_EXAMPLE // parts) * parts, self.high // parts * parts)
        total = max(total, -(-self.low // parts) * parts)
        left = self.share * total
        fits = self.low <= total <= self.high and abs(left) <= MAX_AMOUNT
        return (int(left), total) if fits else None


@attrs.frozen
class Axes:
    """All cells, axis by axis."""

    steps: Sequence[Cell]
    priorities: Sequence[Cell]
    confidences: Sequence[Cell]
    #: From the tightest to none.
    slas: Sequence[Cell]
    #: Their values are `Budget` records.
    budgets: Sequence[Cell]
    #: Pairs of budgets, the smaller one first: the others follow from these.
    less_and_more: Sequence[tuple[int, int]]

    @property
    def size(self) -> int:
        """How many combinations there are."""
        return math.prod(map(len, (self.steps, self.priorities, self.confidences, self.slas, self.budgets)))


def cut(rules: Sequence[Rule], latencies: Iterable[int]) -> Axes:
    """Cut the inputs by the constants of the rules, and SLAs by the latencies of the tiers too."""

    def bounds(field: str) -> list[Fraction]:
        found = (each.bound for rule in rules for each in rule.when if each.field == field)
        return sorted({bound for bound in found if isinstance(bound, Fraction)})

    def cells(field: str, values: Iterable[Value]) -> list[Cell]:
        return [Cell(value, _holding(rules, {field: value})) for value in values]

    names = sorted({str(each.bound) for rule in rules for each in rule.when if each.field == "step"})
    starts = _starts([*bounds("sla_ms"), *map(Fraction, latencies)], 0)
    budgets, pairs = _budgets(bounds("budget_usd"), bounds("budget_share"))
    return Axes(
        steps=cells("step", [*names, _other(names)]),
        priorities=cells("priority", _starts(bounds("priority"), 1)),
        confidences=cells("confidence", [None, *_parts(bounds("confidence"))]),
        slas=cells("sla_ms", [*starts, math.inf]),
        budgets=[Cell(one, _holding(rules, _values(one))) for one in budgets],
        less_and_more=pairs,
    )


def situation(
    step: Cell, priority: Cell, confidence: Cell, sla: Cell, amounts: tuple[int | None, int | None]
) -> Situation:
    """Return what stands for a combination of cells."""
    return Situation(
        step.value,
        remaining=amounts[0],
        total=amounts[1],
        sla_ms=None if sla.value == math.inf else sla.value,
        priority=priority.value,
        confidence=None if confidence.value is None else float(confidence.value),
    )


def _holding(rules: Sequence[Rule], values: dict[str, Value]) -> int:
    mask = 0
    for index, rule in enumerate(rules):
        own = (each for each in rule.when if each.field in values)
        if all(each.holds_for(values[each.field]) for each in own):
            mask |= 1 << index
    return mask


def _values(budget: Budget) -> dict[str, Value]:
    total = math.inf if budget.low is None else Fraction(budget.low, NANO)
    return {"budget_usd": total, "budget_share": budget.share}


def _budgets(totals: list[Fraction], shares: list[Fraction]) -> tuple[list[Budget], list[tuple[int, int]]]:
    """Return the budgets, and which are next to each other.

    A budget is smaller if less is left of the same total, or the same share of a smaller total. (Of a debt,
    the same share of a smaller total is the smaller debt.)
    """
    parts = _reals([*shares, Fraction(0)])
    starts = _starts([bound * NANO for bound in totals], 1)
    grid: dict[tuple[int, int], int] = {}
    budgets = [Budget(0, 0, -math.inf), Budget(0, 0, None)]
    for row, (low, after) in enumerate(zip(starts, [*starts[1:], MAX_AMOUNT + 1], strict=True)):
        for column, share in enumerate(parts):
            budget = Budget(low, after - 1, share)
            if budget.amounts() is not None:
                grid[row, column] = len(budgets)
                budgets.append(budget)
    pairs = [(0, 1)]
    for (row, column), place in grid.items():
        below = [grid.get((row, column - 1)), grid.get((row - 1, column)) if parts[column] >= 0 else None]
        pairs += [(less, place) for less in below if less is not None]
        pairs.append((0, place))
        if budgets[place].share == 0:
            pairs.append((1, place))
        pairs.append((place, len(budgets)))
    budgets.append(Budget(None, 0, math.inf))
    return budgets, pairs


def _starts(bounds: Iterable[Fraction], least: int) -> list[int]:
    """Return the first whole number of each cell."""
    found = {start for bound in bounds for start in (math.ceil(bound), math.floor(bound) + 1)}
    return sorted({least, *(start for start in found if least < start <= MAX_AMOUNT)})


def _reals(bounds: Iterable[Fraction]) -> list[Fraction]:
    """Return the bounds, a number between each two, and one before and one after all of them."""
    points = sorted(set(bounds))
    between = [_simplest(low, high) for low, high in itertools.pairwise(points)]
    return sorted(
        [Fraction(math.ceil(points[0]) - 1), *points, *between, Fraction(math.floor(points[-1]) + 1)]
    )


def _parts(bounds: Collection[Fraction]) -> list[Fraction]:
    return [number for number in _reals([*bounds, Fraction(0), Fraction(1)]) if 0 <= number <= 1]


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """Return the fraction of the smallest denominator between two numbers."""
    whole = math.floor(low)
    if whole + 1 < high:
        return Fraction(whole + 1)
    if low == whole:
        return whole + Fraction(1, math.floor(1 / (high - whole)) + 1)
    return whole + 1 / _simplest(1 / (high - whole), 1 / (low - whole))


def _other(names: Collection[str]) -> str:
    other = "other"
    while other in names:
        other += "-step"
    return other
