"""Protocols and small tools that the tests of Python share."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
Loop = asyncio.AbstractEventLoop


class Reports:
    """A loop's exception handler that keeps what it is told."""

    def __init__(self, loop: Loop, *, expected: bool = False) -> None:
        self.all: list[dict[str, Any]] = []
        self.expected = expected
        loop.set_exception_handler(lambda _loop, context: self.all.append(context))

    @property
    def unseen(self) -> list[dict[str, Any]]:
        return [] if self.expected else self.all

    @property
    def exceptions(self) -> list[BaseException | None]:
        return [context.get("exception") for context in self.all]

    def take(self) -> dict[str, Any]:
        """The one report there is."""
        assert len(self.all) == 1, self.all
        return self.all.pop()


class Recorder(asyncio.Protocol):
    """Writes down what is called, in order; what is received is joined."""

    def __init__(self, loop: Loop, *, keep_open: bool = False) -> None:
        self.loop = loop
        self.keep_open = keep_open
        self.calls: list[str] = []
        self.data = bytearray()
        self.transport: Any = None
        self.made = loop.create_future()
        self.ended = loop.create_future()
        self.lost = loop.create_future()  # its result: what connection_lost() was given
        self.awaited: list[tuple[int, asyncio.Future[None]]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("made")
        self.transport = transport
        self.made.set_result(None)

    def note_data(self, data: bytes) -> None:
        self.calls.append("data")
        self.data += data
        for size, future in self.awaited:
            if len(self.data) >= size and not future.done():
                future.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.note_data(data)

    def eof_received(self) -> bool:
        self.calls.append("eof")
        if not self.ended.done():
            self.ended.set_result(None)
        return self.keep_open

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.lost.set_result(exc)

    async def received(self, size: int) -> bytes:
        """Wait until so many bytes have come."""
        if len(self.data) < size:
            future: asyncio.Future[None] = self.loop.create_future()
            self.awaited.append((size, future))
            await future
        return bytes(self.data)


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):  # type: ignore[misc]
    """The same, with a buffer of its own."""

    def __init__(self, loop: Loop, *, keep_open: bool = False, size: int = 1000) -> None:
        super().__init__(loop, keep_open=keep_open)
        self.buffer = bytearray(size)
        self.hints: list[int] = []
        self.most = 0

    def get_buffer(self, sizehint: int) -> bytearray:
        self.hints.append(sizehint)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.most = max(self.most, nbytes)
        self.note_data(bytes(self.buffer[:nbytes]))


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def no_more_than(work: Awaitable[T]) -> T:
    """A guard against a test that waits for ever; no test is to come near it."""
    return await asyncio.wait_for(work, 20)


def run(loop: Loop, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop to its end."""
    return loop.run_until_complete(no_more_than(work))


async def turns(count: int = 3) -> None:
    """Let the loop turn some times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something holds."""
    while not condition():
        await asyncio.sleep(0.001)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


async def over(
    loop: Loop, protocol: asyncio.BaseProtocol, sock: socket.socket
) -> asyncio.Transport:
    """A transport over a connected socket."""
    transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
    return transport


async def pair(
    loop: Loop, near: asyncio.BaseProtocol, far: asyncio.BaseProtocol
) -> tuple[Any, Any]:
    """Two transports that are connected by TCP."""
    a, b = tcp_pair()
    return await over(loop, near, a), await over(loop, far, b)


async def receive(loop: Loop, sock: socket.socket, size: int | None = None) -> bytes:
    """So many bytes from a socket; all, up to its end, without a number."""
    sock.setblocking(False)
    data = b""
    while size is None or len(data) < size:
        piece = await loop.sock_recv(sock, 1 << 16 if size is None else size - len(data))
        data += piece
        if not piece:
            break
    return data


def reset(sock: socket.socket) -> None:
    """Close a TCP socket so that its peer sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
