"""TLS by asyncio's interface: handshakes, what is known of them, data, flow control, ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from conftest import Certificates
from support import (
    BufferedRecorder,
    Echo,
    Loop,
    Recorder,
    Reports,
    receive,
    reset,
    run,
    tcp_pair,
    turns,
    until,
)

T = TypeVar("T")
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = {"TLSv1.2": V12, "TLSv1.3": V13}
BIG = 8 << 20


# ---- Both ends ----


class ViewRecorder(BufferedRecorder):
    """Lends its buffer as a view: asyncio's TLS copies slices of a bytearray, and loses data."""

    def get_buffer(self, sizehint: int) -> Any:
        return memoryview(super().get_buffer(sizehint))


PROTOCOLS = [Recorder, ViewRecorder]


class ViewEcho(ViewRecorder):
    """Echo with a buffer of its own."""

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


class Peer:
    """The other end, by hand: a socket, and beside it ssl's engine between two MemoryBIOs."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        piece: int = 1 << 20,
    ) -> None:
        sock.setblocking(False)
        self.loop, self.sock, self.piece = loop, sock, piece
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.protocol is ssl.PROTOCOL_TLS_SERVER
        self.tls = context.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=server,
            server_hostname=hostname,
            session=session,
        )

    async def flush(self) -> None:
        """Send what waits; small pieces one by one, so that each is received by itself."""
        data = self.outgoing.read()
        for at in range(0, len(data), self.piece):
            await self.loop.sock_sendall(self.sock, data[at : at + self.piece])
            if self.piece < 100:
                await turns(2)

    async def feed(self) -> None:
        data = await self.loop.sock_recv(self.sock, 1 << 16)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    async def do(self, operation: Callable[..., T], *args: Any) -> T:
        while True:
            try:
                result = operation(*args)
            except ssl.SSLWantReadError:
                await self.flush()
                await self.feed()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    await self.flush()  # the alert, if there is somebody to hear it
                raise
            else:
                await self.flush()
                return result

    async def handshake(self) -> Peer:
        await self.do(self.tls.do_handshake)
        return self

    def seal(self, data: bytes) -> bytes:
        """Data as one record or more, not yet sent."""
        self.tls.write(data)
        return self.outgoing.read()

    async def write(self, data: bytes) -> None:
        await self.do(self.tls.write, data)

    async def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = await self.do(self.tls.read, size - len(data))
            assert piece, f"close_notify after {data!r}"
            data += piece
        return data

    async def rest(self) -> bytes:
        """All up to the other's close_notify; an end without one is an SSLEOFError."""
        data = bytearray()
        while piece := await self.do(self.tls.read, 1 << 16):
            data += piece
        return bytes(data)

    async def unwrap(self) -> None:
        await self.do(self.tls.unwrap)


async def attempt(
    loop: Loop,
    client: ssl.SSLContext,
    server: ssl.SSLContext,
    near: Recorder,
    far: Recorder,
    *,
    hostname: str = "localhost",
    **options: Any,
) -> list[Any]:
    """Connect two protocols by TLS over TCP: for each of them None, or how it failed."""
    a, b = tcp_pair()
    results = await asyncio.gather(
        loop.create_connection(
            lambda: near, sock=a, ssl=client, server_hostname=hostname, **options
        ),
        loop.connect_accepted_socket(lambda: far, b, ssl=server, **options),
        return_exceptions=True,
    )
    failed = [result if isinstance(result, BaseException) else None for result in results]
    if any(failed):
        await turns(5)  # for what a protocol is told afterwards
    return failed


async def connect(
    loop: Loop,
    tls: Certificates,
    near: Recorder,
    far: Recorder,
    *,
    version: ssl.TLSVersion = V13,
    **options: Any,
) -> tuple[Any, Any]:
    """The same, where nothing is to fail."""
    client, server = tls.client(maximum_version=version), tls.server()
    assert await attempt(loop, client, server, near, far, **options) == [None, None]
    return near.transport, far.transport


async def with_peer(
    loop: Loop,
    tls: Certificates,
    near: asyncio.BaseProtocol,
    *,
    version: ssl.TLSVersion = V13,
    piece: int = 1 << 20,
    **options: Any,
) -> tuple[Any, Peer]:
    """A client's transport, and its peer by hand."""
    a, b = tcp_pair()
    b.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer = Peer(loop, b, tls.server(maximum_version=version), piece=piece)
    (transport, _), _ = await asyncio.gather(
        loop.create_connection(
            lambda: near, sock=a, ssl=tls.client(), server_hostname="localhost", **options
        ),
        peer.handshake(),
    )
    return transport, peer


async def end(*recorders: Recorder) -> None:
    """Abort what is still open, and wait for connection_lost()."""
    for recorder in recorders:
        if recorder.transport is not None:
            recorder.transport.abort()
            await recorder.lost


async def serving(
    loop: Loop,
    context: ssl.SSLContext,
    factory: Callable[[], asyncio.BaseProtocol] = Echo,
    **options: Any,
) -> tuple[Any, int]:
    """A server, and its port."""
    server = await loop.create_server(factory, "127.0.0.1", 0, ssl=context, **options)
    return server, server.sockets[0].getsockname()[1]


async def served(loop: Loop, tls: Certificates, port: int) -> None:
    """A good client is served."""
    near = Recorder(loop)
    await loop.create_connection(lambda: near, "127.0.0.1", port, ssl=tls.client())
    near.transport.write(b"hello")
    assert await near.received(5) == b"hello"
    near.transport.close()
    assert await near.lost is None


def note_names(context: ssl.SSLContext) -> list[str | None]:
    """The names that clients ask for."""
    names: list[str | None] = []
    context.sni_callback = lambda _tls, name, _context: names.append(name)
    return names


def pattern(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.fixture(params=[*VERSIONS.values()], ids=[*VERSIONS])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Exceptions that nobody could be given."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: seen.append(report.exc_value))
    return seen


# ---- Ways to connect ----


def test_the_life_of_a_connection(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await connect(loop, tls, near, far, version=version)
        assert near.calls == far.calls == ["made"]
        assert near.transport.get_protocol() is near
        assert near.transport.is_reading()
        assert not near.transport.is_closing()
        near.transport.write(b"hello")
        assert await far.received(5) == b"hello"
        far.transport.write(b"and ")
        far.transport.write(b"back")
        assert await near.received(8) == b"and back"
        near.transport.close()
        assert near.transport.is_closing()
        assert near.calls[-1] == "data"  # connection_lost() comes later
        assert await near.lost is None
        assert await far.lost is None
        assert far.calls == ["made", "data", "eof", "lost"]
        assert near.calls[0] == "made"
        assert near.calls.count("lost") == 1
        assert near.calls[-1] == "lost"
        assert far.transport.is_closing()

    run(loop, main())


def test_servers_and_clients_by_tcp(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        context = tls.server()
        names = note_names(context)
        server, port = await serving(loop, context)
        # With no server_hostname it is the host; an address is verified, but never asked for.
        rows: list[tuple[str, dict[str, Any], str | None]] = [
            ("127.0.0.1", {}, None),
            ("localhost", {"family": socket.AF_INET}, "localhost"),
            ("127.0.0.1", {"server_hostname": "site.test"}, "site.test"),
            ("127.0.0.1", {"server_hostname": "LOCALHOST"}, "LOCALHOST"),
        ]
        for host, options, asked in rows:
            near = Recorder(loop)
            arguments: dict[str, Any] = {"ssl": tls.client(), **options}
            transport, protocol = await loop.create_connection(
                lambda: near, host, port, **arguments
            )
            assert protocol is near
            assert transport is near.transport
            transport.write(b"hello")
            assert await near.received(5) == b"hello"
            transport.close()
            assert await near.lost is None
            assert names.pop() == asked
        assert names == []
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_servers_and_clients_by_unix(loop: Loop, tls: Certificates, short_path: str) -> None:
    async def main() -> None:
        server = await loop.create_unix_server(Echo, short_path, ssl=tls.server())
        near = Recorder(loop)
        await loop.create_unix_connection(
            lambda: near, short_path, ssl=tls.client(), server_hostname="site.test"
        )
        near.transport.write(b"hello")
        assert await near.received(5) == b"hello"
        assert near.transport.get_extra_info("peername") == short_path
        assert near.transport.get_extra_info("ssl_object").server_hostname == "site.test"
        near.transport.close()
        assert await near.lost is None
        other = Recorder(loop)
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_unix_connection(
                lambda: other, short_path, ssl=tls.client(), server_hostname="other.test"
            )
        server.close()
        await server.wait_closed()

    run(loop, main())


@pytest.mark.parametrize("name", ["localhost", "site.test", "127.0.0.1", "::1"])
def test_names_that_fit(loop: Loop, tls: Certificates, name: str) -> None:
    async def main() -> None:
        server = tls.server()
        names = note_names(server)
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, tls.client(), server, near, far, hostname=name) == [None, None]
        assert names == [name if name[0].isalpha() else None]
        assert near.transport.get_extra_info("ssl_object").server_hostname == name
        await end(near, far)

    run(loop, main())


def test_an_international_name_is_asked_for_in_ascii(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        server, name = tls.server(), "b\u00fccher.test"
        names = note_names(server)
        near, far = Recorder(loop), Recorder(loop)
        client = tls.client(check_hostname=False)
        assert await attempt(loop, client, server, near, far, hostname=name) == [None, None]
        assert names == ["xn--bcher-kva.test"]
        assert near.transport.get_extra_info("ssl_object").server_hostname == names[0]
        await end(near, far)

    run(loop, main())


def test_no_name(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        server = tls.server()
        names = note_names(server)
        near, far = Recorder(loop), Recorder(loop)
        client = tls.client(check_hostname=False)
        assert await attempt(loop, client, server, near, far, hostname="") == [None, None]
        assert names == [None]
        assert near.transport.get_extra_info("ssl_object").server_hostname is None
        await end(near, far)

    run(loop, main())


def test_no_name_is_verified_by_nobody(loop: Loop, tls: Certificates) -> None:
    """Documented: an empty server_hostname disables the matching of names."""

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        client = tls.client()
        assert client.check_hostname
        assert await attempt(loop, client, tls.server("other"), near, far, hostname="") == [
            None,
            None,
        ]
        assert near.transport.get_extra_info("ssl_object").server_hostname is None
        await end(near, far)
        near, far = Recorder(loop), Recorder(loop)
        ours, _ = await attempt(loop, client, tls.server("stranger"), near, far, hostname="")
        assert isinstance(ours, ssl.SSLCertVerificationError)

    run(loop, main())


@pytest.mark.parametrize(
    "name, error",
    [
        (".localhost", ValueError),
        ("a\0b", TypeError),
        ("a..b", UnicodeError),
        ("x" * 300, UnicodeError),
    ],
)
def test_names_that_cannot_be(
    loop: Loop, tls: Certificates, name: str, error: type[Exception]
) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        with pytest.raises(error):
            await loop.create_connection(
                lambda: near, sock=a, ssl=tls.client(), server_hostname=name
            )
        assert near.calls == []
        a.close()
        b.close()

    run(loop, main())


def test_ssl_true_trusts_whom_the_system_trusts(
    loop: Loop, tls: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        server, port = await serving(loop, tls.server())
        near = Recorder(loop)
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await loop.create_connection(lambda: near, "127.0.0.1", port, ssl=True)
        assert caught.value.reason == "CERTIFICATE_VERIFY_FAILED"
        assert caught.value.verify_code == 20  # no issuer
        assert near.calls == []
        monkeypatch.setenv("SSL_CERT_FILE", tls.path("ca.crt"))
        transport, _ = await loop.create_connection(lambda: near, "127.0.0.1", port, ssl=True)
        context = transport.get_extra_info("sslcontext")
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        transport.write(b"hello")
        assert await near.received(5) == b"hello"
        await end(near)
        # Without a name it is for any, but from an authority that is trusted.
        near = Recorder(loop)
        transport, _ = await loop.create_connection(
            lambda: near, "127.0.0.1", port, ssl=True, server_hostname=""
        )
        context = transport.get_extra_info("sslcontext")
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert not context.check_hostname
        await end(near)
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_connection(
                lambda: Recorder(loop), "127.0.0.1", port, ssl=True, server_hostname="other.test"
            )
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_streams(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls.server())
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=tls.client(maximum_version=version)
        )
        for line in (b"one\n", b"two\n", b"x" * 50000 + b"\n"):
            writer.write(line)
            await writer.drain()
            assert await reader.readline() == line.upper()
        assert not writer.can_write_eof()
        writer.close()
        await writer.wait_closed()
        assert await reader.read() == b""
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_many_at_once(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        server, port = await serving(loop, tls.server())
        await asyncio.gather(*(served(loop, tls, port) for _ in range(50)))
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_a_server_that_closes_lets_handshakes_be(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder(loop))
            return made[-1]

        server, port = await serving(loop, tls.server(), factory)
        sock = socket.create_connection(("127.0.0.1", port))
        await until(lambda: made)
        server.close()
        peer = await Peer(loop, sock, tls.client(), hostname="localhost").handshake()
        await peer.write(b"hello")
        assert await made[0].received(5) == b"hello"
        await peer.unwrap()
        assert await made[0].lost is None
        await server.wait_closed()
        sock.close()

    run(loop, main())


# ---- Arguments ----


HANDSHAKE = "ssl_handshake_timeout is only meaningful with ssl"
SHUTDOWN = "ssl_shutdown_timeout is only meaningful with ssl"
NAME = "server_hostname is only meaningful with ssl"
NOT_BOOL = "ssl argument must be an SSLContext or None"
POSITIVE = "should be a positive number, got"
WAYS = {
    "connect": lambda loop, sock, **options: loop.create_connection(Echo, sock=sock, **options),
    "connect by name": lambda loop, sock, **options: loop.create_connection(
        Echo, *sock.getpeername(), **options
    ),
    "connect unix": lambda loop, sock, **options: loop.create_unix_connection(
        Echo, sock=sock, **options
    ),
    "accepted": lambda loop, sock, **options: loop.connect_accepted_socket(Echo, sock, **options),
    "server": lambda loop, sock, **options: loop.create_server(Echo, "127.0.0.1", 0, **options),
    "unix server": lambda loop, sock, **options: loop.create_unix_server(
        Echo, "/nowhere/at/all", **options
    ),
}


@pytest.mark.parametrize(
    "way, options, error, words",
    [
        *((way, {"ssl_handshake_timeout": 1}, ValueError, HANDSHAKE) for way in WAYS),
        *((way, {"ssl_shutdown_timeout": 1}, ValueError, SHUTDOWN) for way in WAYS),
        *(
            (
                way,
                {
                    "ssl": name,
                    timeout: value,
                    **({} if name == "server" else {"server_hostname": ""}),
                },
                ValueError,
                f"{timeout} {POSITIVE} {value}",
            )
            for way, name in [("connect", "client"), ("accepted", "server")]
            for timeout in ("ssl_handshake_timeout", "ssl_shutdown_timeout")
            for value in (0, -1)
        ),
        ("connect", {"server_hostname": "localhost"}, ValueError, NAME),
        ("connect unix", {"server_hostname": "localhost"}, ValueError, NAME),
        (
            "connect",
            {"ssl": "client"},
            ValueError,
            "You must set server_hostname when using ssl without a host",
        ),
        (
            "connect unix",
            {"ssl": "client"},
            ValueError,
            "you have to pass server_hostname when using ssl",
        ),
        (
            "connect",
            {"ssl": "server", "server_hostname": "localhost"},
            ssl.SSLError,
            "Cannot create a client socket with a PROTOCOL_TLS_SERVER context",
        ),
        (
            "accepted",
            {"ssl": "client"},
            ssl.SSLError,
            "Cannot create a server socket with a PROTOCOL_TLS_CLIENT context",
        ),
        ("accepted", {"ssl": True}, ValueError, "Server side SSL needs a valid SSLContext"),
        *(
            (way, {"ssl": value}, TypeError, NOT_BOOL)
            for way in ("server", "unix server")
            for value in (True, False)
        ),
    ],
)
def test_arguments_that_cannot_be(
    loop: Loop,
    tls: Certificates,
    *,
    way: str,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    async def main() -> None:
        made = {"client": tls.client(check_hostname=False), "server": tls.server()}
        given = {
            name: made[value] if isinstance(value, str) and name == "ssl" else value
            for name, value in options.items()
        }
        a, b = tcp_pair()
        with pytest.raises(error, match=words):
            await WAYS[way](loop, a, **given)
        a.close()
        b.close()

    run(loop, main())


@pytest.mark.parametrize("way", ["connect", "accepted"])
def test_a_socket_that_ssl_has_wrapped_is_not_taken(
    loop: Loop, tls: Certificates, way: str
) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        with tls.client().wrap_socket(
            a, server_hostname="localhost", do_handshake_on_connect=False
        ) as wrapped:
            with pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
                await WAYS[way](loop, wrapped)
        b.close()

    run(loop, main())


# ---- What is known of a connection ----


def test_extra_info(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        client, server = tls.client(maximum_version=version), tls.server()
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, client, server, near, far) == [None, None]
        for this, that, context in ((near, far, client), (far, near, server)):
            info = this.transport.get_extra_info
            assert info("sslcontext") is context
            assert info("ssl_object").context is context
            assert isinstance(info("ssl_object"), ssl.SSLObject)
            assert info("ssl_object") is info("ssl_object")
            assert info("cipher") == info("ssl_object").cipher()
            assert info("cipher") == that.transport.get_extra_info("cipher")
            assert info("compression") is None
            assert info("compression", "default") is None
            assert info("no such thing") is None
            assert info("no such thing", 5) == 5
            assert info("peername") == that.transport.get_extra_info("sockname")
            assert info("socket").getsockname() == info("sockname")
            assert info("socket").getpeername() == info("peername")
            assert info("socket").family == socket.AF_INET
        assert far.transport.get_extra_info("peercert") is None
        certificate = near.transport.get_extra_info("peercert")
        assert certificate["subject"] == ((("commonName", "localhost"),),)
        assert certificate["issuer"] == ((("commonName", "tests, intermediate"),),)
        assert certificate["version"] == 3
        assert certificate["subjectAltName"] == (
            ("DNS", "localhost"),
            ("DNS", "site.test"),
            ("IP Address", "127.0.0.1"),
            ("IP Address", "0:0:0:0:0:0:0:1"),
        )
        assert certificate == near.transport.get_extra_info("ssl_object").getpeercert()
        await end(near, far)

    run(loop, main())


def test_the_ssl_object(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await connect(loop, tls, near, far, version=version)
        ours, theirs = (r.transport.get_extra_info("ssl_object") for r in (near, far))
        name = {V12: "TLSv1.2", V13: "TLSv1.3"}[version]
        for one in (ours, theirs):
            assert one.version() == name
            assert one.cipher()[1] == name
            assert one.cipher() in [
                (c["name"], c["protocol"], c["strength_bits"]) for c in one.context.get_ciphers()
            ]
            assert one.cipher()[0] in [shared[0] for shared in theirs.shared_ciphers()]
            assert one.selected_alpn_protocol() is None
            assert one.compression() is None
            assert not one.session_reused
            assert one.pending() == 0
        assert not ours.server_side
        assert theirs.server_side
        assert ours.server_hostname == "localhost"
        assert theirs.server_hostname is None
        assert ours.getpeercert(True) == tls.der("server")
        assert theirs.getpeercert() is theirs.getpeercert(True) is None
        assert isinstance(theirs.session, ssl.SSLSession)
        unique = ours.get_channel_binding("tls-unique")
        assert len(unique) >= 12
        assert theirs.get_channel_binding("tls-unique") == unique
        with pytest.raises(ValueError, match="not implemented"):
            ours.get_channel_binding("no-such-thing")
        await end(near, far)

    run(loop, main())


def test_ssl_object_is_there_in_connection_made_and_connection_lost(
    loop: Loop, tls: Certificates
) -> None:
    seen = []

    class Asking(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            seen.append(transport.get_extra_info("ssl_object").version())
            seen.append(transport.get_extra_info("peercert") is not None)

        def connection_lost(self, exc: Exception | None) -> None:
            seen.append(self.transport.get_extra_info("cipher")[1])
            super().connection_lost(exc)

    async def main() -> None:
        near, far = Asking(loop), Recorder(loop)
        await connect(loop, tls, near, far)
        near.transport.close()
        await near.lost
        await far.lost
        assert seen == ["TLSv1.3", True, "TLSv1.3"]
        assert near.transport.get_extra_info("cipher")[1] == "TLSv1.3"
        assert near.transport.get_extra_info("ssl_object").server_hostname == "localhost"
        assert near.transport.get_extra_info("peercert") is not None

    run(loop, main())


def test_a_certificate_that_was_not_verified(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        client = tls.client(check_hostname=False, verify_mode=ssl.CERT_NONE)
        near, far = Recorder(loop), Recorder(loop)
        server = tls.server("stranger")
        assert await attempt(loop, client, server, near, far, hostname="other.test") == [None, None]
        assert near.transport.get_extra_info("peercert") == {}
        theirs = near.transport.get_extra_info("ssl_object")
        assert theirs.getpeercert(True) == tls.der("stranger")
        await end(near, far)

    run(loop, main())


if sys.version_info >= (3, 13):

    def test_chains(loop: Loop, tls: Certificates) -> None:
        async def main() -> None:
            near, far = Recorder(loop), Recorder(loop)
            await connect(loop, tls, near, far)
            ours = near.transport.get_extra_info("ssl_object")
            verified, shown = ours.get_verified_chain(), ours.get_unverified_chain()
            assert [len(verified), len(shown)] == [3, 2]
            assert verified[:2] == shown
            assert verified[0] == tls.der("server")
            assert verified[1:] == [tls.der("middle"), tls.der("ca")]
            await end(near, far)

        run(loop, main())


# ---- Contexts ----


def test_a_class_of_ones_own_for_connections(loop: Loop, tls: Certificates) -> None:
    class Mine(ssl.SSLObject):
        pass

    async def main() -> None:
        client = tls.client()
        client.sslobject_class = Mine
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, client, tls.server(), near, far) == [None, None]
        assert type(near.transport.get_extra_info("ssl_object")) is Mine
        assert type(far.transport.get_extra_info("ssl_object")) is ssl.SSLObject
        await end(near, far)

    run(loop, main())


def test_a_context_that_stands_for_another(loop: Loop, tls: Certificates) -> None:
    """As truststore's does, which overrides wrap_bio() and is empty itself."""

    class Standing(ssl.SSLContext):
        inner: ssl.SSLContext

        def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
            calls.append(options)
            return self.inner.wrap_bio(*args, **options)

    calls: list[dict[str, Any]] = []

    async def main() -> None:
        client, server = Standing(ssl.PROTOCOL_TLS_CLIENT), Standing(ssl.PROTOCOL_TLS_SERVER)
        client.inner, server.inner = tls.client(), tls.server()
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, client, server, near, far) == [None, None]
        assert sorted(call["server_side"] for call in calls) == [False, True]
        assert {call["server_hostname"] for call in calls} == {"localhost", None}
        assert near.transport.get_extra_info("sslcontext") is client
        assert near.transport.get_extra_info("ssl_object").context is client.inner
        near.transport.write(b"hello")
        assert await far.received(5) == b"hello"
        await end(near, far)

    run(loop, main())


def test_other_keys(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        client = tls.client(maximum_version=version)
        assert await attempt(loop, client, tls.server("rsa"), near, far) == [None, None]
        theirs = near.transport.get_extra_info("ssl_object")
        assert theirs.getpeercert(True) == tls.der("rsa")
        near.transport.write(b"hello")
        assert await far.received(5) == b"hello"
        await end(near, far)

    run(loop, main())


def test_a_context_by_name(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        server, other = tls.server(), tls.server("other")
        asked = []

        def choose(connection: Any, name: str | None, context: ssl.SSLContext) -> None:
            asked.append((name, context))
            if name == "other.test":
                connection.context = other

        server.sni_callback = choose
        for name, leaf, context in [
            ("localhost", "server", server),
            ("other.test", "other", other),
        ]:
            near, far = Recorder(loop), Recorder(loop)
            client = tls.client(maximum_version=version)
            assert await attempt(loop, client, server, near, far, hostname=name) == [None, None]
            theirs = near.transport.get_extra_info("ssl_object")
            assert theirs.getpeercert(True) == tls.der(leaf)
            assert far.transport.get_extra_info("ssl_object").context is context
            assert far.transport.get_extra_info("sslcontext") is server
            near.transport.write(b"hello")
            assert await far.received(5) == b"hello"
            await end(near, far)
        assert asked == [("localhost", server), ("other.test", server)]

    run(loop, main())


def test_what_a_name_callback_is_given(loop: Loop, tls: Certificates) -> None:
    """The connection of which its transport will tell later."""
    seen: list[Any] = []

    async def main() -> None:
        server = tls.server()
        server.sni_callback = lambda connection, name, context: seen.append(
            (connection, connection.server_side, context)
        )
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, tls.client(), server, near, far) == [None, None]
        assert len(seen) == 1
        assert seen[0][0] is far.transport.get_extra_info("ssl_object")
        assert seen[0][1:] == (True, server)
        seen.clear()
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize(
    "answer, error",
    [
        (ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME, None),
        (ssl.ALERT_DESCRIPTION_ACCESS_DENIED, None),
        (ZeroDivisionError("mine"), ZeroDivisionError),
        ("text", TypeError),
    ],
    ids=["unrecognized_name", "access_denied", "raises", "wrong type"],
)
def test_a_name_callback_refuses(
    loop: Loop, tls: Certificates, unraisable: list[Any], answer: Any, error: type[Exception] | None
) -> None:
    async def main() -> None:
        server = tls.server()

        def refuse(*args: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        server.sni_callback = refuse
        near, far = Recorder(loop), Recorder(loop)
        ours, theirs = await attempt(loop, tls.client(), server, near, far)
        assert isinstance(theirs, ssl.SSLError)
        assert theirs.reason == "CALLBACK_FAILED"
        assert isinstance(ours, (ssl.SSLError, ConnectionResetError))
        assert near.calls == far.calls == []
        assert [type(e) for e in unraisable] == ([] if error is None else [error])
        unraisable.clear()

    run(loop, main())


@pytest.mark.parametrize(
    "ours, theirs, agreed",
    [
        (["h2", "http/1.1"], ["http/1.1"], "http/1.1"),
        (["http/1.1", "h2"], ["h2", "http/1.1"], "h2"),  # the server's preference counts
        (["h2"], ["smtp"], None),
        (["h2"], None, None),
        (None, ["h2"], None),
    ],
)
def test_alpn(
    loop: Loop,
    tls: Certificates,
    version: ssl.TLSVersion,
    *,
    ours: list[str] | None,
    theirs: list[str] | None,
    agreed: str | None,
) -> None:
    async def main() -> None:
        client, server = tls.client(maximum_version=version), tls.server()
        if ours:
            client.set_alpn_protocols(ours)
        if theirs:
            server.set_alpn_protocols(theirs)
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, client, server, near, far) == [None, None]
        for one in (near, far):
            found = one.transport.get_extra_info("ssl_object").selected_alpn_protocol()
            assert found == agreed
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize(
    "mode", [ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED], ids=["optional", "required"]
)
@pytest.mark.parametrize("name", ["client", None])
def test_client_certificates(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion, mode: ssl.VerifyMode, name: str | None
) -> None:
    async def main() -> None:
        client = tls.client(name, maximum_version=version)
        server = tls.server(verify_mode=mode)
        near, far = Recorder(loop), Recorder(loop)
        ours, theirs = await attempt(loop, client, server, near, far)
        if name is None and mode is ssl.CERT_REQUIRED:
            assert isinstance(theirs, ssl.SSLError)
            assert theirs.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
            assert far.calls == []
            if version is V12:
                assert isinstance(ours, (ssl.SSLError, ConnectionResetError))
                assert near.calls == []
            else:  # its handshake was over before the server looked
                assert ours is None
                await near.lost
                assert near.calls[0] == "made"
                assert "data" not in near.calls
            return
        assert [ours, theirs] == [None, None]
        shown = far.transport.get_extra_info("peercert")
        if name is None:
            assert shown is None
        else:
            assert shown["subject"] == ((("commonName", "a client"),),)
            theirs = far.transport.get_extra_info("ssl_object")
            assert theirs.getpeercert() == shown
            assert theirs.getpeercert(True) == tls.der("client")
        far.transport.write(b"hello")
        assert await near.received(5) == b"hello"
        await end(near, far)

    run(loop, main())


def test_a_client_certificate_from_a_stranger(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion
) -> None:
    async def main() -> None:
        client = tls.client("stranger", maximum_version=version)
        server = tls.server(verify_mode=ssl.CERT_OPTIONAL)
        near, far = Recorder(loop), Recorder(loop)
        ours, theirs = await attempt(loop, client, server, near, far)
        assert isinstance(theirs, ssl.SSLCertVerificationError)
        assert theirs.verify_code == 18
        assert far.calls == []
        if version is V12:
            assert isinstance(ours, (ssl.SSLError, ConnectionResetError))
        else:
            await near.lost

    run(loop, main())


@pytest.mark.parametrize("kind_of_end", ["missing", "stranger"])
def test_a_client_learns_why_its_certificate_was_refused(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion, kind_of_end: str
) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        name = None if kind_of_end == "missing" else "stranger"
        client = tls.client(name, maximum_version=version)
        peer = Peer(loop, b, tls.server(verify_mode=ssl.CERT_REQUIRED))
        near = Recorder(loop)
        ours, theirs = await asyncio.gather(
            loop.create_connection(lambda: near, sock=a, ssl=client, server_hostname="localhost"),
            peer.handshake(),
            return_exceptions=True,
        )
        assert isinstance(theirs, ssl.SSLError)
        if version is V12:
            assert near.calls == []
        else:
            assert not isinstance(ours, BaseException)
            ours = await near.lost
            assert near.calls == ["made", "lost"]
        assert isinstance(ours, ssl.SSLError)
        assert (
            ours.reason
            == {
                ("missing", V12): "SSLV3_ALERT_HANDSHAKE_FAILURE",
                ("missing", V13): "TLSV13_ALERT_CERTIFICATE_REQUIRED",
                ("stranger", V12): "TLSV1_ALERT_UNKNOWN_CA",
                ("stranger", V13): "TLSV1_ALERT_UNKNOWN_CA",
            }[kind_of_end, version]
        )
        b.close()

    run(loop, main())


def test_a_certificate_is_asked_for_later(loop: Loop, tls: Certificates) -> None:
    """Post-handshake authentication, of TLS 1.3."""

    async def main() -> None:
        client = tls.client("client", post_handshake_auth=True)
        server = tls.server(verify_mode=ssl.CERT_REQUIRED, post_handshake_auth=True)
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, client, server, near, far) == [None, None]
        theirs = far.transport.get_extra_info("ssl_object")
        assert theirs.getpeercert() is None
        theirs.verify_client_post_handshake()
        far.transport.write(b"who?")  # the request goes ahead of it
        assert await near.received(4) == b"who?"
        near.transport.write(b"me")
        assert await far.received(2) == b"me"
        assert theirs.getpeercert()["subject"] == ((("commonName", "a client"),),)
        assert theirs.getpeercert(True) == tls.der("client")
        await end(near, far)

    run(loop, main())


def test_a_certificate_that_is_asked_for_later_may_be_missing(
    loop: Loop, tls: Certificates
) -> None:
    async def main() -> None:
        client = tls.client(post_handshake_auth=True)
        server = tls.server(verify_mode=ssl.CERT_REQUIRED, post_handshake_auth=True)
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, client, server, near, far) == [None, None]
        far.transport.get_extra_info("ssl_object").verify_client_post_handshake()
        far.transport.write(b"who?")
        assert await near.received(4) == b"who?"
        error = await far.lost
        assert isinstance(error, ssl.SSLError)
        assert error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
        await near.lost

    run(loop, main())


def test_a_certificate_is_not_asked_for_later_of_who_does_not_offer_it(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion
) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await connect(loop, tls, near, far, version=version)
        theirs = far.transport.get_extra_info("ssl_object")
        with pytest.raises(ssl.SSLError) as caught:
            theirs.verify_client_post_handshake()
        assert (
            caught.value.reason
            == {V12: "WRONG_SSL_VERSION", V13: "EXTENSION_NOT_RECEIVED"}[version]
        )
        far.transport.write(b"no harm")
        assert await near.received(7) == b"no harm"
        await end(near, far)

    run(loop, main())


def test_keys_are_logged(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    async def main() -> None:
        paths = [tmp_path / "client", tmp_path / "server"]
        client = tls.client(maximum_version=version, keylog_filename=str(paths[0]))
        server = tls.server(keylog_filename=str(paths[1]))
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, client, server, near, far) == [None, None]
        near.transport.write(b"hello")
        assert await far.received(5) == b"hello"
        label = {V12: "CLIENT_RANDOM", V13: "CLIENT_HANDSHAKE_TRAFFIC_SECRET"}[version]
        ours, theirs = (
            [line for line in path.read_text().splitlines() if line[:1] != "#"] for path in paths
        )
        assert sorted(ours) == sorted(theirs)
        assert label in [line.split()[0] for line in ours]
        await end(near, far)
        client.keylog_filename = server.keylog_filename = None  # type: ignore[assignment]

    run(loop, main())


def test_messages_are_watched(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        seen: list[tuple[Any, ...]] = []
        client: Any = tls.client()
        client._msg_callback = lambda *message: seen.append(message)
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, client, tls.server(), near, far) == [None, None]
        ours = near.transport.get_extra_info("ssl_object")
        assert {message[0] for message in seen} == {ours}
        told = [
            (direction, kind.name) for _, direction, _, _, kind, _ in seen if hasattr(kind, "name")
        ]
        assert told.index(("write", "CLIENT_HELLO")) < told.index(("read", "SERVER_HELLO"))
        assert ("read", "CERTIFICATE") in told
        assert told.count(("write", "FINISHED")) == told.count(("read", "FINISHED")) == 1
        seen.clear()
        client._msg_callback = None
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize(
    "ours, theirs, agreed",
    [
        ({"maximum_version": V12}, {}, "TLSv1.2"),
        ({}, {"maximum_version": V12}, "TLSv1.2"),
        ({"minimum_version": V13}, {}, "TLSv1.3"),
        ({}, {"minimum_version": V13}, "TLSv1.3"),
        ({}, {}, "TLSv1.3"),
    ],
)
def test_versions(
    loop: Loop, tls: Certificates, ours: dict[str, Any], theirs: dict[str, Any], agreed: str
) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        assert await attempt(loop, tls.client(**ours), tls.server(**theirs), near, far) == [
            None,
            None,
        ]
        for one in (near, far):
            assert one.transport.get_extra_info("ssl_object").version() == agreed
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ({"maximum_version": V12}, {"minimum_version": V13}),
        ({"minimum_version": V13}, {"maximum_version": V12}),
    ],
)
def test_no_version_in_common(
    loop: Loop, tls: Certificates, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        client, server = tls.client(**ours), tls.server(**theirs)
        we, they = await attempt(loop, client, server, near, far)
        assert isinstance(they, ssl.SSLError)
        assert they.reason == "UNSUPPORTED_PROTOCOL"
        assert isinstance(we, (ssl.SSLError, ConnectionResetError))
        assert near.calls == far.calls == []
        # By hand the server's alert is sent for certain.
        a, b = tcp_pair()
        peer = Peer(loop, b, server)
        we, they = await asyncio.gather(
            loop.create_connection(lambda: near, sock=a, ssl=client, server_hostname="localhost"),
            peer.handshake(),
            return_exceptions=True,
        )
        assert isinstance(they, ssl.SSLError)
        assert isinstance(we, ssl.SSLError)
        assert we.reason == "TLSV1_ALERT_PROTOCOL_VERSION"
        assert near.calls == []
        b.close()

    run(loop, main())


def test_no_cipher_in_common(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        client, server = tls.client(maximum_version=V12), tls.server()
        client.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        server.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
        we, they = await attempt(loop, client, server, near, far)
        assert isinstance(they, ssl.SSLError)
        assert they.reason == "NO_SHARED_CIPHER"
        assert isinstance(we, (ssl.SSLError, ConnectionResetError))
        server.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        assert await attempt(loop, client, server, near, far) == [None, None]
        cipher = near.transport.get_extra_info("cipher")
        assert cipher == ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLSv1.2", 128)
        await end(near, far)

    run(loop, main())


def test_sessions_are_resumed(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    """By a client that can: asyncio's interface has no place for a session."""

    async def main() -> None:
        server, client = tls.server(), tls.client(maximum_version=version)
        session = None
        for reused in (False, True):
            a, b = tcp_pair()
            far = Recorder(loop)
            peer = Peer(loop, a, client, hostname="localhost", session=session)
            await asyncio.gather(
                loop.connect_accepted_socket(lambda: far, b, ssl=server), peer.handshake()
            )
            assert far.transport.get_extra_info("ssl_object").session_reused is reused
            assert peer.tls.session_reused is reused
            far.transport.write(b"hello")
            assert await peer.read(5) == b"hello"  # and tickets, which come before it
            session = peer.tls.session
            assert session is not None
            assert session.has_ticket
            far.transport.close()
            await peer.unwrap()
            assert await far.lost is None
            a.close()
        assert server.session_stats()["hits"] == 1
        assert server.session_stats()["accept_good"] == 2

    run(loop, main())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_number_of_tickets(loop: Loop, tls: Certificates, count: int) -> None:
    async def main() -> None:
        server, client = tls.server(num_tickets=count), tls.client()
        seen: list[str] = []
        hand: Any = client
        hand._msg_callback = lambda *message: seen.append(getattr(message[4], "name", ""))
        a, b = tcp_pair()
        far = Recorder(loop)
        peer = Peer(loop, a, client, hostname="localhost")
        await asyncio.gather(
            loop.connect_accepted_socket(lambda: far, b, ssl=server), peer.handshake()
        )
        far.transport.write(b"hello")
        assert await peer.read(5) == b"hello"
        assert seen.count("NEWSESSION_TICKET") == count
        hand._msg_callback = None
        await end(far)
        a.close()

    run(loop, main())


# ---- Handshakes that fail ----


@pytest.mark.parametrize(
    "certificate, name, code, words",
    [
        ("stranger", "localhost", 18, "self-signed certificate"),
        ("expired", "localhost", 10, "certificate has expired"),
        (
            "server",
            "other.test",
            62,
            "Hostname mismatch, certificate is not valid for 'other.test'.",
        ),
        ("other", "localhost", 62, "Hostname mismatch, certificate is not valid for 'localhost'."),
        (
            "server",
            "127.0.0.2",
            64,
            "IP address mismatch, certificate is not valid for '127.0.0.2'.",
        ),
        (
            "other",
            "127.0.0.1",
            64,
            "IP address mismatch, certificate is not valid for '127.0.0.1'.",
        ),
    ],
)
def test_certificates_that_are_refused(
    loop: Loop,
    tls: Certificates,
    version: ssl.TLSVersion,
    *,
    certificate: str,
    name: str,
    code: int,
    words: str,
) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        client = tls.client(maximum_version=version)
        ours, theirs = await attempt(
            loop, client, tls.server(certificate), near, far, hostname=name
        )
        assert type(ours) is ssl.SSLCertVerificationError
        assert ours.verify_code == code
        assert ours.verify_message == words
        assert ours.reason == "CERTIFICATE_VERIFY_FAILED"
        assert ours.library == "SSL"
        assert ours.errno == ssl.SSL_ERROR_SSL
        assert f"certificate verify failed: {words}" in str(ours)
        assert isinstance(theirs, (ssl.SSLError, ConnectionResetError))
        assert near.calls == far.calls == []

    run(loop, main())


def test_whom_nobody_trusts(loop: Loop, tls: Certificates) -> None:
    """A context without authorities."""

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ours, _ = await attempt(loop, client, tls.server(), near, far)
        assert isinstance(ours, ssl.SSLCertVerificationError)
        assert ours.verify_code == 20
        assert ours.verify_message == "unable to get local issuer certificate"
        assert near.calls == far.calls == []

    run(loop, main())


@pytest.mark.parametrize("side", ["client", "server"])
def test_an_alert_tells_the_peer_of_a_handshake_why_it_failed(
    becket_loop: Loop, tls: Certificates, side: str
) -> None:
    """asyncio's own closes the connection before the alert is sent."""

    async def main() -> None:
        loop = becket_loop
        a, b = tcp_pair()
        near = Recorder(loop)
        if side == "client":
            peer = Peer(loop, b, tls.server("stranger"))
            work: Any = loop.create_connection(
                lambda: near, sock=a, ssl=tls.client(), server_hostname="localhost"
            )
        else:
            peer = Peer(loop, b, tls.client(maximum_version=V12), hostname="localhost")
            work = loop.connect_accepted_socket(
                lambda: near, a, ssl=tls.server(minimum_version=V13)
            )
        ours, theirs = await asyncio.gather(work, peer.handshake(), return_exceptions=True)
        if theirs is peer:  # the server's handshake was over when the client looked
            with pytest.raises(ssl.SSLError) as caught:
                await peer.read(1)
            theirs = caught.value
        b.close()
        assert isinstance(ours, ssl.SSLError)
        assert isinstance(theirs, ssl.SSLError)
        assert (
            theirs.reason
            == {"client": "TLSV1_ALERT_UNKNOWN_CA", "server": "TLSV1_ALERT_PROTOCOL_VERSION"}[side]
        )
        assert near.calls == []

    run(becket_loop, main())


GARBAGE = [
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP_REQUEST", id="HTTP"),
    pytest.param(b"CONNECT localhost:1 HTTP/1.1\r\n\r\n", "HTTPS_PROXY_REQUEST", id="proxy"),
    pytest.param(b"EHLO localhost\r\n", "WRONG_VERSION_NUMBER", id="SMTP"),
    pytest.param(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", None, id="too long"),
    pytest.param(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", None, id="no hello"),
    pytest.param(b"\x17\x03\x03\x00\x05hello", None, id="data"),
    pytest.param(b"\x15\x03\x03\x00\x02\x02\x28", None, id="an alert"),
    pytest.param(bytes(100), None, id="zeroes"),
]


@pytest.mark.parametrize("garbage, reason", GARBAGE)
def test_what_is_no_hello(
    loop: Loop, tls: Certificates, garbage: bytes, reason: str | None
) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        far = Recorder(loop)
        b.send(garbage)
        with pytest.raises(ssl.SSLError) as caught:
            await loop.connect_accepted_socket(lambda: far, a, ssl=tls.server())
        assert reason in (None, caught.value.reason)
        assert type(caught.value) is ssl.SSLError
        assert far.calls == []
        with contextlib.suppress(ConnectionResetError):
            await receive(loop, b)  # it ends
        b.close()

    run(loop, main())


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("how", ["HTTP", "gone", "reset", "wrong certificate"])
def test_a_bad_client_is_no_matter_to_others(
    loop: Loop, tls: Certificates, how: str, debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is it reported, but in debug mode."""
    caplog.set_level(logging.CRITICAL, logger="asyncio")  # debug mode tells much
    loop.set_debug(debug)
    loop.slow_callback_duration = 100

    async def main() -> None:
        reports = Reports(loop, expected=True)
        made: list[Recorder] = []

        def factory() -> asyncio.BaseProtocol:
            made.append(Recorder(loop))
            return made[-1] if len(made) == 1 else Echo()

        server, port = await serving(loop, tls.server(), factory)
        if how == "wrong certificate":
            client = tls.client()
            with pytest.raises(ssl.SSLCertVerificationError):
                await loop.create_connection(
                    lambda: Recorder(loop),
                    "127.0.0.1",
                    port,
                    ssl=client,
                    server_hostname="other.test",
                )
        else:
            sock = socket.create_connection(("127.0.0.1", port))
            await until(lambda: made)
            if how == "HTTP":
                sock.send(b"GET / HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    await receive(loop, sock)
                sock.close()
            elif how == "gone":
                sock.close()
            else:
                reset(sock)
        await served(loop, tls, port)
        if debug:
            await until(lambda: reports.all)
            context = reports.take()
            error: Any = context["exception"]
            assert context["message"] == "Error on transport creation for incoming connection"
            assert isinstance(error, OSError)
            assert context["protocol"] is made[0]
            assert "transport" in context
            if how == "HTTP":
                assert error.reason == "HTTP_REQUEST"
        await served(loop, tls, port)
        assert reports.all == []
        assert made[0].calls == []
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_a_peer_without_tls(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        b.send(b"220 localhost ESMTP\r\n")
        with pytest.raises(ssl.SSLError) as caught:
            await loop.create_connection(
                lambda: near, sock=a, ssl=tls.client(), server_hostname="localhost"
            )
        assert type(caught.value) is ssl.SSLError
        assert caught.value.reason == "WRONG_VERSION_NUMBER"
        assert caught.value.library == "SSL"
        assert near.calls == []
        await until(lambda: a.fileno() < 0)
        b.close()

    run(loop, main())


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("when", ["at once", "amid"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_peer_that_leaves_during_the_handshake(
    loop: Loop, tls: Certificates, *, side: str, when: str, how: str
) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        if side == "client":
            peer = Peer(loop, b, tls.server())
            work: Any = loop.create_connection(
                lambda: near, sock=a, ssl=tls.client(), server_hostname="localhost"
            )
        else:
            peer = Peer(loop, b, tls.client(), hostname="localhost")
            work = loop.connect_accepted_socket(lambda: near, a, ssl=tls.server())
        task = asyncio.ensure_future(work)
        if when == "amid":
            if side == "client":
                await peer.feed()
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            b.send(peer.outgoing.read()[:100])
            await turns(5)
            assert not task.done()
        if how == "close":
            b.setblocking(False)
            while side == "client" and when == "at once":  # unread data would make it a reset
                try:
                    b.recv(1 << 16)
                    break
                except BlockingIOError:
                    await turns()
            b.close()
        else:
            reset(b)
        with pytest.raises(ConnectionError) as caught:
            await task
        assert (
            type(caught.value)
            in {
                "close": (ConnectionResetError,),
                # What was to be written meanwhile may have met the broken connection first.
                "reset": (ConnectionResetError, BrokenPipeError),
            }[how]
        )
        if how == "close":
            assert caught.value.args == ()
        assert near.calls == []
        await until(lambda: a.fileno() < 0)

    run(loop, main())


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_handshake_that_takes_too_long(loop: Loop, tls: Certificates, side: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        if side == "client":
            work: Any = loop.create_connection(
                lambda: near,
                sock=a,
                ssl=tls.client(),
                server_hostname="localhost",
                ssl_handshake_timeout=0.125,
            )
        else:
            work = loop.connect_accepted_socket(
                lambda: near, a, ssl=tls.server(), ssl_handshake_timeout=0.125
            )
        with pytest.raises(ConnectionAbortedError) as caught:
            await work
        assert str(caught.value) == (
            "SSL handshake is taking longer than 0.125 seconds: aborting the connection"
        )
        assert caught.value.errno is None
        assert near.calls == []
        await receive(loop, b)  # it ends
        b.close()

    run(loop, main())


def test_a_server_drops_who_takes_too_long(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        server, port = await serving(loop, tls.server(), ssl_handshake_timeout=0.5)
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        silent[1].send(b"\x16\x03\x01")  # a hello that never ends
        await served(loop, tls, port)
        for sock in silent:
            assert await receive(loop, sock) == b""
            sock.close()
        await served(loop, tls, port)
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_the_time_for_a_handshake_ends_with_it(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await connect(loop, tls, near, far, ssl_handshake_timeout=0.5)
        await asyncio.sleep(0.6)
        near.transport.write(b"still here")
        assert await far.received(10) == b"still here"
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_handshake_that_is_cancelled(loop: Loop, tls: Certificates, side: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        if side == "client":
            work: Any = loop.create_connection(
                lambda: near, sock=a, ssl=tls.client(), server_hostname="localhost"
            )
        else:
            work = loop.connect_accepted_socket(lambda: near, a, ssl=tls.server())
        task = asyncio.ensure_future(work)
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await receive(loop, b)  # it ends
        assert near.calls == []
        await until(lambda: a.fileno() < 0)
        b.close()

    run(loop, main())


def test_an_exception_in_connection_made(loop: Loop, tls: Certificates, reports: Reports) -> None:
    error = ZeroDivisionError("mine")

    class Failing(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            raise error

    async def main() -> None:
        near, far = Failing(loop), Recorder(loop)
        ours, theirs = await attempt(loop, tls.client(), tls.server(), near, far)
        assert ours is error
        assert theirs is None or isinstance(theirs, OSError)
        assert await near.lost is error
        assert near.calls == ["made", "lost"]
        assert reports.take()["exception"] is error
        if theirs is None:
            await far.lost

    run(loop, main())
