"""The last refusals of a pool: what a reader who comes later wants to know, and no journal keeps."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict

from tbc.clock import wall_ns
from tbc.service.answers import AxisName
from tbc.wire import amounts_object

if TYPE_CHECKING:
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


class Refusals:
    """The last so many refusals of a pool, as long as the server runs.

    Parameters
    ----------
    wall : callable
        Unix time in nanoseconds.
    """

    def __init__(self, wall: Callable[[], int] = wall_ns) -> None:
        self._wall = wall
        self._last: deque[tuple[str | None, RefusalAnswer]] = deque(maxlen=MOST)

    def add(self, decision: Mapping[str, Any], key: str | None = None) -> None:
        """Remember a decision, as answers show it; once for each key that it is repeated under."""
        if key is not None and any(key == known for known, _ in self._last):
            return
        shown = {name: decision[name] for name in _SHOWN if name in decision}
        unmet = {each["axis"]: each["unmet"] for each in (decision, *decision["others"]) if each["unmet"]}
        answer = {"at": self._wall() / 1e9, "mode": decision["mode"], "unmet": unmet, **shown}
        self._last.append((key, answer))  # type: ignore[arg-type]

    def __iter__(self) -> Any:
        return (answer for _, answer in self._last)


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
