"""An echo server on any Python library of the benchmark; bench/run.py starts one a measurement.

All of them do the same: whatever arrives goes back, and a connection that the peer ends is closed.
The listening socket is made here, the same for all, so that backlog and options do not differ.
`--kind` says how the server is written:

protocol   data_received() writes what it was given (asyncio.Protocol, Twisted's Protocol); for
           datagrams datagram_received() sends it back
twisted    the same Protocol of Twisted's, on each of its reactors
web        no echo: a short answer of twisted.web's to each request, on the same reactors
uvicorn    a short answer of an ASGI application's, parsed by httptools, on each of asyncio's loops
aiohttp    a short answer of aiohttp.web's, on the same
buffered   asyncio.BufferedProtocol with a room of its own for each connection
streams    read, write, read again: a coroutine, a greenlet or a thread for each connection

With TLS, all of them get the same context of the ssl module; Twisted, which wants pyOpenSSL's, the
same certificate.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import os
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BACKLOG = 1024  # as in endpoint.h
CHUNK = 64 * 1024  # what one read of a stream may bring; asyncio's and trio's own default
ROOM = 256 * 1024  # of a buffered protocol

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True)
class Place:
    """Where to listen, on a socket that does; and with TLS the file of certificate and key."""

    sock: socket.socket
    pem: str | None = None

    def tls_context(self) -> ssl.SSLContext | None:
        if self.pem is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pem)
        return context


def listen(endpoint: str) -> Place:
    scheme, _, rest = endpoint.partition(":")
    pem = None
    if scheme == "tls":
        rest, _, pem = rest.partition("?")
    if scheme == "udp" and rest.startswith("127."):
        host, _, port = rest.rpartition(":")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, int(port)))
        return Place(sock)
    if scheme == "unix" and rest:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(rest)
    elif rest.startswith("127.") and rest.rpartition(":")[2].isdigit():
        host, _, port = rest.rpartition(":")
        # Without its number, asyncio does not know the protocol, and does not set TCP_NODELAY.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
    else:
        sys.exit(f"an endpoint is tcp:127.x.x.x:PORT, udp:…, unix:PATH or tls:…?PEM: {endpoint!r}")
    sock.listen(BACKLOG)
    return Place(sock, pem)


def ready() -> None:
    print("ready", flush=True)


def no_delay(sock: Any) -> None:
    """What asyncio and trio do of themselves, for those that do not."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# ---- the asyncio family --------------------------------------------------------------------------


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    """Echoes straight from its room, and so does not read while the transport still needs it."""

    def __init__(self) -> None:
        self.room = memoryview(bytearray(ROOM))

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(0)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.room

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(self.room[:nbytes])

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class SealedEcho(BufferedEcho):
    """With TLS what is written has been sealed before the next read: its room is free again."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport


class CopyingEcho(BufferedEcho):
    """For rloop 0.5, which takes a memoryview apart byte by byte: with bytes it is far faster."""

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.room[:nbytes]))


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


async def stream_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass  # the load ends some of its connections with a reset
    finally:
        writer.close()


def buffered_echo(library: str, tls: bool) -> type[BufferedEcho]:
    if tls:
        return SealedEcho
    return CopyingEcho if library == "rloop" else BufferedEcho


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


async def serve_uvicorn(place: Place) -> None:
    import uvicorn

    config = uvicorn.Config(
        hello, http="httptools", lifespan="off", log_level="warning", backlog=BACKLOG
    )
    server = uvicorn.Server(config)
    asyncio.get_running_loop().call_soon(ready)  # what listens does already
    await server.serve([place.sock])


async def serve_aiohttp(place: Place) -> None:
    from aiohttp import web

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    application = web.Application()
    application.router.add_get("/", hello)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.SockSite(runner, place.sock, backlog=BACKLOG).start()
    ready()
    await asyncio.Event().wait()


WEB = {"uvicorn": serve_uvicorn, "aiohttp": serve_aiohttp}


async def serve_asyncio(library: str, place: Place, kind: str) -> None:
    if kind in WEB:
        await WEB[kind](place)
        return
    loop = asyncio.get_running_loop()
    if place.sock.type == socket.SOCK_DGRAM:
        endpoint = await loop.create_datagram_endpoint(DatagramEcho, sock=place.sock)
        ready()
        await asyncio.Event().wait()
        del endpoint
    options: dict[str, Any] = {"sock": place.sock, "backlog": BACKLOG, "ssl": place.tls_context()}
    unix = place.sock.family == socket.AF_UNIX
    if kind == "streams":
        start: Any = asyncio.start_unix_server if unix else asyncio.start_server
        server = await start(stream_echo, **options)
    else:
        create: Any = loop.create_unix_server if unix else loop.create_server
        buffered = buffered_echo(library, place.pem is not None)
        server = await create(Echo if kind == "protocol" else buffered, **options)
    ready()
    await asyncio.Event().wait()
    del server


def loop_factory(library: str) -> LoopFactory:
    """The loop of a library, made as its own documentation says."""
    if library == "asyncio":
        return asyncio.SelectorEventLoop
    if library in ("uvloop", "rloop"):
        factory: LoopFactory = importlib.import_module(library).new_event_loop
        return factory
    if library == "becket":
        becket_loop: LoopFactory = importlib.import_module("becket").EventLoop
        return becket_loop
    name, _, under = library.partition("+")
    if name != "aiofastnet":
        raise ValueError(f"{library} has no asyncio loop")
    base = loop_factory(under or "asyncio")
    patched: LoopFactory = importlib.import_module(name).loop_factory(base)
    return patched


def run_asyncio(library: str, place: Place, kind: str) -> None:
    place.sock.setblocking(False)
    with asyncio.Runner(loop_factory=loop_factory(library)) as runner:
        runner.run(serve_asyncio(library, place, kind))


# ---- the others ----------------------------------------------------------------------------------


def install_reactor(library: str) -> None:
    """Twisted's own, becket's, or the one that Twisted puts on an asyncio loop."""
    if library == "twisted":
        from twisted.internet import epollreactor

        epollreactor.install()
    elif library == "twisted+becket":
        importlib.import_module("becket.twisted").install()
    else:
        from twisted.internet import asyncioreactor

        asyncioreactor.install(loop_factory("becket")())


def web_site() -> Any:
    """As a user writes one."""
    from twisted.web.resource import Resource
    from twisted.web.server import Site

    class Hello(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return b"hello"

    return Site(Hello())


def run_twisted(library: str, place: Place, kind: str) -> None:
    install_reactor(library)
    from twisted.internet import reactor as installed
    from twisted.internet.protocol import Factory, Protocol

    sock = place.sock

    class TwistedEcho(Protocol):
        def connectionMade(self) -> None:
            if sock.family == socket.AF_INET:
                self.transport.setTcpNoDelay(True)

        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)

    reactor: Any = installed
    factory: Any = web_site() if kind == "web" else Factory.forProtocol(TwistedEcho)
    if place.pem is not None:
        from twisted.internet.ssl import PrivateCertificate
        from twisted.protocols.tls import TLSMemoryBIOFactory

        certificate = PrivateCertificate.loadPEM(Path(place.pem).read_text())
        factory = TLSMemoryBIOFactory(certificate.options(), False, factory)
    sock.setblocking(False)
    reactor.adoptStreamPort(sock.fileno(), sock.family, factory)
    reactor.callWhenRunning(ready)
    reactor.run()


def run_trio(place: Place, kind: str) -> None:
    import trio

    context = place.tls_context()

    async def echo(stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        try:
            while data := await stream.receive_some(CHUNK):
                await stream.send_all(data)
            if context:
                await stream.aclose()  # says so to the peer, which serve_listeners() would not
        except trio.BrokenResourceError:
            pass

    async def main() -> None:
        ready()
        plain = trio.SocketListener(trio.socket.from_stdlib_socket(place.sock))
        listener = trio.SSLListener(plain, context) if context else plain
        await trio.serve_listeners(echo, [listener])

    trio.run(main)


def run_gevent(place: Place, kind: str) -> None:
    import gevent.socket
    import gevent.ssl
    from gevent.server import StreamServer

    def echo(connection: Any, address: object) -> None:
        no_delay(connection)
        try:
            while data := connection.recv(CHUNK):
                connection.sendall(data)
        except (ConnectionError, ssl.SSLError):
            pass

    options: dict[str, Any] = {}
    if place.pem is not None:
        context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(place.pem)
        options = {"ssl_context": context}
    sock = place.sock
    listener = gevent.socket.socket(sock.family, sock.type, fileno=os.dup(sock.fileno()))
    server = StreamServer(listener, echo, **options)
    server.start()
    ready()
    server.serve_forever()


def run_socketserver(place: Place, kind: str) -> None:
    import socketserver

    context = place.tls_context()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            no_delay(self.request)
            try:
                if context:  # here, not in the thread that accepts: it waits for the peer
                    self.request = context.wrap_socket(self.request, server_side=True)
                while data := self.request.recv(CHUNK):
                    self.request.sendall(data)
            except (ConnectionError, ssl.SSLError):
                pass

        def finish(self) -> None:
            if context:
                self.request.close()  # the server closes what it accepted, now an empty shell

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False  # otherwise it keeps every thread it ever started

    with Server(("127.0.0.1", 0), Handler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = place.sock
        ready()
        server.serve_forever()


TWISTED = ("twisted", "twisted+becket", "twisted+asyncio+becket")
OTHERS: dict[str, Callable[[Place, str], None]] = {
    **{name: functools.partial(run_twisted, name) for name in TWISTED},
    "trio": run_trio,
    "gevent": run_gevent,
    "socketserver": run_socketserver,
}
FAMILY = ("asyncio", "uvloop", "rloop", "aiofastnet", "aiofastnet+uvloop", "becket")
KINDS = {
    **dict.fromkeys(FAMILY, ("protocol", "buffered", "streams", *WEB)),
    **dict.fromkeys(OTHERS, ("streams",)),
    **dict.fromkeys(TWISTED, ("twisted", "web")),
    "twisted": ("protocol", "twisted", "web"),
}
WITH_UDP = ("asyncio", "uvloop", "becket")  # aiofastnet leaves datagrams to the loop it is on
WITHOUT_TLS = ("rloop",)  # 0.5: NotImplementedError


def main() -> None:
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("endpoint", help="tcp:127.0.0.1:PORT, udp:…, unix:PATH or tls:…?PEM")
    parser.add_argument("--library", required=True, choices=sorted(KINDS))
    parser.add_argument(
        "--kind",
        required=True,
        choices=sorted({kind for kinds in KINDS.values() for kind in kinds}),
    )
    options = parser.parse_args()
    if options.kind not in KINDS[options.library]:
        parser.error(f"{options.library} has no kind {options.kind}, only {KINDS[options.library]}")
    place = listen(options.endpoint)
    try:
        if options.library in OTHERS:
            OTHERS[options.library](place, options.kind)
        else:
            run_asyncio(options.library, place, options.kind)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
