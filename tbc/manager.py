"""The manager: what users touch. It checks input, holds the lock, reads the clock and tells subscribers.

One `BudgetManager` is one pool: a root account (the manager-wide cap, if there is one) and the tree of agents
below it. Every method is safe to call from any thread or task and never waits for anything but the lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from tbc import lifecycle, tree
from tbc.clock import Clock, system_clock
from tbc.contract import MAX_AMOUNT, BudgetContract, check_amount, check_fraction, check_seconds
from tbc.decision import Decision, Mode, Settlement
from tbc.errors import (
    AgentClosedError,
    CarveOutError,
    InvalidContractError,
    OverrunError,
)
from tbc.govern import Governed, Governor, OutputHistory
from tbc.holds import Hold, PendingHold
from tbc.ledger import Books, Ledger
from tbc.reallocator import Reallocator, Rebalance, rebalance

if TYPE_CHECKING:
    from tbc.events import Event, Subscribers
    from tbc.tokens import Counter
    from tbc.usage import Usage

__all__ = ["BudgetManager"]

T = TypeVar("T")


class _Unset:
    """Marks an argument that was left out, where ``None`` means something."""

    def __repr__(self) -> str:
        return "<left out>"


_UNSET: Any = _Unset()


class BudgetManager:
    """A budget market for agents: contracts, books, holds and reallocation.

    Parameters
    ----------
    max_tokens : int, optional
        The manager-wide cap (the root account). ``None``: no cap; 0: nothing is allowed.
    mode : {"enforce", "audit"}, default "enforce"
        ``"enforce"``: refusals raise. ``"audit"``: nothing is refused; what would have been is told to
        subscribers and stands on the hold's `decision`.
    default_output_tokens : int, default 512
        What a governed call without any other output cap may write.
    clock : Clock, optional
        Seconds, never going back; for tests and simulations.
    counter : Counter, optional
        Counts tokens of text. Default: tiktoken's vocabulary if it is in the local cache, else an estimate.
    keep : int, default 100_000
        How many journal entries and ended keys are kept at least; see `Ledger`.

    Attributes
    ----------
    contracts : mapping of str to BudgetContract
        Open agents' contracts, read-only.
    ledger : Ledger
        The books.
    reallocator : Reallocator
        Finds donors, moves allocation.

    Examples
    --------
    >>> manager = BudgetManager()
    >>> for name, priority in [("reader", 1), ("writer", 9)]:
    ...     contract = manager.register_agent(name, priority=priority, max_tokens=1000)
    >>> with manager.hold("writer", 1500) as hold:  # 500 of them lent by the reader
    ...     settlement = hold.settle(tokens=1200)
    >>> manager.report()["reader"]
    {'allocated': 800, 'consumed': 0, 'remaining': 800}
    """

    def __init__(
        self,
        *,
        max_tokens: int | None = None,
        mode: Mode = "enforce",
        default_output_tokens: int = 512,
        clock: Clock | None = None,
        counter: Counter | None = None,
        keep: int = 100_000,
    ) -> None:
        if mode not in ("enforce", "audit"):
            raise InvalidContractError(f"mode must be 'enforce' or 'audit', not {mode!r}")
        cap = None if max_tokens is None else check_amount("max_tokens", max_tokens)
        self.default_output_tokens = check_amount("default_output_tokens", default_output_tokens)
        self._mode: Mode = mode
        self._clock = system_clock if clock is None else clock
        self._counter = counter
        self._counter_is_given = counter is not None
        self._model_counters: dict[str, Counter] = {}
        self._outputs: dict[str, OutputHistory] = {}
        self._subscribers: Subscribers | None = None  # none until somebody subscribes
        self._told = 0  # the last journal entry that subscribers know
        self._notices: deque[Event] = deque()  # what is no journal entry, waiting to be told
        self.ledger = Ledger(clock=self._clock, keep=check_amount("keep", keep, least=1))
        self.ledger.managed = True
        self.ledger.tend = self._tend
        self._accounts = self.ledger.accounts
        self._lock = self.ledger.lock
        tree.open_root(self.ledger, cap, self._clock())
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
            Left out: 1000 if the manager has no cap, else ``None``.
        min_reserve : int, optional
            What no transfer and no descendant may take. Default: a tenth of `max_tokens`.
        confidence_threshold : float, optional
            0 to 1: once reached, the agent may spend no more.
        parent : str, optional
            The agent above; default: the root.
        replace : bool, default False
            Change the terms of a registered agent; what it consumed, holds and has lent stays.

        Returns
        -------
        BudgetContract
            The same terms again return the existing account's contract, untouched.

        Raises
        ------
        InvalidAmountError, InvalidContractError
            Terms that cannot be, or a cycle of parents.
        CarveOutError
            The parent cannot spare `max_tokens`.
        AgentExistsError
            Registered with other terms, and not `replace`.
        UnknownAgentError, AgentClosedError
            No such parent.
        """
        if max_tokens is _UNSET:
            max_tokens = None if self.ledger.root.capped else 1000
        contract = BudgetContract(agent_name, priority, max_tokens, min_reserve, confidence_threshold)
        with self._lock:
            signed = tree.register(self.ledger, contract, parent, self.ledger.look(), replace=replace)
        self._tell()
        return signed

    def update_agent(
        self,
        agent_name: str,
        *,
        priority: int = _UNSET,
        min_reserve: int = _UNSET,
        confidence_threshold: float | None = _UNSET,
    ) -> BudgetContract:
        """Change an agent's priority, reserve or threshold; what is left out stays, allocations too."""
        given = {
            "priority": priority,
            "min_reserve": min_reserve,
            "confidence_threshold": confidence_threshold,
        }
        terms = {name: value for name, value in given.items() if value is not _UNSET}
        with self._lock:
            now = self.ledger.look()
            books = self.ledger.find(agent_name)
            was_closed = books.gate_closed
            contract = tree.change_terms(self.ledger, books, terms, now)
            if books.gate_closed != was_closed:
                self._notice("GateMoved", agent_name, books.gate_closed, contract.last_confidence)
        self._tell()
        return contract

    def top_up(self, agent_name: str, tokens: int, *, key: str | None = None) -> None:
        """Grant `tokens` more, out of the parent's spare or, at the top of a budget (or `tbc.ROOT`), anew.

        Raises
        ------
        CarveOutError
            The parent cannot spare them.
        """
        tokens = check_amount("tokens", tokens)
        content = ("top_up", agent_name, tokens)
        with self._lock:
            now = self.ledger.look()
            refused = self.ledger.answers.recall(key, content)
            if refused is None:
                refused = tree.top_up(self.ledger, self.ledger.find(agent_name), tokens, now, key=key)
                self._remember(key, content, refused or "done")
        self._tell()
        if isinstance(refused, CarveOutError):
            raise CarveOutError(*refused.args)

    def close_agent(self, agent_name: str) -> None:
        """Close an account; what it did not spend returns to its parent (at the top: out of the pool).

        Raises
        ------
        AgentInUseError
            It has open holds or children; the error names them.
        """
        with self._lock:
            now = self.ledger.look()
            tree.close(self.ledger, self.ledger.find(agent_name), now)
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
        if tree.note_confidence(books, confidence):
            self._notice("GateMoved", books.name, books.gate_closed, confidence)

    # -- holds -----------------------------------------------------------------------------------------

    def hold(
        self,
        agent_name: str,
        tokens: int,
        *,
        expires_s: float = 600,
        key: str | None = None,
        operation: str | None = None,
        at_least: int | None = None,
    ) -> Hold:
        """Set `tokens` aside before a call; short of them, borrow what the market has to spare.

        Parameters
        ----------
        agent_name : str
            Whose budget.
        tokens : int
            The most that the call is expected to use. 0 needs no budget.
        expires_s : float, default 600
            Seconds after which the hold ends by itself, if nothing else ends it.
        key : str, optional
            Makes the request safe to repeat: the same key with the same content returns the first answer
            again, a refusal too.
        operation : str, optional
            A note for the journal.
        at_least : int, optional
            If `tokens` do not fit: grant what is available, but not less than this. In audit mode nothing is
            clamped. Default: all or nothing.

        Returns
        -------
        Hold
            Also a context manager, see there.

        Raises
        ------
        BudgetExceededError
            It cannot be covered (or, as `GateClosedError`, the agent is confident enough). Nothing moved;
            `.decision` has the numbers and tells busy from exhausted.
        KeyConflictError
            The key was used with other content.
        """
        if type(tokens) is not int or not 0 <= tokens <= MAX_AMOUNT:
            tokens = check_amount("tokens", tokens)
        if expires_s != 600:
            expires_s = check_seconds("expires_s", expires_s)
        if at_least is not None:
            at_least = check_amount("at_least", at_least)
        ledger = self.ledger
        content = None if key is None else ("hold", agent_name, tokens, at_least, expires_s, operation)
        with self._lock:
            now = self._clock()
            if now >= ledger.due or ledger.deferred:
                ledger.tend(now)
            if content is not None and (answer := ledger.answers.recall(key, content)) is not None:
                return _hold_again(answer)
            books = self._accounts.get(agent_name) if type(agent_name) is str else None
            if books is None or books.closed:
                books = self._open_books(agent_name)
            ends = now + expires_s
            granted: Hold | Decision
            # `remaining`, written out: on the busiest path a property costs as much as the rest of the line.
            if books.gate_closed or (
                tokens > books.allocated - books.consumed - books.held and books.capped and tokens
            ):
                granted = lifecycle.grant(
                    self, ledger, books, tokens, now, ends, self._mode, at_least, key, operation
                )
            else:
                granted = lifecycle.set_aside(self, ledger, books, tokens, now, ends, key, operation)
            if content is not None:
                self._remember(key, content, granted)
        if type(granted) is Hold:
            if self._subscribers is not None:
                if granted.decision is not None and granted.decision.status.refuses:
                    self._notice("Refused", granted.decision)
                self._tell()
            return granted
        assert isinstance(granted, Decision), "what is no hold is a refusal"
        self._notice("Refused", granted)
        self._tell()
        raise lifecycle.refusal(granted)

    def ahold(
        self,
        agent_name: str,
        tokens: int,
        *,
        expires_s: float = 600,
        key: str | None = None,
        operation: str | None = None,
    ) -> PendingHold:
        """Await `hold`, or use it as an async context manager."""
        return PendingHold(
            lambda: self.hold(agent_name, tokens, expires_s=expires_s, key=key, operation=operation)
        )

    def settle_hold(self, hold: Hold, tokens: int, estimated: bool = False) -> Settlement:
        """End a hold by the actual usage; see `Hold.settle`."""
        if type(tokens) is not int or not 0 <= tokens <= MAX_AMOUNT:
            tokens = check_amount("tokens", tokens)
        ledger = self.ledger
        with self._lock:
            now = self._clock()
            if now >= ledger.due or ledger.deferred:
                ledger.tend(now)
            settlement = lifecycle.settle(ledger, hold, tokens, now, estimated)
        if self._subscribers is not None:
            self._tell()
        return settlement

    def void_hold(self, hold: Hold) -> Settlement:
        """End a hold without spending; see `Hold.void`."""
        with self._lock:
            settlement = lifecycle.void(self.ledger, hold, self.ledger.look())
        self._tell()
        return settlement

    def extend_hold(
        self, hold: Hold, tokens: int = 0, expires_s: float | None = None, key: str | None = None
    ) -> None:
        """Set more aside, or for longer; see `Hold.extend`."""
        tokens = check_amount("tokens", tokens)
        seconds = None if expires_s is None else check_seconds("expires_s", expires_s)
        content = ("extend", hold.hold_id, tokens, seconds)
        with self._lock:
            now = self.ledger.look()
            refused = self.ledger.answers.recall(key, content)
            if refused is None:
                expires_at = None if seconds is None else now + seconds
                refused = lifecycle.extend(self.ledger, hold, tokens, now, expires_at, self._mode)
                self._remember(key, content, refused or "done")
                if refused is not None:
                    self._notice("Refused", refused)
        self._tell()
        if isinstance(refused, Decision) and self._mode == "enforce":
            raise lifecycle.refusal(refused)

    def end_later(self, hold: Hold, tokens: int | None, *, estimated: bool) -> None:
        """Settle (``None``: void) without ever waiting for the lock, at once or with the next operation.

        For finalizers: garbage collection may run them anywhere, also inside of an operation.
        """

        def end(now: float) -> None:
            if tokens is not None and hold.state in ("open", "expired"):
                lifecycle.settle(self.ledger, hold, tokens, now, estimated)
            elif tokens is None and hold.state == "open":
                lifecycle.void(self.ledger, hold, now)

        self.ledger.defer(end)
        if self._lock.acquire(blocking=False):
            try:
                self.ledger.look()
            finally:
                self._lock.release()

    def decide(self, agent_name: str, tokens: int) -> Decision:
        """Return what `hold` would do, and why; moves nothing."""
        tokens = check_amount("tokens", tokens)
        with self._lock:
            self.ledger.look()
            return lifecycle.decide(self._open_books(agent_name), tokens, self._mode)

    # -- spending and moving ----------------------------------------------------------------------------

    def record_usage(
        self,
        agent_name: str,
        tokens: int,
        note: str = "usage",
        confidence: float | None = None,
        *,
        key: str | None = None,
    ) -> None:
        """Book `tokens` that were spent without a hold, and a confidence, if one is given.

        What the agent does not have is taken from its market, as much as there is.

        Raises
        ------
        OverrunError
            More was spent than that covers (a `BudgetExceededError`). It is booked all the same.
        """
        tokens = check_amount("tokens", tokens)
        if confidence is not None:
            confidence = check_fraction("confidence", confidence)
        content = ("record_usage", agent_name, tokens, note, confidence)
        with self._lock:
            now = self.ledger.look()
            settlement: Settlement | None = self.ledger.answers.recall(key, content)
            if settlement is None:
                books = self._open_books(agent_name)
                settlement = lifecycle.book_usage(self.ledger, books, tokens, now, note=note, key=key)
                if confidence is not None:
                    self._note_confidence(books, confidence)
                self._remember(key, content, settlement)
        self._tell()
        if settlement.overrun and self._mode == "enforce":
            raise OverrunError(agent_name, tokens, tokens - settlement.overrun, settlement)

    def rebalance(self, shortfalls: Mapping[str, int], *, key: str | None = None) -> Rebalance:
        """Clear the markets for many shortfalls at once and move the allocations for good.

        Parameters
        ----------
        shortfalls : mapping of str to int
            Tokens that each agent lacks; its debt is added.

        Returns
        -------
        Rebalance
            Transfers by name, what stays unmet, and one `Clearing` per market. A partial answer is an answer.
        """
        for name in shortfalls:
            self.ledger.find(name)
        asked = {name: check_amount(f"shortfall of {name!r}", tokens) for name, tokens in shortfalls.items()}
        content = ("rebalance", *sorted(asked.items()))
        with self._lock:
            now = self.ledger.look()
            done: Rebalance | None = self.ledger.answers.recall(key, content)
            if done is None:
                for name in asked:
                    self._open_books(name)
                done = rebalance(self.ledger, now, asked, key=key)
                self._remember(key, content, done)
        self._tell()
        return done

    # -- reading ---------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the seconds of the manager's clock."""
        return self._clock()

    @property
    def mode(self) -> Mode:
        """``"enforce"`` or ``"audit"``."""
        return self._mode

    def remaining(self, agent_name: str) -> int | None:
        """Return ``allocated - consumed - held`` in tokens (``None``: uncapped)."""
        return self.ledger.remaining(agent_name)

    def report(self) -> dict[str, dict[str, int | None]]:
        """Return ``{agent: {"allocated", "consumed", "remaining"}}`` in registration order.

        Closed agents stay in it with what they consumed. ``None`` stands for uncapped.
        """
        return self.ledger.snapshot()

    def accounts(self) -> tuple[tree.Account, ...]:
        """Return every account as a frozen record: the root first, then agents in registration order."""
        with self._lock:
            self.ledger.look()
            return tuple(tree.account_of(books) for books in self.ledger.every_account())

    # -- governed calls --------------------------------------------------------------------------------

    def govern(
        self,
        agent_name: str,
        confidence_fn: Callable[[Any], float | None] | None = None,
        *,
        max_output_tokens: int | None = None,
        cap_kwarg: str | None = None,
        usage_fn: Callable[[Any], int | Usage | None] | None = None,
        on_overrun: str = "raise",
        on_error: str = "book",
        not_sent: type[BaseException] | tuple[type[BaseException], ...] = (),
        expires_s: float = 600,
    ) -> Governed:
        """Return a decorator that governs functions, coroutines, generators and async generators.

        Each call is held before it runs and settled by its true usage after; `tbc.govern` says how.

        Parameters
        ----------
        agent_name : str
            Who pays; must be registered.
        confidence_fn : callable, optional
            Result to confidence (0 to 1, or ``None``), stored for the gate. Of a stream: what its generator
            returned, if anything.
        max_output_tokens : int, optional
            The output cap, where the call itself names none.
        cap_kwarg : str, optional
            The call's own argument for its output cap (``"max_tokens"``, …). It is read if the caller passes
            it, and the granted cap is passed on through it, so that the provider keeps the promise.
        usage_fn : callable, optional
            Result to tokens (an ``int``, a `tbc.Usage`, or ``None`` for unknown). Streams do not ask it: the
            usage that their chunks carry counts, else their text.
        on_overrun : {"raise", "record"}, default "raise"
            What happens if more was spent than could be covered. It is booked either way; the error carries
            the call's `.result`.
        on_error : {"book", "void"}, default "book"
            Whether a call that raises is booked (input, or what was recorded) or costs nothing.
        not_sent : exception type or tuple of them, optional
            Exceptions that prove that nothing was sent: they void the hold.
        expires_s : float, default 600
            Seconds after which the hold of a call that never ends is freed. Streams keep theirs alive.
        """
        with self._lock:
            self._open_books(agent_name)
        return Governor(
            self,
            agent_name,
            confidence_fn,
            max_output_tokens=max_output_tokens,
            cap_kwarg=cap_kwarg,
            usage_fn=usage_fn,
            on_overrun=on_overrun,
            on_error=on_error,
            not_sent=not_sent,
            expires_s=expires_s,
        )

    def output_history(self, agent_name: str) -> OutputHistory:
        """Return the last outputs of an agent's governed calls; their p90 sizes its holds."""
        history = self._outputs.get(agent_name)
        if history is None:
            history = self._outputs.setdefault(agent_name, OutputHistory())
        return history

    @property
    def counter(self) -> Counter:
        """What counts tokens. Chosen at first use, from the local cache only, then never changed unasked."""
        if self._counter is None:
            from tbc.tokens import default_counter

            self._counter = default_counter()
        return self._counter

    def use_counter(self, counter: Counter) -> None:
        """Count with `counter` from now on, e.g. with what `tbc.tokens.load` returned."""
        self._counter = counter
        self._model_counters.clear()
        self._counter_is_given = True
        self._notice("CounterChanged", counter.name, counter.estimated)
        self._tell()

    def count(self, value: object, *, model: str | None = None) -> int:
        """Return the tokens of any value: text, messages, nested data; see `tbc.tokens.count`.

        Without a counter of the manager's own, a known model's vocabulary is used, if it is in the local
        cache; the choice is made once per model.
        """
        from tbc.tokens import count, local_counter

        if model is None or self._counter_is_given:
            return count(value, self.counter)
        counter = self._model_counters.get(model)
        if counter is None:
            counter = self._model_counters.setdefault(model, local_counter(model) or self.counter)
        return count(value, counter)

    # -- events ----------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Call `callback` with every event from now on; returns a function that ends it.

        Events are told outside of the lock, after the fact. A callback that raises is logged (logger
        ``tbc``) and breaks nothing.
        """
        from tbc.events import Subscribers

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

    def _tell(self) -> None:
        subscribers = self._subscribers
        if subscribers is None:
            return
        from tbc.events import Booked

        with self._lock:
            since, upto = self._told, self.ledger.seq
            self._told = upto
            notices = [self._notices.popleft() for _ in range(len(self._notices))]
        events: list[Event] = [
            Booked(entry) for entry in self.ledger.entries(since) if since < entry.seq <= upto
        ]
        for event in (*events, *notices):
            subscribers.tell(event)

    # -- under the lock --------------------------------------------------------------------------------

    def _remember(self, key: str | None, content: tuple[object, ...], answer: object) -> None:
        self.ledger.answers.remember(key, content, answer, self.ledger.open_holds)

    def _open_books(self, agent_name: str) -> Books:
        books = self.ledger.find(agent_name)
        if books.closed:
            raise AgentClosedError(agent_name)
        return books

    def _tend(self, now: float) -> None:
        self.ledger.run_deferred(now)
        lifecycle.expire_due(self.ledger, now)


def _hold_again(answer: Hold | Decision) -> Hold:
    """Answer a repeated request as it was answered first."""
    if isinstance(answer, Hold):
        return answer
    raise lifecycle.refusal(answer)
