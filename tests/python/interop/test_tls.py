"""TLS between becket and the programs of others: swaks, curl, openssl and Postfix's posttls-finger
as clients of its mail server, under every engine; aiosmtpd, aiohttp and uvicorn on its loop."""

from __future__ import annotations

import os
import re
import shlex
import smtplib
import socket
import ssl
from pathlib import Path

import pytest

from interop.mail import (
    ENGINES,
    Demo,
    MailServer,
    Session,
    Wire,
    digest,
    every_shape,
    read_by_sender,
    read_traces,
    see_to,
)
from interop.processes import HERE, PATIENCE, Server, run_program, run_wrk

BOTH = pytest.mark.parametrize("scheme", ["tls", "starttls"])
MESSAGE = b"Subject: real\n\nfirst\n.\n..two dots\n.dot\n\n" + "äöü\n".encode() + b"last\n"
CRLF = MESSAGE.replace(b"\n", b"\r\n")


@pytest.fixture(params=ENGINES)
def engine(request):
    """Each engine."""
    return see_to(request.param)


@pytest.fixture
def message(tmp_path):
    file = tmp_path / "message"
    file.write_bytes(MESSAGE)
    return file


@pytest.fixture
def server(tmp_path, tls, engine, scheme):
    where = f"{scheme}://127.0.0.1:0?cert={tls.path('server.pem')}&engine={engine}"
    with MailServer(tmp_path, where) as server:
        server.port = server.address[1]
        yield server


# ---- Clients of the mail server ----


def test_swaks_as_the_demo_advises(tmp_path, short_path):
    """Each command that it prints is run as it is, but for the sender that tells them apart."""
    file = tmp_path / "message"
    file.write_bytes(MESSAGE)
    with Demo(tmp_path, short_path) as demo:
        advice = [shlex.split(s.partition("try: ")[2]) for s in demo.lines if "try: swaks" in s]
        assert len(advice) == 1 + 2 * len(ENGINES)
        expected, traces = {}, {}
        for number, command in enumerate(advice):
            sender = f"{number}@example.org"
            run_program(
                *command, "--from", sender, "--ehlo", "client.example.org", "--data", f"@{file}"
            )
            expected[sender] = CRLF + b"\r\n"  # one more is its own
            traces[sender] = ("client.example.org", "ESMTPS" if number else "ESMTP")
        assert read_by_sender(demo.maildir) == expected
        assert read_traces(demo.maildir) == traces


@BOTH
def test_swaks_that_verifies(server, scheme, tls, message):
    for version in ("tlsv1_2", "tlsv1_3"):
        if version == "tlsv1_3" and not speaks_tls_1_3(server, scheme, tls):
            continue
        said = run_program(
            "swaks",
            "--server",
            f"localhost:{server.port}",
            "--from",
            f"{version}@example.org",
            "--to",
            "x@example.org,y@example.org",
            "--data",
            f"@{message}",
            "--tlsc" if scheme == "tls" else "--tls",
            "--tls-protocol",
            version,
            "--tls-verify",
            "--tls-ca-path",
            tls.path("ca.crt"),
        )
        assert f"TLS started with cipher {version.replace('tlsv1_', 'TLSv1.')}:" in said
    for text in read_by_sender(server.maildir).values():
        assert text == CRLF + b"\r\n"
    assert {protocol for _, protocol in read_traces(server.maildir).values()} == {"ESMTPS"}


def speaks_tls_1_3(server, scheme, tls) -> bool:
    with Session(server.address, tls.client() if scheme == "tls" else None) as session:
        if scheme == "starttls":
            session.starttls(context=tls.client())
        return session.sock.version() == "TLSv1.3"


@BOTH
def test_curl(server, scheme, tls, tmp_path, engine):
    """With the largest message too; and it refuses one whose certificate it does not trust."""

    def curl(sender: str, file: Path, *options: object, status: int = 0) -> str:
        url = f"{'smtps' if scheme == 'tls' else 'smtp'}://localhost:{server.port}/curl.example.org"
        return run_program(
            "curl",
            "--url",
            url,
            "--ssl-reqd",
            "--silent",
            "--show-error",
            "--ipv4",
            "--max-time",
            PATIENCE,
            "--mail-from",
            sender,
            "--mail-rcpt",
            "you@example.org",
            "--upload-file",
            file,
            *options,
            status=status,
        )

    shapes = every_shape()
    expected = {}
    names = ["plain", "dots", "eight-bit", "ends-in-dots"]
    for name in names if engine == "tlslite" else [*names, "big"]:
        file = tmp_path / name
        file.write_bytes(shapes[name])
        curl(f"{name}@example.org", file, "--cacert", tls.path("ca.crt"))
        expected[f"{name}@example.org"] = shapes[name]
    curl("trusting@example.org", tmp_path / "plain", "--insecure")
    expected["trusting@example.org"] = shapes["plain"]
    said = curl("wary@example.org", tmp_path / "plain", status=60)
    assert "certificate" in said
    assert digest(read_by_sender(server.maildir)) == digest(expected)
    assert set(read_traces(server.maildir).values()) == {("curl.example.org", "ESMTPS")}


@BOTH
def test_openssl_s_client(server, scheme, tls):
    """It verifies the whole chain, and the name; both versions where there are two."""
    begin = "EHLO client.example.org\r\nMAIL FROM:<{}@example.org>\r\nrcpt TO:<you@example.org>\r\n"
    for version in ["tls1_2"] + (["tls1_3"] if speaks_tls_1_3(server, scheme, tls) else []):
        said = run_program(
            "openssl",
            "s_client",
            "-connect",
            f"127.0.0.1:{server.port}",
            f"-{version}",
            "-CAfile",
            tls.path("ca.crt"),
            "-verify_return_error",
            "-verify_hostname",
            "localhost",
            "-servername",
            "localhost",
            "-quiet",
            "-crlf",
            *(["-starttls", "smtp", "-name", "x.example.org"] if scheme == "starttls" else []),
            data=(
                begin.format(version) + "DATA\r\nSubject: x\r\n\r\nhello\r\n.\r\nQUIT\r\n"
            ).replace("\r\n", "\n"),
        )
        assert "verify return:1" in said
        assert "221 " in said, said
        assert said.count("depth=") == 3
    stored = read_by_sender(server.maildir)
    assert set(stored.values()) == {b"Subject: x\r\n\r\nhello\r\n"}
    assert set(read_traces(server.maildir).values()) == {("client.example.org", "ESMTPS")}


@BOTH
def test_posttls_finger(server, scheme, tls, tmp_path, monkeypatch):
    """Postfix's client, which connects and tells what it thinks of the certificate."""
    # It wants a configuration; that of the system, if there is one, is not ours to depend on.
    (tmp_path / "main.cf").write_text(
        "compatibility_level = 3.6\ninet_protocols = ipv4\nmyhostname = client.example.org\n"
        f"queue_directory = {tmp_path}\ndata_directory = {tmp_path}\n"
    )
    monkeypatch.setenv("MAIL_CONFIG", str(tmp_path))

    def established(level: str, ca: str, *names: str) -> str:
        said = run_program(
            "posttls-finger",
            "-c",
            "-l",
            level,
            "-F",
            tls.path(ca),
            *(["-w"] if scheme == "tls" else []),
            f"[127.0.0.1]:{server.port}",
            *names,
        )
        found = re.search(r"(\w+) TLS connection established to 127\.0\.0\.1", said)
        return found[1] if found else said

    assert established("secure", "ca.crt", "localhost") == "Verified"
    assert established("secure", "stranger.crt", "localhost") == "Untrusted"
    assert established("may", "stranger.crt") == "Untrusted"


@BOTH
def test_smtplib_every_shape(server, scheme, tls, engine):
    shapes = {f"{name}@example.org": text for name, text in every_shape().items()}
    if engine == "tlslite":  # its speed is not what this is about
        shapes = {sender: text for sender, text in shapes.items() if len(text) < 1_000_000}
    with Session(server.address, tls.client() if scheme == "tls" else None) as session:
        if scheme == "starttls":
            session.starttls(context=tls.client())
        for sender, text in shapes.items():
            assert not session.sendmail(
                sender, ["you@example.org"], text, mail_options=["BODY=8BITMIME"]
            )
    assert digest(read_by_sender(server.maildir)) == digest(shapes)


# ---- Servers on becket.EventLoop ----

# For STARTTLS, aiosmtpd puts asyncio's sslproto over its transport itself.
AIOSMTPD = """\
import logging, signal, ssl, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import becket
from aiosmtpd.controller import Controller
from aiosmtpd_app import Keeper
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[4])
secure = {"ssl_context": context} if sys.argv[5] == "tls" else {"tls_context": context}
controller = Controller(
    Keeper(Path(sys.argv[3])), "127.0.0.1", int(sys.argv[2]), loop=becket.EventLoop(),
    data_size_limit=32 * 1024 * 1024, ident="aiosmtpd", server_hostname="mx", **secure,
)
# Both report each client whose handshake fails.
controller.loop.set_debug(False)
logging.getLogger("mail.log").setLevel(logging.CRITICAL)
controller.start()
print("listening", flush=True)
signal.sigwait([signal.SIGINT])
controller.stop()
print("ended", flush=True)
"""


@pytest.fixture
def aiosmtpd(tmp_path, tls, scheme):
    kept = tmp_path / "kept"
    kept.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as sock:  # its controller needs a number
        port = sock.getsockname()[1]
    with Server(
        "-c",
        AIOSMTPD,
        HERE,
        port,
        kept,
        tls.path("server.pem"),
        scheme,
        expected="listening|ended",
    ) as server:
        server.wait_for("listening")
        server.port, server.kept = port, kept
        yield server


@BOTH
def test_aiosmtpd(aiosmtpd, scheme, tls):
    # Lines of more than 1,000 bytes are refused by aiosmtpd.
    shapes = {f"{name}@example.org": t for name, t in every_shape().items() if name != "long-lines"}
    address = ("127.0.0.1", aiosmtpd.port)
    with Session(address, tls.client() if scheme == "tls" else None) as session:
        if scheme == "starttls":
            session.starttls(context=tls.client())
        for sender, text in shapes.items():
            session.sendmail(sender, ["a@example.org"], text)
    kept = {
        file.with_suffix(".people").read_text(encoding="utf-8"): file.read_bytes()
        for file in aiosmtpd.kept.glob("*.data")
    }
    assert digest(kept) == digest({f"{sender}\na@example.org": t for sender, t in shapes.items()})


@BOTH
def test_swaks_to_aiosmtpd(aiosmtpd, scheme, tls, message):
    run_program(
        "swaks",
        "--server",
        f"localhost:{aiosmtpd.port}",
        "--from",
        "a@example.org",
        "--to",
        "b@example.org",
        "--data",
        f"@{message}",
        "--tls-verify",
        "--tls-ca-path",
        tls.path("ca.crt"),
        "--tlsc" if scheme == "tls" else "--tls",
    )
    (file,) = aiosmtpd.kept.glob("*.data")
    assert file.read_bytes() == CRLF + b"\r\n"


@pytest.mark.parametrize("scheme", ["starttls"])
def test_clients_that_break_off_with_aiosmtpd(aiosmtpd, tls):
    """After STARTTLS: with no TLS, with half a hello, with nothing."""
    address = ("127.0.0.1", aiosmtpd.port)
    for data in (b"NOOP\r\n" * 10, b"\x16\x03\x01\x02\x00\x01", b""):
        with Wire(address) as wire:
            assert wire.codes(1) == ["220"]
            assert wire.ask(b"EHLO client.example.org\r\n")[:3] == "250"
            assert wire.ask(b"STARTTLS\r\n")[:3] == "220"
            wire.send(data)
    with Session(address) as session:
        session.starttls(context=tls.client())
        session.sendmail("a@example.org", ["b@example.org"], CRLF)
    (file,) = aiosmtpd.kept.glob("*.data")
    assert file.read_bytes() == CRLF


class WebServer(Server):
    """aiohttp_app.py or uvicorn with asgi_app.py, under TLS."""

    def __init__(self, kind: str, path: str, tls) -> None:
        crt, key = tls.path("server.crt"), tls.path("server.key")
        if kind == "aiohttp":
            super().__init__(
                HERE / "aiohttp_app.py", path, crt, key, expected=r"listening at \d+|ended"
            )
        else:
            super().__init__(
                "-m",
                "uvicorn",
                "--loop",
                "becket:EventLoop",
                "--http",
                kind,
                "--lifespan",
                "off",
                "--no-access-log",
                "--no-use-colors",
                "--port",
                0,
                "--app-dir",
                HERE,
                "--ssl-certfile",
                crt,
                "--ssl-keyfile",
                key,
                "asgi_app:app",
                expected=r"INFO: +(Started server process|Finished server process) \[\d+\]"
                r"|INFO: +(Shutting down|Waiting for .* to (close|complete)).*"
                r"|INFO: +Uvicorn running on .*",
            )

    def __enter__(self) -> WebServer:
        said = self.wait_for(r"listening at (\d+)|running on https://127\.0\.0\.1:(\d+)")
        self.port = int(said[1] or said[2])
        return self


@pytest.fixture(params=["aiohttp", "httptools", "h11"])
def web(request, short_path, tls):
    pytest.importorskip(request.param)
    with WebServer(request.param, short_path, tls) as server:
        yield server


def test_curl_to_web_servers(web, tls, tmp_path):
    def curl(path: str, *options: object, trust: object = ("--insecure",), status: int = 0) -> str:
        return run_program(
            "curl",
            "--silent",
            "--show-error",
            "--ipv4",
            "--max-time",
            PATIENCE,
            *trust,
            *options,
            f"https://localhost:{web.port}{path}",
            status=status,
        )

    assert curl("/loop") == "becket.loop.EventLoop"
    assert curl("/", trust=("--cacert", tls.path("ca.crt"))) == "Hello, world!"
    assert "certificate" in curl("/", trust=(), status=60)
    for version in ("--tlsv1.3", "--tls-max=1.2"):
        assert curl("/", *version.split("=")) == "Hello, world!"
    streamed = "".join(f"{n}:{'s' * (n * 100)}\n" for n in range(100))
    assert curl("/stream") == streamed
    sent, got = tmp_path / "sent", tmp_path / "got"
    sent.write_bytes(os.urandom(5_000_000))
    curl("/echo", "--data-binary", f"@{sent}", "--output", got)
    assert got.read_bytes() == sent.read_bytes()


def test_web_servers_under_wrk(web):
    where = f"https://127.0.0.1:{web.port}"
    for path in ("/", "/stream"):
        assert run_wrk("-t", 2, "-c", 20, "-d", "1s", where + path) > 0
    assert run_wrk("-t", 2, "-c", 20, "-d", "1s", "-s", HERE / "echo.lua", where) > 0


def test_web_clients_that_leave(web, tls):
    """In mid-handshake, in the middle of a request and of an answer."""
    before = None
    for _ in range(2):
        for request in (b"", b"GET / HT", b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", web.port), PATIENCE) as sock:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01")
            with socket.create_connection(("127.0.0.1", web.port), PATIENCE) as sock:
                with tls.client().wrap_socket(sock, server_hostname="localhost") as secure:
                    secure.sendall(request)
        if before is None:
            before = web.descriptors()
    web.wait_for_descriptors(before)


def test_smtplib_refuses_whom_it_does_not_trust(tmp_path):
    """Neither does one fall back to plain text where STARTTLS fails."""
    with MailServer(tmp_path, "starttls://127.0.0.1:0?cert=dev") as server:
        with smtplib.SMTP(*server.address, timeout=PATIENCE) as session:
            with pytest.raises(ssl.SSLCertVerificationError):
                session.starttls(context=ssl.create_default_context())
            session.close()
        with smtplib.SMTP(*server.address, timeout=PATIENCE) as session:
            assert session.noop()[0] == 250
