"""What clients send: frozen records. Keys that a record does not have are refused."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from tbc.errors import InvalidRequestError
from tbc.money import Money, to_usd
from tbc.service.values import (
    AgentName,
    Amount,
    Count,
    Dollars,
    Fraction,
    Line,
    PageSize,
    Priority,
    Seconds,
)
from tbc.usage import Usage

__all__ = [
    "LEFT_OUT",
    "MANY",
    "AgentTerms",
    "Asked",
    "Confidence",
    "EntriesQuery",
    "EventsQuery",
    "Extension",
    "ListQuery",
    "NewAgent",
    "NewHold",
    "NewUsage",
    "Nothing",
    "Settling",
    "Shortfalls",
    "TopUp",
    "UsedTokens",
    "money",
]

#: How many agents one `Shortfalls` may name for each axis.
MANY = 500
#: A key that was left out, where ``null`` means something.
LEFT_OUT: Any = type("LeftOut", (), {"__repr__": lambda self: "<left out>"})()


def money(record: Any, dollars: str = "usd", nano: str = "nano_usd") -> Money | None:
    """Return the dollars that a request states in one of two ways; ``None`` if in neither."""
    text, whole = getattr(record, dollars), getattr(record, nano)
    if whole is None:
        return text  # type: ignore[no-any-return]
    if text is not None:
        raise InvalidRequestError([(nano, f"says the same as {dollars}: send one of them")])
    return to_usd(whole)


@attrs.frozen(kw_only=True)
class Nothing:
    """An empty object."""


@attrs.frozen(kw_only=True)
class NewAgent:
    """The terms of an agent. ``null``, or left out: no cap of its own on that axis."""

    only_one_of: ClassVar = (("max_usd", "max_nano_usd"), ("min_reserve_usd", "min_reserve_nano_usd"))

    agent_name: AgentName
    priority: Priority = 1
    parent: AgentName | None = None
    #: 0: it draws from its parent as needed.
    max_tokens: Amount | None = None
    max_usd: Dollars | None = None
    max_nano_usd: Amount | None = None
    max_calls: Amount | None = None
    #: Default: a tenth of `max_tokens`.
    min_reserve: Amount | None = None
    min_reserve_usd: Dollars | None = None
    min_reserve_nano_usd: Amount | None = None
    #: At this confidence or above the agent may spend no more.
    confidence_threshold: Fraction | None = None
    #: Whether other terms of an agent that is there are to be replaced.
    replace: bool = False


@attrs.frozen(kw_only=True)
class AgentTerms:
    """What is to change of an agent's terms; what is left out stays."""

    only_one_of: ClassVar = (("min_reserve_usd", "min_reserve_nano_usd"),)

    priority: Priority | None = None
    min_reserve: Amount | None = None
    min_reserve_usd: Dollars | None = None
    min_reserve_nano_usd: Amount | None = None
    #: ``null``: none any more.
    confidence_threshold: Fraction | None = LEFT_OUT


@attrs.frozen(kw_only=True)
class TopUp:
    """What is granted more: out of the parent's spare, or anew at the top of a budget."""

    only_one_of: ClassVar = (("usd", "nano_usd"),)

    tokens: Amount = 0
    usd: Dollars | None = None
    nano_usd: Amount | None = None
    calls: Amount = 0


@attrs.frozen(kw_only=True)
class Confidence:
    """How sure an agent is of its answer; ``null`` forgets it, which opens its gate."""

    confidence: Fraction | None


@attrs.frozen(kw_only=True)
class UsedTokens:
    """What the provider stated, in classes that do not overlap but for reasoning."""

    input_tokens: Amount | None = None
    cached_read_tokens: Amount | None = None
    cached_write_tokens: Amount | None = None
    cached_write_1h_tokens: Amount | None = None
    input_audio_tokens: Amount | None = None
    cached_audio_read_tokens: Amount | None = None
    output_tokens: Amount | None = None
    output_audio_tokens: Amount | None = None
    #: A part of `output_tokens`.
    reasoning_tokens: Amount | None = None

    def usage(self) -> Usage:
        """Return it as the library has it."""
        return Usage(**attrs.asdict(self))


@attrs.frozen(kw_only=True)
class NewUsage:
    """What was spent without a hold."""

    only_one_of: ClassVar = (("usd", "nano_usd"),)

    tokens: Amount = 0
    usd: Dollars | None = None
    nano_usd: Amount | None = None
    calls: Count = 1
    model: Line | None = None
    usage: UsedTokens | None = None
    note: Line = "usage"
    confidence: Fraction | None = None


@attrs.frozen(kw_only=True)
class NewHold:
    """The most that a call may use."""

    only_one_of: ClassVar = (("usd", "nano_usd"),)

    agent_name: AgentName
    tokens: Amount = 0
    #: Left out: by the dearest price of the model.
    usd: Dollars | None = None
    nano_usd: Amount | None = None
    calls: Count = 1
    model: Line | None = None
    #: Seconds after which the hold ends by itself, if nothing else ends it.
    expires_s: Seconds = 600
    operation: Line | None = None
    #: If `tokens` do not fit: grant what is available, but not less than this.
    at_least: Amount | None = None


@attrs.frozen(kw_only=True)
class Settling:
    """What was used. What is left out is booked as it was held, as an estimate."""

    only_one_of: ClassVar = (("usd", "nano_usd"),)

    tokens: Amount | None = None
    usd: Dollars | None = None
    nano_usd: Amount | None = None
    calls: Count | None = None
    usage: UsedTokens | None = None
    #: Whether all of that is an estimate.
    estimated: bool = False


@attrs.frozen(kw_only=True)
class Extension:
    """What is to be set aside more, or for how long from now."""

    only_one_of: ClassVar = (("usd", "nano_usd"),)

    tokens: Amount = 0
    usd: Dollars | None = None
    nano_usd: Amount | None = None
    expires_s: Seconds | None = None


@attrs.frozen(kw_only=True)
class Asked:
    """What would be held; nothing moves."""

    only_one_of: ClassVar = (("usd", "nano_usd"),)

    agent_name: AgentName
    tokens: Amount = 0
    usd: Dollars | None = None
    nano_usd: Amount | None = None
    calls: Count = 1
    model: Line | None = None


@attrs.frozen(kw_only=True)
class Shortfalls:
    """What agents lack, by name; each axis is one clearing."""

    only_one_of: ClassVar = (("usd", "nano_usd"),)

    tokens: dict[AgentName, Amount] = attrs.field(factory=dict)
    usd: dict[AgentName, Dollars] | None = None
    nano_usd: dict[AgentName, Amount] | None = None
    calls: dict[AgentName, Amount] | None = None


@attrs.frozen(kw_only=True)
class ListQuery:
    """Which agents."""

    #: The name of the last agent of the page before.
    after: AgentName | None = None
    limit: PageSize = 100


@attrs.frozen(kw_only=True)
class EntriesQuery:
    """Which lines of the journal."""

    #: The number of the last line that is known.
    since: Amount = 0
    limit: PageSize = 100


@attrs.frozen(kw_only=True)
class EventsQuery:
    """From where on."""

    #: The number of the last line that is known; left out: from now on. ``Last-Event-ID`` wins.
    since: Amount | None = None
