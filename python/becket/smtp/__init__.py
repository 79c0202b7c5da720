"""Mail: receiving it with a handler in Python, and sending it.

``Server`` serves a handler with aiosmtpd's interface at endpoints; ``Controller`` and its like are
aiosmtpd's, for programs that change their imports: ``aiosmtpd.controller`` to
``becket.smtp.controller``, and so on. docs/mail.md is the manual.
"""

from becket.smtp.client import Client, Pool, send, send_sync
from becket.smtp.controller import (
    Controller,
    UnixSocketController,
    UnixSocketUnthreadedController,
    UnthreadedController,
)
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
from becket.smtp.server import LMTP, SMTP, Server, auth_mechanism, syntax
from becket.smtp.types import MISSING, AuthResult, Envelope, LoginPassword, ProxyData, Session

__all__ = [
    "LMTP",
    "MISSING",
    "SMTP",
    "AuthResult",
    "Client",
    "Controller",
    "Envelope",
    "LoginPassword",
    "Pool",
    "ProxyData",
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
    "Server",
    "Session",
    "UnixSocketController",
    "UnixSocketUnthreadedController",
    "UnthreadedController",
    "auth_mechanism",
    "send",
    "send_sync",
    "syntax",
]
