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

from becket.smtp.hop import ALONE, Hop, HopError, is_address
from becket.smtp.hop import Reply as HopReply
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
NO_UTF8 = "553 5.6.7 the next hop does not take SMTPUTF8"
NO_8BIT = "554 5.6.3 the next hop does not take 8BITMIME"
NO_BINARY = "554 5.6.3 the next hop does not take BINARYMIME"
NO_TLS = "550 5.7.30 the next hop does not take REQUIRETLS"

RECEIVED = re.compile(rb"^received[ \t]*:", re.I | re.M)


def passed_on(reply: HopReply) -> str:
    """What our client is told. 421 is between the next hop and us: here it would end the client's
    connection. What is no answer to the question is one for now."""
    code = reply.code if reply.code // 100 in (2, 4, 5) and reply.code != 421 else 451
    return f"{code} {reply.text}" if reply.text else f"{code} (the next hop gave no reason)"


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
            if hop.alive:
                return hop, False
            hop.abort()
        return await self._connect(), True

    async def renew(self, hop: Hop) -> Hop:
        """Another for one that turned out to have gone; it must be given back in its place."""
        hop.abort()
        return await self._connect()

    def give_back(self, hop: Hop | None) -> None:
        """It is not needed any more, whatever state it is in. None: it has been lost."""
        if hop is None or not hop.alive:
            if hop is not None:
                hop.abort()
            self._free.release()
        elif not hop.clean:
            self._begin(self._reset(hop))
        elif hop.messages >= MAX_MESSAGES:
            self._begin(hop.quit())
            self._free.release()
        else:
            self._put(hop)

    async def _reset(self, hop: Hop) -> None:
        try:
            await hop.reset()
        except HopError:
            hop.abort()
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
class Transaction:
    """A message that a client has begun, and the connection it holds."""

    pool: Pool
    hop: Hop | None
    binary: bool = False
    over: bool = False
    watch: Any = None  # of the session's end

    def end(self) -> None:
        """The connection is free again; once."""
        if not self.over:
            self.over = True
            self.pool.give_back(self.hop)
        if self.watch is not None:
            self.watch.detach()


class Relay:
    """Passes mail on to *endpoint*, any that becket.connect() takes: ``tls://`` has TLS from the
    start, ``starttls://`` requires STARTTLS. *login* is a user and a password there (AUTH PLAIN,
    under TLS). At most *connections* are open at once, for each loop that the server runs on, and
    a client waits *wait* seconds for one.
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
    ) -> None:
        if connections < 1:
            raise ValueError(f"connections: {connections} is less than 1")
        self._endpoint = endpoint
        self._connections = connections
        self._keep = keep
        self._wait = wait
        self._options: dict[str, Any] = {"lmtp": lmtp, "hostname": hostname, "login": login}
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, Pool] = WeakKeyDictionary()
        self._transactions: WeakKeyDictionary[Any, Transaction] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<becket.smtp.Relay to {self._endpoint}>"

    async def _connect(self) -> Hop:
        return await Hop.connect(self._endpoint, **self._options)

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
        address = sender_of(address)
        if not is_address(address):
            return BAD_SENDER
        try:
            return await self._begin(session, envelope, address, mail_options)
        except TimeoutError:
            return BUSY
        except HopError as error:
            logger.warning("relay: %s", str(error))  # without its frames
            return UNREACHABLE

    async def _begin(self, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        pool = self._pool()
        hop, new = await pool.take(self._wait)
        transaction = Transaction(pool, hop)
        try:
            words = {each.upper() for each in options}
            transaction.binary = "BODY=BINARYMIME" in words
            refusal = _missing(hop, words)
            if refusal:
                return refusal
            try:
                reply = await hop.mail(address, options)
            except HopError:
                if new:
                    raise
                transaction.hop = None  # it had been idle for too long: nothing is lost yet
                transaction.hop = hop = await pool.renew(hop)
                reply = await hop.mail(address, options)
            if reply.good:
                envelope.mail_from = address
                envelope.mail_options.extend(options)
                self._hold(session, transaction)
            return passed_on(reply)
        finally:
            if self._transactions.get(session) is not transaction:
                transaction.end()

    def _hold(self, session: Any, transaction: Transaction) -> None:
        """The connection is the session's, until the message, or the session, is over."""
        self._transactions[session] = transaction
        loop = asyncio.get_running_loop()
        transaction.watch = finalize(session, _let_go, loop, transaction)
        transaction.watch.atexit = False

    def _end(self, session: Any) -> None:
        transaction = self._transactions.pop(session, None)
        if transaction is not None:
            transaction.end()

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: list[str]
    ) -> str:
        """Ask for a recipient there."""
        transaction = self._transactions.get(session)
        if transaction is None or transaction.hop is None:
            return LOST if envelope.mail_from is not None else NO_MAIL
        if not is_address(address) or not address:
            return BAD_RECIPIENT
        try:
            reply = await transaction.hop.rcpt(address, rcpt_options)
        except HopError as error:
            logger.warning("relay: %s", str(error))  # without its frames
            self._end(session)
            return LOST
        except BaseException:
            self._end(session)
            raise
        if reply.good:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(rcpt_options)
        return passed_on(reply)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Reply:
        """Pass the message on."""
        transaction = self._transactions.get(session)
        everybody = len(envelope.rcpt_tos)
        if transaction is None or transaction.hop is None:
            return answer(server, [LOST] * everybody)
        content = traced(server, session, envelope)
        try:
            refusal = _refuse(transaction.hop, content, transaction.binary)
            if refusal:
                return answer(server, [refusal] * everybody)
            replies = await transaction.hop.data(content, binary=transaction.binary)
        except HopError as error:
            logger.warning("relay: %s", str(error))  # without its frames
            return answer(server, [LOST] * everybody)
        finally:
            self._end(session)
        told = [passed_on(reply) for reply in replies]
        return answer(server, told if len(told) == everybody else told * everybody)

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


def _let_go(loop: asyncio.AbstractEventLoop, transaction: Transaction) -> None:
    """A session has gone, in whatever thread that is noticed."""
    with suppress(RuntimeError):  # the loop has gone, too
        loop.call_soon_threadsafe(transaction.end)


def _missing(hop: Hop, words: set[str]) -> str:
    """What a message needs that the next hop does not have; "": nothing."""
    if "SMTPUTF8" in words and "SMTPUTF8" not in hop.offers:
        return NO_UTF8
    if "REQUIRETLS" in words and "REQUIRETLS" not in hop.offers:
        return NO_TLS
    if "BODY=BINARYMIME" in words and not {"BINARYMIME", "CHUNKING"} <= hop.offers.keys():
        return NO_BINARY
    return ""


def _refuse(hop: Hop, content: bytes, binary: bool) -> str:
    """Why a message must not be passed on; "": it may be."""
    if not binary and ALONE.search(content):
        return BAD_LINES  # two servers could disagree where it ends
    if not content.isascii() and "8BITMIME" not in hop.offers:
        return NO_8BIT
    if len(RECEIVED.findall(content.partition(b"\r\n\r\n")[0])) > MAX_HOPS:
        return LOOP
    return ""
