"""A report in words and in plain data: for the command line and for files.

`rows` is the table that people read, `explain` says in words what was simulated and assumed, `figures` is the
same as data (JSON). All three read the same `Report`, so that they cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

from tbc.swarm.experiment import ALL_RUNS, EQUAL, LATE_RUNS, MARKET, POOL, Report
from tbc.swarm.measure import Spread

__all__ = ["explain", "figures", "headline_role", "percent", "rows"]

#: The policies of a table, in order.
POLICIES = (EQUAL, POOL, MARKET)


def percent(share: float, *, digits: int = 1) -> str:
    """Return a share in percent; a dash where there was nothing to share.

    Examples
    --------
    >>> percent(0.9614), percent(1.0), percent(float("nan"))
    ('96.1 %', '100.0 %', '-')
    """
    return "-" if math.isnan(share) else f"{share * 100:.{digits}f} %"


def headline_role(report: Report) -> str:
    """Return the role that the report is about: the protected one, else the one of the highest priority."""
    if report.late_role is not None and report.late_role in report.priorities:
        return report.late_role
    return max(report.priorities, key=lambda role: report.priorities[role])


def rows(report: Report, group: str) -> list[tuple[str, ...]]:
    """Return the table of a group of runs: a label, and a cell for each of `POLICIES`.

    Parameters
    ----------
    report : Report
        The report.
    group : str
        One of its groups.

    Returns
    -------
    list of tuple of str
        Calls served by role (the most important first), then what became of the tokens.
    """
    sums = {policy: report.sum(group, policy) for policy in POLICIES}
    asked = sums[MARKET].asked
    roles = sorted((r for r in report.priorities if asked.get(r)), key=lambda r: -report.priorities[r])

    def row(label: str, cell: Callable[[str], str]) -> tuple[str, ...]:
        return (label, *(cell(policy) for policy in POLICIES))

    def served(role: str) -> Callable[[str], str]:
        return lambda policy: percent(report.share(group, policy, role).mean)

    def part(figure: str) -> Callable[[str], str]:
        return lambda policy: percent(report.of_budget(group, policy, figure).mean)

    def ratio(policy: str) -> str:
        found = report.ratio(group, policy)
        return "1.000" if policy == POOL else f"{found.mean:.3f} ±{(found.high - found.low) / 2:.3f}"

    top = max(report.priorities.values())
    return [
        *(row(f"{role} served (priority {report.priorities[role]})", served(role)) for role in roles),
        row("tokens served / budget", part("tokens_served")),
        row("tokens served / shared pool's", ratio),
        row("stranded / budget", part("stranded")),
        row("  avoidable: calls were refused", part("stranded_avoidable")),
        row(f"starved calls of priority {top}", lambda policy: f"{sums[policy].starved:,}"),
        row("  avoidable: idle tokens", lambda policy: f"{sums[policy].starved_avoidable:,}"),
        row("overruns: calls above their hold", lambda policy: f"{sums[policy].overrun_calls:,}"),
        row("  tokens above holds / budget", part("overrun_tokens")),
        row("  tokens above budgets / budget", lambda p: percent(_overspent(report, group, p), digits=3)),
        row("grants above the budget", lambda policy: f"{sums[policy].grants_above:,}"),
    ]


def explain(report: Report, workload: str) -> tuple[str, ...]:
    """Say in plain words what was simulated, what was assumed, and what the figures mean.

    Parameters
    ----------
    report : Report
        The report.
    workload : str
        What was played, e.g. ``"139 research runs of trace.csv"``.

    Returns
    -------
    tuple of str
        Paragraphs.
    """
    paragraphs = [
        f"Simulated: {workload}. {_pools(report)} Calls were asked for in their recorded order. Before a "
        "call its input and the role's usual output (p90) were set aside, after it the actual was booked; "
        "a refused call was skipped.",
        "Policies: equal split, every agent owns the same part. Shared pool, first come, first served. tbc "
        f"market, the real tbc.BudgetManager: {_contracts(report)}. What contracts and estimates need was "
        "learned on 60 % of the runs (training) and used on the other 40 %; the figures are from those, "
        f"{_repetitions(report)}.",
        "Assumed: priorities and budgets are laid on, no trace has any. The calls are a recording that is "
        "played on whatever is refused (open loop): a real team would shorten its work or change course, "
        "and what a refusal does to the quality of an answer is not modelled.",
        "Read: served is what granted calls really used. Stranded is budget left over; starved are refused "
        "calls of the top priority, avoidable if idle tokens would have covered them. An overrun is a call "
        "that used more than was set aside: booked in full, and counted apart. Grants above the budget "
        "must be 0."
        + (" ± is half of the 95 % interval of the mean (bootstrap)." if report.repetitions > 1 else ""),
        _flattered(report),
    ]
    return tuple(paragraph for paragraph in paragraphs if paragraph)


def _pools(report: Report) -> str:
    pressure = f"{report.pressure * 100:g} %"
    if report.experiment == "runs":
        return f"Each run had a pool of its own, {pressure} of what it used when nothing was refused."
    return (
        f"{report.agents:.0f} agents in whole teams, drawn with replacement, shared one pool, {pressure} of "
        "what they used together when nothing was refused; teams started within ten minutes."
    )


def _contracts(report: Report) -> str:
    late = report.late_role
    if late and report.experiment == "runs":
        return (
            f"everybody draws on the treasury, but for a reserve for {late}, which grows with the largest "
            f"input seen in the run, up to a usual need ({_chosen(report)})"
        )
    shares = (
        "everybody owns a share by what the role used before, and who is short borrows from agents that "
        "matter no more than it does"
    )
    return (
        f"{shares}; {late} owns a protected reserve; a team that has ended returns its tokens"
        if late
        else shares
    )


def _chosen(report: Report) -> str:
    low, high = min(report.late_quantiles, default=0.0), max(report.late_quantiles, default=0.0)
    quantiles = f"p{low * 100:g}" if low == high else f"p{low * 100:g} to p{high * 100:g}"
    return f"{quantiles} of its inputs, whichever did best when it was tried out on the training runs"


def _repetitions(report: Report) -> str:
    return f"the mean of {report.repetitions} random splits" if report.repetitions > 1 else "from one split"


def figures(report: Report) -> dict[str, Any]:
    """Return the report as plain data: dicts, lists, strings and numbers; no NaN."""
    return {
        "experiment": report.experiment,
        "pressure": report.pressure,
        "repetitions": report.repetitions,
        "seed": report.seed,
        "runs": report.runs,
        "agents_per_pool": report.agents,
        "late_role": report.late_role,
        "late_quantiles": list(report.late_quantiles),
        "priorities": dict(report.priorities),
        "groups": {
            group: {policy: _policy(report, group, policy) for policy in report.scores[group]}
            for group in report.groups
        },
        "flows": [attrs.asdict(flow) for flow in report.flows],
    }


def _policy(report: Report, group: str, policy: str) -> dict[str, Any]:
    whole = attrs.asdict(report.sum(group, policy))
    return {
        "served_share": {
            role: _interval(report.share(group, policy, role))
            for role in report.priorities
            if whole["asked"].get(role)
        },
        "tokens_served_over_shared_pool": _interval(report.ratio(group, policy)),
        "of_budget": {
            name: _interval(report.of_budget(group, policy, name))
            for name in ("tokens_served", "stranded", "stranded_avoidable", "overrun_tokens", "overspent")
        },
        "sum_over_repetitions": whole,
    }


def _interval(found: Spread) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in attrs.asdict(found).items()}


def _overspent(report: Report, group: str, policy: str) -> float:
    return report.of_budget(group, policy, "overspent").mean


def _flattered(report: Report) -> str:
    """Say what the baselines would do if they knew what they cannot know."""
    group = LATE_RUNS if LATE_RUNS in report.scores else ALL_RUNS
    knowing = [policy for policy in report.scores[group] if policy not in POLICIES]
    if not knowing:
        return ""
    role = headline_role(report)
    served = " and ".join(
        f"{percent(report.share(group, policy, role).mean)} ({policy.split(',')[0]})" for policy in knowing
    )
    pool = next(policy for policy in knowing if policy.startswith(POOL))
    ratio = report.ratio(group, MARKET, pool).mean
    return (
        "Flattered: if the baselines knew each call's actual output beforehand, which nobody can, they would "
        f"serve {served} of the {role} calls; the market, which does not know, serves {ratio:.3f} of such a "
        "pool's tokens."
    )
