"""The clearing: all transfers of one round, computed at once.

Given are n agents ``i`` with priority ``p[i]``, what remains to them, a reserve and a demand. An agent
without demand can give ``s[i] = max(0, remaining[i] - min_reserve[i])``; one with demand gives nothing.
Wanted are flows ``x[i, j] >= 0`` in whole tokens with

* ``x[i, j] > 0`` only if ``p[i] <= p[j]``: downhill, never from a more to a less important agent;
* ``given[i] = sum_j x[i, j] <= s[i]`` and ``received[j] = sum_i x[i, j] <= demand[j]``,

such that, in this order,

1. what each level (all agents of one priority) receives is lexicographically maximal from the highest level
   down; no other flow moves more in total;
2. inside the one level that is served in part the split is max-min fair, left-over single tokens to the lower
   index;
3. the lowest levels are drained first; inside a level confident agents first, then most remaining, then the
   lower index, each fully before the next.

This room knows arrays only: no accounts, no names, no clock. Every number is an exact 64-bit integer.

Examples
--------
Two searchers (priority 1) and a planner (3) can give; a critic (2) and the report (3) are short. The report
comes first, the searchers pay first, and only then does the planner:

>>> answer = clear(
...     priority=[1, 1, 2, 3, 3],
...     remaining=[500, 300, 0, 900, 0],
...     min_reserve=[100, 100, 0, 100, 0],
...     demand=[0, 0, 200, 0, 700],
... )
>>> list(zip(answer.donors.tolist(), answer.recipients.tolist(), answer.amounts.tolist()))
[(0, 2, 200), (0, 4, 200), (1, 4, 200), (3, 4, 300)]
>>> answer.unmet.tolist(), answer.bottleneck
([0, 0, 0, 0, 0], None)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from attrs import frozen

from tbc.errors import InvalidAmountError

__all__ = ["Clearing", "clear"]

IntArray = npt.NDArray[np.int64]

_LARGEST_AMOUNT = 2**53 - 1
_LARGEST_PRIORITY = 2**63 - 1
_SIGN = np.int64(-(2**63))
_NONE = np.zeros(0, np.int64)
# why: the arrays of one block fit into the second-level cache, so that many cheap passes read memory once.
_BLOCK = 2**14
# why: above about one agent in 16, a pass over all of them is cheaper than a write here and there.
_FEW = 16


@frozen(eq=False)
class Clearing:
    """All transfers of one round, and what they add up to.

    n agents, named by their index; m transfers; k levels. All arrays are int64, amounts in the unit of the
    arguments of `clear`.
    """

    #: (m,) who gives, one entry per transfer, in the order that `clear` describes.
    donors: IntArray
    #: (m,) who receives. No pair of donor and recipient appears twice.
    recipients: IntArray
    #: (m,) what is moved, >= 1.
    amounts: IntArray
    #: (n,) what each agent gives: at most its supply, 0 if it has a demand.
    given: IntArray
    #: (n,) what each agent receives, at most its demand.
    received: IntArray
    #: (n,) ``demand - received``.
    unmet: IntArray
    #: (k,) the distinct priorities of all n agents, ascending, whether or not they give or ask.
    levels: IntArray
    #: (k,) demand of each level.
    level_demand: IntArray
    #: (k,) what each level receives.
    level_served: IntArray
    #: (k,) ``level_demand - level_served``.
    level_unmet: IntArray
    #: The highest priority at which one more token of supply would raise the total served; ``None`` if
    #: nothing is unmet. A token at any lower priority would raise it too, a token at any higher one not.
    bottleneck: int | None


class _Agents(NamedTuple):
    """The arguments as int64 (and bool) arrays; (n,) each."""

    level: IntArray
    left: IntArray
    reserve: IntArray
    asked: IntArray
    sure: npt.NDArray[np.bool_] | None


class _Queue(NamedTuple):
    """All donors, or all recipients, by priority, then index. A group is the stretch of one level."""

    agents: IntArray  # (q,) indices
    upto: IntArray  # (q,) running total of what they can give, or ask for
    levels: IntArray  # (g,) priority of each group
    stops: IntArray  # (g,) end of each group in the queue
    totals: IntArray  # (g,) running total at the end of each group

    def before(self, group: int) -> tuple[int, int, int]:
        """Return where `group` starts, the running total there, and the level below (-1 if none)."""
        last = group - 1
        return (
            (int(self.stops[last]), int(self.totals[last]), int(self.levels[last])) if group else (0, 0, -1)
        )

    def members(self, group: int) -> tuple[IntArray, IntArray]:
        """Return copies of the indices of `group` and of their amounts."""
        start, before, _ = self.before(group)
        stop = int(self.stops[group])
        return self.agents[start:stop].copy(), _steps(self.upto[start:stop], before)


class _Part(NamedTuple):
    """The part of a queue that moves tokens: whole levels and, next to them, part of one more."""

    agents: IntArray  # (q,) indices in the order of the transfers
    upto: IntArray  # (q,) running total of what they give or receive
    some: IntArray  # (s,) agents of the one level that takes part in part, by index
    amounts: IntArray  # (s,) what they give or receive
    rest: IntArray  # (r,) agents of the queue that take no part
    border: int  # donors up to this priority give all they can, recipients above it get all they ask


def clear(
    priority: npt.ArrayLike,
    remaining: npt.ArrayLike,
    min_reserve: npt.ArrayLike,
    demand: npt.ArrayLike,
    *,
    confident: npt.ArrayLike | None = None,
) -> Clearing:
    """Compute all transfers of one round.

    Equal arguments give equal answers. The arguments are arrays of any integer dtype or sequences of Python
    ints, converted exactly; they are read, never changed, and the answer shares no memory with them.

    Parameters
    ----------
    priority : (n,) integers
        Higher is more important; 0 to 2**63 - 1. n may be 0.
    remaining : (n,) integers
        What each agent may still spend, 0 to 2**53 - 1. Debt is not a negative number here: pass 0, and add
        the debt to the demand.
    min_reserve : (n,) integers
        What each agent never gives away, 0 to 2**53 - 1.
    demand : (n,) integers
        The shortfall each agent asks for, 0 to 2**53 - 1.
    confident : (n,) bool, optional
        Who needs no more and therefore gives first inside its level. Default: nobody.

    Returns
    -------
    Clearing
        Transfers by ascending level of the recipient, then its index. Their donors ascend in level as well;
        those of the partly drained level stand in drain order, the others by index. There are at most
        ``max(0, givers + receivers - 1)`` transfers.

    Raises
    ------
    InvalidAmountError
        If an argument is not 1-d or not as long as `priority`; holds anything but integers (`confident`:
        bools), so float, NaN, bool, text and objects are refused; holds a number out of its range; or if the
        total supply or the total demand is 2**63 or more.

    Notes
    -----
    Let ``C[k]`` be the supply of levels up to k, ``D[k]`` the demand of level k. From the highest level down
    ``slack = min(slack, C[k]); F[k] = min(D[k], slack); slack -= F[k]``, the greedy algorithm of a
    polymatroid. The lowest donors are drained up to ``sum(F)``; drained and served tokens are paired in
    ascending order of priority (north-west corner rule). Ties and rounding: rules 2 and 3 of the module.

    The certificate of `bottleneck` is a second clearing with one more agent of that priority that has one
    token to give: its total is larger by one.

    Time O(n log n): sorts of n words, of the agents of the partly drained and of the partly served level, and
    a few passes. Memory: the answer and some blocks. Where priority, index and amount of an agent do not fit
    into 63 bits together, amounts (then priorities) are looked up instead, at some cost in time and memory.

    References
    ----------
    ``papers/clearing.md``: theorem 1 (levels), theorem 2 (fairness), theorem 3 (draining and transfers),
    theorem 4 (bottleneck), section 7 (cost).

    Examples
    --------
    >>> answer = clear([1, 2, 2], [100, 0, 0], [1, 0, 0], [0, 60, 61])
    >>> answer.received.tolist(), answer.unmet.tolist(), answer.bottleneck
    ([0, 50, 49], [0, 10, 12], 2)
    """
    level = _integers("priority", priority, None, _LARGEST_PRIORITY)
    n = len(level)
    agents = _Agents(
        level,
        _integers("remaining", remaining, n, _LARGEST_AMOUNT),
        _integers("min_reserve", min_reserve, n, _LARGEST_AMOUNT),
        _integers("demand", demand, n, _LARGEST_AMOUNT),
        _flags("confident", confident, n),
    )
    # why: one block of memory, since the first touch of a page costs more than several passes over it. The
    # queues live where `received` and `unmet` will be.
    spare, words, upto, amounts = np.empty((4, n), np.int64)
    donors, recipients = _line_up(agents, spare, words, upto)
    levels, supply_upto, demand_upto = _totals_by_level(donors, recipients)
    served, short, bottleneck = _serve(supply_upto, demand_upto)
    givers = _drain(donors, int(served.sum()), agents)
    receivers = _feed(recipients, levels, served, short)
    transfers = _pair(givers, receivers, amounts)
    given = _given(agents, givers, spare)
    received, unmet = _received(agents, receivers, words, upto)
    asked = _steps(demand_upto, 0)
    wanted_at = None if bottleneck is None else int(levels[bottleneck])
    return Clearing(*transfers, given, received, unmet, levels, asked, served, asked - served, wanted_at)


def _integers(name: str, values: npt.ArrayLike, length: int | None, largest: int) -> IntArray:
    """Return `values` as int64, not copied if they are. The range of signed arrays is checked later."""
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        # why one by one: NumPy would read [1, True] as integers, and turn [2**63] into another dtype.
        for position, value in enumerate(values):
            is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not is_int or not 0 <= value <= largest:
                raise _out_of_range(name, position, value, largest)
        array = np.array(values, dtype=np.int64)
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "iu":
            raise InvalidAmountError(name, values, "an array of integers")
    _check_shape(name, array, length)
    if array.dtype.kind == "u":
        _check_range(name, array, largest)
    return array.astype(np.int64, copy=False)


def _flags(name: str, values: npt.ArrayLike | None, length: int) -> npt.NDArray[np.bool_] | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.dtype != np.bool_ and not (isinstance(values, Sequence) and array.size == 0):
        raise InvalidAmountError(name, values, "an array of bools")
    _check_shape(name, array, length)
    return array.astype(np.bool_, copy=False)


def _check_shape(name: str, array: npt.NDArray[np.generic], length: int | None) -> None:
    if array.ndim != 1 or length not in (None, len(array)):
        wanted = "(n,)" if length is None else f"({length},), like priority"
        raise InvalidAmountError(name, array.shape, f"an array of shape {wanted}")


def _check_range(name: str, numbers: npt.NDArray[np.integer], largest: int) -> None:
    wrong = np.flatnonzero((numbers < 0) | (numbers > largest))
    if len(wrong):
        raise _out_of_range(name, int(wrong[0]), int(numbers[wrong[0]]), largest)


def _out_of_range(name: str, position: int, value: object, largest: int) -> InvalidAmountError:
    rule = f"an int from 0 to 2**{largest.bit_length()} - 1"
    return InvalidAmountError(f"{name}[{position}]", value, rule)


def _blocks(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _steps(upto: IntArray, before: int) -> IntArray:
    """Return the amounts whose running totals, from `before` on, are `upto`."""
    amounts = upto.copy()
    amounts[1:] -= upto[:-1]
    amounts[:1] -= before
    return amounts


def _line_up(agents: _Agents, spare: IntArray, words: IntArray, upto: IntArray) -> tuple[_Queue, _Queue]:
    """Fill `spare` with each agent's supply and return the queues of donors and of recipients.

    Each agent becomes one word ``sign | level | index | amount``, negative for a recipient, and one sort of
    the words yields both queues, which live in `words` and `upto`. Who has nothing to give is a donor of 0.
    """
    index_bits = max(len(words) - 1, 0).bit_length()
    # Read as unsigned, a negative number is beyond every priority, and below beyond every amount.
    highest = int(agents.level.view(np.uint64).max(initial=0))
    if highest > _LARGEST_PRIORITY:
        _check_range("priority", agents.level, _LARGEST_PRIORITY)
    level_bits = highest.bit_length()
    amount_bits = 63 - level_bits - index_bits
    priorities, amounts = None, None
    if _pack(agents, spare, words, index_bits, max(amount_bits, 0)) > amount_bits:
        amount_bits, amounts = 0, _amounts_apart(spare, agents.asked)
        if level_bits + index_bits > 63:
            priorities, ranks = np.unique(agents.level, return_inverse=True)
            agents = agents._replace(level=ranks)
        _pack(agents, spare, words, index_bits, 0)
    words.sort()
    first = int(np.searchsorted(words, 0))
    recipients = _unpack(words[:first], upto[:first], index_bits, amount_bits, amounts)
    donors = _unpack(words[first:], upto[first:], index_bits, amount_bits, amounts)
    if priorities is not None:
        donors = donors._replace(levels=priorities[donors.levels])
        recipients = recipients._replace(levels=priorities[recipients.levels])
    return donors, recipients


def _pack(agents: _Agents, spare: IntArray, words: IntArray, index_bits: int, amount_bits: int) -> int:
    """Check the amounts, fill `spare` and `words`, and return the bits of the largest amount.

    The words are right only if no amount has more than `amount_bits`; with 0 of them they carry no amounts.
    """
    largest = 0
    ramp = np.arange(min(_BLOCK, len(words))) << amount_bits
    for block in _blocks(len(words), _BLOCK):
        left, reserve, asked = agents.left[block], agents.reserve[block], agents.asked[block]
        supply, word = spare[block], words[block]
        for numbers in (left, reserve, asked):
            largest = max(largest, int(numbers.view(np.uint64).max()))
        if largest > _LARGEST_AMOUNT:
            for name, column in zip(("remaining", "min_reserve", "demand"), agents[1:4], strict=True):
                _check_range(name, column, _LARGEST_AMOUNT)
        # So is -demand, unless it is 0: added to the reserve, it leaves nothing to give.
        kept = np.negative(asked)
        kept |= reserve
        np.maximum(left.view(np.uint64), kept.view(np.uint64), out=supply.view(np.uint64))
        supply -= kept
        np.left_shift(agents.level[block], index_bits + amount_bits, out=word)
        word += ramp[: len(word)]
        word += block.start << amount_bits
        if amount_bits:
            word += supply
            word += asked
        kept &= _SIGN
        word |= kept
    return largest.bit_length()


def _amounts_apart(spare: IntArray, asked: IntArray) -> IntArray:
    """Return what each agent gives or asks for, once it is known that no running total wraps.

    Amounts inside the words need no such check: n times the largest of them is below 2**63.
    """
    for name, amounts in (("total supply", spare), ("total demand", asked)):
        # why in steps: 2**10 amounts below 2**53 cannot wrap, and Python adds the steps exactly.
        total = sum(np.add.reduceat(amounts, np.arange(0, len(amounts), 2**10)).tolist())
        if total >= 2**63:
            raise InvalidAmountError(name, total, "below 2**63")
    return spare + asked


def _unpack(
    words: IntArray, upto: IntArray, index_bits: int, amount_bits: int, amounts: IntArray | None
) -> _Queue:
    """Turn sorted `words` into a queue: they become its agents, and `upto` is filled."""
    shift, total = index_bits + amount_bits, 0
    levels, stops = [], []
    last = words[-1:] >> shift
    for block in _blocks(len(words), _BLOCK):
        word, running = words[block], upto[block]
        here = words[block.start : block.stop + 1]
        if here[0] >> shift != here[-1] >> shift:
            level = here >> shift
            ends = np.flatnonzero(level[1:] != level[:-1])
            levels.append(level[ends])
            stops.append(ends + (block.start + 1))
        if amounts is None:
            np.bitwise_and(word, (1 << amount_bits) - 1, out=running)
        word >>= amount_bits
        word &= (1 << index_bits) - 1
        if amounts is not None:
            np.take(amounts, word, out=running, mode="clip")
        running[0] += total
        np.cumsum(running, out=running)
        total = int(running[-1])
    stop = np.concatenate((*stops, np.full(len(last), len(words))))
    level = np.concatenate((*levels, last)) & ((1 << (63 - shift)) - 1)
    return _Queue(words, upto, level, stop, upto[stop - 1])


def _totals_by_level(donors: _Queue, recipients: _Queue) -> tuple[IntArray, IntArray, IntArray]:
    """Return the k distinct levels, and the supply and the demand of all levels up to each."""
    levels, place = _distinct(np.concatenate((donors.levels, recipients.levels)))
    upto = np.zeros((2, len(levels)), np.int64)
    upto[0, place[: len(donors.levels)]] = donors.totals
    upto[1, place[len(donors.levels) :]] = recipients.totals
    supply_upto, demand_upto = np.maximum.accumulate(upto, axis=1)
    return levels, supply_upto, demand_upto


def _distinct(levels: IntArray) -> tuple[IntArray, IntArray]:
    """Return the distinct `levels`, ascending, and the place of each level among them."""
    top = int(levels.max(initial=0))
    if top > 4 * len(levels):
        return np.unique(levels, return_inverse=True)
    seen = np.zeros(top + 1, np.bool_)
    seen[levels] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[levels]


def _serve(supply_upto: IntArray, demand_upto: IntArray) -> tuple[IntArray, int | None, int | None]:
    """Return what each level receives, the level served in part and the bottleneck (indices or ``None``).

    The greedy algorithm without its loop: what level k can get, once all above it are full, is the least of
    ``supply_upto[l] - (demand of k+1 .. l)`` over l >= k. No sum below leaves the range of int64.
    """
    gap = supply_upto - demand_upto
    room = np.minimum.accumulate(gap[::-1])[::-1] + demand_upto
    served = _steps(demand_upto, 0)
    lacking = np.flatnonzero(room < served)
    if not len(lacking):
        return served, None, None
    short = int(lacking[-1])
    served[:short] = 0
    served[short] = room[short]
    return served, short, int(np.argmin(gap))


def _drain(donors: _Queue, total: int, agents: _Agents) -> _Part:
    """Take `total` from the front of the queue. Reorders the queue inside the partly drained group."""
    group = int(np.searchsorted(donors.totals, total, side="right"))
    start, before, border = donors.before(group)
    if before == total:
        return _Part(donors.agents[:start], donors.upto[:start], _NONE, _NONE, donors.agents[start:], border)
    members, supply = donors.members(group)
    order = _most_idle_first(members, agents)
    upto = np.cumsum(supply[order]) + before
    count = int(np.searchsorted(upto, total)) + 1
    order, upto, stop = order[:count], upto[:count], start + count
    upto[-1] = total
    donors.agents[start:stop] = members[order]
    donors.upto[start:stop] = upto
    amounts = np.zeros(len(members), np.int64)
    amounts[order] = _steps(upto, before)
    rest = donors.agents[start + len(members) :]
    return _Part(donors.agents[:stop], donors.upto[:stop], members, amounts, rest, border)


def _most_idle_first(members: IntArray, agents: _Agents) -> IntArray:
    """Return the drain order of `members`: confident, then most remaining, then as they stand."""
    left = agents.left[members]
    most = int(left.max())
    rank = most - left
    if agents.sure is not None:
        rank += (most + 1) * ~agents.sure[members]
    place_bits = len(members).bit_length()
    if int(rank.max()).bit_length() + place_bits > 63:
        return rank.argsort(kind="stable")
    # why: a plain sort of (rank, place) in one word is many times faster than a stable argsort.
    rank <<= place_bits
    rank |= np.arange(len(rank))
    rank.sort()
    rank &= (1 << place_bits) - 1
    return rank


def _feed(recipients: _Queue, levels: IntArray, served: IntArray, short: int | None) -> _Part:
    """Keep the back of the queue that is served. Changes the queue from the partly served group on."""
    if short is None:
        return _Part(recipients.agents, recipients.upto, _NONE, _NONE, _NONE, -1)
    border, tokens = int(levels[short]), int(served[short])
    group = int(np.searchsorted(recipients.levels, border))
    start, stop = recipients.before(group)[0], int(recipients.stops[group])
    members, asked = recipients.members(group)
    amounts = _split_fairly(asked, tokens)
    recipients.upto[start:stop] = np.cumsum(amounts)
    recipients.upto[stop:] -= recipients.totals[group] - tokens
    rest = recipients.agents[:start]
    return _Part(recipients.agents[start:], recipients.upto[start:], members, amounts, rest, border)


def _split_fairly(asked: IntArray, tokens: int) -> IntArray:
    """Split `tokens`, fewer than `asked` in total: max-min fair, left-over tokens to the front.

    Everybody gets ``min(asked, water)`` at the highest whole level of water that the tokens reach.
    """
    rising = np.sort(asked)
    below = np.cumsum(rising) - rising
    to_fill = below + rising * np.arange(len(rising), 0, -1)
    place = int(np.searchsorted(to_fill, tokens, side="right"))
    water, left_over = divmod(tokens - int(below[place]), len(rising) - place)
    amounts = np.minimum(asked, water)
    amounts[np.flatnonzero(asked > water)[:left_over]] += 1
    return amounts


def _pair(givers: _Part, receivers: _Part, amounts: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Pair given and received tokens in the order of both queues: the north-west corner rule."""
    swap = len(givers.agents) < len(receivers.agents)
    long, short = (receivers, givers) if swap else (givers, receivers)
    table = np.empty((2, len(long.agents) + len(short.agents)), np.int64)
    m = _merge(long, short, table[0], table[1], amounts) if len(short.agents) else 0
    donors, recipients = table[::-1, :m] if swap else table[:, :m]
    return donors, recipients, amounts[:m]


def _merge(long: _Part, short: _Part, longs: IntArray, shorts: IntArray, amounts: IntArray) -> int:
    """Fill the three columns of the transfers and return their number.

    Laid out one behind the other, the tokens of a queue are cut at the end of each agent's stretch. The cuts
    of both queues together cut the transfers: the t-th cut ends the transfer of the i-th agent of the long
    and the j-th of the short queue, where i + j = t are the numbers of cuts of either queue before it.
    """
    block_size = _BLOCK * len(long.upto) // (len(long.upto) + len(short.upto))
    blocks = list(_blocks(len(long.upto), block_size))
    stops = np.searchsorted(short.upto, long.upto[[block.stop - 1 for block in blocks]])
    ramp = np.arange(2 * block_size + int(_steps(stops, 0).max()))
    m = start = reached = 0
    for block, stop in zip(blocks, stops.tolist(), strict=True):
        cuts = np.concatenate((long.upto[block], short.upto[start:stop]))
        width, size = block.stop - block.start, len(cuts)
        order = cuts.argsort(kind="stable")
        cuts = cuts.take(order)
        # A cut of the long queue stands at place i of `order`, one of the short queue at place width + j.
        i = ramp[width : width + size] - order
        np.minimum(i, order, out=i)
        j = np.subtract(ramp[:size], i, out=order)
        moved = amounts[m : m + size]
        moved[0] = cuts[0] - reached
        np.subtract(cuts[1:], cuts[:-1], out=moved[1:])
        if not moved.min():
            real = np.flatnonzero(moved)
            i, j, size = i[real], j[real], len(real)
            amounts[m : m + size] = moved[real]
        out = slice(m, m + size)
        np.take(long.agents[block], i, out=longs[out], mode="clip")
        np.take(short.agents[start : stop + 1], j, out=shorts[out], mode="clip")
        m, start, reached = out.stop, stop, int(cuts[-1])
    return m


def _given(agents: _Agents, givers: _Part, spare: IntArray) -> IntArray:
    """Turn `spare`, what each agent can give, into what it gives."""
    if len(givers.rest) < len(spare) // _FEW:
        spare[givers.rest] = 0
    else:
        for block in _blocks(len(spare), _BLOCK):
            spare[block] *= agents.level[block] <= givers.border
    spare[givers.some] = givers.amounts
    return spare


def _received(
    agents: _Agents, receivers: _Part, received: IntArray, unmet: IntArray
) -> tuple[IntArray, IntArray]:
    """Fill `received` and `unmet`."""
    asked, some = agents.asked, receivers.some
    if len(receivers.rest) < len(asked) // _FEW:
        rest = receivers.rest.copy()  # why: it may live in `received`
        received[:], unmet[:] = asked, 0
        received[rest], unmet[rest] = 0, asked[rest]
    else:
        for block in _blocks(len(asked), _BLOCK):
            np.multiply(asked[block], agents.level[block] > receivers.border, out=received[block])
            np.subtract(asked[block], received[block], out=unmet[block])
    received[some], unmet[some] = receivers.amounts, asked[some] - receivers.amounts
    return received, unmet
