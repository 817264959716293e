"""What replies and streams of the real clients say about their usage, and the text in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import anthropic.types as claude
import attrs
import numpy as np
import pytest
from anthropic.lib.streaming import TextEvent
from google.genai import types as gemini
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from openai.types import CompletionUsage
from openai.types import responses as oai
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tbc.errors import InvalidAmountError
from tbc.stream_usage import StreamUsage
from tbc.usage import Usage, read_usage, reply_text, text_of

# --- replies of the real clients ----------------------------------------------------------------------------


def chat_reply(usage: dict[str, Any] | None = None, **message: Any) -> ChatCompletion:
    return ChatCompletion.model_validate(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "Seven.", **message},
                }
            ],
            "usage": usage,
        }
    )


def response(usage: dict[str, Any] | None = None, output: list[dict[str, Any]] | None = None) -> oai.Response:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Seven.", "annotations": []}],
    }
    return oai.Response.model_validate(
        {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": "gpt-5",
            "output": [message] if output is None else output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage,
        }
    )


RESPONSE_USAGE = {
    "input_tokens": 90,
    "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 6},
    "output_tokens": 10,
    "output_tokens_details": {"reasoning_tokens": 8},
    "total_tokens": 100,
}


def claude_message(**usage: Any) -> claude.Message:
    return claude.Message.model_validate(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "stop_reason": "end_turn",
            "content": [{"type": "text", "text": "Seven."}],
            "usage": usage,
        }
    )


def gemini_reply(text: str = "Seven.", **usage: int) -> gemini.GenerateContentResponse:
    return gemini.GenerateContentResponse(
        response_id="g-1",
        candidates=[gemini.Candidate(content=gemini.Content(role="model", parts=[gemini.Part(text=text)]))],
        usage_metadata=gemini.GenerateContentResponseUsageMetadata(**usage) if usage else None,
    )


def langchain_usage(input_tokens: int, output_tokens: int, **details: Any) -> UsageMetadata:
    total = input_tokens + output_tokens
    return UsageMetadata(
        input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=total, **details
    )


REPLIES: dict[str, tuple[Any, Usage]] = {
    "openai-chat": (
        chat_reply({"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}),
        Usage(input_tokens=90, output_tokens=10),
    ),
    "openai-chat-cached-and-reasoning": (
        chat_reply(
            {
                "prompt_tokens": 90,
                "completion_tokens": 10,
                "total_tokens": 100,
                "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 6, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 8},
            }
        ),
        Usage(
            input_tokens=20,
            cached_read_tokens=64,
            cached_write_tokens=6,
            input_audio_tokens=0,
            output_tokens=10,
            reasoning_tokens=8,
        ),
    ),
    "openai-responses": (
        response(RESPONSE_USAGE),
        Usage(
            input_tokens=20,
            cached_read_tokens=64,
            cached_write_tokens=6,
            output_tokens=10,
            reasoning_tokens=8,
        ),
    ),
    "anthropic": (
        claude_message(input_tokens=90, output_tokens=10),
        Usage(input_tokens=90, output_tokens=10),
    ),
    "anthropic-cached-and-thinking": (
        claude_message(
            input_tokens=20,
            cache_read_input_tokens=64,
            cache_creation_input_tokens=6,
            output_tokens=10,
            output_tokens_details={"thinking_tokens": 8},
        ),
        Usage(
            input_tokens=20,
            cached_read_tokens=64,
            cached_write_tokens=6,
            output_tokens=10,
            reasoning_tokens=8,
        ),
    ),
    "anthropic-writes-by-time-to-live": (
        claude_message(
            input_tokens=20,
            cache_creation={"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 2},
            output_tokens=10,
        ),
        Usage(input_tokens=20, cached_write_tokens=4, cached_write_1h_tokens=2, output_tokens=10),
    ),
    "gemini": (
        gemini_reply(
            prompt_token_count=80,
            cached_content_token_count=64,
            tool_use_prompt_token_count=5,
            candidates_token_count=10,
            thoughts_token_count=8,
            total_token_count=103,
        ),
        Usage(input_tokens=21, cached_read_tokens=64, output_tokens=18, reasoning_tokens=8),
    ),
    "gemini-thoughts-only": (
        gemini_reply(prompt_token_count=80, thoughts_token_count=8, total_token_count=88),
        Usage(input_tokens=80, output_tokens=8, reasoning_tokens=8),
    ),
    "langchain": (
        AIMessage(
            "Seven.",
            usage_metadata=langchain_usage(
                90,
                10,
                input_token_details={"cache_read": 64, "cache_creation": 6, "audio": 0},
                output_token_details={"reasoning": 8},
            ),
        ),
        Usage(
            input_tokens=20,
            cached_read_tokens=64,
            cached_write_tokens=6,
            input_audio_tokens=0,
            output_tokens=10,
            reasoning_tokens=8,
        ),
    ),
    "langchain-service-tier-and-time-to-live": (
        AIMessage(
            "Seven.",
            usage_metadata=langchain_usage(
                90,
                10,
                input_token_details={
                    "flex_cache_read": 64,
                    "flex": 20,
                    "cache_creation": 0,
                    "ephemeral_5m_input_tokens": 6,
                },
                output_token_details={"flex_reasoning": 8},
            ),
        ),
        Usage(
            input_tokens=20,
            cached_read_tokens=64,
            cached_write_tokens=6,
            output_tokens=10,
            reasoning_tokens=8,
        ),
    ),
    "langchain-response-metadata": (
        AIMessage(
            "Seven.", response_metadata={"token_usage": {"prompt_tokens": 90, "completion_tokens": 10}}
        ),
        Usage(input_tokens=90, output_tokens=10),
    ),
    "langchain-response-metadata-of-anthropic": (
        AIMessage(
            "Seven.",
            response_metadata={
                "usage": {"input_tokens": 26, "cache_read_input_tokens": 64, "output_tokens": 10}
            },
        ),
        Usage(input_tokens=26, cached_read_tokens=64, output_tokens=10),
    ),
}


@pytest.mark.parametrize(("reply", "usage"), REPLIES.values(), ids=REPLIES)
def test_reply_of_a_client_is_read_into_disjoint_classes(reply: Any, usage: Usage) -> None:
    assert read_usage(reply) == usage


@pytest.mark.parametrize(("reply", "usage"), REPLIES.values(), ids=REPLIES)
def test_dump_of_a_reply_is_read_like_the_reply(reply: Any, usage: Usage) -> None:
    assert read_usage(reply.model_dump()) == usage
    assert read_usage(reply.model_dump(by_alias=True, exclude_none=True)) == usage


@pytest.mark.parametrize(("reply", "usage"), REPLIES.values(), ids=REPLIES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda reply: {"response": reply, "trace_id": "t"},
        lambda reply: {"raw": reply, "parsed": {"answer": 7}, "parsing_error": None},
    ],
    ids=["response", "raw"],
)
def test_one_level_of_wrapping_is_looked_through(
    wrap: Callable[[Any], Any], reply: Any, usage: Usage
) -> None:
    assert read_usage(wrap(reply)) == usage
    assert reply_text(wrap(reply)) == "Seven."
    assert read_usage({"outer": wrap(reply)}) is None


def test_tokens_are_all_that_counts_towards_a_budget() -> None:
    usage = Usage(
        input_tokens=1,
        cached_read_tokens=20,
        cached_write_tokens=300,
        output_tokens=4_000,
        reasoning_tokens=9,
    )
    assert (usage.tokens, usage.all_input) == (4_321, 321)
    assert (Usage().tokens, Usage(output_tokens=0).tokens, Usage(reasoning_tokens=7).tokens) == (
        None,
        0,
        None,
    )


def test_usage_is_frozen_and_refuses_what_is_no_count() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Usage().output_tokens = 1  # type: ignore[misc]
    for value in (-1, True, 1.0, "1", 2**53):
        with pytest.raises(InvalidAmountError, match="output_tokens must be an int"):
            Usage(output_tokens=value)  # type: ignore[arg-type]


# --- records that are odd -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "usage"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(input_tokens=0, output_tokens=0)),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}},
            Usage(input_tokens=9, cached_read_tokens=0, output_tokens=1),
        ),
        ({"prompt_tokens": 9, "completion_tokens": None}, Usage(input_tokens=9)),
        ({"prompt_tokens": 9, "total_tokens": 9}, Usage(input_tokens=9, output_tokens=0)),
        ({"completion_tokens": 4, "total_tokens": 9}, Usage(input_tokens=5, output_tokens=4)),
        ({"total_tokens": 9}, Usage(output_tokens=9)),
        (  # reasoning beside the completion, in the total
            {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "total_tokens": 60,
                "completion_tokens_details": {"reasoning_tokens": 50},
            },
            Usage(input_tokens=9, output_tokens=51, reasoning_tokens=50),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 3},
            Usage(input_tokens=9, output_tokens=1),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 8},
            Usage(input_tokens=1, cached_read_tokens=8, output_tokens=1),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "cache_read_input_tokens": 3,
                "cache_creation_input_tokens": 4,
            },
            Usage(input_tokens=2, cached_read_tokens=3, cached_write_tokens=4, output_tokens=1),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 99}},
            Usage(input_tokens=0, cached_read_tokens=9, output_tokens=1),
        ),
        (
            {
                "input_tokens": 9,
                "output_tokens": 1,
                "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 99},
                "output_tokens_details": {"reasoning_tokens": 99},
            },
            Usage(
                input_tokens=0,
                cached_read_tokens=5,
                cached_write_tokens=4,
                output_tokens=1,
                reasoning_tokens=1,
            ),
        ),
        (  # details without a count leave Anthropic's reading
            {
                "input_tokens": 9,
                "cache_read_input_tokens": 99,
                "input_tokens_details": None,
                "output_tokens": 1,
                "output_tokens_details": {"thinking_tokens": 1},
            },
            Usage(input_tokens=9, cached_read_tokens=99, output_tokens=1, reasoning_tokens=1),
        ),
        ({"promptTokenCount": 9, "totalTokenCount": 12}, Usage(input_tokens=9, output_tokens=3)),
    ],
)
def test_odd_record_is_read_and_never_negative(record: dict[str, Any], usage: Usage) -> None:
    assert read_usage({"usage": record}) == usage


@pytest.mark.parametrize("number", [True, 9.0, float("nan"), "9", -1, 2**60, None, [9]])
def test_what_is_no_count_is_unknown(number: object) -> None:
    assert read_usage({"usage": {"prompt_tokens": number, "completion_tokens": number}}) is None
    assert read_usage({"usage": {"input_tokens": number, "output_tokens": 4}}) == Usage(output_tokens=4)


@pytest.mark.parametrize(
    "reply",
    [
        None,
        "text",
        7,
        [],
        (1, 2),
        object(),
        MagicMock(),
        ValueError("x"),
        dict,
        {},
        {"usage": "2 spoons a day"},
        {"usage": {"disk": 81, "memory": 12}},
        {"usage": [1, 2]},
        {"usage": {"prompt_tokens": {"cached": 1}}},
        {"usage_metadata": {}},
        {"response_metadata": "none"},
        {"response": {"usage": 3}},
        {"messages": 3},
        {"input_tokens": 12},
        {"total_tokens": 12},
        gemini.CountTokensResponse(total_tokens=12),
        claude.MessageTokensCount(input_tokens=12),
    ],
    ids=repr,
)
def test_reply_without_usage_gives_none(reply: object) -> None:
    assert read_usage(reply) is None


def test_columns_under_known_names_are_no_replies() -> None:
    columns = {
        name: np.arange(3) for name in ("type", "role", "object", "content", "usage", "messages", "id")
    }
    stream = StreamUsage()
    stream.add(columns)
    assert (read_usage(columns), reply_text(columns), text_of(columns), stream.usage) == (
        None,
        None,
        "",
        None,
    )


def test_property_that_raises_is_unknown() -> None:
    class Reply:
        @property
        def usage(self) -> object:
            raise RuntimeError("not finished")

    assert read_usage(Reply()) is None
    assert reply_text(Reply()) is None


def test_bare_usage_record_is_a_usage() -> None:
    record = CompletionUsage(prompt_tokens=9, completion_tokens=1, total_tokens=10)
    assert read_usage(record) == read_usage(record.model_dump()) == Usage(input_tokens=9, output_tokens=1)


def test_single_model_message_among_messages_is_the_reply_and_several_are_a_history() -> None:
    reply = AIMessage("Seven.", usage_metadata=langchain_usage(9, 1))
    state = {"messages": [HumanMessage("How many?"), reply]}
    assert read_usage(state) == read_usage({"messages": reply}) == Usage(input_tokens=9, output_tokens=1)
    assert reply_text(state) == reply_text({"messages": reply}) == "Seven."
    assert read_usage({"messages": [reply, reply]}) is None
    assert reply_text({"messages": [reply, reply]}) is None


# --- streams ------------------------------------------------------------------------------------------------


def chat_chunk(
    text: str | None = None, usage: dict[str, Any] | None = None, id: str = "chatcmpl-1", **delta: Any
) -> ChatCompletionChunk:
    choice = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": None}
    return ChatCompletionChunk.model_validate(
        {
            "id": id,
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "gpt-4o",
            "choices": [] if usage is not None and text is None else [choice],
            "usage": usage,
        }
    )


def chat_usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def claude_start(id: str = "msg_1", **usage: Any) -> claude.RawMessageStartEvent:
    message = claude_message(**usage).model_copy(update={"id": id, "content": []})
    return claude.RawMessageStartEvent(type="message_start", message=message)


def claude_delta(**usage: Any) -> claude.RawMessageDeltaEvent:
    return claude.RawMessageDeltaEvent.model_validate(
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    )


def claude_block(**delta: Any) -> claude.RawContentBlockDeltaEvent:
    return claude.RawContentBlockDeltaEvent.model_validate(
        {"type": "content_block_delta", "index": 0, "delta": delta}
    )


def event(kind: str, usage: dict[str, Any] | None, id: str = "resp_1") -> dict[str, Any]:
    return {
        "type": kind,
        "sequence_number": 0,
        "response": response(usage).model_copy(update={"id": id}).model_dump(),
    }


def text_delta(delta: str, kind: str = "response.output_text.delta") -> oai.ResponseTextDeltaEvent:
    return oai.ResponseTextDeltaEvent.model_construct(type=kind, delta=delta, item_id="msg_1")


def langchain_chunk(text: str = "", *usage: int, id: str | None = "run-1", **details: Any) -> AIMessageChunk:
    return AIMessageChunk(text, id=id, usage_metadata=langchain_usage(*usage, **details) if usage else None)


STREAMS: dict[str, tuple[list[Any], Usage | None]] = {
    "nothing": ([], None),
    "texts": (["Se", "ven"], None),
    "openai-chat-without-usage": ([chat_chunk("Se"), chat_chunk("ven")], None),
    "openai-chat": (
        [chat_chunk("Se"), chat_chunk("ven"), chat_chunk(usage=chat_usage(90, 10))],
        Usage(input_tokens=90, output_tokens=10),
    ),
    "openai-chat-usage-so-far-in-every-chunk": (
        [chat_chunk("Se", chat_usage(90, 1)), chat_chunk("ven", chat_usage(90, 2))],
        Usage(input_tokens=90, output_tokens=2),
    ),
    "openai-chat-two-responses": (
        [
            chat_chunk("Se"),
            chat_chunk(usage=chat_usage(90, 10)),
            chat_chunk("ven", id="chatcmpl-2"),
            chat_chunk(usage=chat_usage(100, 20), id="chatcmpl-2"),
        ],
        Usage(input_tokens=190, output_tokens=30),
    ),
    "openai-chat-an-id-for-every-chunk": (
        [chat_chunk("a", chat_usage(90, n), id=f"chatcmpl-{n}") for n in range(1, 5)],
        Usage(input_tokens=90, output_tokens=4),
    ),
    "openai-responses": (
        [
            event("response.created", None),
            event("response.in_progress", None),
            text_delta("Seven."),
            event("response.completed", RESPONSE_USAGE),
        ],
        REPLIES["openai-responses"][1],
    ),
    "openai-responses-two": (
        [
            event("response.created", None),
            event("response.completed", RESPONSE_USAGE),
            event("response.created", None, "resp_2"),
            event("response.incomplete", RESPONSE_USAGE, "resp_2"),
        ],
        Usage(
            input_tokens=40,
            cached_read_tokens=128,
            cached_write_tokens=12,
            output_tokens=20,
            reasoning_tokens=16,
        ),
    ),
    "anthropic": (
        [
            claude_start(
                input_tokens=20, cache_read_input_tokens=64, cache_creation_input_tokens=6, output_tokens=1
            ),
            claude_block(type="text_delta", text="Seven."),
            claude_delta(output_tokens=4),
            claude_delta(output_tokens=10),
        ],
        Usage(input_tokens=20, cached_read_tokens=64, cached_write_tokens=6, output_tokens=10),
    ),
    "anthropic-input-again-in-the-delta": (
        [
            claude_start(input_tokens=20, cache_read_input_tokens=64, output_tokens=1),
            claude_delta(input_tokens=25, cache_read_input_tokens=64, output_tokens=10),
        ],
        Usage(input_tokens=25, cached_read_tokens=64, output_tokens=10),
    ),
    "anthropic-input-only-in-the-delta": (
        [claude_start(input_tokens=0, output_tokens=0), claude_delta(input_tokens=90, output_tokens=10)],
        Usage(input_tokens=90, output_tokens=10),
    ),
    "anthropic-delta-with-zero-for-the-input": (
        [claude_start(input_tokens=90, output_tokens=1), claude_delta(input_tokens=0, output_tokens=10)],
        Usage(input_tokens=90, output_tokens=10),
    ),
    "anthropic-two-messages": (
        [
            claude_start(input_tokens=90, output_tokens=1),
            claude_delta(output_tokens=10),
            claude_start("msg_2", input_tokens=100, output_tokens=1),
            claude_delta(output_tokens=5),
        ],
        Usage(input_tokens=190, output_tokens=15),
    ),
    "anthropic-the-same-message-again": (
        [claude_start(input_tokens=90, output_tokens=1)] * 2 + [claude_delta(output_tokens=10)],
        Usage(input_tokens=90, output_tokens=10),
    ),
    "gemini": (
        [
            gemini_reply("Se", prompt_token_count=90, total_token_count=90),
            gemini_reply("ven", prompt_token_count=90, candidates_token_count=2, total_token_count=92),
            gemini_reply(
                ".",
                prompt_token_count=90,
                candidates_token_count=3,
                thoughts_token_count=7,
                total_token_count=100,
            ),
        ],
        Usage(input_tokens=90, output_tokens=10, reasoning_tokens=7),
    ),
    "langchain-final-chunk": (
        [langchain_chunk("Se"), langchain_chunk("ven"), langchain_chunk("", 90, 10)],
        Usage(input_tokens=90, output_tokens=10),
    ),
    "langchain-deltas": (
        [
            langchain_chunk("Se", 90, 1, input_token_details={"cache_read": 64}),
            langchain_chunk("ven", 0, 1),
            langchain_chunk("", 0, 8, output_token_details={"reasoning": 7}),
        ],
        Usage(input_tokens=26, cached_read_tokens=64, output_tokens=10, reasoning_tokens=7),
    ),
    "langchain-input-repeated-output-added": (
        [langchain_chunk("a", 713, 1) for _ in range(40)],
        Usage(input_tokens=713, output_tokens=40),
    ),
    "langchain-usage-so-far-in-every-chunk": (
        [langchain_chunk("a", 713, n) for n in (1, 2, 2, 5)],
        Usage(input_tokens=713, output_tokens=5),
    ),
    "langchain-two-messages": (
        [
            langchain_chunk("a"),
            langchain_chunk("", 90, 10),
            langchain_chunk("b", id="run-2"),
            langchain_chunk("", 90, 20, id="run-2"),
        ],
        Usage(input_tokens=180, output_tokens=30),
    ),
    "whole-replies": (
        [
            REPLIES["openai-chat"][0],
            REPLIES["openai-responses"][0],
            AIMessage("a", id="1", usage_metadata=langchain_usage(90, 10)),
            AIMessage("a", id="1", usage_metadata=langchain_usage(90, 10)),
            AIMessage("b", id="2", usage_metadata=langchain_usage(30, 5)),
            AIMessage("c", usage_metadata=langchain_usage(7, 5)),
            claude_message(input_tokens=3, output_tokens=2),
        ],
        Usage(
            input_tokens=90 + 20 + 90 + 30 + 7 + 3,
            cached_read_tokens=64,
            cached_write_tokens=6,
            output_tokens=10 + 10 + 10 + 5 + 5 + 2,
            reasoning_tokens=8,
        ),
    ),
    "strange": ([None, 7, object(), MagicMock(), {"usage": "x"}, {"id": 3}, []], None),
}


def read_stream(chunks: list[Any]) -> Usage | None:
    stream = StreamUsage()
    for chunk in chunks:
        stream.add(chunk)
    return stream.usage


@pytest.mark.parametrize(("chunks", "usage"), STREAMS.values(), ids=STREAMS)
def test_usage_of_a_stream(chunks: list[Any], usage: Usage | None) -> None:
    assert read_stream(chunks) == usage


@pytest.mark.parametrize(("chunks", "usage"), STREAMS.values(), ids=STREAMS)
def test_usage_of_a_stream_of_dumps(chunks: list[Any], usage: Usage | None) -> None:
    dumps = [chunk.model_dump() if hasattr(type(chunk), "model_dump") else chunk for chunk in chunks]
    assert read_stream(dumps) == usage


def test_langchain_deltas_add_up_as_the_chunks_do() -> None:
    chunks = STREAMS["langchain-deltas"][0]
    whole = chunks[0] + chunks[1] + chunks[2]
    assert read_stream(chunks) == read_usage(whole)


def test_usage_of_a_stream_is_known_while_it_runs() -> None:
    stream = StreamUsage()
    stream.add(claude_start(input_tokens=90, output_tokens=1))
    assert stream.usage == Usage(input_tokens=90, output_tokens=1)
    stream.add(claude_block(type="text_delta", text="Se"))
    assert stream.usage == Usage(input_tokens=90, output_tokens=1)


# --- texts --------------------------------------------------------------------------------------------------

TOOL_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look", "arguments": '{"port": "Rome"}'},
}


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("Seven.", "Seven."),
        (chat_reply(), "Seven."),
        (chat_reply(content=None, refusal="No."), "No."),
        (chat_reply(content=None, tool_calls=[TOOL_CALL]), 'look{"port": "Rome"}'),
        (chat_reply(reasoning_content="Hm. ").choices[0].message, "Seven.Hm. "),
        (chat_reply().choices[0].message, "Seven."),
        ({"choices": [{"text": "Se"}, {"text": "ven"}]}, "Seven"),
        ({"choices": []}, ""),
        (response(), "Seven."),
        (
            response(
                output=[
                    {
                        "id": "rs_1",
                        "type": "reasoning",
                        "summary": [{"type": "summary_text", "text": "Hm. "}],
                        "encrypted_content": "AAAA",
                    },
                    {
                        "id": "fc_1",
                        "type": "function_call",
                        "call_id": "call_1",
                        "name": "look",
                        "arguments": '{"port": "Rome"}',
                    },
                ]
            ),
            'Hm. look{"port": "Rome"}',
        ),
        (claude_message(input_tokens=1, output_tokens=1), "Seven."),
        (
            claude.Message.model_validate(
                {
                    **claude_message(input_tokens=1, output_tokens=1).model_dump(),
                    "content": [
                        {"type": "thinking", "thinking": "Hm. ", "signature": "AAAA"},
                        {"type": "tool_use", "id": "t", "name": "look", "input": {"port": "Rome"}},
                    ],
                }
            ),
            'Hm. look{"port": "Rome"}',
        ),
        (gemini_reply(), "Seven."),
        (
            gemini.GenerateContentResponse(
                candidates=[
                    gemini.Candidate(
                        content=gemini.Content(
                            role="model",
                            parts=[
                                gemini.Part(text="Hm. ", thought=True, thought_signature=b"AAAA"),
                                gemini.Part(
                                    function_call=gemini.FunctionCall(name="look", args={"port": "Rome"})
                                ),
                            ],
                        )
                    )
                ]
            ),
            'Hm. look{"port": "Rome"}',
        ),
        (gemini.GenerateContentResponse(candidates=[gemini.Candidate()]), ""),
        (AIMessage("Seven."), "Seven."),
        (
            AIMessage("", tool_calls=[{"name": "look", "args": {"port": "Rome"}, "id": "1"}]),
            'look{"port": "Rome"}',
        ),
        (
            AIMessage(
                content=[
                    {"type": "text", "text": "Hm. "},
                    {"type": "tool_use", "id": "1", "name": "look", "input": {"port": "Rome"}},
                ],
                tool_calls=[{"name": "look", "args": {"port": "Rome"}, "id": "1"}],
            ),
            'Hm. look{"port": "Rome"}',
        ),
    ],
)
def test_text_of_a_reply_is_what_the_model_wrote(reply: Any, text: str) -> None:
    assert reply_text(reply) == text
    if hasattr(type(reply), "model_dump"):
        assert reply_text(reply.model_dump()) == text


@pytest.mark.parametrize(
    "reply",
    [None, 7, b"x", {}, {"rows": 7}, {"content": "x"}, {"output": ["x"]}, [], object(), MagicMock()],
    ids=repr,
)
def test_text_of_an_unknown_type_is_none(reply: object) -> None:
    assert reply_text(reply) is None


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        ("Se", "Se"),
        (b"Se\xff", "Se\ufffd"),
        (chat_chunk("Se"), "Se"),
        (chat_chunk(usage=chat_usage(1, 1)), ""),
        (chat_chunk(reasoning_content="Hm"), "Hm"),
        (
            chat_chunk(tool_calls=[{"index": 0, "id": "c", "function": {"name": "look", "arguments": ""}}]),
            "look",
        ),
        (chat_chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"po'}}]), '{"po'),
        (text_delta("Se"), "Se"),
        (text_delta("{", "response.function_call_arguments.delta"), "{"),
        (text_delta("Hm", "response.reasoning_summary_text.delta"), "Hm"),
        (text_delta("UklGRg==", "response.audio.delta"), ""),
        ({"type": "response.output_text.done", "text": "Seven."}, ""),
        ({"type": "response.output_item.added", "item": {"type": "function_call", "name": "look"}}, "look"),
        (event("response.completed", RESPONSE_USAGE), ""),
        (claude_start(input_tokens=1, output_tokens=1), ""),
        (claude_block(type="text_delta", text="Se"), "Se"),
        (claude_block(type="thinking_delta", thinking="Hm"), "Hm"),
        (claude_block(type="input_json_delta", partial_json='{"po'), '{"po'),
        (claude_block(type="signature_delta", signature="AAAA"), ""),
        (
            claude.RawContentBlockStartEvent.model_validate(
                {
                    "type": "content_block_start",
                    "index": 1,
                    "content_block": {"type": "tool_use", "id": "t", "name": "look", "input": {}},
                }
            ),
            "look",
        ),
        (TextEvent(type="text", text="Se", snapshot="Se"), ""),
        (claude_delta(output_tokens=3), ""),
        (gemini_reply("Se"), "Se"),
        (response(), "Seven."),
        (claude_message(input_tokens=1, output_tokens=1), "Seven."),
        (langchain_chunk("Se"), "Se"),
        (AIMessageChunk([{"type": "text", "text": "Se", "index": 0}]), "Se"),
        (
            AIMessageChunk(
                [{"type": "input_json_delta", "partial_json": '{"po', "index": 1}],
                tool_call_chunks=[{"name": None, "args": '{"po', "id": None, "index": 1}],
            ),
            '{"po',
        ),
        (
            AIMessageChunk("", tool_call_chunks=[{"name": "look", "args": '{"po', "id": "1", "index": 0}]),
            'look{"po',
        ),
        ({"type": "chunk", "chunk": {"choices": [{"delta": {"content": "Se"}}]}, "snapshot": {}}, "Se"),
        ({"content": "Se"}, "Se"),
        ({"text": "Se"}, "Se"),
        ({"message": {"role": "assistant", "content": "Se"}, "done": False}, "Se"),
        ({"type": "text", "text": "Se"}, "Se"),
        (None, ""),
        (7, ""),
        ({"rows": 7}, ""),
        (object(), ""),
        (MagicMock(), ""),
    ],
)
def test_text_of_a_chunk_is_its_new_text(chunk: Any, text: str) -> None:
    assert text_of(chunk) == text
    if hasattr(type(chunk), "model_dump"):
        assert text_of(chunk.model_dump()) == text


def test_gemini_parts_without_text_raise_no_warning() -> None:
    part = gemini.Part(function_call=gemini.FunctionCall(name="look", args={}))
    reply = gemini.GenerateContentResponse(
        candidates=[
            gemini.Candidate(content=gemini.Content(role="model", parts=[part, gemini.Part(text="!")]))
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text_of(reply) == reply_text(reply) == "look!"
