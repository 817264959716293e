"""What only the PostgreSQL store does: marks, waiting, migrations, addresses without passwords."""

from __future__ import annotations

import os
import sys
import threading
from functools import partial

import psycopg
import pytest

from tbc.errors import (
    InvalidAmountError,
    StoreAwayError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreMissingError,
    StoreStaleError,
)
from tbc.stores import AccountRow, Mark, PoolRow, PostgresStore, SqliteStore, open_store, postgres_schema
from tests.store_rows import ACCOUNTS, AGENTS, HOLD, LINES, POOL, fill


@pytest.fixture
def open_again(postgres_url, postgres_schema):
    return partial(PostgresStore, postgres_url, schema=postgres_schema)


@pytest.fixture
def store(open_again):
    with open_again() as store:
        yield store


def mark_of(store, pool="p"):
    return Mark(*store.load_pool(pool).pool[4:7])


def test_rows_are_written_at_a_mark_and_the_next_mark_is_known(store):
    with store.transaction("p", at=Mark()) as writer:
        writer.put_pool(POOL)
        writer.put_agents("p", AGENTS)
        writer.put_accounts("p", ACCOUNTS)
        writer.put_holds("p", [HOLD])
        writer.append("p", LINES)
        assert store.pools() == []  # nothing is sent before the block ends
    mark = writer.mark("p")
    assert mark == mark_of(store) and mark[:2] == (1, 5)
    with store.transaction("p", at=mark) as writer:
        writer.append("p", [LINES[0]._replace(seq=6, allocated=0)])
    assert writer.mark("p") == mark_of(store) and store.verify()[0].ok


@pytest.mark.parametrize(
    "wrong",
    [
        lambda mark: mark._replace(version=mark.version - 1),
        lambda mark: mark._replace(version=mark.version + 1),
        lambda mark: mark._replace(head=bytes(32)),
        lambda mark: Mark(),
    ],
)
def test_nothing_is_written_at_another_mark(store, wrong):
    fill(store)
    with store.transaction("p") as writer:
        writer.put_accounts("p", ACCOUNTS)
    before = store.load_pool("p")
    at = wrong(mark_of(store))
    with pytest.raises(StoreStaleError, match="nothing was"), store.transaction("p", at=at) as writer:
        writer.put_pool(POOL._replace(mode="audit"))
        writer.put_accounts("p", [ACCOUNTS[0]._replace(consumed=99)])
    assert store.load_pool("p") == before


def test_a_block_that_writes_nothing_asks_nothing(store):
    fill(store)
    before = mark_of(store)
    with store.transaction("p", at=Mark(77, 7, b"x")) as writer:
        pass
    with pytest.raises(StoreError, match="over"):
        writer.put_accounts("p", [])
    assert mark_of(store) == before


def test_a_transaction_is_of_one_pool(store):
    fill(store)
    fill(store, "q")
    with pytest.raises(InvalidAmountError, match="the name of the pool"):
        store.transaction()
    with (
        pytest.raises(InvalidAmountError, match="the pool of this transaction"),
        store.transaction("p") as writer,
    ):
        writer.put_accounts("q", ACCOUNTS)


def test_two_that_open_the_same_pool_one_after_the_other_find_each_other(open_again):
    done = []

    def work():
        with open_again() as store, store.transaction("p") as writer:
            done.append(writer.mark("p").version)
            writer.put_pool(POOL)

    open_again().close()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1, 2, 3]


def test_a_reader_in_a_waiting_transaction_sees_its_moment(store):
    fill(store)
    with store.transaction("p") as writer:
        mark = writer.mark("p")
        assert store.news("p", Mark()).mark == mark
        assert store._mine.connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        writer.put_accounts("p", ACCOUNTS)
        assert store.news("p", mark).mark == mark  # sent at the end


def test_who_takes_the_pool_makes_others_wait_and_then_give_up(open_again, store):
    fill(store)
    mark = mark_of(store)
    with open_again(lock_timeout_s=0.05) as other, store.transaction("p"):
        with pytest.raises(StoreBusyError, match="lock timeout"), other.transaction("p"):
            pass
        with pytest.raises(StoreBusyError, match="nothing"), other.transaction("p", at=mark) as writer:
            writer.put_accounts("p", ACCOUNTS)
        assert [pool.pool for pool in other.pools()] == ["p"]  # readers go on
    assert mark_of(store) == mark


@pytest.mark.parametrize("field", ["operation", "outcome"])
def test_text_with_nul_is_refused_by_name(store, field):
    fill(store)
    named = f"{field} must be text without NUL"
    with store.transaction("p") as writer, pytest.raises(InvalidAmountError, match=named):
        writer.put_holds("p", [HOLD._replace(**{field: "a\0b"})])


def test_the_journal_cannot_be_changed_by_a_statement(store):
    fill(store)
    for statement in ("UPDATE journal SET consumed = 0", "DELETE FROM journal", "TRUNCATE journal"):
        with psycopg.connect(**store._connections.settings) as server:
            server.execute(f'SET search_path = "{store.schema}"')
            with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
                server.execute(statement)


def test_the_settings_of_every_connection_are_pinned(store):
    with store._connections.taken() as connection:
        found = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]
            for name in (
                *("search_path", "transaction_isolation", "synchronous_commit", "lock_timeout"),
                *("statement_timeout", "idle_in_transaction_session_timeout", "application_name", "TimeZone"),
            )
        }
    assert found == {
        "search_path": f'"{store.schema}"',
        "transaction_isolation": "read committed",
        "synchronous_commit": "on",
        "lock_timeout": "2s",
        "statement_timeout": "5s",
        "idle_in_transaction_session_timeout": "10s",
        "application_name": "tbc",
        "TimeZone": "UTC",
    }


def test_info_clock_and_epoch(store):
    fill(store)
    info = store.info()
    assert (info.path, info.schema, info.epoch, info.log_size) == (store.path, 1, 0, 0)
    assert (info.pools, info.runs, info.lines) == (1, 0, 5)
    assert len(info.ledger_id) == 32 and info.size > 0 and info.engine.startswith("PostgreSQL 1")
    assert 1e9 < info.created_at <= store.clock()
    assert store.new_epoch() == 1 and store.info().epoch == 1
    with pytest.raises(StoreError, match=r"pg_dump.*new_epoch\(\)"):
        store.backup("copy.db")


def test_a_store_that_must_be_there_is_not_made(open_again, postgres_url, postgres_schema):
    with pytest.raises(StoreMissingError, match="no schema"):
        open_again(create=False)
    with psycopg.connect(postgres_url) as server:
        found = server.execute("SELECT count(*) FROM pg_namespace WHERE nspname = %s", (postgres_schema,))
        assert found.fetchone() == (0,)


def test_stores_that_are_made_at_once_are_made_once(open_again):
    ids = []

    def work():
        with open_again() as store:
            ids.append(store.info().ledger_id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4 and len(set(ids)) == 1


def test_a_new_version_of_the_tables_is_applied_once_or_not_at_all(open_again, store, monkeypatch):
    fill(store)
    first = postgres_schema.POSTGRES_MIGRATIONS

    def known(*more):
        monkeypatch.setattr(postgres_schema, "POSTGRES_MIGRATIONS", (*first, *more))

    known("CREATE TABLE extra (x bigint); INSERT INTO nowhere VALUES (1)")
    with pytest.raises(StoreError, match="nowhere"):
        open_again()
    known()
    with open_again() as same:
        assert same.info().schema == 1
    known("CREATE TABLE extra (x bigint)")
    for _ in range(2):
        with open_again() as newer:
            assert newer.info().schema == 2 and newer.load_pool("p").pool.seq == 5
    known("CREATE TABLE other (x bigint)")
    with pytest.raises(StoreCorruptError, match="other statements"):
        open_again()
    known()
    with pytest.raises(StoreError, match="version 2, and this tbc knows up to 1"):
        open_again()


def test_a_schema_of_another_application_is_left_alone(open_again, postgres_url, postgres_schema):
    with psycopg.connect(postgres_url) as server:
        server.execute(f"CREATE SCHEMA {postgres_schema} CREATE TABLE meta (key text, value text)")
        server.execute(f"INSERT INTO {postgres_schema}.meta VALUES ('theirs', '1')")
    with pytest.raises(StoreCorruptError, match="has no id of tbc"):
        open_again()


# -- addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://me:hunter2@127.0.0.1:1/books", StoreAwayError),
        ("postgresql://me:hunter2%zz@127.0.0.1:1/books", StoreError),
        ("postgres://me:hunter2@127.0.0.1:one/books", StoreError),
        ("postgresql://me@127.0.0.1:1/books?password=hunter2", StoreAwayError),
    ],
)
def test_no_error_tells_the_password(url, error):
    with pytest.raises(error) as caught:
        open_store(url)
    told = caught.value
    while told is not None:
        assert "hunter2" not in f"{told} {told!r}"
        told = told.__cause__
    assert caught.value.__suppress_context__


def test_path_and_repr_have_no_password(postgres_url, postgres_schema):
    sign = "&" if "?" in postgres_url else "?"
    with open_store(f"{postgres_url}{sign}password=hunter2", schema=postgres_schema) as store:
        assert store.path.startswith("postgresql://") and postgres_schema in repr(store)
        assert "hunter2" not in f"{store.path} {store!r} {store.info()}"
        assert isinstance(store, PostgresStore)


def test_a_file_is_opened_by_its_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_store("sqlite:///books.db") as store:
        assert isinstance(store, SqliteStore) and store.path == str(tmp_path / "books.db")
        assert store.info().engine.startswith("SQLite 3.")
    with open_store(f"sqlite:///{tmp_path}/books.db", create=False) as again:
        assert again.path == store.path


@pytest.mark.parametrize(
    "url", ["books.db", "mysql://u:hunter2@h/d", "sqlite://books.db", "sqlite:///", None, 5]
)
def test_other_addresses_are_refused_with_those_that_are_not(url):
    with pytest.raises(InvalidAmountError, match=r"sqlite:////absolute\.db") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("schema", ['a"b', "", "Großes", "UPPER", "a" * 64, 5])
def test_schemas_are_plain_names(schema):
    with pytest.raises(InvalidAmountError, match="small letters"):
        PostgresStore("postgresql://nowhere.invalid/", schema=schema)
    with pytest.raises(InvalidAmountError, match="at least 1"):
        PostgresStore("postgresql://nowhere.invalid/", connections=0)


def test_without_psycopg_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r'pip install "tbc\[postgres\]"'):
        open_store("postgresql://nowhere.invalid/")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_only_the_process_that_opened_it_may_use_it(store, monkeypatch):
    fill(store)
    monkeypatch.setattr(store, "_pid", store._pid + 1)
    for use in (store.pools, store.verify, store.transaction("p").__enter__, store.new_epoch):
        with pytest.raises(StoreError, match="before the fork"):
            use()
    store.close()
    monkeypatch.undo()
    assert store.pools()[0] == PoolRow(*POOL[:4], 1, 5, mark_of(store).head)


def test_numbers_beyond_64_bits_in_sums_are_an_error_not_a_wrong_number(store):
    fill(store)
    most = 2**63 - 1
    with store.transaction("p") as writer:
        writer.put_accounts("p", [AccountRow("reader", "usd", True, most, 0, 0)])
        writer.append("p", [LINES[0]._replace(seq=n, axis="calls", consumed=most) for n in (6, 7)])
    with pytest.raises(StoreError, match="out of range"):
        store.ended_calls("p")
