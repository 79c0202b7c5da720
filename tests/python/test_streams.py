"""asyncio's streams, whose readers are filled from C: alike whether that way is taken or not."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import weakref
from typing import Any

import pytest

from conftest import REFERENCE
from support import Loop, no_more_than, receive, reset, run, tcp_pair, turns, until


class DerivedReader(asyncio.StreamReader):
    """Not recognised, so it is fed as any protocol is."""


class DerivedProtocol(asyncio.StreamReaderProtocol):
    """Likewise."""


@pytest.fixture(params=["plain", "derived reader", "derived protocol"])
def reader_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def open_stream(
    loop: Loop, sock: socket.socket, reader_kind: str = "plain", limit: int = 1 << 16
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As asyncio.open_connection(sock=…) does it, with classes of our choice."""
    reader = (DerivedReader if reader_kind == "derived reader" else asyncio.StreamReader)(
        limit=limit, loop=loop
    )
    protocol = (
        DerivedProtocol if reader_kind == "derived protocol" else asyncio.StreamReaderProtocol
    )(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass


# ---- Reading ----


def test_every_way_to_read(loop: Loop, reader_kind: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind)
        b.send(b"a line\nanother\r\nexactly this|until here|and the rest")
        assert await reader.readline() == b"a line\n"
        assert await reader.readline() == b"another\r\n"
        assert await reader.readexactly(7) == b"exactly"
        assert await reader.readuntil(b"|") == b" this|"
        assert await reader.readuntil(b"re|") == b"until here|"
        assert await reader.read(3) == b"and"
        assert await reader.read(0) == b""
        assert not reader.at_eof()
        b.shutdown(socket.SHUT_WR)
        assert await reader.read() == b" the rest"
        assert reader.at_eof()
        assert await reader.read(5) == b""
        assert await reader.readline() == b""
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reader.readexactly(1)
        assert caught.value.partial == b""
        await close(writer)
        b.close()

    run(loop, main())


def test_reading_what_comes_in_pieces(loop: Loop, reader_kind: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        b.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, writer = await open_stream(loop, a, reader_kind)
        task = asyncio.create_task(reader.readline())
        for piece in (b"o", b"n", b"e ", b"line", b"\nmore"):
            b.send(piece)
            await turns(5)
        assert await task == b"one line\n"
        assert await reader.readexactly(4) == b"more"
        task = asyncio.create_task(reader.readexactly(1000))
        for number in range(10):
            b.send(bytes([number]) * 100)
            await turns(2)
        assert await task == b"".join(bytes([n]) * 100 for n in range(10))
        await close(writer)
        b.close()

    run(loop, main())


def test_the_end_before_what_was_awaited(loop: Loop, reader_kind: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind)
        b.send(b"half a li")
        b.shutdown(socket.SHUT_WR)
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reader.readexactly(100)
        assert caught.value.partial == b"half a li"
        assert caught.value.expected == 100
        writer.write(b"the other direction lives")
        await writer.drain()
        assert await receive(loop, b, 25) == b"the other direction lives"
        await close(writer)
        b.close()

    run(loop, main())


def test_asynchronous_iteration(loop: Loop, reader_kind: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind)
        b.send(b"".join(b"%d\n" % i for i in range(1000)) + b"end")
        b.close()
        lines = [line async for line in reader]
        assert lines == [b"%d\n" % i for i in range(1000)] + [b"end"]
        await close(writer)

    run(loop, main())


def test_a_line_beyond_the_limit(loop: Loop, reader_kind: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind, limit=100)
        b.send(b"x" * 150 + b"\nshort\n")
        with pytest.raises(ValueError, match="limit"):
            await reader.readline()
        b.send(b"y" * 300)
        with pytest.raises(asyncio.LimitOverrunError):
            await reader.readuntil(b"\n\n\n")
        await close(writer)
        b.close()

    run(loop, main())


@pytest.mark.parametrize("limit", [1, 100, 1 << 16])
def test_a_reader_that_is_full_pauses_its_transport(
    loop: Loop, reader_kind: str, limit: int
) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind, limit)
        b.setblocking(False)
        data = random.Random(1).randbytes(4 << 20)
        await asyncio.sleep(0)
        sender = asyncio.create_task(loop.sock_sendall(b, data))
        await until(lambda: not writer.transport.is_reading())  # type: ignore[attr-defined]
        held = len(reader._buffer)  # type: ignore[attr-defined]
        assert held > 2 * limit
        await asyncio.sleep(0.005)
        assert len(reader._buffer) == held  # type: ignore[attr-defined]
        got = bytearray()
        while len(got) < len(data):
            got += await reader.read(100_000)
        assert got == data
        await sender
        await until(lambda: writer.transport.is_reading())  # type: ignore[attr-defined]
        await close(writer)
        b.close()

    run(loop, main())


def test_a_cancelled_read_loses_nothing(loop: Loop, reader_kind: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind)
        for _ in range(3):
            task = asyncio.create_task(reader.readline())
            await turns()
            b.send(b"part ")
            await turns()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.readexactly(100), 0.001)
        b.send(b"end\n")
        assert await reader.readline() == b"part part part end\n"
        await close(writer)
        b.close()

    run(loop, main())


def test_two_cannot_read_at_once(loop: Loop, reader_kind: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind)
        first = asyncio.create_task(reader.read(1))
        await turns()
        with pytest.raises(RuntimeError, match="already waiting"):
            await reader.read(1)
        b.send(b"x")
        assert await first == b"x"
        await close(writer)
        b.close()

    run(loop, main())


def test_a_reset_is_raised_where_it_is_awaited(loop: Loop, reader_kind: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind)
        task = asyncio.create_task(reader.read(1))
        await turns()
        reset(b)
        with pytest.raises(ConnectionResetError):
            await task
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        assert isinstance(reader.exception(), ConnectionResetError)
        with pytest.raises(ConnectionResetError):
            writer.write(b"x")
            await writer.drain()
        await close(writer)

    run(loop, main())


def test_an_abandoned_reader(loop: Loop, reader_kind: str) -> None:
    """Nobody will read what comes; it is dropped, and the connection goes on."""

    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind)
        b.send(b"unread")
        await turns(5)
        writer._reader = None  # type: ignore[attr-defined]
        known = weakref.ref(reader)
        del reader
        gc.collect()
        if known() is None:
            b.send(b"dropped")
            await turns(5)
        writer.write(b"fine")
        assert await receive(loop, b, 4) == b"fine"
        writer.transport.abort()
        await turns(5)
        b.close()

    run(loop, main())


def test_feeding_a_reader_by_hand_and_from_its_transport(loop: Loop, reader_kind: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind)
        reader.feed_data(b"by hand ")
        b.send(b"and from the peer")
        assert await reader.readexactly(25) == b"by hand and from the peer"
        await close(writer)
        b.close()

    run(loop, main())


def test_any_pieces_arrive_whole(loop: Loop, reader_kind: str) -> None:
    async def main() -> None:
        chance = random.Random(5)
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind, limit=5000)
        _, far = await open_stream(loop, b)
        sent = b"".join(chance.randbytes(chance.choice((1, 10, 1000, 30_000))) for _ in range(500))

        async def send() -> None:
            at = 0
            while at < len(sent):
                size = chance.choice((1, 100, 5000, 100_000))
                far.write(sent[at : at + size])
                at += size
                await far.drain()
            far.close()

        sender = asyncio.create_task(send())
        got = bytearray()
        while piece := await reader.read(chance.choice((1, 50, 8000, 200_000))):
            got += piece
            if chance.random() < 0.1:
                await asyncio.sleep(0)
        assert got == sent
        await sender
        await close(far)
        await close(writer)

    run(loop, main())


# ---- Writing ----


def test_drain_waits_while_the_peer_does_not_read(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        b.setblocking(False)
        _, writer = await open_stream(loop, a)
        size = 8 << 20
        writer.write(bytes(size))
        task = asyncio.create_task(writer.drain())
        other = asyncio.create_task(writer.drain())
        await asyncio.sleep(0.01)
        assert not task.done()
        got = 0
        while got < size:
            got += len(await loop.sock_recv(b, 1 << 20))
        await task
        await other
        await writer.drain()
        await close(writer)
        b.close()

    run(loop, main())


def test_drain_that_waits_hears_of_the_end(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        _, writer = await open_stream(loop, a)
        writer.write(bytes(8 << 20))
        task = asyncio.create_task(writer.drain())
        await turns()
        reset(b)
        with pytest.raises(ConnectionError):
            await task
        await close(writer)

    run(loop, main())


def test_writing_without_end_to_who_has_gone(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        _, writer = await open_stream(loop, a)
        b.close()
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
        await close(writer)

    run(loop, main())


def test_what_a_writer_offers(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a)
        assert writer.can_write_eof()
        assert writer.get_extra_info("peername") == b.getsockname()
        assert not writer.is_closing()
        writer.writelines([b"a", b"b"])
        writer.write_eof()
        assert await receive(loop, b) == b"ab"
        writer.close()
        assert writer.is_closing()
        await writer.wait_closed()
        b.close()
        assert await reader.read() == b""

    run(loop, main())


# ---- Servers and clients ----


def test_start_server_and_open_connection(loop: Loop) -> None:
    async def main() -> None:
        ended: list[bool] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            await close(writer)
            ended.append(True)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        async def client(number: int) -> None:
            reader, writer = await asyncio.open_connection(*address)
            for i in range(20):
                writer.write(b"line %d of %d\n" % (i, number))
                assert await reader.readline() == b"LINE %d OF %d\n" % (i, number)
            await close(writer)

        await asyncio.gather(*(client(i) for i in range(50)))
        await until(lambda: len(ended) == 50)
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_unix_streams(loop: Loop, short_path: str) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(4))
            await close(writer)

        async with await asyncio.start_unix_server(serve, short_path) as server:
            reader, writer = await asyncio.open_unix_connection(short_path)
            writer.write(b"ping")
            assert await no_more_than(reader.read()) == b"ping"
            await close(writer)
            server.close()

    run(loop, main())


def test_a_client_callback_that_fails_is_reported(loop: Loop, reports: Any) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                raise ZeroDivisionError("mine")
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        await close(writer)
        await turns()
        assert isinstance(reports.take()["exception"], ZeroDivisionError)
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_pairs_are_freed_without_the_collector(loop: Loop, kind: str) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a)
        known = [weakref.ref(x) for x in (reader, writer, writer.transport)]
        gc.collect()
        gc.disable()
        try:
            writer.write(b"x")
            b.send(b"y")
            assert await reader.read(1) == b"y"
            await close(writer)
            del reader, writer
            await until(lambda: all(ref() is None for ref in known))
        finally:
            gc.enable()
        b.close()

    if kind != REFERENCE:  # its own leaves cycles
        run(loop, main())


# ---- sendfile and TLS, which asyncio does over our transports ----


def test_sendfile(loop: Loop, tmp_path: Any) -> None:
    path = tmp_path / "data"
    path.write_bytes(random.Random(3).randbytes(3 << 20))
    whole = path.read_bytes()

    async def main() -> None:
        for offset, count in ((0, None), (1000, None), (5, 1 << 20), (0, len(whole) + 5)):
            a, b = tcp_pair()
            _, writer = await open_stream(loop, a)
            reader, far = await open_stream(loop, b)
            receiving = asyncio.create_task(reader.read())
            writer.write(b"before ")
            with path.open("rb") as file:
                expected = whole[offset:][: count or None]
                assert await loop.sendfile(writer.transport, file, offset, count) == len(expected)
                assert file.tell() == offset + len(expected)
            writer.write(b" after")
            await close(writer)
            assert await receiving == b"before " + expected + b" after"
            await close(far)
        with path.open("rb") as file:
            with pytest.raises(RuntimeError, match="closing"):
                await loop.sendfile(writer.transport, file)

    run(loop, main())


def test_a_reader_that_was_replaced_is_not_fed_any_more(loop: Loop, reader_kind: str) -> None:
    """set_protocol() in mid-stream, as start_tls() does it."""

    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a, reader_kind)
        b.send(b"first")
        assert await reader.readexactly(5) == b"first"
        second = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(second, loop=loop)
        writer.transport.set_protocol(protocol)
        b.send(b"second")
        assert await second.readexactly(6) == b"second"
        assert len(reader._buffer) == 0  # type: ignore[attr-defined]
        writer.transport.abort()
        await turns(5)
        b.close()

    run(loop, main())


def test_the_standard_streams_as_pipes(loop: Loop) -> None:
    async def main() -> None:
        a, b = os.pipe()
        reader = asyncio.StreamReader(loop=loop)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader, loop=loop), os.fdopen(a, "rb", 0)
        )
        os.write(b, b"one\ntwo\n")
        assert await reader.readline() == b"one\n"
        assert await reader.readline() == b"two\n"
        os.close(b)
        assert await reader.read() == b""
        transport.close()
        await turns(5)

    run(loop, main())
