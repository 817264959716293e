"""US dollars and nano-dollars: what users write, what the books hold, and back again.

The books hold whole nano-dollars (1 USD = 10**9). What a user writes as dollars becomes an amount exactly
once: a cost is rounded up, a cap down, so that neither ever grants more than was said. A ``float`` counts as
its shortest decimal form: ``0.1`` is ten cents, not 0.1000000000000000055.

Examples
--------
>>> to_nano("max_usd", "$0.50"), to_nano("cost", 0.1), to_nano("cost", "1e-10")
(500000000, 100000000, 1)
>>> split_usd("1.00", 3)
[Decimal('0.333333334'), Decimal('0.333333333'), Decimal('0.333333333')]
"""

from __future__ import annotations

import operator
import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, InvalidOperation
from typing import Final, TypeAlias

from tbc.axes import MAX_AMOUNT, NANO
from tbc.errors import InvalidAmountError

#: Dollars as users write them.
Money: TypeAlias = Decimal | str | float

__all__ = ["Money", "split_usd", "to_nano", "to_usd", "usd_decimal"]

_RULE: Final = "US dollars >= 0, such as '0.50', 5 or Decimal('0.50')"
_LONGEST: Final = 100
_WRITTEN: Final = re.compile(r"\$?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?", re.ASCII)
_STEP: Final = Decimal("1E-9")
_MOST: Final = Decimal(f"{MAX_AMOUNT}E-9")
_MOST_WHOLE: Final = MAX_AMOUNT // NANO
#: Why a context of our own: the user's may round or trap. 40 digits hold every amount.
_CONTEXT: Final = Context(prec=40, traps=[InvalidOperation])


def usd_decimal(name: str, value: object) -> Decimal:
    """Return US dollars as an exact ``Decimal``, however large or small.

    Parameters
    ----------
    name : str
        What the value was given for.
    value : Decimal, str, int or float
        Dollars >= 0. A ``str`` may begin with ``$``; a ``float`` counts as its shortest decimal form;
        integers of other libraries are accepted.

    Raises
    ------
    InvalidAmountError
        For NaN, infinity, anything negative, ``bool``, other text and other types.
    """
    found = _read(value)
    if found is None or not found.is_finite() or found < 0:
        raise InvalidAmountError(name, value, _RULE)
    return found.copy_abs()


def _read(value: object) -> Decimal | None:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, str):
        text = value.strip() if len(value) <= _LONGEST else ""
        return Decimal(text.removeprefix("$")) if _WRITTEN.fullmatch(text) else None
    if isinstance(value, float):
        return Decimal(float.__repr__(value))
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        return None
    try:
        whole = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    # Why: a very long int is too much anyway, and slow to convert.
    return Decimal(whole) if whole.bit_length() <= 1024 else Decimal("1E+308")


def to_nano(name: str, value: object, *, up: bool = True) -> int:
    """Return US dollars as whole nano-dollars.

    Parameters
    ----------
    name : str
        What the value was given for.
    value : Decimal, str, int or float
        As `usd_decimal` takes it.
    up : bool, default True
        Round a part of a nano-dollar up, as a cost. ``False`` rounds down, as a cap.

    Returns
    -------
    int
        From 0 to `tbc.axes.MAX_AMOUNT`.

    Raises
    ------
    InvalidAmountError
        As `usd_decimal`, and for more than the largest amount of the books.
    """
    if type(value) is int and 0 <= value <= _MOST_WHOLE:  # what follows, at a tenth of its price
        return value * NANO
    dollars = usd_decimal(name, value)
    if dollars > _MOST:
        raise InvalidAmountError(name, value, f"at most {_MOST} US dollars")
    rounding = ROUND_CEILING if up else ROUND_FLOOR
    return int(dollars.quantize(_STEP, rounding, _CONTEXT).scaleb(9, _CONTEXT))


def to_usd(nano: int) -> Decimal:
    """Return nano-dollars as US dollars, exactly. Debts are negative."""
    if isinstance(nano, bool):
        raise InvalidAmountError("nano", nano, "an int")
    return Decimal(f"{operator.index(nano)}E-9")


def split_usd(total: object, parts: int) -> list[Decimal]:
    """Split US dollars into equal slices that sum exactly to the total.

    Parameters
    ----------
    total : Decimal, str, int or float
        The whole, as `to_nano` takes it; a part of a nano-dollar is dropped.
    parts : int
        How many slices, >= 1. What cannot be split evenly goes to the first ones, a nano-dollar each.

    Returns
    -------
    list of Decimal
        The slices.
    """
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise InvalidAmountError("parts", parts, "an int >= 1")
    whole, rest = divmod(to_nano("total", total, up=False), parts)
    return [to_usd(whole + (i < rest)) for i in range(parts)]
