"""What `govern` adds to a call that does nothing.

Beside it: `@govern` of token-budget-contracts, which takes no lock, sets nothing aside and looks at the
budget only after the call. Ours counts, holds, reads the reply's usage, settles and journals.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

import tbcontracts

import tbc
from benchmarks.timing import interleaved
from tbc.tokens import EstimateCounter

__all__ = ["run"]


def run(*, smoke: bool, seed: int = 20260101, huge: bool = False) -> dict[str, Any]:
    """Return microseconds per governed no-op call."""
    calls, rounds = (50, 3) if smoke else (5_000, 15)
    theirs = tbcontracts.BudgetManager()
    theirs.register_agent("agent", max_tokens=10**12)
    ours = tbc.BudgetManager(counter=EstimateCounter())
    ours.register_agent("agent", max_tokens=10**12)
    reply = {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}

    def nothing() -> None:
        return None

    async def anothing() -> None:
        return None

    governed = ours.govern("agent")(anothing)

    def awaited() -> None:
        async def many() -> None:
            for _ in range(100):
                await governed()

        asyncio.run(many())

    times = interleaved(
        {
            "plain call": nothing,
            "token-budget-contracts": theirs.govern("agent")(nothing),
            "tbc, nothing returned": ours.govern("agent")(nothing),
            "tbc, a reply with usage": ours.govern("agent")(lambda: reply),
        },
        calls=calls,
        rounds=rounds,
    )
    rows = [{"call": name, "us": round(statistics.median(ns) / 1000, 3)} for name, ns in times.items()]
    async_ns = interleaved({"x": awaited}, calls=1 if smoke else 20, rounds=rounds)["x"]
    rows.append({"call": "tbc, coroutine", "us": round(statistics.median(async_ns) / 100 / 1000, 3)})
    return {"rows": rows}
