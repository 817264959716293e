"""Short random histories of one pool: a strategy, and a player that shrugs off refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

import tbc
from tbc.clock import ManualClock
from tbc.testing import amounts, trees
from tbc.testing.strategies import NAMES

_names = st.sampled_from(NAMES[:5])
_numbers = st.integers(0, 9)
_tokens = amounts(60, edges=False)

#: One step: what, and with what. Holds are named by a number, see `Player.find`.
steps: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    st.tuples(st.just("hold"), _names, _tokens),
    st.tuples(st.just("hold"), _names, _tokens),
    st.tuples(st.just("settle"), _numbers, _tokens),
    st.tuples(st.just("settle"), _numbers, _tokens),
    st.tuples(st.just("void"), _numbers),
    st.tuples(st.just("extend"), _numbers, _tokens),
    st.tuples(st.just("usage"), _names, _tokens),
    st.tuples(st.just("rebalance"), st.dictionaries(_names, _tokens, min_size=1, max_size=3)),
    st.tuples(st.just("confidence"), _names, st.sampled_from([0.4, 0.95])),
    st.tuples(st.just("advance"), st.sampled_from([1.0, 30.0])),
    st.tuples(st.just("close"), _names),
)
histories = st.one_of(st.lists(steps, max_size=8), st.lists(steps, min_size=15, max_size=25))
forests = trees(5, 7, largest=60)
caps = st.sampled_from([None, 100, 200])


class Player:
    """A manager, its clock, and what was granted."""

    def __init__(
        self, tree: list[tuple[tbc.BudgetContract, str | None]], cap: int | None, mode: str = "enforce"
    ) -> None:
        self.clock = ManualClock()
        self.manager = tbc.BudgetManager(max_tokens=cap, mode=mode, clock=self.clock)  # type: ignore[arg-type]
        self.holds: list[tbc.Hold] = []
        for contract, parent in tree:
            try:
                self.manager.register_agent(
                    contract.agent_name,
                    contract.priority,
                    contract.max_tokens,
                    contract.min_reserve,
                    contract.confidence_threshold,
                    parent=parent,
                )
            except tbc.TBCError:
                continue  # it does not fit, or its parent did not

    def find(self, number: int) -> tbc.Hold | None:
        """Return the hold of that number, counted from the last."""
        return self.holds[-1 - number % len(self.holds)] if self.holds else None

    def owner(self, step: tuple[Any, ...]) -> str | None:
        """Return whose own operation a step is; call it before the step is done."""
        if step[0] in ("rebalance", "confidence", "advance"):
            return None
        if step[0] in ("settle", "void", "extend"):
            hold = self.find(step[1])
            return None if hold is None else hold.agent_name
        return str(step[1])

    def step(self, what: str, *given: Any) -> Any:
        """Do one step; return the answer, or the error if it was refused."""
        try:
            return self._do(what, *given)
        except tbc.TBCError as error:
            return error

    def play(self, history: list[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Do all steps; yield each with its answer, after it was done."""
        for step in history:
            yield step, self.step(*step)

    def _do(self, what: str, *given: Any) -> Any:
        manager = self.manager
        match what, given:
            case "hold", (name, tokens):
                hold = manager.hold(name, tokens, expires_s=20)
                self.holds.append(hold)
                return hold
            case (("settle" | "void" | "extend"), (number, *rest)):
                hold = self.find(number)
                return None if hold is None else getattr(hold, what)(*rest)
            case "usage", (name, tokens):
                return manager.record_usage(name, tokens)
            case "rebalance", (shortfalls,):
                return manager.rebalance(shortfalls)
            case "confidence", (name, confidence):
                return manager.report_confidence(name, confidence)
            case "advance", (seconds,):
                return self.clock.advance(seconds)
            case "close", (name,):
                if any(hold.agent_name == name and hold.state == "open" for hold in self.holds):
                    return None  # a hold of nobody is of no use to these tests
                return manager.close_agent(name)
        raise AssertionError(f"no such step: {what}")
