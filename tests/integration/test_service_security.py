"""Who may ask a service, for what, and how much; what is written down of it, and what is not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import tbc
from tbc.cli import run as run_command
from tbc.clock import ManualClock
from tbc.errors import StoreAwayError, StoreError, StoreFullError, StoreUnknownError
from tbc.service import Limits, Pools, Service, create_app, problems
from tbc.service.bearers import Bearers, TokenFile
from tbc.service.door import is_loopback
from tests.service_client import client_of, make_service, streaming


class World:
    """A service with a token of every kind."""

    def __init__(self, path, **limits):
        self.file = TokenFile(str(path / "tokens.json"))
        self.clock = ManualClock(1_000.0)
        self.texts = {}
        self.names = {}
        for pool in ("one", "two"):
            for scopes in ("read", "spend", "admin"):
                self.make(pool, scopes)
        self.service = Service(
            Pools(lambda name: tbc.BudgetManager(max_tokens=1_000)),
            limits=Limits(**limits),
            bearers=Bearers(self.file, self.clock),
            clock=self.clock,
        )

    def make(self, pool, scopes, **how):
        token, text = self.file.create(pool, scopes.split(","), now=self.clock(), **how)
        self.texts[pool, scopes], self.names[pool, scopes] = text, token.name
        return text

    async def ask(self, client, method, path, pool="one", scope="admin", **how):
        headers = {"Authorization": f"Bearer {self.texts[pool, scope]}", **how.pop("headers", {})}
        return await client.request(method, path, headers=headers, **how)


def run(test, **limits):
    def tested(tmp_path):
        async def within():
            world = World(tmp_path, **limits)
            async with client_of(world.service) as client:
                await test(client, world)

        asyncio.run(within())

    tested.__name__ = test.__name__
    return tested


def bounded(**limits):
    return lambda test: run(test, **limits)


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


@run
async def test_every_operation_on_a_pool_asks_for_a_token_and_for_its_scope(client, world):
    values = {"{agent_name}": "a", "{hold_id}": "1"}
    asked = [each for each in world.service.operations if each.scope is not None]
    assert {each.scope for each in asked} == {"read", "spend", "admin"}
    for operation in asked:
        path = operation.path
        for name, value in values.items():
            path = path.replace(name, value)
        nobody = await client.request(operation.method, path)
        assert code(nobody) == (401, "unauthorized") and nobody.headers["www-authenticate"] == "Bearer"
        for scope in {"read", "spend", "admin"} - {operation.scope}:
            refused = await world.ask(client, operation.method, path, scope=scope)
            assert code(refused) == (403, "scope_missing"), (operation.name, scope)
    assert (await client.get("/health")).status_code == 200
    document = (await client.get("/openapi.json")).json()
    assert document["paths"]["/v1/holds"]["post"]["security"] == [{"token": []}]
    assert "security" not in document["paths"]["/health"]["get"]


@run
async def test_what_is_not_the_whole_token_is_none(client, world):
    text = world.texts["one", "read"]
    assert (await world.ask(client, "GET", "/v1/report", scope="read")).status_code == 200
    wrong = [text[:-1], text + "x", text.swapcase(), text.partition("_")[2], "", "tbc_", f"tbc_{'0' * 8}_x"]
    wrong += [f"{text[:11]}_{text[12:]}", hashlib.sha256(text.encode()).hexdigest()]
    answers = [await client.get("/v1/report", headers={"Authorization": f"Bearer {each}"}) for each in wrong]
    answers.append(await client.get("/v1/report", headers={"Authorization": f"Basic {text}"}))
    answers.append(await client.get(f"/v1/report?token={text}"))
    assert {(each.status_code, each.text) for each in answers} == {(401, answers[0].text)}


@run
async def test_tokens_expire_and_are_revoked_and_made_while_the_server_runs(client, world):
    world.make("one", "spend,read", seconds=100)
    world.clock.advance(2)

    async def asked(scope):
        return (await world.ask(client, "GET", "/v1/report", scope=scope)).status_code

    assert await asked("spend,read") == 200  # the server has seen it
    world.file.revoke(world.names["one", "read"], now=world.clock())
    world.clock.advance(2)
    assert await asked("read") == 401
    world.clock.advance(99)
    assert await asked("spend,read") == 401


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_stream_ends_with_its_token(how, tmp_path):
    async def within():
        world = World(tmp_path)
        text = world.make("one", "read", seconds=100)
        world.clock.advance(2)  # the server has seen it
        app = create_app(world.service)
        async with client_of(world.service) as client, asyncio.timeout(60):
            bearer = [(b"authorization", f"Bearer {text}".encode())]
            await world.ask(client, "POST", "/v1/agents", json={"agent_name": "a", "max_tokens": 10})
            async with (
                streaming(app, "since=0", bearer) as stream,
                streaming(app, "since=0", bearer) as other,
            ):
                for each in (stream, other):
                    assert (await each.next())[0] == "entry"
                if how == "revoked":
                    world.file.revoke(world.names["one", "read"], now=world.clock())
                world.clock.advance(2 if how == "revoked" else 100)
                await world.ask(client, "POST", "/v1/agents", json={"agent_name": "z", "max_tokens": 10})
                await asyncio.gather(stream.task, other.task)
                said = [stream.chunks.get_nowait() for _ in range(stream.chunks.qsize())]
                assert said[-1] == {"type": "http.response.body", "body": b""}
                assert b'"z"' not in b"".join(each["body"] for each in said)

    asyncio.run(within())


@pytest.mark.parametrize("broken", ["content", "mode", "folder"])
def test_while_its_file_cannot_be_read_no_token_is_valid_and_nobody_is_told_where_it_is(
    broken, tmp_path, caplog
):
    place = tmp_path / "kept"

    async def within():
        world = World(place)
        path = place / "tokens.json"
        kept = path.read_text()

        async def asked():
            world.clock.advance(2)
            return await world.ask(client, "GET", "/v1/report", scope="read")

        async with client_of(world.service) as client:
            assert (await asked()).status_code == 200
            if broken == "content":
                path.write_text(kept + "x")
            elif broken == "mode":
                path.chmod(0o620)
            else:
                place.rename(tmp_path / "moved")
                place.write_text("")
            refused = [await asked(), await asked(), await client.get("/v1/report")]
            assert {code(each) for each in refused} == {(503, "tokens_unreadable")}
            assert not [each for each in refused if str(place) in each.text]
            if broken == "folder":
                place.unlink()
                (tmp_path / "moved").rename(place)
            path.write_text(kept)
            path.chmod(0o600)
            assert (await asked()).status_code == 200

    asyncio.run(within())
    said = [each.getMessage() for each in caplog.records if each.name == "tbc.service"]
    assert len(said) == 1 and str(place) in said[0]


WRONG = {
    "a name that is none": {"name": 5},
    "a name that cannot be sent": {"name": "\ud800"},
    "another pool's path": {"pool": "../x"},
    "no pool": {"pool": None},
    "scopes in one word": {"scopes": "read"},
    "a scope that is none": {"scopes": ["read", "all"]},
    "scopes in scopes": {"scopes": [["read"]]},
    "a digest that is none": {"digest": 5},
    "a digest of other letters": {"digest": "\u00f6" * 64},
    "a day": {"expires_at": "2027-01-01"},
    "a yes": {"expires_at": False},
    "never": {"expires_at": float("nan")},
    "a number of no end": {"revoked_at": 10**400},
    "no time": {"created_at": "now"},
    "a note that is none": {"note": 5},
    "another word": {"scope": "read"},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_no_token_is_valid_while_one_of_them_is_not_as_tokens_are_written(wrong, tmp_path, caplog):
    async def within():
        world = World(tmp_path)
        path = tmp_path / "tokens.json"
        kept = path.read_text()
        rows = json.loads(kept)["tokens"]
        rows[-1] |= WRONG[wrong]
        async with client_of(world.service) as client:
            assert (await world.ask(client, "GET", "/v1/report", scope="read")).status_code == 200
            path.write_text(json.dumps({"tokens": rows}))
            world.clock.advance(2)
            for _ in range(2):  # also between two looks at the file
                answer = await world.ask(client, "GET", "/v1/report", scope="read")
                assert code(answer) == (503, "tokens_unreadable")
            path.write_text(kept)
            world.clock.advance(2)
            assert (await world.ask(client, "GET", "/v1/report", scope="read")).status_code == 200

    asyncio.run(within())
    said = [each.getMessage() for each in caplog.records if each.name == "tbc.service"]
    assert len(said) == 1 and "no file of tokens" in said[0]


@run
async def test_the_pool_comes_from_the_token_alone(client, world):
    await world.ask(client, "POST", "/v1/agents", json={"agent_name": "a", "max_tokens": 10})
    assert code(await world.ask(client, "GET", "/v1/agents/a", pool="two", scope="read")) == (
        404,
        "unknown_agent",
    )
    report = (await world.ask(client, "GET", "/v1/report", pool="two", scope="read")).json()
    assert report["pool"] == "two" and len(report["agents"]) == 1


@bounded(rate=2.0)
async def test_a_token_that_asks_too_often_waits_and_the_others_do_not(client, world):
    statuses = [(await world.ask(client, "GET", "/v1/report", scope="read")).status_code for _ in range(6)]
    assert statuses == [200] * 4 + [429] * 2
    limited = await world.ask(client, "GET", "/v1/report", scope="read")
    assert code(limited) == (429, "rate_limited") and limited.json()["error"]["retryable"] is True
    assert int(limited.headers["retry-after"]) >= 1
    assert (await world.ask(client, "GET", "/v1/report", pool="two", scope="read")).status_code == 200
    world.clock.advance(0.5)
    assert (await world.ask(client, "GET", "/v1/report", scope="read")).status_code == 200


@bounded(open_holds=3)
async def test_open_holds_of_a_pool_are_bounded(client, world):
    await world.ask(client, "POST", "/v1/agents", json={"agent_name": "a", "max_tokens": 10})
    asked = {"agent_name": "a", "tokens": 1}
    holds = [await world.ask(client, "POST", "/v1/holds", scope="spend", json=asked) for _ in range(4)]
    assert [each.status_code for each in holds] == [200, 200, 200, 429]
    assert code(holds[3]) == (429, "too_many_open_holds")
    await world.ask(client, "POST", f"/v1/holds/{holds[0].json()['hold_id']}/void", scope="spend")
    assert (await world.ask(client, "POST", "/v1/holds", scope="spend", json=asked)).status_code == 200


@bounded(open_holds=1)
async def test_a_hold_is_found_under_its_key_also_when_no_more_may_be_open(client, world):
    await world.ask(client, "POST", "/v1/agents", json={"agent_name": "a", "max_tokens": 10})
    asked = {"json": {"agent_name": "a", "tokens": 1}, "scope": "spend"}
    first, again, other = [
        await world.ask(client, "POST", "/v1/holds", headers={"Idempotency-Key": key}, **asked)
        for key in ("k", "k", "other")
    ]
    assert again.status_code == 200 and again.json()["hold_id"] == first.json()["hold_id"]
    assert code(other) == (429, "too_many_open_holds")


def test_what_has_expired_makes_room_for_another_hold():
    async def ask():
        clock = ManualClock()
        service = make_service(
            lambda name: tbc.BudgetManager(max_tokens=1_000, clock=clock), limits=Limits(open_holds=2)
        )
        async with client_of(service) as client:
            await client.post("/v1/agents", json={"agent_name": "a", "max_tokens": 100})
            asked = {"agent_name": "a", "tokens": 1, "expires_s": 1}
            statuses = []
            for seconds in (0, 0, 0, 2, 0, 0):
                clock.advance(seconds)
                statuses.append((await client.post("/v1/holds", json=asked)).status_code)
            assert statuses == [200, 200, 429, 200, 200, 429]

    asyncio.run(ask())


def test_holds_that_are_about_to_be_opened_in_a_store_count_as_open(tmp_path):
    pytest.importorskip("apsw")
    from tbc.stores.opening import open_store

    async def ask():
        store = open_store(f"sqlite:///{tmp_path}/books.db")
        pools = Pools(lambda name: tbc.BudgetManager(max_tokens=1_000, store=store, pool=name), store)
        service = Service(pools, limits=Limits(open_holds=5))
        async with client_of(service) as client:
            await client.post("/v1/agents", json={"agent_name": "a", "max_tokens": 100})
            asked = [client.post("/v1/holds", json={"agent_name": "a", "tokens": 1}) for _ in range(40)]
            statuses = [each.status_code for each in await asyncio.gather(*asked)]
            assert (statuses.count(200), statuses.count(429)) == (5, 35)
        pools.close()

    asyncio.run(ask())


def test_holds_out_of_leases_are_bounded_too():
    from tbc.leased import LeasedManager
    from tbc.service.pools import OpenPool
    from tbc.service.problems import Problem

    async def ask():
        clock = ManualClock()
        shared = tbc.BudgetManager(max_tokens=1_000, clock=clock)
        shared.register_agent("writer", max_tokens=500)
        with LeasedManager(shared, tbc.Lease(share=0.5, seconds=30), clock=clock) as worker:
            pool = OpenPool("default", worker, None)
            first = worker.hold("writer", 1)
            pool.number(first)
            async with pool.room(3):
                pool.number(worker.hold("writer", 1, expires_s=5))
            with pytest.raises(Problem, match="3 holds of this pool"):  # two, and the lease
                async with pool.room(3):
                    pass
            first.void()
            async with pool.room(3):
                pool.number(worker.hold("writer", 1))
            clock.advance(6)
            async with pool.room(3):
                pass

    asyncio.run(ask())


# -- pages that a browser here shows ---------------------------------------------------------------------


def test_names_that_only_lead_here_are_refused():
    async def ask():
        service = make_service(here_only=True)
        async with client_of(service) as client:
            for host in (
                "localhost",
                "localhost:8787",
                "127.0.0.1:1",
                "127.0.0.2",
                "[::1]:8787",
                "LOCALHOST",
            ):
                assert (await client.get("/health", headers={"Host": host})).status_code == 200
                assert (await client.get("/openapi.json", headers={"Host": host})).status_code == 200
            for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8787", "0.0.0.0", ""):
                assert code(await client.get("/v1/report", headers={"Host": host})) == (421, "wrong_host")
                for path in ("/health", "/openapi.json", "/nothing"):
                    assert code(await client.get(path, headers={"Host": host})) == (421, "wrong_host")

    asyncio.run(ask())


def test_pages_of_other_origins_can_do_nothing():
    async def ask():
        service = make_service(here_only=True)
        async with client_of(service) as client:
            for origin in ("https://evil.example", "null", "http://localhost:1", "http://localhost.evil"):
                headers = {"Origin": origin}
                assert code(await client.post("/v1/agents/a/close", headers=headers)) == (403, "other_origin")
                assert code(await client.get("/openapi.json", headers=headers)) == (403, "other_origin")
                preflight = await client.options("/v1/holds", headers=headers)
                assert preflight.status_code == 405
                assert not [name for name in preflight.headers if name.startswith("access-control")]
            assert (await client.get("/v1/report", headers={"Origin": "http://localhost"})).status_code == 200

    asyncio.run(ask())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_addresses_of_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_addresses_that_others_reach(host):
    assert not is_loopback(host)


# -- the file of tokens ----------------------------------------------------------------------------------


def test_the_file_has_no_secret_and_is_its_owners_alone(tmp_path):
    file = TokenFile(str(tmp_path / "deep" / "tokens.json"))
    token, text = file.create("team", {"spend"}, now=0.0, note="ci")
    content = (tmp_path / "deep" / "tokens.json").read_text()
    assert text not in content and text.split("_", 2)[2] not in content
    assert token.digest == hashlib.sha256(text.encode()).hexdigest() and len(text) > 43
    assert stat.S_IMODE(os.stat(file.path).st_mode) == 0o600
    assert file.create("team", {"spend"}, now=0.0)[1] != text
    assert [each.note for each in file.tokens()] == ["ci", ""]


def test_a_file_that_others_may_write_or_that_is_no_file_of_tokens_is_refused(tmp_path):
    file = TokenFile(str(tmp_path / "tokens.json"))
    assert file.tokens() == []
    file.create("team", {"spend"}, now=0.0)
    os.chmod(file.path, 0o620)
    with pytest.raises(tbc.InvalidContractError, match="others may write"):
        file.tokens()
    os.chmod(file.path, 0o600)
    for content in ("", "[]", '{"tokens": [{}]}', '{"tokens": 1}', "[" * 100_000):
        (tmp_path / "tokens.json").write_text(content)
        with pytest.raises(tbc.InvalidContractError, match="no file of tokens"):
            file.tokens()


def test_tokens_are_made_for_pools_and_scopes_that_can_be(tmp_path):
    file = TokenFile(str(tmp_path / "tokens.json"))
    for pool, scopes in (("../x", {"read"}), ("", {"read"}), ("a", {"all"}), ("a", set())):
        with pytest.raises(tbc.InvalidAmountError):
            file.create(pool, scopes, now=0.0)
    with pytest.raises(tbc.InvalidAmountError, match="token list"):
        file.revoke("nobody", now=0.0)
    assert file.tokens() == []
    token, _ = file.create("a", {"read"}, now=0.0)
    assert file.revoke(token.name, now=5.0).revoked_at == file.revoke(token.name, now=9.0).revoked_at == 5.0


def tbc_command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tbc", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def test_tokens_from_the_command_line(tmp_path):
    path = str(tmp_path / "tokens.json")
    made = tbc_command(
        "token", "create", "--pool", "team", "--scopes", "read,admin", "--days", "9", TBC_TOKENS=path
    )
    text = made.stdout.strip()
    name = text.split("_")[1]
    assert made.returncode == 0 and text.startswith("tbc_")
    shown = tbc_command("token", "list", "--tokens", path)
    assert name in shown.stdout and "read, admin" in shown.stdout and "valid" in shown.stdout
    assert text not in shown.stdout
    assert tbc_command("token", "revoke", name, "--tokens", path).stdout == f"revoked {name}\n"
    assert "revoked" in tbc_command("token", "list", "--tokens", path).stdout
    wrong = tbc_command("token", "revoke", "nobody", "--tokens", path)
    assert wrong.returncode == 2 and "token list" in wrong.stderr


CERTIFICATE = ("--certificate", "chain.pem", "--private-key", "key.pem")
ASKED = ["--tokens FILE", "--certificate FILE with --private-key FILE", "--behind-proxy", "need each other"]
OPEN = {
    (): ASKED[:3],
    ("--tokens", "tokens.json"): ASKED[1:3],
    ("--behind-proxy",): ASKED[:1],
    CERTIFICATE: ASKED[:1],
    ("--tokens", "tokens.json", *CERTIFICATE[:2]): ASKED[3:],
    ("--tokens", "tokens.json", *CERTIFICATE[2:]): ASKED[3:],
}


@pytest.mark.parametrize("given", OPEN)
def test_a_server_that_others_reach_does_not_start_where_anybody_may_ask_or_listen(
    given, certified, monkeypatch, capsys
):
    monkeypatch.chdir(certified)
    assert run_command(["serve", "--host", "0.0.0.0", "--port", "0", *given]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert [each for each in ASKED if each in said] == OPEN[given], said


@pytest.mark.parametrize("chain", ["missing.pem", "key.pem", "chain.pem"])
def test_a_certificate_that_cannot_be_used_is_refused_at_the_start(chain, certified, monkeypatch, capsys):
    monkeypatch.chdir(certified)
    key = "locked.pem" if chain == "chain.pem" else "key.pem"
    assert run_command(["serve", "--port", "0", "--certificate", chain, "--private-key", key]) == 2
    assert "cannot be used" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_with_a_certificate_https_is_served(host, certified, monkeypatch):
    command = [sys.executable, "-m", "tbc", "serve", "--host", host, "--port", "0", *CERTIFICATE]
    TokenFile(str(certified / "tokens.json")).create("p", {"read"}, now=0.0)
    command += ["--tokens", "tokens.json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(tbc.__file__).parents[1])}
    with subprocess.Popen(
        command, cwd=certified, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            where = server.stdout.readline().split()[-1]
            scheme, _, address = where.partition("://")
            assert scheme == "https"
            context = ssl.create_default_context(cafile=str(certified / "chain.pem"))
            asked = f"https://localhost:{address.rpartition(':')[2]}/v1/report"
            assert httpx.get(asked, verify=context, timeout=60).status_code == 401
        finally:
            server.terminate()


@pytest.mark.parametrize("days", ["nan", "-1", "0", "1e300", "inf"])
def test_a_token_expires_within_a_life(days, tmp_path):
    refused = tbc_command("token", "create", "--tokens", str(tmp_path / "tokens.json"), "--days", days)
    assert refused.returncode == 2 and "days must be" in refused.stderr
    assert not (tmp_path / "tokens.json").exists()


# -- what is written down --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [StoreError, StoreAwayError, StoreUnknownError, StoreFullError])
def test_where_the_store_is_and_who_asks_it_is_said_to_the_log_alone(kind, caplog, monkeypatch):
    monkeypatch.setattr(problems._Last, "text", "")

    def make(name):
        raise kind("postgresql://bob@db.internal/books", "no answer from /var/run/s.5432 for bob", "Check db")

    async def within():
        async with client_of(make_service(make)) as client:
            return [await client.get("/v1/report") for _ in range(3)]

    answers = asyncio.run(within())
    for answer in answers:
        error = answer.json()["error"]
        assert error["details"] == {} and error["hint"] and "store" in error["message"]
        assert not [each for each in ("bob", "internal", "/var", "Check") if each in answer.text]
    assert "bob@db.internal" in caplog.text and "/var/run" in caplog.text
    if answers[0].status_code != 500:
        assert caplog.text.count("bob@db.internal") == 1, "the same is not said for every request"


def test_no_token_key_or_text_of_a_request_is_logged(tmp_path, caplog):
    caplog.set_level("DEBUG")

    def broken(name):
        raise RuntimeError("no books")

    async def ask():
        world = World(tmp_path)
        world.service.pools = Pools(broken)
        async with client_of(world.service) as client:
            body = {"agent_name": "a", "operation": "a secret prompt"}
            answer = await world.ask(
                client, "POST", "/v1/holds", scope="spend", json=body, headers={"Idempotency-Key": "s3cret"}
            )
            assert answer.status_code == 500
            return world.texts["one", "spend"]

    text = asyncio.run(ask())
    logged = "".join(
        record.getMessage() + str(record.exc_text)
        for record in caplog.records
        if record.name.startswith("tbc")
    )
    assert "a request failed" in logged
    assert not [each for each in (text, text.split("_", 2)[2], "a secret prompt", "s3cret") if each in logged]


def test_headers_that_are_no_text_are_refused_not_crashed_on():
    sent = []

    async def ask(headers):
        async def receive():
            return {"type": "http.request", "body": b'{"agent_name": "a"}'}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/holds",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers],
        }
        await create_app(make_service())(scope, receive, send)

    for headers in (
        [(b"idempotency-key", b"\xff\x00")],
        [(b"content-length", b"x")],
        [(b"content-length", b"9" * 90)],
    ):
        asyncio.run(ask(headers))
    assert [each["status"] for each in sent[::2]] == [422, 413, 413]
    assert all("error" in json.loads(each["body"]) for each in sent[1::2])
