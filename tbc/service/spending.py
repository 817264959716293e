"""Holds over HTTP: set aside before a call, ended once after it; and what is spent without one."""

from __future__ import annotations

from functools import partial
from typing import Final

from tbc.errors import HoldEndedError, OverrunError
from tbc.service.answers import (
    DecisionAnswer,
    Done,
    HoldAnswer,
    SettlementAnswer,
    hold_object,
    settled_object,
)
from tbc.service.calls import Call, Operation
from tbc.service.requests import Asked, Extension, NewHold, NewUsage, Settling, money
from tbc.service.values import AgentName, HoldNumber
from tbc.wire import decision_object

__all__ = ["OPERATIONS"]

_DONE: Final[Done] = {"done": True}


async def open_hold(call: Call) -> HoldAnswer:
    """Set an amount aside."""
    asked: NewHold = call.body
    pool = call.pool
    async with pool.room(call.service.limits.open_holds, call.key):
        hold = await pool.manager.ahold(
            asked.agent_name,
            asked.tokens,
            usd=money(asked),
            calls=asked.calls,
            model=asked.model,
            expires_s=asked.expires_s,
            key=call.key,
            operation=asked.operation,
            at_least=asked.at_least,
        )
        number = pool.number(hold)
    if hold.decision is not None and hold.decision.status.refuses:  # audit mode: it would have been refused
        pool.metrics.refusals.add(hold.decision, call.key)
    return hold_object(hold, number)


async def get_hold(call: Call) -> HoldAnswer:
    """Return a hold as it stands."""
    number = call.path["hold_id"]
    return hold_object(await call.pool.as_it_stands(number), number)


async def settle(call: Call) -> SettlementAnswer:
    """Turn a hold into spending by the actual usage."""
    used: Settling = call.body
    number = call.path["hold_id"]
    hold = await call.pool.find(number)
    try:
        settlement = await hold.asettle(
            used.tokens,
            usd=money(used),
            calls=used.calls,
            usage=None if used.usage is None else used.usage.usage(),
            estimated=used.estimated,
        )
    except HoldEndedError as error:
        raise call.pool.under(number, error) from None
    return settled_object(settlement, number)


async def void(call: Call) -> SettlementAnswer:
    """End a hold without spending."""
    number = call.path["hold_id"]
    hold = await call.pool.find(number)
    try:
        settlement = await hold.avoid()
    except HoldEndedError as error:
        raise call.pool.under(number, error) from None
    return settled_object(settlement, number)


async def extend(call: Call) -> HoldAnswer:
    """Set more aside, or for longer."""
    more: Extension = call.body
    number = call.path["hold_id"]
    hold = await call.pool.find(number)
    try:
        lent = await hold.aextend(more.tokens, usd=money(more), expires_s=more.expires_s, key=call.key)
    except HoldEndedError as error:
        raise call.pool.under(number, error) from None
    call.pool.metrics.moved(lent)
    return hold_object(hold, number)


async def decide(call: Call) -> DecisionAnswer:
    """Say what a hold would be answered with."""
    asked: Asked = call.body
    decision = await call.pool.run(
        partial(
            call.pool.manager.decide,
            asked.agent_name,
            asked.tokens,
            usd=money(asked),
            calls=asked.calls,
            model=asked.model,
        )
    )
    return decision_object(decision)  # type: ignore[return-value]


async def record_usage(call: Call) -> Done:
    """Book what was spent without a hold."""
    used: NewUsage = call.body
    try:
        settlement = await call.pool.run(
            partial(
                call.pool.manager.record_usage,
                call.path["agent_name"],
                used.tokens,
                used.note,
                used.confidence,
                usd=money(used),
                calls=used.calls,
                model=used.model,
                usage=None if used.usage is None else used.usage.usage(),
                key=call.key,
            )
        )
    except OverrunError as error:  # it is booked all the same
        if error.settlement is not None:
            call.pool.metrics.ended(error.settlement)
        raise
    call.pool.metrics.ended(settlement)
    return _DONE


_HOLD: Final = {"hold_id": HoldNumber}

#: What is served here; what is asked most comes first.
OPERATIONS: Final = (
    Operation(
        name="openHold",
        method="POST",
        path="/v1/holds",
        summary="Set an amount aside before a call; short of it, borrow what the market has to spare.",
        scope="spend",
        serve=open_hold,
        answer=HoldAnswer,
        body=NewHold,
        keyed=True,
        refusals=(402, 403, 404, 409, 429),
    ),
    Operation(
        name="settleHold",
        method="POST",
        path="/v1/holds/{hold_id}/settle",
        summary="Turn a hold into spending by the actual usage; the rest goes back. Safe to repeat.",
        scope="spend",
        serve=settle,
        answer=SettlementAnswer,
        body=Settling,
        params=_HOLD,
        refusals=(404, 409),
    ),
    Operation(
        name="voidHold",
        method="POST",
        path="/v1/holds/{hold_id}/void",
        summary="End a hold without spending: nothing was sent. Safe to repeat.",
        scope="spend",
        serve=void,
        answer=SettlementAnswer,
        params=_HOLD,
        refusals=(404, 409),
    ),
    Operation(
        name="extendHold",
        method="POST",
        path="/v1/holds/{hold_id}/extend",
        summary="Set more aside, or let the hold live longer.",
        scope="spend",
        serve=extend,
        answer=HoldAnswer,
        body=Extension,
        params=_HOLD,
        keyed=True,
        refusals=(402, 403, 404, 409),
    ),
    Operation(
        name="getHold",
        method="GET",
        path="/v1/holds/{hold_id}",
        summary="A hold as it stands.",
        scope="read",
        serve=get_hold,
        answer=HoldAnswer,
        params=_HOLD,
        refusals=(404,),
    ),
    Operation(
        name="decide",
        method="POST",
        path="/v1/decide",
        summary="What a hold would be answered with, and why; moves nothing.",
        scope="read",
        serve=decide,
        answer=DecisionAnswer,
        body=Asked,
        refusals=(403, 404),
    ),
    Operation(
        name="recordUsage",
        method="POST",
        path="/v1/agents/{agent_name}/usage",
        summary="Book what was spent without a hold. 402 says that it is booked and owed in part.",
        scope="spend",
        serve=record_usage,
        answer=Done,
        body=NewUsage,
        params={"agent_name": AgentName},
        keyed=True,
        refusals=(402, 403, 404, 409),
    ),
)
