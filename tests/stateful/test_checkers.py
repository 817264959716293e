"""The checkers must object: books are falsified by one number, or a step is made that breaks a promise."""

from __future__ import annotations

import re

import attrs
import pytest

import tbc
from tbc.clock import ManualClock
from tbc.decision import Kind
from tbc.testing import Snapshot, check_books, check_step


@pytest.fixture
def manager() -> tbc.BudgetManager:
    """Two siblings below a parent, a hold with a loan, a closed agent and one in debt."""
    manager = tbc.BudgetManager(max_tokens=200, clock=ManualClock())
    manager.register_agent("lead", priority=2, max_tokens=100, min_reserve=10)
    manager.register_agent("low", priority=1, max_tokens=40, min_reserve=5, parent="lead")
    manager.register_agent("high", priority=3, max_tokens=20, min_reserve=0, parent="lead")
    manager.register_agent("gone", max_tokens=10)
    manager.close_agent("gone")
    manager.top_up("lead", 0)
    manager.record_usage("lead", 30)
    manager.hold("high", 40)
    return manager


def books(manager, name):
    return manager.ledger.find(name)


def test_true_books_pass(manager):
    check_books(manager)


@pytest.mark.parametrize("number", ["allocated", "consumed", "held", "lent", "borrowed"])
@pytest.mark.parametrize("name", ["lead", "low", "high", "gone", "(root)"])
def test_a_number_that_the_journal_does_not_say_is_found(manager, name, number):
    setattr(books(manager, name), number, getattr(books(manager, name), number) + 1)
    with pytest.raises(AssertionError, match=re.escape(name)):
        check_books(manager)


def test_a_hold_that_is_not_in_the_books_is_found(manager):
    hold = next(iter(manager.ledger.open_holds.values()))
    hold.amount += 1
    with pytest.raises(AssertionError, match="high: held 40, but its open holds say 41"):
        check_books(manager)


def test_a_closed_account_that_keeps_something_is_found(manager):
    manager.ledger.book(0.0, Kind.REGISTER, books(manager, "gone"), allocated=3)
    with pytest.raises(AssertionError, match="gone: closed, and keeps 3"):
        check_books(manager)


def test_allocation_out_of_nothing_is_found(manager):
    manager.ledger.book(0.0, Kind.LOAN, books(manager, "high"), allocated=3)
    with pytest.raises(AssertionError, match="allocation out of nothing"):
        check_books(manager)


def test_a_hold_that_cannot_be_covered_is_found(manager):
    high = books(manager, "high")
    hold = next(iter(manager.ledger.open_holds.values()))
    manager.ledger.book(0.0, Kind.EXTEND, high, held=10, hold_id=hold.hold_id)
    hold.amount += 10
    with pytest.raises(AssertionError, match="high: debt 10, but only 0 were spent above what was held"):
        check_books(manager)


def test_a_debt_that_was_spent_passes(manager):
    with pytest.raises(tbc.OverrunError):
        manager.record_usage("high", 500)
    check_books(manager)


def falsify(manager, entries=(), **changes):
    """Return a snapshot with accounts changed and entries added."""
    true = Snapshot.of(manager)
    accounts = dict(true.accounts)
    for name, numbers in changes.items():
        accounts[name] = attrs.evolve(accounts[name], **numbers)
    lines = [
        tbc.Entry(true.seq + 1 + i, 0.0, kind, name, peer, allocated, 0, 0)
        for i, (kind, name, peer, allocated) in enumerate(entries)
    ]
    return Snapshot(accounts, (*true.entries, *lines))


@pytest.mark.parametrize(
    ("entries", "changes", "complaint"),
    [
        ([(Kind.LOAN, "low", "high", 5)], {}, "uphill, from priority 3 to priority 1"),
        ([(Kind.COVER, "low", "high", 5)], {}, "uphill"),
        ([(Kind.REBALANCE, "low", "high", 5)], {}, "uphill"),
        ([(Kind.LOAN, "high", "gone", 5)], {}, "no siblings"),
        ([(Kind.DRAW, "high", "low", 5)], {}, "not from the parent"),
        ([(Kind.HAND_DOWN, "high", "(root)", 5)], {}, "not from the parent"),
        ([(Kind.TOP_UP, "high", None, 5)], {}, "not the top of a budget"),
        ([(Kind.LOAN, "(root)", None, 5)], {}, "not the top of a budget"),
        ([], {"low": {"remaining": 4}}, "low: taken from remaining 20 to 4, reserve 5"),
        ([], {"low": {"consumed": -1}}, "low: consumed fell from 0 to -1"),
        ([], {"low": {"allocated": 41}}, "allocated in all changed by"),
    ],
)
def test_a_step_that_breaks_a_promise_is_found(manager, entries, changes, complaint):
    before = Snapshot.of(manager)
    with pytest.raises(AssertionError, match=complaint):
        check_step(before, falsify(manager, entries, **changes))


@pytest.mark.parametrize(
    ("entries", "changes"),
    [([(Kind.USAGE, "low", None, 0)], {}), ([], {"low": {"held": 1}}), ([], {"low": {"min_reserve": 1}})],
)
def test_a_refusal_that_changes_something_is_found(manager, entries, changes):
    before = Snapshot.of(manager)
    with pytest.raises(AssertionError, match="refused, and yet"):
        check_step(before, falsify(manager, entries, **changes), refused=True)


def test_only_the_spender_may_go_below_its_reserve(manager):
    before = Snapshot.of(manager)
    manager.record_usage("low", 18)
    check_step(before, Snapshot.of(manager), spender="low")
    with pytest.raises(AssertionError, match="low: taken from remaining"):
        check_step(before, Snapshot.of(manager), spender="high")
