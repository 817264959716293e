"""Managers with a store: what others did, what was restored, what cannot be kept, and who is told."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections import deque
from functools import partial

import pytest

import tbc
from tbc import clerk
from tbc.desk import SpendingDesk
from tbc.stores import LineRow, SqliteStore
from tests.store_rows import tamper
from tests.waiting import until


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/books.db"


def open_manager(url, **how):
    return tbc.BudgetManager(store=url, **how)


def test_a_program_that_starts_again_finds_its_books(url):
    with open_manager(url, max_tokens=1000) as manager:
        manager.register_agent("writer", max_tokens=500)
        manager.hold("writer", 100, key="first").settle(80)
        held = manager.hold("writer", 50, key="second")
    with open_manager(url, max_tokens=1000) as manager:
        manager.register_agent("writer", max_tokens=500)
        assert manager.report()["writer"] == {"allocated": 500, "consumed": 80, "remaining": 370}
        again = manager.hold("writer", 50, key="second")
        assert again.hold_id == held.hold_id and again.state == "open"
        again.settle(50)
        ended = manager.hold("writer", 100, key="first")
        assert ended.state == "settled" and ended.settlement.tokens == 80
        assert [entry.tokens for entry in manager.ledger.history("writer")] == [80, 50]


@pytest.fixture(params=["a manager that is opened then", "one that is open already"])
def other(request, url):
    """Return what gives another manager of the same store, opened when asked for or before anything."""
    early = tbc.BudgetManager(store=url, unknown_price="track") if "already" in request.param else None
    managers = [] if early is None else [early]

    def give():
        if not managers:
            managers.append(tbc.BudgetManager(store=url, unknown_price="track"))
        return managers[0]

    yield give
    for manager in managers:
        manager.close()


@pytest.mark.parametrize("priced", [True, False])
def test_what_is_below_a_cap_is_capped_for_others_too(url, other, priced):
    with open_manager(url, unknown_price="track") as manager:
        manager.register_agent("team", max_tokens=None, max_usd="1")
        manager.register_agent("mid", parent="team", max_tokens=None)
        manager.register_agent("leaf", parent="mid", max_tokens=None)
        manager.hold("leaf", 100, usd="0" if priced else None).settle(100, usd="0" if priced else None)
        with pytest.raises(tbc.BudgetExceededError):
            other().hold("mid", usd="500")
        assert other().accounts("usd") == manager.accounts("usd")


def test_what_could_not_be_kept_leaves_the_accounts_below_where_they_are(url, monkeypatch):
    with open_manager(url, max_usd="1") as manager:
        manager.register_agent("mid", max_tokens=None)
        manager.register_agent("leaf", parent="mid", max_tokens=None)
        manager.hold("leaf", usd="0").settle(usd="0")
        with monkeypatch.context() as patch:
            patch.setattr(manager._keeper, "write", full)
            with pytest.raises(tbc.StoreFullError):
                manager.top_up("mid", usd="0.25")
        manager.top_up("mid", usd="0.25")
        manager.hold("leaf", usd="0.2")
        assert manager.report("usd")["mid"]["allocated"] == 50_000_000


def full(*what):
    raise tbc.StoreFullError("books.db", "there is no room left", "Make room")


def test_an_operation_that_stops_half_way_is_taken_back_and_those_with_it_are_kept(url, monkeypatch):
    remember = SpendingDesk._remember

    def stop(self, key, *rest):
        if key == "torn":
            raise RuntimeError("half-way")
        remember(self, key, *rest)

    monkeypatch.setattr(SpendingDesk, "_remember", stop)
    with open_manager(url, max_tokens=1000) as manager:
        manager.register_agent("a", max_tokens=100)

        async def together():
            gate = threading.Event()
            asking = [asyncio.ensure_future(manager.arun(gate.wait))]
            await asyncio.sleep(0)  # it is asked first; the others wait for it and come in one batch
            recording = [
                partial(manager.record_usage, "a", 7, key=key) for key in ("before", "torn", "after")
            ]
            asking += [asyncio.ensure_future(manager.arun(record)) for record in recording]
            await asyncio.sleep(0)
            gate.set()
            return await asyncio.gather(*asking, return_exceptions=True)

        _, before, torn, after = asyncio.run(together())
        assert (before.tokens, after.tokens) == (7, 7) and str(torn) == "half-way"
        assert manager.report()["a"]["consumed"] == 14
        with open_manager(url) as other:
            assert other.report() == manager.report()
            assert [line.key for line in other.ledger.history("a")] == ["before", "after"]


def test_what_another_process_closed_is_forgotten_by_the_index_of_donors(url):
    with open_manager(url, max_tokens=10_000) as one, open_manager(url) as other:
        for name, priority in (("x", 9), ("y", 3)):
            one.register_agent(name, priority=priority, max_tokens=1000, min_reserve=0)
        other.register_agent("z", priority=10, max_tokens=0)
        late = other.hold("x", 100, expires_s=0.001)
        until(lambda: other.report() and late.state == "expired")
        other.hold("z", 9500).void()  # x is known as a donor
        one.close_agent("x")
        one.update_agent("z", priority=4)
        assert late.settle(1500).tokens == 1500
        assert other.decide("z", 1).available == one.decide("z", 1).available == 8500
        assert [one.report()["x"], other.report()["x"]] == [
            {"allocated": 1500, "consumed": 1500, "remaining": 0}
        ] * 2


def test_an_agent_that_came_back_below_a_later_one_is_found_there(url, other):
    with open_manager(url) as manager:
        manager.register_agent("a", max_tokens=10)
        manager.close_agent("a")
        manager.register_agent("b", max_tokens=100)
        manager.register_agent("a", parent="b", max_tokens=10)
        assert other().accounts() == manager.accounts()
        assert other().hold("a", 60).loans[0].donor == "b"


def test_an_agent_that_came_back_below_another_is_capped_as_that_one(url):
    """Also on an axis on which nothing was ever written of it, and one process was asked for it."""
    with open_manager(url) as manager, open_manager(url) as other:
        manager.register_agent("team", max_tokens=0, max_calls=10)
        manager.register_agent("a", parent="team", max_tokens=0)
        with pytest.raises(tbc.BudgetExceededError):
            other.hold("a", 5)
        manager.close_agent("a")
        manager.register_agent("a", max_tokens=0)
        assert manager.report("calls")["a"]["allocated"] is None
        assert other.report("calls") == manager.report("calls")


def test_a_pool_that_others_keep_busy_is_opened_as_soon_as_they_let_go(tmp_path, monkeypatch):
    busy = [True] * 7

    def transaction(*where, **how):
        if busy:
            busy.pop()
            raise tbc.StoreBusyError("books.db", "others wrote", "Try again")
        return original(*where, **how)

    with SqliteStore(tmp_path / "books.db") as store:
        original = store.transaction
        monkeypatch.setattr(store, "transaction", transaction)
        open_manager(store).close()
        busy.extend([True] * 8)
        with pytest.raises(tbc.StoreBusyError, match="others wrote"):
            open_manager(store)


def test_a_file_that_is_gone_is_never_replaced_by_an_empty_one(url, tmp_path):
    with open_manager(url) as manager:
        manager.register_agent("a", max_tokens=100)
    (tmp_path / "books.db").rename(tmp_path / "elsewhere.db")
    with pytest.raises(tbc.StoreMissingError, match=r"remove 'books.db.lock' as well"):
        open_manager(url)
    (tmp_path / "elsewhere.db").rename(tmp_path / "books.db")
    with open_manager(url) as manager:
        assert manager.report()["a"]["allocated"] == 100
    (tmp_path / "books.db").unlink()
    (tmp_path / "books.db.lock").unlink()
    with open_manager(url) as manager:
        assert manager.report() == {}


def test_a_request_under_a_key_is_the_same_in_the_next_process_and_at_other_prices(url):
    def prices(each):
        return {"m": {"input_per_million": each, "output_per_million": each}}

    usage = tbc.Usage(input_tokens=700, output_tokens=300)

    def ask(manager):
        held = manager.hold("a", 10, usd="0.5", key="held", expires_s=600.0)
        manager.record_usage("a", 1000, model="m", key="spent")
        manager.record_usage("a", usage=usage, model="m", key="stated")
        return held.hold_id

    with open_manager(url, max_usd="5", prices=prices("1")) as manager:
        manager.register_agent("a", max_usd="2")
        first = ask(manager), manager.report("usd")
        with pytest.raises(tbc.KeyConflictError):
            manager.record_usage(
                "a", usage=tbc.Usage(input_tokens=300, output_tokens=700), model="m", key="stated"
            )
    with open_manager(url, prices=prices("2")) as manager:
        assert (ask(manager), manager.report("usd")) == first
        assert manager.hold("a", 10, usd="0.5", key="held").hold_id == first[0]


def test_who_only_follows_keeps_few_lines_in_memory(tmp_path):
    with (
        SqliteStore(tmp_path / "books.db", synchronous="NORMAL") as store,
        open_manager(store, keep=10) as manager,
        open_manager(store, keep=10) as other,
    ):
        manager.register_agent("a", max_tokens=None)
        for _ in range(400):
            manager.record_usage("a", 1)
        assert other.report("calls") == manager.report("calls")
        assert len(other.ledger.journal.lines) <= 10
        assert sum(entry.consumed for entry in other.ledger.entries()) == 400


BAD_TEXTS = {
    "a line": "UPDATE journal SET note = CAST(x'ff' AS TEXT) WHERE seq = 3",
    "terms": "UPDATE agents SET terms = '{\"max' WHERE agent = 'a'",
    "parts": "UPDATE holds SET parts = '[[' WHERE state = 'open'",
    "the pool": "UPDATE pools SET terms = '{'",
    "an outcome": "UPDATE holds SET parts = CAST(x'ff' AS TEXT) WHERE state = 'open'",
}


@pytest.mark.parametrize("statement", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_what_cannot_be_read_is_damage_by_name(url, tmp_path, statement):
    with open_manager(url) as manager:
        manager.register_agent("a", max_tokens=100)
        manager.record_usage("a", 5, key="k")
        manager.hold("a", 5)
    with SqliteStore(tmp_path / "books.db") as store:
        tamper(store, statement)
    with pytest.raises(tbc.StoreCorruptError):
        open_manager(url)
    verified = subprocess.run(
        [sys.executable, "-m", "tbc", "store", "verify", url], capture_output=True, text=True, timeout=60
    )
    assert verified.returncode == 4 and "Traceback" not in verified.stderr
    assert statement is not BAD_TEXTS["a line"] or "line 3 was changed" in " ".join(verified.stdout.split())


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE accounts SET capped = 0 WHERE agent = 'b'", "'b' is uncapped on tokens"),
        ("UPDATE accounts SET capped = 0 WHERE agent = '(root)'", "is uncapped on tokens"),
        ("UPDATE accounts SET min_reserve = 0", "keeps 0 tokens, and its terms say 40 tokens"),
        ("UPDATE accounts SET min_reserve = 0 WHERE axis = 'usd'", "keeps $0.00, and its terms say $0.50"),
        (
            "UPDATE accounts SET min_reserve = 1 WHERE axis = 'calls'",
            "keeps 1 call, and its terms say 0 calls",
        ),
        ("UPDATE accounts SET min_reserve = 7 WHERE agent = '(root)'", "'(root)' keeps "),
    ],
)
def test_caps_and_reserves_that_others_changed_are_found(open_again, statement, said):
    with open_again() as store:
        with open_manager(store, max_tokens=1000, max_usd="5") as manager:
            manager.register_agent("a", max_tokens=400, max_usd="2", min_reserve_usd="0.50", max_calls=9)
            manager.register_agent("b", parent="a", max_tokens=None)
            assert store.verify()[0].ok
        tamper(store, statement)
        assert said in store.verify()[0].problem


def test_an_answer_that_cannot_be_read_is_damage_and_spends_nothing(url, tmp_path):
    with open_manager(url) as manager:
        manager.register_agent("a", max_tokens=100)
        manager.record_usage("a", 5, key="k")
    with SqliteStore(tmp_path / "books.db") as store:
        tamper(store, "UPDATE ops SET response = '{'")
    with open_manager(url) as manager:
        with pytest.raises(tbc.StoreCorruptError, match="answer under key 'k'"):
            manager.record_usage("a", 5, key="k")
        assert manager.report()["a"]["consumed"] == 5


def test_a_restored_past_never_gives_a_number_again(open_again, tmp_path):
    with open_again() as store, open_manager(store, max_tokens=1000) as manager:
        manager.register_agent("a", max_tokens=400)
        manager.register_agent("b", max_tokens=400)
        kept = manager.hold("b", 10).hold_id
        is_file = isinstance(store, SqliteStore)
        if is_file:
            store.backup(tmp_path / "copy.db")
        else:
            store.new_epoch()  # as after a restore
        lost = manager.hold("a", 100).hold_id
    with (
        SqliteStore(tmp_path / "copy.db") if is_file else open_again() as store,
        open_manager(store) as manager,
    ):
        other = manager.hold("b", 300)
        assert other.hold_id > lost and other.hold_id < 2**53
        assert manager.find_hold(kept).settle(7).tokens == 7
        if is_file:
            with pytest.raises(tbc.UnknownHoldError):
                manager.find_hold(lost)
        assert manager.find_hold(other.hold_id) is other
        with open_manager(store) as again:
            assert again.find_hold(other.hold_id).settle(300).tokens == 300
            again.hold("a", 5, key="k")
        assert manager.hold("a", 5, key="k").settle(5).tokens == 5
        assert other.state == "settled" and store.verify()[0].ok


def test_others_write_while_a_long_journal_is_counted(tmp_path, monkeypatch):
    address = f"sqlite:///{tmp_path}/books.db"
    with open_manager(address) as other, SqliteStore(tmp_path / "books.db") as store:
        other.register_agent("a", max_tokens=None)
        count = store.ended_calls

        def meanwhile(*what, **how):
            counted = count(*what, **how)
            other.record_usage("a", 5)  # it is not locked out, and what it writes is not missed
            return counted

        monkeypatch.setattr(store, "ended_calls", meanwhile)
        with open_manager(store) as manager:
            assert manager.report("calls")["a"]["consumed"] == 1


def test_what_could_not_be_read_at_first_is_read_when_it_is_tried_again(tmp_path, monkeypatch):
    with SqliteStore(tmp_path / "books.db") as store:
        with open_manager(store) as manager:
            manager.register_agent("a", max_tokens=None)
            manager.record_usage("a", 5)
        entries, busy = store.entries, [True]

        def reading(*what):
            if busy:
                busy.pop()
                raise tbc.StoreBusyError(store.path, "others kept it busy", "Try again")
            return entries(*what)

        monkeypatch.setattr(store, "entries", reading)
        with open_manager(store) as manager:
            assert manager.report("calls")["a"]["consumed"] == 1


def test_a_pool_is_opened_whatever_its_holds_sum_to(open_again):
    with open_again() as store:
        with open_manager(store) as manager:
            manager.register_agent("a", max_tokens=None)
            seq = manager.ledger.seq
        most = 2**62
        lines = [
            LineRow(seq + n, 9.0, kind, "a", None, 0, 0, held, seq + n - n % 2)
            for n, (kind, held) in enumerate([("hold", most), ("void", -most)] * 4, 1)
        ]
        with store.transaction("default") as writer:
            writer.append("default", lines)
        with open_manager(store) as manager:
            assert manager.report()["a"]["consumed"] == 0


def test_other_caps_are_refused_with_both_numbers(url):
    open_manager(url, max_usd="5").close()
    with pytest.raises(tbc.InvalidContractError, match=r"max_usd=\$5.00, not \$10.00"):
        open_manager(url, max_usd="10")
    with pytest.raises(tbc.InvalidContractError, match="max_tokens=None, not 7 tokens"):
        open_manager(url, max_tokens=7)
    open_manager(url).close()


def test_refusals_and_errors_are_the_same_after_a_restart(url):
    def refused(manager):
        with pytest.raises(tbc.BudgetExceededError) as caught:
            manager.hold("writer", 5000, key="too much")
        with pytest.raises(tbc.CarveOutError) as short:
            manager.top_up("below", 5000, key="too deep")
        moved = manager.rebalance({"writer": 50}, key="round")
        return str(caught.value), caught.value.decision, str(short.value), moved.transfers, moved.unmet

    with open_manager(url, max_tokens=1000) as manager:
        manager.register_agent("reader", max_tokens=300)
        manager.register_agent("writer", priority=5, max_tokens=500)
        manager.register_agent("below", parent="writer", max_tokens=100)
        first = refused(manager)
    with open_manager(url) as manager:
        assert refused(manager) == first
        with pytest.raises(tbc.KeyConflictError):
            manager.hold("writer", 5001, key="too much")


def test_what_one_does_the_other_sees(url):
    with open_manager(url, max_tokens=1000) as one, open_manager(url) as other:
        one.register_agent("writer", max_tokens=500)
        held = other.hold("writer", 400)
        assert one.remaining("writer") == 100
        with pytest.raises(tbc.BudgetExceededError):
            one.hold("writer", 700)
        held.settle(10)
        one.hold("writer", 490)
        other.report_confidence("writer", 0.5)
        assert one.contracts["writer"].last_confidence is None  # memory follows with the next operation
        one.used()
        assert one.contracts["writer"].last_confidence == 0.5
        assert one.report() == other.report()


def test_a_restored_past_is_noticed(url, tmp_path):
    with open_manager(url, max_tokens=1000) as manager:
        manager.register_agent("writer", max_tokens=500)
        with SqliteStore(tmp_path / "books.db") as store:
            store.backup(tmp_path / "past.db")
        manager.hold("writer", 100)
        shutil.copy(tmp_path / "past.db", tmp_path / "other.db")
    restored = f"sqlite:///{tmp_path}/other.db"
    with SqliteStore(tmp_path / "other.db") as store, open_manager(url) as manager:
        assert store.info().epoch == 1
        with open_manager(restored) as past:
            past.hold("writer", 7)
            past.hold("writer", 7)
        manager._clerk._store = manager._keeper._store = store  # as if the file had been replaced
        for _ in range(2):
            with pytest.raises(tbc.StoreStaleError, match="open it again"):
                manager.hold("writer", 1)


def test_what_cannot_be_kept_is_refused_alone(url):
    with open_manager(url, max_tokens=1000) as manager:
        with pytest.raises(tbc.InvalidAmountError, match="printable text"):
            manager.register_agent("two\nlines")
        manager.register_agent("writer", max_tokens=500)
        with pytest.raises(tbc.InvalidAmountError, match="128 bytes"):
            manager.hold("writer", 10, key="k" * 200)
        assert manager.remaining("writer") == 500 and list(manager.contracts) == ["writer"]
        manager.hold("writer", 10, key="k")


def test_subscribers_are_told_when_it_is_kept_and_may_ask(url):
    with open_manager(url, max_tokens=1000) as manager:
        manager.register_agent("writer", max_tokens=500)
        told = []
        manager.subscribe(lambda event: told.append((type(event).__name__, manager.remaining("writer"))))
        manager.hold("writer", 100)
        with pytest.raises(tbc.BudgetExceededError):
            manager.hold("writer", 5000)
    assert told == [("Booked", 400), ("Refused", 400)]


def test_many_callers_share_transactions(url):
    with open_manager(url, max_tokens=10_000) as manager:
        manager.register_agent("writer", max_tokens=10_000)
        store, begun = manager._store, []
        transaction = store.transaction
        store.transaction = lambda *values, **named: begun.append(1) or transaction(*values, **named)

        async def call():
            async with manager.ahold("writer", 10) as hold:
                await hold.asettle(9)

        async def calls():
            await asyncio.gather(*(call() for _ in range(50)))

        asyncio.run(calls())
        assert manager.report()["writer"]["consumed"] == 450
        assert len(begun) < 50  # of 100 operations

        threads = [threading.Thread(target=lambda: manager.hold("writer", 10).settle(10)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert manager.report()["writer"]["consumed"] == 650


def test_threads_that_were_served_together_come_again_together(url, monkeypatch):
    monkeypatch.setattr(clerk, "_GATHER_S", 20.0)  # however slow the machine: nobody is left behind
    threads, each = 4, 20
    with open_manager(url, max_tokens=10_000) as manager:
        manager._sweeper.stop()
        manager.register_agent("writer", max_tokens=10_000)
        before = manager._store.pools()[0].version
        manager._clerk._together = threads

        def call():
            for _ in range(each):
                manager.hold("writer", 10)

        callers = [threading.Thread(target=call) for _ in range(threads)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        monkeypatch.undo()
        assert manager._store.pools()[0].version - before == each
        assert manager.report()["writer"]["remaining"] == 10_000 - 10 * threads * each


def test_whoever_was_to_tell_the_next_one_may_be_interrupted(url, monkeypatch):
    monkeypatch.setattr(clerk, "_LOOK_S", 0.01)
    with open_manager(url, max_tokens=10_000) as manager:
        manager._sweeper.stop()
        manager.register_agent("writer", max_tokens=10_000)

        def interrupted():
            del manager._clerk._hand_over
            raise KeyboardInterrupt

        manager._clerk._hand_over = interrupted
        with pytest.raises(KeyboardInterrupt):
            manager.hold("writer", 10)
        assert manager._clerk._led  # as everybody who comes believes
        held = []
        waiting = threading.Thread(target=lambda: held.append(manager.hold("writer", 20)), daemon=True)
        waiting.start()
        until(lambda: not waiting.is_alive())
        assert held[0].tokens == 20 and not manager._clerk._led
        assert manager.report()["writer"]["remaining"] == 9_970


def test_governed_functions_and_coroutines_are_kept(url):
    with open_manager(url, max_tokens=10_000) as manager:
        manager.register_agent("writer", max_tokens=5_000)
        reply = {"usage": {"prompt_tokens": 5, "completion_tokens": 6}}

        @manager.govern("writer")
        def plain(prompt):
            return reply

        @manager.govern("writer")
        async def awaited(prompt):
            return reply

        @manager.govern("writer")
        async def failing(prompt):
            raise tbc.NotSent

        plain("a")
        assert asyncio.run(awaited("a")) is reply
        with pytest.raises(tbc.NotSent):
            asyncio.run(failing("a"))
    with open_manager(url) as manager:
        assert manager.report()["writer"]["consumed"] == 22
        assert not manager.ledger.open_holds


def test_an_event_loop_never_waits_for_the_store(tmp_path):
    asked = []

    class Watched(SqliteStore):
        def transaction(self, pool=None, *, at=None):
            asked.append(threading.current_thread())
            return super().transaction(pool, at=at)

    with Watched(tmp_path / "books.db") as store, open_manager(store, max_tokens=10_000) as manager:
        manager.register_agent("writer")

        @manager.govern("writer", max_output_tokens=50, expires_s=1e-9)  # is kept alive at every chunk
        async def stream(fails):
            yield "one word"
            yield "another"
            if fails:
                raise RuntimeError("the provider hung up")

        @manager.govern("writer", max_output_tokens=50)
        async def open_stream():
            return stream.__wrapped__(False)

        async def work():
            assert [chunk async for chunk in stream(False)] == ["one word", "another"]
            with pytest.raises(RuntimeError, match="hung up"):
                assert [chunk async for chunk in stream(True)] == []
            assert [chunk async for chunk in await open_stream()] == ["one word", "another"]

        asked.clear()
        asyncio.run(work())
        assert len(asked) >= 8 and threading.current_thread() not in asked
        assert len(manager.ledger.history("writer")) == 3 and not manager.ledger.open_holds


def test_who_is_cancelled_while_waiting_holds_nothing(url):
    with open_manager(url, max_tokens=10_000) as manager:
        manager.register_agent("writer", max_tokens=5_000)

        async def cancelled():
            waiting = asyncio.ensure_future(manager.ahold("writer", 100))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        for _ in range(20):
            asyncio.run(cancelled())
        manager._clerk.close()
        assert not manager.ledger.open_holds


def test_who_is_cancelled_while_waiting_finds_the_hold_under_its_key(url):
    with open_manager(url, max_tokens=10_000) as manager:
        manager.register_agent("writer", max_tokens=5_000)

        async def cancelled_and_asked_again():
            waiting = asyncio.ensure_future(manager.ahold("writer", 100, key="call"))
            await asyncio.sleep(0)
            manager.report()  # it is granted by now, and the loop does not know it yet
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            async with manager.ahold("writer", 100, key="call") as hold:
                assert hold.state == "open"
                hold.record(90)

        asyncio.run(cancelled_and_asked_again())
        assert manager.report()["writer"]["consumed"] == 90


def test_awaited_operations_after_the_close_raise_as_plain_ones_do(url):
    manager = open_manager(url, max_tokens=1000)
    manager.register_agent("writer")

    @manager.govern("writer", max_output_tokens=5)
    async def ask():
        return "a word"

    async def work():
        hold = await manager.ahold("writer", 10)
        manager.close()
        with pytest.raises(tbc.StoreError, match="closed"):
            manager.hold("writer", 1)
        for awaited in (manager.ahold("writer", 1), hold.asettle(5), ask()):
            with pytest.raises(tbc.StoreError, match="closed"):
                await asyncio.wait_for(awaited, 10)

    asyncio.run(work())


def test_awaited_operations_after_the_close_are_kept_in_a_store_that_is_open(tmp_path):
    with SqliteStore(tmp_path / "books.db") as store:
        manager = open_manager(store, max_tokens=1000)
        manager.register_agent("writer")

        async def work():
            hold = await manager.ahold("writer", 10)
            manager.close()
            await asyncio.wait_for(hold.asettle(5), 10)

        asyncio.run(work())
        with open_manager(store) as again:
            assert again.report()["writer"]["consumed"] == 5


def test_what_comes_while_the_one_who_serves_leaves_is_served(url):
    class Queue(deque):
        """Runs something when it is next seen to be empty."""

        last = None

        def __bool__(self):
            empty, meanwhile = len(self) == 0, Queue.last
            if empty and meanwhile is not None:
                Queue.last = None
                meanwhile()
            return not empty

    with open_manager(url, max_tokens=1000) as manager:
        clerk, served = manager._clerk, threading.Event()
        assert not clerk._queue
        clerk._queue = Queue()

        def meanwhile():
            other = threading.Thread(target=clerk.later, args=(served.set,))
            other.start()
            other.join()

        Queue.last = meanwhile
        manager.report()
        assert served.wait(5)


def test_two_pools_of_one_store_do_not_see_each_other(url):
    with (
        open_manager(url, max_tokens=100, pool="a") as one,
        open_manager(url, max_tokens=50, pool="b") as two,
    ):
        one.register_agent("writer", max_tokens=60)
        two.register_agent("writer", max_tokens=20)
        one.hold("writer", 60)
        assert (one.remaining("writer"), two.remaining("writer")) == (0, 20)


def test_a_hold_is_found_by_its_number_in_another_process_open_or_ended(url):
    with open_manager(url, max_tokens=1000) as first, open_manager(url) as second:
        first.register_agent("writer", max_tokens=500)
        number = first.hold("writer", 100).hold_id
        assert second.find_hold(number).settle(80).tokens == 80
        ended = first.find_hold(number)
        assert (ended.state, ended.settlement.tokens) == ("settled", 80)
        for nobody in (number + 1, 10**6, 0, -1, True, "1", None):
            with pytest.raises(tbc.UnknownHoldError):
                first.find_hold(nobody)


def test_a_hold_of_another_process_is_settled_at_the_price_of_its_model(url):
    prices = {"cheap": {"input_per_million": "1", "output_per_million": "1"}}
    with open_manager(url, max_usd="5", prices=prices) as manager:
        manager.register_agent("writer", max_usd="2")
        held = [manager.hold("writer", 100_000, model="cheap", key=key) for key in ("first", "second")]
    with open_manager(url, prices=prices) as again:
        again.hold("writer", 100_000, model="cheap", key="first").settle(1000)
        found = again.find_hold(held[1].hold_id)
        found.extend(100_000)
        assert found.usd == 200_000_000
        usage = tbc.Usage(input_tokens=10, output_tokens=20)
        found.settle(usage=usage)
        booked = [entry.consumed for entry in again.ledger.history("writer", axis="usd")]
        assert booked == [1_000_000, 30_000]


def test_a_lease_is_no_hold_that_could_be_found(url):
    with open_manager(url, max_tokens=1000) as manager:
        manager.register_agent("writer", max_tokens=500)
        with tbc.BudgetManager(store=url, lease=tbc.Lease(share=0.5, seconds=30)) as worker:
            worker.hold("writer", 10).settle(10)
            (lease,) = manager.leases()
            with pytest.raises(tbc.UnknownHoldError):
                manager.find_hold(lease.hold_id)
