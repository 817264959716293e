"""What is asked about pools, in words that SQLite and PostgreSQL both understand.

`?` stands for a value. Whatever belongs together is asked set by set, so that the number of statements does
not depend on the number of rows.
"""

from __future__ import annotations

from typing import Final

__all__: list[str] = []

META: Final = "SELECT value FROM meta WHERE key = ?"
COUNTS: Final = "SELECT count(*), CAST(coalesce(sum(seq), 0) AS BIGINT) FROM pools"

_POOL = "SELECT pool, mode, created_at, terms, version, seq, head FROM pools"
POOLS: Final = f"{_POOL} ORDER BY created_at, pool"
POOL: Final = f"{_POOL} WHERE pool = ?"

_AGENT = "SELECT agent, position, parent, terms, last_confidence, closed FROM agents WHERE pool = ?"
AGENTS: Final = f"{_AGENT} ORDER BY position"
NEW_AGENTS: Final = f"{_AGENT} AND version > ? ORDER BY position"

_ACCOUNT = """
    SELECT agent, axis, capped, allocated, consumed, held, min_reserve, unpriced
    FROM accounts JOIN agents USING (pool, agent) WHERE pool = ?"""
ACCOUNTS: Final = f"{_ACCOUNT} ORDER BY position, axis"
#: Of the lines after one.
NEW_ACCOUNTS: Final = f"""{_ACCOUNT} AND (agent, axis) IN (
        SELECT agent, axis FROM journal WHERE pool = ? AND seq > ?
        UNION SELECT peer, axis FROM journal WHERE pool = ? AND seq > ? AND peer IS NOT NULL)
    ORDER BY position, axis"""

_HOLD = """
    SELECT hold_id, agent, state, at, expires_at, key, operation, model, request_hash, outcome,
        lease
    FROM holds WHERE pool = ?"""
_PART = "SELECT hold_id, axis, amount, granted, unpriced FROM hold_parts WHERE pool = ?"
_LOAN = "SELECT hold_id, axis, position, lender, kind, amount FROM loans WHERE pool = ?"


def _whole(which: str) -> tuple[str, str, str]:
    """Return the statements for some holds, their parts and their loans; each takes the pool and `which`."""
    return (
        f"{_HOLD} AND hold_id {which} ORDER BY hold_id",
        f"{_PART} AND hold_id {which} ORDER BY hold_id, axis",
        f"{_LOAN} AND hold_id {which} ORDER BY hold_id, axis, position",
    )


OPEN_HOLDS: Final = _whole("IN (SELECT hold_id FROM holds WHERE pool = ? AND state = 'open')")
ENDED_HOLDS: Final = _whole(
    "IN (SELECT hold_id FROM holds WHERE pool = ? AND state <> 'open' ORDER BY hold_id DESC LIMIT ?)"
)
NEW_HOLDS: Final = _whole("IN (SELECT hold_id FROM journal WHERE pool = ? AND seq > ?)")
HOLD_BY_ID: Final = _whole("= ?")
HOLD_BY_KEY: Final = _whole(
    "= (SELECT hold_id FROM holds WHERE pool = ? AND key = ? ORDER BY hold_id DESC LIMIT 1)"
)
HELD: Final = """
    SELECT agent, axis, CAST(sum(amount) AS BIGINT) FROM holds JOIN hold_parts USING (pool, hold_id)
    WHERE pool = ? AND state = 'open' GROUP BY agent, axis"""

_OP = "SELECT key, kind, request_hash, response, created_at FROM ops WHERE pool = ?"
OP: Final = f"{_OP} AND key = ?"
LAST_OPS: Final = f"{_OP} ORDER BY created_at DESC, key DESC LIMIT ?"

_LINE = """
    SELECT seq, at, kind, agent, peer, allocated, consumed, held, hold_id, key, note, estimated, axis, model,
        unpriced
    FROM journal WHERE pool = ? AND seq > ? ORDER BY seq"""
NEW_LINES: Final = _LINE
HASH: Final = "SELECT hash FROM journal WHERE pool = ? AND seq = ?"
PAGE: Final = f"{_LINE} LIMIT ?"
CHAIN: Final = """
    SELECT seq, at, kind, axis, agent, peer, allocated, consumed, held, unpriced, hold_id, key, note, model,
        estimated, prev_hash, hash
    FROM journal WHERE pool = ? ORDER BY seq"""
TOTALS: Final = """
    SELECT axis, agent, kind, model, note, estimated, count(*), CAST(sum(allocated) AS BIGINT),
        CAST(sum(consumed) AS BIGINT), CAST(sum(held) AS BIGINT), CAST(sum(unpriced) AS BIGINT)
    FROM journal WHERE pool = ? GROUP BY axis, agent, kind, model, note, estimated
    ORDER BY axis, agent, kind, model NULLS FIRST, note NULLS FIRST, estimated"""
