"""What stays after much was done; and other processes, interpreters and modules."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import os
import subprocess
import sys
import threading
import tracemalloc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import becket
from support import BufferedRecorder, Echo, Loop, Recorder, pair, run, turns, until


def growth(work: Callable[[], None]) -> int:
    """By how many bytes memory grows while work() is done, once it has been done before."""
    work()
    gc.collect()
    tracemalloc.start()
    try:
        work()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_scheduling_leaves_nothing(becket_loop: Loop) -> None:
    loop = becket_loop
    arguments = [object() for _ in range(3)]

    def work() -> None:
        for i in range(10_000):
            loop.call_soon(int)
            loop.call_soon(max, 1, 2)
            loop.call_soon(arguments.count, arguments[i % 3]).cancel()
            loop.call_later(0, str, arguments[0])
            loop.call_later(3600, str, *arguments[:1]).cancel()
        run(loop, asyncio.sleep(0.001))

    before = [sys.getrefcount(x) for x in (*arguments, int, max, str, loop)]
    assert growth(work) < 20_000
    gc.collect()
    after = [sys.getrefcount(x) for x in (*arguments, int, max, str, loop)]
    assert all(abs(a - b) < 10 for a, b in zip(after, before, strict=True))


def test_errors_leave_nothing(becket_loop: Loop) -> None:
    loop = becket_loop

    def work() -> None:
        for wrong in (None, "1", float("nan")):
            for _ in range(1000):
                with pytest.raises((TypeError, ValueError)):
                    loop.call_later(wrong, print)  # type: ignore[arg-type]
        for _ in range(1000):
            with pytest.raises(TypeError):
                loop.call_soon(print, nothing=1)  # type: ignore[call-arg]
            with pytest.raises(ValueError):
                becket.EventLoop("nothing")

    assert growth(work) < 20_000


def test_reports_leave_nothing(becket_loop: Loop) -> None:
    loop = becket_loop
    loop.set_exception_handler(lambda _loop, _context: None)

    def work() -> None:
        for debug in (False, True):
            loop.set_debug(debug)
            for _ in range(300):
                loop.call_soon(int, "no number")
                loop.call_later(0, int, "no number")
            run(loop, asyncio.sleep(0.001))
        loop.set_debug(False)

    assert growth(work) < 50_000


def test_watching_leaves_nothing(becket_loop: Loop) -> None:
    loop = becket_loop
    a, b = os.pipe()

    def work() -> None:
        for _ in range(5000):
            loop.add_reader(a, os.read, a, 1)
            loop.add_reader(a, print)
            loop.add_writer(b, print)
            loop.remove_reader(a)
            loop.remove_writer(b)

    assert growth(work) < 20_000
    os.close(a)
    os.close(b)


def test_tasks_and_futures_leave_nothing(becket_loop: Loop) -> None:
    loop = becket_loop

    async def many() -> None:
        for _ in range(100):
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(50)))
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future

    assert growth(lambda: run(loop, many())) < 20_000


@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
def test_connections_leave_nothing(becket_loop: Loop, protocol: type[Recorder]) -> None:
    loop = becket_loop

    async def once(size: int) -> None:
        near, far = protocol(loop), protocol(loop)
        await pair(loop, near, far)
        for data in (bytes(size), bytearray(size), memoryview(bytes(size))):
            near.transport.write(data)
        far.transport.writelines([b"a", b"b"])
        await far.received(3 * size)
        await near.received(2)
        for name in ("socket", "peername", "sockname", "nothing"):
            near.transport.get_extra_info(name)
        repr(near.transport)
        near.transport.close()
        await near.lost
        await far.lost

    async def many() -> None:
        for size in (1, 5000, 300_000):
            for _ in range(50):
                await once(size)

    assert growth(lambda: run(loop, many())) < 100_000


def test_servers_and_streams_leave_nothing(becket_loop: Loop) -> None:
    loop = becket_loop

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()
        await writer.wait_closed()

    async def many() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        for _ in range(100):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"line\n")
            assert await reader.read() == b"line\n"
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    assert growth(lambda: run(loop, many())) < 100_000


def test_ten_thousand_connections_one_after_another(becket_loop: Loop) -> None:
    """References to what they share do not pile up."""
    loop = becket_loop

    async def many(count: int) -> None:
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        for _ in range(count):
            transport, _ = await loop.create_connection(asyncio.Protocol, *address)
            transport.abort()
        await turns(10)
        server.close()
        await server.wait_closed()

    run(loop, many(50))
    gc.collect()
    shared = (loop, Echo, asyncio.Protocol, b"", None)
    objects, before = len(gc.get_objects()), [sys.getrefcount(x) for x in shared[:3]]
    run(loop, many(10_000))
    gc.collect()
    after = [sys.getrefcount(x) for x in shared[:3]]
    assert all(abs(a - b) < 20 for a, b in zip(after, before, strict=True)), (before, after)
    assert len(gc.get_objects()) - objects < 100


def test_the_collector_runs_at_any_moment(becket_loop: Loop) -> None:
    loop = becket_loop
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:

        async def main() -> None:
            near, far = Recorder(loop), BufferedRecorder(loop)
            await pair(loop, near, far)
            for size in (1, 100, 10_000):
                near.transport.write(bytes(size))
                loop.call_later(0, near.transport.write, b"x")
                await asyncio.sleep(0.001)
            await far.received(10_104)
            near.transport.close()
            await near.lost
            await far.lost
            await asyncio.gather(*(asyncio.sleep(0.0001 * i) for i in range(10)))

        run(loop, main())
    finally:
        gc.set_threshold(*before)


def test_the_types_are_known_to_the_collector(becket_loop: Loop) -> None:
    """gc.get_referents() walks what the collector would."""
    loop = becket_loop
    marker = object()
    handles: list[Any] = [loop.call_soon(id, marker), loop.call_later(1, id, marker)]
    for handle in handles:
        assert marker in gc.get_referents(handle)
        assert loop in gc.get_referents(handle)
        handle.cancel()
        assert marker not in gc.get_referents(handle)
    run(loop, turns())


# ---- Other processes ----


def test_fork_with_a_loop_that_is_idle(becket_loop: becket.EventLoop) -> None:
    """The child goes on with the loop it has, and does not disturb the parent's."""
    loop = becket_loop
    a, b = os.pipe()
    calls: list[bytes] = []
    loop.add_reader(a, lambda: calls.append(os.read(a, 10)))
    run(loop, turns())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of the test programs
        child = os.fork()
    if child == 0:
        status = 1
        try:
            loop._forked()
            thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(loop.stop))
            loop.call_later(0.001, thread.start)
            loop.run_forever()
            thread.join()
            c, d = os.pipe()
            loop.add_reader(c, loop.stop)
            os.write(d, b"x")
            loop.run_forever()
            loop.remove_reader(c)
            loop.remove_reader(a)
            loop.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    run(loop, turns())
    os.write(b, b"parent")
    run(loop, until(lambda: calls))
    assert calls == [b"parent"]
    loop.remove_reader(a)
    os.close(a)
    os.close(b)


def test_fork_and_a_new_loop_in_the_child() -> None:
    program = """
import asyncio, becket, os
async def main():
    await asyncio.sleep(0.001)
    child = os.fork()
    if child == 0:
        asyncio._set_running_loop(None)
        loop = becket.EventLoop()
        print(loop.run_until_complete(asyncio.sleep(0.001, "child")), flush=True)
        loop.close()
        os._exit(0)
    os.waitpid(child, 0)
    print("parent", flush=True)
becket.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert result.stdout == "child\nparent\n"


def test_the_interpreter_ends_with_a_loop_in_any_state() -> None:
    for state in (
        "",
        "loop.call_later(9, print)",
        "loop.call_soon(print)",
        "loop.close()",
        "loop.run_until_complete(asyncio.sleep(0))",
        "import socket; a, b = socket.socketpair(); loop.run_until_complete("
        "loop.create_connection(asyncio.Protocol, sock=a))",
        "loop.run_until_complete(loop.create_server(asyncio.Protocol, '127.0.0.1', 0))",
        "loop.cycle = loop",
        "import sys; sys.modules['__main__'].handle = loop.call_later(9, loop.stop)",
    ):
        result = subprocess.run(
            [sys.executable, "-c", f"import asyncio, becket\nloop = becket.EventLoop()\n{state}"],
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, ""), state


# ---- Other interpreters ----

if sys.version_info >= (3, 12):
    SUBINTERPRETER = """
import sys
sys.path[:] = {path!r}
import asyncio, becket

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"from another interpreter")
    assert await reader.read() == b"from another interpreter"
    writer.close()
    await writer.wait_closed()
    server.close()

async def serve(reader, writer):
    writer.write(await reader.read(24))
    writer.close()

for name in becket.notifiers:
    loop = becket.EventLoop(name)
    loop.run_until_complete(main())
    loop.close()
"""

    def subinterpreters() -> Any:
        for name in ("_interpreters", "_xxsubinterpreters"):
            if importlib.util.find_spec(name) is not None:
                return importlib.import_module(name)
        raise LookupError

    def test_an_interpreter_with_a_lock_of_its_own() -> None:
        module = subinterpreters()
        code = SUBINTERPRETER.format(path=sys.path)

        def work(results: list[object]) -> None:
            interpreter = module.create()
            try:
                results.append(module.run_string(interpreter, code))
            except Exception as error:
                results.append(error)
            finally:
                module.destroy(interpreter)

        found: list[object] = []
        threads = [threading.Thread(target=work, args=(found,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [None] * 3


def test_the_module_can_be_loaded_twice() -> None:
    """Each has types and state of its own, and goes when it is not used any more."""
    spec = importlib.util.find_spec("becket._becket")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.Loop is not becket._becket.Loop
    loop = type("Twin", (becket.EventLoop,), {})()
    loop.close()
    known = weakref.ref(module.Loop)
    del module
    gc.collect()
    assert known() is None
