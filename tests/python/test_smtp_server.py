"""Handlers in Python: the interface is aiosmtpd's, so the same tests run on its Controller and on
ours, on becket's loop and on asyncio's, and on becket.smtp.Server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import gc
import smtplib
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import aiosmtpd.controller
import aiosmtpd.handlers
import aiosmtpd.smtp
import pytest

import becket
import becket.smtp
import becket.smtp.controller
import becket.smtp.handlers
import becket.smtp.smtp

# aiosmtpd leaves the writers of its connections to the collector, which Python 3.13 tells of.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <function StreamWriter.__del__:"
    "pytest.PytestUnraisableExceptionWarning",
    "ignore:unclosed <StreamWriter:ResourceWarning",
)
KINDS = ("aiosmtpd", "controller", "asyncio", "server")
OURS = KINDS[1:]


class Served:
    """A server, and the modules that a program of its kind imports."""

    def __init__(self, kind: str) -> None:
        theirs = kind == "aiosmtpd"
        self.kind = kind
        self.smtp: Any = aiosmtpd.smtp if theirs else becket.smtp.smtp
        self.handlers: Any = aiosmtpd.handlers if theirs else becket.smtp.handlers
        self.controllers: Any = aiosmtpd.controller if theirs else becket.smtp.controller
        self.stack = contextlib.ExitStack()

    def _loop(self) -> asyncio.AbstractEventLoop | None:
        return asyncio.new_event_loop() if self.kind == "asyncio" else None

    def start(self, handler: Any, **settings: Any) -> tuple[str, int]:
        if self.kind == "server":
            server = becket.smtp.Server(handler, "tcp://127.0.0.1:0", drain=0.0, **settings)
            self.stack.enter_context(server)
            return ("127.0.0.1", int(server.endpoints[0].rpartition(":")[2]))
        if "hostname" in settings:
            settings["server_hostname"] = settings.pop("hostname")
        return ("127.0.0.1", self.start_at_port(self.controllers.Controller, handler, **settings))

    def start_at_port(self, kind: Any, handler: Any, **settings: Any) -> int:
        """aiosmtpd cannot be told "any port": one that is free may be another's a moment later."""
        for _ in range(20):
            port = free_port() if self.kind == "aiosmtpd" else 0
            controller = kind(
                handler,
                hostname="127.0.0.1",
                port=port,
                loop=self._loop(),
                ready_timeout=60,
                **settings,
            )
            with contextlib.suppress(OSError):
                controller.start()
                self.stack.callback(controller.stop)
                return int(controller.port)
            controller.loop.close()
        raise AssertionError("no port is free")

    @contextlib.contextmanager
    def client(self, handler: Any, **settings: Any) -> Iterator[smtplib.SMTP]:
        where = self.start(handler, **settings)
        with smtplib.SMTP(*where, local_hostname="client.example.org", timeout=60) as client:
            yield client


def forget(kind: str) -> None:
    """aiosmtpd leaves transports and loops to the collector: here, where nobody tells of them."""
    if kind == "aiosmtpd":
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            gc.collect()
        finally:
            sys.unraisablehook = hook


@pytest.fixture(params=KINDS)
def served(request):
    served = Served(request.param)
    with served.stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what aiosmtpd has to say of old names and of passwords
        yield served
    forget(request.param)


@pytest.fixture(params=OURS)
def ours(request):
    served = Served(request.param)
    with served.stack:
        yield served


class Keep:
    """Keeps envelopes."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    async def handle_DATA(self, server, session, envelope):
        self.got.append((session, envelope))
        return "250 OK"


TEXT = b"Subject: hello\r\n\r\n.dots\r\n..\r\nlast\r\n"


# ---- The interface ----


def test_envelope_and_session(served):
    handler = Keep()
    with served.client(handler) as client:
        client.sendmail("from@example.org", ["a@example.org", "b@example.org"], TEXT)
        client.sendmail("", ["c@example.org"], b"second\r\n", mail_options=["BODY=8BITMIME"])
        port = client.sock.getsockname()[1]
    (session, first), (again, second) = handler.got
    assert session is again
    assert session.peer == ("127.0.0.1", port)
    assert session.host_name == "client.example.org"
    assert session.extended_smtp is True
    assert session.ssl is None and session.authenticated is None and session.auth_data is None
    assert isinstance(session.loop, asyncio.AbstractEventLoop)
    assert first is not second
    assert first.mail_from == "from@example.org"
    assert first.rcpt_tos == ["a@example.org", "b@example.org"]
    assert first.content == TEXT == first.original_content
    assert first.mail_options == [f"SIZE={len(TEXT)}"]
    assert first.rcpt_options == [] and first.smtp_utf8 is False
    assert second.mail_from == "<>" and second.rcpt_tos == ["c@example.org"]
    assert second.mail_options == ["SIZE=8", "BODY=8BITMIME"]


def test_attributes_of_their_own(served):
    """A handler may keep things in session and envelope."""

    class Handler:
        async def handle_MAIL(self, server, session, envelope, address, options):
            session.count = getattr(session, "count", 0) + 1
            envelope.color = "red"
            envelope.mail_from = address
            envelope.mail_options.extend(options)
            return "250 OK"

        async def handle_DATA(self, server, session, envelope):
            return f"250 {session.count} {envelope.color}"

    with served.client(Handler()) as client:
        client.ehlo()
        for count in (1, 2):
            client.mail("a@example.org")
            client.rcpt("b@example.org")
            code, text = client.data(b"x\r\n")
            assert code == 250 and text.endswith(f"{count} red".encode())


def test_hooks_decide(served):
    class Handler(Keep):
        async def handle_HELO(self, server, session, envelope, hostname):
            session.host_name = hostname.upper()
            return f"250 {server.hostname} hello"

        async def handle_MAIL(self, server, session, envelope, address, mail_options):
            if address.startswith("bad"):
                return "550 5.1.0 not him"
            envelope.mail_from = address.upper()
            return "250 welcome"

        async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
            if not address.endswith("@example.org"):
                return "550 5.7.1 not relaying to that domain"
            envelope.rcpt_tos.append("to-" + address)
            return "250 OK"

        async def handle_NOOP(self, server, session, envelope, arg):
            return f"250 noop {arg}"

        async def handle_VRFY(self, server, session, envelope, address):
            return f"252 who knows {address}"

        async def handle_RSET(self, server, session, envelope):
            return f"250 reset {envelope.mail_from}"

        async def handle_QUIT(self, server, session, envelope):
            return "221 see you"

    handler = Handler()
    with served.client(handler, hostname="mx.example.org") as client:
        code, text = client.helo("client.example.org")
        assert code == 250 and b"hello" in text
        assert client.mail("bad@example.org")[0] == 550
        assert client.mail("a@example.org")[0] == 250
        assert client.rcpt("x@example.net") == (550, b"5.7.1 not relaying to that domain")
        assert client.rcpt("x@example.org")[0] == 250
        assert client.data(b"text\r\n")[0] == 250
        assert b"noop me" in client.docmd("NOOP me")[1]
        assert b"who knows a@example.org" in client.docmd("VRFY a@example.org")[1]
        client.mail("a@example.org")
        assert b"reset None" in client.docmd("RSET")[1]
        assert client.rcpt("x@example.org")[0] == 503
        code, text = client.quit()
        assert code == 221 and b"see you" in text
    [(session, envelope)] = handler.got
    assert session.host_name == "CLIENT.EXAMPLE.ORG"
    assert session.extended_smtp is False
    assert (envelope.mail_from, envelope.rcpt_tos) == ("A@EXAMPLE.ORG", ["to-x@example.org"])


def test_ehlo_of_five_arguments(served):
    class Handler:
        async def handle_EHLO(self, server, session, envelope, hostname, responses):
            assert responses[0] == f"250-{server.hostname}"
            assert responses[-1] == "250 HELP"
            session.host_name = hostname
            return [r for r in responses if "8BITMIME" not in r][:-1] + ["250-XYZ 7", "250 HELP"]

    with served.client(Handler(), hostname="mx.example.org") as client:
        client.ehlo()
        assert client.esmtp_features["xyz"] == "7"
        assert "8bitmime" not in client.esmtp_features
        assert client.mail("a@example.org")[0] == 250


def test_ehlo_of_four_arguments(served):
    class Handler:
        async def handle_EHLO(self, server, session, envelope, hostname):
            session.host_name = hostname
            await server.push("250-XYZ")
            return "250 HELP"

    with served.client(Handler()) as client:
        assert client.ehlo()[0] == 250
        assert "xyz" in client.esmtp_features and "size" in client.esmtp_features
        assert client.noop()[0] == 250


def test_ehlo_that_takes_no_name(served):
    class Handler:
        async def handle_EHLO(self, server, session, envelope, hostname, responses):
            return responses

    with served.client(Handler()) as client:
        assert client.ehlo()[0] == 250
        assert client.mail("a@example.org")[0] == 503


def test_what_a_hook_does_not_set_is_not_there(served):
    """handle_MAIL and handle_RCPT answer for the envelope."""

    class Handler:
        async def handle_MAIL(self, server, session, envelope, address, options):
            if address == "kept@example.org":
                envelope.mail_from = address
            return "250 OK"

        async def handle_RCPT(self, server, session, envelope, address, options):
            return "250 OK"

    with served.client(Handler()) as client:
        client.ehlo()
        assert client.mail("lost@example.org")[0] == 250
        assert client.rcpt("a@example.org")[0] == 503
        client.rset()
        assert client.mail("kept@example.org")[0] == 250
        assert client.rcpt("a@example.org")[0] == 250
        assert client.docmd("DATA")[0] == 503


def test_data_refused(served):
    class Handler:
        async def handle_DATA(self, server, session, envelope):
            return "554 5.7.1 spam"

    with served.client(Handler()) as client:
        with pytest.raises(smtplib.SMTPDataError) as refusal:
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        assert (refusal.value.smtp_code, refusal.value.smtp_error) == (554, b"5.7.1 spam")
        assert client.noop()[0] == 250


def test_no_hook_at_all(served):
    with served.client(served.handlers.Sink()) as client:
        assert client.sendmail("a@example.org", ["b@example.org"], TEXT) == {}


def test_exception(served):
    class Handler:
        async def handle_DATA(self, server, session, envelope):
            raise ValueError("no good")

    with served.client(Handler()) as client:
        with pytest.raises(smtplib.SMTPDataError) as refusal:
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        # aiosmtpd says 500, which makes the client give up what would be accepted tomorrow.
        assert refusal.value.smtp_code == (500 if served.kind == "aiosmtpd" else 451)
        assert b"Error: (ValueError) no good" in refusal.value.smtp_error
        assert client.noop()[0] == 250


def test_handle_exception(served):
    class Handler:
        async def handle_DATA(self, server, session, envelope):
            await asyncio.sleep(0)
            raise ValueError("no good")

        async def handle_exception(self, error):
            return f"542 Internal server error: {error}"

    with served.client(Handler()) as client:
        with pytest.raises(smtplib.SMTPDataError) as refusal:
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        assert refusal.value.smtp_code == 542
        assert b"Internal server error: no good" in refusal.value.smtp_error


def test_decode_data(served):
    handler = Keep()
    with served.client(handler, decode_data=True) as client:
        client.sendmail("a@example.org", ["b@example.org"], "ü\r\n".encode())
        client.sendmail("a@example.org", ["b@example.org"], b"\xff\r\n")
    contents = [envelope.content for _, envelope in handler.got]
    assert contents == ["ü\r\n", "\udcff\r\n"]
    assert handler.got[0][1].original_content == "ü\r\n".encode()


def test_decode_data_ascii_only(served):
    handler = Keep()
    with served.client(handler, decode_data=True, enable_SMTPUTF8=False) as client:
        client.ehlo()
        assert "smtputf8" not in client.esmtp_features
        with pytest.raises(smtplib.SMTPDataError) as refusal:
            client.sendmail("a@example.org", ["b@example.org"], "ü\r\n".encode())
        assert b"strict ASCII mode" in refusal.value.smtp_error


def test_smtputf8(served):
    handler = Keep()
    with served.client(handler) as client:
        client.ehlo()
        assert "smtputf8" in client.esmtp_features
        client.sendmail("ä@example.org", ["ö@example.org"], TEXT, mail_options=["SMTPUTF8"])
    [(_, envelope)] = handler.got
    assert envelope.smtp_utf8 is True
    assert (envelope.mail_from, envelope.rcpt_tos) == ("ä@example.org", ["ö@example.org"])


def test_size_limit(served):
    with served.client(served.handlers.Sink(), data_size_limit=1000) as client:
        client.ehlo()
        assert client.esmtp_features["size"] == "1000"
        with pytest.raises(smtplib.SMTPSenderRefused) as refusal:
            client.sendmail("a@example.org", ["b@example.org"], b"x" * 2000 + b"\r\n")
        assert refusal.value.smtp_code == 552
        client.esmtp_features.clear()
        with pytest.raises(smtplib.SMTPDataError) as unsaid:
            client.sendmail("a@example.org", ["b@example.org"], b"x\r\n" * 1000)
        assert unsaid.value.smtp_code == 552


def test_greeting(served):
    host, port = served.start(Keep(), hostname="mx.example.org")
    with socket.create_connection((host, port), timeout=60) as sock:
        assert sock.makefile().readline().startswith("220 mx.example.org ")


def test_connect_decides(ours):
    class Handler(Keep):
        async def handle_CONNECT(self, server, session, envelope):
            assert session.peer[0] == "127.0.0.1"
            assert session.proxy_data is None
            return answers.pop(0)

    answers = ["220 come in", None, "554 no mail here", "421 not now"]
    where = ours.start(Handler(), hostname="mx.example.org")
    for code, text in [(220, "come in"), (220, "mx.example.org ESMTP becket"), (421, "not now")]:
        client = smtplib.SMTP(timeout=60)
        found = client.connect(*where)
        if found[0] == 554:
            assert found[1] == b"no mail here"
            assert client.ehlo()[0] == 503
            assert client.quit()[0] == 221
            found = client.connect(*where)
        assert found[0] == code
        assert found[1].decode().startswith(text)
        client.close()
    assert answers == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_proxy_header_decides(asynchronous):
    """handle_PROXY, as aiosmtpd calls it: what it returns says whether the client may go on."""
    told = []

    class Handler(Keep):
        def handle_PROXY(self, server, session, envelope, proxy_data):
            assert session.proxy_data is proxy_data
            told.append((proxy_data.src_addr, proxy_data.src_port, proxy_data.dst_port))
            answer = proxy_data.src_addr == "192.0.2.1"
            return asyncio.sleep(0, answer) if asynchronous else answer

    endpoint = "tcp://127.0.0.1:0?proxy=accept"
    said = {}
    with becket.smtp.Server(Handler(), endpoint, drain=0.0) as server:
        for source in ("192.0.2.1", "192.0.2.2", None):
            where = server.endpoints[0].partition("?")[0]
            with becket.connect(where, timeout=60) as client:
                if source is not None:
                    client.sendall(f"PROXY TCP4 {source} 192.0.2.9 4000 25\r\n".encode())
                client.sendall(b"QUIT\r\n")
                said[source] = (client.readline()[:4], client.readline()[:4])
    assert said == {
        "192.0.2.1": (b"220 ", b"221 "),
        "192.0.2.2": (b"554 ", b"221 "),
        None: (b"220 ", b"221 "),
    }
    assert told == [("192.0.2.1", 4000, 25), ("192.0.2.2", 4000, 25)]


def test_a_silent_client_is_told_why_it_is_sent_away(ours):
    where = ours.start(Keep(), timeout=1, hostname="mx.example.org")
    with socket.create_connection(where, timeout=60) as sock:
        lines = sock.makefile()
        assert lines.readline().startswith("220 ")
        assert lines.readlines() == ["421 4.4.2 mx.example.org timeout, closing the connection\n"]


def test_command_call_limit(served):
    with served.client(served.handlers.Sink(), command_call_limit={"NOOP": 2, "*": 5}) as client:
        assert [client.noop()[0] for _ in range(2)] == [250, 250]
        assert client.docmd("NOOP") == (421, b"4.7.0 NOOP sent too many times")
    with pytest.raises(TypeError):
        served.smtp.SMTP(Keep(), command_call_limit="ten", loop=asyncio.new_event_loop())


def test_pipelined_hooks_in_order(served):
    """Each hook ends before the next begins, whatever has arrived."""
    order = []

    class Handler:
        async def handle_MAIL(self, server, session, envelope, address, options):
            await asyncio.sleep(0.01)
            order.append("mail")
            envelope.mail_from = address
            return "250 OK"

        async def handle_RCPT(self, server, session, envelope, address, options):
            order.append(address)
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, server, session, envelope):
            await asyncio.sleep(0.01)
            order.append("data")
            return "250 OK"

    with socket.create_connection(served.start(Handler()), timeout=60) as sock:
        lines = sock.makefile("r", newline="\r\n")
        lines.readline()
        sock.sendall(b"HELO c\r\n")
        lines.readline()
        for _ in range(2):
            sock.sendall(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<1@b.c>\r\nRCPT TO:<2@b.c>\r\nDATA\r\n")
            assert [lines.readline()[:3] for _ in range(4)] == ["250", "250", "250", "354"]
            sock.sendall(b"x\r\n.\r\n")
            assert lines.readline()[:3] == "250"
    assert order == ["mail", "1@b.c", "2@b.c", "data"] * 2


# ---- AUTH ----


def plain(user: str, password: str) -> str:
    return base64.b64encode(f"\0{user}\0{password}".encode()).decode()


def authenticator_of(served):
    def authenticate(server, session, envelope, mechanism, auth_data):
        good = auth_data == (b"user", b"secret")
        assert isinstance(auth_data, served.smtp.LoginPassword)
        assert "secret" not in repr(auth_data)
        return served.smtp.AuthResult(success=good, handled=False, auth_data=auth_data)

    return authenticate


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_auth(served, mechanism):
    handler = Keep()
    with served.client(
        handler, authenticator=authenticator_of(served), auth_require_tls=False
    ) as client:
        client.ehlo()
        assert set(client.esmtp_features["auth"].split()) == {"LOGIN", "PLAIN"}
        client.user, client.password = "user", "wrong"
        how = getattr(client, f"auth_{mechanism.lower()}")
        with pytest.raises(smtplib.SMTPAuthenticationError) as refusal:
            client.auth(mechanism, how)
        assert refusal.value.smtp_code == 535
        client.password = "secret"
        assert client.auth(mechanism, how)[0] == 235
        assert client.docmd("AUTH", "PLAIN " + plain("user", "secret"))[0] == 503
        client.sendmail("a@example.org", ["b@example.org"], TEXT)
    [(session, _)] = handler.got
    assert session.authenticated is True
    assert session.auth_data == (b"user", b"secret")


def test_auth_callback(served):
    def callback(mechanism, login, password):
        return (mechanism, login, password) == ("PLAIN", b"user", b"secret")

    with served.client(Keep(), auth_callback=callback, auth_require_tls=False) as client:
        client.ehlo()
        assert client.docmd("AUTH", "PLAIN " + plain("user", "wrong"))[0] == 535
        assert client.docmd("AUTH", "PLAIN " + plain("user", "secret"))[0] == 235


def test_auth_required(served):
    with served.client(
        Keep(),
        authenticator=authenticator_of(served),
        auth_require_tls=False,
        auth_required=True,
    ) as client:
        client.ehlo()
        assert client.mail("a@example.org")[0] == 530
        client.login("user", "secret")
        assert client.mail("a@example.org")[0] == 250


def test_auth_needs_tls(served):
    with served.client(Keep(), authenticator=authenticator_of(served)) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert client.docmd("AUTH", "PLAIN " + plain("user", "secret"))[0] == 538


def test_auth_excluded(served):
    with served.client(
        Keep(),
        authenticator=authenticator_of(served),
        auth_require_tls=False,
        auth_exclude_mechanism=["LOGIN"],
    ) as client:
        client.ehlo()
        assert client.esmtp_features["auth"].split() == ["PLAIN"]


def test_mechanism_of_ones_own(served):
    class Handler:
        async def auth_XSUM(self, server, args):
            assert args == ["XSUM"]
            answer = await server.challenge_auth("2+2")
            if answer is served.smtp.MISSING:
                return served.smtp.AuthResult(success=False)
            return served.smtp.AuthResult(
                success=answer == b"4", handled=False, auth_data={"sum": answer}
            )

        async def handle_NOOP(self, server, session, envelope, arg):
            return f"250 {session.authenticated} {session.auth_data}"

    with served.client(
        Handler(), authenticator=authenticator_of(served), auth_require_tls=False
    ) as client:
        client.ehlo()
        assert set(client.esmtp_features["auth"].split()) == {"LOGIN", "PLAIN", "XSUM"}
        for answer, code in (("5", 535), ("4", 235)):
            assert client.docmd("AUTH XSUM") == (334, base64.b64encode(b"2+2"))
            assert client.docmd(base64.b64encode(answer.encode()).decode())[0] == code
        assert b"True {'sum': b'4'}" in client.noop()[1]


def test_auth_aborted(served):
    class Handler:
        async def auth_XSUM(self, server, args):
            answer = await server.challenge_auth("2+2")
            assert answer is served.smtp.MISSING
            return served.smtp.AuthResult(success=False)

    with served.client(Handler(), auth_require_tls=False) as client:
        client.ehlo()
        for answer in ("*", "not base64!"):
            assert client.docmd("AUTH XSUM")[0] == 334
            assert client.docmd(answer)[0] == 501
        assert client.noop()[0] == 250


# ---- Programs of aiosmtpd's documentation, with their imports changed ----


def test_command_of_ones_own(served):
    """ "Subclassing", in its manual."""

    class MyServer(served.smtp.SMTP):
        @served.smtp.syntax("PING [ignored]")
        async def smtp_PING(self, arg):
            await self.push("259 Pong")

    class MyController(served.controllers.Controller):
        def factory(self):
            return MyServer(self.handler)

    port = served.start_at_port(MyController, served.handlers.Sink())
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        code, message = client.docmd("PING")
        assert code == 259 and message.endswith(b"Pong")
        assert b"PING QUIT RCPT RSET VRFY" in client.help()
        assert b"Syntax: PING [ignored]" in client.help("PING")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_mailbox_handler(served, tmp_path):
    """ "The Mailbox Handler"."""
    import mailbox
    from operator import itemgetter

    with served.client(served.handlers.Mailbox(tmp_path / "maildir")) as client:
        for name in ("ant", "bee", "cat"):
            client.sendmail(
                f"{name}@example.com",
                ["you@example.com"],
                f"From: {name}@example.com\nMessage-ID: <{name}>\nSubject: A test\n\nHi.\n",
            )
    found = sorted(mailbox.Maildir(tmp_path / "maildir"), key=itemgetter("message-id"))
    assert [message["Message-ID"] for message in found] == ["<ant>", "<bee>", "<cat>"]
    assert found[0]["X-MailFrom"] == "ant@example.com"
    assert found[0]["X-RcptTo"] == "you@example.com"
    assert found[0]["X-Peer"].startswith("('127.0.0.1', ")


def test_debugging_handler(served):
    import io

    stream = io.StringIO()
    with served.client(served.handlers.Debugging(stream)) as client:
        peer = client.sock.getsockname()
        client.sendmail("a@example.org", ["b@example.org"], "Subject: x\n\nHi.\n")
    assert stream.getvalue() == (
        "---------- MESSAGE FOLLOWS ----------\n"
        "mail options: ['SIZE=19']\n\n"
        "Subject: x\n"
        f"X-Peer: {peer!r}\n\n"
        "Hi.\n"
        "------------ END MESSAGE ------------\n"
    )


def test_message_handlers(served):
    got = []

    class Plain(served.handlers.Message):
        def handle_message(self, message):
            got.append(message["Subject"])

    class Later(served.handlers.AsyncMessage):
        async def handle_message(self, message):
            await asyncio.sleep(0)
            got.append(message["Subject"])

    for handler in (Plain(), Later(loop=asyncio.new_event_loop())):
        with served.client(handler) as client:
            client.sendmail("a@example.org", ["b@example.org"], "Subject: x\n\nHi.\n")
        if getattr(handler, "loop", None):
            handler.loop.close()
    assert got == ["x", "x"]


def test_proxy_handler(served):
    """Through one server into another."""
    behind = Keep()
    host, port = served.start(behind)
    with served.client(served.handlers.Proxy(host, port)) as client:
        client.sendmail("a@example.org", ["b@example.org"], "Subject: x\n\nHi.\n")
    [(_, envelope)] = behind.got
    assert (envelope.mail_from, envelope.rcpt_tos) == ("a@example.org", ["b@example.org"])
    assert envelope.content == b"Subject: x\r\nX-Peer: 127.0.0.1\r\n\r\nHi.\r\n"


def test_authenticated_relayer(served):
    """The example of that name: only who has logged in, and then to anybody."""
    relayed = []

    class Authenticator:
        def __init__(self, users):
            self.users = users

        def __call__(self, server, session, envelope, mechanism, auth_data):
            fail_nothandled = served.smtp.AuthResult(success=False, handled=False)
            if mechanism not in ("LOGIN", "PLAIN"):
                return fail_nothandled
            if not isinstance(auth_data, served.smtp.LoginPassword):
                return fail_nothandled
            if self.users.get(auth_data.login) != auth_data.password:
                return fail_nothandled
            return served.smtp.AuthResult(success=True)

    class RelayHandler:
        async def handle_DATA(self, server, session, envelope):
            relayed.append((envelope.mail_from, envelope.rcpt_tos, envelope.original_content))
            return "250 OK"

    with served.client(
        RelayHandler(),
        authenticator=Authenticator({b"user": b"secret"}),
        auth_required=True,
        auth_require_tls=False,
    ) as client:
        with pytest.raises(smtplib.SMTPSenderRefused):
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        client.login("user", "secret")
        client.sendmail("a@example.org", ["b@example.org"], TEXT)
    assert relayed == [("a@example.org", ["b@example.org"], TEXT)]


@pytest.mark.parametrize("kind", ["aiosmtpd", "controller", "asyncio"])
def test_unthreaded_controller(kind):
    """ "Unthreaded Controllers": the loop is the program's."""
    served = Served(kind)
    loop = becket.EventLoop() if kind == "controller" else asyncio.new_event_loop()
    handler = Keep()
    controller = served.controllers.UnthreadedController(
        handler, loop=loop, hostname="127.0.0.1", port=free_port()
    )
    controller.begin()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with smtplib.SMTP("127.0.0.1", controller.port, timeout=60) as client:
        client.sendmail("a@example.org", ["b@example.org"], TEXT)
    loop.call_soon_threadsafe(controller.end)
    assert controller.ended.wait(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    tasks = asyncio.all_tasks(loop)
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    loop.close()
    assert len(handler.got) == 1


@pytest.mark.parametrize("kind", ["aiosmtpd", "controller", "asyncio"])
def test_unix_socket_controller(kind, short_path):
    served = Served(kind)
    handler = Keep()
    controller = served.controllers.UnixSocketController(
        handler, short_path, loop=served._loop(), ready_timeout=60
    )
    controller.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(short_path)
        lines = sock.makefile("r", newline="\r\n")
        assert lines.readline()[:3] == "220"
        for line, code in (
            (b"HELO c\r\n", "250"),
            (b"MAIL FROM:<a@b.c>\r\n", "250"),
            (b"RCPT TO:<a@b.c>\r\n", "250"),
            (b"DATA\r\n", "354"),
            (b"x\r\n.\r\n", "250"),
        ):
            sock.sendall(line)
            assert lines.readline()[:3] == code
    controller.stop()
    assert len(handler.got) == 1


@pytest.mark.parametrize("kind", ["aiosmtpd", "controller", "asyncio"])
def test_controller_tells_what_is_wrong(kind):
    served = Served(kind)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        controller = served.controllers.Controller(
            Keep(), hostname="127.0.0.1", port=sock.getsockname()[1], loop=served._loop()
        )
        with pytest.raises(OSError):
            controller.start()
        controller.loop.close()

    class Broken(served.controllers.Controller):
        def factory(self):
            raise RuntimeError("no factory")

    controller = Broken(Keep(), hostname="127.0.0.1", port=free_port(), loop=served._loop())
    with pytest.raises(RuntimeError, match="no factory"):
        controller.start()
    controller.stop(no_assert=True)
    del controller
    forget(kind)


# ---- What is ours ----


def test_plain_functions(ours):
    """Hooks need not be coroutine functions."""

    class Handler:
        def __init__(self):
            self.got = []

        def handle_RCPT(self, server, session, envelope, address, options):
            envelope.rcpt_tos.append(address)
            return "250 fine"

        def handle_DATA(self, server, session, envelope):
            self.got.append(envelope.content)

    handler = Handler()
    with ours.client(handler) as client:
        assert client.sendmail("a@example.org", ["b@example.org"], TEXT) == {}
    assert handler.got == [TEXT]


def test_context_of_a_connection(ours):
    """Each connection has a context of its own, which all its hooks run in."""
    seen = contextvars.ContextVar("seen", default=0)

    class Handler:
        def handle_NOOP(self, server, session, envelope, arg):
            seen.set(seen.get() + 1)
            return f"250 {seen.get()}"

        async def handle_VRFY(self, server, session, envelope, address):
            await asyncio.sleep(0)
            return f"252 {seen.get()}"

    where = ours.start(Handler())
    for _ in range(1 if ours.kind == "asyncio" else 2):  # whose connections share one
        with smtplib.SMTP(*where, timeout=60) as client:
            client.ehlo()
            assert client.noop()[1].endswith(b"1")
            assert client.noop()[1].endswith(b"2")
            assert client.docmd("VRFY a")[1].endswith(b"2")


@pytest.mark.parametrize("answer", [7, ["250 OK"], {"b@example.org": "250 OK"}, object()])
def test_answer_that_is_none(ours, answer):
    class Handler:
        def handle_RCPT(self, server, session, envelope, address, options):
            return answer

    with ours.client(Handler()) as client:
        client.ehlo()
        client.mail("a@example.org")
        code, text = client.rcpt("b@example.org")
        assert code == 451 and b"a reply is a str" in text


@pytest.mark.parametrize("answer", ["", "hello", "99 x", "250-x", "250 a\r\n250 b", "250\x00"])
def test_reply_that_is_none(ours, answer):
    """Whatever a hook says, the client gets one reply to one command."""

    class Handler:
        def handle_NOOP(self, server, session, envelope, arg):
            return answer

    with ours.client(Handler()) as client:
        client.ehlo()
        code, text = client.noop()
        assert code in (250, 451) and b"\r" not in text
        assert client.docmd("VRFY a")[0] == 252


@pytest.mark.parametrize("form", [list, dict])
def test_lmtp(ours, form):
    class Handler(Keep):
        async def handle_DATA(self, server, session, envelope):
            self.got.append((session, envelope))
            replies = ["250 stored", "452 4.2.2 full", None]
            if form is list:
                return replies
            return dict(zip(envelope.rcpt_tos, replies, strict=True))

    handler = Handler()
    with socket.create_connection(ours.start(handler, lmtp=True), timeout=60) as sock:
        lines = sock.makefile("r", newline="\r\n")

        def ask(text: str, count: int = 1) -> list[str]:
            sock.sendall(text.encode() + b"\r\n")
            return [lines.readline()[:9] for _ in range(count)]

        assert "LMTP" in lines.readline()
        assert ask("HELO c") == ["500 5.5.2"]
        said = ask("LHLO c")
        while not said[0].startswith("250 "):
            said = [lines.readline()]
        assert ask("MAIL FROM:<a@b.c>") == ["250 2.1.0"]
        for user in "xyz":
            assert ask(f"RCPT TO:<{user}@b.c> NOTIFY=never ORCPT=rfc822;Me@b.c") == ["250 2.1.5"]
        assert ask("DATA")[0][:3] == "354"
        assert ask("text\r\n.", 3) == ["250 2.0.0", "452 4.2.2", "250 2.0.0"]
    [(_, envelope)] = handler.got
    assert envelope.rcpt_options == ["NOTIFY=NEVER", "ORCPT=rfc822;Me@b.c"] * 3


def test_wrong_count_of_replies(ours):
    class Handler:
        def handle_DATA(self, server, session, envelope):
            return ["250 OK"] * 2

    with ours.client(Handler()) as client:
        with pytest.raises(smtplib.SMTPDataError) as refusal:
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        assert refusal.value.smtp_code == 451
        assert b"2 replies were given, and there are 1 recipients" in refusal.value.smtp_error


def test_client_that_has_gone_before_the_answer(ours):
    """Its handler is answered for, whatever becomes of the answer."""
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            begun.set()
            while not go.is_set():
                await asyncio.sleep(0.001)
            ended.set()
            return "250 OK"

    where = ours.start(Handler())
    with smtplib.SMTP(*where, timeout=60) as client:
        client.ehlo()
        client.mail("a@b.c")
        client.rcpt("d@e.f")
        client.docmd("DATA")
        client.send(b"x\r\n.\r\n")
        assert begun.wait(60)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    go.set()
    assert ended.wait(60)
    with smtplib.SMTP(*where, timeout=60) as client:
        client.sendmail("a@b.c", ["d@e.f"], TEXT)


def test_nothing_is_left_to_the_collector(ours):
    handler = becket.smtp.handlers.Sink()

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            return "250 OK"

    where = ours.start(Handler())

    def send() -> None:
        with smtplib.SMTP(*where, timeout=60) as client:
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        client.sock = client.file = None

    send()
    gc.collect()
    gc.disable()
    try:
        kinds = (becket.smtp.SMTP, becket.smtp.Session, becket.smtp.Envelope)
        for _ in range(20):
            send()
        left = [o for o in gc.get_objects() if isinstance(o, kinds)]
    finally:
        gc.enable()
    assert len(left) <= 3 * 2 + 1, (left, handler)  # of a client that has just gone


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"hostname": "no host"}, ValueError),
        ({"hostname": 7}, TypeError),
        ({"max_recipients": -1}, ValueError),
        ({"max_recipients": "many"}, TypeError),
        ({"no_such_thing": 1}, TypeError),
        ({"ident": "two\nlines"}, ValueError),
        ({"proxy_protocol_timeout": 3.0}, ValueError),
        ({"tls_context": None}, TypeError),
        ({"driver": "threads:2"}, ValueError),
    ],
)
def test_wrong_settings(settings, error):
    name = next(iter(settings))
    with (
        pytest.raises(error, match=name),
        becket.smtp.Server(Keep(), "tcp://127.0.0.1:0", **settings),
    ):
        pass


def test_methods_that_are_the_cores():
    class MyServer(becket.smtp.SMTP):
        async def smtp_MAIL(self, arg):
            pass

    with pytest.raises(TypeError, match="smtp_MAIL: the command is the core's; handle_MAIL"):
        MyServer(Keep())


@pytest.mark.parametrize("driver", ["loop", "loops:2", "forks:2"])
def test_drivers(driver):
    class Handler:
        async def handle_DATA(self, server, session, envelope):
            await asyncio.sleep(0)
            return f"250 {len(envelope.content)}"

    with becket.smtp.Server(Handler(), "tcp://127.0.0.1:0", driver=driver, drain=0.0) as server:
        port = int(server.endpoints[0].rpartition(":")[2])
        for _ in range(10):
            with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
                client.ehlo()
                client.mail("a@example.org")
                client.rcpt("b@example.org")
                assert client.data(TEXT) == (250, b"2.0.0 %d" % len(TEXT))
