"""Transports and schemes of endpoints that are written in Python: "rudp://host:port" as any other.

A *scheme* says what an endpoint means; the *transports* that it makes move bytes. All that serves
endpoints, or connects to them, then works with it, TLS in front of it ("tls+rudp://…") included::

    loop.add_scheme(MyScheme())                     # becket.EventLoop
    await loop.connect_endpoint(factory, "my:there")

A package makes its scheme known to every loop by an entry point of the group ``becket.transports``,
whose name is the scheme's, and whose value is a class derived from ``Scheme``, or a capsule
``becket.scheme`` with a ``const bk_scheme *`` of becket.h. docs/write-a-transport.md is a manual;
``becket.testing`` has a suite to run over a transport.
"""

from __future__ import annotations

import abc
import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from becket import _becket

if TYPE_CHECKING:
    from becket.loop import EventLoop

__all__ = [
    "NOW",
    "READ",
    "WRITE",
    "Endpoint",
    "EndpointError",
    "Listener",
    "Scheme",
    "Transport",
    "find",
]

GROUP = "becket.transports"

# Directions, as in becket.h; NOW: need not wait.
READ, WRITE, NOW = 1, 2, 8

# The codes of becket.h for what has no errno.
_EENDPOINT, ESCHEME, _EOPTION = -4002, -4003, -4004


class Transport(_becket.TransportHead, abc.ABC):
    """One connection: moves bytes and nothing else. No method waits.

    All methods are called on the loop's thread, and none after ``close()``. What breaks the
    connection is raised as an OSError: ConnectionResetError, BrokenPipeError for writing to a peer
    that is gone, or any with an errno. EOFError is an end where the transport allows none.
    BlockingIOError is "not now". Any other exception is a fault: the loop's exception handler hears
    of it, and the connection is closed.

    A transport without a descriptor calls ``wake()`` whenever something has changed: bytes have
    come, or the end of them, or an error; there is room again after ``write()`` took less than it
    was given; what ``flush()``, ``end()`` or ``open()`` was asked to do has moved on. To wake too
    often is harmless; to forget it is a connection that hangs.
    """

    name: ClassVar[str] = "python"

    _has: int = 0  # which of the optional methods there are: the C half leaves out the others

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        optional = ("end", "flush", "wants", "open", "fileno", "query")
        cls._has = sum(
            1 << bit
            for bit, method in enumerate(optional)
            if getattr(cls, method) is not getattr(Transport, method)
        )

    @abc.abstractmethod
    def read(self, size: int) -> bytes | bytearray | memoryview | None:
        """Bytes that have come, at most *size* of them; None: none now.

        ``b""``: the peer's direction is over, and each call from then on says so.
        """

    @abc.abstractmethod
    def write(self, data: bytes) -> int | None:
        """Take bytes to be sent, and say how many, from the start; None: none now.

        *data* is not empty, and may be kept: it never changes.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything. Whatever was accepted is still to be sent, as far as that needs no
        waiting here; a peer whose bytes were not read may be told so by a reset."""

    def end(self) -> bool:
        """Optional; left out: it cannot half-close. Our direction is over: tell the peer, after all
        that was accepted. True: done; False: call again. OSError with ENOTSUP: not this one."""
        raise OSError(errno.ENOTSUP, "this transport cannot end one direction alone")

    def flush(self) -> bool:
        """Optional. Move on what it holds back. True: it holds nothing; False: not all has gone.

        With it, a stream closes only when all has gone, and calls ``end()`` before ``close()``.
        """
        return True

    def wants(self, directions: int) -> int:
        """Optional. What is to be waited for, READ and WRITE, given what the stream would do next;
        NOW: it need not wait. Left out: the same."""
        return directions

    def open(self) -> bool:
        """Optional. Get ready to move bytes: connect, shake hands. True: ready; False: call again,
        when woken or after what ``wants(0)`` says. Until then, nothing is read or written."""
        return True

    def fileno(self, direction: int) -> int:
        """Optional. The descriptor to watch for READ, or WRITE; -1: there is none, ``wake()`` will
        tell. Asked until there is one; that must then stay open until ``close()``."""
        return -1

    def query(self, what: str) -> Any:
        """Optional. The "peer" or "local" address: (host, port), for IPv6 also with (…, flow,
        scope), or the path of a UNIX socket; host is a number. None: there is none to tell."""
        return None


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that was taken apart; percent-encoding is undone in all but *text*."""

    scheme: str
    """As it was written, with what stands in front: "tls+rudp"."""
    host: str | None
    """None: there was no //; "" is one that was left empty."""
    port: int | None
    path: str
    options: Mapping[str, str]
    """Those that the scheme knows."""
    text: str
    """The whole."""
    _positions: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    _rest: int = field(default=0, repr=False, compare=False)


class EndpointError(ValueError):
    """An endpoint that is wrong: *text* says what would be right, in a sentence without full stop.

    The mark that is shown stands under the *option* of that name, or at *position*, in characters
    of the endpoint's text; without either, behind the scheme.
    """

    def __init__(
        self, text: str, *, position: int | None = None, option: str | None = None
    ) -> None:
        super().__init__(text)
        self.position = position
        self.option = option


class Listener(Protocol):
    """What Scheme.listen() returns."""

    @property
    def name(self) -> str:
        """The endpoint that a client connects to, with the port it got: "rudp://127.0.0.1:7000"."""

    def close(self) -> None:
        """Accept no more. Connections that are there go on."""


class Scheme(abc.ABC):
    """What the word before the colon means. One that lacks listen() or connect() is for clients, or
    for servers, only.

    Both may raise EndpointError for what is wrong in the endpoint, and OSError for what cannot be
    had. Neither may wait: a connection is ready later, when its transport's open() says so.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()

    def listen(
        self, loop: EventLoop, endpoint: Endpoint, accept: Callable[[Transport], None]
    ) -> Listener:
        """Call ``accept(transport)`` for each connection that comes in, until ``close()``."""
        raise NotImplementedError

    def connect(self, loop: EventLoop, endpoint: Endpoint) -> Transport:
        """A transport that is connected, or will be when it has opened."""
        raise NotImplementedError

    def closed(self, loop: EventLoop) -> None:  # noqa: B027 - most need nothing
        """Optional. The loop has been closed, and with it all listeners and transports: let go of
        what was kept for it beyond those."""


def find(name: str) -> object:
    """The scheme, or the capsule, that a package has brought under this name; None: no such.

    TypeError: it is neither. ImportError and the like: it cannot be loaded.
    """
    from importlib import metadata  # takes as long to import as all the rest of becket

    for entry in metadata.entry_points(group=GROUP, name=name):
        made: object = entry.load()
        if isinstance(made, type) and issubclass(made, Scheme):
            made = made()
        if isinstance(made, Scheme) and made.name != name:
            raise TypeError(f"{entry.value} is the scheme {made.name!r}, not {name!r}")
        if not isinstance(made, Scheme) and type(made).__name__ != "PyCapsule":
            raise TypeError(f"{entry.value} is neither a Scheme nor a capsule")
        return made
    return None


# ---- For the loop --------------------------------------------------------------------------------

_Failure = tuple[int, int, str]  # what a bk_error holds


def endpoint_of(parts: tuple[Any, ...], scheme: Scheme) -> Endpoint:
    """What the C half has taken apart."""
    word, host, port, path, options, text, rest = parts
    return Endpoint(
        word,
        host,
        None if port < 0 else port,
        path,
        {key: value for key, value, _ in options if key in scheme.options},
        text,
        {key: position for key, _, position in options},
        rest,
    )


def failure_of(error: Exception, endpoint: Endpoint) -> _Failure | None:
    """What an exception of a Scheme says; None: it is a fault."""
    if isinstance(error, EndpointError):
        if error.option is not None:
            return _EOPTION, endpoint._positions.get(error.option, 0), str(error)
        position = endpoint._rest
        if error.position is not None:
            position = len(endpoint.text[: error.position].encode(errors="surrogateescape"))
        return _EENDPOINT, position, str(error)
    if isinstance(error, OSError):
        return -(error.errno or errno.EIO), 0, error.strerror or str(error) or type(error).__name__
    return None
