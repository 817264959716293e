"""Processes that spend from one store while some of them are killed: afterwards every answer must be true."""

from __future__ import annotations

import contextlib
import json
import random
import time
from pathlib import Path

import pytest

import tbc
from tbc.stores.opening import open_store
from tbc.stores.rows import LineRow
from tbc.testing import check_books
from tests.fault.bank import AGENTS, TOTAL, open_bank, wrongs
from tests.fault.processes import DEEP, Program, eventually

SECONDS = 60.0 if DEEP else 5.0
CLERK = (
    "import sys; from tests.fault.bank import work; a = sys.argv; work(a[1], int(a[2]), a[3], float(a[4]))"
)


def histories_of(paths):
    """Return what the processes wrote; of the last line of one that was killed, half may be there."""
    found = []
    for path in filter(Path.exists, paths):  # others were killed before they began
        lines = path.read_text().split("\n")
        found.append([json.loads(line) for line in lines[:-1]])
    return found


def test_a_bank_whose_clerks_are_killed_tells_no_lies(url, tmp_path):
    open_bank(url)
    seed = random.SystemRandom().randrange(10**6)
    chance, paths = random.Random(seed), []
    print(f"seed {seed}")
    with contextlib.ExitStack() as opened:

        def start(seconds):
            paths.append(tmp_path / f"history {len(paths)}")
            program = Program(CLERK, url, seed + len(paths), paths[-1], seconds)
            return opened.enter_context(program)

        clerks = [start(SECONDS) for _ in range(4)]
        for clerk in clerks:
            assert clerk.read() == "ready"
        kills, ends = 0, time.monotonic() + SECONDS
        while time.monotonic() < ends - 1:
            time.sleep(0.3 + chance.random() / 2)  # some have just started, some have not
            which = chance.randrange(len(clerks))
            clerks[which].killed()
            kills += 1
            clerks[which] = start(max(0.1, ends - time.monotonic()))
        ended = [clerk.ended() for clerk in clerks]
    assert [(code, err) for code, _, err in ended] == [(0, "")] * 4
    histories = histories_of(paths)
    with contextlib.closing(open_store(url)) as store:
        assert [check for check in store.verify() if not check.ok] == []
    with contextlib.closing(tbc.BudgetManager(store=url)) as manager:
        assert eventually(lambda: not manager.used() or not manager.ledger.open_holds)  # of those killed
        check_books(manager)
        report = manager.report()
    with contextlib.closing(open_store(url)) as store:
        lines = list(store.entries("default"))
    assert wrongs(histories, lines, report) == []
    answered = sum("answer" in event for history in histories for event in history)
    asked = sum("ask" in event for history in histories for event in history)
    assert asked - answered <= kills
    told = {(event["op"], event["answer"]) for h in histories for event in h if "answer" in event}
    assert {name for name, answer in told if answer == "done"} >= {"hold", "settle", "void", "read"}
    assert kills >= 3 and answered > 200


# -- the checker must see what is wrong -----------------------------------------------------------------


def line(seq, kind, agent, peer=None, allocated=0, consumed=0, held=0, hold=None, key=None):
    return LineRow(seq, 0.0, kind, agent, peer, allocated, consumed, held, hold, key)


def numbered(*lines):
    return [each._replace(seq=number) for number, each in enumerate(lines, 1)]


START = [
    line(1, "register", tbc.ROOT, None, TOTAL),
    *(line(1, "register", name, tbc.ROOT, 300) for name, _, _ in AGENTS),
]
HOLD = line(1, "hold", "c", held=50, hold=7, key="k")
SETTLE = line(1, "settle", "c", consumed=30, held=-50, hold=7)
ANSWERS = [
    {"ask": "hold", "key": "k", "agent": "c", "tokens": 50},
    {"answer": "done", "op": "hold", "key": "k", "agent": "c", "tokens": 50, "got": 7},
    {"ask": "settle", "hold": 7, "tokens": 30},
    {"answer": "done", "op": "settle", "hold": 7, "tokens": 30, "got": ["settled", 30, False]},
]


def shown(**consumed):
    numbers = {name: consumed.get(name, 0) for name, _, _ in AGENTS}
    return {
        name: {"allocated": 300, "consumed": used, "remaining": 300 - used} for name, used in numbers.items()
    }


def test_the_checker_has_nothing_against_what_is_right():
    assert wrongs([ANSWERS], numbered(*START, HOLD, SETTLE), shown(c=30)) == []


LOAN = line(1, "loan", "a", "c", 10, hold=7)
READ = {"ask": "read"}
ROWS = [
    [tbc.ROOT, TOTAL - 1500, 0, 0, TOTAL - 1500, 0],
    *([name, 300, 0, 0, 300, 0] for name, _, _ in AGENTS),
]


@pytest.mark.parametrize(
    ("says", "histories", "lines", "report"),
    [
        ("is missing", [], [*numbered(*START, HOLD)[:-1], HOLD._replace(seq=99)], {}),
        ("runs uphill", [], numbered(*START, LOAN), {}),
        ("below its reserve", [], numbered(*START, line(1, "loan", "d", "c", 241)), {}),
        ("out of nothing", [], numbered(*START, line(1, "top_up", "a", None, 5)), {}),
        ("not 3000", [], numbered(*START, line(1, "top_up", tbc.ROOT, None, 5)), {}),
        ("not there", [], numbered(*START, line(1, "hold", "a", held=301, hold=7)), {}),
        ("takes back", [], numbered(*START, line(1, "settle", "a", consumed=-1)), {}),
        ("ends twice", [], numbered(*START, HOLD, SETTLE, SETTLE._replace(held=0)), {}),
        ("ends twice", [], numbered(*START, HOLD, SETTLE, line(1, "void", "c", hold=7)), {}),
        ("lines sum to", [], numbered(*START, HOLD, SETTLE), shown(c=31)),
        ("not kept", [ANSWERS], numbered(*START, HOLD, SETTLE._replace(consumed=29)), {}),
        ("not kept", [ANSWERS], numbered(*START, SETTLE._replace(held=0)), {}),
        ("not kept", [ANSWERS[:2]], numbered(*START, HOLD._replace(key="other")), {}),
        ("not kept", [[{"answer": "done", "op": "void", "hold": 7, "got": []}]], numbered(*START), {}),
        (
            "not kept",
            [[{"answer": "done", "op": "extend", "key": "x", "hold": 7, "tokens": 1, "got": None}]],
            numbered(*START),
            {},
        ),
        (
            "not kept",
            [[{"answer": "OverrunError", "op": "record_usage", "key": "x", "tokens": 1, "got": ""}]],
            numbered(*START),
            {},
        ),
        (
            "not kept",
            [[{"answer": "done", "op": "top_up", "key": "x", "tokens": 1, "got": None}]],
            numbered(*START),
            {},
        ),
        (
            "not kept",
            [[{"answer": "done", "op": "rebalance", "key": "x", "tokens": 1, "got": [["a", "b", 1]]}]],
            numbered(*START),
            {},
        ),
        ("before", [[ANSWERS[0], ANSWERS[2]]], numbered(*START), {}),
        ("was answered", [ANSWERS, [{**ANSWERS[1], "got": 8}]], numbered(*START, HOLD, SETTLE), {}),
        ("2 lines of kind", [], numbered(*START, HOLD, HOLD._replace(hold_id=8)), {}),
        ("a read sums", [[READ, {"answer": "done", "op": "read", "got": ROWS[1:]}]], numbered(*START), {}),
        (
            "does not add up",
            [[READ, {"answer": "done", "op": "read", "got": [[*ROWS[0][:2], 1, *ROWS[0][3:]], *ROWS[1:]]}]],
            numbered(*START),
            {},
        ),
    ],
)
def test_the_checker_sees(says, histories, lines, report):
    found = wrongs(histories, lines, report)
    assert any(says in each for each in found), found
