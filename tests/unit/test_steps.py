"""Bounded steps: what is held before one, what is booked after it, what stops it, and what is told."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import pickle
import subprocess
import sys
import threading
from decimal import Decimal
from typing import Any

import anthropic.types as claude
import pytest
from openai.types import CompletionUsage

import tbc
from tbc.clock import ManualClock
from tbc.runs import tasks
from tbc.runs.step_records import RunState
from tbc.tokens import EstimateCounter

CENT = {"input": "0.00001", "output": "0.00001"}  # a cent for 1000 tokens
ONE = Decimal("0.01")


class Words:
    """A counter of words."""

    name = "words"
    estimated = False

    def __init__(self) -> None:
        self.calls = 0

    def count(self, text: str, /) -> int:
        self.calls += 1
        return len(text.split())


def reply(read: Any = 500, written: Any = 500, **more: Any) -> dict[str, Any]:
    return {"output": "...", "usage": {"input_tokens": read, "output_tokens": written, **more}}


def returns(result: Any) -> Any:
    return lambda: result


def run_of(**how: Any) -> tbc.Run:
    how = {"cost_model": CENT, "quiet": True, "counter": Words(), **how}
    return tbc.Run("task", **how)


def words(count: int) -> str:
    return " ".join(["word"] * count)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv("TBC_QUIET", raising=False)
    monkeypatch.delenv("TBC_STEP_LOG", raising=False)
    tasks._RUNS.clear()


# --- the limit -------------------------------------------------------------------------------------------


def test_the_block_comes_before_the_step_that_would_cross_the_limit():
    run, calls = run_of(max_cost="0.035"), []

    def call(max_output_tokens: int) -> dict[str, Any]:
        calls.append(max_output_tokens)
        return reply()

    for _ in range(3):
        assert run.execute(call, words(500), max_output_tokens=500) == reply()
    with pytest.raises(tbc.StepBlockedError) as refused:
        run.execute(call, words(500), max_output_tokens=500)
    assert calls == [500, 500, 500]
    assert (run.spent, run.limit, run.remaining) == (3 * ONE, Decimal("0.035"), Decimal("0.005"))
    error = refused.value
    assert isinstance(error, RuntimeError) and isinstance(error, tbc.BudgetExceededError)
    assert (error.step_number, error.requested, error.available) == (4, 10_000_000, 5_000_000)
    assert error.decision is not None and error.decision.status is tbc.Status.EXHAUSTED
    assert "Raise max_cost to $0.04," in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_spending_exactly_the_limit_is_allowed():
    run = run_of(max_cost="0.02")
    for _ in range(2):
        run.execute(returns(reply()), words(500), max_output_tokens=500)
    assert run.spent == run.limit and not run.blocked
    assert "The limit held: $0.00 of $0.02 not spent" in run.render_summary()


def test_without_a_limit_nothing_is_refused():
    run = run_of()
    for _ in range(20):
        run.execute(returns(reply(10**6, 10**6)))
    assert (run.spent, run.limit, run.remaining, run.blocked) == (Decimal(400), None, None, False)
    assert "No limit was set" in run.render_summary()


def test_zero_refuses_the_first_step_that_is_not_free():
    run = run_of(max_cost=0, cost_model=None, prices={"laptop": {"free": True}})
    run.execute(returns(reply()), words(5), model="laptop")
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply()), words(5), cost_model=CENT)
    assert run.spent == 0 and len(run.steps) == 1


def test_raising_the_limit_opens_a_blocked_task_again():
    run = run_of(max_cost="0.01")
    run.execute(returns(reply()), words(500), max_output_tokens=500)
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply()), words(500), max_output_tokens=500)
    assert run.blocked
    run.execute(returns(reply()), words(500), max_output_tokens=500, max_cost="0.02")
    assert not run.blocked and run.spent == run.limit == 2 * ONE


def test_lowering_the_limit_below_what_is_spent_blocks_from_then_on():
    run = run_of(max_cost="0.10")
    run.execute(returns(reply(2000, 500)), words(2000), max_output_tokens=500)
    with pytest.raises(tbc.StepBlockedError) as refused:
        run.execute(returns(reply()), words(1), max_output_tokens=1, max_cost="0.01")
    assert (refused.value.available, run.remaining) == (0, Decimal("-0.015"))
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply()), words(1), max_output_tokens=1)
    run.execute(returns(reply(1, 0)), words(1), max_output_tokens=1, max_cost="0.03")


def test_a_limit_lowered_during_a_step_also_binds_what_that_step_gives_back():
    run = run_of(max_cost="1")

    def lowered() -> dict[str, Any]:
        with pytest.raises(tbc.StepBlockedError):
            run.execute(returns(reply(1, 1)), words(1), max_output_tokens=1, max_cost="0.01")
        return reply(100, 500)

    run.execute(lowered, words(100), max_output_tokens=5000)
    assert run.remaining == Decimal("0.004")
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply(1, 1)), words(400), max_output_tokens=1)
    run.execute(returns(reply(399, 1)), words(399), max_output_tokens=1)
    assert run.spent == ONE


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1, "-0.5", True, "five", [], Decimal("NaN")])
def test_a_limit_is_checked_at_every_call(bad):
    with pytest.raises(tbc.InvalidAmountError):
        run_of(max_cost=bad)
    run, calls = run_of(max_cost=1), []
    with pytest.raises(tbc.InvalidAmountError, match="max_cost"):
        run.execute(lambda: calls.append(1), max_cost=bad)
    assert calls == [] and run.limit == 1


def test_a_limit_that_is_left_out_later_stays():
    tbc.execute(task_id="t", run_task=returns(reply()), cost_model=CENT, max_cost="0.02", quiet=True)
    with pytest.raises(tbc.StepBlockedError):
        tbc.execute(task_id="t", run_task=returns(reply(10**6, 1)), input_data=words(10**4), quiet=True)


def test_a_limit_may_come_after_a_time_of_observation():
    run = run_of()
    run.execute(returns(reply()))
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply()), max_cost="0.005")
    run.execute(returns(reply(1, 1)), "one", max_output_tokens=9, max_cost="0.02")
    assert run.spent == Decimal("0.01002")


# --- what is projected -----------------------------------------------------------------------------------


def test_the_real_input_is_counted_and_messages_count_as_messages():
    run = run_of(max_cost=1)
    run.execute(returns(reply(1, 1)), words(40), max_output_tokens=10)
    messages = [{"role": "user", "content": words(40)}]
    run.execute(returns(reply(1, 1)), messages, max_output_tokens=10)
    assert [step.projected_input for step in run.steps] == [40, 44]
    assert run.steps[0].projected == 50 * 10_000


def test_before_the_fifth_step_the_default_or_the_largest_output_is_projected_then_the_p90():
    run = run_of()
    for written in [10, 700, 20, 30, 40, 50, 60, 70, 80, 90, 1]:
        run.execute(returns(reply(0, written)))
    assert [step.projected_output for step in run.steps] == [512, 512, *[700] * 8, 90]


def test_what_earlier_steps_sent_beyond_their_count_is_added_to_the_projection():
    run = run_of()
    for _ in range(6):
        run.execute(returns(reply(3000, 1)), words(100))
    run.execute(returns(reply(200, 1)), words(1000))
    assert [step.projected_input for step in run.steps] == [100, *[3000] * 5, 3900]


def test_an_input_is_counted_once_even_if_it_comes_again():
    counter = Words()
    run, prompt = run_of(counter=counter), words(50)
    for _ in range(3):
        run.execute(returns(reply()), prompt)
    assert counter.calls == 1
    run.execute(returns(reply()), words(51))
    assert counter.calls == 2


def test_the_cap_is_handed_to_functions_that_take_it_and_to_no_others():
    run = run_of(max_output_tokens=70)
    got: list[Any] = []

    def by_name(*, max_output_tokens: int = 5) -> dict[str, Any]:
        got.append(max_output_tokens)
        return reply()

    def anything(**kwargs: Any) -> dict[str, Any]:
        got.append(kwargs)
        return reply()

    def by_position(max_output_tokens: int = 5, /) -> dict[str, Any]:
        got.append(max_output_tokens)
        return reply()

    run.execute(by_name)
    run.execute(by_name, max_output_tokens=80)
    run.execute(anything)
    run.execute(by_position)
    tbc.Run("other", quiet=True, cost_model=CENT).execute(by_name)
    assert got == [70, 80, {}, 5, 5]


@pytest.mark.parametrize("bad", [-1, 1.5, True, "10", float("nan")])
def test_a_cap_that_cannot_be_is_refused(bad):
    with pytest.raises(tbc.InvalidAmountError, match="max_output_tokens"):
        run_of().execute(returns(reply()), max_output_tokens=bad)


def test_without_a_cap_the_excess_is_booked_and_the_summary_says_so():
    run = run_of(max_cost="0.02")
    run.execute(returns(reply(500, 3000)), words(500))
    assert run.spent == Decimal("0.035") and run.remaining == Decimal("-0.015")
    summary = run.render_summary()
    assert "Status: Completed (limit exceeded)" in summary
    assert "The limit of $0.02 is exceeded by $0.0150; the total went above it with step 1" in summary
    assert "Step 1 was projected at $0.01012 and cost $0.0350" in summary
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply()), words(1))
    summary = run.render_summary()
    assert "exceeded by" in summary and "The limit held" not in summary


# --- prices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [str, float, Decimal])
def test_a_cost_model_is_dollars_per_token_exactly(write):
    run = run_of(cost_model={"input": write("0.0000025"), "output": write("0.00001")})
    run.execute(returns(reply(4100, 0)))
    assert run.spent == Decimal("0.01025")
    run.execute(returns(reply(3, 7)), cost_model={"input": 1, "output": 2})
    assert run.spent == Decimal("17.01025")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"input": 1}, "'output'"),
        ({}, "'input' and 'output'"),
        ({"input": -1, "output": 1}, "cost_model['input']"),
        ({"input": 1, "output": float("nan")}, "cost_model['output']"),
        ({"input": 1, "output": True}, "cost_model['output']"),
        ({"input": 1, "output": [1]}, "cost_model['output']"),
        ({"input": 1, "output": None}, "cost_model['output']"),
        ({"input": 1, "output": "1e-999999999"}, "cost_model['output']"),
        ({"input": 1, "output": "1e999999999"}, "cost_model['output']"),
        ({"input": 1, "output": 1, "outptu": 1}, "was 'output' meant?"),
        ("gpt-4o", "cost_model"),
        (0, "cost_model"),
    ],
)
def test_a_cost_model_that_cannot_be_is_refused_before_anything_runs(bad, says):
    run, calls = run_of(), []
    run.execute(returns(reply()), cost_model={"input": 1, "output": 1})
    with pytest.raises((tbc.InvalidPriceError, tbc.InvalidAmountError)) as error:
        run.execute(lambda: calls.append(1), cost_model=bad)
    assert says in str(error.value)
    assert calls == [] and len(run.steps) == 1


def test_a_model_is_priced_by_the_bundled_data_and_by_the_users_table():
    run = tbc.Run("t", max_cost=1, model="gpt-4o", quiet=True, counter=Words())
    run.execute(returns(reply(1000, 100)))
    assert run.spent == Decimal("0.0035")
    run.execute(returns(reply(1000, 100)), model="gpt-4o-mini")
    assert run.spent == Decimal("0.00371")
    own = {"gpt-4o": {"input_per_million": 1, "output_per_million": 1}}
    mine = tbc.Run("t", max_cost=1, model="gpt-4o", quiet=True, prices=own, counter=Words())
    mine.execute(returns(reply(1000, 0)))
    assert mine.spent == Decimal("0.001")


def test_an_unknown_price_under_a_limit_is_refused_and_says_what_would_help():
    run, calls = run_of(cost_model=None, max_cost=1), []
    with pytest.raises(tbc.UnknownPriceError) as error:
        run.execute(lambda: calls.append(1), model="my-own-model")
    assert "'my-own-model'" in str(error.value) and "cost_model=" in str(error.value)
    with pytest.raises(tbc.UnknownPriceError):
        run.execute(lambda: calls.append(1))
    assert calls == [] and run.steps == ()


def test_unknown_prices_are_tracked_where_nothing_can_be_refused():
    for how in ({}, {"max_cost": 1, "mode": "audit"}, {"max_cost": 1, "unknown_price": "track"}):
        run = run_of(cost_model=None, **how)
        for _ in range(2):
            run.execute(returns(reply()), model="my-own-model")
        run.execute(returns(reply()), cost_model=CENT)
        assert (run.steps[0].cost, run.steps[0].cost_usd, run.steps[0].projected) == (None, None, None)
        assert "Total cost (actual): at least $0.01 (2 calls unpriced)" in run.render_summary()


def test_an_unknown_price_may_be_assumed():
    run = run_of(cost_model=None, max_cost=1, unknown_price=Decimal(10))
    run.execute(returns(reply()), model="my-own-model")
    assert run.spent == ONE
    assert "Model 'my-own-model' has no known price and is charged as $10 per million" in run.render_summary()


def test_the_fallback_of_the_seed_is_an_explicit_choice_with_its_warning_once(capsys):
    for _ in range(2):
        tbc.execute(
            task_id="t",
            run_task=returns(reply(1000, 100)),
            input_data="Hello",
            model="nobody-knows",
            max_cost=1,
            max_output_tokens=100,
            unknown_price="gpt-4o",
        )
    printed = capsys.readouterr().out
    assert printed.startswith(
        "[WARN] MODEL_UNSUPPORTED\nmodel=nobody-knows\nfallback=gpt-4o\nnote=estimates_may_deviate\nStep 1\n"
    )
    assert printed.count("[WARN]") == 1
    assert tasks._RUNS["t"].spent == Decimal("0.007")
    assert "is charged as gpt-4o" in tbc.render_summary("t")


def test_a_policy_that_cannot_be_is_refused():
    with pytest.raises(tbc.InvalidPriceError):
        run_of(unknown_price="gpt-nine")
    with pytest.raises(tbc.InvalidPriceError):
        run_of().execute(returns(reply()), unknown_price="refus")


def test_what_was_cached_is_charged_as_such():
    price = {"m": {"input_per_million": 10, "output_per_million": 10, "cached_read_per_million": 1}}
    run = run_of(cost_model=None, model="m", prices=price)
    run.execute(returns(reply(100, 50, cache_read_input_tokens=900, cache_creation_input_tokens=0)))
    assert run.spent == Decimal("0.0024")
    stated = CompletionUsage.model_validate(
        {
            "prompt_tokens": 1000,
            "completion_tokens": 50,
            "total_tokens": 1050,
            "prompt_tokens_details": {"cached_tokens": 900},
        }
    )
    run.execute(returns({"output": "", "usage": stated}))
    run.execute(returns({"output": "", "usage": stated.model_dump()}))
    usage = claude.Usage(input_tokens=100, output_tokens=50, cache_read_input_tokens=900)
    run.execute(returns({"output": "", "usage": usage}))
    assert [step.cost for step in run.steps] == [2_400_000] * 4
    assert [(step.input_tokens, step.output_tokens) for step in run.steps] == [(1000, 50)] * 4


# --- what a step must return -----------------------------------------------------------------------------

BAD = [
    ("not_a_dict", None),
    ("not_a_dict", "text"),
    ("not_a_dict", [1]),
    ("no_usage", {"output": "x"}),
    ("no_usage", {}),
    ("usage_not_a_dict", {"usage": None}),
    ("usage_not_a_dict", {"usage": 7}),
    ("usage_not_a_dict", {"usage": "7 tokens"}),
    ("usage_not_a_dict", {"usage": object()}),
    ("no_token_counts", {"usage": {}}),
    ("no_token_counts", {"usage": {"input_tokens": 7}}),
    ("no_token_counts", {"usage": {"total_tokens": 7}}),
    ("bad_token_counts", reply(-1, 5)),
    ("bad_token_counts", reply(5, float("nan"))),
    ("bad_token_counts", reply(5, True)),
    ("bad_token_counts", reply("5", 5)),
    ("bad_token_counts", reply(5, 5.0)),
    ("bad_token_counts", reply(None, 5)),
    ("bad_token_counts", reply(5, 2**60)),
    ("bad_token_counts", reply(5, 5, cache_read_input_tokens=-3)),
    ("bad_token_counts", {"usage": {"prompt_tokens": 5, "completion_tokens": -5}}),
]


@pytest.mark.parametrize(("reason", "result"), BAD)
def test_a_result_without_a_usage_is_a_typed_error_and_books_the_whole_hold(reason, result):
    run = run_of(max_cost=1)
    with pytest.raises(tbc.StepResultError) as error:
        run.execute(returns(result), words(500), max_output_tokens=500)
    assert (error.value.reason, error.value.result) == (reason, result)
    assert isinstance(error.value, RuntimeError)
    assert run.spent == ONE and run.steps[0].estimated and run.steps[0].outcome == "bad_result"
    assert "1 step did not say what was used: $0.01 of the total is estimated" in run.render_summary()
    run.execute(returns(reply()), words(500), max_output_tokens=500)
    assert run.spent == 2 * ONE


def test_the_contract_errors_have_texts_of_their_own():
    texts = set()
    for reason, result in BAD:
        with pytest.raises(tbc.StepResultError) as error:
            run_of().execute(returns(result))
        texts.add((reason, str(error.value).partition(";")[0]))
    assert {reason for reason, _ in texts} == {text[0] for text in texts}
    assert len(texts) == len({reason for reason, _ in BAD}) == 5


def test_the_whole_hold_of_dear_input_is_booked_as_it_was_held():
    price = {"m": {"input_per_million": 10, "output_per_million": 10, "cached_write_per_million": 20}}
    run = run_of(cost_model=None, model="m", prices=price, max_cost=1)
    with pytest.raises(tbc.StepResultError):
        run.execute(returns({}), words(1000), max_output_tokens=0)
    assert run.spent == Decimal("0.02")


def test_a_cost_beyond_all_books_is_an_error_that_carries_the_result():
    run = run_of(max_cost=1)
    with pytest.raises(tbc.InvalidAmountError) as error:
        run.execute(returns(reply(2**50, 0)), words(500), max_output_tokens=500)
    assert error.value.result == reply(2**50, 0)  # type: ignore[attr-defined]
    assert run.spent == ONE


# --- steps that raise ------------------------------------------------------------------------------------


def test_a_step_that_raises_is_booked_with_its_input_and_leaves_the_task_usable():
    run = run_of(max_cost=1)

    def broken() -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run.execute(broken, words(500), max_output_tokens=500)
    assert run.spent == Decimal("0.005")
    run.execute(returns(reply()), words(500), max_output_tokens=500)
    assert [step.outcome for step in run.steps] == ["failed", "ok"]
    assert [step.number for step in run.steps] == [1, 2]
    assert "1 step did not say what was used: $0.005 of" in run.render_summary().replace("$0.0050", "$0.005")


def test_what_was_recorded_is_booked_instead():
    run = run_of(max_cost=1)

    def broken() -> Any:
        tbc.current_hold().record(700)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run.execute(broken, words(500), max_output_tokens=500)
    assert run.spent == Decimal("0.007")


def test_a_step_that_sent_nothing_costs_nothing():
    run = run_of(max_cost="0.01")

    def unsent() -> Any:
        raise tbc.NotSent

    for _ in range(3):
        with pytest.raises(tbc.NotSent):
            run.execute(unsent, words(500), max_output_tokens=500)
    run.execute(returns(reply()), words(500), max_output_tokens=500)
    assert run.spent == ONE and run.steps[0].cost == 0
    summary = run.render_summary()
    assert "Steps executed: 1\n" in summary and "3 steps sent nothing and cost nothing" in summary


def test_a_hold_that_was_ended_by_hand_stays_as_it_ended():
    run = run_of(max_cost=1)

    def by_hand() -> Any:
        tbc.current_hold().settle(300, usd="0.003")
        return reply()

    run.execute(by_hand, words(500), max_output_tokens=500)
    assert run.spent == Decimal("0.003") and run.steps[0].cost == 3_000_000


# --- coroutines and threads ------------------------------------------------------------------------------


def test_coroutine_functions_and_functions_that_return_awaitables_are_awaited():
    async def call(max_output_tokens: int = 0) -> dict[str, Any]:
        await asyncio.sleep(0)
        assert tbc.current_hold().operation is not None
        return reply(500, max_output_tokens)

    class Caller:
        async def __call__(self) -> dict[str, Any]:
            return await call()

    async def steps() -> list[Any]:
        run = run_of(max_cost="0.05")
        task = asyncio.ensure_future(call())
        await task
        made = [
            await run.execute(call, words(500), max_output_tokens=500),
            await run.execute(lambda: call(7), words(500), max_output_tokens=500),
            await run.execute(Caller(), words(500), max_output_tokens=500),
        ]
        assert run.spent == Decimal("0.02007")
        return made

    async def with_context() -> list[Any]:
        with outer_hold():
            return await steps()

    assert asyncio.run(with_context()) == [reply(500, 500), reply(500, 7), reply(500, 0)]


def outer_hold() -> Any:
    manager = tbc.BudgetManager()
    manager.register_agent("a", max_tokens=None)
    return manager.hold("a", operation="outside")


def test_steps_in_flight_share_the_limit_without_spending_any_of_it_twice():
    async def call() -> dict[str, Any]:
        await asyncio.sleep(0)
        return reply()

    async def gather(run: tbc.Run) -> list[Any]:
        steps = [run.execute(call, words(500), max_output_tokens=500) for _ in range(8)]
        return await asyncio.gather(*steps, return_exceptions=True)

    run = run_of(max_cost="0.05")
    made = asyncio.run(gather(run))
    refused = [each for each in made if isinstance(each, tbc.StepBlockedError)]
    assert len(refused) == 3 and run.spent == run.limit
    assert {(each.decision and each.decision.status) for each in refused} == {tbc.Status.BUSY}
    assert "wait for the steps in flight" in str(refused[0])
    summary = run.render_summary()
    assert "$0.05 set aside for steps in flight" in summary and "3 attempts were refused in all" in summary


def test_threads_share_the_limit_too():
    run, barrier, refused = run_of(max_cost="0.05"), threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        for _ in range(3):
            try:
                run.execute(returns(reply()), words(500), max_output_tokens=500)
            except tbc.StepBlockedError as error:
                refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.spent == run.limit and len(refused) == 19
    assert sorted(step.number for step in run.steps) == [1, 2, 3, 4, 5]


def test_a_step_in_flight_is_told_in_the_summary():
    run, seen = run_of(max_cost="0.05"), []

    def call() -> dict[str, Any]:
        seen.append(run.render_summary())
        return reply()

    run.execute(call, words(500), max_output_tokens=500)
    assert "Steps in flight: 1 ($0.01 set aside)\nStatus: Running" in seen[0]


def test_a_cancelled_step_is_booked_with_its_input():
    async def forever() -> dict[str, Any]:
        await asyncio.Event().wait()
        return reply()

    async def cancel(run: tbc.Run) -> None:
        task = asyncio.ensure_future(run.execute(forever, words(500), max_output_tokens=500))
        await asyncio.sleep(0)
        assert run.remaining == Decimal("0.99")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run = run_of(max_cost=1)
    asyncio.run(cancel(run))
    assert (run.spent, run.remaining) == (Decimal("0.005"), Decimal("0.995"))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_step_that_nobody_awaits_gives_its_hold_back():
    async def call() -> dict[str, Any]:
        return reply()

    run = run_of(max_cost=1)
    run.execute(call, words(500))  # its step has not begun
    step = run.execute(lambda: call(), words(500), max_output_tokens=500)
    assert run.remaining == Decimal("0.99")
    del step
    gc.collect()
    assert run.remaining == 1 and [each.outcome for each in run.steps] == ["not_sent"]


def test_a_coroutine_that_is_closed_half_way_is_booked_with_its_input():
    async def call() -> dict[str, Any]:
        await asyncio.sleep(0)
        return reply()

    run = run_of(max_cost=1)
    step = run.execute(call, words(500), max_output_tokens=500)
    step.send(None)
    step.close()
    assert run.spent == Decimal("0.005") and run.steps[0].cost == 5_000_000


# --- audit -----------------------------------------------------------------------------------------------


def test_audit_never_blocks_and_says_what_would_have_been(capsys):
    run = run_of(max_cost="0.015", mode="audit", quiet=False)
    for _ in range(3):
        run.execute(returns(reply()), words(500), max_output_tokens=500)
    assert run.spent == 3 * ONE and not run.blocked
    assert capsys.readouterr().out.split("\n\n")[1] == (
        "Step 2\nCost: $0.0100 / $0.0150\nStatus: ALLOWED\nAudit: enforcement would block this step\n"
        "Projected cost: $0.0200 / $0.0150"
    )
    summary = run.render_summary()
    assert "enforcement would have refused 2 steps, first step 2 ($0.01 projected, $0.0050 left)" in summary
    assert "The limit of $0.015 is exceeded by" in summary.replace("$0.0150", "$0.015")


def test_the_mode_of_a_task_is_chosen_once():
    run = run_of(mode="audit")
    run.execute(returns(reply()), mode="audit")
    with pytest.raises(tbc.InvalidContractError, match="audit"):
        run.execute(returns(reply()), mode="enforce")
    with pytest.raises(tbc.InvalidContractError):
        run_of(mode="strict")


# --- tasks by name ---------------------------------------------------------------------------------------


def test_the_loop_of_the_seed_stops_by_itself(capsys):
    while True:
        try:
            tbc.execute(
                task_id="doc",
                run_task=returns(reply(4000, 25)),
                input_data="Write on.",
                model="gpt-4o",
                max_cost=0.05,
            )
        except RuntimeError:
            break
    capsys.readouterr()
    tbc.print_summary("doc")
    printed = capsys.readouterr().out
    assert printed == tbc.render_summary("doc") + "\n"
    assert "Total cost (actual): $0.0410\nSteps executed: 4\nStatus: Blocked (budget thr" in printed


def test_tasks_are_known_by_name_until_they_are_forgotten():
    tbc.execute(task_id="t", run_task=returns(reply()), cost_model=CENT, max_cost="0.02", quiet=True)
    assert "$0.01" in tbc.render_summary("t")
    assert tbc.forget_task("t") and not tbc.forget_task("t")
    for ask in (tbc.render_summary, tbc.print_summary):
        with pytest.raises(tbc.UnknownTaskError, match="Unknown task_id: 't'"):
            ask("t")
    with pytest.raises(ValueError, match="Unknown"):
        tbc.render_summary([])  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["", None, 7, []])
def test_a_task_needs_a_name_and_something_to_run(bad):
    with pytest.raises(tbc.InvalidContractError, match="task_id is required"):
        tbc.execute(task_id=bad, run_task=returns(reply()))
    with pytest.raises(tbc.InvalidContractError, match="run_task is required"):
        tbc.execute(task_id="t", run_task=bad)
    with pytest.raises(tbc.InvalidContractError, match="model must be"):
        tbc.execute(task_id="t", run_task=returns(reply()), model=7)  # type: ignore[arg-type]


def test_a_task_is_not_made_by_arguments_that_cannot_be():
    with pytest.raises(tbc.InvalidAmountError):
        tbc.execute(task_id="t", run_task=returns(reply()), max_cost=-1)
    with pytest.raises(tbc.UnknownTaskError):
        tbc.render_summary("t")


# --- what is printed -------------------------------------------------------------------------------------


def test_a_step_is_printed_as_plain_lines(capsys):
    run = run_of(max_cost="0.015", quiet=False)
    run.execute(returns(reply()), words(500), max_output_tokens=500)
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply()), words(500), max_output_tokens=500)
    assert capsys.readouterr().out == (
        "Step 1\nCost: $0.0000 / $0.0150\nStatus: ALLOWED\n\n"
        "Step 2\nCost: $0.0100 / $0.0150\nStatus: BLOCKED\n"
        "Execution stopped: Budget threshold reached\nProjected cost: $0.0200 / $0.0150\n\n"
    )


def test_small_costs_and_exceeded_limits_are_printed_truly(capsys):
    run = run_of(cost_model={"input": "0.000000001", "output": "0.000000001"}, quiet=False)
    run.execute(returns(reply(7, 8)))
    run.execute(returns(reply(7, 8)))
    assert "Step 2\nCost: $0.000000015 / No budget\nStatus: ALLOWED\n" in capsys.readouterr().out
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply()), max_cost="0.00000002")
    assert "Cost: $0.00000003 / $0.00000002 (limit exceeded)\n" in capsys.readouterr().out
    assert "Total cost (actual): $0.00000003\n" in run.render_summary()


def test_printing_can_be_silenced_in_three_ways(capsys, monkeypatch):
    run_of(quiet=True).execute(returns(reply()))
    run_of(quiet=False).execute(returns(reply()), quiet=True)
    tbc.execute(task_id="t", run_task=returns(reply()), cost_model=CENT, quiet=True)
    monkeypatch.setenv("TBC_QUIET", "1")
    run_of(quiet=False).execute(returns(reply()))
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("TBC_QUIET", "0")
    run_of(quiet=False).execute(returns(reply()))
    assert "Step 1" in capsys.readouterr().out


class Broken:
    """A stream that is no more."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


class Ascii(Broken):
    """A stream without letters of its own."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        text.encode("ascii")
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_a_printout_that_cannot_be_written_never_stops_a_run(monkeypatch):
    run = run_of(max_cost=1, quiet=False)
    monkeypatch.setattr(sys, "stdout", Broken())
    run.execute(returns(reply()))
    run.print_summary()
    monkeypatch.setattr(sys, "stdout", Ascii())
    run.print_summary()
    assert "Steps executed: 1" in sys.stdout.text  # type: ignore[attr-defined]
    assert run.spent == ONE


def test_steps_are_printed_without_rich_too(tmp_path):
    code = (
        "import sys; sys.modules['rich'] = sys.modules['rich.console'] = None\n"
        "import tbc\n"
        "tbc.execute(task_id='t', run_task=lambda: {'usage': {'input_tokens': 1, 'output_tokens': 1}},"
        " cost_model={'input': 1, 'output': 1})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Step 1\nCost: $0.0000 / No budget\nStatus: ALLOWED\n\n"


def test_import_loads_neither_rich_nor_runs():
    code = "import sys, tbc; print([name for name in sys.modules if name.startswith(('rich', 'tbc.runs'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- the summary -----------------------------------------------------------------------------------------


def test_the_summary_of_a_blocked_run():
    run = run_of(max_cost="0.025")
    for _ in range(2):
        run.execute(returns(reply()), words(500), max_output_tokens=500)
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply()), words(500), max_output_tokens=500)
    assert run.render_summary() == "\n".join(
        [
            "══════════ EXECUTION SUMMARY ══════════",
            "Total cost (actual): $0.02",
            "Steps executed: 2",
            "Status: Blocked (budget threshold reached)",
            "─" * 38,
            "",
            "Impact:",
            "- Step 3 was refused before it ran: $0.01 projected, $0.0050 of $0.0250 left",
            "- The limit held: $0.0050 of $0.0250 not spent",
            "",
            "─" * 38,
            "Reason:",
            "- Budget threshold reached",
            "─" * 38,
        ]
    )


def test_the_summary_of_a_run_blocked_before_its_first_step():
    run = run_of(max_cost="0.001")
    assert "Status: Nothing executed" in run.render_summary()
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply()), words(500))
    summary = run.render_summary()
    assert "Total cost (actual): $0.00\nSteps executed: 0\nStatus: Blocked before execution\n" in summary


def test_the_numbers_of_the_summary_are_those_of_the_books():
    run = run_of(max_cost=1)
    for read in (500, 700, 900):
        run.execute(returns(reply(read, 100)), words(500))
    with pytest.raises(tbc.StepResultError):
        run.execute(returns({}), words(500))
    account = run.manager.accounts("usd")[1]
    entries = [entry for entry in run.manager.ledger.entries() if entry.axis == "usd"]
    state = run.state()
    assert isinstance(state, RunState)
    assert account.consumed == state.spent == sum(step.cost or 0 for step in run.steps)
    assert account.consumed == sum(entry.consumed for entry in entries)
    assert account.held == state.held == 0


# --- the log ---------------------------------------------------------------------------------------------


def test_the_log_has_a_line_before_and_after_each_step(tmp_path):
    path = tmp_path / "steps.jsonl"
    run = run_of(max_cost="0.015", log=path, clock=ManualClock(86_400.5), model="m")
    run.execute(returns(reply(500, 400)), words(500), max_output_tokens=500)
    with pytest.raises(tbc.StepBlockedError):
        run.execute(returns(reply()), words(500), max_output_tokens=500)
    before, after, blocked = [json.loads(line) for line in path.read_text().splitlines()]
    assert before == {
        "time": "1970-01-02T00:00:00.500000+00:00",
        "task_id": "task",
        "phase": "pre",
        "step_number": 1,
        "model": "m",
        "input_tokens": 500,
        "output_tokens": 500,
        "current_cost": "0.00",
        "estimated_cost": "0.01",
        "limit": "0.0150",
        "decision": "ALLOW",
        "reason": None,
    }
    assert (after["phase"], after["actual_cost"], after["current_cost"]) == ("post", "0.0090", "0.0090")
    assert (after["input_tokens"], after["output_tokens"], after["estimated"]) == (500, 400, False)
    assert (blocked["decision"], blocked["step_number"]) == ("BLOCK", 2)
    assert blocked["reason"].startswith("Step 2 of task 'task' is blocked")


def test_the_log_tells_errors_excesses_unknown_prices_and_audits(tmp_path):
    path = tmp_path / "steps.jsonl"
    run = run_of(max_cost="0.001", mode="audit", log=path)
    run.execute(returns(reply()), words(500), max_output_tokens=500)
    with pytest.raises(tbc.StepResultError):
        run.execute(returns({}), cost_model=None, model="nobody-knows")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["reason"] == "audit: enforcement would block this step"
    assert lines[1]["reason"] == "limit exceeded by $0.0090"
    assert lines[2]["estimated_cost"] is None and lines[3]["actual_cost"] is None
    assert lines[3]["reason"].startswith("StepResultError: run_task must return 'usage'")
    assert (lines[3]["estimated"], lines[3]["outcome"]) == (True, "bad_result")


def test_no_file_is_written_unless_one_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_of().execute(returns(reply()))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("TBC_STEP_LOG", str(tmp_path / "log.jsonl"))
    run_of().execute(returns(reply()))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_times_are_of_the_wall_clock_by_default(tmp_path):
    from datetime import UTC, datetime

    before = datetime.now(UTC)
    run_of(log=tmp_path / "log").execute(returns(reply()))
    at = datetime.fromisoformat(json.loads((tmp_path / "log").read_text().splitlines()[0])["time"])
    assert abs((at - before).total_seconds()) < 60


def test_a_log_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path, caplog):
    run = run_of(log=tmp_path / "missing" / "log")
    with caplog.at_level(logging.WARNING, logger="tbc"):
        for _ in range(3):
            run.execute(returns(reply()))
    assert len(caplog.records) == 1 and "steps are not logged" in caplog.text
    assert len(run.steps) == 3


def test_an_estimate_counts_where_there_is_no_vocabulary():
    run = tbc.Run("t", cost_model=CENT, counter=EstimateCounter(), quiet=True)
    run.execute(returns(reply()), "How far is it to the sea?")
    assert run.steps[0].projected_input == 8


def test_an_unknown_price_under_a_limit_ends_a_loop_that_looks_for_runtime_errors():
    run = tbc.Run("unpriced", max_cost=1, model="nobody-s-model", quiet=True)
    with pytest.raises(RuntimeError) as refused:
        run.execute(lambda: {"output": "", "usage": {"input_tokens": 1, "output_tokens": 1}})
    assert isinstance(refused.value, tbc.UnknownPriceError)
