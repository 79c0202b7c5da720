"""becket.open(): a connection to any endpoint as a pair of asyncio's streams."""

from __future__ import annotations

import asyncio

from becket.loop import EventLoop


async def open(
    endpoint: str, *, limit: int = 65536
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to an endpoint, as asyncio.open_connection() does to a host and a port.

    *limit* is the StreamReader's, in bytes. Errors are those of EventLoop.connect_endpoint();
    RuntimeError where the running loop is not a becket.EventLoop.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, EventLoop):
        raise RuntimeError(
            f"becket.open() needs a becket.EventLoop, not {type(loop).__name__}: "
            "run it by becket.run(), or with loop_factory=becket.EventLoop"
        )
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_endpoint(lambda: protocol, endpoint)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
