"""``tbc run`` and ``tbc resume``: a workflow under its budget, and a run gone on with."""

from __future__ import annotations

import json as json_format
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from tbc.cli.live import Watcher, printable
from tbc.contract import ROOT
from tbc.errors import StoreError
from tbc.runs import events as ev

if TYPE_CHECKING:
    from tbc.decision import Decision
    from tbc.manager import BudgetManager
    from tbc.runs.engine import Outcome, WorkflowRun

__all__ = ["EXHAUSTED", "resume", "run"]

#: The exit code that means "the budget is exhausted", and nothing else.
EXHAUSTED = 3
_STORE_FAILED = 4
_CODES = {"finished": 0, "failed": 1, "exhausted": EXHAUSTED, "interrupted": 130}
_Flag = Annotated[bool, Parameter(negative="")]


def run(
    file: Path,
    /,
    *,
    mode: Literal["audit", "enforce"] | None = None,
    name: str | None = None,
    folder: Path = Path(".tbc"),
    jobs: int = 8,
    events: Path | None = None,
    json: _Flag = False,
    quiet: _Flag = False,
) -> int:
    """Run a workflow file under its budget. The file is trusted like code: its functions are called.

    Exit codes: 0, it has come to its end (in audit mode whatever it spent); 1, a step failed; 2, the file or
    the request has problems; 3, the budget is exhausted; 4, the store could not be written to; 130,
    interrupted. Whatever stops it, what was paid for is kept, and `tbc resume` goes on.

    Parameters
    ----------
    file
        The workflow file, YAML or TOML (docs/workflows.md lists the keys).
    mode
        Instead of the file's `budget_mode`.
    name
        What the run is called. Default: the workflow's name, the time, and a few characters.
    folder
        Where runs are kept.
    jobs
        How many calls may run at once.
    events
        Also write every event to this file, as a line of JSON each.
    json
        Print the results as JSON, and nothing else, to standard output.
    quiet
        Show no progress.
    """
    from tbc.runs.config import load_workflow
    from tbc.runs.history import open_store, start

    workflow = load_workflow(file)
    store = open_store(folder, create=True)
    return _do(
        lambda listen: start(workflow, store, run=name, mode=mode, listen=listen, jobs=jobs),
        store,
        events=events,
        json=json,
        quiet=quiet,
    )


def resume(
    run: str = "last",
    /,
    *,
    add_usd: str | None = None,
    add_tokens: int = 0,
    accept_changes: _Flag = False,
    folder: Path = Path(".tbc"),
    jobs: int = 8,
    events: Path | None = None,
    json: _Flag = False,
    quiet: _Flag = False,
) -> int:
    """Go on with a run where it stopped. What was paid for is not paid for again; exit codes as of `tbc run`.

    Parameters
    ----------
    run
        Its name, or the beginning of it; "last" is the newest.
    add_usd
        Dollars to add to its budget, such as 0.50.
    add_tokens
        Tokens to add to its budget.
    accept_changes
        The workflow file has changed: do the changed steps again, and what depends on them.
    folder
        Where runs are kept.
    jobs
        How many calls may run at once.
    events
        Also write every event to this file, as a line of JSON each.
    json
        Print the results as JSON, and nothing else, to standard output.
    quiet
        Show no progress.
    """
    from tbc.runs import history

    store = history.open_store(folder)
    return _do(
        lambda listen: history.resume(
            store,
            run,
            add_usd=add_usd,
            add_tokens=add_tokens,
            accept_changes=accept_changes,
            listen=listen,
            jobs=jobs,
        ),
        store,
        events=events,
        json=json,
        quiet=quiet,
    )


def _do(
    begin: Callable[[Callable[[ev.RunEvent], None]], AbstractContextManager[WorkflowRun]],
    store: Any,
    *,
    events: Path | None,
    json: bool,
    quiet: bool,
) -> int:
    console = Console(file=sys.stderr if json else sys.stdout)
    watcher = Watcher(console, quiet=quiet)
    with ExitStack() as stack:
        stack.enter_context(store)
        lines: TextIO | None = None
        if events is not None:
            events.parent.mkdir(parents=True, exist_ok=True)
            lines = stack.enter_context(events.open("a", encoding="utf-8"))
        current: list[WorkflowRun] = []

        def listen(event: ev.RunEvent) -> None:
            if lines is not None:
                ours = current[0]
                at = ours.manager.ledger.wall(ours.manager.now())
                lines.write(ev.json_line(ours.row.run, at, event) + "\n")
                lines.flush()
            watcher.hear(event)

        begun = stack.enter_context(begin(listen))
        current.append(begun)
        watcher.watch(begun.manager)
        if _counts_by_estimate(begun.manager) and not quiet:
            console.print("Tokens are estimated (within 25 %): the vocabulary is not in tiktoken's cache.")
        try:
            with watcher:
                outcome = begun.execute()
        except StoreError as error:
            print(f"tbc: {error} Then:  tbc resume {begun.row.run}", file=sys.stderr)
            return _STORE_FAILED
        _say(outcome, begun, console, json=json, quiet=quiet)
    return _STORE_FAILED if isinstance(outcome.error, StoreError) else _CODES[outcome.state]


def _how_to_go_on(run: str, refused: Decision) -> str:
    """Return what to do about a budget that is exhausted: the run's own, or that of an agent."""
    options = {"usd": "--add-usd AMOUNT", "tokens": "--add-tokens AMOUNT"}
    if refused.top == ROOT and refused.axis in options:
        return f"Go on with more budget:  tbc resume {run} {options[refused.axis]}"
    whose = f"max_{refused.axis} of {refused.top!r}"
    return f"Raise {whose} in the workflow file, then go on:  tbc resume {run}"


def _counts_by_estimate(manager: BudgetManager) -> bool:
    """Return whether tokens are estimated, said here and not as a warning."""
    from tbc.tokens import EstimatedTokensWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimatedTokensWarning)
        return manager.counter.estimated


def _say(outcome: Outcome, begun: WorkflowRun, console: Console, *, json: bool, quiet: bool) -> None:
    from tbc.runs.bill import make_bill, money

    if json:
        found = {
            "run": outcome.run,
            "state": outcome.state,
            "results": outcome.results,
            "partial": {
                step: {str(place): result for place, result in items.items()}
                for step, items in outcome.partial.items()
            },
            "would_refuse": [
                {"step": step, "axis": decision.axis, "reason": decision.reason}
                for step, decision in outcome.would_refuse
            ],
            "error": None if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}",
        }
        print(json_format.dumps(found, indent=2))
        return
    bill = make_bill(begun.row, begun.lines(), ())

    def say(text: str) -> None:
        console.print(Text(printable(text)), soft_wrap=True)

    if not quiet:
        say("")
    for step in begun.workflow.steps:
        if step.id in outcome.results and not any(step.id in other.needs for other in begun.workflow.steps):
            result = outcome.results[step.id]
            text = result if isinstance(result, str) else json_format.dumps(result, ensure_ascii=False)
            say(f"{step.id}: {text}")
    for step_id, items in outcome.partial.items():
        say(f"{step_id}: {len(items)} items finished and kept")
    if outcome.would_refuse:
        say(f"Enforcement would have refused {len(outcome.would_refuse)} calls:")
        for name, decision in outcome.would_refuse:
            say(f"  {name}: {decision.reason}")
    say(f"{outcome.run}: {outcome.state}, spent {money(bill.total)}, {bill.total.tokens:,} tokens")
    if outcome.refused is not None:
        say(_how_to_go_on(outcome.run, outcome.refused))
    elif outcome.state != "finished":
        say(f"{outcome.error}")
        say(f"Go on:  tbc resume {outcome.run}")
