"""Datagram endpoints: what asyncio's do, on its own loop and on ours."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import socket
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

import becket
from becket import _becket
from support import Loop, Reports, run, turns, until

SENDS_EMPTY = sys.version_info >= (3, 13)
HEADER = 8 if SENDS_EMPTY else 0
LOCAL = ("127.0.0.1", 0)
HAS_IPV6 = socket.has_ipv6


class Datagrams(asyncio.DatagramProtocol):
    """Writes down what is called."""

    def __init__(self, *, echo: bool = False) -> None:
        self.echo = echo
        self.calls: list[str] = []
        self.got: list[tuple[bytes, Any]] = []
        self.errors: list[BaseException] = []
        self.lost: list[BaseException | None] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("made")
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.append((data, addr))
        if self.echo and addr is not None:
            self.transport.sendto(data, addr)

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.lost.append(exc)

    @property
    def data(self) -> list[bytes]:
        return [data for data, _ in self.got]

    @property
    def name(self) -> Any:
        return self.transport.get_extra_info("sockname")


async def endpoint(loop: Loop, protocol: Datagrams | None = None, **options: Any) -> Datagrams:
    protocol = protocol or Datagrams()
    if not options:
        options = {"local_addr": LOCAL}
    transport, made = await loop.create_datagram_endpoint(lambda: protocol, **options)
    assert made is protocol
    assert protocol.transport is transport
    return protocol


async def close(*protocols: Datagrams) -> None:
    for protocol in protocols:
        protocol.transport.close()
    await until(lambda: all(p.lost for p in protocols))


def unix_pair() -> tuple[socket.socket, socket.socket]:
    """Two UNIX sockets of datagrams, each the other's peer."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


def nobody() -> tuple[str, int]:
    """An address at which nobody is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(LOCAL)
        name: tuple[str, int] = sock.getsockname()
        return name


# ---- Sending and receiving -----------------------------------------------------------------------


def test_unconnected(loop: Loop) -> None:
    async def main() -> None:
        server = await endpoint(loop, Datagrams(echo=True))
        clients = [await endpoint(loop) for _ in range(3)]
        for i, client in enumerate(clients):
            client.transport.sendto(b"hello %d" % i, server.name)
        await until(lambda: all(c.got for c in clients))
        assert [c.got for c in clients] == [
            [(b"hello %d" % i, server.name)] for i in range(len(clients))
        ]
        assert {addr for _, addr in server.got} == {c.name for c in clients}
        assert all(type(addr) is tuple for _, addr in server.got)
        assert server.calls == ["made"]
        await close(server, *clients)
        assert server.calls == ["made", "lost"]
        assert server.lost == [None]

    run(loop, main())


def test_connected(loop: Loop) -> None:
    async def main() -> None:
        server = await endpoint(loop, Datagrams(echo=True))
        client = await endpoint(loop, remote_addr=server.name)
        client.transport.sendto(b"one")
        client.transport.sendto(b"two", server.name)
        client.transport.sendto(b"three", None)
        await until(lambda: len(client.got) == 3)
        assert client.data == [b"one", b"two", b"three"]
        assert client.transport.get_extra_info("peername") == server.name
        with pytest.raises(ValueError, match=r"^Invalid address: must be None or "):
            client.transport.sendto(b"four", ("127.0.0.2", 5))
        await close(server, client)

    run(loop, main())


@pytest.mark.skipif(not HAS_IPV6, reason="there is no IPv6")
def test_ipv6(loop: Loop) -> None:
    async def main() -> None:
        server = await endpoint(loop, Datagrams(echo=True), local_addr=("::1", 0))
        client = await endpoint(loop, local_addr=("::1", 0))
        assert len(server.name) == 4
        for address in (server.name, server.name[:2], server.name[:3], (*server.name[:3], 0)):
            client.transport.sendto(b"hello", address)
        await until(lambda: len(client.got) == 4)
        assert server.got == [(b"hello", client.name)] * 4
        await close(server, client)

    run(loop, main())


def test_unix(loop: Loop, short_path: str) -> None:
    async def main() -> None:
        server = await endpoint(
            loop, Datagrams(echo=True), family=socket.AF_UNIX, local_addr=short_path
        )
        client = await endpoint(loop, family=socket.AF_UNIX, local_addr=short_path + "2")
        client.transport.sendto(b"text", short_path)
        client.transport.sendto(b"bytes", short_path.encode())
        client.transport.sendto(b"more bytes", bytearray(short_path.encode()))
        await until(lambda: len(client.got) == 3)
        assert client.got == [(data, short_path) for data in (b"text", b"bytes", b"more bytes")]
        connected = await endpoint(loop, family=socket.AF_UNIX, remote_addr=short_path)
        connected.transport.sendto(b"unnamed")
        await until(lambda: len(server.got) == 4)
        assert server.got[-1] == (b"unnamed", None)
        assert not connected.got
        await close(server, client, connected)

    run(loop, main())


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
def test_unix_abstract_names(loop: Loop) -> None:
    async def main() -> None:
        name = f"\0becket-{id(loop)}"
        server = await endpoint(loop, family=socket.AF_UNIX, local_addr=name)
        client = await endpoint(loop, family=socket.AF_UNIX, local_addr=name + "2")
        client.transport.sendto(b"hello", name)
        await until(lambda: server.got)
        assert server.got == [(b"hello", (name + "2").encode())]
        await close(server, client)

    run(loop, main())


def test_unix_pair(loop: Loop) -> None:
    async def main() -> None:
        a, b = unix_pair()
        near, far = await endpoint(loop, sock=a), await endpoint(loop, sock=b)
        a.send(b"hello")
        await until(lambda: far.got)
        assert far.got == [(b"hello", None)]
        assert near.transport.get_extra_info("peername") == ""
        await close(near, far)

    run(loop, main())


def test_many_keep_their_order(loop: Loop) -> None:
    async def main() -> None:
        a, b = unix_pair()
        near, far = await endpoint(loop, sock=a), await endpoint(loop, sock=b)
        near.transport._extra["peername"] = "b"  # or asyncio asks for an address
        sent = [b"%d" % i * (i % 50 + 1) for i in range(500)]
        for data in sent:
            near.transport.sendto(data)
        await until(lambda: len(far.got) == len(sent))
        assert far.data == sent
        assert not near.errors
        await close(near, far)

    run(loop, main())


def test_empty_datagrams(loop: Loop) -> None:
    async def main() -> None:
        server = await endpoint(loop)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(LOCAL)
            sock.sendto(b"", server.name)
            await until(lambda: server.got)
            assert server.got == [(b"", sock.getsockname())]
        client = await endpoint(loop)
        client.transport.sendto(b"", server.name)
        client.transport.sendto(bytearray(), server.name)
        client.transport.sendto(b"end", server.name)
        await until(lambda: server.got[-1][0] == b"end")
        assert server.data == [b"", *([b"", b""] if SENDS_EMPTY else []), b"end"]
        await close(server, client)

    run(loop, main())


def test_large_datagrams(loop: Loop) -> None:
    async def main() -> None:
        server = await endpoint(loop)
        client = await endpoint(loop, remote_addr=server.name)
        for size in (1, 511, 513, 1500, 9000, 65507):
            client.transport.sendto(b"x" * size)
        await until(lambda: len(server.got) == 6)
        assert [len(data) for data in server.data] == [1, 511, 513, 1500, 9000, 65507]
        client.transport.sendto(b"x" * 65508)
        assert [e.errno for e in client.errors] == [errno.EMSGSIZE]  # type: ignore[attr-defined]
        await close(server, client)

    run(loop, main())


def test_what_is_longer_than_256_kib_is_cut(loop: Loop) -> None:
    async def main() -> None:
        a, b = unix_pair()
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212992)
        far = await endpoint(loop, sock=b)
        a.send(b"x" * (256 * 1024 + 100))
        a.send(b"next")
        await until(lambda: len(far.got) == 2)
        assert far.data == [b"x" * 256 * 1024, b"next"]
        a.close()
        await close(far)

    run(loop, main())


def test_what_is_sent_is_what_it_was(loop: Loop) -> None:
    """A buffer may be changed after sendto()."""

    async def main() -> None:
        server = await endpoint(loop)
        client = await endpoint(loop)
        data = bytearray(b"before")
        client.transport.sendto(data, server.name)
        client.transport.sendto(memoryview(data)[:3], server.name)
        data[:] = b"after."
        await until(lambda: len(server.got) == 2)
        assert server.data == [b"before", b"bef"]
        data.clear()  # nobody holds it
        await close(server, client)

    run(loop, main())


def test_what_was_received_may_be_kept(loop: Loop) -> None:
    async def main() -> None:
        server = await endpoint(loop)
        client = await endpoint(loop, remote_addr=server.name)
        sent = [bytes([i]) * 1000 for i in range(100)]
        for data in sent:
            client.transport.sendto(data)
            await turns(1)
        await until(lambda: len(server.got) == len(sent))
        assert server.data == sent
        assert {hash(data) for data in server.data} == {hash(data) for data in sent}
        await close(server, client)

    run(loop, main())


def test_many_peers(loop: Loop) -> None:
    """More than any cache of addresses has room for."""

    async def main() -> None:
        server = await endpoint(loop, Datagrams(echo=True))
        for i in range(2000):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((f"127.0.{i % 8}.{i % 250 + 1}", 0))
                sock.sendto(b"%d" % i, server.name)
                await until(lambda i=i: len(server.got) > i)
                assert server.got[i] == (b"%d" % i, sock.getsockname())
                assert sock.recv(100) == b"%d" % i
        await close(server)

    run(loop, main())


def test_equal_addresses(loop: Loop) -> None:
    """A tuple of one's own means the same as one that was received."""

    class Address(tuple[Any, ...]):
        pass

    async def main() -> None:
        server = await endpoint(loop, Datagrams(echo=True))
        client = await endpoint(loop)
        host, port = server.name
        for address in ((host, port), Address((host, port)), server.name):
            client.transport.sendto(b"hello", address)
        await until(lambda: len(client.got) == 3)
        await close(server, client)

    run(loop, main())


def test_names_are_resolved(loop: Loop) -> None:
    async def main() -> None:
        server = await endpoint(loop)
        client = await endpoint(loop)
        client.transport.sendto(b"first", server.name)
        client.transport.sendto(b"by name", ("localhost", server.name[1]))
        await until(lambda: len(server.got) == 2)
        assert server.data == [b"first", b"by name"]
        client.transport.sendto(b"", ("name.invalid", 5))
        client.transport.sendto(b"x", ("name.invalid", 5))
        await until(lambda: client.errors)
        assert {type(e) for e in client.errors} == {socket.gaierror}
        await close(server, client)

    run(loop, main())


def test_what_a_name_stands_for(becket_loop: becket.EventLoop) -> None:
    """What is queued for it, should the socket be full."""
    assert becket_loop._plain_address(socket.AF_INET, ("localhost", 5)) == ("127.0.0.1", 5)
    assert becket_loop._plain_address(socket.AF_UNIX, bytearray(b"path")) == b"path"


def test_sending_to_a_name_from_a_full_socket(loop: Loop, short_path: str) -> None:
    async def main() -> None:
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind(short_path)
        receiver.setblocking(False)
        client = await endpoint(loop, family=socket.AF_UNIX, local_addr=short_path + "2")
        count = 0
        while not client.transport.get_write_buffer_size():
            client.transport.sendto(b"x", short_path)
            count += 1
        client.transport.sendto(b"last", bytearray(short_path.encode()))
        assert client.transport.get_write_buffer_size() == 5 + 2 * HEADER
        got = [await loop.sock_recv(receiver, 100) for _ in range(count + 1)]
        assert got == [b"x"] * count + [b"last"]
        assert client.errors == []
        receiver.close()
        await close(client)

    run(loop, main())


# ---- Errors --------------------------------------------------------------------------------------


def test_wrong_types(loop: Loop) -> None:
    async def main() -> None:
        client = await endpoint(loop)
        for data, name in (("text", "str"), (None, "NoneType"), (5, "int")):
            words = f"^data argument must be a bytes-like object, not '{name}'$"
            with pytest.raises(TypeError, match=words):
                client.transport.sendto(data, client.name)
        with pytest.raises(TypeError):
            client.transport.sendto()
        with pytest.raises(TypeError):
            client.transport.sendto(b"", client.name, 5)
        with pytest.raises(TypeError):
            client.transport.sendto(b"", address=5)
        client.transport.sendto(data=b"named", addr=client.name)
        await until(lambda: client.got)
        await close(client)

    run(loop, main())


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (None, TypeError),
        ("127.0.0.1", TypeError),
        (("127.0.0.1",), TypeError),
        (("127.0.0.1", "80"), TypeError),
        (("127.0.0.1", 65536), OverflowError),
        (("127.0.0.1", -1), OverflowError),
        (("127.0.0.1", 5, 0), TypeError),
        (("127.0.0.1\0", 5), (ValueError, TypeError)),
        ((5, 5), TypeError),
    ],
)
def test_wrong_addresses_are_fatal(
    loop: Loop, reports: Reports, address: Any, error: type[Exception]
) -> None:
    async def main() -> None:
        client = await endpoint(loop)
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.transport.sendto(b"x", address)
        assert client.transport.is_closing()
        await until(lambda: client.lost)
        with pytest.raises(error) as wanted:
            other.sendto(b"x", address)
        other.close()
        report = reports.take()
        assert report["message"] == "Fatal write error on datagram transport"
        assert report["transport"] is client.transport
        assert report["protocol"] is client
        assert report["exception"] is client.lost[0]
        assert repr(client.lost[0]) == repr(wanted.value)

    run(loop, main())


def test_an_error_of_a_connected_peer(loop: Loop) -> None:
    """Of two datagrams to a closed port the second hears of the first."""

    async def main() -> None:
        client = await endpoint(loop, remote_addr=nobody())
        for _ in range(4):
            client.transport.sendto(b"x")
        await turns()
        assert [type(e) for e in client.errors] == [ConnectionRefusedError] * 2
        assert client.errors[0].args == (errno.ECONNREFUSED, "Connection refused")
        client.transport.sendto(b"x")
        await until(lambda: len(client.errors) == 3)  # and the fifth is heard of by waiting
        assert not client.lost
        await close(client)

    run(loop, main())


def test_an_error_of_one_among_many(loop: Loop, short_path: str) -> None:
    async def main() -> None:
        server = await endpoint(loop, family=socket.AF_UNIX, local_addr=short_path)
        client = await endpoint(loop, family=socket.AF_UNIX, local_addr=short_path + "2")
        for i in range(10):
            client.transport.sendto(b"%d" % i, short_path + ("x" if i in (0, 4, 5) else ""))
        await until(lambda: len(server.got) == 7)
        assert server.data == [b"1", b"2", b"3", b"6", b"7", b"8", b"9"]
        assert [type(e) for e in client.errors] == [FileNotFoundError] * 3
        await close(server, client)

    run(loop, main())


@pytest.mark.parametrize("method", ["datagram_received", "connection_made", "connection_lost"])
def test_a_protocol_that_raises(loop: Loop, reports: Reports, method: str) -> None:
    """The endpoint goes on."""

    class Failing(Datagrams):
        pass

    def fail(self: Failing, *args: Any) -> None:
        getattr(Datagrams, method)(self, *args)
        raise ZeroDivisionError

    setattr(Failing, method, fail)

    async def main() -> None:
        server = await endpoint(loop, Failing())
        client = await endpoint(loop)
        client.transport.sendto(b"one", server.name)
        client.transport.sendto(b"two", server.name)
        await until(lambda: len(server.got) == 2)
        await close(server, client)
        count = 2 if method == "datagram_received" else 1
        assert [type(e) for e in reports.exceptions] == [ZeroDivisionError] * count

    run(loop, main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_the_run(loop: Loop, error: type[BaseException]) -> None:
    """What has come by then is told when the loop runs again."""

    class Failing(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"1":
                raise error

    server = run(loop, endpoint(loop, Failing()))
    client = run(loop, endpoint(loop))
    for i in range(4):
        client.transport.sendto(b"%d" % i, server.name)
    with pytest.raises(error):
        run(loop, until(lambda: len(server.got) == 4))
    assert server.data == [b"0", b"1"]
    run(loop, until(lambda: len(server.got) == 4))
    assert server.data == [b"0", b"1", b"2", b"3"]
    run(loop, close(server, client))


# ---- Flow control --------------------------------------------------------------------------------


async def full(loop: Loop, **limits: int) -> tuple[Datagrams, socket.socket, int]:
    """An endpoint whose socket has no room, the other end of it, and how many it has sent."""
    a, b = unix_pair()
    b.setblocking(False)
    protocol = await endpoint(loop, sock=a)
    # A peer without a name: asyncio would ask for an address.
    protocol.transport._extra["peername"] = "b"
    protocol.transport.set_write_buffer_limits(**limits)
    sent = 0
    while "pause" not in protocol.calls:
        protocol.transport.sendto(b"x" * 100)
        sent += 1
        assert sent < 10_000
        await turns(1)
    return protocol, b, sent


async def drain(loop: Loop, sock: socket.socket, count: int) -> None:
    for _ in range(count):
        assert await loop.sock_recv(sock, 1000) == b"x" * 100


def test_flow_control(loop: Loop) -> None:
    async def main() -> None:
        near, far, sent = await full(loop, high=1000, low=300)
        each = 100 + HEADER
        queued = 1000 // each + 1
        assert near.transport.get_write_buffer_limits() == (300, 1000)
        assert near.transport.get_write_buffer_size() == queued * each
        assert f"write=<polling, bufsize={queued * each}>>" in repr(near.transport)
        await turns()
        assert near.calls == ["made", "pause"]
        await drain(loop, far, sent)
        await until(lambda: near.calls == ["made", "pause", "resume"])
        if not SENDS_EMPTY or isinstance(near.transport, _becket.DatagramTransport):
            # (asyncio 3.13 forgets to take the headers off again)
            assert near.transport.get_write_buffer_size() == 0
        far.close()
        await close(near)

    run(loop, main())


def test_close_sends_what_is_queued(loop: Loop) -> None:
    async def main() -> None:
        near, far, sent = await full(loop, high=1000)
        near.transport.close()
        assert near.transport.is_closing()
        await turns()
        assert "lost" not in near.calls
        await drain(loop, far, sent)
        await until(lambda: near.lost)
        assert near.lost == [None]
        far.close()

    run(loop, main())


def test_abort_drops_what_is_queued(loop: Loop) -> None:
    async def main() -> None:
        near, far, sent = await full(loop, high=1000)
        near.transport.abort()
        near.transport.abort()
        assert not near.lost
        await turns()
        assert near.lost == [None]
        with pytest.raises(BlockingIOError):
            for _ in range(sent):
                far.recv(1000)
        far.close()

    run(loop, main())


def test_write_buffer_limits(loop: Loop) -> None:
    async def main() -> None:
        client = await endpoint(loop)
        transport = client.transport
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.set_write_buffer_limits(high=100)
        assert transport.get_write_buffer_limits() == (25, 100)
        transport.set_write_buffer_limits(low=100)
        assert transport.get_write_buffer_limits() == (100, 400)
        transport.set_write_buffer_limits(0)
        assert transport.get_write_buffer_limits() == (0, 0)
        words = r"^high \(1\) must be >= low \(2\) must be >= 0$"
        with pytest.raises(ValueError, match=words):
            transport.set_write_buffer_limits(high=1, low=2)
        await close(client)

    run(loop, main())


def test_limits_below_what_is_queued(loop: Loop) -> None:
    """pause_writing() is called by set_write_buffer_limits() itself."""

    async def main() -> None:
        a, b = unix_pair()
        b.setblocking(False)
        near = await endpoint(loop, sock=a)
        near.transport._extra["peername"] = "b"
        sent = 0
        while not near.transport.get_write_buffer_size():
            near.transport.sendto(b"x" * 100)
            sent += 1
        assert near.calls == ["made"]
        near.transport.set_write_buffer_limits(high=10)
        assert near.calls == ["made", "pause"]
        near.transport.set_write_buffer_limits(
            high=100, low=50
        )  # (3.13 forgets 8 bytes: see above)
        await drain(loop, b, sent)
        await until(lambda: near.calls == ["made", "pause", "resume"])
        b.close()
        await close(near)

    run(loop, main())


def test_pause_reading(loop: Loop) -> None:
    async def main() -> None:
        server = await endpoint(loop)
        client = await endpoint(loop, remote_addr=server.name)
        server.transport.pause_reading()
        server.transport.pause_reading()
        assert not server.transport.is_reading()
        for i in range(3):
            client.transport.sendto(b"%d" % i)
        await turns(10)
        assert not server.got
        server.transport.resume_reading()
        assert server.transport.is_reading()
        await until(lambda: len(server.got) == 3)
        await close(server, client)
        assert not server.transport.is_reading()

    run(loop, main())


def test_pausing_within_datagram_received(loop: Loop) -> None:
    class Pausing(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.pause_reading()

    async def main() -> None:
        server = await endpoint(loop, Pausing())
        client = await endpoint(loop, remote_addr=server.name)
        for i in range(4):
            client.transport.sendto(b"%d" % i)
        for i in range(4):
            await until(lambda i=i: len(server.got) == i + 1)
            await turns(5)
            assert server.data == [b"%d" % j for j in range(i + 1)]
            server.transport.resume_reading()
        await close(server, client)

    run(loop, main())


# ---- The end, and who is told --------------------------------------------------------------------


def test_closing_within_datagram_received(loop: Loop) -> None:
    class Closing(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.sendto(b"bye", addr)
            self.transport.close()

    async def main() -> None:
        server = await endpoint(loop, Closing())
        client = await endpoint(loop)
        for i in range(4):
            client.transport.sendto(b"%d" % i, server.name)
        await until(lambda: server.lost and client.got)
        assert server.data == [b"0"]
        assert client.data == [b"bye"]
        await close(client)

    run(loop, main())


def test_close(loop: Loop) -> None:
    async def main() -> None:
        client = await endpoint(loop)
        transport, name = client.transport, client.name
        sock = transport.get_extra_info("socket")
        fd = sock.fileno()
        assert not transport.is_closing()
        assert repr(transport).endswith(f" fd={fd} read=polling write=<idle, bufsize=0>>")
        transport.close()
        transport.close()
        assert transport.is_closing()
        assert f"closing fd={fd} read=idle" in repr(transport)
        assert client.calls == ["made"]
        await turns()
        assert client.calls == ["made", "lost"]
        assert repr(transport).endswith(f" closed fd={fd}>")
        assert sock.fileno() == -1
        assert transport.get_protocol() is None
        assert transport.get_extra_info("sockname") == name
        transport.close()
        transport.abort()

    run(loop, main())


def test_sending_after_close(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        server = await endpoint(loop)
        client = await endpoint(loop, remote_addr=server.name)
        client.transport.close()
        for _ in range(8):
            client.transport.sendto(b"lost")
        other = await endpoint(loop)
        other.transport.close()
        other.transport.sendto(b"goes, as its socket is open yet", server.name)
        await until(lambda: server.got)
        assert server.data == [b"goes, as its socket is open yet"]
        await close(client, other, server)
        client.transport.sendto(b"lost")

    run(loop, main())
    assert {record.getMessage() for record in caplog.records} == {"socket.send() raised exception."}


def test_set_protocol(loop: Loop) -> None:
    class Handing(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.set_protocol(second)

    second = Datagrams()

    async def main() -> None:
        first = await endpoint(loop, Handing())
        client = await endpoint(loop, remote_addr=first.name)
        client.transport.sendto(b"one")
        client.transport.sendto(b"two")
        await until(lambda: second.got)
        assert first.data == [b"one"]
        assert second.data == [b"two"]
        assert first.transport.get_protocol() is second
        client.transport.close()
        first.transport.close()
        await until(lambda: second.lost)
        assert not first.lost

    run(loop, main())


def test_contexts(loop: Loop) -> None:
    """Callbacks run in the context in which the endpoint was made, not in that of who sends."""
    variable = contextvars.ContextVar("variable", default="none")
    seen: dict[str, str] = {}

    class Noting(Datagrams):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            seen["made"] = variable.get()

        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            seen["received"] = variable.get()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            seen["lost"] = variable.get()

    async def main() -> None:
        variable.set("maker")
        server = await endpoint(loop, Noting())
        client = await endpoint(loop)
        variable.set("sender")
        client.transport.sendto(b"x", server.name)
        await until(lambda: server.got)
        variable.set("maker")
        await close(server, client)
        assert seen == dict.fromkeys(("made", "received", "lost"), "maker")

    run(loop, main())


def test_nothing_is_left(loop: Loop) -> None:
    async def main() -> list[weakref.ref[Any]]:
        server = await endpoint(loop, Datagrams(echo=True))
        client = await endpoint(loop, remote_addr=server.name)
        client.transport.sendto(b"x")
        await until(lambda: client.got)
        await close(server, client)
        return [weakref.ref(o) for o in (server, client, server.transport, client.transport)]

    left = run(loop, main())
    gc.collect()
    assert [ref() for ref in left] == [None] * 4


def test_a_loop_that_is_forgotten_with_its_endpoints() -> None:
    """The collector takes all of it, in any order."""
    loop: Any = becket.EventLoop()
    protocol = run(loop, endpoint(loop))
    left = weakref.ref(protocol.transport)
    protocol.loop = loop  # type: ignore[attr-defined]
    with pytest.warns(ResourceWarning, match="unclosed"):
        del loop, protocol
        gc.collect()
    assert left() is None


def test_sending_while_the_loop_does_not_run(loop: Loop) -> None:
    """It leaves at once: nothing else may ever happen there."""
    client = run(loop, endpoint(loop))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(LOCAL)
        sock.settimeout(20)
        client.transport.sendto(b"hello", sock.getsockname())
        assert sock.recv(100) == b"hello"
    run(loop, close(client))


def test_sending_from_another_thread(loop: Loop) -> None:
    """Nobody should; with asyncio's loop it leaves at once, although that sleeps."""

    async def main() -> None:
        client = await endpoint(loop)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(LOCAL)
            sock.settimeout(20)
            name = sock.getsockname()

            def work() -> bytes:
                client.transport.sendto(b"hello", name)
                return sock.recv(100)

            assert await asyncio.to_thread(work) == b"hello"
        await close(client)

    run(loop, main())


def test_a_loop_that_is_closed_before_its_endpoints(becket_loop: becket.EventLoop) -> None:
    loop: Any = becket_loop
    protocol = run(loop, endpoint(loop))
    with pytest.warns(ResourceWarning, match="unclosed transport <DatagramTransport"):
        loop.close()
    assert protocol.lost == []
    protocol.transport.close()
    protocol.transport.sendto(b"x", LOCAL)
    assert protocol.transport.get_write_buffer_size() == 0


def test_a_socket_that_somebody_else_closes(loop: Loop) -> None:
    """Who has its number afterwards is left alone."""

    async def main() -> None:
        client = await endpoint(loop)
        sock = client.transport._sock
        fd = sock.fileno()
        client.transport.close()
        sock.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as new:
            new.bind(LOCAL)
            assert new.fileno() == fd
            other = await endpoint(loop, sock=new)
            await until(lambda: client.lost)
            sender = await endpoint(loop, remote_addr=other.name)
            sender.transport.sendto(b"x")
            await until(lambda: other.got)
            with pytest.raises(RuntimeError, match="is used by transport"):
                loop.add_reader(fd, print)
            await close(other, sender)

    run(loop, main())


# ---- What an endpoint is made of -----------------------------------------------------------------


def test_the_transport(loop: Loop) -> None:
    async def main() -> None:
        client = await endpoint(loop)
        transport = client.transport
        assert isinstance(transport, asyncio.Transport)
        if sys.version_info >= (3, 12) or isinstance(transport, _becket.DatagramTransport):
            assert isinstance(transport, asyncio.DatagramTransport)
        sock = transport.get_extra_info("socket")
        assert sock.type == socket.SOCK_DGRAM
        assert sock.getsockname() == client.name
        assert transport.get_extra_info("peername") is None
        assert transport.get_extra_info("nothing", 5) == 5
        sent: list[Any] = []
        transport.sendto = lambda *args: sent.append(args)  # can be replaced on an instance
        client.transport.sendto(b"x", client.name)
        assert sent == [(b"x", client.name)]
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.add_reader(sock.fileno(), print)
        await close(client)

    run(loop, main())


def test_ours_is_in_c(becket_loop: becket.EventLoop) -> None:
    loop: Any = becket_loop

    async def main() -> None:
        client = await endpoint(loop)
        assert type(client.transport) is _becket.DatagramTransport
        await close(client)

    run(loop, main())


def test_options(loop: Loop) -> None:
    async def main() -> None:
        first = await endpoint(loop, local_addr=LOCAL, reuse_port=True, allow_broadcast=True)
        second = await endpoint(loop, local_addr=first.name, reuse_port=True)
        for protocol, broadcast in ((first, 1), (second, 0)):
            sock = protocol.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == broadcast
        await close(first, second)
        free = await endpoint(loop, family=socket.AF_INET)
        assert free.name == ("0.0.0.0", 0)
        await close(free)

    run(loop, main())


def test_broadcast_with_a_remote_address(loop: Loop) -> None:
    """Its socket is not connected, and yet all goes to one address."""

    async def main() -> None:
        server = await endpoint(loop, Datagrams(echo=True))
        client = await endpoint(loop, remote_addr=server.name, allow_broadcast=True)
        assert client.transport.get_extra_info("peername") is None
        client.transport.sendto(b"one")
        client.transport.sendto(b"two", server.name)
        await until(lambda: len(client.got) == 2)
        with pytest.raises(ValueError, match=r"^Invalid address: must be None or "):
            client.transport.sendto(b"three", nobody())
        await close(server, client)

    run(loop, main())


def test_wrong_options(loop: Loop) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="unexpected address family"):
            await endpoint(loop, family=0)
        with pytest.raises(TypeError, match="2-tuple is expected"):
            await endpoint(loop, local_addr="localhost")
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock,
            pytest.raises(ValueError, match="ocket was expected, got"),
        ):
            await endpoint(loop, sock=sock)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            pytest.raises(ValueError, match="socket modifier keyword arguments can not be used"),
        ):
            await endpoint(loop, sock=sock, local_addr=LOCAL)
        first = await endpoint(loop)
        with pytest.raises(OSError) as caught:
            await endpoint(loop, local_addr=first.name)
        assert caught.value.errno == errno.EADDRINUSE
        await close(first)

    run(loop, main())


def test_a_factory_that_raises(loop: Loop) -> None:
    def factory() -> Datagrams:
        raise ZeroDivisionError

    async def main() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with pytest.raises(ZeroDivisionError):
            await loop.create_datagram_endpoint(factory, sock=sock)
        sock.close()

    run(loop, main())


def test_who_gives_up_waiting(loop: Loop) -> None:
    """The endpoint is closed again."""

    async def main() -> None:
        protocol = Datagrams()
        task = loop.create_task(endpoint(loop, protocol, local_addr=LOCAL))
        while protocol.transport is None and not task.done():
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns()
        assert protocol.calls in ([], ["made", "lost"])

    run(loop, main())


@pytest.mark.skipif(not Path("/proc/net/netlink").exists(), reason="netlink is Linux's")
def test_families_that_the_core_does_not_know(loop: Loop) -> None:
    """Are asyncio's own affair."""

    async def main() -> None:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
        sock.bind((0, 0))
        client = await endpoint(loop, sock=sock)
        assert type(client.transport).__name__ == "_SelectorDatagramTransport"
        await close(client)

    run(loop, main())


# ---- Without a transport -------------------------------------------------------------------------


def test_sock_calls(loop: Loop) -> None:
    async def main() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b,
        ):
            for sock in (a, b):
                sock.bind(LOCAL)
                sock.setblocking(False)
            receiving = loop.create_task(loop.sock_recvfrom(b, 100))
            await turns()
            assert await loop.sock_sendto(a, b"hello", b.getsockname()) == 5
            assert await receiving == (b"hello", a.getsockname())
            buffer = bytearray(10)
            into = loop.create_task(loop.sock_recvfrom_into(b, buffer))
            await turns()
            await loop.sock_sendto(a, b"again", b.getsockname())
            assert await into == (5, a.getsockname())
            assert buffer[:5] == b"again"
            await loop.sock_sendto(a, b"", b.getsockname())
            assert await loop.sock_recvfrom(b, 100) == (b"", a.getsockname())
            waiting = loop.create_task(loop.sock_recvfrom(b, 100))
            await turns()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            b.setblocking(True)
            if loop.get_debug():
                with pytest.raises(ValueError, match="the socket must be non-blocking"):
                    await loop.sock_recvfrom(b, 100)

    loop.set_debug(True)
    run(loop, main())


def test_sock_sendto_waits_for_room(loop: Loop) -> None:
    async def main() -> None:
        a, b = unix_pair()
        with a, b:
            for sock in (a, b):
                sock.setblocking(False)
            count = 0
            try:
                while True:
                    a.send(b"x")
                    count += 1
            except BlockingIOError:
                pass
            sending = loop.create_task(loop.sock_sendall(a, b"last"))
            await turns()
            assert not sending.done()
            got = [(await loop.sock_recvfrom(b, 100))[0] for _ in range(count + 1)]
            await sending
            assert got == [b"x"] * count + [b"last"]

    run(loop, main())
