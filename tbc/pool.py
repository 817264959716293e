"""A pool: one root account and the tree of agents below it, behind one lock, with those who listen.

What changes the tree is here; what spends is in `tbc.desk`, what users touch in `tbc.manager`. Every method
checks its input first, then holds the lock, reads the clock once, and tells subscribers after.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import attrs

from tbc import lifecycle, tree
from tbc.axes import AXES, CALLS, TOKENS, USD, Axis
from tbc.clock import Clock, system_clock
from tbc.contract import BudgetContract, check_amount, check_fraction
from tbc.decision import Mode
from tbc.errors import (
    AgentClosedError,
    CarveOutError,
    InvalidAmountError,
    InvalidContractError,
    UnknownHoldError,
)
from tbc.ledger import Books, Ledger
from tbc.reallocator import Reallocator, Rebalance, rebalance

if TYPE_CHECKING:
    from tbc.events import Event, Subscribers, ThresholdReached
    from tbc.holds import Hold
    from tbc.money import Money

__all__ = ["Pool", "Statement", "amounts_of", "has_reached", "nano_dollars"]


class _Unset:
    """Marks an argument that was left out, where ``None`` means something."""

    def __repr__(self) -> str:
        return "<left out>"


_UNSET: Any = _Unset()

T = TypeVar("T")


class Statement(NamedTuple):
    """Accounts as they stand at one moment.

    Attributes
    ----------
    seq : int
        The last line of the journal: the next ones say what has changed since.
    at : float
        When it was, as journals show it.
    open_holds : int
        How many there are in the pool.
    accounts : dict of tuple of Account, by axis
        The root first, then agents in registration order; the axes that are kept, tokens always.
    """

    seq: int
    at: float
    open_holds: int
    accounts: dict[Axis, tuple[tree.Account, ...]]


class Pool:
    """The agents of one pool and their budgets; see `BudgetManager`."""

    def __init__(
        self,
        caps: Mapping[Axis, int | None],
        *,
        mode: Mode,
        clock: Clock | None,
        keep: int,
        warn_at: Sequence[float],
    ) -> None:
        if mode not in ("enforce", "audit"):
            raise InvalidContractError(f"mode must be 'enforce' or 'audit', not {mode!r}")
        if clock is not None and not callable(clock):
            raise InvalidContractError(f"clock must be a callable that returns seconds, not {clock!r}")
        if isinstance(warn_at, str) or not isinstance(warn_at, Sequence):
            raise InvalidContractError(f"warn_at must be a list of shares, not {warn_at!r}")
        self._warn_at = tuple(check_fraction("warn_at", share) for share in warn_at)
        if warn_at and not all(a < b for a, b in zip((0.0, *self._warn_at), self._warn_at, strict=False)):
            raise InvalidContractError(f"warn_at must ascend from above 0 to 1, not {list(warn_at)}")
        self._warned: set[tuple[Axis, float]] = set()
        self._mode: Mode = mode
        self._clock = system_clock if clock is None else clock
        self._subscribers: Subscribers | None = None  # none until somebody subscribes
        self._told = 0  # the last journal entry that subscribers know
        self._notices: deque[Event] = deque()  # what is no journal entry, waiting to be told
        self._elsewhere: list[range] = []  # lines that others wrote, of those that are not told yet
        self.ledger = Ledger(clock=self._clock, keep=check_amount("keep", keep, least=1))
        self.ledger.managed = True
        self.ledger.tend = self._tend
        self._accounts = self.ledger.accounts
        self._lock = self.ledger.lock
        tree.open_root(self.ledger, caps, self._clock())
        self._any_cap = any(cap is not None for cap in caps.values())
        self.contracts: Mapping[str, BudgetContract] = tree.ContractsView(self.ledger)
        self.reallocator = Reallocator(self.contracts, self.ledger)

    # -- agents ----------------------------------------------------------------------------------------

    def register_agent(
        self,
        agent_name: str,
        priority: int = 1,
        max_tokens: int | None = _UNSET,
        min_reserve: int | None = None,
        confidence_threshold: float | None = None,
        *,
        parent: str | None = None,
        replace: bool = False,
        max_usd: Money | None = None,
        min_reserve_usd: Money | None = None,
        max_calls: int | None = None,
    ) -> BudgetContract:
        """Sign a contract and open an account, or find it as it was left.

        Parameters
        ----------
        agent_name : str
            Who.
        priority : int, default 1
            Higher is more important; budget moves from lower or equal priorities only.
        max_tokens : int or None, optional
            Carved out of the parent's spare. 0: draws from the parent as needed. ``None``: no cap of its own.
            Left out: 1000 if neither the manager nor this call names any cap, else ``None``.
        min_reserve : int, optional
            What no transfer and no descendant may take. Default: a tenth of `max_tokens`.
        confidence_threshold : float, optional
            0 to 1: once reached, the agent may spend no more.
        parent : str, optional
            The agent above; default: the root.
        replace : bool, default False
            Change the terms of a registered agent; what it consumed, holds and has lent stays.
        max_usd, min_reserve_usd : Decimal, str, int or float, optional
            The same in dollars; the reserve is 0 if it is left out.
        max_calls : int, optional
            The same in calls.

        Returns
        -------
        BudgetContract
            The same terms again return the existing account's contract, untouched.

        Raises
        ------
        InvalidAmountError, InvalidContractError
            Terms that cannot be, or a cycle of parents.
        CarveOutError
            The parent cannot spare that much.
        AgentExistsError
            Registered with other terms, and not `replace`.
        UnknownAgentError, AgentClosedError
            No such parent.
        """
        if max_tokens is _UNSET:
            named = self._any_cap or max_usd is not None or max_calls is not None
            max_tokens = None if named else 1000
        contract = BudgetContract(
            agent_name,
            priority,
            max_tokens,
            min_reserve,
            confidence_threshold,
            max_usd=max_usd,
            min_reserve_usd=min_reserve_usd,
            max_calls=max_calls,
        )
        with self._lock:
            now = self.ledger.look()
            known = self.ledger.accounts.get(agent_name)
            was_closed = known is not None and known.gate_closed
            signed = tree.register(self.ledger, contract, parent, now, replace=replace)
            self._note_gate(self.ledger.find(agent_name), was_closed)
        self._tell()
        return signed

    def update_agent(
        self,
        agent_name: str,
        *,
        priority: int = _UNSET,
        min_reserve: int = _UNSET,
        confidence_threshold: float | None = _UNSET,
        min_reserve_usd: Money = _UNSET,
        key: str | None = None,
    ) -> BudgetContract:
        """Change an agent's priority, reserve or threshold; what is left out stays, allocations too.

        Repeated under its `key` it changes nothing and returns the contract as it is now.
        """
        given = {
            "priority": priority,
            "min_reserve": min_reserve,
            "confidence_threshold": confidence_threshold,
            "min_reserve_usd": min_reserve_usd,
        }
        terms = {name: value for name, value in given.items() if value is not _UNSET}
        with self._lock:
            now = self.ledger.look()
            books = self.ledger.find(agent_name)
            content = ("update_agent", agent_name, *((name, str(value)) for name, value in terms.items()))
            if self.ledger.answers.recall(key, content) is None or books.contract is None:
                was_closed = books.gate_closed
                contract = tree.change_terms(self.ledger, books, terms, now)
                self._note_gate(books, was_closed)
                self._remember(key, content, "done")
            else:
                contract = books.contract
        self._tell()
        return contract

    def _note_gate(self, books: Books, was_closed: bool) -> None:
        if books.gate_closed != was_closed and books.contract is not None:
            self._notice("GateMoved", books.name, books.gate_closed, books.contract.last_confidence)

    def top_up(
        self,
        agent_name: str,
        tokens: int = 0,
        *,
        usd: Money | None = None,
        calls: int = 0,
        key: str | None = None,
    ) -> None:
        """Grant more, out of the parent's spare or, at the top of a budget (or `tbc.ROOT`), anew.

        On all the axes named, or on none.

        Raises
        ------
        CarveOutError
            The parent cannot spare it.
        """
        amounts = amounts_of(tokens, usd, calls, up=False)
        content = ("top_up", agent_name, *amounts.items())
        with self._lock:
            now = self.ledger.look()
            refused = self.ledger.answers.recall(key, content)
            if refused is None:
                refused = tree.top_up(self.ledger, self.ledger.find(agent_name), amounts, now, key=key)
                self._remember(key, content, refused or "done")
        self._tell()
        if isinstance(refused, CarveOutError):
            raise CarveOutError(*refused.args)

    def close_agent(self, agent_name: str, *, key: str | None = None) -> None:
        """Close an account; what it did not spend returns to its parent (at the top: out of the pool).

        Under a `key` it is safe to repeat.

        Raises
        ------
        AgentInUseError
            It has open holds or children; the error names them.
        """
        with self._lock:
            now = self.ledger.look()
            content = ("close_agent", agent_name)
            if self.ledger.answers.recall(key, content) is None:
                tree.close(self.ledger, self.ledger.find(agent_name), now)
                self._remember(key, content, "done")
        self._tell()

    def report_confidence(self, agent_name: str, confidence: float) -> None:
        """Store a confidence (0 to 1); at its threshold or above, the agent's gate closes."""
        self._set_confidence(agent_name, check_fraction("confidence", confidence))

    def reset_confidence(self, agent_name: str) -> None:
        """Forget the agent's last confidence: its gate opens again."""
        self._set_confidence(agent_name, None)

    def _set_confidence(self, agent_name: str, confidence: float | None) -> None:
        with self._lock:
            self.ledger.look()
            self._note_confidence(self._open_books(agent_name), confidence)
        self._tell()

    def _note_confidence(self, books: Books, confidence: float | None) -> None:
        if tree.note_confidence(self.ledger, books, confidence):
            self._notice("GateMoved", books.name, books.gate_closed, confidence)

    def rebalance(
        self,
        shortfalls: Mapping[str, int] | None = None,
        *,
        usd: Mapping[str, Money] | None = None,
        calls: Mapping[str, int] | None = None,
        key: str | None = None,
    ) -> Rebalance:
        """Clear the markets for many shortfalls at once and move the allocations for good.

        Parameters
        ----------
        shortfalls : mapping of str to int, optional
            Tokens that each agent lacks; its debt is added.
        usd : mapping of str to Decimal, str, int or float, optional
            Dollars that each agent lacks.
        calls : mapping of str to int, optional
            Calls that each agent lacks.
        key : str, optional
            Makes the request safe to repeat.

        Returns
        -------
        Rebalance
            Transfers by name, what stays unmet, and one `Clearing` per market; those of other axes under
            `others`. A partial answer is an answer.
        """
        asked: dict[Axis, dict[str, int]] = {TOKENS: {} if shortfalls is None else _shortfalls(shortfalls)}
        if usd is not None:
            asked[USD] = {
                name: nano_dollars(f"shortfall of {name!r}", value) for name, value in _by_name(usd).items()
            }
        if calls is not None:
            asked[CALLS] = _shortfalls(calls)
        for name in {name for each in asked.values() for name in each}:
            self.ledger.find(name)
        content = ("rebalance", *((axis, *sorted(each.items())) for axis, each in asked.items()))
        with self._lock:
            now = self.ledger.look()
            done: Rebalance | None = self.ledger.answers.recall(key, content)
            if done is None:
                done = self._rebalance(asked, now, key)
                self._remember(key, content, done)
        self._tell()
        return done

    def _rebalance(self, asked: dict[Axis, dict[str, int]], now: float, key: str | None) -> Rebalance:
        ledger = self.ledger
        everybody = {name: self._open_books(name) for each in asked.values() for name in each}
        done = {
            axis: rebalance(
                ledger, now, {ledger.on(axis, everybody[name]): n for name, n in each.items()}, key=key
            )
            for axis, each in asked.items()
        }
        others: dict[Axis, Rebalance] = {axis: each for axis, each in done.items() if axis != TOKENS}
        return attrs.evolve(done[TOKENS], others=others) if others else done[TOKENS]

    def claim_key(self, key: str, content: tuple[object, ...], name: str) -> str:
        """Return the name that a key was claimed under first: this one, if the key is new.

        For what is begun once and is no operation on the books.

        Raises
        ------
        KeyConflictError
            The key was used for something else.
        """
        with self._lock:
            self.ledger.look()
            first: str | None = self.ledger.answers.recall(key, content)
            if first is None:
                first = name
                self._remember(key, content, name)
        self._tell()
        return first

    # -- reading ---------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the seconds of the manager's clock."""
        return self._clock()

    @property
    def mode(self) -> Mode:
        """``"enforce"`` or ``"audit"``."""
        return self._mode

    def remaining(self, agent_name: str, axis: Axis = TOKENS) -> int | None:
        """Return ``allocated - consumed - held`` on an axis (``None``: uncapped)."""
        return self.ledger.remaining(agent_name, axis)

    def report(self, axis: Axis = TOKENS) -> dict[str, dict[str, int | None]]:
        """Return ``{agent: {"allocated", "consumed", "remaining"}}`` in registration order.

        In tokens, nano-dollars (``"usd"``) or calls. Closed agents stay in it with what they consumed.
        ``None`` stands for uncapped.
        """
        return self.ledger.snapshot(axis)

    def accounts(self, axis: Axis = TOKENS) -> tuple[tree.Account, ...]:
        """Return every account as a frozen record: the root first, then agents in registration order."""
        with self._lock:
            self.ledger.look()
            every = self.ledger.every_account()
            return tuple(tree.account_of(self.ledger, books, axis) for books in every)

    def find_hold(self, hold_id: int) -> Hold:
        """Return the hold of that number, open or ended, for those who have no more than the number.

        Raises
        ------
        UnknownHoldError
            There is none, it is forgotten, or it is a lease.
        """
        with self._lock:
            self.ledger.look()
            hold = self._look_up_hold(hold_id) if type(hold_id) is int else None
        if hold is None or hold.lease is not None:
            raise UnknownHoldError(hold_id)
        return hold

    def _look_up_hold(self, hold_id: int) -> Hold | None:
        ledger = self.ledger
        line = hold_id - ledger.numbers_from
        known: Hold | None = ledger.open_holds.get(hold_id) or ledger.journal.hold(line, ledger.seq)
        return known

    def knows_key(self, key: str | None) -> bool:
        """Free what has expired, and return whether there is an answer under a key."""
        with self._lock:
            self.ledger.look()
            known = key is not None and self.ledger.answers.knows(key)
        self._tell()
        return known

    def statement(self, agent_name: str | None = None) -> Statement:
        """Return the accounts of everybody, or of one agent, on every axis that is kept, as of one moment."""
        with self._lock:
            self.ledger.look()
            ledger = self.ledger
            every = list(ledger.every_account()) if agent_name is None else [ledger.find(agent_name)]
            kept = [axis for axis in AXES if axis == TOKENS or axis in ledger.sides]
            return Statement(
                ledger.seq,
                ledger.wall(self._clock()),
                len(ledger.open_holds),
                {axis: tuple(tree.account_of(ledger, books, axis) for books in every) for axis in kept},
            )

    def used(self) -> dict[Axis, tuple[int, int]]:
        """Return what was spent and what is granted in all, for every axis with a manager-wide cap."""
        with self._lock:
            self.ledger.look()
            return {axis: (spent, granted) for axis, spent, granted in self._used()}

    # -- events ----------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Call `callback` with every event from now on; returns a function that ends it.

        Events are told outside of the lock, after the fact. A callback that raises is logged (logger
        ``tbc``) and breaks nothing.
        """
        from tbc.events import Subscribers

        if not callable(callback):
            raise InvalidContractError(f"a subscriber must be a callable, not {callback!r}")
        self._tell()  # what was before is not told to the new one
        with self._lock:
            if self._subscribers is None:
                self._told = self.ledger.seq
                self._subscribers = Subscribers()
            return self._subscribers.add(callback)

    def _notice(self, kind: str, *values: object) -> None:
        """Keep an event that is no journal entry for the next `_tell`."""
        if self._subscribers is not None:
            from tbc import events

            self._notices.append(getattr(events, kind)(*values))

    def note_elsewhere(self, lines: range) -> None:
        """Note that others wrote these lines of the journal, for the next `_tell`; under the lock."""
        if self._subscribers is not None and lines:
            self._elsewhere.append(lines)

    def _tell(self) -> None:
        subscribers = self._subscribers
        if subscribers is None:
            return
        from tbc.events import Booked

        with self._lock:
            since, upto = self._told, self.ledger.seq
            self._told = upto
            notices = [self._notices.popleft() for _ in range(len(self._notices))]
            others, self._elsewhere = self._elsewhere, []
        events: list[Event] = [
            Booked(entry, any(entry.seq in lines for lines in others))
            for entry in self.ledger.entries(since)
            if since < entry.seq <= upto
        ]
        for event in (*events, *notices, *self.new_thresholds()):
            subscribers.tell(event)

    def new_thresholds(self) -> list[ThresholdReached]:
        """Return the thresholds of `warn_at` that have been reached since this was last asked."""
        if not self._warn_at:
            return []
        from tbc.events import ThresholdReached

        reached: list[ThresholdReached] = []
        with self._lock:
            for axis, used, total in self._used():
                for share in self._warn_at:
                    if used and has_reached(share, used, total) and (axis, share) not in self._warned:
                        self._warned.add((axis, share))
                        reached.append(ThresholdReached(axis, share, used, total - used))
        return reached

    # -- under the lock --------------------------------------------------------------------------------

    def _used(self) -> Iterator[tuple[Axis, int, int]]:
        """Yield axis, spent and granted in all, for every manager-wide cap. O(agents)."""
        for axis in AXES:
            root = self.ledger.look_up(axis, self.ledger.root)
            if root is not None and root.capped:
                found = (self.ledger.look_up(axis, books) for books in self.ledger.every_account())
                rows = [books for books in found if books is not None]
                yield axis, sum(row.consumed for row in rows), sum(row.allocated for row in rows)

    def _remember(self, key: str | None, content: tuple[object, ...], answer: object) -> None:
        self.ledger.answers.remember(key, content, answer, self.ledger.open_holds)

    def _open_books(self, agent_name: str) -> Books:
        books = self.ledger.find(agent_name)
        if books.closed:
            raise AgentClosedError(agent_name)
        return books

    def finish_interrupted(self) -> None:
        """Go on with what an exception out of a signal handler has interrupted; under the lock."""
        lifecycle.finish_interrupted(self.ledger)

    def _tend(self, now: float) -> None:
        self.finish_interrupted()
        self.ledger.run_deferred(now)
        lifecycle.expire_due(self.ledger, now)


def nano_dollars(name: str, dollars: Money, *, up: bool = True) -> int:
    """Return dollars as `tbc.money.to_nano` does. ``import tbc`` does not pay for decimals."""
    from tbc.money import to_nano

    return to_nano(name, dollars, up=up)


def has_reached(share: float, used: int, total: int) -> bool:
    """Return whether so large a share of a total is used; exactly, for the share as it is written."""
    from decimal import Decimal

    return Decimal(used) >= Decimal(repr(share)) * total


def amounts_of(tokens: int, usd: Money | None, calls: int, *, up: bool = True) -> dict[Axis, int]:
    """Return checked amounts by axis: tokens always, the others where they are named."""
    amounts: dict[Axis, int] = {TOKENS: check_amount("tokens", tokens)}
    if usd is not None:
        amounts[USD] = nano_dollars("usd", usd, up=up)
    if check_amount("calls", calls):
        amounts[CALLS] = calls
    if not tokens and len(amounts) > 1:
        del amounts[TOKENS]
    return amounts


def _shortfalls(asked: Mapping[str, int]) -> dict[str, int]:
    return {name: check_amount(f"shortfall of {name!r}", tokens) for name, tokens in _by_name(asked).items()}


def _by_name(asked: Mapping[str, T]) -> Mapping[str, T]:
    if not isinstance(asked, Mapping):
        raise InvalidAmountError("shortfalls", asked, "a mapping of agent names to amounts")
    return asked
