"""Prices: exact arithmetic, whose price wins, which names are known, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import genai_prices
import pytest
from genai_prices.data import providers
from genai_prices.types import ModelPrice, TieredPrices

from tbc import catalogue
from tbc.errors import InvalidAmountError, InvalidPriceError, TBCError, UnknownPriceError
from tbc.money import to_nano, to_usd
from tbc.pricing import Price, Prices, Rates, Tier, check_unknown_price, resolve
from tbc.usage import Usage

DAY = date(2026, 11, 1)
PLAIN = {"input_per_million": "1", "output_per_million": "4"}


def own(**terms: Any) -> Price:
    price = Prices({"m": {**PLAIN, **terms}}, default=False).find("m")
    assert price is not None
    return price


def used(**classes: int) -> Any:
    """Return a usage of all classes, whichever of them `Usage` knows."""
    return SimpleNamespace(**{f"{name}_tokens": tokens for name, tokens in classes.items()})


# --- the arithmetic -----------------------------------------------------------------------------------------


def test_a_cost_is_exact_and_rounded_up_once() -> None:
    price = own(input_per_million="0.0333333333", output_per_million="0.0333333333")
    assert price.cost(Usage(input_tokens=1, output_tokens=1)) == 67
    assert price.cost(Usage(input_tokens=3_000_000, output_tokens=0)) == 100_000_000
    assert price.cost(Usage(input_tokens=0, output_tokens=0)) == 0


def test_units_say_what_they_are_for() -> None:
    per_token = {"input_per_token": 0.000001, "output_per_token": Decimal("0.000004")}
    assert Prices({"m": per_token}).find("m") == own()
    assert own() != own(output_per_million=5)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("cached_read", 1),
        ("cached_write", 1),
        ("cached_write_1h", 1),
        ("input_audio", 1),
        ("cached_audio_read", 1),
        ("output_audio", 4),
    ],
)
def test_a_class_without_a_rate_costs_what_it_is_a_part_of(name: str, instead: int) -> None:
    usage = used(**{name: 1_000_000})
    assert own().cost(usage) == instead * 10**9
    assert own(**{f"{name}_per_million": "0.5"}).cost(usage) == 5 * 10**8
    assert own(**{f"{name}_per_million": 0}).cost(usage) == 0


def test_the_nearest_whole_lends_its_rate() -> None:
    assert own(cached_write_per_million="1.25").cost(used(cached_write_1h=1000)) == 1_250_000
    dear_audio = own(input_audio_per_million="10", cached_read_per_million="0.1")
    assert dear_audio.cost(used(cached_audio_read=1000)) == 10_000_000
    assert own(cached_read_per_million="0.1").cost(used(cached_audio_read=1000)) == 100_000


def test_each_class_is_charged_at_its_own_rate() -> None:
    price = own(
        cached_read_per_million="0.1",
        cached_write_per_million="1.25",
        cached_write_1h_per_million="2",
        input_audio_per_million="10",
        cached_audio_read_per_million="3",
        output_audio_per_million="20",
        per_request="0.005",
    )
    usage = used(
        input=1,
        cached_read=10,
        cached_write=100,
        cached_write_1h=1_000,
        input_audio=10_000,
        cached_audio_read=100_000,
        output=1_000_000,
        output_audio=10_000_000,
    )
    tokens = 1 + 1 + 125 + 2_000 + 100_000 + 300_000 + 4_000_000 + 200_000_000
    assert price.cost(usage) == 5_000_000 + tokens * 1000


def test_story_14_both_conventions_of_one_call_cost_the_same() -> None:
    from tbc.usage import read_usage

    price = Prices().find("claude-sonnet-4-5", on=DAY)
    inclusive = read_usage(
        {
            "usage": {
                "prompt_tokens": 1_000,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 300},
            }
        }
    )
    exclusive = read_usage(
        {
            "usage": {
                "input_tokens": 100,
                "cache_read_input_tokens": 600,
                "cache_creation_input_tokens": 300,
                "output_tokens": 50,
            }
        }
    )
    assert price is not None and inclusive is not None and exclusive is not None
    assert (
        price.cost(inclusive) == price.cost(exclusive) == 3_000 * 100 + 300 * 600 + 3_750 * 300 + 15_000 * 50
    )


def test_an_unknown_usage_has_no_cost_unless_the_model_is_free() -> None:
    for nothing in (Usage(), Usage(reasoning_tokens=5)):
        with pytest.raises(InvalidAmountError, match="states at least one class"):
            own().cost(nothing)
        assert Price.free().cost(nothing) == 0
    assert own().cost(Usage(output_tokens=2)) == 8_000


def test_a_fee_is_charged_for_each_request_even_without_tokens() -> None:
    price = own(per_request="0.014")
    assert price.cost(Usage(input_tokens=0)) == price.ceiling(0, 0) == 14_000_000


TIERED = own(
    cached_read_per_million="0.1",
    tiers=[
        {"above": 200_000, "input_per_million": 2, "cached_read_per_million": "0.2", "output_per_million": 6},
        {"above": 500_000, "input_per_million": 3, "output_per_million": 9},
    ],
)


def test_story_15_one_tier_from_the_whole_prompt_for_all_classes() -> None:
    def cost(prompt: int, cached: int = 0, output: int = 0) -> int:
        return TIERED.cost(
            Usage(input_tokens=prompt - cached, cached_read_tokens=cached, output_tokens=output)
        )

    for below in (199_999, 200_000):
        assert cost(below, output=1000) == below * 1_000 + 1000 * 4_000
        assert cost(below, cached=below) == below * 100
    assert cost(200_001, output=1000) == 200_001 * 2_000 + 1000 * 6_000
    # Most of the prompt comes from the cache: it counts all the same, and is charged in the tier as well.
    assert cost(200_001, cached=200_000, output=1) == 2_000 + 200_000 * 200 + 6_000
    assert cost(500_000) == 500_000 * 2_000
    # The last tier names no cached read: its own input, not the rate of another tier.
    assert cost(500_001, cached=1) == 500_001 * 3_000


def test_story_15_output_chooses_no_tier_and_reasoning_is_not_added_again() -> None:
    plain = Usage(input_tokens=1, output_tokens=900_000)
    reasoned = Usage(input_tokens=1, output_tokens=900_000, reasoning_tokens=800_000)
    assert TIERED.cost(plain) == TIERED.cost(reasoned) == 1_000 + 900_000 * 4_000


@pytest.mark.parametrize("model", ["gemini-2.5-pro", "claude-sonnet-4-5", "gpt-5.4"])
def test_story_15_tiers_of_real_models(model: str) -> None:
    price = Prices().find(model, on=DAY)
    assert price is not None and price.tiers
    tier = price.tiers[0]
    assert tier.rates.charged > price.rates.charged
    for prompt, rates in ((-1, price.rates), (0, price.rates), (1, tier.rates)):
        prompt += tier.above
        expected = prompt * rates.charged[0] + 10 * rates.charged[6]
        assert price.cost(Usage(input_tokens=prompt, output_tokens=10)) == expected


def test_a_ceiling_is_at_the_dearest_text_class_of_the_input() -> None:
    assert own().ceiling(10, 10) == 50_000
    assert own(cached_write_per_million="1.25", input_audio_per_million=90).ceiling(100, 0) == 125_000
    assert own(cached_write_1h_per_million=2).ceiling(100, 1) == 204_000
    assert TIERED.ceiling(200_000, 0) == 200_000_000
    assert TIERED.ceiling(200_001, 1) == 200_001 * 2_000 + 6_000


@pytest.mark.parametrize("tokens", [(-1, 0), (0, -1), (True, 0), (1.0, 0), (None, 0)])
def test_a_ceiling_is_for_counts(tokens: Any) -> None:
    with pytest.raises(InvalidAmountError):
        own().ceiling(*tokens)


@pytest.mark.parametrize("rate", [0.5, True, Fraction(-1), "1", Decimal(1)])
def test_rates_are_exact(rate: Any) -> None:
    with pytest.raises(InvalidAmountError, match="Fraction of nano-dollars"):
        Rates(input=rate)
    with pytest.raises(InvalidAmountError, match="Fraction of nano-dollars"):
        Price(rates=Rates(input=Fraction(1)), per_request=rate)


def test_a_price_needs_a_rate_and_rising_tiers() -> None:
    with pytest.raises(InvalidPriceError, match="neither input nor output"):
        Rates(cached_read=Fraction(1))
    rates = Rates(input=Fraction(1))
    with pytest.raises(InvalidPriceError, match="must rise"):
        Price(rates=rates, tiers=[Tier(above=2, rates=rates), Tier(above=2, rates=rates)])
    with pytest.raises(InvalidAmountError):
        Tier(above=-1, rates=rates)
    assert Price(rates=rates).cost(Usage(output_tokens=7)) == 7


# --- whose price --------------------------------------------------------------------------------------------


def test_a_users_price_wins_over_the_default() -> None:
    ours, theirs = own(), Prices().find("gpt-4o")
    assert theirs is not None and theirs != ours
    assert Prices({"gpt-4o": PLAIN}).find("gpt-4o") == ours
    assert Prices(lambda name: PLAIN if name == "gpt-4o" else None).find("gpt-4o") == ours
    # The dated name has a price in the data; the user's for the family wins all the same.
    assert Prices({"gpt-4o": PLAIN}).find("gpt-4o-2024-05-13") == ours
    assert Prices({"gpt-4o": PLAIN}).find("gpt-4o-mini") == Prices().find("gpt-4o-mini")
    assert Prices({"gpt-4o": PLAIN}, default=False).find("gpt-4o-mini") is None


def test_prices_say_where_they_come_from() -> None:
    assert own().source == "table" and own().as_of is None
    called = Prices(lambda name: PLAIN, default=False).find("x")
    assert called is not None and called.source == "callable"
    given = Price(rates=Rates(input=Fraction(1)), source="invoice", as_of=DAY)
    assert Prices({"m": given}).find("m") is given
    assert Prices(lambda name: given).find("m") is given
    default = Prices().find("o3", on=DAY)
    assert default is not None
    assert default.source == f"genai-prices {genai_prices.__version__}: openai/o3"
    assert default.as_of == date(2025, 6, 10)


def test_a_callable_is_asked_for_the_name_then_without_its_date_and_its_answer_is_checked() -> None:
    asked: list[str] = []
    Prices(asked.append, default=False).find("m-2026-01-02")
    assert asked == ["m-2026-01-02", "m"]
    with pytest.raises(InvalidPriceError, match=r"prices\('m'\).*unknown key"):
        Prices(lambda name: {"price": 1}).find("m")


def test_a_table_is_read_once() -> None:
    table: dict[str, Any] = {"m": dict(PLAIN)}
    prices = Prices(table, default=False)
    table["m"]["input_per_million"] = 9
    table["n"] = PLAIN
    assert prices.find("m") == own() and prices.find("n") is None


def test_a_free_model_costs_nothing() -> None:
    free = Prices({"local": {"free": True}}, default=False).find("local")
    assert free is not None and free.is_free
    assert free.cost(Usage(input_tokens=10**9, output_tokens=10**9)) == free.ceiling(10**9, 10**9) == 0
    assert own(input_per_million=0, output_per_million=0).is_free
    assert not own(input_per_million=0, output_per_million=0, per_request="0.01").is_free
    assert not own(input_per_million=0, output_per_million=0, output_audio_per_million=1).is_free


@pytest.mark.parametrize(
    ("price", "message"),
    [
        ({"input_per_million": 1}, r"prices\['m'\]: lacks 'output_per_million'"),
        ({"output_per_token": 0}, r"lacks 'input_per_token'"),
        ({}, r"lacks 'input_per_million'"),
        (
            {**PLAIN, "cache_read_per_million": 1},
            r"\['cache_read_per_million'\]: .*'cached_read_per_million'",
        ),
        ({**PLAIN, "input_per_1k": 1}, r"\['input_per_1k'\]: unknown key"),
        ({**PLAIN, 5: 1}, r"\[5\]: unknown key"),
        ({**PLAIN, "output_audio_per_token": 0}, r"prices\['m'\]: mixes per_million and per_token"),
        ({"free": False}, r"\['free'\]: must be True, and alone"),
        ({"free": True, **PLAIN}, r"\['free'\]: must be True, and alone"),
        ("1.00", r"must be a mapping"),
        (None, r"must be a mapping"),
        ({**PLAIN, "tiers": {"above": 1}}, r"\['tiers'\]: must be a list"),
        ({**PLAIN, "tiers": [{**PLAIN, "abov": 1}]}, r"\['tiers'\]\[0\]\['abov'\]: .*'above'"),
        ({**PLAIN, "tiers": [{"above": 1, "input_per_million": 1}]}, r"\['tiers'\]\[0\]: lacks 'output_per"),
    ],
)
def test_a_price_that_cannot_be_read_names_the_key(price: Any, message: str) -> None:
    with pytest.raises(InvalidPriceError, match=message):
        Prices({"m": price})


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        *(
            ({"input_per_million": wrong}, r"prices\['m'\]\['input_per_million'\] must be US dollars >= 0")
            for wrong in (True, -1, float("nan"), float("inf"), "free", None, [], Decimal("sNaN"))
        ),
        ({"input_per_million": 0.00000025}, r"0\.0001 to 10000 .* per million .*was input_per_token meant"),
        ({"input_per_million": "1e-999999999"}, r"was input_per_token meant"),
        ({"input_per_million": 10_001}, r"0, or 0\.0001 to 10000 US dollars per million tokens, not 10001"),
        ({"input_per_million": "1e999999999"}, r"0, or 0\.0001 to 10000"),
        ({"input_per_million": Decimal("1." + "1" * 10_000)}, r"at most 40 decimals"),
        ({"per_request": -1}, r"\['per_request'\] must be US dollars"),
        ({"per_request": "1e999999"}, r"\['per_request'\] must be at most 10000"),
        ({"per_request": "1e-999999"}, r"\['per_request'\] .*at most 40 decimals"),
        ({"tiers": [{**PLAIN, "above": -1}]}, r"\['tiers'\]\[0\]\['above'\] must be an int of tokens >= 0"),
        ({"tiers": [{**PLAIN, "above": True}]}, r"must be an int of tokens"),
        (
            {"tiers": [{**PLAIN, "above": 5}] * 2},
            r"\['tiers'\]\[1\]\['above'\] must be an int of tokens >= 6",
        ),
    ],
)
def test_a_number_that_cannot_be_a_price_names_the_key(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidAmountError, match=message):
        own(**terms)


def test_a_price_per_million_given_per_token_is_noticed() -> None:
    with pytest.raises(InvalidAmountError, match=r"per token \(was input_per_million meant\?\), not 2\.5"):
        Prices({"m": {"input_per_token": 2.5, "output_per_token": 10}})


@pytest.mark.parametrize("table", [5, "gpt-4o", [("m", PLAIN)]])
def test_a_table_is_a_mapping_or_a_callable(table: Any) -> None:
    with pytest.raises(InvalidPriceError, match="mapping or a callable"):
        Prices(table)


@pytest.mark.parametrize("name", [None, 5, ""])
def test_models_have_names(name: Any) -> None:
    with pytest.raises(InvalidPriceError, match="name of a model"):
        Prices({name: PLAIN})
    assert Prices().find(name) is None


def test_no_real_price_is_refused_for_its_size() -> None:
    for provider in providers:
        for model in provider.models:
            stated = model.prices
            for each in [stated] if isinstance(stated, ModelPrice) else [one.prices for one in stated]:
                for name in ("input", "output"):
                    value = getattr(each, f"{name}_mtok")
                    dollars = value.base if isinstance(value, TieredPrices) else value
                    if dollars is not None:
                        table = {"m": {**PLAIN, f"{name}_per_million": dollars}}
                        assert Prices(table, default=False).find("m") is not None


# --- names --------------------------------------------------------------------------------------------------


def source(model: str, on: date | None = DAY) -> str | None:
    price = Prices().find(model, on=on)
    return None if price is None else price.source.partition(": ")[2]


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("gpt-4o", "openai/gpt-4o"),
        ("GPT-4o", "openai/gpt-4o"),
        ("gpt-4o-2024-05-13", "openai/gpt-4o-2024-05-13"),
        ("gpt-4o-2024-08-06", "openai/gpt-4o"),
        ("gpt-4o-2031-02-03", "openai/gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini"),
        ("gpt-4o-mini-20310203", "openai/gpt-4o-mini"),
        ("claude-sonnet-4-5-20250929", "anthropic/claude-sonnet-4-5"),
        ("claude-sonnet-4-5@20250929", "anthropic/claude-sonnet-4-5"),
        ("claude-3-5-haiku-20241022", "anthropic/claude-3-5-haiku-latest"),
        ("gpt-4-0613", "openai/gpt-4"),
        ("gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("deepseek-chat", "deepseek/deepseek-chat"),
        ("grok-4", "x-ai/grok-4-0709"),
    ],
)
def test_story_17_a_dated_id_resolves_to_its_family(model: str, found: str) -> None:
    assert source(model) == found


@pytest.mark.parametrize(
    "model",
    [
        *("gpt-4o-nano", "gpt-4o-0613", "gpt-4o-2024-13-01", "gpt-4o-2024-8-6", "gpt-4o-2024-0806"),
        *("gpt-4o-19990101", "gpt-4o-latest-x", "gpt-4", "gpt-4-9999", "claude-sonnet-4-5-mini", "claude"),
        *("gemini-2.5-pro-mini", "gpt-4o-", " gpt-4o", "gpt", "o", "x" * 501, "gpt-4o\n", "gpt-5-nano-"),
    ],
)
def test_story_17_what_merely_begins_like_a_model_is_unknown(model: str) -> None:
    assert model == "gpt-4" or source(model) is None


def test_story_17_a_mini_never_resolves_to_its_parent() -> None:
    known = set(catalogue.known_names())
    for name in known:
        for small in ("-mini", "-nano"):
            if "/" not in name and ":" not in name and name + small not in known:
                assert source(name + small) is None
    mini, parent = Prices().find("gpt-4o-mini"), Prices().find("gpt-4o")
    assert mini is not None and parent is not None
    assert mini.ceiling(1000, 1000) < parent.ceiling(1000, 1000)


def test_story_17_two_candidates_with_different_prices_are_unknown() -> None:
    ambiguous = []
    for name in catalogue.known_names():
        asked = [
            Prices().find(f"{provider.id}/{name}", on=DAY)
            for provider in providers
            if any(model.id.lower() == name for model in provider.models)
        ]
        known = [price for price in asked if price is not None]
        made = any(provider.model_match and provider.model_match.is_match(name) for provider in providers)
        if not made and "/" not in name and any(price != known[0] for price in known[1:]):
            ambiguous.append(name)
    assert {"ada", "phi-3-mini-128k-instruct"} <= set(ambiguous)
    assert [name for name in ambiguous if source(name) is not None] == []


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("openai/gpt-4o", "openai/gpt-4o"),
        ("openai:gpt-4o-2024-08-06", "openai/gpt-4o"),
        ("gemini/gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("google-gla:gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("azure/gpt-4o", "openai/gpt-4o"),
        ("openrouter/openai/gpt-4o", "openrouter/openai/gpt-4o"),
        ("groq/llama-3.3-70b-versatile", "groq/llama-3.3-70b-versatile"),
        ("anthropic/claude-haiku-4.5", "anthropic/claude-haiku-4-5"),
        ("anthropic/gpt-4o", None),
        ("nobody/gpt-4o", None),
        ("openai/gpt-4o-nano", None),
        ("openai/", None),
        ("/gpt-4o", None),
    ],
)
def test_a_provider_in_the_name_narrows(model: str, found: str | None) -> None:
    assert source(model) == found


def test_a_maker_is_preferred_to_whoever_resells() -> None:
    resold = Prices().find("openrouter/openai/o3", on=date(2025, 1, 1))
    assert source("claude-haiku-4.5") == "anthropic/claude-haiku-4-5"
    assert source("claude-haiku-5-5") == "anthropic/claude-haiku-5-5"
    cheaper = Prices().find("quicksilverpro/claude-haiku-5-5", on=DAY)
    assert cheaper is not None and cheaper != Prices().find("claude-haiku-5-5", on=DAY)
    assert resold is not None


@pytest.mark.parametrize("model", ["whisper-1", "tts-1", "mistral-ocr-latest", "azure/phi-4-reasoning:free"])
def test_what_has_no_price_per_token_is_unknown_and_not_free(model: str) -> None:
    assert source(model) is None


def test_nearest_names_are_hints() -> None:
    prices = Prices({"My-Own-Model": PLAIN})
    assert "gpt-4o-mini" in prices.nearest("gpt-4o-minni")
    assert prices.nearest("my-own-modle") == ["My-Own-Model"]
    assert Prices(default=False).nearest("gpt-4o") == []
    assert prices.nearest("x" * 100_000) == []


# --- prices that change -------------------------------------------------------------------------------------


def test_the_price_in_force_on_the_day() -> None:
    before, after = Prices().find("o3", on=date(2025, 6, 9)), Prices().find("o3", on=date(2025, 6, 10))
    assert before is not None and after is not None
    assert before.as_of is None and after.as_of == date(2025, 6, 10)
    assert before.ceiling(10**6, 0) == 10 * 10**9 and after.ceiling(10**6, 0) == 2 * 10**9
    assert Prices().find("o3") == after


def test_where_the_time_of_day_decides_the_dearest_of_the_day_holds() -> None:
    price = Prices().find("deepseek-v4-pro", on=DAY)
    model = next(m for p in providers if p.id == "deepseek" for m in p.models if m.id == "deepseek-v4-pro")
    usage = Usage(input_tokens=1000, cached_read_tokens=500, output_tokens=100)
    theirs = genai_prices.Usage(input_tokens=1500, cache_read_tokens=500, output_tokens=100)
    costs = [
        to_nano(
            "oracle",
            model.get_prices(datetime(2026, 11, 1, hour, tzinfo=UTC)).calc_price(theirs)["total_price"],
        )
        for hour in range(24)
    ]
    assert price is not None
    assert min(costs) < max(costs) == price.cost(usage)


def test_classes_that_a_usage_cannot_tell_apart_cost_as_the_dearest() -> None:
    price = Prices().find("gemini-2.5-flash-image", on=DAY)
    assert price is not None
    assert price.cost(Usage(output_tokens=1000)) == 1000 * 30_000


SAMPLE = [
    *(
        "openai/gpt-4o",
        "openai/gpt-4o-mini",
        "openai/gpt-5",
        "openai/gpt-5.4",
        "openai/o3",
        "openai/gpt-6-sol",
    ),
    *("anthropic/claude-sonnet-4-5", "anthropic/claude-opus-4-6", "anthropic/claude-haiku-5-5"),
    *("anthropic/claude-3-opus-latest", "google/gemini-2.5-pro", "google/gemini-2.5-flash"),
    *("google/gemini-3-pro-preview", "google/gemini-1.5-flash", "mistral/mistral-small-latest"),
    *("x-ai/grok-4-0709", "x-ai/grok-4.3", "cohere/command-r-plus", "groq/llama-3.3-70b-versatile"),
    *("openrouter/openai/gpt-4o", "openrouter/openai/o1-pro", "perplexity/sonar-pro"),
]


@pytest.mark.parametrize("model", SAMPLE)
@pytest.mark.parametrize(
    ("fresh", "read", "write", "hour", "output"),
    [
        (1, 0, 0, 0, 1),
        (1_234, 0, 0, 0, 567),
        (1_000, 40_001, 3_003, 0, 777),
        (7, 0, 11, 13, 17),
        (150_000, 49_999, 0, 0, 3),
        (150_000, 50_001, 60_000, 12_000, 9_999),
        (1, 300_000, 0, 0, 5),
    ],
)
def test_real_prices_agree_with_the_package_they_come_from(
    model: str, fresh: int, read: int, write: int, hour: int, output: int
) -> None:
    provider, _, name = model.partition("/")
    price = Prices().find(model, on=DAY)
    assert price is not None
    usage = genai_prices.Usage(
        input_tokens=fresh + read + write + hour,
        cache_read_tokens=read,
        cache_write_tokens=write + hour,
        cache_write_1h_tokens=hour,
        output_tokens=output,
    )
    theirs = genai_prices.calc_price(
        usage, name, provider_id=provider, genai_request_timestamp=datetime(2026, 11, 1, tzinfo=UTC)
    ).total_price
    ours = price.cost(
        used(input=fresh, cached_read=read, cached_write=write, cached_write_1h=hour, output=output)
    )
    assert ours == to_nano("oracle", theirs)
    assert Decimal(0) <= to_usd(ours) - theirs < Decimal("1E-9")


@pytest.mark.parametrize("model", ["openai/gpt-realtime", "google/gemini-2.5-flash", "openai/gpt-audio"])
def test_audio_agrees_with_the_package_it_comes_from(model: str) -> None:
    provider, _, name = model.partition("/")
    price = Prices().find(model, on=DAY)
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=300, input_audio_tokens=300, output_tokens=100, output_audio_tokens=100
        ),
        name,
        provider_id=provider,
        genai_request_timestamp=datetime(2026, 11, 1, tzinfo=UTC),
    ).total_price
    assert price is not None
    assert price.cost(used(input_audio=300, output_audio=100)) == to_nano("oracle", theirs)


def test_without_the_package_the_default_knows_nothing_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogue, "installed", lambda: False)
    monkeypatch.setattr(catalogue, "find", catalogue.find.__wrapped__)
    monkeypatch.setattr(catalogue, "known_names", catalogue.known_names.__wrapped__)
    assert Prices().find("gpt-4o") is None
    assert Prices().nearest("gpt-4o") == []
    with pytest.raises(UnknownPriceError, match=r'pip install "tbc\[prices\]"'):
        resolve("gpt-4o", Prices())


def test_nothing_is_fetched() -> None:
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from tbc.pricing import Prices\n"
        "print(Prices().find('gpt-4o').source, Prices().find('gpt-4o-nano'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["genai-prices", f"{genai_prices.__version__}:", "openai/gpt-4o", "None"]


# --- unknown prices -----------------------------------------------------------------------------------------


def test_story_16_an_unknown_price_is_refused_with_the_model_and_the_fix() -> None:
    with pytest.raises(UnknownPriceError) as caught:
        resolve("my-model", Prices())
    message = str(caught.value)
    assert caught.value.model == "my-model"
    assert isinstance(caught.value, (TBCError, ValueError))
    assert "'my-model'" in message and "\n" not in message
    for fix in ('"input_per_million"', '"free": True', "unknown_price=Decimal", '"track"'):
        assert fix in message
    with pytest.raises(UnknownPriceError, match="names no model"):
        resolve(None, Prices())


def test_story_16_an_unknown_price_can_be_assumed_tracked_or_declared_free() -> None:
    assumed = resolve("my-model", Prices(), Decimal("5"))
    assert assumed is not None and assumed.source == "assumed"
    assert assumed.cost(Usage(input_tokens=10, output_tokens=10)) == 100_000
    assert resolve("my-model", Prices(), "track") is None
    free = resolve("my-model", Prices({"my-model": {"free": True}}))
    assert free is not None and free.is_free
    as_another = resolve("my-model", Prices(), "gpt-4o")
    assert as_another == Prices().find("gpt-4o")
    assert as_another is not None and as_another.source.startswith("assumed: as gpt-4o (genai-prices ")


def test_a_known_price_needs_no_policy() -> None:
    for policy in ("refuse", "track", Decimal(5), "gpt-4"):
        assert resolve("gpt-4o", Prices(), policy) == Prices().find("gpt-4o")


@pytest.mark.parametrize("policy", ["refuse", "track", Decimal("2.5"), 3, 0.1, "$2.50", ".5", "gpt-4o"])
def test_a_policy_is_checked_once_and_stays_what_it_is(policy: Any) -> None:
    checked = check_unknown_price(policy, Prices())
    assert check_unknown_price(checked, Prices()) is checked
    assert checked == policy if policy in ("refuse", "track") else isinstance(checked, Price)


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        ("refues", InvalidPriceError, "the nearest are 'refuse'"),
        ("gpt-4o-minni", InvalidPriceError, "'gpt-4o-mini'"),
        ("", InvalidPriceError, "not ''"),
        (0, InvalidAmountError, "> 0 US dollars per million tokens"),
        ("0", InvalidAmountError, "what is free is declared so"),
        *((wrong, InvalidAmountError, "US dollars") for wrong in (True, -1, float("nan"), None, [], {})),
        (Decimal("0.0000025"), InvalidAmountError, r"0\.0001 to 10000"),
    ],
)
def test_a_policy_that_is_none_is_refused_up_front(policy: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"unknown_price.*{message}"):
        check_unknown_price(policy, Prices())
