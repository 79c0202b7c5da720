"""Twisted's TLS with its data in C: pyOpenSSL's connections, worked on by ``_becket.Seal``.

Ports and connectors of the reactor call use_c(); TLS in mid-stream takes Factory. Where pyOpenSSL's
library cannot be reached into, Twisted's own protocol does all of the work.
"""

from __future__ import annotations

import functools
from typing import Any

from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.internet import _newtls
from twisted.protocols import tls as twisted_tls
from twisted.python.failure import Failure

from becket import _becket

_NAMES = (  # in the order of seal.c's
    "SSL_read", "SSL_write", "SSL_get_error", "BIO_read", "BIO_write", "BIO_get_mem_data",
    "SSL_pending", "ERR_peek_error", "ERR_clear_error",
)  # fmt: skip


@functools.cache
def _functions() -> tuple[int, ...] | None:
    """The addresses of OpenSSL's functions in the library that pyOpenSSL uses; None: unknown."""
    try:
        from cryptography.hazmat.bindings._rust import _openssl

        ffi, lib = _openssl.ffi, _openssl.lib
        return tuple(int(ffi.cast("intptr_t", ffi.addressof(lib, name))) for name in _NAMES)
    except (ImportError, AttributeError, TypeError):
        return None


# What Twisted makes by itself; old versions know no other than the latter.
_Base: Any = getattr(twisted_tls, "BufferingTLSTransport", twisted_tls.TLSMemoryBIOProtocol)


class Protocol(_becket.Seal, _Base):
    """TLS on a transport, whose data goes through C once the handshake is over."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Twisted collects small writes until the next turn; the core sends them together anyway.
        self.__dict__.pop("write", None)

    def makeConnection(self, transport: Any) -> None:
        """Begin the handshake."""
        super().makeConnection(transport)
        self._adopt_connection()

    def writeSequence(self, iovec: Any) -> None:
        """Seal an iterable of bytes, and send them."""
        self.write(b"".join(iovec))

    def connectionLost(self, reason: Any) -> None:
        """The transport is gone."""
        super().connectionLost(reason)
        self._release()

    def _adopt_connection(self) -> None:
        """From the end of the handshake on, the C half does the rest."""
        functions = _functions()
        if not self._handshakeDone or self._lostTLSConnection or functions is None:
            return
        connection = self._tlsConnection
        try:
            from OpenSSL._util import ffi

            parts = (connection._ssl, connection._into_ssl, connection._from_ssl)
            addresses = [int(ffi.cast("intptr_t", part)) for part in parts]
        except (ImportError, AttributeError, TypeError):
            return
        self._adopt(connection, *addresses, functions)  # type: ignore[call-arg, arg-type]
        self._tie_transport()

    def _tie_transport(self) -> None:
        """Over a transport of ours, with nothing in between or derived, C calls C."""
        past = type(self.transport) is _newtls._BypassTLS
        wire = self.transport._connection if past else self.transport
        ours = isinstance(wire, _becket.Wire) and type(wire).write is _becket.Wire.write
        if ours and type(self) is Protocol and wire.protocol is self and wire._attached:
            self._tie(wire, past)

    # ---- Called by the C half ----

    def _receive_slowly(self, data: bytes) -> None:
        super(_becket.Seal, self).dataReceived(data)
        if not self._adopted:
            self._adopt_connection()

    def _write_slowly(self, data: Any) -> None:
        super(_becket.Seal, self)._write(data)

    def _not_opened(self, result: int) -> None:
        """Reading came to nothing: the peer has ended, or broken TLS."""
        try:
            self._tlsConnection._raise_ssl_error(self._tlsConnection._ssl, result)
        except WantReadError:
            pass
        except ZeroReturnError:
            self._shutdownTLS()
            self._tlsShutdownFinished(None)
        except Error:
            self._tlsShutdownFinished(Failure())
        self._flushSendBIO()

    def _not_sealed(self, result: int) -> None:
        """Writing came to nothing."""
        try:
            self._tlsConnection._raise_ssl_error(self._tlsConnection._ssl, result)
        except Error:
            self._tlsShutdownFinished(Failure())


class Factory(twisted_tls.TLSMemoryBIOFactory):
    """Makes TLS on a transport of what a factory makes."""

    protocol = Protocol


def use_c(factory: Any) -> None:
    """Have a factory that is Twisted's TLS, or wraps that, make protocols of ours."""
    seen = 0
    while factory is not None and seen < 10:
        if type(factory) is twisted_tls.TLSMemoryBIOFactory:
            if type(factory).protocol is factory.protocol:
                factory.protocol = Protocol
            return
        known = vars(factory) if hasattr(factory, "__dict__") else {}
        factory = known.get("_wrappedFactory", known.get("wrappedFactory"))
        seen += 1
