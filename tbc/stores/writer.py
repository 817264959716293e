"""What may be written in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tbc.errors import InvalidAmountError, KeyConflictError, StoreError, StoreStaleError
from tbc.stores import schema
from tbc.stores.chain import fields_of, genesis, link
from tbc.stores.rows import (
    AccountRow,
    AgentRow,
    EventRow,
    HoldRow,
    Line,
    Mark,
    OpRow,
    PoolRow,
    RunRow,
    StepRow,
    check_id,
    check_int,
)

__all__ = ["Writer"]


class Writer:
    """Writes rows within a transaction of a `SqliteStore`; all of them are kept, or none.

    It is handed out by ``store.transaction()`` and is of no use after that block.
    """

    def __init__(self, path: str, ledger_id: str, connection: Any) -> None:
        self._path = path
        self._ledger_id = ledger_id
        self._connection: Any = connection
        self._ends: dict[str, Mark] = {}
        self._pool_of: dict[str, str] = {}

    # -- pools and their books ---------------------------------------------------------------------------

    def mark(self, pool: str) -> Mark:
        """Return how far a pool has come, other processes' lines included; its version is the one before."""
        return self._end(pool)

    def put_pool(self, row: PoolRow) -> None:
        """Keep a pool's mode and terms; `version`, `seq` and `head` are the store's own."""
        check_id("pool", row.pool, in_paths=True)
        start = genesis(self._ledger_id, row.pool)
        self._execute(schema.PUT_POOL, (row.pool, row.mode, row.created_at, row.terms, start))
        self._end(row.pool)

    def put_agents(self, pool: str, rows: Iterable[AgentRow]) -> None:
        """Keep agents' places and terms."""
        version = self._end(pool).version + 1
        for row in rows:
            check_id("agent_name", row.agent)
            self._execute(schema.PUT_AGENT, (pool, *row, version))

    def put_accounts(self, pool: str, rows: Iterable[AccountRow]) -> None:
        """Keep accounts' numbers."""
        self._end(pool)
        for row in rows:
            for name, amount in zip(row._fields[3:], row[3:], strict=True):
                check_int(name, amount)
            self._execute(schema.PUT_ACCOUNT, (pool, *row))

    def put_holds(self, pool: str, rows: Iterable[HoldRow]) -> None:
        """Keep holds with their parts and, if they are told, with these loans instead of the ones before."""
        self._end(pool)
        for row in rows:
            if row.key is not None:
                check_id("key", row.key)
            ours = (pool, check_int("hold_id", row.hold_id))
            self._execute(schema.PUT_HOLD, (pool, *row[:10]))
            for part in row.parts:
                check_int("amount", part.amount)
                check_int("granted", part.granted)
                self._execute(schema.PUT_PART, (*ours, *part))
            if row.loans is None:
                continue
            self._execute(schema.DROP_LOANS, ours)
            for loan in row.loans:
                check_int("amount", loan.amount)
                self._execute(schema.PUT_LOAN, (*ours, *loan))

    def put_op(self, pool: str, row: OpRow) -> None:
        """Keep the first answer under a key; the same request again changes nothing.

        Raises
        ------
        KeyConflictError
            If the key has the answer to another request.
        """
        self._end(pool)
        check_id("key", row.key)
        first = self._execute(schema.OP, (pool, row.key)).fetchone()
        if first is None:
            self._execute(schema.PUT_OP, (pool, *row))
        elif first[1:3] != (row.kind, row.request_hash):
            raise KeyConflictError(row.key, first[1:3], (row.kind, row.request_hash))

    def append(self, pool: str, lines: Iterable[Line]) -> None:
        """Add lines to a pool's journal; their numbers go on where it ends.

        Raises
        ------
        StoreStaleError
            If they do not: another process has added lines since this one looked.
        """
        version, seq, head = self._end(pool)
        for line in lines:
            fields = fields_of(line)
            if fields[0] != seq + 1:
                raise StoreStaleError(
                    self._path,
                    f"the journal of pool {pool!r} ends with line {seq}; line {fields[0]} cannot follow it",
                    "Another process writes to this pool: load_pool() again, then repeat the operation",
                )
            own_hash = link(head, fields)
            self._execute(schema.APPEND, (pool, *fields, head, own_hash))
            seq, head = fields[0], own_hash
        self._ends[pool] = Mark(version, seq, head)

    # -- runs --------------------------------------------------------------------------------------------

    def put_run(self, row: RunRow) -> None:
        """Keep a run; its pool stays the one it began with."""
        check_id("run", row.run, in_paths=True)
        self._end(row.pool)
        self._execute(schema.PUT_RUN, row)

    def put_steps(self, run: str, rows: Iterable[StepRow]) -> None:
        """Keep steps of a run; new ones come after those that it has."""
        self._touch_run(run)
        for row in rows:
            check_id("step", row.step)
            if row.item:
                check_id("item", row.item)
            self._execute(schema.PUT_STEP, (run, *row))

    def put_event(self, run: str, at: float, kind: str, body: str) -> EventRow:
        """Add an event to a run and return it with its number."""
        self._touch_run(run)
        check_id("kind", str(kind))
        (seq,) = self._execute(schema.PUT_EVENT, (run, at, str(kind), body)).fetchone()
        return EventRow(seq, at, str(kind), body)

    # -- the end of a transaction --------------------------------------------------------------------------

    def finish(self) -> None:
        """Write down how far the pools have come that were written to."""
        for pool, (version, seq, head) in self._ends.items():
            self._execute(schema.TOUCH_POOL, (seq, head, pool))
            self._ends[pool] = Mark(version + 1, seq, head)

    def retire(self) -> None:
        """Let go of the connection: the transaction is over."""
        self._connection = None

    def _execute(self, statement: str, values: Sequence[Any]) -> Any:
        if self._connection is None:
            raise StoreError(self._path, "the transaction is over", "Open another one")
        try:
            return self._connection.execute(statement, values)
        except UnicodeEncodeError as error:
            raise InvalidAmountError("text", error.object, "text that can be kept as UTF-8") from error
        except (TypeError, OverflowError) as error:
            raise InvalidAmountError(
                "row", tuple(values), f"of values that SQLite can keep ({error})"
            ) from error

    def _end(self, pool: str) -> Mark:
        """Return how far a pool has come."""
        end = self._ends.get(pool)
        if end is None:
            row = self._execute(schema.POOL, (pool,)).fetchone()
            if row is None:
                raise InvalidAmountError("pool", pool, "a pool of this store: put_pool() comes first")
            end = self._ends[pool] = Mark(*row[4:7])
        return end

    def _touch_run(self, run: str) -> None:
        pool = self._pool_of.get(run)
        if pool is None:
            row = self._execute(schema.RUN, (run,)).fetchone()
            if row is None:
                raise InvalidAmountError("run", run, "a run of this store: put_run() comes first")
            pool = self._pool_of[run] = row[1]
        self._end(pool)
