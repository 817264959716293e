"""Reading traces: schemas by header, order of calls, and errors that name file, line and column."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

import tbc
from tbc.swarm.traces import Run, parse_trace, read_trace

RESEARCH = "team,agent,role,batch,step,t_s,elapsed_s,tool_wait_s,input_tokens,output_tokens"
CODING = (
    "agent,session,step,t_s,t_agent_s,input_tokens,cached_input_tokens,output_tokens,output_cap,"
    "tool_calls,solved"
)
SOCIAL = (
    "team,agent,role,model,round,step,phase,llm_calls,input_tokens,output_tokens,split_estimated,"
    "last_alive_round,agent_won"
)


def parse(*lines: str) -> tuple[Run, ...]:
    return parse_trace(io.StringIO("\n".join(lines) + "\n"), "trace.csv")


def test_research_rows_become_calls_in_start_order() -> None:
    [run] = parse(
        RESEARCH,
        "r0,finalize,finalize,b1,2,9.5,4.0,1.5,900,300",
        "r0,planner,planner,b1,0,0.0,2.0,0.0,100,50",
        "r0,agent,agent,b1,1,3.0,5.0,1.0,400,70",
    )

    assert (run.name, run.kind, run.demand) == ("r0", "research", 1_820)
    assert [call.role for call in run.calls] == ["planner", "agent", "finalize"]
    assert [(call.start_s, call.duration_s, call.wait_s) for call in run.calls] == [
        (0.0, 2.0, 0.0),
        (3.0, 5.0, 1.0),
        (9.5, 4.0, 1.5),
    ]
    assert run.roles == {"planner": "planner", "agent": "agent", "finalize": "finalize"}


def test_start_order_beats_the_order_of_steps() -> None:
    [run] = parse(RESEARCH, "r0,p,p,,0,2.0,1,0,10,1", "r0,a,a,,1,1.5,1,0,20,1")

    assert [call.agent for call in run.calls] == ["a", "p"]


def test_without_times_the_steps_order_calls_and_durations_are_assumed() -> None:
    [run] = parse(RESEARCH, "r0,a,a,,1,,,,20,60", "r0,p,p,,0,,,,10,120")

    assert [(call.agent, call.duration_s) for call in run.calls] == [("p", 3.0), ("a", 2.0)]
    assert [call.start_s for call in run.calls] == [0.0, 3.0]


def test_coding_rows_are_one_agent_a_run_with_waits_from_the_answers() -> None:
    first, second = parse(
        CODING,
        "issue-1,1,0,1.5,0.0,1000,0,30,800,1,1",
        "issue-1,1,1,9.5,8.0,1200,0,30,800,1,1",
        "issue-2,1,0,4.0,0.0,1100,0,60,800,1,0",
    )

    assert (first.name, first.kind, first.roles) == ("issue-1", "coding", {"coder": "coder"})
    assert [(call.start_s, call.wait_s) for call in first.calls] == [(0.0, 0.0), (8.0, 6.5)]
    assert {call.output_cap for call in first.calls + second.calls} == {800}


def test_social_rows_keep_turns_and_roles() -> None:
    [run] = parse(
        SOCIAL,
        "g0,a0,impostor,m,0,0,action,2,1871,274,0,,1",
        "g0,a1,crewmate,m,0,1,vote,1,1835,190,0,3,0",
    )

    assert run.kind == "social"
    assert run.roles == {"a0": "impostor", "a1": "crewmate"}
    assert [call.output_cap for call in run.calls] == [4_096, 2_048]
    assert [call.start_s for call in run.calls] == [0.0, 10.0]


def test_own_recordings_need_six_columns_and_may_have_more() -> None:
    [run] = parse(
        "note,team,agent,role,step,input_tokens,output_tokens", "x,t,lead,lead,0,5,6", ",t,aide,aide,1,7,8"
    )

    assert (run.kind, run.demand) == ("calls", 26)


def test_a_byte_order_mark_and_empty_lines_are_no_error(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(
        "\ufeffteam,agent,role,step,input_tokens,output_tokens\n\nt,a,a,0,5,6\n\n", encoding="utf-8"
    )

    [run] = read_trace(path)
    assert run.demand == 11


@pytest.mark.parametrize(
    ("cells", "column", "shown"),
    [
        ("r0,a,a,,0,0,1,0,12.5,7", "input_tokens", "'12.5'"),
        ("r0,a,a,,0,0,1,0,-5,7", "input_tokens", "'-5'"),
        ("r0,a,a,,0,0,1,0,5,", "output_tokens", "''"),
        ("r0,a,a,,0,0,1,0,5,1_000", "output_tokens", "'1_000'"),
        ("r0,a,a,,0,0,1,0,5,9007199254740992", "output_tokens", "'9007199254740992'"),
        ("r0,a,a,,x,0,1,0,5,7", "step", "'x'"),
        ("r0,a,a,,0,nan,1,0,5,7", "t_s", "'nan'"),
        ("r0,a,a,,0,0,-1,0,5,7", "elapsed_s", "'-1'"),
        ("r0,a,a,,0,0,1,inf,5,7", "tool_wait_s", "'inf'"),
        ("r0, ,a,,0,0,1,0,5,7", "agent", "' '"),
        (",a,a,,0,0,1,0,5,7", "team", "''"),
    ],
)
def test_a_bad_cell_is_named_with_file_line_and_column(cells: str, column: str, shown: str) -> None:
    with pytest.raises(tbc.TraceError) as caught:
        parse(RESEARCH, "r0,a,a,,7,0,1,0,5,7", cells)

    message = str(caught.value)
    assert message.startswith(f"trace.csv, line 3, column {column}: must be ")
    assert message.endswith(f"not {shown}")


def test_every_wrong_file_is_a_trace_error_with_a_reason(tmp_path: Path) -> None:
    cases = {
        "is empty": (),
        "has a header, but no calls": (RESEARCH,),
        "has 3 cells, but the header has 10": (RESEARCH, "r0,a,a"),
        "step 4 of 'a' in 'r0' was given before, in line 2": (
            RESEARCH,
            "r0,a,a,,4,0,1,0,5,7",
            "r0,a,a,,4,9,1,0,5,7",
        ),
        "names the column 'team' twice": ("team,team,agent", "r0,r0,a"),
        "lacks the column output_tokens": ("team,agent,role,step,input_tokens", "t,a,a,0,5"),
        "lacks the columns agent, step": ("team,role,input_tokens,output_tokens", "t,a,5,6"),
        "is not CSV": (RESEARCH, 'r0,"a"x,a,,0,0,1,0,5,7'),
    }
    for reason, lines in cases.items():
        path = tmp_path / "bad.csv"
        path.write_text("".join(f"{line}\n" for line in lines))
        with pytest.raises(tbc.TraceError) as caught:
            read_trace(path)
        assert str(caught.value).startswith(str(path)), reason
        assert reason in str(caught.value)

    with pytest.raises(tbc.TraceError, match="cannot be read"):
        read_trace(tmp_path / "missing.csv")
    with pytest.raises(tbc.TraceError, match="cannot be read"):
        read_trace(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(tbc.TraceError, match="is not UTF-8"):
        read_trace(tmp_path / "binary.csv")
