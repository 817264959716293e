"""How long a tier takes: learned from the calls that were observed, or the configured prior.

Examples
--------
>>> history = LatencyHistory(enough=3)
>>> history.expected_ms("cheap", prior_ms=80)
80
>>> for latency_ms in (300, 250, 410):
...     history.observe("cheap", latency_ms)
>>> history.expected_ms("cheap", prior_ms=80)
410
"""

from __future__ import annotations

import math
import threading
from collections import deque
from fractions import Fraction
from typing import Final

from tbc.contract import check_amount, check_fraction
from tbc.errors import InvalidAmountError

__all__ = ["LatencyHistory"]

_LONGEST_MS: Final = 10**12


class LatencyHistory:
    """The latencies of the last calls of each tier. Threads may share it.

    Parameters
    ----------
    quantile : float, default 0.9
        What is expected: the least latency that so large a part of the calls did not exceed (the nearest
        rank: of ten calls at 0.9, the second slowest). Above 0, at most 1.
    window : int, default 200
        How many calls of each tier are remembered, the last ones.
    enough : int, default 20
        Until so many calls were observed, the prior is expected. At most `window`.
    """

    __slots__ = ("_enough", "_lock", "_quantile", "_seen", "_window")

    def __init__(self, quantile: float = 0.9, window: int = 200, enough: int = 20) -> None:
        if check_fraction("quantile", quantile) == 0:
            raise InvalidAmountError("quantile", quantile, "above 0 and at most 1")
        self._quantile = Fraction(repr(float(quantile)))
        self._window = check_amount("window", window, least=1)
        self._enough = check_amount("enough", enough, least=1)
        if enough > window:
            raise InvalidAmountError("enough", enough, f"at most the window of {window} calls")
        self._seen: dict[str, deque[int]] = {}
        self._lock = threading.Lock()

    def observe(self, tier: str, latency_ms: float) -> None:
        """Note how long a call of a tier took, in milliseconds >= 0; a part of one is rounded up."""
        number = isinstance(latency_ms, (int, float)) and not isinstance(latency_ms, bool)
        if not number or not 0 <= latency_ms <= _LONGEST_MS:
            raise InvalidAmountError("latency_ms", latency_ms, f"milliseconds from 0 to {_LONGEST_MS}")
        with self._lock:
            self._seen.setdefault(tier, deque(maxlen=self._window)).append(math.ceil(latency_ms))

    def observed(self, tier: str) -> int:
        """Return how many calls of a tier are remembered."""
        return len(self._seen.get(tier, ()))

    def expected_ms(self, tier: str, prior_ms: int) -> int:
        """Return how long a call of a tier is expected to take, in milliseconds."""
        with self._lock:
            seen = sorted(self._seen.get(tier, ()))
        if len(seen) < self._enough:
            return prior_ms
        return seen[math.ceil(self._quantile * len(seen)) - 1]
