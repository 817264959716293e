"""What every store does: what goes in comes out, one transaction at a time, in SQLite and in PostgreSQL."""

from __future__ import annotations

import threading

import pytest

from tbc.errors import InvalidAmountError, KeyConflictError, StoreError, StoreStaleError, TBCError
from tbc.stores import AgentRow, LineRow, Mark, News, OpRow, PoolRow, check_id
from tests.store_rows import ACCOUNTS, AGENTS, HOLD, LINES, POOL, fill, tamper


@pytest.fixture
def store(open_again):
    with open_again() as store:
        yield store


def test_what_was_put_is_found_again_by_the_next_process(store, open_again):
    fill(store)
    store.close()
    with open_again(create=False) as again:
        state = again.load_pool("p")
        assert state.pool[:6] == (*POOL[:4], 1, 5)
        assert state.agents == tuple(AGENTS)
        assert state.accounts == tuple(sorted(ACCOUNTS))
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
    with store.transaction("p") as writer:
        writer.put_holds("p", [ended._replace(parts=None), HOLD._replace(hold_id=4, key=None)])
    state = store.load_pool("p")
    assert state.holds == (HOLD._replace(hold_id=4, key=None),)
    assert state.ended == (ended,)
    assert store.load_pool("p", recent=0).ended == ()


def test_an_end_without_its_hold_is_refused(store):
    fill(store)
    with pytest.raises(TBCError, match="hold"), store.transaction("p") as writer:
        writer.put_holds("p", [HOLD._replace(hold_id=77, parts=None, loans=None)])
    assert store.load_pool("p").holds == (HOLD,)


def test_only_the_last_ended_holds_and_answers_are_loaded_oldest_first(store):
    fill(store)
    with store.transaction("p") as writer:
        writer.put_holds("p", [HOLD._replace(hold_id=n, state="voided", key=f"k{n}") for n in range(5, 10)])
        for n in range(5):
            writer.put_op("p", OpRow(f"op{n}", "close", "h", "{}", 10.0 + n))
    state = store.load_pool("p", recent=2)
    assert [hold.hold_id for hold in state.ended] == [8, 9]
    assert [op.key for op in state.ops] == ["op3", "op4"]
    assert store.find_hold("p", key="k5").hold_id == 5
    assert store.find_op("p", "op0").kind == "close"


def test_an_exception_takes_everything_of_its_transaction_back(store):
    fill(store)
    before = store.load_pool("p")
    with pytest.raises(RuntimeError), store.transaction("p") as writer:
        writer.put_accounts("p", [ACCOUNTS[0]._replace(consumed=99)])
        writer.append("p", [LINES[0]._replace(seq=6)])
        raise RuntimeError
    assert store.load_pool("p") == before
    with store.transaction("p") as writer:
        assert writer.mark("p").seq == 5


def test_a_writer_is_of_no_use_after_its_block(store):
    fill(store)
    with store.transaction("p") as writer:
        pass
    with pytest.raises(StoreError, match="over"):
        writer.put_accounts("p", ACCOUNTS)


@pytest.mark.parametrize("seq", [5, 7])
def test_a_line_that_does_not_follow_the_last_is_stale(store, seq):
    fill(store)
    with pytest.raises(StoreStaleError, match="ends with line 5"), store.transaction("p") as writer:
        writer.append("p", [LINES[0]._replace(seq=seq)])
    assert len(list(store.entries("p"))) == 5


def test_the_first_answer_under_a_key_is_kept(store):
    fill(store)
    with store.transaction("p") as writer:
        writer.put_op("p", OpRow("op", "top_up", "hash", '{"n":2}', 9.0))
    assert store.find_op("p", "op").response == '{"n":1}'
    with pytest.raises(KeyConflictError), store.transaction("p") as writer:
        writer.put_op("p", OpRow("op", "top_up", "other", "{}", 9.0))


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
]


@pytest.mark.parametrize(("write", "error"), BAD, ids=range(len(BAD)))
def test_rows_that_cannot_be_are_refused_and_nothing_is_written(store, write, error):
    fill(store)
    before = store.load_pool("p")
    with pytest.raises(error), store.transaction("p") as writer:
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
        ("UPDATE holds SET parts = replace(parts, '[\"usd\",7,', '[\"usd\",8,')", None, "holds 7 usd"),
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


def test_ended_calls_are_counted_over_the_journal(store):
    fill(store)
    with store.transaction("p") as writer:
        writer.append("p", [LINES[3]._replace(seq=6, consumed=8)])
        writer.append("p", [LINES[3]._replace(seq=7, kind="report", axis="calls", consumed=30)])
    assert store.ended_calls("p") == (7, {"writer é": 32})
    assert store.ended_calls("p", since=6) == (7, {"writer é": 30})
    assert store.ended_calls("other") == (0, {})


def test_more_lines_than_a_page_are_read_while_others_write(store):
    fill(store)
    with store.transaction("p") as writer:
        writer.append("p", [LINES[0]._replace(seq=n, allocated=0) for n in range(6, 2_500)])
    lines = store.entries("p")
    first = next(lines)
    with store.transaction("p") as writer:
        writer.append("p", [LINES[0]._replace(seq=2_500, allocated=0)])
    assert [first.seq, *(line.seq for line in lines)] == list(range(1, 2_501))


def test_threads_take_turns(store):
    fill(store)
    errors = []

    def work():
        try:
            for _ in range(20):
                with store.transaction("p") as writer:
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


def test_news_are_what_was_written_since_a_mark(store):
    fill(store)
    first = Mark(*store.load_pool("p").pool[4:7])
    assert store.news("p", first) == News(first, (), (), (), ())
    line = LineRow(6, 13.0, "loan", "writer é", "reader", 1, 0, 0, 2)
    accounts = [ACCOUNTS[0]._replace(allocated=106), ACCOUNTS[2]._replace(allocated=-6)]
    agent = AgentRow("third", 3, "writer é")
    with store.transaction("p") as writer:
        writer.append("p", [line])
        writer.put_accounts("p", accounts)
        writer.put_agents("p", [agent])
        writer.put_holds("p", [HOLD._replace(state="settled", loans=())])
    mark = Mark(*store.load_pool("p").pool[4:7])
    news = store.news("p", first)
    assert news == News(
        mark, (line,), (agent,), tuple(sorted(accounts)), (HOLD._replace(state="settled", loans=()),)
    )
    assert (mark.version, mark.seq) == (first.version + 1, 6)
    assert store.news("p", Mark()).lines == (*LINES, line)
    assert store.news("other", Mark()) == News(Mark(), (), (), (), ())
    with pytest.raises(StoreStaleError, match="does not go on from line 7"):
        store.news("p", Mark(9, 7, b""))


def test_the_mark_of_a_writer_is_the_truth_and_after_its_block_the_new_one(store):
    with store.transaction("p") as writer:
        assert writer.mark("p") == Mark()
        writer.put_pool(POOL)
        assert writer.mark("p")[:2] == (0, 0)
    assert writer.mark("p") == Mark(*store.load_pool("p").pool[4:7])
    with store.transaction("p") as writer:
        before = writer.mark("p")
    assert before == Mark(*store.load_pool("p").pool[4:7])  # who only looks writes nothing
    with store.transaction("p") as writer:
        writer.put_pool(POOL._replace(mode="audit", created_at=9.0, terms="[]"))
    assert store.pools() == [PoolRow("p", "audit", 1.5, "[]", 2, 0, before.head)]


def test_rows_that_are_put_twice_in_a_transaction_are_the_last(store):
    fill(store)
    with store.transaction("p") as writer:
        for n in (1, 2):
            writer.put_accounts("p", [ACCOUNTS[0]._replace(consumed=n)])
            writer.put_agents("p", [AGENTS[1]._replace(last_confidence=n / 4)])
            writer.put_holds("p", [HOLD._replace(expires_at=float(n), loans=HOLD.loans[:n])])
            writer.put_op("p", OpRow("twice", "close", "h", str(n), 4.0))
    state = store.load_pool("p")
    assert state.accounts[1].consumed == 2 and state.agents[1].last_confidence == 0.5
    assert state.holds == (HOLD._replace(expires_at=2.0),)
    assert store.find_op("p", "twice").response == "1"
    with pytest.raises(KeyConflictError), store.transaction("p") as writer:
        writer.put_op("p", OpRow("new", "close", "h", "", 4.0))
        writer.put_op("p", OpRow("new", "close", "other", "", 4.0))


def test_times_without_end_are_kept(store):
    fill(store)
    with store.transaction("p") as writer:
        writer.put_holds("p", [HOLD._replace(expires_at=float("inf"))])
    assert store.load_pool("p").holds[0].expires_at == float("inf")


def test_a_closed_store_says_so_and_may_be_closed_again(store):
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.pools()
    with pytest.raises(StoreError, match="closed"), store.transaction("p"):
        pass


def test_a_transaction_within_a_transaction_is_refused_and_the_outer_goes_on(store):
    fill(store)
    with store.transaction("p") as writer:
        with pytest.raises(StoreError, match="do not nest"), store.transaction("p"):
            pass
        with pytest.raises(StoreError, match="Leave its block"):
            store.close()
        writer.put_accounts("p", [ACCOUNTS[1]._replace(consumed=3)])
    assert store.load_pool("p").accounts[2].consumed == 3


@pytest.mark.parametrize("name", ["note", "model"])
@pytest.mark.parametrize("value", [5, True, b"text", "nul\0"])
def test_what_is_no_text_is_not_kept_as_one(store, name, value):
    fill(store)
    line = LINES[-1]._replace(seq=6, **{name: value})
    with pytest.raises(InvalidAmountError, match=f"{name} must be text"), store.transaction("p") as writer:
        writer.append("p", [line])
    assert list(store.entries("p")) == LINES and store.verify()[0].ok
