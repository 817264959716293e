"""A hundred threads do everything at once; afterwards every promise that shows in the books still holds."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.testing import check_books

THREADS, OPERATIONS = 100, 60


@pytest.fixture(autouse=True)
def nervous_interpreter() -> Iterator[None]:
    """Switch threads far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Worker:
    """One thread's random but seeded work on a shared pool."""

    def __init__(self, manager: tbc.BudgetManager, clock: ManualClock, names: list[str], seed: int) -> None:
        self.manager, self.clock, self.names = manager, clock, names
        self.random = random.Random(seed)
        self.holds: list[tbc.Hold] = []
        self.spent = 0
        self.unexpected: list[BaseException] = []

    def __call__(self) -> None:
        for _ in range(OPERATIONS):
            try:
                self.operate()
            except (tbc.BudgetExceededError, tbc.HoldEndedError, tbc.AgentInUseError, tbc.AgentClosedError):
                continue
            except BaseException as error:
                self.unexpected.append(error)
                return

    def operate(self) -> None:
        name, tokens = self.random.choice(self.names), self.random.randrange(60)
        match self.random.randrange(14):
            case 0 | 1 | 2 | 3:
                expires_s = self.random.choice([5, 600])
                self.holds.append(self.manager.hold(name, tokens, expires_s=expires_s))
            case 4 | 5 | 6 if self.holds:
                settlement = self.holds.pop(self.random.randrange(len(self.holds))).settle(tokens)
                self.spent += 0 if settlement.repeated else tokens
            case 7 if self.holds:
                self.holds.pop().void()
            case 8 if self.holds:
                self.holds[-1].extend(tokens // 4, expires_s=30)
            case 9:
                self.spent += tokens  # booked even where it is an overrun
                try:
                    self.manager.record_usage(name, tokens)
                except tbc.AgentClosedError:
                    self.spent -= tokens
            case 10:
                self.manager.rebalance({name: tokens})
            case 11:
                self.manager.report_confidence(name, self.random.random())
                self.manager.reset_confidence(name)
            case 12:
                own = f"{threading.current_thread().name}-{self.random.randrange(10**9)}"
                self.manager.register_agent(own, max_tokens=tokens, parent=name)
                self.manager.close_agent(own)
            case 13:
                self.clock.advance(0.1)
                self.manager.decide(name, tokens)


@pytest.mark.parametrize(("cap", "seed"), [(3_000, 0), (None, 1)])
def test_a_hundred_threads_leave_whole_books(cap, seed):
    clock = ManualClock()
    manager = tbc.BudgetManager(max_tokens=cap, clock=clock)
    manager.register_agent("low", priority=1, max_tokens=500)
    manager.register_agent("lead", priority=2, max_tokens=900)
    manager.register_agent("high", priority=3, max_tokens=100)
    manager.register_agent("left", priority=1, max_tokens=200, parent="lead")
    manager.register_agent("right", priority=2, max_tokens=0, parent="lead")
    names = ["low", "lead", "high", "left", "right"]
    granted = sum(account.allocated or 0 for account in manager.accounts())
    workers = [Worker(manager, clock, names, seed * THREADS + i) for i in range(THREADS)]
    threads = [threading.Thread(target=worker, name=f"worker{i}") for i, worker in enumerate(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [worker.unexpected for worker in workers if worker.unexpected] == []
    check_books(manager)
    assert sum(account.allocated or 0 for account in manager.accounts()) == granted
    assert sum(account.consumed for account in manager.accounts()) == sum(worker.spent for worker in workers)
    clock.advance(10_000)
    check_books(manager)
    assert all(account.held == account.lent == account.borrowed == 0 for account in manager.accounts())


def test_one_key_sent_by_a_hundred_threads_is_done_once():
    manager = tbc.BudgetManager(max_tokens=1_000, clock=ManualClock())
    manager.register_agent("agent", max_tokens=0)
    start, got = threading.Barrier(THREADS), []

    def send() -> None:
        start.wait(60)
        got.append(manager.hold("agent", 30, key="hold").hold_id)
        manager.record_usage("agent", 7, key="usage")
        manager.top_up("agent", 11, key="top up")
        manager.rebalance({"agent": 13}, key="rebalance")

    threads = [threading.Thread(target=send) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == THREADS
    assert len(set(got)) == 1
    kinds = [entry.kind for entry in manager.ledger.entries() if entry.key]
    assert kinds.count(tbc.Kind.HOLD) == kinds.count(tbc.Kind.USAGE) == kinds.count(tbc.Kind.TOP_UP) == 1
    assert manager.accounts()[1].consumed == 7
    check_books(manager)


def test_one_hold_ended_by_a_hundred_threads_ends_once():
    manager = tbc.BudgetManager(max_tokens=1_000, clock=ManualClock())
    manager.register_agent("agent", max_tokens=0)
    for seed in range(20):
        hold, start = manager.hold("agent", 30), threading.Barrier(10)
        order = random.Random(seed)
        ends = [(hold.settle, (10,)), (hold.settle, (20,)), (hold.void, ()), (hold.extend, (5,))] * 3
        order.shuffle(ends)
        first: list[tbc.Settlement] = []

        def end(act, given, start=start, first=first) -> None:
            start.wait(60)
            try:
                answer = act(*given)
            except tbc.HoldEndedError:
                return
            if isinstance(answer, tbc.Settlement) and not answer.repeated:
                first.append(answer)

        threads = [threading.Thread(target=end, args=each) for each in ends[:10]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert first == [hold.settlement]
        check_books(manager)
