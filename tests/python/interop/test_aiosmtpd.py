"""aiosmtpd, a mail server in Python over asyncio's streams, on becket.EventLoop, under Postfix's
smtp-source and smtplib."""

from __future__ import annotations

import re
import socket
from collections import Counter
from pathlib import Path

import pytest

from interop.mail import Session, Wire, digest, every_shape, smtp_source_payload
from interop.processes import HERE, Server, run_program

BOTH = pytest.mark.parametrize("kind", ["tcp", "unix"])


class AiosmtpdServer(Server):
    """aiosmtpd_app.py"""

    def __init__(self, folder: Path, path: str) -> None:
        self.kept = folder / "kept"
        self.kept.mkdir()
        self.path = path
        with socket.create_server(("127.0.0.1", 0)) as sock:  # its controller needs a number
            self.port = sock.getsockname()[1]
        super().__init__(
            HERE / "aiosmtpd_app.py", self.port, self.path, self.kept, expected="listening|ended"
        )

    def __enter__(self) -> AiosmtpdServer:
        self.wait_for("listening")
        return self

    def address(self, kind: str) -> tuple[str, int] | str:
        return ("127.0.0.1", self.port) if kind == "tcp" else self.path

    def read(self) -> list[tuple[str, bytes]]:
        """The people and the content of each message."""
        return [
            (file.with_suffix(".people").read_text(encoding="utf-8"), file.read_bytes())
            for file in self.kept.glob("*.data")
        ]


@pytest.fixture
def server(tmp_path, short_path):
    with AiosmtpdServer(tmp_path, short_path) as server:
        yield server


@BOTH
def test_smtp_source(server, kind):
    """1,000 messages of 10 kB over 20 sessions at once."""
    where = f"inet:127.0.0.1:{server.port}" if kind == "tcp" else f"unix:{server.path}"
    run_program(
        "smtp-source",
        "-s",
        20,
        "-m",
        1000,
        "-l",
        10_000,
        "-f",
        "from@example.org",
        "-t",
        "to@example.org",
        where,
    )
    messages = server.read()
    assert Counter(people for people, _ in messages) == {"from@example.org\nto@example.org": 1000}
    bodies = Counter(text.partition(b"\r\n\r\n")[2] for _, text in messages)
    assert bodies == {smtp_source_payload(10_000) + b"\r\n": 1000}
    ids = {re.search(rb"^Message-Id: (\S+)\r$", text, re.MULTILINE)[1] for _, text in messages}
    assert len(ids) == 1000


@BOTH
def test_smtp_source_with_long_sessions(server, kind, tmp_path):
    """1,000 messages from a file over 20 connections that are kept."""
    file = tmp_path / "message"
    file.write_bytes(b"Subject: kept\n\n.\n..\n" + b"line\n" * 50 + b".last\n")
    where = f"inet:127.0.0.1:{server.port}" if kind == "tcp" else f"unix:{server.path}"
    run_program(
        "smtp-source",
        "-d",
        "-s",
        20,
        "-m",
        1000,
        "-F",
        file,
        "-f",
        "from@example.org",
        "-t",
        "to@example.org",
        where,
    )
    expected = file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n"
    assert Counter(server.read()) == {("from@example.org\nto@example.org", expected): 1000}


@BOTH
def test_smtplib_every_shape_in_one_session(server, kind):
    # Lines of more than 1,000 bytes are refused by aiosmtpd.
    shapes = {f"{name}@example.org": t for name, t in every_shape().items() if name != "long-lines"}
    with Session(server.address(kind)) as session:
        for sender, text in shapes.items():
            session.sendmail(sender, ["a@example.org", "b@example.org"], text)
    assert digest(dict(server.read())) == digest(
        {f"{sender}\na@example.org\nb@example.org": text for sender, text in shapes.items()}
    )


@BOTH
def test_client_drops_in_data(server, kind):
    for part in (b"", b"Subject: x\r\n", b"\r\ntext\r\n.", b"y" * 900):
        with Wire(server.address(kind)) as wire:
            wire.begin("lost@example.org")
            wire.send(part)
    with Session(server.address(kind)) as session:
        session.sendmail("kept@example.org", ["you@example.org"], b"kept\r\n")
    assert server.read() == [("kept@example.org\nyou@example.org", b"kept\r\n")]
