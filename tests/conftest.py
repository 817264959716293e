"""Fixtures and Hypothesis profiles of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", max_examples=5_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put real vocabularies where tiktoken's cache looks, for every test and every child process."""
    from tests.vocabulary import install

    directory = tmp_path_factory.mktemp("tiktoken-cache")
    install(directory)
    os.environ["TIKTOKEN_CACHE_DIR"] = str(directory)
    return directory
