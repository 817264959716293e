"""Swarms: recorded or made runs of agent teams, replayed under budget pressure.

The real `tbc.BudgetManager` is compared with an equal split and one shared pool. Rooms, lowest first:
`traces` (runs from files), `workload` (made runs), `policies` (what a policy may see; the baselines), `fit`
(what is learned from past runs), `market` (the manager as a policy), `driver` (plays runs against a policy),
`choose` (how large a reserve is, tried out on past runs), `compose` (swarms), `measure` (scores), `story`,
`experiment`, `summary`, `picture`.

Examples
--------
>>> import numpy as np
>>> runs = make_runs("research", 40, np.random.default_rng(7))
>>> report = run_by_run(runs, repetitions=2, seed=7)
>>> market, pool = (report.share(LATE_RUNS, policy, "finalize").mean for policy in (MARKET, POOL))
>>> market > 0.8 > 0.2 > pool
True
"""

from __future__ import annotations

from tbc.swarm.choose import choose_reserve
from tbc.swarm.compose import compose, lay_deadlines, make_mixed
from tbc.swarm.driver import (
    Estimate,
    Event,
    Fate,
    Outcome,
    Team,
    actual_output,
    p90_output,
    replay,
    replay_alone,
)
from tbc.swarm.experiment import ALL_RUNS, EQUAL, LATE_RUNS, MARKET, POOL, Report, run_by_run, swarm
from tbc.swarm.fit import Fit, LateNeed, RoleFit, fit_runs
from tbc.swarm.market import Contracts, Flow, Market
from tbc.swarm.measure import Score, Spread, score, spread, total
from tbc.swarm.policies import Arrival, Books, EqualSplit, Policy, Receipt, Request, SharedPool
from tbc.swarm.traces import KINDS, Call, Run, parse_trace, read_trace
from tbc.swarm.workload import MADE_KINDS, make_runs

__all__ = [
    "ALL_RUNS",
    "Arrival",
    "Books",
    "Call",
    "Contracts",
    "EQUAL",
    "EqualSplit",
    "Estimate",
    "Event",
    "Fate",
    "Fit",
    "Flow",
    "KINDS",
    "LATE_RUNS",
    "LateNeed",
    "MADE_KINDS",
    "MARKET",
    "Market",
    "Outcome",
    "POOL",
    "Policy",
    "Receipt",
    "Report",
    "Request",
    "RoleFit",
    "Run",
    "Score",
    "SharedPool",
    "Spread",
    "Team",
    "actual_output",
    "choose_reserve",
    "compose",
    "fit_runs",
    "lay_deadlines",
    "make_mixed",
    "make_runs",
    "p90_output",
    "parse_trace",
    "read_trace",
    "replay",
    "replay_alone",
    "run_by_run",
    "score",
    "spread",
    "swarm",
    "total",
]
