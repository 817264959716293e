"""A provider's reply to usage: what a call really spent, in classes that do not overlap.

`read_usage` reads the usage that a reply states; a stream is read chunk by chunk by
`tbc.stream_usage.StreamUsage`. Records are known by the names of their fields, objects and dicts alike, and
no client library is imported. What is not stated is ``None``, never 0; only an ``int`` from 0 to 2**50 is a
count.

==========================  ==============================================  ================================
record                      input                                           output
==========================  ==============================================  ================================
OpenAI chat completions     includes what was cached, and audio             includes reasoning, and audio
OpenAI responses            includes what was cached, and audio             includes reasoning, and audio
Anthropic messages          cached reads and writes are stated beside it    includes thinking
Gemini                      includes what was cached, and audio; tool       without thoughts (in some replies
                            results are stated beside it                    with them), includes audio
LangChain                   includes what was cached, and audio             includes reasoning, and audio
LiteLLM, whatever it asks   includes what was cached, and audio             includes reasoning, and audio
==========================  ==============================================  ================================

Few say how much of the audio was cached. Then the cached tokens are taken for text as far as that is
possible, and cached audio is what does not fit into the rest of the input.

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
from numbers import Integral
from typing import Any, Final

import attrs

from tbc.errors import InvalidAmountError
from tbc.replies import field, items, label, reply_text, text_of, unwrapped

__all__ = ["Usage", "read_usage", "reply_text", "stated_usage", "text_of"]

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


def _check_count(_: object, attribute: attrs.Attribute[int | None], value: object) -> None:
    if value is not None and not _is_count(value, _AMOUNT_MAX):
        raise InvalidAmountError(attribute.name, value, "an int from 0 to 2**53 - 1, or None for unknown")


def _is_count(value: object, most: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):  # NumPy's are `Integral` only
        return False
    return 0 <= int(value) <= most


@attrs.frozen(kw_only=True)
class Usage:
    """Tokens of one call. No class overlaps another, but for reasoning; ``None`` means not stated.

    Examples
    --------
    >>> usage = Usage(input_tokens=200, cached_read_tokens=600, output_tokens=150, reasoning_tokens=50)
    >>> usage.all_input, usage.all_output, usage.tokens
    (800, 150, 950)
    >>> (usage + Usage(input_tokens=1, output_tokens=2)).tokens
    953
    """

    #: Tokens of the input that were neither read from nor written to a cache, and are not audio.
    input_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of the input that were read from a cache, and are not known to be audio.
    cached_read_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of the input that were written to a cache, for the usual time (Anthropic: 5 minutes).
    cached_write_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of the input that were written to a cache for an hour.
    cached_write_1h_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of audio in the input that were not read from a cache.
    input_audio_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of audio in the input that were read from a cache.
    cached_audio_read_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of the output that are not audio, reasoning included.
    output_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of audio in the output.
    output_audio_tokens: int | None = attrs.field(default=None, validator=_check_count)
    #: Tokens of reasoning, for information: a part of `output_tokens`.
    reasoning_tokens: int | None = attrs.field(default=None, validator=_check_count)

    @property
    def tokens(self) -> int | None:
        """Everything that counts towards a token budget; ``None`` if nothing is known."""
        return _sum(self.all_input, self.all_output)

    @property
    def all_input(self) -> int | None:
        """Tokens of the input, cached or not, text or audio; ``None`` if nothing is known."""
        return _sum(
            self.input_tokens,
            self.cached_read_tokens,
            self.cached_write_tokens,
            self.cached_write_1h_tokens,
            self.input_audio_tokens,
            self.cached_audio_read_tokens,
        )

    @property
    def all_output(self) -> int | None:
        """Tokens of the output, text or audio; ``None`` if nothing is known."""
        return _sum(self.output_tokens, self.output_audio_tokens)

    def __add__(self, other: Usage) -> Usage:
        """Return the usage of two calls, class by class; what one of them states is known."""
        if not isinstance(other, Usage):
            return NotImplemented
        return Usage(**{name: _sum(getattr(self, name), getattr(other, name)) for name in _CLASSES})


_CLASSES: Final = tuple(attribute.name for attribute in attrs.fields(Usage))


def read_usage(reply: object) -> Usage | None:
    """Read the usage that a reply states.

    Looked at are, in this order: ``usage``, ``usage_metadata``, ``response_metadata["token_usage"]`` (or
    ``["usage"]``), ``llm_output["token_usage"]`` of the reply, the reply itself if it is such a record, and
    the same of what it is wrapped around, as in `reply_text`. Several messages may be the history of a
    conversation, already booked; then the usage is unknown.

    Numbers that contradict each other never make a class negative: cached tokens and audio are at most the
    input that includes them, reasoning at most the output. A stated total above the sum of the parts is
    believed, and what is missing is output; one below it is not. A reply that LiteLLM marks as taken from its
    response cache has cost nothing: its usage is 0.

    Parameters
    ----------
    reply : object
        A reply object, the same as a dict, or anything.

    Returns
    -------
    Usage or None
        ``None`` if no usage is stated. Never raises.
    """
    return stated_usage(reply, unwrapped(reply))


def stated_usage(reply: object, inner: Iterable[object]) -> Usage | None:
    """Read the usage of a reply like `read_usage`, given what the reply is wrapped around."""
    if reply is None or isinstance(reply, str):
        return None
    for candidate in (reply, *inner):
        if _is_replayed(candidate):
            return Usage(input_tokens=0, output_tokens=0)
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
    llm_output = field(reply, "llm_output")
    if llm_output is not None:
        yield field(llm_output, "token_usage")


def _is_replayed(reply: object) -> bool:
    """Tell a chat completion from LiteLLM's response cache; its mark on embeddings may mean some of them."""
    if label(reply, "object") != "chat.completion":
        return False
    try:  # a private attribute of the model: `field` does not see it
        return field(getattr(reply, "_hidden_params", None), "cache_hit") is True
    except Exception:
        return False


def _read_record(record: object) -> Usage | None:
    for read in (_read_gemini, _read_openai_chat, _read_inclusive, _read_anthropic):
        usage = read(record)
        if usage is not None and usage.tokens is not None:
            return usage
    return None


def _read_gemini(record: object) -> Usage | None:
    prompt = _count(record, "prompt_token_count", "promptTokenCount")
    tools = _count(record, "tool_use_prompt_token_count", "toolUsePromptTokenCount")
    answer = _count(
        record,
        *("candidates_token_count", "candidatesTokenCount"),
        *("response_token_count", "responseTokenCount"),
    )
    thoughts = _count(record, "thoughts_token_count", "thoughtsTokenCount")
    total = _count(record, "total_token_count", "totalTokenCount")
    if _sum(prompt, tools, answer, thoughts, total) is None:
        return None
    within = answer is not None and total == _sum(prompt, tools, answer)
    return _disjoint(
        _sum(prompt, tools),
        answer if within else _sum(answer, thoughts),
        read=_count(record, "cached_content_token_count", "cachedContentTokenCount"),
        cached_audio=_audio(record, "cache_tokens_details", "cacheTokensDetails"),
        audio=_sum(
            _audio(record, "prompt_tokens_details", "promptTokensDetails"),
            _audio(record, "tool_use_prompt_tokens_details", "toolUsePromptTokensDetails"),
        ),
        output_audio=_audio(
            record,
            *("candidates_tokens_details", "candidatesTokensDetails"),
            *("response_tokens_details", "responseTokensDetails"),
        ),
        reasoning=thoughts,
        total=total,
    )


def _audio(record: object, *names: str) -> int | None:
    """Return the audio in the first of the fields that lists counts by modality."""
    listed = next(filter(None, (items(record, name) for name in names)), [])
    audio = [each for each in listed if label(each, "modality").upper() == "AUDIO"]
    return _sum(*(_count(each, "token_count", "tokenCount") for each in audio))


def _read_openai_chat(record: object) -> Usage | None:
    """Read OpenAI's chat completions, and LiteLLM, which repeats Anthropic's names for what was cached."""
    prompt, completion = _count(record, "prompt_tokens"), _count(record, "completion_tokens")
    if prompt is None and completion is None and _count(record, "input_tokens", "output_tokens") is not None:
        return None
    return _disjoint(
        prompt,
        completion,
        **_of_input(
            field(record, "prompt_tokens_details"),
            read=_count(record, "cache_read_input_tokens", "prompt_cache_hit_tokens"),
            write=_count(record, "cache_creation_input_tokens"),
        ),
        **_of_output(field(record, "completion_tokens_details")),
        total=_count(record, "total_tokens"),
    )


def _read_inclusive(record: object) -> Usage | None:
    """Read OpenAI's responses and LangChain: ``input_tokens`` with details that are a part of it."""
    details = _of_input(_first(field(record, "input_tokens_details"), field(record, "input_token_details")))
    cached_within = any(details.get(name) is not None for name in ("read", "write", "write_1h"))
    if not cached_within and _sum(*_beside_input(record)) is not None:
        return None
    return _disjoint(
        _count(record, "input_tokens"),
        _count(record, "output_tokens"),
        **details,
        **_of_output(_output_details(record)),
        total=_count(record, "total_tokens"),
    )


def _read_anthropic(record: object) -> Usage | None:
    read, write, write_1h = _beside_input(record)
    output = _count(record, "output_tokens")
    return Usage(
        input_tokens=_count(record, "input_tokens"),
        cached_read_tokens=read,
        cached_write_tokens=write,
        cached_write_1h_tokens=write_1h,
        output_tokens=output,
        reasoning_tokens=_at_most(_of_output(_output_details(record)).get("reasoning"), output),
    )


def _beside_input(record: object) -> tuple[int | None, int | None, int | None]:
    """Return what Anthropic states beside ``input_tokens``: cached reads, writes, and writes for an hour."""
    by_time = field(record, "cache_creation")
    return _count(record, "cache_read_input_tokens"), *_writes(
        _count(record, "cache_creation_input_tokens"),
        _count(by_time, "ephemeral_5m_input_tokens"),
        _count(by_time, "ephemeral_1h_input_tokens"),
    )


def _of_input(details: object, read: int | None = None, write: int | None = None) -> dict[str, int | None]:
    """Return the classes in the details of an input that includes them; `read` and `write` if not there."""
    if details is None:
        return {"read": read, "write": write}
    by_time = field(details, "cache_creation_token_details")
    write, write_1h = _writes(
        _first(
            _count(details, "cache_write_tokens", "cache_creation_tokens"),
            _sum_of(details, "cache_creation"),
            write,
        ),
        _first(_count(by_time, "ephemeral_5m_input_tokens"), _sum_of(details, "ephemeral_5m_input_tokens")),
        _first(_count(by_time, "ephemeral_1h_input_tokens"), _sum_of(details, "ephemeral_1h_input_tokens")),
    )
    return {
        "read": _first(_count(details, "cached_tokens"), _sum_of(details, "cache_read"), read),
        "write": write,
        "write_1h": write_1h,
        "audio": _first(_count(details, "audio_tokens"), _sum_of(details, "audio")),
        "cached_audio": _count(field(details, "cached_tokens_details"), "audio_tokens"),
    }


def _output_details(record: object) -> object:
    return _first(field(record, "output_tokens_details"), field(record, "output_token_details"))


def _of_output(details: object) -> dict[str, int | None]:
    """Return the classes in the details of an output that includes them."""
    if details is None:
        return {}
    return {
        "reasoning": _first(
            _count(details, "reasoning_tokens", "thinking_tokens"), _sum_of(details, "reasoning")
        ),
        "output_audio": _first(_count(details, "audio_tokens"), _sum_of(details, "audio")),
    }


def _writes(every: int | None, five: int | None, hour: int | None) -> tuple[int | None, int | None]:
    """Return the writes for the usual time and for an hour; LangChain does not always state their sum."""
    if every is None and five is None:
        return None, hour
    return max(every or 0, (five or 0) + (hour or 0)) - (hour or 0), hour


def _disjoint(
    prompt: int | None,
    output: int | None,
    *,
    read: int | None = None,
    write: int | None = None,
    write_1h: int | None = None,
    audio: int | None = None,
    cached_audio: int | None = None,
    output_audio: int | None = None,
    reasoning: int | None = None,
    total: int | None = None,
) -> Usage:
    """Make disjoint classes of an input and an output that include them, and of a stated total."""
    read = _first(read, cached_audio)
    if total is not None:
        if prompt is None and output is None:
            prompt = _at_most(_sum(read, write, write_1h, audio), total)
        if prompt is None and output is not None and total >= output:
            prompt = total - output
        elif total >= (prompt or 0) + (output or 0):
            output = total - (prompt or 0)
    read, write_1h, write, fresh = _shares(prompt, read, write_1h, write)
    cached_audio = _at_most(cached_audio, audio)
    if read and audio is not None and fresh is not None and audio - fresh > (cached_audio or 0):
        cached_audio = audio - fresh
    cached_audio, read = _shares(read, cached_audio)
    audio, fresh = _shares(fresh, None if audio is None else audio - (cached_audio or 0))
    output_audio, output = _shares(output, output_audio)
    return Usage(
        input_tokens=fresh,
        cached_read_tokens=read,
        cached_write_tokens=write,
        cached_write_1h_tokens=write_1h,
        input_audio_tokens=audio,
        cached_audio_read_tokens=cached_audio,
        output_tokens=output,
        output_audio_tokens=output_audio,
        reasoning_tokens=_at_most(reasoning, output),
    )


def _shares(whole: int | None, *parts: int | None) -> list[int | None]:
    """Return what each part, in turn, can be of a whole that includes them all, and then the rest of it."""
    if whole is None:
        return [*parts, None]
    shares: list[int | None] = []
    for part in parts:
        share = _at_most(part, whole)
        whole -= share or 0
        shares.append(share)
    return [*shares, whole]


def _count(record: object, *names: str) -> int | None:
    """Return the first of the fields that is a count."""
    for name in names:
        value = field(record, name)
        if _is_count(value, _COUNT_MAX):
            return int(value)
    return None


def _sum_of(details: object, name: str) -> int | None:
    """Return the sum of LangChain's counts of that name; some have a service tier in front of it."""
    if not isinstance(details, Mapping):
        return None
    names = [each for each in details if isinstance(each, str) and each.endswith(name)]
    return _sum(*(_count(details, name) for name in names))


def _sum(*numbers: int | None) -> int | None:
    known = [number for number in numbers if number is not None]
    return min(sum(known), _AMOUNT_MAX) if known else None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _at_most(number: int | None, limit: int | None) -> int | None:
    return number if number is None or limit is None else min(number, limit)
