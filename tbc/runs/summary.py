"""What people see of a run: a block of lines for each step, and a summary.

Printed through rich where it is installed, without markup: on anything but a terminal it is plain text.
Nothing here decides anything.
"""

from __future__ import annotations

import contextlib
import os
from functools import cache
from typing import TYPE_CHECKING

from tbc.axes import NANO, USD, format_amount
from tbc.runs.step_records import RunState, total_cost

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["fallback_warning", "is_silenced", "render_summary", "show", "step_block"]

_TITLE = f"{'═' * 10} EXECUTION SUMMARY {'═' * 10}"
_RULE = "─" * 38
_THRESHOLD = "Budget threshold reached"


def is_silenced() -> bool:
    """Return whether the environment variable ``TBC_QUIET`` says so."""
    return os.environ.get("TBC_QUIET", "") not in ("", "0")


def show(text: str) -> None:
    """Print lines on standard output; a printout that cannot be written never stops a run."""
    try:
        console = _console()
        if console is None:
            print(text)
        else:
            console.print(_styled(text))
    except UnicodeEncodeError:
        _console.cache_clear()  # why: a console goes on trying to write what it could not
        with contextlib.suppress(OSError, ValueError):
            print(text.encode("ascii", "replace").decode())
    except (OSError, ValueError):  # a broken or closed stream
        _console.cache_clear()


@cache
def _console() -> Console | None:
    """Return the console, which finds standard output anew for each print; ``None`` without rich."""
    try:
        from rich.console import Console
    except ImportError:
        return None

    class Output(Console):
        def on_broken_pipe(self) -> None:
            """Raise, where rich would end the process."""
            raise BrokenPipeError

    return Output(markup=False, highlight=False, emoji=False, soft_wrap=True)


def _styled(text: str) -> Text:
    from rich.text import Text

    lines = Text(text)
    lines.highlight_words(["ALLOWED"], "green")
    lines.highlight_words(["BLOCKED", "(limit exceeded)", "[WARN] MODEL_UNSUPPORTED"], "bold red")
    return lines


# -- one step ------------------------------------------------------------------------------------------


def step_block(
    number: int,
    spent: int,
    limit: int | None,
    *,
    projected: int | None = None,
    binding: bool = True,
) -> str:
    """Return the lines about a step that is about to run, or is refused.

    Parameters
    ----------
    number : int
        Its number.
    spent : int
        Nano-dollars spent before it.
    limit : int or None
        The limit.
    projected : int, optional
        If it does not fit: what would be spent and set aside with it.
    binding : bool, default True
        Whether that stops it.
    """
    exceeded = " (limit exceeded)" if limit is not None and spent > limit else ""
    lines = [
        f"Step {number}",
        f"Cost: {_short(spent)} / {'No budget' if limit is None else _short(limit)}{exceeded}",
    ]
    refused = projected is not None and limit is not None
    if not refused:
        lines.append("Status: ALLOWED")
    elif binding:
        lines += ["Status: BLOCKED", f"Execution stopped: {_THRESHOLD}"]
    else:
        lines += ["Status: ALLOWED", "Audit: enforcement would block this step"]
    if refused:
        lines.append(f"Projected cost: {_short(projected or 0)} / {_short(limit or 0)}")
    return "\n".join([*lines, ""])


def fallback_warning(model: str | None, fallback: str) -> str:
    """Return the warning that a model is priced as another one."""
    return f"[WARN] MODEL_UNSUPPORTED\nmodel={model}\nfallback={fallback}\nnote=estimates_may_deviate"


def _short(nano: int) -> str:
    """Return dollars with four decimals; exactly, where these would show nothing."""
    text = f"${nano / NANO:.4f}"
    return format_amount(USD, nano) if nano and text == "$0.0000" else text


# -- the whole run -------------------------------------------------------------------------------------


def render_summary(state: RunState) -> str:
    """Return the summary of a run: what was spent, what was refused, and whether the limit held."""
    ran = [step for step in state.steps if step.outcome != "not_sent"]
    lines = [_TITLE, f"Total cost (actual): {total_cost(state)}", f"Steps executed: {len(ran)}"]
    if state.in_flight:
        lines.append(f"Steps in flight: {state.in_flight} ({_usd(state.held)} set aside)")
    lines += [f"Status: {_status(state, len(ran))}", _RULE, "", "Impact:"]
    lines += [f"- {each}" for each in _impact(state)]
    lines += ["", _RULE, "Reason:", f"- {_reason(state)}", _RULE]
    return "\n".join(lines)


def _status(state: RunState, ran: int) -> str:
    if state.blocked and not ran and not state.in_flight:
        return "Blocked before execution"
    if state.blocked:
        return "Blocked (budget threshold reached)"
    if state.in_flight:
        return "Running"
    if not ran:
        return "Nothing executed"
    return "Completed (limit exceeded)" if state.excess else "Completed"


def _reason(state: RunState) -> str:
    if state.blocked:
        return _THRESHOLD
    return "Limit exceeded" if state.excess else "None"


def _impact(state: RunState) -> list[str]:
    return [*_about_refusals(state), *_about_limit(state), *_about_steps(state)]


def _about_refusals(state: RunState) -> list[str]:
    if not state.refusals:
        return []
    first, last = state.refusals[0], state.refusals[-1]
    if state.mode == "audit":
        return [
            f"Audit, nothing was stopped: enforcement would have refused {_many(state.refused, 'step')}, "
            f"first step {first.number} ({_usd(first.projected)} projected, {_usd(first.left)} left)"
        ]
    aside = f", {_usd(last.held)} set aside for steps in flight" if last.held else ""
    told = [
        f"Step {last.number} was refused before it ran: {_usd(last.projected)} projected, "
        f"{_usd(last.left)} of {_usd(last.limit)} left{aside}"
    ]
    if state.refused > 1:
        told.append(f"{state.refused} attempts were refused in all; none of them was paid for")
    return told


def _about_limit(state: RunState) -> list[str]:
    if state.limit is None:
        return ["No limit was set: the cost was observed, nothing could be refused"]
    limit = _usd(state.limit)
    if not state.excess:
        return [f"The limit held: {_usd(state.limit - state.spent)} of {limit} not spent"]
    by, number = f"The limit of {limit} is exceeded by {_usd(state.excess)}", state.crossed_by
    if number is None:
        return [by]
    step = next(step for step in state.steps if step.number == number)
    told = [f"{by}; the total went above it with step {number}"]
    if step.cost is not None and step.projected is not None and step.cost > step.projected:
        told.append(f"Step {number} was projected at {_usd(step.projected)} and cost {_usd(step.cost)}")
    return told


def _about_steps(state: RunState) -> list[str]:
    told = []
    guessed = [step for step in state.steps if step.estimated and step.outcome != "not_sent"]
    if guessed:
        amount = _usd(sum(step.cost or 0 for step in guessed))
        told.append(
            f"{_many(len(guessed), 'step')} did not say what was used: {amount} of the total is estimated"
        )
    unsent = sum(step.outcome == "not_sent" for step in state.steps)
    if unsent:
        told.append(f"{_many(unsent, 'step')} sent nothing and cost nothing")
    return [*told, *state.assumed]


def _usd(nano: int) -> str:
    return format_amount(USD, nano)


def _many(count: int, what: str) -> str:
    return f"{count} {what if count == 1 else what + 's'}"
