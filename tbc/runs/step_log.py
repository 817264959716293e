"""The log of steps: a line of JSON before each step and one after it.

Times are ISO 8601 in UTC, costs are dollars as decimal strings, exact. A log that cannot be written is told
once, by the logger ``tbc``, and never stops a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock
from typing import Any, Final

from tbc.axes import USD, format_number
from tbc.clock import EPOCH, Clock, system_clock

__all__ = ["StepLog", "dollars"]

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)


class StepLog:
    """A file that grows by one line at a time.

    Parameters
    ----------
    path : str or path-like
        The file; it is opened with the first line and then kept open, and only ever appended to, so that
        several processes may write to one.
    clock : Clock
        Seconds: Unix time, or tbc's own clock.
    """

    __slots__ = ("_clock", "_encode", "_epoch", "_file", "_lock", "_path", "_told")

    def __init__(self, path: str | os.PathLike[str], clock: Clock) -> None:
        self._file: int | None = None
        self._path = os.fspath(path)
        self._clock = clock
        self._epoch = EPOCH if clock is system_clock else 0.0
        self._told = False
        self._lock = Lock()
        self._encode: Callable[[Any], str] = json.JSONEncoder(default=str).encode

    def write(self, record: dict[str, Any]) -> None:
        """Append a record, with the time in front."""
        try:
            at = datetime.fromtimestamp(self._epoch + self._clock(), UTC)
            line = self._encode({"time": at.isoformat(timespec="microseconds"), **record})
            file = self._open() if self._file is None else self._file
            os.write(file, f"{line}\n".encode())  # one write: lines of others do not mix in
        except Exception as error:
            if not self._told:
                self._told = True
                import logging

                logging.getLogger("tbc").warning("steps are not logged: %s: %s", self._path, error)

    def _open(self) -> int:
        with self._lock:
            if self._file is None:
                self._file = os.open(self._path, _APPEND, 0o666)
            return self._file

    def __del__(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)


def dollars(nano: int | None) -> str | None:
    """Return nano-dollars as dollars, exactly: ``"0.0410"``; ``None`` is not known."""
    return None if nano is None else format_number(USD, nano).replace("$", "")
