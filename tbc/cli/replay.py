"""``tbc replay``: recorded or made agent runs under budget pressure."""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from attrs import frozen
from cyclopts import Parameter
from cyclopts.validators import Number
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tbc import __version__

if TYPE_CHECKING:
    from tbc.swarm.experiment import Progress as Tick
    from tbc.swarm.experiment import Report
    from tbc.swarm.traces import Run

__all__ = ["replay"]

#: Made runs for a replay without a file.
_MADE_RUNS = 140
#: Agents of a swarm where each run has only one.
_DEFAULT_SWARM = 20
#: Repetitions, unless told: 30, and fewer where a swarm is large.
_REPETITIONS = 30
_AGENTS_IN_ALL = 3_000


def replay(
    trace: Path | None = None,
    /,
    *,
    agents: Annotated[int | None, Parameter(validator=Number(gte=5, lte=2000))] = None,
    pressure: Annotated[float, Parameter(validator=Number(gt=0, lte=10))] = 0.8,
    splits: Annotated[int | None, Parameter(validator=Number(gte=1, lte=1000))] = None,
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    late_role: str | None = None,
    out: Path = Path("out/replay.png"),
    json: Path | None = None,
) -> None:
    """Replay recorded or made agent runs under budget pressure: the tbc market against two simple policies.

    Parameters
    ----------
    trace
        A CSV trace (docs/traces.md lists the columns). A name that is no file is looked for in the folder
        TBC_TRACES. Without one, runs are made by the built-in generator.
    agents
        Put whole teams with so many agents in all on one shared pool. Without it every run has a pool of its
        own.
    pressure
        The budget, as a part of what was used when nothing was refused.
    splits
        Repetitions: random splits into runs to learn from and runs to report on. Default 30, fewer for
        large swarms.
    seed
        Equal seeds give equal results.
    late_role
        The role that comes last and is to be protected. Default: "finalize" of research runs.
    out
        The picture.
    json
        Also write all figures to this file.
    """
    from tbc.swarm import experiment, summary

    if json is not None:  # a place that cannot be written is said before the work, not after it
        json.parent.mkdir(parents=True, exist_ok=True)
        json.open("a").close()
    workload = _load(trace, agents, seed)
    if agents is None and all(len(run.roles) == 1 for run in workload.runs):
        agents = _DEFAULT_SWARM
        print(
            f"tbc: each run has one agent, so {agents} of them share a pool (--agents N for more)",
            file=sys.stderr,
        )
    late_roles = _late_roles(workload.runs, late_role)
    if splits is None:
        splits = _REPETITIONS if agents is None else min(_REPETITIONS, max(2, _AGENTS_IN_ALL // agents))
    with _progress("replaying", splits) as tick:
        if agents is None:
            report = experiment.run_by_run(
                workload.runs,
                pressure=pressure,
                repetitions=splits,
                seed=seed,
                late_roles=late_roles,
                progress=tick,
            )
        else:
            report = experiment.swarm(
                workload.runs,
                agents,
                pressure=pressure,
                repetitions=splits,
                seed=seed,
                late_roles=late_roles,
                progress=tick,
            )
    console = Console()
    for group in report.groups:
        console.print(_table(report, group))
    for paragraph in summary.explain(report, workload.name):
        console.print(paragraph, highlight=False, markup=False)
        console.print()
    _draw(report, out, workload.name)
    if json is not None:
        found = {"tbc": __version__, "workload": workload.name, **summary.figures(report)}
        json.write_text(json_format.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        print(f"figures: {json}")


@frozen
class _Workload:
    runs: tuple[Run, ...]
    #: What it is, in words.
    name: str


def _load(trace: Path | None, agents: int | None, seed: int) -> _Workload:
    if trace is not None:
        from tbc.swarm.traces import read_trace

        runs = read_trace(_find(trace))
        kind = "" if runs[0].kind == "calls" else f"{runs[0].kind} "
        return _Workload(runs, f"{len(runs)} {kind}runs of {trace.name}")
    import numpy as np

    from tbc.swarm.compose import make_mixed
    from tbc.swarm.workload import make_runs

    rng = np.random.default_rng(seed)
    if agents is None:
        return _Workload(
            make_runs("research", _MADE_RUNS, rng),
            f"{_MADE_RUNS} research runs made by the built-in generator",
        )
    runs = make_mixed(rng)
    return _Workload(
        runs, f"teams out of {len(runs)} social, research and coding runs made by the built-in generator"
    )


def _find(trace: Path) -> Path:
    folder = os.environ.get("TBC_TRACES")
    if folder and not trace.exists() and (Path(folder) / trace).exists():
        return Path(folder) / trace
    return trace


def _late_roles(runs: Sequence[Run], late_role: str | None) -> dict[str, str]:
    from tbc.errors import TraceError
    from tbc.swarm.fit import LATE_ROLES

    if late_role is None:
        return dict(LATE_ROLES)
    kinds = {run.kind for run in runs if late_role in run.roles.values()}
    if not kinds:
        known = sorted({role for run in runs for role in run.roles.values()})
        raise TraceError(f"no run has the role {late_role!r}; there are {', '.join(known)}")
    return {**LATE_ROLES, **dict.fromkeys(kinds, late_role)}


@contextmanager
def _progress(what: str, total: int) -> Iterator[Tick]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def tick(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        yield tick


def _table(report: Report, group: str) -> Table:
    from tbc.swarm import summary

    if report.experiment == "runs":
        runs = group.replace("late", report.late_role or "late")
        pools = report.sum(group, summary.POLICIES[-1]).pools
        what = f"{runs} · {pools:,} pools, {_times(report.repetitions, 'split')}"
    else:
        what = f"{report.agents:.0f} agents on one pool · {_times(report.repetitions, 'repetition')}"
    pressure = f"{report.pressure * 100:g} %"
    table = Table(title=f"budget: {pressure} of demand · {what}", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for policy in summary.POLICIES:
        table.add_column(policy, justify="right", no_wrap=True)
    highlight = summary.headline_role(report)
    for cells in summary.rows(report, group):
        strong = cells[0].startswith((f"{highlight} served (", "tokens served / shared"))
        table.add_row(*cells, style="bold" if strong else None)
    return table


def _times(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _draw(report: Report, out: Path, workload: str) -> None:
    try:
        from tbc.swarm.picture import draw

        print(f"picture: {draw(report, out, workload=workload)}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print(
            'no picture: matplotlib is not installed. Install it with:  pip install "tbc[plot]"',
            file=sys.stderr,
        )
