"""The becket command.

``becket serve smtp --maildir DIR ENDPOINT…`` receives mail and stores it. ``main()`` is called by
the installed command and by ``python -m becket``; it returns an exit status.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
from collections.abc import Sequence

import becket
from becket import _becket

ENDPOINTS = """\
endpoints:
  tcp://HOST:PORT      IPv4, [IPv6] or a name; port 0 takes any; tcp://:2525 is every address
  unix:PATH            a UNIX socket; ?mode=600 sets its permissions
  stdio:               standard input and output
  fd:N                 a descriptor that is open already
Options follow a question mark: tcp://127.0.0.1:2525?backlog=100
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
    add_smtp(protocols.add_parser(
        "smtp",
        help="receive mail into a Maildir",
        description="Receive mail by SMTP and store each message as a file in DIR/new. A message "
        "is acknowledged when it is safely on disk. Ctrl-C ends it.",
        epilog=ENDPOINTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ))
    return parser


def add_smtp(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``becket serve smtp``."""
    parser.add_argument("endpoints", nargs="+", metavar="ENDPOINT", help="where to listen")
    parser.add_argument("--maildir", required=True, metavar="DIR", help="made when it is missing")
    parser.add_argument("--hostname", metavar="NAME", help="what to greet with (this host's name)")
    parser.add_argument(
        "--max-message", type=int, default=0, metavar="BYTES",
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
    if name.startswith("tcp://"):
        host, _, port = name.removeprefix("tcp://").rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        say(f"  try: swaks --server {host}:{port} --to you@example.org")
        say(f"  or:  python3 -c \"import smtplib; smtplib.SMTP('{host.strip('[]')}', {port})"
            ".sendmail('me@example.org', 'you@example.org', 'Subject: hello\\n\\nHello.')\"")
    elif name.startswith("unix:"):
        say(f"  try: swaks --socket {name.removeprefix('unix:')} --to you@example.org")


async def serve_smtp(arguments: argparse.Namespace) -> int:
    """Receive mail until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    count = 0

    def stored(name: str, sender: str, recipients: list[str], size: int) -> None:
        nonlocal count
        count += 1
        say(f"{count}: from <{sender}> to {', '.join(recipients)}, {size} bytes: {name}")

    hostname = arguments.hostname or own_hostname()
    server = _becket.Smtp(
        loop, arguments.maildir, hostname, max_message=arguments.max_message, stored=stored
    )
    try:
        for endpoint in arguments.endpoints:
            name = server.listen(endpoint)
            say(f"becket: SMTP at {name}")
            tell_how_to_send(name)
        say(f"becket: mail is stored in {arguments.maildir}/new; Ctrl-C ends this")
        await ended.wait()
    finally:
        server.close()
    say(f"becket: ended; {count} message{'' if count == 1 else 's'} stored")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0: all went well; 1: it could not be done; 2: the arguments are wrong."""
    arguments = build_parser().parse_args(argv)
    try:
        with asyncio.Runner(loop_factory=lambda: becket.EventLoop(arguments.notifier)) as runner:
            return runner.run(serve_smtp(arguments))
    except (OSError, ValueError) as error:
        say(f"becket: {error}")
        return 2 if isinstance(error, ValueError) else 1
