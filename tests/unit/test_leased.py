"""A worker's manager: local holds from slices, direct ones beside them, everything given back."""

from __future__ import annotations

import os
import threading

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.leased import LeasedManager
from tbc.leases import Report
from tbc.slices import SliceBooks
from tbc.testing import check_books
from tests.waiting import until


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def shared(clock):
    shared = tbc.BudgetManager(max_tokens=10_000, clock=clock, unknown_price="track")
    shared.register_agent("writer", 5, max_tokens=0)
    return shared


@pytest.fixture
def worker(shared, clock):
    with LeasedManager(shared, tbc.Lease(share=0.1, seconds=30), holder="w", clock=clock) as worker:
        yield worker
    check_books(shared)
    assert shared.leases() == []


def consumed(shared, axis="tokens"):
    return shared.report(axis)["writer"]["consumed"]


def test_holds_that_fit_say_nothing_to_the_shared_pool(shared, worker):
    worker.hold("writer", 100).settle(90)
    seq = shared.ledger.seq
    for _ in range(5):
        worker.hold("writer", 100).settle(90)
    assert shared.ledger.seq == seq
    assert worker.report()["writer"]["consumed"] == 540
    assert [record.holder for record in shared.leases()] == ["w"]


def test_what_the_slice_does_not_cover_any_more_is_refilled_in_one_message(shared, worker):
    for _ in range(30):
        worker.hold("writer", 100).settle(100)
    assert len(shared.leases()) == 1
    worker.close()
    assert consumed(shared) == 3000
    assert shared.remaining(tbc.ROOT) == 7000


def test_what_a_slice_cannot_cover_is_held_directly_with_its_market(shared, worker):
    shared.register_agent("reader", 1, max_tokens=2000, min_reserve=0)
    hold = worker.hold("writer", 9000)
    assert hold.loans and shared.ledger.open_holds[hold.hold_id] is hold
    hold.settle(10)
    assert consumed(shared) == 10


def test_the_whole_budget_can_be_spent_and_no_more(shared, worker):
    spent = 0
    with pytest.raises(tbc.BudgetExceededError) as refused:
        while True:
            worker.hold("writer", 37).settle(37)
            spent += 37
    assert spent == 37 * (10_000 // 37)
    assert refused.value.decision.status is tbc.Status.EXHAUSTED


def test_idle_slices_are_given_back_before_a_call_is_refused(shared, worker):
    shared.register_agent("reader", 5, max_tokens=0)
    worker.hold("reader", 10).settle(0)
    worker.hold("writer", 9500).settle(9500)
    assert consumed(shared) == 9500


def test_every_axis_is_leased(clock):
    shared = tbc.BudgetManager(max_tokens=10_000, max_usd="1", max_calls=100, clock=clock)
    shared.register_agent("writer", max_tokens=0)
    with LeasedManager(shared, holder="w", clock=clock) as worker:
        calls = 0
        for _ in range(25):
            worker.hold("writer", 20, usd="0.01").settle(15, usd="0.008")
            calls += 1
        assert calls == 25
        for axis, expected in (("tokens", 375), ("usd", 25 * 8 * 10**6), ("calls", 25)):
            assert worker.report(axis)["writer"]["consumed"] == expected
        with pytest.raises(tbc.UnknownPriceError):
            worker.hold("writer", 20)
    assert shared.leases() == []
    assert consumed(shared, "usd") == 25 * 8 * 10**6
    check_books(shared)


def test_an_uncapped_agent_is_counted_too(clock):
    shared = tbc.BudgetManager(clock=clock)
    shared.register_agent("writer", max_tokens=None)
    with LeasedManager(shared, clock=clock) as worker:
        for _ in range(3):
            worker.hold("writer", 20).settle(15)
    assert (consumed(shared), consumed(shared, "calls")) == (45, 3)


def test_nothing_is_spent_past_the_end_without_asking(shared, worker, clock):
    worker.hold("writer", 100).settle(90)
    clock.advance(26.9)
    seq = shared.ledger.seq
    worker._tended = clock()
    worker.hold("writer", 100).settle(90)
    assert shared.ledger.seq == seq
    clock.advance(0.2)
    worker.hold("writer", 100).settle(90)
    assert shared.ledger.seq > seq
    assert len(shared.leases()) == 1


def test_a_confident_agent_is_refused_at_the_next_refill_at_the_latest(shared, worker, clock):
    shared.update_agent("writer", confidence_threshold=0.9)
    worker.hold("writer", 100).settle(90)
    shared.report_confidence("writer", 0.95)
    clock.advance(30)
    with pytest.raises(tbc.GateClosedError):
        worker.hold("writer", 100)
    shared.reset_confidence("writer")
    worker.hold("writer", 100).settle(90)
    worker.report_confidence("writer", 0.95)  # known here: at once
    with pytest.raises(tbc.GateClosedError):
        worker.hold("writer", 100)


def test_a_closed_or_unknown_agent_is_refused(shared, worker):
    with pytest.raises(tbc.UnknownAgentError):
        worker.hold("nobody", 1)
    worker.hold("writer", 100).settle(90)
    with pytest.raises(tbc.AgentInUseError):
        shared.close_agent("writer")
    worker._give_back_idle()
    shared.close_agent("writer")
    with pytest.raises(tbc.AgentClosedError):
        worker.hold("writer", 1)


def test_keyed_holds_are_known_to_all(shared, worker):
    first = worker.hold("writer", 100, key="k")
    assert shared.hold("writer", 100, key="k") is first


def test_idle_slices_are_given_back_in_good_time(shared, worker, clock):
    worker.hold("writer", 100).settle(90)
    for _ in range(4):
        clock.advance(8)
        worker.tend()
    assert shared.leases() == []
    assert consumed(shared) == 90


def test_slices_in_use_are_renewed_and_reported(shared, worker, clock):
    hold = worker.hold("writer", 100)
    for _ in range(10):
        clock.advance(8)
        worker.tend()
        assert not shared.leases()[0].overdue
    hold.settle(70)
    worker.tend(now=True)
    assert consumed(shared) == 70


def test_the_closed_gate_of_one_agent_is_no_business_of_the_others(shared, worker, clock):
    shared.update_agent("writer", confidence_threshold=0.9)
    shared.register_agent("reader", 5, max_tokens=0)
    flying = worker.hold("writer", 100)
    worker.hold("reader", 10).settle(10)
    shared.report_confidence("writer", 0.95)
    for turn in range(4):
        worker.hold("writer", 1).settle(1) if turn < 2 else None
        clock.advance(8)
        worker.tend()
    assert shared.report()["reader"]["consumed"] == 10
    assert consumed(shared) == 2
    assert [record.agent_name for record in shared.leases()] == ["writer"]
    for _ in range(4):
        clock.advance(8)
        worker.hold("reader", 4000).settle(10)
    with pytest.raises(tbc.GateClosedError):
        worker.hold("writer", 1)
    flying.settle(70)
    worker.tend(now=True)
    assert consumed(shared) == 72


def test_calls_in_flight_at_the_close_are_booked_in_full_and_more_if_they_say_so(shared, clock):
    worker = LeasedManager(shared, clock=clock)
    small, large = worker.hold("writer", 100), worker.hold("writer", 200)
    worker.close()
    assert consumed(shared) == 300
    small.settle(10)
    worker.tend(now=True)
    assert consumed(shared) == 300
    large.settle(450)
    worker.tend(now=True)
    assert consumed(shared) == 460
    worker.hold("writer", 10).settle(10)  # directly
    assert (consumed(shared), shared.leases()) == (470, [])
    check_books(shared)


def test_nothing_is_set_aside_in_a_slice_that_was_given_back(shared, clock):
    worker = LeasedManager(shared, tbc.Lease(share=0.1, seconds=30))
    held = worker.hold("writer", 10)
    worker.close()
    with pytest.raises(tbc.HoldEndedError, match="open a new one"):
        held.extend(50)
    assert held.settle(60).tokens == 60 and consumed(shared) == 60


def test_many_calls_in_flight_at_the_close_are_noted_once_each_time_they_are_told(shared, clock):
    worker = LeasedManager(shared, tbc.Lease(share=0.5, seconds=30))
    held = [worker.hold("writer", 10) for _ in range(50)]
    worker.close()
    (seat,) = worker._seats.values()
    for number, hold in enumerate(held, start=1):
        assert hold.settle(20).tokens == 20
        assert len(seat.watched) == (number < len(held))
    assert consumed(shared) == 1_000


def test_a_lease_that_an_operator_closed_is_replaced(shared, worker, clock):
    worker.hold("writer", 100).settle(90)
    clock.advance(40)
    shared.close_lease(shared.leases()[0].hold_id, 50)
    worker.hold("writer", 100).settle(90)
    worker.close()
    assert consumed(shared) == 180


def test_what_was_spent_after_a_renewal_that_failed_is_booked_after_an_operators_entry(
    shared, worker, clock, monkeypatch
):
    worker.hold("writer", 100).settle(100)
    clock.advance(16)
    with monkeypatch.context() as away:
        away.setattr(shared, "answer", lose_all)
        with pytest.raises(tbc.StoreBusyError):
            worker.tend(now=True)
    worker.hold("writer", 500).settle(500)  # from the slice, which has not ended yet
    clock.advance(60)
    shared.close_lease(shared.leases()[0].hold_id, 100, calls=1, note="the bill so far")
    worker.tend(now=True)
    assert (consumed(shared), consumed(shared, "calls")) == (600, 2)


def test_calls_in_flight_of_a_lease_that_an_operator_closed_are_booked_in_full_at_the_close(shared, clock):
    worker = LeasedManager(shared, clock=clock)
    worker.hold("writer", 100).settle(100)
    flying, late = worker.hold("writer", 300), worker.hold("writer", 20)
    worker.tend(now=True)
    clock.advance(60)
    shared.close_lease(shared.leases()[0].hold_id, 100, calls=1)
    worker.hold("writer", 10).settle(10)  # of another lease
    late.settle(5)
    worker.tend(now=True)
    assert consumed(shared) == 115
    worker.close()
    assert consumed(shared) == 415
    flying.settle(310)
    worker.tend(now=True)
    assert consumed(shared) == 425
    check_books(shared)


# -- holds that are settled after they have expired ----------------------------------------------------


def by_tending(shared, worker, clock):
    for _ in range(4):
        clock.advance(8)
        worker.tend()


def by_closing(shared, worker, clock):
    worker.close()


def by_closing_the_agent(shared, worker, clock):
    worker.close_agent("writer")


def by_another_cap(shared, worker, clock):
    shared.register_agent("writer", 5, max_tokens=0, max_calls=50, replace=True)
    clock.advance(30)
    worker.hold("writer", 10).void()


def by_an_operator(shared, worker, clock):
    clock.advance(60)
    shared.close_lease(shared.leases()[0].hold_id, 0, calls=0)
    worker.hold("writer", 10).void()  # of another lease


def by_nobody(shared, worker, clock):
    worker.hold("writer", 990).void()


def by_renewing(shared, worker, clock):
    flying = worker.hold("writer", 100)
    for _ in range(8):
        clock.advance(8)
        worker.tend()
    flying.void()


GIVEN_BACK = (by_tending, by_closing, by_closing_the_agent, by_another_cap, by_an_operator)


@pytest.fixture
def outlived(shared, worker, clock):
    """A call that is longer than its hold lives."""
    hold = worker.hold("writer", 500, expires_s=5)
    clock.advance(6)
    return hold


@pytest.mark.parametrize("end", [*GIVEN_BACK, by_nobody, by_renewing])
def test_a_call_that_outlives_its_hold_is_booked_once_whatever_became_of_the_lease(
    shared, worker, clock, outlived, end
):
    end(shared, worker, clock)
    settlement = outlived.settle(420)
    assert (settlement.tokens, settlement.late) == (420, True)
    if end in GIVEN_BACK:  # before it was answered
        assert (consumed(shared), consumed(shared, "calls")) == (420, 1)
    for _ in range(2):
        worker.tend(now=True)
        assert (consumed(shared), consumed(shared, "calls")) == (420, 1)
    assert outlived.settle(420).repeated
    worker.close()
    worker.close()
    assert (consumed(shared), consumed(shared, "calls")) == (420, 1)
    assert consumed(shared, "usd") == 0


def tell_by_settling(worker, hold):
    assert hold.settle(420).repeated


def tell_by_tending(worker, hold):
    worker.tend(now=True)


def tell_by_closing(worker, hold):
    worker.close()


def tell_by_reading(worker, hold):
    assert worker.report()["writer"]["consumed"] == 420


@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize("again", [tell_by_settling, tell_by_tending, tell_by_closing, tell_by_reading])
@pytest.mark.parametrize("end", GIVEN_BACK)
def test_a_late_settle_that_could_not_be_told_is_told_again_and_booked_once(
    shared, worker, clock, outlived, monkeypatch, end, again, lost
):
    end(shared, worker, clock)
    real = shared.answer

    def answer(message):
        if lost == "answer":
            real(message)
        raise tbc.StoreBusyError("a.db", "locked", "Try again")

    with monkeypatch.context() as away:
        away.setattr(shared, "answer", answer)
        for _ in range(2):
            with pytest.raises(tbc.StoreBusyError):
                outlived.settle(420)
    assert consumed(shared) == (420 if lost == "answer" else 0)
    again(worker, outlived)
    worker.tend(now=True)
    assert (consumed(shared), consumed(shared, "calls")) == (420, 1)


def test_a_late_settle_of_a_budget_that_has_been_spent_is_booked_and_owed(shared, worker, outlived):
    spent = 0
    with pytest.raises(tbc.BudgetExceededError):
        while True:
            worker.hold("writer", 40).settle(40)
            spent += 40
    assert spent == 10_000
    outlived.settle(420)
    worker.close()
    assert (consumed(shared), shared.remaining("writer")) == (10_420, -420)


def test_late_settles_of_many_leases_are_each_booked_once(shared, worker, clock):
    holds = []
    for _ in range(3):
        holds += [worker.hold("writer", 100, expires_s=5) for _ in range(2)]
        by_tending(shared, worker, clock)
    assert shared.leases() == []
    for number, hold in enumerate(reversed(holds)):
        hold.settle(10 + number)
    assert (consumed(shared), consumed(shared, "calls")) == (75, 6)


def test_a_block_that_outlives_its_hold_books_it_in_full(shared, worker, clock):
    with worker.hold("writer", 500, expires_s=5):
        clock.advance(6)
        by_tending(shared, worker, clock)
        assert shared.leases() == []
    assert consumed(shared) == 500
    assert shared.ledger.history("writer")[-1].estimated


def test_a_stream_that_is_dropped_after_its_hold_expired_is_told_without_waiting(shared, worker, clock):
    def stream():
        with worker.hold("writer", 500, expires_s=5) as hold:
            hold.record(120)
            yield

    left = stream()
    next(left)
    clock.advance(6)
    by_tending(shared, worker, clock)
    (seat,) = worker._seats.values()
    with shared._lock, seat.lock:  # garbage collection comes wherever it likes
        left.close()
    assert consumed(shared) == 0
    worker.tend(now=True)
    assert consumed(shared) == 120


@pytest.mark.parametrize("last_look", ["used", "in_flight"])
def test_a_call_that_ends_while_its_lease_is_given_back_is_booked(
    shared, worker, clock, outlived, monkeypatch, last_look
):
    (seat,) = worker._seats.values()
    real = getattr(SliceBooks, last_look)
    settled = []

    def look(books):
        seen = real(books)
        if seat.lock.locked() and not settled:
            settled.append(threading.Thread(target=outlived.settle, args=(420,)))
            settled[0].start()
            until(lambda: outlived.state == "settled")
        return seen

    monkeypatch.setattr(SliceBooks, last_look, look)
    worker.close()
    settled[0].join()
    assert consumed(shared) == 420


def test_threads_whose_holds_have_expired_settle_while_leases_come_and_go(shared, worker, clock):
    holds = [worker.hold("writer", 20, expires_s=5) for _ in range(40)]
    clock.advance(6)
    ready = threading.Barrier(5)

    def settle(mine):
        ready.wait()
        for hold in mine:
            hold.settle(20)

    threads = [threading.Thread(target=settle, args=(holds[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    for _ in range(20):
        worker._give_back_idle()
        worker.hold("writer", 10).void()
    for thread in threads:
        thread.join()
    worker._give_back_idle()
    assert (consumed(shared), consumed(shared, "calls")) == (800, 40)


def test_a_late_settle_of_what_the_slice_has_spent_otherwise_asks_for_more(shared, worker, clock, outlived):
    worker.hold("writer", 900).settle(900)
    assert outlived.settle(420).overrun == 0
    (record,) = shared.leases()
    assert record.amount.tokens >= 1320


def lose_all(message):
    raise tbc.StoreBusyError("a.db", "locked", "Try again")


def test_an_answer_that_was_lost_is_asked_for_again(shared, clock, monkeypatch):
    worker = LeasedManager(shared, clock=clock)
    real, lost = shared.answer, []

    def answer(message):
        found = real(message)
        if not isinstance(message, Report) and len(lost) < 2:
            lost.append(message)
            raise tbc.StoreBusyError("a.db", "locked", "Try again")
        return found

    monkeypatch.setattr(shared, "answer", answer)
    for _ in range(2):
        with pytest.raises(tbc.StoreBusyError):
            worker.hold("writer", 100)
    worker.hold("writer", 100).settle(100)
    assert len(shared.leases()) == 1
    worker.close()
    assert (consumed(shared), shared.leases()) == (100, [])


def test_a_request_open_at_the_close_is_given_back(shared, clock, monkeypatch):
    worker = LeasedManager(shared, clock=clock)
    real = shared.answer

    def lose(message):
        real(message)
        raise tbc.StoreBusyError("a.db", "locked", "Try again")

    monkeypatch.setattr(shared, "answer", lose)
    with pytest.raises(tbc.StoreBusyError):
        worker.hold("writer", 100)
    with pytest.raises(tbc.StoreBusyError):
        worker.close()
    monkeypatch.setattr(shared, "answer", real)
    worker.close()
    assert (consumed(shared), shared.leases()) == (0, [])


def test_remaining_and_decide_see_both_sides(shared, worker):
    worker.hold("writer", 100).settle(90)
    assert worker.decide("writer", 50).status is tbc.Status.FITS
    assert worker.decide("writer", 5000).allowed
    assert not worker.decide("writer", 50_000).allowed
    assert worker.remaining("writer") == 910


def test_the_number_of_a_hold_finds_it_and_no_other(shared, worker):
    shared.register_agent("reader", 5, max_tokens=0)
    shared.update_agent("writer", confidence_threshold=0.9)
    elsewhere = [shared.hold("reader", tokens) for tokens in range(8)]
    other = LeasedManager(shared, holder="other")
    holds = [worker.hold(name, 10) for name in ("writer", "reader") * 8]
    holds += [other.hold("writer", 10), worker.hold("writer", 10, key="k"), worker.hold("writer", 2000)]
    numbers = [hold.hold_id for hold in (*holds, *elsewhere)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number < 2**53 for number in numbers)
    for hold in (*holds[:16], *holds[17:], *elsewhere):
        assert worker.find_hold(hold.hold_id) is hold
    for number in (holds[16].hold_id, 2**60, -1, "1", None, shared.leases()[0].hold_id):
        with pytest.raises(tbc.UnknownHoldError):
            worker.find_hold(number)
    holds[0].settle(7)
    assert worker.find_hold(holds[0].hold_id) is holds[0]
    other.close()


def test_a_call_in_flight_is_found_when_its_slice_is_given_back(shared, clock):
    worker = LeasedManager(shared, clock=clock)
    first = worker.hold("writer", 10)
    clock.advance(60)
    shared.close_lease(shared.leases()[0].hold_id, 0, calls=0)
    second = worker.hold("writer", 10)
    worker.close()
    assert [worker.find_hold(hold.hold_id) for hold in (first, second)] == [first, second]
    assert first.hold_id != second.hold_id


def test_an_awaited_hold_is_the_same(worker):
    import asyncio

    async def call():
        async with worker.ahold("writer", 100) as hold:
            return hold.settle(90)

    assert asyncio.run(call()).tokens == 90


def test_threads_spend_the_budget_once(shared, clock):
    worker = LeasedManager(shared, clock=clock)
    spent = []

    def spend():
        while True:
            try:
                worker.hold("writer", 7).settle(7)
            except tbc.BudgetExceededError:
                return
            spent.append(7)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()
    assert sum(spent) == consumed(shared) <= 10_000
    assert shared.leases() == []
    check_books(shared)


def test_two_workers_share_one_budget(shared, clock):
    workers = [LeasedManager(shared, holder=f"w{n}", clock=clock) for n in range(2)]
    spent = 0
    for turn in range(3000):
        try:
            workers[turn % 2].hold("writer", 11).settle(9)
        except tbc.BudgetExceededError:
            continue
        spent += 9
    for worker in workers:
        worker.close()
    assert 9_000 < spent == consumed(shared) <= 10_000
    check_books(shared)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_spend_its_parents_slices(shared, worker):
    worker.hold("writer", 100).settle(90)
    numbers = worker._numbers
    child = os.fork()
    if not child:
        os._exit(0 if worker._seats == {} and worker._numbers is not numbers else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert worker._seats
