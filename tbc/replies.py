"""The text that a model wrote, taken from whatever a provider's client returned.

Replies and stream chunks are read by the names of their fields, objects and dicts alike; no client library
is imported. Known are OpenAI (chat completions, responses, legacy completions) and what follows its shapes,
Anthropic messages, Google Gemini and LangChain messages. The text includes reasoning and the names and
arguments of tool calls, and nothing else: no ids, no metadata, no media.

Examples
--------
>>> reply_text({"choices": [{"message": {"role": "assistant", "content": "Seven."}}]})
'Seven.'
>>> reply_text({"rows": 7}) is None
True
>>> text_of({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Sev"}})
'Sev'
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["field", "items", "label", "reply_text", "text_of", "unwrapped"]

#: Fields in which functions and events wrap a reply; one level is looked through.
_WRAPPERS: Final = ("response", "message", "raw", "chunk")
#: Values without fields.
_PLAIN: Final = (str, bytes, int, float)
#: Fields of a part of a message that are text the model wrote.
_TEXTS: Final = ("text", "refusal", "thinking", "reasoning", "partial_json", "code")
_CALLS: Final = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "server_tool_use", "input_json_delta"}
    | {"function_call", "custom_tool_call", "mcp_call"}
)
_LANGCHAIN: Final = frozenset({"ai", "AIMessageChunk"})


def field(record: object, name: str) -> Any:
    """Return a field of a mapping or an object; ``None`` if it has none of that name. Never raises."""
    if record is None or isinstance(record, _PLAIN):
        return None
    try:
        if isinstance(record, Mapping):
            return record.get(name)
        if hasattr(type(record), "__pydantic_fields__"):  # where asking for a missing attribute is slow
            extra = record.__pydantic_extra__ or {}  # type: ignore[attr-defined]
            return vars(record).get(name, extra.get(name))
        return getattr(record, name, None)
    except Exception:  # a property of a strange object
        return None


def label(record: object, name: str) -> str:
    """Return a field that is a string; ``""`` for everything else."""
    value = field(record, name)
    return value if isinstance(value, str) else ""


def items(record: object, name: str) -> list[Any]:
    """Return a field that is a list or tuple; an empty list for everything else."""
    value = field(record, name)
    return list(value) if isinstance(value, list | tuple) else []


def unwrapped(reply: object) -> list[object]:
    """Return what a reply may be wrapped around, one level deep."""
    if reply is None or isinstance(reply, _PLAIN):
        return []
    inner = [field(reply, name) for name in _WRAPPERS]
    found = [value for value in inner if value is not None and not isinstance(value, _PLAIN)]
    messages = field(reply, "messages")
    listed = messages if isinstance(messages, list | tuple) else (messages,)
    from_model = [message for message in listed if message is not None and _is_message(message)]
    return [*found, *from_model] if len(from_model) == 1 else found


def reply_text(reply: object) -> str | None:
    """Return the text that the model wrote in a reply, tool calls included.

    Looks through one level of wrapping: a dict (or event) with the reply under ``"response"``,
    ``"message"``, ``"raw"`` or ``"chunk"``, or with exactly one message of a model under ``"messages"``.

    Parameters
    ----------
    reply : object
        A reply object, the same as a dict, a message of a model, or a text.

    Returns
    -------
    str or None
        ``None`` if the type of the reply is not known.
    """
    if isinstance(reply, str):
        return reply
    for candidate in (reply, *unwrapped(reply)):
        texts = _reply(candidate)
        if texts is not None:
            return "".join(texts)
    return None


def text_of(chunk: object) -> str:
    """Return the new text in a chunk of a stream; ``""`` if there is none or the type is not known.

    Events that repeat what came before (``.done`` events, snapshots, the convenience events of the clients'
    stream helpers) have no new text.

    Parameters
    ----------
    chunk : object
        A chunk or an event, the same as a dict, a text or bytes.
    """
    if isinstance(chunk, str):
        return chunk
    if isinstance(chunk, bytes | bytearray):
        return chunk.decode("utf-8", "replace")
    return "".join(_chunk(chunk))


def _reply(reply: object) -> Iterator[str] | None:
    """Return the texts of a reply (or of a chunk of the same shape); ``None`` if its type is not known."""
    if any(isinstance(field(reply, name), list | tuple) for name in ("choices", "candidates")):
        return _alternatives(reply)
    if label(reply, "object") == "response":
        return (text for item in items(reply, "output") for text in _part(item))
    return _message(reply) if _is_message(reply) else None


def _chunk(chunk: object) -> Iterator[str]:
    kind, whole = label(chunk, "type"), _reply(chunk)
    if whole is not None:
        yield from whole
    elif not kind:
        yield from _untyped_chunk(chunk)
    elif kind == "chunk":
        yield from _alternatives(field(chunk, "chunk"))
    elif kind == "content_block_delta":
        yield from _part(field(chunk, "delta"))
    elif kind == "content_block_start":
        block = field(chunk, "content_block")
        yield from _strings(field(block, "name"), field(block, "text"), field(block, "thinking"))
    elif kind == "response.output_item.added":
        yield from _strings(field(field(chunk, "item"), "name"))
    elif kind.startswith("response.") and kind.endswith(".delta") and kind != "response.audio.delta":
        yield from _strings(field(chunk, "delta"))
    elif kind in ("text", "output_text", "thinking", "reasoning") and field(chunk, "snapshot") is None:
        yield from _part(chunk)


def _untyped_chunk(chunk: object) -> Iterator[str]:
    if field(chunk, "content") is not None:
        yield from _message(chunk)
    elif label(chunk, "text"):
        yield label(chunk, "text")
    else:
        for inner in unwrapped(chunk):
            yield from _reply(inner) or _message(inner)
            return


def _alternatives(reply: object) -> Iterator[str]:
    """Yield the texts of all choices (OpenAI) or candidates (Gemini), whole or as deltas."""
    for choice in items(reply, "choices"):
        message = field(choice, "delta") or field(choice, "message")
        yield from _strings(field(choice, "text")) if message is None else _message(message)
    for candidate in items(reply, "candidates"):
        yield from _message(field(candidate, "content"))


def _is_message(reply: object) -> bool:
    """Tell a message of a model (Anthropic, OpenAI, Gemini's content, LangChain) from everything else."""
    role = label(reply, "role")
    if label(reply, "type") in _LANGCHAIN:
        return field(reply, "content") is not None
    if role == "assistant":
        return field(reply, "content") is not None or bool(items(reply, "tool_calls"))
    return role == "model" and bool(items(reply, "parts"))


def _message(message: object) -> Iterator[str]:
    content = field(message, "content")
    parts = [content] if isinstance(content, str) else items(message, "content") or items(message, "parts")
    for part in parts:
        yield from _part(part)
    yield from _strings(field(message, "refusal"), _reasoning(message))
    if not any(_is_call(part) for part in parts):
        calls = items(message, "tool_call_chunks") or items(message, "tool_calls")
        for call in (*calls, *items(message, "invalid_tool_calls"), field(message, "function_call")):
            yield from _call(call)


def _reasoning(message: object) -> object:
    """Return the reasoning that some providers put beside the content, under one of three names."""
    more = field(message, "additional_kwargs")
    candidates = (field(message, "reasoning_content"), field(message, "reasoning"))
    return next((text for text in candidates if text is not None), field(more, "reasoning_content"))


def _is_call(part: object) -> bool:
    return label(part, "type") in _CALLS


def _part(part: object) -> Iterator[str]:
    """Yield the texts of one part of a message, or of one item of a response."""
    if isinstance(part, str):
        yield part
        return
    yield from _strings(*(field(part, name) for name in _TEXTS))
    yield from _strings(field(field(part, "executable_code"), "code"))
    yield from _call(part if _is_call(part) else field(part, "function_call") or field(part, "functionCall"))
    if label(part, "type") in ("message", "reasoning"):
        for inner in (*items(part, "summary"), *items(part, "content")):
            yield from _part(inner)


def _call(call: object) -> Iterator[str]:
    """Yield the name and the arguments of a tool call."""
    inner = field(call, "function") or field(call, "custom") or call
    yield from _strings(field(inner, "name"))
    for name in ("arguments", "args", "input"):
        arguments = field(inner, name)
        if arguments and isinstance(arguments, str | Mapping):
            yield arguments if isinstance(arguments, str) else _json(arguments)
            return


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # odd keys, cycles
        return ""


def _strings(*values: object) -> Iterator[str]:
    return (value for value in values if isinstance(value, str))
