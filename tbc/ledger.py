"""The books in memory: accounts and open holds, with their journal and remembered keys.

An account's numbers on the token axis are ``allocated`` (granted now), ``consumed`` (spent for good) and
``held`` (set aside by open holds); ``remaining = allocated - consumed - held`` is derived, never stored.
Every change is one journal entry whose deltas sum to the books:

    ``entry.allocated``, ``entry.consumed`` and ``entry.held`` are added to ``entry.agent_name``;
    ``entry.allocated`` is taken from ``entry.peer``, if there is one.

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

from tbc.clock import EPOCH, Clock, system_clock
from tbc.contract import ROOT, BudgetContract, check_amount, check_name
from tbc.decision import Kind
from tbc.errors import InvalidAmountError, ManagedLedgerError, UnknownAgentError
from tbc.journal import Entry, Journal
from tbc.keys import Answers

__all__ = ["Books", "Entry", "Ledger"]

# Enum members as module constants: a global is read faster than an attribute of the class.
_ADJUST, _REGISTER, _USAGE = Kind.ADJUST, Kind.REGISTER, Kind.USAGE
_SPENDING = frozenset({Kind.USAGE, Kind.SETTLE, Kind.LATE_SETTLE})


class Books:
    """One account's numbers and its place in the tree. Mutable; changed only under the ledger's lock."""

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

    def touch(self) -> None:
        """Tell the donor index that these numbers have changed."""
        if not self.stale:
            self.stale = True
            self.parent.index.stale.append(self)  # type: ignore[union-attr]


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
        self.journal = Journal(keep)
        self.lines = self.journal.lines
        self.answers = Answers(keep)
        self.root = Books(ROOT, 0, None, capped=False)
        self.accounts: dict[str, Books] = {}
        #: Open holds by id, oldest first.
        self.open_holds: dict[int, Any] = {}
        #: No operation has to `tend` before this time, unless there is deferred work.
        self.due = float("inf")
        #: Ends of the holds that were open at the last sorting, as a heap; no end of a later one is before
        #: `unsorted_due`.
        self.deadlines: list[tuple[float, int]] = []
        self.unsorted_due = float("inf")
        self.deferred: deque[Callable[[float], None]] = deque()

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
            self.book(self.look(), _USAGE, self.find(agent_name), consumed=tokens, note=note)

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

    def consumed(self, agent_name: str) -> int:
        """Return the tokens spent for good."""
        with self.lock:
            self.look()
            return self.find(agent_name).consumed

    def allocated(self, agent_name: str) -> int | None:
        """Return the tokens granted now (``None``: uncapped)."""
        with self.lock:
            self.look()
            books = self.find(agent_name)
            return books.allocated if books.capped else None

    def remaining(self, agent_name: str) -> int | None:
        """Return ``allocated - consumed - held`` (``None``: uncapped)."""
        with self.lock:
            self.look()
            books = self.find(agent_name)
            return books.remaining if books.capped else None

    def history(self, agent_name: str | None = None) -> list[Entry]:
        """Return the kept entries that booked spending, oldest first, of one agent or of all."""
        return [
            entry
            for entry in self.entries()
            if entry.kind in _SPENDING and agent_name in (None, entry.agent_name)
        ]

    def snapshot(self) -> dict[str, dict[str, int | None]]:
        """Return ``{agent: {"allocated", "consumed", "remaining"}}`` in registration order."""
        with self.lock:
            self.look()
            return {
                name: {
                    "allocated": books.allocated if books.capped else None,
                    "consumed": books.consumed,
                    "remaining": books.remaining if books.capped else None,
                }
                for name, books in self.accounts.items()
            }

    def entries(self, since: int = 0) -> list[Entry]:
        """Return the journal after entry `since`, oldest first.

        Where older entries were folded, it begins with one opening entry (``seq`` 0) per account, and
        the sums over all entries are the books.
        """
        with self.lock:
            lines = self.journal.since(since, self.seq)
        return [Entry(seq, self._epoch + at, *rest) for seq, at, *rest in lines]

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
    ) -> None:
        """Change the books and write the entry that says so: the one way in."""
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
        )
        write = self.lines.append
        self.seq += 1
        books.allocated += allocated
        books.consumed += consumed
        books.held += held
        if peer is not None:
            peer.allocated -= allocated
        write(line)
        if len(self.lines) > self.journal.fold_at:
            self.journal.fold()

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
            self.deferred.popleft()(now)

    def _refuse_if_managed(self, method: str, instead: str) -> None:
        if self.managed:
            raise ManagedLedgerError(
                f"{method}() works on a stand-alone Ledger; these books belong to a manager: use {instead}"
            )


def _nothing(now: float) -> None:
    """Stand-alone books have nothing that falls due."""
