"""What clients are answered with: plain dicts, so that the busiest path makes nothing twice.

Their shapes are declared here, checked by the type checker where they are made, and shown to clients by the
OpenAPI document. Amounts are integers in the unit of their axis; beside nano-dollars stands the same in
dollars as a decimal string, under its name with ``_usd``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from tbc.axes import USD, Axis
from tbc.decision import Kind
from tbc.holds import Hold
from tbc.journal import Entry
from tbc.pool import Statement
from tbc.reallocator import Rebalance
from tbc.service.values import Rule
from tbc.tree import Account
from tbc.wire import amounts_object, decision_object, settlement_object, transfer_object, usd_string

__all__ = [
    "AgentAnswer",
    "AgentsAnswer",
    "DecisionAnswer",
    "Done",
    "EntriesAnswer",
    "EntryAnswer",
    "ErrorAnswer",
    "HealthAnswer",
    "HoldAnswer",
    "RebalanceAnswer",
    "ReportAnswer",
    "SettlementAnswer",
    "agents_of",
    "entry_object",
    "hold_object",
    "rebalance_object",
    "report_object",
    "settled_object",
]

AxisName = Literal["tokens", "usd", "calls"]
KindName = Annotated[str, Rule({"type": "string", "enum": [str(kind) for kind in Kind]}, str)]
State = Literal["open", "settled", "voided", "expired"]


class TransferAnswer(TypedDict):
    """Allocation that moved, or would move."""

    donor: str
    recipient: str
    axis: AxisName
    amount: int
    amount_usd: NotRequired[str]
    kind: KindName


class DecisionAnswer(TypedDict):
    """ALLOW or REFUSE, and every number behind it; those of the other axes under `others`."""

    agent_name: str
    verdict: Literal["ALLOW", "REFUSE"]
    allowed: bool
    status: Literal["gate_closed", "uncapped", "fits", "fits_with_loans", "busy", "exhausted"]
    reason: str
    remedy: str
    mode: Literal["enforce", "audit"]
    axis: AxisName
    requested: int
    requested_usd: NotRequired[str]
    remaining: int | None
    remaining_usd: NotRequired[str | None]
    treasury: int
    treasury_usd: NotRequired[str]
    siblings: int
    siblings_usd: NotRequired[str]
    ancestors: int
    ancestors_usd: NotRequired[str]
    available: int | None
    available_usd: NotRequired[str | None]
    when_idle: int | None
    when_idle_usd: NotRequired[str | None]
    shortfall: int
    shortfall_usd: NotRequired[str]
    unmet: int
    unmet_usd: NotRequired[str]
    transfers: list[TransferAnswer]
    confidence: float | None
    confidence_threshold: float | None
    top: str
    note: str
    others: list[DecisionAnswer]


class BookingAnswer(TypedDict):
    """What was booked on one axis."""

    amount: int
    amount_usd: NotRequired[str]
    held: int
    held_usd: NotRequired[str]
    overrun: int
    overrun_usd: NotRequired[str]
    estimated: bool
    unpriced: NotRequired[int]
    returned: list[TransferAnswer]
    covered: list[TransferAnswer]


class SettlementAnswer(TypedDict):
    """How a hold ended."""

    hold_id: int
    agent_name: str
    state: Literal["settled", "voided", "expired"]
    late: bool
    repeated: bool
    operation: str | None
    model: str | None
    booked: dict[AxisName, BookingAnswer]


class HeldAnswer(TypedDict):
    """What is set aside on one axis."""

    amount: int
    amount_usd: NotRequired[str]


class HoldAnswer(TypedDict):
    """A hold as it stands."""

    hold_id: int
    agent_name: str
    state: State
    held: dict[AxisName, HeldAnswer]
    expires_in_s: float | None
    operation: str | None
    model: str | None
    loans: list[TransferAnswer]
    decision: DecisionAnswer | None
    settlement: SettlementAnswer | None


class AccountAnswer(TypedDict):
    """An account on one axis: what is granted now, spent for good, set aside, and what that leaves.

    `allocated`, `remaining`: `null` if uncapped.
    """

    allocated: int | None
    allocated_usd: NotRequired[str | None]
    consumed: int
    consumed_usd: NotRequired[str]
    held: int
    held_usd: NotRequired[str]
    remaining: int | None
    remaining_usd: NotRequired[str | None]
    min_reserve: int
    min_reserve_usd: NotRequired[str]
    spare: int
    spare_usd: NotRequired[str]
    debt: int
    debt_usd: NotRequired[str]
    lent: int
    lent_usd: NotRequired[str]
    borrowed: int
    borrowed_usd: NotRequired[str]
    unpriced: int


class AgentAnswer(TypedDict):
    """An agent, its place in the tree, and its accounts."""

    agent_name: str
    parent: str | None
    priority: int
    closed: bool
    gate_closed: bool
    last_confidence: float | None
    accounts: dict[AxisName, AccountAnswer]


class AgentsAnswer(TypedDict):
    """A page of agents in the order of registering; `next` is what to ask for `after`, if there are more."""

    agents: list[AgentAnswer]
    next: str | None


class ReportAnswer(TypedDict):
    """Everybody's accounts as of line `seq` of the journal; the root comes first."""

    pool: str
    mode: Literal["enforce", "audit"]
    seq: int
    at: float
    open_holds: int
    axes: list[AxisName]
    agents: list[AgentAnswer]


class EntryAnswer(TypedDict):
    """One line of the journal; `allocated`, `consumed` and `held` are changes.

    They are added to the account of `agent_name`; `allocated` is taken from that of `peer`, if there is one.
    """

    seq: int
    at: float
    kind: KindName
    agent_name: str
    peer: str | None
    axis: AxisName
    allocated: int
    consumed: int
    held: int
    hold_id: int | None
    key: str | None
    note: str | None
    model: str | None
    estimated: bool
    unpriced: int


class EntriesAnswer(TypedDict):
    """A page of the journal, oldest first.

    `next` is what to ask for as `since`, if there are more lines now. `folded`: lines between `since` and the
    first one here are not kept any more.
    """

    entries: list[EntryAnswer]
    next: int | None
    folded: bool


class RebalanceAnswer(TypedDict):
    """What moved for good, and what agents still lack, by axis."""

    transfers: list[TransferAnswer]
    unmet: dict[AxisName, dict[str, int]]
    bottlenecks: dict[AxisName, int | None]


class Done(TypedDict):
    """It is done."""

    done: Literal[True]


class HealthAnswer(TypedDict):
    """Whether requests are served; and whether the store has answered lately, if there is one."""

    status: Literal["healthy", "draining"]
    store: NotRequired[Literal["reached", "away"]]


class _Error(TypedDict):
    """What went wrong, and what would make it pass."""

    code: str
    message: str
    hint: str
    retryable: bool
    details: dict[str, Any]
    decision: NotRequired[DecisionAnswer]
    settlement: NotRequired[SettlementAnswer]


class ErrorAnswer(TypedDict):
    """The one shape of every error."""

    error: _Error


# -- making them --------------------------------------------------------------------------------------------

_NUMBERS = ("allocated", "consumed", "held", "remaining", "min_reserve", "spare", "debt", "lent", "borrowed")


def hold_object(hold: Hold, hold_id: int) -> HoldAnswer:
    """Return a hold under the number that the client knows it by."""
    held: dict[AxisName, HeldAnswer] = {"tokens": {"amount": hold.amount}}
    for part in hold.others:
        held[part.books.axis] = _held(part.books.axis, part.amount)
    decision = hold.decision
    settlement = hold.settlement
    return {
        "hold_id": hold_id,
        "agent_name": hold.books.name,
        "state": hold.state,
        "held": held,
        "expires_in_s": None if settlement is not None else round(hold.expires_in_s, 3),
        "operation": hold.operation,
        "model": hold.model,
        "loans": _transfers(hold.loans),
        "decision": None if decision is None else decision_object(decision),  # type: ignore[typeddict-item]
        "settlement": None if settlement is None else settled_object(settlement, hold_id),
    }


def _held(axis: Axis, amount: int) -> HeldAnswer:
    return {"amount": amount, "amount_usd": usd_string(amount)} if axis == USD else {"amount": amount}


def settled_object(settlement: Any, hold_id: int) -> SettlementAnswer:
    """Return a settlement under the number that the client knows the hold by."""
    return {**settlement_object(settlement), "hold_id": hold_id}  # type: ignore[typeddict-item]


def _transfers(transfers: Any) -> list[TransferAnswer]:
    return [transfer_object(each) for each in transfers]  # type: ignore[misc]


def _account(account: Account) -> AccountAnswer:
    numbers = [(name, getattr(account, name)) for name in _NUMBERS]
    return {**amounts_object(account.axis, numbers), "unpriced": account.unpriced}  # type: ignore[typeddict-item]


def agents_of(statement: Statement) -> list[AgentAnswer]:
    """Return the agents of a statement with their accounts on every axis."""
    axes = list(statement.accounts)
    return [
        {
            "agent_name": accounts[0].agent_name,
            "parent": accounts[0].parent,
            "priority": accounts[0].priority,
            "closed": accounts[0].closed,
            "gate_closed": accounts[0].gate_closed,
            "last_confidence": accounts[0].last_confidence,
            "accounts": dict(zip(axes, map(_account, accounts), strict=True)),
        }
        for accounts in zip(*statement.accounts.values(), strict=True)
    ]


def report_object(pool: str, mode: Literal["enforce", "audit"], statement: Statement) -> ReportAnswer:
    """Return a statement."""
    return {
        "pool": pool,
        "mode": mode,
        "seq": statement.seq,
        "at": statement.at,
        "open_holds": statement.open_holds,
        "axes": list(statement.accounts),
        "agents": agents_of(statement),
    }


def entry_object(entry: Entry | Any) -> EntryAnswer:
    """Return a line of the journal, as memory or a store has it."""
    return {
        "seq": entry.seq,
        "at": entry.at,
        "kind": str(entry.kind),
        "agent_name": entry.agent_name,
        "peer": entry.peer,
        "axis": entry.axis,
        "allocated": entry.allocated,
        "consumed": entry.consumed,
        "held": entry.held,
        "hold_id": entry.hold_id,
        "key": entry.key,
        "note": entry.note,
        "model": entry.model,
        "estimated": entry.estimated,
        "unpriced": entry.unpriced,
    }


def rebalance_object(done: Rebalance) -> RebalanceAnswer:
    """Return what a rebalance moved on all its axes."""
    each: dict[Any, Rebalance] = {"tokens": done, **done.others}
    return {
        "transfers": [moved for one in each.values() for moved in _transfers(one.transfers)],
        "unmet": {axis: dict(one.unmet) for axis, one in each.items()},
        "bottlenecks": {axis: _bottleneck(one) for axis, one in each.items()},
    }


def _bottleneck(done: Rebalance) -> int | None:
    levels = [each.bottleneck for each in done.clearings.values() if each.bottleneck is not None]
    return int(max(levels)) if levels else None
