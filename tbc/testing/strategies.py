"""Hypothesis strategies: amounts, contracts, trees of agents and markets for the clearing.

Examples
--------
>>> from hypothesis import given
>>> @given(markets())
... def clearing_never_moves_more_than_is_asked(market):
...     import tbc
...     answer = tbc.clear(**market)
...     assert answer.received.sum() <= sum(market["demand"])
>>> clearing_never_moves_more_than_is_asked()
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tbc.contract import MAX_AMOUNT, BudgetContract

__all__ = ["NAMES", "amounts", "contracts", "markets", "thresholds", "trees"]

#: The names that `trees` (and the machine) give to agents.
NAMES = ("ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal")


def amounts(largest: int = 100, *, edges: bool = True) -> st.SearchStrategy[int]:
    """Return mostly amounts from 0 to `largest`; with `edges` sometimes one near the largest of all."""
    usual = st.integers(0, largest)
    if not edges:
        return usual
    edge = st.integers(MAX_AMOUNT - 2, MAX_AMOUNT)
    return st.integers(0, 19).flatmap(lambda chance: edge if chance == 19 else usual)


def thresholds() -> st.SearchStrategy[float | None]:
    """Return confidence thresholds, often none."""
    return st.sampled_from([None, None, 0.5, 0.9])


@st.composite
def contracts(
    draw: st.DrawFn, names: st.SearchStrategy[str] | None = None, largest: int = 100
) -> BudgetContract:
    """Return contracts that can be signed: few distinct priorities, so that ties are common.

    Parameters
    ----------
    names : strategy of str, optional
        Where names come from; default: `NAMES`.
    largest : int, default 100
        The largest usual cap. Some have none, some own nothing, a few own nearly the largest amount of all.
    """
    # Few distinct values, so that priorities, caps and gates often tie.
    kind = draw(st.sampled_from(["round", "round", "round", "any", "any", "none", "nothing"]))
    caps = {
        "round": st.sampled_from([largest // 3, 2 * largest // 3]),
        "any": amounts(largest),
        "none": st.none(),
        "nothing": st.just(0),
    }
    max_tokens = draw(caps[kind])
    owned = max_tokens or 0
    reserve = draw(st.sampled_from([None, 0, 0, min(owned, 5), owned // 2, owned]))
    return BudgetContract(
        draw(st.sampled_from(NAMES) if names is None else names),
        priority=draw(st.sampled_from([1, 1, 2, 2, 3])),
        max_tokens=max_tokens,
        min_reserve=reserve,
        confidence_threshold=draw(thresholds()),
    )


@st.composite
def trees(
    draw: st.DrawFn, least: int = 2, most: int = 6, depth: int = 3, largest: int = 100
) -> list[tuple[BudgetContract, str | None]]:
    """Return agents in an order in which they can be registered, each with its parent's name.

    Parameters
    ----------
    least, most : int
        How many agents (at most ``len(NAMES)``).
    depth : int, default 3
        How many levels below the root.
    largest : int, default 100
        The largest usual cap.
    """
    agents: list[tuple[BudgetContract, str | None]] = []
    level: dict[str | None, int] = {None: 0}
    deep = draw(st.booleans())  # else one market, in which agents often tie
    for name in NAMES[: draw(st.integers(least, most))]:
        parents = [each for each, deep in level.items() if deep < depth]
        parent = draw(st.one_of(st.none(), st.sampled_from(parents))) if deep else None
        level[name] = level[parent] + 1
        agents.append((draw(contracts(st.just(name), largest)), parent))
    return agents


@st.composite
def markets(draw: st.DrawFn, most: int = 8, largest: int = 100, levels: int = 4) -> dict[str, Any]:
    """Return arguments for `tbc.clear`, the first agent being a treasury.

    Parameters
    ----------
    most : int, default 8
        How many agents at most.
    largest : int, default 100
        The largest usual amount.
    levels : int, default 4
        How many distinct priorities beside the treasury's 0 at most.
    """
    size = draw(st.integers(1, most))

    def column(elements: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(elements, min_size=size, max_size=size))

    return {
        "priority": [0, *column(st.integers(1, levels))][:size],
        "remaining": column(amounts(largest)),
        "min_reserve": [0, *column(st.one_of(st.just(0), amounts(largest, edges=False)))][:size],
        "demand": [0, *column(st.one_of(st.just(0), amounts(largest)))][:size],
        "confident": [False, *column(st.booleans())][:size],
    }
