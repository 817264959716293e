"""A PostgreSQL database that keeps pools and their journals for many machines.

A pool is one ordered log. Books are decided on in memory at a `Mark`, and written if the pool is still there:
one statement, one round trip, and never half of it. Who would rather wait than decide again takes the pool
first. A pool is written by one transaction after the other; pools do not wait for each other.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

from tbc.errors import (
    InvalidAmountError,
    StoreAwayError,
    StoreBusyError,
    StoreCorruptError,
    StoreFullError,
    StoreMissingError,
    StoreStaleError,
    StoreUnknownError,
)
from tbc.stores import postgres_schema, statements
from tbc.stores.postgres_writer import PostgresWriter
from tbc.stores.rows import Mark, StoreInfo
from tbc.stores.schema import checksum
from tbc.stores.store import Answering, Question, Store

if TYPE_CHECKING:
    from tbc.stores.postgres_connections import Connection, Connections

__all__ = ["PostgresStore"]

_OLDEST: Final = 15
_TRIES: Final = 3
_BATCH: Final = 2_000
_STATEMENT_S: Final = 5
_IDLE_S: Final = 10
_BUSY: Final = frozenset({"55P03", "57014", "40001", "40P01", "53300"})
_AGAIN: Final = frozenset({"40001", "40P01"})
_FULL: Final = frozenset({"53100", "53200"})
_POOLED: Final = frozenset({"26000", "42P05"})
_KEY_CONFLICT: Final = "TBC01"
_RESTORE: Final = "Stop writing to it, keep a copy of it, and restore a backup"

_PUT: Final = """
    SELECT put_books(%s, %s::bigint, %s::bytea, %s::bigint, %s::bytea, %s::jsonb, %s::jsonb, %s::jsonb,
        %s::jsonb, %s::jsonb, %s::jsonb, %s::jsonb)"""
_TAKE: Final = "SELECT version, seq, head FROM pools WHERE pool = %s FOR UPDATE"
_TAKE_NAME: Final = "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || ' ' || %s, 1))"
_HAS_META: Final = "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = 'meta'"
_READ_ONE_MOMENT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_NUMBER_ON: Final = """
    INSERT INTO meta VALUES (%s, (extract(epoch FROM clock_timestamp())::bigint * 1048576)::text)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value"""
_SIZE: Final = """
    SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"""


class PostgresStore(Store):
    """Pools and journals in one schema of a PostgreSQL database, version 15 or later.

    Parameters
    ----------
    url : str
        Where it is, as libpq takes it: ``"postgresql://user:password@host/database"``.
    schema : str, default "tbc"
        The schema that holds the tables; stores with other schemas do not see each other.
    create : bool, default True
        Whether to make schema and tables if there are none.
    connections : int, default 4
        How many transactions of this process may run at once; more wait.
    lock_timeout_s : float, default 2.0
        How long to wait for others that write to the same pool.

    Raises
    ------
    StoreAwayError
        If the server cannot be reached.
    StoreError
        If the database cannot be used; the message says why and what to do.

    Notes
    -----
    Thread-safe. A forked child may not use the store of its parent: it opens its own. What was written is on
    the server's disk when the block has been left, as far as the server's own settings (``fsync``) say so.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = "tbc",
        create: bool = True,
        connections: int = 4,
        lock_timeout_s: float = 2.0,
    ) -> None:
        self.path = "postgresql://"
        self.schema: Final = _check_name(schema)
        if type(connections) is not int or connections < 1:
            raise InvalidAmountError("connections", connections, "an int of at least 1")
        self._lock_ms = max(1, int(lock_timeout_s * 1000))
        self._pid = os.getpid()
        self._mine = threading.local()
        self._psycopg, connecting = self._import_psycopg()
        self._connections: Connections = connecting(url, connections, self._set_up)
        self.path = self._connections.path
        connection = self._connections.connect()
        try:
            with self._typed(connection):
                self._check_server(connection)
                self._set_up(connection)
                self._ledger_id = self._check_and_migrate(connection, create)
        finally:
            connection.close()
        self._connections.open()

    #: A transaction at a mark is only known to have been the next one when it has ended.
    locks_first = False

    # -- writing -----------------------------------------------------------------------------------------

    def transaction(
        self, pool: str | None = None, *, at: Mark | None = None
    ) -> AbstractContextManager[PostgresWriter]:
        """Return a block in which rows of a pool can be written: all of them are kept, or none.

        What was written is sent when the block ends; what is read in it does not show it.

        Parameters
        ----------
        pool : str
            The pool that will be written to.
        at : Mark, optional
            How far the caller knows it. Then nobody waits: if the pool is no longer there when the block
            ends, nothing is written. Without it the transaction takes the pool, others that write to it
            wait, and `Writer.mark` tells the truth.

        Raises
        ------
        StoreStaleError
            The pool has moved on from `at`: nothing was written.
        StoreBusyError, StoreFullError, StoreAwayError, StoreError
            Nothing was written.
        StoreUnknownError
            The connection was lost after the rows were sent: whether they were written is not known.
        KeyConflictError
            A key has the answer to another request: nothing was written.
        """
        if pool is None:
            raise InvalidAmountError("pool", None, "the name of the pool that will be written to")
        return self._patient(pool) if at is None else self._optimistic(pool, at)

    @contextmanager
    def _optimistic(self, pool: str, at: Mark) -> Generator[PostgresWriter]:
        with self._block():
            writer = PostgresWriter(self.path, self._ledger_id, pool, at)
            try:
                yield writer
                arguments = writer.arguments()
                if arguments is not None:
                    with self._connections.taken() as connection, self._typed(connection, writer, sent=True):
                        writer.is_sent = True
                        self._put(connection, pool, at, arguments, tries=_TRIES)
                    writer.finish()
            finally:
                writer.retire()

    @contextmanager
    def _patient(self, pool: str) -> Generator[PostgresWriter]:
        with self._block(), self._connections.taken() as connection:
            with self._typed(connection):
                connection.execute("BEGIN")
                mark = self._take(connection, pool)
            writer = PostgresWriter(self.path, self._ledger_id, pool, mark)
            self._mine.connection = connection
            try:
                yield writer
                arguments = writer.arguments()
                if arguments is not None:
                    with self._typed(connection, writer):
                        self._put(connection, pool, mark, arguments, tries=1)
                with self._typed(connection, sent=arguments is not None):
                    writer.is_sent = arguments is not None
                    connection.execute("COMMIT")
                if arguments is not None:
                    writer.finish()
            finally:
                self._mine.connection = None
                writer.retire()

    def _take(self, connection: Connection, pool: str) -> Mark:
        """Lock a pool against others that write to it, and return how far it has come."""
        row = connection.execute(_TAKE, (pool,)).fetchone()
        if row is None:  # a row that is not there cannot be locked; its name can
            connection.execute(_TAKE_NAME, (pool,))
            row = connection.execute(_TAKE, (pool,)).fetchone()
        return Mark() if row is None else Mark._make(row)

    def _put(
        self, connection: Connection, pool: str, at: Mark, arguments: tuple[object, ...], tries: int
    ) -> None:
        while True:
            tries -= 1
            try:
                row = connection.execute(_PUT, arguments, prepare=True).fetchone()
            except self._psycopg.Error as error:
                if tries and error.sqlstate in _AGAIN and not connection.closed:
                    continue
                raise
            if row is None or not row[0]:
                raise StoreStaleError(
                    self.path,
                    f"pool {pool!r} is no longer at version {at.version}, line {at.seq}; nothing was written",
                    "Another process writes to this pool: read its news(), then repeat the operation",
                )
            return

    # -- reading -----------------------------------------------------------------------------------------

    def clock(self) -> float:
        """Return the server's time, in Unix seconds."""
        return float(self._rows("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0])

    def info(self) -> StoreInfo:
        """Return what the store is and how much it holds."""
        counts, sizes, version, kept = self._ask(
            (statements.COUNTS, ()),
            (_SIZE, ()),
            ("SHOW server_version", ()),
            ("SELECT key, value FROM meta", ()),
        )
        meta = dict(kept)
        ((pools, lines),), ((size,),) = counts, sizes
        return StoreInfo(
            path=self.path,
            ledger_id=self._ledger_id,
            engine=f"PostgreSQL {version[0][0].split()[0]}",
            schema=_version_of(meta),
            epoch=int(meta["restore_epoch"]),
            created_at=float(meta["created_at"]),
            size=size,
            log_size=0,
            pools=pools,
            runs=0,
            lines=lines,
        )

    # -- looking after it ----------------------------------------------------------------------------------

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Raise: a server is backed up with its own tools.

        Raises
        ------
        StoreError
            Always; it names them.
        """
        raise self._error(
            "a PostgreSQL database is not copied into a file",
            "Use pg_dump or a base backup, and call new_epoch() on what was restored from it",
        )

    def new_epoch(self) -> int:
        """Count up and return the epoch: these books were restored from a backup.

        Managers that are opened afterwards number their holds beyond what the time since the backup has used.
        """
        self._check_ours()
        with self._connections.taken() as connection, self._typed(connection, sent=True):
            connection.execute(_NUMBER_ON, (statements.NUMBERS_FROM,))
            row = connection.execute(
                "UPDATE meta SET value = (value::bigint + 1)::text WHERE key = 'restore_epoch'"
                " RETURNING value"
            ).fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Let go of the connections; a second time changes nothing."""
        if self._pid != os.getpid() or self._connections.is_closed:
            return
        if getattr(self._mine, "writing", False):
            raise self._error("a transaction is open", "Leave its block before close()")
        self._connections.close()

    def __repr__(self) -> str:
        return f"<PostgresStore {self.path!r} schema={self.schema!r}>"

    # -- opening -------------------------------------------------------------------------------------------

    def _import_psycopg(self) -> tuple[Any, type[Connections]]:
        try:
            import psycopg

            from tbc.stores.postgres_connections import Connections
        except ImportError as error:
            raise self._error(
                "psycopg is not installed", 'Install it with:  pip install "tbc[postgres]"'
            ) from error
        return psycopg, Connections

    def _check_server(self, connection: Connection) -> None:
        version = connection.info.server_version
        if version < _OLDEST * 10_000:
            raise self._error(
                f"that is PostgreSQL {version // 10_000}", f"Version {_OLDEST} or later is needed"
            )
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise self._error(f"its text is kept as {encoding}", "Make a database with the encoding UTF8")

    def _set_up(self, connection: Connection) -> None:
        """Pin what the statements rely on."""
        settings = {
            "search_path": f'"{self.schema}"',
            "default_transaction_isolation": "read committed",
            "synchronous_commit": "on",
            "lock_timeout": str(self._lock_ms),
            "statement_timeout": str(_STATEMENT_S * 1000),
            "idle_in_transaction_session_timeout": str(_IDLE_S * 1000),
            "TimeZone": "UTC",
        }
        asked = ", ".join("set_config(%s, %s, false)" for _ in settings)
        values = [each for setting in settings.items() for each in setting]
        connection.execute(f"SELECT {asked}", values, prepare=False)

    def _check_and_migrate(self, connection: Connection, create: bool) -> str:
        """Bring the tables up to date and return the store's id."""
        meta = self._meta(connection)
        if not meta and not create:
            raise StoreMissingError(
                self.path,
                f"there is no schema {self.schema!r} with tables of tbc",
                "Check the address; what writes there makes the tables",
            )
        self._check_tables(meta)
        texts = postgres_schema.POSTGRES_MIGRATIONS
        while _version_of(meta) < len(texts):
            with connection.transaction():
                connection.execute("SET LOCAL statement_timeout = 0")
                connection.execute(_TAKE_NAME.replace("current_schema()", "%s"), (self.schema, "tables"))
                meta = self._meta(connection)  # another process may have been faster
                number = _version_of(meta) + 1
                if number > len(texts):
                    break
                if number == 1:
                    connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"')
                text = texts[number - 1]
                connection.execute(text, prepare=False)
                connection.execute(
                    "INSERT INTO meta VALUES (%s, %s)", (f"migration_{number}", checksum(text))
                )
            meta = self._meta(connection)
        self._check_tables(meta)
        return meta["ledger_id"]

    def _meta(self, connection: Connection) -> dict[str, str]:
        # Not to_regclass(): within a transaction it may not see what others have made since it began.
        if connection.execute(_HAS_META, (self.schema,)).fetchone() is None:
            return {}
        return dict(connection.execute(f'SELECT key, value FROM "{self.schema}".meta').fetchall())

    def _check_tables(self, meta: dict[str, str]) -> None:
        if not meta:
            return
        texts = postgres_schema.POSTGRES_MIGRATIONS
        version = _version_of(meta)
        if version > len(texts):
            raise self._error(
                f"its tables are of version {version}, and this tbc knows up to {len(texts)}",
                "Upgrade tbc: pip install -U tbc",
            )
        if version < 1 or not meta.get("ledger_id"):
            raise StoreCorruptError(self.path, f"schema {self.schema!r} has no id of tbc", _RESTORE)
        for number, text in enumerate(texts[:version], start=1):
            if meta.get(f"migration_{number}") != checksum(text):
                raise StoreCorruptError(
                    self.path, f"its tables of version {number} were made by other statements", _RESTORE
                )

    # -- using the connections -----------------------------------------------------------------------------

    def _check_ours(self) -> None:
        """Refuse to use connections that are not ours, or not any more."""
        if self._pid != os.getpid():
            raise self._error("it was opened before the fork", "Open a store of its own in the child process")
        if self._connections.is_closed:
            raise self._error("it is closed", "Open it again")

    @contextmanager
    def _block(self) -> Generator[None]:
        """Refuse a transaction within a transaction."""
        self._check_ours()
        if getattr(self._mine, "writing", False):
            raise self._error("a transaction is open in this thread", "Write in that one; do not nest them")
        self._mine.writing = True
        try:
            yield
        finally:
            self._mine.writing = False

    def _ask(self, *questions: Question) -> list[list[tuple[Any, ...]]]:
        with self._moment(alone=len(questions) == 1) as ask:
            return ask(*questions)

    @contextmanager
    def _moment(self, *, alone: bool = False) -> Generator[Answering]:
        self._check_ours()
        taken = getattr(self._mine, "connection", None)
        if taken is not None:  # the pool's row is locked: its other rows stay as they are
            with self._typed(taken):
                yield partial(_answers, taken)
            return
        with self._connections.taken() as connection, self._typed(connection):
            if not alone:
                connection.execute(_READ_ONE_MOMENT)
            yield partial(_answers, connection)
            if not alone:
                connection.execute("COMMIT")

    @contextmanager
    def _aside(self) -> Generator[Any]:
        self._check_ours()
        with _closing(self._connections.connect()) as connection, self._typed(connection):
            self._set_up(connection)
            connection.execute(_READ_ONE_MOMENT)
            connection.execute("SET LOCAL statement_timeout = 0")
            with ExitStack() as cursors:
                yield _Reader(connection, cursors)

    # -- errors ----------------------------------------------------------------------------------------------

    @contextmanager
    def _typed(
        self, connection: Connection, writer: PostgresWriter | None = None, *, sent: bool = False
    ) -> Generator[None]:
        """Turn what PostgreSQL says into errors of `tbc`; `sent`: what is sent here is for good."""
        try:
            yield
        except self._psycopg.Error as error:
            state = error.sqlstate
            if connection.info.transaction_status == self._psycopg.pq.TransactionStatus.ACTIVE:
                connection.close()  # it was left in the middle of an answer
                interrupt = error.__context__
                if interrupt is not None and not isinstance(interrupt, self._psycopg.Error):
                    raise interrupt from None
            if connection.closed:
                if sent:
                    raise StoreUnknownError(
                        self.path,
                        "the connection was lost before the answer came: whether it was written is not known",
                        "Ask again with the same key",
                    ) from error
                raise StoreAwayError(
                    self.path, "the connection was lost; nothing was written", "Try again"
                ) from error
            if state == _KEY_CONFLICT and writer is not None:
                raise writer.conflict(*json.loads(error.diag.message_detail)) from error
            if state in _BUSY:
                raise StoreBusyError(
                    self.path,
                    f"others kept it busy for too long ({error.diag.message_primary}); nothing was written",
                    "Try again",
                ) from error
            if state in _FULL:
                raise StoreFullError(
                    self.path,
                    f"there is no room left ({error.diag.message_primary}); nothing was written",
                    "Make room and try again",
                ) from error
            said = error.diag.message_primary or type(error).__name__
            if state is not None and state[:2] in ("21", "22", "23"):
                raise self._error(
                    f"a row breaks a rule of the tables ({said})", "Nothing was written"
                ) from error
            remedy = "Check the database and its permissions"
            if state in _POOLED:  # the statements of this connection are those of another one
                remedy = "If there is a pooler before the server, such as PgBouncer, use its session mode"
            raise self._error(f"PostgreSQL says: {said}", remedy) from error


class _Reader:
    """A connection for one long look: rows come in batches, not all at once."""

    def __init__(self, connection: Connection, cursors: ExitStack) -> None:
        self._connection = connection
        self._cursors = cursors
        self._asked = 0

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> Any:
        self._asked += 1
        cursor = self._cursors.enter_context(self._connection.cursor(f"look_{self._asked}"))
        cursor.itersize = _BATCH
        return cursor.execute(_ours(statement), values)


def _answers(connection: Connection, *questions: Question) -> list[list[tuple[Any, ...]]]:
    """Ask all questions in one round trip."""
    if len(questions) == 1:
        ((text, values),) = questions
        return [connection.execute(_ours(text), values).fetchall()]
    with connection.pipeline():
        cursors = [connection.execute(_ours(text), values) for text, values in questions]
    return [cursor.fetchall() for cursor in cursors]


@contextmanager
def _closing(connection: Connection) -> Generator[Connection]:
    try:
        yield connection
    finally:
        connection.close()


@cache
def _ours(statement: str) -> Any:
    """Return a statement with psycopg's sign for a value."""
    return statement.replace("?", "%s")


def _check_name(schema: object) -> str:
    if (
        isinstance(schema, str)
        and schema.isascii()
        and schema.replace("_", "a").isalnum()
        and len(schema) < 64
        and schema == schema.lower()
    ):
        return schema
    raise InvalidAmountError("schema", schema, "1 to 63 small letters, digits and underscores")


def _version_of(meta: dict[str, str]) -> int:
    """Return the version of the tables."""
    return max((int(key[10:]) for key in meta if key.startswith("migration_")), default=0)
