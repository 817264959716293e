"""Requests that cannot be: each must raise its typed error and leave the books untouched.

A table, so that it reads as one: what it is, the error, and the call with a manager and the name of an agent
(open or closed), or with a hold (open or ended).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tbc.contract import MAX_AMOUNT, ROOT
from tbc.errors import (
    InvalidAmountError,
    InvalidContractError,
    TBCError,
    UnknownAgentError,
)
from tbc.holds import Hold
from tbc.manager import BudgetManager

__all__ = ["BAD_HOLD_INPUTS", "BAD_INPUTS"]

#: What is no amount. Typed as anything: that is the point.
_NO_AMOUNTS: tuple[Any, ...] = (
    -1,
    MAX_AMOUNT + 1,
    True,
    False,
    1.0,
    0.5,
    float("nan"),
    float("inf"),
    "5",
    None,
)
_NO_FRACTIONS: tuple[Any, ...] = (-0.1, 1.1, float("nan"), True, "0.5")
_NO_SECONDS: tuple[Any, ...] = (0, -1, float("nan"), float("inf"), True, "5")

_Call = Callable[[BudgetManager, str], object]
_HoldCall = Callable[[Hold], object]


_Row = tuple[str, type[TBCError], _Call]


def _bad_amount(bad: Any) -> list[_Row]:
    calls: list[tuple[str, _Call]] = [
        ("hold", lambda manager, name: manager.hold(name, bad)),
        ("decide", lambda manager, name: manager.decide(name, bad)),
        ("record_usage", lambda manager, name: manager.record_usage(name, bad)),
        ("top_up", lambda manager, name: manager.top_up(name, bad)),
        ("rebalance", lambda manager, name: manager.rebalance({name: bad})),
        ("priority", lambda manager, name: manager.register_agent("new", priority=bad)),
    ]
    if bad is not None:
        calls.append(("cap", lambda manager, name: manager.register_agent("new", 1, bad)))
    return [(f"{title} of {bad!r}", InvalidAmountError, call) for title, call in calls]


def _bad_fraction(bad: Any) -> list[_Row]:
    calls: list[_Call] = [
        lambda manager, name: manager.report_confidence(name, bad),
        lambda manager, name: manager.record_usage(name, 1, "usage", bad),
        lambda manager, name: manager.register_agent("new", confidence_threshold=bad),
    ]
    return [(f"confidence {bad!r}", InvalidAmountError, call) for call in calls]


def _bad_seconds(bad: Any) -> _Row:
    return (
        f"hold for {bad!r} seconds",
        InvalidAmountError,
        lambda manager, name: manager.hold(name, 1, expires_s=bad),
    )


#: What, the error, and the call.
BAD_INPUTS: tuple[tuple[str, type[TBCError], _Call], ...] = (
    *(row for bad in _NO_AMOUNTS for row in _bad_amount(bad)),
    *(row for bad in _NO_FRACTIONS for row in _bad_fraction(bad)),
    *(_bad_seconds(bad) for bad in _NO_SECONDS),
    ("hold of nobody", UnknownAgentError, lambda manager, name: manager.hold("nobody", 1)),
    ("decide of nobody", UnknownAgentError, lambda manager, name: manager.decide("nobody", 1)),
    ("usage of nobody", UnknownAgentError, lambda manager, name: manager.record_usage("nobody", 1)),
    ("remaining of nobody", UnknownAgentError, lambda manager, name: manager.remaining("nobody")),
    ("top up of nobody", UnknownAgentError, lambda manager, name: manager.top_up("nobody", 1)),
    ("close of nobody", UnknownAgentError, lambda manager, name: manager.close_agent("nobody")),
    ("update of nobody", UnknownAgentError, lambda manager, name: manager.update_agent("nobody")),
    ("rebalance of nobody", UnknownAgentError, lambda manager, name: manager.rebalance({"nobody": 1})),
    (
        "confidence of nobody",
        UnknownAgentError,
        lambda manager, name: manager.report_confidence("nobody", 0.5),
    ),
    (
        "child of nobody",
        UnknownAgentError,
        lambda manager, name: manager.register_agent("new", parent="nobody"),
    ),
    ("close of the root", InvalidContractError, lambda manager, name: manager.close_agent(ROOT)),
    ("agent without a name", InvalidContractError, lambda manager, name: manager.register_agent("")),
    ("agent named as the root", InvalidContractError, lambda manager, name: manager.register_agent(ROOT)),
    (
        "own parent",
        InvalidContractError,
        lambda manager, name: manager.register_agent("new", parent="new"),
    ),
    (
        "reserve above the cap",
        InvalidAmountError,
        lambda manager, name: manager.register_agent("new", 1, 10, 11),
    ),
    ("update to priority 0", TBCError, lambda manager, name: manager.update_agent(name, priority=0)),
    (
        "update to a negative reserve",
        TBCError,
        lambda manager, name: manager.update_agent(name, min_reserve=-1),
    ),
    ("empty key", TBCError, lambda manager, name: manager.hold(name, 1, key="")),
)

#: The same for holds.
BAD_HOLD_INPUTS: tuple[tuple[str, type[TBCError], _HoldCall], ...] = (
    *(
        (f"settle with {bad!r}", InvalidAmountError, lambda hold, bad=bad: hold.settle(bad))
        for bad in _NO_AMOUNTS
        if bad is not None  # unknown: the whole hold is booked
    ),
    *(
        (f"extend by {bad!r}", InvalidAmountError, lambda hold, bad=bad: hold.extend(bad))
        for bad in _NO_AMOUNTS
    ),
    *(
        (
            f"extend for {bad!r} seconds",
            InvalidAmountError,
            lambda hold, bad=bad: hold.extend(expires_s=bad),
        )
        for bad in _NO_SECONDS
    ),
    *((f"record {bad!r}", InvalidAmountError, lambda hold, bad=bad: hold.record(bad)) for bad in _NO_AMOUNTS),
)
