"""becket.EventLoop: asyncio's event loop on becket's core.

Scheduling, watching, timers, listeners and transports are in C (``_becket.Loop``). Everything else
(name resolution, executors, the sock_ calls, subprocesses, TLS) is what asyncio's own
``SelectorEventLoop`` does in Python, over the methods replaced here; so it behaves, in each version
of Python, as that version does.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import signal
import socket
import threading
from asyncio import sslproto
from asyncio.log import logger
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from becket import _becket

T = TypeVar("T")

if TYPE_CHECKING:

    class _Base(asyncio.SelectorEventLoop):
        """What asyncio's loop has beyond its documentation, and we lean on."""

        _csock: socket.socket
        def _check_thread(self) -> None: ...
        def _check_callback(self, callback: object, method: str) -> None: ...
        def _start_serving(self, *args: Any, **kwargs: Any) -> None: ...
        def _stop_serving(self, sock: socket.socket) -> None: ...
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
        self._protocol_paused = transport._protocol_paused
        for name in (
            "get_protocol", "set_protocol", "is_closing", "is_reading", "pause_reading",
            "resume_reading", "write",
        ):
            setattr(self, name, getattr(transport, name))


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

    def __init__(self, notifier: str | None = None) -> None:
        _becket.Loop.__init__(self, notifier)
        _Base.__init__(self, _NoSelector(self))  # type: ignore[arg-type]
        self._listeners: dict[int, _becket.Listener] = {}

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} running={self.is_running()} closed={self.is_closed()} "
            f"debug={self.get_debug()} notifier={self.notifier}>"
        )

    # ---- Running ----

    def run_forever(self) -> None:
        """Run until stop() is called."""
        with self._signals_wake():
            super().run_forever()

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
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        super().close()
        self._close_core()

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
            description = asyncio.base_events._format_handle(handle)  # type: ignore[attr-defined]
            logger.warning("Executing %s took %.3f seconds", description, seconds)

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
        **timeouts: Any,
    ) -> asyncio.Transport:
        """TLS is asyncio's own, over a transport of ours."""
        made: Any = sslproto.SSLProtocol
        tls = made(self, protocol, sslcontext, waiter, server_side, server_hostname, **timeouts)
        self._make_socket_transport(rawsock, tls, extra=extra, server=server)
        transport: asyncio.Transport = tls._app_transport
        return transport

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

    # ---- Servers ----

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: Any = None,
        server: asyncio.AbstractServer | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if sslcontext is not None:
            super()._start_serving(protocol_factory, sock, sslcontext, server, *args, **kwargs)
            return
        # One whose socket somebody closed without telling us must not end the new one's watch.
        stale = self._listeners.pop(sock.fileno(), None)
        if stale is not None:
            stale.close()
        listener = _becket.Listener(self, sock.fileno(), protocol_factory, server)
        self._listeners[sock.fileno()] = listener

    def _stop_serving(self, sock: socket.socket) -> None:
        listener = self._listeners.pop(sock.fileno(), None)
        if listener is not None:
            listener.close()
        super()._stop_serving(sock)


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
