"""The life of a hold: decided, granted, and ended once.

Everything that may be decided about a hold is written here, against the books and with the time as an
argument. A hold is *open* until it is settled, voided or expired; an expired one may still be settled, late,
once. The functions run under the ledger's lock and never wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heapreplace
from math import inf
from typing import Literal, NamedTuple

import attrs

from tbc.axes import CALLS, USD, format_amount
from tbc.contract import check_amount
from tbc.decision import Booking, Decision, Kind, Mode, Settlement, Status, Transfer
from tbc.errors import BudgetExceededError, GateClosedError, HoldEndedError
from tbc.holds import Desk, Ending, Hold, Part, Spent
from tbc.ledger import Books, Ledger
from tbc.reallocator import Move, apply, find_cover, survey

__all__ = [
    "Clamp",
    "as_usage",
    "book_usage",
    "cover_excess",
    "decide",
    "expire_due",
    "extend",
    "finish_interrupted",
    "grant",
    "refusal",
    "set_aside",
    "settle",
    "settle_as_held",
    "void",
]

_new_tuple = tuple.__new__

# -- deciding ------------------------------------------------------------------------------------------


def decide(asked: Sequence[Part], mode: Mode, *, gate: bool = True) -> Decision:
    """Return what a hold of these parts, one an axis, would meet; moves nothing.

    The decision that binds is returned, with the others beside it.
    """
    decisions = [_decide_part(part.books, part.amount, mode, gate=gate) for part in asked]
    if len(decisions) == 1:
        return decisions[0]
    binding = min(decisions, key=_urgency)
    return attrs.evolve(binding, others=tuple(each for each in decisions if each is not binding))


_URGENCY = (Status.GATE_CLOSED, Status.EXHAUSTED, Status.BUSY, Status.FITS_WITH_LOANS)


def _urgency(decision: Decision) -> int:
    if decision.status in _URGENCY:
        return _URGENCY.index(decision.status)
    # An axis on which nothing was asked has nothing to say.
    return len(_URGENCY) + (decision.status is Status.UNCAPPED) + 2 * (not decision.requested)


def _decide_part(books: Books, amount: int, mode: Mode, *, gate: bool) -> Decision:
    contract = books.contract
    confidence = None if contract is None else contract.last_confidence
    threshold = None if contract is None else contract.confidence_threshold
    gate_closed = gate and books.gate_closed
    if not books.capped:
        return Decision(
            agent_name=books.name,
            requested=amount,
            status=Status.GATE_CLOSED if gate_closed else Status.UNCAPPED,
            remaining=None,
            mode=mode,
            confidence=confidence,
            confidence_threshold=threshold,
            axis=books.axis,
        )
    remaining = books.remaining
    top = books
    while top.parent is not None and top.parent.capped:
        top = top.parent
    reach = survey(books)
    when_idle = max(0, books.remaining_when_idle + reach.when_idle)
    moves: list[Move] = []
    if gate_closed:
        status = Status.GATE_CLOSED
    elif amount <= remaining or not amount:
        status = Status.FITS
    elif amount <= remaining + reach.total:
        status = Status.FITS_WITH_LOANS
        moves = find_cover(books, amount - remaining, Kind.LOAN, owed=max(0, -remaining))
    else:
        status = Status.BUSY if amount <= when_idle else Status.EXHAUSTED
    return Decision(
        agent_name=books.name,
        requested=amount,
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
        axis=books.axis,
        top=top.name,
    )


def refusal(decision: Decision) -> BudgetExceededError:
    """Return the error that says what the decision says."""
    kind = GateClosedError if decision.status is Status.GATE_CLOSED else BudgetExceededError
    return kind(decision.agent_name, decision.requested, decision.available or 0, decision)


# -- granting ------------------------------------------------------------------------------------------


class Clamp(NamedTuple):
    """How a hold may be made smaller if it cannot be had in full.

    Attributes
    ----------
    at_least : int
        The fewest tokens that are worth it.
    cost : callable or None
        Tokens to nano-dollars, never falling: what fewer tokens cost.
    """

    at_least: int
    cost: Callable[[int], int] | None = None

    def fit(self, asked: Sequence[Part], decision: Decision) -> list[Part] | None:
        """Return smaller parts that can be had, or ``None`` if there is no such size."""
        tokens, *others = asked
        limits = {each.axis: each.available for each in (decision, *decision.others)}
        fits = _least(tokens.amount, limits["tokens"])
        smaller = [Part(tokens.books, fits)]
        for part in others:
            limit = limits[part.books.axis]
            if part.books.axis == "usd" and self.cost is not None and limit is not None:
                fits = smaller[0].amount = _largest(self.at_least, fits, self.cost, limit)
                smaller.append(Part(part.books, self.cost(max(0, fits))))
            elif limit is not None and part.amount > limit and part.amount:
                return None
            else:
                smaller.append(part)
        smaller[0].granted = fits
        return smaller if fits >= max(1, self.at_least) else None


def _least(amount: int, limit: int | None) -> int:
    return amount if limit is None else min(amount, limit)


def _largest(least: int, most: int, cost: Callable[[int], int], limit: int) -> int:
    """Return the largest number from `least` to `most` that costs at most `limit`; -1 if there is none."""
    if most < least or cost(least) > limit:
        return -1
    while least < most:
        middle = (least + most + 1) // 2
        if cost(middle) <= limit:
            least = middle
        else:
            most = middle - 1
    return least


def set_aside(ledger: Ledger, hold: Hold, *, first_of_many: bool = False) -> None:
    """Open a hold that fits, or whose loans follow at once, and write it down: the busiest path.

    Its number is that of the next line, beyond `Ledger.numbers_from`. As the `first_of_many` steps it is
    unfinished, and voided if no others follow: nobody has it yet.
    """
    books, hold_id, expires_at = hold.books, hold.hold_id, hold.expires_at
    if not books.stale:
        books.touch()
    write = ledger.lines.append
    if expires_at < ledger.unsorted_due:
        ledger.unsorted_due = expires_at
        ledger.due = min(ledger.due, expires_at)
    ledger.seq += 1  # no call from here on but the last: see `Ledger.book`
    books.held += hold.amount
    ledger.open_holds[hold_id] = hold
    if first_of_many:
        ledger.unfinished = hold, None
        ledger.due = -inf
    write(hold)


def grant(
    desk: Desk,
    ledger: Ledger,
    asked: Sequence[Part],
    now: float,
    expires_at: float,
    mode: Mode,
    clamp: Clamp | None,
    key: str | None,
    operation: str | None,
    model: str | None,
    made: Callable[..., Hold] = Hold,
) -> Hold | Decision:
    """Set the parts aside, with loans, or return the decision that refuses and move nothing.

    The first part is the one on tokens. The market is only looked at where a part does not fit by itself.
    With a `clamp`, a hold that cannot be had in full is made smaller. `made` makes the hold.
    """
    decision: Decision | None = None
    covers: list[tuple[list[Move], int]] = []
    if not all(map(_fits_alone, asked)):
        decision = decide(asked, mode)
        if decision.status.refuses and mode == "enforce":
            if clamp is None or decision.status is Status.GATE_CLOSED:
                return decision
            smaller = clamp.fit(asked, decision)
            if smaller is None:
                return decision
            asked = smaller
            decision = decide(asked, mode)
        covers = [_loans_for(part, decision) for part in asked]
    tokens, *others = asked
    due = min(ledger.due, expires_at)
    number = ledger.numbers_from + ledger.seq + 1
    hold = made(desk, tokens.books, number, tokens.amount, now, expires_at, key, operation, model)
    set_aside(ledger, hold, first_of_many=bool(others or (covers and covers[0][0])))
    hold.decision = decision
    for part in others:
        part.amount = 0  # until its entry is written
    hold.others = tuple(others)
    for part in others:
        ledger.book(
            now,
            Kind.HOLD,
            part.books,
            held=part.granted,
            hold_id=hold.hold_id,
            key=key,
            note=operation,
            model=model,
            grows=part,
        )
    for part, (moves, owed) in zip((hold, *others), covers, strict=False):  # none where all fits
        _lend(ledger, now, part, moves, owed, hold)
    ledger.unfinished = None
    ledger.due = due
    return hold


def _fits_alone(part: Part) -> bool:
    books = part.books
    return not books.gate_closed and (not part.amount or not books.capped or part.amount <= books.remaining)


def _loans_for(part: Part, decision: Decision) -> tuple[list[Move], int]:
    """Return the moves that a part needs, and how much of them pays a debt."""
    books = part.books
    owed = max(0, -books.remaining)
    found = decision.on(books.axis)
    if found is None or found.status is not Status.FITS_WITH_LOANS:
        return [], owed
    return find_cover(books, part.amount - books.remaining, Kind.LOAN, owed=owed), owed


def _lend(ledger: Ledger, now: float, part: Part, moves: list[Move], owed: int, hold: Hold) -> None:
    """Book the moves, and remember who gets the unused part back: all but what paid a debt."""
    if not moves:
        return
    part.lenders = part.lenders or []
    part.books.touch()
    for move in moves:
        lends = None
        if move.kind is Kind.HAND_DOWN:  # only passes on what a lender gave
            pass
        elif owed:  # the first moves pay the debt; `find_cover` split them there
            owed -= move.amount
        else:
            lends = part, Move(move.kind, move.donor, part.books, move.amount)
        ledger.book(
            now,
            move.kind,
            move.recipient,
            peer=move.donor,
            allocated=move.amount,
            hold_id=hold.hold_id,
            key=hold.key,
            lends=lends,
        )


def extend(
    ledger: Ledger, hold: Hold, asked: Sequence[Part], now: float, expires_at: float | None, mode: Mode
) -> Decision | None:
    """Set the parts more aside, and return the decision if it refuses.

    In audit mode it is done all the same. The gate does not stop a running call.
    """
    if hold.settlement is not None:
        raise HoldEndedError(hold.hold_id, hold.state, "extended", hold.settlement)
    refused = None
    wanted = [part for part in asked if part.amount]
    for part in wanted:
        known = hold.part(part.books.axis)
        check_amount(f"{part.books.axis} held in all", part.amount + (0 if known is None else known.amount))
    if wanted:
        decision = decide(wanted, mode, gate=False)
        if decision.status.refuses:
            refused = decision
            if mode == "enforce":
                return refused
        if decision.status is not Status.UNCAPPED:
            hold.decision = decision
        covers = [_loans_for(part, decision) for part in wanted]
        for part, (moves, owed) in zip(wanted, covers, strict=True):
            known = hold.part(part.books.axis)
            if known is None:
                known = Part(part.books, 0)
                hold.others = (*hold.others, known)
            if part.amount:
                known.unpriced = False  # what is set aside is what it will cost
            _lend(ledger, now, known, moves, owed, hold)
            ledger.book(
                now,
                Kind.EXTEND,
                part.books,
                held=part.amount,
                hold_id=hold.hold_id,
                key=hold.key,
                grows=known,
            )
    if expires_at is not None:
        if not wanted:
            ledger.book(now, Kind.EXTEND, hold.books, hold_id=hold.hold_id, key=hold.key)
        hold.expires_at = expires_at
        ledger.unsorted_due = min(ledger.unsorted_due, expires_at)
        ledger.due = min(ledger.due, expires_at)
    return refused


# -- ending --------------------------------------------------------------------------------------------


def settle_as_held(ledger: Ledger, hold: Hold, tokens: int, now: float, estimated: bool) -> Settlement:
    """Settle an open hold on tokens alone, without loans and not above it: the busiest end."""
    books, held, hold_id = hold.books, hold.amount, hold.hold_id
    if not books.stale:
        books.touch()
    journal = ledger.journal
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
            hold.model,
            (),
        ),
    )
    lines = journal.lines
    write = lines.append
    del ledger.open_holds[hold_id]  # no call from here on but the last: see `Ledger.book`
    books.held -= held
    books.consumed += tokens
    ledger.seq += 1
    hold.settlement = ended
    write(ended)
    if len(lines) > journal.fold_at:
        journal.fold()
    return ended


def settle(
    ledger: Ledger,
    hold: Hold,
    spent: Sequence[Spent],
    now: float,
    *,
    note: str | None = None,
    kind: Kind = Kind.SETTLE,
) -> Settlement:
    """Book what was spent, the tokens first, and end the hold; see `Hold.settle`.

    An expired hold is settled late, once: all of it is excess, as nothing is set aside any more. In the
    journal it is of this `kind` if it is not late.
    """
    if hold.state == "voided":
        raise HoldEndedError(hold.hold_id, hold.state, "settled", hold.settlement)
    if hold.state == "settled":
        return _repeated(hold, spent, "settled")
    late = hold.settlement is not None
    ending = Ending("settled", Kind.LATE_SETTLE if late else kind, spent, now)
    ending.note = note
    return _end(ledger, hold, ending)


def void(ledger: Ledger, hold: Hold, now: float) -> Settlement:
    """End the hold and free everything; see `Hold.void`."""
    if hold.state == "voided":
        return _repeated(hold, (), "voided")
    if hold.state != "open":
        raise HoldEndedError(hold.hold_id, hold.state, "voided", hold.settlement)
    return _end(ledger, hold, _unused("voided", Kind.VOID, hold, now))


def expire_due(ledger: Ledger, now: float) -> None:
    """Free every open hold whose time has come, in the order of their times.

    The ends are sorted only when the first of those not sorted yet may have come (with holds that live for
    minutes: once in minutes), so that a hold that ends in time never pays for it. O(log n) for each that
    expires.
    """
    if now >= ledger.unsorted_due:
        ledger.deadlines = [(hold.expires_at, hold_id) for hold_id, hold in ledger.open_holds.items()]
        heapify(ledger.deadlines)
        ledger.unsorted_due = inf
    deadlines = ledger.deadlines
    freed = 0
    while deadlines and deadlines[0][0] <= now and freed < ledger.expire_most:
        hold_id = deadlines[0][1]
        hold = ledger.open_holds.get(hold_id)
        if hold is not None and hold.expires_at > now:  # extended since
            heapreplace(deadlines, (hold.expires_at, hold_id))
            continue
        if hold is not None:
            _end(ledger, hold, _unused("expired", Kind.EXPIRE, hold, now))
            freed += 1
        heappop(deadlines)
    ledger.due = min(deadlines[0][0] if deadlines else inf, ledger.unsorted_due)


def _unused(state: Literal["voided", "expired"], kind: Kind, hold: Hold, now: float) -> Ending:
    return Ending(state, kind, [Spent(part, 0, False) for part in (hold, *hold.others)], now)


def finish_interrupted(ledger: Ledger) -> None:
    """Go on with an end that an exception out of a signal handler has interrupted; see `Ending`."""
    if ledger.unfinished is not None:
        hold, ending = ledger.unfinished
        _end(ledger, hold, ending or _unused("voided", Kind.VOID, hold, hold.at))


def _end(ledger: Ledger, hold: Hold, ending: Ending) -> Settlement:
    """End the hold; until that is done, every look at the books begins with going on here."""
    due = ledger.due
    ledger.unfinished = hold, ending
    ledger.due = -inf
    now, late = ending.now, ending.kind is Kind.LATE_SETTLE
    for part, amount, estimated, unpriced in ending.spent[ending.booked :]:
        ledger.book(
            now,
            ending.kind,
            part.books,
            consumed=amount,
            held=0 if late else -part.amount,
            hold_id=hold.hold_id,
            key=hold.key,
            note=ending.note or hold.operation,
            estimated=estimated,
            model=hold.model,
            unpriced=unpriced,
            ends=ending,
        )
    ends = []
    loans = 0
    for part, amount, estimated, unpriced in ending.spent:
        held = 0 if late else part.amount
        returned: tuple[Transfer, ...] = ()
        if part.lenders and not late:
            returned = _return_loans(ledger, part, hold.hold_id, max(0, held - amount), ending, loans)
            loans += len(part.lenders)
        covered: tuple[Transfer, ...] = ()
        overrun = 0
        if amount > held:
            covered, overrun = cover_excess(ledger, part.books, amount - held, now, hold.hold_id)
        ends.append(
            Booking(part.books.axis, amount, part.amount, estimated, returned, covered, overrun, unpriced)
        )
    tokens, *others = ends
    settlement = _new_tuple(
        Settlement,
        (
            hold.hold_id,
            hold.books.name,
            ending.state,
            tokens.amount,
            tokens.held,
            tokens.estimated,
            tokens.returned,
            tokens.covered,
            tokens.overrun,
            late,
            False,
            now,
            hold.operation,
            hold.model,
            tuple(others),
        ),
    )
    hold.settlement = settlement  # no call from here on: see `Ledger.book`
    ledger.unfinished = None
    ledger.due = due
    if not late:
        del ledger.open_holds[hold.hold_id]
    return settlement


def _repeated(hold: Hold, spent: Sequence[Spent], state: str) -> Settlement:
    """Return the first answer again if the request is the same."""
    first = hold.settlement
    assert first is not None, "an ended hold has a settlement"
    was = {"tokens": first.tokens, **{booking.axis: booking.amount for booking in first.others}}
    now = {part.books.axis: amount for part, amount, *_ in spent}
    if spent and was != now:
        amounts = ", ".join(format_amount(axis, amount) for axis, amount in now.items())
        raise HoldEndedError(hold.hold_id, hold.state, f"{state} with {amounts}", first)
    return first._replace(repeated=True)


def _return_loans(
    ledger: Ledger, part: Part, hold_id: int, unused: int, ending: Ending, first: int
) -> tuple[Transfer, ...]:
    """Give the `unused` rest back to the lenders, last lender first; all loans end.

    They are those from number `first` on of all that the ending repays.
    """
    returned = []
    books, now = part.books, ending.now
    for position, loan in enumerate(reversed(part.lenders or ()), first):
        lender = loan.donor
        back = min(unused, loan.amount)
        unused -= back
        if back:
            returned.append(Transfer(books.name, lender.name, back, Kind.RETURN, books.axis))
        if position < ending.repaid:  # an interrupted end came that far
            continue
        repays = ending, part, loan
        if back and lender.capped:
            ledger.book(now, Kind.RETURN, lender, peer=books, allocated=back, hold_id=hold_id, repays=repays)
        elif back:  # the lender has closed and its treasury is without limit: out of the pool
            ledger.book(now, Kind.CLOSE, books, allocated=-back, hold_id=hold_id, repays=repays)
        else:
            lender.touch()
            ledger.repay(*repays)
    return tuple(returned)


# -- spending above what was set aside -----------------------------------------------------------------


def as_usage(
    ledger: Ledger,
    books: Books,
    tokens: int,
    nano: int | None,
    calls: int,
    unpriced: int,
    *,
    guessed: bool = False,
) -> list[Spent]:
    """Return what was spent without a hold on every axis that is kept. `books` are those on tokens."""
    spent = [Spent(Part(books, 0), tokens, False)]
    if nano is not None or USD in ledger.sides:
        spent.append(Spent(Part(ledger.on(USD, books), 0), nano or 0, guessed, unpriced))
    if calls != 1 or CALLS in ledger.sides:
        spent.append(Spent(Part(ledger.on(CALLS, books), 0), calls, False))
    return spent


def book_usage(
    ledger: Ledger,
    spent: Sequence[Spent],
    now: float,
    *,
    note: str,
    key: str | None,
    model: str | None,
) -> Settlement:
    """Book what no hold announced, the tokens first; covered like the excess of a settle."""
    entry = ledger.seq + 1
    for part, amount, estimated, unpriced in spent:
        ledger.book(
            now,
            Kind.USAGE,
            part.books,
            consumed=amount,
            key=key,
            note=note,
            estimated=estimated,
            model=model,
            unpriced=unpriced,
        )
    ends = []
    for part, amount, estimated, unpriced in spent:
        covered, overrun = cover_excess(ledger, part.books, amount, now, None)
        ends.append(Booking(part.books.axis, amount, 0, estimated, (), covered, overrun, unpriced))
    tokens, *others = ends
    return Settlement(
        entry,
        spent[0].part.books.name,
        "settled",
        tokens.amount,
        0,
        tokens.estimated,
        (),
        tokens.covered,
        tokens.overrun,
        at=now,
        model=model,
        others=tuple(others),
    )


def cover_excess(
    ledger: Ledger, books: Books, excess: int, now: float, hold_id: int | None
) -> tuple[tuple[Transfer, ...], int]:
    """Let the market pay what the agent's own remaining does not, as much as there is.

    Returns what was given, and the overrun: the part of the excess that nothing covers.
    """
    if excess <= 0 or not books.capped or books.remaining >= 0:
        return (), 0
    found = min(-books.remaining, survey(books).total)
    covered = apply(ledger, now, find_cover(books, found, Kind.COVER), hold_id=hold_id)
    return covered, min(excess, -books.remaining)
