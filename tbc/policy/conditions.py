"""What a policy is asked about, and the comparisons that its rules are made of.

A comparison with something that is not there never holds: a confidence that nobody reported, or the share
that is left of a budget of nothing. What has no limit is larger than every number: without a budget
``budget_share >= 0.40`` holds, without an SLA ``sla_ms < 200`` does not.

Examples
--------
>>> condition = Condition.parse("budget_share < 0.10")
>>> condition
Condition(field='budget_share', operator='<', value=Decimal('0.10'))
>>> condition.holds(Situation("plan", remaining=99, total=1000))
True
>>> condition.holds(Situation("plan", remaining=100, total=1000))
False
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, TypeAlias

import attrs

from tbc.axes import MAX_AMOUNT, NANO, USD, format_amount
from tbc.contract import check_amount, check_fraction
from tbc.errors import InvalidAmountError, InvalidPolicyError
from tbc.reading import hint, shown

__all__ = ["FIELDS", "OPERATORS", "Condition", "Situation", "Value"]

#: What a field may be: text, an exact number, infinity (no limit), or ``None`` (not there).
Value: TypeAlias = str | int | Fraction | float | None

#: What can be compared, in the order in which it is listed.
FIELDS: Final = ("step", "budget_share", "budget_usd", "sla_ms", "priority", "confidence")
OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_OF_TEXT: Final = ("==", "!=")
_WRITTEN: Final = re.compile(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*(.*?)\s*", re.ASCII)
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?", re.ASCII)
#: Digits after the point: so few that between two constants there is always a number that can be given.
_DECIMALS: Final = 9
_NUMBERS: Final = f"a number of at most {_DECIMALS} decimals, from -{MAX_AMOUNT} to {MAX_AMOUNT}"


@attrs.frozen
class Situation:
    """What a policy is asked about.

    Parameters
    ----------
    step : str
        The type of the step.
    remaining, total : int or None
        What is left of the budget, and all of it, in nano-dollars; ``None``, both: there is no budget. A debt
        is negative.
    sla_ms : int or None
        Milliseconds that the step may take. 0 is an SLA that nothing can meet but what takes no time;
        ``None``: there is none.
    priority : int, default 1
        That of the agent, from 1 up.
    confidence : float or None
        The one reported last, 0 to 1; ``None``: none was.

    Raises
    ------
    InvalidAmountError
        For anything else.
    """

    step: str
    remaining: int | None = attrs.field(kw_only=True)
    total: int | None = attrs.field(kw_only=True)
    sla_ms: int | None = attrs.field(default=None, kw_only=True)
    priority: int = attrs.field(default=1, kw_only=True)
    confidence: float | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.step, str) or not self.step.strip():
            raise InvalidAmountError("step", self.step, "the type of a step, as text")
        if (self.remaining is None) != (self.total is None):
            raise InvalidAmountError(
                "remaining", self.remaining, f"None if total is, and only then (it is {shown(self.total)})"
            )
        if self.total is not None:
            check_amount("total", self.total)
            check_amount("remaining", self.remaining, least=-MAX_AMOUNT)
            if self.total == 0 and self.left > 0:
                raise InvalidAmountError("remaining", self.remaining, "at most 0, of a total of 0")
        if self.sla_ms is not None:
            check_amount("sla_ms", self.sla_ms)
        check_amount("priority", self.priority, least=1)
        if self.confidence is not None:
            check_fraction("confidence", self.confidence)

    @property
    def left(self) -> float:
        """What is left, in nano-dollars; infinity without a budget."""
        return math.inf if self.remaining is None else self.remaining

    def value(self, field: str) -> Value:
        """Return what a condition compares, exactly."""
        if field == "budget_share":
            return _share(self.remaining, self.total)
        if field == "budget_usd":
            return math.inf if self.total is None else Fraction(self.total, NANO)
        if field == "sla_ms":
            return math.inf if self.sla_ms is None else self.sla_ms
        if field == "confidence":
            return None if self.confidence is None else Fraction(repr(float(self.confidence)))
        return self.step if field == "step" else self.priority

    def tell(self, field: str) -> str:
        """Return in words what a condition on that field was decided by."""
        if field in ("budget_share", "budget_usd"):
            if self.remaining is None or self.total is None:
                return "there is no budget"
            return f"{format_amount(USD, self.remaining)} of {format_amount(USD, self.total)} is left"
        if field == "sla_ms":
            return "there is no SLA" if self.sla_ms is None else f"the SLA is {self.sla_ms} ms"
        return f"it is {shown(self.confidence if field == 'confidence' else self.priority)}"


def _share(remaining: int | None, total: int | None) -> Value:
    if remaining is None or total is None:
        return math.inf
    if total == 0:
        return -math.inf if remaining < 0 else None
    return Fraction(remaining, total)


@attrs.frozen
class Condition:
    """A comparison with a constant.

    Parameters
    ----------
    field : str
        ``step``; ``budget_share`` (the part of the budget that is left); ``budget_usd`` (the whole budget, in
        dollars); ``sla_ms``; ``priority``; ``confidence``.
    operator : str
        ``<``, ``<=``, ``>``, ``>=``, ``==`` or ``!=``; for a step one of the last two.
    value : str, int, float or Decimal
        The constant. A ``float`` counts as its shortest decimal form. At most nine decimals.

    Raises
    ------
    InvalidPolicyError
        If there is no such field or operator, or the constant is none for them.
    """

    field: str
    operator: str
    value: Decimal | str
    _bound: Fraction | str = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.field not in FIELDS:
            known = hint(self.field, FIELDS) or f"; known are {', '.join(FIELDS)}"
            raise _wrong(f"no field is called {shown(self.field)}{known}")
        operators = _OF_TEXT if self.field == "step" else tuple(OPERATORS)
        if self.operator not in operators:
            raise _wrong(f"{self.field} is compared by {' '.join(operators)}, not by {shown(self.operator)}")
        put = object.__setattr__
        if self.field == "step":
            if not isinstance(self.value, str) or not self.value.strip():
                raise _wrong(f"step is compared with the type of a step, not with {shown(self.value)}")
            put(self, "_bound", self.value)
            return
        number = _number(self.value)
        if number is None:
            raise _wrong(f"{self.field} is compared with {_NUMBERS}, not with {shown(self.value)}")
        put(self, "value", number)
        put(self, "_bound", Fraction(number))

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Return the condition that a text such as ``"budget_share < 0.10"`` states.

        Raises
        ------
        InvalidPolicyError
            If it states none.
        """
        match = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise _wrong(f'must be field, operator and constant, as "budget_share < 0.10", not {shown(text)}')
        field, sign, value = match.groups()
        return cls(field, sign, value.removeprefix("$") if field == "budget_usd" else value)

    @property
    def bound(self) -> Fraction | str:
        """The constant, exactly."""
        return self._bound

    def holds(self, situation: Situation) -> bool:
        """Return whether it is so."""
        return self.holds_for(situation.value(self.field))

    def holds_for(self, value: Value) -> bool:
        """Return whether it is so for that value of its field; never for ``None``."""
        return value is not None and OPERATORS[self.operator](value, self._bound)

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else format(self.value, "f")
        return f"{self.field} {self.operator} {value}"


def _number(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str)):
        return None
    text = value if isinstance(value, str) else repr(value) if isinstance(value, float) else ""
    if not text:
        found = Decimal(value)
    elif _NUMBER.fullmatch(text) or (isinstance(value, float) and math.isfinite(value)):
        found = Decimal(text)
    else:
        return None
    exponent = found.as_tuple().exponent
    fits = isinstance(exponent, int) and exponent >= -_DECIMALS and abs(found) <= MAX_AMOUNT
    return found if fits else None


def _wrong(what: str) -> InvalidPolicyError:
    return InvalidPolicyError("condition", [("", what)])
