"""What happens in a run of a workflow, as typed records and as lines of JSON.

Every record but `Moved` is kept with the run, in the same transaction as the books it speaks of; what moved
is in the journal already. Amounts are integers in the unit of their axis: tokens, nano-dollars, calls.
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

import attrs

from tbc.axes import Axis, format_amount
from tbc.journal import Entry

__all__ = [
    "BudgetExceeded",
    "BudgetExhausted",
    "BudgetWarning",
    "CheckpointSaved",
    "FallbackTaken",
    "Moved",
    "RunEvent",
    "RunFinished",
    "RunResumed",
    "RunStarted",
    "StepFailed",
    "StepFinished",
    "StepInterrupted",
    "StepSkipped",
    "StepStarted",
    "ToppedUp",
    "WorkflowFailed",
    "WouldRefuse",
]


@attrs.frozen
class RunEvent:
    """Something that happened in a run."""

    kind: ClassVar[str] = "run_event"

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def as_json(self) -> str:
        """Return its fields as JSON, without the kind."""
        return json.dumps(attrs.asdict(self))


@attrs.frozen
class RunStarted(RunEvent):
    """A run begins."""

    workflow: str
    mode: str


@attrs.frozen
class RunResumed(RunEvent):
    """A run goes on in a new process: so many calls were made before, these steps are gone on with."""

    done: int
    again: list[str]


@attrs.frozen
class ToppedUp(RunEvent):
    """The budget of the run was raised."""

    axis: Axis
    amount: int


@attrs.frozen
class StepStarted(RunEvent):
    """A hold was granted, and the call is about to be made."""

    step: str
    agent: str
    model: str | None
    held: dict[str, int]


@attrs.frozen
class StepFinished(RunEvent):
    """A call was made and booked."""

    step: str
    agent: str
    model: str | None
    spent: dict[str, int]
    estimated: bool
    unpriced: int


@attrs.frozen
class StepFailed(RunEvent):
    """A call raised; what it may have cost is booked."""

    step: str
    error: str
    spent: dict[str, int]


@attrs.frozen
class StepSkipped(RunEvent):
    """The agent is confident enough: its gate is closed, and the step's result is null."""

    step: str
    agent: str


@attrs.frozen
class StepInterrupted(RunEvent):
    """The process died during this call: its whole hold is booked, as an estimate."""

    step: str
    spent: dict[str, int]


@attrs.frozen
class FallbackTaken(RunEvent):
    """The step's fallback model is called instead of its model."""

    step: str
    model: str | None
    fallback: str
    reason: str


@attrs.frozen
class WouldRefuse(RunEvent):
    """Audit mode: enforcement would have refused this call."""

    step: str
    axis: Axis
    requested: int
    available: int
    reason: str


@attrs.frozen
class BudgetWarning(RunEvent):
    """So large a part of the budget is used; told once for each threshold."""

    axis: Axis
    threshold: float
    used: int
    remaining: int


@attrs.frozen
class BudgetExceeded(RunEvent):
    """More was spent than the budget; told first, and whenever a further full budget has been spent since."""

    axis: Axis
    budget: int
    spent: int
    step: str


@attrs.frozen
class BudgetExhausted(RunEvent):
    """A call was refused, and the run stops."""

    step: str
    agent: str
    axis: Axis
    requested: int
    available: int
    spent: int
    budget: int | None
    reason: str


@attrs.frozen
class WorkflowFailed(RunEvent):
    """The run has stopped before its end."""

    state: str
    error: str


@attrs.frozen
class RunFinished(RunEvent):
    """The run has come to its end."""

    steps: int


@attrs.frozen
class CheckpointSaved(RunEvent):
    """Everything that was paid for is on the disk: so many steps are done, so many are open."""

    path: str
    done: int
    open: int


@attrs.frozen
class Moved(RunEvent):
    """Budget moved between accounts; from the journal, as it happens."""

    entry: Entry

    def as_json(self) -> str:
        """Return who gave how much to whom, as JSON."""
        entry = self.entry
        return json.dumps(
            {
                "kind": entry.kind.value,
                "donor": entry.peer,
                "recipient": entry.agent_name,
                "axis": entry.axis,
                "amount": entry.allocated,
            }
        )

    def __str__(self) -> str:
        entry = self.entry
        amount = format_amount(entry.axis, entry.allocated)
        return f"{entry.peer} -> {entry.agent_name}: {amount} ({entry.kind.value})"


def json_line(run: str, at: float, event: RunEvent) -> str:
    """Return an event as one line of JSON."""
    fields: dict[str, Any] = {"at": at, "run": run, "event": event.kind, **json.loads(event.as_json())}
    return json.dumps(fields)
