"""What is asked about pools, in words that SQLite and PostgreSQL both understand.

`?` stands for a value. Whatever belongs together is asked set by set, so that the number of statements does
not depend on the number of rows. ``= ANY (?)``, in PostgreSQL's words, takes a list.
"""

from __future__ import annotations

from typing import Final

__all__: list[str] = []

#: What in `meta` says beyond what holds are numbered; empty: nobody has opened the copy yet.
NUMBERS_FROM: Final = "numbers_from"
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
    FROM accounts WHERE pool = ?"""
ACCOUNTS: Final = f"{_ACCOUNT} ORDER BY agent, axis"
ACCOUNTS_OF: Final = f"{_ACCOUNT} AND agent = ANY (?) ORDER BY agent, axis"

_HOLD = """
    SELECT hold_id, agent, state, at, expires_at, key, operation, model, request_hash, outcome, lease, parts,
        loans
    FROM holds WHERE pool = ?"""
OPEN_HOLDS: Final = f"{_HOLD} AND state = 'open' ORDER BY hold_id"
#: The newest first.
ENDED_HOLDS: Final = f"{_HOLD} AND state <> 'open' ORDER BY hold_id DESC LIMIT ?"
HOLDS_OF: Final = f"{_HOLD} AND hold_id = ANY (?) ORDER BY hold_id"
HOLD_BY_ID: Final = f"{_HOLD} AND hold_id = ?"
HOLD_BY_KEY: Final = f"{_HOLD} AND key = ? ORDER BY hold_id DESC LIMIT 1"

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
CALLS: Final = """
    SELECT agent, axis, kind, count(*),
        CAST(sum(CASE axis WHEN 'calls' THEN consumed ELSE 0 END) AS BIGINT)
    FROM journal WHERE pool = ? AND seq > ? GROUP BY agent, axis, kind"""
