"""`tbc store` and `tbc watch`: what they find, what a user sees, and the exit codes."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

import tbc
from tbc.cli import run
from tbc.cli.watch import bar, picture, short
from tbc.cli.watched import Share, Watched
from tbc.keeper import Keeper
from tbc.stores import AccountRow, AgentRow, LineRow, PoolRow, SqliteStore, schema
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


@pytest.mark.parametrize("command", [["store", "verify"], ["store", "info"], ["watch"]])
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


def test_a_backup_can_be_restored_again_and_again(capsys, tmp_path):
    """Whoever knows a hold of a life that is lost knows none of the next, whoever has looked at the copy."""
    write_books("s.db")[0].close()
    for command in (["backup", "s.db", "copy.db"], ["verify", "copy.db"], ["info", "copy.db"]):
        assert run(["store", *command]) == 0
    lives = []
    for name in ("first.db", "second.db"):
        shutil.copy("copy.db", name)
        with tbc.BudgetManager(store=f"sqlite:///{tmp_path / name}") as manager:
            manager.register_agent("a", max_tokens=None)
            lives.append({manager.hold("a", 1).hold_id for _ in range(3)})
        with SqliteStore(tmp_path / name) as store:
            assert store.numbers_from() == store.numbers_from() < min(lives[-1])
    assert not lives[0] & lives[1]
    capsys.readouterr()


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


# -- watch, as data ----------------------------------------------------------------------------------------


def same_sight(ours: Watched, theirs: Watched) -> bool:
    """Whether two readers, one that followed and one that began anew, see the same."""
    return ours.sight(0.0) == theirs.sight(0.0)


def test_who_follows_sees_what_one_sees_who_begins_anew():
    store, manager, keeper = write_books("s.db")
    watched = Watched(store, "team")
    assert not watched.look()
    manager.register_agent("late", parent="reader", max_tokens=50)
    kept = manager.hold("late", 40, usd="0.01")
    manager.hold("writer", 100, usd="0.01").settle(tokens=90, usd="0.01")
    with keeper.keep():
        pass
    behind = watched.sight(0.0)
    assert not same_sight(watched, Watched(store, "team")), "the comparison can fail"
    assert watched.look()
    assert same_sight(watched, Watched(store, "team"))
    kept.void()
    manager.close_agent("late")
    with keeper.keep():
        pass
    watched.look()
    assert same_sight(watched, Watched(store, "team"))
    assert (behind.agents, watched.sight(0.0).agents) == (3, 4)
    assert [place.agent for place in watched.sight(0.0).places if place.closed] == ["late"]
    store.close()


def test_sums_and_transfers_are_those_of_the_manager():
    store, manager, _ = write_books("s.db")
    sight = Watched(store, "team").sight(0.0)
    for axis in ("tokens", "usd"):
        books = manager.accounts(axis)
        assert sight.sums[axis].capped.spent == sum(own.consumed for own in books) > 0
        assert sight.sums[axis].capped.held == sum(own.held for own in books) > 0
    assert sight.sums["tokens"].capped.allocated == 2_000
    assert sight.open_holds == 1
    loans = [(move.donor, move.recipient, move.amount) for move in sight.moves if move.kind == "loan"]
    assert loans == [("reader", "writer", 400)]
    store.close()


@given(*[st.integers(0, 2**50)] * 4)
def test_a_share_divides_the_allocation(allocated, spent, held, reserve):
    share = Share.of(AccountRow("a", "tokens", True, allocated, spent, held, reserve))
    assert share.spent + share.held + share.reserve + share.free == share.allocated + share.owed
    assert min(share) >= 0 and share.reserve <= reserve and (share.free == 0 or share.reserve == reserve)


def write_lines(path: str, count: int, at: float, agents: int = 10) -> SqliteStore:
    """Keep a pool in which every agent has a row and each line spends one token, a second after the last."""
    store = SqliteStore(path)
    with store.transaction() as writer:
        writer.put_pool(PoolRow("p", "enforce", 0.0))
        writer.put_agents("p", [AgentRow("(root)", 0, None)])
        writer.put_agents("p", (AgentRow(f"a{n}", n, "(root)") for n in range(1, agents)))
        accounts = (AccountRow(f"a{n}", "tokens", True, 9_000, 0, 0) for n in range(1, agents))
        writer.put_accounts("p", accounts)
        lines = (
            LineRow(seq, at - count + seq, "usage", f"a{seq % (agents - 1) + 1}", None, 0, 1, 0)
            for seq in range(1, count + 1)
        )
        writer.append("p", lines)
    return store


def test_the_rate_is_that_of_the_last_minute_however_long_the_journal():
    with write_lines("s.db", 3_000, at=5_000.0) as store:
        watched = Watched(store, "p")
        assert watched.sight(5_000.0).sums["tokens"].per_minute == 61  # both ends of the minute
        assert watched.sight(5_040.0).sums["tokens"].per_minute == 21
        assert watched.sight(9_999.0).sums["tokens"].per_minute == 0


def test_of_many_agents_the_last_active_ones_are_shown_with_those_above_them():
    with write_lines("s.db", 500, at=5_000.0, agents=1_000) as store:
        watched = Watched(store, "p")
        sight = watched.sight(5_000.0)
        names = {place.agent for place in sight.places}
        assert (len(names), sight.agents) == (30, 1_000)
        assert names == {"(root)"} | {f"a{seq + 1}" for seq in range(472, 501)}
        assert sight.places[0].agent == "(root)"
        said = drawn(watched, 80)
        assert "970 more agents are not shown" in said


def test_a_path_deeper_than_the_picture_still_shows_its_end():
    with SqliteStore("s.db") as store:
        with store.transaction() as writer:
            writer.put_pool(PoolRow("p", "enforce", 0.0))
            chain = [AgentRow(f"a{n}", n, f"a{n - 1}" if n else None) for n in range(200)]
            writer.put_agents("p", chain)
            writer.append("p", [LineRow(1, 0.0, "usage", "a199", None, 0, 1, 0)])
        watched = Watched(store, "p")
        assert [place.agent for place in watched.sight(0.0).places] == [f"a{n}" for n in range(170, 200)]
        assert all(cell_len(line) <= 80 for line in drawn(watched, 80).splitlines())


# -- watch, as it is seen ----------------------------------------------------------------------------------


def drawn(watched: Watched, width: int, *, ascii_only: bool = False, now: float = 0.0) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(picture(watched.sight(now), width, ascii_only=ascii_only))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 132])
def test_no_line_is_wider_than_the_terminal(width):
    store, _, _ = write_books(
        "s.db", agents=("a name that is far too long for a column of it", "書き手", "w")
    )
    for ascii_only in (False, True):
        said = drawn(Watched(store, "team"), width, ascii_only=ascii_only)
        assert max(cell_len(line) for line in said.splitlines()) <= width
        assert "$0.123456789" not in said and "~$0.1235/" in said
    store.close()


def test_the_picture_at_80_columns():
    store, _, _ = write_books("s.db")
    said = drawn(Watched(store, "team"), 80, ascii_only=True)
    store.close()
    lines = said.splitlines()
    assert lines[0] == "pool team, opened in enforce mode, 3 agents, open holds: 1, line 16"
    (reader,) = (line for line in lines if line.startswith("|-reader"))
    (writer,) = (line for line in lines if line.startswith("`-writer"))
    assert re.fullmatch(r"\|-reader +=+-+\.+ +0/\S+ +=+ +\$0\.00/\$0\.05", reader.rstrip())
    assert "~$0.1235/~$0.1235" in writer
    assert any(re.search(r"loan +400 tokens  reader -> writer", line) for line in lines)
    assert lines[-1].rstrip() == "# spent  = held  - reserve  . free  ~ rounded"


def test_names_are_text_and_command_nothing():
    store, _, _ = write_books("s.db", agents=("[red]x[/red]", "[/]"))
    with store.transaction() as writer:
        writer.append("team", [LineRow(17, 0.0, "loan", "[/]", "[red]x[/red]", 1, 0, 0, note="\x1b[2J")])
    said = drawn(Watched(store, "team"), 100)
    assert "├╴[red]x[/red]" in said and "[red]x[/red] -> [/]" in said
    assert "\x1b" not in said
    store.close()
    damage("s.db", "UPDATE agents SET agent = 'e' || char(27) || '[2J' WHERE agent = '[/]'")
    with SqliteStore("s.db") as store:
        said = drawn(Watched(store, "team"), 100)
    assert "\x1b" not in said and "e\\x1b[2J" in said


@given(st.integers(1, 200), st.tuples(*[st.integers(0, 2**50)] * 4))
def test_a_bar_is_as_wide_as_it_should_be_and_true_to_a_cell(width, parts):
    text = bar(Share(*parts, 0, sum(parts)), width, ascii_only=True).plain
    assert len(text) == width
    for glyph, part in zip("#=-.", parts, strict=True):
        if sum(parts):
            assert abs(text.count(glyph) - part * width / sum(parts)) <= 1


@given(st.integers(-(2**53), 2**53), st.sampled_from(["tokens", "usd"]))
def test_a_short_number_says_when_it_is_rounded_and_is_near(amount, axis):
    said = short(axis, amount)
    number = re.fullmatch(r"(~?)(-?)\$?(<?)\$?([\d,.]+)([MBT]?)", said)
    assert number is not None, said
    rounded, minus, below, digits, letter = number.groups()
    value = float(digits.replace(",", "")) * {"": 1, "M": 1e6, "B": 1e9, "T": 1e12}[letter]
    value *= (1e9 if axis == "usd" else 1) * (-1 if minus else 1)
    assert abs(value - amount) <= max(abs(amount) * 0.01, 100_000)
    if not rounded and not below:
        assert value == pytest.approx(amount, rel=1e-15, abs=1e-3)
    assert len(said) <= 12


# -- watch, as a process -----------------------------------------------------------------------------------

WRITER = """
import sys
import tbc
from tbc.keeper import Keeper
from tbc.stores import SqliteStore

store = SqliteStore("s.db")
manager = tbc.BudgetManager(max_tokens=10**9)
keeper = Keeper(manager, store, "busy")
manager.register_agent("worker", max_tokens=10**8)
while True:
    manager.hold("worker", 10).settle(tokens=7)
    with keeper.keep():
        pass
    print(store.pools()[0].seq, flush=True)
"""


def test_a_writer_at_work_is_seen_and_not_disturbed(capsys):
    env = os.environ | {"PYTHONPATH": str(Path(tbc.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-c", WRITER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as writer:
        try:
            assert writer.stdout is not None
            seen = int(writer.stdout.readline())
            lines = []
            for _ in range(3):
                assert run(["watch", "s.db", "--once"]) == 0
                found = re.search(r"pool busy, .* line ([\d,]+)", capsys.readouterr().out)
                assert found is not None
                lines.append(int(found[1].replace(",", "")))
            assert run(["store", "verify", "s.db"]) == 0
            written = [int(writer.stdout.readline()) for _ in range(50)]
            assert seen <= lines[0] <= lines[1] <= lines[2]
            assert writer.poll() is None and written == sorted(written)
        finally:
            writer.kill()


def test_pools_are_listed_where_there_is_more_than_one(capsys):
    for pool in ("one", "two"):
        write_books("s.db", pool)[0].close()
    assert run(["watch", "s.db"]) == 2
    assert "it has 2 pools: one, two. Name one with --pool" in capsys.readouterr().err
    assert run(["watch", "s.db", "--pool", "three"]) == 2
    assert run(["watch", "s.db", "--pool", "two"]) == 0
    assert "pool two, opened in enforce mode" in capsys.readouterr().out
    assert run(["watch", "s.db", "--every", "nan"]) == 2


def test_a_refusal_of_a_run_is_shown(capsys):
    run(["run", CHAPTERS, "--mode", "enforce", "--name", "r", "--quiet"])
    capsys.readouterr()
    assert run(["watch", ".tbc/runs.db"]) == 0
    said = capsys.readouterr().out
    assert "three: REFUSE (exhausted): 'author' asks for $0.12" in said
    assert "2,505" not in said and "$0.2001 spent, $0.0499 free of $0.25" in said


def in_a_terminal(*arguments: str) -> tuple[subprocess.Popen, int]:
    """Start `tbc` in a terminal of 80 columns and 24 lines; return it and our end of the terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tbc", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env | {"PYTHONPATH": str(Path(tbc.__file__).parents[1]), "TERM": "xterm"},
    )
    os.close(theirs)
    return process, ours


def read_until(ours: int, text: str) -> str:
    """Read what a terminal shows until it has shown `text`, or nothing comes any more."""
    said = b""
    while text.encode() not in said:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # the other end was closed
            break
        if not piece:
            break
        said += piece
    return said.decode("utf-8", "replace")


def test_a_terminal_is_followed_live_and_given_back_at_ctrl_c():
    store, manager, keeper = write_books("s.db")
    process, ours = in_a_terminal("watch", "s.db", "--every", "0.05")
    said = read_until(ours, "line 16")
    assert "\x1b[?1049h" in said
    manager.hold("reader", 10, usd="0.01")
    with keeper.keep():
        pass
    assert "open holds: 2" in read_until(ours, "open holds: 2")
    process.send_signal(signal.SIGINT)
    rest = read_until(ours, "never said")
    assert (process.wait(60), "Traceback" in rest) == (0, False)
    assert "\x1b[?1049l" in rest and "\x1b[?25h" in rest
    os.close(ours)
    store.close()


def test_the_whole_picture_fits_on_the_screen_however_many_agents_there_are():
    write_lines("s.db", 500, at=5_000.0, agents=1_000).close()
    process, ours = in_a_terminal("watch", "s.db", "--every", "0.05")
    said = read_until(ours, "~ rounded")
    process.send_signal(signal.SIGINT)
    read_until(ours, "never said")
    assert process.wait(60) == 0
    os.close(ours)
    assert "983 more agents are not shown" in said and "~ rounded" in said
    assert said.count("├╴") + said.count("└╴") == 16


def test_a_store_that_vanishes_ends_it_with_code_4():
    write_books("s.db")[0].close()
    process, ours = in_a_terminal("watch", "s.db", "--every", "0.05")
    read_until(ours, "line 16")
    os.rename("s.db", "elsewhere.db")
    rest = read_until(ours, "never said")
    assert process.wait(60) == 4
    left, _, after = rest.partition("\x1b[?1049l")
    assert left and "removed or replaced" in " ".join(after.split())
    assert "Traceback" not in rest
    assert not Path("s.db").exists()
    os.close(ours)


def test_leases_are_listed_and_closed_once_their_end_has_passed(capsys):
    clock = tbc.clock.ManualClock(1_000.0)
    with SqliteStore("books.db") as store:
        for pool in ("one", "two"):
            manager = tbc.BudgetManager(store=store, pool=pool, clock=clock, max_tokens=1000, max_usd="1")
            manager.register_agent("writer", max_tokens=0, max_usd=0)
            manager.close()
        manager = tbc.BudgetManager(store=store, pool="two", clock=clock)
        old = manager.lease("writer", share=0.5, seconds=30, holder="host:1").hold_id
        manager.close()
        manager = tbc.BudgetManager(store=store, pool="two")  # by the store's own clock: now
        new = manager.lease("writer", share=0.5, seconds=3000, holder="host:2").hold_id
        manager.close()
        manager = tbc.BudgetManager(store=store, pool="one", clock=clock)
        manager.hold("writer", 10, usd=0, expires_s=1)  # long ago: whoever writes next frees it
        manager.close()
        heads = [row.head for row in store.pools()]
    assert run(["store", "leases", "books.db", "--pool", "one"]) == 0
    assert capsys.readouterr().out == "No lease is open.\n"
    assert run(["store", "leases", "books.db"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (first,) = (line for line in lines if "host:1" in line)
    (second,) = (line for line in lines if "host:2" in line)
    assert "1970-01-01 00:17:10 UTC, overdue" in first and "500 tokens, $0.50" in first
    assert "overdue" not in second
    with SqliteStore("books.db") as store:
        assert [row.head for row in store.pools()] == heads  # to list is not to write
    assert run(["store", "close-lease", "books.db", str(old)]) == 2  # in which pool?
    assert "one, two" in capsys.readouterr().err
    assert run(["store", "close-lease", "books.db", str(new), "--pool", "two"]) == 2
    assert "may still be spent by worker 'host:2'" in capsys.readouterr().err
    close = ["store", "close-lease", "books.db", str(old), "--pool", "two"]
    assert run([*close, "--tokens", "70", "--usd", "0.1", "--calls", "2", "--note", "by the bill"]) == 0
    assert "70 tokens, $0.10, 2 calls booked now, the rest is free" in capsys.readouterr().out
    assert run([*close, "--tokens", "80", "--note", "more"]) == 0
    assert "had ended" in capsys.readouterr().out
    assert run(["store", "close-lease", "books.db", "10000", "--pool", "two"]) == 2
    assert run(["store", "leases", "books.db", "--pool", "none"]) == 2
    assert run(["store", "verify", "books.db"]) == 0
    with SqliteStore("books.db") as store:
        notes = [(line.note, line.consumed) for line in store.entries("two") if line.axis == "tokens"]
    assert ("by the bill", 70) in notes and ("more", 10) in notes
