"""What a step costs: by its own cost model, else by its model, else by what is assumed of unknown ones."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, NamedTuple

from tbc.axes import NANO
from tbc.errors import InvalidAmountError, InvalidPriceError, UnknownPriceError
from tbc.money import usd_decimal
from tbc.pricing import Price, Prices, UnknownPrice, check_unknown_price, resolve
from tbc.rates import CLASSES, Rates

__all__ = ["REFUSE", "TRACK", "Policy", "price_of", "read_cost_model", "read_policy"]

_HINT: Final = 'For one step, cost_model={"input": "...", "output": "..."} says it in US dollars per token.'
#: Dollars per token, at most, and their decimals: a fraction writes every digit out.
_MOST, _DECIMALS = Decimal(1_000_000), 40


class Policy(NamedTuple):
    """What is done about a model without a known price: ``"refuse"``, ``"track"``, or what to assume.

    Attributes
    ----------
    policy : str or Price
        As `tbc.pricing.check_unknown_price` returns it.
    name : str
        What is assumed, as the user wrote it; ``""`` if nothing is.
    is_model : bool
        Whether that is the name of a model.
    """

    policy: str | Price
    name: str = ""
    is_model: bool = False


REFUSE: Final = Policy("refuse")
TRACK: Final = Policy("track")


def read_policy(unknown_price: UnknownPrice, prices: Prices) -> Policy:
    """Return a checked `unknown_price`."""
    policy = check_unknown_price(unknown_price, prices)
    if not isinstance(policy, Price):
        return REFUSE if policy == "refuse" else TRACK
    is_model = policy.source.startswith("assumed: as")
    name = str(unknown_price) if is_model else f"${str(unknown_price).removeprefix('$')} per million tokens"
    return Policy(policy, name, is_model)


def price_of(model: str | None, prices: Prices, policy: Policy, on: date | None) -> Price | None:
    """Return the price of a model; ``None`` if it is not known, and that is to be tracked.

    Raises
    ------
    UnknownPriceError
        If it is not known, and that is to be refused.
    """
    found = prices.find(model, on=on)
    if found is not None:
        return found
    try:
        return resolve(model, prices, policy.policy, on=on)
    except UnknownPriceError as error:
        raise UnknownPriceError(error.model, f"{_HINT} {error.hint}".strip()) from None


def read_cost_model(cost_model: object) -> Price:
    """Return the price that a cost model says: dollars per token, exactly.

    Parameters
    ----------
    cost_model : mapping
        ``input`` and ``output``, both needed, and other classes (``cached_read``, ...) where they differ.
        Dollars as `tbc.money.usd_decimal` takes them: a ``float`` counts as its shortest decimal form.

    Raises
    ------
    InvalidPriceError, InvalidAmountError
        If it cannot be read.
    """
    if not isinstance(cost_model, Mapping):
        raise InvalidPriceError(
            "cost_model", f'must be {{"input": ..., "output": ...}} in dollars per token, not {cost_model!r}'
        )
    terms = tuple((name, type(value), value) for name, value in cost_model.items())
    try:
        return _read_terms(terms)
    except TypeError:  # a value that cannot be remembered cannot be dollars either: this says so
        return _read_terms.__wrapped__(terms)


@lru_cache(maxsize=128)
def _read_terms(terms: tuple[tuple[str, type, Any], ...]) -> Price:
    given = {name: value for name, _, value in terms}
    for name in given:
        if name not in CLASSES:
            near = get_close_matches(str(name)[:100], CLASSES, 1)
            raise InvalidPriceError(
                f"cost_model[{name!r}]", "unknown key" + (f"; was {near[0]!r} meant?" if near else "")
            )
    missing = [name for name in ("input", "output") if name not in given]
    if missing:
        raise InvalidPriceError(
            "cost_model", f"must contain 'input' and 'output'; it lacks {' and '.join(map(repr, missing))}"
        )
    rates = {name: _rate(f"cost_model[{name!r}]", value) for name, value in given.items()}
    return Price(rates=Rates(**rates), source="cost_model")


def _rate(path: str, value: object) -> Fraction:
    dollars = usd_decimal(path, value)
    exponent = dollars.as_tuple().exponent
    if dollars > _MOST or not isinstance(exponent, int) or (dollars and exponent < -_DECIMALS):
        raise InvalidAmountError(path, value, f"0 to {_MOST} US dollars, with at most {_DECIMALS} decimals")
    return Fraction(dollars) * NANO if dollars else Fraction(0)
