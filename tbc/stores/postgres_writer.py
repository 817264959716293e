"""What may be written in one transaction of a PostgreSQL store: gathered, and sent in one statement."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import isfinite
from typing import Any, Final

from tbc.errors import InvalidAmountError, KeyConflictError
from tbc.stores.chain import Fields
from tbc.stores.rows import AccountRow, AgentRow, HoldRow, Mark, OpRow, PoolRow
from tbc.stores.writer import Writer, as_json, unreadable

__all__ = ["PostgresWriter"]

_END_FIELDS: Final = ("hold_id", "state", "expires_at", "outcome", "lease", "loans")
_LINE_FIELDS: Final = (
    *("seq", "at", "kind", "axis", "agent", "peer", "allocated", "consumed", "held", "unpriced"),
    *("hold_id", "key", "note", "model", "estimated", "prev_hash", "hash"),
)
_Row = dict[str, Any]

_encode = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
).encode


class PostgresWriter(Writer):
    """Gathers the rows of one pool within a transaction of a `PostgresStore`; all are kept, or none.

    It is handed out by ``store.transaction(pool)`` and is of no use after that block. Nothing is sent before
    the block ends, so what is written is not read in it.
    """

    def __init__(self, path: str, ledger_id: str, pool: str, mark: Mark) -> None:
        super().__init__(path, ledger_id)
        self._pool = pool
        self._start = mark
        self._open = True
        self._pool_row: _Row | None = None
        self._agents: dict[str, _Row] = {}
        self._accounts: dict[tuple[str, str], _Row] = {}
        self._holds: dict[int, _Row] = {}
        self._ends_of_holds: dict[int, _Row] = {}
        self._ops: dict[str, _Row] = {}
        self._lines: list[_Row] = []

    # -- the end of a transaction --------------------------------------------------------------------------

    def arguments(self) -> tuple[object, ...] | None:
        """Return what `put_books` takes; ``None`` if nothing is to be written."""
        if not self._written:
            return None
        _, seq, head = self._ends[self._pool]
        return (
            self._pool,
            self._start.version,
            self._start.head,
            seq,
            head,
            None if self._pool_row is None else _as_json([self._pool_row]),
            _as_json(self._agents.values()),
            _as_json(self._accounts.values()),
            _as_json(self._holds.values()),
            _as_json(self._ends_of_holds.values()),
            _as_json(self._ops.values()),
            _as_json(self._lines),
        )

    def finish(self) -> None:
        """Take note that everything was written."""
        self._advance(self._pool)

    def retire(self) -> None:
        """Take no more rows: the transaction is over."""
        self._open = False

    # -- pools and their books ---------------------------------------------------------------------------

    def _find(self, pool: str) -> Mark | None:
        if not self._open:
            raise self._over()
        if pool != self._pool:
            raise InvalidAmountError("pool", pool, f"{self._pool!r}, the pool of this transaction")
        return self._start if self._start.version else None

    def _end(self, pool: str) -> Mark:
        if not self._open:
            raise self._over()
        return super()._end(pool)

    def _keep_pool(self, row: PoolRow, start: bytes) -> None:
        if self._find(row.pool) is None and row.pool not in self._ends:
            self._ends[row.pool] = Mark(0, 0, start)
        self._pool_row = _checked(("mode", "created_at", "terms"), (row.mode, row.created_at, row.terms))

    def _keep_agent(self, pool: str, row: AgentRow, version: int) -> None:
        self._agents[row.agent] = _checked(row._fields, row)

    def _keep_account(self, pool: str, row: AccountRow) -> None:
        self._accounts[row.agent, row.axis] = _checked(row._fields, row)

    def _keep_holds(self, pool: str, rows: list[HoldRow]) -> None:
        for row in rows:
            values = (*row[:11], as_json(row.parts or ()), as_json(row.loans or ()))
            self._holds[row.hold_id] = _checked(row._fields, values)
            self._ends_of_holds.pop(row.hold_id, None)

    def _keep_ends(self, pool: str, rows: list[HoldRow]) -> None:
        for hold_id, _, state, _, expires_at, _, _, _, _, outcome, lease, _, loans in rows:
            end = (hold_id, state, expires_at, outcome, lease, None if loans is None else as_json(loans))
            self._ends_of_holds[hold_id] = _checked(_END_FIELDS, end)

    def _keep_op(self, pool: str, row: OpRow) -> tuple[str, str] | None:
        first = self._ops.setdefault(row.key, _checked(row._fields, row))
        return first["kind"], first["request_hash"]

    def _keep_lines(self, pool: str, lines: list[Fields]) -> None:
        for *fields, previous, own in lines:
            self._lines.append(_checked(_LINE_FIELDS, (*fields, previous.hex(), own.hex())))

    def conflict(self, key: str, kind: str, request_hash: str) -> KeyConflictError:
        """Return the error for a key of this transaction that has another answer in the store."""
        now = self._ops[key]
        return KeyConflictError(key, (kind, request_hash), (now["kind"], now["request_hash"]))


def _checked(names: Iterable[str], values: Iterable[Any]) -> _Row:
    """Return values by name, of kinds that PostgreSQL can keep as they are."""
    row: _Row = {}
    for name, value in zip(names, values, strict=True):
        kind = type(value)
        if kind is str:
            if "\0" in value:
                raise InvalidAmountError(name, value, "text without NUL characters")
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise unreadable(error) from error
        elif kind is bool:
            value = int(value)
        elif kind is float:
            if not isfinite(value):
                value = None if value != value else str(value)  # as SQLite keeps them
        elif value is not None and not isinstance(value, int | str):
            raise InvalidAmountError(name, value, "a value that PostgreSQL can keep")
        row[name] = value
    return row


def _as_json(rows: Iterable[_Row]) -> str | None:
    """Return rows as the function reads them; ``None`` if there are none."""
    listed = list(rows)
    return _encode(listed) if listed else None
