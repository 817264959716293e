"""Timing rivals side by side: every round times each of them once, so that noise hits all alike."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from time import perf_counter_ns

__all__ = ["interleaved", "median_ratio"]


def interleaved(
    rivals: Mapping[str, Callable[[], object]], *, calls: int, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Return nanoseconds per call for each rival, a figure a round; garbage is collected in between."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(-warmup, rounds):
        for name, call in rivals.items():
            gc.collect()
            begin = perf_counter_ns()
            for _ in range(calls):
                call()
            elapsed = (perf_counter_ns() - begin) / calls
            if turn >= 0:
                times[name].append(elapsed)
    return times


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
