"""The tables of the PostgreSQL store, and the function through which all rows are written.

The rows are those of the SQLite file; flags are kept as 0 and 1 there and here, so that a line has the same
hash in both. A new version of the tables is one more text at the end of `POSTGRES_MIGRATIONS`; a text that
has been released is never changed. The store remembers the checksum of every text it was made with.
"""

from __future__ import annotations

from typing import Final

__all__ = ["POSTGRES_MIGRATIONS"]

POSTGRES_MIGRATIONS: Final[tuple[str, ...]] = (
    """
CREATE TABLE meta (
    key text COLLATE "C" PRIMARY KEY,
    value text NOT NULL
);

CREATE TABLE pools (
    pool text COLLATE "C" PRIMARY KEY CHECK (octet_length(pool) BETWEEN 1 AND 128),
    mode text NOT NULL CHECK (mode IN ('enforce', 'audit')),
    created_at float8 NOT NULL,
    terms text NOT NULL,
    version bigint NOT NULL CHECK (version >= 0),
    seq bigint NOT NULL CHECK (seq >= 0),
    head bytea NOT NULL CHECK (octet_length(head) = 32)
) WITH (fillfactor = 50);

CREATE TABLE agents (
    pool text COLLATE "C" NOT NULL REFERENCES pools,
    agent text COLLATE "C" NOT NULL CHECK (octet_length(agent) BETWEEN 1 AND 128),
    position bigint NOT NULL CHECK (position >= 0),
    parent text COLLATE "C",
    terms text NOT NULL,
    last_confidence float8,
    closed smallint NOT NULL CHECK (closed IN (0, 1)),
    version bigint NOT NULL CHECK (version >= 0),
    PRIMARY KEY (pool, agent),
    UNIQUE (pool, position),
    FOREIGN KEY (pool, parent) REFERENCES agents
);
CREATE INDEX agents_by_version ON agents (pool, version);

CREATE TABLE accounts (
    pool text COLLATE "C" NOT NULL,
    agent text COLLATE "C" NOT NULL,
    axis text COLLATE "C" NOT NULL CHECK (axis IN ('tokens', 'usd', 'calls')),
    capped smallint NOT NULL CHECK (capped IN (0, 1)),
    allocated bigint NOT NULL,
    consumed bigint NOT NULL CHECK (consumed >= 0),
    held bigint NOT NULL CHECK (held >= 0),
    min_reserve bigint NOT NULL CHECK (min_reserve >= 0),
    unpriced bigint NOT NULL CHECK (unpriced >= 0),
    PRIMARY KEY (pool, agent, axis),
    FOREIGN KEY (pool, agent) REFERENCES agents
) WITH (fillfactor = 50);

-- `parts` and `loans` are JSON: what is set aside on each axis, and what of it was lent by whom.
CREATE TABLE holds (
    pool text COLLATE "C" NOT NULL,
    hold_id bigint NOT NULL,
    key text COLLATE "C" CHECK (octet_length(key) BETWEEN 1 AND 128),
    agent text COLLATE "C" NOT NULL,
    operation text,
    model text,
    state text NOT NULL CHECK (state IN ('open', 'settled', 'voided', 'expired')),
    at float8 NOT NULL,
    expires_at float8 NOT NULL,
    request_hash text,
    outcome text,
    lease text,
    parts text NOT NULL,
    loans text NOT NULL,
    PRIMARY KEY (pool, hold_id)
);
CREATE INDEX open_holds ON holds (pool, hold_id) WHERE state = 'open';
CREATE INDEX holds_by_key ON holds (pool, key, hold_id) WHERE key IS NOT NULL;

-- Written most: names and pool are checked before, not here.
CREATE TABLE ops (
    pool text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 128),
    kind text NOT NULL,
    request_hash text NOT NULL,
    response text NOT NULL,
    created_at float8 NOT NULL,
    PRIMARY KEY (pool, key)
);
CREATE INDEX ops_by_time ON ops (pool, created_at);

CREATE TABLE journal (
    pool text COLLATE "C" NOT NULL,
    seq bigint NOT NULL CHECK (seq > 0),
    at float8 NOT NULL,
    kind text COLLATE "C" NOT NULL,
    axis text COLLATE "C" NOT NULL CHECK (axis IN ('tokens', 'usd', 'calls')),
    agent text COLLATE "C" NOT NULL,
    peer text COLLATE "C",
    allocated bigint NOT NULL,
    consumed bigint NOT NULL,
    held bigint NOT NULL,
    unpriced bigint NOT NULL,
    hold_id bigint,
    key text COLLATE "C",
    note text COLLATE "C",
    model text COLLATE "C",
    estimated smallint NOT NULL CHECK (estimated IN (0, 1)),
    prev_hash bytea NOT NULL CHECK (octet_length(prev_hash) = 32),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (pool, seq)
);
CREATE FUNCTION refuse_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the journal is append-only'; END $$;
CREATE TRIGGER journal_is_never_changed BEFORE UPDATE OR DELETE ON journal
    FOR EACH ROW EXECUTE FUNCTION refuse_changes();
CREATE TRIGGER journal_is_never_emptied BEFORE TRUNCATE ON journal
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_changes();

-- Writes the rows of one transaction if the pool is still at the mark `was_version`, `was_head`, and returns
-- whether it was. Sections without rows are NULL.
CREATE FUNCTION put_books(
    of_pool text, was_version bigint, was_head bytea, now_seq bigint, now_head bytea,
    pool_rows jsonb, agent_rows jsonb, account_rows jsonb, hold_rows jsonb, end_rows jsonb,
    op_rows jsonb, line_rows jsonb
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    kept bigint;
    other record;
BEGIN
    IF was_version = 0 THEN
        INSERT INTO pools (pool, mode, created_at, terms, version, seq, head)
        SELECT of_pool, mode, created_at, terms, 1, now_seq, now_head
        FROM jsonb_to_recordset(pool_rows) AS new (mode text, created_at float8, terms text)
        ON CONFLICT DO NOTHING;
    ELSIF pool_rows IS NULL THEN
        UPDATE pools SET version = was_version + 1, seq = now_seq, head = now_head
        WHERE pool = of_pool AND version = was_version AND head = was_head;
    ELSE
        UPDATE pools SET version = was_version + 1, seq = now_seq, head = now_head, mode = new.mode,
            terms = new.terms
        FROM jsonb_to_recordset(pool_rows) AS new (mode text, terms text)
        WHERE pool = of_pool AND version = was_version AND head = was_head;
    END IF;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF agent_rows IS NOT NULL THEN
        INSERT INTO agents (pool, agent, position, parent, terms, last_confidence, closed, version)
        SELECT of_pool, agent, position, parent, terms, last_confidence, closed, was_version + 1
        FROM jsonb_to_recordset(agent_rows) AS new (
            agent text, position bigint, parent text, terms text, last_confidence float8, closed smallint)
        ON CONFLICT (pool, agent) DO UPDATE SET
            position = excluded.position, parent = excluded.parent, terms = excluded.terms,
            last_confidence = excluded.last_confidence, closed = excluded.closed, version = excluded.version;
    END IF;
    IF account_rows IS NOT NULL THEN
        INSERT INTO accounts
            (pool, agent, axis, capped, allocated, consumed, held, min_reserve, unpriced)
        SELECT of_pool, agent, axis, capped, allocated, consumed, held, min_reserve, unpriced
        FROM jsonb_to_recordset(account_rows) AS new (
            agent text, axis text, capped smallint, allocated bigint, consumed bigint, held bigint,
            min_reserve bigint, unpriced bigint)
        ON CONFLICT (pool, agent, axis) DO UPDATE SET
            capped = excluded.capped, allocated = excluded.allocated, consumed = excluded.consumed,
            held = excluded.held, min_reserve = excluded.min_reserve, unpriced = excluded.unpriced;
    END IF;
    IF hold_rows IS NOT NULL THEN
        INSERT INTO holds (pool, hold_id, agent, state, at, expires_at, key, operation, model, request_hash,
            outcome, lease, parts, loans)
        SELECT of_pool, hold_id, agent, state, at, expires_at, key, operation, model, request_hash, outcome,
            lease, parts, loans
        FROM jsonb_to_recordset(hold_rows) AS new (
            hold_id bigint, agent text, state text, at float8, expires_at float8, key text, operation text,
            model text, request_hash text, outcome text, lease text, parts text, loans text)
        ON CONFLICT (pool, hold_id) DO UPDATE SET
            agent = excluded.agent, state = excluded.state, at = excluded.at,
            expires_at = excluded.expires_at, key = excluded.key, operation = excluded.operation,
            model = excluded.model, request_hash = excluded.request_hash, outcome = excluded.outcome,
            lease = excluded.lease, parts = excluded.parts, loans = excluded.loans;
    END IF;
    IF end_rows IS NOT NULL THEN
        UPDATE holds SET state = new.state, expires_at = new.expires_at, outcome = new.outcome,
            lease = new.lease, loans = coalesce(new.loans, holds.loans)
        FROM jsonb_to_recordset(end_rows) AS new (
            hold_id bigint, state text, expires_at float8, outcome text, lease text, loans text)
        WHERE pool = of_pool AND holds.hold_id = new.hold_id;
        GET DIAGNOSTICS kept = ROW_COUNT;
        IF kept < jsonb_array_length(end_rows) THEN
            RAISE EXCEPTION 'a hold without parts is not in the pool' USING ERRCODE = '23503';
        END IF;
    END IF;
    IF op_rows IS NOT NULL THEN
        INSERT INTO ops (pool, key, kind, request_hash, response, created_at)
        SELECT of_pool, key, kind, request_hash, response, created_at
        FROM jsonb_to_recordset(op_rows) AS new (
            key text, kind text, request_hash text, response text, created_at float8)
        ON CONFLICT (pool, key) DO NOTHING;
        GET DIAGNOSTICS kept = ROW_COUNT;
        IF kept < jsonb_array_length(op_rows) THEN
            SELECT ops.key, ops.kind, ops.request_hash INTO other
            FROM jsonb_to_recordset(op_rows) AS new (key text, kind text, request_hash text)
                JOIN ops ON ops.pool = of_pool AND ops.key = new.key
            WHERE (ops.kind, ops.request_hash) <> (new.kind, new.request_hash)
            LIMIT 1;
            IF FOUND THEN
                RAISE EXCEPTION 'the key was used before'
                    USING ERRCODE = 'TBC01',
                        DETAIL = jsonb_build_array(other.key, other.kind, other.request_hash);
            END IF;
        END IF;
    END IF;
    IF line_rows IS NOT NULL THEN
        INSERT INTO journal
            (pool, seq, at, kind, axis, agent, peer, allocated, consumed, held, unpriced, hold_id, key, note,
            model, estimated, prev_hash, hash)
        SELECT of_pool, seq, at, kind, axis, agent, peer, allocated, consumed, held, unpriced, hold_id, key,
            note, model, estimated, decode(prev_hash, 'hex'), decode(hash, 'hex')
        FROM jsonb_to_recordset(line_rows) AS new (
            seq bigint, at float8, kind text, axis text, agent text, peer text, allocated bigint,
            consumed bigint, held bigint, unpriced bigint, hold_id bigint, key text, note text, model text,
            estimated smallint, prev_hash text, hash text);
    END IF;
    RETURN true;
END $$;

INSERT INTO meta VALUES
    ('ledger_id', replace(gen_random_uuid()::text, '-', '')),
    ('created_at', extract(epoch FROM clock_timestamp())::text),
    ('restore_epoch', '0');
""",
)
