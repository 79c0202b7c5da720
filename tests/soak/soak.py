"""Many connections, one after the other, to one server: nothing of them may stay behind.

A server, in a process of its own, echoes; clients open a connection each, send a message, hear it
again, and close. After the first of them, and after all, the server tells its memory, descriptors
and objects: the memory may differ by 2 %, the rest not at all. `make soak` runs it; the tests run
it in small.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import becket

CERTIFICATES = Path(__file__).parent.parent / "certificates.sh"
MESSAGE = b"x" * 64
TOLERANCE = 0.02

# ---- The server ----------------------------------------------------------------------------------


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def state() -> dict[str, int]:
    gc.collect()
    return {
        "memory": resident(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
    }


async def serve(kind: str, context: ssl.SSLContext | None) -> None:
    """Serve until standard input ends; each line of it asks for the state."""
    loop = asyncio.get_running_loop()
    if kind == "streams":
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context, backlog=1024)
    else:
        server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=context, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    questions = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    while await questions.readline():
        print(json.dumps(state()), flush=True)


def serve_twisted(folder: str | None) -> None:
    """The same on Twisted's reactor of ours."""
    import becket.twisted

    becket.twisted.install()
    from twisted.internet import protocol, ssl, stdio
    from twisted.internet import reactor as installed

    reactor: Any = installed

    class TwistedEcho(protocol.Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)  # type: ignore[union-attr]

    class Questions(protocol.Protocol):
        def dataReceived(self, data: bytes) -> None:
            for _ in range(data.count(b"\n")):
                print(json.dumps(state()), flush=True)

        def connectionLost(self, reason: Any = None) -> None:
            reactor.stop()

    factory = protocol.Factory.forProtocol(TwistedEcho)
    if folder is None:
        port = reactor.listenTCP(0, factory, backlog=1024, interface="127.0.0.1")
    else:
        context = ssl.DefaultOpenSSLContextFactory(f"{folder}/server.key", f"{folder}/server.crt")
        context.getContext().use_certificate_chain_file(f"{folder}/server.crt")
        port = reactor.listenSSL(0, factory, context, backlog=1024, interface="127.0.0.1")
    print(port.getHost().port, flush=True)
    stdio.StandardIO(Questions())
    reactor.run()


# ---- The clients ---------------------------------------------------------------------------------


class Once(asyncio.Protocol):
    """One message, and the end."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.got = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(MESSAGE)

    def data_received(self, data: bytes) -> None:
        self.got += len(data)
        if self.got == len(MESSAGE):
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None or self.got != len(MESSAGE):
            self.done.set_exception(exc or EOFError("the echo did not come"))
        else:
            self.done.set_result(None)


async def connect(port: int, count: int, at_once: int, context: ssl.SSLContext | None) -> None:
    """So many connections, so many at once."""
    loop = asyncio.get_running_loop()
    name = "localhost" if context else None
    left = count

    async def some() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            _, once = await loop.create_connection(
                Once, "127.0.0.1", port, ssl=context, server_hostname=name
            )
            await once.done

    await asyncio.gather(*(some() for _ in range(at_once)))


# ---- Both ----------------------------------------------------------------------------------------


def contexts(folder: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's, and a client's who trusts it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(f"{folder}/server.crt", f"{folder}/server.key")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(f"{folder}/ca.crt")
    return server, client


def differences(first: dict[str, int], last: dict[str, int]) -> list[str]:
    """What has stayed behind."""
    found = [
        f"{last[name] - first[name]} more {name}"
        for name in ("descriptors", "objects")
        if last[name] > first[name]
    ]
    if last["memory"] > first["memory"] * (1 + TOLERANCE):
        found.append(f"{(last['memory'] - first['memory']) // 1024} KiB more memory")
    return found


def soak(options: argparse.Namespace, folder: str) -> list[str]:
    client = contexts(folder)[1] if options.tls else None
    command = [sys.executable, __file__, "--serve", "--kind", options.kind]
    command += ["--certificates", folder] if options.tls else []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        port = int(server.stdout.readline())

        def ask() -> dict[str, int]:
            assert server.stdin is not None and server.stdout is not None
            server.stdin.write("?\n")
            server.stdin.flush()
            answer: dict[str, int] = json.loads(server.stdout.readline())
            return answer

        before = ask()

        def settled() -> dict[str, int]:
            """The same, when the server has heard of the end of all connections."""
            for _ in range(1000):
                if (now := ask())["descriptors"] <= before["descriptors"]:
                    break
                time.sleep(0.01)
            return now

        becket.run(connect(port, options.first, options.at_once, client))
        first = settled()
        left = options.connections - options.first
        while left > 0:
            becket.run(connect(port, min(left, 10_000), options.at_once, client))
            left -= 10_000
            print(f"{max(left, 0)} to go, {ask()}", file=sys.stderr)
        last = settled()
        server.stdin.close()
    print(json.dumps({"first": first, "last": last}))
    return differences(first, last)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=200_000, help="%(default)s")
    parser.add_argument(
        "--first", type=int, default=10_000, help="… after which the server is asked"
    )
    parser.add_argument("--at-once", type=int, default=50, help="%(default)s")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--kind", choices=["protocol", "streams", "twisted"], default="protocol")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--certificates", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve and options.kind == "twisted":
        serve_twisted(options.certificates)
        return 0
    if options.serve:
        context = contexts(options.certificates)[0] if options.certificates else None
        becket.run(serve(options.kind, context))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["sh", CERTIFICATES, folder], check=True, stderr=subprocess.DEVNULL)
        found = soak(options, folder)
    for line in found:
        print(f"left behind: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
