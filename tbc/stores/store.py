"""What every store can do, and how it reads."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Self

from tbc.axes import TOKENS, USD, Axis, format_amount
from tbc.contract import ROOT
from tbc.errors import InvalidAmountError, StoreCorruptError, StoreError, StoreStaleError
from tbc.journal import ended_calls
from tbc.money import to_nano
from tbc.stores import statements
from tbc.stores.chain import PoolCheck, follow, genesis
from tbc.stores.rows import (
    AccountRow,
    AgentRow,
    EventRow,
    HoldRow,
    LineRow,
    LoanRow,
    Mark,
    News,
    OpRow,
    PartRow,
    PoolRow,
    PoolState,
    RunRow,
    StoreInfo,
)
from tbc.stores.writer import Writer

__all__ = ["Store"]

_PAGE: Final = 1_000
#: A statement with its values.
Question = tuple[str, tuple[object, ...]]
#: What answers questions with rows.
Answering = Callable[..., list[list[tuple[Any, ...]]]]


class Store(ABC):
    """Pools and their journals in a database.

    Attributes
    ----------
    path : str
        Where it is, without passwords.
    locks_first : bool
        Whether a transaction at a mark is the only one from its start on.
    """

    path: str
    locks_first: bool
    _ledger_id: str

    # -- writing -----------------------------------------------------------------------------------------

    @abstractmethod
    def transaction(
        self, pool: str | None = None, *, at: Mark | None = None
    ) -> AbstractContextManager[Writer]:
        """Return a block in which rows can be written: all of them are kept, or none."""

    # -- reading -----------------------------------------------------------------------------------------

    @abstractmethod
    def clock(self) -> float:
        """Return Unix seconds, the same for all who have the store open."""

    def runs(self) -> list[RunRow]:
        """Return the runs of workflows, oldest first; only a file keeps any."""
        return []

    def events(self, run: str, since: int = 0) -> Iterator[EventRow]:
        """Yield the events of a run after event `since`, oldest first; only a file keeps any."""
        return iter(())

    def numbers_from(self) -> int:
        """Return beyond what holds are numbered: no number of the time since a backup comes back."""
        rows = self._rows(statements.META, statements.NUMBERS_FROM)
        return int(rows[0][0]) if rows else 0

    def pools(self) -> list[PoolRow]:
        """Return the pools, oldest first."""
        return [PoolRow._make(row) for row in self._rows(statements.POOLS)]

    def load_pool(self, pool: str, *, recent: int = 1_000) -> PoolState | None:
        """Return everything to rebuild the books of a pool; ``None`` if there is no such pool.

        Parameters
        ----------
        pool : str
            Its name.
        recent : int, default 1_000
            How many of the last ended holds and answers to load; `find_hold` and `find_op` find older ones.
        """
        pools, agents, accounts, ops, opened, ended = self._ask(
            (statements.POOL, (pool,)),
            (statements.AGENTS, (pool,)),
            (statements.ACCOUNTS, (pool,)),
            (statements.LAST_OPS, (pool, recent)),
            (statements.OPEN_HOLDS, (pool,)),
            (statements.ENDED_HOLDS, (pool, recent)),
        )
        if not pools:
            return None
        return PoolState(
            PoolRow._make(pools[0]),
            tuple(_with_flags(AgentRow._make(row), "closed") for row in agents),
            tuple(map(_account, accounts)),
            self._holds(opened),
            self._holds(reversed(ended)),
            tuple(OpRow._make(row) for row in reversed(ops)),
        )

    def news(self, pool: str, since: Mark) -> News:
        """Return what has changed of a pool since a mark; within a transaction as that one sees it.

        Raises
        ------
        StoreStaleError
            If the pool has not come that far: other books are in its place.
        """
        mark = self._mark_of(pool, self._rows(statements.POOL, pool), since)
        if mark.version == since.version:
            return News(mark, (), (), (), ())
        with self._moment() as ask:
            pools, hashes, rows, agents = ask(
                (statements.POOL, (pool,)),
                (statements.HASH, (pool, since.seq)),
                (statements.NEW_LINES, (pool, since.seq)),
                (statements.NEW_AGENTS, (pool, since.version)),
            )
            if since.seq and hashes != [(since.head,)]:
                raise self._other_books(pool, mark, since)
            lines = [_with_flags(LineRow._make(row), "estimated") for row in rows]
            named = {(line.agent_name, line.axis): None for line in lines}
            named |= {(line.peer, line.axis): None for line in lines if line.peer is not None}
            accounts, holds = ask(
                (statements.ACCOUNTS_OF, (pool, list({name: None for name, _ in named}))),
                (statements.HOLDS_OF, (pool, list({line.hold_id: None for line in lines if line.hold_id}))),
            )
        known = [row for row in map(_account, accounts) if (row.agent, row.axis) in named]
        return News(
            self._mark_of(pool, pools, since),
            tuple(lines),
            tuple(_with_flags(AgentRow._make(row), "closed") for row in agents),
            tuple(known),
            self._holds(holds),
        )

    def find_hold(self, pool: str, *, hold_id: int | None = None, key: str | None = None) -> HoldRow | None:
        """Return the hold with this id, or the last one with this key."""
        if hold_id is not None:
            found = self._rows(statements.HOLD_BY_ID, pool, hold_id)
        else:
            found = self._rows(statements.HOLD_BY_KEY, pool, key)
        return next(iter(self._holds(found)), None)

    def find_op(self, pool: str, key: str) -> OpRow | None:
        """Return the first answer under a key."""
        return next((OpRow._make(row) for row in self._rows(statements.OP, pool, key)), None)

    def entries(self, pool: str, since: int = 0) -> Iterator[LineRow]:
        """Yield the lines of a pool's journal after line `since`, oldest first; others may write."""
        while page := self._rows(statements.PAGE, pool, since, _PAGE):
            yield from (_with_flags(LineRow._make(row), "estimated") for row in page)
            since = page[-1][0]

    def ended_calls(self, pool: str, since: int = 0) -> tuple[int, dict[str, int]]:
        """Return the last line of a pool's journal, and how many calls of every agent ended after `since`.

        Nobody has to wait for it, however long the journal is.
        """
        counts: Counter[str] = Counter()
        with self._aside() as connection:
            ends = [row[5] for row in connection.execute(statements.POOL, (pool,))]
            for agent, axis, kind, lines, calls in connection.execute(statements.CALLS, (pool, since)):
                counts[agent] += ended_calls(axis, kind, calls, lines)
        return max(ends, default=0), dict(counts)

    @abstractmethod
    def info(self) -> StoreInfo:
        """Return what the store is and how much it holds."""

    # -- looking after it ----------------------------------------------------------------------------------

    def verify(self, pool: str | None = None) -> list[PoolCheck]:
        """Check the chain of every journal (or of one), and every number of the books against it.

        The accounts must be the sums of the journal, what they hold the sum of the open holds, and capped be
        who is by the terms of the agents. Others may write meanwhile: what is checked is the moment of the
        call.

        Raises
        ------
        StoreCorruptError
            If the store is so damaged that it cannot be read.
        """
        with self._aside() as connection:
            asked = (statements.POOLS, ()) if pool is None else (statements.POOL, (pool,))
            rows = connection.execute(*asked).fetchall()
            if pool is not None and not rows:
                raise InvalidAmountError("pool", pool, "a pool of this store")
            return [self._check(connection, PoolRow._make(row)) for row in rows]

    def _check(self, connection: Any, pool: PoolRow) -> PoolCheck:
        """Check a pool's journal, and its books against it."""
        lines = connection.execute(statements.CHAIN, (pool.pool,))
        check, sums = follow(pool.pool, genesis(self._ledger_id, pool.pool), lines, pool.seq, pool.head)
        if not check.ok:
            return check
        try:
            return _check_books(connection, pool, check, sums)
        except (ValueError, TypeError, LookupError) as error:
            return check._replace(problem=f"its books cannot be read ({error})")

    @abstractmethod
    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store into a new file, where it is one."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the store; a second time changes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what a store answers with -------------------------------------------------------------------------

    @abstractmethod
    def _ask(self, *questions: Question) -> list[list[tuple[Any, ...]]]:
        """Return the rows that answer each question, all of one moment."""

    @abstractmethod
    def _moment(self) -> AbstractContextManager[Answering]:
        """Yield what answers questions one after the other, all of one moment."""

    @abstractmethod
    def _aside(self) -> AbstractContextManager[Any]:
        """Yield a connection that reads one moment for long, so that nobody has to wait for it."""

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self._ask((statement, values))[0]

    def _holds(self, rows: Iterable[tuple[Any, ...]]) -> tuple[HoldRow, ...]:
        holds = []
        for row in rows:
            try:
                holds.append(_hold(row))
            except (ValueError, TypeError) as error:
                raise StoreCorruptError(
                    self.path, f"hold {row[0]} cannot be read ({error})", "Restore a backup"
                ) from error
        return tuple(holds)

    def _mark_of(self, pool: str, rows: Sequence[tuple[Any, ...]], since: Mark) -> Mark:
        mark = Mark(*rows[0][4:7]) if rows else Mark()
        is_other = mark != since if mark.version == since.version else mark.seq < since.seq
        if is_other or mark.version < since.version:
            raise self._other_books(pool, mark, since)
        return mark

    def _other_books(self, pool: str, mark: Mark, since: Mark) -> StoreStaleError:
        return StoreStaleError(
            self.path,
            f"pool {pool!r}, at line {mark.seq}, does not go on from line {since.seq} as it was",
            "A restored past is not the pool that was opened: open it again",
        )

    def _error(self, reason: str, remedy: str) -> StoreError:
        return StoreError(self.path, reason, remedy)


def _with_flags(row: Any, *names: str) -> Any:
    """Return a row whose flags, kept as 0 and 1, are ``bool``."""
    return row._replace(**{name: bool(getattr(row, name)) for name in names})


def _account(row: tuple[Any, ...]) -> AccountRow:
    return AccountRow._make((*row[:2], bool(row[2]), *row[3:]))


def _hold(row: tuple[Any, ...]) -> HoldRow:
    """Return a hold with its parts and loans, which are kept as JSON."""
    *own, parts, loans = row
    return HoldRow._make(
        (*own, tuple(map(PartRow._make, json.loads(parts))), tuple(map(LoanRow._make, json.loads(loans))))
    )


def _check_books(
    connection: Any, pool: PoolRow, check: PoolCheck, sums: dict[tuple[str, str], list[int]]
) -> PoolCheck:
    """Check the books of a pool against the sums of its journal, and against the terms of its agents."""
    rows = [_account(row) for row in connection.execute(statements.ACCOUNTS, (pool.pool,))]
    accounts = {(row.agent, row.axis): [row.allocated, row.consumed, row.held, row.unpriced] for row in rows}
    nothing = [0, 0, 0, 0]
    for agent, axis in sorted(accounts.keys() | sums.keys()):
        booked, summed = accounts.get((agent, axis), nothing), sums.get((agent, axis), nothing)
        names = zip(("allocated", "consumed", "held", "unpriced"), booked, summed, strict=True)
        for name, ours, theirs in names:
            if ours != theirs:
                said = f"{name} of {agent!r} on {axis} is {ours}, and the journal says {theirs}"
                return check._replace(problem=said)
    held: Counter[tuple[str, str]] = Counter()
    for hold in map(_hold, connection.execute(statements.OPEN_HOLDS, (pool.pool,))):
        for part in hold.parts or ():
            held[hold.agent, part.axis] += part.amount
    for agent, axis in sorted(accounts.keys() | held.keys()):
        ours, theirs = accounts.get((agent, axis), nothing)[2], held[agent, axis]
        if ours != theirs:
            return check._replace(
                problem=f"{agent!r} holds {ours} {axis}, and its open holds sum to {theirs}"
            )
    agents = [AgentRow._make(row) for row in connection.execute(statements.AGENTS, (pool.pool,))]
    return check._replace(problem=_against_terms(pool, agents, rows))


def _against_terms(pool: PoolRow, agents: Sequence[AgentRow], rows: Sequence[AccountRow]) -> str:
    """Return in words which account is not as the terms of the agents say; empty if all are."""
    capped = {(row.agent, row.axis): row.capped for row in rows}
    parents = {agent.agent: agent.parent for agent in agents}
    terms = {agent.agent: json.loads(agent.terms) for agent in agents}
    terms[ROOT] = {f"max_{axis}": cap for axis, cap in dict(json.loads(pool.terms)).items()}
    closed = {agent.agent for agent in agents if agent.closed}

    def is_capped(agent: str | None, axis: str) -> bool:
        while agent is not None and (agent, axis) not in capped:  # who has no row is as the one above
            agent = parents[agent]
        return agent is not None and capped[agent, axis]

    for row in rows:
        said, cap = terms[row.agent], f"max_{row.axis}"
        if row.agent in closed or cap not in said:
            continue
        if row.capped != (said[cap] is not None or is_capped(parents[row.agent], row.axis)):
            which = "capped" if row.capped else "uncapped"
            return f"{row.agent!r} is {which} on {row.axis}, and the terms say otherwise"
        axis: Axis = row.axis  # type: ignore[assignment]  # a store keeps no others
        reserves = {TOKENS: said.get("min_reserve", 0), USD: to_nano("usd", said.get("min_reserve_usd") or 0)}
        ours, theirs = (format_amount(axis, n) for n in (row.min_reserve, reserves.get(axis, 0)))
        if ours != theirs:
            return f"{row.agent!r} keeps {ours}, and its terms say {theirs}"
    return ""
