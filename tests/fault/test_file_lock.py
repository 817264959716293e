"""Who writes next: threads and processes in turn, some of which fork, stop or are killed inside."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time

import pytest

from tbc.errors import StoreBusyError, StoreError
from tbc.stores import SqliteStore
from tbc.stores.file_lock import FileLock
from tests.fault.holding import hold, open_pool
from tests.fault.processes import Program

pytest.importorskip("fcntl", reason="no such lock on this system")

HOLDER = """
    import sys
    from tbc.stores.file_lock import FileLock
    lock = FileLock(sys.argv[1])
    with lock.hold(10):
        print("inside", flush=True)
        sys.stdin.readline()
    print("outside", flush=True)
    sys.stdin.readline()
    """


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "books.db")


@pytest.fixture
def lock(path):
    lock = FileLock(path)
    yield lock
    lock.close()


def helpers() -> int:
    return sum(thread.name == "tbc file lock" for thread in threading.enumerate())


def takes(lock: FileLock, seconds: float) -> bool:
    try:
        with lock.hold(seconds) as left:
            assert 0 <= left <= seconds
            return True
    except StoreBusyError:
        return False


def test_the_lock_is_a_private_file_beside_the_one_it_is_for(path, lock):
    assert takes(lock, 0) and takes(lock, 5)
    assert stat.S_IMODE(os.stat(f"{path}.lock").st_mode) == 0o600
    assert not os.path.exists(path)


def test_who_waits_gets_it_when_it_is_free(path, lock):
    with Program(HOLDER, path) as other:
        assert other.read() == "inside"
        assert not takes(lock, 0)
        threading.Timer(0.2, other.tell).start()
        assert takes(lock, 10)
        assert other.read() == "outside"


def test_who_has_waited_for_long_enough_goes_and_leaves_no_lock_behind(path, lock):
    with Program(HOLDER, path) as other:
        assert other.read() == "inside"
        before = time.monotonic()
        for _ in range(5):
            with pytest.raises(StoreBusyError, match=r"locked for 0\.1 s"), lock.hold(0.1):
                pass
        assert 0.5 <= time.monotonic() - before < 3
        assert helpers() == 1  # they share the one that waits in the kernel
        other.tell()
        assert other.read() == "outside"
        with Program(HOLDER, path) as third:
            assert third.read() == "inside"
    assert takes(lock, 10) and helpers() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_kernel_frees_what_a_dead_process_held(path, lock, number):
    with Program(HOLDER, path) as other:
        assert other.read() == "inside"
        threading.Timer(0.2, other.send, [number]).start()
        assert takes(lock, 10)


def test_a_stopped_process_keeps_others_out_until_the_deadline(path, lock):
    with Program(HOLDER, path) as other:
        assert other.read() == "inside"
        other.send(signal.SIGSTOP)
        before = time.monotonic()
        assert not takes(lock, 0.3)
        assert 0.3 <= time.monotonic() - before < 2
        other.send(signal.SIGCONT)
        other.tell()
        assert takes(lock, 10)


def test_threads_are_inside_one_at_a_time(path, lock):
    second = FileLock(path)
    inside, most, done = [], [], []

    def work(own: FileLock) -> None:
        for _ in range(50):
            with own.hold(30):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
        done.append(1)

    threads = [threading.Thread(target=work, args=(own,)) for own in (lock, lock, second, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    second.close()
    assert len(done) == 4 and set(most) == {1} and len(most) == 200


def test_an_exception_inside_frees_it(path, lock):
    with pytest.raises(KeyError), lock.hold(1):
        raise KeyError
    with Program(HOLDER, path) as other:
        assert other.read() == "inside"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_neither_keeps_nor_frees_what_its_parent_holds(path, lock):
    parent = """
        import os, sys, time
        from tbc.stores.file_lock import FileLock
        lock = FileLock(sys.argv[1])
        with lock.hold(10):
            child = os.fork()
            if child == 0:
                lock.close()
                sys.stdin.readline()  # outlives its parent
                os._exit(0)
            print(child, flush=True)
            time.sleep(60)
        """
    with Program(parent, path) as other:
        child = int(other.read())
        try:
            assert not takes(lock, 0.2)
            other.send(signal.SIGKILL)
            assert takes(lock, 10)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_closed_lock_says_so_and_who_waits_in_the_kernel_does_no_harm(path, lock):
    with Program(HOLDER, path) as other:
        assert other.read() == "inside"
        assert not takes(lock, 0.1)
        lock.close()
        lock.close()
        with pytest.raises(StoreError, match="closed"), lock.hold(0.1):
            pass
        with open(os.devnull) as reused:  # may have the number that was closed
            other.tell()
            assert other.read() == "outside"
            again = FileLock(path)
            assert takes(again, 10)
            again.close()
            assert not reused.closed


def test_a_place_where_no_lock_can_be_is_refused_with_the_reason(tmp_path):
    (tmp_path / "books.db.lock").mkdir()
    with pytest.raises(StoreError, match="cannot be locked"):
        FileLock(str(tmp_path / "books.db"))


def test_without_such_locks_sqlite_waits_alone(path, monkeypatch):
    monkeypatch.setattr("tbc.stores.file_lock.fcntl", None)
    with FileLock(path).hold(2.5) as left:
        assert left == 2.5
    assert not os.path.exists(f"{path}.lock")


def test_processes_that_write_as_fast_as_they_can_all_get_their_turn(path):
    writer = """
        import sys, time
        from tbc.stores import SqliteStore
        from tests.fault.holding import hold
        store = SqliteStore(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        ends, count, longest = time.monotonic() + 1.5, 0, 0.0
        while (before := time.monotonic()) < ends:
            hold(store)
            longest = max(longest, time.monotonic() - before)
            count += 1
        print(count, longest)
        store.close()
        """
    with SqliteStore(path) as store:
        open_pool(store)
    programs = [Program(writer, path) for _ in range(4)]
    assert [program.read() for program in programs] == ["ready"] * 4
    for program in programs:
        program.tell()
    ends = [program.ended() for program in programs]
    assert [(code, err) for code, _, err in ends] == [(0, "")] * 4
    counts = [int(out.split()[0]) for _, out, _ in ends]
    waits = [float(out.split()[1]) for _, out, _ in ends]
    with SqliteStore(path) as store:
        assert store.load_pool("p").pool.seq == sum(counts)
    assert min(counts) >= 0.1 * max(counts), (counts, waits)
    assert max(waits) < 1.0, (counts, waits)


def test_a_store_waits_once_for_the_lock_and_for_foreign_writers(path):
    """A writer that knows nothing of the lock keeps it busy: one deadline for both."""
    import apsw

    with SqliteStore(path, busy_timeout_s=0.5) as store:
        open_pool(store)
        foreign = apsw.Connection(path)
        foreign.execute("BEGIN IMMEDIATE")
        threading.Timer(0.3, lambda: None).start()
        with Program(HOLDER, path) as other:
            assert other.read() == "inside"
            threading.Timer(0.3, other.tell).start()
            before = time.monotonic()
            with pytest.raises(StoreBusyError, match=r"locked for 0\.5 s"):
                hold(store)
            assert 0.5 <= time.monotonic() - before < 0.75
        foreign.execute("ROLLBACK")
        assert hold(store) == 1
        foreign.close()
