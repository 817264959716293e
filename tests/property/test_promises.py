"""The promises, each in the words of its own test, over random trees and histories."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tbc
from tbc.clock import ManualClock
from tbc.testing import FakeModel, Snapshot, amounts, check_books, check_step
from tests.property.histories import Player, caps, forests, histories

WORST = 100
FITS = 10
CALLERS = 100


def total_allocated(manager: tbc.BudgetManager) -> int:
    return sum(account.allocated or 0 for account in manager.accounts())


# -- 1 -------------------------------------------------------------------------------------------------


@given(forests, histories, amounts(50, edges=False))
def test_promise_01_conservation(tree, history, more):
    """Under a cap, nothing but a grant at the root changes what is allocated in all."""
    player = Player(tree, cap=150)
    assert total_allocated(player.manager) == 150
    for step, _ in player.play(history):
        assert total_allocated(player.manager) == 150, step
    player.manager.top_up(tbc.ROOT, more)
    assert total_allocated(player.manager) == 150 + more


@given(forests, histories)
def test_promise_01_without_a_cap_only_entries_at_the_top_grant(tree, history):
    player = Player(tree, cap=None)
    for step in history:
        before, owner = Snapshot.of(player.manager), player.owner(step)
        player.step(*step)
        check_step(before, Snapshot.of(player.manager), spender=owner)


# -- 2 -------------------------------------------------------------------------------------------------


@given(forests, histories)
def test_promise_02_no_overspend(tree, history):
    """Calls that keep to their holds never spend a token over the cap, whatever is asked."""
    player = Player(tree, cap=100)
    for what, *given_ in history:
        if what == "usage":
            continue
        if what == "settle":
            hold = player.find(given_[0])
            if hold is None or hold.state != "open":
                continue
            given_[1] = min(given_[1], hold.tokens)
        player.step(what, *given_)
        accounts = player.manager.accounts()
        assert sum(account.consumed + account.held for account in accounts) <= 100
        assert all(account.remaining >= 0 for account in accounts)


class InFlight:
    """Counts who is inside a call, and lets nobody out before everybody has tried to get in."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = self.most = self.served = self.tried = 0
        self.all_tried = threading.Event()

    def try_(self) -> None:
        with self.lock:
            self.tried += 1
            if self.tried == CALLERS:
                self.all_tried.set()

    def enter(self) -> None:
        with self.lock:
            self.inside += 1
            self.served += 1
            self.most = max(self.most, self.inside)
        self.try_()

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1


def pool_for(shape: str) -> tuple[tbc.BudgetManager, list[str]]:
    """Return a pool in which exactly `FITS` worst-case calls fit, and the agents that compete for it."""
    manager = tbc.BudgetManager(max_tokens=WORST * FITS, clock=ManualClock())
    if shape == "treasury":  # everybody draws on the root
        names = [f"agent{i}" for i in range(CALLERS)]
        for name in names:
            manager.register_agent(name, max_tokens=0)
    elif shape == "siblings":  # what there is lies with siblings: every hold is lent
        names = [f"agent{i}" for i in range(4)]
        for i in range(FITS):
            manager.register_agent(f"donor{i}", max_tokens=WORST, min_reserve=0)
        for name in names:
            manager.register_agent(name, priority=5, max_tokens=0)
    else:  # three floors: loans of an uncle are handed down
        manager.register_agent("uncle", max_tokens=WORST * 6, min_reserve=0)
        manager.register_agent("team", max_tokens=WORST * 4, min_reserve=0)
        manager.register_agent("squad", max_tokens=WORST, min_reserve=0, parent="team")
        names = [f"agent{i}" for i in range(5)]
        for name in names:
            manager.register_agent(name, max_tokens=0, parent="squad")
    return manager, names


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", ["treasury", "siblings", "tree"])
def test_promise_02_under_threads(shape, seed):
    """A hundred threads, ten of which fit: ten are in flight, and not a token is over."""
    manager, names = pool_for(shape)
    order = random.Random(seed)
    flight, model = InFlight(), FakeModel([WORST], input_tokens=0)
    start = threading.Barrier(CALLERS)
    unexpected: list[BaseException] = []

    def call(name: str) -> None:
        def provider() -> object:
            flight.enter()
            assert flight.all_tried.wait(60)
            flight.leave()
            return model("")

        start.wait(60)
        try:
            manager.govern(name, max_output_tokens=WORST)(provider)()
        except tbc.BudgetExceededError:
            flight.try_()
        except BaseException as error:
            unexpected.append(error)

    threads = [threading.Thread(target=call, args=(order.choice(names),)) for _ in range(CALLERS)]
    order.shuffle(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not unexpected
    assert (flight.served, flight.most, model.calls) == (FITS, FITS, FITS)
    assert sum(account.consumed for account in manager.accounts()) == WORST * FITS
    check_books(manager)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", ["treasury", "siblings", "tree"])
def test_promise_02_under_tasks(shape, seed):
    """The same with a hundred tasks that take turns in any order."""
    manager, names = pool_for(shape)
    order = random.Random(seed)
    flight, model = InFlight(), FakeModel([WORST], input_tokens=0)

    async def call(name: str, turns: int, all_tried: asyncio.Event) -> None:
        async def provider() -> object:
            flight.enter()
            if flight.all_tried.is_set():
                all_tried.set()
            await all_tried.wait()
            flight.leave()
            return await model.acall("")

        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            await manager.govern(name, max_output_tokens=WORST)(provider)()
        except tbc.BudgetExceededError:
            flight.try_()
            if flight.all_tried.is_set():
                all_tried.set()

    async def everybody() -> None:
        all_tried = asyncio.Event()
        tasks = [call(order.choice(names), order.randrange(20), all_tried) for _ in range(CALLERS)]
        await asyncio.wait_for(asyncio.gather(*tasks), 60)

    asyncio.run(everybody())
    assert (flight.served, flight.most, model.calls) == (FITS, FITS, FITS)
    assert sum(account.consumed for account in manager.accounts()) == WORST * FITS
    check_books(manager)


@pytest.mark.parametrize("seed", range(2))
def test_promise_02_what_is_given_back_is_granted_again(seed):
    """Callers that come again whenever they are refused are all served, never more than ten at once."""
    manager, names = pool_for("tree")
    order = random.Random(seed)
    flight = InFlight()
    ended = threading.Condition()
    statuses: set[tbc.Status] = set()

    def call(name: str) -> None:
        while True:
            with ended:
                try:
                    hold = manager.hold(name, WORST)
                except tbc.BudgetExceededError as error:
                    statuses.add(error.decision.status)
                    if not ended.wait(60):
                        return
                    continue
            flight.enter()
            flight.leave()
            with ended:
                hold.settle(0)
                ended.notify_all()
            return

    threads = [threading.Thread(target=call, args=(order.choice(names),)) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert flight.served == CALLERS
    assert statuses <= {tbc.Status.BUSY}
    assert flight.most <= FITS
    assert total_allocated(manager) == WORST * FITS
    check_books(manager)


# -- 3, 4, 5 -------------------------------------------------------------------------------------------


@given(forests, histories, caps)
def test_promise_03_protected_reserve(tree, history, cap):
    """Nobody but the owner takes an account below its reserve."""
    player = Player(tree, cap)
    for step in history:
        before, owner = player.manager.accounts(), player.owner(step)
        player.step(*step)
        for old, new in zip(before, player.manager.accounts(), strict=True):
            if old.agent_name != owner and old.remaining is not None:
                assert new.remaining >= min(old.remaining, old.min_reserve), (step, new)


@given(forests, histories, caps)
def test_promise_04_downhill_only(tree, history, cap):
    """Every transfer between siblings comes from a priority that is not above the recipient's."""
    player = Player(tree, cap)
    list(player.play(history))
    accounts = {account.agent_name: account for account in player.manager.accounts()}
    for entry in player.manager.ledger.entries():
        if entry.kind in (tbc.Kind.LOAN, tbc.Kind.COVER, tbc.Kind.REBALANCE):
            donor, recipient = accounts[entry.peer], accounts[entry.agent_name]
            assert donor.parent == recipient.parent
            assert donor.priority <= recipient.priority


@given(forests, histories, caps, st.data())
def test_promise_05_all_or_nothing(tree, history, cap, data):
    """A hold gets all it asked for, or moves nothing at all."""
    player = Player(tree, cap)
    list(player.play(history))
    manager = player.manager
    for name in list(manager.contracts):
        tokens = data.draw(st.integers(0, 200))
        before = Snapshot.of(manager)
        answer = player.step("hold", name, tokens)
        if isinstance(answer, tbc.BudgetExceededError):
            assert Snapshot.of(manager) == before
        else:
            assert answer.tokens == tokens
            check_step(before, Snapshot.of(manager), spender=name)


# -- 6, 7 ----------------------------------------------------------------------------------------------


@given(forests, histories, caps, st.integers(0, 60), amounts(200))
def test_promise_06_truth(tree, history, cap, held, used):
    """What was spent is booked in full, whatever was held; consumed never falls."""
    player = Player(tree, cap)
    seen: dict[str, int] = {}
    for _ in player.play(history):
        for account in player.manager.accounts():
            assert account.consumed >= seen.get(account.agent_name, 0)
            seen[account.agent_name] = account.consumed
    manager = player.manager
    for name in list(manager.contracts):
        hold = player.step("hold", name, held)
        if isinstance(hold, tbc.Hold):
            before = manager.ledger.consumed(name)
            settlement = hold.settle(used)
            assert manager.ledger.consumed(name) - before == settlement.tokens == used
            assert manager.ledger.history(name)[-1].tokens == used


@given(
    st.sampled_from([RuntimeError, KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit]),
    st.integers(0, 300),
)
def test_promise_06_an_exception_on_its_way_out_books(error, recorded):
    """What was recorded is booked, else the input, as an estimate: more than was held, too."""
    manager = tbc.BudgetManager(max_tokens=1_000, clock=ManualClock())
    manager.register_agent("agent", max_tokens=0)

    @manager.govern("agent", max_output_tokens=50)
    def call(prompt: str) -> None:
        tbc.current_hold().record(recorded)
        raise error

    with pytest.raises(error):
        call("some words")
    entry = manager.ledger.history("agent")[-1]
    assert entry.tokens == (recorded or manager.count((("some words",), [])))
    assert entry.estimated
    check_books(manager)


ends = st.lists(
    st.tuples(st.sampled_from(["settle", "settle", "void", "expire", "extend"]), st.sampled_from([0, 7, 40])),
    max_size=6,
)


@given(forests, ends, st.integers(0, 60))
def test_promise_07_holds_end_once(tree, ends, tokens):
    """After the first end nothing changes, but for a late settle of an expired hold, once."""
    player = Player(tree, cap=200)
    manager = player.manager
    for name in list(manager.contracts):
        hold = player.step("hold", name, tokens)
        if not isinstance(hold, tbc.Hold):
            continue
        for how, amount in ends:
            state, before = hold.state, Snapshot.of(manager)
            if how == "expire":
                player.clock.advance(700)
                manager.accounts()
            else:
                player.step(how, 0, *([] if how == "void" else [amount]))
            if state in ("settled", "voided") or (state == "expired" and how != "settle"):
                assert Snapshot.of(manager) == before
                assert hold.state == state
            elif state == "expired":
                assert (hold.state, hold.settlement.late) == ("settled", True)
    spent = [entry for entry in manager.ledger.entries() if entry.consumed]
    assert len({entry.hold_id for entry in spent}) == len(spent)


# -- 8, 9, 10 ------------------------------------------------------------------------------------------


@given(forests, histories, caps)
def test_promise_08_deterministic(tree, history, cap):
    """The same requests make the same journal, line by line."""
    journals = []
    for _ in range(2):
        player = Player(tree, cap)
        answers = [repr(answer) for _, answer in player.play(history)]
        journals.append((player.manager.ledger.entries(), answers))
    assert journals[0] == journals[1]


@given(st.integers(1, 30), st.integers(0, 200), st.sampled_from(["plain", "async"]))
def test_promise_09_nothing_is_thrown_away(cap, used, how):
    """Where the reply was paid for, it is returned or it is on the error."""
    manager = tbc.BudgetManager(max_tokens=cap, clock=ManualClock())
    manager.register_agent("agent", max_tokens=0)
    model = FakeModel([used], input_tokens=0)
    decorate = manager.govern("agent", max_output_tokens=1)
    overran = False
    try:
        if how == "plain":
            reply = decorate(lambda: model(""))()
        else:

            async def call() -> object:
                return await model.acall("")

            reply = asyncio.run(decorate(call)())
    except tbc.OverrunError as error:
        reply, overran = error.result, True
    assert overran == (used > cap)
    assert reply["usage"]["total_tokens"] == used
    assert manager.report()["agent"]["consumed"] == used


@given(st.sampled_from([1.5, -0.1, float("nan"), "sure"]))
def test_promise_09_what_fails_after_the_call_carries_its_reply(confidence):
    manager = tbc.BudgetManager(max_tokens=100, clock=ManualClock())
    manager.register_agent("agent", max_tokens=0)
    model = FakeModel([3])
    with pytest.raises(ValueError) as caught:
        manager.govern("agent", lambda reply: confidence, max_output_tokens=9)(model)("hello")
    assert caught.value.result["usage"]["completion_tokens"] == 3
    assert manager.report()["agent"]["consumed"] == 4


@given(forests, histories, caps, st.sampled_from(["enforce", "audit"]))
def test_promise_10_one_number(tree, history, cap, mode):
    """What is enforced, displayed, told and summed from the journal is the same after every step."""
    player = Player(tree, cap, mode)
    manager = player.manager
    told: list[tbc.Entry] = []
    known = manager.ledger.seq
    manager.subscribe(lambda event: told.append(event.entry) if hasattr(event, "entry") else None)
    for _ in player.play(history):
        check_books(manager)
    manager.top_up(tbc.ROOT, 0) if cap is not None else manager.register_agent("last")
    assert told == manager.ledger.entries(known)
    for name in manager.contracts:
        left = manager.remaining(name)
        decision = manager.decide(name, 0)
        assert decision.remaining == left
        if left is not None and left > 0 and mode == "enforce" and not decision.status.refuses:
            assert manager.decide(name, left).status is tbc.Status.FITS
            assert manager.decide(name, left + 1).status is not tbc.Status.FITS


# -- 11, 12 --------------------------------------------------------------------------------------------

requests = st.lists(
    st.tuples(
        st.sampled_from(["hold", "usage", "rebalance", "top_up"]),
        st.integers(0, 6),
        st.integers(0, 60),
        st.lists(st.integers(0, 30), max_size=3),  # after how many further requests it is repeated
    ),
    max_size=15,
)


@given(forests, requests, caps)
def test_promise_11_retries_are_safe(tree, requests, cap):
    """Repeats, at any later time, change nothing and get the first outcome, refusals too."""
    once, often = Player(tree, cap), Player(tree, cap)
    names = list(once.manager.contracts)
    if not names:
        return

    def send(manager, key, what, number, tokens):
        name = names[number % len(names)]
        try:
            if what == "hold":
                return manager.hold(name, tokens, key=key).hold_id
            if what == "usage":
                return manager.record_usage(name, tokens, key=key)
            if what == "rebalance":
                return manager.rebalance({name: tokens}, key=key).transfers
            return manager.top_up(name, tokens, key=key)
        except tbc.BudgetExceededError as error:
            return repr(error)
        except tbc.InvalidContractError:
            return "uncapped"  # nothing to top up

    later: list[tuple[int, str, tuple, object]] = []
    for i, (*request, repeats) in enumerate(requests):
        key = f"request-{i}"
        outcome = send(once.manager, key, *request)
        assert send(often.manager, key, *request) == outcome
        later += [(i + after, key, tuple(request), outcome) for after in repeats]
        for _, key_, request_, outcome_ in [each for each in later if each[0] == i]:
            assert send(often.manager, key_, *request_) == outcome_
        assert often.manager.accounts() == once.manager.accounts()
    for _, key, request, outcome in later:
        assert send(often.manager, key, *request) == outcome
    assert often.manager.ledger.entries() == once.manager.ledger.entries()


@given(requests, st.integers(0, 60), st.integers(0, 60))
def test_promise_11_other_content_is_a_conflict(requests, first, other):
    manager = tbc.BudgetManager(max_tokens=100, clock=ManualClock())
    manager.register_agent("agent", max_tokens=50)
    manager.hold("agent", 0, key="key")
    before = Snapshot.of(manager)
    calls = [
        lambda: manager.hold("agent", 1 + first, key="key"),
        lambda: manager.record_usage("agent", other, key="key"),
        lambda: manager.top_up("agent", other, key="key"),
        lambda: manager.rebalance({"agent": other}, key="key"),
    ]
    for call in calls:
        with pytest.raises(tbc.KeyConflictError):
            call()
    assert Snapshot.of(manager) == before


class Unreadable:
    """A reply that says nothing about what it cost."""


@given(st.integers(0, 500), st.sampled_from(["reply", "usage_fn", "block"]))
def test_promise_12_unknown_usage_is_never_free(cap, how):
    """Where nothing tells what was used, the whole hold is booked, as an estimate."""
    manager = tbc.BudgetManager(max_tokens=1_000, clock=ManualClock())
    manager.register_agent("agent", max_tokens=0)
    if how == "block":
        with manager.hold("agent", cap):
            pass
    else:
        usage_fn = (lambda reply: None) if how == "usage_fn" else None
        manager.govern("agent", max_output_tokens=cap, usage_fn=usage_fn)(Unreadable)()
    entry = manager.ledger.history("agent")[-1]
    assert (entry.tokens, entry.estimated) == (cap, True)
