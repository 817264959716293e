"""Contracts: what an agent may spend, what it may never lose, and when it has had enough.

A contract is a frozen record. The one thing on it that moves is `last_confidence`, which the manager writes
when a confidence is reported.

Examples
--------
>>> BudgetContract("writer", priority=9, max_tokens=500)
BudgetContract(agent_name='writer', priority=9, max_tokens=500, min_reserve=50, confidence_threshold=None)
"""

from __future__ import annotations

import operator
from typing import Any

import attrs

from tbc.errors import InvalidAmountError, InvalidContractError

__all__ = [
    "MAX_AMOUNT",
    "ROOT",
    "BudgetContract",
    "check_amount",
    "check_fraction",
    "check_name",
    "check_seconds",
]

#: The largest amount of any one value: exact in JSON, JavaScript and Lua too.
MAX_AMOUNT = 2**53 - 1

#: Name of the root account: the manager-wide cap and treasury. No agent may take it.
ROOT = "(root)"


def check_amount(name: str, value: object, *, least: int = 0) -> int:
    """Return `value` as an ``int`` from `least` to `MAX_AMOUNT`.

    Integers of other libraries (anything with ``__index__``) are accepted; ``bool`` and ``float`` are not.

    Raises
    ------
    InvalidAmountError
        If it is anything else.
    """
    if type(value) is not int:
        if isinstance(value, bool) or not hasattr(type(value), "__index__"):
            raise InvalidAmountError(name, value, f">= {least} and an int")
        try:
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise InvalidAmountError(name, value, f">= {least} and an int") from None
    if not least <= value <= MAX_AMOUNT:
        raise InvalidAmountError(name, value, f">= {least} and at most {MAX_AMOUNT}")
    return value


def check_fraction(name: str, value: object) -> float:
    """Return `value` as a ``float`` from 0 to 1; NaN, ``bool`` and everything else is refused."""
    try:
        fits = not isinstance(value, (bool, str)) and bool(0 <= value <= 1)  # type: ignore[operator]
    except (TypeError, ValueError, ArithmeticError):
        fits = False
    if not fits:
        raise InvalidAmountError(name, value, "between 0 and 1")
    return float(value)  # type: ignore[arg-type]


def check_seconds(name: str, value: object) -> float:
    """Return `value` as a number of seconds > 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise InvalidAmountError(name, value, "a number of seconds > 0 and below 10**12")
    return float(value)


def check_name(value: object) -> str:
    """Return `value` if it can name an agent: a non-empty ``str`` other than `ROOT`."""
    if not isinstance(value, str) or not value or value == ROOT:
        raise InvalidContractError(f"agent_name must be a non-empty str other than {ROOT!r}, not {value!r}")
    return value


def _as_given(min_reserve: int | None) -> int:
    """Tell the type checker that ``None`` is accepted here, and what becomes of it below."""
    return min_reserve  # type: ignore[return-value]


@attrs.define(frozen=True, slots=True, weakref_slot=False)
class BudgetContract:
    """An agent's terms.

    Parameters
    ----------
    agent_name : str
        Who signs.
    priority : int, default 1
        From 1 up; higher is more important. Budget moves from lower or equal priorities only.
    max_tokens : int or None, default 1000
        What the agent owns. 0 = owns nothing (it draws and borrows as needed); ``None`` = no cap of its own.
    min_reserve : int, optional
        Tokens that no transfer and no descendant may take; the agent itself may spend them. Default: a tenth
        of `max_tokens`, rounded down.
    confidence_threshold : float, optional
        From 0 to 1: once a reported confidence reaches it, the agent may spend no more.

    Attributes
    ----------
    last_confidence : float or None
        The confidence reported last; written by the manager, never by users.

    Raises
    ------
    InvalidAmountError, InvalidContractError
        Both are a `ValueError`; they name the term and the value.
    """

    agent_name: str
    priority: int = 1
    max_tokens: int | None = 1000
    min_reserve: int = attrs.field(default=None, converter=_as_given)
    confidence_threshold: float | None = None
    last_confidence: float | None = attrs.field(default=None, init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        put = object.__setattr__
        check_name(self.agent_name)
        put(self, "priority", check_amount("priority", self.priority, least=1))
        if self.max_tokens is not None:
            put(self, "max_tokens", check_amount("max_tokens", self.max_tokens))
        owned = self.max_tokens or 0
        if self.min_reserve is None:
            put(self, "min_reserve", owned // 10)
        elif check_amount("min_reserve", self.min_reserve) > owned:
            raise InvalidAmountError(
                "min_reserve", self.min_reserve, f"between 0 and max_tokens ({self.max_tokens})"
            )
        if self.confidence_threshold is not None:
            threshold = check_fraction("confidence_threshold", self.confidence_threshold)
            put(self, "confidence_threshold", threshold)

    def with_terms(self, **terms: Any) -> BudgetContract:
        """Return a copy with other terms that remembers the same last confidence."""
        contract = attrs.evolve(self, **terms)
        contract.note_confidence(self.last_confidence)
        return contract

    def note_confidence(self, confidence: float | None) -> None:
        """Set `last_confidence`; for the manager, under its lock."""
        object.__setattr__(self, "last_confidence", confidence)
