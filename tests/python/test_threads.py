"""Several loops in several threads at once, and what several threads may use of one: the calls they
bring to a loop, a Connection, Servers. What is to hold without the GIL too is compiled for that."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import shutil
import ssl
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import becket
from conftest import Certificates
from interop.mail import see_to
from test_connection import PATIENCE, Background, connected, echo_until_end, options, serving_tls

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.usefixtures("no_leaks")


# ---- Loops ----


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def converse(port: int, context: ssl.SSLContext | None) -> None:
    name = "localhost" if context is not None else None
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name
    )
    for size in (1, 100, 5000, 70000):
        writer.write(b"x" * size)
        assert await reader.readexactly(size) == b"x" * size
    writer.close()
    await writer.wait_closed()


async def ticks(count: int) -> None:
    loop = asyncio.get_running_loop()
    last = loop.time()
    for _ in range(count):
        future = loop.create_future()
        loop.call_later(0.001, future.set_result, None)
        await future
        last, before = loop.time(), last
        assert last >= before + 0.001
    assert await loop.run_in_executor(None, threading.get_ident) != threading.get_ident()


async def all_at_once(server: ssl.SSLContext, client: ssl.SSLContext, started: Any) -> None:
    async with (
        await asyncio.start_server(echo, "127.0.0.1", 0) as plain,
        await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server) as secure,
    ):
        started.wait(PATIENCE)
        await asyncio.gather(
            *(converse(plain.sockets[0].getsockname()[1], None) for _ in range(10)),
            *(converse(secure.sockets[0].getsockname()[1], client) for _ in range(5)),
            *(ticks(20) for _ in range(3)),
        )


def test_several_loops_in_several_threads(tls: Certificates) -> None:
    """Servers, clients, timers, executors, TLS; the contexts are everybody's."""
    server, client = tls.server(), tls.client()
    kinds = [*becket.notifiers] * 2
    started = threading.Barrier(len(kinds))

    def run(notifier: str) -> None:
        with asyncio.Runner(loop_factory=lambda: becket.EventLoop(notifier)) as runner:
            runner.run(all_at_once(server, client, started))

    for work in [Background(run, kind) for kind in kinds]:
        work.take()


class Token:
    """What a call brings with it: none is to be left when its loop is closed."""


def call_until_closed(loops: list[becket.EventLoop]) -> None:
    """Bring calls to them until each is closed."""
    left = set(loops)
    while left:
        for loop in list(left):
            try:
                loop.call_soon_threadsafe(id, Token())
            except RuntimeError as error:
                assert str(error) == "Event loop is closed"
                left.remove(loop)


@pytest.mark.parametrize("notifier", becket.notifiers)
def test_calls_of_many_threads_into_many_loops(notifier: str) -> None:
    """Each loop waits for nothing but these calls, so that a wake that is lost is noticed; and is
    closed while they go on coming."""
    callers, each = 4, 300
    loops = [becket.EventLoop(notifier) for _ in range(3)]
    calls: dict[becket.EventLoop, list[tuple[int, int]]] = {loop: [] for loop in loops}

    def arrive(loop: becket.EventLoop, caller: int, number: int) -> None:
        calls[loop].append((caller, number))
        if len(calls[loop]) == callers * each:
            loop.stop()

    def call(caller: int) -> None:
        for number in range(each):
            for loop in loops:
                loop.call_soon_threadsafe(arrive, loop, caller, number)
        call_until_closed(loops)

    def run(loop: becket.EventLoop) -> None:
        loop.run_forever()
        loop.close()

    works = [Background(run, loop) for loop in loops]
    works += [Background(call, caller) for caller in range(callers)]
    for work in works:
        work.take()
    for got in calls.values():
        for caller in range(callers):
            assert [n for c, n in got if c == caller] == list(range(each))
    del work, works
    gc.collect()
    assert [o for o in gc.get_objects() if isinstance(o, Token)] == []


def test_calls_of_its_own_thread_keep_their_order() -> None:
    """Whether they are made safe for threads or not, and before the loop runs or later."""
    with contextlib.closing(becket.EventLoop()) as loop:
        calls: list[int] = []
        for i in range(6):
            (loop.call_soon_threadsafe if i % 2 else loop.call_soon)(calls.append, i)

        def more() -> None:
            for i in range(6, 12):
                (loop.call_soon if i % 2 else loop.call_soon_threadsafe)(calls.append, i)
            loop.call_soon_threadsafe(loop.stop)

        loop.call_soon(more)
        loop.run_forever()
        assert calls == list(range(12))


# ---- A connection ----


class Talk:
    """A connection that is used by three threads until it ends: one sends, as long as what it has
    sent comes back; one receives; one asks what is known of it."""

    def __init__(self, near: becket.Connection) -> None:
        self.near = near
        self.under_way = threading.Event()
        self._may_send = threading.Semaphore(4)
        self._works = [Background(w) for w in (self._send, self._receive, self._ask)]

    def _send(self) -> None:
        while self._may_send.acquire(timeout=PATIENCE):
            self.near.sendall(b"x" * 999 + b"\n")
        raise AssertionError("nothing ended it")

    def _receive(self) -> None:
        try:
            while True:
                assert self.near.readexactly(1000)[-1:] == b"\n"
                self.under_way.set()
                self._may_send.release()
        except EOFError:  # the other thread's end came before anybody looked
            pass
        finally:
            self._may_send.release(8)

    def _ask(self) -> None:
        while not self.near._closed:
            assert self.near.get_extra_info("nothing", 7) == 7
            self.near.get_extra_info("cipher")
            self.near.get_extra_info("peername")
            assert "Connection" in repr(self.near)

    def take(self) -> None:
        """Each thread has ended, in one of the ways that there are."""
        for work in self._works:
            try:
                work.take()
            except OSError as error:
                assert error.errno in (errno.EBADF, errno.EPIPE), error


@contextlib.contextmanager
def echoing(engine: str | None, tls: Certificates, *, waits: bool) -> Iterator[Any]:
    """A connection whose other end says back what is said."""
    if engine is None:
        with connected() as (near, far):
            near.settimeout(None if waits else PATIENCE)
            work = Background(echo_until_end, far)
            yield near
            with contextlib.suppress(OSError):
                work.take()
        return

    def talk(secure: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):  # the end is not always in good order
            echo_until_end(secure)

    query = options(tls, see_to(engine))
    with (
        serving_tls(tls.server(), talk) as (port, _),
        becket.connect(f"tls://127.0.0.1:{port}?{query}", timeout=PATIENCE) as near,
    ):
        near.settimeout(None if waits else PATIENCE)
        yield near


ENDS: dict[str, list[Callable[[becket.Connection], None]]] = {
    "close": [becket.Connection.close],
    "abort": [becket.Connection.abort],
    "all": [becket.Connection.close, becket.Connection.close, becket.Connection.abort],
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("engine", [None, "openssl", "pyopenssl", "tlslite"])
def test_a_connection_in_use_is_ended_by_others(
    engine: str | None, waits: bool, end: str, tls: Certificates
) -> None:
    for _ in range(5):
        with echoing(engine, tls, waits=waits) as near:
            talk = Talk(near)
            assert talk.under_way.wait(PATIENCE)
            together = threading.Barrier(len(ENDS[end]))

            def finish(
                how: Callable[[becket.Connection], None],
                near: becket.Connection = near,
                together: threading.Barrier = together,
            ) -> None:
                together.wait(PATIENCE)
                how(near)

            for work in [Background(finish, how) for how in ENDS[end]]:
                work.take()
            talk.take()
            assert near.fileno() == -1
            assert near._loop is None or near._loop.is_closed()


def test_files_of_a_connection_are_closed_by_many_threads() -> None:
    for _ in range(20):
        with connected() as (near, far):
            files = [near.makefile("rb") for _ in range(8)]
            near.close()
            assert not near._closed
            for work in [Background(file.close) for file in files]:
                work.take()
            assert near._closed
            assert far.recv(1) == b""


# ---- Servers ----


def answer(connection: becket.Connection) -> None:
    for line in connection:
        connection.sendall(line)


def ask_and_stop(driver: str, times: int) -> None:
    for _ in range(times):
        with becket.Server(answer, "tcp://127.0.0.1:0", driver=driver, drain=5) as server:
            for _ in range(3):
                with becket.connect(server.endpoints[0], timeout=PATIENCE) as near:
                    near.sendall(b"hello\n")
                    assert near.readline() == b"hello\n"
            assert server.stats["accepted"] == 3


def test_servers_in_several_threads() -> None:
    """Each driver that runs in one process, twice; started and stopped over and over, beside a
    server that others use all the while."""
    with becket.Server(answer, "tcp://127.0.0.1:0", driver="threads:3", drain=5) as busy:
        over = threading.Event()

        def use() -> None:
            while not over.is_set():
                with becket.connect(busy.endpoints[0], timeout=PATIENCE) as near:
                    near.sendall(b"hello\n")
                    assert near.readline() == b"hello\n"

        users = [Background(use) for _ in range(4)]
        works = [
            Background(ask_and_stop, driver, 5)
            for driver in ("loop", "loops:2", "threads:2")
            for _ in range(2)
        ]
        for work in works:
            work.take()
        over.set()
        for user in users:
            user.take()
        stats = busy.stats
    assert stats["accepted"] > 0
    assert stats["refused"] == 0


# ---- Without the GIL ----

if sys.version_info >= (3, 13):  # before, Python's headers have nothing for it

    @pytest.mark.parametrize("source", sorted((ROOT / "python/_becket").glob("*.c")), ids=str)
    def test_the_extension_compiles_for_free_threading(source: Path) -> None:
        """It shows that what is written for an interpreter without the GIL is C that Python's
        headers take; not that it is right: nothing of it runs here."""
        compiler = shutil.which("cc")
        assert compiler is not None, "the package was built by one"
        command = [
            compiler, "-std=c11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror",
            "-Wno-unused-parameter", "-Wno-missing-field-initializers", "-D_GNU_SOURCE=",
            "-DPy_GIL_DISABLED=1", f"-I{ROOT}", f"-I{ROOT / 'include'}",
            "-isystem", sysconfig.get_path("include"), str(source),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
