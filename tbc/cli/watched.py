"""What `tbc watch` knows of a pool: read once as a whole, and from then on only what is new.

Nothing is written, and nothing is decided or drawn here: a `Sight` is what there is to see at one moment.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tbc.axes import TOKENS, USD, Axis
from tbc.errors import StoreMissingError
from tbc.stores.rows import AccountRow, AgentRow, LineRow, Mark

if TYPE_CHECKING:
    from tbc.stores.store import Store

__all__ = ["WINDOW_S", "Move", "Place", "Refusal", "Share", "Sight", "Sums", "Watched"]

#: The spend rate is that of the last so many seconds.
WINDOW_S: Final = 60.0
#: How many lines of the journal are read at first: for the last transfers, activity and the rate.
_TAIL: Final = 2_000
_LAST: Final = 5
_AXES: Final[tuple[Axis, ...]] = (TOKENS, USD)
_REFUSED: Final = ("budget_exhausted", "would_refuse")
#: What gives an account its own budget is no transfer.
_TERMS: Final = frozenset({"register", "replace"})


class Move(NamedTuple):
    """Allocation that went from one account to another."""

    at: float
    donor: str
    recipient: str
    kind: str
    axis: Axis
    amount: int


class Refusal(NamedTuple):
    """A step that was refused, or (audit mode) would have been."""

    at: float
    step: str
    reason: str


class Share(NamedTuple):
    """What has become of an allocation: ``spent + held + reserve + free == allocated + owed``."""

    spent: int
    held: int
    reserve: int
    free: int
    owed: int
    allocated: int

    @classmethod
    def of(cls, account: AccountRow) -> Share:
        """Divide the allocation of an account."""
        remaining = account.allocated - account.consumed - account.held
        left = max(0, remaining)
        reserve = min(account.min_reserve, left)
        return cls(
            account.consumed, account.held, reserve, left - reserve, max(0, -remaining), account.allocated
        )


_NOTHING: Final = Share(0, 0, 0, 0, 0, 0)


class Sums(NamedTuple):
    """An axis of the whole pool: the capped accounts added up, and what was spent without a cap."""

    capped: Share
    uncapped: int
    per_minute: int


class Place(NamedTuple):
    """An agent in the tree of those that are shown.

    Attributes
    ----------
    agent : str
        Its name.
    closed : bool
        Whether its account was closed.
    lasts : tuple of bool
        For every level from the top down to its own: whether it is the last child shown there.
    accounts : dict
        Its accounts by axis.
    """

    agent: str
    closed: bool
    lasts: tuple[bool, ...]
    accounts: dict[str, AccountRow]


class Sight(NamedTuple):
    """What there is to see of a pool.

    Attributes
    ----------
    pool, mode : str
        Its name, and ``"enforce"`` or ``"audit"``.
    seq : int
        The last line of its journal.
    places : tuple of Place
        The agents that are shown, parents before their children.
    agents, open_holds : int
        How many there are, shown or not.
    sums : dict of Sums by axis
        Tokens and dollars, if there are any.
    moves : tuple of Move
        The last transfers, oldest first.
    refusals : tuple of Refusal
        The last refusals that runs have written down, oldest first.
    """

    pool: str
    mode: str
    seq: int
    places: tuple[Place, ...]
    agents: int
    open_holds: int
    sums: dict[Axis, Sums]
    moves: tuple[Move, ...]
    refusals: tuple[Refusal, ...]


class Watched:
    """Follows one pool of a store, reading.

    Parameters
    ----------
    store : Store
        Where it is kept.
    pool : str
        Its name.

    Raises
    ------
    StoreMissingError
        If there is no such pool.
    """

    def __init__(self, store: Store, pool: str) -> None:
        state = store.load_pool(pool, recent=0)
        if state is None:
            raise StoreMissingError(store.path, f"there is no pool {pool!r}", "Name another one")
        self._store = store
        self._pool = state.pool
        self._mark = Mark(state.pool.version, state.pool.seq, state.pool.head)
        self._agents: dict[str, AgentRow] = {}
        self._accounts: dict[str, dict[str, AccountRow]] = {}
        self._totals: dict[str, tuple[Share, int]] = {}
        self._active: dict[str, int] = {}
        self._moves: deque[Move] = deque(maxlen=_LAST)
        self._refusals: deque[Refusal] = deque(maxlen=_LAST)
        self._spent: deque[tuple[float, str, int]] = deque()
        self._hear_books(state.agents, state.accounts)
        self._open = {hold.hold_id for hold in state.holds}
        tail = max(0, state.pool.seq - _TAIL)
        lines = [line for line in store.entries(pool, tail) if line.seq <= state.pool.seq]
        self._known_since = lines[0].at if tail and lines else float("-inf")
        self._hear_lines(lines)
        self._runs = {run.run: 0 for run in store.runs() if run.pool == pool}
        self._hear_runs()

    def look(self) -> bool:
        """Read what is new; return whether anything is.

        Raises
        ------
        StoreError
            If the store, or this past of it, is no longer there.
        """
        news = self._store.news(self._pool.pool, self._mark)
        if news.mark == self._mark:
            return False
        self._mark = news.mark
        self._hear_books(news.agents, news.accounts)
        for hold in news.holds:
            if hold.state == "open":
                self._open.add(hold.hold_id)
            else:
                self._open.discard(hold.hold_id)
        self._hear_lines(news.lines)
        self._hear_runs()
        return True

    def sight(self, now: float, *, most: int = 30) -> Sight:
        """Return what there is to see.

        Parameters
        ----------
        now : float
            Unix seconds, for the spend rate.
        most : int, default 30
            How many agents to show: the last active ones and those above them.
        """
        return Sight(
            self._pool.pool,
            self._pool.mode,
            self._mark.seq,
            self._places(self._most_active(most)),
            len(self._agents),
            len(self._open),
            self._sums(now),
            tuple(self._moves),
            tuple(self._refusals),
        )

    # -- taking in ---------------------------------------------------------------------------------------

    def _hear_books(self, agents: Iterable[AgentRow], accounts: Iterable[AccountRow]) -> None:
        self._agents.update((agent.agent, agent) for agent in agents)
        for account in accounts:
            own = self._accounts.setdefault(account.agent, {})
            before = own.get(account.axis)
            if before is not None:
                self._add(before, -1)
            own[account.axis] = account
            self._add(account, 1)

    def _add(self, account: AccountRow, times: int) -> None:
        """Add an account to the sums of its axis, or take it out (-1)."""
        capped, uncapped = self._totals.get(account.axis, (_NOTHING, 0))
        if account.capped:
            pairs = zip(capped, Share.of(account), strict=True)
            capped = Share(*(whole + times * part for whole, part in pairs))
        else:
            uncapped += times * account.consumed
        self._totals[account.axis] = capped, uncapped

    def _hear_lines(self, lines: Iterable[LineRow]) -> None:
        for line in lines:
            self._active[line.agent_name] = line.seq
            if line.consumed:
                self._spent.append((line.at, line.axis, line.consumed))
            if line.peer is not None and line.kind not in _TERMS:
                axis: Any = line.axis
                self._moves.append(Move(line.at, line.peer, line.agent_name, line.kind, axis, line.allocated))

    def _hear_runs(self) -> None:
        for run, since in self._runs.items():
            for event in self._store.events(run, since):
                self._runs[run] = event.seq
                if event.kind in _REFUSED:
                    body = json.loads(event.body)
                    self._refusals.append(Refusal(event.at, str(body["step"]), str(body["reason"])))

    # -- showing -------------------------------------------------------------------------------------------

    def _most_active(self, most: int) -> set[str]:
        """Return the agents to show: the last active ones, each with those above it if there is room."""

        def rank(agent: AgentRow) -> tuple[bool, int, int, int]:
            tokens = self._accounts.get(agent.agent, {}).get(TOKENS)
            spent = 0 if tokens is None else tokens.consumed
            return not agent.closed, self._active.get(agent.agent, 0), spent, -agent.position

        chosen: set[str] = set()
        for agent in heapq.nlargest(most, self._agents.values(), key=rank):
            chain: list[str] = []
            name: str | None = agent.agent
            while name is not None and name not in chosen and name in self._agents and name not in chain:
                chain.append(name)
                name = self._agents[name].parent
            chosen.update(chain[: most - len(chosen)])
        return chosen

    def _places(self, chosen: set[str]) -> tuple[Place, ...]:
        children: dict[str | None, list[str]] = {}
        for name in sorted(chosen, key=lambda name: self._agents[name].position):
            parent = self._agents[name].parent
            children.setdefault(parent if parent in chosen else None, []).append(name)
        found: list[Place] = []
        tops = children.get(None, [])
        waiting: list[tuple[str, tuple[bool, ...]]] = [(name, ()) for name in reversed(tops)]
        while waiting:
            name, lasts = waiting.pop()
            found.append(Place(name, self._agents[name].closed, lasts, dict(self._accounts.get(name, {}))))
            below = list(reversed(children.get(name, [])))
            waiting += [(child, (*lasts, place == 0)) for place, child in enumerate(below)]
        return tuple(found)

    def _sums(self, now: float) -> dict[Axis, Sums]:
        while self._spent and self._spent[0][0] < now - WINDOW_S:
            self._spent.popleft()
        seconds = min(WINDOW_S, max(1.0, now - self._known_since))
        sums: dict[Axis, Sums] = {}
        for axis in _AXES:
            capped, uncapped = self._totals.get(axis, (_NOTHING, 0))
            if any(capped) or uncapped:
                lately = sum(amount for _, of, amount in self._spent if of == axis)
                sums[axis] = Sums(capped, uncapped, int(lately * 60 / seconds))
        return sums
