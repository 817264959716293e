"""What is said of a hold at its end is what is booked: in memory, in a store, and when the store is back."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

import tbc
from tbc.decision import Kind
from tbc.holds import NOTHING
from tbc.stores import SqliteStore
from tests.waiting import until

#: What the ends below are those of: more dollars than the tokens cost.
HELD = {"usd": "5", "model": "gpt-4o"}


class Leaving(SqliteStore):
    """A store that can be away."""

    away = False

    def transaction(self, pool=None, *, at=None):
        if self.away:
            raise tbc.StoreAwayError(self.path, "the server does not answer", "Try again")
        return super().transaction(pool, at=at)


def settled(*said, **more):
    """Return an end that is said within the block of a hold, and the same for who awaits it."""

    def end(manager, leave):
        with manager.hold("a", 100, **HELD) as hold:
            leave()
            hold.settle(*said, **more)

    def awaited(manager, leave):
        async def block():
            async with manager.ahold("a", 100, **HELD) as hold:
                leave()
                await hold.asettle(*said, **more)

        asyncio.run(block())

    return [end, awaited]


def voided(manager, leave):
    with manager.hold("a", 100, **HELD) as hold:
        leave()
        hold.void()


def voided_awaiting(manager, leave):
    async def block():
        async with manager.ahold("a", 100, **HELD) as hold:
            leave()
            await hold.avoid()

    asyncio.run(block())


def left(*recorded, error=None):
    """Return ends by leaving the block: plainly, awaiting, and as a generator that is closed."""

    def end(manager, leave):
        with contextlib.suppress(RuntimeError), manager.hold("a", 100, **HELD) as hold:
            [hold.record(tokens) for tokens in recorded]
            leave()
            if error is not None:
                raise error

    def awaited(manager, leave):
        async def block():
            async with manager.ahold("a", 100, **HELD) as hold:
                [hold.record(tokens) for tokens in recorded]
                leave()
                if error is not None:
                    raise error

        with contextlib.suppress(RuntimeError):
            asyncio.run(block())

    def closed(manager, leave):
        def block():
            with manager.hold("a", 100, **HELD) as hold:
                [hold.record(tokens) for tokens in recorded]
                yield

        chunks = block()
        next(chunks)
        leave()
        chunks.close()

    return [end, awaited, closed]


def said_in_a_governed_call(manager, leave):
    @manager.govern("a", max_output_tokens=50, model="gpt-4o", confidence_fn=None)
    def call(prompt):
        leave()
        with contextlib.suppress(tbc.StoreError):
            tbc.current_hold().settle(30, usd="0.25")
        return "a reply"

    call("a prompt")


def said_in_a_governed_stream(manager, leave):
    @manager.govern("a", max_output_tokens=50, model="gpt-4o")
    def stream(prompt):
        yield "a word"
        leave()
        with contextlib.suppress(tbc.StoreError):
            tbc.current_hold().settle(30, usd="0.25")
        yield "another"

    chunks = stream("a prompt")
    next(chunks)
    next(chunks)
    chunks.close()


def a_governed_reply(manager, leave):
    @manager.govern("a", max_output_tokens=50, model="gpt-4o")
    def call(prompt):
        leave()
        return {"usage": {"prompt_tokens": 40, "completion_tokens": 2}}

    call("a prompt")


def a_governed_stream(manager, leave):
    @manager.govern("a", max_output_tokens=50, model="gpt-4o")
    def stream(prompt):
        yield {"usage": {"prompt_tokens": 40, "completion_tokens": 2}}
        leave()

    list(stream("a prompt"))


def a_governed_stream_that_is_dropped(manager, leave):
    @manager.govern("a", max_output_tokens=50, model="gpt-4o")
    def stream(prompt):
        while True:
            yield "a word"

    chunks = stream("a prompt")
    next(chunks)
    leave()
    chunks.close()


ENDS = [
    *settled(80, usd="0.01"),
    *settled(80, usd="7"),
    *settled(usd="0.02"),
    *settled(80, calls=3),
    *settled(80, estimated=True),
    *settled(usage=tbc.Usage(input_tokens=60, cached_read_tokens=50, output_tokens=20)),
    *settled(),
    voided,
    voided_awaiting,
    *left(),
    *left(40),
    *left(error=RuntimeError),
    *left(40, error=RuntimeError),
    *left(error=tbc.NotSent),
    said_in_a_governed_call,
    said_in_a_governed_stream,
    a_governed_reply,
    a_governed_stream,
    a_governed_stream_that_is_dropped,
]


def open_manager(**how):
    manager = tbc.BudgetManager(max_usd="50", max_tokens=100_000, max_calls=100, **how)
    manager.register_agent("a", max_tokens=0)
    manager.count("now, so that no call waits for the vocabulary")
    return manager


def ended(manager):
    """Return how the hold is in the books."""
    return [
        (line.kind, line.axis, line.consumed, line.held, line.unpriced, line.estimated)
        for line in manager.ledger.entries()
        if line.hold_id is not None and line.kind != Kind.HOLD
    ]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr("tbc.clerk._FIRST_PAUSE_S", 0.0)  # no pause: nothing here waits for a clock
    monkeypatch.setattr("tbc.clerk._LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr("tbc.stored._EVERY_S", 3600.0)
    with Leaving(tmp_path / "books.db") as store:
        yield store


def in_memory(end):
    manager = open_manager()
    with contextlib.suppress(tbc.NotSent):
        end(manager, lambda: None)
    return ended(manager)


def in_a_store(end, store, *, away):
    def leave():
        store.away = away

    manager = open_manager(store=store)
    try:
        with contextlib.suppress(tbc.NotSent, tbc.StoreAwayError):
            end(manager, leave)
    finally:
        if away:
            until(lambda: not manager._clerk._queue)  # what nobody waits for was tried in vain
        store.away = False
        manager.close()  # does what was left
    with tbc.BudgetManager(store=store) as other:
        assert not other.ledger.open_holds
        return ended(other)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__qualname__.replace("<locals>.", ""))
@pytest.mark.parametrize("away", [False, True])
def test_the_same_is_booked_wherever_it_is_said(store, end, away):
    expected = in_memory(end)
    assert expected
    assert in_a_store(end, store, away=away) == expected


@pytest.mark.parametrize("end", left(), ids=["plainly", "awaiting", "closed"])
def test_nothing_said_books_all_that_was_held(end):
    booked = {
        axis: (consumed, estimated) for _, axis, consumed, _, _, estimated in in_memory(end) if consumed
    }
    assert booked == {"tokens": (100, True), "usd": (5_000_000_000, True), "calls": (1, False)}


def test_what_ends_while_the_books_are_read_is_kept(store):
    """Whoever has the lock of the books at that moment does not see to it."""
    manager = open_manager(store=store)

    def block():
        with manager.hold("a", 100, **HELD):
            yield

    chunks = block()
    next(chunks)
    with manager.ledger.lock:
        chunks.close()
        until(lambda: bool(manager.ledger.deferred))
    manager.close()
    with tbc.BudgetManager(store=store) as other:
        assert not other.ledger.open_holds and other.report()["a"]["consumed"] == 100


def test_what_is_recorded_after_a_settle_that_was_not_kept_is_booked_with_it(store):
    manager = open_manager(store=store)
    with pytest.raises(tbc.StoreAwayError) as failed, manager.hold("a", 100, **HELD) as hold:
        store.away = True
        with contextlib.suppress(tbc.StoreAwayError):
            hold.settle(30, usd="0.25")
        hold.record(50)
    assert "The 80 tokens and $0.25 that were spent are booked" in failed.value.__notes__[0]
    store.away = False
    manager.close()
    assert (hold.settlement.tokens, hold.settlement.usd) == (80, 250_000_000)


def test_a_settle_that_nobody_waits_for_any_more_was_said(store):
    """As with a timeout: what it could not keep is booked as it was said, not as it was held."""
    manager = open_manager(store=store)
    gate = threading.Event()

    async def main():
        async with manager.ahold("a", 100, **HELD) as hold:
            busy = asyncio.ensure_future(manager.arun(gate.wait))
            await asyncio.sleep(0)
            store.away = True
            settling = asyncio.ensure_future(hold.asettle(80, usd="0.01"))
            await asyncio.sleep(0)
            settling.cancel()
            gate.set()
            await asyncio.wait([busy, settling])
            assert settling.cancelled()
        return hold

    with pytest.raises(tbc.StoreAwayError):
        asyncio.run(main())
    store.away = False
    manager.close()
    with tbc.BudgetManager(store=store) as other:
        assert [line[2] for line in ended(other) if line[2]] == [80, 10_000_000, 1]


def test_what_is_no_amount_is_refused_and_not_remembered(store):
    """Also while the store is away: or it would be in the way of all that is booked later."""
    manager = open_manager(store=store)
    hold = manager.hold("a", 100, **HELD)
    store.away = True
    with pytest.raises(tbc.InvalidAmountError):
        hold.settle(-1)
    with pytest.raises(tbc.InvalidAmountError):
        asyncio.run(hold.asettle(80, usd="a lot"))
    assert hold.unkept is None
    store.away = False
    manager.close()


def test_what_is_left_of_a_store_is_told_in_full(store):
    manager = open_manager(store=store)
    with pytest.raises(tbc.StoreAwayError), manager.hold("a", 100, **HELD) as hold:
        store.away = True
        hold.settle(80, usd="0.01", calls=2)
    with pytest.warns(RuntimeWarning, match=r"with 80 tokens and \$0\.01 and 2 calls"):
        manager.close()


@pytest.mark.parametrize(
    ("spent", "said"), [(60, "The 60 tokens that were spent are not booked"), (0, "is not freed")]
)
def test_what_ends_after_the_close_says_that_nobody_books_it(tmp_path, spent, said):
    manager = open_manager(store=f"sqlite:///{tmp_path}/books.db")
    with pytest.raises(tbc.StoreError) as failed, manager.hold("a", 100, **HELD) as hold:
        manager.close()
        if not spent:
            raise tbc.NotSent
        hold.record(spent)
    (note,) = failed.value.__notes__
    assert said in note and f"on hold {hold.hold_id}: its manager is closed" in note
    manager.close()  # and there is nothing to warn of any more
    with tbc.BudgetManager(store=f"sqlite:///{tmp_path}/books.db") as again:
        assert again.ledger.open_holds[hold.hold_id].state == "open"


def test_what_is_recorded_after_a_void_that_could_not_be_kept_is_booked(tmp_path):
    with tbc.BudgetManager(store=f"sqlite:///{tmp_path}/books.db", max_tokens=1_000) as manager:
        manager.register_agent("a", max_tokens=0)
        with manager.hold("a", 100) as held:
            held._remember(NOTHING)  # as a void does that the store could not keep
            held.record(60)
        assert held.settlement.tokens == 60
