"""Stores for the tests of faults: every test that takes a `url` runs on each kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from urllib.parse import urlsplit

import pytest

_databases = count(1)


@pytest.fixture(params=["postgres", "sqlite"])
def url(request: pytest.FixtureRequest) -> str:
    """Return the URL of a store that has nothing in it yet."""
    return request.getfixturevalue(f"{request.param}_books")


@pytest.fixture
def sqlite_books(tmp_path) -> str:
    """Return the URL of a file."""
    return f"sqlite:///{tmp_path}/books.db"


@pytest.fixture
def postgres_books(postgres_url) -> Iterator[str]:
    """Return the URL of a database of its own, so that processes need no more than that; it is dropped."""
    import psycopg

    name = f"f{os.getpid()}_{next(_databases)}"
    with closing(psycopg.connect(postgres_url, autocommit=True)) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")
