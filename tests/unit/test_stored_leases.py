"""Leases in pools that are kept in a store: found again, followed, answered once, and booked late."""

from __future__ import annotations

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.errors import LeaseOpenError, SliceTooSmallError
from tbc.leases import Amounts, Ask, LeaseTerms, Refused, Report, Slice
from tbc.leasing import LeaseHold
from tbc.records import from_json, to_json
from tbc.testing import check_books
from tests.stateful.lease_world import World


@pytest.fixture
def clock():
    return ManualClock(1000.0)


@pytest.fixture
def opened(open_again, clock):
    """Return what opens a manager of the pool, each time on a store of its own."""
    managers = []

    def open_manager(**how):
        manager = tbc.BudgetManager(store=open_again(), clock=clock, **how)
        managers.append(manager)
        return manager

    yield open_manager
    for manager in managers:
        manager.close()
        assert all(check.ok for check in manager._store.verify())
        manager._store.close()


@pytest.fixture
def manager(opened):
    manager = opened(max_tokens=1000, max_calls=100)
    manager.register_agent("writer", max_tokens=0)
    return manager


@pytest.mark.parametrize(
    "record",
    [
        Slice(7, {"tokens": 5, "usd": None, "calls": 0}),
        Amounts(1, 0, 3, 1),
        LeaseTerms("w", 30.0, 1030.5, Amounts(5)),
        SliceTooSmallError("writer", "usd", 5, 3, 30),
        LeaseOpenError(3, "w", 2.5, 30.0),
    ],
)
def test_records_of_leases_come_back(record):
    again = from_json(to_json(record))
    assert type(again) is type(record)
    assert getattr(again, "args", again) == getattr(record, "args", record)


def test_an_open_lease_is_found_again_as_it_was(manager, opened, clock):
    hold = manager.lease("writer", 20, share=0.1, seconds=30, holder="w1", key="k")
    hold.report(10, calls=2)
    again = opened()
    (record,) = again.leases()
    assert record == manager.leases()[0]
    assert (record.holder, record.reported, record.ends_at) == ("w1", Amounts(10, 0, 2), 1030.0)
    found = again.lease("writer", 20, share=0.1, seconds=30, holder="w1", key="k")
    assert isinstance(found, LeaseHold)
    assert (found.lease, found.first, found.expires_at) == (hold.lease, hold.first, float("inf"))
    assert found.settle(15, calls=2).tokens == 5
    assert again.report()["writer"]["consumed"] == manager.report()["writer"]["consumed"] == 15
    assert manager.leases() == []
    check_books(manager)


def test_messages_are_answered_once_by_whatever_process(manager, opened):
    other = opened()
    ask = Ask("first", "writer", "w", Amounts(10), 0.1, 30.0)
    granted = manager.answer(ask)
    assert granted == Slice(granted.hold_id, {"tokens": 100, "usd": None, "calls": 10})
    assert other.answer(ask) == granted
    more = Ask("second", "writer", "w", Amounts(10), 0.1, 30.0, granted.hold_id, Amounts(50))
    first = other.answer(more)
    assert manager.answer(more) == opened().answer(more) == first
    small = Ask("third", "writer", "w", Amounts(990), 0.1, 30.0)
    refused = manager.answer(small)
    assert isinstance(refused, Refused) and isinstance(refused.error, SliceTooSmallError)
    assert other.answer(small).error.args == refused.error.args
    with pytest.raises(tbc.KeyConflictError):
        raise other.answer(small._replace(need=Amounts(5))).error
    assert len(other.leases()) == 1


def test_a_renewal_is_seen_by_others_and_after_a_restart(manager, opened, clock):
    other = opened()
    granted = manager.answer(Ask("first", "writer", "w", Amounts(10), 0.1, 30.0))
    clock.advance(20)
    manager.answer(Ask("second", "writer", "w", Amounts(), 0.1, 30.0, granted.hold_id))
    clock.advance(20)
    for each in (other, opened()):
        assert [(record.ends_at, record.overdue) for record in each.leases()] == [(1050.0, False)]
        with pytest.raises(LeaseOpenError):
            each.close_lease(granted.hold_id)


def test_an_operator_elsewhere_closes_it_and_the_late_report_is_booked_once(manager, opened, clock):
    hold = manager.lease("writer", share=0.1, seconds=30, holder="w1")
    clock.advance(33)
    operator = opened()
    assert operator.leases()[0].overdue
    closed = operator.close_lease(hold.hold_id, 40, calls=3, key="bill 7", note="by the bill")
    assert closed == operator.close_lease(hold.hold_id, 40, calls=3, key="bill 7", note="by the bill")
    assert operator.remaining(tbc.ROOT) == 960
    for each in (manager, opened(), operator, opened()):
        each.answer(Report(hold.hold_id, Amounts(70, 0, 5), final=True))
        assert each.report()["writer"]["consumed"] == 70
    hold.report(90, calls=6)
    assert opened().report("calls")["writer"]["consumed"] == 6
    lines = [line for line in manager.ledger.entries() if line.hold_id == hold.hold_id and line.tokens]
    assert [(str(line.kind), line.tokens, line.note) for line in lines] == [
        ("report", 40, "by the bill"),
        ("report", 30, "lease"),
        ("report", 20, "lease"),
    ]


def test_what_is_no_lease_is_unknown(manager):
    plain = manager.hold("writer", 5)
    for hold_id in (plain.hold_id, 10**6, "x", None, True):
        with pytest.raises(tbc.UnknownLeaseError):
            manager.close_lease(hold_id)


def test_a_lease_that_could_not_be_kept_is_not_there(manager, monkeypatch):
    def full(*_):
        raise tbc.StoreFullError("x", "no room", "make some")

    before = manager.remaining(tbc.ROOT)
    with monkeypatch.context() as patched:
        patched.setattr(manager._keeper, "write", full)
        with pytest.raises(tbc.StoreFullError):
            manager.lease("writer")
        with pytest.raises(tbc.StoreFullError):
            manager.answer(Ask("first", "writer", "w", Amounts(10), 0.1, 30.0))
    assert manager.leases() == [] and manager.remaining(tbc.ROOT) == before
    hold = manager.lease("writer")
    with monkeypatch.context() as patched:
        patched.setattr(manager._keeper, "write", full)
        for total in (5, 5):
            with pytest.raises(tbc.StoreFullError):
                hold.report(total)
        with pytest.raises(tbc.StoreFullError):
            hold.settle(8)
    assert (hold.state, hold.reported) == ("open", Amounts())
    hold.settle(8)
    with monkeypatch.context() as patched:
        patched.setattr(manager._keeper, "write", full)
        with pytest.raises(tbc.StoreFullError):
            hold.report(9)
    assert hold.reported.tokens == manager.report()["writer"]["consumed"] == 8
    check_books(manager)


def test_calls_of_leases_are_counted_as_they_are_reported(manager, opened, clock):
    from tbc.runs.bill import make_bill
    from tbc.stores import RunRow

    def bill():
        run = RunRow("r", "default", "", "done", "enforce", 0.0, 0.0)
        return make_bill(run, manager._store.entries("default"), [])

    manager.hold("writer", 5, model="gpt-4o-mini").settle(4, usd=0)
    hold = manager.lease("writer", share=0.1, seconds=30, holder="w1")
    hold.report(10, usd="0.5", calls=3)
    hold.report(20, usd="0.75", calls=3)
    assert (bill().total.calls, bill().total.tokens, bill().total.usd) == (4, 24, 750_000_000)
    hold.settle(30, usd="0.75", calls=9, estimated=True)
    hold.report(31, calls=11)
    total = bill().total
    assert (total.calls, total.tokens, total.estimated) == (12, 35, True)
    assert {charge.name: (charge.calls, charge.tokens) for charge in bill().models} == {
        "gpt-4o-mini": (1, 4),
        "(none)": (11, 31),
    }
    assert {charge.name: charge.calls for charge in bill().operations} == {"(none)": 1, "lease": 11}
    for each in (manager, opened(), opened(keep=1)):
        assert each.ledger.journal.calls() == {"writer": 12}
        each.ledger.journal.fold()
        assert each.ledger.journal.calls() == {"writer": 12}


def test_a_pool_that_begins_to_count_dollars_after_leases_knows_how_many_calls_had_no_price():
    manager = tbc.BudgetManager(max_tokens=1000)
    manager.register_agent("writer", max_tokens=0)
    hold = manager.lease("writer")
    hold.settle(30, calls=9)
    manager.hold("writer", 5).settle(4)
    manager.record_usage("writer", 5, usd="0.01")
    assert next(a for a in manager.accounts("usd") if a.agent_name == "writer").unpriced == 10


def test_an_axis_that_is_opened_by_a_lease_is_followed_line_by_line_and_taken_back(opened, monkeypatch):
    manager = opened(max_tokens=1000)
    manager.register_agent("writer", max_tokens=0)
    manager.hold("writer", 5).settle(4)
    other = opened()
    other.report()

    def full(*_):
        raise tbc.StoreFullError("x", "no room", "make some")

    with monkeypatch.context() as patched:
        patched.setattr(other._keeper, "write", full)
        with pytest.raises(tbc.StoreFullError):
            other.lease("writer", share=0.1)
    assert other.report("calls") == manager.report("calls") and "calls" not in other.ledger.sides
    manager.lease("writer", share=0.1).report(7, calls=2)
    for each in (other, opened()):
        assert each.report("calls")["writer"]["consumed"] == 3
        assert each.ledger.entries() == manager.ledger.entries()
        check_books(each)


class StoredWorld(World):
    """The pool is kept, and every message reaches another of two processes; one is now and then replaced."""

    def __init__(self, seed, open_store):
        self.open_store = open_store
        super().__init__(seed)

    def open_pool(self, **caps):
        return _Processes(self, caps)


class _Processes:
    def __init__(self, world, caps):
        self.world = world
        self.each = [self.start(**caps), self.start()]

    def start(self, **caps):
        return tbc.BudgetManager(store=self.world.open_store(), clock=self.world.store_clock, **caps)

    def __getattr__(self, name):
        if self.world.random.random() < 0.02:
            old = self.each.pop()
            old.close()
            old._store.close()
            self.each.append(self.start())
        self.each.reverse()
        self.each[0].used()  # a look at what the other has written
        return getattr(self.each[0], name)

    @property
    def _leases(self):
        keeper = self.each[0]._keeper
        granted = {
            line.hold_id: None
            for line in keeper._store.entries("default")
            if line.note == "lease" and line.hold_id is not None
        }
        return {hold_id: keeper.find_hold(hold_id) for hold_id in granted}


@pytest.mark.parametrize("seed", range(3))
def test_fault_23_messages_that_are_lost_doubled_late_and_overtake_each_other_over_a_store(seed, open_again):
    world = StoredWorld(seed, open_again)
    world.run()
    assert world.steps > 500 and world.spent.total() > 0
    for manager in world.pool.each:
        check_books(manager)
        manager.close()
        assert all(check.ok for check in manager._store.verify())
        manager._store.close()
