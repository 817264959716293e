"""The life of a hold: decided, granted, and ended once.

Everything that may be decided about a hold is written here, against the books and with the time as an
argument. A hold is *open* until it is settled, voided or expired; an expired one may still be settled, late,
once. The functions run under the ledger's lock and never wait.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Literal

from tbc.contract import check_amount
from tbc.decision import Decision, Kind, Mode, Settlement, Status, Transfer
from tbc.errors import BudgetExceededError, GateClosedError, HoldEndedError
from tbc.holds import Desk, Hold
from tbc.ledger import Books, Ledger
from tbc.reallocator import Move, apply, find_cover, survey

__all__ = ["book_usage", "decide", "expire_due", "extend", "grant", "refusal", "set_aside", "settle", "void"]

_new_tuple = tuple.__new__
_LATE, _VOID, _EXPIRE = Kind.LATE_SETTLE, Kind.VOID, Kind.EXPIRE

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


def set_aside(
    desk: Desk,
    ledger: Ledger,
    books: Books,
    tokens: int,
    now: float,
    expires_at: float,
    key: str | None,
    operation: str | None,
) -> Hold:
    """Open a hold that fits, or whose loans follow at once, and write it down: the busiest path."""
    seq = ledger.seq + 1
    hold = Hold(desk, books, seq, tokens, now, expires_at, key, operation)
    if not books.stale:
        books.touch()
    write = ledger.lines.append
    if expires_at < ledger.unsorted_due:
        ledger.unsorted_due = expires_at
        ledger.due = min(ledger.due, expires_at)
    ledger.seq = seq  # no call from here on but the last: see `Ledger.book`
    books.held += tokens
    ledger.open_holds[seq] = hold
    write(hold)
    return hold


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
    """Set `tokens` aside with loans, or return the decision that refuses and move nothing.

    For whom `tokens` do not fit by itself, or whose gate is closed. With `at_least`, a hold that cannot be
    had in full is clamped to what is available, if that is not less.
    """
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
    hold = set_aside(desk, ledger, books, tokens, now, expires_at, key, operation)
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
    check_amount("tokens held in all", hold.tokens + tokens)
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
        ledger.unsorted_due = min(ledger.unsorted_due, expires_at)
        ledger.due = min(ledger.due, expires_at)
    return refused


# -- ending --------------------------------------------------------------------------------------------


def settle(ledger: Ledger, hold: Hold, tokens: int, now: float, estimated: bool) -> Settlement:
    """Book `tokens` and end the hold; see `Hold.settle`."""
    if hold.settlement is not None:
        return _settle_ended(ledger, hold, tokens, now, estimated)
    books, held, hold_id = hold.books, hold.tokens, hold.hold_id
    if tokens > held or hold.lenders is not None:
        del ledger.open_holds[hold_id]
        return _settle_unevenly(ledger, hold, tokens, now, estimated)
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
    lines = ledger.lines
    write = lines.append
    del ledger.open_holds[hold_id]  # no call from here on but the last: see `Ledger.book`
    books.held -= held
    books.consumed += tokens
    ledger.seq += 1
    hold.settlement = ended
    write(ended)
    if len(lines) > ledger.journal.fold_at:
        ledger.journal.fold()
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
        operation=hold.operation,
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

    The ends are sorted only when the first of those not sorted yet may have come (with holds that live for
    minutes: once in minutes), so that a hold that ends in time never pays for it. O(log n) for each that
    expires.
    """
    if now >= ledger.unsorted_due:
        ledger.deadlines = [(hold.expires_at, hold_id) for hold_id, hold in ledger.open_holds.items()]
        heapify(ledger.deadlines)
        ledger.unsorted_due = float("inf")
    deadlines = ledger.deadlines
    while deadlines and deadlines[0][0] <= now:
        _, hold_id = heappop(deadlines)
        hold = ledger.open_holds.get(hold_id)
        if hold is None:
            continue
        if hold.expires_at <= now:
            _free(ledger, hold, now, _EXPIRE, "expired")
        else:  # extended since
            heappush(deadlines, (hold.expires_at, hold_id))
    ledger.due = min(deadlines[0][0] if deadlines else float("inf"), ledger.unsorted_due)


def _free(
    ledger: Ledger, hold: Hold, now: float, kind: Kind, state: Literal["voided", "expired"]
) -> Settlement:
    del ledger.open_holds[hold.hold_id]
    ledger.book(
        now, kind, hold.books, held=-hold.tokens, hold_id=hold.hold_id, key=hold.key, note=hold.operation
    )
    returned = _return_loans(ledger, hold, hold.tokens, now)
    hold.settlement = Settlement(
        hold.hold_id,
        hold.books.name,
        state,
        0,
        hold.tokens,
        returned=returned,
        at=now,
        operation=hold.operation,
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
