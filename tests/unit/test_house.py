"""The rules of the house: floors, doors, what an import costs, what the documents claim."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tbc

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(tbc.__file__).parent

# Rooms from the ground up. A room imports only from rooms before it; `X | Y` on one line are side by side
# and may not see each other.
FLOORS = [
    "axes",
    "errors",
    "clock | money | run_errors | files",
    "contract",
    "decision | reading",
    "wire",
    "error_codes",
    "clearing | current | journal | keys | labels | vocabulary | replies",
    "ledger",
    "tokens | usage | leases",
    "stores",
    "rates",
    "catalogue",
    "donors | confidence | pricing | stream_usage",
    "reallocator",
    "holds",
    "tree | lifecycle",
    "events",
    "pool | streams | watching",
    "desk | govern",
    "leasing",
    "records",
    "replica",
    "keeper",
    "away | clerk",
    "stored",
    "slices",
    "leased",
    "manager",
    "__init__",
    "swarm | runs | policy | telemetry",
    "mcp | service",
    "cli",
    "__main__",
    "testing",
]
FLOOR_OF = {room.strip(): floor for floor, rooms in enumerate(FLOORS) for room in rooms.split("|")}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Return the rooms that a module imports when it runs (what only type checkers see does not count)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tbc":
            inner = node.module.split(".")[1:]
            names = [inner[0]] if inner else [alias.name for alias in node.names]
            found |= {name if name in FLOOR_OF else "__init__" for name in names}
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == "tbc"]
            found |= {each[1] if len(each) > 1 else "__init__" for each in parts}
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_room_imports_only_from_lower_floors(path):
    room = room_of(path)
    assert room in FLOOR_OF, f"{room} has no floor: add it to FLOORS"
    too_high = {other for other in imports_of(path) - {room} if FLOOR_OF[other] >= FLOOR_OF[room]}
    assert too_high == set()


def test_the_floor_test_sees_a_wrong_import(tmp_path):
    wrong = tmp_path / "errors.py"
    wrong.write_text("from tbc.manager import BudgetManager\nimport tbc.swarm\nfrom tbc import ledger\n")
    assert imports_of(wrong) == {"manager", "swarm", "ledger"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_room_outgrows_its_name(path):
    assert path.stem not in {"utils", "helpers", "common", "core", "base", "misc"}
    code = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(code) <= 600


def test_all_is_sorted_complete_and_importable():
    assert sorted(tbc.__all__) == sorted(set(tbc.__all__))
    assert all(hasattr(tbc, name) for name in tbc.__all__)
    assert set(tbc.errors.__all__) <= set(tbc.__all__)
    assert set(tbc.__all__) <= set(dir(tbc))


SURFACE = """
    BudgetManager BudgetContract Ledger Reallocator ConfidenceGate Decision Hold Settlement Rebalance Clearing
    clear current_hold TBCError BudgetExceededError UnknownAgentError NotSent Usage
"""
METHODS = """
    register_agent update_agent govern hold ahold decide record_usage remaining report accounts rebalance
    top_up close_agent reset_confidence subscribe ledger contracts reallocator
"""


def test_the_fixed_names_of_the_surface_exist():
    assert [name for name in SURFACE.split() if not hasattr(tbc, name)] == []
    assert [name for name in METHODS.split() if not hasattr(tbc.BudgetManager(), name)] == []


def test_everything_public_has_a_docstring():
    for name in tbc.__all__:
        thing = getattr(tbc, name)
        if callable(thing):
            assert thing.__doc__, name
            for attribute, member in vars(thing).items() if isinstance(thing, type) else ():
                if not attribute.startswith("_") and callable(member):
                    assert member.__doc__, f"{name}.{attribute}"


def test_import_pays_for_attrs_only():
    code = "import sys, tbc; tbc.BudgetManager().register_agent('a'); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in (
        *("numpy", "tiktoken", "asyncio", "logging", "rich", "cyclopts", "matplotlib", "requests"),
        "opentelemetry",
    ):
        assert f"'{heavy}'" not in loaded


def test_the_wheel_is_what_is_tested_where_it_should_be():
    expected = os.environ.get("TBC_EXPECT_AT", str(ROOT))
    assert PACKAGE.parent == Path(expected).resolve()


def test_py_typed_is_shipped():
    assert (PACKAGE / "py.typed").exists()


def documents() -> list[Path]:
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "papers").glob("*.md")),
    ]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_python_blocks_of_documents_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, str(path), "exec"), {"__name__": "__document__"})
    assert path.name != "README.md" or blocks, "the README shows runnable code"
