"""Local books of a worker: what it has leased of one agent's budget, as a pool of one agent.

What these books cannot answer by themselves is asked of the `Worker` in front of them, `tbc.leased`. An event
loop must not wait for its answer: what would have to, raises `Waits` there, and is done again in a thread.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol

from tbc.axes import AXES, CALLS, TOKENS, USD, Axis
from tbc.decision import Decision, Settlement, Transfer
from tbc.errors import HoldEndedError, StoreError
from tbc.holds import Hold, Said
from tbc.leases import Amounts, used_of
from tbc.leasing import LeasingDesk
from tbc.pool import amounts_of

if TYPE_CHECKING:
    from tbc.money import Money
    from tbc.usage import Usage

__all__ = [
    "SliceBooks",
    "SliceDesk",
    "Waits",
    "Worker",
    "dollars",
    "may_wait",
    "numbers_of_slices",
    "shortfalls",
    "without_waiting",
]

#: What one seat keeps of its journal; the shared pool has the lasting one.
_KEEP: Final = 256
#: Where the numbers of holds out of slices begin: beyond all that a pool gives, and exact in JSON.
_NUMBERS_FROM: Final = 2**52
#: How many of them a slice has.
_NUMBERS_EACH: Final = 2**28


class Worker(Protocol):
    """What local books ask."""

    @property
    def store_path(self) -> str | None:
        """Where the shared pool is kept, if it is."""

    @property
    def ends_later(self) -> bool:
        """Whether the shared pool still hears of what nobody waits for."""

    async def aside(self, work: Callable[..., Any], *values: Any) -> Any:
        """Await what may wait for the shared pool."""

    def ask_for(self, desk: SliceDesk, agent_name: str, more: Amounts) -> None:
        """Ask for more of a lease."""

    def tell_late(self, books: SliceBooks) -> None:
        """Tell what was spent of a lease that has been given back."""

    def tell_later(self, books: SliceBooks) -> None:
        """Tell it in good time, without ever waiting now."""

    def remaining(self, agent_name: str, axis: Axis = TOKENS) -> int | None:
        """Return what an agent has left."""

    def should_wind_down(self, hold: Hold) -> bool:
        """Return whether the budget is nearly used up."""


class Waits(Exception):
    """What was asked for cannot be had without waiting for the shared pool."""


#: Whether whoever asks is an event loop, which must not wait.
_MUST_NOT_WAIT: ContextVar[bool] = ContextVar("tbc_must_not_wait", default=False)


@contextmanager
def without_waiting() -> Generator[None]:
    """Return a block in which `Waits` is raised where something would have to wait."""
    token = _MUST_NOT_WAIT.set(True)
    try:
        yield
    finally:
        _MUST_NOT_WAIT.reset(token)


def may_wait() -> None:
    """Raise `Waits` if whoever asks must not wait."""
    if _MUST_NOT_WAIT.get():
        raise Waits


class SliceDesk(LeasingDesk):
    """The desk of the local books; a manager is made of it by `BudgetManager.make_slice`.

    What the books cannot answer by themselves is asked of the worker.
    """

    def __init__(self, *, worker: Worker, **how: Any) -> None:
        super().__init__(keep=_KEEP, **how)
        self._worker = worker
        self.waits = True  # only for the shared pool: see `arun`
        self.guessed = False
        self.given_back: SliceBooks | None = None
        self._pid = os.getpid()

    @property
    def _left_at(self) -> str | None:
        """In a forked child, the store of the leases: they are the parent's."""
        return None if self._pid == os.getpid() else self._worker.store_path

    def _check_process(self) -> None:
        left_at = self._left_at
        if left_at is not None:
            raise StoreError(
                left_at,
                "its manager was opened before the fork",
                "Settle the hold in the process that has it, or open a manager in the child",
            )

    async def arun(self, operation: Callable[[], Any]) -> Any:
        """Await an operation: at once if the slice covers it, else aside."""
        try:
            with without_waiting():
                return operation()
        except Waits:
            return await self._worker.aside(operation)

    def settle_hold(
        self,
        hold: Hold,
        tokens: int | None,
        estimated: bool = False,
        usd: Money | None = None,
        calls: int | None = None,
        usage: Usage | None = None,
        nano: int | None = None,
    ) -> Settlement:
        """End a hold; what was spent beyond the slice is asked for first.

        If the slice has been given back by now, nothing is set aside for it: it is answered when it is told.
        """
        self._check_process()
        if self.given_back is not None:
            may_wait()
            self._worker.tell_later(self.given_back)  # if something interrupts this
        late = hold.settlement is not None
        if type(tokens) is int and (late or tokens > hold.amount) and hold.state in ("open", "expired"):
            left = self.ledger.remaining(hold.agent_name)
            short = tokens - (0 if hold.settlement is not None else hold.amount)  # by now
            if left is not None and short > left:
                self._worker.ask_for(self, hold.agent_name, Amounts(short - left))
        ended = super().settle_hold(hold, tokens, estimated, usd, calls, usage, nano)
        if ended.estimated:
            self.guessed = True
        if self.given_back is not None:  # it may have been just now
            self._worker.tell_late(self.given_back)
        return ended

    @property
    def ends_later(self) -> bool:
        """Whether `end_later` is of any use: not in a forked child, nor once the pool's store is closed."""
        return self._left_at is None and (self.given_back is None or self._worker.ends_later)

    def end_later(self, hold: Hold, said: Said) -> None:
        """Settle without ever waiting."""
        self.guessed |= said.estimated or said.tokens is None
        super().end_later(hold, said)
        if self.given_back is not None:
            self._worker.tell_later(self.given_back)

    def void_hold(self, hold: Hold) -> Settlement:
        """End a hold without spending."""
        self._check_process()
        return super().void_hold(hold)

    def extend_hold(
        self,
        hold: Hold,
        tokens: int = 0,
        expires_s: float | None = None,
        key: str | None = None,
        usd: Money | None = None,
    ) -> tuple[Transfer, ...]:
        """Set more aside: what the slice does not cover is asked for first. None, once it was given back."""
        self._check_process()
        if self.given_back is not None:
            raise HoldEndedError(hold.hold_id, "expired", "extended", hold.settlement)
        amounts = amounts_of(tokens, usd, 0)
        ceiling = hold.ceiling_of(hold.amount + tokens) if tokens and usd is None else None
        if ceiling is not None:
            amounts[USD] = max(0, ceiling - hold.usd)
        with self._lock:
            self.ledger.look()
            short = Amounts(*(self._lacks(hold, axis, amounts.get(axis, 0)) for axis in AXES))
        if any(short):
            self._worker.ask_for(self, hold.agent_name, short)
        return super().extend_hold(hold, tokens, expires_s, key, usd)

    def _lacks(self, hold: Hold, axis: Axis, amount: int) -> int:
        own = self.ledger.look_up(axis, hold.books)
        return 0 if not amount or own is None or not own.capped else max(0, amount - own.remaining)

    def remaining(self, agent_name: str, axis: Axis = TOKENS) -> int | None:
        """Return what the agent has left, in the shared pool and here."""
        return self._worker.remaining(agent_name, axis)

    def should_wind_down(self, hold: Hold) -> bool:
        """Return whether the budget of the shared pool is nearly used up."""
        return self._worker.should_wind_down(hold)


class SliceBooks:
    """The local books of one lease: a pool of one agent whose caps are what is leased."""

    def __init__(
        self, manager: SliceDesk, agent_name: str, hold_id: int, leased: dict[Axis, int | None]
    ) -> None:
        self.manager = manager
        self.agent_name = agent_name
        self.hold_id = hold_id
        self.told = Amounts()  # the total that the shared pool knows
        usd = leased[USD]
        manager.register_agent(
            agent_name,
            max_tokens=leased[TOKENS],
            min_reserve=0,
            confidence_threshold=1.0,
            max_usd=None if usd is None else dollars(usd),
            max_calls=leased[CALLS],
        )

    def used(self) -> Amounts:
        """Return what was spent in all."""
        return used_of(self.manager.ledger, self.agent_name)

    def in_flight(self) -> Amounts:
        """Return what open holds have set aside."""
        ledger = self.manager.ledger
        with ledger.lock:
            ledger.look()
            books = ledger.find(self.agent_name)
            found = [ledger.look_up(axis, books) for axis in AXES]
            calls = len(ledger.open_holds) if found[2] is None else found[2].held
            return Amounts(books.held, 0 if found[1] is None else found[1].held, calls)

    def grant(self, more: dict[Axis, int]) -> None:
        """Raise the caps."""
        self.manager.top_up(
            self.agent_name,
            more.get(TOKENS, 0),
            usd=dollars(more[USD]) if more.get(USD) else None,
            calls=more.get(CALLS, 0),
        )

    def take_guessed(self) -> bool:
        """Return whether some of what was spent since this was last asked is an estimate."""
        guessed, self.manager.guessed = self.manager.guessed, False
        return guessed

    def stop(self) -> None:
        """Grant no hold any more."""
        self.manager.report_confidence(self.agent_name, 1.0)

    def go_on(self) -> None:
        """Grant holds again."""
        self.manager.reset_confidence(self.agent_name)

    def give_back(self) -> None:
        """Grant no hold any more; what settles say from now on is told by themselves."""
        self.stop()
        self.manager.given_back = self


def numbers_of_slices() -> count[int]:
    """Return from where each slice of a worker numbers its holds; every worker begins somewhere else."""
    return count(_NUMBERS_FROM + secrets.randbelow(2**51), _NUMBERS_EACH)


def shortfalls(decision: Decision | None) -> Amounts:
    """Return what a decision lacks, by axis; nothing if there is none."""
    if decision is None:
        return Amounts()
    short = {each.axis: each.shortfall for each in (decision, *decision.others)}
    return Amounts(short.get(TOKENS, 0), short.get(USD, 0), short.get(CALLS, 0))


def dollars(nano: int) -> Decimal:
    """Return nano-dollars as dollars."""
    return Decimal(nano).scaleb(-9)
