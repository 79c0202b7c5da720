"""becket.testing.TransportSuite: transports that keep the contract pass it; and for each case there
is one that breaks the contract, and is found out by it."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

import becket
from becket.testing import TransportSuite
from becket.transports import NOW, Transport

CAPACITY = 64 * 1024


class Memory(Transport):
    """One of two ends that are joined in memory; needs no descriptor."""

    name = "memory"

    def __init__(self) -> None:
        self.peer: Memory = self
        self.incoming = bytearray()
        self.over = self.refused = self.reset = self.closed = False

    def read(self, size: int) -> bytes | None:
        if self.reset:
            raise ConnectionResetError
        if not self.incoming:
            return b"" if self.over else None
        data = bytes(self.incoming[:size])
        del self.incoming[:size]
        if self.peer.refused:
            self.peer.refused = False
            self.peer.wake()
        return data

    def write(self, data: bytes) -> int | None:
        if self.peer.closed or self.peer.over:
            raise BrokenPipeError
        taken = data[: CAPACITY - len(self.peer.incoming)]
        self.refused = len(taken) < len(data)
        self.peer.incoming += taken
        self.peer.wake()
        return len(taken) or None

    def end(self) -> bool:
        self.peer.over = True
        self.peer.wake()
        return True

    def close(self) -> None:
        self.closed = self.peer.over = True
        self.peer.reset = self.peer.reset or bool(self.incoming)
        self.peer.wake()


def joined(kind: type[Memory]) -> tuple[Memory, Memory]:
    a, b = kind(), kind()
    a.peer, b.peer = b, a
    return a, b


class Tcp(Transport):
    """Over a socket, which the loop watches."""

    name = "tcp in Python"

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    def read(self, size: int) -> bytes:
        return self.sock.recv(size)

    def write(self, data: bytes) -> int:
        return self.sock.send(data)

    def end(self) -> bool:
        self.sock.shutdown(socket.SHUT_WR)
        return True

    def close(self) -> None:
        self.sock.close()

    def fileno(self, direction: int) -> int:
        return self.sock.fileno()

    def query(self, what: str) -> Any:
        if what == "peer":
            return self.sock.getpeername()
        return self.sock.getsockname() if what == "local" else None


class TestMemory(TransportSuite):
    def pair(self, loop: becket.EventLoop) -> tuple[Memory, Memory]:
        return joined(Memory)


class TestTcp(TransportSuite):
    def pair(self, loop: becket.EventLoop) -> tuple[Tcp, Tcp]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
        return Tcp(near), Tcp(far)
