"""Real processes that end in every way, and processes that fork.

Books in memory belong to one process. A forked child has a copy: what it spends, its parent never sees, so
two processes that share a budget need a store. Fork while no other thread is inside of the manager: a lock
that another thread held at that moment stays locked in the child (as with every lock in Python); `spawn` has
no such trap.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

POOL = """
import asyncio, os, sys, threading
import tbc
from tbc.testing import check_books
manager = tbc.BudgetManager(max_tokens=1000)
manager.register_agent("agent", max_tokens=0)

def endless():
    while True:
        yield "word "

async def aendless():
    while True:
        yield "word "

stream = manager.govern("agent", max_output_tokens=10)(endless)
astream = manager.govern("agent", max_output_tokens=10)(aendless)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own; it must end by itself, and soon."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", POOL + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_program_ends_quietly_with_holds_open_in_daemon_threads():
    done = run(
        """
        inside = threading.Event()

        @manager.govern("agent", max_output_tokens=10)
        def call():
            inside.set()
            threading.Event().wait()

        threading.Thread(target=call, daemon=True).start()
        inside.wait()
        hold = manager.hold("agent", 10)
        print(len(manager.ledger.open_holds))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_a_program_ends_quietly_with_half_consumed_streams_in_globals_and_cycles():
    done = run(
        """
        kept = [stream(), manager.govern("agent")(lambda: iter(["a", "b"]))()]
        for each in kept:
            next(each)
        cycle = [stream()]
        next(cycle[0])
        cycle.append(cycle)
        sys.modules["elsewhere"] = kept  # dropped last of all
        print(len(manager.ledger.open_holds))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_a_program_ends_quietly_with_async_streams_that_its_loop_has_to_close():
    done = run(
        """
        async def main():
            chunks = astream()
            await anext(chunks)
            print(len(manager.ledger.open_holds))
            globals()["kept"] = chunks

        asyncio.run(main())
        check_books(manager)
        print(len(manager.ledger.open_holds), manager.report()["agent"]["consumed"] > 0)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n0 True\n", "")


@pytest.mark.parametrize(("way", "code"), [("sys.exit(3)", 3), ("raise SystemExit(4)", 4)])
def test_leaving_the_program_from_a_governed_call_books_it_first(way, code):
    done = run(
        f"""
        import atexit
        atexit.register(lambda: print(manager.report()["agent"], len(manager.ledger.open_holds)))

        @manager.govern("agent", max_output_tokens=10)
        def call():
            tbc.current_hold().record(6)
            {way}

        call()
        """
    )
    assert done.returncode == code
    assert done.stdout == "{'allocated': 6, 'consumed': 6, 'remaining': 0} 0\n"
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_its_own_copy_of_the_books():
    done = run(
        """
        hold = manager.hold("agent", 100)
        child = os.fork()
        if child == 0:
            hold.settle(70)
            manager.hold("agent", 900).settle(900)
            check_books(manager)
            os._exit(0 if manager.report()["agent"]["consumed"] == 970 else 1)
        _, status = os.waitpid(child, 0)
        check_books(manager)
        print(status, hold.state, manager.report()["agent"]["consumed"])
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 open 0\n", "")


def test_a_spawned_process_starts_with_books_of_its_own():
    done = run(
        """
        import subprocess
        manager.hold("agent", 100).settle(100)
        code = "import tbc; m = tbc.BudgetManager(max_tokens=5); print(m.accounts()[0].remaining)"
        print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
