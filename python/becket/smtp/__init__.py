"""Mail: receiving it with a handler in Python, and sending it.

``Server`` serves a handler with aiosmtpd's interface at endpoints; ``Controller`` and its like are
aiosmtpd's, for programs that change their imports: ``aiosmtpd.controller`` to
``becket.smtp.controller``, and so on. docs/mail.md is the manual.
"""

from becket.smtp.controller import (
    Controller,
    UnixSocketController,
    UnixSocketUnthreadedController,
    UnthreadedController,
)
from becket.smtp.server import LMTP, SMTP, Server, auth_mechanism, syntax
from becket.smtp.types import MISSING, AuthResult, Envelope, LoginPassword, ProxyData, Session

__all__ = [
    "LMTP",
    "MISSING",
    "SMTP",
    "AuthResult",
    "Controller",
    "Envelope",
    "LoginPassword",
    "ProxyData",
    "Server",
    "Session",
    "UnixSocketController",
    "UnixSocketUnthreadedController",
    "UnthreadedController",
    "auth_mechanism",
    "syntax",
]
