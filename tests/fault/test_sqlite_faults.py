"""What the SQLite file does when processes are killed, disks are full, bits flip and files go away."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from tbc.errors import StoreCorruptError, StoreError, StoreFullError, StoreMissingError
from tbc.stores import SqliteStore, schema
from tests.fault.holding import hold, open_pool

ROOM = str(Path(__file__).resolve().parents[2])

#: What the child processes begin with.
COMMON = """
import os, sys
from tbc.stores import SqliteStore
from tests.fault.holding import hold, open_pool
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    program = COMMON + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOM,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture
def store(tmp_path):
    with SqliteStore(tmp_path / "books.db") as store:
        open_pool(store)
        yield store


def test_kill_9_loses_no_answer_and_leaves_at_most_one_more(store):
    writer = """
        store = SqliteStore(sys.argv[1])
        store._connection.wal_autocheckpoint(20)  # so that some die while the log is written back
        while True:
            print(hold(store), flush=True)
        """
    store.close()
    chance = random.Random(1)
    last = unanswered = 0
    for _ in range(30):
        process = start(writer, store.path)
        for _ in range(chance.randrange(1, 40)):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        answered = [int(line) for line in process.stdout.read().split("\n") if line]
        process.wait()
        process.stdout.close()
        process.stderr.close()
        with SqliteStore(store.path, create=False) as again:  # checks every page: nobody closed it
            state = again.load_pool("p", recent=10_000)
            (check,) = again.verify()
        first, last = last, state.pool.seq
        assert check.ok and check.lines == last
        assert len(state.holds) == last and {op.response for op in state.ops} == {
            str(seq) for seq in range(1, last + 1)
        }
        assert state.accounts[0].held == 3 * last
        if answered:
            assert last - answered[-1] in (0, 1)
            unanswered += last - answered[-1]
        assert last > first
    assert 0 <= unanswered <= 30


def test_a_process_that_is_killed_while_it_makes_the_file_leaves_none(tmp_path):
    path = tmp_path / "books.db"
    process = start(
        """
        import signal
        from tbc.stores import schema, sqlite
        sqlite._install = lambda connection: os.kill(os.getpid(), signal.SIGKILL)
        SqliteStore(sys.argv[1])
        """,
        path,
    )
    assert ended(process) == (-signal.SIGKILL, "", "")
    assert not path.exists()
    with SqliteStore(path) as store:
        open_pool(store)
        assert store.verify()[0].ok


def test_a_full_disk_takes_the_transaction_back_and_room_heals_it(store):
    raw = store._connection
    raw.pragma("max_page_count", raw.pragma("page_count") + 8)
    with pytest.raises(StoreFullError, match="no room"):
        while True:
            hold(store, note="x" * 500)
    state = store.load_pool("p")
    assert state.accounts[0].held == 3 * state.pool.seq == 3 * len(state.holds) > 0
    assert store.verify()[0].ok
    raw.pragma("max_page_count", 10**6)
    assert hold(store) == state.pool.seq + 1
    assert store.verify()[0].ok


def flip(path: str, place: int, bit: int = 0) -> None:
    with open(path, "rb+") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


def test_a_flipped_bit_in_a_line_of_the_journal_is_found(store):
    for _ in range(20):
        hold(store, note="sign here")
    store.close()
    content, place, named = Path(store.path).read_bytes(), -1, []
    while (place := content.find(b"sign here", place + 1)) >= 0:
        flip(store.path, place)
        with SqliteStore(store.path) as damaged:
            (check,) = damaged.verify()
            changed = [line.seq for line in damaged.entries("p") if line.note != "sign here"]
        flip(store.path, place)
        assert changed == ([] if check.ok else [check.seq])  # ok: a stale copy that SQLite left behind
        assert check.ok or "was changed" in check.problem
        named += changed
    assert sorted(named) == list(range(1, 21))


def test_no_flipped_bit_anywhere_passes_for_other_books(store, tmp_path):
    for _ in range(60):
        hold(store)
    store.close()
    with SqliteStore(store.path) as intact:
        lines, books = list(intact.entries("p")), intact.load_pool("p").accounts
    chance, copy = random.Random(2), str(tmp_path / "copy.db")
    found = harmless = 0
    for _ in range(80):
        shutil.copy(store.path, copy)
        flip(copy, chance.randrange(os.path.getsize(copy)), chance.randrange(8))
        damaged = None
        try:
            damaged = SqliteStore(copy, create=False)
            if all(check.ok for check in damaged.verify("p")):
                assert (list(damaged.entries("p")), damaged.load_pool("p").accounts) == (lines, books)
                harmless += 1
            else:
                found += 1
        except (StoreError, ValueError):  # of which a pool that has lost its name is one
            found += 1
        finally:
            if damaged is not None:
                damaged._connection.close(True)
            for each in Path(tmp_path).glob("copy.db*"):
                each.unlink()
    assert found > 10 and found + harmless == 80


def test_a_damaged_page_is_found_at_open(store):
    for _ in range(60):
        hold(store)
    store.close()
    with open(store.path, "rb+") as file:
        file.seek(4096)
        file.write(os.urandom(200) + bytes(3896))
    with pytest.raises(StoreCorruptError, match="restore a backup"):
        SqliteStore(store.path)


def test_a_file_that_is_deleted_while_it_is_open_takes_no_more_writes(store):
    hold(store)
    os.unlink(store.path)
    with pytest.raises(StoreMissingError, match="removed or replaced"):
        hold(store)
    with pytest.raises(StoreMissingError, match="removed or replaced"):
        store.pools()
    with pytest.raises(StoreMissingError, match=r"its log 'books\.db-wal' is there"):
        SqliteStore(store.path)  # no empty file in its place
    assert not os.path.exists(store.path)


def test_a_file_that_is_replaced_while_it_is_open_takes_no_more_writes(store, tmp_path):
    SqliteStore(tmp_path / "other.db").close()
    os.replace(tmp_path / "other.db", store.path)
    with pytest.raises(StoreMissingError, match="removed or replaced"):
        hold(store)


def test_files_that_are_not_ours_are_refused_and_left_as_they_are(tmp_path):
    other, text, empty = tmp_path / "other.db", tmp_path / "text.db", tmp_path / "empty.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    text.write_text("nothing of a database, but long enough to be asked for one " * 50)
    empty.touch()
    for path, says in (
        (other, "another application"),
        (text, "not a database"),
        (empty, "another application"),
    ):
        before = path.read_bytes()
        with pytest.raises(StoreError, match=says):
            SqliteStore(path)
        assert path.read_bytes() == before
    with pytest.raises(StoreError, match="not a file"):
        SqliteStore(tmp_path)


@pytest.mark.parametrize(("version", "says"), [(99, "Upgrade tbc"), (0, "never was"), (-1, "never was")])
def test_tables_of_a_version_that_is_not_known_are_refused(store, version, says):
    store._connection.pragma("user_version", version)
    store.close()
    with pytest.raises(StoreError, match=says):
        SqliteStore(store.path)


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
@pytest.mark.parametrize("what", ["folder", "file", "nothing"])
def test_a_read_only_place_is_refused_with_the_reason(what):
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "books.db"
        if what != "nothing":
            SqliteStore(path).close()
        path.touch() if what == "file" else None
        if what != "nothing":
            path.chmod(0o444 if what == "file" else 0o666)
        folder.chmod(0o777 if what == "file" else 0o555)
        process = start(
            """
            import apsw
            from tbc.errors import StoreError
            if os.getuid() == 0:
                os.setuid(65534)  # may write anywhere otherwise
            try:
                SqliteStore(sys.argv[1])
            except StoreError as error:
                print(error)
            """,
            path,
        )
        code, out, err = ended(process)
        assert (code, err) == (0, "")
        assert ("cannot be made" if what == "nothing" else "is read-only") in out
        assert stat.S_IMODE(folder.stat().st_mode) == (0o777 if what == "file" else 0o555)
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_refused_and_its_parent_goes_on(store):
    process = start(
        """
        from tbc.errors import StoreError
        store = SqliteStore(sys.argv[1])
        hold(store)
        child = os.fork()
        if child == 0:
            for use in (store.pools, lambda: hold(store), store.verify):
                try:
                    use()
                except StoreError as error:
                    assert "before the fork" in str(error)
                else:
                    os._exit(1)
            store.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(hold(store), store.verify()[0].ok)
        store.close()
        """,
        store.path,
    )
    assert ended(process) == (0, "2 True\n", "")
    assert store.load_pool("p").pool.seq == 2


def test_processes_that_write_at_once_wait_for_each_other(store):
    writer = """
        store = SqliteStore(sys.argv[1])
        pool = sys.argv[2]
        open_pool(store, pool)
        for _ in range(100):
            hold(store, pool)
            hold(store, "p")
        store.close()
        """
    processes = [start(writer, store.path, f"own-{number}") for number in range(3)]
    assert [ended(process) for process in processes] == [(0, "", "")] * 3
    assert {pool.pool: pool.seq for pool in store.pools()} == {
        "p": 300,
        "own-0": 100,
        "own-1": 100,
        "own-2": 100,
    }
    assert all(check.ok for check in store.verify())
    assert [line.seq for line in store.entries("p")] == list(range(1, 301))


def test_processes_that_make_the_file_at_once_make_one(tmp_path):
    writer = "store = SqliteStore(sys.argv[1]); open_pool(store, sys.argv[2]); store.close()"
    processes = [start(writer, tmp_path / "books.db", f"own-{number}") for number in range(4)]
    assert [ended(process) for process in processes] == [(0, "", "")] * 4
    with SqliteStore(tmp_path / "books.db", create=False) as store:
        assert len(store.pools()) == 4


def test_every_transaction_that_writes_begins_by_locking():
    statements = {name: text for name, text in vars(schema).items() if isinstance(text, str)}
    assert statements["BEGIN"] == "BEGIN IMMEDIATE"
    writing = {
        name for name, text in statements.items() if text.strip().startswith(("INSERT", "UPDATE", "DEL"))
    }
    assert writing == {
        *("APPEND", "END_HOLD", "TOUCH_POOL"),
        *(name for name in statements if name.startswith(("PUT_", "SET_", "ADD_"))),
    }
