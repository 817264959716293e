"""The usage of a stream, from what its chunks state.

Chunks are read as replies are (`tbc.usage`). What is different is time: some providers state the usage so
far, some what a chunk adds, and one stream may hold several responses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from tbc.replies import label, unwrapped
from tbc.usage import Usage, stated_usage

__all__ = ["StreamUsage"]

#: Types of events that begin a response, and of whole replies, which are one each.
_BEGINNINGS: Final = ("message_start", "response.created", "ai", "message")
_WHOLE: Final = ("chat.completion", "response")


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
    >>> start = {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}
    >>> stream.add(start).tokens, stream.add({"type": "message_delta", "usage": {"output_tokens": 15}}).tokens
    (26, 15)
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

    def add(self, chunk: object) -> Usage | None:
        """Take in the next chunk, and return what it states itself. Never raises."""
        inner = unwrapped(chunk)
        self._follow(chunk, inner)
        usage = stated_usage(chunk, inner)
        if usage is not None:
            adds = label(chunk, "type") == "AIMessageChunk"
            self._series.add(usage) if adds else self._series.replace(usage)
        return usage

    def so_far(self, input_tokens: int, output_tokens: int) -> Usage:
        """Return what was stated, with the counted input where none was, and the counted output if more.

        Parameters
        ----------
        input_tokens, output_tokens : int
            As counted.
        """
        usage = self.usage or Usage()
        if usage.all_input is None:
            usage = attrs.evolve(usage, input_tokens=input_tokens)
        missing = output_tokens - (usage.all_output or 0)
        return usage + Usage(output_tokens=missing) if missing > 0 else usage

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
            before, after = self._last.all_output or 0, usage.all_output or 0
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
    grows = new.all_output is not None and new.all_output >= (old.all_output or 0)
    return _joined(_with_hour(new, old) if given else old, new if grows else old)


def _with_hour(new: Usage, old: Usage) -> Usage:
    """Keep apart what was written to a cache for an hour: Anthropic says so at the start only."""
    written, hour = new.cached_write_tokens, old.cached_write_1h_tokens
    if new.cached_write_1h_tokens is not None or written is None or hour is None:
        return new
    hour = min(hour, written)
    return attrs.evolve(new, cached_write_tokens=written - hour, cached_write_1h_tokens=hour)


def _joined(one: Usage, other: Usage | None) -> Usage:
    """Return the input of one usage and the output of another."""
    other = other or one
    return attrs.evolve(
        one,
        output_tokens=other.output_tokens,
        output_audio_tokens=other.output_audio_tokens,
        reasoning_tokens=other.reasoning_tokens,
    )


def _added(one: Usage | None, other: Usage | None) -> Usage | None:
    return one or other if one is None or other is None else one + other
