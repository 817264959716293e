"""What survives failure: broken callbacks, interrupts, finalizers at the worst moment, processes that die."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

import tbc


def make_manager() -> tbc.BudgetManager:
    manager = tbc.BudgetManager(max_tokens=1_000)
    manager.register_agent("a")
    return manager


def test_a_broken_subscriber_never_breaks_a_run(caplog):
    manager = make_manager()
    told = []

    def broken(event):
        raise RuntimeError("boom")

    manager.subscribe(broken)
    manager.subscribe(told.append)
    with caplog.at_level(logging.ERROR, logger="tbc"):
        manager.hold("a", 10).settle(5)
    assert manager.report()["a"]["consumed"] == 5
    assert len(told) == 4
    assert "a subscriber raised" in caplog.text


def test_a_subscriber_that_blocks_holds_up_only_its_own_caller():
    manager = make_manager()
    inside, go_on = threading.Event(), threading.Event()

    def slow(event):
        if threading.current_thread() is blocked:
            inside.set()
            go_on.wait(timeout=30)

    manager.subscribe(slow)
    blocked = threading.Thread(target=lambda: manager.hold("a", 10).settle(5))
    blocked.start()
    assert inside.wait(timeout=30)
    manager.hold("a", 20).settle(20)
    go_on.set()
    blocked.join(timeout=30)
    assert manager.report()["a"]["consumed"] == 25


def test_a_stream_collected_while_the_lock_is_held_is_booked_by_the_next_operation():
    manager = make_manager()

    @manager.govern("a", max_output_tokens=50)
    def stream():
        while True:
            yield "word "

    generator = stream()
    next(generator)
    with manager.ledger.lock:  # as if garbage collection ran inside of an operation
        del generator
        gc.collect()
        assert len(manager.ledger.open_holds) == 1
    assert manager.report()["a"]["consumed"] > 0
    assert manager.ledger.open_holds == {}


def test_many_streams_dropped_in_many_threads_are_all_booked():
    manager = tbc.BudgetManager(max_tokens=10**9)
    manager.register_agent("a")

    @manager.govern("a", max_output_tokens=10)
    def stream():
        while True:
            yield "word "

    def work():
        for _ in range(200):
            generator = stream()
            next(generator)
            cycle = [generator]
            cycle.append(cycle)
            del generator, cycle

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    gc.collect()
    manager.report()
    assert manager.ledger.open_holds == {}
    spending = manager.ledger.history("a")
    assert len(spending) == 8 * 200
    assert all(entry.tokens > 0 and entry.estimated for entry in spending)


def run(code: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def test_an_interpreter_with_open_holds_and_streams_exits_cleanly():
    done = run(
        """
        import tbc
        manager = tbc.BudgetManager(max_tokens=1000)
        manager.register_agent("a")
        hold = manager.hold("a", 10)
        stream = manager.govern("a")(lambda: iter(["x", "y"]))()
        next(stream)
        print("open:", len(manager.ledger.open_holds))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "open: 2\n", "")


def test_a_real_interrupt_in_a_governed_call_books_its_input():
    done = run(
        """
        import os, signal, threading, tbc
        signal.signal(signal.SIGINT, signal.default_int_handler)
        manager = tbc.BudgetManager(max_tokens=1000)
        manager.register_agent("a")

        @manager.govern("a")
        def call(text):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(30)

        try:
            call("some words of input")
        except KeyboardInterrupt:
            print(manager.report()["a"]["consumed"] > 0, len(manager.ledger.open_holds))
        """
    )
    assert done.stdout == "True 0\n", done.stderr


def test_a_killed_caller_leaves_nothing_behind_in_another_process():
    """Books in memory die with their process; nobody else is told a wrong number."""
    done = run(
        "import os, signal, tbc; m = tbc.BudgetManager(max_tokens=5); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert done.returncode == -signal.SIGKILL
    assert make_manager().report() == {"a": {"allocated": 0, "consumed": 0, "remaining": 0}}


def test_an_interrupt_between_hold_and_call_still_ends_the_hold():
    """Whatever the counter, the usage function or the confidence function raises, no hold stays open."""

    class Interrupting:
        name, estimated, calls = "interrupting", False, 0

        def count(self, text, /):
            self.calls += 1
            if self.calls == 2:  # the input was counted; the reply is being counted
                raise KeyboardInterrupt
            return 3

    manager = tbc.BudgetManager(max_tokens=1_000, counter=Interrupting())
    manager.register_agent("a")
    with pytest.raises(KeyboardInterrupt):
        manager.govern("a")(lambda text: "reply")("input")
    assert manager.ledger.open_holds == {}
    assert manager.report()["a"]["consumed"] >= 3
