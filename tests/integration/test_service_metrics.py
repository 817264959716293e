"""What a service counts is what has happened, with few labels, for the pool of the token alone."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

import tbc
from tbc.policy import V1
from tbc.service.metrics import OTHER, Metrics, wants_json
from tests.service_client import client_of, make_service


def samples(text):
    """Return the value of every sample by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def run(test):
    def tested():
        async def within():
            async with client_of(make_service(policy=V1)) as client:

                async def post(path, **body):
                    return await client.post(path, json=body)

                async def value(name, **labels):
                    found = samples((await client.get("/metrics")).text)
                    return found.get((name, tuple(sorted(labels.items()))))

                await post("/v1/agents", agent_name="reader", max_tokens=6_000, max_usd="1.50")
                await post("/v1/agents", agent_name="writer", priority=9, max_tokens=4_000)
                await test(client, post, value)

        asyncio.run(within())

    tested.__name__ = test.__name__
    return tested


@run
async def test_holds_are_counted_by_what_decided_them_and_timed(client, post, value):
    number = (await post("/v1/holds", agent_name="writer", tokens=100, usd="0")).json()["hold_id"]
    await post("/v1/holds", agent_name="writer", tokens=5_000, usd="0")
    await post("/v1/holds", agent_name="writer", tokens=900_000, usd="0")
    await post("/v1/holds", agent_name="nobody", tokens=1)
    await post(f"/v1/holds/{number}/settle", tokens=80)
    for reason in ("fits", "fits_with_loans", "busy", "exhausted", "unknown_agent"):
        expected = None if reason == "busy" else 1
        assert await value("tbc_decisions_total", reason=reason) == expected, reason
    assert await value("tbc_hold_seconds_count") == 2
    assert await value("tbc_settle_seconds_count") == 1
    assert await value("tbc_requests_total", operation="openHold", status="402") == 1
    assert await value("tbc_transfers_total", axis="tokens", kind="draw") == 1
    assert await value("tbc_moved_total", axis="tokens", kind="draw") == 1_100


@run
async def test_what_refused_holds_lacked_is_counted_on_each_axis_by_priority(client, post, value):
    available = (await post("/v1/decide", agent_name="writer", tokens=900_000, usd="9")).json()
    await post("/v1/holds", agent_name="writer", tokens=900_000, usd="9")
    by_axis = {each["axis"]: each["available"] for each in (available, *available["others"])}
    tokens = await value("tbc_unmet_total", axis="tokens", priority="9")
    dollars = await value("tbc_unmet_total", axis="usd", priority="9")
    assert tokens == 900_000 - by_axis["tokens"] and dollars == 9 - by_axis["usd"] / 1e9
    await post("/v1/holds", agent_name="writer", tokens=900_000, usd="0")
    assert await value("tbc_unmet_total", axis="tokens", priority="9") == 2 * tokens
    assert await value("tbc_unmet_total", axis="usd", priority="9") == dollars


@run
async def test_each_rebalance_is_counted_by_its_bottleneck(client, post, value):
    await post("/v1/rebalance", tokens={"writer": 10})
    await post("/v1/rebalance", tokens={"writer": 10**6})
    assert await value("tbc_rebalance_bottlenecks_total", axis="tokens", level="none") == 1
    assert await value("tbc_rebalance_bottlenecks_total", axis="tokens", level="9") == 1


@run
async def test_budgets_are_those_of_the_moment(client, post, value):
    await post("/v1/holds", agent_name="reader", tokens=70, usd="0.25")
    await post("/v1/agents/writer/usage", tokens=30, usd="0")
    assert await value("tbc_budget", agent="reader", axis="tokens", amount="held") == 70
    assert await value("tbc_budget", agent="reader", axis="usd", amount="held") == 0.25
    assert await value("tbc_budget", agent="writer", axis="tokens", amount="consumed") == 30
    assert await value("tbc_pool_budget", axis="tokens", amount="allocated") == 20_000
    assert await value("tbc_pool_budget", axis="usd", amount="allocated") == 5
    assert await value("tbc_open_holds") == 1


@run
async def test_many_agents_and_priorities_make_few_labels(client, post, value):
    for number in range(40):
        await post("/v1/agents", agent_name=f"a{number}", priority=number + 1, max_tokens=number)
        await post(f"/v1/agents/a{number}/usage", tokens=number, usd="0")
        await post("/v1/holds", agent_name=f"a{number}", tokens=10**6, usd="0")
    text = (await client.get("/metrics")).text
    agents = {dict(labels)["agent"] for name, labels in samples(text) if name == "tbc_budget"}
    assert len(agents) == 21 and OTHER in agents and "a39" in agents
    priorities = {dict(labels)["priority"] for name, labels in samples(text) if name == "tbc_unmet_total"}
    assert len(priorities) == 21 and OTHER in priorities
    everybody = [
        value
        for (name, labels), value in samples(text).items()
        if name == "tbc_budget" and ("amount", "consumed") in labels and ("axis", "tokens") in labels
    ]
    assert sum(everybody) == sum(range(40))


def test_an_agent_that_is_named_like_the_others_is_one_of_them():
    manager = tbc.BudgetManager(max_tokens=10_000)
    for name in (*(f"a{number}" for number in range(25)), OTHER):
        manager.register_agent(name, max_tokens=0)
        manager.record_usage(name, 7)
    manager.record_usage(OTHER, 500)
    lines = [line.rpartition(" ")[0] for line in Metrics().text(manager.statement()).decode().splitlines()]
    assert len(lines) == len(set(lines)), "a scrape with one series twice is dropped"
    found = samples(Metrics().text(manager.statement()).decode())
    consumed = {
        dict(labels)["agent"]: value
        for (name, labels), value in found.items()
        if name == "tbc_budget" and {("amount", "consumed"), ("axis", "tokens")} <= set(labels)
    }
    assert consumed.pop(OTHER) == 500 + 6 * 7
    assert list(consumed.values()) == [7] * 20


@run
async def test_choices_of_the_policy_are_counted_with_what_they_saved(client, post, value):
    flat = {"step": "plan", "remaining_budget": 0.5, "total_budget": 1, "latency_sla_ms": 300}
    assert (await post("/policy/evaluate", **flat)).json()["decision"]["selected_model_tier"] == "standard"
    await post("/policy/evaluate", step="execute", remaining_budget="0.05", total_budget="1")
    await post(
        "/policy/evaluate", step="execute", remaining_budget="0.2", total_budget="1", latency_sla_ms=100
    )
    await post("/policy/evaluate", step="summarize", remaining_budget=1, total_budget=1)
    counters = (await client.get("/metrics", headers={"Accept": "application/json"})).json()
    assert counters == {
        "AgentRunsTotal": 0,
        "AgentStepsTotal": {"plan": {"standard": 1}, "execute": {"cheap": 1}, "summarize": {"cheap": 1}},
        "AgentDowngradesTotal": {
            "planning_standard_sla_constrained": 1,
            "execution_cheap_sla_constrained": 1,
        },
        "AgentHardStopsTotal": 1,
        "AgentCostTotal": 0,
        "AgentCostSaved": pytest.approx(0.015 + 0.010),
        "SLAViolationsPrevented": 2,
    }
    assert await value("tbc_policy_sla_violations_prevented_total") == 2
    assert await value("tbc_policy_hard_stops_total", cause="budget_exhausted") == 1


@run
async def test_the_cost_of_runs_is_what_was_settled(client, post, value):
    await post("/policy/evaluate", step="execute", remaining_budget="0.9", total_budget="1")
    done = [(await post("/agent/run", goal="x", budget=budget)).json() for budget in ("0.08", "0.02", 0)]
    assert [run["status"] for run in done] == ["completed", "stopped", "stopped"]
    counters = (await client.get("/metrics", headers={"Accept": "application/json"})).json()
    spent = sum(run["total_cost"] for run in done)
    assert spent > 0 and counters["AgentCostTotal"] == pytest.approx(spent / 10**9)
    assert await value("tbc_runs_usd_total") == pytest.approx(spent / 10**9)


@run
async def test_both_forms_of_a_question_have_the_same_answer(client, post, value):
    flat = await post(
        "/policy/evaluate",
        step="execute",
        remaining_budget=0.3,
        total_budget=1,
        latency_sla_ms=250,
        priority=3,
    )
    nested = await post(
        "/policy/evaluate",
        agent_id="a",
        step={"name": "execute", "index": 1, "total_steps": 3},
        budget={"total": 1, "remaining": "0.3", "spent_so_far": 0.7},
        request={"priority": 3, "latency_sla_ms": 250},
        system={"current_load": 0.2, "active_agents": 2},
        history={"previous_steps": ["plan"]},
    )
    assert flat.status_code == 200 and flat.json() == nested.json()
    assert flat.json()["policy_version"] == V1.version
    for wrong in ({"step": {}}, {"step": "plan", "budget": {}}, {"step": "plan", "remaining_budget": -1}):
        assert (await post("/policy/evaluate", **wrong)).status_code == 422
    half = await post("/policy/evaluate", step="plan", remaining_budget=1)
    assert half.status_code == 422 and half.json()["error"]["code"] == "invalid_amount"


def test_json_is_for_those_who_ask_for_it():
    assert wants_json(b"application/json") and wants_json(b"Application/JSON; q=1")
    assert not wants_json(b"application/json;q=0") and wants_json(b"application/json, text/plain; q=0.0")
    assert not wants_json(b"") and not wants_json(b"*/*") and not wants_json(b"application/json, text/plain")


def test_books_do_not_care_whether_counting_works(monkeypatch, caplog):
    def broken(*values):
        raise OSError("no room")

    for name in ("answered", "refused", "chosen"):
        monkeypatch.setattr(Metrics, name, broken)

    async def ask():
        manager = tbc.BudgetManager(max_tokens=100)
        async with client_of(make_service(lambda name: manager)) as client:
            await client.post("/v1/agents", json={"agent_name": "a", "max_tokens": 10})
            held = await client.post("/v1/holds", json={"agent_name": "a", "tokens": 5})
            refused = await client.post("/v1/holds", json={"agent_name": "a", "tokens": 500})
            assert (held.status_code, refused.status_code) == (200, 402)
        assert manager.remaining("a") == 5

    asyncio.run(ask())
    assert "a request was not counted" in caplog.text


def test_an_agent_that_is_called_as_the_others_are_is_one_of_them():
    metrics, manager = Metrics(), tbc.BudgetManager(max_tokens=10_000)
    for name in [*(f"a{number}" for number in range(25)), "(other)"]:
        manager.register_agent(name, max_tokens=100)
    manager.record_usage("(other)", 50)
    lines = metrics.text(manager.statement()).decode().splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert 'tbc_budget{agent="(other)",amount="consumed",axis="tokens"} 50.0' in lines


def test_transfers_are_those_of_the_journal():
    async def within():
        manager = tbc.BudgetManager(max_tokens=100_000)
        service = make_service(lambda name: manager, policy=V1)
        async with client_of(service) as client:
            for name, tokens in (("lo", 50_000), ("hi", 10)):
                await client.post("/v1/agents", json={"agent_name": name, "max_tokens": tokens})
            hold = (await client.post("/v1/holds", json={"agent_name": "hi", "tokens": 1_010})).json()
            for path, body in (
                (f"holds/{hold['hold_id']}/extend", {"tokens": 500}),
                (f"holds/{hold['hold_id']}/void", None),
                ("agents/hi/usage", {"tokens": 300}),
            ):
                assert (await client.post(f"/v1/{path}", json=body)).status_code == 200
            run = (await client.post("/agent/run", json={"goal": "x", "agent_name": "hi"})).json()
            assert run["status"] == "completed"
            text = (await client.get("/metrics")).text
        moved = Counter()
        for entry in manager.ledger.entries():
            if str(entry.kind) in ("loan", "draw", "cover", "return"):
                moved[str(entry.kind)] += abs(entry.allocated)
        assert moved["draw"] > 1_500 and moved["return"] > 1_500
        counted = {
            sample.labels["kind"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "tbc_moved_total"
        }
        assert counted == moved

    asyncio.run(within())
