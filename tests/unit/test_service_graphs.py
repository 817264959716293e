"""Graphs of steps: what is refused, and which way is taken."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbc.error_codes import error_object
from tbc.run_errors import InvalidGraphError
from tbc.service.bodies import structure
from tbc.service.graphs import MOST_EDGES, MOST_NODES, PRESETS, Condition, Edge, Graph, Node, StepGraph


def edge(to, **when):
    return Edge(to=to, condition=Condition(**when or {"always": True}))


def graph(entry="a", **nodes):
    return StepGraph(entry=entry, nodes={name: Node(edges=edges) for name, edges in nodes.items()})


def problems(stated):
    with pytest.raises(InvalidGraphError) as caught:
        Graph.of(stated)
    assert error_object(caught.value)["code"] == "invalid_graph"
    return dict(caught.value.problems)


@pytest.mark.parametrize(
    ("stated", "path", "said"),
    [
        (StepGraph(entry="a", nodes={}), "nodes", "at least one"),
        (graph("plam", plan=[]), "entry", "did you mean plan"),
        (graph(a=[edge("plam")], plan=[]), "nodes.a.edges[0].to", "did you mean plan"),
        (graph(a=[], b=[edge("a")]), "nodes.b", "no way leads from 'a'"),
        (graph(a=[Edge(to="a")]), "nodes.a.edges[0].condition", "never holds"),
        (graph(a=[edge("a", budget_ratio_below=0)]), "nodes.a.edges[0].condition", "never holds"),
        (
            graph(a=[edge("a"), edge("a", budget_ratio_below=0.5)]),
            "nodes.a.edges[1]",
            "an edge before it always is",
        ),
        (graph(a=[edge("a", on_failed=True)] * (MOST_EDGES + 1)), "nodes.a.edges", "at most 20"),
        (graph(**{f"n{n}": [] for n in range(MOST_NODES + 1)}), "nodes", "at most 50, not 51"),
        (StepGraph(entry="a", nodes={"a": Node(name="b")}), "nodes.a.name", "must be 'a'"),
    ],
)
def test_what_is_no_graph_is_refused_with_the_path(stated, path, said):
    assert said in problems(stated)[f"step_graph.{path}"]


def test_every_problem_is_named_at_once():
    assert set(problems(graph(a=[edge("x"), Edge(to="y")], z=[]))) == {
        "step_graph.nodes.a.edges[0].to",
        "step_graph.nodes.a.edges[1].to",
        "step_graph.nodes.a.edges[1].condition",
        "step_graph.nodes.z",
    }


def test_edges_are_tried_in_order_and_no_match_is_the_end():
    found = Graph.of(
        graph(
            a=[
                edge("b", on_hard_stop=True),
                edge("c", budget_ratio_below=0.3),
                edge("d"),
                edge("e", on_refused=True, on_failed=True),
            ],
            b=[],
            c=[],
            d=[],
            e=[],
        )
    )
    assert found.after("a", "hard_stop", 0.1) == "b"
    assert [found.after("a", "done", left) for left in (0.299, 0.3, float("inf"))] == ["c", "d", "d"]
    assert found.after("a", "refused", 0.1) == found.after("a", "failed", 1.0) == "e"
    assert found.after("d", "done", 0.0) is None


def test_always_does_not_lead_on_from_a_step_that_was_not_done():
    found = Graph.of(graph(a=[edge("a")]))
    assert [found.after("a", how, 0.0) for how in ("done", "hard_stop", "refused", "failed")] == [
        "a",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_graphs_with_a_name_are_graphs_and_end_in_a_summary(name):
    found = Graph.of(PRESETS[name])
    for left in (0.0, 0.27, 1.0):
        way, at = [], found.entry
        while at is not None:
            way.append(at)
            at = found.after(at, "done", left)
            assert len(way) < 10
        assert way[-1] == "summarize"
        assert (len(way) < len(found.nodes)) == (left < 0.3 and name != "default")


def test_the_graph_of_the_page_is_a_graph():
    page = (Path(__file__).resolve().parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    found = Graph.of(structure(json.loads(text), StepGraph))
    assert found.after("search", "done", 0.2) == found.after("search", "refused", 1.0) == "finish"
    assert found.after("answer", "failed", 1.0) == "finish"


NAMES = st.sampled_from("abcd")
CONDITIONS = st.builds(
    Condition,
    always=st.booleans(),
    on_hard_stop=st.booleans(),
    budget_ratio_below=st.none() | st.floats(0, 1),
)


@given(
    st.builds(
        StepGraph,
        entry=NAMES,
        nodes=st.dictionaries(
            NAMES,
            st.builds(Node, edges=st.lists(st.builds(Edge, to=NAMES, condition=CONDITIONS), max_size=3)),
        ),
    )
)
def test_what_is_accepted_never_leads_out_of_itself(stated):
    try:
        found = Graph.of(stated)
    except InvalidGraphError as error:
        assert error.problems
        return
    assert found.entry in found.nodes
    for name in found.nodes:
        for how in ("done", "hard_stop", "refused", "failed"):
            for left in (0.0, 0.5, float("inf")):
                assert found.after(name, how, left) in {None, *found.nodes}
