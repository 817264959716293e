"""What a process serves: everything, the tier policy alone, or everything but that."""

from __future__ import annotations

from typing import Final, Literal

from tbc.service.calls import Operation

__all__ = ["Role", "serves"]

Role = Literal["both", "policy", "executor"]
#: Served by whoever has the policy.
_POLICY: Final = "evaluatePolicy"
#: Served in every role.
_ALWAYS: Final = frozenset({"health", "metrics"})


def serves(role: Role, operation: Operation) -> bool:
    """Return whether a process in that role serves an operation."""
    if role == "both" or operation.name in _ALWAYS:
        return True
    return (operation.name == _POLICY) == (role == "policy")
