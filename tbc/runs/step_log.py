"""The log of steps: a line of JSON before each step and one after it.

Times are ISO 8601 in UTC, costs are dollars as decimal strings, exact. A log that cannot be written is told
once, by the logger ``tbc``, and never stops a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tbc.axes import USD, format_number
from tbc.clock import EPOCH, Clock, system_clock

__all__ = ["StepLog", "dollars"]


class StepLog:
    """A file that grows by one line at a time.

    Parameters
    ----------
    path : str or path-like
        The file; it is made when it is first written to. It is opened for each line, so that it may be moved
        away at any time, and several processes may write to one.
    clock : Clock
        Seconds: Unix time, or tbc's own clock.
    """

    __slots__ = ("_clock", "_encode", "_epoch", "_path", "_told")

    def __init__(self, path: str | os.PathLike[str], clock: Clock) -> None:
        self._path = os.fspath(path)
        self._clock = clock
        self._epoch = EPOCH if clock is system_clock else 0.0
        self._told = False
        self._encode: Callable[[Any], str] = json.JSONEncoder(default=str).encode

    def write(self, record: dict[str, Any]) -> None:
        """Append a record, with the time in front."""
        try:
            at = datetime.fromtimestamp(self._epoch + self._clock(), UTC)
            line = self._encode({"time": at.isoformat(timespec="microseconds"), **record})
            with open(self._path, "ab", buffering=0) as file:  # one write: lines of others do not mix in
                file.write(f"{line}\n".encode())
        except Exception as error:
            if not self._told:
                self._told = True
                import logging

                logging.getLogger("tbc").warning("steps are not logged: %s: %s", self._path, error)


def dollars(nano: int | None) -> str | None:
    """Return nano-dollars as dollars, exactly: ``"0.0410"``; ``None`` is not known."""
    return None if nano is None else format_number(USD, nano).replace("$", "")
