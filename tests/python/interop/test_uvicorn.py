"""uvicorn on becket.EventLoop, as its users run it (``uvicorn --loop becket:EventLoop``), with each
of its HTTP implementations, under http.client and wrk."""

from __future__ import annotations

import http.client
import importlib.util
import os
import socket
from contextlib import closing

import pytest
from websockets.asyncio.client import connect as connect_websocket

from interop.asgi_clients import echo_messages, leave_in_the_middle
from interop.processes import HERE, PATIENCE, Server, run_wrk

SAID = (
    r"INFO: +(Started server process|Finished server process) \[\d+\]"
    r"|INFO: +(Shutting down|Waiting for .* to (close|complete)).*"
    r"|INFO: +Uvicorn running on .*"
    r'|INFO: +.* - "WebSocket /ws" \[accepted\]|INFO: +connection (open|closed)'
)


@pytest.fixture(params=["httptools", "h11"])
def server(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    with Server(
        "-m",
        "uvicorn",
        "--loop",
        "becket:EventLoop",
        "--http",
        request.param,
        "--lifespan",
        "off",
        "--ws",
        "websockets-sansio",  # its other implementation warns that it is deprecated
        "--no-access-log",
        "--no-use-colors",
        "--port",
        0,
        "--app-dir",
        HERE,
        "asgi_app:app",
        expected=SAID,
    ) as server:
        server.port = int(server.wait_for(r"running on http://127\.0\.0\.1:(\d+)")[1])
        yield server


def connect(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)


def ask(connection, method, path, body=None, **options):
    connection.request(method, path, body, **options)
    response = connection.getresponse()
    return response.status, response.read()


def test_every_route_on_one_connection(server):
    with closing(connect(server)) as connection:
        assert ask(connection, "GET", "/loop") == (200, b"becket.loop.EventLoop")
        kept = connection.sock
        assert ask(connection, "GET", "/") == (200, b"Hello, world!")
        assert ask(connection, "GET", "/none") == (404, b"there is no such page")
        assert ask(connection, "HEAD", "/") == (404, b"")
        for size in (0, 1, 65_535, 65_536, 65_537, 5_000_000):
            body = os.urandom(size)
            assert ask(connection, "POST", "/echo", body) == (200, body)
        pieces = [os.urandom(size) for size in (1, 100_000, 7, 65_536)]
        assert ask(
            connection,
            "POST",
            "/echo",
            iter(pieces),
            encode_chunked=True,
            headers={"Transfer-Encoding": "chunked"},
        ) == (200, b"".join(pieces))
        streamed = b"".join(b"%d:%s\n" % (n, b"s" * (n * 100)) for n in range(100))
        assert ask(connection, "GET", "/stream") == (200, streamed)
        assert ask(connection, "GET", "/large") == (200, bytes(range(256)) * 40_000)
        assert connection.sock is kept


def test_pipelined_requests(server):
    """Many requests in one write are answered in their order."""
    count = 200
    requests = b"".join(
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        for body in (b"request %d" % number for number in range(count))
    )
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
        sock.sendall(requests)
        file = sock.makefile("rb")
        for number in range(count):
            assert file.readline() == b"HTTP/1.1 200 OK\r\n"
            length = 0
            while (line := file.readline()) != b"\r\n":
                name, _, value = line.lower().partition(b":")
                if name == b"content-length":
                    length = int(value)
            assert file.read(length) == b"request %d" % number
        file.close()


def test_web_sockets(server, run):
    """With the websockets package at both ends."""

    async def main() -> None:
        async with connect_websocket(f"ws://127.0.0.1:{server.port}/ws") as connection:
            await echo_messages(connection)

    run(main())


def test_clients_that_leave(server):
    leave_in_the_middle(server.port)
    with closing(connect(server)) as connection:
        assert ask(connection, "GET", "/") == (200, b"Hello, world!")


def test_under_wrk(server):
    where = f"http://127.0.0.1:{server.port}"
    for path in ("/", "/stream"):
        assert run_wrk("-t", 2, "-c", 20, "-d", "1s", where + path) > 0
    assert run_wrk("-t", 2, "-c", 20, "-d", "1s", "-s", HERE / "echo.lua", where) > 0
