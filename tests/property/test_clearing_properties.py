"""What holds for every clearing: the rules of ``papers/clearing.md``, one claim a test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest import mock

import attrs
import numpy as np
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tbc import clearing
from tbc.clearing import Clearing, clear
from tests.oracle.clearing_oracles import (
    LARGEST,
    Market,
    assert_bottleneck_is_certified,
    assert_drained_in_order,
    assert_is_a_lawful_flow,
    assert_same_as_plain,
    assert_split_is_fair,
    markets,
    plain_split,
)

ARRAYS = [field.name for field in attrs.fields(Clearing) if field.name != "bottleneck"]

#: Amounts that do not fit beside an index, and amounts at the very edge.
wide = st.one_of(st.integers(0, 9), st.integers(LARGEST - 3, LARGEST), st.integers(0, LARGEST))
#: Priorities for which no table can be kept.
far_apart = st.sampled_from([0, 1, 2**31, 2**62, 2**63 - 2, 2**63 - 1])


def assert_equal(one: Clearing, other: Clearing) -> None:
    for name in ARRAYS:
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name
    assert one.bottleneck == other.bottleneck


# ----------------------------------------------------------------------------------------- the rules


@given(markets())
def test_transfers_are_a_lawful_flow(market):
    """Downhill, within supply and demand, needy agents give nothing, conserved, few, and in order."""
    assert_is_a_lawful_flow(market, market.cleared())


@given(markets())
def test_all_that_is_given_is_received(market):
    answer = market.cleared()
    assert answer.given.sum() == answer.received.sum() == answer.amounts.sum() == answer.level_served.sum()


@given(markets())
def test_there_are_fewer_transfers_than_givers_and_receivers(market):
    """Theorem 3."""
    answer = market.cleared()
    bound = max(0, np.count_nonzero(answer.given) + np.count_nonzero(answer.received) - 1)
    assert len(answer.amounts) <= bound


@given(markets())
def test_at_most_one_level_is_served_in_part_and_none_below_it(market):
    """Theorem 1."""
    answer = market.cleared()
    short = np.flatnonzero(answer.level_unmet)
    if len(short):
        assert (answer.level_served[: short[-1]] == 0).all()


@given(markets())
def test_inside_a_level_the_split_is_fair_to_the_token(market):
    """Theorem 2."""
    assert_split_is_fair(market, market.cleared())


@given(st.lists(st.integers(1, 6), min_size=1, max_size=7), st.integers(0, 42))
@example([3, 5, 5], 10)
def test_a_single_level_is_split_like_the_plain_version(demands, tokens):
    """Theorem 2."""
    n = len(demands)
    answer = clear([0] * n + [0], [0] * n + [tokens], [0] * (n + 1), [*demands, 0])
    shares = plain_split(dict(enumerate(demands)), min(tokens, sum(demands)))
    assert answer.received.tolist() == [*(shares[i] for i in range(n)), 0]


@given(markets())
@example(Market((1, 1, 1, 2), (5, 5, 5, 0), (0,) * 4, (0, 0, 0, 7), (False, False, True, False)))
def test_donors_are_drained_one_after_the_other_confident_then_most_idle_first(market):
    """Theorem 3."""
    assert_drained_in_order(market, market.cleared())


@given(markets())
def test_the_bottleneck_is_the_highest_level_where_a_token_helps(market):
    """Theorem 4: its certificate is a second clearing."""
    assert_bottleneck_is_certified(market, market.cleared())


@given(markets(), st.integers(0, 8), st.integers(1, 9))
def test_more_supply_serves_no_agent_less(market, which, more):
    donors = [i for i in range(market.size) if not market.demand[i]]
    assume(donors)
    lucky = donors[which % len(donors)]
    remaining = tuple(left + more * (i == lucky) for i, left in enumerate(market.remaining))
    richer = attrs.evolve(market, remaining=remaining).cleared()
    assert (richer.received >= market.cleared().received).all()


@given(markets(), st.integers(0, 8), st.integers(1, 9))
def test_more_demand_serves_no_other_agent_more(market, which, more):
    needy = [i for i in range(market.size) if market.demand[i]]
    assume(needy)
    greedy = needy[which % len(needy)]
    demand = tuple(asked + more * (i == greedy) for i, asked in enumerate(market.demand))
    change = attrs.evolve(market, demand=demand).cleared().received - market.cleared().received
    assert (np.delete(change, greedy) <= 0).all()
    assert change[greedy] >= 0


@given(st.data())
def test_permuting_the_agents_permutes_the_answer_where_nothing_ties(data):
    market = data.draw(markets())
    order = data.draw(st.permutations(range(market.size)))
    answer, other = market.cleared(), market.reordered(order).cleared()
    assert answer.levels.tolist() == other.levels.tolist()
    assert answer.level_served.tolist() == other.level_served.tolist()
    assert answer.bottleneck == other.bottleneck
    ranks = list(zip(market.priority, market.confident, market.remaining, strict=True))
    donors = [rank for rank, supply in zip(ranks, market.supply, strict=True) if supply]
    if len(set(donors)) == len(donors):
        assert answer.given[order].tolist() == other.given.tolist()
    if not any(_has_left_over_tokens(market, answer, level) for level in market.levels):
        assert answer.received[order].tolist() == other.received.tolist()


def _has_left_over_tokens(market: Market, answer: Clearing, level: int) -> bool:
    """Say whether somebody of this level has more than an agent that is still short."""
    members = [i for i in range(market.size) if market.priority[i] == level]
    shares = [int(answer.received[i]) for i in members]
    return any(answer.unmet[i] and answer.received[i] < max(shares) for i in members)


@given(markets(), st.integers(1, 10**9))
def test_the_unit_of_amounts_does_not_matter_to_the_levels(market, unit):
    columns = ("remaining", "min_reserve", "demand")
    scaled = attrs.evolve(
        market, **{name: tuple(unit * x for x in getattr(market, name)) for name in columns}
    )
    answer, other = market.cleared(), scaled.cleared()
    assert (unit * answer.level_served).tolist() == other.level_served.tolist()
    assert (unit * answer.given).tolist() == other.given.tolist()
    assert answer.bottleneck == other.bottleneck


# ------------------------------------------------------------------------------- the single shortfall


def drain_idle_first(market: Market, needy: int) -> dict[int, int]:
    """Cover the shortfall of one agent from lower or equal priorities: the whole rule, in plain words."""
    missing, taken = market.demand[needy], {}
    may_give = [i for i in range(market.size) if i != needy and market.priority[i] <= market.priority[needy]]
    for donor in sorted(
        may_give, key=lambda i: (market.priority[i], not market.confident[i], -market.remaining[i], i)
    ):
        tokens = min(missing, max(0, market.remaining[donor] - market.min_reserve[donor]))
        if tokens:
            taken[donor] = tokens
            missing -= tokens
    return taken


@given(markets(), st.integers(0, 8), st.integers(1, 40))
def test_one_needy_agent_drains_the_lowest_confident_most_idle_donors_first(market, which, shortfall):
    assume(market.size)
    needy = which % market.size
    market = attrs.evolve(market, demand=tuple(shortfall * (i == needy) for i in range(market.size)))
    answer = market.cleared()
    taken = drain_idle_first(market, needy)
    assert dict(zip(answer.donors.tolist(), answer.amounts.tolist(), strict=True)) == taken
    assert int(answer.received[needy]) == sum(taken.values())


# ------------------------------------------------------------- every size, every magnitude, every form


@given(markets(max_agents=40))
def test_it_equals_the_plain_version(market):
    assert_same_as_plain(market, market.cleared())


@given(markets(amounts=wide))
def test_amounts_up_to_the_edge_are_exact(market):
    """Amounts this large are looked up beside the sorted words."""
    assert_same_as_plain(market, market.cleared())
    assert_is_a_lawful_flow(market, market.cleared())


@given(markets(priorities=far_apart))
def test_priorities_up_to_the_edge_are_exact(market):
    assert_same_as_plain(market, market.cleared())


@given(markets(amounts=wide, priorities=far_apart))
def test_amounts_and_priorities_up_to_the_edge_are_exact(market):
    """Priorities this large are replaced by their ranks."""
    assert_same_as_plain(market, market.cleared())
    assert_is_a_lawful_flow(market, market.cleared())


@given(markets(max_agents=30, amounts=st.integers(0, 4)), st.sampled_from([2, 3, 4, 8]))
def test_where_blocks_of_agents_begin_and_end_does_not_matter(market, block):
    with mock.patch.object(clearing, "_BLOCK", block):
        answer = market.cleared()
    assert_equal(answer, market.cleared())


@given(markets(max_agents=30, amounts=wide, priorities=far_apart), st.sampled_from([2, 5]))
def test_nor_does_it_for_large_numbers(market, block):
    with mock.patch.object(clearing, "_BLOCK", block):
        answer = market.cleared()
    assert_equal(answer, market.cleared())


@given(markets(max_agents=20))
def test_whether_agents_are_written_one_by_one_or_all_together_does_not_matter(market):
    answers = []
    for few in (1, 10**6):
        with mock.patch.object(clearing, "_FEW", few):
            answers.append(market.cleared())
    assert_equal(*answers)


FORMS: dict[str, Callable[[tuple[int, ...]], object]] = {
    "list": list,
    "int8": lambda column: np.array(column, dtype=np.int8),
    "uint64": lambda column: np.array(column, dtype=np.uint64),
    "big-endian": lambda column: np.array(column, dtype=">i8"),
    "reversed view": lambda column: np.array(column[::-1], dtype=np.int64)[::-1],
    "every third": lambda column: np.repeat(np.array(column, dtype=np.int64), 3)[::3],
}


@given(markets(), st.tuples(*[st.sampled_from(sorted(FORMS))] * 4))
def test_the_form_of_the_arguments_does_not_matter(market, forms):
    columns = (market.priority, market.remaining, market.min_reserve, market.demand)
    arguments = [FORMS[form](column) for form, column in zip(forms, columns, strict=True)]
    answer = clear(*arguments, confident=list(market.confident))
    assert_equal(answer, market.cleared())


@given(markets())
def test_equal_arguments_give_equal_answers(market):
    assert_equal(market.cleared(), copy.deepcopy(market).cleared())


@given(markets())
def test_the_arguments_are_not_changed(market):
    columns = (market.priority, market.remaining, market.min_reserve, market.demand)
    arrays = [np.array(column, dtype=np.int64) for column in columns]
    confident = np.array(market.confident, dtype=np.bool_)
    for array in (*arrays, confident):
        array.setflags(write=False)
    clear(*arrays, confident=confident)
    assert [tuple(array.tolist()) for array in arrays] == list(columns)
    assert tuple(confident.tolist()) == market.confident


@given(markets())
def test_nobody_confident_is_the_default(market):
    columns = (market.priority, market.remaining, market.min_reserve, market.demand)
    nobody = attrs.evolve(market, confident=(False,) * market.size)
    assert_equal(clear(*map(list, columns)), nobody.cleared())
