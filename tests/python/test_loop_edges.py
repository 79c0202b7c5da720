"""What programs lean on beyond the documentation of asyncio, on its loop and on ours."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import sys
import tempfile
from typing import Any

import pytest

from conftest import Certificates
from support import Echo, Loop, Recorder, no_more_than, pair, run, tcp_pair, turns
from test_tls import connect, end, note_names, serving

# ---- Transports ----


def test_transports_are_of_the_classes_of_asyncio(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await pair(loop, near, far)
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, asyncio.ReadTransport | asyncio.WriteTransport)
        a, b = os.pipe()
        reading, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(a, "rb", 0))
        writing, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(b, "wb", 0))
        assert isinstance(reading, asyncio.ReadTransport)
        assert isinstance(writing, asyncio.WriteTransport)
        datagrams, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        if sys.version_info >= (3, 12):  # in which asyncio's became one
            assert isinstance(datagrams, asyncio.DatagramTransport)
        process, _ = await loop.subprocess_exec(asyncio.SubprocessProtocol, "true")
        assert isinstance(process, asyncio.SubprocessTransport)
        await process._wait()  # type: ignore[attr-defined]
        for each in (reading, writing, datagrams, process):
            each.close()
        await end(near, far)
        await turns(5)

    run(loop, main())


def test_write_can_be_replaced_on_an_instance(loop: Loop) -> None:
    """Debuggers and tracers do; a StreamWriter goes by what is there."""

    async def main() -> None:
        a, b = tcp_pair()
        _, writer = await asyncio.open_connection(sock=a)
        transport: Any = writer.transport
        write, seen = transport.write, []

        def traced(data: bytes) -> None:
            seen.append(data)
            write(data.upper())

        transport.write = traced
        writer.write(b"hello")
        await writer.drain()
        b.setblocking(False)
        assert await loop.sock_recv(b, 10) == b"HELLO"
        assert seen == [b"hello"]
        del transport.write
        writer.write(b"plain")
        assert await loop.sock_recv(b, 10) == b"plain"
        writer.close()
        await writer.wait_closed()
        b.close()

    run(loop, main())


def test_the_socket_of_a_connection_that_came_in_does_not_block(loop: Loop) -> None:
    """Nor does a copy of it make the connection block."""

    async def main() -> None:
        far = Recorder(loop)
        server = await loop.create_server(lambda: far, "127.0.0.1", 0)
        near = Recorder(loop)
        await loop.create_connection(lambda: near, *server.sockets[0].getsockname())
        await far.made
        for recorder in (near, far):
            sock = recorder.transport.get_extra_info("socket")
            assert sock.gettimeout() == 0
            with sock.dup() as copy:
                assert not os.get_blocking(copy.fileno())
        await end(near, far)
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_a_descriptor_in_use_is_not_for_sock_calls(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await pair(loop, near, far)
        sock = transport.get_extra_info("socket")._sock
        calls: list[Any] = [
            loop.sock_recv(sock, 1),
            loop.sock_recv_into(sock, bytearray(1)),
            loop.sock_sendall(sock, b"x" * (10 << 20)),
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match="is used by transport"):
                await call
        await end(near, far)

    run(loop, main())


# ---- TLS ----


def test_the_contexts_of_tls_are_found(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        context = tls.server()
        server, port = await serving(loop, context)
        assert server._ssl_context is context
        near = Recorder(loop)
        client = tls.client()
        transport, _ = await loop.create_connection(
            lambda: near, "127.0.0.1", port, ssl=client, server_hostname="localhost"
        )
        assert transport.get_extra_info("sslcontext") is client
        if not hasattr(transport, "_ssl_protocol"):  # asyncio's has it there
            assert transport._sslcontext is client  # type: ignore[attr-defined]
        plain, _ = await pair(loop, one := Recorder(loop), two := Recorder(loop))
        assert not hasattr(plain, "_sslcontext")
        await end(near, one, two)
        server.close()
        await server.wait_closed()

    run(loop, main())


@pytest.mark.parametrize("check", [True, False])
def test_an_empty_server_hostname_is_none_at_all(
    loop: Loop, tls: Certificates, check: bool
) -> None:
    """No name is asked for, and none is checked, whatever the context says."""

    async def main() -> None:
        context = tls.server()
        names = note_names(context)
        server, port = await serving(loop, context)
        near = Recorder(loop)
        transport, _ = await loop.create_connection(
            lambda: near, "127.0.0.1", port,
            ssl=tls.client(check_hostname=check), server_hostname="",
        )  # fmt: skip
        assert names == [None]
        transport.close()
        await near.lost
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_sendfile_over_tls(loop: Loop, tls: Certificates) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await connect(loop, tls, near, far)
        far.transport.pause_reading()
        with tempfile.TemporaryFile() as file:
            file.truncate(10)
            size = 10 + 99_000
            while not near.calls.count("pause"):  # a protocol that has been told to wait
                transport.write(b"x" * 100_000)
                size += 100_000
            task = asyncio.create_task(loop.sendfile(transport, file))
            await turns(3)
            far.transport.resume_reading()
            assert await task == 10
            assert near.calls[-1] == "resume"
            file.seek(0)
            file.write(b"x" * 100_000)
            assert await loop.sendfile(transport, file, 1000) == 99_000
            with pytest.raises(RuntimeError, match="fallback is disabled and native sendfile"):
                await loop.sendfile(transport, file, fallback=False)
        assert len(await far.received(size)) == size
        await end(near, far)

    run(loop, main())


# ---- sendfile() without TLS ----


def test_a_file_is_sent_by_the_system(loop: Loop) -> None:
    """Without a way around it, after what was queued, and alone."""

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await pair(loop, near, far)
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * (4 << 20))
            transport.write(b"head" * 1_000_000)
            task = asyncio.create_task(loop.sendfile(transport, file, fallback=False))
            await turns(1)
            for data in (b"between", b""):
                with pytest.raises(RuntimeError, match="sendfile is in progress"):
                    transport.write(data)
            assert await task == 4 << 20
        transport.write(b"tail")
        size = 4_000_000 + (4 << 20) + 4
        data = await far.received(size)
        assert data == b"head" * 1_000_000 + b"x" * (4 << 20) + b"tail"
        assert transport.is_reading()
        await end(near, far)

    run(loop, main())


def test_what_is_no_file_is_not_sent_by_the_system(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await pair(loop, near, far)
        with open("/proc/self/status", "rb", 0) as file:
            with pytest.raises(ValueError, match="count must be a positive integer"):
                await loop.sendfile(transport, file, 0, -1)
        assert transport.is_reading()
        transport.write(b"goes on")
        assert await far.received(7) == b"goes on"
        await end(near, far)

    run(loop, main())


@pytest.mark.parametrize("way", ["close", "abort"])
def test_a_connection_that_ends_while_a_file_is_sent(becket_loop: Loop, way: str) -> None:
    """asyncio never answers then."""
    loop = becket_loop

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, other = await pair(loop, near, far)
        other.pause_reading()
        with tempfile.TemporaryFile() as file:
            file.truncate(50_000_000)
            task = asyncio.create_task(loop.sendfile(transport, file))
            await asyncio.sleep(0.01)
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                await loop.sendfile(transport, file)
            getattr(transport, way)()
            with pytest.raises(ConnectionError):
                await no_more_than(task)
        await near.lost
        await end(far)

    run(loop, main())


def test_a_sendfile_that_is_cancelled(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, other = await pair(loop, near, far)
        other.pause_reading()
        with tempfile.TemporaryFile() as file:
            file.truncate(50_000_000)
            task = asyncio.create_task(loop.sendfile(transport, file))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        other.resume_reading()
        await turns(3)
        transport.write(b"tail")
        transport.close()
        assert await near.lost is None
        await far.lost
        assert far.data.endswith(b"tail")

    run(loop, main())


# ---- Tasks, handles, contexts ----


def test_a_task_factory_gets_the_keywords_it_was_given(loop: Loop) -> None:
    """No more: factories are written for those that programs use."""
    seen: list[dict[str, Any]] = []

    def factory(of: Loop, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        seen.append(kwargs)
        return asyncio.Task(coroutine, loop=of, **kwargs)

    async def main() -> None:
        seen.clear()
        context = contextvars.copy_context()
        await loop.create_task(asyncio.sleep(0))
        await loop.create_task(asyncio.sleep(0), context=context)
        assert seen == [{}, {"context": context}]
        task = loop.create_task(asyncio.sleep(0), name="Ada")
        assert task.get_name() == "Ada"
        assert seen.pop() in ({}, {"name": "Ada"})  # before Python 3.13.3, it is set afterwards
        await task

    loop.set_task_factory(factory)  # type: ignore[arg-type]
    run(loop, main())


def test_handles_are_of_the_classes_of_asyncio(loop: Loop) -> None:
    soon, later = loop.call_soon(print), loop.call_later(1, print)
    assert isinstance(soon, asyncio.Handle)
    assert not isinstance(soon, asyncio.TimerHandle)
    assert isinstance(later, asyncio.TimerHandle)
    assert isinstance(later, asyncio.Handle)
    soon.cancel()
    later.cancel()


def test_callbacks_run_in_the_context_they_were_made_in(loop: Loop) -> None:
    """Those of protocols in that of whoever connected, or began to serve."""
    where = contextvars.ContextVar("where", default="nowhere")
    seen: list[str] = []

    class Noting(Recorder):
        def note(self) -> None:
            seen.append(where.get())

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.note()
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            self.note()
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            self.note()
            super().connection_lost(exc)

    async def main() -> None:
        where.set("serving")
        far = Noting(loop)
        server = await loop.create_server(lambda: far, "127.0.0.1", 0)
        where.set("elsewhere")
        near = Recorder(loop)
        await loop.create_connection(lambda: near, *server.sockets[0].getsockname())
        near.transport.write(b"x")
        await far.received(1)
        near.transport.close()
        await far.lost
        server.close()
        await server.wait_closed()
        assert seen == ["serving"] * 3

    run(loop, main())


if sys.version_info >= (3, 13):

    def test_a_run_by_hand(loop: Any) -> None:
        """Programs with a loop of their own, of windows, make turns by themselves."""
        calls: list[int] = []
        loop.call_soon(calls.append, 1)
        loop._run_forever_setup()
        try:
            loop._run_once()
            assert calls == [1]
            assert asyncio.get_running_loop() is loop
            loop.call_soon(loop.stop)
            loop.call_soon(calls.append, 2)
            loop._run_once()
            assert calls == [1, 2]
            assert loop._stopping
        finally:
            loop._run_forever_cleanup()
        loop.call_soon(calls.append, 3)
        loop.call_later(0.001, loop.stop)
        loop.run_forever()  # the stop() above counts no more
        assert calls == [1, 2, 3]


def test_debug_mode_tells_which_callback_made_the_trouble(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it was scheduled, in what is logged."""
    loop.set_debug(True)
    loop.set_exception_handler(None)

    def troubling() -> None:
        assert loop._current_handle is not None  # type: ignore[attr-defined]
        loop.call_exception_handler({"message": "Trouble"})

    loop.call_soon(troubling)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert loop._current_handle is None  # type: ignore[attr-defined]
    assert "Trouble" in caplog.text
    assert "Handle created at" in caplog.text
    assert "loop.call_soon(troubling)" in caplog.text


# ---- Servers ----


def test_the_sockets_of_a_server(loop: Loop) -> None:
    async def main() -> None:
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        assert isinstance(server, asyncio.AbstractServer)
        assert len(server.sockets) == 1
        assert isinstance(server.sockets, tuple)
        address = server.sockets[0].getsockname()
        server.close()
        assert server.sockets == ()
        assert not server.is_serving()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(asyncio.Protocol, *address)

    run(loop, main())


# ---- Words ----


def test_errors_read_as_those_of_asyncio(loop: Loop) -> None:
    """Tests of programs match them."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = taken.getsockname()
            with pytest.raises(OSError, match=r"error while attempting to bind on address \('127"):
                await loop.create_server(Echo, *address)
        with pytest.raises(OSError, match=r"Connect call failed \('127\.0\.0\.1', \d+\)"):
            await loop.create_connection(asyncio.Protocol, *address)
        with pytest.raises(ValueError, match="host and port was not specified and no sock"):
            await loop.create_connection(asyncio.Protocol)
        a, b = tcp_pair()
        with a, b, pytest.raises(ValueError, match="You must set server_hostname when using ssl"):
            await loop.create_connection(asyncio.Protocol, ssl=True, sock=a)
        with pytest.raises(ValueError, match="server_hostname is only meaningful with ssl"):
            await loop.create_connection(asyncio.Protocol, "h", 1, server_hostname="h")
        with pytest.raises(ValueError, match="Neither host/port nor sock were specified"):
            await loop.create_server(Echo)
        with pytest.raises(TypeError, match="ssl argument must be an SSLContext or None"):
            await loop.create_server(Echo, "127.0.0.1", 0, ssl=True)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="This event loop is already running"):
            loop.run_until_complete(loop.create_future())
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop.close()
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await pair(loop, near, far)
        with pytest.raises(TypeError, match="data argument must be a bytes-like object, not 'str'"):
            transport.write("text")
        transport.write_eof()
        with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after write_eof\(\)"):
            transport.write(b"x")
        writelines = "writelines" if sys.version_info >= (3, 12) else "write"
        with pytest.raises(RuntimeError, match=rf"Cannot call {writelines}\(\) after write_eof"):
            transport.writelines([])
        with pytest.raises(ValueError, match=r"high \(-1\) must be >= low \(-1\) must be >= 0"):
            transport.set_write_buffer_limits(-1)
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
            loop.add_reader(-1, print)
        with pytest.raises(ValueError, match="Invalid file object: 'text'"):
            loop.add_reader("text", print)  # type: ignore[arg-type]
        await end(near, far)

    run(loop, main())
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.call_soon(print)


def test_a_run_within_a_run_changes_nothing(becket_loop: Loop) -> None:
    """In 3.13.0, asyncio's takes the loop for one that has ended."""
    loop = becket_loop

    async def main() -> None:
        with pytest.raises(RuntimeError, match="This event loop is already running"):
            loop.run_forever()
        assert asyncio.get_running_loop() is loop
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop.close()

    run(loop, main())
