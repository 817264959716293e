"""Dollars become nano-dollars once, rounded the stated way, and nothing that is no amount gets through."""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tbc.axes import MAX_AMOUNT, NANO, USD, format_amount
from tbc.errors import InvalidAmountError
from tbc.money import split_usd, to_nano, to_usd, usd_decimal


@pytest.mark.parametrize(
    ("value", "nano"),
    [
        (0, 0),
        (5, 5 * NANO),
        ("0.50", 500_000_000),
        ("$0.50", 500_000_000),
        (" $.5 ", 500_000_000),
        ("1.", NANO),
        ("2.5e-3", 2_500_000),
        (Decimal("1.23"), 1_230_000_000),
        (Decimal("-0"), 0),
        (0.1, 100_000_000),
        (0.1 + 0.2, 300_000_001),
        (1e-7, 100),
        (-0.0, 0),
        (np.float64(0.1), 100_000_000),
        (np.int64(3), 3 * NANO),
        ("9007199.254740991", MAX_AMOUNT),
    ],
)
def test_dollars_as_users_write_them(value: Any, nano: int) -> None:
    assert to_nano("max_usd", value) == nano


@pytest.mark.parametrize("value", ["1e-10", Decimal("1E-999999999999999999"), "0.0000000001", 1e-300])
def test_a_cost_is_rounded_up_and_a_cap_down(value: Any) -> None:
    assert to_nano("cost", value) == 1
    assert to_nano("cap", value, up=False) == 0


def test_whole_nano_dollars_are_not_rounded() -> None:
    assert to_nano("a", "0.000000001") == to_nano("a", "0.000000001", up=False) == 1
    assert to_nano("a", Decimal("0." + "1" * 100_000)) == 111_111_112


NONSENSE = [
    *(float("nan"), float("inf"), float("-inf"), Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity")),
    *(-1, -0.01, Decimal("-0.000000001"), "-1", "-$1", "$-1", "+1"),
    *(True, False, np.bool_(True), None, [], {}, b"1", 1j, Fraction(1, 2), object()),
    *("", " ", "$", "$$1", "$ 1", "free", "nan", "inf", "1,000", "1_000", "1 000", "0x10", "1e", "٣", "1/2"),
    *("1 USD", "1\n2", "\u00bd", "1" * 101, "0." + "0" * 99 + "1"),
]


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: repr(value)[:30])
def test_story_18_nonsense_is_no_amount_of_money(value: Any) -> None:
    for up in (True, False):
        with pytest.raises(InvalidAmountError, match="max_usd must be US dollars >= 0") as caught:
            to_nano("max_usd", value, up=up)
        assert caught.value.value is value


def test_story_18_zero_is_an_amount() -> None:
    assert to_nano("max_usd", 0) == to_nano("max_usd", "$0.00") == to_nano("max_usd", 0.0) == 0


@pytest.mark.parametrize(
    "value",
    [
        "9007199.2547409911",
        9_007_200,
        "1e999999999",
        1e308,
        Decimal("1E+999999999999999999"),
        Decimal("9" * 100_000),
        10**100_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_more_than_the_books_hold_is_refused_at_once(value: Any) -> None:
    for up in (True, False):
        with pytest.raises(InvalidAmountError, match=r"at most 9007199\.254740991 US dollars") as caught:
            to_nano("max_usd", value, up=up)
        assert len(str(caught.value)) < 400


def test_the_callers_decimal_context_changes_nothing() -> None:
    traps = [decimal.Inexact, decimal.Rounded, decimal.Clamped, decimal.Subnormal]
    with decimal.localcontext(decimal.Context(prec=2, rounding=decimal.ROUND_DOWN, traps=traps)):
        assert to_nano("a", "1.234567890123") == 1_234_567_891
        assert to_usd(1_234_567_891) == Decimal("1.234567891")
        assert format_amount(USD, 1_234_567_891) == "$1.234567891"


def test_a_decimal_is_taken_as_it_is() -> None:
    assert usd_decimal("price", "1e-30") == Decimal("1E-30")
    assert usd_decimal("price", Decimal("0.1") ** 20) == Decimal("1E-20")


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0.00"),
        (41_000_000, "$0.0410"),
        (5 * NANO, "$5.00"),
        (100, "$0.0000001"),
        (1, "$0.000000001"),
        (500_000_000, "$0.50"),
        (12_345_600_000, "$12.3456"),
        (-50_000_000, "-$0.05"),
        (MAX_AMOUNT, "$9007199.254740991"),
        (10**40, "$" + "1" + "0" * 31 + ".00"),
    ],
)
def test_amounts_as_text_are_exact(nano: int, text: str) -> None:
    assert format_amount(USD, nano) == text
    assert to_usd(nano) == Decimal(text.replace("$", ""))


def test_only_ints_are_nano_dollars() -> None:
    with pytest.raises(InvalidAmountError):
        to_usd(True)
    with pytest.raises(TypeError):
        to_usd(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("total", ["1.00", "0.000000010", 0, "9007199.254740991", 0.1])
def test_story_19_eleven_equal_slices_fit_and_sum_to_the_cap(total: Any) -> None:
    slices = split_usd(total, 11)
    assert len(slices) == 11
    assert sum(slices) == Decimal(str(total))
    assert max(slices) - min(slices) <= Decimal("1E-9")
    left = to_nano("cap", total)
    for each in slices:
        left -= to_nano("slice", each)
        assert left >= 0
    assert left == 0


def test_left_over_nano_dollars_go_to_the_first_slices() -> None:
    assert [to_nano("slice", each) for each in split_usd("0.000000011", 3)] == [4, 4, 3]
    assert sum(split_usd("0.0000000119", 3)) == Decimal("0.000000011")


@pytest.mark.parametrize("parts", [0, -1, True, 1.0, "2", None])
def test_parts_are_counted(parts: Any) -> None:
    with pytest.raises(InvalidAmountError, match="parts"):
        split_usd(1, parts)


def test_story_19_a_million_small_charges_total_exactly_ten_cents() -> None:
    charge = to_nano("charge", 0.0000001)
    total = sum(charge for _ in range(1_000_000))
    assert to_usd(total) == Decimal("0.10")
    assert format_amount(USD, total) == "$0.10"


def test_story_19_saving_and_loading_keeps_every_digit() -> None:
    for nano in (1, 123_456_789_012_345, MAX_AMOUNT):
        assert to_nano("saved", str(to_usd(nano))) == nano
        assert to_nano("saved", format_amount(USD, nano)) == nano
