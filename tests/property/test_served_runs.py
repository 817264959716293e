"""Whatever its graph and its steps do: a run ends within its limits, and its record is what was booked."""

from __future__ import annotations

import asyncio
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

import tbc
from tbc.policy import V1, Condition, Policy, Rule, Tier
from tbc.service.executors import Executor
from tests.service_client import client_of, make_service

HOUSE = Policy(
    name="house",
    tiers=[Tier("small", 50, cost_usd="0.01"), Tier("large", 400, cost_usd="0.2")],
    rules=[
        Rule(hard_stop=True, reason="no_budget", when=[Condition.parse("budget_usd <= 0")]),
        Rule(hard_stop=True, reason="used_up", when=[Condition.parse("budget_share < 0.05")]),
        Rule(tier="large", reason="large", when=[Condition.parse("budget_share >= 0.5")]),
        Rule(tier="small", reason="small"),
    ],
)
STEPS = ["plan", "execute", "search", "summarize"]
CONDITIONS = st.sampled_from(
    [
        {"always": True},
        {"budget_ratio_below": 0.4},
        {"budget_ratio_below": 0.9, "on_failed": True},
        {"on_hard_stop": True, "on_refused": True},
        {"always": True, "on_failed": True, "on_refused": True, "on_hard_stop": True},
    ]
)


@st.composite
def graphs(draw):
    """Return a graph in which each node leads to the next one, and to others; some are none."""
    names = STEPS[: draw(st.integers(1, 4))]
    nodes = {}
    for place, name in enumerate(names):
        ways = draw(
            st.lists(st.sampled_from([*names, draw(st.sampled_from([*names, "nowhere"]))]), max_size=2)
        )
        edges = [{"to": way, "condition": draw(CONDITIONS)} for way in ways + names[place + 1 : place + 2]]
        nodes[name] = {"edges": [each for each in edges if not each["condition"].get("always")]}
        nodes[name]["edges"] += [each for each in edges if each["condition"].get("always")][:1]
        nodes[name] |= draw(
            st.fixed_dictionaries(
                {}, optional={"input_tokens": st.integers(0, 3_000), "latency_sla_ms": st.integers(0, 500)}
            )
        )
    return {"entry": names[0], "nodes": nodes}


ASKED = st.fixed_dictionaries(
    {"goal": st.just("x"), "max_visits": st.integers(1, 4), "max_steps": st.integers(1, 8)},
    optional={
        "budget": st.sampled_from([0, "0.02", "0.3", 2, 50]),
        "max_latency_ms": st.integers(0, 1_500),
        "latency_sla_ms": st.integers(0, 500),
        "step_graph": graphs(),
        "seed": st.integers(0, 3),
    },
)
#: What a step does: is simulated, uses so many tokens, costs so much, says nothing, raises, was not sent.
DEEDS = st.one_of(
    st.integers(0, 4_000),
    st.sampled_from(["0.001", "0.15", "3", "silent", "raises", "not sent"]),
)


def callable_of(deeds):
    left = list(deeds)

    def model(step):
        deed = left.pop() if left else 100
        if deed == "raises":
            raise ValueError
        if deed == "not sent":
            raise tbc.NotSent
        if deed == "silent":
            return {}
        usage = {"input_tokens": deed if isinstance(deed, int) else 10, "output_tokens": 5}
        return {"usage": usage, "usd": None if isinstance(deed, int) else deed}

    return Executor("m:f", model)


def booked(manager, axis):
    return sum(account["consumed"] for account in manager.report(axis=axis).values())


@settings(max_examples=150, deadline=None)
@given(
    ASKED, st.sampled_from([HOUSE, V1]), st.none() | st.lists(DEEDS, max_size=6), st.integers(1_000, 30_000)
)
def test_a_run_ends_within_its_limits_and_its_record_is_what_was_booked(asked, policy, deeds, tokens):
    async def within():
        manager = tbc.BudgetManager(max_tokens=tokens, max_usd="1")
        executor = None if deeds is None else callable_of(deeds)
        async with client_of(make_service(lambda name: manager, policy=policy, executor=executor)) as client:
            answer = await client.post("/agent/run", json=asked)
            found = answer.json()
            if answer.status_code != 200:
                assert found["error"]["code"] == "invalid_graph"
                assert booked(manager, "tokens") == 0
                return
            kept = (await client.get(f"/runs/{found['run_id']}")).json()
        assert kept == found
        steps = found["steps"]
        assert not manager.ledger.open_holds
        assert sum(step["cost"] for step in steps) == found["total_cost"] == booked(manager, "usd")
        assert sum(step["tokens"] for step in steps) == found["total_tokens"] == booked(manager, "tokens")
        assert (found["status"] == "completed") == (found["stop"] is None)
        assert found["budget"] <= 10**9
        assert len(steps) <= asked["max_steps"]
        assert [step["number"] for step in steps] == list(range(1, len(steps) + 1))
        for before, after in itertools.pairwise(steps):
            assert before["next"] == after["step"]
        for step in steps:
            assert step["visit"] <= asked["max_visits"]
            assert step["hold_id"] is not None or step["cost"] == step["tokens"] == 0
            assert (step["problem"] is None) == (step["outcome"] in ("done", "hard_stop"))
        if executor is None:  # what is simulated keeps what was promised
            assert found["total_cost"] <= found["budget"]
            assert found["total_latency_ms"] <= asked.get("max_latency_ms", found["total_latency_ms"])
            assert not any(step["overrun"] or step["estimated"] for step in steps)

    asyncio.run(within())
