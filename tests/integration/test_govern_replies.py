"""govern() reads the real reply types of the SDKs, plain and streamed. Only the provider is made up."""

from __future__ import annotations

import asyncio

import anthropic.types as at
import pytest
from google.genai import types as gt
from langchain_core.messages import AIMessage, AIMessageChunk
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

import tbc


@pytest.fixture
def manager() -> tbc.BudgetManager:
    manager = tbc.BudgetManager(max_tokens=100_000)
    manager.register_agent("a")
    return manager


def spent(manager: tbc.BudgetManager) -> tuple[int, bool]:
    (entry,) = manager.ledger.history("a")
    assert manager.ledger.open_holds == {}
    return entry.tokens, entry.estimated


def chat_completion() -> ChatCompletion:
    return ChatCompletion.model_validate(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}
            ],
            "usage": {
                "prompt_tokens": 120,
                "completion_tokens": 30,
                "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 100},
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
        }
    )


def response() -> Response:
    return Response.model_validate(
        {
            "id": "r1",
            "object": "response",
            "created_at": 1,
            "model": "gpt-4o",
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 120,
                "input_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 0},
                "output_tokens": 30,
                "output_tokens_details": {"reasoning_tokens": 20},
                "total_tokens": 150,
            },
        }
    )


def anthropic_message() -> at.Message:
    return at.Message.model_validate(
        {
            "id": "m1",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": [{"type": "text", "text": "Hello."}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": 20,
                "cache_read_input_tokens": 90,
                "cache_creation_input_tokens": 10,
                "output_tokens": 30,
            },
        }
    )


def gemini() -> gt.GenerateContentResponse:
    return gt.GenerateContentResponse.model_validate(
        {
            "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello."}]}}],
            "usage_metadata": {
                "prompt_token_count": 120,
                "cached_content_token_count": 100,
                "candidates_token_count": 10,
                "thoughts_token_count": 20,
                "total_token_count": 150,
            },
        }
    )


def langchain() -> AIMessage:
    return AIMessage(
        content="Hello.",
        usage_metadata={
            "input_tokens": 120,
            "output_tokens": 30,
            "total_tokens": 150,
            "input_token_details": {"cache_read": 90, "cache_creation": 10},
            "output_token_details": {"reasoning": 20},
        },
    )


REPLIES = [chat_completion, response, anthropic_message, gemini, langchain]


@pytest.mark.parametrize("make", REPLIES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("dumped", [False, True], ids=["object", "dict"])
def test_the_same_physical_call_books_the_same_tokens_whoever_reports_it(manager, make, dumped):
    reply = make().model_dump() if dumped else make()
    assert manager.govern("a")(lambda text: reply)("a question") is reply
    assert spent(manager) == (150, False)


@pytest.mark.parametrize("make", REPLIES, ids=lambda make: make.__name__)
def test_coroutines_too(manager, make):
    async def call(text: str) -> object:
        await asyncio.sleep(0)
        return make()

    asyncio.run(manager.govern("a")(call)("a question"))
    assert spent(manager) == (150, False)


def test_a_reply_without_usage_is_counted_by_its_text_and_marked(manager):
    reply = chat_completion()
    reply.usage = None
    manager.govern("a")(lambda text: reply)("a question")
    tokens, estimated = spent(manager)
    assert estimated
    assert 3 <= tokens <= 8


def openai_chunks(usage: bool):
    for i, text in enumerate(["Hel", "lo", "."]):
        yield ChatCompletionChunk.model_validate(
            {
                "id": "c",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "gpt-4o",
                "choices": [
                    {"index": 0, "delta": {"content": text}, "finish_reason": "stop" if i == 2 else None}
                ],
            }
        )
    if usage:
        yield ChatCompletionChunk.model_validate(
            {
                "id": "c",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "gpt-4o",
                "choices": [],
                "usage": {"prompt_tokens": 120, "completion_tokens": 30, "total_tokens": 150},
            }
        )


def anthropic_events():
    yield at.RawMessageStartEvent.model_validate(
        {
            "type": "message_start",
            "message": {
                **anthropic_message().model_dump(),
                "content": [],
                "usage": {
                    "input_tokens": 20,
                    "cache_read_input_tokens": 90,
                    "cache_creation_input_tokens": 10,
                    "output_tokens": 1,
                },
            },
        }
    )
    for text in ("Hel", "lo."):
        yield at.RawContentBlockDeltaEvent.model_validate(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        )
    for output in (12, 30):  # cumulative
        yield at.RawMessageDeltaEvent.model_validate(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": output},
            }
        )


def gemini_chunks():
    for output in (5, 10):  # cumulative
        chunk = gemini()
        chunk.usage_metadata.candidates_token_count = output
        chunk.usage_metadata.total_token_count = 140 + output
        yield chunk


def langchain_chunks():
    yield AIMessageChunk(
        content="Hel", usage_metadata={"input_tokens": 120, "output_tokens": 0, "total_tokens": 120}
    )
    yield AIMessageChunk(
        content="lo", usage_metadata={"input_tokens": 0, "output_tokens": 30, "total_tokens": 30}
    )


@pytest.mark.parametrize(
    "chunks",
    [lambda: openai_chunks(True), anthropic_events, gemini_chunks, langchain_chunks],
    ids=["openai", "anthropic", "gemini", "langchain"],
)
def test_a_stream_books_the_final_cumulative_usage_once(manager, chunks):
    list(manager.govern("a")(lambda text: chunks())("a question"))
    assert spent(manager) == (150, False)


def test_a_stream_without_usage_is_counted_as_it_arrives(manager):
    list(manager.govern("a")(lambda text: openai_chunks(False))("a question"))
    tokens, estimated = spent(manager)
    assert estimated
    assert 4 <= tokens <= 8


def test_a_real_client_is_no_input(manager):
    import openai

    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9/")
    manager.govern("a")(lambda client, text: "")(client, "one")
    assert spent(manager)[0] <= 3


def test_an_explicit_zero_stays_zero(manager):
    reply = chat_completion()
    reply.usage.prompt_tokens = reply.usage.completion_tokens = reply.usage.total_tokens = 0
    manager.govern("a")(lambda: reply)()
    assert spent(manager) == (0, False)
