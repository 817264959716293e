"""What a server counts of one pool: decisions, latencies, transfers, what was unmet, choices of the policy.

Counts are of the requests that this server answered; a request that is repeated under its key counts again.
Budgets are those of the pool at the moment of the scrape. Labels are bounded: the agents that have spent most
and "(other)", the first priorities that were seen and "(other)".
"""

from __future__ import annotations

import heapq
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, TypedDict

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from tbc.axes import CALLS, NANO, TOKENS, USD
from tbc.decision import Decision, Settlement, Transfer
from tbc.labels import OTHER, FirstLabels
from tbc.service.refusals import Refusals
from tbc.wire import transfer_object

if TYPE_CHECKING:
    from tbc.holds import Hold
    from tbc.pool import Statement
    from tbc.service.tiers import Judged

__all__ = ["CONTENT_TYPE", "OTHER", "Metrics", "MetricsAnswer", "wants_json"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: How a client says that it does not take something.
_NOT_AT_ALL: Final = re.compile(rb";\s*q=0(\.0*)?\s*(;|$)", re.IGNORECASE)
_AGENTS: Final = 20
_LABELS: Final = 20
_NUMBERS: Final = ("allocated", "consumed", "held", "remaining")
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_COUNTERS: Final = {
    "tbc_requests": ("Requests by operation and status.", ("operation", "status")),
    "tbc_decisions": ("Holds by what decided them.", ("reason",)),
    "tbc_transfers": ("Transfers by kind.", ("axis", "kind")),
    "tbc_moved": ("Tokens, dollars or calls in transfers.", ("axis", "kind")),
    "tbc_unmet": ("Tokens, dollars or calls that refused holds lacked.", ("axis", "priority")),
    "tbc_rebalance_bottlenecks": ("Rebalances by their bottleneck level.", ("axis", "level")),
    "tbc_runs": ("Runs by how they ended.", ("status",)),
    "tbc_runs_usd": ("Dollars that steps of runs have cost.", ()),
    "tbc_policy_choices": ("Choices of the tier policy; a hard stop has no tier.", ("step", "tier")),
    "tbc_policy_downgrades": ("Steps given another tier than without limits.", ("cause",)),
    "tbc_policy_hard_stops": ("Steps that must not be done.", ("cause",)),
    "tbc_policy_expected_usd": ("Dollars that chosen steps cost at most.", ()),
    "tbc_policy_saved_usd": ("Dollars that downgrades have saved.", ()),
    "tbc_policy_sla_violations_prevented": ("Downgraded steps whose other tier was too slow.", ()),
}
_HISTOGRAMS: Final = {
    "tbc_hold_seconds": "Seconds to answer a hold.",
    "tbc_settle_seconds": "Seconds to answer a settle.",
}


class MetricsAnswer(TypedDict):
    """Runs and what they have cost, and what the tier policy has chosen and saved; dollars as numbers."""

    AgentRunsTotal: int
    AgentStepsTotal: dict[str, dict[str, int]]
    AgentDowngradesTotal: dict[str, int]
    AgentHardStopsTotal: int
    AgentCostTotal: float
    AgentCostSaved: float
    SLAViolationsPrevented: int


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
        """Return the agents that have spent most: dollars, where they are kept, before tokens and calls.

        An agent whose name is that of the sum of the others is counted among them: one series for each name.
        """
        spent: dict[str, list[int]] = {}
        for axis in (USD, TOKENS, CALLS):
            for account in statement.accounts.get(axis, ())[1:]:
                if account.agent_name != OTHER:
                    spent.setdefault(account.agent_name, []).append(account.consumed)
        return set(heapq.nlargest(_AGENTS, spent, key=lambda name: spent[name]))


class _Counts:
    """Plain numbers, shown as metrics when they are asked for: counting is one addition, in one thread."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, tuple[str, ...]], float] = {}
        self.seconds: dict[str, list[int]] = {name: [0] * (len(_BUCKETS) + 1) for name in _HISTOGRAMS}
        self.sums = dict.fromkeys(_HISTOGRAMS, 0.0)

    def add(self, name: str, *labels: str, amount: float = 1) -> None:
        key = name, labels
        self.counts[key] = self.counts.get(key, 0) + amount

    def observe(self, name: str, seconds: float) -> None:
        self.seconds[name][bisect_left(_BUCKETS, seconds)] += 1
        self.sums[name] += seconds

    def of(self, name: str) -> list[tuple[tuple[str, ...], float]]:
        """Return the counts of a metric by their labels."""
        return [(labels, count) for (counted, labels), count in self.counts.items() if counted == name]

    def collect(self) -> Iterable[Metric]:
        for name, (what, labels) in _COUNTERS.items():
            counter = CounterMetricFamily(name, what, labels=labels)
            for values, count in self.of(name):
                counter.add_metric(values, count)
            yield counter
        for name, what in _HISTOGRAMS.items():
            ends = [*map(str, _BUCKETS), "+Inf"]
            upto = list(zip(ends, accumulate(self.seconds[name]), strict=True))
            yield HistogramMetricFamily(name, what, buckets=upto, sum_value=self.sums[name])


class Metrics:
    """The counts of one pool, in a registry of their own.

    Attributes
    ----------
    refusals : Refusals
        The last ones, with their reasons.
    """

    def __init__(self) -> None:
        self.refusals = Refusals()
        self._registry = CollectorRegistry()
        self._budgets, self._counts = _Budgets(), _Counts()
        self._registry.register(self._budgets)
        self._registry.register(self._counts)
        self._priority, self._level, self._step = (FirstLabels(_LABELS) for _ in range(3))

    def text(self, statement: Statement) -> bytes:
        """Return everything in the text form of Prometheus, the budgets as of a statement."""
        self._budgets.statement = statement
        return generate_latest(self._registry)

    # -- counting ------------------------------------------------------------------------------------------

    def answered(self, operation: str, seconds: float, answer: Any) -> None:
        """Count a request that was served."""
        counts = self._counts
        counts.add("tbc_requests", operation, "200")
        if operation == "openHold":
            counts.observe("tbc_hold_seconds", seconds)
            decision = answer["decision"]
            counts.add("tbc_decisions", "fits" if decision is None else decision["status"])
            self._moves(answer["loans"])
        elif operation in ("settleHold", "voidHold"):
            if operation == "settleHold":
                counts.observe("tbc_settle_seconds", seconds)
            if not answer["repeated"]:
                for booking in answer["booked"].values():
                    self._moves(booking["returned"])
                    self._moves(booking["covered"])
        elif operation == "rebalance":
            self._moves(answer["transfers"])
            for axis, level in answer["bottlenecks"].items():
                counts.add("tbc_rebalance_bottlenecks", axis, "none" if level is None else self._level(level))

    def granted(self, hold: Hold) -> None:
        """Count a hold that a step of a run has been granted."""
        decision = hold.decision
        self._counts.add("tbc_decisions", "fits" if decision is None else str(decision.status))
        if decision is not None and decision.status.refuses:  # audit mode: it would have been refused
            self.refusals.add(decision)
        self.moved(hold.loans)

    def ended(self, settlement: Settlement) -> None:
        """Count what moved at the end of a hold, or for usage without one."""
        if settlement.repeated:
            return
        self.moved((*settlement.returned, *settlement.covered))
        for each in settlement.others:
            self.moved((*each.returned, *each.covered))

    def moved(self, transfers: Iterable[Transfer]) -> None:
        """Count what moved."""
        self._moves(map(transfer_object, transfers))

    def refused(
        self,
        operation: str,
        status: int,
        code: str,
        error: BaseException,
        priority: int,
        key: str | None = None,
    ) -> None:
        """Count a request that was not served; `priority`: of the agent that a refused hold was for."""
        self._counts.add("tbc_requests", operation, str(status))
        if operation in ("openHold", "extendHold"):
            self.unmet(code, error, priority, key)

    def unmet(self, code: str, error: BaseException, priority: int, key: str | None = None) -> None:
        """Count a hold that was refused, and what it lacked."""
        decision = getattr(error, "decision", None)
        if not isinstance(decision, Decision):
            self._counts.add("tbc_decisions", code)
            return
        self._counts.add("tbc_decisions", str(decision.status))
        self.refusals.add(decision, key)
        for each in (decision, *decision.others):
            if each.unmet:
                self._add_amount("tbc_unmet", each.axis, self._priority(priority), each.unmet)

    def chosen(self, judged: Judged) -> None:
        """Count a choice of the tier policy."""
        choice, counts = judged.choice, self._counts
        counts.add("tbc_policy_choices", self._step(judged.step), choice.tier or "")
        if choice.hard_stop:
            counts.add("tbc_policy_hard_stops", choice.cause)
            return
        counts.add("tbc_policy_expected_usd", amount=(choice.expected_cost or 0) / NANO)
        counts.add("tbc_policy_saved_usd", amount=judged.saved / NANO)
        if judged.downgraded:
            counts.add("tbc_policy_downgrades", choice.cause)
        if judged.prevents_violation:
            counts.add("tbc_policy_sla_violations_prevented")

    def paid(self, settlement: Settlement) -> None:
        """Count what a step of a run has cost, and what moved at its end."""
        self.ended(settlement)
        self._counts.add("tbc_runs_usd", amount=settlement.usd / NANO)

    def ran(self, status: str) -> None:
        """Count a run that has ended."""
        self._counts.add("tbc_runs", status)

    def counters(self) -> MetricsAnswer:
        """Return runs, and what the policy has chosen and saved, as plain counters."""
        of = self._counts.of
        steps: dict[str, dict[str, int]] = {}
        for (step, tier), count in of("tbc_policy_choices"):
            if tier:
                steps.setdefault(step, {})[tier] = int(count)
        return {
            "AgentRunsTotal": sum(int(count) for _, count in of("tbc_runs")),
            "AgentStepsTotal": steps,
            "AgentDowngradesTotal": {cause: int(count) for (cause,), count in of("tbc_policy_downgrades")},
            "AgentHardStopsTotal": sum(int(count) for _, count in of("tbc_policy_hard_stops")),
            "AgentCostTotal": sum(count for _, count in of("tbc_runs_usd")),
            "AgentCostSaved": sum(count for _, count in of("tbc_policy_saved_usd")),
            "SLAViolationsPrevented": sum(
                int(count) for _, count in of("tbc_policy_sla_violations_prevented")
            ),
        }

    def _moves(self, transfers: Iterable[Mapping[str, Any]]) -> None:
        for each in transfers:
            self._counts.add("tbc_transfers", each["axis"], each["kind"])
            self._add_amount("tbc_moved", each["axis"], each["kind"], each["amount"])

    def _add_amount(self, name: str, axis: str, label: str, amount: int) -> None:
        self._counts.add(name, axis, label, amount=amount / NANO if axis == USD else amount)


def wants_json(accept: bytes) -> bool:
    """Return whether a client asks for JSON, and not for text or anything."""
    asked = [each for each in accept.split(b",") if not _NOT_AT_ALL.search(each)]
    kinds = [each.partition(b";")[0].strip().lower() for each in asked]
    return b"application/json" in kinds and not {b"text/plain", b"*/*"}.intersection(kinds)
