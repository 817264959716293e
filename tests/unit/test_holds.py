"""Holds: sizes, loans, ends, keys, expiry. One pool, hand-checked numbers."""

from __future__ import annotations

import pytest

import tbc
from tbc.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def manager(clock) -> tbc.BudgetManager:
    """A low and a middle donor, and a high asker."""
    manager = tbc.BudgetManager(clock=clock)
    manager.register_agent("low", priority=1, max_tokens=100, min_reserve=10)
    manager.register_agent("middle", priority=3, max_tokens=200, min_reserve=20)
    manager.register_agent("high", priority=5, max_tokens=50, min_reserve=0)
    return manager


def account(manager: tbc.BudgetManager, name: str) -> tbc.Account:
    return next(each for each in manager.accounts() if each.agent_name == name)


def pairs(transfers) -> list[tuple[str, int]]:
    return [(transfer.donor, transfer.tokens) for transfer in transfers]


def test_a_hold_that_fits_borrows_nothing(manager):
    hold = manager.hold("high", 50)
    assert (hold.tokens, hold.loans, hold.remaining, hold.state) == (50, (), 0, "open")


def test_loans_come_lowest_priority_first_and_stop_at_the_reserve(manager):
    hold = manager.hold("high", 200)
    assert pairs(hold.loans) == [("low", 90), ("middle", 60)]
    assert account(manager, "low").remaining == 10
    assert account(manager, "low").lent == 90
    assert account(manager, "high").borrowed == 150


def test_what_the_hold_did_not_need_goes_back_last_lender_first(manager):
    settlement = manager.hold("high", 200).settle(tokens=100)
    assert [(t.recipient, t.tokens) for t in settlement.returned] == [("middle", 60), ("low", 40)]
    assert account(manager, "low").remaining == 50
    assert account(manager, "high").remaining == 0
    assert account(manager, "high").borrowed == account(manager, "low").lent == 0


def test_the_most_idle_of_a_level_drains_first_and_a_closed_gate_before_it(clock):
    manager = tbc.BudgetManager(clock=clock)
    for name, tokens in [("a", 100), ("b", 300), ("c", 200)]:
        manager.register_agent(name, max_tokens=tokens, min_reserve=0, confidence_threshold=0.9)
    manager.register_agent("asker", max_tokens=0)
    assert pairs(manager.decide("asker", 450).transfers) == [("b", 300), ("c", 150)]
    manager.report_confidence("a", 0.95)
    assert pairs(manager.decide("asker", 450).transfers) == [("a", 100), ("b", 300), ("c", 50)]


def test_void_frees_everything_and_books_nothing(manager):
    before = manager.accounts()
    settlement = manager.hold("high", 200).void()
    assert (settlement.state, settlement.tokens) == ("voided", 0)
    assert manager.accounts() == before


def test_a_settle_above_the_hold_takes_own_remaining_then_the_market(manager):
    hold = manager.hold("high", 40)
    settlement = hold.settle(tokens=120)
    assert (settlement.overrun, pairs(settlement.covered)) == (0, [("low", 70)])
    assert account(manager, "high").remaining == 0


def test_an_uncovered_excess_is_booked_as_overrun_and_raises_the_next_shortfall(manager):
    settlement = manager.hold("high", 50).settle(tokens=400)
    assert settlement.overrun == 400 - 50 - 90 - 180
    assert account(manager, "high").debt == 80
    manager.top_up("low", 100)
    hold = manager.hold("high", 20)
    assert pairs(hold.loans) == [("low", 20)]  # and 80 more of low paid the debt, for good
    assert account(manager, "low").remaining == 10
    hold.void()
    assert account(manager, "low").remaining == 30


def test_zero_tokens_are_granted_even_in_debt(manager):
    manager.hold("high", 50).settle(tokens=5000)
    assert manager.hold("high", 0).tokens == 0


def test_a_refusal_tells_busy_from_exhausted(manager):
    busy = manager.hold("middle", 200)
    with pytest.raises(tbc.BudgetExceededError) as caught:
        manager.hold("high", 300)
    decision = caught.value.decision
    assert decision.status is tbc.Status.BUSY
    assert (decision.available, decision.when_idle) == (140, 320)
    busy.settle(200)
    with pytest.raises(tbc.BudgetExceededError) as caught:
        manager.hold("high", 300)
    assert caught.value.decision.status is tbc.Status.EXHAUSTED
    assert "top up 'high' by 160" in str(caught.value)


def test_busy_counts_loans_that_would_return_to_a_reachable_lender(manager):
    manager.hold("middle", 250)  # borrows 50 of low
    decision = manager.decide("low", 100)
    assert decision.status is tbc.Status.BUSY
    assert decision.when_idle == 100


def test_decide_moves_nothing_and_hold_does_what_it_said(manager):
    before = manager.accounts()
    decision = manager.decide("high", 200)
    assert manager.accounts() == before
    assert manager.hold("high", 200).loans == decision.transfers
    assert (decision.verdict, decision.status) == ("ALLOW", tbc.Status.FITS_WITH_LOANS)


def test_at_least_takes_what_there_is(manager):
    hold = manager.hold("high", 1000, at_least=300)
    assert hold.tokens == 320
    with pytest.raises(tbc.BudgetExceededError):
        manager.hold("high", 1000, at_least=1)


class TestEnds:
    def test_the_same_settle_again_changes_nothing_and_says_so(self, manager):
        hold = manager.hold("high", 50)
        first = hold.settle(30)
        before = manager.accounts()
        again = hold.settle(30)
        assert again.repeated
        assert again._replace(repeated=False) == first
        assert manager.accounts() == before

    @pytest.mark.parametrize("end", [lambda h: h.settle(31), lambda h: h.void(), lambda h: h.extend(1)])
    def test_another_end_is_a_typed_error_with_the_first_outcome(self, manager, end):
        hold = manager.hold("high", 50)
        first = hold.settle(30)
        before = manager.accounts()
        with pytest.raises(tbc.HoldEndedError, match="is settled with 30 tokens") as caught:
            end(hold)
        assert caught.value.settlement == first
        assert manager.accounts() == before

    def test_settle_after_void_is_refused(self, manager):
        hold = manager.hold("high", 50)
        hold.void()
        assert hold.void().repeated
        with pytest.raises(tbc.HoldEndedError, match="voided"):
            hold.settle(0 + 1)

    def test_expiry_frees_and_returns_loans(self, manager, clock):
        before = manager.accounts()
        hold = manager.hold("high", 200, expires_s=30)
        clock.advance(29.9)
        assert manager.remaining("high") == 0
        clock.advance(0.1)
        assert manager.accounts() == before
        assert hold.state == "expired"

    def test_a_late_settle_is_booked_once(self, manager, clock):
        hold = manager.hold("high", 50, expires_s=30)
        clock.advance(31)
        settlement = hold.settle(45)
        assert settlement.late
        assert account(manager, "high").consumed == 45
        assert hold.settle(45).repeated
        assert account(manager, "high").consumed == 45
        assert manager.ledger.entries()[-1].kind is tbc.Kind.LATE_SETTLE

    def test_void_after_expiry_is_refused(self, manager, clock):
        hold = manager.hold("high", 50, expires_s=30)
        clock.advance(31)
        manager.report()
        with pytest.raises(tbc.HoldEndedError, match="expired"):
            hold.void()

    def test_extend_sets_more_aside_and_lives_longer(self, manager, clock):
        hold = manager.hold("high", 50, expires_s=30)
        hold.extend(60, expires_s=100)
        assert hold.extend(expires_s=100) == ()
        assert (hold.tokens, pairs(hold.loans)) == (110, [("low", 60)])
        clock.advance(99)
        assert hold.settle(100).returned[0].tokens == 10

    def test_extend_says_what_was_lent_for_it_and_nothing_again(self, manager):
        hold = manager.hold("high", 120)
        assert pairs(hold.extend(10, key="k")) == [("low", 10)]
        assert pairs(hold.extend(10)) == [("low", 10)]
        assert hold.extend(10, key="k") == ()
        assert sum(loan.tokens for loan in hold.loans) == 70 + 20

    def test_a_refused_extend_leaves_the_hold_as_it_was(self, manager):
        hold = manager.hold("high", 50)
        before = manager.accounts()
        with pytest.raises(tbc.BudgetExceededError):
            hold.extend(1000)
        assert (hold.tokens, hold.state) == (50, "open")
        assert manager.accounts() == before


class TestLeaving:
    def test_a_clean_exit_books_the_whole_hold_as_estimated(self, manager):
        with manager.hold("high", 40) as hold:
            pass
        assert (hold.settlement.tokens, hold.settlement.estimated) == (40, True)

    def test_a_clean_exit_books_what_was_recorded(self, manager):
        with manager.hold("high", 40):
            tbc.current_hold().record(11)
            tbc.current_hold().record(2)
        assert account(manager, "high").consumed == 13

    def test_an_exception_books_the_hold_or_what_was_recorded(self, manager):
        with pytest.raises(RuntimeError), manager.hold("high", 10):
            raise RuntimeError
        with pytest.raises(RuntimeError), manager.hold("high", 40) as hold:
            hold.record(3)
            raise RuntimeError
        assert account(manager, "high").consumed == 13
        assert hold.settlement.estimated

    def test_not_sent_voids(self, manager):
        with pytest.raises(tbc.NotSent), manager.hold("high", 10):
            raise tbc.NotSent
        assert account(manager, "high").consumed == 0

    def test_an_expired_hold_is_booked_late_on_exit(self, manager, clock):
        with manager.hold("high", 10, expires_s=1) as hold:
            clock.advance(2)
            manager.report()
        assert hold.settlement.late
        assert account(manager, "high").consumed == 10

    def test_current_hold_outside_says_what_to_do(self):
        with pytest.raises(tbc.NoCurrentHoldError, match="with_current_hold"):
            tbc.current_hold()
        assert issubclass(tbc.NoCurrentHoldError, LookupError)


class TestKeys:
    def test_a_repeated_key_returns_the_first_hold(self, manager):
        first = manager.hold("high", 50, key="k")
        assert manager.hold("high", 50, key="k") is first
        first.settle(10)
        assert manager.hold("high", 50, key="k") is first
        assert account(manager, "high").consumed == 10

    def test_a_refused_key_stays_refused_after_a_top_up(self, manager):
        with pytest.raises(tbc.BudgetExceededError):
            manager.hold("high", 1000, key="k")
        manager.top_up("high", 1000)
        with pytest.raises(tbc.BudgetExceededError):
            manager.hold("high", 1000, key="k")
        assert manager.hold("high", 1000, key="k2").tokens == 1000

    @pytest.mark.parametrize(
        "other",
        [
            lambda m: m.hold("high", 51, key="k"),
            lambda m: m.hold("low", 50, key="k"),
            lambda m: m.top_up("high", 50, key="k"),
            lambda m: m.record_usage("high", 50, key="k"),
            lambda m: m.rebalance({"high": 50}, key="k"),
        ],
    )
    def test_other_content_under_a_key_is_a_typed_conflict(self, manager, other):
        manager.hold("high", 50, key="k")
        before = manager.accounts()
        with pytest.raises(tbc.KeyConflictError, match="'k'"):
            other(manager)
        assert manager.accounts() == before

    def test_every_writing_operation_is_safe_to_repeat(self, manager):
        for _ in range(3):
            manager.top_up("low", 7, key="t")
            manager.record_usage("low", 5, key="u")
            first = manager.rebalance({"high": 30}, key="r")
            assert first.unmet == {"high": 0}
        assert account(manager, "low").consumed == 5
        assert account(manager, "low").allocated == 77
        assert account(manager, "high").allocated == 80

    def test_an_overrun_is_raised_again_under_its_key(self, manager):
        for _ in range(2):
            with pytest.raises(tbc.OverrunError):
                manager.record_usage("high", 10_000, key="u")
        assert account(manager, "high").consumed == 10_000

    def test_old_ended_keys_are_forgotten_but_open_ones_never(self, clock):
        manager = tbc.BudgetManager(clock=clock, keep=10)
        manager.register_agent("a", max_tokens=10_000)
        kept = manager.hold("a", 1, key="open")
        for i in range(50):
            manager.top_up("a", 1, key=f"t{i}")
        assert manager.hold("a", 1, key="open") is kept
        manager.top_up("a", 1, key="t0")  # forgotten: books again
        manager.top_up("a", 1, key="t49")  # still known: does not
        assert account(manager, "a").allocated == 10_051


class TestAudit:
    def test_nothing_is_refused_and_nothing_moves_for_what_would_have_been(self, clock):
        manager = tbc.BudgetManager(max_tokens=100, mode="audit", clock=clock)
        manager.register_agent("a")
        told = []
        manager.subscribe(told.append)
        hold = manager.hold("a", 150)
        assert hold.decision.status is tbc.Status.EXHAUSTED
        assert hold.decision.allowed
        assert hold.loans == ()
        assert [event.decision.requested for event in told if isinstance(event, tbc.events.Refused)] == [150]
        hold.settle(120)
        manager.record_usage("a", 50)  # reports nothing by raising either
        assert account(manager, "a").consumed == 170

    def test_an_uncapped_manager_observes(self):
        manager = tbc.BudgetManager()
        manager.register_agent("a", max_tokens=None)
        manager.hold("a", 10**12).settle(10**12)
        assert manager.report() == {"a": {"allocated": None, "consumed": 10**12, "remaining": None}}
        assert manager.decide("a", 5).status is tbc.Status.UNCAPPED


@pytest.mark.parametrize("tokens", [-1, 1.0, float("nan"), True, "5", None, 2**53])
@pytest.mark.parametrize("method", ["hold", "decide", "record_usage", "top_up"])
def test_what_is_no_amount_is_refused_everywhere(manager, method, tokens):
    before = manager.accounts()
    with pytest.raises(tbc.InvalidAmountError, match="tokens must be >= 0"):
        getattr(manager, method)("high", tokens)
    hold = manager.hold("high", 1)
    if tokens is not None:  # which says that nobody knows
        with pytest.raises(tbc.InvalidAmountError):
            hold.settle(tokens)
    hold.void()
    assert manager.accounts() == before


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), True, "5"])
def test_a_hold_lives_for_a_finite_time(manager, seconds):
    with pytest.raises(tbc.InvalidAmountError, match="expires_s"):
        manager.hold("high", 1, expires_s=seconds)


@pytest.mark.parametrize("name", ["nobody", None, 5, ["a"], ""])
def test_unknown_agents_are_a_typed_error_everywhere(manager, name):
    for call in (
        lambda: manager.hold(name, 1),
        lambda: manager.decide(name, 1),
        lambda: manager.record_usage(name, 1),
        lambda: manager.remaining(name),
        lambda: manager.top_up(name, 1),
        lambda: manager.close_agent(name),
        lambda: manager.reset_confidence(name),
        lambda: manager.update_agent(name, priority=2),
        lambda: manager.govern(name),
    ):
        with pytest.raises(tbc.UnknownAgentError):
            call()


def test_numpy_integers_are_integers(manager):
    import numpy as np

    hold = manager.hold("high", np.int64(50))
    assert type(hold.tokens) is int
    assert type(hold.settle(np.int32(20)).tokens) is int


def test_the_remedy_of_an_agent_in_debt_pays_the_debt_too():
    manager = tbc.BudgetManager()
    manager.register_agent("a", max_tokens=100, min_reserve=0)
    with pytest.raises(tbc.OverrunError):
        manager.record_usage("a", 600)
    assert "top up 'a' by 600" in manager.decide("a", 100).remedy
    manager.top_up("a", 600)
    assert manager.decide("a", 100).allowed


def test_a_hold_is_found_by_its_number_while_its_line_is_kept():
    manager = tbc.BudgetManager(keep=3, max_tokens=10_000, max_usd="1")
    manager.register_agent("a", max_tokens=1_000)
    first, second = manager.hold("a", 10, usd="0.1"), manager.hold("a", 10, usd=0)
    assert manager.find_hold(first.hold_id) is first
    first.void()
    assert manager.find_hold(first.hold_id) is first
    assert manager.find_hold(first.hold_id).state == "voided"
    for _ in range(300):
        manager.hold("a", 1, usd=0).settle(tokens=0)
    assert manager.find_hold(second.hold_id) is second  # open: never forgotten
    for nobody in (first.hold_id, 1, 0, -1, 10**9, True, 2.0, "2"):
        with pytest.raises(tbc.UnknownHoldError):
            manager.find_hold(nobody)
