"""What a keeper writes down is what it builds again: after any history, on both axes, holds and loans too."""

from __future__ import annotations

import contextlib
import tempfile

from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

import tbc
from tbc.errors import TBCError
from tbc.keeper import Keeper
from tbc.stores import SqliteStore
from tbc.testing import check_books
from tests.stateful.test_axes import InDollarsToo, InDollarsTooMachine


def everything(manager):
    """Return all that two managers with the same books have in common."""
    return {
        "accounts": [manager.accounts(axis) for axis in ("tokens", "usd")],
        "reports": [manager.report(axis) for axis in ("tokens", "usd", "calls")],
        "contracts": {
            name: (books.contract, books.contract.last_confidence, books.gate_closed)
            for name, books in manager.ledger.accounts.items()
        },
        "holds": [
            (repr(hold), hold.loans, hold.expires_at, [part.granted for part in (hold, *hold.others)])
            for hold in manager.ledger.open_holds.values()
        ],
        "seq": manager.ledger.seq,
        "loans": {
            (books.name, books.axis): (books.lent, books.borrowed)
            for account in manager.ledger.every_account()
            for books in manager.ledger.every_book(account)
            if books.lent or books.borrowed
        },
    }


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
    for number, hold in enumerate(list(manager.ledger.open_holds.values())):
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
    assert all(after[name] != before[name] for name in before if name not in ("holds", "loans"))
