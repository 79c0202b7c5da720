"""``becket endpoints``: what endpoints may say. The texts are those of ``--help``, too."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from becket.commands import add_json, new_parser, print_list, rows


class Scheme(NamedTuple):
    """What a scheme's endpoints look like."""

    grammar: str
    text: str
    options: tuple[str, ...]


OPTIONS = {
    "backlog": "how many connections may wait to be accepted",
    "reuse_port": "1: several processes may listen at this port",
    "mode": "the permissions of the socket, octal",
    "proxy": "require, accept: a PROXY header; clients: send, send-v1",
    "proxy_from": "whose PROXY headers are believed: 10.0.0.0/8,::1,unix (this machine)",
    "proxy_for": "clients: the address that is told, 192.0.2.1:4000 (their own)",
    "cert": "PEM file with a certificate; cert=dev makes one up, for development",
    "key": "PEM file with its key, when that is not in cert. SIGHUP reads both again",
    "ca": "PEM file: whom to trust; without it, whom the system trusts",
    "verify": "none, optional, required: the peer's certificate",
    "alpn": "application protocols in order of preference: h2,http/1.1",
    "engine": "openssl, gnutls, mbedtls, pyopenssl, …: see `becket engines`",
    "min": "1.2, 1.3: the oldest version of TLS",
    "max": "1.2, 1.3: the newest",
    "name": "clients: whom to ask for and to verify, when it is not the host",
    "handshake": "seconds it may take (60)",
    "truncation": "refuse, allow: an end without close_notify",
    "linger": "seconds to wait for close_notify when closing (0)",
    "reload": "servers: look every so many seconds whether the files changed (5; 0: never)",
    "tickets": "on, off: whether sessions can be resumed",
}
PROXY = ("proxy", "proxy_from", "proxy_for")
TCP = ("backlog", "reuse_port", *PROXY)
TLS = tuple(OPTIONS)[6:]
SCHEMES = {
    "tcp": Scheme(
        "tcp://HOST:PORT",
        "IPv4, [IPv6] or a name; port 0 takes any; tcp://:2525 is every address",
        TCP,
    ),
    "unix": Scheme(
        "unix:PATH", "a UNIX socket; unix:@NAME is abstract, on Linux", ("backlog", "mode", *PROXY)
    ),
    "stdio": Scheme("stdio:", "standard input and output, one connection", PROXY),
    "fd": Scheme("fd:N", "a descriptor that is open already", PROXY),
    "memory": Scheme("memory:NAME", "a meeting place within the process", PROXY),
    "process": Scheme(
        "process:COMMAND", "a command's standard input and output, by /bin/sh", PROXY
    ),
    "systemd": Scheme(
        "systemd:NAME", "the sockets of that name that systemd passed; systemd: alone is all", PROXY
    ),
    "tls": Scheme(
        "tls://HOST:PORT?cert=FILE",
        "TLS on tcp; tls+unix:PATH?…, tls+stdio:?…, … on any other",
        (*TCP, *TLS),
    ),
    "starttls": Scheme(
        "starttls://HOST:PORT?cert=FILE",
        "plain, until the protocol starts TLS; starttls+unix:, … as well",
        (*TCP, *TLS),
    ),
}
GRAMMAR = (
    "endpoints:\n"
    + rows({s.grammar: s.text for s in SCHEMES.values()})
    + "Options follow a question mark, as in unix:PATH?mode=600; `becket endpoints` lists them.\n"
)


def add(commands: Any) -> None:
    """``becket endpoints``."""
    parser = new_parser(
        commands,
        "endpoints",
        "what endpoints may say",
        description="List the schemes of endpoints, with their options.",
    )
    parser.set_defaults(run=run)
    add_json(parser)


def registered() -> dict[str, str]:
    """The entry points of the group ``becket.transports``: their names, and what they stand for."""
    from importlib import metadata

    return {e.name: e.value for e in metadata.entry_points(group="becket.transports")}


def run(arguments: argparse.Namespace) -> int:
    """List them."""
    items: list[dict[str, Any]] = [
        {"scheme": name, **s._asdict(), "options": {o: OPTIONS[o] for o in s.options}}
        for name, s in SCHEMES.items()
    ]
    texts = {}
    for s in SCHEMES.values():
        keys = "TLS's, and those of what is below" if "cert" in s.options else ", ".join(s.options)
        texts[s.grammar] = s.text + (f"\noptions: {keys}" if keys else "")
    for name, value in registered().items():
        items.append({"scheme": name, "entry_point": value})
        texts[f"{name}:…"] = f"entry point of becket.transports: {value}"
    print_list(items, texts, arguments.json)
    if not arguments.json:
        print("\nOptions follow a question mark, as in unix:PATH?mode=600&backlog=100:")
        print(rows({name: OPTIONS[name] for name in OPTIONS if name not in TLS}), end="")
        print("of TLS:")
        print(rows({name: OPTIONS[name] for name in TLS}), end="")
    return 0
