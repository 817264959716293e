"""The policies that come with the package."""

from __future__ import annotations

import functools

from tbc.policy.choose import Policy
from tbc.policy.conditions import Condition
from tbc.policy.rules import Rule, Tier

__all__ = ["default_policy", "v1_policy"]


def _rule(reason: str, tier: str | None, *when: str) -> Rule:
    return Rule(when=map(Condition.parse, when), tier=tier, hard_stop=tier is None, reason=reason)


@functools.cache
def default_policy() -> Policy:
    """Return the default policy.

    Its rules look at the budget alone, so their reasons name the budget alone. SLA and affordability are kept
    afterwards, by what each tier takes and costs.
    """
    return Policy(
        name="default",
        tiers=[
            Tier.of_model("cheap", "gpt-4.1-nano", 80),
            Tier.of_model("standard", "gpt-4.1-mini", 200),
            Tier.of_model("premium", "gpt-4.1", 450),
        ],
        rules=[
            _rule("budget_exhausted", None, "budget_usd <= 0"),
            _rule("budget_exhausted", None, "budget_share < 0.10"),
            _rule("summarize_forced_cheap", "cheap", "step == summarize"),
            _rule("validate_cheap", "cheap", "step == validate"),
            _rule("planning_premium_allowed", "premium", "step == plan", "budget_share >= 0.40"),
            _rule("planning_standard_budget_constrained", "standard", "step == plan", "budget_share >= 0.25"),
            _rule("execution_standard", "standard", "step == execute", "budget_share >= 0.40"),
            _rule("execution_cheap_budget_constrained", "cheap", "step == execute", "budget_share >= 0.15"),
            _rule("search_standard", "standard", "step == search", "budget_share >= 0.30"),
            _rule("search_cheap_budget_constrained", "cheap", "step == search", "budget_share >= 0.15"),
            _rule("budget_protection_cheap", "cheap", "budget_share < 0.40"),
            _rule("default_allow", "standard"),
        ],
    )


@functools.cache
def v1_policy() -> Policy:
    """Return the old table, exactly as it was, with what is wrong with it listed in `Policy.findings`."""
    return Policy(
        name="v1",
        degrade=False,
        on_findings="list",
        tiers=[
            Tier("cheap", 80, cost_usd="0.005"),
            Tier("standard", 200, cost_usd="0.015"),
            Tier("premium", 450, cost_usd="0.030"),
        ],
        rules=[
            _rule("budget_exhausted", None, "budget_share < 0.10"),
            _rule("summarize_forced_cheap", "cheap", "step == summarize"),
            _rule(
                "planning_premium_allowed",
                "premium",
                "step == plan",
                "sla_ms >= 450",
                "budget_share >= 0.40",
            ),
            _rule(
                "planning_standard_sla_constrained",
                "standard",
                "step == plan",
                "sla_ms >= 200",
                "budget_share >= 0.25",
            ),
            _rule(
                "execution_standard", "standard", "step == execute", "sla_ms >= 200", "budget_share >= 0.40"
            ),
            _rule(
                "execution_cheap_sla_constrained",
                "cheap",
                "step == execute",
                "sla_ms >= 80",
                "budget_share >= 0.15",
            ),
            _rule("budget_protection_standard", "standard", "budget_share < 0.40", "sla_ms >= 200"),
            _rule("budget_protection_cheap", "cheap", "budget_share < 0.40", "sla_ms >= 80"),
            _rule("latency_sla_unachievable", None, "budget_share < 0.40"),
            _rule("default_allow", "standard"),
        ],
    )
