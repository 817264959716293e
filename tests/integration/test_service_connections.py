"""Connections that would keep others out: heads that do not end, and clients that never ask."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

import tbc
from tbc.service import Limits
from tbc.service.server import make_server
from tests.service_client import make_service
from tests.waiting import until

WITHIN_S = 60
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def running(*, make=None, certificate=None, grace_s=1, **limits):
    """Yield a server that runs in a thread, and its port."""
    where = SimpleQueue()
    service = make_service(make, limits=Limits(**limits))
    server = make_server(service, "127.0.0.1", 0, grace_s=grace_s, started=where.put, certificate=certificate)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server, int(where.get(timeout=WITHIN_S).rpartition(":")[2])
    finally:
        server.should_exit = True
        thread.join(WITHIN_S)
    assert not thread.is_alive()


@contextmanager
def served(**limits):
    """Yield the port of a server that runs in a thread."""
    with running(**limits) as (_, port):
        yield port


def connected(port, sent=b""):
    connection = socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S)
    connection.sendall(sent)
    return connection


def all_of(connection):
    """Return what comes until the server closes."""
    said = b""
    while part := connection.recv(65_536):
        said += part
    return said


def answer(said):
    """Return status and code of an answer that came as an error."""
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


HALF_OF_A_SECOND = HEALTH + HEALTH[:-2]


@pytest.mark.parametrize("sent", [b"", HEALTH[:-2], HEALTH, HALF_OF_A_SECOND, b"\r\n" * 9])
def test_who_does_not_go_on_is_closed(sent):
    with served(head_s=0.1, idle_s=0.2) as port, connected(port, sent) as connection:
        said = all_of(connection)
        assert said.count(b"200 OK") == sent.count(b"\r\n\r\n") * (b"GET" in sent)
        with connected(port, HEALTH) as other:
            assert other.recv(12) == b"HTTP/1.1 200"


def test_who_waits_for_an_answer_is_not_closed():
    with served(head_s=0.1, idle_s=0.1) as port:
        stream = HEALTH.replace(b"/health", b"/v1/events?since=0")
        with connected(port, stream + HEALTH[:-2]) as connection, connected(port) as idle:
            assert b"200 OK" in connection.recv(65_536)
            assert all_of(idle) == b""  # idle ones have been looked at
            with connected(port, HEALTH) as other:
                assert all_of(other).startswith(b"HTTP/1.1 200")
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                while connection.recv(65_536):
                    pass  # it is open


@pytest.mark.parametrize(
    "headers",
    [b"x-a: " + b"a" * 20_000 + b"\r\n", b"x-a: b\r\n" * 1_000, b"x-a: " + b"a" * 20_000],
)
def test_a_head_that_is_too_large_is_431(headers):
    with served(head_s=WITHIN_S, head=16_384) as port, connected(port, HEALTH[:-2]) as connection:
        connection.sendall(headers)
        assert answer(all_of(connection)) == (431, "headers_too_large")


CHUNKED = HEALTH.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
TO_BE_READ = CHUNKED.replace(b"GET /health", b"POST /v1/decide").replace(
    b"\r\n\r\n", b"\r\nContent-Type: application/json\r\n\r\n"
)


@pytest.mark.parametrize("asked", [CHUNKED, TO_BE_READ])
@pytest.mark.parametrize("after", [b"0\r\nX: ", b"5;x="])
def test_what_comes_with_a_body_and_is_none_is_bounded(asked, after):
    with served(head_s=WITHIN_S, body_s=WITHIN_S, idle_s=WITHIN_S) as port, connected(port) as connection:
        connection.sendall(asked + after)
        with suppress(ConnectionError):  # it may be closed before all of it was sent
            for _ in range(60):
                connection.sendall(b"a" * 10_000)
            assert b"431" in all_of(connection)
        with connected(port, HEALTH) as other:
            assert other.recv(12) == b"HTTP/1.1 200"


def test_what_comes_with_a_body_while_the_answer_is_under_way_ends_the_connection():
    with served() as port:
        events = CHUNKED.replace(b"/health", b"/v1/events?since=0")
        with connected(port, events) as connection:
            assert b"200 OK" in connection.recv(65_536)
            with suppress(ConnectionError):
                connection.sendall(b"0\r\nX: ")
                for _ in range(60):
                    connection.sendall(b"a" * 10_000)
                assert b"431" not in all_of(connection)


def test_a_header_after_a_body_is_none_of_the_request():
    body, key = b'{"agent_name": "a"}', b"Idempotency-Key: 1\r\n"
    sent = TO_BE_READ.replace(b"decide", b"holds").replace(b"Host", b"Connection: close\r\nHost")
    sent += b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    with served() as port, connected(port, sent + key + key + b"\r\n") as connection:
        assert answer(all_of(connection)) == (404, "unknown_agent")  # not that there are two keys


def test_an_address_that_is_too_long_is_431():
    with served(head=16_384) as port, connected(port, HEALTH.replace(b"health", b"a" * 20_000)) as asked:
        assert answer(all_of(asked)) == (431, "headers_too_large")


def test_what_is_no_http_is_400_in_the_envelope():
    with served() as port, connected(port, b"hello\r\n\r\n") as connection:
        assert answer(all_of(connection)) == (400, "malformed_request")


def test_beyond_the_limit_of_connections_the_answer_says_so_and_idle_ones_make_room():
    with served(connections=10, head_s=WITHIN_S, idle_s=WITHIN_S) as port, ExitStack() as stack:
        idle = [stack.enter_context(connected(port)) for _ in range(12)]
        with connected(port, HEALTH) as asked:
            assert answer(all_of(asked)) == (503, "too_many_connections")
        for each in idle:
            assert all_of(each) == b""  # closed long before its time
        with connected(port, HEALTH) as asked:
            assert asked.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("grace_s", [0.0, 0.4, 1.5])
def test_calls_in_flight_have_as_long_as_was_said(grace_s):
    server = make_server(make_service(), "127.0.0.1", 0, grace_s=grace_s, started=print)
    assert server.config.timeout_graceful_shutdown == grace_s


def who_never_reads(port):
    """Return a connection on which more is asked than its buffers can take."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    connection.send(HEALTH.replace(b"/health", b"/openapi.json") * 60)
    return connection


def test_who_takes_nothing_of_the_answers_is_cut_off():
    with running(cut_off_s=0.2) as (server, port), who_never_reads(port):
        until(lambda: server.server_state.total_requests)
        until(lambda: not server.server_state.connections)


@pytest.fixture(params=["http", "https"])
def certificate(request):
    """Return the files of a certificate, or None where it is plain http."""
    if request.param == "http":
        return None
    folder = request.getfixturevalue("certified")
    return str(folder / "chain.pem"), str(folder / "key.pem")


def who_asks(port, certificate, path=b"/v1/entries?limit=200"):
    """Return a connection that takes little at once, on which something is asked for."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.settimeout(WITHIN_S)
    connection.connect(("127.0.0.1", port))
    if certificate is not None:
        connection = ssl.create_default_context(cafile=certificate[0]).wrap_socket(
            connection, server_hostname="localhost"
        )
    connection.sendall(HEALTH.replace(b"/health", path))
    return connection


def with_a_page(_):
    """Return books whose first 200 lines are less than what pauses a writer."""
    manager = tbc.BudgetManager(max_tokens=1_000)
    manager.register_agent("a" * 100)
    for _ in range(200):
        manager.record_usage("a" * 100, 1)
    return manager


def test_who_reads_slowly_has_the_whole_answer_before_its_idleness_counts(certificate):
    within = running(make=with_a_page, certificate=certificate, idle_s=0.1, cut_off_s=WITHIN_S)
    with within as (_, port), who_asks(port, certificate) as reader:
        said = b""
        with suppress(ssl.SSLError):  # some versions want TLS's goodbye
            while part := reader.recv(2_000):
                said += part
                time.sleep(0.05)
        head, _, body = said.partition(b"\r\n\r\n")
        assert b"content-length: %d" % len(body) in head and len(body) > 50_000


def test_who_takes_nothing_of_one_answer_is_cut_off(certificate):
    within = running(make=with_a_page, certificate=certificate, idle_s=WITHIN_S, cut_off_s=0.2)
    with within as (server, port), who_asks(port, certificate):
        until(lambda: server.server_state.total_requests)
        until(lambda: not server.server_state.connections)


def test_at_the_end_nobody_waits_for_the_goodbye_of_who_is_idle(certificate, caplog):
    within = running(certificate=certificate, grace_s=5)
    with within as (server, port), who_asks(port, certificate, b"/health") as idle:
        assert idle.recv(12) == b"HTTP/1.1 200"
        server.should_exit = True
        until(lambda: not server.server_state.connections)
    assert not caplog.records  # nothing was cut off


def test_who_leaves_without_reading_is_no_error(caplog):
    with running() as (server, port):
        with who_never_reads(port):
            until(lambda: server.server_state.total_requests)
        until(lambda: not server.server_state.connections and not server.server_state.tasks)
    assert not caplog.records


def test_those_who_never_read_make_room_for_others():
    with served(connections=10, cut_off_s=WITHIN_S) as port, ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(who_never_reads(port))

        def others_are_served():
            with connected(port, HEALTH) as asked:
                return asked.recv(12) == b"HTTP/1.1 200"

        until(others_are_served)


class Line:
    """A transport whose other end takes what the test says."""

    def __init__(self, end):
        self.socket = end
        self.waiting = 100_000
        self.ended = []

    def get_extra_info(self, name):
        return self.socket if name == "socket" else None

    def get_write_buffer_size(self):
        return self.waiting

    def is_closing(self):
        return bool(self.ended)

    def close(self):
        self.ended.append("close")

    def abort(self):
        self.ended.append("abort")


@pytest.fixture
def read():
    """Return a connection in the middle of an answer, and its line."""
    server = make_server(make_service(), "127.0.0.1", 0, grace_s=1, started=print)
    loop = SimpleNamespace(time=lambda: 0.0)
    server.config.load()
    connection = server.config.http_protocol_class(server.config, server.server_state, {}, _loop=loop)
    with socket.socket() as end:
        line = Line(end)
        connection.connection_made(line)
        yield connection, line


@pytest.mark.parametrize("is_much", [False, True])
def test_who_reads_slowly_but_reads_is_not_cut_off(is_much, read):
    connection, line = read
    if is_much:
        connection.pause_writing()
    for second in range(0, 100, 5):
        line.waiting -= 1
        connection.close_if_idle(second, crowded=False)
    assert not line.ended
    connection.close_if_idle(second + 10, crowded=False)
    assert not line.ended
    connection.close_if_idle(second + 10.5, crowded=False)
    assert line.ended == ["abort"]


def test_who_has_taken_the_answer_has_time_for_the_next_request_from_then_on(read):
    connection, line = read
    for second in range(0, 100, 5):
        line.waiting -= 1
        connection.close_if_idle(second, crowded=False)
    line.waiting = 0
    connection.close_if_idle(second + 5, crowded=False)
    connection.close_if_idle(second + 15, crowded=False)
    assert not line.ended
    connection.close_if_idle(second + 15.5, crowded=False)
    assert line.ended == ["close"]
