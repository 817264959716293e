"""The power goes at any moment: what was answered as kept is on the disk, and what is there is whole."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tbc
from tbc.errors import StoreCorruptError, StoreStaleError
from tbc.stores import Mark, SqliteStore
from tbc.testing import check_books
from tests.fault.lossy_disk import Disk, Event
from tests.fault.processes import DEEP

CALLS = 120 if DEEP else 40
CUTS = 400 if DEEP else 24  # and each of them twice
NEVER = 0  # SQLite's OFF, which the store does not offer: nothing is synced


class Answer(NamedTuple):
    """How far the pool was when somebody was answered, what it showed, and what to ask again."""

    mark: Mark
    report: dict[str, Any]
    hold: tbc.Hold


def spent_from(folder: Path, synchronous: str | int) -> Disk:
    """Spend from a file while its disk is watched; the log is written back every few commits."""
    folder.mkdir()
    path, chance = folder / "books.db", random.Random(12)
    with contextlib.closing(tbc.BudgetManager(store=f"sqlite:///{path}", max_tokens=10**6)) as manager:
        manager.register_agent("a", max_tokens=500, min_reserve=100)
        manager.register_agent("b", priority=5, max_tokens=300)
    disk = Disk(folder)
    with disk.watched(), SqliteStore(path) as store:
        store._connection.pragma("synchronous", synchronous)
        store._connection.wal_autocheckpoint(25)
        manager = tbc.BudgetManager(store=store)
        manager._sweeper.stop()
        for number in range(CALLS):
            key, tokens = f"k{number}", chance.randrange(1, 500)
            hold = manager.hold("b", tokens, key=key)
            disk.answered(_answer(manager, hold))
            hold.settle(tokens // 5) if number % 4 else hold.void()
            disk.answered(_answer(manager, hold))
            manager.top_up("a", 1)
        manager.close()
    return disk


def _answer(manager: tbc.BudgetManager, hold: tbc.Hold) -> Answer:
    return Answer(manager._keeper.mark, dict(manager.report()), hold)


def cuts_of(disk: Disk) -> list[int]:
    """Return moments at which the power may go: most of them just before or after a sync or an answer."""
    around = {
        each
        for number, event in enumerate(disk.events)
        if event.kind in ("sync", "answered")
        for each in (number, number + 1)
    }
    others = set(range(len(disk.events) + 1)) - around
    chance = random.Random(21)
    few = max(1, CUTS // 4)
    return [*chance.sample(sorted(around), min(CUTS - few, len(around))), *chance.sample(sorted(others), few)]


def answers_lost(
    disk: Disk, cut: int, folder: Path, chance: random.Random | None, *, lies: bool = False
) -> int:
    """Cut the power, start again, see that all is whole, and return how many answers are gone."""
    folder.mkdir()
    disk.image(cut, folder, chance, lies=lies)
    told: list[Answer] = [event.what for event in disk.events[:cut] if event.kind == "answered"]
    with SqliteStore(folder / "books.db", create=False) as store:
        assert [check for check in store.verify() if not check.ok] == []
        kept = [answer for answer in told if _has(store, answer.mark)]
        assert kept == told[: len(kept)], "answers are gone from the middle"
        manager = tbc.BudgetManager(store=store)
        check_books(manager)
        if kept:
            last = kept[-1]
            seq = manager.ledger.seq
            assert seq > last.mark.seq or manager.report() == last.report
            again = manager.hold("b", last.hold.tokens, key=last.hold.key)
            assert again.hold_id == last.hold.hold_id
            assert manager.ledger.seq == seq
        manager.hold("b", 1, key="the first one afterwards").settle(1)
        check_books(manager)
        manager.close()
    return len(told) - len(kept)


def _has(store: SqliteStore, mark: Mark) -> bool:
    """Return whether the journal has the line that a mark ends with, hash and all."""
    try:
        store.news("default", mark)
    except StoreStaleError:
        return False
    return True


def all_lost(disk: Disk, folder: Path, *, lies: bool = False) -> list[int]:
    """Return how many answers are gone, for cuts after which nothing or a part of the unsynced is there."""
    found = []
    for number, cut in enumerate(cuts_of(disk)):
        for chance in (None, random.Random(number)):
            place = folder / f"{number} {'nothing' if chance is None else 'torn'}"
            found.append(answers_lost(disk, cut, place, chance, lies=lies))
    return found


def test_fault_12_the_power_is_cut(tmp_path):
    """Nothing is lost that was answered, the chain is whole, and the books are the journal's."""
    disk = spent_from(tmp_path / "source", "FULL")
    synced = {event.file for event in disk.events if event.kind == "sync"}
    assert synced == {"books.db", "books.db-wal"}  # the log was written back between the answers
    assert set(all_lost(disk, tmp_path)) == {0}


def test_fault_12_the_power_is_cut_where_only_the_log_is_written_back_in_order(tmp_path):
    """With NORMAL the last answers are lost, as the documents say; what is there is whole."""
    lost = all_lost(spent_from(tmp_path / "source", "NORMAL"), tmp_path)
    assert max(lost) > 0


@pytest.mark.parametrize(("synchronous", "lies"), [("FULL", True), (NEVER, False)])
def test_a_disk_that_does_not_keep_what_it_says_is_found_out(tmp_path, synchronous, lies):
    """Planted: these checks see lost answers and broken files where nothing prevents them."""
    disk, found = spent_from(tmp_path / "source", synchronous), []
    for number, cut in enumerate(cuts_of(disk)):
        try:
            if answers_lost(disk, cut, tmp_path / f"{number}", random.Random(number), lies=lies):
                found.append("lost")
        except (AssertionError, StoreCorruptError) as error:
            found.append(type(error).__name__)
    assert "lost" in found and "StoreCorruptError" in found


def test_what_is_synced_is_there_and_the_rest_may_be(tmp_path):
    """The disk itself: an image of before the sync, of after it, and torn ones."""
    (tmp_path / "f").write_bytes(b"old")
    disk = Disk(tmp_path)
    with disk.watched():
        pass
    disk.events += [
        Event("f", "write", 0, b"n" * 1024),
        Event("f", "sync"),
        Event("f", "write", 512, b"x" * 1024),
        Event("f", "truncate", 100),
    ]

    def image(cut, chance=None, **how):
        place = tmp_path / "image"
        place.mkdir(exist_ok=True)
        disk.image(cut, place, chance, **how)
        return (place / "f").read_bytes()

    assert (image(1), image(2), image(4)) == (b"old", b"n" * 1024, b"n" * 1024)
    assert image(4, lies=True) == b"old"
    seen = {image(3, random.Random(seed)) for seed in range(40)}
    assert {b"n" * 1024, b"n" * 512 + b"x" * 1024, b"n" * 1024 + b"x" * 512} <= seen
    assert b"n" * 100 in {image(4, random.Random(seed)) for seed in range(40)}
