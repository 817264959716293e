"""The machine must fail: each defect is planted into the real code, and the machine has to find it.

A machine that finds nothing proves nothing. What is planted here are the defects that budget libraries are
known for, one at a time.
"""

from __future__ import annotations

from heapq import heapify

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import tbc.clearing
from tbc import lifecycle, tree
from tbc.confidence import ConfidenceGate
from tbc.decision import Kind, Status
from tbc.donors import DonorIndex
from tbc.keys import Answers
from tbc.ledger import Books, Ledger
from tbc.reallocator import apply, find_cover, survey
from tests.stateful.machines import CappedMachine, UncappedMachine

# Why no shrinking: that it is found is all that is asked, and the first failure is as good as the smallest.
SEARCH = settings(
    max_examples=2_000,
    stateful_step_count=40,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    database=None,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def settle_forgets_to_return_loans(patch):
    def forgetful(ledger, part, hold_id, unused, ending, first):
        for loan in part.lenders or ():
            ledger.repay(ending, part, loan)
        return ()

    patch.setattr(lifecycle, "_return_loans", forgetful)


def loans_return_first_lender_first(patch):
    original = lifecycle._return_loans

    def reversed_(ledger, part, hold_id, unused, ending, first):
        if part.lenders:
            part.lenders.reverse()
        returned = original(ledger, part, hold_id, unused, ending, first)
        if part.lenders:
            part.lenders.reverse()
        return returned

    patch.setattr(lifecycle, "_return_loans", reversed_)


def holds_drain_reserves(patch):
    def spare(books):
        return max(0, books.remaining) if books.capped and not books.closed else 0

    patch.setattr(Books, "spare", property(spare))


def loans_run_uphill(patch):
    patch.setattr(DonorIndex, "lendable", lambda self, priority: self._spare.first(len(self._levels)))


def an_overrun_is_lost(patch):
    original = lifecycle.settle

    def capped(ledger, hold, spent, now):
        return original(ledger, hold, [s._replace(amount=min(s.amount, s.part.amount)) for s in spent], now)

    patch.setattr(lifecycle, "settle", capped)


def an_overrun_is_not_said(patch):
    original = lifecycle.cover_excess
    patch.setattr(lifecycle, "cover_excess", lambda *args: (original(*args)[0], 0))


def a_refused_hold_leaves_donors_drained(patch):
    original = lifecycle.grant

    def greedy(desk, ledger, asked, now, *rest):
        granted = original(desk, ledger, asked, now, *rest)
        books = asked[0].books
        if isinstance(granted, tbc.Decision) and granted.status is not Status.GATE_CLOSED and books.capped:
            found = survey(books).total
            apply(ledger, now, find_cover(books, found, Kind.LOAN))
        return granted

    patch.setattr(lifecycle, "grant", greedy)


def a_key_is_not_replayed(patch):
    patch.setattr(Answers, "recall", lambda self, key, content: None)


def a_key_answers_for_other_content(patch):
    patch.setattr(Answers, "recall", lambda self, key, content: self._answers.get(key, (None, None))[1])


def a_refusal_is_not_remembered(patch):
    original = Answers.remember

    def forgetful(self, key, content, answer, *rest):
        if not isinstance(answer, tbc.Decision):
            original(self, key, content, answer, *rest)

    patch.setattr(Answers, "remember", forgetful)


def ties_go_to_the_newest(patch):
    original = DonorIndex._index

    def newest_first(self, books, spare, idle):
        original(self, books, spare, idle)
        entry = books.donor_entry
        if entry is not None:
            books.donor_entry = (entry[0], entry[1], -entry[2], entry[3])
            heap = self._heaps[self._levels.index(books.priority)]
            heap[:] = [books.donor_entry if each is entry else each for each in heap]
            heapify(heap)

    patch.setattr(DonorIndex, "_index", newest_first)


def the_least_idle_lends_first(patch):
    original = DonorIndex._index

    def least_idle_first(self, books, spare, idle):
        original(self, books, spare, idle)
        entry = books.donor_entry
        if entry is not None:
            books.donor_entry = (entry[0], -entry[1], entry[2], entry[3])
            heap = self._heaps[self._levels.index(books.priority)]
            heap[:] = [books.donor_entry if each is entry else each for each in heap]
            heapify(heap)

    patch.setattr(DonorIndex, "_index", least_idle_first)


def the_gate_is_forgotten(patch):
    patch.setattr(ConfidenceGate, "allow_further_retrieval", staticmethod(lambda contract, confidence: True))


def holds_never_expire(patch):
    patch.setattr(lifecycle, "expire_due", lambda ledger, now: None)


def a_late_settle_is_dropped(patch):
    original = lifecycle.settle

    def strict(ledger, hold, spent, now):
        if hold.state == "expired":
            return hold.settlement
        return original(ledger, hold, spent, now)

    patch.setattr(lifecycle, "settle", strict)


def a_second_settle_books_again(patch):
    original = lifecycle.settle

    def eager(ledger, hold, spent, now):
        if hold.state == "settled" and hold.settlement.tokens == spent[0].amount:
            ledger.book(now, Kind.USAGE, hold.books, consumed=spent[0].amount)
        return original(ledger, hold, spent, now)

    patch.setattr(lifecycle, "settle", eager)


def a_parent_keeps_what_it_should_hand_down(patch):
    original = lifecycle.find_cover

    def keep(books, tokens, kind, *, owed=0):
        moves = original(books, tokens, kind, owed=owed)
        return [move for move in moves if move.kind is not Kind.HAND_DOWN]

    patch.setattr(lifecycle, "find_cover", keep)


def a_carve_out_comes_from_nothing(patch):
    patch.setattr(tree, "_funder", lambda name, parent, tokens: None)


def a_close_throws_away_what_was_not_spent(patch):
    original = Ledger.book

    def wasteful(self, now, kind, books, **deltas):
        if kind is Kind.CLOSE:
            deltas["allocated"] = 0
        original(self, now, kind, books, **deltas)

    patch.setattr(Ledger, "book", wasteful)


def spending_is_not_journalled(patch):
    original = Ledger.book

    def silent(self, now, kind, books, **deltas):
        original(self, now, kind, books, **deltas)
        if kind is Kind.USAGE:
            self.lines.pop()
            self.seq -= 1

    patch.setattr(Ledger, "book", silent)


def busy_is_called_exhausted(patch):
    patch.setattr(Books, "remaining_when_idle", property(lambda books: books.remaining))


def a_rebalance_forgets_who_is_confident(patch):
    original = tbc.clearing.clear
    patch.setattr(tbc.clearing, "clear", lambda *columns, confident=None: original(*columns))


def a_rebalance_serves_the_first_who_asks(patch):
    original = tbc.clearing.clear

    def by_index(priority, remaining, min_reserve, demand, **rest):
        demand = demand.copy()
        answer = original(priority, remaining, min_reserve, demand, **rest)
        lacking = answer.unmet.nonzero()[0]
        if len(lacking) > 1:  # the last that lacks something goes without
            demand[lacking[-1]] = 0
            remaining = remaining.copy()
            remaining[lacking[-1]] = 0
            answer = original(priority, remaining, min_reserve, demand, **rest)
        return answer

    patch.setattr(tbc.clearing, "clear", by_index)


PLANTED = [
    (settle_forgets_to_return_loans, UncappedMachine),
    (loans_return_first_lender_first, CappedMachine),
    (holds_drain_reserves, UncappedMachine),
    (loans_run_uphill, UncappedMachine),
    (an_overrun_is_lost, CappedMachine),
    (an_overrun_is_not_said, CappedMachine),
    (a_refused_hold_leaves_donors_drained, CappedMachine),
    (a_key_is_not_replayed, CappedMachine),
    (a_key_answers_for_other_content, CappedMachine),
    (a_refusal_is_not_remembered, CappedMachine),
    (ties_go_to_the_newest, UncappedMachine),
    (the_least_idle_lends_first, UncappedMachine),
    (the_gate_is_forgotten, CappedMachine),
    (holds_never_expire, CappedMachine),
    (a_late_settle_is_dropped, CappedMachine),
    (a_second_settle_books_again, CappedMachine),
    (a_parent_keeps_what_it_should_hand_down, CappedMachine),
    (a_carve_out_comes_from_nothing, CappedMachine),
    (a_close_throws_away_what_was_not_spent, CappedMachine),
    (spending_is_not_journalled, CappedMachine),
    (busy_is_called_exhausted, CappedMachine),
    (a_rebalance_forgets_who_is_confident, UncappedMachine),
    (a_rebalance_serves_the_first_who_asks, CappedMachine),
]


@pytest.mark.parametrize(("plant", "machine"), PLANTED, ids=lambda each: each.__name__)
def test_the_machine_finds(plant, machine, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=SEARCH)
