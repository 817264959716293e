"""Holds in a store: durable pairs, many callers, many processes, a reallocation, leases.

Every figure has its rival in the same rounds, taken in turns, because disks are noisy: SQLite beside the same
rows written by bare statements, PostgreSQL beside `pgbench`, leases beside pairs without. `bar` is what is
promised, `met` whether this run kept it; nothing is asserted. On a slow disk all that waits for it is alike:
the microseconds of the processor tell the rivals apart there. All is durable: SQLite with full
synchronisation, PostgreSQL with ``synchronous_commit=on``.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import process_time_ns
from typing import Any

import tbc
from benchmarks import postgres_stores
from benchmarks.bare_books import BareFile, BareWriter
from benchmarks.crew import Crew, Job, agent_names, fill
from benchmarks.either_store import leases, reallocating_hold
from benchmarks.timing import interleaved, judged, median_ratio, per_second
from tbc.stores import SqliteStore

__all__ = ["run"]

_AGENT = agent_names(1)[0]


def run(*, smoke: bool, seed: int = 20260101, huge: bool = False) -> dict[str, Any]:
    """Return rates, ratios and bars; SQLite first."""
    place = _place()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="tbc-bench-", dir=place) as directory:
        folder = Path(directory)
        rows = [
            _one_caller(folder, smoke),
            _many_callers(folder, smoke),
            *_processes(folder, smoke, seed),
            _reallocation(folder, smoke),
            _leases(folder, smoke),
        ]
    measured, engine = postgres_stores.rows(place, smoke=smoke, seed=seed)
    return {
        "rows": rows + measured,
        "directories in": place,
        "file system": _file_system(place),
        "engines": [_engine(), engine],
        "load before and after": [*load, *os.getloadavg()],
    }


def _place() -> str:
    """Return a folder on the file system of the current directory that anybody may look into."""
    usual = tempfile.gettempdir()
    here = os.getcwd()
    return usual if os.stat(usual).st_dev == os.stat(here).st_dev else here


def _file_system(place: str) -> str:
    """Return what is mounted there, as the kernel says it."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    under = [(point, kind) for point, kind in mounts if Path(place).is_relative_to(point)]
    return max(under, key=lambda each: len(each[0]))[1]


def _engine() -> str:
    import apsw

    return f"SQLite {apsw.sqlite_lib_version()}"


# -- one file, one process -------------------------------------------------------------------------------


def _one_caller(folder: Path, smoke: bool) -> dict[str, Any]:
    rounds, calls = (2, 5) if smoke else (15, 100)
    store, bare = SqliteStore(folder / "one.db"), BareFile(str(folder / "bare-one.db"), 1)
    fill(store, "pool", 1)
    with store, tbc.BudgetManager(store=store, pool="pool") as manager:
        rivals = {
            "bare": lambda: bare.pair(_AGENT, 100, 90),
            "tbc": lambda: manager.hold(_AGENT, 100).settle(90),
        }
        times = interleaved(rivals, calls=calls, rounds=rounds)
        busy = interleaved(rivals, calls=calls, rounds=rounds, clock=process_time_ns)
    bare.close()
    ratio = median_ratio(times["bare"], times["tbc"])
    return {
        "question": "SQLite FULL, hold + settle, 1 caller, beside the bare two transactions",
        **{f"{name} pairs/s": per_second(ns) for name, ns in times.items()},
        **{f"{name} CPU us": round(min(ns) / 1000) for name, ns in busy.items()},
        "tbc / bare": round(ratio, 3),
        **judged(ratio, ">= 0.5"),
    }


def _many_callers(folder: Path, smoke: bool, callers: int = 64) -> dict[str, Any]:
    rounds, turns = (2, 2) if smoke else (15, 40)
    store, bare = SqliteStore(folder / "many.db"), BareFile(str(folder / "bare-many.db"), 1)
    fill(store, "pool", 1)
    writer = BareWriter(bare)

    async def bare_pairs() -> None:
        for _ in range(turns):
            held = await writer.do(partial(bare.hold, _AGENT, 100))
            await writer.do(partial(bare.settle, held, _AGENT, 100, 90))

    with store, tbc.BudgetManager(store=store, pool="pool") as manager:

        async def our_pairs() -> None:
            for _ in range(turns):
                held = await manager.ahold(_AGENT, 100)
                await held.asettle(90)

        before = store.pools()[0].version
        times = interleaved(
            {
                "bare": lambda: asyncio.run(_together(callers, bare_pairs)),
                "tbc": lambda: asyncio.run(_together(callers, our_pairs)),
            },
            calls=1,
            rounds=rounds,
        )
        commits = store.pools()[0].version - before
    writer.close()
    bare.close()
    each = {name: [ns / callers / turns for ns in all_ns] for name, all_ns in times.items()}
    operations = 2 * callers * turns * (rounds + 1)
    ratio = median_ratio(each["bare"], each["tbc"])
    return {
        "question": f"SQLite FULL, hold + settle, {callers} coroutines, beside a bare chain in group commits",
        **{f"{name} pairs/s": per_second(ns) for name, ns in each.items()},
        "bare operations a commit": round(operations / writer.commits, 1),
        "tbc operations a commit": round(operations / commits, 1),
        "tbc / bare": round(ratio, 3),
        **judged(ratio, ">= 0.5"),
    }


async def _together(callers: int, work: Callable[[], Awaitable[None]]) -> None:
    await asyncio.gather(*(work() for _ in range(callers)))


# -- one file, many processes ------------------------------------------------------------------------------


def _processes(folder: Path, smoke: bool, seed: int) -> list[dict[str, Any]]:
    members = 2 if smoke else 4  # processes take long to start
    path = folder / "shared.db"
    pools = {"a pool of its own each": [f"own-{i}" for i in range(members)], "one pool": ["one"] * members}
    if smoke:
        del pools["a pool of its own each"]
    with SqliteStore(path) as store:
        for pool in {pool for names in pools.values() for pool in names}:
            fill(store, pool, 10)
    rows = []
    for how, names in pools.items():
        jobs = [Job(f"sqlite:///{path}", name, 10, True, seed + i) for i, name in enumerate(names)]
        with Crew(jobs) as crew:
            turns = [crew.work(0.3 if smoke else 3.0) for _ in range(1 if smoke else 5)]
        fair = statistics.median(
            min(turn.rate for turn in each) / max(turn.rate for turn in each) for each in turns
        )
        rows.append(
            {
                "question": f"SQLite FULL, hold + settle, {members} processes on one file, {how}",
                "pairs/s": round(statistics.median(sum(turn.rate for turn in each) for each in turns)),
                "longest wait ms": round(max(turn.longest for each in turns for turn in each) * 1000),
                "slowest / fastest": round(fair, 3),
                "lowest of all rounds": round(
                    min(min(t.rate for t in each) / max(t.rate for t in each) for each in turns), 3
                ),
                **judged(fair, ">= 0.2"),
            }
        )
    return rows


# -- a reallocation, and leases ------------------------------------------------------------------------------


def _reallocation(folder: Path, smoke: bool) -> dict[str, Any]:
    with SqliteStore(folder / "donor.db") as store:
        agents, plain, short = reallocating_hold(store, smoke)
    ratio = short / plain
    return {
        "question": f"SQLite FULL, a hold that borrows from the one donor among {agents} agents, "
        "beside one that fits",
        "plain p50 us": round(plain),
        "reallocating p50 us": round(short),
        "reallocating / plain": round(ratio, 2),
        **judged(ratio, "<= 3"),
    }


def _leases(folder: Path, smoke: bool) -> dict[str, Any]:
    with SqliteStore(folder / "leases.db") as store:
        return leases(store, "SQLite FULL", smoke, ">= 20")
