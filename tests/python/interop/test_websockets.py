"""websockets, server and client, on one loop: plain, by TLS, and at a UNIX socket."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect, unix_connect
from websockets.asyncio.server import serve, unix_serve
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

SIZES = (0, 1, 125, 126, 65_535, 65_536, 1_000_000)


async def echo(connection) -> None:
    assert connection.loop is asyncio.get_running_loop()
    async for message in connection:
        await connection.send(message)


@pytest.fixture(params=["tcp", "tls", "unix"])
def pair(request, tls, short_path):
    """Makes a server with a handler, and a client's function that connects to it."""

    @asynccontextmanager
    async def pair(handler, *, compression="deflate", **more):
        common = {"max_size": None, "ping_interval": None, "compression": compression}
        options = common | more
        if request.param == "unix":
            async with unix_serve(handler, short_path, **options) as server:
                yield server, lambda: unix_connect(short_path, **common)
            return
        secure = request.param == "tls"
        async with serve(
            handler, "127.0.0.1", 0, ssl=tls.server() if secure else None, **options
        ) as server:
            where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            where = f"wss://{where}" if secure else f"ws://{where}"
            context = {"ssl": tls.client()} if secure else {}
            yield server, lambda: connect(where, **common, **context)

    return pair


@pytest.mark.parametrize("compression", ["deflate", None])
def test_messages_of_every_size(run, pair, compression):
    async def main() -> None:
        async with pair(echo, compression=compression) as (_, connect):
            async with connect() as connection:
                for size in SIZES:
                    data = os.urandom(size)
                    await connection.send(data)
                    assert await connection.recv() == data
                await connection.send("grüße")
                assert await connection.recv() == "grüße"
                await asyncio.wait_for(await connection.ping(), None)
            assert connection.close_code == 1000

    run(main())


def test_fragments(run, pair):
    """A message that is sent in pieces, and read in pieces."""
    pieces = [os.urandom(size) for size in (1, 70_000, 7, 200_000)]

    async def handler(connection) -> None:
        await connection.send(piece async for piece in connection.recv_streaming(decode=False))

    async def main() -> None:
        async with pair(handler) as (_, connect), connect() as connection:
            await connection.send(pieces)
            assert await connection.recv() == b"".join(pieces)

    run(main())


def test_many_messages_at_once(run, pair):
    """Whoever sends does not wait for the answers, and has to wait for a peer that is slow."""
    texts = [f"message {number} " + "ü" * (number % 500) for number in range(300)]

    async def main() -> None:
        async with pair(echo, write_limit=1024, max_queue=4) as (_, connect):
            async with connect() as connection:

                async def send() -> None:
                    for text in texts:
                        await connection.send(text)

                sending = asyncio.create_task(send())
                assert [await connection.recv() for _ in texts] == texts
                await sending

    run(main())


def test_many_clients(run, pair):
    async def main() -> None:
        async with pair(echo) as (_, connect):

            async def talk(number: int) -> None:
                async with connect() as connection:
                    for count in range(5):
                        text = f"{number}: {count}"
                        await connection.send(text)
                        assert await connection.recv() == text

            await asyncio.gather(*(talk(number) for number in range(15)))

    run(main())


def test_closing_from_either_end(run, pair):
    async def leave(connection) -> None:
        await connection.close(1001, "enough")

    async def main() -> None:
        async with pair(leave) as (_, connect), connect() as connection:
            with pytest.raises(ConnectionClosedOK) as caught:
                await connection.recv()
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "enough")
        heard = asyncio.get_running_loop().create_future()

        async def listen(connection) -> None:
            with pytest.raises(ConnectionClosedError) as caught:
                await connection.recv()
            heard.set_result(caught.value.rcvd.code)

        async with pair(listen) as (_, connect), connect() as connection:
            await connection.close(4000)
            assert await heard == 4000

    run(main())


def test_a_connection_that_is_cut(run, pair):
    """Both ends learn of it at once; nothing is left behind."""
    heard = []

    async def listen(connection) -> None:
        with pytest.raises(ConnectionClosedError) as caught:
            await connection.recv()
        heard.append(caught.value.rcvd)

    async def main() -> None:
        async with pair(listen) as (_, connect):
            connection = await connect()
            connection.transport.abort()
            await connection.wait_closed()
            with pytest.raises(ConnectionClosedError):
                await connection.send("too late")

    run(main())
    assert heard == [None]


def test_the_server_goes_away(run, pair):
    async def main() -> None:
        async with pair(echo) as (server, connect), connect() as connection:
            await connection.send("a")
            assert await connection.recv() == "a"
            server.close()
            await server.wait_closed()
            with pytest.raises(ConnectionClosedOK) as caught:
                await connection.recv()
            assert caught.value.rcvd.code == 1001
            with pytest.raises(OSError):
                await connect()

    run(main())


def test_a_client_that_is_turned_away(run, pair):
    def refuse(connection, request):
        return connection.respond(403, "not you\n")

    async def main() -> None:
        async with pair(echo, process_request=refuse) as (_, connect):
            with pytest.raises(InvalidStatus) as caught:
                await connect()
            assert caught.value.response.status_code == 403

    run(main())
