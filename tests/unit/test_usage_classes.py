"""One physical call, told by every provider in its own way, is read into the same classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import anthropic.types as claude
import attrs
import pytest
from google.genai import types as gemini
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata
from openai.types import CompletionUsage
from openai.types import responses as oai
from openai.types.chat import ChatCompletion
from openai.types.realtime import RealtimeResponseUsage

from tbc.stream_usage import StreamUsage
from tbc.usage import Usage, read_usage, reply_text
from tests.offline_litellm import CONNECTIONS, lazy_schemas, litellm

pytestmark = lazy_schemas


def test_importing_litellm_asks_no_network() -> None:
    assert litellm().ModelResponse is not None
    assert CONNECTIONS == []


# --- physical calls -----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Call:
    """What really happened, in tokens."""

    text: int = 0
    read: int = 0
    write: int = 0
    write_1h: int = 0
    audio: int = 0
    cached_audio: int = 0
    answer: int = 0
    reasoning: int = 0
    spoken: int = 0

    @property
    def cached(self) -> int:
        return self.read + self.cached_audio

    @property
    def prompt(self) -> int:
        return self.text + self.cached + self.write + self.write_1h + self.audio

    @property
    def output(self) -> int:
        return self.answer + self.reasoning + self.spoken


def openai_chat_usage(call: Call) -> dict[str, Any]:
    return {
        "prompt_tokens": call.prompt,
        "prompt_tokens_details": {
            "cached_tokens": call.cached,
            "cache_write_tokens": call.write,
            "audio_tokens": call.audio + call.cached_audio,
        },
        "completion_tokens": call.output,
        "completion_tokens_details": {"reasoning_tokens": call.reasoning, "audio_tokens": call.spoken},
        "total_tokens": call.prompt + call.output,
    }


def openai_chat(call: Call) -> ChatCompletion:
    message = {"role": "assistant", "content": "Seven."}
    return ChatCompletion.model_validate(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": openai_chat_usage(call),
        }
    )


def openai_responses(call: Call) -> oai.Response:
    return oai.Response.model_validate(
        {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": "gpt-5",
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": call.prompt,
                "input_tokens_details": {"cached_tokens": call.read, "cache_write_tokens": call.write},
                "output_tokens": call.output,
                "output_tokens_details": {"reasoning_tokens": call.reasoning},
                "total_tokens": call.prompt + call.output,
            },
        }
    )


def openai_realtime(call: Call) -> RealtimeResponseUsage:
    return RealtimeResponseUsage.model_validate(
        {
            "input_tokens": call.prompt,
            "input_token_details": {
                "text_tokens": call.text + call.read,
                "audio_tokens": call.audio + call.cached_audio,
                "cached_tokens": call.cached,
                "cached_tokens_details": {"text_tokens": call.read, "audio_tokens": call.cached_audio},
            },
            "output_tokens": call.output,
            "output_token_details": {"text_tokens": call.answer, "audio_tokens": call.spoken},
            "total_tokens": call.prompt + call.output,
        }
    )


def anthropic_usage(call: Call) -> dict[str, Any]:
    return {
        "input_tokens": call.text,
        "cache_read_input_tokens": call.read,
        "cache_creation_input_tokens": call.write + call.write_1h,
        "cache_creation": {
            "ephemeral_5m_input_tokens": call.write,
            "ephemeral_1h_input_tokens": call.write_1h,
        },
        "output_tokens": call.output,
        "output_tokens_details": {"thinking_tokens": call.reasoning},
    }


def anthropic_message(call: Call) -> claude.Message:
    return claude.Message.model_validate(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "stop_reason": "end_turn",
            "content": [{"type": "text", "text": "Seven."}],
            "usage": anthropic_usage(call),
        }
    )


def by_modality(text: int, audio: int) -> list[gemini.ModalityTokenCount]:
    return [
        gemini.ModalityTokenCount(modality=gemini.MediaModality.TEXT, token_count=text),
        gemini.ModalityTokenCount(modality=gemini.MediaModality.AUDIO, token_count=audio),
    ]


def google_usage(call: Call) -> gemini.GenerateContentResponseUsageMetadata:
    return gemini.GenerateContentResponseUsageMetadata(
        prompt_token_count=call.prompt,
        prompt_tokens_details=by_modality(call.text + call.read, call.audio + call.cached_audio),
        cached_content_token_count=call.cached,
        cache_tokens_details=by_modality(call.read, call.cached_audio),
        candidates_token_count=call.answer + call.spoken,
        candidates_tokens_details=by_modality(call.answer, call.spoken),
        thoughts_token_count=call.reasoning,
        total_token_count=call.prompt + call.output,
    )


def google(call: Call) -> gemini.GenerateContentResponse:
    return gemini.GenerateContentResponse(usage_metadata=google_usage(call))


def langchain(call: Call) -> AIMessage:
    details: Any = {  # the sum of the writes is 0 where they are told by their time to live
        "cache_read": call.cached,
        "cache_creation": 0,
        "ephemeral_5m_input_tokens": call.write,
        "ephemeral_1h_input_tokens": call.write_1h,
        "audio": call.audio + call.cached_audio,
    }
    usage = UsageMetadata(
        input_tokens=call.prompt,
        output_tokens=call.output,
        total_tokens=call.prompt + call.output,
        input_token_details=details,
        output_token_details={"reasoning": call.reasoning, "audio": call.spoken},
    )
    return AIMessage("Seven.", usage_metadata=usage)


def litellm_reply(usage: Any) -> Any:
    choices = [{"message": {"role": "assistant", "content": "Seven."}}]
    return litellm().ModelResponse(model="m", choices=choices, usage=usage)


def litellm_openai(call: Call) -> Any:
    return litellm_reply(litellm().Usage(**openai_chat_usage(call)))


def litellm_anthropic(call: Call) -> Any:
    """Let LiteLLM itself turn Anthropic's usage into its own."""
    convert = litellm().AnthropicConfig().calculate_usage
    return litellm_reply(convert(usage_object=anthropic_usage(call), reasoning_content=None))


def litellm_google(call: Call) -> Any:
    """Let LiteLLM itself turn Gemini's usage into its own."""
    usage = google_usage(call).model_dump(mode="json", by_alias=True, exclude_none=True)
    return litellm_reply(litellm().VertexGeminiConfig.calculate_usage({"usageMetadata": usage}))


@attrs.frozen
class Convention:
    """How a provider tells a call, and which classes it has words for."""

    tell: Callable[[Call], Any]
    words: frozenset[str]

    def expressible(self, call: Call) -> Call:
        """Return the call with what the provider has no word for moved to the class next to it."""
        for name, instead in (
            ("write_1h", "write"),
            ("write", "text"),
            ("cached_audio", "read"),
            ("audio", "text"),
            ("spoken", "answer"),
            ("reasoning", "answer"),
        ):
            if name not in self.words:
                total = getattr(call, instead) + getattr(call, name)
                call = attrs.evolve(call, **{instead: total, name: 0})
        return call

    def usage(self, call: Call) -> Usage:
        """Return the classes of the call; those that the provider has no word for are unknown."""
        classes = {
            "write": ("cached_write_tokens", call.write),
            "write_1h": ("cached_write_1h_tokens", call.write_1h),
            "audio": ("input_audio_tokens", call.audio),
            "cached_audio": ("cached_audio_read_tokens", call.cached_audio),
            "spoken": ("output_audio_tokens", call.spoken),
            "reasoning": ("reasoning_tokens", call.reasoning),
        }
        return Usage(
            input_tokens=call.text,
            cached_read_tokens=call.read,
            output_tokens=call.answer + call.reasoning,
            **dict(classes[name] for name in self.words),
        )


def convention(tell: Callable[[Call], Any], words: str) -> Convention:
    return Convention(tell, frozenset(words.split()))


CONVENTIONS: Final = {
    "openai-chat": convention(openai_chat, "write audio spoken reasoning"),
    "openai-responses": convention(openai_responses, "write reasoning"),
    "openai-realtime": convention(openai_realtime, "audio cached_audio spoken"),
    "anthropic": convention(anthropic_message, "write write_1h reasoning"),
    "google": convention(google, "audio cached_audio spoken reasoning"),
    "langchain": convention(langchain, "write write_1h audio spoken reasoning"),
    "litellm-openai": convention(litellm_openai, "write audio spoken reasoning"),
    "litellm-anthropic": convention(litellm_anthropic, "write write_1h reasoning"),
    "litellm-google": convention(litellm_google, "audio cached_audio spoken reasoning"),
}
conventions = pytest.mark.parametrize("told", CONVENTIONS.values(), ids=CONVENTIONS)

#: Nano-dollars a token, made up; all different, so that no class can hide in another.
PRICES: Final = {
    "input_tokens": 3_000,
    "cached_read_tokens": 300,
    "cached_write_tokens": 3_750,
    "cached_write_1h_tokens": 6_000,
    "input_audio_tokens": 32_000,
    "cached_audio_read_tokens": 400,
    "output_tokens": 15_000,
    "output_audio_tokens": 64_000,
}


def cost(usage: Usage | None) -> int:
    assert usage is not None
    return sum(price * (getattr(usage, name) or 0) for name, price in PRICES.items())


# --- story 14 -----------------------------------------------------------------------------------------------


@conventions
def test_story_14_the_same_request_has_the_same_classes_in_every_convention(told: Convention) -> None:
    call = told.expressible(Call(text=200, read=600, write=150, write_1h=50, answer=150, reasoning=50))
    usage = read_usage(told.tell(call))
    assert usage == told.usage(call)
    assert usage is not None
    assert (usage.all_input, usage.all_output, usage.tokens) == (1_000, 200, 1_200)


@pytest.mark.parametrize(
    ("call", "needs"),
    [
        (Call(text=400, read=600, answer=200), ""),
        (Call(text=400, read=600, answer=150, reasoning=50), "reasoning"),
        (Call(text=200, read=600, write=200, answer=150, reasoning=50), "write reasoning"),
        (
            Call(text=200, read=600, write=150, write_1h=50, answer=150, reasoning=50),
            "write write_1h reasoning",
        ),
        (
            Call(text=100, read=600, audio=300, answer=100, reasoning=50, spoken=50),
            "audio spoken reasoning",
        ),
    ],
    ids=["plain", "reasoning", "writes", "writes for an hour", "audio"],
)
def test_story_14_the_same_request_costs_the_same_in_every_convention(call: Call, needs: str) -> None:
    able = {name: told for name, told in CONVENTIONS.items() if told.words.issuperset(needs.split())}
    costs = {name: cost(read_usage(told.tell(call))) for name, told in able.items()}
    assert len(able) >= 3
    assert set(costs.values()) == {cost(CONVENTIONS["google"].usage(call)) + cost_of_writes(call)}


def cost_of_writes(call: Call) -> int:
    return cost(Usage(cached_write_tokens=call.write, cached_write_1h_tokens=call.write_1h))


@conventions
def test_story_14_the_dump_of_a_reply_has_the_same_classes(told: Convention) -> None:
    call = told.expressible(Call(text=9, read=64, write=6, write_1h=5, audio=3, cached_audio=2, answer=7))
    reply = told.tell(call)
    assert read_usage(reply.model_dump()) == read_usage(reply.model_dump(mode="json")) == told.usage(call)
    assert read_usage(reply.model_dump(by_alias=True, exclude_none=True)) == told.usage(call)


# --- for all calls ------------------------------------------------------------------------------------------

amounts = st.integers(0, 5_000)
calls = st.builds(Call, **{attribute.name: amounts for attribute in attrs.fields(Call)})


@given(calls, st.sampled_from(sorted(CONVENTIONS)))
@example(Call(), "litellm-google")
@example(Call(), "anthropic")
def test_what_a_provider_can_tell_is_read_back(call: Call, name: str) -> None:
    told = CONVENTIONS[name]
    call = told.expressible(call)
    assert read_usage(told.tell(call)) == told.usage(call)


@given(calls, st.sampled_from(sorted(CONVENTIONS)))
def test_no_token_is_lost_or_counted_twice(call: Call, name: str) -> None:
    usage = read_usage(CONVENTIONS[name].tell(CONVENTIONS[name].expressible(call)))
    assert usage is not None
    assert (usage.all_input, usage.all_output) == (call.prompt, call.output)
    assert usage.tokens == call.prompt + call.output


@given(calls, calls)
def test_usages_add_up_class_by_class(one: Call, other: Call) -> None:
    told = CONVENTIONS["google"]
    one, other = told.expressible(one), told.expressible(other)
    both = Call(**{name: getattr(one, name) + getattr(other, name) for name in attrs.asdict(one)})
    assert told.usage(one) + told.usage(other) == told.usage(both)


def test_what_one_of_two_usages_does_not_state_is_known_from_the_other() -> None:
    both = Usage(input_tokens=1) + Usage(input_tokens=2, output_audio_tokens=0)
    assert both == Usage(input_tokens=3, output_audio_tokens=0)
    with pytest.raises(TypeError):
        both + 1  # type: ignore[operator]


# --- nonsense -----------------------------------------------------------------------------------------------

junk = st.none() | st.integers(-5, 300) | st.sampled_from([True, 2.0, "7", float("nan"), 2**70, [], {}])
counts = st.none() | st.integers(0, 300)


def shuffled(names: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names.split()), values)


def modalities(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    kinds = st.sampled_from(["AUDIO", "audio", "TEXT", None, 7])
    return st.lists(st.fixed_dictionaries({"modality": kinds, "token_count": values}), max_size=3)


def inclusive_records(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return records of OpenAI, LiteLLM, LangChain and Gemini whose numbers do not belong together."""
    times = shuffled("ephemeral_5m_input_tokens ephemeral_1h_input_tokens", values)
    names = "cached_tokens cache_write_tokens cache_creation_tokens audio_tokens reasoning_tokens"
    openai = st.builds(
        lambda plain, by_time, audio: {
            **plain,
            "cache_creation_token_details": by_time,
            "cached_tokens_details": audio,
        },
        shuffled(names, values),
        times,
        shuffled("audio_tokens", values),
    )
    plain = "cache_read cache_creation ephemeral_5m_input_tokens ephemeral_1h_input_tokens audio reasoning"
    langchain = shuffled(plain, values)
    return st.one_of(
        st.fixed_dictionaries(
            {"prompt_tokens": values, "completion_tokens": values, "total_tokens": values},
            optional={"prompt_tokens_details": openai, "completion_tokens_details": openai},
        ),
        st.fixed_dictionaries(
            {"input_tokens": values, "output_tokens": values, "total_tokens": values},
            optional={"input_token_details": langchain, "output_token_details": langchain},
        ),
        st.fixed_dictionaries(
            {"prompt_token_count": values, "candidates_token_count": values, "total_token_count": values},
            optional={
                "cached_content_token_count": values,
                "prompt_tokens_details": modalities(values),
                "cache_tokens_details": modalities(values),
                "candidates_tokens_details": modalities(values),
            },
        ),
    )


anthropic_records = st.fixed_dictionaries(
    {"input_tokens": junk, "output_tokens": junk},
    optional={
        "cache_read_input_tokens": junk,
        "cache_creation_input_tokens": junk,
        "cache_creation": shuffled("ephemeral_5m_input_tokens ephemeral_1h_input_tokens", junk) | junk,
        "output_tokens_details": shuffled("thinking_tokens", junk) | junk,
    },
)


@given(inclusive_records(junk) | anthropic_records, inclusive_records(junk) | anthropic_records)
def test_nonsense_never_raises_and_is_never_negative(record: Any, later: Any) -> None:
    stream = StreamUsage()
    for chunk in (record, later):
        stream.add({"usage": chunk})
    for usage in (read_usage({"usage": record}), read_usage(later), stream.usage):
        for name, count in attrs.asdict(usage or Usage()).items():
            assert count is None or (type(count) is int and count >= 0), name
        if usage is not None and usage.reasoning_tokens is not None and usage.output_tokens is not None:
            assert usage.reasoning_tokens <= usage.output_tokens


@given(inclusive_records(counts))
def test_classes_of_a_contradiction_are_never_more_than_what_they_are_part_of(record: Any) -> None:
    prompt, output, total = (
        next(record[name] for name in names if name in record)
        for names in (
            ("prompt_tokens", "input_tokens", "prompt_token_count"),
            ("completion_tokens", "output_tokens", "candidates_token_count"),
            ("total_tokens", "total_token_count"),
        )
    )
    usage = read_usage({"usage": record}) or Usage()
    stated = (prompt or 0) + (output or 0)
    if total is not None and total >= stated:
        assert usage.tokens == total
    elif prompt is not None and output is not None:
        assert usage.tokens == stated
    if prompt is not None:
        assert usage.all_input == prompt
    if output is not None and (total is None or total < stated):
        assert usage.all_output == output


@pytest.mark.parametrize(
    ("record", "usage"),
    [
        (
            {"total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 5}},
            Usage(input_tokens=0, cached_read_tokens=5, output_tokens=4),
        ),
        (
            {"total_tokens": 9, "prompt_tokens_details": {"audio_tokens": 50}},
            Usage(input_tokens=0, input_audio_tokens=9, output_tokens=0),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"audio_tokens": 50}},
            Usage(input_tokens=0, input_audio_tokens=9, output_tokens=1),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 8,
                "completion_tokens_details": {"audio_tokens": 5, "reasoning_tokens": 7},
            },
            Usage(input_tokens=9, output_tokens=3, output_audio_tokens=5, reasoning_tokens=3),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "prompt_tokens_details": {
                    "cache_creation_tokens": 4,
                    "cache_creation_token_details": {"ephemeral_1h_input_tokens": 6},
                },
            },
            Usage(input_tokens=3, cached_write_tokens=0, cached_write_1h_tokens=6, output_tokens=1),
        ),
    ],
)
def test_contradictions_that_have_an_answer(record: dict[str, Any], usage: Usage) -> None:
    assert read_usage({"usage": record}) == usage


# --- what is special to one ---------------------------------------------------------------------------------


def test_cached_audio_that_is_not_stated_is_what_does_not_fit_elsewhere() -> None:
    def told(audio: int) -> Usage | None:
        details = {"cached_tokens": 600, "audio_tokens": audio}
        return read_usage(
            CompletionUsage.model_validate(
                {
                    "prompt_tokens": 1_000,
                    "prompt_tokens_details": details,
                    "completion_tokens": 1,
                    "total_tokens": 1_001,
                }
            )
        )

    fits = Usage(input_tokens=0, input_audio_tokens=400, cached_read_tokens=600, output_tokens=1)
    assert told(400) == fits
    assert told(900) == attrs.evolve(fits, cached_read_tokens=100, cached_audio_read_tokens=500)
    assert told(9_000) == attrs.evolve(fits, cached_read_tokens=0, cached_audio_read_tokens=600)


def test_gemini_thoughts_within_the_candidates_are_not_added_again() -> None:
    record = {"prompt_token_count": 80, "candidates_token_count": 18, "thoughts_token_count": 8}
    beside = gemini.GenerateContentResponseUsageMetadata(**record, total_token_count=106)
    within = gemini.GenerateContentResponseUsageMetadata(**record, total_token_count=98)
    assert read_usage(beside) == Usage(input_tokens=80, output_tokens=26, reasoning_tokens=8)
    assert read_usage(within) == Usage(input_tokens=80, output_tokens=18, reasoning_tokens=8)


def test_gemini_tool_results_may_be_audio() -> None:
    usage = gemini.GenerateContentResponseUsageMetadata(
        prompt_token_count=10,
        tool_use_prompt_token_count=9,
        tool_use_prompt_tokens_details=by_modality(2, 7),
        candidates_token_count=1,
        total_token_count=20,
    )
    assert read_usage(usage) == Usage(input_tokens=12, input_audio_tokens=7, output_tokens=1)


def test_gemini_live_states_the_audio_of_its_responses() -> None:
    usage = gemini.UsageMetadata(
        prompt_token_count=10,
        response_token_count=30,
        response_tokens_details=by_modality(5, 25),
        total_token_count=40,
    )
    expected = Usage(input_tokens=10, output_tokens=5, output_audio_tokens=25)
    assert read_usage({"usage_metadata": usage}) == expected
    assert read_usage({"usageMetadata": usage.model_dump(by_alias=True, mode="json")}) == expected


def test_writes_for_an_hour_that_are_told_at_the_start_of_a_stream_stay_apart() -> None:
    call = Call(text=20, read=64, write=4, write_1h=2, answer=1)
    start = anthropic_message(call).model_copy(update={"content": []})
    stream = StreamUsage()
    stream.add(claude.RawMessageStartEvent(type="message_start", message=start))
    later = anthropic_usage(attrs.evolve(call, answer=10)) | {"cache_creation_input_tokens": 9}
    del later["cache_creation"], later["output_tokens_details"]
    stream.add(
        claude.RawMessageDeltaEvent.model_validate(
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": later}
        )
    )
    assert stream.usage == Usage(
        input_tokens=20,
        cached_read_tokens=64,
        cached_write_tokens=7,
        cached_write_1h_tokens=2,
        output_tokens=10,
    )


def test_audio_in_the_last_chunk_of_a_stream_is_output() -> None:
    last = google_usage(Call(answer=2, spoken=25))
    last.prompt_token_count = last.prompt_tokens_details = last.total_token_count = None
    last.cached_content_token_count = last.cache_tokens_details = None
    stream = StreamUsage()
    for chunk in (google(Call(text=90, answer=2)), gemini.GenerateContentResponse(usage_metadata=last)):
        stream.add(chunk)
    assert stream.usage == CONVENTIONS["google"].usage(Call(text=90, answer=2, spoken=25))


def test_a_reply_from_litellms_response_cache_has_cost_nothing() -> None:
    reply = litellm_openai(Call(text=90, answer=10))
    assert read_usage(reply) == CONVENTIONS["litellm-openai"].usage(Call(text=90, answer=10))
    reply._hidden_params["cache_hit"] = True
    assert read_usage(reply) == read_usage({"response": reply}) == Usage(input_tokens=0, output_tokens=0)
    assert reply_text(reply) == "Seven."


@pytest.mark.parametrize("mark", [None, False, 1, "True"])
def test_only_a_plain_mark_makes_a_reply_free(mark: object) -> None:
    reply = litellm_openai(Call(text=90, answer=10))
    reply._hidden_params["cache_hit"] = mark
    usage = read_usage(reply)
    assert usage is not None
    assert usage.tokens == 100


def test_embeddings_that_are_cached_in_part_are_not_free() -> None:
    usage = litellm().Usage(prompt_tokens=9, completion_tokens=0, total_tokens=9)
    reply = litellm().EmbeddingResponse(model="m", data=[], usage=usage)
    reply._hidden_params = {"cache_hit": True}
    assert read_usage(reply) == Usage(input_tokens=9, output_tokens=0)
