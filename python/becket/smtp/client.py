"""Sending mail: ``Client`` is a connection, ``Pool`` several; ``send()`` sends one message, to a
server or to those that a lookup of MX records names. The dialogue is the core's
(``_becket.SmtpClient``).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from email.message import Message
from types import TracebackType
from typing import Any, Literal, TypedDict, Unpack, cast

import becket
from becket import _becket
from becket.loop import EventLoop
from becket.smtp import outgoing
from becket.smtp.replies import (
    Reply,
    SendResult,
    SMTPConnectError,
    SMTPException,
    SMTPRecipientsRefused,
    SMTPSenderRefused,
    SMTPServerDisconnected,
    ending,
)

Tls = Literal["opportunistic", "required", "never"]
MxLookup = Callable[[str], "Iterable[tuple[int, str]] | Awaitable[Iterable[tuple[int, str]]]"]

_NOTIFY = {"NEVER": 1, "SUCCESS": 2, "FAILURE": 4, "DELAY": 8}
_BODY = {"7BIT": 0, "8BITMIME": 1, "BINARYMIME": 2}
_RETURN = {None: 0, "FULL": 1, "HDRS": 2}


class ClientOptions(TypedDict, total=False):
    """What a Client may be told beside its endpoint."""

    hostname: str | None
    lmtp: bool
    tls: Tls
    user: str | None
    password: str | None
    mechanism: str | None
    auth_in_clear: bool
    timeout: float | None
    connect_timeout: float
    make_whole: bool


class MailOptions(TypedDict, total=False):
    """What MAIL may ask of a server for one message; see Client.send()."""

    body: Literal["7BIT", "8BITMIME", "BINARYMIME"]
    require_tls: bool
    ret: Literal["FULL", "HDRS"] | None
    envelope_id: str | None
    submitter: str | None


class MessageOptions(MailOptions, total=False):
    """What may be asked of a server for one message; see Client.send()."""

    notify: str | Sequence[str] | None
    original: Mapping[str, str] | None


def endpoint_of(to: str | tuple[str, int], tls: Tls = "opportunistic", lmtp: bool = False) -> str:
    """The endpoint of a server: an endpoint is one; ``"host"``, ``"host:port"`` and
    ``(host, port)`` are made one, with the port of SMTP, or of LMTP.

    The certificate is verified when TLS is required; opportunistic TLS goes on with any.
    """
    if isinstance(to, str) and (":/" in to or to.startswith(("unix:", "process:", "memory:"))):
        return to
    host, port = to if isinstance(to, tuple) else _host_port(to, 24 if lmtp else 25)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    if tls == "never":
        return f"tcp://{host}:{port}"
    return f"starttls://{host}:{port}" + ("" if tls == "required" else "?verify=none")


def _host_port(text: str, port: int) -> tuple[str, int]:
    if "+" in text.partition(":")[0]:  # tls+unix:path
        raise ValueError(f"to: {text!r} is neither an endpoint nor a host")
    host, colon, rest = text.rpartition(":")
    if text.count(":") > 1 and not text.startswith("["):  # an IPv6 address alone
        return text, port
    if not colon or rest.endswith("]"):
        return text, port
    if not rest.isdecimal():
        raise ValueError(f"to: {rest!r} is no port, in {text!r}")
    return host, int(rest)


def _notify_bits(notify: str | Sequence[str] | None) -> int:
    words = [notify] if isinstance(notify, str) else list(notify or ())
    bits = 0
    for word in ",".join(words).split(",") if words else ():
        if word.strip().upper() not in _NOTIFY:
            raise ValueError(f"notify: {word!r} is none of {', '.join(_NOTIFY)}")
        bits |= _NOTIFY[word.strip().upper()]
    if bits & 1 and bits != 1:
        raise ValueError("notify: NEVER stands alone")
    return bits


def _mail_options(options: MailOptions) -> dict[str, Any]:
    """As the core takes them."""
    known: Mapping[str, set[Any]] = {"body": set(_BODY), "ret": set(_RETURN)}
    for name, values in known.items():
        value = options.get(name, "7BIT" if name == "body" else None)
        if value not in values:
            raise ValueError(f"{name}: {value!r} is none of {sorted(filter(None, values))}")
    return {
        "body": _BODY[options.get("body", "7BIT")],
        "require_tls": options.get("require_tls", False),
        "ret": _RETURN[options.get("ret")],
        "envelope_id": options.get("envelope_id"),
        "submitter": options.get("submitter"),
    }


class Client:
    """A connection to a mail server, for any number of messages::

        async with Client("starttls://mx.example.org:587", user="me", password="…") as c:
            result = await c.send_message(message)

    *endpoint*: where it is; only ``starttls://…`` can start TLS, and ``tls://…`` begins with it.
    *tls*: ``"opportunistic"``: where the server offers it; ``"required"``; ``"never"``.
    *mechanism*: ``"SCRAM-SHA-256"``, ``"PLAIN"`` or ``"LOGIN"``; None: the best that is offered.
    *auth_in_clear*: the password may be sent without TLS.
    *timeout*: seconds for each answer; None: as RFC 5321 has them, two to ten minutes.
    *connect_timeout*: seconds until mail may be sent.
    *make_whole*: CR and LF that stand alone in data become CRLF; else they are refused.

    It runs on a becket.EventLoop. Messages may be sent at the same time by several tasks: they go
    one behind the other, without waiting for answers where the server allows that.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        hostname: str | None = None,
        lmtp: bool = False,
        tls: Tls = "opportunistic",
        user: str | None = None,
        password: str | None = None,
        mechanism: str | None = None,
        auth_in_clear: bool = False,
        timeout: float | None = None,
        connect_timeout: float = 60.0,
        make_whole: bool = False,
    ) -> None:
        if timeout is not None and not 1 <= timeout <= 65535:
            raise ValueError(f"timeout: {timeout!r} is not from 1 to 65535 seconds")
        self.endpoint = endpoint
        self.lmtp = lmtp
        self._settings: dict[str, Any] = {
            "hostname": hostname,
            "lmtp": lmtp,
            "tls": tls,
            "user": user,
            "password": password,
            "mechanism": mechanism,
            "auth_in_clear": auth_in_clear,
            "timeout": 0 if timeout is None else int(timeout),
            "make_whole": make_whole,
        }
        self._connect_timeout = connect_timeout
        self._core: _becket.SmtpClient | None = None
        self._ready: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None
        self._why: Exception | None = None  # it ended badly
        self._is_ending = False
        self._turn = asyncio.Lock()  # of transactions
        self._transaction: Transaction | None = None

    def __repr__(self) -> str:
        state = "connected" if self.is_connected else "not connected"
        return f"<Client {self.endpoint} {state}>"

    # ---- The connection ----

    @property
    def is_connected(self) -> bool:
        """Messages may be sent: it is connected, and not ending."""
        ready = self._ready is not None and self._ready.done()
        return self._core is not None and ready and not self._is_ending

    async def connect(self) -> Client:
        """Connect, start TLS, log in. Not needed in ``async with``.

        ValueError: the endpoint or a setting is wrong. OSError: there is no connection, in time or
        at all; ssl.SSLError. SMTPConnectError, SMTPAuthenticationError, SMTPNotSupportedError,
        SMTPServerDisconnected: the server and we did not come together.
        """
        loop = asyncio.get_running_loop()
        if not isinstance(loop, EventLoop):
            raise RuntimeError("a becket.EventLoop is needed: run it by becket.run()")
        if self._core is not None:
            raise RuntimeError("it is connected already")
        loop._know_engines(self.endpoint)
        self._why, self._is_ending = None, False
        self._ready, self._closed = loop.create_future(), loop.create_future()
        self._core = _becket.SmtpClient(
            loop, self.endpoint, ready=self._on_ready, closed=self._on_closed, **self._settings
        )
        try:
            async with asyncio.timeout(self._connect_timeout) as limit:
                await self._ready
        except BaseException as error:
            self.abort()
            if isinstance(error, TimeoutError) and limit.expired():
                raise TimeoutError(
                    f"{self.endpoint}: not ready for mail in {self._connect_timeout:g} seconds"
                ) from None
            raise
        return self

    def _on_ready(self) -> None:
        assert self._ready is not None
        if not self._ready.done():
            self._ready.set_result(None)

    def _on_closed(self, why: int, reply: str | None, error: Exception | None) -> None:
        assert self._ready is not None and self._closed is not None
        self._core = None
        self._why = None if why == 0 else ending(why, reply, error)
        if not self._ready.done():
            self._ready.set_exception(self._why or SMTPServerDisconnected("it was closed"))
        if not self._closed.done():
            self._closed.set_result(None)
        if self._transaction is not None:
            self._transaction._lost(self._why)

    async def __aenter__(self) -> Client:
        return await self.connect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.quit()
        else:
            self.abort()

    async def quit(self, timeout: float = 10.0) -> None:
        """Say QUIT when all messages have been answered, and wait for the end: *timeout* seconds
        from then on. May be repeated."""
        if self._core is None or self._closed is None:
            return
        self._is_ending = True
        self._core.quit()
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._closed)
        except TimeoutError:
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """End it now. Messages that were not answered raise SMTPServerDisconnected."""
        self._is_ending = True
        if self._core is not None:
            self._core.abort()

    def offers(self, keyword: str) -> str | None:
        """What comes with *keyword*, as "SIZE", in what the server offers; None: it does not."""
        return None if self._core is None else self._core.offers(keyword)

    @property
    def is_secure(self) -> bool:
        """It is under TLS."""
        return self._core is not None and self._core.secure()

    # ---- Messages ----

    async def send(
        self,
        sender: str,
        recipients: str | Sequence[str],
        data: bytes | bytearray | memoryview,
        *,
        utf8: bool = False,
        **options: Unpack[MessageOptions],
    ) -> SendResult:
        """Send *data*, a whole message whose lines end in CRLF, and return what each recipient was
        answered. *sender* may be empty: nobody is told when it cannot be delivered.

        *body*: ``"8BITMIME"`` is found out; ``"BINARYMIME"`` sends it as it is. *utf8*: its headers
        are (SMTPUTF8). *require_tls*: only by TLS, all the way. *notify*: ``"NEVER"``, or some of
        ``"SUCCESS"``, ``"FAILURE"``, ``"DELAY"``; *original*: by recipient, who it was meant for,
        as ``"rfc822;her@example.org"``; *ret*: what notifications bring back; *envelope_id*;
        *submitter*: who sent it, if he logged in to us.

        ValueError: an address, the data or an option is wrong. When nobody will get it:
        SMTPSenderRefused, SMTPRecipientsRefused, SMTPDataError, SMTPNotSupportedError, or
        SMTPServerDisconnected, each with a ``result``. A message whose task is cancelled may be
        sent all the same.
        """
        if isinstance(recipients, str):
            recipients = [recipients]
        if self._core is None:
            raise SMTPServerDisconnected("it is not connected") from self._why
        given = self._recipients(recipients, options)
        done: asyncio.Future[SendResult] = asyncio.get_running_loop().create_future()

        def sent(decided: str | None, replies: list[str]) -> None:
            if not done.done():
                answers = map(Reply.parse, replies)
                done.set_result(SendResult(dict(zip(recipients, answers, strict=True)), decided))

        try:
            self._core.send(
                sender,
                given,
                data,
                callback=sent,
                utf8=utf8,
                **_mail_options(options),
            )
        except BrokenPipeError:
            raise SMTPServerDisconnected("it is ending") from self._why
        return (await done).raise_if_none(sender)

    @staticmethod
    def _recipients(
        recipients: Sequence[str], options: MessageOptions
    ) -> list[tuple[str, int, str | None]]:
        if len(set(recipients)) != len(recipients):
            raise ValueError("recipients: an address is in it twice")
        notify = _notify_bits(options.get("notify"))
        original = options.get("original") or {}
        return [(address, notify, original.get(address)) for address in recipients]

    def transaction(
        self, sender: str, *, size: int = 0, utf8: bool = False, **options: Unpack[MailOptions]
    ) -> Transaction:
        """A message step by step, for those who must know each answer before they go on::

            async with client.transaction("me@a.org") as t:
                reply = await t.rcpt("you@b.org")
                replies = await t.data(content)

        *size*: its bytes, as far as they are known; 0: not at all. The rest is as of send(). On
        entering: ValueError, SMTPSenderRefused, SMTPServerDisconnected. One at a time: others, and
        other messages, wait. What was not finished at the end is given up.
        """
        return Transaction(self, sender, size, utf8, options)

    async def send_message(
        self,
        message: Message,
        *,
        sender: str | None = None,
        recipients: str | Sequence[str] | None = None,
        **options: Unpack[MessageOptions],
    ) -> SendResult:
        """Send an ``email.message.EmailMessage``: without Bcc, from Sender or From, to those in To,
        Cc and Bcc, or the Resent- fields, unless it is said otherwise. Bodies of 8 bits are encoded
        where the server does not take them. Raises as send() does."""
        if isinstance(recipients, str):
            recipients = [recipients]
        sender = outgoing.sender_of(message) if sender is None else sender
        recipients = outgoing.recipients_of(message) if recipients is None else recipients
        utf8 = outgoing.needs_utf8(sender, recipients)
        eight_bit = self.offers("8BITMIME") is not None
        data = outgoing.as_bytes(message, utf8=utf8, eight_bit=eight_bit)
        return await self.send(sender, recipients, data, utf8=utf8, **options)


class Transaction:
    """A message that goes step by step; see Client.transaction(). Of one task at a time."""

    def __init__(
        self, client: Client, sender: str, size: int, utf8: bool, options: MailOptions
    ) -> None:
        self._client = client
        self._sender = sender
        self._settings = {"size": size, "utf8": utf8, **_mail_options(options)}
        self._awaited: asyncio.Future[Any] | None = None
        self._taken: list[bool] = []  # which recipients were
        self._is_open = False
        self._is_complete = False
        self.reply: Reply | None = None
        """What the server answered to MAIL."""

    async def __aenter__(self) -> Transaction:
        await self._client._turn.acquire()
        self._is_open = True
        self._client._transaction = self
        try:
            self.reply = await self._ask(
                lambda core: core.begin(self._sender, self._answered, self._sent, **self._settings)
            )
            if not self.reply.ok:
                raise SMTPSenderRefused(self.reply, self._sender, SendResult({}, "MAIL"))
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give it up, unless it was sent. While an answer is awaited, that ends the connection:
        what comes next must not be taken for the answer to something else. May be repeated."""
        if not self._is_open:
            return
        self._is_open = False
        core, awaited = self._client._core, self._awaited
        if awaited is not None and not awaited.done():
            self._lost(None)
            awaited.exception()  # there may be nobody who takes it
            self._client.abort()
        elif awaited is not None and awaited.cancelled():
            self._client.abort()
        elif core is not None:
            core.drop()  # if anything is left
        self._client._transaction = None
        self._client._turn.release()

    async def rcpt(
        self,
        recipient: str,
        *,
        notify: str | Sequence[str] | None = None,
        original: str | None = None,
    ) -> Reply:
        """One more recipient, and what the server answered. ValueError: it is no address, or it is
        beyond ASCII and the message without *utf8*. SMTPServerDisconnected."""
        given = (recipient, _notify_bits(notify), original)
        reply = await self._ask(lambda core: core.recipient(given))
        self._taken.append(reply.ok)
        return reply

    async def data(self, data: bytes | bytearray | memoryview) -> list[Reply]:
        """Send it: what was answered for each recipient that had been accepted, in order.
        ValueError: nobody was accepted; or a CR or LF stands alone, and it is given up.
        SMTPServerDisconnected."""
        if not any(self._taken):
            raise ValueError("recipients: there is none")
        self._is_complete = True
        decided, texts = await self._wait(lambda core: core.finish(data))
        replies = [Reply.parse(t) for t, taken in zip(texts, self._taken, strict=True) if taken]
        if decided is None and replies[0].enhanced.startswith("4.4."):
            raise SMTPServerDisconnected(str(replies[0]))
        return replies

    async def _ask(self, say: Callable[[_becket.SmtpClient], None]) -> Reply:
        return Reply.parse(await self._wait(say))

    async def _wait(self, say: Callable[[_becket.SmtpClient], None]) -> Any:
        core = self._client._core
        if core is None or not self._is_open:
            raise SMTPServerDisconnected("it is not connected") from self._client._why
        self._awaited = asyncio.get_running_loop().create_future()
        try:
            say(core)
        except BrokenPipeError:
            self._awaited = None
            raise SMTPServerDisconnected("it is ending") from self._client._why
        except BaseException:
            self._awaited = None
            raise
        return await self._awaited

    def _answered(self, answer: Any) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(answer)

    def _sent(self, decided: str | None, replies: list[str]) -> None:
        if self._is_complete:  # else it is lost, or given up
            self._answered((decided, replies))

    def _lost(self, why: Exception | None) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_exception(SMTPServerDisconnected(str(why or "it was closed")))


class Pool:
    """Connections to one server, used again and again::

        async with Pool("starttls://mx.example.org:587", size=4) as pool:
            await asyncio.gather(*(pool.send_message(m) for m in messages))

    *size*: at most so many at a time. A connection that the server has ended meanwhile is replaced.
    """

    def __init__(self, endpoint: str, *, size: int = 4, **options: Unpack[ClientOptions]) -> None:
        if size < 1:
            raise ValueError(f"size: {size!r} is less than one")
        self._make: Callable[[], Client] = lambda: Client(endpoint, **options)
        self._free: list[Client] = []
        self._places = asyncio.Semaphore(size)
        self._closed = False

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """One of them, connected, for the time of the ``async with``."""
        async with self._places:
            if self._closed:
                raise RuntimeError("the pool is closed")
            client = self._take()
            if client is None:
                client = await self._make().connect()
            try:
                yield client
            finally:
                if client.is_connected and not self._closed:
                    self._free.append(client)
                else:
                    client.abort()

    def _take(self) -> Client | None:
        while self._free:
            client = self._free.pop()
            if client.is_connected:
                return client
        return None

    async def send_message(self, message: Message, **options: Any) -> SendResult:
        """As Client.send_message()."""
        async with self.client() as client:
            return await client.send_message(message, **options)

    async def send(
        self, sender: str, recipients: str | Sequence[str], data: bytes, **options: Any
    ) -> SendResult:
        """As Client.send()."""
        async with self.client() as client:
            return await client.send(sender, recipients, data, **options)

    async def close(self) -> None:
        """End those that are free; those in use end when they are given back."""
        self._closed = True
        free, self._free = self._free, []
        await asyncio.gather(*(client.quit() for client in free))

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


# ---- One message ---------------------------------------------------------------------------------


async def send(
    message: Message,
    *,
    to: str | tuple[str, int] | None = None,
    mx: MxLookup | None = None,
    sender: str | None = None,
    recipients: str | Sequence[str] | None = None,
    message_options: MessageOptions | None = None,
    **options: Unpack[ClientOptions],
) -> SendResult:
    """Send one message, and return what each recipient was answered.

    *to*: the server: an endpoint, ``"host"``, ``"host:port"`` or ``(host, port)``. Or *mx*, a
    function, sync or async, that is given a domain and returns its MX records, as
    ``[(preference, host)]``: for each domain of the recipients its hosts are tried in turn, the
    lowest preference first; the domain itself, where there is no record. OSError from it: for now
    nobody there gets it. A host whose TLS does not work gets it in plain when *tls* is
    opportunistic.

    *sender*, *recipients*, *message_options*: as of Client.send_message(); the rest as of Client.
    Raises as those do; with *mx*, SMTPRecipientsRefused when nobody will get it.
    """
    if (to is None) == (mx is None):
        raise ValueError("to, or mx: one of them says where it goes")
    if to is not None:
        endpoint = endpoint_of(to, options.get("tls", "opportunistic"), options.get("lmtp", False))
        async with Client(endpoint, **options) as client:
            return await client.send_message(
                message, sender=sender, recipients=recipients, **(message_options or {})
            )
    assert mx is not None
    if isinstance(recipients, str):
        recipients = [recipients]
    return await _Delivery(
        message,
        outgoing.sender_of(message) if sender is None else sender,
        outgoing.recipients_of(message) if recipients is None else list(recipients),
        mx,
        message_options or {},
        options,
    ).run()


def send_sync(message: Message, **options: Any) -> SendResult:
    """send(), for code without an event loop. RuntimeError in a thread where one runs."""
    return becket.run(send(message, **options))


class _Delivery:
    """A message to the mail servers of its recipients' domains."""

    AT_ONCE = 8  # domains

    def __init__(
        self,
        message: Message,
        sender: str,
        recipients: list[str],
        mx: MxLookup,
        message_options: MessageOptions,
        options: ClientOptions,
    ) -> None:
        self._message = message
        self._sender = sender
        self._recipients = recipients
        self._mx = mx
        self._message_options = message_options
        self._options = options
        self._places = asyncio.Semaphore(self.AT_ONCE)

    async def run(self) -> SendResult:
        """SMTPRecipientsRefused: nobody gets it."""
        domains: dict[str, list[str]] = {}
        for address in self._recipients:
            _, at, domain = address.rpartition("@")
            if not at:
                raise ValueError(f"recipients: {address!r} has no domain")
            domains.setdefault(domain.lower(), []).append(address)
        results = await asyncio.gather(*(self._to(d, who) for d, who in domains.items()))
        replies = {address: reply for result in results for address, reply in result.items()}
        result = SendResult({a: replies[a] for a in self._recipients}, "RCPT")
        if not result.accepted:
            raise SMTPRecipientsRefused(result)
        return result

    async def _to(self, domain: str, who: list[str]) -> Mapping[str, Reply]:
        async with self._places:
            try:
                hosts = await self._hosts(domain)
            except OSError as error:
                return dict.fromkeys(who, Reply(451, "4.4.3", f"{domain}: {error}"))
            if not hosts:  # RFC 7505
                return dict.fromkeys(who, Reply(556, "5.1.10", f"{domain} takes no mail"))
            return await self._to_one_of(hosts, domain, who)

    async def _hosts(self, domain: str) -> list[str]:
        """The hosts to be tried, in turn; []: the domain says that it takes no mail."""
        if domain.startswith("["):
            return [domain[1:-1].removeprefix("ipv6:")]
        found = self._mx(domain)
        if inspect.isawaitable(found):
            found = await found
        records = sorted((preference, host.rstrip(".")) for preference, host in found)
        if not records:
            return [domain]  # RFC 5321, 5.1
        return [host for _, host in records if host]

    async def _to_one_of(
        self, hosts: list[str], domain: str, who: list[str]
    ) -> Mapping[str, Reply]:
        reply = Reply(451, "4.4.1", f"{domain}: no host could be reached")
        tls = self._options.get("tls", "opportunistic")
        for host in hosts:
            try:
                return await self._to_host(host, tls, who)
            except ssl.SSLError as error:
                reply = Reply(451, "4.7.5", f"{host}: {error}")
                if tls != "opportunistic":
                    continue
            except SMTPConnectError as error:
                reply = error.reply
                continue
            except OSError as error:  # SMTPException is one
                reply = Reply(451, "4.4.1", f"{host}: {error}")
                continue
            with contextlib.suppress(OSError):  # rather in plain than not at all
                return await self._to_host(host, "never", who)
        return dict.fromkeys(who, reply)

    async def _to_host(self, host: str, tls: Tls, who: list[str]) -> Mapping[str, Reply]:
        """OSError: no message was begun, and another host may be tried."""
        options = ClientOptions(**{**self._options, "tls": tls})
        try:
            async with Client(self._endpoint(host, tls), **options) as client:
                return await client.send_message(
                    self._message, sender=self._sender, recipients=who, **self._message_options
                )
        except SMTPException as error:
            result = getattr(error, "result", None)
            if result is None:
                raise
            return cast(SendResult, result)

    def _endpoint(self, host: str, tls: Tls) -> str:
        return endpoint_of((host, 25), tls)


__all__ = [
    "Client",
    "ClientOptions",
    "MailOptions",
    "MessageOptions",
    "Pool",
    "Transaction",
    "endpoint_of",
    "send",
    "send_sync",
]
