"""The machines of this folder: the kit's machine over managers of every kind."""

from __future__ import annotations

import tbc
from tbc.clock import Clock
from tbc.testing import BudgetMachine


class CappedMachine(BudgetMachine):
    """A manager-wide cap: the root's treasury is the first donor at the top level."""

    def make_manager(self, clock: Clock) -> tbc.BudgetManager:
        return tbc.BudgetManager(max_tokens=150, clock=clock)


class UncappedMachine(BudgetMachine):
    """No manager-wide cap: every agent with a cap is the top of a budget, some agents are uncapped."""

    def make_manager(self, clock: Clock) -> tbc.BudgetManager:
        return tbc.BudgetManager(clock=clock)


class AuditMachine(BudgetMachine):
    """Nothing is refused; what would have been is said."""

    def make_manager(self, clock: Clock) -> tbc.BudgetManager:
        return tbc.BudgetManager(max_tokens=150, mode="audit", clock=clock)


class UncappedAuditMachine(BudgetMachine):
    """Audit without a manager-wide cap."""

    def make_manager(self, clock: Clock) -> tbc.BudgetManager:
        return tbc.BudgetManager(mode="audit", clock=clock)


class FoldingMachine(BudgetMachine):
    """A journal that keeps few lines: the rest is folded into opening balances all the time."""

    def make_manager(self, clock: Clock) -> tbc.BudgetManager:
        manager = tbc.BudgetManager(max_tokens=150, clock=clock, keep=8)
        manager.ledger.journal.fold_at = 12  # why: by itself it folds a few hundred at once
        return manager
