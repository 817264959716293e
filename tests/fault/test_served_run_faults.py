"""A server that is stopped or killed in the middle of a run: what was spent is booked, no call made twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import tbc
from tests.waiting import until

HOUSE = """
import asyncio, pathlib, time

CALLS = pathlib.Path(__file__).with_name("calls")

def note(step):
    with CALLS.open("a") as file:
        file.write(f"{step.name}\\n")

def usage():
    return {"output": "text", "usage": {"input_tokens": 300, "output_tokens": 20}}

async def waits(step):
    note(step)
    if step.name == "execute":
        await asyncio.Event().wait()
    return usage()

def finishes(step):
    note(step)
    go = CALLS.with_name("go")
    while step.name == "execute" and not go.exists():
        time.sleep(0.01)
    return usage()
"""
RUN = {"goal": "x", "budget": 1}
KEY = {"Idempotency-Key": "k"}


@contextmanager
def served(folder, function, *arguments):
    """Yield a server process that steps are carried out by, and its address."""
    command = [sys.executable, "-m", "tbc", "serve", "--port", "0", "--store", f"sqlite:///{folder}/books.db"]
    command += ["--max-usd", "5", "--executor", f"house:{function}", *arguments]
    path = [str(folder), str(Path(tbc.__file__).parents[1])]
    with subprocess.Popen(
        command,
        env={"PYTHONPATH": ":".join(path), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            line = server.stdout.readline()
            assert line, server.stderr.read()
            yield server, line.split()[-1]
        finally:
            server.kill()


class Asking(threading.Thread):
    """Asks for a run; its answer is there once it was joined, if one came."""

    def __init__(self, where):
        super().__init__(daemon=True)
        self.where = where
        self.answer = None
        self.start()

    def run(self):
        try:
            self.answer = httpx.post(f"{self.where}/agent/run", json=RUN, headers=KEY, timeout=60)
        except httpx.TransportError:
            self.answer = None


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "house.py").write_text(HOUSE, encoding="utf-8")
    return tmp_path


def calls(folder):
    file = folder / "calls"
    return file.read_text(encoding="utf-8").split() if file.exists() else []


def test_a_run_that_is_under_way_is_finished_before_the_server_ends(folder):
    with served(folder, "finishes") as (server, where):
        asking = Asking(where)
        until(lambda: len(calls(folder)) == 2)
        server.send_signal(signal.SIGTERM)
        (folder / "go").touch()
        asking.join(60)
        assert asking.answer.json()["status"] == "completed"
        assert server.wait(60) == 0
    with tbc.BudgetManager(store=f"sqlite:///{folder}/books.db") as manager:
        assert manager.report()["runs"]["consumed"] == 3 * 320
        assert not manager.ledger.open_holds


def test_a_step_that_does_not_end_is_cancelled_after_the_grace_and_booked(folder):
    with served(folder, "waits", "--grace-s", "1") as (server, where):
        asking = Asking(where)
        until(lambda: len(calls(folder)) == 2)
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=60)
        assert server.returncode == 0 and "Traceback" not in said
        asking.join(60)
    found = asking.answer.json()
    assert asking.answer.status_code == 200 and found["stop"]["reason"] == "cancelled"
    done, cut_off = found["steps"]
    assert (done["outcome"], done["tokens"]) == ("done", 320)
    assert (cut_off["outcome"], cut_off["tokens"], cut_off["estimated"]) == ("failed", 1_000, True)
    assert cut_off["problem"]["code"] == "cancelled"
    with tbc.BudgetManager(store=f"sqlite:///{folder}/books.db") as manager:
        assert manager.report()["runs"]["consumed"] == 320 + 1_000  # the input, as an estimate
        assert not manager.ledger.open_holds


def test_a_run_of_a_server_that_was_killed_is_not_made_again_under_its_key(folder):
    with served(folder, "waits") as (server, where):
        Asking(where)
        until(lambda: len(calls(folder)) == 2)
        server.send_signal(signal.SIGKILL)
        server.wait(60)
    with served(folder, "finishes") as (_, where):
        again = httpx.post(f"{where}/agent/run", json=RUN, headers=KEY, timeout=60)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "run_forgotten")
        report = httpx.get(f"{where}/v1/report").json()
        (account,) = [each for each in report["agents"] if each["agent_name"] == "runs"]
        tokens = account["accounts"]["tokens"]
        assert (tokens["consumed"], tokens["held"]) == (320, 1_500)  # until it expires
    assert calls(folder) == ["plan", "execute"]
