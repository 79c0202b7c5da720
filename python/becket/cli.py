"""The becket command.

``main()`` is called by the installed command and by ``python -m becket``; it returns an exit
status. Each command is a file of becket.commands.
"""

from __future__ import annotations

import argparse
import platform
import signal
import ssl
import sys
from collections.abc import Sequence

import becket
from becket.commands import (
    bench,
    completion,
    connect,
    demo,
    endpoints,
    engines,
    notifiers,
    passwd,
    protocols,
    reason,
    say,
    send,
    serve,
)

EPILOG = """\
exit status:
  0    all went well
  1    it could not be done, or ended badly
  2    the arguments are wrong
  130  Ctrl-C, where that is not the way to end it
"""


def build_parser(word: str | None = None) -> argparse.ArgumentParser:
    """The command line's grammar; *word*: a module:object that `serve` is to know."""
    parser = argparse.ArgumentParser(
        prog="becket",
        description="One networking core under every kind of server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    parser.add_argument("-v", "--verbose", action="store_true", help="--version: and what is used")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve.add(commands, word)
    for command in (
        demo,
        connect,
        send,
        passwd,
        bench,
        endpoints,
        engines,
        notifiers,
        protocols,
        completion,
    ):
        command.add(commands)
    return parser


def named_object(argv: Sequence[str]) -> str | None:
    """The module:object that is to be served, if it is one."""
    word = argv[1] if len(argv) > 1 and argv[0] == "serve" else ""
    return word if ":" in word and not word.startswith("-") else None


def print_version(verbose: bool) -> int:
    """The version; *verbose*: and what is under it."""
    print(f"becket {becket.__version__}")
    if verbose:
        print(f"Python {platform.python_version()} ({platform.python_implementation()})")
        print(ssl.OPENSSL_VERSION)
        print(f"notifier {notifiers.default()}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0: all went well; 1: it could not be done; 2: the arguments are wrong."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser(named_object(argv))
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "bench":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command is None and not arguments.version:
        parser.error("a COMMAND is missing, such as serve")
    try:
        if arguments.version:
            return print_version(arguments.verbose)
        arguments.rest = rest
        status: int = arguments.run(arguments)
        return status
    except ValueError as error:
        say(f"becket: {error}")
        return 2
    except OSError as error:
        say(f"becket: {reason(error)}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
