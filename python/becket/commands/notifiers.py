"""``becket notifiers``: how a loop can wait for descriptors here."""

from __future__ import annotations

import argparse
from typing import Any

import becket
from becket.commands import add_json, new_parser, print_list


def add(commands: Any) -> None:
    """``becket notifiers``."""
    parser = new_parser(
        commands,
        "notifiers",
        "how to wait for descriptors",
        description="List the notifiers of this system. --notifier, or the environment variable "
        "BECKET_NOTIFIER, chooses another than the default.",
    )
    parser.set_defaults(run=run)
    add_json(parser)


def default() -> str:
    """The one that is used when nobody says which. ValueError: BECKET_NOTIFIER is wrong."""
    loop = becket.EventLoop()
    try:
        return str(loop.notifier)
    finally:
        loop.close()


def run(arguments: argparse.Namespace) -> int:
    """List them."""
    first = default()
    items = [{"notifier": name, "default": name == first} for name in becket.notifiers]
    texts = {name: "the default" if name == first else "" for name in becket.notifiers}
    return print_list(items, texts, arguments.json)
