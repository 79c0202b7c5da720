"""A small aiohttp application on becket.EventLoop: the server of test_aiohttp.py.

    aiohttp_app.py SOCKET [CERTIFICATE KEY]

listens on a free port of 127.0.0.1, by TLS when there is a certificate, and on the UNIX socket. It
says where on standard output, and ends by SIGINT or SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys

from aiohttp import WSMsgType, web

import becket

MIB = 1024 * 1024
routes = web.RouteTableDef()
HANDLING = web.AppKey("handling", list)


@web.middleware
async def count(request: web.Request, handler) -> web.StreamResponse:
    handling = request.app[HANDLING]
    handling.append(None)
    try:
        return await handler(request)
    except ConnectionResetError:  # wrk leaves in the midst of a request when its time is up
        return web.Response()
    finally:
        handling.pop()


@routes.get("/")
async def hello(_: web.Request) -> web.Response:
    return web.Response(text="Hello, world!")


@routes.get("/loop")
async def loop_name(_: web.Request) -> web.Response:
    loop = type(asyncio.get_running_loop())
    return web.Response(text=f"{loop.__module__}.{loop.__qualname__}")


@routes.get("/others")
async def others(request: web.Request) -> web.Response:
    """How many other requests are being handled."""
    return web.Response(text=str(len(request.app[HANDLING]) - 1))


@routes.post("/echo")
async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


@routes.post("/length")
async def length(request: web.Request) -> web.Response:
    """Reads a body slowly, so that the sender has to wait."""
    total = 0
    async for data in request.content.iter_any():
        total += len(data)
        await asyncio.sleep(0)
    return web.Response(text=str(total))


@routes.get("/stream")
async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for number in range(100):
        await response.write(f"{number}:".encode() + b"s" * (number * 100) + b"\n")
        if number % 3 == 0:
            await asyncio.sleep(0.001)
    await response.write_eof()
    return response


@routes.get("/endless")
async def endless(request: web.Request) -> web.StreamResponse:
    """As much as the client takes; ends when it leaves."""
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b"e" * 100_000)
    except ConnectionResetError:
        pass
    return response


@routes.get("/ws")
async def socket_echo(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(max_msg_size=32 * MIB)
    await ws.prepare(request)
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            await ws.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await ws.send_bytes(message.data)
    return ws


async def main(path: str, certificate: list[str]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    app = web.Application(client_max_size=64 * MIB, middlewares=[count])
    app[HANDLING] = []
    app.add_routes(routes)
    context = None
    if certificate:
        loop.set_debug(False)  # in debug mode, asyncio reports each client whose handshake fails
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        await web.UnixSite(runner, path).start()
        print("listening at", runner.addresses[0][1], flush=True)
        await ended.wait()
    finally:
        await runner.cleanup()
    print("ended", flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=becket.EventLoop) as a_runner:
        a_runner.run(main(sys.argv[1], sys.argv[2:]))
