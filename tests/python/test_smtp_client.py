"""becket.smtp's client: messages and their replies, its exceptions, TLS, MX records, `becket send`;
against servers that are scripts, and our own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import smtplib
import ssl
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from email.message import EmailMessage, Message
from pathlib import Path
from typing import Any

import pytest

import becket
from becket import _becket, smtp
from becket.cli import main
from becket.smtp import outgoing
from becket.smtp.client import endpoint_of
from becket.smtp.replies import ending

DATA = b"Subject: x\r\n\r\nHello.\r\n"


ANSWERS = {
    "": "220 mx",
    "EHLO": "250-mx\n250-PIPELINING\n250-8BITMIME\n250-SMTPUTF8\n250 DSN",
    "LHLO": "250-mx\n250 PIPELINING",
    "MAIL": "250 2.1.0 sender ok",
    "RCPT": "250 2.1.5 recipient ok",
    "DATA": "354 go on",
    ".": "250 2.0.0 taken",
    "RSET": "250 2.0.0 ok",
    "QUIT": "221 2.0.0 bye",
}


class Script:
    """A server that answers each command by its first word, and keeps what it heard."""

    def __init__(self, **answers: str) -> None:
        self.answers = ANSWERS | {k.replace("END", "."): v for k, v in answers.items()}
        self.heard: list[str] = []
        self.connections = 0
        self.tasks: list[Any] = []

    def answer(self, line: str) -> str | None:
        """None: hang up."""
        for start in (line, line.partition(" ")[0].upper()):
            if start in self.answers:
                return self.answers[start]
        return "500 5.5.1 what"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.append(asyncio.current_task())
        in_data, line = False, ""
        reply = self.answer("")
        while reply is not None:
            if reply:
                writer.write(reply.replace("\n", "\r\n").encode() + b"\r\n")
            reply = ""
            if line == "QUIT":
                break
            while reply == "":
                try:
                    line = (await reader.readline()).decode(errors="replace")
                except ConnectionError:
                    line = ""
                if not line:
                    reply = None
                    break
                line = line.removesuffix("\r\n")
                self.heard.append(line)
                if not in_data or line == ".":
                    reply = self.answer(line)
                    in_data = not in_data and line == "DATA" and (reply or "").startswith("354")
        writer.close()

    @contextlib.asynccontextmanager
    async def at(self, host: str = "127.0.0.1") -> AsyncIterator[str]:
        server = await asyncio.start_server(self.serve, host, 0)
        async with server:
            try:
                yield "tcp://{}:{}".format(*server.sockets[0].getsockname()[:2])
            finally:  # clients are gone by now
                await asyncio.gather(*self.tasks)
                self.tasks.clear()


def message(**headers: str) -> EmailMessage:
    m = EmailMessage()
    for name, text in ({"From": "a@b.example", "To": "c@d.example"} | headers).items():
        m[name.replace("_", "-")] = text
    m.set_content("Hello.\n")
    return m


def talk(script: Script, do: Callable[[smtp.Client], Any], **settings: Any) -> Any:
    """The result of *do* with a client of the script."""

    async def run() -> Any:
        async with script.at() as endpoint, smtp.Client(endpoint, **settings) as client:
            return await do(client)

    return becket.run(run())


# ---- Messages and replies ----


def test_sends(no_leaks):
    script = Script()
    result = talk(script, lambda c: c.send("a@b.example", ["c@d.example", "e@f.example"], DATA))
    assert dict(result) == {
        who: smtp.Reply(250, "2.0.0", "taken") for who in ("c@d.example", "e@f.example")
    }
    assert result.accepted == ["c@d.example", "e@f.example"]
    assert result.refused == {}
    assert script.heard == [
        "EHLO localhost",
        "MAIL FROM:<a@b.example>",
        "RCPT TO:<c@d.example>",
        "RCPT TO:<e@f.example>",
        "DATA",
        "Subject: x",
        "",
        "Hello.",
        ".",
        "QUIT",
    ]


def test_reads_replies():
    parse = smtp.Reply.parse
    assert parse("250 2.1.5 ok") == (250, "2.1.5", "ok")
    assert parse("550 5.1.1 no\n5.1.1 never") == (550, "5.1.1", "no\nnever")
    assert parse("250 ok") == (250, "", "ok")
    assert parse("250 ") == (250, "", "")
    assert parse("250 5.1.1 odd") == (250, "", "5.1.1 odd")
    assert str(parse("550 5.1.1 no")) == "550 5.1.1 no"
    assert parse("450 x").temporary and not parse("450 x").ok and parse("250 x").ok


def test_some_recipients_are_refused():
    script = Script(**{"RCPT TO:<no@d.example>": "550 5.1.1 nobody"})
    result = talk(script, lambda c: c.send("a@b.example", ["no@d.example", "yes@d.example"], DATA))
    assert result.accepted == ["yes@d.example"]
    assert result.refused == {"no@d.example": smtp.Reply(550, "5.1.1", "nobody")}
    assert "550 5.1.1 nobody" in repr(result)


@pytest.mark.parametrize(
    ("answers", "kind", "check"),
    [
        ({"MAIL": "550 5.7.1 no"}, "SMTPSenderRefused", (550, b"5.7.1 no", "a@b.example")),
        ({"DATA": "451 4.3.0 later"}, "SMTPDataError", (451, b"4.3.0 later")),
        ({"END": "554 5.6.0 spam"}, "SMTPDataError", (554, b"5.6.0 spam")),
        (
            {"RCPT": "550 5.1.1 no"},
            "SMTPRecipientsRefused",
            ({"c@d.example": (550, b"5.1.1 no")},),
        ),
        ({"END": "hello"}, "SMTPServerDisconnected", None),
        ({"DATA": None}, "SMTPServerDisconnected", None),
    ],
)
def test_exceptions_are_smtplibs(answers, kind, check):
    script = Script(**{k: v for k, v in answers.items() if v is not None})
    for key, value in answers.items():
        if value is None:
            script.answers[key] = None
    with pytest.raises(getattr(smtplib, kind)) as caught:
        talk(script, lambda c: c.send("a@b.example", "c@d.example", DATA))
    assert type(caught.value) is getattr(smtp, kind)
    assert check is None or caught.value.args == check
    assert not caught.value.result.accepted
    assert list(caught.value.result) == ["c@d.example"]


# ---- Step by step ----


def test_goes_step_by_step(no_leaks):
    script = Script(
        EHLO="250-mx\n250-DSN\n250 SIZE 1000", **{"RCPT TO:<no@d.example>": "550 5.1.1 nobody"}
    )

    async def do(client):
        async with client.transaction("a@b.example", size=30, ret="HDRS") as t:
            assert t.reply == (250, "2.1.0", "sender ok")
            assert str(await t.rcpt("no@d.example")) == "550 5.1.1 nobody"
            yes = await t.rcpt("yes@d.example", notify="NEVER", original="rfc822;x@y")
            assert yes == (250, "2.1.5", "recipient ok")
            assert await t.data(DATA) == [smtp.Reply(250, "2.0.0", "taken")]
            with pytest.raises(smtp.SMTPServerDisconnected):
                await t.data(DATA)
        async with client.transaction("") as t:
            await t.rcpt("e@d.example")
        await client.send("f@b.example", "c@d.example", DATA)

    talk(script, do)
    assert script.heard == [
        "EHLO localhost",
        "MAIL FROM:<a@b.example> SIZE=30 RET=HDRS",
        "RCPT TO:<no@d.example>",
        "RCPT TO:<yes@d.example> NOTIFY=NEVER ORCPT=rfc822;x@y",
        *("DATA", "Subject: x", "", "Hello.", "."),
        *("MAIL FROM:<>", "RCPT TO:<e@d.example>", "RSET"),
        *("MAIL FROM:<f@b.example> SIZE=22", "RCPT TO:<c@d.example>"),
        *("DATA", "Subject: x", "", "Hello.", ".", "QUIT"),
    ]


def test_one_transaction_at_a_time_and_others_wait():
    script = Script()

    async def do(client):
        async def step_by_step(name):
            async with client.transaction(f"{name}@b.example") as t:
                await t.rcpt("c@d.example")
                await asyncio.sleep(0)
                await t.data(DATA)

        await asyncio.gather(
            step_by_step("a"), client.send("z@b.example", "c@d.example", DATA), step_by_step("b")
        )

    talk(script, do)
    commands = [line[:4] for line in script.heard if line[:4] in ("MAIL", "RCPT", "DATA", ".")]
    assert commands == ["MAIL", "RCPT", "DATA", "."] * 3


@pytest.mark.parametrize(
    ("answers", "stage", "kind"),
    [
        ({"MAIL": "550 5.7.1 no"}, "MAIL", "SMTPSenderRefused"),
        ({"MAIL": None}, "MAIL", "SMTPServerDisconnected"),
        ({"MAIL": "421 4.3.2 bye"}, "MAIL", "SMTPServerDisconnected"),
        ({"RCPT": None}, "RCPT", "SMTPServerDisconnected"),
        ({"RCPT": "354 what"}, "RCPT", "SMTPServerDisconnected"),
        ({"DATA": None}, "DATA", "SMTPServerDisconnected"),
        ({"DATA": "250 odd"}, "DATA", "SMTPServerDisconnected"),
        ({".": None}, "DATA", "SMTPServerDisconnected"),
    ],
)
def test_what_goes_wrong_step_by_step(answers, stage, kind, no_leaks):
    script = Script()
    script.answers.update(answers)

    async def do(client):
        at = "MAIL"
        with pytest.raises(getattr(smtp, kind)):
            async with client.transaction("a@b.example") as t:
                at = "RCPT"
                await t.rcpt("c@d.example")
                at = "DATA"
                await t.data(DATA)
        assert at == stage
        assert client.is_connected == (kind == "SMTPSenderRefused")

    talk(script, do)


@pytest.mark.parametrize("end", [{"DATA": "451 4.3.0 later"}, {"END": "451 4.3.0 later"}])
def test_data_that_is_refused_step_by_step(end):
    async def do(client):
        async with client.transaction("a@b.example") as t:
            await t.rcpt("c@d.example")
            await t.rcpt("e@d.example")
            assert await t.data(DATA) == [smtp.Reply(451, "4.3.0", "later")] * 2
        assert client.is_connected

    talk(Script(**end), do)


def test_what_is_no_step():
    script = Script(RCPT="550 5.1.1 nobody", EHLO="250 mx", **{"RCPT TO:<c@d>": "250 ok"})

    async def do(client):
        with pytest.raises(ValueError, match="sender"):
            await client.transaction("a\r\n@b").__aenter__()
        with pytest.raises(ValueError, match="body"):
            client.transaction("a@b", body="9BIT")
        with pytest.raises(smtp.SMTPSenderRefused, match=r"553, b'5\.6\.7"):
            await client.transaction("ä@b").__aenter__()
        async with client.transaction("a@b") as t:
            for wrong in ("", "c>@d", "ä@d"):
                with pytest.raises(ValueError, match="recipients"):
                    await t.rcpt(wrong)
            with pytest.raises(ValueError, match="notify"):
                await t.rcpt("c@d", notify="PERHAPS")
            await t.rcpt("x@d")
            with pytest.raises(ValueError, match="there is none"):
                await t.data(DATA)
            await t.rcpt("c@d")
            with pytest.raises(TypeError):
                await t.data("text")
            with pytest.raises(ValueError, match="stands alone"):
                await t.data(b"a\rb")
            with pytest.raises(smtp.SMTPServerDisconnected):
                await t.data(DATA)
        async with client.transaction("a@b") as t:
            await t.rcpt("c@d")
            assert [r.enhanced for r in await t.data("ä\r\n".encode())] == ["5.6.3"]

    talk(script, do)
    assert script.heard.count("RSET") == 2
    with pytest.raises(smtp.SMTPServerDisconnected):
        becket.run(smtp.Client("tcp://127.0.0.1:1").transaction("a@b").__aenter__())


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "END"])
def test_a_step_that_is_cancelled_ends_the_connection(command, no_leaks):
    """What comes next must not be taken for the answer to something else."""
    script = Script(**{command: "354-wait" if command == "DATA" else "250-wait"})

    async def do(client):
        async def send():
            async with client.transaction("a@b.example") as t:
                await t.rcpt("c@d.example")
                await t.data(DATA)

        task = asyncio.create_task(send())
        word = "." if command == "END" else command
        while not any(line.startswith(word) for line in script.heard):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not client.is_connected
        with pytest.raises(smtp.SMTPServerDisconnected):
            await client.transaction("a@b.example").__aenter__()

    talk(script, do)


def test_what_the_server_cannot_take():
    script = Script(EHLO="250 mx")

    async def send(client):
        with pytest.raises(smtp.SMTPNotSupportedError, match=r"553 5\.6\.7"):
            await client.send("ä@b.example", "c@d.example", DATA)
        with pytest.raises(smtp.SMTPNotSupportedError, match=r"554 5\.6\.3"):
            await client.send("a@b.example", "c@d.example", "ä\r\n".encode())
        with pytest.raises(smtp.SMTPNotSupportedError, match=r"550 5\.7\.30"):
            await client.send("a@b.example", "c@d.example", DATA, require_tls=True)
        await client.send_message(message(Subject="Grüße"))  # its body is encoded for it

    talk(script, send)
    assert "DATA" in script.heard


@pytest.mark.parametrize(
    ("arguments", "settings", "wrong"),
    [
        (("a@b\r\nRCPT TO:<x@y>", "c@d"), {}, "sender: .* is no address"),
        (("a@b", "c@d\n"), {}, "recipients: .* is no address"),
        (("a@b", "c@d\0"), {}, "recipients: .* has a NUL"),
        (("a@b", "<c@d>"), {}, "is no address"),
        (("a@b", ""), {}, "is no address"),
        (("a@b", []), {}, "recipients: there is none"),
        (("a@b", ["c@d", "c@d"]), {}, "recipients: an address is in it twice"),
        (("a@b", "c@d"), {"notify": "SOMETIMES"}, "notify: 'SOMETIMES' is none of"),
        (("a@b", "c@d"), {"notify": ("NEVER", "DELAY")}, "notify: NEVER stands alone"),
        (("a@b", "c@d"), {"body": "9BIT"}, "body: '9BIT' is none of"),
        (("a@b", "c@d"), {"ret": "NONE"}, "ret: 'NONE' is none of"),
        (("a@b", "c@d", b"a\nb"), {}, "data: a CR or LF stands alone"),
        (("a@b", "c@d", b"a\rb"), {}, "data: a CR or LF stands alone"),
    ],
)
def test_wrong_arguments(arguments, settings, wrong):
    async def send(client):
        with pytest.raises(ValueError, match=wrong):
            await client.send(*(*arguments, DATA)[: max(3, len(arguments))], **settings)

    script = Script()
    talk(script, send)
    assert script.heard == ["EHLO localhost", "QUIT"]


def test_makes_whole():
    script = Script()
    talk(script, lambda c: c.send("a@b", "c@d", b"a\nb\r.\rc"), make_whole=True)
    assert script.heard[4:9] == ["a", "b", "..", "c", "."]


def test_asks_for_notifications():
    script = Script()
    talk(
        script,
        lambda c: c.send(
            "a@b",
            ["c@d", "e@f"],
            DATA,
            notify=["SUCCESS", "DELAY"],
            original={"e@f": "rfc822;x+y@z"},
            ret="HDRS",
            envelope_id="one+two",
        ),
    )
    assert script.heard[1:4] == [
        "MAIL FROM:<a@b> RET=HDRS ENVID=one+2Btwo",
        "RCPT TO:<c@d> NOTIFY=SUCCESS,DELAY",
        "RCPT TO:<e@f> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+2By@z",
    ]


def test_many_at_once_on_one_connection():
    script = Script()

    async def send(client):
        return await asyncio.gather(*(client.send(f"a{i}@b", "c@d", DATA) for i in range(100)))

    assert len(talk(script, send)) == 100
    assert script.connections == 1
    assert [s for s in script.heard if s.startswith("MAIL")] == [
        f"MAIL FROM:<a{i}@b>" for i in range(100)
    ]


def test_lmtp():
    script = Script(**{"RCPT TO:<no@d>": "550 5.1.1 nobody"})
    result = talk(script, lambda c: c.send("a@b", ["no@d", "yes@d"], DATA), lmtp=True)
    assert script.heard[0] == "LHLO localhost"
    assert result.accepted == ["yes@d"]


# ---- The connection ----


def test_greetings():
    for answers, kind in (
        ({"": "554 5.3.2 no service"}, smtplib.SMTPConnectError),
        ({"": "421 4.3.2 full"}, smtplib.SMTPConnectError),
        ({"": "hello"}, smtplib.SMTPServerDisconnected),
        ({"EHLO": "421 bye"}, smtplib.SMTPConnectError),
    ):
        with pytest.raises(kind):
            talk(Script(**answers), lambda c: c.send("a@b", "c@d", DATA))


def test_nobody_is_there(no_leaks):
    async def connect():
        async with Script().at() as endpoint:
            pass
        with pytest.raises(ConnectionRefusedError):
            await smtp.Client(endpoint).connect()

    becket.run(connect())


def test_a_server_that_says_nothing(no_leaks):
    script = Script(**{"": ""})

    async def connect():
        async with script.at() as endpoint:
            with pytest.raises(TimeoutError, match=r"not ready for mail in 0\.1 seconds"):
                await smtp.Client(endpoint, connect_timeout=0.1).connect()

    becket.run(connect())


def test_needs_a_becket_loop():
    with pytest.raises(RuntimeError, match=r"becket\.EventLoop"):
        asyncio.run(smtp.Client("tcp://127.0.0.1:1").connect())


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"tls": "perhaps"}, "tls: 'perhaps'"),
        ({"hostname": "a b"}, "hostname"),
        ({"user": "x"}, "user and password"),
        ({"user": "x", "password": "y", "mechanism": "CRAM-MD5"}, "mechanism"),
        ({"timeout": 0.5}, "timeout"),
    ],
)
def test_wrong_settings(settings, wrong, no_leaks):
    async def connect():
        await smtp.Client("tcp://127.0.0.1:1", **settings).connect()

    with pytest.raises(ValueError, match=wrong):
        becket.run(connect())


def test_ends_and_connects_again(no_leaks):
    script = Script()

    async def run():
        async with script.at() as endpoint:
            client = smtp.Client(endpoint)
            assert not client.is_connected and client.offers("DSN") is None
            for _ in range(2):
                async with client:
                    assert client.is_connected and client.offers("dsn") == ""
                    assert not client.is_secure
                    await client.send("a@b", "c@d", DATA)
                    with pytest.raises(RuntimeError, match="connected already"):
                        await client.connect()
                assert not client.is_connected
                with pytest.raises(smtp.SMTPServerDisconnected):
                    await client.send("a@b", "c@d", DATA)
            await client.quit()
            client.abort()

    becket.run(run())
    assert script.connections == 2


def test_abort_tells_those_who_wait(no_leaks):
    script = Script()
    script.answers["DATA"] = ""

    async def run():
        async with script.at() as endpoint:
            client = await smtp.Client(endpoint).connect()
            waiting = asyncio.ensure_future(client.send("a@b", "c@d", DATA))
            await asyncio.sleep(0)
            client.abort()
            with pytest.raises(smtp.SMTPServerDisconnected):
                await waiting

    becket.run(run())


def test_a_loop_that_is_closed_over_it(tmp_path, no_leaks):
    async def run(endpoint):
        client = await smtp.Client(endpoint).connect()
        waiting = asyncio.ensure_future(client.send("a@b.example", "c@d.example", DATA))
        await asyncio.sleep(0)
        return weakref.ref(client), weakref.ref(waiting)

    with maildir_server(tmp_path / "m", "tcp://127.0.0.1:0") as (name,):
        left = becket.run(run(name))
    gc.collect()
    assert [ref() for ref in left] == [None, None]


def test_pool(no_leaks):
    script = Script()

    async def run():
        async with script.at() as endpoint, smtp.Pool(endpoint, size=3) as pool:
            await asyncio.gather(*(pool.send_message(message()) for _ in range(20)))
            await pool.send("a@b", "c@d", DATA)
            async with pool.client() as client:
                client.abort()
            await pool.send("a@b", "c@d", DATA)
        with pytest.raises(RuntimeError, match="closed"):
            await pool.send("a@b", "c@d", DATA)

    becket.run(run())
    assert 1 <= script.connections <= 4
    with pytest.raises(ValueError, match="size"):
        smtp.Pool("tcp://127.0.0.1:1", size=0)


# ---- TLS and AUTH ----


@contextlib.contextmanager
def maildir_server(folder: Path, *endpoints: str) -> Any:
    """Our own server on a loop of its own, in a thread."""
    import threading

    loop = becket.EventLoop()
    server = _becket.Smtp(loop, folder)
    names = [server.listen(endpoint) for endpoint in endpoints]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield names
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def port_of(name: str) -> int:
    return int(name.rpartition(":")[2])


def test_starts_tls(tls, tmp_path, no_leaks):
    server = f"starttls://localhost:0?cert={tls.path('server.crt')}&key={tls.path('server.key')}"
    with maildir_server(tmp_path / "m", server) as (name,):
        port = port_of(name)

        async def run(endpoint: str, mode: Any) -> bool:
            async with smtp.Client(endpoint, tls=mode) as client:
                await client.send("a@b.example", "c@d.example", DATA)
                return client.is_secure

        ca = tls.path("ca.crt")
        assert becket.run(run(f"starttls://localhost:{port}?ca={ca}", "required"))
        assert becket.run(run(f"starttls://localhost:{port}?verify=none", "opportunistic"))
        assert not becket.run(run(f"tcp://localhost:{port}", "opportunistic"))
        assert not becket.run(run(f"starttls://localhost:{port}?verify=none", "never"))
        with pytest.raises(ssl.SSLCertVerificationError):
            becket.run(run(f"starttls://localhost:{port}", "required"))
        with pytest.raises(smtp.SMTPNotSupportedError, match="TLS is required"):
            becket.run(run(f"tcp://localhost:{port}", "required"))
        assert becket.run(smtp.send(message(), to=("localhost", port))).accepted
        with pytest.raises(ssl.SSLCertVerificationError):
            becket.run(smtp.send(message(), to=("localhost", port), tls="required"))
    assert len(list((tmp_path / "m" / "new").iterdir())) == 5


def test_tls_is_not_offered():
    script = Script(EHLO="250 mx", STARTTLS="454 4.7.0 not now")

    async def run(mode):
        async with script.at() as endpoint:
            port = port_of(endpoint)
            client = smtp.Client(f"starttls://127.0.0.1:{port}?verify=none", tls=mode)
            async with client:
                return await client.send("a@b", "c@d", DATA)

    assert becket.run(run("opportunistic")).accepted
    with pytest.raises(smtp.SMTPNotSupportedError, match="TLS is required"):
        becket.run(run("required"))
    script.answers["EHLO"] = "250-mx\n250 STARTTLS"
    assert becket.run(run("opportunistic")).accepted
    with pytest.raises(smtp.SMTPNotSupportedError, match=r"TLS is required.* 454 4\.7\.0 not now"):
        becket.run(run("required"))


def test_logs_in():
    def run(script, **settings):
        return talk(
            script,
            lambda c: c.send("a@b", "c@d", DATA),
            user="user",
            password="pencil",
            **settings,
        )

    script = Script(EHLO="250-mx\n250 AUTH PLAIN LOGIN", AUTH="235 2.7.0 hello")
    assert run(script, auth_in_clear=True).accepted
    assert script.heard[1] == "AUTH PLAIN AHVzZXIAcGVuY2ls"
    with pytest.raises(smtp.SMTPNotSupportedError, match="without TLS"):
        run(script)
    script.answers["AUTH"] = "535 5.7.8 wrong"
    with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
        run(script, auth_in_clear=True)
    assert caught.value.args == (535, b"5.7.8 wrong")
    with pytest.raises(smtp.SMTPNotSupportedError, match="no AUTH"):
        run(script, auth_in_clear=True, mechanism="SCRAM-SHA-256")


def test_what_ended_it():
    assert isinstance(ending(-104, None, OSError(1, "x")), OSError)
    assert str(ending(-110, None, None)) == "Connection timed out"
    assert str(ending(-4001, None, EOFError("x"))) == "the server ended the connection"
    assert str(ending(-104, "421 4.3.2 bye", None)) == "the server said 421 4.3.2 bye"


# ---- Messages of Python ----


def test_who_a_message_is_from_and_for():
    m = message(Cc="Me <x@y.example>, c@d.example", Bcc="secret@d.example", Sender="boss@b.example")
    assert outgoing.sender_of(m) == "boss@b.example"
    assert outgoing.recipients_of(m) == ["c@d.example", "x@y.example", "secret@d.example"]
    m["Resent-Date"] = "Sat, 28 Nov 2026 22:00:00 +0000"
    with pytest.raises(ValueError, match="no Resent-From"):
        outgoing.sender_of(m)
    with pytest.raises(ValueError, match="no Resent-To"):
        outgoing.recipients_of(m)
    m["Resent-From"] = "r@b.example"
    m["Resent-To"] = "s@b.example"
    m["Resent-Bcc"] = "t@b.example"
    assert outgoing.sender_of(m) == "r@b.example"
    assert outgoing.recipients_of(m) == ["s@b.example", "t@b.example"]
    data = outgoing.as_bytes(m, utf8=False, eight_bit=True)
    assert b"secret" not in data and b"Resent-Bcc" not in data and b"Resent-To" in data
    assert "Bcc" in m  # the message is as it was
    old = Message()
    old["Resent-Date"] = old["Resent-Date"] = "x"
    with pytest.raises(ValueError, match="more than one block"):
        outgoing.sender_of(old)


def test_messages_as_bytes():
    m = message(Subject="Grüße", To="ä@d.example")
    m.set_content("Grüße\n", cte="8bit")
    data = outgoing.as_bytes(m, utf8=True, eight_bit=True)
    assert "Subject: Grüße\r\n".encode() in data and "\r\n\r\nGrüße\r\n".encode() in data
    assert outgoing.as_bytes(m, utf8=False, eight_bit=False).isascii()
    old = Message()
    old["Subject"] = "x"
    old.set_payload("a\nb\rc\n")
    assert (
        outgoing.as_bytes(old, utf8=False, eight_bit=False) == b"Subject: x\r\n\r\na\r\nb\r\nc\r\n"
    )
    assert b"Subject: x" in outgoing.as_bytes(old, utf8=True, eight_bit=True)
    assert outgoing.needs_utf8("a@b", ["ä@c"]) and not outgoing.needs_utf8("a@b", ["c@d"])


def test_sends_messages():
    script = Script()
    talk(script, lambda c: c.send_message(message(Bcc="s@d.example", Subject="Grüße")))
    assert script.heard[1:4] == [
        "MAIL FROM:<a@b.example>",
        "RCPT TO:<c@d.example>",
        "RCPT TO:<s@d.example>",
    ]
    assert any(line.startswith("Subject: =?utf-8?") for line in script.heard)
    script = Script()
    talk(script, lambda c: c.send_message(message(Subject="Grüße"), sender="ä@b", recipients="c@d"))
    assert script.heard[1] == "MAIL FROM:<ä@b> BODY=8BITMIME SMTPUTF8"
    assert "Subject: Grüße" in script.heard


# ---- Where it goes ----


@pytest.mark.parametrize(
    ("to", "endpoint"),
    [
        ("mx.example", "starttls://mx.example:25?verify=none"),
        ("mx.example:587", "starttls://mx.example:587?verify=none"),
        (("mx.example", 26), "starttls://mx.example:26?verify=none"),
        ("::1", "starttls://[::1]:25?verify=none"),
        ("[::1]", "starttls://[::1]:25?verify=none"),
        ("[::1]:26", "starttls://[::1]:26?verify=none"),
        (("::1", 26), "starttls://[::1]:26?verify=none"),
        ("tls://mx.example:465", "tls://mx.example:465"),
        ("unix:/run/x", "unix:/run/x"),
        ("tls+unix:/run/x", "tls+unix:/run/x"),
    ],
)
def test_endpoints(to, endpoint):
    assert endpoint_of(to) == endpoint


def test_endpoints_with_tls():
    assert endpoint_of("mx", "required") == "starttls://mx:25"
    assert endpoint_of("mx", "never") == "tcp://mx:25"
    assert endpoint_of("mx", lmtp=True) == "starttls://mx:24?verify=none"
    with pytest.raises(ValueError, match="no port"):
        endpoint_of("mx:smtp")


def test_one_message():
    async def run():
        with pytest.raises(ValueError, match="to, or mx"):
            await smtp.send(message())
        async with Script().at() as endpoint:
            assert (await smtp.send(message(), to=endpoint)).accepted == ["c@d.example"]

    becket.run(run())


def test_send_sync(tmp_path, no_leaks):
    with maildir_server(tmp_path / "m", "tcp://127.0.0.1:0") as (name,):
        assert smtp.send_sync(message(), to=name).accepted == ["c@d.example"]

    async def inside():
        smtp.send_sync(message(), to="x")

    with pytest.raises(RuntimeError):
        becket.run(inside())


class Internet:
    """Hosts that are scripts, whatever their ports are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **hosts: Script) -> None:
        self.hosts, self.asked = hosts, []
        self.places: dict[str, str] = {}
        monkeypatch.setattr(
            smtp.client._Delivery, "_endpoint", lambda _, host, tls: self.place(host, tls)
        )

    def place(self, host: str, tls: str) -> str:
        self.asked.append(host)
        place = self.places.get(host, self.places["nowhere"])
        return place if tls == "never" else place.replace("tcp:", "starttls:") + "?verify=none"

    async def __aenter__(self) -> Internet:
        self._stack = contextlib.AsyncExitStack()
        for name, script in self.hosts.items():
            self.places[f"{name}.example"] = await self._stack.enter_async_context(script.at())
        async with Script().at() as endpoint:
            self.places["nowhere"] = endpoint
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


def test_mx(monkeypatch):
    one, two = Script(), Script(**{"RCPT TO:<no@b.example>": "550 5.1.1 nobody"})
    full = Script(**{"": "421 4.3.2 full"})
    net = Internet(monkeypatch, one=one, two=two, full=full)
    records = {
        "a.example": [(20, "two.example."), (10, "gone.example"), (10, "full.example.")],
        "b.example": [(0, "two.example")],
        "one.example": [],
        "null.example": [(0, ".")],
        "gone.example": [(5, "gone.example")],
    }
    to = [
        "x@A.example",
        "no@b.example",
        "y@one.example",
        "z@null.example",
        "q@gone.example",
        "s@odd.example",
    ]

    async def mx(domain: str) -> list[tuple[int, str]]:
        if domain not in records:
            raise OSError(f"no answer about {domain}")
        return records[domain]

    async def run():
        async with net:
            return await smtp.send(message(), recipients=to, mx=mx)

    result = becket.run(run())
    assert list(result) == to
    assert result.accepted == ["x@A.example", "y@one.example"]
    assert str(result["no@b.example"]) == "550 5.1.1 nobody"
    assert str(result["z@null.example"]) == "556 5.1.10 null.example takes no mail"
    assert str(result["q@gone.example"]).startswith("451 4.4.1 gone.example: ")
    assert str(result["s@odd.example"]) == "451 4.4.3 odd.example: no answer about odd.example"
    tried = [host for host in net.asked if host in ("full.example", "gone.example", "two.example")]
    assert tried.index("full.example") < tried.index("two.example", tried.index("full.example"))
    assert "RCPT TO:<x@A.example>" in two.heard and "RCPT TO:<y@one.example>" in one.heard


def test_mx_all_are_refused(monkeypatch):
    net = Internet(monkeypatch, one=Script(RCPT="550 5.1.1 nobody"))

    async def run(records):
        async with net:
            await smtp.send(message(), recipients=["c@one.example"], mx=lambda _: records)

    with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
        becket.run(run([(1, "one.example")]))
    assert caught.value.recipients == {"c@one.example": (550, b"5.1.1 nobody")}
    with pytest.raises(smtp.SMTPRecipientsRefused):
        becket.run(run([(1, "gone.example")]))

    async def bad():
        await smtp.send(message(), recipients=["nobody"], mx=lambda _: [])

    with pytest.raises(ValueError, match="has no domain"):
        becket.run(bad())


@pytest.mark.parametrize("tls", ["opportunistic", "required"])
def test_mx_whose_tls_is_broken(monkeypatch, tls):
    """What comes after 220 is no TLS."""
    script = Script(EHLO="250-mx\n250 STARTTLS", STARTTLS="220 go")
    net = Internet(monkeypatch, one=script)

    async def run():
        async with net:
            who = ["c@one.example"]
            return await smtp.send(message(), recipients=who, mx=lambda _: [], tls=tls)

    if tls == "opportunistic":
        assert becket.run(run()).accepted
        assert script.connections == 2
    else:
        with pytest.raises(smtp.SMTPRecipientsRefused) as caught:
            becket.run(run())
        assert caught.value.recipients["c@one.example"][0] == 451
        assert script.connections == 1


# ---- becket send ----


@pytest.fixture
def inbox(tmp_path):
    with maildir_server(tmp_path / "m", "tcp://127.0.0.1:0") as (name,):

        def stored() -> list[str]:
            return [f.read_text() for f in sorted((tmp_path / "m" / "new").iterdir())]

        yield f"127.0.0.1:{port_of(name)}", stored


def test_command_makes_a_message(inbox, tmp_path, capsys):
    where, stored = inbox
    (tmp_path / "a.txt").write_text("attached")
    words = ["--from", "a@b.example", "--to", "c@d.example", "--to", "e@f.example"]
    words += ["--subject", "Grüße", "--body", "Hello", "--attach", str(tmp_path / "a.txt")]
    assert main(["send", where, *words, "--header", "X-One: two"]) == 0
    (text,) = stored()
    assert "To: c@d.example, e@f.example\n" in text and "X-One: two" in text
    assert "Message-ID: <" in text and 'filename="a.txt"' in text
    assert capsys.readouterr().out == (
        "c@d.example: accepted: 250 2.0.0 message accepted\n"
        "e@f.example: accepted: 250 2.0.0 message accepted\n"
    )


def test_command_sends_files(inbox, tmp_path, capsys):
    where, stored = inbox
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(
            b"From: a@b.example\nTo: c@d.example\nBcc: s@t.example,\n u@v.example\n"
            b"Subject: " + name.encode() + b"\n\n.Hello\n"
        )
    assert main(["send", where, str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    texts = stored()
    assert len(texts) == 2 and not any("s@t" in text or "Bcc" in text for text in texts)
    assert sorted(t[t.index("Subject") :] for t in texts) == [
        "Subject: one\n\n.Hello\n",
        "Subject: two\n\n.Hello\n",
    ]
    out = capsys.readouterr().out
    assert f"[1/2] {tmp_path}/one: c@d.example: accepted" in out
    assert "2 messages: 6 recipients accepted, 0 not now, 0 refused\n" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--from and --to"),
        (["--from", "a@b"], "--from and --to"),
        (["--from", "a@b", "--to", "c@d", "--header", "x"], "--header"),
        (["f", "--body", "x"], "FILE: it is sent as it is"),
        (["--from", "a@b", "--to", "c@d", "--password-file", "x"], "--password-file"),
    ],
)
def test_command_is_wrong(words, said, capsys):
    assert main(["send", "127.0.0.1:1", *words]) == 2
    assert said in capsys.readouterr().err


def test_command_without_a_server(capsys, tmp_path):
    async def free():
        async with Script().at() as endpoint:
            return endpoint

    words = ["--from", "a@b", "--to", "c@d", "--body", "x"]
    assert main(["send", becket.run(free()), *words]) == 75
    assert "Connection refused" in capsys.readouterr().err
    assert main(["send", "127.0.0.1:1", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        ({"RCPT TO:<c@d>": "550 5.1.1 no"}, 1, "c@d: refused: 550 5.1.1 no"),
        ({"RCPT TO:<c@d>": "450 4.2.1 later"}, 75, "c@d: not now: 450 4.2.1 later"),
        ({"END": "452 4.3.1 full"}, 75, "e@f: not now: 452 4.3.1 full"),
        ({"": "554 5.3.2 no"}, 1, "554 5.3.2 no"),
        ({"": "421 4.3.2 full"}, 75, "421 4.3.2 full"),
        ({"AUTH": "535 5.7.8 wrong"}, 1, "535 5.7.8 wrong"),
    ],
)
def test_command_tells_of_refusals(answers, status, said, capsys, tmp_path):
    """In a thread of its own, for it runs a loop."""
    script = Script(**({"EHLO": "250-mx\n250 AUTH PLAIN", "AUTH": "235 ok"} | answers))
    (tmp_path / "p").write_text("secret\n")
    words = ["--from", "a@b", "--to", "c@d", "--to", "e@f", "--body", "x", "--user", "u"]
    words += ["--password-file", str(tmp_path / "p"), "--auth-in-clear", "-q"]

    async def run():
        async with script.at() as endpoint:
            return await asyncio.to_thread(main, ["send", endpoint, *words])

    assert becket.run(run()) == status
    assert said in capsys.readouterr().err


# ---- The manual ----


def test_programs_of_the_manual(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "send-mail.md"
    programs = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    assert len(programs) == 2
    with maildir_server(tmp_path / "m", "tcp://127.0.0.1:0") as (name,):
        said = [
            subprocess.run(
                [sys.executable, "-W", "error", "-c", program, name],
                check=True,
                capture_output=True,
                text=True,
            )
            for program in programs
        ]
    assert said[0].stdout == "['you@there.example'] {}\n"
    assert said[1].stdout.count("you@there.example: 250 2.0.0") == 3
    assert not any(done.stderr for done in said)
    assert len(list((tmp_path / "m" / "new").iterdir())) == 24
