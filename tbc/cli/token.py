"""``tbc token``: who may ask a server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from cyclopts import App, Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tbc.clock import EPOCH, system_clock

__all__ = ["token"]

token = App(name="token", help="Make, list and revoke the bearer tokens of a server.")
_File = Annotated[str, Parameter(name="--tokens", env_var="TBC_TOKENS")]


def _now() -> float:
    return EPOCH + system_clock()


@token.command
def create(
    *,
    tokens: _File,
    pool: str = "default",
    scopes: str = "read,spend",
    days: Annotated[float | None, Parameter(show_default=False)] = None,
    note: str = "",
) -> int:
    """Make a token and show it, once. To rotate one, make its successor first and revoke it later.

    Parameters
    ----------
    tokens
        The file of the tokens.
    pool
        The pool that it is for. It reaches no other one.
    scopes
        What it allows: read, spend, admin.
    days
        After how many days it expires. Default: never.
    note
        Whose it is, for the list.
    """
    from tbc.service.bearers import TokenFile

    named = {each.strip() for each in scopes.split(",") if each.strip()}
    seconds = None if days is None else days * 86_400
    _, text = TokenFile(tokens).create(pool, named, now=_now(), seconds=seconds, note=note)
    print(text)
    return 0


@token.command(name="list")
def list_tokens(*, tokens: _File) -> int:
    """Show all tokens without their secrets.

    Parameters
    ----------
    tokens
        The file of the tokens.
    """
    from tbc.service.bearers import TokenFile

    now = _now()
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("token", "pool", "scopes", "created", "expires", "state", "note"):
        table.add_column(name)
    for each in TokenFile(tokens).tokens():
        row = (
            each.name,
            each.pool,
            ", ".join(each.scopes),
            _day(each.created_at),
            _day(each.expires_at),
            each.state(now),
            each.note,
        )
        table.add_row(*map(Text, row))
    Console().print(table)
    return 0


@token.command
def revoke(name: str, /, *, tokens: _File) -> int:
    """Let a token be none any more; servers notice within a second.

    Parameters
    ----------
    name
        As the list shows it.
    tokens
        The file of the tokens.
    """
    from tbc.service.bearers import TokenFile

    revoked = TokenFile(tokens).revoke(name, now=_now())
    print(f"revoked {revoked.name}")
    return 0


def _day(at: float | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
