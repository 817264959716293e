"""The SQLite file: what goes in comes out, one transaction at a time."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import apsw
import pytest

from tbc.errors import (
    InvalidAmountError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreMissingError,
)
from tbc.stores import (
    EventRow,
    RunRow,
    SqliteStore,
    StepRow,
    schema,
)
from tests.store_rows import ACCOUNTS, fill

RUN = RunRow("run-1", "p", "report", "running", "audit", 1.0, 2.0, "flow.yaml", "steps: []", "{}", "{}", None)


@pytest.fixture
def store(tmp_path):
    with SqliteStore(tmp_path / "deep" / "books.db", busy_timeout_s=0.01) as store:
        yield store


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


def test_a_transaction_within_a_transaction_is_an_error(store):
    fill(store)
    with store.transaction() as writer:
        with pytest.raises(StoreError, match="do not nest"), store.transaction():
            pass
        with pytest.raises(StoreError, match="Leave its block"):
            store.close()
        writer.put_accounts("p", [ACCOUNTS[1]._replace(consumed=3)])
        assert store.load_pool("p").accounts[2].consumed == 3
    assert store.load_pool("p").accounts[2].consumed == 3


def test_every_transaction_that_writes_to_a_pool_raises_its_version(store):
    fill(store)
    fill(store, "q")
    with store.transaction() as writer:
        writer.put_run(RUN)
    assert [(pool.pool, pool.version) for pool in store.pools()] == [("p", 2), ("q", 1)]
    with store.transaction() as writer:
        writer.put_event("run-1", 1.0, "x", "{}")
    assert store.load_pool("p").pool.version == 3


# -- the journal -----------------------------------------------------------------------------------------


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
    assert (info.path, info.schema, info.epoch) == (store.path, 1, 0)
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


@pytest.mark.parametrize(
    "write", [lambda w: w.put_run(RUN._replace(pool="q")), lambda w: w.put_steps("none", [])], ids=[0, 1]
)
def test_runs_that_cannot_be_are_refused(store, write):
    fill(store)
    with pytest.raises(InvalidAmountError), store.transaction() as writer:
        write(writer)
    assert store.runs() == []
