"""Stub."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from tbc.axes import MAX_AMOUNT, NANO
from tbc.errors import InvalidAmountError

__all__ = ["to_nano", "to_usd"]


def to_nano(name: str, value: object, *, up: bool = True) -> int:
    """Stub."""
    try:
        if isinstance(value, bool):
            raise ValueError
        number = Decimal(str(value)) * NANO
        nano = int(number.to_integral_value(ROUND_CEILING if up else ROUND_FLOOR))
    except (ArithmeticError, ValueError):
        nano = -1
    if not 0 <= nano <= MAX_AMOUNT:
        raise InvalidAmountError(name, value, "dollars >= 0")
    return nano


def to_usd(nano: int) -> Decimal:
    """Stub."""
    return Decimal(nano).scaleb(-9)
