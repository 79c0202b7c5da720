"""add_reader() and its relatives, the sock_ calls, pipes, datagrams and subprocesses."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import REFERENCE
from support import Loop, Recorder, no_more_than, receive, run, tcp_pair, turns, until


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe; either end may be closed by the test."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass


# ---- Readers and writers ----


def test_a_reader_is_called_while_there_is_something(loop: Loop, pipe: tuple[int, int]) -> None:
    a, b = pipe
    calls: list[bytes] = []
    loop.add_reader(a, lambda: calls.append(os.read(a, 1)))
    run(loop, turns(5))
    assert calls == []
    os.write(b, b"xyz")
    run(loop, until(lambda: len(calls) == 3))
    assert calls == [b"x", b"y", b"z"]
    run(loop, turns(5))
    assert len(calls) == 3
    assert loop.remove_reader(a) is True
    assert loop.remove_reader(a) is False
    os.write(b, b"w")
    run(loop, turns(5))
    assert len(calls) == 3


def test_a_writer_is_called_while_there_is_room(loop: Loop, pipe: tuple[int, int]) -> None:
    a, b = pipe
    os.set_blocking(b, False)
    calls: list[int] = []

    def write() -> None:
        calls.append(os.write(b, bytes(1 << 16)))

    loop.add_writer(b, write)
    run(loop, until(lambda: calls))
    run(loop, turns(10))
    full = sum(calls)
    os.read(a, full)
    run(loop, until(lambda: sum(calls) > full))
    assert loop.remove_writer(b) is True
    assert loop.remove_writer(b) is False


def test_a_reader_hears_of_the_end(loop: Loop, pipe: tuple[int, int]) -> None:
    a, b = pipe
    calls: list[bytes] = []

    def read() -> None:
        calls.append(os.read(a, 1))
        loop.remove_reader(a)

    loop.add_reader(a, read)
    os.close(b)
    run(loop, until(lambda: calls))
    assert calls == [b""]


def test_a_writer_hears_of_the_end(loop: Loop, pipe: tuple[int, int]) -> None:
    a, b = pipe
    os.set_blocking(b, False)
    while True:
        try:
            os.write(b, bytes(1 << 16))
        except BlockingIOError:
            break
    calls: list[int] = []

    def write() -> None:
        calls.append(1)
        loop.remove_writer(b)

    loop.add_writer(b, write)
    run(loop, turns(5))
    assert calls == []
    os.close(a)
    run(loop, until(lambda: calls))


def test_both_directions_of_one_descriptor(loop: Loop) -> None:
    a, b = socket.socketpair()
    calls: list[str] = []

    def read() -> None:
        calls.append("read")
        a.recv(1)

    def write() -> None:
        calls.append("write")
        loop.remove_writer(a)

    loop.add_reader(a, read)
    loop.add_writer(a, write)
    run(loop, until(lambda: calls))
    assert calls == ["write"]
    b.send(b"x")
    run(loop, until(lambda: len(calls) == 2))
    loop.add_writer(a.fileno(), write)
    run(loop, until(lambda: len(calls) == 3))
    assert loop.remove_reader(a)
    b.send(b"y")
    run(loop, turns(5))
    assert calls == ["write", "read", "write"]
    a.close()
    b.close()


def test_adding_again_replaces(loop: Loop, pipe: tuple[int, int]) -> None:
    a, b = pipe
    calls: list[str] = []

    class Thing:
        def __call__(self) -> None:
            calls.append("old")

    thing = Thing()
    known = weakref.ref(thing)
    loop.add_reader(a, thing)
    del thing
    loop.add_reader(a, calls.append, "new")
    gc.collect()
    assert known() is None
    os.write(b, b"x")
    run(loop, until(lambda: calls))
    assert set(calls) == {"new"}
    loop.remove_reader(a)


def test_changing_inside_of_the_callback(loop: Loop, pipe: tuple[int, int]) -> None:
    a, b = pipe
    calls: list[str] = []

    def first() -> None:
        calls.append("first")
        loop.add_reader(a, second)

    def second() -> None:
        calls.append("second")
        loop.remove_reader(a)
        loop.add_reader(a, third)

    def third() -> None:
        calls.append("third")
        os.read(a, 1)
        loop.remove_reader(a)
        os.close(a)

    loop.add_reader(a, first)
    os.write(b, b"x")
    run(loop, until(lambda: len(calls) == 3))
    assert calls == ["first", "second", "third"]


def test_one_reader_removes_another_that_is_ready(loop: Loop) -> None:
    pipes = [os.pipe() for _ in range(5)]
    calls: list[int] = []

    def read(own: int) -> None:
        calls.append(own)
        for a, _ in pipes:
            loop.remove_reader(a)

    for a, b in pipes:
        loop.add_reader(a, read, a)
        os.write(b, b"x")
    run(loop, until(lambda: calls))
    run(loop, turns(5))
    assert len(calls) == 1
    for a, b in pipes:
        os.close(a)
        os.close(b)


def test_a_descriptor_that_is_closed_and_used_again(loop: Loop) -> None:
    """An event of the old one is not given to the new one, nor the new one forgotten."""
    calls: list[str] = []
    for _ in range(10):
        a, b = os.pipe()
        loop.add_reader(a, calls.append, "old")
        os.write(b, b"x")
        loop.remove_reader(a)
        os.close(a)
        os.close(b)
        c, d = os.pipe()
        assert c == a
        loop.add_reader(c, calls.append, "new")
        run(loop, turns(3))
        assert calls == []
        os.write(d, b"x")
        run(loop, until(lambda: calls))
        assert set(calls) == {"new"}
        loop.remove_reader(c)
        os.close(c)
        os.close(d)
        calls.clear()


def test_what_is_no_descriptor(loop: Loop) -> None:
    for wrong in (-1, "text", None, object(), 1.5):
        for call in (loop.add_reader, loop.add_writer):
            with pytest.raises((ValueError, TypeError)):
                call(wrong, print)  # type: ignore[arg-type]
    closed = os.dup(0)
    os.close(closed)
    for call in (loop.add_reader, loop.add_writer):
        with pytest.raises((OSError, ValueError)):
            call(closed, print)
            # asyncio's poll takes any number and select tells when it waits
            raise ValueError
    loop.remove_reader(closed)
    loop.remove_writer(closed)
    assert loop.remove_reader(closed) is False


def test_a_regular_file_is_refused_by_epoll(kind: str, tmp_path: Any) -> None:
    import becket

    if kind == "epoll" or (kind == REFERENCE and sys.platform.startswith("linux")):
        loop = becket.EventLoop(kind) if kind != REFERENCE else asyncio.SelectorEventLoop()
        with (tmp_path / "file").open("wb") as file:
            with pytest.raises(PermissionError):
                loop.add_reader(file, print)
            assert loop.remove_reader(file) is False
            with pytest.raises(PermissionError):
                loop.add_writer(file, print)
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()


def test_many_descriptors(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(200)]
    seen: set[int] = set()

    def read(number: int) -> None:
        pairs[number][0].recv(1)
        seen.add(number)

    for number, (a, _) in enumerate(pairs):
        loop.add_reader(a, read, number)
    chosen = random.Random(0).sample(range(200), 50)
    for number in chosen:
        pairs[number][1].send(b"x")
    run(loop, until(lambda: len(seen) == 50))
    assert seen == set(chosen)
    for a, b in pairs:
        assert loop.remove_reader(a)
        a.close()
        b.close()


# ---- sock_ calls ----


def test_sock_calls(loop: Loop) -> None:
    async def main() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        client = socket.socket()
        client.setblocking(False)
        accepting = asyncio.create_task(loop.sock_accept(listening))
        await loop.sock_connect(client, listening.getsockname())
        server, address = await accepting
        assert address == client.getsockname()
        await loop.sock_sendall(client, b"hello")
        assert await loop.sock_recv(server, 100) == b"hello"
        buffer = bytearray(10)
        await loop.sock_sendall(server, memoryview(b"back"))
        assert await loop.sock_recv_into(client, buffer) == 4
        assert buffer[:4] == b"back"
        data = random.Random(2).randbytes(4 << 20)
        sending = asyncio.create_task(loop.sock_sendall(client, data))
        assert await receive(loop, server, len(data)) == data
        await sending
        for sock in (listening, client, server):
            sock.close()

    run(loop, main())


def test_sock_calls_that_are_cancelled(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        for sock in (a, b):
            sock.setblocking(False)
        for _ in range(5):
            task = asyncio.create_task(loop.sock_recv(a, 1))
            await turns()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert loop.remove_reader(a) is False
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.sock_sendall(b, bytes(64 << 20)), 0.01)
        await turns()
        assert loop.remove_writer(b) is False
        await loop.sock_sendall(a, b"the other way still works")
        assert await receive(loop, b, 25) == b"the other way still works"
        a.close()
        b.close()

    run(loop, main())


def test_sock_calls_that_fail(loop: Loop) -> None:
    async def main() -> None:
        with socket.socket() as unused, socket.socket() as client:
            unused.bind(("127.0.0.1", 0))
            client.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await loop.sock_connect(client, unused.getsockname())
        loop.set_debug(True)
        with socket.socket() as blocking:
            with pytest.raises(ValueError, match="non-blocking"):
                await loop.sock_recv(blocking, 1)
        near = Recorder(loop)
        a, b = tcp_pair()
        transport, _ = await loop.create_connection(lambda: near, sock=a)
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.sock_recv(a, 1)
        transport.abort()
        await near.lost
        b.close()

    run(loop, main())


# ---- Pipes ----


def test_a_read_pipe(loop: Loop) -> None:
    async def main() -> None:
        a, b = os.pipe()
        near = Recorder(loop)
        transport, protocol = await loop.connect_read_pipe(lambda: near, os.fdopen(a, "rb", 0))
        assert protocol is near
        assert isinstance(transport, asyncio.ReadTransport)
        os.write(b, b"hello")
        assert await near.received(5) == b"hello"
        transport.pause_reading()
        os.write(b, b" again")
        await turns(5)
        assert near.data == b"hello"
        transport.resume_reading()
        await near.received(11)
        assert transport.get_extra_info("pipe") is not None
        os.close(b)
        assert await near.lost is None
        assert near.calls[-2:] == ["eof", "lost"]

    run(loop, main())


def test_a_write_pipe(loop: Loop) -> None:
    async def main() -> None:
        a, b = os.pipe()
        os.set_blocking(a, False)
        near = Recorder(loop)
        transport, _ = await loop.connect_write_pipe(lambda: near, os.fdopen(b, "wb", 0))
        assert isinstance(transport, asyncio.WriteTransport)
        data = random.Random(4).randbytes(1 << 20)
        transport.write(data)
        assert near.calls == ["made", "pause"]
        transport.write(b"end")
        got = bytearray()
        while len(got) < len(data) + 3:
            try:
                got += os.read(a, 1 << 16)
            except BlockingIOError:
                await turns(1)
        assert got == data + b"end"
        await until(lambda: "resume" in near.calls)
        assert transport.can_write_eof()
        transport.write_eof()
        assert await near.lost is None
        assert os.read(a, 1) == b""
        os.close(a)

    run(loop, main())


def test_a_write_pipe_whose_reader_goes(loop: Loop) -> None:
    async def main() -> None:
        a, b = os.pipe()
        near = Recorder(loop)
        await loop.connect_write_pipe(lambda: near, os.fdopen(b, "wb", 0))
        os.close(a)
        error = await near.lost
        assert error is None or isinstance(error, BrokenPipeError)
        assert near.calls == ["made", "lost"]

    run(loop, main())


def test_a_file_is_no_pipe(loop: Loop, tmp_path: Any) -> None:
    async def main() -> None:
        for connect, mode in ((loop.connect_read_pipe, "rb"), (loop.connect_write_pipe, "wb")):
            (tmp_path / "file").write_bytes(b"x")
            with (tmp_path / "file").open(mode) as file:
                with pytest.raises(ValueError, match="only"):
                    await connect(lambda: Recorder(loop), file)

    run(loop, main())


def test_closing_pipes(loop: Loop) -> None:
    async def main() -> None:
        for way in ("close", "abort"):
            a, b = os.pipe()
            reader, writer = Recorder(loop), Recorder(loop)
            read, _ = await loop.connect_read_pipe(lambda r=reader: r, os.fdopen(a, "rb", 0))  # type: ignore[misc]
            write, _ = await loop.connect_write_pipe(lambda w=writer: w, os.fdopen(b, "wb", 0))  # type: ignore[misc]
            write.write(b"last words")
            if way == "close":
                write.close()
                assert await reader.received(10) == b"last words"
            else:
                write.abort()
            assert write.is_closing()
            assert await writer.lost is None
            await reader.lost
            read.close()

    run(loop, main())


# ---- What asyncio does in Python over our watches ----


def test_datagrams(loop: Loop) -> None:
    class Datagrams(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.got = loop.create_future()
            self.lost = loop.create_future()

        def datagram_received(self, data: bytes, addr: Any) -> None:
            if not self.got.done():
                self.got.set_result((data, addr))

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(exc)

    async def main() -> None:
        server, receiving = await loop.create_datagram_endpoint(
            Datagrams, local_addr=("127.0.0.1", 0)
        )
        client, sending = await loop.create_datagram_endpoint(
            Datagrams, remote_addr=server.get_extra_info("sockname")
        )
        assert "read=polling" in repr(server)
        client.sendto(b"one whole message")
        data, address = await receiving.got
        assert data == b"one whole message"
        assert address == client.get_extra_info("sockname")
        server.sendto(b"and its answer", address)
        assert (await sending.got)[0] == b"and its answer"
        server.close()
        client.close()
        assert await receiving.lost is None
        assert await sending.lost is None

    run(loop, main())


def test_subprocesses(loop: Loop) -> None:
    async def main() -> None:
        program = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.exit(3)"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate(b"shout " * 50_000)
        assert out == b"SHOUT " * 50_000
        assert process.returncode == 3
        process = await asyncio.create_subprocess_shell("exec sleep 60")
        process.kill()
        assert await process.wait() == -9
        many = await asyncio.gather(
            *(asyncio.create_subprocess_shell(f"exit {i}") for i in range(10))
        )
        assert await asyncio.gather(*(p.wait() for p in many)) == list(range(10))

    if sys.version_info < (3, 12):
        watcher = asyncio.ThreadedChildWatcher()
        asyncio.set_child_watcher(watcher)
        watcher.attach_loop(loop)
    try:
        run(loop, main())
    finally:
        if sys.version_info < (3, 12):
            asyncio.set_child_watcher(None)


def test_a_pipe_within_a_time_limit(loop: Loop) -> None:
    async def main() -> None:
        a, b = os.pipe()
        reader = asyncio.StreamReader(loop=loop)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader, loop=loop), os.fdopen(a, "rb", 0)
        )
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.001)
        os.write(b, b"x")
        assert await no_more_than(reader.read(1)) == b"x"
        transport.close()
        os.close(b)
        await turns(5)

    run(loop, main())


@pytest.mark.parametrize("direction", ["reader", "writer"])
def test_a_socket_that_was_closed_can_still_be_removed(loop: Loop, direction: str) -> None:
    """Whoever closes it first is not told off: anyio does so with its UNIX sockets."""
    add, remove = (getattr(loop, f"{word}_{direction}") for word in ("add", "remove"))
    near, far = socket.socketpair()
    with near, far:
        add(near, lambda: None)
        near.close()
        assert remove(near)
        with pytest.raises(ValueError):
            remove(near)  # now it is nothing any more
        with pytest.raises(ValueError):
            remove(-1)
        add(far, lambda: None)
        assert remove(far.fileno())  # by its number
        assert not remove(far)


def test_what_is_watched_stays_alive(loop: Loop) -> None:
    near, far = socket.socketpair()
    gone = weakref.ref(near)
    number = near.fileno()
    with far:
        loop.add_reader(near, lambda: loop.stop())
        loop.add_writer(near, lambda: None)
        del near
        far.send(b"hello")
        loop.run_forever()
        assert loop.remove_reader(number)
        assert gone() is not None
        gone().close()  # type: ignore[union-attr]
        assert loop.remove_writer(gone())  # type: ignore[arg-type]
        gc.collect()
        assert gone() is None
