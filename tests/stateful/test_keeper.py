"""What a keeper writes down is what it builds again: after any history, on both axes, holds and loans too."""

from __future__ import annotations

import contextlib
import tempfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, run_state_machine_as_test

import tbc
from tbc.clock import ManualClock
from tbc.errors import TBCError
from tbc.keeper import Keeper
from tbc.leases import Amounts, Ask
from tbc.leasing import LeaseHold
from tbc.reallocator import survey
from tbc.stores import SqliteStore
from tbc.testing import check_books
from tests.stateful.test_axes import InDollarsToo, InDollarsTooMachine


def everything(manager):
    """Return all that two managers with the same books have in common."""
    return {
        "accounts": [manager.accounts(axis) for axis in ("tokens", "usd")],
        "reports": [manager.report(axis) for axis in ("tokens", "usd", "calls")],
        "reach": reach(manager.ledger),
        "contracts": {
            name: (books.contract, books.contract.last_confidence, books.gate_closed)
            for name, books in manager.ledger.accounts.items()
        },
        "holds": [
            (repr(hold), hold.loans, hold.expires_at, [part.granted for part in (hold, *hold.others)])
            for hold in manager.ledger.open_holds.values()
        ],
        "leases": [
            (hold.hold_id, hold.lease, hold.first, hold.reported)
            for hold in manager.ledger.open_holds.values()
            if isinstance(hold, LeaseHold)
        ],
        "seq": manager.ledger.seq,
        "loans": {
            (books.name, books.axis): (books.lent, books.borrowed)
            for account in manager.ledger.every_account()
            for books in manager.ledger.every_book(account)
            if books.lent or books.borrowed
        },
    }


def reach(ledger):
    """Return what every open agent could borrow on every axis, and whether it is capped there."""
    with ledger.lock:
        found = {}
        for axis in ("tokens", *ledger.sides):
            for books in list(ledger.accounts.values()):
                own = ledger.on(axis, books)
                could = survey(own)
                numbers = could.treasury, could.siblings, could.ancestors, could.when_idle
                found[books.name, axis] = own.capped, numbers if own.capped else None
        return found


def difference(one, other):
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


def attempt(operation, *args, **how):
    with contextlib.suppress(TBCError):
        operation(*args, **how)


def meddle(manager):
    """Do a little of everything that changes books."""
    names = [name for name, books in manager.ledger.accounts.items() if not books.closed]
    attempt(manager.register_agent, "new", priority=3, max_tokens=5, max_usd="0.000000005")
    attempt(manager.register_agent, "below", parent="new", max_tokens=0)
    attempt(manager.hold, "below", 4, key="below")
    for number, name in enumerate(names):
        attempt(manager.hold, name, 60 + number, usd=f"0.0000000{60 + number}", key=f"meddled {number}")
        attempt(manager.record_usage, name, 7, usd="0.000000009", confidence=0.9)
        attempt(manager.top_up, name, 3, key=f"more {number}")
        attempt(manager.lease, name, share=0.5, holder="meddler", key=f"leased {number}")
        attempt(manager.lease, name, 10**9, key=f"too much {number}")
    for number, hold in enumerate(list(manager.ledger.open_holds.values())):
        if isinstance(hold, LeaseHold):
            attempt(hold.report, 2 * number, usd="0.000000005", calls=number)
            need = Amounts(tokens=number % 3)
            ask = Ask(f"again {number}", hold.agent_name, "meddler", need, 0.5, 9.0 + number, hold.hold_id)
            attempt(manager.answer, ask)
            if number % 2:
                attempt(hold.settle, 3 * number)
                attempt(hold.report, 10**3, calls=10**3)
            continue
        attempt(*((hold.settle, 3 * number), (hold.void,), (hold.extend, 2), (hold.settle, 500))[number % 4])
    attempt(manager.rebalance, dict.fromkeys(names, 11))
    for name in reversed(names):
        attempt(manager.update_agent, name, priority=2)
        attempt(manager.close_agent, name)


class KeptMachine(InDollarsTooMachine):
    def make_manager(self, clock):
        self.folder = tempfile.TemporaryDirectory()
        self.store = SqliteStore(self.folder.name + "/books.db", synchronous="NORMAL")
        manager = InDollarsToo(max_tokens=300, clock=clock)
        self.keeper = Keeper(manager, self.store, "pool")
        self.other = tbc.BudgetManager(clock=clock, unknown_price="track")
        self.following = None
        return manager

    @invariant()
    def what_is_kept_is_what_is_built_again(self) -> None:
        with self.keeper.keep():
            pass
        kept = everything(self.manager)
        state = self.store.load_pool("pool")
        again = tbc.BudgetManager(clock=self.clock, unknown_price="track", mode=state.pool.mode)
        holds = Keeper(again, self.store, "pool").restore(state)
        assert difference(everything(again), kept) == {}
        check_books(again)
        for hold in holds:  # they end as they would have: the loans go back
            hold.void()
        check_books(again)

    @invariant()
    def another_manager_follows(self) -> None:
        with self.keeper.keep():
            pass
        if self.following is None:
            self.following = Keeper(self.other, self.store, "pool")
            self.following.restore(self.store.load_pool("pool"))
        else:
            self.following.follow(self.store.news("pool", self.following.mark))
        assert difference(everything(self.other), everything(self.manager)) == {}
        check_books(self.other)

    @invariant()
    def what_cannot_be_kept_is_taken_back(self) -> None:
        if self.following is None:
            return
        before = everything(self.other)
        meddle(self.other)
        with self.other.ledger.lock:
            self.following.undo()
        assert difference(before, everything(self.other)) == {}
        check_books(self.other)

    def teardown(self) -> None:
        assert all(check.ok for check in self.store.verify())
        self.store.close()
        self.folder.cleanup()


def test_what_is_kept_is_what_is_built_again():
    run_state_machine_as_test(
        KeptMachine,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_meddling_changes_the_books():
    manager = tbc.BudgetManager(max_tokens=300, max_usd="0.0000003", unknown_price="track")
    manager.register_agent("a", max_tokens=100, max_usd="0.0000001")
    before = everything(manager)
    meddle(manager)
    after = everything(manager)
    assert all(after[name] != before[name] for name in before if name != "loans")


def lease_steps():
    numbers = st.integers(0, 5)
    return st.lists(
        st.tuples(
            st.sampled_from(["lease", "report", "refill", "settle", "close", "hold", "wait"]),
            numbers,
            st.integers(0, 90),
        ),
        max_size=25,
    )


class Leasing:
    """A pool with leases in it that is kept, and another manager that follows."""

    def __init__(self, store):
        self.clock = ManualClock(5.0)
        self.store = store
        self.manager = tbc.BudgetManager(max_tokens=500, max_calls=90, clock=self.clock)
        self.keeper = Keeper(self.manager, store, "pool")
        for name, priority in (("reader", 1), ("writer", 9)):
            self.manager.register_agent(name, priority, max_tokens=100, max_calls=10)
        self.other = tbc.BudgetManager(clock=self.clock)
        self.following = Keeper(self.other, store, "pool")
        self.holds = []
        self.kept()
        self.following.restore(store.load_pool("pool"))

    def kept(self):
        with self.keeper.keep():
            pass

    def step(self, number, what, which, amount):
        hold = self.holds[which % len(self.holds)] if self.holds else None
        if what == "lease":
            with contextlib.suppress(TBCError):
                self.holds.append(
                    self.manager.lease(
                        ("reader", "writer")[which % 2], amount, share=0.5, holder="w", key=f"k{number}"
                    )
                )
        elif what == "hold":
            attempt(self.manager.hold, ("reader", "writer")[which % 2], 2 * amount, key=f"h{number}")
        elif what == "wait":
            self.clock.advance(amount / 2)
        elif hold is None:
            return
        elif what == "report":
            hold.report(2 * amount, calls=which)
        elif what == "refill":
            need = Amounts(amount % 3 * 20, 0, 1)
            ask = Ask(f"r{number}", hold.agent_name, "w", need, 0.3, 20.0, hold.hold_id, Amounts(amount))
            self.manager.answer(ask)
        elif what == "settle":
            hold.settle(amount, calls=1)
        elif what == "close":
            attempt(self.manager.close_lease, hold.hold_id, amount)

    def check(self):
        self.kept()
        self.following.follow(self.store.news("pool", self.following.mark))
        expected = everything(self.manager)
        assert difference(everything(self.other), expected) == {}
        meddle(self.other)
        for hold in self.holds:  # late ones too, of leases that have ended
            attempt(self.following.find_hold(hold.hold_id).report, 10**4, calls=10**3)
        with self.other.ledger.lock:
            self.following.undo()
        assert difference(everything(self.other), expected) == {}
        again = tbc.BudgetManager(clock=self.clock)
        Keeper(again, self.store, "pool").restore(self.store.load_pool("pool"))
        assert difference(everything(again), expected) == {}
        for manager in (self.manager, self.other, again):
            check_books(manager)
        for hold in self.holds:
            assert self.following.find_hold(hold.hold_id).reported == hold.reported


@settings(max_examples=40, deadline=None)
@given(lease_steps())
def test_leases_are_kept_and_followed_and_taken_back(steps):
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteStore(folder + "/b.db", synchronous="NORMAL") as store,
    ):
        pool = Leasing(store)
        for number, step in enumerate(steps):
            pool.step(number, *step)
            pool.check()
        assert all(check.ok for check in store.verify())
