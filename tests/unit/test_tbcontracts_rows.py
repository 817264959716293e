"""Every row of token-budget-contracts works here, and its known defects do not.

The package itself is a dev dependency: where it succeeds, ours gives the same report.
"""

from __future__ import annotations

import functools

import pytest
import tbcontracts
from hypothesis import given
from hypothesis import strategies as st

import tbc


def both(**agents: dict) -> tuple[tbcontracts.BudgetManager, tbc.BudgetManager]:
    theirs, ours = tbcontracts.BudgetManager(), tbc.BudgetManager()
    for name, terms in agents.items():
        theirs.register_agent(name, **terms)
        ours.register_agent(name, **terms)
    return theirs, ours


class TestContract:
    def test_default_reserve_is_a_tenth(self):
        assert tbc.BudgetContract("a", max_tokens=500).min_reserve == 50

    def test_explicit_reserve_is_kept(self):
        assert tbc.BudgetContract("a", max_tokens=500, min_reserve=7).min_reserve == 7

    @pytest.mark.parametrize(
        ("terms", "text"),
        [
            ({"priority": 0}, "priority must be >= 1"),
            ({"max_tokens": -1}, "max_tokens must be >= 0"),
            ({"max_tokens": 10, "min_reserve": 11}, "min_reserve must be between 0 and max_tokens"),
            ({"confidence_threshold": 1.5}, "confidence_threshold must be between 0 and 1"),
        ],
    )
    def test_the_same_rules_give_the_same_words(self, terms, text):
        with pytest.raises(ValueError, match=text):
            tbc.BudgetContract("a", **terms)

    @pytest.mark.parametrize("value", [True, 1.0, float("nan"), "5", 2**53])
    def test_what_is_no_amount_is_refused(self, value):
        with pytest.raises(tbc.InvalidAmountError):
            tbc.BudgetContract("a", max_tokens=value)

    def test_last_confidence_is_readable_and_not_writable(self):
        manager = tbc.BudgetManager()
        contract = manager.register_agent("a", confidence_threshold=0.9)
        manager.record_usage("a", 1, confidence=0.5)
        assert contract.last_confidence == 0.5
        with pytest.raises(AttributeError):
            contract.last_confidence = None


class TestGate:
    def test_no_threshold_always_allows(self):
        assert tbc.ConfidenceGate.allow_further_retrieval(tbc.BudgetContract("a"), 1.0)

    @pytest.mark.parametrize(
        ("confidence", "allowed"), [(None, True), (0.79, True), (0.8, False), (0.9, False)]
    )
    def test_the_threshold_itself_blocks(self, confidence, allowed):
        contract = tbc.BudgetContract("a", confidence_threshold=0.8)
        assert tbc.ConfidenceGate.allow_further_retrieval(contract, confidence) is allowed

    def test_second_call_is_blocked_once_confident_with_an_error_of_its_own(self):
        manager = tbc.BudgetManager()
        manager.register_agent("a", confidence_threshold=0.8)
        calls = []

        @manager.govern("a", confidence_fn=lambda result: 0.9)
        def search(text):
            calls.append(text)
            return text

        search("x")
        with pytest.raises(tbc.GateClosedError, match=r"confident enough \(0.9 >= threshold 0.8\)") as caught:
            search("x")
        assert isinstance(caught.value, tbc.BudgetExceededError)
        assert calls == ["x"]

    def test_reset_opens_the_gate_again(self):
        manager = tbc.BudgetManager()
        manager.register_agent("a", confidence_threshold=0.8)
        manager.record_usage("a", 1, confidence=0.9)
        manager.reset_confidence("a")
        assert manager.hold("a", 1).tokens == 1

    @pytest.mark.parametrize("confidence", [7.5, -0.1, float("nan"), True, "0.5"])
    def test_a_confidence_out_of_range_is_refused_and_books_nothing(self, confidence):
        manager = tbc.BudgetManager()
        manager.register_agent("a", confidence_threshold=0.8)
        with pytest.raises(tbc.InvalidAmountError):
            manager.record_usage("a", 10, confidence=confidence)
        assert manager.report()["a"]["consumed"] == 0


class TestLedger:
    def test_register_and_record(self):
        ledger = tbc.Ledger()
        ledger.register("a", 100)
        ledger.record("a", 30)
        assert (ledger.allocated("a"), ledger.consumed("a"), ledger.remaining("a")) == (100, 30, 70)

    def test_unknown_agent_is_a_key_error(self):
        with pytest.raises(KeyError):
            tbc.Ledger().record("nobody", 1)

    def test_adjust_allocation(self):
        ledger = tbc.Ledger()
        ledger.register("a", 100)
        ledger.adjust_allocation("a", -40)
        assert ledger.remaining("a") == 60
        with pytest.raises(tbc.InvalidAmountError):
            ledger.adjust_allocation("a", -61)

    def test_snapshot_shape(self):
        ledger = tbc.Ledger()
        ledger.register("a", 100)
        assert ledger.snapshot() == {"a": {"allocated": 100, "consumed": 0, "remaining": 100}}

    def test_history_is_filtered_by_agent(self):
        ledger = tbc.Ledger()
        ledger.register("a", 100)
        ledger.register("b", 100)
        ledger.record("a", 1, note="first")
        ledger.record("b", 2)
        assert [(entry.agent_name, entry.tokens, entry.note) for entry in ledger.history("a")] == [
            ("a", 1, "first")
        ]
        assert len(ledger.history()) == 2

    def test_negative_records_are_refused(self):
        ledger = tbc.Ledger()
        ledger.register("a", 100)
        with pytest.raises(ValueError, match="tokens must be >= 0"):
            ledger.record("a", -5)

    def test_a_managers_books_move_only_through_its_doors(self):
        manager = tbc.BudgetManager()
        manager.register_agent("a")
        with pytest.raises(tbc.ManagedLedgerError):
            manager.ledger.adjust_allocation("a", 5)
        with pytest.raises(tbc.ManagedLedgerError):
            manager.ledger.register("b", 5)
        manager.ledger.record("a", 5)
        assert manager.remaining("a") == 995


class TestReallocator:
    def make(self, **agents: tuple[int, int]) -> tuple[tbc.Reallocator, tbc.Ledger]:
        ledger, contracts = tbc.Ledger(), {}
        for name, (priority, tokens) in agents.items():
            contracts[name] = tbc.BudgetContract(name, priority=priority, max_tokens=tokens)
            ledger.register(name, tokens)
        return tbc.Reallocator(contracts, ledger), ledger

    def test_pulls_exactly_the_shortfall_from_the_idle_lower_agent(self):
        reallocator, ledger = self.make(low=(1, 1000), high=(5, 100))
        assert reallocator.reallocate("high", 200) == 200
        assert (ledger.allocated("low"), ledger.allocated("high")) == (800, 300)

    def test_stops_at_the_donors_reserve(self):
        reallocator, ledger = self.make(low=(1, 500), high=(5, 100))
        assert reallocator.reallocate("high", 5000) == 450
        assert ledger.remaining("low") == 50

    def test_never_pulls_from_a_higher_priority(self):
        reallocator, _ = self.make(low=(1, 100), high=(5, 1000))
        assert reallocator.reallocate("low", 10) == 0

    def test_no_shortfall_moves_nothing(self):
        reallocator, _ = self.make(low=(1, 100), high=(5, 1000))
        assert reallocator.reallocate("high", 0) == 0
        assert reallocator.reallocate("high", -5) == 0

    def test_an_unknown_agent_is_a_key_error(self):
        reallocator, _ = self.make(low=(1, 100))
        with pytest.raises(KeyError):
            reallocator.reallocate("nobody", 5)

    def test_donors_come_in_drain_order(self):
        reallocator, ledger = self.make(c=(2, 300), a=(1, 200), b=(1, 300), needy=(9, 10), full=(1, 100))
        ledger.record("full", 95)
        assert reallocator.find_donors("needy") == ["b", "a", "c"]

    @given(
        st.lists(
            st.tuples(st.integers(1, 4), st.integers(0, 60), st.integers(0, 60)), min_size=2, max_size=7
        ),
        st.integers(1, 200),
    )
    def test_moves_what_theirs_moves(self, agents, shortfall):
        theirs, ours = tbcontracts.BudgetManager(), tbc.BudgetManager()
        for i, (priority, tokens, used) in enumerate(agents):
            for manager in (theirs, ours):
                manager.register_agent(f"a{i}", priority=priority, max_tokens=tokens)
                manager.ledger.record(f"a{i}", used)
        assert ours.reallocator.find_donors("a0") == theirs.reallocator.find_donors("a0")
        assert ours.reallocator.reallocate("a0", shortfall) == theirs.reallocator.reallocate("a0", shortfall)
        assert ours.report() == theirs.report()


class TestManager:
    def test_govern_raises_consumption(self):
        manager = tbc.BudgetManager()
        manager.register_agent("a")
        assert manager.govern("a")(lambda text: text.upper())("hello there") == "HELLO THERE"
        assert manager.report()["a"]["consumed"] > 0

    def test_govern_pulls_from_a_lower_priority_agent(self):
        manager = tbc.BudgetManager()
        manager.register_agent("low", priority=1, max_tokens=1000)
        manager.register_agent("high", priority=5, max_tokens=1)
        manager.govern("high")(lambda text: text * 2)("many words in a row " * 5)
        assert manager.report()["low"]["allocated"] < 1000

    def test_govern_refuses_before_the_call_when_nobody_can_lend(self):
        manager = tbc.BudgetManager()
        manager.register_agent("a", max_tokens=5)
        calls = []
        with pytest.raises(tbc.BudgetExceededError) as caught:
            manager.govern("a")(calls.append)("word " * 100)
        assert calls == []
        assert caught.value.requested > caught.value.available == 5

    def test_govern_of_an_unknown_agent_raises_at_decoration(self):
        with pytest.raises(tbc.UnknownAgentError, match="never registered"):
            tbc.BudgetManager().govern("nobody")

    def test_a_callable_without_a_name_is_governed(self):
        manager = tbc.BudgetManager()
        manager.register_agent("a")
        assert manager.govern("a")(functools.partial(str.upper, "x"))() == "X"

    def test_record_usage_rows(self):
        manager = tbc.BudgetManager()
        manager.register_agent("a", max_tokens=100)
        manager.register_agent("donor", max_tokens=1000)
        manager.record_usage("a", 0)
        manager.record_usage("a", 40)
        manager.record_usage("a", 260)
        assert manager.remaining("a") == 0
        assert manager.report()["donor"]["allocated"] == 800
        with pytest.raises(tbc.UnknownAgentError):
            manager.record_usage("nobody", 1)
        with pytest.raises(ValueError, match="tokens must be >= 0"):
            manager.record_usage("a", -1)

    def test_over_budget_spending_is_booked_and_then_raised(self):
        manager = tbc.BudgetManager()
        manager.register_agent("a", max_tokens=5)
        for _ in range(3):
            with pytest.raises(tbc.BudgetExceededError, match="66 are booked"):
                manager.record_usage("a", 66)
        assert manager.report()["a"] == {"allocated": 5, "consumed": 198, "remaining": -193}
        assert len(manager.ledger.history("a")) == 3

    def test_a_refused_call_moves_nothing(self):
        manager = tbc.BudgetManager()
        manager.register_agent("donor", max_tokens=100)
        manager.register_agent("needy", priority=5, max_tokens=10)
        before = manager.accounts()
        with pytest.raises(tbc.BudgetExceededError):
            manager.hold("needy", 500)
        assert manager.accounts() == before

    def test_registering_again_with_the_same_terms_touches_nothing(self):
        manager = tbc.BudgetManager()
        first = manager.register_agent("a", max_tokens=100)
        manager.record_usage("a", 60)
        assert manager.register_agent("a", max_tokens=100) is first
        assert manager.remaining("a") == 40

    def test_other_terms_need_replace_and_keep_what_was_consumed(self):
        manager = tbc.BudgetManager()
        manager.register_agent("a", max_tokens=100)
        manager.record_usage("a", 60)
        with pytest.raises(tbc.AgentExistsError, match="max_tokens 100, not 80"):
            manager.register_agent("a", max_tokens=80)
        manager.register_agent("a", max_tokens=80, replace=True)
        assert manager.report()["a"] == {"allocated": 80, "consumed": 60, "remaining": 20}
        with pytest.raises(tbc.InvalidContractError, match="the least it takes is 60"):
            manager.register_agent("a", max_tokens=50, replace=True)

    def test_left_out_max_tokens_is_1000_only_without_a_managers_cap(self):
        alone, capped = tbc.BudgetManager(), tbc.BudgetManager(max_tokens=50)
        assert alone.register_agent("a").max_tokens == 1000
        assert capped.register_agent("a").max_tokens is None

    @given(
        st.lists(st.tuples(st.integers(1, 4), st.integers(0, 500)), min_size=1, max_size=5),
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 200)), max_size=20),
    )
    def test_reports_are_theirs_as_long_as_nothing_is_refused(self, agents, usages):
        terms = {f"a{i}": {"priority": p, "max_tokens": t} for i, (p, t) in enumerate(agents)}
        theirs, ours = both(**terms)
        for index, tokens in usages:
            name = f"a{index % len(agents)}"
            try:
                theirs.record_usage(name, tokens)
            except tbcontracts.BudgetExceededError:
                with pytest.raises(tbc.BudgetExceededError):
                    ours.record_usage(name, tokens)
                break
            ours.record_usage(name, tokens)
            assert ours.report() == theirs.report()
            assert ours.remaining(name) == theirs.remaining(name)

    def test_error_text_and_fields_are_theirs(self):
        error = tbc.BudgetExceededError("a", 9, 4)
        assert str(error) == str(tbcontracts.BudgetExceededError("a", 9, 4))
        assert (error.agent_name, error.requested, error.available) == ("a", 9, 4)
        assert isinstance(error, tbc.TBCError)
