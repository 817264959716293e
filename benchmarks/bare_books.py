"""What a store of books costs at least: the same rows in bare SQLite and bare PostgreSQL, without a library.

The SQLite file has one guarded row per agent, a row per hold and a journal whose lines are chained by
SHA-256. There are no keys, no contracts, no reallocation, no other axes and no other processes: a ceiling.
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
import re
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["BareFile", "BareWriter", "pgbench"]

_TABLES = """
CREATE TABLE accounts (agent TEXT PRIMARY KEY, allocated INTEGER, consumed INTEGER, held INTEGER)
    STRICT, WITHOUT ROWID;
CREATE TABLE holds (hold_id INTEGER PRIMARY KEY, agent TEXT, amount INTEGER, state TEXT) STRICT;
CREATE TABLE journal (seq INTEGER PRIMARY KEY, kind TEXT, agent TEXT, amount INTEGER, hold_id INTEGER,
    hash BLOB) STRICT;
"""
_HOLD = """
    UPDATE accounts SET held = held + ?1 WHERE agent = ?2 AND allocated - consumed - held >= ?1
    RETURNING held"""
_SETTLE = """
    UPDATE accounts SET held = held - ?1, consumed = consumed + ?2 WHERE agent = ?3 RETURNING consumed"""


class BareFile:
    """A SQLite file in WAL mode with full synchronisation; one thread writes to it."""

    def __init__(self, path: str, agents: int) -> None:
        self.path = path
        self._connection = self._open()
        self._connection.execute(_TABLES)
        with self._connection:
            self._connection.executemany(
                "INSERT INTO accounts VALUES (?, ?, 0, 0)", [(f"agent-{i}", 2**60) for i in range(agents)]
            )
        self._execute = self._connection.execute
        self._seq = self._holds = 0
        self._head = bytes(32)

    def _open(self) -> Any:
        import apsw

        connection = apsw.Connection(self.path)
        connection.pragma("journal_mode", "WAL")
        connection.pragma("synchronous", "FULL")
        return connection

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def begin(self) -> None:
        """Open a transaction."""
        self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Commit it, durably."""
        self._execute("COMMIT")

    def hold(self, agent: str, amount: int) -> int:
        """Set an amount aside within a transaction."""
        if self._execute(_HOLD, (amount, agent)).fetchone() is None:
            raise RuntimeError("refused")
        self._holds += 1
        self._execute("INSERT INTO holds VALUES (?, ?, ?, 'open')", (self._holds, agent, amount))
        self._note("hold", agent, amount, self._holds)
        return self._holds

    def settle(self, hold_id: int, agent: str, amount: int, spent: int) -> None:
        """End a hold within a transaction."""
        self._execute(_SETTLE, (amount, spent, agent)).fetchone()
        self._execute("UPDATE holds SET state = 'settled' WHERE hold_id = ?", (hold_id,))
        self._note("settle", agent, spent, hold_id)

    def _note(self, kind: str, agent: str, amount: int, hold_id: int) -> None:
        self._seq += 1
        line = f"{self._seq}|{kind}|{agent}|{amount}|{hold_id}"
        self._head = hashlib.sha256(self._head + line.encode()).digest()
        self._execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)",
            (self._seq, kind, agent, amount, hold_id, self._head),
        )

    def pair(self, agent: str, amount: int, spent: int) -> None:
        """Hold in one transaction, settle in the next one."""
        self.begin()
        hold_id = self.hold(agent, amount)
        self.commit()
        self.begin()
        self.settle(hold_id, agent, amount, spent)
        self.commit()


class BareWriter:
    """A thread that writes what coroutines ask for: all that wait, in one transaction ("group commit")."""

    def __init__(self, file: BareFile) -> None:
        self._file = file
        self._asked: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None]
        self._asked = queue.SimpleQueue()
        self.commits = 0
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    async def do(self, operation: Callable[[], Any]) -> Any:
        """Return what the operation returns, once it is committed."""
        future = asyncio.get_running_loop().create_future()
        self._asked.put((future, operation))
        return await future

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._asked.put(None)
        self._thread.join()

    def _write(self) -> None:
        while (first := self._asked.get()) is not None:
            batch = [first]
            with suppress(queue.Empty):
                while (further := self._asked.get_nowait()) is not None:
                    batch.append(further)
            self._file.begin()
            answers = [(future, operation()) for future, operation in batch]
            self._file.commit()
            self.commits += 1
            batch[0][0].get_loop().call_soon_threadsafe(_deliver, answers)


def _deliver(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, answer in answers:
        if not future.done():
            future.set_result(answer)


_SCRIPT = """\\set agent random(1, {agents})
UPDATE bare_accounts SET held = held + 3 WHERE agent = :agent AND allocated - consumed - held >= 3;
"""


class pgbench:  # noqa: N801 - the name of the program
    """One guarded UPDATE per transaction, by PostgreSQL's own program; a figure a call."""

    def __init__(self, binaries: Path, folder: Path, url: str, agents: int, seed: int) -> None:
        import psycopg

        self._command = [str(binaries / "pgbench"), "--no-vacuum", "--protocol=prepared"]
        self._script = folder / "hold.sql"
        self._script.write_text(_SCRIPT.format(agents=agents))
        self._url, self._seed = url, seed
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS bare_accounts")
            connection.execute(
                "CREATE TABLE bare_accounts (agent int PRIMARY KEY, allocated bigint, consumed bigint,"
                " held bigint)"
            )
            connection.execute(
                "INSERT INTO bare_accounts SELECT i, 1000000000000000, 0, 0 FROM generate_series(1, %s) i",
                (agents,),
            )

    def rate(self, connections: int, seconds: int) -> float:
        """Return transactions per second."""
        done = subprocess.run(
            [
                *self._command,
                *("--client", str(connections), "--jobs", str(min(connections, 2))),
                *("--time", str(seconds), "--random-seed", str(self._seed)),
                *("--file", str(self._script), self._url),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        found = re.search(r"tps = ([0-9.]+)", done.stdout)
        if found is None:
            raise RuntimeError(done.stdout + done.stderr)
        return float(found[1])
