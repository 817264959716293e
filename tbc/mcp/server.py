"""The server: the tools over stdio or streamable HTTP, with the official SDK.

Nothing but the protocol goes to standard output. The log goes to standard error, and says what went wrong and
where, never with what: no arguments, no answers, no text of errors that are not ours.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import uvicorn
from mcp import MCPError, types
from mcp.server import Server
from mcp.server.stdio import stdio_server

from tbc import __version__
from tbc.errors import InvalidAmountError, StoreError, TBCError
from tbc.mcp.payloads import failure
from tbc.mcp.tools import TOOLS, Tool, perform

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext

    from tbc.manager import BudgetManager

__all__ = ["LOOPBACK", "keep_log_quiet", "make_server", "serve_http", "serve_stdio"]

#: The hosts that streamable HTTP may be served on: nothing here asks who calls.
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
#: Seconds that requests may take to end when the server is told to.
_GRACE_S: Final = 3
_ABOUT: Final = (
    "Budgets of a team of agents. Register each agent once. Before a model call: hold the most it can use; "
    "if that is refused, do not make the call. After it: settle what it used, or void it if nothing was "
    "sent. Give every hold and every record_spend a key of its own; repeat a call that got no answer under "
    "its key."
)

_log = logging.getLogger("tbc.mcp")


def make_server(manager: BudgetManager) -> Server[Any]:
    """Return a server of the tools over the books of a manager."""
    one_at_a_time = anyio.CapacityLimiter(1)

    async def list_tools(
        context: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_described(name, tool) for name, tool in TOOLS.items()])

    async def call_tool(
        context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = TOOLS.get(params.name)
        if tool is None:
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool; there is {', '.join(TOOLS)}.")
        operation = partial(_attempt, tool, manager, params.arguments or {})
        try:
            if manager.waits:  # in one transaction of the store
                payload = await manager.arun(operation)
            else:
                payload = await anyio.to_thread.run_sync(operation, limiter=one_at_a_time)
        except Exception as error:
            if not isinstance(error, TBCError):
                _log_fault(params.name, error)
            payload = failure(error)
        return types.CallToolResult(
            content=[types.TextContent(text=json.dumps(payload, ensure_ascii=False))],
            structured_content=payload,
            is_error=not payload["success"],
        )

    return Server(
        "tbc",
        version=__version__,
        title="Token budget contracts",
        instructions=_ABOUT,
        get_tool_input_schema=lambda name: TOOLS[name].takes if name in TOOLS else None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _attempt(tool: Tool, manager: BudgetManager, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload of a tool, or of its failure with the books as they stand then."""
    try:
        return perform(tool, manager, arguments)
    except StoreError:  # the books cannot be read either
        raise
    except TBCError as error:
        return failure(error, manager)


def _described(name: str, tool: Tool) -> types.Tool:
    return types.Tool(
        name=name,
        title=tool.title,
        description=tool.about,
        input_schema=tool.takes,
        output_schema=tool.answers,
        annotations=types.ToolAnnotations(
            read_only_hint=not tool.writes,
            destructive_hint=False,
            idempotent_hint=tool.repeatable or not tool.writes,
            open_world_hint=False,
        ),
    )


# -- serving -------------------------------------------------------------------------------------------------


def serve_stdio(manager: BudgetManager) -> None:
    """Serve one client over standard input and output, until it closes them.

    At SIGTERM or SIGINT the books are closed and the process ends, with exit code 0.
    """
    anyio.run(_serve_stdio, manager)


async def _serve_stdio(manager: BudgetManager) -> None:
    server = make_server(manager)
    async with anyio.create_task_group() as group:
        group.start_soon(_leave_at_signal, manager)
        try:
            async with stdio_server() as (read, write):
                await server.run(read, write, server.create_initialization_options())
        except* ConnectionError:  # the client has gone without a word
            pass
        group.cancel_scope.cancel()


async def _leave_at_signal(manager: BudgetManager) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            await anyio.to_thread.run_sync(_close, manager)
            os._exit(0)  # a thread waits for the client's next line, and nothing but a line wakes it


def _close(manager: Any) -> None:
    """Close the books, if they are kept in a store."""
    if manager.waits:
        manager.close()


def serve_http(manager: BudgetManager, host: str, port: int, announce: Callable[[str], object]) -> None:
    """Serve any number of clients over streamable HTTP, until SIGTERM or SIGINT comes.

    Parameters
    ----------
    manager : BudgetManager
        Whose books.
    host : str
        One of `LOOPBACK`.
    port : int
        0: any that is free.
    announce : callable
        Told the address when it can be called.

    Raises
    ------
    InvalidAmountError
        For other hosts.
    OSError
        If the port is taken.
    """
    if host not in LOOPBACK:
        rule = f"{', '.join(LOOPBACK)}: nothing here asks who calls; let a proxy that does stand before it"
        raise InvalidAmountError("host", host, rule)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        anyio.run(_serve_http, manager, host, listener, announce)


async def _serve_http(
    manager: BudgetManager, host: str, listener: socket.socket, announce: Callable[[str], object]
) -> None:
    app = make_server(manager).streamable_http_app(host=host, json_response=True)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http="h11",  # it takes a head of 64 KiB at most; httptools, where it is installed, any
        timeout_graceful_shutdown=_GRACE_S,
    )
    for each in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has ended: no harm then
        signal.signal(each, lambda *_: None)
    shown = f"[{host}]" if ":" in host else host
    announce(f"http://{shown}:{listener.getsockname()[1]}/mcp")
    await uvicorn.Server(config).serve(sockets=[listener])


# -- the log -------------------------------------------------------------------------------------------------


def keep_log_quiet() -> None:
    """Let the log of this process say where something went wrong, not what was asked or answered."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Quiet())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class _Quiet(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == _log.name:
            return f"tbc mcp: {record.getMessage()}"
        kind = record.exc_info[0] if record.exc_info else None
        what = record.levelname.lower() if kind is None else kind.__name__
        return f"tbc mcp: {what} in {record.name}, line {record.lineno}"


def _log_fault(name: str, error: Exception) -> None:
    where = traceback.extract_tb(error.__traceback__)[-1]
    _log.error("%s: %s in %s, line %s", name, type(error).__name__, where.filename, where.lineno)
