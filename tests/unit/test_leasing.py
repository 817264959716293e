"""Leases in the shared pool: cumulative reports, ends that free nothing, and operators."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tbc
from tbc.clock import ManualClock
from tbc.leases import Amounts, Ask, LeaseTerms, Refused, Report, Slice
from tbc.testing import Snapshot, check_books, check_step
from tests.unit.test_interrupts import interrupted


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def manager(clock):
    manager = tbc.BudgetManager(max_tokens=1000, clock=clock)
    manager.register_agent("writer", 5, max_tokens=400, min_reserve=0)
    return manager


@pytest.fixture
def lease(manager):
    return manager.lease("writer", 10, holder="worker-1")


def numbers(manager, axis="tokens", name="writer"):
    account = next(each for each in manager.accounts(axis) if each.agent_name == name)
    return account.allocated, account.consumed, account.held


class TestSlices:
    def test_a_share_is_meant_as_it_is_written(self):
        manager = tbc.BudgetManager()
        manager.register_agent("rich", max_tokens=10**15)
        assert manager.lease("rich", share=1.005e-11).tokens == 10_050
        manager.register_agent("even", max_tokens=10**15)
        assert manager.lease("even", share=0.1).tokens == 10**14

    def test_a_slice_is_a_share_of_own_remaining_and_of_what_can_be_drawn(self, manager):
        assert manager.lease("writer").tokens == 100  # a tenth of 400 + 600
        assert manager.lease("writer").tokens == 90

    def test_slices_shrink_until_none_covers_the_need(self, manager):
        sizes = []
        with pytest.raises(tbc.SliceTooSmallError) as refused:
            while True:
                sizes.append(manager.lease("writer", 20).tokens)
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] >= 20 and refused.value.offered < 20 == refused.value.needed
        assert refused.value.free == 1000 - sum(sizes)
        check_books(manager)

    def test_a_slice_covers_every_capped_axis(self, clock):
        manager = tbc.BudgetManager(max_usd="1", max_calls=50, clock=clock, unknown_price="track")
        manager.register_agent("writer")
        hold = manager.lease("writer", 7, usd="0.01", calls=1)
        assert hold.first.amounts == {"tokens": None, "usd": 10**8, "calls": 5}
        check_books(manager)

    def test_a_confident_agent_gets_none(self, manager):
        manager.update_agent("writer", confidence_threshold=0.9)
        manager.report_confidence("writer", 0.95)
        with pytest.raises(tbc.GateClosedError):
            manager.lease("writer", 1)

    def test_a_closed_agent_gets_none(self, manager):
        manager.close_agent("writer")
        with pytest.raises(tbc.AgentClosedError):
            manager.lease("writer", 1)

    def test_an_agent_with_an_open_lease_cannot_be_closed(self, manager, lease):
        with pytest.raises(tbc.AgentInUseError):
            manager.close_agent("writer")

    def test_a_grant_is_repeated_under_its_key(self, manager):
        first = manager.lease("writer", 10, key="k")
        first.report(30)
        assert manager.lease("writer", 10, key="k") is first
        with pytest.raises(tbc.KeyConflictError):
            manager.lease("writer", 11, key="k")

    def test_a_refusal_is_repeated_under_its_key(self, manager):
        with pytest.raises(tbc.SliceTooSmallError):
            manager.lease("writer", 900, key="k")
        manager.top_up(tbc.ROOT, 100_000)
        with pytest.raises(tbc.SliceTooSmallError):
            manager.lease("writer", 900, key="k")
        assert manager.lease("writer", 900).tokens == 10_100

    @pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 2}, {"seconds": 0}, {"seconds": "1"}])
    def test_how_to_lease_is_checked(self, wrong):
        with pytest.raises(tbc.InvalidAmountError):
            tbc.Lease(**wrong)


class TestReports:
    def test_a_report_is_a_total(self, manager, lease):
        lease.report(30)
        assert numbers(manager)[1:] == (30, 70)
        lease.report(45)
        assert numbers(manager)[1:] == (45, 55)
        check_books(manager)

    def test_late_and_doubled_reports_do_no_harm(self, manager, lease):
        for total in (30, 30, 10, 45, 30, 45):
            lease.report(total)
        assert numbers(manager)[1:] == (45, 55)

    def test_more_than_the_lease_is_booked_in_full(self, manager, lease):
        lease.report(350)
        assert numbers(manager)[1:] == (350, 0)
        lease.report(1200)
        assert numbers(manager) == (1000, 1200, 0)  # the treasury covered what it had
        check_books(manager)

    def test_the_final_report_is_a_total_too(self, manager, lease):
        lease.report(30)
        settlement = lease.settle(45)
        assert (settlement.tokens, settlement.held) == (15, 70)
        assert numbers(manager)[1:] == (45, 0)
        assert lease.settle(45).repeated and numbers(manager)[1:] == (45, 0)
        check_books(manager)

    def test_a_final_report_below_what_was_seen_frees_the_rest(self, manager, lease):
        lease.report(30)
        lease.settle(20)
        assert numbers(manager)[1:] == (30, 0)

    def test_a_final_report_without_numbers_books_the_lease_as_an_estimate(self, manager, lease):
        lease.report(30)
        assert lease.settle().estimated
        assert numbers(manager)[1:] == (100, 0)

    def test_a_report_after_the_end_is_booked_once(self, manager, lease):
        lease.settle(20)
        for total in (50, 40, 50):
            lease.report(total)
        lease.settle(60)
        assert numbers(manager)[1:] == (60, 0)
        assert lease.reported == Amounts(tokens=60)
        check_books(manager)

    def test_a_voided_lease_keeps_what_was_reported(self, manager, lease):
        lease.report(30)
        lease.void()
        assert numbers(manager)[1:] == (30, 0)

    def test_a_block_books_what_nobody_reported(self, manager):
        with manager.lease("writer", 10):
            pass
        assert numbers(manager)[1:] == (100, 0)

    def test_reports_are_spending_in_the_journal(self, manager, lease):
        lease.report(30)
        lease.settle(45)
        assert [(each.kind, each.tokens) for each in manager.ledger.history("writer")] == [
            (tbc.Kind.REPORT, 30),
            (tbc.Kind.REPORT, 15),
        ]

    def test_loans_go_back_but_for_what_was_spent(self, clock):
        manager = tbc.BudgetManager(clock=clock)
        manager.register_agent("low", 1, max_tokens=100, min_reserve=0)
        manager.register_agent("high", 9, max_tokens=100, min_reserve=0)
        lease = manager.lease("high", share=1.0)
        lease.extend(80)
        lease.report(120)
        lease.settle(150)
        assert numbers(manager, name="high") == (150, 150, 0)
        assert numbers(manager, name="low") == (50, 0, 0)
        check_books(manager)

    def test_calls_are_counted_by_their_number(self, manager, lease):
        lease.report(30, calls=3)
        lease.settle(45, calls=5)
        assert manager.ledger.consumed("writer", "calls") == 5

    def test_dollars_that_no_cap_expected_are_booked(self, manager, lease):
        lease.report(30, usd="0.5", calls=3)
        lease.settle(45, usd="0.75", calls=5)
        assert manager.ledger.consumed("writer", "usd") == 75 * 10**7
        check_books(manager)

    def test_calls_without_a_price_are_told(self, manager, lease):
        manager.answer(Report(lease.hold_id, Amounts(5, 0, 2, 2)))
        manager.answer(Report(lease.hold_id, Amounts(5, 0, 3, 3), final=True))
        manager.answer(Report(lease.hold_id, Amounts(5, 0, 3, 3), final=True))
        account = next(each for each in manager.accounts("usd") if each.agent_name == "writer")
        assert account.unpriced == 3

    @given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 30), st.booleans()), max_size=8))
    def test_whatever_comes_in_whatever_order_the_largest_total_is_booked(self, reports):
        manager = tbc.BudgetManager(max_tokens=1000, max_calls=100)
        manager.register_agent("writer", max_tokens=0)
        lease = manager.lease("writer", 10)
        before = Snapshot.of(manager)
        for tokens, calls, final in reports:
            manager.answer(Report(lease.hold_id, Amounts(tokens, 0, calls), final))
            check_books(manager)
            check_step(before, before := Snapshot.of(manager), spender="writer")
        ended = any(final for *_, final in reports)
        tokens = max((each[0] for each in reports), default=0)
        assert numbers(manager)[1:] == (tokens, 0 if ended else max(0, 100 - tokens))
        assert numbers(manager, "calls")[1] == max((each[1] for each in reports), default=0)


class TestEnds:
    def test_nothing_is_freed_at_the_end(self, manager, lease, clock):
        clock.advance(10**6)
        assert numbers(manager)[1:] == (0, 100)
        (record,) = manager.leases()
        assert record.overdue and record.holder == "worker-1" and record.ends_at == 30
        assert (record.amount.tokens, record.reported.tokens) == (100, 0)

    def test_an_extension_moves_the_end_and_nothing_expires(self, manager, lease, clock):
        clock.advance(20)
        lease.extend(50, expires_s=30)
        clock.advance(25)
        (record,) = manager.leases()
        assert (record.ends_at, record.overdue, record.amount.tokens) == (50, False, 150)
        clock.advance(1000)
        assert lease.state == "open"

    def test_an_operator_waits_for_the_end_and_a_tenth_more(self, manager, lease, clock):
        clock.advance(32.5)
        with pytest.raises(tbc.LeaseOpenError) as refused:
            manager.close_lease(lease.hold_id, 40)
        assert refused.value.wait_s == pytest.approx(0.5) and "0.5 s" in str(refused.value)
        clock.advance(0.5)
        manager.close_lease(lease.hold_id, 40, key="k")
        assert manager.close_lease(lease.hold_id, 40, key="k").tokens == 40
        assert numbers(manager)[1:] == (40, 0)
        assert manager.ledger.history("writer")[-1].note == "closed by an operator"
        assert manager.leases() == []
        check_books(manager)

    def test_an_operator_who_says_nothing_books_all_of_it(self, manager, lease, clock):
        lease.report(30)
        clock.advance(33)
        assert manager.close_lease(lease.hold_id).estimated
        assert numbers(manager)[1:] == (100, 0)

    def test_a_worker_that_comes_back_is_believed_if_it_says_more(self, manager, lease, clock):
        clock.advance(33)
        manager.close_lease(lease.hold_id, 40)
        lease.settle(30)
        assert numbers(manager)[1:] == (40, 0)
        lease.settle(70)
        assert numbers(manager)[1:] == (70, 0)

    def test_only_leases_can_be_closed(self, manager, clock):
        hold = manager.hold("writer", 10)
        for hold_id in (hold.hold_id, 999):
            with pytest.raises(tbc.UnknownLeaseError, match="leases"):
                manager.close_lease(hold_id)

    def test_terms_survive_as_plain_values(self, lease):
        lease.report(30, calls=2)
        kept = json.loads(json.dumps(lease.lease.as_json(epoch=1000.0)))
        assert kept["ends_at"] == 1030.0
        assert LeaseTerms.from_json(kept, epoch=1000.0) == lease.lease

    def test_a_plain_hold_is_no_lease(self, manager):
        assert manager.hold("writer", 1).lease is None


class TestMessages:
    def ask(self, key, lease, need, used=0, share=0.1):
        hold_id = None if lease is None else lease.hold_id
        return Ask(key, "writer", "worker-1", Amounts(need), share, 30.0, hold_id, Amounts(used))

    def test_a_refill_reports_and_extends_in_one(self, manager, lease, clock):
        clock.advance(20)
        answer = manager.answer(self.ask("k", lease, 5, used=30))
        assert answer == Slice(lease.hold_id, {"tokens": 90, "usd": None, "calls": None})
        assert numbers(manager)[1:] == (30, 160)
        assert manager.leases()[0].ends_at == 50

    def test_a_refill_is_done_once(self, manager, lease):
        asked = self.ask("k", lease, 5, used=30)
        first = manager.answer(asked)
        lease.report(35)
        assert manager.answer(asked) == first
        assert numbers(manager)[1:] == (35, 155)

    def test_a_refused_refill_stays_refused_and_its_report_is_booked(self, manager, lease):
        asked = self.ask("k", lease, 500, used=30)
        assert isinstance(manager.answer(asked).error, tbc.SliceTooSmallError)
        manager.top_up(tbc.ROOT, 10**6)
        assert isinstance(manager.answer(asked), Refused)
        assert numbers(manager)[1:] == (30, 70)

    def test_a_closed_gate_refuses_even_more_time(self, manager, lease):
        manager.update_agent("writer", confidence_threshold=0.5)
        manager.report_confidence("writer", 0.9)
        answer = manager.answer(self.ask("k", lease, 0))
        assert isinstance(answer.error, tbc.GateClosedError)

    def test_an_ended_lease_is_not_extended(self, manager, lease):
        lease.settle(10)
        answer = manager.answer(self.ask("k", lease, 5, used=20))
        assert isinstance(answer.error, tbc.HoldEndedError)
        assert numbers(manager)[1:] == (20, 0)

    def test_what_is_uncapped_needs_no_slice(self, clock):
        manager = tbc.BudgetManager(clock=clock)
        manager.register_agent("writer", max_tokens=None)
        answer = manager.answer(self.ask("k", None, 5))
        assert answer.amounts == {"tokens": None, "usd": None, "calls": None}
        manager.answer(Report(answer.hold_id, Amounts(70, 0, 2), final=True))
        assert manager.ledger.consumed("writer") == 70
        check_books(manager)


def two_axes() -> tuple[tbc.BudgetManager, tbc.Hold, ManualClock]:
    clock = ManualClock()
    manager = tbc.BudgetManager(clock=clock, max_usd="0.000001", max_tokens=1000, unknown_price="track")
    manager.register_agent("writer", max_tokens=100, min_reserve=0, max_usd=0)
    return manager, manager.lease("writer", 10, share=0.5), clock


ENDS = {
    "report": lambda lease: lease.report(40, usd="40e-9", calls=4),
    "report above": lambda lease: lease.report(800, usd="800e-9", calls=4),
    "settle": lambda lease: lease.settle(40, usd="40e-9", calls=4),
    "settle above": lambda lease: lease.settle(800, usd="800e-9", calls=4),
}


@pytest.mark.parametrize("title", ENDS)
@pytest.mark.parametrize("ended", [False, True])
def test_an_interrupted_report_is_booked_once_on_every_axis_or_not_at_all(title, ended):
    at, came = 0, True
    while came:
        at += 1
        manager, lease, _ = two_axes()
        lease.settle(5, usd="5e-9", calls=1) if ended else lease.report(5, usd="5e-9", calls=1)
        came = interrupted(lambda lease=lease: ENDS[title](lease), at)
        check_books(manager)
        spent = [manager.ledger.consumed("writer", axis) for axis in ("tokens", "usd", "calls")]
        most = 800 if "above" in title else 40
        assert spent in ([5, 5, 1], [most, most, 4]), f"interrupted at {at}"
        ENDS[title](lease)
        check_books(manager)
        assert manager.ledger.consumed("writer") == manager.ledger.consumed("writer", "usd") == most
        assert lease.reported == Amounts(most, most, 4)
    assert at > 10


def test_an_interrupted_grant_is_seen_by_an_operator():
    at, came = 0, True
    while came:
        at += 1
        manager, _, clock = two_axes()
        came = interrupted(lambda manager=manager: manager.lease("writer", 10), at)
        check_books(manager)
        clock.advance(100)
        for record in manager.leases():
            manager.close_lease(record.hold_id, 0, usd=0, calls=0)
        assert [manager.ledger.open_holds, numbers(manager)[1:]] == [{}, (0, 0)]
        check_books(manager)
    assert at > 10
