"""The standard library's ``socketserver``, on becket's engine: the same names, to be imported from
here instead.

    from becket.socketserver import StreamRequestHandler, ThreadingTCPServer

A server binds as the standard one does; ``serve_forever()`` accepts in C. What is better:

- ``ThreadingMixIn`` never has more than *max_threads* threads: connections beyond them wait in the
  backlog. ``ForkingMixIn`` forks its *workers* beforehand, restarts those that die, and shares
  *max_children* connections among them. ``TCPServer`` calls handlers in the thread that called
  serve_forever(), one after the other, as ever.
- *tls* puts TLS in front, by the options of an endpoint: ``tls = "cert=site.pem&key=site.key"``.
- *limits* are those of becket.Server: ``limits = {"max_per_address": 10, "idle": 60}``.
- ``shutdown()`` lets handlers finish, for *drain* seconds.

A handler's ``request`` is a becket.Connection, which has what handlers use of a socket. The
datagram servers, and ``handle_request()``, are the standard library's own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socketserver
import threading
from collections.abc import Callable, Mapping
from socketserver import (
    BaseRequestHandler,
    BaseServer,
    DatagramRequestHandler,
    StreamRequestHandler,
    ThreadingUDPServer,
    UDPServer,
)
from typing import Any, ClassVar

from becket import drivers
from becket.connection import Connection
from becket.loop import EventLoop, blocking_loop
from becket.pool import Handed, Pool
from becket.served import Served
from becket.server import Plan, check_limits

__all__ = [
    "BaseRequestHandler",
    "BaseServer",
    "DatagramRequestHandler",
    "StreamRequestHandler",
    "TCPServer",
    "ThreadingMixIn",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "UDPServer",
]


def client_address(connection: Connection) -> Any:
    """As ``socket.accept()`` has it: "" for a peer without an address."""
    peer = connection.peer
    return "" if peer is None else peer


class HandlerServer:
    """What a request handler has as its ``server``, when it is becket.Server that serves it."""

    def __init__(self, handler: type[BaseRequestHandler]) -> None:
        self.RequestHandlerClass = handler


# ---- Threads -------------------------------------------------------------------------------------


class _OwnThread(Pool):
    """A pool whose one thread is the one that called serve_forever()."""

    def __init__(self, served: Served, done: Callable[[], object] | None) -> None:
        super().__init__(served, 1, done)

    def give(self, *handed: Any) -> None:
        self._queue.put(Handed(*handed))

    def work(self, server: TCPServer, poll_interval: float) -> None:
        """Serve until the pool is closed."""
        loop = blocking_loop()
        try:
            while True:
                server.service_actions()
                with contextlib.suppress(queue.Empty):
                    handed = self._queue.get(timeout=poll_interval)
                    if handed is None:
                        return
                    self._serve(self._served, loop, handed)
                    if self._done is not None and handed.away is None:
                        self._done()
        finally:
            loop.close()

    def close(self, timeout: float) -> int:
        self._queue.put(None)
        return 0


class _OwnShare(drivers.ThreadsShare):
    def _make_pool(self) -> Pool:
        return _OwnThread(self.plan.served, self._done)


class _OwnDriver(drivers.Threads):
    def _share(self, loop: EventLoop) -> drivers.Share:
        return _OwnShare(1, self.plan, self._gate, loop, self._end)


# ---- Servers -------------------------------------------------------------------------------------


class TCPServer(socketserver.TCPServer):
    """As socketserver.TCPServer."""

    tls: ClassVar[str | None] = None
    limits: ClassVar[Mapping[str, int]] = {}
    drain: ClassVar[float] = 30.0
    request_queue_size = 1024  # the kernel lowers it to its own limit; 5 drops who comes in a burst

    _running: drivers.Driver | None = None  # from the beginning of serve_forever() to its end
    _asked: threading.Event  # to end
    _stopped: threading.Event

    # ---- What is called for a connection, in its thread ----

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection, and end it."""
        self.finish_request(request, client_address)
        self.shutdown_request(request)

    def _call(self, connection: Connection) -> None:
        address = client_address(connection)
        try:
            if self.verify_request(connection, address):  # type: ignore[arg-type]
                self.process_request(connection, address)
            else:
                self.shutdown_request(connection)  # type: ignore[arg-type]
        except Exception:
            self.handle_error(connection, address)  # type: ignore[arg-type]
            self.shutdown_request(connection)  # type: ignore[arg-type]

    # ---- Running ----

    def _endpoint(self) -> str:
        """How the socket's endpoint would be written; it is there already."""
        return f"{'tls+' if self.tls else ''}fd:{self.fileno()}{f'?{self.tls}' if self.tls else ''}"

    def _plan(self, max_threads: int = 1) -> Plan:
        served = Served("handler", type(self).__qualname__, call=self._call)
        limits = check_limits(self.limits)
        return Plan(served, (self._endpoint(),), limits, self.drain, max_threads, True)

    def _driver(self) -> drivers.Driver:
        return _OwnDriver(self._plan(), 1)

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Handle connections until shutdown(). service_actions() is called every *poll_interval*
        seconds."""
        driver = self._driver()
        driver.given = {self._endpoint(): [self.fileno()]}
        self._asked, self._stopped = threading.Event(), threading.Event()
        self._running = driver
        try:
            driver.start()  # clients may be served, and ask us to end, before this returns
            if not self._asked.is_set():
                self._wait(driver, poll_interval)
        finally:
            self._running = None
            driver.stop(self.drain)
            self._stopped.set()

    def _wait(self, driver: drivers.Driver, poll_interval: float) -> None:
        share = driver.shares[0]
        assert isinstance(share, _OwnShare) and isinstance(share.pool, _OwnThread)
        share.pool.work(self, poll_interval)

    def shutdown(self) -> None:
        """End serve_forever(), which another thread runs, and wait for that."""
        driver = self._running
        if driver is None:
            return
        self._asked.set()
        self._end(driver)
        self._stopped.wait()

    def _end(self, driver: drivers.Driver) -> None:
        """Let _wait() return."""
        for share in list(driver.shares):
            share.stop(self.drain)


class _Background:
    """Of servers whose handlers run elsewhere: what serve_forever() does meanwhile."""

    def _wait(self: Any, driver: drivers.Driver, poll_interval: float) -> None:
        while not self._asked.wait(poll_interval):
            self.service_actions()

    def _end(self, driver: drivers.Driver) -> None:
        pass  # _wait() has been asked


class ThreadingMixIn(_Background):
    """Handle each connection in a thread, of which there are at most *max_threads*."""

    max_threads: ClassVar[int] = 128
    daemon_threads = False
    block_on_close = True

    def _driver(self: Any) -> drivers.Driver:
        return drivers.make(f"threads:{self.max_threads}", self._plan())


class ThreadingTCPServer(ThreadingMixIn, TCPServer):
    """As socketserver.ThreadingTCPServer."""


if hasattr(os, "fork"):
    from socketserver import ForkingUDPServer

    class ForkingMixIn(_Background):
        """Handle connections in *workers* processes, at most *max_children* at once."""

        max_children: ClassVar[int] = 40
        workers: ClassVar[int] = os.cpu_count() or 1
        block_on_close = True

        def _driver(self: Any) -> drivers.Driver:
            workers = min(self.workers, self.max_children)
            return drivers.make(f"forks:{workers}", self._plan(self.max_children // workers))

    class ForkingTCPServer(ForkingMixIn, TCPServer):
        """As socketserver.ForkingTCPServer."""

    __all__ += ["ForkingMixIn", "ForkingTCPServer", "ForkingUDPServer"]


if hasattr(socketserver, "UnixStreamServer"):
    from socketserver import ThreadingUnixDatagramServer, UnixDatagramServer

    class UnixStreamServer(TCPServer):
        """As socketserver.UnixStreamServer."""

        address_family = socketserver.UnixStreamServer.address_family

    class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer):
        """As socketserver.ThreadingUnixStreamServer."""

    __all__ += [
        "ThreadingUnixDatagramServer",
        "ThreadingUnixStreamServer",
        "UnixDatagramServer",
        "UnixStreamServer",
    ]
