"""What a mail server answered, and the exceptions that are made of it: those of smtplib, so that
``except smtplib.SMTPRecipientsRefused`` catches them, with what each recipient was answered.

Made by becket.smtp.client.
"""

from __future__ import annotations

import errno
import os
import re
import smtplib
from collections.abc import Iterator, Mapping
from smtplib import SMTPException
from typing import NamedTuple

_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?: |\n|$)")


class Reply(NamedTuple):
    """What a server answered: ``250 2.1.5 ok``."""

    code: int
    enhanced: str  # "2.1.5" (RFC 3463); "": it gave none
    text: str  # lines are joined by "\n"

    @classmethod
    def parse(cls, text: str) -> Reply:
        """Of ``250 2.1.5 one\\ntwo``. Lines that begin with the same enhanced code lose it."""
        code, rest = int(text[:3]), text[4:]
        found = _ENHANCED.match(rest)
        if found is None or found[1] != text[0]:
            return cls(code, "", rest)
        enhanced = rest[: found.end(3)]
        lines = [line.removeprefix(enhanced).lstrip(" ") for line in rest.split("\n")]
        return cls(code, enhanced, "\n".join(lines))

    @property
    def ok(self) -> bool:
        """It was accepted."""
        return 200 <= self.code < 300

    @property
    def temporary(self) -> bool:
        """It may be accepted another time."""
        return 400 <= self.code < 500

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.code), self.enhanced, self.text)))


class SendResult(Mapping[str, Reply]):
    """What became of a message: a Reply for each recipient, by address, in the order given."""

    def __init__(self, replies: Mapping[str, Reply], decided: str | None = None) -> None:
        self._replies = dict(replies)
        self.decided = decided
        """The command that decided: ``"MAIL"``, ``"RCPT"``, ``"DATA"``; None: not the server."""

    def __getitem__(self, address: str) -> Reply:
        return self._replies[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._replies)

    def __len__(self) -> int:
        return len(self._replies)

    def __repr__(self) -> str:
        replies = ", ".join(f"{address}: {reply}" for address, reply in self.items())
        return f"<SendResult {replies}>"

    @property
    def accepted(self) -> list[str]:
        """Those who will get it."""
        return [address for address, reply in self.items() if reply.ok]

    @property
    def refused(self) -> dict[str, Reply]:
        """Those who will not."""
        return {address: reply for address, reply in self.items() if not reply.ok}

    def raise_if_none(self, sender: str) -> SendResult:
        """This, if anybody will get it; else the SMTPException that says why nobody will."""
        if self.accepted:
            return self
        first, same = next(iter(self.values())), len(set(self.values())) == 1
        if self.decided is None:
            gone = first.enhanced.startswith("4.4.")
            raise (SMTPServerDisconnected if gone else SMTPNotSupportedError)(str(first), self)
        if same and self.decided == "MAIL":
            raise SMTPSenderRefused(first, sender, self)
        if same and self.decided == "DATA":
            raise SMTPDataError(first, self)
        raise SMTPRecipientsRefused(self)


def _words(reply: Reply) -> bytes:
    """As smtplib has them: without the code, with the enhanced one."""
    return f"{reply.enhanced} {reply.text}".strip().encode()


class SMTPConnectError(smtplib.SMTPConnectError):
    """The server does not want to talk to us."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.code, _words(reply))
        self.reply = reply


class SMTPAuthenticationError(smtplib.SMTPAuthenticationError):
    """The user or password is not accepted."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.code, _words(reply))
        self.reply = reply


class SMTPServerDisconnected(smtplib.SMTPServerDisconnected):
    """The connection was lost, or what the server said is no SMTP."""

    def __init__(self, text: str, result: SendResult | None = None) -> None:
        super().__init__(text)
        self.result = result


class SMTPNotSupportedError(smtplib.SMTPNotSupportedError):
    """The server does not offer what is needed: TLS, AUTH, or what a message asks for."""

    def __init__(self, text: str, result: SendResult | None = None) -> None:
        super().__init__(text)
        self.result = result


class SMTPSenderRefused(smtplib.SMTPSenderRefused):
    """The sender is not accepted."""

    def __init__(self, reply: Reply, sender: str, result: SendResult) -> None:
        super().__init__(reply.code, _words(reply), sender)
        self.reply = reply
        self.result = result


class SMTPDataError(smtplib.SMTPDataError):
    """The message itself is not accepted."""

    def __init__(self, reply: Reply, result: SendResult) -> None:
        super().__init__(reply.code, _words(reply))
        self.result = result


class SMTPRecipientsRefused(smtplib.SMTPRecipientsRefused):
    """No recipient is accepted; ``recipients`` is a dict of (code, text), as smtplib's."""

    def __init__(self, result: SendResult) -> None:
        refused = result.refused.items()
        super().__init__({address: (reply.code, _words(reply)) for address, reply in refused})
        self.result = result


def ending(why: int, reply: str | None, error: Exception | None) -> Exception:
    """The exception for what ended a connection: the core's code, the server's last words, what
    broke the transport."""
    said = Reply.parse(reply) if reply else None
    if why == -errno.EACCES and said is not None:
        return SMTPAuthenticationError(said)
    if why == -errno.ECONNREFUSED and said is not None:
        return SMTPConnectError(said)
    if why in _MISSING:
        return SMTPNotSupportedError(_MISSING[why] + (f"; the server said {said}" if said else ""))
    if error is not None and not isinstance(error, EOFError):
        return error
    if said is not None:
        return SMTPServerDisconnected(f"the server said {said}")
    if why == -errno.EPROTO:
        return SMTPServerDisconnected("what the server said is no SMTP")
    return SMTPServerDisconnected(
        os.strerror(-why) if -4000 < why < 0 else "the server ended the connection"
    )


_MISSING = {
    -errno.EPROTONOSUPPORT: "TLS is required, and the server does not start it",
    -errno.ENOTSUP: "the server offers no AUTH that is known here",
    -errno.EPERM: "the password would be sent without TLS",
}

__all__ = [
    "Reply",
    "SMTPAuthenticationError",
    "SMTPConnectError",
    "SMTPDataError",
    "SMTPException",
    "SMTPNotSupportedError",
    "SMTPRecipientsRefused",
    "SMTPSenderRefused",
    "SMTPServerDisconnected",
    "SendResult",
    "ending",
]
