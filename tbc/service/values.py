"""What single values of a request must be: said once, for the check and for the schema that clients read.

A type such as `Amount` is the plain type with a `Rule`. Bodies are checked by it, and the OpenAPI document
shows it.

Examples
--------
>>> PRIORITY.check(3), PRIORITY.schema["minimum"]
(3, 1)
>>> NAME.check("two words")
Traceback (most recent call last):
ValueError: must be 1 to 128 letters, digits and ._:@-, beginning with a letter or digit, not 'two words'
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final

import attrs

from tbc.axes import MAX_AMOUNT
from tbc.reading import shown

__all__ = [
    "DOLLARS",
    "NAME",
    "PRIORITY",
    "AccountName",
    "AgentName",
    "Amount",
    "Budget",
    "Count",
    "Dollars",
    "Fraction",
    "Goal",
    "HoldNumber",
    "Key",
    "Line",
    "Milliseconds",
    "PageSize",
    "Priority",
    "Rule",
    "RunId",
    "Seconds",
    "choice",
    "rule_of",
    "whole",
]


@attrs.frozen(eq=False)
class Rule:
    """What a value must be.

    Attributes
    ----------
    schema : dict
        As JSON Schema.
    check : callable
        Returns the value, or raises a `ValueError` that says what it must be.
    """

    schema: dict[str, Any]
    check: Callable[[object], Any]


def whole(least: int, most: int, what: str) -> Rule:
    """Return the rule of an integer. JSON has one kind of number: ``1.0`` is an integer, ``true`` is none."""

    def check(value: object) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is int and least <= value <= most:
            return value
        raise ValueError(f"must be an integer from {least} to {most}, not {shown(value)}")

    return Rule({"type": "integer", "minimum": least, "maximum": most, "description": what}, check)


def number(least: float, most: float, what: str, *, above: bool = False) -> Rule:
    """Return the rule of a number; `above`: it is more than the least."""
    schema = {"type": "number", "exclusiveMinimum" if above else "minimum": least, "maximum": most}
    span = f"above {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"

    def check(value: object) -> float:
        if type(value) in (int, float) and least <= value <= most and not (above and value == least):  # type: ignore[operator]
            return value  # type: ignore[return-value]
        raise ValueError(f"must be a number {span}, not {shown(value)}")

    return Rule({**schema, "description": what}, check)


def words(pattern: str, must: str, what: str) -> Rule:
    """Return the rule of text; the pattern is of the dialect that JSON Schema shares with Python."""
    matches = re.compile(pattern, re.ASCII).fullmatch

    def check(value: object) -> str:
        if isinstance(value, str) and matches(value):
            return value
        raise ValueError(f"must be {must}, not {shown(value)}")

    return Rule({"type": "string", "pattern": pattern, "description": what}, check)


def choice(*choices: str, what: str) -> Rule:
    """Return the rule of one word of a few."""

    def check(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise ValueError(f"must be {' or '.join(choices)}, not {shown(value)}")

    return Rule({"type": "string", "enum": list(choices), "description": what}, check)


def rule_of(kind: Any) -> Rule | None:
    """Return the rule of a type that has one."""
    return next((each for each in getattr(kind, "__metadata__", ()) if isinstance(each, Rule)), None)


_ID: Final = r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}"
_ID_WORDS: Final = "1 to 128 letters, digits and ._:@-, beginning with a letter or digit"
_LINE: Final = r"^[!-~]([ -~]{0,126}[!-~])?$"
_LINE_WORDS: Final = "1 to 128 printable ASCII characters, no space at either end"

NAME: Final = words(f"^{_ID}$", _ID_WORDS, "The name of an agent.")
PRIORITY: Final = whole(
    1, 1_000_000, "Higher is more important; budget moves from lower or equal priorities only."
)

AgentName = Annotated[str, NAME]
AccountName = Annotated[
    str,
    words(rf"^(\(root\)|{_ID})$", f"{_ID_WORDS}; or (root)", "An agent, or (root): the top of the pool."),
]
Amount = Annotated[int, whole(0, MAX_AMOUNT, "Tokens, calls or nano-dollars (10^9 in a dollar).")]
Count = Annotated[int, whole(0, MAX_AMOUNT, "How many calls.")]
Priority = Annotated[int, PRIORITY]
DOLLARS: Final = words(
    r"^[0-9]{1,6}(\.[0-9]{1,9})?$",
    'dollars below a million as a decimal string, such as "0.50"',
    "US dollars as a decimal string: exact, up to nine decimals.",
)
Dollars = Annotated[str, DOLLARS]


def _read_budget(value: object) -> float | str:
    if type(value) in (int, float) and 0 <= value < 1_000_000:  # type: ignore[operator]
        return value  # type: ignore[return-value]
    if isinstance(value, str):
        text: str = DOLLARS.check(value)
        return text
    raise ValueError(f'must be dollars from 0 to below a million, such as 0.5 or "0.50", not {shown(value)}')


Budget = Annotated[
    float | str,
    Rule(
        {
            "anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1_000_000}, DOLLARS.schema],
            "description": "US dollars, as a number or as a decimal string.",
        },
        _read_budget,
    ),
]
Milliseconds = Annotated[int, whole(0, 86_400_000, "Milliseconds.")]
Fraction = Annotated[float, number(0, 1, "From 0 to 1.")]
Seconds = Annotated[float, number(0, 86_400, "Seconds, at most a day.", above=True)]
Line = Annotated[
    str, words(_LINE, _LINE_WORDS, "A short text: it is kept in the journal, so put no prompt in it.")
]
Key = Annotated[
    str,
    words(_LINE, _LINE_WORDS, "Makes the request safe to repeat: the first answer is kept, refusals too."),
]
RunId = Annotated[
    str,
    words(r"^run-[0-9]{1,15}-[0-9a-f]{8}$", "the name of a run, as run-1-0f3a77b2", "The name of a run."),
]


def _read_goal(value: object) -> str:
    if isinstance(value, str) and len(value) <= _GOAL and not any("\ud800" <= c <= "\udfff" for c in value):
        return value
    raise ValueError(f"must be text of at most {_GOAL} characters, not {shown(value)}")


_GOAL: Final = 32_768
Goal = Annotated[
    str,
    Rule(
        {"type": "string", "maxLength": _GOAL, "description": "What the run is for; it is not kept."},
        _read_goal,
    ),
]
HoldNumber = Annotated[int, whole(1, MAX_AMOUNT, "The number of a hold.")]
PageSize = Annotated[int, whole(1, 1_000, "How many at most.")]
