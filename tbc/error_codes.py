"""One stable code for every error, for those who are not Python: services, tools, logs.

`code_of` finds the code of an exception, its HTTP status, and whether sending the same request again can
help; `error_object` renders it as one plain JSON object. The table is `ERROR_CODES`; docs/errors.md lists it.

Statuses: 402, there is no budget for it; 403, the account does not allow it (a closed gate, a closed
account); 404, 409 and 422, the request does not fit the books, what was done before, or itself; 503 and 507,
the store could not do it now. A refusal for want of budget is never retryable, not even where the agent is
only busy: repeated at once it would be refused again, under its key it must be. `budget_busy` tells such a
refusal from `budget_exhausted`, and its hint says when to ask anew.

Examples
--------
>>> error_object(UnknownAgentError("scout"))["code"]
'unknown_agent'
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from tbc import errors, run_errors
from tbc.axes import TOKENS, Axis
from tbc.decision import Decision, Settlement, Status
from tbc.errors import BudgetExceededError, InvalidRequestError, TBCError, UnknownAgentError
from tbc.wire import amounts_object, decision_object, settlement_object

__all__ = ["BUDGET_BUSY", "ERROR_CODES", "INTERNAL_ERROR", "ErrorCode", "code_of", "error_object"]


@attrs.frozen
class ErrorCode:
    """What stands for one kind of error outside of Python.

    Attributes
    ----------
    code : str
        Its name; never changed once released.
    status : int
        The HTTP status.
    retryable : bool
        Whether the very same request (under the same key, if it had one) may be sent again by itself, and
        can pass then.
    hint : str
        What would make it pass. Refusals with a `Decision` have a better one, with its numbers.
    details : tuple of str
        Attributes of the exception that the object carries.
    """

    code: str
    status: int
    retryable: bool
    hint: str
    details: tuple[str, ...] = ()


_REFUSAL: Final = ("agent_name", "axis", "requested", "available")
_STORE: Final = ("reason", "remedy")
_FIX: Final = "Correct the request."
_LATER: Final = "Nothing was written: send the same request again later."
_LOOK: Final = "An operator has to look at the store."
#: Details that are amounts on the exception's axis.
_AMOUNTS: Final = frozenset(
    {"requested", "available", "missing", "needed", "offered", "free", "spent", "held", "limit"}
)

#: A refusal that calls in flight may lift.
BUDGET_BUSY: Final = ErrorCode(
    "budget_busy",
    402,
    False,
    "Wait until calls in flight have ended and ask anew, under a new key, or ask for less.",
    _REFUSAL,
)
#: Whatever is not an error of `tbc`: its text is not shown.
INTERNAL_ERROR: Final = ErrorCode("internal_error", 500, False, "See the log of the server.")

#: The code of every exception class; a class that is not in it has that of its nearest parent.
ERROR_CODES: Final[dict[type[BaseException], ErrorCode]] = {
    TBCError: ErrorCode("tbc_error", 500, False, "The message says what to do."),
    # -- there is no budget for it: nothing moved
    BudgetExceededError: ErrorCode(
        "budget_exhausted", 402, False, "Ask for less, or have the budget topped up.", _REFUSAL
    ),
    errors.CarveOutError: ErrorCode(
        "carve_out_refused",
        402,
        False,
        "Ask for at most what is available, or top up the parent first.",
        (*_REFUSAL, "parent", "missing", "arithmetic"),
    ),
    errors.OverrunError: ErrorCode(
        "overrun",
        402,
        False,
        "It is booked: do not send it again. A top-up or rebalance pays what is owed.",
        _REFUSAL,
    ),
    errors.SliceTooSmallError: ErrorCode(
        "slice_too_small",
        402,
        False,
        "Hold it directly: a hold asks the market too.",
        ("agent_name", "axis", "needed", "offered", "free"),
    ),
    run_errors.StepBlockedError: ErrorCode(
        "step_blocked",
        402,
        False,
        "Raise the limit of the task, or ask for fewer tokens of output.",
        (*_REFUSAL, "task_id", "step_number", "spent", "held", "limit"),
    ),
    # -- the account does not allow it
    errors.GateClosedError: ErrorCode(
        "gate_closed",
        403,
        False,
        "The agent has its answer. Resetting its confidence opens its gate.",
        _REFUSAL,
    ),
    errors.AgentClosedError: ErrorCode(
        "agent_closed", 403, False, "Register the agent again.", ("agent_name",)
    ),
    # -- there is no such thing
    UnknownAgentError: ErrorCode("unknown_agent", 404, False, "Register the agent first.", ("agent_name",)),
    errors.UnknownHoldError: ErrorCode(
        "unknown_hold", 404, False, "Repeat the hold under its key to find its number.", ("hold_id",)
    ),
    errors.UnknownLeaseError: ErrorCode("unknown_lease", 404, False, "List the open leases.", ("hold_id",)),
    run_errors.UnknownRunError: ErrorCode("unknown_run", 404, False, "List the runs.", ("run", "reason")),
    run_errors.UnknownTaskError: ErrorCode(
        "unknown_task", 404, False, "Execute a step of the task first.", ("task_id",)
    ),
    # -- it does not go with what was done before
    errors.AgentExistsError: ErrorCode(
        "agent_exists",
        409,
        False,
        "Send the same terms, or ask to replace them.",
        ("agent_name", "differences"),
    ),
    errors.AgentInUseError: ErrorCode(
        "agent_in_use",
        409,
        False,
        "End its holds and close its children first.",
        ("agent_name", "holds", "children"),
    ),
    errors.HoldEndedError: ErrorCode(
        "hold_ended", 409, False, "A hold ends once: open a new one.", ("hold_id", "state", "attempted")
    ),
    errors.KeyConflictError: ErrorCode(
        "key_conflict", 409, False, "Repeat the first request unchanged, or make a new key.", ("key",)
    ),
    errors.LeaseOpenError: ErrorCode(
        "lease_open", 409, True, "Wait until its end has passed.", ("hold_id", "holder", "wait_s", "seconds")
    ),
    run_errors.RunError: ErrorCode(
        "run_error", 409, False, "The message says what to do.", ("run", "reason")
    ),
    run_errors.RunBusyError: ErrorCode(
        "run_busy", 409, True, "Wait until the other process has ended.", ("run", "reason")
    ),
    run_errors.RunForgottenError: ErrorCode(
        "run_forgotten",
        409,
        False,
        "Look at the books for what it has spent, and begin anew under a new key.",
        ("run", "reason"),
    ),
    run_errors.WorkflowChangedError: ErrorCode(
        "workflow_changed", 409, False, "Put the file back, or accept the changes.", ("run", "steps")
    ),
    # -- it cannot be read, or cannot be meant
    InvalidRequestError: ErrorCode("invalid_request", 422, False, _FIX, ("problems",)),
    errors.InvalidAmountError: ErrorCode("invalid_amount", 422, False, _FIX, ("name", "rule")),
    errors.InvalidContractError: ErrorCode("invalid_contract", 422, False, _FIX),
    errors.InvalidPriceError: ErrorCode("invalid_price", 422, False, _FIX, ("path", "reason")),
    errors.InvalidPolicyError: ErrorCode("invalid_policy", 422, False, _FIX, ("policy", "problems")),
    errors.TraceError: ErrorCode("invalid_trace", 422, False, "Correct the trace."),
    errors.UnknownPriceError: ErrorCode(
        "unknown_price", 422, False, "Say what it costs, or name a model that has a price.", ("model",)
    ),
    run_errors.StepUnpricedError: ErrorCode(
        "step_unpriced", 422, False, "Say what the step costs, or name a model that has a price.", ("model",)
    ),
    run_errors.WorkflowFileError: ErrorCode(
        "invalid_workflow", 422, False, "Correct the workflow file.", ("file", "problems")
    ),
    run_errors.InvalidGraphError: ErrorCode(
        "invalid_graph", 422, False, "Correct the graph of steps.", ("problems",)
    ),
    run_errors.UnresolvedReferenceError: ErrorCode(
        "unresolved_reference", 422, False, "Name what there is.", ("reference", "reason", "known")
    ),
    # -- the store, or the network, could not do it
    errors.StoreBusyError: ErrorCode("store_busy", 503, True, _LATER, _STORE),
    errors.StoreAwayError: ErrorCode("store_away", 503, True, _LATER, _STORE),
    errors.StoreUnknownError: ErrorCode(
        "store_unknown",
        503,
        True,
        "It may have been written: send it again under the same key, which finds the first answer. Without a "
        "key look at the books first.",
        _STORE,
    ),
    errors.StoreFullError: ErrorCode(
        "store_full", 507, True, "Nothing was written: make room, then send the same request again.", _STORE
    ),
    errors.StoreError: ErrorCode("store_error", 500, False, _LOOK, _STORE),
    errors.StoreCorruptError: ErrorCode("store_corrupt", 500, False, _LOOK, _STORE),
    errors.StoreMissingError: ErrorCode("store_missing", 500, False, _LOOK, _STORE),
    errors.StoreStaleError: ErrorCode(
        "store_stale", 500, False, "The server has to be started again on the store as it is now.", _STORE
    ),
    errors.VocabularyError: ErrorCode(
        "vocabulary_unavailable",
        503,
        True,
        "Try again when the network is there; an estimate counts until then.",
    ),
    run_errors.PolicyAwayError: ErrorCode(
        "policy_away",
        503,
        True,
        "Nothing was done: send the same request again when the policy process answers.",
        ("where", "reason"),
    ),
    errors.NotSent: ErrorCode("not_sent", 502, True, "Nothing was sent and nothing booked: send it again."),
    # -- the program that uses tbc is wrong
    errors.NoCurrentHoldError: ErrorCode("no_current_hold", 500, False, "Ask inside of a governed call."),
    errors.ManagedLedgerError: ErrorCode("managed_ledger", 500, False, "Use the methods of the manager."),
    run_errors.PolicyDiffersError: ErrorCode(
        "policy_differs", 500, False, "Start both processes with the same policy.", ("theirs", "ours")
    ),
    run_errors.ResultNotKeptError: ErrorCode(
        "result_not_kept", 500, False, "Let the step return what JSON can hold.", ("step", "reason")
    ),
    run_errors.StepResultError: ErrorCode(
        "step_result", 500, False, "Let the step return its output and its usage.", ("reason", "found")
    ),
}


def code_of(error: BaseException) -> ErrorCode:
    """Return what stands for an exception outside of Python; `INTERNAL_ERROR` for what is not of `tbc`."""
    if _is_unreadable(error):
        return ERROR_CODES[InvalidRequestError]
    found = next((ERROR_CODES[kind] for kind in type(error).__mro__ if kind in ERROR_CODES), INTERNAL_ERROR)
    if found is ERROR_CODES[BudgetExceededError] and _is_busy(getattr(error, "decision", None)):
        return BUDGET_BUSY
    return found


def error_object(error: BaseException) -> dict[str, Any]:
    """Return an exception as one plain JSON object.

    Parameters
    ----------
    error : BaseException
        Any. What is not an error of `tbc` says nothing of itself: it may have secrets in it.

    Returns
    -------
    dict
        ``code``, ``message``, ``hint`` (what would make it pass), ``retryable``, ``details`` (numbers and
        names; amounts as integers, nano-dollars also as decimal strings), and, where there is one,
        ``decision`` (the whole `Decision`) and ``settlement`` (what was booked). What a call returned, or
        was asked, is never in it.

    Examples
    --------
    >>> error_object(BudgetExceededError("scout", 900, 400))["details"]
    {'agent_name': 'scout', 'axis': 'tokens', 'requested': 900, 'available': 400}
    """
    if _is_unreadable(error):
        error = InvalidRequestError(_problems(error))
    code = code_of(error)
    found: dict[str, Any] = {
        "code": code.code,
        "message": "Something went wrong inside of the server." if code is INTERNAL_ERROR else str(error),
        "hint": code.hint,
        "retryable": code.retryable,
        "details": _details(error, code),
    }
    decision = getattr(error, "decision", None)
    if isinstance(decision, Decision):
        found["decision"] = decision_object(decision)
        found["hint"] = decision.remedies or code.hint
    settlement = getattr(error, "settlement", None)
    if isinstance(settlement, Settlement):
        found["settlement"] = settlement_object(settlement)
    return found


def _details(error: BaseException, code: ErrorCode) -> dict[str, Any]:
    axis: Axis = getattr(error, "axis", TOKENS)
    found: dict[str, Any] = {}
    for name in code.details:
        value = getattr(error, name)
        found |= amounts_object(axis, [(name, value)]) if name in _AMOUNTS else {name: _plain(value)}
    return found


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value)


def _is_busy(decision: Decision | None) -> bool:
    """Return whether calls in flight are all that is in the way, on every axis that refuses."""
    if decision is None:
        return False
    refusing = [each for each in (decision, *decision.others) if each.status.refuses]
    return bool(refusing) and all(each.status is Status.BUSY for each in refusing)


def _is_unreadable(error: BaseException) -> bool:
    """Return whether cattrs could not make a record of what it was given."""
    return isinstance(error, ExceptionGroup) and type(error).__module__.partition(".")[0] == "cattrs"


def _problems(error: BaseException) -> list[tuple[str, str]]:
    """Return what cattrs found wrong, with the path of each key, in words of our own."""
    from cattrs import transform_error

    from tbc.reading import said

    def words(error: BaseException, _: object) -> str:
        return said(error)

    found = []
    for line in transform_error(error, format_exception=words):
        what, _, path = line.rpartition(" @ $")
        found.append((path.removeprefix("."), what))
    return found
