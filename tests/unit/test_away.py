"""While the store is away: nothing without an allowance, never more than it, and all is booked after."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager

import pytest

import tbc
from tbc.stores import SqliteStore
from tbc.testing import check_books


class Leaving(SqliteStore):
    """A store that can be away."""

    away = False

    def transaction(self, pool=None, *, at=None):
        if self.away:
            raise tbc.StoreAwayError(self.path, "the server does not answer", "Try again")
        return super().transaction(pool, at=at)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr("tbc.clerk._FIRST_PAUSE_S", 0.0)  # no pause: nothing here waits for a clock
    monkeypatch.setattr("tbc.clerk._LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr("tbc.stored._EVERY_S", 3600.0)
    with Leaving(tmp_path / "books.db") as store:
        yield store


@contextmanager
def managing(store, **how):
    manager = tbc.BudgetManager(store=store, max_tokens=1000, **how)
    try:
        manager.register_agent("writer")
        yield manager
    finally:
        store.away = False
        manager.close()


def test_without_an_allowance_nothing_is_spent_and_nothing_changes(store):
    with managing(store) as manager:
        hold = manager.hold("writer", 100)
        store.away = True
        for operation in (
            lambda: manager.hold("writer", 1),
            lambda: manager.record_usage("writer", 1),
            lambda: hold.settle(50),
            lambda: manager.report(),
        ):
            with pytest.raises(tbc.StoreAwayError, match="does not answer"):
                operation()
        store.away = False
        assert hold.state == "open" and manager.remaining("(root)") == 1000 - 0 - 100
        hold.settle(50)
        assert manager.report()["writer"]["consumed"] == 50


def test_an_allowance_bounds_what_is_spent_and_is_booked_when_the_store_is_back(store):
    with managing(store, when_away=tbc.Allowance(tokens=100)) as manager:
        store.away = True
        manager.hold("writer", 60).settle(50)
        manager.record_usage("writer", 20)
        with pytest.raises(tbc.BudgetExceededError):
            manager.hold("writer", 31)
        held = manager.hold("writer", 30)
        manager.bring_home()  # it is still away
        store.away = False
        manager.bring_home()
        manager.bring_home()  # once is once
        assert manager.report()["writer"]["consumed"] == 70
        held.settle(25)  # was granted from the allowance, and is booked with it
        manager.bring_home()
        assert manager.report()["writer"]["consumed"] == 95
        store.away = True  # what was booked is to be had again
        manager.hold("writer", 100).settle(100)
        store.away = False
        manager.bring_home()
        assert manager.report()["writer"]["consumed"] == 195
        notes = [entry.note for entry in manager.ledger.history("writer")]
        assert notes == ["while the store was away"] * 3


def test_what_was_sent_and_not_answered_is_sent_again_under_the_same_key(store):
    with managing(store, when_away=tbc.Allowance(tokens=100)) as manager:
        store.away = True
        manager.record_usage("writer", 20)
        store.away = False
        kept, failed = store.transaction, []

        @contextmanager
        def kept_but_not_answered(pool=None, *, at=None):
            with kept(pool, at=at) as writer:
                yield writer
            failed.append(pool)
            raise tbc.StoreUnknownError(store.path, "cut off", "Ask again with the same key")

        store.transaction = kept_but_not_answered
        manager.bring_home()
        del store.transaction
        assert failed
        manager.bring_home()
        assert manager.report()["writer"]["consumed"] == 20


def test_a_stream_that_is_dropped_on_the_allowance_is_booked_there(store):
    with managing(store, when_away=tbc.Allowance(tokens=100)) as manager:
        other = manager.hold("writer", 7)

        @manager.govern("writer", max_output_tokens=20)
        def stream():
            while True:
                yield "word "

        store.away = True
        chunks = stream()
        next(chunks)
        chunks.close()
        store.away = False
        assert manager.report()["writer"]["consumed"] == 0
        manager.bring_home()
        assert manager.report()["writer"]["consumed"] > 0 and other.state == "open"
        check_books(manager)


def test_audit_mode_spends_and_books_it_later(store):
    with managing(store, mode="audit") as manager:
        store.away = True
        manager.hold("writer", 5000).settle(4000)
        store.away = False
        manager.bring_home()
        assert manager.report()["writer"]["consumed"] == 4000


@pytest.mark.parametrize("how", [{"when_away": tbc.Allowance(tokens=500)}, {"mode": "audit"}])
def test_what_has_a_key_is_never_spent_twice(store, how):
    with managing(store, **how) as manager:
        manager.record_usage("writer", 100, key="usage")
        held = manager.hold("writer", 100, key="hold")
        held.settle(80)
        store.away = True
        for operation in (
            lambda: manager.record_usage("writer", 100, key="usage"),
            lambda: manager.hold("writer", 100, key="hold"),
            lambda: asyncio.run(awaited(manager.ahold("writer", 100, key="hold"))),
        ):
            with pytest.raises(tbc.StoreAwayError):
                operation()
        store.away = False
        manager.bring_home()
        assert manager.hold("writer", 100, key="hold") is held
        assert manager.record_usage("writer", 100, key="usage").tokens == 100
        assert manager.report()["writer"]["consumed"] == 180


async def awaited(pending):
    return await pending


def test_what_was_spent_of_an_agent_that_is_closed_by_now_is_paid_above_it(store):
    with managing(store, when_away=tbc.Allowance(tokens=100)) as manager:
        manager.register_agent("team", max_tokens=300)
        for name in ("child", "other"):
            manager.register_agent(name, parent="team", max_tokens=100)
        store.away = True
        manager.hold("child", 40).settle(40)
        manager.hold("other", 30).settle(30)
        store.away = False
        manager.close_agent("child")
        manager.bring_home()
        manager.bring_home()
        report = manager.report()
        assert (report["team"]["consumed"], report["other"]["consumed"]) == (40, 30)
        notes = [entry.note for entry in manager.ledger.history("team")]
        assert notes == ["of 'child' while the store was away"]
        manager.close()
        check_books(manager)


def test_what_cannot_be_booked_of_one_agent_does_not_keep_the_others(store, monkeypatch):
    with managing(store, when_away=tbc.Allowance(tokens=100)) as manager:
        manager.register_agent("other")
        store.away = True
        manager.hold("writer", 40).settle(40)
        manager.hold("other", 30).settle(30)
        store.away = False
        book = manager._book_away

        def refuses_writer(agent_name, spent, key):
            if agent_name == "writer":
                raise tbc.InvalidAmountError("tokens", spent.tokens, "less")
            return book(agent_name, spent, key)

        with monkeypatch.context() as patched:
            patched.setattr(manager, "_book_away", refuses_writer)
            manager.bring_home()
            assert manager.report()["other"]["consumed"] == 30
        manager.bring_home()
        assert manager.report()["writer"]["consumed"] == 40


@pytest.mark.parametrize("how", [{"when_away": tbc.Allowance(tokens=500)}, {"mode": "audit"}])
def test_the_close_warns_of_what_it_could_not_book(store, how):
    manager = tbc.BudgetManager(store=store, max_tokens=1000, **how)
    manager.register_agent("writer")
    store.away = True
    manager.hold("writer", 50).settle(40)
    manager.hold("writer", 5)
    with pytest.warns(RuntimeWarning, match="while it was away: 'writer': 45 tokens"):
        manager.close()
    store.away = False
    with managing(store) as again:
        assert again.report()["writer"]["consumed"] == 0


def test_what_the_budget_did_not_cover_is_not_to_be_had_of_the_allowance_again(store):
    with managing(store, when_away=tbc.Allowance(tokens=500)) as manager:
        for _ in range(3):  # 1000 are covered, 500 are not
            store.away = True
            manager.hold("writer", 500).settle(500)
            store.away = False
            manager.bring_home()
        store.away = True
        with pytest.raises(tbc.BudgetExceededError):
            manager.hold("writer", 1)
        store.away = False
        assert manager.report()["writer"] == {"allocated": 1000, "consumed": 1500, "remaining": -500}


@pytest.mark.parametrize("priced", [{"usd": "0.01"}, {}])
def test_calls_without_a_price_are_brought_home_as_such(store, priced):
    with managing(store, mode="audit") as manager:
        manager.register_agent("priced", max_usd="1")
        store.away = True
        if priced:
            manager.hold("priced", 100, **priced).settle(90, **priced)
        for _ in range(3):
            manager.hold("priced", 100, model="of-unknown-price").settle(90)
        store.away = False
        manager.bring_home()
        (dollars,) = [each for each in manager.accounts("usd") if each.agent_name == "priced"]
        assert dollars.unpriced == 3
        assert dollars.consumed == (10_000_000 if priced else 0)
        check_books(manager)


def test_coroutines_have_the_allowance_too(store):
    async def spend(manager):
        async with manager.ahold("writer", 40) as hold:
            await hold.asettle(30)

    with managing(store, when_away=tbc.Allowance(tokens=100)) as manager:
        store.away = True
        asyncio.run(spend(manager))
        store.away = False
        manager.bring_home()
        assert manager.report()["writer"]["consumed"] == 30


def test_agents_that_may_not_spend_may_not_spend_the_allowance(store):
    with managing(store, when_away=tbc.Allowance(tokens=100)) as manager:
        manager.register_agent("sure", confidence_threshold=0.5)
        manager.report_confidence("sure", 0.9)
        manager.register_agent("gone")
        manager.close_agent("gone")
        store.away = True
        for name, error in (
            ("nobody", tbc.UnknownAgentError),
            ("sure", tbc.StoreAwayError),
            ("gone", tbc.AgentClosedError),
        ):
            with pytest.raises(error):
                manager.hold(name, 1)


def test_an_allowance_is_bounded():
    with pytest.raises(tbc.InvalidAmountError, match="at least one"):
        tbc.Allowance()
    for wrong in (-1, True, 0.5, "1"):
        with pytest.raises(tbc.InvalidAmountError):
            tbc.Allowance(tokens=wrong)
    assert tbc.Allowance(usd="0.05").usd == 50_000_000


def test_a_store_that_is_away_is_not_asked_all_the_time(store, monkeypatch):
    monkeypatch.setattr("tbc.clerk._FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr("tbc.clerk._LONGEST_PAUSE_S", 3600.0)
    with managing(store) as manager:
        asked = []
        monkeypatch.setattr(type(store), "transaction", lambda *_, **__: asked.append(1) or away(store))
        for _ in range(5):
            with pytest.raises(tbc.StoreAwayError):
                manager.hold("writer", 1)
        assert len(asked) == 1


def away(store):
    raise tbc.StoreAwayError(store.path, "the server does not answer", "Try again")
