"""The keeper: keeps the books of a pool in a store, and lets books in memory follow what others wrote there.

A pool is one ordered log. Its books live in memory and are decided on there, at the place where the log ends;
what an operation changed is written in one transaction, if the log still ends there:

- `Keeper.changes` says what memory has and the store has not;
- `Keeper.write` writes that, and `Keeper.kept` remembers that it is written;
- `Keeper.undo` takes it back out of memory, if it could not be written;
- `Keeper.follow` lets memory catch up with what others have written meanwhile.

So the rules are written once, whatever the store. `Keeper.restore` builds the books of a new manager:
numbers, terms, open holds with their loans, and the number of the last line.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Container, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tbc import replica
from tbc.axes import TOKENS, Axis
from tbc.decision import Kind
from tbc.errors import KeyConflictError, StoreCorruptError, StoreMissingError, StoreStaleError
from tbc.holds import Hold
from tbc.journal import ended_calls
from tbc.keys import Answers
from tbc.records import from_json, to_json
from tbc.stores.rows import AccountRow, AgentRow, HoldRow, LineRow, Mark, News, OpRow, PoolRow

if TYPE_CHECKING:
    from tbc.manager import BudgetManager
    from tbc.stores.rows import PoolState
    from tbc.stores.store import Store
    from tbc.stores.writer import Writer

__all__ = ["Changes", "Keeper"]

_TERMS: Final = frozenset({Kind.REGISTER, Kind.REPLACE, Kind.CLOSE})
#: Ended holds on which more may be booked; older ones are read again when it is.
_ENDED_MOST: Final = 10_000
#: Lines of the journal that books which are opened find in memory.
_RECENT: Final = 1_000


class Changes(NamedTuple):
    """What the books in memory have and the store has not.

    Attributes
    ----------
    seq : int
        The last line.
    lines : list of LineRow
        New lines of the journal.
    agents : list of AgentRow
        Agents that were opened or changed.
    accounts : list of AccountRow
        Accounts that the lines touched.
    holds : list of (Hold, HoldRow)
        Holds that the lines touched.
    answers : list of (str, tuple, object)
        Keys, with what was asked and answered.
    """

    seq: int
    lines: list[LineRow]
    agents: list[AgentRow]
    accounts: list[AccountRow]
    holds: list[tuple[Hold, HoldRow]]
    answers: list[tuple[str, tuple[object, ...], Any]]

    def __bool__(self) -> bool:
        return bool(self.lines or self.agents or self.answers)


class KeptAnswers(Answers):
    """Answers by key that outlive the process: those that memory has not are asked of the store."""

    def __init__(self, keep: int, keeper: Keeper) -> None:
        super().__init__(keep)
        self._keeper = keeper
        #: Answers that are not written yet.
        self.new: list[tuple[str, tuple[object, ...], Any]] = []

    def recall(self, key: str | None, content: tuple[object, ...]) -> Any:
        """Return the first answer given under `key`, by whatever process; ``None`` if the key is new."""
        found = super().recall(key, content)
        if found is not None or key is None:
            return found
        return self._keeper.find_answer(key, content)

    def knows(self, key: str) -> bool:
        """Return whether there is a first answer under `key`, from whatever process."""
        return super().knows(key) or self._keeper.has_answer(key)

    def remember(
        self, key: str | None, content: tuple[object, ...], answer: Any, open_holds: Container[int]
    ) -> None:
        """Keep the first answer, in memory and with the next transaction."""
        if key is not None:  # first, so that what Ctrl-C comes after is taken back
            self.new.append((key, content, answer))
        super().remember(key, content, answer, open_holds)

    def take_back(self) -> None:
        """Forget the answers that could not be written."""
        for key, _, _ in self.new:
            self._answers.pop(key, None)
        self.new.clear()


class Keeper:
    """Keeps one pool of a manager in a store.

    Parameters
    ----------
    manager : BudgetManager
        Whose books. Their journal keeps every line until it is written.
    store : Store
        Where they are kept.
    pool : str
        Under which name.

    Attributes
    ----------
    mark : Mark
        How far the books in memory follow the store.
    """

    def __init__(self, manager: BudgetManager, store: Store, pool: str) -> None:
        self._manager = manager
        self._ledger = manager.ledger
        self._store = store
        self._pool = pool
        self._writing = threading.RLock()
        self.mark = Mark()
        self._agents: dict[str, AgentRow] = {}
        self._accounts: dict[tuple[str, str], AccountRow] = {}
        self._holds: dict[int, tuple[Hold, HoldRow]] = {}  # open, or what more may be booked on
        self._calls: dict[str, int] = {}  # ended ones, in the lines up to `_counted_to`
        self._counted_to = 0
        self._answers = KeptAnswers(100_000, self)
        self._ledger.answers = self._answers
        self._fold_at, self._ledger.journal.fold_at = self._ledger.journal.fold_at, 2**63

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
    def keep(self) -> Generator[Any]:
        """Return a block that writes everything new of the books, and what is written in it, or nothing.

        For a pool that no other process writes to.

        Raises
        ------
        StoreError
            Nothing was written; the next block writes it all.
        """
        with self._writing:
            with self._ledger.lock:
                changes = self.changes()
            with self._store.transaction(self._pool, at=self.mark) as writer:
                self.write(writer, changes)
                yield writer
            with self._ledger.lock:
                self.kept(changes, writer.mark(self._pool))

    # -- what is new ---------------------------------------------------------------------------------------

    def changes(self) -> Changes:
        """Return what the store does not know yet; under the ledger's lock."""
        ledger, since = self._ledger, self.mark.seq
        epoch = ledger.wall(0.0)
        lines = [
            LineRow._make((line[0], epoch + line[1], *line[2:]))
            for line in ledger.journal.since(since, ledger.seq)
        ]
        touched: dict[tuple[str, Axis], None] = {}
        names = dict.fromkeys(ledger.noted)
        ids: dict[int, None] = {}
        for line in lines:
            axis: Axis = line.axis  # type: ignore[assignment]  # memory knows no others
            touched[line.agent_name, axis] = None
            if line.peer is not None:
                touched[line.peer, axis] = None
            if line.hold_id is not None:
                ids[line.hold_id] = None
            if line.kind in _TERMS:
                names[line.agent_name] = None
                if line.peer is not None:
                    names[line.peer] = None
        if not self.mark.version:
            names = dict.fromkeys([ledger.root.name, *names])
        agents = [replica.agent_row(ledger.find(name)) for name in names]
        if agents:
            agents.sort(key=lambda row: row.position)
        return Changes(
            ledger.seq,
            lines,
            [row for row in agents if self._agents.get(row.agent) != row],
            [replica.account_row(ledger.on(axis, ledger.find(name))) for name, axis in touched],
            [(hold, replica.hold_row(ledger, hold)) for hold in self._touched_holds(ids)],
            list(self._answers.new),
        )

    def _touched_holds(self, ids: Iterable[int]) -> list[Hold]:
        """Return the holds of these numbers that memory knows: open ones, new ones, and those kept before."""
        ledger = self._ledger
        granted: dict[int, Hold] | None = None
        found = []
        for hold_id in ids:
            hold = ledger.open_holds.get(hold_id)
            if hold is None and hold_id in self._holds:
                hold = self._holds[hold_id][0]
            elif hold is None:
                if granted is None:
                    granted = {each.hold_id: each for each in ledger.journal.holds(self.mark.seq, ledger.seq)}
                hold = granted.get(hold_id)
            if hold is not None:
                found.append(hold)
        return found

    def write(self, writer: Writer, changes: Changes) -> None:
        """Write what is new, within a transaction of the store."""
        pool = self._pool
        if not self.mark.version:
            now = self._ledger.wall(self._manager.now())
            writer.put_pool(PoolRow(pool, self._manager.mode, now, self._manager.pool_terms))
        if changes.agents:
            writer.put_agents(pool, changes.agents)
        writer.put_accounts(pool, changes.accounts)
        writer.put_holds(pool, [self._without_known(row) for _, row in changes.holds])
        writer.append(pool, changes.lines)
        for key, content, answer in changes.answers:
            at = self._ledger.wall(self._manager.now())
            writer.put_op(pool, OpRow(key, str(content[0]), _hash(content), _answer_json(answer), at))

    def _without_known(self, row: HoldRow) -> HoldRow:
        """Return a hold without the parts and loans that the store has."""
        known = self._holds.get(row.hold_id)
        if known is None or known[1].parts != row.parts:
            return row
        return HoldRow._make((*row[:11], None, None if known[1].loans == row.loans else row.loans))

    def kept(self, changes: Changes, mark: Mark) -> None:
        """Remember that it is written, and how far the pool has come with it; under the ledger's lock."""
        self.mark = mark
        for agent in changes.agents:
            self._agents[agent.agent] = agent
        for account in changes.accounts:
            self._accounts[account.agent, account.axis] = account
        for hold, row in changes.holds:
            self._know(hold, row)
        del self._answers.new[: len(changes.answers)]
        if changes.agents or not changes.lines:
            self._ledger.noted.difference_update(row.agent for row in changes.agents)
        if changes.seq == self._ledger.seq:
            self._fold()

    def _fold(self) -> None:
        """Let memory forget old lines that the store has; there may be none that it has not."""
        journal = self._ledger.journal
        if len(journal.lines) > self._fold_at:
            journal.fold()

    def _know(self, hold: Hold, row: HoldRow) -> None:
        # What has expired may still be settled, and the worker of a lease that has ended may say more.
        if row.state in ("open", "expired") or row.lease is not None:
            self._holds[hold.hold_id] = hold, row
            if row.state != "open" and len(self._holds) > _ENDED_MOST:
                ended = [hold_id for hold_id, (_, known) in self._holds.items() if known.state != "open"]
                for hold_id in ended[: len(ended) // 2]:
                    del self._holds[hold_id]
        else:
            self._holds.pop(hold.hold_id, None)

    def look_again(self, hold: Hold) -> None:
        """Let a hold that the keeper has forgotten be as the store has it; under the ledger's lock."""
        if hold.state in ("settled", "voided"):
            return
        known = self._holds.get(hold.hold_id, (None,))[0]
        if known is hold:
            return
        if known is not None and known.state in ("settled", "voided"):  # in this transaction
            hold.settlement = known.settlement
            return
        if self._is_new(hold.hold_id):  # granted in this transaction
            return
        self._fetch(hold.hold_id, hold)

    def _fetch(self, hold_id: int, hold: Hold | None = None) -> Hold | None:
        """Return the hold of this number as the store has it, which memory knows from now on; or ``None``.

        Raises
        ------
        StoreStaleError
            Memory has not heard of those whose it is: it has to follow first.
        """
        row = self._store.find_hold(self._pool, hold_id=hold_id)
        if row is None:
            return None
        ledger = self._ledger
        names = {row.agent, *(loan.lender for loan in row.loans or ())} - {ledger.root.name}
        if not names <= ledger.accounts.keys():
            mark = self._store.news(self._pool, self.mark).mark
            if mark.version != self.mark.version:
                raise StoreStaleError(self.path, f"pool {self._pool!r} has moved on", "Ask again")
        found = self._put_hold(hold, row)
        self._know(found, row)
        return found

    def _put_hold(self, hold: Hold | None, row: HoldRow) -> Hold:
        with self.readable(f"hold {row.hold_id}"):
            return replica.put_hold(self._manager, hold, row)

    @contextmanager
    def readable(self, what: str) -> Generator[None]:
        """Say it as the store's damage if what was kept cannot be read."""
        try:
            yield
        except (ValueError, TypeError, LookupError) as error:
            raise StoreCorruptError(
                self.path, f"{what} of pool {self._pool!r} cannot be read ({error})", "Restore a backup"
            ) from error

    def _is_new(self, hold_id: int) -> bool:
        """Return whether a number was given in this transaction."""
        return hold_id > self._ledger.numbers_from + self.mark.seq

    def find_hold(self, hold_id: int, hold: Hold | None = None) -> Hold | None:
        """Return the hold of this number, as the store has it if memory does not know it; or ``None``.

        Under the ledger's lock. `hold` is the object that the caller has of it, if any.
        """
        known = self._holds.get(hold_id)
        if known is not None:
            return known[0]
        granted = self._ledger.open_holds.get(hold_id, hold)
        if self._is_new(hold_id):  # in this transaction
            return granted
        return self._fetch(hold_id, granted)

    # -- back to what the store has, and on to what it has by now ----------------------------------------

    def undo(self) -> None:
        """Take back out of memory what the store has not; under the ledger's lock."""
        ledger = self._ledger
        self._manager.finish_interrupted()
        changes = self.changes()
        for _ in range(len(changes.lines)):
            ledger.journal.lines.pop()
        ledger.seq = self.mark.seq
        for hold, _ in changes.holds:
            kept_hold = self._holds.get(hold.hold_id)
            if kept_hold is None:
                replica.drop_hold(ledger, hold)
                self._manager.forget_lease(hold.hold_id)
            else:
                self._holds[hold.hold_id] = replica.put_hold(self._manager, *kept_hold), kept_hold[1]
        holds = sorted(ledger.open_holds.items())  # oldest first again
        ledger.open_holds.clear()
        ledger.open_holds.update(holds)
        replica.put_agents(
            ledger, [self._agents[row.agent] for row in changes.agents if row.agent in self._agents]
        )
        for row in changes.agents:
            if row.agent not in self._agents:
                replica.drop_agent(ledger, row.agent)
        known = []
        for name, axis in {(row.agent, row.axis): None for row in changes.accounts}:
            kept = self._accounts.get((name, axis))
            if kept is not None:
                known.append(kept)
            elif name == ledger.root.name or name in ledger.accounts:
                replica.clear_account(ledger, name, axis)
        replica.put_accounts(ledger, known)
        self._clear_without_row(changes.agents)
        kept_axes = {axis for _, axis in self._accounts}
        for axis in [axis for axis in ledger.sides if axis not in kept_axes]:
            del ledger.sides[axis]
        ledger.noted.clear()
        self._answers.take_back()

    def follow(self, news: News) -> None:
        """Let memory catch up with what others wrote; nothing of it may be new in memory. Under the lock."""
        ledger = self._ledger
        with self.readable("what was written"):
            replica.put_agents(ledger, news.agents)
            self._agents.update((agent.agent, agent) for agent in news.agents)
            replica.put_accounts(ledger, news.accounts)
            for account in news.accounts:
                self._accounts[account.agent, account.axis] = account
            self._clear_without_row(news.agents)
            for row in news.holds:
                known = self._holds.get(row.hold_id)
                if known is not None or row.state == "open":
                    self._know(self._put_hold(known and known[0], row), row)
        last = ledger.seq
        for seq, at, kind, *rest in news.lines:
            ledger.journal.lines.append((ledger.unwall(at), Kind(kind), *rest))
            ledger.seq = seq
        self._manager.note_elsewhere(range(last + 1, ledger.seq + 1))
        self.mark = news.mark
        self._fold()

    def _clear_without_row(self, agents: Iterable[AgentRow]) -> None:
        """Let agents that may have moved be capped as those above, on axes on which they have no row."""
        ledger = self._ledger
        found = [ledger.accounts[row.agent] for row in agents if row.agent in ledger.accounts]
        for books in sorted(found, key=lambda books: books.depth):
            for axis in ledger.sides:
                if (books.name, axis) not in self._accounts:
                    replica.clear_account(ledger, books.name, axis)

    def count_calls(self) -> None:
        """Count the ended calls of every agent, as far as the journal goes; others may write meanwhile.

        For a long journal that takes its time: before a transaction, what is built in it has less to read.
        """
        if not self.mark.version:  # nothing was built yet: it may be tried again on other books
            self._calls, self._counted_to = {}, 0
        seq, counts = self._store.ended_calls(self._pool, since=self._counted_to)
        for name, calls in counts.items():
            self._calls[name] = self._calls.get(name, 0) + calls
        self._counted_to = seq

    def _begin_journal(self, last: list[LineRow]) -> None:
        """Give memory the last lines of the journal, and what they began with."""
        ledger, begin = self._ledger, self.mark.seq - _RECENT
        balances: dict[tuple[Axis, str], list[int]] = {}
        for name, calls in self._calls.items():
            _add(balances, (TOKENS, name), (0, 0, 0, 0, calls))
        for (name, axis), row in self._accounts.items():
            numbers = row.allocated, row.consumed, row.held, row.unpriced, 0
            _add(balances, (axis, name), numbers)
        lines = []
        for line in last:
            calls = ended_calls(line.axis, line.kind, line.consumed)
            if line.seq > self._counted_to:
                _add(balances, (TOKENS, line.agent_name), (0, 0, 0, 0, calls))
            if line.seq <= begin:
                continue
            numbers = line.allocated, line.consumed, line.held, line.unpriced, 0
            _add(balances, (line.axis, line.agent_name), (-number for number in numbers))
            _add(balances, (TOKENS, line.agent_name), (0, 0, 0, 0, -calls))
            if line.peer is not None:
                _add(balances, (line.axis, line.peer), (line.allocated, 0, 0, 0, 0))
            lines.append((ledger.unwall(line.at), Kind(line.kind), *line[3:]))
        ledger.journal.begin_with(balances, lines)

    def has_answer(self, key: str) -> bool:
        """Return whether the store has an answer under a key."""
        return bool(self.mark.version) and self._store.find_op(self._pool, key) is not None

    def find_answer(self, key: str, content: tuple[object, ...]) -> Any:
        """Return the first answer under a key as the store has it; ``None`` if it has none.

        Raises
        ------
        KeyConflictError
            If it is the answer to another request.
        """
        if not self.mark.version:
            return None
        row = self._store.find_op(self._pool, key)
        if row is None:
            return None
        if (row.kind, row.request_hash) != (content[0], _hash(content)):
            raise KeyConflictError(key, (row.kind, row.request_hash), content)
        with self.readable(f"the answer under key {key!r}"):
            answer = from_json(row.response)
            if not isinstance(answer, dict):
                return answer
            hold_id = answer["hold"]
        hold = self._ledger.open_holds.get(hold_id)
        if hold is not None:
            return hold
        if hold_id in self._holds:
            return self._holds[hold_id][0]
        return self._fetch(hold_id)

    def restore(self, state: PoolState) -> list[Hold]:
        """Build the books of a new manager from what was kept; returns the holds that were open.

        Parameters
        ----------
        state : PoolState
            As `Store.load_pool` returns it.
        """
        if self._ledger.accounts or self._ledger.open_holds:
            raise ValueError("restore() needs a manager without agents")
        return self._build(state)

    def reload(self) -> None:
        """Build the books anew after an interruption that may have torn them. Holds stay the same objects."""
        state = self._store.load_pool(self._pool)
        if state is None:
            raise StoreMissingError(
                self.path, f"pool {self._pool!r} is gone", "Restore a backup of the store"
            )
        self._build(state)

    def _build(self, state: PoolState) -> list[Hold]:
        ledger, seq = self._ledger, state.pool.seq
        if seq < self._counted_to:
            raise StoreStaleError(
                self.path, f"pool {self._pool!r} has become shorter: line {seq} is its last", "Open it again"
            )
        # Read before anything changes: what cannot be read now can be tried again.
        last = list(self._store.entries(self._pool, max(0, min(self._counted_to, seq - _RECENT))))
        with ledger.lock:
            ledger.open_holds.clear()
            ledger.accounts.clear()
            ledger.sides.clear()
            ledger.root.children = ledger.root.index = ledger.unfinished = None
            replica.forget_loans(hold for hold, _ in self._holds.values())
            opened = {row.hold_id for row in state.holds}  # the others are read again when they are needed
            self._holds = {hold_id: known for hold_id, known in self._holds.items() if hold_id in opened}
            self._agents.clear()
            self._accounts.clear()
            self._answers.take_back()
            self.follow(News(Mark(*state.pool[4:7]), (), state.agents, state.accounts, state.holds))
            self._begin_journal(last)
            ledger.seq = self.mark.seq
            ledger.noted.clear()
            return list(ledger.open_holds.values())


def _add(balances: dict[Any, list[int]], at: Any, changes: Iterable[int]) -> None:
    known = balances.setdefault(at, [0, 0, 0, 0, 0])
    balances[at] = [one + other for one, other in zip(known, changes, strict=True)]


def _hash(content: tuple[object, ...]) -> str:
    """Return what tells one request from another: the same in every process."""
    return hashlib.sha256(to_json(content).encode()).hexdigest()


def _answer_json(answer: Any) -> str:
    return to_json({"hold": answer.hold_id} if isinstance(answer, Hold) else answer)
