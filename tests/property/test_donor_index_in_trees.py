"""The donor index against the kernel in every market of a tree, after any history of the whole pool."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import tbc
from tests.property.histories import Player, caps, forests, histories


def markets_above(manager: tbc.BudgetManager, name: str) -> list[tuple[tbc.Account, list[tbc.Account], str]]:
    """Return (parent, its capped open children in registration order, who asks) from the agent upwards."""
    accounts = {account.agent_name: account for account in manager.accounts()}
    found = []
    asker = accounts[name]
    while asker.parent is not None:
        parent = accounts[asker.parent]
        children = [
            each
            for each in accounts.values()
            if each.parent == parent.agent_name and not each.closed and each.allocated is not None
        ]
        found.append((parent, children, asker.agent_name))
        if parent.allocated is None:
            break
        asker = parent
    return found


def kernel(
    parent: tbc.Account, children: list[tbc.Account], asker: str, tokens: int
) -> list[tuple[str, int]]:
    """Return what the clearing gives to one needy agent, as (donor, amount) pairs."""
    rows = [parent, *children]
    answer = tbc.clear(
        [0, *(each.priority for each in children)],
        [parent.spare, *(max(0, each.remaining or 0) for each in children)],
        [0, *(each.min_reserve for each in children)],
        [tokens if each.agent_name == asker else 0 for each in rows],
        confident=[False, *(each.gate_closed for each in children)],
    )
    pairs = zip(answer.donors.tolist(), answer.amounts.tolist(), strict=True)
    return [(rows[donor].agent_name, amount) for donor, amount in pairs]


@given(forests, histories, caps, st.integers(1, 200))
def test_a_shortage_is_the_clearing_of_one_market_after_the_other(tree, history, cap, tokens):
    """What the market of the agent does not have, its parent asks for in its own, and so on."""
    player = Player(tree, cap)
    list(player.play(history))
    manager = player.manager
    for name in list(manager.contracts):
        decision = manager.decide(name, tokens)
        if decision.remaining is None:
            continue
        lacking = tokens - decision.remaining
        expected: list[dict[str, int]] = []
        for parent, children, asker in markets_above(manager, name):
            given_ = dict(kernel(parent, children, asker, lacking)) if lacking > 0 else {}
            expected.append(given_)
            lacking -= sum(given_.values())
        if lacking > 0:
            assert decision.status.refuses
            continue
        if decision.status is not tbc.Status.FITS_WITH_LOANS:
            assert decision.status.refuses or tokens <= decision.remaining
            continue
        moved: dict[str, int] = {}
        for move in decision.transfers:
            if move.kind is not tbc.Kind.HAND_DOWN:
                moved[move.donor] = moved.get(move.donor, 0) + move.tokens
        assert moved == {donor: amount for given_ in expected for donor, amount in given_.items()}
        first_market = decision.treasury + decision.siblings
        assert first_market >= sum(expected[0].values())


@given(forests, histories, caps)
def test_donors_are_found_in_drain_order_in_every_market(tree, history, cap):
    player = Player(tree, cap)
    list(player.play(history))
    manager = player.manager
    accounts = {account.agent_name: account for account in manager.accounts()}
    order = {name: i for i, name in enumerate(accounts)}
    for name in manager.contracts:
        asker = accounts[name]
        parent = accounts[asker.parent]
        siblings = [
            each
            for each in accounts.values()
            if each.parent == asker.parent and each.spare and each.agent_name != name
        ]
        siblings.sort(key=lambda a: (a.priority, not a.gate_closed, -a.remaining, order[a.agent_name]))
        expected = [each.agent_name for each in [parent, *siblings] if each.spare]
        assert manager.reallocator.find_donors(name) == expected
        donors = [
            move.donor
            for move in manager.decide(name, 60).transfers
            if move.kind in (tbc.Kind.DRAW, tbc.Kind.LOAN) and move.recipient == name
        ]
        assert donors == [each for each in expected if each in donors]


@given(forests, histories, caps, st.integers(0, 300))
def test_reallocate_moves_what_there_is_and_never_more(tree, history, cap, tokens):
    player = Player(tree, cap)
    list(player.play(history))
    manager = player.manager
    for name in list(manager.contracts):
        decision = manager.decide(name, 0)
        before = manager.remaining(name)
        moved = manager.reallocator.reallocate(name, tokens)
        if before is None:
            assert moved == 0
            continue
        assert moved == min(tokens, decision.treasury + decision.siblings + decision.ancestors)
        assert manager.remaining(name) == before + moved


@given(forests, histories, caps)
def test_every_index_knows_the_sums_of_its_market(tree, history, cap):
    """Now, and if every open hold were voided: then all of them are voided, and it must have been right."""
    player = Player(tree, cap)
    list(player.play(history))
    manager = player.manager
    expected = {}
    for name in list(manager.contracts):
        decision = manager.decide(name, 0)
        if decision.remaining is not None:
            expected[name] = decision.when_idle
    for hold in player.holds:
        if hold.state == "open":
            hold.void()
    for name, when_idle in expected.items():
        decision = manager.decide(name, 0)
        assert decision.available == when_idle == decision.when_idle
