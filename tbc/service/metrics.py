"""What a server counts of one pool: decisions, latencies, transfers, what was unmet, choices of the policy.

Counts are of the requests that this server answered; a request that is repeated under its key counts again.
Budgets are those of the pool at the moment of the scrape. Labels are bounded: the agents that have spent most
and "other", the first priorities that were seen and "(other)".
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from tbc.axes import CALLS, NANO, TOKENS, USD
from tbc.decision import Decision

if TYPE_CHECKING:
    from tbc.pool import Statement
    from tbc.service.tiers import Judged

__all__ = ["CONTENT_TYPE", "OTHER", "Metrics", "MetricsAnswer", "wants_json"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: What stands for all labels beyond the first ones.
OTHER: Final = "(other)"
_AGENTS: Final = 20
_LABELS: Final = 20
_NUMBERS: Final = ("allocated", "consumed", "held", "remaining")
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LATENCY: Final = {
    "openHold": ("tbc_hold_seconds", "Seconds to answer a hold."),
    "settleHold": ("tbc_settle_seconds", "Seconds to answer a settle."),
}


class MetricsAnswer(TypedDict):
    """What the tier policy has chosen and saved; dollars as numbers."""

    AgentStepsTotal: dict[str, dict[str, int]]
    AgentDowngradesTotal: dict[str, int]
    AgentHardStopsTotal: int
    AgentCostTotal: float
    AgentCostSaved: float
    SLAViolationsPrevented: int


class _Bounded:
    """The first labels that are seen, and "(other)" for the rest."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, value: object) -> str:
        label = str(value)
        if label not in self._seen:
            if len(self._seen) >= _LABELS:
                return OTHER
            self._seen.add(label)
        return label


class _Budgets:
    """Gauges of a statement, made when they are asked for."""

    def __init__(self) -> None:
        self.statement: Statement | None = None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        if self.statement is None:
            return
        agents = GaugeMetricFamily(
            "tbc_budget",
            "An agent's account: tokens, dollars or calls. The agents that have spent most; others summed.",
            labels=["agent", "axis", "amount"],
        )
        pool = GaugeMetricFamily("tbc_pool_budget", "All accounts of the pool.", labels=["axis", "amount"])
        named = self._spenders(self.statement)
        for axis, accounts in self.statement.accounts.items():
            unit = NANO if axis == USD else 1
            rest = dict.fromkeys(_NUMBERS, 0)
            for account in accounts:
                numbers = {name: getattr(account, name) or 0 for name in _NUMBERS}
                if account.agent_name in named:
                    for name, number in numbers.items():
                        agents.add_metric([account.agent_name, axis, name], number / unit)
                elif account.parent is not None:
                    rest = {name: number + rest[name] for name, number in numbers.items()}
            if len(accounts) - 1 > len(named):
                for name, number in rest.items():
                    agents.add_metric([OTHER, axis, name], number / unit)
            for name in _NUMBERS:
                total = sum(getattr(account, name) or 0 for account in accounts)
                pool.add_metric([axis, name], total / unit)
        yield agents
        yield pool
        holds = GaugeMetricFamily("tbc_open_holds", "Holds of the pool that are open.")
        holds.add_metric([], self.statement.open_holds)
        yield holds

    @staticmethod
    def _spenders(statement: Statement) -> set[str]:
        """Return the agents that have spent most: dollars, where they are kept, before tokens and calls."""
        spent: dict[str, list[int]] = {}
        for axis in (USD, TOKENS, CALLS):
            for account in statement.accounts.get(axis, ())[1:]:
                spent.setdefault(account.agent_name, []).append(account.consumed)
        return set(heapq.nlargest(_AGENTS, spent, key=lambda name: spent[name]))


class Metrics:
    """The counts of one pool, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._budgets = _Budgets()
        self.registry.register(self._budgets)
        self._priority, self._level, self._step = _Bounded(), _Bounded(), _Bounded()
        self._requests = self._counter(
            "tbc_requests", "Requests by operation and status.", "operation", "status"
        )
        self._decisions = self._counter("tbc_decisions", "Holds by what decided them.", "reason")
        self._transfers = self._counter("tbc_transfers", "Transfers by kind.", "axis", "kind")
        self._moved = self._counter("tbc_moved", "Tokens, dollars or calls in transfers.", "axis", "kind")
        self._unmet = self._counter(
            "tbc_unmet", "Tokens, dollars or calls that refused holds lacked.", "axis", "priority"
        )
        self._bottlenecks = self._counter(
            "tbc_rebalance_bottlenecks", "Rebalances by their bottleneck level.", "axis", "level"
        )
        self._choices = self._counter(
            "tbc_policy_choices", "Choices of the tier policy; a hard stop has no tier.", "step", "tier"
        )
        self._downgrades = self._counter(
            "tbc_policy_downgrades", "Steps given another tier than without limits.", "cause"
        )
        self._stops = self._counter("tbc_policy_hard_stops", "Steps that must not be done.", "cause")
        self._saved = Counter(
            "tbc_policy_saved_usd", "Dollars that downgrades have saved.", registry=self.registry
        )
        self._expected = Counter(
            "tbc_policy_expected_usd", "Dollars that chosen steps cost at most.", registry=self.registry
        )
        self._prevented = Counter(
            "tbc_policy_sla_violations_prevented",
            "Downgraded steps whose other tier would have been too slow.",
            registry=self.registry,
        )
        self._latencies = {
            operation: Histogram(*names, buckets=_BUCKETS, registry=self.registry)
            for operation, names in _LATENCY.items()
        }
        self._known: dict[tuple[str, int], Any] = {}
        self._reasons: dict[str, Any] = {}

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, registry=self.registry)

    def text(self, statement: Statement) -> bytes:
        """Return everything in the text form of Prometheus, the budgets as of a statement."""
        self._budgets.statement = statement
        return generate_latest(self.registry)

    # -- counting ------------------------------------------------------------------------------------------

    def answered(self, operation: str, seconds: float, answer: Any) -> None:
        """Count a request that was served."""
        self._request(operation, 200)
        latency = self._latencies.get(operation)
        if latency is not None:
            latency.observe(seconds)
        if operation == "openHold":
            decision = answer["decision"]
            self._decided("fits" if decision is None else decision["status"])
            self._moves(answer["loans"])
        elif operation == "settleHold" and not answer["repeated"]:
            for booking in answer["booked"].values():
                self._moves(booking["returned"])
                self._moves(booking["covered"])
        elif operation == "rebalance":
            self._moves(answer["transfers"])
            for axis, level in answer["bottlenecks"].items():
                self._bottlenecks.labels(axis, "none" if level is None else self._level(level)).inc()

    def refused(self, operation: str, status: int, code: str, error: BaseException, priority: int) -> None:
        """Count a request that was not served; `priority`: of the agent that a refused hold was for."""
        self._request(operation, status)
        if operation not in ("openHold", "extendHold"):
            return
        decision = getattr(error, "decision", None)
        if not isinstance(decision, Decision):
            self._decided(code)
            return
        self._decided(str(decision.status))
        for each in (decision, *decision.others):
            short = each.requested - (each.available or 0)
            if each.status.refuses and each.available is not None and short > 0:
                amount = short / NANO if each.axis == USD else short
                self._unmet.labels(each.axis, self._priority(priority)).inc(amount)

    def chosen(self, judged: Judged) -> None:
        """Count a choice of the tier policy."""
        choice = judged.choice
        self._choices.labels(self._step(judged.step), choice.tier or "").inc()
        if choice.hard_stop:
            self._stops.labels(choice.cause).inc()
            return
        self._expected.inc((choice.expected_cost or 0) / NANO)
        self._saved.inc(judged.saved / NANO)
        if judged.downgraded:
            self._downgrades.labels(choice.cause).inc()
        if judged.prevents_violation:
            self._prevented.inc()

    def counters(self) -> MetricsAnswer:
        """Return what the policy has chosen and saved as plain counters."""
        steps: dict[str, dict[str, int]] = {}
        for labels, count in _samples(self._choices):
            if labels["tier"]:
                steps.setdefault(labels["step"], {})[labels["tier"]] = int(count)
        return {
            "AgentStepsTotal": steps,
            "AgentDowngradesTotal": {
                labels["cause"]: int(count) for labels, count in _samples(self._downgrades)
            },
            "AgentHardStopsTotal": sum(int(count) for _, count in _samples(self._stops)),
            "AgentCostTotal": sum(count for _, count in _samples(self._expected)),
            "AgentCostSaved": sum(count for _, count in _samples(self._saved)),
            "SLAViolationsPrevented": sum(int(count) for _, count in _samples(self._prevented)),
        }

    def _request(self, operation: str, status: int) -> None:
        known = self._known.get((operation, status))
        if known is None:
            known = self._known[operation, status] = self._requests.labels(operation, str(status))
        known.inc()

    def _decided(self, reason: str) -> None:
        known = self._reasons.get(reason)
        if known is None:
            known = self._reasons[reason] = self._decisions.labels(reason)
        known.inc()

    def _moves(self, transfers: Iterable[Mapping[str, Any]]) -> None:
        for each in transfers:
            axis, kind = each["axis"], each["kind"]
            self._transfers.labels(axis, kind).inc()
            self._moved.labels(axis, kind).inc(each["amount"] / NANO if axis == USD else each["amount"])


def _samples(counter: Counter) -> list[tuple[dict[str, str], float]]:
    return [
        (sample.labels, sample.value)
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    ]


def wants_json(accept: bytes) -> bool:
    """Return whether a client asks for JSON, and not for text or anything."""
    kinds = [each.partition(b";")[0].strip().lower() for each in accept.split(b",")]
    return b"application/json" in kinds and not {b"text/plain", b"*/*"}.intersection(kinds)
