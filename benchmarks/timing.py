"""Timing rivals side by side: every round times each of them once, so that noise hits all alike."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any

__all__ = ["interleaved", "judged", "median_ratio", "per_second"]


def interleaved(
    rivals: Mapping[str, Callable[[], object]],
    *,
    calls: int,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], int] = perf_counter_ns,
) -> dict[str, list[float]]:
    """Return nanoseconds per call for each rival, a figure a round; garbage is collected in between."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(-warmup, rounds):
        for name, call in rivals.items():
            gc.collect()
            begin = clock()
            for _ in range(calls):
                call()
            elapsed = (clock() - begin) / calls
            if turn >= 0:
                times[name].append(elapsed)
    return times


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def judged(value: float, bar: str) -> dict[str, Any]:
    """Return what is promised, such as ``">= 0.5"`` or ``"<= 3"``, and whether `value` keeps it."""
    sign, number = bar.split()
    met = value >= float(number) if sign == ">=" else value <= float(number)
    return {"bar": bar, "met": met}


def per_second(times: list[float]) -> int:
    """Return the median rate of nanoseconds per call."""
    return round(1e9 / statistics.median(times))
