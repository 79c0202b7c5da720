"""``becket serve smtp``: receives mail into a Maildir or another store, and tells how to send it
some.

Called by becket.commands.serve, and by ``becket demo``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

from becket.commands import new_parser, rules, say, stores
from becket.commands.serving import EPILOG, add_options, make, serve

EXAMPLES = """\
examples:
  becket serve smtp --memory --web tcp://127.0.0.1:8025 tcp://127.0.0.1:2525
      what a program sends to port 2525, to look at with a browser
  becket serve smtp --maildir Maildir --accept example.org 'starttls+tcp://:25?cert=c&key=k'
      the mail of a domain
  becket serve smtp --relay tcp://mail.example.org:25 --users users --auth-required \\
      'tls+tcp://:465?cert=c&key=k'
      a submission server for those in a file, which `becket passwd NAME users` makes
  becket serve smtp --lmtp --deliver 'dovecot-lda -d $RECIPIENT' --deliver-each unix:/run/lmtp
      mail from Postfix, one process for each recipient
  becket serve smtp --handler app:Handler tcp://127.0.0.1:2525
      a handler in Python, as docs/mail.md has it
"""


def add(protocols: Any) -> None:
    """The parser of the protocol."""
    parser = new_parser(
        protocols,
        "smtp",
        "Receives mail.",
        description="Receive mail by SMTP, and store each message: as a file in DIR/new of a "
        "Maildir, in an mbox file, or in memory with a web page; or give it to a command or to "
        "another server. A message is acknowledged when it is safely there. Ctrl-C ends it.",
        epilog=f"{EXAMPLES}\n{EPILOG}",
    )
    parser.set_defaults(run=run)
    places = parser.add_mutually_exclusive_group(required=True)
    places.add_argument("--maildir", metavar="DIR", help="a file each; made when it is missing")
    stores.add_stores(places, parser)
    add_settings(parser)
    rules.add_rules(parser)
    # Each message is told of, so connections need not be; a client that idles between two messages
    # is not waited for.
    add_options(parser, log="off", drain=0.0)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The settings of all that serve SMTP."""
    parser.add_argument("--hostname", metavar="NAME", help="what to greet with (this host's name)")
    parser.add_argument(
        "--max-message",
        type=int,
        default=0,
        metavar="BYTES",
        help="the largest message that is accepted (25 MiB)",
    )


def tell_how_to_send(name: str) -> None:
    """How a person gets a mail to an endpoint."""
    scheme, _, rest = name.partition(":")
    secure = {"tls": " --tlsc", "starttls": " --tls"}.get(scheme.partition("+")[0], "")
    if rest.startswith("//"):
        host, _, port = rest.removeprefix("//").rpartition(":")
        host = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        say(f"  try: swaks --server {host}:{port}{secure} --to you@example.org")
        if not secure:
            say(
                f"  or:  python3 -c \"import smtplib; smtplib.SMTP('{host.strip('[]')}', {port})"
                ".sendmail('me@example.org', 'you@example.org', 'Subject: hello\\n\\nHello.')\""
            )
    elif scheme.endswith("unix"):
        say(f"  try: swaks --socket {rest}{secure} --to you@example.org")


class Counter:
    """Counts in any thread; *shared*: and in any process that is forked."""

    def __init__(self, shared: bool) -> None:
        self._numbers = itertools.count(1)
        self._last = 0
        self._shared: Any = None
        if shared:
            import multiprocessing  # slow

            self._shared = multiprocessing.get_context("fork").Value("Q")

    def __call__(self) -> int:
        """One more: its number."""
        if self._shared is None:
            self._last = next(self._numbers)
            return self._last
        with self._shared.get_lock():
            self._shared.value += 1
            return int(self._shared.value)

    @property
    def value(self) -> int:
        """How many there are."""
        return self._last if self._shared is None else int(self._shared.value)


def serve_mail(arguments: argparse.Namespace, announce: Callable[[list[str]], object]) -> int:
    """Receive mail until a signal says so, and tell of each message."""
    number = Counter(shared=arguments.driver.startswith("forks"))

    def stored(name: str, sender: str, recipients: list[str], size: int) -> None:
        say(f"{number()}: from <{sender}> to {', '.join(recipients)}, {size} bytes: {name}")

    def listening(endpoints: list[str]) -> None:
        announce(endpoints)
        say(f"becket: mail is stored in {arguments.maildir}/new; Ctrl-C ends this")

    settings = {name: getattr(arguments, name) for name in ("maildir", "hostname", "max_message")}
    if hasattr(arguments, "users"):  # it has not in `becket demo`
        settings |= rules.core_settings(arguments)
    status = serve(make(arguments, stored=stored, **settings), listening)
    say(f"becket: ended; {number.value} message{'' if number.value == 1 else 's'} stored")
    return status


def serve_stored(arguments: argparse.Namespace, announce: Callable[[list[str]], object]) -> int:
    """The same with another store."""
    number = Counter(shared=arguments.driver.startswith("forks"))

    def told(sender: str, recipients: list[str], size: int, reply: str) -> None:
        count = f"{number()}: " if reply.startswith("2") else "refused: "
        say(f"{count}from <{sender}> to {', '.join(recipients)}, {size} bytes: {reply}")

    status = stores.serve_store(arguments, told, announce)
    say(f"becket: ended; {number.value} message{'' if number.value == 1 else 's'} stored")
    return status


def run(arguments: argparse.Namespace) -> int:
    """Receive mail at the endpoints."""

    def announce(endpoints: list[str]) -> None:
        for endpoint in endpoints:
            say(f"becket: {'LMTP' if arguments.lmtp else 'SMTP'} at {endpoint}")
            if not arguments.lmtp:
                tell_how_to_send(endpoint)

    if arguments.maildir is None:
        return serve_stored(arguments, announce)
    stores.check(arguments)
    return serve_mail(arguments, announce)
