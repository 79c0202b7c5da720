"""Servers: listening, accepting, closing, and running out of descriptors; and who connects."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from support import Echo, Loop, Recorder, Reports, no_more_than, run, turns, until


class Serving:
    """An echo server on TCP whose protocols are kept."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.protocols: list[Recorder] = []
        self.server: Any = None

    def protocol(self) -> Recorder:
        self.protocols.append(Recorder(self.loop))
        return self.protocols[-1]

    async def start(self, **kwargs: Any) -> tuple[str, int]:
        self.server = await self.loop.create_server(self.protocol, "127.0.0.1", 0, **kwargs)
        name: tuple[str, int] = self.server.sockets[0].getsockname()
        return name

    async def end(self) -> None:
        self.server.close()
        for protocol in self.protocols:
            protocol.transport.abort()
            await protocol.lost
        await self.server.wait_closed()


async def connect(loop: Loop, address: tuple[str, int]) -> Recorder:
    _, protocol = await loop.create_connection(lambda: Recorder(loop), *address)
    return protocol


def test_a_server_serves(loop: Loop) -> None:
    async def main() -> None:
        serving = Serving(loop)
        address = await serving.start()
        assert isinstance(serving.server, asyncio.AbstractServer)
        assert serving.server.is_serving()
        assert serving.server.get_loop() is loop
        clients = [await connect(loop, address) for _ in range(10)]
        await until(lambda: len(serving.protocols) == 10)
        for number, client in enumerate(clients):
            client.transport.write(b"%d" % number)
        for protocol in serving.protocols:
            await protocol.received(1)
        assert sorted(bytes(p.data) for p in serving.protocols) == [b"%d" % i for i in range(10)]
        names = {p.transport.get_extra_info("peername") for p in serving.protocols}
        assert names == {c.transport.get_extra_info("sockname") for c in clients}
        await serving.end()
        for client in clients:
            await client.lost
        assert not serving.server.is_serving()
        assert list(serving.server.sockets) == []

    run(loop, main())


def test_repr_and_sockets(loop: Loop) -> None:
    async def main() -> None:
        serving = Serving(loop)
        address = await serving.start()
        assert repr(serving.server).startswith("<Server sockets=(<asyncio.TransportSocket fd=")
        (sock,) = serving.server.sockets
        assert sock.getsockname() == address
        assert sock.fileno() > 0
        await serving.end()

    run(loop, main())


def test_start_serving_later(loop: Loop) -> None:
    async def main() -> None:
        serving = Serving(loop)
        address = await serving.start(start_serving=False)
        assert not serving.server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            await connect(loop, address)
        await serving.server.start_serving()
        await serving.server.start_serving()
        assert serving.server.is_serving()
        client = await connect(loop, address)
        await until(lambda: serving.protocols)
        await serving.end()
        await client.lost

    run(loop, main())


def test_serve_forever_until_it_is_cancelled(loop: Loop) -> None:
    async def main() -> None:
        serving = Serving(loop)
        await serving.start(start_serving=False)
        task = asyncio.create_task(serving.server.serve_forever())
        await turns()
        assert serving.server.is_serving()
        with pytest.raises(RuntimeError, match="already being awaited"):
            await serving.server.serve_forever()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not serving.server.is_serving()
        with pytest.raises(RuntimeError, match="is closed"):
            await serving.server.serve_forever()

    run(loop, main())


def test_async_with(loop: Loop) -> None:
    async def main() -> None:
        serving = Serving(loop)
        address = await serving.start()
        async with serving.server as server:
            assert server is serving.server
            client = await connect(loop, address)
            client.transport.close()
            await client.lost
            await until(lambda: serving.protocols and serving.protocols[0].lost.done())
        assert not server.is_serving()

    run(loop, main())


def test_close_refuses_newcomers_and_keeps_those_that_are_there(loop: Loop) -> None:
    async def main() -> None:
        serving = Serving(loop)
        address = await serving.start()
        client = await connect(loop, address)
        await until(lambda: serving.protocols)
        serving.server.close()
        serving.server.close()
        with pytest.raises(ConnectionRefusedError):
            await connect(loop, address)
        client.transport.write(b"still served")
        assert await serving.protocols[0].received(12) == b"still served"
        await serving.end()
        await client.lost

    run(loop, main())


def test_close_in_the_factory_and_in_connection_made(becket_loop: Loop) -> None:
    loop = becket_loop  # asyncio itself loses such a connection

    async def main() -> None:
        for inside in ("factory", "connection_made"):
            servers: list[Any] = []

            class Closing(Echo):
                def connection_made(
                    self, transport: Any, inside: str = inside, servers: list[Any] = servers
                ) -> None:
                    super().connection_made(transport)
                    if inside == "connection_made":
                        servers[0].close()

            def factory(
                inside: str = inside, servers: list[Any] = servers, protocol: type[Echo] = Closing
            ) -> Echo:
                if inside == "factory":
                    servers[0].close()
                return protocol()

            servers.append(await loop.create_server(factory, "127.0.0.1", 0))
            client = await connect(loop, servers[0].sockets[0].getsockname())
            client.transport.write(b"echo")
            assert await client.received(4) == b"echo"
            client.transport.close()
            await client.lost
            await no_more_than(servers[0].wait_closed())

    run(loop, main())


def test_wait_closed_waits_for_the_connections(loop: Loop) -> None:
    """In Python 3.12.1 and later; before, it returned at once."""

    async def main() -> None:
        serving = Serving(loop)
        address = await serving.start()
        client = await connect(loop, address)
        await until(lambda: serving.protocols)
        serving.server.close()
        waiting = asyncio.create_task(serving.server.wait_closed())
        await asyncio.sleep(0.01)
        if sys.version_info >= (3, 12, 1):
            assert not waiting.done()
        client.transport.close()
        await client.lost
        await no_more_than(waiting)

    run(loop, main())


if sys.version_info >= (3, 13):

    @pytest.mark.parametrize("way", ["close_clients", "abort_clients"])
    def test_ending_the_clients(loop: Loop, way: str) -> None:
        async def main() -> None:
            serving = Serving(loop)
            address = await serving.start()
            clients = [await connect(loop, address) for _ in range(5)]
            await until(lambda: len(serving.protocols) == 5)
            gone = await connect(loop, address)
            gone.transport.close()
            await gone.lost
            await until(lambda: len(serving.protocols) == 6 and serving.protocols[5].lost.done())
            serving.server.close()
            getattr(serving.server, way)()
            for protocol in (*serving.protocols, *clients):
                assert await protocol.lost is None or way == "abort_clients"
            await no_more_than(serving.server.wait_closed())

        run(loop, main())


def test_a_factory_that_fails_costs_one_connection(becket_loop: Loop) -> None:
    """asyncio tells of it in debug mode only, and leaks the socket."""
    loop, reports = becket_loop, Reports(becket_loop, expected=True)

    async def main() -> None:
        count = 0

        def factory() -> Echo:
            nonlocal count
            count += 1
            if count == 1:
                raise ZeroDivisionError("mine")
            return Echo()

        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        first = await connect(loop, address)
        await until(lambda: reports.all)
        context = reports.all[0]
        assert context["message"] == "Error on transport creation for incoming connection"
        context.clear()
        gc.collect()
        await first.lost
        second = await connect(loop, address)
        second.transport.write(b"fine")
        assert await second.received(4) == b"fine"
        second.transport.close()
        await second.lost
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_connection_made_that_fails_does_not_stop_the_server(loop: Loop, reports: Reports) -> None:
    async def main() -> None:
        made: list[Any] = []

        class Failing(Echo):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                made.append(transport)
                if len(made) == 1:
                    raise ZeroDivisionError("mine")

        server = await loop.create_server(Failing, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        first = await connect(loop, address)
        await until(lambda: made)
        made[0].abort()
        await first.lost
        second = await connect(loop, address)
        second.transport.write(b"fine")
        assert await second.received(4) == b"fine"
        second.transport.close()
        await second.lost
        assert isinstance(reports.take()["exception"], ZeroDivisionError)
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_what_is_no_protocol_is_reported(becket_loop: Loop) -> None:
    loop, reports = becket_loop, Reports(becket_loop, expected=True)

    async def main() -> None:
        server = await loop.create_server(lambda: None, "127.0.0.1", 0)  # type: ignore[arg-type, return-value]
        client = await connect(loop, server.sockets[0].getsockname())
        await until(lambda: reports.all)
        assert isinstance(reports.exceptions[0], AttributeError)
        reports.all.clear()
        client.transport.abort()
        await client.lost
        server.close()

    run(loop, main())


name = contextvars.ContextVar("name", default="none")


def test_connections_have_the_context_of_their_server(loop: Loop) -> None:
    seen: list[str] = []

    class Seeing(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            seen.append(name.get())

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            seen.append(name.get())

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            seen.append(name.get())

    async def main() -> None:
        name.set("of the server")
        made: list[Seeing] = []

        def factory() -> Seeing:
            made.append(Seeing(loop))
            return made[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        name.set("of the client")
        client = await connect(loop, server.sockets[0].getsockname())
        client.transport.write(b"x")
        await until(lambda: made and made[0].data)
        client.transport.close()
        await client.lost
        await until(lambda: made[0].lost.done())
        server.close()

    run(loop, main())
    assert seen == ["of the server"] * 3


def test_several_addresses_and_a_given_socket(loop: Loop) -> None:
    async def main() -> None:
        server = (
            await loop.create_server(Echo, ["127.0.0.1", "127.0.0.2"], 0)
            if (sys.platform.startswith("linux"))
            else await loop.create_server(Echo, "127.0.0.1", 0)
        )
        for sock in server.sockets:
            client = await connect(loop, sock.getsockname())
            client.transport.write(b"x")
            assert await client.received(1) == b"x"
            client.transport.close()
            await client.lost
        server.close()
        await server.wait_closed()
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        server = await loop.create_server(Echo, sock=listening)
        client = await connect(loop, listening.getsockname())
        client.transport.close()
        await client.lost
        server.close()
        await server.wait_closed()
        assert listening.fileno() == -1

    run(loop, main())


def test_what_cannot_be_served(loop: Loop) -> None:
    async def main() -> None:
        serving = Serving(loop)
        address = await serving.start()
        with pytest.raises(OSError, match="address already in use"):
            await loop.create_server(Echo, *address)
        with pytest.raises(ValueError, match="Neither host/port nor sock"):
            await loop.create_server(Echo)
        with pytest.raises(ValueError, match="can not be specified at the same time"):
            await loop.create_server(Echo, "127.0.0.1", 0, sock=serving.server.sockets[0]._sock)
        with pytest.raises(TypeError):
            await loop.create_server(Echo, "127.0.0.1", 0, ssl=True)  # type: ignore[call-overload]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            with pytest.raises(ValueError, match="Stream Socket"):
                await loop.create_server(Echo, sock=datagrams)
        await serving.end()

    run(loop, main())


def test_what_cannot_be_connected(loop: Loop) -> None:
    async def main() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = unused.getsockname()
            with pytest.raises(ConnectionRefusedError):
                await loop.create_connection(Echo, *address)
            with pytest.raises(OSError):
                await loop.create_connection(Echo, *address, local_addr=("192.0.2.1", 0))
        with pytest.raises(ValueError, match="host and port was not specified and no sock"):
            await loop.create_connection(Echo)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            with pytest.raises(ValueError, match="Stream Socket"):
                await loop.create_connection(Echo, sock=datagrams)

    run(loop, main())


def test_connecting_by_name_and_from_a_local_address(loop: Loop) -> None:
    async def main() -> None:
        serving = Serving(loop)
        host, port = await serving.start()
        _, client = await loop.create_connection(
            lambda: Recorder(loop),
            "localhost",
            port,
            family=socket.AF_INET,
            local_addr=("127.0.0.1", 0),
        )
        assert client.transport.get_extra_info("peername") == (host, port)
        _, eyeballs = await loop.create_connection(
            lambda: Recorder(loop), "localhost", port, happy_eyeballs_delay=0.25
        )
        await until(lambda: len(serving.protocols) == 2)
        await serving.end()
        await client.lost
        await eyeballs.lost

    run(loop, main())


def test_a_cancelled_connection_leaves_nothing(loop: Loop) -> None:
    async def main() -> None:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        for _ in range(20):
            task = asyncio.create_task(connect(loop, listening.getsockname()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            try:
                client = await task
            except asyncio.CancelledError:
                continue
            client.transport.abort()
            await client.lost
        listening.close()
        await turns(10)

    run(loop, main())


# ---- UNIX sockets ----


def test_unix_sockets(loop: Loop, short_path: str) -> None:
    async def main() -> None:
        server = await loop.create_unix_server(Echo, short_path)
        for path in (short_path, Path(short_path)):
            _, client = await loop.create_unix_connection(lambda: Recorder(loop), path)  # type: ignore[arg-type]
            client.transport.write(b"echo")
            assert await client.received(4) == b"echo"
            client.transport.close()
            await client.lost
        server.close()
        await server.wait_closed()
        if os.path.exists(short_path):
            with pytest.raises(ConnectionRefusedError):
                await loop.create_unix_connection(Echo, short_path)
            os.unlink(short_path)
        with pytest.raises(FileNotFoundError):
            await loop.create_unix_connection(Echo, short_path)
        with pytest.raises(OSError):
            await loop.create_unix_server(Echo, short_path + "/no/such/folder")

    run(loop, main())


if sys.platform.startswith("linux"):

    def test_abstract_unix_sockets(loop: Loop) -> None:
        async def main() -> None:
            path = f"\0becket-test-{os.getpid()}"
            server = await loop.create_unix_server(Echo, path)
            transport, client = await loop.create_unix_connection(lambda: Recorder(loop), path)
            assert transport.get_extra_info("peername") == path.encode()
            transport.write(b"echo")
            assert await client.received(4) == b"echo"
            transport.close()
            await client.lost
            server.close()
            await server.wait_closed()

        run(loop, main())


def test_a_unix_socket_pair(loop: Loop) -> None:
    async def main() -> None:
        a, b = socket.socketpair()
        _, near = await loop.create_unix_connection(lambda: Recorder(loop), sock=a)
        b.send(b"hello")
        assert await near.received(5) == b"hello"
        b.close()
        assert await near.lost is None

    run(loop, main())


# ---- Running out of descriptors ----


def test_no_descriptor_left_to_accept_with(
    loop: Loop, reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, the server lives on, and who waited is served once there is room again."""

    async def main() -> None:
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        clients = [socket.socket() for _ in range(3)]
        most = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        fillers = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
        try:
            while True:
                try:
                    fillers.append(os.dup(0))
                except OSError:
                    break
            for client in clients:
                client.connect(address)
                client.send(b"patient")
            await until(lambda: reports.all or caplog.records)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for fd in fillers:
                os.close(fd)
        for client in clients:
            client.setblocking(False)
            assert await loop.sock_recv(client, 100) == b"patient"
            client.close()
        told = caplog.text + "".join(str(context) for context in reports.all)
        assert "accept" in told
        assert server.is_serving()
        await turns()
        server.close()

    if os.path.isdir("/proc/self/fd"):
        run(loop, main())


def test_no_descriptor_left_to_connect_with(loop: Loop) -> None:
    async def main() -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await loop.create_connection(Echo, "127.0.0.1", 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    run(loop, main())


def test_no_descriptor_left_to_make_a_loop_with(kind: str) -> None:
    from conftest import make_loop

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        if kind != "asyncio":  # whose own half-made loop warns when it goes
            with pytest.raises(OSError, match="Too many open files"):
                make_loop(kind)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    make_loop(kind).close()
