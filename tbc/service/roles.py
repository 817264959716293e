"""What a process serves: everything, the tier policy alone, everything but that, or what only looks."""

from __future__ import annotations

from typing import Final, Literal

from tbc.service.calls import Operation

__all__ = ["VIEWS", "Role", "serves"]

Role = Literal["both", "policy", "executor", "viewer"]
#: Served by whoever has the policy.
_POLICY: Final = "evaluatePolicy"
#: Served in every role.
_ALWAYS: Final = frozenset({"health", "metrics"})
#: The operations that read: nothing else is served beside the page.
VIEWS: Final = frozenset(
    {
        "report",
        "listAgents",
        "getAgent",
        "listEntries",
        "listRefusals",
        "streamEvents",
        "metrics",
        "health",
    }
)


def serves(role: Role, operation: Operation) -> bool:
    """Return whether a process in that role serves an operation."""
    if role == "both" or operation.name in _ALWAYS:
        return True
    if role == "viewer":
        return operation.name in VIEWS
    return (operation.name == _POLICY) == (role == "policy")
