"""aioquic: QUIC and HTTP/3 over UDP, server and client on one loop."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager

import pytest
from aioquic.asyncio import connect, serve
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration

from interop.h3 import H3Client, H3Echo, client_configuration


@asynccontextmanager
async def server(tls, **options):
    """A server's port."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(tls.path("server.crt"), tls.path("server.key"))
    made = await serve("127.0.0.1", 0, configuration=configuration, **options)
    try:
        yield made._transport.get_extra_info("sockname")[1]
    finally:
        made.close()
        await asyncio.sleep(0)


def client(tls, port: int, **options):
    options = {"configuration": client_configuration(tls.path("ca.crt"))} | options
    return connect("127.0.0.1", port, **options)


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read())
    writer.write_eof()


class Echoes:
    """A server's handler of streams, and the tasks it has begun."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def __call__(self, *stream) -> None:
        self.tasks.append(asyncio.create_task(echo_stream(*stream)))


@pytest.mark.parametrize("retry", [False, True])
def test_streams(run, tls, retry):
    async def main() -> None:
        handler = Echoes()
        async with server(tls, stream_handler=handler, retry=retry) as port:
            async with client(tls, port) as connection:
                assert connection._loop is asyncio.get_running_loop()
                await connection.ping()

                async def talk(size: int) -> None:
                    data = os.urandom(size)
                    reader, writer = await connection.create_stream()
                    writer.write(data)
                    writer.write_eof()
                    assert await reader.read() == data

                await asyncio.gather(*(talk(size) for size in (0, 1, 1200, 65_536, 100_000)))
                connection.request_key_update()
                connection.change_connection_id()
                await talk(1000)
        await asyncio.gather(*handler.tasks)

    run(main())


def test_http(run, tls):
    async def main() -> None:
        async with server(tls, create_protocol=H3Echo) as port:
            async with client(tls, port, create_protocol=H3Client) as connection:
                name = type(asyncio.get_running_loop()).__name__
                assert await connection.ask("GET", "/loop") == (200, name.encode())
                bodies = [os.urandom(number * 500) for number in range(20)]
                answers = await asyncio.gather(
                    *(connection.ask("POST", "/echo", body) for body in bodies)
                )
                assert answers == [(200, body) for body in bodies]

    run(main())


def test_many_clients(run, tls):
    async def main() -> None:
        async with server(tls, create_protocol=H3Echo) as port:

            async def talk(number: int) -> None:
                async with client(tls, port, create_protocol=H3Client) as connection:
                    body = b"%d" % number
                    assert await connection.ask("POST", "/echo", body) == (200, body)

            await asyncio.gather(*(talk(number) for number in range(10)))

    run(main())


def test_a_session_is_taken_up_again(run, tls):
    """A client that comes back sends its request before the handshake is over."""

    async def main() -> None:
        tickets, kept = asyncio.Queue(), {}
        memory = {
            "session_ticket_handler": lambda ticket: kept.update({ticket.ticket: ticket}),
            "session_ticket_fetcher": lambda label: kept.pop(label, None),
        }
        async with server(tls, create_protocol=H3Echo, **memory) as port:
            options = {"create_protocol": H3Client, "session_ticket_handler": tickets.put_nowait}
            async with client(tls, port, **options):
                ticket = await tickets.get()
            configuration = client_configuration(tls.path("ca.crt"))
            configuration.session_ticket = ticket
            options = {"create_protocol": H3Client, "configuration": configuration}
            async with client(tls, port, **options, wait_connected=False) as connection:
                assert await connection.ask("POST", "/echo", b"early") == (200, b"early")
                assert connection._quic.tls.session_resumed
                assert connection._quic.tls.early_data_accepted

    run(main())


def test_a_certificate_that_is_not_trusted(run, tls):
    async def main() -> None:
        async with server(tls, create_protocol=H3Echo) as port:
            with pytest.raises(ConnectionError):
                async with client(tls, port, configuration=client_configuration(None)):
                    pass

    run(main())
