"""Receiving mail with a handler: ``Server``, ``SMTP`` and ``LMTP``.

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            print(envelope.mail_from, envelope.rcpt_tos, envelope.content)
            return "250 OK"

    becket.smtp.Server(Handler(), "tcp://:2525").run()

A handler has the methods that it cares about, with aiosmtpd's names and arguments; each may be a
plain function or a coroutine function. Commands, data, limits and replies are the core's, in C.
"""

from __future__ import annotations

import asyncio
import binascii
import inspect
import logging
import os
import ssl
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import becket
from becket import _becket, served
from becket.server import LIMITS
from becket.smtp.types import (
    MISSING,
    AuthCallbackType,
    AuthenticatorType,
    AuthResult,
    LoginPassword,
    ProxyData,
)

log = logging.getLogger("mail.log")

_F = TypeVar("_F", bound=Callable[..., Any])

DATA_SIZE_DEFAULT = 2**25
CALL_LIMIT_DEFAULT = 20
NO_LIMIT = 2**60  # bytes; said to clients, who need to hear some number

# As BK_SMTP_… in becket-smtp.h.
_NO_TRACE, _LMTP, _MAKE_WHOLE, _AUTH_IN_CLEAR = 1, 2, 4, 8
_AUTH_REQUIRED, _TLS_REQUIRED, _NO_UTF8 = 16, 32, 128
# As ASKS_… in smtp_handler.h.
_ASKS_HELO, _ASKS_AUTH, _ASKS_VRFY, _ASKS_COMMAND, _ASKS_COUNT = 1, 2, 4, 8, 16
_ASKS_CONNECT = 32

SYNTAX = {
    "AUTH": "AUTH <mechanism>",
    "DATA": "DATA",
    "EHLO": "EHLO hostname",
    "HELO": "HELO hostname",
    "HELP": "HELP [command]",
    "MAIL": "MAIL FROM: <address> [SP <mail-parameters>]",
    "NOOP": "NOOP [ignored]",
    "QUIT": "QUIT",
    "RCPT": "RCPT TO: <address> [SP <mail-parameters>]",
    "RSET": "RSET",
    "VRFY": "VRFY <address>",
}


def syntax(text: str, extended: str | None = None, when: str | None = None) -> Callable[[_F], _F]:
    """A decorator for ``smtp_…`` methods: what HELP says of the command. *when* names an attribute
    without which HELP does not tell of it."""

    def decorate(function: _F) -> _F:
        function.__smtp_syntax__ = text + (extended or "")  # type: ignore[attr-defined]
        function.__smtp_syntax_when__ = when  # type: ignore[attr-defined]
        return function

    return decorate


def auth_mechanism(actual_name: str) -> Callable[[_F], _F]:
    """A decorator for ``auth_…`` methods: the mechanism's name, where a method cannot have it.

    ValueError: no mechanism can be called so.
    """
    name = actual_name.upper()
    if not name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        raise ValueError(f"Invalid AUTH mechanism name: {actual_name}")

    def decorate(function: _F) -> _F:
        function.__auth_mechanism_name__ = name  # type: ignore[attr-defined]
        return function

    return decorate


async def _join_later(value: Awaitable[list[str]]) -> str:
    return _join(await value)


def _join(responses: list[str]) -> str:
    """A reply of many lines, of which each has its code, in the core's form."""
    for line in responses:
        if not line.startswith("250"):
            return line
    return "250 " + "\n".join(line[4:] for line in responses)


def _mechanisms(server: SMTP, handler: Any, excluded: Iterable[str]) -> dict[str, Any]:
    """AUTH mechanisms by name; the handler's go before ours."""
    found: dict[str, Any] = {}
    for owner in (server, handler):
        for name in dir(owner):
            if name.startswith("auth_"):
                method = getattr(owner, name)
                usual = name.removeprefix("auth_").replace("__", "-")
                found[getattr(method, "__auth_mechanism_name__", usual)] = method
    return {name: method for name, method in found.items() if name not in set(excluded)}


class _Early(asyncio.Protocol):
    """What comes under TLS before start_tls() has returned, as the first command may be in the
    client's last flight: it waits, as a session tells of the TLS of the transport it has."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ended = False
        self._lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self._data += data

    def eof_received(self) -> None:
        self._ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.append(exc)

    def hand_over(self, protocol: SMTP, transport: asyncio.Transport) -> None:
        """To the protocol that is *transport*'s from now on."""
        transport.set_protocol(protocol)
        if self._data:
            protocol.data_received(bytes(self._data))
        if self._ended and not protocol.eof_received():
            transport.close()
        for exc in self._lost:
            protocol.connection_lost(exc)


class SMTP(_becket.SmtpConnection, asyncio.Protocol):
    """A client's connection, and what a handler's methods get as ``server``.

    As aiosmtpd's class of that name it is an asyncio protocol, for ``loop.create_server()`` of any
    loop, and may be derived from: for commands (``smtp_PING``) and for AUTH mechanisms
    (``auth_NAME``). The core's own commands are not replaced by methods; handlers decide on them.
    ``Server`` makes it without a transport of asyncio's, which is faster.

    Sizes are in bytes, times in seconds. What is not aiosmtpd's: *lmtp*; *make_whole*, which makes
    a CR or LF that stands alone in a message a CRLF, where it is refused otherwise; *users*, a file
    of those who may log in, or a ``_becket.SmtpUsers`` (PLAIN, LOGIN, SCRAM-SHA-256; for ``Server``
    only); *accept*, domains that mail is taken for from those who have not; *max_…*, which
    are limits of the core: recipients of a message, refusals, and commands without mail, until the
    connection is closed, messages of a session, and how long that may last.

    TypeError and ValueError name the argument that is wrong.
    """

    AuthLoginUsernameChallenge = "User Name\x00"
    AuthLoginPasswordChallenge = "Password\x00"

    def __init__(
        self,
        handler: Any,
        *,
        data_size_limit: int | None = DATA_SIZE_DEFAULT,
        enable_SMTPUTF8: bool = False,
        decode_data: bool = False,
        hostname: str | None = None,
        ident: str | None = None,
        tls_context: ssl.SSLContext | None = None,
        require_starttls: bool = False,
        timeout: float = 300,
        auth_required: bool = False,
        auth_require_tls: bool = True,
        auth_exclude_mechanism: Iterable[str] | None = None,
        auth_callback: AuthCallbackType | None = None,
        command_call_limit: int | dict[str, int] | None = None,
        authenticator: AuthenticatorType | None = None,
        proxy_protocol_timeout: float | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        lmtp: bool = False,
        make_whole: bool = False,
        users: _becket.SmtpUsers | str | os.PathLike[str] | None = None,
        accept: Iterable[str] | None = None,
        **limits: int,
    ) -> None:
        if users is not None and not isinstance(users, _becket.SmtpUsers):
            users = _becket.SmtpUsers(users)
        if users is not None and (authenticator is not None or auth_callback is not None):
            raise TypeError("users: there is an authenticator, too; one of them can decide")
        if proxy_protocol_timeout is not None:
            raise ValueError(
                "proxy_protocol_timeout: becket.smtp.Server reads PROXY headers at its endpoints, "
                "such as tcp://:25?proxy=require&proxy_from=10.0.0.0/8"
            )
        self.event_handler = handler
        self.lmtp = lmtp
        self.users = users
        self.lmtp = lmtp
        self.hostname = hostname or served.own_hostname()
        self.__ident__ = ident or f"becket {becket.__version__}"
        self.data_size_limit = data_size_limit
        self.enable_SMTPUTF8 = enable_SMTPUTF8
        self.tls_context = tls_context
        self.require_starttls = bool(require_starttls)
        self._decode_data = decode_data
        self._auth_require_tls = auth_require_tls
        self._auth_required = auth_required
        self._authenticator = authenticator
        self._auth_callback = auth_callback
        self._excluded = frozenset(auth_exclude_mechanism or ())
        self._call_limit = self._check_call_limit(command_call_limit)
        self._hooks = {
            name.removeprefix("handle_"): getattr(handler, name)
            for name in dir(handler)
            if name.startswith("handle_")
        }
        self._check_methods()
        self._own_auth = self._find_own_auth()
        flags = (
            _NO_TRACE
            | (_LMTP if lmtp else 0)
            | (_MAKE_WHOLE if make_whole else 0)
            | (0 if auth_require_tls else _AUTH_IN_CLEAR)
            | (_AUTH_REQUIRED if auth_required else 0)
            | (_TLS_REQUIRED if require_starttls else 0)
            | (0 if enable_SMTPUTF8 else _NO_UTF8)
        )
        settings: dict[str, Any] = {
            **limits,
            "hostname": self.hostname,
            "software": self.__ident__,
            "flags": flags,
            "max_message": data_size_limit or NO_LIMIT,
            "timeout": max(1, round(timeout)),
        }
        self._rules = _becket.SmtpRules(
            settings,
            self._hooks.get("DATA") or self._legacy_hook(),
            self._hooks.get("MAIL"),
            self._hooks.get("RCPT"),
            self._asks(),
            decode_data,
            enable_SMTPUTF8,
            users,
            accept,
        )
        self._set_rules(self._rules, loop)

    # ---- What the handler has ----

    @staticmethod
    def _check_call_limit(limit: int | dict[str, int] | None) -> dict[str, int] | None:
        if limit is None:
            return None
        if isinstance(limit, int):
            return {"*": limit}
        if not isinstance(limit, dict):
            raise TypeError("command_call_limit must be int or Dict[str, int]")
        if not all(isinstance(value, int) for value in limit.values()):
            raise TypeError("All command_call_limit values must be int")
        return {"*": CALL_LIMIT_DEFAULT, **limit}

    def _check_methods(self) -> None:
        self._commands = {
            name.removeprefix("smtp_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("smtp_")
        }
        for name in self._commands:
            if name in SYNTAX or name in ("STARTTLS", "BDAT", "LHLO"):
                raise TypeError(
                    f"smtp_{name}: the command is the core's; handle_{name} of a handler decides "
                    "on it"
                )
        ehlo = self._hooks.get("EHLO")
        self._ehlo_arguments = 5 if ehlo is None else len(inspect.signature(ehlo).parameters)
        if self._ehlo_arguments not in (4, 5):
            raise RuntimeError(
                "Unsupported EHLO Hook: its arguments are server, session, "
                "envelope, hostname, responses"
            )

    def _find_own_auth(self) -> dict[str, Any] | None:
        """Mechanisms, where any is not the core's."""
        found = _mechanisms(self, self.event_handler, self._excluded)
        builtin = {"PLAIN": SMTP.auth_PLAIN, "LOGIN": SMTP.auth_LOGIN}
        ours = all(
            getattr(method, "__func__", None) is builtin.get(name) for name, method in found.items()
        )
        return None if ours and "AUTH" not in self._hooks else found

    def _has_auth(self) -> bool:
        return (
            self._own_auth is not None
            or self._authenticator is not None
            or self._auth_callback is not None
            or self.users is not None
        )

    def _asks(self) -> int:
        hooks = self._hooks.keys()
        asks = _ASKS_CONNECT if {"CONNECT", "PROXY"} & hooks else 0
        if {"EHLO", "HELO", "STARTTLS"} & hooks or (self._has_auth() and self.users is None):
            asks |= _ASKS_HELO
        if self._has_auth() and self._own_auth is None:
            asks |= _ASKS_AUTH
        if "VRFY" in hooks:
            asks |= _ASKS_VRFY
        if {"RSET", "NOOP", "QUIT"} & hooks or self._commands or self._own_auth is not None:
            asks |= _ASKS_COMMAND
        return asks | (_ASKS_COUNT if self._call_limit is not None else 0)

    def _legacy_hook(self) -> Callable[..., Any] | None:
        """aiosmtpd's oldest interface, which was smtpd's."""
        process: Any = getattr(self.event_handler, "process_message", None)
        if process is None:
            return None

        def handle(server: SMTP, session: Any, envelope: Any) -> Any:
            return process(session.peer, envelope.mail_from, envelope.rcpt_tos, envelope.content)

        return handle

    # ---- Called by the core ----

    def _count(self, verb: str) -> str | None:
        assert self._call_limit is not None
        left: dict[str, int] = self.__dict__.setdefault("_left", {})
        left.setdefault(verb, self._call_limit.get(verb, self._call_limit["*"]))
        left[verb] -= 1
        return f"421 4.7.0 {verb} sent too many times" if left[verb] < 0 else None

    async def _connect(self) -> str | bytes | None:
        if self.session.proxy_data is not None:
            welcome = await self._hook("PROXY", True, self.session.proxy_data)
            if welcome is MISSING or not welcome:
                return "554 5.7.1 Access denied"
        status = await self._hook("CONNECT", None)
        return None if status is MISSING else status

    async def _hook(self, name: str, default: Any, *args: Any) -> Any:
        """What handle_NAME says; without one, the *default*."""
        hook = self._hooks.get(name)
        if hook is None:
            return default
        found = hook(self, self.session, self.envelope, *args)
        return await found if inspect.isawaitable(found) else found

    def _helo(self, extended: bool, hostname: str, keywords: str) -> Any:
        session = self.session
        session.extended_smtp = extended
        if session.ssl is not None and not self._has_told_tls(session):
            return "554 5.7.0 Command refused due to lack of security"
        if not extended:
            hook = self._hooks.get("HELO")
            if hook is not None:
                return hook(self, session, self.envelope, hostname)
            session.host_name = hostname
            return f"250 {self.hostname}"
        return self._ehlo(session, hostname, self._offer(session, keywords.split("\n")))

    def _offer(self, session: _becket.Session, lines: list[str]) -> list[str]:
        """The lines of EHLO with the mechanisms that this handler knows."""
        if self.users is not None:
            return lines  # which know more than a handler: SCRAM
        lines = [line for line in lines if not line.startswith("AUTH ")]
        if self._has_auth() and (session.ssl is not None or not self._auth_require_tls):
            names = self._own_auth if self._own_auth is not None else {"LOGIN", "PLAIN"}
            offered = " ".join(sorted(set(names) - self._excluded))
            lines += [f"AUTH {offered}"] if offered else []
        return lines

    def _ehlo(self, session: _becket.Session, hostname: str, lines: list[str]) -> Any:
        hook = self._hooks.get("EHLO")
        if hook is None:
            session.host_name = hostname
            return "250 " + "\n".join(lines)
        responses = [f"250-{line}" for line in lines]
        if self._ehlo_arguments == 4:
            for line in responses:
                self.push(line)
            return hook(self, session, self.envelope, hostname)
        responses.append("250 HELP")
        found = hook(self, session, self.envelope, hostname, responses)
        return _join_later(found) if inspect.isawaitable(found) else _join(found)

    def _has_told_tls(self, session: _becket.Session) -> bool:
        """handle_STARTTLS, once for each session under TLS; False: it does not like it."""
        hook = self._hooks.get("STARTTLS")
        known = self.__dict__.get("_tls_told")
        if hook is None:
            return True
        if known is None or known[0] is not session:
            known = self._tls_told = (session, bool(hook(self, session, self.envelope)))
        return known[1]

    def _auth(self, mechanism: str, login: bytes, password: bytes, authorize: bytes) -> Any:
        if mechanism in self._excluded:
            return "504 5.5.4 Unrecognized authentication type"
        self._held: list[str | bytes] | None = []
        result = self._authenticate(mechanism, LoginPassword(login, password))
        if inspect.isawaitable(result):
            return self._auth_later(result)
        return self._auth_reply(result)

    async def _auth_later(self, result: Awaitable[Any]) -> str | bytes | None:
        return self._auth_reply(await result)

    def _authenticate(self, mechanism: str, auth_data: Any) -> Any:
        """What the program says to a login."""
        if self._authenticator is not None:
            return self._authenticator(self, self.session, self.envelope, mechanism, auth_data)
        if self._auth_callback is not None and self._auth_callback(mechanism, *auth_data):
            return AuthResult(success=True, auth_data=auth_data)
        return AuthResult(success=False, handled=False)

    def _auth_reply(self, result: Any) -> str | bytes | None:
        held, self._held = self._held or [], None
        if not isinstance(result, AuthResult):  # an older interface: an identity
            good = result is not None and result is not MISSING and result is not False
            result = AuthResult(success=good, handled=result is None, auth_data=result)
            if good:
                self.session.login_data = result.auth_data
        elif result.success:
            self.session.auth_data = result.auth_data
            self.session.login_data = getattr(result.auth_data, "login", None)
        if result.success:
            self.session.authenticated = True
            return result.message or "235 2.7.0 Authentication successful"
        for line in held[:-1]:
            super().push(line)
        if held:
            return held[-1]
        return result.message or "535 5.7.8 Authentication credentials invalid"

    def _verify(self, address: str) -> Any:
        return self._hooks["VRFY"](self, self.session, self.envelope, address)

    def _command(self, verb: str, arg: str) -> Any:
        if verb == "AUTH" and self._own_auth is not None:
            return self._run_auth(arg.split())
        if verb in self._commands:
            return self._run_command(self._commands[verb], arg or None)
        if verb == "HELP" and self._commands:
            return self._help(arg.upper())
        hook = self._hooks.get(verb) if verb in ("RSET", "NOOP", "QUIT") else None
        if hook is None:
            return None
        if verb == "RSET":
            self.envelope = _becket.Envelope()
        more = (arg or None,) if verb == "NOOP" else ()
        return hook(self, self.session, self.envelope, *more)

    async def _run_command(self, method: Callable[..., Any], arg: str | None) -> str | bytes:
        self._held = []
        try:
            await method(arg)
        finally:
            held, self._held = self._held, None
        for line in held[:-1]:
            super().push(line)
        return held[-1] if held else "250 2.0.0 OK"

    def _help(self, verb: str) -> str:
        known = {
            name: method.__smtp_syntax__
            for name, method in self._commands.items()
            if hasattr(method, "__smtp_syntax__")
            and (method.__smtp_syntax_when__ is None or getattr(self, method.__smtp_syntax_when__))
        }
        known.update(SYNTAX)
        if self.tls_context is not None:
            known["STARTTLS"] = "STARTTLS"
        if verb in known:
            return f"250 Syntax: {known[verb]}"
        return f"{'501' if verb else '250'} Supported commands: {' '.join(sorted(known))}"

    def _failed(self, error: BaseException) -> Any:
        """What the client hears of an exception in a hook."""
        if isinstance(error, asyncio.CancelledError):
            return "421 4.3.2 the server is ending"
        hook = getattr(self.event_handler, "handle_exception", None)
        if hook is not None:
            return hook(error)
        log.error("%r SMTP session exception", self.session.peer, exc_info=error)
        return f"451 4.3.0 Error: ({type(error).__name__}) {error}"

    def _proxy(self, source: Any, destination: Any, proxy: Any) -> ProxyData:
        return ProxyData(source, destination, proxy)

    # ---- For handlers ----

    def push(self, status: str | bytes) -> Awaitable[None]:
        """Send a line to the client; the rest of the reply is what the hook returns."""
        held = self.__dict__.get("_held")
        if held is None:
            return super().push(status)
        held.append(status)
        return _becket.done

    async def challenge_auth(
        self,
        challenge: str | bytes,
        encode_to_b64: bool = True,
        log_client_response: bool = False,
    ) -> Any:
        """Ask the client for a line during AUTH: its bytes, or MISSING when it gave up or sent
        what is not base64, which it has been told."""
        raw = challenge.encode() if isinstance(challenge, str) else challenge
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        self._answer(b"334 " + (b64encode(raw) if encode_to_b64 else raw))
        line: str = await waiter
        if log_client_response:
            log.debug("%r >> %r", self.session.peer, line)
        if line.strip() == "*":
            await self.push("501 5.7.0 Auth aborted")
            return MISSING
        try:
            return b64decode(line.strip().encode(), validate=True)
        except (binascii.Error, ValueError):
            await self.push("501 5.5.2 Can't decode base64")
            return MISSING

    def _line(self, verb: str, line: str) -> str | None:
        waiter = self.__dict__.get("_waiter")
        if waiter is None or waiter.done():
            return "503 5.5.1 no line was wanted"
        waiter.set_result(line)
        return None

    async def _run_auth(self, args: list[str]) -> str | bytes | None:
        assert self._own_auth is not None
        session = self.session
        if not session.extended_smtp:
            return "500 Error: command 'AUTH' not recognized"
        if self._auth_require_tls and session.ssl is None:
            return "538 5.7.11 Encryption required for requested authentication mechanism"
        if session.authenticated:
            return "503 Already authenticated"
        if not 1 <= len(args) <= 2:
            return "501 Too many values" if args else "501 Not enough value"
        self._held = []
        status = await self._hook("AUTH", MISSING, args)
        held, self._held = self._held, None
        if status is not MISSING:
            return status or (held[-1] if held else None)
        self._held = []
        method = self._own_auth.get(args[0])
        if method is None:
            self._held = None
            return "504 5.5.4 Unrecognized authentication type"
        return self._auth_reply(await method(self, args))

    async def auth_PLAIN(self, server: Any, args: list[str]) -> Any:
        """The mechanism PLAIN, where a handler has others beside it."""
        if len(args) == 1:
            message = await self.challenge_auth("")
        else:
            message = self._decode(args[1])
        if message is MISSING:
            return AuthResult(success=False)
        parts = message.split(b"\x00")
        if len(parts) != 3:
            await self.push("501 5.5.2 Can't split auth value")
            return AuthResult(success=False)
        found = self._authenticate("PLAIN", LoginPassword(parts[1], parts[2]))
        return await found if inspect.isawaitable(found) else found

    async def auth_LOGIN(self, server: Any, args: list[str]) -> Any:
        """The mechanism LOGIN, where a handler has others beside it."""
        if len(args) == 1:
            login = await self.challenge_auth(self.AuthLoginUsernameChallenge)
        else:
            login = self._decode(args[1])
        if login is MISSING:
            return AuthResult(success=False)
        password = await self.challenge_auth(self.AuthLoginPasswordChallenge)
        if password is MISSING:
            return AuthResult(success=False)
        found = self._authenticate("LOGIN", LoginPassword(login, password))
        return await found if inspect.isawaitable(found) else found

    def _decode(self, text: str) -> Any:
        try:
            return b64decode(text.encode(), validate=True)
        except (binascii.Error, ValueError):
            self.push("501 5.5.2 Can't decode base64")
            return MISSING

    # ---- On a transport of asyncio's ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio.Protocol's."""
        self._timer: asyncio.TimerHandle | None = None
        self._under_tls = transport.get_extra_info("sslcontext") is not None
        self._set_rules(self._rules, asyncio.get_running_loop())
        super().connection_made(transport)

    def _is_secure(self) -> int:
        if self._under_tls:
            return 1
        return 0 if self.tls_context is not None else -1

    def _tls_info(self) -> dict[str, Any]:
        names = ("sslcontext", "ssl_object", "peercert", "cipher", "compression")
        return {name: self.transport.get_extra_info(name) for name in names}

    def _start_tls(self) -> None:
        self._under_tls = True
        self.transport.pause_reading()
        self._upgrading = asyncio.get_running_loop().create_task(self._upgrade(self.transport))

    async def _upgrade(self, transport: Any) -> None:
        assert self.tls_context is not None
        early = _Early()
        try:
            upgraded: Any = await asyncio.get_running_loop().start_tls(
                transport, early, self.tls_context, server_side=True
            )
        except (OSError, asyncio.CancelledError) as error:
            transport.abort()
            self.connection_lost(error if isinstance(error, OSError) else None)
            return
        self.transport = upgraded
        early.hand_over(self, upgraded)

    def _set_timeout(self, seconds: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, self._expire, self._moved, seconds)

    def _expire(self, moved: int, seconds: int) -> None:
        self._timer = None
        if self.transport is None:
            return
        if moved != self._moved:
            self._set_timeout(seconds)
            return
        self._time_out()
        # What it says is sent until then, unless the client has stopped reading.
        asyncio.get_running_loop().call_soon(self.transport.abort)


class LMTP(SMTP):
    """The same by LMTP (RFC 2033): ``handle_DATA`` may return a list with a reply for each
    recipient, or a dict by recipient."""

    def __init__(self, handler: Any, **settings: Any) -> None:
        super().__init__(handler, lmtp=True, **settings)


class Server(becket.Server):
    """A mail server: *handler* at *endpoints*, as becket.Server runs it.

    Endpoints say what carries it: ``tcp://:25``, ``starttls+tcp://:25?cert=…``,
    ``tls+tcp://:465?cert=…``, ``unix:/run/lmtp``. *settings* are those of ``SMTP``, but for
    *tls_context* and *loop*, and those of becket.Server: *driver* ("loop", "loops:N", "forks:N"),
    *drain*, *access_log* and limits. With "loops:N" the handler is called by N threads.

    The errors are those of both.
    """

    OPTIONS = ("driver", "drain", "notifier", "access_log", *LIMITS)

    def __init__(self, handler: Any, *endpoints: str, **settings: Any) -> None:
        for name in ("tls_context", "loop"):
            if name in settings:
                raise TypeError(
                    f"{name}: a server has its TLS by its endpoints, such as "
                    "starttls+tcp://:25?cert=cert.pem&key=key.pem, and loops of its own"
                )
        if str(settings.get("driver", "")).startswith("threads"):
            raise ValueError("driver: threads:N is not for mail; there are loop, loops:N, forks:N")
        options = {name: settings.pop(name) for name in self.OPTIONS if name in settings}
        settings.setdefault("enable_SMTPUTF8", True)
        pattern = SMTP(handler, **settings)

        def core(loop: Any) -> _becket.SmtpServer:
            return _becket.SmtpServer(loop, pattern)

        what = served.Served(
            "core",
            type(handler).__qualname__,
            core=core,
            reload=None if pattern.users is None else pattern.users.reload,
        )
        super().__init__(what, *endpoints, **options)
