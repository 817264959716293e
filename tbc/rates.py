"""The price of a model: exact rates per token, and what a call costs by them.

Rates are fractions of nano-dollars per token; a cost is rounded up to whole nano-dollars once per call.

Rules
-----
- A class without a rate of its own costs what it is a part of, never 0:

  ==========================  ==========================================
  class                       without a rate of its own it costs as
  ==========================  ==========================================
  cached read, cached write   input
  cached write for an hour    cached write
  input audio                 input
  cached audio read           input audio where that has a rate, else cached read
  output audio                output
  output, input               each other
  ==========================  ==========================================

- One tier per request: it is chosen by the whole prompt (every class of the input together) and holds for
  every class. A tier begins *above* its threshold, and names all its rates anew.
- Reasoning is a part of the output and is not charged again.
- A class that a usage does not state counts as none used. A usage that states no class at all is unknown, not
  free: it is refused.

Examples
--------
>>> from tbc.usage import Usage
>>> price = Price(rates=Rates(input=Fraction(2_500), output=Fraction(10_000)), source="table")
>>> price.cost(Usage(input_tokens=100, output_tokens=10)), price.ceiling(100, 10)
(350000, 350000)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import date
from fractions import Fraction
from operator import mul
from typing import TYPE_CHECKING, Any, Final

import attrs

from tbc.contract import check_amount
from tbc.errors import InvalidAmountError, InvalidPriceError

if TYPE_CHECKING:
    from tbc.usage import Usage

__all__ = ["CLASSES", "Price", "Rates", "Tier"]


def _check_rate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None and attribute.default is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, Fraction)) or value < 0:
        raise InvalidAmountError(attribute.name, value, "a Fraction of nano-dollars >= 0")


@attrs.frozen(kw_only=True)
class Rates:
    """Nano-dollars per token of each class.

    ``None``: no rate of its own. Input or output needs one.
    """

    #: Input that was neither read from nor written to a cache.
    input: Fraction | None = attrs.field(default=None, validator=_check_rate)
    #: Input that was read from a cache.
    cached_read: Fraction | None = attrs.field(default=None, validator=_check_rate)
    #: Input that was written to a cache.
    cached_write: Fraction | None = attrs.field(default=None, validator=_check_rate)
    #: Input that was written to a cache which keeps it for an hour.
    cached_write_1h: Fraction | None = attrs.field(default=None, validator=_check_rate)
    #: Audio in the input.
    input_audio: Fraction | None = attrs.field(default=None, validator=_check_rate)
    #: Audio that was read from a cache.
    cached_audio_read: Fraction | None = attrs.field(default=None, validator=_check_rate)
    #: Output, reasoning included.
    output: Fraction | None = attrs.field(default=None, validator=_check_rate)
    #: Audio in the output.
    output_audio: Fraction | None = attrs.field(default=None, validator=_check_rate)

    def __attrs_post_init__(self) -> None:
        if self.input is None and self.output is None:
            raise InvalidPriceError("rates", "neither input nor output has a rate")

    @property
    def charged(self) -> tuple[Fraction, ...]:
        """The rate of every class, in the order of `CLASSES`, by the rules of this room."""
        text = _first(self.input, self.output)
        output = _first(self.output, self.input)
        read = _first(self.cached_read, text)
        write = _first(self.cached_write, text)
        audio = _first(self.input_audio, text)
        return (
            text,
            read,
            write,
            _first(self.cached_write_1h, write),
            audio,
            _first(self.cached_audio_read, self.input_audio, read),
            output,
            _first(self.output_audio, output),
        )


def _first(*rates: Fraction | None) -> Fraction:
    return next(Fraction(rate) for rate in rates if rate is not None)


#: The classes that have a rate. A class ``x`` of a price is ``x_tokens`` of a `tbc.Usage`.
CLASSES: Final = tuple(attribute.name for attribute in attrs.fields(Rates))

_COUNTS: Final = tuple(f"{name}_tokens" for name in CLASSES)
_OUTPUT: Final = CLASSES.index("output")
#: What a text input may turn out to be.
_TEXT_INPUT: Final = slice(CLASSES.index("input"), CLASSES.index("cached_write_1h") + 1)


@attrs.frozen(kw_only=True)
class Tier:
    """Rates for long prompts."""

    #: The tier holds for prompts of more tokens than this.
    above: int = attrs.field(validator=lambda _, __, value: check_amount("above", value))
    #: Its rates, all of them.
    rates: Rates


def _listed(tiers: Iterable[Tier]) -> tuple[Tier, ...]:
    return tuple(tiers)


@attrs.frozen(kw_only=True)
class Price:
    """What a model costs.

    Prices are equal if they charge the same; where they come from does not count.
    """

    #: Rates of a prompt that no tier is for.
    rates: Rates = attrs.field(eq=False)
    #: Rates of long prompts, by ascending threshold.
    tiers: tuple[Tier, ...] = attrs.field(default=(), converter=_listed, eq=False)
    #: Nano-dollars for each request.
    per_request: Fraction = attrs.field(default=Fraction(0), validator=_check_rate, eq=False)
    #: Who says so: ``"genai-prices 0.2.3: openai/gpt-4o"``, ``"table"``, ``"callable"``, ``"assumed"``.
    source: str = attrs.field(default="table", eq=False)
    #: Since when it holds, where that is known.
    as_of: date | None = attrs.field(default=None, eq=False)
    #: Thresholds and whole-number rates, the longest prompts first; all over one denominator.
    _charges: tuple[tuple[int, tuple[int, ...]], ...] = attrs.field(init=False, repr=False)
    _fee: int = attrs.field(init=False, repr=False)
    _denominator: int = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        starts = [tier.above for tier in self.tiers]
        if starts != sorted(set(starts)):
            raise InvalidPriceError("tiers", f"the thresholds must rise, not {starts}")
        charged = [(-1, self.rates.charged), *((tier.above, tier.rates.charged) for tier in self.tiers)]
        fee = Fraction(self.per_request)
        one = math.lcm(fee.denominator, *(rate.denominator for _, rates in charged for rate in rates))
        put = object.__setattr__
        put(self, "_denominator", one)
        put(self, "_fee", int(fee * one))
        whole = ((above, tuple(int(rate * one) for rate in rates)) for above, rates in charged)
        put(self, "_charges", tuple(whole)[::-1])

    @classmethod
    def free(cls, source: str = "table") -> Price:
        """Return the price of a model that costs nothing, as one that runs on the own machine."""
        return cls(rates=Rates(input=Fraction(0), output=Fraction(0)), source=source)

    @property
    def is_free(self) -> bool:
        """Whether no call of this model costs anything."""
        return not self._fee and not any(any(rates) for _, rates in self._charges)

    def cost(self, usage: Usage) -> int:
        """Return what a call cost, in nano-dollars, rounded up once.

        Parameters
        ----------
        usage : Usage
            What it used. A class that is not stated counts as none used.

        Raises
        ------
        InvalidAmountError
            If the usage states no class at all and the model is not free: an unknown usage has no cost.
        """
        counts = [getattr(usage, name, None) for name in _COUNTS]
        if counts.count(None) == len(counts):
            if self.is_free:
                return 0
            raise InvalidAmountError("usage", usage, "a Usage that states at least one class of tokens")
        known = [count or 0 for count in counts]
        rates = self._rates_for(sum(known[:_OUTPUT]))
        return self._rounded(sum(map(mul, rates, known)))

    def text_cost(self, input_tokens: int, output_tokens: int) -> int:
        """Return what a call of text of which nothing was cached cost, in nano-dollars, rounded up once."""
        rates = self._rates_for(input_tokens)
        return self._rounded(input_tokens * rates[0] + output_tokens * rates[_OUTPUT])

    def ceiling(self, input_tokens: int, output_tokens: int) -> int:
        """Return the most a call of text can cost, in nano-dollars, rounded up once.

        It is what a hold sets aside: which part of the input will be read from or written to a cache is known
        only afterwards, so all of it is charged at the dearest of these classes. No text usage with as many
        tokens of input and output costs more.

        Parameters
        ----------
        input_tokens, output_tokens : int
            Tokens of the whole prompt, and of the output, >= 0.
        """
        prompt = check_amount("input_tokens", input_tokens)
        rates = self._rates_for(prompt)
        output = check_amount("output_tokens", output_tokens) * rates[_OUTPUT]
        return self._rounded(prompt * max(rates[_TEXT_INPUT]) + output)

    def dearest(self, tokens: int) -> int:
        """Return the most that so many tokens of text can cost, whichever of them are input.

        It is reached with no input, with nothing else, or with a prompt at the end or beginning of a tier.
        """
        ends = (above for above, _ in self._charges if 0 <= above <= tokens)
        prompts = {0, tokens, *(end + after for end in ends for after in (0, 1) if end + after <= tokens)}
        return max(self.ceiling(prompt, tokens - prompt) for prompt in prompts)

    def _rates_for(self, prompt: int) -> Sequence[int]:
        return next(rates for above, rates in self._charges if prompt > above)

    def _rounded(self, tokens: int) -> int:
        return -(-(self._fee + tokens) // self._denominator)
