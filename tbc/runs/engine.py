"""The run of a workflow: steps in the order of what they need, each call governed, everything paid for kept.

One thread decides and takes the holds, in the order of the file; calls run in threads of their own. Before a
call is made, its hold and the step are on the disk; after it, in one transaction, what it cost and its
result. So a process that dies at any moment has paid for nothing that is not in the journal: what was in
flight is booked with its whole hold, as an estimate, and asked for again by `resume`.

A call must fit in full: nothing is cut short. One that only fits when calls in flight have ended waits for
them. In ``enforce`` mode one that cannot fit ends the run; in ``audit`` mode it is made all the same, and
noted, by the same decision.
"""

from __future__ import annotations

import graphlib
import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Literal

import attrs

from tbc.axes import MAX_AMOUNT, format_amount
from tbc.contract import check_amount
from tbc.decision import Decision, Kind, Settlement, Status
from tbc.desk import UNKNOWN_PRICE
from tbc.errors import BudgetExceededError, GateClosedError, StoreError, UnknownPriceError
from tbc.events import Booked, Event, ThresholdReached
from tbc.govern import Call
from tbc.keeper import Keeper
from tbc.manager import BudgetManager
from tbc.pool import has_reached
from tbc.runs import events as ev
from tbc.runs.calls import StepFunction, confidence_of, fetch, find_functions, result_of
from tbc.runs.references import render
from tbc.runs.workflow import Step, Workflow
from tbc.stores.rows import LineRow, RunRow, StepRow

if TYPE_CHECKING:
    pass

__all__ = ["Outcome", "Task", "WorkflowRun"]

State = Literal["finished", "exhausted", "failed", "interrupted"]

#: Holds of a run do not end by themselves while its process lives: who resumes it ends them.
_EXPIRES_S = 1e9
_MOVES = frozenset({Kind.LOAN, Kind.DRAW, Kind.HAND_DOWN, Kind.RETURN, Kind.COVER, Kind.REBALANCE})
_WAIT = object()


@attrs.frozen
class Outcome:
    """How a run ended.

    Attributes
    ----------
    run : str
        Which.
    state : {"finished", "exhausted", "failed", "interrupted"}
        ``"exhausted"`` says that the budget refused a call, and nothing else.
    results : dict of str to object
        Results of all finished steps, by id.
    partial : dict of str to dict
        Of ``for_each`` steps that did not finish: the results of the items that did, by position.
    would_refuse : tuple of (str, Decision)
        Audit mode: the calls that enforcement would have refused, in order. The first is exactly
        enforcement's first refusal; later ones are judged on the books as they then were.
    refused : Decision or None
        What ended an exhausted run.
    error : BaseException or None
        What ended a failed run, or the refusal.
    """

    run: str
    state: State
    results: dict[str, Any]
    partial: dict[str, dict[int, Any]]
    would_refuse: tuple[tuple[str, Decision], ...] = ()
    refused: Decision | None = None
    error: BaseException | None = None

    def result(self) -> dict[str, Any]:
        """Return the results, or raise what ended the run; the error carries this outcome as `.result`."""
        if self.error is None:
            return self.results
        self.error.result = self  # type: ignore[attr-defined]  # any exception takes one
        raise self.error


@attrs.frozen
class Task:
    """One call to be made: a step, or one item of a ``for_each`` step."""

    step: Step
    position: int | None = None
    item: Any = attrs.field(default=None, eq=False)

    @property
    def name(self) -> str:
        """``"read"``, or ``"read[3]"``: the operation on the bill."""
        return self.step.id if self.position is None else f"{self.step.id}[{self.position}]"

    @property
    def key(self) -> tuple[str, str]:
        """The key of its row in the store."""
        return self.step.id, "" if self.position is None else str(self.position)


class WorkflowRun:
    """One run, in this process. `tbc.runs.history.start` and `resume` make it.

    Parameters
    ----------
    row : RunRow
        What the store knows of the run.
    workflow : Workflow
        What to do.
    manager : BudgetManager
        The books, with the workflow's agents.
    keeper : Keeper
        Keeps them.
    done : dict
        Rows of the steps that have been begun, by `Task.key`.
    listen : callable, optional
        Told of every event after it has been written. If it raises, it is told nothing more, and the run
        goes on.
    jobs : int, default 8
        How many calls may run at once.
    """

    def __init__(
        self,
        row: RunRow,
        workflow: Workflow,
        manager: BudgetManager,
        keeper: Keeper,
        *,
        done: dict[tuple[str, str], StepRow] | None = None,
        listen: Callable[[ev.RunEvent], object] | None = None,
        jobs: int = 8,
    ) -> None:
        self.row = row
        self.workflow = workflow
        self.manager = manager
        self._keeper = keeper
        self._rows = dict(done or {})
        self._listen = listen
        self._jobs = check_amount("jobs", jobs, least=1)
        self._functions: dict[str, StepFunction] = {}
        self._results: dict[str, Any] = {}
        self._partial: dict[str, dict[int, Any]] = {}
        self._expected: dict[str, int] = {}  # open items of a step
        self._waiting: list[Task] = []
        self._running: dict[Future[None], Task] = {}
        self._news: deque[ev.RunEvent] = deque()  # not yet written
        self._unwritten: dict[tuple[str, str], StepRow] = {}
        self._would_refuse: list[tuple[str, Decision]] = []
        self._failure: BaseException | None = None
        self._state: State | None = None
        self._exceeded: dict[str, int] = {}
        self._interrupts = 0
        self._deaf = False  # whether the listener has failed

    # -- the run -------------------------------------------------------------------------------------------

    def execute(self) -> Outcome:
        """Do what is left to do, and return how it ended: a refusal or failure is told, not raised."""
        unsubscribe = self.manager.subscribe(self._hear)
        try:
            self._functions = find_functions(self.workflow)
            # What is to be done again is so from now on, whatever happens to this process.
            self._write(*(row for row in self._rows.values() if row.state != "done"), state="running")
            graph = graphlib.TopologicalSorter({step.id: set(step.needs) for step in self.workflow.steps})
            graph.prepare()
            with ThreadPoolExecutor(self._jobs, thread_name_prefix="tbc-run") as pool:
                try:
                    self._run(graph, pool)
                except KeyboardInterrupt as error:
                    self._interrupts += 1
                    self._stop("interrupted", error)
                while self._running:
                    self._collect(graph)
            return self._end()
        finally:
            unsubscribe()

    def _run(self, graph: graphlib.TopologicalSorter[str], pool: ThreadPoolExecutor) -> None:
        while True:
            while ready := graph.get_ready():
                order = {step.id: place for place, step in enumerate(self.workflow.steps)}
                for step_id in sorted(ready, key=order.__getitem__):
                    self._open(self.workflow.step(step_id), graph)
            self._dispatch(pool, graph)
            if not self._running:
                if self._state is None and (self._waiting or graph.is_active()):
                    continue
                return
            self._collect(graph)

    def _open(self, step: Step, graph: graphlib.TopologicalSorter[str]) -> None:
        """Make the tasks of a step whose needs are met; what has been done before is not done again."""
        if self._state is not None:
            return
        try:
            tasks = self._tasks(step)
        except Exception as error:
            self._stop("failed", error)
            return
        self._expected[step.id] = len(tasks)
        if step.for_each is not None:
            self._partial[step.id] = {}
        for task in tasks:
            row = self._rows.get(task.key)
            if row is not None and row.state == "done":
                self._take_result(task, json.loads(row.result or "null"), graph)
            else:
                self._waiting.append(task)
        if not tasks:
            self._results[step.id] = []
            self._partial.pop(step.id, None)
            graph.done(step.id)

    def _tasks(self, step: Step) -> list[Task]:
        if step.for_each is None:
            return [Task(step)]
        items = render(step.for_each, self._results)
        if not isinstance(items, list):
            raise TypeError(f"for_each of step {step.id!r} must be a list, not {type(items).__name__}")
        return [Task(step, position, item) for position, item in enumerate(items)]

    def _dispatch(self, pool: ThreadPoolExecutor, graph: graphlib.TopologicalSorter[str]) -> None:
        """Take holds for what is waiting, in order, and let the calls run."""
        busy: set[str] = set()
        for task in list(self._waiting):
            if self._state is not None or len(self._running) >= self._jobs:
                return
            if task.step.agent in busy:  # in the order of the file: nobody is overtaken by a smaller call
                continue
            try:
                taken = self._take(task)
            except GateClosedError:
                self._waiting.remove(task)
                self.news(ev.StepSkipped(task.name, task.step.agent))
                self._keep_row(task, "done", result=None)
                self._take_result(task, None, graph)
                continue
            except BudgetExceededError as error:
                self._exhaust(task, error)
                return
            except Exception as error:
                self.news(ev.StepFailed(task.name, _in_words(error), {}))
                self._stop("failed", error)
                return
            if taken is _WAIT:
                busy.add(task.step.agent)
                continue
            self._waiting.remove(task)
            call, model = taken
            self._begin(task, call, model, pool)

    def _begin(self, task: Task, call: Call, model: str | None, pool: ThreadPoolExecutor) -> None:
        """Write down that a call is about to be made, and make it."""
        hold = call.hold
        held: dict[str, int] = {part.books.axis: part.amount for part in (hold, *hold.others)}
        future: Future[None] | None = None
        try:
            self.news(ev.StepStarted(task.name, task.step.agent, model, held))
            self._keep_row(task, "running", attempt=True)
            future = pool.submit(self._call, task, call, model)
            self._running[future] = task
        except BaseException:
            if future is None:  # Ctrl-C, or a store that is full: nothing was sent
                hold.void()
                row = self._rows.get(task.key) or StepRow(*task.key, operation=task.name)
                self._rows[task.key] = row._replace(state="pending")
            raise

    # -- one call ------------------------------------------------------------------------------------------

    def _take(self, task: Task) -> Any:
        """Return the call with its hold, or `_WAIT` if it fits only when others have ended.

        Raises
        ------
        BudgetExceededError
            It cannot fit, with its own model or with the fallback.
        """
        step = task.step
        value = render(step.input, self._results, task.item)
        models: list[tuple[str | None, str]] = [(step.model, "")]
        if step.fallback_model is not None:
            reached = self._reached(step)
            if reached:
                models = [(step.fallback_model, reached)]
            else:
                models.append((step.fallback_model, "short"))
        refused: Exception | None = None
        first: Decision | None = None
        for model, reason in models:
            last = (model, reason) == models[-1]
            try:
                call, decision, error = self._ask(task, value, model)
            except UnknownPriceError as unknown:
                if last:
                    raise (refused or unknown) from None
                refused = refused or unknown
                continue
            first = first or (decision if decision is not None and _refuses(decision) else None)
            if decision is None or not _refuses(decision):
                assert call is not None, "what is not refused is granted"
                if reason:
                    self._take_note(task, call, model, reason)
                return call, model
            if decision.status is Status.GATE_CLOSED:
                if call is not None:
                    call.hold.void()
                raise GateClosedError(step.agent, decision.requested, 0, decision)
            if decision.status is Status.BUSY and self._running:
                if call is not None:
                    call.hold.void()
                return _WAIT
            if not last:
                if call is not None:
                    call.hold.void()
                refused = refused or error
                continue
            if error is not None:
                raise refused or error
            assert call is not None and first is not None, "audit mode refuses nothing"
            self._would_refuse.append((task.name, first))
            self.news(
                ev.WouldRefuse(task.name, first.axis, first.requested, first.available or 0, first.reason)
            )
            return call, model
        raise AssertionError("there is a last model")

    def _ask(
        self, task: Task, value: object, model: str | None
    ) -> tuple[Call | None, Decision | None, BudgetExceededError | None]:
        function = self._functions[task.step.call]
        governor: Any = self.manager.govern(
            task.step.agent,
            confidence_of,
            max_output_tokens=task.step.max_output_tokens,
            cap_kwarg="max_output_tokens" if function.takes_cap else None,
            min_output_tokens=MAX_AMOUNT,
            on_overrun="record",
            expires_s=_EXPIRES_S,
            model=model,
        )
        try:
            call: Call = governor.prepare(function.bind(task.name, model))((value,), {})
        except BudgetExceededError as error:
            if error.decision is None:
                raise
            return None, error.decision, error
        return call, call.hold.decision, None

    def _reached(self, step: Step) -> str:
        """Return in words how much is used, if that is when the fallback is to be taken."""
        part = step.fallback_when
        if part is None or part == "short":
            return ""
        for axis, (used, granted) in self.manager.used().items():
            if has_reached(float(part), used, granted):
                return f"{format_amount(axis, used)} of {format_amount(axis, granted)} used, from {part} on"
        return ""

    def _take_note(self, task: Task, call: Call, model: str | None, reason: str) -> None:
        """Say on the decision and in an event that the fallback was taken."""
        words = f"{task.step.model} does not fit" if reason == "short" else reason
        note = f"Fallback model {model} was taken instead of {task.step.model}: {words}."
        hold = call.hold
        decision = hold.decision or self.manager.decide(task.step.agent, 0, calls=0)
        hold.decision = attrs.evolve(decision, note=note)
        self.news(ev.FallbackTaken(task.name, task.step.model, str(model), words))

    def _call(self, task: Task, call: Call, model: str | None) -> None:
        """Make the call, in a thread of its own, and write down what came of it."""
        try:
            reply, streamed = fetch(call)
            with self._keeper.alone():  # what it cost and its result are kept together, or not at all
                if streamed:
                    call.finish_stream()
                else:
                    call.finish(reply)
                self._keep_result(task, call, model, result_of(task.name, reply))
        except StoreError:  # the call is paid for: its row stays to be written, with the next that is
            raise
        except BaseException as error:
            with self._keeper.alone():
                if call.hold.state == "open":
                    call.hold.settle(estimated=True)
                said = _in_words(error)
                self.news(ev.StepFailed(task.name, said, _spent(call)))
                self._check_exceeded(task)
                self._keep_row(task, "failed", error=said)
            raise

    def _keep_result(self, task: Task, call: Call, model: str | None, result: object) -> None:
        settlement = call.hold.settlement
        assert settlement is not None, "a call that has returned is settled"
        unpriced = sum(booking.unpriced for booking in settlement.others)
        self.news(
            ev.StepFinished(
                task.name, task.step.agent, model, _spent(call), _is_estimated(settlement), unpriced
            )
        )
        self._check_exceeded(task)
        self._keep_row(task, "done", result=result)

    # -- what came of it -----------------------------------------------------------------------------------

    def _collect(self, graph: graphlib.TopologicalSorter[str]) -> None:
        """Wait until a call has ended, and take its result."""
        try:
            ended, _ = wait(self._running, return_when=FIRST_COMPLETED)
        except KeyboardInterrupt as error:
            self._interrupts += 1
            if self._interrupts > 1:
                raise
            self._stop("interrupted", error)
            return
        for future in ended:
            task = self._running.pop(future)
            raised = future.exception()
            if raised is not None:
                self._stop("failed", raised)
            else:
                self._take_result(task, json.loads(self._rows[task.key].result or "null"), graph)

    def _take_result(self, task: Task, result: Any, graph: graphlib.TopologicalSorter[str]) -> None:
        step_id = task.step.id
        self._expected[step_id] -= 1
        if task.position is None:
            self._results[step_id] = result
        else:
            self._partial[step_id][task.position] = result
            if not self._expected[step_id]:
                items = self._partial.pop(step_id)
                self._results[step_id] = [items[position] for position in sorted(items)]
        if not self._expected[step_id]:
            graph.done(step_id)

    def _stop(self, state: State, error: BaseException) -> None:
        """Begin nothing more; what is in flight ends first. The first reason counts."""
        if self._state is None:
            self._state, self._failure = state, error

    def _exhaust(self, task: Task, error: BudgetExceededError) -> None:
        decision = error.decision
        assert decision is not None, "a refused hold has a decision"
        spent, budget = self.manager.used().get(decision.axis, (0, None))
        self.news(
            ev.BudgetExhausted(
                task.name,
                task.step.agent,
                decision.axis,
                decision.requested,
                decision.available or 0,
                spent,
                budget,
                decision.reason,
            )
        )
        self._stop("exhausted", error)

    def _end(self) -> Outcome:
        state: State = self._state or "finished"
        error = self._failure
        done, steps = len(self._results), len(self.workflow.steps)
        if error is None:
            self.news(ev.RunFinished(done))
        else:
            self.news(ev.WorkflowFailed(state, _in_words(error)))
        self.news(ev.CheckpointSaved(self._keeper.path, done, steps - done))
        pending = (row for row in self._rows.values() if row.state == "pending")
        self._write(*pending, state=state, exit_reason=None if error is None else _in_words(error))
        return Outcome(
            self.row.run,
            state,
            dict(self._results),
            {step: dict(items) for step, items in self._partial.items() if items},
            tuple(self._would_refuse),
            error.decision if isinstance(error, BudgetExceededError) else None,
            error,
        )

    # -- writing and telling -------------------------------------------------------------------------------

    def lines(self) -> list[LineRow]:
        """Return the journal of the run, all of it."""
        return self._keeper.lines()

    def news(self, *events: ev.RunEvent) -> None:
        """Have events written, and told, with what is written next."""
        self._news.extend(events)

    def _hear(self, event: Event) -> None:
        """Take in what the manager tells: warnings to be kept, transfers to be shown."""
        if isinstance(event, ThresholdReached):
            self.news(ev.BudgetWarning(event.axis, event.threshold, event.used, event.remaining))
        elif isinstance(event, Booked) and event.entry.peer is not None and event.entry.kind in _MOVES:
            self._tell(ev.Moved(event.entry))

    def _check_exceeded(self, task: Task) -> None:
        for axis, (spent, budget) in self.manager.used().items():
            last = self._exceeded.get(axis)
            if spent > budget and (last is None or spent >= last + max(1, budget)):
                self._exceeded[axis] = spent
                self.news(ev.BudgetExceeded(axis, budget, spent, task.name))

    def remember_exceeded(self, axis: str, spent: int) -> None:
        """Take over what an earlier process has told."""
        self._exceeded[axis] = spent

    def _keep_row(
        self, task: Task, state: str, *, result: Any = None, error: str | None = None, attempt: bool = False
    ) -> None:
        now = self._wall()
        old = self._rows.get(task.key) or StepRow(*task.key, operation=task.name)
        row = old._replace(
            state=state,
            attempt=old.attempt + attempt,
            result=json.dumps(result) if state == "done" else None,
            fingerprint=task.step.fingerprint,
            started_at=now if attempt else old.started_at,
            ended_at=None if attempt else now,
            error=error,
        )
        self._rows[task.key] = row
        self._write(row)

    def _write(self, *rows: StepRow, state: str | None = None, exit_reason: str | None = None) -> None:
        """Write the books, these rows and all news in one transaction, and then tell the news.

        What cannot be written now, as others keep the store busy or the disk is full, is written next time.
        """
        now = self._wall()
        if state is not None:
            self.row = self.row._replace(state=state, exit_reason=exit_reason, updated_at=now)
        told: list[ev.RunEvent] = []
        with self._keeper.alone():
            self._unwritten.update({(row.step, row.item): row for row in rows})
            try:
                with self._keeper.keep() as writer:
                    writer.put_run(self.row._replace(updated_at=now))
                    writer.put_steps(self.row.run, self._unwritten.values())
                    while self._news:
                        told.append(self._news.popleft())
                        writer.put_event(self.row.run, now, told[-1].kind, told[-1].as_json())
            except BaseException:
                self._news.extendleft(reversed(told))
                raise
            self._unwritten.clear()
        for event in told:
            self._tell(event)

    def _tell(self, event: ev.RunEvent) -> None:
        if self._listen is None or self._deaf:
            return
        try:
            self._listen(event)
        except (Exception, SystemExit) as error:  # SystemExit: what shows a run may end on a broken pipe
            import logging

            self._deaf = True
            logging.getLogger("tbc").warning("the run is told to nobody from here on: %r", error)

    def _wall(self) -> float:
        return self.manager.ledger.wall(self.manager.now())


def _refuses(decision: Decision) -> bool:
    """Return whether enforcement refuses: by the budget, or (in audit mode, noted) for an unknown price."""
    return decision.status.refuses or decision.note.startswith(UNKNOWN_PRICE)


def _in_words(error: BaseException | None) -> str:
    text = f"{type(error).__name__}: {error}"
    return text.encode("utf-8", "backslashreplace").decode()


def _spent(call: Call) -> dict[str, int]:
    settlement = call.hold.settlement
    if settlement is None:
        return {}
    return {"tokens": settlement.tokens} | {each.axis: each.amount for each in settlement.others}


def _is_estimated(settlement: Settlement) -> bool:
    return settlement.estimated or any(each.estimated for each in settlement.others)
