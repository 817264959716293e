"""A provider's reply to usage: what a call really spent, in classes that do not overlap.

`read_usage` reads the usage that a reply states, `StreamUsage` the usage that a stream states chunk by
chunk. Both know their records by the names of their fields, objects and dicts alike, and import no client
library. What is not stated is ``None``, never 0; only an ``int`` from 0 to 2**50 is a count.

============================  =============================================  ==============================
record                        input                                          output
============================  =============================================  ==============================
OpenAI chat completions       includes what was cached                       includes reasoning
OpenAI responses              includes what was cached                       includes reasoning
Anthropic messages            cached reads and writes are stated beside it   includes thinking
Gemini                        includes what was cached, not tool results     without thoughts
LangChain                     includes what was cached                       includes reasoning
============================  =============================================  ==============================

Examples
--------
>>> usage = read_usage({"usage": {"prompt_tokens": 90, "completion_tokens": 10,
...                               "prompt_tokens_details": {"cached_tokens": 64}}})
>>> usage.input_tokens, usage.cached_read_tokens, usage.output_tokens, usage.tokens
(26, 64, 10, 100)
>>> read_usage({"usage": "2 spoons a day"}) is None
True
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import attrs

from tbc.errors import InvalidAmountError
from tbc.replies import field, label, reply_text, text_of, unwrapped

__all__ = ["StreamUsage", "Usage", "read_usage", "reply_text", "text_of"]

_AMOUNT_MAX: Final = 2**53 - 1
#: The largest number that is believed to be a count: sums of a few stay amounts.
_COUNT_MAX: Final = 2**50
#: A record without one of these is not taken for the usage of a call: counting tokens is not a call.
_OUTPUT_NAMES: Final = (
    "completion_tokens",
    "output_tokens",
    "candidates_token_count",
    "candidatesTokenCount",
)
#: Types of events that begin a response, and of whole replies, which are one each.
_BEGINNINGS: Final = ("message_start", "response.created", "ai", "message")
_WHOLE: Final = ("chat.completion", "response")


def _check_count(_: object, attribute: attrs.Attribute[int | None], value: object) -> None:
    if value is not None and not _is_count(value, _AMOUNT_MAX):
        raise InvalidAmountError(attribute.name, value, "an int from 0 to 2**53 - 1, or None for unknown")


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


@attrs.frozen(kw_only=True)
class Usage:
    """Tokens of one call. The first four classes do not overlap; ``None`` means not stated."""

    #: Tokens of the input that were neither read from nor written to a cache.
    input_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of the input that were read from a cache.
    cached_read_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of the input that were written to a cache.
    cached_write_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of the output, reasoning included.
    output_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of reasoning, for information: a part of `output_tokens`.
    reasoning_tokens: int | None = attrs.field(default=None, validator=_check_count)

    @property
    def tokens(self) -> int | None:
        """Everything that counts towards a token budget; ``None`` if nothing is known."""
        return _sum(self.all_input, self.output_tokens)

    @property
    def all_input(self) -> int | None:
        """Tokens of the input, cached or not; ``None`` if nothing is known."""
        return _sum(self.input_tokens, self.cached_read_tokens, self.cached_write_tokens)


_CLASSES: Final = tuple(attribute.name for attribute in attrs.fields(Usage))


def read_usage(reply: object) -> Usage | None:
    """Read the usage that a reply states.

    Looked at are, in this order: ``usage``, ``usage_metadata``, ``response_metadata["token_usage"]`` (or
    ``["usage"]``) of the reply, the reply itself if it is such a record, and the same of what it is wrapped
    around, as in `reply_text`. Several messages may be the history of a conversation, already booked; then
    the usage is unknown.

    Numbers that contradict each other never make a class negative: cached tokens are at most the input that
    includes them, reasoning at most the output. A stated total above the sum of the parts is believed, and
    what is missing is output; one below it is not.

    Parameters
    ----------
    reply : object
        A reply object, the same as a dict, or anything.

    Returns
    -------
    Usage or None
        ``None`` if no usage is stated. Never raises.
    """
    return _stated(reply, unwrapped(reply))


def _stated(reply: object, inner: Iterable[object]) -> Usage | None:
    if reply is None or isinstance(reply, str):
        return None
    for candidate in (reply, *inner):
        for record in _records(candidate):
            usage = None if record is None else _read_record(record)
            if usage is not None:
                return usage
        if _count(candidate, *_OUTPUT_NAMES) is not None:
            return _read_record(candidate)
    return None


def _records(reply: object) -> Iterator[object]:
    for name in ("usage", "usage_metadata", "usageMetadata"):
        yield field(reply, name)
    metadata = field(reply, "response_metadata")
    if metadata is not None:
        yield field(metadata, "token_usage")
        yield field(metadata, "usage")


def _read_record(record: object) -> Usage | None:
    for read in (_read_gemini, _read_openai_chat, _read_inclusive, _read_anthropic):
        usage = read(record)
        if usage is not None and usage.tokens is not None:
            return usage
    return None


def _read_gemini(record: object) -> Usage | None:
    prompt = _count(record, "prompt_token_count", "promptTokenCount")
    tools = _count(record, "tool_use_prompt_token_count", "toolUsePromptTokenCount")
    answer = _count(record, "candidates_token_count", "candidatesTokenCount", "response_token_count")
    thoughts = _count(record, "thoughts_token_count", "thoughtsTokenCount")
    return _disjoint(
        _sum(prompt, tools),
        _sum(answer, thoughts),
        read=_count(record, "cached_content_token_count", "cachedContentTokenCount"),
        reasoning=thoughts,
        total=_count(record, "total_token_count", "totalTokenCount"),
    )


def _read_openai_chat(record: object) -> Usage | None:
    details, more = field(record, "prompt_tokens_details"), field(record, "completion_tokens_details")
    prompt, completion = _count(record, "prompt_tokens"), _count(record, "completion_tokens")
    if prompt is None and completion is None and _count(record, "input_tokens", "output_tokens") is not None:
        return None
    return _disjoint(
        prompt,
        completion,
        read=_first(
            _count(details, "cached_tokens"),
            _count(record, "cache_read_input_tokens", "prompt_cache_hit_tokens"),
        ),
        write=_first(
            _count(details, "cache_write_tokens", "cache_creation_tokens"),
            _count(record, "cache_creation_input_tokens"),
        ),
        reasoning=_count(more, "reasoning_tokens"),
        total=_count(record, "total_tokens"),
    )


def _read_inclusive(record: object) -> Usage | None:
    """Read OpenAI's responses and LangChain: ``input_tokens`` with details that are a part of it."""
    details = _first(field(record, "input_tokens_details"), field(record, "input_token_details"))
    if _exclusive_cache(record) != (None, None) and _cached(details) == (None, None):
        return None
    read, write = _cached(details)
    return _disjoint(
        _count(record, "input_tokens"),
        _count(record, "output_tokens"),
        read=read,
        write=write,
        reasoning=_reasoning(record),
        total=_count(record, "total_tokens"),
    )


def _read_anthropic(record: object) -> Usage | None:
    read, write = _exclusive_cache(record)
    output = _count(record, "output_tokens")
    return Usage(
        input_tokens=_count(record, "input_tokens"),
        cached_read_tokens=read,
        cached_write_tokens=write,
        output_tokens=output,
        reasoning_tokens=_at_most(_reasoning(record), output),
    )


def _exclusive_cache(record: object) -> tuple[int | None, int | None]:
    """Return what Anthropic states beside ``input_tokens``: cached reads and writes."""
    written = field(record, "cache_creation")
    return _count(record, "cache_read_input_tokens"), _first(
        _count(record, "cache_creation_input_tokens"),
        _sum(_count(written, "ephemeral_5m_input_tokens"), _count(written, "ephemeral_1h_input_tokens")),
    )


def _cached(details: object) -> tuple[int | None, int | None]:
    """Return the cached reads and writes among the details of the input."""
    read = _first(_count(details, "cached_tokens"), _sum_of(details, suffix="cache_read"))
    write = _first(_count(details, "cache_write_tokens"), _sum_of(details, suffix="cache_creation"))
    # LangChain repeats the writes by their time to live, then sometimes without the sum.
    by_time = _sum_of(details, prefix="ephemeral_")
    return read, write if by_time is None else max(by_time, write or 0)


def _reasoning(record: object) -> Any:
    details = _first(field(record, "output_tokens_details"), field(record, "output_token_details"))
    return _first(
        _count(details, "reasoning_tokens", "thinking_tokens"), _sum_of(details, suffix="reasoning")
    )


def _disjoint(
    prompt: int | None,
    output: int | None,
    *,
    read: int | None = None,
    write: int | None = None,
    reasoning: int | None = None,
    total: int | None = None,
) -> Usage:
    """Make disjoint classes of an input that includes what was cached, and of a stated total."""
    if total is not None:
        if prompt is None and output is not None and total >= output:
            prompt = total - output
        elif total >= (prompt or 0) + (output or 0):
            output = total - (prompt or 0)
    read = _at_most(read, prompt)
    write = _at_most(write, None if prompt is None else prompt - (read or 0))
    return Usage(
        input_tokens=None if prompt is None else prompt - (read or 0) - (write or 0),
        cached_read_tokens=read,
        cached_write_tokens=write,
        output_tokens=output,
        reasoning_tokens=_at_most(reasoning, output),
    )


class StreamUsage:
    """The usage of a stream, from the usage that its chunks state.

    OpenAI, Anthropic and Gemini state the usage so far, some once, some with every chunk: the last one
    counts, and a number that a chunk leaves out keeps its last value. LangChain's chunks state what they
    add, so they are added, as the sum of the chunks would be. Some of its integrations repeat the input, or
    everything so far, with every chunk: where two chunks state the same input, the input is counted once,
    and an output that only grows is taken as the output so far.

    Several responses in one stream (the calls of an agent, one after the other) are added up. A new one
    begins with an event that says so, with a whole reply, or where the id of the chunks changes for good.

    Examples
    --------
    >>> stream = StreamUsage()
    >>> stream.add({"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}})
    >>> stream.add({"type": "message_delta", "usage": {"output_tokens": 15}})
    >>> stream.usage.tokens
    40
    """

    __slots__ = ("_chunks_of_id", "_earlier", "_id", "_series")

    def __init__(self) -> None:
        self._earlier: Usage | None = None
        self._series = _Series()
        self._id = ""
        self._chunks_of_id = 0

    @property
    def usage(self) -> Usage | None:
        """What the chunks so far state; ``None`` if they state nothing."""
        return _added(self._earlier, self._series.usage)

    def add(self, chunk: object) -> None:
        """Take in the next chunk. Never raises."""
        inner = unwrapped(chunk)
        self._follow(chunk, inner)
        usage = _stated(chunk, inner)
        if usage is not None:
            adds = label(chunk, "type") == "AIMessageChunk"
            self._series.add(usage) if adds else self._series.replace(usage)

    def _follow(self, chunk: object, inner: Iterable[object]) -> None:
        """Begin a new series if the chunk begins a new response."""
        ids = (label(one, name) for one in (*inner, chunk) for name in ("id", "response_id"))
        found = next(filter(None, ids), "")
        changed = found not in ("", self._id)
        begins = label(chunk, "type") in _BEGINNINGS or label(chunk, "object") in _WHOLE
        # Why two: some gateways give every chunk an id of its own.
        settled = self._id and self._chunks_of_id >= 2
        if (begins and (changed or not found)) or (changed and settled):
            self._earlier, self._series = self.usage, _Series()
        if changed:
            self._id, self._chunks_of_id = found, 0
        self._chunks_of_id += 1


class _Series:
    """The usage of one response in a stream."""

    __slots__ = ("_falls", "_last", "_repeats", "_rises", "_total")

    def __init__(self) -> None:
        self._total: Usage | None = None
        self._last: Usage | None = None
        self._repeats = self._rises = self._falls = False

    def replace(self, usage: Usage) -> None:
        """Take a usage so far. It never falls: a smaller input or output is one that was left out."""
        self._total = self._last = _later(self._total, usage)

    def add(self, usage: Usage) -> None:
        """Take a usage that comes on top of what was."""
        if self._last is not None:
            before, after = self._last.output_tokens or 0, usage.output_tokens or 0
            self._repeats |= bool(usage.all_input) and usage.all_input == self._last.all_input
            self._rises |= after > before
            self._falls |= after < before
        self._total, self._last = _added(self._total, usage), usage

    @property
    def usage(self) -> Usage | None:
        if not self._repeats or self._last is None:
            return self._total
        output = self._last if self._rises and not self._falls else self._total
        return _joined(self._last, output)


def _later(old: Usage | None, new: Usage) -> Usage:
    """Return the later of two usages so far; an input or output that is left out or falls keeps its value."""
    if old is None:
        return new
    given = new.all_input is not None and new.all_input >= (old.all_input or 0)
    grows = new.output_tokens is not None and new.output_tokens >= (old.output_tokens or 0)
    return _joined(new if given else old, new if grows else old)


def _joined(one: Usage, other: Usage | None) -> Usage:
    """Return the input of one usage and the output of another."""
    other = other or one
    return attrs.evolve(one, output_tokens=other.output_tokens, reasoning_tokens=other.reasoning_tokens)


def _added(one: Usage | None, other: Usage | None) -> Usage | None:
    if one is None or other is None:
        return one or other
    return Usage(**{name: _sum(getattr(one, name), getattr(other, name)) for name in _CLASSES})


def _count(record: object, *names: str) -> int | None:
    """Return the first of the fields that is a count."""
    for name in names:
        value = field(record, name)
        if _is_count(value, _COUNT_MAX):
            return int(value)
    return None


def _sum_of(details: object, *, prefix: str = "", suffix: str = "") -> int | None:
    """Return the sum of the counts whose names begin and end so; some have a service tier in front."""
    if not isinstance(details, Mapping):
        return None
    names = [name for name in details if isinstance(name, str)]
    names = [name for name in names if name.startswith(prefix) and name.endswith(suffix)]
    return _sum(*(_count(details, name) for name in names))


def _sum(*numbers: int | None) -> int | None:
    known = [number for number in numbers if number is not None]
    return min(sum(known), _AMOUNT_MAX) if known else None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _at_most(number: int | None, limit: int | None) -> int | None:
    return number if number is None or limit is None else min(number, limit)
