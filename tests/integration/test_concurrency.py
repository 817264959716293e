"""A fan-out cannot overshoot: threads, tasks, streams. The order is random, the bound is not."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

import tbc

CALL, CAP = 100, 1_000  # room for ten worst-case calls


def make_manager() -> tbc.BudgetManager:
    manager = tbc.BudgetManager(max_tokens=CAP)
    manager.register_agent("a")
    return manager


class InFlight:
    """Counts calls that run at the same time."""

    def __init__(self) -> None:
        self.now = self.most = self.all = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.all += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.now -= 1


def test_a_hundred_threads_against_room_for_ten():
    manager, flight = make_manager(), InFlight()
    start, tried = threading.Barrier(100), threading.Barrier(100)
    refused = []

    @manager.govern("a", max_output_tokens=CALL, usage_fn=lambda result: CALL)
    def call():
        with flight:
            tried.wait(timeout=60)

    def work():
        start.wait(timeout=60)
        try:
            call()
        except tbc.BudgetExceededError as error:
            refused.append(error.decision.status)
            tried.wait(timeout=60)

    threads = [threading.Thread(target=work) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert (flight.most, flight.all) == (10, 10)
    assert refused == [tbc.Status.BUSY] * 90
    assert manager.report()["a"]["consumed"] == CAP
    with pytest.raises(tbc.BudgetExceededError, match="Exhausted"):
        call()


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_tasks_against_room_for_ten(seed):
    manager, flight = make_manager(), InFlight()
    draw = random.Random(seed)

    @manager.govern("a", max_output_tokens=CALL, cap_kwarg="cap", usage_fn=lambda result: result)
    async def call(*, cap):
        with flight:
            for _ in range(draw.randrange(1, 30)):
                await asyncio.sleep(0)
        return min(cap, draw.randrange(1, CALL + 1))  # the provider keeps the promise

    async def attempt():
        for _ in range(draw.randrange(30)):
            await asyncio.sleep(0)
        try:
            await call()
        except tbc.BudgetExceededError:
            return 1
        return 0

    async def main():
        return sum(await asyncio.gather(*(attempt() for _ in range(100))))

    refused = asyncio.run(main())
    assert flight.most <= 10
    assert refused + flight.all == 100
    assert manager.report()["a"]["consumed"] <= CAP
    assert manager.ledger.open_holds == {}


def test_threads_and_loans_keep_the_sum():
    manager = tbc.BudgetManager()
    for i in range(8):
        manager.register_agent(f"a{i}", priority=1 + i % 3, max_tokens=500, min_reserve=20)

    def work(i: int) -> None:
        draw = random.Random(i)
        for _ in range(300):
            try:
                with manager.hold(f"a{i}", draw.randrange(400)) as hold:
                    if draw.random() < 0.8:
                        hold.settle(draw.randrange(3))
                    else:
                        hold.void()
            except tbc.BudgetExceededError:
                pass

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    accounts = manager.accounts()[1:]
    assert sum(each.allocated for each in accounts) == 8 * 500
    assert all(each.held == each.lent == each.borrowed == each.debt == 0 for each in accounts)
