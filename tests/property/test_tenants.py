"""Two tenants of one service: whatever one asks, the books of the other stay as they are, byte for byte."""

from __future__ import annotations

import asyncio
import json
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

import tbc
from tbc.service import Pools, Service
from tbc.service.bearers import Bearers, TokenFile
from tests.service_client import client_of

NAMES = st.sampled_from(["a", "b", "(root)", "secret"])
NUMBERS = st.integers(1, 12)
AMOUNTS = st.integers(0, 300)
KEYS = st.sampled_from([None, "k1", "k2", "theirs"])
#: Stands for the path of a run of the other tenant, which has a new name in every world.
THEIR_RUN = "/runs/theirs"


def asking():
    """Return the strategy of a request: method, path, body."""
    return st.one_of(
        st.tuples(
            st.just("POST"),
            st.just("/v1/agents"),
            st.fixed_dictionaries({"agent_name": st.sampled_from("ab"), "max_tokens": AMOUNTS}),
        ),
        st.tuples(
            st.just("POST"),
            st.just("/v1/holds"),
            st.fixed_dictionaries({"agent_name": NAMES, "tokens": AMOUNTS}),
        ),
        st.tuples(st.just("POST"), st.just("/v1/decide"), st.fixed_dictionaries({"agent_name": NAMES})),
        st.tuples(
            st.just("POST"),
            st.builds("/v1/holds/{}/{}".format, NUMBERS, st.sampled_from(["settle", "extend"])),
            st.fixed_dictionaries({"tokens": AMOUNTS}),
        ),
        st.tuples(
            st.just("POST"),
            st.one_of(
                st.builds("/v1/holds/{}/void".format, NUMBERS), st.builds("/v1/agents/{}/close".format, NAMES)
            ),
            st.none(),
        ),
        st.tuples(
            st.just("POST"),
            st.builds("/v1/agents/{}/{}".format, NAMES, st.sampled_from(["top-up", "usage"])),
            st.fixed_dictionaries({"tokens": AMOUNTS}),
        ),
        st.tuples(
            st.just("PATCH"),
            st.builds("/v1/agents/{}".format, NAMES),
            st.fixed_dictionaries({"priority": st.integers(1, 9)}),
        ),
        st.tuples(
            st.just("POST"),
            st.just("/v1/rebalance"),
            st.fixed_dictionaries({"tokens": st.dictionaries(NAMES, AMOUNTS, max_size=3)}),
        ),
        st.tuples(
            st.just("POST"),
            st.just("/agent/run"),
            st.fixed_dictionaries({"goal": st.just("x"), "agent_name": NAMES, "input_tokens": AMOUNTS}),
        ),
        st.tuples(
            st.just("GET"),
            st.one_of(
                st.sampled_from(["/v1/report", "/v1/entries", "/v1/agents", "/runs", THEIR_RUN]),
                st.builds("/runs/run-{}-0123abcd".format, NUMBERS),
                st.builds("/v1/holds/{}".format, NUMBERS),
                st.builds("/v1/agents/{}".format, NAMES),
            ),
            st.none(),
        ),
    )


async def everything(ask, pool):
    """Return all that a tenant sees, but for the time."""
    report = (await ask(pool, "GET", "/v1/report")).json()
    del report["at"]
    entries = (await ask(pool, "GET", "/v1/entries?limit=1000")).json()
    return json.dumps([report, entries, (await ask(pool, "GET", "/runs")).json()])


def make_world(folder):
    file = TokenFile(f"{folder}/tokens.json")
    texts = {pool: file.create(pool, ["read", "spend", "admin"], now=0.0)[1] for pool in ("mine", "theirs")}
    bearers = Bearers(file, lambda: 0.0)
    service = Service(Pools(lambda name: tbc.BudgetManager(max_tokens=3_000)), bearers=bearers)
    return service, texts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(asking(), KEYS), max_size=12))
def test_nothing_of_one_tenant_is_seen_or_moved_by_the_other(requests):
    async def within():
        with tempfile.TemporaryDirectory() as folder:
            service, texts = make_world(folder)
        async with client_of(service) as client:

            async def ask(pool, method, path, body=None, key=None):
                headers = {"Authorization": f"Bearer {texts[pool]}"}
                if key is not None:
                    headers["Idempotency-Key"] = key
                return await client.request(method, path, json=body, headers=headers)

            for name in ("a", "secret", "only-theirs"):
                terms = {"agent_name": name, "max_tokens": 700, "priority": 424_242}
                assert (await ask("theirs", "POST", "/v1/agents", terms)).status_code == 200
            held = await ask("theirs", "POST", "/v1/holds", {"agent_name": "secret", "tokens": 5}, "theirs")
            assert held.status_code == 200
            run = {"goal": "x", "agent_name": "only-theirs", "max_output_tokens": 10, "input_tokens": 10}
            theirs = (await ask("theirs", "POST", "/agent/run", run, "theirs-too")).json()
            assert theirs["status"] == "completed"
            before = await everything(ask, "theirs")
            for (method, path, body), key in requests:
                path = path.replace(THEIR_RUN, f"/runs/{theirs['run_id']}")
                answer = await ask("mine", method, path, body, key)
                assert answer.status_code < 500
                assert "424242" not in answer.text and "only-theirs" not in answer.text
            assert await everything(ask, "theirs") == before
            again = await ask("theirs", "POST", "/v1/holds", {"agent_name": "secret", "tokens": 5}, "theirs")
            assert again.json()["hold_id"] == held.json()["hold_id"]

    asyncio.run(within())


def test_what_is_another_tenants_is_answered_as_what_is_nobodys():
    async def within():
        with tempfile.TemporaryDirectory() as folder:
            service, texts = make_world(folder)
        async with client_of(service) as client:
            headers = {pool: {"Authorization": f"Bearer {text}"} for pool, text in texts.items()}
            await client.post(
                "/v1/agents", json={"agent_name": "xxxx", "max_tokens": 9}, headers=headers["theirs"]
            )
            for _ in range(3):
                asked = {"agent_name": "xxxx", "tokens": 1}
                number = (await client.post("/v1/holds", json=asked, headers=headers["theirs"])).json()[
                    "hold_id"
                ]
            run = await client.post("/agent/run", json={"goal": "x"}, headers=headers["theirs"])
            run_id = run.json()["run_id"]
            for theirs, nobodys in (
                (f"/v1/holds/{number}", "/v1/holds/99"),
                ("/v1/agents/xxxx", "/v1/agents/yyyy"),
                (f"/runs/{run_id}", "/runs/run-7-00000000"),
            ):
                one, other = [await client.get(path, headers=headers["mine"]) for path in (theirs, nobodys)]
                assert one.status_code == other.status_code == 404
                known, unknown = theirs.rpartition("/")[2], nobodys.rpartition("/")[2]
                assert one.text.replace(known, "?") == other.text.replace(unknown, "?")

    asyncio.run(within())
