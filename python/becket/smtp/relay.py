"""``Relay``: passes mail on to a next hop, by SMTP or LMTP, while the client waits.

    controller = Controller(Relay("tcp://mx.example.org:25"))
    controller = Controller(Relay("unix:/run/dovecot/lmtp", lmtp=True))

Used as the handler of a server, on a becket.EventLoop. MAIL and RCPT are the next hop's to answer,
each at its time, so that every recipient gets its own answer; the message is acknowledged when the
next hop has acknowledged it. Nothing is kept here, so there is nothing that could be lost.

What is between: a client that has begun a message holds one of a bounded number of connections
until it is done. Where all are held, further clients wait; that is what slows them down to what the
next hop can take.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, finalize

from becket.smtp.client import Client, Transaction
from becket.smtp.replies import Reply as HopReply
from becket.smtp.replies import SMTPException, SMTPSenderRefused, SMTPServerDisconnected
from becket.smtp.store import Reply, answer, sender_of, traced

logger = logging.getLogger("becket")

MAX_HOPS = 100  # Received: headers, with ours; more mean a loop (RFC 5321, 6.3)
MAX_MESSAGES = 100  # of a connection

UNREACHABLE = "451 4.4.1 the next hop cannot be reached: try again later"
LOST = "451 4.4.2 the next hop has gone: try again later"
BUSY = "451 4.3.2 too much is under way: try again later"
NO_MAIL = "503 5.5.1 MAIL comes first"
BAD_SENDER = "553 5.1.7 the sender's address is none"
BAD_RECIPIENT = "553 5.1.3 the recipient's address is none"
BAD_LINES = "554 5.6.0 a CR or LF stands alone in the message"
LOOP = f"554 5.4.6 the message has been through more than {MAX_HOPS} servers"

MAX_REPLY = 400  # characters of one that are passed on
RECEIVED = re.compile(rb"^received[ \t]*:", re.I | re.M)
NOTIFY = re.compile("NEVER|(SUCCESS|FAILURE|DELAY)(,(SUCCESS|FAILURE|DELAY))*", re.I)
ORIGINAL = re.compile("([A-Za-z0-9-]+);(.+)", re.S)


class HopError(OSError):
    """The next hop cannot be reached, or has gone."""


class Hop(Client):
    """A connection to it."""

    messages = 0  # that were begun


def passed_on(reply: HopReply) -> str:
    """What our client is told. 421 is between the next hop and us: here it would end the client's
    connection. What is no answer to the question is one for now."""
    code = reply.code if reply.code // 100 in (2, 4, 5) and reply.code != 421 else 451
    words = " ".join(f"{reply.enhanced} {reply.text}".split("\n")).strip()
    text = re.sub(r"[^\x20-\x7e]", "?", words)[:MAX_REPLY]
    return f"{code} {text or '(the next hop gave no reason)'}"


# ---- Parameters ----------------------------------------------------------------------------------


def _decoded(xtext: str) -> str | None:
    """RFC 3461, 4; None: there is nothing in it that could be passed on."""
    text = re.sub(r"\+([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), xtext)
    return text if text and text.isprintable() else None


def _mail_options(hop: Client, options: list[str]) -> dict[str, Any]:
    """What our client asked for, as far as it is known here; the next hop may know less, and what
    could be lost by that, it is not given."""
    given: dict[str, Any] = {}
    for each in options:
        name, _, value = each.partition("=")
        name, word = name.upper(), value.upper()
        if name == "SIZE" and re.fullmatch("[0-9]{1,19}", value):
            given["size"] = int(value)
        elif name == "SMTPUTF8":
            given["utf8"] = True
        elif name == "REQUIRETLS":
            given["require_tls"] = True
        elif name == "BODY" and word == "8BITMIME" and hop.offers(word) is None:
            pass  # it may be ASCII after all
        elif name == "BODY" and word in ("8BITMIME", "BINARYMIME"):
            given["body"] = word
        elif name == "RET" and word in ("FULL", "HDRS"):
            given["ret"] = word
        elif name == "ENVID":
            given["envelope_id"] = _decoded(value)
    return given


def _rcpt_options(options: list[str]) -> dict[str, Any]:
    """The same of a recipient."""
    given: dict[str, Any] = {}
    for each in options:
        name, _, value = each.partition("=")
        original = ORIGINAL.fullmatch(value)
        if name.upper() == "NOTIFY" and NOTIFY.fullmatch(value):
            given["notify"] = value
        elif name.upper() == "ORCPT" and original and _decoded(original[2]):
            given["original"] = f"{original[1]};{_decoded(original[2])}"
    return given


# ---- Connections ---------------------------------------------------------------------------------


class Pool:
    """Connections to the next hop: at most *most*, of one loop. Those that are idle are kept for
    *keep* seconds."""

    def __init__(self, connect: Callable[[], Awaitable[Hop]], most: int, keep: float) -> None:
        self._connect = connect
        self._free = asyncio.Semaphore(most)
        self._keep = keep
        self._idle: dict[Hop, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._end: AsyncGenerator[None, None] | None = None

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        """A loop that ends closes its generators: that is how a pool hears of it."""
        try:
            yield
        finally:
            for hop, timer in self._idle.items():
                timer.cancel()
                hop.abort()
            self._idle.clear()
            await asyncio.sleep(0)  # they are told

    async def take(self, wait: float) -> tuple[Hop, bool]:
        """A connection, and whether it is a new one. TimeoutError: none is free in *wait* seconds.
        HopError: the next hop cannot be reached."""
        if self._end is None:
            self._end = self._until_the_end()
            await anext(self._end)
        async with asyncio.timeout(wait):
            await self._free.acquire()
        try:
            return await self._get()
        except BaseException:
            self._free.release()
            raise

    async def _get(self) -> tuple[Hop, bool]:
        while self._idle:
            hop, timer = self._idle.popitem()  # the one that was used last
            timer.cancel()
            if hop.is_connected:
                return hop, False
            hop.abort()
        return await self._connect(), True

    async def renew(self, hop: Hop) -> Hop:
        """Another for one that turned out to have gone; it must be given back in its place."""
        hop.abort()
        return await self._connect()

    def give_back(self, hop: Hop | None) -> None:
        """It is not needed any more, whatever state it is in. None: it has been lost."""
        if hop is None or not hop.is_connected:
            if hop is not None:
                hop.abort()
            self._free.release()
        elif hop.messages >= MAX_MESSAGES:
            self._begin(hop.quit())
            self._free.release()
        else:
            self._put(hop)

    def _put(self, hop: Hop) -> None:
        loop = asyncio.get_running_loop()
        self._idle[hop] = loop.call_later(self._keep, self._expire, hop)
        self._free.release()

    def _expire(self, hop: Hop) -> None:
        del self._idle[hop]
        self._begin(hop.quit())

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is idle or becomes so, and wait until it has."""
        while self._idle or self._tasks:
            for hop in list(self._idle):
                self._idle[hop].cancel()
                self._expire(hop)
            await asyncio.wait(self._tasks)


# ---- The handler ---------------------------------------------------------------------------------


@dataclass
class Passage:
    """A message that a client has begun, and the connection it holds."""

    pool: Pool
    hop: Hop | None
    transaction: Transaction | None = None
    over: bool = False
    watch: Any = None  # of the session's end

    async def begin(self, sender: str, options: list[str]) -> HopReply:
        """MAIL. SMTPSenderRefused; SMTPException: the connection is lost; ValueError."""
        assert self.hop is not None
        self.hop.messages += 1
        self.transaction = self.hop.transaction(sender, **_mail_options(self.hop, options))
        await self.transaction.__aenter__()
        assert self.transaction.reply is not None
        return self.transaction.reply

    def end(self) -> None:
        """The connection is free again; once."""
        if not self.over:
            self.over = True
            if self.transaction is not None:
                self.transaction.close()
            self.pool.give_back(self.hop)
        if self.watch is not None:
            self.watch.detach()


class Relay:
    """Passes mail on to *endpoint*, any that becket.connect() takes: ``tls://`` has TLS from the
    start, ``starttls://`` requires STARTTLS. *login* is a user and a password there, under TLS, by
    the best mechanism that is offered. At most *connections* are open at once, for each loop that
    the server runs on; a client waits *wait* seconds for one. *connect_timeout*: seconds until a
    connection is ready; *timeout*: seconds for each answer, None: as RFC 5321 has them.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        lmtp: bool = False,
        hostname: str = "localhost",
        login: tuple[str, str] | None = None,
        connections: int = 20,
        keep: float = 30.0,
        wait: float = 60.0,
        connect_timeout: float = 60.0,
        timeout: float | None = None,
    ) -> None:
        if connections < 1:
            raise ValueError(f"connections: {connections} is less than 1")
        self._endpoint = endpoint
        self._connections = connections
        self._keep = keep
        self._wait = wait
        user, password = login or (None, None)
        starts_tls = endpoint.startswith("starttls")
        self._new: Callable[[], Hop] = lambda: Hop(
            endpoint,
            hostname=hostname,
            lmtp=lmtp,
            tls="required" if starts_tls else "opportunistic",
            user=user,
            password=password,
            connect_timeout=connect_timeout,
            timeout=timeout,
        )
        self._new()  # ValueError, now
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, Pool] = WeakKeyDictionary()
        self._passages: WeakKeyDictionary[Any, Passage] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<becket.smtp.Relay to {self._endpoint}>"

    async def _connect(self) -> Hop:
        hop = self._new()
        try:
            await hop.connect()
        except OSError as error:
            raise HopError(error.errno or 0, f"{self._endpoint}: {error}") from error
        return hop

    def _pool(self) -> Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            pool = self._pools[loop] = Pool(self._connect, self._connections, self._keep)
        return pool

    async def close(self) -> None:
        """End the connections of this loop that are idle."""
        await self._pool().close()

    # ---- What a client says ----

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, mail_options: list[str]
    ) -> str:
        """Begin a message there."""
        self._end(session)
        sender = sender_of(address)
        try:
            reply = await self._begin(session, sender, mail_options)
        except TimeoutError:
            return BUSY
        except ValueError:
            return BAD_SENDER
        except SMTPSenderRefused as refusal:
            return passed_on(refusal.reply)
        except (HopError, SMTPException) as error:
            logger.warning("relay: %s", str(error))  # without its frames
            return UNREACHABLE
        envelope.mail_from = sender
        envelope.mail_options.extend(mail_options)
        return passed_on(reply)

    async def _begin(self, session: Any, sender: str, options: list[str]) -> HopReply:
        pool = self._pool()
        hop, new = await pool.take(self._wait)
        passage = Passage(pool, hop)
        try:
            try:
                reply = await passage.begin(sender, options)
            except SMTPServerDisconnected:
                if new:
                    raise
                passage.hop = None  # it had been idle for too long: nothing is lost yet
                passage.hop = await pool.renew(hop)
                reply = await passage.begin(sender, options)
            self._hold(session, passage)
            return reply
        finally:
            if self._passages.get(session) is not passage:
                passage.end()

    def _hold(self, session: Any, passage: Passage) -> None:
        """The connection is the session's, until the message, or the session, is over."""
        self._passages[session] = passage
        loop = asyncio.get_running_loop()
        passage.watch = finalize(session, _let_go, loop, passage)
        passage.watch.atexit = False

    def _end(self, session: Any) -> None:
        passage = self._passages.pop(session, None)
        if passage is not None:
            passage.end()

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: list[str]
    ) -> str:
        """Ask for a recipient there."""
        passage = self._passages.get(session)
        if passage is None or passage.transaction is None:
            return LOST if envelope.mail_from is not None else NO_MAIL
        try:
            reply = await passage.transaction.rcpt(address, **_rcpt_options(rcpt_options))
        except ValueError:
            return BAD_RECIPIENT
        except SMTPException as error:
            logger.warning("relay: %s", str(error))  # without its frames
            self._end(session)
            return LOST
        except BaseException:
            self._end(session)
            raise
        if reply.ok:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(rcpt_options)
        return passed_on(reply)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Reply:
        """Pass the message on."""
        passage = self._passages.get(session)
        everybody = len(envelope.rcpt_tos)
        if passage is None or passage.transaction is None:
            return answer(server, [LOST] * everybody)
        content = traced(server, session, envelope)
        try:
            if len(RECEIVED.findall(content.partition(b"\r\n\r\n")[0])) > MAX_HOPS:
                return answer(server, [LOOP] * everybody)
            replies = await passage.transaction.data(content)
        except ValueError:  # two servers could disagree where it ends
            return answer(server, [BAD_LINES] * everybody)
        except SMTPException as error:
            logger.warning("relay: %s", str(error))  # without its frames
            return answer(server, [LOST] * everybody)
        finally:
            self._end(session)
        return answer(server, [passed_on(reply) for reply in replies])

    async def handle_RSET(self, server: Any, session: Any, envelope: Any) -> str:
        """Forget the message."""
        self._end(session)
        return "250 OK"

    async def handle_HELO(self, server: Any, session: Any, envelope: Any, hostname: str) -> str:
        """Begins anew."""
        self._end(session)
        session.host_name = hostname
        return f"250 {server.hostname}"

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        """Begins anew."""
        self._end(session)
        session.host_name = hostname
        return responses

    async def handle_QUIT(self, server: Any, session: Any, envelope: Any) -> str:
        """It is over."""
        self._end(session)
        return "221 Bye"


def _let_go(loop: asyncio.AbstractEventLoop, passage: Passage) -> None:
    """A session has gone, in whatever thread that is noticed."""
    with suppress(RuntimeError):  # the loop has gone, too
        loop.call_soon_threadsafe(passage.end)
