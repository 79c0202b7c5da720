"""The becket command.

``becket serve smtp --maildir DIR ENDPOINT…`` receives mail and stores it; ``becket demo`` does so
in plain and under every TLS engine there is. ``main()`` is called by the installed command and by
``python -m becket``; it returns an exit status.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import cast

import becket
from becket import _becket, tls

ENDPOINTS = """\
endpoints:
  tcp://HOST:PORT      IPv4, [IPv6] or a name; port 0 takes any; tcp://:2525 is every address
  unix:PATH            a UNIX socket; ?mode=600 sets its permissions
  unix:@NAME           a Linux abstract socket, which has no file
  stdio:               standard input and output
  fd:N                 a descriptor that is open already
  systemd:NAME         the sockets of that name that systemd passed; systemd: alone is all
  process:COMMAND      standard input and output of a command, run by /bin/sh
  tls://HOST:PORT?cert=FILE        TLS; tls+unix:PATH?…, tls+stdio:?… as well
  starttls://HOST:PORT?cert=FILE   plain, until the client starts TLS
Options follow a question mark: tcp://127.0.0.1:2525?backlog=100
options of TLS:
  cert, key   PEM files; cert=dev makes one up, for development. SIGHUP reads them again
  engine      openssl, gnutls, mbedtls, pyopenssl, tlslite, …
  verify      none, optional, required: certificates of clients, signed by those in ca=FILE
  alpn, min, max, tickets, handshake: see include/becket.h
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="becket", description="One networking core under every kind of server."
    )
    parser.add_argument("--version", action="version", version=f"becket {becket.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a protocol", description="Serve a protocol.")
    protocols = serve.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    add_smtp(
        protocols.add_parser(
            "smtp",
            help="receive mail into a Maildir",
            description="Receive mail by SMTP and store each message as a file in DIR/new. A "
            "message is acknowledged when it is safely on disk. Ctrl-C ends it.",
            epilog=ENDPOINTS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    add_demo(
        commands.add_parser(
            "demo",
            help="one SMTP server, in plain and under every TLS engine there is",
            description="Receive mail as `becket serve smtp` does, on one port in plain and, for "
            "each TLS engine that is here, on one that is TLS from the start and one with "
            "STARTTLS: the protocol is the same everywhere. The certificates are made up: no "
            "client trusts them.",
        )
    )
    return parser


def add_smtp(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``becket serve smtp``."""
    parser.set_defaults(run=serve_smtp)
    parser.add_argument("endpoints", nargs="+", metavar="ENDPOINT", help="where to listen")
    parser.add_argument("--maildir", required=True, metavar="DIR", help="made when it is missing")
    add_common(parser)


def add_demo(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``becket demo``."""
    parser.set_defaults(run=demo)
    parser.add_argument(
        "--port", type=int, default=2525, help="the first of the TCP ports; 0: any (%(default)s)"
    )
    parser.add_argument("--unix", metavar="PATH", help="a UNIX socket too")
    parser.add_argument("--maildir", default="Maildir", metavar="DIR", help="(%(default)s)")
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """The arguments of all that serve SMTP."""
    parser.add_argument("--hostname", metavar="NAME", help="what to greet with (this host's name)")
    parser.add_argument(
        "--max-message",
        type=int,
        default=0,
        metavar="BYTES",
        help="the largest message that is accepted (25 MiB)",
    )
    parser.add_argument(
        "--notifier", choices=becket.notifiers, help="how to wait for descriptors (the best)"
    )


def say(text: str) -> None:
    """One line to a person, on standard error: standard output may be a stdio: endpoint."""
    print(text, file=sys.stderr, flush=True)


def own_hostname() -> str:
    """This host's name, as far as it can be given in SMTP."""
    name = socket.gethostname()
    plain = name.isascii() and all(c.isalnum() or c in "-." for c in name)
    return name if name and plain else "localhost"


def tell_how_to_send(name: str) -> None:
    """How a person gets a mail to an endpoint."""
    scheme, _, rest = name.partition(":")
    secure = {"tls": " --tlsc", "starttls": " --tls"}.get(scheme.partition("+")[0], "")
    if rest.startswith("//"):
        host, _, port = rest.removeprefix("//").rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        say(f"  try: swaks --server {host}:{port}{secure} --to you@example.org")
        if not secure:
            say(
                f"  or:  python3 -c \"import smtplib; smtplib.SMTP('{host.strip('[]')}', {port})"
                ".sendmail('me@example.org', 'you@example.org', 'Subject: hello\\n\\nHello.')\""
            )
    elif scheme.endswith("unix"):
        say(f"  try: swaks --socket {rest}{secure} --to you@example.org")


def tell_supervisor(state: str) -> None:
    """Systemd, or what else watches over us; that it does not hear is no reason to end."""
    try:
        _becket._supervisor_tell(state)
    except OSError as error:
        say(f"becket: the supervisor cannot be told: {error}")


class Server:
    """A mail server of the core, on the loop that runs."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.loop = cast(becket.EventLoop, asyncio.get_running_loop())
        self.ended = asyncio.Event()
        self.count = 0
        self.smtp = _becket.Smtp(
            self.loop,
            arguments.maildir,
            arguments.hostname or own_hostname(),
            max_message=arguments.max_message,
            stored=self.stored,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            self.loop.add_signal_handler(number, self.ended.set)
        self.loop.add_signal_handler(signal.SIGHUP, self.reload)
        self.maildir = arguments.maildir

    def stored(self, name: str, sender: str, recipients: list[str], size: int) -> None:
        """A message is safe."""
        self.count += 1
        say(f"{self.count}: from <{sender}> to {', '.join(recipients)}, {size} bytes: {name}")

    def reload(self) -> None:
        """Certificates have changed."""
        tell_supervisor(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self.smtp.reload()
        tell_supervisor("READY=1")

    async def run(self) -> int:
        """Serve until a signal says so; the supervisor hears when that begins and ends."""
        say(f"becket: mail is stored in {self.maildir}/new; Ctrl-C ends this")
        try:
            self.loop._supervisor_watch()
        except OSError as error:
            say(f"becket: there is no watchdog: {error}")
        tell_supervisor("READY=1")
        await self.ended.wait()
        tell_supervisor("STOPPING=1")
        say(f"becket: ended; {self.count} message{'' if self.count == 1 else 's'} stored")
        return 0


def know_engines(loop: becket.EventLoop) -> list[tuple[str, str]]:
    """Let endpoints name the TLS engines in Python. Returns all engines that are here, and what
    their libraries call themselves."""
    here = []
    for name, version, missing in _becket._tls_engines():
        if version is not None:
            here.append((name, version))
        else:
            say(f"becket: TLS engine {name} is left out: {missing}")
    for name, engine in tls.engines().items():
        loop._add_tls_engine(engine)
        try:
            engine.open()
        except ImportError as error:
            say(f"becket: TLS engine {name} is left out: {error}")
        else:
            here.append((name, engine.version()))
    return here


async def serve_smtp(arguments: argparse.Namespace) -> int:
    """Receive mail until SIGINT or SIGTERM."""
    server = Server(arguments)
    if any("engine=" in endpoint for endpoint in arguments.endpoints) or "BECKET_TLS" in os.environ:
        for engine in tls.engines().values():
            server.loop._add_tls_engine(engine)
    try:
        for endpoint in arguments.endpoints:
            name = server.smtp.listen(endpoint)
            say(f"becket: SMTP at {name}")
            tell_how_to_send(name)
        return await server.run()
    finally:
        server.smtp.close()


async def demo(arguments: argparse.Namespace) -> int:
    """The same protocol over every kind of transport: that is the point."""
    server = Server(arguments)
    port = arguments.port

    def listen(scheme: str, options: str, title: str) -> None:
        nonlocal port
        name = server.smtp.listen(f"{scheme}://127.0.0.1:{port}{options}")
        port += 1 if port else 0
        say(f"{title:20} {name}")
        tell_how_to_send(name)

    try:
        listen("tcp", "", "plain")
        if arguments.unix:
            say(f"{'plain':20} {server.smtp.listen(f'unix:{arguments.unix}')}")
        for engine, version in know_engines(server.loop):
            say(f"{engine}: {version}")
            for scheme in ("tls", "starttls"):
                listen(scheme, f"?cert=dev&engine={engine}", f"{engine}, {scheme}")
        return await server.run()
    finally:
        server.smtp.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0: all went well; 1: it could not be done; 2: the arguments are wrong."""
    arguments = build_parser().parse_args(argv)
    try:
        with asyncio.Runner(loop_factory=lambda: becket.EventLoop(arguments.notifier)) as runner:
            status: int = runner.run(arguments.run(arguments))
            return status
    except (OSError, ValueError) as error:
        say(f"becket: {error}")
        return 2 if isinstance(error, ValueError) else 1
