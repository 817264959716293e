"""Runs over HTTP: plan, execute, summarize, or a graph of steps that the caller sends; and their records.

docs/runs.md shows them. The money of a run is that of an agent; what the run itself may spend is a limit on
its way through the steps, and leaves no account behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from functools import partial
from typing import Annotated, Any, ClassVar, Final

import attrs

from tbc.clock import EPOCH
from tbc.error_codes import code_of
from tbc.errors import BudgetExceededError, InvalidRequestError, UnknownAgentError
from tbc.money import to_nano
from tbc.service.calls import Call, Operation
from tbc.service.graphs import PRESETS, Graph, StepGraph
from tbc.service.pools import OpenPool
from tbc.service.run_records import Run, RunAnswer, RunsAnswer
from tbc.service.values import (
    AgentName,
    Amount,
    Budget,
    Fraction,
    Goal,
    Milliseconds,
    PageSize,
    Priority,
    RunId,
    choice,
    whole,
)
from tbc.service.walking import Terms, Walk
from tbc.tree import Account

__all__ = ["OPERATIONS", "RUNS", "RunRequest"]

_LOG: Final = logging.getLogger("tbc.service")
#: The agent of runs that name none. It is registered when it is first needed, without a cap of its own.
RUNS: Final = "runs"
GraphName = Annotated[str, choice(*PRESETS, what="A graph that has a name.")]
Visits = Annotated[int, whole(1, 100, "How often one node may be visited.")]
Steps = Annotated[int, whole(1, 200, "How many steps a run may have.")]


@attrs.frozen(kw_only=True)
class RunRequest:
    """A run: plan, execute and summarize, unless a graph says otherwise."""

    only_one_of: ClassVar = (("graph", "step_graph"),)

    goal: Goal
    #: Whose budget it is.
    agent_name: AgentName = RUNS
    #: Dollars that this run may spend; left out: what its agent has or can get.
    budget: Budget | None = None
    #: What the policy is told; left out: that of the agent.
    priority: Priority | None = None
    #: Left out: as the agent has reported it last.
    confidence: Fraction | None = None
    #: How long a step may take.
    latency_sla_ms: Milliseconds | None = None
    #: How long all steps together may take.
    max_latency_ms: Milliseconds | None = None
    graph: GraphName | None = None
    step_graph: StepGraph | None = None
    max_visits: Visits = 3
    max_steps: Steps = 30
    input_tokens: Amount = 1_000
    max_output_tokens: Amount = 500
    #: Of the simulation: the same seed, the same steps.
    seed: Amount = 0


@attrs.frozen(kw_only=True)
class RunsQuery:
    """Which runs."""

    #: The last run of the page before.
    after: RunId | None = None
    limit: PageSize = 100


async def run_agent(call: Call) -> RunAnswer:
    """Go through the steps of a run, and return its record."""
    asked: RunRequest = call.body
    pool, service = call.pool, call.service
    graph, tiers = _graph(asked), service.tier_policy
    history, limits = pool.runs, service.limits
    digest = hashlib.sha256(repr(asked).encode()).hexdigest()  # the goal is not kept
    known = history.find(call.key, digest)
    if known is not None:
        return known.as_object()
    account = await _account(pool, asked.agent_name)
    known = history.find(call.key, digest)  # while the books were asked, it may have begun
    if known is not None:
        return known.as_object()
    run = history.begin(
        asked.agent_name,
        call.key,
        digest,
        "step_graph" if asked.step_graph is not None else asked.graph or "default",
        "simulated" if service.executor is None else service.executor.name,
        most=limits.runs,
    )
    run.started_at = round(EPOCH + service.clock(), 3)
    walk = Walk(
        run,
        _terms(asked, graph, account),
        pool,
        tiers=tiers,
        judge=service.judge,
        chosen=partial(service.count_choice, pool),
        refused=partial(_count_refused, pool, account.priority),
        executor=service.executor,
        clock=service.clock,
    )
    try:
        await walk.go()
    except Exception:
        if not run.steps:
            history.drop(run)
            raise
        run.end("failed", _stopped(run, "failed", "internal_error", "Something went wrong in the server."))
        _LOG.exception("%s failed", run.run_id)
    except BaseException as error:  # the server ends: what was spent is booked
        run.end("failed", _stopped(run, "cancelled", "cancelled", "The server has ended the run."))
        if not (service.draining and isinstance(error, asyncio.CancelledError)):
            history.ended(run, keep=limits.runs_kept)
            _count_run(pool, run)
            raise
    answer = run.as_object()
    history.ended(run, keep=limits.runs_kept)
    _count_run(pool, run)
    return answer


def _graph(asked: RunRequest) -> Graph:
    if asked.step_graph is None:
        return Graph.of(PRESETS[asked.graph or "default"])
    if asked.graph is not None:
        raise InvalidRequestError([("step_graph", "says the same as graph: send one of them")])
    return Graph.of(asked.step_graph)


def _terms(asked: RunRequest, graph: Graph, account: Account) -> Terms:
    return Terms(
        graph=graph,
        goal=asked.goal,
        budget=None if asked.budget is None else to_nano("budget", asked.budget, up=False),
        priority=account.priority if asked.priority is None else asked.priority,
        confidence=account.last_confidence if asked.confidence is None else asked.confidence,
        latency_sla_ms=asked.latency_sla_ms,
        max_latency_ms=asked.max_latency_ms,
        input_tokens=asked.input_tokens,
        max_output_tokens=asked.max_output_tokens,
        max_visits=asked.max_visits,
        max_steps=asked.max_steps,
        seed=asked.seed,
    )


async def _account(pool: OpenPool, agent_name: str) -> Account:
    """Return the agent of a run; that of runs that name none is registered if it is not there."""
    manager: Any = pool.manager
    find = partial(manager.statement, agent_name)
    try:
        statement = await pool.run(find)
    except UnknownAgentError:
        if agent_name != RUNS:
            raise
        await pool.run(partial(manager.register_agent, RUNS, max_tokens=None))
        statement = await pool.run(find)
    account: Account = statement.accounts["tokens"][0]
    return account


def _stopped(run: Run, reason: Any, cause: str, message: str) -> Any:
    step = run.steps[-1]["step"] if run.steps else ""
    return {"reason": reason, "step": step, "cause": cause, "message": message}


def _count_refused(pool: OpenPool, priority: int, error: BudgetExceededError) -> None:
    try:
        pool.metrics.unmet(code_of(error).code, error, priority)
    except Exception:
        _LOG.exception("a refusal was not counted")


def _count_run(pool: OpenPool, run: Run) -> None:
    try:
        pool.metrics.ran(run.status)
    except Exception:
        _LOG.exception("a run was not counted")


async def list_runs(call: Call) -> RunsAnswer:
    """Return a page of the runs that are kept, newest first."""
    query: RunsQuery = call.query
    return call.pool.runs.page(query.after, query.limit)


async def get_run(call: Call) -> RunAnswer:
    """Return one run."""
    return call.pool.runs.get(call.path["run_id"]).as_object()


#: What is served here.
OPERATIONS: Final = (
    Operation(
        name="runAgent",
        method="POST",
        path="/agent/run",
        summary="Go through plan, execute and summarize, or through a graph of steps, within a budget.",
        scope="spend",
        serve=run_agent,
        answer=RunAnswer,
        body=RunRequest,
        keyed=True,
        refusals=(403, 404, 409, 429),
    ),
    Operation(
        name="listRuns",
        method="GET",
        path="/runs",
        summary="The runs that are kept, newest first, a page at a time.",
        scope="read",
        serve=list_runs,
        answer=RunsAnswer,
        query=RunsQuery,
    ),
    Operation(
        name="getRun",
        method="GET",
        path="/runs/{run_id}",
        summary="One run: every step with what was decided, why, and what it cost.",
        scope="read",
        serve=get_run,
        answer=RunAnswer,
        params={"run_id": RunId},
        refusals=(404,),
    ),
)
