"""Mail: sending it, by SMTP and LMTP."""

from becket.smtp.client import Client, Pool, send, send_sync
from becket.smtp.replies import (
    Reply,
    SendResult,
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPDataError,
    SMTPException,
    SMTPNotSupportedError,
    SMTPRecipientsRefused,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)

__all__ = [
    "Client",
    "Pool",
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
    "send",
    "send_sync",
]
