"""Counters, the count of any value, and where vocabularies come from."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import io
import os
import socket
import subprocess
import sys
import threading
import types
import uuid
import warnings
from collections import OrderedDict, UserDict, deque
from pathlib import Path
from unittest.mock import MagicMock

import anthropic
import attrs
import numpy as np
import openai
import pydantic
import pytest
import tiktoken
import tiktoken.load
import tiktoken.registry
from anthropic.types import Message, TextBlock, ToolUseBlock
from google import genai
from google.genai import types as gemini
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from openai.types.chat import ChatCompletionMessage

from tbc import tokens
from tbc.errors import InvalidAmountError, VocabularyError
from tbc.tokens import (
    MEDIA_TOKENS,
    MESSAGE_TOKENS,
    EstimateCounter,
    EstimatedTokensWarning,
    TiktokenCounter,
    count,
    default_counter,
    load,
    local_counter,
)
from tests.vocabulary import cached_name, contents

SAMPLES = Path(__file__).parent.parent / "samples"
#: Kinds that the estimate is promised for; the others are measured with a wider limit.
PROMISED = ("english", "code", "chinese", "japanese", "korean")


class Letters:
    """A counter that anyone can check by hand: one token for each character."""

    name = "letters"
    estimated = False

    def count(self, text: str, /) -> int:
        return len(text)


LETTERS = Letters()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Fail whatever opens a connection, and list what tried."""
    tried: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        tried.append(args)
        raise AssertionError(f"the network was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(tiktoken.load, "read_file", refuse)
    return tried


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    return tmp_path / "empty"


@pytest.fixture
def o200k() -> TiktokenCounter:
    return TiktokenCounter("o200k_base")


def samples(directory: str) -> list[Path]:
    return sorted((SAMPLES / directory).glob("*.txt"))


# --- the import ---------------------------------------------------------------------------------------------


def test_import_loads_neither_tiktoken_nor_numpy_nor_asyncio() -> None:
    code = "import sys, tbc.tokens, tbc.usage; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["tiktoken", "numpy", "asyncio", "requests", "openai", "pydantic"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the real counter ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", samples("tuned") + samples("held_out"), ids=lambda path: path.stem)
@pytest.mark.parametrize("encoding", ["o200k_base", "cl100k_base"])
def test_tiktoken_counter_counts_what_tiktoken_counts(encoding: str, path: Path) -> None:
    text = path.read_text("utf-8")
    assert TiktokenCounter(encoding).count(text) == len(tiktoken.get_encoding(encoding).encode(text))


def test_counter_wraps_an_encoding_made_in_memory() -> None:
    encoding = tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    counter = TiktokenCounter(encoding)
    assert (counter.name, counter.estimated, counter.count("né")) == ("tiktoken:bytes", False, 3)
    assert "tiktoken:bytes" in repr(counter)


@pytest.mark.parametrize("marker", ["<|endoftext|>", "<|endofprompt|>", "<|fim_prefix|>", "<|im_start|>"])
def test_special_markers_count_as_text(o200k: TiktokenCounter, marker: str) -> None:
    assert o200k.count(marker) > 1
    assert o200k.count(f"say {marker} twice: {marker}") > 2 * 2


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude00", "\x00", "\ufeff\u200d", "\U0010ffff"])
def test_odd_text_counts_and_never_raises(text: str) -> None:
    assert 1 <= TiktokenCounter("cl100k_base").count(text) <= 8
    assert 1 <= EstimateCounter().count(text) <= 8


def test_text_is_cut_at_spaces_and_line_breaks_without_a_difference(o200k: TiktokenCounter) -> None:
    encoding = tiktoken.get_encoding("o200k_base")
    for stem in ("english-harbour", "english-guide", "code-python", "code-json-sql", "korean-market"):
        text = (SAMPLES / "tuned" / f"{stem}.txt").read_text("utf-8") * 12
        assert len(text) > 4_096 * 4
        assert o200k.count(text) == len(encoding.encode(text)), stem


def test_text_without_spaces_is_counted_within_one_in_a_thousand(o200k: TiktokenCounter) -> None:
    text = (SAMPLES / "tuned" / "chinese-tea.txt").read_text("utf-8").replace("\n", "") * 20
    exact = len(tiktoken.get_encoding("o200k_base").encode(text))
    assert o200k.count(text) == pytest.approx(exact, rel=0.001)


@pytest.mark.parametrize("unit", [" ", "\n", "a", "^", "漢", "0", "A9"])
def test_long_runs_count_piece_by_piece(o200k: TiktokenCounter, unit: str) -> None:
    part = o200k.count(unit * 4_096)
    assert o200k.count(unit * 4_096 * 20) == pytest.approx(part * 20, rel=0.01)


def test_a_million_spaces_count(o200k: TiktokenCounter) -> None:
    """The regular expression of tiktoken gives up on them with a panic."""
    assert o200k.count(" " * 1_000_000) == pytest.approx(1_000_000 / 128, rel=0.01)


# --- the estimate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", ["tuned", "held_out"])
def test_estimate_is_within_25_percent_on_prose_code_and_cjk(o200k: TiktokenCounter, directory: str) -> None:
    errors = {}
    for path in samples(directory):
        if path.stem.startswith(PROMISED):
            text = path.read_text("utf-8")
            assert len(text) >= 1_500, path.stem
            errors[path.stem] = EstimateCounter().count(text) / o200k.count(text) - 1
    assert len(errors) >= 8
    assert {stem: error for stem, error in errors.items() if abs(error) > 0.25} == {}


@pytest.mark.parametrize("path", samples("tuned") + samples("held_out"), ids=lambda path: path.stem)
def test_estimate_is_sane_on_other_scripts_digits_and_emoji(o200k: TiktokenCounter, path: Path) -> None:
    text = path.read_text("utf-8")
    assert EstimateCounter().count(text) == pytest.approx(o200k.count(text), rel=0.25)


def test_estimate_of_nothing_is_zero_and_of_anything_at_least_one() -> None:
    estimate = EstimateCounter()
    assert (estimate.name, estimate.estimated) == ("estimate", True)
    assert [estimate.count(text) for text in ("", " ", "a", ".", "あ")] == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokens", 1),
        ("budget contracts", 3),
        ("snake_case", 3),
        ("camelCaseWord", 3),
        ("12345", 2),
        ("漢" * 100, 84),
    ],
)
def test_estimate_follows_its_stated_rule(text: str, expected: int) -> None:
    assert EstimateCounter().count(text) == expected


# --- any value ----------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 10


@pytest.mark.parametrize(
    ("value", "letters"),
    [
        (None, 0),
        ("", 0),
        ("four", 4),
        (b"four", 4),
        (bytearray(b"four"), 4),
        (memoryview(b"four"), 4),
        (b"\xff\xfeab", 4),
        (True, 4),
        (-12.5, 5),
        (float("nan"), 3),
        (1 + 2j, 6),
        (decimal.Decimal("1.10"), 4),
        (np.int64(1234), 4),
        (datetime.date(2024, 5, 1), 10),
        (datetime.timedelta(hours=1), 7),
        (Path("/tmp/x"), 6),
        (uuid.UUID(int=0), 36),
        (Colour.RED, 3),
        (Level.HIGH, 2),
        (["ab", ["c", ("d", {"e"})], frozenset({"fg"})], 7),
        (deque(["ab", "c"]), 3),
        ({"city": "Rome", "days": 3}, 13),
        ({"city": None, None: "x", 7: [None]}, 2),
        (OrderedDict(a=1), 2),
        (UserDict({"a": {"b": "c"}}), 3),
        (types.MappingProxyType({"a": "b"}), 2),
        (types.SimpleNamespace(a="b"), 2),
    ],
)
def test_values_count_by_their_text(value: object, letters: int) -> None:
    assert count(value, LETTERS) == letters


def test_number_of_more_digits_than_python_writes_counts_by_its_digits() -> None:
    assert count([10**5_000], LETTERS) == 5_001


@dataclasses.dataclass
class City:
    name: str
    days: int = 3
    note: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    name: str


@attrs.frozen
class Leg:
    start: str
    stops: list[Stop] = attrs.field(factory=list)


class Trip(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    title: str
    cities: list[object] = []

    @property
    def summary(self) -> str:
        raise AssertionError("a property was read")

    def model_dump(self, *_: object, **__: object) -> dict[str, object]:
        raise AssertionError("a method was called")


@pytest.mark.parametrize(
    ("record", "same"),
    [
        (City("Rome"), {"name": "Rome", "days": 3}),
        (Stop("Rome"), {"name": "Rome"}),
        (Leg("Rome", [Stop("Nice")]), {"start": "Rome", "stops": [{"name": "Nice"}]}),
        (
            Trip(title="South", cities=[City("Rome"), Leg("Rome")], extra_field="more"),
            {
                "title": "South",
                "cities": [{"name": "Rome", "days": 3}, {"start": "Rome", "stops": []}],
                "extra_field": "more",
            },
        ),
    ],
)
def test_records_count_like_the_mapping_of_their_fields(record: object, same: object) -> None:
    assert count(record, LETTERS) == count(same, LETTERS) > 0


def test_messages_count_as_in_the_published_rule(o200k: TiktokenCounter) -> None:
    """Three tokens for each message, and the tokens of the values of its fields."""
    messages = [
        {"role": "system", "content": "You are a guide to the harbours of the north."},
        {"role": "user", "content": "Which one freezes last?", "name": "marta"},
        {"role": "assistant", "content": "Bergen does not freeze at all."},
    ]
    published = sum(3 + sum(o200k.count(value) for value in message.values()) for message in messages)
    assert count(messages, o200k) == published


@pytest.mark.parametrize(
    ("message", "letters"),
    [
        ({"role": "user", "content": "four"}, MESSAGE_TOKENS + 4),
        ({"role": "user", "content": None, "tool_calls": []}, MESSAGE_TOKENS),
        ({"role": "user", "content": [{"type": "text", "text": "four"}]}, MESSAGE_TOKENS + 4),
        ({"role": "tool", "tool_call_id": "call_123", "content": "four"}, MESSAGE_TOKENS + 4),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "ab", "arguments": '{"c":1}'}}
                ],
            },
            MESSAGE_TOKENS + len("name") + 2 + len("arguments") + 7,
        ),
        (
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "toolu_1", "name": "ab", "input": {"c": "de"}}],
            },
            MESSAGE_TOKENS + 5,
        ),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "four"}]},
            MESSAGE_TOKENS + 4,
        ),
        (HumanMessage("four", id="an-id"), MESSAGE_TOKENS + 4),
        (ToolMessage("four", tool_call_id="call_1", artifact={"not": "sent"}), MESSAGE_TOKENS + 4),
        (AIMessageChunk("four"), MESSAGE_TOKENS + 4),
        (
            AIMessage(
                content=[{"type": "tool_use", "id": "1", "name": "ab", "input": {"c": "de"}}],
                tool_calls=[{"name": "ab", "args": {"c": "de"}, "id": "1"}],
                usage_metadata={"input_tokens": 5, "output_tokens": 5, "total_tokens": 10},
            ),
            MESSAGE_TOKENS + 5,
        ),
        (
            gemini.Content(role="user", parts=[gemini.Part(text="four")]),
            MESSAGE_TOKENS + len("text") + 4,
        ),
        ({"role": "engineer", "salary": "four"}, len("roleengineersalaryfour")),
        ({"role": "user", "content": [{"type": ["odd"]}]}, MESSAGE_TOKENS + len("typeodd")),
    ],
)
def test_message_counts_its_framing_and_its_text_but_not_its_ids(message: object, letters: int) -> None:
    assert count(message, LETTERS) == letters


@pytest.mark.parametrize(
    "reply",
    [
        ChatCompletionMessage(role="assistant", content="Bergen does not freeze."),
        Message(
            id="msg_1",
            type="message",
            role="assistant",
            model="claude",
            content=[
                TextBlock(type="text", text="Let me look."),
                ToolUseBlock(type="tool_use", id="t", name="look", input={"port": "Bergen"}),
            ],
            stop_reason="tool_use",
            usage={"input_tokens": 1, "output_tokens": 2},
        ),
        AIMessage(content="Bergen", tool_calls=[{"name": "look", "args": {"port": "Bergen"}, "id": "1"}]),
        gemini.Content(role="model", parts=[gemini.Part(text="Bergen")]),
    ],
    ids=lambda reply: type(reply).__module__,
)
def test_provider_message_counts_like_its_dump(reply: pydantic.BaseModel) -> None:
    assert count(reply, LETTERS) == count(reply.model_dump(), LETTERS) > MESSAGE_TOKENS


BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAUABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" * 30


@pytest.mark.parametrize(
    "media",
    [
        "data:image/png;base64,iVBORw0KGgo=",
        BASE64,
        BASE64.encode(),
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 400,
        {"type": "image_url", "image_url": {"url": "https://example.test/cat.png"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}},
        {"type": "input_image", "file_id": "file-123"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        {"type": "document", "source": {"type": "url", "url": "https://example.test/a.pdf"}},
        gemini.Part(inline_data=gemini.Blob(data=b"\x00\x01", mime_type="image/png")),
        gemini.Part(file_data=gemini.FileData(file_uri="gs://bucket/a.mp4", mime_type="video/mp4")),
    ],
)
def test_media_count_a_stated_constant_and_not_their_bytes(media: object, o200k: TiktokenCounter) -> None:
    assert MEDIA_TOKENS <= count(media, o200k) < MEDIA_TOKENS + 20


@pytest.mark.parametrize(
    "text",
    [
        "deadbeef0123456789" * 400,
        "word " * 1_000,
        "A" * 5_000,
        "a picture: data:image/png;base64,iVBORw0KGgo=",
        "data:text/plain,hello",
    ],
)
def test_text_that_only_looks_like_media_counts_as_text(text: str) -> None:
    assert count(text, LETTERS) == len(text)


def test_document_with_text_counts_its_text() -> None:
    text = "A long report. " * 500
    part = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}}
    assert len(text) <= count(part, LETTERS) < len(text) + 100
    listing = {"type": "file", "path": "a.py", "size": 12}
    assert count(listing, LETTERS) < 50


@tool
def look(port: str) -> str:
    """Look up a port."""
    return port


class Client:
    """An object with its secrets in plain attributes."""

    def __init__(self) -> None:
        self.api_key = "secret " * 100


@dataclasses.dataclass
class Session:
    key: str = "secret"

    def close(self) -> None:
        raise AssertionError("closed")


def numbers() -> object:
    yield "one"


@pytest.mark.parametrize(
    "thing",
    [
        openai.OpenAI(api_key="secret"),
        openai.AsyncOpenAI(api_key="secret"),
        anthropic.Anthropic(api_key="secret"),
        genai.Client(api_key="secret"),
        FakeListChatModel(responses=["a reply"]),
        look,
        Client(),
        Session(),
        City,
        threading.Lock(),
        threading.current_thread(),
        os,
        len,
        numbers,
        io.StringIO("text"),
        np.arange(10),
        range(10**12),
        MagicMock(),
        object(),
        iter(["one"]),
        ValueError("text"),
    ],
    ids=lambda thing: getattr(thing, "__name__", type(thing).__name__),
)
def test_things_that_are_no_data_count_zero(thing: object) -> None:
    assert count(thing, LETTERS) == 0
    assert count({"a": [thing, "bc"]}, LETTERS) == 3


def test_iterators_are_not_consumed() -> None:
    generator = (word for word in ["one", "two"])
    assert count([generator], LETTERS) == 0
    assert list(generator) == ["one", "two"]


class Broken(dict[str, str]):
    def items(self) -> object:  # type: ignore[override]
        raise RuntimeError("no items today")


class Proxy:
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("working outside of a context")


@pytest.mark.parametrize("kind", [Broken, Proxy])
def test_values_that_cannot_be_read_count_zero(kind: type) -> None:
    assert count(["ab", kind()], LETTERS) == 2


def test_cycles_end_and_shared_parts_count_each_time() -> None:
    shared = ["ab", "c"]
    loop: dict[str, object] = {"k": "v"}
    loop["self"] = [loop, loop]
    assert count([shared, shared], LETTERS) == 6
    assert count(loop, LETTERS) == len("kv") + len("self")


def test_doubling_nests_are_walked_once() -> None:
    value: object = "a"
    for _ in range(60):
        value = [value, value]
    assert count(value, LETTERS) == 2**60


def test_levels_below_the_hundredth_count_zero() -> None:
    def nested(levels: int) -> object:
        value: object = "a"
        for _ in range(levels):
            value = [value]
        return value

    assert [count(nested(levels), LETTERS) for levels in (1, 100, 101, 10_000)] == [1, 1, 0, 0]


def test_counter_errors_reach_the_caller() -> None:
    class Failing(Letters):
        def count(self, text: str, /) -> int:
            raise LookupError(text)

    with pytest.raises(LookupError, match="four"):
        count(["four"], Failing())


# --- where vocabularies come from -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (None, "tiktoken:o200k_base"),
        ("", "tiktoken:o200k_base"),
        ("gpt-4o-mini", "tiktoken:o200k_base"),
        ("gpt-4", "tiktoken:cl100k_base"),
        ("openai/gpt-4-turbo", "tiktoken:cl100k_base"),
        ("ft:gpt-3.5-turbo:acme", "tiktoken:cl100k_base"),
        ("gpt-oss-120b", "tiktoken:o200k_harmony"),
        ("claude-next", "tiktoken:o200k_base"),
        ("a/model/nobody/knows", "tiktoken:o200k_base"),
    ],
)
def test_counter_of_a_model(model: str | None, name: str, no_network: list[object]) -> None:
    counter = local_counter(model)
    assert counter is not None
    assert (counter.name, counter.estimated, no_network) == (name, False, [])


def test_vocabularies_are_read_once_per_directory_and_encoding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = local_counter("gpt-4")
    (tmp_path / cached_name("cl100k_base")).write_bytes(contents()["cl100k_base"])
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    second = local_counter("gpt-4")
    third = local_counter("gpt-3.5-turbo")
    assert first is not None
    assert second is not None
    assert third is not None
    assert second.encoding is not first.encoding
    assert third.encoding is second.encoding
    assert local_counter("gpt-4o") is None


def test_threads_get_the_same_vocabulary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / cached_name("cl100k_base")).write_bytes(contents()["cl100k_base"])
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    found: list[tiktoken.Encoding] = []

    def find() -> None:
        found.append(TiktokenCounter("cl100k_base").encoding)

    threads = [threading.Thread(target=find) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_local_counter_without_a_vocabulary_is_none_and_tries_no_network(
    empty_cache: Path, no_network: list[object]
) -> None:
    assert [local_counter(), local_counter("gpt-4"), local_counter("gpt2")] == [None, None, None]
    assert no_network == []
    assert not empty_cache.exists()


@pytest.mark.parametrize("directory", ["data-gym", "temporary", "none"])
def test_cache_is_looked_for_where_tiktoken_looks(
    directory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    cache = tmp_path / "data-gym-cache"
    cache.mkdir()
    (cache / cached_name("cl100k_base")).write_bytes(contents()["cl100k_base"])
    if directory == "data-gym":
        monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(cache))
    elif directory == "temporary":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    else:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert (local_counter("gpt-4") is None) == (directory == "none")


def test_damaged_vocabulary_is_not_used(empty_cache: Path, no_network: list[object]) -> None:
    empty_cache.mkdir()
    (empty_cache / cached_name("cl100k_base")).write_bytes(contents()["cl100k_base"][:-1])
    assert local_counter("gpt-4") is None
    assert no_network == []


def test_tiktoken_itself_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / cached_name("cl100k_base")).write_bytes(contents()["cl100k_base"])
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    before = dict(vars(tiktoken.load)), dict(tiktoken.registry.ENCODINGS)
    assert local_counter("gpt-4") is not None
    assert (dict(vars(tiktoken.load)), dict(tiktoken.registry.ENCODINGS)) == before


def test_vocabulary_that_is_missing_raises_with_the_fix(empty_cache: Path, no_network: list[object]) -> None:
    with pytest.raises(VocabularyError, match=r"tbc\.tokens\.load") as caught:
        TiktokenCounter("cl100k_base")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert no_network == []


def test_default_counter_is_the_real_one_where_there_is_one(no_network: list[object]) -> None:
    assert default_counter("gpt-4").name == "tiktoken:cl100k_base"
    assert no_network == []


def test_default_counter_estimates_and_warns_once(
    empty_cache: Path, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_warned", False)
    with pytest.warns(EstimatedTokensWarning, match=r"tbc\.tokens\.load\(\)") as caught:
        assert default_counter().estimated
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert default_counter("gpt-4").name == "estimate"
    assert no_network == []


def test_load_returns_what_the_cache_has_without_the_network(no_network: list[object]) -> None:
    assert load("gpt-4").encoding is TiktokenCounter("cl100k_base").encoding
    assert no_network == []


def test_load_fetches_and_fills_the_cache(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return contents()["cl100k_base"]

    monkeypatch.setattr(tiktoken.load, "read_file", fetch)
    counter = load("gpt-4")
    assert (counter.name, counter.count("four words of text"), len(asked)) == ("tiktoken:cl100k_base", 4, 1)
    assert (empty_cache / cached_name("cl100k_base")).exists()
    assert TiktokenCounter("cl100k_base").encoding is counter.encoding is load("gpt-4").encoding
    assert len(asked) == 1


@pytest.mark.parametrize("failure", [ConnectionError("closed"), None])
def test_load_that_fails_raises_with_cause_and_fix(
    failure: Exception | None, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(url: str) -> bytes:
        if failure is not None:
            raise failure
        return b"not a vocabulary"

    monkeypatch.setattr(tiktoken.load, "read_file", fetch)
    with pytest.raises(VocabularyError, match="TIKTOKEN_CACHE_DIR") as caught:
        load("gpt-4")
    assert caught.value.__cause__ is failure if failure else isinstance(caught.value.__cause__, ValueError)
    assert "within" not in str(caught.value)


def test_load_gives_up_in_time_and_shares_the_fetch_that_goes_on(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, asked = threading.Event(), []

    def hang(url: str) -> bytes:
        asked.append(url)
        assert answered.wait(60)
        return contents()["cl100k_base"]

    monkeypatch.setattr(tiktoken.load, "read_file", hang)
    for _ in range(2):
        with pytest.raises(VocabularyError, match=r"within 0\.01 s") as caught:
            load("gpt-4", timeout_s=0.01)
        assert isinstance(caught.value.__cause__, TimeoutError)
    assert local_counter("gpt-4") is None  # and does not wait for the fetch
    answered.set()
    assert load("gpt-4").name == "tiktoken:cl100k_base"
    assert len(asked) == 1


def test_load_may_be_tried_again_after_a_failure(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [OSError("closed"), contents()["cl100k_base"]]

    def fetch(url: str) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, bytes):
            return answer
        raise answer

    monkeypatch.setattr(tiktoken.load, "read_file", fetch)
    with pytest.raises(VocabularyError):
        load("gpt-4")
    assert load("gpt-4").name == "tiktoken:cl100k_base"


@pytest.mark.parametrize("timeout_s", [0, -1, True, float("nan"), float("inf"), "30", None])
def test_load_refuses_a_timeout_that_is_none(timeout_s: object) -> None:
    with pytest.raises(InvalidAmountError, match="timeout_s must be a finite number"):
        load(timeout_s=timeout_s)  # type: ignore[arg-type]
