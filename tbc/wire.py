"""Records as plain JSON objects, for whoever is not Python: the same names, amounts as integers.

Tokens, calls and nano-dollars stay integers; beside each amount of nano-dollars stands the same in dollars as
a decimal string, under its name with ``_usd``. Nothing is read back from these objects: they are answers.

Examples
--------
>>> from tbc.decision import Kind, Transfer
>>> moved = transfer_object(Transfer("reader", "writer", 41_000_000, Kind.LOAN, "usd"))
>>> moved["amount"], moved["amount_usd"]
(41000000, '0.041')
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tbc.axes import TOKENS, USD, Axis
from tbc.decision import Booking, Decision, Settlement, Transfer
from tbc.money import to_usd

__all__ = ["amounts_object", "decision_object", "settlement_object", "transfer_object", "usd_string"]

_DECISION = (
    "requested",
    "remaining",
    "treasury",
    "siblings",
    "ancestors",
    "available",
    "when_idle",
    "shortfall",
    "unmet",
)


def usd_string(nano: int) -> str:
    """Return nano-dollars as dollars, exactly: ``"0.041"``, ``"12"``, ``"-0.5"``."""
    return f"{to_usd(nano).normalize():f}"


def amounts_object(axis: Axis, amounts: Iterable[tuple[str, int | None]]) -> dict[str, Any]:
    """Return named amounts of one axis; those in nano-dollars also as dollars."""
    found: dict[str, Any] = {}
    for name, amount in amounts:
        found[name] = amount
        if axis == USD:
            found[f"{name}_usd"] = None if amount is None else usd_string(amount)
    return found


def transfer_object(transfer: Transfer) -> dict[str, Any]:
    """Return a transfer."""
    return {
        "donor": transfer.donor,
        "recipient": transfer.recipient,
        "axis": transfer.axis,
        **amounts_object(transfer.axis, [("amount", transfer.amount)]),
        "kind": str(transfer.kind),
    }


def decision_object(decision: Decision) -> dict[str, Any]:
    """Return a decision with every number behind it; those of other axes under ``others``."""
    numbers = [(name, getattr(decision, name)) for name in _DECISION]
    return {
        "agent_name": decision.agent_name,
        "verdict": decision.verdict,
        "allowed": decision.allowed,
        "status": str(decision.status),
        "reason": decision.reason,
        "remedy": decision.remedy,
        "mode": decision.mode,
        "axis": decision.axis,
        **amounts_object(decision.axis, numbers),
        "transfers": [transfer_object(each) for each in decision.transfers],
        "confidence": decision.confidence,
        "confidence_threshold": decision.confidence_threshold,
        "top": decision.top,
        "note": decision.note,
        "others": [decision_object(each) for each in decision.others],
    }


def settlement_object(settlement: Settlement) -> dict[str, Any]:
    """Return how a hold ended: what was booked on each axis, what went back, what is owed."""
    tokens = Booking(
        TOKENS,
        settlement.tokens,
        settlement.held,
        settlement.estimated,
        settlement.returned,
        settlement.covered,
        settlement.overrun,
    )
    return {
        "hold_id": settlement.hold_id,
        "agent_name": settlement.agent_name,
        "state": settlement.state,
        "late": settlement.late,
        "repeated": settlement.repeated,
        "operation": settlement.operation,
        "model": settlement.model,
        "booked": {each.axis: _booking_object(each) for each in (tokens, *settlement.others)},
    }


def _booking_object(booking: Booking) -> dict[str, Any]:
    numbers = [("amount", booking.amount), ("held", booking.held), ("overrun", booking.overrun)]
    found = amounts_object(booking.axis, numbers)
    found["estimated"] = booking.estimated
    if booking.axis == USD:
        found["unpriced"] = booking.unpriced
    for name in ("returned", "covered"):
        found[name] = [transfer_object(each) for each in getattr(booking, name)]
    return found
