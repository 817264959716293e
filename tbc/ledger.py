"""The books in memory: accounts and open holds, with their journal and remembered keys.

An account's numbers on an axis (tokens, dollars, calls) are ``allocated`` (granted now), ``consumed`` (spent
for good) and ``held`` (set aside by open holds); ``remaining = allocated - consumed - held`` is derived.
Every change is one journal entry whose deltas sum to the books:

    ``entry.allocated``, ``entry.consumed`` and ``entry.held`` are added to ``entry.agent_name``;
    ``entry.allocated`` is taken from ``entry.peer``, if there is one.

Every axis has a tree of books of its own, with the same names: what is true of tokens is true of dollars. The
trees of dollars and calls are opened when first asked for, and an account's books there when they are first
needed: until then it owns nothing there.

This room books and remembers; it decides nothing. Decisions are made in `tbc.lifecycle` and `tbc.tree`.

Examples
--------
>>> ledger = Ledger()
>>> ledger.register("writer", 100)
>>> ledger.record("writer", 30, note="draft")
>>> ledger.remaining("writer")
70
>>> [(entry.tokens, entry.note) for entry in ledger.history("writer")]
[(30, 'draft')]
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from tbc.axes import AXES, CALLS, TOKENS, USD, Axis
from tbc.clock import EPOCH, Clock, system_clock
from tbc.contract import ROOT, BudgetContract, check_amount, check_name
from tbc.decision import Kind
from tbc.errors import AgentClosedError, InvalidAmountError, ManagedLedgerError, UnknownAgentError
from tbc.journal import Entry, Journal
from tbc.keys import Answers

__all__ = ["Books", "Entry", "Ledger"]

# Enum members as module constants: a global is read faster than an attribute of the class.
_ADJUST, _REGISTER, _USAGE = Kind.ADJUST, Kind.REGISTER, Kind.USAGE
_SPENDING = frozenset({Kind.USAGE, Kind.SETTLE, Kind.LATE_SETTLE, Kind.REPORT})


class Books:
    """One account's numbers on one axis, and its place in the tree.

    Mutable; changed only under the ledger's lock.
    """

    axis: Axis = TOKENS
    #: Calls without a known price; only dollars have any.
    unpriced = 0

    __slots__ = (
        "allocated",
        "borrowed",
        "capped",
        "children",
        "closed",
        "consumed",
        "contract",
        "donor_entry",
        "gate_closed",
        "held",
        "index",
        "indexed_idle",
        "indexed_spare",
        "lent",
        "min_reserve",
        "name",
        "order",
        "parent",
        "priority",
        "stale",
    )

    def __init__(self, name: str, order: int, parent: Books | None, *, capped: bool) -> None:
        self.name = name
        self.order = order  # registration order: the last tie-break
        self.parent = parent
        self.capped = capped  # by its own contract or by an ancestor's
        self.contract: BudgetContract | None = None
        self.priority = 1
        self.min_reserve = 0
        self.closed = False
        self.gate_closed = False
        self.allocated = 0
        self.consumed = 0
        self.held = 0
        self.lent = 0  # of others' open loans: what would come back here
        self.borrowed = 0  # of own open loans: what would go back from here
        self.children: list[Books] | None = None
        # The donor index's marks (tbc.donors); `index` is the index of this account's children.
        self.index: Any = None
        self.donor_entry: Any = None
        self.indexed_spare = 0
        self.indexed_idle = 0
        #: Whether the index need not be told of a change: it knows already, or there is none yet.
        self.stale = True

    @property
    def remaining(self) -> int:
        """``allocated - consumed - held``; below 0 in debt. Meaningless if not `capped`."""
        return self.allocated - self.consumed - self.held

    @property
    def spare(self) -> int:
        """What it can give away."""
        spare = self.allocated - self.consumed - self.held - self.min_reserve
        return spare if spare > 0 and self.capped and not self.closed else 0

    @property
    def remaining_when_idle(self) -> int:
        """`remaining` if every open hold of the pool were voided."""
        return self.allocated - self.borrowed + self.lent - self.consumed

    @property
    def spare_when_idle(self) -> int:
        """`spare` if every open hold of the pool were voided."""
        spare = self.allocated - self.borrowed + self.lent - self.consumed - self.min_reserve
        return spare if spare > 0 and self.capped and not self.closed else 0

    @property
    def depth(self) -> int:
        """How many accounts are above it."""
        above, depth = self.parent, 0
        while above is not None:
            above, depth = above.parent, depth + 1
        return depth

    def touch(self) -> None:
        """Tell the donor index that these numbers have changed."""
        if not self.stale:
            self.stale = True
            index = self.parent.index  # type: ignore[union-attr]  # only children are indexed
            if index is not None:
                index.stale.append(self)


class _DollarBooks(Books):
    axis = USD
    __slots__ = ("unpriced",)

    def __init__(self, name: str, order: int, parent: Books | None, *, capped: bool) -> None:
        super().__init__(name, order, parent, capped=capped)
        self.unpriced = 0


class _CallBooks(Books):
    axis = CALLS
    __slots__ = ()


class Side:
    """The tree of books of one axis other than tokens."""

    __slots__ = ("accounts", "kind", "root")

    def __init__(self, kind: type[Books]) -> None:
        self.kind = kind
        self.root = kind(ROOT, 0, None, capped=False)
        self.root.priority = 0
        self.accounts: dict[str, Books] = {}


class Ledger:
    """The books of one pool. Usable alone, as raw book-keeping without rules.

    Parameters
    ----------
    clock : Clock, optional
        Where the times of entries come from.
    keep : int, default 100_000
        How many of the last journal entries, and how many ended keys, are kept in memory at least. Older
        entries are folded into one opening balance per account, so that sums over `entries` stay exact.

    Notes
    -----
    All methods are thread-safe. A ledger that belongs to a manager refuses `register` and
    `adjust_allocation`: its books move only through the manager's methods; `record` books there too.
    """

    def __init__(self, *, clock: Clock = system_clock, keep: int = 100_000) -> None:
        self.clock = clock
        self._epoch = EPOCH if clock is system_clock else 0.0
        self.managed = False
        #: Run under the lock before every look at the books, with the time: a manager expires holds here.
        self.tend: Callable[[float], None] = _nothing
        self.lock = threading.Lock()
        self.seq = 0
        #: Beyond what the numbers of holds go on: books out of a backup give none twice.
        self.numbers_from = 0
        self.journal = Journal(keep)
        self.lines = self.journal.lines
        self.answers = Answers(keep)
        self.root = Books(ROOT, 0, None, capped=False)
        self.accounts: dict[str, Books] = {}
        #: The trees of the other axes, as far as they are open.
        self.sides: dict[Axis, Side] = {}
        #: Open holds by id, oldest first.
        self.open_holds: dict[int, Any] = {}
        #: No operation has to `tend` before this time, unless there is deferred work.
        self.due = float("inf")
        #: Ends of the holds that were open at the last sorting, as a heap; no end of a later one is before
        #: `unsorted_due`.
        self.deadlines: list[tuple[float, int]] = []
        self.unsorted_due = float("inf")
        #: How many expired holds one operation frees at most.
        self.expire_most = float("inf")
        #: A hold and how it is to end, while that is being done: what Ctrl-C interrupts is gone on with.
        self.unfinished: Any = None
        self.deferred: deque[Callable[[float], None]] = deque()
        #: Agents of whom something was noted that is no journal entry, for those who keep these books.
        self.noted: set[str] = set()

    # -- stand-alone use -----------------------------------------------------------------------------

    def register(self, agent_name: str, allocated_tokens: int) -> None:
        """Open (or grant anew) an account of `allocated_tokens`; what was consumed stays."""
        check_name(agent_name)
        tokens = check_amount("allocated_tokens", allocated_tokens)
        self._refuse_if_managed("register", "register_agent")
        with self.lock:
            books = self.accounts.get(agent_name)
            if books is None:
                books = self.open_account(agent_name, self.root, capped=True)
            self.book(self.look(), _REGISTER, books, allocated=tokens - books.allocated)

    def record(self, agent_name: str, tokens: int, note: str = "") -> None:
        """Book `tokens` as consumed, whatever is left."""
        tokens = check_amount("tokens", tokens)
        with self.lock:
            books, now = self.find(agent_name), self.look()
            if books.closed:
                raise AgentClosedError(agent_name)
            self.book(now, _USAGE, books, consumed=tokens, note=note)
            for axis in self.sides:  # a call, at a price that nobody said
                self.book(
                    now,
                    _USAGE,
                    self.on(axis, books),
                    consumed=1 if axis == CALLS else 0,
                    unpriced=1 if axis == USD else 0,
                    note=note,
                )

    def adjust_allocation(self, agent_name: str, delta: int) -> None:
        """Change the allocation by `delta` tokens; it may not fall below 0."""
        negative = type(delta) is int and delta < 0
        change = -check_amount("-delta", -delta) if negative else check_amount("delta", delta)
        self._refuse_if_managed("adjust_allocation", "top_up, rebalance or register_agent(replace=True)")
        with self.lock:
            books = self.find(agent_name)
            if books.allocated + change < 0:
                raise InvalidAmountError("delta", delta, f">= {-books.allocated} (what is allocated)")
            self.book(self.look(), _ADJUST, books, allocated=change)

    def consumed(self, agent_name: str, axis: Axis = TOKENS) -> int:
        """Return what was spent for good: tokens, nano-dollars or calls."""
        with self.lock:
            self.look()
            found = self.row(self.find(agent_name), axis)["consumed"]
            assert found is not None, "spending is always known"
            return found

    def allocated(self, agent_name: str, axis: Axis = TOKENS) -> int | None:
        """Return what is granted now (``None``: uncapped)."""
        with self.lock:
            self.look()
            return self.row(self.find(agent_name), axis)["allocated"]

    def remaining(self, agent_name: str, axis: Axis = TOKENS) -> int | None:
        """Return ``allocated - consumed - held`` (``None``: uncapped)."""
        with self.lock:
            self.look()
            return self.row(self.find(agent_name), axis)["remaining"]

    def history(self, agent_name: str | None = None, axis: Axis = TOKENS) -> list[Entry]:
        """Return the kept entries that booked spending on an axis, oldest first, of one agent or of all."""
        self.look_up(axis, self.root)  # refuses what is no axis
        return [
            entry
            for entry in self.entries()
            if entry.kind in _SPENDING and entry.axis == axis and agent_name in (None, entry.agent_name)
        ]

    def snapshot(self, axis: Axis = TOKENS) -> dict[str, dict[str, int | None]]:
        """Return ``{agent: {"allocated", "consumed", "remaining"}}`` in registration order."""
        with self.lock:
            self.look()
            counted = self.journal.calls() if axis == CALLS and CALLS not in self.sides else {}
            return {
                name: self.row(books, axis, counted.get(name, 0)) for name, books in self.accounts.items()
            }

    def row(self, books: Books, axis: Axis, counted: int | None = None) -> dict[str, int | None]:
        """Return an account's allocated, consumed and remaining on an axis. `books` are those on tokens."""
        found = self.look_up(axis, books)
        if found is None:
            spent = 0
            if axis == CALLS and CALLS not in self.sides:
                spent = self.journal.calls().get(books.name, 0) if counted is None else counted
            owned = 0 if self.capped_on(axis, books) else None
            return {"allocated": owned, "consumed": spent, "remaining": owned}
        return {
            "allocated": found.allocated if found.capped else None,
            "consumed": found.consumed,
            "remaining": found.remaining if found.capped else None,
        }

    def entries(self, since: int = 0, most: int | None = None) -> list[Entry]:
        """Return the journal after entry `since`, oldest first; of the entries no more than `most`.

        Where older entries were folded, it begins with one opening entry (``seq`` 0) per account, and
        the sums over all entries are the books.
        """
        with self.lock:
            found = self.journal.since(since, self.seq, most)
        return [Entry(seq, self.wall(at), *rest) for seq, at, *rest in found]

    def wall(self, at: float) -> float:
        """Return seconds of the clock as journals show them: Unix time with the default clock."""
        return self._epoch + at

    def unwall(self, at: float) -> float:
        """Return what the clock showed, or would have shown, at a time that `wall` returned."""
        return at - self._epoch

    # -- for the rooms above, under the lock ---------------------------------------------------------

    def find(self, agent_name: str) -> Books:
        """Return the account of that name, open or closed."""
        if isinstance(agent_name, str):
            books = self.accounts.get(agent_name)
            if books is not None:
                return books
            if agent_name == ROOT:
                return self.root
        raise UnknownAgentError(agent_name)

    def look_up(self, axis: Axis, books: Books) -> Books | None:
        """Return an account's books on an axis, if they are open. `books` are those on the token axis."""
        if axis == TOKENS:
            return books
        if axis not in AXES:
            raise InvalidAmountError("axis", axis, f"one of {', '.join(AXES)}")
        side = self.sides.get(axis)
        if side is None:
            return None
        return side.root if books is self.root else side.accounts.get(books.name)

    def capped_on(self, axis: Axis, books: Books) -> bool:
        """Return whether the account, or one above it, has a cap on an axis."""
        above: Books | None = books
        while above is not None:
            found = self.look_up(axis, above)
            if found is not None:
                return found.capped
            above = above.parent
        return False

    def on(self, axis: Axis, books: Books) -> Books:
        """Return an account's books on an axis, opened if they are not. `books` are those on tokens."""
        if axis == TOKENS:
            return books
        found = self.look_up(axis, books)
        if found is not None:
            return found
        return self._open_on(self.open_side(axis), axis, books)

    def _open_on(self, side: Side, axis: Axis, books: Books) -> Books:
        """Open the books of an account in a side, and those of the accounts above, the highest first."""
        missing: list[Books] = []
        above: Books | None = books
        while above is not None and above is not self.root and above.name not in side.accounts:
            missing.append(above)
            above = above.parent
        parent = side.root if above is None or above is self.root else side.accounts[above.name]
        for each in reversed(missing):
            found = side.kind(each.name, each.order, parent, capped=parent.capped)
            found.contract, found.priority = each.contract, each.priority
            found.gate_closed, found.closed = each.gate_closed, each.closed
            side.accounts[each.name] = found
            if not each.closed:
                self.join_market(found, parent)
            parent = found
        return parent

    def open_side(self, axis: Axis, *, carry: bool = True) -> Side:
        """Return the tree of an axis, opened if it is not; what is known of the past is carried over.

        Not to `carry` it is for those who find in a store what was.
        """
        side = self.sides.get(axis)
        if side is None:
            counts, now = self.journal.calls() if carry else {}, self.clock()
            side = Side(_DollarBooks if axis == USD else _CallBooks)
            carried = [(self._open_on(side, axis, self.find(name)), count) for name, count in counts.items()]
            self.sides[axis] = side
            for books, count in carried:
                self.book(
                    now,
                    Kind.OPENING,
                    books,
                    consumed=count if axis == CALLS else 0,
                    unpriced=count if axis == USD else 0,
                )
        return side

    def every_book(self, books: Books) -> list[Books]:
        """Return an account's open books on all axes. `books` are those on the token axis."""
        found = (self.look_up(axis, books) for axis in self.sides)
        return [books, *(each for each in found if each is not None)]

    def open_account(self, agent_name: str, parent: Books, *, capped: bool) -> Books:
        """Add an account that owns nothing yet."""
        books = Books(agent_name, len(self.accounts) + 1, parent, capped=capped)
        self.accounts[agent_name] = books
        self.join_market(books, parent)
        return books

    def join_market(self, books: Books, parent: Books) -> None:
        """Put an account among the children of `parent`."""
        if parent.children is None:
            parent.children = []
        parent.children.append(books)
        books.stale = parent.index is None
        books.touch()

    def leave_market(self, books: Books) -> None:
        """Take an account out of the children of its parent; its index remembers nothing of it."""
        above = books.parent
        if above is None or above.children is None or books not in above.children:
            return
        if above.index is not None:
            above.index.remove(books)
        above.children.remove(books)
        books.donor_entry = None
        books.indexed_spare = books.indexed_idle = 0  # also of an index that was given up
        books.stale = True

    def every_account(self) -> Iterator[Books]:
        """Yield the root, then the agents in registration order."""
        yield self.root
        yield from self.accounts.values()

    def book(
        self,
        now: float,
        kind: Kind,
        books: Books,
        *,
        peer: Books | None = None,
        allocated: int = 0,
        consumed: int = 0,
        held: int = 0,
        hold_id: int | None = None,
        key: str | None = None,
        note: str | None = None,
        estimated: bool = False,
        model: str | None = None,
        unpriced: int = 0,
        grows: Any = None,
        ends: Any = None,
        lends: Any = None,
        repays: Any = None,
    ) -> None:
        """Change the books and write the entry that says so: the one way in.

        With it a part of a hold `grows` by what is held; a part of an ending `ends`; of a part and a move,
        the move `lends` to the part; or, of an ending too, it is what the part `repays`.
        """
        # Every call comes before the first change, and the line last: an exception out of a signal handler
        # can only come in between calls, so that the books and their journal never disagree.
        books.touch()
        peer_name = None
        if peer is not None:
            peer.touch()
            peer_name = peer.name
        line = (
            now,
            kind,
            books.name,
            peer_name,
            allocated,
            consumed,
            held,
            hold_id,
            key,
            note,
            estimated,
            books.axis,
            model,
            unpriced,
        )
        write = self.lines.append
        self.seq += 1
        books.allocated += allocated
        books.consumed += consumed
        books.held += held
        if unpriced:
            books.unpriced += unpriced  # type: ignore[misc]  # only dollar books are told of any
        if peer is not None:
            peer.allocated -= allocated
        if grows is not None:
            grows.amount += held
        if ends is not None:
            ends.booked += 1
        if lends is not None:
            part, loan = lends
            part.lenders += [loan]
            loan.donor.lent += loan.amount
            part.books.borrowed += loan.amount
        if repays is not None:
            ending, part, loan = repays
            ending.repaid += 1
            loan.donor.lent -= loan.amount
            part.books.borrowed -= loan.amount
        write(line)
        if len(self.lines) > self.journal.fold_at:
            self.journal.fold()

    def repay(self, ending: Any, part: Any, loan: Any) -> None:
        """End a loan of which nothing comes back."""
        ending.repaid += 1
        loan.donor.lent -= loan.amount
        part.books.borrowed -= loan.amount

    def look(self) -> float:
        """Return the time, after all that was due by then."""
        now = self.clock()
        if now >= self.due or self.deferred:
            self.tend(now)
        return now

    def defer(self, work: Callable[[float], None]) -> None:
        """Leave work to the next operation; safe without the lock, also from finalizers."""
        self.deferred.append(work)

    def run_deferred(self, now: float) -> None:
        """Do what was left to this operation."""
        while self.deferred:
            work = self.deferred[0]
            try:
                work(now)
            except Exception:
                self.deferred.remove(work)
                raise
            self.deferred.remove(work)  # last: what Ctrl-C interrupts is done again

    def _refuse_if_managed(self, method: str, instead: str) -> None:
        if self.managed:
            raise ManagedLedgerError(
                f"{method}() works on a stand-alone Ledger; these books belong to a manager: use {instead}"
            )


def _nothing(now: float) -> None:
    """Stand-alone books have nothing that falls due."""
