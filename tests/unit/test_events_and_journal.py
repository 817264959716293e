"""Subscribers are told what is booked; the journal sums to the books, folded or not."""

from __future__ import annotations

import pytest

import tbc
from tbc.clock import EPOCH, ManualClock, system_clock
from tbc.events import Booked, CounterChanged, GateMoved, Refused


def sums(entries: list[tbc.Entry]) -> dict[str, list[int]]:
    books: dict[str, list[int]] = {}
    for entry in entries:
        own = books.setdefault(entry.agent_name, [0, 0, 0])
        own[0] += entry.allocated
        own[1] += entry.consumed
        own[2] += entry.held
        if entry.peer is not None:
            books.setdefault(entry.peer, [0, 0, 0])[0] -= entry.allocated
    return books


def busy_history(manager: tbc.BudgetManager, rounds: int) -> None:
    manager.register_agent("low", priority=1, max_tokens=100_000)
    manager.register_agent("high", priority=5, max_tokens=100)
    for i in range(rounds):
        hold = manager.hold("high", 60 + i % 50)
        if i % 7 == 0:
            hold.extend(5)
        if i % 5 == 0:
            hold.void()
        else:
            hold.settle(i % 90)
        manager.record_usage("low", 1)


@pytest.mark.parametrize("keep", [1, 10, 300, 100_000])
def test_the_journal_sums_to_the_books_however_little_is_kept(keep):
    manager = tbc.BudgetManager(clock=ManualClock(), keep=keep)
    busy_history(manager, 400)
    entries = manager.ledger.entries()
    for each in manager.accounts()[1:]:
        assert sums(entries)[each.agent_name] == [each.allocated, each.consumed, each.held]
    if keep <= 300:
        assert [entry.agent_name for entry in entries if entry.kind is tbc.Kind.OPENING] == ["low", "high"]
    kept = [entry.seq for entry in entries if entry.seq]
    assert kept == list(range(kept[0], kept[-1] + 1))
    assert len(kept) >= min(keep, kept[-1])


def test_entries_since_are_those_after_it():
    manager = tbc.BudgetManager()
    busy_history(manager, 5)
    everything = manager.ledger.entries()
    assert manager.ledger.entries(since=7) == everything[7:]
    assert manager.ledger.entries(since=10_000) == []


def test_the_default_clock_shows_unix_time_in_the_journal():
    manager = tbc.BudgetManager()
    manager.register_agent("a")
    entry = manager.ledger.entries()[-1]
    assert entry.at == entry.timestamp
    assert 0 <= EPOCH + system_clock() - entry.at < 3600


def test_an_injected_clock_is_shown_as_it_is():
    manager = tbc.BudgetManager(clock=ManualClock(77.0))
    manager.register_agent("a")
    assert manager.ledger.entries()[-1].at == 77.0


def test_a_settle_entry_names_the_operation_and_the_hold():
    manager = tbc.BudgetManager()
    manager.register_agent("a")
    hold = manager.hold("a", 10, operation="summarise")
    hold.settle(4, estimated=True)
    (entry,) = manager.ledger.history("a")
    assert (entry.note, entry.hold_id, entry.tokens, entry.estimated) == ("summarise", hold.hold_id, 4, True)


def test_subscribers_are_told_every_line_once_and_in_order():
    manager = tbc.BudgetManager(clock=ManualClock())
    manager.register_agent("before")
    told: list[tbc.events.Event] = []
    remove = manager.subscribe(told.append)
    busy_history(manager, 20)
    seqs = [event.entry.seq for event in told if isinstance(event, Booked)]
    assert seqs == [entry.seq for entry in manager.ledger.entries()[1:]]
    remove()
    manager.record_usage("low", 1)
    assert len([event for event in told if isinstance(event, Booked)]) == len(seqs)


def test_expiries_are_told_with_the_operation_that_noticed_them():
    clock = ManualClock()
    manager = tbc.BudgetManager(clock=clock)
    manager.register_agent("a")
    told: list[tbc.events.Event] = []
    manager.subscribe(told.append)
    manager.hold("a", 10, expires_s=5)
    clock.advance(5)
    manager.hold("a", 1).void()
    kinds = [str(event.entry.kind) for event in told if isinstance(event, Booked)]
    assert kinds == ["hold", "expire", "hold", "void"]


def test_refusals_gates_and_counters_are_told():
    from tbc.tokens import EstimateCounter

    manager = tbc.BudgetManager()
    manager.register_agent("a", max_tokens=10, confidence_threshold=0.5)
    told: list[tbc.events.Event] = []
    manager.subscribe(told.append)
    with pytest.raises(tbc.BudgetExceededError):
        manager.hold("a", 11)
    manager.report_confidence("a", 0.6)
    manager.report_confidence("a", 0.7)
    manager.reset_confidence("a")
    manager.use_counter(EstimateCounter())
    assert [type(event) for event in told] == [Refused, GateMoved, GateMoved, CounterChanged]
    assert (told[1].closed, told[2].closed) == (True, False)
    assert told[3].estimated


def test_a_subscriber_may_use_the_manager():
    manager = tbc.BudgetManager()
    manager.register_agent("a")
    seen = []
    manager.subscribe(lambda event: seen.append(manager.remaining("a")))
    manager.hold("a", 100)
    assert seen == [900]


@pytest.mark.parametrize("error", [tbc.errors.__dict__[name] for name in tbc.errors.__all__])
def test_every_error_is_drawn_in_the_tree(error):
    assert error.__name__ in tbc.errors.__doc__


def test_errors_survive_pickling():
    import pickle

    manager = tbc.BudgetManager()
    manager.register_agent("a", max_tokens=10)
    raised = []
    for call in (
        lambda: manager.hold("a", 11),
        lambda: manager.record_usage("a", 11),
        lambda: manager.hold("nobody", 1),
        lambda: manager.hold("a", -1),
        lambda: manager.register_agent("a", max_tokens=11),
    ):
        try:
            call()
        except tbc.TBCError as error:
            raised.append(error)
    assert len(raised) == 5
    for error in raised:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
