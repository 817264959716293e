"""`BudgetManager(store=..., lease=...)`: what users touch is there, and the books end as without leases."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from functools import partial

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.errors import InvalidContractError
from tbc.leased import LeasedManager
from tbc.leases import Report
from tbc.testing import check_books
from tests.waiting import until

LEASE = tbc.Lease(share=0.1, seconds=30)


@pytest.fixture
def opened(open_again):
    managers, stores = [], []

    def open_manager(**how):
        stores.append(open_again())
        managers.append(tbc.BudgetManager(store=stores[-1], **how))
        return managers[-1]

    yield open_manager
    for manager in managers:
        manager.close()
    for store in stores:
        assert all(check.ok for check in store.verify())
        store.close()


@pytest.fixture
def shared(opened):
    shared = opened(max_tokens=10_000, max_usd="1", unknown_price="track")
    shared.register_agent("writer", 5, max_tokens=0, max_usd=0)
    return shared


def consumed(manager, axis="tokens"):
    return manager.report(axis)["writer"]["consumed"]


def test_leases_need_a_store_and_terms():
    for how in ({"lease": LEASE}, {"holder": "w"}, {"lease": 0.1, "store": "sqlite:///no.db"}):
        with pytest.raises(InvalidContractError, match=r"leases need a tbc\.Lease and a store"):
            tbc.BudgetManager(**how)


def test_a_url_is_enough(tmp_path):
    url = f"sqlite:///{tmp_path}/books.db"
    with tbc.BudgetManager(store=url, pool="p", max_tokens=1000, lease=LEASE) as worker:
        assert isinstance(worker, LeasedManager)
        worker.register_agent("writer", max_tokens=0)
        worker.hold("writer", 50).settle(40)
        (record,) = worker.leases()
        assert record.holder.count(":") == 1 and record.holder.partition(":")[2].isdigit()
    with tbc.BudgetManager(store=url, pool="p") as again:
        assert (consumed(again), again.leases()) == (40, [])
    with pytest.raises(tbc.StoreError):
        worker.report()


def play(manager, seed, clock):
    """Spend by a seeded history that any manager answers alike; returns what was granted."""
    rnd = random.Random(seed)
    granted = []
    for _ in range(60):
        tokens, name = rnd.randint(0, 60), rnd.choice(("writer", "reader"))
        clock.advance(rnd.random())
        what = rnd.random()
        try:
            if what < 0.1:
                manager.record_usage(name, tokens, usd="0.0001")
                continue
            hold = manager.hold(name, tokens, usd="0.001", key=f"k{len(granted)}" if what < 0.2 else None)
        except tbc.BudgetExceededError:
            granted.append(None)
            continue
        granted.append(tokens)
        if what < 0.3:
            hold.void()
        elif what < 0.4:
            hold.extend(5)
            hold.settle(tokens + 5, usd="0.0011")
        elif what < 0.5:
            hold.settle(estimated=True)
        else:
            hold.settle(rnd.randint(0, tokens), usd="0.0007")
    return granted


@pytest.mark.parametrize("seed", range(4))
def test_the_books_end_as_those_of_a_direct_manager(opened, seed):
    reports = []
    for pool, how in (("direct", {}), ("leased", {"lease": LEASE, "holder": "w"})):
        clock = ManualClock(10.0)
        manager = opened(pool=pool, clock=clock, max_tokens=2000, max_usd="0.1", max_calls=80, **how)
        for name in ("writer", "reader"):
            manager.register_agent(name, max_tokens=0, max_usd=0, max_calls=0)
        granted = play(manager, seed, clock)
        manager.close()
        again = opened(pool=pool, clock=clock)
        check_books(again)
        assert again.leases() == []
        reports.append((granted, [again.report(axis) for axis in ("tokens", "usd", "calls")], again.used()))
    assert reports[0] == reports[1]
    assert reports[0][2]["tokens"][0] > 500


def test_what_users_touch_is_there(shared, opened):
    worker = opened(lease=LEASE, holder="w", unknown_price="track")
    told = []
    end = worker.subscribe(told.append)
    worker.register_agent("reader", max_tokens=500)
    worker.top_up(tbc.ROOT, 100)
    worker.hold("writer", 10, usd="0.001").settle(7, usd="0.0005")
    assert worker.remaining("writer") == shared.remaining("writer") + (10_100 - 500) // 10 - 7
    assert worker.update_agent("writer", priority=7).priority == 7
    assert worker.decide("writer", 20, usd=0).status.refuses is False
    worker.rebalance({"writer": 0})
    worker.record_usage("writer", 3, usd=0)
    worker.report_confidence("writer", 0.5)
    worker.reset_confidence("writer")
    assert [account.consumed for account in worker.accounts() if account.agent_name == "writer"] == [10]
    assert worker.used()["tokens"][0] == 10
    assert worker.contracts["writer"].priority == worker.contracts["writer"].priority == 7
    assert (worker.mode, worker.count("four words of text") > 0) == ("enforce", True)
    worker.close_agent("writer")
    assert worker.leases() == []
    with pytest.raises(tbc.AgentClosedError):
        worker.hold("writer", 1, usd=0)
    with pytest.raises(AttributeError):
        _ = worker.no_such_thing
    end()
    assert told


def test_an_operator_can_be_a_worker(shared, opened):
    clock = ManualClock(5.0)
    worker = opened(lease=LEASE, pool="other", clock=clock, max_tokens=1000)
    worker.register_agent("writer", max_tokens=0)
    hold = worker.lease("writer", share=0.5, seconds=1, holder="gone")
    clock.advance(2)
    worker.close_lease(hold.hold_id, 30)
    assert consumed(worker) == 30


@pytest.mark.parametrize(
    "name", ["a" * 128, "\u7814\u7a76" * 20, "researcher/eu-west/literature"], ids=["long", "wide", "path"]
)
def test_names_of_agents_and_workers_may_be_long(shared, opened, name):
    worker = opened(lease=LEASE, holder="tenant-budget-worker-deployment-6f7d9c8b5d-x2x7q:1" * 3)
    worker.register_agent(name, max_tokens=0)
    worker.hold(name, 10, usd=0).settle(10, usd=0)
    assert len(worker.leases()) == 1
    assert worker.report()[name]["consumed"] == 10


def test_the_root_is_held_from_directly(shared, opened):
    worker = opened(lease=LEASE, holder="w")
    worker.hold(tbc.ROOT, 10, usd=0).settle(7, usd=0)
    assert worker.used()["tokens"] == (7, 10_000) and worker.leases() == []


def test_what_ends_after_the_close_of_the_store_says_that_nobody_books_it(tmp_path):
    how = {"store": f"sqlite:///{tmp_path}/closed.db", "lease": LEASE, "unknown_price": "track"}
    worker = tbc.BudgetManager(**how, max_tokens=10_000)
    worker.register_agent("writer", max_tokens=1_000)
    with pytest.raises(tbc.StoreError) as raised, worker.hold("writer", 10) as held:
        held.record(600)
        worker.close()
    assert "The 600 tokens that were spent are not booked" in raised.value.__notes__[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_late_settle_of_a_slice_that_was_given_back_is_the_parents_too(shared, opened):
    worker = opened(lease=LEASE, holder="w")
    held = worker.hold("writer", 10, usd=0)
    worker._seats["writer"].books.give_back()
    child = os.fork()
    if not child:
        try:
            held.settle(10, usd=0)
        except tbc.StoreError as error:
            os._exit("before the fork" not in str(error))
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_the_child_has_to_open_a_manager_of_its_own(shared, opened):
    worker = opened(lease=LEASE, holder="w")
    held = worker.hold("writer", 10, usd=0)
    uses = (
        partial(worker.hold, "writer", 10, usd=0),
        partial(held.settle, 10, usd=0),
        held.void,
        partial(held.extend, 1, usd=0),
    )
    child = os.fork()
    if not child:
        told = 0
        for use in uses:
            try:
                use()
            except tbc.StoreError as error:
                told += "before the fork" in str(error)
        os._exit(len(uses) - told)
    assert os.waitpid(child, 0)[1] == 0
    held.settle(10, usd=0)
    worker.hold("writer", 10, usd=0).settle(10, usd=0)
    assert consumed(worker) == 20


def test_governed_calls_are_held_in_the_slice(shared, opened):
    worker = opened(lease=LEASE, holder="w", unknown_price="track")

    @worker.govern("writer", max_output_tokens=50, usage_fn=lambda reply: 30, confidence_fn=lambda reply: 0.1)
    def ask(text):
        return text * 2

    @worker.govern("writer", max_output_tokens=50)
    def stream(text):
        yield from text.split()

    assert ask("a") == "aa"
    before = shared.ledger.seq
    assert list(stream("one two three")) == ["one", "two", "three"]
    assert shared.ledger.seq == before
    held = worker.hold("writer", 10, usd=0)
    assert held.remaining == worker.remaining("writer") and held.wind_down is False
    held.extend(990, usd=0)  # more than the slice has left
    held.void()
    assert consumed(worker) > 30
    assert len(worker.leases()) == 1


def test_an_event_loop_never_waits_for_the_store(shared, opened, monkeypatch):
    worker = opened(lease=LEASE, holder="w", unknown_price="track")
    real, loop_thread, asked = worker._shared.answer, threading.current_thread(), []

    def answer(message):
        asked.append(threading.current_thread())
        return real(message)

    monkeypatch.setattr(worker._shared, "answer", answer)

    @worker.govern("writer", max_output_tokens=50, usage_fn=lambda reply: 30)
    async def ask(text):
        return text

    async def work():
        async with worker.ahold("writer", 100, usd=0) as hold:
            await hold.asettle(1200, usd=0)  # more than the slice has left
            assert hold.settlement.overrun == 0
        for _ in range(40):
            held = await worker.ahold("writer", 100, usd=0)
            await held.asettle(40, usd=0)
        assert await ask("words") == "words"
        pending = worker.ahold("writer", 10, usd=0)
        await asyncio.create_task(pending)

    asyncio.run(work())
    assert asked and loop_thread not in asked
    assert consumed(worker) == 1200 + 1600 + 30


def test_calls_in_flight_at_the_close_are_booked_as_estimates(shared, opened):
    worker = opened(lease=LEASE, holder="w", unknown_price="track")
    worker.hold("writer", 10, usd=0).settle(7, usd=0)
    worker.report()
    worker.hold("writer", 100, usd=0)
    worker.close()
    assert consumed(shared) == 107
    booked = [
        (line.tokens, line.estimated) for line in shared.ledger.history("writer") if line.axis == "tokens"
    ]
    assert booked == [(7, False), (100, True)]


@pytest.fixture
def outlived(shared, opened):
    """A worker, and a hold of it that has expired, and whose slice has been given back since."""
    clock = ManualClock()
    worker = LeasedManager(opened(unknown_price="track"), LEASE, clock=clock)
    hold = worker.hold("writer", 500, usd="0.02", expires_s=5)
    for _ in range(5):
        clock.advance(8)
        worker.tend()
    assert worker.leases() == [] and hold.state == "expired"
    yield worker, hold
    worker.close()


def test_a_call_that_outlives_its_hold_and_the_slice_is_kept_when_it_is_answered(shared, opened, outlived):
    worker, hold = outlived
    hold.settle(420, usd="0.03")
    after_a_crash = opened()
    assert (consumed(after_a_crash), consumed(after_a_crash, "usd")) == (420, 30_000_000)
    assert consumed(after_a_crash, "calls") == 1
    worker.close()
    assert (consumed(shared), consumed(shared, "usd"), consumed(shared, "calls")) == (420, 30_000_000, 1)


def test_an_event_loop_does_not_wait_while_a_late_settle_is_told(shared, outlived, monkeypatch):
    worker, hold = outlived
    real, told_by = worker._shared.answer, []
    monkeypatch.setattr(
        worker._shared, "answer", lambda message: told_by.append(threading.get_ident()) or real(message)
    )
    settlement = asyncio.run(hold.asettle(420, usd=0))
    assert (settlement.late, settlement.repeated, consumed(shared)) == (True, False, 420)
    assert told_by and threading.get_ident() not in told_by


@pytest.mark.parametrize("expires_s", [5, 600])
def test_a_settle_after_the_close_is_booked_or_says_that_it_cannot_be(tmp_path, expires_s):
    url, clock = f"sqlite:///{tmp_path}/books.db", ManualClock()
    worker = tbc.BudgetManager(store=url, max_tokens=10_000, lease=LEASE)
    worker._clock = clock
    worker.register_agent("writer", max_tokens=0)
    hold = worker.hold("writer", 500, expires_s=expires_s)
    clock.advance(6)
    worker.close()
    for _ in range(2):
        with pytest.raises(tbc.StoreError):
            hold.settle(800)
    with tbc.BudgetManager(store=url) as again:
        assert consumed(again) == (0 if expires_s == 5 else 500)


def test_reports_say_what_is_an_estimate(shared, opened, monkeypatch):
    worker = opened(lease=LEASE, holder="w", unknown_price="track")
    said = []
    real = worker._shared.answer
    monkeypatch.setattr(worker._shared, "answer", lambda message: said.append(message) or real(message))
    worker.hold("writer", 10, usd=0).settle(7, usd=0)
    worker.report()
    worker.hold("writer", 10, usd=0).settle(9, usd=0, estimated=True)
    worker.report()
    worker.hold("writer", 10, usd=0).settle(9, usd=0)
    worker.report()
    assert [message.estimated for message in said if isinstance(message, Report)] == [False, True, False]


def test_a_store_that_is_away_leaves_an_allowance_for_what_the_slice_does_not_cover(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/books.db"
    allowance = tbc.Allowance(tokens=500)
    with tbc.BudgetManager(store=url, max_tokens=1000, lease=LEASE, when_away=allowance) as worker:
        worker.register_agent("writer", max_tokens=0)
        worker.hold("writer", 10).settle(10)

        def away(*_, **__):
            raise tbc.StoreBusyError(url, "locked", "Try again")

        with monkeypatch.context() as patched:
            patched.setattr(worker._shared._store, "transaction", away)
            worker.hold("writer", 60).settle(60)  # of the slice
            worker.hold("writer", 300).settle(300)
            with pytest.raises(tbc.TBCError):
                worker.hold("writer", 300)
        until(lambda: consumed(worker) == 370)
