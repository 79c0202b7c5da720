"""aiohttp on becket.EventLoop, server and client: one process each, so that the two never share a
loop. Others are at the other end too: http.client with a TLS of its own, wrk."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import io
import os
import socket
import ssl
import time
import warnings
from contextlib import closing, suppress

import aiohttp
import pytest
from aiohttp import web

import becket
from interop.processes import HERE, PATIENCE, Server, run_program, run_wrk

STREAMED = b"".join(b"%d:%s\n" % (n, b"s" * (n * 100)) for n in range(100))


class AiohttpServer(Server):
    """aiohttp_app.py"""

    def __init__(self, path: str, *certificate: object) -> None:
        self.path = path
        super().__init__(
            HERE / "aiohttp_app.py", self.path, *certificate, expected=r"listening at \d+|ended"
        )

    def __enter__(self) -> AiohttpServer:
        self.port = int(self.wait_for(r"listening at (\d+)")[1])
        return self


@pytest.fixture
def server(short_path):
    with AiohttpServer(short_path) as server:
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """For localhost, made by openssl, with its key."""
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "certificate.pem", folder / "key.pem"
    run_program(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        2,
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-out",
        files[0],
        "-keyout",
        files[1],
    )
    return files


def run_client(main) -> None:
    """Run a client on a loop of its own, in debug mode; what the loop was told of as an error, or
    was left behind, is one."""
    reported = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with asyncio.Runner(debug=True, loop_factory=becket.EventLoop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: reported.append(context))
            runner.get_loop().slow_callback_duration = PATIENCE
            runner.run(asyncio.wait_for(main, PATIENCE))
    assert not reported, reported


async def read(response) -> tuple[int, bytes]:
    async with response as answer:
        return answer.status, await answer.read()


async def every_route(session: aiohttp.ClientSession) -> None:
    assert await read(session.get("/loop")) == (200, b"becket.loop.EventLoop")
    for _ in range(50):
        assert await read(session.get("/")) == (200, b"Hello, world!")
    assert (await read(session.get("/none")))[0] == 404
    assert await read(session.get("/stream")) == (200, STREAMED)
    for size in (0, 1, 65_535, 65_536, 65_537, 10_000_000):
        body = os.urandom(size)
        status, answer = await read(session.post("/echo", data=io.BytesIO(body)))
        assert status == 200
        assert hashlib.sha256(answer).digest() == hashlib.sha256(body).digest()

    async def pieces():
        for number in range(300):
            yield b"p" * (number * 100)

    size = sum(number * 100 for number in range(300))
    assert await read(session.post("/length", data=pieces())) == (200, b"%d" % size)


async def sockets(session: aiohttp.ClientSession) -> None:
    async with session.ws_connect("/ws", max_msg_size=32 * 1024 * 1024) as ws:
        for size in (0, 1, 125, 126, 65_535, 65_536, 10_000_000):
            data = os.urandom(size)
            await ws.send_bytes(data)
            answer = await ws.receive_bytes()
            assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()
        texts = [f"message {number} " + "ü" * (number % 50) for number in range(2000)]

        async def send() -> None:
            for text in texts:
                await ws.send_str(text)

        sending = asyncio.create_task(send())
        assert [await ws.receive_str() for _ in texts] == texts
        await sending
    assert ws.close_code == aiohttp.WSCloseCode.OK


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("what", [every_route, sockets])
def test_server_and_client(short_path, request, kind, what):
    pair = request.getfixturevalue("certificate") if kind == "tls" else ()

    async def main() -> None:
        context = ssl.create_default_context(cafile=pair[0]) if pair else True
        connector = (
            aiohttp.UnixConnector(server.path)
            if kind == "unix"
            else aiohttp.TCPConnector(ssl=context)
        )
        base = f"https://localhost:{server.port}" if pair else f"http://127.0.0.1:{server.port}"
        async with aiohttp.ClientSession(base, connector=connector) as session:
            await what(session)

    with AiohttpServer(short_path, *pair) as server:
        run_client(main())


def test_sessions_at_once(server):
    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=50)
        base = f"http://127.0.0.1:{server.port}"
        async with aiohttp.ClientSession(base, connector=connector) as session:

            async def echo(number: int) -> None:
                body = f"{number} ".encode() * (number * 7)
                assert await read(session.post("/echo", data=body)) == (200, body)

            await asyncio.gather(*(echo(number) for number in range(500)))

    run_client(main())


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All that comes from one goes to the other, and then its end."""
    try:
        while data := await reader.read(100_000):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A proxy that knows CONNECT alone."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"CONNECT ")
    host, port = head.split()[1].decode().rsplit(":", 1)
    far_reader, far_writer = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
    for end in (writer, far_writer):
        with suppress(ConnectionError):
            await end.wait_closed()


@pytest.mark.parametrize("secure", [False, True])
def test_through_a_proxy(run, tls, secure):
    """TLS starts in the midst of a connection, which may be one by TLS itself; server, proxy and
    client share a loop."""

    async def main() -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/echo", echo)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server()).start()
        context = tls.server("rsa") if secure else None
        proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0, ssl=context)
        where = f"http{'s' if secure else ''}://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        connector = aiohttp.TCPConnector(ssl=tls.client())
        async with aiohttp.ClientSession(connector=connector, proxy=where) as session:
            for size in (0, 1, 65_536, 1_000_000):
                body = os.urandom(size)
                url = f"https://127.0.0.1:{runner.addresses[0][1]}/echo"
                assert await read(session.post(url, data=io.BytesIO(body))) == (200, body)
        await runner.cleanup()
        proxy.close()
        await proxy.wait_closed()

    run(main())


def connect(server: Server, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    if tls is None:
        return http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    return http.client.HTTPSConnection("localhost", server.port, timeout=PATIENCE, context=tls)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body=None):
    connection.request(method, path, body)
    response = connection.getresponse()
    return response.status, response.read()


def test_connection_is_kept(server):
    with closing(connect(server)) as connection:
        assert ask(connection, "GET", "/") == (200, b"Hello, world!")
        kept = connection.sock
        for number in range(200):
            body = b"%d" % number
            assert ask(connection, "POST", "/echo", body) == (200, body)
        assert ask(connection, "GET", "/stream") == (200, STREAMED)
        assert connection.sock is kept


def test_tls_with_another_client(short_path, certificate):
    context = ssl.create_default_context(cafile=certificate[0])
    with AiohttpServer(short_path, *certificate) as server:
        body = os.urandom(1_000_000)
        with closing(connect(server, context)) as connection:
            assert ask(connection, "POST", "/echo", body) == (200, body)
            assert ask(connection, "GET", "/stream") == (200, STREAMED)
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no TLS: turned away, no answer
            assert b"200" not in sock.recv(100)


def test_clients_that_leave(server):
    """In the middle of a request, a response and a WebSocket; no handler stays behind."""
    for request in (
        b"GET / HT",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf",
        b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    ):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
                sock.sendall(request)
                if request.startswith((b"GET /e", b"GET /w")):
                    assert sock.recv(100).startswith(b"HTTP/1.1 ")
    deadline = time.monotonic() + PATIENCE
    with closing(connect(server)) as connection:
        while (others := ask(connection, "GET", "/others")) != (200, b"0"):
            assert time.monotonic() < deadline, others


def test_server_that_leaves(short_path):
    """It is ended with a client in the middle of a response: that client learns of it."""

    async def main() -> None:
        base = f"http://127.0.0.1:{server.port}"
        async with aiohttp.ClientSession(base) as session, session.get("/endless") as response:
            await response.content.readexactly(1_000_000)
            await asyncio.to_thread(server.end, 9)
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    with AiohttpServer(short_path) as server:
        run_client(main())


def test_under_wrk(short_path, certificate):
    with AiohttpServer(short_path) as server:
        where = f"http://127.0.0.1:{server.port}"
        for path in ("/", "/stream"):
            assert run_wrk("-t", 2, "-c", 20, "-d", "1s", where + path) > 0
        assert run_wrk("-t", 2, "-c", 20, "-d", "1s", "-s", HERE / "echo.lua", where) > 0
    with AiohttpServer(short_path, *certificate) as server:
        assert run_wrk("-t", 2, "-c", 20, "-d", "1s", f"https://127.0.0.1:{server.port}/") > 0
