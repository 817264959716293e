"""Runs over HTTP: every step is chosen, held and settled, and its record says so."""

from __future__ import annotations

import asyncio

import pytest

import tbc
from tbc.error_codes import ERROR_CODES
from tbc.errors import InvalidContractError
from tbc.policy import V1, Policy, Rule, Tier
from tbc.service import Limits
from tbc.service.executors import Executor, resolve
from tests.service_client import client_of, make_service


def run(test=None, /, **how):
    """Run a coroutine function that is given a client of a service and the service."""
    if test is None:
        return lambda test: run(test, **how)

    def tested():
        async def within():
            service = make_service(**{"policy": V1, **how})
            async with client_of(service) as client:
                await test(client, service)

        asyncio.run(within())

    tested.__name__ = test.__name__
    return tested


async def start(client, key=None, **body):
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post("/agent/run", json={"goal": "the goal", **body}, headers=headers)


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


def books_of(service):
    (pool,) = service.pools.open.values()
    return pool.manager


def column(answer, name):
    return [step[name] for step in answer["steps"]]


@run
async def test_the_fixed_loop_plans_executes_and_summarizes(client, service):
    done = (await start(client, budget=0.08, priority=1, latency_sla_ms=200)).json()
    assert (done["status"], done["stop"]) == ("completed", None)
    assert column(done, "step") == ["plan", "execute", "summarize"]
    assert column(done, "model_tier") == ["standard", "standard", "cheap"]
    assert column(done, "cost_usd") == ["0.015", "0.015", "0.005"]
    assert (done["total_cost_usd"], done["total_latency_ms"]) == ("0.035", 480)
    assert column(done, "cause") == [
        "planning_standard_sla_constrained",
        "execution_standard",
        "summarize_forced_cheap",
    ]
    assert all(step["decision"].startswith(step["cause"]) for step in done["steps"])
    assert column(done, "left_usd") == ["0.065", "0.05", "0.045"]
    manager = books_of(service)
    assert manager.report(axis="usd")["runs"]["consumed"] == done["total_cost"]
    assert manager.report()["runs"]["consumed"] == done["total_tokens"] == sum(column(done, "tokens"))
    assert not manager.ledger.open_holds


@run
async def test_runs_leave_one_account_behind_however_many_there_are(client, service):
    for _ in range(5):
        assert (await start(client, budget=1)).status_code == 200
    agents = (await client.get("/v1/agents")).json()["agents"]
    assert [(each["agent_name"], each["closed"]) for each in agents] == [("runs", False)]


@run
async def test_the_money_is_that_of_the_agent_that_is_named(client, service):
    terms = {"agent_name": "writer", "priority": 7, "max_usd": "0.50", "max_tokens": 9_000}
    await client.post("/v1/agents", json=terms)
    done = (await start(client, agent_name="writer")).json()
    assert done["budget_usd"] == "5" and done["status"] == "completed"  # its own, and what the market lends
    assert books_of(service).report(axis="usd")["writer"]["consumed"] == done["total_cost"]
    assert code(await start(client, agent_name="nobody")) == (404, "unknown_agent")
    await client.post("/v1/agents/writer/close")
    assert code(await start(client, agent_name="writer")) == (403, "agent_closed")
    assert len((await client.get("/runs")).json()["runs"]) == 1  # what was never begun has no record


@run
async def test_a_hard_stop_ends_a_run_with_what_was_done(client, service):
    done = (await start(client, budget=0.016, latency_sla_ms=200)).json()
    assert (done["status"], done["stop"]["reason"], done["stop"]["cause"]) == (
        "stopped",
        "hard_stop",
        "budget_exhausted",
    )
    assert column(done, "outcome") == ["done", "hard_stop"]
    assert done["steps"][1]["model_tier"] == "" and done["steps"][1]["cost"] == 0
    assert done["result"] == "simulated plan result"


@run
async def test_a_step_that_costs_more_than_is_left_is_not_made(client, service):
    done = (await start(client, budget=0.02, latency_sla_ms=500)).json()
    assert done["stop"]["reason"] == "budget" and done["total_cost"] == 0
    (step,) = done["steps"]
    assert step["cause"] == "planning_premium_allowed" and step["problem"]["code"] == "budget_exceeded"
    assert "costs up to $0.03 with $0.02 left" in done["stop"]["message"]


@run(policy=None)
async def test_what_is_too_dear_is_degraded_by_a_policy_that_does_so(client, service):
    done = (await start(client, budget="0.001", graph="default")).json()
    assert column(done, "model_tier")[0] == "cheap" and "degraded_by_budget" in column(done, "cause")[0]


@run
async def test_the_policy_sees_what_the_books_have_left(client, service):
    await client.post("/v1/agents", json={"agent_name": "other", "priority": 9, "max_usd": "4.98"})
    done = (await start(client, budget=4)).json()
    assert done["budget_usd"] == "0.02"  # of $5 the other has $4.98, and matters more
    assert done["stop"]["reason"] == "budget"


@run
async def test_a_refusal_of_the_books_ends_a_run_with_the_decision(client, service):
    done = (await start(client, budget=1, input_tokens=15_000, max_output_tokens=4_000)).json()
    assert column(done, "outcome") == ["done", "refused"]
    refusal = done["steps"][1]["refusal"]
    assert refusal["verdict"] == "REFUSE" and refusal["requested"] == 19_000
    assert (done["stop"]["reason"], done["stop"]["cause"]) == ("refused", "budget_exhausted")
    metrics = (await client.get("/metrics")).text
    assert 'tbc_unmet_total{axis="tokens",priority="1"}' in metrics
    assert 'tbc_runs_total{status="stopped"} 1.0' in metrics


@run(policy=None)
async def test_the_latency_of_all_steps_is_bounded(client, service):
    done = (await start(client, max_latency_ms=660)).json()
    assert column(done, "latency_ms") == [450, 200, 0]
    assert (done["stop"]["reason"], done["stop"]["cause"]) == ("hard_stop", "latency_sla_unachievable")
    exactly = (await start(client, max_latency_ms=650)).json()
    assert (exactly["stop"]["reason"], exactly["total_latency_ms"]) == ("latency", 650)
    degraded = (await start(client, max_latency_ms=730)).json()
    assert degraded["status"] == "completed" and degraded["total_latency_ms"] == 730


def loop_graph(**condition):
    return {"entry": "execute", "nodes": {"execute": {"edges": [{"to": "execute", "condition": condition}]}}}


@run
async def test_a_cycle_ends_at_its_visit_limit(client, service):
    done = (await start(client, step_graph=loop_graph(always=True), max_visits=4)).json()
    assert (done["stop"]["reason"], len(done["steps"])) == ("visit_limit", 4)
    assert column(done, "visit") == [1, 2, 3, 4]
    short = (await start(client, step_graph=loop_graph(always=True), max_steps=2)).json()
    assert (short["stop"]["reason"], len(short["steps"])) == ("step_limit", 2)
    refused = loop_graph(on_refused=True)
    stopped = (await start(client, budget="0.001", step_graph=refused, max_visits=20)).json()
    assert stopped["status"] == "stopped" and column(stopped, "outcome") == ["refused"] * 20


@run
async def test_a_graph_goes_on_from_a_refusal_that_it_has_an_edge_for(client, service):
    graph = {
        "entry": "draft",
        "nodes": {
            "draft": {
                "step_type": "execute",
                "input_tokens": 50_000,
                "edges": [
                    {"to": "never", "condition": {"always": True}},
                    {"to": "short", "condition": {"on_refused": True}},
                ],
            },
            "short": {"step_type": "summarize", "input_tokens": 100, "max_output_tokens": 50},
            "never": {},
        },
    }
    done = (await start(client, step_graph=graph)).json()
    assert (done["status"], done["stop"]) == ("completed", None)
    assert list(zip(column(done, "step"), column(done, "outcome"), column(done, "next"), strict=True)) == [
        ("draft", "refused", "short"),
        ("short", "done", None),
    ]


@run
async def test_little_left_takes_the_short_way(client, service):
    long = (await start(client, graph="research", budget=1)).json()
    assert column(long, "step") == ["plan", "search", "execute", "validate", "summarize"]
    short = (await start(client, graph="research", budget="0.05", latency_sla_ms=500)).json()
    assert column(short, "step")[:2] == ["plan", "search"] and short["steps"][1]["next"] == "summarize"


@run
async def test_what_is_no_graph_is_422_with_every_path(client, service):
    graph = {"entry": "a", "nodes": {"b": {"edges": [{"to": "c"}]}}}
    refused = await start(client, step_graph=graph)
    assert code(refused) == (422, "invalid_graph")
    assert [path for path, _ in refused.json()["error"]["details"]["problems"]] == [
        "step_graph.entry",
        "step_graph.nodes.b.edges[0].to",
        "step_graph.nodes.b.edges[0].condition",
    ]
    both = await start(client, graph="default", step_graph=loop_graph(always=True))
    assert code(both) == (422, "invalid_request")
    for wrong in (
        {"graph": "mine"},
        {"max_visits": 0},
        {"goal": None},
        {"goal": "x" * 40_000},
        {"budget": -1},
    ):
        assert code(await start(client, **wrong)) == (422, "invalid_request"), wrong
    half = '{"goal": "\\ud800"}'
    answer = await client.post("/agent/run", content=half, headers={"Content-Type": "application/json"})
    assert code(answer) == (422, "invalid_request")


@run(policy=None)
async def test_the_same_seed_gives_the_same_steps(client, service):
    def same(answer):
        return [{**step, "hold_id": None, "left": None, "left_usd": None} for step in answer.json()["steps"]]

    one, two = same(await start(client, seed=7, budget=1)), same(await start(client, seed=7, budget=1))
    assert one == two
    assert same(await start(client, seed=8, budget=1)) != one


# -- keys and records


@run
async def test_a_key_finds_the_run_again(client, service):
    first = await start(client, "k", budget=1)
    assert (await start(client, "k", budget=1)).json() == first.json()
    assert code(await start(client, "k", budget=2)) == (409, "key_conflict")
    assert books_of(service).report(axis="usd")["runs"]["consumed"] == first.json()["total_cost"]


@run(limits=Limits(runs_kept=2))
async def test_a_run_whose_record_is_gone_is_not_made_again_under_its_key(client, service):
    first = await start(client, "k", budget=1)
    for _ in range(2):
        await start(client, budget="0.04")
    spent = books_of(service).report(axis="usd")["runs"]["consumed"]
    assert code(await start(client, "k", budget=1)) == (409, "run_forgotten")
    assert books_of(service).report(axis="usd")["runs"]["consumed"] == spent
    assert code(await client.get(f"/runs/{first.json()['run_id']}")) == (404, "unknown_run")


REFUSED_FIRST = {
    "entry": "a",
    "nodes": {
        "a": {
            "step_type": "execute",
            "input_tokens": 50_000,
            "edges": [{"to": "b", "condition": {"on_refused": True}}],
        },
        "b": {"step_type": "summarize", "input_tokens": 100, "max_output_tokens": 50},
    },
}


@run(limits=Limits(runs_kept=1))
async def test_nor_is_one_whose_first_step_held_nothing(client, service):
    for key, asked in (("goes on", {"step_graph": REFUSED_FIRST}), ("stopped", {"budget": 0})):
        first = (await start(client, key, **asked)).json()
        assert first["steps"][0]["hold_id"] is None
        await start(client, budget=0)  # pushes its record out
        await client.post("/v1/agents/(root)/top-up", json={"tokens": 100_000, "usd": "10"})
        spent = books_of(service).report(axis="usd")["runs"]["consumed"]
        again = await start(client, key, **asked)
        assert code(again) == (409, "run_forgotten")
        assert again.json()["error"]["details"]["run"] == first["run_id"]
        assert code(await start(client, key, seed=1, **asked)) == (409, "key_conflict")
        assert books_of(service).report(axis="usd")["runs"]["consumed"] == spent


@run
async def test_runs_at_once_under_one_key_are_one_run(client, service):
    answers = await asyncio.gather(*(start(client, "k", budget=1) for _ in range(5)))
    (made, *same) = [answer.json() for answer in answers if answer.status_code == 200]
    assert all(answer == made for answer in same)
    assert {code(answer) for answer in answers if answer.status_code != 200} <= {(409, "run_busy")}
    assert books_of(service).report(axis="usd")["runs"]["consumed"] == made["total_cost"]


@run(limits=Limits(runs_kept=5))
async def test_the_newest_are_kept_and_come_in_pages(client, service):
    made = [(await start(client, budget="0.04")).json()["run_id"] for _ in range(8)]
    seen, after = [], ""
    while after is not None:
        page = (await client.get(f"/runs?limit=2{after and '&after=' + after}")).json()
        seen += [each["run_id"] for each in page["runs"]]
        after = page["next"]
    assert seen == made[:-6:-1]
    assert (await client.get(f"/runs?after={made[0]}")).json() == {"runs": [], "next": None}
    whole = (await client.get(f"/runs/{made[-1]}")).json()
    assert len(whole["steps"]) == 1 and "the goal" not in str(whole)
    for wrong in ("run-1", "../x", "run-1-zzzzzzzz"):
        assert (await client.get(f"/runs?after={wrong}")).status_code == 422


# -- callables


def answer_of(**more):
    return {"output": "text", "usage": {"input_tokens": 700, "output_tokens": 90}, **more}


@run(policy=None, executor=Executor("house:model", lambda step: answer_of(output=[step.name, step.previous])))
async def test_a_callable_is_given_the_step_and_its_usage_is_booked(client, service):
    done = (await start(client, budget=1)).json()
    assert done["executor"] == "house:model"
    assert done["result"] == '["summarize", "[\\"execute\\", \\"[\\\\\\"plan\\\\\\", null]\\"]"]'
    assert column(done, "tokens") == [790, 790, 790] and column(done, "estimated") == [False] * 3
    manager = books_of(service)
    prices = [manager.prices.find(step["model"]) for step in done["steps"]]
    usage = tbc.Usage(input_tokens=700, output_tokens=90)
    assert column(done, "cost") == [price.cost(usage) for price in prices]


def test_an_async_callable_is_awaited_and_a_blocking_one_holds_nobody_up():
    entered, may_end = asyncio.Event(), asyncio.Event()

    async def model(step):
        entered.set()
        await may_end.wait()
        assert tbc.current_hold().agent_name == "runs"
        return answer_of()

    async def within():
        service = make_service(policy=V1, executor=Executor("m:f", model))
        async with client_of(service) as client:
            task = asyncio.create_task(start(client, "k", budget=1))
            async with asyncio.timeout(20):
                await entered.wait()
                (running,) = (await client.get("/runs")).json()["runs"]
                assert running["status"] == "running"
                assert code(await start(client, "k", budget=1)) == (409, "run_busy")
                may_end.set()
                assert (await task).json()["status"] == "completed"

    asyncio.run(within())


def test_blocking_callables_run_in_threads_beside_other_requests():
    import threading

    entered, may_end = threading.Event(), threading.Event()

    def model(step):
        entered.set()
        assert may_end.wait(20)
        assert tbc.current_hold().tokens == 1_500
        return answer_of()

    async def within():
        service = make_service(policy=V1, executor=Executor("m:f", model), limits=Limits(runs=1))
        async with client_of(service) as client:
            task = asyncio.create_task(start(client, budget=1))
            assert await asyncio.to_thread(entered.wait, 20)
            assert (await client.get("/health")).status_code == 200
            assert code(await start(client, budget=1)) == (429, "too_many_runs")
            may_end.set()
            assert (await task).json()["status"] == "completed"
            assert (await start(client, budget=1)).status_code == 200

    asyncio.run(within())


def raising(error):
    def model(step):
        if step.name == "execute":
            raise error
        return answer_of()

    return Executor("m:f", model)


@run(executor=raising(ValueError("sk-secret")))
async def test_a_callable_that_raises_fails_the_run_and_what_is_known_is_booked(client, service):
    done = await start(client, budget=1)
    assert done.status_code == 200 and "sk-secret" not in done.text
    found = done.json()
    assert found["status"] == "failed" and column(found, "outcome") == ["done", "failed"]
    assert found["stop"] == {
        "reason": "failed",
        "step": "execute",
        "cause": "step_raised",
        "message": "Step 'execute' raised ValueError.",
    }
    step = found["steps"][1]
    assert step["cause"] == "execution_standard"
    assert step["problem"] == {"code": "step_raised", "message": "Step 'execute' raised ValueError."}
    assert (step["tokens"], step["estimated"]) == (1_000, True) and step["cost_usd"] == "0.015"
    manager = books_of(service)
    assert manager.report()["runs"]["consumed"] == 790 + 1_000 and not manager.ledger.open_holds
    assert manager.report(axis="usd")["runs"]["consumed"] == found["total_cost"]


@pytest.mark.parametrize("kind", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("awaited", [True, False])
def test_a_callable_that_raises_what_ends_tasks_fails_its_own_step_alone(kind, awaited, caplog):
    secret = "-".join(["sk", "secret"])  # the log has the lines that it came through

    def blocking(step):
        if step.name == "execute":
            raise kind(secret)
        return answer_of()

    async def model(step):
        return blocking(step)

    @run(executor=Executor("m:f", model if awaited else blocking))
    async def ask(client, service):
        done = await start(client, "k", budget=1)
        assert done.status_code == 200 and "sk-secret" not in done.text
        found = done.json()
        assert (found["status"], column(found, "outcome")) == ("failed", ["done", "failed"])
        assert found["stop"]["message"] == f"Step 'execute' raised {kind.__name__}."
        assert column(found, "tokens") == [790, 1_000]
        assert (await start(client, "k", budget=1)).json() == found
        assert not books_of(service).ledger.open_holds

    ask()
    assert kind.__name__ in caplog.text and "sk-secret" not in caplog.text


def test_a_step_that_nobody_goes_on_with_is_closed():
    async def model(step):
        await asyncio.get_running_loop().create_future()

    async def begin():
        calling = Executor("m:f", model).call(None)
        calling.send(None)
        return calling

    asyncio.run(begin()).close()


@run(executor=raising(tbc.InvalidAmountError("prompt", "sk-secret", "a number")))
async def test_the_text_of_an_error_of_tbc_in_a_callable_is_neither_answered_nor_kept(client, service):
    done = await start(client, budget=1)
    stop = done.json()["stop"]
    assert (stop["cause"], stop["message"]) == (
        "invalid_amount",
        "Step 'execute' raised InvalidAmountError.",
    )
    assert "sk-secret" not in done.text + (await client.get(f"/runs/{done.json()['run_id']}")).text


CYCLE: list = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize("output", [{("a", 1): 2}, CYCLE])
def test_an_output_that_json_cannot_hold_does_not_lose_what_it_cost(output):
    @run(executor=Executor("m:f", lambda step: answer_of(output=output, usd="0.006")))
    async def ask(client, service):
        done = (await start(client, budget=1)).json()
        assert (done["status"], done["stop"]["cause"]) == ("failed", "result_not_kept")
        step = done["steps"][0]
        assert (step["cost_usd"], step["tokens"], step["estimated"]) == ("0.006", 790, False)
        assert books_of(service).report()["runs"]["consumed"] == 790

    ask()


@run(executor=Executor("m:f", lambda step: answer_of(usd="a dollar")))
async def test_a_price_that_is_none_does_not_lose_the_usage(client, service):
    done = (await start(client, budget=1)).json()
    assert (done["status"], done["stop"]["cause"]) == ("failed", "invalid_amount")
    assert (done["steps"][0]["tokens"], done["steps"][0]["cost_usd"]) == (790, "0.03")


@run(executor=raising(tbc.NotSent("sk-secret")))
async def test_what_was_not_sent_costs_nothing(client, service):
    done = await start(client, budget=1)
    assert done.json()["stop"]["cause"] == "not_sent" and "sk-secret" not in done.text
    assert done.json()["steps"][1]["cost"] == 0
    assert books_of(service).report()["runs"]["consumed"] == 790


@run(executor=Executor("m:f", lambda step: {"output": "paid for"}))
async def test_a_step_that_does_not_say_what_it_used_costs_all_that_was_held(client, service):
    done = (await start(client, budget=1)).json()
    assert (done["status"], done["stop"]["cause"]) == ("failed", "step_result")
    step = done["steps"][0]
    assert (step["tokens"], step["estimated"], step["output"]) == (1_500, True, "paid for")


@run(executor=Executor("m:f", lambda step: answer_of(usd="0.70")))
async def test_what_a_step_cost_beyond_its_hold_is_booked_and_ends_the_run(client, service):
    done = (await start(client, budget=1)).json()
    assert column(done, "cost_usd") == ["0.7", "0.7"]
    assert (done["stop"]["reason"], done["stop"]["cause"]) == ("budget", "budget_overrun")
    assert books_of(service).report(axis="usd")["runs"]["consumed"] == 1_400_000_000


@run(executor=raising(RuntimeError("x")))
async def test_a_graph_goes_on_from_a_failure_that_it_has_an_edge_for(client, service):
    graph = {
        "entry": "execute",
        "nodes": {
            "execute": {"edges": [{"to": "summarize", "condition": {"on_failed": True}}]},
            "summarize": {},
        },
    }
    done = (await start(client, step_graph=graph)).json()
    assert (done["status"], column(done, "outcome")) == ("completed", ["failed", "done"])


@run(executor=Executor("m:f", lambda step: answer_of(output="x" * 40_000)))
async def test_long_outputs_are_answered_and_not_kept(client, service):
    done = (await start(client, budget=1)).json()
    assert [len(each) for each in column(done, "output")] == [40_000] * 3 and done["outputs_kept"]
    kept = (await client.get(f"/runs/{done['run_id']}")).json()
    assert column(kept, "output") == [None] * 3 and kept["outputs_kept"] is False
    assert column(kept, "cost") == column(done, "cost")


def test_latencies_of_callables_are_learned():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()

    def model(step):
        clock.now += 0.3
        return answer_of()

    one = Policy(
        name="one", tiers=[Tier("only", 80, cost_usd="0.001")], rules=[Rule(tier="only", reason="always")]
    )

    async def within():
        service = make_service(policy=one, executor=Executor("m:f", model), clock=clock)
        async with client_of(service) as client:
            graph = loop_graph(always=True)
            asked = {"latency_sla_ms": 100, "max_visits": 25, "input_tokens": 100, "max_output_tokens": 100}
            first = (await start(client, step_graph=graph, **asked)).json()
            assert len(first["steps"]) == 21 and first["stop"]["cause"] == "latency_sla_unachievable"
            assert service.tier_policy.observed() == {"only": 301}

    asyncio.run(within())


@run
async def test_what_is_cut_off_at_the_end_of_the_server_is_answered_in_the_envelope(client, service):
    entered = asyncio.Event()

    async def waits(operation):
        entered.set()
        await asyncio.Event().wait()

    await client.get("/v1/report")
    (pool,) = service.pools.open.values()
    pool.run = waits
    asked = asyncio.create_task(client.get("/v1/report"))
    async with asyncio.timeout(20):
        await entered.wait()
        assert service.at_work == 1
        service.drain()
        asked.cancel()
        assert code(await asked) == (503, "cut_off")
        await service.settled()
    assert service.at_work == 0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("json", "package.module:function"),
        ("no_such_module_here:f", "No module named"),
        ("json:nothing.at.all", "has no 'nothing.at.all'"),
        ("math:pi", "cannot be called"),
    ],
)
def test_what_cannot_be_called_is_refused_at_the_start(spec, said):
    with pytest.raises(InvalidContractError, match=said):
        resolve(spec)


def test_the_codes_of_runs_are_in_the_table():
    assert {"invalid_graph", "run_forgotten", "policy_away", "policy_differs"} <= {
        each.code for each in ERROR_CODES.values()
    }
