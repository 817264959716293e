"""Pools to measure on, and processes that all use them at once."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Sequence
from multiprocessing.connection import Connection
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, Self

import tbc
from tbc.keeper import Keeper
from tbc.stores import Store, open_store

__all__ = ["Crew", "Job", "Turn", "agent_names", "fill"]

_PLENTY = 10**15


def agent_names(agents: int) -> list[str]:
    return [f"agent-{number}" for number in range(agents)]


def fill(store: Store, pool: str, agents: int, *, donor: bool = False) -> None:
    """Make a pool of so many agents, in one transaction; with a donor, nobody else has anything to spare."""
    manager = tbc.BudgetManager()
    for name in agent_names(agents):
        if donor:
            manager.register_agent(name, max_tokens=100, min_reserve=100)
        else:
            manager.register_agent(name, max_tokens=_PLENTY)
    if donor:
        manager.register_agent("donor", max_tokens=_PLENTY)
        manager.register_agent("short", max_tokens=0)
    with Keeper(manager, store, pool).keep():
        pass


class Job(NamedTuple):
    """What one process does: holds (and settles) for any of so many agents of a pool."""

    url: str
    pool: str
    agents: int
    settle: bool
    seed: int


class Turn(NamedTuple):
    """How often a process did it, in how many seconds, its longest wait, and how often it was too busy."""

    done: int
    seconds: float
    longest: float
    busy: int

    @property
    def rate(self) -> float:
        """How often per second."""
        return self.done / self.seconds


class Crew:
    """Processes with one connection each."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        context = multiprocessing.get_context("spawn")
        self._members = []
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, job), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))
        for _, pipe in self._members:
            pipe.recv()  # it is ready

    def work(self, seconds: float) -> list[Turn]:
        """Let all work for so long."""
        for _, pipe in self._members:
            pipe.send(seconds)
        return [pipe.recv() for _, pipe in self._members]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, pipe in self._members:
            pipe.close()  # which ends it
            process.join(30)
            process.kill()


def _serve(pipe: Connection, job: Job) -> None:
    options: dict[str, Any] = {"connections": 1} if job.url.startswith("postgresql") else {}
    draw, names = random.Random(job.seed), agent_names(job.agents)
    with open_store(job.url, **options) as store, tbc.BudgetManager(store=store, pool=job.pool) as manager:
        pipe.send("ready")
        while True:
            try:
                seconds = pipe.recv()
            except EOFError:
                return
            done, busy, longest, begin = 0, 0, 0.0, perf_counter()
            now, end = begin, begin + seconds
            while now < end:
                try:
                    held = manager.hold(draw.choice(names), 100)
                    if job.settle:
                        held.settle(90)
                    done += 1
                except tbc.StoreBusyError:  # it waited for as long as it waits: nothing was done
                    busy += 1
                then, now = now, perf_counter()
                longest = max(longest, now - then)
            pipe.send(Turn(done, now - begin, longest, busy))
