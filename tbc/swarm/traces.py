"""Recorded runs of multi-agent systems, read from CSV files.

A *run* is what one team did: a sequence of *calls*, each made by one agent in one role. Four public schemas
are recognised by their header (`docs/traces.md` describes them and says where the data come from):

=============  =====================================================================================
kind           columns that must be there (others are ignored)
=============  =====================================================================================
``research``   team, agent, role, step, t_s, elapsed_s, tool_wait_s, input_tokens, output_tokens
``coding``     agent, step, t_s, t_agent_s, input_tokens, output_tokens, output_cap
``social``     team, agent, role, step, phase, llm_calls, input_tokens, output_tokens
``calls``      team, agent, role, step, input_tokens, output_tokens (anybody's own recording)
=============  =====================================================================================

Tokens must be recorded; a time may be empty. A file that cannot be read is a `TraceError` that names the
file, the line and the column. Floor 5: knows files and records, no budgets.

Examples
--------
>>> import io
>>> header = "team,agent,role,step,input_tokens,output_tokens"
>>> lines = [header, "t0,lead,lead,0,100,20", "t0,aide,aide,1,300,10"]
>>> [run] = parse_trace(io.StringIO(chr(10).join(lines)), "own.csv")
>>> run.kind, run.demand, [call.agent for call in run.calls]
('calls', 430, ['lead', 'aide'])
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from attrs import frozen

from tbc.errors import TraceError

__all__ = ["KINDS", "Call", "Run", "assumed_duration_s", "parse_trace", "read_trace"]

#: An amount of tokens may not exceed this (a float holds every int up to it).
_MAX_TOKENS = 2**53 - 1
_DIGITS = re.compile(r"[0-9]{1,16}")
#: Output caps where none is recorded: the largest output seen in a kind, rounded up to a power of two.
_RESEARCH_CAP = 16_384
_SOCIAL_CAP_PER_CALL = 2_048
#: A social turn takes a fixed time: the games are played in rounds and no clock was recorded.
_SOCIAL_TURN_S = 10.0


@frozen
class Call:
    """One model call of one agent: what it used when nothing was refused."""

    #: Who called; unique in its run.
    agent: str
    #: What the agent does in the team, e.g. ``"planner"``.
    role: str
    #: Order of the call in the run, as recorded.
    step: int
    #: Seconds from the start of the recording to the start of the call.
    start_s: float
    #: Seconds the call took; recorded, else `assumed_duration_s`.
    duration_s: float
    #: Seconds between the end of the run's previous call and this one (tools, thinking).
    wait_s: float
    #: Tokens sent; known before the call.
    input_tokens: int
    #: Tokens received; known only after the call.
    output_tokens: int
    #: The most the call could have received; known before the call.
    output_cap: int

    @property
    def tokens(self) -> int:
        """Input and output together: what the call costs."""
        return self.input_tokens + self.output_tokens


@frozen
class Run:
    """What one team did, its calls in the order in which they started."""

    #: The team's name; unique in its trace.
    name: str
    #: Which kind of team this is: one of `KINDS`.
    kind: str
    #: At least one call, in start order.
    calls: tuple[Call, ...]

    @property
    def demand(self) -> int:
        """Tokens that the whole run used."""
        return sum(call.tokens for call in self.calls)

    @property
    def roles(self) -> dict[str, str]:
        """Agent → role, in the order of their first calls."""
        return {call.agent: call.role for call in self.calls}


def assumed_duration_s(output_tokens: int) -> float:
    """Return 1 s + 1/60 s per output token: an assumption for calls whose duration was not recorded."""
    return 1.0 + output_tokens / 60.0


@frozen
class _Row:
    """One line of a trace, with where it stands, so that an error can name it."""

    path: str
    line: int
    cells: Mapping[str, str]

    def error(self, column: str, rule: str) -> TraceError:
        return TraceError(
            f"{self.path}, line {self.line}, column {column}: must be {rule}, not {self.cells[column]!r}"
        )

    def name(self, column: str) -> str:
        text = self.cells[column].strip()
        if not text:
            raise self.error(column, "a name")
        return text

    def count(self, column: str) -> int:
        text = self.cells[column].strip()
        if not _DIGITS.fullmatch(text) or int(text) > _MAX_TOKENS:
            raise self.error(column, "a whole number from 0 to 2**53 - 1")
        return int(text)

    def seconds(self, column: str) -> float | None:
        text = self.cells[column].strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise self.error(column, "seconds >= 0, or empty")
        return value


@frozen
class _Step:
    """One call as its schema gives it: times may be missing."""

    team: str
    agent: str
    role: str
    step: int
    start_s: float | None
    duration_s: float | None
    wait_s: float | None
    input_tokens: int
    output_tokens: int
    output_cap: int


@frozen
class _Schema:
    kind: str
    columns: tuple[str, ...]
    read: Callable[[_Row], _Step]


def _read_research(row: _Row) -> _Step:
    return _Step(
        team=row.name("team"),
        agent=row.name("agent"),
        role=row.name("role"),
        step=row.count("step"),
        start_s=row.seconds("t_s"),
        duration_s=row.seconds("elapsed_s"),
        wait_s=row.seconds("tool_wait_s"),
        input_tokens=row.count("input_tokens"),
        output_tokens=row.count("output_tokens"),
        output_cap=_RESEARCH_CAP,
    )


def _read_coding(row: _Row) -> _Step:
    output_tokens = row.count("output_tokens")
    duration_s = assumed_duration_s(output_tokens)
    answered_s = row.seconds("t_s")
    return _Step(
        team=row.name("agent"),
        agent="coder",
        role="coder",
        step=row.count("step"),
        # The file has the time of the answer; a session's first answer stands at 0.
        start_s=None if answered_s is None else max(0.0, answered_s - duration_s),
        duration_s=duration_s,
        wait_s=None,
        input_tokens=row.count("input_tokens"),
        output_tokens=output_tokens,
        output_cap=row.count("output_cap"),
    )


def _read_social(row: _Row) -> _Step:
    step = row.count("step")
    return _Step(
        team=row.name("team"),
        agent=row.name("agent"),
        role=row.name("role"),
        step=step,
        start_s=step * _SOCIAL_TURN_S,
        duration_s=_SOCIAL_TURN_S,
        wait_s=0.0,
        input_tokens=row.count("input_tokens"),
        output_tokens=row.count("output_tokens"),
        output_cap=_SOCIAL_CAP_PER_CALL * row.count("llm_calls"),
    )


def _read_calls(row: _Row) -> _Step:
    return _Step(
        team=row.name("team"),
        agent=row.name("agent"),
        role=row.name("role"),
        step=row.count("step"),
        start_s=None,
        duration_s=None,
        wait_s=None,
        input_tokens=row.count("input_tokens"),
        output_tokens=row.count("output_tokens"),
        output_cap=_RESEARCH_CAP,
    )


_TOKENS = ("input_tokens", "output_tokens")
#: The most special schema first: the first one whose columns are all there is taken.
_SCHEMAS = (
    _Schema(
        "research",
        ("team", "agent", "role", "step", "t_s", "elapsed_s", "tool_wait_s", *_TOKENS),
        _read_research,
    ),
    _Schema("coding", ("agent", "step", "t_s", "t_agent_s", *_TOKENS, "output_cap"), _read_coding),
    _Schema(
        "social",
        ("team", "agent", "role", "step", "phase", "llm_calls", *_TOKENS),
        _read_social,
    ),
    _Schema("calls", ("team", "agent", "role", "step", *_TOKENS), _read_calls),
)

#: The kinds of teams that a trace can hold.
KINDS = tuple(schema.kind for schema in _SCHEMAS)


def read_trace(path: str | Path) -> tuple[Run, ...]:
    """Read all runs of a CSV trace.

    Parameters
    ----------
    path : str or Path
        The file: UTF-8, with a header that one of the documented schemas fits.

    Returns
    -------
    tuple of Run
        In the order in which the teams first appear in the file.

    Raises
    ------
    TraceError
        The file cannot be opened or is not text, no schema fits its header, or a cell cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            return parse_trace(stream, str(path))
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error


def parse_trace(stream: TextIO, path: str) -> tuple[Run, ...]:
    """Read all runs from an open trace; `path` is what errors call it.

    Parameters
    ----------
    stream : TextIO
        Text of the trace, header first.
    path : str
        Name of the trace in error messages.

    Returns
    -------
    tuple of Run
        In the order in which the teams first appear.

    Raises
    ------
    TraceError
        As `read_trace`.
    """
    rows = _rows(stream, path)
    header, schema = _recognise(rows, path)
    teams: dict[str, list[_Step]] = {}
    seen: dict[tuple[str, str, int], int] = {}
    for line, cells in rows:
        if not cells:
            continue
        if len(cells) != len(header):
            raise TraceError(f"{path}, line {line}: has {len(cells)} cells, but the header has {len(header)}")
        row = _Row(path, line, dict(zip(header, cells, strict=True)))
        step = schema.read(row)
        key = (step.team, step.agent, step.step)
        if key in seen:
            raise TraceError(
                f"{path}, line {line}, column step: step {step.step} of {step.agent!r} in {step.team!r} "
                f"was given before, in line {seen[key]}"
            )
        seen[key] = line
        teams.setdefault(step.team, []).append(step)
    if not teams:
        raise TraceError(f"{path}: has a header, but no calls")
    return tuple(Run(name, schema.kind, _in_start_order(steps)) for name, steps in teams.items())


def _rows(stream: TextIO, path: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(stream, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise TraceError(f"{path}, line {reader.line_num}: is not CSV ({error})") from error
        yield reader.line_num, cells


def _recognise(rows: Iterator[tuple[int, list[str]]], path: str) -> tuple[list[str], _Schema]:
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if not header:
        raise TraceError(f"{path}: is empty; the first line must name the columns")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise TraceError(f"{path}, line 1: names the column {twice[0]!r} twice")
    missing = {schema.kind: [c for c in schema.columns if c not in header] for schema in _SCHEMAS}
    for schema in _SCHEMAS:
        if not missing[schema.kind]:
            return header, schema
    # The kind that the header most resembles; of equals the one that needs the least.
    nearest = min(_SCHEMAS, key=lambda s: (len(missing[s.kind]) / len(s.columns), len(s.columns)))
    lacking = missing[nearest.kind]
    raise TraceError(
        f"{path}, line 1: the header fits no kind of trace ({', '.join(KINDS)}); to be the nearest, "
        f"{nearest.kind}, it lacks the column{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
    )


def _in_start_order(steps: Iterable[_Step]) -> tuple[Call, ...]:
    """Order a run's calls by start (where a start is missing: by step) and fill in missing times."""
    steps = sorted(steps, key=lambda s: s.step)
    if all(s.start_s is not None for s in steps):
        steps.sort(key=lambda s: s.start_s or 0.0)
    calls: list[Call] = []
    end_s = 0.0
    for s in steps:
        duration_s = assumed_duration_s(s.output_tokens) if s.duration_s is None else s.duration_s
        wait_s = s.wait_s
        if wait_s is None:
            wait_s = 0.0 if s.start_s is None or not calls else max(0.0, s.start_s - end_s)
        start_s = end_s + wait_s if s.start_s is None else s.start_s
        calls.append(
            Call(
                agent=s.agent,
                role=s.role,
                step=s.step,
                start_s=start_s,
                duration_s=duration_s,
                wait_s=wait_s,
                input_tokens=s.input_tokens,
                output_tokens=s.output_tokens,
                output_cap=s.output_cap,
            )
        )
        end_s = start_s + duration_s
    return tuple(calls)
