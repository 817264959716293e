"""The tier policy: which class of model a step is given, by what is left and how fast it must be.

A policy is data: tiers, from the cheapest to the dearest, and rules, of which the first that matches
decides. It is checked when it is made. `evaluate` is a pure function; it moves no budget and calls nothing.
docs/policy.md shows how it is used.

- `DEFAULT`: thresholds on the share of the budget that is left, for the steps plan, search, execute,
  summarize and validate. It needs the prices of its models: the optional package ``genai-prices``.
- `V1`: the table that these thresholds come from, exactly as it was, with its findings listed.

Examples
--------
>>> from tbc.policy import V1
>>> choice = evaluate(V1, "plan", remaining=10**9, total=2 * 10**9, sla_ms=300)
>>> choice.tier, choice.reason
('standard', 'planning_standard_sla_constrained: step == plan and sla_ms >= 200 and budget_share >= 0.25 \
(the SLA is 300 ms, $1.00 of $2.00 is left).')
>>> sorted({finding.kind for finding in V1.findings})
['dearer_for_less', 'slower_for_tighter', 'too_slow', 'unaffordable']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tbc.policy.check import Finding
from tbc.policy.choose import Policy, TierChoice, evaluate
from tbc.policy.conditions import Condition, Situation
from tbc.policy.file import load_policy, parse_policy
from tbc.policy.latency import LatencyHistory
from tbc.policy.rules import Rule, Tier

if TYPE_CHECKING:
    DEFAULT: Policy
    V1: Policy

__all__ = [
    "Condition",
    "DEFAULT",
    "Finding",
    "LatencyHistory",
    "Policy",
    "Rule",
    "Situation",
    "Tier",
    "TierChoice",
    "V1",
    "evaluate",
    "load_policy",
    "parse_policy",
]


def __getattr__(name: str) -> Policy:
    # Why later: the default policy needs prices, which are looked up when it is made.
    from tbc.policy.presets import default_policy, v1_policy

    if name == "DEFAULT":
        return default_policy()
    if name == "V1":
        return v1_policy()
    raise AttributeError(f"module 'tbc.policy' has no attribute {name!r}")
