"""The life of a hold: decided, granted, and ended once.

Everything that may be decided about a hold is written here, against the books and with the time as an
argument. A hold is *open* until it is settled, voided or expired; an expired one may still be settled, late,
once. The functions run under the ledger's lock and never wait.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType
from typing import Literal, Protocol

from tbc.contract import check_amount
from tbc.decision import Decision, Kind, Mode, Settlement, Status, Transfer
from tbc.errors import (
    BudgetExceededError,
    GateClosedError,
    HoldEndedError,
    NoCurrentHoldError,
    NotSent,
)
from tbc.ledger import Books, Ledger
from tbc.reallocator import Move, apply, find_cover, survey

__all__ = [
    "CURRENT_HOLD",
    "Desk",
    "Hold",
    "book_usage",
    "current_hold",
    "decide",
    "expire_due",
    "extend",
    "grant",
    "refusal",
    "settle",
    "void",
]

_new_tuple = tuple.__new__
_LATE, _VOID, _EXPIRE = Kind.LATE_SETTLE, Kind.VOID, Kind.EXPIRE

State = Literal["open", "settled", "voided", "expired"]

CURRENT_HOLD: ContextVar[Hold | None] = ContextVar("tbc_current_hold", default=None)


def current_hold() -> Hold:
    """Return the hold of the governed call that this code runs in.

    It is found through `contextvars`, hence also in tasks and in threads started with a copied context
    (`asyncio.to_thread`). For a plain thread pool wrap the function in `tbc.with_current_hold`.

    Raises
    ------
    NoCurrentHoldError
        Outside of any governed call (also a `LookupError`).
    """
    hold = CURRENT_HOLD.get()
    if hold is None:
        raise NoCurrentHoldError
    return hold


class Desk(Protocol):
    """What a hold needs of its manager: the lock, the clock and the books."""

    def settle_hold(self, hold: Hold, tokens: int, estimated: bool) -> Settlement:
        """End the hold by the actual usage."""

    def void_hold(self, hold: Hold) -> Settlement:
        """End the hold without spending."""

    def extend_hold(self, hold: Hold, tokens: int, expires_s: float | None) -> None:
        """Set more aside, or for longer."""

    def remaining(self, agent_name: str) -> int | None:
        """Return what the agent has left."""


class _Notes:
    """What only some holds need to remember."""

    __slots__ = ("input_tokens", "recorded", "token")

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.recorded = 0
        self.token: Token[Hold | None] | None = None


class Hold:
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
        What was set aside at first, before any `extend`.
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
    key, operation : str or None
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
        "books",
        "decision",
        "expires_at",
        "granted",
        "hold_id",
        "key",
        "lenders",
        "operation",
        "settlement",
        "tokens",
    )

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
    ) -> None:
        self._desk = desk
        self.books = books
        self.hold_id = hold_id
        self.tokens = self.granted = tokens
        self.at = at
        self.expires_at = expires_at
        self.key = key
        self.operation = operation
        self.lenders: list[Move] | None = None
        self.settlement: Settlement | None = None
        self.decision: Decision | None = None
        self._notes: _Notes | None = None

    def __repr__(self) -> str:
        return f"<Hold {self.hold_id} of {self.agent_name!r}: {self.tokens} tokens, {self.state}>"

    @property
    def agent_name(self) -> str:
        """Whose budget it is."""
        return self.books.name

    @property
    def state(self) -> State:
        """How it stands."""
        return "open" if self.settlement is None else self.settlement.state

    @property
    def recorded(self) -> int:
        """What `record` was told so far."""
        return 0 if self._notes is None else self._notes.recorded

    @property
    def loans(self) -> tuple[Transfer, ...]:
        """What of it was lent (siblings) or drawn (treasuries), in drain order."""
        return tuple(move.named() for move in self.lenders or ())

    @property
    def remaining(self) -> int | None:
        """What the agent has left beside this hold: ``allocated - consumed - held`` (``None``: uncapped)."""
        return self._desk.remaining(self.books.name)

    def record(self, tokens: int) -> None:
        """Note `tokens` more as used for certain; booked if the call ends in an exception."""
        self._noted().recorded += check_amount("tokens", tokens)

    def expect_input(self, tokens: int) -> None:
        """Note the tokens of the call's input: what is booked if the call ends in an exception."""
        self._noted().input_tokens = tokens

    def _noted(self) -> _Notes:
        if self._notes is None:
            self._notes = _Notes()
        return self._notes

    def settle(self, tokens: int, *, estimated: bool = False) -> Settlement:
        """Turn the hold into spending by the actual usage.

        The rest goes back, first to the lenders. More than was held is taken from the agent, then from its
        market; what nothing covers is the `overrun`: booked in full, and owed. Never refused for its size.

        Parameters
        ----------
        tokens : int
            Tokens used.
        estimated : bool, default False
            Whether that is an estimate.

        Raises
        ------
        HoldEndedError
            If it ended before otherwise. Repeating the same settle returns the first answer, marked
            `repeated`.
        """
        return self._desk.settle_hold(self, tokens, estimated)

    def void(self) -> Settlement:
        """End the hold without spending: nothing was sent."""
        return self._desk.void_hold(self)

    def extend(self, tokens: int = 0, *, expires_s: float | None = None) -> None:
        """Set `tokens` more aside, or let the hold live `expires_s` seconds from now.

        Raises
        ------
        BudgetExceededError
            If the tokens cannot be covered; the hold stays as it was.
        HoldEndedError
            If it has ended.
        """
        self._desk.extend_hold(self, tokens, expires_s)

    # -- the same for callers that await; nothing here waits --------------------------------------------

    async def asettle(self, tokens: int, *, estimated: bool = False) -> Settlement:
        """Await `settle`."""
        return self.settle(tokens, estimated=estimated)

    async def avoid(self) -> Settlement:
        """Await `void`."""
        return self.void()

    async def aextend(self, tokens: int = 0, *, expires_s: float | None = None) -> None:
        """Await `extend`."""
        self.extend(tokens, expires_s=expires_s)

    # -- leaving without a settle ------------------------------------------------------------------------

    def __enter__(self) -> Hold:
        self._noted().token = CURRENT_HOLD.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        notes = self._noted()
        token, notes.token = notes.token, None
        if token is not None:
            CURRENT_HOLD.reset(token)
        self.leave(error)

    async def __aenter__(self) -> Hold:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def leave(self, error: BaseException | None, not_sent: tuple[type[BaseException], ...] = ()) -> None:
        """End the hold in the way that fits how its block was left; nothing if it has been ended."""
        if self.state in ("settled", "voided"):
            return
        known_input = None if self._notes is None else self._notes.input_tokens
        if isinstance(error, (NotSent, *not_sent)):
            if self.state == "open":
                self.void()
        elif self.recorded:
            self.settle(self.recorded, estimated=error is not None)
        elif error is not None and known_input is not None:
            self.settle(known_input, estimated=True)
        else:
            self.settle(self.tokens, estimated=True)


# -- deciding ------------------------------------------------------------------------------------------


def decide(books: Books, tokens: int, mode: Mode, *, gate: bool = True) -> Decision:
    """Return what a hold of `tokens` would meet; moves nothing."""
    contract = books.contract
    confidence = None if contract is None else contract.last_confidence
    threshold = None if contract is None else contract.confidence_threshold
    gate_closed = gate and books.gate_closed
    if not books.capped:
        return Decision(
            agent_name=books.name,
            requested=tokens,
            status=Status.GATE_CLOSED if gate_closed else Status.UNCAPPED,
            remaining=None,
            mode=mode,
            confidence=confidence,
            confidence_threshold=threshold,
        )
    remaining = books.remaining
    reach = survey(books)
    when_idle = max(0, books.remaining_when_idle + reach.when_idle)
    moves: list[Move] = []
    if gate_closed:
        status = Status.GATE_CLOSED
    elif tokens <= remaining or not tokens:
        status = Status.FITS
    elif tokens <= remaining + reach.total:
        status = Status.FITS_WITH_LOANS
        moves = find_cover(books, tokens - remaining, Kind.LOAN, owed=max(0, -remaining))
    else:
        status = Status.BUSY if tokens <= when_idle else Status.EXHAUSTED
    return Decision(
        agent_name=books.name,
        requested=tokens,
        status=status,
        remaining=remaining,
        treasury=reach.treasury,
        siblings=reach.siblings,
        ancestors=reach.ancestors,
        available=max(0, remaining + reach.total),
        when_idle=when_idle,
        transfers=tuple(move.named() for move in moves),
        mode=mode,
        confidence=confidence,
        confidence_threshold=threshold,
    )


def refusal(decision: Decision) -> BudgetExceededError:
    """Return the error that says what the decision says."""
    kind = GateClosedError if decision.status is Status.GATE_CLOSED else BudgetExceededError
    return kind(decision.agent_name, decision.requested, decision.available or 0, decision)


# -- granting ------------------------------------------------------------------------------------------


def grant(
    desk: Desk,
    ledger: Ledger,
    books: Books,
    tokens: int,
    now: float,
    expires_at: float,
    mode: Mode,
    at_least: int | None,
    key: str | None,
    operation: str | None,
) -> Hold | Decision:
    """Set `tokens` aside, with loans if need be, or return the decision that refuses and move nothing.

    With `at_least`, a hold that does not fit is clamped to what is available, if that is not less.
    """
    if books.gate_closed or (
        tokens > books.allocated - books.consumed - books.held and books.capped and tokens
    ):
        return _grant_short(desk, ledger, books, tokens, now, expires_at, mode, at_least, key, operation)
    return _set_aside(desk, ledger, books, tokens, now, expires_at, key, operation)


def _set_aside(
    desk: Desk,
    ledger: Ledger,
    books: Books,
    tokens: int,
    now: float,
    expires_at: float,
    key: str | None,
    operation: str | None,
) -> Hold:
    """Open a hold and write it down: the plain case, and the busiest path of all."""
    ledger.seq = seq = ledger.seq + 1
    hold = Hold(desk, books, seq, tokens, now, expires_at, key, operation)
    books.held += tokens
    if not books.stale:
        books.touch()
    ledger.open_holds[seq] = hold
    ledger.journal.append(hold)
    if expires_at < ledger.due:
        ledger.due = expires_at
    return hold


def _grant_short(
    desk: Desk,
    ledger: Ledger,
    books: Books,
    tokens: int,
    now: float,
    expires_at: float,
    mode: Mode,
    at_least: int | None,
    key: str | None,
    operation: str | None,
) -> Hold | Decision:
    """Open a hold that needs the market, a smaller one, or none."""
    decision = decide(books, tokens, mode)
    if decision.status.refuses and mode == "enforce":
        available = decision.available or 0
        if at_least is None or decision.status is Status.GATE_CLOSED or available < max(1, at_least):
            return decision
        tokens = available
        decision = decide(books, tokens, mode)
    moves: list[Move] = []
    owed = max(0, -books.remaining)
    if decision.status is Status.FITS_WITH_LOANS:
        moves = find_cover(books, tokens - books.remaining, Kind.LOAN, owed=owed)
    hold = _set_aside(desk, ledger, books, tokens, now, expires_at, key, operation)
    hold.decision = decision
    if moves:
        apply(ledger, now, moves, hold_id=hold.hold_id, key=key)
        _note_loans(hold, moves, owed)
    return hold


def _note_loans(hold: Hold, moves: list[Move], owed: int) -> None:
    """Remember who gets the unused part back: every lender and treasury, but not what paid a debt."""
    lenders = hold.lenders = hold.lenders or []
    for move in moves:
        if move.kind is Kind.HAND_DOWN:
            continue  # only passed on what a lender gave
        if owed:  # the first moves paid the debt; `find_cover` split them there
            owed -= move.tokens
            continue
        lenders.append(Move(move.kind, move.donor, hold.books, move.tokens))
        move.donor.lent += move.tokens
        hold.books.borrowed += move.tokens


def extend(
    ledger: Ledger, hold: Hold, tokens: int, now: float, expires_at: float | None, mode: Mode
) -> Decision | None:
    """Set `tokens` more aside, and return the decision if it refuses (in audit mode it is done all the same).

    The gate does not stop a running call.
    """
    if hold.settlement is not None:
        raise HoldEndedError(hold.hold_id, hold.state, "extended", hold.settlement)
    books, refused = hold.books, None
    if tokens:
        decision = decide(books, tokens, mode, gate=False)
        if decision.status.refuses:
            refused = decision
            if mode == "enforce":
                return refused
        if decision.status is not Status.UNCAPPED:
            hold.decision = decision
        if decision.status is Status.FITS_WITH_LOANS:
            owed = max(0, -books.remaining)
            moves = find_cover(books, tokens - books.remaining, Kind.LOAN, owed=owed)
            apply(ledger, now, moves, hold_id=hold.hold_id, key=hold.key)
            _note_loans(hold, moves, owed)
        hold.tokens += tokens
        ledger.book(now, Kind.EXTEND, books, held=tokens, hold_id=hold.hold_id, key=hold.key)
    if expires_at is not None:
        hold.expires_at = expires_at
        ledger.due = min(ledger.due, expires_at)
    return refused


# -- ending --------------------------------------------------------------------------------------------


def settle(ledger: Ledger, hold: Hold, tokens: int, now: float, estimated: bool) -> Settlement:
    """Book `tokens` and end the hold; see `Hold.settle`."""
    if hold.settlement is not None:
        return _settle_ended(ledger, hold, tokens, now, estimated)
    books, held, hold_id = hold.books, hold.tokens, hold.hold_id
    del ledger.open_holds[hold_id]
    if tokens > held or hold.lenders is not None:
        return _settle_unevenly(ledger, hold, tokens, now, estimated)
    books.held -= held
    books.consumed += tokens
    if not books.stale:
        books.touch()
    ended = _new_tuple(
        Settlement,
        (
            hold_id,
            books.name,
            "settled",
            tokens,
            held,
            estimated,
            (),
            (),
            0,
            False,
            False,
            now,
            hold.operation,
        ),
    )
    ledger.seq += 1
    journal = ledger.journal
    journal.append(ended)
    if len(journal) > ledger.fold_at:
        ledger.fold()
    hold.settlement = ended
    return ended


def _settle_unevenly(ledger: Ledger, hold: Hold, tokens: int, now: float, estimated: bool) -> Settlement:
    """Settle with loans to return, or above the hold."""
    books, held, hold_id = hold.books, hold.tokens, hold.hold_id
    ledger.book(
        now,
        Kind.SETTLE,
        books,
        consumed=tokens,
        held=-held,
        hold_id=hold_id,
        key=hold.key,
        note=hold.operation,
        estimated=estimated,
    )
    returned = _return_loans(ledger, hold, max(0, held - tokens), now)
    covered, overrun = _cover_excess(ledger, books, tokens - held, now, hold_id)
    hold.settlement = Settlement(
        hold_id,
        books.name,
        "settled",
        tokens,
        held,
        estimated,
        returned,
        covered,
        overrun,
        at=now,
        operation=hold.operation,
    )
    return hold.settlement


def _settle_ended(ledger: Ledger, hold: Hold, tokens: int, now: float, estimated: bool) -> Settlement:
    """Book an expired hold, once: all of it is excess, as nothing is set aside any more."""
    if hold.state == "settled":
        return _repeated(hold, tokens, "settled")
    if hold.state == "voided":
        raise HoldEndedError(hold.hold_id, hold.state, "settled", hold.settlement)
    books = hold.books
    ledger.book(
        now,
        _LATE,
        books,
        consumed=tokens,
        hold_id=hold.hold_id,
        key=hold.key,
        note=hold.operation,
        estimated=estimated,
    )
    covered, overrun = _cover_excess(ledger, books, tokens, now, hold.hold_id)
    hold.settlement = Settlement(
        hold.hold_id,
        books.name,
        "settled",
        tokens,
        hold.tokens,
        estimated,
        (),
        covered,
        overrun,
        True,
        at=now,
    )
    return hold.settlement


def void(ledger: Ledger, hold: Hold, now: float) -> Settlement:
    """End the hold and free everything; see `Hold.void`."""
    if hold.state == "voided":
        return _repeated(hold, 0, "voided")
    if hold.state != "open":
        raise HoldEndedError(hold.hold_id, hold.state, "voided", hold.settlement)
    return _free(ledger, hold, now, _VOID, "voided")


def expire_due(ledger: Ledger, now: float) -> None:
    """Free every open hold whose time has come, in the order of their times.

    Looks at every open hold, but only when the earliest of their times may have come: with holds that live
    for minutes, that is once in minutes.
    """
    open_holds = ledger.open_holds.values()
    ended = [hold for hold in open_holds if hold.expires_at <= now]
    for hold in sorted(ended, key=lambda hold: (hold.expires_at, hold.hold_id)):
        _free(ledger, hold, now, _EXPIRE, "expired")
    ledger.set_due(min((hold.expires_at for hold in open_holds), default=float("inf")))


def _free(
    ledger: Ledger, hold: Hold, now: float, kind: Kind, state: Literal["voided", "expired"]
) -> Settlement:
    del ledger.open_holds[hold.hold_id]
    ledger.book(
        now, kind, hold.books, held=-hold.tokens, hold_id=hold.hold_id, key=hold.key, note=hold.operation
    )
    returned = _return_loans(ledger, hold, hold.tokens, now)
    hold.settlement = Settlement(
        hold.hold_id, hold.books.name, state, 0, hold.tokens, returned=returned, at=now
    )
    return hold.settlement


def _repeated(hold: Hold, tokens: int, state: str) -> Settlement:
    """Return the first answer again if the request is the same."""
    first = hold.settlement
    assert first is not None, "an ended hold has a settlement"
    if first.tokens != tokens:
        raise HoldEndedError(hold.hold_id, hold.state, f"{state} with {tokens} tokens", first)
    return first._replace(repeated=True)


def _return_loans(ledger: Ledger, hold: Hold, unused: int, now: float) -> tuple[Transfer, ...]:
    """Give `unused` tokens back to the lenders, last lender first; all loans end."""
    returned = []
    books = hold.books
    for loan in reversed(hold.lenders or ()):
        lender = loan.donor
        part = min(unused, loan.tokens)
        unused -= part
        lender.lent -= loan.tokens
        books.borrowed -= loan.tokens
        lender.touch()
        if not part:
            continue
        if lender.capped:
            ledger.book(now, Kind.RETURN, lender, peer=books, allocated=part, hold_id=hold.hold_id)
        else:  # the lender has closed and its treasury is without limit: out of the pool
            ledger.book(now, Kind.CLOSE, books, allocated=-part, hold_id=hold.hold_id)
        returned.append(Transfer(books.name, lender.name, part, Kind.RETURN))
    return tuple(returned)


# -- spending above what was set aside -----------------------------------------------------------------


def book_usage(
    ledger: Ledger, books: Books, tokens: int, now: float, *, note: str, key: str | None
) -> Settlement:
    """Book `tokens` that no hold announced; covered like the excess of a settle."""
    ledger.book(now, Kind.USAGE, books, consumed=tokens, key=key, note=note)
    entry = ledger.seq
    covered, overrun = _cover_excess(ledger, books, tokens, now, None)
    return Settlement(entry, books.name, "settled", tokens, 0, False, (), covered, overrun, at=now)


def _cover_excess(
    ledger: Ledger, books: Books, excess: int, now: float, hold_id: int | None
) -> tuple[tuple[Transfer, ...], int]:
    """Let the market pay what the agent's own remaining does not, as much as there is.

    Returns what was given, and the overrun: the part of the excess that nothing covers.
    """
    if excess <= 0 or not books.capped or books.remaining >= 0:
        return (), 0
    covered: tuple[Transfer, ...] = ()
    if not books.closed:
        found = min(-books.remaining, survey(books).total)
        covered = apply(ledger, now, find_cover(books, found, Kind.COVER), hold_id=hold_id)
    return covered, min(excess, -books.remaining)
