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
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from tbc.axes import CALLS, MAX_AMOUNT, TOKENS, USD, Axis
from tbc.errors import InvalidAmountError, InvalidContractError

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = [
    "MAX_AMOUNT",
    "ROOT",
    "BudgetContract",
    "check_amount",
    "check_fraction",
    "check_name",
    "check_seconds",
]

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


class _OtherCaps(NamedTuple):
    """Terms on axes other than tokens, in the units of the books."""

    usd: int | None
    usd_reserve: int
    calls: int | None


@attrs.define(frozen=True, slots=True, weakref_slot=False, init=False, repr=False)
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
    max_usd : Decimal, str, int or float, optional
        What it owns in dollars; as `max_tokens`. Fractions of a nano-dollar are cut off.
    min_reserve_usd : Decimal, str, int or float, default 0
        Dollars that no transfer and no descendant may take.
    max_calls : int, optional
        How many calls it owns; as `max_tokens`.

    Attributes
    ----------
    max_usd : Decimal or None
    min_reserve_usd : Decimal
    max_calls : int or None
    last_confidence : float or None
        The confidence reported last; written by the manager, never by users.

    Raises
    ------
    InvalidAmountError, InvalidContractError
        Both are a `ValueError`; they name the term and the value.
    """

    agent_name: str
    priority: int
    max_tokens: int | None
    min_reserve: int
    confidence_threshold: float | None
    _others: _OtherCaps | None
    last_confidence: float | None = attrs.field(eq=False)

    def __init__(
        self,
        agent_name: str,
        priority: int = 1,
        max_tokens: int | None = 1000,
        min_reserve: int | None = None,
        confidence_threshold: float | None = None,
        *,
        max_usd: Decimal | str | float | None = None,
        min_reserve_usd: Decimal | str | float | None = None,
        max_calls: int | None = None,
    ) -> None:
        check_name(agent_name)
        priority = check_amount("priority", priority, least=1)
        if max_tokens is not None:
            max_tokens = check_amount("max_tokens", max_tokens)
        owned = max_tokens or 0
        if min_reserve is None:
            min_reserve = owned // 10
        elif check_amount("min_reserve", min_reserve) > owned:
            raise InvalidAmountError("min_reserve", min_reserve, f"between 0 and max_tokens ({max_tokens})")
        if confidence_threshold is not None:
            confidence_threshold = check_fraction("confidence_threshold", confidence_threshold)
        others = None
        if max_usd is not None or min_reserve_usd is not None or max_calls is not None:
            others = _check_others(max_usd, min_reserve_usd, max_calls)
        self.__attrs_init__(agent_name, priority, max_tokens, min_reserve, confidence_threshold, others, None)

    def __repr__(self) -> str:
        names = ["agent_name", "priority", "max_tokens", "min_reserve", "confidence_threshold"]
        if self._others is not None:
            names += ["max_usd", "min_reserve_usd", "max_calls"]
        return f"BudgetContract({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def max_usd(self) -> Decimal | None:
        """Dollars that it owns; ``None`` = no cap of its own."""
        cap = self.cap(USD)
        if cap is None:
            return None
        from tbc.money import to_usd

        return to_usd(cap)

    @property
    def min_reserve_usd(self) -> Decimal:
        """Dollars that no transfer and no descendant may take."""
        from tbc.money import to_usd

        return to_usd(self.reserve(USD))

    @property
    def max_calls(self) -> int | None:
        """Calls that it owns; ``None`` = no cap of its own."""
        return self.cap(CALLS)

    def cap(self, axis: Axis) -> int | None:
        """Return what it owns on an axis, in the unit of the books; ``None`` = no cap of its own."""
        if axis == TOKENS:
            return self.max_tokens
        if self._others is None:
            return None
        return self._others.usd if axis == USD else self._others.calls

    def reserve(self, axis: Axis) -> int:
        """Return what no transfer may take on an axis, in the unit of the books."""
        if axis == TOKENS:
            return self.min_reserve
        return self._others.usd_reserve if self._others is not None and axis == USD else 0

    @property
    def terms(self) -> dict[str, Any]:
        """What makes an equal contract: the arguments after the name."""
        return {
            "priority": self.priority,
            "max_tokens": self.max_tokens,
            "min_reserve": self.min_reserve,
            "confidence_threshold": self.confidence_threshold,
            "max_usd": self.max_usd,
            "min_reserve_usd": None if self._others is None else self.min_reserve_usd,
            "max_calls": self.max_calls,
        }

    def with_terms(self, **terms: Any) -> BudgetContract:
        """Return a copy with other terms that remembers the same last confidence."""
        contract = BudgetContract(self.agent_name, **{**self.terms, **terms})
        contract.note_confidence(self.last_confidence)
        return contract

    def note_confidence(self, confidence: float | None) -> None:
        """Set `last_confidence`; for the manager, under its lock."""
        object.__setattr__(self, "last_confidence", confidence)


def _check_others(max_usd: object, min_reserve_usd: object, max_calls: object) -> _OtherCaps | None:
    from tbc.money import to_nano

    usd = None if max_usd is None else to_nano("max_usd", max_usd, up=False)
    reserve = 0 if min_reserve_usd is None else to_nano("min_reserve_usd", min_reserve_usd)
    if max_usd is None and max_calls is None and not reserve:
        return None
    if reserve > (usd or 0):
        raise InvalidAmountError("min_reserve_usd", min_reserve_usd, f"between 0 and max_usd ({max_usd})")
    return _OtherCaps(usd, reserve, None if max_calls is None else check_amount("max_calls", max_calls))
