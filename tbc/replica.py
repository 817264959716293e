"""Rows of a store as books in memory: what a keeper loads, follows and takes back goes through here.

Each function makes the books agree with one row, whether they were ahead of it or behind it. They run under
the ledger's lock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from tbc.axes import TOKENS, Axis
from tbc.contract import BudgetContract
from tbc.decision import Kind
from tbc.holds import Hold, Part
from tbc.leases import LeaseTerms, Slice
from tbc.leasing import LeaseHold
from tbc.ledger import Books, Ledger
from tbc.reallocator import Move
from tbc.records import from_json, to_json
from tbc.stores.rows import AccountRow, AgentRow, HoldRow, LoanRow, PartRow
from tbc.tree import set_terms

if TYPE_CHECKING:
    from tbc.manager import BudgetManager

__all__ = [
    "account_row",
    "agent_row",
    "clear_account",
    "drop_agent",
    "drop_hold",
    "forget_loans",
    "hold_row",
    "put_accounts",
    "put_agents",
    "put_hold",
]

# -- books to rows -------------------------------------------------------------------------------------


def agent_row(books: Books) -> AgentRow:
    """Return an agent's place and terms. `books` are those on tokens."""
    contract = books.contract
    return AgentRow(
        books.name,
        books.order,
        None if books.parent is None else books.parent.name,
        "{}" if contract is None else json.dumps(contract.terms, sort_keys=True, default=str),
        None if contract is None else contract.last_confidence,
        books.closed,
    )


def account_row(books: Books) -> AccountRow:
    """Return an agent's numbers on one axis."""
    return AccountRow(
        books.name,
        books.axis,
        books.capped,
        books.allocated,
        books.consumed,
        books.held,
        books.min_reserve,
        books.unpriced,
    )


def hold_row(ledger: Ledger, hold: Hold) -> HoldRow:
    """Return a hold with its parts and, while it is open, its loans."""
    settlement = hold.settlement
    parts: tuple[PartRow, ...] = (PartRow(TOKENS, hold.amount, hold.granted),)
    loans: tuple[LoanRow, ...] = ()
    if hold.others:
        parts += tuple(
            PartRow(part.books.axis, part.amount, part.granted, int(part.unpriced)) for part in hold.others
        )
    if settlement is None and (hold.lenders or hold.others):
        loans = tuple(
            LoanRow(part.books.axis, loan.donor.name, loan.kind.value, loan.amount)
            for part in (hold, *hold.others)
            for loan in part.lenders or ()
        )
    return HoldRow(
        hold.hold_id,
        hold.agent_name,
        hold.state,
        ledger.wall(hold.at),
        ledger.wall(hold.expires_at),
        hold.key,
        hold.operation,
        hold.model,
        None,
        None if settlement is None else to_json(settlement),
        _lease_json(hold, ledger.wall(0.0)) if isinstance(hold, LeaseHold) else None,
        parts,
        loans,
    )


def _lease_json(hold: LeaseHold, epoch: float) -> str:
    return json.dumps({**hold.lease.as_json(epoch), "first": hold.first.amounts})


# -- rows to books ---------------------------------------------------------------------------------------


def put_agents(ledger: Ledger, rows: Iterable[AgentRow]) -> None:
    """Open, change or close agents as their rows say; they come in the order of registration."""
    listed = [row for row in rows if row.parent is not None]
    for row in listed:
        if row.agent not in ledger.accounts:  # who was closed may have come back below a later one
            parent = ledger.accounts.get(row.parent or "", ledger.root)
            ledger.open_account(row.agent, parent, capped=False)
    for row in listed:
        _put_agent(ledger, row, ledger.find(row.parent or ""))


def _put_agent(ledger: Ledger, row: AgentRow, parent: Books) -> None:
    books = ledger.accounts[row.agent]
    if books.closed != row.closed or books.parent is not parent:
        _move(ledger, books, parent, closed=bool(row.closed))
    terms = json.loads(row.terms)
    contract = BudgetContract(row.agent, **terms)
    contract.note_confidence(row.last_confidence)
    if books.contract == contract:  # the object that users may have stays the same
        contract = books.contract
        contract.note_confidence(row.last_confidence)
    for own in ledger.every_book(books):
        set_terms(own, contract)


def _move(ledger: Ledger, books: Books, parent: Books, *, closed: bool) -> None:
    """Put an agent below a parent, among its children if it is open."""
    for own in ledger.every_book(books):
        ledger.leave_market(own)
        above = ledger.on(own.axis, parent)
        own.parent, own.closed = above, closed
        if not closed:
            ledger.join_market(own, above)


def drop_agent(ledger: Ledger, agent_name: str) -> None:
    """Forget an agent that was never kept."""
    for rows in (ledger.accounts, *(side.accounts for side in ledger.sides.values())):
        books = rows.pop(agent_name, None)
        if books is not None:
            ledger.leave_market(books)
            if books.parent is not None:
                books.parent.index = None  # it may know it by its order, which the next one will have


def clear_account(ledger: Ledger, agent_name: str, axis: Any) -> None:
    """Let an account whose numbers were never kept on an axis be as one that was never used there."""
    books = ledger.look_up(axis, ledger.find(agent_name))
    if books is not None:
        _put_numbers(books, books.parent is not None and books.parent.capped, 0, 0, 0, 0, 0)


def put_accounts(ledger: Ledger, rows: Iterable[AccountRow]) -> None:
    """Let accounts have the numbers of their rows.

    From the top down: an account without numbers of its own has no row, and is capped as the one above it.
    """
    for row in sorted(rows, key=lambda row: ledger.find(row.agent).depth):
        _put_account(ledger, row)


def _put_account(ledger: Ledger, row: AccountRow) -> None:
    axis: Axis = row.axis  # type: ignore[assignment]  # a store keeps no others
    token_books = ledger.find(row.agent)
    if axis != TOKENS:
        ledger.open_side(axis, carry=False)
    books = ledger.on(axis, token_books)
    if books.closed != token_books.closed:
        assert token_books.parent is not None, "the root is never closed"
        _move(ledger, token_books, token_books.parent, closed=token_books.closed)
    if token_books.contract is not None and books.contract is not token_books.contract:
        set_terms(books, token_books.contract)
    numbers = row.allocated, row.consumed, row.held, row.min_reserve, row.unpriced
    _put_numbers(books, bool(row.capped), *numbers)


def _put_numbers(
    books: Books, capped: bool, allocated: int, consumed: int, held: int, min_reserve: int, unpriced: int
) -> None:
    if books.capped != capped:
        _put_capped(books, capped)
    books.touch()
    books.allocated, books.consumed, books.held = allocated, consumed, held
    books.min_reserve = min_reserve
    if books.unpriced != unpriced:
        books.unpriced = unpriced  # type: ignore[misc]  # only dollar books have any


def _put_capped(books: Books, capped: bool) -> None:
    """Cap an account, or not, and those below it: the rows of those that have any come later."""
    books.touch()
    books.capped = capped
    for child in books.children or ():
        _put_capped(child, capped)


def put_hold(manager: BudgetManager, hold: Hold | None, row: HoldRow) -> Hold:
    """Return the hold that the row describes: the one that is known, changed, or a new one."""
    ledger = manager.ledger
    books = ledger.find(row.agent)
    parts: dict[str, PartRow] = {part.axis: part for part in row.parts or ()}
    tokens = parts.get(TOKENS, PartRow(TOKENS, 0, 0))
    if hold is None:
        times = ledger.unwall(row.at), ledger.unwall(row.expires_at)
        made: Callable[..., Hold] = (
            Hold if row.lease is None else partial(LeaseHold, LeaseTerms("", 0.0, 0.0))
        )
        hold = made(manager, books, row.hold_id, tokens.amount, *times, row.key, row.operation, row.model)
        price = manager._price_if_known(row.model)
        if price is not None:
            hold.expect_price(price)
    else:
        _uncount_loans(hold)
        hold.expires_at = ledger.unwall(row.expires_at)
    if isinstance(hold, LeaseHold) and row.lease is not None:
        lease = json.loads(row.lease)
        hold.lease = LeaseTerms.from_json(lease, ledger.wall(0.0))
        hold.first = Slice(row.hold_id, lease["first"])
    lent = {part.books.axis: part.lenders for part in (hold, *hold.others)}
    hold.books = books
    hold.amount, hold.granted = tokens.amount, tokens.granted
    hold.lenders = None
    hold.others = tuple(_part(ledger, books, part) for axis, part in parts.items() if axis != TOKENS)
    hold.settlement = None if row.outcome is None else from_json(row.outcome)
    if hold.settlement is not None:
        ledger.open_holds.pop(hold.hold_id, None)
        for ended in (hold, *hold.others):  # what was lent is still told, where it is known
            ended.lenders = lent.get(ended.books.axis)
        return hold
    for loan in row.loans or ():
        _put_loan(ledger, hold, loan)
    ledger.open_holds[hold.hold_id] = hold
    ledger.unsorted_due = min(ledger.unsorted_due, hold.expires_at)
    ledger.due = min(ledger.due, hold.expires_at)
    return hold


def _part(ledger: Ledger, books: Books, row: PartRow) -> Part:
    axis: Axis = row.axis  # type: ignore[assignment]  # a store keeps no others
    part = Part(ledger.on(axis, books), row.amount, unpriced=bool(row.unpriced))
    part.granted = row.granted
    return part


def _put_loan(ledger: Ledger, hold: Hold, row: LoanRow) -> None:
    axis: Axis = row.axis  # type: ignore[assignment]  # a store keeps no others
    part = hold.part(axis)
    assert part is not None, "a loan belongs to a part"
    lender = ledger.on(axis, ledger.find(row.lender))
    part.lenders = [*(part.lenders or ()), Move(Kind(row.kind), lender, part.books, row.amount)]
    lender.touch()
    part.books.touch()
    lender.lent += row.amount
    part.books.borrowed += row.amount


def drop_hold(ledger: Ledger, hold: Hold) -> None:
    """Forget a hold that was never kept."""
    _uncount_loans(hold)
    ledger.open_holds.pop(hold.hold_id, None)


def forget_loans(holds: Iterable[Hold]) -> None:
    """Let holds have no loans: the accounts that lent are not there any more."""
    for hold in holds:
        for part in (hold, *hold.others):
            part.lenders = None


def _uncount_loans(hold: Hold) -> None:
    if hold.settlement is not None:  # its loans have ended
        return
    for part in (hold, *hold.others):
        for loan in part.lenders or ():
            loan.donor.touch()
            part.books.touch()
            loan.donor.lent -= loan.amount
            part.books.borrowed -= loan.amount
