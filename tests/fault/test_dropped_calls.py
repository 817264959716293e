"""What is suspended, dropped, and collected while the lock is held must not wait for that lock."""

from __future__ import annotations

import faulthandler
import gc

import pytest

import tbc


class Collecting:
    """A clock that runs the collector once, as if it had struck under the lock."""

    armed = False

    def __call__(self) -> float:
        if self.armed:
            self.armed = False
            gc.collect()
        return 0.0


class Pause:
    def __await__(self):
        yield


class Cycle:
    """Keeps itself and what hangs on it alive until the collector comes."""

    def __init__(self, suspended):
        self.suspended = suspended
        self.me = self


def governed(manager, **terms):
    @manager.govern("a", **terms)
    async def call(question):
        await Pause()

    coroutine = call("one two three")
    coroutine.send(None)
    return coroutine


def generator(manager):
    def held():
        with manager.hold("a", 50):
            yield

    suspended = held()
    next(suspended)
    return suspended


def awaited(manager):
    async def held():
        async with manager.ahold("a", 50):
            await Pause()

    coroutine = held()
    coroutine.send(None)
    return coroutine


@pytest.mark.parametrize(
    ("suspend", "spends"),
    [
        (governed, True),
        (generator, True),
        (awaited, True),
        (lambda manager: governed(manager, on_error="void"), False),
    ],
    ids=["governed", "generator", "awaited", "governed_void"],
)
def test_what_is_collected_under_the_lock_ends_with_the_next_operation(suspend, spends):
    clock = Collecting()
    manager = tbc.BudgetManager(max_tokens=10_000, clock=clock)
    manager.register_agent("a")
    gc.disable()  # only the clock collects
    faulthandler.dump_traceback_later(60, exit=True)  # a deadlock must not hang the suite
    try:
        Cycle(suspend(manager))
        clock.armed = True
        manager.decide("a", 1)
        manager.decide("a", 1)  # runs what the first one left
    finally:
        faulthandler.cancel_dump_traceback_later()
        gc.enable()
    account = manager.accounts()[1]
    assert account.held == 0
    assert (account.consumed > 0) is spends
