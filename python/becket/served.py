"""What can be served: finding out what an object is, and how its connections are begun.

``find()`` is called by becket.Server and by the command line. Protocols have one of six kinds; the
drivers (becket.drivers) ask a ``Served`` for what they need to begin one, and know no kinds.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import logging
import socket
import socketserver
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from becket import _becket

if TYPE_CHECKING:
    from becket.connection import Connection
    from becket.loop import EventLoop

logger = logging.getLogger("becket")

KINDS = {
    "protocol": "an asyncio.Protocol or BufferedProtocol: the class, or a function without "
    "arguments that makes one",
    "coroutine": "a coroutine function on (reader, writer)",
    "blocking": "a function on a becket.Connection",
    "handler": "a socketserver.BaseRequestHandler, or a class derived from it",
    "factory": "a Factory of Twisted's: what has buildProtocol()",
    "core": "the name of a protocol of the core",
}


@dataclass(frozen=True)
class Served:
    """A protocol that can be served: the one thing that drivers know of it.

    One of three is there: *factory(loop)* gives a function that makes an asyncio.Protocol for each
    connection; *call(connection)* blocks until one is over; *core(loop)* gives what the core
    serves by itself. *refusal* is sent to connections that a limit keeps out; *reload* reads files
    again. *started* is called when a process begins to serve, *ended* when it has ended.
    """

    kind: str
    name: str
    factory: Callable[[EventLoop], Callable[[], asyncio.BaseProtocol]] | None = None
    call: Callable[[Connection], object] | None = None
    core: Callable[[EventLoop], Any] | None = None
    refusal: bytes | None = None
    reload: Callable[[], object] | None = None
    started: Callable[[], object] | None = None
    ended: Callable[[], object] | None = None


# ---- Protocols of the core -----------------------------------------------------------------------


def own_hostname() -> str:
    """This host's name, as far as it can be given in SMTP."""
    name = socket.gethostname()
    plain = name.isascii() and all(c.isalnum() or c in "-." for c in name)
    return name if name and plain else "localhost"


def _smtp(
    loop: EventLoop,
    *,
    maildir: str,
    hostname: str | None = None,
    stored: Callable[[str, str, list[str], int], None] | None = None,
    users: _becket.SmtpUsers | None = None,
    accept: Iterable[str] | None = None,
    flags: int = 0,
    max_message: int = 0,
    max_recipients: int = 0,
    max_errors: int = 0,
    max_idle: int = 0,
    max_messages: int = 0,
    max_session: int = 0,
    timeout: int = 0,
) -> _becket.Smtp:
    """Receives mail into a Maildir."""
    return _becket.Smtp(
        loop,
        maildir,
        hostname or own_hostname(),
        stored=stored,
        users=users,
        accept=accept,
        flags=flags,
        max_message=max_message,
        max_recipients=max_recipients,
        max_errors=max_errors,
        max_idle=max_idle,
        max_messages=max_messages,
        max_session=max_session,
        timeout=timeout,
    )


def _echo(loop: EventLoop) -> _becket.Echo:
    """Sends back what it receives."""
    return _becket.Echo(loop)


CORE: dict[str, Callable[..., Any]] = {"echo": _echo, "smtp": _smtp}


# ---- Names ---------------------------------------------------------------------------------------


def registered() -> dict[str, Any]:
    """The entry points of the group ``becket.protocols``, by name; none is loaded by this."""
    from importlib import metadata  # slow, and not for a second interpreter of Python 3.12

    return {entry.name: entry for entry in metadata.entry_points(group="becket.protocols")}


def load(name: str) -> Any:
    """What ``module:object`` names. ValueError."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # one that it imports
        raise ValueError(f"{name}: there is no module {error.name!r}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{name}: {found!r} has no attribute {part!r}")
        found = getattr(found, part)
    return found


def _find_by_name(name: str, settings: dict[str, Any]) -> Served:
    if name in CORE:
        make = CORE[name]
        try:
            inspect.signature(make).bind(None, **settings)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        users = settings.get("users")
        reload = None if users is None else users.reload
        return Served("core", name, core=functools.partial(make, **settings), reload=reload)
    if ":" in name:
        return find(load(name), settings)
    entry = registered().get(name)
    if entry is not None:
        return find(entry.load(), settings)
    known = ", ".join(sorted({*CORE, *registered()}))
    raise ValueError(
        f"there is no protocol {name!r}; there are {known}, and module:object names any other"
    )


# ---- Kinds ---------------------------------------------------------------------------------------


def _required(function: Callable[..., Any]) -> int | None:
    """How many arguments it must be given; None: more than one can say, or named ones."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    needed = [p for p in parameters if p.default is p.empty]
    if any(p.kind is p.KEYWORD_ONLY for p in needed):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed)


def _name_of(target: Any) -> str:
    return str(getattr(target, "__qualname__", None) or repr(target))


def _streams(
    function: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]],
) -> Callable[[EventLoop], Callable[[], asyncio.BaseProtocol]]:
    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await function(reader, writer)
        except OSError as error:  # connections break: that is no news
            logger.debug("%s: %s", _name_of(function), error)
        except Exception:
            logger.exception("%s failed", _name_of(function))
            writer.transport.abort()
        finally:
            writer.close()

    def factory(loop: EventLoop) -> Callable[[], asyncio.BaseProtocol]:
        def make() -> asyncio.BaseProtocol:
            reader = asyncio.StreamReader(loop=loop)
            return asyncio.StreamReaderProtocol(reader, run, loop=loop)

        return make

    return factory


def _handler(target: type[socketserver.BaseRequestHandler]) -> Callable[[Connection], object]:
    from becket.socketserver import HandlerServer, client_address

    server = HandlerServer(target)

    def call(connection: Connection) -> None:
        target(connection, client_address(connection), server)  # type: ignore[arg-type]

    return call


def find(target: Any, settings: dict[str, Any] | None = None) -> Served:
    """What *target* is. *settings* are for protocols of the core, by name.

    TypeError, with all that can be served, when it is none of that; ValueError for a name that
    nobody knows.
    """
    settings = settings or {}
    if isinstance(target, Served):
        return target
    if isinstance(target, str):
        return _find_by_name(target, settings)
    if settings:
        raise TypeError(f"{', '.join(settings)}: settings are for protocols that go by a name")
    name, refusal = _name_of(target), getattr(target, "refusal", None)
    if inspect.isclass(target) and issubclass(target, socketserver.BaseRequestHandler):
        return Served("handler", name, call=_handler(target), refusal=refusal)
    if inspect.isclass(target) and issubclass(target, asyncio.BaseProtocol):
        return Served("protocol", name, factory=lambda loop: target, refusal=refusal)
    if not inspect.isclass(target) and callable(getattr(target, "buildProtocol", None)):
        from becket.twisted import adapter

        return adapter.served(target, name, refusal)
    if callable(target) and not inspect.isclass(target):
        needed = _required(target)
        if inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(
            type(target).__call__
        ):
            if needed == 2:
                return Served("coroutine", name, factory=_streams(target), refusal=refusal)
        elif needed == 1:
            return Served("blocking", name, call=target, refusal=refusal)
        elif needed == 0:
            return Served("protocol", name, factory=lambda loop: target, refusal=refusal)
    listed = "\n".join(f"  {description}" for description in KINDS.values())
    raise TypeError(f"{target!r} is nothing that can be served; these are:\n{listed}")
