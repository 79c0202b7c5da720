"""dnspython's asyncio half against a name server in the same loop: by UDP, TCP and TLS, and from a
datagram that did not hold the answer to TCP."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dns.asyncbackend
import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import pytest


def answer(query: dns.message.Message, *, datagram: bool) -> dns.message.Message:
    """``N.short.test`` has one address; ``long.test`` has more than a datagram holds; nothing else
    is there."""
    response = dns.message.make_response(query)
    name = query.question[0].name.to_text()
    if name.endswith("short.test."):
        number = int(name.partition(".")[0])
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", f"10.0.0.{number}"))
    elif name == "long.test." and datagram:
        response.flags |= dns.flags.TC
    elif name == "long.test.":
        texts = [f'"{number} {"x" * 200}"' for number in range(200)]
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", *texts))
    else:
        response.set_rcode(dns.rcode.NXDOMAIN)
    return response


class Datagrams(asyncio.DatagramProtocol):
    """Answers by UDP, ``lost.test`` and what is no query excepted."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        if query.question[0].name.to_text() != "lost.test.":
            self.transport.sendto(answer(query, datagram=True).to_wire(), addr)


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers by TCP or TLS, as long as queries come."""
    try:
        while True:
            (size,) = struct.unpack("!H", await reader.readexactly(2))
            query = dns.message.from_wire(await reader.readexactly(size))
            wire = answer(query, datagram=False).to_wire()
            writer.write(struct.pack("!H", len(wire)) + wire)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


@asynccontextmanager
async def name_server(tls) -> AsyncIterator[tuple[int, int]]:
    """The port for UDP and TCP, and that for TLS."""
    loop = asyncio.get_running_loop()
    while True:  # until the port is free for UDP too
        plain = await asyncio.start_server(converse, "127.0.0.1", 0)
        where = plain.sockets[0].getsockname()
        try:
            transport, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=where)
            break
        except OSError:
            plain.close()
            await plain.wait_closed()
    secure = await asyncio.start_server(converse, "127.0.0.1", 0, ssl=tls.server())
    try:
        yield where[1], secure.sockets[0].getsockname()[1]
    finally:
        transport.close()
        plain.close()
        secure.close()
        await asyncio.gather(plain.wait_closed(), secure.wait_closed())


def test_the_resolver(run, tls):
    async def main() -> None:
        async with name_server(tls) as (port, _):
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameservers, resolver.port = ["127.0.0.1"], port
            found = await asyncio.gather(
                *(resolver.resolve(f"{number}.short.test.") for number in range(100))
            )
            assert [f[0].address for f in found] == [f"10.0.0.{n}" for n in range(100)]
            with pytest.raises(dns.resolver.NXDOMAIN):
                await resolver.resolve("none.test.")
            assert len(await resolver.resolve("long.test.", "TXT")) == 200
            assert len(await resolver.resolve("long.test.", "TXT", tcp=True)) == 200

    run(main())


def test_queries_of_each_kind(run, tls):
    async def main() -> None:
        async with name_server(tls) as (port, secure):
            short = dns.message.make_query("7.short.test.", "A")
            ways = [
                (dns.asyncquery.udp, {"port": port}),
                (dns.asyncquery.tcp, {"port": port}),
                (dns.asyncquery.tls, {"port": secure, "ssl_context": tls.client()}),
            ]
            for ask, options in ways:
                response = await ask(short, "127.0.0.1", **options)
                assert response.answer[0][0].address == "10.0.0.7"
            long = dns.message.make_query("long.test.", "TXT")
            response, by_tcp = await dns.asyncquery.udp_with_fallback(long, "127.0.0.1", port=port)
            assert by_tcp
            assert len(response.answer[0]) == 200
            for ask, options in ways[1:]:
                assert len((await ask(long, "127.0.0.1", **options)).answer[0]) == 200

    run(main())


def test_many_queries_on_one_socket(run, tls):
    async def main() -> None:
        backend = dns.asyncbackend.get_default_backend()
        assert backend.name() == "asyncio"
        async with name_server(tls) as (port, _):
            async with await backend.make_socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as sock:
                for number in range(100):
                    query = dns.message.make_query(f"{number}.short.test.", "A")
                    response = await dns.asyncquery.udp(query, "127.0.0.1", port=port, sock=sock)
                    assert response.answer[0][0].address == f"10.0.0.{number}"

    run(main())


def test_nobody_answers(run, tls):
    async def main() -> None:
        async with name_server(tls) as (port, _):
            query = dns.message.make_query("lost.test.", "A")
            with pytest.raises(dns.exception.Timeout):
                await dns.asyncquery.udp(query, "127.0.0.1", port=port, timeout=0.01)
        with pytest.raises(OSError):  # and nobody is there
            await dns.asyncquery.tcp(query, "127.0.0.1", port=port)

    run(main())
