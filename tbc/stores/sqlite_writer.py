"""What may be written in one transaction of a SQLite file: pools and their books, and runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tbc.errors import InvalidAmountError
from tbc.stores import schema, statements
from tbc.stores.chain import Fields
from tbc.stores.rows import (
    AccountRow,
    AgentRow,
    EventRow,
    HoldRow,
    Mark,
    OpRow,
    PoolRow,
    RunRow,
    StepRow,
    check_id,
)
from tbc.stores.writer import Writer, as_json, unreadable

__all__ = ["SqliteWriter"]


class SqliteWriter(Writer):
    """Writes rows within a transaction of a `SqliteStore`; all of them are kept, or none.

    It is handed out by ``store.transaction()`` and is of no use after that block.
    """

    def __init__(self, path: str, ledger_id: str, connection: Any) -> None:
        super().__init__(path, ledger_id)
        self._connection: Any = connection
        self._pool_of: dict[str, str] = {}

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

    def _touch_run(self, run: str) -> None:
        pool = self._pool_of.get(run)
        if pool is None:
            row = self._execute(schema.RUN, (run,)).fetchone()
            if row is None:
                raise InvalidAmountError("run", run, "a run of this store: put_run() comes first")
            pool = self._pool_of[run] = row[1]
        self._end(pool)

    # -- the end of a transaction --------------------------------------------------------------------------

    def finish(self) -> None:
        """Write down how far the pools have come that were written to."""
        for pool in self._written:
            _, seq, head = self._ends[pool]
            self._execute(schema.TOUCH_POOL, (seq, head, pool))
            self._advance(pool)

    def retire(self) -> None:
        """Let go of the connection: the transaction is over."""
        self._connection = None

    # -- pools and their books ---------------------------------------------------------------------------

    def _find(self, pool: str) -> Mark | None:
        row = self._execute(schema.POOL_END, (pool,)).fetchone()
        return None if row is None else Mark._make(row)

    def _keep_pool(self, row: PoolRow, start: bytes) -> None:
        self._execute(schema.PUT_POOL, (row.pool, row.mode, row.created_at, row.terms, start))

    def _keep_agent(self, pool: str, row: AgentRow, version: int) -> None:
        self._execute(schema.PUT_AGENT, (pool, *row, version))

    def _keep_account(self, pool: str, row: AccountRow) -> None:
        values = (pool, *row)
        self._execute(schema.SET_ACCOUNT, values)
        if not self._connection.changes():
            self._execute(schema.ADD_ACCOUNT, values)

    def _keep_holds(self, pool: str, rows: list[HoldRow]) -> None:
        self._execute_many(
            schema.PUT_HOLD,
            [(pool, *row[:11], as_json(row.parts or ()), as_json(row.loans or ())) for row in rows],
        )

    def _keep_ends(self, pool: str, rows: list[HoldRow]) -> None:
        before = self._connection.total_changes()
        self._execute_many(
            schema.END_HOLD,
            [
                (pool, hold_id, state, expires_at, outcome, lease, None if loans is None else as_json(loans))
                for hold_id, _, state, _, expires_at, _, _, _, _, outcome, lease, _, loans in rows
            ],
        )
        if self._connection.total_changes() - before != len(rows):
            numbers = [row.hold_id for row in rows]
            raise InvalidAmountError("hold_id", numbers, "holds of this pool, or ones with their parts")

    def _keep_op(self, pool: str, row: OpRow) -> tuple[str, str] | None:
        first = self._execute(statements.OP, (pool, row.key)).fetchone()
        if first is None:
            self._execute(schema.PUT_OP, (pool, *row))
            return None
        return first[1], first[2]

    def _keep_lines(self, pool: str, lines: list[Fields]) -> None:
        self._execute_many(schema.APPEND, [(pool, *line) for line in lines])

    def _execute(self, statement: str, values: Sequence[Any]) -> Any:
        return self._do("execute", statement, values)

    def _execute_many(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        self._do("executemany", statement, rows)

    def _do(self, how: str, statement: str, values: Sequence[Any]) -> Any:
        if self._connection is None:
            raise self._over()
        try:
            return getattr(self._connection, how)(statement, values)
        except UnicodeEncodeError as error:
            raise unreadable(error) from error
        except (TypeError, OverflowError) as error:
            raise InvalidAmountError(
                "row", tuple(values), f"of values that SQLite can keep ({error})"
            ) from error
