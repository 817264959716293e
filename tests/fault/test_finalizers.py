"""Finalizers run anywhere, also inside of an operation, on any thread: they never wait and lose nothing."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.holds import Said
from tbc.testing import check_books


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def manager(clock) -> tbc.BudgetManager:
    manager = tbc.BudgetManager(max_tokens=10**9, clock=clock)
    manager.register_agent("agent", max_tokens=0)
    return manager


class Stream:
    """A provider's stream object that never ends."""

    def __iter__(self):
        return self

    def __next__(self):
        return "word "


def streams(manager):
    """Return three ways to stream: a generator, a provider's object, and a function that returns one."""
    decorate = manager.govern("agent", max_output_tokens=10)

    def generate():
        while True:
            yield "word "

    return [decorate(generate), decorate(lambda: Stream()), decorate(lambda: generate())]


def test_streams_in_cycles_are_booked_by_collections_inside_of_operations(manager):
    """Garbage collection at every other allocation: it hits holds, settles and reads in their middle."""
    makers = streams(manager)
    thresholds = gc.get_threshold()
    gc.set_threshold(2, 2, 2)
    try:
        for i in range(600):
            stream = makers[i % 3]()
            next(stream)
            cycle = [stream]
            cycle.append(cycle)
            del stream, cycle
            manager.hold("agent", 5).settle(3)
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    check_books(manager)
    assert manager.ledger.open_holds == {}
    spent = manager.ledger.history("agent")
    assert len(spent) == 1_200
    assert sum(entry.estimated for entry in spent) == 600


@pytest.mark.parametrize("read", ["report", "accounts", "remaining", "decide", "ledger"])
def test_what_a_finalizer_left_is_done_before_the_next_look(manager, read):
    """One number: nobody is shown books that still lack it."""
    stream = streams(manager)[0]()
    next(stream)
    with manager.ledger.lock:
        stream.close()  # as a finalizer would, while an operation runs
        assert len(manager.ledger.open_holds) == 1
    looks = {
        "report": lambda: manager.report()["agent"]["consumed"] > 0,
        "accounts": lambda: manager.accounts()[1].held == 0,
        "remaining": lambda: manager.remaining("agent") == 0,
        "decide": lambda: manager.decide("agent", 0).remaining == 0,
        "ledger": lambda: manager.ledger.consumed("agent") > 0,
    }
    assert looks[read]()
    assert manager.ledger.open_holds == {}
    check_books(manager)


def test_end_later_never_waits_and_settles_once(manager):
    hold = manager.hold("agent", 10)
    done = threading.Event()

    def finalize():
        for tokens in (4, 5, 6):
            manager.end_later(hold, Said(tokens, estimated=True))
        done.set()

    with manager.ledger.lock:  # held all the time: waiting for it would never end
        thread = threading.Thread(target=finalize)
        thread.start()
        assert done.wait(30)
        thread.join(30)
        assert hold.state == "open"
    check_books(manager)
    assert (hold.state, hold.settlement.tokens) == ("settled", 4)
    assert [entry.tokens for entry in manager.ledger.history()] == [4]


def test_end_later_of_an_ended_hold_changes_nothing(manager, clock):
    settled, voided, expired = (manager.hold("agent", 10) for _ in range(3))
    settled.settle(7)
    voided.void()
    clock.advance(601)
    for hold in (settled, voided, expired):
        manager.end_later(hold, Said(3, estimated=True))
    assert (settled.settlement.tokens, voided.state) == (7, "voided")
    assert (expired.state, expired.settlement.late, expired.settlement.tokens) == ("settled", True, 3)
    check_books(manager)


def test_what_was_left_comes_before_what_expires(manager, clock):
    """A stream dropped in time is not made late by who looks next."""
    hold = manager.hold("agent", 10, expires_s=5)
    with manager.ledger.lock:
        manager.end_later(hold, Said(4, estimated=True))
    clock.advance(60)
    manager.report()
    assert (hold.state, hold.settlement.late) == ("settled", False)
    check_books(manager)


def test_async_streams_dropped_by_their_loop_are_booked(manager):
    @manager.govern("agent", max_output_tokens=10)
    async def stream():
        while True:
            yield "word "

    kept = []

    async def main():
        for _ in range(20):
            chunks = stream()
            await anext(chunks)
            kept.append(chunks)

    asyncio.run(main())  # closes what is still open
    kept.clear()
    gc.collect()
    check_books(manager)
    assert manager.ledger.open_holds == {}
    assert len(manager.ledger.history("agent")) == 20


def test_finalizers_of_many_threads_lose_nothing(manager):
    """Eight threads drop streams and move the books at the same time."""
    makers = streams(manager)

    def work(i: int) -> None:
        for k in range(100):
            stream = makers[(i + k) % 3]()
            next(stream)
            del stream
            manager.hold("agent", 2).settle(1)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    gc.collect()
    check_books(manager)
    assert manager.ledger.open_holds == {}
    assert len(manager.ledger.history("agent")) == 8 * 200
