"""Accounts and their place in the tree: opening, new terms, topping up, closing.

What an agent owns on an axis is carved out of its parent's spare there. Where nobody above has a cap, there
is nothing to carve from: the amount is granted, and that is the top of a budget ("at the root").
The functions run under the ledger's lock; each checks all axes first and then moves, or moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from tbc.axes import AXES, TOKENS, USD, Axis, format_amount
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
    "set_terms",
    "top_up",
]


@attrs.frozen
class Account:
    """An account as it stands on one axis. Amounts are tokens, nano-dollars or calls.

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
    axis : {"tokens", "usd", "calls"}
        What is counted.
    unpriced : int
        Calls without a known price: `consumed` dollars are then a lower bound.
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
    axis: Axis = TOKENS
    unpriced: int = 0


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


def account_of(ledger: Ledger, books: Books, axis: Axis) -> Account:
    """Return the frozen record of an account on an axis. `books` are those on tokens."""
    contract = books.contract
    found = ledger.look_up(axis, books)
    row = ledger.row(books, axis)
    remaining = row["remaining"]
    reserve = found.min_reserve if found is not None else 0
    return Account(
        agent_name=books.name,
        parent=None if books.parent is None else books.parent.name,
        priority=books.priority,
        allocated=row["allocated"],
        consumed=row["consumed"] or 0,
        held=0 if found is None else found.held,
        remaining=remaining,
        min_reserve=reserve,
        spare=0 if found is None else found.spare,
        debt=max(0, -(remaining or 0)),
        lent=0 if found is None else found.lent,
        borrowed=0 if found is None else found.borrowed,
        last_confidence=None if contract is None else contract.last_confidence,
        gate_closed=books.gate_closed,
        closed=books.closed,
        axis=axis,
        unpriced=0 if found is None else found.unpriced,
    )


def open_root(ledger: Ledger, caps: Mapping[Axis, int | None], now: float) -> None:
    """Give the root its caps. Its reserves are 0."""
    ledger.root.priority = 0
    for axis, cap in caps.items():
        if cap is not None:
            root = ledger.on(axis, ledger.root)
            root.capped = True
            ledger.book(now, Kind.REGISTER, root, allocated=cap)


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
    grants = []
    for axis in AXES:
        if axis == TOKENS or _concerns(ledger, axis, contract, books):
            owned = contract.cap(axis) or 0
            above = ledger.on(axis, parent)
            grants.append((axis, owned, above, _funder(contract.agent_name, above, owned)))
    if books is None:
        books = ledger.open_account(contract.agent_name, parent, capped=False)
    for axis, owned, above, funder in grants:
        own = ledger.on(axis, books)
        if own.closed:  # what it consumed stays on its account
            own.closed = False
            own.parent = above
            ledger.join_market(own, above)
        own.capped = above.capped or contract.cap(axis) is not None
        set_terms(own, contract)
        ledger.book(now, Kind.REGISTER, own, peer=funder, allocated=owned)
    return contract


def _concerns(ledger: Ledger, axis: Axis, contract: BudgetContract, books: Books | None) -> bool:
    """Return whether a contract says something about an axis, or the account has books there."""
    return contract.cap(axis) is not None or (books is not None and ledger.look_up(axis, books) is not None)


def _replace(ledger: Ledger, books: Books, contract: BudgetContract, now: float) -> BudgetContract:
    old = books.contract
    assert old is not None, "an agent has terms"
    axes = [axis for axis in AXES if axis == TOKENS or _concerns(ledger, axis, contract, books)]
    changes = {axis: _change(ledger, ledger.on(axis, books), old, contract) for axis in axes}
    contract.note_confidence(old.last_confidence)
    for axis, (capped, change, funder) in changes.items():
        own = ledger.on(axis, books)
        own.capped = capped
        set_terms(own, contract)
        ledger.book(now, Kind.REPLACE, own, peer=funder, allocated=change)
    return contract


def _change(
    ledger: Ledger, books: Books, old: BudgetContract, contract: BudgetContract
) -> tuple[bool, int, Books | None]:
    """Return what new terms do to the books of one axis: capped, the change, and who pays or gets it."""
    parent, axis = books.parent, books.axis
    assert parent is not None, "an agent has a parent"
    cap = contract.cap(axis)
    capped = cap is not None or parent.capped
    if capped != books.capped and (books.children or books.lent or books.borrowed):
        raise InvalidContractError(
            f"Agent {books.name!r} cannot turn {'capped' if capped else 'uncapped'} while it has children "
            f"({[child.name for child in books.children or ()]}), "
            f"lends {books.lent} or borrows {books.borrowed}"
        )
    if not capped:
        change = -books.allocated if books.capped else 0
    else:
        change = (cap or 0) - (old.cap(axis) or 0)
        left = books.remaining + change
        if left < 0 and (change < 0 or not books.capped):
            raise InvalidContractError(
                f"Agent {books.name!r} cannot be cut to max_{axis}={_amount(axis, cap or 0)}: consumed "
                f"{_amount(axis, books.consumed)} + held {_amount(axis, books.held)} of allocated "
                f"{_amount(axis, books.allocated)} would leave {_amount(axis, left)}; "
                f"the least it takes is {_amount(axis, (cap or 0) - left)}"
            )
    funder = _funder(books.name, parent, change) if change > 0 else (parent if parent.capped else None)
    return capped, change, funder


def _amount(axis: Axis, amount: int) -> str:
    return format_amount(axis, amount) if axis == USD else str(amount)


def change_terms(ledger: Ledger, books: Books, terms: dict[str, Any], now: float) -> BudgetContract:
    """Change priority, reserve or threshold; allocations stay."""
    if books.closed or books.contract is None:
        raise AgentClosedError(books.name) if books.closed else UnknownAgentError(books.name)
    contract = books.contract.with_terms(**terms)
    for own in ledger.every_book(books):
        set_terms(own, contract)
        ledger.book(now, Kind.REPLACE, own)
    return contract


def note_confidence(ledger: Ledger, books: Books, confidence: float | None) -> bool:
    """Store a reported confidence (``None`` forgets it) and return whether the gate has moved."""
    contract = books.contract
    if contract is None:
        return False
    contract.note_confidence(confidence)
    ledger.noted.add(books.name)
    closed = not ConfidenceGate.allow_further_retrieval(contract, confidence)
    if closed == books.gate_closed:
        return False
    for own in ledger.every_book(books):
        own.gate_closed = closed
        own.touch()
    return True


def top_up(
    ledger: Ledger, books: Books, amounts: Mapping[Axis, int], now: float, *, key: str | None
) -> CarveOutError | None:
    """Grant more: at the top of a budget anew, else out of the parent's spare.

    Returns the refusal, if the parent has not that much.
    """
    if books.closed:
        raise AgentClosedError(books.name)
    grants = []
    for axis, amount in amounts.items():
        if not ledger.capped_on(axis, books):
            raise InvalidContractError(f"{books.name!r} is uncapped: there is nothing to top up")
        own = ledger.on(axis, books)
        check_amount(f"{axis} allocated in all", own.allocated + amount)
        try:
            grants.append(
                (own, amount, None if own.parent is None else _funder(own.name, own.parent, amount))
            )
        except CarveOutError as refused:
            return refused
    for own, amount, funder in grants:
        ledger.book(now, Kind.TOP_UP, own, peer=funder, allocated=amount, key=key)
    return None


def close(ledger: Ledger, books: Books, now: float) -> None:
    """Close an account and return what it did not spend to its parent, or out of the pool at the top.

    What it consumed (and owes) stays on its account. Its open loans will return to the treasury.
    """
    if books.parent is None:
        raise InvalidContractError("the root cannot be closed")
    if books.closed:
        raise AgentClosedError(books.name)
    holds = [hold_id for hold_id, hold in ledger.open_holds.items() if hold.books is books]
    if holds or books.children:
        raise AgentInUseError(books.name, holds, [child.name for child in books.children or ()])
    for own in ledger.every_book(books):
        _close(ledger, own, now)


def _close(ledger: Ledger, books: Books, now: float) -> None:
    parent = books.parent
    assert parent is not None, "an agent has a parent"
    if books.lent:
        _redirect_loans(ledger, books, parent, now)
    if parent.capped:
        ledger.book(now, Kind.CLOSE, parent, peer=books, allocated=max(0, books.remaining))
    elif books.capped:
        ledger.book(now, Kind.CLOSE, books, allocated=-max(0, books.remaining))
    else:  # what was spent without a cap counts as granted: a closed account is even
        ledger.book(now, Kind.CLOSE, books, allocated=books.consumed - books.allocated)
    ledger.leave_market(books)
    books.closed = True


def _redirect_loans(ledger: Ledger, lender: Books, treasury: Books, now: float) -> None:
    """Let the treasury have back what the lender lent; an entry for each hold tells it."""
    treasury.touch()
    for hold in ledger.open_holds.values():
        loans = [loan for part in (hold, *hold.others) for loan in part.lenders or () if loan.donor is lender]
        if loans:
            ledger.book(now, Kind.CLOSE, lender, hold_id=hold.hold_id, key=hold.key)
        for loan in loans:
            loan.donor = treasury
            treasury.lent += loan.amount
            lender.lent -= loan.amount


def _funder(name: str, parent: Books | None, amount: int) -> Books | None:
    """Return who pays for a grant: the parent, if it has a cap and the grant fits into its spare."""
    if parent is None or not parent.capped or not amount:
        return None
    if amount > parent.spare:
        numbers = (parent.allocated, parent.consumed, parent.held, parent.min_reserve)
        allocated, consumed, held, reserve = (_amount(parent.axis, number) for number in numbers)
        arithmetic = f"allocated {allocated} - consumed {consumed} - held {held} - reserve {reserve}"
        missing = amount - (parent.remaining - parent.min_reserve)
        raise CarveOutError(name, amount, parent.spare, parent.name, arithmetic, parent.axis, missing)
    return parent


def set_terms(books: Books, contract: BudgetContract) -> None:
    """Let the terms of a contract hold for an account's books on one axis."""
    gate_closed = not ConfidenceGate.allow_further_retrieval(contract, contract.last_confidence)
    reserve = contract.reserve(books.axis)
    books.touch()
    if books.parent is not None and books.parent.index is not None:
        books.parent.index.forget(books)
    books.contract = contract
    books.priority = contract.priority
    books.min_reserve = reserve
    books.gate_closed = gate_closed


_TERMS = (
    *("priority", "max_tokens", "min_reserve", "confidence_threshold"),
    *("max_usd", "min_reserve_usd", "max_calls"),
)


def _differences(books: Books, contract: BudgetContract, parent: Books) -> str:
    assert books.contract is not None and books.parent is not None, "an agent has terms and a parent"
    pairs = [(name, getattr(books.contract, name), getattr(contract, name)) for name in _TERMS]
    pairs.append(("parent", books.parent.name, parent.name))
    return ", ".join(f"{name} {old!r}, not {new!r}" for name, old, new in pairs if old != new)
