"""Connecting to endpoints: EventLoop.connect_endpoint() and becket.open()."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import becket
from conftest import Certificates
from interop.mail import ENGINES, see_to
from support import Loop, Recorder, Reports, run, until

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says back what it hears."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(handler: Handler = echo, **settings: Any) -> AsyncIterator[int]:
    """A server on this loop; its port. All it began has ended when it has."""
    tasks = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        await handler(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, **settings)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*tasks)


async def ended(writer: asyncio.StreamWriter) -> None:
    """Close a stream, and wait for its end."""
    writer.close()
    await writer.wait_closed()


async def exchange(endpoint: str) -> tuple[bytes, asyncio.StreamWriter]:
    """Say something, and hear it again."""
    reader, writer = await becket.open(endpoint)
    writer.write(b"hello\n")
    heard = await reader.readline()
    return heard, writer


def free_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


# ---- What is reached ----


def test_tcp(becket_loop: Loop) -> None:
    async def go() -> None:
        async with serving() as port:
            heard, writer = await exchange(f"tcp://127.0.0.1:{port}")
            assert heard == b"hello\n"
            assert writer.get_extra_info("peername") == ("127.0.0.1", port)
            sock = writer.get_extra_info("socket")
            assert writer.get_extra_info("sockname") == sock.getsockname()
            assert sock.getpeername() == ("127.0.0.1", port)
            assert writer.get_extra_info("cipher") is None
            await ended(writer)

    run(becket_loop, go())


def test_a_name_is_resolved(becket_loop: Loop) -> None:
    async def go() -> None:
        async with serving() as port:
            heard, writer = await exchange(f"tcp://localhost:{port}")
            assert heard == b"hello\n"
            await ended(writer)

    run(becket_loop, go())


def test_unix(becket_loop: Loop, short_path: str) -> None:
    async def go() -> None:
        server = await asyncio.start_unix_server(echo, short_path)
        heard, writer = await exchange(f"unix:{short_path}")
        assert heard == b"hello\n"
        assert writer.get_extra_info("peername") == short_path
        await ended(writer)
        server.close()
        await server.wait_closed()

    run(becket_loop, go())


def test_a_descriptor(becket_loop: Loop) -> None:
    async def go() -> None:
        near, far = socket.socketpair()
        with far:
            far.setblocking(False)
            reader, writer = await becket.open(f"fd:{near.detach()}")
            writer.write(b"out")
            assert await becket_loop.sock_recv(far, 10) == b"out"
            await becket_loop.sock_sendall(far, b"in")
            assert await reader.read(10) == b"in"
            await ended(writer)

    run(becket_loop, go())


def test_a_pipe_has_no_socket(becket_loop: Loop) -> None:
    async def go() -> None:
        readable, writable = os.pipe()
        with open(readable, "rb") as out:
            _, writer = await becket.open(f"fd:{writable}")
            assert writer.get_extra_info("socket") is None
            assert writer.get_extra_info("peername") is None
            writer.write(b"out")
            await ended(writer)
            assert out.read() == b"out"

    run(becket_loop, go())


@pytest.mark.parametrize("engine", ENGINES)
def test_tls(becket_loop: Loop, tls: Certificates, engine: str) -> None:
    async def go() -> None:
        async with serving(ssl=tls.server()) as port:
            options = f"ca={tls.path('ca.crt')}&name=localhost&engine={see_to(engine)}"
            heard, writer = await exchange(f"tls://127.0.0.1:{port}?{options}")
            assert heard == b"hello\n"
            assert writer.get_extra_info("peername") == ("127.0.0.1", port)
            assert writer.get_extra_info("cipher")[1].startswith("TLSv1.")
            names = writer.get_extra_info("peercert")["subjectAltName"]
            assert ("DNS", "localhost") in names
            await ended(writer)

    run(becket_loop, go())


def test_a_certificate_that_nobody_verified_tells_nothing(
    becket_loop: Loop, tls: Certificates
) -> None:
    async def go() -> None:
        async with serving(ssl=tls.server()) as port:
            heard, writer = await exchange(f"tls://127.0.0.1:{port}?verify=none")
            assert heard == b"hello\n"
            assert writer.get_extra_info("peercert") == {}
            await ended(writer)

    run(becket_loop, go())


@pytest.mark.parametrize("engine", ENGINES)
def test_starttls(becket_loop: Loop, tls: Certificates, engine: str) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(tls.server())
        await echo(reader, writer)

    async def go() -> None:
        async with serving(handle) as port:
            options = f"ca={tls.path('ca.crt')}&name=localhost&engine={see_to(engine)}"
            reader, writer = await becket.open(f"starttls://127.0.0.1:{port}?{options}")
            assert writer.get_extra_info("cipher") is None
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go\n"
            upgraded = await becket_loop.start_tls(
                writer.transport,
                writer.transport.get_protocol(),
                None,  # type: ignore[arg-type]
            )
            assert upgraded is not None
            assert upgraded.get_extra_info("cipher")[1].startswith("TLSv1.")
            assert upgraded.get_extra_info("peername") == ("127.0.0.1", port)
            upgraded.write(b"secret\n")
            assert await reader.readline() == b"secret\n"
            await ended(writer)

    run(becket_loop, go())


def test_nothing_is_offered_by_other_endpoints(becket_loop: Loop) -> None:
    async def go() -> None:
        async with serving() as port:
            _, writer = await exchange(f"tcp://127.0.0.1:{port}")
            with pytest.raises(TypeError, match="sslcontext"):
                await becket_loop.start_tls(writer.transport, Recorder(becket_loop), None)  # type: ignore[arg-type]
            await ended(writer)

    run(becket_loop, go())


def test_the_protocol_comes_from_the_factory(becket_loop: becket.EventLoop) -> None:
    async def go() -> None:
        async with serving() as port:
            transport, protocol = await becket_loop.connect_endpoint(
                lambda: Recorder(becket_loop), f"tcp://127.0.0.1:{port}"
            )
            assert protocol.calls == ["made"]
            assert protocol.transport is transport
            transport.write(b"hello")
            assert await protocol.received(5) == b"hello"
            transport.close()
            assert await protocol.lost is None

    run(becket_loop, go())


# ---- What fails ----


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("tcp:/x", "tcp: is followed by //.*\n  tcp:/x\n      \\^"),
        ("nothing", "\n  nothing\n"),
        ("carrier-pigeon:x", "there is no scheme carrier-pigeon.*\n  carrier-pigeon:x\n  \\^"),
        ("tcp://127.0.0.1:1?color=red", "no option color.*\n.*\n {20}\\^"),
        ("tls://localhost:1?engine=none", "there is no none"),
        ("tcp://a:1\0", "NUL"),
    ],
)
def test_a_wrong_endpoint_is_shown(becket_loop: Loop, endpoint: str, said: str) -> None:
    async def go() -> None:
        with pytest.raises(ValueError, match=said):
            await becket.open(endpoint)

    run(becket_loop, go())


def test_an_endpoint_is_text(becket_loop: Loop) -> None:
    async def go() -> None:
        with pytest.raises(TypeError, match="endpoint: a str is needed"):
            await becket_loop.connect_endpoint(asyncio.Protocol, 7000)  # type: ignore[attr-defined]

    run(becket_loop, go())


def test_nobody_listens(becket_loop: Loop, short_path: str) -> None:
    async def go() -> None:
        with pytest.raises(ConnectionRefusedError):
            await becket.open(f"tcp://127.0.0.1:{free_port()}")
        with pytest.raises(FileNotFoundError):
            await becket.open(f"unix:{short_path}")

    run(becket_loop, go())


def test_a_name_that_nobody_knows(becket_loop: Loop) -> None:
    async def go() -> None:
        with pytest.raises(socket.gaierror):
            await becket.open("tcp://nobody.invalid:1")

    run(becket_loop, go())


def test_a_file_that_is_missing(becket_loop: Loop) -> None:
    async def go() -> None:
        with pytest.raises(FileNotFoundError, match="ca: /nowhere"):
            await becket.open("tls://localhost:1?ca=/nowhere")

    run(becket_loop, go())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("elsewhere.example", ssl.SSLCertVerificationError),
        ("localhost", ssl.SSLError),
    ],
)
def test_tls_that_fails(
    becket_loop: Loop, tls: Certificates, engine: str, name: str, error: type[Exception]
) -> None:
    """A certificate of somebody else's; and a server that speaks no TLS."""

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await ended(writer)

    async def go() -> None:
        settings = {"ssl": tls.server()} if name != "localhost" else {}
        async with serving(echo if settings else shout, **settings) as port:
            options = f"ca={tls.path('ca.crt')}&name={name}&engine={see_to(engine)}"
            with pytest.raises(error):
                await becket.open(f"tls://127.0.0.1:{port}?{options}")

    run(becket_loop, go())


def test_a_factory_that_raises(becket_loop: Loop) -> None:
    def factory() -> asyncio.Protocol:
        raise LookupError("no protocol today")

    async def go() -> None:
        async with serving() as port:
            with pytest.raises(LookupError, match="today"):
                await becket_loop.connect_endpoint(factory, f"tcp://127.0.0.1:{port}")  # type: ignore[attr-defined]

    run(becket_loop, go())


def test_connection_made_that_raises(becket_loop: becket.EventLoop) -> None:
    class Faulty(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise LookupError("not made")

    async def go() -> None:
        reports = Reports(becket_loop, expected=True)
        async with serving() as port:
            transport, _ = await becket_loop.connect_endpoint(Faulty, f"tcp://127.0.0.1:{port}")
            assert transport.is_closing()
        assert isinstance(reports.take()["exception"], LookupError)

    run(becket_loop, go())


# ---- Giving up ----


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_cancelling_gives_up(becket_loop: Loop, scheme: str) -> None:
    """TLS that nobody answers; TCP that is not yet open."""

    async def go() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
            options = "?verify=none" if scheme == "tls" else ""
            attempt = asyncio.ensure_future(
                becket.open(f"{scheme}://{address[0]}:{address[1]}{options}")
            )
            peer = None
            if scheme == "tls":
                server.setblocking(False)
                peer, _ = await becket_loop.sock_accept(server)
                assert await becket_loop.sock_recv(peer, 1) == b"\x16"
            else:
                await asyncio.sleep(0)
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
            if peer is not None:
                with peer, contextlib.suppress(ConnectionResetError):
                    while await becket_loop.sock_recv(peer, 65536):
                        pass

    run(becket_loop, go())


def test_cancelled_when_it_has_just_been_made(becket_loop: becket.EventLoop) -> None:
    protocols: list[Recorder] = []

    def factory() -> Recorder:
        protocols.append(Recorder(becket_loop))
        becket_loop.call_soon(attempt.cancel)
        return protocols[0]

    async def go() -> None:
        nonlocal attempt
        async with serving() as port:
            attempt = asyncio.ensure_future(
                becket_loop.connect_endpoint(factory, f"tcp://127.0.0.1:{port}")
            )
            await asyncio.wait([attempt])
            if attempt.cancelled():
                assert await protocols[0].lost is None
            else:
                attempt.result()[0].close()
                await protocols[0].lost

    attempt: asyncio.Future[Any] = becket_loop.create_future()
    run(becket_loop, go())


def test_a_loop_that_is_closed_while_connecting(becket_loop: becket.EventLoop) -> None:
    async def go() -> None:
        asyncio.ensure_future(becket.open(f"tcp://127.0.0.1:{free_port()}")).add_done_callback(
            lambda future: future.exception() if not future.cancelled() else None
        )
        await until(lambda: True)

    run(becket_loop, go())


def test_another_loop_is_refused() -> None:
    async def go() -> None:
        with pytest.raises(RuntimeError, match=r"becket\.EventLoop"):
            await becket.open("tcp://127.0.0.1:1")

    with contextlib.closing(asyncio.SelectorEventLoop()) as loop:
        loop.run_until_complete(go())
