"""What the tools answer with: accounts, donors, holds and refusals as plain objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from tbc.axes import AXES, CALLS, TOKENS, USD, Axis
from tbc.decision import Kind, Settlement, Transfer
from tbc.error_codes import error_object
from tbc.errors import TBCError, UnknownAgentError
from tbc.tree import Account, account_of
from tbc.wire import amounts_object, transfer_object

if TYPE_CHECKING:
    from tbc.holds import Hold
    from tbc.manager import BudgetManager

__all__ = [
    "account",
    "agent_object",
    "covered_by",
    "failure",
    "hold_object",
    "moved",
]

_BOOKS: Final = ("allocated", "remaining", "consumed", "held", "spare", "debt", "min_reserve")
#: How many names an error lists.
_NAMES_MOST: Final = 50


def account(manager: BudgetManager, agent_name: str, axis: Axis = TOKENS) -> Account:
    """Return one account as it stands on an axis; `tbc.ROOT` is the treasury at the top."""
    ledger = manager.ledger
    with ledger.lock:
        ledger.look()
        return account_of(ledger, ledger.find(agent_name), axis)


def agent_object(manager: BudgetManager, agent_name: str) -> dict[str, Any]:
    """Return an agent: its terms, its books in tokens, and those in dollars and calls where they are kept."""
    tokens = account(manager, agent_name)
    contract = manager.contracts.get(agent_name)
    found = {
        "agent_id": agent_name,
        "parent": tokens.parent,
        "priority": tokens.priority,
        **_books_object(tokens),
        "confidence_threshold": None if contract is None else contract.confidence_threshold,
        "last_confidence": tokens.last_confidence,
        "gate_closed": tokens.gate_closed,
        "closed": tokens.closed,
    }
    if USD in manager.ledger.sides:
        usd = account(manager, agent_name, USD)
        found["usd"] = {**_books_object(usd), "unpriced": usd.unpriced}
    if CALLS in manager.ledger.sides:
        found["calls"] = _books_object(account(manager, agent_name, CALLS))
    return found


def _books_object(found: Account) -> dict[str, Any]:
    return amounts_object(found.axis, [(name, getattr(found, name)) for name in _BOOKS])


def covered_by(settlement: Settlement) -> tuple[Transfer, ...]:
    """Return what the market gave for what was spent, on all axes, in drain order."""
    return settlement.covered + tuple(each for other in settlement.others for each in other.covered)


def moved(manager: BudgetManager, agent_name: str, transfers: Iterable[Transfer]) -> dict[str, Any]:
    """Return who gave and who got tokens, donors in drain order, and every transfer on every axis.

    What a parent only hands down, it did not give.
    """
    transfers = tuple(transfers)
    given: dict[str, int] = {}
    received = 0
    for each in transfers:
        if each.kind is not Kind.HAND_DOWN and each.tokens:
            given[each.donor] = given.get(each.donor, 0) + each.tokens
        if each.recipient == agent_name:
            received += each.tokens
    receivers = [{**_party(manager, agent_name), "tokens_received": received}] if received else []
    return {
        "donors": [{**_party(manager, name), "tokens_given": amount} for name, amount in given.items()],
        "receivers": receivers,
        "transfers": [transfer_object(each) for each in transfers],
    }


def _party(manager: BudgetManager, agent_name: str) -> dict[str, Any]:
    found = account(manager, agent_name)
    return {"agent_id": agent_name, "priority": found.priority, "remaining_after": found.remaining}


def hold_object(manager: BudgetManager, hold: Hold) -> dict[str, Any]:
    """Return a hold as it stands."""
    parts = {axis: part.amount for axis in AXES if (part := hold.part(axis)) is not None}
    return {
        "hold_id": hold.hold_id,
        "agent_id": hold.agent_name,
        "state": hold.state,
        "held": {axis: amounts_object(axis, [("amount", amount)]) for axis, amount in parts.items()},
        "loans": [transfer_object(each) for each in hold.loans],
        "expires_in_s": max(0.0, round(hold.expires_at - manager.now(), 3)) if hold.state == "open" else 0.0,
        "key": hold.key,
        "operation": hold.operation,
        "model": hold.model,
    }


def failure(error: BaseException, manager: BudgetManager | None = None) -> dict[str, Any]:
    """Return the answer of a tool that failed.

    Parameters
    ----------
    error : BaseException
        Why.
    manager : BudgetManager, optional
        Whose books can be read now: the state of the agent stands beside the error then, and who gave what if
        something was booked all the same.
    """
    found: dict[str, Any] = {"success": False, "error": error_object(error)}
    if manager is None or not isinstance(error, TBCError):
        return found
    if isinstance(error, UnknownAgentError):
        found["known_agents"] = sorted(manager.contracts)[:_NAMES_MOST]
        return found
    name = getattr(error, "agent_name", None)
    if name in manager.ledger.accounts:
        found["agent_state"] = agent_object(manager, name)
        settlement = getattr(error, "settlement", None)
        if isinstance(settlement, Settlement):
            found |= moved(manager, name, covered_by(settlement))
    return found
