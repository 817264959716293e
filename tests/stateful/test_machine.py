"""Random histories of a real manager beside the model, in every mode."""

from __future__ import annotations

from hypothesis import settings

from tests.stateful.machines import (
    AuditMachine,
    CappedMachine,
    FoldingMachine,
    UncappedAuditMachine,
    UncappedMachine,
)


class TestEnforceUnderACap(CappedMachine.TestCase):
    settings = settings(max_examples=settings().max_examples * 4 // 5, stateful_step_count=40)


class TestEnforceWithoutACap(UncappedMachine.TestCase):
    settings = settings(max_examples=settings().max_examples * 4 // 5, stateful_step_count=40)


class TestAuditUnderACap(AuditMachine.TestCase):
    settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=40)


class TestAuditWithoutACap(UncappedAuditMachine.TestCase):
    settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=40)


class TestAFoldedJournal(FoldingMachine.TestCase):
    settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=40)
