"""Benchmarks run, at smoke sizes, so that they cannot rot. No speed is asserted here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.timing import interleaved, median_ratio


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_small_and_its_result_is_json(name):
    result = importlib.import_module(f"benchmarks.bench_{name}").run(smoke=True, seed=1)
    assert result["rows"]
    assert json.loads(json.dumps(result)) == result


def test_the_command_writes_its_results_with_the_machine(tmp_path):
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "imports", "--smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert "== imports" in done.stdout
    assert {"python", "cores", "versions", "commit", "load"} <= set(json.loads(out.read_text())["machine"])


def test_rivals_are_timed_in_turns():
    order: list[str] = []
    times = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, calls=2, rounds=2, warmup=1
    )
    assert order == ["a", "a", "b", "b"] * 3
    assert [len(each) for each in times.values()] == [2, 2]


def test_median_ratio_is_taken_round_by_round():
    assert median_ratio([2.0, 40.0, 6.0], [1.0, 10.0, 3.0]) == 2.0
