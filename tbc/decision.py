"""Records of what was decided and what was moved. All are immutable; none knows the books."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple

import attrs

from tbc.axes import TOKENS, Axis, format_amount

__all__ = ["Booking", "Decision", "Kind", "Mode", "Settlement", "Status", "Transfer"]

#: ``"enforce"``: refusals raise. ``"audit"``: nothing is refused; what would have been is reported.
Mode = Literal["enforce", "audit"]


class Status(StrEnum):
    """Why a decision came out as it did. The order is the precedence."""

    GATE_CLOSED = "gate_closed"
    """Refused: the agent's last confidence reached its threshold."""
    UNCAPPED = "uncapped"
    """Allowed: nobody caps this agent; its spending is only tracked."""
    FITS = "fits"
    """Allowed from the agent's own remaining."""
    FITS_WITH_LOANS = "fits_with_loans"
    """Allowed, with what the treasury, siblings or ancestors lend."""
    BUSY = "busy"
    """Refused now; it would fit if every open hold that can reach this agent were voided."""
    EXHAUSTED = "exhausted"
    """Refused: it would not fit even then."""

    @property
    def refuses(self) -> bool:
        """Whether enforcement refuses."""
        return self in _REFUSALS


_REFUSALS = frozenset({Status.GATE_CLOSED, Status.BUSY, Status.EXHAUSTED})


class Kind(StrEnum):
    """What a journal entry (and a transfer) is."""

    OPENING = "opening"
    REGISTER = "register"
    REPLACE = "replace"
    TOP_UP = "top_up"
    CLOSE = "close"
    ADJUST = "adjust"
    HOLD = "hold"
    EXTEND = "extend"
    SETTLE = "settle"
    LATE_SETTLE = "late_settle"
    VOID = "void"
    EXPIRE = "expire"
    REPORT = "report"
    """Spent of a lease, while it is open, at its end, or after. Its calls are counted on their own axis."""
    USAGE = "usage"
    DRAW = "draw"
    """Parent to child, out of the parent's spare (the treasury)."""
    LOAN = "loan"
    """Sibling to sibling, for a hold: what the hold did not need goes back."""
    COVER = "cover"
    """Sibling to sibling, for tokens that are owed or spent already: it stays."""
    REBALANCE = "rebalance"
    """Sibling to sibling, asked for by `rebalance` or `reallocate`: it stays."""
    HAND_DOWN = "hand_down"
    """Parent to child: what the parent got in its own market for this child."""
    RETURN = "return"
    """Back to the lender: the part of a loan or draw that the hold did not need."""


@attrs.frozen
class Transfer:
    """Allocation that moved, or would move, from one account to another.

    Attributes
    ----------
    donor, recipient : str
        Account names; the treasury of the top level is `tbc.ROOT`.
    amount : int
        How much, > 0, in the unit of the axis.
    kind : Kind
        Why.
    axis : {"tokens", "usd", "calls"}
        Of what.
    """

    donor: str
    recipient: str
    amount: int
    kind: Kind
    axis: Axis = TOKENS

    @property
    def tokens(self) -> int:
        """Tokens moved; 0 on another axis."""
        return self.amount if self.axis == TOKENS else 0


@attrs.frozen
class Decision:
    """ALLOW or REFUSE, and every number behind it.

    A request on several axes is decided on all of them at once; the numbers are those of the axis that
    binds: what refuses comes first, then what needs loans. Amounts are in the unit of that axis.

    Attributes
    ----------
    agent_name : str
        Who asked.
    requested : int
        How much.
    status : Status
        Why.
    remaining : int or None
        The agent's own ``allocated - consumed - held`` (< 0: in debt; ``None``: uncapped).
    treasury, siblings, ancestors : int
        What the parent's spare, the siblings and, through the parent, the markets above could lend.
    available : int or None
        What could be granted at most, >= 0 (``None``: without limit).
    when_idle : int or None
        The same if every open hold in the pool were voided: what tells busy from exhausted.
    transfers : tuple of Transfer
        What would move (or has moved) for an allowed request, in the order of moving.
    mode : {"enforce", "audit"}
        Whether a refusal binds.
    confidence, confidence_threshold : float or None
        The gate's numbers.
    axis : {"tokens", "usd", "calls"}
        Where the numbers are from.
    top : str
        The account at the top of the budget: what is added there can be drawn by all below.
    others : tuple of Decision
        The same for every other axis that was asked.
    note : str
        What else was decided, in words (e.g. that a fallback model was taken).
    """

    agent_name: str
    requested: int
    status: Status
    remaining: int | None
    treasury: int = 0
    siblings: int = 0
    ancestors: int = 0
    available: int | None = None
    when_idle: int | None = None
    transfers: tuple[Transfer, ...] = ()
    mode: Mode = "enforce"
    confidence: float | None = None
    confidence_threshold: float | None = None
    axis: Axis = TOKENS
    top: str = ""
    others: tuple[Decision, ...] = ()
    note: str = ""

    def on(self, axis: Axis) -> Decision | None:
        """Return the decision on one axis; ``None`` if it was not asked."""
        return next((each for each in (self, *self.others) if each.axis == axis), None)

    @property
    def verdict(self) -> Literal["ALLOW", "REFUSE"]:
        """What enforcement says."""
        return "REFUSE" if self.status.refuses else "ALLOW"

    @property
    def allowed(self) -> bool:
        """Whether the call may run: always in audit mode."""
        return self.mode == "audit" or not self.status.refuses

    @property
    def shortfall(self) -> int:
        """What the agent does not have itself, its debt included."""
        return 0 if self.remaining is None else max(0, self.requested - self.remaining)

    @property
    def unmet(self) -> int:
        """What a refused request lacks: what was asked beyond what is available. 0 behind a closed gate."""
        if not self.status.refuses or self.available is None:
            return 0
        return max(0, self.requested - self.available)

    @property
    def remedy(self) -> str:
        """What would make it pass, in one sentence; empty if it passes."""
        available = self.available or 0

        def words(amount: int) -> str:
            return format_amount(self.axis, amount)

        match self.status:
            case Status.GATE_CLOSED:
                return (
                    f"Resetting the confidence of {self.agent_name!r}, or reporting one below the threshold, "
                    "opens its gate again."
                )
            case Status.BUSY:
                return (
                    f"Busy, not exhausted: with every open hold ended, {words(self.when_idle or 0)} would be "
                    f"available. Try again when calls in flight have ended, or ask for at most "
                    f"{words(available)}."
                )
            case Status.EXHAUSTED:
                # What is owed must be paid first: `available` is never below 0, this may be.
                within_reach = (self.remaining or 0) + self.treasury + self.siblings + self.ancestors
                missing = words(self.requested - within_reach)
                return f"Exhausted: ask for at most {words(available)}, or top up {self.top!r} by {missing}."
            case _:
                return ""

    @property
    def remedies(self) -> str:
        """What would make it pass on every axis, each thing said once."""
        return " ".join(dict.fromkeys(filter(None, (each.remedy for each in (self, *self.others)))))

    @property
    def reason(self) -> str:
        """The decision in one sentence, with its numbers."""

        def words(amount: int) -> str:
            return format_amount(self.axis, amount)

        text = (
            f"{self.verdict} ({self.status}): {self.agent_name!r} asks for {words(self.requested)}; own "
            f"remaining {'uncapped' if self.remaining is None else words(self.remaining)}, treasury "
            f"{words(self.treasury)}, siblings {words(self.siblings)}, ancestors {words(self.ancestors)}."
        )
        return " ".join(filter(None, (text, self.remedies, self.note)))


class Booking(NamedTuple):
    """How a hold ended on one axis other than tokens. Amounts are in the unit of the axis.

    Attributes
    ----------
    axis : {"usd", "calls"}
        Which.
    amount : int
        What was booked as consumed.
    held : int
        What had been set aside.
    estimated : bool
        Whether `amount` is an estimate.
    returned, covered : tuple of Transfer
        What went back to lenders; what the market gave for the part above the hold.
    overrun : int
        The part of `amount` that nothing covered; booked all the same, and owed.
    unpriced : int
        Calls without a known price in it: the dollars are then a lower bound.
    """

    axis: Axis
    amount: int
    held: int
    estimated: bool = False
    returned: tuple[Transfer, ...] = ()
    covered: tuple[Transfer, ...] = ()
    overrun: int = 0
    unpriced: int = 0


class Settlement(NamedTuple):
    """How a hold ended. Amounts are tokens, but for those in `others`.

    Attributes
    ----------
    hold_id : int
        The hold (for `record_usage`: the journal entry).
    agent_name : str
        Its agent.
    state : {"settled", "voided", "expired"}
        How it ended.
    tokens : int
        What was booked as consumed.
    held : int
        What had been set aside.
    estimated : bool
        Whether `tokens` is an estimate.
    returned : tuple of Transfer
        What went back to lenders, last lender first.
    covered : tuple of Transfer
        What the market gave for the part above the hold.
    overrun : int
        The part of `tokens` that nothing covered; booked all the same, and owed.
    late : bool
        Whether the hold had expired before.
    repeated : bool
        Whether this is the answer to a repeated request: nothing was changed by it.
    at : float
        Seconds of the manager's clock.
    operation, model : str or None
        What the hold was for, and which model was called.
    others : tuple of Booking
        The same for every other axis.
    """

    # A tuple, because one is made for every call: it is immutable at half the price of a frozen class.
    hold_id: int
    agent_name: str
    state: Literal["settled", "voided", "expired"]
    tokens: int
    held: int
    estimated: bool = False
    returned: tuple[Transfer, ...] = ()
    covered: tuple[Transfer, ...] = ()
    overrun: int = 0
    late: bool = False
    repeated: bool = False
    at: float = 0.0
    operation: str | None = None
    model: str | None = None
    others: tuple[Booking, ...] = ()

    def on(self, axis: Axis) -> Booking | None:
        """Return how it ended on one axis other than tokens; ``None`` if nothing was booked there."""
        return next((booking for booking in self.others if booking.axis == axis), None)

    @property
    def usd(self) -> int:
        """Nano-dollars booked."""
        booking = self.on("usd")
        return 0 if booking is None else booking.amount

    @property
    def unpaid(self) -> tuple[Axis, int, int] | None:
        """The first axis with an overrun, what was spent there, and the overrun; ``None``: all is covered."""
        if self.overrun:
            return TOKENS, self.tokens, self.overrun
        found = (booking for booking in self.others if booking.overrun)
        booking = next(found, None)
        return None if booking is None else (booking.axis, booking.amount, booking.overrun)
