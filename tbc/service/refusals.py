"""The last refusals of a pool: what a reader who comes later wants to know, and no journal keeps."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict

import attrs

from tbc.clock import wall_ns
from tbc.service.answers import AxisName
from tbc.wire import amounts_object, decision_object

if TYPE_CHECKING:
    from tbc.decision import Decision
    from tbc.stores.store import Store

__all__ = ["MOST", "RefusalAnswer", "Refusals", "RefusalsAnswer", "refusals_of_runs"]

#: How many are kept.
MOST: Final = 200
_SHOWN: Final = ("agent_name", "axis", "requested", "requested_usd", "available", "available_usd", "reason")
_OF_RUNS: Final = ("budget_exhausted", "would_refuse")


class RefusalAnswer(TypedDict):
    """A hold that was refused, or would have been (audit mode), why, and what it lacked on each axis."""

    at: float
    mode: str
    agent_name: str
    axis: AxisName
    requested: int
    requested_usd: NotRequired[str]
    available: int | None
    available_usd: NotRequired[str | None]
    unmet: dict[AxisName, int]
    reason: str


class RefusalsAnswer(TypedDict):
    """The last refusals, oldest first."""

    refusals: list[RefusalAnswer]


@attrs.define
class _Kept:
    """A refusal, and by what it is known again."""

    decision: Decision
    key: str | None
    answer: RefusalAnswer


class Refusals:
    """The last so many refusals of a pool, as long as the server runs.

    No two have the same `at`, so readers who are told of one by the stream find it again in the list. It may
    be told by any thread.

    Parameters
    ----------
    wall : callable
        Unix time in nanoseconds.
    """

    def __init__(self, wall: Callable[[], int] = wall_ns) -> None:
        self._wall = wall
        self._last: deque[_Kept] = deque(maxlen=MOST)
        self._at = 0  # of the last one, in microseconds
        self._lock = threading.Lock()

    def add(self, decision: Decision, key: str | None = None) -> float:
        """Remember a decision, once, whoever tells it and however often under its key; return its `at`."""
        with self._lock:
            for kept in reversed(self._last):
                if kept.decision is decision or (key is not None and kept.key == key):
                    kept.key = key or kept.key
                    return kept.answer["at"]
            self._at = max(self._wall() // 1_000, self._at + 1)
            told = decision_object(decision)
            shown = {name: told[name] for name in _SHOWN if name in told}
            unmet = {each.axis: each.unmet for each in (decision, *decision.others) if each.unmet}
            answer: Any = {"at": self._at / 1e6, "mode": decision.mode, "unmet": unmet, **shown}
            self._last.append(_Kept(decision, key, answer))
            return self._at / 1e6

    def __iter__(self) -> Iterator[RefusalAnswer]:
        with self._lock:
            return iter([kept.answer for kept in self._last])


def refusals_of_runs(store: Store, pool: str, mode: str) -> Iterable[RefusalAnswer]:
    """Return the last refusals that runs have written down in a store, oldest first."""
    last: deque[RefusalAnswer] = deque(maxlen=MOST)
    for run in store.runs():
        for event in store.events(run.run) if run.pool == pool else ():
            if event.kind in _OF_RUNS:
                body = json.loads(event.body)
                numbers = [("requested", body["requested"]), ("available", body["available"])]
                last.append(
                    {
                        "at": event.at,
                        "mode": mode,
                        "agent_name": str(body.get("agent", body["step"])),
                        "axis": body["axis"],
                        **amounts_object(body["axis"], numbers),  # type: ignore[typeddict-item]
                        "unmet": {body["axis"]: max(0, body["requested"] - body["available"])},
                        "reason": str(body["reason"]),
                    }
                )
    return last
