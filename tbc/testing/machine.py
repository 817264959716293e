"""`BudgetMachine`: a rule machine that drives a manager and the model side by side.

After every step it compares all accounts, every hold, every decision, settlement and refusal, and checks the
promises (`check_books`, `check_step`). Subclass it for a manager of your own: other caps, another mode, a
subclass of yours, another store.

.. code-block:: python

    from hypothesis import settings
    from tbc.testing import BudgetMachine

    class MyMachine(BudgetMachine):
        def make_manager(self, clock):
            return MyManager(max_tokens=150, clock=clock)

    class TestMyManager(MyMachine.TestCase):
        settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

A failing run prints as a short program.

Examples
--------
>>> from hypothesis import settings
>>> from hypothesis.stateful import run_state_machine_as_test
>>> class ObservingMachine(BudgetMachine):
...     def make_manager(self, clock):
...         return BudgetManager(mode="audit", clock=clock)
>>> few = settings(max_examples=2, stateful_step_count=5, deadline=None, database=None)
>>> run_state_machine_as_test(ObservingMachine, settings=few)
"""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, multiple, precondition, rule

from tbc.clock import Clock
from tbc.contract import MAX_AMOUNT
from tbc.errors import NotSent
from tbc.manager import BudgetManager
from tbc.testing.agents_machine import KEYS, MAYBE_A_KEY, AgentsMachine
from tbc.testing.bad_inputs import BAD_HOLD_INPUTS, BAD_INPUTS
from tbc.testing.invariants import require
from tbc.testing.side_by_side import TwinHold
from tbc.testing.strategies import amounts

__all__ = ["BudgetMachine"]


class BudgetMachine(AgentsMachine):
    """Random histories of one pool, compared with the model after every step.

    Override `make_manager`; override Hypothesis's ``teardown`` to close what it opened.

    Attributes
    ----------
    clock : ManualClock
        The time; only the machine moves it.
    manager : BudgetManager
        The real one.
    pair : SideBySide
        Both sides.
    """

    agents = AgentsMachine.agents
    holds: Bundle[TwinHold] = Bundle("holds")

    def make_manager(self, clock: Clock) -> BudgetManager:
        """Return a new manager without agents, reading the time from `clock`.

        Any manager-wide cap and any mode will do; the model reads both from the manager.
        """
        return BudgetManager(max_tokens=300, clock=clock)

    # -- holds -----------------------------------------------------------------------------------------

    @rule(target=holds, name=agents, tokens=amounts(80))
    def hold(self, name: str, tokens: int) -> MultipleResults[TwinHold]:
        """Ask what a hold would meet, then for the hold."""
        return self._hold(name, tokens)

    @rule(target=holds, name=agents, more=st.integers(-1, 1), reach=st.booleans())
    def hold_at_the_edge(self, name: str, more: int, reach: bool) -> MultipleResults[TwinHold]:
        """Hold what it just has, or can just reach, and one token beside that."""
        account = self.pair.model.accounts[name]
        can_have = self.pair.model.remaining(name) if account["capped"] else 0
        if reach and account["capped"]:
            can_have += sum(self.pair.model.reach(name))
        return self._hold(name, min(max(0, can_have + more), MAX_AMOUNT))

    @rule(target=holds, name=agents, tokens=amounts(150), at_least=st.integers(0, 60))
    def hold_partly(self, name: str, tokens: int, at_least: int) -> MultipleResults[TwinHold]:
        """Hold, content with less."""
        return self._hold(name, tokens, at_least=at_least)

    @rule(target=holds, name=agents, tokens=amounts(40), expires_s=st.sampled_from([2.0, 5.0, 20.0]))
    def hold_briefly(self, name: str, tokens: int, expires_s: float) -> MultipleResults[TwinHold]:
        """Hold for some seconds."""
        return self._hold(name, tokens, expires_s=expires_s)

    @rule(target=holds, name=agents, tokens=amounts(120), key=KEYS)
    def hold_under_a_key(self, name: str, tokens: int, key: str) -> MultipleResults[TwinHold]:
        """Hold under a key, which may have been used for something else."""
        return self._hold(name, tokens, key=key)

    def _hold(self, name: str, tokens: int, **how: Any) -> MultipleResults[TwinHold]:
        self.decide(name, tokens)
        known = len(self.pair.holds)
        answers = self._once(
            how.get("key"),
            name,
            lambda: self.manager.hold(name, tokens, **how),
            lambda: self.pair.model.hold(name, tokens, **how),
            f"hold {tokens} for {name}, {how}",
        )
        self.pair.grant(name, answers)
        return multiple(*self.pair.holds[known:])

    def decide(self, name: str, tokens: int) -> None:
        """Compare the dry run; it moves nothing."""
        answers = self.pair.read(
            lambda: self.manager.decide(name, tokens),
            lambda: self.pair.model.decide(name, tokens),
            f"decide {tokens} for {name}",
        )
        if answers is not None:
            self.pair.compare_decisions(*answers)

    @rule(twin=holds, share=st.floats(0, 1))
    def settle_below(self, twin: TwinHold, share: float) -> None:
        """Settle, also late, also again, with what was held or less."""
        self._settle(twin, min(int(twin.real.tokens * share), twin.real.tokens))

    @rule(twin=holds, excess=amounts(80))
    def settle_above(self, twin: TwinHold, excess: int) -> None:
        """Settle with more."""
        self._settle(twin, min(twin.real.tokens + excess, MAX_AMOUNT))

    @rule(twin=holds)
    def settle_again(self, twin: TwinHold) -> None:
        """Repeat a settle as it was."""
        if twin.real.settlement is not None:
            self._settle(twin, twin.real.settlement.tokens)

    def _settle(self, twin: TwinHold, tokens: int) -> None:
        answers = self.pair.do(
            twin.real.agent_name,
            lambda: twin.real.settle(tokens),
            lambda: self.pair.model.settle(twin.number, tokens),
            f"settle {twin.real!r} with {tokens}",
        )
        if answers is not None:
            self.pair.compare_settlements(*answers)

    @rule(twin=holds)
    def void(self, twin: TwinHold) -> None:
        """Void, also again."""
        answers = self.pair.do(
            twin.real.agent_name,
            twin.real.void,
            lambda: self.pair.model.void(twin.number),
            f"void {twin.real!r}",
        )
        if answers is not None:
            self.pair.compare_settlements(*answers)

    @rule(twin=holds, recorded=st.integers(0, 30), how=st.sampled_from(["clean", "error", "not_sent"]))
    def leave_block(self, twin: TwinHold, recorded: int, how: str) -> None:
        """Leave the block of a hold without a settle."""
        errors = {"error": RuntimeError(), "not_sent": NotSent()}

        def leave() -> None:
            with contextlib.suppress(RuntimeError, NotSent), twin.real:
                twin.real.record(recorded)
                if how in errors:
                    raise errors[how]

        self.pair.do(
            twin.real.agent_name,
            leave,
            lambda: self.pair.model.leave(twin.number, how, recorded),
            f"leave {twin.real!r} by {how}, {recorded} recorded",
        )

    @rule(twin=holds, tokens=amounts(60), expires_s=st.sampled_from([None, None, 3.0, 900.0]))
    def extend(self, twin: TwinHold, tokens: int, expires_s: float | None) -> None:
        """Set more aside, or for longer."""
        tokens = min(tokens, MAX_AMOUNT - twin.real.tokens)
        self.pair.do(
            twin.real.agent_name,
            lambda: twin.real.extend(tokens, expires_s=expires_s),
            lambda: self.pair.model.extend(twin.number, tokens, expires_s),
            f"extend {twin.real!r} by {tokens}",
        )

    @rule(seconds=st.sampled_from([1.0, 3.0, 10.0, 700.0]))
    def advance(self, seconds: float) -> None:
        """Let time pass: holds expire."""
        self.pair.do(
            None,
            lambda: self.clock.advance(seconds),
            lambda: self.pair.model.advance(seconds),
            f"advance {seconds}",
        )

    # -- spending and moving ---------------------------------------------------------------------------

    @rule(name=agents, tokens=amounts(80), confidence=st.sampled_from([None, None, 0.5]), key=MAYBE_A_KEY)
    def record_usage(self, name: str, tokens: int, confidence: float | None, key: str | None) -> None:
        """Book what no hold announced."""
        self._once(
            key,
            name,
            lambda: self.manager.record_usage(name, tokens, "usage", confidence, key=key).tokens,
            lambda: self.pair.model.record_usage(name, tokens, confidence, key=key),
            f"record {tokens} for {name}, key {key}",
        )

    @rule(shortfalls=st.dictionaries(agents, amounts(150), min_size=1, max_size=4), key=MAYBE_A_KEY)
    def rebalance(self, shortfalls: dict[str, int], key: str | None) -> None:
        """Clear all markets at once."""
        self._rebalance(shortfalls, key)

    @rule(asker=agents, confident=st.lists(agents, min_size=1, max_size=3), tokens=st.integers(1, 9))
    def rebalance_beside_the_confident(self, asker: str, confident: list[str], tokens: int) -> None:
        """Ask for a little right after others have become confident: they give first in their level."""
        open_agents = [name for name in confident if not self.pair.model.accounts[name]["closed"]]
        for name in dict.fromkeys(open_agents):
            self.update(name, {"confidence_threshold": 0.5})
            self.note_confidence(name, 1.0)
        self._rebalance({asker: tokens}, None)

    def _rebalance(self, shortfalls: dict[str, int], key: str | None) -> None:
        answers = self._once(
            key,
            None,
            lambda: self.manager.rebalance(shortfalls, key=key),
            lambda: self.pair.model.rebalance(shortfalls, key=key),
            f"rebalance {shortfalls}, key {key}",
        )
        if answers is not None:
            real, model = answers
            self.pair.compare_transfers(real.transfers, model["transfers"], f"rebalance {shortfalls}")
            require(real.unmet == model["unmet"], f"unmet {real.unmet}, in the model {model['unmet']}")

    @precondition(lambda self: self._requests)
    @rule(number=st.integers(0, 1_000))
    def repeat(self, number: int) -> None:
        """Repeat a request under its key: the first outcome, and nothing moves."""
        what, real, model = self._requests[number % len(self._requests)]
        answers = self.pair.read(real, model, f"again: {what}")
        if answers is not None and hasattr(answers[0], "hold_id"):
            self.pair.grant(what, answers)

    @rule(name=agents, number=st.integers(0, len(BAD_INPUTS) - 1))
    def bad_input(self, name: str, number: int) -> None:
        """Ask for what cannot be: a typed error, and nothing moves."""
        what, error, call = BAD_INPUTS[number]
        self.pair.refuse(error, lambda: call(self.manager, name), what)

    @rule(twin=holds, number=st.integers(0, len(BAD_HOLD_INPUTS) - 1))
    def bad_hold_input(self, twin: TwinHold, number: int) -> None:
        """Refuse what cannot be asked of a hold."""
        what, error, call = BAD_HOLD_INPUTS[number]
        self.pair.refuse(error, lambda: call(twin.real), what)
