"""Accounts and their place in the tree: opening, new terms, topping up, closing.

An agent's `max_tokens` is carved out of its parent's spare. Where nobody above has a cap, there is nothing to
carve from: the amount is granted, and that is the top of a budget ("at the root" in the promises). The
functions run under the ledger's lock; each checks everything first and then moves, or moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from tbc.confidence import ConfidenceGate
from tbc.contract import BudgetContract, check_amount
from tbc.decision import Kind
from tbc.errors import (
    AgentClosedError,
    AgentExistsError,
    AgentInUseError,
    CarveOutError,
    InvalidContractError,
    UnknownAgentError,
)
from tbc.ledger import Books, Ledger

__all__ = [
    "Account",
    "ContractsView",
    "account_of",
    "change_terms",
    "close",
    "note_confidence",
    "open_root",
    "register",
    "top_up",
]


@attrs.frozen
class Account:
    """An account as it stands. Amounts are tokens.

    Attributes
    ----------
    agent_name : str
        Whose it is; `tbc.ROOT` is the root account.
    parent : str or None
        The account above; ``None`` for the root.
    priority : int
        1 and up; 0 for the root.
    allocated, remaining : int or None
        Granted now, and left of it; ``None`` if uncapped.
    consumed, held : int
        Spent for good; set aside by open holds.
    min_reserve : int
        What no transfer and no descendant may take.
    spare : int
        ``max(0, remaining - min_reserve)``: what it can give away.
    debt : int
        ``max(0, -remaining)``: overruns that nothing has paid yet.
    lent, borrowed : int
        Of open loans: what would come back here, and what would go back from here.
    last_confidence : float or None
        As reported last.
    gate_closed : bool
        Whether that confidence forbids further spending.
    closed : bool
        Whether the account is closed.
    """

    agent_name: str
    parent: str | None
    priority: int
    allocated: int | None
    consumed: int
    held: int
    remaining: int | None
    min_reserve: int
    spare: int
    debt: int
    lent: int
    borrowed: int
    last_confidence: float | None
    gate_closed: bool
    closed: bool


class ContractsView(Mapping[str, BudgetContract]):
    """A read-only view of the open agents' contracts, in registration order."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getitem__(self, agent_name: str) -> BudgetContract:
        books = self._ledger.accounts[agent_name]
        if books.contract is None or books.closed:
            raise KeyError(agent_name)
        return books.contract

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, books in list(self._ledger.accounts.items()) if not books.closed])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


def account_of(books: Books) -> Account:
    """Return the frozen record of an account."""
    contract = books.contract
    remaining = books.remaining if books.capped else None
    return Account(
        agent_name=books.name,
        parent=None if books.parent is None else books.parent.name,
        priority=books.priority,
        allocated=books.allocated if books.capped else None,
        consumed=books.consumed,
        held=books.held,
        remaining=remaining,
        min_reserve=books.min_reserve,
        spare=books.spare,
        debt=max(0, -(remaining or 0)),
        lent=books.lent,
        borrowed=books.borrowed,
        last_confidence=None if contract is None else contract.last_confidence,
        gate_closed=books.gate_closed,
        closed=books.closed,
    )


def open_root(ledger: Ledger, max_tokens: int | None, now: float) -> None:
    """Give the root its cap. Its reserve is 0."""
    ledger.root.priority = 0
    ledger.root.capped = max_tokens is not None
    if max_tokens is not None:
        ledger.book(now, Kind.REGISTER, ledger.root, allocated=max_tokens)


def register(
    ledger: Ledger, contract: BudgetContract, parent_name: str | None, now: float, *, replace: bool
) -> BudgetContract:
    """Open an account, or find it as it was left; see `BudgetManager.register_agent`."""
    name = contract.agent_name
    if parent_name == name:
        raise InvalidContractError(f"Agent {name!r} cannot be its own parent")
    parent = ledger.root if parent_name is None else ledger.find(parent_name)
    if parent.closed:
        raise AgentClosedError(parent.name)
    books = ledger.accounts.get(name)
    if books is None or books.closed:
        return _open(ledger, books, contract, parent, now)
    assert books.contract is not None and books.parent is not None, "an agent has terms and a parent"
    if books.contract == contract and books.parent is parent:
        return books.contract
    if not replace:
        raise AgentExistsError(name, _differences(books, contract, parent))
    if books.parent is not parent:
        raise InvalidContractError(
            f"Agent {name!r} belongs to {books.parent.name!r} and cannot move to {parent.name!r}: "
            "close it and register it again"
        )
    return _replace(ledger, books, contract, now)


def _open(
    ledger: Ledger, books: Books | None, contract: BudgetContract, parent: Books, now: float
) -> BudgetContract:
    tokens = contract.max_tokens or 0
    funder = _funder(contract.agent_name, parent, tokens)
    capped = contract.max_tokens is not None or parent.capped
    if books is None:
        books = ledger.open_account(contract.agent_name, parent, capped=capped)
    else:  # closed before: what it consumed stays on its account
        books.parent, books.capped, books.closed = parent, capped, False
        ledger.join_market(books, parent)
    _set_terms(books, contract)
    ledger.book(now, Kind.REGISTER, books, peer=funder, allocated=tokens)
    return contract


def _replace(ledger: Ledger, books: Books, contract: BudgetContract, now: float) -> BudgetContract:
    old, parent = books.contract, books.parent
    assert old is not None and parent is not None, "an agent has terms and a parent"
    capped = contract.max_tokens is not None or parent.capped
    if capped != books.capped and (books.children or books.lent or books.borrowed):
        raise InvalidContractError(
            f"Agent {books.name!r} cannot turn {'capped' if capped else 'uncapped'} while it has children "
            f"({[child.name for child in books.children or ()]}), "
            f"lends {books.lent} or borrows {books.borrowed}"
        )
    if not capped:
        change = -books.allocated if books.capped else 0
    else:
        change = (contract.max_tokens or 0) - (old.max_tokens or 0)
        left = books.remaining + change
        if left < 0 and (change < 0 or not books.capped):
            raise InvalidContractError(
                f"Agent {books.name!r} cannot be cut to max_tokens={contract.max_tokens}: consumed "
                f"{books.consumed} + held {books.held} of allocated {books.allocated} would leave {left}; "
                f"the least it takes is {(contract.max_tokens or 0) - left}"
            )
    funder = _funder(books.name, parent, change) if change > 0 else (parent if parent.capped else None)
    contract.note_confidence(old.last_confidence)
    books.capped = capped
    _set_terms(books, contract)
    ledger.book(now, Kind.REPLACE, books, peer=funder, allocated=change)
    return contract


def change_terms(ledger: Ledger, books: Books, terms: dict[str, Any], now: float) -> BudgetContract:
    """Change priority, reserve or threshold; allocations stay."""
    if books.closed or books.contract is None:
        raise AgentClosedError(books.name) if books.closed else UnknownAgentError(books.name)
    contract = books.contract.with_terms(**terms)
    _set_terms(books, contract)
    ledger.book(now, Kind.REPLACE, books)
    return contract


def note_confidence(books: Books, confidence: float | None) -> bool:
    """Store a reported confidence (``None`` forgets it) and return whether the gate has moved."""
    contract = books.contract
    if contract is None:
        return False
    contract.note_confidence(confidence)
    closed = not ConfidenceGate.allow_further_retrieval(contract, confidence)
    if closed == books.gate_closed:
        return False
    books.gate_closed = closed
    books.touch()
    return True


def top_up(ledger: Ledger, books: Books, tokens: int, now: float, *, key: str | None) -> CarveOutError | None:
    """Grant `tokens` more: at the top of a budget new ones, else out of the parent's spare.

    Returns the refusal, if the parent has not that much.
    """
    if books.closed:
        raise AgentClosedError(books.name)
    if not books.capped:
        raise InvalidContractError(f"{books.name!r} is uncapped: there is nothing to top up")
    check_amount("tokens allocated in all", books.allocated + tokens)
    try:
        funder = None if books.parent is None else _funder(books.name, books.parent, tokens)
    except CarveOutError as refused:
        return refused
    ledger.book(now, Kind.TOP_UP, books, peer=funder, allocated=tokens, key=key)
    return None


def close(ledger: Ledger, books: Books, now: float) -> None:
    """Close an account and return what it did not spend to its parent, or out of the pool at the top.

    What it consumed (and owes) stays on its account. Its open loans will return to the treasury.
    """
    parent = books.parent
    if parent is None:
        raise InvalidContractError("the root cannot be closed")
    if books.closed:
        raise AgentClosedError(books.name)
    holds = [hold_id for hold_id, hold in ledger.open_holds.items() if hold.books is books]
    if holds or books.children:
        raise AgentInUseError(books.name, holds, [child.name for child in books.children or ()])
    if books.lent:
        _redirect_loans(ledger, books, parent)
    if parent.capped:
        ledger.book(now, Kind.CLOSE, parent, peer=books, allocated=max(0, books.remaining))
    elif books.capped:
        ledger.book(now, Kind.CLOSE, books, allocated=-max(0, books.remaining))
    else:  # what was spent without a cap counts as granted: a closed account is even
        ledger.book(now, Kind.CLOSE, books, allocated=books.consumed - books.allocated)
    if parent.index is not None:
        parent.index.remove(books)
    books.closed = books.stale = True
    assert parent.children is not None, "a child is among its parent's children"
    parent.children.remove(books)


def _redirect_loans(ledger: Ledger, lender: Books, treasury: Books) -> None:
    for hold in ledger.open_holds.values():
        for loan in hold.lenders or ():
            if loan.donor is lender:
                loan.donor = treasury
    treasury.lent += lender.lent
    lender.lent = 0
    treasury.touch()


def _funder(name: str, parent: Books, tokens: int) -> Books | None:
    """Return who pays for a grant: the parent, if it has a cap and the grant fits into its spare."""
    if not parent.capped or not tokens:
        return None
    if tokens > parent.spare:
        arithmetic = (
            f"allocated {parent.allocated} - consumed {parent.consumed} - held {parent.held} - reserve "
            f"{parent.min_reserve}"
        )
        raise CarveOutError(name, tokens, parent.spare, parent.name, arithmetic)
    return parent


def _set_terms(books: Books, contract: BudgetContract) -> None:
    if books.parent is not None and books.parent.index is not None:
        books.parent.index.forget(books)
    books.contract = contract
    books.priority = contract.priority
    books.min_reserve = contract.min_reserve
    books.gate_closed = not ConfidenceGate.allow_further_retrieval(contract, contract.last_confidence)
    books.touch()


def _differences(books: Books, contract: BudgetContract, parent: Books) -> str:
    assert books.contract is not None and books.parent is not None, "an agent has terms and a parent"
    names = ("priority", "max_tokens", "min_reserve", "confidence_threshold")
    pairs = [(name, getattr(books.contract, name), getattr(contract, name)) for name in names]
    pairs.append(("parent", books.parent.name, parent.name))
    return ", ".join(f"{name} {old!r}, not {new!r}" for name, old, new in pairs if old != new)
