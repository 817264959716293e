"""Runs begun, found again and gone on with. They are kept in one file, with the journals of their budgets."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbc.axes import USD
from tbc.clock import Clock
from tbc.contract import ROOT
from tbc.keeper import Keeper
from tbc.manager import BudgetManager
from tbc.run_errors import RunBusyError, RunError, UnknownRunError, WorkflowChangedError
from tbc.runs import events as ev
from tbc.runs.config import load_workflow, parse_workflow
from tbc.runs.engine import WorkflowRun
from tbc.runs.workflow import Step, Workflow, changed_steps, downstream
from tbc.stores.rows import RunRow, StepRow

if TYPE_CHECKING:
    from tbc.stores.sqlite import SqliteStore
    from tbc.tokens import Counter

__all__ = ["FOLDER", "find_run", "open_store", "resume", "start"]

#: Where runs are kept if nobody says otherwise.
FOLDER = Path(".tbc")
_FILE = "runs.db"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def open_store(folder: Path = FOLDER, *, create: bool = False) -> SqliteStore:
    """Open the file that keeps the runs of a folder."""
    from tbc.stores.sqlite import SqliteStore

    return SqliteStore(folder / _FILE, create=create)


def find_run(store: SqliteStore, run: str) -> RunRow:
    """Return a run by its name, or by the beginning of it if only one begins so; ``"last"`` is the newest.

    Raises
    ------
    UnknownRunError
        If there is none, or more than one.
    """
    rows = store.runs()
    if run == "last" and rows:
        return rows[-1]
    found = [row for row in rows if row.run == run] or [row for row in rows if row.run.startswith(run)]
    if len(found) == 1:
        return found[0]
    names = [row.run for row in (found or rows)[-5:]]
    known = f"the last ones are {', '.join(names)}" if names else "there are none yet"
    reason = "more than one run begins so" if found else "there is no such run"
    raise UnknownRunError(run, f"{reason} in {store.path}; {known}")


@contextmanager
def start(
    workflow: Workflow,
    store: SqliteStore,
    *,
    run: str | None = None,
    mode: str | None = None,
    clock: Clock | None = None,
    counter: Counter | None = None,
    listen: Callable[[ev.RunEvent], object] | None = None,
    jobs: int = 8,
) -> Generator[WorkflowRun]:
    """Begin a run: yields it, ready for `WorkflowRun.execute`.

    Parameters
    ----------
    workflow : Workflow
        What to do.
    store : SqliteStore
        Where everything is kept.
    run : str, optional
        Its name: letters, digits, ``.``, ``_`` and ``-``. Default: the workflow's, the time and a few random
        characters.
    mode : {"audit", "enforce"}, optional
        Instead of the file's.
    clock, counter : optional
        As `BudgetManager` takes them.
    listen, jobs
        As `WorkflowRun` takes them.

    Raises
    ------
    RunError
        If there is a run of that name.
    CarveOutError
        If the agents' caps do not fit into the budget.
    """
    limits = workflow.limits
    chosen: Any = mode or limits.budget_mode
    manager = _manager(
        workflow,
        chosen,
        clock,
        counter,
        max_usd=limits.budget_usd,
        max_tokens=limits.budget_tokens,
        warn_at=[float(part) for part in limits.warn_at],
    )
    now = manager.ledger.wall(manager.now())
    name = _new_name(workflow, now) if run is None else _check_name(run)
    if store.run(name) is not None:
        raise RunError(name, "there is a run of that name; resume it, or choose another name")
    _register(manager, workflow)
    kept = {
        "budget_usd": None if limits.budget_usd is None else str(limits.budget_usd),
        "budget_tokens": limits.budget_tokens,
        "warn_at": [str(part) for part in limits.warn_at],
    }
    row = RunRow(
        name,
        f"runs/{name}",
        workflow.name,
        "running",
        chosen,
        now,
        now,
        os.path.abspath(workflow.path),
        workflow.source,
        json.dumps(workflow.fingerprints),
        json.dumps(kept),
    )
    with _alone(store, name):
        begun = WorkflowRun(
            row, workflow, manager, Keeper(manager, store, row.pool), listen=listen, jobs=jobs
        )
        begun.news(ev.RunStarted(workflow.name, chosen))
        yield begun


@contextmanager
def resume(
    store: SqliteStore,
    run: str,
    *,
    add_usd: Any = None,
    add_tokens: int = 0,
    accept_changes: bool = False,
    clock: Clock | None = None,
    counter: Counter | None = None,
    listen: Callable[[ev.RunEvent], object] | None = None,
    jobs: int = 8,
) -> Generator[WorkflowRun]:
    """Go on with a run where it stopped, whatever stopped it; yields it, ready for `WorkflowRun.execute`.

    What was paid for is not asked for again. Calls that were in flight when the process died are booked with
    their whole holds, as estimates, and asked for again. The budget is the one the run began with, and what
    was added since, whatever the file says now.

    Parameters
    ----------
    store : SqliteStore
        Where the run is kept.
    run : str
        Its name, as `find_run` takes it.
    add_usd : Decimal, str, int or float, optional
        Dollars to add to its budget, by an entry of the journal.
    add_tokens : int, default 0
        Tokens to add.
    accept_changes : bool, default False
        Whether steps that have changed in the file, and what depends on them, are done again.
    clock, counter, listen, jobs
        As for `start`.

    Raises
    ------
    UnknownRunError, RunBusyError
        No such run; or another process is at work on it.
    WorkflowChangedError
        The file has changed, and not `accept_changes`.
    """
    row = find_run(store, run)
    with _alone(store, row.run):
        row = find_run(store, row.run)
        workflow = _workflow_of(row)
        changed = changed_steps(json.loads(row.fingerprints), workflow)
        if changed and not accept_changes:
            raise WorkflowChangedError(row.run, changed)
        limits = json.loads(row.limits)
        state = store.load_pool(row.pool)
        if state is None:
            raise RunError(row.run, f"its books are not in {store.path}")
        mode: Any = row.mode
        manager = _manager(
            workflow, mode, clock, counter, warn_at=[float(part) for part in limits["warn_at"]]
        )
        keeper = Keeper(manager, store, row.pool)
        holds = keeper.restore(state)
        manager.new_thresholds()  # these have been told
        news: list[ev.RunEvent] = []
        for hold in holds:
            settlement = hold.settle(estimated=True)
            spent = {"tokens": settlement.tokens} | {each.axis: each.amount for each in settlement.others}
            news.append(ev.StepInterrupted(hold.operation or "", spent))
        again = set(downstream(workflow, changed))
        rows: dict[tuple[str, str], StepRow] = {}
        for step in store.steps(row.run):
            done = step.state == "done" and step.step not in again
            rows[step.step, step.item] = step if done else step._replace(state="pending", result=None)
        if add_usd is not None or add_tokens:
            news += _top_up(manager, row.run, add_usd, add_tokens)
        _register(manager, workflow)
        row = row._replace(
            path=os.path.abspath(workflow.path),
            source=workflow.source,
            fingerprints=json.dumps(workflow.fingerprints),
        )
        begun = WorkflowRun(row, workflow, manager, keeper, done=rows, listen=listen, jobs=jobs)
        for event in store.events(row.run):
            if event.kind == ev.BudgetExceeded.kind:
                told = json.loads(event.body)
                begun.remember_exceeded(told["axis"], told["spent"])
        open_again = [step.id for step in workflow.steps if _is_open(step, workflow, rows)]
        begun.news(ev.RunResumed(sum(each.state == "done" for each in rows.values()), open_again), *news)
        yield begun


def _is_open(step: Step, workflow: Workflow, rows: dict[tuple[str, str], StepRow]) -> bool:
    """Return whether a step is to be gone on with, as far as that is known before it is."""
    mine = [row for (name, _), row in rows.items() if name == step.id]
    if not mine or any(row.state != "done" for row in mine):
        return True
    if step.for_each is None:
        return False
    # How many items there are is not kept; that they are all done shows in who needed them.
    needing = {other.id for other in workflow.steps if step.id in other.needs}
    return bool(needing) and not any(name in needing for name, _ in rows)


def _manager(
    workflow: Workflow, mode: Any, clock: Clock | None, counter: Counter | None, **caps: Any
) -> BudgetManager:
    return BudgetManager(
        mode=mode,
        clock=clock,
        counter=counter,
        prices=workflow.prices or None,
        unknown_price=workflow.unknown_price,
        **caps,
    )


def _register(manager: BudgetManager, workflow: Workflow) -> None:
    """Register the agents of the file, parents first, or give them the terms that the file now says."""
    for name in _parents_first(workflow):
        agent = workflow.agents[name]
        terms = agent.contract(name).terms
        manager.register_agent(name, parent=agent.parent, replace=name in manager.contracts, **terms)


def _parents_first(workflow: Workflow) -> Iterator[str]:
    done: set[str | None] = {None}
    while len(done) <= len(workflow.agents):
        for name, agent in workflow.agents.items():
            if name not in done and agent.parent in done:
                done.add(name)
                yield name


def _top_up(manager: BudgetManager, run: str, usd: Any, tokens: int) -> list[ev.RunEvent]:
    before = manager.used()
    for axis, asked in ((USD, usd is not None), ("tokens", bool(tokens))):
        if asked and axis not in before:
            raise RunError(run, f"it has no budget in {axis}: there is nothing to add to")
    manager.top_up(ROOT, tokens, usd=usd)
    after = manager.used()
    return [
        ev.ToppedUp(axis, granted - before[axis][1])
        for axis, (_, granted) in after.items()
        if granted != before[axis][1]
    ]


def _workflow_of(row: RunRow) -> Workflow:
    """Return the workflow as its file says it now; as it was, if the file is gone."""
    if row.path is not None and os.path.exists(row.path):
        return load_workflow(row.path)
    return parse_workflow(row.source, row.path or f"{row.workflow}.yaml")


def _check_name(run: str) -> str:
    if not _NAME.fullmatch(run):
        raise RunError(run, "a run is named by 1 to 80 letters, digits, '.', '_' and '-'")
    return run


def _new_name(workflow: Workflow, now: float) -> str:
    from datetime import UTC, datetime

    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", workflow.name).strip("-.")[:40] or "run"
    return f"{plain}-{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@contextmanager
def _alone(store: SqliteStore, run: str) -> Generator[None]:
    """Keep other processes of this machine away from a run; the lock goes with the process."""
    try:
        import fcntl
    except ImportError:  # where there is none, a second writer is still refused by the store
        yield
        return
    path = Path(store.path).with_name(f"{run}.lock")
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunBusyError(run, "another process is at work on it") from None
        yield
    finally:
        os.close(handle)
