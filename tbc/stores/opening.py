"""One address for every store."""

from __future__ import annotations

from typing import Any

from tbc.errors import InvalidAmountError
from tbc.stores.postgres import PostgresStore
from tbc.stores.sqlite import SqliteStore

__all__ = ["open_store"]

_FILE = "sqlite:///"
_SERVER = ("postgresql://", "postgres://")


def open_store(url: str, **options: Any) -> SqliteStore | PostgresStore:
    """Open a store by its address.

    Parameters
    ----------
    url : str
        ``"sqlite:///books.db"`` (a relative path), ``"sqlite:////var/lib/books.db"`` (an absolute one) or
        ``"postgresql://user:password@host:port/database"``.
    **options
        What `SqliteStore` or `PostgresStore` takes besides.

    Raises
    ------
    InvalidAmountError
        If it is another kind of address; the message names the kinds, and not the address, which may have a
        password in it.
    StoreError
        If the store cannot be used; the message says why and what to do.
    """
    if isinstance(url, str):
        if url.startswith(_FILE) and len(url) > len(_FILE):
            return SqliteStore(url.removeprefix(_FILE), **options)
        if url.startswith(_SERVER):
            return PostgresStore(url, **options)
    kind = f"{url.partition(':')[0]}:..." if isinstance(url, str) and ":" in url else type(url).__name__
    raise InvalidAmountError(
        "url",
        kind,
        "'sqlite:///relative.db', 'sqlite:////absolute.db' or 'postgresql://user:password@host/database'",
    )
