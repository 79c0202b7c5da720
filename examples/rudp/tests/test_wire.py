"""What rudp says on the wire, and what it makes of peers and strangers who mean harm."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

import becket
from becket import _becket
from rudp import Lossy, Rudp, Settings
from rudp.packets import (
    ACK,
    INIT_BYTES,
    PAYLOAD,
    Accept,
    Ack,
    Data,
    Init,
    Packet,
    Ping,
    Reset,
    Retry,
    pack,
    parse,
)
from rudp.receiver import PIECES, Receiver
from rudp.sender import Sender

PACKETS: list[Packet] = [
    Init(5, 7, b""),
    Init(2**64 - 1, 2**32 - 1, b"c" * 16),
    Retry(b"c" * 16),
    Accept(6, 9),
    Data(2**63, b"x" * PAYLOAD, False),
    Data(3, b"", True),
    Ack(4, 5, ()),
    Ack(4, 5, tuple((i, i + 1) for i in range(8))),
    Reset(),
    Ping(),
]


# ---- Packets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("packet", PACKETS, ids=lambda p: type(p).__name__)
def test_packets_come_back(packet: Packet) -> None:
    datagram = pack(77, packet)
    assert parse(datagram) == (0 if isinstance(packet, Init) else 77, packet)
    assert len(datagram) <= 1232  # what every IPv6 path takes, less its headers


@pytest.mark.parametrize("packet", PACKETS, ids=lambda p: type(p).__name__)
def test_packets_that_were_cut_are_none(packet: Packet) -> None:
    """Only DATA is data whatever its length, and an ACK with fewer ranges is one."""
    datagram = pack(77, packet)
    for size in range(len(datagram)):
        parsed = parse(datagram[:size])
        assert parsed is None or isinstance(parsed[1], (Data, Ack))
    assert isinstance(packet, Data) or parse(datagram + b"x") is None


def test_noise_is_none() -> None:
    noise = random.Random(3)
    for size in range(300):
        parse(noise.randbytes(size))  # raises nothing
        parse(bytes((0xB7, size % 9)) + noise.randbytes(size))
    assert parse(pack(1, Ping())[:1] + bytes((ACK,)) + b"x" * 1000) is None


# ---- Halves --------------------------------------------------------------------------------------


def sender(room: int = 100_000, limit: int = 1 << 30) -> Sender:
    made = Sender(room, least_rto=0.1, first_rto=1.0, most_rto=60.0)
    made.limit = limit
    return made


def test_retransmission_time() -> None:
    """RFC 6298: from the first round trip on, doubled by each time-out, and reset by news."""
    s = sender()
    s.write(b"x")
    assert [g.payload for g in s.take(10.0)] == [b"x"]
    assert s.deadline == 11.0
    s.timed_out(11.0)
    assert s.deadline == 13.0
    assert [g.times for g in s.take(11.0)] == [2]
    assert s.acknowledged(11.5, 1, 100, ())
    assert (s.smooth, s.rto, s.deadline) == (None, 1.0, None)  # Karn: which one was it?
    s.write(b"y")
    list(s.take(20.0))
    s.acknowledged(20.2, 2, 100, ())
    assert (s.smooth, s.variation) == (pytest.approx(0.2), pytest.approx(0.1))
    assert s.rto == pytest.approx(0.6)


def test_loss_by_overtaking_halves_the_window_once() -> None:
    s = sender()
    s.write(b"x" * PAYLOAD * 10)
    assert len(list(s.take(1.0))) == 10
    window = s.window
    assert s.acknowledged(1.1, 0, 100_000, ((PAYLOAD * 3, PAYLOAD * 6),))
    assert [g.position for g in s.segments if g.lost] == [0, PAYLOAD, PAYLOAD * 2]
    assert s.window == pytest.approx((window + 3 * PAYLOAD) / 2)
    assert [g.position for g in s.take(1.1)] == [0, PAYLOAD]


def test_a_time_out_leaves_two_packets() -> None:
    s = sender()
    s.write(b"x" * PAYLOAD * 10)
    list(s.take(1.0))
    s.timed_out(2.0)
    assert len(list(s.take(2.0))) == 2


def test_the_peers_room_is_kept_to() -> None:
    s = sender(limit=PAYLOAD + 5)
    s.write(b"x" * PAYLOAD * 3)
    assert [len(g.payload) for g in s.take(1.0)] == [PAYLOAD, 5]
    assert s.acknowledged(1.1, PAYLOAD + 5, 0, ())
    assert s.stuck
    assert s.deadline is not None
    assert not s.acknowledged(1.2, PAYLOAD + 5, 10, ())
    assert [len(g.payload) for g in s.take(1.2)] == [10]


def test_acknowledgements_of_what_was_never_sent() -> None:
    s = sender()
    s.write(b"x" * 100)
    list(s.take(1.0))
    for position, ranges in ((101, ()), (0, ((50, 60),)), (0, ((99, 0),)), (0, ((200, 300),))):
        assert not s.acknowledged(1.1, position, 10, ranges)
    assert len(s.segments) == 1


def test_the_end_is_acknowledged_too() -> None:
    s = sender()
    s.write(b"x")
    s.finishing = True
    assert [(g.payload, g.fin) for g in s.take(1.0)] == [(b"x", False), (b"", True)]
    s.acknowledged(1.1, 1, 10, ())
    assert not s.done
    s.acknowledged(1.2, 2, 10, ())
    assert s.done
    assert s.deadline is None


@pytest.mark.parametrize("seed", range(20))
def test_pieces_in_any_order(seed: int) -> None:
    """Doubled, overlapping, and with the end somewhere among them."""
    chance = random.Random(seed)
    data = chance.randbytes(5000)
    pieces = [(0, b"", False)]
    for _ in range(200):
        at = chance.randrange(5000)
        pieces.append((at, data[at : at + chance.randrange(1, 300)], False))
    pieces += [(at, data[at : at + 100], False) for at in range(0, 5000, 100)]
    pieces.append((5000, b"", True))
    chance.shuffle(pieces)
    r, got = Receiver(6000), b""
    for piece in pieces:
        r.receive(*piece)
        got += r.read(chance.randrange(1000))
    got += r.read(10_000)
    assert got == data
    assert r.ended
    assert r.position == 5001


def test_what_is_beyond_the_window_is_dropped() -> None:
    r = Receiver(1000)
    r.receive(1, b"x" * 1000, False)
    assert r.pieces == {}
    r.receive(0, b"x" * 1000, False)
    assert (r.window(), r.unread) == (0, 1000)
    r.receive(1000, b"y", False)
    assert r.position == 1000


def test_single_bytes_are_not_kept_without_end() -> None:
    r = Receiver(100_000)
    for at in range(1, 3000, 2):
        r.receive(at, b"x", False)
    assert len(r.pieces) == PIECES
    assert len(r.ranges()) == 8


def test_ends_that_contradict_each_other() -> None:
    r = Receiver(1000)
    r.receive(5, b"x" * 5, False)
    r.receive(7, b"", True)  # before what has come
    assert r.end is None
    r.receive(10, b"", True)
    r.receive(20, b"", True)
    r.receive(8, b"x" * 8, False)  # behind the end
    r.receive(0, b"y" * 5, False)
    assert r.read(100) == b"yyyyyxxxxx"
    assert r.ended


# ---- Over a socket -------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    connected: ClassVar[list[Client]] = []

    def __init__(self) -> None:
        self.transport: Any = None
        self.data = b""
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.connected.append(self)

    @classmethod
    async def abort_all(cls) -> None:
        for client in cls.connected:
            client.transport.abort()
            await client.lost

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.data == b"echo":
            self.transport.write(b"ECHO")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@pytest.fixture
def loop() -> Iterator[becket.EventLoop]:
    made = becket.EventLoop()
    Client.connected.clear()
    yield made
    made.run_until_complete(Client.abort_all())
    made.close()


def listen(loop: becket.EventLoop, settings: Settings | None = None) -> tuple[Rudp, str, Any]:
    rudp = Rudp(settings or Settings(least_rto=0.02, first_rto=0.05))
    loop.add_scheme(rudp)
    listener = _becket.Listener(loop, "rudp://127.0.0.1:0", Client)
    assert listener.name is not None
    return rudp, listener.name, listener


def address_of(name: str) -> tuple[str, int]:
    return "127.0.0.1", int(name.rpartition(":")[2])


def stranger(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(address_of(name))
    sock.setblocking(False)
    return sock


async def answer(loop: becket.EventLoop, sock: socket.socket, packet: bytes) -> Any:
    await loop.sock_sendall(sock, packet)
    parsed = parse(await asyncio.wait_for(loop.sock_recv(sock, 2048), 5))
    assert parsed is not None
    return parsed[1]


def connections(rudp: Rudp, loop: becket.EventLoop) -> list[Any]:
    return [c for port in rudp.ports.get(loop, ()) for c in port.connections.values()]


def test_nothing_is_kept_for_strangers(loop: becket.EventLoop) -> None:
    """Who has not shown that answers reach him gets one that is shorter than his question."""

    async def main() -> None:
        rudp, name, _ = listen(loop)
        with stranger(name) as sock:
            for number in range(50):
                retry = await answer(loop, sock, pack(0, Init(number, 1000, b"")))
                assert isinstance(retry, Retry)
                assert len(pack(number, retry)) < INIT_BYTES / 10
            assert connections(rudp, loop) == []
            # A cookie is for one address, one number and a short time.
            for number, cookie in ((49, b"c" * 16), (48, retry.cookie)):
                again = await answer(loop, sock, pack(0, Init(number, 1000, cookie)))
                assert isinstance(again, Retry)
            with stranger(name) as other:
                again = await answer(loop, other, pack(0, Init(49, 1000, retry.cookie)))
                assert isinstance(again, Retry)
            assert connections(rudp, loop) == []
            first = await answer(loop, sock, pack(0, Init(49, 1000, retry.cookie)))
            second = await answer(loop, sock, pack(0, Init(49, 1000, retry.cookie)))
            assert first == second
            assert isinstance(first, Accept)
            assert len(connections(rudp, loop)) == 1

    loop.run_until_complete(main())


def test_connections_are_counted(loop: becket.EventLoop) -> None:
    async def main() -> None:
        rudp, name, _ = listen(loop, Settings(connections=1, connect=0.2, first_rto=0.05))
        await loop.connect_endpoint(Client, name)
        with pytest.raises(TimeoutError):
            await loop.connect_endpoint(Client, name)
        assert len(connections(rudp, loop)) == 2  # the two ends of the first

    loop.run_until_complete(main())


def test_strangers_are_not_heeded(loop: becket.EventLoop) -> None:
    """Without the connection's number, or from another address, whatever they say."""

    async def main() -> None:
        rudp, name, _ = listen(loop)
        transport, client = await loop.connect_endpoint(Client, name)
        numbers = [c.number for c in connections(rudp, loop)]
        with stranger(name) as sock:
            for number in (0, 1, *numbers, *(n ^ 1 for n in numbers)):
                for packet in PACKETS:
                    await loop.sock_sendall(sock, pack(number, packet))
            for size in (0, 1, 10, 2000):
                await loop.sock_sendall(sock, b"\xb7" * size)
        transport.write(b"echo")
        while client.data != b"":
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert not client.lost.done()
        assert all(c.error is None for c in connections(rudp, loop))

    loop.run_until_complete(main())


def test_a_peer_who_means_harm(loop: becket.EventLoop) -> None:
    """One who has a connection, and says nonsense in it, breaks nothing but that."""

    async def main() -> None:
        rudp, name, _ = listen(loop)
        with stranger(name) as sock:
            retry = await answer(loop, sock, pack(0, Init(9, 1000, b"")))
            accept = await answer(loop, sock, pack(0, Init(9, 1000, retry.cookie)))
            chance = random.Random(5)
            for _ in range(300):
                position = chance.choice((0, 1, 999, 2**63, 2**64 - 1))
                packets = (
                    Data(position, b"x" * chance.randrange(1, 1000), False),
                    Data(position, b"", True),
                    Ack(position, chance.randrange(2**32), ((position, 0), (0, position))),
                    Accept(chance.randrange(2**64), 0),
                    Retry(b"c" * 16),
                    Ping(),
                )
                await loop.sock_sendall(sock, pack(accept.server, chance.choice(packets)))
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
        transport, client = await loop.connect_endpoint(Client, name)
        transport.close()
        assert await client.lost is None
        assert rudp.ports

    loop.run_until_complete(main())


def test_nobody_is_there(loop: becket.EventLoop) -> None:
    async def main() -> None:
        loop.add_scheme(Rudp())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await loop.connect_endpoint(Client, f"rudp://127.0.0.1:{port}")

    loop.run_until_complete(main())


def test_nobody_answers(loop: becket.EventLoop) -> None:
    async def main() -> None:
        loop.add_scheme(Rudp(Settings(connect=0.2, first_rto=0.05)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            with pytest.raises(TimeoutError):
                await loop.connect_endpoint(Client, f"rudp://127.0.0.1:{sock.getsockname()[1]}")

    loop.run_until_complete(main())


def test_a_peer_falls_silent(loop: becket.EventLoop) -> None:
    """He is asked whether he is there, and after some time he is not."""

    async def main() -> None:
        network = Lossy(1)
        rudp = Rudp(Settings(idle=0.3), network)
        loop.add_scheme(rudp)
        listener = _becket.Listener(loop, "rudp://127.0.0.1:0", Client)
        assert listener.name is not None
        _, client = await loop.connect_endpoint(Client, listener.name)
        await asyncio.sleep(0.6)
        assert not client.lost.done()  # both are there, and say so
        network.loss = 1.0
        assert isinstance(await asyncio.wait_for(client.lost, 10), TimeoutError)

    loop.run_until_complete(main())


def test_a_closed_connection_lingers_no_longer_than_it_may(loop: becket.EventLoop) -> None:
    async def main() -> None:
        network = Lossy(1)
        rudp = Rudp(Settings(linger=0.2, least_rto=0.01, first_rto=0.02), network)
        loop.add_scheme(rudp)
        _becket.Listener(loop, "rudp://127.0.0.1:0", Client).close()
        listener = _becket.Listener(loop, "rudp://127.0.0.1:0", Client)
        assert listener.name is not None
        transport, client = await loop.connect_endpoint(Client, listener.name)
        network.loss = 1.0
        transport.write(b"nobody will hear this")
        transport.close()
        assert await client.lost is None
        async with asyncio.timeout(10):
            while len(connections(rudp, loop)) > 1:
                await asyncio.sleep(0.01)

    loop.run_until_complete(main())


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("rudp:", "a host and a port are missing"),
        ("rudp://127.0.0.1", "a host and a port are missing"),
        ("rudp://127.0.0.1:7/x", "nothing follows the port"),
        ("rudp://127.0.0.1:7?a=b", "has no option a"),
    ],
)
def test_endpoints_that_are_wrong(loop: becket.EventLoop, endpoint: str, words: str) -> None:
    loop.add_scheme(Rudp())
    with pytest.raises(ValueError, match=words):
        _becket.Listener(loop, endpoint, Client)
    with pytest.raises(ValueError, match=words):
        loop.run_until_complete(loop.connect_endpoint(Client, endpoint))


@pytest.mark.parametrize("endpoint", ["rudp://:7", "rudp://localhost:7"])
def test_clients_need_an_address(loop: becket.EventLoop, endpoint: str) -> None:
    loop.add_scheme(Rudp())
    with pytest.raises(ValueError, match=r"missing|needs an IP address"):
        loop.run_until_complete(loop.connect_endpoint(Client, endpoint))


def test_the_port_is_taken(loop: becket.EventLoop) -> None:
    _, name, _ = listen(loop)
    with pytest.raises(OSError, match="in use"):
        _becket.Listener(loop, name, Client)


def test_ipv6(loop: becket.EventLoop) -> None:
    async def main() -> None:
        loop.add_scheme(Rudp())
        listener = _becket.Listener(loop, "rudp://[::1]:0", Client)
        assert listener.name is not None
        assert listener.name.startswith("rudp://[::1]:")
        transport, client = await loop.connect_endpoint(Client, listener.name)
        assert transport.get_extra_info("peername")[0] == "::1"
        transport.close()
        assert await client.lost is None

    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(main())
