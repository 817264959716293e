"""The SQLite file keeps the steps of runs in their order."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbc.stores import AgentRow, PoolRow, SqliteStore, StepRow
from tbc.stores.rows import RunRow

times = st.floats(allow_nan=False, allow_infinity=False)
texts = st.none() | st.text(st.characters(codec="utf-8"), max_size=20)
characters = st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" ")
ids = st.text(characters, min_size=1, max_size=20).filter(str.isprintable)
numbers = itertools.count()


@pytest.fixture(scope="module")
def store():
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteStore(Path(folder) / "books.db", synchronous="NORMAL") as store,
    ):
        yield store


def new_pool(store):
    pool = f"p{next(numbers)}"
    with store.transaction() as writer:
        writer.put_pool(PoolRow(pool, "enforce", 0.0))
        writer.put_agents(pool, [AgentRow("(root)", 0, None)])
    return pool


steps_of_runs = st.tuples(ids, ids, texts, st.none() | times).map(
    lambda made: StepRow(made[0], made[1], result=made[2], started_at=made[3])
)


@given(st.lists(steps_of_runs, max_size=5))
def test_steps_come_back_in_their_order_with_their_results(store, steps):
    pool = new_pool(store)
    with store.transaction() as writer:
        writer.put_run(RunRow(pool, pool, "w", "running", "enforce", 0.0, 0.0))
        writer.put_steps(pool, steps)
    last = {(step.step, step.item): step for step in steps}  # a step that is written again keeps its place
    assert store.steps(pool) == list(last.values())
