"""``becket send ENDPOINT``: messages to a mail server, from the command line or from files."""

from __future__ import annotations

import argparse
import email
import email.policy
import getpass
import mimetypes
import os
import re
import smtplib
import socket
import sys
from email.message import EmailMessage, Message
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import Any

import becket
from becket.commands import new_parser, say
from becket.smtp import outgoing
from becket.smtp.client import Client, endpoint_of
from becket.smtp.replies import Reply

TEMPORARY = os.EX_TEMPFAIL  # 75

EPILOG = f"""\
ENDPOINT is where the server is:
  mx.example.org, mx.example.org:587    by SMTP; under TLS where the server offers it
  tls://mx.example.org:465              under TLS from the start
  starttls://mx.example.org:587         its certificate must be right, if it offers TLS
  unix:/run/lmtp.sock, memory:, …       as `becket endpoints` lists them

examples:
  becket send localhost:8025 --from me@here.example --to you@there.example \\
      --subject Hello --body 'How are you?' --attach photo.jpg
  becket send tls://mail.example.org:465 --user me --password-file ~/.secret a.eml b.eml
  becket send unix:/run/dovecot/lmtp --lmtp --to jane < message.eml -

A message from a FILE, or from standard input (-), is sent as it is, but that its lines will end in
CR LF, to the addresses in its To, Cc and Bcc from the one in its From, where --to and --from say
nothing else. One that is made here needs --from and --to.

exit status:
  0    every recipient was accepted
  1    some were not, for good, or there was no connection
  2    the arguments are wrong
  {TEMPORARY}   some were not, or nobody was there, for now: try again later
"""


def add(commands: Any) -> None:
    """``becket send``."""
    parser = new_parser(
        commands,
        "send",
        "send mail",
        description="Send messages to a mail server, by SMTP or LMTP, and tell what it answered "
        "for each recipient.",
        epilog=EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("endpoint", metavar="ENDPOINT", help="where the mail server is")
    parser.add_argument("files", nargs="*", metavar="FILE", help="a message; - is standard input")
    parser.add_argument("--from", dest="sender", metavar="ADDRESS", help="who it is from")
    parser.add_argument(
        "--to", action="append", default=[], metavar="ADDRESS", help="a recipient; may be repeated"
    )
    made = parser.add_argument_group("a message that is made here")
    made.add_argument("--subject", metavar="TEXT", help="what it is about")
    made.add_argument("--body", metavar="TEXT", help="its text; - is standard input")
    made.add_argument(
        "--attach", action="append", default=[], metavar="FILE", help="an attachment; repeatable"
    )
    made.add_argument(
        "--header", action="append", default=[], metavar="'NAME: TEXT'", help="one more header"
    )
    server = parser.add_argument_group("the server")
    server.add_argument("--lmtp", action="store_true", help="it speaks LMTP")
    server.add_argument(
        "--tls",
        choices=("opportunistic", "required", "never"),
        default="opportunistic",
        help="where it is offered, or else nothing is sent, or not at all (opportunistic)",
    )
    server.add_argument("--user", metavar="NAME", help="log in; the password is asked for")
    server.add_argument("--password-file", metavar="FILE", help="its first line is the password")
    server.add_argument(
        "--auth-in-clear", action="store_true", help="send the password without TLS, too"
    )
    server.add_argument("--mechanism", metavar="M", help="SCRAM-SHA-256, PLAIN or LOGIN (the best)")
    server.add_argument("--hostname", metavar="NAME", help="our name (this host's)")
    server.add_argument("--timeout", type=float, metavar="S", help="seconds for each answer")
    parser.add_argument("-q", "--quiet", action="store_true", help="tell of refusals only")


# ---- Messages ------------------------------------------------------------------------------------


def attach(message: EmailMessage, path: str) -> None:
    """A file, as what its name says that it is."""
    kind, encoding = mimetypes.guess_type(path)
    main, _, sub = (kind if kind and not encoding else "application/octet-stream").partition("/")
    message.add_attachment(
        Path(path).read_bytes(), maintype=main, subtype=sub, filename=Path(path).name
    )


def composed(arguments: argparse.Namespace) -> EmailMessage:
    """The message that the options make."""
    if not arguments.sender or not arguments.to:
        raise ValueError("--from and --to: a message that is made here needs both, or give a FILE")
    message = EmailMessage(policy=email.policy.SMTP)
    message["From"] = arguments.sender
    message["To"] = ", ".join(arguments.to)
    message["Subject"] = arguments.subject or ""
    message["Date"] = formatdate(localtime=True)
    message["Message-ID"] = make_msgid(domain=arguments.sender.rpartition("@")[2] or None)
    for header in arguments.header:
        name, colon, text = header.partition(":")
        if not colon or not re.fullmatch(r"[!-9;-~]+", name):
            raise ValueError(f"--header: {header!r} is not like 'Reply-To: me@example.org'")
        message[name] = text.strip()
    body = sys.stdin.read() if arguments.body == "-" else arguments.body or ""
    message.set_content(body if body.endswith("\n") else body + "\n")
    for path in arguments.attach:
        attach(message, path)
    return message


def whole(data: bytes) -> bytes:
    """With CR LF at the end of each line, and without Bcc."""
    data = re.sub(rb"\r\n?|\n", b"\r\n", data)
    head, blank, body = data.partition(b"\r\n\r\n")
    head = re.sub(rb"(?im)^(Resent-)?Bcc:.*\r?\n?([ \t].*\r?\n?)*", b"", head + b"\r\n")
    return head.removesuffix(b"\r\n") + blank + body


class Letter:
    """What is to be sent."""

    def __init__(self, name: str, data: bytes, arguments: argparse.Namespace) -> None:
        parsed: Message = email.message_from_bytes(data, policy=email.policy.SMTP)
        self.name = name
        self.data = whole(data)
        sender = arguments.sender
        try:
            self.sender: str = outgoing.sender_of(parsed) if sender is None else sender
            self.recipients = list(dict.fromkeys(arguments.to)) or outgoing.recipients_of(parsed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def letters(arguments: argparse.Namespace) -> list[Letter]:
    """All of them: ValueError before the first is sent."""
    making = arguments.subject is not None or arguments.body is not None or arguments.attach
    if arguments.files and making:
        raise ValueError("FILE: it is sent as it is, without --subject, --body and --attach")
    if not arguments.files:
        data = outgoing.as_bytes(composed(arguments), utf8=False, eight_bit=False)
        return [Letter("the message", data, arguments)]
    if arguments.header:
        raise ValueError("FILE: it is sent as it is, without --header")
    found = []
    for name in arguments.files:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        found.append(Letter("standard input" if name == "-" else name, data, arguments))
    return found


# ---- Sending -------------------------------------------------------------------------------------


def password_of(arguments: argparse.Namespace) -> str | None:
    """From the file, or asked for."""
    if arguments.user is None:
        if arguments.password_file is not None:
            raise ValueError("--password-file: whose is it? --user says")
        return None
    if arguments.password_file is None:
        return getpass.getpass(f"Password of {arguments.user}: ")
    lines = Path(arguments.password_file).read_text(encoding="utf-8").splitlines()
    return lines[0] if lines else ""


def client_of(arguments: argparse.Namespace) -> Client:
    """The connection that the options ask for."""
    hostname = arguments.hostname or socket.gethostname()
    if arguments.hostname is None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", hostname):
        hostname = "localhost"
    return Client(
        endpoint_of(arguments.endpoint, arguments.tls, arguments.lmtp),
        hostname=hostname,
        lmtp=arguments.lmtp,
        tls=arguments.tls,
        user=arguments.user,
        password=password_of(arguments),
        mechanism=arguments.mechanism,
        auth_in_clear=arguments.auth_in_clear,
        timeout=arguments.timeout,
        connect_timeout=arguments.timeout or 60.0,
    )


class Report:
    """What was answered, told and counted."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.quiet = total, quiet
        self.accepted = self.temporary = self.refused = 0

    def tell(self, number: int, letter: Letter, address: str, reply: Reply) -> None:
        """Of one recipient."""
        if reply.ok:
            self.accepted += 1
        elif reply.temporary:
            self.temporary += 1
        else:
            self.refused += 1
        if reply.ok and self.quiet:
            return
        place = f"[{number}/{self.total}] {letter.name}: " if self.total > 1 else ""
        text = " ".join(str(reply).split())
        word = "accepted" if reply.ok else "not now" if reply.temporary else "refused"
        line = "".join(c if c.isprintable() else "?" for c in f"{place}{address}: {word}: {text}")
        say(line) if not reply.ok else print(line, flush=True)

    @property
    def status(self) -> int:
        """The exit status."""
        return 1 if self.refused else TEMPORARY if self.temporary else 0


async def deliver(client: Client, letter: Letter) -> dict[str, Reply]:
    """What each recipient was answered, also when nobody was accepted."""
    try:
        utf8 = outgoing.needs_utf8(letter.sender, letter.recipients)
        return dict(await client.send(letter.sender, letter.recipients, letter.data, utf8=utf8))
    except smtplib.SMTPException as error:
        result = getattr(error, "result", None)
        reply = Reply(451, "4.4.2", str(error))
        return dict(result) if result is not None else dict.fromkeys(letter.recipients, reply)


async def send_all(client: Client, found: list[Letter], report: Report) -> None:
    """One after the other; those that were not sent because the connection was lost, too."""
    async with client:
        for number, letter in enumerate(found, 1):
            for address, reply in (await deliver(client, letter)).items():
                report.tell(number, letter, address, reply)


def is_temporary(error: Exception) -> bool:
    """Whether another time it may go better."""
    if isinstance(error, smtplib.SMTPResponseException):
        return 400 <= error.smtp_code < 500
    return isinstance(error, (ConnectionError, TimeoutError, smtplib.SMTPServerDisconnected))


def run(arguments: argparse.Namespace) -> int:
    """Exit status."""
    found = letters(arguments)
    client = client_of(arguments)
    report = Report(len(found), arguments.quiet)
    try:
        becket.run(send_all(client, found, report))
    except (OSError, smtplib.SMTPException) as error:
        reply = getattr(error, "reply", None)
        say(f"becket: {arguments.endpoint}: {reply if reply is not None else error}")
        return TEMPORARY if is_temporary(error) else 1
    if len(found) > 1 and not arguments.quiet:
        print(
            f"{len(found)} messages: {report.accepted} recipients accepted, "
            f"{report.temporary} not now, {report.refused} refused"
        )
    return report.status
