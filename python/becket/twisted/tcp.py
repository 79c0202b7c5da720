"""Twisted's TCP on becket's core: ports and connections whose transfer is in C.

A transport here is Twisted's own with the methods of ``_becket.Wire`` in front: that receives and
writes, over a stream of the core. Making connections, addresses and the end are Twisted's.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import _newtls, abstract, main
from twisted.internet import tcp as twisted_tcp
from twisted.internet.interfaces import ISSLTransport
from twisted.python import context, log
from twisted.python.failure import Failure
from zope.interface import directlyProvides

from becket import _becket


class _Plain:
    """What TLS in mid-stream is given in the place of the transport's class: a way past itself."""

    write = _becket.Wire._write_plain
    writeSequence = _becket.Wire._write_sequence_plain
    loseConnection = abstract.FileDescriptor.loseConnection

    @staticmethod
    def registerProducer(stream: Stream, producer: Any, streaming: bool) -> None:
        abstract.FileDescriptor.registerProducer(stream, producer, streaming)
        stream._mind_unsent()

    unregisterProducer = abstract.FileDescriptor.unregisterProducer


class Stream(_becket.Wire):
    """The head of every transport: what the C half calls, and what goes with attaching it."""

    reactor: Any
    socket: Any
    logstr: str
    _tlsClientDefault: bool
    _passes_fds = False  # through UNIX sockets, with the bytes
    _host: Any = None
    getHandle: Any
    getPeerCertificate: Any

    def _name_in_log(self) -> None:
        """What is logged while the protocol is called is said to come from here."""
        known = dict(context.get(log.ILogContext) or {})
        prefix = self.logPrefix()  # type: ignore[attr-defined]
        self._system = {log.ILogContext: known | {"system": prefix}}

    def _attach_socket(self) -> None:
        self._name_in_log()
        self._attach(self.reactor._becket, self.socket.fileno(), self._passes_fds)

    def _watch(self, method: str) -> None:
        """Without a stream, the descriptor is watched: connecting is Twisted's."""
        getattr(self.reactor, method)(self)

    # ---- Called by the C half ----

    def _raised(self, exception: BaseException) -> None:
        """The protocol, or a producer, raised that: it is logged, and ends the connection."""
        failure = Failure(exception, type(exception), exception.__traceback__)
        log.err(failure)
        self.stopReading()
        self._end(failure)

    def _ended(self) -> None:
        """The peer will send no more."""
        self.stopReading()
        done = Failure(main.CONNECTION_DONE)
        log.callWithLogger(self, self.readConnectionLost, done)  # type: ignore[attr-defined]

    def _broken(self) -> None:
        """The stream is gone: reading or writing failed."""
        self._end(Failure(main.CONNECTION_LOST))

    def _all_sent(self) -> None:
        """All that was written is sent, and the end, or that of our direction, was asked for."""
        if self.disconnecting:
            self._end(Failure(main.CONNECTION_DONE))
        elif not self._writeDisconnected:
            self._writeDisconnected = True
            self._closeWriteConnection()  # type: ignore[attr-defined]

    def _end(self, why: Failure) -> None:
        log.callWithLogger(self, self.connectionLost, why)  # type: ignore[attr-defined]

    def _write_slowly(self, data: bytes) -> None:
        """Without a stream, all is as with Twisted's own."""
        abstract.FileDescriptor.write(self, data)

    def _write_sequence_slowly(self, pieces: list[bytes]) -> None:
        abstract.FileDescriptor.writeSequence(self, pieces)

    # ---- In the place of Twisted's ----

    def getHost(self) -> Any:
        """Our own address, which does not change while there is a connection."""
        if self._host is not None:
            return self._host
        host = super().getHost()  # type: ignore[misc]
        if self._attached:
            self._host = host
        return host

    def startTLS(self, ctx: Any, normal: bool = True) -> None:
        """TLS from now on; *normal*: a client of TCP is one of TLS too."""
        from becket.twisted import tls

        producer, streaming = self.producer, self.streamingProducer
        if producer is not None:
            self.unregisterProducer()  # type: ignore[attr-defined]
        factory = tls.Factory(ctx, self._tlsClientDefault == bool(normal), None)
        self.protocol = factory.protocol(factory, self.protocol, False)
        self.getHandle = self.protocol.getHandle
        self.getPeerCertificate = self.protocol.getPeerCertificate
        directlyProvides(self, ISSLTransport)
        self.TLS = True
        self.protocol.makeConnection(_newtls._BypassTLS(_Plain, self))
        if producer is not None:
            self.registerProducer(producer, bool(streaming))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Tell a producer when to go on, and one that streams when to pause."""
        super().registerProducer(producer, streaming)  # type: ignore[misc]
        self._mind_unsent()

    def _mind_unsent(self) -> None:
        """A producer is to hear when what was written before it came has been sent."""
        if self._is_writing():
            self.startWriting()

    def abortConnection(self) -> None:
        """Close now; what is not sent yet is lost."""
        super().abortConnection()  # type: ignore[misc]
        self._detach()

    def _closeSocket(self, orderly: bool) -> None:
        self._detach()
        super()._closeSocket(orderly)  # type: ignore[misc]


class Accepted(Stream):
    """What connections that came in have."""

    _begun = False

    def startReading(self) -> None:
        """Receive, from now on or again."""
        if not self._begun:
            self._begun = True
            self._attach_socket()
        super().startReading()


class Made(Stream):
    """What connections that were made have."""

    def _connectDone(self) -> None:
        self._attach_socket()
        super()._connectDone()  # type: ignore[misc]
        if self._attached:
            self._name_in_log()


def _use_c(factory: Any) -> None:
    """TLS that a factory stands for is to be ours, if it is Twisted's."""
    if "twisted.protocols.tls" in sys.modules:
        from becket.twisted import tls

        tls.use_c(factory)


class Connecting:
    """What connectors have."""

    factory: Any

    def connect(self) -> None:
        """Connect, for the first time or again."""
        _use_c(self.factory)
        super().connect()  # type: ignore[misc]


class Listening:
    """What ports have."""

    factory: Any

    def startListening(self) -> None:
        """Accept connections from now on."""
        _use_c(self.factory)
        super().startListening()  # type: ignore[misc]


class Server(Accepted, twisted_tcp.Server):
    """A connection that came in."""


class Client(Made, twisted_tcp.Client):
    """A connection that was made."""


class Connector(Connecting, twisted_tcp.Connector):
    """Makes a connection, and again."""

    def _makeTransport(self) -> Client:
        return Client(self.host, self.port, self.bindAddress, self, self.reactor)


class Port(Listening, twisted_tcp.Port):
    """A listening socket."""

    transport = Server
