"""Whose mail ``becket serve smtp`` takes, and how much of it: options, and the settings they are.
Called by becket.commands.smtp and stores.
"""

from __future__ import annotations

import argparse
from typing import Any

from becket import _becket

LIMITS = {
    "max_recipients": "recipients of a message (100)",
    "max_errors": "refusals until a client is let go (20)",
    "max_idle": "commands that bring no mail, until it is (100)",
    "max_messages": "messages of one connection (no limit)",
    "max_session": "seconds that a connection may last (no limit)",
    "timeout": "seconds that a client may be silent (300)",
}
# As BK_SMTP_… in becket-smtp.h.
FLAGS = {
    "lmtp": 2,
    "make_whole": 4,
    "allow_auth_in_clear": 8,
    "auth_required": 16,
    "require_tls": 32,
}


def add_rules(parser: argparse.ArgumentParser) -> None:
    """The options."""
    who = parser.add_argument_group("whose mail is taken")
    who.add_argument(
        "--users",
        metavar="FILE",
        help="who may log in: lines that `becket passwd` makes; read again on SIGHUP",
    )
    who.add_argument(
        "--accept",
        action="append",
        metavar="DOMAIN",
        help="take mail for this domain, and for others only from those who have logged in; may be "
        "given often (all domains)",
    )
    for name, text in (
        ("auth-required", "no mail before a login"),
        ("allow-auth-in-clear", "passwords without TLS"),
        ("require-tls", "no mail before STARTTLS"),
    ):
        who.add_argument(f"--{name}", action="store_true", help=text)
    how = parser.add_argument_group("how it is taken")
    how.add_argument("--lmtp", action="store_true", help="speak LMTP, not SMTP")
    how.add_argument(
        "--make-whole",
        action="store_true",
        help="a CR or LF alone in a message becomes CRLF; else the message is refused",
    )
    for name, text in LIMITS.items():
        flag = "--" + name.replace("_", "-")
        how.add_argument(flag, type=int, default=0, metavar="N", help=text)


def check(arguments: argparse.Namespace) -> None:
    """ValueError for options that cannot be right together."""
    if arguments.auth_required and not arguments.users:
        raise ValueError("--auth-required: nobody could log in; --users names a file of those who may")
    tls = ("tls", "starttls")
    plain = [e for e in arguments.endpoints if not e.partition(":")[0].partition("+")[0] in tls]
    if arguments.require_tls and plain:
        raise ValueError(f"--require-tls: {plain[0]} has no TLS; starttls+{plain[0]}?cert=… has")


def users_of(arguments: argparse.Namespace) -> _becket.SmtpUsers | None:
    """The file of users. OSError; ValueError names the line that is wrong."""
    return None if arguments.users is None else _becket.SmtpUsers(arguments.users)


def core_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """For the core's own store."""
    check(arguments)
    flags = sum(bit for name, bit in FLAGS.items() if getattr(arguments, name))
    limits = {name: getattr(arguments, name) for name in LIMITS}
    return {
        "flags": flags,
        "users": users_of(arguments),
        "accept": arguments.accept,
        **limits,
    }


def handler_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """For becket.smtp.Server."""
    check(arguments)
    limits = {n: getattr(arguments, n) for n in LIMITS if getattr(arguments, n)}
    return {
        "lmtp": arguments.lmtp,
        "make_whole": arguments.make_whole,
        "auth_required": arguments.auth_required,
        "auth_require_tls": not arguments.allow_auth_in_clear,
        "require_starttls": arguments.require_tls,
        "users": users_of(arguments),
        "accept": arguments.accept,
        **limits,
    }
