"""The tables of the SQLite file, and every statement that only it is given; see also `tbc.stores.statements`.

A new version of the tables is one more text at the end of `MIGRATIONS`; a text that has been released is
never changed. The file remembers the checksum of every text it was made with.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["APPLICATION_ID", "MIGRATIONS", "checksum"]

#: In the head of the file: what tells it from the files of other applications ("tbc\\x01").
APPLICATION_ID: Final = 0x74626301

MIGRATIONS: Final[tuple[str, ...]] = (
    """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE pools (
    pool TEXT PRIMARY KEY CHECK (octet_length(pool) BETWEEN 1 AND 128),
    mode TEXT NOT NULL CHECK (mode IN ('enforce', 'audit')),
    created_at REAL NOT NULL,
    terms TEXT NOT NULL,
    version INTEGER NOT NULL DEFAULT 0 CHECK (version >= 0),
    seq INTEGER NOT NULL DEFAULT 0 CHECK (seq >= 0),
    head BLOB NOT NULL CHECK (octet_length(head) = 32)
) STRICT, WITHOUT ROWID;

CREATE TABLE agents (
    pool TEXT NOT NULL REFERENCES pools DEFERRABLE INITIALLY DEFERRED,
    agent TEXT NOT NULL CHECK (octet_length(agent) BETWEEN 1 AND 128),
    position INTEGER NOT NULL CHECK (position >= 0),
    parent TEXT,
    terms TEXT NOT NULL,
    last_confidence REAL,
    closed INTEGER NOT NULL CHECK (closed IN (0, 1)),
    version INTEGER NOT NULL CHECK (version >= 0),
    PRIMARY KEY (pool, agent),
    UNIQUE (pool, position),
    FOREIGN KEY (pool, parent) REFERENCES agents DEFERRABLE INITIALLY DEFERRED
) STRICT, WITHOUT ROWID;
CREATE INDEX agents_by_version ON agents (pool, version);

CREATE TABLE accounts (
    pool TEXT NOT NULL,
    agent TEXT NOT NULL,
    axis TEXT NOT NULL CHECK (axis IN ('tokens', 'usd', 'calls')),
    capped INTEGER NOT NULL CHECK (capped IN (0, 1)),
    allocated INTEGER NOT NULL,
    consumed INTEGER NOT NULL CHECK (consumed >= 0),
    held INTEGER NOT NULL CHECK (held >= 0),
    min_reserve INTEGER NOT NULL CHECK (min_reserve >= 0),
    unpriced INTEGER NOT NULL CHECK (unpriced >= 0),
    PRIMARY KEY (pool, agent, axis),
    FOREIGN KEY (pool, agent) REFERENCES agents DEFERRABLE INITIALLY DEFERRED
) STRICT, WITHOUT ROWID;

-- `parts` and `loans` are JSON: what is set aside on each axis, and what of it was lent by whom.
CREATE TABLE holds (
    pool TEXT NOT NULL,
    hold_id INTEGER NOT NULL,
    key TEXT CHECK (octet_length(key) BETWEEN 1 AND 128),
    agent TEXT NOT NULL,
    operation TEXT,
    model TEXT,
    state TEXT NOT NULL CHECK (state IN ('open', 'settled', 'voided', 'expired')),
    at REAL NOT NULL,
    expires_at REAL NOT NULL,
    request_hash TEXT,
    outcome TEXT,
    lease TEXT,
    parts TEXT NOT NULL,
    loans TEXT NOT NULL,
    PRIMARY KEY (pool, hold_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX open_holds ON holds (pool, hold_id) WHERE state = 'open';
CREATE INDEX holds_by_key ON holds (pool, key) WHERE key IS NOT NULL;

CREATE TABLE ops (
    pool TEXT NOT NULL REFERENCES pools DEFERRABLE INITIALLY DEFERRED,
    key TEXT NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 128),
    kind TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    response TEXT NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (pool, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX ops_by_time ON ops (pool, created_at);

-- Written most: names and pool are checked before, not here.
CREATE TABLE journal (
    pool TEXT NOT NULL,
    seq INTEGER NOT NULL CHECK (seq > 0),
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    axis TEXT NOT NULL CHECK (axis IN ('tokens', 'usd', 'calls')),
    agent TEXT NOT NULL,
    peer TEXT,
    allocated INTEGER NOT NULL,
    consumed INTEGER NOT NULL,
    held INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    hold_id INTEGER,
    key TEXT,
    note TEXT,
    model TEXT,
    estimated INTEGER NOT NULL CHECK (estimated IN (0, 1)),
    prev_hash BLOB NOT NULL CHECK (octet_length(prev_hash) = 32),
    hash BLOB NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (pool, seq)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER journal_is_never_changed BEFORE UPDATE ON journal
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER journal_is_never_shortened BEFORE DELETE ON journal
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

CREATE TABLE runs (
    run TEXT PRIMARY KEY CHECK (octet_length(run) BETWEEN 1 AND 128),
    pool TEXT NOT NULL REFERENCES pools DEFERRABLE INITIALLY DEFERRED,
    workflow TEXT NOT NULL,
    state TEXT NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('enforce', 'audit')),
    started_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    path TEXT,
    source TEXT NOT NULL,
    fingerprints TEXT NOT NULL,
    limits TEXT NOT NULL,
    exit_reason TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE steps (
    run TEXT NOT NULL REFERENCES runs DEFERRABLE INITIALLY DEFERRED,
    step TEXT NOT NULL CHECK (octet_length(step) BETWEEN 1 AND 128),
    item TEXT NOT NULL CHECK (octet_length(item) <= 128),
    state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed', 'refused')),
    attempt INTEGER NOT NULL CHECK (attempt >= 0),
    operation TEXT,
    result TEXT,
    fingerprint TEXT,
    started_at REAL,
    ended_at REAL,
    error TEXT,
    position INTEGER NOT NULL CHECK (position > 0),
    PRIMARY KEY (run, step, item),
    UNIQUE (run, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    run TEXT NOT NULL REFERENCES runs DEFERRABLE INITIALLY DEFERRED,
    seq INTEGER NOT NULL CHECK (seq > 0),
    at REAL NOT NULL,
    kind TEXT NOT NULL CHECK (octet_length(kind) BETWEEN 1 AND 128),
    body TEXT NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_are_never_shortened BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;

INSERT INTO meta VALUES
    ('ledger_id', lower(hex(randomblob(16)))),
    ('created_at', CAST(unixepoch('subsec') AS TEXT)),
    ('clean_shutdown', '0'),
    ('restore_epoch', '0');
""",
)


def checksum(text: str) -> str:
    """Return the checksum of a migration."""
    return hashlib.sha256(text.encode()).hexdigest()


# -- the file ------------------------------------------------------------------------------------------

BEGIN: Final = "BEGIN IMMEDIATE"
BEGIN_READING: Final = "BEGIN"
COMMIT: Final = "COMMIT"
ROLLBACK: Final = "ROLLBACK"
PUT_META: Final = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
#: Of a copy that is written to for the first time. Seconds, with room for a million lines in each.
PUT_NUMBERS_FROM: Final = """
    UPDATE meta SET value = CAST(CAST(unixepoch('subsec') * 1048576 AS INTEGER) AS TEXT)
    WHERE key = 'numbers_from' AND value = ''"""
#: What every writing transaction raises: a file whose number is the one of the last orderly end was not
#: written to since.
VERSIONS: Final = "SELECT CAST(coalesce(sum(version), 0) AS TEXT) FROM pools"
RUN_COUNT: Final = "SELECT count(*) FROM runs"

# -- pools and their books -------------------------------------------------------------------------------

POOL_END: Final = "SELECT version, seq, head FROM pools WHERE pool = ?"
PUT_POOL: Final = """
    INSERT INTO pools (pool, mode, created_at, terms, head) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (pool) DO UPDATE SET mode = excluded.mode, terms = excluded.terms"""
TOUCH_POOL: Final = "UPDATE pools SET version = version + 1, seq = ?, head = ? WHERE pool = ?"

PUT_AGENT: Final = """
    INSERT INTO agents (pool, agent, position, parent, terms, last_confidence, closed, version)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (pool, agent) DO UPDATE SET
        position = excluded.position, parent = excluded.parent, terms = excluded.terms,
        last_confidence = excluded.last_confidence, closed = excluded.closed, version = excluded.version"""

#: Of rows that are there, as most are: SQLite takes far longer where it might have to insert.
SET_ACCOUNT: Final = """
    UPDATE accounts SET
        capped = ?4, allocated = ?5, consumed = ?6, held = ?7, min_reserve = ?8, unpriced = ?9
    WHERE pool = ?1 AND agent = ?2 AND axis = ?3"""
ADD_ACCOUNT: Final = """
    INSERT INTO accounts (pool, agent, axis, capped, allocated, consumed, held, min_reserve, unpriced)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""

PUT_HOLD: Final = """
    INSERT INTO holds (pool, hold_id, agent, state, at, expires_at, key, operation, model, request_hash,
        outcome, lease, parts, loans)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (pool, hold_id) DO UPDATE SET
        agent = excluded.agent, state = excluded.state, at = excluded.at, expires_at = excluded.expires_at,
        key = excluded.key, operation = excluded.operation, model = excluded.model,
        request_hash = excluded.request_hash, outcome = excluded.outcome, lease = excluded.lease,
        parts = excluded.parts, loans = excluded.loans"""
END_HOLD: Final = """
    UPDATE holds SET state = ?3, expires_at = ?4, outcome = ?5, lease = ?6, loans = coalesce(?7, loans)
    WHERE pool = ?1 AND hold_id = ?2"""
PUT_OP: Final = """
    INSERT INTO ops (pool, key, kind, request_hash, response, created_at) VALUES (?, ?, ?, ?, ?, ?)"""

# -- the journal -----------------------------------------------------------------------------------------

APPEND: Final = "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
LAST_AT: Final = "SELECT max(at) FROM pools JOIN journal USING (pool, seq)"

# -- runs ------------------------------------------------------------------------------------------------

_RUN = """
    SELECT run, pool, workflow, state, mode, started_at, updated_at, path, source, fingerprints, limits,
        exit_reason
    FROM runs"""
RUNS: Final = f"{_RUN} ORDER BY started_at, run"
RUN: Final = f"{_RUN} WHERE run = ?"
PUT_RUN: Final = """
    INSERT INTO runs (run, pool, workflow, state, mode, started_at, updated_at, path, source, fingerprints,
        limits, exit_reason)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (run) DO UPDATE SET
        workflow = excluded.workflow, state = excluded.state, mode = excluded.mode,
        started_at = excluded.started_at, updated_at = excluded.updated_at, path = excluded.path,
        source = excluded.source, fingerprints = excluded.fingerprints, limits = excluded.limits,
        exit_reason = excluded.exit_reason"""
STEPS: Final = """
    SELECT step, item, state, attempt, operation, result, fingerprint, started_at, ended_at, error
    FROM steps WHERE run = ? ORDER BY position"""
PUT_STEP: Final = """
    INSERT INTO steps (run, step, item, state, attempt, operation, result, fingerprint, started_at, ended_at,
        error, position)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11,
        (SELECT coalesce(max(position), 0) + 1 FROM steps WHERE run = ?1))
    ON CONFLICT (run, step, item) DO UPDATE SET
        state = excluded.state, attempt = excluded.attempt, operation = excluded.operation,
        result = excluded.result, fingerprint = excluded.fingerprint, started_at = excluded.started_at,
        ended_at = excluded.ended_at, error = excluded.error"""
EVENTS: Final = """
    SELECT seq, at, kind, body FROM events WHERE run = ? AND seq > ? ORDER BY seq LIMIT ?"""
PUT_EVENT: Final = """
    INSERT INTO events (run, seq, at, kind, body)
    VALUES (?1, (SELECT coalesce(max(seq), 0) + 1 FROM events WHERE run = ?1), ?2, ?3, ?4)
    RETURNING seq"""
