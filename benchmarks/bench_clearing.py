"""Time one clearing beside a plain sort of as many numbers.

Measured: `tbc.clear`, with the validation of its arguments and all of its outputs, in milliseconds (median)
and as a ratio, round by round, to ``np.sort`` of n random int64 and to the line of NumPy that would merely
put the donors in order, ``np.lexsort((-remaining, priority))``. All three take turns in one process.

Not measured: the first call in a process (it also pays for fresh memory), making the arguments, the books
around a clearing (other benchmarks) and peak memory. At n = 10**6 only the workload ``wide`` has amounts that
need the kernel's second way.

Every answer is checked before it is timed; ``checksum`` is a hash of all its arrays: if it changes, so did
the meaning and not only the speed.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import fields, frozen

import tbc
from benchmarks.timing import interleaved, median_ratio

__all__ = ["WORKLOADS", "Workload", "run"]

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
HUGE = 10_000_000
LEVELS = (10, 10_000)


@frozen
class Workload:
    """How a random market looks; a tenth of `remaining` is reserved, a tenth of the agents is confident."""

    #: Share of agents with a demand.
    needy: float
    #: Total demand over total supply, about.
    pressure: float
    #: `remaining` is uniform below this.
    largest: int = 10**6


WORKLOADS: Mapping[str, Workload] = {
    "scarce, 10 % needy": Workload(needy=0.1, pressure=4.0),
    "scarce, 30 % needy": Workload(needy=0.3, pressure=4.0),
    "scarce, 50 % needy": Workload(needy=0.5, pressure=4.0),
    "even, 30 % needy": Workload(needy=0.3, pressure=1.0),
    "even, 50 % needy": Workload(needy=0.5, pressure=1.0),
    "ample, 10 % needy": Workload(needy=0.1, pressure=0.2),
    "ample, 30 % needy": Workload(needy=0.3, pressure=0.2),
    "ample, 50 % needy": Workload(needy=0.5, pressure=0.2),
    "wide, 30 % needy": Workload(needy=0.3, pressure=1.0, largest=10**12),
}


def run(*, smoke: bool, seed: int = 20260101, huge: bool = False) -> dict[str, Any]:
    """Return one row for each size, number of levels and workload, and the worst ratios by kind and size."""
    sizes = SIZES[:2] if smoke else SIZES + ((HUGE,) if huge else ())
    names = list(WORKLOADS)[:: 4 if smoke else 1]
    rows = [_row(n, levels, name, seed, smoke=smoke) for n in sizes for levels in LEVELS for name in names]
    worst: dict[str, dict[str, float]] = {}
    for row in rows:
        kind = worst.setdefault(f"worst ratio to sort, {row['workload'].split(',')[0]}", {})
        kind[str(row["n"])] = max(row["ratio to sort"], kind.get(str(row["n"]), 0.0))
    return {"rows": rows, **worst}


def _row(n: int, levels: int, name: str, seed: int, *, smoke: bool) -> dict[str, Any]:
    rng = np.random.default_rng([seed, n, levels, list(WORKLOADS).index(name)])
    market = _market(rng, n, levels, WORKLOADS[name])
    numbers = rng.integers(-(2**63), 2**63, n)
    priority, remaining = market["priority"], market["remaining"]
    answer = tbc.clear(**market)
    _check(market, answer)
    times = interleaved(
        {
            "clear": lambda: tbc.clear(**market),
            "sort": lambda: np.sort(numbers),
            "lexsort": lambda: np.lexsort((-remaining, priority)),
        },
        calls=1 if smoke else max(1, min(100, 200_000 // n)),
        rounds=1 if smoke else 3 if n == HUGE else 9,
    )
    return {
        "n": n,
        "levels": levels,
        "workload": name,
        "ms": round(statistics.median(times["clear"]) / 1e6, 3),
        "ratio to sort": round(median_ratio(times["clear"], times["sort"]), 2),
        "ratio to lexsort": round(median_ratio(times["clear"], times["lexsort"]), 3),
        "transfers": len(answer.amounts),
        "checksum": _checksum(answer),
    }


def _market(rng: np.random.Generator, n: int, levels: int, workload: Workload) -> dict[str, Any]:
    remaining = rng.integers(0, workload.largest, n)
    needy = rng.random(n) < workload.needy
    needy[0] = True
    supply = int(np.where(needy, 0, remaining - remaining // 10).sum())
    mean = max(1, int(workload.pressure * supply) // int(needy.sum()))
    return {
        "priority": rng.integers(1, levels + 1, n),
        "remaining": remaining,
        "min_reserve": remaining // 10,
        "demand": np.where(needy, rng.integers(1, 2 * mean + 1, n), 0),
        "confident": rng.random(n) < 0.1,
    }


def _check(market: Mapping[str, Any], answer: tbc.Clearing) -> None:
    given, received = np.zeros_like(answer.given), np.zeros_like(answer.received)
    np.add.at(given, answer.donors, answer.amounts)
    np.add.at(received, answer.recipients, answer.amounts)
    supply = np.where(market["demand"] > 0, 0, np.maximum(0, market["remaining"] - market["min_reserve"]))
    assert np.array_equal(given, answer.given)
    assert np.array_equal(received, answer.received)
    assert (given <= supply).all()
    assert (received <= market["demand"]).all()
    assert (market["priority"][answer.donors] <= market["priority"][answer.recipients]).all()


def _checksum(answer: tbc.Clearing) -> str:
    digest = hashlib.sha256(repr(answer.bottleneck).encode())
    for field in fields(tbc.Clearing):
        value = getattr(answer, field.name)
        if field.name != "bottleneck":
            digest.update(np.ascontiguousarray(value, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]
