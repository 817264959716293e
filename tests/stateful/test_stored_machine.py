"""The machine over managers that keep their books in a store, alone and with others that share it."""

from __future__ import annotations

import itertools
import os
import tempfile

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, invariant, multiple, run_state_machine_as_test

import tbc
from tbc.stores import PostgresStore, SqliteStore
from tbc.testing import BudgetMachine, check_books
from tbc.testing.strategies import NAMES
from tests.stateful.test_axes import TokenTerms, token_terms
from tests.stateful.test_keeper import difference, everything

QUICK = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


class StoredMachine(BudgetMachine):
    """The books are in a store, and every operation is a transaction."""

    mode = "enforce"

    def make_manager(self, clock):
        self.stores = []
        self.begin()
        return self.open(clock, max_tokens=150)

    def open(self, clock, **how):
        self.stores.append(self.open_store())
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
        self.end()


class SqliteMachine(StoredMachine):
    """A file."""

    def begin(self):
        self.folder = tempfile.TemporaryDirectory()

    def open_store(self):
        return SqliteStore(self.folder.name + "/books.db", synchronous="NORMAL")

    def end(self):
        self.folder.cleanup()


class PostgresMachine(StoredMachine):
    """A schema of a server; `url` is set by the test."""

    url: str
    numbers = itertools.count(1)

    def begin(self):
        self.schema = f"machine{os.getpid()}_{next(self.numbers)}"

    def open_store(self):
        return PostgresStore(self.url, schema=self.schema, connections=2)

    def end(self):
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'DROP SCHEMA "{self.schema}" CASCADE')


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


class Shared:
    """Two managers share the store: each follows what the other does, and settles the holds it has."""

    def make_manager(self, clock):
        first = super().make_manager(clock)
        return InTurns(first, self.open(clock))

    def teardown(self):
        self.manager.managers[0].close()
        self.manager = self.manager.managers[1]
        super().teardown()


class SharedSqliteMachine(Shared, SqliteMachine):
    pass


class SharedPostgresMachine(Shared, PostgresMachine):
    pass


class SomeInDollars(InTurns):
    """Some agents may spend no dollars, and so may nobody below them; what calls cost is not known."""

    capped = NAMES[-3:]

    @property
    def contracts(self):
        return TokenTerms(self.__getattr__("contracts"))

    def register_agent(self, name, **terms):
        usd = {"max_usd": "0"} if name in self.capped else {}
        return token_terms(self.__getattr__("register_agent")(name, **terms, **usd))


class PartlyInDollarsMachine(SqliteMachine):
    """Accounts of dollars are opened on the way, by calls of whoever is below or above them."""

    agents = SqliteMachine.agents

    def open(self, clock, **how):
        return super().open(clock, unknown_price="track", **how)

    @initialize(target=agents)
    def start_with_a_chain(self):
        """Below the cap there is one who will not always be asked for, and below that one another."""
        chain = zip(("gus", "dan", "bob"), (None, "gus", "dan"), strict=True)
        contracts = [(tbc.BudgetContract(name, max_tokens=9, min_reserve=0), above) for name, above in chain]
        return multiple(*(name for terms, above in contracts for name in self._register(terms, above, False)))

    def make_manager(self, clock):
        first = super().make_manager(clock)
        return SomeInDollars(first, self.open(clock))

    @invariant()
    def both_have_the_same_books(self):
        one, other = self.manager.managers
        one.used()
        other.used()
        assert difference(everything(one), everything(other)) == {}

    def teardown(self):
        self.manager.managers[0].close()
        self.manager = self.manager.managers[1]
        super().teardown()


@pytest.mark.parametrize(
    "machine", [SqliteMachine, AuditSqliteMachine, SharedSqliteMachine, PartlyInDollarsMachine]
)
def test_a_file_keeps_the_books_of_the_model(machine):
    run_state_machine_as_test(machine, settings=QUICK)


@pytest.mark.parametrize("machine", [PostgresMachine, SharedPostgresMachine])
def test_a_server_keeps_the_books_of_the_model(machine, postgres_url):
    machine.url = postgres_url
    run_state_machine_as_test(machine, settings=QUICK)
