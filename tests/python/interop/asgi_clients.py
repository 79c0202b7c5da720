"""Clients of asgi_app.py that its servers' tests share."""

from __future__ import annotations

import os
import socket
import ssl

from websockets.asyncio.client import ClientConnection

from interop.processes import PATIENCE


async def echo_messages(connection: ClientConnection) -> None:
    """Messages of all sizes, and of text, come back."""
    for size in (0, 1, 125, 126, 65_535, 65_536, 1_000_000):
        data = os.urandom(size)
        await connection.send(data)
        assert await connection.recv() == data
    await connection.send("grüße")
    assert await connection.recv() == "grüße"


def leave_in_the_middle(port: int, context: ssl.SSLContext | None = None) -> None:
    """Of a request, of a large response, of a streamed one."""
    for request in (
        b"GET / HT",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf",
        b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname="localhost")
        with sock:
            sock.sendall(request)
            if request.startswith(b"GET /l"):
                assert sock.recv(100)
