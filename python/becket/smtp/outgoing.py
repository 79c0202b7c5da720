"""An ``email.message.Message`` as it is sent: who it is from and for, by smtplib's rules, and its
bytes. Called by becket.smtp.client.
"""

from __future__ import annotations

import copy
import email.policy
import io
import re
from collections.abc import Sequence
from email.generator import BytesGenerator
from email.message import Message
from email.utils import getaddresses
from typing import Any

_ALONE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def _addresses(message: Message, *fields: str) -> list[str]:
    texts = [str(text) for field in fields for text in message.get_all(field, ())]
    return [address for _, address in getaddresses(texts) if address]


def _prefix(message: Message) -> str:
    """RFC 5322, 3.6.6: who resends a message is told by the Resent- fields of one block."""
    blocks = message.get_all("Resent-Date") or ()
    if len(blocks) > 1:
        raise ValueError("message has more than one block of Resent- fields: say who it is from")
    return "Resent-" if blocks else ""


def sender_of(message: Message) -> str:
    """The address in Sender, or the first in From; of Resent- fields, where there are some.

    ValueError: there is none, or more than one block of Resent- fields.
    """
    prefix = _prefix(message)
    found = _addresses(message, f"{prefix}Sender") or _addresses(message, f"{prefix}From")
    if not found:
        raise ValueError(f"message has no {prefix}From: give it one, or a sender")
    return found[0]


def recipients_of(message: Message) -> list[str]:
    """The addresses in To, Cc and Bcc; of Resent- fields, where there are some. Each once.

    ValueError: there is none, or more than one block of Resent- fields.
    """
    prefix = _prefix(message)
    found = _addresses(message, f"{prefix}To", f"{prefix}Cc", f"{prefix}Bcc")
    if not found:
        raise ValueError(f"message has no {prefix}To, Cc or Bcc: give it one, or recipients")
    return list(dict.fromkeys(found))


def needs_utf8(sender: str, recipients: Sequence[str]) -> bool:
    """Whether an address is beyond ASCII (RFC 6531)."""
    return not all(address.isascii() for address in (sender, *recipients))


def as_bytes(message: Message, *, utf8: bool, eight_bit: bool) -> bytes:
    """The message with CRLF at the end of each line, and without Bcc.

    *utf8*: headers may be UTF-8 as they are. *eight_bit*: so may bodies; else they are encoded.
    """
    sent = copy.copy(message)
    del sent["Bcc"], sent["Resent-Bcc"]
    policy: Any = message.policy
    if utf8 and not hasattr(policy, "utf8"):  # compat32
        policy = email.policy.SMTPUTF8
    settings: dict[str, Any] = {"cte_type": "8bit" if eight_bit else "7bit", "linesep": "\r\n"}
    if hasattr(policy, "utf8"):
        settings["utf8"] = utf8
    room = io.BytesIO()
    BytesGenerator(room, policy=policy.clone(**settings)).flatten(sent)
    return _ALONE.sub(b"\r\n", room.getvalue())
