"""What ``becket serve smtp`` does with mail, other than storing it in a Maildir: options, and the
handlers of becket.smtp that they name. Called by becket.commands.smtp.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from becket.commands import rules, say
from becket.commands.serving import read_settings, serve, show_log
from becket.server import LIMITS
from becket.smtp.store import sender_of

MIB = 1024 * 1024
Told = Callable[[str, list[str], int, str], object]


def add_stores(stores: Any, parser: argparse.ArgumentParser) -> None:
    """The options: *stores* is the group of those that exclude each other."""
    stores.add_argument("--memory", action="store_true", help="keep mail in memory; see --web")
    stores.add_argument("--mbox", metavar="FILE", help="append mail to a file, in mbox format")
    stores.add_argument("--deliver", metavar="COMMAND", help="run a command for each message")
    stores.add_argument("--relay", metavar="ENDPOINT", help="pass mail on to another server")
    stores.add_argument("--drop", action="store_true", help="keep nothing")
    stores.add_argument(
        "--handler",
        metavar="MODULE:CLASS",
        help="give mail to a handler in Python; a class, or a function that makes one",
    )
    more = parser.add_argument_group("stores")
    more.add_argument(
        "--web",
        action="append",
        default=[],
        metavar="ENDPOINT",
        help="a page for --memory, by HTTP",
    )
    more.add_argument(
        "--web-host", action="append", default=[], metavar="NAME", help="a name the page goes by"
    )
    for name, number, help in (
        ("memory-messages", 1000, "at most so many, then the oldest go (%(default)s)"),
        ("memory-bytes", 256 * MIB, "at most so many (%(default)s)"),
        ("deliver-processes", 20, "so many at once; further messages wait (%(default)s)"),
        ("deliver-timeout", 300, "seconds for one (%(default)s)"),
        ("relay-connections", 20, "so many at once; further clients wait (%(default)s)"),
    ):
        more.add_argument(f"--{name}", type=int, default=number, metavar="N", help=help)
    for name, metavar, help in (
        ("relay-user", "NAME", "log in there, under TLS, as NAME"),
        ("relay-password-file", "FILE", "… with the password in the first line of FILE"),
    ):
        more.add_argument(f"--{name}", metavar=metavar, help=help)
    for name, help in (
        ("deliver-each", "a process for each recipient, not for each message"),
        ("deliver-shell", "the command is one for sh, and finds $SENDER in its environment"),
        ("relay-lmtp", "the other server speaks LMTP"),
    ):
        more.add_argument(f"--{name}", action="store_true", help=help)


def check(arguments: argparse.Namespace) -> None:
    """ValueError for options that do not go together."""
    if arguments.web and not arguments.memory:
        raise ValueError("--web: there is a page for --memory alone")
    if (arguments.relay_user is None) != (arguments.relay_password_file is None):
        raise ValueError("--relay-user and --relay-password-file go together")
    if arguments.relay_user is not None and not arguments.relay:
        raise ValueError("--relay-user: there is no --relay")
    if arguments.memory and arguments.driver.startswith("forks"):
        raise ValueError(f"--memory: {arguments.driver} would have a memory in each process")


@contextmanager
def handler_of(arguments: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    """The handler, and what to say of where mail goes. ValueError, OSError."""
    with ExitStack() as stack:
        if arguments.memory:
            yield _memory(arguments, stack), "mail is kept in memory"
        elif arguments.mbox:
            from becket.smtp.mbox import Mbox

            mbox = Mbox(arguments.mbox)
            stack.callback(mbox.close)
            yield mbox, f"mail is appended to {mbox.path}"
        elif arguments.drop:
            yield Drop(), "mail is dropped"
        elif arguments.handler:
            yield _imported(arguments.handler), f"mail is given to {arguments.handler}"
        elif arguments.deliver:
            yield _command(arguments, stack), f"mail is given to {arguments.deliver}"
        else:
            from becket.smtp.relay import Relay

            relay = Relay(
                arguments.relay,
                lmtp=arguments.relay_lmtp,
                login=_relay_login(arguments),
                connections=arguments.relay_connections,
                **({"hostname": arguments.hostname} if arguments.hostname else {}),
            )
            yield relay, f"mail is passed on to {arguments.relay}"


def _relay_login(arguments: argparse.Namespace) -> tuple[str, str] | None:
    if arguments.relay_user is None:
        return None
    with open(arguments.relay_password_file, encoding="utf-8") as lines:
        password = lines.readline().rstrip("\r\n")
    if not password:
        raise ValueError(f"--relay-password-file: {arguments.relay_password_file} has no password")
    return arguments.relay_user, password


def _memory(arguments: argparse.Namespace, stack: ExitStack) -> Any:
    from becket.smtp.memory import Memory

    memory = Memory(arguments.memory_messages, arguments.memory_bytes)
    if arguments.web:
        try:
            from becket.smtp.page import Page, url_of
        except ImportError as error:
            raise ValueError(f"--web: {error}: pip install becket[web]") from error
        page = Page(memory, hosts=arguments.web_host)
        for name in stack.enter_context(page.running(*arguments.web)):
            say(f"becket: page at {url_of(name) or name}")
    return memory


def _command(arguments: argparse.Namespace, stack: ExitStack) -> Any:
    from becket.smtp.command import Command

    command = Command(
        arguments.deliver,
        shell=arguments.deliver_shell,
        each_recipient=arguments.deliver_each,
        processes=arguments.deliver_processes,
        timeout=arguments.deliver_timeout,
    )
    stack.callback(command.close)
    return command


def _imported(name: str) -> Any:
    """What a user's module has, without arguments. ValueError."""
    import os
    import sys

    from becket.served import load

    if ":" not in name:
        raise ValueError(f"--handler: {name!r} is not MODULE:CLASS")
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as `python -m`
    found = load(name)
    return found() if callable(found) else found


class Drop:
    """Keeps nothing."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Say that it is well."""
        return "250 2.0.0 message dropped"


class Telling:
    """A handler that is another one, and tells of each message what was answered."""

    handle_DATA: Any

    def __init__(self, handler: Any, told: Told) -> None:
        for name in dir(handler):
            if name.startswith("handle_"):
                setattr(self, name, getattr(handler, name))
        deliver = getattr(handler, "handle_DATA", Drop().handle_DATA)

        async def handle_DATA(server: Any, session: Any, envelope: Any) -> Any:
            reply = deliver(server, session, envelope)
            if inspect.isawaitable(reply):
                reply = await reply
            size = len(envelope.content or b"")
            told(sender_of(envelope.mail_from), list(envelope.rcpt_tos), size, text_of(reply))
            return reply

        self.handle_DATA = handle_DATA


def text_of(reply: Any) -> str:
    """What a handler answered, for people."""
    if reply is None:
        return "250"
    if isinstance(reply, bytes):
        return reply.decode(errors="replace")
    if isinstance(reply, str):
        return reply
    replies = reply.values() if isinstance(reply, dict) else reply
    return "; ".join(map(text_of, replies))


def serve_store(
    arguments: argparse.Namespace, told: Told, announce: Callable[[list[str]], object]
) -> int:
    """Receive mail until a signal says so; *told* hears of each message."""
    from becket.smtp.server import Server

    show_log(arguments.log_level)
    check(arguments)
    with handler_of(arguments) as (handler, about):
        server = Server(
            Telling(handler, told),
            *arguments.endpoints,
            driver=arguments.driver,
            drain=arguments.drain,
            notifier=arguments.notifier,
            access_log=None if arguments.access_log == "off" else arguments.access_log,
            hostname=arguments.hostname,
            data_size_limit=arguments.max_message or 25 * MIB,
            **rules.handler_settings(arguments),
            **{name: getattr(arguments, name) for name in LIMITS},
            **read_settings(arguments.set),
        )

        def listening(endpoints: list[str]) -> None:
            announce(endpoints)
            say(f"becket: {about}; Ctrl-C ends this")

        return serve(server, listening)
