"""The donor index finds what the kernel finds, after any history."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tbc
from tbc.clock import ManualClock
from tbc.donors import DonorIndex, _PrefixSums

AGENTS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 40), st.integers(0, 10), st.booleans()),
    min_size=1,
    max_size=9,
)
STEPS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5), st.integers(0, 60)), max_size=25)


def market(agents) -> tbc.BudgetManager:
    manager = tbc.BudgetManager(clock=ManualClock())
    for i, (priority, tokens, reserve, _) in enumerate(agents):
        manager.register_agent(f"a{i}", priority, tokens, min(reserve, tokens), confidence_threshold=0.5)
    for i, (_, _, _, confident) in enumerate(agents):
        if confident:
            manager.report_confidence(f"a{i}", 0.9)
    manager.register_agent("needy", priority=3, max_tokens=0)
    return manager


def play(manager: tbc.BudgetManager, steps, agents: int) -> None:
    """Change the books in every way that the index must hear of."""
    for who, what, amount in steps:
        name = f"a{who % agents}"
        try:
            if what == 0:
                manager.hold(name, amount)
            elif what == 1:
                manager.hold(name, amount).settle(amount // 2)
            elif what == 2:
                manager.record_usage(name, amount)
            elif what == 3:
                manager.update_agent(name, priority=1 + amount % 6)
            elif what == 4:
                manager.reset_confidence(name)
            else:
                manager.hold("needy", amount).void()
        except tbc.TBCError:
            pass


def kernel_answer(manager: tbc.BudgetManager, shortfall: int) -> dict[str, int]:
    books = [each for each in manager.accounts()[1:] if not each.closed]
    needy = [each.agent_name for each in books].index("needy")
    demand = np.zeros(len(books), np.int64)
    demand[needy] = shortfall + books[needy].debt
    answer = tbc.clear(
        [each.priority for each in books],
        [max(0, each.remaining) for each in books],
        [each.min_reserve for each in books],
        demand,
        confident=[each.gate_closed for each in books],
    )
    pairs = zip(answer.donors.tolist(), answer.amounts.tolist(), strict=True)
    return {books[donor].agent_name: amount for donor, amount in pairs}


@given(AGENTS, STEPS, st.integers(1, 200))
def test_one_shortfall_is_the_clearing_with_one_needy_agent(agents, steps, shortfall):
    manager = market(agents)
    play(manager, steps, len(agents))
    expected = kernel_answer(manager, shortfall)
    available = sum(expected.values())
    decision = manager.decide("needy", shortfall)
    assert decision.siblings == sum(kernel_answer(manager, 10_000).values())
    if available < shortfall:
        assert decision.status.refuses
        assert manager.reallocator.reallocate("needy", shortfall) == available
    else:
        assert {move.donor: move.tokens for move in manager.hold("needy", shortfall).loans} == expected


@given(AGENTS, STEPS, st.integers(1, 200))
def test_loans_come_in_drain_order(agents, steps, shortfall):
    manager = market(agents)
    play(manager, steps, len(agents))
    order = {each.agent_name: i for i, each in enumerate(manager.accounts())}
    before = {each.agent_name: each for each in manager.accounts()}

    def rank(name: str) -> tuple[int, bool, int, int]:
        books = before[name]
        return books.priority, not books.gate_closed, -books.remaining, order[name]

    donors = [move.donor for move in manager.decide("needy", shortfall).transfers]
    assert donors == sorted(donors, key=rank)
    assert donors == [name for name in manager.reallocator.find_donors("needy") if name in donors]


@given(AGENTS, STEPS)
def test_the_sums_are_those_of_the_accounts(agents, steps):
    manager = market(agents)
    play(manager, steps, len(agents))
    manager.decide("needy", 1)  # lets the index catch up
    index = manager.ledger.root.index
    books = [each for each in manager.accounts()[1:] if each.agent_name != "needy"]
    for priority in range(7):
        below = [each for each in books if each.priority <= priority]
        assert index.lendable(priority) == sum(each.spare for each in below)
        idle = [
            each.allocated - each.borrowed + each.lent - each.consumed - each.min_reserve for each in below
        ]
        assert index.lendable_when_idle(priority) == sum(max(0, spare) for spare in idle)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 9))),
)
def test_prefix_sums_are_prefix_sums(values, changes):
    sums = _PrefixSums(values)
    for place, change in changes:
        values[place % len(values)] += change
        sums.add(place % len(values), change)
    for count in range(len(values) + 1):
        assert sums.first(count) == sum(values[:count])
    for total in range(sum(values)):
        place = sums.index_above(total)
        assert sum(values[:place]) <= total < sum(values[: place + 1])


def test_a_plain_hold_never_touches_the_index(monkeypatch):
    manager = market([(1, 100, 0, False)] * 3)
    manager.hold("needy", 5).void()  # makes the index

    def touched(*arguments):
        raise AssertionError("the index was asked")

    for method in ("refresh", "drain", "lendable", "_index"):
        monkeypatch.setattr(DonorIndex, method, touched)
    manager.hold("a1", 50).settle(20)
    with pytest.raises(AssertionError, match="was asked"):
        manager.hold("needy", 5)


def test_the_work_for_one_shortfall_does_not_grow_with_the_market(monkeypatch):
    """Counted in accounts looked at, not in seconds."""
    looked_at = []
    index = DonorIndex._index

    def counted(self, *rest):
        looked_at.append(rest[0])
        index(self, *rest)

    monkeypatch.setattr(DonorIndex, "_index", counted)
    counts = {}
    for size in (50, 5_000):
        manager = market([(1 + i % 9, 1_000 + i, 0, False) for i in range(size)])
        manager.hold("needy", 1).void()
        looked_at.clear()
        manager.hold("a3", 10).settle(5)
        manager.hold("needy", 500).void()
        counts[size] = len(looked_at)
    assert counts[50] == counts[5_000] < 10
