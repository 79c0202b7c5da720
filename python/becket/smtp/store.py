"""What the stores have in common: handlers of aiosmtpd's kind that keep, or pass on, a message.

Each has ``handle_DATA(server, session, envelope)``, which answers 2xx only when the message is
safe. Used by becket.smtp's memory, mbox, command and relay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Envelope(Protocol):
    """What stores ask of an envelope; aiosmtpd's and becket.smtp's have it."""

    mail_from: str | None
    mail_options: Any
    rcpt_tos: list[str]
    rcpt_options: Any
    content: bytes | str | None
    smtp_utf8: bool


Reply = str | list[str]  # one for all recipients; or one for each, in order, where that was asked

TRY_AGAIN = "451 4.3.0 the message could not be stored: try again later"


def content_of(envelope: Any) -> bytes:
    """The message as it was sent, with the header that the server put in front."""
    content = envelope.content or b""
    if isinstance(content, str):  # aiosmtpd's, with decode_data
        return content.encode("utf-8", "surrogateescape")
    return bytes(content)


def one_reply(replies: Sequence[str]) -> str:
    """What is said where one answer stands for all recipients: the worst. When only some were
    served, a client that comes again gives those two: better than to lose the others."""
    return max(replies, key=lambda reply: (reply[:1] == "4", reply[:1]))
