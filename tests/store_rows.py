"""Rows that the tests of stores write, and hands that change them behind a store's back."""

from __future__ import annotations

import apsw
import psycopg

from tbc.stores import (
    AccountRow,
    AgentRow,
    HoldRow,
    LineRow,
    LoanRow,
    OpRow,
    PartRow,
    PoolRow,
    PostgresStore,
    SqliteStore,
    Store,
)

POOL = PoolRow("p", "enforce", 1.5, '{"currency":"usd"}')
AGENTS = [
    AgentRow("(root)", 0, None),
    AgentRow("writer é", 1, "(root)", '{"priority":9}', 0.25),
    AgentRow("reader", 2, "(root)", closed=True),
]
HOLD = HoldRow(
    2,
    "writer é",
    "open",
    10.0,
    20.25,
    key="k/1",
    operation="draft",
    model="gpt",
    request_hash="abc",
    parts=(PartRow("tokens", 30, 20), PartRow("usd", 7, 7)),
    loans=(LoanRow("tokens", "reader", "loan", 5), LoanRow("tokens", "(root)", "draw", 1)),
)
LINES = [
    LineRow(1, 9.75, "register", "writer é", None, 100, 0, 0),
    LineRow(2, 10.0, "hold", "writer é", None, 0, 0, 30, 2, "k/1", "draft", model="gpt"),
    LineRow(3, 10.0, "hold", "writer é", None, 0, 0, 7, 2, "k/1", "draft", axis="usd"),
    LineRow(4, 11.0, "usage", "writer é", None, 0, 5, 0, note="x\ny", estimated=True, unpriced=1),
    LineRow(5, 12.0, "loan", "writer é", "reader", 5, 0, 0, 2),
]
ACCOUNTS = [
    AccountRow("writer é", "tokens", True, 105, 5, 30, 10, 1),
    AccountRow("writer é", "usd", False, 0, 0, 7),
    AccountRow("reader", "tokens", True, -5, 0, 0),
]


def fill(store: Store, pool: str = "p") -> None:
    with store.transaction(pool) as writer:
        writer.put_pool(POOL._replace(pool=pool))
        writer.put_agents(pool, AGENTS)
        writer.put_accounts(pool, ACCOUNTS)
        writer.put_holds(pool, [HOLD])
        writer.append(pool, LINES)
        writer.put_op(pool, OpRow("op", "top_up", "hash", '{"n":1}', 3.0))


def tamper(store: Store, *statements: str) -> None:
    """Change rows as somebody may who can switch the triggers off."""
    if isinstance(store, SqliteStore):
        file = apsw.Connection(store.path)
        for (trigger,) in file.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            file.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            file.execute(statement)
        file.close()
        return
    assert isinstance(store, PostgresStore)
    with psycopg.connect(**store._connections.settings) as server:
        server.execute(f'SET search_path = "{store.schema}"', prepare=False)
        server.execute("SET session_replication_role = replica", prepare=False)
        for statement in statements:
            server.execute(statement.replace("zeroblob(32)", "decode(repeat('00', 32), 'hex')"))
