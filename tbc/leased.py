"""A worker's manager: spends at memory speed from slices of a shared pool.

`LeasedManager` stands in front of the manager of a shared pool. Each agent that is used here gets a lease
there and books of its own here: holds that fit are granted by those, without a word to the shared pool. What
they cannot cover asks for more in one message, and what a slice cannot cover is held in the shared pool
directly, with its market.

There is no thread behind it: what was spent is told, and what is idle is given back, by `tend`, by holds that
ask for more, and by `close`.

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
import threading
import weakref
from collections.abc import Callable
from decimal import Decimal
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tbc.axes import AXES, CALLS, TOKENS, USD, Axis
from tbc.clock import Clock, system_clock
from tbc.decision import Decision
from tbc.errors import BudgetExceededError, SliceTooSmallError, StoreError
from tbc.holds import Hold, PendingHold
from tbc.leases import Amounts, Lease, LeaseHolder, Refused, Report
from tbc.manager import BudgetManager
from tbc.pool import nano_dollars

if TYPE_CHECKING:
    from tbc.money import Money

__all__ = ["LeasedManager"]

#: What one seat keeps of its journal; the shared pool has the lasting one.
_KEEP = 256


class _Books:
    """The local books of one lease: a pool of one agent whose caps are what is leased."""

    def __init__(self, manager: BudgetManager, agent_name: str, hold_id: int) -> None:
        self.manager = manager
        self.agent_name = agent_name
        self.hold_id = hold_id
        self.told = Amounts()  # the total that the shared pool knows

    def used(self) -> Amounts:
        """Return what was spent in all."""
        ledger, name = self.manager.ledger, self.agent_name
        with ledger.lock:
            ledger.look()
            books = ledger.find(name)
            tokens, usd, calls = (ledger.row(books, axis)["consumed"] or 0 for axis in AXES)
            dollars = ledger.look_up(USD, books)
            return Amounts(tokens, usd, calls, 0 if dollars is None else dollars.unpriced)

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
            usd=_dollars(more[USD]) if more.get(USD) else None,
            calls=more.get(CALLS, 0),
        )

    def stop(self) -> None:
        """Grant no hold any more."""
        self.manager.report_confidence(self.agent_name, 1.0)

    def go_on(self) -> None:
        """Grant holds again."""
        self.manager.reset_confidence(self.agent_name)


class _Seat:
    """An agent's place in this worker: what it leases, and the books it spends from."""

    __slots__ = ("books", "hold", "holder", "lock", "tended", "tended_used", "until", "watched")

    def __init__(self, holder: LeaseHolder) -> None:
        self.lock = threading.Lock()
        self.holder = holder
        self.books: _Books | None = None
        self.until = -inf  # of the worker's clock: no local hold from then on
        self.hold: Callable[..., Hold] = _nobody
        self.watched: list[_Books] = []  # given back with calls in flight
        self.tended = -inf
        self.tended_used = Amounts()

    def used(self) -> Amounts:
        return Amounts() if self.books is None else self.books.used()


def _nobody(*_: Any, **__: Any) -> Hold:
    raise AssertionError("a seat without a lease grants nothing")


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
    Thread-safe; after a fork the child begins with leases of its own. Holds with a `key` go to the shared
    pool, as a key must be known to all. In ``audit`` mode nothing is refused here either.

    At `close`, calls in flight are booked in full, as everything that may have been sent is. What they say
    later is told if it is more.
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
        self._seats: dict[str, _Seat] = {}
        self._adding = threading.Lock()
        self._tended = clock()
        self._closed = False
        myself = weakref.ref(self)
        self._at_exit: Callable[[], None] = lambda: _close(myself)
        atexit.register(self._at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: _forget(myself))

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
        seat = self._seats.get(agent_name)
        if seat is not None and key is None and self._clock() < seat.until:
            try:
                return seat.hold(
                    agent_name,
                    tokens,
                    usd=usd,
                    calls=calls,
                    model=model,
                    expires_s=expires_s,
                    operation=operation,
                )
            except BudgetExceededError:
                pass
        how: dict[str, Any] = {
            "usd": usd,
            "calls": calls,
            "model": model,
            "expires_s": expires_s,
            "operation": operation,
        }
        if key is None and not self._closed:
            self.tend()
            granted = self._hold_from_more(agent_name, tokens, how)
            if granted is not None:
                return granted
        how.update(key=key, at_least=at_least)
        try:
            return self._shared.hold(agent_name, tokens, **how)
        except BudgetExceededError:
            if key is not None or not self._give_back_idle():
                raise
        return self._shared.hold(agent_name, tokens, **how)  # with what lay idle here

    def ahold(self, agent_name: str, tokens: int = 0, **how: Any) -> PendingHold:
        """Await `hold`, or use it as an async context manager; the same arguments."""
        return PendingHold(lambda: self.hold(agent_name, tokens, **how))

    def _hold_from_more(self, agent_name: str, tokens: int, how: dict[str, Any]) -> Hold | None:
        """Lease (more), and hold from that; ``None`` if a slice does not cover it."""
        seat = self._seat(agent_name)
        with seat.lock:
            for _ in range(4):  # an open request of before, a lease that has ended, other threads
                need = Amounts(tokens, 0, how["calls"])
                if seat.books is not None:
                    if self._clock() < seat.until:
                        try:
                            return seat.hold(agent_name, tokens, **how)
                        except BudgetExceededError as refused:
                            need = _short(refused.decision)
                    else:
                        need = _short(seat.books.manager.decide(agent_name, tokens, **_priced(how)))
                elif how["usd"] is not None:
                    need = need._replace(usd=nano_dollars("usd", how["usd"]))
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
            if isinstance(answer.error, SliceTooSmallError):
                return answer.error
            if books is None or holder.hold_id is not None:
                raise answer.error
        elif books is None:
            seat.books = books = self._open_books(seat, answer.hold_id)
            seat.hold = books.manager.hold
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

    def _open_books(self, seat: _Seat, hold_id: int) -> _Books:
        name, leased, shared = seat.holder.agent_name, seat.holder.leased, self._shared
        manager = BudgetManager(
            mode=shared.mode, keep=_KEEP, clock=self._clock, unknown_price=shared._unknown_price
        )
        manager._prices = shared._prices
        manager._price_table = shared._price_table
        usd = leased[USD]
        manager.register_agent(
            name,
            max_tokens=leased[TOKENS],
            min_reserve=0,
            confidence_threshold=1.0,
            max_usd=None if usd is None else _dollars(usd),
            max_calls=leased[CALLS],
        )
        return _Books(manager, name, hold_id)

    # -- giving back -----------------------------------------------------------------------------------

    def tend(self, *, now: bool = False) -> None:
        """Tell what was spent, renew leases that are in use, and give back what is idle; in good time.

        Call it as often as you like, e.g. between calls: it does nothing until a quarter of a lease's length
        has passed, unless it is to be `now`. Holds that ask for more call it too.
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
        self._tell_late(seat)
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
                self._ask(seat, Amounts())
            else:
                self._tell(seat)

    def _tell(self, seat: _Seat) -> None:
        books = seat.books
        if books is None:
            return
        used = books.used()
        report = seat.holder.report(used)
        if report is not None and used != books.told:
            self._shared.answer(report)
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
        seat.holder.close(books.used().plus(flying))
        self._retire(seat, books)
        self._say_finals(seat)
        return True

    def _retire(self, seat: _Seat, books: _Books) -> None:
        books.stop()
        books.told = seat.holder.closing.get(books.hold_id, books.told)
        if any(books.in_flight()):
            seat.watched.append(books)
        seat.books, seat.hold, seat.until, seat.tended_used = None, _nobody, -inf, Amounts()

    def _tell_late(self, seat: _Seat) -> None:
        """Say what calls that were in flight have cost more than was booked for them."""
        for books in list(seat.watched):
            used = books.used()
            if books.told.at_least(used) != books.told:
                books.told = books.told.at_least(used)
                seat.holder.amend(books.hold_id, books.told)
            if not any(books.in_flight()):
                seat.watched.remove(books)

    def _say_finals(self, seat: _Seat) -> None:
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

    def _shut(self, seat: _Seat) -> None:
        holder = seat.holder
        self._give_back(seat, forced=True)
        holder.shut_down(Amounts())
        if holder.asked is not None:  # nobody knows whether it was granted: ask, and give that back
            ask = holder.asked
            answer = self._shared.answer(ask)
            assert not isinstance(answer, Report), "that answers reports"
            holder.take(ask.key, answer, Amounts())
        self._tell_late(seat)
        self._say_finals(seat)

    def __enter__(self) -> LeasedManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- reading ---------------------------------------------------------------------------------------

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
        return left + (books.manager.remaining(agent_name, axis) or 0)

    def report(self, axis: Axis = TOKENS) -> dict[str, dict[str, int | None]]:
        """Tell what was spent here, and return the shared pool's report."""
        for seat in list(self._seats.values()):
            with seat.lock:
                self._tell(seat)
        return self._shared.report(axis)

    def report_confidence(self, agent_name: str, confidence: float) -> None:
        """Store a confidence in the shared pool; the next hold here asks there first."""
        self._shared.report_confidence(agent_name, confidence)
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


def _short(decision: Decision | None) -> Amounts:
    """Return what a local decision lacks, by axis."""
    if decision is None:
        return Amounts()
    short = {each.axis: each.shortfall for each in (decision, *decision.others)}
    return Amounts(short.get(TOKENS, 0), short.get(USD, 0), short.get(CALLS, 0))


def _priced(how: dict[str, Any]) -> dict[str, Any]:
    return {name: how[name] for name in ("usd", "calls", "model")}


def _dollars(nano: int) -> Decimal:
    return Decimal(nano).scaleb(-9)
