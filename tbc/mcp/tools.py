"""The nine tools: how they are called, what they take, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from tbc.mcp import operations
from tbc.mcp.schemas import (
    AGENT,
    AGENT_ID,
    BOOLEAN,
    CONFIDENCE,
    DECISION,
    DONOR,
    HOLD,
    KEY,
    LABEL,
    MODEL,
    RECEIVER,
    SETTLEMENT,
    TRANSFER,
    USD,
    Schema,
    answer,
    array,
    check_arguments,
    integer,
    nullable,
    number,
    told,
)

if TYPE_CHECKING:
    from tbc.manager import BudgetManager

__all__ = ["TOOLS", "Tool", "perform"]


@attrs.frozen
class Tool:
    """One tool.

    Attributes
    ----------
    title, about : str
        Its name for people; what a model is told of it.
    takes, answers : dict
        The JSON schemas of its arguments and of its structured content.
    run : callable
        Manager and checked arguments to payload.
    writes : bool
        Whether it changes the books.
    repeatable : bool
        Whether repeating it with the same arguments changes nothing more, without any key.
    """

    title: str
    about: str
    takes: Schema
    answers: Schema
    run: Callable[[BudgetManager, Mapping[str, Any]], dict[str, Any]]
    writes: bool = True
    repeatable: bool = False


def perform(tool: Tool, manager: BudgetManager, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload of a tool.

    Raises
    ------
    TBCError
        As the manager does, and `InvalidRequestError` for arguments that do not fit the schema.
    """
    given = check_arguments(tool.takes, arguments)
    return {"success": True, **tool.run(manager, given)}


def _takes(properties: Mapping[str, Schema], *required: str) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


_HOLD_ID: Final = integer("The hold.", minimum=1)
_CALL: Final = {
    "agent_id": AGENT_ID,
    "tokens": integer("The most tokens that the call may use, input and output.", default=0),
    "usd": told(USD, "The most that it may cost. Left out: the dearest price of the model."),
    "calls": integer("How many calls it is.", default=1),
    "model": MODEL,
}
_STATE: Final = {"agent_state": AGENT}
_MOVED: Final = {
    "donors": array(DONOR, "Who gave tokens, in drain order: the least important first."),
    "receivers": array(RECEIVER, "Who got them."),
    "transfers": array(TRANSFER, "Every movement on every axis, in order."),
    **_STATE,
}

#: The tools by name, in the order in which they are listed.
TOOLS: Final[dict[str, Tool]] = {
    "register_agent": Tool(
        "Register an agent",
        "Sign a budget contract for an agent and open its account. The same terms again change nothing and "
        "find the account as it was left.",
        _takes(
            {
                "agent_id": AGENT_ID,
                "priority": integer("Higher is more important.", minimum=1, default=1),
                "max_tokens": nullable(
                    integer(
                        "What it owns, out of what its parent can spare. 0: it draws on its parent as "
                        "needed. null: no cap of its own. Left out: 1000, or null where another cap is named."
                    )
                ),
                "min_reserve": nullable(
                    integer("Tokens that nobody may take from it. Left out: a tenth of max_tokens."),
                    default=None,
                ),
                "confidence_threshold": told(CONFIDENCE, "At this confidence or above it may spend no more."),
                "parent": nullable(told(AGENT_ID, "The agent above it."), default=None),
                "max_usd": told(USD, "What it owns in dollars."),
                "min_reserve_usd": told(USD, "Dollars that nobody may take from it."),
                "max_calls": nullable(integer("How many calls it owns."), default=None),
                "replace": told(BOOLEAN, "Change the terms; what it spent and holds stays.", default=False),
            },
            "agent_id",
        ),
        answer({"agent": AGENT}),
        operations.register_agent,
        repeatable=True,
    ),
    "record_spend": Tool(
        "Record spending",
        "Book what an agent has spent without a hold. What it does not have is taken from agents that matter "
        "no more than it does. What nobody covers is booked all the same and answered with the error "
        "overrun: do not send it again. A closed gate does not undo spending: see agent_state.gate_closed, "
        "and stop then.",
        _takes(
            {
                "agent_id": AGENT_ID,
                "input_tokens": integer("Tokens of the input.", default=0),
                "output_tokens": integer("Tokens of the output.", default=0),
                "task": {**LABEL, "type": "string", "default": ""},
                "confidence": CONFIDENCE,
                "usd": told(USD, "What it cost. Left out: by the price of the model."),
                "model": MODEL,
                "key": KEY,
            },
            "agent_id",
        ),
        answer(
            {
                "agent_id": AGENT_ID,
                "input_tokens": integer("Tokens of the input."),
                "output_tokens": integer("Tokens of the output."),
                "total_tokens": integer("Both."),
                "task": {"type": "string"},
                "reallocation_triggered": told(BOOLEAN, "Whether others gave something."),
                **_MOVED,
            }
        ),
        operations.record_spend,
    ),
    "get_remaining_budget": Tool(
        "Get an agent's budget",
        "Read one account: allocated, consumed, held and remaining tokens, dollars and calls, and its gate.",
        _takes({"agent_id": AGENT_ID}, "agent_id"),
        answer({"agent": AGENT}),
        operations.get_remaining_budget,
        writes=False,
    ),
    "request_reallocation": Tool(
        "Request tokens of others",
        "Move tokens to an agent for good, from the treasury and from agents that matter no more than it "
        "does, down to their reserves. A part of what was asked is an answer too: see shortfall_remaining.",
        _takes(
            {
                "agent_id": AGENT_ID,
                "tokens_needed": integer("How many tokens it lacks; what it owes is added.", minimum=1),
                "key": KEY,
            },
            "agent_id",
            "tokens_needed",
        ),
        answer(
            {
                "agent_id": AGENT_ID,
                "tokens_requested": integer("What was asked for."),
                "tokens_recovered": integer("What it got."),
                "shortfall_remaining": integer("What it still lacks, what it owes included."),
                "fully_covered": told(BOOLEAN, "Whether it lacks nothing."),
                "rationale": array({"type": "string"}, "One sentence for each donor."),
                **_MOVED,
            }
        ),
        operations.request_reallocation,
    ),
    "get_budget_snapshot": Tool(
        "Get all budgets",
        "Read every account, closed ones too, the treasury, and the sums over all of them in tokens.",
        _takes({}),
        answer(
            {
                "agents": array(AGENT, "In the order of registration."),
                "agent_count": integer("How many."),
                "treasury": told(AGENT, "The root account: what no agent owns."),
                "total_allocated": {"type": "integer"},
                "total_consumed": {"type": "integer"},
                "total_remaining": {"type": "integer"},
            }
        ),
        operations.get_budget_snapshot,
        writes=False,
    ),
    "hold": Tool(
        "Hold before a call",
        "Set the most that a model call can use aside before it is made; what is short, the market lends. "
        "If it is refused, do not make the call. Afterwards settle it, or void it if nothing was sent.",
        _takes(
            {
                **_CALL,
                "expires_s": number(
                    "Seconds after which it ends by itself.", exclusiveMinimum=0, maximum=10**9, default=600
                ),
                "operation": LABEL,
                "at_least": nullable(
                    integer("If need be take fewer tokens, but not fewer than these."), default=None
                ),
                "key": KEY,
            },
            "agent_id",
        ),
        answer(
            {
                "hold": HOLD,
                "decision": {
                    "anyOf": [DECISION, {"type": "null"}],
                    "description": "Set if the market was asked.",
                },
                **_STATE,
            }
        ),
        operations.hold,
    ),
    "settle": Tool(
        "Settle after a call",
        "End a hold by what the call really used; the rest goes back, first to lenders. Never refused for "
        "its size: see overrun. Repeating it changes nothing. What is left out is booked as held, estimated.",
        _takes(
            {
                "hold_id": _HOLD_ID,
                "tokens": nullable(integer("Tokens in all, if they are not known apart."), default=None),
                "input_tokens": nullable(integer("Tokens of the input."), default=None),
                "output_tokens": nullable(integer("Tokens of the output."), default=None),
                "usd": told(USD, "What it cost. Left out: by the price of the hold's model, if it has one."),
                "calls": nullable(integer("Calls made."), default=None),
                "estimated": told(BOOLEAN, "Whether all of that is an estimate.", default=False),
                "confidence": CONFIDENCE,
            },
            "hold_id",
        ),
        answer({"settlement": SETTLEMENT, **_STATE}),
        operations.settle,
        repeatable=True,
    ),
    "void": Tool(
        "Void a hold",
        "End a hold without spending, because nothing was sent. Repeating it changes nothing.",
        _takes({"hold_id": _HOLD_ID}, "hold_id"),
        answer({"settlement": SETTLEMENT, **_STATE}),
        operations.void,
        repeatable=True,
    ),
    "decide": Tool(
        "Ask what a hold would meet",
        "Say whether a hold would be granted, and every number behind it. Moves nothing.",
        _takes(_CALL, "agent_id"),
        answer({"decision": DECISION}),
        operations.decide,
        writes=False,
    ),
}
