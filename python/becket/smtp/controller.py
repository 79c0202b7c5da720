"""Mail servers in a thread, or on a loop of the program's, with the interface of aiosmtpd's
controllers: for tests, and for programs that were written for it.

    controller = Controller(Handler(), hostname="127.0.0.1", port=0)
    controller.start()
    ...
    controller.stop()

They serve on a ``becket.EventLoop``, or on the loop they are given, whose ever it is.
``becket.smtp.Server`` serves on endpoints and under all drivers, and is faster.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import weakref
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from becket.loop import EventLoop
from becket.smtp.server import SMTP

__all__ = [
    "BaseController",
    "BaseThreadedController",
    "BaseUnthreadedController",
    "Controller",
    "InetMixin",
    "UnixSocketController",
    "UnixSocketMixin",
    "UnixSocketUnthreadedController",
    "UnthreadedController",
    "get_localhost",
]

DEFAULT_READY_TIMEOUT = 5.0  # seconds


def get_localhost() -> str:
    """The numeric address of this host: ``::1`` where there is IPv6, else ``127.0.0.1``."""
    import socket

    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return "127.0.0.1"
    return "::1"


class BaseController:
    """What all controllers share: the handler, the settings of SMTP, and ``factory()``, which makes
    an SMTP for each client and may be replaced by a subclass."""

    smtpd: Any = None
    server: asyncio.AbstractServer | None = None
    server_coro: Awaitable[asyncio.AbstractServer] | None = None

    def __init__(
        self,
        handler: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        server_kwargs: dict[str, Any] | None = None,
        **SMTP_parameters: Any,
    ) -> None:
        self.handler = handler
        self.loop: asyncio.AbstractEventLoop = EventLoop() if loop is None else loop
        self.ssl_context = ssl_context
        self.SMTP_kwargs: dict[str, Any] = {**(server_kwargs or {}), **SMTP_parameters}
        if server_hostname:
            self.SMTP_kwargs["hostname"] = server_hostname
        self.SMTP_kwargs.setdefault("enable_SMTPUTF8", True)
        self._clients: weakref.WeakSet[Any] = weakref.WeakSet()

    def factory(self) -> Any:
        """The SMTP of a client."""
        return SMTP(self.handler, **self.SMTP_kwargs)

    def _make(self) -> Any:
        self.smtpd = self.factory()
        if self.smtpd is None:
            raise RuntimeError("factory() returned None")
        self._clients.add(self.smtpd)
        return self.smtpd

    async def _create_server(self) -> asyncio.AbstractServer:
        """Listen."""
        raise NotImplementedError

    def _cleanup(self) -> None:
        self.server_coro = self.server = self.smtpd = None

    def cancel_tasks(self, stop_loop: bool = True) -> None:
        """Stop the loop, and cancel its tasks: in its thread."""
        if stop_loop:
            self.loop.stop()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()


class BaseThreadedController(BaseController):
    """A controller whose loop runs in a thread of its own."""

    _thread: threading.Thread | None = None

    def __init__(
        self,
        handler: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        ready_timeout: float = DEFAULT_READY_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, loop, **kwargs)
        self.ready_timeout = float(os.getenv("AIOSMTPD_CONTROLLER_TIMEOUT", ready_timeout))

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self._make()  # what is wrong with it is told now, not to the first client
            self.server_coro = self._create_server()
            self.server = self.loop.run_until_complete(self.server_coro)
        except Exception as error:
            self._error = error
            self.loop.close()
            ready.set()
            return
        self.loop.call_soon(ready.set)
        self.loop.run_forever()
        self.server.close()
        self.loop.run_until_complete(self._finish())
        self.loop.close()

    async def _finish(self) -> None:
        """What is under way ends."""
        for client in list(self._clients):
            if getattr(client, "transport", None) is not None:
                client.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)

    def start(self) -> None:
        """Serve in a thread; it listens when this returns.

        OSError: it cannot listen; TimeoutError: not within *ready_timeout* seconds; and whatever
        factory() raises.
        """
        assert self._thread is None, "SMTP daemon already running"
        ready = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        if not ready.wait(self.ready_timeout):
            raise TimeoutError(
                "SMTP server failed to start within allotted time. This might happen if the system "
                "is too busy. Try increasing the `ready_timeout` parameter."
            )
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self, no_assert: bool = False) -> None:
        """End the loop, what is under way on it, and the thread."""
        assert no_assert or self._thread is not None, "SMTP daemon not running"
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.cancel_tasks)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._cleanup()


class BaseUnthreadedController(BaseController):
    """A controller on a loop that the program runs."""

    def __init__(
        self, handler: Any, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any
    ) -> None:
        super().__init__(handler, loop, **kwargs)
        self.ended = threading.Event()

    def begin(self) -> None:
        """Listen; the loop, which must not run yet, is the program's to run."""
        asyncio.set_event_loop(self.loop)
        self._make()
        self.server_coro = self._create_server()
        self.server = self.loop.run_until_complete(self.server_coro)

    async def finalize(self) -> None:
        """Listen no more."""
        self.ended.clear()
        assert self.server is not None, "SMTP daemon not running"
        self.server.close()
        await asyncio.sleep(0)
        self._cleanup()
        self.ended.set()

    def end(self) -> None:
        """The same from outside a coroutine; *ended* is set when it is done."""
        self.ended.clear()
        if self.loop.is_running():
            self._ending = self.loop.create_task(self.finalize())
        else:
            self.loop.run_until_complete(self.finalize())


class InetMixin(BaseController):
    """At a host and a port."""

    def __init__(
        self,
        handler: Any,
        hostname: str | None = None,
        port: int = 8025,
        loop: asyncio.AbstractEventLoop | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, loop, **kwargs)
        self._localhost = get_localhost()
        self.hostname = self._localhost if hostname is None else hostname
        self.port = port

    async def _create_server(self) -> asyncio.AbstractServer:
        server = await self.loop.create_server(
            self._make, host=self.hostname, port=self.port, ssl=self.ssl_context
        )
        if self.port == 0:  # what it got is what can be connected to
            self.port = server.sockets[0].getsockname()[1]
        return server


class UnixSocketMixin(BaseController):
    """At a UNIX socket."""

    def __init__(
        self,
        handler: Any,
        unix_socket: str | Path,
        loop: asyncio.AbstractEventLoop | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, loop, **kwargs)
        self.unix_socket = str(unix_socket)

    async def _create_server(self) -> asyncio.AbstractServer:
        return await self.loop.create_unix_server(
            self._make, path=self.unix_socket, ssl=self.ssl_context
        )


class Controller(InetMixin, BaseThreadedController):
    """In a thread, at a host and a port."""


class UnixSocketController(UnixSocketMixin, BaseThreadedController):
    """In a thread, at a UNIX socket."""


class UnthreadedController(InetMixin, BaseUnthreadedController):
    """On the program's loop, at a host and a port."""


class UnixSocketUnthreadedController(UnixSocketMixin, BaseUnthreadedController):
    """On the program's loop, at a UNIX socket."""
