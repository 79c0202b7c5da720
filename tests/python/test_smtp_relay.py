"""becket.smtp.relay: mail passed on while the client waits."""

from __future__ import annotations

import asyncio
import gc
import re
import smtplib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

import becket
from becket.smtp import relay
from becket.smtp.memory import Memory
from becket.smtp.relay import Relay
from conftest import Certificates
from mail import (
    PATIENCE,
    Envelope,
    Session,
    letter,
    lines,
    send,
    serving,
    serving_by_aiosmtpd,
    untraced,
)
from support import until

Main = Coroutine[Any, Any, None]


class NextHop:
    """A server that answers as it is told, and writes down what it heard. *replies* has texts by
    verb, one for each time (the last one again and again), or None: the connection is cut."""

    def __init__(self, *offers: str, lmtp: bool = False, **replies: list[str | None]) -> None:
        self.offers = offers
        self.lmtp = lmtp
        self.replies: dict[str, list[str | None]] = {
            "CONNECT": ["220 hop"],
            "MAIL": ["250 2.1.0 sender"],
            "RCPT": ["250 2.1.5 recipient"],
            "DATA": ["354 go"],
            "END": ["250 2.0.0 stored"],
            "RSET": ["250 2.0.0 reset"],
            "QUIT": ["221 2.0.0 bye"],
        } | replies
        self.heard: list[str] = []
        self.messages: list[bytes] = []
        self.writers: set[asyncio.StreamWriter] = set()
        self.most = 0
        self.connections = 0
        self.endpoint = ""

    def reply(self, verb: str) -> str | None:
        there = self.replies.get(verb, ["500 5.5.1 what?"])
        return there.pop(0) if len(there) > 1 else there[0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        self.most = max(self.most, len(self.writers))
        try:
            await self.talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(verb: str) -> bool:
            text = self.reply(verb)
            if text is not None:
                writer.write(text.encode() + b"\r\n")
            return text is not None

        accepted = 0
        if not say("CONNECT"):
            return
        while line := (await reader.readline()).decode().rstrip("\r\n"):
            self.heard.append(line)
            verb = line[:4].upper()
            if verb in ("EHLO", "LHLO") and verb not in self.replies:
                writer.write("".join(f"250-{each}\r\n" for each in ("hop", *self.offers)).encode())
                writer.write(b"250 ENHANCEDSTATUSCODES\r\n")
                continue
            if verb == "BDAT":
                data = await reader.readexactly(int(line.split()[1]))
                self.messages.append(untraced(data))
                verb = "END"
            if verb == "MAIL":
                accepted = 0
            answer = self.replies.get(verb, [""])[0] or ""
            accepted += verb == "RCPT" and answer.startswith("2")
            if not say(verb) or verb == "QUIT":
                return
            if verb == "DATA" and answer.startswith("354"):
                data = await reader.readuntil(b"\r\n.\r\n")
                data = data[: -len(b".\r\n")]
                data = re.sub(rb"^\.", b"", data.replace(b"\r\n.", b"\r\n"))
                self.messages.append(untraced(data))
                for _ in range(accepted if self.lmtp else 1):
                    if not say("END"):
                        return

    @asynccontextmanager
    async def running(self) -> AsyncIterator[NextHop]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.endpoint = f"tcp://127.0.0.1:{port}"
        try:
            yield self
            await until(lambda: not self.writers)
        finally:
            server.close()
            for writer in self.writers:
                writer.transport.abort()


class Client:
    """What a server does with the handler for one client."""

    def __init__(self, handler: Relay, lmtp: bool = False) -> None:
        self.handler = handler
        self.server = type("Server", (), {"lmtp": lmtp})
        self.session = Session()
        self.envelope = Envelope(b"", None, ())
        self.envelope.mail_from = None

    async def mail(self, address: str = "me@a.org", *options: str) -> str:
        self.envelope = Envelope(b"", None, ())
        return await self.handler.handle_MAIL(
            None, self.session, self.envelope, address, list(options)
        )

    async def rcpt(self, address: str = "you@b.org", *options: str) -> str:
        return await self.handler.handle_RCPT(
            None, self.session, self.envelope, address, list(options)
        )

    async def data(self, content: bytes = b"Subject: x\r\n\r\ntext\r\n") -> Any:
        self.envelope.content = content
        return await self.handler.handle_DATA(self.server, self.session, self.envelope)

    async def send(self, content: bytes = b"Subject: x\r\n\r\ntext\r\n") -> Any:
        assert (await self.mail())[:3] == (await self.rcpt())[:3] == "250"
        return await self.data(content)


def run(work: Callable[[], Main]) -> None:
    async def guarded() -> None:
        await asyncio.wait_for(work(), PATIENCE)
        await until(lambda: len(asyncio.all_tasks()) <= 1)

    becket.run(guarded())


@pytest.fixture(autouse=True)
def nothing_is_left(no_leaks: None) -> None:
    pass


# ---- A message -----------------------------------------------------------------------------------


def test_one_message() -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint, hostname="here.example.org")
            client = Client(handler)
            assert await client.mail() == "250 2.1.0 sender"
            assert await client.rcpt("a@b") == "250 2.1.5 recipient"
            assert await client.rcpt("c@d") == "250 2.1.5 recipient"
            assert client.envelope.rcpt_tos == ["a@b", "c@d"]
            text = b"Subject: x\r\n\r\n.\r\n..a\r\n.\r\n"
            assert await client.data(text) == "250 2.0.0 stored"
            assert there.messages == [text]
            await handler.close()
        assert there.heard == [
            "EHLO here.example.org", "MAIL FROM:<me@a.org>", "RCPT TO:<a@b>", "RCPT TO:<c@d>",
            "DATA", "QUIT",
        ]  # fmt: skip

    run(main)


@pytest.mark.parametrize("content", [b"\r\n", b".", b"x", b".\r\n", b"x\r\n"])
def test_edges_of_messages(content: bytes) -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint)
            assert await Client(handler).send(content) == "250 2.0.0 stored"
            assert there.messages == [content if content.endswith(b"\r\n") else content + b"\r\n"]
            await handler.close()

    run(main)


def test_each_recipient_has_the_next_hops_answer() -> None:
    async def main() -> None:
        answers: list[str | None] = [
            "250 2.1.5 ok",
            "550-5.1.1 no\r\n550 5.1.1 such",
            "450 4.2.0 x",
        ]
        async with NextHop(RCPT=answers).running() as there:
            handler = Relay(there.endpoint)
            client = Client(handler)
            await client.mail()
            assert await client.rcpt("a@b") == "250 2.1.5 ok"
            assert await client.rcpt("c@d") == "550 5.1.1 no such"
            assert await client.rcpt("e@f") == "450 4.2.0 x"
            assert client.envelope.rcpt_tos == ["a@b"]
            assert await client.data() == "250 2.0.0 stored"
            await handler.close()

    run(main)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("450 4.2.0 later", "450 4.2.0 later"),
        ("550 5.7.1 never", "550 5.7.1 never"),
        ("550", "550 (the next hop gave no reason)"),
        ("550 \x1b[1m\u00e4", "550 ?[1m?"),
        ("550-a\r\n550-b\r\n550 c", "550 a b c"),
        (f"550 {'x' * 1000}", f"550 {'x' * 400}"),
    ],
)
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "END"])
def test_refusals(verb: str, said: str, told: str) -> None:
    async def main() -> None:
        async with NextHop(**{verb: [said]}).running() as there:
            handler = Relay(there.endpoint)
            client = Client(handler)
            replies = [await client.mail()]
            if verb != "MAIL":
                replies.append(await client.rcpt())
            if verb == "END":
                replies.append(await client.data())
            assert replies[-1] == told
            await client.handler.handle_RSET(None, client.session, client.envelope)
            await handler.close()
        assert ("RSET" in there.heard) == (verb == "RCPT")

    run(main)


@pytest.mark.parametrize("said", ["421 4.3.2 closing", "354 what"])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "END"])
def test_what_ends_the_connection_is_no_answer(verb: str, said: str) -> None:
    async def main() -> None:
        async with NextHop(**{verb: [said]}).running() as there:
            handler = Relay(there.endpoint, connections=1)
            for _ in range(2):
                client = Client(handler)
                reply: Any = await client.mail()
                if verb != "MAIL":
                    reply = await client.rcpt()
                if verb == "END":
                    reply = await client.data()
                assert reply == (relay.UNREACHABLE if verb == "MAIL" else relay.LOST)
            assert there.connections == 2
            await handler.close()

    run(main)


@pytest.mark.parametrize(
    ("said", "told", "usable"),
    [("451 4.3.0 no", "451 4.3.0 no", True), ("554 5.5.1 no", "554 5.5.1 no", True),
     ("250 2.0.0 what?", relay.LOST, False), ("220 what?", relay.LOST, False)],
)  # fmt: skip
def test_answers_to_data(said: str, told: str, usable: bool) -> None:
    """Above all, one that looks like an acknowledgement is none."""

    async def main() -> None:
        async with NextHop(DATA=[said, "354 go"]).running() as there:
            handler = Relay(there.endpoint, connections=1)
            assert await Client(handler).send() == told
            assert there.messages == []
            assert await Client(handler).send() == "250 2.0.0 stored"
            assert there.connections == (1 if usable else 2)
            await handler.close()

    run(main)


# ---- LMTP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lmtp", [True, False])
def test_lmtp(lmtp: bool) -> None:
    async def main() -> None:
        ends: list[str | None] = ["250 2.0.0 a", "452 4.2.2 full", "250 2.0.0 c"]
        rcpts: list[str | None] = ["250 1", "550 5.1.1 no", "250 2", "250 3"]
        async with NextHop(lmtp=True, END=ends, RCPT=rcpts).running() as there:
            handler = Relay(there.endpoint, lmtp=True)
            client = Client(handler, lmtp=lmtp)
            await client.mail()
            replies = [await client.rcpt(f"{n}@b") for n in range(4)]
            assert [reply[:3] for reply in replies] == ["250", "550", "250", "250"]
            told = await client.data()
            each = ["250 2.0.0 a", "452 4.2.2 full", "250 2.0.0 c"]
            assert told == (each if lmtp else each[1])
            await handler.close()
        assert there.heard[0] == "LHLO localhost"

    run(main)


def test_lmtp_for_a_client_of_lmtp_from_a_next_hop_of_smtp() -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint)
            client = Client(handler, lmtp=True)
            await client.mail()
            await client.rcpt("a@b")
            await client.rcpt("c@d")
            assert await client.data() == ["250 2.0.0 stored"] * 2
            await handler.close()

    run(main)


def test_lmtp_whose_data_is_refused() -> None:
    async def main() -> None:
        async with NextHop(lmtp=True, DATA=["451 4.3.0 no"]).running() as there:
            handler = Relay(there.endpoint, lmtp=True)
            client = Client(handler, lmtp=True)
            await client.mail()
            await client.rcpt("a@b")
            await client.rcpt("c@d")
            assert await client.data() == ["451 4.3.0 no"] * 2
            await handler.close()

    run(main)


# ---- Extensions ----------------------------------------------------------------------------------

ALL = ("SIZE 1000", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING", "BINARYMIME", "REQUIRETLS")
GIVEN = ("SIZE=100", "BODY=8BITMIME", "SMTPUTF8", "RET=HDRS", "ENVID=x", "AUTH=<>", "X=y", "A=b c")


@pytest.mark.parametrize(
    ("offers", "passed"),
    [
        (ALL, " SIZE=100 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=x"),
        (("SMTPUTF8", "dsn"), " SMTPUTF8 RET=HDRS ENVID=x"),
    ],
)
def test_parameters_that_are_known_there_are_passed_on(
    offers: tuple[str, ...], passed: str
) -> None:
    async def main() -> None:
        async with NextHop(*offers).running() as there:
            handler = Relay(there.endpoint)
            client = Client(handler)
            await client.mail("ü@a.org", *GIVEN)
            await client.rcpt("b@c", "NOTIFY=NEVER", "ORCPT=rfc822;b@c", "X=\r\nRSET")
            assert there.heard[1:] == [
                f"MAIL FROM:<ü@a.org>{passed}",
                "RCPT TO:<b@c> NOTIFY=NEVER ORCPT=rfc822;b@c",
            ]
            await client.data()
            await handler.close()

    run(main)


@pytest.mark.parametrize(
    ("option", "reply"),
    [
        ("SMTPUTF8", "553 5.6.7 "),
        ("BODY=BINARYMIME", "554 5.6.3 "),
        ("requiretls", "550 5.7.30 "),
    ],
)
def test_what_the_next_hop_must_have_for_it(option: str, reply: str) -> None:
    async def main() -> None:
        async with NextHop("8BITMIME", "CHUNKING").running() as there:
            handler = Relay(there.endpoint)
            assert (await Client(handler).mail("a@b", option)).startswith(reply)
            await handler.close()
        assert there.heard == ["EHLO localhost", "QUIT"]

    run(main)


def test_eight_bits() -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint)
            assert (await Client(handler).send("ü\r\n".encode())).startswith("554 5.6.3 ")
            assert there.messages == []
            await handler.close()

    run(main)


def test_binary() -> None:
    async def main() -> None:
        async with NextHop(*ALL).running() as there:
            handler = Relay(there.endpoint)
            client = Client(handler)
            await client.mail("a@b", "BODY=BINARYMIME")
            await client.rcpt()
            assert await client.data(b"\0\r\n.\r\n\n\r") == "250 2.0.0 stored"
            assert there.messages == [b"\0\r\n.\r\n\n\r"]
            assert re.fullmatch(r"BDAT \d+ LAST", there.heard[-1])
            await handler.close()

    run(main)


# ---- What must not be passed on ------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"a\n.\r\nMAIL", b"a\r.\r\n", b"a\r\n.\nb", b"\n", b"\r", b"a\r\r\n", b"x\n\r\n"]
)
def test_lines_that_could_end_a_message_elsewhere(content: bytes) -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint)
            assert await Client(handler).send(content) == relay.BAD_LINES
            assert there.messages == []
            await handler.close()

    run(main)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("", True), ("a@b", True), ('"a b"@c', True), ('"a\\"b"@c', True), ("ü@ä", True),
        ("a b@c", False), ("a>@b", False), ("<a@b", False), ("a\r\nRSET", False), ("a\0", False),
        ('"a@b', False), ('"a\r"@b', False), ("x" * 321, False), ('"\\', False), ("a\u2028", False),
    ],
)  # fmt: skip
def test_addresses(address: str, good: bool) -> None:
    async def main() -> None:
        async with NextHop("SMTPUTF8").running() as there:
            handler = Relay(there.endpoint)
            client = Client(handler)
            assert (await client.mail(address) != relay.BAD_SENDER) == good
            await client.mail("", "SMTPUTF8")
            assert (await client.rcpt(address) != relay.BAD_RECIPIENT) == (good and address != "")
            await handler.handle_RSET(None, client.session, client.envelope)
            await handler.close()

    run(main)


def test_addresses_that_are_none() -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint)
            client = Client(handler)
            assert await client.mail("a>\r\nRSET") == relay.BAD_SENDER
            assert await client.rcpt() == relay.NO_MAIL
            await client.mail("")
            assert await client.rcpt("") == relay.BAD_RECIPIENT
            assert await client.rcpt("a b") == relay.BAD_RECIPIENT
            assert await client.rcpt("a@b") == "250 2.1.5 recipient"
            await client.data()
            await handler.close()
        assert there.heard[1:3] == ["MAIL FROM:<>", "RCPT TO:<a@b>"]

    run(main)


@pytest.mark.parametrize(("hops", "reply"), [(99, "250 2.0.0 stored"), (100, relay.LOOP)])
def test_loops(hops: int, reply: str) -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint)
            text = b"Received: x\r\n" * hops + b"\r\n" + b"Received: y\r\n" * 99
            assert await Client(handler).send(text) == reply
            await handler.close()

    run(main)


# ---- Connections ---------------------------------------------------------------------------------


def test_connections_are_used_again() -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint)
            client = Client(handler)
            for _ in range(5):
                assert await client.send() == "250 2.0.0 stored"
                assert await Client(handler).send() == "250 2.0.0 stored"
            assert (there.connections, len(there.messages)) == (1, 10)
            await handler.close()
            assert there.heard[-1] == "QUIT"

    run(main)


def test_one_that_has_carried_enough_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MAX_MESSAGES", 2)

    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint)
            for _ in range(4):
                assert await Client(handler).send() == "250 2.0.0 stored"
            await handler.close()
            assert (there.connections, there.heard.count("QUIT")) == (2, 2)

    run(main)


def test_one_that_was_idle_for_long_is_ended() -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint, keep=0.01)
            assert await Client(handler).send() == "250 2.0.0 stored"
            await until(lambda: not there.writers)
            assert there.heard[-1] == "QUIT"
            assert await Client(handler).send() == "250 2.0.0 stored"
            await handler.close()

    run(main)


def test_one_that_ended_while_it_was_idle() -> None:
    async def main() -> None:
        async with NextHop(MAIL=["250 a", None, "250 b"]).running() as there:
            handler = Relay(there.endpoint)
            assert await Client(handler).send() == "250 2.0.0 stored"
            assert await Client(handler).send() == "250 2.0.0 stored"  # on another
            assert there.connections == 2
            await handler.close()

    run(main)


def test_one_that_said_something_while_it_was_idle() -> None:
    async def main() -> None:
        ends: list[str | None] = ["250 2.0.0 stored\r\n421 4.3.2 closing", "250 2.0.0 stored"]
        async with NextHop(END=ends).running() as there:
            handler = Relay(there.endpoint)
            assert await Client(handler).send() == "250 2.0.0 stored"
            assert await Client(handler).send() == "250 2.0.0 stored"
            assert there.connections == 2
            await handler.close()

    run(main)


def test_no_more_than_so_many() -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint, connections=2)
            clients = [Client(handler) for _ in range(20)]
            assert set(await asyncio.gather(*(c.send() for c in clients))) == {"250 2.0.0 stored"}
            assert (there.most, len(there.messages)) == (2, 20)
            await handler.close()

    run(main)


def test_clients_wait_but_not_for_ever() -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint, connections=1, wait=0.05)
            first, second = Client(handler), Client(handler)
            await first.mail()
            assert await second.mail() == relay.BUSY
            await first.rcpt()
            await first.data()
            assert await second.send() == "250 2.0.0 stored"
            await handler.close()

    run(main)


@pytest.mark.parametrize("end", ["RSET", "QUIT", "EHLO", "HELO", "MAIL", "gone"])
def test_a_message_that_is_given_up_frees_its_connection(end: str) -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            handler = Relay(there.endpoint, connections=1)
            client = Client(handler)
            await client.mail()
            await client.rcpt()
            about: tuple[Any, ...] = (client.session, client.envelope)
            if end == "EHLO":
                assert await handler.handle_EHLO(None, *about, "me", ["250 x"]) == ["250 x"]
                assert client.session.host_name == "me"
            elif end == "HELO":
                server = type("Server", (), {"hostname": "us"})
                assert await handler.handle_HELO(server, *about, "me") == "250 us"
            elif end == "MAIL":
                assert await client.mail() == "250 2.1.0 sender"
                await client.rcpt()
                await client.data()
            elif end == "gone":
                del client, about
                gc.collect()
            else:
                await getattr(handler, f"handle_{end}")(None, *about)
            assert await Client(handler).send() == "250 2.0.0 stored"
            assert there.connections == 1
            assert there.heard.count("RSET") == 1
            await handler.close()

    run(main)


def test_a_reset_that_is_refused_costs_the_connection() -> None:
    async def main() -> None:
        async with NextHop(RSET=["500 no"]).running() as there:
            handler = Relay(there.endpoint, connections=1)
            client = Client(handler)
            await client.mail()
            await handler.handle_RSET(None, client.session, client.envelope)
            assert await client.send() == "250 2.0.0 stored"
            assert there.connections == 2
            await handler.close()

    run(main)


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "END"])
def test_one_whose_client_left_in_between_is_not_used_again(verb: str) -> None:
    """Else what it says later would be taken for the answer to another message."""

    async def main() -> None:
        there = NextHop()
        there.replies[verb].insert(0, "250-wait" if verb != "DATA" else "354-wait")
        async with there.running():
            handler = Relay(there.endpoint, connections=1)
            task = asyncio.create_task(Client(handler).send())
            await until(lambda: len(there.replies[verb]) == 1)
            task.cancel()
            await asyncio.wait([task])
            assert await Client(handler).send() == "250 2.0.0 stored"
            assert there.connections == 2
            await handler.close()

    run(main)


# ---- A next hop that is not there, or breaks off -------------------------------------------------


def test_nobody_is_there() -> None:
    async def main() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            handler = Relay(f"tcp://127.0.0.1:{unused.getsockname()[1]}", connections=1)
            for _ in range(3):  # and the connection it would have had is free again
                assert await Client(handler).mail() == relay.UNREACHABLE

    run(main)


@pytest.mark.parametrize(
    "replies",
    [
        {"CONNECT": [None]},
        {"CONNECT": ["554 5.7.1 not you"]},
        {"CONNECT": ["421 4.3.2 later"]},
        {"CONNECT": ["SSH-2.0-x"]},
        {"CONNECT": ["220-a\r\n221 b"]},
        {"CONNECT": ["220-a\r\n" * 101]},
        {"CONNECT": ["220 " + "x" * 20000]},
        {"EHLO": ["500 what"], "HELO": ["500 what"]},
        {"EHLO": [None]},
        {"MAIL": [None]},
        {"MAIL": ["nonsense"]},
        {"MAIL": ["999 x"]},
    ],
)
def test_it_breaks_off_before(replies: Any) -> None:
    async def main() -> None:
        async with NextHop(**replies).running() as there:
            handler = Relay(there.endpoint, connections=1)
            for _ in range(2):
                assert await Client(handler).mail() == relay.UNREACHABLE

    run(main)


@pytest.mark.parametrize("verb", ["RCPT", "DATA", "END"])
def test_it_breaks_off_within(verb: str) -> None:
    async def main() -> None:
        async with NextHop(**{verb: [None]}).running() as there:
            handler = Relay(there.endpoint, connections=1)
            for _ in range(2):
                client = Client(handler)
                await client.mail()
                reply = await client.rcpt()
                if verb == "RCPT":
                    assert reply == await client.rcpt() == relay.LOST
                else:
                    assert await client.data() == relay.LOST

    run(main)


def test_no_esmtp() -> None:
    async def main() -> None:
        async with NextHop(EHLO=["502 no"], HELO=["250 hop"]).running() as there:
            handler = Relay(there.endpoint)
            client = Client(handler)
            await client.mail("a@b", "SIZE=5", "BODY=8BITMIME")
            assert there.heard == ["EHLO localhost", "HELO localhost", "MAIL FROM:<a@b>"]
            await client.rcpt()
            assert await client.data() == "250 2.0.0 stored"
            await handler.close()

    run(main)


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("CONNECT", relay.UNREACHABLE),
        ("MAIL", relay.UNREACHABLE),
        ("RCPT", relay.LOST),
        ("DATA", relay.LOST),
        ("END", relay.LOST),
    ],
)
def test_it_says_nothing(verb: str, told: str) -> None:
    async def main() -> None:
        async with NextHop(**{verb: ["250-" if verb != "DATA" else "354-"]}).running() as there:
            ready = 0.05 if verb == "CONNECT" else PATIENCE
            client = Client(Relay(there.endpoint, connect_timeout=ready, timeout=1))
            reply: Any = await client.mail()
            if told == relay.LOST:
                reply = await client.rcpt()
            if verb in ("DATA", "END"):
                reply = await client.data()
            assert reply == told

    run(main)


def test_it_takes_nothing_any_more() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hop\r\n")
        for reply in (b"250 hop", b"250 mail", b"250 rcpt", b"354 go"):
            await reader.readline()
            writer.write(reply + b"\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.close()

    async def main() -> None:
        nonlocal over
        over = asyncio.Event()
        async with await asyncio.start_server(deaf, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = Client(Relay(f"tcp://127.0.0.1:{port}", timeout=1))
            assert await client.send(b"x" * 50_000_000) == relay.LOST
            over.set()

    over: Any = None
    run(main)


def test_arguments_that_cannot_be_right() -> None:
    with pytest.raises(ValueError, match="connections: 0 is less than 1"):
        Relay("tcp://127.0.0.1:25", connections=0)


# ---- TLS and logging in --------------------------------------------------------------------------


def test_a_password_is_not_sent_in_clear() -> None:
    async def main() -> None:
        async with NextHop("AUTH PLAIN").running() as there:
            handler = Relay(there.endpoint, login=("ada", "secret"))
            assert await Client(handler).mail() == relay.UNREACHABLE
        assert there.heard == ["EHLO localhost"]

    run(main)


class TlsHop(NextHop):
    """One that has STARTTLS, or TLS from the start."""

    def __init__(self, context: Any, **more: Any) -> None:
        super().__init__(**more)
        self.context = context

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hop\r\n")
        self.heard.append((await reader.readline()).decode().strip())
        writer.write(b"250-hop\r\n250 STARTTLS\r\n")
        assert await reader.readline() == b"STARTTLS\r\n"
        writer.write((self.reply("STARTTLS") or "").encode() + b"\r\n")
        await writer.start_tls(self.context)
        self.replies["CONNECT"] = ["250-hop\r\n250 AUTH LOGIN PLAIN"]
        self.heard.append((await reader.readline()).decode().strip())
        await super().talk(reader, writer)


def test_starttls_and_a_password(tls: Certificates) -> None:
    async def main() -> None:
        context = tls.server("server")
        there = TlsHop(context, STARTTLS=["220 go"], AUTH=["235 2.7.0 welcome"])
        async with there.running():
            where = there.endpoint.replace("tcp://127.0.0.1", "starttls://localhost")
            endpoint = f"{where}?ca={tls.path('ca.crt')}"
            handler = Relay(endpoint, login=("ada", "secret"))
            assert await Client(handler).send() == "250 2.0.0 stored"
            await handler.close()
        assert there.heard[:3] == ["EHLO localhost"] * 2 + ["AUTH PLAIN AGFkYQBzZWNyZXQ="]

    run(main)


def test_more_than_was_asked_before_tls(tls: Certificates) -> None:
    """It is no answer to anything: the password goes by what is offered under TLS."""

    async def main() -> None:
        injected = "220 go\r\n250-injected\r\n250 AUTH LOGIN"
        there = TlsHop(tls.server("server"), STARTTLS=[injected], AUTH=["235 2.7.0 welcome"])
        async with there.running():
            where = there.endpoint.replace("tcp://127.0.0.1", "starttls://localhost")
            handler = Relay(f"{where}?ca={tls.path('ca.crt')}", login=("ada", "secret"))
            assert await Client(handler).send() == "250 2.0.0 stored"
            await handler.close()
        assert there.heard[:3] == ["EHLO localhost"] * 2 + ["AUTH PLAIN AGFkYQBzZWNyZXQ="]

    run(main)


def test_starttls_that_is_not_offered() -> None:
    async def main() -> None:
        async with NextHop().running() as there:
            where = there.endpoint.replace("tcp:", "starttls:")
            assert await Client(Relay(f"{where}?verify=none")).mail() == relay.UNREACHABLE
        assert there.heard == ["EHLO localhost"]

    run(main)


# ---- Under a server, to a server -----------------------------------------------------------------


def test_from_a_client_through_two_servers() -> None:
    memory, message = Memory(), letter("through", "Grüße\n.\n")
    with serving_by_aiosmtpd(memory) as port:
        with serving(Relay(f"tcp://127.0.0.1:{port}", keep=0)) as own:
            for _ in range(3):
                with smtplib.SMTP("127.0.0.1", own, timeout=PATIENCE) as client:
                    for _ in range(3):
                        client.send_message(message)
    contents = [untraced(each.content) for each in memory.messages()]
    assert contents == [lines(message)] * 9


def test_under_aiosmtpd() -> None:
    memory, loop = Memory(), becket.EventLoop()
    with serving(memory) as port:
        handler = Relay(f"tcp://127.0.0.1:{port}")
        with serving_by_aiosmtpd(handler, loop) as own:
            send(own, letter("through"))
            asyncio.run_coroutine_threadsafe(handler.close(), loop).result(PATIENCE)
    assert [each.parsed["Subject"] for each in memory.messages()] == ["through"]


def test_each_recipient_hears_what_the_next_hop_says() -> None:
    class Picky:
        async def handle_RCPT(
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            if address.startswith("no"):
                return "550 5.1.1 nobody"
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 somebody"

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
            return [f"250 2.0.0 for {each}" for each in envelope.rcpt_tos]

    with serving(Picky(), lmtp=True) as port:
        with serving(Relay(f"tcp://127.0.0.1:{port}", lmtp=True, keep=0), lmtp=True) as own:
            with smtplib.LMTP("127.0.0.1", own) as client:
                client.ehlo()
                client.mail("me@a.org")
                assert client.rcpt("yes@b") == (250, b"2.1.5 somebody")
                assert client.rcpt("no@b") == (550, b"5.1.1 nobody")
                assert client.rcpt("also@b") == (250, b"2.1.5 somebody")
                assert client.data(b"x\r\n") == (250, b"2.0.0 for yes@b")
                assert client.getreply() == (250, b"2.0.0 for also@b")


def test_clients_that_leave_free_their_connections() -> None:
    memory = Memory()
    with serving(memory) as port:
        with serving(Relay(f"tcp://127.0.0.1:{port}", connections=1, keep=0)) as own:
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", own), PATIENCE) as gone:
                    gone.sendall(b"EHLO me\r\nMAIL FROM:<a@b>\r\n")
                    answers = gone.makefile("rb")
                    while not answers.readline().startswith(b"250 2.1.0"):
                        pass
                    answers.close()
                send(own, letter())
    assert len(memory) == 3
