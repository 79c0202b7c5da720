"""A small ASGI application without a framework: what test_uvicorn.py and test_hypercorn.py
let them serve."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive) -> bytes | None:
    """None: the client has left."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def stream(send: Send, count: int) -> None:
    """Pieces of growing size, with and without a pause between them."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(count):
        if number % 3 == 0:
            await asyncio.sleep(0.001)
        piece = f"{number}:".encode() + b"s" * (number * 100) + b"\n"
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def lifespan(receive: Receive, send: Send) -> None:
    for phase in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{phase}"
        await send({"type": f"lifespan.{phase}.complete"})


async def echo_messages(receive: Receive, send: Send) -> None:
    """A WebSocket that hears what it says."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send(message | {"type": "websocket.send"})


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    if scope["type"] == "websocket":
        return await echo_messages(receive, send)
    assert scope["type"] == "http", scope
    return await answer_request(scope, receive, send)


async def answer_request(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    route = scope["method"], scope["path"]
    if route == ("GET", "/"):
        await answer(send, 200, b"Hello, world!")
    elif route == ("GET", "/loop"):
        loop = type(asyncio.get_running_loop())
        await answer(send, 200, f"{loop.__module__}.{loop.__qualname__}".encode())
    elif route == ("POST", "/echo"):
        body = await read_body(receive)
        if body is not None:
            await answer(send, 200, body)
    elif route == ("GET", "/stream"):
        await stream(send, 100)
    elif route == ("GET", "/large"):
        await answer(send, 200, bytes(range(256)) * 40_000)
    else:
        await answer(send, 404, b"there is no such page")
