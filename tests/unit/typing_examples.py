"""Ordinary use that a strict type checker must accept, with the types it must infer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import tbc

manager = tbc.BudgetManager(max_tokens=10_000)
contract = manager.register_agent("writer", priority=9, max_tokens=500, min_reserve=50)
assert_type(contract, tbc.BudgetContract)


@manager.govern("writer")
def call(prompt: str, *, temperature: float = 0.0) -> str:
    return prompt


@manager.govern("writer", cap_kwarg="max_tokens", max_output_tokens=100)
async def acall(prompt: str, max_tokens: int = 0) -> int:
    return max_tokens


@manager.govern("writer")
def stream(prompt: str) -> Iterator[str]:
    yield prompt


@manager.govern("writer")
async def astream(prompt: str) -> AsyncIterator[str]:
    yield prompt


async def use() -> None:
    assert_type(call("x", temperature=1.0), str)
    assert_type(await acall("x"), int)
    assert_type(stream("x"), Iterator[str])
    async for chunk in astream("x"):
        assert_type(chunk, str)
    async with manager.ahold("writer", 10) as hold:
        assert_type(hold, tbc.Hold)
        assert_type(await hold.asettle(tokens=3), tbc.Settlement)
    assert_type(await manager.ahold("writer", 10), tbc.Hold)
    with manager.hold("writer", 10) as held:
        assert_type(held.settle(tokens=3), tbc.Settlement)
    assert_type(manager.decide("writer", 5), tbc.Decision)
    assert_type(manager.remaining("writer"), int | None)
    assert_type(manager.accounts(), tuple[tbc.Account, ...])
    assert_type(manager.rebalance({"writer": 5}), tbc.Rebalance)
    assert_type(tbc.current_hold(), tbc.Hold)
