"""A store keeps every digit, and its chain finds every line that was touched."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbc.stores import (
    AccountRow,
    AgentRow,
    HoldRow,
    LineRow,
    LoanRow,
    PartRow,
    PoolRow,
    PostgresStore,
    SqliteStore,
)

EDGES = [0, 1, 10**9, 2**31, 2**53 - 1, 2**53, 2**63 - 1]
whole = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**63 - 1))
signed = st.one_of(whole, st.integers(-(2**63), 0))
axes = st.sampled_from(["tokens", "usd", "calls"])
times = st.floats(allow_nan=False, allow_infinity=False)
#: PostgreSQL keeps no NUL characters in text.
texts = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
characters = st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" ")
ids = st.text(characters, min_size=1, max_size=20).filter(str.isprintable)
lines = st.builds(
    LineRow,
    seq=st.just(0),
    at=times,
    kind=st.sampled_from(["hold", "settle", "usage", "loan"]),
    agent_name=ids,
    peer=st.none() | ids,
    allocated=signed,
    consumed=signed,
    held=signed,
    hold_id=st.none() | whole,
    key=st.none() | ids,
    note=texts,
    estimated=st.booleans(),
    axis=axes,
    model=texts,
    unpriced=signed,
)
numbers = itertools.count()


class Hand:
    """Changes rows behind a store's back, where nothing stops it."""

    def __init__(self, store):
        self.is_file = isinstance(store, SqliteStore)
        if self.is_file:
            self.raw = store._connection
            for (name,) in self.raw.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'trigger'"
            ).fetchall():
                self.raw.execute(f"DROP TRIGGER {name}")
        else:
            self.raw = psycopg.connect(**store._connections.settings)
            self.raw.execute(f"SET search_path = {store.schema}")
            self.raw.execute("SET session_replication_role = replica")

    def execute(self, statement, values):
        if not self.is_file:
            statement = statement.replace("?", "%s").replace("randomblob(32)", "sha256(prev_hash || hash)")
        self.raw.execute(statement, values)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def store(request):
    with tempfile.TemporaryDirectory() as folder:
        if request.param == "sqlite":
            store = SqliteStore(Path(folder) / "books.db", synchronous="NORMAL")
        else:
            store = PostgresStore(request.getfixturevalue("postgres_url"), schema=f"properties{os.getpid()}")
        with store:
            store.hand = Hand(store)
            yield store
        store.hand.raw.close()


def new_pool(store):
    pool = f"p{next(numbers)}"
    with store.transaction(pool) as writer:
        writer.put_pool(PoolRow(pool, "enforce", 0.0))
        writer.put_agents(pool, [AgentRow("(root)", 0, None)])
    return pool


def numbered(given_lines):
    return [line._replace(seq=seq) for seq, line in enumerate(given_lines, start=1)]


@given(st.lists(st.lists(lines, max_size=4), max_size=4))
def test_story_19_saving_and_loading_keeps_every_digit_of_the_journal(store, transactions):
    pool = new_pool(store)
    rows = iter(numbered(itertools.chain(*transactions)))
    for transaction in transactions:
        with store.transaction(pool) as writer:
            writer.append(pool, itertools.islice(rows, len(transaction)))
    assert list(store.entries(pool)) == numbered(itertools.chain(*transactions))


@given(
    st.dictionaries(axes, st.tuples(st.booleans(), signed, whole, whole, whole, whole), max_size=3),
    st.dictionaries(axes, st.tuples(whole, whole), max_size=3),
    st.lists(st.tuples(axes, whole), max_size=4),
    times,
    st.none() | times,
)
def test_story_19_saving_and_loading_keeps_every_digit_of_the_books(
    store, books, parts, loans, at, confidence
):
    pool = new_pool(store)
    agents = (AgentRow("(root)", 0, None), AgentRow("a", 1, "(root)", "{}", confidence))
    accounts = tuple(AccountRow("a", axis, *values) for axis, values in sorted(books.items()))
    hold = HoldRow(
        1,
        "a",
        "open",
        at,
        at,
        parts=tuple(PartRow(axis, *values) for axis, values in sorted(parts.items())),
        loans=tuple(LoanRow(axis, "(root)", "draw", amount) for axis, amount in loans),
    )
    with store.transaction(pool) as writer:
        writer.put_agents(pool, agents)
        writer.put_accounts(pool, accounts)
        writer.put_holds(pool, [hold])
    state = store.load_pool(pool)
    assert (state.agents, state.accounts, state.holds) == (agents, accounts, (hold,))


small = st.tuples(
    st.integers(0, 9), st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, "", "x"])
).map(lambda made: LineRow(0, float(made[0]), "usage", "a", None, made[1], made[2], 0, note=made[3]))

CHANGES = [
    "at = at + 1",
    "kind = kind || 'x'",
    "axis = CASE axis WHEN 'usd' THEN 'tokens' ELSE 'usd' END",
    "agent = agent || 'x'",
    "peer = coalesce(peer || 'x', 'x')",
    "allocated = allocated + 1",
    "consumed = consumed - 1",
    "held = held + 1",
    "unpriced = unpriced + 1",
    "hold_id = coalesce(hold_id + 1, 1)",
    "key = coalesce(key || 'x', 'x')",
    "note = CASE WHEN note IS NULL THEN '' ELSE NULL END",
    "model = coalesce(model || 'x', '')",
    "estimated = 1 - estimated",
    "prev_hash = randomblob(32)",
    "hash = randomblob(32)",
]


@given(st.lists(small, min_size=1, max_size=6), st.sampled_from(CHANGES), st.data())
def test_any_changed_line_is_named(store, given_lines, change, data):
    pool, seq = filled(store, given_lines, data)
    store.hand.execute(f"UPDATE journal SET {change} WHERE pool = ? AND seq = ?", (pool, seq))
    assert store.verify(pool)[0].seq == seq


@given(st.lists(small, min_size=1, max_size=6), st.data())
def test_any_removed_line_is_named(store, given_lines, data):
    pool, seq = filled(store, given_lines, data)
    store.hand.execute("DELETE FROM journal WHERE pool = ? AND seq = ?", (pool, seq))
    assert store.verify(pool)[0].seq == seq


@given(st.lists(small, min_size=1, max_size=6), st.data())
def test_any_line_that_is_inserted_once_more_is_named(store, given_lines, data):
    pool, seq = filled(store, given_lines, data)
    move = "UPDATE journal SET seq = seq {} WHERE pool = ? AND seq {} ?"
    raw = store.hand
    raw.execute(move.format("+ 1001", ">="), (pool, seq))
    raw.execute(move.format("- 1000", ">"), (pool, 1000))
    columns = "at, kind, axis, agent, peer, allocated, consumed, held, unpriced, hold_id, key, note, model"
    columns += ", estimated, prev_hash, hash"
    raw.execute(
        f"INSERT INTO journal SELECT pool, ?, {columns} FROM journal WHERE pool = ? AND seq = ?",
        (seq, pool, seq + 1),
    )
    assert store.verify(pool)[0].seq == seq + 1  # the first of the two is the one that was there


def filled(store, given_lines, data):
    pool = new_pool(store)
    with store.transaction(pool) as writer:
        writer.append(pool, numbered(given_lines))
    check = store.verify(pool)[0]
    assert check.seq is None and check.lines == len(given_lines)
    return pool, data.draw(st.integers(1, len(given_lines)))
