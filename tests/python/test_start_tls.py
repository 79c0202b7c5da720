"""TLS that begins in mid-connection: loop.start_tls(), and streams as STARTTLS uses them."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Certificates
from support import Loop, Recorder, Reports, over, receive, reset, run, tcp_pair, turns, until
from test_tls import (
    PROTOCOLS,
    V12,
    VERSIONS,
    Peer,
    ViewRecorder,
    end,
    pattern,
)

BIG = 8 << 20
PAIRS: dict[str, Callable[[], tuple[socket.socket, socket.socket]]] = {
    "tcp": tcp_pair,
    "unix": socket.socketpair,
}


@pytest.fixture(params=[*VERSIONS.values()], ids=[*VERSIONS])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return request.param  # type: ignore[no-any-return]


async def plain(loop: Loop, near: Recorder, far: Recorder, sockets: str = "tcp") -> tuple[Any, Any]:
    """Two transports without TLS."""
    a, b = PAIRS[sockets]()
    return await over(loop, near, a), await over(loop, far, b)


async def attempt(
    loop: Loop,
    near: Recorder,
    far: Recorder,
    client: ssl.SSLContext,
    server: ssl.SSLContext,
    *,
    hostname: str = "localhost",
    **options: Any,
) -> tuple[Any, Any]:
    """Start TLS at both ends: their new transports, or how they failed."""
    ours, theirs = await asyncio.gather(
        loop.start_tls(near.transport, near, client, server_hostname=hostname, **options),
        loop.start_tls(far.transport, far, server, server_side=True, **options),
        return_exceptions=True,
    )
    return ours, theirs


async def start(loop: Loop, tls: Certificates, near: Recorder, far: Recorder) -> tuple[Any, Any]:
    """The same, where nothing is to fail; the protocols know their new transports."""
    near.transport, far.transport = await attempt(loop, near, far, tls.client(), tls.server())
    return near.transport, far.transport


async def start_peer(
    loop: Loop,
    tls: Certificates,
    near: Recorder,
    transport: Any,
    sock: socket.socket,
    **options: Any,
) -> tuple[Any, Peer]:
    """Start TLS as a client, with a peer by hand."""
    peer = Peer(loop, sock, tls.server())
    near.transport, _ = await asyncio.gather(
        loop.start_tls(transport, near, tls.client(), server_hostname="localhost", **options),
        peer.handshake(),
    )
    return near.transport, peer


# ---- From plain to TLS ----


@pytest.mark.parametrize("sockets", PAIRS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tls_begins(
    loop: Loop,
    tls: Certificates,
    version: ssl.TLSVersion,
    *,
    sockets: str,
    protocol: type[Recorder],
) -> None:
    async def main() -> None:
        near, far = protocol(loop), protocol(loop)
        old = await plain(loop, near, far, sockets)
        near.transport.write(b"STARTTLS")
        assert await far.received(8) == b"STARTTLS"
        far.transport.write(b"220 ")
        assert await near.received(4) == b"220 "
        client, server = tls.client(maximum_version=version), tls.server()
        new = await attempt(loop, near, far, client, server)
        for one, this, that in zip((near, far), old, new, strict=True):
            assert that is not this
            assert that.get_protocol() is one
            assert this.get_protocol() is not one
            assert that.get_extra_info("sslcontext") in (client, server)
            assert this.get_extra_info("sslcontext") is None
            assert that.get_extra_info("ssl_object").version() in VERSIONS
            assert that.get_extra_info("socket") is this.get_extra_info("socket")
            assert that.get_extra_info("peername") == this.get_extra_info("peername")
            assert not that.is_closing()
            assert that.is_reading()
        assert new[0].get_extra_info("peercert")["subject"] == ((("commonName", "localhost"),),)
        assert new[0].get_extra_info("ssl_object").server_hostname == "localhost"
        assert new[1].get_extra_info("ssl_object").server_side
        new[0].write(b"sealed")
        assert await far.received(14) == b"STARTTLSsealed"
        new[1].write(b"too")
        assert await near.received(7) == b"220 too"
        assert near.calls == far.calls == ["made", "data", "data"]
        new[0].close()
        assert await near.lost is None
        assert await far.lost is None
        assert far.calls == ["made", "data", "data", "eof", "lost"]
        assert near.calls.count("made") == near.calls.count("lost") == 1
        for transport in (*old, *new):
            assert transport.is_closing()

    run(loop, main())


def test_what_goes_over_the_wire(loop: Loop, tls: Certificates) -> None:
    """What was written before goes in plain, and first; nothing in plain follows it."""

    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        transport = await over(loop, near, a)
        transport.set_write_buffer_limits(2 * BIG)
        sent = pattern(BIG)
        transport.write(sent)
        assert transport.get_write_buffer_size() > 0
        task = asyncio.ensure_future(
            loop.start_tls(transport, near, tls.client(), server_hostname="localhost")
        )
        await turns(5)
        assert not task.done()
        assert await receive(loop, b, BIG) == sent
        peer = await Peer(loop, b, tls.server()).handshake()
        near.transport = await task
        near.transport.write(b"sealed")
        assert await peer.read(6) == b"sealed"
        await end(near)
        b.close()

    run(loop, main())


def test_tls_begins_while_writing_is_paused(becket_loop: Loop, tls: Certificates) -> None:
    """asyncio's own reports a failed assertion, and the protocol never hears resume_writing()."""

    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(becket_loop)
        transport = await over(becket_loop, near, a)
        transport.write(bytes(BIG))
        assert near.calls == ["made", "pause"]
        task = asyncio.ensure_future(
            becket_loop.start_tls(transport, near, tls.client(), server_hostname="localhost")
        )
        assert await receive(becket_loop, b, BIG) == bytes(BIG)
        peer = await Peer(becket_loop, b, tls.server()).handshake()
        near.transport = await task
        near.transport.write(b"sealed")
        assert await peer.read(6) == b"sealed"
        await end(near)
        b.close()
        assert near.calls == ["made", "pause", "resume", "lost"]

    run(becket_loop, main())


@pytest.mark.parametrize("side", ["client", "server"])
def test_data_with_the_last_of_the_handshake(loop: Loop, tls: Certificates, side: str) -> None:
    """It comes to the protocol, be it that start_tls() has not yet returned."""

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await plain(loop, near, far)
        first, second = (near, far) if side == "server" else (far, near)

        async def one(end_: Recorder, server: bool) -> None:
            context = tls.server() if server else tls.client(maximum_version=V12)
            end_.transport = await loop.start_tls(
                end_.transport,
                end_,
                context,
                server_side=server,
                server_hostname=None if server else "localhost",
            )
            end_.transport.write(b"at once")

        await asyncio.gather(one(near, False), one(far, True))
        assert await first.received(7) == b"at once"
        assert await second.received(7) == b"at once"
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("size", [1, 16 << 10, 1 << 20])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_much_data_follows(
    loop: Loop, tls: Certificates, protocol: type[Recorder], size: int
) -> None:
    async def main() -> None:
        near, far = protocol(loop), protocol(loop)
        await plain(loop, near, far)
        await start(loop, tls, near, far)
        sent = pattern(size)
        for one, other in ((near, far), (far, near)):
            one.transport.write(sent)
            assert await other.received(size) == sent
        near.transport.close()
        assert await near.lost is None
        assert await far.lost is None

    run(loop, main())


def test_the_handshake_byte_by_byte(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        b.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near = ViewRecorder(loop)
        transport = await over(loop, near, a)
        peer = Peer(loop, b, tls.server(maximum_version=version), piece=1)
        near.transport, _ = await asyncio.gather(
            loop.start_tls(transport, near, tls.client(), server_hostname="localhost"),
            peer.handshake(),
        )
        await peer.write(b"hello")
        assert await near.received(5) == b"hello"
        await peer.unwrap()
        assert await near.lost is None
        assert near.calls == ["made", "data", "eof", "lost"]
        b.close()

    run(loop, main())


def test_a_hello_that_is_there_already(loop: Loop, tls: Certificates) -> None:
    """A client that does not wait for the answer to its STARTTLS, while reading is paused."""

    async def main() -> None:
        a, b = tcp_pair()
        far = Recorder(loop)
        transport = await over(loop, far, a)
        transport.pause_reading()
        peer = Peer(loop, b, tls.client(), hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        await peer.flush()
        await turns(5)
        assert far.data == b""
        far.transport, _ = await asyncio.gather(
            loop.start_tls(transport, far, tls.server(), server_side=True), peer.handshake()
        )
        assert far.transport.is_reading()
        await peer.write(b"hello")
        assert await far.received(5) == b"hello"
        far.transport.close()
        await peer.unwrap()
        assert await far.lost is None
        b.close()

    run(loop, main())


def test_another_protocol_takes_over(loop: Loop, tls: Certificates) -> None:
    """One that was not there before, and is not told connection_made()."""

    async def main() -> None:
        a, b = tcp_pair()
        before, after = Recorder(loop), ViewRecorder(loop)
        transport = await over(loop, before, a)
        after.transport, peer = await start_peer(loop, tls, after, transport, b)
        await peer.write(b"hello")
        assert await after.received(5) == b"hello"
        await peer.unwrap()
        assert await after.lost is None
        assert before.calls == ["made"]
        assert after.calls == ["data", "eof", "lost"]
        b.close()

    run(loop, main())


# ---- TLS in TLS ----


def test_tls_in_tls(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await plain(loop, near, far)
        outer = await start(loop, tls, near, far)
        client = tls.client("client", maximum_version=version)
        server = tls.server("other", verify_mode=ssl.CERT_REQUIRED)
        inner = await attempt(loop, near, far, client, server, hostname="other.test")
        near.transport, far.transport = inner
        assert inner[0].get_extra_info("ssl_object") is not outer[0].get_extra_info("ssl_object")
        assert inner[0].get_extra_info("sslcontext") is client
        assert outer[0].get_extra_info("sslcontext") is not client
        names = [t.get_extra_info("peercert")["subject"][0][0][1] for t in (inner[0], outer[0])]
        assert names == ["other.test", "localhost"]
        assert inner[1].get_extra_info("peercert")["subject"] == ((("commonName", "a client"),),)
        sent = pattern(1 << 20)
        inner[0].write(sent)
        assert await far.received(1 << 20) == sent
        inner[1].write(sent)
        assert await near.received(1 << 20) == sent
        assert near.calls[0] == "made"
        inner[0].close()
        assert await near.lost is None
        assert await far.lost is None
        assert near.calls.count("made") == near.calls.count("lost") == 1
        assert far.calls[-2:] == ["eof", "lost"]

    run(loop, main())


def test_tls_in_tls_by_hand(loop: Loop, tls: Certificates) -> None:
    """The inner ciphertext is the outer one's data."""

    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        outer, peer = await start_peer(loop, tls, near, await over(loop, near, a), b)
        inner = Peer(loop, b, tls.server("other"))
        task = asyncio.ensure_future(
            loop.start_tls(outer, near, tls.client(), server_hostname="other.test")
        )
        while True:
            try:
                inner.tls.do_handshake()
            except ssl.SSLWantReadError:
                await peer.write(inner.outgoing.read() or b"")
                inner.incoming.write(await peer.do(peer.tls.read, 1 << 16))
            else:
                break
        tickets = inner.outgoing.read()
        if tickets:
            await peer.write(tickets)
        near.transport = await task
        await peer.write(inner.seal(b"deep"))
        assert await near.received(4) == b"deep"
        near.transport.write(b"inside")
        inner.incoming.write(await peer.do(peer.tls.read, 1 << 16))
        assert inner.tls.read(10) == b"inside"
        await end(near)
        b.close()

    run(loop, main())


# ---- Arguments ----


class NotATransport:
    pass


@pytest.mark.parametrize(
    "options, error, words",
    [
        (
            {"context": None},
            TypeError,
            "sslcontext is expected to be an instance of ssl.SSLContext, got None",
        ),
        (
            {"context": True},
            TypeError,
            "sslcontext is expected to be an instance of ssl.SSLContext, got True",
        ),
        (
            {"transport": NotATransport()},
            TypeError,
            r"transport <.*NotATransport object at .*> is not supported by start_tls\(\)",
        ),
        ({"transport": None}, TypeError, r"transport None is not supported by start_tls\(\)"),
        (
            {"ssl_handshake_timeout": 0},
            ValueError,
            "ssl_handshake_timeout should be a positive number, got 0",
        ),
        (
            {"ssl_handshake_timeout": -1.5},
            ValueError,
            "ssl_handshake_timeout should be a positive number, got -1.5",
        ),
        (
            {"ssl_shutdown_timeout": 0},
            ValueError,
            "ssl_shutdown_timeout should be a positive number, got 0",
        ),
        (
            {"server_side": True},
            ssl.SSLError,
            "Cannot create a server socket with a PROTOCOL_TLS_CLIENT context",
        ),
        ({"server_hostname": ".localhost"}, ValueError, None),
        ({"server_hostname": "a\0b"}, TypeError, None),
    ],
)
def test_arguments_that_cannot_be(
    loop: Loop,
    tls: Certificates,
    options: dict[str, Any],
    error: type[Exception],
    words: str | None,
) -> None:
    """They change nothing: the connection goes on in plain."""

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await plain(loop, near, far)
        given = {"server_hostname": "localhost", **options}
        transport = given.pop("transport", near.transport)
        context = given.pop("context", tls.client())
        with pytest.raises(error, match=words):
            await loop.start_tls(transport, near, context, **given)
        far.transport.write(b"still ")
        assert await near.received(6) == b"still "
        near.transport.write(b"in plain")
        assert await far.received(8) == b"in plain"
        await end(near, far)

    run(loop, main())


def test_a_pipe_is_not_taken(loop: Loop, tls: Certificates) -> None:
    """It has one direction."""

    async def main() -> None:
        reading, writing = os.pipe()
        near = Recorder(loop)
        transport: Any
        with open(reading, "rb", 0) as pipe, open(writing, "wb", 0) as other:
            transport, _ = await loop.connect_read_pipe(lambda: near, pipe)
            try:
                with pytest.raises(TypeError, match=r"is not supported by start_tls\(\)"):
                    await loop.start_tls(transport, near, tls.client(), server_hostname="localhost")
            finally:
                transport.close()
                await turns(5)
                assert not other.closed

    run(loop, main())


# ---- What fails ----


def test_a_certificate_that_is_refused(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion
) -> None:
    """It raises, and the connection is over: the protocol hears connection_lost()."""

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        old = await plain(loop, near, far)
        client = tls.client(maximum_version=version)
        ours, theirs = await attempt(loop, near, far, client, tls.server(), hostname="other.test")
        assert type(ours) is ssl.SSLCertVerificationError
        assert ours.verify_code == 62
        assert isinstance(theirs, (ssl.SSLError, ConnectionResetError))
        assert old[0].is_closing()
        assert old[1].is_closing()
        assert await near.lost is ours
        assert await far.lost is theirs
        assert near.calls == far.calls == ["made", "lost"]

    run(loop, main())


def test_a_peer_without_tls(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        transport = await over(loop, near, a)
        b.send(b"502 not me\r\n")
        task = asyncio.ensure_future(
            loop.start_tls(transport, near, tls.client(), server_hostname="localhost")
        )
        with pytest.raises(ssl.SSLError) as caught:
            await task
        assert caught.value.reason == "WRONG_VERSION_NUMBER"
        assert transport.is_closing()
        assert await near.lost is caught.value
        assert near.data == b""
        b.close()

    run(loop, main())


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_peer_that_leaves(loop: Loop, tls: Certificates, how: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        far = Recorder(loop)
        transport = await over(loop, far, a)
        task = asyncio.ensure_future(loop.start_tls(transport, far, tls.server(), server_side=True))
        await turns(5)
        if how == "close":
            b.close()
        else:
            reset(b)
        with pytest.raises(ConnectionResetError):
            await task
        assert transport.is_closing()
        if how == "close":
            assert isinstance(await far.lost, ConnectionResetError)
        await until(lambda: a.fileno() < 0)
        assert far.calls in (["made"], ["made", "lost"])

    run(loop, main())


def test_a_handshake_that_takes_too_long(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        transport = await over(loop, near, a)
        with pytest.raises(ConnectionAbortedError) as caught:
            await loop.start_tls(
                transport,
                near,
                tls.client(),
                server_hostname="localhost",
                ssl_handshake_timeout=0.125,
            )
        assert str(caught.value) == (
            "SSL handshake is taking longer than 0.125 seconds: aborting the connection"
        )
        assert transport.is_closing()
        await receive(loop, b)  # it ends
        await until(lambda: a.fileno() < 0)
        # asyncio does not tell the protocol; what is told must be true.
        assert near.calls in (["made"], ["made", "lost"])
        assert not near.lost.done() or near.lost.result() is caught.value
        b.close()

    run(loop, main())


def test_a_handshake_that_is_cancelled(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        transport = await over(loop, near, a)
        task = asyncio.ensure_future(
            loop.start_tls(transport, near, tls.client(), server_hostname="localhost")
        )
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport.is_closing()
        await receive(loop, b)  # it ends
        await until(lambda: a.fileno() < 0)
        assert near.calls in (["made"], ["made", "lost"])
        b.close()

    run(loop, main())


def test_the_old_transport_closes_during_the_handshake(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        for way in ("close", "abort"):
            a, b = tcp_pair()
            near = Recorder(loop)
            transport = await over(loop, near, a)
            task = asyncio.ensure_future(
                loop.start_tls(transport, near, tls.client(), server_hostname="localhost")
            )
            await turns(5)
            getattr(transport, way)()
            await asyncio.wait([task])
            await receive(loop, b)  # it ends
            b.close()
            # asyncio's start_tls() returns the transport, or None, of a connection that is over.
            if task.exception() is None:
                assert task.result() is None or task.result().is_closing()
            else:
                assert isinstance(task.exception(), ConnectionError)

    run(loop, main())


# ---- The old transport, and ends ----


@pytest.mark.parametrize("which", ["old", "new"])
@pytest.mark.parametrize("way", ["close", "abort"])
def test_either_transport_ends_the_connection(
    loop: Loop, tls: Certificates, which: str, way: str
) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        old = await plain(loop, near, far)
        new = await start(loop, tls, near, far)
        new[0].write(b"hello")
        assert await far.received(5) == b"hello"
        getattr({"old": old, "new": new}[which][0], way)()
        assert await near.lost is None
        assert await far.lost is None
        await turns(5)
        for transport in (*old, *new):
            assert transport.is_closing()
        assert near.calls.count("made") == near.calls.count("lost") == 1
        assert far.calls == ["made", "data", "eof", "lost"]
        for transport in (*old, *new):
            transport.close()
            transport.abort()
        await turns(5)
        assert near.calls.count("lost") == 1

    run(loop, main())


def test_close_says_so(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        transport, peer = await start_peer(loop, tls, near, await over(loop, near, a), b)
        sent = pattern(1 << 20)
        transport.write(sent)
        transport.close()
        assert await peer.rest() == sent
        await peer.unwrap()
        assert await near.lost is None
        assert await loop.sock_recv(b, 1) == b""
        b.close()

    run(loop, main())


def test_a_peer_that_does_not_answer_close_notify(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        transport, _ = await start_peer(
            loop, tls, near, await over(loop, near, a), b, ssl_shutdown_timeout=0.1
        )
        transport.close()
        error = await near.lost
        assert type(error) is TimeoutError
        assert str(error) == "SSL shutdown timed out"
        b.close()

    run(loop, main())


def test_an_exception_in_a_callback(loop: Loop, tls: Certificates, reports: Reports) -> None:
    error = ZeroDivisionError("mine")

    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise error

    async def main() -> None:
        near, far = Failing(loop), Recorder(loop)
        await plain(loop, near, far)
        await start(loop, tls, near, far)
        far.transport.write(b"data")
        assert await near.lost is error
        context = reports.take()
        assert context["message"] == "Fatal error on SSL protocol"
        assert context["exception"] is error
        await far.lost

    run(loop, main())


# ---- Streams ----


SHUTDOWN: dict[str, Any] = {"ssl_shutdown_timeout": 5} if sys.version_info >= (3, 12) else {}


@pytest.mark.parametrize("sockets", ["tcp", "unix"])
def test_smtp_by_streams(
    loop: Loop, tls: Certificates, short_path: str, sockets: str, version: ssl.TLSVersion
) -> None:
    lost: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := await reader.readline():
            command = line.split()[0].upper()
            if command == b"STARTTLS":
                writer.write(b"220 go ahead\r\n")
                await writer.start_tls(tls.server(), ssl_handshake_timeout=5, **SHUTDOWN)
                assert writer.get_extra_info("ssl_object").server_side
            elif command == b"DATA":
                writer.write(b"354 go ahead\r\n")
                data = await reader.readuntil(b"\r\n.\r\n")
                writer.write(b"250 %d\r\n" % len(data))
            elif command == b"QUIT":
                writer.write(b"221 bye\r\n")
                break
            else:
                secure = writer.get_extra_info("sslcontext") is not None
                writer.write(b"250 sealed\r\n" if secure else b"250 STARTTLS\r\n")
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        lost.append(None)

    async def main() -> None:
        if sockets == "tcp":
            server: Any = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
            address = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address)
        else:
            server = await asyncio.start_unix_server(serve, short_path, limit=1 << 20)
            reader, writer = await asyncio.open_unix_connection(short_path)

        async def ask(command: bytes, answer: bytes) -> None:
            writer.write(command + b"\r\n")
            await writer.drain()
            assert await reader.readline() == answer + b"\r\n"

        assert await reader.readline() == b"220 here\r\n"
        await ask(b"EHLO me", b"250 STARTTLS")
        await ask(b"STARTTLS", b"220 go ahead")
        before = writer.transport
        await writer.start_tls(
            tls.client(maximum_version=version),
            server_hostname="localhost",
            ssl_handshake_timeout=5,
            **SHUTDOWN,
        )
        assert writer.transport is not before
        assert writer.get_extra_info("ssl_object").version() in VERSIONS
        assert writer.get_extra_info("peercert")["subject"] == ((("commonName", "localhost"),),)
        await ask(b"EHLO me", b"250 sealed")
        await ask(b"DATA", b"354 go ahead")
        await ask(b"x" * 300_000 + b"\r\n.", b"250 300005")
        await ask(b"QUIT", b"221 bye")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await until(lambda: lost)
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_streams_whose_handshake_fails(loop: Loop, tls: Certificates) -> None:
    errors: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await writer.start_tls(tls.server())
        except OSError as error:
            errors.append(error)
        writer.close()
        with pytest.raises(type(errors[0])):
            await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with pytest.raises(ssl.SSLCertVerificationError):
            await writer.start_tls(tls.client(), server_hostname="other.test")
        assert writer.is_closing()
        with pytest.raises(ssl.SSLCertVerificationError):
            await reader.read()
        with pytest.raises(ssl.SSLCertVerificationError):
            await writer.wait_closed()
        await until(lambda: errors)
        assert isinstance(errors[0], (ssl.SSLError, ConnectionResetError))
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_start_tls_waits_for_drain(loop: Loop, tls: Certificates) -> None:
    """What a stream has written before goes in plain, however much there is of it."""

    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await asyncio.open_connection(sock=a)
        sent = pattern(BIG)
        writer.write(sent)
        task = asyncio.ensure_future(writer.start_tls(tls.client(), server_hostname="localhost"))
        await turns(5)
        assert await receive(loop, b, BIG) == sent
        peer = await Peer(loop, b, tls.server()).handshake()
        await task
        writer.write(b"sealed")
        assert await peer.read(6) == b"sealed"
        await peer.write(b"too\n")
        assert await reader.readline() == b"too\n"
        writer.close()
        await peer.unwrap()
        await writer.wait_closed()
        b.close()

    run(loop, main())


# ---- Plain text is never taken for sealed text ----


@pytest.mark.parametrize("where", ["with the command", "later"])
@pytest.mark.parametrize("read", ["readline", "read"])
def test_plain_text_before_tls_is_not_read_under_it(
    becket_loop: Loop, tls: Certificates, where: str, read: str
) -> None:
    """STARTTLS injection (RFC 3207, 4.2): asyncio's StreamReader keeps what it has buffered."""
    found: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\r\n"
        if where == "later":
            writer.write(b"say more\r\n")
            await until(lambda: reader._buffer)  # type: ignore[attr-defined]
        writer.write(b"220 go ahead\r\n")
        try:
            await writer.start_tls(tls.server())
            found.append(await (reader.readline() if read == "readline" else reader.read(100)))
        except OSError as error:
            found.append(type(error).__name__.encode())
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        sock = socket.create_connection(server.sockets[0].getsockname())
        sock.setblocking(False)
        injected = b"MAIL FROM:<mallory@site.test>\r\n"
        if where == "later":
            sock.send(b"STARTTLS\r\n")
            assert await receive(becket_loop, sock, 10) == b"say more\r\n"
            sock.send(injected)
        else:
            sock.send(b"STARTTLS\r\n" + injected)
        assert await receive(becket_loop, sock, 14) == b"220 go ahead\r\n"
        peer = Peer(becket_loop, sock, tls.client(), hostname="localhost")
        try:
            await peer.handshake()
            await peer.write(b"EHLO me\r\n")
            await peer.unwrap()
        except OSError:
            pass  # to refuse is as good
        await until(lambda: found)
        sock.close()
        server.close()
        await server.wait_closed()
        assert found[0] in (b"EHLO me\r\n", b"ConnectionResetError", b"SSLError")

    run(becket_loop, main())


def test_plain_text_in_the_segment_of_a_hello(loop: Loop, tls: Certificates) -> None:
    """What the protocol has not been given when TLS begins is for TLS, and is no handshake."""

    async def main() -> None:
        a, b = tcp_pair()
        far = Recorder(loop)
        transport = await over(loop, far, a)
        transport.pause_reading()
        peer = Peer(loop, b, tls.client(), hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        b.send(b"RSET\r\n" + peer.outgoing.read())
        with pytest.raises(ssl.SSLError) as caught:
            await loop.start_tls(transport, far, tls.server(), server_side=True)
        assert caught.value.reason == "WRONG_VERSION_NUMBER"
        assert far.data == b""
        assert await far.lost is caught.value
        b.close()

    run(loop, main())


# ---- What is left behind ----


def test_a_closed_connection_is_freed_without_the_collector(
    becket_loop: Loop, tls: Certificates
) -> None:
    class Plain(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            pass

    async def main() -> None:
        a, b = tcp_pair()
        protocol: Any = Plain()
        old = await over(becket_loop, protocol, a)
        new, peer = await start_peer(becket_loop, tls, protocol, old, b)
        protocol.transport = None
        known = [weakref.ref(one) for one in (protocol, old, new, new.get_extra_info("ssl_object"))]
        gc.collect()
        gc.disable()
        try:
            new.close()
            del protocol, old, new
            await peer.unwrap()
            for _ in range(50):
                await turns(5)
                if all(ref() is None for ref in known):
                    break
            left = [ref() for ref in known]
        finally:
            gc.enable()
        b.close()
        assert left == [None] * 4

    run(becket_loop, main())
