"""kill -9 at random moments under load, over and over: every message that was acknowledged is in
the store exactly once, byte by byte, and nothing is there that was not sent to its end.

What was on its way when the server was killed may be there, whole, or not: its sender has heard
nothing, and sends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CLIENTS = 6
LANES = 2
PATIENCE = 120.0  # of a machine under load, and of AddressSanitizer

# A process that has imported all there is forks a server when it is told to: to start an
# interpreter for each would take most of the time. `becket serve smtp` runs in it as always.
NURSERY = """
import json, os, signal, sys
import becket, becket.cli, becket.drivers, becket.served
import becket.commands.serve, becket.commands.smtp
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(1, 2)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.exit(becket.cli.main(json.loads(line)))
    print("pid", pid, flush=True)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, for UNIX sockets."""
    path = Path(tempfile.mkdtemp(prefix="bk"))
    yield path
    shutil.rmtree(path)


class Nursery:
    """Starts servers, and kills them."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    async def _after(self, word: str) -> str:
        """The rest of the next line with that in it: whoever was killed may not have ended his."""
        while True:
            line = (await self._stdout.readline()).decode()
            assert line, "the nursery has ended"
            _, found, rest = line.partition(word)
            if found:
                return rest

    @contextlib.asynccontextmanager
    async def server(self, endpoint: str, *arguments: str) -> AsyncIterator[int]:
        """A server that listens there; killed, with all its processes, at the end."""
        command = ["serve", "smtp", endpoint, *arguments]
        self._stdin.write(json.dumps(command).encode() + b"\n")
        pid = int(await self._after("pid "))
        try:
            await self._after(f"becket: SMTP at {endpoint}")
            yield pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def nursery() -> AsyncIterator[Nursery]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NURSERY, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Nursery(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@dataclass
class Ledger:
    """What the clients know."""

    begun: dict[str, bytes] = field(default_factory=dict)  # by identifier: how it reads
    finished: set[str] = field(default_factory=set)  # the last byte was given to the kernel
    acknowledged: set[str] = field(default_factory=set)
    progress: asyncio.Event = field(default_factory=asyncio.Event)


def message(identifier: str, chance: random.Random) -> bytes:
    """Distinct in each line, with dots where they hurt, and of one to many packets."""
    lines = [f"X-Id: {identifier}", f"Subject: {identifier}", ""]
    for number in range(chance.choice((0, 1, 5, 50, 500))):
        dots = chance.choice(("", "", ".", "..", "...x"))
        lines.append(f"{dots} {identifier} {number} {'x' * chance.randrange(60)}".rstrip())
    return "".join(f"{line}\r\n" for line in lines).encode()


def stuffed(text: bytes) -> bytes:
    return re.sub(rb"(?m)^\.", b"..", text) + b".\r\n"


async def replies(reader: asyncio.StreamReader, *codes: bytes) -> None:
    for code in codes:
        line = await reader.readline()
        while line[3:4] == b"-":
            line = await reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError
        assert line.startswith(code), line


async def send(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    identifier: str,
    ledger: Ledger,
    chance: random.Random,
) -> None:
    """One message, in one of the ways there are."""
    text = ledger.begun[identifier] = message(identifier, chance)
    envelope = f"MAIL FROM:<{identifier}@example.org>\r\nRCPT TO:<b@example.org>\r\n".encode()
    if chance.random() < 0.5:
        writer.write(envelope + b"DATA\r\n")
        await replies(reader, b"250", b"250", b"354")
        data = stuffed(text)
        cut = chance.randrange(len(data))
        writer.write(data[:cut])
        await writer.drain()
        ledger.finished.add(identifier)
        writer.write(data[cut:])
        await replies(reader, b"250")
    else:
        cut = chance.randrange(len(text))
        writer.write(envelope + b"BDAT %d\r\n%b" % (cut, text[:cut]))
        await replies(reader, b"250", b"250", b"250")
        ledger.finished.add(identifier)
        writer.write(b"BDAT %d LAST\r\n%b" % (len(text) - cut, text[cut:]))
        await replies(reader, b"250")
    ledger.acknowledged.add(identifier)
    ledger.progress.set()


async def client(path: str, name: str, ledger: Ledger, chance: random.Random) -> None:
    """Sends one message after the other, until the server is gone; the first of all never ends
    what it began."""
    with contextlib.suppress(ConnectionError):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            await replies(reader, b"220")
            writer.write(b"EHLO client\r\n")
            await replies(reader, b"250")
            for number in range(1_000_000):
                if name.endswith(".0"):
                    await send_half(reader, writer, f"{name}.{number}", ledger)
                else:
                    await send(reader, writer, f"{name}.{number}", ledger, chance)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def send_half(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, identifier: str, ledger: Ledger
) -> None:
    """All but the last line end."""
    ledger.begun[identifier] = text = b"X-Id: %b\r\n\r\nhalf\r\n" % identifier.encode()
    writer.write(b"MAIL FROM:<h@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n")
    await replies(reader, b"250", b"250", b"354")
    writer.write(text + b".\r")
    await replies(reader, b"never")


async def killed_under_load(
    servers: Nursery, endpoint: str, arguments: list[str], name: str, chance: random.Random
) -> Ledger:
    """A server's life: after so many acknowledgements, and a moment more, it is over."""
    ledger = Ledger()
    enough, moment = chance.randrange(25), chance.random() * 0.005
    async with servers.server(endpoint, *arguments) as pid, asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            seed = chance.getrandbits(64)
            path = endpoint.removeprefix("unix:")
            group.create_task(
                client(path, f"{name}.{number}", ledger, random.Random(seed)),
            )
        while len(ledger.acknowledged) < enough:
            ledger.progress.clear()
            await ledger.progress.wait()
        await asyncio.sleep(moment)
        os.killpg(pid, signal.SIGKILL)
    return ledger


TRACE = re.compile(
    rb"Return-Path: <[^>]*>\r\nReceived: (?:[^\r\n]*\r\n[ \t])*[^\r\n]*\r\n(?=X-Id: ([^\r]*)\r\n)"
)


def check(found: list[bytes], ledger: Ledger) -> None:
    """What is in the store, and what the clients know, agree."""
    seen: set[str] = set()
    for content in found:
        head = TRACE.match(content)
        assert head is not None, content[:300]
        identifier = head[1].decode()
        assert content[head.end() :] == ledger.begun[identifier]
        assert identifier in ledger.finished, "it was never sent to its end"
        assert identifier not in seen, "it is there twice"
        seen.add(identifier)
    assert ledger.acknowledged <= seen, "it was acknowledged, and is not there"


async def lane(
    folder: Path, name: str, rounds: int, driver: str, chance: random.Random
) -> tuple[int, int]:
    """Servers one after the other on the same Maildir. Returns how many messages were acknowledged,
    and how many were under way when they were killed."""
    maildir = folder / name
    arguments = ["--maildir", str(maildir), "--driver", driver]
    seen: set[str] = set()
    acknowledged = under_way = 0
    async with nursery() as servers:
        for number in range(rounds):
            endpoint = f"unix:{folder}/{name}.{number}.s"
            ledger = await killed_under_load(
                servers, endpoint, arguments, f"{name}.{number}", chance
            )
            names = set(os.listdir(maildir / "new"))
            assert names >= seen, "a message of an earlier server is gone"
            check([(maildir / "new" / file).read_bytes() for file in names - seen], ledger)
            assert os.listdir(maildir / "cur") == []
            seen = names
            acknowledged += len(ledger.acknowledged)
            under_way += len(ledger.begun) - len(ledger.acknowledged)
    return acknowledged, under_way


@pytest.mark.parametrize(("driver", "rounds"), [("loop", 200), ("forks:2", 20), ("loops:2", 20)])
def test_killed_at_random_moments_under_load(folder: Path, driver: str, rounds: int) -> None:
    async def run() -> list[tuple[int, int]]:
        async with asyncio.timeout(PATIENCE * LANES), asyncio.TaskGroup() as group:
            lanes = [
                group.create_task(
                    lane(folder, f"{driver[0]}{n}", rounds // LANES, driver, random.Random(n))
                )
                for n in range(LANES)
            ]
        return [task.result() for task in lanes]

    results = asyncio.run(run())
    assert sum(acknowledged for acknowledged, _ in results) >= rounds
    assert sum(under_way for _, under_way in results) >= rounds
