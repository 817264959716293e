"""Connections to PostgreSQL that wait for an answer, but not for ever: a server that hangs says nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

import psycopg

__all__ = ["Connection"]

T = TypeVar("T")


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is closed when the server has been silent for too long.

    Attributes
    ----------
    patience_s : float
        For how long it may be silent: longer than its own limit for a statement, of which it would tell.
    at_work : callable, optional
        Asked then: whether the server lives, and works on what has no limit. ``None``: it does not.
    """

    patience_s: Final = 8.0
    at_work: Callable[[], bool] | None = None

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **named: Any) -> T:
        """Wait for an answer."""
        return super().wait(self._bounded(gen), *args, **named)

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """Go on with what psycopg waits for: it comes here ten times a second, also if nothing came."""
        end = time.monotonic() + self.patience_s
        try:
            wanted = next(gen)
            while True:
                came = yield wanted
                if came:
                    end = time.monotonic() + self.patience_s
                elif time.monotonic() > end:
                    if self.at_work is None or not self.at_work():
                        self.close()
                        raise psycopg.OperationalError("the server does not answer")
                    end = time.monotonic() + self.patience_s
                wanted = gen.send(came)
        except StopIteration as done:
            answer: T = done.value
            return answer
