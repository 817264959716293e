"""``tbc mcp``: the books as tools of the Model Context Protocol."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tbc.cli.checks import check_port
from tbc.errors import StoreError

__all__ = ["mcp"]

_Flag = Annotated[bool, Parameter(negative="")]


def mcp(
    *,
    store: str | None = None,
    pool: str = "default",
    max_tokens: int | None = None,
    max_usd: str | None = None,
    max_calls: int | None = None,
    mode: Literal["enforce", "audit"] = "enforce",
    http: _Flag = False,
    host: str = "127.0.0.1",
    port: int = 8377,
) -> int:
    """Serve the books as tools of the Model Context Protocol, over standard input and output.

    It ends when the client closes its input, or at a signal.

    Parameters
    ----------
    store
        Where the books are kept: a file such as budgets.db, or a URL: sqlite:///FILE or postgresql://...
        It is made if it is not there. Default: in memory, until the server ends.
    pool
        Which pool of the store. It is opened if it is not there.
    max_tokens
        The cap of all agents together. For a pool that is there leave it out, or name the same.
    max_usd
        The same in US dollars.
    max_calls
        The same in calls.
    mode
        audit: nothing is refused, and what would have been is told.
    http
        Serve over streamable HTTP, any number of clients.
    host
        For --http: 127.0.0.1, ::1 or localhost. Nothing here asks who calls.
    port
        For --http; 0: any that is free.
    """
    from tbc.mcp.server import keep_log_quiet, serve_http, serve_stdio

    check_port(port)
    keep_log_quiet()
    caps = {"max_tokens": max_tokens, "max_usd": max_usd, "max_calls": max_calls}
    with _opened(store, pool, mode=mode, **caps) as manager:
        if http:
            serve_http(manager, host, port, lambda url: print(f"tbc mcp: {url}", file=sys.stderr, flush=True))
        else:
            serve_stdio(manager)
    return 0


def _opened(place: str | None, pool: str, **how: Any) -> AbstractContextManager[Any]:
    """Return a manager that is closed at the end of the block."""
    from tbc.manager import BudgetManager

    if place is None:
        if pool != "default":
            raise StoreError("none", f"pool {pool!r} can only be in a store", "Name one with --store")
        return nullcontext(BudgetManager(**how))
    url = place if "://" in place else f"sqlite:///{place}"
    manager: Any = BudgetManager(store=url, pool=pool, **how)
    return closing(manager)
