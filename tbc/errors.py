"""Everything that `tbc` raises.

::

    TBCError
     ├── InvalidAmountError     (ValueError)   a number, array or threshold that cannot be one
     ├── InvalidContractError   (ValueError)   terms that contradict each other or the tree
     ├── UnknownAgentError      (KeyError)     nobody of that name was registered
     ├── AgentExistsError       (ValueError)   registered before, with other terms
     ├── AgentClosedError       (ValueError)   the account has been closed
     ├── AgentInUseError        (ValueError)   cannot close: open holds or children
     ├── HoldEndedError         (ValueError)   a hold ends once
     ├── UnknownHoldError       (KeyError)     there is no hold of that number, or no longer
     ├── UnknownLeaseError      (KeyError)     there is no such lease, or no longer
     ├── LeaseOpenError         (ValueError)   its worker may still be spending it
     ├── SliceTooSmallError     (ValueError)   a slice of what is free does not cover what is needed
     ├── NoCurrentHoldError     (LookupError)  current_hold() outside of any governed call
     ├── KeyConflictError       (ValueError)   this key was used for something else
     ├── ManagedLedgerError     (TypeError)    these books move only through their manager
     ├── VocabularyError        (OSError)      a token vocabulary could not be loaded
     ├── TraceError             (ValueError)   a trace file that cannot be read
     ├── StoreError             (OSError)      a store that cannot be used, or not like this
     │    ├── StoreBusyError                   others are writing: ask again
     │    ├── StoreFullError                   no room: nothing was written
     │    ├── StoreCorruptError                damaged: stop and look
     │    ├── StoreMissingError                there is no file, or no longer
     │    ├── StoreStaleError                  another process has written: load again
     │    ├── StoreAwayError                   cannot be reached: nothing was written
     │    └── StoreUnknownError                cut off: ask again with the same key
     ├── InvalidRequestError    (ValueError)   a request with problems, all of them
     ├── InvalidPriceError      (ValueError)   a price, or a policy for prices, that cannot be read
     ├── InvalidPolicyError     (ValueError)   a tier policy with problems, all of them
     ├── UnknownPriceError      (ValueError)   nobody knows what this model costs
     └── BudgetExceededError                   a refusal: the amount cannot be covered
          ├── GateClosedError                  a refusal: the agent is confident enough
          ├── CarveOutError     (ValueError)   a refusal: the parent has not that much to spare
          └── OverrunError                     booked, and more than the market could cover
    NotSent                                    raise it to say: nothing was sent, nothing is owed

What runs raise is in `tbc.run_errors`.

Refusals of holds carry a `Decision`. Messages are made from the fields and end with what would make the call
pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tbc.axes import TOKENS, Axis, format_amount, format_number

if TYPE_CHECKING:
    from tbc.decision import Decision, Settlement

__all__ = [
    "AgentClosedError",
    "AgentExistsError",
    "AgentInUseError",
    "BudgetExceededError",
    "CarveOutError",
    "GateClosedError",
    "HoldEndedError",
    "InvalidAmountError",
    "InvalidContractError",
    "InvalidPolicyError",
    "InvalidPriceError",
    "InvalidRequestError",
    "KeyConflictError",
    "LeaseOpenError",
    "ManagedLedgerError",
    "NoCurrentHoldError",
    "NotSent",
    "OverrunError",
    "SliceTooSmallError",
    "StoreAwayError",
    "StoreBusyError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreMissingError",
    "StoreStaleError",
    "StoreUnknownError",
    "TBCError",
    "TraceError",
    "UnknownAgentError",
    "UnknownHoldError",
    "UnknownLeaseError",
    "UnknownPriceError",
    "VocabularyError",
]


class TBCError(Exception):
    """Root of every error that `tbc` raises."""


class InvalidAmountError(TBCError, ValueError):
    """A number (or an array of them) that cannot be what it should be.

    Parameters
    ----------
    name : str
        What the value was given for, e.g. ``"tokens"``.
    value : object
        The value.
    rule : str
        What would be accepted, e.g. ``"an int from 0 to 2**53 - 1"``.
    """

    def __init__(self, name: str, value: object, rule: str) -> None:
        super().__init__(name, value, rule)
        self.name = name
        self.value = value
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.name} must be {self.rule}, not {_shown(self.value)}"


def _shown(value: object) -> str:
    """Return a value as one would write it; what is very long, shortened."""
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        return f"{type(value).__name__} of great length"
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text)} characters)"


class InvalidContractError(TBCError, ValueError):
    """Terms that contradict each other, or that do not fit the tree."""


class UnknownAgentError(TBCError, KeyError):
    """Nobody of that name was registered.

    Parameters
    ----------
    agent_name : object
        The name asked for.
    """

    def __init__(self, agent_name: object) -> None:
        super().__init__(agent_name)
        self.agent_name = agent_name

    def __str__(self) -> str:
        return f"Agent {self.agent_name!r} was never registered. Register it first with register_agent()."


class AgentExistsError(TBCError, ValueError):
    """An agent of that name is registered with other terms.

    Parameters
    ----------
    agent_name : str
        The agent.
    differences : str
        What differs, in words.
    """

    def __init__(self, agent_name: str, differences: str) -> None:
        super().__init__(agent_name, differences)
        self.agent_name = agent_name
        self.differences = differences

    def __str__(self) -> str:
        return (
            f"Agent {self.agent_name!r} is registered with other terms ({self.differences}). "
            "Pass replace=True to change them and keep what was consumed, held and lent."
        )


class AgentClosedError(TBCError, ValueError):
    """The account has been closed.

    Parameters
    ----------
    agent_name : str
        The agent.
    """

    def __init__(self, agent_name: str) -> None:
        super().__init__(agent_name)
        self.agent_name = agent_name

    def __str__(self) -> str:
        return f"Agent {self.agent_name!r} is closed. Register it again to open its account again."


class AgentInUseError(TBCError, ValueError):
    """The account cannot be closed (or moved) yet.

    Parameters
    ----------
    agent_name : str
        The agent.
    holds : sequence of int
        Ids of its open holds.
    children : sequence of str
        Names of its open children.
    """

    def __init__(self, agent_name: str, holds: Sequence[int] = (), children: Sequence[str] = ()) -> None:
        super().__init__(agent_name, tuple(holds), tuple(children))
        self.agent_name = agent_name
        self.holds = tuple(holds)
        self.children = tuple(children)

    def __str__(self) -> str:
        reasons = []
        if self.holds:
            reasons.append(f"open holds {list(self.holds)}: settle or void them first")
        if self.children:
            reasons.append(f"open children {list(self.children)}: close them first")
        return f"Agent {self.agent_name!r} is in use: {'; '.join(reasons)}."


class HoldEndedError(TBCError, ValueError):
    """A hold ends once; this one has ended already.

    Parameters
    ----------
    hold_id : int
        The hold.
    state : str
        How it ended: ``"settled"``, ``"voided"`` or ``"expired"``.
    attempted : str
        What was tried on it.
    settlement : Settlement or None
        How it ended, with the numbers.
    """

    def __init__(
        self, hold_id: int, state: str, attempted: str, settlement: Settlement | None = None
    ) -> None:
        super().__init__(hold_id, state, attempted, settlement)
        self.hold_id = hold_id
        self.state = state
        self.attempted = attempted
        self.settlement = settlement

    def __str__(self) -> str:
        booked = f" with {self.settlement.tokens} tokens" if self.settlement is not None else ""
        return (
            f"Hold {self.hold_id} is {self.state}{booked}; it cannot be {self.attempted}. "
            "A hold ends once; open a new one."
        )


class UnknownHoldError(TBCError, KeyError):
    """There is no hold of that number, or it ended so long ago that it is forgotten.

    Parameters
    ----------
    hold_id : object
        The number asked for.
    """

    def __init__(self, hold_id: object) -> None:
        super().__init__(hold_id)
        self.hold_id = hold_id

    def __str__(self) -> str:
        return (
            f"No hold {_shown(self.hold_id)} is known here. The answer to a hold names its number; repeating "
            "that request under its key finds it again."
        )


class UnknownLeaseError(TBCError, KeyError):
    """There is no such lease, or it ended so long ago that it is forgotten.

    Parameters
    ----------
    hold_id : int
        The hold that was asked for.
    """

    def __init__(self, hold_id: object) -> None:
        super().__init__(hold_id)
        self.hold_id = hold_id

    def __str__(self) -> str:
        return f"No hold {_shown(self.hold_id)} is a lease here. leases() lists the open ones."


class LeaseOpenError(TBCError, ValueError):
    """A lease cannot be closed by an operator yet: its worker may still be spending it.

    Parameters
    ----------
    hold_id : int
        The lease.
    holder : str
        Which worker has it.
    wait_s : float
        Seconds until it can be closed.
    seconds : float
        For how long it is granted at a time.
    """

    def __init__(self, hold_id: int, holder: str, wait_s: float, seconds: float) -> None:
        super().__init__(hold_id, holder, wait_s, seconds)
        self.hold_id = hold_id
        self.holder = holder
        self.wait_s = wait_s
        self.seconds = seconds

    def __str__(self) -> str:
        return (
            f"Lease {self.hold_id} of {self.seconds:g} s may still be spent by worker {self.holder!r}. "
            f"Close it in {self.wait_s:.1f} s, if it is not given back or renewed by then."
        )


class SliceTooSmallError(TBCError, ValueError):
    """A slice of what the agent has free does not cover what is needed.

    Parameters
    ----------
    agent_name : str
        Whose budget.
    axis : {"tokens", "usd", "calls"}
        Where it is short.
    needed, offered, free : int
        What was needed, what the slice would be, and what the agent has free, in the unit of the axis.
    """

    def __init__(self, agent_name: str, axis: Axis, needed: int, offered: int, free: int) -> None:
        super().__init__(agent_name, axis, needed, offered, free)
        self.agent_name = agent_name
        self.axis = axis
        self.needed = needed
        self.offered = offered
        self.free = free

    def __str__(self) -> str:
        needed, offered, free = (
            format_amount(self.axis, amount) for amount in (self.needed, self.offered, self.free)
        )
        return (
            f"A slice for {self.agent_name!r} would be {offered} of {free} free, and {needed} are needed. "
            "Hold it directly: hold() asks the market too."
        )


class NoCurrentHoldError(TBCError, LookupError):
    """There is no hold in this context."""

    def __str__(self) -> str:
        return (
            "No hold here: current_hold() works inside a governed call or a `with manager.hold(...)`. A "
            "thread pool starts without it: submit tbc.with_current_hold(function) instead of the function."
        )


class KeyConflictError(TBCError, ValueError):
    """The key was used before, for another operation or with other content.

    Parameters
    ----------
    key : str
        The key.
    first, now : tuple
        What it was used for, and what it was used for now.
    """

    def __init__(self, key: str, first: tuple[object, ...], now: tuple[object, ...]) -> None:
        super().__init__(key, first, now)
        self.key = key
        self.first = first
        self.now = now

    def __str__(self) -> str:
        return (
            f"Key {self.key!r} was first used for {self.first!r} and cannot be used for {self.now!r}. "
            "Repeat the first request unchanged, or make a new key."
        )


class ManagedLedgerError(TBCError, TypeError):
    """These books belong to a manager and move only through its methods."""


class VocabularyError(TBCError, OSError):
    """A token vocabulary could not be loaded."""


class TraceError(TBCError, ValueError):
    """A trace file that cannot be read, with the line that is wrong."""


class InvalidRequestError(TBCError, ValueError):
    """A request from outside that cannot be read.

    Parameters
    ----------
    problems : sequence of (str, str)
        All of them: the path of the key (empty: the request as a whole), and what is wrong there.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "; ".join(": ".join(filter(None, problem)) for problem in self.problems)


class InvalidPriceError(TBCError, ValueError):
    """A price that cannot be read, with the path of the key that is wrong.

    Parameters
    ----------
    path : str
        Where it was found, e.g. ``"prices['gpt-4o']['inputs_per_million']"``.
    reason : str
        What is wrong with it, and what would be right.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class InvalidPolicyError(TBCError, ValueError):
    """A tier policy that cannot be used as it is.

    Parameters
    ----------
    policy : str
        Its name, or that of its file.
    problems : sequence of (str, str)
        All of them: the path of the key (empty: the policy as a whole), and what is wrong there.
    """

    def __init__(self, policy: str, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(policy, tuple(problems))
        self.policy = policy
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(": ".join(filter(None, (self.policy, *problem))) for problem in self.problems)


class UnknownPriceError(TBCError, ValueError):
    """Nobody knows what this model costs, and an unknown price is not a free price.

    Parameters
    ----------
    model : str or None
        The model; ``None`` if the call names none.
    hint : str, optional
        What else may help.
    """

    def __init__(self, model: str | None, hint: str = "") -> None:
        super().__init__(model, hint)
        self.model = model
        self.hint = hint

    def __str__(self) -> str:
        if self.model is None:
            return (
                "A call that names no model has no known price. Name the model=, or say what it costs: usd=; "
                'or unknown_price=Decimal("...") to assume US dollars per million tokens, or '
                'unknown_price="track" to run it without a price.'
            )
        key = _shown(self.model)
        text = (
            f"Model {key} has no known price. Say what it costs: "
            f'prices={{{key}: {{"input_per_million": "...", "output_per_million": "..."}}}}; '
            f'or that it is free: prices={{{key}: {{"free": True}}}}; or unknown_price=Decimal("...") to '
            'assume US dollars per million tokens, or unknown_price="track" to run it without a price.'
        )
        return f"{text} {self.hint}" if self.hint else text


class StoreError(TBCError, OSError):
    """A store that cannot be used, or not like this. What was asked for was not written.

    Only after a `StoreUnknownError` that is not certain.

    Parameters
    ----------
    path : str
        The store's file, or the address of its server without the password.
    reason : str
        What is wrong.
    remedy : str
        What to do.
    """

    def __init__(self, path: str, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.args = (path, reason, remedy)
        self.path = path
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"Store {self.path!r}: {self.reason}. {self.remedy}."


class StoreBusyError(StoreError):
    """Others kept the store locked for too long. Nothing was written; the same request may be made again."""


class StoreFullError(StoreError):
    """There is no room on the disk. Nothing was written; it works again once there is room."""


class StoreCorruptError(StoreError):
    """The file is damaged, or was changed by other hands. Restore a backup."""


class StoreMissingError(StoreError):
    """There is no file where the store should be, or it was removed or replaced while in use."""


class StoreStaleError(StoreError):
    """Another process has written to this pool since its books were loaded: load them again."""


class StoreAwayError(StoreError):
    """The store cannot be reached. Nothing was written."""


class StoreUnknownError(StoreError):
    """The store was cut off before it answered. Whether it was written is not known.

    Ask again with the same key: what was written is found under it.
    """


class BudgetExceededError(TBCError):
    """The amount cannot be covered.

    Parameters
    ----------
    agent_name : str
        Who asked.
    requested : int
        What was asked for, in the unit of the `axis`.
    available : int
        What could have been granted: the agent's own and what its market could lend.
    decision : Decision, optional
        Every number behind the refusal.

    Attributes
    ----------
    axis : {"tokens", "usd", "calls"}
        The axis that refused.
    result : object
        What the call returned, where it had been paid for before the refusal; otherwise ``None``.
    """

    def __init__(
        self, agent_name: str, requested: int, available: int, decision: Decision | None = None
    ) -> None:
        super().__init__(agent_name, requested, available, decision)
        self.agent_name = agent_name
        self.requested = requested
        self.available = available
        self.decision = decision
        self.axis: Axis = TOKENS if decision is None else decision.axis
        self.result: Any = None

    def __str__(self) -> str:
        requested, available = self._words()
        text = (
            f"Agent {self.agent_name!r} requested {requested} but only {available} were "
            "available even after attempting reallocation."
        )
        if self.decision is None:
            return text
        return f"{text} {self.decision.remedies}"

    def _words(self) -> tuple[str, str]:
        """Return what was requested with its unit, and what was available without repeating the unit."""
        requested, available = (format_amount(self.axis, n) for n in (self.requested, self.available))
        return requested, available.partition(" ")[0]


class GateClosedError(BudgetExceededError):
    """The agent's last confidence reached its threshold: it has its answer and may spend no more."""

    def __str__(self) -> str:
        decision = self.decision
        numbers = (
            ""
            if decision is None
            else f" ({decision.confidence} >= threshold {decision.confidence_threshold})"
        )
        return (
            f"Agent {self.agent_name!r} is confident enough{numbers}: its gate refuses further spending, "
            f"{self._left()}. "
            "Resetting its confidence, or reporting one below the threshold, opens the gate again."
        )

    def _left(self) -> str:
        if self.decision is not None and self.decision.remaining is None:
            return "although it has no limit"
        return f"although {format_amount(self.axis, self.available)} are available"


class CarveOutError(BudgetExceededError, ValueError):
    """The amount does not fit into what the parent has to spare.

    Parameters
    ----------
    agent_name : str
        The child (or the agent to be topped up).
    requested : int
        What is to be carved out, in the unit of the `axis`.
    available : int
        The parent's spare.
    parent : str
        The parent.
    arithmetic : str
        How the parent's spare comes about.
    axis : {"tokens", "usd", "calls"}, default "tokens"
        Of what.
    missing : int, optional
        What the parent lacks; more than ``requested - available`` if it has less than its reserve.
    """

    def __init__(
        self,
        agent_name: str,
        requested: int,
        available: int,
        parent: str,
        arithmetic: str,
        axis: Axis = TOKENS,
        missing: int | None = None,
    ) -> None:
        super().__init__(agent_name, requested, available)
        self.args = (agent_name, requested, available, parent, arithmetic, axis, missing)
        self.missing = requested - available if missing is None else missing
        self.parent = parent
        self.arithmetic = arithmetic
        self.axis = axis

    def __str__(self) -> str:
        requested, available = self._words()
        missing = format_number(self.axis, self.missing)
        return (
            f"Agent {self.agent_name!r} needs {requested} of {self.parent!r}, which can spare "
            f"{available} ({self.arithmetic}). Ask for at most {available}, or top up "
            f"{self.parent!r} by {missing}."
        )


class OverrunError(BudgetExceededError):
    """More was spent than could be covered. It is booked in full; nothing was thrown away.

    Parameters
    ----------
    agent_name : str
        Who spent.
    requested : int
        What was spent, in the unit of the `axis`.
    available : int
        What of it was covered.
    settlement : Settlement, optional
        How it was booked.
    axis : {"tokens", "usd", "calls"}, default "tokens"
        Of what.
    """

    def __init__(
        self,
        agent_name: str,
        requested: int,
        available: int,
        settlement: Settlement | None = None,
        axis: Axis = TOKENS,
    ) -> None:
        super().__init__(agent_name, requested, available)
        self.args = (agent_name, requested, available, settlement, axis)
        self.settlement = settlement
        self.axis = axis

    def __str__(self) -> str:
        spent, covered = self._words()
        owed = format_amount(self.axis, self.requested - self.available).partition(" ")[0]
        return (
            f"Agent {self.agent_name!r} spent {spent} but only {covered} were "
            f"available even after attempting reallocation. All {spent.partition(' ')[0]} are booked; the "
            f"overrun of {owed} is owed. top_up() or rebalance() would pay it; .result holds "
            "what the call returned."
        )


class NotSent(Exception):
    """Raise it inside a governed call: nothing was sent, so the hold is voided and nothing is booked."""
