"""The bill of a run: its journal summed by agent, model, step and operation.

Every number is a sum over lines of the journal: the totals are the journal's to the nano-dollar. An operation
is one call that was wanted; its attempts are the calls that were made for it. What workers spent from leases
is reported in sums: their calls are counted, but stand under no model and under the operation ``lease``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from tbc.axes import AXES, CALLS, TOKENS, USD, Axis, format_amount
from tbc.contract import ROOT
from tbc.decision import Kind
from tbc.journal import ended_calls
from tbc.money import to_usd
from tbc.stores.rows import LineRow, RunRow, StepRow

__all__ = ["Bill", "Charge", "as_csv", "as_json", "make_bill", "money"]

_SPENDING = frozenset({Kind.SETTLE.value, Kind.LATE_SETTLE.value, Kind.USAGE.value, Kind.REPORT.value})


@attrs.frozen
class Charge:
    """What was spent for something.

    Attributes
    ----------
    name : str
        For what: an agent, a model, a step or an operation.
    usd : int
        Nano-dollars; a lower bound if any call is unpriced.
    tokens, calls : int
        How many.
    unpriced : int
        Calls without a known price.
    estimated : bool
        Whether any part of it is an estimate.
    """

    name: str
    usd: int = 0
    tokens: int = 0
    calls: int = 0
    unpriced: int = 0
    estimated: bool = False


@attrs.frozen
class Bill:
    """The bill of a run.

    Attributes
    ----------
    run : RunRow
        Of which run.
    total : Charge
        All of it.
    agents, models, steps, operations : tuple of Charge
        The same, divided; the calls of an operation are its attempts.
    budget : dict of str to int
        Granted in all, by axis.
    """

    run: RunRow
    total: Charge
    agents: tuple[Charge, ...]
    models: tuple[Charge, ...]
    steps: tuple[Charge, ...]
    operations: tuple[Charge, ...]
    budget: dict[Axis, int]


def make_bill(run: RunRow, lines: Iterable[LineRow], steps: Iterable[StepRow]) -> Bill:
    """Sum the journal of a run.

    Parameters
    ----------
    run : RunRow
        The run.
    lines : iterable of LineRow
        Its journal, all of it.
    steps : iterable of StepRow
        Its steps: what belongs to which.
    """
    step_of = {row.operation: row.step for row in steps if row.operation}
    everything = list(lines)
    spending = [line for line in everything if line.kind in _SPENDING]
    budget: dict[Axis, int] = {}
    for line in everything:
        if line.peer is None and line.agent_name == ROOT and line.allocated:
            axis = next(axis for axis in AXES if axis == line.axis)
            budget[axis] = budget.get(axis, 0) + line.allocated

    def by(key: Callable[[LineRow], str]) -> tuple[Charge, ...]:
        groups: dict[str, list[LineRow]] = {}
        for line in spending:
            groups.setdefault(key(line), []).append(line)
        return tuple(_charge(name, group) for name, group in groups.items())

    def step(line: LineRow) -> str:
        name = line.note or "(none)"
        return step_of.get(name, name)

    return Bill(
        run,
        _charge("total", spending),
        by(lambda line: line.agent_name),
        by(lambda line: line.model or "(none)"),
        by(step),
        by(lambda line: line.note or "(none)"),
        budget,
    )


def _charge(name: str, lines: list[LineRow]) -> Charge:
    spent = {axis: sum(line.consumed for line in lines if line.axis == axis) for axis in (USD, TOKENS)}
    return Charge(
        name,
        spent[USD],
        spent[TOKENS],
        sum(ended_calls(line.axis, line.kind, line.consumed) for line in lines),
        sum(line.unpriced for line in lines),
        any(line.estimated for line in lines),
    )


def money(charge: Charge) -> str:
    """Return dollars in words: a lower bound says so, and how many calls nobody could price."""
    text = format_amount(USD, charge.usd)
    if not charge.unpriced:
        return text
    return f"at least {text} ({charge.unpriced} {'call' if charge.unpriced == 1 else 'calls'} unpriced)"


def as_json(bill: Bill) -> str:
    """Return the bill as JSON; dollars as decimal text, exactly."""

    def plain(charge: Charge) -> dict[str, Any]:
        return {**attrs.asdict(charge), "usd": f"{to_usd(charge.usd):f}"}

    groups = ("agents", "models", "steps", "operations")
    budget: dict[str, Any] = {str(axis): amount for axis, amount in bill.budget.items()}
    if USD in budget:
        budget[USD] = f"{to_usd(budget[USD]):f}"
    return json.dumps(
        {
            "run": bill.run.run,
            "workflow": bill.run.workflow,
            "state": bill.run.state,
            "mode": bill.run.mode,
            "budget": budget,
            "total": plain(bill.total),
            **{group: [plain(charge) for charge in getattr(bill, group)] for group in groups},
        },
        indent=2,
        ensure_ascii=False,
    )


def as_csv(bill: Bill) -> str:
    """Return the bill as CSV: one line for each charge, grouped in the first column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["by", "name", "usd", TOKENS, CALLS, "unpriced", "estimated"])
    rows = [
        ("agent", bill.agents),
        ("model", bill.models),
        ("step", bill.steps),
        ("operation", bill.operations),
        ("total", (bill.total,)),
    ]
    for group, charges in rows:
        for charge in charges:
            usd = f"{to_usd(charge.usd):f}"
            name = f"'{charge.name}" if charge.name[:1] in ("=", "+", "-", "@") else charge.name
            writer.writerow(
                [group, name, usd, charge.tokens, charge.calls, charge.unpriced, charge.estimated]
            )
    return text.getvalue()
