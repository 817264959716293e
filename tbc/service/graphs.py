"""Graphs of steps: which step comes after which, by how the last one went and what is left.

The nodes of a graph are steps, its edges are tried in order. A graph is checked before anything is asked of
the policy or the books: every problem is named at once.

Examples
--------
>>> graph = Graph.of(LOOP)
>>> graph.after("plan", "done", left=0.2), graph.after("plan", "hard_stop", left=0.2)
('execute', None)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal

import attrs

from tbc.reading import hint
from tbc.run_errors import InvalidGraphError
from tbc.service.values import Amount, Fraction, Line, Milliseconds

__all__ = ["LOOP", "PRESETS", "Condition", "Edge", "Graph", "Node", "Outcome", "StepGraph"]

#: How a step ended: it was done; the policy said no; the books said no; it went wrong.
Outcome = Literal["done", "hard_stop", "refused", "failed"]

#: How many nodes a graph may have, and how many edges a node.
MOST_NODES: Final = 50
MOST_EDGES: Final = 20


@attrs.frozen(kw_only=True)
class Condition:
    """When an edge is taken. One is enough; `always` and the budget speak of steps that were done."""

    always: bool = False
    #: Less than this part of the run's budget is left, after the step was paid for; 0: never.
    budget_ratio_below: Fraction | None = None
    #: The policy gave no tier.
    on_hard_stop: bool = False
    #: There was no budget for the step.
    on_refused: bool = False
    #: The step went wrong.
    on_failed: bool = False

    @property
    def holds_never(self) -> bool:
        """Whether nothing can make it hold."""
        return not (
            self.always or self.budget_ratio_below or self.on_hard_stop or self.on_refused or self.on_failed
        )

    def holds(self, outcome: Outcome, left: float) -> bool:
        """Return whether the edge is taken after a step that ended so, with that part of the budget left."""
        if outcome == "done":
            below = self.budget_ratio_below
            return self.always or (below is not None and left < below)
        if outcome == "hard_stop":
            return self.on_hard_stop
        return self.on_refused if outcome == "refused" else self.on_failed


@attrs.frozen(kw_only=True)
class Edge:
    """A way to another node."""

    to: Line
    condition: Condition = attrs.field(factory=Condition)


@attrs.frozen(kw_only=True)
class Node:
    """A step: what is left out is as the run says it."""

    #: The same as its key, if it is said.
    name: Line | None = None
    #: What the policy takes it for; left out: its name.
    step_type: Line | None = None
    edges: list[Edge] = attrs.field(factory=list)
    latency_sla_ms: Milliseconds | None = None
    input_tokens: Amount | None = None
    max_output_tokens: Amount | None = None


@attrs.frozen(kw_only=True)
class StepGraph:
    """Steps by name, and the one that comes first."""

    entry: Line
    nodes: dict[Line, Node]


@attrs.frozen
class Graph:
    """A graph that was checked.

    Attributes
    ----------
    entry : str
        The node that comes first.
    nodes : mapping of str to Node
        All of them, each reachable.
    """

    entry: str
    nodes: Mapping[str, Node]

    @classmethod
    def of(cls, stated: StepGraph) -> Graph:
        """Return the graph that a request states.

        Raises
        ------
        InvalidGraphError
            With every problem: no entry, targets that are no nodes, nodes that nothing leads to, conditions
            that never hold, edges behind one that always holds, too many of anything.
        """
        problems = list(_problems(stated))
        if problems:
            raise InvalidGraphError([(f"step_graph.{path}", what) for path, what in problems])
        return cls(stated.entry, dict(stated.nodes))

    def after(self, name: str, outcome: Outcome, left: float) -> str | None:
        """Return the node that comes after one that ended so; ``None``: that was the last."""
        return next((edge.to for edge in self.nodes[name].edges if edge.condition.holds(outcome, left)), None)


def _problems(graph: StepGraph) -> Iterator[tuple[str, str]]:
    nodes = graph.nodes
    if not nodes:
        yield "nodes", "must hold at least one"
        return
    if len(nodes) > MOST_NODES:
        yield "nodes", f"must hold at most {MOST_NODES}, not {len(nodes)}"
    if graph.entry not in nodes:
        yield "entry", f"there is no node {graph.entry!r}{hint(graph.entry, list(nodes))}"
    for name, node in nodes.items():
        yield from _problems_of(name, node, nodes)
    if graph.entry in nodes:
        for name in nodes.keys() - _reached(graph):
            yield f"nodes.{name}", f"no way leads from {graph.entry!r} to it"


def _problems_of(name: str, node: Node, nodes: Mapping[str, Node]) -> Iterator[tuple[str, str]]:
    if node.name not in (None, name):
        yield f"nodes.{name}.name", f"must be {name!r}, as its key says, not {node.name!r}"
    if len(node.edges) > MOST_EDGES:
        yield f"nodes.{name}.edges", f"must hold at most {MOST_EDGES}, not {len(node.edges)}"
    closed = False
    for index, edge in enumerate(node.edges):
        path, condition = f"nodes.{name}.edges[{index}]", edge.condition
        if edge.to not in nodes:
            yield f"{path}.to", f"there is no node {edge.to!r}{hint(edge.to, list(nodes))}"
        if condition.holds_never:
            yield f"{path}.condition", "never holds: say always, budget_ratio_below or on_..."
        elif closed and not (condition.on_hard_stop or condition.on_refused or condition.on_failed):
            yield path, "is never taken: an edge before it always is"
        closed = closed or condition.always


def _reached(graph: StepGraph) -> set[str]:
    found, ahead = {graph.entry}, [graph.entry]
    while ahead:
        for edge in graph.nodes[ahead.pop()].edges:
            if edge.to in graph.nodes and edge.to not in found:
                found.add(edge.to)
                ahead.append(edge.to)
    return found


def _node(*edges: Edge) -> Node:
    return Node(edges=list(edges))


def _to(name: str, *, below: float | None = None) -> Edge:
    return Edge(to=name, condition=Condition(always=below is None, budget_ratio_below=below))


def _graph(entry: str, nodes: Iterable[tuple[str, Node]]) -> StepGraph:
    return StepGraph(entry=entry, nodes=dict(nodes))


#: What is run unless something else is asked for: three steps, one after the other.
LOOP: Final = _graph(
    "plan",
    [("plan", _node(_to("execute"))), ("execute", _node(_to("summarize"))), ("summarize", _node())],
)
#: Graphs that have a name. With little left, what is found so far is summarized.
PRESETS: Final[dict[str, StepGraph]] = {
    "default": LOOP,
    "research": _graph(
        "plan",
        [
            ("plan", _node(_to("search"))),
            ("search", _node(_to("summarize", below=0.30), _to("execute"))),
            ("execute", _node(_to("summarize", below=0.25), _to("validate"))),
            ("validate", _node(_to("summarize"))),
            ("summarize", _node()),
        ],
    ),
    "code_review": _graph(
        "plan",
        [
            ("plan", _node(_to("execute"))),
            ("execute", _node(_to("summarize", below=0.30), _to("validate"))),
            ("validate", _node(_to("summarize"))),
            ("summarize", _node()),
        ],
    ),
}
#: What is left of a budget that there is none of.
UNLIMITED: Final = math.inf
