"""Swarms: whole teams, drawn with replacement, that share one pool.

A team is never taken apart and its calls are never shuffled: the growth of inputs is what makes the problem.
Teams start one after the other within `ARRIVALS_S`, with gamma-distributed gaps as bursty as those of the
median client of a public production trace (coefficient of variation 1.3; 1 would be Poisson).
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from tbc.swarm.driver import Team
from tbc.swarm.traces import Run
from tbc.swarm.workload import make_runs

__all__ = ["ARRIVALS_S", "GAP_CV", "MIX", "URGENT_SHARE", "compose", "lay_deadlines", "make_mixed"]

#: The last team has started by then.
ARRIVALS_S = 600.0
#: Coefficient of variation of the gaps between starts.
GAP_CV = 1.3
#: Share of coding agents that work against a deadline (laid on).
URGENT_SHARE = 0.25
#: Kinds in a made swarm, by percent of its agents.
MIX = {"social": 40, "research": 30, "coding": 30}
#: So many teams in a row that do not fit the last places end the drawing.
_MISFITS = 200
#: So many runs of each kind are made to draw from.
_MADE_RUNS = 120


def make_mixed(rng: np.random.Generator) -> tuple[Run, ...]:
    """Make runs of all kinds to draw a swarm from."""
    return tuple(run for kind in MIX for run in make_runs(kind, _MADE_RUNS, rng))


def lay_deadlines(runs: Sequence[Run], rng: np.random.Generator) -> tuple[Run, ...]:
    """Give some coding agents a deadline: their role becomes ``"urgent coder"``. Other kinds stay."""
    laid = []
    for run in runs:
        if run.kind == "coding" and rng.random() < URGENT_SHARE:
            calls = tuple(attrs.evolve(call, role="urgent coder") for call in run.calls)
            laid.append(attrs.evolve(run, calls=calls))
        else:
            laid.append(run)
    return tuple(laid)


def compose(runs: Sequence[Run], agents: int, rng: np.random.Generator) -> tuple[Team, ...]:
    """Draw teams until they have `agents` agents in all.

    Parameters
    ----------
    runs : sequence of Run
        What is drawn from, with replacement. If it holds several kinds, each is drawn as often as gives it
        its part of the agents by `MIX` (kinds that `MIX` does not know: equal parts).
    agents : int
        How many; the swarm has a few less if no drawn team fits the last places, and one team at least.
    rng : numpy.random.Generator
        The only source of chance.

    Returns
    -------
    tuple of Team
        In the order of their starts.
    """
    by_kind: dict[str, list[Run]] = {}
    for run in runs:
        by_kind.setdefault(run.kind, []).append(run)
    kinds = sorted(by_kind)
    # A kind of large teams has to be drawn more rarely for the same number of agents.
    weights = np.array(
        [MIX.get(kind, 100) * len(by_kind[kind]) / sum(len(r.roles) for r in by_kind[kind]) for kind in kinds]
    )
    drawn: list[Run] = []
    left, misfits = agents, 0
    while left and misfits < _MISFITS:
        choice = by_kind[kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]]
        run = choice[int(rng.integers(len(choice)))]
        if len(run.roles) > left:
            misfits += 1
            continue
        drawn.append(run)
        left -= len(run.roles)
    if not drawn:
        drawn = [min(runs, key=lambda run: len(run.roles))]
    starts = _starts(len(drawn), rng)
    return tuple(
        Team(f"{run.name}#{place}", run, start_s)
        for place, (run, start_s) in enumerate(zip(drawn, starts, strict=True))
    )


def _starts(count: int, rng: np.random.Generator) -> list[float]:
    shape = 1.0 / GAP_CV**2
    starts = np.cumsum(rng.gamma(shape, 1.0 / shape, size=count))
    scaled = (starts - starts[0]) * (ARRIVALS_S / max(starts[-1] - starts[0], 1e-9))
    return [round(float(start), 3) for start in scaled]
