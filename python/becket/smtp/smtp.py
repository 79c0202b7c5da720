"""The names of ``aiosmtpd.smtp``, for programs that import them from there."""

from becket.smtp.server import (
    CALL_LIMIT_DEFAULT,
    DATA_SIZE_DEFAULT,
    SMTP,
    auth_mechanism,
    syntax,
)
from becket.smtp.types import (
    MISSING,
    AuthCallbackType,
    AuthenticatorType,
    AuthResult,
    Envelope,
    LoginPassword,
    Session,
)

__all__ = [
    "CALL_LIMIT_DEFAULT",
    "DATA_SIZE_DEFAULT",
    "MISSING",
    "SMTP",
    "AuthCallbackType",
    "AuthResult",
    "AuthenticatorType",
    "Envelope",
    "LoginPassword",
    "Session",
    "auth_mechanism",
    "syntax",
]
