"""Every TLS engine against every other, as server and as client; docs/tls.md shows the result."""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path
from typing import Any

import pytest

import becket
from becket import _becket, tls
from conftest import Certificates

PAGE = Path(__file__).parents[2] / "docs" / "tls.md"
CORE = [name for name, _, _ in _becket._tls_engines()]
PYTHON = ["ssl", "pyopenssl", "tlslite"]
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
SIZE = 100_000


def documented() -> dict[tuple[str, str], str]:
    """The table of the page: what it says of (server, client)."""
    rows = re.findall(r"^\| \*\*(\w+)\*\* \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    names = [name for name, _ in rows]
    return {
        (server, client): cell.strip()
        for server, cells in rows
        for client, cell in zip(names, cells.split("|"), strict=True)
    }


def context(
    name: str, server_side: bool, certificates: Certificates, version: ssl.TLSVersion
) -> Any:
    """What is given to ssl=, for that engine."""
    if name in CORE:
        return tls.Context(
            engine=name,
            server_side=server_side,
            minimum=version,
            maximum=version,
            certificate=certificates.path("server.pem") if server_side else None,
            ca=None if server_side else certificates.path("ca.crt"),
        )
    pem = Path(certificates.path("server.pem")).read_bytes() if server_side else b""
    return tls.find(name).make_context(
        tls.Settings(
            server_side=server_side,
            certificate=pem,
            key=pem,
            ca=b"" if server_side else Path(certificates.path("ca.crt")).read_bytes(),
            verify=ssl.CERT_NONE if server_side else ssl.CERT_REQUIRED,
            alpn=(),
            minimum=version,
            maximum=version,
            tickets=True,
        )
    )


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readexactly(SIZE))
    await reader.read()
    writer.close()


async def echo(server_context: Any, client_context: Any, data: bytes) -> tuple[bytes, Any]:
    """What comes back of data, and what the client calls the cipher."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context) as server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context, server_hostname="localhost"
        )
        writer.write(data)
        back = await reader.readexactly(len(data))
        cipher = writer.get_extra_info("cipher")
        writer.close()
        await writer.wait_closed()
        return back, cipher


def agreed(server: str, client: str, version: ssl.TLSVersion, certificates: Certificates) -> bool:
    """Whether the two talk TLS of that version, and only that, to each other."""
    data = bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256)
    try:
        contexts = [
            context(server, True, certificates, version),
            context(client, False, certificates, version),
        ]
        back, cipher = becket.run(echo(*contexts, data))
    except (ValueError, ssl.SSLError):
        return False
    assert back == data
    assert cipher[1] == ("TLSv1.3" if version == ssl.TLSVersion.TLSv1_3 else "TLSv1.2")
    return True


@pytest.mark.parametrize("client", [*CORE, *PYTHON])
@pytest.mark.parametrize("server", [*CORE, *PYTHON])
def test_every_engine_against_every_other(server: str, client: str, tls: Certificates) -> None:
    found = [name for name, version in VERSIONS.items() if agreed(server, client, version, tls)]
    assert ", ".join(found) == documented()[server, client]


def test_the_page_knows_all_engines() -> None:
    assert {name for name, _ in documented()} == {*CORE, *PYTHON}
