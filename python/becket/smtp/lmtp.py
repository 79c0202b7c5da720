"""The name of ``aiosmtpd.lmtp``, for programs that import it from there."""

from becket.smtp.server import LMTP

__all__ = ["LMTP"]
