"""The extension module: Python objects over the core's handles."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from os import PathLike
from socket import socket
from ssl import SSLObject
from typing import Any, final

from becket.tls import Engine

__version__: str
notifiers: tuple[str, ...]

def _can_adopt(ssl_object: SSLObject, /) -> bool: ...
def _tls_engines() -> list[tuple[str, str | None, str | None]]: ...
def _supervisor_tell(state: str, /) -> bool: ...

class Handle:
    _callback: Callable[..., object] | None
    _args: Sequence[object] | None
    _cancelled: bool
    _source_traceback: Any
    def cancel(self) -> None: ...
    def cancelled(self) -> bool: ...
    def get_context(self) -> Context: ...

@final
class TimerHandle(Handle):
    def when(self) -> float: ...

@final
class Transport(asyncio.Transport):
    _protocol_paused: bool
    def _set_extra(self, name: str, value: object, /) -> None: ...
    def _start_tls(
        self,
        spec: tuple[Any, bool, str | None, float, float],
        protocol: asyncio.BaseProtocol | None,
        waiter: asyncio.Future[None] | None,
        data: bytes,
        /,
    ) -> Transport: ...
    def _tls_query(self, what: int, /) -> bytes | None: ...

@final
class Listener:
    def __init__(
        self,
        loop: Loop,
        fd: int,
        factory: Callable[[], asyncio.BaseProtocol],
        server: asyncio.AbstractServer | None = None,
        tls: tuple[Any, float, float] | None = None,
        /,
    ) -> None: ...
    def close(self) -> None: ...

@final
class TlsContext:
    def __init__(
        self,
        loop: Loop,
        *,
        engine: str | None,
        server_side: bool,
        certificate: str | None,
        key: str | None,
        ca: str | None,
        verify: int,
        alpn: str | None,
        minimum: int,
        maximum: int,
        tickets: bool,
    ) -> None: ...

@final
class Smtp:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        maildir: str | PathLike[str],
        hostname: str | None = None,
        *,
        max_message: int = 0,
        stored: Callable[[str, str, list[str], int], None] | None = None,
    ) -> None: ...
    def listen(self, endpoint: str, /) -> str: ...
    def reload(self) -> None: ...
    def close(self) -> None: ...

class Loop:
    def __init__(self, notifier: str | None = None) -> None: ...
    @property
    def notifier(self) -> str | None: ...
    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle: ...
    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle: ...
    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> TimerHandle: ...
    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> TimerHandle: ...
    def time(self) -> float: ...
    def stop(self) -> None: ...
    def create_future(self) -> asyncio.Future[Any]: ...
    def create_task(self, coro: Any, **kwargs: Any) -> asyncio.Task[Any]: ...
    def _note_task_factory(self, factory: object, /) -> None: ...
    def _close_core(self) -> None: ...
    def _set_debug_core(self, enabled: bool, /) -> None: ...
    def _forked(self) -> None: ...
    def _watching(self, fd: object, /) -> int: ...
    def _ensure_fd_no_transport(self, fd: object, /) -> None: ...
    def _add_tls_engine(self, engine: type[Engine], /) -> None: ...
    def _supervisor_watch(self) -> bool: ...
    def _new_transport(
        self,
        sock: socket,
        protocol: asyncio.BaseProtocol,
        server: asyncio.AbstractServer | None = None,
        /,
    ) -> Transport: ...
    def _new_pipe_transport(
        self, pipe: object, protocol: asyncio.BaseProtocol, writes: bool, /
    ) -> Transport: ...
    def _start_transport(
        self, transport: Transport, waiter: asyncio.Future[None] | None, /
    ) -> None: ...
