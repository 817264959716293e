"""The pools that are served: one manager each, opened when it is first asked for."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tbc.clock import Clock, system_clock
from tbc.errors import HoldEndedError, StoreAwayError
from tbc.holds import Hold
from tbc.leased import LeasedManager
from tbc.service.metrics import Metrics
from tbc.service.probe import Probe
from tbc.service.problems import Problem
from tbc.service.run_records import RunHistory
from tbc.service.viewed import ViewedPool
from tbc.slices import SliceDesk

if TYPE_CHECKING:
    from tbc.stores.store import Store

__all__ = ["OpenPool", "Pools"]

T = TypeVar("T")

#: How many holds are found by their number without asking the books, the last ones.
_REMEMBERED: Final = 20_000
#: Numbers of holds that only this process knows begin beyond those of any journal.
_LOCAL: Final = 2**52
#: Seconds for which a store that was away while a pool was opened is not asked for others.
_AWAY_S: Final = 1.0


class OpenPool:
    """One pool, as requests see it.

    Parameters
    ----------
    name : str
        Its name; also that of the tenant.
    manager : BudgetManager
        Its books. Operations on it never wait in the event loop.
    store : Store, optional
        Where they are kept, if they are.
    """

    def __init__(self, name: str, manager: Any, store: Store | None) -> None:
        self.name = name
        self.manager = manager
        self.store = store
        self.metrics = Metrics()
        self.runs = RunHistory()
        self._holds: dict[int, Hold] = {}
        self._opening = 0
        self._local: dict[int, Hold] = {}  # only this process can end them
        self._numbers = _LOCAL + secrets.randbelow(2**51)
        self._run: Callable[[Callable[[], Any]], Any] | None = None
        if isinstance(manager, LeasedManager):
            self._run = manager.aside
        elif manager.waits:
            self._run = manager.arun

    async def run(self, operation: Callable[[], T]) -> T:
        """Await an operation on the books."""
        if self._run is None:
            return operation()
        done: T = await self._run(operation)
        return done

    # -- holds by number ---------------------------------------------------------------------------------

    def number(self, hold: Hold) -> int:
        """Return the number that clients know a hold by, which is found by it from now on.

        That of the pool's journal; or, if it is spent from a lease of this process, one of its own.
        """
        if isinstance(hold._desk, SliceDesk):
            self._numbers += 1
            self._local[self._numbers] = hold
            if len(self._local) > _REMEMBERED:
                self._forget_ended()
            return self._numbers
        self._holds[hold.hold_id] = hold
        if len(self._holds) > _REMEMBERED:
            del self._holds[next(iter(self._holds))]
        return hold.hold_id

    def _forget_ended(self) -> None:
        self._local = {number: hold for number, hold in self._local.items() if _is_open(hold)}

    @asynccontextmanager
    async def room(self, most: int, key: str | None = None) -> AsyncGenerator[None]:
        """Let another hold be opened in the block, or one that was opened under its key be found again.

        Raises
        ------
        Problem
            So many are open, or about to be: end some first.
        """
        if self._is_full(most):
            self._forget_ended()
        if self._is_full(most):  # only now is the store asked, which may be away
            known = await self.run(partial(self.manager.knows_key, key))  # which frees what has expired
            if not known and self._is_full(most):
                raise Problem(
                    429,
                    "too_many_open_holds",
                    f"{most} holds of this pool are open.",
                    "Settle or void some, or wait until they expire: this request did nothing.",
                    retryable=True,
                    headers={"retry-after": "1"},
                    details={"most": most},
                )
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1

    def _is_full(self, most: int) -> bool:
        return len(self.manager.ledger.open_holds) + len(self._local) + self._opening >= most

    async def find(self, number: int) -> Hold:
        """Return the hold of that number.

        Raises
        ------
        UnknownHoldError
            There is none.
        """
        hold = self._holds.get(number) or self._local.get(number)
        if hold is not None:
            return hold
        found: Hold = await self.run(lambda: self.manager.find_hold(number))
        return found

    async def as_it_stands(self, number: int) -> Hold:
        """Return the hold of that number, ended if its time has passed.

        Raises
        ------
        UnknownHoldError
            There is none.
        """
        hold = await self.find(number)
        if hold.state == "open" and not hold.expires_in_s:
            if isinstance(hold._desk, SliceDesk):
                with hold._desk.ledger.lock:
                    hold._desk.ledger.look()
            else:
                await self.run(partial(self.manager.knows_key, None))  # which ends what has expired
        return hold

    def under(self, number: int, error: HoldEndedError) -> HoldEndedError:
        """Return the error with the number that the client knows."""
        return HoldEndedError(number, error.state, error.attempted, _under(number, error.settlement))

    # -- the journal -------------------------------------------------------------------------------------

    async def entries(self, since: int, most: int) -> tuple[list[Any], bool]:
        """Return so many lines of the journal after line `since`, and whether older ones of them are gone."""
        if self.store is None:
            found = self.manager.ledger.entries(since, most)
            return [entry for entry in found if entry.seq], bool(found) and not found[0].seq
        lines = self.store.entries(self.name, since)
        return await asyncio.to_thread(lambda: list(islice(lines, most))), False

    async def is_ahead(self, since: int) -> bool:
        """Return whether the journal does not reach line `since`: who has read that, has read another one."""
        if not since:
            return False
        lines, folded = await self.entries(since - 1, 1)
        return not lines and not folded

    async def refusals(self) -> Iterable[Any]:
        """Return the last refusals: of this server, or what a pool that is only viewed has of others."""
        if isinstance(self.manager, ViewedPool):
            return await self.run(self.manager.refusals)
        return self.metrics.refusals

    def close(self) -> None:
        """Let go of the books; what is open stays open in a store."""
        if hasattr(self.manager, "close"):
            self.manager.close()


def _is_open(hold: Hold) -> bool:
    return hold.state == "open" and hold.expires_in_s > 0


def _under(number: int, settlement: Any) -> Any:
    return None if settlement is None else settlement._replace(hold_id=number)


class Pools:
    """All pools that are open.

    Parameters
    ----------
    make : callable
        Returns the manager of a pool, by its name; it may wait.
    store : Store, optional
        Where all of them are kept.
    most : int
        How many may be open.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self,
        make: Callable[[str], Any],
        store: Store | None = None,
        *,
        most: int = 1_000,
        clock: Clock = system_clock,
    ) -> None:
        self._make = make
        self._store = store
        self._most = most
        self._clock = clock
        self._opening: dict[str, asyncio.Task[OpenPool]] = {}
        self._away: StoreAwayError | None = None
        self._away_until = float("-inf")
        #: Whether the store answers, where there is one.
        self.probe = None if store is None else Probe(store.pools)
        self.open: dict[str, OpenPool] = {}

    async def get(self, name: str) -> OpenPool:
        """Return a pool, opened if it is not; those who ask for it at the same time wait for the same."""
        pool = self.open.get(name)
        if pool is not None:
            return pool
        opening = self._opening.get(name)
        if opening is None:
            if len(self.open) + len(self._opening) >= self._most:
                raise Problem(
                    503,
                    "too_many_pools",
                    f"This server has {self._most} pools open.",
                    "Ask another server.",
                )
            opening = self._opening[name] = asyncio.create_task(self._open(name))
            opening.add_done_callback(lambda done: done.cancelled() or done.exception())  # if all have left
        return await asyncio.shield(opening)

    async def _open(self, name: str) -> OpenPool:
        try:
            manager = self._make(name) if self._store is None else await asyncio.to_thread(self._made, name)
            pool = self.open[name] = OpenPool(name, manager, self._store)
            return pool
        finally:
            del self._opening[name]

    def _made(self, name: str) -> Any:
        """Return a manager; in a thread. Threads are few, and a store that is away takes seconds of each."""
        away = self._away
        if away is not None and self._clock() < self._away_until:
            raise StoreAwayError(away.path, away.reason, away.remedy)
        try:
            return self._make(name)
        except StoreAwayError as error:
            self._away, self._away_until = error, self._clock() + _AWAY_S
            raise

    def open_now(self, name: str) -> None:
        """Open a pool before anything is served; what is wrong with it raises, and all is closed again."""
        try:
            self.open[name] = OpenPool(name, self._make(name), self._store)
        except BaseException:
            self.close()
            raise

    def told(self) -> int:
        """Return how many lines the books have; while they are closed it grows with every lease."""
        return sum(pool.manager.ledger.seq for pool in list(self.open.values()))

    def close(self) -> None:
        """Close all of them, and the store."""
        for pool in self.open.values():
            pool.close()
        self.open.clear()
        if self._store is not None:
            self._store.close()
