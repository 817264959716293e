"""The record of a run, and the last of them: what clients are shown, newest first.

Records are in memory and belong to one process and one pool; what was spent is in the journal for good.
"""

from __future__ import annotations

import secrets
from typing import Final, Literal, TypedDict

import attrs

from tbc.errors import KeyConflictError
from tbc.run_errors import RunBusyError, UnknownRunError
from tbc.service.answers import DecisionAnswer
from tbc.service.problems import Problem
from tbc.wire import usd_string

__all__ = ["Run", "RunAnswer", "RunHistory", "RunSummary", "RunsAnswer", "StepAnswer", "StopAnswer"]

Status = Literal["running", "completed", "stopped", "failed"]
StopReason = Literal[
    "hard_stop", "refused", "budget", "latency", "visit_limit", "step_limit", "failed", "policy", "cancelled"
]

#: How many characters of output the record of a run keeps once it has been answered.
_OUTPUT: Final = 65_536


class StepProblem(TypedDict):
    """What kept a step from being done, beside the policy."""

    code: str
    message: str


class StepAnswer(TypedDict):
    """A step: what was chosen for it and why, what was set aside, and what it cost.

    `outcome`: it was done, the policy gave no tier, there was no budget, or it went wrong. `decision` and
    `cause` are the policy's. `next`: the node that came after it.
    """

    number: int
    step: str
    step_type: str
    visit: int
    outcome: Literal["done", "hard_stop", "refused", "failed"]
    model_tier: str
    model: str | None
    wanted_tier: str | None
    decision: str
    cause: str
    policy_version: str
    expected_cost: int
    expected_cost_usd: str
    expected_latency_ms: int
    hold_id: int | None
    cost: int
    cost_usd: str
    tokens: int
    estimated: bool
    overrun: bool
    latency_ms: int
    left: int | None
    left_usd: str | None
    problem: StepProblem | None
    refusal: DecisionAnswer | None
    output: str | None
    next: str | None


class StopAnswer(TypedDict):
    """Why a run ended before its graph did, and at which step."""

    reason: StopReason
    step: str
    cause: str
    message: str


class RunSummary(TypedDict):
    """A run in a list."""

    run_id: str
    status: Status
    agent_name: str
    started_at: float
    total_cost: int
    total_cost_usd: str
    total_latency_ms: int
    steps_done: int
    stop: StopAnswer | None


class RunAnswer(TypedDict):
    """A run. `budget`: what it was allowed; `saved`: how much dearer it would have been without limits."""

    run_id: str
    status: Status
    agent_name: str
    executor: str
    graph: str
    started_at: float
    budget: int | None
    budget_usd: str | None
    total_cost: int
    total_cost_usd: str
    total_tokens: int
    total_latency_ms: int
    saved: int
    saved_usd: str
    result: str | None
    outputs_kept: bool
    stop: StopAnswer | None
    steps: list[StepAnswer]


class RunsAnswer(TypedDict):
    """A page of the runs that are kept, newest first; `next` is what to ask for `after`, if there is more."""

    runs: list[RunSummary]
    next: str | None


@attrs.define(eq=False)
class Run:
    """A run under way, or ended.

    Attributes
    ----------
    number : int
        Which of its pool's, since the process began.
    run_id : str
        Its name, which nobody can guess.
    asked : str
        A hash of what was asked for, for repetitions of its key.
    """

    number: int
    run_id: str
    agent_name: str
    key: str | None
    asked: str
    graph: str
    executor: str
    started_at: float = 0.0
    status: Status = "running"
    budget: int | None = None
    spent: int = 0
    tokens: int = 0
    latency_ms: int = 0
    saved: int = 0
    result: str | None = None
    outputs_kept: bool = True
    stop: StopAnswer | None = None
    steps: list[StepAnswer] = attrs.field(factory=list)

    @property
    def left(self) -> int | None:
        """Nano-dollars that are left of its budget; negative in debt; ``None``: it has none."""
        return None if self.budget is None else self.budget - self.spent

    def end(self, status: Status, stop: StopAnswer | None) -> None:
        """Note how it ended."""
        self.status, self.stop = status, stop

    def as_object(self) -> RunAnswer:
        """Return all of it for the wire."""
        return {
            "run_id": self.run_id,
            "status": self.status,
            "agent_name": self.agent_name,
            "executor": self.executor,
            "graph": self.graph,
            "started_at": self.started_at,
            "budget": self.budget,
            "budget_usd": None if self.budget is None else usd_string(self.budget),
            "total_cost": self.spent,
            "total_cost_usd": usd_string(self.spent),
            "total_tokens": self.tokens,
            "total_latency_ms": self.latency_ms,
            "saved": self.saved,
            "saved_usd": usd_string(self.saved),
            "result": self.result,
            "outputs_kept": self.outputs_kept,
            "stop": self.stop,
            "steps": list(self.steps),
        }

    def summary(self) -> RunSummary:
        """Return it for a list."""
        return {
            "run_id": self.run_id,
            "status": self.status,
            "agent_name": self.agent_name,
            "started_at": self.started_at,
            "total_cost": self.spent,
            "total_cost_usd": usd_string(self.spent),
            "total_latency_ms": self.latency_ms,
            "steps_done": sum(step["outcome"] == "done" for step in self.steps),
            "stop": self.stop,
        }

    def slim(self) -> None:
        """Let go of what is too much to keep: outputs, if together they are longer than 65,536 characters."""
        size = len(self.result or "") + sum(len(step["output"] or "") for step in self.steps)
        if size > _OUTPUT:
            self.outputs_kept = False
            self.result = None
            self.steps = [{**step, "output": None} for step in self.steps]


class RunHistory:
    """The runs of one pool: those under way, and the last that ended."""

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}
        self._by_key: dict[str, Run] = {}
        self._open = 0
        self._last = 0

    def find(self, key: str | None, asked: str) -> Run | None:
        """Return the run that was begun under a key, if its record is kept.

        Raises
        ------
        KeyConflictError
            Something else was asked for under it.
        RunBusyError
            It has not ended.
        """
        run = None if key is None else self._by_key.get(key)
        if run is None:
            return None
        if run.asked != asked:
            raise KeyConflictError(run.key or "", ("run", run.run_id), ("another run",))
        if run.status == "running":
            raise RunBusyError(run.run_id, "it was begun under this key and has not ended")
        return run

    def begin(
        self, agent_name: str, key: str | None, asked: str, graph: str, executor: str, *, most: int
    ) -> Run:
        """Return a new run.

        Raises
        ------
        Problem
            `most` of them are under way.
        """
        if self._open >= most:
            raise Problem(
                429,
                "too_many_runs",
                f"{most} runs of this pool are under way.",
                "Wait until one has ended: nothing was done.",
                retryable=True,
                headers={"retry-after": "1"},
                details={"most": most},
            )
        self._last += 1
        self._open += 1
        run_id = f"run-{self._last}-{secrets.token_hex(4)}"
        run = Run(self._last, run_id, agent_name, key, asked, graph, executor)
        self._runs[run.number] = run
        if key is not None:
            self._by_key[key] = run
        return run

    def ended(self, run: Run, *, keep: int) -> None:
        """Keep a run that has ended, and forget the oldest beyond `keep` of them."""
        self._open -= 1
        run.slim()
        over = len(self._runs) - self._open - keep
        if over > 0:
            old = [each for each in self._runs.values() if each.status != "running"]
            for each in old[:over]:
                self._forget(each)

    def drop(self, run: Run) -> None:
        """Forget a run that never began: nothing was asked of the books."""
        self._open -= 1
        self._forget(run)

    def _forget(self, run: Run) -> None:
        del self._runs[run.number]
        if run.key is not None:
            self._by_key.pop(run.key, None)

    def get(self, run_id: str) -> Run:
        """Return a run by its name.

        Raises
        ------
        UnknownRunError
            There is none, or it is not kept any more.
        """
        run = self._runs.get(number_of(run_id))
        if run is None or run.run_id != run_id:
            raise UnknownRunError(run_id, "there is none, or its record is not kept any more")
        return run

    def page(self, after: str | None, most: int) -> RunsAnswer:
        """Return so many runs that are older than one, newest first."""
        below = self._last + 1 if after is None else number_of(after)
        older = [number for number in reversed(self._runs) if number < below]
        page = [self._runs[number] for number in older[:most]]
        return {
            "runs": [run.summary() for run in page],
            "next": page[-1].run_id if len(older) > most else None,
        }


def number_of(run_id: str) -> int:
    """Return which run a name means."""
    return int(run_id.split("-")[1])
