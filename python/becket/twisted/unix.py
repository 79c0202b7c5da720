"""Twisted's UNIX sockets on becket's core, descriptors that are passed through them too.

Those that come are told of by the core. Whoever sends one has a transport that is all Twisted's
from then on: each goes with a byte of its own, in a call of its own.
"""

from __future__ import annotations

from twisted.internet import unix as twisted_unix

from becket.twisted import tcp


class _Passing(tcp.Stream):
    """What both transports have."""

    _passes_fds = True

    def _fds_came(self, numbers: bytes) -> None:
        """Called by the C half, before the bytes that they came with."""
        self._ancillaryLevelSOLSOCKETTypeSCMRIGHTS(numbers)  # type: ignore[attr-defined]

    def sendFileDescriptor(self, fileno: int) -> None:
        """Send a descriptor with the next byte that is sent."""
        if self._attached:
            self._leave_stream()
        super().sendFileDescriptor(fileno)  # type: ignore[misc]

    def _leave_stream(self) -> None:
        """Go on as Twisted's own: what is not sent yet is taken over."""
        reading, unsent = self._is_reading(), self._take_unsent()
        self._detach()
        self._tempDataBuffer.extend(unsent)  # type: ignore[attr-defined]
        self._tempDataLen += sum(map(len, unsent))  # type: ignore[attr-defined]
        if reading:
            self.startReading()
        if unsent or self.disconnecting or self._writeDisconnecting:
            self.startWriting()


class Server(_Passing, tcp.Accepted, twisted_unix.Server):
    """A connection that came in."""


class Client(_Passing, tcp.Made, twisted_unix.Client):
    """A connection that was made."""


class Connector(tcp.Connecting, twisted_unix.Connector):
    """Makes a connection, and again."""

    def _makeTransport(self) -> Client:
        return Client(self.address, self, self.reactor, self.checkPID)


class Port(tcp.Listening, twisted_unix.Port):
    """A listening socket."""

    transport = Server
