"""What the tests of the command line share: running `becket` as a user does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = [sys.executable, "-m", "becket"]
PATIENCE = 100  # seconds: a guard against a hang

APP = """\
import asyncio

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

def make():
    return Echo()

async def upper(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()

async def broken(reader, writer):
    await reader.readline()
    raise RuntimeError("by design")

number = 5
"""


def becket_command(
    *arguments: str | Path,
    stdin: bytes = b"",
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        env=os.environ | (environment or {}),
        cwd=folder,
        pass_fds=pass_fds,
    )


@contextmanager
def serving(
    *arguments: str | Path, folder: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`becket serve …` once it listens, and the endpoints it has told of."""
    with subprocess.Popen(
        [*COMMAND, "serve", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    ) as process:
        assert process.stderr is not None
        endpoints, said = [], []
        for line in process.stderr:
            said.append(line)
            endpoints += re.findall(r"^becket: \S+ at (\S+)", line)
            if "Ctrl-C" in line:
                break
        assert endpoints, "".join(said)
        try:
            yield process, endpoints
        finally:
            process.kill()


def port_of(endpoint: str) -> int:
    """The port in an endpoint's name."""
    return int(endpoint.rpartition(":")[2])
