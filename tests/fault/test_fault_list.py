"""Every fault that books in a store must survive, and on which kinds of store it is tested.

A test of a fault has its number in its name, in whichever file it is: `pytest -k fault_12`. Where a
fault is tested on one kind of store alone, `NOT_ON` says why.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"test_fault_(\d\d)_")

FAULTS = {
    1: "more callers at once than there is room",
    2: "one key many times at once",
    3: "one key for another request",
    4: "a refused key asked again when there is room",
    5: "settled twice",
    6: "voided when settled, settled when voided",
    7: "settled above the hold",
    8: "settled after it expired",
    9: "a settle races with a sweep, or with a void",
    10: "a caller is killed between hold and settle",
    11: "a process is killed at any point of a commit",
    12: "the power is cut",
    13: "a task is cancelled, or a thread interrupted, at any point of a call",
    14: "a cost that nobody can estimate",
    15: "donors at their floor",
    16: "an asker below all donors",
    17: "two that reallocate at once",
    18: "a donor that spends while it is drained",
    19: "an agent removed, or its terms lowered, while in use",
    20: "amounts at the edges of what there is",
    21: "clocks that jump, or are wrong",
    22: "a holder that is stopped past the end of its hold or lease",
    23: "messages of leases lost, doubled, late, in another order",
    24: "a worker lost with an open lease",
    25: "a store that is locked by others",
    26: "a transaction that begins by reading",
    27: "a long reader",
    28: "a fork, a pickle, another thread or loop",
    29: "a store that is gone, another's, older or newer",
    30: "no room",
    31: "flipped bits",
    32: "a journal changed by other hands",
    33: "a server that is stopped, restarted, cuts connections, or was restored from behind",
    34: "a connection that is lost after the commit was sent",
    35: "what a server refuses: conflicts, deadlocks, timeouts, too many connections",
    36: "one bad request in a batch",
    41: "a migration that is killed half-way, and versions side by side",
    42: "a backup that is restored",
    43: "very many agents and holds",
    46: "audit and enforce at once",
    47: "a listener that blocks or raises",
    48: "an interpreter that ends with open holds",
}
#: Faults of what books in a store have not: another cache, a service, tenants, a proxy before the server (not
#: tested), and a store that is away (tests/unit/test_away.py, without a number).
ELSEWHERE = {37, 38, 39, 40, 44, 45}

FILE, SERVER = "sqlite", "postgres"
#: What a test asks for to be run on each kind.
BOTH = {"url", "manage", "manager", "place", "open_again"}
NOT_ON = {
    12: (
        SERVER,
        "its disk is the server's own concern; 33 stops the server at once",
    ),
    26: (SERVER, "a write is one statement, or begins by taking the pool's row: 17, 18 and 35 meet in it"),
    31: (SERVER, "it has checksums of its own pages; lines that were changed are found by 32"),
    33: (FILE, "it has no server"),
    35: (FILE, "it has no server; its own refusals are 25 and 30"),
}


def numbered_tests(folder: Path = TESTS) -> dict[int, set[str]]:
    """Return by the number of a fault the kinds of store that the tests of that number run on."""
    found: dict[int, set[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = NAMED.match(node.name) if isinstance(node, ast.FunctionDef) else None
            if named is not None:
                found.setdefault(int(named[1]), set()).update(_stores_of(path, node))
    return found


def _stores_of(path: Path, test: ast.FunctionDef) -> set[str]:
    marks = {ast.unparse(each) for each in test.decorator_list}
    if path.name == "test_postgres_faults.py" or "only_postgres" in marks:
        return {SERVER}
    if path.name == "test_power_cut.py" or "only_sqlite" in marks:
        return {FILE}
    return {FILE, SERVER} if {each.arg for each in test.args.args} & BOTH else set()


def test_every_fault_is_tested_and_every_numbered_test_is_of_a_fault():
    assert set(FAULTS) | ELSEWHERE == set(range(1, 49))
    assert set(numbered_tests()) == set(FAULTS)


def test_every_fault_is_tested_on_both_kinds_of_store_or_it_says_why_not():
    missing = {number: {FILE, SERVER} - stores for number, stores in numbered_tests().items()}
    assert {number: stores for number, stores in missing.items() if stores} == {
        number: {store} for number, (store, _) in NOT_ON.items()
    }


def test_a_test_that_is_missing_or_runs_on_one_store_alone_is_seen(tmp_path):
    """Planted: a folder of tests of which one names no fault, and one has a mark."""
    some = "def test_fault_01_a(url): ...\ndef test_fault_3(url): ...\n"
    (tmp_path / "test_some.py").write_text(f"{some}@only_sqlite\ndef test_fault_02_b(url): ...")
    (tmp_path / "test_postgres_faults.py").write_text("def test_fault_04_c(store): ...\n")
    assert numbered_tests(tmp_path) == {1: {FILE, SERVER}, 2: {FILE}, 4: {SERVER}}
