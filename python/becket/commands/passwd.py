"""``becket passwd``: a line for a file of users, such as ``becket serve smtp --users`` reads."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import tempfile
from typing import Any

from becket import _becket
from becket.commands import new_parser, say


def add(commands: Any) -> None:
    """The parser of the command."""
    parser = new_parser(
        commands,
        "passwd",
        "make a line for a file of users",
        description="Ask for a user's password, twice, and print what is kept of it: a line for "
        "the file that `becket serve smtp --users` reads. With a FILE, the line is put there, in "
        "place of the user's old one. Where standard input is no terminal, its first line is the "
        "password.",
        epilog="The password itself cannot be had from the line (RFC 5803, SCRAM-SHA-256), but "
        "whoever has\nthe file may try passwords: keep it from others.\n",
    )
    parser.set_defaults(run=run)
    parser.add_argument("user", metavar="USER", help="a name without spaces and colons")
    parser.add_argument("file", nargs="?", metavar="FILE", help="made when it is missing")
    parser.add_argument(
        "--verify", action="store_true", help="change nothing: is it the user's password in FILE?"
    )
    parser.add_argument("--delete", action="store_true", help="take the user out of FILE")


def ask(user: str, twice: bool) -> str:
    """The password. ValueError."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass(f"Password of {user}: ")
    if twice and getpass.getpass("The same again: ") != password:
        raise ValueError("the two passwords are not the same")
    return password


def read(path: str) -> list[str]:
    """The file's lines."""
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def write(path: str, lines: list[str]) -> None:
    """All of it or nothing: who reads the file meanwhile reads the old one."""
    mode = os.stat(path).st_mode & 0o777 if os.path.exists(path) else 0o600
    folder = os.path.dirname(os.path.abspath(path))
    fd, name = tempfile.mkstemp(dir=folder, prefix=".users-")
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def verify(user: str, path: str) -> int:
    """The exit status."""
    for line in read(path):
        name, _, secret = line.partition(":")
        if name == user:
            good = _becket._verify_secret(secret, ask(user, twice=False))
            say(f"becket: that {'is' if good else 'is not'} the password of {user}")
            return 0 if good else 1
    raise ValueError(f"{path}: there is no user {user!r}")


def run(arguments: argparse.Namespace) -> int:
    """Make the line, and put it where it is wanted."""
    user, path = arguments.user, arguments.file
    if not user or user.startswith("#") or any(c.isspace() or c == ":" for c in user):
        raise ValueError(f"USER: {user!r}: a name without spaces and colons is needed")
    if path is None and (arguments.verify or arguments.delete):
        raise ValueError("FILE: which one?")
    if arguments.verify:
        return verify(user, path)
    lines = read(path) if path is not None and (arguments.delete or os.path.exists(path)) else []
    kept = [line for line in lines if line.partition(":")[0] != user]
    if arguments.delete:
        if len(kept) == len(lines):
            raise ValueError(f"{path}: there is no user {user!r}")
        write(path, kept)
        return 0
    line = f"{user}:{_becket._make_secret(ask(user, twice=True))}"
    if path is None:
        print(line)
    else:
        write(path, [*kept, line])
    return 0
