"""The log of a server: written by a thread of its own, so that whoever reads it slowly holds nobody up."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from typing import Final

__all__ = ["Aside", "log_aside"]

#: Lines that wait to be written; what comes beyond them is lost, and counted.
_LINES: Final = 1_000
#: Seconds that the last lines have to be written at the end.
_END_S: Final = 1.0
_LOGGERS: Final = ("tbc", "uvicorn")


class Aside(logging.Handler):
    """Writes records to a file descriptor, in a thread.

    Parameters
    ----------
    fd : int
        Where to.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        self._fd = fd
        self._lines: queue.Queue[str | None] = queue.Queue(_LINES)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="tbc-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written."""
        self.say(self.format(record))

    def say(self, line: str) -> None:
        """Have a line written; never waits."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Wait for the last lines, but not for long."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(_END_S)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            lost, self._lost = self._lost, 0
            if lost:
                line += f"\n({lost} lines were lost: nobody read them)"
            left = f"{line}\n".encode(errors="backslashreplace")
            try:
                while left:
                    left = left[os.write(self._fd, left) :]
            except OSError:  # whoever read it has left
                continue


def log_aside(fd: int) -> Aside:
    """Write what the server and its libraries log to a file descriptor, aside."""
    handler = Aside(fd)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    return handler
