"""What a clearing must be, said in other words than the kernel's: flows, programs, enumeration, plain Python.

Every ``assert_...`` raises AssertionError when the answer is wrong and returns nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from attrs import evolve, frozen
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from tbc.clearing import Clearing, clear

LARGEST = 2**53 - 1


@frozen(slots=False)
class Market:
    """The arguments of one clearing, as tuples of Python ints."""

    priority: tuple[int, ...]
    remaining: tuple[int, ...]
    min_reserve: tuple[int, ...]
    demand: tuple[int, ...]
    confident: tuple[bool, ...]

    @property
    def size(self) -> int:
        return len(self.priority)

    @cached_property
    def supply(self) -> list[int]:
        columns = zip(self.remaining, self.min_reserve, self.demand, strict=True)
        return [0 if demand else max(0, left - reserve) for left, reserve, demand in columns]

    @cached_property
    def levels(self) -> list[int]:
        return sorted(set(self.priority))

    @cached_property
    def drain_order(self) -> list[int]:
        """All agents in the order in which they would be drained."""
        key = [(p, not c, -r) for p, c, r in zip(self.priority, self.confident, self.remaining, strict=True)]
        return sorted(range(self.size), key=key.__getitem__)

    def cleared(self) -> Clearing:
        """Return the answer of the kernel, with the arguments as arrays."""
        columns = (self.priority, self.remaining, self.min_reserve, self.demand)
        arrays = [np.array(column, dtype=np.int64) for column in columns]
        return clear(*arrays, confident=np.array(self.confident, dtype=np.bool_))

    def reordered(self, order: Sequence[int]) -> Market:
        """Return the market whose agent k is agent ``order[k]`` of this one."""
        columns = (self.priority, self.remaining, self.min_reserve, self.demand, self.confident)
        return Market(*(tuple(column[i] for i in order) for column in columns))

    def joined_by(self, priority: int, tokens: int) -> Market:
        """Return the market with one more agent, the last one, that has `tokens` to give."""
        return Market(
            (*self.priority, priority),
            (*self.remaining, tokens),
            (*self.min_reserve, 0),
            (*self.demand, 0),
            (*self.confident, False),
        )


@st.composite
def markets(
    draw: st.DrawFn,
    *,
    max_agents: int = 9,
    amounts: st.SearchStrategy[int] | None = None,
    priorities: st.SearchStrategy[int] | None = None,
) -> Market:
    """Draw a market; small numbers by default, so that ties and exact fits are common."""
    amounts = amounts if amounts is not None else st.integers(0, 12)
    priorities = priorities if priorities is not None else st.integers(0, 4)
    demands = st.one_of(st.just(0), amounts)
    agents = draw(
        st.lists(
            st.tuples(priorities, amounts, st.one_of(st.just(0), amounts), demands, st.booleans()),
            max_size=max_agents,
        )
    )
    return Market(*zip(*agents, strict=True)) if agents else Market((), (), (), (), ())


def random_market(rng: np.random.Generator, n: int, *, levels: int, largest: int, needy: float) -> Market:
    """Return a random market of n agents."""
    remaining = rng.integers(0, largest + 1, n)
    columns = (
        rng.integers(0, levels, n),
        remaining,
        np.where(rng.random(n) < 0.5, 0, rng.integers(0, largest + 1, n) // 2),
        np.where(rng.random(n) < needy, rng.integers(0, largest + 1, n), 0),
        rng.random(n) < 0.2,
    )
    return Market(*(tuple(column.tolist()) for column in columns))


# ------------------------------------------------------------------------------- what any answer must keep


def assert_is_a_lawful_flow(market: Market, answer: Clearing) -> None:
    """Check shapes, bounds, direction, conservation, the number of the transfers and their order."""
    n, flows = market.size, _flows(answer)
    for name in ("donors", "recipients", "amounts", "given", "received", "unmet", "levels"):
        assert getattr(answer, name).dtype == np.int64, name
    given, received = [0] * n, [0] * n
    for donor, recipient, amount in flows:
        assert amount >= 1, "an empty transfer"
        assert market.priority[donor] <= market.priority[recipient], "uphill"
        given[donor] += amount
        received[recipient] += amount
    assert answer.given.tolist() == given
    assert answer.received.tolist() == received
    for i in range(n):
        assert given[i] <= market.supply[i], "more than its supply"
        assert received[i] <= market.demand[i], "more than its demand"
        assert not (market.demand[i] and given[i]), "a needy agent gives"
    assert answer.unmet.tolist() == [d - r for d, r in zip(market.demand, received, strict=True)]
    assert len(flows) <= max(0, sum(map(bool, given)) + sum(map(bool, received)) - 1), "too many transfers"
    assert len(flows) == len({flow[:2] for flow in flows}), "a pair twice"
    _assert_levels_add_up(market, answer)
    _assert_order(market, answer)


def _flows(answer: Clearing) -> list[tuple[int, int, int]]:
    columns = (answer.donors, answer.recipients, answer.amounts)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _assert_levels_add_up(market: Market, answer: Clearing) -> None:
    assert answer.levels.tolist() == market.levels
    for name, amounts in (("demand", list(market.demand)), ("served", answer.received.tolist())):
        sums = [
            sum(a for a, p in zip(amounts, market.priority, strict=True) if p == k) for k in market.levels
        ]
        assert getattr(answer, f"level_{name}").tolist() == sums, name
    assert (answer.level_unmet == answer.level_demand - answer.level_served).all()


def _assert_order(market: Market, answer: Clearing) -> None:
    """Recipients by level, then index; donors by level, then drain order where partly drained, else index."""
    partly = {
        market.priority[i]
        for i in range(market.size)
        if answer.given[i] != market.supply[i] and market.supply[i]
    }
    place = {agent: k for k, agent in enumerate(market.drain_order)}
    by_donor = [
        (market.priority[d], place[d] if market.priority[d] in partly else d) for d in answer.donors.tolist()
    ]
    by_recipient = [(market.priority[r], r) for r in answer.recipients.tolist()]
    assert by_donor == sorted(by_donor), "donors out of order"
    assert by_recipient == sorted(by_recipient), "recipients out of order"


def assert_drained_in_order(market: Market, answer: Clearing) -> None:
    """Check that each donor is drained fully before the next one in drain order gives anything."""
    donors = [i for i in market.drain_order if market.supply[i]]
    for earlier, later in itertools.pairwise(donors):
        if answer.given[later]:
            assert answer.given[earlier] == market.supply[earlier], "not fully before the next"


def assert_split_is_fair(market: Market, answer: Clearing) -> None:
    """Check that inside a level no token could move to a poorer agent, or to an earlier one that is equal."""
    got = answer.received.tolist()
    for k in market.levels:
        members = [i for i in range(market.size) if market.priority[i] == k and market.demand[i]]
        for fed, short in itertools.permutations(members, 2):
            if got[fed] and got[short] < market.demand[short]:
                assert got[fed] <= got[short] + 1, "a token should move"
                assert fed < short or got[fed] <= got[short], "the left-over token belongs to the lower index"


def assert_bottleneck_is_certified(market: Market, answer: Clearing) -> None:
    """Check by second clearings that one more token raises the total up to the bottleneck, not above it."""
    total = int(answer.level_served.sum())
    if answer.bottleneck is None:
        assert not answer.unmet.any(), "unmet without a bottleneck"
        return
    assert answer.unmet.any(), "a bottleneck although nothing is unmet"
    assert answer.bottleneck in market.levels
    candidates = {k + step for k in market.levels for step in (-1, 0, 1)}
    for priority in sorted(k for k in candidates if k >= 0):
        gain = int(market.joined_by(priority, 1).cleared().level_served.sum()) - total
        assert gain == (priority <= answer.bottleneck), f"a token at {priority} gains {gain}"


# -------------------------------------------------------------------------------------------- the oracles


def assert_optimal_by_linear_programs(market: Market, answer: Clearing) -> None:
    """Check served and drained amounts of every level by a chain of linear programs (HiGHS).

    First what each level receives is maximised, from the highest down, each optimum kept for the next
    program; then what each level gives, from the lowest up. The matrix is that of a transport problem, so
    the optima are integers.
    """
    pairs = _allowed_pairs(market)
    if not pairs:
        assert not answer.level_served.any()
        return
    caps = [[float(donor == i) for donor, _ in pairs] for i in range(market.size)]
    caps += [[float(recipient == j) for _, recipient in pairs] for j in range(market.size)]
    bounds = [*market.supply, *market.demand]
    kept: list[list[float]] = []
    optima: list[float] = []

    def maximise(row: list[float]) -> int:
        program = linprog(
            [-x for x in row],
            A_ub=caps,
            b_ub=bounds,
            A_eq=kept or None,
            b_eq=optima or None,
            method="highs",
        )
        assert program.status == 0, program.message
        optimum = round(-program.fun)
        assert abs(optimum + program.fun) < 1e-6
        kept.append(row)
        optima.append(optimum)
        return optimum

    best = linprog([-1.0] * len(pairs), A_ub=caps, b_ub=bounds, method="highs")
    assert int(answer.level_served.sum()) == round(-best.fun), "not the largest total"
    served = [maximise([float(market.priority[r] == k) for _, r in pairs]) for k in reversed(market.levels)]
    assert answer.level_served.tolist() == served[::-1], "not lexicographically maximal"
    drained = [maximise([float(market.priority[d] == k) for d, _ in pairs]) for k in market.levels]
    given = [
        sum(g for g, p in zip(answer.given.tolist(), market.priority, strict=True) if p == k)
        for k in market.levels
    ]
    assert given == drained, "the lowest levels are not drained first"


def assert_total_is_the_maximum_flow(market: Market, answer: Clearing) -> None:
    """Check the total by a maximum flow from the donors to the recipients (amounts must fit into int32)."""
    n = market.size
    source, sink = 2 * n, 2 * n + 1
    supply, demand = np.array(market.supply), np.array(market.demand)
    edges = [(source, i, supply[i]) for i in range(n) if supply[i]]
    edges += [(n + j, sink, demand[j]) for j in range(n) if demand[j]]
    edges += [(d, n + r, min(supply[d], demand[r])) for d, r in _allowed_pairs(market)]
    if not edges:
        assert not answer.received.any()
        return
    rows, columns, caps = (np.array(column, dtype=np.int32) for column in zip(*edges, strict=True))
    network = csr_array((caps, (rows, columns)), shape=(2 * n + 2, 2 * n + 2))
    network.indices, network.indptr = network.indices.astype(np.int32), network.indptr.astype(np.int32)
    assert int(answer.received.sum()) == int(maximum_flow(network, source, sink).flow_value)


def assert_best_by_enumeration(market: Market, answer: Clearing) -> None:
    """Check given and received by listing every flow of a tiny market and ranking them by the rules."""
    best = max(_all_flows(market), key=lambda flow: _rank(market, *flow))
    assert (answer.given.tolist(), answer.received.tolist()) == tuple(map(list, best))


def _all_flows(market: Market) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield what every agent gives and receives, for each flow."""
    pairs, supply = _allowed_pairs(market), market.supply
    limits = [min(supply[donor], market.demand[recipient]) for donor, recipient in pairs]
    seen = set()
    for amounts in itertools.product(*(range(limit + 1) for limit in limits)):
        given, received = [0] * market.size, [0] * market.size
        for (donor, recipient), amount in zip(pairs, amounts, strict=True):
            given[donor] += amount
            received[recipient] += amount
        fits = all(g <= s for g, s in zip(given, supply, strict=True))
        if fits and all(r <= d for r, d in zip(received, market.demand, strict=True)):
            seen.add((tuple(given), tuple(received)))
    yield from seen


def _rank(market: Market, given: Sequence[int], received: Sequence[int]) -> tuple[object, ...]:
    """Return what the rules compare, the most important first."""
    shares = [
        [received[i] for i in range(market.size) if market.priority[i] == k] for k in reversed(market.levels)
    ]
    return (
        [sum(level) for level in shares],
        [_poorest_first(market, k, received) for k in reversed(market.levels)],
        shares,
        [given[i] for i in market.drain_order],
    )


def _poorest_first(market: Market, level: int, received: Sequence[int]) -> list[int]:
    return sorted(received[i] for i in range(market.size) if market.priority[i] == level and market.demand[i])


def _allowed_pairs(market: Market) -> list[tuple[int, int]]:
    return [
        (donor, recipient)
        for donor in range(market.size)
        for recipient in range(market.size)
        if market.supply[donor] and market.demand[recipient]
        if market.priority[donor] <= market.priority[recipient]
    ]


# ------------------------------------------------------------------------------ the same in plain Python


def assert_same_as_plain(market: Market, answer: Clearing) -> None:
    """Check everything against a slow, plain version in Python ints, transfer by transfer."""
    given, received, flows = plain_clear(market)
    assert answer.given.tolist() == given
    assert answer.received.tolist() == received
    assert _flows(answer) == flows


def plain_clear(market: Market) -> tuple[list[int], list[int], list[tuple[int, int, int]]]:
    """Return given, received and the transfers."""
    received = [0] * market.size
    members: dict[int, list[int]] = {level: [] for level in market.levels}
    for i, level in enumerate(market.priority):
        members[level].append(i)
    slack = reachable = sum(market.supply)
    for level in reversed(market.levels):
        slack = min(slack, reachable)
        demands = {i: market.demand[i] for i in members[level] if market.demand[i]}
        for i, tokens in plain_split(demands, slack).items():
            received[i] = tokens
            slack -= tokens
        reachable -= sum(market.supply[i] for i in members[level])
    given, left = [0] * market.size, sum(received)
    for i in market.drain_order:
        given[i] = min(left, market.supply[i])
        left -= given[i]
    partly = {p for p, g, s in zip(market.priority, given, market.supply, strict=True) if 0 < s != g}
    place = {agent: k for k, agent in enumerate(market.drain_order)}
    by_level = {i: (p, place[i] if p in partly else i) for i, p in enumerate(market.priority)}
    donors = [[i, given[i]] for i in sorted(range(market.size), key=by_level.__getitem__) if given[i]][::-1]
    flows = []
    for recipient in sorted(
        (i for i in range(market.size) if received[i]), key=lambda i: (market.priority[i], i)
    ):
        wanted = received[recipient]
        while wanted:
            tokens = min(wanted, donors[-1][1])
            flows.append((donors[-1][0], recipient, tokens))
            donors[-1][1] -= tokens
            wanted -= tokens
            if not donors[-1][1]:
                donors.pop()
    return given, received, flows


def plain_split(demands: dict[int, int], tokens: int) -> dict[int, int]:
    """Feed the smallest demands while all others could have as much; the rest share, lower index first."""
    got: dict[int, int] = {}
    waiting = sorted(demands, key=lambda i: -demands[i])
    while waiting and demands[waiting[-1]] * len(waiting) <= tokens:
        fed = waiting.pop()
        got[fed] = demands[fed]
        tokens -= demands[fed]
    for place, i in enumerate(sorted(waiting)):
        got[i] = tokens // len(waiting) + (place < tokens % len(waiting))
    return got


def with_entry(answer: Clearing, name: str, position: int, change: int) -> Clearing:
    """Return the answer with one number of one array changed: something for the oracles to object to."""
    array = getattr(answer, name).copy()
    array[position] += change
    return evolve(answer, **{name: array})
