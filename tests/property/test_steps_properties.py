"""Bounded steps under any sequence of steps, limits and failures, in threads and in tasks too."""

from __future__ import annotations

import asyncio
import threading
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

import tbc
from tbc.money import to_nano

NANO = 10**9


class Letters:
    """A counter of letters."""

    name = "letters"
    estimated = False

    def count(self, text: str, /) -> int:
        return len(text)


class Planned(NamedTuple):
    """A step: what it says it will send and write, and how much of that it does."""

    counted: int
    cap: int
    sent: int
    written: int
    how: str


RATE = st.integers(0, 40).map(lambda n: Decimal(n) / 10**8) | st.decimals(0, 1, places=10)
HOW = st.sampled_from(["ok"] * 6 + ["raises", "not sent", "bad"])


@st.composite
def planned(draw: st.DrawFn, *, honest: bool) -> Planned:
    counted, cap = draw(st.integers(0, 2_000)), draw(st.integers(0, 2_000))
    most = (counted, cap) if honest else (5_000, 5_000)
    return Planned(counted, cap, draw(st.integers(0, most[0])), draw(st.integers(0, most[1])), draw(HOW))


def result_of(step: Planned) -> Any:
    if step.how == "raises":
        raise ZeroDivisionError
    if step.how == "not sent":
        raise tbc.NotSent
    usage = {"input_tokens": step.sent, "output_tokens": step.written}
    return {"output": "", "usage": None if step.how == "bad" else usage}


def run_of(rates: tuple[Decimal, Decimal], limit: Decimal | None, **how: Any) -> tbc.Run:
    cost_model = dict(zip(("input", "output"), rates, strict=True))
    return tbc.Run("task", max_cost=limit, cost_model=cost_model, quiet=True, counter=Letters(), **how)


def take(run: tbc.Run, step: Planned, *, declared: bool = True) -> bool:
    """Take a step and return whether it was refused."""
    cap = step.cap if declared else None
    try:
        run.execute(lambda: result_of(step), "x" * step.counted, max_output_tokens=cap)
    except tbc.StepBlockedError:
        return True
    except (ZeroDivisionError, tbc.NotSent, tbc.StepResultError):
        pass
    return False


def cost(rates: tuple[Decimal, Decimal], sent: int, written: int) -> int:
    return ceil((Fraction(rates[0]) * sent + Fraction(rates[1]) * written) * NANO)


@given(st.tuples(RATE, RATE), st.decimals(0, 2, places=9), st.lists(planned(honest=True), max_size=30))
def test_with_a_declared_cap_the_limit_is_never_crossed(rates, limit, steps):
    run = run_of(rates, limit)
    for step in steps:
        spent = to_nano("spent", run.spent)
        refused = take(run, step)
        projected = cost(rates, step.counted, step.cap)
        assert refused == (projected > 0 and spent + projected > to_nano("limit", limit))
        assert run.blocked is refused
        assert run.spent <= limit
    assert "exceeded" not in run.render_summary()


@given(st.tuples(RATE, RATE), st.lists(planned(honest=True), max_size=20))
def test_what_is_spent_is_what_the_usages_cost_rounded_up_once_each(rates, steps):
    run, expected = run_of(rates, None), 0
    for step in steps:
        assert not take(run, step)
        match step.how:
            case "ok":
                expected += cost(rates, step.sent, step.written)
            case "bad":
                expected += cost(rates, step.counted, step.cap)
            case "raises":
                expected += cost(rates, step.counted, 0)
    assert to_nano("spent", run.spent) == expected == sum(step.cost or 0 for step in run.steps)
    assert run.manager.accounts("usd")[1].held == 0


@given(
    st.tuples(RATE, RATE),
    st.decimals(0, 1, places=9),
    st.lists(st.tuples(planned(honest=False), st.booleans()), max_size=30),
)
def test_without_a_cap_one_step_at_a_time_crosses_at_most_by_its_own_excess(rates, limit, steps):
    run = run_of(rates, limit)
    for step, declared in steps:
        before = run.spent
        if take(run, step, declared=declared):
            assert run.spent == before
        elif before > limit:
            assert run.spent == before  # only what is free still runs
        else:
            done = run.steps[-1]
            excess = max(0, (done.cost or 0) - (done.projected or 0))
            assert to_nano("spent", run.spent) <= to_nano("limit", limit) + excess
    state = run.state()
    assert ("exceeded" in run.render_summary()) == (run.spent > limit) == (state.excess > 0)
    assert (state.crossed_by is not None) == (run.spent > limit)


LIMITS = st.none() | st.decimals(0, 1, places=9)


@given(st.tuples(RATE, RATE), st.lists(st.tuples(planned(honest=True), LIMITS), min_size=1, max_size=30))
def test_limits_may_be_raised_and_lowered_at_any_time(rates, steps):
    run, limit = run_of(rates, None), None
    for step, new in steps:
        limit = limit if new is None else new
        spent = to_nano("spent", run.spent)
        try:
            run.execute(
                lambda step=step: result_of(step),
                "x" * step.counted,
                max_output_tokens=step.cap,
                max_cost=new,
            )
        except tbc.StepBlockedError:
            assert limit is not None
            assert spent + cost(rates, step.counted, step.cap) > to_nano("limit", limit)
        except (ZeroDivisionError, tbc.NotSent, tbc.StepResultError):
            pass
        else:
            projected = cost(rates, step.counted, step.cap)
            assert limit is None or not projected or spent + projected <= to_nano("limit", limit)
        assert run.limit == limit


@given(
    st.tuples(RATE, RATE),
    st.decimals(0, 1, places=9),
    st.lists(st.lists(planned(honest=True), max_size=6), min_size=2, max_size=5),
)
def test_the_limit_is_not_crossed_by_threads_either(rates, limit, parts):
    run, barrier = run_of(rates, limit), threading.Barrier(len(parts))

    def work(steps: list[Planned]) -> None:
        barrier.wait()
        for step in steps:
            take(run, step)

    threads = [threading.Thread(target=work, args=(steps,)) for steps in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.spent <= limit
    numbers = sorted(step.number for step in run.steps)
    assert numbers == list(range(1, len(numbers) + 1))
    assert run.manager.accounts("usd")[1].held == 0


async def _together(run: tbc.Run, steps: list[tuple[Planned, int]], *, declared: bool) -> list[Any]:
    async def call(step: Planned, pauses: int) -> Any:
        for _ in range(pauses):
            await asyncio.sleep(0)
        return result_of(step)

    async def one(step: Planned, pauses: int) -> Any:
        cap = step.cap if declared else None
        return await run.execute(lambda: call(step, pauses), "x" * step.counted, max_output_tokens=cap)

    made = (one(step, pauses) for step, pauses in steps)
    return await asyncio.gather(*made, return_exceptions=True)


@given(
    st.tuples(RATE, RATE),
    st.decimals(0, 1, places=9),
    st.lists(st.tuples(planned(honest=True), st.integers(0, 3)), max_size=12),
)
def test_the_limit_is_not_crossed_by_tasks_either(rates, limit, steps):
    run = run_of(rates, limit)
    made = asyncio.run(_together(run, steps, declared=True))
    assert run.spent <= limit
    assert len(run.steps) + sum(isinstance(each, tbc.StepBlockedError) for each in made) == len(steps)
    assert run.remaining == limit - run.spent


@given(
    st.tuples(RATE, RATE),
    st.decimals(0, 1, places=9),
    st.lists(st.tuples(planned(honest=False), st.integers(0, 3)), max_size=12),
)
def test_without_a_cap_tasks_cross_it_at_most_by_the_excess_of_those_in_flight(rates, limit, steps):
    run = run_of(rates, limit)
    asyncio.run(_together(run, steps, declared=False))
    excess = sum(max(0, (step.cost or 0) - (step.projected or 0)) for step in run.steps)
    free = sum(step.cost or 0 for step in run.steps if not step.projected)
    assert to_nano("spent", run.spent) <= to_nano("limit", limit) + excess + free
    assert "blocked before" not in run.render_summary().lower() or run.spent == 0
