"""What the mail tests share: reading a Maildir back, SMTP by hand, messages of every shape."""

from __future__ import annotations

import hashlib
import re
import smtplib
import socket
from collections.abc import Iterable
from pathlib import Path

from interop.processes import PATIENCE

OURS = re.compile(
    rb"Return-Path: <(?P<sender>[^>\r\n]*)>\r\n"
    rb"Received: from [^\r\n]+\r\n(?:[ \t][^\r\n]+\r\n)*"
)


def list_maildir(folder: Path) -> dict[str, list[Path]]:
    """The files in its three folders."""
    return {name: sorted((folder / name).iterdir()) for name in ("new", "tmp", "cur")}


def read_maildir(folder: Path) -> list[tuple[str, bytes]]:
    """The sender and content of each message as it was sent; there is nothing outside new/."""
    files = list_maildir(folder)
    assert not files["tmp"] and not files["cur"], files
    messages = []
    for file in files["new"]:
        content = file.read_bytes()
        ours = OURS.match(content)
        assert ours, f"{file.name} begins with {content[:300]!r}"
        messages.append((ours["sender"].decode(), content[ours.end():]))
    return messages


def read_by_sender(folder: Path) -> dict[str, bytes]:
    """The same, where each message has a sender of its own."""
    messages = read_maildir(folder)
    assert len({sender for sender, _ in messages}) == len(messages), [s for s, _ in messages]
    return dict(messages)


def digest(messages: dict[str, bytes]) -> dict[str, str]:
    """Short forms to compare, so that a difference can be read: the end, the size, a hash."""
    return {
        name: f"…{text[-60:]!r}, {len(text)} bytes, {hashlib.sha256(text).hexdigest()[:16]}"
        for name, text in messages.items()
    }


def every_shape() -> dict[str, bytes]:
    """Messages that have been trouble somewhere, as CRLF lines; the names are good in addresses."""
    head = b"Subject: shapes\r\nFrom: a@example.org\r\n\r\n"
    return {
        "plain": head + b"Hello.\r\n",
        "no-header": b"\r\njust a body\r\n",
        "no-body": b"Subject: nothing follows\r\n\r\n",
        "only-a-line-end": b"\r\n",
        "dots": head + b".\r\n..\r\n...\r\n.a\r\n..a\r\n. \r\n \r\n.\r\n.\r\n",
        "dot-first": b".Subject: odd\r\n\r\nx\r\n",
        "ends-in-dots": head + b"x\r\n..\r\n.\r\n",
        "dots-elsewhere": head + b"a.\r\nb..\r\nc. .\r\n",
        "empty-lines": head + b"\r\n\r\n\r\n\r\n",
        "eight-bit": head + (bytes(c for c in range(256) if c not in b"\r\n") + b"\r\n") * 4,
        "utf-8": head + "Grüße, 你好, 🪢\r\n".encode() * 50,
        "line-of-998": head + b"y" * 998 + b"\r\n",
        "long-lines": head + (b"z" * 100_000 + b"\r\n") * 3,
        "short-lines": head + b"k\r\n" * 50_000,
        "commands": head + b"RSET\r\nQUIT\r\nMAIL FROM:<b@example.org>\r\n",
        "big": head + b"".join(b"%d %s\r\n" % (n, b"0123456789" * 6) for n in range(79_000)),
    }


def smtp_source_payload(size: int) -> bytes:
    """What smtp-source -l sends after its header: lines of 80 with a digit, then X, in front."""
    text = bytearray(b"X" * size)
    for end in range(80, size, 80):
        text[end - 80] = ord("0") + end // 80 % 10
        text[end - 2:end] = b"\r\n"
    return bytes(text)


class Session(smtplib.SMTP):
    """smtplib on TCP, or on a UNIX socket when the host is a path."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        self._address = address
        host, port = address if isinstance(address, tuple) else ("localhost", 1)
        super().__init__(host, port, local_hostname="client.example.org", timeout=PATIENCE)

    def _get_socket(self, *_: object) -> socket.socket:
        return open_socket(self._address)


def open_socket(address: tuple[str, int] | str) -> socket.socket:
    """Connected to a TCP address or a UNIX path; sends each piece as it is written."""
    if isinstance(address, tuple):
        sock = socket.create_connection(address, PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(address)
    return sock


class Wire:
    """SMTP by hand: the bytes that go out are exactly those that were given."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        self.sock = open_socket(address)
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_bytes_singly(self, data: bytes) -> None:
        for byte in data:
            self.sock.sendall(bytes([byte]))

    def reply(self) -> str:
        """One reply with its lines joined; "" when the server has ended."""
        lines = []
        while line := self._file.readline().decode():
            lines.append(line.rstrip("\r\n"))
            if line[3:4] != "-":
                break
        return "\n".join(lines)

    def codes(self, count: int) -> list[str]:
        """The codes of so many replies."""
        return [self.reply()[:3] for _ in range(count)]

    def ask(self, data: bytes) -> str:
        self.send(data)
        return self.reply()

    def begin(self, sender: str, recipients: Iterable[str] = ("you@example.org",)) -> None:
        """Up to where the message itself is to be sent."""
        recipients = list(recipients)
        commands = ["EHLO client.example.org", f"MAIL FROM:<{sender}>"]
        commands += [f"RCPT TO:<{recipient}>" for recipient in recipients] + ["DATA"]
        assert self.codes(1) == ["220"]
        self.send("".join(f"{command}\r\n" for command in commands).encode())
        assert self.codes(len(commands)) == ["250"] * (len(commands) - 1) + ["354"]
