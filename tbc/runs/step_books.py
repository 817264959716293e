"""The books of one task: what a step may cost is held before it, what it cost is settled after it.

One agent of one manager, capped in dollars. A step is refused where the manager refuses its hold: there is no
second rule. Everything here is done under one lock and never waits; nothing is printed.
"""

from __future__ import annotations

import inspect
from threading import RLock
from typing import Any, Final, NamedTuple

from tbc.axes import USD
from tbc.clock import Clock
from tbc.decision import Mode
from tbc.errors import BudgetExceededError
from tbc.holds import NOTHING, Hold, Said
from tbc.manager import BudgetManager
from tbc.money import to_usd
from tbc.pricing import Price, PriceTable
from tbc.run_errors import StepBlockedError
from tbc.runs.projection import Projection
from tbc.runs.step_records import Outcome, Refusal, RunState, StepRecord
from tbc.runs.step_result import StepUsage, read_step_usage
from tbc.tokens import Counter

__all__ = ["Begun", "Step", "StepBooks"]

#: Seconds that a hold lives: as long as its step. Were it to expire, its money would be promised twice.
_FOREVER: Final = 1e11


class Step:
    """A step in flight, and what it is projected to use.

    Attributes
    ----------
    number : int
        Its number.
    model : str or None
        The model that was named.
    price : Price or None
        What its tokens cost; ``None``: nobody knows.
    cap : int or None
        The declared output cap.
    counted : int
        Tokens counted of its input.
    sent, written : int
        Tokens projected.
    cost : int or None
        Nano-dollars projected; ``None``: nobody knows the price.
    hold : Hold
        What is set aside for it.
    awaitable : object
        What its function returned, if that is to be awaited.
    """

    __slots__ = (
        "awaitable",
        "books",
        "cap",
        "cost",
        "counted",
        "hold",
        "model",
        "number",
        "price",
        "sent",
        "written",
    )

    hold: Hold

    def __init__(
        self,
        books: StepBooks,
        number: int,
        model: str | None,
        price: Price | None,
        cap: int | None,
        counted: int,
        sent: int,
        written: int,
    ) -> None:
        self.books = books
        self.number = number
        self.model = model
        self.price = price
        self.cap = cap
        self.counted = counted
        self.sent = sent
        self.written = written
        self.cost = None if price is None else price.ceiling(sent, written)
        self.awaitable: Any = None

    def __del__(self) -> None:
        """End the hold of a step whose awaitable was dropped: nobody else will."""
        hold = getattr(self, "hold", None)
        if hold is not None and hold.settlement is None:
            self.books._drop(self)


class Begun(NamedTuple):
    """How a step was answered.

    Attributes
    ----------
    step : Step
        The step.
    spent, held : int
        Nano-dollars spent, and set aside for other steps, before it.
    limit : int or None
        The limit.
    blocked : StepBlockedError or None
        The refusal, if there is one.
    would_block : bool
        Whether enforcement would have refused it (in audit mode).
    """

    step: Step
    spent: int
    held: int
    limit: int | None
    blocked: StepBlockedError | None
    would_block: bool


class StepBooks:
    """The books of one task; see `tbc.Run`."""

    def __init__(
        self,
        task_id: str,
        *,
        limit: int | None,
        mode: Mode,
        prices: PriceTable | None,
        clock: Clock | None,
        counter: Counter | None,
    ) -> None:
        self.task_id = task_id
        self.manager = BudgetManager(
            mode=mode, prices=prices, unknown_price="track", clock=clock, counter=counter
        )
        max_usd = None if limit is None else to_usd(limit)
        self.manager.register_agent(task_id, max_tokens=None, max_usd=max_usd)
        ledger = self.manager.ledger
        with ledger.lock:
            self._books = ledger.on(USD, ledger.find(task_id))
        self._lock = RLock()  # why reentrant: garbage collection may end a step inside of another
        self._limit = limit
        self._cap = limit  # what the manager was told of it
        self._projection = Projection(self.manager, task_id)
        self._begun = 0
        self._steps: list[StepRecord] = []
        self._blocked = False
        self._refused = 0
        self._refusals: tuple[Refusal, ...] = ()
        self._assumed: dict[str | None, str] = {}

    def state(self) -> RunState:
        """Return everything about the run at this moment."""
        with self._lock:
            return RunState(
                task_id=self.task_id,
                mode=self.manager.mode,
                limit=self._limit,
                spent=self._books.consumed,
                held=self._books.held,
                unpriced=self._books.unpriced,
                steps=tuple(self._steps),
                in_flight=self._begun - len(self._steps),
                blocked=self._blocked,
                refusals=self._refusals,
                refused=self._refused,
                assumed=tuple(self._assumed.values()),
            )

    # -- PRE -----------------------------------------------------------------------------------------------

    def _begin_step(
        self, model: str | None, price: Price | None, cap: int | None, counted: int, limit: int | None
    ) -> Begun:
        """Project a step and hold what it may cost; `limit` is the new one, if there is one."""
        with self._lock:
            if limit is not None:
                self._limit = limit
            self._tell_limit()
            sent = self._projection.input_tokens(counted)
            written = self._projection.output_tokens() if cap is None else cap
            step = Step(self, self._begun + 1, model, price, cap, counted, sent, written)
            spent, held, limit = self._books.consumed, self._books.held, self._limit
            try:
                hold = self.manager.hold_priced(
                    self.task_id,
                    sent + written,
                    step.cost,
                    model=model,
                    expires_s=_FOREVER,
                    operation=f"step {step.number}",
                )
            except BudgetExceededError as refused:
                return Begun(step, spent, held, limit, self._block(step, spent, held, refused), False)
            step.hold = hold
            self._begun += 1
            self._blocked = False
            hold.expect_input(sent)
            if price is not None:
                hold.expect_price(price)
            would_block = hold.decision is not None and hold.decision.status.refuses
            if would_block:
                self._note_refusal(Refusal(step.number, step.cost or 0, spent, held, limit or 0))
            return Begun(step, spent, held, limit, None, would_block)

    def _tell_limit(self) -> None:
        """Let the manager know the limit; below what is spent and held, the account is cut to that."""
        limit, cap = self._limit, self._cap
        if limit is None or limit == cap:
            return
        if cap is None or limit < cap:
            limit = max(limit, self._books.consumed + self._books.held)
        if limit != cap:
            self.manager.register_agent(self.task_id, max_tokens=None, max_usd=to_usd(limit), replace=True)
            self._cap = limit

    def _block(self, step: Step, spent: int, held: int, refused: BudgetExceededError) -> StepBlockedError:
        assert self._limit is not None, "nothing is refused without a limit"
        refusal = Refusal(step.number, refused.requested, spent, held, self._limit)
        self._blocked = True
        self._note_refusal(refusal)
        return StepBlockedError(
            self.task_id,
            refusal.projected,
            refusal.left,
            step.number,
            spent,
            held,
            self._limit,
            refused.decision,
        )

    def _note_refusal(self, refusal: Refusal) -> None:
        self._refused += 1
        self._refusals = (*self._refusals[:1], refusal)

    # -- POST ----------------------------------------------------------------------------------------------

    def _finish(self, step: Step, result: object) -> None:
        """Settle a step by what it returned; whatever goes wrong books the whole hold."""
        try:
            used = read_step_usage(result)
            self._settle(step, used)
        except BaseException as error:
            if step.hold.state in ("open", "expired"):
                step.hold.settle(usd=None if step.cost is None else to_usd(step.cost), estimated=True)
                self._record(step, "bad_result", None, _reason(error))
            if getattr(error, "result", None) is None:
                error.result = result  # type: ignore[attr-defined]
            raise

    def _settle(self, step: Step, used: StepUsage) -> None:
        sent, written, usage = used
        cost = None
        if step.price is not None:
            cost = step.price.text_cost(sent, written) if usage is None else step.price.cost(usage)
        with self._lock:
            if step.hold.state in ("open", "expired"):  # else it was ended by hand, within the step
                self.manager.settle_hold(step.hold, sent + written, nano=cost)
            self._projection.learn(step.counted, sent, written, step.cap)
            self._record(step, "ok", used, None)

    def _fail(self, step: Step, error: BaseException) -> None:
        """End a step that raised."""
        with self._lock:
            step.hold.leave(error)
            self._record(step, "failed", None, _reason(error))

    def _drop(self, step: Step) -> None:
        """End a step whose awaitable nobody awaited. Never waits for the manager: finalizers come here."""
        unsent = inspect.iscoroutine(step.awaitable) and (
            inspect.getcoroutinestate(step.awaitable) == inspect.CORO_CREATED
        )
        step.hold.end_later(NOTHING if unsent else Said(step.sent, estimated=True))
        self._record(step, "not_sent" if unsent else "failed", None, "nobody awaited it")

    def _record(self, step: Step, outcome: Outcome, used: StepUsage | None, reason: str | None) -> None:
        hold, cost = step.hold, None
        settlement = hold.settlement
        if settlement is not None and settlement.state == "voided":
            outcome = "not_sent"
        if settlement is not None and step.price is not None:
            cost = settlement.usd
        elif outcome != "not_sent":  # a finalizer left its end to the next operation: what that will book
            cost = hold.cost_of(hold.recorded or step.sent)
        with self._lock:
            record = StepRecord(
                step.number,
                step.model,
                outcome,
                step.sent,
                step.written,
                step.cost,
                None if used is None else used.input_tokens,
                None if used is None else used.output_tokens,
                cost,
                used is None and outcome != "not_sent",
            )
            self._steps.append(record)
            spent, limit = self._books.consumed, self._limit
        self._tell_end(record, spent, limit, reason)

    def _tell_end(self, record: StepRecord, spent: int, limit: int | None, reason: str | None) -> None:
        """Tell that a step has ended; for those who show it."""


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
