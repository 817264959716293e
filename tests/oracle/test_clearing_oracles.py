"""The clearing against linear programs, a maximum flow, enumeration and plain Python; each can fail."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbc.clearing import Clearing
from tests.oracle.clearing_oracles import (
    LARGEST,
    Market,
    assert_best_by_enumeration,
    assert_bottleneck_is_certified,
    assert_drained_in_order,
    assert_is_a_lawful_flow,
    assert_optimal_by_linear_programs,
    assert_same_as_plain,
    assert_split_is_fair,
    assert_total_is_the_maximum_flow,
    markets,
    plain_split,
    random_market,
    with_entry,
)


@given(markets(max_agents=10, amounts=st.integers(0, 60), priorities=st.integers(0, 5)))
def test_levels_are_optimal_by_linear_programs(market):
    assert_optimal_by_linear_programs(market, market.cleared())


@given(markets(max_agents=5, amounts=st.integers(0, 3), priorities=st.integers(0, 2)))
def test_every_agent_is_right_by_enumeration(market):
    assert_best_by_enumeration(market, market.cleared())


@pytest.mark.parametrize("seed", range(8))
def test_the_total_is_the_maximum_flow(seed):
    rng = np.random.default_rng(seed)
    market = random_market(rng, 300, levels=int(rng.integers(2, 60)), largest=5_000, needy=rng.random())
    answer = market.cleared()
    assert_total_is_the_maximum_flow(market, answer)
    assert_is_a_lawful_flow(market, answer)


@pytest.mark.parametrize("levels", [1, 7, 20_000])
@pytest.mark.parametrize(("largest", "needy"), [(3, 0.5), (10**6, 0.1), (10**6, 0.6), (2**53 // 10**5, 0.4)])
def test_it_equals_the_plain_version_on_large_markets(levels, largest, needy):
    """Many blocks of agents; small amounts bring many ties and exact fits."""
    rng = np.random.default_rng([levels, largest])
    market = random_market(
        rng, 40_000 if levels < 20_000 else 4_000, levels=levels, largest=largest, needy=needy
    )
    answer = market.cleared()
    assert_same_as_plain(market, answer)
    assert_drained_in_order(market, answer)


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_plain_version_on_a_level_of_many_agents_with_the_largest_amounts(seed):
    """Idleness and place do not fit into one word here."""
    market = random_market(np.random.default_rng(seed), 1_000, levels=1, largest=LARGEST, needy=0.3)
    assert_same_as_plain(market, market.cleared())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 40))
def test_the_plain_split_is_fair(demands, tokens):
    """The yardstick itself: tokens or demands are used up, nobody gets too much, no token should move."""
    n = len(demands)
    shares = plain_split(dict(enumerate(demands)), tokens)
    market = Market((0,) * n, (0,) * n, (0,) * n, tuple(demands), (False,) * n)
    received = np.array([shares[i] for i in range(n)])
    assert received.sum() == min(tokens, sum(demands))
    assert (received <= demands).all()
    assert_split_is_fair(market, attrs.evolve(market.cleared(), received=received))


# ------------------------------------------------------------------------------- the oracles must fail

#: Agents 0 and 1 (priority 1) and 2 (priority 2) give; 3 (1), 4 and 5 (2) and 6 (3) ask; one level is short.
MARKET = Market(
    priority=(1, 1, 2, 1, 2, 2, 3),
    remaining=(4, 9, 6, 0, 0, 0, 0),
    min_reserve=(0, 2, 5, 0, 0, 0, 0),
    demand=(0, 0, 0, 3, 6, 5, 5),
    confident=(False,) * 7,
)
#: The same with so much to give that agent 2 keeps some.
AMPLE = attrs.evolve(MARKET, remaining=(9, 12, 60, 0, 0, 0, 0))


def moved(answer: Clearing, name: str, source: int, target: int, amount: int = 1) -> Clearing:
    return with_entry(with_entry(answer, name, source, -amount), name, target, amount)


def received_and_levels_moved(answer: Clearing, source: int, target: int) -> Clearing:
    """Move a token between recipients of different levels, consistently."""
    level = {3: 0, 4: 1, 5: 1, 6: 2}
    answer = moved(answer, "received", source, target)
    return moved(answer, "level_served", level[source], level[target])


def swapped(answer: Clearing, name: str, one: int, other: int) -> Clearing:
    array = getattr(answer, name).copy()
    array[[one, other]] = array[[other, one]]
    return attrs.evolve(answer, **{name: array})


def reversed_transfers(answer: Clearing) -> Clearing:
    return attrs.evolve(
        answer, donors=answer.donors[::-1], recipients=answer.recipients[::-1], amounts=answer.amounts[::-1]
    )


def split_transfer(answer: Clearing) -> Clearing:
    """Split the last transfer in two."""
    return attrs.evolve(
        answer,
        donors=np.append(answer.donors, answer.donors[-1]),
        recipients=np.append(answer.recipients, answer.recipients[-1]),
        amounts=np.append(answer.amounts[:-1], [1, answer.amounts[-1] - 1]),
    )


def test_the_right_answers_pass_every_oracle():
    assert MARKET.cleared().received.tolist() == [0, 0, 0, 0, 4, 3, 5]
    assert AMPLE.cleared().given.tolist() == [9, 10, 0, 0, 0, 0, 0]
    for market in (MARKET, AMPLE):
        for oracle in ORACLES:
            oracle(market, market.cleared())


ORACLES: tuple[Callable[[Market, Clearing], None], ...] = (
    assert_is_a_lawful_flow,
    assert_drained_in_order,
    assert_split_is_fair,
    assert_bottleneck_is_certified,
    assert_optimal_by_linear_programs,
    assert_total_is_the_maximum_flow,
    assert_same_as_plain,
)

#: oracle, market, how the right answer is spoilt
SPOILT: dict[str, tuple[Callable[[Market, Clearing], None], Market, Callable[[Clearing], Clearing]]] = {
    "flow: amount too large": (assert_is_a_lawful_flow, MARKET, lambda a: with_entry(a, "amounts", 0, 1)),
    "flow: empty transfer": (
        assert_is_a_lawful_flow,
        MARKET,
        lambda a: with_entry(a, "amounts", 0, -int(a.amounts[0])),
    ),
    "flow: uphill": (
        assert_is_a_lawful_flow,
        attrs.evolve(MARKET, priority=(1, 1, 9, 1, 2, 2, 3)),
        lambda a: with_entry(a, "donors", 0, 2 - int(a.donors[0])),
    ),
    "flow: another donor": (
        assert_is_a_lawful_flow,
        MARKET,
        lambda a: with_entry(a, "donors", 0, 1 - int(a.donors[0])),
    ),
    "flow: given moved": (assert_is_a_lawful_flow, MARKET, lambda a: moved(a, "given", 0, 1)),
    "flow: received moved": (assert_is_a_lawful_flow, MARKET, lambda a: moved(a, "received", 4, 5)),
    "flow: unmet wrong": (assert_is_a_lawful_flow, MARKET, lambda a: with_entry(a, "unmet", 3, 1)),
    "flow: levels wrong": (assert_is_a_lawful_flow, MARKET, lambda a: with_entry(a, "levels", 0, -1)),
    "flow: level demand": (assert_is_a_lawful_flow, MARKET, lambda a: moved(a, "level_demand", 0, 1)),
    "flow: level served": (assert_is_a_lawful_flow, MARKET, lambda a: moved(a, "level_served", 1, 0)),
    "flow: level unmet": (assert_is_a_lawful_flow, MARKET, lambda a: with_entry(a, "level_unmet", 0, 1)),
    "flow: order": (assert_is_a_lawful_flow, MARKET, reversed_transfers),
    "flow: a pair twice": (assert_is_a_lawful_flow, MARKET, split_transfer),
    "flow: dtype": (
        assert_is_a_lawful_flow,
        MARKET,
        lambda a: attrs.evolve(a, given=a.given.astype(np.float64)),
    ),
    "drain: others first": (assert_drained_in_order, AMPLE, lambda a: moved(a, "given", 0, 2)),
    "drain: agents swapped": (
        assert_drained_in_order,
        attrs.evolve(AMPLE, demand=(0, 0, 0, 0, 0, 0, 5)),
        lambda a: swapped(a, "given", 0, 1),
    ),
    "fair: a token moved": (assert_split_is_fair, MARKET, lambda a: moved(a, "received", 5, 4)),
    "fair: left-over swapped": (assert_split_is_fair, MARKET, lambda a: swapped(a, "received", 4, 5)),
    "bottleneck: too low": (
        assert_bottleneck_is_certified,
        MARKET,
        lambda a: attrs.evolve(a, bottleneck=a.bottleneck - 1),
    ),
    "bottleneck: too high": (
        assert_bottleneck_is_certified,
        attrs.evolve(MARKET, remaining=(4, 9, 30, 0, 0, 0, 0), demand=(0, 0, 0, 30, 0, 0, 0)),
        lambda a: attrs.evolve(a, bottleneck=2),
    ),
    "bottleneck: denied": (
        assert_bottleneck_is_certified,
        MARKET,
        lambda a: attrs.evolve(a, bottleneck=None),
    ),
    "bottleneck: invented": (
        assert_bottleneck_is_certified,
        AMPLE,
        lambda a: attrs.evolve(a, bottleneck=3),
    ),
    "programs: level moved": (
        assert_optimal_by_linear_programs,
        MARKET,
        lambda a: received_and_levels_moved(a, 6, 3),
    ),
    "programs: not the total": (
        assert_optimal_by_linear_programs,
        MARKET,
        lambda a: with_entry(a, "level_served", 1, -1),
    ),
    "programs: higher donor": (
        assert_optimal_by_linear_programs,
        AMPLE,
        lambda a: moved(a, "given", 0, 2),
    ),
    "programs: served from nothing": (
        assert_optimal_by_linear_programs,
        attrs.evolve(MARKET, remaining=(0,) * 7),
        lambda a: with_entry(a, "level_served", 0, 1),
    ),
    "flow value: one less": (
        assert_total_is_the_maximum_flow,
        MARKET,
        lambda a: with_entry(a, "received", 4, -1),
    ),
    "flow value: one more": (
        assert_total_is_the_maximum_flow,
        MARKET,
        lambda a: with_entry(a, "received", 3, 1),
    ),
    "flow value: from nothing": (
        assert_total_is_the_maximum_flow,
        attrs.evolve(MARKET, remaining=(0,) * 7),
        lambda a: with_entry(a, "received", 3, 1),
    ),
    "plain: given moved": (assert_same_as_plain, AMPLE, lambda a: moved(a, "given", 0, 2)),
    "plain: received moved": (assert_same_as_plain, MARKET, lambda a: moved(a, "received", 5, 4)),
    "plain: order": (assert_same_as_plain, MARKET, reversed_transfers),
}


@pytest.mark.parametrize("case", SPOILT)
def test_an_oracle_objects_to_a_spoilt_answer(case):
    oracle, market, spoil = SPOILT[case]
    answer = market.cleared()
    oracle(market, answer)
    with pytest.raises(AssertionError):
        oracle(market, spoil(answer))


#: Agents 0 and 1 give up to 3; 2 and 3 ask for 2 each, in one level; agent 4 is more important.
TINY = Market((1, 1, 1, 1, 2), (3, 1, 0, 0, 2), (1, 0, 0, 0, 0), (0, 0, 2, 2, 0), (False,) * 5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: swapped(a, "received", 2, 3),
        lambda a: moved(a, "received", 2, 3),
        lambda a: moved(a, "given", 0, 4),
        lambda a: with_entry(with_entry(a, "given", 0, -1), "received", 2, -1),
        lambda a: with_entry(with_entry(a, "given", 4, 1), "received", 3, 1),
    ],
    ids=["swapped", "unfair", "uphill", "a token less", "a token more"],
)
def test_enumeration_objects_to_a_spoilt_answer(spoil):
    answer = TINY.cleared()
    assert answer.received.tolist() == [0, 0, 2, 1, 0]
    assert_best_by_enumeration(TINY, answer)
    with pytest.raises(AssertionError):
        assert_best_by_enumeration(TINY, spoil(answer))
