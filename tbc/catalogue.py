"""The prices that come with the optional package ``genai-prices``: offline, by exact name.

Nothing is ever fetched: the data is what the installed package brought along.

Names
-----
1. The name as it is, then the same name without a date at its end: ``-2024-08-06``, ``-20250929`` or
   ``@20250929``, if it is a day of 2020 to 2099. ``-0613``, ``-preview-05-20`` and ``-latest`` are no dates.
2. A name is known if it *equals* the id of a model or a name that the data lists for it (upper and lower case
   are one). What the data says about the beginnings and parts of names is not used: ``-mini`` never finds its
   parent. One exception: a beginning is itself a name, as a whole and for the maker (``claude-haiku-4.5``).
3. ``provider/model`` and ``provider:model`` mean that provider, by the names the data gives it, and then
   whoever the data says its models come from (Azure's are OpenAI's). Where no such model is found, the whole
   is a name: ``mistralai/mistral-nemo`` is one of OpenRouter's.
4. A name found at several providers means its maker: the one whose own names the data says these are (its
   ``model_match``: ``gpt-`` is OpenAI's, ``claude`` Anthropic's), with or without the date. Without a maker
   among them, it is known only if all of them charge the same.

Prices
------
- Of prices with a start date, the one in force on the day asked for; without a day, the last one stated.
- Where the time of day decides, the dearest of the day: a hold must cover it.
- A `tbc.Usage` does not tell text from images and video. Where these have rates of their own, the dearest
  holds for all of them.
- Searches, pages, hours of audio and characters are not in a usage and not in the cost. A model that is
  priced by these alone has no price here, nor has one for which the data states none (is it free? say so).

Examples
--------
>>> find("gpt-4o-mini").source.partition(" ")[0], find("gpt-4o-nano")
('genai-prices', None)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

from tbc.rates import CLASSES, Price, Rates, Tier

if TYPE_CHECKING:
    from decimal import Decimal

    from genai_prices.types import MatchLogic, ModelInfo, ModelPrice, Provider, TieredPrices
    from genai_prices.types import Tier as DataTier

__all__ = ["find", "installed", "known_names", "provider_of", "without_date"]

#: Our classes, and the data's prices per million tokens that they are charged by: the dearest of these.
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "input": ("input_mtok", "input_text_mtok", "input_image_mtok", "input_video_mtok"),
    "cached_read": (
        *("cache_read_mtok", "cache_text_read_mtok", "cache_image_read_mtok", "cache_video_read_mtok"),
    ),
    "cached_write": (
        *("cache_write_mtok", "cache_text_write_mtok", "cache_image_write_mtok", "cache_video_write_mtok"),
        *("cache_write_5m_mtok", "cache_text_write_5m_mtok"),
    ),
    "cached_write_1h": ("cache_write_1h_mtok", "cache_text_write_1h_mtok"),
    "input_audio": ("input_audio_mtok",),
    "cached_audio_read": ("cache_audio_read_mtok",),
    "output": (
        *("output_mtok", "output_text_mtok", "output_image_mtok", "output_video_mtok"),
        *("output_reasoning_mtok", "output_citation_mtok"),
    ),
    "output_audio": ("output_audio_mtok",),
}
#: Nano-dollars per token of a dollar per million tokens, and nano-dollars of a dollar per 1000 requests.
_PER_MILLION: Final = 1_000
_PER_THOUSAND: Final = 1_000_000

_DATED: Final = re.compile(
    r"(?P<name>.+)[-@](?P<year>20[2-9][0-9])(?P<dash>-?)(\d\d)(?P=dash)(\d\d)", re.ASCII
)


def without_date(model: str) -> str | None:
    """Return the name without the date at its end; ``None`` if there is none."""
    match = _DATED.fullmatch(model)
    if match is None:
        return None
    try:
        date(int(match[2]), int(match[4]), int(match[5]))
    except ValueError:
        return None
    return match["name"]


@cache
def installed() -> bool:
    """Return whether the optional package is installed."""
    try:
        import genai_prices  # noqa: F401
    except ImportError:
        return False
    return True


@lru_cache(maxsize=4096)
def find(model: str, on: date | None = None) -> Price | None:
    """Return the price of a model in force on a day, or ``None`` if it is not known.

    Parameters
    ----------
    model : str
        Its name.
    on : date, optional
        The day. Default: after all start dates that the data states.
    """
    return _agreed([_price(provider, info, on) for provider, info in _entries(model)])


@lru_cache(maxsize=4096)
def provider_of(model: str) -> str | None:
    """Return whose a model is, by the id that the data gives them; ``None`` if it is not known."""
    ids = {provider.id for provider, _ in _entries(model)}
    return ids.pop() if len(ids) == 1 else None


def _entries(model: str) -> list[tuple[Provider, ModelInfo]]:
    """Return what the data has under the name of a model."""
    if not installed():
        return []
    names = [name.lower() for name in (model, without_date(model)) if name]
    for candidates in (_of_its_provider, _of_its_maker, _of_anybody):
        for name in names:
            found = candidates(name)
            if found:
                return found
    return []


def _agreed(prices: list[Price | None]) -> Price | None:
    known = [price for price in prices if price is not None]
    return known[0] if known and all(price == known[0] for price in known) else None


@cache
def known_names() -> tuple[str, ...]:
    """Return every name that the data lists, for hints."""
    return tuple(sorted(_index())) if installed() else ()


@cache
def _index() -> dict[str, list[tuple[Provider, ModelInfo]]]:
    from genai_prices.data import providers

    index: dict[str, list[tuple[Provider, ModelInfo]]] = {}
    for provider in providers:
        listed: dict[str, ModelInfo] = {}
        for model in provider.models:
            for name in _beginnings(model.match):
                if name[-1:].isalnum() and _made(provider, name) and provider.find_model(name) is model:
                    listed[name] = model
        for model in provider.models:
            listed |= dict.fromkeys((*_equals(model.match), model.id.lower()), model)
        for name, model in listed.items():
            index.setdefault(name, []).append((provider, model))
    return index


def _equals(clause: MatchLogic) -> Iterator[str]:
    from genai_prices.types import ClauseEquals, ClauseOr

    if isinstance(clause, ClauseEquals):
        yield clause.equals.lower()
    elif isinstance(clause, ClauseOr):
        for inner in clause.or_:
            yield from _equals(inner)


def _beginnings(clause: MatchLogic) -> Iterator[str]:
    from genai_prices.types import ClauseOr, ClauseStartsWith

    if isinstance(clause, ClauseStartsWith):
        yield clause.starts_with.lower()
    elif isinstance(clause, ClauseOr):
        for inner in clause.or_:
            yield from _beginnings(inner)


def _made(provider: Provider, name: str) -> bool:
    """Return whether the data says that such names are the provider's own."""
    return provider.model_match is not None and provider.model_match.is_match(name)


def _of_anybody(name: str) -> list[tuple[Provider, ModelInfo]]:
    return _index().get(name, [])


def _of_its_maker(name: str) -> list[tuple[Provider, ModelInfo]]:
    return [one for one in _of_anybody(name) if _made(one[0], name)]


def _of_its_provider(name: str) -> list[tuple[Provider, ModelInfo]]:
    """Return the model of the provider that the name begins with, if there is one."""
    from genai_prices.data import providers
    from genai_prices.data_snapshot import find_provider_by_id

    match = re.fullmatch(r"([^/:]+)[/:](.+)", name, re.DOTALL)
    provider = find_provider_by_id(providers, match[1]) if match else None
    if match is None or provider is None:
        return []
    for each in (provider.id, *(provider.fallback_model_providers or ())):
        theirs = [one for one in _of_anybody(match[2]) if one[0].id == each]
        if theirs:
            return theirs
    return []


def _price(provider: Provider, model: ModelInfo, on: date | None) -> Price | None:
    import genai_prices

    stated, since = _in_force(model, on)
    keys = [key for keys in _KEYS.values() for key in keys]
    starts = sorted({tier.start for one in stated for key in keys for tier in _tiers(getattr(one, key))})
    base = _rates(stated, 0)
    if base is None:
        return None
    fees = [one.requests_kcount for one in stated if one.requests_kcount is not None]
    return Price(
        rates=base,
        tiers=[Tier(above=start, rates=_rates(stated, start + 1) or base) for start in starts],
        per_request=max((_rate_at(fee, 0) * _PER_THOUSAND for fee in fees), default=Fraction(0)),
        source=f"genai-prices {genai_prices.__version__}: {provider.id}/{model.id}",
        as_of=since,
    )


def _in_force(model: ModelInfo, on: date | None) -> tuple[list[ModelPrice], date | None]:
    """Return the prices of that day, several if the time of day decides, and since when they hold."""
    from genai_prices.types import ModelPrice, StartDateConstraint

    if isinstance(model.prices, ModelPrice):
        return [model.prices], None
    found = []
    for each in reversed(model.prices):
        start = each.constraint.start_date if isinstance(each.constraint, StartDateConstraint) else None
        if start is not None and on is not None and on < start:
            continue
        found.append(each.prices)
        if start is not None or each.constraint is None:
            return found, start
    return [*found, model.prices[0].prices], None


def _rates(stated: Iterable[ModelPrice], prompt: int) -> Rates | None:
    """Return the dearest rates for a prompt of that size; ``None`` if a price is not per token."""
    named: set[str] = set()
    charged = []
    for one in stated:
        rates = {}
        for name, keys in _KEYS.items():
            prices = [getattr(one, key, None) for key in keys]
            each = [_rate_at(price, prompt) * _PER_MILLION for price in prices if price is not None]
            if each:
                rates[name] = max(each)
        if "input" not in rates and "output" not in rates:
            return None
        named |= rates.keys()
        charged.append(Rates(**rates).charged)
    dearest = dict(zip(CLASSES, map(max, zip(*charged, strict=True)), strict=True))
    return Rates(**{name: rate for name, rate in dearest.items() if name in named})


def _tiers(price: Decimal | TieredPrices | None) -> list[DataTier]:
    return getattr(price, "tiers", [])


def _rate_at(price: Decimal | TieredPrices, prompt: int) -> Fraction:
    """Return a price in the data's unit for a prompt of that size: a tier begins above its start."""
    tiers = [tier for tier in _tiers(price) if prompt > tier.start]
    base: Any = getattr(price, "base", price)
    return Fraction(tiers[-1].price if tiers else base)
