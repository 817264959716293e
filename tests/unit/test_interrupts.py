"""Ctrl-C between any two steps of an operation: nothing leaks, nothing is booked twice.

CPython looks at signals where a function begins. `interrupted` raises there, at the k-th function of the
library that an operation enters, for every k there is.
"""

from __future__ import annotations

import contextvars
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.testing import check_books

LIBRARY = str(Path(tbc.__file__).parent)


def interrupted(operation: Callable[[], object], at: int) -> bool:
    """Run an operation with a KeyboardInterrupt at the `at`-th function, and return whether it came."""
    entered = 0

    def trace(frame, event, argument):
        nonlocal entered
        code = frame.f_code
        # A generator is entered once more when it is dropped; nobody would see what is raised there.
        if (
            event == "call"
            and code.co_filename.startswith(LIBRARY)
            and not code.co_flags & inspect.CO_GENERATOR
        ):
            entered += 1
            if entered == at:
                sys.settrace(None)
                raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        operation()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
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
