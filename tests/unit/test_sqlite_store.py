"""The SQLite file: what goes in comes out, one transaction at a time."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import apsw
import pytest

from tbc.errors import (
    InvalidAmountError,
    KeyConflictError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreMissingError,
    StoreStaleError,
)
from tbc.stores import (
    AccountRow,
    AgentRow,
    EventRow,
    HoldRow,
    LineRow,
    LoanRow,
    OpRow,
    PartRow,
    PoolRow,
    RunRow,
    SqliteStore,
    StepRow,
    TotalRow,
    check_id,
    schema,
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
    loans=(LoanRow("tokens", 0, "reader", "loan", 5), LoanRow("tokens", 1, "(root)", "draw", 1)),
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
RUN = RunRow("run-1", "p", "report", "running", "audit", 1.0, 2.0, "flow.yaml", "steps: []", "{}", "{}", None)


@pytest.fixture
def store(tmp_path):
    with SqliteStore(tmp_path / "deep" / "books.db", busy_timeout_s=0.01) as store:
        yield store


def fill(store, pool="p"):
    with store.transaction() as writer:
        writer.put_pool(POOL._replace(pool=pool))
        writer.put_agents(pool, AGENTS)
        writer.put_accounts(pool, ACCOUNTS)
        writer.put_holds(pool, [HOLD])
        writer.append(pool, LINES)
        writer.put_op(pool, OpRow("op", "top_up", "hash", '{"n":1}', 3.0))


def test_what_was_put_is_found_again_by_the_next_process(store):
    fill(store)
    store.close()
    with SqliteStore(store.path, create=False) as again:
        state = again.load_pool("p")
        assert state.pool[:6] == (*POOL[:4], 1, 5)
        assert state.agents == tuple(AGENTS)
        assert state.accounts == tuple(ACCOUNTS)
        assert state.holds == (HOLD,) and state.ended == ()
        assert state.ops == (OpRow("op", "top_up", "hash", '{"n":1}', 3.0),)
        assert list(again.entries("p")) == LINES
        assert list(again.entries("p", since=3)) == LINES[3:]
        assert again.find_hold("p", key="k/1") == again.find_hold("p", hold_id=2) == HOLD
        assert again.find_hold("p", key="other") is None
        assert again.load_pool("other") is None
        assert all(type(line.estimated) is bool for line in again.entries("p"))


def test_a_hold_that_ends_leaves_the_open_ones_and_loses_its_old_loans(store):
    fill(store)
    ended = HOLD._replace(state="settled", outcome='{"tokens":30}', loans=HOLD.loans[:1])
    with store.transaction() as writer:
        writer.put_holds("p", [ended, HOLD._replace(hold_id=4, key=None)])
    state = store.load_pool("p")
    assert state.holds == (HOLD._replace(hold_id=4, key=None),)
    assert state.ended == (ended,)
    assert store.load_pool("p", recent=0).ended == ()


def test_only_the_last_ended_holds_and_answers_are_loaded_oldest_first(store):
    fill(store)
    with store.transaction() as writer:
        writer.put_holds("p", [HOLD._replace(hold_id=n, state="voided", key=f"k{n}") for n in range(5, 10)])
        for n in range(5):
            writer.put_op("p", OpRow(f"op{n}", "close", "h", "{}", 10.0 + n))
    state = store.load_pool("p", recent=2)
    assert [hold.hold_id for hold in state.ended] == [8, 9]
    assert [op.key for op in state.ops] == ["op3", "op4"]
    assert store.find_hold("p", key="k5").hold_id == 5
    assert store.find_op("p", "op0").kind == "close"


def test_a_run_with_its_steps_and_events_is_found_again(store):
    fill(store)
    steps = [StepRow("b"), StepRow("a", "1", "done", 2, "op", '{"x":1}', "f", 1.0, 2.0, None)]
    with store.transaction() as writer:
        writer.put_run(RUN)
        writer.put_steps("run-1", steps)
        assert writer.put_event("run-1", 5.0, "budget_warning", "{}") == EventRow(
            1, 5.0, "budget_warning", "{}"
        )
    with store.transaction() as writer:
        writer.put_run(RUN._replace(state="failed", exit_reason="budget exhausted"))
        writer.put_steps("run-1", [steps[0]._replace(state="failed", error="no")])
        assert writer.put_event("run-1", 6.0, "workflow_failed", "{}").seq == 2
    assert store.runs() == [RUN._replace(state="failed", exit_reason="budget exhausted")]
    assert store.run("run-1") == store.runs()[0] and store.run("other") is None
    assert store.steps("run-1") == [steps[0]._replace(state="failed", error="no"), steps[1]]
    assert [event.kind for event in store.events("run-1", since=1)] == ["workflow_failed"]


def test_an_exception_takes_everything_of_its_transaction_back(store):
    fill(store)
    before = store.load_pool("p")
    with pytest.raises(RuntimeError), store.transaction() as writer:
        writer.put_accounts("p", [ACCOUNTS[0]._replace(consumed=99)])
        writer.append("p", [LINES[0]._replace(seq=6)])
        raise RuntimeError
    assert store.load_pool("p") == before
    with store.transaction() as writer:
        assert writer.mark("p").seq == 5


def test_a_transaction_within_a_transaction_is_an_error(store):
    fill(store)
    with store.transaction() as writer:
        with pytest.raises(StoreError, match="do not nest"), store.transaction():
            pass
        with pytest.raises(StoreError, match="Leave its block"):
            store.close()
        writer.put_accounts("p", [ACCOUNTS[1]._replace(consumed=3)])
        assert store.load_pool("p").accounts[1].consumed == 3
    assert store.load_pool("p").accounts[1].consumed == 3


def test_a_writer_is_of_no_use_after_its_block(store):
    fill(store)
    with store.transaction() as writer:
        pass
    with pytest.raises(StoreError, match="over"):
        writer.put_accounts("p", ACCOUNTS)


@pytest.mark.parametrize("seq", [5, 7])
def test_a_line_that_does_not_follow_the_last_is_stale(store, seq):
    fill(store)
    with pytest.raises(StoreStaleError, match="ends with line 5"), store.transaction() as writer:
        writer.append("p", [LINES[0]._replace(seq=seq)])
    assert len(list(store.entries("p"))) == 5


def test_the_first_answer_under_a_key_is_kept(store):
    fill(store)
    with store.transaction() as writer:
        writer.put_op("p", OpRow("op", "top_up", "hash", '{"n":2}', 9.0))
    assert store.find_op("p", "op").response == '{"n":1}'
    with pytest.raises(KeyConflictError), store.transaction() as writer:
        writer.put_op("p", OpRow("op", "top_up", "other", "{}", 9.0))


def test_every_transaction_that_writes_to_a_pool_raises_its_version(store):
    fill(store)
    fill(store, "q")
    with store.transaction() as writer:
        writer.put_run(RUN)
    assert [(pool.pool, pool.version) for pool in store.pools()] == [("p", 2), ("q", 1)]
    with store.transaction() as writer:
        writer.put_event("run-1", 1.0, "x", "{}")
    assert store.load_pool("p").pool.version == 3


BAD = [
    (lambda w: w.put_accounts("p", [ACCOUNTS[0]._replace(consumed=2**63)]), InvalidAmountError),
    (lambda w: w.put_accounts("p", [ACCOUNTS[0]._replace(consumed=1.0)]), InvalidAmountError),
    (lambda w: w.put_accounts("p", [ACCOUNTS[0]._replace(consumed=True)]), InvalidAmountError),
    (lambda w: w.put_accounts("p", [ACCOUNTS[0]._replace(consumed=-1)]), StoreError),
    (lambda w: w.put_accounts("p", [ACCOUNTS[0]._replace(axis="minutes")]), StoreError),
    (lambda w: w.put_accounts("p", [ACCOUNTS[0]._replace(agent="nobody")]), StoreError),
    (lambda w: w.put_agents("p", [AgentRow("x", 9, "nobody")]), StoreError),
    (lambda w: w.put_agents("p", [AgentRow("two\nlines", 9, None)]), InvalidAmountError),
    (lambda w: w.put_holds("p", [HOLD._replace(state="lost")]), StoreError),
    (lambda w: w.put_holds("p", [HOLD._replace(key="")]), InvalidAmountError),
    (lambda w: w.put_holds("p", [HOLD._replace(outcome="\ud800")]), InvalidAmountError),
    (lambda w: w.put_holds("p", [HOLD._replace(outcome=object())]), InvalidAmountError),
    (lambda w: w.append("p", [LINES[0]._replace(seq=6, allocated=2**63)]), InvalidAmountError),
    (lambda w: w.append("p", [LINES[0]._replace(seq=6, at=float("nan"))]), StoreError),
    (lambda w: w.append("p", [LINES[0]._replace(seq=6, note="\ud800")]), InvalidAmountError),
    (lambda w: w.append("q", []), InvalidAmountError),
    (lambda w: w.put_pool(POOL._replace(pool="../up")), InvalidAmountError),
    (lambda w: w.put_pool(POOL._replace(mode="lenient")), StoreError),
    (lambda w: w.put_run(RUN._replace(pool="q")), InvalidAmountError),
    (lambda w: w.put_steps("none", []), InvalidAmountError),
]


@pytest.mark.parametrize(("write", "error"), BAD, ids=range(len(BAD)))
def test_rows_that_cannot_be_are_refused_and_nothing_is_written(store, write, error):
    fill(store)
    before = store.load_pool("p")
    with pytest.raises(error), store.transaction() as writer:
        writer.put_accounts("p", [ACCOUNTS[1]._replace(consumed=77)])
        write(writer)
    assert store.load_pool("p") == before


@pytest.mark.parametrize("value", ["a", "x" * 128, "é" * 64, "two words", "(root)"])
def test_ids_that_a_store_can_keep(value):
    assert check_id("agent_name", value) == value


@pytest.mark.parametrize("value", ["", "x" * 129, "é" * 65, "a\nb", "a\0", "\u202e", "\ud800", 5, None])
def test_ids_that_a_store_cannot_keep(value):
    with pytest.raises(InvalidAmountError, match="128 bytes"):
        check_id("agent_name", value)


@pytest.mark.parametrize("value", ["..", "a/../b", "two words", "é", "a;b"])
def test_ids_that_cannot_stand_in_a_path(value):
    assert check_id("agent_name", value) == value
    with pytest.raises(InvalidAmountError, match=r"without '\.\.'"):
        check_id("run", value, in_paths=True)


# -- the journal -----------------------------------------------------------------------------------------


def test_verify_finds_nothing_wrong_with_what_was_written(store):
    fill(store)
    fill(store, "q")
    assert [(check.pool, check.ok, check.lines) for check in store.verify()] == [
        ("p", True, 5),
        ("q", True, 5),
    ]
    assert [check.pool for check in store.verify("q")] == ["q"]
    with pytest.raises(InvalidAmountError, match="a pool of this store"):
        store.verify("none")


def test_the_journal_and_the_events_cannot_be_changed_by_a_statement(store):
    fill(store)
    with store.transaction() as writer:
        writer.put_run(RUN)
        writer.put_event("run-1", 1.0, "x", "{}")
    other = apsw.Connection(store.path)
    for statement in (
        "UPDATE journal SET consumed = 0",
        "DELETE FROM journal",
        "UPDATE events SET body = ''",
        "DELETE FROM events",
    ):
        with pytest.raises(apsw.ConstraintError, match="append-only"):
            other.execute(statement)
    other.close()


def tamper(store, *statements):
    other = apsw.Connection(store.path)
    for (trigger,) in other.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        other.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        other.execute(statement)
    other.close()


@pytest.mark.parametrize(
    ("statement", "seq", "says"),
    [
        ("UPDATE journal SET consumed = 6 WHERE seq = 4", 4, "line 4 was changed"),
        ("UPDATE journal SET note = NULL WHERE seq = 2", 2, "line 2 was changed"),
        ("UPDATE journal SET prev_hash = zeroblob(32) WHERE seq = 3", 3, "line 3 does not follow"),
        ("DELETE FROM journal WHERE seq = 2", 2, "line 2 is missing: line 3 comes"),
        ("DELETE FROM journal WHERE seq = 5", 5, "line 5 is missing: the journal should end"),
        ("DELETE FROM journal", 1, "line 1 is missing"),
        ("UPDATE pools SET head = zeroblob(32)", 5, "line 5, the last"),
        ("UPDATE pools SET seq = 4", 5, "line 5 is beyond the end"),
        (
            "UPDATE accounts SET consumed = 6 WHERE consumed = 5",
            None,
            "consumed of 'writer é' on tokens is 6",
        ),
        ("DELETE FROM accounts WHERE agent = 'reader'", None, "allocated of 'reader' on tokens is 0"),
        ("UPDATE accounts SET unpriced = 2", None, "unpriced of"),
        (
            "UPDATE holds SET state = 'voided'",
            None,
            "'writer é' holds 30 tokens, and its open holds sum to 0",
        ),
        ("UPDATE hold_parts SET amount = 8 WHERE axis = 'usd'", None, "holds 7 usd"),
    ],
)
def test_verify_names_the_first_bad_line_or_number(store, statement, seq, says):
    fill(store)
    tamper(store, statement)
    (check,) = store.verify()
    assert (check.ok, check.seq) == (False, seq)
    assert says in check.problem


def test_a_journal_does_not_pass_for_that_of_another_pool(store):
    fill(store)
    fill(store, "q")
    tamper(
        store,
        "DELETE FROM journal WHERE pool = 'q'",
        "UPDATE journal SET pool = 'q'",
        "UPDATE pools SET head = (SELECT head FROM pools WHERE pool = 'p') WHERE pool = 'q'",
    )
    assert [check.seq for check in store.verify()] == [1, 1]


def test_totals_are_the_sums_of_the_journal(store):
    fill(store)
    with store.transaction() as writer:
        writer.append("p", [LINES[3]._replace(seq=6, consumed=8)])
    totals = store.totals("p")
    assert totals[-1] == TotalRow("usd", "writer é", "hold", None, "draft", False, 1, 0, 0, 7, 0)
    assert TotalRow("tokens", "writer é", "usage", None, "x\ny", True, 2, 0, 13, 0, 2) in totals
    assert sum(total.consumed for total in totals) == sum(line.consumed for line in store.entries("p"))


def test_more_lines_than_a_page_are_read_while_others_write(store):
    fill(store)
    with store.transaction() as writer:
        writer.append("p", [LINES[0]._replace(seq=n, allocated=0) for n in range(6, 2_500)])
    lines = store.entries("p")
    first = next(lines)
    with store.transaction() as writer:
        writer.append("p", [LINES[0]._replace(seq=2_500, allocated=0)])
    assert [first.seq, *(line.seq for line in lines)] == list(range(1, 2_501))


# -- the file --------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_folder_file_log_and_backup_are_readable_by_their_owner_alone(store, tmp_path):
    fill(store)
    store.backup(tmp_path / "copies" / "copy.db")
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")
    }
    assert modes == {
        "deep": 0o700,
        "deep/books.db": 0o600,
        "deep/books.db.lock": 0o600,
        "deep/books.db-wal": 0o600,
        "deep/books.db-shm": 0o600,
        "copies": 0o700,
        "copies/copy.db": 0o600,
    }


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_a_file_that_others_can_read_is_made_private_at_open(store):
    store.close()
    os.chmod(store.path, 0o644)
    SqliteStore(store.path).close()
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600


def test_the_settings_that_protect_the_file_are_on(store):
    connection = store._connection
    found = {
        name: connection.pragma(name)
        for name in (
            "journal_mode",
            "synchronous",
            "foreign_keys",
            "trusted_schema",
            "cell_size_check",
            "mmap_size",
            "busy_timeout",
        )
    }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "cell_size_check": 1,
        "mmap_size": 0,
        "busy_timeout": 10,
    }
    with pytest.raises(InvalidAmountError, match="synchronous"):
        SqliteStore(store.path, synchronous="OFF")


def test_info_says_what_the_file_is(store):
    fill(store)
    info = store.info()
    assert (info.path, info.schema, info.epoch) == (store.path, 2, 0)
    assert (info.pools, info.runs, info.lines) == (1, 0, 5)
    assert len(info.ledger_id) == 32 and info.size > 0 and info.log_size > 0 and info.created_at > 1e9


def test_close_empties_the_log_and_may_be_repeated(store):
    fill(store)
    store.close()
    store.close()
    assert {path.name for path in Path(store.path).parent.iterdir()} == {"books.db", "books.db.lock"}
    with pytest.raises(StoreError, match="closed"):
        store.pools()


def test_the_full_check_runs_if_the_last_process_did_not_close(store, monkeypatch):
    asked = []
    check = SqliteStore._check_pages
    monkeypatch.setattr(
        SqliteStore, "_check_pages", lambda self, c, kind: (asked.append(kind), check(self, c, kind))
    )
    SqliteStore(store.path).close()
    fill(store)
    SqliteStore(store.path)._connection.close()
    store.close()
    SqliteStore(store.path).close()
    assert asked == ["quick_check", "integrity_check", "quick_check"]


def test_a_store_that_must_be_there_is_not_made(tmp_path):
    with pytest.raises(StoreMissingError, match="no such file"):
        SqliteStore(tmp_path / "none.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_made_by_two_at_once_is_made_once(tmp_path, monkeypatch):
    path = tmp_path / "books.db"
    link = os.link

    def late(source, target):
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", link)
            with SqliteStore(path) as other:
                fill(other)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with SqliteStore(path) as store:
        assert [pool.pool for pool in store.pools()] == ["p"]
    assert {each.name for each in tmp_path.iterdir()} == {"books.db", "books.db.lock"}


def test_others_that_write_for_too_long_are_named_as_busy(store):
    fill(store)
    with SqliteStore(store.path, busy_timeout_s=0.01) as other, store.transaction():
        with pytest.raises(StoreBusyError, match=r"0\.01 s"), other.transaction():
            pass
        assert [pool.pool for pool in other.pools()] == ["p"]  # readers go on
    with SqliteStore(store.path) as other, other.transaction() as writer:
        assert writer.mark("p").seq == 5


def test_threads_take_turns(store):
    fill(store)
    errors = []

    def work():
        try:
            for _ in range(20):
                with store.transaction() as writer:
                    writer.append("p", [LINES[0]._replace(seq=writer.mark("p").seq + 1, allocated=0)])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.load_pool("p").pool.seq == 85 and store.verify()[0].ok


def test_a_backup_is_the_same_books_of_another_epoch(store, tmp_path):
    fill(store)
    store.backup(tmp_path / "copy.db")
    with pytest.raises(StoreError, match="there is a file already"):
        store.backup(tmp_path / "copy.db")
    with SqliteStore(tmp_path / "copy.db", create=False) as copy:
        assert copy.load_pool("p") == store.load_pool("p")
        assert copy.verify() == store.verify()
        assert copy.info().ledger_id == store.info().ledger_id
        assert (copy.info().epoch, store.info().epoch) == (1, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "copy.db.lock", "deep"]


def test_a_new_version_of_the_tables_is_applied_once_or_not_at_all(store, monkeypatch):
    fill(store)
    store.close()
    first = schema.MIGRATIONS
    broken = "CREATE TABLE extra (x INTEGER) STRICT; INSERT INTO nowhere VALUES (1)"
    monkeypatch.setattr(schema, "MIGRATIONS", (*first, broken))
    with pytest.raises(StoreError, match="nowhere"):
        SqliteStore(store.path)
    monkeypatch.setattr(schema, "MIGRATIONS", first)
    with SqliteStore(store.path) as same:
        assert same.info().schema == len(first)
    monkeypatch.setattr(schema, "MIGRATIONS", (*first, "CREATE TABLE extra (x INTEGER) STRICT"))
    for _ in range(2):
        with SqliteStore(store.path) as newer:
            assert newer.info().schema == len(first) + 1 and newer.load_pool("p").pool.seq == 5
    monkeypatch.setattr(schema, "MIGRATIONS", (*first, "CREATE TABLE other (x INTEGER) STRICT"))
    with pytest.raises(StoreCorruptError, match="other statements"):
        SqliteStore(store.path)


def test_without_apsw_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apsw", None)
    with pytest.raises(StoreError, match=r'pip install "tbc\[sqlite\]"'):
        SqliteStore(tmp_path / "books.db")


def test_an_apsw_with_a_dangerous_sqlite_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(StoreError, match=r"SQLite 3\.51\.3 or later"):
        SqliteStore(tmp_path / "books.db")
