"""Ctrl-C between any two steps of an operation: nothing leaks, nothing is booked twice, nobody waits forever.

CPython looks at signals where a function begins, and where one written in C has returned. `interrupted`
raises there, at the k-th such point of the library that an operation comes to, for every k there is.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.stores import SqliteStore
from tbc.testing import check_books

LIBRARY = str(Path(tbc.__file__).parent)


def interrupted(operation: Callable[[], object], at: int, points: tuple[str, ...] = ("call",)) -> bool:
    """Run an operation with a KeyboardInterrupt at the `at`-th of the points, and return whether it came."""
    passed = 0

    def profile(frame, event, argument):
        nonlocal passed
        code = frame.f_code
        # A generator is entered once more when it is dropped; nobody would see what is raised there.
        dropped = event == "call" and code.co_flags & inspect.CO_GENERATOR
        ours = code.co_filename.startswith(LIBRARY)
        if "c_return" in points and frame.f_back is not None:  # also on the way into what the library calls
            ours |= event == "call" and frame.f_back.f_code.co_filename.startswith(LIBRARY)
        if event in points and ours and not dropped:
            passed += 1
            if passed == at:
                sys.setprofile(None)
                raise KeyboardInterrupt

    before = sys.getprofile()
    gc.disable()  # nor would anybody see what is raised in a finalizer
    sys.setprofile(profile)
    try:
        operation()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(before)
        gc.enable()
    return False


class Market:
    """Two lenders and a borrower, on tokens and on dollars."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.manager = tbc.BudgetManager(clock=self.clock, unknown_price="track")
        for name, priority in (("low", 1), ("mid", 2), ("high", 9)):
            self.manager.register_agent(
                name, priority, 1000, 0, max_usd="0.000001", min_reserve_usd=0
            )  # 1000 nano-dollars

    def hold(self, amount: int) -> tbc.Hold:
        return self.manager.hold("high", amount, usd=f"{amount}e-9")


def settle(tokens: int, amount: int) -> Callable[[Market], Callable[[], object]]:
    def prepare(market: Market) -> Callable[[], object]:
        hold = market.hold(amount)

        hold.__enter__()

        def operation() -> None:
            try:
                hold.settle(tokens, usd=f"{tokens}e-9")
            finally:
                hold.__exit__(*sys.exc_info())

        return operation

    return prepare


def void(market: Market) -> Callable[[], object]:
    return market.hold(2500).void


def expire(market: Market) -> Callable[[], object]:
    market.hold(2500)
    market.clock.advance(601)
    return market.manager.report


def settle_late(market: Market) -> Callable[[], object]:
    hold = market.hold(2500)
    market.clock.advance(601)
    market.manager.report()
    return lambda: hold.settle(1800, usd="1800e-9")


def extend(market: Market) -> Callable[[], object]:
    hold = market.hold(500)
    return lambda: hold.extend(2000, usd="2000e-9")


def drop(market: Market) -> Callable[[], object]:
    hold = market.hold(2500)

    def block():
        with hold:
            yield

    left = block()
    next(left)
    return left.close


OPERATIONS = {
    "hold": lambda market: lambda: market.hold(2500),
    "settle below the loans": settle(1800, 2500),
    "settle above the hold": settle(1800, 500),
    "void": void,
    "expire": expire,
    "settle late": settle_late,
    "extend": extend,
    "drop": drop,
    "rebalance": lambda market: lambda: market.manager.rebalance({"high": 1500}),
}
#: What the operation itself may book, or the exit of its block.
SPENDING = {"settle below the loans": {1800, 2500}, "settle above the hold": {500, 1800}, "drop": {0, 2500}}


def interrupt_and_check(title: str, at: int) -> bool:
    market = Market()
    came = interrupted(OPERATIONS[title](market), at)
    if title != "extend":  # there the loans stand before the hold has grown
        check_books(market.manager)
    market.clock.advance(700)
    market.manager.report()
    check_books(market.manager)
    for axis in ("tokens", "usd"):
        accounts = market.manager.accounts(axis)
        sums = [sum(getattr(each, name) for each in accounts) for name in ("held", "lent", "borrowed")]
        assert sums == [0, 0, 0], f"{axis}, interrupted at {at}"
        assert sum(each.allocated or 0 for each in accounts) == 3000
        spent = sum(each.consumed for each in accounts)
        if title in SPENDING:
            assert spent in SPENDING[title], f"{axis}, interrupted at {at}"
    return came


@pytest.mark.parametrize("title", OPERATIONS)
def test_an_interrupted_operation_leaks_nothing(title):
    at = 1
    # A context of its own: the exit of a block may be what is interrupted.
    while contextvars.copy_context().run(interrupt_and_check, title, at):
        at += 1
    assert at > 5, "nothing was interrupted"


def hold_in_a_file(
    manager: tbc.BudgetManager, number: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    def hold() -> tbc.Hold:
        return manager.hold("a", 1, key=f"hold {number}")

    return hold, lambda: hold().settle(1)


def settle_in_a_file(
    manager: tbc.BudgetManager, number: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    settle = functools.partial(manager.hold("a", 1).settle, 1)
    return settle, settle


def read_a_file(manager: tbc.BudgetManager, number: int) -> tuple[Callable[[], object], Callable[[], object]]:
    return manager._store.info, lambda: manager.record_usage("a", 1)


@pytest.mark.parametrize("prepare", [hold_in_a_file, settle_in_a_file, read_a_file])
def test_an_interrupted_operation_on_a_file_keeps_nobody_waiting(tmp_path, monkeypatch, prepare):
    """Other threads and other processes go on, and what is asked again is done once."""
    monkeypatch.setattr("tbc.stored._EVERY_S", 3600.0)
    path, at, came = tmp_path / "books.db", 0, True
    with (
        SqliteStore(path, busy_timeout_s=0.0) as store,
        SqliteStore(path, busy_timeout_s=0.0) as other,
        tbc.BudgetManager(store=store, max_tokens=10**6) as manager,
    ):
        manager.register_agent("a", max_tokens=0)
        while came:
            at += 1
            operation, again = prepare(manager, at)
            came = interrupted(operation, at, ("call", "c_return"))
            with other.transaction():
                pass
            done: list[object] = []
            thread = threading.Thread(target=lambda: done.append(again()), daemon=True)  # noqa: B023
            thread.start()
            thread.join(20)
            if not done:
                manager._clerk._led = False  # so that it can be closed
            assert done, f"interrupted at {at}"
        check_books(manager)
        assert manager.report()["a"] == {"allocated": at, "consumed": at, "remaining": 0}
        with tbc.BudgetManager(store=other) as restarted:
            assert restarted.accounts() == manager.accounts()
    assert at > 20, "nothing was interrupted"
