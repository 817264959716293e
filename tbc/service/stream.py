"""Events as they happen: the journal of a pool as server-sent events, from any line on.

A stream reads the journal, and nothing is kept for its reader: who is slow reads later, and who takes
nothing at all is cut off. Writers never wait. Those who catch up take turns, a page each, and between two
pages whatever else is asked of the server is answered. What is no line of the journal (refusals, gates,
thresholds) is kept for each reader, the last few; a reader that falls behind misses the oldest and is told
how many.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, Final

import attrs

from tbc.contract import ROOT
from tbc.events import Booked, GateMoved, Refused, ThresholdReached
from tbc.service.answers import entry_object
from tbc.service.problems import Problem
from tbc.wire import decision_object

if TYPE_CHECKING:
    from tbc.service.limits import Limits
    from tbc.service.pools import OpenPool

__all__ = ["Listeners", "follow"]

_PAGE: Final = 100
_NOTICES: Final = 256
#: Seconds between two looks at what other processes have written, and at whether the reader still may.
_LOOK_S: Final = 1.0
_dump: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class _Listener:
    """One reader: what wakes it, and what it is to be told beside the journal."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.notices: deque[tuple[str, Any]] = deque()
        self.missed = 0

    def tell(self, notice: tuple[str, Any] | None) -> None:
        if notice is not None:
            if len(self.notices) == _NOTICES:
                self.notices.popleft()
                self.missed += 1
            self.notices.append(notice)
        self.woken.set()


class Listeners:
    """The readers of one pool's events. Nobody subscribes to the pool while there are none.

    Parameters
    ----------
    pool : OpenPool
        Whose.
    most : int
        How many there may be.
    turn : asyncio.Lock, optional
        Who has it makes a page; one for all pools of a server.
    """

    def __init__(self, pool: OpenPool, most: int, turn: asyncio.Lock | None = None) -> None:
        self._pool = pool
        self._turn = asyncio.Lock() if turn is None else turn
        self._reading = asyncio.Lock()  # of the pool's store, in a thread
        self._most = most
        self._all: set[_Listener] = set()
        self._end: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = False

    def add(self) -> _Listener:
        """Return a new reader."""
        if len(self._all) >= self._most:
            raise Problem(
                429,
                "too_many_streams",
                f"{self._most} streams of this pool are open.",
                "Close one of them, or read /v1/entries.",
                retryable=True,
                headers={"retry-after": "5"},
            )
        listener = _Listener()
        self._all.add(listener)
        if self._end is None:
            self._loop = asyncio.get_running_loop()
            self._end = self._pool.manager.subscribe(self._told)
        return listener

    def remove(self, listener: _Listener) -> None:
        """Let go of a reader."""
        self._all.discard(listener)
        if not self._all and self._end is not None:
            self._end()
            self._end = None

    async def news(self, listener: _Listener, since: int) -> tuple[str, int]:
        """Return what is to be said now, and the last line that is known then."""
        pool = self._pool
        if pool.store is None:
            async with self._turn:
                said = _said(listener, since, *await pool.entries(since, _PAGE))
                await asyncio.sleep(0)  # the others first
                return said
        async with self._reading:
            found = await pool.entries(since, _PAGE)
        async with self._turn:
            said = _said(listener, since, *found)
            await asyncio.sleep(0)
            return said

    def close(self) -> None:
        """End all streams."""
        self.closed = True
        for listener in self._all:
            listener.woken.set()

    def _told(self, event: object) -> None:
        """Wake the readers; in whatever thread has spent."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        loop.call_soon_threadsafe(self._wake, None if isinstance(event, Booked) else self._notice(event))

    def _notice(self, event: object) -> tuple[str, Any] | None:
        if isinstance(event, Refused):
            at = self._pool.metrics.refusals.add(event.decision)
            return "refused", {"at": at, **decision_object(event.decision)}
        if isinstance(event, GateMoved):
            return "gate", attrs.asdict(event)
        if isinstance(event, ThresholdReached):
            return "threshold", attrs.asdict(event)
        return None

    def _wake(self, notice: tuple[str, Any] | None) -> None:
        for listener in self._all:
            listener.tell(notice)


async def follow(
    pool: OpenPool, listeners: Listeners, since: int | None, limits: Limits, admitted: Callable[[], bool]
) -> AsyncGenerator[bytes]:
    """Yield the text of the stream: what was after line `since`, then what comes, while it is `admitted`."""
    listener = listeners.add()
    try:
        said = "retry: 1000\n\n"
        if since is None or await pool.is_ahead(since):
            last = (await pool.run(lambda: pool.manager.statement(ROOT))).seq
            said += "" if since is None else _gap(since, last + 1)
            since = last
        yield said.encode()
        waited = 0.0
        while not listeners.closed and admitted():
            listener.woken.clear()
            text, since = await listeners.news(listener, since)
            if text:
                waited = 0.0
                yield text.encode()
                continue
            pause = min(_LOOK_S, limits.heartbeat_s)
            try:
                async with asyncio.timeout(pause):
                    await listener.woken.wait()
            except TimeoutError:
                waited += pause
                if pool.store is not None:
                    await pool.run(lambda: None)  # catches up with what others have written
            if waited >= limits.heartbeat_s:
                waited = 0.0
                yield b": still here\n\n"
    finally:
        listeners.remove(listener)


def _gap(since: int, first: int) -> str:
    return f"event: gap\ndata: {_dump({'since': since, 'first': first})}\n\n"


def _said(listener: _Listener, since: int, lines: list[Any], folded: bool) -> tuple[str, int]:
    said = []
    if folded:
        first = lines[0].seq if lines else since
        said.append(_gap(since, first))
    said += [f"id: {line.seq}\nevent: entry\ndata: {_dump(entry_object(line))}\n\n" for line in lines]
    if lines:
        since = lines[-1].seq
    if len(lines) < _PAGE:
        if listener.missed:
            said.append(f"event: missed\ndata: {_dump({'notices': listener.missed})}\n\n")
            listener.missed = 0
        while listener.notices:
            name, told = listener.notices.popleft()
            said.append(f"event: {name}\ndata: {_dump(told)}\n\n")
    return "".join(said), since
