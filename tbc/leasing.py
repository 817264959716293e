"""Leases, seen from the shared pool: holds that are reported on while they are open and never expire.

A lease's end is a promise of its worker, not of the pool: at the end nothing is freed. It stays set aside in
full until the worker's final report, or until an operator says what was spent. So whatever is lost, late,
doubled, paused or dead, nothing is promised twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import attrs

from tbc import lifecycle
from tbc.axes import AXES, CALLS, TOKENS, USD, Axis
from tbc.contract import check_amount, check_fraction, check_seconds
from tbc.decision import Decision, Kind, Settlement, Transfer
from tbc.desk import SpendingDesk
from tbc.errors import HoldEndedError, LeaseOpenError, SliceTooSmallError, TBCError, UnknownLeaseError
from tbc.holds import Desk, Ending, Hold, Part, Spent
from tbc.leases import MARGIN, Amounts, Ask, LeaseTerms, Refused, Report, Slice
from tbc.ledger import Books, Ledger
from tbc.pool import nano_dollars
from tbc.reallocator import Move, survey

if TYPE_CHECKING:
    from tbc.errors import StoreError
    from tbc.money import Money
    from tbc.usage import Usage

__all__ = ["LeaseHold", "LeaseRecord", "LeasingDesk"]


class LeaseHold(Hold):
    """A hold that one worker spends by itself; see `BudgetManager.lease`.

    What is set aside goes down by what is reported. It has an end, but does not expire.

    Attributes
    ----------
    lease : LeaseTerms
        Who has it, until when, and what was reported.
    first : Slice
        What was granted at first.
    """

    __slots__ = ("first", "lease")

    def __init__(self, lease: LeaseTerms, desk: Desk, *rest: Any) -> None:
        super().__init__(desk, *rest)
        self.lease: LeaseTerms = lease
        self.first = Slice(self.hold_id, {})

    @property
    def reported(self) -> Amounts:
        """What was booked of it in all."""
        ended = self.settlement
        if ended is None:
            return self.lease.reported
        dollars, calls = ended.on(USD), ended.on(CALLS)
        return self.lease.reported.plus(
            Amounts(
                ended.tokens,
                0 if dollars is None else dollars.amount,
                0 if calls is None else calls.amount,
                0 if dollars is None else dollars.unpriced,
            )
        )

    def report(
        self, tokens: int = 0, *, usd: Money | None = None, calls: int = 0, estimated: bool = False
    ) -> None:
        """Book what was spent so far, in all; less than was reported before changes nothing.

        More than the lease is booked in full. After its end, too: late, but once.
        """
        total = _amounts(tokens, usd, calls)
        self._leasing.report_lease(self, total, estimated=estimated)

    def settle(
        self,
        tokens: int | None = None,
        *,
        usd: Money | None = None,
        calls: int | None = None,
        usage: Usage | None = None,
        estimated: bool = False,
    ) -> Settlement:
        """Make the final report: `tokens`, dollars and calls in all. What is left is freed.

        What is left out is booked as it is set aside, as an estimate. The settlement has what was booked
        now, beside what was reported before. A second one books what it says more, and frees nothing.
        """
        if usage is not None:
            tokens = usage.tokens if tokens is None else tokens
        nano = None if usd is None else nano_dollars("usd", usd)
        return self._leasing.settle_lease(self, (tokens, nano, calls), estimated=estimated)

    def leave(
        self,
        error: BaseException | None,
        not_sent: tuple[type[BaseException], ...] = (),
        *,
        unkept: StoreError | None = None,
    ) -> None:
        """Make the final report, of all that is set aside, if none was made; until then it is charged."""
        if self.settlement is None and unkept is None:
            self.settle()

    @property
    def _leasing(self) -> LeasingDesk:
        desk = self._desk
        assert isinstance(desk, LeasingDesk), "only its desk makes leases"
        return desk


@attrs.frozen
class LeaseRecord:
    """An open lease.

    Attributes
    ----------
    hold_id : int
        The hold that it is.
    agent_name, holder : str
        Whose budget, and which worker spends it.
    amount, reported : Amounts
        What was set aside for it in all, and what of that was reported as spent.
    at, ends_at : float
        Seconds of the manager's clock: granted, and no longer to be spent.
    overdue : bool
        Whether an operator may close it: its end, and the time after it, have passed without a word.
    """

    hold_id: int
    agent_name: str
    holder: str
    amount: Amounts
    reported: Amounts
    at: float
    ends_at: float
    overdue: bool


class _Reporting(Ending):
    """A report, kept until it is booked on every axis, as an `Ending` is."""

    __slots__ = ("excess", "terms")

    def __init__(self, hold: LeaseHold, spent: Sequence[Spent], now: float, terms: LeaseTerms) -> None:
        super().__init__("settled", Kind.REPORT, spent, now)
        late = hold.settlement is not None
        self.excess = [amount if late else amount - part.amount for part, amount, *_ in spent]
        self.terms = terms


class LeasingDesk(SpendingDesk):
    """A desk that also leases to workers; see `BudgetManager`."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self._leases: dict[int, LeaseHold] = {}  # the open ones, and the last ended: they may be late
        self._keep_leases = int(how.get("keep", 100_000))

    def lease(
        self,
        agent_name: str,
        tokens: int = 0,
        *,
        usd: Money | None = None,
        calls: int = 0,
        share: float = 0.1,
        seconds: float = 30.0,
        holder: str = "",
        key: str | None = None,
    ) -> LeaseHold:
        """Set a slice of an agent's budget aside, for one worker to spend by itself.

        On every axis that is capped it is `share` of what the agent has free: its own remaining, and what
        it could draw from above. Report on it with the hold's `report`, end it with its `settle`.

        Parameters
        ----------
        agent_name : str
            Whose budget.
        tokens, usd, calls
            What the slice must cover at least.
        share : float, default 0.1
            How much of what is free; above 0 and at most 1.
        seconds : float, default 30
            How long the worker may spend it. After that it stays set aside until the worker, or an
            operator (`close_lease`), has said what was spent.
        holder : str
            Which worker, for those who look.
        key : str, optional
            Makes the request safe to repeat; refusals too.

        Raises
        ------
        SliceTooSmallError
            The share does not cover what is needed; a `hold` might.
        GateClosedError
            The agent is confident enough.
        """
        need = _amounts(tokens, usd, calls)
        ask = Ask(key or "", agent_name, holder, need, share, seconds)
        hold = self._lease(ask, key)
        self._tell()
        if isinstance(hold, LeaseHold):
            return hold
        raise _refusal(hold)

    def answer(self, message: Ask | Report) -> Slice | Refused | Report:
        """Answer the message of a worker; a report is answered by itself.

        The same message again gets the same answer. Errors of a store are raised: nobody knows then what was
        done, and the message is to be sent again.
        """
        if isinstance(message, Report):
            hold = self._find_lease(message.hold_id)
            if message.final:
                used, unpriced = message.used[:3], message.used.unpriced
                self.settle_lease(hold, used, unpriced=unpriced, estimated=message.estimated)
            else:
                self.report_lease(hold, message.used, estimated=message.estimated)
            return message
        try:
            if message.hold_id is None:
                granted = self._lease(message, message.key)
                return granted.first if isinstance(granted, LeaseHold) else Refused(_refusal(granted))
            more = self._refill(self._find_lease(message.hold_id), message)
            return more if isinstance(more, Slice) else Refused(_refusal(more))
        except TBCError as refused:
            if isinstance(refused, OSError):
                raise
            return Refused(refused)
        finally:
            self._tell()

    def report_lease(
        self, hold: LeaseHold, total: Amounts, *, estimated: bool = False, note: str | None = None
    ) -> None:
        """Book what was spent of a lease in all; see `LeaseHold.report`."""
        with self._lock:
            now = self.ledger.look()
            self._report(self._lease_now(hold.hold_id, hold), total, now, estimated=estimated, note=note)
        self._tell()

    def settle_lease(
        self,
        hold: LeaseHold,
        total: Sequence[int | None],
        *,
        unpriced: int = 0,
        estimated: bool = False,
        note: str | None = None,
    ) -> Settlement:
        """Book a final report: tokens, nano-dollars and calls in all (``None``: all that is set aside)."""
        checked = [
            None if amount is None else check_amount(axis, amount)
            for axis, amount in zip(AXES, total, strict=True)
        ]
        with self._lock:
            now = self.ledger.look()
            known = self._lease_now(hold.hold_id, hold)
            settlement = self._settle(known, checked, unpriced, now, estimated=estimated, note=note)
        self._tell()
        return settlement

    def leases(self) -> list[LeaseRecord]:
        """Return the open leases, oldest first."""
        with self._lock:
            now = self.ledger.look()
            return [
                _record(hold, now) for hold in self.ledger.open_holds.values() if isinstance(hold, LeaseHold)
            ]

    def close_lease(
        self,
        hold_id: int,
        tokens: int | None = None,
        *,
        usd: Money | None = None,
        calls: int | None = None,
        note: str = "closed by an operator",
        key: str | None = None,
    ) -> Settlement:
        """End the lease of a worker that is gone: book what it spent in all, free the rest.

        Less than it has reported is not believed. If the worker comes back after all and says more, that is
        booked too.

        Parameters
        ----------
        hold_id : int
            The lease.
        tokens, usd, calls : optional
            What was spent in all, e.g. by the provider's bill. Left out: all that is set aside, as an
            estimate.
        note : str
            For the journal.
        key : str, optional
            Makes the request safe to repeat.

        Raises
        ------
        LeaseOpenError
            Its end, and a tenth of its length after, have not come: the worker may still be spending.
        UnknownLeaseError
            There is no such lease.
        """
        nano = None if usd is None else nano_dollars("usd", usd)
        total = [None if tokens is None else check_amount("tokens", tokens), nano]
        total.append(None if calls is None else check_amount("calls", calls))
        content = ("close_lease", hold_id, *total, note)
        with self._lock:
            now = self.ledger.look()
            known: Settlement | None = self.ledger.answers.recall(key, content)
            if known is not None:
                return known
            hold = self._lease_now(hold_id)
            if hold.settlement is None and now < _overdue_at(hold):
                raise LeaseOpenError(hold_id, hold.lease.holder, _overdue_at(hold) - now, hold.lease.seconds)
            settlement = self._settle(hold, total, 0, now, estimated=False, note=note)
            self._remember(key, content, settlement)
        self._tell()
        return settlement

    def extend_hold(
        self,
        hold: Hold,
        tokens: int = 0,
        expires_s: float | None = None,
        key: str | None = None,
        usd: Money | None = None,
    ) -> tuple[Transfer, ...]:
        """Set more aside, or for longer; see `Hold.extend`. A lease's end moves; it still does not expire."""
        if not isinstance(hold, LeaseHold):
            return super().extend_hold(hold, tokens, expires_s, key, usd)
        seconds = None if expires_s is None else check_seconds("expires_s", expires_s)
        lent = super().extend_hold(hold, tokens, None, key, usd)
        if seconds is not None:
            with self._lock:
                now = self.ledger.look()
                self._renew(hold, now, now + seconds)
        return lent

    # -- under the lock ----------------------------------------------------------------------------------

    def finish_interrupted(self) -> None:
        """Go on with what an exception out of a signal handler has interrupted; under the lock."""
        unfinished = self.ledger.unfinished
        if unfinished is not None and isinstance(unfinished[1], _Reporting):
            _book_report(self.ledger, *unfinished)
        super().finish_interrupted()

    def forget_lease(self, hold_id: int) -> None:
        """Forget a lease whose grant could not be kept; under the lock."""
        self._leases.pop(hold_id, None)

    def _find_lease(self, hold_id: int) -> LeaseHold:
        with self._lock:
            self.ledger.look()
            return self._lease_now(hold_id)

    def _lease_now(self, hold_id: int, hold: LeaseHold | None = None) -> LeaseHold:
        found = self._look_up_lease(hold_id, hold) if type(hold_id) is int else None
        if not isinstance(found, LeaseHold):
            raise UnknownLeaseError(hold_id)
        return found

    def _look_up_lease(self, hold_id: int, hold: Hold | None = None) -> Hold | None:
        """Return the hold of this number; `hold`: the object that the caller has of it."""
        return hold or self.ledger.open_holds.get(hold_id) or self._leases.get(hold_id)

    def _lease(self, ask: Ask, key: str | None) -> LeaseHold | Decision | SliceTooSmallError:
        share, seconds = check_fraction("share", ask.share), check_seconds("seconds", ask.seconds)
        content = ("lease", ask.agent_name, ask.holder, ask.need, share, seconds)
        with self._lock:
            ledger, now = self.ledger, self.ledger.look()
            known: LeaseHold | Decision | SliceTooSmallError | None = ledger.answers.recall(key, content)
            if known is not None:
                return known
            books = self._open_books(ask.agent_name)
            asked = [Part(own, 0) for own in self._counted(books)]
            granted: LeaseHold | Decision | SliceTooSmallError | None = self._size(asked, ask.need, share)
            if granted is None:
                terms = LeaseTerms(ask.holder, seconds, now + seconds)
                made = partial(LeaseHold, terms)
                hold = lifecycle.grant(
                    self, ledger, asked, now, inf, self._mode, None, key, "lease", None, made
                )
                if isinstance(hold, LeaseHold):
                    parts = {part.books.axis: part for part in (hold, *hold.others)}
                    hold.first = Slice(hold.hold_id, {axis: _granted(parts.get(axis)) for axis in AXES})
                    self._note_lease(hold)
                assert not isinstance(hold, Hold) or isinstance(hold, LeaseHold), "it was made one"
                granted = hold
            self._remember(key, content, granted)
        return granted

    def _refill(self, hold: LeaseHold, ask: Ask) -> Slice | Decision | SliceTooSmallError:
        share, seconds = check_fraction("share", ask.share), check_seconds("seconds", ask.seconds)
        content = ("refill", ask.hold_id, ask.need, share, seconds)
        with self._lock:
            ledger, now = self.ledger, self.ledger.look()
            self._report(hold, ask.used, now)
            known: Slice | Decision | SliceTooSmallError | None = ledger.answers.recall(ask.key, content)
            if known is not None:
                return known
            if hold.settlement is not None:
                raise HoldEndedError(hold.hold_id, hold.state, "extended", hold.settlement)
            counted = self._counted(hold.books)
            asked = [Part(own, 0) for own in counted if ask.need.on(own.axis)]
            answer: Slice | Decision | SliceTooSmallError | None = self._size(asked, ask.need, share)
            if hold.books.gate_closed and self._mode == "enforce":
                answer = lifecycle.decide([Part(hold.books, ask.need.tokens)], self._mode)
            if answer is None:
                refused = lifecycle.extend(ledger, hold, asked, now, None, self._mode)
                answer = refused if self._mode == "enforce" else None
            if answer is None:
                more = {part.books.axis: part.amount for part in asked}
                capped = {own.axis for own in counted if own.capped}
                answer = Slice(
                    hold.hold_id, {axis: more.get(axis, 0) if axis in capped else None for axis in AXES}
                )
                self._renew(hold, now, now + seconds)
            self._remember(ask.key, content, answer)
        return answer

    def _counted(self, books: Books) -> list[Books]:
        """Return the books on all axes that a lease of the agent counts; calls always, by number."""
        ledger = self.ledger
        found = [books]
        if USD in ledger.sides or ledger.capped_on(USD, books):
            found.append(ledger.on(USD, books))
        found.append(ledger.on(CALLS, books))
        return found

    def _size(self, asked: Sequence[Part], need: Amounts, share: float) -> SliceTooSmallError | None:
        """Make the parts a slice of what is free, or say on which axis that does not cover the need."""
        for part in asked:
            books, wanted = part.books, need.on(part.books.axis)
            if not books.capped:
                continue
            reach = survey(books)
            free = max(0, books.remaining + reach.treasury + reach.ancestors)
            offered = int(free * Fraction(repr(share)))  # the share as it is written, exactly
            if offered < wanted and self._mode == "enforce":
                return SliceTooSmallError(books.name, books.axis, wanted, offered, free)
            part.amount = part.granted = max(offered, wanted)
        return None

    def _renew(self, hold: LeaseHold, now: float, ends_at: float) -> None:
        if ends_at > hold.lease.ends_at:
            # The journal says so: those who keep the books, and follow them, look at what it names.
            self.ledger.book(now, Kind.EXTEND, hold.books, hold_id=hold.hold_id, key=hold.key)
            hold.lease = hold.lease._replace(ends_at=ends_at)

    def _note_lease(self, hold: LeaseHold) -> None:
        self._leases[hold.hold_id] = hold
        for _ in range(len(self._leases) - self._keep_leases):
            oldest = next(iter(self._leases))
            kept = self._leases.pop(oldest)
            if kept.settlement is None:
                self._leases[oldest] = kept

    def _report(
        self,
        hold: LeaseHold,
        total: Amounts,
        now: float,
        *,
        estimated: bool = False,
        note: str | None = None,
    ) -> None:
        """Book what a total says more than was booked before."""
        seen = hold.reported
        more = Amounts(*(max(0, new - old) for new, old in zip(total, seen, strict=True)))
        if not any(more):
            return
        spent = [
            Spent(self._part(hold, axis), more.on(axis), estimated, more.unpriced if axis == USD else 0)
            for axis in AXES
            if more.on(axis) or (axis == USD and more.unpriced)
        ]
        terms = hold.lease._replace(reported=hold.lease.reported.plus(more))
        reporting = _Reporting(hold, spent, now, terms)
        reporting.note = note
        _book_report(self.ledger, hold, reporting)

    def _settle(
        self,
        hold: LeaseHold,
        total: Sequence[int | None],
        unpriced: int,
        now: float,
        *,
        estimated: bool,
        note: str | None,
    ) -> Settlement:
        seen = hold.reported
        if hold.settlement is not None:
            said = [old if new is None else new for new, old in zip(total, seen[:3], strict=True)]
            late = Amounts(said[0], said[1], said[2], unpriced)
            self._report(hold, late, now, estimated=estimated, note=note)
            return hold.settlement._replace(repeated=True)
        spent = []
        for axis, amount in zip(AXES, total, strict=True):
            known = hold.part(axis)
            extra = max(0, unpriced - seen.unpriced) if axis == USD else 0
            if known is None and not amount and not extra:
                continue
            part = known or self._part(hold, axis)
            more = part.amount if amount is None else max(0, amount - seen.on(axis))
            spent.append(Spent(part, more, estimated or amount is None, extra))
        return lifecycle.settle(self.ledger, hold, spent, now, note=note, kind=Kind.REPORT)

    def _part(self, hold: LeaseHold, axis: Axis) -> Part:
        """Return the hold's part on an axis; what was never set aside is of amount 0."""
        known = hold.part(axis)
        return Part(self.ledger.on(axis, hold.books), 0) if known is None else known


def _book_report(ledger: Ledger, hold: LeaseHold, report: _Reporting) -> None:
    """Book a report on every axis; until that is done, every look at the books begins with going on here."""
    due = ledger.due
    ledger.unfinished = hold, report
    ledger.due = -inf
    late = hold.settlement is not None
    for part, amount, estimated, unpriced in report.spent[report.booked :]:
        ledger.book(
            report.now,
            Kind.REPORT,
            part.books,
            consumed=amount,
            held=0 if late else -min(amount, part.amount),
            hold_id=hold.hold_id,
            key=hold.key,
            note=report.note or hold.operation,
            estimated=estimated,
            model=hold.model,
            unpriced=unpriced,
            grows=part if not late else None,
            ends=report,
        )
    for (part, *_), excess in zip(report.spent, report.excess, strict=True):
        _spend_loans(part)
        lifecycle.cover_excess(ledger, part.books, excess, report.now, hold.hold_id)
    hold.lease = report.terms  # no call from here on: see `Ledger.book`
    ledger.unfinished = None
    ledger.due = due


def _spend_loans(part: Part) -> None:
    """Forget what of the loans has been spent, the first lender's first: it will not go back."""
    while part.lenders and (spent := sum(loan.amount for loan in part.lenders) - part.amount) > 0:
        loan, *rest = part.lenders
        if spent < loan.amount:
            rest.insert(0, Move(loan.kind, loan.donor, loan.recipient, loan.amount - spent))
        spent = min(spent, loan.amount)
        loan.donor.touch()
        part.books.touch()
        part.lenders = rest  # no call from here on: see `Ledger.book`
        part.books.borrowed -= spent
        loan.donor.lent -= spent


def _amounts(tokens: int, usd: Money | None, calls: int) -> Amounts:
    nano = 0 if usd is None else nano_dollars("usd", usd)
    return Amounts(check_amount("tokens", tokens), nano, check_amount("calls", calls))


def _granted(part: Part | None) -> int | None:
    return part.granted if part is not None and part.books.capped else None


def _refusal(answer: Decision | SliceTooSmallError) -> TBCError:
    if isinstance(answer, Decision):
        return lifecycle.refusal(answer)
    return SliceTooSmallError(*answer.args)


def _overdue_at(hold: LeaseHold) -> float:
    return hold.lease.ends_at + hold.lease.seconds * MARGIN


def _record(hold: LeaseHold, now: float) -> LeaseRecord:
    parts = {part.books.axis: part.amount for part in (hold, *hold.others)}
    held = Amounts(parts[TOKENS], parts.get(USD, 0), parts.get(CALLS, 0))
    reported = hold.reported
    terms = hold.lease
    return LeaseRecord(
        hold.hold_id,
        hold.agent_name,
        terms.holder,
        held.plus(reported),
        reported,
        hold.at,
        terms.ends_at,
        now >= _overdue_at(hold),
    )
