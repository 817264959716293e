"""Events: what a manager tells its subscribers, after the fact and outside of its lock.

Every change of the books is told as the journal entry that says it (`Booked`), so that what is shown is what
is booked. What changes no books has records of its own. A subscriber that raises is logged (logger ``tbc``)
and never breaks a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import attrs

from tbc.axes import Axis
from tbc.decision import Decision
from tbc.journal import Entry

__all__ = ["Booked", "CounterChanged", "Event", "GateMoved", "Refused", "Subscribers", "ThresholdReached"]


@attrs.frozen
class Booked:
    """A line was written to the journal: a hold, a settle, a transfer and so on.

    Attributes
    ----------
    entry : Entry
        The line.
    elsewhere : bool
        Whether another manager wrote it, with whom this one shares the books of a store.
    """

    entry: Entry
    elsewhere: bool = False


@attrs.frozen
class Refused:
    """A hold, or more for one, was refused, or would have been (audit mode)."""

    decision: Decision


@attrs.frozen
class GateMoved:
    """An agent's confidence closed its gate, or the gate opened again."""

    agent_name: str
    closed: bool
    confidence: float | None


@attrs.frozen
class CounterChanged:
    """The manager counts tokens in another way from now on."""

    name: str
    estimated: bool


@attrs.frozen
class ThresholdReached:
    """So much of a manager-wide cap has been spent; told once for each threshold.

    Attributes
    ----------
    axis : {"tokens", "usd", "calls"}
        What is counted.
    threshold : float
        The share that was reached.
    used, remaining : int
        Spent for good, and not spent, in the unit of the axis.
    """

    axis: Axis
    threshold: float
    used: int
    remaining: int


Event = Booked | Refused | GateMoved | CounterChanged | ThresholdReached


class Subscribers:
    """Who is told. Adding and removing are safe at any time."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[Event], object]] = {}  # in the order of subscribing
        self._numbers = itertools.count()

    def add(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Tell `callback` every event from now on; returns a function that ends it."""
        number = next(self._numbers)
        self._callbacks[number] = callback

        def remove() -> None:
            self._callbacks.pop(number, None)

        return remove

    def tell(self, event: Event) -> None:
        """Call every subscriber in the order of subscribing."""
        for callback in list(self._callbacks.values()):
            try:
                callback(event)
            except Exception:
                import logging

                logging.getLogger("tbc").exception("a subscriber raised on %r", event)
