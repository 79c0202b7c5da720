"""``becket serve PROTOCOL ENDPOINT…``: any protocol, at any endpoints, under any driver.

Each protocol that goes by a name has a parser of its own; what has settings of its own, as smtp, a
file. Another word, ``module:object``, is given a parser when it is asked for.
"""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from becket import served
from becket.commands import new_parser, say, smtp
from becket.commands.serving import EPILOG, add_options, make, serve

SERVABLE = "what module:object may be:\n" + "".join(
    f"  {text}\n" for kind, text in served.KINDS.items() if kind != "core"
)


def add(commands: Any, word: str | None = None) -> None:
    """``becket serve``; *word* is a ``module:object`` that is to be known besides."""
    parser = new_parser(
        commands,
        "serve",
        "serve a protocol",
        description="Serve a protocol at endpoints until SIGINT (Ctrl-C) or SIGTERM; a second one "
        "cuts short what is under way. SIGHUP reads certificates again. Options follow "
        "the protocol: `becket serve PROTOCOL --help` lists them.",
        epilog=f"{SERVABLE}\n{EPILOG}",
    )
    protocols = parser.add_subparsers(
        dest="protocol",
        required=True,
        metavar="PROTOCOL",
        title="protocols",
        description="module:object is served, too, as in `becket serve app:Echo tcp://:7000`",
    )
    smtp.add(protocols)
    names = {name: inspect.getdoc(make) or "" for name, make in served.CORE.items()}
    for name, entry in served.registered().items():
        names.setdefault(name, f"entry point of becket.protocols: {entry.value}")
    for name, text in names.items():
        if name not in protocols.choices:
            add_protocol(protocols, name, text)
    if word is not None and word not in protocols.choices:
        add_protocol(protocols, word, f"Serve {word}, which is imported.")


def add_protocol(protocols: Any, name: str, text: str) -> None:
    """A protocol without settings that we know of."""
    parser = new_parser(protocols, name, text, description=text, epilog=EPILOG)
    parser.set_defaults(run=run)
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal says so."""
    server = make(arguments)

    def announce(endpoints: list[str]) -> None:
        for endpoint in endpoints:
            say(f"becket: {arguments.protocol} at {endpoint}")
        say("becket: Ctrl-C ends this")

    status = serve(server, announce)
    count = server.stats["accepted"]
    say(f"becket: ended; {count} connection{'' if count == 1 else 's'} served")
    return status
