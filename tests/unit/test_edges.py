"""Edges that were wrong once: each test is the shortest history that shows it."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.contract import MAX_AMOUNT
from tbc.events import Booked
from tbc.holds import Said


def make(max_tokens: int | None = 1_000) -> tbc.BudgetManager:
    manager = tbc.BudgetManager(max_tokens=max_tokens, clock=ManualClock())
    manager.register_agent("a")
    return manager


def test_entries_are_told_once_under_threads():
    manager = tbc.BudgetManager(max_tokens=10**9)
    manager.register_agent("a")
    told: list[int] = []
    manager.subscribe(lambda event: told.append(event.entry.seq) if isinstance(event, Booked) else None)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: [manager.hold("a", 1).settle(1) for _ in range(200)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    finally:
        sys.setswitchinterval(before)
    assert len(told) == len(set(told))
    assert set(told) == {entry.seq for entry in manager.ledger.entries()[2:]}


def test_what_a_finalizer_left_is_done_by_the_next_look():
    manager = make()
    hold = manager.hold("a", 100)
    with manager.ledger.lock:
        manager.end_later(hold, Said(7, estimated=True))
    manager.hold("a", 1, expires_s=5).void()
    assert manager.report()["a"]["consumed"] == 7


def test_closing_is_refused_with_an_open_hold_of_0_tokens():
    manager = make()
    manager.hold("a", 0)
    with pytest.raises(tbc.AgentInUseError):
        manager.close_agent("a")


def test_a_refused_top_up_is_refused_again_under_its_key():
    manager = make(100)
    for _ in range(2):
        with pytest.raises(tbc.CarveOutError, match="can spare 100"):
            manager.top_up("a", 200, key="k")
        manager.top_up(tbc.ROOT, 1_000, key="r")


def test_an_extend_is_safe_to_repeat_under_a_key():
    manager = make()
    hold = manager.hold("a", 10)
    for _ in range(3):
        hold.extend(5, key="k")
    assert hold.tokens == 15
    with pytest.raises(tbc.KeyConflictError):
        hold.extend(6, key="k")


def test_no_hold_and_no_account_grows_beyond_the_largest_amount():
    manager = make(MAX_AMOUNT)
    with pytest.raises(tbc.InvalidAmountError):
        manager.top_up(tbc.ROOT, 1)
    hold = manager.hold("a", MAX_AMOUNT)
    with pytest.raises(tbc.InvalidAmountError):
        hold.extend(1)
    assert hold.settle(MAX_AMOUNT).overrun == 0


@pytest.mark.parametrize("bad", [True, -1, 1.5, float("nan"), "x"])
def test_at_least_is_an_amount(bad):
    with pytest.raises(tbc.InvalidAmountError):
        make().hold("a", 10, at_least=bad)


def test_a_closed_agent_reports_no_confidence_and_gets_nothing():
    manager = make()
    manager.close_agent("a")
    for call in (
        lambda: manager.report_confidence("a", 0.5),
        lambda: manager.reset_confidence("a"),
        lambda: manager.reallocator.reallocate("a", 5),
    ):
        with pytest.raises(tbc.AgentClosedError):
            call()


def test_rebalance_of_odd_names_is_typed_and_the_root_lacks_what_nobody_gives():
    manager = make()
    with pytest.raises(tbc.UnknownAgentError):
        manager.rebalance({1: 5, "a": 3})
    assert manager.rebalance({tbc.ROOT: 5}).unmet == {tbc.ROOT: 5}


def test_a_late_or_freed_settlement_says_its_operation():
    manager = make()
    assert manager.hold("a", 1, operation="op").void().operation == "op"
    hold = manager.hold("a", 1, operation="op", expires_s=1)
    manager._clock.advance(2)
    assert manager.report() and hold.settlement.operation == "op"
    assert hold.settle(1).operation == "op"


def test_a_hold_left_from_another_context_is_ended():
    manager = make()

    async def chunks():
        async with manager.ahold("a", 100) as hold:
            hold.record(7)
            yield 1
            yield 2

    async def main():
        generator = chunks()
        await asyncio.create_task(anext(generator))
        await asyncio.create_task(generator.aclose())

    asyncio.run(main())
    assert manager.ledger.open_holds == {}
    assert manager.report()["a"]["consumed"] == 7


def test_a_hold_entered_twice_under_its_key_gives_the_context_back():
    manager = make()
    with manager.hold("a", 10, key="k"), manager.hold("a", 10, key="k") as hold:
        assert tbc.current_hold() is hold
    with pytest.raises(tbc.NoCurrentHoldError):
        tbc.current_hold()


def test_holds_that_leak_steadily_are_sorted_once(monkeypatch):
    manager = make(10**6)
    clock = manager._clock
    for _ in range(500):
        manager.hold("a", 1, expires_s=600)
        clock.advance(0.01)
    clock.advance(595)
    from tbc import lifecycle

    sorts = []
    monkeypatch.setattr(lifecycle, "heapify", lambda heap: (sorts.append(len(heap)), heap.sort())[1])
    for _ in range(500):
        clock.advance(0.01)
        manager.hold("a", 1, expires_s=600).settle(1)
    assert len(sorts) <= 1
    assert len(manager.ledger.open_holds) < 5


def test_an_extended_hold_lives_on_and_a_shortened_one_ends_early():
    manager = make()
    clock = manager._clock
    longer, shorter = manager.hold("a", 1, expires_s=10), manager.hold("a", 1, expires_s=10)
    longer.extend(expires_s=100)
    shorter.extend(expires_s=2)
    clock.advance(3)
    assert (manager.report() and longer.state, shorter.state) == ("open", "expired")
    clock.advance(50)
    assert manager.report() and longer.state == "open"
    clock.advance(50)
    assert manager.report() and longer.state == "expired"


def test_a_cap_from_the_history_is_never_0():
    manager = make()
    caps = []

    @manager.govern("a", cap_kwarg="cap", usage_fn=lambda result: 0)
    def call(*, cap):
        caps.append(cap)
        return ""

    for _ in range(8):
        call()
    assert min(caps) >= 1
