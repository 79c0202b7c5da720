"""An echo server on any Python library of the benchmark; bench/run.py starts one a measurement.

All of them do the same: whatever arrives goes back, and a connection that the peer ends is closed.
The listening socket is made here, the same for all, so that backlog and options do not differ.
`--kind` says how the server is written:

protocol   data_received() writes what it was given (asyncio.Protocol, Twisted's Protocol)
buffered   asyncio.BufferedProtocol with a room of its own for each connection
streams    read, write, read again: a coroutine, a greenlet or a thread for each connection
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

BACKLOG = 1024  # as in endpoint.h
CHUNK = 64 * 1024  # what one read of a stream may bring; asyncio's and trio's own default
ROOM = 256 * 1024  # of a buffered protocol

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def listen(endpoint: str) -> socket.socket:
    scheme, _, rest = endpoint.partition(":")
    if scheme == "unix" and rest:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(rest)
    elif scheme == "tcp" and rest.startswith("127.") and rest.rpartition(":")[2].isdigit():
        host, _, port = rest.rpartition(":")
        sock = socket.socket(socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
    else:
        sys.exit(f"an endpoint is tcp:127.x.x.x:PORT or unix:PATH, not {endpoint!r}")
    sock.listen(BACKLOG)
    return sock


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


class CopyingEcho(BufferedEcho):
    """For rloop 0.5, which takes a memoryview apart byte by byte: with bytes it is far faster."""

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.room[:nbytes]))


async def stream_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the load ends some of its connections with a reset
    finally:
        writer.close()


async def serve_asyncio(library: str, sock: socket.socket, kind: str) -> None:
    loop = asyncio.get_running_loop()
    unix = sock.family == socket.AF_UNIX
    if kind == "streams":
        start: Any = asyncio.start_unix_server if unix else asyncio.start_server
        server = await start(stream_echo, sock=sock, backlog=BACKLOG)
    else:
        create: Any = loop.create_unix_server if unix else loop.create_server
        buffered = CopyingEcho if library == "rloop" else BufferedEcho
        protocol = Echo if kind == "protocol" else buffered
        server = await create(protocol, sock=sock, backlog=BACKLOG)
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


def run_asyncio(library: str, sock: socket.socket, kind: str) -> None:
    sock.setblocking(False)
    with asyncio.Runner(loop_factory=loop_factory(library)) as runner:
        runner.run(serve_asyncio(library, sock, kind))


# ---- the others ----------------------------------------------------------------------------------


def run_twisted(sock: socket.socket, kind: str) -> None:
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import reactor as installed
    from twisted.internet.protocol import Factory, Protocol

    class TwistedEcho(Protocol):
        def connectionMade(self) -> None:
            if sock.family == socket.AF_INET:
                self.transport.setTcpNoDelay(True)

        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)

    reactor: Any = installed
    sock.setblocking(False)
    reactor.adoptStreamPort(sock.fileno(), sock.family, Factory.forProtocol(TwistedEcho))
    reactor.callWhenRunning(ready)
    reactor.run()


def run_trio(sock: socket.socket, kind: str) -> None:
    import trio

    async def echo(stream: trio.SocketStream) -> None:
        try:
            while data := await stream.receive_some(CHUNK):
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    async def main() -> None:
        ready()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        await trio.serve_listeners(echo, [listener])

    trio.run(main)


def run_gevent(sock: socket.socket, kind: str) -> None:
    import gevent.socket
    from gevent.server import StreamServer

    def echo(connection: Any, address: object) -> None:
        no_delay(connection)
        try:
            while data := connection.recv(CHUNK):
                connection.sendall(data)
        except ConnectionError:
            pass

    listener = gevent.socket.socket(sock.family, sock.type, fileno=os.dup(sock.fileno()))
    server = StreamServer(listener, echo)
    server.start()
    ready()
    server.serve_forever()


def run_socketserver(sock: socket.socket, kind: str) -> None:
    import socketserver

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            no_delay(self.request)
            try:
                while data := self.request.recv(CHUNK):
                    self.request.sendall(data)
            except ConnectionError:
                pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False  # otherwise it keeps every thread it ever started

    with Server(("127.0.0.1", 0), Handler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = sock
        ready()
        server.serve_forever()


OTHERS: dict[str, Callable[[socket.socket, str], None]] = {
    "twisted": run_twisted,
    "trio": run_trio,
    "gevent": run_gevent,
    "socketserver": run_socketserver,
}
FAMILY = ("asyncio", "uvloop", "rloop", "aiofastnet", "aiofastnet+uvloop", "becket")
KINDS = {
    **dict.fromkeys(FAMILY, ("protocol", "buffered", "streams")),
    **dict.fromkeys(OTHERS, ("streams",)),
    "twisted": ("protocol",),
}


def main() -> None:
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("endpoint", help="tcp:127.0.0.1:PORT or unix:PATH")
    parser.add_argument("--library", required=True, choices=sorted(KINDS))
    parser.add_argument("--kind", required=True, choices=["protocol", "buffered", "streams"])
    options = parser.parse_args()
    if options.kind not in KINDS[options.library]:
        parser.error(f"{options.library} has no kind {options.kind}, only {KINDS[options.library]}")
    sock = listen(options.endpoint)
    try:
        if options.library in OTHERS:
            OTHERS[options.library](sock, options.kind)
        else:
            run_asyncio(options.library, sock, options.kind)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
