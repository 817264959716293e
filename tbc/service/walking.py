"""A run: step after step of its graph, chosen by the policy, held, carried out, and settled by the truth.

A step that the policy or the books refuse is not carried out; it ends the run, unless its graph has an edge
for that. What a step cost is booked whatever becomes of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from tbc.axes import USD
from tbc.clock import Clock
from tbc.decision import Decision, Settlement
from tbc.error_codes import INTERNAL_ERROR, code_of
from tbc.errors import BudgetExceededError, KeyConflictError, NotSent, TBCError
from tbc.policy import TierChoice
from tbc.run_errors import PolicyAwayError, PolicyDiffersError, ResultNotKeptError, RunForgottenError
from tbc.service.executors import (
    Brought,
    Executor,
    Step,
    StepInterruptedError,
    dollars,
    output_of,
    read_outcome,
    simulate,
    usage_of,
)
from tbc.service.graphs import Graph, Outcome
from tbc.service.problems import said_of
from tbc.service.run_records import Run, StepAnswer, StopReason
from tbc.service.tiers import FlatQuestion, Judged, Tiers
from tbc.watching import watched
from tbc.wire import decision_object, usd_string

if TYPE_CHECKING:
    from tbc.holds import Hold
    from tbc.service.pools import OpenPool

__all__ = ["Terms", "Walk"]

_LOG: Final = logging.getLogger("tbc.service")
#: Seconds after which the hold of a step that was lost ends by itself.
_EXPIRES_S: Final = 3_600
#: The most dollars that a question to the policy may name, in nano-dollars.
_MOST: Final = 10**15 - 1


@attrs.frozen(kw_only=True)
class Terms:
    """What a run is of, and what bounds it.

    Attributes
    ----------
    graph : Graph
        Its steps.
    goal : str
        For the callable; it is not kept.
    budget : int, optional
        Nano-dollars that it may spend.
    priority, confidence
        What the policy is told.
    latency_sla_ms : int, optional
        How long a step may take.
    max_latency_ms : int, optional
        How long all steps together may take.
    input_tokens, max_output_tokens : int
        What a step is of.
    max_visits, max_steps : int
        How often a node may be visited, and all of them together.
    seed : int
        Of the simulation.
    """

    graph: Graph
    goal: str
    budget: int | None
    priority: int
    confidence: float | None
    latency_sla_ms: int | None
    max_latency_ms: int | None
    input_tokens: int
    max_output_tokens: int
    max_visits: int
    max_steps: int
    seed: int


class _End(Exception):
    """The run ends here, unless its graph goes on from there."""

    def __init__(self, outcome: Outcome, reason: StopReason, cause: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.reason = reason
        self.cause = cause
        self.message = message


class Walk:
    """One run under way.

    Parameters
    ----------
    run : Run
        Its record, written as it goes.
    terms : Terms
        What was asked for.
    pool : OpenPool
        The books.
    tiers : Tiers
        The policy of this process: for prices, and for what a step would have got without limits.
    judge : callable
        Asks the policy.
    chosen : callable
        Told every choice, to count it.
    refused : callable
        Told every refusal of the books, to count it.
    executor : Executor, optional
        What carries steps out; ``None``: they are simulated.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self,
        run: Run,
        terms: Terms,
        pool: OpenPool,
        *,
        tiers: Tiers,
        judge: Callable[[FlatQuestion], Awaitable[Judged]],
        chosen: Callable[[Judged], None],
        refused: Callable[[BudgetExceededError], None],
        executor: Executor | None,
        clock: Clock,
    ) -> None:
        self._run = run
        self._terms = terms
        self._pool = pool
        self._tiers = tiers
        self._judge = judge
        self._chosen = chosen
        self._refused = refused
        self._executor = executor
        self._clock = clock
        self._visits: Counter[str] = Counter()
        self._previous: str | None = None
        self._claimed = False  # whether its key is used up: from then on it has begun

    async def go(self) -> None:
        """Go through the graph, and note how that ended.

        Raises
        ------
        RunForgottenError
            A run was begun under its key before.
        TBCError
            The first step could not even be asked for, and nothing was done.
        """
        run, name = self._run, self._terms.graph.entry
        await self._limit()
        following: str | None = name
        end: _End | None = None
        while following is not None:
            name = following
            try:
                self._check_limits(name)
            except _End as limit:
                end = limit
                break
            end, following = await self._visit(name)
            await asyncio.sleep(0)  # a simulation waits for nothing, and others are to be served too
        if end is None:
            run.end("completed", None)
            return
        failed = end.outcome == "failed"
        stop: Any = {"reason": end.reason, "step": name, "cause": end.cause, "message": end.message}
        run.end("failed" if failed else "stopped", stop)

    async def _limit(self) -> None:
        """Find what the run may spend: what was asked for, as far as the agent has it or can get it."""
        limits = [each for each in (self._terms.budget, await self._available()) if each is not None]
        self._run.budget = min(limits) if limits else None

    async def _available(self) -> int | None:
        """Return the nano-dollars that the books would grant the agent now; ``None``: without limit."""
        manager = self._pool.manager
        decision: Decision = await self._pool.run(partial(manager.decide, self._run.agent_name, usd=0))
        if manager.mode == "audit":
            return None
        found = [each.available for each in (decision, *decision.others) if each.axis == USD]
        return found[0] if found else None

    def _check_limits(self, name: str) -> None:
        terms, run = self._terms, self._run
        if self._visits[name] >= terms.max_visits:
            raise _End(
                "refused", "visit_limit", "visit_limit", f"{name!r} was visited {terms.max_visits} times."
            )
        if len(run.steps) >= terms.max_steps:
            raise _End("refused", "step_limit", "step_limit", f"The run has had {terms.max_steps} steps.")
        if terms.max_latency_ms is not None and run.steps and run.latency_ms >= terms.max_latency_ms:
            raise _End(
                "refused",
                "latency",
                "latency_used_up",
                f"The steps have taken {run.latency_ms} ms of {terms.max_latency_ms} ms.",
            )
        if run.left is not None and run.left < 0:
            raise _End(
                "refused",
                "budget",
                "budget_overrun",
                f"${usd_string(run.spent)} was spent of ${usd_string(run.budget or 0)}.",
            )

    async def _visit(self, name: str) -> tuple[_End | None, str | None]:
        """Do one step; return what would end the run, and the node that comes next."""
        self._visits[name] += 1
        run, step = self._run, self._blank(name)
        end: _End | None = None
        try:
            await self._step(step)
        except _End as found:
            end = found
            step["outcome"] = found.outcome
            if found.reason != "hard_stop":
                step["problem"] = {"code": found.cause, "message": found.message}
        following = self._terms.graph.after(name, step["outcome"], self._left_share())
        step["next"] = following
        left = run.left
        step["left"], step["left_usd"] = left, None if left is None else usd_string(left)
        return (end if following is None else None), following

    def _left_share(self) -> float:
        run = self._run
        if run.budget is None or run.left is None:
            return math.inf
        return run.left / run.budget if run.budget else 0.0

    def _blank(self, name: str) -> StepAnswer:
        node = self._terms.graph.nodes[name]
        return {
            "number": len(self._run.steps) + 1,
            "step": name,
            "step_type": node.step_type or name,
            "visit": self._visits[name],
            "outcome": "done",
            "model_tier": "",
            "model": None,
            "wanted_tier": None,
            "decision": "",
            "cause": "",
            "policy_version": self._tiers.policy.version,
            "expected_cost": 0,
            "expected_cost_usd": "0",
            "expected_latency_ms": 0,
            "hold_id": None,
            "cost": 0,
            "cost_usd": "0",
            "tokens": 0,
            "estimated": False,
            "overrun": False,
            "latency_ms": 0,
            "left": None,
            "left_usd": None,
            "problem": None,
            "refusal": None,
            "output": None,
            "next": None,
        }

    # -- one step ------------------------------------------------------------------------------------------

    async def _step(self, step: StepAnswer) -> None:
        """Choose, hold, carry out and settle; whatever keeps it from being done is an `_End`."""
        try:
            judged, asked = await self._choose(step)
            hold = await self._hold(step, judged.choice, asked)
        except BudgetExceededError as error:
            self._run.steps.append(step)
            self._refused(error)
            decision = error.decision
            step["refusal"] = None if decision is None else decision_object(decision)  # type: ignore[typeddict-item]
            raise _End("refused", "refused", code_of(error).code, str(error)) from None
        except _End:
            self._run.steps.append(step)
            raise
        except TBCError as error:
            if not (
                self._claimed or self._run.steps
            ):  # nothing was done: it is the request that is answered so
                raise
            self._run.steps.append(step)
            away = isinstance(error, PolicyAwayError | PolicyDiffersError)
            raise _End(
                "failed", "policy" if away else "failed", code_of(error).code, said_of(error)
            ) from error
        self._run.steps.append(step)
        step["hold_id"] = self._pool.number(hold)
        self._pool.metrics.granted(hold)
        await self._carry_out(step, hold, judged, asked)

    async def _choose(self, step: StepAnswer) -> tuple[Judged, FlatQuestion]:
        terms, run = self._terms, self._run
        node = terms.graph.nodes[step["step"]]
        left = run.left
        available = await self._available() if run.steps else run.budget
        if left is not None and available is not None:
            left = min(left, available)
        rest_ms = None if terms.max_latency_ms is None else max(0, terms.max_latency_ms - run.latency_ms)
        slas = [
            each
            for each in (
                terms.latency_sla_ms if node.latency_sla_ms is None else node.latency_sla_ms,
                rest_ms,
            )
            if each is not None
        ]
        asked = FlatQuestion(
            step=step["step_type"],
            remaining_budget=None if left is None else usd_string(min(left, _MOST)),
            total_budget=None if run.budget is None else usd_string(min(run.budget, _MOST)),
            latency_sla_ms=min(slas) if slas else None,
            priority=terms.priority,
            confidence=terms.confidence,
            input_tokens=terms.input_tokens if node.input_tokens is None else node.input_tokens,
            max_output_tokens=(
                terms.max_output_tokens if node.max_output_tokens is None else node.max_output_tokens
            ),
        )
        judged = await self._judge(asked)
        await self._claim()
        choice = judged.choice
        self._chosen(judged)
        cost = choice.expected_cost or 0
        step["model_tier"], step["model"] = choice.tier or "", choice.model
        step["wanted_tier"] = choice.wanted
        step["decision"], step["cause"] = choice.reason, choice.cause
        step["policy_version"] = choice.policy_version
        step["expected_cost"], step["expected_cost_usd"] = cost, usd_string(cost)
        step["expected_latency_ms"] = choice.expected_latency_ms
        if choice.hard_stop:
            raise _End("hard_stop", "hard_stop", choice.cause, choice.reason)
        if left is not None and cost > left:
            raise _End(
                "refused",
                "budget",
                "budget_exceeded",
                f"{choice.tier} costs up to ${usd_string(cost)} with ${usd_string(left)} left.",
            )
        if rest_ms is not None and choice.expected_latency_ms > rest_ms:
            raise _End(
                "refused",
                "latency",
                "latency_exceeded",
                f"{choice.tier} takes {choice.expected_latency_ms} ms with {rest_ms} ms left.",
            )
        return judged, asked

    async def _claim(self) -> None:
        """Use the key of the run up, once there is a choice for its first step."""
        run = self._run
        if self._claimed or run.key is None:
            return
        claim = partial(self._pool.manager.claim_key, book_key(run.key), ("run", run.asked), run.run_id)
        try:
            first = await self._pool.run(claim)
        except KeyConflictError:
            raise KeyConflictError(run.key, ("run",), ("another run",)) from None
        if first != run.run_id:
            raise RunForgottenError(first, "it was begun under this key before, and its record is not here")
        self._claimed = True

    async def _hold(self, step: StepAnswer, choice: TierChoice, asked: FlatQuestion) -> Hold:
        run = self._run
        hold: Hold = await self._pool.manager.ahold(
            run.agent_name,
            asked.input_tokens + asked.max_output_tokens,
            usd=dollars(choice.expected_cost or 0),
            model=choice.model,
            expires_s=_EXPIRES_S,
            key=None if run.key is None else f"{book_key(run.key)}/{step['number']}",
            operation=f"{run.run_id}/{step['number']}",
        )
        hold.expect_input(asked.input_tokens)
        price = self._tiers.price_of(choice.tier)
        if price is not None:
            hold.expect_price(price)
        return hold

    async def _carry_out(self, step: StepAnswer, hold: Hold, judged: Judged, asked: FlatQuestion) -> None:
        choice, executor = judged.choice, self._executor
        given = self._given(step, choice, asked)
        began = self._clock()
        raised: Exception | None = None
        try:
            with watched(None if executor is None else self._pool.manager.call_watcher, hold) as call:
                async with hold:
                    try:
                        result = simulate(given) if executor is None else await executor.call(given)
                    except Exception as error:
                        raised = error
                        raise
                    finally:
                        took_ms = math.ceil((self._clock() - began) * 1_000)
                        step["latency_ms"] = choice.expected_latency_ms if executor is None else took_ms
                    unkept = self._keep_output(step, result)
                    brought = await self._read(result, hold)
                    call.usage = brought.usage
                    nano = brought.nano
                    if nano is None and self._tiers.price_of(choice.tier) is None:
                        nano = choice.expected_cost  # such a tier has one cost, whatever it uses
                    await hold.asettle(usage=brought.usage, usd=dollars(nano))
                    if unkept is not None:
                        raise unkept
        except Exception as error:
            raise self._failed(step, error, raised) from error
        except asyncio.CancelledError:
            step["outcome"] = "failed"
            step["problem"] = {"code": "cancelled", "message": "The server has ended the run."}
            raise
        finally:
            self._book(step, hold.settlement)
        if executor is not None:
            self._tiers.latencies.observe(choice.tier or "", step["latency_ms"])
        self._run.saved += judged.saved

    def _given(self, step: StepAnswer, choice: TierChoice, asked: FlatQuestion) -> Step:
        return Step(
            run_id=self._run.run_id,
            agent_name=self._run.agent_name,
            goal=self._terms.goal,
            number=step["number"],
            name=step["step"],
            step_type=step["step_type"],
            tier=choice.tier or "",
            model=choice.model,
            input_tokens=asked.input_tokens,
            max_output_tokens=asked.max_output_tokens,
            latency_sla_ms=asked.latency_sla_ms,
            previous=self._previous,
            seed=self._terms.seed,
        )

    def _keep_output(self, step: StepAnswer, result: object) -> ResultNotKeptError | None:
        """Keep what a step brought; return why that cannot be: what it used is booked first."""
        self._run.result = self._previous = None
        try:
            self._run.result = self._previous = step["output"] = output_of(step["step"], result)
        except ResultNotKeptError as error:
            return error
        return None

    @staticmethod
    async def _read(result: object, hold: Hold) -> Brought:
        """Return what a step used; what it does not say is booked as it was held."""
        try:
            return read_outcome(result)
        except Exception:
            try:
                usage = usage_of(result)
            except Exception:
                usage = None
            await hold.asettle(usage=usage)
            raise

    def _book(self, step: StepAnswer, settlement: Settlement | None) -> None:
        """Note what was booked; ``None``: the store could not be written to, and it is booked when it can."""
        run = self._run
        run.latency_ms += step["latency_ms"]
        if settlement is None:
            return
        self._pool.metrics.paid(settlement)
        money = settlement.on(USD)
        step["cost"], step["cost_usd"] = settlement.usd, usd_string(settlement.usd)
        step["tokens"] = settlement.tokens
        step["estimated"] = settlement.estimated or (money is not None and money.estimated)
        step["overrun"] = settlement.unpaid is not None
        run.spent += settlement.usd
        run.tokens += settlement.tokens

    def _failed(self, step: StepAnswer, error: Exception, raised: Exception | None) -> _End:
        """Return how a run ends at a step that failed.

        The text of what a callable has `raised` is not shown, it may have secrets in it.
        """
        name = step["step"]
        code = code_of(error)
        if isinstance(error, NotSent):
            return _End("failed", "failed", code.code, f"Step {name!r} was not sent.")
        if code is not INTERNAL_ERROR and error is not raised:
            return _End("failed", "failed", code.code, said_of(error))
        found = error.error if isinstance(error, StepInterruptedError) else error
        kind = type(found).__name__
        where = "".join(traceback.format_tb(found.__traceback__))
        _LOG.error("step %r of %s raised %s:\n%s", name, self._run.run_id, kind, where)
        cause = "step_raised" if code is INTERNAL_ERROR else code.code
        return _End("failed", "failed", cause, f"Step {name!r} raised {kind}.")


def book_key(key: str) -> str:
    """Return the key of a run in the books; those of its holds begin with it."""
    return f"run:{hashlib.sha256(key.encode()).hexdigest()[:32]}"
