"""``becket bench``: the benchmarks of a checkout; without one, a quick look at this machine.

The quick look serves echo in this process, first under becket.EventLoop and then under asyncio's
own loop, to one client in another process: this file, too, run as a module.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import becket
from becket.commands import new_parser, say

SECONDS = 2.0
CONNECTIONS = 16
MESSAGE = b"x" * 1024


def add(commands: Any) -> None:
    """``becket bench``."""
    parser = new_parser(
        commands,
        "bench",
        "measure speed here",
        description="Run the benchmarks of a checkout (bench/run.py in this directory, or where "
        "the package's source is); other arguments are passed on to it. Where there is "
        "none, take a quick look: 1 KiB messages, echoed for two seconds each under "
        "becket's loop and asyncio's.",
    )
    parser.set_defaults(run=run)


def checkout() -> Path | None:
    """The benchmarks, if they are here."""
    source = Path(becket.__file__).resolve().parents[2]
    scripts = (place / "bench" / "run.py" for place in (Path.cwd(), source))
    return next((script for script in scripts if script.is_file()), None)


# ---- The quick look: the server ------------------------------------------------------------------


class Echo(asyncio.Protocol):
    """Sends back what it receives."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def serve_asyncio(ask: Callable[[int], float]) -> float:
    """Serve on asyncio's own loop, in a thread, and ask."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        return ask(server.sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


def serve_becket(ask: Callable[[int], float]) -> float:
    """Serve on becket's loop, in a thread, and ask."""
    with becket.Server(Echo, "tcp://127.0.0.1:0") as server:
        return ask(int(server.endpoints[0].rpartition(":")[2]))


def ask_client(port: int) -> float:
    """Let a client send; prints what came of it, and returns the CPU that a message took, in s."""
    command = [sys.executable, "-m", "becket.commands.bench", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        client.stdout.readline()  # it has begun
        cpu, began = time.process_time(), time.monotonic()
        count = int(client.stdout.readline() or 0)
        cpu, lasted = time.process_time() - cpu, time.monotonic() - began
    if count == 0:
        raise OSError("the client failed")
    print(f"{count / lasted:9,.0f} messages/s, {cpu / count * 1e6:6.2f} µs of CPU each", flush=True)
    return cpu / count


# ---- The quick look: the client ------------------------------------------------------------------


class Pinger(asyncio.Protocol):
    """Sends a message, and another one when it has come back."""

    count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.missing = len(MESSAGE)

    def data_received(self, data: bytes) -> None:
        self.missing -= len(data)
        if self.missing == 0:
            Pinger.count += 1
            self.missing = len(MESSAGE)
            self.transport.write(MESSAGE)


async def ping(port: int) -> None:
    """Keep all connections busy; says when it begins, and at the end how many were answered."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Pinger, "127.0.0.1", port) for _ in range(CONNECTIONS)]
    print("begun", flush=True)
    for transport, _ in made:
        transport.write(MESSAGE)
    await asyncio.sleep(SECONDS)
    print(Pinger.count, flush=True)
    for transport, _ in made:
        transport.abort()


# ---- The command ---------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    script = checkout()
    if script is not None:
        return subprocess.call([sys.executable, str(script), *arguments.rest])
    if arguments.rest:
        raise ValueError(f"bench: {' '.join(arguments.rest)}: there is no bench/run.py to take it")
    say(
        f"{len(MESSAGE)} bytes echoed over TCP, {CONNECTIONS} connections, {SECONDS:g} s each. The "
        "CPU is the server's.\nThe client is Python, too, and may be what limits the messages."
    )
    took = []
    for name, serve in (("becket", serve_becket), ("asyncio", serve_asyncio)):
        print(f"{name:8}", end="", flush=True)
        took.append(serve(ask_client))
    print(
        f"Under becket a message took {took[0] / took[1]:.2f} times the CPU it took under asyncio."
    )
    return 0


if __name__ == "__main__":
    becket.run(ping(int(sys.argv[1])))
