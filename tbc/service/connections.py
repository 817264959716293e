"""Connections that keep nobody else out: the head of a request has to come soon, and to be of bounded size.

A connection that waits for a request, or has begun one and does not go on, is closed after a while; sooner if
there are nearly as many connections as there may be. What is wrong with a request before the application sees
it is said in the envelope of every other error. One that takes nothing of its answers is cut off; who reads
slowly is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tbc.service.limits import Limits
from tbc.service.problems import Problem, answer_to

try:
    import resource
except ImportError:  # Windows has no such bound
    resource = None  # type: ignore[assignment]

__all__ = ["Connection", "allow_many", "close_idle", "connection_of", "room_for"]

#: Seconds that a connection may wait for a request, or take nothing, while there are nearly too many.
_CROWDED_S: Final = 1.0
#: Bytes that wait in the system to be sent: the rest waits here, where it costs the system nothing.
_UNSENT: Final = 16_384
#: Of Linux's `tcp_info`: bytes that have been taken, and that wait in the system to be sent.
_TCP_INFO: Final = struct.Struct("=120xQ16xI")
#: Files that are none of connections: the store's, those of the libraries.
_OTHER_FILES: Final = 200
#: Connections beyond the limit that are told so; further ones are cut off.
_TOLD: Final = 50
#: What every header counts besides its bytes.
_HEADER: Final = 32


class _TooLargeError(Exception):
    """The head of a request is too large."""


class Connection(HttpToolsProtocol):
    """One connection of a client.

    Attributes
    ----------
    limits : Limits
        What bounds it.
    most : int
        How many there may be.
    waits_since : float or None
        Since when it has waited for a request, by the clock of the loop; ``None``: one is being served.
    """

    limits: Limits = Limits()
    most: int = limits.connections
    waits_since: float | None = None
    _patience: float = limits.head_s
    _taken_at: float | None = None
    _unsent = 0
    _taken = 0
    _is_quiet = False
    _size = 0
    _read = 0
    _unheard = 0
    _in_head = False
    _served: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # it has left
                transport.get_extra_info("socket").setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT
                )
        self._wait(self.limits.head_s)
        if len(self.connections) > self.most + _TOLD:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        of_head = self._in_head or self.cycle is None  # else it may be the rest of a body for the most part
        self._unheard += len(data)
        super().data_received(data)
        if of_head and self._in_head:
            self._read += len(data)  # a header that has not come to its end is not counted otherwise
        if max(self._read, self._unheard) > self.limits.head and not self.transport.is_closing():
            self._refuse(_too_large(self.limits.head))

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        super().on_message_begin()
        self._in_head, self._size, self._read, self._unheard = True, 0, 0, 0
        self._wait(self.limits.head_s)

    def on_url(self, url: bytes) -> None:
        """Note a part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; after a body it says nothing."""
        self._count(len(name) + len(value) + _HEADER)
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Have the request served, or say that there are too many connections."""
        self._in_head, self.waits_since = False, None
        self._read = self._unheard = 0
        self.app = self.config.loaded_app if len(self.connections) <= self.most else self._crowded
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note a piece of a body."""
        self._unheard = 0  # what is between two pieces, and after the last, is counted nowhere else
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        self._unheard = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._wait(self.limits.idle_s)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request."""
        if self._size > self.limits.head:
            self._refuse(_too_large(self.limits.head))
        else:
            self._refuse(Problem(400, "malformed_request", msg, "Send HTTP/1.1."))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being served that nobody waits for its answer."""
        if self._served is not None:  # else only the last one that has come would be told
            self._served.disconnected = True
            self._served.message_event.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End it after the answer that is under way; now if there is none."""
        if not self.transport.is_closing():  # TLS forgets what it has to close if it is told twice
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Leave it to `close_if_idle`, which knows whether the last answer is still being taken."""

    def close_if_idle(self, now: float, *, crowded: bool, ending: bool = False) -> None:
        """Close it if it has waited, or has taken nothing of its answers, for too long.

        Parameters
        ----------
        now : float
            By the clock of the loop.
        crowded : bool
            There are nearly as many connections as there may be.
        ending : bool, optional
            The server ends, and waits for nobody's goodbye, which TLS would.
        """
        self._look(now)
        if self._taken_at is not None:
            if now - self._taken_at > (_CROWDED_S if crowded else self.limits.cut_off_s):
                self.transport.abort()
            return
        if ending and self.transport.is_closing():
            self._abort_if_quiet()
            return
        if self.waits_since is None or (self.cycle is not None and not self.cycle.response_complete):
            return
        if now - self.waits_since <= (min(_CROWDED_S, self._patience) if crowded else self._patience):
            return
        if self.transport.is_closing():  # and its reader does not say goodbye
            self._abort_if_quiet()
        else:
            self.transport.close()

    def _look(self, now: float) -> None:
        """Note when something of the answers was taken, ``None`` if nothing is left to be."""
        unsent, taken = _sent(self.transport)
        self._is_quiet = not unsent and not self._unsent and taken == self._taken
        if not unsent:
            if self._taken_at is not None and self.waits_since is not None:
                self.waits_since = now  # it has waited since the end of its answer
            self._taken_at = None
        elif self._taken_at is None or taken > self._taken or unsent < self._unsent:
            self._taken_at = now  # it is read, however slowly
        self._unsent, self._taken = unsent, taken

    def _abort_if_quiet(self) -> None:
        if self._is_quiet:  # else TLS may have something that the system is only about to get
            self.transport.abort()

    def _wait(self, patience: float) -> None:
        self.waits_since, self._patience = self.loop.time(), patience

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self.limits.head:
            raise _TooLargeError

    def _refuse(self, problem: Problem) -> None:
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # nothing can be said within an answer
            return
        status, headers, answer = answer_to(problem)
        body = json.dumps(answer, separators=(",", ":")).encode()
        said = {"content-type": "application/json", "cache-control": "no-store", **headers}
        said |= {"content-length": str(len(body)), "connection": "close"}
        lines = [
            f"HTTP/1.1 {status} {_REASONS[status]}",
            *(f"{name}: {value}" for name, value in said.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        self.transport.close()

    async def _crowded(self, scope: Any, receive: Any, send: Any) -> None:
        problem = Problem(
            503,
            "too_many_connections",
            f"This server has {self.most} connections open.",
            "Close some, or send it again later: nothing was done.",
            retryable=True,
            headers={"retry-after": "1", "connection": "close"},
            details={"most": self.most},
        )
        status, found, answer = answer_to(problem)
        body = json.dumps(answer, separators=(",", ":")).encode()
        said = {"content-type": "application/json", "content-length": str(len(body)), **found}
        every = [(name.encode(), value.encode()) for name, value in said.items()]
        await send({"type": "http.response.start", "status": status, "headers": every})
        await send({"type": "http.response.body", "body": body})


_REASONS: Final = {400: "Bad Request", 431: "Request Header Fields Too Large"}


def _too_large(most: int) -> Problem:
    return Problem(
        431,
        "headers_too_large",
        f"The head of a request has at most {most:,} bytes.",
        "Send fewer and shorter headers.",
        details={"most": most},
    )


def _sent(transport: asyncio.Transport) -> tuple[int, int]:
    """Return how many bytes wait to be taken, and how many were, which is 0 where the system does not say.

    The system knows both also where TLS is between it and the transport, whose own buffer is soon empty then.
    """
    unsent = taken = 0
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it has been closed
        unsent = transport.get_write_buffer_size()
        if sys.platform == "linux":
            its = transport.get_extra_info("socket")
            found = its.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            if len(found) == _TCP_INFO.size:
                taken, within = _TCP_INFO.unpack(found)
                unsent += within
    return unsent, taken


def connection_of(limits: Limits) -> type[Connection]:
    """Return the class of connections with these limits."""
    return type("Connection", (Connection,), {"limits": limits, "most": room_for(limits.connections)})


def close_idle(server: uvicorn.Server, now: float, *, ending: bool = False) -> None:
    """Close the connections that have waited for too long; as `Connection.close_if_idle`."""
    every = [each for each in server.server_state.connections if isinstance(each, Connection)]
    crowded = bool(every) and len(every) >= every[0].most * 9 // 10
    for each in every:
        each.close_if_idle(now, crowded=crowded, ending=ending)


def allow_many(most: int) -> None:
    """Let this process have so many connections open, as far as the system allows."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + _TOLD + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def room_for(most: int) -> int:
    """Return how many of so many connections this process can have open, files aside."""
    if resource is None:
        return most
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, soft - _TOLD - _OTHER_FILES))
