"""becket.smtp.Server with a handler in Python, under the clients of others and over every carrier
there is: swaks, aiosmtplib, smtp-source, posttls-finger, and Postfix, which relays to it."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest

import becket
import becket.smtp
from becket import _becket
from interop.mail import ENGINES
from interop.mailers import postfix, wait_until
from interop.processes import find_program, run_program

ROOT = Path(__file__).parents[3]
TEXT = b"Subject: hello\r\n\r\n.dots\r\n..\r\nlast\r\n"


class Keep:
    """Keeps what it is given. Thread-safe."""

    def __init__(self) -> None:
        self.got: list[tuple[Any, Any]] = []
        self._lock = threading.Lock()

    async def handle_DATA(self, server, session, envelope):
        with self._lock:
            self.got.append((session, envelope))
        return "250 OK"


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    path = tmp_path_factory.mktemp("users") / "users"
    path.write_text(f"bob:{_becket._make_secret('secret')}\n")
    return path


def port_of(server: becket.Server) -> int:
    return int(server.endpoints[0].partition("?")[0].rpartition(":")[2])


# ---- Every carrier -------------------------------------------------------------------------------

CARRIERS = [
    "tcp",
    "unix",
    "memory",
    *(f"{how}-{engine}" for how in ("tls", "starttls") for engine in ENGINES),
]


def endpoint_of(carrier: str, path: str, tls) -> str:
    kind, _, engine = carrier.partition("-")
    if engine:
        return f"{kind}+tcp://127.0.0.1:0?cert={tls.path('server.pem')}&engine={engine}"
    return {"tcp": "tcp://127.0.0.1:0", "unix": f"unix:{path}", "memory": "memory:carried"}[kind]


@pytest.mark.parametrize("carrier", CARRIERS)
def test_every_carrier(carrier, short_path, tls):
    """The same dialogue, by the client of ours, whatever carries it."""
    engine = carrier.partition("-")[2]
    handler = Keep()
    with becket.smtp.Server(handler, endpoint_of(carrier, short_path, tls), drain=0.0) as server:
        where = server.endpoints[0].partition("?")[0]
        if engine:
            where += f"?ca={tls.path('ca.crt')}&name=localhost"

        async def main() -> None:
            async with becket.smtp.Client(where) as client:
                for sender in ("a@example.org", "b@example.org"):
                    result = await client.send(sender, ["c@example.org", "d@example.org"], TEXT)
                    assert len(result.accepted) == 2

        becket.run(main())
    assert [e.mail_from for _, e in handler.got] == ["a@example.org", "b@example.org"]
    for session, envelope in handler.got:
        assert envelope.content == TEXT
        assert envelope.rcpt_tos == ["c@example.org", "d@example.org"]
        assert (session.ssl is not None) == bool(engine)
        if engine:
            assert session.ssl["version"].startswith("TLSv1.")


def test_over_rudp():
    """A transport that the core knows nothing of."""
    sys.path.insert(0, str(ROOT / "examples" / "rudp" / "src"))
    try:
        from rudp import Rudp
    finally:
        sys.path.pop(0)
    handler = Keep()
    loop = becket.EventLoop()
    loop.add_scheme(Rudp())

    async def main() -> None:
        served = _becket.SmtpServer(loop, becket.smtp.SMTP(handler))
        listener = _becket.Listener(loop, "rudp://127.0.0.1:0", served)
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_endpoint(lambda: protocol, listener.name)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        writer.write(b"EHLO c\r\n")
        while not (await reader.readline()).startswith(b"250 "):
            pass
        for line, code in (
            (b"MAIL FROM:<a@b.c>\r\n", b"250"),
            (b"RCPT TO:<d@e.f>\r\n", b"250"),
            (b"DATA\r\n", b"354"),
            (TEXT.replace(b"\r\n.", b"\r\n..") + b".\r\n", b"250"),
            (b"QUIT\r\n", b"221"),
        ):
            writer.write(line)
            assert (await reader.readline())[:3] == code
        assert await reader.read() == b""
        writer.close()
        listener.close()

    try:
        loop.run_until_complete(asyncio.wait_for(main(), 60))
    finally:
        loop.close()
    assert [e.content for _, e in handler.got] == [TEXT]


# ---- Clients of others ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["openssl", "gnutls"])
@pytest.mark.parametrize("how", ["starttls", "tls"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks_logs_in_under_tls(tls, users, engine, how, mechanism):
    handler = Keep()
    endpoint = f"{how}+tcp://127.0.0.1:0?cert={tls.path('server.pem')}&engine={engine}"
    with becket.smtp.Server(
        handler, endpoint, users=users, auth_required=True, drain=0.0
    ) as server:
        swaks = [
            *("--server", f"127.0.0.1:{port_of(server)}"),
            "--tls" if how == "starttls" else "--tlsc",
            *("--auth", mechanism, "--auth-user", "bob", "--from", "a@b.c", "--to", "d@e.f"),
        ]
        run_program("swaks", *swaks, "--auth-password", "secret")
        run_program("swaks", *swaks, "--auth-password", "wrong", status=28)
    [(session, _)] = handler.got
    assert session.authenticated is True and session.auth_data == "bob"
    assert session.ssl["version"].startswith("TLSv1.")


@pytest.mark.parametrize("how", ["plain", "starttls", "tls"])
def test_aiosmtplib(tls, users, how):
    handler = Keep()
    plain = "tcp://127.0.0.1:0"
    endpoint = plain if how == "plain" else f"{how}+{plain}?cert={tls.path('server.pem')}"

    async def main(port: int) -> None:
        client = aiosmtplib.SMTP(
            hostname="localhost" if how != "plain" else "127.0.0.1",
            port=port,
            use_tls=how == "tls",
            start_tls=how == "starttls",
            tls_context=None if how == "plain" else tls.client(),
            local_hostname="client.example.org",
        )
        async with client:
            if how != "plain":
                await client.login("bob", "secret")
            for number in range(3):
                await client.sendmail(f"{number}@b.c", ["d@e.f"], TEXT)

    with becket.smtp.Server(handler, endpoint, users=users, drain=0.0) as server:
        asyncio.run(main(port_of(server)))
    assert [e.mail_from for _, e in handler.got] == ["0@b.c", "1@b.c", "2@b.c"]
    assert all(e.content == TEXT for _, e in handler.got)
    assert (handler.got[0][0].ssl is None) == (how == "plain")


@contextlib.contextmanager
def controlled(handler: Any, **settings: Any) -> Iterator[becket.smtp.Controller]:
    """As aiosmtpd's programs run a server."""
    controller = becket.smtp.Controller(
        handler, hostname="127.0.0.1", port=0, ready_timeout=60, **settings
    )
    controller.start()
    try:
        yield controller
    finally:
        controller.stop()


def test_smtplib_and_starttls_of_a_controller(tls):
    """STARTTLS by an ssl.SSLContext, as aiosmtpd's programs have it."""
    told = []

    class Handler(Keep):
        def handle_STARTTLS(self, server, session, envelope):
            told.append(session.ssl)
            return True

    handler = Handler()
    with controlled(handler, tls_context=tls.server(), require_starttls=True) as controller:
        with smtplib.SMTP("127.0.0.1", controller.port, timeout=60) as client:
            client._host = "localhost"
            client.ehlo()
            assert client.mail("a@b.c")[0] == 530
            client.starttls(context=tls.client())
            client.sendmail("a@b.c", ["d@e.f"], TEXT)
            assert "starttls" not in client.esmtp_features
    [(session, envelope)] = handler.got
    assert envelope.content == TEXT
    assert session.ssl["cipher"][1].startswith("TLSv1.") and told == [session.ssl]


def handshake(sock: socket.socket, context: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.MemoryBIO]:
    """A client's half, whose last flight is not sent yet."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            client.do_handshake()
            return client, outgoing
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))


@pytest.mark.parametrize("make_loop", [asyncio.SelectorEventLoop, becket.EventLoop])
@pytest.mark.parametrize("last", [b"", b"QUIT\r\n"])
def test_commands_in_the_last_flight_of_a_handshake(tls, make_loop, last):
    """The session tells of TLS, and nothing of what came with the handshake is lost."""
    handler = Keep()
    settings = {"tls_context": tls.server(), "require_starttls": True, "loop": make_loop()}
    with controlled(handler, **settings) as controller:
        with socket.create_connection(("127.0.0.1", controller.port), 60) as sock:
            for said in (b"", b"EHLO c\r\n", b"STARTTLS\r\n"):
                sock.sendall(said)
                assert sock.recv(65536)[:1] == b"2"
            client, outgoing = handshake(sock, tls.client())
            mail = b"EHLO c\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nBDAT 7 LAST\r\nhello\r\n"
            client.write(mail + last)
            sock.sendall(outgoing.read())
            wait_until(lambda: handler.got, "the mail has not come")
    [(session, envelope)] = handler.got
    assert envelope.content == b"hello\r\n"
    assert session.ssl["cipher"][1].startswith("TLSv1.")


def test_controller_under_tls(tls):
    handler = Keep()
    context = tls.client()
    context.check_hostname = False
    with controlled(handler, ssl_context=tls.server()) as controller:
        with smtplib.SMTP_SSL("127.0.0.1", controller.port, timeout=60, context=context) as client:
            client.sendmail("a@b.c", ["d@e.f"], TEXT)
    [(session, _)] = handler.got
    assert session.ssl is not None


@pytest.mark.parametrize("driver", ["loop", "loops:2"])
@pytest.mark.parametrize("options", [[], ["-d"], ["-d", "-r", 3]])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_smtp_source(driver, options, kind):
    class Plain(Keep):
        def handle_DATA(self, server, session, envelope):
            with self._lock:
                self.got.append((session, envelope))

    handler = Plain() if kind == "def" else Keep()
    with becket.smtp.Server(handler, "tcp://127.0.0.1:0", driver=driver, drain=0.0) as server:
        where = f"inet:127.0.0.1:{port_of(server)}"
        arguments = ("-s", 20, "-m", 500, "-l", 2000, "-f", "a@b.c", "-t", "d@e.f", where)
        run_program("smtp-source", *options, *arguments)
    assert len(handler.got) == 500
    recipients = 3 if "-r" in options else 1
    assert {len(e.rcpt_tos) for _, e in handler.got} == {recipients}
    assert {e.mail_from for _, e in handler.got} == {"a@b.c"}


@pytest.mark.parametrize("engine", ["openssl", "gnutls"])
def test_posttls_finger(tls, engine, tmp_path):
    (tmp_path / "main.cf").write_text("compatibility_level = 3.6\n")
    endpoint = f"starttls+tcp://127.0.0.1:0?cert={tls.path('server.pem')}&engine={engine}"
    with becket.smtp.Server(Keep(), endpoint, drain=0.0) as server:
        said = run_program(
            "env",
            *(f"MAIL_CONFIG={tmp_path}", find_program("posttls-finger")),
            *("-c", "-l", "secure", "-F", tls.path("ca.crt"), "-m", "localhost"),
            f"[127.0.0.1]:{port_of(server)}",
            "localhost",
        )
    assert "Verified TLS connection established" in said


# ---- Postfix, which relays -----------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that users other than ours can enter, with a short path."""
    with tempfile.TemporaryDirectory(prefix="bk-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_postfix_relays_by_lmtp(folder, tls, kind):
    """Each recipient has an answer of his own: one is taken, one comes again, one comes back."""
    answers = {"you": "250 stored", "her": "452 4.2.2 later", "grüße": "550 5.1.1 who is that"}
    tries: list[list[str]] = []
    kept = []

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            tries.append(list(envelope.rcpt_tos))
            kept.append((envelope.mail_from, envelope.content))
            return [answers[r.partition("@")[0]] for r in envelope.rcpt_tos]

    endpoint = f"unix:{folder / 'lmtp'}?mode=666" if kind == "unix" else "tcp://127.0.0.1:0"
    with becket.smtp.Server(Handler(), endpoint, lmtp=True, drain=0.0) as server:
        path = str(folder / "lmtp")
        where = f"unix:{path}" if kind == "unix" else f"inet:127.0.0.1:{port_of(server)}"
        with postfix(folder, tls) as mta:
            subprocess.run(
                ["postconf", "-c", str(mta.folder / "etc"), f"virtual_transport=lmtp:{where}"],
                check=True,
            )
            mta._run("reload")
            with smtplib.SMTP("127.0.0.1", mta.port, timeout=60) as client:
                client.sendmail("me@here.example", ["you@test.example", "her@test.example"], TEXT)
            wait_until(lambda: "status=deferred (host" in mta.log(), "it was not deferred")
            wait_until(lambda: "status=sent (250 2.0.0 stored)" in mta.log(), "it was not sent")
    assert sorted(each for one in tries for each in one) == ["her@test.example", "you@test.example"]
    sender, content = kept[0]
    assert sender == "me@here.example" and content.endswith(b"\r\n\r\n.dots\r\n..\r\nlast\r\n")
