"""``tbc check``: what a workflow file says, what may run when, whether it fits, and what it may cost."""

from __future__ import annotations

import json as json_format
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import attrs
from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from tbc import __version__

if TYPE_CHECKING:
    from tbc.runs.plan import Admission, Axis, Estimate, Range, StepEstimate
    from tbc.runs.workflow import Agent, Limits, Workflow
    from tbc.tokens import Counter

__all__ = ["check"]

_AXES: tuple[Axis, ...] = ("tokens", "usd")
_ENDS: tuple[Literal["low", "high"], ...] = ("low", "high")


def check(file: Path, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Explain a workflow file: limits, agents, plan, admission and a low and high estimate. Calls nothing.

    Exit code 1 says that the caps of the agents do not fit into the budget, 2 that the file has problems.

    Parameters
    ----------
    file
        The workflow file, YAML or TOML (docs/workflows.md lists the keys).
    json
        Print all of it as JSON, amounts of money in nano-dollars.
    """
    from tbc.pricing import Prices
    from tbc.runs.config import load_workflow
    from tbc.runs.plan import admissions, estimate

    workflow = load_workflow(file)
    found = admissions(workflow)
    guess = estimate(workflow, Prices(workflow.prices), _counter)
    if json:
        print(json_format.dumps(_as_json(workflow, found, guess), indent=2, allow_nan=False))
    else:
        _explain(workflow, found, guess)
    return 0 if all(each.fits for each in found) else 1


def _counter(model: str | None) -> Counter:
    from tbc.tokens import EstimateCounter, local_counter

    return local_counter(model) or EstimateCounter()


def _explain(workflow: Workflow, found: tuple[Admission, ...], guess: Estimate) -> None:
    console = Console(markup=False, highlight=False, emoji=False)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    say(f"{workflow.name} ({workflow.path})")
    for line in _limits(workflow.limits):
        say(line)
    console.print(_agents(workflow))
    console.print(_plan(workflow, guess))
    say("Admission: do the caps of the agents fit into what they are carved out of?")
    for each in found:
        say(f"  {each.axis} of {each.parent or 'the run'}: {each}")
    if not found:
        say("  nothing is carved out: no agent with a cap has a capped budget above it")
    console.print()
    console.print(_estimate(guess))
    for line in _notes(workflow, guess):
        say(line)


def _limits(limits: Limits) -> list[str]:
    from tbc.axes import USD, format_amount
    from tbc.money import to_nano

    budgets = []
    if limits.budget_usd is not None:
        budgets.append(format_amount(USD, to_nano("budget_usd", limits.budget_usd, up=False)))
    if limits.budget_tokens is not None:
        budgets.append(f"{limits.budget_tokens:,} tokens")
    lines = [f"Budget: {' and '.join(budgets) or 'none for the run as a whole'}"]
    if 0 in (limits.budget_usd, limits.budget_tokens):
        lines.append("A budget of 0 leaves room for nothing.")
    if limits.budget_mode == "enforce":
        lines.append(
            "Mode enforce: a call that does not fit is refused before it is made. The run then stops with a "
            "checkpoint and keeps everything that was paid for."
        )
    else:
        lines.append(
            "Mode audit: nothing is refused. The run goes to its end and then lists what enforce would have "
            "refused."
        )
    if budgets:
        lines.append(
            f"Warnings at {', '.join(f'{part:.4%}'.replace('.0000', '') for part in limits.warn_at)}"
        )
    return lines


def _agents(workflow: Workflow) -> Table:
    table = Table(title="Agents", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("agent")
    for column in ("priority", "tokens", "usd", "calls", "reserve", "confident at"):
        table.add_column(column, justify="right")
    for name, depth in _in_tree(workflow):
        agent = workflow.agents[name]
        table.add_row(
            "  " * depth + name,
            str(agent.priority),
            *(_cap(workflow, name, axis) for axis in ("tokens", "usd", "calls")),
            _reserve(name, agent),
            "" if agent.confidence_threshold is None else f"{agent.confidence_threshold:g}",
        )
    return table


def _in_tree(workflow: Workflow) -> list[tuple[str, int]]:
    """Return the agents with their depths, children right after their parents."""
    found: list[tuple[str, int]] = []
    waiting: list[tuple[str | None, int]] = [(None, -1)]
    while waiting:
        name, depth = waiting.pop()
        if name is not None:
            found.append((name, depth))
        children = [child for child, agent in workflow.agents.items() if agent.parent == name]
        waiting.extend((child, depth + 1) for child in reversed(children))
    return found


def _cap(workflow: Workflow, name: str, axis: Axis) -> str:
    from tbc.axes import format_number
    from tbc.runs.plan import cap, is_capped

    amount = cap(axis, workflow.agents[name])
    if amount is None:
        return "as needed" if is_capped(workflow, name, axis) else "no cap"
    return format_number(axis, amount)


def _reserve(name: str, agent: Agent) -> str:
    from tbc.axes import USD, format_amount
    from tbc.money import to_nano

    contract = agent.contract(name)
    parts = [f"{contract.min_reserve:,}"] if contract.min_reserve else []
    if agent.min_reserve_usd:
        parts.append(format_amount(USD, to_nano("min_reserve_usd", agent.min_reserve_usd)))
    return ", ".join(parts)


def _plan(workflow: Workflow, guess: Estimate) -> Table:
    from tbc.runs.plan import layers

    table = Table(title="Plan: what stands in one layer may run at once", title_justify="left")
    table.box, table.pad_edge = box.SIMPLE_HEAD, False
    for column in ("layer", "step", "agent", "model", "calls", "needs"):
        table.add_column(column)
    calls = {each.step_id: each.calls for each in guess.steps}
    for number, layer in enumerate(layers(workflow), start=1):
        for place, step_id in enumerate(layer):
            step = workflow.step(step_id)
            model = step.model or "unknown"
            if step.fallback_model is not None:
                when = "short" if step.fallback_when == "short" else f"from {step.fallback_when}"
                model += f" ({when}: {step.fallback_model})"
            count = "unknown" if calls[step_id] is None else str(calls[step_id])
            first = str(number) if place == 0 else ""
            table.add_row(first, step_id, step.agent, model, count, ", ".join(step.needs))
    return table


def _estimate(guess: Estimate) -> Table:
    table = Table(title="Estimate", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step")
    for column in ("tokens, low", "tokens, high", "usd, low", "usd, high"):
        table.add_column(column, justify="right")
    for each in guess.steps:
        table.add_row(each.step_id, *_ends("tokens", each.tokens), *_ends("usd", each.usd))
    table.add_section()
    table.add_row("total", *_ends("tokens", guess.tokens, guess), *_ends("usd", guess.usd, guess))
    return table


def _ends(axis: Axis, ends: Range, total: Estimate | None = None) -> list[str]:
    from tbc.axes import format_number

    words = []
    for end in _ENDS:
        amount = getattr(ends, end)
        some = "at least " if total is not None and total.unknown(axis, end) else ""
        words.append("unknown" if amount is None else some + format_number(axis, amount))
    return words


def _notes(workflow: Workflow, guess: Estimate) -> list[str]:
    from tbc.runs.plan import is_capped

    lines = [
        "Low: the inputs as they stand here, no output. High: all inputs and the output caps. Both: one call "
        "for each step or item, at list prices."
    ]
    unknown = sorted({step for axis in _AXES for end in _ENDS for step in guess.unknown(axis, end)})
    if unknown:
        lines.append(f"Not in the totals, as far as unknown: {', '.join(unknown)}")
    if guess.estimated:
        lines.append("Tokens are estimated (within 25 %): the vocabulary is not in tiktoken's cache.")
    lines += [f"  {each.step_id}: {note}" for each in guess.steps for note in each.notes]
    refused = [
        each.step_id
        for each in guess.steps
        if each.unpriced and is_capped(workflow, workflow.step(each.step_id).agent, "usd")
    ]
    if refused and workflow.unknown_price == "refuse":
        lines.append(
            f"Calls of {', '.join(refused)} without a known price will be refused, for dollars are capped "
            "(unknown_price: refuse)."
        )
    return lines


def _as_json(workflow: Workflow, found: tuple[Admission, ...], guess: Estimate) -> dict[str, Any]:
    from tbc.runs.plan import layers

    def plain(record: Any) -> dict[str, Any]:
        return {key: _dollars(each) if isinstance(each, Decimal) else each for key, each in record.items()}

    limits = plain(attrs.asdict(workflow.limits))
    limits["warn_at"] = [float(part) for part in workflow.limits.warn_at]
    return {
        "tbc": __version__,
        "name": workflow.name,
        "file": workflow.path,
        "fingerprint": workflow.fingerprint,
        "limits": limits,
        "agents": {name: plain(attrs.asdict(agent)) for name, agent in workflow.agents.items()},
        "layers": layers(workflow),
        "fits": all(each.fits for each in found),
        "admission": [
            {
                **attrs.asdict(each),
                "spare": each.spare,
                "asked": each.asked,
                "fits": each.fits,
                "text": str(each),
            }
            for each in found
        ],
        "estimate": {
            "steps": [_step_as_json(each) for each in guess.steps],
            "tokens": attrs.asdict(guess.tokens),
            "nano_usd": attrs.asdict(guess.usd),
            "unknown": {axis: {end: guess.unknown(axis, end) for end in _ENDS} for axis in _AXES},
            "tokens_estimated": guess.estimated,
        },
    }


def _step_as_json(step: StepEstimate) -> dict[str, Any]:
    keys = attrs.asdict(step)
    keys["nano_usd"] = keys.pop("usd")
    return keys


def _dollars(amount: Decimal) -> str:
    return f"{amount.normalize():f}"
