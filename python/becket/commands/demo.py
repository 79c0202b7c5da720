"""``becket demo``: the same protocol over every kind of transport, which is the point."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from becket.commands import new_parser, say
from becket.commands.engines import engines
from becket.commands.serving import add_options
from becket.commands.smtp import add_settings, serve_mail, tell_how_to_send


def add(commands: Any) -> None:
    """``becket demo``."""
    parser = new_parser(
        commands,
        "demo",
        "one SMTP server, in plain and under every TLS engine there is",
        description="Receive mail as `becket serve smtp` does, on one port in plain and, for each "
        "TLS engine that is here, on one that is TLS from the start and one with "
        "STARTTLS: the protocol is the same everywhere. The certificates are made up: "
        "no client trusts them.",
    )
    parser.set_defaults(run=run, protocol="smtp")
    parser.add_argument(
        "--port", type=int, default=2525, help="the first of the TCP ports; 0: any (%(default)s)"
    )
    parser.add_argument("--unix", metavar="PATH", help="a UNIX socket too")
    parser.add_argument("--maildir", default="Maildir", metavar="DIR", help="(%(default)s)")
    add_settings(parser)
    add_options(parser, endpoints=False, log="off", drain=0.0)


def plan(arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    """The endpoints, each with its title; before these, a line on its engine, or ""."""
    ports = itertools.count(arguments.port, 1 if arguments.port else 0)
    planned = [("", "plain", f"tcp://127.0.0.1:{next(ports)}")]
    if arguments.unix:
        planned.append(("", "plain", f"unix:{arguments.unix}"))
    for name, version, missing in engines():
        if version is None:
            say(f"becket: TLS engine {name} is left out: {missing}")
            continue
        for scheme in ("tls", "starttls"):
            endpoint = f"{scheme}://127.0.0.1:{next(ports)}?cert=dev&engine={name}"
            about = f"{name}: {version}" if scheme == "tls" else ""
            planned.append((about, f"{name}, {scheme}", endpoint))
    return planned


def run(arguments: argparse.Namespace) -> int:
    """Receive mail at all of them."""
    planned = plan(arguments)
    arguments.endpoints = [endpoint for _, _, endpoint in planned]

    def announce(endpoints: list[str]) -> None:
        for (about, title, _), endpoint in zip(planned, endpoints, strict=True):
            if about:
                say(about)
            say(f"{title:20} {endpoint}")
            if not endpoint.startswith("unix:"):
                tell_how_to_send(endpoint)

    return serve_mail(arguments, announce)
