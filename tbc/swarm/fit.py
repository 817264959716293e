"""What an operator learns from past runs: the size of outputs, and the terms of contracts.

Everything here is fitted on *training* runs only and then laid over others. Amounts are whole tokens; a
quantile is one of the recorded values (the smallest that at least that share does not exceed).

The contract of a *late role* (the one that writes the answer, at the end, when a shared pool is empty) keeps
a reserve that grows with the run:

``reserve = min(usual, largest input seen in this run so far + growth) + the role's p90 output``

*usual* is a quantile of the inputs that the role needed in the training runs; *growth* is what its input had
at most, in any of them, above the largest input before it. The second term keeps short runs, whose budget is
small, from reserving what only long ones need. Which quantile is taken is chosen in `tbc.swarm.choose`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from attrs import field, frozen

from tbc.swarm.traces import Run

__all__ = [
    "LATE_ROLES",
    "OUTPUT_QUANTILE",
    "PRIORITIES",
    "Fit",
    "LateNeed",
    "RoleFit",
    "fit_runs",
    "quantile",
]

#: Outputs are estimated by this quantile of the role's outputs.
OUTPUT_QUANTILE = 0.9
#: Roles that come last and must not find the pool empty, by kind.
LATE_ROLES: Mapping[str, str] = {"research": "finalize"}
_TOP_PRIORITY = 4
#: Priorities, laid on (no trace has any): four classes. A late role is in the highest; what is not named
#: here is in the lowest.
PRIORITIES: Mapping[tuple[str, str], int] = {
    ("research", "finalize"): _TOP_PRIORITY,
    ("social", "impostor"): 3,
    ("research", "planner"): 2,
    ("research", "summarize"): 2,
    ("coding", "urgent coder"): 3,
    ("coding", "coder"): 2,
}


@frozen
class LateNeed:
    """How much to keep for a late role."""

    #: Input that the role usually needs at most, in tokens: the `quantile` of its inputs.
    usual_input: int
    #: The largest of its inputs, in tokens.
    largest_input: int
    #: Its input above the largest input before it, at most, in tokens; not below 0.
    growth: int
    #: Output that the role usually needs at most, in tokens.
    output: int
    #: Which quantile of its inputs counts as usual.
    quantile: float = OUTPUT_QUANTILE

    @property
    def most(self) -> int:
        """What covers any call of the role that was seen, in tokens."""
        return self.largest_input + self.output

    def reserve(self, largest_input: int) -> int:
        """Return the reserve, in tokens, of a run whose largest input so far is `largest_input`."""
        return min(self.usual_input, largest_input + self.growth) + self.output


@frozen
class RoleFit:
    """What is known about a role."""

    #: How important it is; laid on.
    priority: int
    #: `OUTPUT_QUANTILE` of its outputs, in tokens.
    output: int
    #: Mean tokens of one agent in one run that has the role.
    demand: int
    #: How much to keep for it if it is a late role.
    late: LateNeed | None = None


@frozen
class Fit:
    """What was learned from the training runs: by kind and role, in order of first appearance."""

    roles: Mapping[tuple[str, str], RoleFit] = field(factory=dict)

    def priority(self, kind: str, role: str) -> int:
        """Return the priority of a role; 1 if it was never seen."""
        known = self.roles.get((kind, role))
        return PRIORITIES.get((kind, role), 1) if known is None else known.priority

    @property
    def top(self) -> int:
        """The highest priority among the roles."""
        return max(known.priority for known in self.roles.values())

    def output(self, kind: str, role: str, output_cap: int) -> int:
        """Return what a call of this role is expected to write: its p90, or the cap if never seen."""
        known = self.roles.get((kind, role))
        return output_cap if known is None else min(known.output, output_cap)

    def late_role(self, kind: str) -> str | None:
        """Return the kind's late role, if it has one that was seen."""
        for (of_kind, role), known in self.roles.items():
            if of_kind == kind and known.late is not None:
                return role
        return None


def quantile(values: Iterable[int], share: float) -> int:
    """Return the smallest of `values` that at least `share` of them do not exceed.

    Examples
    --------
    >>> quantile([10, 40, 20, 30], 0.5), quantile([10, 40, 20, 30], 0.9)
    (20, 40)
    """
    ordered = sorted(values)
    return ordered[min(len(ordered), max(1, math.ceil(Fraction(str(share)) * len(ordered)))) - 1]


def fit_runs(
    runs: Sequence[Run],
    *,
    late_roles: Mapping[str, str] = LATE_ROLES,
    late_quantile: float = OUTPUT_QUANTILE,
) -> Fit:
    """Learn from training runs.

    Parameters
    ----------
    runs : sequence of Run
        The training runs; of one kind or of several.
    late_roles : mapping of str to str
        Kind → the role that comes last and is to be protected.
    late_quantile : float
        Which quantile of a late role's inputs is its usual input.

    Returns
    -------
    Fit
        One `RoleFit` for every kind and role in the runs.
    """
    outputs: dict[tuple[str, str], list[int]] = {}
    demands: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        used: dict[str, int] = {}
        for call in run.calls:
            outputs.setdefault((run.kind, call.role), []).append(call.output_tokens)
            used[call.agent] = used.get(call.agent, 0) + call.tokens
        for agent, role in run.roles.items():
            demands.setdefault((run.kind, role), []).append(used[agent])
    fitted: dict[tuple[str, str], RoleFit] = {}
    for (kind, role), sizes in outputs.items():
        output = quantile(sizes, OUTPUT_QUANTILE)
        is_late = late_roles.get(kind) == role
        fitted[kind, role] = RoleFit(
            priority=_TOP_PRIORITY if is_late else PRIORITIES.get((kind, role), 1),
            output=output,
            demand=sum(demands[kind, role]) // len(demands[kind, role]),
            late=_late_need(runs, kind, role, output, late_quantile) if is_late else None,
        )
    return Fit(fitted)


def _late_need(runs: Sequence[Run], kind: str, role: str, output: int, late_quantile: float) -> LateNeed:
    inputs: list[int] = []
    growth = 0
    for run in runs:
        if run.kind != kind:
            continue
        largest = 0
        for call in run.calls:
            if call.role == role:
                inputs.append(call.input_tokens)
                if largest:
                    growth = max(growth, call.input_tokens - largest)
            else:
                largest = max(largest, call.input_tokens)
    return LateNeed(quantile(inputs, late_quantile), max(inputs), growth, output, late_quantile)
