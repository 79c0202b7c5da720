"""becket.testing.TransportSuite: transports that keep the contract pass it; and for each case there
is one that breaks the contract, and is found out by it."""

from __future__ import annotations

import inspect
import socket
import threading
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


# ---- Transports that break the contract ----------------------------------------------------------


class LosesAByte(Memory):
    """Each time it is full."""

    def write(self, data: bytes) -> int | None:
        taken = super().write(data)
        if self.refused and self.peer.incoming:
            del self.peer.incoming[-1:]
        return taken


class SwapsBytes(Memory):
    def write(self, data: bytes) -> int | None:
        return super().write(data[1::-1] + data[2:])


class LosesWhatIsTaken(Memory):
    """Takes all, and sends what there was room for."""

    def write(self, data: bytes) -> int | None:
        super().write(data)
        self.refused = False
        return len(data)


class ReadsTwice(Memory):
    """What was read in part comes once more."""

    def read(self, size: int) -> bytes | None:
        data = super().read(size)
        if data and self.incoming:
            self.incoming[:0] = data[-1:]
        return data


class Blocks(Memory):
    def read(self, size: int) -> bytes | None:
        if not self.incoming and not self.over:
            threading.Event().wait()
        return super().read(size)


class WritesWithWaiting(Memory):
    def write(self, data: bytes) -> int | None:
        taken = super().write(data)
        if not taken:
            threading.Event().wait()
        return taken


class ForgetsToWakeWriters(Memory):
    def read(self, size: int) -> bytes | None:
        self.peer.refused = False
        return super().read(size)


class ForgetsToWakeReaders(Memory):
    """Unless there was something to read before."""

    def write(self, data: bytes) -> int | None:
        wake, self.peer.wake = self.peer.wake, lambda: None  # type: ignore[method-assign]
        try:
            return super().write(data)
        finally:
            self.peer.wake = wake  # type: ignore[method-assign]


class ForgetsToWakeAtTheEnd(Memory):
    """Nor does one see the end who was about to read anyhow."""

    about_to_read = True

    def read(self, size: int) -> bytes | None:
        data = super().read(size)
        if data == b"" and self.about_to_read:
            data, self.about_to_read = None, False
        return data

    def end(self) -> bool:
        self.peer.over = True
        return True


class ForgetsTheEnd(Memory):
    """Tells it once, and then nothing."""

    told = False

    def read(self, size: int) -> bytes | None:
        data = super().read(size)
        if data == b"":
            data, self.told = None if self.told else b"", True
        return data


class EndsTooEarly(Memory):
    """The end overtakes what was sent before."""

    def end(self) -> bool:
        self.peer.incoming.clear()
        return super().end()


class EndsBoth(Memory):
    def end(self) -> bool:
        self.over = True
        return super().end()


class NeverEnds(Memory):
    def end(self) -> bool:
        return False


class WritesAfterItsEnd(Memory):
    def write(self, data: bytes) -> int | None:
        return len(data) if self.peer.over else super().write(data)


class ClosesWithoutTheRest(Memory):
    def close(self) -> None:
        self.peer.incoming.clear()
        super().close()


class ClosesUnheard(Memory):
    def close(self) -> None:
        self.closed = True


class BreaksAtTheEnd(Memory):
    """Every close looks like a reset."""

    def close(self) -> None:
        super().close()
        self.peer.reset = True


class WritesToNobody(Memory):
    """The peer is gone, and nobody tells."""

    def read(self, size: int) -> bytes | None:
        return bytes(self.incoming) if self.reset else super().read(size)

    def write(self, data: bytes) -> int | None:
        return len(data) if self.peer.closed else super().write(data)


class NeverResets(Memory):
    def close(self) -> None:
        self.incoming.clear()
        super().close()


class IsNeverFull(Memory):
    def write(self, data: bytes) -> int | None:
        if self.peer.closed or self.peer.over:
            raise BrokenPipeError
        self.peer.incoming += data
        self.peer.wake()
        return len(data)


class HasNoName(Memory):
    name = ""


class IsNowhere(Memory):
    def query(self, what: str) -> Any:
        return ("localhost", "smtp")


class NeverOpens(Memory):
    def open(self) -> bool:
        return False


class CannotOpen(Memory):
    def open(self) -> bool:
        raise ConnectionRefusedError


class Spins(Memory):
    def wants(self, directions: int) -> int:
        return NOW


class EndsForNothing(Memory):
    """Asked when there is nothing, it gives up."""

    asked = 0

    def read(self, size: int) -> bytes | None:
        data = super().read(size)
        self.asked += data is None
        return b"" if self.asked > 10 else data


class ClosesLoudly(Memory):
    def close(self) -> None:
        super().close()
        raise ValueError("close() must not fail")


class ReadsTooMuch(Memory):
    def read(self, size: int) -> bytes | None:
        return super().read(size + 1)


# Which of them each case finds out: those, and perhaps more.
FOUND: dict[str, list[type[Memory]]] = {
    "bare_bytes": [Blocks, SwapsBytes],
    "bare_pieces": [ReadsTwice, ReadsTooMuch],
    "bare_full": [LosesAByte, LosesWhatIsTaken, WritesWithWaiting, IsNeverFull],
    "bare_ends": [ForgetsTheEnd, EndsTooEarly, EndsBoth, NeverEnds, WritesAfterItsEnd],
    "bare_peer_gone": [WritesToNobody, ClosesUnheard],
    "queries": [HasNoName, IsNowhere],
    "opening": [NeverOpens, CannotOpen, SwapsBytes],
    "large": [LosesAByte, LosesWhatIsTaken],
    "one_byte_at_a_time": [ReadsTwice],
    "seven_bytes_at_a_time": [ReadsTwice, SwapsBytes],
    "spurious_wakes": [EndsForNothing],
    "under_tls": [SwapsBytes, LosesAByte, ForgetsToWakeReaders],
    "half_close_of_the_first": [EndsBoth, NeverEnds, EndsTooEarly, ForgetsToWakeAtTheEnd],
    "half_close_of_the_second": [EndsBoth, NeverEnds, EndsTooEarly, ForgetsToWakeAtTheEnd],
    "without_ended": [EndsBoth],
    "close_sends_the_rest": [ClosesWithoutTheRest, BreaksAtTheEnd, ForgetsToWakeWriters],
    "gone_with_data_queued": [WritesToNobody, ClosesUnheard],
    "gone_with_data_unread": [NeverResets, ClosesUnheard],
    "ends_and_closes": [ClosesLoudly],
    "closes": [ClosesUnheard, ClosesLoudly],
    "ends_and_aborts": [ClosesLoudly],
    "aborts": [ClosesUnheard, ClosesLoudly],
    "close_in_connection_made": [BreaksAtTheEnd, ClosesUnheard],
    "close_in_data_received": [ClosesUnheard, ForgetsToWakeReaders],
    "close_in_eof_received": [BreaksAtTheEnd, ForgetsToWakeAtTheEnd],
    "close_in_pause_writing": [ClosesWithoutTheRest, ForgetsToWakeWriters],
    "close_in_resume_writing": [ClosesWithoutTheRest, ForgetsToWakeWriters],
    "abort_in_connection_made": [ClosesUnheard],
    "abort_in_data_received": [ClosesUnheard, ForgetsToWakeReaders],
    "abort_in_eof_received": [ForgetsToWakeAtTheEnd],
    "abort_in_pause_writing": [ClosesUnheard, IsNeverFull],
    "abort_in_resume_writing": [ClosesUnheard, ForgetsToWakeWriters],
    "peer_stops_reading": [ForgetsToWakeWriters, Spins, LosesAByte, IsNeverFull],
    "water_marks": [ForgetsToWakeWriters, LosesWhatIsTaken],
    "pauses": [LosesAByte, ForgetsToWakeWriters],
    "paused_from_the_start": [Spins, SwapsBytes],
    "own_buffer": [ReadsTwice, SwapsBytes],
    "echo": [LosesAByte],
    "loop_closed": [ClosesLoudly, IsNeverFull],
}


def cases(suite: type[TransportSuite]) -> list[str]:
    return [
        name.removeprefix("test_")
        for name, _ in inspect.getmembers(suite, inspect.isfunction)
        if name.startswith("test_")
    ]


def test_each_case_finds_something_out() -> None:
    """And each of the broken transports is found out by some case."""
    assert sorted(FOUND) == sorted(cases(TransportSuite))
    here = {kind for kind in globals().values() if inspect.isclass(kind)}
    broken = {kind for kind in here if issubclass(kind, Memory) and kind is not Memory}
    assert {kind for found in FOUND.values() for kind in found} == broken


@pytest.mark.parametrize(
    ("case", "kind"), [(case, kind) for case, found in FOUND.items() for kind in found]
)
def test_is_found_out(case: str, kind: type[Memory]) -> None:
    class Suite(TransportSuite):
        patience = 0.3
        quick = case in ("one_byte_at_a_time", "seven_bytes_at_a_time")

        def pair(self, loop: becket.EventLoop) -> tuple[Memory, Memory]:
            return joined(kind)

    with pytest.raises((AssertionError, OSError)):
        getattr(Suite(), f"test_{case}")()
