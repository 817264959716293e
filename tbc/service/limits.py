"""How much one client may ask of the service."""

from __future__ import annotations

import math

import attrs

from tbc.errors import InvalidAmountError

__all__ = ["Limits"]


def _is_positive(limits: Limits, field: attrs.Attribute[float | None], value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise InvalidAmountError(field.name, value, "more than 0")


@attrs.frozen(
    kw_only=True, field_transformer=lambda _, fields: [each.evolve(validator=_is_positive) for each in fields]
)
class Limits:
    """Bounds on requests; beyond them they are refused with the bound.

    Attributes
    ----------
    body : int
        Bytes of a body.
    body_s : float
        Seconds for a body to come.
    head : int
        Bytes of the head of a request: its address and its headers.
    head_s, idle_s : float
        Seconds for a head to come, and that a connection may wait for the next request.
    connections : int
        Open ones, of everybody together.
    rate : float, optional
        Requests a second of one token, twice as many at once; ``None``: as many as it likes.
    open_holds : int
        Of one pool.
    runs, runs_kept : int
        Runs of one pool that are under way, and whose records are kept after they have ended.
    streams : int
        Open `/v1/events` of one pool.
    heartbeat_s, cut_off_s : float
        Seconds between two signs of life of a stream; and after which whoever takes nothing of what waits to
        be taken, of an answer or of a stream, is cut off. Who takes some of it in that time is not.
    """

    body: int = 65_536
    body_s: float = 10.0
    head: int = 32_768
    head_s: float = 10.0
    idle_s: float = 30.0
    connections: int = 5_000
    rate: float | None = 1_000.0
    open_holds: int = 10_000
    runs: int = 100
    runs_kept: int = 100
    streams: int = 100
    heartbeat_s: float = 15.0
    cut_off_s: float = 10.0
