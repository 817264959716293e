"""What the nine tools do with the books. Their arguments have been checked.

Each is one operation on the books of a manager: with a store it runs in one transaction, so that what it
answers is how the books stood when it was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from tbc.axes import TOKENS
from tbc.contract import ROOT, check_fraction
from tbc.errors import InvalidRequestError
from tbc.mcp.payloads import account, agent_object, covered_by, hold_object, moved
from tbc.wire import decision_object, settlement_object

if TYPE_CHECKING:
    from tbc.decision import Settlement
    from tbc.manager import BudgetManager
    from tbc.usage import Usage

__all__ = [
    "decide",
    "get_budget_snapshot",
    "get_remaining_budget",
    "hold",
    "record_spend",
    "register_agent",
    "request_reallocation",
    "settle",
    "void",
]

#: Checked arguments, with the defaults of those that were left out.
Given: TypeAlias = Mapping[str, Any]


# -- the five of every budget -----------------------------------------------------------------------------


def register_agent(manager: BudgetManager, given: Given) -> dict[str, Any]:
    """Sign a contract, or find the account as it was left."""
    manager.register_agent(given["agent_id"], **_but_for_the_agent(given))
    return {"agent": agent_object(manager, given["agent_id"])}


def record_spend(manager: BudgetManager, given: Given) -> dict[str, Any]:
    """Book what was spent without a hold; what is short comes from the market."""
    name, total = given["agent_id"], given["input_tokens"] + given["output_tokens"]
    if not total and given["usd"] is None:
        raise InvalidRequestError(
            [("input_tokens", "nothing was spent: input_tokens + output_tokens must be > 0")]
        )
    settlement = manager.record_usage(
        name,
        note=given["task"] or "usage",
        confidence=given["confidence"],
        usd=given["usd"],
        model=given["model"],
        usage=_usage(given),
        key=given["key"],
    )
    transfers = covered_by(settlement)
    return {
        "agent_id": name,
        "input_tokens": given["input_tokens"],
        "output_tokens": given["output_tokens"],
        "total_tokens": total,
        "task": given["task"],
        "reallocation_triggered": bool(transfers),
        **moved(manager, name, transfers),
        "agent_state": agent_object(manager, name),
    }


def get_remaining_budget(manager: BudgetManager, given: Given) -> dict[str, Any]:
    """Read one account."""
    return {"agent": agent_object(manager, given["agent_id"])}


def request_reallocation(manager: BudgetManager, given: Given) -> dict[str, Any]:
    """Move tokens to an agent for good, as many as there are."""
    name, needed = given["agent_id"], given["tokens_needed"]
    done = manager.rebalance({name: needed}, key=given["key"])
    parties = moved(manager, name, done.transfers)
    unmet = done.unmet.get(name, 0)
    needy = account(manager, name)
    return {
        "agent_id": name,
        "tokens_requested": needed,
        "tokens_recovered": sum(each["tokens_received"] for each in parties["receivers"]),
        "shortfall_remaining": unmet,
        "fully_covered": not unmet,
        **parties,
        "rationale": [_because(each, name, needy.priority) for each in parties["donors"]],
        "agent_state": agent_object(manager, name),
    }


def _because(donor: Mapping[str, Any], needy: str, priority: int) -> str:
    name, own = donor["agent_id"], donor["priority"]
    who = "The treasury" if name == ROOT else f"{name!r} (priority {own})"
    return f"{who} had {donor['tokens_given']:,} tokens to spare for {needy!r} (priority {priority})."


def get_budget_snapshot(manager: BudgetManager, given: Given) -> dict[str, Any]:
    """Read every account."""
    names = [each.agent_name for each in manager.accounts(TOKENS) if each.agent_name != ROOT]
    agents = [agent_object(manager, name) for name in names]
    treasury = agent_object(manager, ROOT)

    def total(what: str) -> int:
        return sum(each[what] or 0 for each in (treasury, *agents))

    return {
        "agents": agents,
        "agent_count": len(agents),
        "treasury": treasury,
        "total_allocated": total("allocated"),
        "total_consumed": total("consumed"),
        "total_remaining": total("remaining"),
    }


# -- before and after a call -----------------------------------------------------------------------------


def hold(manager: BudgetManager, given: Given) -> dict[str, Any]:
    """Set an amount aside before a call."""
    granted = manager.hold(given["agent_id"], **_but_for_the_agent(given))
    return {
        "hold": hold_object(manager, granted),
        "decision": None if granted.decision is None else decision_object(granted.decision),
        "agent_state": agent_object(manager, granted.agent_name),
    }


def settle(manager: BudgetManager, given: Given) -> dict[str, Any]:
    """End a hold by the actual usage."""
    confidence = given["confidence"]
    if confidence is not None:
        check_fraction("confidence", confidence)
    usage = None if given["input_tokens"] is None and given["output_tokens"] is None else _usage(given)
    settlement = manager.find_hold(given["hold_id"]).settle(
        given["tokens"], usd=given["usd"], calls=given["calls"], usage=usage, estimated=given["estimated"]
    )
    ended = account(manager, settlement.agent_name)
    if confidence is not None and not settlement.repeated and not ended.closed:
        manager.report_confidence(settlement.agent_name, confidence)
    return _ended(manager, settlement)


def void(manager: BudgetManager, given: Given) -> dict[str, Any]:
    """End a hold without spending."""
    return _ended(manager, manager.find_hold(given["hold_id"]).void())


def _ended(manager: BudgetManager, settlement: Settlement) -> dict[str, Any]:
    return {
        "settlement": settlement_object(settlement),
        "agent_state": agent_object(manager, settlement.agent_name),
    }


def decide(manager: BudgetManager, given: Given) -> dict[str, Any]:
    """Say what a hold would meet; moves nothing."""
    return {"decision": decision_object(manager.decide(given["agent_id"], **_but_for_the_agent(given)))}


def _usage(given: Given) -> Usage:
    from tbc.usage import Usage

    return Usage(input_tokens=given["input_tokens"], output_tokens=given["output_tokens"])


def _but_for_the_agent(given: Given) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "agent_id"}
