"""What a model costs, and what happens where nobody knows.

`Prices` finds the price of a model: first in the user's own table or callable, then in the data of the
optional package ``genai-prices``. A name is looked up as it is, then without the date at its end
(`tbc.catalogue` lists the rules); what is not found is unknown, and an unknown price is not a free price:
`resolve` says what is done about it.

A user's price is a mapping. The unit is a part of each key, and one price has one unit:

- ``input_per_million`` and ``output_per_million`` (or ``input_per_token`` ...): US dollars, both needed;
- ``cached_read_per_million``, ``cached_write_...``, ``cached_write_1h_...``, ``input_audio_...``,
  ``cached_audio_read_...``, ``output_audio_...``: where they differ. A class without a price of its own costs
  what it is a part of;
- ``per_request``: US dollars for each call;
- ``tiers``: a list of such mappings with ``above``, the tokens of a prompt above which they hold instead;
- or ``{"free": True}`` alone.

Examples
--------
>>> prices = Prices({"my-model": {"input_per_million": "0.50", "output_per_million": 2},
...                  "my-laptop": {"free": True}}, default=False)
>>> prices.find("my-model-2026-01-31").ceiling(1_000_000, 1_000_000)
2500000000
>>> prices.find("my-laptop").is_free, prices.find("my-model-mini")
(True, None)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Final, TypeAlias

import attrs

from tbc import catalogue
from tbc.axes import NANO
from tbc.errors import InvalidAmountError, InvalidPriceError, UnknownPriceError
from tbc.money import usd_decimal
from tbc.rates import CLASSES, Price, Rates, Tier

__all__ = [
    "Price",
    "PriceTable",
    "Prices",
    "Rates",
    "Tier",
    "UnknownPrice",
    "check_unknown_price",
    "resolve",
]

#: A user's own prices; see `Prices`.
PriceTable: TypeAlias = Mapping[str, Any] | Callable[[str], Any]
#: What is done about a model without a known price; see `check_unknown_price`.
UnknownPrice: TypeAlias = str | Decimal | int | float | Price

#: Units, and how many tokens they are for.
_UNITS: Final = {"_per_million": 1_000_000, "_per_token": 1}
_RATES: Final = tuple(name + unit for unit in _UNITS for name in CLASSES)
#: A price per million tokens is 0 or between these. Of the models in genai-prices 0.2.3 the cheapest class
#: costs $0.0011 and the dearest $600; what lies far outside was meant per token, or per million.
_LEAST, _MOST = Decimal("0.0001"), Decimal(10_000)
_FINEST: Final = -40
_LONGEST_NAME: Final = 500
_POLICIES: Final = ("refuse", "track")
#: An unknown price that begins so is an amount, not the name of a model.
_BEGIN_AMOUNTS: Final = tuple("$.0123456789")


class Prices:
    """The prices of models.

    Parameters
    ----------
    table : mapping or callable, optional
        The user's own prices, which win. A mapping from the name of a model to its price, or a callable that
        takes a name and returns a price, or ``None`` if it knows none. A price is a mapping as in the
        description of this module, or a `Price`. A table is read once, when it is given; its names are taken
        as they are written, and one without a date is for the dated names too.
    default : bool, default True
        Whether models that the table does not know are looked up in ``genai-prices``, if it is installed.

    Raises
    ------
    InvalidPriceError, InvalidAmountError
        If the table cannot be read; both name the path of the key.
    """

    __slots__ = ("_ask", "_default", "_table")

    def __init__(self, table: PriceTable | None = None, *, default: bool = True) -> None:
        self._ask: Callable[[str], Any] | None = None
        self._table: dict[str, Price] = {}
        self._default = default
        if isinstance(table, Mapping):
            for model, price in table.items():
                if not isinstance(model, str) or not model:
                    raise InvalidPriceError("prices", f"the name of a model must be a str, not {model!r}")
                self._table[model] = _read_price(f"prices[{model!r}]", price, "table")
        elif callable(table):
            self._ask = table
        elif table is not None:
            raise InvalidPriceError("prices", f"must be a mapping or a callable, not {type(table).__name__}")

    def find(self, model: str | None, *, on: date | None = None) -> Price | None:
        """Return the price of a model, or ``None`` if it is unknown.

        Parameters
        ----------
        model : str or None
            Its name. ``None`` (a call that names no model) is unknown.
        on : date, optional
            The day, for prices of ``genai-prices`` that change. Default: after all changes it states.

        Raises
        ------
        InvalidPriceError, InvalidAmountError
            If the user's callable returns something that is no price.
        """
        if not isinstance(model, str) or not 0 < len(model) <= _LONGEST_NAME:
            return None
        for name in (model, catalogue.without_date(model)):
            own = None if name is None else self._own(name)
            if own is not None:
                return own
        return catalogue.find(model, on) if self._default else None

    def _own(self, name: str) -> Price | None:
        if self._ask is None:
            return self._table.get(name)
        price = self._ask(name)
        return None if price is None else _read_price(f"prices({name!r})", price, "callable")

    def nearest(self, model: str, most: int = 3) -> list[str]:
        """Return the known names that look most like a name: a hint for people, never a price."""
        if len(model) > _LONGEST_NAME:
            return []
        names = {
            name.lower(): name for name in (*(catalogue.known_names() if self._default else ()), *self._table)
        }
        return [names[name] for name in get_close_matches(model.lower(), names, most)]


def check_unknown_price(unknown_price: object, prices: Prices, *, on: date | None = None) -> str | Price:
    """Return the policy for unknown prices, ready for `resolve`.

    Parameters
    ----------
    unknown_price : str, Decimal, int, float or Price
        ``"refuse"``; ``"track"``; US dollars per million tokens to assume, for input and output alike; the
        name of a model with a known price, to assume that; or what this function has returned.
    prices : Prices
        Where that model is looked up.
    on : date, optional
        As `Prices.find` takes it.

    Returns
    -------
    str or Price
        ``"refuse"``, ``"track"`` or the price to assume.

    Raises
    ------
    InvalidPriceError, InvalidAmountError
        If it is anything else. 0 is not assumed: a model that is free is declared free.
    """
    if isinstance(unknown_price, Price):
        return unknown_price
    if not isinstance(unknown_price, str) or unknown_price.strip()[:1] in _BEGIN_AMOUNTS:
        rate = _read_rate("unknown_price", unknown_price, "_per_million")
        if rate == 0:
            raise InvalidAmountError(
                "unknown_price",
                unknown_price,
                "> 0 US dollars per million tokens; what is free is declared so in prices: {'free': True}",
            )
        return Price(rates=Rates(input=rate, output=rate), source="assumed")
    if unknown_price in _POLICIES:
        return unknown_price
    found = prices.find(unknown_price, on=on)
    if found is None:
        near = _meant(unknown_price, _POLICIES) or ", ".join(map(repr, prices.nearest(unknown_price)))
        raise InvalidPriceError(
            "unknown_price",
            'must be "refuse", "track", a Decimal (US dollars per million tokens), or a model with a known '
            f"price, not {unknown_price!r}" + (f"; the nearest are {near}" if near else ""),
        )
    return attrs.evolve(found, source=f"assumed: as {unknown_price} ({found.source})")


def resolve(
    model: str | None, prices: Prices, unknown_price: object = "refuse", *, on: date | None = None
) -> Price | None:
    """Return the price to charge a model by.

    Parameters
    ----------
    model : str or None
        Its name.
    prices : Prices
        Where it is looked up.
    unknown_price : str, Decimal, int, float or Price, default "refuse"
        What is done if it is unknown, as `check_unknown_price` takes it.
    on : date, optional
        As `Prices.find` takes it.

    Returns
    -------
    Price or None
        ``None`` only for an unknown price under ``"track"``: the call is not priced.

    Raises
    ------
    UnknownPriceError
        For an unknown price under ``"refuse"``.
    """
    found = prices.find(model, on=on)
    if found is not None:
        return found
    policy = check_unknown_price(unknown_price, prices, on=on)
    if isinstance(policy, Price):
        return policy
    if policy == "track":
        return None
    hint = "" if catalogue.installed() else 'The prices of many models come with:  pip install "tbc[prices]"'
    raise UnknownPriceError(model, hint)


def _read_price(path: str, price: object, source: str) -> Price:
    if isinstance(price, Price):
        return price
    terms = _terms(path, price, (*_RATES, "per_request", "tiers", "free"))
    if "free" in terms:
        if terms["free"] is not True or len(terms) > 1:
            raise InvalidPriceError(
                f"{path}['free']", "must be True, and alone; a free model has no other price"
            )
        return Price.free(source)
    tiers = terms.get("tiers", ())
    if isinstance(tiers, (str, Mapping)) or not isinstance(tiers, Sequence):
        raise InvalidPriceError(f"{path}['tiers']", f"must be a list, not {type(tiers).__name__}")
    fee = usd_decimal(f"{path}['per_request']", terms.get("per_request", 0))
    return Price(
        rates=_read_rates(path, terms),
        tiers=_read_tiers(f"{path}['tiers']", tiers),
        per_request=_exact(f"{path}['per_request']", fee, _MOST) * NANO,
        source=source,
    )


def _read_tiers(path: str, tiers: Sequence[object]) -> list[Tier]:
    found: list[Tier] = []
    for i, tier in enumerate(tiers):
        terms = _terms(f"{path}[{i}]", tier, (*_RATES, "above"))
        above = terms.get("above")
        least = found[-1].above + 1 if found else 0
        if isinstance(above, bool) or not isinstance(above, int) or above < least:
            raise InvalidAmountError(f"{path}[{i}]['above']", above, f"an int of tokens >= {least}")
        found.append(Tier(above=above, rates=_read_rates(f"{path}[{i}]", terms)))
    return found


def _terms(path: str, price: object, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(price, Mapping):
        example = '{"input_per_million": "...", "output_per_million": "..."}'
        raise InvalidPriceError(path, f"must be a mapping such as {example}, not {price!r}")
    for key in price:
        if key not in known:
            near = _meant(str(key), known)
            raise InvalidPriceError(
                f"{path}[{key!r}]", "unknown key" + (f"; was {near} meant?" if near else "")
            )
    return price


def _read_rates(path: str, terms: Mapping[str, Any]) -> Rates:
    units = [unit for unit in _UNITS if any(key.endswith(unit) for key in terms)]
    if len(units) > 1:
        raise InvalidPriceError(
            path, f"mixes {' and '.join(unit[1:] for unit in units)}; write all in one unit"
        )
    unit = units[0] if units else "_per_million"
    for needed in ("input", "output"):
        if needed + unit not in terms:
            raise InvalidPriceError(
                path, f"lacks {needed + unit!r}; what costs nothing is 0, and a free model {{'free': True}}"
            )
    other = next(each for each in _UNITS if each != unit)
    return Rates(
        **{
            name: _read_rate(f"{path}[{name + unit!r}]", terms[name + unit], unit, name + other)
            for name in CLASSES
            if name + unit in terms
        }
    )


def _read_rate(path: str, value: object, unit: str, meant: str = "") -> Fraction:
    """Return US dollars per unit as nano-dollars per token."""
    tokens = _UNITS[unit]
    dollars = usd_decimal(path, value)
    least, most = _LEAST * tokens / 1_000_000, _MOST * tokens / 1_000_000
    if dollars and not least <= dollars <= most:
        per = "million tokens" if tokens > 1 else "token"
        # Why: a price per token looks small per million, a price per million large per token.
        hint = f" (was {meant} meant?)" if meant and (dollars < least) == (tokens > 1) else ""
        raise InvalidAmountError(path, value, f"0, or {least:f} to {most:f} US dollars per {per}{hint}")
    return _exact(path, dollars, most) * NANO / tokens


def _exact(path: str, dollars: Decimal, most: Decimal) -> Fraction:
    """Return dollars as a fraction. Why bounded: a fraction writes every digit out."""
    if not dollars:
        return Fraction(0)
    exponent = dollars.as_tuple().exponent
    if dollars > most or not isinstance(exponent, int) or exponent < _FINEST:
        raise InvalidAmountError(
            path, dollars, f"at most {most:f} US dollars, with at most {-_FINEST} decimals"
        )
    return Fraction(dollars)


def _meant(word: str, known: Iterable[str]) -> str:
    return "".join(map(repr, get_close_matches(word[:_LONGEST_NAME], list(known), 1)))
