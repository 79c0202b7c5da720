"""``becket connect ENDPOINT``: standard input to the peer, the peer to standard output.

Two connections are joined: one to the endpoint, one of the scheme ``stdio:``. What one receives the
other writes, and whoever is slow makes the other wait; nothing blocks the loop.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import re
import signal
from typing import Any, cast

import becket
from becket.commands import new_parser, say
from becket.commands.endpoints import GRAMMAR
from becket.drivers import naming
from becket.endpoints import parse

# What is said before TLS starts: what to send, and what the answer to it begins with.
DIALOGUES: dict[str, list[tuple[str, str]]] = {
    "now": [],
    "smtp": [("", "220"), ("EHLO localhost", "250"), ("STARTTLS", "220")],
    "imap": [("", "* OK"), ("a STARTTLS", "a OK")],
    "pop3": [("", "+OK"), ("STLS", "+OK")],
}


def add(commands: Any) -> None:
    """``becket connect``."""
    parser = new_parser(
        commands,
        "connect",
        "talk to an endpoint",
        description="Send standard input to an endpoint, and write what comes from there to "
        "standard output. When standard input ends, the peer is told so, where that can be "
        "done, and may go on; when the peer ends, so does this. Exit status: 0 a clean end, 1 "
        "a failure, 130 Ctrl-C.",
        epilog=GRAMMAR,
    )
    parser.set_defaults(run=run)
    parser.add_argument("endpoint", metavar="ENDPOINT", help="where to connect to")
    parser.add_argument(
        "--starttls",
        choices=DIALOGUES,
        metavar="PROTOCOL",
        help="start TLS on a starttls:// endpoint: at once (now), or as smtp, imap or pop3 do",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="give up when connecting takes longer, or nothing moves for so long",
    )
    parser.add_argument("--crlf", action="store_true", help="send line ends as CR LF")
    parser.add_argument(
        "--tls-info",
        action="store_true",
        help="tell the version, the cipher and the peer on standard error",
    )
    parser.add_argument("--notifier", choices=becket.notifiers, help="(the best)")


# ---- What is joined ------------------------------------------------------------------------------


class Side(asyncio.Protocol):
    """One of two connections that are joined. It rests until both are there."""

    other: Side
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.moved = 0.0  # when it last received something

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.moved = asyncio.get_running_loop().time()
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.moved = asyncio.get_running_loop().time()
        self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


class Local(Side):
    """Standard input and output."""

    def __init__(self, crlf: bool) -> None:
        super().__init__()
        self.crlf = crlf
        self.cr = False  # whether that was the last byte

    def data_received(self, data: bytes) -> None:
        if self.crlf:
            before, self.cr = self.cr, data[-1:] == b"\r"
            # What is CR LF already stays so, wherever it was cut.
            data = re.sub(rb"(?<!\r)\n", b"\r\n", b"\r" + data if before else data)[before:]
        super().data_received(data)

    def eof_received(self) -> bool:
        if self.other.transport.can_write_eof():
            self.other.transport.write_eof()
        return True  # the peer may have more to say


# ---- Connecting ----------------------------------------------------------------------------------


async def read_line(reader: asyncio.StreamReader) -> bytes:
    """A line of what is said in plain."""
    try:
        return await reader.readline()
    except ValueError:
        raise ConnectionError("the peer's answer is a line without an end") from None


async def start_tls(endpoint: str, dialogue: list[tuple[str, str]], side: Side) -> None:
    """Connect in plain, say what is to be said, and start TLS."""
    loop = cast(becket.EventLoop, asyncio.get_running_loop())
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_endpoint(
        lambda: asyncio.StreamReaderProtocol(reader), endpoint
    )
    try:
        for line, expected in dialogue:
            transport.write(f"{line}\r\n".encode() if line else b"")
            answer = await read_line(reader)
            while answer.startswith(expected.encode()) and answer[3:4] == b"-":
                answer = await read_line(reader)
            if not answer.startswith(expected.encode()):
                raise ConnectionError(f"{expected!r} was to come, but the peer said {answer!r}")
        side.transport = transport  # it may hear something as soon as TLS has started
        secure = await loop.start_tls(transport, side, cast(Any, None))
        side.connection_made(cast(asyncio.Transport, secure))
    except BaseException:
        transport.abort()
        raise


async def connect(arguments: argparse.Namespace, side: Side) -> None:
    """Connect to the endpoint, and start TLS where that is asked for."""
    loop = cast(becket.EventLoop, asyncio.get_running_loop())
    parts = parse(arguments.endpoint)
    if parts.scheme == "stdio":
        raise ValueError("stdio: is this end of the connection; the other is needed")
    if arguments.starttls is None:
        await loop.connect_endpoint(lambda: side, arguments.endpoint)
    elif parts.cover != "starttls":
        raise ValueError("--starttls: the endpoint begins with starttls://, or starttls+…")
    else:
        await start_tls(arguments.endpoint, DIALOGUES[arguments.starttls], side)


async def connect_in_time(arguments: argparse.Namespace, side: Side) -> None:
    """The same. TimeoutError."""
    timeout = asyncio.timeout(arguments.timeout)
    try:
        async with timeout:
            await connect(arguments, side)
    except TimeoutError:
        if not timeout.expired():  # the system's own
            raise
        raise TimeoutError(errno.ETIMEDOUT, f"no connection in {arguments.timeout:g} s") from None


def tell_tls(transport: asyncio.Transport) -> None:
    """What was agreed on, and with whom."""
    cipher = transport.get_extra_info("cipher")
    if cipher is None:
        say("becket: no TLS")
        return
    say(f"becket: {cipher[1]}, {cipher[0]}, {cipher[2]} bits")
    certificate = transport.get_extra_info("peercert") or {}
    names = [value for _, value in certificate.get("subjectAltName", ())]
    subject = [f"{k}={v}" for part in certificate.get("subject", ()) for k, v in part]
    until = f", until {certificate['notAfter']}" if "notAfter" in certificate else ""
    known = "".join(c if c.isprintable() else "?" for c in ", ".join(subject + names))
    say(f"becket: peer: {known}{until}" if known else "becket: peer: not verified")


# ---- Joining -------------------------------------------------------------------------------------


async def idle(seconds: float | None, sides: list[Side]) -> None:
    """Return when nothing has come from either side for so long; None: never."""
    loop = asyncio.get_running_loop()
    if seconds is None:
        await loop.create_future()
        return
    began = loop.time()
    while (left := max(began, *(s.moved for s in sides)) + seconds - loop.time()) > 0:
        await asyncio.sleep(left)


async def join(local: Side, peer: Side, endpoint: str, timeout: float | None) -> None:
    """Let them talk until one is lost. OSError: not in good order."""
    local.transport.resume_reading()
    peer.transport.resume_reading()
    silence = asyncio.ensure_future(idle(timeout, [local, peer]))
    ends: list[asyncio.Future[Any]] = [local.lost, peer.lost, silence]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    silence.cancel()
    if peer.lost.done():
        local.transport.close()  # when all is written
        await local.lost
    elif local.lost.done():
        peer.transport.abort()
    else:
        raise TimeoutError(f"{endpoint}: nothing came or went for {timeout:g} s")
    for side, name in ((peer, endpoint), (local, "standard input or output")):
        error = side.lost.result() if side.lost.done() else None
        if error is not None:
            with naming(name):
                raise error


async def talk(arguments: argparse.Namespace) -> None:
    """All of it. ValueError, OSError."""
    loop = cast(becket.EventLoop, asyncio.get_running_loop())
    task = asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    local, peer = Local(arguments.crlf), Side()
    local.other, peer.other = peer, local
    await loop.connect_endpoint(lambda: local, "stdio:")
    try:
        with naming(arguments.endpoint):
            await connect_in_time(arguments, peer)
        if arguments.tls_info:
            tell_tls(peer.transport)
        await join(local, peer, arguments.endpoint, arguments.timeout)
    finally:
        local.transport.abort()  # terminals are as they were before
        if hasattr(peer, "transport"):
            peer.transport.abort()
        await local.lost


def run(arguments: argparse.Namespace) -> int:
    """Connect, and talk."""
    if arguments.timeout is not None and not arguments.timeout > 0:
        raise ValueError(f"--timeout: {arguments.timeout:g} is not above 0; seconds are needed")
    try:
        with asyncio.Runner(loop_factory=lambda: becket.EventLoop(arguments.notifier)) as runner:
            runner.run(talk(arguments))
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    return 0
