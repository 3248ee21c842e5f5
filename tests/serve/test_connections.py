"""What a client may do to a connection before its request is there."""

import socket
import threading
import time

import pytest
import uvicorn

from ctm.serve.connections import HEADER_BYTES, Connection
from ctm.serve.running import bind


class Impatient(Connection):
    header_seconds = 0.3


async def application(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def address():
    bound = bind("127.0.0.1", 0)
    options = {"http": Impatient, "h11_max_incomplete_event_size": HEADER_BYTES, "log_level": "critical"}
    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    yield bound.getsockname()[:2]
    server.should_exit = True
    thread.join(10)


def _all(connection):
    content = b""
    while part := connection.recv(65536):
        content += part
    return content


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_header_that_does_not_come_closes_the_connection(address, begun):
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(begun)
        started = time.monotonic()
        assert _all(connection) == b""
        assert time.monotonic() - started >= 0.2


def test_a_header_in_pieces_does_not_have_its_time_begun_anew(address):
    with socket.create_connection(address, timeout=0.05) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        pieces = 0
        while pieces < 100:
            pieces += 1
            try:
                connection.sendall(b"a")
                if connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert pieces < 60


def test_a_header_without_end_is_refused(address):
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 2 * HEADER_BYTES)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_a_connection_between_requests_is_kept(address):
    with socket.create_connection(address, timeout=10) as connection:
        for _ in range(2):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000).endswith(b"ok")
            time.sleep(0.5)
