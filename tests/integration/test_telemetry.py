"""Telemetry with the real SDK, in memory: each call once, the books' own numbers, and no word of a prompt."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import tbc
from tbc.clock import ManualClock
from tbc.labels import OTHER
from tbc.service.executors import Executor
from tbc.tokens import EstimateCounter
from tests.service_client import client_of, make_service

PRICES = {"house": {"input_per_million": 10, "output_per_million": 100}}
SECRET = "the prompt says sk-secret-0815"
REPLY = {
    "content": "an answer that nobody may see",
    "usage": {
        "prompt_tokens": 90,
        "completion_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 4},
    },
}
#: 100 tokens of `REPLY` at `PRICES`: cached tokens cost what the rest of the input does.
COST = 90 * 10_000 + 10 * 100_000


class Seen:
    """What a program's SDK has seen."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    def watch(self, manager: Any, **how: Any) -> tbc.telemetry.Instrumentation:
        return tbc.telemetry.instrument(manager, self.tracers, self.meters, **how)

    @property
    def spans(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        metrics = [m for r in data.resource_metrics for scope in r.scope_metrics for m in scope.metrics]
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]

    def total(self, name: str, **labels: object) -> float:
        wanted = {key.replace("__", "."): value for key, value in labels.items()}
        return sum(
            getattr(point, "value", None) or getattr(point, "sum", 0)
            for point in self.points(name)
            if wanted.items() <= point.attributes.items()
        )

    def everything(self) -> str:
        """Return all that was written, as text."""
        self_said = [f"{span.name} {span.to_json()}" for span in self.spans]
        data = self.reader.get_metrics_data()
        return "\n".join([*self_said, "" if data is None else data.to_json()])


@pytest.fixture
def seen() -> Iterator[Seen]:
    each = Seen()
    yield each
    each.tracers.shutdown()
    each.meters.shutdown()


def make_manager(**how: Any) -> tbc.BudgetManager:
    manager = tbc.BudgetManager(counter=EstimateCounter(), prices=PRICES, **how)
    manager.register_agent("writer", priority=9, max_tokens=10_000)
    return manager


def answer(prompt: str, *, model: str = "house", max_tokens: int = 500) -> dict[str, Any]:
    return REPLY


# -- one span for one call ---------------------------------------------------------------------------------


def test_a_governed_call_is_one_inference_span_with_what_was_booked(seen: Seen):
    manager = make_manager(max_usd="5")
    seen.watch(manager)
    manager.govern("writer", cap_kwarg="max_tokens")(answer)(SECRET, model="house", max_tokens=300)
    (span,) = seen.spans
    assert (span.name, span.kind, span.status.status_code) == (
        "chat house",
        trace.SpanKind.CLIENT,
        trace.StatusCode.UNSET,
    )
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "unknown",
        "gen_ai.request.model": "house",
        "gen_ai.request.max_tokens": 300,
        "gen_ai.agent.name": "writer",
        "gen_ai.usage.input_tokens": 90,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 64,
        "gen_ai.usage.reasoning.output_tokens": 4,
        "tbc.operation": "answer",
        "tbc.decision": "fits_with_loans",
        "tbc.hold.state": "settled",
        "tbc.tokens": 100,
        "tbc.estimated": False,
        "tbc.cost.nano_usd": COST,
        "tbc.cost.estimated": False,
        "tbc.cost.source": "local",
    }
    assert manager.report("usd")["writer"]["consumed"] == COST


def test_the_metrics_of_a_call_have_the_names_of_either_release(seen: Seen):
    manager, older = make_manager(), make_manager()
    seen.watch(manager, provider="acme")
    seen.watch(older, provider=lambda model: f"{model} & co", conventions="1.41")
    for each in (manager, older):
        each.govern("writer")(answer)("x", model="house")
    of = {"gen_ai__operation__name": "chat", "gen_ai__request__model": "house"}
    new = {**of, "gen_ai__provider__name": "acme"}
    assert seen.total("gen_ai.client.inference.usage.input_tokens", **new) == 90
    assert seen.total("gen_ai.client.inference.usage.output_tokens", **new) == 10
    assert seen.total("gen_ai.client.inference.usage.cache_read.input_tokens", **new) == 64
    assert seen.total("gen_ai.client.inference.usage.reasoning.output_tokens", **new) == 4
    old = {**of, "gen_ai__provider__name": "house & co"}
    assert seen.total("gen_ai.client.token.usage", gen_ai__token__type="input", **old) == 90
    assert seen.total("gen_ai.client.token.usage", gen_ai__token__type="output", **old) == 10
    (point,) = seen.points("gen_ai.client.inference.duration")
    (older_point,) = seen.points("gen_ai.client.operation.duration")
    spans = {span.attributes["gen_ai.provider.name"]: span for span in seen.spans}
    assert (point.count, older_point.count) == (1, 1)
    assert point.sum == (spans["acme"].end_time - spans["acme"].start_time) / 1e9
    assert point.explicit_bounds[:3] == (0.01, 0.02, 0.04) and point.explicit_bounds[-1] == 81.92
    (tokens, _) = seen.points("gen_ai.client.token.usage")
    assert tokens.explicit_bounds[:3] == (1, 4, 16)


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-4o-mini", "openai"),
        ("claude-sonnet-4-5", "anthropic"),
        ("mistral-large-latest", "mistral_ai"),
        ("no-such-model", "unknown"),
    ],
)
def test_the_provider_is_whom_the_price_data_names(seen: Seen, model: str, provider: str):
    manager = make_manager()
    seen.watch(manager)
    manager.govern("writer")(answer)("x", model=model)
    assert seen.spans[0].attributes["gen_ai.provider.name"] == provider


def test_coroutines_tasks_and_streams_are_one_span_each(seen: Seen):
    manager = make_manager()
    seen.watch(manager)
    govern = manager.govern("writer")
    chunks = [{"choices": [{"delta": {"content": "a"}}]}, {"choices": [], "usage": REPLY["usage"]}]

    @govern
    async def coroutine(prompt: str, model: str) -> Any:
        await asyncio.sleep(0)
        return REPLY

    @govern
    def task(prompt: str, model: str) -> Any:
        async def work() -> Any:
            return REPLY

        return asyncio.ensure_future(work())

    @govern
    def generator(prompt: str, model: str) -> Iterator[Any]:
        yield from chunks

    @govern
    def stream(prompt: str, model: str) -> Any:
        return iter(chunks)

    @govern
    async def async_generator(prompt: str, model: str) -> Any:
        for chunk in chunks:
            await asyncio.sleep(0)
            yield chunk

    async def main() -> None:
        await coroutine("x", model="m")
        await task("x", model="m")
        await asyncio.sleep(0)
        assert [list(generator("x", model="m")), list(stream("x", model="m"))] == [chunks, chunks]
        assert [chunk async for chunk in async_generator("x", model="m")] == chunks

    asyncio.run(main())
    told = {span.attributes["tbc.operation"]: span for span in seen.spans}
    assert len(seen.spans) == 5
    assert sorted(told) == ["async_generator", "coroutine", "generator", "stream", "task"]
    assert {span.attributes["gen_ai.usage.output_tokens"] for span in seen.spans} == {10}
    streamed = {name for name, span in told.items() if span.attributes.get("gen_ai.request.stream")}
    assert streamed == {"generator", "stream", "async_generator"}
    (first,) = seen.points("gen_ai.client.inference.time_to_first_chunk")
    assert first.count == 3
    assert seen.total("gen_ai.client.inference.usage.output_tokens") == 50


def test_spans_inside_of_a_call_are_its_children_and_no_others_are(seen: Seen):
    manager = make_manager()
    seen.watch(manager)
    tracer = seen.tracers.get_tracer("of the program")

    @manager.govern("writer")
    def stream(prompt: str, model: str) -> Iterator[str]:
        for number in range(2):
            tracer.start_span(f"in {number}").end()
            yield "word "

    with tracer.start_as_current_span("around"):
        for _ in stream("x", model="house"):
            tracer.start_span("between").end()
    spans = {span.name: span for span in seen.spans}
    around, call = (spans[name].context.span_id for name in ("around", "chat house"))
    assert spans["chat house"].parent.span_id == around
    assert [spans[name].parent.span_id for name in ("in 0", "in 1")] == [call, call]
    assert spans["between"].parent.span_id == around


def test_what_nobody_stated_is_no_usage(seen: Seen):
    manager = make_manager(max_usd="5")
    seen.watch(manager)
    manager.govern("writer")(lambda prompt, model: "seven words that somebody has to count")(
        "x", model="house"
    )
    (span,) = seen.spans
    assert not [name for name in span.attributes if name.startswith("gen_ai.usage")]
    assert span.attributes["tbc.estimated"] is True and span.attributes["tbc.cost.estimated"] is True
    assert span.attributes["tbc.tokens"] == manager.report()["writer"]["consumed"] > 0
    points = seen.points("gen_ai.client.inference.usage.input_tokens")
    assert [(point.value, point.attributes["gen_ai.token.modality"]) for point in points] == [(0, "unknown")]


def test_an_unknown_price_is_said_and_is_no_cost(seen: Seen):
    manager = make_manager(max_usd="5", unknown_price="track")
    seen.watch(manager)
    manager.govern("writer")(answer)("x", model="nobody-knows")
    (span,) = seen.spans
    assert span.attributes["tbc.cost.unpriced"] is True
    assert "tbc.cost.nano_usd" not in span.attributes


def test_a_call_under_a_hold_of_ones_own_is_a_span_where_it_is_asked_for(seen: Seen):
    manager = make_manager(max_usd="5")
    telemetry = seen.watch(manager)
    with manager.hold("writer", 500, model="house", operation=SECRET) as hold:
        hold.settle(100)
    assert seen.spans == []
    with telemetry.inference(hold := manager.hold("writer", 500, model="house", operation=SECRET)) as call:
        call.usage = tbc.usage.read_usage(REPLY)
        hold.settle(usage=call.usage)
    failing = manager.hold("writer", 500, model="house")
    with pytest.raises(ProviderDownError), telemetry.inference(failing), failing:
        assert tbc.current_hold() is failing
        raise ProviderDownError
    told, failed = seen.spans
    assert (
        told.name,
        told.attributes["gen_ai.usage.input_tokens"],
        told.attributes["tbc.cost.nano_usd"],
    ) == (
        "chat house",
        90,
        COST,
    )
    assert (failed.attributes["error.type"], failed.attributes["tbc.hold.state"]) == (
        f"{__name__}.ProviderDownError",
        "settled",
    )
    assert "secret" not in seen.everything()


# -- what goes wrong ---------------------------------------------------------------------------------------


class ProviderDownError(Exception):
    pass


def test_an_error_is_its_type_and_never_its_words(seen: Seen):
    manager = make_manager()
    seen.watch(manager)

    @manager.govern("writer", not_sent=ConnectionRefusedError)
    def call(prompt: str, error: type[Exception], model: str = "house") -> None:
        raise error(prompt)

    for error in (ProviderDownError, ConnectionRefusedError, tbc.NotSent):
        with pytest.raises(error):
            call(SECRET, error)
    kinds = [(span.attributes["error.type"], span.attributes["tbc.hold.state"]) for span in seen.spans]
    assert kinds == [
        (f"{__name__}.ProviderDownError", "settled"),
        ("ConnectionRefusedError", "voided"),
        ("tbc.errors.NotSent", "voided"),
    ]
    assert {span.status.status_code for span in seen.spans} == {trace.StatusCode.ERROR}
    assert {span.status.description for span in seen.spans} == {None}
    assert [span.events for span in seen.spans] == [(), (), ()]
    assert Counter(p.attributes["error.type"] for p in seen.points("gen_ai.client.inference.duration")) == {
        kind: 1 for kind, _ in kinds
    }


def test_a_cancelled_call_is_an_error_that_was_booked(seen: Seen):
    manager = make_manager()
    seen.watch(manager)

    @manager.govern("writer")
    async def call(prompt: str, model: str = "house") -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.ensure_future(call("x"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    (span,) = seen.spans
    assert span.attributes["error.type"].endswith("CancelledError")
    assert span.attributes["tbc.hold.state"] == "settled"


def test_streams_left_half_way_end_their_span_once_and_without_waiting(seen: Seen):
    manager = make_manager()
    telemetry = seen.watch(manager)

    @manager.govern("writer")
    def stream(prompt: str, model: str = "house") -> Iterator[str]:
        yield from ("some ", "more ", "words")

    closed, dropped = stream("x"), stream("x")
    next(closed)
    next(dropped)
    closed.close()
    del dropped
    gc.collect()
    assert seen.spans == []  # a finalizer may be anywhere: it does not export
    telemetry.flush()
    telemetry.flush()
    assert [span.attributes["tbc.estimated"] for span in seen.spans] == [True, True]
    assert "error.type" not in seen.spans[0].attributes
    next(never := stream("x"))
    del never
    gc.collect()
    manager.hold("writer", 1).void()  # the next event does it, too
    assert len(seen.spans) == 3


def test_a_coroutine_that_is_dropped_ends_its_span_without_waiting(seen: Seen):
    manager = make_manager()
    telemetry = seen.watch(manager)

    @manager.govern("writer")
    async def call(prompt: str, model: str = "house") -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        coroutine = call("x")
        coroutine.send(None)
        del coroutine
        gc.collect()

    asyncio.run(main())
    assert seen.spans == []
    telemetry.flush()
    assert [span.attributes["tbc.hold.state"] for span in seen.spans] == ["settled"]


def test_a_refusal_is_an_event_and_a_count_and_no_call(seen: Seen):
    manager = make_manager()
    seen.watch(manager)
    tracer = seen.tracers.get_tracer("of the program")
    ask = manager.govern("writer", max_output_tokens=20_000, min_output_tokens=20_000)(answer)
    with tracer.start_as_current_span("around"), pytest.raises(tbc.BudgetExceededError) as caught:
        ask(SECRET)
    (span,) = seen.spans
    (event,) = span.events
    assert (span.name, event.name) == ("around", "tbc.refused")
    decision = caught.value.decision
    assert dict(event.attributes) == {
        "gen_ai.agent.name": "writer",
        "tbc.reason": "exhausted",
        "tbc.axis": "tokens",
        "tbc.requested": decision.requested,
        "tbc.available": 10_000,
    }
    assert seen.total("tbc.refusals", tbc__reason="exhausted", tbc__mode="enforce") == 1
    assert seen.total("tbc.unmet.tokens", tbc__priority="9") == decision.requested - 10_000 > 0
    assert seen.points("gen_ai.client.inference.duration") == seen.points("tbc.holds") == []


def test_a_refusal_for_an_unknown_price_is_counted_too(seen: Seen):
    manager = make_manager(max_usd="5")
    seen.watch(manager)
    with pytest.raises(tbc.UnknownPriceError):
        manager.govern("writer")(answer)("x", model="nobody-knows")
    assert seen.total("tbc.refusals", tbc__reason="unknown_price") == 1
    assert seen.spans == []


def test_audit_mode_makes_the_call_and_says_what_would_have_been(seen: Seen):
    manager = make_manager(mode="audit")
    seen.watch(manager)
    manager.govern("writer", max_output_tokens=20_000)(answer)("x")
    (span,) = seen.spans
    assert span.attributes["tbc.decision"] == "exhausted"
    assert seen.total("tbc.refusals", tbc__mode="audit") == 1


def test_telemetry_that_fails_breaks_no_call(seen: Seen, monkeypatch, caplog):
    manager = make_manager()
    seen.watch(manager)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no disk")

    ask = manager.govern("writer")(answer)
    for target in ("start_span", "end"):
        owner = type(seen.tracers.get_tracer("x")) if target == "start_span" else _span_class(seen)
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "tbc"):
            patch.setattr(owner, target, broken)
            assert ask("x") == REPLY
    assert manager.report()["writer"]["consumed"] == 200
    assert [record.getMessage() for record in caplog.records] == ["telemetry failed"] * 2


def _span_class(seen: Seen) -> type:
    return type(seen.tracers.get_tracer("x").start_span("x"))


# -- once --------------------------------------------------------------------------------------------------


def test_a_manager_is_instrumented_once(seen: Seen):
    manager = make_manager()
    telemetry = seen.watch(manager)
    assert seen.watch(manager) is telemetry
    manager.govern("writer")(answer)("x")
    assert len(seen.spans) == 1 and seen.total("tbc.settled.tokens") == 100


def test_two_managers_around_one_call_tell_one_inference(seen: Seen):
    own, team = make_manager(max_usd="5"), make_manager(max_usd="5")
    seen.watch(own, pool="own")
    seen.watch(team, pool="team")
    team.govern("writer")(own.govern("writer")(answer))("x", model="house")
    inner, outer = seen.spans
    assert (inner.name, outer.name) == ("chat house", "invoke_agent writer")
    assert inner.parent.span_id == outer.context.span_id
    assert (inner.attributes["tbc.pool"], outer.attributes["tbc.pool"]) == ("own", "team")
    assert not [name for name in outer.attributes if "usage" in name or "cost" in name]
    assert seen.total("gen_ai.client.inference.usage.input_tokens") == 90
    assert [point.count for point in seen.points("gen_ai.client.inference.duration")] == [1]
    for pool in ("own", "team"):  # each has its books
        assert seen.total("tbc.settled.nano_usd", tbc__pool=pool) == COST


def test_an_agent_that_makes_governed_calls_is_no_inference(seen: Seen):
    manager = make_manager()
    manager.register_agent("planner", max_tokens=10_000)
    seen.watch(manager)
    ask = manager.govern("writer")(answer)

    @manager.govern("planner")
    def plan(goal: str) -> str:
        return "".join(ask(goal)["content"] for _ in range(3))

    plan("x")
    assert Counter(span.name for span in seen.spans) == {"chat": 3, "invoke_agent planner": 1}
    assert seen.total("gen_ai.client.inference.usage.input_tokens") == 3 * 90


def test_a_repeated_key_counts_once(seen: Seen):
    manager = make_manager()
    seen.watch(manager)
    for _ in range(3):
        hold = manager.hold("writer", 500, key="k")
        hold.settle(400)
        manager.record_usage("writer", 50, key="u")
    assert seen.total("tbc.holds") == 1
    assert seen.total("tbc.holds.ended", tbc__hold__state="settled") == 1
    assert seen.total("tbc.settled.tokens") == 450


def test_threads_are_told_once_each(seen: Seen):
    manager = make_manager()
    manager.register_agent("crowd", max_tokens=100_000)
    seen.watch(manager)
    ask = manager.govern("crowd", max_output_tokens=50)(answer)
    threads = [threading.Thread(target=lambda: [ask("x") for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen.spans) == 160
    assert seen.total("tbc.holds") == seen.total("tbc.holds.ended") == 160
    assert seen.total("tbc.settled.tokens") == manager.report()["crowd"]["consumed"] == 16_000


@pytest.mark.parametrize("by_hand", [False, True])
def test_calls_in_threads_with_the_current_hold_are_in_the_call_around_them(seen: Seen, by_hand: bool):
    manager = make_manager(max_usd="5")
    manager.register_agent("planner", max_tokens=10_000)
    seen.watch(manager)
    ask = manager.govern("writer", max_output_tokens=50)(answer)

    def fan_out() -> None:
        work = tbc.with_current_hold(lambda: ask("x", model="house"))
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @manager.govern("planner", max_output_tokens=50)
    def plan(goal: str, model: str = "house") -> dict[str, Any]:
        if by_hand:
            with manager.hold("planner", 10, usd="0"):
                fan_out()
        else:
            fan_out()
        return REPLY

    plan("x", model="house")
    assert Counter(span.name for span in seen.spans) == {"chat house": 3, "invoke_agent planner": 1}
    *calls, agent = seen.spans
    assert "tbc.cost.nano_usd" not in agent.attributes
    assert [call.parent.span_id for call in calls] == [agent.context.span_id] * 3
    ask("x", model="house")
    assert seen.spans[-1].parent is None


def test_who_shares_a_store_counts_its_own(seen: Seen, tmp_path):
    url, other = f"sqlite:///{tmp_path}/books.db", Seen()
    with (
        tbc.BudgetManager(store=url, counter=EstimateCounter()) as one,
        tbc.BudgetManager(store=url, counter=EstimateCounter()) as two,
    ):
        one.register_agent("writer", max_tokens=10_000)
        two.register_agent("writer", max_tokens=10_000)
        seen.watch(one)
        other.watch(two)
        for each in (one, two, one, two, two, one, two):
            each.govern("writer", max_output_tokens=50)(answer)("x")
        one.hold("writer", 7).settle(7)
        assert one.report()["writer"]["consumed"] == 707
    assert (seen.total("tbc.settled.tokens"), other.total("tbc.settled.tokens")) == (307, 400)
    assert (seen.total("tbc.holds"), other.total("tbc.holds")) == (4, 4)
    assert (len(seen.spans), len(other.spans)) == (3, 4)
    assert sum(point.count for point in other.points("gen_ai.client.inference.duration")) == 4


def test_calls_that_wait_for_a_store_keep_their_place_in_the_trace(seen: Seen, tmp_path):
    tracer = seen.tracers.get_tracer("of the program")
    with tbc.BudgetManager(store=f"sqlite:///{tmp_path}/books.db", counter=EstimateCounter()) as manager:
        manager.register_agent("writer", max_tokens=10_000)
        seen.watch(manager)

        @manager.govern("writer", max_output_tokens=50)
        async def call(number: int) -> Any:
            with tracer.start_as_current_span(f"in {number}"):
                await asyncio.sleep(0)
            return REPLY

        async def around(number: int) -> None:
            with tracer.start_as_current_span(f"around {number}"):
                await call(number)

        async def main() -> None:
            await asyncio.gather(*map(around, range(20)))

        asyncio.run(main())
        assert manager.report()["writer"]["consumed"] == 2_000
    spans = {span.context.span_id: span for span in seen.spans}
    assert Counter(span.name.partition(" ")[0] for span in seen.spans) == {"in": 20, "chat": 20, "around": 20}
    for span in seen.spans:
        if span.name.startswith("in "):
            call_span = spans[span.parent.span_id]
            assert call_span.name == "chat"
            assert spans[call_span.parent.span_id].name == span.name.replace("in", "around")
    assert seen.total("tbc.settled.tokens") == 2_000


def test_calls_from_a_lease_have_spans(seen: Seen, tmp_path):
    url = f"sqlite:///{tmp_path}/books.db"
    lease = tbc.Lease(share=0.5, seconds=30)
    with tbc.BudgetManager(store=url, lease=lease, counter=EstimateCounter()) as manager:
        manager.register_agent("writer", max_tokens=10_000)
        seen.watch(manager)
        for _ in range(3):
            manager.govern("writer", max_output_tokens=50)(answer)("x")
        assert manager.report()["writer"]["consumed"] == 300
    assert [span.attributes["tbc.tokens"] for span in seen.spans] == [100, 100, 100]
    assert seen.total("tbc.settled.tokens") == 300


def test_after_remove_nothing_is_told(seen: Seen):
    manager = make_manager()
    telemetry = seen.watch(manager)
    ask = manager.govern("writer")(answer)
    ask("x")
    telemetry.remove()
    telemetry.remove()
    ask("x")
    assert len(seen.spans) == 1 and seen.total("tbc.settled.tokens") == 100
    seen.watch(manager)
    ask("x")
    assert len(seen.spans) == 2


def test_it_is_off_by_default(seen: Seen):
    manager = make_manager()
    manager.govern("writer")(answer)("x")
    assert manager.call_watcher is None and seen.spans == []


# -- budgets -----------------------------------------------------------------------------------------------


def test_budget_metrics_sum_to_the_books(seen: Seen):
    clock = ManualClock(100.0)
    manager = tbc.BudgetManager(clock=clock, max_tokens=5_000, max_usd="5", max_calls=100, prices=PRICES)
    manager.register_agent("reader", priority=1, max_tokens=2_000, min_reserve=0)
    manager.register_agent("writer", priority=9, max_tokens=1_000)
    seen.watch(manager)
    manager.hold("writer", 1_500, usd="0.5").settle(1_400, usd="0.25")
    manager.hold("reader", 100, usd=0).void()
    manager.hold("reader", 100, usd=0, expires_s=1)
    clock.advance(2)
    manager.record_usage("reader", 10, usd="0.01", note="tool")
    for state, count in {"settled": 1, "voided": 1, "expired": 1}.items():
        assert seen.total("tbc.holds.ended", tbc__hold__state=state) == count
    assert seen.total("tbc.holds") == 3
    for axis, name in {"tokens": "tokens", "usd": "nano_usd", "calls": "calls"}.items():
        spent = sum(account["consumed"] for account in manager.report(axis=axis).values())
        assert seen.total(f"tbc.settled.{name}") == spent > 0
    moved = sum(
        e.allocated for e in manager.ledger.entries() if e.kind in ("loan", "draw") and e.axis == "tokens"
    )
    kinds = {point.attributes["tbc.transfer.kind"] for point in seen.points("tbc.transferred.tokens")}
    assert kinds == {"draw", "return"}
    assert seen.total("tbc.transferred.tokens", tbc__transfer__kind="draw") == moved == 500
    assert seen.total("tbc.transferred.tokens", tbc__transfer__kind="return") == 100
    assert all(isinstance(point.value, int) for point in seen.points("tbc.settled.nano_usd"))


def test_labels_are_few_and_nothing_is_lost(seen: Seen):
    manager = tbc.BudgetManager(counter=EstimateCounter())
    seen.watch(manager)
    for number in range(130):
        manager.register_agent(f"agent-{number}", max_tokens=1_000)
        manager.govern(f"agent-{number}", max_output_tokens=50)(answer)("x", model=f"model-{number}")
    agents = {point.attributes["gen_ai.agent.name"] for point in seen.points("tbc.settled.tokens")}
    inputs = seen.points("gen_ai.client.inference.usage.input_tokens")
    models = {point.attributes["gen_ai.request.model"] for point in inputs}
    assert len(agents) == len(models) == 101 and OTHER in agents & models
    assert seen.total("tbc.settled.tokens") == 13_000


def test_no_word_of_a_prompt_a_reply_a_key_or_an_error_leaves(seen: Seen):
    manager = make_manager()
    seen.watch(manager)
    manager.govern("writer")(answer)(SECRET)
    manager.govern("writer")(answer)(SECRET, model=SECRET)  # a prompt in the wrong place
    manager.hold("writer", 5, key="key-zulu", operation="op-zulu").settle(5)
    manager.record_usage("writer", 5, "note-zulu", key="key-yankee")
    with pytest.raises(ZeroDivisionError):
        manager.govern("writer")(lambda prompt: 1 / 0)(SECRET)
    with pytest.raises(tbc.BudgetExceededError):
        manager.govern("writer", max_output_tokens=90_000, min_output_tokens=90_000)(answer)(SECRET)
    text = seen.everything()
    assert "writer" in text and "chat (other)" in text
    assert [word for word in ("secret", "answer that", "zulu", "yankee", "division") if word in text] == []


# -- the service -------------------------------------------------------------------------------------------

#: A program with an SDK that serves until it is asked for the end, and prints what it would have exported.
SERVER = """
import json, os, signal, sys, threading, urllib.request
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tbc.cli import run
import builtins

reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(MeterProvider([reader]))

def post(where, path, body):
    head = {"Content-Type": "application/json", "Idempotency-Key": "the-key"}
    request = urllib.request.Request(where + path, json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)

def client(where):
    try:
        post(where, "/v1/agents", {"agent_name": "writer", "max_tokens": 1000})
        for _ in range(3):  # under one key
            hold = post(where, "/v1/holds", {"agent_name": "writer", "tokens": 100, "operation": "draft"})
        for _ in range(2):
            post(where, f"/v1/holds/{hold['hold_id']}/settle", {"tokens": 70})
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

say = print
def started(text, **how):
    where = text.rpartition(" ")[2]
    if where.startswith("http://127"):
        threading.Thread(target=client, args=(where,)).start()

builtins.print = started
try:
    run(["serve", "--port", "0", *sys.argv[1:]])
except BaseException:
    pass
data = reader.get_metrics_data()
found = {} if data is None else {
    metric.name: [[point.value, dict(point.attributes)] for point in metric.data.data_points]
    for of in data.resource_metrics for scope in of.scope_metrics for metric in scope.metrics
}
say(json.dumps({"metrics": found, "spans": len(spans.get_finished_spans())}))
"""


@pytest.mark.parametrize("how", [["--otel"], "environment", []], ids=["option", "environment", "off"])
def test_the_service_tells_of_budgets_and_leaves_inferences_to_its_clients(how: Any):
    arguments = [] if how == "environment" else how
    environment = {**os.environ, **({"TBC_OTEL": "1"} if how == "environment" else {})}
    done = subprocess.run(
        [sys.executable, "-c", SERVER, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=True,
    )
    said = json.loads(done.stdout)
    assert said["spans"] == 0
    if not how:
        assert said["metrics"] == {}
        return
    of = {"tbc.pool": "default", "gen_ai.agent.name": "writer"}
    assert said["metrics"] == {
        "tbc.holds": [[1, of]],
        "tbc.holds.ended": [[1, {**of, "tbc.hold.state": "settled"}]],
        "tbc.settled.tokens": [[70, {**of, "tbc.estimated": False}]],
    }


@pytest.mark.parametrize("calls_models", [True, False])
def test_a_run_of_the_service_has_spans_where_it_calls_models_itself(seen: Seen, calls_models: bool):
    manager = tbc.BudgetManager(max_usd="5")
    seen.watch(manager)
    tracer = seen.tracers.get_tracer("of the program")

    def model(step: Any) -> dict[str, Any]:
        tracer.start_span(f"in {step.name}").end()
        return {"output": SECRET, "usage": {"input_tokens": 300, "output_tokens": 20}}

    service = make_service(lambda name: manager, executor=Executor("m:f", model) if calls_models else None)

    async def main() -> dict[str, Any]:
        async with client_of(service) as client:
            answer = await client.post("/agent/run", json={"goal": SECRET, "budget": 1})
            return answer.json()

    done = asyncio.run(main())
    assert done["status"] == "completed" and len(done["steps"]) == 3
    calls = [span for span in seen.spans if span.name.startswith("chat ")]
    assert seen.total("tbc.settled.nano_usd") == manager.report("usd")["runs"]["consumed"] > 0
    if not calls_models:
        assert seen.spans == []  # nobody was asked: it is simulated
        return
    costs = [
        (span.attributes["tbc.cost.nano_usd"], span.attributes["gen_ai.request.model"]) for span in calls
    ]
    assert costs == [(step["cost"], step["model"]) for step in done["steps"]]
    inside = [span.parent.span_id for span in seen.spans if span.name.startswith("in ")]
    assert inside == [span.context.span_id for span in calls]
    assert "secret" not in seen.everything()


def test_the_service_says_that_nothing_is_exported_without_an_sdk():
    code = "from tbc.cli.serve import _checked; print(_checked(True), _checked(False))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "True False\n"
    assert done.stderr.startswith("--otel: no SDK is set up") and done.stderr.count("\n") == 1


def test_without_the_package_it_says_what_to_install():
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import tbc; tbc.BudgetManager().register_agent('a')\n"
        "try: tbc.telemetry\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert 'pip install "tbc[otel]"' in done.stdout
