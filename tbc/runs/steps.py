"""Bounded steps: a loop that stops before its cost does.

A `Run` is one task with one limit. Each `Run.execute` is one step of it:

- **PRE** projects what the step will use (`tbc.runs.projection`), prices it at the dearest it may cost, and
  holds that on the dollar axis of the run's manager. Does the hold not fit, the step is refused before it
  runs: that refusal is the block, there is no second rule.
- **EXEC** calls ``run_task()``.
- **POST** settles the true cost by the usage that it returned.

What is left of the limit is never promised twice, so steps may run concurrently, in threads and in tasks. A
step that sends no more than is counted and writes no more than its declared `max_output_tokens` costs no more
than its hold: then the limit is never crossed. Without a declared cap it may cost more than projected; the
excess is booked, and the limit is crossed at most by the excess of the steps that were in flight. (Tokens are
those of text: audio at a price of its own may cost more.)

Without a limit everything is only observed.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from types import FunctionType
from typing import Any, Final, NamedTuple

from tbc.clock import EPOCH, Clock, system_clock
from tbc.contract import check_amount
from tbc.current import AsCurrent
from tbc.decision import Mode
from tbc.errors import InvalidContractError, UnknownPriceError
from tbc.money import Money, to_nano, to_usd
from tbc.pricing import Price, PriceTable, UnknownPrice
from tbc.run_errors import StepUnpricedError
from tbc.runs.step_books import Begun, Step, StepBooks
from tbc.runs.step_log import StepLog, line_after, line_before
from tbc.runs.step_prices import REFUSE, TRACK, Policy, price_of, read_cost_model, read_policy
from tbc.runs.step_records import StepRecord
from tbc.runs.summary import fallback_warning, is_silenced, render_summary, show, step_block
from tbc.tokens import Counter

__all__ = ["Run"]

_SECONDS_A_DAY: Final = 86_400


class _Terms(NamedTuple):
    """What is asked of a step, checked."""

    model: str | None = None
    price: Price | None = None
    limit: int | None = None
    cap: int | None = None
    policy: Policy | None = None


class Run(StepBooks):
    """One task whose steps are bounded by a limit in dollars.

    Parameters
    ----------
    task_id : str
        Its name.
    max_cost : Decimal, str, int or float, optional
        The limit. ``None``: observation, nothing is refused. 0 refuses the first step that is not free.
        Spending exactly the limit is allowed.
    model : str, optional
        The model of steps that name none, for the price; see `tbc.pricing`.
    cost_model : mapping, optional
        ``{"input": ..., "output": ...}`` in dollars per token: the price of steps that name neither a model
        nor a cost model.
    max_output_tokens : int, optional
        The output cap of steps that name none. It is handed to ``run_task`` as the keyword
        `max_output_tokens` if that is an argument of its; else the caller says that it is kept.
    mode : {"enforce", "audit"}, default "enforce"
        ``"audit"``: nothing is refused; what would have been is reported.
    unknown_price : {"refuse", "track"}, Decimal, or the name of a model, default "refuse"
        What is done about a model without a known price under a limit: the step is refused, or runs unpriced
        (the total is then "at least"), or is priced at so many dollars per million tokens, or as that model
        is, with a warning, once. Without a limit, and in audit mode, ``"refuse"`` tracks.
    prices : mapping or callable, optional
        Prices of models that win over the bundled ones; see `tbc.pricing.Prices`.
    quiet : bool, default False
        Print nothing. The environment variable ``TBC_QUIET=1`` says the same for all.
    log : str or path-like, optional
        A file that gets a line of JSON before and after each step; see `tbc.runs.step_log`. Default: the
        environment variable ``TBC_STEP_LOG``, and no file without it.
    clock : Clock, optional
        Seconds; for tests.
    counter : Counter, optional
        Counts tokens of text; see `BudgetManager`.

    Attributes
    ----------
    task_id : str
    manager : BudgetManager
        The books: one agent, named as the task is.

    Examples
    --------
    >>> run = Run("draft", max_cost="0.05", cost_model={"input": "0.00001", "output": "0.00002"}, quiet=True)
    >>> def call(max_output_tokens):
    ...     return {"output": "...", "usage": {"input_tokens": 400, "output_tokens": max_output_tokens}}
    >>> while not run.blocked:
    ...     try:
    ...         reply = run.execute(call, max_output_tokens=1000)
    ...     except RuntimeError:
    ...         break
    >>> f"{run.spent:.3f} of {run.limit:.3f}", len(run.steps), run.blocked
    ('0.048 of 0.050', 2, True)
    """

    def __init__(
        self,
        task_id: str,
        *,
        max_cost: Money | None = None,
        model: str | None = None,
        cost_model: Any = None,
        max_output_tokens: int | None = None,
        mode: Mode = "enforce",
        unknown_price: UnknownPrice | None = None,
        prices: PriceTable | None = None,
        quiet: bool = False,
        log: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
        counter: Counter | None = None,
    ) -> None:
        if not isinstance(task_id, str) or not task_id:
            raise InvalidContractError(f"task_id is required: a non-empty str, not {task_id!r}")
        limit = None if max_cost is None else to_nano("max_cost", max_cost, up=False)
        super().__init__(task_id, limit=limit, mode=mode, prices=prices, clock=clock, counter=counter)
        self._clock = system_clock if clock is None else clock
        self._terms = _Terms()
        self._terms = self._checked(model, cost_model, None, max_output_tokens, unknown_price)
        self._quiet = bool(quiet)
        path = log if log is not None else os.environ.get("TBC_STEP_LOG")
        self._log = StepLog(path, self._clock) if path else None
        self._warned = False

    # -- how it stands -------------------------------------------------------------------------------------

    @property
    def spent(self) -> Decimal:
        """Dollars booked; a lower bound if steps are unpriced."""
        return to_usd(self._books.consumed)

    @property
    def limit(self) -> Decimal | None:
        """The limit in dollars; ``None``: observation."""
        return None if self._limit is None else to_usd(self._limit)

    @property
    def remaining(self) -> Decimal | None:
        """What is neither spent nor set aside; below 0 if the limit is exceeded. ``None``: no limit."""
        with self._lock:
            limit = self._limit
            return None if limit is None else to_usd(limit - self._books.consumed - self._books.held)

    @property
    def blocked(self) -> bool:
        """Whether the last step that was asked for was refused."""
        return self._blocked

    @property
    def steps(self) -> tuple[StepRecord, ...]:
        """The steps that ended, in the order of ending."""
        with self._lock:
            return tuple(self._steps)

    def render_summary(self) -> str:
        """Return the summary as text."""
        return render_summary(self.state())

    def print_summary(self) -> None:
        """Print the summary on standard output."""
        show(self.render_summary())

    # -- one step ------------------------------------------------------------------------------------------

    def execute(
        self,
        run_task: Callable[..., Any],
        input_data: object = None,
        *,
        model: str | None = None,
        cost_model: Any = None,
        max_cost: Money | None = None,
        max_output_tokens: int | None = None,
        mode: Mode | None = None,
        unknown_price: UnknownPrice | None = None,
        quiet: bool | None = None,
    ) -> Any:
        """Run one step, if it fits into what is left of the limit.

        What is left out is as the run has it.

        Parameters
        ----------
        run_task : callable
            Does the step and returns a dict with ``output`` and ``usage``: ``input_tokens`` and
            ``output_tokens``, or the usage of a provider as `tbc.usage.read_usage` reads it. A coroutine
            function, or one that returns an awaitable, makes this return an awaitable too (of a coroutine
            function, the step begins when that is awaited).
        input_data : object, optional
            What will be sent, to be counted: text, messages, anything; see `tbc.tokens.count`.
        model, cost_model, max_output_tokens, unknown_price, quiet
            For this step alone; as the parameters of the class. A `cost_model` wins over a `model`.
        max_cost : Decimal, str, int or float, optional
            The limit from now on. A higher one opens a blocked task again; one below what is spent refuses
            every further step that is not free.
        mode : {"enforce", "audit"}, optional
            Must be the run's: it is chosen once.

        Returns
        -------
        dict
            What ``run_task`` returned, untouched.

        Raises
        ------
        StepBlockedError
            It would cross the limit (also a `RuntimeError` and a `BudgetExceededError`). It did not run.
        StepResultError
            It ran and did not say what it used (also a `RuntimeError`). Its whole hold is booked.
        StepUnpricedError
            There is a limit, and nobody knows what it would cost (also a `RuntimeError` and an
            `UnknownPriceError`). It did not run.
        InvalidAmountError, InvalidPriceError, InvalidContractError
            An argument that cannot be; nothing ran.

        Notes
        -----
        A step that raises is booked with its input (or what was recorded through `tbc.current_hold`), as an
        estimate; `tbc.NotSent` books nothing. The task goes on either way.
        """
        if not callable(run_task):
            raise InvalidContractError(f"run_task is required: a callable, not {run_task!r}")
        if mode is not None and mode != self.manager.mode:
            raise InvalidContractError(
                f"task {self.task_id!r} runs in mode {self.manager.mode!r} and cannot change to {mode!r}: "
                "the mode is chosen once, with the first step"
            )
        terms = self._checked(model, cost_model, max_cost, max_output_tokens, unknown_price)
        quiet = self._quiet if quiet is None else bool(quiet)
        if _is_coroutine_function(run_task):
            return self._awaited(run_task, input_data, terms, quiet)
        return self._run(self._begin(input_data, terms, quiet), run_task)

    async def _awaited(
        self, run_task: Callable[..., Any], input_data: object, terms: _Terms, quiet: bool
    ) -> Any:
        return await self._run(self._begin(input_data, terms, quiet), run_task)

    def _run(self, step: Step, run_task: Callable[..., Any]) -> Any:
        with AsCurrent(step.hold):
            try:
                if step.cap is not None and _takes_cap(run_task):
                    result = run_task(max_output_tokens=step.cap)
                else:
                    result = run_task()
            except BaseException as error:
                self._fail(step, error)
                raise
        if type(result) is not dict and inspect.isawaitable(result):
            step.awaitable = result
            return self._await(step, result)
        self._finish(step, result)
        return result

    async def _await(self, step: Step, awaitable: Awaitable[Any]) -> Any:
        with AsCurrent(step.hold):
            try:
                result = await awaitable
            except BaseException as error:
                self._fail(step, error)
                raise
        self._finish(step, result)
        return result

    # -- before it -----------------------------------------------------------------------------------------

    def _checked(
        self,
        model: str | None,
        cost_model: Any,
        max_cost: Money | None,
        max_output_tokens: int | None,
        unknown_price: UnknownPrice | None,
    ) -> _Terms:
        """Return the terms of a step; what is left out is as the run has it, but for the limit."""
        usual = self._terms
        if model is None and cost_model is None and max_output_tokens is None and unknown_price is None:
            if max_cost is None:
                return usual
            return usual._replace(limit=to_nano("max_cost", max_cost, up=False))
        if model is not None and not isinstance(model, str):
            raise InvalidContractError(f"model must be a name, not {model!r}")
        if cost_model is not None:
            price: Price | None = read_cost_model(cost_model)
        else:
            price = usual.price if model is None else None
        return _Terms(
            usual.model if model is None else model,
            price,
            None if max_cost is None else to_nano("max_cost", max_cost, up=False),
            usual.cap if max_output_tokens is None else check_amount("max_output_tokens", max_output_tokens),
            usual.policy if unknown_price is None else read_policy(unknown_price, self.manager.prices),
        )

    def _begin(self, input_data: object, terms: _Terms, quiet: bool) -> Step:
        """Count and price a step, ask the books, and tell what they say."""
        counted = self._projection.count(input_data, terms.model)
        price, fallback = self._price(terms)
        begun = self._begin_step(terms.model, price, terms.cap, counted, terms.limit)
        if not (quiet or is_silenced()):
            if fallback is not None:
                show(fallback_warning(terms.model, fallback))
            self._show(begun)
        if self._log is not None:
            self._log.write(line_before(self.task_id, begun))
        if begun.blocked is not None:
            raise begun.blocked
        return begun.step

    def _price(self, terms: _Terms) -> tuple[Price | None, str | None]:
        """Return the price of a step, and the model it is priced as, if that is to be told now."""
        if terms.price is not None:
            return terms.price, None
        capped = terms.limit is not None or self._limit is not None
        policy = terms.policy or REFUSE
        if policy is REFUSE and (not capped or self.manager.mode == "audit"):
            policy = TRACK
        try:
            price = price_of(terms.model, self.manager.prices, policy, self._today())
        except UnknownPriceError as error:
            raise StepUnpricedError(error.model, error.hint) from None
        if price is None or price is not policy.policy:
            return price, None
        with self._lock:
            self._assumed[terms.model] = (
                f"Model {terms.model!r} has no known price and is charged as {policy.name}"
                if terms.model is not None
                else f"Steps that name no model are charged as {policy.name}"
            )
            first, self._warned = policy.is_model and not self._warned, self._warned or policy.is_model
        return price, policy.name if first else None

    def _today(self) -> date | None:
        """Return the day by the clock, for prices that change; ``None`` if the clock tells no days."""
        if self._clock is not system_clock:
            return None
        return _day(int((EPOCH + self._clock()) // _SECONDS_A_DAY))

    # -- what is told of it --------------------------------------------------------------------------------

    def _show(self, begun: Begun) -> None:
        step, spent, held, limit, blocked, would_block = begun
        projected = spent + held + (step.cost or 0) if blocked is not None or would_block else None
        show(step_block(step.number, spent, limit, projected=projected, binding=blocked is not None))

    def _tell_end(self, record: StepRecord, spent: int, limit: int | None, reason: str | None) -> None:
        if self._log is not None:
            self._log.write(line_after(self.task_id, record, spent, limit, reason))


@functools.lru_cache(maxsize=2)
def _day(number: int) -> date:
    return datetime.fromtimestamp(number * _SECONDS_A_DAY, UTC).date()


def _is_coroutine_function(run_task: Callable[..., Any]) -> bool:
    # Why: for what is nearly always given, the flag says it at a fraction of the price.
    if type(run_task) is FunctionType:
        return bool(run_task.__code__.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(run_task)


def _takes_cap(run_task: Callable[..., Any]) -> bool:
    """Return whether `max_output_tokens` is an argument of a function that may be named."""
    try:
        parameter = inspect.signature(run_task).parameters.get("max_output_tokens")
    except (TypeError, ValueError):  # a builtin: nothing is known
        return False
    return parameter is not None and parameter.kind in (
        parameter.KEYWORD_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
    )
