"""Subscribers that misbehave: they are told after the fact, and nothing they do reaches the books."""

from __future__ import annotations

import logging

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.events import Booked, GateMoved, Refused
from tbc.testing import check_books


@pytest.fixture
def manager() -> tbc.BudgetManager:
    manager = tbc.BudgetManager(max_tokens=100, clock=ManualClock())
    manager.register_agent("agent", max_tokens=0, confidence_threshold=0.9)
    return manager


def everything(manager):
    """Do every kind of thing that tells something."""
    with manager.hold("agent", 30) as hold:
        hold.extend(10)
        hold.settle(20)
    manager.hold("agent", 5).void()
    with pytest.raises(tbc.BudgetExceededError):
        manager.hold("agent", 500)
    manager.record_usage("agent", 5, confidence=0.95)
    manager.reset_confidence("agent")
    manager.rebalance({"agent": 10})
    manager.top_up("agent", 5)
    manager.register_agent("other", max_tokens=10)
    manager.update_agent("other", priority=2)
    manager.close_agent("other")


def test_a_subscriber_that_always_raises_changes_no_answer_and_no_book(manager, caplog):
    quiet = tbc.BudgetManager(max_tokens=100, clock=ManualClock())
    quiet.register_agent("agent", max_tokens=0, confidence_threshold=0.9)

    def broken(event):
        raise RuntimeError(f"cannot show {event}")

    manager.subscribe(broken)
    with caplog.at_level(logging.ERROR, logger="tbc"):
        everything(manager)
    everything(quiet)
    assert manager.ledger.entries() == quiet.ledger.entries()
    assert "a subscriber raised" in caplog.text
    check_books(manager)


def test_every_entry_is_told_once_and_in_order_and_so_are_refusals_and_gates(manager):
    told = []
    known = manager.ledger.seq
    manager.subscribe(told.append)
    everything(manager)
    entries = [event.entry for event in told if isinstance(event, Booked)]
    assert entries == manager.ledger.entries(known)
    assert [event.decision.requested for event in told if isinstance(event, Refused)] == [500]
    assert [event.closed for event in told if isinstance(event, GateMoved)] == [True, False]


def test_what_expires_is_told_with_the_next_operation(manager):
    told = []
    manager.hold("agent", 10, expires_s=5)
    manager.subscribe(told.append)
    manager.ledger.clock.advance(6)
    manager.hold("agent", 1)
    kinds = [event.entry.kind for event in told]
    assert kinds[:2] == [tbc.Kind.EXPIRE, tbc.Kind.RETURN]


def test_a_subscriber_may_use_the_manager(manager):
    """It is called without the lock; what it moves is told as well."""
    told = []

    def restless(event):
        told.append(event)
        if isinstance(event, Booked) and event.entry.kind is tbc.Kind.HOLD and event.entry.note != "again":
            manager.hold("agent", 1, operation="again").settle(1)

    manager.subscribe(restless)
    manager.hold("agent", 10, operation="first").settle(10)
    assert manager.report()["agent"]["consumed"] == 11
    told_seqs = [event.entry.seq for event in told]
    assert sorted(told_seqs) == list(range(told_seqs[0], manager.ledger.seq + 1))
    check_books(manager)


def test_a_subscriber_may_leave_and_bring_others_while_it_is_told(manager):
    told = []

    def once(event):
        told.append("once")
        remove()
        manager.subscribe(lambda event: told.append("successor"))

    remove = manager.subscribe(once)
    manager.hold("agent", 5)
    assert told[0] == "once"
    told.clear()
    manager.hold("agent", 5)
    assert set(told) == {"successor"}
    check_books(manager)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_inside_a_subscriber_passes_and_leaves_whole_books(manager, interrupt):
    def interrupted(event):
        raise interrupt

    remove = manager.subscribe(interrupted)
    with pytest.raises(interrupt):
        manager.hold("agent", 10)
    remove()
    check_books(manager)
    (hold,) = manager.ledger.open_holds.values()  # granted, and nobody has it: expiry frees
    manager.ledger.clock.advance(601)
    check_books(manager)
    assert hold.state == "expired"
    assert manager.hold("agent", 100).state == "open"
