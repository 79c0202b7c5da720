"""Nanoseconds for one operation inside an asyncio loop; bench/run.py runs it once for each loop.

Prints one JSON object: operation -> wall, user and CPU (user and system) nanoseconds. An operation
is repeated until 0.4 seconds have passed (a tenth with --quick), so that the CPU time, whose
division the kernel samples, means something.

A turn of a loop asks the kernel what is ready, so "one a turn" measures the turn, and "many a turn"
the callback. call_soon_threadsafe is measured twice: from the loop's own thread it is the price of
the call itself; from another thread it is a round trip that wakes the loop out of its wait.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
import tempfile
import threading
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Awaitable, Callable

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "servers"))
from python_server import FAMILY, loop_factory

BATCH = 1000
PATIENCE = 10  # seconds for what takes milliseconds: a loop that hangs in it is left out
Loop = asyncio.AbstractEventLoop
Operation = Callable[[Loop], Awaitable[int]]  # does it some times, and returns how often


def nothing() -> None:
    pass


async def call_soon_chain(loop: Loop) -> int:
    done = loop.create_future()
    left = BATCH

    def link() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(link)
        else:
            done.set_result(None)

    loop.call_soon(link)
    await done
    return BATCH


async def call_soon_many(loop: Loop) -> int:
    for _ in range(BATCH):
        loop.call_soon(nothing)
    await asyncio.sleep(0)
    return BATCH


async def call_later_cancel(loop: Loop) -> int:
    for _ in range(BATCH):
        loop.call_later(60, nothing).cancel()
    await asyncio.sleep(0)
    return BATCH


async def call_at_cancel(loop: Loop) -> int:
    when = loop.time() + 60
    for _ in range(BATCH):
        loop.call_at(when, nothing).cancel()
    await asyncio.sleep(0)
    return BATCH


async def call_later_fire(loop: Loop) -> int:
    done = loop.create_future()
    for _ in range(BATCH):
        loop.call_later(0.0001, nothing)
    loop.call_later(0.0002, done.set_result, None)
    await done
    return BATCH


async def sleep_0(loop: Loop) -> int:
    for _ in range(BATCH):
        await asyncio.sleep(0)
    return BATCH


async def coroutine() -> None:
    pass


async def create_task(loop: Loop) -> int:
    tasks = [loop.create_task(coroutine()) for _ in range(BATCH)]
    for task in tasks:
        await task
    return BATCH


async def future_wake(loop: Loop) -> int:
    for _ in range(BATCH):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future
    return BATCH


async def threadsafe_same(loop: Loop) -> int:
    for _ in range(BATCH):
        loop.call_soon_threadsafe(nothing)
    await asyncio.sleep(0)
    return BATCH


async def threadsafe_other(loop: Loop) -> int:
    rounds = BATCH // 10
    done = loop.create_future()

    def other() -> None:
        ran = threading.Lock()
        ran.acquire()
        for _ in range(rounds):
            loop.call_soon_threadsafe(ran.release)
            ran.acquire()
        loop.call_soon_threadsafe(done.set_result, None)

    thread = threading.Thread(target=other)
    thread.start()
    await done
    thread.join()
    return rounds


async def read_lines(loop: Loop) -> int:
    """Lines that are there already: what a server does with a buffer full of them."""
    near, far = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=near)
    batches = 20
    for _ in range(batches):
        reader.feed_data(b"a line of bytes\n" * BATCH)
        for _ in range(BATCH):
            await reader.readline()
    writer.close()
    far.close()
    await writer.wait_closed()
    return batches * BATCH


async def subprocess_exec(loop: Loop) -> int:
    for _ in range(10):
        child = await asyncio.create_subprocess_exec("/bin/true")
        await child.wait()
    return 10


async def sendfile(loop: Loop) -> int:
    """A file that is in the kernel's cache, in pieces of a MiB, to a process that reads it."""
    size, count = 1 << 20, 32
    with tempfile.TemporaryFile() as file, socket.create_server(("127.0.0.1", 0)) as listening:
        file.write(bytes(size))
        file.flush()
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
        with far:
            child = await asyncio.create_subprocess_exec("cat", stdin=far, stdout=DEVNULL)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        try:
            for _ in range(count):
                await loop.sendfile(transport, file, 0, size)
        finally:
            transport.close()
            await child.wait()
    return count


OPERATIONS: dict[str, Operation] = {
    "call_soon, one a turn": call_soon_chain,
    "call_soon, many a turn": call_soon_many,
    "call_later and cancel": call_later_cancel,
    "call_at and cancel": call_at_cancel,
    "call_later and fire": call_later_fire,
    "sleep(0)": sleep_0,
    "create_task and await": create_task,
    "future wakes a task": future_wake,
    "call_soon_threadsafe, own thread": threadsafe_same,
    "call_soon_threadsafe, round trip": threadsafe_other,
    "readline() of what is there": read_lines,
    "create_subprocess_exec() of true": subprocess_exec,
    "sendfile() of a MiB, TCP": sendfile,
}


async def measure(operation: Operation, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        await operation(loop)
    count = 0
    before = resource.getrusage(resource.RUSAGE_SELF)
    cpu = time.process_time()
    start = time.perf_counter()
    while (now := time.perf_counter()) < start + seconds:
        count += await operation(loop)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = {
        "wall_ns": now - start,
        "cpu_ns": time.process_time() - cpu,
        "user_ns": after.ru_utime - before.ru_utime,
    }
    return {name: value / count * 1e9 for name, value in spent.items()}


async def measure_all(seconds: float) -> dict[str, dict[str, float]]:
    results = {}
    for name, operation in OPERATIONS.items():
        with contextlib.suppress(NotImplementedError, TimeoutError):  # a loop that cannot do it
            results[name] = await measure(operation, seconds)
    return results


def main() -> None:
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--library", required=True, choices=FAMILY)
    parser.add_argument("--quick", action="store_true", help="0.1 s for each operation, not 0.4")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=loop_factory(options.library)) as runner:
        print(json.dumps(runner.run(measure_all(0.1 if options.quick else 0.4))))


if __name__ == "__main__":
    main()
