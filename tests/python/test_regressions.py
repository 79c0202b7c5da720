"""What was wrong once in the extension, a test for each: most crashed, leaked or hung.

Where asyncio has the same feature, its own loop runs the same test.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import becket
from conftest import make_loop
from support import Loop, Recorder, Reports, over, pair, run, turns, until

MUCH = 10_000_000

Connected = tuple[Any, socket.socket]


async def connected(loop: Loop, protocol: asyncio.BaseProtocol) -> Connected:
    """A transport, and the socket at its other end."""
    near, far = socket.socketpair()
    return await over(loop, protocol, near), far


# ---- Protocols that do what nobody expects of them ----


def test_pause_writing_within_data_received(loop: Loop) -> None:
    """Both run in the connection's context, which cannot be entered twice."""

    class Answers(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.write(bytes(MUCH))
            self.calls.append("wrote")

    async def main() -> None:
        answers, asks = Answers(loop), Recorder(loop)
        _, far = await pair(loop, answers, asks)
        far.write(b"?")
        assert len(await asks.received(MUCH)) == MUCH
        far.close()
        assert await answers.lost is None
        assert answers.calls == ["made", "data", "pause", "wrote", "resume", "eof", "lost"]

    run(loop, main())


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError, BrokenPipeError])
def test_oserror_of_a_protocol_is_not_reported(loop: Loop, error: type[OSError]) -> None:
    """It counts as a broken connection: connection_lost() is given it, and nobody else."""
    raised = error("of the protocol")

    class Raises(Recorder):
        def data_received(self, data: bytes) -> None:
            raise raised

    async def main() -> None:
        protocol = Raises(loop)
        transport, far = await connected(loop, protocol)
        with far:
            far.send(b"x")
            assert await protocol.lost is raised
            assert transport.is_closing()

    run(loop, main())


def test_another_exception_of_a_protocol_is_reported(loop: Loop, reports: Reports) -> None:
    class Raises(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ValueError("of the protocol")

    async def main() -> None:
        protocol = Raises(loop)
        _, far = await connected(loop, protocol)
        with far:
            far.send(b"x")
            lost = await protocol.lost
        report = reports.take()
        assert report["message"] == "Fatal error: protocol.data_received() call failed."
        assert report["exception"] is lost
        assert report["protocol"] is protocol
        assert isinstance(lost, ValueError)

    run(loop, main())
    gc.collect()


def test_close_after_keyboardinterrupt_in_data_received(kind: str, no_leaks: None) -> None:
    """What the exception broke off must not keep the loop from ending."""
    loop = make_loop(kind)
    protocols = []

    class Interrupted(Recorder):
        def data_received(self, data: bytes) -> None:
            raise KeyboardInterrupt

    async def main() -> None:
        protocols.append(Interrupted(loop))
        _, far = await connected(loop, protocols[0])
        with far:
            far.send(b"x")
            await loop.create_future()

    task = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    protocols[0].transport.abort()
    loop.run_until_complete(turns(5))
    assert protocols[0].calls[0] == "made"
    assert protocols[0].calls[-1] == "lost"
    loop.close()
    del task
    protocols.clear()
    gc.collect()


def test_close_at_once_after_keyboardinterrupt(no_leaks: None) -> None:
    """Without another turn: closing the loop is all that ends the connection."""
    for notifier in becket.notifiers:
        program = (
            "import asyncio, becket, socket\n"
            "class P(asyncio.Protocol):\n"
            "    def data_received(self, data): raise KeyboardInterrupt\n"
            f"loop = becket.EventLoop({notifier!r})\n"
            "near, far = socket.socketpair()\n"
            "async def main():\n"
            "    await loop.create_connection(P, sock=near)\n"
            "    far.send(b'x')\n"
            "    await asyncio.sleep(20)\n"
            "try: loop.run_until_complete(main())\n"
            "except KeyboardInterrupt: print('interrupted', flush=True)\n"
            "loop.close()\n"
            "print('closed')\n"
        )
        done = run_python(program)
        assert done.stdout.split() == ["interrupted", "closed"], done.stderr
        assert done.returncode == 0


def run_python(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, for what may end in a crash; it finds what this one has found."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | environ
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- The ends of connections keep their place ----


class EndRecorder(asyncio.Protocol):
    """Writes the end of a connection into a list that others write to as well."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.log.append("lost")


class ClosingRecorder(EndRecorder):
    """Closes when something comes, between two other calls."""

    def data_received(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self.log.append, "before")
        self.transport.close()
        loop.call_soon(self.log.append, "after")


def test_connection_lost_is_called_in_its_place(loop: Loop) -> None:
    async def main() -> None:
        log: list[str] = []
        transport, far = await connected(loop, EndRecorder(log))
        loop.call_soon(log.append, "before")
        transport.close()
        loop.call_soon(log.append, "after")
        await until(lambda: len(log) == 3)
        far.close()
        assert log == ["before", "lost", "after"]
        log.clear()
        _, far = await connected(loop, ClosingRecorder(log))
        far.send(b"x")
        await until(lambda: len(log) == 3)
        far.close()
        assert log == ["before", "lost", "after"]

    run(loop, main())


def test_a_timer_that_is_due_comes_after_what_is_ready(loop: Loop) -> None:
    async def main() -> None:
        log: list[str] = []
        loop.call_later(0, log.append, "timer")
        loop.call_soon(log.append, "soon")
        loop.call_later(0, log.append, "timer")
        loop.call_soon(log.append, "soon")
        await until(lambda: len(log) == 4)
        assert log == ["soon", "soon", "timer", "timer"]

    run(loop, main())


# ---- Callables and descriptors that interfere ----


def test_the_server_is_closed_by_its_own_factory(becket_loop: Loop) -> None:
    """The listener was freed while it accepted. asyncio's own loop loses such a connection."""
    loop = becket_loop

    async def main() -> None:
        servers: list[Any] = []
        protocols = []

        def factory() -> Recorder:
            servers.pop().close()
            gc.collect()
            protocols.append(Recorder(loop))
            return protocols[0]

        servers.append(await loop.create_server(factory, "127.0.0.1", 0))
        address = servers[0].sockets[0].getsockname()
        client = Recorder(loop)
        await loop.create_connection(lambda: client, *address)
        await until(lambda: protocols)
        await protocols[0].made
        client.transport.write(b"served")
        assert await protocols[0].received(6) == b"served"
        client.transport.close()
        await client.lost
        await protocols[0].lost

    run(loop, main())


def test_a_protocol_that_hides_its_class(becket_loop: becket.EventLoop) -> None:
    """isinstance() looks at __class__ too; what that raises ends the new connection alone.

    asyncio's own loop forgets to close its socket.
    """
    loop, reports = becket_loop, Reports(becket_loop, expected=True)

    class Hidden(asyncio.Protocol):
        @property
        def __class__(self) -> Any:
            raise ZeroDivisionError

        @__class__.setter
        def __class__(self, value: object) -> None: ...

    async def main() -> None:
        server = await loop.create_server(Hidden, "127.0.0.1", 0)
        client = Recorder(loop)
        await loop.create_connection(lambda: client, *server.sockets[0].getsockname())
        await client.lost
        server.close()
        report = reports.take()
        assert isinstance(report["exception"], ZeroDivisionError)
        transport = report["transport"]  # which can still be looked at
        assert "closed" in repr(transport)
        assert transport.is_closing()
        assert transport.get_write_buffer_size() == 0
        transport.write(b"to nobody")
        transport.close()
        await turns()

    run(loop, main())
    gc.collect()


class Closes:
    """A descriptor whose number costs the loop its life."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self.loop = loop
        self.fd = fd

    def fileno(self) -> int:
        self.loop.close()
        return self.fd


USES: dict[str, Callable[[Any, Any], object]] = {
    "add_reader": lambda loop, file: loop._add_reader(file, print),
    "add_writer": lambda loop, file: loop._add_writer(file, print),
    "remove_reader": lambda loop, file: loop._remove_reader(file),
    "remove_writer": lambda loop, file: loop._remove_writer(file),
    "pipe transport": lambda loop, file: loop._new_pipe_transport(file, asyncio.Protocol(), False),
}


@pytest.mark.parametrize("use", USES)
def test_fileno_closes_the_loop(becket_loop: Loop, use: str) -> None:
    readable, writable = os.pipe()
    try:
        with contextlib.suppress(RuntimeError):
            result = USES[use](becket_loop, Closes(becket_loop, readable))
            assert not result or use == "pipe transport", "nothing is watched by a closed loop"
        assert becket_loop.is_closed()
    finally:
        os.close(writable)
        with contextlib.suppress(OSError):  # a transport may have closed it
            os.close(readable)


def test_a_handle_of_a_closed_loop_in_debug_mode(kind: str, no_leaks: None) -> None:
    """It is timed by a clock that the loop took with it; it does not run, or runs untimed."""
    called: list[int] = []
    loop = make_loop(kind)
    loop.set_debug(True)
    handle: Any = loop.call_soon(called.append, 1)
    loop.close()
    handle._run()
    handle.cancel()
    assert called in ([1], [])


# ---- Memory ----


class Collects:
    """A callable whose end sets the collector to work."""

    def __call__(self) -> None: ...

    def __del__(self) -> None:
        gc.collect()


def test_the_collector_runs_while_the_loop_is_closed(kind: str, no_leaks: None) -> None:
    """It visits a ready queue, and a heap of timers, that are half gone."""
    loop = make_loop(kind)
    dropped = []
    for number in range(50):
        for call in (Collects(), Collects()):
            dropped.append(weakref.ref(call))
        loop.call_soon(call)
        loop.call_later(1000 + number, call)
    del call
    loop.close()
    gc.collect()
    assert [r() for r in dropped if r() is not None] == []


def test_the_collector_visits_no_handle_that_is_gone() -> None:
    """So many that their memory is really freed, and allocators that make it unreadable then."""
    done = run_python(
        "import becket, gc\n"
        "class Collects:\n"
        "    def __call__(self): pass\n"
        "    def __del__(self): gc.collect()\n"
        "loop = becket.EventLoop()\n"
        "gc.disable()\n"
        "for number in range(4000):\n"
        "    loop.call_soon(Collects() if number % 200 == 0 else lambda: None)\n"
        "    loop.call_later(1000 + number, Collects() if number % 200 == 0 else lambda: None)\n"
        "loop.close()\n"
        "print('closed')\n",
        PYTHONMALLOC="debug",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["closed"]


class Cancels:
    """A callable whose end cancels others."""

    def __init__(self, others: list[asyncio.TimerHandle]) -> None:
        self.others = others

    def __call__(self) -> None: ...

    def __del__(self) -> None:
        for other in self.others:
            other.cancel()
        self.others.clear()


def test_timers_are_cancelled_while_the_loop_is_closed(kind: str, no_leaks: None) -> None:
    """At some number of them the heap closes its gaps while it is being emptied."""

    def callback() -> Callable[[], None]:
        call: Callable[[], None] = lambda: None  # noqa: E731
        dropped.append(weakref.ref(call))
        return call

    for cancelled in range(150, 200):
        dropped: list[weakref.ref[Callable[[], None]]] = []
        loop = make_loop(kind)
        others: list[asyncio.TimerHandle] = []
        loop.call_later(5, Cancels(others))
        others += [loop.call_later(10 + number, callback()) for number in range(cancelled)]
        for number in range(350 - cancelled):
            loop.call_later(1000 + number, callback())
        loop.close()
        gc.collect()
        assert others == []
        assert [r for r in dropped if r() is not None] == [], cancelled


@pytest.mark.parametrize("waits", [False, True], ids=["", "wait_closed"])
@pytest.mark.parametrize("close", [False, True], ids=["unclosed", "closed"])
def test_a_loop_with_an_open_connection_is_collected(kind: str, close: bool, waits: bool) -> None:
    """Closed or not: the connection is no reason to live, and warns that nobody ended it."""

    def leave() -> weakref.ref[Any]:
        loop: Any = make_loop(kind)

        async def main() -> None:
            server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            loop.kept = [server, await asyncio.open_connection(*address)]
            await turns(10)
            if waits:
                server.close()
                loop.kept.append(asyncio.ensure_future(server.wait_closed()))
                await turns()

        loop.set_exception_handler(lambda loop, context: None)  # a task is destroyed
        loop.run_until_complete(main())
        if close:
            loop.close()
        return weakref.ref(loop)

    told: list[type[Warning]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # A record of them would keep what they are about.
        warnings.showwarning = lambda message, category, *rest: told.append(category)
        left = leave()
        gc.collect()
        gc.collect()
        assert left() is None
    assert set(told) == {ResourceWarning}


@pytest.mark.parametrize("keep", ["nothing", "bytes", "views", "every other"])
def test_messages_that_are_kept_stay_as_they_were(loop: Loop, keep: str) -> None:
    """The memory of one that nobody keeps is used for the next: contents, size and hash are new."""
    sizes = [1000, 1000, 990, 760, 1000, 1, 700, 1001, 20_000, 19_000, 20_000]
    messages = [bytes([65 + number]) * size for number, size in enumerate(sizes)]

    class Keeps(Recorder):
        hashes: ClassVar[list[int]] = []
        kept: ClassVar[dict[int, Any]] = {}

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            number = len(self.hashes)
            assert len(data) == sizes[number]
            self.hashes.append(hash(data))
            if keep == "views":
                self.kept[number] = memoryview(data)[1:]
            elif keep == "bytes" or (keep == "every other" and number % 2):
                self.kept[number] = data
            self.transport.write(data)

    async def main() -> None:
        keeps, asks = Keeps(loop), Recorder(loop)
        _, far = await pair(loop, keeps, asks)
        for number, message in enumerate(messages):
            far.write(message)
            received = await asks.received(sum(sizes[: number + 1]))
            assert received[-len(message) :] == message
        assert keeps.hashes == [hash(message) for message in messages]
        for number, kept in keeps.kept.items():
            assert kept == messages[number][1 if keep == "views" else 0 :]
        few = {"nothing": 0, "every other": len(sizes) // 2}
        assert len(keeps.kept) == few.get(keep, len(sizes))
        far.close()
        await keeps.lost

    run(loop, main())


# ---- Memory lent by types of their own ----


class Lent(array.array):  # type: ignore[type-arg]
    """A buffer of every version of Python, whose only reference get_buffer() gives away."""


def lend_array() -> Any:
    return Lent("B", bytes(5000))


def lend_view() -> Any:
    return memoryview(bytearray(5000))


def lend_by_method() -> Any:
    class Lender:
        def __len__(self) -> int:  # asyncio's own loop asks for it
            return 5000

        def __buffer__(self, flags: int) -> memoryview:
            return memoryview(bytearray(5000))

    return Lender()


# Python knows __buffer__() from 3.12 on.
LENDERS = [lend_array, lend_view, *([lend_by_method] if sys.version_info >= (3, 12) else [])]


@pytest.mark.parametrize("lend", LENDERS)
def test_a_buffer_that_nobody_keeps(loop: Loop, lend: Callable[[], Any]) -> None:
    """get_buffer() returns what nothing else refers to: it must live while it is read into."""

    class Borrows(Recorder, asyncio.BufferedProtocol):  # type: ignore[misc]
        total = 0

        def get_buffer(self, sizehint: int) -> Any:
            return lend()

        def buffer_updated(self, nbytes: int) -> None:
            gc.collect()
            self.total += nbytes

    async def main() -> None:
        protocol = Borrows(loop)
        transport, far = await connected(loop, protocol)
        with far:
            for size in (4000, 5000, 1, 20000):
                before = protocol.total
                far.send(bytes(size))
                await until(lambda: protocol.total == before + size)
        assert await protocol.lost is None
        assert transport.is_closing()

    run(loop, main())


# ---- sendfile() ----


def test_sendfile_begins_at_its_offset(loop: Loop) -> None:
    """Not where the file happens to stand; what was written before goes first."""
    content = os.urandom(500_000)

    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, _ = await pair(loop, near, far)
        with tempfile.TemporaryFile() as file:
            file.write(content)  # and so it stands at its end
            transport.write(b"head")
            assert await loop.sendfile(transport, file) == len(content)
            assert await loop.sendfile(transport, file, 1000, 50) == 50
            assert file.tell() == 1050
        assert transport.get_protocol() is near
        assert transport.is_reading()
        transport.write(b"tail")
        want = b"head" + content + content[1000:1050] + b"tail"
        assert await far.received(len(want)) == want
        transport.close()
        await near.lost
        await far.lost

    run(loop, main())


def test_sendfile_to_a_peer_that_goes_away(loop: Loop) -> None:
    async def main() -> None:
        near, far = Recorder(loop), Recorder(loop)
        transport, other = await pair(loop, near, far)
        other.pause_reading()
        with tempfile.TemporaryFile() as file:
            file.truncate(50_000_000)
            task = asyncio.create_task(loop.sendfile(transport, file))
            await turns(5)
            other.abort()
            with pytest.raises(ConnectionError):
                await task
        transport.close()
        await near.lost
        await far.lost

    run(loop, main())


# ---- Subinterpreters ----

# The module has had two names, and neither is promised.
INTERPRETERS = [
    name
    for name in ("_interpreters", "_xxsubinterpreters")
    if importlib.util.find_spec(name) is not None
]

SERVES = f"""
import sys
sys.path[:0] = {[p for p in sys.path if p]!r}
import asyncio, becket

async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    server.close()
    print("served", flush=True)

becket.run(main())
"""


@pytest.mark.parametrize("module", INTERPRETERS)
def test_a_loop_in_a_subinterpreter(module: str, tmp_path: Path) -> None:
    """Signals are not for it, nor may it ask for their wake."""
    script = tmp_path / "serves.py"
    script.write_text(SERVES)
    done = run_python(
        f"import os, {module} as interpreters\n"
        "for _ in range(2):\n"
        "    own = interpreters.create()\n"
        f"    error = interpreters.run_string(own, open({str(script)!r}).read())\n"
        "    assert error is None, error\n"
        "    interpreters.destroy(own)\n"
        "print('over', flush=True)\n"
        "os._exit(0)\n"
    )  # Python 3.12 crashes at its end, once asyncio was in a subinterpreter
    assert done.stdout.split() == ["served", "served", "over"], done.stderr
    assert done.returncode == 0, done.stderr
