"""Dollars follow the rules of tokens: the same histories, on both axes at once, end in the same books.

`InDollarsToo` asks for as many nano-dollars as tokens, whatever is asked for. The machine and its model know
nothing of that, and compare the tokens; the books of dollars are then compared with those of tokens. A call
finds room on both axes or on none.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

import tbc
from tbc import lifecycle
from tbc.ledger import Ledger
from tbc.money import to_usd
from tbc.testing import BudgetMachine, Snapshot, check_step

BOOKS = ("allocated", "consumed", "held", "remaining", "spare", "debt", "lent", "borrowed")


def dollars(tokens: Any) -> Decimal | None:
    """Return as many nano-dollars; ``None`` for what is no amount, to be refused for its tokens."""
    return to_usd(tokens) if type(tokens) is int and 0 <= tokens < 2**53 else None


class TokenTerms(Mapping):
    """The contracts without their dollars."""

    def __init__(self, contracts: Mapping[str, tbc.BudgetContract]) -> None:
        self.contracts = contracts

    def __getitem__(self, name: str) -> tbc.BudgetContract:
        return token_terms(self.contracts[name])

    def __iter__(self):
        return iter(self.contracts)

    def __len__(self) -> int:
        return len(self.contracts)


def token_terms(signed: tbc.BudgetContract) -> tbc.BudgetContract:
    return tbc.BudgetContract(
        signed.agent_name,
        signed.priority,
        signed.max_tokens,
        signed.min_reserve,
        signed.confidence_threshold,
    )


class InDollarsToo(tbc.BudgetManager):
    def __init__(self, *, max_tokens=None, **rest):
        super().__init__(max_tokens=max_tokens, max_usd=dollars(max_tokens), unknown_price="track", **rest)
        self.contracts = TokenTerms(self.contracts)

    def register_agent(self, name, priority=1, max_tokens=1000, min_reserve=None, threshold=None, **rest):
        threshold = rest.pop("confidence_threshold", threshold)
        terms = tbc.BudgetContract(name, priority, max_tokens, min_reserve, threshold)
        signed = super().register_agent(
            name,
            priority,
            max_tokens,
            min_reserve,
            threshold,
            max_usd=dollars(max_tokens),
            min_reserve_usd=dollars(terms.min_reserve),
            **rest,
        )
        return token_terms(signed)

    def update_agent(self, name, **terms):
        if dollars(terms.get("min_reserve")) is not None:
            terms["min_reserve_usd"] = dollars(terms["min_reserve"])
        return super().update_agent(name, **terms)

    def hold(self, name, tokens=0, **how):
        return super().hold(name, tokens, usd=dollars(tokens), **how)

    def _grant(self, books, tokens, nano, calls, cost, clamp, *rest):
        if clamp is not None:  # a smaller hold is smaller on both axes
            clamp = clamp._replace(cost=lambda fewer: fewer)
        return super()._grant(books, tokens, nano, calls, cost, clamp, *rest)

    def decide(self, name, tokens=0):
        return super().decide(name, tokens, usd=dollars(tokens))

    def extend_hold(self, hold, tokens=0, expires_s=None, key=None, usd=None):
        return super().extend_hold(hold, tokens, expires_s, key, dollars(tokens))

    def _spent(self, hold, tokens, nano, calls, estimated, guessed=None):
        return super()._spent(hold, tokens, tokens, calls, estimated, guessed)

    def record_usage(self, name, tokens=0, note="usage", confidence=None, **how):
        return super().record_usage(name, tokens, note, confidence, usd=dollars(tokens), **how)

    def top_up(self, name, tokens=0, **how):
        super().top_up(name, tokens, usd=dollars(tokens), **how)

    def rebalance(self, shortfalls, **how):
        usd = {name: value for name, lacks in shortfalls.items() if (value := dollars(lacks)) is not None}
        return super().rebalance(shortfalls, usd=usd, **how)


class InDollarsTooMachine(BudgetMachine):
    def make_manager(self, clock):
        return InDollarsToo(max_tokens=300, clock=clock)

    @invariant()
    def the_dollars_are_the_tokens(self) -> None:
        tokens, usd = self.manager.accounts(), self.manager.accounts("usd")
        for one, other in zip(tokens, usd, strict=True):
            for name in BOOKS:
                assert getattr(one, name) == getattr(other, name), f"{name} of {one} and of {other}"
        now = Snapshot.of(self.manager, "usd")
        check_step(now, now)


class UncappedInDollarsTooMachine(InDollarsTooMachine):
    def make_manager(self, clock):
        return InDollarsToo(clock=clock)


class AuditInDollarsTooMachine(InDollarsTooMachine):
    def make_manager(self, clock):
        return InDollarsToo(max_tokens=150, mode="audit", clock=clock)


HISTORIES = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize(
    "machine", [InDollarsTooMachine, UncappedInDollarsTooMachine, AuditInDollarsTooMachine]
)
def test_dollars_follow_the_rules_of_tokens(machine):
    run_state_machine_as_test(machine, settings=HISTORIES)


def only_tokens_must_fit(patch):
    original = lifecycle.decide
    patch.setattr(lifecycle, "decide", lambda asked, mode, **rest: original(asked[:1], mode, **rest))


def dollars_are_lent_for_good(patch):
    original = lifecycle._return_loans

    def forgetful(ledger, part, hold_id, unused, *rest):
        return original(ledger, part, hold_id, unused if part.books.axis == "tokens" else 0, *rest)

    patch.setattr(lifecycle, "_return_loans", forgetful)


def dollars_are_not_held(patch):
    original = Ledger.book

    def lenient(self, now, kind, books, **deltas):
        if books.axis == "usd" and kind is tbc.Kind.HOLD:
            deltas["held"] = 0
        original(self, now, kind, books, **deltas)

    patch.setattr(Ledger, "book", lenient)


@pytest.mark.parametrize("plant", [only_tokens_must_fit, dollars_are_lent_for_good, dollars_are_not_held])
def test_the_comparison_finds(plant, monkeypatch):
    plant(monkeypatch)
    search = settings(HISTORIES, max_examples=300, database=None, derandomize=True, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(InDollarsTooMachine, settings=search)
