"""What all commands that serve have in common: options, the log, a becket.Server and its end.

Called by becket.commands.serve, smtp and demo.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import becket
from becket.commands import rows, say
from becket.commands.endpoints import GRAMMAR
from becket.server import LIMITS, Server

DRIVERS = {
    "loop": "one event loop (the default)",
    "loops:N": "N threads with an event loop each",
    "threads:N": "one loop accepts, N threads serve a connection each",
    "forks:N": "N processes with an event loop each; one that dies is replaced",
}
EPILOG = f"{GRAMMAR}\ndrivers:\n{rows(DRIVERS)}"
LEVELS = ("debug", "info", "warning", "error")


def add_options(
    parser: argparse.ArgumentParser,
    *,
    endpoints: bool = True,
    log: str = "text",
    drain: float = 30.0,
) -> None:
    """What is the same for all protocols."""
    if endpoints:
        parser.add_argument("endpoints", nargs="+", metavar="ENDPOINT", help="where to listen")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the protocol; may be given often",
    )
    how = parser.add_argument_group("how it is run")
    how.add_argument(
        "--driver", default="loop", help="loop, loops:N, threads:N or forks:N (%(default)s)"
    )
    how.add_argument(
        "--drain",
        type=float,
        default=drain,
        metavar="S",
        help="seconds for what is under way, when it ends; 0 cuts it at once (%(default)g)",
    )
    how.add_argument(
        "--threads",
        type=int,
        default=64,
        metavar="N",
        help="at most so many for a blocking function under an event loop (%(default)s)",
    )
    how.add_argument(
        "--speaks-first",
        action="store_true",
        default=None,
        help="call a blocking function at once, not when the first byte is there",
    )
    how.add_argument(
        "--notifier", choices=becket.notifiers, help="how to wait for descriptors (the best)"
    )
    limits = parser.add_argument_group("limits (0: none)")
    for name, text in LIMITS.items():
        flag = "--" + name.replace("_", "-")
        limits.add_argument(flag, type=int, default=0, metavar="N", help=text)
    told = parser.add_argument_group("what is told, on standard error")
    told.add_argument(
        "--access-log",
        choices=("text", "json", "off"),
        default=log,
        help="a line for each connection (%(default)s)",
    )
    told.add_argument("--log-level", choices=LEVELS, default="info", help="(%(default)s)")


class Teller(logging.Handler):
    """Says what is logged, on standard error; becket's own words after its name."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "becket: " if record.name == "becket" else ""
        say(prefix + self.format(record))


def read_settings(pairs: list[str]) -> dict[str, Any]:
    """What ``--set`` gave; digits are numbers. ValueError."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set: {pair!r} is not NAME=VALUE")
        settings[name] = int(value) if value.isascii() and value.isdigit() else value
    return settings


def show_log(level: str) -> None:
    """Logging goes to standard error."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    if not any(isinstance(handler, Teller) for handler in root.handlers):
        root.addHandler(Teller())


def make(arguments: argparse.Namespace, **settings: Any) -> Server:
    """The server that the arguments ask for. ValueError."""
    show_log(arguments.log_level)
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as `python -m`
    limits = {name: getattr(arguments, name) for name in LIMITS}
    try:
        return Server(
            arguments.protocol,
            *arguments.endpoints,
            driver=arguments.driver,
            drain=arguments.drain,
            max_threads=arguments.threads,
            speaks_first=arguments.speaks_first,
            notifier=arguments.notifier,
            access_log=None if arguments.access_log == "off" else arguments.access_log,
            **limits,
            **settings,
            **read_settings(arguments.set),
        )
    except TypeError as error:  # of what was given, not of a program
        raise ValueError(str(error)) from error


def serve(server: Server, announce: Callable[[list[str]], object]) -> int:
    """Run it; *announce* is given its endpoints when it listens."""
    return server.run(lambda: announce(server.endpoints))
