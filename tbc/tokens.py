"""Text to tokens: counters, and the count of anything that a call may be given.

A `Counter` counts the tokens of a text: `TiktokenCounter` with a real vocabulary, `EstimateCounter` by a
stated rule where there is none at hand. `count` walks a value (messages, tool calls, nested data, records)
and counts its text. `local_counter` and `default_counter` never touch the network; `load` may.

Examples
--------
>>> estimate = EstimateCounter()
>>> count([{"role": "user", "content": "How far is it to the sea?"}], estimate)
12
>>> count({"city": "Lisbon", "days": 3, "guide": None}, estimate)
4
"""

from __future__ import annotations

import enum
import re
import threading
import warnings
from collections.abc import Mapping, Sequence, Set
from numbers import Number
from types import SimpleNamespace
from typing import Any, Final, Protocol

from tbc.replies import label
from tbc.vocabulary import TiktokenCounter, cache_directory, encoding_name, load, local_counter

__all__ = [
    "MEDIA_TOKENS",
    "MESSAGE_TOKENS",
    "Counter",
    "EstimateCounter",
    "EstimatedTokensWarning",
    "TiktokenCounter",
    "count",
    "default_counter",
    "load",
    "local_counter",
]

#: Tokens that frame one chat message: three, as in the published rule, and one for the name of its role.
MESSAGE_TOKENS: Final = 4
#: Tokens of a picture, sound or file that goes along with a text: about what a picture of a megapixel costs.
MEDIA_TOKENS: Final = 1_000


class EstimatedTokensWarning(UserWarning):
    """No vocabulary is at hand; tokens are estimated."""


class Counter(Protocol):
    """Whatever counts the tokens of a text. It must be safe to call from several threads."""

    @property
    def name(self) -> str:
        """What counts, e.g. ``"tiktoken:o200k_base"`` or ``"estimate"``."""

    @property
    def estimated(self) -> bool:
        """Whether the counts are estimates."""

    def count(self, text: str, /) -> int:
        """Return the tokens of `text`, >= 0."""


#: The rule of the estimate: pattern, then hundredths of a token for each match, for how many characters they
#: stand, and hundredths for each further character. The first pattern that fits takes the text. A single
#: space belongs to its word.
_RULE: Final = (
    (r"[^\S\r\n](?=\d)", 100, 1, 0),  # a space before a number
    (r"[A-Za-z]{0,24}[\u00c0-\u024f\u1e00-\u1eff][A-Za-z\u00c0-\u024f\u1e00-\u1eff]*", 150, 3, 22),  # déjà
    (r"[A-Z]{2,}(?![a-z])", 100, 3, 30),  # capitals
    (r"[A-Z]?[a-z]+|[A-Z]", 100, 6, 12),  # a word, or a part of aWordLikeThis
    (r"\d{1,3}", 100, 3, 0),
    (r"[^\S\r\n]*[\r\n]+", 100, 4, 6),  # line breaks
    (r"[^\S\r\n]{2,}", 100, 64, 1),  # indentation
    (r"(?:_|[!-/:-@\[-`{-~])(?=[A-Za-z])", 40, 1, 0),  # a mark that sticks to the next word
    (r"[!-/:-@\[-`{-~]+[\r\n]*", 100, 3, 25),  # other marks
    (r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+", 0, 0, 84),  # Han
    (r"[\u3040-\u309f]+", 0, 0, 72),  # Hiragana
    (r"[\u30a0-\u30ff]+", 0, 0, 55),  # Katakana
    (r"[\uac00-\ud7a3]+", 0, 0, 75),  # Hangul
    (r"[\u0370-\u03ff\u1f00-\u1fff\u0590-\u05ff]+", 60, 0, 28),  # Greek, Hebrew
    (r"[\u0400-\u052f\u0600-\u06ff\u0750-\u077f]+", 60, 0, 22),  # Cyrillic, Arabic
    (r"[\u0900-\u0dff\u0e00-\u0e7f]+", 0, 0, 42),  # scripts of India, Thai
    (r"[\u2190-\u2bff\U00010000-\U0010ffff]", 150, 1, 0),  # emoji, symbols, rare characters
    (r"\S", 100, 1, 0),
)
_RULE_PATTERN = re.compile("|".join(f"({pattern})" for pattern, *_ in _RULE))
#: No match of the rule goes beyond one of these: a word with the blanks before it and the line breaks after.
_CHUNK = re.compile(r"[^\S\r\n]*\S+[\r\n]*|[^\S\r\n]*[\r\n]+|[^\S\r\n]+")
_CHUNK_KEPT: Final = 32
_CHUNKS_KEPT: Final = 8_192


def _hundredths(text: str) -> int:
    """Return what the rule makes of a text."""
    total = 0
    for match in _RULE_PATTERN.finditer(text):
        _, base, included, further = _RULE[match.lastindex - 1]  # type: ignore[operator]
        start, end = match.span()
        total += base
        if end - start > included:
            total += further * (end - start - included)
    return total


class _Chunks(dict[str, int]):
    """What the rule makes of chunks of text; short ones are remembered, as long as they are not too many."""

    __slots__ = ()

    def __missing__(self, chunk: str) -> int:
        found = self.find(chunk)
        if len(chunk) <= _CHUNK_KEPT:
            if len(self) >= _CHUNKS_KEPT:
                self.clear()
            self[chunk] = found
        return found

    def find(self, chunk: str) -> int:
        return _hundredths(chunk)


class _Words(_Chunks):
    """The same for what comes after a single space, which belongs to it.

    Of what ends in a blank, `find` raises a ``KeyError``: the next space belongs to that blank.
    """

    __slots__ = ()

    def find(self, chunk: str) -> int:
        last = chunk[-1:]
        if not last or (last.isspace() and last not in "\r\n"):
            raise KeyError(chunk)
        return _hundredths(f" {chunk}")


_chunk_hundredths = _Chunks().__getitem__
_word_hundredths = _Words().__getitem__


class EstimateCounter:
    """Estimate tokens without a vocabulary.

    The estimate is made for ``o200k_base``. On English prose, source code, Chinese, Japanese and Korean it is
    within 25 %, mostly within 10 %. Older vocabularies need more for scripts other than Latin:
    ``cl100k_base`` up to 70 % more for Chinese, Japanese and Korean.

    Notes
    -----
    The rule, in tokens, rounded up at the end:

    - a word of English letters, or a part of a ``camelCase`` one: 1, and 0.12 for each letter from the 7th;
      in capitals: 1, and 0.3 for each letter from the 4th; with letters such as é or ł: 1.5, and 0.22 for
      each letter from the 4th;
    - up to three digits: 1; the space before a number: 1;
    - a mark right before a word: 0.4; other runs of marks: 1, and 0.25 for each from the 4th;
    - line breaks: 1; two or more spaces: 1; a single space: 0;
    - each Han character: 0.84, Hiragana: 0.72, Katakana: 0.55, Hangul: 0.75;
    - a word in Greek or Hebrew letters: 0.6, and 0.28 per letter; in Cyrillic or Arabic: 0.6, and 0.22;
    - each character of the scripts of India and of Thai: 0.42;
    - an emoji or rare character: 1.5; anything else: 1.
    """

    __slots__ = ()

    name: Final = "estimate"
    estimated: Final = True

    def count(self, text: str, /) -> int:
        """Return the estimated tokens of `text`: 0 for none, else at least 1."""
        if not text:
            return 0
        words = text.split(" ")
        if not words[-1]:
            words.pop()  # a space at the end is worth nothing, after what is none
        first = words[0]  # the one without a space before it
        try:
            hundredths = (
                sum(map(_word_hundredths, words)) - _word_hundredths(first) + _chunk_hundredths(first)
            )
        except KeyError:  # blanks in a row
            hundredths = sum(map(_chunk_hundredths, _CHUNK.findall(text)))
        return max(1, -(-hundredths // 100))


_lock = threading.Lock()
_warned = False


def default_counter(model: str | None = None) -> Counter:
    """Return the counter of a model without waiting for anything: `local_counter`, else the estimate.

    Parameters
    ----------
    model : str, optional
        As in `local_counter`.

    Warns
    -----
    EstimatedTokensWarning
        The first time in this process that the vocabulary is not there.
    """
    global _warned
    counter = local_counter(model)
    if counter is not None:
        return counter
    with _lock:
        first, _warned = not _warned, True
    if first:
        warnings.warn(
            f"The vocabulary of {encoding_name(model)!r} is not in tiktoken's cache "
            f"({cache_directory()!r}), so tokens are estimated (within 25 %). Fetch it with "
            "tbc.tokens.load() and pass what it returns as the counter, or pass "
            "tbc.tokens.EstimateCounter() to estimate without this warning.",
            EstimatedTokensWarning,
            stacklevel=2,
        )
    return EstimateCounter()


def count(value: object, counter: Counter) -> int:
    """Count the tokens of the text in a value. Never raises unless `counter` does.

    Each text is counted by itself and the counts are added, so a value nested in another counts the same
    there. Equal values give equal counts.

    Parameters
    ----------
    value : object
        Anything. See the notes.
    counter : Counter
        What counts the texts.

    Returns
    -------
    int
        Tokens, >= 0.

    Notes
    -----
    - Text counts as it is, bytes as UTF-8 (what is not, is replaced), numbers, dates, paths and UUIDs by
      their text, members of an enumeration by their value, ``None`` as 0.
    - Lists, tuples, sets and other sequences count their items, mappings their keys and values (an entry
      that is ``None`` counts 0, key included). Dataclasses, attrs classes, pydantic models and
      ``SimpleNamespace`` count like the mapping of their fields; nothing of theirs is called.
    - A chat message (``role`` with ``content``, ``parts`` or calls; or a LangChain message) counts
      `MESSAGE_TOKENS` and the values of its fields. A typed part of one (text, tool call, tool result, …)
      counts the values of its fields. Ids, usage and other notes for the machine count 0 in both.
    - Media count `MEDIA_TOKENS`: a ``data:`` URL in base64, 2,048 or more characters of base64, bytes with a
      NUL among the first 8,000; a part that carries a picture, sound or file counts at least as much.
    - Everything else counts 0: functions, modules, locks, iterators, files, arrays, clients, and objects
      that do something (are callable, or have a method such as ``invoke``, ``create`` or ``close``).
    - A cycle counts 0 where it closes, and so does what lies deeper than 100 levels.
    """
    if type(value) is str:
        plain = _plain_text(value)
        return plain if isinstance(plain, int) else counter.count(plain)
    return _Walk(counter).tokens(value, 0)


_DEPTH_MAX: Final = 100
_BLOB_MIN: Final = 2_048
_BLOB = re.compile(r"[A-Za-z0-9+/_\r\n-]+={0,2}\s*")
_TEXTUAL_MODULES: Final = frozenset({"datetime", "pathlib", "uuid"})
_METHODS_OF_DOERS: Final = frozenset(
    {"invoke", "ainvoke", "run", "arun", "chat", "complete", "kickoff", "create", "request", "send"}
    | {"connect", "close", "aclose", "__enter__", "__aenter__"}
)
_CONTENTS: Final = frozenset({"content", "parts", "tool_calls", "function_call"})
_LANGCHAIN_MESSAGES: Final = frozenset({"human", "ai", "system", "tool", "function", "chat"})
_CALLS: Final = frozenset({"tool_use", "tool_call", "function_call", "server_tool_use"})
_PARTS: Final = frozenset(
    {"text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal", "thinking"}
    | {"reasoning", "message", "function", "tool_result", "function_call_output", *_CALLS}
)
_MEDIA: Final = frozenset({"image", "audio", "video", "file", "document", "media"})
_MEDIA_WITH_LINK: Final = frozenset({"image_url", "input_image", "input_audio", "input_file"})
_LINKS: Final = frozenset({"source", "base64", "data", "url", "file_id", "file"})
_MEDIA_FIELDS: Final = frozenset({"inline_data", "inlineData", "file_data", "fileData"})
_NOTES: Final = frozenset(
    {"role", "type", "id", "object", "index", "status", "model", "created", "parsed", "artifact", "usage"}
    | {"tool_call_id", "tool_use_id", "call_id", "cache_control", "signature", "thought_signature"}
    | {"encrypted_content", "annotations", "logprobs", "usage_metadata", "response_metadata"}
    | {"additional_kwargs", "invalid_tool_calls", "tool_call_chunks", "chunk_position"}
    | {"finish_reason", "stop_reason"}
)
_NOTES_AND_CALLS: Final = _NOTES | {"tool_calls"}


class _Walk:
    """One count. A container that appears twice is walked once and counted twice."""

    __slots__ = ("_counter", "_known", "_open")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._open: set[int] = set()
        #: Counts of containers by id, with the container itself, so that its id is not used again.
        self._known: dict[int, tuple[object, int]] = {}

    def tokens(self, value: object, depth: int) -> int:
        key = id(value)
        if key in self._known:
            return self._known[key][1]
        plain = _plain(value)
        if isinstance(plain, str):
            return self._counter.count(plain)
        if isinstance(plain, int):
            return plain
        if not plain or key in self._open or depth >= _DEPTH_MAX:
            return 0
        self._open.add(key)
        try:
            total = (
                sum(self.tokens(item, depth + 1) for item in plain)
                if isinstance(plain, list)
                else self._fields(plain, depth + 1)
            )
        finally:
            self._open.discard(key)
        self._known[key] = (value, total)
        return total

    def _fields(self, fields: dict[Any, object], depth: int) -> int:
        framing = _framing(fields)
        if framing is None:
            total = sum(
                self.tokens(name, depth) + self.tokens(value, depth)
                for name, value in fields.items()
                if value is not None
            )
        else:
            skipped = _NOTES_AND_CALLS if _has_calls(fields.get("content")) else _NOTES
            total = framing + sum(
                self.tokens(value, depth) for name, value in fields.items() if name not in skipped
            )
        return max(total, MEDIA_TOKENS) if _is_media(fields) else total


_Plain = str | int | list[object] | dict[Any, object]


def _plain(value: object) -> _Plain:
    """Return the text, the items or the fields of a value; an int where its count is known without them."""
    kind = type(value)
    if kind is list or kind is tuple:
        return list(value)  # type: ignore[call-overload, no-any-return]
    if kind is dict:
        return value.copy()  # type: ignore[attr-defined, no-any-return]
    if value is None:
        return 0
    try:
        return _plain_text(value) if isinstance(value, str) else _plain_data(value)
    except Exception:  # a value that cannot be read has no text to count
        return 0


def _plain_text(text: str) -> str | int:
    """Tell base64 from text: a URL that says so, or no blanks and most of its 64 characters in use."""
    if text.startswith("data:") and ";base64," in text[:256]:
        return MEDIA_TOKENS
    is_blob = len(text) >= _BLOB_MIN and len(set(text[:4_096])) >= 48 and _BLOB.fullmatch(text)
    return MEDIA_TOKENS if is_blob else text


def _plain_data(value: object) -> _Plain:
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return MEDIA_TOKENS if b"\0" in data[:8_000] else _plain_text(data.decode("utf-8", "replace"))
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, Number):
        return _digits(value)
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, Sequence | Set) and not isinstance(value, range):
        return list(value)
    if type(value).__module__.split(".")[0] in _TEXTUAL_MODULES and not isinstance(value, type):
        return str(value)
    return _plain_record(value)


def _digits(number: Number) -> str:
    try:
        return str(number)
    except ValueError:  # an int of more digits than Python writes: 0.30103 times its bits
        return "0" * (number.bit_length() * 30_103 // 100_000 + 1) if isinstance(number, int) else ""


def _plain_record(value: object) -> dict[Any, object] | int:
    """Return the fields of a record without calling anything of its own; 0 for all other objects."""
    kind = type(value)
    if kind is SimpleNamespace:
        return dict(vars(value))
    if callable(value) or any(callable(getattr(kind, name, None)) for name in _METHODS_OF_DOERS):
        return 0
    if hasattr(kind, "__dataclass_fields__"):
        from dataclasses import fields

        names = [field.name for field in fields(value)]  # type: ignore[arg-type]
    elif hasattr(kind, "__attrs_attrs__"):
        names = [field.name for field in kind.__attrs_attrs__]
    elif hasattr(kind, "model_fields") and hasattr(kind, "model_dump"):
        return {**vars(value), **(getattr(value, "__pydantic_extra__", None) or {})}
    else:
        return 0
    return {name: getattr(value, name, None) for name in names}


def _framing(fields: Mapping[Any, object]) -> int | None:
    """Return the framing tokens of a message (or 0 for a part of one); ``None`` for other mappings."""
    role, kind = fields.get("role"), fields.get("type")
    if isinstance(role, str) and not _CONTENTS.isdisjoint(fields):
        return MESSAGE_TOKENS
    if not isinstance(kind, str):
        return None
    if "content" in fields and (kind in _LANGCHAIN_MESSAGES or kind.endswith("MessageChunk")):
        return MESSAGE_TOKENS
    return 0 if kind in _PARTS else None


def _has_calls(content: object) -> bool:
    """Tell whether the content of a message has its tool calls in it, which LangChain then repeats."""
    return isinstance(content, list) and any(label(part, "type") in _CALLS for part in content)


def _is_media(fields: Mapping[Any, object]) -> bool:
    kind = fields.get("type")
    if isinstance(kind, str) and (
        kind in _MEDIA_WITH_LINK or (kind in _MEDIA and not _LINKS.isdisjoint(fields))
    ):
        return True
    return any(fields.get(name) is not None for name in _MEDIA_FIELDS)
