"""Transports over sockets: what a protocol is called with, reading, writing, flow control, ends."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import random
import socket
import weakref
from typing import Any

import pytest

import becket
from conftest import REFERENCE
from support import (
    BufferedRecorder,
    Echo,
    Loop,
    Recorder,
    Reports,
    over,
    pair,
    reset,
    run,
    tcp_pair,
    turns,
    until,
)

PROTOCOLS = [Recorder, BufferedRecorder]
BIG = 8 << 20


def pattern(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def end(*recorders: Recorder) -> None:
    """Abort what is still open, and wait for connection_lost()."""
    for recorder in recorders:
        if recorder.transport is not None:
            recorder.transport.abort()
            await recorder.lost


# ---- Life ----


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_life_of_a_connection(loop: Loop, protocol: type[Recorder]) -> None:
    async def main() -> None:
        near, far = Recorder(loop), protocol(loop)
        await pair(loop, near, far)
        assert near.calls == far.calls == ["made"]
        assert near.transport.is_reading()
        assert not near.transport.is_closing()
        near.transport.write(b"hello")
        assert await far.received(5) == b"hello"
        far.transport.write(b"and ")
        far.transport.write(b"back")
        assert await near.received(8) == b"and back"
        near.transport.close()
        assert near.transport.is_closing()
        assert not near.transport.is_reading()
        assert await near.lost is None
        assert await far.lost is None
        assert far.calls == ["made", "data", "eof", "lost"]
        assert near.calls[0] == "made"
        assert near.calls[-1] == "lost"
        assert "eof" not in near.calls
        assert far.transport.is_closing()

    run(loop, main())


def test_connection_lost_is_not_called_before_close_returns(loop: Loop) -> None:
    async def main() -> None:
        for way in ("close", "abort"):
            near, far = Recorder(loop), Recorder(loop)
            await pair(loop, near, far)
            getattr(near.transport, way)()
            assert near.calls == ["made"]
            assert await near.lost is None
            await far.lost

    run(loop, main())


def test_closing_again_does_nothing(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        for way in ("close", "close", "abort", "close", "abort"):
            getattr(near.transport, way)()
        await near.lost
        await far.lost
        for way in ("close", "abort", "pause_reading", "resume_reading", "write_eof"):
            getattr(near.transport, way)()
        await turns()
        assert near.calls == ["made", "lost"]

    run(loop, main())


@pytest.mark.parametrize(
    "method",
    [
        "connection_made",
        "data_received",
        "eof_received",
        "connection_lost",
        "pause_writing",
        "resume_writing",
    ],
)
@pytest.mark.parametrize("way", ["close", "abort"])
def test_closing_in_any_callback(loop: Loop, kind: str, method: str, way: str) -> None:
    if kind == REFERENCE and method == "resume_writing":
        return  # asyncio calls connection_lost() twice

    class Closing(Recorder):
        pass

    def call(self: Closing, *args: Any) -> Any:
        result = getattr(Recorder, method)(self, *args)
        getattr(self.transport, way)()
        return result

    setattr(Closing, method, call)

    async def main() -> None:
        a, b = tcp_pair()
        b.setblocking(False)
        near = Closing(loop)
        await over(loop, near, a)
        near.transport.set_write_buffer_limits(0)
        if method.endswith("writing"):
            near.transport.write(bytes(BIG))
            if method == "resume_writing":
                while not near.lost.done():
                    await turns()
                    try:
                        if b.recv(1 << 20) == b"":
                            break
                    except BlockingIOError:
                        pass
        elif method == "connection_lost":
            near.transport.abort()
        else:
            try:
                b.send(b"data")
                await turns()
                b.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was closed already
        while not near.lost.done():
            await turns()
            try:
                b.recv(1 << 20)
            except OSError:
                pass
        assert await near.lost is None
        await turns()
        assert near.calls.count("lost") == 1
        assert near.calls[-1] == "lost"
        b.close()

    run(loop, main())


@pytest.mark.parametrize(
    "method", ["data_received", "eof_received", "get_buffer", "buffer_updated"]
)
def test_an_exception_in_a_callback_ends_that_connection_only(
    loop: Loop, reports: Reports, method: str
) -> None:
    base = BufferedRecorder if "buffer" in method else Recorder
    error = ZeroDivisionError("mine")

    class Failing(base):  # type: ignore[misc, valid-type]
        pass

    def fail(self: Failing, *args: Any) -> None:
        raise error

    setattr(Failing, method, fail)

    async def main() -> None:
        near, far, other, peer = Failing(loop), Recorder(loop), Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        await pair(loop, other, peer)
        far.transport.write(b"data")
        if method == "eof_received":
            far.transport.write_eof()
        assert await near.lost is error
        context = reports.take()
        assert set(context) == {"message", "exception", "transport", "protocol"}
        assert context["message"] == f"Fatal error: protocol.{method}() call failed."
        assert context["exception"] is error
        assert context["transport"] is near.transport
        assert context["protocol"] is near
        assert near.calls.count("lost") == 1
        peer.transport.write(b"still here")
        assert await other.received(10) == b"still here"
        await far.lost
        await end(other, peer)

    run(loop, main())


def test_exceptions_in_the_other_callbacks_are_reported(loop: Loop, reports: Reports) -> None:
    class Failing(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            raise ZeroDivisionError("connection_lost")

        def pause_writing(self) -> None:
            raise ZeroDivisionError("pause_writing")

        def resume_writing(self) -> None:
            raise ZeroDivisionError("resume_writing")

    async def main() -> None:
        near, far = Failing(loop), Recorder(loop)
        await pair(loop, near, far)
        near.transport.write(bytes(BIG))
        await far.received(BIG)
        await until(lambda: len(reports.all) == 2)
        for context, name in zip(reports.all, ("pause_writing", "resume_writing"), strict=True):
            assert set(context) == {"message", "exception", "transport", "protocol"}
            assert context["message"] == f"protocol.{name}() failed"
            assert context["transport"] is near.transport
        assert not near.transport.is_closing()
        near.transport.close()
        await near.lost
        await until(lambda: len(reports.all) == 3)
        assert str(reports.exceptions[2]) == "connection_lost"
        await far.lost

    run(loop, main())


def test_an_exception_in_connection_made_is_reported(loop: Loop, reports: Reports) -> None:
    class Failing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            raise ZeroDivisionError

    async def main() -> None:
        a, b = tcp_pair()
        near = Failing(loop)
        await over(loop, near, a)
        await turns()
        assert isinstance(reports.take()["exception"], ZeroDivisionError)
        near.transport.abort()
        b.close()
        await turns()

    run(loop, main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_passes_through_a_protocol(
    loop: Loop, error: type[BaseException]
) -> None:
    class Ending(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise error

    a, b = tcp_pair()
    near = Ending(loop)
    run(loop, over(loop, near, a))
    b.send(b"x")
    with pytest.raises(error):
        loop.run_forever()
    assert near.calls == ["made", "data"]
    near.transport.abort()
    run(loop, turns())
    b.close()


def test_a_reset_by_the_peer_is_the_reason(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        await over(loop, near, a)
        peer, own = b.getsockname(), b.getpeername()
        reset(b)
        assert isinstance(await near.lost, ConnectionResetError)
        assert near.transport.get_extra_info("peername") == peer
        assert near.transport.get_extra_info("sockname") == own

    run(loop, main())


def test_a_reset_while_writing_is_the_reason(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        await over(loop, near, a)
        near.transport.pause_reading()
        b.send(b"unread")
        b.close()
        while not near.lost.done():
            near.transport.write(b"x" * 1000)
            await turns()
        assert isinstance(near.lost.result(), ConnectionResetError | BrokenPipeError)
        assert near.calls == ["made", "lost"]

    run(loop, main())


def test_failing_to_send_shows_at_once(loop: Loop) -> None:
    """A coroutine that writes without end and looks at is_closing() must come to know."""

    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        await over(loop, near, a)
        reset(b)
        for _ in range(1000):
            near.transport.write(b"x" * 100_000)
            if near.transport.is_closing():
                break
        else:
            raise AssertionError("it never knew")
        await near.lost

    run(loop, main())


# ---- What a transport tells ----


def test_extra_info(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        transport: Any = await over(loop, near, a)
        assert transport.get_extra_info("peername") == b.getsockname()
        assert transport.get_extra_info("sockname") == b.getpeername()
        sock = transport.get_extra_info("socket")
        assert sock.fileno() == a.fileno()
        assert sock.family == socket.AF_INET
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        assert transport.get_extra_info("nothing") is None
        assert transport.get_extra_info("nothing", 5) == 5
        assert transport.get_extra_info("peername", default=5) == b.getsockname()
        assert transport.get_extra_info("sslcontext") is None
        assert transport.get_protocol() is near
        transport.close()
        await near.lost
        assert transport.get_extra_info("peername") == b.getsockname()
        b.close()

    run(loop, main())


def test_extra_info_inside_connection_lost(loop: Loop) -> None:
    seen: list[Any] = []

    class Asking(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            seen.extend(self.transport.get_extra_info(name) for name in ("sockname", "socket"))
            super().connection_lost(exc)

    async def main() -> None:
        a, b = tcp_pair()
        near = Asking(loop)
        await over(loop, near, a)
        own = b.getpeername()
        reset(b)
        await near.lost
        assert seen[0] == own
        assert seen[1] is not None

    run(loop, main())


def test_addresses_of_other_families(loop: Loop, short_path: str) -> None:
    async def main() -> None:
        server = await loop.create_unix_server(Echo, short_path)
        near = Recorder(loop)
        transport, _ = await loop.create_unix_connection(lambda: near, short_path)
        assert transport.get_extra_info("peername") == short_path
        assert transport.get_extra_info("sockname") == ""
        transport.close()
        await near.lost
        server.close()
        await server.wait_closed()
        try:
            listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            return
        with listening:
            near = Recorder(loop)
            transport, _ = await loop.create_connection(
                lambda: near, "::1", listening.getsockname()[1]
            )
            assert transport.get_extra_info("peername") == listening.getsockname()
            assert len(transport.get_extra_info("sockname")) == 4
            transport.abort()
            await near.lost

    run(loop, main())


def test_repr_tells_the_state(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await pair(loop, near, far)
        fd = transport.get_extra_info("socket").fileno()
        assert f" fd={fd} read=polling write=<idle, bufsize=0>>" in repr(transport)
        transport.pause_reading()
        assert " read=idle " in repr(transport)
        transport.close()
        assert " closing " in repr(transport)
        await near.lost
        assert " closed " in repr(transport)
        await far.lost

    run(loop, main())


def test_it_is_a_transport(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await pair(loop, near, far)
        assert isinstance(transport, asyncio.Transport)
        assert weakref.ref(transport)() is transport
        transport.my_attribute = 1
        with pytest.raises(TypeError):
            becket._becket.Transport()
        await end(near, far)

    run(loop, main())


# ---- Reading ----


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pause_and_resume_reading(loop: Loop, protocol: type[Recorder]) -> None:
    async def main() -> None:
        near, far = Recorder(loop), protocol(loop)
        await pair(loop, near, far)
        far.transport.pause_reading()
        far.transport.pause_reading()
        assert not far.transport.is_reading()
        near.transport.write(b"waits")
        await asyncio.sleep(0.01)
        assert far.calls == ["made"]
        far.transport.resume_reading()
        far.transport.resume_reading()
        assert far.transport.is_reading()
        assert await far.received(5) == b"waits"
        far.transport.resume_reading()
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("base", PROTOCOLS)
def test_pausing_inside_of_data_received(loop: Loop, base: type[Recorder]) -> None:
    class Pausing(base):  # type: ignore[misc, valid-type]
        def note_data(self, data: bytes) -> None:
            super().note_data(data)
            self.transport.pause_reading()

    async def main() -> None:
        a, b = tcp_pair()
        near = Pausing(loop)
        await over(loop, near, a)
        for number in range(1, 10):
            b.send(b"x")
            await near.received(2 * number - 1)
            b.send(b"y")
            await asyncio.sleep(0.001)
            assert len(near.data) == 2 * number - 1
            near.transport.resume_reading()
            await near.received(2 * number)
            near.transport.resume_reading()
        b.shutdown(socket.SHUT_WR)
        b.close()
        await near.lost

    run(loop, main())


def test_pausing_in_connection_made(loop: Loop) -> None:
    class Pausing(Recorder):
        def connection_made(self, transport: Any) -> None:
            transport.pause_reading()
            super().connection_made(transport)

    async def main() -> None:
        a, b = tcp_pair()
        b.send(b"early")
        near = Pausing(loop)
        await over(loop, near, a)
        await asyncio.sleep(0.005)
        assert near.calls == ["made"]
        near.transport.resume_reading()
        assert await near.received(5) == b"early"
        await end(near)
        b.close()

    run(loop, main())


def test_writing_and_closing_in_connection_made(loop: Loop) -> None:
    class Brief(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.write(b"hello and ")
            transport.write(b"goodbye")
            transport.close()

    async def main() -> None:
        a, b = tcp_pair()
        near = Brief(loop)
        await over(loop, near, a)
        assert await near.lost is None
        assert near.calls == ["made", "lost"]
        assert b.makefile("rb").read() == b"hello and goodbye"
        b.close()

    run(loop, main())


def test_the_buffer_of_a_buffered_protocol(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = BufferedRecorder(loop, size=10)
        await over(loop, near, a)
        b.send(bytes(range(95)))
        assert await near.received(95) == bytes(range(95))
        assert near.most <= 10
        assert set(near.hints) == {-1}
        await end(near)
        b.close()

    run(loop, main())


@pytest.mark.parametrize("empty", [bytearray(), memoryview(bytearray(5))[5:]])
def test_an_empty_buffer_ends_the_connection(loop: Loop, reports: Reports, empty: Any) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = BufferedRecorder(loop)
        near.buffer = empty
        await over(loop, near, a)
        b.send(b"x")
        error = await near.lost
        assert isinstance(error, RuntimeError)
        context = reports.take()
        assert context["exception"] is error
        assert "get_buffer" in context["message"]
        b.close()

    run(loop, main())


@pytest.mark.parametrize("wrong", [b"read only", None, "text", 5])
def test_what_is_no_buffer_ends_the_connection(loop: Loop, reports: Reports, wrong: Any) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = BufferedRecorder(loop)
        near.buffer = wrong
        await over(loop, near, a)
        b.send(b"x")
        assert isinstance(await near.lost, TypeError | BufferError)
        assert len(reports.all) == 1
        b.close()

    run(loop, main())


def test_a_buffer_may_be_resized_when_it_is_not_lent(loop: Loop) -> None:
    class Growing(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> bytearray:
            self.buffer = bytearray(7)
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.buffer.extend(bytes(100_000))
            self.buffer.clear()

    async def main() -> None:
        a, b = tcp_pair()
        near = Growing(loop)
        await over(loop, near, a)
        b.send(pattern(100))
        assert await near.received(100) == pattern(100)
        await end(near)
        b.close()

    run(loop, main())


def test_a_new_buffer_each_time(loop: Loop) -> None:
    class Fresh(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> bytearray:
            gc.collect()
            self.buffer = bytearray(random.randrange(1, 5000))
            return self.buffer

    async def main() -> None:
        a, b = tcp_pair()
        near, far = Fresh(loop), Recorder(loop)
        await over(loop, near, a)
        await over(loop, far, b)
        far.transport.write(pattern(50_000))
        assert await near.received(50_000) == pattern(50_000)
        await end(near, far)

    run(loop, main())


def test_closing_or_aborting_in_get_buffer(loop: Loop) -> None:
    async def main() -> None:
        for way in ("close", "abort", "pause_reading"):
            a, b = tcp_pair()

            class Odd(BufferedRecorder):
                def get_buffer(self, sizehint: int, way: str = way) -> bytearray:
                    getattr(self.transport, way)()
                    return self.buffer

            near = Odd(loop)
            await over(loop, near, a)
            b.send(b"x")
            await asyncio.sleep(0.01)
            near.transport.abort()
            assert await near.lost is None
            assert near.calls[-1] == "lost"
            assert near.calls.count("lost") == 1
            b.close()

    run(loop, main())


# ---- Changing the protocol ----


@pytest.mark.parametrize("first", PROTOCOLS)
@pytest.mark.parametrize("second", PROTOCOLS)
def test_set_protocol_inside_of_data_received(
    loop: Loop, first: type[Recorder], second: type[Recorder]
) -> None:
    class Switching(first):  # type: ignore[misc, valid-type]
        def note_data(self, data: bytes) -> None:
            super().note_data(data)
            self.transport.set_protocol(after)

    after = second(loop)

    async def main() -> None:
        a, b = tcp_pair()
        near = Switching(loop)
        await over(loop, near, a)
        b.send(b"one")
        assert await near.received(3) == b"one"
        assert near.transport.get_protocol() is after
        b.send(b"two")
        assert await after.received(3) == b"two"
        assert near.calls == ["made", "data"]
        b.shutdown(socket.SHUT_WR)
        await after.lost
        assert after.calls == ["data", "eof", "lost"]
        assert near.calls == ["made", "data"]
        b.close()

    run(loop, main())


def test_set_protocol_outside_of_a_callback(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near, after = Recorder(loop), BufferedRecorder(loop)
        transport: Any = await over(loop, near, a)
        transport.set_protocol(after)
        b.send(b"two")
        assert await after.received(3) == b"two"
        transport.abort()
        await after.lost
        assert near.calls == ["made"]
        b.close()

    run(loop, main())


# ---- Writing ----


@pytest.mark.parametrize("size", [1, 100, 5000, 300_000])
@pytest.mark.parametrize("type_", [bytes, bytearray, memoryview])
def test_what_the_caller_does_to_its_buffer_after_write_does_not_matter(
    loop: Loop, kind: str, type_: type, size: int
) -> None:
    if kind == REFERENCE:
        return  # since Python 3.12 it keeps a view of the buffer, and sends what is there later

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        sent = b""
        for number in range(20):
            data = bytearray(pattern(size + number))
            sent += data
            near.transport.write(type_(data) if type_ is not bytearray else data)
            for i in range(0, len(data), 97):
                data[i] = 0
            if type_ is not memoryview:
                data.clear()  # it is not exported any more
        assert await far.received(len(sent)) == sent
        await end(near, far)

    run(loop, main())


def test_what_is_received_can_be_written_and_kept(loop: Loop) -> None:
    """An echo of the very object, and of slices of it, while the queue is full."""

    class Slices(Echo):
        def data_received(self, data: bytes) -> None:
            view = memoryview(data)
            self.transport.write(data[: len(data) // 3])
            self.transport.write(view[len(data) // 3 :])

    async def main() -> None:
        a, b = tcp_pair()
        far = Recorder(loop)
        echo = Slices()
        await over(loop, echo, a)
        await over(loop, far, b)
        far.transport.write(pattern(BIG))
        assert await far.received(BIG) == pattern(BIG)
        await end(far)
        await until(echo.transport.is_closing)
        await turns()

    run(loop, main())


def test_strided_and_typed_views(loop: Loop) -> None:
    import array

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        numbers = array.array("I", range(1000))
        near.transport.write(memoryview(numbers))
        assert await far.received(4000) == numbers.tobytes()
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("wrong", ["text", None, 5, [b"x"], object()])
def test_what_is_no_data_is_a_type_error(loop: Loop, wrong: Any) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        with pytest.raises(TypeError) as caught:
            near.transport.write(wrong)
        assert str(caught.value) == (
            f"data argument must be a bytes-like object, not '{type(wrong).__name__}'"
        )
        near.transport.write(b"goes on")
        assert await far.received(7) == b"goes on"
        await end(near, far)

    run(loop, main())


def test_writing_nothing(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        for nothing in (b"", bytearray(), memoryview(b"")):
            near.transport.write(nothing)
        near.transport.writelines([])
        near.transport.writelines([b"", b""])
        near.transport.write(b"x")
        assert await far.received(1) == b"x"
        await end(near, far)

    run(loop, main())


def test_writelines(loop: Loop, kind: str) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        lines = [pattern(i) for i in range(0, 3000, 7)]
        near.transport.writelines(lines)
        near.transport.writelines(iter([b"bytes", bytearray(b"bytearray"), memoryview(b"view")]))
        near.transport.writelines(line for line in (b"a", b"b"))
        whole = b"".join(lines) + b"bytesbytearrayviewab"
        assert await far.received(len(whole)) == whole
        for wrong in (5, None, [5], ["text"]) if kind != REFERENCE else ():
            with pytest.raises(TypeError):
                near.transport.writelines(wrong)
        await end(near, far)

    run(loop, main())


def test_bytes_that_are_written_are_let_go_of(loop: Loop) -> None:
    class Bytes(bytes):
        pass

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        data = Bytes(b"x" * 100)
        known = weakref.ref(data) if hasattr(data, "__weakref__") else lambda: None
        import sys

        whole = bytes(1000)
        before = sys.getrefcount(whole)
        for _ in range(100):
            near.transport.write(whole)
        near.transport.write(data)
        del data
        await far.received(100 * 1000 + 100)
        await turns()
        assert known() is None
        assert sys.getrefcount(whole) == before
        await end(near, far)

    run(loop, main())


def test_a_write_outside_of_a_run_is_sent_at_once(loop: Loop) -> None:
    a, b = tcp_pair()
    near = Recorder(loop)
    transport = run(loop, over(loop, near, a))
    transport.write(b"one")
    assert b.recv(100) == b"one"
    transport.write(bytearray(b"two"))
    assert b.recv(100) == b"two"
    run(loop, end(near))
    b.close()


def test_small_writes_arrive_in_order(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        for number in range(20_000):
            near.transport.write(b"%d," % number)
        whole = b"".join(b"%d," % number for number in range(20_000))
        assert await far.received(len(whole)) == whole
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("way", ["close", "abort"])
def test_writing_after_the_end_warns_after_a_while(
    loop: Loop, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        transport: Any = await over(loop, near, a)
        b.close()
        while not near.lost.done():
            transport.write(b"x")
            getattr(transport, way)()
            await turns()
        caplog.clear()
        for _ in range(20):
            transport.write(b"x")
        with pytest.raises(TypeError):
            transport.write(5)

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(loop, main())
    assert {r.message for r in caplog.records} == {"socket.send() raised exception."}
    assert 14 <= len(caplog.records) <= 20


# ---- Flow control ----


def test_water_marks_and_their_defaults(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await pair(loop, near, far)
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        for arguments, expected in [
            ({"high": 1000}, (250, 1000)),
            ({"low": 1000}, (1000, 4000)),
            ({"high": 1000, "low": 1000}, (1000, 1000)),
            ({"high": 0}, (0, 0)),
            ({"high": 1, "low": 0}, (0, 1)),
            ({}, (16 * 1024, 64 * 1024)),
        ]:
            assert transport.set_write_buffer_limits(**arguments) is None
            assert transport.get_write_buffer_limits() == expected
        transport.set_write_buffer_limits(100, 50)
        assert transport.get_write_buffer_limits() == (50, 100)
        for wrong in ({"high": 1, "low": 2}, {"high": -1}, {"low": -1}):
            with pytest.raises(ValueError, match="must be >= "):
                transport.set_write_buffer_limits(**wrong)
        assert transport.get_write_buffer_limits() == (50, 100)
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("high", [0, 1, 1000, None])
def test_a_full_queue_pauses_and_an_empty_one_resumes(loop: Loop, high: int | None) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near, far = Recorder(loop), Recorder(loop)
        await over(loop, near, a)
        await over(loop, far, b)
        far.transport.pause_reading()
        near.transport.set_write_buffer_limits(high)
        low, most = near.transport.get_write_buffer_limits()
        sent = 0
        while "pause" not in near.calls:
            near.transport.write(bytes(5000))
            sent += 5000
            await turns(1)
        assert near.transport.get_write_buffer_size() > most
        near.transport.write(bytes(BIG))
        sent += BIG
        assert near.calls == ["made", "pause"]
        far.transport.resume_reading()
        await until(lambda: "resume" in near.calls)
        assert near.calls == ["made", "pause", "resume"]
        assert near.transport.get_write_buffer_size() <= low
        await far.received(sent)
        assert near.transport.get_write_buffer_size() == 0
        await end(near, far)

    run(loop, main())


def test_what_fits_into_the_socket_is_no_backpressure(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        near.transport.set_write_buffer_limits(0)
        near.transport.write(b"x" * 1000)
        assert near.transport.get_write_buffer_size() == 0
        await far.received(1000)
        assert near.calls == ["made"]
        await end(near, far)

    run(loop, main())


def test_close_sends_what_is_queued_and_abort_does_not(loop: Loop) -> None:
    async def main() -> None:
        for way in ("close", "abort"):
            a, b = tcp_pair()
            near, far = Recorder(loop), Recorder(loop)
            await over(loop, near, a)
            await over(loop, far, b)
            near.transport.write(pattern(BIG))
            getattr(near.transport, way)()
            await near.lost
            await far.lost
            if way == "close":
                assert far.data == pattern(BIG)
            else:
                assert len(far.data) < BIG
                assert pattern(BIG).startswith(far.data)

    run(loop, main())


def test_a_protocol_may_write_a_last_time_when_its_queue_has_gone(loop: Loop) -> None:
    """It was told to pause, the transport was closed, and it is told to go on: TLS ends so."""

    class Late(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.write(b"the end")

    async def main() -> None:
        for way in ("close", "eof"):
            a, b = tcp_pair()
            near, far = Late(loop), Recorder(loop)
            await over(loop, near, a)
            await over(loop, far, b)
            far.transport.pause_reading()
            near.transport.write(pattern(BIG))
            assert near.calls == ["made", "pause"]
            if way == "close":
                near.transport.close()
                near.transport.write(b" late, but ")
            else:
                far.transport.write_eof()
                await near.ended
            assert near.transport.is_closing()
            await asyncio.sleep(0.001)
            far.transport.resume_reading()
            assert await near.lost is None
            await far.lost
            late = b" late, but " if way == "close" else b""
            assert far.data == pattern(BIG) + late + b"the end"
            assert near.calls == ["made", "pause"] + ["eof"] * (way == "eof") + ["resume", "lost"]

    run(loop, main())


def test_aborting_while_closing(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        far.transport.pause_reading()
        near.transport.write(bytes(BIG))
        near.transport.close()
        await turns(5)
        assert not near.lost.done()
        near.transport.abort()
        assert await near.lost is None
        assert near.calls == ["made", "pause", "lost"]
        far.transport.resume_reading()
        await far.lost

    run(loop, main())


def test_the_peer_goes_while_closing(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        await over(loop, near, a)
        near.transport.write(bytes(BIG))
        near.transport.close()
        await turns(5)
        reset(b)
        assert isinstance(await near.lost, ConnectionError)

    run(loop, main())


# ---- Half-close ----


def test_write_eof_leaves_the_other_direction_open(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop, keep_open=True)
        await pair(loop, near, far)
        assert near.transport.can_write_eof()
        near.transport.write(b"question")
        near.transport.write_eof()
        near.transport.write_eof()
        with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after write_eof\(\)"):
            near.transport.write(b"more")
        with pytest.raises(RuntimeError):
            near.transport.writelines([b"more"])
        await far.ended
        assert far.data == b"question"
        assert not far.transport.is_closing()
        far.transport.write(pattern(BIG))
        assert await near.received(BIG) == pattern(BIG)
        assert far.calls == ["made", "data", "eof"] + far.calls[3:]
        far.transport.close()
        assert await near.lost is None
        assert await far.lost is None
        assert near.calls[-2:] == ["eof", "lost"]

    run(loop, main())


def test_write_eof_waits_for_what_is_queued(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop, keep_open=True)
        await pair(loop, near, far)
        far.transport.pause_reading()
        near.transport.write(pattern(BIG))
        near.transport.write_eof()
        await asyncio.sleep(0.005)
        far.transport.resume_reading()
        await far.ended
        assert far.data == pattern(BIG)
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_eof_received_that_returns_false_closes(loop: Loop, protocol: type[Recorder]) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = protocol(loop)
        await over(loop, near, a)
        near.transport.write(b"last words")
        b.shutdown(socket.SHUT_WR)
        assert await near.lost is None
        assert near.calls == ["made", "eof", "lost"]
        assert b.makefile("rb").read() == b"last words"
        b.close()

    run(loop, main())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_eof_received_that_returns_true_is_called_once(
    loop: Loop, kind: str, protocol: type[Recorder]
) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = protocol(loop, keep_open=True)
        await over(loop, near, a)
        b.shutdown(socket.SHUT_WR)
        await near.ended
        await asyncio.sleep(0.005)
        if kind != REFERENCE:  # which reads the end again
            near.transport.pause_reading()
            near.transport.resume_reading()
            await asyncio.sleep(0.001)
        assert near.calls == ["made", "eof"]
        near.transport.write(b"an answer")
        near.transport.close()
        assert await near.lost is None
        assert b.makefile("rb").read() == b"an answer"
        b.close()

    run(loop, main())


def test_both_ends_end(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop, keep_open=True), Recorder(loop, keep_open=True)
        await pair(loop, near, far)
        near.transport.write_eof()
        far.transport.write_eof()
        await near.ended
        await far.ended
        assert not near.lost.done()
        near.transport.close()
        far.transport.close()
        assert await near.lost is None
        assert await far.lost is None

    run(loop, main())


# ---- Much ----


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_much_in_both_directions(loop: Loop, protocol: type[Recorder]) -> None:
    async def main() -> None:
        near, far = protocol(loop), protocol(loop)
        await pair(loop, near, far)
        for number in range(8):
            near.transport.write(pattern(BIG)[number << 20 : (number + 1) << 20])
        far.transport.write(pattern(BIG + 1))
        await far.received(BIG)
        await near.received(BIG + 1)
        assert hashlib.sha256(far.data).digest() == hashlib.sha256(pattern(BIG)).digest()
        assert hashlib.sha256(near.data).digest() == hashlib.sha256(pattern(BIG + 1)).digest()
        await end(near, far)

    run(loop, main())


def test_a_slow_reader_gets_everything(loop: Loop) -> None:
    class Slow(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            self.loop.call_soon(self.transport.resume_reading)

    async def main() -> None:
        near, far = Recorder(loop), Slow(loop)
        await pair(loop, near, far)
        near.transport.write(pattern(BIG))
        near.transport.close()
        await far.lost
        assert far.data == pattern(BIG)
        await near.lost

    run(loop, main())


def test_what_is_received_is_exactly_as_long_as_it_says(loop: Loop) -> None:
    """Large reads go straight into bytes objects: they must be whole, hashable, and its own."""

    class Keeping(Recorder):
        def data_received(self, data: bytes) -> None:
            assert type(data) is bytes
            pieces.append(data)
            super().data_received(data)

    pieces: list[bytes] = []

    async def main() -> None:
        near, far = Recorder(loop), Keeping(loop)
        await pair(loop, near, far)
        size = 0
        for length in (10, 100_000, 1, 300_000, 50, 2_000_000, 3):
            near.transport.write(pattern(length))
            size += length
            await far.received(size)
        assert b"".join(pieces) == bytes(far.data)
        assert far.data == b"".join(
            pattern(length) for length in (10, 100_000, 1, 300_000, 50, 2_000_000, 3)
        )
        assert len({hash(piece) for piece in pieces}) == len(set(pieces))
        await end(near, far)

    run(loop, main())


def test_a_thousand_connections_at_once(loop: Loop, kind: str) -> None:
    async def main() -> None:
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=1000)
        address = server.sockets[0].getsockname()
        clients = [Recorder(loop) for _ in range(count)]
        for at in range(0, count, 100):
            await asyncio.gather(
                *(
                    loop.create_connection(lambda c=client: c, *address)  # type: ignore[misc]
                    for client in clients[at : at + 100]
                )
            )
        for number, client in enumerate(clients):
            client.transport.write(b"%d" % number)
        for number, client in enumerate(clients):
            assert await client.received(len(b"%d" % number)) == b"%d" % number
        for client in clients:
            client.transport.close()
        for client in clients:
            assert await client.lost is None
        server.close()
        await server.wait_closed()

    # select() knows descriptors below 1024 only, and each connection has two
    count = 400 if kind == "select" else min(1000, limit_of_descriptors() // 2 - 50)
    run(loop, main())


def limit_of_descriptors() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# ---- The descriptor ----


def test_a_descriptor_in_use_is_refused(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        await pair(loop, near, far)
        sock = near.transport.get_extra_info("socket")
        for call in (loop.add_reader, loop.add_writer):
            for fd in (sock, sock.fileno()):
                with pytest.raises(RuntimeError, match="is used by transport"):
                    call(fd, print)
        for remove in (loop.remove_reader, loop.remove_writer):
            with pytest.raises(RuntimeError, match="is used by transport"):
                remove(sock)
        near.transport.write(b"still works")
        assert await far.received(11) == b"still works"
        await end(near, far)

    run(loop, main())


def test_a_socket_object_is_closed_with_its_transport(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        await over(loop, near, a)
        near.transport.close()
        await near.lost
        await turns()
        assert a.fileno() == -1
        b.close()

    run(loop, main())


def test_a_socket_whose_owner_closed_it_does_not_close_another(becket_loop: Loop) -> None:
    """The number may belong to somebody else by the time the transport ends."""

    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(becket_loop)
        await over(becket_loop, near, a)
        number = a.fileno()
        near.transport.pause_reading()
        a.close()
        other, end_ = os.pipe()
        assert number in (other, end_)
        near.transport.abort()
        await near.lost
        await turns()
        os.fstat(number)
        os.close(other)
        os.close(end_)
        b.close()

    run(becket_loop, main())


def test_connect_accepted_socket(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        near = Recorder(loop)
        transport, protocol = await loop.connect_accepted_socket(lambda: near, a)
        assert protocol is near
        assert near.transport is transport
        b.send(b"hello")
        assert await near.received(5) == b"hello"
        await end(near)
        b.close()
        with pytest.raises(ValueError, match="Stream Socket"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
                await loop.connect_accepted_socket(lambda: near, datagrams)

    run(loop, main())


# ---- Memory ----


@pytest.mark.parametrize("base", PROTOCOLS)
@pytest.mark.parametrize("way", ["close", "abort", "peer", "reset"])
def test_a_lost_connection_is_freed_without_the_collector(
    loop: Loop, kind: str, base: type[Recorder], way: str
) -> None:
    class Plain(asyncio.Protocol):
        """As a user's: it keeps its transport."""

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def connection_lost(self, exc: Exception | None) -> None:
            self.transport = None

    async def main() -> None:
        a, b = tcp_pair()
        protocol = Plain()
        transport = await over(loop, protocol, a)
        known = [weakref.ref(protocol), weakref.ref(transport)]
        gc.collect()
        gc.disable()
        try:
            if way in ("close", "abort"):
                getattr(transport, way)()
            elif way == "reset":
                reset(b)
            else:
                b.close()
            del protocol, transport
            await until(lambda: all(ref() is None for ref in known))
        finally:
            gc.enable()
        b.close()

    if kind != REFERENCE:  # asyncio's own leaves cycles in some of these
        run(loop, main())


def test_a_transport_that_was_not_closed_warns(loop: Loop) -> None:
    a, b = tcp_pair()
    near = Recorder(loop)
    run(loop, over(loop, near, a))
    near.transport.pause_reading()
    with pytest.warns(ResourceWarning, match="unclosed"):
        loop.close()
        near.transport = None
        del near
        gc.collect()
    a.close()
    b.close()


def test_objects_do_not_pile_up(becket_loop: Loop) -> None:
    async def once() -> None:
        near, far = Recorder(becket_loop), BufferedRecorder(becket_loop)
        await pair(becket_loop, near, far)
        near.transport.write(b"x")
        await far.received(1)
        near.transport.get_extra_info("socket")
        near.transport.close()
        await near.lost
        await far.lost

    async def count(times: int) -> int:
        for _ in range(times):
            await once()
        gc.collect()
        return len(gc.get_objects())

    before = run(becket_loop, count(20))
    assert run(becket_loop, count(500)) <= before + 10
