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
from typing import TYPE_CHECKING, Any, Final

from tbc.axes import USD, format_amount, format_number
from tbc.clock import EPOCH, Clock, system_clock

if TYPE_CHECKING:
    from tbc.runs.step_books import Begun
    from tbc.runs.step_records import StepRecord

__all__ = ["StepLog", "line_after", "line_before"]

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


def line_before(task_id: str, begun: Begun) -> dict[str, Any]:
    """Return what is logged when a step was allowed or refused."""
    step, blocked = begun.step, begun.blocked
    reason = None if blocked is None else str(blocked)
    return {
        "task_id": task_id,
        "phase": "pre",
        "step_number": step.number,
        "model": step.model,
        "input_tokens": step.sent,
        "output_tokens": step.written,
        "current_cost": _dollars(begun.spent),
        "estimated_cost": _dollars(step.cost),
        "limit": _dollars(begun.limit),
        "decision": "ALLOW" if blocked is None else "BLOCK",
        "reason": "audit: enforcement would block this step" if begun.would_block else reason,
    }


def line_after(
    task_id: str, record: StepRecord, spent: int, limit: int | None, reason: str | None
) -> dict[str, Any]:
    """Return what is logged when a step has ended; `reason` says what went wrong, if anything did."""
    if reason is None and limit is not None and spent > limit:
        reason = f"limit exceeded by {format_amount(USD, spent - limit)}"
    return {
        "task_id": task_id,
        "phase": "post",
        "step_number": record.number,
        "model": record.model,
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "current_cost": _dollars(spent),
        "actual_cost": _dollars(record.cost),
        "estimated": record.estimated,
        "outcome": record.outcome,
        "limit": _dollars(limit),
        "decision": "ALLOW",
        "reason": reason,
    }


def _dollars(nano: int | None) -> str | None:
    """Return nano-dollars as dollars, exactly: ``"0.0410"``; ``None`` is not known."""
    return None if nano is None else format_number(USD, nano).replace("$", "")
