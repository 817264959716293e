"""What may be written of a pool in one transaction."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Final

from tbc.errors import InvalidAmountError, KeyConflictError, StoreError, StoreStaleError
from tbc.stores.chain import Fields, fields_of, genesis, link
from tbc.stores.rows import (
    AccountRow,
    AgentRow,
    HoldRow,
    Line,
    Mark,
    OpRow,
    PartRow,
    PoolRow,
    check_id,
    check_int,
    check_ints,
)

__all__ = ["Writer"]


_PART: Final = PartRow._fields[1:]

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Writer(ABC):
    """Writes rows within a transaction of a `Store`; all of them are kept, or none.

    It is handed out by ``store.transaction()`` and is of no use after that block.
    """

    def __init__(self, path: str, ledger_id: str) -> None:
        self._path = path
        self._ledger_id = ledger_id
        self._ends: dict[str, Mark] = {}
        self._written: set[str] = set()
        #: Whether it has gone to a server, which may write it although nobody heard of the end.
        self.is_sent = False

    def mark(self, pool: str) -> Mark:
        """Return how far a pool has come, other processes' lines included; `Mark()` if there is none.

        Its version is the one before this transaction; after the block it is the new one.
        """
        end = self._ends.get(pool)
        if end is None:
            end = self._find(pool)
            if end is None:
                return Mark()
            self._ends[pool] = end
        return end

    def put_pool(self, row: PoolRow) -> None:
        """Keep a pool's mode and terms; `version`, `seq` and `head` are the store's own."""
        check_id("pool", row.pool, in_paths=True)
        self._keep_pool(row, genesis(self._ledger_id, row.pool))
        self._end(row.pool)

    def put_agents(self, pool: str, rows: Iterable[AgentRow]) -> None:
        """Keep agents' places and terms."""
        version = self._end(pool).version + 1
        for row in rows:
            check_id("agent_name", row.agent)
            self._keep_agent(pool, row, version)

    def put_accounts(self, pool: str, rows: Iterable[AccountRow]) -> None:
        """Keep accounts' numbers."""
        self._end(pool)
        for row in rows:
            check_ints(row._fields[3:], row[3:])
            self._keep_account(pool, row)

    def put_holds(self, pool: str, rows: Iterable[HoldRow]) -> None:
        """Keep holds with their parts and loans, or how those have ended that the store has.

        Raises
        ------
        InvalidAmountError
            If a hold without its parts is not one of the pool. A store that is sent everything at the end of
            the block raises a `StoreError` there.
        """
        self._end(pool)
        whole: list[HoldRow] = []
        ends: list[HoldRow] = []
        for row in rows:
            if row.key is not None:
                check_id("key", row.key)
            check_int("hold_id", row.hold_id)
            for part in row.parts or ():
                check_ints(_PART, part[1:])
            for loan in row.loans or ():
                check_int("amount", loan.amount)
            (ends if row.parts is None else whole).append(row)
        if whole:
            self._keep_holds(pool, whole)
        if ends:
            self._keep_ends(pool, ends)

    def put_op(self, pool: str, row: OpRow) -> None:
        """Keep the first answer under a key; the same request again changes nothing.

        Raises
        ------
        KeyConflictError
            If the key has the answer to another request. A store that is sent everything at the end of the
            block raises it there.
        """
        self._end(pool)
        check_id("key", row.key)
        first = self._keep_op(pool, row)
        if first is not None and first != (row.kind, row.request_hash):
            raise KeyConflictError(row.key, first, (row.kind, row.request_hash))

    def append(self, pool: str, lines: Iterable[Line]) -> None:
        """Add lines to a pool's journal; their numbers go on where it ends.

        Raises
        ------
        StoreStaleError
            If they do not: another process has added lines since this one looked.
        """
        version, seq, head = self._end(pool)
        kept = []
        for line in lines:
            fields = fields_of(line)
            if fields[0] != seq + 1:
                raise StoreStaleError(
                    self._path,
                    f"the journal of pool {pool!r} ends with line {seq}; line {fields[0]} cannot follow it",
                    "Another process writes to this pool: load_pool() again, then repeat the operation",
                )
            own_hash = link(head, fields)
            kept.append((*fields, head, own_hash))
            seq, head = fields[0], own_hash
        if kept:
            self._keep_lines(pool, kept)
        self._ends[pool] = Mark(version, seq, head)

    # -- what a store does with them -----------------------------------------------------------------------

    @abstractmethod
    def _find(self, pool: str) -> Mark | None:
        """Return how far the pool has come in the store; ``None`` if there is none."""

    @abstractmethod
    def _keep_pool(self, row: PoolRow, start: bytes) -> None:
        """Keep a pool whose journal begins after `start`."""

    @abstractmethod
    def _keep_agent(self, pool: str, row: AgentRow, version: int) -> None: ...

    @abstractmethod
    def _keep_account(self, pool: str, row: AccountRow) -> None: ...

    @abstractmethod
    def _keep_holds(self, pool: str, rows: list[HoldRow]) -> None:
        """Keep whole holds."""

    @abstractmethod
    def _keep_ends(self, pool: str, rows: list[HoldRow]) -> None:
        """Keep what can change of holds that are there."""

    @abstractmethod
    def _keep_op(self, pool: str, row: OpRow) -> tuple[str, str] | None:
        """Keep an answer, unless there is one; return kind and hash of that one, if it is known."""

    @abstractmethod
    def _keep_lines(self, pool: str, lines: list[Fields]) -> None:
        """Keep lines: their fields, the hash before them and their own."""

    def _end(self, pool: str) -> Mark:
        """Return how far a pool has come that is about to be written to."""
        if pool in self._written:
            return self._ends[pool]
        end = self.mark(pool)
        if pool not in self._ends:
            raise InvalidAmountError("pool", pool, "a pool of this store: put_pool() comes first")
        self._written.add(pool)
        return end

    def _advance(self, pool: str) -> None:
        version, seq, head = self._ends[pool]
        self._ends[pool] = Mark(version + 1, seq, head)

    def _over(self) -> StoreError:
        return StoreError(self._path, "the transaction is over", "Open another one")


def as_json(parts: Sequence[tuple[object, ...]]) -> str:
    """Return the parts or the loans of a hold as they are kept."""
    return _encode(parts) if parts else "[]"


def unreadable(error: UnicodeEncodeError) -> InvalidAmountError:
    """Return the error for text with halves of characters."""
    return InvalidAmountError("text", error.object, "text that can be kept as UTF-8")
