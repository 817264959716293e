"""One bounded step: count, project, price, hold, call, read the usage, settle, learn.

Beside it, in the same rounds: a step of veloryn, whose printout goes nowhere and whose log file, which cannot
be turned off, lies in a temporary directory. Ours is shown without a log, as it is by default, and with one.
The figures are per step of a task of 1, 3 or 10 steps, making the task included: ours opens books, which is
what makes a task of one step dear. No two tasks in a row share a prompt, and ours are counted with the
vocabulary, where there is one in tiktoken's cache; `counter` says so. veloryn divides characters by four, and
compares the prompts of a task with each other: its steps become slower with their number.

Below that: settlements, a hold and a settle in dollars each, journalled in memory, and also kept in a SQLite
file, many in one durable transaction or two transactions each, as a run of a workflow keeps its calls.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Any

import veloryn

import tbc
from benchmarks.timing import interleaved, median_ratio
from tbc.keeper import Keeper
from tbc.stores import SqliteStore
from tbc.tokens import EstimatedTokensWarning, default_counter

__all__ = ["run"]

_REPLY = {"output": "Seven.", "usage": {"input_tokens": 50, "output_tokens": 5}}
_TEXT = "How far is it to the sea, and which of the roads is the shortest? "


class _Nowhere:
    """A stream that forgets."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def run(*, smoke: bool, seed: int = 20260101, huge: bool = False) -> dict[str, Any]:
    """Return microseconds per step, for tasks of several lengths, and per settlement."""
    rounds, tasks = (3, 2) if smoke else (15, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimatedTokensWarning)
        counter = default_counter("gpt-4o")
    rows = [_beside(steps, words, rounds, tasks, counter) for steps in (1, 3, 10) for words in (1, 20)]
    rows.append(_settlements(100 if smoke else 100_000))
    rows.append(_kept(100 if smoke else 100_000, at_once=10 if smoke else 1_000))
    rows.append(_kept(10 if smoke else 1_000, at_once=0))
    return {"rows": rows, "counter": counter.name}


def _beside(steps: int, sentences: int, rounds: int, tasks: int, counter: Any) -> dict[str, Any]:
    prompts = _Prompts(steps, sentences)
    with tempfile.TemporaryDirectory() as directory, _inside(directory):
        rivals = {
            "veloryn": _their_task(prompts),
            "tbc": _our_task(prompts, counter, None),
            "tbc with log": _our_task(prompts, counter, f"{directory}/steps.jsonl"),
        }
        with contextlib.redirect_stdout(_Nowhere()):  # type: ignore[type-var]
            times = interleaved(rivals, calls=tasks, rounds=rounds)
    return {
        "question": f"a step of a task of {steps}, prompts of {len(prompts.take()[0])} characters",
        **{f"{name} us": round(statistics.median(ns) / steps / 1000, 2) for name, ns in times.items()},
        "tbc / veloryn": round(median_ratio(times["tbc"], times["veloryn"]), 3),
        "with log / veloryn": round(median_ratio(times["tbc with log"], times["veloryn"]), 3),
    }


@contextlib.contextmanager
def _inside(directory: str) -> Iterator[None]:
    """Work inside a directory: that is where veloryn writes its log."""
    before = os.getcwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


class _Prompts:
    """Prompts that no two tasks in a row share: each is counted anew."""

    def __init__(self, steps: int, sentences: int) -> None:
        self._sets = [[f"{i}.{j} " + _TEXT * sentences for i in range(steps)] for j in range(2)]
        self.turn = 0

    def take(self) -> list[str]:
        self.turn ^= 1
        return self._sets[self.turn]


def _their_task(prompts: _Prompts) -> Callable[[], None]:
    from veloryn.storage import TASK_STORAGE

    def task() -> None:
        for prompt in prompts.take():
            veloryn.execute(
                task_id="task", run_task=lambda: _REPLY, input_data=prompt, model="gpt-4o", max_cost=10
            )
        del TASK_STORAGE["task"]

    return task


def _our_task(prompts: _Prompts, counter: Any, log: str | None) -> Callable[[], None]:
    def task() -> None:
        run = tbc.Run("task", max_cost=10, model="gpt-4o", quiet=True, counter=counter, log=log)
        for prompt in prompts.take():
            run.execute(lambda: _REPLY, prompt)

    return task


def _kept(calls: int, *, at_once: int) -> dict[str, Any]:
    """Time the same with a keeper: so many settlements a transaction, or (0) one for each half."""
    with tempfile.TemporaryDirectory() as directory, SqliteStore(f"{directory}/books.db") as store:
        manager = tbc.BudgetManager(max_usd=1_000_000)
        manager.register_agent("agent", max_tokens=None, max_usd="1000")
        keeper = Keeper(manager, store, "pool")
        begin = perf_counter_ns()
        for number in range(1, calls + 1):
            held = manager.hold("agent", 1000, usd="0.0001")
            if not at_once:
                _keep(keeper)
            held.settle(900, usd="0.00009")
            if not at_once or number % at_once == 0:
                _keep(keeper)
        elapsed = (perf_counter_ns() - begin) / calls / 1000
    how = f"{at_once} a transaction" if at_once else "a transaction for each half"
    return {"question": f"{calls} of them kept in SQLite, {how}", "us each": round(elapsed, 2)}


def _keep(keeper: Keeper) -> None:
    with keeper.keep():
        pass


def _settlements(calls: int) -> dict[str, Any]:
    """Time holds and settles in dollars one after the other, all in one journal."""
    manager = tbc.BudgetManager(max_usd=1_000_000)
    manager.register_agent("agent", max_tokens=None, max_usd="1000")
    hold = manager.hold
    begin = perf_counter_ns()
    for _ in range(calls):
        hold("agent", 1000, usd="0.0001").settle(900, usd="0.00009")
    elapsed = (perf_counter_ns() - begin) / calls / 1000
    return {
        "question": f"{calls} journalled settlements in dollars",
        "us each": round(elapsed, 2),
        "entries": manager.ledger.seq,
    }
