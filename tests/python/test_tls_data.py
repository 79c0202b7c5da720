"""Connections under TLS: data in both directions, flow control, ends, what is left behind."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import socket
import ssl
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest

from conftest import Certificates, descriptors, finish, make_loop
from support import (
    BufferedRecorder,
    Echo,
    Loop,
    Recorder,
    Reports,
    reset,
    run,
    tcp_pair,
    turns,
    until,
)
from test_tls import (
    PROTOCOLS,
    VERSIONS,
    Peer,
    ViewEcho,
    ViewRecorder,
    attempt,
    connect,
    end,
    pattern,
    served,
    serving,
    with_peer,
)

BIG = 8 << 20


@pytest.fixture(params=[*VERSIONS.values()], ids=[*VERSIONS])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return request.param  # type: ignore[no-any-return]


# ---- Data ----


@pytest.mark.parametrize("size", [1, 512, 16 << 10, 17 << 10, 1 << 20, BIG])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("echo", ["echo", "view echo"])
def test_an_echo(
    loop: Loop, tls: Certificates, *, protocol: type[Recorder], echo: str, size: int
) -> None:
    async def main() -> None:
        near = protocol(loop)
        far: Any = Echo() if echo == "echo" else ViewEcho(loop)
        await connect(loop, tls, near, far)
        sent = pattern(size)
        near.transport.write(sent)
        data = await near.received(size)
        assert hashlib.sha256(data).digest() == hashlib.sha256(sent).digest()
        assert (
            near.calls.count("data")
            == len(near.calls) - near.calls.count("pause") - near.calls.count("resume") - 1
        )
        near.transport.close()
        assert await near.lost is None

    run(loop, main())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_directions_at_once(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion, protocol: type[Recorder]
) -> None:
    async def main() -> None:
        near, far = protocol(loop), protocol(loop)
        await connect(loop, tls, near, far, version=version)
        for one in (near, far):
            for number in range(32):
                one.transport.write(pattern(100_000)[number:])
        expected = b"".join(pattern(100_000)[number:] for number in range(32))
        for one in (near, far):
            assert await one.received(len(expected)) == expected
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("close", [False, True], ids=["", "and close"])
@pytest.mark.parametrize("size", [10, 1 << 20])
def test_writing_in_connection_made(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion, *, size: int, close: bool
) -> None:
    """A greeting, from both; some say no more than that."""

    class Greeting(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.write(pattern(size))
            if close:
                transport.close()

    async def main() -> None:
        for ours, theirs in ((Greeting, Recorder), (Recorder, Greeting)):
            near, far = ours(loop), theirs(loop)
            await connect(loop, tls, near, far, version=version)
            hears = far if ours is Greeting else near
            assert await hears.received(size) == pattern(size)
            if close:
                assert await near.lost is None
                assert await far.lost is None
                assert hears.calls[-2:] == ["eof", "lost"]
            else:
                await end(near, far)

    run(loop, main())


def test_a_file_is_sent(loop: Loop, tls: Certificates, tmp_path: Path) -> None:
    """Through TLS it is read and sealed: the system cannot do that."""
    sent = pattern(1 << 20)
    (tmp_path / "file").write_bytes(sent)

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await connect(loop, tls, near, far)
        with (tmp_path / "file").open("rb") as file:
            assert await loop.sendfile(near.transport, file) == 1 << 20
            assert await far.received(1 << 20) == sent
            assert await loop.sendfile(near.transport, file, 1000, 5000) == 5000
            near.transport.write(b"the end")
            assert await far.received((1 << 20) + 5007) == sent + sent[1000:6000] + b"the end"
            with pytest.raises(RuntimeError, match="fallback is disabled"):
                await loop.sendfile(near.transport, file, fallback=False)
        await end(near, far)

    run(loop, main())


def test_a_stream_that_is_read_slowly(loop: Loop, tls: Certificates) -> None:
    """Its limit is far below what is sent; what TLS holds meanwhile is not lost."""
    sent = pattern(1 << 20)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls.server())
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=tls.client(), limit=1000
        )
        data = bytearray()
        while piece := await reader.read(5000):
            data += piece
            await turns(1)
        assert data == sent
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_many_small_writes(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await connect(loop, tls, near, far)
        sent = pattern(5000)
        for at in range(5000):
            near.transport.write(sent[at : at + 1])
        assert await far.received(5000) == sent
        assert far.data == sent
        await end(near, far)

    run(loop, main())


def test_every_way_to_write(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await connect(loop, tls, near, far)
        write, writelines = near.transport.write, near.transport.writelines
        write(b"bytes,")
        write(bytearray(b"bytearray,"))
        write(memoryview(b"a view,"))
        write(memoryview(b"..of a part,..")[2:-2])
        write(b"")
        writelines([b"lines,", bytearray(b"of "), memoryview(b"all kinds,")])
        writelines([])
        writelines(part for part in (b"of ", b"", b"a generator"))
        expected = b"bytes,bytearray,a view,of a part,lines,of all kinds,of a generator"
        assert await far.received(len(expected)) == expected
        for wrong in ("text", 5, None, [b"list"]):
            with pytest.raises(TypeError):
                write(wrong)
        with pytest.raises(TypeError, match="data: expecting a bytes-like instance, got str"):
            write("text")
        write(b"no harm")
        assert await far.received(len(expected) + 7) == expected + b"no harm"
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_what_was_written_may_be_changed_at_once(loop: Loop, tls: Certificates, size: int) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await connect(loop, tls, near, far)
        for number in range(4):
            data = bytearray([number]) * size
            if number % 2:
                near.transport.write(data)
            else:
                near.transport.writelines([memoryview(data)])
            data[:] = b"\xff" * size
        expected = b"".join(bytes([number]) * size for number in range(4))
        assert await far.received(4 * size) == expected
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ciphertext_byte_by_byte(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion, protocol: type[Recorder]
) -> None:
    """The handshake, data, and the end."""

    async def main() -> None:
        near = protocol(loop)
        transport, peer = await with_peer(loop, tls, near, version=version, piece=1)
        await peer.write(b"hello, ")
        await peer.write(b"one by one")
        assert await near.received(17) == b"hello, one by one"
        assert near.calls == ["made", "data", "data"]
        transport.write(b"understood")
        assert await peer.read(10) == b"understood"
        await peer.unwrap()
        assert await near.lost is None
        assert near.calls[-2:] == ["eof", "lost"]
        peer.sock.close()

    run(loop, main())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("cut", [1, 5, 1000, -1])
def test_records_that_come_together_and_in_parts(
    loop: Loop, tls: Certificates, protocol: type[Recorder], cut: int
) -> None:
    async def main() -> None:
        near = protocol(loop)
        _, peer = await with_peer(loop, tls, near)
        records = b"".join(peer.seal(bytes([number]) * 1000) for number in range(20))
        peer.sock.send(records[:cut])
        await turns(5)
        peer.sock.send(records[cut:])
        expected = b"".join(bytes([number]) * 1000 for number in range(20))
        assert await near.received(20_000) == expected
        peer.sock.close()
        assert await near.lost is None

    run(loop, main())


def test_data_in_the_segment_that_ends_the_handshake(loop: Loop, tls: Certificates) -> None:
    """A client may send with its Finished: it comes after connection_made()."""

    async def main() -> None:
        a, b = tcp_pair()
        far = Recorder(loop)
        peer = Peer(loop, a, tls.client(), hostname="localhost")
        task = asyncio.ensure_future(loop.connect_accepted_socket(lambda: far, b, ssl=tls.server()))
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        await peer.flush()
        done = False
        while not done:
            await peer.feed()
            try:
                peer.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
        peer.tls.write(b"early")
        await peer.flush()
        await task
        assert await far.received(5) == b"early"
        assert far.calls == ["made", "data"]
        await peer.unwrap()
        a.close()
        assert await far.lost is None

    run(loop, main())


@pytest.mark.parametrize("size", [1, 3, 100, 100_000])
def test_buffers_of_any_size(loop: Loop, tls: Certificates, size: int) -> None:
    async def main() -> None:
        near, far = ViewRecorder(loop, size=size), Recorder(loop)
        await connect(loop, tls, near, far)
        sent = pattern(3000 if size < 100 else 300_000)
        far.transport.write(sent)
        assert await near.received(len(sent)) == sent
        assert near.most <= size
        far.transport.close()
        assert await near.lost is None
        assert near.calls[-2:] == ["eof", "lost"]
        await far.lost

    run(loop, main())


def test_a_buffer_that_is_a_bytearray(becket_loop: Loop, tls: Certificates) -> None:
    """asyncio's own reads what comes after the first record into a copy, and loses it."""

    async def main() -> None:
        near = BufferedRecorder(becket_loop, size=1 << 16)
        _, peer = await with_peer(becket_loop, tls, near)
        peer.sock.send(peer.seal(b"one ") + peer.seal(b"two ") + peer.seal(b"three"))
        data = await near.received(13)
        peer.sock.close()
        assert await near.lost is None
        assert data == b"one two three"

    run(becket_loop, main())


def test_the_protocol_is_switched(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await connect(loop, tls, near, far)
        expected = 0
        for protocol in (ViewRecorder(loop), Recorder(loop), ViewRecorder(loop, size=1), near):
            transport.set_protocol(protocol)
            assert transport.get_protocol() is protocol
            far.transport.write(b"for you")
            expected = 7 if protocol is near else 0
            assert await protocol.received(7) == b"for you"
            assert protocol is near or set(protocol.calls) == {"data"}
        assert len(near.data) == expected
        last = Recorder(loop)
        transport.set_protocol(last)
        far.transport.close()
        assert await last.lost is None
        assert last.calls == ["eof", "lost"]
        assert not near.lost.done()
        await far.lost

    run(loop, main())


def test_the_protocol_is_switched_amid_data(loop: Loop, tls: Certificates) -> None:
    """Records that came together go to whoever is the protocol when they are read."""
    later: Any = None

    class Switching(ViewRecorder):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.transport.set_protocol(later)

    async def main() -> None:
        nonlocal later
        near, later = Switching(loop, size=4), Recorder(loop)
        _, peer = await with_peer(loop, tls, near)
        peer.sock.send(peer.seal(b"mineyours"))
        assert await later.received(5) == b"yours"
        assert near.data == b"mine"
        assert near.calls == ["made", "data"]
        peer.sock.close()
        assert await later.lost is None

    run(loop, main())


@pytest.mark.parametrize(
    "method", ["data_received", "get_buffer", "buffer_updated", "eof_received"]
)
def test_an_exception_in_a_callback_ends_that_connection_only(
    loop: Loop, tls: Certificates, reports: Reports, method: str
) -> None:
    base = ViewRecorder if "buffer" in method else Recorder
    error = ZeroDivisionError("mine")

    class Failing(base):  # type: ignore[misc, valid-type]
        armed = False

    def fail(self: Failing, *args: Any) -> Any:
        if self.armed:
            raise error
        return getattr(base, method)(self, *args)  # asyncio asks for a buffer before there is data

    setattr(Failing, method, fail)

    async def main() -> None:
        near, far, other, peer = Failing(loop), Recorder(loop), Recorder(loop), Recorder(loop)
        await connect(loop, tls, near, far)
        await connect(loop, tls, other, peer)
        near.armed = True
        if method == "eof_received":
            far.transport.close()
        else:
            far.transport.write(b"data")
        assert await near.lost is error
        context = reports.take()
        assert set(context) == {"message", "exception", "transport", "protocol"}
        assert context["message"] == (
            "Error calling eof_received()"
            if method == "eof_received"
            else "Fatal error on SSL protocol"
        )
        assert context["exception"] is error
        assert near.calls.count("lost") == 1
        peer.transport.write(b"still here")
        assert await other.received(10) == b"still here"
        await far.lost
        await end(other, peer)
        assert reports.all == []

    run(loop, main())


# ---- Reading is paused ----


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reading_is_paused(loop: Loop, tls: Certificates, protocol: type[Recorder]) -> None:
    async def main() -> None:
        near = protocol(loop)
        transport, peer = await with_peer(loop, tls, near)
        transport.pause_reading()
        assert not transport.is_reading()
        transport.pause_reading()
        peer.sock.send(b"".join(peer.seal(b"part ") for _ in range(10)))
        await turns(20)
        assert near.calls == ["made"]
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
        assert near.calls == ["made"]  # not within resume_reading()
        assert await near.received(50) == b"part " * 10
        await peer.write(b"more")
        assert await near.received(54) == b"part " * 10 + b"more"
        peer.sock.close()
        assert await near.lost is None

    run(loop, main())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reading_is_paused_in_a_callback(
    loop: Loop, tls: Certificates, protocol: type[Recorder]
) -> None:
    """What TLS has opened already is not given to who does not want it; none of it is lost."""

    class Pausing(protocol):  # type: ignore[misc, valid-type]
        def note_data(self, data: bytes) -> None:
            super().note_data(data)
            self.transport.pause_reading()

    async def main() -> None:
        near: Any = Pausing(loop, **({} if protocol is Recorder else {"size": 7}))
        transport, peer = await with_peer(loop, tls, near)
        sent = pattern(100)
        peer.sock.send(b"".join(peer.seal(sent[at : at + 10]) for at in range(0, 100, 10)))
        while len(near.data) < 100:
            await until(lambda: not transport.is_reading())
            got = len(near.data)
            await turns(10)
            assert len(near.data) == got
            assert near.data == sent[:got]
            transport.resume_reading()
        await turns(10)
        assert near.data == sent
        assert near.calls.count("data") == (100 + 6) // 7 or protocol is Recorder
        peer.sock.close()
        transport.resume_reading()
        assert await near.lost is None

    run(loop, main())


def test_a_paused_reader_holds_the_writer_back(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await connect(loop, tls, near, far)
        near.transport.pause_reading()
        sent, total = pattern(1 << 16), 0
        while "pause" not in far.calls:
            far.transport.write(sent)
            total += len(sent)
            assert total < 64 << 20
            await turns(1)
        held = far.transport.get_write_buffer_size()
        assert held > 0
        await turns(50)
        assert near.calls == ["made"]
        assert far.calls == ["made", "pause"]
        near.transport.resume_reading()
        assert (
            hashlib.sha256(await near.received(total)).digest()
            == hashlib.sha256(sent * (total // len(sent))).digest()
        )
        assert far.calls == ["made", "pause", "resume"]
        assert far.transport.get_write_buffer_size() == 0
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("how", ["close_notify", "truncated"])
def test_the_end_while_reading_is_paused(
    loop: Loop, tls: Certificates, protocol: type[Recorder], how: str
) -> None:
    """It waits its turn behind the data."""

    async def main() -> None:
        near = protocol(loop)
        transport, peer = await with_peer(loop, tls, near)
        transport.pause_reading()
        data = peer.seal(b"the last")
        if how == "close_notify":
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.unwrap()
            data += peer.outgoing.read()
        peer.sock.send(data)
        peer.sock.shutdown(socket.SHUT_WR)
        await turns(20)
        assert near.calls == ["made"]
        transport.resume_reading()
        assert await near.lost is None
        assert near.data == b"the last"
        assert near.calls == ["made", "data", "eof", "lost"]
        peer.sock.close()

    run(loop, main())


def test_an_end_without_close_notify_is_answered_in_kind(loop: Loop, tls: Certificates) -> None:
    """A peer that ended its socket alone may take up reading it in plain."""

    async def main() -> None:
        near = Recorder(loop)
        _, peer = await with_peer(loop, tls, near)
        peer.sock.shutdown(socket.SHUT_WR)
        assert await near.lost is None
        assert await loop.sock_recv(peer.sock, 100) == b""
        peer.sock.close()

    run(loop, main())


# ---- Writing is held back ----


def test_writing_is_paused_and_resumed(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion
) -> None:
    async def main() -> None:
        near = Recorder(loop)
        transport, peer = await with_peer(loop, tls, near, version=version)
        assert transport.get_write_buffer_size() == 0
        for _ in range(2):
            near.calls.clear()
            sent, total = pattern(1 << 16), 0
            while "pause" not in near.calls:  # the peer does not read
                transport.write(sent)
                total += len(sent)
                assert total < 64 << 20
                await turns(1)
            assert transport.get_write_buffer_size() > transport.get_write_buffer_limits()[0]
            transport.write(b"")
            assert near.calls == ["pause"]
            data = await peer.read(total)
            assert (
                hashlib.sha256(data).digest()
                == hashlib.sha256(sent * (total // len(sent))).digest()
            )
            await until(lambda: "resume" in near.calls)
            assert near.calls == ["pause", "resume"]
            await until(lambda: transport.get_write_buffer_size() == 0)
        transport.abort()
        await near.lost
        peer.sock.close()

    run(loop, main())


def test_streams_drain(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, peer = await with_peer(loop, tls, protocol)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        sent, total = pattern(1 << 16), 0
        while total < 64 << 20:
            writer.write(sent)
            total += len(sent)
            task = asyncio.ensure_future(writer.drain())
            await turns(3)
            if not task.done():
                break
        assert not task.done()
        assert (
            hashlib.sha256(await peer.read(total)).digest()
            == hashlib.sha256(sent * (total // len(sent))).digest()
        )
        await task
        writer.close()
        await peer.unwrap()
        await writer.wait_closed()
        peer.sock.close()

    run(loop, main())


def test_limits(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await connect(loop, tls, near, far)
        assert transport.get_write_buffer_limits() == (128 << 10, 512 << 10)
        for given, limits in [
            ({"high": 1000}, (250, 1000)),
            ({"low": 1000}, (1000, 4000)),
            ({"high": 1000, "low": 999}, (999, 1000)),
            ({"high": 1000, "low": 1000}, (1000, 1000)),
            ({"high": 1}, (0, 1)),
            ({}, (128 << 10, 512 << 10)),
        ]:
            transport.set_write_buffer_limits(**given)
            assert transport.get_write_buffer_limits() == limits
        for given, words in [
            ({"high": 1, "low": 2}, r"high \(1\) must be >= low \(2\) must be >= 0"),
            ({"high": -1, "low": -1}, r"high \(-1\) must be >= low \(-1\) must be >= 0"),
        ]:
            with pytest.raises(ValueError, match=words):
                transport.set_write_buffer_limits(**given)
        assert transport.get_write_buffer_limits() == (128 << 10, 512 << 10)
        assert near.calls == ["made"]
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
def test_an_exception_in_flow_control_is_reported_only(
    loop: Loop, tls: Certificates, reports: Reports, method: str
) -> None:
    error = ZeroDivisionError("mine")

    class Failing(Recorder):
        pass

    def fail(self: Failing) -> None:
        self.calls.append(method)
        raise error

    setattr(Failing, method, fail)

    async def main() -> None:
        near = Failing(loop)
        transport, peer = await with_peer(loop, tls, near)
        total = 0
        while not {"pause", "pause_writing"} & set(near.calls):
            transport.write(bytes(1 << 16))
            total += 1 << 16
            assert total < 64 << 20
            await turns(1)
        await peer.read(total)
        await until(lambda: {"resume", "resume_writing"} & set(near.calls))
        context = reports.take()
        assert context["message"] == f"protocol.{method}() failed"
        assert context["exception"] is error
        assert set(context) == {"message", "exception", "transport", "protocol"}
        assert context["transport"] is transport
        transport.write(b"still here")
        assert await peer.read(10) == b"still here"
        transport.abort()
        await near.lost
        peer.sock.close()

    run(loop, main())


# ---- Ends ----


@pytest.mark.parametrize("size", [0, 10, 1 << 20, BIG])
def test_close_sends_what_is_queued_and_says_so(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion, size: int
) -> None:
    async def main() -> None:
        near = Recorder(loop)
        transport, peer = await with_peer(loop, tls, near, version=version)
        sent = pattern(size)
        transport.write(sent)
        transport.close()
        assert transport.is_closing()
        transport.write(b"too late")
        assert hashlib.sha256(await peer.rest()).digest() == hashlib.sha256(sent).digest()
        assert not near.lost.done()  # it waits for the peer's close_notify
        await peer.unwrap()
        assert await near.lost is None
        assert near.calls.count("lost") == 1
        assert await loop.sock_recv(peer.sock, 1) == b""
        peer.sock.close()

    run(loop, main())


def test_after_close_the_peer_may_simply_leave(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near = Recorder(loop)
        transport, peer = await with_peer(loop, tls, near)
        transport.close()
        assert await peer.rest() == b""
        peer.sock.close()
        assert await near.lost is None

    run(loop, main())


def test_abort_does_not_say_so(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        near = Recorder(loop)
        transport, peer = await with_peer(loop, tls, near, version=version)
        transport.write(b"hello")
        assert await peer.read(5) == b"hello"
        transport.abort()
        assert transport.is_closing()
        assert near.calls == ["made"]
        assert await near.lost is None
        with pytest.raises(ssl.SSLEOFError):
            await peer.rest()
        assert near.calls == ["made", "lost"]
        peer.sock.close()

    run(loop, main())


def test_abort_drops_what_is_queued(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near = Recorder(loop)
        transport, peer = await with_peer(loop, tls, near)
        for way in ("abort", "close, then abort"):
            if way != "abort":
                near = Recorder(loop)
                transport, peer = await with_peer(loop, tls, near)
            transport.write(bytes(64 << 20))
            if way != "abort":
                transport.close()
                await turns(3)
            transport.abort()
            assert await near.lost is None
            with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                await peer.rest()
            peer.sock.close()

    run(loop, main())


def test_closing_again_does_nothing(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        for ways in (
            ["close", "close"],
            ["abort", "abort"],
            ["close", "abort"],
            ["abort", "close"],
        ):
            near, far = Recorder(loop), Recorder(loop)
            transport, _ = await connect(loop, tls, near, far)
            for way in ways:
                getattr(transport, way)()
            assert await near.lost is None
            await far.lost
            for way in ways:
                getattr(transport, way)()
            await turns(5)
            assert near.calls.count("made") == near.calls.count("lost") == 1

    run(loop, main())


def test_the_peer_closes(loop: Loop, tls: Certificates, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        near = Recorder(loop)
        transport, peer = await with_peer(loop, tls, near, version=version)
        await peer.write(b"bye")
        await peer.unwrap()  # which waits for the answer
        assert await near.lost is None
        assert near.data == b"bye"
        assert near.calls == ["made", "data", "eof", "lost"]
        assert transport.is_closing()
        peer.sock.close()

    run(loop, main())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_data_and_the_end_in_one_segment(
    loop: Loop, tls: Certificates, protocol: type[Recorder]
) -> None:
    async def main() -> None:
        near = protocol(loop)
        _, peer = await with_peer(loop, tls, near)
        data = peer.seal(b"bye")
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.unwrap()
        peer.sock.send(data + peer.outgoing.read())
        assert await near.lost is None
        assert near.data == b"bye"
        assert near.calls == ["made", "data", "eof", "lost"]
        await peer.unwrap()
        peer.sock.close()

    run(loop, main())


def test_what_eof_received_writes_is_sent(loop: Loop, tls: Certificates) -> None:
    class Answering(Recorder):
        def eof_received(self) -> bool:
            self.transport.write(b"goodbye")
            return super().eof_received()

    async def main() -> None:
        near = Answering(loop)
        _, peer = await with_peer(loop, tls, near)
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.unwrap()
        await peer.flush()
        assert await peer.read(7) == b"goodbye"
        with pytest.raises(ssl.SSLZeroReturnError):  # both have said close_notify
            await peer.read(1)
        assert await near.lost is None
        peer.sock.close()

    run(loop, main())


def test_a_connection_is_not_kept_half_open(
    loop: Loop, tls: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        near = Recorder(loop, keep_open=True)
        _, peer = await with_peer(loop, tls, near)
        await peer.unwrap()
        assert await near.lost is None
        assert near.calls == ["made", "eof", "lost"]
        assert [r.getMessage() for r in caplog.records if r.name == "asyncio"] == [
            "returning true from eof_received() has no effect when using ssl"
        ]
        peer.sock.close()

    run(loop, main())


def test_a_connection_that_was_cut_off(
    loop: Loop, tls: Certificates, version: ssl.TLSVersion
) -> None:
    """Without close_notify: asyncio takes it for an end like any other."""

    async def main() -> None:
        near = Recorder(loop)
        _, peer = await with_peer(loop, tls, near, version=version)
        await peer.write(b"hello")
        assert await near.received(5) == b"hello"
        peer.sock.close()
        assert await near.lost is None
        assert near.calls == ["made", "data", "eof", "lost"]

    run(loop, main())


def test_a_connection_that_was_cut_off_amid_a_record(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near = Recorder(loop)
        _, peer = await with_peer(loop, tls, near)
        peer.sock.send(peer.seal(b"hello, world")[:-1])
        peer.sock.shutdown(socket.SHUT_WR)
        assert await near.lost is None
        assert near.calls == ["made", "eof", "lost"]
        peer.sock.close()

    run(loop, main())


def test_a_connection_that_was_reset(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near = Recorder(loop)
        transport, peer = await with_peer(loop, tls, near)
        reset(peer.sock)
        assert isinstance(await near.lost, ConnectionResetError)
        assert near.calls == ["made", "lost"]
        assert transport.is_closing()

    run(loop, main())


@pytest.mark.parametrize(
    "garbage, reason",
    [
        (b"\x17\x03\x03\x00\x20" + bytes(32), "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
        (b"plain text, not TLS\r\n", "WRONG_VERSION_NUMBER"),
    ],
)
def test_what_cannot_be_opened(loop: Loop, tls: Certificates, garbage: bytes, reason: str) -> None:
    """The protocol is told; a peer's mistake is not reported."""

    async def main() -> None:
        near = Recorder(loop)
        _, peer = await with_peer(loop, tls, near)
        await peer.write(b"good")
        assert await near.received(4) == b"good"
        peer.sock.send(garbage)
        error: Any = await near.lost
        assert isinstance(error, ssl.SSLError)
        assert error.reason == reason
        assert near.calls == ["made", "data", "lost"]
        peer.sock.close()

    run(loop, main())


def test_a_direction_cannot_be_closed_alone(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await connect(loop, tls, near, far)
        assert transport.can_write_eof() is False
        with pytest.raises(NotImplementedError):
            transport.write_eof()
        transport.write(b"no harm")
        assert await far.received(7) == b"no harm"
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("way", ["close", "abort"])
def test_writing_after_the_end(
    loop: Loop, tls: Certificates, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await connect(loop, tls, near, far)
        getattr(transport, way)()
        transport.write(b"too late")
        transport.writelines([b"too", b"late"])
        assert await near.lost is None
        await far.lost
        assert far.data == b""
        for _ in range(10):
            transport.write(b"too late")
        assert "SSL connection is closed" in [r.getMessage() for r in caplog.records]
        with pytest.raises(TypeError):
            transport.write("text")

    run(loop, main())


@pytest.mark.parametrize("queued", [0, 64 << 20])
def test_a_peer_that_does_not_answer_close_notify(
    loop: Loop, tls: Certificates, queued: int
) -> None:
    """Nor, with data queued, reads it."""

    async def main() -> None:
        near = Recorder(loop)
        transport, peer = await with_peer(loop, tls, near, ssl_shutdown_timeout=0.1)
        transport.write(bytes(queued))
        transport.close()
        error = await near.lost
        assert type(error) is TimeoutError
        assert str(error) == "SSL shutdown timed out"
        assert near.calls.count("lost") == 1
        peer.sock.close()

    run(loop, main())


def test_the_time_for_the_end_ends_with_it(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near = Recorder(loop)
        transport, peer = await with_peer(loop, tls, near, ssl_shutdown_timeout=0.5)
        transport.close()
        await peer.unwrap()
        assert await near.lost is None
        await asyncio.sleep(0.6)
        assert near.calls.count("lost") == 1
        peer.sock.close()

    run(loop, main())


@pytest.mark.parametrize(
    "method",
    ["connection_made", "data_received", "eof_received", "connection_lost", "pause_writing"],
)
@pytest.mark.parametrize("way", ["close", "abort"])
def test_closing_in_any_callback(loop: Loop, tls: Certificates, method: str, way: str) -> None:
    class Closing(Recorder):
        pass

    def call(self: Closing, *args: Any) -> Any:
        result = getattr(Recorder, method)(self, *args)
        getattr(self.transport, way)()
        return result

    setattr(Closing, method, call)

    async def main() -> None:
        near, far = Closing(loop), Recorder(loop)
        results = await attempt(loop, tls.client(), tls.server(), near, far)
        if method == "connection_made":  # which may be before the last of the handshake was sent
            assert results[0] is None
            assert await near.lost is None
            if results[1] is None:
                await far.lost
            else:
                assert isinstance(results[1], ConnectionResetError)
                assert far.calls == []
            assert near.calls.count("lost") == 1
            return
        assert results == [None, None]
        if method == "pause_writing":
            far.transport.pause_reading()
            total = 0
            while "pause" not in near.calls:
                near.transport.write(bytes(1 << 16))
                total += 1 << 16
                assert total < 64 << 20
                await turns(1)
            far.transport.resume_reading()
        elif method == "data_received":
            far.transport.write(b"data")
        else:
            far.transport.close()
        assert await near.lost is None
        await far.lost
        await turns()
        assert near.calls.count("lost") == 1

    run(loop, main())


def test_a_server_that_closes_leaves_connections_be(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        server, port = await serving(loop, tls.server())
        near = Recorder(loop)
        await loop.create_connection(lambda: near, "127.0.0.1", port, ssl=tls.client())
        server.close()
        near.transport.write(b"still here")
        assert await near.received(10) == b"still here"
        with pytest.raises(OSError, match="Connect call failed"):
            await served(loop, tls, port)
        waiting = asyncio.ensure_future(server.wait_closed())
        await turns(5)
        assert waiting.done() == (sys.version_info < (3, 12, 1))
        near.transport.close()
        assert await near.lost is None
        await waiting

    run(loop, main())


if sys.version_info >= (3, 13):

    @pytest.mark.parametrize("way", ["close_clients", "abort_clients"])
    def test_a_server_closes_its_connections(loop: Loop, tls: Certificates, way: str) -> None:
        async def main() -> None:
            server, port = await serving(loop, tls.server())
            near = Recorder(loop)
            await loop.create_connection(lambda: near, "127.0.0.1", port, ssl=tls.client())
            server.close()
            getattr(server, way)()
            await near.lost
            await server.wait_closed()

        run(loop, main())


def test_a_loop_that_is_closed_with_connections_open(kind: str, tls: Certificates) -> None:
    """They warn that nobody closed them, and leave no descriptor open."""

    def leave() -> None:
        loop = make_loop(kind)
        run(loop, connect(loop, tls, Recorder(loop), Recorder(loop)))
        finish(loop)

    gc.collect()
    before = descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leave()
        gc.collect()
    assert {w.category for w in caught} == {ResourceWarning}
    assert all("unclosed" in str(w.message) for w in caught)
    assert descriptors() == before


def test_a_loop_that_is_closed_after_its_connections(kind: str, tls: Certificates) -> None:
    async def main(loop: Loop) -> None:
        server, port = await serving(loop, tls.server())
        await served(loop, tls, port)
        server.close()
        await server.wait_closed()

    def leave() -> None:
        loop = make_loop(kind)
        run(loop, main(loop))
        finish(loop)

    gc.collect()
    before = descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leave()
        gc.collect()
    assert caught == []
    assert descriptors() == before


# ---- What is left behind ----


@pytest.mark.parametrize("way", ["close", "abort", "close_notify", "truncated", "reset"])
def test_a_closed_connection_is_freed_without_the_collector(
    becket_loop: Loop, tls: Certificates, way: str
) -> None:
    """asyncio's own leaves cycles in some of these."""

    class Plain(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def connection_lost(self, exc: Exception | None) -> None:
            self.transport = None

    async def main() -> None:
        protocol = Plain()
        transport, peer = await with_peer(becket_loop, tls, protocol)
        known = [
            weakref.ref(one)
            for one in (protocol, transport, transport.get_extra_info("ssl_object"))
        ]
        gc.collect()
        gc.disable()
        try:
            if way in ("close", "abort"):
                getattr(transport, way)()
            elif way == "reset":
                reset(peer.sock)
            elif way == "truncated":
                peer.sock.close()
            del protocol, transport
            if way in ("close", "close_notify"):
                await peer.unwrap()
            for _ in range(50):
                await turns(5)
                if all(ref() is None for ref in known):
                    break
            assert [ref() for ref in known] == [None] * 3
        finally:
            gc.enable()
        peer.sock.close()

    run(becket_loop, main())


def test_objects_do_not_pile_up(becket_loop: Loop, tls: Certificates) -> None:
    async def once() -> None:
        near, far = Recorder(becket_loop), ViewRecorder(becket_loop)
        await connect(becket_loop, tls, near, far)
        near.transport.write(b"x")
        await far.received(1)
        near.transport.close()
        await near.lost
        await far.lost

    async def count(times: int) -> int:
        for _ in range(times):
            await once()
        gc.collect()
        return len(gc.get_objects())

    before = run(becket_loop, count(10))
    assert run(becket_loop, count(100)) <= before + 10
