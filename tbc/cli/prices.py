"""``tbc prices``: what models cost, who says so, and since when."""

from __future__ import annotations

import json as json_format
import math
from datetime import UTC, date, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from tbc.clock import EPOCH, system_clock

if TYPE_CHECKING:
    from tbc.pricing import Price, Rates

__all__ = ["prices"]


def prices(
    *models: str,
    on: date | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Show what models cost: US dollars per million tokens of each class. Exit code 1 if one is unknown.

    Parameters
    ----------
    models
        Names, as a call would give them: gpt-4o, claude-sonnet-4-5-20250929, azure/gpt-4o, ...
    on
        The day, as 2026-01-31. Default: today.
    json
        Print JSON instead of tables.
    """
    from tbc import catalogue
    from tbc.errors import InvalidPriceError
    from tbc.pricing import Prices

    if not models:
        raise InvalidPriceError("MODEL", "name at least one, as in: tbc prices gpt-4o")
    known = Prices()
    day = on or datetime.fromtimestamp(EPOCH + system_clock(), UTC).date()
    found = {model: known.find(model, on=day) for model in models}
    hints = {model: known.nearest(model) for model, price in found.items() if price is None}
    if json:
        described = [_described(model, price, hints.get(model, [])) for model, price in found.items()]
        print(json_format.dumps(described, indent=2))
        return 1 if hints else 0
    console = Console()
    for model, price in found.items():
        heading = f"{model}: {_unknown(hints[model]) if price is None else _source(price)}"
        console.print(heading, style="bold", highlight=False, markup=False, soft_wrap=True)
        console.print("" if price is None else _table(price))
    if hints and not catalogue.installed():
        print('Most prices come with the package genai-prices:  pip install "tbc[prices]"')
    return 1 if hints else 0


def _unknown(nearest: list[str]) -> str:
    return "unknown price" + (f"; the nearest known names are {', '.join(nearest)}" if nearest else "")


def _source(price: Price) -> str:
    since = f", since {price.as_of}" if price.as_of else ""
    return f"{price.source}{since}" + (", free" if price.is_free else "")


def _table(price: Price) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("US dollars per million tokens")
    table.add_column(f"up to {price.tiers[0].above:,}" if price.tiers else "", justify="right")
    for tier in price.tiers:
        table.add_column(f"above {tier.above:,}", justify="right")
    columns = [_named(rates) for rates in (price.rates, *(tier.rates for tier in price.tiers))]
    for name in columns[0]:
        table.add_row(_in_words(name), *(f"${column.get(name, '-')}" for column in columns))
    if price.per_request:
        table.add_row("each request", f"${_dollars(price.per_request)}")
    return table


def _described(model: str, price: Price | None, nearest: list[str]) -> dict[str, Any]:
    if price is None:
        return {"model": model, "known": False, "nearest": nearest}
    return {
        "model": model,
        "known": True,
        "usd_per_million": _named(price.rates),
        "tiers": [{"above": tier.above, "usd_per_million": _named(tier.rates)} for tier in price.tiers],
        "usd_per_request": _dollars(price.per_request),
        "free": price.is_free,
        "source": price.source,
        "as_of": price.as_of and price.as_of.isoformat(),
    }


def _named(rates: Rates) -> dict[str, str]:
    """Return the classes that have a rate of their own, in dollars per million tokens."""
    from tbc.rates import CLASSES

    named = ((name, getattr(rates, name)) for name in CLASSES)
    return {name: _dollars(rate * 1_000_000) for name, rate in named if rate is not None}


def _dollars(nano: Fraction) -> str:
    from tbc.axes import USD, format_amount

    return format_amount(USD, math.ceil(nano)).removeprefix("$")


def _in_words(name: str) -> str:
    return name.replace("_1h", " for an hour").replace("_", " ")
