"""One private SQLite file that keeps pools, their journals and the runs of workflows.

The file is in WAL mode with full synchronisation: what a transaction wrote when its block was left survives
the death of the process and of the machine. Many processes may have it open; a transaction waits for the
others. A file that is damaged, of another application, of a newer version or gone is refused with the reason,
and never replaced by an empty one.

Examples
--------
>>> import tempfile
>>> from tbc.stores import PoolRow
>>> folder = tempfile.TemporaryDirectory()
>>> store = SqliteStore(folder.name + "/books.db")
>>> with store.transaction() as writer:
...     writer.put_pool(PoolRow("default", "enforce", created_at=0.0))
>>> [pool.pool for pool in store.pools()], all(check.ok for check in store.verify())
(['default'], True)
>>> store.close(); folder.cleanup()
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from tbc.errors import (
    InvalidAmountError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreMissingError,
)
from tbc.stores import schema, statements
from tbc.stores.file_lock import FileLock
from tbc.stores.rows import (
    EventRow,
    Mark,
    RunRow,
    StepRow,
    StoreInfo,
)
from tbc.stores.sqlite_writer import SqliteWriter
from tbc.stores.store import Answering, Question, Store

__all__ = ["SqliteStore"]

#: Before this version two connections that write and checkpoint at once could damage a WAL file.
_OLDEST_SQLITE: Final = (3, 51, 3)
_PAGE: Final = 1_000
_LOG_LIMIT: Final = 16 * 2**20
_RESTORE: Final = "Stop writing to it, keep a copy of it, and restore a backup"


class SqliteStore(Store):
    """Pools, journals and runs in one SQLite file.

    Parameters
    ----------
    path : str or path
        The file. Its folder is made if need be; both are readable by their owner alone.
    synchronous : {"FULL", "EXTRA", "NORMAL"}, default "FULL"
        ``"NORMAL"`` is faster, and a power cut may take the last transactions back.
    create : bool, default True
        Whether to make the file if there is none.
    busy_timeout_s : float, default 5.0
        How long to wait for others that write.

    Raises
    ------
    StoreError
        If the file cannot be used; the message says why and what to do.

    Notes
    -----
    Thread-safe. A forked child may not use the store of its parent: it opens its own.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["FULL", "EXTRA", "NORMAL"] = "FULL",
        create: bool = True,
        busy_timeout_s: float = 5.0,
    ) -> None:
        if synchronous not in ("FULL", "EXTRA", "NORMAL"):
            raise InvalidAmountError("synchronous", synchronous, "'FULL', 'EXTRA' or 'NORMAL'")
        self.path = os.path.abspath(path)
        self._synchronous = synchronous
        self._busy_s = busy_timeout_s
        self._busy_ms = int(busy_timeout_s * 1000)
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._apsw = self._import_apsw()
        self._connection: Any = None
        self._writing = False
        with self._typed():
            self._find_or_make(create)
            self._queue = FileLock(self.path)
            connection = self._connect()
            try:
                self._ledger_id = self._check_and_migrate(connection)
            except BaseException:
                connection.close()
                raise
        self._connection = connection
        self._file = self._identity()

    # -- writing -----------------------------------------------------------------------------------------

    def transaction(
        self, pool: str | None = None, *, at: Mark | None = None
    ) -> AbstractContextManager[SqliteWriter]:
        """Return a block in which rows can be written: all of them are kept, or none.

        It waits for other threads and processes. When the block has been left without an exception, what was
        written is on the disk.

        Parameters
        ----------
        pool : str, optional
            The pool that will be written to.
        at : Mark, optional
            How far the caller knows it. A file is locked before it is read, so that this can wait until
            `Writer.mark` tells the truth.

        Raises
        ------
        StoreBusyError, StoreFullError, StoreError
            Nothing was written.
        """
        return self._transaction()

    @contextmanager
    def _transaction(self) -> Generator[SqliteWriter]:
        # All in one generator: every operation of a stored manager comes through here.
        self._check_process()
        with self._lock:
            connection = self._usable()
            if self._writing:
                raise self._error(
                    "a transaction is open in this thread", "Write in that one; do not nest them"
                )
            try:
                with self._queue.hold(self._busy_s) as left_s:
                    writer = SqliteWriter(self.path, self._ledger_id, connection)
                    try:
                        self._writing = True
                        if left_s == self._busy_s:  # nobody was in the way
                            connection.execute(schema.BEGIN)
                        else:
                            self._begin(connection, left_s)
                        yield writer
                        writer.finish()
                        connection.execute(schema.COMMIT)
                    finally:
                        self._writing = False  # before any call, after which Ctrl-C may come
                        if connection.in_transaction:
                            connection.execute(schema.ROLLBACK)
                        writer.retire()
            except self._apsw.Error as error:
                raise self._told(error) from error

    def _begin(self, connection: Any, seconds: float) -> None:
        """Begin a transaction; those that do not queue, as other programs, are waited for so many seconds."""
        connection.set_busy_timeout(int(seconds * 1000))
        try:
            connection.execute(schema.BEGIN)
        finally:
            connection.set_busy_timeout(self._busy_ms)

    #: A transaction is the only one from its start on: what is read in it is how things stand.
    locks_first = True

    def clock(self) -> float:
        """Return Unix seconds, the same for all processes of this machine and not moved by wall clocks."""
        boot, now = _boot_id(), time.monotonic()
        with self._ready() as connection, self._typed():
            known = _meta(connection, "boot")
            if known is not None and boot and known.startswith(boot):
                return float(known.removeprefix(boot)) + now
            ahead = max(time.time(), _one(connection, schema.LAST_AT) or 0.0) - now
            connection.execute(schema.PUT_META, ("boot", f"{boot}{ahead!r}"))
            return ahead + now

    def numbers_from(self) -> int:
        """Return beyond what holds are numbered: no number of the time since a backup comes back.

        Of a copy that is settled when this is first asked, by who is about to give numbers: not by a look at
        the copy, which may be put in the place of its file again and again.
        """
        with self._ready() as connection, self._typed():
            is_copy = _meta(connection, statements.NUMBERS_FROM) == ""
        if is_copy:
            with self.transaction():
                connection.execute(schema.PUT_NUMBERS_FROM)
        return super().numbers_from()

    # -- reading -----------------------------------------------------------------------------------------

    def runs(self) -> list[RunRow]:
        """Return the runs, oldest first."""
        return [RunRow._make(row) for row in self._rows(schema.RUNS)]

    def run(self, run: str) -> RunRow | None:
        """Return a run; ``None`` if there is no such run."""
        return next((RunRow._make(row) for row in self._rows(schema.RUN, run)), None)

    def steps(self, run: str) -> list[StepRow]:
        """Return the steps of a run in the order in which they were first written."""
        return [StepRow._make(row) for row in self._rows(schema.STEPS, run)]

    def events(self, run: str, since: int = 0) -> Iterator[EventRow]:
        """Yield the events of a run after event `since`, oldest first."""
        while page := self._rows(schema.EVENTS, run, since, _PAGE):
            yield from map(EventRow._make, page)
            since = page[-1][0]

    def info(self) -> StoreInfo:
        """Return what the file is and how much it holds."""
        with self._reading() as connection:
            pools, lines = connection.execute(statements.COUNTS).fetchone()
            log = Path(f"{self.path}-wal")
            return StoreInfo(
                path=self.path,
                ledger_id=self._ledger_id,
                engine=f"SQLite {self._apsw.sqlite_lib_version()}",
                schema=connection.pragma("user_version"),
                epoch=int(_meta(connection, "restore_epoch")),
                created_at=float(_meta(connection, "created_at")),
                size=os.stat(self.path).st_size,
                log_size=log.stat().st_size if log.exists() else 0,
                pools=pools,
                runs=_one(connection, schema.RUN_COUNT),
                lines=lines,
            )

    # -- looking after it ----------------------------------------------------------------------------------

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store into a new file while others go on writing.

        The copy counts as another epoch of the same books, so that a restored past can be told from them.

        Raises
        ------
        StoreError
            If there is a file already.
        """
        target = os.path.abspath(path)
        _make_folder(target)

        def copy(connection: Any) -> None:
            with self._aside() as source, connection.backup("main", source, "main") as copying:
                copying.step()
            epoch = int(_meta(connection, "restore_epoch")) + 1
            connection.execute(schema.PUT_META, ("restore_epoch", str(epoch)))
            connection.execute(schema.PUT_META, (statements.NUMBERS_FROM, ""))
            connection.execute(schema.PUT_META, ("clean_shutdown", _one(connection, schema.VERSIONS)))
            self._check_pages(connection, "quick_check")

        with self._typed():
            if not self._make_whole(target, copy):
                raise StoreError(target, "there is a file already", "Name a new file for the backup")

    def close(self) -> None:
        """Write the log into the file and let go of it; a second time changes nothing."""
        if self._pid != os.getpid():
            return
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is None:
                return
            if self._writing:
                self._connection = connection
                raise self._error("a transaction is open", "Leave its block before close()")
            with self._typed():
                try:
                    # Not waiting for others: the next one to close, or to open, does it as well.
                    connection.set_busy_timeout(0)
                    with suppress(self._apsw.BusyError, self._apsw.FullError):
                        connection.execute(schema.BEGIN)
                        versions = _one(connection, schema.VERSIONS)
                        connection.execute(schema.PUT_META, ("clean_shutdown", versions))
                        connection.execute(schema.COMMIT)
                        connection.wal_checkpoint("main", self._apsw.SQLITE_CHECKPOINT_TRUNCATE)
                finally:
                    connection.close(True)
                    self._queue.close()

    def __repr__(self) -> str:
        return f"<SqliteStore {self.path!r}>"

    # -- opening -------------------------------------------------------------------------------------------

    def _import_apsw(self) -> Any:
        try:
            import apsw
        except ImportError as error:
            raise self._error(
                "apsw is not installed", 'Install it with:  pip install "tbc[sqlite]"'
            ) from error
        version = apsw.sqlite_lib_version()
        if tuple(int(part) for part in version.split(".")[:3]) < _OLDEST_SQLITE:
            oldest = ".".join(str(part) for part in _OLDEST_SQLITE)
            raise self._error(
                f"apsw brings SQLite {version}, which can damage files that several processes write to",
                f'SQLite {oldest} or later is needed:  pip install -U "tbc[sqlite]"',
            )
        return apsw

    def _find_or_make(self, create: bool) -> None:
        """See to it that there is a file that may be written to."""
        path, lock = Path(self.path), Path(f"{self.path}.lock")
        was_there = lock.is_file()  # looked at first: who makes the file makes its lock afterwards
        if not path.exists():
            log = Path(f"{self.path}-wal")
            if log.exists() and log.stat().st_size:
                raise self._missing(
                    f"the file is missing, but its log {log.name!r} is there",
                    "Put the file back beside its log, or move the log away to begin anew",
                )
            if was_there:
                raise self._missing(
                    "the file is gone: it was opened here before",
                    f"Put it or a backup in its place, or remove {lock.name!r} as well to begin anew",
                )
            if not create:
                raise self._missing(
                    "there is no such file", "Check the path; what writes there makes the file"
                )
            try:
                _make_folder(self.path)
                self._make_whole(self.path, _install)
            except OSError as error:
                raise self._error(f"the file cannot be made: {error}", "Name a folder to write in") from error
        if not path.is_file():
            raise self._error("that is not a file", "Name a file")
        for place in (path.parent, path):
            if not os.access(place, os.W_OK):
                raise self._error(
                    f"{str(place)!r} is read-only", "Make it writable, or copy the store elsewhere"
                )
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            try:
                path.chmod(0o600)
            except OSError as error:
                raise self._error(
                    "others can read the file", f"Let its owner run: chmod 600 {path}"
                ) from error

    def _make_whole(self, path: str, fill: Callable[[Any], None]) -> bool:
        """Make a file that appears whole or not at all; return whether it is ours."""
        folder = os.path.dirname(path)
        handle, new = tempfile.mkstemp(
            prefix=f".{os.path.basename(path)}.", dir=folder
        )  # readable by us alone
        os.close(handle)
        try:
            connection = self._apsw.Connection(new)
            try:
                fill(connection)
                if connection.pragma("journal_mode", "WAL") != "wal":
                    raise StoreError(path, "its file system cannot share memory", "Use a local disk")
            finally:
                connection.close()
            with open(new, "rb+") as file:
                os.fsync(file.fileno())
            try:
                os.link(new, path)  # fails if another process was faster
            except FileExistsError:
                return False
        finally:
            for each in (new, f"{new}-wal", f"{new}-shm", f"{new}-journal"):
                with suppress(FileNotFoundError):
                    os.unlink(each)
        if os.name == "posix":
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        return True

    def _connect(self) -> Any:
        """Return a connection, after a look at whose file it is and before anything is written."""
        connection = self._apsw.Connection(self.path, flags=self._apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_timeout(self._busy_ms)
            try:
                application = connection.pragma("application_id")
            except self._apsw.NotADBError as error:
                raise self._error("that is not a database of tbc", "Name another file") from error
            if application != schema.APPLICATION_ID:
                raise self._error("that is a database of another application", "Name another file")
            newest, version = len(schema.MIGRATIONS), connection.pragma("user_version")
            if version > newest:
                raise self._error(
                    f"its tables are of version {version}, and this tbc knows up to {newest}",
                    "Upgrade tbc: pip install -U tbc",
                )
            if version < 1:
                raise StoreCorruptError(self.path, f"version {version} of the tables never was", _RESTORE)
            if connection.pragma("journal_mode", "WAL") != "wal":
                raise self._error("its file system cannot share memory", "Use a local disk")
            for name, value in (
                ("synchronous", self._synchronous),
                ("foreign_keys", 1),
                ("trusted_schema", 0),
                ("cell_size_check", 1),
                ("mmap_size", 0),
                ("journal_size_limit", _LOG_LIMIT),
            ):
                connection.pragma(name, value)
        except BaseException:
            connection.close(True)
            raise
        return connection

    def _check_and_migrate(self, connection: Any) -> str:
        """Check the file's pages, bring its tables up to date and return its id."""
        orderly = _meta(connection, "clean_shutdown") == _one(connection, schema.VERSIONS)
        self._check_pages(connection, "quick_check" if orderly else "integrity_check")
        version = connection.pragma("user_version")
        for number, text in enumerate(schema.MIGRATIONS[:version], start=1):
            if _meta(connection, f"migration_{number}") != schema.checksum(text):
                raise StoreCorruptError(
                    self.path, f"its tables of version {number} were made by other statements", _RESTORE
                )
        if version < len(schema.MIGRATIONS):
            connection.execute(schema.BEGIN)
            try:
                _migrate(connection, connection.pragma("user_version"))
                connection.execute(schema.COMMIT)
            except BaseException:
                if connection.in_transaction:
                    connection.execute(schema.ROLLBACK)
                raise
        ledger_id = _meta(connection, "ledger_id")
        if not ledger_id:
            raise StoreCorruptError(self.path, "it has no id", _RESTORE)
        return str(ledger_id)

    def _check_pages(self, connection: Any, check: str) -> None:
        found = connection.pragma(check)
        if found != "ok":
            first = found if isinstance(found, str) else found[0]
            raise StoreCorruptError(self.path, f"{check} says: {first}", _RESTORE)

    # -- using the connection ------------------------------------------------------------------------------

    @contextmanager
    def _ready(self) -> Generator[Any]:
        """Yield the connection, under the lock, if it is still ours and the file still there."""
        self._check_process()
        with self._lock:
            yield self._usable()

    def _check_process(self) -> None:
        if self._pid != os.getpid():  # before the lock: another thread may have had it at the fork
            raise self._error("it was opened before the fork", "Open a store of its own in the child process")

    def _usable(self) -> Any:
        """Return the connection if it is open and the file still there; under the lock."""
        if self._connection is None:
            raise self._error("it is closed", "Open it again")
        if self._identity() != self._file:
            raise self._missing("the file was removed or replaced while it was open", "Put it back")
        return self._connection

    @contextmanager
    def _reading(self) -> Generator[Any]:
        """Yield the connection within a transaction: the open one, or one that reads one moment."""
        with self._ready() as connection, self._typed():
            if self._writing:
                yield connection
                return
            try:
                connection.execute(schema.BEGIN_READING)
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute(schema.ROLLBACK)

    @contextmanager
    def _aside(self) -> Generator[Any]:
        """Yield a connection of its own for what takes long, so that nobody has to wait for it."""
        with self._ready():
            pass
        with self._typed():
            connection = self._connect()
            try:
                connection.execute(schema.BEGIN_READING)
                yield connection
            finally:
                connection.close(True)

    def _ask(self, *questions: Question) -> list[list[tuple[Any, ...]]]:
        with self._moment() as ask:
            return ask(*questions)

    @contextmanager
    def _moment(self) -> Generator[Answering]:
        with self._reading() as connection:

            def ask(*questions: Question) -> list[list[tuple[Any, ...]]]:
                return [
                    connection.execute(_ours(statement), _with_lists(values)).fetchall()
                    for statement, values in questions
                ]

            yield ask

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    # -- errors ----------------------------------------------------------------------------------------------

    def _missing(self, reason: str, remedy: str) -> StoreError:
        return StoreMissingError(self.path, reason, remedy)

    @contextmanager
    def _typed(self) -> Generator[None]:
        """Turn what SQLite says into errors of `tbc`."""
        try:
            yield
        except (self._apsw.Error, UnicodeDecodeError) as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> StoreError:
        """Return what SQLite says as an error of `tbc`."""
        apsw = self._apsw
        if isinstance(error, apsw.BusyError | apsw.LockedError):
            return StoreBusyError(
                self.path, f"others kept it locked for {self._busy_ms / 1000:g} s", "Try again"
            )
        if isinstance(error, apsw.FullError):
            return StoreFullError(self.path, "there is no room left", "Make room and try again")
        if isinstance(error, apsw.CorruptError | apsw.NotADBError | UnicodeDecodeError):
            return StoreCorruptError(self.path, f"it is damaged ({error})", _RESTORE)
        if isinstance(error, apsw.ConstraintError):
            return self._error(f"a row breaks a rule of the tables ({error})", "Nothing was written")
        return self._error(f"SQLite says: {error}", "Check the disk and the permissions")


@cache
def _ours(statement: str) -> str:
    """Return a statement with SQLite's words for a list."""
    return statement.replace("= ANY (?)", "IN (SELECT value FROM json_each(?))")


def _with_lists(values: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(json.dumps(value) if isinstance(value, list) else value for value in values)


def _make_folder(path: str) -> None:
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _install(connection: Any) -> None:
    """Fill an empty file."""
    connection.pragma("application_id", schema.APPLICATION_ID)
    connection.execute(schema.BEGIN)
    _migrate(connection, 0)
    connection.execute(schema.PUT_META, ("clean_shutdown", _one(connection, schema.VERSIONS)))
    connection.execute(schema.COMMIT)


def _migrate(connection: Any, version: int) -> None:
    """Bring the tables up to date, within a transaction."""
    for number, text in enumerate(schema.MIGRATIONS[version:], start=version + 1):
        connection.execute(text)
        connection.execute(schema.PUT_META, (f"migration_{number}", schema.checksum(text)))
        connection.pragma("user_version", number)


def _one(connection: Any, statement: str, *values: object) -> Any:
    row = connection.execute(statement, values).fetchone()
    return None if row is None else row[0]


def _meta(connection: Any, key: str) -> Any:
    return _one(connection, statements.META, key)


def _boot_id() -> str:
    """Return what tells this start of the machine from others; empty if nothing does."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " "
    return ""
