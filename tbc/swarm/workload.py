"""Made-up runs that resemble the recorded ones: the workload of a replay without a file.

Three kinds of teams are made, each from a handful of fitted numbers (the constants below); a run is a whole
team with all its calls. The shapes, fitted to the statistics of the public traces that `docs/traces.md`
names:

* *research*: sometimes a ``planner``; a tool-using ``agent`` loop (number of calls lognormal, median 8) whose
  input grows by about 1,000 tokens a call and flattens out; in three runs of ten a ``summarize`` call now and
  then once the input is long; in eight of ten a ``finalize`` call at the end, whose input is that of the
  largest call before it times a lognormal factor.
* *coding*: one ``coder``; number of calls lognormal (median 18); the history is sent again each time, so that
  input grows by a lognormal amount per call; short outputs, capped at 800.
* *social*: an ``impostor`` and four ``crewmate`` in synchronous rounds: action rounds, mostly one meeting
  (five rounds of discussion and a vote), perhaps more action rounds. Crewmates leave early.

Outputs are lognormal per role: the median is small, the tail is long. The generator is passed in, so equal
seeds give equal runs. How close it comes, in tokens (2,000 runs a kind / the recorded ones):

====================================  ===============================  ================================
tokens                                made: p50, mean, p95             recorded: p50, mean, p95
====================================  ===============================  ================================
of a research run                     66,900 · 75,600 · 160,400        65,000 · 74,800 · 144,500
of a coding run                       94,000 · 129,300 · 340,500       96,600 · 131,900 · 319,200
of a social run                       138,200 · 188,400 · 517,400      122,900 · 195,300 · 529,800
input of an ``agent`` call            6,100 · 6,200 · 11,500           5,800 · 6,300 · 12,600
input of a ``finalize`` call          9,000 · 9,400 · 15,900           9,500 · 9,800 · 14,900
output of a ``finalize`` call         1,510 · 1,950 · 5,400            1,390 · 2,000 · 4,990
input of a ``coder`` call             5,300 · 6,200 · 14,500           5,800 · 6,300 · 12,600
====================================  ===============================  ================================

It resembles marginal distributions, growth and order, not every dependence between them; more in
`docs/traces.md`.
"""

from __future__ import annotations

import math

import numpy as np
from attrs import frozen

from tbc.swarm.traces import Call, Run

__all__ = ["MADE_KINDS", "make_runs"]

#: The kinds of teams that can be made.
MADE_KINDS = ("research", "coding", "social")

_RESEARCH_CAP = 16_384
_CODING_CAP = 800
_SOCIAL_CAP_PER_CALL = 2_048
_SOCIAL_TURN_S = 10.0


@frozen
class _Lognormal:
    """A long-tailed count: ``exp(N(ln median, sigma))``, cut to ``[low, high]``."""

    median: float
    sigma: float
    low: int
    high: int

    def draw(self, rng: np.random.Generator) -> int:
        value = self.median * math.exp(self.sigma * rng.standard_normal())
        return int(min(max(round(value), self.low), self.high))


# Research: shares of runs that have the role, counts, inputs and outputs (recorded p50 and sigma of the log).
_PLANNER_SHARE = 92 / 139
_SUMMARIZE_SHARE = 42 / 139
_FINALIZE_SHARE = 113 / 139
_AGENT_CALLS = _Lognormal(8.2, 0.45, 1, 17)
_PLANNER_INPUT = _Lognormal(640, 0.06, 600, 1_400)
_FIRST_INPUT = _Lognormal(1_640, 0.12, 1_300, 2_900)
_SECOND_GROWTH = _Lognormal(1_650, 0.45, 0, 5_000)
#: Growth per call: normal, with a mean that falls to nothing as the input comes near the context's end, and
#: that is smaller in longer runs (by this power of the number of calls).
_GROWTH_MEAN, _GROWTH_SIGMA, _GROWTH_END, _GROWTH_POWER = 1_370.0, 850.0, 19_500.0, 0.45
#: From this input on a run that summarizes does so, with this probability before each call.
_SUMMARIZE_FROM, _SUMMARIZE_RATE, _SUMMARIZE_CUT = 4_500, 0.45, 0.92
_SUMMARIZE_INPUT = _Lognormal(2_600, 0.5, 455, 6_100)
#: Input of ``finalize`` over the largest input before it.
_FINALIZE_MEDIAN, _FINALIZE_SIGMA, _FINALIZE_END = 1.02, 0.23, 17_500
_RESEARCH_OUTPUT = {
    "planner": _Lognormal(1_220, 0.22, 950, 3_600),
    "agent": _Lognormal(281, 0.78, 20, 4_000),
    "summarize": _Lognormal(4_150, 0.50, 1_080, 15_900),
    "finalize": _Lognormal(1_520, 0.75, 320, 7_000),
}
_TOKENS_PER_S, _OVERHEAD_S = 120.0, 1.2

# Coding.
_CODING_CALLS = _Lognormal(18.9, 0.41, 10, 56)
_CODING_FIRST = _Lognormal(1_420, 0.22, 1_070, 8_000)
_CODING_GROWTH = _Lognormal(250, 1.0, 54, 11_000)
_CODING_OUTPUT = _Lognormal(56, 0.98, 21, 670)

# Social.
_MEETING_SHARE = 349 / 404
_ROUNDS_BEFORE = _Lognormal(1.9, 0.5, 1, 12)
_ROUNDS_AFTER = _Lognormal(3.0, 1.7, 0, 32)
_ROUNDS_WITHOUT = _Lognormal(9.5, 0.75, 6, 40)
_DISCUSSION_ROUNDS = 5
_SOCIAL_FIRST = _Lognormal(1_665, 0.06, 1_500, 2_000)
_SOCIAL_GROWTH = _Lognormal(215, 0.38, 60, 980)
_DISCUSSION_OVER_ACTION = 1.4
_SOCIAL_OUTPUT = {
    "action": _Lognormal(157, 0.42, 2, 4_096),
    "discussion": _Lognormal(208, 0.32, 48, 4_096),
    "vote": _Lognormal(6, 1.2, 1, 2_048),
}


def make_runs(kind: str, count: int, rng: np.random.Generator) -> tuple[Run, ...]:
    """Make runs of one kind.

    Parameters
    ----------
    kind : str
        One of `MADE_KINDS`.
    count : int
        How many runs, at least 1.
    rng : numpy.random.Generator
        The only source of chance.

    Returns
    -------
    tuple of Run
        Named ``research-0000`` and so on.

    Raises
    ------
    ValueError
        The kind is none of them, or `count` is below 1.
    """
    if kind not in MADE_KINDS:
        raise ValueError(f"kind must be one of {', '.join(MADE_KINDS)}, not {kind!r}")
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count!r}")
    make = {"research": _research, "coding": _coding, "social": _social}[kind]
    return tuple(Run(f"{kind}-{i:04d}", kind, make(rng)) for i in range(count))


class _Tape:
    """Calls of one run, one after the other; keeps the time."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._end_s = 0.0

    def add(
        self, agent: str, role: str, sizes: tuple[int, int], cap: int, wait_s: float, duration_s: float
    ) -> None:
        start_s = self._end_s + wait_s
        self.calls.append(
            Call(
                agent=agent,
                role=role,
                step=len(self.calls),
                start_s=round(start_s, 3),
                duration_s=round(duration_s, 3),
                wait_s=round(wait_s, 3),
                input_tokens=sizes[0],
                output_tokens=sizes[1],
                output_cap=cap,
            )
        )
        self._end_s = start_s + duration_s


def _research(rng: np.random.Generator) -> tuple[Call, ...]:
    tape = _Tape()

    def call(role: str, input_tokens: int, wait_s: float = 0.0) -> None:
        output_tokens = _RESEARCH_OUTPUT[role].draw(rng)
        duration_s = (_OVERHEAD_S + output_tokens / _TOKENS_PER_S) * math.exp(0.35 * rng.standard_normal())
        tape.add(role, role, (input_tokens, output_tokens), _RESEARCH_CAP, wait_s, duration_s)

    has_planner = rng.random() < _PLANNER_SHARE
    summarizes = rng.random() < _SUMMARIZE_SHARE
    finalizes = rng.random() < _FINALIZE_SHARE
    if has_planner:
        call("planner", _PLANNER_INPUT.draw(rng))
    size = largest = _FIRST_INPUT.draw(rng)
    agent_calls = _AGENT_CALLS.draw(rng)
    pace = _GROWTH_MEAN * (_AGENT_CALLS.median / agent_calls) ** _GROWTH_POWER
    for i in range(agent_calls):
        if i == 1:
            size += _SECOND_GROWTH.draw(rng)
        elif i > 1:
            mean = pace * max(0.0, 1.0 - size / _GROWTH_END)
            size = max(1_377, size + round(mean + _GROWTH_SIGMA * min(max(rng.standard_normal(), -2.0), 3.0)))
        if summarizes and size > _SUMMARIZE_FROM and rng.random() < _SUMMARIZE_RATE:
            call("summarize", _SUMMARIZE_INPUT.draw(rng), _tool_wait_s(rng))
            size = round(size * _SUMMARIZE_CUT)
        largest = max(largest, size)
        call("agent", size, _tool_wait_s(rng) if i else 0.0)
    if finalizes:
        factor = _FINALIZE_MEDIAN * math.exp(_FINALIZE_SIGMA * min(rng.standard_normal(), 2.8))
        call("finalize", min(max(3_800, round(largest * factor)), _FINALIZE_END), _tool_wait_s(rng))
    return tuple(tape.calls)


def _tool_wait_s(rng: np.random.Generator) -> float:
    """Half of the waits are short, half are a web search (recorded: p50 4 s, p95 77 s)."""
    if rng.random() < 0.5:
        return float(rng.exponential(2.0))
    return float(38.0 * math.exp(0.55 * rng.standard_normal()))


def _coding(rng: np.random.Generator) -> tuple[Call, ...]:
    tape = _Tape()
    size = _CODING_FIRST.draw(rng)
    for i in range(_CODING_CALLS.draw(rng)):
        if i:
            size += _CODING_GROWTH.draw(rng)
        output_tokens = _CODING_OUTPUT.draw(rng)
        # Recorded is the time between two answers (p50 1.6 s, p95 5 s); the call is a part of it.
        gap_s = 1.8 * math.exp(0.55 * rng.standard_normal())
        duration_s = min(gap_s, 0.8 + output_tokens / _TOKENS_PER_S)
        tape.add("coder", "coder", (size, output_tokens), _CODING_CAP, gap_s - duration_s, duration_s)
    return tuple(tape.calls)


def _social(rng: np.random.Generator) -> tuple[Call, ...]:
    tape = _Tape()
    seats = [f"a{i}" for i in range(5)]
    impostor = int(rng.integers(5))
    role = {seat: "impostor" if i == impostor else "crewmate" for i, seat in enumerate(seats)}
    size = {seat: float(_SOCIAL_FIRST.draw(rng)) for seat in seats}
    growth = {seat: _SOCIAL_GROWTH.draw(rng) for seat in seats}
    alive = list(seats)

    def turn(seat: str, phase: str, llm_calls: int) -> None:
        over = 1.0 if phase == "action" else _DISCUSSION_OVER_ACTION
        input_tokens = round(size[seat] * over * math.exp(0.05 * rng.standard_normal()))
        output_tokens = _SOCIAL_OUTPUT[phase].draw(rng)
        sizes = (max(1_270, input_tokens), min(output_tokens, _SOCIAL_CAP_PER_CALL * llm_calls))
        tape.add(seat, role[seat], sizes, _SOCIAL_CAP_PER_CALL * llm_calls, 0.0, _SOCIAL_TURN_S)

    def act(rounds: int, kill_rate: float) -> None:
        for _ in range(rounds):
            for seat in alive:
                turn(seat, "action", 2)
                size[seat] += growth[seat]
            crew = [seat for seat in alive if role[seat] == "crewmate"]
            if len(crew) > 1 and rng.random() < kill_rate:
                alive.remove(crew[int(rng.integers(len(crew)))])

    meeting = rng.random() < _MEETING_SHARE
    act(_ROUNDS_BEFORE.draw(rng) if meeting else _ROUNDS_WITHOUT.draw(rng), 0.45)
    if meeting:
        for _ in range(_DISCUSSION_ROUNDS):
            for seat in alive:
                turn(seat, "discussion", 2)
                size[seat] += growth[seat] / 2
        for seat in alive:
            turn(seat, "vote", 1)
        if len(alive) > 2 and rng.random() < 0.8:
            alive.pop(int(rng.integers(len(alive))))
        act(_ROUNDS_AFTER.draw(rng), 0.2)
    return tuple(tape.calls)
