"""The commands of ``becket``, one file each, and what they share.

Each has ``add(commands)``, which adds its grammar, and ``run(arguments)``, which returns an exit
status. They are called by becket.cli. Commands that serve keep standard output free: it may be a
``stdio:`` endpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


def say(text: str) -> None:
    """One line to a person, on standard error."""
    print(text, file=sys.stderr, flush=True)


def reason(error: OSError) -> str:
    """What went wrong, without its number."""
    text = error.strerror or str(error)
    return text if error.filename is None else f"{error.filename}: {text}"


def new_parser(
    commands: Any, name: str, help: str, description: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    """A command's parser; *epilog* keeps its line ends."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=textwrap.fill(description, 79),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``, of commands that list something."""
    parser.add_argument("--json", action="store_true", help="for programs: a list of objects")


def rows(pairs: Mapping[str, str]) -> str:
    """Names with a line of text each, for an epilog."""
    width = max(map(len, pairs)) + 2
    return "".join(f"  {name:{width}}{text}\n" for name, text in pairs.items())


def print_list(items: Sequence[Mapping[str, Any]], texts: Mapping[str, str], as_json: bool) -> int:
    """Print *items* as JSON; or *texts*, names with a text each, the names in bold where that can
    be shown. Returns an exit status."""
    if as_json:
        print(json.dumps(items, indent=2))
        return 0
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    bold, plain = ("\033[1m", "\033[0m") if coloured else ("", "")
    width = max(map(len, texts), default=0) + 2
    for name, text in texts.items():
        lines = text.split("\n")
        print(f"{bold}{name}{plain}{'':{width - len(name)}}{lines[0]}".rstrip())
        for line in lines[1:]:
            print(f"{'':{width}}{line}")
    return 0
