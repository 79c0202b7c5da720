"""becket.serve() and becket.Server: a protocol, endpoints, a driver, limits.

    def echo(connection):
        for line in connection:
            connection.sendall(line)

    becket.serve(echo, "tcp://:7000", "unix:/run/echo.sock")

    with becket.Server(echo, "tcp://127.0.0.1:0") as server:       # in tests: in the background
        connection = becket.connect(server.endpoints[0])

What is served is found out by becket.served; how it is run, is in becket.drivers.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from becket import drivers, served
from becket.endpoints import Endpoint, parse

logger = logging.getLogger("becket")

LIMITS = {
    "max_connections": "connections at once",
    "max_per_address": "connections from one IPv4 address, or one /64 of IPv6",
    "max_pending_handshakes": "connections whose TLS handshake is not over",
    "accept_rate": "new connections a second; more wait in the backlog",
    "first_byte": "seconds until the first byte was received",
    "idle": "seconds without a byte in either direction",
    "write": "seconds in which something is to be sent, and nothing can be",
    "total": "seconds a connection may last",
}


@dataclass(frozen=True)
class Plan:
    """All that a server was told; drivers read it, and change nothing."""

    served: served.Served
    endpoints: tuple[str, ...]
    limits: Mapping[str, int] = field(default_factory=dict)
    drain: float = 30.0
    max_threads: int = 64
    speaks_first: bool = False
    notifier: str | None = None
    access_log: str | None = None

    @functools.cached_property
    def parsed(self) -> dict[str, Endpoint]:
        """The endpoints, in parts. ValueError, with a mark under what is wrong."""
        return {text: parse(text) for text in self.endpoints}


def check_limits(limits: Mapping[str, Any]) -> dict[str, int]:
    """The limits, if they can be right; else TypeError or ValueError."""
    for name, value in limits.items():
        if name not in LIMITS:
            raise TypeError(f"{name}: there is no such limit; there are {', '.join(LIMITS)}")
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise ValueError(f"{name}: {value!r} is not a number from 0 (no limit) up")
    return dict(limits)


class Server:
    """A server: *target*, whatever can be served, at *endpoints*.

    *driver* says how it is run: "loop", "loops:N", "threads:N" or "forks:N". *limits* are
    max_connections, max_per_address, max_pending_handshakes, accept_rate, first_byte, idle, write
    and total (see LIMITS); 0, the default, is none. When it is stopped, what is under way has
    *drain* seconds to finish. A blocking function under an event-driven driver runs in at most
    *max_threads* threads, and is called when the first byte has been received; or at once, if it
    *speaks_first* (an attribute of that name on the function says the same). *access_log*, "text"
    or "json", logs a line for each connection to the logger ``becket.access``. Other arguments are
    settings of a protocol that goes by a name: ``Server("smtp", "tcp://:25", maildir="Maildir")``.

    TypeError and ValueError for arguments that cannot be right, ValueError and OSError, when it is
    started, for endpoints that are wrong or cannot be had. A server is started and stopped by one
    thread; all it can be asked may be asked by any.
    """

    def __init__(
        self,
        target: Any,
        *endpoints: str,
        driver: str = "loop",
        drain: float = 30.0,
        max_threads: int = 64,
        speaks_first: bool | None = None,
        notifier: str | None = None,
        access_log: str | None = None,
        **more: Any,
    ) -> None:
        if not endpoints:
            raise TypeError("an endpoint is missing, such as tcp://127.0.0.1:7000")
        if access_log not in (None, "text", "json"):
            raise ValueError(f"access_log: {access_log!r} is none of text, json")
        if max_threads < 1:
            raise ValueError(f"max_threads: {max_threads} is less than 1")
        if drain < 0:
            raise ValueError(f"drain: {drain} is negative; seconds are needed")
        limits = {name: value for name, value in more.items() if name in LIMITS}
        settings = {name: value for name, value in more.items() if name not in LIMITS}
        first = getattr(target, "speaks_first", False) if speaks_first is None else speaks_first
        self._plan = Plan(
            served.find(target, settings),
            tuple(map(str, endpoints)),
            check_limits(limits),
            drain,
            max_threads,
            first,
            notifier,
            access_log,
        )
        self._driver = drivers.make(driver, self._plan)

    def __repr__(self) -> str:
        plan = self._plan
        return f"<becket.Server {plan.served.name} at {', '.join(self.endpoints)}: {self._driver}>"

    @property
    def endpoints(self) -> list[str]:
        """Where it listens, with the ports it got; before it is started, as they were given."""
        return list(self._driver.names or self._plan.endpoints)

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return self.stats["connections"]

    @property
    def stats(self) -> dict[str, int]:
        """Counters: accepted, refused, closed, failed; bytes_in and bytes_out of what is closed;
        connections and handshakes of now. Under forks, a quarter of a second old."""
        return self._driver.stats()

    def start(self) -> Server:
        """Serve in the background: in a thread, or with "forks:N" in processes; returns itself when
        it listens."""
        self._driver.start()
        return self

    def stop(self, drain: float | None = None) -> bool:
        """Accept no more, let what is under way finish for *drain* seconds, cut what is left then.
        True: nothing had to be cut, and nothing had failed. Not started is no error."""
        return self._driver.stop(self._plan.drain if drain is None else drain) == 0

    def reload(self) -> None:
        """Read the certificates of its endpoints again, and open log files anew."""
        self._driver.reload()

    def run(self, ready: Callable[[], object] | None = None) -> int:
        """Serve in this thread, which must be the main one, until SIGINT or SIGTERM; a second one
        cuts short what is under way. SIGHUP reloads. *ready* is called when it listens; without it
        the log is told where. Returns an exit status: 0 when all ended in good order, else 1."""
        return self._driver.run(ready)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _show_log() -> None:
    """A program that has not set up logging shall still say where it listens."""
    if logging.getLogger().handlers or logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("becket: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def serve(target: Any, *endpoints: str, **options: Any) -> int:
    """Serve *target* at *endpoints* until SIGINT or SIGTERM, and return an exit status.

    *target* is an asyncio.Protocol class (or a function that makes one), a coroutine function on
    (reader, writer), a blocking function on a becket.Connection, a socketserver request handler, or
    a name. The options, and the errors, are those of becket.Server.
    """
    server = Server(target, *endpoints, **options)
    _show_log()
    return server.run()
