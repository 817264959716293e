"""Workers that lease from a store in processes of their own: killed, stopped, restarted, and many at once.

Every call that is sent is written to a bill that neither the workers nor the pool look at.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tbc
from tbc.cli import run
from tbc.stores import PostgresStore, SqliteStore
from tbc.testing import check_books
from tests.waiting import until

ROOM = str(Path(__file__).resolve().parents[2])
CAP = 10_000

COMMON = """
import os, sys, time
import tbc
from tbc.stores import PostgresStore, SqliteStore

place, schema, seconds, holder, bill = sys.argv[1:]
bill = os.open(bill, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
store = PostgresStore(place, schema=schema) if schema else SqliteStore(place, synchronous="NORMAL")
worker = tbc.BudgetManager(store=store, lease=tbc.Lease(share=0.1, seconds=float(seconds)), holder=holder)

def call(tokens):
    with worker.hold("writer", tokens) as hold:
        os.write(bill, b"%d\\n" % tokens)
        hold.settle(tokens)
"""

#: Spends slowly until standard input ends, and says goodbye.
SPENDS = """
import threading
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
call(10)
print("spends", flush=True)
while not ended.wait(0.002):
    try:
        call(10)
    except tbc.BudgetExceededError:
        time.sleep(0.05)
worker.close()
"""


class Place:
    """A store, the bill, and the processes that spend from it."""

    def __init__(self, place, schema, folder):
        self.place, self.schema, self.bill = place, schema, folder / "bill"
        self.processes = []

    def open(self, **how):
        store = (
            PostgresStore(self.place, schema=self.schema)
            if self.schema
            else SqliteStore(self.place, synchronous="NORMAL")
        )
        return tbc.BudgetManager(store=store, **how)

    def start(self, code, holder="w1", seconds=1.0):
        arguments = (self.place, self.schema, str(seconds), holder, str(self.bill))
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", COMMON + textwrap.dedent(code), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOM,
        )
        self.processes.append(process)
        return process

    def billed(self):
        return sum(map(int, self.bill.read_text().split())) if self.bill.exists() else 0


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    if request.param == "sqlite":
        place = Place(str(tmp_path / "books.db"), "", tmp_path)
    else:
        url, schema = (request.getfixturevalue(name) for name in ("postgres_url", "postgres_schema"))
        place = Place(url, schema, tmp_path)
    yield place
    for process in place.processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


@pytest.fixture
def pool(place):
    manager = place.open(max_tokens=CAP)
    manager.register_agent("writer", max_tokens=0)
    manager.register_agent("reader", max_tokens=0)
    yield manager
    check_books(manager)
    manager.close()
    assert all(check.ok for check in manager._store.verify())
    manager._store.close()


def consumed(manager):
    return sum(row["consumed"] for row in manager.report().values())


def said(process, word="spends"):
    line = process.stdout.readline()
    assert line.strip() == word, process.stderr.read()


def finish(process):
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def spend_the_rest(manager, agent_name="reader"):
    """Spend all that can be had; returns how much."""
    spent = 0
    for size in (100, 1):
        while True:
            try:
                manager.hold(agent_name, size).settle(size)
            except tbc.BudgetExceededError:
                break
            spent += size
    return spent


def test_fault_24_a_worker_that_is_killed_is_charged_in_full_until_an_operator_knows_better(
    place, pool, capsys
):
    code = """
        call(100)
        worker.report()
        call(90)
        print("spends", flush=True)
        time.sleep(60)
        """
    process = place.start(code, seconds=0.5)
    said(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (record,) = pool.leases()
    assert (record.holder, record.amount.tokens, record.reported.tokens) == ("w1", 1000, 100)
    with pytest.raises(tbc.BudgetExceededError):
        pool.hold("reader", CAP - 999)
    until(lambda: pool.leases()[0].overdue)
    assert spend_the_rest(pool) == CAP - 1000
    if place.schema:
        pool.close_lease(record.hold_id, 190, calls=2, note="by the bill")
    else:
        assert run(["store", "leases", place.place]) == 0
        assert "overdue" in capsys.readouterr().out
        words = ["--tokens", "190", "--calls", "2", "--note", "by the bill"]
        assert run(["store", "close-lease", place.place, str(record.hold_id), *words]) == 0
        assert "has ended" in capsys.readouterr().out
    assert pool.leases() == []
    assert pool.remaining(tbc.ROOT) == 1000 - place.billed() == 810
    lines = [line for line in pool.ledger.entries() if line.hold_id == record.hold_id]
    assert [line.tokens for line in lines if line.note == "by the bill" and line.axis == "tokens"] == [90]
    assert any(line.kind is tbc.Kind.RETURN and line.allocated == 810 for line in lines)


def test_fault_22_a_worker_that_is_stopped_for_three_times_its_lease_overspends_nothing(place, pool):
    process = place.start(SPENDS, seconds=0.5)
    said(process)
    process.send_signal(signal.SIGSTOP)
    (record,) = pool.leases()
    until(lambda: pool.now() > record.at + 2.0)
    assert pool.leases()[0].overdue
    direct = spend_the_rest(pool)
    assert direct + record.amount.tokens <= CAP
    before = place.billed()
    process.send_signal(signal.SIGCONT)
    until(lambda: place.billed() > before)
    finish(process)
    assert pool.leases() == []
    assert consumed(pool) == place.billed() + direct <= CAP
    assert spend_the_rest(pool) == CAP - place.billed() - direct


def test_fault_22_what_an_operator_did_not_know_is_corrected_by_the_late_report(place, pool):
    process = place.start(SPENDS, seconds=0.5)
    said(process)
    process.send_signal(signal.SIGSTOP)
    (record,) = pool.leases()
    until(lambda: pool.leases()[0].overdue)
    pool.close_lease(record.hold_id, 0, calls=0)
    process.send_signal(signal.SIGCONT)
    until(lambda: consumed(pool) >= 10)
    finish(process)
    assert consumed(pool) == place.billed() <= CAP


def test_fault_24_a_worker_that_is_restarted_spends_nothing_of_its_former_life(place, pool):
    first = place.start(SPENDS, seconds=0.5)
    said(first)
    first.kill()
    first.wait()
    before = place.billed()
    (old,) = pool.leases()
    second = place.start(SPENDS, seconds=0.5)
    said(second)
    assert [record.holder for record in pool.leases()] == ["w1", "w1"]
    finish(second)
    assert [record.hold_id for record in pool.leases()] == [old.hold_id]
    assert consumed(pool) == place.billed() - before + old.reported.tokens
    until(lambda: pool.leases()[0].overdue)
    pool.close_lease(old.hold_id)
    assert place.billed() <= consumed(pool) <= CAP


def test_fault_24_many_workers_never_spend_more_than_there_is(place, pool):
    code = """
        print("spends", flush=True)
        try:
            while True:
                call(7)
        except tbc.BudgetExceededError:
            worker.close()
        """
    workers = [place.start(code, f"w{number}", seconds=0.5) for number in range(4)]
    for each in workers:
        said(each)
    workers[0].kill()
    for each in workers[1:]:
        finish(each)
    assert place.billed() <= CAP
    for record in pool.leases():
        assert record.holder == "w0"
        until(lambda number=record.hold_id: {each.hold_id: each for each in pool.leases()}[number].overdue)
        pool.close_lease(record.hold_id)
    assert place.billed() <= consumed(pool) <= CAP
    assert CAP - consumed(pool) < 7 * 4 + 1000


def test_idle_slices_go_back_without_a_call(place, pool):
    code = """
        call(10)
        print("spends", flush=True)
        sys.stdin.read()
        """
    process = place.start(code, seconds=1.0)
    said(process)
    until(lambda: pool.leases() == [])
    assert consumed(pool) == 10
    finish(process)
