"""A worker's manager: spends at memory speed from slices of a shared pool.

`LeasedManager` stands in front of the manager of a shared pool. Each agent that is used here gets a lease
there and books of its own here: holds that fit are granted by those, without a word to the shared pool. What
they cannot cover asks for more in one message, and what a slice cannot cover is held in the shared pool
directly, with its market.

What was spent is told, and what is idle is given back, by `tend`, by holds that ask for more, and by `close`.
A manager with a store calls `tend` in the background: ``BudgetManager(store=..., lease=Lease())`` puts a
`LeasedManager` in front of one. In front of any other, call it yourself.

Examples
--------
>>> import tbc
>>> from tbc import BudgetManager, Lease
>>> shared = BudgetManager(max_tokens=10_000)
>>> contract = shared.register_agent("writer", max_tokens=0)
>>> with LeasedManager(shared, Lease(share=0.1, seconds=30), holder="worker-1") as manager:
...     with manager.hold("writer", 500) as hold:
...         settlement = hold.settle(tokens=420)
...     shared.remaining(tbc.ROOT)  # a slice of 1,000 is set aside
9000
>>> shared.report()["writer"]["consumed"]
420
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from tbc.axes import CALLS, TOKENS, USD, Axis
from tbc.clock import Clock, system_clock
from tbc.contract import ROOT, check_amount
from tbc.decision import Decision
from tbc.errors import BudgetExceededError, SliceTooSmallError, StoreError, TBCError, UnknownHoldError
from tbc.holds import Hold, PendingHold, Said
from tbc.leases import Amounts, Lease, LeaseHolder, Refused, Report
from tbc.pool import has_reached, nano_dollars
from tbc.slices import (
    SliceBooks,
    SliceDesk,
    Waits,
    dollars,
    may_wait,
    numbers_of_slices,
    shortfalls,
    without_waiting,
)
from tbc.stored import WaitingHold, undo_of

if TYPE_CHECKING:
    from tbc.contract import BudgetContract
    from tbc.govern import Governed
    from tbc.manager import BudgetManager
    from tbc.money import Money
    from tbc.pool import Statement
    from tbc.tree import Account

__all__ = ["LeasedManager"]


class _Seat:
    """An agent's place in this worker: what it leases, and the books it spends from."""

    __slots__ = ("books", "holder", "lock", "tended", "tended_used", "until", "watched")

    def __init__(self, holder: LeaseHolder) -> None:
        self.lock = threading.Lock()
        self.holder = holder
        self.books: SliceBooks | None = None
        self.until = -inf  # of the worker's clock: no local hold from then on
        self.watched: list[SliceBooks] = []  # given back: while calls are in flight, or one has ended late
        self.tended = -inf
        self.tended_used = Amounts()

    def used(self) -> Amounts:
        return Amounts() if self.books is None else self.books.used()


class LeasedManager:
    """Holds for the agents of a shared pool, spent locally from leases.

    Parameters
    ----------
    shared : BudgetManager
        The shared pool.
    lease : Lease, optional
        How large slices are, and for how long.
    holder : str, default "worker"
        The name of this worker, for those who look at the leases.
    clock : Clock, optional
        Seconds of this worker's own clock; it need not agree with the pool's.

    Notes
    -----
    Thread-safe. After a fork the child has none of its parent's leases; over a store it has to open a manager
    of its own: every operation of this one raises `StoreError` there. Holds with a `key`, and those of the
    root, go to the shared pool: a key must be known to all. In ``audit`` mode nothing is refused here either.

    At `close`, calls in flight are booked in full, as what may have been sent is; what they say later is told
    if it is more. Of a hold that has expired nothing is booked until it is settled: late, and once. A settle
    of a hold whose lease has been given back is answered when the shared pool has it; else it raises, and the
    same settle, `tend` and `close` tell it again, but nobody any more once a store of its own is closed.
    """

    def __init__(
        self,
        shared: BudgetManager,
        lease: Lease | None = None,
        *,
        holder: str = "worker",
        clock: Clock = system_clock,
    ) -> None:
        self._shared = shared
        self._lease = Lease() if lease is None else lease
        self._holder = holder
        self._clock = clock
        self._life = uuid4().hex
        self._numbers = numbers_of_slices()
        self._seats: dict[str, _Seat] = {}
        self._adding = threading.Lock()
        self._tended = clock()
        self._closed = False
        self._owns_shared = False
        myself = weakref.ref(self)
        self._at_exit: Callable[[], None] = lambda: _close(myself)
        atexit.register(self._at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: _forget(myself))

    @classmethod
    def over(cls, shared: BudgetManager, lease: Lease, holder: str | None) -> LeasedManager:
        """Return a worker that owns its shared manager: closing one closes both."""
        worker = cls(shared, lease, holder=holder or f"{socket.gethostname()}:{os.getpid()}")
        worker._owns_shared = True
        cast("Any", shared).worker = weakref.ref(worker)
        return worker

    def __getattr__(self, name: str) -> Any:
        """Return what is not said here: it is the shared manager's."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._shared, name)

    # -- holds -----------------------------------------------------------------------------------------

    def hold(
        self,
        agent_name: str,
        tokens: int = 0,
        *,
        usd: Money | None = None,
        calls: int = 1,
        model: str | None = None,
        expires_s: float = 600,
        key: str | None = None,
        operation: str | None = None,
        at_least: int | None = None,
    ) -> Hold:
        """Set an amount aside before a call; the same as `BudgetManager.hold`, from a lease if it fits."""
        how: dict[str, Any] = {
            "usd": usd,
            "calls": calls,
            "model": model,
            "expires_s": expires_s,
            "operation": operation,
        }

        def locally(manager: SliceDesk) -> Hold:
            return manager.hold(agent_name, tokens, **how)

        def directly() -> Hold:
            return self._shared.hold(agent_name, tokens, **how, key=key, at_least=at_least)

        if key is not None:
            may_wait()
            return directly()
        priced = {"usd": usd, "calls": calls, "model": model}
        return self._hold(agent_name, tokens, priced, locally, directly)

    def hold_call(
        self,
        agent_name: str,
        input_tokens: int,
        output_tokens: int,
        *,
        at_least: int,
        model: str | None,
        expires_s: float,
        operation: str | None,
    ) -> Hold:
        """Set aside what a call may use at most, for `govern`; see `BudgetManager.hold_call`.

        From a lease in full; in the shared pool the output may be made smaller.
        """
        tokens = check_amount("tokens", input_tokens + output_tokens)
        how: dict[str, Any] = {"model": model, "expires_s": expires_s, "operation": operation}

        def locally(manager: SliceDesk) -> Hold:
            return manager.hold_call(agent_name, input_tokens, output_tokens, at_least=tokens, **how)

        def directly() -> Hold:
            return self._shared.hold_call(agent_name, input_tokens, output_tokens, at_least=at_least, **how)

        return self._hold(agent_name, tokens, {"model": model}, locally, directly)

    def ahold(self, agent_name: str, tokens: int = 0, **how: Any) -> PendingHold:
        """Await `hold`, or use it as an async context manager; the same arguments."""
        asked = partial(self.hold, agent_name, tokens, **how)

        async def asking() -> Hold:
            try:
                with without_waiting():
                    return asked()
            except Waits:
                granted: Hold = await self._shared.aside(asked, undo=undo_of(how))
                return granted

        return WaitingHold(asking())

    async def aside(
        self, work: Callable[..., Any], *values: Any, undo: Callable[[Any], Any] | None = None
    ) -> Any:
        """Await what may wait for the shared pool. If nobody waits any more, it is undone."""
        if undo is not None:  # the beginning of a call: mostly a slice covers it
            try:
                with without_waiting():
                    return work(*values)
            except Waits:
                pass
        return await self._shared.aside(work, *values, undo=undo)

    def end_later(self, hold: Hold, said: Said) -> None:
        """End a hold without ever waiting; for finalizers."""
        hold._desk.end_later(hold, said)

    def govern(
        self, agent_name: str, confidence_fn: Callable[[Any], float | None] | None = None, **how: Any
    ) -> Governed:
        """Return a decorator that governs functions; the same arguments as `BudgetManager.govern`."""
        governor: Any = self._shared.govern(agent_name, confidence_fn, **how)
        governor.manager = self
        governed: Governed = governor
        return governed

    def now(self) -> float:
        """Return the seconds of this worker's clock."""
        return self._clock()

    @property
    def store_path(self) -> str | None:
        """Where the shared pool is kept, if it is."""
        store = getattr(self._shared, "_store", None)
        return None if store is None else str(store.path)

    @property
    def ends_later(self) -> bool:
        """Whether the shared pool still hears of what nobody waits for: not once its store is closed."""
        return bool(self._shared.ends_later)

    def ask_for(self, desk: SliceDesk, agent_name: str, more: Amounts) -> None:
        """Ask for more of an agent's lease. If it cannot be had, the books here say so."""
        may_wait()
        seat = self._seats.get(agent_name)
        if seat is not None:
            with seat.lock, suppress(TBCError):
                if seat.books is not None and seat.books.manager is desk:  # it has not been given back
                    self._ask(seat, more)

    def tell_late(self, books: SliceBooks) -> None:
        """Tell what was spent of a lease that has been given back, and return when it is booked.

        Raises
        ------
        StoreError
            It could not be told. It is tried again by `tend`, by `close`, and by the same settle.
        """
        may_wait()
        seat = self._seats.get(books.agent_name)
        if seat is not None:
            seat.watched.append(books)
            with seat.lock:
                self._say_finals(seat)

    def tell_later(self, books: SliceBooks) -> None:
        """Have `tend` tell it; for finalizers, which must not wait."""
        seat = self._seats.get(books.agent_name)
        if seat is not None:
            seat.watched.append(books)

    def _hold(
        self,
        agent_name: str,
        tokens: int,
        priced: dict[str, Any],
        locally: Callable[[SliceDesk], Hold],
        directly: Callable[[], Hold],
    ) -> Hold:
        """Hold from the lease, or from a larger one, or else in the shared pool."""
        if agent_name == ROOT:  # no agent, that could have books of its own here
            may_wait()
            return directly()
        seat = self._seats.get(agent_name)
        if seat is not None and self._clock() < seat.until:
            books = seat.books
            if books is not None:
                try:
                    return locally(books.manager)
                except BudgetExceededError:
                    pass
        may_wait()
        if not self._closed:
            try:
                self.tend()
                granted = self._hold_from_more(agent_name, tokens, priced, locally)
                if granted is not None:
                    return granted
            except StoreError:
                if getattr(self._shared, "_away", None) is None:  # an allowance of the shared manager's
                    raise
        try:
            return directly()
        except BudgetExceededError:
            if not self._give_back_idle():
                raise
        return directly()  # with what lay idle here

    def _hold_from_more(
        self,
        agent_name: str,
        tokens: int,
        priced: dict[str, Any],
        locally: Callable[[SliceDesk], Hold],
    ) -> Hold | None:
        """Lease (more), and hold from that; ``None`` if a slice does not cover it."""
        seat = self._seat(agent_name)
        usd = priced.get("usd")
        with seat.lock:
            for _ in range(4):  # an open request of before, a lease that has ended, other threads
                need = Amounts(tokens, 0 if usd is None else nano_dollars("usd", usd), priced.get("calls", 1))
                if seat.books is not None:
                    if self._clock() < seat.until:
                        try:
                            return locally(seat.books.manager)
                        except BudgetExceededError as refused:
                            need = shortfalls(refused.decision)
                    else:
                        need = shortfalls(seat.books.manager.decide(agent_name, tokens, **priced))
                if isinstance(self._ask(seat, need), SliceTooSmallError):
                    return None
        return None

    def _ask(self, seat: _Seat, need: Amounts) -> SliceTooSmallError | None:
        """Ask for more, and take the answer; what no slice can help is raised."""
        holder, books = seat.holder, seat.books
        used = seat.used()
        ask = holder.ask(need, used, self._clock())
        answer = self._shared.answer(ask)  # if it raises, the request stays open and is repeated
        assert not isinstance(answer, Report), "that answers reports"
        if books is not None and ask.hold_id is not None:
            books.told = books.told.at_least(ask.used)
        before = holder.leased.copy()
        holder.take(ask.key, answer, seat.used())
        if isinstance(answer, Refused):
            if holder.hold_id is None and books is not None:  # an operator has closed it
                self._retire(seat, books)
                self._say_finals(seat)
            if isinstance(answer.error, SliceTooSmallError):
                return answer.error
            if books is None or holder.hold_id is not None:
                raise answer.error
        elif books is None:
            seat.books = books = self._open_books(seat, answer.hold_id)
        elif holder.usable_until == -inf:  # other axes are capped now
            self._give_back(seat, forced=True)
        else:
            books.grant({axis: (now or 0) - (before[axis] or 0) for axis, now in holder.leased.items()})
        seat.until = holder.usable_until
        return None

    def _seat(self, agent_name: str) -> _Seat:
        seat = self._seats.get(agent_name)
        if seat is None:
            with self._adding:
                seat = self._seats.get(agent_name)
                if seat is None:
                    self._shared.ledger.find(agent_name)  # nobody has no seat
                    seat = _Seat(LeaseHolder(agent_name, self._holder, self._lease, self._life))
                    self._seats[agent_name] = seat
        return seat

    def _open_books(self, seat: _Seat, hold_id: int) -> SliceBooks:
        desk = self._shared.make_slice(self, self._clock)
        desk.ledger.numbers_from = next(self._numbers)
        return SliceBooks(desk, seat.holder.agent_name, hold_id, seat.holder.leased)

    # -- giving back -----------------------------------------------------------------------------------

    def tend(self, *, now: bool = False) -> None:
        """Tell what was spent, renew leases that are in use, and give back what is idle; in good time.

        Call it as often as you like, e.g. between calls: it does nothing until a quarter of a lease's length
        has passed, unless it is to be `now`. Holds that ask for more call it too. A renewal that is refused,
        e.g. as the agent's gate has closed, is no error here: the agent's next hold says so.

        Raises
        ------
        StoreError
            The shared pool cannot be asked. What was to be told is told the next time.
        """
        time = self._clock()
        if not now and time < self._tended + self._lease.seconds / 4:
            return
        self._tended = time
        for seat in list(self._seats.values()):
            if not seat.lock.acquire(blocking=now):
                continue  # it is asking for more: that reports too
            try:
                self._tend_seat(seat, time)
            finally:
                seat.lock.release()

    def _tend_seat(self, seat: _Seat, time: float) -> None:
        self._say_finals(seat)
        books = seat.books
        if books is None:
            return
        used = books.used()
        idle = used == seat.tended_used and not any(books.in_flight())
        if idle and time >= seat.tended + self._lease.seconds / 2:
            self._give_back(seat)
        elif not idle:
            seat.tended, seat.tended_used = time, used
            if time >= seat.until - self._lease.seconds / 2:
                try:
                    self._ask(seat, Amounts())
                except StoreError:
                    raise
                except TBCError:  # its business, and that of no other agent: its next hold says so
                    pass
            self._tell(seat)

    def _tell(self, seat: _Seat) -> None:
        books = seat.books
        if books is None:
            return
        used = books.used()
        if seat.holder.hold_id is None or used == books.told:
            return
        guessed = books.take_guessed()
        try:
            report = seat.holder.report(used, estimated=guessed)
            assert report is not None, "it has a lease"
            self._shared.answer(report)
        except BaseException:
            books.manager.guessed |= guessed
            raise
        books.told = used

    def _give_back(self, seat: _Seat, *, forced: bool = False) -> bool:
        """End the seat's lease; with calls in flight only if it is forced: they are booked in full."""
        books = seat.books
        if books is None:
            return False
        books.stop()  # first: what is granted after the total was taken would be nobody's
        flying = books.in_flight()
        if any(flying) and not forced:
            books.go_on()
            return False
        seat.holder.close(books.used().plus(flying), estimated=any(flying) or books.take_guessed())
        self._retire(seat, books)
        self._say_finals(seat)
        return True

    def _retire(self, seat: _Seat, books: SliceBooks) -> None:
        books.give_back()  # first: who settles after the total was taken is either seen below or tells it
        books.told = seat.holder.closing.get(books.hold_id, books.told)
        seat.watched.append(books)  # also if none is in flight any more: one may just have ended
        seat.books, seat.until, seat.tended_used = None, -inf, Amounts()

    def _tell_late(self, seat: _Seat, *, last: bool = False) -> None:
        """Note what calls of leases that were given back have cost more than was booked for them.

        A hold that expires is no call in flight: if it is settled after all, its books come here again. At
        the `last` time calls still in flight, of a lease that an operator has closed, are booked in full.
        """
        for books in list(dict.fromkeys(seat.watched)):
            times = seat.watched.count(books)  # whoever settles from now on notes them once more
            flying = books.in_flight()
            used = books.used().plus(flying) if last else books.used()
            total = books.told.at_least(used)
            if total != books.told:
                seat.holder.amend(books.hold_id, total, estimated=any(flying) or books.take_guessed())
                books.told = total
            for _ in range(times - any(flying)):
                seat.watched.remove(books)

    def _say_finals(self, seat: _Seat) -> None:
        self._tell_late(seat)
        for report in seat.holder.final_reports():
            self._shared.answer(report)
            seat.holder.acknowledged(report)

    def _give_back_idle(self) -> bool:
        """Give back every lease that no call is using; returns whether there was one."""
        given = False
        for seat in list(self._seats.values()):
            with seat.lock:
                given |= self._give_back(seat)
        return given

    def close(self) -> None:
        """Give everything back. Holds after that go to the shared pool.

        Raises
        ------
        StoreError
            Something could not be told; it stays set aside. Call it again.
        """
        self._closed = True
        failed: StoreError | None = None
        for seat in list(self._seats.values()):
            try:
                with seat.lock:
                    self._shut(seat)
            except StoreError as error:
                failed = error
        if failed is not None:
            raise failed
        atexit.unregister(self._at_exit)
        if self._owns_shared:
            stored: Any = self._shared
            stored.close()

    def _shut(self, seat: _Seat) -> None:
        holder = seat.holder
        self._give_back(seat, forced=True)
        holder.shut_down(Amounts())
        if holder.asked is not None:  # nobody knows whether it was granted: ask, and give that back
            ask = holder.asked
            answer = self._shared.answer(ask)
            assert not isinstance(answer, Report), "that answers reports"
            holder.take(ask.key, answer, Amounts())
        self._tell_late(seat, last=True)
        self._say_finals(seat)

    def __enter__(self) -> LeasedManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- reading ---------------------------------------------------------------------------------------

    def find_hold(self, hold_id: int) -> Hold:
        """Return the hold of that number: out of a lease, open or ended lately, or in the shared pool.

        Raises
        ------
        UnknownHoldError
            There is none, it is another worker's, it is a lease, or it is forgotten: as one that has ended
            is when its slice has been given back.
        """
        for seat in list(self._seats.values()):
            for books in (seat.books, *seat.watched):
                if books is not None:
                    with suppress(UnknownHoldError):
                        return books.manager.find_hold(hold_id)
        return self._shared.find_hold(hold_id)

    def decide(self, agent_name: str, tokens: int = 0, **how: Any) -> Decision:
        """Return what `hold` would do, and why: from the lease if that covers it, else in the shared pool."""
        seat = self._seats.get(agent_name)
        if seat is not None and self._clock() < seat.until:
            books = seat.books
            if books is not None:
                local = books.manager.decide(agent_name, tokens, **how)
                if not local.status.refuses:
                    return local
        return self._shared.decide(agent_name, tokens, **how)

    def remaining(self, agent_name: str, axis: Axis = TOKENS) -> int | None:
        """Return what the agent has left in the shared pool and in its lease here (``None``: uncapped)."""
        left = self._shared.remaining(agent_name, axis)
        seat = self._seats.get(agent_name)
        books = None if seat is None else seat.books
        if left is None or books is None:
            return left
        return left + (books.manager.ledger.remaining(agent_name, axis) or 0)

    def report(self, axis: Axis = TOKENS) -> dict[str, dict[str, int | None]]:
        """Tell what was spent here, and return the shared pool's report."""
        self._tell_all()
        return self._shared.report(axis)

    def accounts(self, axis: Axis = TOKENS) -> tuple[Account, ...]:
        """Tell what was spent here, and return the shared pool's accounts; what is leased is held there."""
        self._tell_all()
        return self._shared.accounts(axis)

    def statement(self, agent_name: str | None = None) -> Statement:
        """Tell what was spent here, and return the shared pool's accounts; what is leased is held there."""
        self._tell_all()
        return self._shared.statement(agent_name)

    def used(self) -> dict[Axis, tuple[int, int]]:
        """Tell what was spent here, and return what was spent and granted in all; as the shared pool says."""
        self._tell_all()
        return self._shared.used()

    def _tell_all(self) -> None:
        may_wait()
        for seat in list(self._seats.values()):
            with seat.lock:
                self._say_finals(seat)
                self._tell(seat)

    def should_wind_down(self, hold: Hold) -> bool:
        """Return whether the budget is nearly used up; see `BudgetManager.should_wind_down`."""
        share = self._shared._wind_down_at
        if any(has_reached(share, used, total) for used, total in self.used().values()):
            return True
        parts = {part.books.axis: part.amount for part in (hold, *hold.others)}
        usd = dollars(parts[USD]) if parts.get(USD) else None
        decision = self.decide(hold.agent_name, hold.amount, usd=usd, calls=parts.get(CALLS, 0))
        return decision.status.refuses

    # -- changing agents -------------------------------------------------------------------------------

    def report_confidence(self, agent_name: str, confidence: float) -> None:
        """Store a confidence in the shared pool; the next hold here asks there first."""
        may_wait()
        self._shared.report_confidence(agent_name, confidence)
        self._ask_first(agent_name)

    def update_agent(self, agent_name: str, **terms: Any) -> BudgetContract:
        """Change an agent's terms in the shared pool; the next hold here asks there first."""
        contract = self._shared.update_agent(agent_name, **terms)
        self._ask_first(agent_name)
        return contract

    def close_agent(self, agent_name: str, *, key: str | None = None) -> None:
        """Give back what is leased of an agent, and close its account.

        Raises
        ------
        AgentInUseError
            It has open holds, here or elsewhere, or children, or another worker leases its budget.
        """
        seat = self._seats.get(agent_name)
        if seat is not None:
            with seat.lock:
                self._give_back(seat)
        self._shared.close_agent(agent_name, key=key)

    def _ask_first(self, agent_name: str) -> None:
        seat = self._seats.get(agent_name)
        if seat is not None:
            with seat.lock:
                seat.until = seat.holder.usable_until = -inf


def _close(myself: weakref.ref[LeasedManager]) -> None:
    manager = myself()
    if manager is not None:
        manager.close()


def _forget(myself: weakref.ref[LeasedManager]) -> None:
    """In a forked child: the leases are the parent's."""
    manager = myself()
    if manager is not None:
        manager._seats, manager._life, manager._adding = {}, uuid4().hex, threading.Lock()
        manager._numbers = numbers_of_slices()
