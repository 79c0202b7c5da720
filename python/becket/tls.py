"""TLS engines in Python: bytes in, bytes out, without a socket.

An engine is what seals and opens one connection's bytes. becket's own are in C; these stand beside
them:

- ``ssl``: Python's own module, for where the engines in C find no library.
- ``pyopenssl``: serves an ``OpenSSL.SSL.Context`` of yours, as it is.
- ``tlslite``: TLS written in Python. Slow, and not hardened against timing: for tests and learning.

A third party derives from ``Engine``, and is found by name through the entry-point group
``becket.tls``, or after ``register()``. The contract is that of ``becket-tls.h``, in Python's ways.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import importlib
import ipaddress
import os
import re
import ssl
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

if TYPE_CHECKING:
    from importlib import metadata

__all__ = [
    "Engine",
    "MemoryBIOEngine",
    "PyOpenSSLEngine",
    "Settings",
    "TlsliteEngine",
    "engine_of",
    "engines",
    "error_code",
    "exception_of",
    "find",
    "register",
]

GROUP = "becket.tls"

# The codes of becket.h, in its order.
ETRUNCATED = -4001
ETLS = -4020
ENGINE = -4021
CONFIG = -4022
PROTOCOL = -4023
RECORD = -4024
VERSION = -4025
CIPHER = -4026
ALPN = -4027
NAME = -4028
UNTRUSTED = -4029
WRONG_NAME = -4030
NO_CERTIFICATE = -4031
ALERT = -4032
RENEGOTIATION = -4033

# BK_QUERY_TLS_… of becket-tls.h
_QUERY_VERSION, _QUERY_CIPHER, _QUERY_BITS, _QUERY_CERT = 102, 103, 104, 107
_QUERY_VERIFIED = 110

# As X509_verify_cert() of OpenSSL numbers them.
_UNSPECIFIED, _EXPIRED, _NO_ISSUER, _WRONG_HOST, _WRONG_ADDRESS = 1, 10, 20, 62, 64


# ---- The contract --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What an engine makes a context of: all files have been read, all values checked.

    Texts are PEM, and b"" where there is none. ``key`` may be empty when ``certificate`` holds it.
    """

    server_side: bool
    certificate: bytes  # the chain, leaf first; servers must have one
    key: bytes = field(repr=False)
    ca: bytes  # whom to trust; b"": whom the system trusts
    verify: ssl.VerifyMode
    alpn: tuple[str, ...]  # in order of preference; (): none
    minimum: ssl.TLSVersion
    maximum: ssl.TLSVersion | None  # None: the best there is
    tickets: bool  # servers: whether sessions may be resumed


class Engine(abc.ABC):
    """One connection's TLS. It owns no socket, never waits, and is called by one thread at a time.

    The order of calls: ``handshake()`` first, with nothing received, then after each ``receive()``
    until it returns True; then ``receive()``, ``read()`` and ``write()`` as needed, ``end()`` once,
    ``close()`` last. ``take()`` comes after every other call, also after one that raised.

    What an engine must hold:

    - Ciphertext that yields no plaintext (a part of a record, a ticket, a key update) is progress,
      not the end: ``read()`` returns None.
    - ``receive()`` takes all it is given, cut anywhere, and may come before ``read()`` has returned
      all there was. What it cannot use yet it keeps.
    - When a call raises, the alert that tells the peer is left for ``take()``. After that, only
      ``take()``, ``query()`` and ``close()`` are called.
    - The peer's close_notify ends reading only; writing goes on where the library allows it. What
      comes after it is not looked at.
    - ``end()`` ends writing only: reading goes on.
    - Renegotiation is refused.
    - An end without close_notify is not its business: the transport above sees that.

    Failures are ``ssl.SSLError``, and ``ssl.SSLCertVerificationError`` for the peer's certificate;
    ``exception_of()`` makes them of becket's codes.
    """

    name: ClassVar[str]

    def __init__(self, context: Any, *, server_side: bool, server_hostname: str | None) -> None:
        """A new connection.

        ``server_hostname``, for clients: whom to ask for and whom to verify, a name or an IP
        address (which is not asked for, RFC 6066 3); None: nobody. ValueError: it is neither.
        """
        self.server_side = server_side
        self.server_hostname = server_hostname

    @classmethod  # noqa: B027 - most need nothing
    def open(cls) -> None:
        """Find the library. ImportError says what is missing. May be called often."""

    @classmethod
    def version(cls) -> str:
        """What the library calls itself, "OpenSSL 3.0.19 27 Jan 2026". After open()."""
        return ""

    @classmethod
    def serves(cls, context: object) -> bool:
        """Whether this engine's connections can be made of a context that somebody brought."""
        return False

    @classmethod
    @abc.abstractmethod
    def make_context(cls, settings: Settings) -> Any:
        """What connections share. ValueError or ssl.SSLError names what is wrong."""

    @abc.abstractmethod
    def handshake(self) -> bool:
        """Go on with the handshake; True when it is over."""

    @abc.abstractmethod
    def receive(self, data: bytes) -> None:
        """Ciphertext from the peer. Does not raise."""

    @abc.abstractmethod
    def read(self, size: int) -> bytes | None:
        """Up to size bytes of plaintext, size > 0.

        None: more ciphertext is needed. b"": the peer has ended its direction (close_notify).
        """

    @abc.abstractmethod
    def write(self, data: bytes) -> None:
        """Seal all of data. Never before the handshake is over, nor after end()."""

    @abc.abstractmethod
    def take(self) -> bytes:
        """The ciphertext that is to be sent to the peer; b"" when there is none."""

    @abc.abstractmethod
    def end(self) -> None:
        """Our direction is over: close_notify. Once, after the handshake."""

    def query(self, what: str) -> Any:
        """What is known of the connection; None: not known, or not by this engine.

        version: str, "TLSv1.3". cipher: (name, version, bits), as ssl's cipher(). alpn: str, what
        was agreed on. server_name: str, what the client asked for. peercert_der: bytes, the peer's
        certificate. peercert: dict, as ssl's getpeercert(): {} when it was not verified.
        resumed: bool. ssl_object: what get_extra_info("ssl_object") shall be.
        """
        return None

    def close(self) -> None:  # noqa: B027 - most need nothing
        """Let go of what is large. Sends nothing. Only query() may follow."""


# ---- Contexts of the engines in C ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """TLS by an engine of the core, wherever asyncio on a becket loop takes ``ssl=``.

        context = becket.tls.Context(engine="gnutls", server_side=True, certificate="site.pem")
        server = await loop.create_server(Echo, port=7001, ssl=context)

    Nothing is read before it is used: a file that is missing is an OSError there, a key that does
    not fit, or an engine that is not here, a ValueError that says so.
    """

    engine: str | None = None  # openssl, gnutls, mbedtls, …; None: BECKET_TLS, or the first here
    server_side: bool = False
    certificate: str | os.PathLike[str] | None = None  # PEM: the chain, leaf first
    key: str | os.PathLike[str] | None = None  # PEM; None: it is in the certificate's file
    ca: str | os.PathLike[str] | None = None  # PEM: whom to trust; None: whom the system trusts
    verify: ssl.VerifyMode | None = None  # None: clients CERT_REQUIRED, servers CERT_NONE
    alpn: tuple[str, ...] = ()  # in order of preference
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    maximum: ssl.TLSVersion | None = None  # None: the best there is
    tickets: bool = True  # whether sessions may be resumed

    def arguments(self) -> dict[str, Any]:
        """As the core takes them."""

        def path(value: str | os.PathLike[str] | None) -> str | None:
            return None if value is None else os.fspath(value)

        return {
            "engine": self.engine,
            "server_side": self.server_side,
            "certificate": path(self.certificate),
            "key": path(self.key),
            "ca": path(self.ca),
            "verify": 0 if self.verify is None else self.verify + 1,
            "alpn": ",".join(self.alpn) or None,
            "minimum": int(self.minimum),
            "maximum": 0 if self.maximum is None else int(self.maximum),
            "tickets": self.tickets,
        }


def check_name(server_hostname: str | None) -> None:
    """The core takes a name as it is asked for. ValueError: it is none that could be."""
    if server_hostname is None:
        return
    if not server_hostname.isascii() or "\0" in server_hostname:
        raise ValueError(
            f"server_hostname: {server_hostname!r} is no name in ASCII; encode it with 'idna'"
        )


def core_info(query: Callable[[int], bytes | None], name: str) -> Any:
    """What get_extra_info() tells of a connection of the core's engines, out of its answers."""
    if name == "cipher":
        cipher, version, bits = query(_QUERY_CIPHER), query(_QUERY_VERSION), query(_QUERY_BITS)
        if cipher is None or version is None or bits is None:
            return None
        texts = [text.rstrip(b"\0").decode() for text in (cipher, version)]
        return (*texts, int.from_bytes(bits, sys.byteorder))
    der = query(_QUERY_CERT) if name == "peercert" else None
    if not der:
        return None
    if not any(query(_QUERY_VERIFIED) or b""):
        return {}
    with _as_file(ssl.DER_cert_to_PEM_cert(der).encode()) as path:
        decode: Any = ssl._ssl._test_decode_cert  # type: ignore[attr-defined]
        return decode(path)


# ---- Errors --------------------------------------------------------------------------------------

# From what ssl calls `reason` to becket's code; the first that matches.
_CODES = [
    (ETRUNCATED, r"UNEXPECTED_EOF"),
    (UNTRUSTED, r"CERTIFICATE_VERIFY_FAILED$"),
    (NO_CERTIFICATE, r"PEER_DID_NOT_RETURN_A_CERTIFICATE$"),
    (RENEGOTIATION, r"(.*_)?NO_RENEGOTIATION$"),
    (ALPN, r"(.*_)?NO_APPLICATION_PROTOCOL$"),
    (NAME, r"(.*_)?UNRECOGNIZED_NAME$"),
    (VERSION, r"UNSUPPORTED_(PROTOCOL|SSL_VERSION)$|NO_PROTOCOLS_AVAILABLE$|VERSION_TOO_"),
    (VERSION, r"WRONG_SSL_VERSION$|(.*_)?(PROTOCOL_VERSION|INAPPROPRIATE_FALLBACK)$"),
    (RECORD, r"(.*_)?BAD_RECORD_MAC$|(.*_)?DECRYPTION_FAILED$|BAD_DECRYPT$|BAD_RECORD$"),
    (CIPHER, r"NO_SHARED_|NO_SUITABLE_|NO_CIPHERS_|NO_COMMON_"),
    (CIPHER, r"(.*_)?(HANDSHAKE_FAILURE|INSUFFICIENT_SECURITY)$"),
    (ALERT, r"(TLSV1|TLSV13|SSLV3)_|ALERT$"),
    (CONFIG, r"KEY_(VALUES|TYPE)_MISMATCH$|NO_CERTIFICATE_ASSIGNED$|PEM_LIB$"),
    (PROTOCOL, r"WRONG_VERSION_NUMBER$|HTTPS?_(PROXY_)?REQUEST$|UNKNOWN_PROTOCOL$"),
    (PROTOCOL, r"BAD_|INVALID_|UNEXPECTED_|ILLEGAL_|MISSING_|DUPLICATE|UNSOLICITED_"),
    (PROTOCOL, r"EXCESSIVE_|TOO_MANY_|.*_TOO_(LONG|SHORT|LARGE|SMALL)$|.*LENGTH_MISMATCH$"),
    (PROTOCOL, r"DECODE_ERROR$|DIGEST_CHECK_FAILED$|NOT_ON_RECORD_BOUNDARY$|RECORD_OVERFLOW$"),
    (PROTOCOL, r"APPLICATION_DATA_|DATA_BETWEEN_|CCS_|DECRYPT_ERROR$|UNSUPPORTED_EXTENSION$"),
    (PROTOCOL, r"PROTOCOL_ERROR$|.*_FAILURE$|WRONG_SIGNATURE_TYPE$|.*_ENCODING_ERR$"),
    (PROTOCOL, r"ASN1_LIB$|.*_ASN1_ERROR$|WRONG_TAG$|HEADER_TOO_LONG$"),
]

# And back, for words that are not OpenSSL's.
_REASONS = {
    CONFIG: "NO_CERTIFICATE_ASSIGNED",
    PROTOCOL: "PROTOCOL_ERROR",
    RECORD: "BAD_RECORD",
    VERSION: "UNSUPPORTED_PROTOCOL",
    CIPHER: "NO_SHARED_CIPHER",
    ALPN: "NO_APPLICATION_PROTOCOL",
    NAME: "UNRECOGNIZED_NAME",
    NO_CERTIFICATE: "PEER_DID_NOT_RETURN_A_CERTIFICATE",
    ALERT: "ALERT",
    RENEGOTIATION: "NO_RENEGOTIATION",
}


def _reason(words: str) -> str:
    """From a library's words to the form of ssl's reasons, "WRONG_VERSION_NUMBER"."""
    reason = re.sub(r"[^A-Z0-9]+", "_", words.upper()).strip("_")
    # Later versions of OpenSSL say "ssl/tls alert", "tls alert"; the reason's name is the old one.
    return re.sub(r"^(SSL_)?TLS_ALERT_", "SSLV3_ALERT_", reason)


def _error(reason: str, words: str, library: str = "SSL") -> ssl.SSLError:
    """An error in the form that ssl gives its own."""
    error = ssl.SSLError(ssl.SSLErrorNumber.SSL_ERROR_SSL, f"[{library}: {reason}] {words}")
    error.library = library
    error.reason = reason
    return error


def _distrust(words: str, verify_code: int, message: str = "") -> ssl.SSLCertVerificationError:
    """An error of the peer's certificate. message: in place of the one that ssl would have."""
    reason = "CERTIFICATE_VERIFY_FAILED"
    message = message or f"[SSL: {reason}] certificate verify failed: {words}"
    error = ssl.SSLCertVerificationError(ssl.SSLErrorNumber.SSL_ERROR_SSL, message)
    error.library = "SSL"
    error.reason = reason
    error.verify_code = verify_code
    error.verify_message = words
    return error


def error_code(error: BaseException) -> int:
    """Which of the core's codes an exception is: one of BK_ETLS_…; BK_ETRUNCATED for an EOF."""
    if isinstance(error, ssl.SSLCertVerificationError):
        code = getattr(error, "verify_code", 0)
        wrong = code in range(_WRONG_HOST, _WRONG_ADDRESS + 1) or (
            not code and re.search(r"(?i)(hostname|ip address) mismatch", str(error))
        )
        return WRONG_NAME if wrong else UNTRUSTED
    if isinstance(error, ssl.SSLEOFError):
        return ETRUNCATED
    if isinstance(error, ImportError):
        return ENGINE
    if not isinstance(error, ssl.SSLError):
        return ETLS
    reason = getattr(error, "reason", None)
    if not isinstance(reason, str) or not reason.isupper():
        # An older ssl has no name for what a newer OpenSSL says: "[SSL] the words (_ssl.c:123)".
        words = re.sub(r"^\[(?:\w+: )?(\w+)\] ?|\(_ssl\.c:\d+\)$", "", str(error)).strip()
        named = re.match(r"\[\w+: (\w+)\]", str(error))
        reason = named[1] if named else _reason(words)
    return next((code for code, pattern in _CODES if re.match(pattern, reason)), ETLS)


def exception_of(code: int, words: str) -> ssl.SSLError:
    """The exception for one of the core's codes; words are its message.

    What asyncio's users catch: ssl.SSLCertVerificationError for certificates, ssl.SSLError for the
    rest. error_code() of it is the code again, if it is one of BK_ETLS_… or BK_ETRUNCATED.
    """
    if code in (UNTRUSTED, WRONG_NAME):
        return _distrust(words, _WRONG_HOST if code == WRONG_NAME else _UNSPECIFIED, words)
    if code == ETRUNCATED:
        return ssl.SSLEOFError(ssl.SSLErrorNumber.SSL_ERROR_EOF, words)
    error = ssl.SSLError(ssl.SSLErrorNumber.SSL_ERROR_SSL, words)
    error.library = "SSL"
    error.reason = _reason(words)
    # Words of OpenSSL's make the reason that ssl would have given; others' are only words.
    if not re.fullmatch(r"[a-z0-9 /_-]+", words) or error_code(error) != code:
        error.reason = _REASONS.get(code, "TLS")
    return error


# ---- What engines share --------------------------------------------------------------------------

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----\s*", re.DOTALL)


def _library(module: str, engine: str) -> Any:
    """A module of an optional library. ImportError says how to get it."""
    found = sys.modules.get(module)
    if found is not None:
        return found
    try:
        with warnings.catch_warnings():  # of what it imports itself: its users cannot mend that
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{engine}: pip install becket[{engine}]", name=error.name) from error


def _certificates(pem: bytes, what: str) -> list[bytes]:
    """The certificates in a text, in DER. ValueError names what has none, or a bad one."""
    try:
        found = [
            ssl.PEM_cert_to_DER_cert(block[0].decode("ascii"))
            for block in _PEM.finditer(pem)
            if block[1] == b"CERTIFICATE"
        ]
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if not found:
        raise ValueError(f"{what}: there is no certificate in it (PEM)")
    return found


def _private_key(settings: Settings) -> bytes:
    """The key alone, in PEM. ValueError says what is wrong with it."""
    for block in _PEM.finditer(settings.key or settings.certificate):
        if block[1].endswith(b"PRIVATE KEY"):
            if b"ENCRYPTED" in block[0]:
                raise ValueError("key: it is encrypted")
            return block[0]
    raise ValueError("key: there is no private key in it (PEM)")


def _credentials(settings: Settings) -> tuple[bytes, bytes] | None:
    """Certificate chain and key in PEM, looked over; None: a client without any."""
    if not settings.certificate:
        if settings.server_side:
            raise ValueError("certificate: a server must have one")
        if settings.key:
            raise ValueError("certificate: there is none for the key")
        return None
    _certificates(settings.certificate, "certificate")
    chain = b"".join(
        block[0] for block in _PEM.finditer(settings.certificate) if block[1] == b"CERTIFICATE"
    )
    return chain, _private_key(settings)


def _misfit() -> ssl.SSLError:
    return _error("KEY_VALUES_MISMATCH", "the key does not fit the certificate", "X509")


@contextlib.contextmanager
def _as_file(*texts: bytes) -> Iterator[str]:
    """A path to read texts from, for libraries that read files only. Keys stay off the disk."""
    if not hasattr(os, "memfd_create"):
        with tempfile.NamedTemporaryFile() as file:  # readable by its owner only
            file.write(b"\n".join(texts))
            file.flush()
            yield file.name
        return
    with open(os.memfd_create("becket"), "wb") as memory:
        memory.write(b"\n".join(texts))
        memory.flush()
        yield f"/proc/self/fd/{memory.fileno()}"


def _address(name: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name) if name else None
    except ValueError:
        return None


def _asked_name(server_hostname: str | None) -> str | None:
    """What a client puts into its hello: the name in ASCII; None for nobody and IP addresses."""
    if server_hostname is None or _address(server_hostname) is not None:
        return None
    try:
        name = server_hostname.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError(f"server_hostname: {error}") from error
    if not name or name.startswith("."):
        raise ValueError(f"server_hostname: {server_hostname!r} is not a name")
    return name


def _covers(pattern: str, name: str) -> bool:
    """Whether a name of a certificate stands for this one (RFC 6125 6.4); both in ASCII."""
    pattern, name = pattern.lower(), name.lower()
    star, _, rest = pattern.partition(".")
    label, _, parent = name.partition(".")
    return pattern == name or (star == "*" and "." in rest and rest == parent and label != "")


def _check_name(certificate: Any, server_hostname: str) -> None:
    """SSLCertVerificationError, unless a certificate (of cryptography's) is for this name."""
    x509 = importlib.import_module("cryptography.x509")
    address = _address(server_hostname)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if address is not None:
            good = address in names.get_values_for_type(x509.IPAddress)
        else:
            name = _asked_name(server_hostname) or ""
            good = any(_covers(n, name) for n in names.get_values_for_type(x509.DNSName))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        good = False  # what cannot be read is nobody's
    if not good:
        what, code = ("IP address", _WRONG_ADDRESS) if address else ("Hostname", _WRONG_HOST)
        words = f"{what} mismatch, certificate is not valid for {server_hostname!r}."
        raise _distrust(words, code)


_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def _describe(certificate: Any) -> dict[str, Any]:
    """A certificate (of cryptography's) as ssl's getpeercert() describes one."""
    x509 = importlib.import_module("cryptography.x509")

    def name(value: Any) -> tuple[tuple[tuple[str, str], ...], ...]:
        return tuple(
            tuple((getattr(a.oid, "_name", a.oid.dotted_string), a.value) for a in rdn)
            for rdn in value.rdns
        )

    def time(value: Any) -> str:  # strftime() would ask the locale for the month
        return f"{_MONTHS[value.month - 1]} {value.day:2} {value:%H:%M:%S} {value.year} GMT"

    def alternative(entry: Any) -> tuple[str, str]:
        if isinstance(entry, x509.IPAddress) and getattr(entry.value, "version", 0) == 6:
            words = entry.value.exploded.split(":")
            return "IP Address", ":".join(f"{int(word, 16):X}" for word in words)
        kinds = {"DNSName": "DNS", "IPAddress": "IP Address", "RFC822Name": "email"}
        kind = type(entry).__name__
        return kinds.get(kind, "URI" if "Uniform" in kind else kind), str(entry.value)

    serial = f"{certificate.serial_number:X}"
    found: dict[str, Any] = {
        "subject": name(certificate.subject),
        "issuer": name(certificate.issuer),
        "version": certificate.version.value + 1,
        "serialNumber": serial.zfill(len(serial) + len(serial) % 2),
        "notBefore": time(certificate.not_valid_before_utc),
        "notAfter": time(certificate.not_valid_after_utc),
    }
    with contextlib.suppress(x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found["subjectAltName"] = tuple(alternative(entry) for entry in names)
    return found


# ---- ssl -----------------------------------------------------------------------------------------


class _Object(ssl.SSLObject):
    """Remembers what name the client asked for, which ssl tells once only."""

    asked: str | None = None


class _Context(ssl.SSLContext):
    """A context of make_context(): with one beside it for connections to nobody in particular."""

    settings: Settings
    nameless: ssl.SSLContext | None = None

    def for_nobody(self) -> ssl.SSLContext:
        if self.nameless is None:
            self.nameless = MemoryBIOEngine.make_context(self.settings)
            self.nameless.check_hostname = False
        return self.nameless


def _remember_name(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
    if isinstance(connection, _Object):
        connection.asked = name


class MemoryBIOEngine(Engine):
    """Python's ssl. Contexts: any ssl.SSLContext, used as it is.

    Whether a context of yours refuses renegotiation and checks names is its own affair. A client
    that offers only application protocols that the server has not is not refused: ssl cannot.
    """

    name = "ssl"

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None
    ) -> None:
        super().__init__(context, server_side=server_side, server_hostname=server_hostname)
        if server_hostname is None and not server_side and isinstance(context, _Context):
            context = context.for_nobody()
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._in, self._out, server_side=server_side, server_hostname=server_hostname
        )
        # What end() had to read ahead, and what came after all that is read: an error, or the end.
        self._ahead = bytearray()
        self._then: ssl.SSLError | bytes | None = None

    @classmethod
    def version(cls) -> str:
        return ssl.OPENSSL_VERSION

    @classmethod
    def serves(cls, context: object) -> bool:
        return isinstance(context, ssl.SSLContext)

    @classmethod
    def make_context(cls, settings: Settings) -> ssl.SSLContext:
        credentials = _credentials(settings)
        server = settings.server_side
        context = _Context(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.settings = settings
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.minimum_version = settings.minimum
        if settings.maximum is not None:
            context.maximum_version = settings.maximum
        context.check_hostname = not server and settings.verify != ssl.CERT_NONE
        context.hostname_checks_common_name = False  # RFC 9525 2
        context.verify_mode = settings.verify
        if credentials is not None:
            try:
                with _as_file(*credentials) as path:
                    context.load_cert_chain(path)
            except ssl.SSLError as error:
                if error_code(error) == CONFIG:
                    raise _misfit() from error
                raise _error("PEM_LIB", f"certificate or key: {error}", "PEM") from error
        if settings.ca:
            _certificates(settings.ca, "ca")
            try:
                context.load_verify_locations(cadata=settings.ca.decode("ascii"))
            except ssl.SSLError as error:
                raise _error("PEM_LIB", f"ca: {error}", "PEM") from error
        elif settings.verify != ssl.CERT_NONE:
            purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
            context.load_default_certs(purpose)
        if settings.alpn:
            context.set_alpn_protocols(settings.alpn)
        if server:
            context.sslobject_class = _Object
            context.sni_callback = _remember_name
        if not settings.tickets:
            context.options |= ssl.OP_NO_TICKET
            if server:
                context.num_tickets = 0
        return context

    def handshake(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def receive(self, data: bytes) -> None:
        if self._then is None:
            self._in.write(data)

    def read(self, size: int) -> bytes | None:
        if self._ahead:
            data = bytes(self._ahead[:size])
            del self._ahead[:size]
            return data
        if self._then is not None:
            if isinstance(self._then, bytes):
                return self._then
            raise self._then
        try:
            data = self._object.read(size)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:  # in place of b"" once we have ended too
            data = b""
        except ssl.SSLError as error:
            # OpenSSL 3.2 and later say no more than this, of a damaged record as of garbage; but
            # who has shaken hands does not send garbage.
            if error.reason != "RECORD_LAYER_FAILURE":
                raise
            words = "a record was damaged, or sealed with another key"
            raise _error("BAD_RECORD", words) from error
        if not data:
            self._then = b""
        return data

    def write(self, data: bytes) -> None:
        if data:
            self._object.write(data)

    def take(self) -> bytes:
        return self._out.read()

    def end(self) -> None:
        # unwrap() would also look for the peer's close_notify, and fail if it found data: let it
        # find nothing.
        ahead = bytearray()
        try:
            while data := self.read(1 << 16):
                ahead += data
            self._ahead, self._then = ahead, data
        except ssl.SSLError as error:
            self._ahead, self._then = ahead, error.with_traceback(None)
        try:
            self._object.unwrap()
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError:
            if self._then is None:  # otherwise read() tells
                raise

    def query(self, what: str) -> Any:
        if what == "version":
            return self._object.version()
        if what == "cipher":
            return self._object.cipher()
        if what == "alpn":
            return self._object.selected_alpn_protocol()
        if what == "server_name":
            if self.server_side:
                return getattr(self._object, "asked", None)
            return _asked_name(self.server_hostname)
        if what in ("peercert", "peercert_der"):
            try:
                return self._object.getpeercert(what == "peercert_der")
            except ValueError:  # the handshake is not over
                return None
        if what == "resumed":
            return self._object.session_reused
        if what == "ssl_object":
            return self._object
        return None


# ---- pyOpenSSL -----------------------------------------------------------------------------------


class _Verdict:
    """What is to be verified on one connection, and what came of it."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.problem: int | None = None  # OpenSSL's number


class _Ours:
    """Marks the contexts of make_context(), whose verify callback looks for a _Verdict."""


_PROBLEMS = {
    9: "certificate is not yet valid",
    10: "certificate has expired",
    18: "self-signed certificate",
    19: "self-signed certificate in certificate chain",
    20: "unable to get local issuer certificate",
    21: "unable to verify the first certificate",
    22: "certificate chain too long",
    23: "certificate revoked",
    24: "invalid CA certificate",
    26: "unsuitable certificate purpose",
}


class PyOpenSSLEngine(Engine):
    """pyOpenSSL. Contexts: any OpenSSL.SSL.Context, used as it is.

    When a context verifies, clients check the server's name too, whoever made it. Contexts of
    make_context() do so inside the handshake; for others it is done when the handshake is over on
    our side, and the peer learns of a refusal by the connection's end only.
    """

    name = "pyopenssl"

    def __init__(self, context: Any, *, server_side: bool, server_hostname: str | None) -> None:
        super().__init__(context, server_side=server_side, server_hostname=server_hostname)
        self._ssl = _library("OpenSSL.SSL", self.name)
        self._connection = connection = self._ssl.Connection(context, None)
        self._verdict = _Verdict(None if server_side else server_hostname)
        self._mute = self._over = False
        if isinstance(context.get_app_data(), _Ours):
            connection.set_app_data(self._verdict)
        if hasattr(connection, "set_options"):  # pyOpenSSL 26.2
            connection.set_options(self._ssl.OP_NO_RENEGOTIATION)
        if server_side:
            connection.set_accept_state()
        else:
            connection.set_connect_state()
            if name := _asked_name(server_hostname):
                connection.set_tlsext_host_name(name.encode("ascii"))

    @classmethod
    def open(cls) -> None:
        _library("OpenSSL.SSL", cls.name)

    @classmethod
    def version(cls) -> str:
        lib = _library("OpenSSL.SSL", cls.name)
        pyopenssl = _library("OpenSSL", cls.name).__version__
        openssl: str = lib.OpenSSL_version(lib.OPENSSL_VERSION).decode("ascii")
        return f"pyOpenSSL {pyopenssl}, {openssl}"

    @classmethod
    def serves(cls, context: object) -> bool:
        # Who has a context of it has imported it.
        module = sys.modules.get("OpenSSL.SSL")
        return module is not None and isinstance(context, module.Context)

    @classmethod
    def make_context(cls, settings: Settings) -> Any:
        lib = _library("OpenSSL.SSL", cls.name)
        server = settings.server_side
        context = lib.Context(lib.TLS_SERVER_METHOD if server else lib.TLS_CLIENT_METHOD)
        context.set_app_data(_Ours())
        context.set_options(lib.OP_NO_RENEGOTIATION | lib.OP_NO_COMPRESSION)
        context.set_min_proto_version(max(0, int(settings.minimum)))
        if settings.maximum is not None:
            context.set_max_proto_version(max(0, int(settings.maximum)))
        credentials = _credentials(settings)
        if credentials is not None:
            cls._load(lib, context, *credentials)
        if settings.ca:
            _certificates(settings.ca, "ca")
            try:
                with _as_file(settings.ca) as path:
                    context.load_verify_locations(path)
            except lib.Error as error:
                raise _error("PEM_LIB", f"ca: {cls._words(error)}", "PEM") from error
        elif settings.verify != ssl.CERT_NONE:
            context.set_default_verify_paths()
        if settings.verify != ssl.CERT_NONE:
            mode = lib.VERIFY_PEER
            if server and settings.verify == ssl.CERT_REQUIRED:
                mode |= lib.VERIFY_FAIL_IF_NO_PEER_CERT
            context.set_verify(mode, cls._verify)
        if settings.alpn:
            cls._agree(context, server, [name.encode("ascii") for name in settings.alpn])
        if server:
            # OpenSSL keeps the name that was asked for with the session if somebody listens.
            context.set_tlsext_servername_callback(lambda connection: None)
        context.set_session_id(b"becket")  # without one, resumption and client certificates clash
        if not settings.tickets:
            context.set_options(lib.OP_NO_TICKET)
            context.set_session_cache_mode(lib.SESS_CACHE_OFF)
        return context

    @classmethod
    def _load(cls, lib: Any, context: Any, chain: bytes, key: bytes) -> None:
        try:
            with _as_file(chain) as path:
                context.use_certificate_chain_file(path)
        except lib.Error as error:
            raise _error("PEM_LIB", f"certificate: {cls._words(error)}", "PEM") from error
        try:
            with _as_file(key) as path:
                context.use_privatekey_file(path)
            context.check_privatekey()
        except lib.Error as error:
            words = cls._words(error)
            # OpenSSL keeps a certificate for each kind of key, and misses the one for this kind.
            if re.search("mismatch|no certificate assigned", words):
                raise _misfit() from error
            raise _error("PEM_LIB", f"key: {words}", "PEM") from error

    @staticmethod
    def _agree(context: Any, server: bool, protocols: list[bytes]) -> None:
        def choose(_connection: Any, offered: list[bytes]) -> bytes:
            for name in protocols:
                if name in offered:
                    return name
            raise exception_of(ALPN, "no application protocol in common")  # OpenSSL: an alert

        if server:
            context.set_alpn_select_callback(choose)
        else:
            context.set_alpn_protos(protocols)

    @staticmethod
    def _verify(connection: Any, certificate: Any, problem: int, depth: int, good: int) -> bool:
        verdict = connection.get_app_data()
        if not good:
            verdict.problem = problem
        elif depth == 0 and verdict.name is not None:
            _check_name(certificate.to_cryptography(), verdict.name)  # raised by do_handshake()
        return bool(good)

    @staticmethod
    def _words(error: Exception) -> str:
        """What OpenSSL said, the cause first."""
        queue = error.args[0] if error.args else None
        words = [str(entry[-1]) for entry in queue] if isinstance(queue, list) else [str(error)]
        return ": ".join(words) or type(error).__name__

    def _fail(self, error: Exception) -> NoReturn:
        if isinstance(error, ssl.SSLError):
            raise error  # from a callback
        raise self._translate(error) from error

    def _translate(self, error: Exception) -> ssl.SSLError:
        """From what pyOpenSSL raises to what ssl would."""
        queue = error.args[0] if error.args else None
        if not isinstance(error, self._ssl.Error) or not isinstance(queue, list) or not queue:
            return exception_of(ETLS, f"{type(error).__name__}: {error}")
        # What it means to TLS: not the cipher's failure below it, nor "record layer failure" above.
        library, _, words = next((e for e in queue if e[0].startswith("SSL")), queue[-1])
        reason = _reason(words)
        if reason == "CERTIFICATE_VERIFY_FAILED":
            problem = self._verdict.problem
            words = _PROBLEMS.get(problem or 0, f"error {problem}") if problem else "untrusted"
            return _distrust(words, problem or _UNSPECIFIED)
        return _error(reason, words, _reason(library).split("_", maxsplit=1)[0])

    def _check_peer(self) -> None:
        """The server's name; again for our own contexts, since who resumes verifies nothing."""
        connection, name = self._connection, self.server_hostname
        verifies = connection.get_verify_mode() & self._ssl.VERIFY_PEER
        if self.server_side or name is None or not verifies:
            return
        certificate = self._certificate()
        try:
            if certificate is None:
                raise _distrust("the server showed no certificate", _UNSPECIFIED)
            _check_name(certificate, name)
        except ssl.SSLError:
            self._mute = True  # with our last flight unsent, no handshake succeeds for the peer
            raise

    def handshake(self) -> bool:
        try:
            self._connection.do_handshake()
        except self._ssl.WantReadError:
            return False
        except Exception as error:  # a callback of the context's owner may raise anything
            self._fail(error)
        self._check_peer()
        return True

    def receive(self, data: bytes) -> None:
        if data and not self._over:
            self._connection.bio_write(data)

    def read(self, size: int) -> bytes | None:
        try:
            data: bytes = self._connection.recv(size)
        except self._ssl.WantReadError:
            data = b""
        except self._ssl.ZeroReturnError:
            self._over = True
            return b""
        except Exception as error:
            self._fail(error)
        if self._connection.total_renegotiations():  # where set_options() is not there
            raise exception_of(RENEGOTIATION, "the peer renegotiated")
        return data or None

    def write(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except Exception as error:
            self._fail(error)

    def take(self) -> bytes:
        pieces = []
        with contextlib.suppress(self._ssl.WantReadError):
            while True:
                pieces.append(self._connection.bio_read(1 << 16))
        return b"" if self._mute else b"".join(pieces)

    def end(self) -> None:
        try:
            self._connection.shutdown()
        except self._ssl.ZeroReturnError:
            pass
        except Exception as error:
            self._fail(error)

    def _certificate(self) -> Any:
        """The peer's, as cryptography has them; None: none."""
        certificate = self._connection.get_peer_certificate()
        return None if certificate is None else certificate.to_cryptography()

    def query(self, what: str) -> Any:
        connection = self._connection
        if what == "version":
            return connection.get_protocol_version_name() if connection.get_cipher_name() else None
        if what == "cipher":
            name = connection.get_cipher_name()
            return name and (name, connection.get_cipher_version(), connection.get_cipher_bits())
        if what == "alpn":
            return connection.get_alpn_proto_negotiated().decode("ascii", "replace") or None
        if what == "server_name":
            name = connection.get_servername()
            return None if name is None else name.decode("ascii", "replace")
        if what == "peercert_der":
            certificate = self._certificate()
            if certificate is None:
                return None
            serialization = _library("cryptography.hazmat.primitives.serialization", self.name)
            return certificate.public_bytes(serialization.Encoding.DER)
        if what == "peercert":
            certificate = self._certificate()
            if certificate is None:
                return None
            return _describe(certificate) if connection.get_verify_mode() else {}
        if what == "ssl_object":
            return connection
        return None


# ---- tlslite-ng ----------------------------------------------------------------------------------

_CLOSE_NOTIFY, _UNEXPECTED_MESSAGE, _HANDSHAKE_FAILURE = 0, 10, 40
# In bytes: two chains of certificates as long as OpenSSL would take. What comes with the last of it
# in one piece counts too.
_HANDSHAKE_LIMIT = 1 << 20
_BAD_CERTIFICATE, _CERTIFICATE_EXPIRED, _UNKNOWN_CA, _INTERNAL_ERROR = 42, 45, 48, 80
_CERTIFICATE_REQUIRED = 116


class _Wire:
    """What tlslite takes for its socket: two buffers."""

    def __init__(self) -> None:
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.ended = False

    def recv(self, size: int) -> bytes:
        if not self.incoming:
            raise BlockingIOError(errno.EWOULDBLOCK, "nothing was received")
        data = bytes(self.incoming[:size])
        del self.incoming[:size]
        return data

    def send(self, data: bytes) -> int:
        if not self.ended:  # tlslite would answer the peer's close_notify once more
            self.outgoing += data
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.send(data)

    def close(self) -> None:
        """tlslite closes its socket when it is done; there is none."""


class _Trust:
    """Verifies chains with cryptography, for a library that does not: its name checks apart."""

    def __init__(self, ca: bytes) -> None:
        try:
            self._x509: Any = importlib.import_module("cryptography.x509")
            self._lib: Any = importlib.import_module("cryptography.x509.verification")
            policy = self._lib.ExtensionPolicy.permit_all
        except (ImportError, AttributeError) as error:
            raise ValueError(
                "verify: tlslite verifies no certificates by itself: pip install becket[tlslite]"
                " (it needs cryptography 45 or later)"
            ) from error
        if ca:
            _certificates(ca, "ca")
            try:
                roots = self._x509.load_pem_x509_certificates(ca)
            except ValueError as error:
                raise ValueError(f"ca: {error}") from error
        else:
            with warnings.catch_warnings():  # of old certificates: nobody here can mend them
                warnings.simplefilter("ignore")
                roots = list(self._system())
        if not roots:
            raise ValueError("ca: the system has no list of authorities")
        self._store = self._lib.Store(roots)
        x509, either = self._x509, self._lib.Criticality.AGNOSTIC
        # The rules of the web (the default) want extensions that the certificates of one's own
        # authorities often lack. These are those of RFC 5280, as OpenSSL has them; constraints of
        # names and of length, and unknown critical extensions, are seen to in any case.
        self._authority = (
            policy()
            .require_present(x509.BasicConstraints, either, None)
            .may_be_present(x509.KeyUsage, either, self._may_sign)
        )
        self._client = policy().may_be_present(x509.ExtendedKeyUsage, either, self._may_serve)
        self._server = self._client.require_present(x509.SubjectAlternativeName, either, None)

    def _system(self) -> Iterator[Any]:
        """The authorities that the system trusts."""
        paths = ssl.get_default_verify_paths()
        files = [paths.cafile or ""]
        if paths.capath and not paths.cafile:
            # One file each, named by hash; a bundle may lie among them.
            files = [
                entry.path
                for entry in os.scandir(paths.capath)
                if re.fullmatch(r"[0-9a-f]{8}\.\d+", entry.name)
            ]
        for file in filter(None, files):
            with open(file, "rb") as stream:
                for block in _PEM.finditer(stream.read()):
                    with contextlib.suppress(ValueError):  # an old one that nobody can read
                        yield self._x509.load_pem_x509_certificate(block[0])

    @staticmethod
    def _may_sign(_policy: Any, _certificate: Any, usage: Any) -> None:
        if usage is not None and not usage.key_cert_sign:
            raise ValueError("an issuer's key is not for signing certificates")

    def _may_serve(self, policy: Any, _certificate: Any, usage: Any) -> None:
        any_use = self._x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
        if usage is not None and policy.extended_key_usage not in usage and any_use not in usage:
            raise ValueError("unsuitable certificate purpose")

    def verify(self, chain: list[bytes], server: bool, server_hostname: str | None) -> Any:
        """SSLCertVerificationError, unless the chain (DER, leaf first) is good.

        server: it is a server's; server_hostname: whose. Returns the leaf, as cryptography has it.
        """
        x509 = self._x509
        builder = self._lib.PolicyBuilder().store(self._store)
        try:
            leaf, *others = [x509.load_der_x509_certificate(der) for der in chain]
            if server:
                builder = builder.extension_policies(
                    ca_policy=self._authority, ee_policy=self._server
                )
                # Whose it is comes afterwards, for an error of its own.
                verifier = builder.build_server_verifier(self._any_name(leaf))
            else:
                builder = builder.extension_policies(
                    ca_policy=self._authority, ee_policy=self._client
                )
                verifier = builder.build_client_verifier()
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise _distrust(str(error), _UNSPECIFIED) from error
        try:
            verifier.verify(leaf, others)
        except self._lib.VerificationError as error:
            words = str(error)
            code = _UNSPECIFIED
            if "not valid at validation time" in words:
                words, code = "certificate has expired or is not yet valid", _EXPIRED
            elif "candidates exhausted" in words:
                code = _NO_ISSUER
            raise _distrust(words, code) from error
        if server and server_hostname is not None:
            _check_name(leaf, server_hostname)
        return leaf

    def _any_name(self, leaf: Any) -> Any:
        """A name that the certificate has."""
        names = leaf.extensions.get_extension_for_class(self._x509.SubjectAlternativeName).value
        for name in names.get_values_for_type(self._x509.DNSName):
            return self._lib.DNSName(name.replace("*.", "any.", 1))
        for address in names.get_values_for_type(self._x509.IPAddress):
            return self._lib.IPAddress(address)
        raise ValueError("the certificate names no host")


@dataclass(frozen=True)
class _TlsliteContext:
    chain: Any
    key: Any
    handshake: Any  # tlslite's HandshakeSettings
    verify: ssl.VerifyMode
    trust: _Trust | None
    alpn: list[bytearray] | None


class TlsliteEngine(Engine):
    """tlslite-ng. Contexts: those of make_context() only.

    Certificates are verified by cryptography; a refusal comes when the handshake is over on our
    side, before any data. With the peer's close_notify tlslite ends both directions: what is
    written after that raises.
    """

    name = "tlslite"

    def __init__(
        self, context: _TlsliteContext, *, server_side: bool, server_hostname: str | None
    ) -> None:
        super().__init__(context, server_side=server_side, server_hostname=server_hostname)
        self._api = _library("tlslite.api", self.name)
        self._constants = _library("tlslite.constants", self.name)
        self._context = context
        self._asked = None if server_side else _asked_name(server_hostname)
        self._wire = _Wire()
        self._connection = self._api.TLSConnection(self._wire)
        self._steps: Iterator[Any] | None = None
        self._reading: Iterator[Any] | None = None
        self._plain = bytearray()
        self._over = False
        self._head: bytearray | None = bytearray()  # of the first record, until it is known
        self._heard = 0  # bytes of the handshake
        self._facts: dict[str, Any] = {}

    @classmethod
    def open(cls) -> None:
        _library("tlslite.api", cls.name)

    @classmethod
    def version(cls) -> str:
        return f"tlslite-ng {_library('tlslite.api', cls.name).__version__}"

    @classmethod
    def serves(cls, context: object) -> bool:
        return isinstance(context, _TlsliteContext)

    @classmethod
    def make_context(cls, settings: Settings) -> _TlsliteContext:
        api = _library("tlslite.api", cls.name)
        chain = key = None
        credentials = _credentials(settings)
        if credentials is not None:
            chain, key = cls._load(api, *credentials)
        options = api.HandshakeSettings()
        lowest = max((3, 1), divmod(max(0, int(settings.minimum)), 256))
        highest = (3, 4)
        if settings.maximum not in (None, ssl.TLSVersion.MAXIMUM_SUPPORTED):
            highest = min(highest, divmod(int(settings.maximum or 0), 256))
        if lowest > highest:
            raise ValueError("minimum: it is above the maximum, or above what tlslite has")
        options.minVersion, options.maxVersion = lowest, highest
        options.versions = [v for v in options.versions if lowest <= v <= highest]
        # What OpenSSL refuses by default is refused here too.
        options.minKeySize = 2048
        options.cipherNames = ["aes256gcm", "aes128gcm", "chacha20-poly1305"]
        options.keyExchangeNames = ["ecdhe_ecdsa", "ecdhe_rsa", "dhe_rsa"]
        options.rsaSigHashes = ["sha512", "sha384", "sha256"]
        options.ecdsaSigHashes = ["sha512", "sha384", "sha256"]
        options.dsaSigHashes = []
        options.eccCurves = ["x25519", "secp256r1", "secp384r1", "secp521r1"]
        options.keyShares = ["x25519", "secp256r1"]
        options.use_heartbeat_extension = False
        # It compresses a client's certificate for servers that have not asked for that.
        options.certificate_compression_send = options.certificate_compression_receive = []
        if settings.server_side and settings.tickets:
            options.ticketKeys = [bytearray(os.urandom(32))]
        verify = settings.verify
        return _TlsliteContext(
            chain=chain,
            key=key,
            handshake=options.validate(),
            verify=verify,
            trust=None if verify == ssl.CERT_NONE else _Trust(settings.ca),
            alpn=[bytearray(name.encode("ascii")) for name in settings.alpn] or None,
        )

    @staticmethod
    def _load(api: Any, pem: bytes, key_pem: bytes) -> tuple[Any, Any]:
        chain = api.X509CertChain()
        try:
            chain.parsePemList(pem.decode("ascii"))
        except Exception as error:  # its parser raises whatever it stumbles over
            raise ValueError(f"certificate: tlslite cannot read it: {error!r}") from error
        try:
            key = api.parsePEMKey(key_pem.decode("ascii"), private=True, implementations=["python"])
        except Exception as error:
            raise ValueError(f"key: tlslite cannot read it: {error!r}") from error
        public = chain.getEndEntityPublicKey()
        try:
            signature = key.hashAndSign(b"becket", hAlg="sha256")
            fits = type(key) is type(public) and public.hashAndVerify(
                signature, b"becket", hAlg="sha256"
            )
        except Exception:
            fits = False
        if not fits:
            raise _misfit()
        return chain, key

    def _start(self) -> Iterator[Any]:
        context = self._context
        steps: Iterator[Any]
        if self.server_side:
            steps = self._connection.handshakeServerAsync(
                certChain=context.chain,
                privateKey=context.key,
                reqCert=context.verify != ssl.CERT_NONE,
                settings=context.handshake,
                alpn=context.alpn,
            )
        else:
            steps = self._connection.handshakeClientCert(
                certChain=context.chain,
                privateKey=context.key,
                settings=context.handshake,
                serverName=self._asked,
                alpn=context.alpn,
                async_=True,
            )
        return steps

    def _translate(self, error: Exception) -> ssl.SSLError:
        """From what tlslite raises to what ssl would."""
        api = self._api
        if not isinstance(error, api.TLSAlert):
            # Its parsers raise SyntaxError and others for what they cannot read.
            kind = PROTOCOL if isinstance(error, (SyntaxError, IndexError)) else ETLS
            words = ": ".join([type(error).__name__, *map(str, error.args)])
            return exception_of(kind, words)
        number = error.description
        name = str(self._constants.AlertDescription.toStr(number))
        if isinstance(error, api.TLSRemoteAlert):
            # As OpenSSL names what the peer says: by the version that brought it.
            age = "SSLV3" if number in {10, 20, 30, *range(40, 48)} else "TLSV1"
            age = "TLSV13" if number in (109, _CERTIFICATE_REQUIRED) else age
            words = name.replace("_", " ")
            return _error(f"{age}_ALERT_{name.upper()}", f"{age.lower()} alert {words}")
        words = getattr(error, "message", None) or name.replace("_", " ")
        if number == _CERTIFICATE_REQUIRED:
            name = "peer_did_not_return_a_certificate"
        return _error(name.upper(), str(words).splitlines()[-1])

    def _refuse(self, alert: int, error: ssl.SSLError) -> NoReturn:
        """Tell the peer by an alert, then raise."""
        with contextlib.suppress(self._api.TLSError):
            for _ in self._connection._sendError(alert):
                pass
        raise error

    def _check_peer(self) -> None:
        context, session = self._context, self._connection.session
        found = session.clientCertChain if self.server_side else session.serverCertChain
        chain = [bytes(x509.bytes) for x509 in found.x509List] if found else []
        self._facts["peercert_der"] = chain[0] if chain else None
        self._facts["peercert"] = {} if chain else None
        if context.trust is None:
            return
        if not chain:
            if self.server_side and context.verify == ssl.CERT_OPTIONAL:
                return
            alert = _CERTIFICATE_REQUIRED
            if self._connection.version < (3, 4):
                alert = _HANDSHAKE_FAILURE
            words = "peer did not return a certificate"
            self._refuse(alert, _error("PEER_DID_NOT_RETURN_A_CERTIFICATE", words))
        try:
            leaf = context.trust.verify(chain, not self.server_side, self.server_hostname)
        except ssl.SSLCertVerificationError as error:
            alert = {
                _WRONG_HOST: _BAD_CERTIFICATE,
                _WRONG_ADDRESS: _BAD_CERTIFICATE,
                _EXPIRED: _CERTIFICATE_EXPIRED,
            }.get(error.verify_code, _UNKNOWN_CA)
            self._refuse(alert, error)
        self._facts["peercert"] = _describe(leaf)

    def _note(self) -> None:
        """Keep what query() is asked: tlslite forgets it when a connection is closed."""
        connection, session = self._connection, self._connection.session
        version = str(connection.getVersionName()).replace("TLS ", "TLSv")
        cipher = str(self._constants.CipherSuite.ietfNames.get(session.cipherSuite, "unknown"))
        name = session.serverName if self.server_side else self._asked
        alpn = bytes(session.appProto or b"").decode("ascii", "replace")
        self._facts |= {
            "version": version,
            "cipher": (cipher, version, 128 if "AES_128" in cipher else 256),
            "alpn": alpn or None,
            "server_name": name or None,
            # Its servers do not tell in TLS 1.3.
            "resumed": None if self.server_side and version == "TLSv1.3" else connection.resumed,
        }

    def _look_over(self) -> None:
        """See that it is a hello that begins, and not without end: tlslite would wait for it."""
        head = bytes(self._head or b"")
        hello = 1 if self.server_side else 2
        good = head[:1] in (b"", b"\x15", b"\x16") and head[1:2] in (b"", b"\x03")
        if head[:1] == b"\x16" and len(head) > 5:
            good = good and head[5] == hello
        if not good:
            self._give_up("WRONG_VERSION_NUMBER", "wrong version number")
        if len(head) > 5:
            self._wire.incoming += head
            self._head = None
        if self._heard > _HANDSHAKE_LIMIT:
            words = "the handshake is too long"
            self._refuse(_UNEXPECTED_MESSAGE, _error("EXCESSIVE_MESSAGE_SIZE", words))

    def _give_up(self, reason: str, words: str) -> NoReturn:
        """Before tlslite has seen anything."""
        self._wire.outgoing += self._alert(_UNEXPECTED_MESSAGE)
        raise _error(reason, words)

    @staticmethod
    def _alert(number: int) -> bytes:
        """A fatal alert, unsealed."""
        return bytes((21, 3, 1, 0, 2, 2, number))

    def handshake(self) -> bool:
        self._look_over()
        try:
            if self._steps is None:
                self._steps = self._start()
            for step in self._steps:
                if step == 0:
                    return False
        except Exception as error:
            if not isinstance(error, self._api.TLSAlert):
                self._wire.outgoing += self._alert(_INTERNAL_ERROR)  # it has sent none
            raise self._translate(error) from error
        self._note()
        self._check_peer()
        return True

    def receive(self, data: bytes) -> None:
        self._heard += len(data)
        if self._over:
            return
        if self._head is not None:
            self._head += data
        else:
            self._wire.incoming += data

    def read(self, size: int) -> bytes | None:
        try:
            while not self._plain and not self._over:
                if self._reading is None:
                    self._reading = iter(self._connection.readAsync())
                step = next(self._reading)
                if isinstance(step, bytes):
                    self._reading = None
                    self._plain += step
                    self._over = not step
                elif step == 0:
                    return None
        except Exception as error:
            raise self._translate(error) from error
        data = bytes(self._plain[:size])
        del self._plain[:size]
        return data

    def write(self, data: bytes) -> None:
        try:
            # In pieces, since tlslite copies what is left of its argument for every record.
            for start in range(0, len(data), 1 << 16):
                for _ in self._connection.writeAsync(data[start : start + (1 << 16)]):
                    pass
        except Exception as error:
            raise self._translate(error) from error

    def take(self) -> bytes:
        data = bytes(self._wire.outgoing)
        self._wire.outgoing.clear()
        return data

    def end(self) -> None:
        if self._connection.closed:
            return  # it has answered the peer's close_notify
        # Not closeAsync(): that ends reading too, or throws away what comes.
        messages = _library("tlslite.messages", self.name)
        alert = messages.Alert().create(_CLOSE_NOTIFY, 1)
        try:
            for _ in self._connection._sendMsg(alert):
                pass
        except Exception as error:
            raise self._translate(error) from error
        self._wire.ended = True

    def query(self, what: str) -> Any:
        return self._connection if what == "ssl_object" else self._facts.get(what)


# ---- Finding engines -----------------------------------------------------------------------------

_known: dict[str, type[Engine]] = {
    engine.name: engine for engine in (MemoryBIOEngine, PyOpenSSLEngine, TlsliteEngine)
}


def register(engine: type[Engine]) -> None:
    """Make an engine known by its name, for this process. ValueError: another has the name."""
    if _known.setdefault(engine.name, engine) is not engine:
        raise ValueError(f"TLS engine {engine.name!r} exists already")


def _entries() -> Iterable[metadata.EntryPoint]:
    from importlib import metadata  # takes as long to import as all the rest of becket

    return metadata.entry_points(group=GROUP)


def _load(entry: metadata.EntryPoint) -> type[Engine]:
    engine = entry.load()
    if not (isinstance(engine, type) and issubclass(engine, Engine)):
        raise TypeError(f"TLS engine {entry.name!r}: {entry.value} is not an Engine")
    return engine


def engines() -> dict[str, type[Engine]]:
    """The engines in Python by their names, whether their libraries are here or not.

    Those of other packages whose modules cannot be imported are left out; find() tells why.
    """
    found = dict(_known)
    for entry in _entries():
        if entry.name not in found:
            with contextlib.suppress(ImportError, AttributeError, TypeError):
                found[entry.name] = _load(entry)
    return found


def find(name: str) -> type[Engine]:
    """The engine of that name.

    ValueError: there is none; it lists what there is. ImportError: its library is not here.
    """
    engine = _known.get(name)
    if engine is None:
        for entry in _entries():
            if entry.name == name:
                engine = _load(entry)
                break
        else:
            names = ", ".join(sorted({*_known, *(entry.name for entry in _entries())}))
            raise ValueError(f"TLS engine {name!r} does not exist: there are {names}")
    engine.open()
    return engine


def core_context(
    engine: type[Engine],
    server_side: bool,
    certificate: bytes,
    key: bytes,
    ca: bytes,
    verify: int,
    alpn: Iterable[str],
    minimum: int,
    maximum: int,
    tickets: bool,
) -> Any:
    """A context for an endpoint, ``tls://…?engine=NAME``. The numbers are as in becket-tls.h."""
    engine.open()
    settings = Settings(
        server_side=bool(server_side),
        certificate=certificate,
        key=key,
        ca=ca,
        verify=ssl.VerifyMode(verify),
        alpn=tuple(alpn),
        minimum=ssl.TLSVersion(minimum),
        maximum=ssl.TLSVersion(maximum) if maximum else None,
        tickets=bool(tickets),
    )
    try:
        for der in _certificates(certificate, "cert") if certificate else ():
            # Libraries that cannot read it say that the key does not fit.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
        return engine.make_context(settings)
    except (ValueError, ssl.SSLError) as error:
        # The first word names the option, as with the engines in C.
        if (getattr(error, "reason", None) or "").endswith("_MISMATCH"):
            raise ValueError("key: it does not fit the certificate") from error
        words = re.sub(r"^\[[^]]*\] ", "", str(error))
        words = re.sub(r"^certificate:", "cert:", words)
        named = re.match(r"(cert|key|ca|alpn|min|max|verify|tickets): ", words)
        raise ValueError(words if named else f"cert: {words}") from error


def engine_of(context: object) -> type[Engine] | None:
    """The engine for a context that somebody brought; None: no engine knows it."""
    for engine in _known.values():
        if engine.serves(context):
            return engine
    return next((engine for engine in engines().values() if engine.serves(context)), None)
