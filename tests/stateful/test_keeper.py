"""What a keeper writes down is what it builds again: after any history, on both axes, holds and loans too."""

from __future__ import annotations

import tempfile

from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

import tbc
from tbc.keeper import Keeper
from tbc.stores import SqliteStore
from tbc.testing import check_books
from tests.stateful.test_axes import InDollarsToo, InDollarsTooMachine


class KeptMachine(InDollarsTooMachine):
    def make_manager(self, clock):
        self.folder = tempfile.TemporaryDirectory()
        self.store = SqliteStore(self.folder.name + "/books.db", synchronous="NORMAL")
        manager = InDollarsToo(max_tokens=300, clock=clock)
        self.keeper = Keeper(manager, self.store, "pool")
        return manager

    @invariant()
    def what_is_kept_is_what_is_built_again(self) -> None:
        with self.keeper.keep():
            pass
        state = self.store.load_pool("pool")
        again = tbc.BudgetManager(clock=self.clock, unknown_price="track", mode=state.pool.mode)
        holds = Keeper(again, self.store, "pool").restore(state)
        for axis in ("tokens", "usd"):
            assert again.accounts(axis) == self.manager.accounts(axis)
            assert again.report(axis) == self.manager.report(axis)
        assert dict(again.contracts) == {
            name: books.contract for name, books in self.manager.ledger.accounts.items() if not books.closed
        }
        alive = list(self.manager.ledger.open_holds.values())
        assert [hold.hold_id for hold in holds] == [hold.hold_id for hold in alive]
        for one, other in zip(holds, alive, strict=True):
            assert (one.loans, repr(one), one.expires_at) == (other.loans, repr(other), other.expires_at)
        check_books(again)
        for hold in holds:  # they end as they would have: the loans go back
            hold.void()
        check_books(again)

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
