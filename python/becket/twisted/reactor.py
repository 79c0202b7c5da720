"""becket.twisted.BecketReactor: Twisted's reactor on a becket.EventLoop.

Time, connections and what is said over them are in C (``_becket.Timers``, ``_becket.Wire``).
Everything else (name resolution, threads, processes, datagrams, triggers) is what Twisted's own
POSIX reactors do in Python, over the methods replaced here; so it behaves, in each version of
Twisted, as that version does.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

from twisted.internet import base, error, process
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet
from twisted.internet.main import installReactor
from twisted.internet.posixbase import PosixReactorBase
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import classImplements, implementer

import becket
from becket import _becket
from becket.twisted import tcp, unix

_log = Logger()

classImplements(_becket.DelayedCall, IDelayedCall)


def _nothing() -> None:
    pass


def _report(call: _becket.DelayedCall, exception: BaseException) -> None:
    """What a call raised that the loop has made goes to Twisted's log."""
    failure = Failure(exception, type(exception), exception.__traceback__)
    made = "".join(["\ntraceback at creation:\n", *call.creator]) if call.creator else ""
    _log.failure(
        "Unhandled error in a timed call, or one from a thread{made}", failure=failure, made=made
    )


def _loop_to_share() -> becket.EventLoop:
    """The loop of this thread where it is one of ours; else a new one, which asyncio then has."""
    try:
        found: Any = asyncio.get_running_loop()
    except RuntimeError:
        found = getattr(asyncio.get_event_loop_policy(), "_local", None)
        found = getattr(found, "_loop", None)
    if isinstance(found, becket.EventLoop) and not found.is_closed():
        return found
    loop = becket.EventLoop()
    asyncio.set_event_loop(loop)
    return loop


class _ChildSignals:
    """Children that have ended are asked for when SIGCHLD has come: the loop wakes by itself."""

    def __init__(self, reactor: BecketReactor) -> None:
        self._reactor, self._installed = reactor, False

    def install(self) -> None:
        self._installed = True
        signal.signal(signal.SIGCHLD, self._came)
        signal.siginterrupt(signal.SIGCHLD, False)
        process.reapAllProcesses()  # of those that were started before

    def uninstall(self) -> None:
        if self._installed:
            self._installed = False
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _came(self, *_ignored: object) -> None:
        self._reactor.callFromThread(process.reapAllProcesses)


@implementer(IReactorFDSet)
class BecketReactor(AsyncioSelectorReactor):
    """A Twisted reactor whose transfer is one unit in C.

    *loop*, a becket.EventLoop, is shared with asyncio's code: both run at once. Without one it is
    that of the running thread, or a new one; ValueError: it is closed. It is the reactor of
    ``becket.twisted.install()``. Not thread-safe, but for callFromThread().
    """

    _justStopped: bool

    def __init__(self, loop: becket.EventLoop | None = None) -> None:
        loop = _loop_to_share() if loop is None else loop
        if loop.is_closed():
            raise ValueError("loop: it is closed")
        self._becket = loop
        self._children = _ChildSignals(self)
        timers = _becket.Timers(loop, self.__dict__, self.seconds, _report, base.DelayedCall)
        self._timers = timers
        self.callLater = timers.call_later
        self.callFromThread = timers.call_from_thread
        self.getDelayedCalls = timers.pending
        super().__init__(loop)

    # ---- Running ----

    def installWaker(self) -> None:
        """The loop has one of its own."""

    def wakeUp(self) -> None:
        """End the wait the loop is in, or the next one. From any thread."""
        self._becket.call_soon_threadsafe(_nothing)

    def run(self, installSignalHandlers: bool = True) -> None:
        """Run until stop() is called, and all has been shut down."""
        self.startRunning(installSignalHandlers=installSignalHandlers)
        try:
            self.mainLoop()
        finally:
            self._children.uninstall()

    def mainLoop(self) -> None:
        """What run() does once it has started."""
        if self._started:  # a trigger of the start may have crashed it
            self._becket.run_forever()

    def iterate(self, delay: float = 0.0) -> None:
        """Make one turn, waiting at most *delay* seconds for something to do. From within a turn,
        calls that are due are made, and nothing else."""
        if self._becket.is_running():
            self._timers.run_due()
            return
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self._becket)
        try:
            self._becket._turn(delay)
        finally:
            asyncio._set_running_loop(before)

    def stop(self) -> None:
        """Shut down, in the next turn, and end run(). ReactorNotRunning: it does not run."""
        PosixReactorBase.stop(self)
        self._becket.call_soon_threadsafe(self._shut_down)

    def _shut_down(self) -> None:
        if self._justStopped:
            self._justStopped = False
            self.fireSystemEvent("shutdown")

    def crash(self) -> None:
        """End run() at once."""
        PosixReactorBase.crash(self)
        if self._becket.is_running():  # else it would end the next run
            self._becket.stop()

    # Twisted before 23 asks the first, later ones the second.

    def _handleSignals(self) -> None:
        from twisted.internet.base import _SignalReactorMixin

        _SignalReactorMixin._handleSignals(self)
        self._children.install()

    def _signalsFactory(self) -> Any:
        from twisted.internet._signals import _MultiSignalHandling

        return _MultiSignalHandling((base.ReactorBase._signalsFactory(self), self._children))

    # ---- Descriptors ----

    def addReader(self, reader: Any) -> None:
        """Call reader.doRead() each time it is ready, as IReactorFDSet says."""
        if isinstance(reader, tcp.Stream) and reader._attached:
            reader.startReading()
        else:
            super().addReader(reader)

    def removeReader(self, reader: Any) -> None:
        """Call reader.doRead() no more."""
        if isinstance(reader, tcp.Stream) and reader._attached:
            reader.stopReading()
        else:
            super().removeReader(reader)

    def getReaders(self) -> list[Any]:
        """All that is read from, connections too."""
        readers: list[Any] = super().getReaders()
        return readers + [s for s in self._streams() if s._is_reading()]

    def getWriters(self) -> list[Any]:
        """All that waits to be written to, connections too."""
        writers: list[Any] = super().getWriters()
        return writers + [s for s in self._streams() if s._is_writing()]

    def removeAll(self) -> list[Any]:
        """Watch nothing any more; returns what was watched."""
        streams = [s for s in self._streams() if s._is_reading() or s._is_writing()]
        for stream in streams:
            stream.stopReading()
        others: list[Any] = super().removeAll()
        return others + streams

    def _streams(self) -> list[Any]:
        return [s for s in self._becket._wires() if s.reactor.__dict__ is self.__dict__]

    # ---- Connections ----

    def listenTCP(
        self, port: Any, factory: Any, backlog: int = 50, interface: str = ""
    ) -> tcp.Port:
        """Accept connections at a port; 0: any. CannotListenError: it cannot be had."""
        listening = tcp.Port(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30.0,
        bindAddress: Any = None,
    ) -> tcp.Connector:
        """Connect, within *timeout* seconds; the factory hears how it went."""
        connector = tcp.Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0
    ) -> unix.Port:
        """Accept connections at a path. CannotListenError: it cannot be had."""
        listening = unix.Port(address, factory, backlog, mode, self, wantPID)
        listening.startListening()
        return listening

    def connectUNIX(
        self, address: Any, factory: Any, timeout: float = 30, checkPID: int = 0
    ) -> unix.Connector:
        """Connect to a path, within *timeout* seconds; the factory hears how it went."""
        connector = unix.Connector(address, factory, timeout, self, checkPID)
        connector.connect()
        return connector

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: Any, factory: Any) -> Any:
        """Accept connections on a copy of a listening socket."""
        if addressFamily not in self._supportedAddressFamilies:
            raise error.UnsupportedAddressFamily(addressFamily)
        listening: Any
        if addressFamily == socket.AF_UNIX:
            listening = unix.Port._fromListeningDescriptor(self, fileDescriptor, factory)
        else:
            listening = tcp.Port._fromListeningDescriptor(
                self, fileDescriptor, addressFamily, factory
            )
        listening.startListening()
        return listening

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: Any, factory: Any) -> Any:
        """A connection over a copy of a connected socket."""
        if addressFamily not in self._supportedAddressFamilies:
            raise error.UnsupportedAddressFamily(addressFamily)
        if addressFamily == socket.AF_UNIX:
            return unix.Server._fromConnectedSocket(fileDescriptor, factory, self)
        return tcp.Server._fromConnectedSocket(fileDescriptor, addressFamily, factory, self)


def install(loop: becket.EventLoop | None = None) -> None:
    """becket.twisted.install(): here too, as in the modules of Twisted's reactors."""
    installReactor(BecketReactor(loop))
