"""`tbc mcp` as a client meets it: real processes, real pipes, real sockets, the SDK's own client."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import apsw
import pytest
from mcp import Client, MCPError, StdioServerParameters, stdio_client

import tbc
from tbc.cli import run
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-W", "error", "-m", "tbc", "mcp"]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "HOME": os.environ.get("HOME", "/")}
MODES = ["auto", "legacy"]


@asynccontextmanager
async def over_stdio(*arguments, errlog=sys.stderr, mode="auto"):
    parameters = StdioServerParameters(
        command=COMMAND[0], args=[*COMMAND[1:], *map(str, arguments)], env=ENVIRONMENT
    )
    async with Client(stdio_client(parameters, errlog=errlog), mode=mode) as client:
        yield client


async def call(client, tool, **arguments):
    """Return the structured content of an answer; it is the same as its text, and agrees with its flag."""
    result = await client.call_tool(tool, arguments)
    (text,) = result.content
    assert json.loads(text.text) == result.structured_content
    assert result.is_error is not result.structured_content["success"]
    return result.structured_content


@contextmanager
def started(*arguments, stdin=subprocess.PIPE):
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def over_http(*arguments):
    """Yield a server and its address."""
    with started("--http", "--port", 0, *arguments, stdin=subprocess.DEVNULL) as process:
        found = re.fullmatch(r"tbc mcp: (http://\S+/mcp)\n", process.stderr.readline())
        assert found, process.stderr.read()
        yield process, found[1]


class ByHand:
    """A client that writes lines and reads lines."""

    def __init__(self, process):
        self._process = process
        self._last = 0

    def ask(self, method, **params):
        self._last += 1
        self.say(method, id=self._last, **params)
        answer = json.loads(self._process.stdout.readline())
        assert answer["id"] == self._last
        return answer

    def say(self, method, *, id=None, **params):
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        if id is not None:
            message["id"] = id
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def greet(self):
        self.ask(
            "initialize",
            protocolVersion="2025-06-18",
            capabilities={},
            clientInfo={"name": "by hand", "version": "0"},
        )
        self.say("notifications/initialized")

    def call(self, tool, **arguments):
        return self.ask("tools/call", name=tool, arguments=arguments)["result"]


# -- the protocol --------------------------------------------------------------------------------------------


async def meet(client):
    """Ask what the server is and what it can do, and let it do some of it."""
    assert (client.server_info.name, client.server_info.version) == ("tbc", tbc.__version__)
    assert "hold" in client.instructions
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert len(tools) == 9
    assert all(tool.input_schema["type"] == tool.output_schema["type"] == "object" for tool in tools.values())
    assert tools["decide"].annotations.read_only_hint and not tools["hold"].annotations.read_only_hint
    await call(client, "register_agent", agent_id="low", max_tokens=1000)
    await call(client, "register_agent", agent_id="high", priority=5, max_tokens=100)
    hold = (await call(client, "hold", agent_id="high", tokens=600))["hold"]
    ended = await call(client, "settle", hold_id=hold["hold_id"], tokens=150)
    assert ended["settlement"]["booked"]["tokens"]["amount"] == 150
    refused = await call(client, "hold", agent_id="high", tokens=5000)
    assert refused["error"]["code"] == "budget_exhausted"
    assert refused["error"]["decision"]["verdict"] == "REFUSE"
    bad = await call(client, "hold", agent_id="high", tokens=-1)
    assert bad["error"]["details"]["problems"] == [["tokens", "must be >= 0, not -1"]]
    assert (await call(client, "get_budget_snapshot"))["total_consumed"] == 150
    with pytest.raises(MCPError, match="Unknown tool"):
        await client.call_tool("reset_everything", {})


@pytest.mark.parametrize("mode", MODES)
def test_over_stdio(mode):
    async def session():
        async with over_stdio(mode=mode) as client:
            await meet(client)

    asyncio.run(session())


@pytest.mark.parametrize("mode", MODES)
def test_over_http(mode):
    async def session(url):
        async with Client(url, mode=mode) as client:
            await meet(client)

    with over_http() as (process, url):
        assert url.startswith("http://127.0.0.1:")
        asyncio.run(session(url))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")


def test_clients_over_http_share_the_books():
    async def spend(url, number):
        async with Client(url) as client:
            for turn in range(5):
                await call(client, "record_spend", agent_id="a", input_tokens=1, key=f"{number} {turn}")

    async def all_of_them(url):
        async with Client(url) as client:
            await call(client, "register_agent", agent_id="a")
            await asyncio.gather(*(spend(url, number) for number in range(4)))
            return await call(client, "get_remaining_budget", agent_id="a")

    with over_http() as (_, url):
        assert asyncio.run(all_of_them(url))["agent"]["consumed"] == 20


def test_many_calls_at_once_over_one_connection_do_not_overspend(tmp_path):
    async def session():
        async with over_stdio("--store", tmp_path / "books.db") as client:
            await call(client, "register_agent", agent_id="a", max_tokens=100)
            asked = (call(client, "hold", agent_id="a", tokens=10, key=str(n)) for n in range(30))
            answers = await asyncio.gather(*asked)
            agent = (await call(client, "get_remaining_budget", agent_id="a"))["agent"]
            return [each["success"] for each in answers], agent

    granted, agent = asyncio.run(session())
    assert sum(granted) == 10
    assert (agent["held"], agent["remaining"]) == (100, 0)


# -- the transcript of the page ------------------------------------------------------------------------------


def missing(shown, real, path="answer"):
    """Return where what is shown differs from what is real, which may have more keys."""
    if isinstance(shown, dict) and isinstance(real, dict):
        found = [missing(each, real.get(key), f"{path}.{key}") for key, each in shown.items()]
    elif isinstance(shown, list) and isinstance(real, list) and len(shown) == len(real):
        found = [missing(*pair, f"{path}[{n}]") for n, pair in enumerate(zip(shown, real, strict=True))]
    else:
        return [] if shown == real else [f"{path}: {shown!r}, not {real!r}"]
    return [each for part in found for each in part]


def test_the_comparison_with_a_transcript_sees_differences():
    real = {"a": 1, "b": [{"c": 2, "d": 3}]}
    assert missing({"b": [{"c": 2}]}, real) == []
    for wrong in ({"a": 2}, {"e": None, "a": "1"}, {"b": [{"c": 3}]}, {"b": []}, {"b": {"c": 2}}):
        assert missing(wrong, real) != []


def test_the_transcript_of_the_page_is_true():
    page = (ROOT / "docs" / "mcp.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```transcript\n(.*?)```", page, flags=re.DOTALL)
    lines = block.splitlines()
    assert len(lines) >= 10

    async def session():
        async with over_stdio() as client:
            for asked, shown in zip(lines[::2], lines[1::2], strict=True):
                _, tool, arguments = asked.split(" ", 2)
                assert (asked[0], shown[:2]) == (">", "< ")
                real = await call(client, tool, **json.loads(arguments))
                assert missing(json.loads(shown[2:]), real) == [], asked

    asyncio.run(session())


def test_the_page_lists_every_tool_and_argument():
    from tbc.mcp.tools import TOOLS

    page = (ROOT / "docs" / "mcp.md").read_text(encoding="utf-8")
    for name, tool in TOOLS.items():
        (takes,) = re.findall(rf"^\| `{name}` \|(.*?)\|", page, flags=re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", takes)) == set(tool.takes["properties"]), name


# -- books that outlive it -----------------------------------------------------------------------------------


def test_books_in_a_store_outlive_the_server_and_keys_find_their_answers(tmp_path):
    place = tmp_path / "books.db"

    async def first():
        async with over_stdio("--store", place, "--pool", "p", "--max-tokens", 500) as client:
            await call(client, "register_agent", agent_id="a", max_tokens=400)
            await call(client, "record_spend", agent_id="a", input_tokens=30, key="s")
            refused = await call(client, "hold", agent_id="a", tokens=900, key="too much")
            return (await call(client, "hold", agent_id="a", tokens=50, key="h"))["hold"], refused["error"]

    async def second(hold, refused):
        async with over_stdio("--store", place, "--pool", "p") as client:
            assert (await call(client, "hold", agent_id="a", tokens=50, key="h"))["hold"]["hold_id"] == hold
            assert (await call(client, "hold", agent_id="a", tokens=900, key="too much"))["error"] == refused
            await call(client, "record_spend", agent_id="a", input_tokens=30, key="s")
            await call(client, "settle", hold_id=hold, tokens=20)
            return (await call(client, "get_remaining_budget", agent_id="a"))["agent"]

    hold, refused = asyncio.run(first())
    agent = asyncio.run(second(hold["hold_id"], refused))
    assert (agent["consumed"], agent["held"], agent["remaining"]) == (50, 0, 350)
    with tbc.BudgetManager(store=f"sqlite:///{place}", pool="p") as manager:
        assert manager.report()["a"]["consumed"] == 50


def test_two_servers_share_a_store(tmp_path):
    place = tmp_path / "books.db"

    async def session():
        async with over_stdio("--store", place) as one, over_stdio("--store", place) as other:
            await call(one, "register_agent", agent_id="a", max_tokens=100)
            hold = (await call(one, "hold", agent_id="a", tokens=80))["hold"]
            refused = await call(other, "hold", agent_id="a", tokens=30)
            ended = await call(other, "settle", hold_id=hold["hold_id"], tokens=10)
            again = await call(one, "settle", hold_id=hold["hold_id"], tokens=10)
            return refused["error"]["code"], ended["settlement"]["repeated"], again["settlement"]["repeated"]

    assert asyncio.run(session()) == ("budget_busy", False, True)


def test_a_store_that_vanishes_is_an_error_of_the_tool(tmp_path):
    place = tmp_path / "books.db"
    with started("--store", place) as process:
        client = ByHand(process)
        client.greet()
        client.call("register_agent", agent_id="a")
        for file in tmp_path.iterdir():
            file.unlink()
        result = client.call("record_spend", agent_id="a", input_tokens=1)
        assert result["isError"]
        assert result["structuredContent"]["error"]["code"].startswith("store_")


def test_while_a_call_waits_for_the_store_others_are_answered(tmp_path):
    place = tmp_path / "books.db"
    with started("--store", place) as process:
        client = ByHand(process)
        client.greet()
        client.call("register_agent", agent_id="a")
        with closing(apsw.Connection(str(place))) as another:
            another.execute("BEGIN IMMEDIATE")
            arguments = {"agent_id": "a", "input_tokens": 1}
            client.say("tools/call", id="waits", name="record_spend", arguments=arguments)
            client.ask("ping")
            another.execute("ROLLBACK")
        answer = json.loads(process.stdout.readline())
        assert answer["id"] == "waits"
        assert answer["result"]["structuredContent"]["success"]


# -- how it ends ---------------------------------------------------------------------------------------------


def is_let_go(place):
    """Return whether no process has the store open: the log of SQLite is merged at the last closing."""
    return not Path(f"{place}-wal").exists()


def one_call(process):
    client = ByHand(process)
    client.greet()
    assert not client.call("register_agent", agent_id="a")["isError"]


def test_the_end_of_input_ends_the_server_and_closes_the_store(tmp_path):
    place = tmp_path / "books.db"
    with started("--store", place) as process:
        one_call(process)
        assert not is_let_go(place)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
    assert is_let_go(place)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
@pytest.mark.parametrize("http", [False, True], ids=["stdio", "http"])
def test_a_signal_ends_the_server_and_closes_the_store(tmp_path, number, http):
    place = tmp_path / "books.db"
    if http:
        with over_http("--store", place) as (process, url):
            asyncio.run(_register(url))
            process.send_signal(number)
            assert process.wait(timeout=20) == 0
    else:
        with started("--store", place) as process:
            one_call(process)
            process.send_signal(number)
            assert process.wait(timeout=20) == 0
    assert is_let_go(place)


async def _register(url):
    async with Client(url) as client:
        await call(client, "register_agent", agent_id="a")


def test_a_client_that_is_killed_takes_the_server_with_it(tmp_path):
    place = tmp_path / "books.db"
    code = f"""
        import json, subprocess, sys, time
        server = subprocess.Popen({[*COMMAND, "--store", str(place)]!r}, stdin=-1, stdout=-1, text=True)
        who = {{"name": "doomed", "version": "0"}}
        how = {{"protocolVersion": "2025-06-18", "capabilities": {{}}, "clientInfo": who}}
        ask = {{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": how}}
        server.stdin.write(json.dumps(ask) + chr(10))
        server.stdin.flush()
        server.stdout.readline()
        print(server.pid, flush=True)
        time.sleep(1000)
    """
    source = "\n".join(line[8:] for line in code.splitlines())
    client = subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT
    )
    try:
        server = int(client.stdout.readline())
        assert not is_let_go(place)
    finally:
        client.kill()
        client.communicate()
    until(
        lambda: (
            not Path(f"/proc/{server}/cmdline").exists() or not Path(f"/proc/{server}/cmdline").read_bytes()
        )
    )
    assert is_let_go(place)


# -- what is not said ----------------------------------------------------------------------------------------


def test_nothing_of_a_request_is_in_the_log():
    with started() as process:
        client = ByHand(process)
        client.greet()
        client.call("record_spend", agent_id="hunter2", input_tokens="hunter2", hunter2="hunter2")
        client.call("hold", agent_id="hunter2", tokens=1)
        client.ask("tools/call", name="hunter2", arguments={})
        client.ask("tools/call", name=["hunter2"], arguments="hunter2")
        client.say("notifications/cancelled", requestId={"hunter2": 1})
        client.say("hunter2/hunter2", id=99)
        process.stdout.readline()
        process.stdin.write("hunter2, no JSON\n")
        client.ask("ping")
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "hunter2" not in err
    assert out == ""


def test_a_head_over_http_is_bounded():
    with over_http() as (_, url):
        port = int(url.split(":")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nX: ")
            with suppress(ConnectionError):  # it may be closed before all of it was sent
                connection.sendall(b"a" * 1_000_000)
                assert connection.recv(12) in (b"HTTP/1.1 400", b"")


def test_a_web_page_cannot_call_over_http():
    import httpx

    def post(url, **headers):
        body = {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {}}
        accept = {"Accept": "application/json, text/event-stream"}
        return httpx.post(url, json=body, headers={**accept, **headers}).status_code

    with over_http() as (_, url):
        assert post(url, Origin="https://evil.example") == 403
        assert post(url, Host="evil.example") == 421


@pytest.mark.parametrize(("package", "extra"), [("mcp", "mcp"), ("uvicorn", "mcp,serve")])
def test_without_the_extra_it_says_what_to_install(package, extra):
    code = f"import sys; sys.modules[{package!r}] = None; from tbc.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "mcp"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | ENVIRONMENT,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f'The tbc command needs {package}. Install it with:  pip install "tbc[{extra}]"\n'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--http", "--host", "0.0.0.0"], "nothing here asks who calls"),
        (["--pool", "p"], "Name one with --store"),
        (["--max-usd", "much"], "max_usd must be"),
        (["--store", "redis://x"], "sqlite:///"),
    ],
)
def test_what_cannot_be_served_is_said_on_standard_error(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # the command sets up the log of its process
    assert run(["mcp", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
