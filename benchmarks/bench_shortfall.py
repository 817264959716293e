"""Cost of covering one shortfall in a market of n agents.

Ours: a hold that is one token larger than what the agent has left, hence one loan, and its void; each time a
random agent has held and settled something before, so that the index has news to learn; that pair is in the
time too. Theirs: one `Reallocator.reallocate` of token-budget-contracts, for one token. Both markets have 9
priorities and random use.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

import tbcontracts

import tbc
from benchmarks.timing import interleaved

__all__ = ["run"]

SIZES = (100, 1_000, 10_000, 100_000)


def run(*, smoke: bool, seed: int = 20260101, huge: bool = False) -> dict[str, Any]:
    """Return microseconds per shortfall at each size, and how ours grows."""
    rows, ours = [], {}
    for agents in SIZES[:2] if smoke else SIZES:
        their_calls, our_calls = (2, 20) if smoke else (max(2, 20_000 // agents), 2_000)
        rounds = 3 if smoke else (5 if agents == SIZES[-1] else 9)
        theirs_ns = interleaved({"x": _theirs(agents, seed)}, calls=their_calls, rounds=rounds)["x"]
        ours_ns = interleaved({"x": _ours(agents, seed)}, calls=our_calls, rounds=rounds)["x"]
        ours[agents] = statistics.median(ours_ns)
        rows.append(
            {
                "agents": agents,
                "token-budget-contracts us": round(statistics.median(theirs_ns) / 1000, 2),
                "tbc us": round(ours[agents] / 1000, 2),
                "times faster": round(statistics.median(theirs_ns) / ours[agents]),
            }
        )
    sizes = sorted(ours)
    return {"rows": rows, f"growth {sizes[0]} -> {sizes[-1]}": round(ours[sizes[-1]] / ours[sizes[0]], 2)}


def _terms(agents: int, seed: int) -> list[tuple[str, int, int, int]]:
    draw = random.Random(seed)
    return [
        (f"a{i}", draw.randint(1, 9), draw.randint(1_000, 100_000), draw.randint(0, 900))
        for i in range(agents)
    ]


def _theirs(agents: int, seed: int) -> Callable[[], object]:
    manager = tbcontracts.BudgetManager()
    for name, priority, tokens, used in _terms(agents, seed):
        manager.register_agent(name, priority=priority, max_tokens=tokens)
        manager.ledger.record(name, used)
    manager.register_agent("needy", priority=9, max_tokens=0)
    reallocate = manager.reallocator.reallocate

    def shortfall() -> None:
        assert reallocate("needy", 1) == 1

    return shortfall


def _ours(agents: int, seed: int) -> Callable[[], object]:
    manager = tbc.BudgetManager()
    for name, priority, tokens, used in _terms(agents, seed):
        manager.register_agent(name, priority=priority, max_tokens=tokens)
        manager.record_usage(name, used)
    manager.register_agent("needy", priority=9, max_tokens=0)
    draw = random.Random(seed)
    names = [f"a{draw.randrange(agents)}" for _ in range(1000)]
    turn = 0

    def shortfall() -> None:
        nonlocal turn
        turn += 1
        manager.hold(names[turn % 1000], 1).settle(0)
        hold = manager.hold("needy", 1)
        assert hold.loans
        hold.void()

    return shortfall
