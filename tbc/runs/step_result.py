"""What a step returned, read for its usage: the contract is a dict with ``output`` and ``usage``.

``usage`` is ``{"input_tokens": n, "output_tokens": n}``, or whatever `tbc.usage.read_usage` understands: the
usage of a real provider, as a dict or as the client's object, what was cached included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tbc.axes import MAX_AMOUNT
from tbc.contract import check_amount
from tbc.errors import InvalidAmountError
from tbc.run_errors import StepResultError
from tbc.usage import Usage, read_usage

__all__ = ["StepUsage", "read_step_usage"]

_COUNTS = ("input_tokens", "output_tokens")
_PLAIN = (str, bytes, int, float, list, tuple, set, frozenset, type(None))


class StepUsage(NamedTuple):
    """The tokens of a step; `usage` where there is more to say than two numbers."""

    input_tokens: int
    output_tokens: int
    usage: Usage | None = None


def read_step_usage(result: object) -> StepUsage:
    """Return the usage that a step states.

    Raises
    ------
    StepResultError
        It states none, or one that cannot be. `.reason` tells which, `.result` is what it returned.
    """
    if type(result) is not dict and not isinstance(result, Mapping):  # the first spares what the second costs
        raise StepResultError("not_a_dict", f"it returned {_kind(result)}", result)
    if "usage" not in result:
        raise StepResultError("no_usage", f"it returned {_names(result)}", result)
    stated = result["usage"]
    if type(stated) is not dict and not isinstance(stated, Mapping):
        usage = None if isinstance(stated, _PLAIN) else read_usage({"usage": stated})
        if usage is None:
            raise StepResultError("usage_not_a_dict", f"it is {_kind(stated)}", result)
        return _counted(usage, result, _kind(stated))
    read, written = stated.get("input_tokens"), stated.get("output_tokens")
    if (
        (len(stated) == 2 and type(read) is int and type(written) is int)
        and 0 <= read <= MAX_AMOUNT
        and 0 <= written <= MAX_AMOUNT
    ):
        return StepUsage(read, written)
    _check_counts(stated, result)
    usage = read_usage({"usage": stated})
    if usage is None:
        raise StepResultError("no_token_counts", f"it has {_names(stated)}", result)
    return _counted(usage, result, _names(stated))


def _check_counts(stated: Mapping[object, object], result: object) -> None:
    """Refuse what is named a count and is none; what is not known may be ``None``, but not the two totals."""
    for name, value in stated.items():
        if not isinstance(name, str) or not name.endswith("_tokens"):
            continue
        if value is None and name not in _COUNTS:
            continue
        try:
            check_amount(name, value)
        except InvalidAmountError as error:
            raise StepResultError("bad_token_counts", str(error), result) from None


def _counted(usage: Usage, result: object, found: str) -> StepUsage:
    read, written = usage.all_input, usage.all_output
    if read is None or written is None:
        raise StepResultError("no_token_counts", f"it has {found}", result)
    return StepUsage(read, written, usage)


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _names(record: Mapping[object, object]) -> str:
    return f"only {', '.join(map(repr, list(record)[:10]))}" if record else "nothing"
