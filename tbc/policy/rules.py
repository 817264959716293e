"""Tiers and rules, and which tier fits where the wanted one is too dear or too slow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

import attrs

from tbc.contract import check_amount
from tbc.errors import InvalidPolicyError
from tbc.money import to_nano, to_usd
from tbc.policy.conditions import Condition, Situation
from tbc.pricing import Price, Prices, resolve

__all__ = ["Rule", "Tier", "first_match", "fit"]


def _dollars(value: Any) -> Decimal | None:
    return None if value is None else to_usd(to_nano("cost_usd", value))


@attrs.frozen
class Tier:
    """A class of models: what it costs, and how long it takes.

    Parameters
    ----------
    name : str
        Its name.
    latency_ms : int
        How long a call is expected to take as long as too few were observed: the prior.
    model : str, optional
        The model that is called.
    price : Price, optional
        What the model costs. `Tier.of_model` looks it up.
    cost_usd : Decimal, str, int or float, optional
        What a call costs, whatever it uses, instead of a price.

    Raises
    ------
    InvalidPolicyError
        Without a cost, or with both.
    InvalidAmountError
        For a latency or a cost that is none.
    """

    name: str
    latency_ms: int = attrs.field(validator=lambda _, __, value: check_amount("latency_ms", value))
    model: str | None = None
    price: Price | None = attrs.field(default=None, kw_only=True)
    cost_usd: Decimal | None = attrs.field(default=None, kw_only=True, converter=_dollars)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InvalidPolicyError("tier", [("name", f"must be text, not {self.name!r}")])
        if (self.price is None) == (self.cost_usd is None):
            raise InvalidPolicyError(
                "tier", [("", f"{self.name} must have either a price (by its model) or cost_usd")]
            )

    @classmethod
    def of_model(cls, name: str, model: str, latency_ms: int, prices: Prices | None = None) -> Tier:
        """Return the tier of a model at its price.

        Parameters
        ----------
        name, model, latency_ms
            As `Tier` takes them.
        prices : Prices, optional
            Where the price is looked up. Default: ``genai-prices``, if it is installed.

        Raises
        ------
        UnknownPriceError
            If nobody knows the price: an unknown price is not a free price.
        """
        return cls(name, latency_ms, model, price=resolve(model, Prices() if prices is None else prices))

    def cost(self, input_tokens: int | None, max_output_tokens: int | None) -> int | None:
        """Return the most that a call costs at list prices, in nano-dollars; what a hold would set aside.

        ``None`` if it depends on tokens that are not stated.
        """
        if self.cost_usd is not None:
            return to_nano("cost_usd", self.cost_usd)
        if self.price is None or input_tokens is None or max_output_tokens is None:
            return None
        return self.price.ceiling(input_tokens, max_output_tokens)


def _listed(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    return tuple(conditions)


#: A reason is the label of counters.
_LONGEST_REASON: Final = 100


@attrs.frozen(kw_only=True)
class Rule:
    """If all its conditions hold, its tier is wanted, or nothing is called.

    Raises
    ------
    InvalidPolicyError
        Without a reason, or with none or both of tier and hard stop.
    """

    #: Its conditions; none: it holds always.
    when: tuple[Condition, ...] = attrs.field(default=(), converter=_listed)
    #: The name of the tier.
    tier: str | None = None
    #: Nothing is called.
    hard_stop: bool = False
    #: Why, in a word for people and for counters, such as ``budget_exhausted``.
    reason: str

    def __attrs_post_init__(self) -> None:
        problems = []
        if not isinstance(self.reason, str) or not self.reason.strip():
            problems.append(("reason", f"must be text, not {self.reason!r}"))
        elif len(self.reason) > _LONGEST_REASON or not self.reason.isprintable():
            problems.append(("reason", f"must be one line of at most {_LONGEST_REASON} characters"))
        if self.hard_stop == (self.tier is not None):
            problems.append(("", "must have either a tier or hard_stop: true"))
        if not all(isinstance(condition, Condition) for condition in self.when):
            problems.append(("when", f"must be conditions, not {self.when!r}"))
        if problems:
            raise InvalidPolicyError("rule", problems)

    def matches(self, situation: Situation) -> bool:
        """Return whether all conditions hold."""
        return all(condition.holds(situation) for condition in self.when)


def first_match(rules: Sequence[Rule], situation: Situation) -> int | None:
    """Return which rule decides: the first that matches; ``None`` if none does."""
    return next((index for index, rule in enumerate(rules) if rule.matches(situation)), None)


def fit(
    wanted: int, affordable: Sequence[bool], latencies: Sequence[int], sla_ms: float | None
) -> int | None:
    """Return the dearest tier, up to the wanted one, that is affordable and fast enough; else ``None``."""
    for tier in range(wanted, -1, -1):
        if affordable[tier] and (sla_ms is None or latencies[tier] <= sla_ms):
            return tier
    return None
