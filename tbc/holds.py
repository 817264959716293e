"""Holds as callers see them: set aside before a call, ended once after it.

A hold only carries numbers and knows how it wants to end; what may be decided about it is in `tbc.lifecycle`.
A hold on several axes has a part on each; the hold itself is the part on tokens.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from tbc.axes import CALLS, TOKENS, USD, Axis, format_amount
from tbc.contract import check_amount
from tbc.current import CURRENT_HOLD
from tbc.decision import Decision, Kind, Settlement, Transfer
from tbc.errors import HoldEndedError, NotSent, StoreError

if TYPE_CHECKING:
    from decimal import Decimal

    from tbc.leases import LeaseTerms
    from tbc.ledger import Books
    from tbc.pricing import Price
    from tbc.reallocator import Move
    from tbc.usage import Usage

__all__ = [
    "NOTHING",
    "Desk",
    "Ending",
    "Hold",
    "Part",
    "PendingHold",
    "Said",
    "Spent",
]

State = Literal["open", "settled", "voided", "expired"]

#: Threads of one call may record at once.
_RECORDING = threading.Lock()


class Said(NamedTuple):
    """What is said of a hold at its end, in the units of the books: the same whenever it gets there.

    Attributes
    ----------
    tokens : int or None
        Tokens; ``None``: as many as are held, which is a guess.
    nano : int or None
        Nano-dollars; ``None``: by the tokens, or as they are held if those are a guess.
    calls : int or None
        Calls; ``None``: as many as are held.
    estimated : bool
        Whether all of that is an estimate.
    """

    tokens: int | None = None
    nano: int | None = None
    calls: int | None = None
    estimated: bool = False


#: Said of a hold for which nothing was sent: it is voided. Compared by identity.
NOTHING: Final = Said(0)


class Desk(Protocol):
    """What a hold needs of its manager: the lock, the clock and the books."""

    waits: bool
    """Whether operations wait for a store."""

    @property
    def ends_later(self) -> bool:
        """Whether `end_later` is of any use: not once the way to its store is closed."""

    async def arun(self, operation: Callable[[], Any]) -> Any:
        """Await an operation on the books."""

    def settle_hold(
        self,
        hold: Hold,
        tokens: int | None,
        estimated: bool,
        usd: Decimal | str | float | None = None,
        calls: int | None = None,
        usage: Usage | None = None,
        nano: int | None = None,
    ) -> Settlement:
        """End the hold by the actual usage."""

    def said_of(
        self,
        hold: Hold,
        tokens: int | None,
        estimated: bool,
        usd: Decimal | str | float | None = None,
        calls: int | None = None,
        usage: Usage | None = None,
    ) -> Said:
        """Return what the arguments of a settle say; refuses what is no amount."""

    def void_hold(self, hold: Hold) -> Settlement:
        """End the hold without spending."""

    def extend_hold(
        self,
        hold: Hold,
        tokens: int,
        expires_s: float | None,
        key: str | None,
        usd: Decimal | str | float | None = None,
    ) -> tuple[Transfer, ...]:
        """Set more aside, or for longer; return what was lent for it."""

    def end_later(self, hold: Hold, said: Said) -> None:
        """End the hold without ever waiting."""

    def now(self) -> float:
        """Return the seconds of its clock."""

    def remaining(self, agent_name: str, axis: Axis = TOKENS) -> int | None:
        """Return what the agent has left."""

    def should_wind_down(self, hold: Hold) -> bool:
        """Return whether the budget is nearly used up."""


class _Notes:
    """What only some holds need to remember."""

    __slots__ = ("input_tokens", "price", "recorded", "tokens", "unkept")

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.price: Price | None = None
        self.recorded = 0
        self.tokens: list[Token[Hold | None]] = []  # of the contexts that entered it
        self.unkept: Said | None = None  # by an end that the store could not keep


class Part:
    """What a hold sets aside on one axis, and who lent it. Amounts are in the unit of the axis."""

    __slots__ = ("amount", "books", "granted", "lenders", "unpriced")

    def __init__(self, books: Books, amount: int, *, unpriced: bool = False) -> None:
        self.books = books
        self.amount = self.granted = amount
        self.lenders: list[Move] | None = None
        self.unpriced = unpriced  # of dollars: nobody knows the price


class Spent(NamedTuple):
    """What was spent of a part of a hold, in the unit of its axis."""

    part: Part
    amount: int
    estimated: bool
    unpriced: int = 0


class Ending:
    """How a hold is to end, kept until it has: what interrupts it half-way is not the last word.

    An exception out of a signal handler (Ctrl-C) may come between any two entries of the journal. It is known
    then how far the end has come, and the next operation on the pool goes on there.
    """

    __slots__ = ("booked", "kind", "note", "now", "repaid", "spent", "state")

    def __init__(
        self,
        state: Literal["settled", "voided", "expired"],
        kind: Kind,
        spent: Sequence[Spent],
        now: float,
    ) -> None:
        self.state = state
        self.kind = kind
        self.spent = spent
        self.now = now
        self.note: str | None = None  # for the journal, in the place of the hold's operation
        self.booked = 0  # how many of `spent` are in the books
        self.repaid = 0  # how many of the loans, of one part after the other, are repaid


class Hold(Part):
    """An amount set aside before a call. Use it as a context manager, or end it yourself.

    Attributes
    ----------
    hold_id : int
        Its number in the pool.
    agent_name : str
        Whose budget it is.
    tokens : int
        What is set aside.
    granted : int
        The tokens set aside at first, before any `extend`.
    usd : int
        Nano-dollars set aside (property).
    others : tuple of Part
        What is set aside on other axes.
    at : float
        Seconds of the manager's clock at which it was granted.
    loans : tuple of Transfer
        What of it was lent, in drain order (property).
    state : {"open", "settled", "voided", "expired"}
        How it stands.
    settlement : Settlement or None
        How it ended.
    decision : Decision or None
        Set if the market was asked, and in audit mode if enforcement would have refused.
    recorded : int
        What `record` was told so far.
    expires_at : float
        Seconds of the manager's clock at which it ends by itself.
    key, operation, model : str or None
        The caller's.

    Notes
    -----
    Leaving the ``with`` block without a settle: a clean exit books what was recorded or else the whole hold,
    estimated; an exception books what was recorded or else the input (if known, otherwise the whole hold),
    estimated; `tbc.NotSent` voids.
    """

    __slots__ = (
        "_desk",
        "_notes",
        "at",
        "decision",
        "expires_at",
        "hold_id",
        "key",
        "model",
        "operation",
        "others",
        "settlement",
    )

    #: What makes it a lease (`tbc.leasing`), if it is one.
    lease: LeaseTerms | None = None

    def __init__(
        self,
        desk: Desk,
        books: Books,
        hold_id: int,
        tokens: int,
        at: float,
        expires_at: float,
        key: str | None,
        operation: str | None,
        model: str | None,
    ) -> None:
        self._desk = desk
        self.books = books
        self.hold_id = hold_id
        self.amount = self.granted = tokens
        self.at = at
        self.expires_at = expires_at
        self.key = key
        self.operation = operation
        self.model = model
        self.lenders = None
        self.others: tuple[Part, ...] = ()
        self.settlement: Settlement | None = None
        self.decision: Decision | None = None
        self._notes: _Notes | None = None

    def __repr__(self) -> str:
        amounts = ", ".join(format_amount(part.books.axis, part.amount) for part in (self, *self.others))
        return f"<Hold {self.hold_id} of {self.agent_name!r}: {amounts}, {self.state}>"

    @property
    def tokens(self) -> int:
        """Tokens set aside."""
        return self.amount

    @property
    def usd(self) -> int:
        """Nano-dollars set aside."""
        part = self.part(USD)
        return 0 if part is None else part.amount

    def part(self, axis: Axis) -> Part | None:
        """Return what is set aside on an axis, if anything is."""
        if axis == TOKENS:
            return self
        return next((part for part in self.others if part.books.axis == axis), None)

    @property
    def agent_name(self) -> str:
        """Whose budget it is."""
        return self.books.name

    @property
    def state(self) -> State:
        """How it stands."""
        return "open" if self.settlement is None else self.settlement.state

    @property
    def expires_in_s(self) -> float:
        """Seconds until it ends by itself; 0 if they have passed."""
        return max(0.0, self.expires_at - self._desk.now())

    @property
    def recorded(self) -> int:
        """What `record` was told so far, or a settle that the store could not keep."""
        return 0 if self._notes is None else self._notes.recorded

    @property
    def unkept(self) -> Said | None:
        """What a settle or void said that the store could not keep; with what `record` was told since."""
        notes = self._notes
        unkept = None if notes is None else notes.unkept
        if notes is None or unkept is None or unkept is NOTHING or unkept.tokens is None:
            return unkept
        return unkept._replace(tokens=notes.recorded)

    @property
    def loans(self) -> tuple[Transfer, ...]:
        """What of it was lent (siblings) or drawn (treasuries), in drain order."""
        return tuple(move.named() for part in (self, *self.others) for move in part.lenders or ())

    @property
    def remaining(self) -> int | None:
        """Tokens that the agent has left beside this hold (``None``: uncapped)."""
        return self._desk.remaining(self.books.name)

    @property
    def remaining_usd(self) -> int | None:
        """Nano-dollars that the agent has left beside this hold (``None``: uncapped)."""
        return self._desk.remaining(self.books.name, USD)

    @property
    def wind_down(self) -> bool:
        """Whether it is time to finish: see `BudgetManager.should_wind_down`.

        Like `remaining`, it asks the store, if there is one, and waits for it, also in an event loop.
        """
        return self._desk.should_wind_down(self)

    def record(self, tokens: int) -> None:
        """Note `tokens` more as used for certain; booked if the call ends in an exception.

        Raises
        ------
        HoldEndedError
            If it has been settled or voided: nobody would book them.
        """
        tokens = check_amount("tokens", tokens)
        with _RECORDING:
            if self.state in ("settled", "voided"):
                raise HoldEndedError(self.hold_id, self.state, "recorded on", self.settlement)
            notes = self._noted()
            notes.recorded += tokens
            if notes.unkept is NOTHING:  # something was sent after all
                notes.unkept = None

    def expect_input(self, tokens: int) -> None:
        """Note the tokens of the call's input: what is booked if the call ends in an exception."""
        self._noted().input_tokens = tokens

    def expect_price(self, price: Price) -> None:
        """Note what its tokens cost: what prices a settle that does not name dollars."""
        self._noted().price = price

    def cost_of(self, tokens: int) -> int | None:
        """Return nano-dollars for `tokens` in all, the input first; ``None`` if no price is noted.

        If nobody said how many of them are input, it is as much as they can cost.
        """
        notes = self._notes
        if notes is None or notes.price is None:
            return None
        if notes.input_tokens is None:
            return notes.price.dearest(tokens)
        known = min(tokens, notes.input_tokens)
        return notes.price.text_cost(known, tokens - known)

    def ceiling_of(self, tokens: int) -> int | None:
        """Return the most that `tokens` in all can cost; ``None`` if no price is noted."""
        notes = self._notes
        if notes is None or notes.price is None:
            return None
        if notes.input_tokens is None:
            return notes.price.dearest(tokens)
        known = min(tokens, notes.input_tokens)
        return notes.price.ceiling(known, tokens - known)

    @property
    def price(self) -> Price | None:
        """What its tokens cost, if that is known."""
        return None if self._notes is None else self._notes.price

    def _noted(self) -> _Notes:
        if self._notes is None:
            self._notes = _Notes()
        return self._notes

    def settle(
        self,
        tokens: int | None = None,
        *,
        usd: Decimal | str | float | None = None,
        calls: int | None = None,
        usage: Usage | None = None,
        estimated: bool = False,
    ) -> Settlement:
        """Turn the hold into spending by the actual usage.

        The rest goes back, first to the lenders. More than was held is taken from the agent, then from its
        market; what nothing covers is the `overrun`: booked in full, and owed. Never refused for its size.

        What is left out is booked as it was held, as an estimate; dollars, if the price of the hold's tokens
        is known, by the tokens.

        Parameters
        ----------
        tokens : int, optional
            Tokens used.
        usd : Decimal, str, int or float, optional
            Dollars spent.
        calls : int, optional
            Calls made; default: as many as were held.
        usage : Usage, optional
            What the provider stated: tokens, and dollars at the hold's price.
        estimated : bool, default False
            Whether all of that is an estimate.

        Raises
        ------
        HoldEndedError
            If it ended before otherwise. Repeating the same settle returns the first answer, marked
            `repeated`.
        """
        try:
            return self._desk.settle_hold(self, tokens, estimated, usd, calls, usage)
        except StoreError:
            self._remember(self._desk.said_of(self, tokens, estimated, usd, calls, usage))
            raise

    def _remember(self, said: Said) -> None:
        """Note an end that the store could not keep: so it ends if the block is left now."""
        if self.state not in ("open", "expired"):
            return
        notes = self._noted()
        notes.unkept = said
        if said is not NOTHING and said.tokens is not None:
            notes.recorded = said.tokens

    def void(self) -> Settlement:
        """End the hold without spending: nothing was sent."""
        try:
            return self._desk.void_hold(self)
        except StoreError:
            self._remember(NOTHING)
            raise

    def extend(
        self,
        tokens: int = 0,
        *,
        usd: Decimal | str | float | None = None,
        expires_s: float | None = None,
        key: str | None = None,
    ) -> tuple[Transfer, ...]:
        """Set `tokens` (and dollars) more aside, or let the hold live `expires_s` seconds from now.

        Under a `key` it is safe to repeat.

        Returns
        -------
        tuple of Transfer
            What was lent for it; nothing if it is repeated.

        Raises
        ------
        BudgetExceededError
            If the tokens cannot be covered; the hold stays as it was.
        HoldEndedError
            If it has ended.
        """
        return self._desk.extend_hold(self, tokens, expires_s, key, usd)

    # -- the same for callers that await; only a store makes them wait ----------------------------------

    async def asettle(
        self,
        tokens: int | None = None,
        *,
        usd: Decimal | str | float | None = None,
        calls: int | None = None,
        usage: Usage | None = None,
        estimated: bool = False,
    ) -> Settlement:
        """Await `settle`."""
        settle = functools.partial(
            self.settle, tokens, usd=usd, calls=calls, usage=usage, estimated=estimated
        )
        if not self._desk.waits:
            return settle()
        said = self._desk.said_of(self, tokens, estimated, usd, calls, usage)
        return await self._end_awaited(settle, said)

    async def avoid(self) -> Settlement:
        """Await `void`."""
        return await self._end_awaited(self.void, NOTHING) if self._desk.waits else self.void()

    async def _end_awaited(self, end: Callable[[], Settlement], said: Said) -> Settlement:
        """Await an end; whoever does not wait for it (a timeout) has said it all the same."""
        from asyncio import CancelledError

        try:
            ended: Settlement = await self._desk.arun(end)
        except (StoreError, CancelledError):
            self._remember(said)
            raise
        return ended

    async def aextend(
        self,
        tokens: int = 0,
        *,
        usd: Decimal | str | float | None = None,
        expires_s: float | None = None,
        key: str | None = None,
    ) -> tuple[Transfer, ...]:
        """Await `extend`."""
        extend = functools.partial(self.extend, tokens, usd=usd, expires_s=expires_s, key=key)
        lent: tuple[Transfer, ...] = await self._desk.arun(extend) if self._desk.waits else extend()
        return lent

    # -- leaving without a settle ------------------------------------------------------------------------

    def __enter__(self) -> Hold:
        self._noted().tokens.append(CURRENT_HOLD.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.leave(error)
        finally:
            self._forget_entry()

    def _forget_entry(self) -> None:
        """Give the context back the hold it had before; a token of another context stays where it is."""
        tokens = self._noted().tokens
        for token in reversed(tokens):
            try:
                CURRENT_HOLD.reset(token)
            except ValueError:  # entered in another context, which ends by itself
                continue
            tokens.remove(token)
            return

    async def __aenter__(self) -> Hold:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._desk.waits:
                try:
                    await self._desk.arun(functools.partial(self.leave, error))
                except StoreError as unkept:
                    self.leave(error, unkept=unkept)
                    raise
            else:
                self.leave(error)
        finally:
            self._forget_entry()

    def leave(
        self,
        error: BaseException | None,
        not_sent: tuple[type[BaseException], ...] = (),
        *,
        unkept: StoreError | None = None,
    ) -> None:
        """End the hold in the way that fits how its block was left; nothing if it has been ended.

        If the store could not keep that end (`unkept`), it is done again later.
        """
        if self.state in ("settled", "voided"):
            return
        said = self._said_by_leaving(error, not_sent)
        if said is NOTHING and self.state != "open":
            return
        if unkept is not None:
            self.end_unkept(unkept, said)
            return
        if isinstance(error, GeneratorExit):
            # Why: garbage collection closes what was left suspended, also while this thread has the lock.
            self.end_later(said)
            return
        with contextlib.suppress(HoldEndedError):  # somebody else, or an interrupted end, was first
            self.end(said)

    def _said_by_leaving(
        self, error: BaseException | None, not_sent: tuple[type[BaseException], ...]
    ) -> Said:
        """Return what the way in which its block was left says; an end that was said before stands."""
        if self.unkept is not None:
            return self.unkept
        if isinstance(error, (NotSent, *not_sent)):
            return NOTHING
        if self.recorded:
            return Said(self.recorded, estimated=error is not None)
        known_input = None if error is None or self._notes is None else self._notes.input_tokens
        return Said(self.tokens if known_input is None else known_input, estimated=True)

    def end(self, said: Said) -> None:
        """End it as was said; what the store cannot keep is done again later."""
        try:
            if said is NOTHING:
                self._desk.void_hold(self)
            else:
                tokens, nano, calls, estimated = said
                self._desk.settle_hold(self, tokens, estimated, calls=calls, nano=nano)
        except StoreError as failed:
            self.end_unkept(failed, said)
            raise

    def end_later(self, said: Said) -> None:
        """End it without ever waiting, where it was granted; for finalizers."""
        self._desk.end_later(self, said)

    def end_unkept(self, failed: StoreError, said: Said) -> None:
        """Have an end that could not be kept done again later; the error says whether that comes."""
        kept = self._desk.ends_later
        if kept:
            self.end_later(said)
            when = " when the store can be written to again, if this process still runs then"
        else:
            when = ": its manager is closed, or of another process"
        no = "" if kept else "not "
        what = "What it set aside is" if said is NOTHING else f"The {self.in_words(said)} that were spent are"
        end = "freed" if said is NOTHING else "booked"
        failed.add_note(f"{what} {no}{end} on hold {self.hold_id}{when}")

    def in_words(self, said: Said) -> str:
        """Return what was said of it: ``"80 tokens"``, ``"80 tokens and $5"``."""
        amounts: dict[Axis, int | None] = {
            TOKENS: self.amount if said.tokens is None else said.tokens,
            USD: said.nano,
            CALLS: said.calls,
        }
        return " and ".join(format_amount(axis, n) for axis, n in amounts.items() if n is not None)


class PendingHold(Coroutine[Any, Any, Hold]):
    """A hold that is asked for, once, when it is awaited, made a task, or entered with ``async with``."""

    __slots__ = ("_ask", "_hold")

    def __init__(self, ask: Callable[[], Hold]) -> None:
        self._ask = ask
        self._hold: Hold | None = None

    def _asked(self) -> Hold:
        if self._hold is None:
            self._hold = self._ask()
        return self._hold

    def __await__(self) -> Generator[Any, None, Hold]:
        return self._asked()
        yield  # never reached: nothing here waits

    def send(self, value: Any, /) -> Any:
        """Ask, as the step of a task."""
        raise StopIteration(self._asked())

    def throw(self, error: Any, value: Any = None, trace: Any = None, /) -> Any:
        """Raise what a task is cancelled with."""
        raise error

    def close(self) -> None:
        """Ask for nothing."""

    async def __aenter__(self) -> Hold:
        return self._asked().__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hold is not None, "left before entered"
        await self._hold.__aexit__(kind, error, trace)
