"""Twisted's protocols on any of becket's transports: what becket.serve() is given as a factory, and
what the endpoints ``becket:…`` connect.

An asyncio.Protocol stands below, a Twisted transport above; both directions are passed on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import address, error, interfaces, main
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from becket.served import Served


@implementer(interfaces.IAddress)
class Address:
    """Of a transport that has none that Twisted knows: a pipe, memory, a third party's."""

    def __init__(self, name: object) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Address({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self.name == other.name

    def __hash__(self) -> int:
        return hash(str(self.name))


def address_of(name: Any) -> Any:
    """What Twisted calls an address of asyncio's."""
    if isinstance(name, tuple) and len(name) == 2:
        return address.IPv4Address("TCP", *name)
    if isinstance(name, tuple) and len(name) == 4:
        return address.IPv6Address("TCP", *name)
    if isinstance(name, (str, bytes)):
        return address.UNIXAddress(name or None)
    return Address(name)


@implementer(
    interfaces.ITCPTransport, interfaces.IConsumer, interfaces.IPushProducer,
    interfaces.IHalfCloseableDescriptor, interfaces.ILoggingContext,
)  # fmt: skip
class Transport:
    """What a Twisted protocol sees of a connection."""

    producer: Any = None
    streamingProducer = False
    connected = disconnecting = disconnected = False
    ended = False  # our direction
    reason: Failure | None = None  # for connectionLost(), where we know better
    _feeder: Any = None

    def __init__(self, below: asyncio.Transport, protocol: Any) -> None:
        self._below, self._protocol = below, protocol
        self.connected = True

    def logPrefix(self) -> str:
        """Who has a line in the log."""
        return type(self._protocol).__name__

    # ---- Sending ----

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if not isinstance(data, bytes):
            raise TypeError("Data must be bytes")
        if self.connected and not self.ended:
            self._below.write(data)

    def writeSequence(self, iovec: Any) -> None:
        """Send an iterable of bytes."""
        for data in iovec:
            self.write(data)

    def loseConnection(self) -> None:
        """Close, when all is sent and no producer has more."""
        self.disconnecting = True
        if self.producer is None:
            self._below.close()

    def loseWriteConnection(self) -> None:
        """End our direction, when all is sent."""
        if self.ended or not self.connected:
            return
        if not self._below.can_write_eof():
            self.loseConnection()
            return
        self.ended = True
        self._below.write_eof()
        half = interfaces.IHalfCloseableProtocol(self._protocol, None)
        if half is not None:
            half.writeConnectionLost()

    def abortConnection(self) -> None:
        """Close now; what is not sent yet is lost."""
        if not self.disconnected and self.reason is None:
            self.reason = Failure(error.ConnectionAborted())
            self._below.abort()

    # ---- Who produces ----

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Tell a producer when to go on, and one that streams when to pause."""
        if self.producer is not None:
            raise RuntimeError(
                f"Cannot register producer {producer}, because producer {self.producer} "
                "was never unregistered."
            )
        if self.disconnected:
            producer.stopProducing()
            return
        self.producer, self.streamingProducer = producer, streaming
        if not streaming:
            from twisted.internet._producer_helpers import _PullToPush

            self._feeder = _PullToPush(producer, self)
            self._feeder.startStreaming()

    def unregisterProducer(self) -> None:
        """It has no more."""
        if self._feeder is not None:
            self._feeder.stopStreaming()
        self.producer = self._feeder = None
        if self.disconnecting:
            self._below.close()

    def tell_producer(self, method: str) -> None:
        """Called when more waits than is good, and when less does."""
        producer = self._feeder if self._feeder is not None else self.producer
        if producer is not None:
            getattr(producer, method)()

    # ---- Receiving ----

    def pauseProducing(self) -> None:
        """Receive nothing for now."""
        self._below.pause_reading()

    def resumeProducing(self) -> None:
        """Receive again."""
        if self.connected and not self.disconnecting:
            self._below.resume_reading()

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    # ---- What is known ----

    def getHost(self) -> Any:
        """This side's address."""
        return address_of(self._below.get_extra_info("sockname"))

    def getPeer(self) -> Any:
        """The other side's address."""
        return address_of(self._below.get_extra_info("peername"))

    def getHandle(self) -> Any:
        """The socket, if it is one; None."""
        return self._below.get_extra_info("socket")

    def getPeerCertificate(self) -> Any:
        """What the other side showed under TLS, as ssl tells it; None."""
        return self._below.get_extra_info("peercert")

    def _option(self, level: int, name: int, *value: int) -> Any:
        sock = self.getHandle()
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        return sock.setsockopt(level, name, *value) if value else sock.getsockopt(level, name)

    def getTcpNoDelay(self) -> bool:
        """Whether small writes go at once."""
        return bool(self._option(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Have small writes go at once."""
        self._option(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(enabled))

    def getTcpKeepAlive(self) -> bool:
        """Whether the system asks if the peer is there still."""
        return bool(self._option(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Have the system ask if the peer is there still."""
        self._option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(enabled))


class Adapter(asyncio.Protocol):
    """An asyncio.Protocol that calls one of Twisted's, which a factory makes."""

    def __init__(self, factory: Any, ended: Callable[[], object] | None = None) -> None:
        self._factory = factory
        self._ended = ended  # called when the protocol has lost its connection
        self._protocol: Any = None
        self._transport: Transport | None = None

    @property
    def protocol(self) -> Any:
        """Twisted's; None: the factory has refused."""
        return self._protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        below: Any = transport
        peer = address_of(below.get_extra_info("peername"))
        try:
            self._protocol = self._factory.buildProtocol(peer)
        except Exception:
            log.err()
        if self._protocol is None:
            below.abort()
            return
        self._transport = Transport(below, self._protocol)
        self._call(self._protocol.makeConnection, self._transport)

    def _call(self, method: Any, *args: Any) -> None:
        """What is raised is logged, and ends the connection."""
        try:
            method(*args)
        except Exception:
            failure = Failure()
            log.err(failure)
            if self._transport is not None and self._transport.reason is None:
                self._transport.reason = failure
                self._transport._below.abort()

    def data_received(self, data: bytes) -> None:
        if self._transport is not None and self._transport.reason is None:
            self._call(self._protocol.dataReceived, data)

    def eof_received(self) -> bool:
        half = interfaces.IHalfCloseableProtocol(self._protocol, None)
        if half is not None:
            self._call(half.readConnectionLost)
        return half is not None

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._call(self._transport.tell_producer, "pauseProducing")

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._call(self._transport.tell_producer, "resumeProducing")

    def connection_lost(self, exc: BaseException | None) -> None:
        transport = self._transport
        if transport is None:
            return
        transport.connected, transport.disconnected = False, True
        if transport.producer is not None:
            self._call(transport.producer.stopProducing)
            transport.producer = None
        reason = transport.reason
        if reason is None:
            reason = Failure(main.CONNECTION_DONE if exc is None else main.CONNECTION_LOST)
        try:
            self._protocol.connectionLost(reason)
        except Exception:
            log.err()
        self._transport = self._protocol = None
        if self._ended is not None:
            self._ended()


def served(factory: Any, name: str, refusal: bytes | None) -> Served:
    """A factory as the drivers ask for it. A server is a port of it, whatever loops it has."""
    return Served(
        "factory",
        name,
        factory=lambda _loop: lambda: Adapter(factory),
        refusal=refusal,
        started=factory.doStart,
        ended=factory.doStop,
    )
