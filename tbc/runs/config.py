"""Workflow files: YAML or TOML into frozen records, or every problem of the file at once.

Loading imports and calls nothing that the file names. Whatever is no known key, no right type or leads
nowhere is refused with the path of the key and the nearest right name; nothing is guessed and nothing is
dropped. ``null`` is the same as leaving a key out. docs/workflows.md lists the keys.

Examples
--------
>>> workflow = parse_workflow('''
... name: tea
... limits: {budget_usd: 0.50}
... agents: {writer: {priority: 3}}
... steps:
...   - {id: draft, agent: writer, call: "tea.steps:draft"}
...   - {id: edit, agent: writer, call: "tea.steps:edit", input: "{{ steps.draft }}"}
... ''')
>>> workflow.limits.budget_mode, workflow.step("edit").needs
('audit', ('draft',))
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Any, Final

from tbc.contract import check_name
from tbc.errors import InvalidAmountError, InvalidPriceError, TBCError
from tbc.files import join, read_file, read_values
from tbc.reading import Reading, hint, keys_of, said, shown
from tbc.run_errors import WorkflowFileError
from tbc.runs.references import Reference, find_references
from tbc.runs.workflow import (
    Agent,
    Limits,
    Outline,
    Step,
    Workflow,
    changed_steps,
    downstream,
)

__all__ = [
    "Agent",
    "Limits",
    "Step",
    "Workflow",
    "changed_steps",
    "downstream",
    "load_workflow",
    "parse_workflow",
]


def load_workflow(path: str | PathLike[str]) -> Workflow:
    """Read and check a workflow file: TOML if its name ends in ``.toml``, else YAML.

    Raises
    ------
    WorkflowFileError
        With every problem of the file.
    OSError
        If it cannot be read.
    """
    text, problems = read_file(path)
    if problems:
        raise WorkflowFileError(fspath(path), problems)
    return parse_workflow(text, fspath(path))


def parse_workflow(text: str, path: str = "workflow.yaml") -> Workflow:
    """Check the text of a workflow file; `path` names it in messages, and says whether it is TOML."""
    values, problems = read_values(text, toml=path.lower().endswith(".toml"))
    if values is None and not problems:
        problems = [("", "is empty; a workflow needs name, agents and steps")]
    unreadable = {where for where, _ in problems}
    reading = _Reading()
    workflow = None if values is None else reading.workflow(values, path, text)
    problems += [each for each in reading.problems if each[0] not in unreadable]
    if workflow is None or problems:
        problems = [(where, " ".join(what.split())) for where, what in problems]
        raise WorkflowFileError(path, list(dict.fromkeys(problems)))
    return workflow


class _Reading(Reading):
    """One reading of a workflow file."""

    def __init__(self) -> None:
        super().__init__(_PLACES, _STAND_INS)

    def workflow(self, values: Any, path: str, source: str) -> Workflow | None:
        outline = self.record(values, Outline, "")
        raw = values if isinstance(values, dict) else {}
        limits = self.record(raw["limits"], Limits, "limits") if _is_mapping(raw, "limits") else Limits()
        agents = self.agents(raw["agents"]) if _is_mapping(raw, "agents") else {}
        prices = raw["prices"] if _is_mapping(raw, "prices") else {}
        self.prices(prices, None if outline is None else outline.unknown_price)
        steps = self.steps(raw["steps"], list(raw.get("agents") or ())) if _is_list(raw, "steps") else []
        if outline is None or limits is None or self.problems:
            return None
        return Workflow(
            name=outline.name,
            limits=limits,
            agents=agents,
            prices=prices,
            steps=tuple(steps),
            unknown_price=outline.unknown_price,
            path=path,
            source=source,
        )

    def agents(self, value: dict[str, Any]) -> dict[str, Agent]:
        agents: dict[str, Agent] = {}
        for name, terms in value.items():
            path, so_far = join("agents", name), len(self.problems)
            agent = self.record({} if terms is None else terms, Agent, path)
            if agent is None:
                continue
            agents[name] = agent
            try:
                check_name(name)
                if len(self.problems) == so_far:
                    agent.contract(name)
            except InvalidAmountError as error:  # terms that contradict each other
                self.note(join(path, error.name), said(error))
            except TBCError as error:
                self.note(path, str(error))
            if agent.parent is not None and agent.parent not in value:
                self.note(f"{path}.parent", _nobody("agent", agent.parent, value))
        parents = {name: [agent.parent] for name, agent in agents.items() if agent.parent in agents}
        self.cycle("agents", parents, "the parent of")
        return agents

    def prices(self, table: dict[str, Any], unknown_price: Any) -> None:
        from tbc.pricing import Prices, check_unknown_price

        so_far = len(self.problems)
        for model, price in table.items():
            try:
                Prices({model: price}, default=False)
            except InvalidPriceError as error:
                self.note(_path(model, error.path), error.reason)
            except InvalidAmountError as error:
                self.note(_path(model, error.name), said(error))
        if unknown_price is None or len(self.problems) > so_far:
            return
        try:
            check_unknown_price(unknown_price, Prices(table))
        except InvalidPriceError as error:
            self.note("unknown_price", error.reason)
        except InvalidAmountError as error:
            self.note("unknown_price", said(error))

    def steps(self, value: list[Any], agents: list[str]) -> list[Step]:
        if not value:
            self.note("steps", "must hold at least one step")
        ids = [each["id"] for each in value if isinstance(each, dict) and isinstance(each.get("id"), str)]
        steps: dict[str, Step] = {}
        for index, raw in enumerate(value):
            path = f"steps[{index}]"
            step = self.record(raw, Step, path)
            if step is None:
                continue
            if step.id in steps and step.id == raw.get("id"):
                self.note(f"{path}.id", f"there is a step {step.id!r} before; ids must differ")
            if step.id == raw.get("id"):
                steps.setdefault(step.id, step)
            self.step(path, step, raw, list(dict.fromkeys(ids)), agents)
        needs = {step.id: [other for other in step.needs if other in steps] for step in steps.values()}
        self.cycle("steps", needs, "before")
        return list(steps.values())

    def step(self, path: str, step: Step, raw: Mapping[str, Any], ids: list[str], agents: list[str]) -> None:
        if step.agent == raw.get("agent") and step.agent not in agents:
            self.note(f"{path}.agent", _nobody("agent", step.agent, agents))
        if step.fallback_when is not None and raw.get("fallback_model") is None:
            self.note(f"{path}.fallback_when", "needs a fallback_model")
        for index, other in enumerate(step.after):
            if other not in ids:
                self.note(f"{path}.after[{index}]", _nobody("step", other, ids))
        for key in ("input", "for_each"):
            for reference in find_references(getattr(step, key)):
                has_item = key == "input" and raw.get("for_each") is not None
                wrong = _wrong_reference(reference, ids, has_item=has_item)
                if wrong:
                    self.note(f"{path}.{key}", wrong)

    def cycle(self, path: str, graph: Mapping[str, Iterable[Any]], relation: str) -> None:
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            nodes = error.args[1]
            self.note(path, f"a cycle, each {relation} the next: {' -> '.join(nodes)}")


#: Where each key belongs, for those who put it elsewhere.
_PLACES: Final = {
    **{name: f"steps[].{name}" for name in keys_of(Step)},
    **{name: f"agents.NAME.{name}" for name in keys_of(Agent)},
    **{name: f"limits.{name}" for name in keys_of(Limits)},
    **{name: name for name in keys_of(Outline)},
}


#: For required keys that are missing or wrong, so that the others can be looked at.
_STAND_INS: Final = {"id": "-", "agent": "-", "call": "a:b"}


def _is_mapping(raw: Mapping[str, Any], key: str) -> bool:
    return isinstance(raw.get(key), dict)


def _is_list(raw: Mapping[str, Any], key: str) -> bool:
    return isinstance(raw.get(key), list)


def _path(model: str, path: str) -> str:
    """Return a path of `tbc.pricing`, as ``prices['m']['free']``, the way paths are written here."""
    return join("prices", model) + re.sub(r"\['(\w+)'\]", r".\1", path.removeprefix(f"prices[{model!r}]"))


def _wrong_reference(reference: Reference | str, ids: list[str], *, has_item: bool) -> str | None:
    if isinstance(reference, str):
        return (
            f"{shown(reference)} is no reference: write {{{{ steps.ID }}}}, {{{{ steps.ID.field }}}} or "
            "{{ item }}, or \\{{ for plain braces"
        )
    if reference.step is None:
        return None if has_item else f"{{{{ {reference} }}}} is known in the input of a for_each step only"
    if reference.step not in ids:
        return f"{{{{ {reference} }}}}: {_nobody('step', reference.step, ids)}"
    return None


def _nobody(kind: str, name: str, names: Iterable[str]) -> str:
    names = list(names)
    there_is = f"; there is {', '.join(names)}" if names else ""
    return f"no {kind} is called {shown(name)}{hint(name, names) or there_is}"
