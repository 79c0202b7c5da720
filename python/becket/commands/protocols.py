"""``becket protocols``: what ``becket serve`` knows by name."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from becket import served
from becket.commands import add_json, new_parser, print_list


def add(commands: Any) -> None:
    """``becket protocols``."""
    parser = new_parser(
        commands,
        "protocols",
        "what can be served by name",
        description="List the protocols that `becket serve` knows by name. It serves any other as "
        "module:object.",
    )
    parser.set_defaults(run=run)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """List them."""
    texts = {n: inspect.getdoc(f) or "" for n, f in served.CORE.items()}
    items: list[dict[str, Any]] = [{"protocol": n, "text": text} for n, text in texts.items()]
    for name, entry in served.registered().items():
        if name not in texts:
            texts[name] = f"entry point of becket.protocols: {entry.value}"
            items.append({"protocol": name, "entry_point": entry.value})
    return print_list(items, texts, arguments.json)
