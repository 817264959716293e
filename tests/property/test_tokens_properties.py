"""What holds for every text and every value: counting never raises, adds up, and knows no markers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbc import tokens as rule
from tbc.stream_usage import StreamUsage
from tbc.tokens import EstimateCounter, TiktokenCounter, count
from tbc.usage import Usage, read_usage, reply_text, text_of

MARKERS = ["<|endoftext|>", "<|endofprompt|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|im_start|>"]

#: Text of every kind, lone surrogates and special markers included.
texts = st.lists(
    st.text(max_size=40)
    | st.text(st.characters(categories=["Cs", "Co", "Mn", "So", "Zs", "Cc"]), max_size=10)
    | st.sampled_from([*MARKERS, " ", "\n\n", "data:image/png;base64,", "é" * 50, "漢字", "0" * 30]),
    max_size=8,
).map("".join)

numbers = st.integers() | st.floats() | st.booleans()
json_like = st.recursive(
    st.none() | numbers | texts | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)

#: Names by which messages, parts, replies and usage records are known, so that dicts hit them often.
NAMES = [
    *("role", "type", "content", "parts", "text", "tool_calls", "function", "arguments", "name", "input"),
    *("choices", "delta", "message", "messages", "output", "candidates", "response", "raw", "usage", "id"),
    *("usage_metadata", "response_metadata", "token_usage", "input_tokens", "output_tokens", "prompt_tokens"),
    *("completion_tokens", "total_tokens", "input_tokens_details", "input_token_details", "cached_tokens"),
    *("cache_read", "cache_read_input_tokens", "prompt_token_count", "candidates_token_count", "object"),
    *("thoughts_token_count", "total_token_count", "cached_content_token_count", "source", "inline_data"),
]
VALUES = [
    "assistant",
    "user",
    "ai",
    "text",
    "tool_use",
    "message",
    "AIMessageChunk",
    "message_start",
    "response",
]
replies = st.recursive(
    st.none() | numbers | st.sampled_from(VALUES) | texts | st.integers(0, 10**6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=7),
    max_leaves=20,
)
some_number = st.none() | st.integers(-5, 300) | st.sampled_from([True, 2.0, "7", float("nan"), 2**70])


@pytest.fixture(scope="module")
def real() -> TiktokenCounter:
    return TiktokenCounter("cl100k_base")


ESTIMATE = EstimateCounter()


@given(texts)
def test_counters_never_raise_on_any_text(real: TiktokenCounter, text: str) -> None:
    for counter in (real, ESTIMATE):
        assert (counter.count(text) > 0) == bool(text)
        assert counter.count(text) == counter.count(text)


@given(st.lists(st.sampled_from(MARKERS), min_size=1, max_size=5), texts)
def test_special_markers_count_as_the_text_that_they_are(
    real: TiktokenCounter, markers: list[str], text: str
) -> None:
    assert count([*markers, text], real) >= 3 * len(markers)


#: Text at whose seams something may go wrong: blanks of every kind, line breaks, digits, marks, letters.
seams = st.lists(
    st.sampled_from(
        [
            *"\t\n\r\x0b\x1c\x85\u3000\xa0\u2028",
            " ",
            "  ",
            "\r\n",
            "7",
            "2024",
            "a",
            "The",
            "ABC",
            "camelCase",
        ]
    )
    | st.sampled_from(["_", "!!", "(", "é", "déjà", "漢", "あり", "カ", "한", "привет", "😀"]),
    max_size=12,
).map("".join)


def by_the_plain_rule(text: str) -> int:
    """Take match after match of the rule, through the whole text."""
    hundredths = 0
    for match in rule._RULE_PATTERN.finditer(text):
        assert match.lastindex is not None
        _, base, included, further = rule._RULE[match.lastindex - 1]
        hundredths += base + further * max(0, len(match.group()) - included)
    return max(1, -(-hundredths // 100)) if text else 0


@given(seams | texts)
def test_the_estimate_counts_in_pieces_what_the_rule_counts_as_a_whole(text: str) -> None:
    assert ESTIMATE.count(text) == by_the_plain_rule(text)


def test_pieces_cut_elsewhere_would_not_count_as_the_whole() -> None:
    text = "a  b\t c 7"
    assert sum(map(by_the_plain_rule, text)) != by_the_plain_rule(text) == ESTIMATE.count(text)


def test_the_estimate_remembers_no_more_chunks_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "_CHUNKS_KEPT", 2)
    known = rule._Chunks()
    for chunk in ("one", "two", "three", "long" * 100):
        assert known[chunk] == rule._hundredths(chunk)
    assert list(known) == ["three"]


@given(json_like)
def test_count_never_raises_on_any_data(real: TiktokenCounter, value: object) -> None:
    tokens = count(value, real)
    assert isinstance(tokens, int)
    assert tokens >= 0
    assert tokens == count(value, real)


@given(st.lists(json_like, max_size=4))
def test_a_list_counts_the_sum_of_its_items(real: TiktokenCounter, values: list[object]) -> None:
    assert count(values, real) == sum(count(value, real) for value in values) == count(tuple(values), real)


@given(json_like, st.text(max_size=8))
def test_nesting_never_counts_less(real: TiktokenCounter, value: object, key: str) -> None:
    inside = count(value, real)
    assert count([value], real) == count([[value]], real) == inside
    assert count({key: value}, real) >= inside
    assert count({"role": "user", "content": value}, real) >= inside
    assert count([value, value], real) == 2 * inside


@given(st.dictionaries(st.text(min_size=1, max_size=6), st.text(min_size=1, max_size=20), max_size=5))
def test_a_mapping_counts_its_keys_and_values(real: TiktokenCounter, record: dict[str, str]) -> None:
    plain = {f"_{key}": value for key, value in record.items()}
    assert count(plain, real) == sum(real.count(key) + real.count(value) for key, value in plain.items())


@given(replies)
def test_readers_never_raise_and_never_state_a_negative_number(reply: object) -> None:
    usage = read_usage(reply)
    stream = StreamUsage()
    for chunk in (reply, reply, {"usage": reply}, {"response": reply, "type": "AIMessageChunk"}):
        stream.add(chunk)
    for stated in (usage, stream.usage):
        if stated is not None:
            assert stated.tokens is not None
            assert stated.tokens >= 0
    assert isinstance(text_of(reply), str)
    assert isinstance(reply_text(reply), str | None)
    assert count(reply, ESTIMATE) >= 0


@given(some_number, some_number, some_number, some_number, some_number)
def test_cached_tokens_never_add_to_the_input_that_includes_them(
    prompt: Any, completion: Any, read: Any, write: Any, total: Any
) -> None:
    record = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": write},
    }
    usage = read_usage({"usage": record})
    if type(prompt) is int and 0 <= prompt <= 300:
        assert usage is not None
        assert usage.all_input == prompt
        with_total = read_usage({"usage": {**record, "total_tokens": total}})
        assert with_total is not None
        assert with_total.tokens is not None
        assert usage.tokens is not None
        assert with_total.tokens >= usage.tokens
        if type(total) is int and usage.tokens <= total <= 300:
            assert with_total.tokens == total


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 50)), min_size=1, max_size=8))
def test_usage_so_far_ends_at_the_largest_that_was_stated(stated: list[tuple[int, int]]) -> None:
    stream = StreamUsage()
    for prompt, completion in stated:
        stream.add({"usage": {"prompt_tokens": prompt, "completion_tokens": completion}})
    assert stream.usage == Usage(
        input_tokens=max(prompt for prompt, _ in stated), output_tokens=max(output for _, output in stated)
    )


@given(st.integers(1, 500), st.lists(st.integers(0, 50), max_size=8))
def test_langchain_deltas_add_up(first: int, outputs: list[int]) -> None:
    stream = StreamUsage()
    for index, output in enumerate([0, *outputs]):
        usage = {"input_tokens": 0 if index else first, "output_tokens": output}
        stream.add({"type": "AIMessageChunk", "content": "", "usage_metadata": usage})
    assert stream.usage == Usage(input_tokens=first, output_tokens=sum(outputs))


@given(st.text(max_size=60), st.dictionaries(st.text(max_size=5), st.integers(), max_size=3))
def test_a_streamed_reply_has_the_text_of_the_whole_one(text: str, arguments: dict[str, int]) -> None:
    call = {"name": "look", "arguments": json.dumps(arguments)}
    deltas = [{"content": letter} for letter in text]
    deltas.append({"tool_calls": [{"index": 0, "function": call}]})  # type: ignore[dict-item]
    streamed = "".join(text_of({"choices": [{"delta": delta}]}) for delta in deltas)
    message = {"role": "assistant", "content": text, "tool_calls": [{"type": "function", "function": call}]}
    assert streamed == reply_text({"choices": [{"message": message}]})
