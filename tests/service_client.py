"""A client of the service that needs no socket: requests as ASGI messages, streams as they come."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import httpx

import tbc
from tbc.service import Pools, Service, create_app


def make_service(make=None, **how):
    """Return a service over books in memory."""
    return Service(Pools(make or (lambda name: tbc.BudgetManager(max_tokens=20_000, max_usd="5"))), **how)


def client_of(service, **headers):
    """Return an HTTP client of the service."""
    transport = httpx.ASGITransport(app=create_app(service))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


class Stream:
    """An open stream of server-sent events."""

    def __init__(self):
        self.chunks = asyncio.Queue()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.left = asyncio.Event()
        self.status = None
        self.headers = {}
        self._text = ""

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            await self.may_go_on.wait()  # a reader that takes nothing
            await self.chunks.put(message)

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def next(self):
        """Return the next event as (name, id, data)."""
        while True:
            while "\n\n" not in self._text:
                async with asyncio.timeout(20):
                    self._text += (await self.chunks.get())["body"].decode()
            block, _, self._text = self._text.partition("\n\n")
            if block.startswith(("retry", ":")):
                continue
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            return fields["event"], fields.get("id"), json.loads(fields["data"])


@asynccontextmanager
async def streaming(app, query="", headers=()):
    """Yield an open stream; it is left at the end."""
    stream = Stream()
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/events",
        "raw_path": b"/v1/events",
        "root_path": "",
        "scheme": "http",
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), *headers],
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
    }
    stream.task = asyncio.create_task(app(scope, stream.receive, stream.send))
    try:
        yield stream
    finally:
        stream.left.set()
        stream.may_go_on.set()
        await stream.task
