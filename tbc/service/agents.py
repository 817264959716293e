"""Agents and their budgets over HTTP: terms, accounts, top-ups, confidence, and what all of it adds up to."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from tbc.contract import ROOT
from tbc.errors import UnknownAgentError
from tbc.service.answers import (
    AgentAnswer,
    AgentsAnswer,
    EntriesAnswer,
    RebalanceAnswer,
    ReportAnswer,
    agents_of,
    entry_object,
    rebalance_object,
    report_object,
)
from tbc.service.calls import Call, Operation
from tbc.service.refusals import MOST, RefusalsAnswer
from tbc.service.requests import (
    LEFT_OUT,
    AgentTerms,
    Confidence,
    EntriesQuery,
    ListQuery,
    NewAgent,
    Shortfalls,
    TopUp,
    money,
)
from tbc.service.values import AccountName, AgentName

__all__ = ["OPERATIONS"]


async def register(call: Call) -> AgentAnswer:
    """Register an agent, or find it as it was left."""
    terms: NewAgent = call.body
    await call.pool.run(
        partial(
            call.pool.manager.register_agent,
            terms.agent_name,
            terms.priority,
            terms.max_tokens,
            terms.min_reserve,
            terms.confidence_threshold,
            parent=terms.parent,
            replace=terms.replace,
            max_usd=money(terms, "max_usd", "max_nano_usd"),
            min_reserve_usd=money(terms, "min_reserve_usd", "min_reserve_nano_usd"),
            max_calls=terms.max_calls,
        )
    )
    return await _agent(call, terms.agent_name)


async def list_agents(call: Call) -> AgentsAnswer:
    """Return a page of the agents."""
    query: ListQuery = call.query
    statement = await call.pool.run(call.pool.manager.statement)
    names = [account.agent_name for account in statement.accounts["tokens"]]
    start = 1  # after the root
    if query.after is not None:
        if query.after not in names:
            raise UnknownAgentError(query.after)
        start = names.index(query.after) + 1
    page = slice(start, start + query.limit)
    cut = statement._replace(accounts={axis: each[page] for axis, each in statement.accounts.items()})
    agents = agents_of(cut)
    return {"agents": agents, "next": agents[-1]["agent_name"] if start + query.limit < len(names) else None}


async def get_agent(call: Call) -> AgentAnswer:
    """Return one agent."""
    return await _agent(call, call.path["agent_name"])


async def _agent(call: Call, agent_name: str) -> AgentAnswer:
    (agent,) = agents_of(await call.pool.run(partial(call.pool.manager.statement, agent_name)))
    return agent


async def update(call: Call) -> AgentAnswer:
    """Change an agent's terms."""
    terms: AgentTerms = call.body
    given: dict[str, Any] = {
        name: value
        for name, value in (
            ("priority", terms.priority),
            ("min_reserve", terms.min_reserve),
            ("min_reserve_usd", money(terms, "min_reserve_usd", "min_reserve_nano_usd")),
        )
        if value is not None
    }
    if terms.confidence_threshold is not LEFT_OUT:
        given["confidence_threshold"] = terms.confidence_threshold
    name = call.path["agent_name"]
    await call.pool.run(partial(call.pool.manager.update_agent, name, **given, key=call.key))
    return await _agent(call, name)


async def close(call: Call) -> AgentAnswer:
    """Close an account."""
    name = call.path["agent_name"]
    await call.pool.run(partial(call.pool.manager.close_agent, name, key=call.key))
    return await _agent(call, name)


async def top_up(call: Call) -> AgentAnswer:
    """Grant more."""
    more: TopUp = call.body
    name = call.path["agent_name"]
    await call.pool.run(
        partial(call.pool.manager.top_up, name, more.tokens, usd=money(more), calls=more.calls, key=call.key)
    )
    return await _agent(call, name)


async def report_confidence(call: Call) -> AgentAnswer:
    """Note, or forget, an agent's confidence."""
    name, confidence = call.path["agent_name"], call.body.confidence
    manager = call.pool.manager
    note = (
        partial(manager.reset_confidence, name)
        if confidence is None
        else partial(manager.report_confidence, name, confidence)
    )
    await call.pool.run(note)
    return await _agent(call, name)


async def rebalance(call: Call) -> RebalanceAnswer:
    """Clear the markets and move allocations for good."""
    asked: Shortfalls = call.body
    nano = asked.nano_usd
    usd: Any = money(asked) if nano is None or asked.usd is not None else _in_dollars(nano)
    done = await call.pool.run(
        partial(call.pool.manager.rebalance, asked.tokens, usd=usd, calls=asked.calls, key=call.key)
    )
    return rebalance_object(done)


def _in_dollars(nano: dict[str, int]) -> dict[str, Any]:
    from tbc.money import to_usd

    return {name: to_usd(amount) for name, amount in nano.items()}


async def report(call: Call) -> ReportAnswer:
    """Return everybody's accounts on every axis, as of one line of the journal."""
    manager = call.pool.manager
    return report_object(call.pool.name, manager.mode, await call.pool.run(manager.statement))


async def entries(call: Call) -> EntriesAnswer:
    """Return a page of the journal."""
    query: EntriesQuery = call.query
    lines, folded = await call.pool.entries(query.since, query.limit)
    found = [entry_object(line) for line in lines]
    return {
        "entries": found,
        "next": found[-1]["seq"] if len(found) == query.limit else None,
        "folded": folded or (not found and await call.pool.is_ahead(query.since)),
    }


async def refusals(call: Call) -> RefusalsAnswer:
    """Return the last refusals, oldest first."""
    return {"refusals": list(await call.pool.refusals())}


_ONE: Final = {"agent_name": AgentName}
_ACCOUNT: Final = {"agent_name": AccountName}

#: What is served here.
OPERATIONS: Final = (
    Operation(
        name="registerAgent",
        method="POST",
        path="/v1/agents",
        summary="Register an agent, or find it as it was left.",
        scope="admin",
        serve=register,
        answer=AgentAnswer,
        body=NewAgent,
        refusals=(402, 403, 404, 409),
    ),
    Operation(
        name="listAgents",
        method="GET",
        path="/v1/agents",
        summary="Agents in the order of registering, a page at a time.",
        scope="read",
        serve=list_agents,
        answer=AgentsAnswer,
        query=ListQuery,
        refusals=(404,),
    ),
    Operation(
        name="getAgent",
        method="GET",
        path="/v1/agents/{agent_name}",
        summary=f"One agent and its accounts; {ROOT} is the account at the top.",
        scope="read",
        serve=get_agent,
        answer=AgentAnswer,
        params=_ACCOUNT,
        refusals=(404,),
    ),
    Operation(
        name="updateAgent",
        method="PATCH",
        path="/v1/agents/{agent_name}",
        summary="Change an agent's priority, reserve or threshold.",
        scope="admin",
        serve=update,
        answer=AgentAnswer,
        body=AgentTerms,
        params=_ONE,
        keyed=True,
        refusals=(403, 404, 409),
    ),
    Operation(
        name="closeAgent",
        method="POST",
        path="/v1/agents/{agent_name}/close",
        summary="Close an account; what it did not spend returns to its parent.",
        scope="admin",
        serve=close,
        answer=AgentAnswer,
        params=_ONE,
        keyed=True,
        refusals=(403, 404, 409),
    ),
    Operation(
        name="topUp",
        method="POST",
        path="/v1/agents/{agent_name}/top-up",
        summary="Grant more, out of the parent's spare or anew at the top of a budget.",
        scope="admin",
        serve=top_up,
        answer=AgentAnswer,
        body=TopUp,
        params=_ACCOUNT,
        keyed=True,
        refusals=(402, 403, 404, 409),
    ),
    Operation(
        name="reportConfidence",
        method="POST",
        path="/v1/agents/{agent_name}/confidence",
        summary="Note how sure an agent is; at its threshold its gate closes.",
        scope="spend",
        serve=report_confidence,
        answer=AgentAnswer,
        body=Confidence,
        params=_ONE,
        refusals=(403, 404),
    ),
    Operation(
        name="rebalance",
        method="POST",
        path="/v1/rebalance",
        summary="Clear the markets for many shortfalls at once and move allocations for good.",
        scope="admin",
        serve=rebalance,
        answer=RebalanceAnswer,
        body=Shortfalls,
        keyed=True,
        refusals=(403, 404, 409),
    ),
    Operation(
        name="report",
        method="GET",
        path="/v1/report",
        summary="Everybody's accounts on every axis, as of one line of the journal.",
        scope="read",
        serve=report,
        answer=ReportAnswer,
    ),
    Operation(
        name="listEntries",
        method="GET",
        path="/v1/entries",
        summary="The journal after a line, a page at a time.",
        scope="read",
        serve=entries,
        answer=EntriesAnswer,
        query=EntriesQuery,
    ),
    Operation(
        name="listRefusals",
        method="GET",
        path="/v1/refusals",
        summary=f"The last refusals of holds that this server has answered with, {MOST} at most.",
        scope="read",
        serve=refusals,
        answer=RefusalsAnswer,
    ),
)
