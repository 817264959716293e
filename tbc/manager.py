"""The manager: what users touch.

One `BudgetManager` is one pool: a root account (the manager-wide caps, if there are any) and the tree of
agents below it. Every method is safe to call from any thread or task and never waits for anything but the
lock; or, if the books are kept in a store, for that.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tbc.axes import CALLS, TOKENS, USD, Axis
from tbc.clock import Clock
from tbc.contract import check_amount, check_fraction
from tbc.decision import Mode
from tbc.errors import InvalidContractError
from tbc.govern import Governed, Governor, OutputHistory
from tbc.leasing import LeasingDesk
from tbc.pool import nano_dollars

if TYPE_CHECKING:
    from tbc.away import Allowance
    from tbc.leases import Lease
    from tbc.money import Money
    from tbc.pricing import PriceTable, UnknownPrice
    from tbc.slices import SliceDesk, Worker
    from tbc.stores.store import Store
    from tbc.tokens import Counter
    from tbc.usage import Usage
    from tbc.watching import CallWatcher

__all__ = ["BudgetManager"]


class BudgetManager(LeasingDesk):
    """A budget market for agents: contracts, books, holds and reallocation.

    Parameters
    ----------
    max_tokens : int, optional
        The manager-wide cap (the root account). ``None``: no cap; 0: nothing is allowed.
    max_usd : Decimal, str, int or float, optional
        The same in dollars. 0 refuses the first call that is not free.
    max_calls : int, optional
        The same in calls.
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
    prices : mapping or callable, optional
        Prices of models that win over the bundled ones; see `tbc.pricing.Prices`.
    unknown_price : {"refuse", "track"}, Decimal, or the name of a model, default "refuse"
        What happens to a call without a known price where dollars are capped: it is refused, or counted as
        unpriced (totals are then "at least"), or priced at so many dollars per million tokens, or as that
        model is.
    warn_at : sequence of float, default ()
        Shares of the manager-wide caps, ascending, from above 0 to 1. `events.ThresholdReached` is told once
        for each when so much has been spent.
    wind_down_at : float, default 0.8
        The share from which holds say `wind_down`.
    store : str or store, optional
        Where the books are kept: ``"sqlite:///budgets.db"``, ``"postgresql://..."``, or a store that is open.
        Every operation is then durable when it is answered, and seen by all who share the store. Default:
        the books live and die with the process.
    pool : str, default "default"
        Which pool of the store. One that is there is found as it was left.
    lease : Lease, optional
        Spend from leases of the store's pool, at the speed of memory, as a `tbc.leased.LeasedManager` does;
        that is what is returned. What is spent is seen by others when it is reported, a quarter of the
        lease's length later.
    holder : str, optional
        The name of this worker, for those who look at the leases. Default: its host and process.
    when_away : Allowance, optional
        What this process may spend while the store cannot be reached; it is booked there afterwards. Default:
        nothing, operations raise the store's error; in audit mode everything.

    Attributes
    ----------
    contracts : mapping of str to BudgetContract
        Open agents' contracts, read-only.
    ledger : Ledger
        The books.
    reallocator : Reallocator
        Finds donors, moves allocation.
    call_watcher : CallWatcher or None
        Who is told of governed calls (`tbc.telemetry.instrument` sets it).

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

    call_watcher: CallWatcher | None = None

    def __new__(
        cls,
        *,
        store: str | Store | None = None,
        lease: Lease | None = None,
        holder: str | None = None,
        **how: Any,
    ) -> Any:
        """Return a manager, one whose books are kept in a store, or one that leases from such a one."""
        if lease is not None or holder is not None:
            from tbc.leases import Lease

            if store is None or not isinstance(lease, Lease):
                raise InvalidContractError(
                    f"lease={lease!r}, holder={holder!r}: leases need a tbc.Lease and a store, as in "
                    'BudgetManager(store="sqlite:///...", lease=tbc.Lease(share=0.1, seconds=30))'
                )
            from tbc.leased import LeasedManager

            return LeasedManager.over(BudgetManager(store=store, **how), lease, holder)
        return super().__new__(_stored_manager() if store is not None and cls is BudgetManager else cls)

    def __init__(
        self,
        *,
        max_tokens: int | None = None,
        mode: Mode = "enforce",
        default_output_tokens: int = 512,
        clock: Clock | None = None,
        counter: Counter | None = None,
        keep: int = 100_000,
        max_usd: Money | None = None,
        max_calls: int | None = None,
        prices: PriceTable | None = None,
        unknown_price: UnknownPrice = "refuse",
        warn_at: Sequence[float] = (),
        wind_down_at: float = 0.8,
        store: str | Store | None = None,
        pool: str = "default",
        when_away: Allowance | None = None,
        lease: Lease | None = None,
        holder: str | None = None,
    ) -> None:
        self._caps: dict[Axis, int | None] = {
            TOKENS: None if max_tokens is None else check_amount("max_tokens", max_tokens),
            USD: None if max_usd is None else nano_dollars("max_usd", max_usd, up=False),
            CALLS: None if max_calls is None else check_amount("max_calls", max_calls),
        }
        super().__init__(
            self._caps,
            mode=mode,
            clock=clock,
            keep=keep,
            warn_at=warn_at,
        )
        self.default_output_tokens = check_amount("default_output_tokens", default_output_tokens)
        self._wind_down_at = check_fraction("wind_down_at", wind_down_at)
        self._price_table = prices
        self._prices = None
        if prices is not None:
            self._prices = self.prices  # what is wrong with a table is said at once
        if unknown_price not in ("refuse", "track"):
            from tbc.pricing import check_unknown_price

            unknown_price = check_unknown_price(unknown_price, self.prices)
        self._unknown_price = unknown_price
        if counter is not None and not hasattr(counter, "count"):
            raise InvalidContractError(f"counter must be a tbc.tokens.Counter, not {counter!r}")
        self._counter = counter
        self._counter_is_given = counter is not None
        self._model_counters: dict[str, Counter] = {}
        self._outputs: dict[str, OutputHistory] = {}

    @property
    def pool_terms(self) -> str:
        """What a store keeps of the pool itself: the caps that it was opened with, as JSON."""
        return json.dumps(self._caps)

    def make_slice(self, worker: Worker, clock: Clock) -> SliceDesk:
        """Return local books for a worker that leases here: a manager with the same prices and mode."""
        made: SliceDesk = _slice_manager()(
            worker=worker, mode=self._mode, clock=clock, unknown_price=self._unknown_price
        )
        made._prices, made._price_table = self._prices, self._price_table
        return made

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
        model: str | Callable[..., str | None] | None = None,
        min_output_tokens: int | None = None,
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
        model : str or callable, optional
            The model that is called, for its price: a name, or a function of the call's arguments. Default:
            the call's own `model` argument.
        min_output_tokens : int, optional
            The fewest tokens of output that a call is worth: with room for less, it is refused. Default: 1
            where the cap is handed over, else 0.
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
            model=model,
            min_output_tokens=min_output_tokens,
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


@functools.cache
def _stored_manager() -> type[BudgetManager]:
    """Return the class of managers with a store; ``import tbc`` does not pay for it."""
    from tbc.stored import StoredDesk

    class StoredManager(StoredDesk, BudgetManager):
        """A `BudgetManager` whose books are kept in a store."""

        plain = BudgetManager

    StoredManager.__qualname__ = "StoredManager"
    return StoredManager


@functools.cache
def _slice_manager() -> type[Any]:
    """Return the class of managers that are local books of a worker; ``import tbc`` does not pay for it."""
    from tbc.slices import SliceDesk

    class SliceManager(SliceDesk, BudgetManager):
        """A `BudgetManager` that has a slice of another one's pool."""

    SliceManager.__qualname__ = "SliceManager"
    return SliceManager
