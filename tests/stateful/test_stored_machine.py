"""The machine over managers that keep their books in a store, alone and with others that share it."""

from __future__ import annotations

import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

import tbc
from tbc.stores import SqliteStore
from tbc.testing import BudgetMachine, check_books
from tests.stateful.test_keeper import difference, everything

QUICK = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


class SqliteMachine(BudgetMachine):
    """The books are in a file, and every operation is a transaction."""

    mode = "enforce"

    def make_manager(self, clock):
        self.folder = tempfile.TemporaryDirectory()
        self.path = self.folder.name + "/books.db"
        self.stores = []
        return self.open(clock, max_tokens=150)

    def open(self, clock, **how):
        self.stores.append(SqliteStore(self.path, synchronous="NORMAL"))
        return tbc.BudgetManager(store=self.stores[-1], clock=clock, mode=self.mode, **how)

    @invariant()
    def a_manager_that_is_opened_now_finds_the_same_books(self):
        again = self.open(self.clock)
        try:
            assert difference(everything(again), everything(self.manager)) == {}
            check_books(again)
        finally:
            again.close()
            self.stores.pop().close()

    def teardown(self):
        self.manager.close()
        assert all(check.ok for check in self.stores[0].verify())
        for store in self.stores:
            store.close()
        self.folder.cleanup()


class AuditSqliteMachine(SqliteMachine):
    mode = "audit"


class InTurns:
    """Several managers of one pool that take turns with every operation, and look at the store before."""

    def __init__(self, *managers):
        self.managers = list(managers)

    def __getattr__(self, name):
        self.managers.append(self.managers.pop(0))
        self.managers[0].used()
        return getattr(self.managers[0], name)


class SharedSqliteMachine(SqliteMachine):
    """Two managers share the file: each follows what the other does, and settles the holds it has."""

    def make_manager(self, clock):
        first = super().make_manager(clock)
        return InTurns(first, self.open(clock))

    def teardown(self):
        self.manager.managers[0].close()
        self.manager = self.manager.managers[1]
        super().teardown()


@pytest.mark.parametrize("machine", [SqliteMachine, AuditSqliteMachine, SharedSqliteMachine])
def test_a_store_keeps_the_books_of_the_model(machine):
    run_state_machine_as_test(machine, settings=QUICK)
