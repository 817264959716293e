"""Axes: what is counted. Amounts on every axis are integers: tokens, nano-dollars, calls.

Examples
--------
>>> format_amount("usd", 41_000_000), format_amount("tokens", 1500), format_amount("calls", 1)
('$0.0410', '1,500 tokens', '1 call')
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["AXES", "CALLS", "MAX_AMOUNT", "NANO", "TOKENS", "USD", "Axis", "format_amount", "format_number"]

Axis = Literal["tokens", "usd", "calls"]

TOKENS: Final = "tokens"
USD: Final = "usd"
CALLS: Final = "calls"
#: All axes, in the order in which they are asked.
AXES: Final[tuple[Axis, ...]] = (TOKENS, USD, CALLS)

#: The largest amount of any one value: exact in JSON, JavaScript and Lua too.
MAX_AMOUNT: Final = 2**53 - 1

#: Nano-dollars in a dollar.
NANO: Final = 10**9


def format_number(axis: Axis, amount: int) -> str:
    """Return an amount exactly, without its unit: ``"$0.05"``, ``"1,500"``.

    Dollars have two decimals, four, or all it takes; debts begin with a minus: ``"-$0.05"``.
    """
    if axis != USD:
        return f"{amount:,}"
    whole, nano = divmod(abs(amount), NANO)
    decimals = f"{nano:09d}".rstrip("0")
    decimals = decimals.ljust(2 if len(decimals) <= 2 else 4, "0")
    return f"{'-' if amount < 0 else ''}${whole}.{decimals}"


def format_amount(axis: Axis, amount: int) -> str:
    """Return an amount exactly, in words: ``"$0.05"``, ``"1,500 tokens"``, ``"1 call"``."""
    number = format_number(axis, amount)
    return number if axis == USD else f"{number} {axis[:-1] if amount == 1 else axis}"
