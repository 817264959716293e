"""The tree: carve-outs, draws, escalation, closes, new terms, rebalance over several markets."""

from __future__ import annotations

import pytest

import tbc
from tbc.clock import ManualClock


def account(manager: tbc.BudgetManager, name: str) -> tbc.Account:
    return next(each for each in manager.accounts() if each.agent_name == name)


def moved(transfers) -> list[tuple[str, str, str, int]]:
    return [(str(t.kind), t.donor, t.recipient, t.tokens) for t in transfers]


@pytest.fixture
def manager() -> tbc.BudgetManager:
    """root 1000: researcher 400 (reader drawing, writer 100), editor 300, treasury 300."""
    manager = tbc.BudgetManager(max_tokens=1000, clock=ManualClock())
    manager.register_agent("researcher", priority=5, max_tokens=400, min_reserve=50)
    manager.register_agent("editor", priority=3, max_tokens=300, min_reserve=30)
    manager.register_agent("reader", priority=1, max_tokens=0, parent="researcher")
    manager.register_agent("writer", priority=9, max_tokens=100, min_reserve=20, parent="researcher")
    return manager


def total_allocated(manager: tbc.BudgetManager) -> int:
    return sum(each.allocated for each in manager.accounts())


def test_max_tokens_is_carved_out_of_the_parents_spare(manager):
    assert account(manager, tbc.ROOT).remaining == 300
    assert account(manager, "researcher").allocated == 300
    assert total_allocated(manager) == 1000


def test_a_carve_out_that_does_not_fit_is_refused_with_the_arithmetic(manager):
    before = manager.accounts()
    with pytest.raises(
        tbc.CarveOutError,
        match=r"can spare 250 \(allocated 300 - consumed 0 - held 0 - reserve 50\).*"
        r"at most 250, or top up 'researcher' by 50",
    ):
        manager.register_agent("third", max_tokens=300, parent="researcher")
    assert manager.accounts() == before
    assert "third" not in manager.contracts


def test_a_shortage_is_met_by_treasury_then_siblings_then_the_parents_market(manager):
    hold = manager.hold("writer", 100 + 250 + 300 + 100)
    assert moved(hold.loans) == [
        ("draw", "researcher", "writer", 250),
        ("draw", "(root)", "writer", 300),
        ("loan", "editor", "writer", 100),
    ]
    booked = [(str(e.kind), e.peer, e.agent_name, e.allocated) for e in manager.ledger.entries()[-4:]]
    assert booked == [
        ("draw", "researcher", "writer", 250),
        ("draw", "(root)", "researcher", 300),
        ("loan", "editor", "researcher", 100),
        ("hand_down", "researcher", "writer", 400),
    ]
    assert account(manager, "researcher").remaining == 50
    assert total_allocated(manager) == 1000


def test_unused_loans_return_to_their_lenders_directly(manager):
    before = manager.accounts()
    settlement = manager.hold("writer", 750).settle(0)
    assert [t.recipient for t in settlement.returned] == ["editor", "(root)", "researcher"]
    assert manager.accounts() == before


def test_the_parent_asks_with_its_own_priority(manager):
    manager.register_agent("chief", priority=9, max_tokens=300, min_reserve=0)  # empties the treasury
    decision = manager.decide("writer", 10_000)
    # chief (9) outranks researcher (5), so that even its most important child cannot get at it
    assert (decision.treasury, decision.siblings, decision.ancestors) == (250, 0, 270)


def test_siblings_lend_downhill_only(manager):
    assert manager.decide("reader", 500).siblings == 0  # writer is more important
    manager.hold("reader", 10).settle(10)
    manager.register_agent("scout", priority=1, max_tokens=50, min_reserve=0, parent="researcher")
    assert manager.decide("reader", 500).siblings == 50


def test_closing_returns_what_was_not_spent_to_the_parent(manager):
    manager.hold("writer", 40).settle(30)
    manager.close_agent("writer")
    assert account(manager, "researcher").allocated == 370
    writer = account(manager, "writer")
    assert (writer.closed, writer.allocated, writer.consumed) == (True, 30, 30)
    assert total_allocated(manager) == 1000
    for call in (manager.hold, manager.decide, manager.record_usage, manager.top_up):
        with pytest.raises(tbc.AgentClosedError, match="'writer' is closed"):
            call("writer", 1)
    with pytest.raises(tbc.AgentClosedError):
        manager.close_agent("writer")


def test_closing_is_refused_with_open_holds_or_children_and_names_them(manager):
    hold = manager.hold("writer", 1)
    with pytest.raises(tbc.AgentInUseError, match=rf"open holds \[{hold.hold_id}\]"):
        manager.close_agent("writer")
    with pytest.raises(tbc.AgentInUseError, match=r"open children \['reader', 'writer'\]"):
        manager.close_agent("researcher")


def test_a_loan_whose_lender_has_closed_returns_to_the_treasury(manager):
    hold = manager.hold("researcher", 300 + 300 + 100)  # own 300, treasury 300, editor 100
    manager.close_agent("editor")
    assert hold.loans[-1].donor == "(root)"
    hold.void()
    assert account(manager, tbc.ROOT).remaining == 300 + 300
    assert total_allocated(manager) == 1000


def test_at_the_root_a_closed_lenders_loan_leaves_the_pool():
    manager = tbc.BudgetManager()
    manager.register_agent("a", max_tokens=100, min_reserve=0)
    manager.register_agent("b", max_tokens=100, min_reserve=0)
    hold = manager.hold("a", 150)
    manager.close_agent("b")
    hold.settle(120)
    assert total_allocated_capped(manager) == 120
    last = manager.ledger.entries()[-1]
    assert (last.kind, last.agent_name, last.allocated) == (tbc.Kind.CLOSE, "a", -30)


def total_allocated_capped(manager: tbc.BudgetManager) -> int:
    return sum(each.allocated or 0 for each in manager.accounts())


def test_a_closed_agent_registered_again_keeps_what_it_consumed(manager):
    manager.record_usage("writer", 60)
    manager.close_agent("writer")
    manager.register_agent("writer", priority=2, max_tokens=50, parent="researcher")
    assert manager.report()["writer"] == {"allocated": 110, "consumed": 60, "remaining": 50}
    assert list(manager.report()) == ["researcher", "editor", "reader", "writer"]


def test_top_up_comes_from_the_parent_or_at_the_root_anew(manager):
    manager.top_up("writer", 100)
    assert account(manager, "researcher").allocated == 200
    with pytest.raises(tbc.CarveOutError):
        manager.top_up("writer", 151)
    manager.top_up(tbc.ROOT, 500)
    assert account(manager, tbc.ROOT).remaining == 800
    assert total_allocated(manager) == 1500


def test_what_is_uncapped_cannot_be_topped_up():
    manager = tbc.BudgetManager()
    manager.register_agent("a", max_tokens=None)
    for name in ("a", tbc.ROOT):
        with pytest.raises(tbc.InvalidContractError, match="uncapped"):
            manager.top_up(name, 1)


def test_cycles_and_moves_in_the_tree_are_refused(manager):
    with pytest.raises(tbc.InvalidContractError, match="own parent"):
        manager.register_agent("self", parent="self")
    with pytest.raises(tbc.InvalidContractError, match="cannot move"):
        manager.register_agent("researcher", 5, 400, 50, parent="writer", replace=True)
    with pytest.raises(tbc.UnknownAgentError):
        manager.register_agent("x", parent="nobody")
    manager.close_agent("writer")
    with pytest.raises(tbc.AgentClosedError):
        manager.register_agent("x", parent="writer")


@pytest.mark.parametrize("name", ["", "(root)", None, 5, b"x"])
def test_what_cannot_name_an_agent_is_refused(manager, name):
    with pytest.raises(tbc.InvalidContractError, match="agent_name"):
        manager.register_agent(name)


def test_replace_moves_the_difference_and_keeps_loans(manager):
    hold = manager.hold("writer", 200)  # 100 drawn from researcher
    manager.register_agent("writer", priority=9, max_tokens=150, parent="researcher", replace=True)
    assert account(manager, "researcher").allocated == 300 - 100 - 50
    assert account(manager, "writer").borrowed == 100
    hold.void()
    assert account(manager, "researcher").allocated == 250
    assert account(manager, "writer").remaining == 150
    assert total_allocated(manager) == 1000


def test_replace_that_the_parent_cannot_fund_changes_nothing(manager):
    before = manager.accounts()
    with pytest.raises(tbc.CarveOutError):
        manager.register_agent("writer", priority=1, max_tokens=1000, parent="researcher", replace=True)
    assert manager.accounts() == before


def test_an_uncapped_agent_takes_a_cap_and_gives_it_up():
    manager = tbc.BudgetManager()
    manager.register_agent("a", max_tokens=None)
    manager.record_usage("a", 70)
    with pytest.raises(tbc.InvalidContractError, match="the least it takes is 70"):
        manager.register_agent("a", max_tokens=60, replace=True)
    manager.register_agent("a", max_tokens=100, replace=True)
    assert manager.remaining("a") == 30
    manager.register_agent("a", max_tokens=None, replace=True)
    assert manager.report()["a"] == {"allocated": None, "consumed": 70, "remaining": None}


def test_update_agent_changes_terms_and_no_allocation(manager):
    manager.update_agent("editor", priority=9, min_reserve=300)
    assert account(manager, "editor").spare == 0
    contract = manager.update_agent("editor", min_reserve=0, confidence_threshold=0.5)
    assert (contract.priority, contract.min_reserve, contract.confidence_threshold) == (9, 0, 0.5)
    assert manager.decide("writer", 10_000).ancestors == 300  # priority 9 does not lend to researcher (5)
    assert manager.update_agent("editor", confidence_threshold=None).confidence_threshold is None
    with pytest.raises(tbc.InvalidAmountError):
        manager.update_agent("editor", min_reserve=301)


def test_a_root_cap_of_zero_allows_nothing():
    manager = tbc.BudgetManager(max_tokens=0)
    manager.register_agent("a")
    with pytest.raises(tbc.BudgetExceededError):
        manager.hold("a", 1)


def test_no_descendant_takes_the_parents_reserve(manager):
    with pytest.raises(tbc.BudgetExceededError):
        manager.hold("writer", 100 + 250 + 300 + 270 + 1)
    manager.hold("writer", 100 + 250 + 300 + 270)
    assert account(manager, "researcher").remaining == 50
    assert manager.hold("researcher", 50).tokens == 50  # its owner may spend it


def test_contracts_is_a_read_only_view_of_open_agents(manager):
    assert list(manager.contracts) == ["researcher", "editor", "reader", "writer"]
    with pytest.raises(TypeError):
        manager.contracts["x"] = tbc.BudgetContract("x")
    manager.close_agent("reader")
    assert "reader" not in manager.contracts
    assert len(manager.contracts) == 3


class TestRebalance:
    def test_one_clearing_serves_what_a_sequence_of_holds_strands(self):
        manager = tbc.BudgetManager()
        manager.register_agent("low", priority=1, max_tokens=100, min_reserve=0)
        manager.register_agent("high", priority=5, max_tokens=100, min_reserve=0)
        manager.register_agent("asks low", priority=1, max_tokens=0)
        manager.register_agent("asks high", priority=5, max_tokens=0)
        done = manager.rebalance({"asks high": 100, "asks low": 100})
        assert done.unmet == {"asks high": 0, "asks low": 0}
        assert moved(done.transfers) == [
            ("rebalance", "low", "asks low", 100),
            ("rebalance", "high", "asks high", 100),
        ]
        assert list(done.clearings) == [tbc.ROOT]
        assert done.members[tbc.ROOT] == (tbc.ROOT, "low", "high", "asks low", "asks high")

    def test_what_a_market_cannot_serve_its_parent_asks_for_and_hands_down(self, manager):
        done = manager.rebalance({"writer": 250 + 300 + 100})
        assert moved(done.transfers) == [
            ("draw", "(root)", "researcher", 300),
            ("rebalance", "editor", "researcher", 100),
            ("hand_down", "researcher", "writer", 400),
            ("draw", "researcher", "writer", 250),
        ]
        assert account(manager, "writer").allocated == 100 + 650
        assert total_allocated(manager) == 1000
        assert set(done.clearings) == {"(root)", "researcher"}

    def test_a_partial_answer_is_an_answer(self, manager):
        done = manager.rebalance({"writer": 5_000})
        assert done.unmet == {"writer": 5_000 - 250 - 300 - 270}
        assert account(manager, "researcher").remaining == 50

    def test_a_debt_is_added_to_the_shortfall(self):
        manager = tbc.BudgetManager()
        manager.register_agent("donor", max_tokens=100, min_reserve=0)
        manager.register_agent("debtor", priority=5, max_tokens=10)
        manager.hold("debtor", 10).settle(130)
        assert account(manager, "debtor").debt == 20
        manager.top_up("donor", 50)
        assert manager.rebalance({"debtor": 5}).unmet == {"debtor": 0}
        assert manager.remaining("debtor") == 5

    def test_parents_own_shortfall_comes_first_and_it_gives_its_children_nothing(self, manager):
        done = manager.rebalance({"researcher": 500, "reader": 100})
        assert done.unmet == {"researcher": 0, "reader": 500 + 100 - 300 - 270}
        assert account(manager, "researcher").allocated == 300 + 500

    def test_uncapped_agents_neither_ask_nor_give(self):
        manager = tbc.BudgetManager()
        manager.register_agent("free", max_tokens=None)
        manager.register_agent("capped", max_tokens=10)
        done = manager.rebalance({"free": 100, "capped": 5})
        assert done.transfers == ()
        assert done.unmet == {"free": 0, "capped": 5}

    def test_bad_shortfalls_are_refused(self, manager):
        before = manager.accounts()
        for bad in ({"writer": -1}, {"writer": 1.5}, {"nobody": 1}):
            with pytest.raises(tbc.TBCError):
                manager.rebalance(bad)
        assert manager.accounts() == before


def test_reallocate_moves_what_there_is_for_good(manager):
    assert manager.reallocator.reallocate("writer", 10_000) == 250 + 300 + 270
    assert account(manager, "writer").allocated == 920
    assert manager.reallocator.find_donors("editor") == []
    with pytest.raises(KeyError):
        manager.reallocator.reallocate("nobody", 1)


def test_changing_and_closing_under_a_key_is_safe_to_repeat():
    manager = tbc.BudgetManager(max_tokens=1000)
    manager.register_agent("writer", max_tokens=500)
    manager.update_agent("writer", priority=7, key="more")
    manager.update_agent("writer", priority=2)
    assert manager.update_agent("writer", priority=7, key="more").priority == 2  # the first answer, done once
    with pytest.raises(tbc.KeyConflictError):
        manager.update_agent("writer", priority=8, key="more")
    manager.close_agent("writer", key="gone")
    manager.register_agent("writer", max_tokens=500)
    manager.close_agent("writer", key="gone")
    assert "writer" in manager.contracts
    with pytest.raises(tbc.KeyConflictError):
        manager.close_agent("reader", key="gone")
