"""A pool of a store as it is read by somebody who writes nothing: what `tbc watch --web` serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from tbc.errors import StoreMissingError
from tbc.keeper import Keeper
from tbc.manager import BudgetManager
from tbc.service.refusals import refusals_of_runs
from tbc.stores.rows import Mark, News

if TYPE_CHECKING:
    from tbc.pool import Statement
    from tbc.stores.rows import PoolState
    from tbc.stores.store import Store

__all__ = ["ViewedPool"]

T = TypeVar("T")


class ViewedPool:
    """Stands where a service has a manager, and reads the store whenever it is asked.

    Parameters
    ----------
    store : Store
        Where the pool is kept. Others may write to it meanwhile; nobody has to wait for a reader.
    pool : str
        Its name.

    Raises
    ------
    StoreMissingError
        There is no such pool.
    """

    waits = True
    #: Refusals tell the priority of whoever was refused; here nobody is.
    contracts: Mapping[str, Any] = {}

    def __init__(self, store: Store, pool: str) -> None:
        self._store = store
        self._pool = pool
        self.mode = self._state().pool.mode

    def _state(self) -> PoolState:
        state = self._store.load_pool(self._pool, recent=0)
        if state is None:
            raise StoreMissingError(
                self._store.path, f"there is no pool {self._pool!r}", "Watch one that is there"
            )
        return state

    async def arun(self, operation: Callable[[], T]) -> T:
        """Await what reads the store, without keeping others waiting."""
        return await asyncio.to_thread(operation)

    def statement(self, agent_name: str | None = None) -> Statement:
        """Return the accounts as the store has them; what has expired there and nobody has freed is held."""
        state = self._state()
        # Built in memory by the rules that everybody's books follow, at a time when nothing has expired yet.
        manager: Any = BudgetManager(clock=lambda: -1e18)
        keeper = Keeper(manager, self._store, self._pool)
        with manager.ledger.lock:
            keeper.follow(News(Mark(*state.pool[4:7]), (), state.agents, state.accounts, state.holds))
        found: Statement = manager.statement(agent_name)
        return found._replace(seq=state.pool.seq, at=self._store.clock())

    def refusals(self) -> Iterable[Any]:
        """Return the refusals that runs have written down; those of others are told by whoever refuses."""
        return refusals_of_runs(self._store, self._pool, self.mode)

    def subscribe(self, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Tell nothing: what is no line of the journal is told by whoever writes it."""
        return lambda: None
