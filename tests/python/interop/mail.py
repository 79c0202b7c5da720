"""What the mail tests share: becket's mail servers, reading a Maildir back, SMTP by hand, messages
of every shape."""

from __future__ import annotations

import hashlib
import re
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from becket import _becket, tls
from interop.processes import PATIENCE, Server

ENGINES = ["openssl", "gnutls", "mbedtls", "ssl", "pyopenssl", "tlslite"]
Address = tuple[str, int] | str
SAID = (
    r"becket: (SMTP at|mail is stored in|ended;) .*"
    r"|  (try|or): .*"
    r"|\d+: from <.*> to .*, \d+ bytes: \S+"
)
DEVELOPMENT = r"(start)?tls\S*: a certificate for development, which no client trusts"

OURS = re.compile(
    rb"Return-Path: <(?P<sender>[^>\r\n]*)>\r\n"
    rb"Received: from [^\r\n]+\r\n(?:[ \t][^\r\n]+\r\n)*"
)


def see_to(engine: str) -> str:
    """A test of a TLS engine whose library is missing is skipped, by name."""
    for name, version, missing in _becket._tls_engines():
        if name == engine:
            return engine if version is not None else pytest.skip(f"{engine}: {missing}")
    if engine not in tls.engines():
        pytest.skip(f"{engine}: becket was built without it")
    try:
        tls.engines()[engine].open()
    except ImportError as error:
        pytest.skip(f"{engine}: {error}")
    return engine


class MailServer(Server):
    """``becket serve smtp`` at some endpoints, into a Maildir in *folder*."""

    def __init__(
        self,
        folder: Path,
        *endpoints: str,
        options: Iterable[object] = (),
        expected: str = "",
        **settings: object,
    ) -> None:
        self.maildir = folder / "Maildir"
        self.addresses: list[Address] = []
        super().__init__(
            "-m",
            "becket",
            "serve",
            "smtp",
            "--maildir",
            self.maildir,
            "--hostname",
            "mx.example.org",
            *options,
            *endpoints,
            **settings,
            expected=f"{SAID}|{DEVELOPMENT}" + (f"|{expected}" if expected else ""),
        )

    def __enter__(self) -> MailServer:
        self.wait_for("mail is stored in")
        for line in self.lines:
            name = re.fullmatch(r"becket: SMTP at [\w+]+:(?://(.+):(\d+)|(.*))", line)
            if name:
                self.addresses.append((name[1], int(name[2])) if name[1] else name[3])
        return self

    @property
    def address(self) -> Address:
        """Where it listens, when that is one place."""
        (address,) = self.addresses
        return address

    def wait_stored(self, count: int) -> None:
        self.wait_for(rf"^{count}: from ")


class Demo(Server):
    """``becket demo``; its endpoints are found by what it calls them: "plain", "gnutls, tls"."""

    def __init__(self, folder: Path, path: str) -> None:
        self.maildir = folder / "Maildir"
        self.path = path
        super().__init__(
            "-m",
            "becket",
            "demo",
            "--port",
            0,
            "--unix",
            path,
            "--maildir",
            self.maildir,
            "--hostname",
            "mx.example.org",
            expected=rf"{SAID}|{DEVELOPMENT}|plain +\S+|\w+: .*\d.*|\w+, (start)?tls +\S+",
        )

    def __enter__(self) -> Demo:
        self.wait_for("mail is stored in")
        found = (re.match(r"(\w+(?:, \w+)?) +\S+://127\.0\.0\.1:(\d+)$", s) for s in self.lines)
        self.ports = {line[1]: int(line[2]) for line in found if line}
        return self


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
        messages.append((ours["sender"].decode(), content[ours.end() :]))
    return messages


def read_by_sender(folder: Path) -> dict[str, bytes]:
    """The same, where each message has a sender of its own."""
    messages = read_maildir(folder)
    assert len({sender for sender, _ in messages}) == len(messages), [s for s, _ in messages]
    return dict(messages)


def read_traces(folder: Path) -> dict[str, tuple[str, str]]:
    """By sender: the name that the client gave, and the protocol: what Received: tells of them."""
    traces = {}
    for file in list_maildir(folder)["new"]:
        ours = OURS.match(file.read_bytes())
        text = ours[0].decode()
        name, protocol = re.search(r"Received: from (\S+)[^;]*\swith (\w+)[\s;]", text).groups()
        traces[ours["sender"].decode()] = (name, protocol)
    return traces


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
        text[end - 2 : end] = b"\r\n"
    return bytes(text)


class Session(smtplib.SMTP):
    """smtplib on TCP, or on a UNIX socket when the host is a path; with a context, TLS is there
    from the start."""

    def __init__(self, address: Address, context: ssl.SSLContext | None = None) -> None:
        self._address = address
        self._context = context
        host, port = address if isinstance(address, tuple) else ("localhost", 1)
        super().__init__(host, port, local_hostname="client.example.org", timeout=PATIENCE)

    def _get_socket(self, *_: object) -> socket.socket:
        sock = open_socket(self._address)
        return sock if self._context is None else wrap(self._context, sock)


def open_socket(address: Address) -> socket.socket:
    """Connected to a TCP address or a UNIX path; sends each piece as it is written."""
    if isinstance(address, tuple):
        sock = socket.create_connection(address, PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(address)
    return sock


def wrap(
    context: ssl.SSLContext, sock: socket.socket, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    """A client's TLS on a socket, which is closed when that fails."""
    try:
        return context.wrap_socket(sock, server_hostname="localhost", session=session)
    except OSError:
        sock.close()
        raise


class ByHand:
    """A client's TLS whose bytes somebody else carries: *send* takes some, *receive* waits for
    some, and gives none at their end."""

    def __init__(
        self,
        context: ssl.SSLContext,
        send: Callable[[bytes], object],
        receive: Callable[[], bytes],
    ) -> None:
        self._send = send
        self._receive = receive
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    def _do(self, call: Callable[[], bytes | None]) -> bytes | None:
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                self.flush()
                data = self._receive()
                self._in.write(data) if data else self._in.write_eof()
            finally:
                self.flush()

    def flush(self) -> None:
        data = self._out.read()
        if data:
            self._send(data)

    def take(self) -> bytes:
        """What would be sent."""
        return self._out.read()

    def handshake(self) -> None:
        self._do(self.tls.do_handshake)

    def write(self, data: bytes) -> None:
        self._do(lambda: self.tls.write(data))

    def read(self) -> bytes:
        """Some bytes; none: the peer has said that there are no more (close_notify)."""
        try:
            return self._do(lambda: self.tls.read(1 << 16))
        except ssl.SSLZeroReturnError:
            return b""

    def read_until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            piece = self.read()
            assert piece, data
            data += piece
        return data


def hello(context: ssl.SSLContext) -> bytes:
    """A ClientHello."""
    client = ByHand(context, lambda _: None, bytes)
    try:
        client.tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return client.take()


class Wire:
    """SMTP by hand: the bytes that go out are exactly those that were given."""

    def __init__(self, address: Address, context: ssl.SSLContext | None = None) -> None:
        self.sock = open_socket(address)
        if context is not None:
            self.sock = wrap(context, self.sock)
        self._file = self.sock.makefile("rb")

    def start_tls(self, context: ssl.SSLContext) -> None:
        """The handshake, now."""
        self._file.close()
        self.sock = wrap(context, self.sock)
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
