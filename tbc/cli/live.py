"""What one sees while a run runs: a live table of agents and steps in a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import unicodedata
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tbc.axes import TOKENS, USD, Axis, format_amount, format_number
from tbc.runs import events as ev

if TYPE_CHECKING:
    from tbc.manager import BudgetManager
    from tbc.tree import Account

__all__ = ["Watcher", "describe", "printable"]

_LAST_MOVES = 5
_STATES = {"running": "cyan", "done": "green", "failed": "red", "skipped": "yellow", "refused": "red"}


def printable(text: str) -> str:
    """Return text with what could command a terminal, or cannot be encoded, written out."""
    safe = "".join(
        char if char in "\n\t" or not unicodedata.category(char).startswith("C") else ascii(char)[1:-1]
        for char in text
    )
    return safe.encode("utf-8", "backslashreplace").decode()


def _sums(spent: dict[str, int]) -> str:
    order: tuple[Axis, ...] = (USD, TOKENS)
    return ", ".join(format_amount(axis, spent[axis]) for axis in order if axis in spent)


def describe(event: ev.RunEvent) -> str:
    """Return an event as one line for people; empty if it is not worth one."""
    match event:
        case ev.RunStarted():
            return f"{event.workflow}: started, mode {event.mode}"
        case ev.RunResumed():
            return f"resumed: {event.done} done before, to do: {', '.join(event.again) or 'nothing'}"
        case ev.ToppedUp():
            return f"budget raised by {format_amount(event.axis, event.amount)}"
        case ev.StepStarted():
            model = f", {event.model}" if event.model else ""
            return f"{event.step}: {event.agent}{model}, holds {_sums(event.held)}"
        case ev.StepFinished():
            guess = " (estimated)" if event.estimated else ""
            unknown = ", price unknown" if event.unpriced else ""
            return f"{event.step}: done, spent {_sums(event.spent)}{guess}{unknown}"
        case ev.StepFailed():
            return f"{event.step}: failed: {event.error}"
        case ev.StepSkipped():
            return f"{event.step}: skipped, {event.agent} is confident enough"
        case ev.StepInterrupted():
            return (
                f"{event.step}: was in flight when the process died; its hold is booked: {_sums(event.spent)}"
            )
        case ev.FallbackTaken():
            return f"{event.step}: {event.fallback} instead of {event.model}: {event.reason}"
        case ev.WouldRefuse():
            return f"{event.step}: enforcement would have refused this call. {event.reason}"
        case ev.BudgetWarning():
            used, left = format_amount(event.axis, event.used), format_amount(event.axis, event.remaining)
            return f"warning: {event.threshold:.0%} of the budget is used: {used} used, {left} left"
        case ev.BudgetExceeded():
            spent, budget = format_amount(event.axis, event.spent), format_amount(event.axis, event.budget)
            return f"budget exceeded at {event.step}: {spent} spent of {budget}"
        case ev.BudgetExhausted():
            return f"{event.step}: refused. {event.reason}"
        case ev.WorkflowFailed():
            return f"stopped, {event.state}"
        case ev.CheckpointSaved():
            return f"saved in {event.path}: {event.done} done, {event.open} open"
        case ev.Moved():
            return str(event)
        case _:
            return ""


class Watcher:
    """Shows a run while it runs. Use it as a context manager, and give it every event.

    Parameters
    ----------
    console : Console
        Where.
    quiet : bool
        Show nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._manager: BudgetManager | None = None
        self._steps: dict[str, tuple[str, str]] = {}
        self._moves: deque[str] = deque(maxlen=_LAST_MOVES)
        self._lock = threading.Lock()
        self._live: Live | None = None

    def watch(self, manager: BudgetManager) -> None:
        """Show these books from now on."""
        self._manager = manager

    def __enter__(self) -> Watcher:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(
                get_renderable=self._picture, console=self._console, refresh_per_second=8, transient=True
            )
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.__exit__(kind, error, trace)

    def hear(self, event: ev.RunEvent) -> None:
        """Take in an event."""
        if self._quiet:
            return
        with self._lock:
            self._remember(event)
        if self._live is None or not isinstance(event, (ev.Moved, ev.StepStarted)):
            line = describe(event)
            if line:
                self._console.print(Text(printable(line)), soft_wrap=True)

    def _remember(self, event: ev.RunEvent) -> None:
        match event:
            case ev.Moved():
                self._moves.append(str(event))
            case ev.StepStarted():
                self._steps[event.step] = "running", _sums(event.held)
            case ev.StepFinished():
                self._steps.pop(event.step, None)
            case ev.StepFailed():
                self._steps[event.step] = "failed", event.error
            case ev.BudgetExhausted():
                self._steps[event.step] = "refused", event.axis
            case _:
                pass

    def _picture(self) -> Group:
        with self._lock:
            steps, moves = dict(self._steps), list(self._moves)
        parts: list[Table | Text] = []
        if self._manager is not None:
            parts.append(_accounts(self._manager))
        if steps:
            table = Table(box=box.SIMPLE_HEAD, title="in flight", title_justify="left")
            table.add_column("step")
            table.add_column("state")
            table.add_column("holds")
            for name, (state, detail) in list(steps.items())[-8:]:
                table.add_row(Text(name), Text(state, style=_STATES.get(state, "")), Text(detail))
            parts.append(table)
        parts.extend(Text(move, style="dim") for move in moves)
        return Group(*parts)


def _accounts(manager: BudgetManager) -> Table:
    axes: list[Axis] = [USD] if USD in manager.ledger.sides else []
    axes.append(TOKENS)
    table = Table(box=box.SIMPLE_HEAD, title="agents", title_justify="left")
    table.add_column("agent")
    for axis in axes:
        for word in ("allocated", "held", "spent"):
            table.add_column(f"{axis}\n{word}", justify="right")
    books: dict[str, list[Account]] = {}
    for axis in axes:
        for account in manager.accounts(axis):
            books.setdefault(account.agent_name, []).append(account)
    for name, rows in books.items():
        cells = []
        for row in rows:
            allocated = "uncapped" if row.allocated is None else format_number(row.axis, row.allocated)
            cells += [allocated, format_number(row.axis, row.held), format_number(row.axis, row.consumed)]
        table.add_row(Text(name), *cells)
    return table
