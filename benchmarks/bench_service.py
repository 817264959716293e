"""Holds over HTTP beside a bare echo: two servers, the same uvicorn, the same load, in turns.

The rival is a Starlette application that parses the same JSON and sends it back: what HTTP and JSON cost in
Python. One process sends the load over plain sockets, one request in flight on each, and reads every answer;
an answer other than 200 or 201 ends the run. Servers and load share the machine, so the absolute figures are
those of one server on what the load leaves over.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
from contextlib import ExitStack
from time import perf_counter
from typing import Any

from benchmarks.timing import judged, median_ratio

__all__ = ["run"]

_CONNECTIONS = 32
_ECHO = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def echo(request):
    return JSONResponse(await request.json())

uvicorn.run(
    Starlette(routes=[Route("/v1/holds", echo, methods=["POST"])]),
    port=int(sys.argv[1]), access_log=False, server_header=False, log_level="warning",
)
"""
_BODY = json.dumps({"agent_name": "writer", "tokens": 100, "operation": "draft"}).encode()


def run(*, smoke: bool, seed: int = 20260101, huge: bool = False) -> dict[str, Any]:
    """Return requests per second of both, and the ratio; `seed` is not used, nothing is drawn."""
    rounds, seconds = (1, 0.2) if smoke else (11, 2.0)
    load = os.getloadavg()
    rates: dict[str, list[float]] = {"echo": [], "tbc": []}
    waits: list[float] = []
    with ExitStack() as running:
        ports = {"echo": _echo(running), "tbc": _tbc(running)}
        for turn in range(-1, rounds):
            for name, port in ports.items():
                rate, slow = _load(port, seconds)
                if turn >= 0:
                    rates[name].append(rate)
                if turn >= 0 and name == "tbc":
                    waits.append(slow)
    ratio = median_ratio(rates["tbc"], rates["echo"])
    row = {
        "question": f"one hold = one POST, books in memory, {_CONNECTIONS} connections, beside a JSON echo",
        **{f"{name} requests/s": round(statistics.median(each)) for name, each in rates.items()},
        "tbc p99 ms": round(statistics.median(waits) * 1000, 1),
        "tbc / echo": round(ratio, 3),
        **judged(ratio, ">= 0.5"),
    }
    return {"rows": [row], "load before and after": [*load, *os.getloadavg()]}


# -- the two servers -----------------------------------------------------------------------------------------


def _echo(running: ExitStack) -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    _start(running, [sys.executable, "-c", _ECHO, str(port)])
    end = perf_counter() + 20
    while perf_counter() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            continue
        return port
    raise RuntimeError("the echo did not start")


def _tbc(running: ExitStack) -> int:
    command = [
        *(sys.executable, "-m", "tbc", "serve", "--port", "0"),
        *("--rate", "1e9", "--open-holds", str(10**9)),
    ]
    server = _start(running, command)
    assert server.stdout is not None
    said = server.stdout.readline()
    found = re.search(r":(\d+)\s*$", said)
    if found is None:
        raise RuntimeError(f"tbc serve said {said!r}")
    port = int(found[1])
    _ask(port, b"/v1/agents", json.dumps({"agent_name": "writer", "max_tokens": 10**15}).encode())
    return port


def _start(running: ExitStack, command: list[str]) -> subprocess.Popen[str]:
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    running.callback(_stop, server)
    return server


def _stop(server: subprocess.Popen[str]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(20)
    finally:
        server.kill()
        if server.stdout is not None:
            server.stdout.close()


# -- the load ------------------------------------------------------------------------------------------------


def _request(path: bytes, body: bytes) -> bytes:
    return (
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (path, len(body), body)
    )


def _ask(port: int, path: bytes, body: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(_request(path, body))
        _check(connection.recv(65536))


def _check(answer: bytes) -> None:
    if answer[9:12] not in (b"200", b"201"):
        raise RuntimeError(f"a request failed: {answer[:500]!r}")


def _load(port: int, seconds: float) -> tuple[float, float]:
    """Return requests per second, and the seconds that 99 of 100 take at most."""
    request = _request(b"/v1/holds", _BODY)
    taken: list[float] = []
    with selectors.DefaultSelector() as waiting, ExitStack() as opened:
        sent: dict[socket.socket, float] = {}
        parts: dict[socket.socket, bytes] = {}
        for _ in range(_CONNECTIONS):
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiting.register(connection, selectors.EVENT_READ)
            sent[connection], parts[connection] = perf_counter(), b""
            connection.sendall(request)
        begin = perf_counter()
        end = begin + seconds
        while (now := perf_counter()) < end:
            for key, _ in waiting.select(1.0):
                connection = key.fileobj  # type: ignore[assignment]
                answer = parts[connection] + connection.recv(65536)
                if not _is_whole(answer):
                    parts[connection] = answer
                    continue
                _check(answer)
                now = perf_counter()
                taken.append(now - sent[connection])
                sent[connection], parts[connection] = now, b""
                connection.sendall(request)
    taken.sort()
    return len(taken) / (now - begin), taken[len(taken) * 99 // 100]


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(found) and length is not None and len(body) >= int(length[1])
