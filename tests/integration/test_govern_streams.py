"""Streams of the real clients under govern(): what is booked when they end, break off, or say nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import anthropic.types as at
import pytest
from google.genai import types as gt
from langchain_core.messages import AIMessageChunk
from openai.types import responses as ot
from openai.types.chat import ChatCompletionChunk

import tbc
from tests.offline_litellm import lazy_schemas, litellm

pytestmark = lazy_schemas

WORDS = ("one ", "two ", "three ")
#: What the calls below really spend: 120 of input, and 10, 20, 30 of output as the three words come.
INPUT, OUTPUTS = 120, (10, 20, 30)


@pytest.fixture
def manager() -> tbc.BudgetManager:
    manager = tbc.BudgetManager(max_tokens=100_000)
    manager.register_agent("a")
    return manager


def spent(manager: tbc.BudgetManager) -> tuple[int, bool]:
    (entry,) = manager.ledger.history("a")
    assert manager.ledger.open_holds == {}
    return entry.tokens, entry.estimated


# --- chunks: the usage so far with every one where a client does that, else at its usual place --------------


def openai_usage(output: int | None, prompt: int = INPUT) -> dict[str, Any] | None:
    if output is None:
        return None
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def openai_chunk(text: str | None, output: int | None = None, prompt: int = INPUT) -> ChatCompletionChunk:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return ChatCompletionChunk.model_validate(
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "gpt-4o",
            "choices": choices,
            "usage": openai_usage(output, prompt),
        }
    )


def openai_at_the_end() -> Iterator[Any]:
    yield from map(openai_chunk, WORDS)
    yield openai_chunk(None, OUTPUTS[-1])


def openai_cumulative() -> Iterator[Any]:
    yield from map(openai_chunk, WORDS, OUTPUTS)


def openai_cumulative_and_at_the_end() -> Iterator[Any]:
    yield from openai_cumulative()
    yield openai_chunk(None, OUTPUTS[-1])


def openai_responses() -> Iterator[Any]:
    def response(usage: dict[str, Any] | None) -> ot.Response:
        fields: dict[str, Any] = {"object": "response", "created_at": 1, "model": "gpt-5", "output": []}
        fields |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage}
        return ot.Response.model_validate({"id": "r", **fields})

    yield ot.ResponseCreatedEvent(response=response(None), sequence_number=0, type="response.created")
    for word in WORDS:
        yield ot.ResponseTextDeltaEvent.model_construct(type="response.output_text.delta", delta=word)
    usage = {
        "input_tokens": INPUT,
        "input_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 0},
        "output_tokens": OUTPUTS[-1],
        "output_tokens_details": {"reasoning_tokens": 20},
        "total_tokens": INPUT + OUTPUTS[-1],
    }
    yield ot.ResponseCompletedEvent(response=response(usage), sequence_number=9, type="response.completed")


def anthropic() -> Iterator[Any]:
    usage = {"input_tokens": 20, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 10}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "content": []}
    yield at.RawMessageStartEvent.model_validate(
        {"type": "message_start", "message": {**message, "usage": {**usage, "output_tokens": 1}}}
    )
    for word, output in zip(WORDS, OUTPUTS, strict=True):
        yield at.RawContentBlockDeltaEvent.model_validate(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        )
        yield at.RawMessageDeltaEvent.model_validate(
            {
                "type": "message_delta",
                "delta": {"stop_reason": None},
                "usage": {**usage, "output_tokens": output},
            }
        )


def google() -> Iterator[Any]:
    for word, output in zip(WORDS, OUTPUTS, strict=True):
        usage = gt.GenerateContentResponseUsageMetadata(
            prompt_token_count=INPUT,
            cached_content_token_count=100,
            candidates_token_count=output - 5,
            thoughts_token_count=5,
            total_token_count=INPUT + output,
        )
        content = gt.Content(role="model", parts=[gt.Part(text=word)])
        yield gt.GenerateContentResponse(candidates=[gt.Candidate(content=content)], usage_metadata=usage)


def langchain(outputs: Iterable[int], inputs: Iterable[int]) -> Iterator[Any]:
    for word, output, prompt in zip(WORDS, outputs, inputs, strict=True):
        usage = {"input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output}
        yield AIMessageChunk(word, id="run-1", usage_metadata=usage)


def langchain_deltas() -> Iterator[Any]:
    return langchain((10, 10, 10), (INPUT, 0, 0))


def langchain_cumulative() -> Iterator[Any]:
    return langchain(OUTPUTS, (INPUT,) * 3)


def litellm_chunks() -> Iterator[Any]:
    for word, output in zip(WORDS, OUTPUTS, strict=True):
        choices = [{"index": 0, "delta": {"role": "assistant", "content": word}}]
        yield litellm().ModelResponseStream(id="c", model="m", choices=choices, usage=openai_usage(output))


STREAMS = [
    openai_at_the_end,
    openai_cumulative,
    openai_cumulative_and_at_the_end,
    openai_responses,
    anthropic,
    google,
    langchain_deltas,
    langchain_cumulative,
    litellm_chunks,
]
streams = pytest.mark.parametrize("chunks", STREAMS, ids=lambda chunks: chunks.__name__)


# --- story 13 -----------------------------------------------------------------------------------------------


@streams
@pytest.mark.parametrize("dumped", [False, True], ids=["object", "dict"])
def test_story_13a_the_final_usage_is_booked_once(
    manager: tbc.BudgetManager, chunks: Callable[[], Iterator[Any]], dumped: bool
) -> None:
    def call(text: str) -> Iterator[Any]:
        for chunk in chunks():
            yield chunk.model_dump() if dumped else chunk

    assert len(list(manager.govern("a")(call)("a question"))) >= len(WORDS)
    assert spent(manager) == (INPUT + OUTPUTS[-1], False)


@streams
def test_story_13a_in_an_async_stream_too(
    manager: tbc.BudgetManager, chunks: Callable[[], Iterator[Any]]
) -> None:
    @manager.govern("a")
    async def call(text: str) -> Any:
        for chunk in chunks():
            yield chunk

    async def consume() -> None:
        assert [chunk async for chunk in call("a question")] != []

    asyncio.run(consume())
    assert spent(manager) == (INPUT + OUTPUTS[-1], False)


def test_story_13b_without_usage_what_came_is_booked_as_an_estimate(manager: tbc.BudgetManager) -> None:
    list(manager.govern("a")(lambda text: map(openai_chunk, WORDS))("a question"))
    tokens, estimated = spent(manager)
    assert estimated
    assert manager.count("a question") + 3 <= tokens <= 9


def test_story_13b_a_stated_input_is_believed_where_the_output_is_not_stated(
    manager: tbc.BudgetManager,
) -> None:
    def call(text: str) -> Iterator[Any]:
        yield {"usage_metadata": {"prompt_token_count": INPUT}}
        yield from WORDS

    list(manager.govern("a")(call)("a question"))
    tokens, estimated = spent(manager)
    assert estimated
    assert INPUT + 3 <= tokens <= INPUT + 6


@streams
@pytest.mark.parametrize("leave", ["close", "drop"])
def test_story_13c_a_stream_that_is_left_half_way_books_what_came(
    manager: tbc.BudgetManager, chunks: Callable[[], Iterator[Any]], leave: str
) -> None:
    stream = manager.govern("a", max_output_tokens=5_000)(lambda text: chunks())("a question")
    came = [next(stream), next(stream)]
    assert len(manager.ledger.open_holds) == 1
    if leave == "close":
        stream.close()
    del stream
    gc.collect()
    manager.remaining("a")  # whoever asks next books what a finalizer has left behind
    tokens, estimated = spent(manager)
    assert len(came) == 2
    assert estimated
    assert 0 < tokens <= INPUT + OUTPUTS[1]


@pytest.mark.parametrize(
    ("chunks", "read", "tokens"),
    [(anthropic, 1, 121), (anthropic, 3, 130), (google, 1, 130), (openai_cumulative, 2, 140)],
)
def test_story_13c_what_was_stated_half_way_is_booked(
    manager: tbc.BudgetManager, chunks: Callable[[], Iterator[Any]], read: int, tokens: int
) -> None:
    stream = manager.govern("a")(lambda text: chunks())("a question")
    for _ in range(read):
        next(stream)
    stream.close()
    assert spent(manager) == (tokens, True)


def test_story_13c_what_was_stated_before_an_error_is_booked(manager: tbc.BudgetManager) -> None:
    def call(text: str) -> Iterator[Any]:
        yield next(anthropic())
        raise ConnectionError

    with pytest.raises(ConnectionError):
        list(manager.govern("a")(call)("a question"))
    assert spent(manager) == (121, True)


@pytest.mark.parametrize(
    "zero",
    [
        lambda: [openai_chunk("one "), openai_chunk(None, 0, prompt=0)],
        lambda: [openai_chunk("one ", 0, prompt=0), openai_chunk(None, 0, prompt=0)],
        lambda: langchain((0, 0, 0), (0, 0, 0)),
        lambda: [
            gt.GenerateContentResponse(
                candidates=[gt.Candidate(content=gt.Content(role="model", parts=[gt.Part(text="one ")]))],
                usage_metadata=gt.GenerateContentResponseUsageMetadata(
                    prompt_token_count=0, candidates_token_count=0, total_token_count=0
                ),
            )
        ],
    ],
    ids=["openai at the end", "openai", "langchain", "google"],
)
def test_story_13d_a_stated_zero_stays_zero(
    manager: tbc.BudgetManager, zero: Callable[[], Iterable[Any]]
) -> None:
    list(manager.govern("a")(lambda text: iter(zero()))("a question"))
    assert spent(manager) == (0, False)


# --- outputs that are not text ------------------------------------------------------------------------------


def test_spoken_output_is_output(manager: tbc.BudgetManager) -> None:
    usage = {
        **(openai_usage(30) or {}),
        "completion_tokens_details": {"audio_tokens": 25, "reasoning_tokens": 0},
    }
    manager.govern("a")(lambda: {"usage": usage})()
    assert spent(manager) == (150, False)
    for _ in range(4):
        manager.govern("a")(lambda: {"usage": usage})()
    assert manager.output_history("a").p90() == 30


def test_replies_that_cost_nothing_do_not_shrink_the_next_output_cap(manager: tbc.BudgetManager) -> None:
    for _ in range(20):
        manager.govern("a")(lambda: {"usage": openai_usage(0, prompt=0)})()
    assert manager.output_history("a").p90() is None
    for _ in range(5):
        manager.govern("a")(lambda: {"usage": openai_usage(30)})()
    assert manager.output_history("a").p90() == 30
