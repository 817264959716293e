"""Leases over a bad network: no seed finds money spent twice, and every planted fault is found by some."""

from __future__ import annotations

import os

import pytest

from tbc.errors import HoldEndedError, StoreError
from tbc.leased import LeasedManager
from tbc.leases import Amounts, LeaseHolder, Refused, Report, Slice
from tests.stateful.lease_world import Broken, Front, World

SEEDS = 1_000 if os.environ.get("TBC_DEEP") else 60


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_no_seed_breaks_a_promise(first):
    for seed in range(first, first + 20):
        try:
            world = World(seed).run()
        except Broken as broken:
            raise AssertionError(f"seed {seed}: {broken}") from broken
        assert world.steps > 500 and world.spent.total() > 0


@pytest.mark.parametrize("seed", range(3, 6))
def test_a_seed_is_a_whole_history(seed):
    first, second = World(seed).run(), World(seed).run()
    assert first.pool.ledger.entries() == second.pool.ledger.entries()


def test_the_seeds_see_every_trouble():
    worlds = [World(seed).run() for seed in range(20)]
    assert any(world.crashed for world in worlds)
    assert any(world.in_full for world in worlds)
    assert any(world.direct[0] for world in worlds)
    assert any(world.late[1] for world in worlds) and any(world.told_late for world in worlds)
    notes = {entry.note for world in worlds for entry in world.pool.ledger.entries()}
    kinds = {str(entry.kind) for world in worlds for entry in world.pool.ledger.entries()}
    assert "closed by an operator" in notes and {"report", "extend", "settle", "return"} <= kinds


# -- planted faults ------------------------------------------------------------------------------------


class ReleasedAtTheEnd(World):
    def close_overdue(self, record):
        if self.store_clock() >= record.ends_at:
            hold = self.pool._leases[record.hold_id]
            hold.void()


class GrantedTwice(Front):
    copies = 0

    def answer(self, message):
        if not isinstance(message, Report):
            self.copies += 1
            message = message._replace(key=f"{message.key}/{self.copies}")
        return super().answer(message)


class DeltasSent(LeaseHolder):
    said = Amounts()

    def report(self, used):
        more = Amounts(*(new - old for new, old in zip(used, self.said, strict=True)))
        self.said = used
        return super().report(more)


class DeltasAdded(Front):
    def answer(self, message):
        if isinstance(message, Report) and not message.final:
            seen = self.world.pool._leases[message.hold_id].reported
            return super().answer(message._replace(used=seen.plus(message.used)))
        return super().answer(message)


class ClosedOnce(LeaseHolder):
    def final_reports(self):
        said = super().final_reports()
        self.closing = {}
        return said


class RefusalForgotten(Front):
    def answer(self, message):
        answer = super().answer(message)
        if isinstance(answer, Refused):
            self.world.pool.ledger.answers._answers.pop(message.key, None)
        return answer


class KeptPastTheEnd(LeaseHolder):
    def has_room(self, used, now):
        return super().has_room(used, min(now, self.usable_until - 1))


class CountedFromTheAnswer(LeaseHolder):
    def take(self, key, answer, used):
        self._asked_at = self.clock()
        super().take(key, answer, used)


class NoMargin(LeaseHolder):
    def take(self, key, answer, used):
        before = self.usable_until
        super().take(key, answer, used)
        if self.usable_until > before:
            self.usable_until = self._asked_at + self.lease.seconds


class KeysOfAllLives(LeaseHolder):
    def __init__(self, agent_name, holder, lease, life):
        super().__init__(agent_name, holder, lease, life.split(".")[0])


class OpenRequestDropped(LeaseHolder):
    def shut_down(self, used):
        super().shut_down(used)
        self.asked = None


class EveryAnswerTaken(LeaseHolder):
    def take(self, key, answer, used):
        if self.asked is None and self.hold_id is not None and isinstance(answer, Slice):
            for axis, more in answer.amounts.items():
                self.leased[axis] = None if more is None else self.leased[axis] + more
        super().take(key, answer, used)


class ClosedWithTheLastReport(LeaseHolder):
    last = Amounts()

    def report(self, used):
        self.last = used
        return super().report(used)

    def close(self, used):
        super().close(self.last)
        self.last = Amounts()


class LateReportsLowerTheTotal(Front):
    def answer(self, message):
        if isinstance(message, Report):
            hold = self.world.pool._leases[message.hold_id]
            hold.lease = hold.lease._replace(reported=message.used.at_least(Amounts()))
        return super().answer(message)


class AnyReportEnds(Front):
    def answer(self, message):
        if isinstance(message, Report) and not message.final:
            hold = self.world.pool._leases[message.hold_id]
            if hold.settlement is None:
                hold.settle(message.used.tokens, calls=message.used.calls)
            return message
        return super().answer(message)


class LateForgotten(LeasedManager):
    def tell_late(self, books):
        """Tell nothing."""

    def tell_later(self, books):
        """Tell nothing."""


class LateAnsweredFirst(LeasedManager):
    def tell_late(self, books):
        self.tell_later(books)


class ToldOnce(LeasedManager):
    def _say_finals(self, seat):
        try:
            super()._say_finals(seat)
        except StoreError:
            seat.holder.closing.clear()
            raise


FAULTS = {
    "released at the end": {"operator": ReleasedAtTheEnd.close_overdue},
    "a grant is not idempotent": {"front": GrantedTwice},
    "reports are differences": {"holder_kind": DeltasSent, "front": DeltasAdded},
    "a close is sent once": {"holder_kind": ClosedOnce},
    "a refusal is forgotten": {"front": RefusalForgotten},
    "a slice is kept past its end": {"holder_kind": KeptPastTheEnd},
    "the end is counted from the answer": {"holder_kind": CountedFromTheAnswer},
    "no margin for drift": {"holder_kind": NoMargin},
    "all lives have the same keys": {"holder_kind": KeysOfAllLives},
    "a request open at shutdown is dropped": {"holder_kind": OpenRequestDropped},
    "every answer is taken": {"holder_kind": EveryAnswerTaken},
    "closed with the last report": {"holder_kind": ClosedWithTheLastReport},
    "late reports lower the total": {"front": LateReportsLowerTheTotal},
    "any report ends the lease": {"front": AnyReportEnds},
    "what is settled late is forgotten": {"manager_kind": LateForgotten},
    "what is settled late is answered before it is told": {"manager_kind": LateAnsweredFirst},
    "what could not be told is forgotten": {"manager_kind": ToldOnce},
}


@pytest.mark.parametrize("title", FAULTS)
def test_a_planted_fault_is_found_by_some_seed(title):
    for seed in range(400):
        try:
            World(seed, **FAULTS[title]).run()
        except (Broken, AssertionError, HoldEndedError):
            return
    raise AssertionError("no seed found it")
