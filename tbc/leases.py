"""Leases, seen from the worker: what may be spent locally, until when, and what is said to the shared pool.

A lease is a slice of an agent's budget that one worker may spend by itself for a limited time. In the shared
pool it is set aside in full, so that nobody else can be promised it; what the worker says of it is the total
so far, so that messages that come late, twice or in another order do no harm.

`LeaseHolder` is the worker's side of that as a pure machine: the time and the answers come in as arguments,
messages go out as return values. It knows no thread, no clock and no store. The shared side is in
`tbc.leasing`, and `tbc.leased.LeasedManager` puts both together.

Examples
--------
>>> holder = LeaseHolder("writer", "worker-1", Lease(seconds=30.0), "first-life")
>>> ask = holder.ask(Amounts(tokens=10), Amounts(), now=100.0)
>>> holder.take(ask.key, Slice(7, {"tokens": 50, "usd": None, "calls": None}), Amounts())
>>> holder.has_room(Amounts(tokens=50), now=126.0), holder.has_room(Amounts(tokens=50), now=127.0)
(True, False)
>>> holder.close(Amounts(tokens=20))
>>> holder.final_reports()
[Report(hold_id=7, used=Amounts(tokens=20, usd=0, calls=0, unpriced=0), final=True, estimated=False)]
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from tbc.axes import AXES, USD, Axis
from tbc.contract import check_fraction, check_seconds
from tbc.errors import HoldEndedError, InvalidAmountError, TBCError

if TYPE_CHECKING:
    from tbc.ledger import Ledger

__all__ = [
    "MARGIN",
    "Amounts",
    "Ask",
    "Lease",
    "LeaseHolder",
    "LeaseTerms",
    "Refused",
    "Report",
    "Slice",
    "used_of",
]

#: The share of a lease's length that a worker leaves unused at its end, and that an operator waits after it:
#: clocks that are each wrong by a tenth still agree.
MARGIN: Final = 0.1


def _check_share(lease: Any, attribute: Any, value: object) -> None:
    if not check_fraction("share", value):
        raise InvalidAmountError("share", value, "above 0 and at most 1")


def _check_length(lease: Any, attribute: Any, value: object) -> None:
    check_seconds("seconds", value)


@attrs.frozen
class Lease:
    """How workers lease.

    Attributes
    ----------
    share : float
        How much of what an agent has free one slice is; above 0 and at most 1. A call that needs more than
        that is held in the shared pool directly.
    seconds : float
        How long a slice may be spent before the shared pool is asked again.
    """

    share: float = attrs.field(default=0.1, validator=_check_share)
    seconds: float = attrs.field(default=30.0, validator=_check_length)


class Amounts(NamedTuple):
    """Tokens, nano-dollars and calls, and how many of the calls have no known price."""

    tokens: int = 0
    usd: int = 0
    calls: int = 0
    unpriced: int = 0

    def on(self, axis: Axis) -> int:
        """Return the amount on one axis."""
        return self[AXES.index(axis)]

    def at_least(self, other: Amounts) -> Amounts:
        """Return the larger amount of both, each by itself: totals only grow."""
        return Amounts(*map(max, self, other))

    def plus(self, other: Amounts) -> Amounts:
        """Return the sums."""
        return Amounts(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Amounts) -> Amounts:
        """Return the differences."""
        return Amounts(*(a - b for a, b in zip(self, other, strict=True)))


def used_of(ledger: Ledger, agent_name: str) -> Amounts:
    """Return what an agent of books in memory has spent in all."""
    with ledger.lock:
        ledger.look()
        books = ledger.find(agent_name)
        tokens, usd, calls = (ledger.row(books, axis)["consumed"] or 0 for axis in AXES)
        dollars = ledger.look_up(USD, books)
        return Amounts(tokens, usd, calls, 0 if dollars is None else dollars.unpriced)


class LeaseTerms(NamedTuple):
    """What makes a hold a lease; replaced whole when it changes.

    Attributes
    ----------
    holder : str
        Which worker has it.
    seconds : float
        For how long it is granted at a time.
    ends_at : float
        Seconds of the manager's clock from which its worker may not spend it any more. Nothing is freed then.
    reported : Amounts
        What was booked of it while it was open, and after it had ended.
    """

    holder: str
    seconds: float
    ends_at: float
    reported: Amounts = Amounts()

    def as_json(self, epoch: float = 0.0) -> dict[str, Any]:
        """Return it as plain values; `epoch` is added to times (`Ledger.wall` of 0)."""
        return {**self._asdict(), "ends_at": epoch + self.ends_at, "reported": list(self.reported)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], epoch: float = 0.0) -> LeaseTerms:
        """Return what `as_json` was made from."""
        reported = Amounts(*values["reported"])
        return cls(values["holder"], values["seconds"], values["ends_at"] - epoch, reported)


# -- messages ------------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """To the shared pool: a slice, new or on top of a lease; the same again under the same key.

    Attributes
    ----------
    key : str
        Under which it is answered once.
    agent_name, holder : str
        Who spends, and which worker asks.
    need : Amounts
        What the slice must cover at least.
    share, seconds : float
        As in `Lease`.
    hold_id : int or None
        The lease that is to grow; ``None``: a new one.
    used : Amounts
        What was spent of that lease in all.
    """

    key: str
    agent_name: str
    holder: str
    need: Amounts
    share: float
    seconds: float
    hold_id: int | None = None
    used: Amounts = Amounts()


class Report(NamedTuple):
    """To the shared pool: what was spent of a lease in all.

    `final`: nothing more will be; `estimated`: some of it is an estimate.
    """

    hold_id: int
    used: Amounts
    final: bool = False
    estimated: bool = False


class Slice(NamedTuple):
    """From the shared pool: this much more may be spent under that lease.

    Amounts are by axis; ``None``: nobody caps the agent there.
    """

    hold_id: int
    amounts: dict[Axis, int | None]


class Refused(NamedTuple):
    """From the shared pool: no, and why."""

    error: TBCError


# -- the worker ----------------------------------------------------------------------------------------


class LeaseHolder:
    """One worker's lease of one agent's budget.

    Parameters
    ----------
    agent_name : str
        Whose budget.
    holder : str
        Which worker.
    lease : Lease
        How it leases.
    life : str
        What tells this life of the worker from all others before and after, in every key.

    Attributes
    ----------
    hold_id : int or None
        The lease it has.
    leased : dict
        How much of it may be spent in all, by axis (``None``: without limit).
    usable_until : float
        Seconds of the worker's clock from which it may not be spent.
    asked : Ask or None
        The request that has no answer yet.
    closing : dict
        What was spent in all of leases that are given back, by hold, until that has been acknowledged.
    guessed : set of int
        Those of them where that is an estimate.
    """

    def __init__(self, agent_name: str, holder: str, lease: Lease, life: str) -> None:
        self.agent_name = agent_name
        self.holder = holder
        self.lease = lease
        self.hold_id: int | None = None
        self.leased: dict[Axis, int | None] = {}
        self.usable_until = -inf
        self.asked: Ask | None = None
        self.closing: dict[int, Amounts] = {}
        self.guessed: set[int] = set()
        self.shut = False
        names = f"{holder}/{agent_name}".encode(errors="backslashreplace")  # may be longer than a key
        self._keys = f"lease/{hashlib.sha256(names).hexdigest()[:32]}/{life}"
        self._asks = 0
        self._asked_at = 0.0

    def has_room(self, used: Amounts, now: float) -> bool:
        """Return whether so much in all may be spent, and held, under the lease."""
        if now >= self.usable_until:
            return False
        limits = ((self.leased.get(axis), used.on(axis)) for axis in AXES)
        return all(limit is None or amount <= limit for limit, amount in limits)

    def ask(self, need: Amounts, used: Amounts, now: float) -> Ask:
        """Return the request to send: the open one again, or a new one for what is needed more.

        Its time counts from here, before it is sent: the shared pool's can only begin later.
        """
        if self.asked is None:
            self._asks += 1
            key = f"{self._keys}/{self._asks}"
            terms = self.lease.share, self.lease.seconds
            self.asked = Ask(key, self.agent_name, self.holder, need, *terms, self.hold_id, used)
            self._asked_at = now
        return self.asked

    def take(self, key: str, answer: Slice | Refused, used: Amounts) -> None:
        """Note the answer to a request, with what was spent of the lease by now.

        The answer to a request that is not open, or no longer, changes nothing.
        """
        asked = self.asked
        if asked is None or asked.key != key:
            return
        self.asked = None
        if isinstance(answer, Refused):
            if asked.hold_id is not None and isinstance(answer.error, HoldEndedError):
                # An operator was first: say what was used all the same. It is more by now, if this is an
                # old request that was sent again.
                self.close(asked.used.at_least(used))
            return
        if self.shut:  # nobody will spend it
            self.closing[answer.hold_id] = Amounts()
            return
        if asked.hold_id is None:
            self.hold_id, self.leased = answer.hold_id, dict(answer.amounts)
        elif {axis for axis in AXES if answer.amounts[axis] is None} != {
            axis for axis in AXES if self.leased[axis] is None
        }:
            self.usable_until = -inf  # other axes are capped now: this lease cannot say so
            return
        else:
            for axis, more in answer.amounts.items():
                limit = self.leased[axis]
                self.leased[axis] = None if limit is None or more is None else limit + more
        self.usable_until = self._asked_at + self.lease.seconds * (1 - MARGIN)

    def report(self, used: Amounts, *, estimated: bool = False) -> Report | None:
        """Return what to say of the lease on the way."""
        return None if self.hold_id is None else Report(self.hold_id, used, estimated=estimated)

    def close(self, used: Amounts, *, estimated: bool = False) -> None:
        """Give the lease back, `used` in all: it is said from now on until it is acknowledged."""
        if self.hold_id is not None:
            self.closing[self.hold_id] = used
            if estimated:
                self.guessed.add(self.hold_id)
            if self.asked is not None:  # for more of it: pointless now
                self.asked = None
            self._forget()

    def shut_down(self, used: Amounts) -> None:
        """Give everything back; what an open request still brings, too."""
        self.shut = True
        self.close(used)

    def amend(self, hold_id: int, used: Amounts, *, estimated: bool = False) -> None:
        """Say more of a lease that was given back: a call had not ended then."""
        self.closing[hold_id] = self.closing.get(hold_id, Amounts()).at_least(used)
        if estimated:
            self.guessed.add(hold_id)

    def final_reports(self) -> list[Report]:
        """Return what is to be said, again, of leases that are given back."""
        return [
            Report(hold_id, used, final=True, estimated=hold_id in self.guessed)
            for hold_id, used in self.closing.items()
        ]

    def acknowledged(self, report: Report) -> None:
        """Note that a final report has been booked."""
        if report.final and self.closing.get(report.hold_id) == report.used:
            del self.closing[report.hold_id]
            self.guessed.discard(report.hold_id)

    def _forget(self) -> None:
        self.hold_id, self.leased, self.usable_until = None, {}, -inf
