"""Tornado: its HTTP server and client, WebSockets, streams, by TLS too; and as older programs run
it, which take the loop that asyncio's policy makes."""

from __future__ import annotations

import asyncio
import os
import socket
from urllib.request import urlopen

import pytest
from tornado import gen, httpclient, httpserver, ioloop, iostream, netutil, tcpserver, web
from tornado import websocket as ws

from interop.processes import PATIENCE, Server


class Echo(web.RequestHandler):
    def post(self) -> None:
        self.write(self.request.body)


@web.stream_request_body
class Length(web.RequestHandler):
    """Reads a body as it comes, and takes its time."""

    def initialize(self) -> None:
        self.length = 0

    async def data_received(self, chunk: bytes) -> None:
        self.length += len(chunk)
        await gen.sleep(0)

    def post(self) -> None:
        self.write(str(self.length))


class Stream(web.RequestHandler):
    async def get(self) -> None:
        for number in range(100):
            self.write(b"%d:" % number + b"s" * (number * 100) + b"\n")
            await self.flush()


class Loop(web.RequestHandler):
    async def get(self) -> None:
        running = asyncio.get_running_loop()
        assert ioloop.IOLoop.current().asyncio_loop is running
        self.write(type(running).__name__)


class Socket(ws.WebSocketHandler):
    async def on_message(self, message) -> None:
        await self.write_message(message, binary=isinstance(message, bytes))


STREAMED = b"".join(b"%d:%s\n" % (n, b"s" * (n * 100)) for n in range(100))
ROUTES = [
    ("/echo", Echo),
    ("/length", Length),
    ("/stream", Stream),
    ("/loop", Loop),
    ("/ws", Socket),
]


@pytest.fixture(params=["tcp", "tls"])
def serve(request, run, tls):
    """Runs a test's coroutine with a client, what makes requests of it, and the loop's name."""
    secure = request.param == "tls"

    async def main(test) -> None:
        server = httpserver.HTTPServer(
            web.Application(ROUTES, websocket_max_message_size=1 << 25),
            ssl_options=tls.server() if secure else None,
        )
        sockets = netutil.bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        where = f"127.0.0.1:{sockets[0].getsockname()[1]}"
        where = f"https://{where}" if secure else f"http://{where}"
        client = httpclient.AsyncHTTPClient(force_instance=True)

        def ask(path: str, **options) -> httpclient.HTTPRequest:
            options["ssl_options"] = tls.client() if secure else None
            headers = {"Content-Type": "application/octet-stream"}
            return httpclient.HTTPRequest(where + path, headers=headers, **options)

        try:
            await test(client, ask)
        finally:
            client.close()
            server.stop()
            await server.close_all_connections()

    return lambda test: run(main(test))


def test_requests(serve):
    async def test(client, ask) -> None:
        name = type(asyncio.get_running_loop()).__name__
        assert (await client.fetch(ask("/loop"))).body.decode() == name
        assert (await client.fetch(ask("/stream"))).body == STREAMED
        for size in (0, 1, 65_535, 65_536, 65_537, 2_000_000):
            body = os.urandom(size)
            answer = await client.fetch(ask("/echo", method="POST", body=body))
            assert answer.body == body
        answer = await client.fetch(ask("/none"), raise_error=False)
        assert answer.code == 404

    serve(test)


def test_a_body_in_pieces(serve):
    async def pieces(write) -> None:
        for number in range(100):
            await write(b"p" * (number * 300 + 1))

    async def test(client, ask) -> None:
        answer = await client.fetch(ask("/length", method="POST", body_producer=pieces))
        assert int(answer.body) == sum(number * 300 + 1 for number in range(100))

    serve(test)


def test_requests_at_once(serve):
    async def test(client, ask) -> None:
        async def echo(number: int) -> None:
            body = f"{number} ".encode() * number
            answer = await client.fetch(ask("/echo", method="POST", body=body))
            assert answer.body == body

        await asyncio.gather(*(echo(number) for number in range(50)))

    serve(test)


def test_web_sockets(serve):
    async def test(client, ask) -> None:
        request = ask("/ws")
        request.url = request.url.replace("http", "ws", 1)
        connection = await ws.websocket_connect(request, max_message_size=1 << 25)
        for size in (0, 1, 125, 126, 65_535, 65_536, 300_000):
            data = os.urandom(size)
            await connection.write_message(data, binary=True)
            assert await connection.read_message() == data
        texts = [f"message {number} ü" for number in range(100)]
        for text in texts:
            await connection.write_message(text)
        assert [await connection.read_message() for _ in texts] == texts
        connection.close(1000)
        assert await connection.read_message() is None

    serve(test)


def test_streams_that_start_tls(run, tls):
    """An IOStream watches its socket by add_reader(); TLS comes in the midst of it."""

    class Upper(tcpserver.TCPServer):
        async def handle_stream(self, stream, address) -> None:
            assert await stream.read_until(b"\n") == b"starttls\n"
            await stream.write(b"go on\n")
            stream = await stream.start_tls(True, tls.server())
            try:
                while True:
                    await stream.write((await stream.read_until(b"\n")).upper())
            except iostream.StreamClosedError:
                pass

    async def main() -> None:
        server = Upper()
        sockets = netutil.bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        stream = iostream.IOStream(socket.socket())
        await stream.connect(sockets[0].getsockname())
        await stream.write(b"starttls\n")
        assert await stream.read_until(b"\n") == b"go on\n"
        stream = await stream.start_tls(False, tls.client(), server_hostname="localhost")
        for size in (1, 1000, 300_000):
            await stream.write(b"a" * size + b"\n")
            assert await stream.read_until(b"\n") == b"A" * size + b"\n"
        stream.close()
        server.stop()

    run(main())


CLASSIC = """
import sys
import becket
becket.install()
from tornado import httpserver, ioloop, netutil, web

class Loop(web.RequestHandler):
    def get(self):
        self.write(type(ioloop.IOLoop.current().asyncio_loop).__name__)

class Stop(web.RequestHandler):
    def get(self):
        loop.add_callback(loop.stop)

loop = ioloop.IOLoop()  # it makes a loop as the policy says
sockets = netutil.bind_sockets(0, "127.0.0.1")
server = httpserver.HTTPServer(web.Application([("/loop", Loop), ("/stop", Stop)]))
server.add_sockets(sockets)
print("listening at", sockets[0].getsockname()[1], flush=True)
loop.start()
server.stop()
loop.close(all_fds=True)
print("ended")
"""


def test_as_older_programs_run_it():
    # Newer Pythons warn of what such programs do, so that this is not for development mode.
    with Server("-c", CLASSIC, expected=r"listening at \d+|ended", development=False) as server:
        port = server.wait_for(r"listening at (\d+)")[1]
        where = f"http://127.0.0.1:{port}"
        with urlopen(f"{where}/loop", timeout=PATIENCE) as answer:
            assert answer.read() == b"EventLoop"
        urlopen(f"{where}/stop", timeout=PATIENCE).close()
        server.process.wait(PATIENCE)
