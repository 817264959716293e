"""A manager whose books are kept in a store: every operation is one of the manager's, run by the clerk."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import json
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from tbc import lifecycle
from tbc.away import Allowance, AwayBooks
from tbc.axes import AXES, format_amount
from tbc.clerk import Clerk
from tbc.clock import StoreClock
from tbc.errors import (
    AgentClosedError,
    InvalidContractError,
    StoreAwayError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreStaleError,
    TBCError,
)
from tbc.holds import Hold, PendingHold
from tbc.keeper import Keeper
from tbc.pool import Pool
from tbc.stores.opening import open_store

if TYPE_CHECKING:
    from tbc.decision import Settlement, Transfer
    from tbc.leases import Amounts
    from tbc.leasing import LeaseHold
    from tbc.ledger import Ledger
    from tbc.stores.store import Store
    from tbc.usage import Usage

__all__ = ["StoredDesk", "WaitingHold", "undo_of"]


#: What reads or writes the books: run where the log of the pool ends.
_OPERATIONS: Final = (
    "accounts",
    "answer",
    "claim_key",
    "close_agent",
    "close_lease",
    "decide",
    "find_hold",
    "govern",
    "hold",
    "hold_call",
    "hold_priced",
    "knows_key",
    "lease",
    "leases",
    "rebalance",
    "record_usage",
    "register_agent",
    "remaining",
    "report",
    "report_confidence",
    "report_lease",
    "reset_confidence",
    "settle_lease",
    "should_wind_down",
    "statement",
    "top_up",
    "update_agent",
    "used",
)
#: Those of them that spend: what an `Allowance` stands in for.
_SPENDING: Final = frozenset({"hold", "hold_call", "hold_priced", "record_usage"})
_AWAY: Final = (StoreAwayError, StoreBusyError, StoreFullError)
#: What the manager of an `Allowance` has of the one it stands in for.
_ALIKE: Final = ("mode", "default_output_tokens", "counter", "prices", "unknown_price", "wind_down_at")
#: How many expired holds one transaction frees at most: others are not to wait for long.
_SWEEP: Final = 500
#: Seconds between two looks at what has expired, and at what others have written.
_EVERY_S: Final = 1.0
_FOLLOW_EVERY_S: Final = 10.0
#: How often a pool that others write to is opened before they are in the way.
_OPEN_TRIES: Final = 8
#: How many governed coroutines can wait for the store at once; others wait for them.
_THREADS: Final = 32

_OPEN: weakref.WeakSet[StoredDesk] = weakref.WeakSet()


class StoredDesk:
    """What a `BudgetManager` does otherwise if its books are kept in a store; mixed in before it."""

    waits = True
    worker: weakref.ref[Any] | None = None
    """The `LeasedManager` that leases here, if one does."""
    plain: Callable[..., Any]
    """The same manager without a store."""

    _clerk: Clerk
    _keeper: Keeper

    def __init__(
        self, *, store: Any, pool: str = "default", when_away: Allowance | None = None, **how: Any
    ) -> None:
        if when_away is not None and not isinstance(when_away, Allowance):
            raise InvalidContractError(f"when_away must be a tbc.Allowance or None, not {when_away!r}")
        caps = {} if when_away is None else when_away.caps
        self._away: AwayBooks | None = None
        if when_away is not None or how.get("mode") == "audit":
            alike = {name: how[name] for name in _ALIKE if name in how}
            self._away = AwayBooks(partial(self.plain, **alike, **caps))
        self._owns_store = isinstance(store, str)
        self._store: Store = open_store(store) if isinstance(store, str) else store
        try:
            if how.get("clock") is None:
                how["clock"] = StoreClock(self._store.clock())
            super().__init__(**how)
            self._pool_name = pool
            self._open_pool()
        except BaseException:
            if self._owns_store:
                self._store.close()
            raise

    def _open_pool(self) -> None:
        manager: Any = self
        ledger = manager.ledger
        keeper = Keeper(manager, self._store, self._pool_name)
        for tries in count(1):
            try:
                ledger.numbers_from = self._store.numbers_from()
                keeper.count_calls()
                with self._store.transaction(self._pool_name):
                    state = self._store.load_pool(self._pool_name)
                    if state is not None:
                        with keeper.readable("what was agreed"):
                            kept = json.loads(state.pool.terms)
                        _check_caps(self._pool_name, kept, manager._caps)
                        keeper.restore(state)
                        break
                with keeper.keep():
                    break
            except StoreStaleError:  # another process was faster: its pool is ours
                continue
            except StoreBusyError:  # many that start at once
                if tries >= _OPEN_TRIES:
                    raise
        ledger.expire_most = _SWEEP
        self._keeper = keeper
        self._clerk = Clerk(keeper, self._store, self._pool_name, ledger, _teller(manager))
        self._threads = ThreadPoolExecutor(_THREADS, "tbc waiting")
        self._sweeper = _Sweeper(self)
        _OPEN.add(self)

    def close(self) -> None:
        """Serve what waits, and let go of the store. Open holds stay in it."""
        _OPEN.discard(self)
        if self._clerk.is_elsewhere:
            return
        self._sweeper.stop()
        self._clerk.ask_again()
        self.bring_home()
        self._threads.shutdown()
        self._clerk.close()
        self._warn_of_what_is_left()
        if self._owns_store:
            self._store.close()

    def _warn_of_what_is_left(self) -> None:
        left = {} if self._away is None else self._away.left()
        if left:
            told = ", ".join(
                f"{name!r}: " + " + ".join(format_amount(axis, n) for axis in AXES if (n := spent.on(axis)))
                for name, spent in left.items()
            )
            warnings.warn(
                f"store {self._store.path!r} does not have what was spent and held while it was away: {told}",
                RuntimeWarning,
                stacklevel=3,
            )

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a manager: open one on the same store in the other process")

    # -- operations ----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell nobody yet: the clerk does, when it is kept."""

    def settle_hold(self, hold: Hold, *how: Any, **more: Any) -> Settlement:
        """End a hold by the actual usage; see `Hold.settle`."""
        settlement: Settlement = self._clerk.run(self._on_hold("settle_hold", hold, how, more))
        return settlement

    def void_hold(self, hold: Hold) -> Settlement:
        """End a hold without spending; see `Hold.void`."""
        settlement: Settlement = self._clerk.run(self._on_hold("void_hold", hold, (), {}))
        return settlement

    def extend_hold(self, hold: Hold, *how: Any, **more: Any) -> tuple[Transfer, ...]:
        """Set more aside, or for longer; see `Hold.extend`."""
        lent: tuple[Transfer, ...] = self._clerk.run(self._on_hold("extend_hold", hold, how, more))
        return lent

    def _note_lease(self, hold: LeaseHold) -> None:
        """Note nothing: the keeper knows the leases."""

    def _look_up_lease(self, hold_id: int, hold: Hold | None = None) -> Hold | None:
        return self._keeper.find_hold(hold_id, hold)

    def _look_up_hold(self, hold_id: int) -> Hold | None:
        return self._keeper.find_hold(hold_id)

    def _on_hold(
        self, name: str, hold: Hold, how: tuple[Any, ...], more: dict[str, Any]
    ) -> Callable[[], Any]:
        """Return an operation on a hold, which may be one that memory has forgotten."""
        operation = getattr(super(), name)

        def operate() -> Any:
            self._keeper.look_again(hold)
            return operation(hold, *how, **more)

        return operate

    def end_later(
        self, hold: Hold, tokens: int | None, *, estimated: bool, usage: Usage | None = None
    ) -> None:
        """Settle (``None``: void) without ever waiting; for finalizers."""
        end_later: Callable[..., None] = super().end_later  # type: ignore[misc]
        spent = "nothing" if tokens is None else f"{tokens} tokens"
        self._clerk.later(
            partial(end_later, hold, tokens, estimated=estimated, usage=usage),
            f"hold {hold.hold_id} of {hold.agent_name!r} with {spent}",
        )

    # -- while the store is away ---------------------------------------------------------------------------

    def _instead(self, error: StoreError, name: str, agent_name: str, *values: Any, **named: Any) -> Any:
        """Do on the allowance what cannot be done in the store; without one, raise the store's error.

        So does a request with a key: whether it was answered before stands in the store.
        """
        if self._away is None or named.get("key") is not None:
            raise error
        manager: Any = self
        with manager.ledger.lock:
            books = manager.ledger.find(agent_name)
        if books.closed:
            raise AgentClosedError(agent_name)
        if books.gate_closed and manager.mode == "enforce":
            raise error
        return self._away.do(name, agent_name, *values, **named)

    def bring_home(self) -> None:
        """Book in the store what was spent while it was away, if it can be reached; it is tried by itself."""
        if self._away is not None:
            with contextlib.suppress(StoreError):
                self._away.bring_home(lambda *spent: self._clerk.run(partial(self._book_away, *spent)))

    def _book_away(self, agent_name: str, spent: Amounts, key: str) -> Settlement:
        """Book what an agent has spent of the allowance; if it is closed by now, its parent pays."""
        manager: Any = self
        ledger: Ledger = manager.ledger
        content = ("away", agent_name, spent)
        with ledger.lock:
            now = ledger.look()
            settlement: Settlement | None = ledger.answers.recall(key, content)
            if settlement is None:
                books, note = ledger.find(agent_name), "while the store was away"
                while books.closed:
                    assert books.parent is not None, "the root is never closed"
                    books, note = books.parent, f"of {agent_name!r} while the store was away"
                usd = spent.usd or None
                lines = lifecycle.as_usage(ledger, books, spent.tokens, usd, spent.calls, spent.unpriced)
                settlement = lifecycle.book_usage(ledger, lines, now, note=note, key=key, model=None)
                manager._remember(key, content, settlement)
        return settlement

    # -- for callers that await ---------------------------------------------------------------------------

    def ahold(self, agent_name: str, tokens: int = 0, **how: Any) -> PendingHold:
        """Await `hold`, or use it as an async context manager; the same arguments.

        If it is cancelled, nothing is set aside; with a `key` the hold stays, and is found under it again.
        """
        hold: Callable[..., Hold] = super().hold  # type: ignore[misc]
        undo = undo_of(how)

        async def asking() -> Hold:
            try:
                granted: Hold = await self._clerk.arun(partial(hold, agent_name, tokens, **how), undo=undo)
            except _AWAY as error:
                granted = self._instead(error, "hold", agent_name, tokens, **how)
            return granted

        return WaitingHold(asking())

    async def arun(self, operation: Callable[[], Any]) -> Any:
        """Await an operation on the books."""
        return await self._clerk.arun(operation)

    async def aside(
        self, work: Callable[..., Any], *values: Any, undo: Callable[[Any], Any] | None = None
    ) -> Any:
        """Await what may wait for the store, done in a thread. If nobody waits any more, it is undone."""
        context = contextvars.copy_context()
        try:
            doing = self._threads.submit(context.run, work, *values)
        except RuntimeError as error:
            raise StoreError(self._store.path, "its manager is closed", "Open it again") from error
        try:
            return await asyncio.shield(asyncio.wrap_future(doing))
        except asyncio.CancelledError:
            if undo is not None and not doing.cancel():
                doing.add_done_callback(partial(self._undo, undo))
            raise

    def _undo(self, undo: Callable[[Any], Any], done: Future[Any]) -> None:
        if done.exception() is None:
            self._clerk.later(partial(undo, done.result()), "what was granted to a caller that had gone")


def _operation(name: str) -> Callable[..., Any]:
    def operation(self: Any, *values: Any, **named: Any) -> Any:
        try:
            return self._clerk.run(partial(getattr(super(StoredDesk, self), name), *values, **named))
        except _AWAY as error:
            if name not in _SPENDING:
                raise
            return self._instead(error, name, *values, **named)

    operation.__name__ = name
    return operation


for _name in _OPERATIONS:
    setattr(StoredDesk, _name, _operation(_name))


class WaitingHold(PendingHold):
    """A hold that is waited for."""

    __slots__ = ("_asking",)

    def __init__(self, asking: Coroutine[Any, Any, Hold]) -> None:
        self._asking = asking
        self._hold = None

    def __await__(self) -> Generator[Any, None, Hold]:
        return self._asking.__await__()

    def send(self, value: Any, /) -> Any:
        """Go on, as the step of a task."""
        return self._asking.send(value)

    def throw(self, error: Any, value: Any = None, trace: Any = None, /) -> Any:
        """Raise what a task is cancelled with."""
        return self._asking.throw(error)

    def close(self) -> None:
        """Ask for nothing."""
        self._asking.close()

    async def __aenter__(self) -> Hold:
        self._hold = await self._asking
        return self._hold.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hold is not None, "left before entered"
        await self._hold.__aexit__(kind, error, trace)


class _Sweeper:
    """Frees what has expired when nobody comes by; also what others held and cannot end any more."""

    def __init__(self, manager: Any) -> None:
        self._manager = weakref.ref(manager)
        self._stopped = threading.Event()
        threading.Thread(target=self._sweep, name="tbc sweeper", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _sweep(self) -> None:
        idle = 0.0
        while not self._stopped.wait(_EVERY_S):
            manager = self._manager()
            if manager is None:
                return
            idle += _EVERY_S
            if manager.ledger.due <= manager.now() or idle >= _FOLLOW_EVERY_S:
                idle = 0.0
                with contextlib.suppress(StoreError):  # the next operation says it
                    manager._clerk.run(partial(_look, manager))
            manager._clerk.try_again()
            manager.bring_home()
            if manager.worker is not None:
                _tend_worker(manager.worker)
            del manager  # while it waits, it keeps nobody alive


def _tend_worker(worker: weakref.ref[Any]) -> None:
    """Let the worker that leases here report, renew, and give back what is idle."""
    leased = worker()
    if leased is not None:
        with contextlib.suppress(TBCError):  # it is tried again
            leased.tend()


def _look(manager: Any) -> None:
    with manager.ledger.lock:
        manager.ledger.look()


def _teller(manager: Any) -> Callable[[], None]:
    """Return what tells subscribers, without keeping the manager alive."""
    known = weakref.ref(manager)

    def tell() -> None:
        manager = known()
        if manager is not None and manager._subscribers is not None:
            Pool._tell(manager)

    return tell


def undo_of(how: dict[str, Any]) -> Callable[[Any], None] | None:
    """Return what ends a hold that nobody waited for; nothing, if it is found again under its key."""
    return _void if how.get("key") is None else None


def _void(hold: Any) -> None:
    if isinstance(hold, Hold) and hold.state == "open":
        hold.void()


@atexit.register
def _close_all() -> None:
    for manager in list(_OPEN):
        with contextlib.suppress(Exception):
            manager.close()


def _check_caps(pool: str, kept: dict[str, int | None], asked: dict[str, int | None]) -> None:
    """Refuse other caps than those the pool was opened with; no caps ask for nothing."""
    for axis in AXES:
        if asked[axis] is not None and kept.get(axis) != asked[axis]:
            was = kept.get(axis)
            raise InvalidContractError(
                f"pool {pool!r} was opened with max_{axis}="
                f"{None if was is None else format_amount(axis, was)}, not "
                f"{format_amount(axis, asked[axis] or 0)}: open it with the same or without, "
                "and change it with top_up(tbc.ROOT, ...)"
            )
