"""Stores for the tests of faults: every test that takes a `url` runs on each kind."""

from __future__ import annotations

import pytest

#: A server is added with one line.
STORES = {"sqlite": lambda folder: f"sqlite:///{folder}/books.db"}


@pytest.fixture(params=sorted(STORES))
def url(request: pytest.FixtureRequest, tmp_path) -> str:
    """Return the URL of a store that has nothing in it yet."""
    return STORES[request.param](tmp_path)
