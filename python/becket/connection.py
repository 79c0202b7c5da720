"""becket.Connection: a connection for blocking code, over every transport and TLS engine.

What is received and sent is in C (``_becket.Connection``); here is what is asked for once or twice
in a connection's life. Made by becket.connect(), or by a server for its handlers.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
from typing import Any, cast

from becket import _becket
from becket.loop import EventLoop, _tls_times, blocking_loop

_UNASKED = object()
_counting = threading.Lock()  # of a connection's files: each may be a thread's own


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class _File(io.RawIOBase):
    """What makefile() wraps; as long as it is open, so is the connection below it."""

    def __init__(self, connection: Connection, mode: str) -> None:
        super().__init__()
        self._connection: Connection | None = connection
        self._mode = mode
        self._timed_out = False
        with _counting:
            connection._files += 1

    def readable(self) -> bool:
        return "r" in self._mode

    def writable(self) -> bool:
        return "w" in self._mode

    def _below(self, able: bool, word: str) -> Connection:
        if self._connection is None:
            raise ValueError("I/O operation on closed file.")
        if not able:
            raise io.UnsupportedOperation(f"File not open for {word}")
        return self._connection

    def readinto(self, buffer: Any) -> int | None:
        connection = self._below(self.readable(), "reading")
        if self._timed_out:  # the buffer above has lost what it had read for that call
            raise OSError("cannot read from timed out object")
        try:
            return connection.recv_into(buffer)
        except BlockingIOError:
            return None
        except TimeoutError:
            self._timed_out = True
            raise

    def write(self, data: Any) -> int | None:
        try:
            return self._below(self.writable(), "writing").send(data)
        except BlockingIOError:
            return None

    def fileno(self) -> int:
        return self._below(True, "").fileno()

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection._file_closed()


class Connection(_becket.Connection):
    """A connection for blocking code: tcp, unix, tls, … all alike. becket.connect() makes one, and
    so does a server for its handlers.

    It has a socket's methods and errors (ConnectionResetError, BrokenPipeError; TimeoutError, or
    BlockingIOError, after settimeout(); OSError with EBADF once it is closed; ssl.SSLError for
    TLS), and reads by line or by length, with asyncio's errors. A call that timed out has lost
    nothing: what was received stays, what was accepted will be sent.

    One thread may receive while another sends, and a third close it: all methods may be called by
    any thread, but starttls() while no other uses it. A ``with`` statement closes it.
    """

    # Of the class until they are set: a server makes many of these.
    _owned: EventLoop | None = None  # a loop that is closed with it
    _files = 0  # of makefile(), and open
    _closes_later = False  # when they are closed
    _peer: Any = _UNASKED
    _local: Any = _UNASKED

    # ---- The end ----

    def close(self) -> None:
        """Send what is queued, and close; what is not sent within the time-out, or 10 seconds, is
        lost. Waits for files of makefile() to be closed, as a socket's close(). May be repeated."""
        with _counting:
            self._closes_later = self._files > 0
        if self._closes_later:
            return
        mine = True
        try:
            mine = self._close()
        finally:
            if mine:  # else another thread has done it, or is about it, and needs its loop
                self._let_go()

    def abort(self) -> None:
        """Close now; what is queued is lost."""
        try:
            self._abort()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        loop = self.__dict__.pop("_owned", None)  # by one thread only
        if loop is not None:
            loop.close()

    def _file_closed(self) -> None:
        with _counting:
            self._files -= 1
            last = self._files == 0 and self._closes_later
        if last:
            self.close()

    def shutdown(self, how: int) -> None:
        """End one direction or both: socket.SHUT_RD, SHUT_WR, SHUT_RDWR."""
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise ValueError(f"how: {how!r} is none of SHUT_RD, SHUT_WR, SHUT_RDWR")
        if how != socket.SHUT_RD:
            self.end()
        if how != socket.SHUT_WR:
            self._end_input()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # ---- Time-outs ----

    def setblocking(self, flag: bool) -> None:
        """True: wait for ever; False: never wait, as settimeout(0)."""
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        """Whether calls may wait."""
        return self.gettimeout() != 0

    @property
    def timeout(self) -> float | None:
        """What gettimeout() returns, in seconds."""
        return self.gettimeout()

    # ---- TLS ----

    def starttls(
        self,
        context: Any = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        """Go on under TLS; returns after the handshake.

        *context* is an ssl.SSLContext, a becket.tls.Context, or what another engine of becket.tls
        takes; None: what a starttls:// endpoint offers, ValueError where nothing is offered. What
        was received and not taken goes into TLS: it never comes out as if it had been said under
        it. ssl.SSLError, or OSError, when it fails; the connection is closed then.
        """
        transport = self._open_transport()
        loop = cast(EventLoop, self._loop)
        if context is None and transport._tls_offer() is None:
            raise ValueError("context: nothing is offered here; an ssl.SSLContext is needed")
        handshake, _ = _tls_times(self.gettimeout() or None, None)
        spec = loop._tls_spec(transport, context, server_side, server_hostname, (handshake, 0.0))
        waiter = loop.create_future()
        self._begin_tls(spec, waiter)
        try:
            self._wait(waiter)
        except BaseException:
            waiter.cancel()
            self.abort()
            raise

    # ---- What is known of it ----

    def _open_transport(self) -> _becket.Transport:
        if self._closed:
            raise _error(errno.EBADF)
        if self._transport is None:
            raise _error(errno.ENOTCONN)
        return self._transport

    @property
    def peer(self) -> Any:
        """The address of the other side, as sockets give it; None: it has none, or is unknown."""
        if self._peer is _UNASKED and self._transport is not None:
            self._peer = self.get_extra_info("peername")
        return None if self._peer is _UNASKED else self._peer

    @property
    def local(self) -> Any:
        """The address of this side; None: it has none, or is unknown."""
        if self._local is _UNASKED and self._transport is not None:
            self._local = self.get_extra_info("sockname")
        return None if self._local is _UNASKED else self._local

    def getpeername(self) -> Any:
        """The address of the other side. OSError: there is none."""
        if self.peer is None:
            self._open_transport()
            raise _error(errno.ENOTSUP)
        return self.peer

    def getsockname(self) -> Any:
        """The address of this side. OSError: there is none."""
        if self.local is None:
            self._open_transport()
            raise _error(errno.ENOTSUP)
        return self.local

    def _socket(self) -> Any:
        self._open_transport()
        sock = self.get_extra_info("socket")
        if sock is None:
            raise _error(errno.ENOTSOCK)
        return sock

    def setsockopt(self, level: int, name: int, *value: Any) -> None:
        """As a socket's. OSError: it has no socket."""
        self._socket().setsockopt(level, name, *value)

    def getsockopt(self, level: int, name: int, *size: int) -> int | bytes:
        """As a socket's. OSError: it has no socket."""
        value: int | bytes = self._socket().getsockopt(level, name, *size)
        return value

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._transport is not None else "lost"
        return f"<{type(self).__name__} {state} fd={self.fileno()} peer={self.peer!r}>"

    # ---- As a file ----

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """A file over the connection, as socket.makefile() makes it; modes have r, w and b in them.

        The connection is closed when it and its files are.
        """
        if not set(mode) <= {"r", "w", "b"} or not set(mode) & {"r", "w"}:
            raise ValueError(f"mode: {mode!r} is invalid (only r, w, b allowed)")
        if self._closed:
            raise _error(errno.EBADF)
        if buffering == 0 and "b" not in mode:
            raise ValueError("buffering: an unbuffered file must be binary")
        raw = _File(self, mode)
        if buffering == 0:
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        buffer: Any
        if "r" in mode and "w" in mode:
            buffer = io.BufferedRWPair(raw, raw, size)
        elif "r" in mode:
            buffer = io.BufferedReader(raw, size)
        else:
            buffer = io.BufferedWriter(raw, size)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)


def connect(endpoint: str, *, timeout: float | None = None) -> Connection:
    """Connect to an endpoint of any scheme, for blocking code: "tcp://host:port", "unix:path",
    "tls://host:port?ca=…".

    *timeout*, in seconds, holds for this and, until settimeout(), for all that follows. Raises
    TimeoutError; ValueError for an endpoint that is wrong, with a mark under what is wrong; else
    OSError: ConnectionRefusedError, socket.gaierror for a name that nobody knows, ssl.SSLError.
    """
    loop = blocking_loop()
    try:
        connection = Connection(loop)
        connection.settimeout(timeout)
        waiter = loop.create_future()
        loop._know_engines(endpoint)
        connector = _becket.Connector(loop, endpoint, lambda: connection, waiter)
        try:
            connection._wait(waiter)
        except BaseException:
            connector.close()
            waiter.cancel()
            raise
    except BaseException:
        loop.close()
        raise
    connection._owned = loop
    return connection
