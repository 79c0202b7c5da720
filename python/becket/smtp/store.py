"""What the stores have in common: handlers of aiosmtpd's kind that keep, or pass on, a message.

Each has ``handle_DATA(server, session, envelope)``, which answers 2xx only when the message is
safe. Used by becket.smtp's memory, mbox, command and relay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
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


def traced(server: Any, session: Any, envelope: Any) -> bytes:
    """The message with a Received: of ours in front (RFC 5321, 4.4), for stores that deliver it or
    pass it on. A message that begins as a folded line would go on with that (RFC 5322, 2.2.3): an
    empty line makes it text."""
    content = content_of(envelope)
    apart = b"\r\n" if content[:1] in (b" ", b"\t") else b""
    peer, helo = peer_of(session), text_of(getattr(session, "host_name", None))
    if ":" in peer:
        peer = f"IPv6:{peer}"
    recipients = [text_of(each) for each in envelope.rcpt_tos]
    only = f"\r\n\tfor <{_word(recipients[0])}>" if len(recipients) == 1 else ""
    host = getattr(server, "hostname", None) or "localhost"
    text = (
        f"Received: from {_word(helo) or 'unknown'} ([{_word(peer) or 'unknown'}])\r\n"
        f"\tby {_word(host)} with {_protocol(server, session, envelope)}{only};\r\n"
        f"\t{format_datetime(datetime.now(UTC))}\r\n"
    )
    return text.encode() + apart + content


def _word(text: str) -> str:
    """What came from the network, such that it ends no header, comment or address."""
    return re.sub(r"[^!-~\x80-\U0010ffff]|[()<>;\\\ud800-\udfff]", "?", text)[:320]


def _protocol(server: Any, session: Any, envelope: Any) -> str:
    """By RFC 3848 and RFC 6531."""
    utf8 = "UTF8" if getattr(envelope, "smtp_utf8", False) else ""
    extended = getattr(session, "extended_smtp", False)
    if getattr(server, "lmtp", False):
        name = f"{utf8}LMTP"
    else:
        name = f"{utf8}SMTP" if utf8 or not extended else "ESMTP"
    secure = "S" if getattr(session, "ssl", None) is not None else ""
    known = "A" if getattr(session, "authenticated", False) else ""
    return f"{name}{secure}{known}" if extended or name != "SMTP" else name


def one_reply(replies: Sequence[str]) -> str:
    """What is said where one answer stands for all recipients: the worst. When only some were
    served, a client that comes again gives those two: better than to lose the others."""
    return max(replies, key=lambda reply: (reply[:1] == "4", reply[:1]))


def answer(server: Any, replies: Sequence[str]) -> Reply:
    """Replies for the recipients, in order: as they are where *server* is becket's for LMTP, else
    one for all."""
    return list(replies) if getattr(server, "lmtp", False) else one_reply(replies)


def sender_of(address: str | None) -> str:
    """A sender as it is between < and >; handlers get "<>" for the empty one, as aiosmtpd's do."""
    return "" if address is None or address == "<>" else address


def text_of(value: Any) -> str:
    """What a session or an envelope has, as text; "" for nothing."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def peer_of(session: Any) -> str:
    """The client's address; "" when it has none."""
    peer = getattr(session, "peer", None)
    return text_of(peer[0] if isinstance(peer, tuple) and peer else peer)


def login_of(session: Any) -> str:
    """Who logged in: a session has what its authenticator returned, which may hold a password."""
    data = getattr(session, "auth_data", None)
    name = getattr(data, "login", data)
    known = getattr(session, "authenticated", False) and isinstance(name, str | bytes)
    return text_of(name) if known else ""
