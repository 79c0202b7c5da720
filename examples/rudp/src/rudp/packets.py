"""What is on the wire: each datagram one packet.

All begin with a byte that tells ours from others', the kind, and the number that the receiver of
the packet chose for this connection: 64 random bits, so that who does not see the packets cannot
make one that is heeded. Positions in the stream have 64 bits, and never wrap.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = 0xB7
INIT, RETRY, ACCEPT, DATA, ACK, RESET, PING = range(1, 8)

PAYLOAD = 1200  # bytes of data in one packet; with all headers it fits where IPv6 does
INIT_BYTES = 1200  # a first packet is as long as any answer to it
COOKIE_BYTES = 16
RANGES = 8  # in one acknowledgement

_HEAD = struct.Struct("!BBQ")
_INIT = struct.Struct("!QIB")  # the client's number, its window, whether a cookie follows
_ACCEPT = struct.Struct("!QI")  # the server's number, its window
_DATA = struct.Struct("!QB")  # position, whether it is the end
_ACK = struct.Struct("!QI")  # all before this position has come; window
_RANGE = struct.Struct("!QQ")


@dataclass(frozen=True, slots=True)
class Init:
    client: int
    window: int
    cookie: bytes


@dataclass(frozen=True, slots=True)
class Retry:
    cookie: bytes


@dataclass(frozen=True, slots=True)
class Accept:
    server: int
    window: int


@dataclass(frozen=True, slots=True)
class Data:
    position: int
    payload: bytes
    fin: bool


@dataclass(frozen=True, slots=True)
class Ack:
    position: int
    window: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Reset:
    pass


@dataclass(frozen=True, slots=True)
class Ping:
    pass


Packet = Init | Retry | Accept | Data | Ack | Reset | Ping


def pack(number: int, packet: Packet) -> bytes:
    """The datagram for a packet; number is the receiver's."""
    match packet:
        case Init(client, window, cookie):
            body = _INIT.pack(client, window, bool(cookie)) + cookie
            return (_HEAD.pack(MAGIC, INIT, 0) + body).ljust(INIT_BYTES, b"\0")
        case Retry(cookie):
            return _HEAD.pack(MAGIC, RETRY, number) + cookie
        case Accept(server, window):
            return _HEAD.pack(MAGIC, ACCEPT, number) + _ACCEPT.pack(server, window)
        case Data(position, payload, fin):
            return _HEAD.pack(MAGIC, DATA, number) + _DATA.pack(position, fin) + payload
        case Ack(position, window, ranges):
            body = b"".join(_RANGE.pack(*r) for r in ranges)
            return _HEAD.pack(MAGIC, ACK, number) + _ACK.pack(position, window) + body
        case Reset():
            return _HEAD.pack(MAGIC, RESET, number)
        case Ping():
            return _HEAD.pack(MAGIC, PING, number)


def parse(datagram: bytes) -> tuple[int, Packet] | None:
    """The receiver's number and the packet; None: it is none of ours, or damaged."""
    try:
        magic, kind, number = _HEAD.unpack_from(datagram)
        packet = _parse_body(kind, datagram[_HEAD.size :], len(datagram))
    except struct.error:
        return None
    return (number, packet) if magic == MAGIC and packet is not None else None


def _parse_body(kind: int, body: bytes, size: int) -> Packet | None:
    if kind == INIT and size == INIT_BYTES:
        client, window, has_cookie = _INIT.unpack_from(body)
        return Init(client, window, body[_INIT.size :][: COOKIE_BYTES if has_cookie else 0])
    if kind == RETRY and len(body) == COOKIE_BYTES:
        return Retry(body)
    if kind == ACCEPT and len(body) == _ACCEPT.size:
        return Accept(*_ACCEPT.unpack(body))
    if kind == DATA:
        position, fin = _DATA.unpack_from(body)
        payload = body[_DATA.size :]
        good = fin in (0, 1) and len(payload) <= PAYLOAD and (payload or fin)
        return Data(position, payload, bool(fin)) if good else None
    if kind == ACK:
        position, window = _ACK.unpack_from(body)
        rest = body[_ACK.size :]
        if len(rest) > RANGES * _RANGE.size or len(rest) % _RANGE.size:
            return None
        return Ack(position, window, tuple(_RANGE.iter_unpack(rest)))
    if kind == RESET and not body:
        return Reset()
    return Ping() if kind == PING and not body else None
