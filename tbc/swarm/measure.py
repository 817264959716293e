"""What a replay was worth: one score per policy, and sums and means of scores.

Amounts are whole tokens. *Served* counts what granted calls actually used. Scores add up, so that the score
of many runs is the sum of theirs; ratios are formed last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from attrs import field, frozen

from tbc.swarm.driver import Fate, Outcome

__all__ = ["Score", "Spread", "score", "spread", "total"]


@frozen
class Score:
    """What became of the calls and of the budget."""

    #: The policy's name.
    policy: str
    #: Pools that were replayed.
    pools: int
    #: Sum of the budgets.
    budget: int
    #: Tokens used by served calls, overruns included.
    tokens_served: int
    #: Tokens that all calls would have used.
    tokens_asked: int
    #: Of the budgets: left unspent at the end.
    stranded: int
    #: Of what was stranded: at most what refused calls of the same pool would have used.
    stranded_avoidable: int
    #: Calls of the top priority: refused; of them, refused although idle tokens covered them.
    starved: int
    starved_avoidable: int
    #: Served calls that used more than had been set aside; how much more.
    overrun_calls: int
    overrun_tokens: int
    #: Tokens spent above a budget (by overruns only, see `grants_above`); pools where that happened.
    overspent: int
    overspent_pools: int
    #: Grants that promised more than there was. Must be 0.
    grants_above: int
    #: Role → calls served.
    served: dict[str, int] = field(factory=dict)
    #: Role → calls asked for.
    asked: dict[str, int] = field(factory=dict)

    @property
    def calls_served(self) -> int:
        """Calls of all roles that were served."""
        return sum(self.served.values())

    @property
    def calls_asked(self) -> int:
        """Calls of all roles."""
        return sum(self.asked.values())

    def share(self, role: str) -> float:
        """Return the share of a role's calls that were served; NaN if there were none."""
        asked = self.asked.get(role, 0)
        return self.served.get(role, 0) / asked if asked else float("nan")


def score(outcome: Outcome) -> Score:
    """Score one replay."""
    fates = outcome.fates
    served = sum(fate.call.tokens for fate in fates if fate.served)
    refused = sum(fate.call.tokens for fate in fates if not fate.served)
    stranded = max(0, outcome.budget - served)
    overspent = max(0, served - outcome.budget)
    return Score(
        policy=outcome.policy,
        pools=1,
        budget=outcome.budget,
        tokens_served=served,
        tokens_asked=served + refused,
        stranded=stranded,
        stranded_avoidable=min(stranded, refused),
        starved=sum(fate.starved for fate in fates),
        starved_avoidable=sum(fate.avoidable for fate in fates),
        overrun_calls=sum(fate.overrun > 0 for fate in fates),
        overrun_tokens=sum(fate.overrun for fate in fates),
        overspent=overspent,
        overspent_pools=int(overspent > 0),
        grants_above=outcome.grants_above,
        served=_count(fate for fate in fates if fate.served),
        asked=_count(fates),
    )


def total(scores: Sequence[Score]) -> Score:
    """Add up scores of one policy."""
    first = scores[0]
    numbers = {
        name: sum(getattr(one, name) for one in scores)
        for name in Score.__annotations__
        if name not in ("policy", "served", "asked")
    }
    return Score(
        policy=first.policy,
        served=_add(one.served for one in scores),
        asked=_add(one.asked for one in scores),
        **numbers,
    )


@frozen
class Spread:
    """The mean of a figure over repetitions, and how sure it is."""

    mean: float
    #: The 95 % bootstrap interval of the mean; both ends equal the mean if there is one repetition.
    low: float
    high: float


def spread(values: Iterable[float], *, seed: int = 0) -> Spread:
    """Return the mean of `values` and its 95 % bootstrap interval (1,000 resamples, seeded); NaN left out."""
    numbers = np.array([value for value in values if value == value], dtype=np.float64)
    if not numbers.size:
        return Spread(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = numbers[rng.integers(numbers.size, size=(1_000, numbers.size))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Spread(float(numbers.mean()), float(low), float(high))


def _count(fates: Iterable[Fate]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for fate in fates:
        counts[fate.arrival.role] = counts.get(fate.arrival.role, 0) + 1
    return counts


def _add(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for part in parts:
        for role, count in part.items():
            sums[role] = sums.get(role, 0) + count
    return sums
