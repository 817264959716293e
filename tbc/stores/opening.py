"""Stores by their URL."""

from __future__ import annotations

from typing import Any

from tbc.errors import InvalidContractError
from tbc.stores.sqlite import SqliteStore

__all__ = ["open_store"]


def open_store(url: str, **options: Any) -> SqliteStore:
    """Return the store that a URL names."""
    kind, _, place = url.partition("://")
    if kind != "sqlite" or not place.startswith("/"):
        raise InvalidContractError(f"store must be sqlite:///path or postgresql://..., not {url!r}")
    return SqliteStore(place[1:], **options)
