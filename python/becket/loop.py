"""becket.EventLoop: asyncio's event loop on becket's core.

Scheduling, watching, timers, listeners and transports are in C (``_becket.Loop``). Everything else
(name resolution, executors, the sock_ calls) is what asyncio's own
``SelectorEventLoop`` does in Python, over the methods replaced here; so it behaves, in each version
of Python, as that version does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
import socket
import ssl
import threading
import weakref
from asyncio import base_events, constants, sslproto, trsock
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from becket import _becket, processes, tls, transports

T = TypeVar("T")
_P = TypeVar("_P", bound=asyncio.BaseProtocol)

if TYPE_CHECKING:

    class _Base(asyncio.SelectorEventLoop):
        """What asyncio's loop has beyond its documentation, and we lean on."""

        _csock: socket.socket

        def _check_thread(self) -> None: ...
        def _check_running(self) -> None: ...
        def _check_callback(self, callback: object, method: str) -> None: ...
        def _start_serving(self, *args: Any, **kwargs: Any) -> None: ...
        def _stop_serving(self, sock: socket.socket) -> None: ...
        def _make_datagram_transport(self, *args: Any) -> asyncio.DatagramTransport: ...
        def _sock_accept(self, fut: asyncio.Future[Any], sock: socket.socket) -> None: ...
        async def _sendfile_native(
            self, transp: Any, file: Any, offset: int, count: int | None
        ) -> int: ...
        async def _sendfile_fallback(
            self, transp: Any, file: Any, offset: int, count: int | None
        ) -> int: ...
else:
    _Base = asyncio.SelectorEventLoop


class _NoSelector:
    """Stands where SelectorEventLoop keeps its selector: the core's notifier does that work."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop: EventLoop | None = loop

    def get_map(self) -> dict[int, selectors.SelectorKey]:
        return {}

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """What is awaited of a descriptor; the transports in Python tell it in their repr()."""
        events = self._loop._watching(fileobj) if self._loop is not None else 0
        if not events:
            raise KeyError(f"{fileobj!r} is not registered")
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return selectors.SelectorKey(fileobj, fd, events, None)

    def close(self) -> None:
        self._loop = None


class _FlowControl(asyncio.transports._FlowControlMixin):
    """A transport of ours in the only form that asyncio's sendfile() takes."""

    def __init__(self, transport: _becket.Transport) -> None:
        self._loop = transport._loop  # type: ignore[attr-defined]
        self._protocol_paused = transport._protocol_paused
        for name in (
            "get_protocol",
            "set_protocol",
            "is_closing",
            "is_reading",
            "pause_reading",
            "resume_reading",
            "write",
        ):
            setattr(self, name, getattr(transport, name))


# Whose addresses the core knows; the others are left to asyncio's own transport.
_DATAGRAM_FAMILIES = {
    getattr(socket, name) for name in ("AF_INET", "AF_INET6", "AF_UNIX") if hasattr(socket, name)
}


def _names_of(sock: socket.socket) -> dict[str, Any]:
    """The addresses of both sides of a socket; None: it has none."""
    names: dict[str, Any] = {"sockname": None, "peername": None}
    with contextlib.suppress(OSError):
        names["sockname"] = sock.getsockname()
    with contextlib.suppress(OSError):
        names["peername"] = sock.getpeername()
    return names


class _FileSender(base_events._SendfileFallbackProtocol):  # type: ignore[name-defined, misc]
    """Takes the place of a transport's protocol while the system sends a file by itself."""

    _work: asyncio.Task[int] | None = None
    _lost = False

    def connection_lost(self, exc: BaseException | None) -> None:
        self._lost = True
        super().connection_lost(exc)
        if self._work is not None:
            self._work.cancel()

    async def send(self, work: Coroutine[Any, Any, int]) -> int:
        self._work = asyncio.ensure_future(work)
        try:
            return await self._work
        except asyncio.CancelledError:
            if self._lost:
                raise ConnectionError("Connection is closed by peer") from None
            raise


def _tls_times(handshake: float | None, shutdown: float | None) -> tuple[float, float]:
    """The time-outs of a TLS connection, in seconds; asyncio's where none are given."""
    for name, value in (("handshake", handshake), ("shutdown", shutdown)):
        if value is not None and value <= 0:
            raise ValueError(f"ssl_{name}_timeout should be a positive number, got {value}")
    return (
        constants.SSL_HANDSHAKE_TIMEOUT if handshake is None else handshake,
        constants.SSL_SHUTDOWN_TIMEOUT if shutdown is None else shutdown,
    )


def _default_context(server_side: bool, server_hostname: str | None) -> ssl.SSLContext:
    """What ssl=True means."""
    make: Any = sslproto._create_transport_context
    context: ssl.SSLContext = make(server_side, server_hostname)
    return context


def _reader_of(protocol: Any) -> Any:
    """The StreamReader of a stream's protocol; None: it has none."""
    reader = getattr(protocol, "_stream_reader", None)
    return reader if isinstance(reader, asyncio.StreamReader) else None


def _run_unless_cancelled(handle: asyncio.Handle) -> None:
    if not handle.cancelled():
        handle._run()


class EventLoop(_becket.Loop, _Base):  # type: ignore[misc]
    """An asyncio event loop whose transfer is one unit in C.

    *notifier* names how to wait for descriptors: one of ``becket.notifiers``; by default what the
    environment variable BECKET_NOTIFIER says, or the best there is. A name that does not exist is a
    ValueError. Use it with ``asyncio.Runner(loop_factory=becket.EventLoop)`` or ``becket.run()``.

    Not thread-safe, but for call_soon_threadsafe().
    """

    _closed = True  # until it is open: should that fail, there is nothing to close
    _adopts_ssl = True  # ssl's objects are worked on directly, where that can be done

    def __init__(self, notifier: str | None = None) -> None:
        _becket.Loop.__init__(self, notifier)
        try:
            _Base.__init__(self, _NoSelector(self))  # type: ignore[arg-type]
        except OSError:  # no descriptors for its pair of sockets
            self._closed = True
            self._close_core()
            raise
        _loops.add(self)
        self._listeners: dict[int, _becket.Listener] = {}
        self._children = processes.Waiter(self)
        self._knows_engines = False
        self._schemes: dict[str, transports.Scheme] = {}
        self._tls_contexts: weakref.WeakKeyDictionary[tls.Context, _becket.TlsContext] = (
            weakref.WeakKeyDictionary()
        )

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} running={self.is_running()} closed={self.is_closed()} "
            f"debug={self.get_debug()} notifier={self.notifier}>"
        )

    # ---- Running ----

    def run_forever(self) -> None:
        """Run until stop() is called."""
        self._check_running()  # before anything is changed; 3.13's own changes things then
        with self._signals_wake():
            before, self._runs_all = self._runs_all, True
            try:
                super().run_forever()
            finally:
                self._runs_all = before

    @contextlib.contextmanager
    def _signals_wake(self) -> Iterator[None]:
        """A signal that comes just before a wait must end it, for its handler to be run."""
        if threading.current_thread() is not threading.main_thread() or self.is_closed():
            yield
            return
        own = self._csock.fileno()
        try:
            before = signal.set_wakeup_fd(own)
        except ValueError:  # the main thread of a subinterpreter: signals are not for it
            yield
            return
        try:
            yield
        finally:
            after = signal.set_wakeup_fd(before)
            if after not in (own, -1):  # whoever set another one meanwhile keeps it
                signal.set_wakeup_fd(after)

    def close(self) -> None:
        """Close the loop; it must not be running. What still waits is dropped."""
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        if self._is_parents:
            self._closed = True
            return
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self._children.close()
        super().close()
        self._tls_contexts.clear()
        self._close_core()
        for scheme in self._schemes.values():
            scheme.loop_closed(self)
        self._schemes.clear()

    def set_debug(self, enabled: bool) -> None:
        """Switch debug mode: callbacks are checked and timed, handles know who made them."""
        super().set_debug(enabled)
        self._set_debug_core(enabled)

    def set_task_factory(self, factory: Any) -> None:
        """Use factory(loop, coro, **kwargs) to make tasks; None: asyncio.Task."""
        super().set_task_factory(factory)
        self._note_task_factory(factory)

    # ---- What the C half calls ----

    def _check_call(self, callback: Callable[..., object], method: str) -> None:
        """In debug mode, before a callback is scheduled."""
        if method != "call_soon_threadsafe":
            self._check_thread()
        self._check_callback(callback, method)

    def _slow_callback(self, handle: _becket.Handle, seconds: float) -> None:
        """In debug mode, after each callback."""
        if seconds >= self.slow_callback_duration:
            description = base_events._format_handle(handle)  # type: ignore[attr-defined]
            base_events.logger.warning(  # type: ignore[attr-defined]
                "Executing %s took %.3f seconds", description, seconds
            )

    def _add_callback_signalsafe(self, handle: asyncio.Handle) -> None:
        # asyncio's add_signal_handler() makes a handle of its own kind, and queues it when the
        # signal has come.
        self.call_soon_threadsafe(_run_unless_cancelled, handle)

    # ---- Transports ----

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: asyncio.AbstractServer | None = None,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(sock)
        return self._start(self._new_transport(sock, protocol, server), waiter, extra)

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: asyncio.AbstractServer | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(rawsock)
        times = _tls_times(ssl_handshake_timeout, ssl_shutdown_timeout)
        if not sslcontext:
            sslcontext = _default_context(server_side, server_hostname)
        transport = self._new_transport(rawsock, protocol, server)
        for name, value in (extra or {}).items():
            transport._set_extra(name, value)
        try:
            asked = None if server_side else server_hostname or None
            transport._start_tls((sslcontext, server_side, asked, *times), None, waiter, b"")
        except BaseException:
            transport.abort()
            raise
        return transport

    async def start_tls(
        self,
        transport: Any,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Any:
        """Start TLS on a connection; the transport returned is what *protocol* is to use.

        What the peer sent before it could know of TLS, and *protocol*'s StreamReader still holds,
        goes into TLS: it never comes out as if it had been said under it. *sslcontext* may be an
        ssl.SSLContext, or what an engine of becket.tls takes; None is what a starttls:// endpoint
        offers. Errors are those of asyncio.
        """
        if not isinstance(transport, _becket.Transport):
            return await super().start_tls(
                transport, protocol, sslcontext, server_side=server_side,
                server_hostname=server_hostname, ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
            )  # fmt: skip
        times = _tls_times(ssl_handshake_timeout, ssl_shutdown_timeout)
        spec = self._tls_spec(transport, sslcontext, server_side, server_hostname, times)
        if protocol is None:
            raise TypeError("protocol: an asyncio protocol is needed, not None")
        waiter = self.create_future()
        readers = {_reader_of(transport.get_protocol()), _reader_of(protocol)} - {None}
        held = {reader: bytes(reader._buffer) for reader in readers}
        for reader in readers:
            reader._buffer.clear()
        try:
            upgraded = transport._start_tls(spec, protocol, waiter, b"".join(held.values()))
        except BaseException:  # it goes on in plain
            for reader in readers:
                reader._buffer[:0] = held[reader]
            raise
        for reader in readers:
            reader._maybe_resume_transport()
        try:
            await waiter
        except BaseException:
            upgraded.close()
            raise
        return upgraded

    # ---- Endpoints ----

    async def connect_endpoint(
        self, protocol_factory: Callable[[], _P], endpoint: str
    ) -> tuple[asyncio.Transport, _P]:
        """Connect to an endpoint of any scheme: "tcp://host:port", "unix:path", "tls://host:port?…".

        When it is open, after the handshake of TLS, *protocol_factory* makes the protocol. Raises
        ValueError for an endpoint that is wrong, with a mark under what is wrong; else OSError:
        ConnectionRefusedError, socket.gaierror for a name that nobody knows, ssl.SSLError for TLS.
        """
        waiter = self.create_future()
        self._know_engines(endpoint)
        connector = _becket.Connector(self, endpoint, protocol_factory, waiter)
        try:
            transport: asyncio.Transport = await waiter
        except BaseException:
            connector.close()
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().abort()  # cancelled when it had just been made
            raise
        return transport, transport.get_protocol()  # type: ignore[return-value]

    def _know_engines(self, endpoint: str) -> None:
        """Let endpoints name the TLS engines in Python, from the first that may do so."""
        named = "engine=" in str(endpoint) or "BECKET_TLS" in os.environ
        if self._knows_engines or not named:
            return
        self._knows_engines = True
        for engine in tls.engines().values():
            # It is known already, or this is a subinterpreter, where none can be.
            with contextlib.suppress(ValueError, RuntimeError):
                self._add_tls_engine(engine)

    # ---- Schemes of others ----

    def add_scheme(self, scheme: transports.Scheme | object) -> None:
        """Let endpoints on this loop have a scheme: a becket.transports.Scheme, or a capsule
        ``becket.scheme`` with a ``const bk_scheme *``.

        ValueError: the loop knows one of that name already, or the name cannot be one.
        """
        if not isinstance(scheme, transports.Scheme):
            self._add_scheme(scheme)
            return
        cls, base = type(scheme), transports.Scheme
        listens, connects = cls.listen is not base.listen, cls.connect is not base.connect
        self._add_scheme(scheme.name, scheme.options, listens, connects)
        self._schemes[scheme.name] = scheme

    def _find_scheme(self, name: str) -> Any:
        """Called by the C half for a name it does not know: whether it was found, or (code,
        position, words) of what went wrong."""
        try:
            scheme = transports.find(name)
            if scheme is not None:
                self.add_scheme(scheme)
        except Exception as error:
            words = f"scheme {name} cannot be had: {type(error).__name__}: {error}"
            return transports.ESCHEME, 0, words
        return scheme is not None

    def _listen_scheme(self, parts: tuple[Any, ...], accept: Any) -> Any:
        """Called by the C half: a transports.Listener, or (code, position, words)."""
        return self._ask_scheme(parts, lambda scheme, at: scheme.listen(self, at, accept))

    def _connect_scheme(self, parts: tuple[Any, ...]) -> Any:
        """Called by the C half: a transports.Transport, or (code, position, words)."""
        return self._ask_scheme(parts, lambda scheme, at: scheme.connect(self, at))

    def _ask_scheme(
        self,
        parts: tuple[Any, ...],
        ask: Callable[[transports.Scheme, transports.Endpoint], Any],
    ) -> Any:
        word: str = parts[0]
        while word not in self._schemes:  # what stands in front is not the scheme's
            word = word.partition("+")[2]
        endpoint = transports.endpoint_of(parts, self._schemes[word])
        try:
            return ask(self._schemes[word], endpoint)
        except Exception as error:
            failure = transports.failure_of(error, endpoint)
            if failure is None:
                raise
            return failure

    def _tls_spec(
        self,
        transport: _becket.Transport,
        sslcontext: Any,
        server_side: bool,
        server_hostname: str | None,
        times: tuple[float, float],
    ) -> tuple[Any, bool, str | None, float, float]:
        """What Transport._start_tls() is to be given; TypeError: there is no TLS to be had."""
        offer = transport._tls_offer() if sslcontext is None else None
        if offer is not None:
            context, server_side, name = offer
            return (context, server_side, server_hostname or name, *times)
        known = isinstance(sslcontext, (ssl.SSLContext, tls.Context))
        if not known and tls.engine_of(sslcontext) is None:
            raise TypeError(
                f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}"
            )
        if transport.get_extra_info("pipe") is not None:
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        return (sslcontext, server_side, None if server_side else server_hostname or None, *times)

    def _new_engine(self, context: Any, server_side: bool, server_hostname: str | None) -> Any:
        """A connection's TLS: an ssl.SSLObject, a tls.Engine, or a context of the core."""
        if isinstance(context, _becket.TlsContext):  # of an endpoint
            return context
        if isinstance(context, tls.Context):
            tls.check_name(server_hostname)
            return self._core_context(context, server_side)
        if isinstance(context, ssl.SSLContext) and self._adopts_ssl:
            made = context.wrap_bio(
                ssl.MemoryBIO(), ssl.MemoryBIO(),
                server_side=server_side, server_hostname=server_hostname,
            )  # fmt: skip
            if _becket._can_adopt(made):
                return made
            self._adopts_ssl = False
        engine = tls.engine_of(context)
        if engine is None:
            raise TypeError(f"ssl: {context!r} is no ssl.SSLContext, and no engine knows it")
        return engine(context, server_side=server_side, server_hostname=server_hostname)

    def _core_context(self, context: tls.Context, server_side: bool) -> _becket.TlsContext:
        if context.server_side != server_side:
            raise ValueError(f"ssl: server_side must be {server_side} in {context!r}")
        made = self._tls_contexts.get(context)
        if made is None:
            made = _becket.TlsContext(self, **context.arguments())
            self._tls_contexts[context] = made
        return made

    def _tls_info(self, transport: _becket.Transport, engine: Any, name: str) -> Any:
        """What get_extra_info() tells of TLS."""
        if engine is None or isinstance(engine, _becket.TlsContext):  # the core's
            return tls.core_info(transport._tls_query, name)
        if not isinstance(engine, ssl.SSLObject):
            return engine.query(name)
        if name == "ssl_object":
            return engine
        try:
            return getattr(engine, "getpeercert" if name == "peercert" else name)()
        except ValueError:  # OpenSSL forgets it when the connection has failed
            return None

    async def _sendfile_native(
        self, transp: asyncio.Transport, file: Any, offset: int, count: int | None
    ) -> int:
        if not isinstance(transp, _becket.Transport):
            return await super()._sendfile_native(transp, file, offset, count)
        if transp._sending_file:
            raise RuntimeError("sendfile is in progress")
        low, high = transp.get_write_buffer_limits()
        sender = _FileSender(_FlowControl(transp))
        transp._sending_file = True
        # A descriptor of its own: should the transport close its own, nobody else's is written to.
        sock = transp.get_extra_info("socket").dup()
        try:
            transp.set_write_buffer_limits(0)
            await asyncio.sleep(0)  # what is still queued pauses us
            await sender.drain()
            return await sender.send(self.sock_sendfile(sock, file, offset, count, fallback=False))
        finally:
            self._remove_writer(sock)
            sock.close()
            transp._sending_file = False
            transp.set_write_buffer_limits(high, low)
            await sender.restore()

    async def _sendfile_fallback(
        self, transp: asyncio.Transport, file: Any, offset: int, count: int | None
    ) -> int:
        if isinstance(transp, _becket.Transport):
            file.seek(offset)  # as asyncio's transports, which take the way without a fallback
            transp = _FlowControl(transp)
        return await super()._sendfile_fallback(transp, file, offset, count)

    def _make_read_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.ReadTransport:
        return self._make_pipe_transport(pipe, protocol, waiter, extra, writes=False)

    def _make_write_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.WriteTransport:
        return self._make_pipe_transport(pipe, protocol, waiter, extra, writes=True)

    def _make_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None,
        extra: dict[str, Any] | None,
        *,
        writes: bool,
    ) -> asyncio.Transport:
        return self._start(self._new_pipe_transport(pipe, protocol, writes), waiter, extra)

    def _start(
        self,
        transport: _becket.Transport,
        waiter: asyncio.Future[None] | None,
        extra: dict[str, Any] | None,
    ) -> _becket.Transport:
        for name, value in (extra or {}).items():
            transport._set_extra(name, value)
        self.call_soon(self._start_transport, transport, waiter)
        return transport

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.SubprocessProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> asyncio.SubprocessTransport:
        waiter = self.create_future()
        transport = processes.SubprocessTransport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize,
            waiter=waiter, extra=extra, **kwargs,
        )  # fmt: skip
        self._children.watch(transport._proc.pid, transport._ended)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await transport._wait()
            raise
        return transport

    # ---- Datagrams ----

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.DatagramProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.DatagramTransport:
        if sock.type != socket.SOCK_DGRAM or sock.family not in _DATAGRAM_FAMILIES:
            return super()._make_datagram_transport(sock, protocol, address, waiter, extra)
        self._ensure_fd_no_transport(sock)
        known = {"socket": trsock.TransportSocket(sock), **_names_of(sock), **(extra or {})}
        transport = self._new_datagram_transport(sock, protocol, address, known)
        self.call_soon(transport._start, waiter)
        return transport

    def _plain_address(self, family: int, address: Any) -> Any:
        """What a datagram's address stands for; it was understood once already."""
        if family == getattr(socket, "AF_UNIX", None):
            return bytes(address)
        host, port = address[:2]
        return socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)[0][4]

    # ---- Sockets ----

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """As asyncio's. A connection that came in the moment of a cancellation is closed."""
        base_events._check_ssl_socket(sock)  # type: ignore[attr-defined]
        if self.get_debug() and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        accepted: asyncio.Future[tuple[socket.socket, Any]] = self.create_future()
        self._sock_accept(accepted, sock)
        try:
            return await accepted
        except asyncio.CancelledError:
            if not accepted.cancelled() and accepted.exception() is None:
                accepted.result()[0].close()
            raise

    def _sock_accept(self, fut: asyncio.Future[Any], sock: socket.socket) -> None:
        if not fut.done():  # cancelled when the socket was ready already
            super()._sock_accept(fut, sock)

    # ---- Servers ----

    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:
        """As asyncio's. What is wrong with a becket.tls.Context is a ValueError or OSError here."""
        if isinstance(kwargs.get("ssl"), tls.Context):
            self._core_context(kwargs["ssl"], True)
        return await super().create_server(*args, **kwargs)

    async def create_unix_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:
        """As asyncio's. What is wrong with a becket.tls.Context is a ValueError or OSError here."""
        if isinstance(kwargs.get("ssl"), tls.Context):
            self._core_context(kwargs["ssl"], True)
        return await super().create_unix_server(*args, **kwargs)

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: Any = None,
        server: asyncio.AbstractServer | None = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        secure = None
        if sslcontext is not None:
            secure = (sslcontext, *_tls_times(ssl_handshake_timeout, ssl_shutdown_timeout))
        # One whose socket somebody closed without telling us must not end the new one's watch.
        stale = self._listeners.pop(sock.fileno(), None)
        if stale is not None:
            stale.close()
        listener = _becket.Listener(self, sock.fileno(), protocol_factory, server, secure)
        self._listeners[sock.fileno()] = listener

    def _stop_serving(self, sock: socket.socket) -> None:
        listener = self._listeners.pop(sock.fileno(), None)
        if listener is not None:
            listener.close()
        super()._stop_serving(sock)


# ---- fork() ----

_loops: weakref.WeakSet[EventLoop] = weakref.WeakSet()


def blocking_loop() -> EventLoop:
    """A loop for blocking code to turn: a child may go on with it, as with any socket."""
    loop = EventLoop("poll")
    _loops.discard(loop)
    return loop


def _after_fork() -> None:
    """In the child: its parent's loops are not for it."""
    for loop in list(_loops):
        loop._forked_away()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def new_event_loop(notifier: str | None = None) -> EventLoop:
    """A new becket.EventLoop, for asyncio's ``loop_factory`` arguments and older code."""
    return EventLoop(notifier)


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run a coroutine on a becket.EventLoop and return its result, as asyncio.run() does.

    RuntimeError when a loop runs in this thread already; ValueError when *main* is no coroutine.
    """
    if asyncio._get_running_loop() is not None:
        main.close()
        raise RuntimeError("becket.run() cannot be called from a running event loop")
    with asyncio.Runner(debug=debug, loop_factory=EventLoop) as runner:
        return runner.run(main)
