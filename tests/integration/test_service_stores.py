"""The service over books in SQLite and PostgreSQL: holds and runs are durable, and keys survive a restart."""

from __future__ import annotations

import asyncio
import threading

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.errors import StoreAwayError
from tbc.policy import V1
from tbc.service import Limits, OpenPool, Pools, Service, create_app
from tbc.service.executors import Executor
from tbc.service.probe import Probe
from tests.service_client import client_of, streaming


@pytest.fixture
def restarted(open_again):
    """Return what starts a service over the same store again."""

    def start(executor=None, limits=None, **how):
        store = open_again()

        def make(name):
            return tbc.BudgetManager(pool=name, store=store, max_tokens=100_000, max_usd="5", **how)

        return Service(Pools(make, store), policy=V1, executor=executor, limits=limits or Limits())

    return start


async def ask(client, path, body, key=None):
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = await client.post(path, json=body, headers=headers)
    return answer.status_code, answer.json()


async def spent(client):
    report = (await client.get("/v1/report")).json()
    assert report["open_holds"] == 0
    sums = {}
    since = 0
    while since is not None:
        page = (await client.get(f"/v1/entries?since={since}&limit=50")).json()
        for entry in page["entries"]:
            at = entry["agent_name"], entry["axis"]
            sums[at] = sums.get(at, 0) + entry["consumed"]
        since = page["next"]
    for agent in report["agents"]:
        for axis, account in agent["accounts"].items():
            assert sums.get((agent["agent_name"], axis), 0) == account["consumed"]
    return {
        agent["agent_name"]: agent["accounts"]["usd"]["consumed"]
        for agent in report["agents"]
        if agent["parent"] is not None
    }


RUN = {"goal": "x", "budget": "0.08", "latency_sla_ms": 200}
HOLD = {"agent_name": "writer", "tokens": 900, "usd": "0.02"}


def test_what_was_held_and_run_outlives_the_server(restarted):
    async def before():
        service = restarted()
        async with client_of(service) as client:
            await ask(client, "/v1/agents", {"agent_name": "writer", "max_tokens": 5_000, "max_usd": "1"})
            _, held = await ask(client, "/v1/holds", HOLD, "h")
            status, done = await ask(client, "/agent/run", RUN, "r")
            assert (status, done["status"], done["total_cost_usd"]) == (200, "completed", "0.035")
        service.pools.close()
        return held["hold_id"]

    async def after(number):
        service = restarted()
        async with client_of(service) as client:
            assert (await ask(client, "/v1/holds", HOLD, "h"))[1]["hold_id"] == number
            status, answer = await ask(client, "/agent/run", RUN, "r")  # its record died with the server
            assert (status, answer["error"]["code"]) == (409, "run_forgotten")
            settled, _ = await ask(client, f"/v1/holds/{number}/settle", {"tokens": 800, "usd": "0.01"})
            assert settled == 200
            assert await spent(client) == {"writer": 10_000_000, "runs": 35_000_000}
        service.pools.close()

    asyncio.run(after(asyncio.run(before())))


def test_where_no_more_may_be_held_a_hold_is_found_under_its_key_and_what_has_expired_makes_room(restarted):
    clock = ManualClock()

    def start():
        return restarted(limits=Limits(open_holds=2), clock=clock)

    async def before():
        service = start()
        async with client_of(service) as client:
            await ask(client, "/v1/agents", {"agent_name": "writer", "max_tokens": 5_000, "max_usd": "1"})
            held = [(await ask(client, "/v1/holds", HOLD, key))[1]["hold_id"] for key in "xy"]
            service.pools.close()
            return held

    async def after(held):
        one, other = start(), start()
        for service in (one, other):
            async with client_of(service) as client:
                for key, number in zip("xy", held, strict=True):
                    status, answer = await ask(client, "/v1/holds", HOLD, key)
                    assert (status, answer.get("hold_id")) == (200, number)
                for key in ("z", None):
                    status, answer = await ask(client, "/v1/holds", HOLD, key)
                    assert (status, answer["error"]["code"]) == (429, "too_many_open_holds")
        async with client_of(one) as first, client_of(other) as second:
            await ask(first, f"/v1/holds/{held[0]}/void", {})
            assert (await ask(second, "/v1/holds", {**HOLD, "expires_s": 1}))[0] == 200
            assert (await first.get("/v1/report")).json()["open_holds"] == 2
            assert (await ask(first, "/v1/holds", HOLD, "z"))[0] == 429
            clock.advance(2)
            assert (await ask(first, "/v1/holds", HOLD, "z"))[0] == 200
        one.pools.close()
        other.pools.close()

    asyncio.run(after(asyncio.run(before())))


def test_a_run_that_was_stopped_before_it_held_anything_is_not_made_after_a_restart(restarted):
    async def before():
        service = restarted()
        async with client_of(service) as client:
            _, stopped = await ask(client, "/agent/run", {**RUN, "budget": 0}, "r")
            assert (stopped["status"], stopped["total_cost"]) == ("stopped", 0)
        service.pools.close()
        return stopped["run_id"]

    async def after(run_id):
        service = restarted()
        async with client_of(service) as client:
            for _ in range(2):
                status, answer = await ask(client, "/agent/run", {**RUN, "budget": 0}, "r")
                assert (status, answer["error"]["code"]) == (409, "run_forgotten")
                assert answer["error"]["details"]["run"] == run_id
            status, answer = await ask(client, "/agent/run", RUN, "r")
            assert (status, answer["error"]["code"]) == (409, "key_conflict")
            assert await spent(client) == {"runs": 0}
            assert (await client.get("/runs")).json()["runs"] == []
        service.pools.close()

    asyncio.run(after(asyncio.run(before())))


def test_one_of_two_servers_that_are_asked_at_once_makes_a_run(restarted):
    both = threading.Barrier(2)

    class Judged:
        """The policy is asked by both before either has written the key."""

        def __init__(self, judge):
            self._judge = judge
            self._asked = False

        async def __call__(self, asked):
            if not self._asked:
                self._asked = True
                await asyncio.to_thread(both.wait, 60)
            return await self._judge(asked)

    async def within():
        services = [restarted(), restarted()]
        for service in services:
            service.judge = Judged(service.judge)
        async with client_of(services[0]) as one, client_of(services[1]) as other:
            answers = await asyncio.gather(*(ask(client, "/agent/run", RUN, "r") for client in (one, other)))
            (made,) = [answer for status, answer in answers if status == 200]
            (refused,) = [answer for status, answer in answers if status == 409]
            assert refused["error"]["code"] == "run_forgotten"
            assert refused["error"]["details"]["run"] == made["run_id"]
            assert await spent(one) == await spent(other) == {"runs": made["total_cost"]}
        for service in services:
            service.pools.close()

    asyncio.run(within())


@pytest.mark.parametrize("lost", ["the key", "the first hold"])
def test_a_store_that_goes_away_as_a_run_begins(restarted, lost):
    async def within():
        service = restarted()
        async with client_of(service) as client:
            await ask(client, "/agent/run", {**RUN, "budget": 0})
            (pool,) = service.pools.open.values()
            name = "claim_key" if lost == "the key" else "ahold"
            kept = getattr(pool.manager, name)

            def away(*what, **how):
                raise StoreAwayError("db", "no answer", "wait")

            setattr(pool.manager, name, away)
            status, answer = await ask(client, "/agent/run", RUN, "r")
            setattr(pool.manager, name, kept)
            again = await ask(client, "/agent/run", RUN, "r")
            if lost == "the key":
                assert (status, answer["error"]["code"]) == (503, "store_away")
                assert (again[0], again[1]["status"]) == (200, "completed")
            else:
                assert (status, answer["status"], answer["stop"]["cause"]) == (200, "failed", "store_away")
                assert again == (200, answer)
        service.pools.close()

    asyncio.run(within())


def test_a_callable_that_raises_leaves_nothing_open_in_a_store(restarted):
    def model(step):
        if step.name == "execute":
            raise ValueError
        return {"output": step.name, "usage": {"input_tokens": 300, "output_tokens": 20}}

    async def within():
        service = restarted(Executor("m:f", model))
        async with client_of(service) as client:
            _, done = await ask(client, "/agent/run", RUN)
            assert [step["outcome"] for step in done["steps"]] == ["done", "failed"]
            assert [step["tokens"] for step in done["steps"]] == [320, 1_000]
            assert await spent(client) == {"runs": done["total_cost"]}
        service.pools.close()

    asyncio.run(within())


def test_what_moved_for_extensions_at_once_is_counted_once(restarted):
    async def within():
        service = restarted()
        async with client_of(service) as client:
            await ask(client, "/v1/agents", {"agent_name": "writer", "max_tokens": 0})
            _, held = await ask(client, "/v1/holds", {"agent_name": "writer", "tokens": 100, "usd": "0"})
            path = f"/v1/holds/{held['hold_id']}/extend"
            more = [ask(client, path, {"tokens": tokens}) for tokens in range(1, 11)]
            again = [ask(client, path, {"tokens": 100}, "k") for _ in range(5)]
            assert {status for status, _ in await asyncio.gather(*more, *again)} == {200}
            entries = (await client.get("/v1/entries?limit=1000")).json()["entries"]
            drawn = [entry["allocated"] for entry in entries if entry["kind"] == "draw"]
            assert (len(drawn), sum(drawn)) == (12, 100 + 55 + 100)
            metrics = (await client.get("/metrics")).text
            for name, count in (("transfers", 12), ("moved", 255)):
                assert f'tbc_{name}_total{{axis="tokens",kind="draw"}} {count}.0' in metrics
        service.pools.close()

    asyncio.run(within())


def test_runs_spend_from_leases(restarted):
    async def within():
        service = restarted(lease=tbc.Lease(share=0.5, seconds=30))
        async with client_of(service) as client:
            await ask(client, "/v1/agents", {"agent_name": "writer", "max_tokens": 9_000, "max_usd": "1"})
            for key in "abc":
                status, done = await ask(client, "/agent/run", {**RUN, "agent_name": "writer"}, key)
                assert (status, done["status"]) == (200, "completed")
        await asyncio.to_thread(service.pools.close)
        again = restarted(lease=tbc.Lease(share=0.5, seconds=30))
        async with client_of(again) as client:
            status, answer = await ask(client, "/agent/run", {**RUN, "agent_name": "writer"}, "c")
            assert (status, answer["error"]["code"]) == (409, "run_forgotten")
            assert await spent(client) == {"writer": 3 * 35_000_000}
        again.pools.close()

    asyncio.run(within())


def test_who_has_read_what_another_server_has_written_is_not_ahead_of_the_journal(restarted):
    async def within():
        one, other = restarted(), restarted()
        async with client_of(one) as writes, client_of(other) as reads:
            assert (await reads.get("/v1/entries?since=0")).status_code == 200  # it has the pool open
            await ask(writes, "/v1/agents", {"agent_name": "writer", "max_tokens": 5_000})
            last = (await writes.get("/v1/report")).json()["seq"]
            for since, folded in ((last, False), (last + 1, True)):
                page = (await reads.get(f"/v1/entries?since={since}")).json()
                assert (page["entries"], page["folded"]) == ([], folded)
                async with streaming(create_app(other), f"since={since}") as stream:
                    first = (await asyncio.wait_for(stream.chunks.get(), 20))["body"]
                    assert (b"event: gap" in first) == folded
        one.pools.close()
        other.pools.close()

    asyncio.run(within())


def test_health_says_whether_the_store_answers(restarted):
    async def within():
        service = restarted()
        clock = ManualClock()
        asked = []
        store = service.pools._store

        def ask():
            asked.append(clock())
            if len(asked) == 2:
                raise StoreAwayError("db", "no answer", "wait")
            return store.pools()

        service.pools.probe = Probe(ask, wait_s=20, clock=clock)
        async with client_of(service) as client:
            said = []
            for seconds in (0, 0.5, 0.5, 0.5, 0.5):
                clock.advance(seconds)
                answers = await asyncio.gather(*(client.get("/health") for _ in range(3)))
                assert {answer.status_code for answer in answers} == {200}
                said += [answer.json() for answer in answers]
        states = [each["store"] for each in said]
        assert states == ["reached"] * 6 + ["away"] * 6 + ["reached"] * 3
        assert asked == [0, 1, 2], "asked once a second, however often it was looked at"
        assert {each["status"] for each in said} == {"healthy"}
        await asyncio.to_thread(service.pools.close)

    asyncio.run(within())


def test_a_store_that_does_not_answer_in_time_is_away_and_keeps_nobody_waiting(restarted):
    async def within():
        service, may_go_on = restarted(), threading.Event()
        service.pools.probe = Probe(lambda: may_go_on.wait(60), wait_s=0.01)
        async with client_of(service) as client:
            for _ in range(3):
                assert (await client.get("/health")).json() == {"status": "healthy", "store": "away"}
            may_go_on.set()
            while (await client.get("/health")).json()["store"] == "away":
                await asyncio.sleep(0)
        await asyncio.to_thread(service.pools.close)

    asyncio.run(asyncio.wait_for(within(), 60))


def test_a_look_at_an_expired_hold_of_the_pool_is_kept_in_the_store(tmp_path):
    """Also if its manager leases, and others have written meanwhile."""
    clock = ManualClock(100.0)
    how = {"store": f"sqlite:///{tmp_path}/books.db", "clock": clock}
    lease = tbc.Lease(share=0.1, seconds=30)
    with tbc.BudgetManager(**how, max_tokens=1000, lease=lease) as worker, tbc.BudgetManager(**how) as other:
        worker.register_agent("a", max_tokens=100)
        held = worker.hold("a", 10, key="k", expires_s=1)
        pool = OpenPool("default", worker, None)
        pool.number(held)
        other.hold("a", 5)
        clock.advance(2)
        assert asyncio.run(pool.as_it_stands(held.hold_id)).state == "expired"
        assert worker._shared.report() == other.report()
        assert worker._shared.ledger.seq == other.ledger.seq == len(other._keeper.lines())


def test_a_server_whose_leases_cover_it_has_room_while_its_store_is_away(tmp_path):
    """What has ended here makes room: the store is not asked for it."""
    how = {"store": f"sqlite:///{tmp_path}/books.db", "lease": tbc.Lease(share=0.5, seconds=3600)}
    with tbc.BudgetManager(**how, max_tokens=1_000) as worker:
        worker.register_agent("a", max_tokens=100)

        async def holds():
            pool = OpenPool("default", worker, None)
            for _ in range(8):
                async with pool.room(3):
                    held = worker.hold("a", 1)
                pool.number(held)
                held.settle(1)

        worker.hold("a", 1).settle(1)  # the lease is there
        worker._shared.knows_key = None  # it would fail
        asyncio.run(holds())
        assert worker.report()["a"]["consumed"] == 9
