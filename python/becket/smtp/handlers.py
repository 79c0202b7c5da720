"""Ready-made handlers, with the names and the behaviour of aiosmtpd's."""

from __future__ import annotations

import asyncio
import email
import email.policy
import logging
import mailbox
import os
import smtplib
import sys
from abc import ABC, abstractmethod
from argparse import ArgumentParser
from email.message import Message as EmailMessage
from typing import Any, TextIO

from becket.smtp.types import Envelope, Session

__all__ = ["AsyncMessage", "Debugging", "Mailbox", "Message", "Proxy", "Sink"]

log = logging.getLogger("mail.debug")


class Debugging:
    """Prints messages to *stream* (standard output)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stdout if stream is None else stream

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *args: str) -> Debugging:
        """From a command line: ``stdout`` or ``stderr``, or nothing."""
        if len(args) > 1 or args not in ((), ("stdout",), ("stderr",)):
            parser.error("Debugging usage: [stdout|stderr]")
        return cls(getattr(sys, args[0]) if args else None)

    def _print_content(self, peer: Any, data: str | bytes) -> None:
        in_headers = True
        for line in data.splitlines():
            if in_headers and not line:
                print(f"X-Peer: {peer!r}", file=self.stream)
                in_headers = False
            text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
            print(text, file=self.stream)

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Print it."""
        print("---------- MESSAGE FOLLOWS ----------", file=self.stream)
        if envelope.mail_options:
            print("mail options:", envelope.mail_options, file=self.stream)
        if envelope.rcpt_options:
            print("rcpt options:", envelope.rcpt_options, file=self.stream)
        if envelope.mail_options or envelope.rcpt_options:
            print(file=self.stream)
        assert envelope.content is not None
        self._print_content(session.peer, envelope.content)
        print("------------ END MESSAGE ------------", file=self.stream)
        return "250 OK"


class Proxy:
    """Passes messages on to a server. What that refuses for now is refused for now, and so is what
    it cannot be told; a relay with a queue is another thing."""

    def __init__(self, remote_hostname: str, remote_port: int) -> None:
        self._hostname = remote_hostname
        self._port = remote_port

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Pass it on, with a header X-Peer, in a thread."""
        content = envelope.original_content
        assert content is not None and envelope.mail_from is not None
        peer = session.peer[0] if isinstance(session.peer, tuple) else session.peer
        head, blank, body = content.partition(b"\r\n\r\n")
        data = head + b"\r\nX-Peer: " + str(peer or "").encode() + blank + body
        refused = await asyncio.to_thread(
            self._deliver, envelope.mail_from, envelope.rcpt_tos, data
        )
        if refused:
            log.info("we got some refusals: %s", refused)
        if len(refused) == len(envelope.rcpt_tos):
            code, text = next(iter(refused.values()))
            return f"{code} {text.decode(errors='replace')}"
        return "250 OK"

    def _deliver(
        self, mail_from: str, rcpt_tos: list[str], data: bytes
    ) -> dict[str, tuple[int, bytes]]:
        """What was refused, by recipient."""
        try:
            with smtplib.SMTP(self._hostname, self._port) as client:
                return client.sendmail(mail_from, rcpt_tos, data)
        except smtplib.SMTPRecipientsRefused as error:
            return error.recipients
        except (OSError, smtplib.SMTPException) as error:
            log.exception("got %s", type(error))
            code = getattr(error, "smtp_code", 451)
            text = getattr(error, "smtp_error", b"4.4.1 the next server cannot be reached")
            if not 400 <= code < 600:
                code = 451
            return dict.fromkeys(rcpt_tos, (code, text))


class Sink:
    """Takes messages and keeps nothing."""

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *args: str) -> Sink:
        """From a command line: without arguments."""
        if args:
            parser.error("Sink handler does not accept arguments")
        return cls()


class MessageBase:
    """Makes messages of the email package."""

    def __init__(self, message_class: type[EmailMessage] | None = None) -> None:
        self.message_class = message_class

    def prepare_message(self, session: Session, envelope: Envelope) -> EmailMessage:
        """The message, with headers that tell of its envelope."""
        data = envelope.content
        make: Any = self.message_class or EmailMessage
        if isinstance(data, bytes | bytearray):
            message: EmailMessage = email.message_from_bytes(data, make)
        elif isinstance(data, str):
            message = email.message_from_string(data, make)
        else:
            raise TypeError(f"Expected str or bytes, got {type(data)}")
        message["X-Peer"] = str(session.peer)
        message["X-MailFrom"] = str(envelope.mail_from)
        message["X-RcptTo"] = ", ".join(envelope.rcpt_tos)
        return message


class Message(MessageBase, ABC):
    """Gives messages of the email package to ``handle_message()``, which a subclass has."""

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Give it to handle_message()."""
        self.handle_message(self.prepare_message(session, envelope))
        return "250 OK"

    @abstractmethod
    def handle_message(self, message: EmailMessage) -> None:
        """What is to be done with a message."""


class AsyncMessage(MessageBase, ABC):
    """The same with a coroutine function ``handle_message()``."""

    def __init__(
        self,
        message_class: type[EmailMessage] | None = None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(message_class)
        self.loop = loop

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Give it to handle_message()."""
        await self.handle_message(self.prepare_message(session, envelope))
        return "250 OK"

    @abstractmethod
    async def handle_message(self, message: EmailMessage) -> None:
        """What is to be done with a message."""


class Mailbox(Message):
    """Keeps messages in a Maildir, by the mailbox module of the standard library. ``becket serve
    smtp --maildir`` does that without Python, and syncs what it acknowledges."""

    def __init__(
        self, mail_dir: str | os.PathLike[str], message_class: type[EmailMessage] | None = None
    ) -> None:
        self.mailbox = mailbox.Maildir(mail_dir)
        self.mail_dir = mail_dir
        super().__init__(message_class)

    def handle_message(self, message: EmailMessage) -> None:
        """Keep it."""
        self.mailbox.add(message)

    def reset(self) -> None:
        """Delete all messages."""
        self.mailbox.clear()

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *args: str) -> Mailbox:
        """From a command line: the Maildir."""
        if len(args) != 1:
            parser.error("The directory for the maildir is required, and nothing else")
        return cls(args[0])
