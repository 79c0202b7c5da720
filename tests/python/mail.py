"""What the tests of mail's stores share: a server for a handler, messages, sending one."""

from __future__ import annotations

import re
import smtplib
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller

from becket.smtp import Server

PATIENCE = 100  # seconds: a guard against a hang


class Envelope:
    """An envelope as handlers are given it."""

    def __init__(
        self, content: bytes | str, sender: str | None, recipients: Sequence[str] = ("you@b.org",)
    ) -> None:
        self.content = content
        self.mail_from = sender
        self.mail_options: list[str] = []
        self.rcpt_tos = list(recipients)
        self.rcpt_options: list[str] = []
        self.smtp_utf8 = False


class Session:
    """What handlers ask of a session."""

    peer = ("192.0.2.1", 4000)
    host_name = "client.example.org"
    ssl = None
    authenticated = False
    auth_data: Any = None


@contextmanager
def serving(handler: Any, **settings: Any) -> Iterator[int]:
    """A server with that handler, in a thread; its port."""
    with Server(handler, "tcp://127.0.0.1:0", drain=0.0, **settings) as server:
        yield int(server.endpoints[0].rpartition(":")[2])


@contextmanager
def serving_by_aiosmtpd(handler: Any, loop: Any = None) -> Iterator[int]:
    """The same by aiosmtpd."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(
        handler, loop=loop, hostname="127.0.0.1", port=port, ready_timeout=PATIENCE
    )
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


SERVERS = [serving, serving_by_aiosmtpd]


def send(port: int, message: EmailMessage | bytes, sender: str = "me@a.org") -> None:
    """Send one by smtplib."""
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", PATIENCE) as client:
        client.sendmail(sender, ["you@b.org"], lines(message))


def lines(message: EmailMessage | bytes) -> bytes:
    """As it is sent: lines end in CRLF."""
    if isinstance(message, EmailMessage):
        return message.as_bytes(policy=message.policy.clone(linesep="\r\n"))
    return message


def letter(subject: str = "hello", text: str = "Hello.\n", html: str = "") -> EmailMessage:
    """A message."""
    message = EmailMessage()
    message["From"] = "Me <me@a.org>"
    message["To"] = "you@b.org"
    message["Subject"] = subject
    message.set_content(text)
    if html:
        message.add_alternative(html, subtype="html")
    return message


TRACE = re.compile(
    rb"Received: from \S+ \(\[\S+\]\)\r?\n\tby \S+ with \w+(\r?\n\tfor <\S*>)?;\r?\n\t[^\r\n]+\r?\n"
)


def untraced(content: bytes) -> bytes:
    """A message without the header that we put in front."""
    found = TRACE.match(content)
    assert found, content[:300]
    return content[found.end() :]
