"""hypercorn on becket.EventLoop, which it learns of by asyncio's policy: HTTP/1.1, HTTP/2 and
HTTP/3, WebSockets and TLS, with curl, http.client, websockets and aioquic at the other end."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
from contextlib import closing

import pytest
from aioquic.asyncio import connect as connect_quic
from websockets.asyncio.client import connect as connect_websocket

from interop.asgi_clients import echo_messages, leave_in_the_middle
from interop.h3 import H3Client, client_configuration
from interop.processes import HERE, PATIENCE, Server, run_program, run_wrk

STREAMED = b"".join(b"%d:%s\n" % (n, b"s" * (n * 100)) for n in range(100))
# As its users run it: the command, after one more line.
COMMAND = "import becket; becket.install(); from hypercorn.__main__ import main; main()"
# It writes on when a client has left, of which asyncio's loop tells as well.
SAID = r"\[.*\] \[\d+\] \[INFO\] Running on .*|socket\.send\(\) raised exception\."


class Hypercorn(Server):
    """hypercorn with asgi_app.py, at free ports."""

    def __init__(self, *options: object, development: bool = True) -> None:
        super().__init__(
            "-c", COMMAND, "--workers", 0, "--bind", "127.0.0.1:0", *options,
            f"{HERE}/asgi_app:app", expected=SAID, development=development,
        )  # fmt: skip

    def __enter__(self) -> Hypercorn:
        self.port = int(self.wait_for(r"Running on https?://127\.0\.0\.1:(\d+) \(CTRL")[1])
        return self


def secured(tls) -> tuple[str, ...]:
    return "--certfile", tls.path("server.crt"), "--keyfile", tls.path("server.key")


@pytest.fixture(scope="module")
def plain():
    with Hypercorn() as server:
        yield server


@pytest.fixture(scope="module")
def secure(tls):
    options = (*secured(tls), "--quic-bind", "127.0.0.1:0")
    with Hypercorn(*options, development=False) as server:  # it does not close its UDP sockets
        server.udp_port = int(server.wait_for(r"127\.0\.0\.1:(\d+) \(QUIC\)")[1])
        yield server


@pytest.fixture(params=["plain", "secure"])
def server(request, tls):
    """With the context that its clients need, if any."""
    server = request.getfixturevalue(request.param)
    server.context = tls.client() if request.param == "secure" else None
    return server


def connect(server: Hypercorn) -> http.client.HTTPConnection:
    where = "127.0.0.1", server.port
    if server.context is None:
        return http.client.HTTPConnection(*where, timeout=PATIENCE)
    return http.client.HTTPSConnection(*where, timeout=PATIENCE, context=server.context)


def ask(connection, method, path, body=None):
    connection.request(method, path, body)
    response = connection.getresponse()
    return response.status, response.read()


def test_every_route_on_one_connection(server):
    with closing(connect(server)) as connection:
        assert ask(connection, "GET", "/loop") == (200, b"becket.loop.EventLoop")
        kept = connection.sock
        assert ask(connection, "GET", "/") == (200, b"Hello, world!")
        assert ask(connection, "GET", "/none") == (404, b"there is no such page")
        for size in (0, 1, 65_535, 65_536, 65_537, 2_000_000):
            body = os.urandom(size)
            assert ask(connection, "POST", "/echo", body) == (200, body)
        assert ask(connection, "GET", "/stream") == (200, STREAMED)
        assert ask(connection, "GET", "/large") == (200, bytes(range(256)) * 40_000)
        assert connection.sock is kept


def test_http_2(secure, tls, tmp_path):
    """curl makes three requests on one connection."""
    options = ["--silent", "--show-error", "--http2", "--cacert", tls.path("ca.crt")]
    sent, wanted = tmp_path / "sent", {"loop": b"becket.loop.EventLoop", "stream": STREAMED}
    sent.write_bytes(wanted.setdefault("echo", os.urandom(2_000_000)))
    arguments = []
    for name in wanted:
        arguments += [*options, "--write-out", "%{http_version} %{http_code} %{num_connects}\\n"]
        where = f"https://127.0.0.1:{secure.port}/{name}"
        arguments += ["--output", tmp_path / name, where, "--next"]
    said = run_program("curl", *arguments[:-1], "--data-binary", f"@{sent}")
    assert said.splitlines() == ["2 200 1", "2 200 0", "2 200 0"]
    for name, body in wanted.items():
        assert (tmp_path / name).read_bytes() == body


def test_http_3(secure, tls, run):
    async def main() -> None:
        async with connect_quic(
            "127.0.0.1",
            secure.udp_port,
            configuration=client_configuration(tls.path("ca.crt")),
            create_protocol=H3Client,
        ) as connection:
            assert await connection.ask("GET", "/loop") == (200, b"becket.loop.EventLoop")
            assert await connection.ask("GET", "/stream") == (200, STREAMED)
            bodies = [os.urandom(number * 1000) for number in range(20)]
            answers = await asyncio.gather(
                *(connection.ask("POST", "/echo", body) for body in bodies)
            )
            assert answers == [(200, body) for body in bodies]

    run(main())


def test_web_sockets(server, run):
    async def main() -> None:
        where = f"ws{'s' if server.context else ''}://127.0.0.1:{server.port}/ws"
        async with connect_websocket(where, ssl=server.context) as connection:
            await echo_messages(connection)

    run(main())


def test_clients_that_leave(server):
    leave_in_the_middle(server.port, server.context)
    with closing(connect(server)) as connection:
        assert ask(connection, "GET", "/") == (200, b"Hello, world!")


def test_under_wrk(plain):
    assert run_wrk("-t", 2, "-c", 20, "-d", "1s", f"http://127.0.0.1:{plain.port}/") > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it(number):
    with Hypercorn() as server:
        server.context = None
        with closing(connect(server)) as connection:
            assert ask(connection, "GET", "/") == (200, b"Hello, world!")
            server.end(number)
