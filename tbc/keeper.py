"""The keeper: writes what has changed of a pool's books into a store, and builds the books again from it.

The books live in memory and are decided on there; after an operation, `Keeper.keep` writes the new lines of
the journal and the accounts, agents and holds they touched, all in one transaction, together with whatever
else belongs to it. What it returns from is on the disk. `Keeper.restore` makes the same books again: numbers,
terms, open holds with their loans, and the number of the last line.

One process writes to a pool at a time; a second one is refused by the store (`StoreStaleError`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from tbc.axes import TOKENS, Axis
from tbc.confidence import ConfidenceGate
from tbc.contract import BudgetContract
from tbc.decision import Kind
from tbc.holds import Hold, Part
from tbc.journal import Entry
from tbc.ledger import Books
from tbc.reallocator import Move
from tbc.stores.rows import AccountRow, AgentRow, HoldRow, LineRow, LoanRow, PartRow, PoolRow

if TYPE_CHECKING:
    from tbc.manager import BudgetManager
    from tbc.stores.rows import PoolState
    from tbc.stores.sqlite import SqliteStore
    from tbc.stores.sqlite_writer import SqliteWriter

__all__ = ["Keeper"]

_ENDED_CALLS = (Kind.SETTLE, Kind.LATE_SETTLE, Kind.USAGE)


class Keeper:
    """Keeps one pool of a manager in a store.

    Parameters
    ----------
    manager : BudgetManager
        Whose books.
    store : SqliteStore
        Where they are kept.
    pool : str
        Under which name.
    """

    def __init__(self, manager: BudgetManager, store: SqliteStore, pool: str) -> None:
        self._manager = manager
        self._ledger = manager.ledger
        self._store = store
        self._pool = pool
        self._writing = threading.RLock()
        self._kept = 0  # the last line of the journal that is in the store
        self._open: dict[int, Hold] = {}  # open holds that the store knows
        self._agents: dict[str, AgentRow] = {}

    @property
    def path(self) -> str:
        """The store's file."""
        return self._store.path

    def lines(self) -> list[LineRow]:
        """Return the journal as the store has it."""
        return list(self._store.entries(self._pool))

    def alone(self) -> AbstractContextManager[object]:
        """Return a block in which nobody else keeps: what is done in it is kept together."""
        return self._writing

    @contextmanager
    def keep(self) -> Generator[SqliteWriter]:
        """Return a block that writes everything new of the books, and what is written in it, or nothing.

        Raises
        ------
        StoreError
            Nothing was written; the next block writes it all.
        """
        with self._writing:
            with self._ledger.lock:
                entries, agents, accounts, holds = self._changes()
                upto = self._ledger.seq
            with self._store.transaction() as writer:
                if not self._kept:
                    now = self._ledger.wall(self._manager.now())
                    writer.put_pool(PoolRow(self._pool, self._manager.mode, now))
                writer.put_agents(self._pool, agents)
                writer.put_accounts(self._pool, accounts)
                writer.put_holds(self._pool, [self._hold_row(hold) for hold in holds])
                writer.append(self._pool, entries)
                yield writer
            self._kept = upto
            self._agents.update((row.agent, row) for row in agents)
            for hold in holds:
                if hold.state in ("open", "expired"):  # what has expired may still be settled
                    self._open[hold.hold_id] = hold
                else:
                    self._open.pop(hold.hold_id, None)

    def _changes(self) -> tuple[list[Entry], list[AgentRow], list[AccountRow], list[Hold]]:
        """Return what the store does not know yet; under the ledger's lock."""
        ledger = self._ledger
        entries = ledger.entries_now(self._kept)
        touched: dict[tuple[str, Axis], None] = {}
        held: dict[int, Hold] = dict(self._open)
        held.update((hold.hold_id, hold) for hold in ledger.journal.holds(self._kept, ledger.seq))
        ids: dict[int, None] = {}
        for entry in entries:
            touched[entry.agent_name, entry.axis] = None
            if entry.peer is not None:
                touched[entry.peer, entry.axis] = None
            if entry.hold_id is not None:
                ids[entry.hold_id] = None
        held.update(ledger.open_holds)
        rows = [self._agent_row(books) for books in ledger.every_account()]
        return (
            entries,
            [row for row in rows if self._agents.get(row.agent) != row],
            [self._account_row(name, axis) for name, axis in touched],
            [held[hold_id] for hold_id in ids if hold_id in held],
        )

    def _agent_row(self, books: Books) -> AgentRow:
        contract = books.contract
        return AgentRow(
            books.name,
            books.order,
            None if books.parent is None else books.parent.name,
            "{}" if contract is None else json.dumps(contract.terms, sort_keys=True, default=str),
            None if contract is None else contract.last_confidence,
            books.closed,
        )

    def _account_row(self, name: str, axis: Axis) -> AccountRow:
        books = self._ledger.on(axis, self._ledger.find(name))
        numbers = books.allocated, books.consumed, books.held, books.min_reserve, books.unpriced
        return AccountRow(name, axis, books.capped, *numbers)

    def _hold_row(self, hold: Hold) -> HoldRow:
        parts = (hold, *hold.others)
        settlement = hold.settlement
        outcome = None
        if settlement is not None:
            found: dict[str, Any] = {"tokens": settlement.tokens, "estimated": settlement.estimated}
            found |= {booking.axis: booking.amount for booking in settlement.others}
            outcome = json.dumps(found)
        return HoldRow(
            hold.hold_id,
            hold.agent_name,
            hold.state,
            self._ledger.wall(hold.at),
            self._ledger.wall(hold.expires_at),
            hold.key,
            hold.operation,
            hold.model,
            None,
            outcome,
            [PartRow(part.books.axis, part.amount, part.granted) for part in parts],
            [
                LoanRow(part.books.axis, position, loan.donor.name, loan.kind.value, loan.amount)
                for part in parts
                for position, loan in enumerate(part.lenders or ())
                if settlement is None
            ],
        )

    # -- back again --------------------------------------------------------------------------------------

    def restore(self, state: PoolState) -> list[Hold]:
        """Build the books of a new manager from what was kept; returns the holds that were open.

        Parameters
        ----------
        state : PoolState
            As `SqliteStore.load_pool` returns it.
        """
        ledger = self._ledger
        if ledger.accounts or ledger.open_holds:
            raise ValueError("restore() needs a manager without agents")
        with ledger.lock:
            ledger.journal.lines.clear()
            for row in state.agents:
                self._restore_agent(row)
            for account in state.accounts:
                self._restore_account(account)
            calls: dict[str, int] = {}
            for total in self._store.totals(self._pool):
                if total.axis == TOKENS and total.kind in _ENDED_CALLS:
                    calls[total.agent] = calls.get(total.agent, 0) + total.lines
            for books in ledger.every_account():
                for own in ledger.every_book(books):
                    ledger.journal.begin_with(own, calls.get(books.name, 0) if own.axis == TOKENS else 0)
            ledger.seq = self._kept = state.pool.seq
            for hold_row in state.holds:
                self._restore_hold(hold_row)
            self._agents = {row.agent: row for row in state.agents}
            self._open = dict(ledger.open_holds)
            return list(ledger.open_holds.values())

    def _restore_agent(self, row: AgentRow) -> None:
        ledger = self._ledger
        if row.parent is None:
            return
        parent = ledger.find(row.parent)
        books = ledger.open_account(row.agent, parent, capped=False)
        terms = json.loads(row.terms)
        books.contract = BudgetContract(row.agent, **terms) if terms else None
        if books.contract is not None:
            books.contract.note_confidence(row.last_confidence)
            books.priority = books.contract.priority
        if row.closed:
            books.closed = True
            assert parent.children is not None, "it has just joined them"
            parent.children.remove(books)

    def _restore_account(self, row: AccountRow) -> None:
        ledger = self._ledger
        axis: Any = row.axis
        books = ledger.on(axis, ledger.find(row.agent))
        books.capped = bool(row.capped)
        books.allocated, books.consumed, books.held = row.allocated, row.consumed, row.held
        books.min_reserve = row.min_reserve
        if row.unpriced:
            books.unpriced = row.unpriced  # type: ignore[misc]  # only dollar books have any
        if books.contract is not None:
            confidence = books.contract.last_confidence
            books.gate_closed = not ConfidenceGate.allow_further_retrieval(books.contract, confidence)
        books.touch()

    def _restore_hold(self, row: HoldRow) -> None:
        ledger = self._ledger
        token_books = ledger.find(row.agent)
        parts: dict[Any, PartRow] = {part.axis: part for part in row.parts}
        hold = Hold(
            self._manager,
            token_books,
            row.hold_id,
            parts[TOKENS].amount if TOKENS in parts else 0,
            ledger.unwall(row.at),
            ledger.unwall(row.expires_at),
            row.key,
            row.operation,
            row.model,
        )
        others = []
        for axis, part in parts.items():
            if axis != TOKENS:
                others.append(Part(ledger.on(axis, token_books), part.amount))
                others[-1].granted = part.granted
            else:
                hold.granted = part.granted
        hold.others = tuple(others)
        for loan in row.loans:
            side: Any = loan.axis
            borrower = hold.part(side)
            assert borrower is not None, "a loan belongs to a part"
            lender = ledger.on(side, ledger.find(loan.lender))
            borrower.lenders = [
                *(borrower.lenders or ()),
                Move(Kind(loan.kind), lender, borrower.books, loan.amount),
            ]
            lender.lent += loan.amount
            borrower.books.borrowed += loan.amount
        ledger.open_holds[row.hold_id] = hold
        ledger.unsorted_due = min(ledger.unsorted_due, hold.expires_at)
        ledger.due = min(ledger.due, hold.expires_at)
