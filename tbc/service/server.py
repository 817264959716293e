"""A server process: it says where it listens, and ends by finishing what is in flight."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

import uvicorn

from tbc.service.app import Service, create_app
from tbc.service.connections import allow_many, close_idle, connection_of
from tbc.service.log import log_aside

__all__ = ["make_server", "serve"]

#: How many of uvicorn's ticks, ten a second, are between two looks at idle connections.
_TICKS: Final = 5


class _Server(uvicorn.Server):
    """Tells the service first when it is to end, so that its streams do not keep the server waiting."""

    def __init__(self, config: uvicorn.Config, service: Service, started: Callable[[str], object]) -> None:
        super().__init__(config)
        self._service = service
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port, *_ = self.servers[0].sockets[0].getsockname()
            scheme = "https" if self.config.is_ssl else "http"
            self._started(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS == 0:
            close_idle(self, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.drain()
        looking = asyncio.create_task(self._look_on())
        try:
            await super().shutdown(sockets)
        finally:
            looking.cancel()

    async def _look_on(self) -> None:
        """Look at idle connections at the end, too, where nothing ticks."""
        while True:
            await asyncio.sleep(_TICKS / 10)
            close_idle(self, asyncio.get_running_loop().time(), ending=True)


def serve(
    service: Service,
    host: str,
    port: int,
    *,
    grace_s: float,
    started: Callable[[str], Any],
    goodbye: str | None = None,
    certificate: tuple[str, str] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT comes, then finish what is in flight and close the books.

    Parameters
    ----------
    service : Service
        What is served.
    host, port : str, int
        Where; port 0: any that is free.
    grace_s : float
        Seconds that calls in flight have to finish.
    started : callable
        Told the address, once it is served.
    goodbye : str, optional
        What is written to standard error at the end.
    certificate : tuple of str, optional
        The files of a certificate and of its key: https is served, not http.
    """
    allow_many(service.limits.connections)
    server = make_server(service, host, port, grace_s=grace_s, started=started, certificate=certificate)

    # Before the server handles it itself, and when it raises it again at its end.
    def end(*_: object) -> None:
        server.should_exit = True

    signal.signal(signal.SIGTERM, end)
    log = log_aside(2)
    try:
        server.run()
        if goodbye is not None:
            log.say(goodbye)
    finally:
        log.close()
        if service.stuck:
            os._exit(1)  # Python would wait for the threads that wait for the store


def make_server(
    service: Service,
    host: str,
    port: int,
    *,
    grace_s: float,
    started: Callable[[str], Any],
    certificate: tuple[str, str] | None = None,
) -> uvicorn.Server:
    """Return the server that `serve` runs; whoever runs it in a thread ends it by `should_exit`."""
    chain, key = certificate or (None, None)
    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nobody asks from where a request came
        log_level="error",
        lifespan="on",
        http=connection_of(service.limits),
        ws="none",
        ssl_certfile=chain,
        ssl_keyfile=key,
        timeout_keep_alive=math.ceil(service.limits.idle_s),
        timeout_graceful_shutdown=grace_s,  # type: ignore[arg-type]  # it is waited for, whole or not
    )
    return _Server(config, service, started)
