"""A dialogue with a next hop, command by command, by SMTP or LMTP: what a relay says while its own
client waits for the answer. Whole messages are sent by becket.smtp's client, which asks nobody in
between. Called by relay.py.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from becket.streams import open

PIECE = 262144  # bytes given to the connection at a time
MAX_LINES = 100  # of a reply
MAX_REPLY = 400  # characters of one that are passed on
# Seconds: those of RFC 5321, 4.5.3.2, but for the first two, as our own client waits meanwhile.
CONNECT = 30.0
GREETING = 60.0
COMMAND = 300.0
DATA = 120.0
BLOCK = 180.0
END = 600.0

LINE = re.compile(rb"([2345][0-9][0-9])(?:([ -])([^\r\n]*))?\r?\n")
ALONE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
ADDRESS = re.compile(
    r'(?:"(?:[^"\\<>\x00-\x1f\x7f]|\\[^<>\x00-\x1f\x7f])*"|[^\s"<>\x00-\x1f\x7f])*'
)
PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=[\x21-\x3c\x3e-\x7e]+)?")
OFFERED_BY = {  # which extension a parameter belongs to
    "SIZE": "SIZE",
    "BODY": "8BITMIME",
    "SMTPUTF8": "SMTPUTF8",
    "REQUIRETLS": "REQUIRETLS",
    **dict.fromkeys(("RET", "ENVID", "NOTIFY", "ORCPT"), "DSN"),
}


class HopError(OSError):
    """The next hop cannot be reached, has gone, or does not speak SMTP."""


class Reply(NamedTuple):
    """What was answered."""

    code: int
    text: str  # lines joined, printable ASCII

    @property
    def good(self) -> bool:
        """Whether it was accepted."""
        return 200 <= self.code < 300

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


def is_address(address: str) -> bool:
    """Whether it can be put between < and >, and means itself there."""
    return len(address) <= 320 and ADDRESS.fullmatch(address) is not None


class Hop:
    """A connection to a next hop. A HopError is its end. Of one task at a time."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lmtp: bool
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._lmtp = lmtp
        self._recipients = 0  # that were accepted
        self.offers: dict[str, str] = {}
        self.clean = True  # in no transaction
        self.messages = 0  # that were begun

    # ---- The beginning and the end ----

    @classmethod
    async def connect(
        cls,
        endpoint: str,
        *,
        lmtp: bool = False,
        hostname: str = "localhost",
        login: tuple[str, str] | None = None,
    ) -> Hop:
        """Connect, greet, start TLS where the endpoint is a ``starttls`` one, and log in."""
        try:
            reader, writer = await asyncio.wait_for(open(endpoint, limit=8192), CONNECT)
        except TimeoutError:
            raise HopError(0, f"{endpoint}: no answer in {CONNECT:g} seconds") from None
        except OSError as error:
            raise HopError(error.errno or 0, f"{endpoint}: {error.strerror or error}") from error
        hop = cls(reader, writer, lmtp=lmtp)
        try:
            await hop._begin(endpoint, hostname, login)
        except BaseException:
            hop.abort()
            raise
        return hop

    async def _begin(self, endpoint: str, hostname: str, login: tuple[str, str] | None) -> None:
        await self._expect(await self.reply(GREETING), 220)
        await self._hello(hostname)
        if endpoint.startswith("starttls"):
            if "STARTTLS" not in self.offers:
                raise HopError(0, f"{endpoint}: the next hop offers no STARTTLS")
            await self._expect(await self._ask("STARTTLS"), 220)
            await self._start_tls()
            await self._hello(hostname)
        if login is not None:
            await self._log_in(*login, secure="tls" in endpoint.partition(":")[0])

    async def _expect(self, reply: Reply, code: int) -> None:
        if reply.code != code:
            self.abort()
            raise HopError(0, f"the next hop said {reply}")

    async def _hello(self, hostname: str) -> None:
        reply, lines = await self._lines(f"{'LHLO' if self._lmtp else 'EHLO'} {hostname}")
        if reply.code != 250 and not self._lmtp:
            reply, lines = await self._ask(f"HELO {hostname}"), []
        await self._expect(reply, 250)
        pairs = (line.partition(" ") for line in lines[1:])
        self.offers = {name.upper(): value for name, _, value in pairs}

    async def _start_tls(self) -> None:
        if self._reader._buffer:  # type: ignore[attr-defined]
            raise HopError(0, "the next hop said more before TLS than it was asked")
        try:
            await self._writer.start_tls(None)  # type: ignore[arg-type]  # what the endpoint offers
        except OSError as error:
            raise HopError(0, f"TLS with the next hop: {error}") from error
        self._reader._transport = self._writer.transport  # type: ignore[attr-defined]

    async def _log_in(self, user: str, password: str, *, secure: bool) -> None:
        if not secure:
            raise HopError(0, "no password is sent without TLS")
        if "PLAIN" not in self.offers.get("AUTH", "").upper().split():
            raise HopError(0, "the next hop does not offer AUTH PLAIN")
        secret = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        await self._expect(await self._ask(f"AUTH PLAIN {secret}"), 235)

    async def quit(self) -> None:
        """In good order, if there is still somebody."""
        try:
            await asyncio.wait_for(self._ask("QUIT"), 5)
        except (OSError, TimeoutError):
            pass
        self.abort()

    def abort(self) -> None:
        """At once."""
        self._writer.transport.abort()

    @property
    def alive(self) -> bool:
        """Whether it has not ended, nor said what nobody asked for."""
        return not (self._reader.at_eof() or self._reader._buffer or self._writer.is_closing())  # type: ignore[attr-defined]

    # ---- A transaction ----

    def _parameters(self, parameters: Sequence[str]) -> str:
        """Those that the next hop knows; it would refuse others, and does without."""
        known = []
        for each in parameters:
            found = PARAMETER.fullmatch(each)
            if found and OFFERED_BY.get(found[1].upper()) in self.offers:
                known.append(f" {each}")
        return "".join(known)

    async def mail(self, sender: str, parameters: Sequence[str]) -> Reply:
        """Begin a message."""
        self._recipients = 0
        self.clean = False
        self.messages += 1
        return await self._ask(f"MAIL FROM:<{sender}>{self._parameters(parameters)}")

    async def rcpt(self, recipient: str, parameters: Sequence[str]) -> Reply:
        """One more recipient."""
        reply = await self._ask(f"RCPT TO:<{recipient}>{self._parameters(parameters)}")
        self._recipients += reply.good
        return reply

    async def data(self, content: bytes, *, binary: bool = False) -> list[Reply]:
        """The message: one answer for all recipients; from LMTP one for each, in order. One that
        is not *binary* must have whole line ends."""
        if binary:
            await self._send(b"BDAT %d LAST\r\n" % len(content), content)
        else:
            reply = await self._ask("DATA", DATA)
            if 400 <= reply.code < 600:
                return [reply] * (self._recipients if self._lmtp else 1)
            await self._expect(reply, 354)
            if not content.endswith(b"\r\n"):
                content += b"\r\n"
            stuffed = content.replace(b"\r\n.", b"\r\n..")
            await self._send(b"." if stuffed.startswith(b".") else b"", stuffed, b".\r\n")
        replies = [await self.reply(END) for _ in range(self._recipients if self._lmtp else 1)]
        self.clean = True
        return replies

    async def reset(self) -> None:
        """Forget the message. HopError: the connection is of no use any more."""
        await self._expect(await self._ask("RSET"), 250)
        self.clean = True

    # ---- Commands and replies ----

    async def _ask(self, command: str, timeout: float | None = None) -> Reply:
        await self._send(command.encode() + b"\r\n")
        return await self.reply(COMMAND if timeout is None else timeout)

    async def _lines(self, command: str) -> tuple[Reply, list[str]]:
        await self._send(command.encode() + b"\r\n")
        return await self._read(COMMAND)

    async def _send(self, *pieces: bytes) -> None:
        with self._or_end(BLOCK, "took nothing"):
            for piece in pieces:
                for at in range(0, len(piece), PIECE):
                    self._writer.write(piece[at : at + PIECE])
                    async with asyncio.timeout(BLOCK):
                        await self._writer.drain()

    @contextmanager
    def _or_end(self, timeout: float, what: str) -> Iterator[None]:
        """Whatever interrupts a command, our own client's end too, ends the connection: what comes
        next must not be taken for the answer to something else."""
        try:
            yield
        except TimeoutError:
            self.abort()
            raise HopError(0, f"the next hop {what} for {timeout:g} seconds") from None
        except HopError:
            self.abort()
            raise
        except (OSError, ValueError) as error:
            self.abort()
            raise HopError(0, f"the next hop has gone: {error}") from error
        except BaseException:
            self.abort()
            raise

    async def reply(self, timeout: float) -> Reply:
        """Its next reply."""
        return (await self._read(timeout))[0]

    async def _read(self, timeout: float) -> tuple[Reply, list[str]]:
        with self._or_end(timeout, "said nothing"):
            async with asyncio.timeout(timeout):
                return await self._read_lines()

    async def _read_lines(self) -> tuple[Reply, list[str]]:
        lines: list[str] = []
        code = b""
        while len(lines) < MAX_LINES:
            line = await self._reader.readline()
            if not line.endswith(b"\n"):
                raise HopError(0, "the next hop has gone")
            found = LINE.fullmatch(line)
            if found is None or code not in (b"", found[1]):
                raise HopError(0, f"the next hop does not speak SMTP: {line[:80]!r}")
            code = found[1]
            lines.append(re.sub(r"[^\x20-\x7e]", "?", (found[3] or b"").decode("latin-1")))
            if found[2] != b"-":
                return Reply(int(code), " ".join(lines).strip()[:MAX_REPLY]), lines
        raise HopError(0, f"the next hop's reply has more than {MAX_LINES} lines")
