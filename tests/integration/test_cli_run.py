"""`tbc run`, `resume`, `runs` and `report` on the example workflows: what a user sees, and the exit codes."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from pathlib import Path

import pytest

from tbc.cli import run

EXAMPLES = Path(__file__).parents[2] / "examples"
TEAM = str(EXAMPLES / "research_team" / "team.yaml")
CHAPTERS = str(EXAMPLES / "overspend" / "chapters.yaml")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_research_team_finishes_within_its_budget_and_takes_its_fallback(capsys):
    assert run(["run", TEAM, "--name", "r"]) == 0
    said = capsys.readouterr().out
    assert "research-team: started, mode enforce" in said
    assert "plan: planner, large, holds $0.00605, 310 tokens" in said
    assert "small instead of large" in said
    assert "report: The rivers matter for 6 reasons" in said
    assert "r: finished, spent $0." in said
    assert "returned" not in said
    assert Path(".tbc/runs.db").stat().st_mode & 0o777 == 0o600


def test_audit_lists_what_enforcement_would_have_refused_and_exits_0(capsys):
    assert run(["run", CHAPTERS, "--name", "r"]) == 0
    said = capsys.readouterr().out
    assert "Enforcement would have refused 2 calls:" in said
    assert "three: REFUSE (exhausted): 'author' asks for $0.12" in said
    assert "warning: 80% of the budget is used: $0.20" in said
    assert "budget exceeded at three: $0.30" in said
    assert "four: Winter came late that year." in said


def test_enforcement_exits_3_and_resume_goes_on(capsys):
    assert run(["run", CHAPTERS, "--mode", "enforce", "--name", "r"]) == 3
    said = capsys.readouterr().out
    assert "three: refused. REFUSE (exhausted)" in said
    assert "saved in " in said
    assert "Go on with more budget:  tbc resume r --add-usd AMOUNT" in said
    assert run(["resume", "r"]) == 3
    capsys.readouterr()
    assert run(["resume", "--add-usd", "0.30"]) == 0
    said = capsys.readouterr().out
    assert "resumed: 2 done before, to do: three, four" in said
    assert "budget raised by $0.30" in said
    assert run(["runs"]) == 0
    assert "finished" in capsys.readouterr().out


def test_the_report_agrees_with_itself_in_every_form(capsys):
    run(["run", CHAPTERS, "--name", "r", "--quiet"])
    capsys.readouterr()
    assert run(["report", "r", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert run(["report", "r", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert run(["report"]) == 0
    shown = capsys.readouterr().out
    total = Decimal(found["total"]["usd"])
    for group in ("agent", "model", "step", "operation"):
        assert sum(Decimal(row["usd"]) for row in rows if row["by"] == group) == total
        assert sum(Decimal(row["usd"]) for row in found[f"{group}s"]) == total
    assert f"total: ${total.normalize():f}, " in shown
    assert found["budget"] == {"usd": "0.250000000"}


def test_results_alone_as_json_and_events_as_lines(capsys):
    assert run(["run", CHAPTERS, "--mode", "enforce", "--json", "--events", "out/events.jsonl"]) == 3
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["state"], list(found["results"])) == ("exhausted", ["one", "two"])
    assert found["error"].startswith("BudgetExceededError: ")
    assert "one: done" in said.err
    lines = [json.loads(line) for line in Path("out/events.jsonl").read_text().splitlines()]
    assert {line["run"] for line in lines} == {found["run"]}
    kinds = [line["event"] for line in lines if line["event"] != "moved"]
    assert (kinds[0], kinds[-1]) == ("run_started", "checkpoint_saved")
    assert "budget_warning" in kinds


def test_what_to_do_depends_on_what_ran_out(capsys):
    flow = FLOW.replace("budget_usd: 0.015", "budget_tokens: 150")
    Path("flow.yaml").write_text(flow)
    assert run(["run", "flow.yaml", "--name", "r"]) == 3
    assert "tbc resume r --add-tokens AMOUNT" in capsys.readouterr().out
    Path("flow.yaml").write_text(
        FLOW.replace("budget_usd: 0.015, ", "").replace("{a: {}}", "{a: {max_calls: 1}}")
    )
    assert run(["run", "flow.yaml", "--name", "c"]) == 3
    assert "Raise max_calls of 'a' in the workflow file" in capsys.readouterr().out


def test_nothing_commands_the_terminal(capsys):
    Path("flow.yaml").write_text(
        FLOW.replace("input: Summer", 'input: "\\e[2J\\e]0;title\\a"').replace("0.015", "1")
    )
    assert run(["run", "flow.yaml", "--name", "r"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_quiet_says_the_result_only(capsys):
    assert run(["run", CHAPTERS, "--quiet", "--name", "r"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("four: Winter came late that year.")
    assert "holds" not in said


def test_a_step_that_fails_exits_1(capsys):
    Path("flow.yaml").write_text(
        "name: flow\nagents: {a: {}}\nsteps: [{id: s, agent: a, call: 'tests.run_steps:fail', input: x}]\n"
    )
    assert run(["run", "flow.yaml", "--name", "r"]) == 1
    said = capsys.readouterr().out
    assert "s: failed: ConnectionError: the line is dead" in said
    assert "Go on:  tbc resume r" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["resume", "r"], "no such file"),
        (["report", "r"], "no such file"),
        (["run", CHAPTERS, "--mode", "stop"], "--mode"),
    ],
)
def test_what_cannot_be_done_exits_2_with_one_line(capsys, arguments, said):
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err + captured.out
    assert "Traceback" not in captured.err


FLOW = """
name: flow
limits: {budget_usd: 0.015, budget_mode: enforce}
agents: {a: {}}
prices: {m: {input_per_million: 0, output_per_million: 100}}
steps:
  - {id: one, agent: a, call: "tests.run_steps:ask", model: m, max_output_tokens: 100, input: Spring}
  - {id: two, agent: a, call: "tests.run_steps:ask", model: m, max_output_tokens: 100, input: Summer,
     after: [one]}
"""


def test_an_unknown_run_and_a_changed_file_exit_2(capsys):
    Path("flow.yaml").write_text(FLOW)
    assert run(["run", "flow.yaml", "--name", "r", "--quiet"]) == 3
    Path("flow.yaml").write_text(FLOW.replace("Spring", "Rain"))
    assert run(["resume", "other"]) == 2
    assert run(["resume", "r", "--add-usd", "1"]) == 2
    said = capsys.readouterr().err
    assert "there is no such run" in said
    assert "has changed since it began: one" in said
    assert run(["resume", "r", "--add-usd", "1", "--accept-changes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["one"] == "answer to Rain"


@pytest.mark.parametrize("amount", ["-1", "nan", "inf", "much", "true"])
def test_story_18_nonsense_is_no_amount_on_the_command_line(capsys, amount):
    run(["run", CHAPTERS, "--mode", "enforce", "--name", "r", "--quiet"])
    capsys.readouterr()
    assert run(["resume", "r", f"--add-usd={amount}"]) == 2
    assert "US dollars" in capsys.readouterr().err
