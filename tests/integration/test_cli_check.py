"""`tbc check`: it explains a file, states the arithmetic, says what is unknown, and calls nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tbc.cli import run

TEAM = """
name: team
limits: {budget_usd: 2, budget_tokens: 120000, budget_mode: enforce}
agents:
  lead: {priority: 5, max_tokens: 50000, min_reserve: 10000}
  reader: {parent: lead, max_tokens: 40000}
  "[bold]": {confidence_threshold: 0.9}
prices:
  small: {input_per_million: 1, output_per_million: 10}
steps:
  - {id: plan, agent: lead, call: "trap_for_check:go", model: small, max_output_tokens: 500, input: Plan it.}
  - {id: read, agent: reader, call: "trap_for_check:go", model: small, max_output_tokens: 100,
     for_each: "{{ steps.plan }}", input: "{{ item }}"}
  - {id: write, agent: "[bold]", call: "trap_for_check:go", model: nobodys, fallback_model: small,
     fallback_when: 0.8, input: "{{ steps.read }}"}
"""


def write(tmp_path: Path, text: str = TEAM) -> str:
    path = tmp_path / "team.yaml"
    path.write_text(text)
    return str(path)


def words(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_file_is_explained(tmp_path, capsys):
    assert run(["check", write(tmp_path)]) == 0

    said = words(capsys)
    assert "Budget: $2.00 and 120,000 tokens" in said
    assert "Mode enforce: a call that does not fit is refused before it is made." in said
    assert "Warnings at 50%, 80%, 100%" in said
    assert "[bold]" in said
    assert "3 write [bold] nobodys (from 0.8: small) 1 read" in said
    assert "tokens of the run: 50,000 <= 120,000: fits" in said
    assert "tokens of lead: 40,000 <= 50,000 - reserve 10,000 = 40,000: fits" in said
    assert "read 0 unknown $0.00 unknown" in said
    assert "write 0 unknown unknown unknown" in said
    assert "at least" in said
    assert "Not in the totals, as far as unknown: read, write" in said
    assert "Calls of write without a known price will be refused" in said


def test_story_24_checking_makes_no_call_and_shows_unknown_as_unknown(tmp_path, monkeypatch, capsys):
    (tmp_path / "trap_for_check.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert run(["check", write(tmp_path), "--json"]) == 0
    assert "trap_for_check" not in sys.modules
    found = json.loads(capsys.readouterr().out)
    assert found["estimate"]["unknown"]["usd"] == {"low": ["write"], "high": ["read", "write"]}
    assert found["estimate"]["nano_usd"]["low"] > 0
    assert found["estimate"]["steps"][2]["nano_usd"] == {"low": None, "high": None}


def test_story_07_caps_that_do_not_fit_are_said_with_the_arithmetic_and_exit_1(tmp_path, capsys):
    agents = "{" + ", ".join(f"r{i}: {{max_tokens: 40000}}" for i in range(4)) + "}"
    text = "name: t\nlimits: {budget_tokens: 120000}\n"
    text += f"agents: {agents}\nsteps: [{{id: s, agent: r0, call: 'a:b'}}]"

    assert run(["check", write(tmp_path, text)]) == 1
    assert "tokens of the run: 4 x 40,000 = 160,000 > 120,000: refused; 3 would fit" in words(capsys)
    assert run(["check", write(tmp_path, text), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False
    assert found["admission"][0]["asked"] == 160_000


def test_json_has_all_of_it(tmp_path, capsys):
    assert run(["check", write(tmp_path), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["limits"] == {
        "budget_usd": "2",
        "budget_tokens": 120_000,
        "budget_mode": "enforce",
        "warn_at": [0.5, 0.8, 1.0],
    }
    assert found["layers"] == [["plan"], ["read"], ["write"]]
    assert found["agents"]["reader"]["parent"] == "lead"
    assert len(found["fingerprint"]) == 64
    assert found["estimate"]["steps"][0]["nano_usd"]["high"] > 500 * 10_000


def test_a_budget_of_nothing_and_no_budget_are_told_apart(tmp_path, capsys):
    plain = "name: t\nagents: {a: {}}\nsteps: [{id: s, agent: a, call: 'a:b'}]\n"

    assert run(["check", write(tmp_path, plain)]) == 0
    said = words(capsys)
    assert "Budget: none for the run as a whole" in said
    assert "Mode audit: nothing is refused." in said
    assert "nothing is carved out" in said
    assert "Warnings" not in said
    assert run(["check", write(tmp_path, plain + "limits: {budget_usd: 0}")]) == 0
    assert "A budget of 0 leaves room for nothing." in words(capsys)


def test_problems_are_one_line_each_on_standard_error_and_exit_2(tmp_path, capsys):
    path = write(tmp_path, TEAM.replace("budget_usd", "budget_usdd") + "runtime: {budget_usd: 5}\n")

    assert run(["check", path]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"tbc: {path}: runtime.budget_usd: unknown key; did you mean limits.budget_usd?",
        f"tbc: {path}: limits.budget_usdd: unknown key; did you mean budget_usd?",
    ]
    assert run(["check", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_it_is_a_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tbc", "check", write(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("team (")


@pytest.mark.parametrize("package", ["cattrs", "yaml"])
def test_without_the_extra_it_prints_the_install_line(package, tmp_path):
    code = f"import sys; sys.modules[{package!r}] = None; from tbc.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "check", write(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 1
    assert done.stderr == f'The tbc command needs {package}. Install it with:  pip install "tbc[runs]"\n'
