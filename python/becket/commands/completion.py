"""``becket completion``: what a shell needs to complete the arguments."""

from __future__ import annotations

import argparse
from typing import Any

from becket.commands import new_parser, say

SHELLS = ("bash", "zsh", "tcsh")


def add(commands: Any) -> None:
    """``becket completion``."""
    parser = new_parser(
        commands,
        "completion",
        "let a shell complete the arguments",
        description="Print a script for a shell, which then completes becket's arguments.",
        epilog="bash:  becket completion bash > ~/.local/share/bash-completion/completions/becket\n"
        "zsh:   becket completion zsh > a file _becket in a directory of $fpath\n"
        "tcsh:  becket completion tcsh > ~/.becket.tcsh, and source that\n",
    )
    parser.set_defaults(run=run)
    parser.add_argument("shell", choices=SHELLS)


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    from becket.cli import build_parser

    try:
        import shtab
    except ImportError:
        say("becket: completion is made by shtab, which is missing: pip install becket[completion]")
        return 1
    print(shtab.complete(build_parser(), arguments.shell))
    return 0
