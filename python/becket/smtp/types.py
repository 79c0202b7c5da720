"""What a mail handler's methods are given and may give back, with aiosmtpd's names."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from becket import _becket

if TYPE_CHECKING:

    class Session(_becket.Session):
        """What is known of a client. It may be given other attributes."""

        def __getattr__(self, name: str, /) -> Any: ...
        def __setattr__(self, name: str, value: Any, /) -> None: ...

    class Envelope(_becket.Envelope):
        """A message that arrives. It may be given other attributes."""

        def __getattr__(self, name: str, /) -> Any: ...
        def __setattr__(self, name: str, value: Any, /) -> None: ...

else:
    Session, Envelope = _becket.Session, _becket.Envelope

__all__ = [
    "MISSING",
    "AuthCallbackType",
    "AuthResult",
    "AuthenticatorType",
    "Envelope",
    "LoginPassword",
    "ProxyData",
    "Session",
]


class _Missing(enum.Enum):
    MISSING = object()


MISSING = _Missing.MISSING
"""Nothing: a hook that leaves it to the server."""


class LoginPassword(NamedTuple):
    """What a client logs in with. It does not show its password."""

    login: bytes
    password: bytes

    def __str__(self) -> str:
        return f"LoginPassword(login='{self.login.decode(errors='replace')}', password=...)"

    def __repr__(self) -> str:
        return str(self)


@dataclass(kw_only=True)
class AuthResult:
    """What an authenticator says. *message*: the reply, with its code; None: the usual one.
    *handled*: without success, the reply has been pushed already."""

    success: bool
    handled: bool = True
    message: str | None = None
    auth_data: Any = field(default=None, repr=False)


class ProxyData(NamedTuple):
    """Who a PROXY header says the client is, whom it came to, and who sent the header."""

    source: Any
    destination: Any
    proxy: Any

    @property
    def src_addr(self) -> Any:
        """The client's IP address."""
        return self.source[0] if self.source else None

    @property
    def src_port(self) -> Any:
        """The client's port."""
        return self.source[1] if self.source else None

    @property
    def dst_addr(self) -> Any:
        """The IP address that it connected to."""
        return self.destination[0] if self.destination else None

    @property
    def dst_port(self) -> Any:
        """The port that it connected to."""
        return self.destination[1] if self.destination else None


AuthCallbackType = Callable[[str, bytes, bytes], bool]
AuthenticatorType = Callable[[Any, Any, Any, str, Any], Any]
