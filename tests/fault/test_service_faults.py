"""A real server that is stopped, starved and flooded: nobody's money is lost, and others are served."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import tbc

WITHIN_S = 60


@contextmanager
def served(*arguments):
    """Yield a server process and its port; it must end well."""
    command = [sys.executable, "-m", "tbc", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            yield server, int(server.stdout.readline().rpartition(":")[2])
            server.send_signal(signal.SIGTERM)
            _, said = server.communicate(timeout=WITHIN_S)
            assert server.returncode == 0 and "tbc has stopped" in said, said
        finally:
            server.kill()


def request(method, path, body=None, **headers):
    """Return a request as bytes."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + content


async def answer(reader):
    """Return status and body of an answer, or ``None`` if the connection ended before."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        return int(head.split()[1]), json.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def ask(port, *what, **headers):
    async with asyncio.timeout(WITHIN_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request(*what, **headers))
            return await answer(reader)
        finally:
            writer.close()


AGENT = {"agent_name": "writer", "max_tokens": 100_000}


def test_a_server_stopped_with_calls_in_flight_answers_or_leaves_keys_that_find_their_answer(
    tmp_path,
):
    url = f"sqlite:///{tmp_path}/books.db"
    body = {"agent_name": "writer", "tokens": 7}

    async def hundred(server, port):
        await ask(port, "POST", "/v1/agents", AGENT)
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        for number, (_, writer) in enumerate(streams):
            writer.write(request("POST", "/v1/holds", body, Idempotency_Key=f"k{number}"))
        first = await answer(streams[0][0])
        server.send_signal(signal.SIGTERM)
        answers = [first, *await asyncio.gather(*(answer(reader) for reader, _ in streams[1:]))]
        for _, writer in streams:
            writer.close()
        return answers

    with served("--store", url, "--max-tokens", "200000") as (server, port):
        answers = asyncio.run(hundred(server, port))
    answered = {f"k{n}": found for n, found in enumerate(answers) if found is not None and found[0] == 200}
    assert len(answered) >= 1
    with tbc.BudgetManager(store=url) as manager:
        kept = manager.statement("writer").accounts["tokens"][0].held // 7
        assert kept >= len(answered)
        for number in range(100):
            hold = manager.hold("writer", 7, key=f"k{number}")
            if f"k{number}" in answered:
                assert hold.hold_id == answered[f"k{number}"][1]["hold_id"]
        assert manager.statement("writer").accounts["tokens"][0].held == 700  # once each


def test_slow_huge_and_deep_requests_and_a_thousand_idle_connections_leave_others_served():
    async def flood(port):
        await ask(port, "POST", "/v1/agents", AGENT)
        idle = []
        try:
            while len(idle) < 1_000:
                idle += [await asyncio.open_connection("127.0.0.1", port)]
            for _, writer in idle[:50]:
                writer.write(b"POST /v1/holds HTTP/1.1\r\nHost: localhost\r\n")  # a head that does not end
            for _, writer in idle[50:100]:  # a body that does not come
                writer.write(
                    request("POST", "/v1/holds", AGENT).replace(b"Content-Length: ", b"Content-Length: 9")
                )
            huge = request("POST", "/v1/holds", {"agent_name": "a" * 10**7})
            for _, writer in idle[100:105]:
                writer.write(huge)
            for reader, _ in idle[100:105]:
                assert (await answer(reader))[0] == 413
            deep = {"agent_name": "writer", "tokens": json.loads("[" * 400 + "]" * 400)}
            assert (await ask(port, "POST", "/v1/holds", deep))[0] == 400
            held = await ask(port, "POST", "/v1/holds", {"agent_name": "writer", "tokens": 7})
            assert held[0] == 200
            assert (await ask(port, "GET", "/health"))[1] == {"status": "healthy"}
        finally:
            for _, writer in idle:
                writer.transport.abort()

    with served("--max-tokens", "200000") as (_, port):
        asyncio.run(flood(port))


def test_a_log_that_nobody_reads_holds_nobody_up(tmp_path):
    (tmp_path / "house.py").write_text("def step(step):\n    raise ValueError\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(Path(tbc.__file__).parents[1])])
    command = [sys.executable, "-m", "tbc", "serve", "--port", "0", "--max-usd", "50"]
    command += ["--executor", "house:step"]
    run = {"goal": "x", "graph": "default"}

    async def many(port):
        for _ in range(10):
            answers = await asyncio.gather(*(ask(port, "POST", "/agent/run", run) for _ in range(20)))
            assert [found["status"] for _, found in answers] == ["failed"] * 20

    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as server:
        try:
            port = int(server.stdout.readline().decode().rpartition(":")[2])
            fcntl.fcntl(server.stderr, fcntl.F_SETPIPE_SZ, 4_096)
            asyncio.run(many(port))
            server.send_signal(signal.SIGTERM)
            assert server.wait(WITHIN_S) == 0
            assert b"raised ValueError" in server.stderr.read()
        finally:
            server.kill()


def test_an_open_stream_does_not_keep_the_server_from_ending():
    async def begun(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET", "/v1/events"))
        async with asyncio.timeout(WITHIN_S):
            await reader.readuntil(b"retry: 1000")
        return reader, writer

    async def within():
        with served("--max-tokens", "100", "--grace-s", "50") as (server, port):
            reader, writer = await begun(port)
            server.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                await reader.read()  # it ends
            writer.close()

    asyncio.run(within())


SOON = """
import os, signal, tbc
import tbc.service.server as server
from tbc.service import Pools, Service
log_aside = server.log_aside
def signalled(fd):
    os.kill(os.getpid(), signal.SIGTERM)
    return log_aside(fd)
server.log_aside = signalled
service = Service(Pools(lambda name: tbc.BudgetManager()))
server.serve(service, "127.0.0.1", 0, grace_s=1, started=print, goodbye="ended")
"""


def test_a_signal_that_comes_while_the_server_begins_ends_it():
    command = [sys.executable, "-c", SOON]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=True)
    assert done.stderr == "ended\n"


STUCK = """
import threading, time, tbc, tbc.service.app
from concurrent.futures import ThreadPoolExecutor
from tbc.service import Pools, Service
from tbc.service.server import serve
tbc.service.app._CLOSE_S = 0.1
waits = ThreadPoolExecutor().submit(time.sleep, 1e6)
class Stuck(Pools):
    def close(self): waits.result()
serve(Service(Stuck(lambda name: tbc.BudgetManager())), "127.0.0.1", 0, grace_s=1,
    started=lambda where: print(where, flush=True))
"""


def test_a_server_ends_also_when_its_store_does_not_answer():
    command = [sys.executable, "-c", STUCK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline().startswith("http")
            server.send_signal(signal.SIGTERM)
            _, said = server.communicate(timeout=WITHIN_S)
            assert server.returncode == 1 and "the store did not answer at the end" in said
        finally:
            server.kill()


SLOW = STUCK.replace(
    "waits.result()", "time.sleep(1)\n    said = 0\n    def told(self): self.said += 1; return self.said"
).replace("waits = ", "# ")


def test_a_store_that_is_slow_is_waited_for_as_long_as_it_goes_on():
    command = [sys.executable, "-c", SLOW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline().startswith("http")
            server.send_signal(signal.SIGTERM)
            assert server.communicate(timeout=WITHIN_S)[1] == "" and server.returncode in (0, -signal.SIGTERM)
        finally:
            server.kill()


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_a_server_says_where_it_is(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError:
        pytest.skip(f"there is no {host} here")
    command = [sys.executable, "-m", "tbc", "serve", "--port", "0", "--host", host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        where = server.stdout.readline().split()[-1]
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=WITHIN_S)
    assert where.startswith("http://[::1]:" if ":" in host else "http://127.0.0.1:")
