"""The programs in the pages about migration are programs: they can be read, and run."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from test_examples import ROOT, running

PAGES = sorted((ROOT / "docs").glob("from-*.md"))


def blocks(page: Path) -> list[str]:
    """The page's code blocks in Python."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)


def program(name: str) -> str:
    """The block that begins with a comment of that name."""
    [found] = [b for page in PAGES for b in blocks(page) if b.startswith(f"# {name}\n")]
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def connect(port: int, server: subprocess.Popen[str]) -> socket.socket:
    """Connect to a program that says nothing when it listens."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            assert server.poll() is None, server.communicate()
            time.sleep(0.01)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_blocks_are_python(page: Path) -> None:
    assert blocks(page)
    for block in blocks(page):
        ast.parse(block)


@pytest.mark.parametrize("name", ["lines_asynchat.py", "lines_protocol.py"])
def test_servers_of_lines(name: str, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / name).write_text(program(name).replace("7000", str(port)))
    options = ["-W", "error", "-W", "ignore::DeprecationWarning"]  # of asyncore, in Python 3.11
    with running(sys.executable, *options, name, cwd=tmp_path) as server:
        with connect(port, server) as client:
            client.sendall(b"one\ntw")
            client.sendall(b"o\nbye\nnever")
            answers = b"".join(iter(lambda: client.recv(100), b""))
        assert answers == b"ONE\nTWO\nBYE\n"
        with connect(port, server) as client:
            client.sendall(b"again\n")
            assert client.recv(100) == b"AGAIN\n"
