"""Waiting for another process, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return when `done` does; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"not done after {seconds:g} s")
        time.sleep(0.01)
