"""The lower half of `tbc.testing.BudgetMachine`: agents come, change, ask for more, and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from tbc.clock import Clock, ManualClock
from tbc.contract import BudgetContract
from tbc.manager import BudgetManager
from tbc.testing.invariants import require
from tbc.testing.side_by_side import SideBySide
from tbc.testing.strategies import NAMES, amounts, contracts, thresholds, trees
from tbc.testing.tree_model import ROOT

__all__ = ["KEYS", "MAYBE_A_KEY", "AgentsMachine"]

#: Few keys, so that they are used again, and for something else.
KEYS = st.sampled_from(["k1", "k2", "k3", "k4", "k5", "k6"])
MAYBE_A_KEY = st.one_of(st.none(), KEYS)
_DEEPEST = 3


class AgentsMachine(RuleBasedStateMachine):
    """A pool whose agents change, but spend nothing; see `tbc.testing.BudgetMachine`."""

    agents: Bundle[str] = Bundle("agents")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.manager = self.make_manager(self.clock)
        self.pair = SideBySide(self.manager)
        self._requests: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = []

    def make_manager(self, clock: Clock) -> BudgetManager:
        """Return a new manager without agents."""
        raise NotImplementedError

    # -- agents ----------------------------------------------------------------------------------------

    @initialize(
        target=agents,
        tree=trees(4, 7, largest=60),
        confident=st.sets(st.sampled_from(NAMES), max_size=3),
    )
    def start(
        self, tree: list[tuple[BudgetContract, str | None]], confident: set[str]
    ) -> MultipleResults[str]:
        """Register a first tree, as far as it fits; some agents are confident already."""
        names = [name for contract, parent in tree for name in self._register(contract, parent, False)]
        for name in names:
            if name in confident:
                self.note_confidence(name, 1.0)
        return multiple(*names)

    @rule(
        target=agents,
        contract=contracts(),
        parent=st.one_of(st.none(), agents),
        replace=st.booleans(),
    )
    def register(self, contract: BudgetContract, parent: str | None, replace: bool) -> MultipleResults[str]:
        """Register an agent, find it again, or replace its terms."""
        return multiple(*self._register(contract, parent, replace))

    def _register(self, contract: BudgetContract, parent: str | None, replace: bool) -> list[str]:
        model = self.pair.model
        name, terms = contract.agent_name, _terms(contract)
        known = model.accounts.get(name)
        if parent is not None and parent not in model.accounts:
            return []  # it did not fit itself
        while parent is not None and model.depth(parent) >= _DEEPEST:
            parent = model.accounts[parent]["parent"]
            parent = None if parent == ROOT else parent
        answers = self.pair.do(
            name,
            lambda: self.manager.register_agent(name, **terms, parent=parent, replace=replace),
            lambda: model.register(
                name,
                contract.priority,
                contract.max_tokens,
                contract.min_reserve,
                contract.confidence_threshold,
                parent or ROOT,
                replace=replace,
            ),
            f"register {contract} below {parent}",
        )
        if answers is not None:
            require(answers[0] == contract, f"signed {answers[0]}, asked for {contract}")
            require(self.manager.contracts[name] == contract, f"contract of {name!r} is not {contract}")
        return [name] if answers is not None and known is None else []

    @rule(name=agents, replace=st.booleans())
    def register_same_terms(self, name: str, replace: bool) -> None:
        """Register the same terms again: the account stays untouched."""
        account = self.pair.model.accounts[name]
        if not account["closed"]:
            parent = None if account["parent"] == ROOT else account["parent"]
            contract = self.manager.contracts[name]
            self.pair.read(
                lambda: self.manager.register_agent(name, **_terms(contract), parent=parent, replace=replace),
                lambda: None,
                f"register {name} again",
            )

    @rule(
        name=agents,
        terms=st.fixed_dictionaries(
            {},
            optional={
                "priority": st.integers(1, 4),
                "min_reserve": st.integers(0, 60),
                "confidence_threshold": thresholds(),
            },
        ),
    )
    def update(self, name: str, terms: dict[str, Any]) -> None:
        """Change priority, reserve or threshold."""
        names = {"min_reserve": "reserve", "confidence_threshold": "threshold"}
        in_model = {names.get(term, term): value for term, value in terms.items()}
        self.pair.do(
            None,
            lambda: self.manager.update_agent(name, **terms),
            lambda: self.pair.model.update(name, **in_model),
            f"update {name} {terms}",
        )

    @rule(target=agents, name=consumes(agents), forget=st.integers(0, 3))
    def close(self, name: str, forget: int) -> MultipleResults[str]:
        """Close an account; a closed one is still asked for things now and then."""
        answers = self.pair.do(
            name,
            lambda: self.manager.close_agent(name),
            lambda: self.pair.model.close(name),
            f"close {name}",
        )
        return multiple() if answers is not None and forget else multiple(name)

    @rule(name=st.one_of(st.just(ROOT), agents), tokens=amounts(), key=MAYBE_A_KEY)
    def top_up(self, name: str, tokens: int, key: str | None) -> None:
        """Grant more."""
        self._once(
            key,
            name,
            lambda: self.manager.top_up(name, tokens, key=key),
            lambda: self.pair.model.top_up(name, tokens, key=key),
            f"top up {name} by {tokens}, key {key}",
        )

    @rule(name=agents, confidence=st.sampled_from([None, 0.4, 0.5, 1.0]))
    def report_confidence(self, name: str, confidence: float | None) -> None:
        """Report a confidence, or forget it."""
        self.note_confidence(name, confidence)

    def note_confidence(self, name: str, confidence: float | None) -> None:
        """Report a confidence on both sides, or forget it."""
        self.pair.do(
            None,
            lambda: (
                self.manager.reset_confidence(name)
                if confidence is None
                else self.manager.report_confidence(name, confidence)
            ),
            lambda: self.pair.model.note_confidence(name, confidence),
            f"confidence of {name} {confidence}",
        )

    def _once(
        self,
        key: str | None,
        spender: str | None,
        real: Callable[[], Any],
        model: Callable[[], Any],
        what: str,
    ) -> tuple[Any, Any] | None:
        answers = self.pair.do(spender, real, model, what)
        if self.pair.model.knows(key):  # an error of the caller's is no outcome
            self._requests.append((what, real, model))
        return answers

    @invariant()
    def both_sides_agree(self) -> None:
        """All accounts and holds are the model's, and every promise holds."""
        self.pair.check_everything()


def _terms(contract: BudgetContract) -> dict[str, Any]:
    return {
        "priority": contract.priority,
        "max_tokens": contract.max_tokens,
        "min_reserve": contract.min_reserve,
        "confidence_threshold": contract.confidence_threshold,
    }
