"""Cost of one hold + settle pair, at first and after a million; weight of an agent.

Beside it, in the same rounds: the bare floor (a lock and a dict, test and lower, then raise again), and
token-budget-py's ``with pool.reserve(): commit()``, which keeps no journal. Ours journals both steps; the
last 100,000 lines are kept in memory, older ones are folded, and that is part of the time once it begins.
An agent is weighed without its name and without the journal (whose size is bounded, whatever the number of
agents), but with the donor index.

Not measured: contention between processes (there is no shared memory store), other machines.
"""

from __future__ import annotations

import gc
import statistics
import sys
import threading
import tracemalloc
from time import perf_counter_ns
from typing import Any

import tbcontracts
from token_budget import BudgetPool

import tbc
from benchmarks.timing import interleaved, median_ratio

__all__ = ["run"]


def run(*, smoke: bool, seed: int = 20260101, huge: bool = False) -> dict[str, Any]:
    """Return one thread, 8 threads, first and last of many, and bytes per agent."""
    rounds, calls = (3, 200) if smoke else (31, 20_000)
    rows = [*_one_thread(rounds, calls), _long_run(1_000 if smoke else 1_000_000), *_threads(smoke)]
    rows += _memory(300 if smoke else 100_000)
    return {"rows": rows}


def _bare_pair() -> Any:
    lock, left = threading.Lock(), {"agent": 10**12}

    def pair() -> None:
        with lock:
            if left["agent"] >= 100:
                left["agent"] -= 100
        with lock:
            left["agent"] += 90

    return pair


def _their_pair() -> Any:
    pool = BudgetPool(token_cap=10**15)

    def pair() -> None:
        with pool.reserve(tokens=100) as reservation:
            reservation.commit(tokens=10)

    return pair


def _our_pair(manager: tbc.BudgetManager | None = None) -> Any:
    if manager is None:
        manager = tbc.BudgetManager()
        manager.register_agent("agent", max_tokens=10**15)
    hold = manager.hold

    def pair() -> None:
        hold("agent", 100).settle(10)

    return pair


def _one_thread(rounds: int, calls: int) -> list[dict[str, Any]]:
    rivals = {"bare": _bare_pair(), "token-budget-py": _their_pair(), "tbc": _our_pair()}
    times = interleaved(rivals, calls=calls, rounds=rounds)
    return [
        {
            "question": "pair, one thread",
            **{f"{name} us": round(statistics.median(ns) / 1000, 3) for name, ns in times.items()},
            "bare / tbc (>= 0.2)": round(median_ratio(times["bare"], times["tbc"]), 3),
            "tbc / token-budget-py (<= 1)": round(median_ratio(times["tbc"], times["token-budget-py"]), 3),
        }
    ]


def _long_run(calls: int) -> dict[str, Any]:
    """Time a tenth of the calls at the beginning, with the journal still empty, and at the end."""
    pair = _our_pair()
    slice_, times = max(1, calls // 100), []
    gc.collect()
    for _ in range(100):
        begin = perf_counter_ns()
        for _ in range(slice_):
            pair()
        times.append((perf_counter_ns() - begin) / slice_)
    first, last = statistics.median(times[:10]), statistics.median(times[-10:])
    return {
        "question": f"first and last tenth of {calls} pairs",
        "first us": round(first / 1000, 3),
        "last us": round(last / 1000, 3),
        "last / first": round(last / first, 3),
    }


def _threads(smoke: bool) -> list[dict[str, Any]]:
    calls = 50 if smoke else 20_000
    rows = []
    for name, make in (("bare", _bare_pair), ("token-budget-py", _their_pair), ("tbc", _our_pair)):
        rates = []
        for _ in range(1 if smoke else 5):
            pair, barrier = make(), threading.Barrier(9)

            def work(pair: Any = pair, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                for _ in range(calls):
                    pair()
                barrier.wait()

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            barrier.wait()
            begin = perf_counter_ns()
            barrier.wait()
            rates.append(8 * calls / (perf_counter_ns() - begin) * 1e9)
            for thread in threads:
                thread.join()
        rows.append(
            {"question": "8 threads, one agent", "who": name, "pairs/s": round(statistics.median(rates))}
        )
    return rows


def _memory(agents: int) -> list[dict[str, Any]]:
    names = [sys.intern(f"agent-{i}") for i in range(agents)]
    return [
        {"question": "bytes per agent", "agents": agents, "who": who, "bytes": round(_weigh(make, names))}
        for who, make in (
            ("token-budget-contracts", _their_agents),
            ("tbc, with index (<= 600)", _our_agents),
        )
    ]


def _weigh(make: Any, names: list[str]) -> float:
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = make(names)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept is not None
    return (after - before) / len(names)


def _their_agents(names: list[str]) -> Any:
    manager = tbcontracts.BudgetManager()
    for i, name in enumerate(names):
        manager.register_agent(name, priority=1 + i % 9, max_tokens=10_000 + i)
    return manager


def _our_agents(names: list[str]) -> Any:
    manager = tbc.BudgetManager()
    for i, name in enumerate(names):
        manager.register_agent(name, priority=1 + i % 9, max_tokens=10_000 + i)
    manager.decide(names[0], 20_000)  # makes the donor index
    manager.ledger.lines.clear()
    return manager
