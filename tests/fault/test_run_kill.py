"""Runs whose process dies with ``kill -9``: nothing paid is lost, nothing finished is asked again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tbc.runs.bill import make_bill
from tbc.stores import SqliteStore

REPOSITORY = Path(__file__).parents[2]
FLOW = """
name: flow
limits: {budget_usd: 5, budget_tokens: 100000, budget_mode: enforce}
agents: {a: {}, b: {parent: a}}
prices: {m: {input_per_million: 10, output_per_million: 100}}
steps:
  - {id: first, agent: a, call: "tests.run_steps:CALL", model: m, max_output_tokens: 100, input: first}
  - {id: each, agent: b, call: "tests.run_steps:CALL", model: m, max_output_tokens: 100,
     for_each: [e0, e1, e2, e3, e4, e5], input: "{{ item }}", after: [first]}
  - {id: last, agent: a, call: "tests.run_steps:CALL", model: m, max_output_tokens: 100,
     input: "last after {{ steps.each }}"}
"""
#: What a call costs that ends well, and what its hold is: ten tokens of input were used, a few were counted.
ENDED = 10 * 10_000 + 100 * 100_000
#: What each operation asks for.
NAMES = {"first": "first", "last": "last", **{f"each[{n}]": f"e{n}" for n in range(6)}}


class Folder:
    def __init__(self, path: Path, call: str, **environment: str) -> None:
        self.path = path
        self.file = path / "flow.yaml"
        self.file.write_text(FLOW.replace("CALL", call), encoding="utf-8")
        self.log = path / "calls.log"
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(REPOSITORY), os.environ.get("PYTHONPATH", ""))),
            "RUN_STEPS_LOG": str(self.log),
            "RUN_STEPS_MARK": str(path / "mark"),
            **environment,
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tbc", *arguments, "--folder", str(self.path / "kept"), "--quiet"]

    def finish(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=120
        )

    def asked(self) -> list[str]:
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [line.split()[0] for line in lines]

    def store(self) -> SqliteStore:
        return SqliteStore(self.path / "kept" / "runs.db", create=False)

    def done(self) -> set[str]:
        with self.store() as store:
            return {row.operation for row in store.steps("r") if row.state == "done"}


def test_a_call_in_flight_is_booked_with_its_whole_hold_and_asked_again(tmp_path):
    folder = Folder(tmp_path, "die_at", RUN_STEPS_DIE_AT="e3")
    died = folder.finish("run", str(folder.file), "--name", "r", "--jobs", "1")
    assert died.returncode == -signal.SIGKILL
    with folder.store() as store:
        (held,) = store.load_pool("runs/r").holds
    went_on = folder.finish("resume", "r")
    assert went_on.returncode == 0, went_on.stderr
    assert Counter(folder.asked()) == {
        "first": 1,
        "e0": 1,
        "e1": 1,
        "e2": 1,
        "e3": 2,
        "e4": 1,
        "e5": 1,
        "last": 1,
    }
    with folder.store() as store:
        assert all(check.ok for check in store.verify())
        row = store.run("r")
        bill = make_bill(row, store.entries(row.pool), store.steps("r"))
        whole = {part.axis: part.amount for part in held.parts}
        lost = [
            line for line in store.entries(row.pool) if line.hold_id == held.hold_id and line.kind == "settle"
        ]
        assert {line.axis: line.consumed for line in lost} == whole
        assert all(line.estimated for line in lost if line.axis in ("usd", "tokens"))
        assert bill.total.usd == 8 * ENDED + whole["usd"]
        attempts = {charge.name: charge.calls for charge in bill.operations}
        assert attempts["each[3]"] == 2
        assert [
            json.loads(event.body)["step"] for event in store.events("r") if event.kind == "step_interrupted"
        ] == ["each[3]"]


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_it_pays_for_nothing_twice_that_was_finished(tmp_path, seed):
    """Kill, resume, kill again: whatever was finished at a kill is never asked for after it."""
    moments = random.Random(seed)
    folder = Folder(tmp_path, "slow", RUN_STEPS_SECONDS="0.05")
    arguments = ["run", str(folder.file), "--name", "r", "--jobs", "3"]
    finished: set[str] = set()
    kills = 0
    while True:
        before = len(folder.asked())
        process = subprocess.Popen(
            folder.command(*arguments),
            env=folder.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, said = process.communicate(timeout=moments.uniform(0.25, 1.2) if kills < 6 else 60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            said = "killed"
        assert not {NAMES[each] for each in finished} & set(folder.asked()[before:])
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
        kills += 1
        if (tmp_path / "kept" / "runs.db").exists():
            with folder.store() as store:
                assert all(check.ok for check in store.verify())
                begun = store.run("r") is not None
            finished = folder.done()
            arguments = ["resume", "r"] if begun else arguments
    assert set(folder.asked()) == set(NAMES.values())
    with folder.store() as store:
        assert all(check.ok for check in store.verify())
        row = store.run("r")
        bill = make_bill(row, store.entries(row.pool), store.steps("r"))
        state = store.load_pool(row.pool)
    assert (row.state, state.holds) == ("finished", ())
    # Every call that was made is on the bill; a process may also die between a hold and its call.
    calls = Counter(folder.asked())
    for charge in bill.operations:
        assert calls[NAMES[charge.name]] <= charge.calls <= calls[NAMES[charge.name]] + kills
    assert bill.total.usd >= 8 * ENDED
