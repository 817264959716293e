"""The picture of a report: who was served, where the budget went, and how one pool fared.

matplotlib is imported when a picture is drawn. Colours are those of Okabe and Ito, which colour-blind people
can tell apart; bars and areas are labelled as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbc.contract import ROOT
from tbc.swarm.experiment import EQUAL, LATE_RUNS, MARKET, POOL, Report
from tbc.swarm.summary import headline_role, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tbc.swarm.story import Story

__all__ = ["draw"]

_COLOURS = {EQUAL: "#9A9A9A", POOL: "#56B4E9", MARKET: "#D55E00"}
_SPENT, _HELD, _KEPT, _FREE, _LOST = "#0072B2", "#CC79A7", "#E69F00", "#CFE8D5", "#D9D9D9"
_INK = "#222222"
_TITLE: dict[str, Any] = {"fontsize": 12, "fontweight": "bold", "loc": "left", "color": _INK}
_POLICIES = (EQUAL, POOL, MARKET)
#: So many roles, and so many of the largest flows' roles, fit into a picture.
_MOST_ROLES = 10


def draw(report: Report, path: str | Path, *, workload: str) -> Path:
    """Draw a report as a PNG.

    Parameters
    ----------
    report : Report
        What to show: its first group of runs.
    path : str or Path
        Where to; folders are made.
    workload : str
        What was played, for the title, e.g. ``"139 research runs"``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    OSError
        The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    roles = _shown_roles(report)
    height = 9.8 + 0.75 * max(0, len(roles) - 4)
    figure = Figure(figsize=(15, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=[1.0, 1.1], hspace=3.5 / height, wspace=0.22)
    figure.subplots_adjust(left=0.11, right=0.975, top=1 - 1.76 / height, bottom=0.85 / height)
    _title(figure, report, workload, height)
    _roles(figure.add_subplot(grid[0, 0]), report, roles)
    _budget(figure.add_subplot(grid[0, 1]), report)
    if report.experiment == "swarm":
        _flows(figure.add_subplot(grid[1, 0]), report)
        _swarm_story(figure.add_subplot(grid[1, 1]), report.stories[-1])
    else:
        lanes = max(0.28, 0.06 * len(roles))
        for place, story in enumerate(report.stories):
            parts = grid[1, place].subgridspec(2, 1, height_ratios=[lanes, 1.0], hspace=0.04)
            below = figure.add_subplot(parts[1])
            _run_story(figure.add_subplot(parts[0], sharex=below), below, story, report)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="png")
    return target


def _shown_roles(report: Report) -> list[str]:
    """Return the roles that asked for calls, the most important first, at most so many as fit."""
    asked = report.sum(report.groups[0], MARKET).asked
    return sorted((r for r in report.priorities if asked.get(r)), key=lambda r: -report.priorities[r])[
        :_MOST_ROLES
    ]


def _title(figure: Figure, report: Report, workload: str, height: float) -> None:
    group = report.groups[0]
    role = headline_role(report)
    best_first = (MARKET, EQUAL, POOL)
    shares = [f"{p} {_percent(report.share(group, p, role).mean)}" for p in best_first]
    tokens = [f"{p} {_percent(report.of_budget(group, p, 'tokens_served').mean)}" for p in best_first]
    lines = (
        (0.44, 17, "bold", f"“{_short(role)}” calls served:  {'  ·  '.join(shares)}"),
        (0.78, 13.5, "normal", f"Budget put to use:  {'  ·  '.join(tokens)}"),
        (
            1.1,
            10.5,
            "normal",
            f"{_short(workload, 66)}, "
            f"{'each on a pool' if report.experiment == 'runs' else 'together on one pool'} of "
            f"{report.pressure * 100:g} % of what they used when nothing was refused; "
            f"{'only those with such a call; ' if group == LATE_RUNS else ''}"
            f"{f'mean of {report.repetitions} repetitions' if report.repetitions > 1 else 'one repetition'}",
        ),
    )
    for inches, size, weight, text in lines:
        figure.text(0.5, 1 - inches / height, text, ha="center", fontsize=size, fontweight=weight, color=_INK)


def _roles(axes: Axes, report: Report, roles: list[str]) -> None:
    """Bars: share of calls served, by role and policy."""
    group = report.groups[0]
    height = 0.84 / len(_POLICIES)
    for place, policy in enumerate(_POLICIES):
        for row, role in enumerate(roles):
            share = report.share(group, policy, role).mean
            y = row + (place - 1) * height
            label = policy if row == 0 else None
            axes.barh(y, share * 100, height * 0.92, color=_COLOURS[policy], label=label)
            axes.text(share * 100 + 1, y, _percent(share), va="center", fontsize=9, color=_INK)
    labels = [f"{_short(role)}\npriority {report.priorities[role]}" for role in roles]
    axes.set_yticks(range(len(roles)), labels, fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("calls served, % of calls asked for")
    _head(axes, "Who was served")
    _plain(axes)


def _budget(axes: Axes, report: Report) -> None:
    """Stacked bars: what became of the budget."""
    group = report.groups[0]
    for row, policy in enumerate(_POLICIES):
        used = report.of_budget(group, policy, "tokens_served").mean
        refused = report.of_budget(group, policy, "stranded_avoidable").mean
        unasked = report.of_budget(group, policy, "stranded").mean - refused
        parts = [
            ("used by calls", used, _SPENT, "white"),
            ("stranded while calls were refused", refused, _KEPT, _INK),
        ]
        if unasked > 0.001:
            parts.append(("not asked for", unasked, _LOST, _INK))
        left = 0.0
        for label, share, colour, ink in parts:
            width = max(0.0, min(share * 100, 100 - left))
            label_once = label if row == len(_POLICIES) - 1 else None
            axes.barh(row, width, 0.6, left=left, color=colour, label=label_once)
            if width > 5:
                ratio = report.ratio(group, policy).mean if colour == _SPENT and policy != POOL else None
                text = _percent(share) + ("" if ratio is None else f"  ({ratio:.2f} x the shared pool)")
                axes.text(left + width / 2, row, text, ha="center", va="center", color=ink, fontsize=10.5)
            left += width
    axes.set_yticks(range(len(_POLICIES)), [policy.replace(" ", "\n") for policy in _POLICIES], fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the budget")
    _head(axes, "Where the budget went")
    _plain(axes)


def _run_story(lanes: Axes, axes: Axes, story: Story, report: Report) -> None:
    """One run, call by call: above, who asked and got it; below, what was spent and what was kept."""
    steps = list(range(1, len(story.moments) + 1))
    roles = sorted({moment.role for moment in story.moments}, key=lambda role: report.priorities.get(role, 1))
    for what, marker, colour in (("settled", "o", "#009E73"), ("refused", "X", "#C00000")):
        chosen = [(x, moment) for x, moment in zip(steps, story.moments, strict=True) if moment.what == what]
        rows = [roles.index(moment.role) for _, moment in chosen]
        size = 8 if len(steps) <= 30 else 4
        lanes.plot([x for x, _ in chosen], rows, marker, color=colour, markersize=size)
    lanes.set_yticks(range(len(roles)), [_short(role) for role in roles], fontsize=9)
    lanes.set_ylim(-0.6, len(roles) - 0.4)
    lanes.tick_params(bottom=False, labelbottom=False, left=False)
    for side in ("top", "right", "bottom", "left"):
        lanes.spines[side].set_visible(False)
    lanes.grid(axis="y", color="#EEEEEE")
    lanes.set_axisbelow(True)
    refused = sum(moment.what == "refused" for moment in story.moments)
    last = story.moments[-1]
    fate = "served" if last.what == "settled" else "refused"
    title = (
        f"One run, {story.policy}: {refused} of {len(steps)} refused; last ({_short(last.role, 9)}) {fate}"
    )
    lanes.set_title(title, **_TITLE)

    edges = [step - 0.5 for step in steps] + [steps[-1] + 0.5]
    spent = [moment.books.spent / 1000 for moment in story.moments]
    kept = [max(0, moment.books.grants) / 1000 for moment in story.moments]
    budget = story.budget / 1000
    taken = [used + own for used, own in zip(spent, kept, strict=True)]
    top = [max(budget, used) for used in taken]
    whose = f"kept for {_short(report.late_role)}" if report.late_role else "in agents' hands"
    layers = (
        ("spent", _SPENT, [0.0] * len(steps), spent),
        (whose, _KEPT, spent, taken),
        ("free for everybody", _FREE, taken, top),
    )
    for label, colour, low, high in layers:
        if any(b - a > 0.001 * budget for a, b in zip(low, high, strict=True)):
            axes.stairs(high, edges, baseline=low, fill=True, color=colour, label=label)
    axes.axhline(budget, color=_INK, linewidth=1.5)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(top) * 1.02)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(f"calls in order ({_short(story.title)}, of median size)    ● served   ✕ refused")
    axes.set_ylabel("thousand tokens")
    axes.legend(loc="upper left", framealpha=0.92, fontsize=9.5)
    _plain(axes, grid=False)


def _swarm_story(axes: Axes, story: Story) -> None:
    """Areas over time: spent, set aside, in agents' hands, in the treasury."""
    minutes = [moment.at_s / 60 for moment in story.moments]
    layers = (
        ("spent", _SPENT, [moment.books.spent for moment in story.moments]),
        ("set aside for calls in flight", _HELD, [moment.books.held for moment in story.moments]),
        ("in agents' hands", _KEPT, [max(0, moment.books.grants) for moment in story.moments]),
        ("in the treasury", _FREE, [max(0, moment.books.pool) for moment in story.moments]),
    )
    scale, unit = _scale(story.budget)
    axes.stackplot(
        minutes,
        [[tokens / scale for tokens in values] for _, _, values in layers],
        labels=[name for name, _, _ in layers],
        colors=[colour for _, colour, _ in layers],
        linewidth=0,
    )
    refused = [moment.at_s / 60 for moment in story.moments if moment.what == "refused"]
    axes.axhline(story.budget / scale, color=_INK, linewidth=1.5)
    if refused:
        axes.plot(
            refused,
            [story.budget * 1.03 / scale] * len(refused),
            "|",
            color="#C00000",
            label="a call is refused",
        )
    axes.set_ylim(0, story.budget * 1.08 / scale)
    axes.set_xlim(0, max(minutes))
    axes.set_xlabel("simulated minutes")
    axes.set_ylabel(f"{unit} tokens")
    axes.legend(loc="lower right", framealpha=0.92, fontsize=9.5)
    axes.set_title(f"One pool under the market ({story.title}, first repetition)", **_TITLE)
    _plain(axes, grid=False)


def _flows(axes: Axes, report: Report) -> None:
    """Table in colours: tokens that moved from donors' roles to recipients' roles."""
    sums: dict[str, int] = {}
    for flow in report.flows:
        for role in (flow.donor, flow.recipient):
            sums[role] = sums.get(role, 0) + flow.tokens
    ranks = {**report.priorities, ROOT: 0}
    roles = sorted(sorted(sums, key=lambda r: -sums[r])[:_MOST_ROLES], key=lambda r: (ranks[r], r))
    recipients = [role for role in roles if role != ROOT]
    table = [[0.0] * len(recipients) for _ in roles]
    scale, unit = _scale(max((flow.tokens for flow in report.flows), default=0))
    for flow in report.flows:
        if flow.donor in roles and flow.recipient in recipients:
            table[roles.index(flow.donor)][recipients.index(flow.recipient)] = flow.tokens / scale
    most = max((max(row) for row in table if row), default=0.0)
    if not recipients or most <= 0:
        axes.text(0.5, 0.5, "nothing had to be lent", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.imshow(table, cmap="Oranges", aspect="auto", vmin=0, vmax=most)
    for i, row in enumerate(table):
        for j, tokens in enumerate(row):
            uphill = ranks[roles[i]] > ranks[recipients[j]]
            text = "✕" if uphill else (f"{tokens:,.1f}" if tokens >= 0.05 else "·")
            ink = "#AAAAAA" if uphill else ("white" if tokens > 0.6 * most else _INK)
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color=ink)
    labels = ["treasury" if role == ROOT else f"{_short(role)} ({ranks[role]})" for role in roles]
    axes.set_yticks(range(len(roles)), labels, fontsize=9)
    axes.set_xticks(
        range(len(recipients)),
        [f"{_short(role)} ({ranks[role]})" for role in recipients],
        fontsize=9,
        rotation=14,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_ylabel("from (priority)")
    axes.set_xlabel("to (priority)     ✕ never: the donor would be the more important one", labelpad=4)
    title = f"{unit} tokens that moved and were used (first repetition)"
    axes.set_title(title.capitalize(), **_TITLE)


def _head(axes: Axes, title: str) -> None:
    """Put a panel's title above its legend, both at the left."""
    axes.set_title(title, pad=26, **_TITLE)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.985), ncols=3, frameon=False, fontsize=9.5)


def _short(text: str, most: int = 16) -> str:
    """Cut a text that would run into its neighbours."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _scale(tokens: int) -> tuple[int, str]:
    return (1_000_000, "million") if tokens >= 2_000_000 else (1_000, "thousand")


def _percent(share: float) -> str:
    """Show one decimal where it tells something: near 0 and near 100."""
    return percent(share, digits=1 if 0 < share < 0.0995 or 0.9 < share < 0.9995 else 0)


def _plain(axes: Any, *, grid: bool = True) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if grid:
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
