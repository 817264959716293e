"""What holds for every amount and every price: rounding is stated, holds cover, nothing known is free."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from tbc.axes import USD, format_amount
from tbc.contract import MAX_AMOUNT
from tbc.errors import InvalidAmountError, TBCError
from tbc.money import split_usd, to_nano, to_usd
from tbc.pricing import Price, Prices, Rates, Tier, check_unknown_price
from tbc.rates import CLASSES
from tbc.usage import Usage

nano_amounts = st.integers(0, MAX_AMOUNT)
dollars = st.decimals(0, 9_000_000, allow_nan=False, allow_infinity=False)
tokens = st.integers(0, 10**7)
fractions = st.fractions(0, 10**9, max_denominator=10**12)
anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals(allow_nan=True)
    | st.text(max_size=12)
    | st.text("$0123456789.eE+-_, ", max_size=12)
    | st.lists(st.integers(), max_size=2)
)

rates = st.builds(
    Rates,
    **{name: st.none() | fractions for name in CLASSES if name not in ("input", "output")},
    input=fractions,
    output=st.none() | fractions,
)
prices = st.builds(
    lambda rates, tiers, fee: Price(
        rates=rates,
        tiers=[Tier(above=above, rates=each) for above, each in sorted(tiers.items())],
        per_request=fee,
    ),
    rates,
    st.dictionaries(st.integers(0, 2 * 10**7), rates, max_size=3),
    fractions,
)


def exact(price: Price, counts: dict[str, int]) -> Fraction:
    """Return a cost before rounding, by the words of the rules and nothing else."""
    prompt = sum(count for name, count in counts.items() if not name.startswith("output"))
    found = price.rates
    for tier in price.tiers:
        if prompt > tier.above:
            found = tier.rates
    part_of = {
        "input": "output",
        "output": "input",
        "cached_read": "input",
        "cached_write": "input",
        "cached_write_1h": "cached_write",
        "input_audio": "input",
        "cached_audio_read": "input_audio" if found.input_audio is not None else "cached_read",
        "output_audio": "output",
    }
    total = price.per_request
    for name, count in counts.items():
        while getattr(found, name) is None:
            name = part_of[name]
        total += getattr(found, name) * count
    return total


@given(dollars)
def test_rounding_is_to_the_next_nano_dollar(value: Decimal) -> None:
    up, down = to_nano("a", value), to_nano("a", value, up=False)
    assert up == math.ceil(Fraction(value) * 10**9)
    assert down == math.floor(Fraction(value) * 10**9)


@given(st.floats(0, 9e6))
def test_a_float_is_its_shortest_decimal_form(value: float) -> None:
    assert to_nano("a", value) == to_nano("a", repr(value)) == to_nano("a", Decimal(repr(value)))


@given(nano_amounts)
def test_amounts_come_back_as_they_went(nano: int) -> None:
    text = format_amount(USD, nano)
    assert to_nano("a", to_usd(nano)) == to_nano("a", text) == to_nano("a", text, up=False) == nano
    assert len(text.partition(".")[2]) >= 2


@given(anything)
def test_whatever_is_given_is_an_amount_or_a_typed_error(value: Any) -> None:
    try:
        nano = to_nano("a", value)
    except InvalidAmountError as error:
        assert str(error)
    else:
        assert 0 <= nano <= MAX_AMOUNT
        assert to_nano("a", value, up=False) in (nano, nano - 1)


@given(nano_amounts, st.integers(1, 50))
def test_slices_are_equal_and_sum_to_the_total(nano: int, parts: int) -> None:
    slices = [to_nano("slice", each) for each in split_usd(to_usd(nano), parts)]
    assert len(slices) == parts and sum(slices) == nano
    assert slices == sorted(slices, reverse=True) and slices[0] - slices[-1] <= 1


@given(prices, st.fixed_dictionaries(dict.fromkeys(CLASSES, tokens)))
def test_a_cost_is_the_exact_sum_rounded_up_once(price: Price, counts: dict[str, int]) -> None:
    usage: Any = SimpleNamespace(**{f"{name}_tokens": count for name, count in counts.items()})
    assert price.cost(usage) == math.ceil(exact(price, counts))


@given(prices, tokens, tokens, tokens, tokens, tokens)
def test_no_text_usage_costs_more_than_its_ceiling(
    price: Price, fresh: int, read: int, write: int, hour: int, output: int
) -> None:
    usage: Any = SimpleNamespace(
        input_tokens=fresh,
        cached_read_tokens=read,
        cached_write_tokens=write,
        cached_write_1h_tokens=hour,
        output_tokens=output,
        reasoning_tokens=output,
    )
    ceiling = price.ceiling(fresh + read + write + hour, output)
    assert price.cost(usage) <= ceiling
    # And it is no larger than it must be: some split of the same input costs that much.
    prompt = fresh + read + write + hour
    splits = ("input", "cached_read", "cached_write", "cached_write_1h")
    assert ceiling == max(math.ceil(exact(price, {each: prompt, "output": output})) for each in splits)


@given(prices, tokens, tokens)
def test_a_class_that_is_not_stated_counts_as_none_used(price: Price, fresh: int, output: int) -> None:
    sparse = Usage(input_tokens=fresh, output_tokens=output)
    full = Usage(input_tokens=fresh, cached_read_tokens=0, cached_write_tokens=0, output_tokens=output)
    assert price.cost(sparse) == price.cost(full)


@given(prices, st.sampled_from(CLASSES), st.integers(1, 10**7))
def test_only_a_rate_of_zero_makes_tokens_free(price: Price, name: str, count: int) -> None:
    cost = price.cost(SimpleNamespace(**{f"{name}_tokens": count}))  # type: ignore[arg-type]
    assert (cost == 0) == (exact(price, {name: count}) == 0)
    assert not price.is_free or cost == 0


per_million = st.decimals(Decimal("0.0001"), 10_000, places=6)


@given(st.dictionaries(st.sampled_from(CLASSES), per_million), per_million, per_million)
def test_both_units_make_the_same_price(named: dict[str, Decimal], text: Decimal, output: Decimal) -> None:
    named = {**named, "input": text, "output": output}
    million = {f"{name}_per_million": value for name, value in named.items()}
    token = {f"{name}_per_token": str(value / 1_000_000) for name, value in named.items()}
    assume(all(Decimal("0.0001") <= value <= 10_000 for value in named.values()))
    prices = Prices({"million": million, "token": token}, default=False)
    one, other = prices.find("million"), prices.find("token")
    assert one is not None and one == other
    assert one.rates == other.rates
    assert one.rates.input == Fraction(text) * 1000


@given(st.dictionaries(st.text(max_size=8) | st.sampled_from(CLASSES), anything, max_size=3) | anything)
def test_any_table_is_read_or_refused_with_a_typed_error(price: Any) -> None:
    try:
        found = Prices({"m": price}, default=False).find("m")
    except TBCError as error:
        assert "prices['m']" in str(error)
    else:
        assert found is not None


@given(anything)
def test_any_policy_is_a_policy_or_a_typed_error(policy: Any) -> None:
    try:
        checked = check_unknown_price(policy, Prices(default=False))
    except TBCError as error:
        assert "unknown_price" in str(error)
    else:
        assert isinstance(checked, Price) or checked in ("refuse", "track")
        assert not isinstance(checked, Price) or not checked.is_free
