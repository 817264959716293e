"""What happens to budgets as metrics: counted from the journal, whose every line is there once.

Holds and their ends, what was settled, what moved, what was refused and what refused holds lacked. A request
that is repeated under its key writes no line and is not counted again; lines that other processes wrote to
shared books are theirs to count. Amounts are integers: tokens, nano-dollars (10^9 in a dollar) or calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.metrics import Meter

from tbc.axes import AXES, CALLS, TOKENS, USD
from tbc.contract import BudgetContract
from tbc.decision import Decision, Kind
from tbc.events import Booked, Event, Refused
from tbc.journal import Entry
from tbc.labels import FirstLabels
from tbc.telemetry.conventions import AGENT

__all__ = ["Budgets"]

_ENDS: Final = {
    Kind.SETTLE: "settled",
    Kind.LATE_SETTLE: "settled_late",
    Kind.VOID: "voided",
    Kind.EXPIRE: "expired",
}
_SPENDING: Final = frozenset({Kind.USAGE, Kind.SETTLE, Kind.LATE_SETTLE, Kind.REPORT})
_MOVES: Final = frozenset(
    {Kind.DRAW, Kind.LOAN, Kind.COVER, Kind.REBALANCE, Kind.HAND_DOWN, Kind.RETURN},
)
_AMOUNTS: Final = {TOKENS: ("tokens", "{token}"), USD: ("nano_usd", "{nano_usd}"), CALLS: ("calls", "{call}")}


class Budgets:
    """Counts the events of one manager.

    Parameters
    ----------
    meter : Meter
        Makes the instruments.
    contracts : mapping of str to BudgetContract
        The manager's.
    agents : FirstLabels
        Labels of agents.
    fixed : dict
        Attributes of everything.
    """

    def __init__(
        self,
        meter: Meter,
        contracts: Mapping[str, BudgetContract],
        agents: FirstLabels,
        fixed: dict[str, str],
    ) -> None:
        self._contracts = contracts
        self._agents, self._priorities = agents, FirstLabels(20)
        self._fixed = fixed
        count = meter.create_counter
        self._holds = count("tbc.holds", "{hold}", "Holds that were granted.")
        self._ends = count("tbc.holds.ended", "{hold}", "Holds that have ended, by how.")
        self._refusals = count("tbc.refusals", "{refusal}", "Holds that were refused, by what refused them.")

        def each(name: str, what: str) -> dict[str, Any]:
            return {
                axis: count(f"{name}.{_AMOUNTS[axis][0]}", _AMOUNTS[axis][1], what.format(_AMOUNTS[axis][0]))
                for axis in AXES
            }

        self._settled = each("tbc.settled", "Spent for good: {}.")
        self._moved = each("tbc.transferred", "Moved between accounts: {}.")
        self._unmet = each("tbc.unmet", "Lacked by refused holds: {}.")

    def told(self, event: Event) -> None:
        """Count an event, if it is one to count."""
        if isinstance(event, Booked):
            if not event.elsewhere:
                self._count_line(event.entry)
        elif isinstance(event, Refused):
            self._count_refusal(event.decision)

    def refused(self, reason: str, agent_name: str) -> None:
        """Count a refusal that has no decision."""
        self._refusals.add(1, {**self._of(agent_name), "tbc.reason": reason, "tbc.mode": "enforce"})

    def _of(self, agent_name: str) -> dict[str, Any]:
        return {**self._fixed, AGENT: self._agents(agent_name)}

    def _count_line(self, entry: Entry) -> None:
        kind, of = entry.kind, self._of(entry.agent_name)
        if entry.axis == TOKENS:
            if kind is Kind.HOLD:
                self._holds.add(1, of)
            elif kind in _ENDS:
                self._ends.add(1, {**of, "tbc.hold.state": _ENDS[kind]})
        if kind in _SPENDING and entry.consumed:
            self._settled[entry.axis].add(entry.consumed, {**of, "tbc.estimated": entry.estimated})
        elif kind in _MOVES and entry.allocated:
            self._moved[entry.axis].add(abs(entry.allocated), {**of, "tbc.transfer.kind": str(kind)})

    def _count_refusal(self, decision: Decision) -> None:
        of = self._of(decision.agent_name)
        reason = str(decision.status) if decision.status.refuses else "unknown_price"
        self._refusals.add(
            1, {**of, "tbc.reason": reason, "tbc.axis": decision.axis, "tbc.mode": decision.mode}
        )
        contract = self._contracts.get(decision.agent_name)
        priority = self._priorities(0 if contract is None else contract.priority)
        for each in (decision, *decision.others):
            if each.unmet:
                self._unmet[each.axis].add(each.unmet, {**of, "tbc.priority": priority})
