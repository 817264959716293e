"""One request, as the rooms that serve it see it, and what they declare about themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import attrs

from tbc.service.pools import OpenPool

if TYPE_CHECKING:
    from tbc.service.app import Service

__all__ = ["Call", "Operation", "Scope", "Text"]

#: What a bearer of a token may do: look, spend, or change agents and budgets.
Scope = Literal["read", "spend", "admin"]


class Call:
    """A request that has been read and admitted.

    Attributes
    ----------
    service : Service
        What serves it.
    pool : OpenPool
        The books that it is about.
    path : dict
        Values out of the path.
    body, query : object
        The records of the operation; ``None`` if it has none.
    key : str or None
        The ``Idempotency-Key``.
    headers : dict of bytes to bytes
        As they came; of several of one name the last.
    """

    __slots__ = ("body", "headers", "key", "path", "pool", "query", "service")

    def __init__(
        self,
        service: Service,
        pool: OpenPool,
        path: Mapping[str, Any],
        body: Any,
        query: Any,
        key: str | None,
        headers: Mapping[bytes, bytes],
    ) -> None:
        self.service = service
        self.pool = pool
        self.path = path
        self.body = body
        self.query = query
        self.key = key
        self.headers = headers


class Text(NamedTuple):
    """An answer that is no JSON, with the headers that say what it is."""

    body: bytes
    headers: dict[str, str]


@attrs.frozen(kw_only=True)
class Operation:
    """What is served at one path and method.

    Attributes
    ----------
    name : str
        Of the operation, for clients that are generated and for metrics.
    method, path : str
        Where; the path has the names of its values in braces.
    summary : str
        What it does, in a line.
    scope : {"read", "spend", "admin"}, optional
        What the bearer must be allowed to do; ``None``: anybody may, and no pool is asked.
    serve : callable
        Returns the answer.
    answer : type, str or tuple of them
        Its shape; what is no JSON by its media type.
    body, query : type, optional
        Records of what is sent.
    form_of : callable, optional
        Returns which of several records a body is to be, where it may be one of them.
    params : dict of str to type
        What the values of the path must be.
    headers : dict of str to type
        What may be said in headers of its own.
    keyed : bool
        Whether an ``Idempotency-Key`` makes it safe to repeat.
    refusals : tuple of int
        Statuses that it may answer with besides those of every operation.
    """

    name: str
    method: str
    path: str
    summary: str
    scope: Scope | None
    serve: Callable[[Call], Awaitable[Any]]
    answer: Any
    body: Any = None
    form_of: Callable[[Any], type] | None = None
    query: type | None = None
    params: Mapping[str, Any] = attrs.field(factory=dict)
    headers: Mapping[str, Any] = attrs.field(factory=dict)
    keyed: bool = False
    refusals: tuple[int, ...] = ()
