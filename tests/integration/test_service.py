"""The ledger over HTTP does what the manager does, and says it in one shape."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import AsyncExitStack

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.errors import StoreAwayError, StoreMissingError
from tbc.leased import LeasedManager
from tbc.policy import V1
from tbc.service import Limits, OpenPool, Pools, Service, create_app, problems
from tbc.service.problems import Problem
from tests.live_page import served
from tests.service_client import client_of, make_service, streaming
from tests.waiting import until


@pytest.fixture
def service():
    return make_service()


def run(test):
    """Run a coroutine function that is given a client of a service with two agents."""

    def tested(service):
        async def within():
            async with client_of(service) as client:
                for terms in (
                    {"agent_name": "reader", "max_tokens": 6_000, "max_usd": "1.50"},
                    {"agent_name": "writer", "priority": 9, "max_tokens": 4_000},
                ):
                    assert (await client.post("/v1/agents", json=terms)).status_code == 200
                await test(client, service)

        asyncio.run(within())

    tested.__name__ = test.__name__
    return tested


async def hold(client, agent_name="writer", tokens=100, key=None, **more):
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"agent_name": agent_name, "tokens": tokens, "usd": "0", **more}
    return await client.post("/v1/holds", json=body, headers=headers)


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


@run
async def test_a_hold_is_opened_seen_extended_and_settled_once(client, service):
    opened = (await hold(client, tokens=500, operation="draft")).json()
    where = f"/v1/holds/{opened['hold_id']}"
    assert opened["state"] == "open" and opened["held"]["tokens"] == {"amount": 500}
    assert (await client.get(where)).json()["operation"] == "draft"
    longer = await client.post(f"{where}/extend", json={"tokens": 20, "nano_usd": 7})
    assert longer.json()["held"] == {
        "tokens": {"amount": 520},
        "usd": {"amount": 7, "amount_usd": "0.000000007"},
    }
    settled = (await client.post(f"{where}/settle", json={"tokens": 300, "usd": "0.25"})).json()
    assert settled["booked"]["tokens"]["amount"] == 300
    assert settled["booked"]["usd"]["amount_usd"] == "0.25"
    again = (await client.post(f"{where}/settle", json={"tokens": 300, "usd": "0.25"})).json()
    assert again == {**settled, "repeated": True}
    assert code(await client.post(f"{where}/settle", json={"tokens": 301})) == (409, "hold_ended")
    assert code(await client.post(f"{where}/void")) == (409, "hold_ended")
    (pool,) = service.pools.open.values()
    assert pool.manager.report()["writer"]["consumed"] == 300


@run
async def test_a_voided_hold_costs_nothing_and_may_be_voided_again(client, service):
    where = f"/v1/holds/{(await hold(client)).json()['hold_id']}"
    assert (await client.post(f"{where}/void")).json()["state"] == "voided"
    assert (await client.post(f"{where}/void")).json()["repeated"] is True
    assert (await client.get(where)).json()["settlement"]["booked"]["tokens"]["amount"] == 0


@run
async def test_a_refusal_is_402_with_the_decision_and_is_never_retryable(client, service):
    refused = await hold(client, tokens=900_000)
    assert code(refused) == (402, "budget_exhausted")
    error = refused.json()["error"]
    assert error["retryable"] is False
    assert error["decision"]["verdict"] == "REFUSE" and error["decision"]["requested"] == 900_000
    await hold(client, "reader", 6_000)
    busy = await hold(client, tokens=19_000)
    assert code(busy) == (402, "budget_busy") and busy.json()["error"]["retryable"] is False


@run
async def test_a_closed_gate_is_403_and_null_opens_it_again(client, service):
    await client.patch("/v1/agents/writer", json={"confidence_threshold": 0.9})
    told = await client.post("/v1/agents/writer/confidence", json={"confidence": 0.95})
    assert told.json()["gate_closed"] is True
    assert code(await hold(client)) == (403, "gate_closed")
    await client.post("/v1/agents/writer/confidence", json={"confidence": None})
    assert (await hold(client)).status_code == 200
    await client.patch("/v1/agents/writer", json={"confidence_threshold": None})
    (pool,) = service.pools.open.values()
    assert pool.manager.contracts["writer"].confidence_threshold is None


@run
async def test_a_key_finds_the_first_answer_refusals_too(client, service):
    first, second = await hold(client, key="k"), await hold(client, key="k")
    assert first.json()["hold_id"] == second.json()["hold_id"]
    assert code(await hold(client, tokens=101, key="k")) == (409, "key_conflict")
    refused = await hold(client, tokens=900_000, key="no")
    await client.post("/v1/agents/(root)/top-up", json={"tokens": 10**6})
    assert (await hold(client, tokens=900_000, key="no")).json() == refused.json()
    for _ in range(2):
        await client.post("/v1/agents/writer/top-up", json={"tokens": 5}, headers={"Idempotency-Key": "t"})
    assert (await client.get("/v1/agents/writer")).json()["accounts"]["tokens"]["allocated"] == 4_005


@run
async def test_two_keys_for_one_request_are_refused(client, service):
    both = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    refused = await client.post("/v1/holds", json={"agent_name": "writer", "tokens": 1}, headers=both)
    assert code(refused) == (422, "invalid_request") and "more than once" in refused.text
    assert (await client.get("/v1/report")).json()["open_holds"] == 0


@run
async def test_the_document_names_what_headers_are_read_and_what_is_answered_before_the_books(
    client, service
):
    paths = (await client.get("/openapi.json")).json()["paths"]
    events = {each["name"]: each["in"] for each in paths["/v1/events"]["get"]["parameters"]}
    assert events == {"since": "query", "Last-Event-ID": "header"}
    assert {"400", "403", "421", "431", "503"} <= paths["/health"]["get"]["responses"].keys()


@run
async def test_usage_without_a_hold_is_booked_and_an_overrun_says_so(client, service):
    usage = {"usage": {"input_tokens": 40, "output_tokens": 2}, "usd": "0.01"}
    assert (await client.post("/v1/agents/writer/usage", json=usage)).json() == {"done": True}
    over = await client.post("/v1/agents/writer/usage", json={"tokens": 10**6, "usd": "0"})
    assert code(over) == (402, "overrun")
    account = (await client.get("/v1/agents/writer")).json()["accounts"]["tokens"]
    assert account["consumed"] == 10**6 + 42 and account["debt"] > 0


@run
async def test_rebalance_moves_for_good_on_every_axis(client, service):
    asked = {"tokens": {"writer": 500}, "nano_usd": {"writer": 7}}
    done = (await client.post("/v1/rebalance", json=asked)).json()
    assert {(each["axis"], each["amount"]) for each in done["transfers"]} == {("tokens", 500), ("usd", 7)}
    assert done["unmet"] == {"tokens": {"writer": 0}, "usd": {"writer": 0}}
    assert done["bottlenecks"] == {"tokens": None, "usd": None}
    too_much = (await client.post("/v1/rebalance", json={"tokens": {"writer": 10**9}})).json()
    assert too_much["bottlenecks"] == {"tokens": 9} and too_much["unmet"]["tokens"]["writer"] > 0


@run
async def test_agents_come_in_pages_and_close(client, service):
    first = (await client.get("/v1/agents?limit=1")).json()
    rest = (await client.get(f"/v1/agents?limit=1&after={first['next']}")).json()
    assert [each["agent_name"] for page in (first, rest) for each in page["agents"]] == ["reader", "writer"]
    assert rest["next"] is None
    assert (await client.post("/v1/agents/reader/close")).json()["closed"] is True
    assert code(await hold(client, "reader")) == (403, "agent_closed")
    assert code(await client.get("/v1/agents/nobody")) == (404, "unknown_agent")
    assert (await client.get("/v1/agents/(root)")).json()["parent"] is None


@run
async def test_pages_of_the_journal_add_up_to_the_report(client, service):
    settled = (await hold(client, tokens=5_000)).json()["hold_id"]
    await client.post(f"/v1/holds/{settled}/settle", json={"tokens": 4_500})
    await hold(client, "reader", 10, usd="0.3")
    sums, since = {}, 0
    while since is not None:
        page = (await client.get(f"/v1/entries?since={since}&limit=3")).json()
        for entry in page["entries"]:
            for name in ("allocated", "consumed", "held"):
                at = entry["agent_name"], entry["axis"], name
                sums[at] = sums.get(at, 0) + entry[name]
            if entry["peer"] is not None:
                at = entry["peer"], entry["axis"], "allocated"
                sums[at] = sums.get(at, 0) - entry["allocated"]
        since = page["next"]
    report = (await client.get("/v1/report")).json()
    for agent in report["agents"]:
        for axis, account in agent["accounts"].items():
            for name in ("allocated", "consumed", "held"):
                assert sums.get((agent["agent_name"], axis, name), 0) == account[name]


@run
async def test_what_is_no_request_is_refused_in_the_same_shape(client, service):
    json_type = {"Content-Type": "application/json"}
    deep = "[" * 40 + "]" * 40
    cases = {
        '{"agent_name": "a", "agent_name": "b"}': (400, "malformed_json"),
        '{"agent_name": "a", "tokens": NaN}': (400, "malformed_json"),
        '{"agent_name": "a", "tokens": ' + "9" * 9_000 + "}": (400, "malformed_json"),
        '{"agent_name": "\udcff"}': (400, "malformed_json"),
        '{"agent_name": ' + deep + "}": (400, "malformed_json"),
        "[" * 60_000: (400, "malformed_json"),
        "[]": (422, "invalid_request"),
        '{"agent_name": "a b"}': (422, "invalid_request"),
        '{"agent_name": "a", "tokens": true}': (422, "invalid_request"),
        '{"agent_name": "a", "usd": 0.5}': (422, "invalid_request"),
        '{"agent_name": "a", "usd": "0.5", "nano_usd": 1}': (422, "invalid_request"),
        '{"agent_name": "a"}' + " " * 70_000: (413, "body_too_large"),
    }
    for text, expected in cases.items():
        body = text.encode("utf-8", "surrogateescape")
        assert code(await client.post("/v1/holds", content=body, headers=json_type)) == expected, text[:50]
    assert code(await client.post("/v1/holds", content=b"{}")) == (415, "not_json")
    assert code(await client.get("/v1/holds/0")) == (422, "invalid_request")
    assert code(await client.get("/v1/holds/12345")) == (404, "unknown_hold")
    assert code(await client.get("/v1/report?axis=usd")) == (422, "unknown_query")
    assert code(await client.get("/v1/agents?limit=9&limit=8")) == (422, "invalid_request")
    refused = await client.delete("/v1/agents")
    assert code(refused) == (405, "method_not_allowed") and refused.headers["allow"] == "GET, POST"
    assert code(await client.get("/v2")) == (404, "not_found")


@run
async def test_every_wrong_key_is_named_with_its_path(client, service):
    answer = await client.post("/v1/holds", json={"agent_name": "a", "tokens": -1, "calls": 1.5})
    assert {path for path, _ in answer.json()["error"]["details"]["problems"]} == {"tokens", "calls"}
    answer = await client.post("/v1/holds", json={"agent_name": "a", "token": 1})
    assert answer.json()["error"]["details"]["problems"] == [["token", "unknown key; did you mean tokens?"]]
    answer = await client.post("/v1/rebalance", json={"tokens": {f"a{i}": 1 for i in range(501)}})
    assert "at most 500 keys" in answer.json()["error"]["message"]


@run
async def test_every_answer_is_for_its_reader_alone(client, service):
    for path in ("/v1/report", "/v2", "/openapi.json", "/v1/holds/1"):
        headers = (await client.get(path)).headers
        assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control")]


def test_an_error_inside_says_nothing_of_itself(caplog):
    def broken(name):
        raise ZeroDivisionError("postgresql://user:secret@host")

    async def ask():
        async with client_of(Service(Pools(broken))) as client:
            return await client.get("/v1/report")

    answer = asyncio.run(ask())
    assert code(answer) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "a request failed: internal_error" in caplog.text


def test_a_body_that_does_not_come_is_given_up():
    service = make_service(limits=Limits(body_s=0.01))
    sent = []

    async def ask():
        async def receive():
            await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/holds",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }
        await create_app(service)(scope, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] == 408 and json.loads(sent[1]["body"])["error"]["code"] == "slow_body"


def test_a_middleware_that_is_added_sees_every_request():
    seen = []

    class Noting:
        def __init__(self, inner):
            self.inner = inner

        async def __call__(self, scope, receive, send):
            seen.append((scope["type"], scope.get("path")))
            await self.inner(scope, receive, send)

    async def ask():
        app = create_app(make_service(lambda name: tbc.BudgetManager()))
        app.add_middleware(Noting)

        async def receive():
            raise AssertionError("it has no body")

        async def send(message):
            seen.append(message.get("status"))

        scope = {"type": "http", "method": "GET", "path": "/health", "query_string": b"", "headers": []}
        await app({**scope, "headers": [(b"host", b"localhost")]}, receive, send)

    asyncio.run(ask())
    assert seen[:2] == [("http", "/health"), 200]


# -- over stores -----------------------------------------------------------------------------------------


def test_a_service_that_starts_again_finds_holds_and_keys_in_its_store(tmp_path):
    from tbc.stores import SqliteStore

    async def first(client):
        await client.post("/v1/agents", json={"agent_name": "writer", "max_tokens": 500})
        return (await hold(client, tokens=100, key="k")).json()["hold_id"]

    async def second(client, number):
        assert (await hold(client, tokens=100, key="k")).json()["hold_id"] == number
        assert (await client.post(f"/v1/holds/{number}/settle", json={"tokens": 80})).status_code == 200
        kinds = [each["kind"] for each in (await client.get("/v1/entries?limit=1000")).json()["entries"]]
        assert kinds.count("hold") == 2 and kinds.count("settle") == 2  # tokens and dollars
        report = (await client.get("/v1/report")).json()
        assert report["agents"][1]["accounts"]["tokens"]["consumed"] == 80

    async def with_service(work, *values):
        store = SqliteStore(tmp_path / "books.db")
        service = Service(
            Pools(lambda name: tbc.BudgetManager(store=store, pool=name, max_tokens=1000, max_usd="5"), store)
        )
        try:
            async with client_of(service) as client:
                return await work(client, *values)
        finally:
            await asyncio.to_thread(service.pools.close)

    number = asyncio.run(with_service(first))
    asyncio.run(with_service(second, number))


def test_a_pool_that_is_opened_slowly_keeps_no_other_waiting_and_is_opened_once():
    go_on = threading.Event()
    made = []

    def make(name):
        made.append(name)
        assert name != "slow" or go_on.wait(20)
        return tbc.BudgetManager()

    async def within():
        pools = Pools(make, Kept(), most=2)
        first, left, again = (asyncio.create_task(pools.get("slow")) for _ in range(3))
        quick = await pools.get("quick")
        assert await pools.get("quick") is quick and not first.done()
        with pytest.raises(Problem, match="2 pools open"):
            await pools.get("third")
        left.cancel()
        go_on.set()
        assert await first is await again is pools.open["slow"]
        assert made.count("slow") == made.count("quick") == 1

    asyncio.run(within())


def test_a_store_that_was_away_for_one_pool_is_not_asked_for_the_next_at_once():
    clock = ManualClock()
    asked = []

    def make(name):
        asked.append(name)
        raise StoreAwayError("postgresql://", "it cannot be reached", "Try again")

    async def within():
        pools = Pools(make, Kept(), clock=clock)
        for name in "ab":
            with pytest.raises(StoreAwayError, match="it cannot be reached"):
                await pools.get(name)
        assert asked == ["a"]
        clock.advance(1)
        with pytest.raises(StoreAwayError):
            await pools.get("b")
        assert asked == ["a", "b"]

    asyncio.run(within())


class Kept:
    """As much of a store as pools that are opened need."""

    def pools(self):
        return []


def test_holds_out_of_leases_have_numbers_of_their_own(tmp_path):
    from tbc.stores import SqliteStore

    async def work():
        store = SqliteStore(tmp_path / "books.db")

        def make(name):
            return tbc.BudgetManager(
                store=store, pool=name, max_tokens=10_000, lease=tbc.Lease(share=0.2, seconds=30)
            )

        service = Service(Pools(make, store))
        try:
            async with client_of(service) as client:
                await client.post("/v1/agents", json={"agent_name": "writer", "max_tokens": 5_000})
                body = {"agent_name": "writer", "tokens": 10}
                local = (await client.post("/v1/holds", json=body)).json()["hold_id"]
                kept = (await client.post("/v1/holds", json=body, headers={"Idempotency-Key": "k"})).json()
                assert local > 2**52 > kept["hold_id"]
                for number in (local, kept["hold_id"]):
                    ended = await client.post(f"/v1/holds/{number}/settle", json={"tokens": 7})
                    assert ended.json()["hold_id"] == number
                late = await client.post(f"/v1/holds/{local}/void")
                assert late.json()["error"]["details"]["hold_id"] == local
                report = (await client.get("/v1/report")).json()
                assert report["agents"][1]["accounts"]["tokens"]["consumed"] == 14
        finally:
            await asyncio.to_thread(service.pools.close)

    asyncio.run(work())


def test_a_hold_whose_time_has_passed_is_shown_expired():
    async def within():
        clock = ManualClock()
        manager = tbc.BudgetManager(max_tokens=20_000, clock=clock)
        manager.register_agent("writer", max_tokens=4_000)
        async with client_of(make_service(lambda name: manager)) as client:
            number = (await hold(client, expires_s=30)).json()["hold_id"]
            clock.advance(29)
            assert (await client.get(f"/v1/holds/{number}")).json()["state"] == "open"
            clock.advance(1)
            shown = (await client.get(f"/v1/holds/{number}")).json()
            assert (shown["state"], shown["expires_in_s"]) == ("expired", None)
            assert shown["settlement"]["state"] == "expired"
            late = await client.post(f"/v1/holds/{number}/settle", json={"tokens": 80})
            assert late.json()["state"] == "settled"

    asyncio.run(within())


def test_a_hold_out_of_a_lease_whose_time_has_passed_is_shown_expired(tmp_path):
    def make(name):
        lease = tbc.Lease(share=0.5, seconds=60)
        return tbc.BudgetManager(
            store=f"sqlite:///{tmp_path}/b.db", pool=name, max_tokens=20_000, lease=lease
        )

    async def within():
        service = make_service(make)
        async with client_of(service) as client:
            await client.post("/v1/agents", json={"agent_name": "writer", "max_tokens": 4_000})
            number = (await hold(client, expires_s=0.001)).json()["hold_id"]
            held = service.pools.open["default"]._local[number]
            await asyncio.to_thread(until, lambda: not held.expires_in_s)
            assert (await client.get(f"/v1/holds/{number}")).json()["state"] == "expired"
        await asyncio.to_thread(service.pools.close)

    asyncio.run(within())


def test_the_oldest_holds_are_forgotten_but_none_that_only_this_process_can_end(monkeypatch):
    from tbc.service import pools

    monkeypatch.setattr(pools, "_REMEMBERED", 3)
    shared = tbc.BudgetManager(max_tokens=1_000)
    shared.register_agent("writer", max_tokens=500)

    async def work(worker):
        pool = OpenPool("default", worker, None)
        holds = [worker.hold("writer", 1) for _ in range(3)]
        numbers = [pool.number(each) for each in holds]
        holds[1].settle(1)
        for _ in range(2):
            pool.number(worker.hold("writer", 1))
        assert await pool.find(numbers[0]) is holds[0]
        with pytest.raises(tbc.UnknownHoldError):
            await pool.find(numbers[1])

    with LeasedManager(shared, tbc.Lease(share=0.5, seconds=30)) as worker:
        asyncio.run(work(worker))


# -- events ----------------------------------------------------------------------------------------------


def with_stream(test):
    """Run a coroutine function that is given an application and its books."""

    def tested():
        async def within():
            manager = tbc.BudgetManager(max_tokens=20_000, warn_at=[0.1])
            manager.register_agent("writer", max_tokens=4_000, confidence_threshold=0.9)
            service = make_service(lambda name: manager, limits=Limits(streams=2, cut_off_s=0.05))
            await test(create_app(service), manager, service)

        asyncio.run(within())

    tested.__name__ = test.__name__
    return tested


@with_stream
async def test_a_stream_goes_on_after_the_last_event_that_its_reader_has(app, manager, service):
    manager.hold("writer", 10)
    async with streaming(app, "since=1") as stream:
        names = [await stream.next() for _ in range(2)]
        assert stream.status == 200 and stream.headers[b"content-type"].startswith(b"text/event-stream")
    assert [(name, number, data["kind"]) for name, number, data in names] == [
        ("entry", "2", "register"),
        ("entry", "3", "hold"),
    ]
    manager.hold("writer", 20)
    async with streaming(app, "since=1", [(b"last-event-id", b"3")]) as stream:
        assert (await stream.next())[1] == "4"


@with_stream
async def test_a_stream_tells_what_happens_while_it_is_open(app, manager, service):
    async with streaming(app) as stream:
        await asyncio.wait_for(stream.chunks.get(), 20)  # it has begun
        await asyncio.to_thread(manager.hold, "writer", 10)  # out of another thread
        assert (await stream.next())[2]["held"] == 10
        with pytest.raises(tbc.BudgetExceededError):
            manager.hold("writer", 10**6)
        name, number, data = await stream.next()
        assert (name, number, data["verdict"]) == ("refused", None, "REFUSE")
        manager.record_usage("writer", 2_500, confidence=0.95)
        names = {(await stream.next())[0] for _ in range(3)}
        assert names == {"entry", "gate", "threshold"}
    assert manager._subscribers is not None and not manager._subscribers._callbacks  # nobody listens any more


@pytest.mark.parametrize("mode", ["enforce", "audit"])
def test_a_refusal_of_the_stream_is_found_in_the_list_by_its_time(mode):
    async def within():
        manager = tbc.BudgetManager(max_tokens=20_000, mode=mode)
        manager.register_agent("writer", max_tokens=4_000)
        service = make_service(lambda name: manager, policy=V1)
        refusals = (await service.pools.get("default")).metrics.refusals
        refusals._wall = lambda: 1_000_000_000_000_000_000  # it stands still
        async with client_of(service) as client, streaming(create_app(service)) as stream:
            await asyncio.wait_for(stream.chunks.get(), 20)  # it has begun
            told = []

            async def next_one():
                while True:
                    name, _, data = await stream.next()
                    if name == "refused":
                        told.append((data["at"], data["agent_name"], data["requested"]))
                        return

            async def listed():
                found = (await client.get("/v1/refusals")).json()["refusals"]
                return [(each["at"], each["agent_name"], each["requested"]) for each in found]

            for tokens, key in ((50_000, None), (50_000, None), (60_000, "k"), (60_000, "k")):
                await hold(client, tokens=tokens, key=key)
            for _ in range(3):
                await next_one()
            assert await listed() == told
            await client.post("/agent/run", json={"goal": "x", "agent_name": "writer", "budget": "9000"})
            if mode == "audit":
                await next_one()
            assert [at for at, *_ in told] == sorted({at for at, *_ in told})
            assert (await listed())[: len(told)] == told

    asyncio.run(within())


@with_stream
async def test_nobody_waits_for_a_slow_reader_who_reads_later(app, manager, service):
    async with streaming(app, "since=2") as stream, streaming(app, "since=2") as other:
        stream.may_go_on.clear()
        manager.hold("writer", 10)
        assert (await other.next())[2]["held"] == 10
        await asyncio.sleep(4 * service.limits.cut_off_s)  # some of a page may be taken all the while
        stream.may_go_on.set()
        assert (await stream.next())[2]["held"] == 10


@pytest.mark.parametrize("error", [StoreAwayError, StoreMissingError])
def test_streams_whose_store_fails_end_and_the_log_has_one_line(error, caplog, monkeypatch):
    monkeypatch.setattr(problems._Last, "text", "")

    async def fails(*_):
        raise error("books.db", "it is gone", "Put it back")

    async def within():
        manager = tbc.BudgetManager()
        service = make_service(lambda name: manager)
        app = create_app(service)
        async with streaming(app) as first, streaming(app) as second:
            for stream in (first, second):
                await asyncio.wait_for(stream.chunks.get(), 20)  # it has begun
            service.pools.open["default"].entries = fails
            manager.register_agent("writer")
            for stream in (first, second):
                await asyncio.wait_for(stream.task, 20)
                assert await stream.chunks.get() == {"type": "http.response.body", "body": b""}

    asyncio.run(within())
    assert [record.getMessage() for record in caplog.records if "books.db" in record.getMessage()]
    assert len(caplog.records) == 1 and caplog.records[0].exc_info is None


def test_readers_who_catch_up_take_turns_and_others_are_served_between_two_pages():
    async def within():
        manager = tbc.BudgetManager(max_tokens=20_000)
        manager.register_agent("writer", max_tokens=4_000)
        for _ in range(3_000):
            manager.record_usage("writer", 1)
        manager.hold("writer", 7)
        last, seen, pages = manager.statement().seq, 0, [0]
        async with AsyncExitStack() as stack:
            app = create_app(make_service(lambda name: manager))
            streams = [await stack.enter_async_context(streaming(app, "since=0")) for _ in range(10)]
            while seen < 10 * last:  # anybody else who is served once in every round of the loop
                await asyncio.sleep(0)
                found = [each.chunks.get_nowait()["body"] for each in streams if not each.chunks.empty()]
                news = [body.count(b"id: ") for body in found if b"id: " in body]
                pages.append(len(news))
                seen += sum(news)
        assert max(pages) <= 2 and sum(pages) >= 10 * last / 200

    asyncio.run(asyncio.wait_for(within(), 60))


def test_a_connection_that_is_cut_off_is_closed_and_no_error(capfd):
    manager = tbc.BudgetManager(max_tokens=20_000)
    manager.register_agent("writer", max_tokens=4_000)
    for _ in range(30_000):  # more than the buffers of the system hold
        manager.record_usage("writer", 0)
    with served(manager, limits=Limits(cut_off_s=0.2)) as service, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        reader.settimeout(20)
        reader.connect(("127.0.0.1", service.port))
        reader.sendall(b"GET /v1/events?since=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: manager._subscribers is not None and manager._subscribers._callbacks)
        until(lambda: not manager._subscribers._callbacks)
        until(lambda: not service._server.server_state.connections)
        while reader.recv(2**20):  # what had been sent; then its end
            pass
    assert "ERROR" not in capfd.readouterr().err


@with_stream
async def test_streams_are_bounded_and_end_when_the_service_does(app, manager, service):
    async with streaming(app) as one, streaming(app) as two:
        for stream in (one, two):
            await asyncio.wait_for(stream.chunks.get(), 20)
        async with streaming(app) as third:
            refused = await asyncio.wait_for(third.chunks.get(), 20)
            assert json.loads(refused["body"])["error"]["code"] == "too_many_streams"
        service.drain()
        for stream in (one, two):
            await asyncio.wait_for(stream.task, 20)


def test_a_reader_whose_lines_are_gone_is_told_so():
    async def within():
        manager = tbc.BudgetManager(max_tokens=20_000, keep=10)
        manager.register_agent("writer", max_tokens=4_000)
        for _ in range(600):
            manager.record_usage("writer", 1)
        app = create_app(make_service(lambda name: manager))
        async with streaming(app, "since=2") as stream:
            name, _, data = await stream.next()
            assert name == "gap" and data["since"] == 2 and data["first"] > 300
            assert (await stream.next())[1] == str(data["first"])

    asyncio.run(within())


def test_a_reader_of_another_journal_is_told_so():
    async def within():
        manager = tbc.BudgetManager(max_tokens=20_000)
        manager.register_agent("writer", max_tokens=4_000)
        service = make_service(lambda name: manager)
        app = create_app(service)
        async with client_of(service) as client:

            async def folded(since):
                page = (await client.get(f"/v1/entries?since={since}")).json()
                assert since < 2 or page["entries"] == []
                return page["folded"]

            assert [await folded(since) for since in (0, 1, 2, 3, 500)] == [False, False, False, True, True]
        for since in (3, 500):
            async with streaming(app, headers=[(b"last-event-id", b"%d" % since)]) as stream:
                last = manager.statement().seq
                assert await stream.next() == ("gap", None, {"since": since, "first": last + 1})
                manager.hold("writer", 10)
                assert (await stream.next())[:2] == ("entry", str(last + 1))
            manager.record_usage("writer", 0)
        last = manager.statement().seq
        async with streaming(app, f"since={last}") as stream:  # nobody is told who has read all of it
            await asyncio.wait_for(stream.chunks.get(), 20)
            manager.hold("writer", 10)
            assert (await stream.next())[:2] == ("entry", str(last + 1))

    asyncio.run(within())


def test_a_reader_that_falls_behind_is_told_how_many_notices_it_missed():
    async def within():
        manager = tbc.BudgetManager(max_tokens=100)
        manager.register_agent("writer", max_tokens=10)
        app = create_app(make_service(lambda name: manager))
        async with streaming(app) as stream:
            await asyncio.wait_for(stream.chunks.get(), 20)
            stream.may_go_on.clear()
            for _ in range(300):
                with pytest.raises(tbc.BudgetExceededError):
                    manager.hold("writer", 1_000)
            stream.may_go_on.set()
            name, _, data = await stream.next()
            assert name == "missed" and data["notices"] == 300 - 256

    asyncio.run(within())


@run
async def test_the_last_refusals_are_listed_with_their_reasons(client, service):
    assert (await client.get("/v1/refusals")).json() == {"refusals": []}
    answer = (await hold(client, tokens=90_000)).json()["error"]["decision"]
    await hold(client, agent_name="reader", tokens=1, usd="7.5")
    first, second = (await client.get("/v1/refusals")).json()["refusals"]
    assert first.pop("at") <= second.pop("at")
    names = ("mode", "agent_name", "axis", "requested", "available", "reason")
    assert first == {**{name: answer[name] for name in names}, "unmet": {"tokens": answer["unmet"]}}
    assert answer["unmet"] == 90_000 - answer["available"] and second["unmet"].keys() == {"usd"}
    assert (second["axis"], second["requested_usd"]) == ("usd", "7.5")
    for key in ("a", "a", "b", "a"):
        await hold(client, tokens=70_000, key=key)
    repeated = (await client.get("/v1/refusals")).json()["refusals"]
    assert [each["requested"] for each in repeated[2:]] == [70_000, 70_000]
    for number in range(205):
        await hold(client, tokens=90_000 + number)
    found = (await client.get("/v1/refusals")).json()["refusals"]
    assert [each["requested"] for each in found] == [90_005 + number for number in range(200)]
