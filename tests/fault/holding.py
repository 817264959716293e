"""What the tests of stores and their child processes write: holds, as a manager would."""

from __future__ import annotations

from tbc.stores import AccountRow, AgentRow, HoldRow, LineRow, Mark, OpRow, PartRow, PoolRow, Store


def open_pool(store: Store, pool: str = "p") -> None:
    with store.transaction(pool) as writer:
        writer.put_pool(PoolRow(pool, "enforce", 0.0))
        writer.put_agents(pool, [AgentRow("(root)", 0, None), AgentRow("a", 1, "(root)")])
        writer.put_accounts(pool, [AccountRow("a", "tokens", False, 0, 0, 0)])


def hold(store: Store, pool: str = "p", note: str | None = None, at: Mark | None = None) -> int:
    """Hold 3 tokens more in one transaction, and return the number of the hold."""
    with store.transaction(pool, at=at) as writer:
        seq = writer.mark(pool).seq + 1
        writer.append(pool, [LineRow(seq, float(seq), "hold", "a", None, 0, 0, 3, seq, f"k{seq}", note)])
        writer.put_accounts(pool, [AccountRow("a", "tokens", False, 0, 0, 3 * seq)])
        writer.put_holds(pool, [HoldRow(seq, "a", "open", 0.0, 1.0, parts=(PartRow("tokens", 3, 3),))])
        writer.put_op(pool, OpRow(f"k{seq}", "hold", "h", str(seq), 0.0))
    return seq
