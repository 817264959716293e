"""The only reader of time.

A clock is any callable that returns seconds as a ``float`` and never goes back. Everything below the
manager takes ``now`` as an argument.

Examples
--------
>>> clock = ManualClock(100.0)
>>> clock.advance(5.0)
>>> clock()
105.0
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["EPOCH", "Clock", "ManualClock", "StoreClock", "system_clock", "wall_ns"]

#: Seconds as a float, never going back.
Clock = Callable[[], float]

#: The default clock. A jump of the wall clock neither expires a hold early nor keeps it for longer.
system_clock: Clock = time.monotonic

#: Unix time now, in nanoseconds, for those who show times beside those of others. It may go back.
wall_ns: Callable[[], int] = time.time_ns

#: Unix time at which `system_clock` showed 0; the wall clock is read once, at import.
EPOCH = time.time() - time.monotonic()


class ManualClock:
    """A clock that moves only by hand, for tests and simulations.

    Parameters
    ----------
    now : float, default 0.0
        Seconds shown at the start.
    """

    __slots__ = ("_now",)

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        """Return the seconds shown now."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward by `seconds` (>= 0)."""
        if seconds < 0:
            raise ValueError(f"a clock never goes back; advance() takes seconds >= 0, not {seconds!r}")
        self._now += seconds


class StoreClock:
    """The clock of a store, so that all who share its books agree on what has expired.

    It shows Unix time as the store told it once, and goes on with `system_clock`: a jump of a wall clock
    moves nothing.

    Parameters
    ----------
    now : float
        Unix seconds, as the store says.
    """

    __slots__ = ("_ahead", "_least")

    def __init__(self, now: float) -> None:
        self._ahead = now - system_clock()
        self._least = now

    def __call__(self) -> float:
        """Return Unix seconds."""
        now = self._ahead + system_clock()
        if now < self._least:
            return self._least
        self._least = now
        return now

    def not_before(self, moment: float) -> None:
        """Never show less than `moment`: somebody else has written at that time."""
        self._least = max(self._least, moment)
