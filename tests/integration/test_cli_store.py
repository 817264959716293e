"""`tbc store`: what they find, what a user sees, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

import tbc
from tbc.cli import run
from tbc.keeper import Keeper
from tbc.stores import SqliteStore, schema
from tbc.stores.chain import genesis

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAPTERS = str(EXAMPLES / "overspend" / "chapters.yaml")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def started(*arguments: str):
    """Start `tbc` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tbc", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(tbc.__file__).parents[1])},
    )


def write_books(path: str, pool: str = "team", agents: tuple[str, ...] = ("reader", "writer")):
    """Keep a small pool with a loan, an open hold and some spending; return store, manager, keeper."""
    store = SqliteStore(path)
    manager = tbc.BudgetManager(max_tokens=1_000 * len(agents), max_usd="2.00")
    keeper = Keeper(manager, store, pool)
    for place, name in enumerate(agents, start=1):
        manager.register_agent(name, priority=place, max_tokens=900, min_reserve=100)
    with manager.hold(agents[-1], 1_500, usd="0.30") as hold:
        hold.settle(tokens=1_200, usd="0.123456789")
    manager.hold(agents[0], 50, usd="0.05")
    with keeper.keep():
        pass
    return store, manager, keeper


def damage(path: str, *statements: str) -> None:
    """Do to a file what its triggers and foreign keys forbid."""
    connection = apsw.Connection(path)
    for trigger in ("journal_is_never_changed", "journal_is_never_shortened"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def kept_heads(capsys, *arguments: str) -> dict[str, str]:
    assert run(["store", "verify", "s.db", "--heads", *arguments]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {line[2]: line[0] for line in lines if len(line) == 3 and len(line[0]) == 64}


# -- verify -----------------------------------------------------------------------------------


def test_verify_finds_a_run_in_order(capsys):
    run(["run", CHAPTERS, "--mode", "enforce", "--name", "r", "--quiet"])
    capsys.readouterr()
    with started("store", "verify", ".tbc/runs.db") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    (row,) = (line.split() for line in out.splitlines() if "runs/r" in line)
    with SqliteStore(".tbc/runs.db", create=False) as store:
        (pool,) = store.pools()
    assert row == ["runs/r", str(pool.seq), pool.head.hex()[:12] + "...", "ok"]


def test_verify_says_which_line_was_changed_and_checks_the_others(capsys):
    for pool in ("one", "two"):
        write_books("s.db", pool)[0].close()
    damage("s.db", "UPDATE journal SET consumed = consumed - 1 WHERE pool = 'two' AND seq = 7")
    assert run(["store", "verify", "sqlite:///s.db"]) == 4
    said = capsys.readouterr().out
    assert "line 7 was changed" in next(line for line in said.splitlines() if " two " in line)
    assert next(line for line in said.splitlines() if " one " in line).split()[-1] == "ok"
    assert run(["store", "verify", "s.db", "--pool", "one"]) == 0
    assert run(["store", "verify", "s.db", "--pool", "two", "--heads"]) == 4
    assert "0" * 64 not in capsys.readouterr().out


def test_a_head_kept_elsewhere_finds_a_tail_that_was_cut_off_with_the_memory_of_it(capsys):
    store, manager, keeper = write_books("s.db")
    before = store.pools()[0]
    hold = manager.hold("writer", 10, usd="0.01")
    hold.void()
    with keeper.keep():
        pass
    store.close()
    heads = kept_heads(capsys)
    damage(
        "s.db",
        f"DELETE FROM journal WHERE seq > {before.seq}",
        f"UPDATE pools SET seq = {before.seq}, head = x'{before.head.hex()}'",
    )
    assert run(["store", "verify", "s.db"]) == 0, "the chain alone cannot know"
    capsys.readouterr()
    assert run(["store", "verify", "s.db", "--head", heads["team"]]) == 4
    assert f"head {heads['team']}: no line of any pool" in capsys.readouterr().out
    assert run(["store", "verify", "s.db", "--head", before.head.hex()]) == 0


def test_a_head_is_found_anywhere_in_the_chain_of_any_pool_and_only_there(capsys):
    for pool in ("one", "two"):
        store, _, _ = write_books("s.db", pool)
        start = genesis(store.info().ledger_id, pool).hex()
        store.close()
    heads = kept_heads(capsys)
    given = [argument for head in (*heads.values(), start) for argument in ("--head", head)]
    assert run(["store", "verify", *given, "s.db"]) == 0
    assert run(["store", "verify", "s.db", "--pool", "one", "--head", heads["two"]]) == 4
    assert "no line of pool 'one' has this hash" in capsys.readouterr().out
    assert run(["store", "verify", "s.db", "--head", "ab12"]) == 2
    assert "64 hexadecimal digits" in capsys.readouterr().err


def test_a_file_whose_pages_are_damaged_is_code_4(capsys):
    write_books("s.db")[0].close()
    with open("s.db", "rb+") as file:
        file.seek(4096 + 8)
        file.write(b"\xff" * 3000)
    assert run(["store", "verify", "s.db"]) == 4
    assert "restore a backup" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["store", "verify"], ["store", "info"]])
def test_what_is_not_there_is_not_made(command, capsys, tmp_path):
    assert run([*command, "nope/s.db"]) == 2
    assert run([*command, "sqlite:///s.db"]) == 2
    assert list(tmp_path.iterdir()) == []
    assert "there is no such file" in capsys.readouterr().err
    assert run([*command, "mysql://me:secret@host/db"]) == 2
    assert "secret" not in capsys.readouterr().err


def test_markup_and_commands_in_names_are_only_text(capsys):
    write_books("s.db", "team", ("[red]a[/red]", "[bold]b\\[/"))[0].close()
    damage("s.db", "UPDATE accounts SET consumed = 7 WHERE agent LIKE '[bold]%' AND axis = 'tokens'")
    assert run(["store", "verify", "s.db"]) == 4
    assert "consumed of '[bold]b\\\\[/' on tokens is 7" in " ".join(capsys.readouterr().out.split())


# -- backup and info --------------------------------------------------------------------------


def test_a_backup_is_another_epoch_of_the_same_books(capsys):
    store, _, _ = write_books("s.db")
    assert run(["store", "backup", "s.db", "copies/c.db"]) == 0
    assert "lines: 16, runs: 0, epoch: 1" in capsys.readouterr().out
    assert run(["store", "verify", "copies/c.db", "--head", store.pools()[0].head.hex()]) == 0
    store.close()
    assert run(["store", "backup", "s.db", "copies/c.db"]) == 2
    assert "there is a file already" in capsys.readouterr().err


def test_a_backup_of_a_server_says_what_to_do(capsys):
    assert run(["store", "backup", "postgresql://me:secret@host/db", "c.db"]) == 2
    said = capsys.readouterr().err
    assert "pg_dump" in said and "secret" not in said


def test_info_in_words_and_as_json(capsys):
    write_books("s.db")[0].close()
    assert run(["store", "info", "s.db", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pools"] == [{"pool": "team", "mode": "enforce", "agents": 3, "open_holds": 1, "lines": 16}]
    assert found["engine"].startswith("SQLite 3.") and found["schema"] == len(schema.MIGRATIONS)
    assert (found["epoch"], found["runs"], found["size"]) == (0, [], Path("s.db").stat().st_size)
    assert run(["store", "info", "s.db"]) == 0
    said = capsys.readouterr().out
    assert found["ledger_id"] in said
    assert ["team", "enforce", "3", "1", "16"] in [line.split() for line in said.splitlines()]
