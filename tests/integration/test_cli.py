"""The `tbc` command: what it prints, its exit codes, and what it says when something is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tbc
from tbc.cli import run

FAST = ["--splits", "1"]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, where the picture is not what is tested."""
    monkeypatch.setattr("tbc.cli.replay._draw", lambda report, out, workload: print(f"picture: {out}"))


def write_trace(path: Path, runs: int = 8) -> Path:
    lines = ["team,agent,role,step,input_tokens,output_tokens"]
    for i in range(runs):
        lines += [f"t{i},aide,aide,{step},{300 + 10 * i},{20 + step}" for step in range(5)]
        lines.append(f"t{i},lead,lead,5,{400 + 20 * i},100")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_replay_prints_the_table_the_words_and_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, figures = tmp_path / "a" / "p.png", tmp_path / "b" / "f.json"

    assert run(["replay", *FAST, "--out", str(picture), "--json", str(figures)]) == 0

    printed = capsys.readouterr().out
    assert "equal split" in printed
    assert "finalize served (priority 4)" in printed
    assert "Simulated: 140 research runs made by the built-in generator" in printed
    assert "laid on" in printed
    assert "tried out on the training runs" in " ".join(printed.split())
    assert f"picture: {picture}" in printed.replace("\n", "")
    assert picture.stat().st_size > 20_000
    found = json.loads(figures.read_text())
    assert found["tbc"] == tbc.__version__
    assert len(found["late_quantiles"]) == 1
    assert found["groups"]["all runs"]["tbc market"]["sum_over_repetitions"]["grants_above"] == 0


@pytest.mark.usefixtures("no_picture")
def test_equal_seeds_print_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(2):
        assert run(["replay", "--agents", "8", *FAST, "--seed", "5", "--out", str(tmp_path / "p.png")]) == 0
        printed.append(capsys.readouterr().out)

    assert printed[0] == printed[1]


@pytest.mark.usefixtures("no_picture")
def test_a_trace_of_ones_own_is_replayed_with_a_role_to_protect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write_trace(tmp_path / "own.csv")
    arguments = [str(trace), *FAST, "--out", str(tmp_path / "p.png")]

    assert run(["replay", *arguments]) == 0
    assert "8 runs of own.csv" in capsys.readouterr().out
    assert run(["replay", *arguments, "--late-role", "lead", "--pressure", "0.6"]) == 0
    printed = capsys.readouterr().out
    assert "a reserve for lead" in " ".join(printed.split())
    assert "budget: 60 % of demand · runs with a lead call" in printed


@pytest.mark.usefixtures("no_picture")
def test_runs_of_one_agent_share_a_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "solo.csv"
    lines = ["team,agent,role,step,input_tokens,output_tokens"]
    lines += [f"t{i},a,coder,{step},{100 * step + i},10" for i in range(10) for step in range(4)]
    trace.write_text("\n".join(lines) + "\n")

    assert run(["replay", str(trace), *FAST, "--out", str(tmp_path / "p.png")]) == 0
    found = capsys.readouterr()
    assert "20 agents on one pool" in found.out
    assert "each run has one agent" in found.err


@pytest.mark.usefixtures("no_picture")
def test_a_bare_name_is_looked_for_in_the_folder_of_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trace(tmp_path / "own.csv")
    monkeypatch.setenv("TBC_TRACES", str(tmp_path))

    assert run(["replay", "own.csv", *FAST, "--out", str(tmp_path / "p.png")]) == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("team,agent,role,step,input_tokens,output_tokens\nt,a,a,0,1.5,2\n", "line 2, column input_tokens"),
        ("team,agent,role,step,input_tokens\n", "lacks the column output_tokens"),
        ("team,agent,role,step,input_tokens,output_tokens\nt,a,a,0,1,2\nt,b,b,1,1,2\n", "holds 1 run;"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_2(
    content: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "bad.csv"
    trace.write_text(content)

    assert run(["replay", str(trace)]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    assert found.err.startswith("tbc: ")
    assert reason in found.err


def test_other_mistakes_are_exit_code_2_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert run(["replay", "missing.csv"]) == 2
    assert "missing.csv: cannot be read (No such file or directory)" in capsys.readouterr().err
    trace = str(write_trace(tmp_path / "own.csv"))
    assert run(["replay", trace, "--late-role", "boss"]) == 2
    assert "no run has the role 'boss'; there are aide, lead" in capsys.readouterr().err
    assert run(["replay", trace, *FAST, "--out", "file/p.png"]) == 2
    assert capsys.readouterr().err.startswith("tbc: ")
    for wrong in (
        ["--agents", "4"],
        ["--agents", "2001"],
        ["--agents", "many"],
        ["--pressure", "0"],
        ["--pressure", "nan"],
        ["--splits", "0"],
        ["--seed", "-1"],
        ["--nonsense"],
    ):
        assert run(["replay", *wrong]) == 2, wrong
        assert "Traceback" not in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == tbc.__version__
    assert run(["--help"]) == 0
    assert "replay" in capsys.readouterr().out
    assert run(["replay", "--help"]) == 0
    assert "--pressure" in capsys.readouterr().out


def test_the_module_runs_as_a_command() -> None:
    missing = python("-m", "tbc", "replay", "missing.csv")
    assert missing.returncode == 2
    assert missing.stderr.startswith("tbc: missing.csv")
    assert "Traceback" not in missing.stderr


@pytest.mark.parametrize("package", ["cyclopts", "rich"])
def test_without_the_cli_extra_the_command_prints_the_install_line(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from tbc.__main__ import main; main()"
    found = python("-c", code)

    assert found.returncode != 0
    assert 'pip install "tbc[cli,plot]"' in found.stderr
    assert "Traceback" not in found.stderr


def test_an_import_error_of_our_own_is_not_hidden() -> None:
    code = "import sys; sys.modules['tbc.errors'] = None; from tbc.__main__ import main; main()"

    assert "Traceback" in python("-c", code).stderr


def test_without_matplotlib_the_table_is_printed_and_the_install_line(tmp_path: Path) -> None:
    arguments = ["replay", str(write_trace(tmp_path / "own.csv")), *FAST, "--out", str(tmp_path / "p.png")]
    code = (
        f"import sys; sys.modules['matplotlib'] = None; from tbc.cli import run; sys.exit(run({arguments}))"
    )
    found = python("-c", code)

    assert found.returncode == 0
    assert "lead served" in found.stdout
    assert 'pip install "tbc[plot]"' in found.stderr
    assert not (tmp_path / "p.png").exists()


def test_importing_the_swarm_loads_no_pictures_and_no_command_line() -> None:
    code = (
        "import sys, tbc.swarm; "
        "print([name for name in ('matplotlib', 'rich', 'cyclopts', 'tbc.cli') if name in sys.modules])"
    )

    assert python("-c", code).stdout.strip() == "[]"
