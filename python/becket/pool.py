"""Threads that serve connections, each one at a time on an event loop of its own.

A ``Pool`` is given connections by the loop that accepts them (``_becket.Hand``). Threads are
started as they are needed, up to a limit, and kept. Called by becket.drivers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import socket
import threading
import time
from asyncio import runners
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from becket import _becket
from becket.connection import Connection
from becket.loop import EventLoop, blocking_loop

if TYPE_CHECKING:
    from becket.served import Served

logger = logging.getLogger("becket")

LINGER = 5.0  # seconds in which what a function has sent must be taken, once it has returned


class Handed(NamedTuple):
    """A connection that a thread is given: a connected socket, and what was received already."""

    fd: int
    data: bytes
    peer: Any
    local: Any
    away: (
        _becket.Away | None
    )  # its stream on the loop that accepted it, which rests; None: that is relayed


# ---- One connection ------------------------------------------------------------------------------


def call_blocking(served: Served, loop: EventLoop, handed: Handed) -> None:
    """Run a blocking protocol on a connection, until it is over."""
    assert served.call is not None
    connection = Connection._adopt(
        loop, handed.fd, handed.data, {"peername": handed.peer, "sockname": handed.local}
    )
    if handed.away is not None:
        connection._follow(handed.away)
    failed = True
    try:
        served.call(connection)
        failed = False
    except OSError as error:  # connections break: that is no news
        logger.debug("%s: %s", served.name, error)
    except Exception:
        logger.exception("%s failed", served.name)
    finally:
        if handed.away is not None:
            handed.away.leave()
        if failed:
            connection._abort()
        else:
            _close(served, connection)
        if handed.away is not None:
            handed.away.done(failed)


def _close(served: Served, connection: Connection) -> None:
    try:
        connection._close(LINGER)
    except OSError as error:
        logger.debug("%s: %s", served.name, error)


class _End:
    """Stands where a transport has its asyncio.Server: told when the connection is lost."""

    def __init__(self, loop: EventLoop, away: _becket.Away | None) -> None:
        self._loop, self._away = loop, away

    def _attach(self, transport: object = None) -> None:
        pass

    def _detach(self, transport: object = None) -> None:
        if self._away is not None:
            self._away.leave()
        self._loop.stop()


def run_protocol(served: Served, loop: EventLoop, handed: Handed) -> None:
    """Run an asyncio protocol on a connection, on a loop of its own, until it is lost; its tasks
    may finish, those that wait for something else are cancelled."""
    assert served.factory is not None
    sock = socket.socket(fileno=handed.fd)
    try:
        transport = loop._make_socket_transport(
            sock,
            served.factory(loop)(),
            extra={"peername": handed.peer, "sockname": handed.local},
            server=_End(loop, handed.away),  # type: ignore[arg-type]
        )
        if handed.away is not None:
            handed.away.follow(transport)  # type: ignore[arg-type]
        loop.run_forever()
        _finish_tasks(loop)
    except Exception:
        logger.exception("%s failed", served.name)
    finally:
        sock.close()
        if handed.away is not None:
            handed.away.done(False)


def _finish_tasks(loop: EventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=1))
        runners._cancel_all_tasks(loop)  # type: ignore[attr-defined]


def _renew(loop: EventLoop) -> EventLoop:
    """Another loop, for one that was left in the midst of something."""
    with contextlib.suppress(BaseException):
        runners._cancel_all_tasks(loop)  # type: ignore[attr-defined]
    loop.close()
    loop = blocking_loop()
    asyncio.set_event_loop(loop)
    return loop


# ---- Threads -------------------------------------------------------------------------------------


class Pool:
    """At most *limit* threads, each of which serves one connection at a time.

    *done*, if given, is called in a pool's thread after each connection that is relayed, and whose
    loop therefore does not hear of it. ``give()`` is called by one thread only; close() by the
    same.
    """

    def __init__(
        self, served: Served, limit: int, done: Callable[[], object] | None = None
    ) -> None:
        self._served = served
        self._serve = call_blocking if served.call is not None else run_protocol
        self._limit = limit
        self._done = done
        self._queue: queue.SimpleQueue[Handed | None] = queue.SimpleQueue()
        self._idle: deque[None] = deque()  # an entry for each thread that waits for work
        self._threads: list[threading.Thread] = []

    def give(self, *handed: Any) -> None:
        """Serve a connection when a thread is free: the fields of a Handed."""
        try:
            self._idle.pop()
        except IndexError:
            if len(self._threads) < self._limit:
                self._start_thread()
        self._queue.put(Handed(*handed))

    def _start_thread(self) -> None:
        name = f"becket-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        loop = blocking_loop()
        asyncio.set_event_loop(loop)
        try:
            while (handed := self._queue.get()) is not None:
                try:
                    self._serve(self._served, loop, handed)
                except BaseException:  # SystemExit too: a thread is not the program
                    logger.exception("%s failed", self._served.name)
                    loop = _renew(loop)
                self._idle.append(None)
                if self._done is not None and handed.away is None:
                    self._done()
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def close(self, timeout: float) -> int:
        """End the threads; returns how many were still at work after *timeout* seconds. Those end
        with the process."""
        deadline = time.monotonic() + timeout
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return sum(thread.is_alive() for thread in self._threads)
