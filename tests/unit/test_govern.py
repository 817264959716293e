"""govern(): sizes, caps, usage, and every way a call can end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import inspect

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.govern import OutputHistory


class WordCounter:
    """One token a word: numbers that can be checked by eye."""

    name = "words"
    estimated = False

    def count(self, text: str, /) -> int:
        return len(text.split())


@pytest.fixture
def manager() -> tbc.BudgetManager:
    manager = tbc.BudgetManager(max_tokens=1000, counter=WordCounter(), clock=ManualClock())
    manager.register_agent("a", priority=5)
    return manager


def consumed(manager: tbc.BudgetManager) -> int:
    assert manager.ledger.open_holds == {}, "no hold is left open"
    return manager.report()["a"]["consumed"]


def last_spending(manager: tbc.BudgetManager) -> tbc.Entry:
    return manager.ledger.history("a")[-1]


def reply(prompt: int, completion: int, text: str = "one two three") -> dict:
    return {
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


class TestSizes:
    def held(self, manager: tbc.BudgetManager, text: str = "four words of input", **terms) -> int:
        sizes = []

        @manager.govern("a", **terms)
        def call(text):
            sizes.append(tbc.current_hold().tokens)
            return reply(4, 10)

        call(text)
        return sizes[0]

    def test_the_managers_default_output(self, manager):
        assert self.held(manager) == 4 + 512

    def test_max_output_tokens(self, manager):
        assert self.held(manager, max_output_tokens=30) == 34

    def test_the_p90_of_the_history_from_five_calls_on(self, manager):
        history = manager.output_history("a")
        for tokens in (1, 2, 3, 4):
            history.add(tokens)
        assert self.held(manager) == 4 + 512  # and this call adds an output of 10
        assert self.held(manager) == 4 + 10

    def test_the_calls_own_cap_wins_and_is_passed_on(self, manager):
        seen = []

        @manager.govern("a", cap_kwarg="max_tokens", max_output_tokens=99)
        def call(text, max_tokens=None):
            seen.append((max_tokens, tbc.current_hold().tokens))
            return reply(1, 1)

        call("word", max_tokens=7)
        call("word", 8)
        call("word")
        assert seen == [(7, 8), (8, 9), (99, 100)]

    def test_a_cap_of_none_is_no_cap(self, manager):
        @manager.govern("a", cap_kwarg="max_tokens")
        def call(text, max_tokens=None):
            return max_tokens

        assert call("word", max_tokens=None) == 512

    def test_the_hold_is_clamped_to_what_there_is_and_the_cap_with_it(self, manager):
        manager.record_usage("a", 900)

        @manager.govern("a", cap_kwarg="max_tokens")
        def call(text, max_tokens):
            return max_tokens

        assert call("four words of input", max_tokens=5000) == 96

    def test_what_the_market_can_lend_counts(self):
        manager = tbc.BudgetManager(counter=WordCounter())
        manager.register_agent("idle", priority=1, max_tokens=100, min_reserve=40)
        manager.register_agent("a", priority=5, max_tokens=10)

        @manager.govern("a", cap_kwarg="max_tokens")
        def call(text, max_tokens):
            return max_tokens

        assert call("two words", max_tokens=5000) == 68

    def test_a_call_whose_input_does_not_fit_is_refused_before_it_runs(self, manager):
        manager.record_usage("a", 998)
        calls = []
        with pytest.raises(tbc.BudgetExceededError) as caught:
            manager.govern("a")(calls.append)("three words here")
        assert calls == []
        assert caught.value.decision.status is tbc.Status.EXHAUSTED
        assert consumed(manager) == 998

    def test_with_a_cap_kwarg_at_least_one_token_of_output_must_fit(self, manager):
        manager.record_usage("a", 997)
        with pytest.raises(tbc.BudgetExceededError):
            manager.govern("a", cap_kwarg="cap")(lambda text, cap: text)("three words here")
        assert manager.govern("a")(lambda text: "")("three words here") == ""

    def test_audit_clamps_nothing(self):
        manager = tbc.BudgetManager(max_tokens=10, mode="audit", counter=WordCounter())
        manager.register_agent("a")
        call = manager.govern("a", cap_kwarg="cap")(lambda text, cap: cap)
        assert call("word", cap=500) == 500

    def test_a_cap_kwarg_that_the_function_does_not_take_is_refused_at_decoration(self, manager):
        with pytest.raises(tbc.InvalidContractError, match="max_tokens"):
            manager.govern("a", cap_kwarg="max_tokens")(lambda text: text)

    @pytest.mark.parametrize("cap", [-1, 1.5, True, "many"])
    def test_a_cap_that_is_no_amount_is_refused_before_the_call(self, manager, cap):
        with pytest.raises(tbc.InvalidAmountError, match="cap"):
            manager.govern("a", cap_kwarg="cap")(lambda cap: cap)(cap=cap)
        assert consumed(manager) == 0

    @pytest.mark.parametrize(
        "terms", [{"on_overrun": "hide"}, {"on_error": "ignore"}, {"max_output_tokens": -1}]
    )
    def test_bad_terms_are_refused(self, manager, terms):
        with pytest.raises(tbc.TBCError):
            manager.govern("a", **terms)


class TestOutputHistory:
    def test_p90_is_the_nearest_rank_of_the_last_hundred(self):
        history = OutputHistory()
        assert [history.add(1) or history.p90() for _ in range(5)] == [None] * 4 + [1]
        for tokens in range(1, 101):
            history.add(tokens)
        assert history.p90() == 90
        history.add(1000)
        assert history.p90() == 91

    def test_an_output_cut_off_at_its_cap_counts_double_so_that_caps_do_not_only_shrink(self, manager):
        call = manager.govern("a", cap_kwarg="cap")(lambda cap: reply(0, min(cap, 40)))
        for tokens in (10, 10, 10, 10, 10):
            manager.output_history("a").add(tokens)
        caps = []
        for _ in range(12):
            call()
            caps.append(manager.output_history("a").p90())
        assert caps[0] == 20  # the first output, cut off at 10
        assert caps[-1] >= 40


class TestUsage:
    def test_the_replys_usage_is_booked_exactly(self, manager):
        manager.govern("a")(lambda text: reply(21, 34))("hello")
        assert (consumed(manager), last_spending(manager).estimated) == (55, False)

    def test_usage_fn_wins_as_a_number_or_a_usage(self, manager):
        from tbc.usage import Usage

        manager.govern("a", usage_fn=lambda result: 9)(lambda: reply(21, 34))()
        manager.govern("a", usage_fn=lambda result: Usage(input_tokens=5, output_tokens=6))(lambda: "x")()
        assert consumed(manager) == 20

    def test_a_usage_fn_that_does_not_know_falls_back_to_counting(self, manager):
        manager.govern("a", usage_fn=lambda result: None)(lambda text: "three word answer")("two words")
        assert (consumed(manager), last_spending(manager).estimated) == (5, True)

    def test_messages_dicts_and_nested_data_count(self, manager):
        @manager.govern("a")
        def chat(messages):
            return {"answer": "nested words here"}

        chat([{"role": "user", "content": "one two three four five six seven"}])
        assert consumed(manager) >= 7 + 3

    def test_an_opaque_result_books_the_whole_hold_as_estimated(self, manager):
        manager.govern("a", max_output_tokens=30)(lambda text: object())("one two")
        assert (consumed(manager), last_spending(manager).estimated) == (32, True)

    def test_what_was_recorded_beats_a_count(self, manager):
        @manager.govern("a")
        def call():
            tbc.current_hold().record(77)
            return "some words"

        call()
        assert (consumed(manager), last_spending(manager).estimated) == (77, False)

    def test_a_hold_settled_inside_stays_settled(self, manager):
        @manager.govern("a")
        def call():
            tbc.current_hold().settle(8)
            return "many many many words"

        call()
        assert consumed(manager) == 8

    @pytest.mark.parametrize("wrong", [-5, 1.5, True, float("nan"), "7"])
    def test_a_usage_fn_that_lies_is_told_and_the_result_is_kept(self, manager, wrong):
        call = manager.govern("a", usage_fn=lambda result: wrong)(lambda text: "three word answer")
        with pytest.raises(tbc.InvalidAmountError) as caught:
            call("two words")
        assert caught.value.result == "three word answer"
        assert (consumed(manager), last_spending(manager).estimated) == (5, True)

    def test_a_confidence_fn_that_raises_books_and_keeps_the_result(self, manager):
        def broken(result):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as caught:
            manager.govern("a", broken)(lambda: reply(1, 2))()
        assert caught.value.result["usage"]["total_tokens"] == 3
        assert consumed(manager) == 3

    def test_confidence_of_a_dict_result_is_read(self, manager):
        call = manager.govern("a", lambda result: result["confidence"])(lambda: {"confidence": 0.25})
        call()
        assert manager.contracts["a"].last_confidence == 0.25


class TestOverrun:
    def call(self, manager, **terms):
        manager.record_usage("a", 900)
        return manager.govern("a", **terms)(lambda text: reply(50, 500))

    def test_the_error_after_a_paid_call_carries_the_result(self, manager):
        with pytest.raises(tbc.OverrunError, match="450 is owed") as caught:
            self.call(manager)("hi")
        assert caught.value.result == reply(50, 500)
        assert caught.value.settlement.overrun == 450
        assert consumed(manager) == 1450

    def test_it_can_be_recorded_only(self, manager):
        assert self.call(manager, on_overrun="record")("hi") == reply(50, 500)
        assert consumed(manager) == 1450


class TestErrors:
    def test_an_exception_books_the_input_as_estimated(self, manager):
        @manager.govern("a")
        def call(text):
            raise ValueError(text)

        with pytest.raises(ValueError, match="three words here"):
            call("three words here")
        assert (consumed(manager), last_spending(manager).estimated) == (3, True)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
    def test_so_does_what_is_no_exception(self, manager, error):
        def call(text):
            raise error

        with pytest.raises(error):
            manager.govern("a")(call)("two words")
        assert consumed(manager) == 2

    def test_not_sent_voids(self, manager):
        def call(text):
            raise tbc.NotSent

        with pytest.raises(tbc.NotSent):
            manager.govern("a")(call)("two words")
        assert consumed(manager) == 0

    def test_listed_exceptions_void(self, manager):
        def call(text):
            raise ConnectionRefusedError

        for not_sent in ((ConnectionRefusedError,), ConnectionRefusedError):
            with pytest.raises(ConnectionRefusedError):
                manager.govern("a", not_sent=not_sent)(call)("two words")
        assert consumed(manager) == 0

    def test_on_error_void_restores_the_old_rule(self, manager):
        def call(text):
            raise ValueError

        with pytest.raises(ValueError):
            manager.govern("a", on_error="void")(call)("two words")
        assert consumed(manager) == 0


class TestCoroutines:
    def test_a_coroutine_is_awaited_and_settled(self, manager):
        @manager.govern("a")
        async def call(text):
            await asyncio.sleep(0)
            assert tbc.current_hold().agent_name == "a"
            return reply(3, 4)

        assert inspect.iscoroutinefunction(call)
        assert asyncio.run(call("hi")) == reply(3, 4)
        assert consumed(manager) == 7

    def test_a_plain_function_that_returns_a_coroutine_is_settled_when_it_ends(self, manager):
        async def inner(text):
            await asyncio.sleep(0)
            return reply(3, 4)

        assert asyncio.run(manager.govern("a")(lambda text: inner(text))("hi")) == reply(3, 4)
        assert consumed(manager) == 7

    def test_cancelling_books_the_input(self, manager):
        started = asyncio.Event()

        @manager.govern("a")
        async def call(text):
            started.set()
            await asyncio.Event().wait()

        async def main():
            task = asyncio.create_task(call("two words"))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert (consumed(manager), last_spending(manager).estimated) == (2, True)

    def test_a_partial_of_a_coroutine_function_is_one(self, manager):
        async def call(text, n):
            return reply(n, n)

        governed = manager.govern("a")(functools.partial(call, n=2))
        asyncio.run(governed("x"))
        assert consumed(manager) == 4

    def test_ahold_awaits_and_enters(self, manager):
        async def main():
            hold = await manager.ahold("a", 10)
            await hold.aextend(5, expires_s=50)
            assert (await hold.asettle(12)).tokens == 12
            async with manager.ahold("a", 10) as hold:
                assert tbc.current_hold() is hold
                await hold.avoid()
            with pytest.raises(tbc.BudgetExceededError):
                await manager.ahold("a", 5000)

        asyncio.run(main())
        assert consumed(manager) == 12


class TestStreams:
    def chunks(self, usage: dict | None = None):
        for word in ("one ", "two ", "three "):
            yield {"choices": [{"delta": {"content": word}}], "usage": None}
        if usage:
            yield {"choices": [], "usage": usage}

    def test_the_final_cumulative_usage_is_booked(self, manager):
        usage = {"prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42}
        stream = manager.govern("a")(lambda text: self.chunks(usage))("hi")
        assert len(list(stream)) == 4
        assert (consumed(manager), last_spending(manager).estimated) == (42, False)

    def test_without_usage_chunks_are_counted(self, manager):
        list(manager.govern("a")(lambda text: self.chunks())("two words"))
        assert (consumed(manager), last_spending(manager).estimated) == (5, True)

    def test_a_generator_function_stays_one_and_holds_when_it_starts(self, manager):
        @manager.govern("a")
        def stream(n):
            for _ in range(n):
                assert tbc.current_hold().agent_name == "a"
                yield "word "
            return "done"

        assert inspect.isgeneratorfunction(stream)
        unstarted = stream(3)
        assert manager.ledger.open_holds == {}
        del unstarted
        generator = stream(3)
        with pytest.raises(StopIteration) as stop:
            while True:
                next(generator)
        assert stop.value.value == "done"
        assert consumed(manager) == 1 + 3  # the argument 3 counts as a word

    def test_the_confidence_of_a_generator_is_that_of_what_it_returns(self, manager):
        def stream(value):
            yield "word "
            return value

        governed = manager.govern("a", lambda result: result["sure"])(stream)
        list(governed(None))
        assert manager.contracts["a"].last_confidence is None
        list(governed({"sure": 0.5}))
        assert manager.contracts["a"].last_confidence == 0.5

    def test_an_overrun_at_the_end_of_a_stream_is_raised_with_what_it_returned(self, manager):
        manager.record_usage("a", 990)

        @manager.govern("a")
        def stream():
            yield "word " * 50
            return "all of it"

        with pytest.raises(tbc.OverrunError) as caught:
            list(stream())
        assert caught.value.result == "all of it"
        assert consumed(manager) == 1040

    def test_values_and_exceptions_reach_a_governed_generator(self, manager):
        @manager.govern("a")
        def echo():
            got = None
            while True:
                try:
                    got = yield f"got {got}"
                except ValueError:
                    got = "error"

        generator = echo()
        assert next(generator) == "got None"
        assert generator.send("x") == "got x"
        assert generator.throw(ValueError) == "got error"
        generator.close()
        assert consumed(manager) == 6

    @pytest.mark.parametrize("leave", ["close", "drop", "collect"])
    def test_a_half_consumed_stream_books_what_was_streamed(self, manager, leave):
        @manager.govern("a")
        def stream(text):
            while True:
                yield "word "

        generator = stream("two words")
        next(generator), next(generator), next(generator)
        if leave == "close":
            generator.close()
        elif leave == "collect":
            cycle = [generator]
            cycle.append(cycle)
            del cycle
        del generator
        gc.collect()
        assert (consumed(manager), last_spending(manager).estimated) == (5, True)

    def test_a_generator_that_is_never_read_books_the_input(self, manager):
        stream = manager.govern("a")(lambda text: (each for each in ["x"]))("two words")
        del stream
        gc.collect()
        assert (consumed(manager), last_spending(manager).estimated) == (2, True)

    def test_a_stream_object_that_is_read_by_ways_of_its_own_books_the_whole_hold(self, manager):
        class Sent:
            text_stream = ("one", "two", "three")

            def __iter__(self):
                return self

            def __next__(self):
                raise StopIteration

        stream = manager.govern("a")(lambda text: Sent())("two words")
        assert list(stream.text_stream) == ["one", "two", "three"]
        del stream
        gc.collect()
        assert (consumed(manager), last_spending(manager).estimated) == (514, True)

    def test_text_after_the_stated_output_is_counted(self, manager):
        @manager.govern("a")
        def stream(text):
            yield {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}
            for _ in range(30):
                yield {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "word "}}

        list(stream("two words"))
        assert (consumed(manager), last_spending(manager).estimated) == (55, True)

    @pytest.mark.parametrize("end", ["close", "raise"])
    def test_the_stated_input_of_a_stream_left_half_way_is_booked(self, manager, end):
        @manager.govern("a")
        def stream(text):
            yield {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}
            yield {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "two words"}}
            raise ConnectionError

        chunks = stream("two words")
        next(chunks), next(chunks)
        if end == "close":
            chunks.close()
        else:
            with pytest.raises(ConnectionError):
                next(chunks)
        assert (consumed(manager), last_spending(manager).estimated) == (27, True)

    def test_an_exception_in_mid_stream_books_what_was_streamed(self, manager):
        @manager.govern("a")
        def stream(text):
            yield "one two"
            raise ConnectionError

        with pytest.raises(ConnectionError):
            list(stream("three words here"))
        assert consumed(manager) == 5

    def test_async_generators(self, manager):
        @manager.govern("a")
        async def stream(text, n):
            for _ in range(n):
                assert tbc.current_hold().agent_name == "a"
                yield "word "

        async def main():
            assert [chunk async for chunk in stream("hi", n=2)] == ["word ", "word "]
            half = stream("hi", n=50)
            await anext(half)
            await half.aclose()

        assert inspect.isasyncgenfunction(stream)
        asyncio.run(main())
        assert consumed(manager) == (2 + 2) + (2 + 1)

    def test_an_async_generator_takes_values_and_exceptions(self, manager):
        @manager.govern("a")
        async def echo():
            got = None
            while True:
                try:
                    got = yield f"got {got}"
                except ValueError:
                    got = "error"

        async def main():
            generator = echo()
            assert await anext(generator) == "got None"
            assert await generator.asend("x") == "got x"
            assert await generator.athrow(ValueError) == "got error"
            await generator.aclose()

        asyncio.run(main())
        assert consumed(manager) == 6

    def test_a_cancelled_async_stream_books_what_was_streamed(self, manager):
        @manager.govern("a")
        async def stream(text):
            yield "one two"
            await asyncio.Event().wait()

        async def main():
            async def consume():
                async for _ in stream("hi"):
                    reached.set()

            reached = asyncio.Event()
            task = asyncio.create_task(consume())
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert consumed(manager) == 3

    def test_a_provider_stream_keeps_its_own_attributes(self, manager):
        class Stream:
            response = "headers"
            closed = False

            def __init__(self):
                self.left = ["a b", "c"]

            def __iter__(self):
                return self

            def __next__(self):
                if not self.left:
                    raise StopIteration
                return self.left.pop(0)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.close()

            def close(self):
                self.closed = True

        inner = Stream()
        with manager.govern("a")(lambda: inner)() as stream:
            assert stream.response == "headers"
            assert next(stream) == "a b"
        assert inner.closed
        assert consumed(manager) == 2

    def test_a_long_stream_keeps_its_hold_alive(self, manager):
        clock = manager._clock

        @manager.govern("a", expires_s=60)
        def stream():
            for _ in range(20):
                clock.advance(31)
                yield "word "

        list(stream())
        assert last_spending(manager).kind is not tbc.Kind.LATE_SETTLE
        assert consumed(manager) == 20


class TestContext:
    def test_current_hold_reaches_threads_with_a_copied_context(self, manager):
        @manager.govern("a")
        def call():
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                context = contextvars.copy_context()
                assert pool.submit(context.run, tbc.current_hold).result() is tbc.current_hold()
            return ""

        call()

    def test_a_plain_pool_is_told_so_and_the_helper_carries_it(self, manager):
        @manager.govern("a")
        def call():
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                with pytest.raises(tbc.NoCurrentHoldError):
                    pool.submit(tbc.current_hold).result()
                work = tbc.with_current_hold(lambda n: tbc.current_hold().record(n))
                list(pool.map(work, [1, 2, 3, 4]))
            return ""

        call()
        assert consumed(manager) == 10

    def test_nested_calls_see_their_own_hold(self, manager):
        manager.register_agent("b")

        @manager.govern("b")
        def inner():
            return tbc.current_hold().agent_name

        @manager.govern("a")
        def outer():
            return [tbc.current_hold().agent_name, inner(), tbc.current_hold().agent_name]

        assert outer() == ["a", "b", "a"]


def test_a_governed_callable_keeps_its_name_and_doc(manager):
    @manager.govern("a")
    def summarise(text: str) -> str:
        """Say it shorter."""
        return text

    assert (summarise.__name__, summarise.__doc__) == ("summarise", "Say it shorter.")
    assert str(inspect.signature(summarise)) == "(text: 'str') -> 'str'"
    summarise("x")
    assert last_spending(manager).note == "summarise"


def test_methods_are_governed_without_counting_self(manager):
    class Client:
        @manager.govern("a")
        def ask(self, text):
            return "one two"

    Client().ask("three words here")
    assert consumed(manager) == 5


def test_govern_of_a_closed_agent_is_refused(manager):
    governed = manager.govern("a")(lambda: "")
    manager.close_agent("a")
    with pytest.raises(tbc.AgentClosedError):
        manager.govern("a")
    with pytest.raises(tbc.AgentClosedError):
        governed()


class Unreadable:
    """A reply without usage or text."""


def test_replies_that_cannot_be_read_do_not_make_holds_grow():
    manager = tbc.BudgetManager(max_tokens=10**9)
    manager.register_agent("a")
    call = manager.govern("a")(Unreadable)
    for _ in range(20):
        call()
    assert {entry.tokens for entry in manager.ledger.history("a")} == {512}


def test_an_output_that_no_provider_cut_counts_once():
    manager = tbc.BudgetManager(max_tokens=10**9)
    manager.register_agent("a")
    call = manager.govern("a", usage_fn=lambda reply: 700)(lambda: "x")
    for _ in range(12):
        call()
    assert manager.output_history("a").p90() == 700


def test_a_stream_that_pauses_longer_than_its_hold_lives_is_settled_late():
    clock = tbc.clock.ManualClock()
    manager = tbc.BudgetManager(max_tokens=10**6, clock=clock)
    manager.register_agent("a")

    @manager.govern("a", expires_s=600)
    def stream():
        yield from ("one ", "two ", "three ")

    chunks = []
    for chunk in stream():
        chunks.append(chunk)
        clock.advance(700)
    assert chunks == ["one ", "two ", "three "]
    assert manager.accounts()[1].held == 0
    assert manager.accounts()[1].consumed > 0


@pytest.mark.parametrize("not_sent", [(1,), "x", (ValueError("x"),), 5, int])
def test_what_is_no_exception_type_proves_nothing(not_sent):
    manager = tbc.BudgetManager()
    manager.register_agent("a")
    with pytest.raises(tbc.InvalidContractError, match="exception types"):
        manager.govern("a", not_sent=not_sent)


def test_a_reply_that_answers_every_attribute_is_no_stream():
    class Permissive(dict):
        def __getattr__(self, name):
            return self.get(name)

    manager = tbc.BudgetManager(max_tokens=10**6)
    manager.register_agent("a")
    reply = Permissive(usage={"prompt_tokens": 100, "completion_tokens": 50})
    assert manager.govern("a")(lambda: reply)() is reply
    assert manager.ledger.consumed("a") == 150
