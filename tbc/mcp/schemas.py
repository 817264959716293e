"""JSON schemas of arguments and answers, and what is wrong with arguments, in words of our own."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tbc.axes import MAX_AMOUNT
from tbc.errors import InvalidRequestError
from tbc.reading import hint, shown

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

__all__ = [
    "AGENT",
    "AGENT_ID",
    "BOOLEAN",
    "CONFIDENCE",
    "DECISION",
    "DONOR",
    "ERROR",
    "HOLD",
    "KEY",
    "LABEL",
    "MODEL",
    "RECEIVER",
    "SETTLEMENT",
    "TRANSFER",
    "USD",
    "Schema",
    "answer",
    "array",
    "check_arguments",
    "integer",
    "nullable",
    "number",
    "record",
    "text",
    "told",
]

Schema: TypeAlias = dict[str, Any]

#: Characters of a name, a key, or a label.
_LONGEST: Final = 1_000


def text(about: str, **more: Any) -> Schema:
    """Return the schema of a text."""
    return {"type": "string", "description": about, **more}


def integer(about: str, **more: Any) -> Schema:
    """Return the schema of a whole number from 0 up to what the books can hold."""
    return {"type": "integer", "minimum": 0, "maximum": MAX_AMOUNT, "description": about, **more}


def number(about: str, **more: Any) -> Schema:
    """Return the schema of a number."""
    return {"type": "number", "description": about, **more}


def nullable(schema: Schema, **more: Any) -> Schema:
    """Return the schema of the same, or of null."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return {**schema, "type": [*kinds, "null"], **more}


def told(schema: Schema, about: str, **more: Any) -> Schema:
    """Return the same schema with another description. Dollars say how they are written."""
    how = ' US dollars, best as a decimal string such as "0.25".' if schema is USD else ""
    return {**schema, "description": about + how, **more}


def array(items: Schema, about: str) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items, "description": about}


def record(properties: Mapping[str, Schema], about: str = "") -> Schema:
    """Return the schema of an object that has all of these keys; more may come with a later version."""
    found: Schema = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return {**found, "description": about} if about else found


def answer(properties: Mapping[str, Schema]) -> Schema:
    """Return the schema of a tool's answer: its payload, or an error."""
    return {
        "type": "object",
        "anyOf": [
            record({"success": {"const": True}, **properties}),
            record({"success": {"const": False}, "error": ERROR}),
        ],
    }


# -- arguments -----------------------------------------------------------------------------------------------

AGENT_ID: Final = text("Name of the agent.", minLength=1, maxLength=_LONGEST)
KEY: Final = nullable(
    text(
        "Makes the call safe to repeat: the same key with the same arguments finds the first outcome, "
        "refusals too. Use a new key for every new call.",
        minLength=1,
        maxLength=_LONGEST,
    ),
    default=None,
)
LABEL: Final = nullable(text("A label for the journal; no prompts.", maxLength=_LONGEST), default=None)
MODEL: Final = nullable(
    text("The model that is called, for its price.", minLength=1, maxLength=_LONGEST), default=None
)
CONFIDENCE: Final = nullable(
    number(
        "How sure the agent is of its answer. At its threshold or above its gate closes.",
        minimum=0,
        maximum=1,
    ),
    default=None,
)
#: Of US dollars.
USD: Final = nullable({"type": ["string", "number"], "minimum": 0, "maxLength": 100}, default=None)
BOOLEAN: Final[Schema] = {"type": "boolean"}


# -- answers -------------------------------------------------------------------------------------------------


def _amounts(*names: str, null: bool = False) -> dict[str, Schema]:
    """Return amounts with any sign; those in nano-dollars are repeated as decimal strings beside."""
    kind: Schema = {"type": ["integer", "null"] if null else "integer"}
    return dict.fromkeys(names, kind)


_BOOKS: Final = {
    **_amounts("allocated", "remaining", null=True),
    **_amounts("consumed", "held", "spare", "debt", "min_reserve"),
}
_AGENT: Final = record(
    {
        "agent_id": text("Name."),
        "parent": nullable(text("The account above; null for the treasury at the top.")),
        "priority": integer("Higher is more important; 0 for the treasury."),
        **_BOOKS,
        "confidence_threshold": nullable(number("At this confidence or above the gate closes.")),
        "last_confidence": nullable(number("As reported last.")),
        "gate_closed": {"type": "boolean", "description": "Whether its gate refuses further spending."},
        "closed": {"type": "boolean", "description": "Whether the account is closed."},
    },
    "An account. Amounts are tokens; null: no limit.",
)
_SIDES: Final = {
    "usd": record({**_BOOKS, "unpriced": {"type": "integer"}}, "The same in nano-dollars, if they are kept."),
    "calls": record(_BOOKS, "The same in calls, if they are kept."),
}
AGENT: Final = {**_AGENT, "properties": {**_AGENT["properties"], **_SIDES}}
_PARTY: Final = {
    "agent_id": text("Name; (root) is the treasury at the top."),
    "priority": {"type": "integer"},
    "remaining_after": {"type": ["integer", "null"]},
}
DONOR: Final = record({**_PARTY, "tokens_given": {"type": "integer"}})
RECEIVER: Final = record({**_PARTY, "tokens_received": {"type": "integer"}})
TRANSFER: Final = record(
    {
        "donor": text("Who gave."),
        "recipient": text("Who got it."),
        "axis": {"enum": ["tokens", "usd", "calls"]},
        "amount": {"type": "integer"},
        "kind": text("Why."),
    }
)
_DECISION: Final = {
    "agent_name": text("Who asked."),
    "verdict": {"enum": ["ALLOW", "REFUSE"]},
    "allowed": {"type": "boolean"},
    "status": {"enum": ["gate_closed", "uncapped", "fits", "fits_with_loans", "busy", "exhausted"]},
    "reason": text("In one sentence, with the numbers."),
    "remedy": text("What would make it pass; empty if it passes."),
    "axis": {"enum": ["tokens", "usd", "calls"]},
    **_amounts("requested", "treasury", "siblings", "ancestors", "shortfall", "unmet"),
    **_amounts("remaining", "available", "when_idle", null=True),
    "transfers": array(TRANSFER, "What would move, or has moved, in drain order."),
}
DECISION: Final = record(
    {**_DECISION, "others": array(record(_DECISION), "The same on the other axes that were asked.")},
    "ALLOW or REFUSE, and every number behind it.",
)
_BOOKED: Final = record(
    {
        **_amounts("amount", "held", "overrun"),
        "estimated": {"type": "boolean"},
        "returned": array(TRANSFER, "What went back to lenders."),
        "covered": array(TRANSFER, "What the market gave for the part above the hold."),
    }
)
SETTLEMENT: Final = record(
    {
        "hold_id": integer("The hold."),
        "agent_name": text("Whose."),
        "state": {"enum": ["settled", "voided", "expired"]},
        "late": {"type": "boolean", "description": "Whether the hold had expired before."},
        "repeated": {
            "type": "boolean",
            "description": "Whether this repeats an answer that was given before.",
        },
        "booked": {
            "type": "object",
            "properties": {"tokens": _BOOKED, "usd": _BOOKED, "calls": _BOOKED},
            "required": ["tokens"],
        },
    },
    "How a hold ended.",
)
HOLD: Final = record(
    {
        "hold_id": integer("Its number: what settle and void take."),
        "agent_id": text("Whose budget."),
        "state": {"enum": ["open", "settled", "voided", "expired"]},
        "held": {
            "type": "object",
            "properties": dict.fromkeys(("tokens", "usd", "calls"), record(_amounts("amount"))),
            "required": ["tokens"],
            "description": "What is set aside on each axis.",
        },
        "loans": array(TRANSFER, "What of it was lent, in drain order; what is not needed goes back."),
        "expires_in_s": number("Seconds until it ends by itself, unless it is settled or voided."),
        "key": nullable(text("The caller's.")),
        "operation": nullable(text("The caller's.")),
        "model": nullable(text("The caller's.")),
    },
    "An amount set aside before a call.",
)
ERROR: Final = record(
    {
        "code": text("Stable; docs/errors.md lists all of them."),
        "message": text("What happened, with its numbers."),
        "hint": text("What would make it pass."),
        "retryable": {
            "type": "boolean",
            "description": "Whether the very same call may be repeated by itself and can pass then.",
        },
        "details": {"type": "object", "description": "Names and numbers."},
    },
    "Why it failed. A refusal has its whole decision beside.",
)


# -- what is wrong with arguments ----------------------------------------------------------------------------


def check_arguments(schema: Schema, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that fit a schema, with the defaults of those that were left out.

    Raises
    ------
    InvalidRequestError
        With all that is wrong. Long values are not repeated.
    """
    found = sorted(
        _validator(json.dumps(schema)).iter_errors(arguments), key=lambda each: list(map(str, each.path))
    )
    if found:
        raise InvalidRequestError([problem for error in found for problem in _problems(error)])
    defaults = {name: each["default"] for name, each in schema["properties"].items() if "default" in each}
    return defaults | {name: _whole(schema["properties"][name], value) for name, value in arguments.items()}


@functools.cache
def _validator(schema: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def _whole(schema: Schema, value: Any) -> Any:
    """Return a whole number as an int: in JSON, 3.0 is one."""
    kinds = schema["type"]
    return int(value) if isinstance(value, float) and "integer" in kinds else value


def _problems(error: ValidationError) -> list[tuple[str, str]]:
    path = ".".join(map(str, error.absolute_path))
    limit, value = error.validator_value, error.instance
    match error.validator:
        case "required":
            return [(name, "is missing") for name in limit if name not in value]
        case "additionalProperties":
            known = list(error.schema["properties"])
            return [(name[:60], f"unknown key{hint(name, known)}") for name in value if name not in known]
        case "type":
            kinds = limit if isinstance(limit, list) else [limit]
            rule = " or ".join(kinds)
        case "minimum":
            rule = f">= {limit}"
        case "exclusiveMinimum":
            rule = f"> {limit}"
        case "maximum":
            rule = f"<= {limit}"
        case "minLength":
            return [(path, "must not be empty")]
        case "maxLength":
            return [(path, f"must have at most {limit:,} characters, not {len(value):,}")]
        case other:
            rule = f"as its schema says ({other})"
    return [(path, f"must be {rule}, not {shown(value)}")]
