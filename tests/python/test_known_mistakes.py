"""Mistakes that event loops have made, each with a test of its own, beside those that stand with
what they are about: threads that race with close(), what is written and changed, pausing and
switching protocols in data_received(), a full table of descriptors, signals before a run."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import sys
import threading
from typing import Any

import pytest

from conftest import Certificates, descriptors, finish, make_loop
from support import (
    Echo,
    Loop,
    Recorder,
    no_more_than,
    over,
    pair,
    receive,
    run,
    tcp_pair,
    turns,
    until,
)
from test_memory import growth
from test_tls import Peer, end, serving, with_peer

# ---- Writing ----


def test_drain_with_a_zero_water_mark(loop: Loop) -> None:
    """It waits until all is sent, and only then; what the system takes at once needs no wait."""

    async def main() -> None:
        a, b = tcp_pair()
        _, writer = await asyncio.open_connection(sock=a)
        writer.transport.set_write_buffer_limits(0)
        for _ in range(3):
            writer.write(b"little")
            await no_more_than(writer.drain())
        writer.write(b"much" * (4 << 20))
        draining = asyncio.create_task(writer.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()
        reading = asyncio.create_task(receive(loop, b, 18 + (16 << 20)))
        await no_more_than(draining)
        assert writer.transport.get_write_buffer_size() == 0
        assert (await reading).startswith(b"littlelittlelittlemuch")
        writer.close()
        await writer.wait_closed()
        b.close()

    run(loop, main())


@pytest.mark.parametrize("pieces", [1, 5000])
def test_writelines_holds_back(becket_loop: Loop, pieces: int) -> None:
    """More pieces than one call takes are written whole, and count as what is queued. asyncio's
    tells nobody to pause, in 3.12 and 3.13.0."""
    loop = becket_loop

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, other = await pair(loop, near, far)
        other.pause_reading()
        lines = [bytes([n % 256]) * (20_000_000 // pieces) for n in range(pieces)]
        transport.writelines(lines)
        await turns(2)
        assert near.calls == ["made", "pause"]
        assert transport.get_write_buffer_size() > transport.get_write_buffer_limits()[1]
        other.resume_reading()
        assert await far.received(20_000_000) == b"".join(lines)
        await until(lambda: near.calls[-1] == "resume")
        await end(near, far)

    run(loop, main())


# ---- TLS ----


def test_close_ends_a_download(loop: Loop, tls: Certificates) -> None:
    """A peer that goes on sending, and answers nothing, is not listened to for long."""

    class Counting(Recorder):
        def note_data(self, data: bytes) -> None:
            super().note_data(data)
            assert not self.transport.is_closing()

    async def flood(peer: Peer) -> None:
        with pytest.raises((ConnectionError, ssl.SSLError)):
            while True:
                await peer.write(b"x" * 60_000)

    async def main() -> None:
        near = Counting(loop)
        transport, peer = await with_peer(loop, tls, near, ssl_shutdown_timeout=0.1)
        flooding = asyncio.create_task(flood(peer))
        await near.received(200_000)
        transport.close()
        await no_more_than(near.lost)
        await no_more_than(flooding)
        peer.sock.close()

    run(loop, main())


def test_connections_under_tls_leave_nothing(becket_loop: Loop, tls: Certificates) -> None:
    """However they end."""
    loop = becket_loop
    context, client = tls.server(), tls.client()

    async def many() -> None:
        server, port = await serving(loop, context)
        for n in range(60):
            near = Recorder(loop)
            transport, _ = await loop.create_connection(
                lambda near=near: near,  # type: ignore[misc]
                "127.0.0.1", port, ssl=client, server_hostname="localhost",
            )  # fmt: skip
            transport.write(b"hello")
            await near.received(5)
            if n % 2:
                transport.abort()
            else:
                transport.close()
            await near.lost
        server.close()
        await server.wait_closed()

    assert growth(lambda: run(loop, many())) < 60 * 500
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, ssl.SSLObject)]


# ---- Servers ----


def test_wait_closed_after_any_kind_of_end(loop: Loop, tls: Certificates) -> None:
    """Connections that were reset, or never got through their handshake, count no more."""

    async def main() -> None:
        server, port = await serving(loop, tls.server(), ssl_handshake_timeout=0.05)
        for how in ("nothing", "garbage", "reset", "good"):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                if how == "garbage":
                    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if how == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                if how == "good":
                    await Peer(loop, sock, tls.client(), hostname="localhost").handshake()
                await turns(5)
        silent = socket.create_connection(("127.0.0.1", port))
        server.close()
        waiting = [asyncio.create_task(server.wait_closed()) for _ in range(2)]
        await no_more_than(asyncio.gather(*waiting))
        await no_more_than(server.wait_closed())
        silent.close()

    run(loop, main())
    loop.set_exception_handler(None)


# ---- sock_ calls ----


def test_a_cancelled_accept_leaves_nothing_behind(becket_loop: Loop) -> None:
    """Whoever accepts next has the connection; one that was accepted in the very moment is closed,
    which asyncio leaves to the collector."""
    loop = becket_loop

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            for wait in (0, 1, 2, 3):
                accepting = asyncio.create_task(loop.sock_accept(server))
                await turns(2)
                client = socket.create_connection(server.getsockname())
                client.setblocking(False)
                await turns(wait)
                if not accepting.cancel():
                    sock, _ = await accepting
                    sock.close()
                    client.close()
                    continue
                with pytest.raises(asyncio.CancelledError):
                    await accepting
                try:
                    sock, _ = server.accept()
                except BlockingIOError:
                    assert await no_more_than(loop.sock_recv(client, 1)) == b""
                else:
                    assert sock.getpeername() == client.getsockname()
                    sock.close()
                client.close()

    run(loop, main())


def test_a_cancelled_connect_leaves_the_descriptor_alone(loop: Loop) -> None:
    """It may be closed, and its number used again."""

    async def main() -> None:
        a, b = tcp_pair()
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
            filling = []
            connecting = None
            while connecting is None or connecting.done():  # until the backlog is full
                sock = socket.socket()
                sock.setblocking(False)
                filling.append(sock)
                connecting = asyncio.create_task(loop.sock_connect(sock, server.getsockname()))
                await turns(3)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            number = sock.fileno()
            for sock in filling:
                sock.close()
        os.dup2(a.fileno(), number)
        again = socket.socket(fileno=number)
        again.setblocking(False)
        near = Recorder(loop)
        transport = await over(loop, near, again)
        b.sendall(b"hello")
        assert await near.received(5) == b"hello"
        transport.abort()
        await near.lost
        a.close()
        b.close()

    run(loop, main())


# ---- Subprocesses ----


def test_processes_that_end_at_once(loop: Loop) -> None:
    """Before anybody waits, while somebody does, and after all is over."""

    async def one(n: int) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable if n % 10 == 0 else "true", *(["-c", "print(1)"] if n % 10 == 0 else []),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        if n % 2:
            await asyncio.sleep(0.01)
        out, _ = await process.communicate()
        assert out == (b"1\n" if n % 10 == 0 else b"")
        assert await process.wait() == 0
        assert process.returncode == 0
        with contextlib.suppress(ProcessLookupError):  # once its transport is through with it
            process.kill()

    async def main() -> None:
        await asyncio.gather(*(one(n) for n in range(30)))

    run(loop, main())


def test_processes_of_loops_in_other_threads(kind: str, no_leaks: None) -> None:
    """None of them in the main thread, all at once."""
    failed: list[BaseException] = []

    async def main() -> None:
        for _ in range(5):
            process = await asyncio.create_subprocess_exec("true")
            assert await no_more_than(process.wait()) == 0

    def work() -> None:
        loop: Any = make_loop(kind)
        try:
            run(loop, main())
        except BaseException as error:
            failed.append(error)
        finally:
            finish(loop)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# ---- Descriptors ----


def test_a_socket_object_that_lives_on_closes_nothing(loop: Loop) -> None:
    """The number of a descriptor that a transport closed may be another's when it is collected."""

    async def main() -> None:
        kept = []
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        for _ in range(5):
            near = Recorder(loop)
            await loop.create_connection(lambda: near, *server.sockets[0].getsockname())
            kept.append(near.transport.get_extra_info("socket")._sock)
            near.transport.abort()
            await near.lost
            await turns(2)
        server.close()
        await server.wait_closed()
        await turns(3)
        pipes = [os.pipe() for _ in range(10)]
        before = descriptors()
        for sock in kept:
            sock.close()
        kept.clear()
        gc.collect()
        assert descriptors() == before
        for fd in sum(pipes, ()):
            os.close(fd)

    run(loop, main())


@pytest.mark.parametrize("write", ["write", "writelines"])
def test_a_bytearray_is_the_callers_again_after_write(becket_loop: Loop, write: str) -> None:
    """Whether the kernel took it, or it waits. asyncio sends what it has become, from 3.12 on."""

    async def main() -> None:
        near, far = socket.socketpair()
        far.setblocking(False)
        transport, _ = await becket_loop.create_connection(asyncio.Protocol, sock=near)
        for size in (10, 3_000_000):
            data = bytearray(b"a" * size)
            getattr(transport, write)(data if write == "write" else [data])
            data[:] = b"b" * size
            got = bytearray()
            while len(got) < size:
                got += await becket_loop.sock_recv(far, 1 << 20)
            assert got == b"a" * size
        transport.close()
        assert await becket_loop.sock_recv(far, 1) == b""
        far.close()

    run(becket_loop, main())
