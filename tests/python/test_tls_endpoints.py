"""TLS endpoints as their users meet them: `becket serve smtp` and `becket demo` as processes, under
every TLS engine, with clients of Python's ssl, and with peers that mean harm."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import smtplib
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from becket import _becket
from conftest import Certificates
from interop.mail import (
    ENGINES,
    Address,
    ByHand,
    Demo,
    MailServer,
    Session,
    Wire,
    digest,
    every_shape,
    hello,
    list_maildir,
    open_socket,
    read_by_sender,
    read_traces,
    see_to,
    wrap,
)
from interop.processes import PATIENCE

V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
TO = ["you@example.org"]
TEXT = b"Subject: x\r\n\r\nhello\r\n"

# What a library cannot do; a test sees that it does fail.
CANNOT = {
    ("ssl", "forget sessions", V1_2): "the module cannot turn OpenSSL's cache of them off",
    ("tlslite", "refuse ALPN", V1_3): "it does so in TLS 1.2 only",
    ("ssl", "refuse ALPN", V1_2): "the module asks OpenSSL to go on without a protocol",
    ("ssl", "refuse ALPN", V1_3): "the module asks OpenSSL to go on without a protocol",
    ("tlslite", "choose by its own order", V1_2): "it goes by the client's",
    ("tlslite", "choose by its own order", V1_3): "it goes by the client's",
}


def has_tls_1_3(engine: str) -> bool:
    """mbedTLS has it from 3.6 on."""
    versions = {name: version or "" for name, version, _ in _becket._tls_engines()}
    return engine != "mbedtls" or not re.search(r" (2|3\.[0-5])\.", versions[engine])


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    return see_to(request.param)


@pytest.fixture(params=[V1_2, V1_3], ids=lambda version: str(version.name))
def version(request: pytest.FixtureRequest, engine: str) -> ssl.TLSVersion:
    """Each version; to an engine that has but one, that one twice."""
    return request.param if has_tls_1_3(engine) else V1_2


@pytest.fixture(params=["tls", "starttls"])
def scheme(request: pytest.FixtureRequest) -> str:
    """TLS from the start, or later."""
    return str(request.param)


def endpoint(tls: Certificates, engine: str, *options: str, scheme: str = "tls") -> str:
    """With the certificate that clients trust, and the options."""
    every = [f"cert={tls.path('server.crt')}", f"key={tls.path('server.key')}", f"engine={engine}"]
    return f"{scheme}://127.0.0.1:0?{'&'.join([*every, *options])}"


@pytest.fixture
def server(tmp_path: Path, tls: Certificates, engine: str) -> Iterator[MailServer]:
    """One of each engine, whose clients have good will or not."""
    with MailServer(tmp_path, endpoint(tls, engine)) as server:
        yield server


def unverifying() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = version
    return context


def send(session: smtplib.SMTP, sender: str, text: bytes = TEXT) -> None:
    assert session.sendmail(sender, TO, text, mail_options=["BODY=8BITMIME"]) == {}


def greet(address: Address, context: ssl.SSLContext, **settings: ssl.SSLSession) -> ssl.SSLSocket:
    """A connection whose server has said 220: under TLS 1.3, only then does a client know that its
    certificate was taken."""
    sock = wrap(context, open_socket(address), **settings)
    try:
        assert sock.recv(4) == b"220 "
    except BaseException:
        sock.close()
        raise
    return sock


def seen_certificate(address: Address, context: ssl.SSLContext) -> bytes | None:
    with greet(address, context) as sock:
        return sock.getpeercert(binary_form=True)


def assert_refused(address: Address, context: ssl.SSLContext, why: str) -> None:
    """By an alert that says why, rather than by silence."""
    with pytest.raises(ssl.SSLError, match=f"(?i){why}"):
        greet(address, context).close()


# ---- The demo ----


def test_the_demo_serves_mail_under_every_engine(
    tmp_path: Path, short_path: str, tls: Certificates
) -> None:
    for engine in ENGINES:
        see_to(engine)
    shapes = every_shape()
    expected, traces = {}, {}
    with Demo(tmp_path, short_path) as demo:
        every = [f"{engine}, {scheme}" for engine in ENGINES for scheme in ("tls", "starttls")]
        assert list(demo.ports) == ["plain", *every]
        assert f"{'plain':20} unix:{short_path}" in demo.lines
        for name, port in [*demo.ports.items(), ("unix", 0)]:
            where = ("127.0.0.1", port) if port else short_path
            # The largest takes tlslite a while, and what it is for is seen with the others.
            some = (
                shapes
                if not name.startswith("tlslite")
                else {shape: text for shape, text in shapes.items() if len(text) < 1_000_000}
            )
            with Session(where, unverifying() if name.endswith(" tls") else None) as session:
                if name.endswith("starttls"):
                    session.starttls(context=unverifying())
                for shape, text in some.items():
                    sender = f"{shape}@{name.replace(', ', '.')}"
                    send(session, sender, text)
                    expected[sender] = text
                    traces[sender] = ("client.example.org", "ESMTPS" if "tls" in name else "ESMTP")
        assert digest(read_by_sender(demo.maildir)) == digest(expected)
        assert read_traces(demo.maildir) == traces
        for name in every:
            if name.endswith(", tls"):
                with pytest.raises(ssl.SSLCertVerificationError):
                    greet(("127.0.0.1", demo.ports[name]), tls.client()).close()


def test_the_demo_numbers_its_ports(tmp_path: Path) -> None:
    """--port is the first of them; what is taken is told, and nothing goes on without it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "becket",
                "demo",
                "--port",
                str(taken.getsockname()[1] - 1),
                "--maildir",
                tmp_path / "m",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert done.returncode == 1, done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_many_at_once(tmp_path: Path, tls: Certificates, engine: str, scheme: str) -> None:
    """20 connections with 10 mails each."""
    expected, failures = {}, []
    context = tls.client()

    def work(number: int) -> None:
        try:
            with Session(address, context if scheme == "tls" else None) as session:
                if scheme == "starttls":
                    session.starttls(context=context)
                for count in range(10):
                    sender = f"{number}.{count}@example.org"
                    expected[sender] = f"{sender}\r\n".encode() * (count * 100 + 1)
                    send(session, sender, expected[sender])
        except (OSError, smtplib.SMTPException) as error:
            failures.append((number, error))

    with MailServer(tmp_path, endpoint(tls, engine, scheme=scheme)) as server:
        address = server.address
        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert digest(read_by_sender(server.maildir)) == digest(expected)
        assert len(expected) == 200
        assert {protocol for _, protocol in read_traces(server.maildir).values()} == {"ESMTPS"}


# ---- What is wrong with an endpoint is said ----


# Many at once, as a process each would take its time.
EACH = """\
import sys
from becket import cli
for endpoint in sys.argv[2:]:
    status = cli.main(["serve", "smtp", "--maildir", sys.argv[1], endpoint])
    print("ended:", status, file=sys.stderr, flush=True)
"""


def said_by(*arguments: str | Path, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit status of a Python program, and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=PATIENCE,
        env=os.environ | (environment or {}),
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def read_complaint(said: str, endpoint: str) -> tuple[str, str]:
    """What it is, and the option that the mark is at ("": at none)."""
    lines = said.splitlines()
    text = next(s for s in lines if s.startswith("becket: ") and not s.startswith("becket: SMTP"))
    option = ""
    if lines[-1].strip() == "^":
        assert lines[-2] == f"  {endpoint}"
        at = len(lines[-1]) - 1
        before, after = lines[-2][:at], lines[-2][at:]
        start = max(before.rfind("?"), before.rfind("&"))
        option = before[start + 1 :] + after.partition("&")[0] if start >= 0 else ""
    return text.removeprefix("becket: "), option


def complaint(
    folder: Path, *endpoints: str, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """How the command ends, what it says of the last of the endpoints, and where the mark is."""
    status, said = said_by(
        "-m",
        "becket",
        "serve",
        "smtp",
        "--maildir",
        folder / "Maildir",
        *endpoints,
        environment=environment,
    )
    return status, *read_complaint(said, endpoints[-1])


def complaints(folder: Path, endpoints: list[str]) -> list[tuple[int, str, str]]:
    """The same for each of them by itself."""
    _, said = said_by("-c", EACH, folder / "Maildir", *endpoints)
    parts = re.findall(r"((?:.*\n)*?)ended: (\d)\n", said)
    assert len(parts) == len(endpoints), said
    return [
        (int(status), *read_complaint(text, endpoint))
        for (text, status), endpoint in zip(parts, endpoints, strict=True)
    ]


WRONG_OPTIONS = [
    ("cert=dev&engine=nonsense", "engine=nonsense", ["nonsense", *ENGINES]),
    ("cert=dev&verify=perhaps", "verify=perhaps", ["perhaps", "none", "optional", "required"]),
    ("cert=dev&verify=&max=1.3", "verify=", ["none", "optional", "required"]),
    ("cert=dev&min=1.1", "min=1.1", ["1.1", "1.2", "1.3"]),
    ("cert=dev&min=TLSv1.2", "min=TLSv1.2", ["1.2", "1.3"]),
    ("max=ssl3&cert=dev", "max=ssl3", ["ssl3", "1.2", "1.3"]),
    ("cert=dev&max=1.2&min=1.3", "max=1.2", ["max", "min"]),
    ("cert=dev&tickets=maybe", "tickets=maybe", ["maybe", "on", "off"]),
    ("cert=dev&truncation=maybe", "truncation=maybe", ["maybe", "refuse", "allow"]),
    ("cert=dev&handshake=0", "handshake=0", ["handshake", "1 to 86400"]),
    ("cert=dev&handshake=soon", "handshake=soon", ["handshake", "1 to 86400"]),
    ("cert=dev&linger=-1", "linger=-1", ["linger", "0 to 86400"]),
    ("cert=dev&reload=99999999999999999999", "reload=99999999999999999999", ["reload", "0 to"]),
    ("cert=dev&colour=red", "colour=red", ["colour", "cert", "key", "engine", "verify", "backlog"]),
    ("cert=dev&engine=", "engine=", ["engine", *ENGINES]),
    ("cert=", "cert=", ["cert", "PEM", "dev"]),
    ("cert=dev&key=", "key=", ["key", "PEM"]),
    ("cert=dev&ca=&engine=nonsense", "ca=", ["ca", "PEM"]),
    ("cert=dev&alpn=", "alpn=", ["alpn", "h2,http/1.1"]),
    ("cert=dev&name=", "name=", ["name", "host"]),
    ("cert=dev&alpn=h2,,h3", "alpn=h2,,h3", ["alpn", "h2,,h3"]),
    (f"cert=dev&alpn={'x' * 256}", f"alpn={'x' * 256}", ["alpn", "255"]),
    ("cert=dev&backlog=many", "backlog=many", ["backlog"]),
    ("cert=dev&key=server.key", "key=server.key", ["key", "cert"]),
    ("key=server.key", "", ["cert", "certificate"]),
    ("", "", ["cert", "certificate"]),
]


@pytest.mark.parametrize("scheme", ["tls", "starttls"])
def test_wrong_options(tmp_path: Path, scheme: str) -> None:
    """The mark is at the option, and what would have been right is listed."""
    found = complaints(
        tmp_path, [f"{scheme}://127.0.0.1:0?{o}".rstrip("?") for o, _, _ in WRONG_OPTIONS]
    )
    faults = []
    for (options, option, words), told in zip(WRONG_OPTIONS, found, strict=True):
        status, text, where = told
        lacks = [w for w in words if not re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text)]
        if status != 2 or where != option or lacks:
            faults.append((options, told, f"lacks {lacks}"))
    assert not faults, "\n".join(map(str, faults))


@pytest.mark.parametrize(
    "endpoint, words",
    [
        ("tls+gopher://127.0.0.1:0?cert=dev", ["tls+gopher", "tls", "starttls"]),
        ("tls+tls://127.0.0.1:0?cert=dev", ["tls+tls"]),
        ("gopher+tls://127.0.0.1:0?cert=dev", ["gopher+tls"]),
        ("tls+://127.0.0.1:0?cert=dev", ["tls+"]),
        ("tcp://127.0.0.1:0?cert=dev", ["tcp", "cert", "backlog"]),
        ("tls://127.0.0.1:99999?cert=dev", ["99999"]),
        ("tls:?cert=dev", ["tls: is followed by //, as in tls://127.0.0.1:7000"]),
        ("tls://127.0.0.1?cert=dev", ["a port is missing: tls://host:port"]),
        ("starttls://127.0.0.1:0/x?cert=dev", ["starttls has no path: starttls://host:port"]),
        ("tls+unix:?cert=dev", ["a path is missing: tls+unix:path"]),
        ("tls+unix://h/x?cert=dev", ["tls+unix has no host: tls+unix:path or tls+unix:///path"]),
        ("tls+stdio:x?cert=dev", ["nothing follows tls+stdio:"]),
        ("starttls+fd:x?cert=dev", ["starttls+fd: is followed by", "as in starttls+fd:3"]),
        ("tls+unix:/tmp/x?cert=dev&backlog=5&colour=red", ["colour", "mode", "cert"]),
    ],
)
def test_wrong_schemes(tmp_path: Path, endpoint: str, words: list[str]) -> None:
    """Advice is in terms of the scheme that was written, not of the one behind TLS."""
    status, text, _ = complaint(tmp_path, endpoint)
    assert status == 2, text
    for word in words:
        assert word in text


def test_wrong_engine_in_the_environment(tmp_path: Path) -> None:
    """It is nothing in the endpoint that is wrong then."""
    status, text, option = complaint(
        tmp_path, "tls://127.0.0.1:0?cert=dev", environment={"BECKET_TLS": "nonsense"}
    )
    assert (status, option) == (2, "")
    for word in ("BECKET_TLS", "nonsense", *ENGINES):
        assert word in text


@pytest.fixture(scope="module")
def files(tls: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad ones."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("server", "rsa", "other"):
        for ending in ("crt", "key"):
            shutil.copy(tls.path(f"{name}.{ending}"), folder)
    shutil.copy(tls.path("server.pem"), folder)
    (folder / "empty").write_bytes(b"")
    (folder / "garbage").write_bytes(random.Random(3).randbytes(3000))
    (folder / "text").write_text("This is a certificate.\n")
    pem = "-----BEGIN {0}-----\nAAAA\n-----END {0}-----\n"
    (folder / "broken.crt").write_text(pem.format("CERTIFICATE"))
    (folder / "broken.key").write_text(pem.format("PRIVATE KEY"))
    (folder / "cut.crt").write_text((folder / "server.crt").read_text()[:300])
    (folder / "cut.key").write_text((folder / "server.key").read_text()[:100])
    for name, command in (("encrypted", "pkcs8 -topk8"), ("encrypted.old", "ec -aes128")):
        subprocess.run(
            [
                "openssl",
                *command.split(),
                "-in",
                "server.key",
                "-passout",
                "pass:secret",
                "-out",
                f"{name}.key",
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    (folder / "encrypted.pem").write_text(
        (folder / "server.crt").read_text() + (folder / "encrypted.key").read_text()
    )
    return folder


GOOD = "cert=server.crt&key=server.key"


WRONG_FILES = [
    ("cert=none.crt&key=server.key", "cert", 1, ["none.crt", "No such file"]),
    ("cert=server.crt&key=none.key", "key", 1, ["none.key", "No such file"]),
    (f"{GOOD}&verify=required&ca=none.crt", "ca", 1, ["none.crt", "No such file"]),
    ("cert=.&key=server.key", "cert", 1, ["directory"]),
    ("cert=/dev/zero&key=server.key", "cert", 1, ["/dev/zero", "large"]),
    ("cert=empty", "cert", 2, ["empty"]),
    ("cert=server.crt&key=empty", "key", 2, ["empty"]),
    (f"{GOOD}&verify=required&ca=empty", "ca", 2, ["empty"]),
    ("cert=server.crt&key=other.key", "key", 2, []),
    ("cert=server.crt&key=rsa.key", "key", 2, []),
    ("cert=rsa.crt&key=server.key", "key", 2, []),
    ("cert=server.crt&key=encrypted.key", "key", 2, ["encrypted"]),
    ("cert=server.crt&key=encrypted.old.key", "key", 2, ["encrypted"]),
    ("cert=encrypted.pem", "key", 2, ["encrypted"]),
    ("cert=server.crt", "key", 2, []),
    ("cert=server.key&key=server.key", "cert", 2, []),
    ("cert=text&key=server.key", "cert", 2, []),
    ("cert=garbage&key=server.key", "cert", 2, []),
    ("cert=broken.crt&key=server.key", "cert", 2, []),
    ("cert=cut.crt&key=server.key", "cert", 2, []),
    ("cert=server.crt&key=text", "key", 2, []),
    ("cert=server.crt&key=garbage", "key", 2, []),
    ("cert=server.crt&key=broken.key", "key", 2, []),
    ("cert=server.crt&key=cut.key", "key", 2, []),
    (f"{GOOD}&verify=required&ca=text", "ca", 2, []),
    (f"{GOOD}&verify=required&ca=server.key", "ca", 2, []),
    (f"{GOOD}&verify=required&ca=broken.crt", "ca", 2, []),
]


def test_wrong_files(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """The option is named first, and the mark is at it."""
    monkeypatch.chdir(files)
    found = complaints(
        tmp_path, [f"tls://127.0.0.1:0?engine={engine}&{options}" for options, *_ in WRONG_FILES]
    )
    faults = []
    for (options, option, status, words), told in zip(WRONG_FILES, found, strict=True):
        ended, text, where = told
        given = "".join(part for part in options.split("&") if part.startswith(f"{option}="))
        # What the system says has the endpoint before it, and no mark.
        endpoint = f"tls://127.0.0.1:0?engine={engine}&{options}: " if status == 1 else ""
        named = text.startswith(f"{endpoint}{option}: ")
        lacks = [word for word in words if word not in text]
        if ended != status or not named or lacks or where != (given if status == 2 else ""):
            faults.append((options, told, f"lacks {lacks}"))
    assert not faults, "\n".join(map(str, faults))


def test_min_that_the_library_has_not(tmp_path: Path) -> None:
    if has_tls_1_3(see_to("mbedtls")):
        with MailServer(tmp_path, "tls://127.0.0.1:0?cert=dev&engine=mbedtls&min=1.3") as server:
            with greet(server.address, unverifying()) as sock:
                assert sock.version() == "TLSv1.3"
        return
    status, text, option = complaint(tmp_path, "tls://127.0.0.1:0?cert=dev&min=1.3&engine=mbedtls")
    assert (status, option) == (2, "min=1.3")
    assert re.match(r"min: .*mbed TLS.* 1\.3", text)


def test_nothing_stays_behind_where_one_is_wrong(tmp_path: Path, short_path: str) -> None:
    """Those that were listening already are gone."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    for wrong in (
        "tls://127.0.0.1:0?cert=/none",
        "starttls+stdio:?cert=/none",
        f"tls+unix:{short_path}3?cert=/none",
    ):
        status, text, _ = complaint(
            tmp_path,
            f"tls://127.0.0.1:{port}?cert=dev",
            f"tls+unix:{short_path}?cert=dev",
            f"starttls+unix:{short_path}2?cert=dev",
            wrong,
        )
        assert (status, "/none" in text) == (1, True), text
        for path in (short_path, f"{short_path}2", f"{short_path}3"):
            assert not os.path.exists(path)
        with pytest.raises(ConnectionRefusedError):
            open_socket(("127.0.0.1", port)).close()


# ---- Options that are right ----


@pytest.mark.parametrize("name", ["server", "rsa"])
def test_certificate_and_key(
    tmp_path: Path, tls: Certificates, engine: str, scheme: str, name: str
) -> None:
    """In two files, and in one. That the intermediate is sent too, the client's verifying shows."""
    pem = tmp_path / "in one & with #?%.pem"
    pem.write_bytes(b"".join(Path(tls.path(f"{name}.{e}")).read_bytes() for e in ("crt", "key")))
    quoted = str(pem).replace("%", "%25").replace(" ", "%20").replace("&", "%26")
    quoted = quoted.replace("#", "%23").replace("?", "%3F")
    files = f"cert={tls.path(f'{name}.crt')}&key={tls.path(f'{name}.key')}"
    where = [
        f"{scheme}://127.0.0.1:0?engine={engine}&{option}"
        for option in (files, f"cert={quoted}", f"key={quoted}&cert={quoted}")
    ]
    with MailServer(tmp_path, *where) as server:
        assert len(server.addresses) == len(where)
        for number, address in enumerate(server.addresses):
            with Session(address, tls.client() if scheme == "tls" else None) as session:
                if scheme == "starttls":
                    session.starttls(context=tls.client())
                assert session.sock.getpeercert(binary_form=True) == tls.der(name)
                send(session, f"{number}@example.org")
        assert len(read_by_sender(server.maildir)) == len(where)


@pytest.mark.parametrize("way", ["option", "environment"])
@pytest.mark.parametrize("name", ["gnutls", "mbedtls"])
def test_it_is_the_engine_that_was_named(
    tmp_path: Path, tls: Certificates, way: str, name: str
) -> None:
    """Its library is there, and no other engine's. (OpenSSL is Python's own, and always there.)"""
    see_to(name)
    if way == "option":
        made = MailServer(tmp_path, endpoint(tls, name), environment={"BECKET_TLS": "nonsense"})
    else:
        where = endpoint(tls, name).replace(f"&engine={name}", "")
        made = MailServer(tmp_path, where, environment={"BECKET_TLS": name})
    with made as server:
        greet(server.address, tls.client()).close()
        loaded = server.about("maps").read_text()
        assert [e for e in ("gnutls", "mbedtls") if f"/lib{e}" in loaded] == [name]


def test_a_python_engine_in_the_environment(tmp_path: Path, tls: Certificates) -> None:
    see_to("tlslite")
    where = endpoint(tls, "x").replace("&engine=x", "")
    with MailServer(tmp_path, where, environment={"BECKET_TLS": "tlslite"}) as server:
        with greet(server.address, only(tls.client(), V1_2)) as sock:
            # Of the engines here, the one whose order is the client's.
            assert sock.cipher()


@pytest.mark.parametrize("verify", ["required", "optional", "none"])
def test_certificates_of_clients(
    tmp_path: Path, tls: Certificates, engine: str, verify: str, version: ssl.TLSVersion
) -> None:
    where = endpoint(tls, engine, f"verify={verify}", f"ca={tls.path('ca.crt')}")

    def client(name: str | None) -> ssl.SSLContext:
        return only(tls.client(name), version)

    with MailServer(tmp_path, where) as server:
        for _ in range(2):
            with Session(server.address, client("client")) as session:
                send(session, f"good{_}@example.org")
            for name, why in (("stranger", "unknown.ca"), ("expired", "certificate.expired")):
                if verify == "none":
                    greet(server.address, client(name)).close()
                else:
                    assert_refused(server.address, client(name), f"{why}|bad.certificate")
            if verify == "required":
                assert_refused(
                    server.address, client(None), "certificate.required|handshake.failure"
                )
            else:
                greet(server.address, client(None)).close()
        # A session that was opened with a certificate can be gone on with; one cannot come by it
        # without.
        context = client("client")
        with greet(server.address, context) as sock:
            session = sock.session
        with greet(server.address, context, session=session) as sock:
            sock.sendall(b"QUIT\r\n")
        assert len(read_by_sender(server.maildir)) == 2


def test_whom_the_system_trusts(tmp_path: Path, tls: Certificates, engine: str) -> None:
    """Without ca=, that is not the tests' own authority."""
    with MailServer(tmp_path, endpoint(tls, engine, "verify=required")) as server:
        assert_refused(server.address, tls.client("client"), "unknown.ca|bad.certificate")


def test_alpn(tmp_path: Path, tls: Certificates, engine: str, version: ssl.TLSVersion) -> None:
    with MailServer(tmp_path, endpoint(tls, engine, "alpn=smtp,x-mail")) as server:

        def agreed(*offered: str) -> str | None:
            context = only(tls.client(), version)
            if offered:
                context.set_alpn_protocols(offered)
            with greet(server.address, context) as sock:
                return sock.selected_alpn_protocol()

        assert agreed() is None
        assert agreed("smtp") == "smtp"
        assert agreed("h2", "x-mail", "http/1.1") == "x-mail"
        own = (engine, "choose by its own order", version) not in CANNOT
        assert agreed("x-mail", "smtp") == ("smtp" if own else "x-mail")
        if (engine, "refuse ALPN", version) in CANNOT:
            assert agreed("h2") is None
        else:
            context = only(tls.client(), version)
            context.set_alpn_protocols(["h2", "smtp2"])
            assert_refused(server.address, context, "no.application.protocol")


def test_versions(tmp_path: Path, tls: Certificates, engine: str) -> None:
    new = has_tls_1_3(engine)
    options = ["max=1.2", "min=1.2", "min=1.2&max=1.2", "max=1.3"]
    options += ["min=1.3", "min=1.3&max=1.3"] if new else []
    with MailServer(tmp_path, *(endpoint(tls, engine, option) for option in options)) as server:
        for option, address in zip(options, server.addresses, strict=True):
            for version, word in ((V1_2, "1.2"), (V1_3, "1.3")):
                context = only(tls.client(), version)
                excluded = "min=1.3" in option if word == "1.2" else "max=1.2" in option or not new
                if excluded:
                    assert_refused(address, context, "protocol.version|handshake.failure")
                    continue
                with greet(address, context) as sock:
                    assert sock.version() == f"TLSv{word}"
            with greet(address, tls.client()) as sock:
                best = "1.2" if "max=1.2" in option or not new else "1.3"
                assert sock.version() == f"TLSv{best}"


def test_tickets(tmp_path: Path, tls: Certificates, engine: str, version: ssl.TLSVersion) -> None:
    """A session can be resumed, and with tickets=off it cannot; served is the client anyway."""
    options = ["tickets=on", "tickets=off", "linger=3"]
    with MailServer(tmp_path, *(endpoint(tls, engine, option) for option in options)) as server:
        for option, address in zip(options, server.addresses, strict=True):
            context = only(tls.client(), version)
            reused, session = [], None
            for _ in range(3):
                with greet(address, context, session=session) as sock:
                    session = sock.session
                    reused.append(sock.session_reused)
                    sock.sendall(b"QUIT\r\n")
                    assert sock.recv(1000)
            kept = option != "tickets=off" or (engine, "forget sessions", version) in CANNOT
            assert reused == [False, kept, kept], option


def test_certificate_for_development(tmp_path: Path, engine: str, scheme: str) -> None:
    """It is told that nobody trusts it, nobody does, and it serves those who do not care."""
    with MailServer(tmp_path, f"{scheme}://127.0.0.1:0?cert=dev&engine={engine}") as server:
        host, port = server.address
        assert (
            f"{scheme}://{host}:{port}: a certificate for development, which no client trusts"
            in server.lines
        )
        for number in range(3):
            with pytest.raises(ssl.SSLCertVerificationError):
                if scheme == "tls":
                    Session(server.address, ssl.create_default_context())
                else:
                    with Session(server.address) as session:
                        try:
                            session.starttls(context=ssl.create_default_context())
                        finally:
                            session.close()
            with Session(server.address, unverifying() if scheme == "tls" else None) as session:
                if scheme == "starttls":
                    session.starttls(context=unverifying())
                send(session, f"{number}@example.org")
        assert len(read_by_sender(server.maildir)) == 3


def test_a_certificate_for_development_stands_for_localhost(tmp_path: Path, engine: str) -> None:
    """One who is shown it, and trusts it, finds it in order."""
    with MailServer(tmp_path, f"tls://127.0.0.1:0?cert=dev&engine={engine}") as server:
        der = seen_certificate(server.address, unverifying())
        trusting = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(der))
        for host in ("localhost", "127.0.0.1"):
            with open_socket(server.address) as sock:
                with trusting.wrap_socket(sock, server_hostname=host) as secure:
                    assert secure.recv(4) == b"220 "
        with open_socket(server.address) as sock:
            with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname mismatch"):
                trusting.wrap_socket(sock, server_hostname="site.test")


# ---- Certificates that change ----

AGAIN = r".*: the certificate was read again"
STAYS = r".*: the old certificate stays: .*"  # how files are named, test_wrong_files says


class Site:
    """The files of an endpoint, which change while it is served."""

    def __init__(self, tls: Certificates, folder: Path) -> None:
        self.tls = tls
        self.crt, self.key = folder / "site.crt", folder / "site.key"
        self.install("server")

    def install(self, name: str) -> None:
        self.replace(self.crt, Path(self.tls.path(f"{name}.crt")).read_bytes())
        self.replace(self.key, Path(self.tls.path(f"{name}.key")).read_bytes())

    @staticmethod
    def replace(path: Path, content: bytes) -> None:
        """By a rename, as whoever changes files that others read should."""
        fresh = path.with_suffix(".fresh")
        fresh.write_bytes(content)
        fresh.rename(path)

    def endpoint(self, engine: str, *options: str, scheme: str = "tls") -> str:
        every = [f"cert={self.crt}", f"key={self.key}", f"engine={engine}", *options]
        return f"{scheme}://127.0.0.1:0?{'&'.join(every)}"


@pytest.fixture
def site(tls: Certificates, tmp_path: Path) -> Site:
    return Site(tls, tmp_path)


def test_sighup(tmp_path: Path, tls: Certificates, site: Site, engine: str) -> None:
    """New connections get the new certificate, one that is open does not notice, and what cannot
    be used is not."""
    with MailServer(
        tmp_path, site.endpoint(engine, "reload=0"), expected=f"{AGAIN}|{STAYS}"
    ) as server:

        def sees(name: str) -> bool:
            return seen_certificate(server.address, tls.client()) == tls.der(name)

        host, port = server.address
        where = re.escape(f"tls://{host}:{port}: ")
        with Wire(server.address, tls.client()) as open_before:
            assert open_before.codes(1) == ["220"]
            open_before.send(b"EHLO client.example.org\r\nMAIL FROM:<")
            assert sees("server")

            site.install("rsa")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(f"^{where}the certificate was read again")
            assert sees("rsa")

            site.replace(site.crt, b"nonsense")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(f"^{where}the old certificate stays: ")
            assert sees("rsa")
            site.crt.unlink()
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("stays: cert: .*site.crt: No such file")
            assert sees("rsa")
            site.replace(site.crt, Path(tls.path("other.crt")).read_bytes())
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("the old certificate stays: .*key")
            assert sees("rsa")

            site.install("server")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("was read again", 2)
            assert sees("server")

            open_before.send(b"open@example.org>\r\nRCPT TO:<you@example.org>\r\nDATA\r\n")
            assert open_before.codes(4) == ["250", "250", "250", "354"]
            assert open_before.ask(TEXT + b".\r\n")[:3] == "250"
        assert read_by_sender(server.maildir) == {"open@example.org": TEXT}


@pytest.mark.parametrize("name, scheme", [(e, "tls") for e in ENGINES] + [("openssl", "starttls")])
def test_files_that_change_by_themselves(
    tmp_path: Path, tls: Certificates, site: Site, name: str, scheme: str
) -> None:
    """Without a signal."""
    engine = see_to(name)

    def sees(name: str) -> bool:
        if scheme == "tls":
            return seen_certificate(server.address, tls.client()) == tls.der(name)
        with Session(server.address) as session:
            session.starttls(context=tls.client())
            return session.sock.getpeercert(binary_form=True) == tls.der(name)

    with (
        MailServer(
            tmp_path, site.endpoint(engine, "reload=1", scheme=scheme), expected=f"{AGAIN}|{STAYS}"
        ) as server,
        Wire(server.address) as begun,
    ):
        if scheme == "tls":
            begun.start_tls(tls.client())
        assert begun.codes(1) == ["220"]
        assert sees("server")
        # One file after the other: in between, they do not fit.
        site.replace(site.crt, Path(tls.path("rsa.crt")).read_bytes())
        server.wait_for("the old certificate stays: .*key")
        assert sees("server")
        site.replace(site.key, Path(tls.path("rsa.key")).read_bytes())
        server.wait_for("was read again")
        assert sees("rsa")
        # Written over in place.
        site.crt.write_bytes(b"")
        server.wait_for(r"the old certificate stays: cert: .*site\.crt: the file is empty")
        assert sees("rsa")
        site.key.write_bytes(Path(tls.path("server.key")).read_bytes())
        site.crt.write_bytes(Path(tls.path("server.crt")).read_bytes())
        server.wait_for("was read again", 2)
        assert sees("server")
        if scheme == "starttls":  # what began in plain before may take either
            site.install("rsa")
            server.wait_for("was read again", 3)
            assert begun.ask(b"STARTTLS\r\n")[:3] == "220"
            begun.start_tls(tls.client())
            assert begun.sock.getpeercert(binary_form=True) in (tls.der("server"), tls.der("rsa"))
        assert begun.ask(b"EHLO client.example.org\r\n")[:3] == "250"


def test_symlinks_that_are_replaced(tmp_path: Path, tls: Certificates) -> None:
    """As certbot does: live/site.pem is one to archive/site2.pem, put in place by a rename."""
    see_to("openssl")
    (tmp_path / "archive").mkdir()
    (tmp_path / "live").mkdir()

    def install(number: int, name: str) -> None:
        for ending in ("crt", "key"):
            kept = tmp_path / "archive" / f"site{number}.{ending}"
            kept.write_bytes(Path(tls.path(f"{name}.{ending}")).read_bytes())
            fresh = tmp_path / "live" / "fresh"
            fresh.symlink_to(f"../archive/{kept.name}")
            fresh.rename(tmp_path / "live" / f"site.{ending}")

    install(1, "server")
    where = (
        f"tls://127.0.0.1:0?cert={tmp_path}/live/site.crt&key={tmp_path}/live/site.key"
        "&engine=openssl&reload=1"
    )
    with MailServer(tmp_path, where, expected=f"{AGAIN}|{STAYS}") as server:
        assert seen_certificate(server.address, tls.client()) == tls.der("server")
        install(2, "rsa")
        server.wait_for("was read again")
        assert seen_certificate(server.address, tls.client()) == tls.der("rsa")


def test_an_authority_that_changes(tmp_path: Path, tls: Certificates, engine: str) -> None:
    ca = tmp_path / "ca.crt"
    shutil.copy(tls.path("ca.crt"), ca)
    where = endpoint(tls, engine, "verify=required", f"ca={ca}", "reload=0")
    with MailServer(tmp_path, where, expected=f"{AGAIN}|{STAYS}") as server:
        greet(server.address, tls.client("client")).close()
        assert_refused(server.address, tls.client("stranger"), "unknown.ca|bad.certificate")
        shutil.copy(tls.path("stranger.crt"), ca)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("was read again")
        greet(server.address, tls.client("stranger")).close()
        assert_refused(server.address, tls.client("client"), "unknown.ca|bad.certificate")
        ca.write_bytes(b"")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("the old certificate stays: ca: ")
        greet(server.address, tls.client("stranger")).close()


def test_sessions_from_before(
    tmp_path: Path, tls: Certificates, site: Site, engine: str, version: ssl.TLSVersion
) -> None:
    """One who comes with a session of the old certificate is served; no matter how."""
    with MailServer(tmp_path, site.endpoint(engine, "reload=0"), expected=AGAIN) as server:
        context = only(tls.client(), version)
        with greet(server.address, context) as sock:
            session = sock.session
        for name in ("rsa", "server"):
            site.install(name)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("was read again", 1 if name == "rsa" else 2)
            greet(server.address, context, session=session).close()


def test_sighup_with_endpoints_of_every_kind(
    tmp_path: Path, tls: Certificates, site: Site, short_path: str
) -> None:
    """Each that has files tells; for the others there is nothing to do."""
    see_to("openssl")
    unix = f"tls+unix:{short_path}?cert={site.crt}&key={site.key}&reload=0"
    with MailServer(
        tmp_path,
        "tcp://127.0.0.1:0",
        "tls://127.0.0.1:0?cert=dev",
        unix,
        site.endpoint("openssl", "reload=0"),
        site.endpoint("openssl", "reload=0", scheme="starttls"),
        expected=AGAIN,
    ) as server:
        before = seen_certificate(server.addresses[1], unverifying())
        site.install("rsa")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("was read again", 3)
        told = sorted(s.partition(": the")[0] for s in server.lines if "read again" in s)
        assert told == sorted(
            [
                f"tls+unix:{short_path}",
                f"tls://127.0.0.1:{server.addresses[3][1]}",
                f"starttls://127.0.0.1:{server.addresses[4][1]}",
            ]
        )
        assert seen_certificate(server.addresses[1], unverifying()) == before
        assert seen_certificate(short_path, tls.client()) == tls.der("rsa")
        assert seen_certificate(server.addresses[3], tls.client()) == tls.der("rsa")
        with Session(server.addresses[0]) as session:
            send(session, "plain@example.org")


def test_sighup_in_a_crowd(tmp_path: Path, tls: Certificates, site: Site, engine: str) -> None:
    """Again and again, among clients that come and go: none notices, and nothing is left over."""
    failures, over = [], threading.Event()
    sent = [0] * 4

    def work(number: int) -> None:
        try:
            while not over.is_set():
                with Session(server.address, tls.client()) as session:
                    sent[number] += 1
                    send(session, f"{number}.{sent[number]}@example.org")
        except (OSError, smtplib.SMTPException) as error:
            failures.append(error)

    with MailServer(tmp_path, site.endpoint(engine, "reload=0"), expected=AGAIN) as server:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(sent))]
        with Session(server.address, tls.client()) as session:
            send(session, "first@example.org")
        for thread in threads:
            thread.start()
        for count in range(1, 21):
            site.install("rsa" if count % 2 else "server")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("was read again", count)
        over.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(read_by_sender(server.maildir)) == sum(sent) + 1
        before = server.descriptors()
        site.install("rsa")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("was read again", 21)
        server.wait_for_descriptors(before)


# ---- Peers that mean harm ----


def leave(sock: socket.socket, *, by_reset: bool = False) -> None:
    if by_reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def last_words(sock: socket.socket) -> bytes:
    """All that the server still says; it must come to an end."""
    said = b""
    with suppress(ConnectionError):
        while piece := sock.recv(1 << 16):
            said += piece
    return said


def replies(said: bytes) -> list[bytes]:
    """What of it is SMTP in plain. Three digits alone may be in a certificate's dates."""
    return re.findall(rb"(?m)^[2-5][0-9]{2}[ -].*", said)


@contextmanager
def undisturbed(server: MailServer, tls: Certificates) -> Iterator[None]:
    """What is done within leaves nothing open, and others are served before and after."""

    def serve(sender: str) -> None:
        with Session(server.address, tls.client()) as session:
            send(session, sender)

    serve("before@example.org")
    before = server.descriptors()
    yield
    serve("after@example.org")
    server.wait_for_descriptors(before)
    assert read_by_sender(server.maildir) == {"before@example.org": TEXT, "after@example.org": TEXT}


def record(kind: int, content: bytes, size: int | None = None) -> bytes:
    size = len(content) if size is None else size
    return struct.pack(">BHH", kind, 0x0301, size) + content


NO_TLS = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "smtp": b"EHLO client.example.org\r\nMAIL FROM:<evil@example.org>\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": bytes(100_000),
    "noise": random.Random(1).randbytes(100_000),
    "noise in a record": record(22, random.Random(2).randbytes(16_000)),
    "SSL 2": bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0")
    + bytes(16),
    "an empty record": record(22, b""),
    "empty records": record(22, b"") * 20_000,
    "a record too large": record(22, bytes(65_535)),
    "a hello too large": record(22, b"\x01\xff\xff\xff" + bytes(16_000))
    + record(22, bytes(16_000)) * 20,
    "a fatal alert": record(21, b"\x02\x28"),
    "warnings": record(21, b"\x01\x5a") * 20_000,
    "changes of cipher": record(20, b"\x01") * 20_000,
    "application data": record(23, bytes(64)),
    "a heartbeat": record(24, b"\x01\x40\x00"),
    "finished": record(22, b"\x14\x00\x00\x0c" + bytes(12)),
    "a hello request": record(22, b"\x00\x00\x00\x00") * 1000,
}


def test_what_is_no_tls(server: MailServer, tls: Certificates) -> None:
    """It is turned away, and no word of SMTP is said in plain."""
    with undisturbed(server, tls):
        for name, data in NO_TLS.items():
            for _ in range(3):
                with open_socket(server.address) as sock:
                    with suppress(ConnectionError):
                        sock.sendall(data)
                    with suppress(OSError):
                        sock.shutdown(socket.SHUT_WR)
                    said = last_words(sock)
                # An alert, if anything.
                assert said[:1] in (b"", b"\x15"), name
                assert len(said) < 100, name


def test_hellos_that_are_cut_off(server: MailServer, tls: Certificates) -> None:
    """By an end, by a close, by a reset: early, in the middle, and with the server's answer due."""
    whole = hello(tls.client())
    with undisturbed(server, tls):
        for size in (1, 4, 5, 6, 9, 11, 43, 44, len(whole) // 2, len(whole) - 1, len(whole)):
            for way in ("end", "close", "reset"):
                sock = open_socket(server.address)
                sock.sendall(whole[:size])
                if way == "end":
                    sock.shutdown(socket.SHUT_WR)
                    assert not replies(last_words(sock))
                leave(sock, by_reset=way == "reset")


def test_clients_that_leave_in_mid_handshake(
    server: MailServer, tls: Certificates, engine: str, version: ssl.TLSVersion
) -> None:
    """After so many bytes of what they have to say, some of it after the server's answer."""

    class Enough(Exception):
        pass

    def talk(size: int, by_reset: bool) -> int:
        sock = open_socket(server.address)
        left = size

        def carry(data: bytes) -> None:
            nonlocal left
            sock.sendall(data[:left])
            left -= len(data)
            if left < 0:
                raise Enough

        client = ByHand(only(tls.client(), version), carry, lambda: sock.recv(1 << 16))
        with suppress(Enough):
            client.handshake()
        leave(sock, by_reset=by_reset)
        return size - left

    with undisturbed(server, tls):
        most = talk(1 << 20, False)
        first = len(hello(only(tls.client(), version)))
        for size in sorted({first, first + 1, first + 5, first + 6, first + 40, most - 1, most}):
            for by_reset in (False, True):
                talk(size, by_reset)


def test_silent_clients_are_dropped(
    tmp_path: Path, tls: Certificates, engine: str, scheme: str
) -> None:
    """Those that say nothing, or not enough, when a handshake is due; while others are served, and
    those whose handshake is over, or who have not asked for TLS yet, may be silent."""
    where = endpoint(tls, engine, "handshake=1", scheme=scheme)
    first = hello(tls.client())
    with MailServer(tmp_path, where) as server, ExitStack() as stack:

        def session() -> Session:
            secure = tls.client() if scheme == "tls" else None
            opened = stack.enter_context(Session(server.address, secure))
            if scheme == "starttls":
                opened.starttls(context=tls.client())
            return opened

        patient = session()
        plain = stack.enter_context(Wire(server.address)) if scheme == "starttls" else None
        if plain is not None:
            assert plain.codes(1) == ["220"]
        before = server.descriptors()
        silent = []
        for part in (b"", first[:1], first[:100], first):
            wire = Wire(server.address)
            silent.append(stack.enter_context(wire))
            if scheme == "starttls":
                assert wire.codes(1) == ["220"]
                assert wire.ask(b"STARTTLS\r\n")[:3] == "220"
            wire.send(part)
        for number in range(3):
            send(session(), f"busy{number}@example.org")
        for wire in silent:
            assert not replies(last_words(wire.sock))
        if plain is not None:
            assert plain.ask(b"NOOP\r\n")[:3] == "250"
        send(patient, "patient@example.org")
        assert len(read_by_sender(server.maildir)) == 4
        server.wait_for_descriptors(before + 3)


def test_many_silent_clients(server: MailServer, tls: Certificates) -> None:
    """200 at once, and one that wants something."""
    first = hello(tls.client())
    with undisturbed(server, tls):
        silent = [open_socket(server.address) for _ in range(200)]
        for number, sock in enumerate(silent):
            sock.sendall(first[: number % 4 * 50])
        with Session(server.address, tls.client()) as session:
            assert session.noop()[0] == 250
        for number, sock in enumerate(silent):
            leave(sock, by_reset=number % 2 == 0)


def test_bytes_one_by_one(
    server: MailServer, tls: Certificates, engine: str, version: ssl.TLSVersion
) -> None:
    """The handshake too; and what comes back is read in pieces."""
    with open_socket(server.address) as sock:

        def carry(data: bytes) -> None:
            for byte in data:
                sock.sendall(bytes([byte]))

        client = ByHand(only(tls.client(), version), carry, lambda: sock.recv(7))
        client.handshake()
        assert client.read_until(b"\r\n").startswith(b"220 ")
        for command in ("HELO x", "MAIL FROM:<slow@example.org>", "RCPT TO:<you@example.org>"):
            for byte in f"{command}\r\n".encode():
                client.write(bytes([byte]))  # a record each
            assert client.read_until(b"\r\n").startswith(b"250 ")
        client.write(b"DATA\r\n")
        assert client.read_until(b"\r\n").startswith(b"354 ")
        client.write(TEXT + b".\r\nQUIT\r\n")
        assert client.read_until(b"\r\n").startswith(b"250 ")
    server.wait_stored(1)
    assert read_by_sender(server.maildir) == {"slow@example.org": TEXT}


def test_renegotiation_is_refused(server: MailServer, tls: Certificates) -> None:
    """TLS 1.2 has it, and it makes a server work for nothing. s_client's "R" asks for it."""
    with undisturbed(server, tls):
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        with subprocess.Popen(
            [
                "openssl",
                "s_client",
                "-tls1_2",
                "-legacy_renegotiation",
                "-CAfile",
                tls.path("ca.crt"),
                "-connect",
                f"127.0.0.1:{server.address[1]}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        ) as process:
            guard = threading.Timer(PATIENCE, process.kill)
            guard.start()
            said = b""
            while not said.endswith(b"ESMTP") and b"\n220 " not in said:
                piece = os.read(process.stdout.fileno(), 4096)
                assert piece, said
                said += piece
            process.stdin.write(b"R\n")
            process.stdin.flush()
            while b"RENEGOTIATING" not in said:
                piece = os.read(process.stdout.fileno(), 4096)
                assert piece, said
                said += piece
            with suppress(BrokenPipeError):
                process.stdin.write(b"noop\r\nquit\r\n")  # "Q" would be s_client's
                process.stdin.flush()
            said += process.stdout.read()
            guard.cancel()
            with suppress(BrokenPipeError):
                process.stdin.close()
        assert process.returncode == 1, said
        after = said.partition(b"RENEGOTIATING")[2]
        assert b"depth=" not in after, said  # no second certificate was shown
        assert b"221 " not in after, said


def test_truncated_connections(server: MailServer, tls: Certificates) -> None:
    """Ends without close_notify, wherever they come: no part of a message is taken for a whole."""

    def talk(lines: list[bytes], by_reset: bool) -> None:
        sock = greet(server.address, tls.client())
        sock.recv(1000)
        for line in lines:
            sock.sendall(line)
            if line.endswith(b"\r\n"):
                assert sock.recv(1000)[:1] in (b"2", b"3")
        leave(socket.socket(fileno=sock.detach()), by_reset=by_reset)

    begin = [b"EHLO x\r\n", b"MAIL FROM:<cut@example.org>\r\n", b"RCPT TO:<you@example.org>\r\n"]
    with undisturbed(server, tls):
        for by_reset in (False, True):
            talk([], by_reset)
            talk([b"EH"], by_reset)
            talk(begin, by_reset)
            talk([*begin, b"DATA\r\n"], by_reset)
            talk([*begin, b"DATA\r\n", b"Subject: cut\r\n\r\n."], by_reset)
            talk([*begin, b"DATA\r\n", b"Subject: cut\r\n\r\n.\r"], by_reset)
            talk([*begin, b"DATA\r\n", b"x" * 1_000_000], by_reset)


def test_records_that_were_tampered_with(
    server: MailServer, tls: Certificates, engine: str, version: ssl.TLSVersion
) -> None:
    """Nothing of what is in them, or comes after them, is taken for the client's."""
    commands = (
        b"EHLO x\r\nMAIL FROM:<evil@example.org>\r\nRCPT TO:<you@example.org>\r\nDATA\r\n",
        b"evil\r\n.\r\n",
    )

    def flipped(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1])

    ways: list[Callable[[list[bytes]], bytes]] = [
        lambda sealed: flipped(sealed[0]) + sealed[1],
        lambda sealed: sealed[0] + flipped(sealed[1]),
        lambda sealed: sealed[1] + sealed[0],
        lambda sealed: sealed[0] + sealed[0] + sealed[1],
        lambda sealed: sealed[0] + commands[1] + sealed[1],
        lambda sealed: sealed[0] + record(23, commands[1]),
        lambda sealed: sealed[0][:-1] + sealed[1],
        lambda sealed: commands[0] + commands[1],
        lambda sealed: sealed[0] + record(23, b"", 0xFFFF) + bytes(70_000),
    ]
    with undisturbed(server, tls):
        for way in ways:
            with open_socket(server.address) as sock:
                client = ByHand(
                    only(tls.client(), version), sock.sendall, lambda sock=sock: sock.recv(1 << 16)
                )
                client.handshake()
                assert client.read_until(b"\r\n").startswith(b"220 ")
                sealed = []
                for command in commands:
                    client.tls.write(command)
                    sealed.append(client.take())
                with suppress(OSError):
                    sock.sendall(way(sealed))
                    sock.shutdown(socket.SHUT_WR)
                last_words(sock)


def test_a_client_that_does_not_read(server: MailServer, tls: Certificates) -> None:
    """It stops nobody else, and gets all it has asked for when it does."""
    count = 99  # of those that bring no mail, a session may have 100
    with Wire(server.address, tls.client()) as wire:
        for _ in range(count):
            wire.send(b"HELP\r\n")
        with Session(server.address, tls.client()) as session:
            send(session, "other@example.org")
        assert wire.codes(count + 1) == ["220"] + ["214"] * count
    assert read_by_sender(server.maildir) == {"other@example.org": TEXT}


def test_memory_does_not_grow(server: MailServer, tls: Certificates, engine: str) -> None:
    """With all sorts of clients that come to nothing."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        rounds, limit = 1, None  # it keeps what was freed, and finds by itself what was not
    else:
        rounds, limit = 6, 500_000
    first = hello(tls.client())
    count = 30 if engine in ("mbedtls", "tlslite") else 100

    def resident() -> int:
        return int(server.about("statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def disturb() -> None:
        for number in range(count):
            for data in (b"", NO_TLS["http"], first[:200], first, NO_TLS["noise in a record"]):
                sock = open_socket(server.address)
                with suppress(ConnectionError):
                    sock.sendall(data)
                leave(sock, by_reset=number % 2 == 0)
            sock = greet(server.address, tls.client())
            leave(socket.socket(fileno=sock.detach()), by_reset=number % 2 == 0)

    with undisturbed(server, tls):
        disturb()
        sizes = []
        for _ in range(rounds):
            disturb()
            sizes.append(resident())
    # A leak grows in every round; what an allocator keeps does not.
    half = len(sizes) // 2
    assert limit is None or min(sizes[half:]) - min(sizes[:half]) < limit, sizes


# ---- STARTTLS ----


@pytest.fixture
def starttls(tmp_path: Path, tls: Certificates, engine: str) -> Iterator[MailServer]:
    with MailServer(tmp_path, endpoint(tls, engine, scheme="starttls")) as server:
        yield server


EVIL = (
    b"EHLO evil\r\nMAIL FROM:<evil@example.org>\r\nRCPT TO:<you@example.org>\r\nDATA\r\n"
    b"evil\r\n.\r\n"
)


def test_starttls_is_offered_where_it_is_there(tmp_path: Path, tls: Certificates) -> None:
    see_to("openssl")
    with MailServer(
        tmp_path,
        "tcp://127.0.0.1:0",
        endpoint(tls, "openssl"),
        endpoint(tls, "openssl", scheme="starttls"),
    ) as server:
        plain, secure, later = server.addresses
        with Session(plain) as session:
            session.ehlo()
            assert not session.has_extn("starttls")
            assert session.docmd("STARTTLS")[0] == 502
        with Session(secure, tls.client()) as session:
            session.ehlo()
            assert not session.has_extn("starttls")
            assert session.docmd("STARTTLS")[0] == 503
        with Session(later) as session:
            session.ehlo()
            assert session.has_extn("starttls")
            assert session.docmd("STARTTLS", "now")[0] == 501
            assert session.noop()[0] == 250
            send(session, "plain@example.org")
            session.starttls(context=tls.client())
            session.ehlo()
            assert not session.has_extn("starttls")
            assert session.docmd("STARTTLS")[0] == 503
            send(session, "secure@example.org")
        assert read_traces(server.maildir) == {
            "plain@example.org": ("client.example.org", "ESMTP"),
            "secure@example.org": ("client.example.org", "ESMTPS"),
        }


def test_commands_slipped_in_behind_starttls(starttls: MailServer, tls: Certificates) -> None:
    """In one piece with it (CVE-2011-0411): that is refused, and nothing is executed."""
    for evil in (EVIL, b"NOOP\r\n", b"\r\n", b"N", b"\n", hello(tls.client())):
        with Wire(starttls.address) as wire:
            assert wire.codes(1) == ["220"]
            assert wire.ask(b"EHLO client.example.org\r\n")[:3] == "250"
            wire.send(b"STARTTLS\r\n" + evil)
            assert wire.codes(2) == ["554", ""]
    assert list_maildir(starttls.maildir)["new"] == []


def test_commands_slipped_in_after_starttls(starttls: MailServer, tls: Certificates) -> None:
    """In pieces of their own: the handshake then fails, whenever they arrive."""
    for evil in (EVIL, b"NOOP\r\n", b"\r\n", b"N"):
        for wait in (False, True):
            with Wire(starttls.address) as wire:
                assert wire.codes(1) == ["220"]
                wire.send(b"STARTTLS\r\n")
                if wait:
                    assert wire.codes(1) == ["220"]
                wire.send(evil)
                if not wait and wire.reply()[:3] == "554":
                    assert wire.reply() == ""
                    continue
                with pytest.raises(OSError):
                    wire.start_tls(tls.client())
    with Session(starttls.address) as session:
        session.starttls(context=tls.client())
        send(session, "good@example.org")
    assert read_by_sender(starttls.maildir) == {"good@example.org": TEXT}


def test_what_was_said_before_starttls_is_forgotten(
    starttls: MailServer, tls: Certificates
) -> None:
    for greeting in (b"EHLO evil.example.org\r\n", b"HELO evil.example.org\r\n"):
        with Wire(starttls.address) as wire:
            assert wire.codes(1) == ["220"]
            assert wire.ask(greeting)[:3] == "250"
            assert wire.ask(b"MAIL FROM:<evil@example.org>\r\n")[:3] == "250"
            assert wire.ask(b"RCPT TO:<evil@example.org>\r\n")[:3] == "250"
            assert wire.ask(b"STARTTLS\r\n")[:3] == "220"
            wire.start_tls(tls.client())
            assert wire.ask(b"DATA\r\n")[:3] == "503"
            assert wire.ask(b"RCPT TO:<you@example.org>\r\n")[:3] == "503"
            assert wire.ask(b"MAIL FROM:<me@example.org>\r\n")[:3] == "503"
            assert wire.ask(b"EHLO good.example.org\r\n")[:3] == "250"
            sender = f"{greeting[:4].decode()}@example.org"
            assert wire.ask(f"MAIL FROM:<{sender}>\r\n".encode())[:3] == "250"
            assert wire.ask(b"RCPT TO:<you@example.org>\r\n")[:3] == "250"
            assert wire.ask(b"DATA\r\n")[:3] == "354"
            assert wire.ask(TEXT + b".\r\n")[:3] == "250"
    assert read_traces(starttls.maildir) == {
        "EHLO@example.org": ("good.example.org", "ESMTPS"),
        "HELO@example.org": ("good.example.org", "ESMTPS"),
    }


def test_commands_in_front_of_starttls_in_one_piece(
    starttls: MailServer, tls: Certificates
) -> None:
    """RFC 3207 4: it may be the last of a group."""
    with Wire(starttls.address) as wire:
        wire.send(b"EHLO client.example.org\r\nNOOP\r\nSTARTTLS\r\n")
        assert wire.codes(4) == ["220", "250", "250", "220"]
        wire.start_tls(tls.client())
        assert wire.ask(b"EHLO client.example.org\r\n")[:3] == "250"


def test_hostile_handshakes_after_starttls(starttls: MailServer, tls: Certificates) -> None:
    first = hello(tls.client())
    with Session(starttls.address) as session:
        send(session, "before@example.org")
    before = starttls.descriptors()
    for data in (*NO_TLS.values(), first[:1], first[:100], first):
        for by_reset in (False, True):
            with Wire(starttls.address) as wire:
                assert wire.codes(1) == ["220"]
                assert wire.ask(b"STARTTLS\r\n")[:3] == "220"
                with suppress(ConnectionError):
                    wire.send(data)
                if not by_reset:
                    with suppress(OSError):
                        wire.sock.shutdown(socket.SHUT_WR)
                    assert not replies(last_words(wire.sock))
                else:
                    wire.sock.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
    with Session(starttls.address) as session:
        session.starttls(context=tls.client())
        send(session, "after@example.org")
    starttls.wait_for_descriptors(before)
    assert len(read_by_sender(starttls.maildir)) == 2


# ---- Other places than TCP ----


@pytest.mark.parametrize("scheme", ["tls+unix", "starttls+unix"])
def test_unix(tmp_path: Path, tls: Certificates, short_path: str, engine: str, scheme: str) -> None:
    files = f"cert={tls.path('server.crt')}&key={tls.path('server.key')}&engine={engine}"
    with MailServer(tmp_path, f"{scheme}:{short_path}?mode=600&{files}") as server:
        assert server.address == short_path
        assert os.stat(short_path).st_mode & 0o777 == 0o600
        shapes = {f"{name}@example.org": t for name, t in every_shape().items() if len(t) < 10**6}
        with Session(short_path, tls.client() if scheme == "tls+unix" else None) as session:
            if scheme == "starttls+unix":
                session.starttls(context=tls.client())
            for sender, text in shapes.items():
                send(session, sender, text)
        assert digest(read_by_sender(server.maildir)) == digest(shapes)
        assert {protocol for _, protocol in read_traces(server.maildir).values()} == {"ESMTPS"}
    assert not os.path.exists(short_path)


@pytest.mark.parametrize("scheme", ["tls+stdio", "starttls+stdio"])
def test_stdio(tmp_path: Path, tls: Certificates, engine: str, scheme: str) -> None:
    """As inetd has it; each direction is a pipe of its own."""
    with subprocess.Popen(
        [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "error",
            "-m",
            "becket",
            "serve",
            "smtp",
            "--maildir",
            tmp_path / "m",
            endpoint(tls, engine, scheme=scheme).replace("//127.0.0.1:0", ""),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        guard = threading.Timer(PATIENCE, process.kill)
        guard.start()
        client = ByHand(
            tls.client(), process.stdin.write, lambda: os.read(process.stdout.fileno(), 1 << 16)
        )
        if scheme == "starttls+stdio":
            assert process.stdout.readline().startswith(b"220 ")
            process.stdin.write(b"STARTTLS\r\n")
            assert process.stdout.readline().startswith(b"220 ")
        client.handshake()
        client.write(b"EHLO client.example.org\r\n")
        assert b"250 " in client.read_until(b"250 ENHANCEDSTATUSCODES\r\n")
        for command, code in (
            (b"MAIL FROM:<me@example.org>\r\n", b"250 "),
            (b"RCPT TO:<you@example.org>\r\n", b"250 "),
            (b"DATA\r\n", b"354 "),
            (TEXT * 10_000 + b".\r\n", b"250 "),
            (b"QUIT\r\n", b"221 "),
        ):
            client.write(command)
            assert client.read_until(b"\r\n").startswith(code)
        assert client.read() == b""  # close_notify
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
        guard.cancel()
    assert process.returncode == 0
    assert b"Traceback" not in said
    assert b"ended; 1 message stored" in said
    assert read_by_sender(tmp_path / "m") == {"me@example.org": TEXT * 10_000}
    assert read_traces(tmp_path / "m") == {"me@example.org": ("client.example.org", "ESMTPS")}


def test_an_adopted_socket(tmp_path: Path, tls: Certificates, engine: str) -> None:
    """One that listens already, as systemd hands it over."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
        where = endpoint(tls, engine, scheme="tls+fd").replace("//127.0.0.1:0", str(sock.fileno()))
        with MailServer(tmp_path, where, pass_fds=[sock.fileno()]) as server:
            with Session(address, tls.client()) as session:
                send(session, "me@example.org")
            assert read_by_sender(server.maildir) == {"me@example.org": TEXT}
