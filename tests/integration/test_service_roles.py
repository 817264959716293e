"""Policy and executor as two processes: the same runs; and nothing is called while the policy is away."""

from __future__ import annotations

import asyncio
import math
import tomllib
from pathlib import Path

import httpx
import pytest

import tbc
import tbc.cli.serve as command
from tbc.cli.serve import serve
from tbc.errors import InvalidContractError
from tbc.policy import V1, Policy, Rule, Tier
from tbc.service import Pools, Service, create_app, problems
from tbc.service.asking import PolicyProcess
from tbc.service.bearers import Bearers, TokenFile
from tbc.service.executors import Executor
from tbc.stores import open_store
from tests.service_client import client_of, make_service


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


class Beside(httpx.ASGITransport):
    """A policy process that can be sent away."""

    def __init__(self, policy=V1, **how):
        self.service = Service(Pools(lambda name: tbc.BudgetManager()), policy=policy, role="policy", **how)
        super().__init__(app=create_app(self.service))
        self.answers = []  # what is answered or raised in its place
        self.asked = []

    async def handle_async_request(self, request):
        self.asked.append(request)
        if self.answers:
            found = self.answers.pop(0)
            if found == "nothing":
                await asyncio.Event().wait()
            if isinstance(found, Exception):
                raise found
            if found is not None:
                return found
        return await super().handle_async_request(request)


def executor_of(beside, token=None, **how):
    process = PolicyProcess("http://policy:8787", token, transport=beside, timeout_s=how.pop("timeout_s", 20))
    return make_service(**{"policy": V1, "role": "executor", "policy_process": process, **how})


RUN = {"goal": "x", "budget": "0.08", "latency_sla_ms": 200, "seed": 3}


def run(test):
    def tested():
        async def within():
            beside = Beside()
            service = executor_of(beside)
            async with client_of(service) as client:
                await test(client, service, beside)

        asyncio.run(within())

    tested.__name__ = test.__name__
    return tested


def spent(service):
    return sum(
        pool.manager.report(axis="usd").get("runs", {"consumed": 0})["consumed"]
        for pool in service.pools.open.values()
    )


@run
async def test_two_processes_make_the_run_that_one_makes(client, service, beside):
    async with client_of(make_service(policy=V1)) as alone:
        one = (await alone.post("/agent/run", json=RUN)).json()
    two = (await client.post("/agent/run", json=RUN)).json()
    assert len(beside.asked) == 3 == len(two["steps"])
    for answer in (one, two):
        del answer["run_id"], answer["started_at"]
    assert one == two


@run
async def test_each_role_serves_its_own(client, service, beside):
    async with client_of(beside.service) as policy:
        theirs = (await policy.get("/openapi.json")).json()["paths"]
        assert set(theirs) == {"/policy/evaluate", "/metrics", "/health"}
        assert code(await policy.post("/agent/run", json=RUN)) == (404, "not_found")
        assert (await policy.get("/metrics")).status_code == 200
    ours = set((await client.get("/openapi.json")).json()["paths"])
    async with client_of(make_service()) as both:
        assert ours | {"/policy/evaluate"} == set((await both.get("/openapi.json")).json()["paths"])
    assert "/policy/evaluate" not in ours
    assert code(await client.post("/policy/evaluate", json={"step": "plan"})) == (404, "not_found")


AWAY = {
    "refused": httpx.ConnectError("connection refused"),
    "unauthorized": httpx.Response(401, json={"error": {"code": "unauthorized"}}),
    "broken": httpx.Response(500, json={"error": {}}),
    "no json": httpx.Response(200, text="<html>"),
    "no choice": httpx.Response(200, json={"decision": {}}),
    "a list": httpx.Response(200, json=[1]),
}


@pytest.mark.parametrize("how", AWAY)
def test_no_step_is_made_without_the_policy_and_the_request_may_be_repeated(how, caplog, monkeypatch):
    monkeypatch.setattr(problems._Last, "text", "")  # what is logged already is not said again at once

    @run
    async def tested(client, service, beside):
        beside.answers = [AWAY[how]]
        keyed = {"Idempotency-Key": "k"}
        away = await client.post("/agent/run", json=RUN, headers=keyed)
        assert code(away) == (503, "policy_away") and away.json()["error"]["retryable"] is True
        assert "policy:8787" not in away.text and "policy:8787" in caplog.text
        assert "retry-after" in away.headers
        assert spent(service) == 0 and (await client.get("/runs")).json()["runs"] == []
        again = await client.post("/agent/run", json=RUN, headers=keyed)
        assert again.json()["status"] == "completed"

    tested()


@run
async def test_a_policy_that_goes_away_in_the_middle_ends_the_run_with_what_was_done(client, service, beside):
    beside.answers = [None, httpx.ConnectError("gone")]
    done = (await client.post("/agent/run", json=RUN)).json()
    assert done["status"] == "failed"
    assert (done["stop"]["reason"], done["stop"]["cause"]) == ("policy", "policy_away")
    assert [step["outcome"] for step in done["steps"]] == ["done", "failed"]
    assert spent(service) == done["total_cost"] == 15_000_000


@run
async def test_a_connection_that_was_closed_while_idle_is_opened_again(client, service, beside):
    beside.answers = [None, httpx.RemoteProtocolError("server disconnected"), None]
    assert (await client.post("/agent/run", json=RUN)).json()["status"] == "completed"
    assert len(beside.asked) == 4


def test_a_policy_that_does_not_answer_in_time_is_away():
    async def within():
        beside = Beside()
        service = executor_of(beside, timeout_s=0.01)
        beside.answers = ["nothing"]
        async with client_of(service) as client:
            away = await client.post("/agent/run", json=RUN)
        assert code(away) == (503, "policy_away") and "within 0.01 s" in away.json()["error"]["message"]

    asyncio.run(within())


def test_another_policy_than_ours_is_not_taken():
    other = Policy(name="o", tiers=[Tier("cheap", 1, cost_usd=0)], rules=[Rule(tier="cheap", reason="all")])

    async def within():
        service = executor_of(Beside(other))
        async with client_of(service) as client:
            differs = await client.post("/agent/run", json=RUN)
            assert code(differs) == (500, "policy_differs")
            assert differs.json()["error"]["details"] == {"theirs": other.version, "ours": V1.version}
            assert spent(service) == 0

    asyncio.run(within())


def test_the_policy_process_asks_for_a_token(tmp_path):
    file = TokenFile(str(tmp_path / "tokens.json"))
    _, text = file.create("team", ["read"], now=0.0)

    async def within():
        beside = Beside(bearers=Bearers(file, lambda: 0.0))
        for token, expected in ((text, 200), ("tbc_wrong", 503), (None, 503)):
            async with client_of(executor_of(beside, token)) as client:
                assert (await client.post("/agent/run", json=RUN)).status_code == expected
        counted = beside.service.pools.open["team"].metrics.counters()["AgentStepsTotal"]
        assert counted == {"plan": {"standard": 1}, "execute": {"standard": 1}, "summarize": {"cheap": 1}}

    asyncio.run(within())


def test_latencies_that_the_executor_has_seen_are_told_to_the_policy():
    one = Policy(
        name="one", tiers=[Tier("only", 80, cost_usd="0.001")], rules=[Rule(tier="only", reason="x")]
    )
    usage = {"usage": {"input_tokens": 1, "output_tokens": 1}}

    async def within():
        service = executor_of(Beside(one), policy=one, executor=Executor("m:f", lambda step: usage))
        for _ in range(20):
            service.tier_policy.latencies.observe("only", 900)
        async with client_of(service) as client:
            slow = (await client.post("/agent/run", json={"goal": "x", "latency_sla_ms": 500})).json()
        assert slow["stop"]["cause"] == "latency_sla_unachievable"

    asyncio.run(within())


@pytest.fixture
def unserved(monkeypatch):
    """Nothing listens: what should have been refused at the start fails the test."""
    monkeypatch.setattr(command, "run", lambda *_, **__: pytest.fail("it was started"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rate": 0.0}, "rate must be more than 0"),
        ({"rate": math.nan}, "rate must be"),
        ({"open_holds": 0}, "open_holds must be more than 0"),
        ({"port": 99_999}, "--port must be from 0 to 65535, not 99999"),
        ({"port": -1}, "--port"),
        ({"grace_s": -1.0}, "--grace-s must be seconds from 0 to 3,600"),
        ({"policy_timeout_s": math.nan}, "--policy-timeout-s"),
        ({"max_tokens": -1}, "max_tokens must be"),
        ({"max_usd": "-1"}, "usd"),
        ({"max_usd": "much"}, "usd"),
        ({"max_calls": -1}, "max_calls"),
        ({"unknown_price": "-1"}, "unknown_price|per_million"),
        ({"store": "sqlite:///x.db", "lease": 2.0}, "share must be"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_at_the_start(
    arguments, said, unserved, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tbc.TBCError, match=said):
        serve(**arguments)


def test_the_extra_brings_what_the_policy_that_comes_with_it_needs():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert "tbc[config,prices]" in extras["serve"]
    assert any(each.startswith("genai-prices") for each in extras["prices"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"role": "executor"}, "needs --policy-url"),
        ({"role": "executor", "policy_url": "policy:1"}, "must begin with http://"),
        ({"role": "executor", "policy_url": "http://user:HUNTER2@policy:1"}, "must be an address alone"),
        ({"role": "executor", "policy_url": "http://policy:1/?token=HUNTER2"}, "must be an address alone"),
        ({"policy_url": "http://x"}, "is for --role executor"),
        ({"role": "policy", "store": "sqlite:///x.db"}, "leave out --store"),
        ({"executor": "math:pi"}, "cannot be called"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, said, unserved):
    with pytest.raises(InvalidContractError, match=said) as refused:
        serve(**arguments)
    assert "HUNTER2" not in str(refused.value)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"max_usd": "1"}, "was opened with max_usd=\\$5.00, not \\$1.00"),
        ({"max_tokens": 10}, "was opened with"),
        ({"pool": ".."}, "pool must be"),
        ({"pool": "x y"}, "pool must be"),
    ],
)
def test_a_pool_that_cannot_be_served_is_said_at_the_start(terms, said, tmp_path, unserved):
    url = f"sqlite:///{tmp_path}/books.db"
    tbc.BudgetManager(store=open_store(url), pool="default", max_usd="5").close()
    with pytest.raises(tbc.TBCError, match=said):
        serve(store=url, **terms)


def test_a_pool_that_the_store_has_is_served_with_its_own_terms(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/books.db"
    tbc.BudgetManager(store=open_store(url), pool="default", max_usd="5").close()
    served = []
    monkeypatch.setattr(command, "run", lambda service, *_, **__: served.append(service))
    for terms in ({}, {"max_usd": "5"}):
        assert serve(store=url, **terms) == 0
        (service,) = served
        assert service.pools.open["default"].manager.remaining(tbc.ROOT, axis="usd") == 5_000_000_000
        service.pools.close()
        served.clear()


def test_a_pool_of_a_token_that_has_other_terms_is_the_operators_business(tmp_path, monkeypatch, caplog):
    url, file = f"sqlite:///{tmp_path}/books.db", TokenFile(str(tmp_path / "tokens.json"))
    tbc.BudgetManager(store=open_store(url), pool="team", max_usd="5").close()
    bears = {
        pool: {"Authorization": f"Bearer {file.create(pool, ['read'], now=0.0)[1]}"}
        for pool in ("team", "new")
    }
    served = []
    monkeypatch.setattr(command, "run", lambda service, *_, **__: served.append(service))
    serve(store=url, max_usd="1", tokens=file.path)
    (service,) = served

    async def within():
        async with client_of(service) as client:
            for _ in range(3):
                answer = await client.get("/v1/report", headers=bears["team"])
                assert code(answer) == (503, "pool_differs") and not answer.json()["error"]["retryable"]
                assert "max_usd" not in answer.text
            assert (await client.get("/v1/report", headers=bears["new"])).status_code == 200
        await asyncio.to_thread(service.pools.close)

    monkeypatch.setattr(problems._Last, "text", "")
    asyncio.run(within())
    (said,) = [each.getMessage() for each in caplog.records if each.name == "tbc.service"]
    assert "pool 'team' was opened with max_usd=$5.00, not $1.00" in said


def test_without_prices_a_run_says_what_the_server_lacks_and_a_policy_process_does_not_start(
    unserved, monkeypatch
):
    def without(policy):
        raise tbc.UnknownPriceError("gpt-x", "no prices are installed")

    monkeypatch.setattr("tbc.service.app.Tiers", without)

    async def within():
        service = make_service()
        async with client_of(service) as client:
            for path, body in (("/agent/run", RUN), ("/policy/evaluate", {"step": "plan"})):
                assert code(await client.post(path, json=body)) == (503, "no_prices")
            assert (await client.get("/runs")).json()["runs"] == []

    asyncio.run(within())
    with pytest.raises(InvalidContractError, match="needs prices"):
        serve(role="policy", port=0)
