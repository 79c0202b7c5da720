"""Every kind of protocol under every driver; docs/serving.md shows the result."""

from __future__ import annotations

import asyncio
import re
import socketserver
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as TwistedProtocol

import becket
from conftest import Certificates

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
DRIVERS = ["loop", "loops:2", "threads:2", "forks:2"]
SIZE = 300_000  # more than the buffers on the way hold


class Protocol(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.loop.call_later(0, self.transport.write, data)  # timers work, whatever the driver

    def eof_received(self) -> bool:
        self.loop.call_later(0.01, self.transport.close)
        return True


class Buffered(asyncio.BufferedProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.memory = bytearray(4096)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.memory

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.memory[:nbytes]))


async def coroutine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await asyncio.create_task(writer.drain())  # tasks work, whatever the driver


def blocking(connection: becket.Connection) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while data := self.rfile.read1(65536):  # type: ignore[attr-defined]
            self.wfile.write(data)


class TwistedEcho(TwistedProtocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


KINDS = {
    "protocol": Protocol,
    "buffered": Buffered,
    "coroutine": coroutine,
    "blocking": blocking,
    "handler": Handler,
    "factory": Factory.forProtocol(TwistedEcho),
    "core": "echo",
}


def documented() -> dict[tuple[str, str], str]:
    """The table of the page: what it says of (kind, driver)."""
    text = PAGE.read_text()
    rows = re.findall(r"^\| \*\*(\w+)\*\* \|(.*)\|$", text, re.MULTILINE)
    return {
        (kind, driver): cell.strip()
        for kind, cells in rows
        for driver, cell in zip(DRIVERS, cells.split("|"), strict=True)
    }


def ask(endpoint: str, data: bytes) -> bytes:
    with becket.connect(endpoint, timeout=30) as connection:
        connection.sendall(data)
        return connection.readexactly(len(data))


def serves(kind: str, driver: str, endpoints: list[str], trust: str) -> bool:
    """Whether it is served there, at each of the endpoints, to several clients."""
    data = bytes(range(256)) * (SIZE // 256)
    try:
        server = becket.Server(KINDS[kind], *endpoints, driver=driver)
    except ValueError as error:
        assert "driver" in str(error)
        return False
    with server:
        for endpoint in server.endpoints:
            options = f"?ca={trust}&name=localhost" if endpoint.startswith("tls") else ""
            for _ in range(2):
                assert ask(endpoint + options, data[:1000]) == data[:1000]
            assert ask(endpoint + options, data) == data
    return True


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_under_every_driver(
    kind: str, driver: str, tls: Certificates, short_path: str, no_leaks: None
) -> None:
    endpoints = [
        "tcp://127.0.0.1:0",
        f"tls://127.0.0.1:0?cert={tls.path('server.pem')}",
        f"unix:{short_path}",
    ]
    found = serves(kind, driver, endpoints, tls.path("ca.crt"))
    assert ("yes" if found else "no") == documented()[kind, driver]


def test_the_page_knows_all_kinds_and_drivers() -> None:
    assert set(documented()) == {(kind, driver) for kind in KINDS for driver in DRIVERS}
