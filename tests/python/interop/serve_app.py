"""What the tests serve by becket.serve() in a process of its own:

    serve_app.py TARGET OPTIONS ENDPOINT...

OPTIONS are those of becket.serve(), as JSON. Each TARGET answers lines: ``who`` by the peer's host
and port, ``pid`` by its process, any other by ``<line> done``. A line that begins with ``slow``
takes a while. The environment may say BEGUN=file, where each line is noted before it is worked on,
and EARLY=number, a signal that it sends itself when it is about to listen.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import becket

SLOW = 0.3  # seconds


def note(line: bytes) -> None:
    """Appended by one call each, so that several processes may."""
    if NOTES is not None:
        os.write(NOTES, line)


def answer(line: bytes, peer: object) -> bytes:
    note(line)
    if line == b"who\n":
        host, port = peer[:2] if isinstance(peer, tuple) else (peer, 0)
        return f"{host} {port}\n".encode()
    if line == b"pid\n":
        return b"%d\n" % os.getpid()
    return line[:-1] + b" done\n"


class Protocol(asyncio.Protocol):
    def connection_made(self, transport) -> None:
        self.transport = transport
        self.loop = asyncio.get_running_loop()
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            said = answer(line + b"\n", self.transport.get_extra_info("peername"))
            delay = SLOW if line.startswith(b"slow") else 0
            self.loop.call_later(delay, self.transport.write, said)


async def coroutine(reader, writer) -> None:
    while line := await reader.readline():
        said = answer(line, writer.get_extra_info("peername"))
        if line.startswith(b"slow"):
            await asyncio.sleep(SLOW)
        writer.write(said)


def blocking(connection: becket.Connection) -> None:
    for line in connection:
        said = answer(line, connection.peer)
        if line.startswith(b"slow"):
            time.sleep(SLOW)
        connection.sendall(said)


def stuck(connection: becket.Connection) -> None:
    """Never returns, and does not care."""
    connection.recv()
    connection.sendall(b"stuck\n")
    while True:
        time.sleep(3600)


class Stuck(asyncio.Protocol):
    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"stuck\n")
        asyncio.get_running_loop().call_soon(time.sleep, 3600)


def strike(number: int) -> None:
    """The signal comes before the endpoints are opened, in whatever opens them first."""
    from becket import drivers

    pid = os.getpid()

    def early(original):
        def call(*args):
            if os.getpid() == pid:
                os.kill(pid, number)
            return original(*args)

        return call

    drivers.Share.open = early(drivers.Share.open)
    drivers.Forks._open = early(drivers.Forks._open)


if __name__ == "__main__":
    NOTES = None
    if "BEGUN" in os.environ:
        NOTES = os.open(os.environ["BEGUN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    if "EARLY" in os.environ:
        strike(int(os.environ["EARLY"]))
    target, options, *endpoints = sys.argv[1:]
    sys.exit(becket.serve(globals().get(target, target), *endpoints, **json.loads(options)))
