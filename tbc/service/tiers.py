"""The tier policy over HTTP: which class of model a step is given, by what is left and how fast it must be.

Two forms of the question are read, a flat and a nested one. docs/policy.md says how it is answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict

import attrs

from tbc.money import to_nano
from tbc.policy import LatencyHistory, Policy, TierChoice, evaluate
from tbc.service.calls import Call, Operation
from tbc.service.values import Amount, Budget, Fraction, Line, Milliseconds, Priority
from tbc.wire import usd_string

if TYPE_CHECKING:
    from tbc.pricing import Price

__all__ = ["OPERATIONS", "FlatQuestion", "Judged", "NestedQuestion", "PolicyAnswer", "Tiers"]


@attrs.frozen(kw_only=True)
class FlatQuestion:
    """A step, what is left of its budget, and how fast it must be."""

    step: Line
    #: Left out, with the total: there is no budget.
    remaining_budget: Budget | None = None
    total_budget: Budget | None = None
    #: Left out: there is no SLA, which is not an SLA of 0.
    latency_sla_ms: Milliseconds | None = None
    priority: Priority = 1
    confidence: Fraction | None = None
    input_tokens: Amount = 1_000
    max_output_tokens: Amount = 500
    #: How long calls of a tier have lately taken, by its name; of the others what is learned or configured.
    observed_ms: dict[Line, Milliseconds] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class StepOfMany:
    """A step and its place among the others; the place decides nothing."""

    name: Line
    index: Amount = 0
    total_steps: Amount = 0


@attrs.frozen(kw_only=True)
class BudgetLeft:
    """A budget in dollars; what was spent decides nothing beside what is left."""

    total: Budget
    remaining: Budget
    spent_so_far: Budget = 0


@attrs.frozen(kw_only=True)
class Wanted:
    """How important the request is, and how fast it must be."""

    priority: Priority = 1
    latency_sla_ms: Milliseconds | None = None


@attrs.frozen(kw_only=True)
class Load:
    """How busy the asking system is; it decides nothing."""

    current_load: Fraction | None = None
    active_agents: Amount | None = None


@attrs.frozen(kw_only=True)
class History:
    """What was done before; it decides nothing."""

    previous_steps: list[Line] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class NestedQuestion:
    """The same as a `FlatQuestion`, in parts."""

    step: StepOfMany
    budget: BudgetLeft
    agent_id: Line | None = None
    request: Wanted = attrs.field(factory=Wanted)
    system: Load | None = None
    history: History | None = None

    def flat(self) -> FlatQuestion:
        """Return it in the flat form."""
        return FlatQuestion(
            step=self.step.name,
            remaining_budget=self.budget.remaining,
            total_budget=self.budget.total,
            latency_sla_ms=self.request.latency_sla_ms,
            priority=self.request.priority,
        )


class _Verdict(TypedDict):
    """What to do; the tier is empty on a hard stop."""

    allowed: bool
    selected_model_tier: str
    hard_stop: bool


class PolicyAnswer(TypedDict):
    """A choice, and why."""

    decision: _Verdict
    reason: str
    policy_version: str
    cause: str
    model: str | None
    wanted_tier: str | None
    expected_cost: int | None
    expected_cost_usd: str | None
    expected_latency_ms: int


@attrs.frozen
class Judged:
    """A choice beside the one that the step would have got without a budget and an SLA.

    Attributes
    ----------
    step : str
        The type of the step.
    choice, free : TierChoice
        What was chosen, and what would have been.
    sla_ms : int or None
        How fast it had to be.
    """

    step: str
    choice: TierChoice
    free: TierChoice
    sla_ms: int | None

    @property
    def saved(self) -> int:
        """Nano-dollars by which the choice is cheaper."""
        if self.choice.hard_stop:
            return 0
        return max(0, (self.free.expected_cost or 0) - (self.choice.expected_cost or 0))

    @property
    def downgraded(self) -> bool:
        """Whether another tier was chosen."""
        return not self.choice.hard_stop and self.choice.tier != self.free.tier

    @property
    def prevents_violation(self) -> bool:
        """Whether the step goes on within an SLA that the other tier would have broken."""
        return self.downgraded and self.sla_ms is not None and self.free.expected_latency_ms > self.sla_ms

    def as_object(self) -> PolicyAnswer:
        """Return it for the wire."""
        choice = self.choice
        cost = choice.expected_cost
        return {
            "decision": {
                "allowed": not choice.hard_stop,
                "selected_model_tier": choice.tier or "",
                "hard_stop": choice.hard_stop,
            },
            "reason": choice.reason,
            "policy_version": choice.policy_version,
            "cause": choice.cause,
            "model": choice.model,
            "wanted_tier": choice.wanted,
            "expected_cost": cost,
            "expected_cost_usd": None if cost is None else usd_string(cost),
            "expected_latency_ms": choice.expected_latency_ms,
        }


class _Stated(LatencyHistory):
    """Latencies as a question states them, and as they were observed here."""

    def __init__(self, stated: Mapping[str, int], here: LatencyHistory) -> None:
        super().__init__()
        self._stated = stated
        self._here = here

    def expected_ms(self, tier: str, prior_ms: int) -> int:
        """Return how long a call of a tier is expected to take, in milliseconds."""
        stated = self._stated.get(tier)
        return self._here.expected_ms(tier, prior_ms) if stated is None else stated


class Tiers:
    """A policy, and the latencies that it learns from."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.latencies = LatencyHistory()

    def price_of(self, tier: str | None) -> Price | None:
        """Return what the tokens of a tier cost; ``None`` if it has one cost for a call."""
        return next((each.price for each in self.policy.tiers if each.name == tier), None)

    def observed(self) -> dict[str, int]:
        """Return the latencies that were learned, by tier."""
        expected = [
            (tier, self.latencies.expected_ms(tier.name, tier.latency_ms)) for tier in self.policy.tiers
        ]
        return {tier.name: found for tier, found in expected if found != tier.latency_ms}

    def judge(self, asked: FlatQuestion) -> Judged:
        """Choose a tier, with and without the limits."""
        choice = evaluate(
            self.policy,
            asked.step,
            remaining=_nano("remaining_budget", asked.remaining_budget),
            total=_nano("total_budget", asked.total_budget),
            sla_ms=asked.latency_sla_ms,
            **self._always(asked),
        )
        return self.beside(asked, choice)

    def beside(self, asked: FlatQuestion, choice: TierChoice) -> Judged:
        """Return a choice beside the one that the step would have got without limits."""
        free = evaluate(self.policy, asked.step, remaining=None, total=None, **self._always(asked))
        return Judged(asked.step, choice, free, asked.latency_sla_ms)

    def _always(self, asked: FlatQuestion) -> dict[str, Any]:
        """Return what is asked with and without the limits."""
        stated = asked.observed_ms
        return {
            "priority": asked.priority,
            "confidence": asked.confidence,
            "history": _Stated(stated, self.latencies) if stated else self.latencies,
            "input_tokens": asked.input_tokens,
            "max_output_tokens": asked.max_output_tokens,
        }


def _nano(name: str, dollars: float | str | None) -> int | None:
    return None if dollars is None else to_nano(name, dollars, up=False)


async def evaluate_step(call: Call) -> PolicyAnswer:
    """Choose a tier for a step."""
    asked = call.body.flat() if isinstance(call.body, NestedQuestion) else call.body
    judged = call.service.tier_policy.judge(asked)
    call.service.count_choice(call.pool, judged)
    return judged.as_object()


def form_of(value: Any) -> type:
    """Return which form a body has."""
    nested = isinstance(value, dict) and isinstance(value.get("step"), dict)
    return NestedQuestion if nested else FlatQuestion


#: What is served here.
OPERATIONS: Final = (
    Operation(
        name="evaluatePolicy",
        method="POST",
        path="/policy/evaluate",
        summary="Which class of model a step is given, or that it must not be done.",
        scope="read",
        serve=evaluate_step,
        answer=PolicyAnswer,
        body=FlatQuestion | NestedQuestion,
        form_of=form_of,
    ),
)
