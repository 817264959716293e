"""The door: who may come in, as whom, and how often. Asked before anything else of a request is read."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tbc.service.problems import Problem

if TYPE_CHECKING:
    from tbc.service.bearers import Bearers, Token
    from tbc.service.calls import Operation

__all__ = ["Door", "is_loopback"]

#: How one usually says "this machine" to a server that listens there only.
_HERE = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server at that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Bucket:
    """A bucket of requests that fills up at a rate; who finds it empty waits."""

    __slots__ = ("at", "left")

    def __init__(self, at: float, left: float) -> None:
        self.at = at
        self.left = left


class Door:
    """Lets requests in.

    Parameters
    ----------
    pool : str
        Which pool is meant where no tokens are asked for.
    bearers : Bearers, optional
        Whoever bears one of these may ask, for its pool. Default: everybody who reaches the server may.
    here_only : bool
        Whether the server listens at this machine alone. A page of the web that a browser here shows can
        reach it under a name of its own (DNS rebinding): the ``Host`` must then be one of this machine.
    rate : float, optional
        Requests a second that one token may send, twice as many at once.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self,
        pool: str,
        bearers: Bearers | None,
        *,
        here_only: bool,
        rate: float | None,
        clock: Callable[[], float],
    ) -> None:
        self.asks_for_tokens = bearers is not None
        self._pool = pool
        self._bearers = bearers
        self._here_only = here_only
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def admit(self, operation: Operation, headers: Mapping[bytes, bytes]) -> str:
        """Return the pool that a request is about.

        Raises
        ------
        Problem
            Whoever sent it may not, or not now.
        """
        self.check_names(headers)
        if self._bearers is None or operation.scope is None:
            return self._pool
        token = self._token(headers)
        if token is None and self._bearers.unreadable:
            raise Problem(
                503,
                "tokens_unreadable",
                "The server cannot read its tokens now.",
                "An operator has to look at its log; then send it again.",
                retryable=True,
                headers={"retry-after": "5"},
            )
        if token is None:
            raise Problem(
                401,
                "unauthorized",
                "No valid token came with the request.",
                "Send Authorization: Bearer with a token from `tbc token create`.",
                headers={"www-authenticate": "Bearer"},
            )
        if operation.scope not in token.scopes:
            raise Problem(
                403,
                "scope_missing",
                f"The token does not allow to {operation.scope}.",
                f"Use one with the scope {operation.scope}.",
                details={"scope": operation.scope},
            )
        if self._rate is not None:
            self._take(token.name, self._rate)
        return token.pool

    def check_names(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a request that a page of the web may have sent.

        Raises
        ------
        Problem
            It asks for another host than this one, or comes from another origin.
        """
        host = headers.get(b"host", b"")
        if self._here_only and not _is_here(_without_port(host)):
            raise Problem(
                421, "wrong_host", "This server answers for this machine only.", "Ask for localhost."
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != host:
            raise Problem(
                403, "other_origin", "Pages of other origins are not served.", "Ask from a program."
            )

    def bears(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether the token of a request that was let in is still valid; ask as often as needed."""
        return self._bearers is None or self._token(headers) is not None

    def _token(self, headers: Mapping[bytes, bytes]) -> Token | None:
        kind, _, text = headers.get(b"authorization", b"").partition(b" ")
        if self._bearers is None or kind.lower() != b"bearer":
            return None
        return self._bearers.find(text.strip())

    def _take(self, name: str, rate: float) -> None:
        now, most = self._clock(), max(1.0, 2 * rate)
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(now, most)
        bucket.left = min(most, bucket.left + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.left < 1:
            wait = (1 - bucket.left) / rate
            raise Problem(
                429,
                "rate_limited",
                f"A token may send {rate:g} requests a second.",
                "Send it again later: nothing was done.",
                retryable=True,
                headers={"retry-after": str(int(wait) + 1)},
            )
        bucket.left -= 1


def _is_here(host: bytes) -> bool:
    """Return whether a name is one of this machine: an address that is, needs no resolving."""
    return host in _HERE or is_loopback(host.decode("latin-1").removeprefix("[").removesuffix("]"))


def _without_port(host: bytes) -> bytes:
    name, colon, port = host.rpartition(b":")
    return (name if colon and port.isdigit() else host).lower()
