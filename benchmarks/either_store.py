"""What is measured on either store in the same way: a hold that borrows, and leases."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import tbc
from benchmarks.crew import agent_names, fill
from benchmarks.timing import interleaved, judged, median_ratio, per_second
from tbc.stores import Store

__all__ = ["leases", "reallocating_hold", "version"]

_AGENT = agent_names(1)[0]
_SLICE = 100  # calls


def reallocating_hold(
    store: Store, smoke: bool, beside: Callable[[], object] = lambda: None
) -> tuple[int, float, float]:
    """Return how many agents there are, and the median microseconds of two holds.

    One fits, the other borrows. `beside` is called in every turn.
    """
    agents, turns = (100, 10) if smoke else (10_000, 500)
    fill(store, "donor", agents - 2, donor=True)
    times: dict[str, list[int]] = {"donor": [], "short": []}
    with tbc.BudgetManager(store=store, pool="donor") as manager:
        for turn in range(-5, turns):
            beside()
            for name, taken in times.items():
                begin = perf_counter_ns()
                held = manager.hold(name, 100)
                if turn >= 0:
                    taken.append(perf_counter_ns() - begin)
                held.void()
    return agents, statistics.median(times["donor"]) / 1000, statistics.median(times["short"]) / 1000


def leases(store: Store, name: str, smoke: bool, bar: str | None) -> dict[str, Any]:
    """Return a row: pairs from slices of 100 calls, beside pairs in the store."""
    question = f"{name}, hold + settle from leased slices of {_SLICE} calls, beside pairs in the store"
    rounds, calls = (2, 20) if smoke else (11, 200)
    fill(store, "direct", 1)
    fill(store, "leased", 1)
    # Slices are shares of what is left, which is so much that it hardly changes.
    share = (_SLICE + 0.5) * 100 / 10**15
    how: Any = {"lease": tbc.Lease(share=share)}
    try:
        leased = tbc.BudgetManager(store=store, pool="leased", **how)
    except TypeError as missing:
        return {"question": question, "not measured": f"no leases over a store yet: {missing}"}
    with leased, tbc.BudgetManager(store=store, pool="direct") as direct:
        before = version(store, "leased")

        def many() -> None:  # whole slices
            for _ in range(_SLICE):
                leased.hold(_AGENT, 100).settle(100)

        times = interleaved(
            {"direct": lambda: direct.hold(_AGENT, 100).settle(100), "leased": many},
            calls=calls,
            rounds=rounds,
        )
        written = version(store, "leased") - before
    each = [ns / _SLICE for ns in times["leased"]]
    ratio = median_ratio(times["direct"], each)
    return {
        "question": question,
        "direct pairs/s": per_second(times["direct"]),
        "leased pairs/s": per_second(each),
        "pairs a transaction": round(calls * (rounds + 1) * _SLICE / max(1, written), 1),
        "leased / direct": round(ratio, 1),
        **({} if bar is None else judged(ratio, bar)),
    }


def version(store: Store, pool: str) -> int:
    """Return how many transactions have written to the pool."""
    return next(row.version for row in store.pools() if row.pool == pool)
