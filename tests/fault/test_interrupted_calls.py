"""Whatever ends a governed call, its hold ends with it, and what may have been spent is booked."""

from __future__ import annotations

import asyncio

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.testing import check_books

ENDS = [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, RuntimeError, MemoryError]


@pytest.fixture
def manager() -> tbc.BudgetManager:
    manager = tbc.BudgetManager(max_tokens=1_000, clock=ManualClock())
    manager.register_agent("agent", max_tokens=0)
    return manager


def run_plain(manager, error, recorded, **terms):
    @manager.govern("agent", max_output_tokens=50, **terms)
    def call(prompt):
        tbc.current_hold().record(recorded)
        raise error

    call("some words of input")


def run_coroutine(manager, error, recorded, **terms):
    @manager.govern("agent", max_output_tokens=50, **terms)
    async def call(prompt):
        await asyncio.sleep(0)
        tbc.current_hold().record(recorded)
        raise error

    coroutine = call("some words of input")
    with pytest.raises(type(error)):  # driven by hand: a loop has its own ways with SystemExit
        while True:
            coroutine.send(None)
    raise error


def run_generator(manager, error, recorded, **terms):
    @manager.govern("agent", max_output_tokens=50, **terms)
    def call(prompt):
        yield "one "
        tbc.current_hold().record(recorded)
        raise error

    list(call("some words of input"))


def run_async_generator(manager, error, recorded, **terms):
    @manager.govern("agent", max_output_tokens=50, **terms)
    async def call(prompt):
        yield "one "
        tbc.current_hold().record(recorded)
        raise error

    async def consume():
        return [chunk async for chunk in call("some words of input")]

    coroutine = consume()
    coroutine.send(None)


def run_stream_object(manager, error, recorded, **terms):
    class Stream:
        def __init__(self):
            self.sent = False

        def __iter__(self):
            return self

        def __next__(self):
            if self.sent:
                tbc.current_hold().record(recorded)
                raise error
            self.sent = True
            return "one "

    call = manager.govern("agent", max_output_tokens=50, **terms)(lambda prompt: Stream())
    list(call("some words of input"))


RUNS = [run_plain, run_coroutine, run_generator, run_async_generator, run_stream_object]


@pytest.mark.parametrize("recorded", [0, 7, 500])
@pytest.mark.parametrize("error", ENDS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_an_interrupted_call_books_what_is_known(manager, run, error, recorded):
    """What was recorded, or else the input (and what has been streamed): never nothing, never a leak."""
    with pytest.raises(error):
        run(manager, error(), recorded)
    assert manager.ledger.open_holds == {}
    (entry,) = manager.ledger.history("agent")
    least = manager.count((("some words of input",), []))
    assert entry.estimated
    assert entry.tokens == recorded if recorded else least <= entry.tokens <= least + 2
    check_books(manager)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_what_was_never_sent_costs_nothing(manager, run):
    with pytest.raises(tbc.NotSent):
        run(manager, tbc.NotSent(), 0)
    assert manager.ledger.history() == []
    assert manager.report()["agent"]["consumed"] == 0
    check_books(manager)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_a_hold_that_expired_during_an_interrupted_call_is_booked_late_and_once(manager, run, monkeypatch):
    record = tbc.Hold.record

    def record_late(hold, tokens):
        manager.ledger.clock.advance(10_000)
        assert manager.accounts()[1].held == 0
        record(hold, tokens)

    monkeypatch.setattr(tbc.Hold, "record", record_late)
    with pytest.raises(KeyboardInterrupt):
        run(manager, KeyboardInterrupt(), 9)
    (entry,) = manager.ledger.history("agent")
    assert (entry.kind, entry.tokens) == (tbc.Kind.LATE_SETTLE, 9)
    check_books(manager)


def test_cancelling_a_task_books_and_frees(manager):
    started = []

    @manager.govern("agent", max_output_tokens=50)
    async def call(prompt):
        started.append(prompt)
        await asyncio.Event().wait()

    async def main():
        tasks = [asyncio.ensure_future(call(f"prompt {i}")) for i in range(5)]
        while len(started) < 5:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(main())
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert len(manager.ledger.history("agent")) == 5
    assert manager.ledger.open_holds == {}
    check_books(manager)


def test_a_task_cancelled_before_it_started_holds_nothing(manager):
    @manager.govern("agent", max_output_tokens=50)
    async def call(prompt):
        raise AssertionError("never runs")

    async def main():
        task = asyncio.ensure_future(call("prompt"))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert manager.ledger.history() == []
    assert manager.ledger.open_holds == {}
