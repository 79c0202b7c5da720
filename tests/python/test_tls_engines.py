"""The TLS engines in Python: each as server with each as client, joined in memory.

BECKET_TEST_ENGINES names more of them, those of other packages: docs/write-a-tls-engine.md.
"""

from __future__ import annotations

import os
import random
import shutil
import ssl
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from becket import tls

NAMES = ["ssl", "pyopenssl", "tlslite"]
THEIRS = os.environ.get("BECKET_TEST_ENGINES", "").split()
TESTED = [*NAMES, *THEIRS]
VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
KIB = 1024

# What a library cannot do. The tests see that it does fail: a library that has learnt it is news.
CANNOT = {
    ("ssl", "refuse ALPN, TLSv1.2"): "the module asks OpenSSL to go on without a protocol",
    ("ssl", "refuse ALPN, TLSv1.3"): "the module asks OpenSSL to go on without a protocol",
    ("tlslite", "refuse ALPN, TLSv1.3"): "it does so in TLS 1.2 only",
    ("ssl", "forget sessions, TLSv1.2"): "the module cannot turn OpenSSL's cache of them off",
    ("tlslite", "write after the peer's close_notify"): "it ends both directions at once",
    ("pyopenssl", "tell of resumption, TLSv1.2"): "there is no call for it",
    ("pyopenssl", "tell of resumption, TLSv1.3"): "there is no call for it",
    ("tlslite", "tell of resumption, TLSv1.3"): "it forgets on the way",
    ("tlslite", "choose by its own order"): "it goes by the client's",
}
for name in THEIRS:
    CANNOT |= {(name, what): why for what, why in getattr(tls.find(name), "cannot", {}).items()}


class Certificates:
    """The files of tests/certificates.sh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is missing")
    folder = tmp_path_factory.mktemp("certificates")
    script = Path(__file__).resolve().parent.parent / "certificates.sh"
    subprocess.run(["sh", str(script), str(folder)], check=True)
    return Certificates(folder)


def found(name: str) -> type[tls.Engine]:
    try:
        return tls.find(name)
    except ImportError as error:
        pytest.skip(str(error))


class Maker:
    """Makes contexts and connections with the settings that most tests want."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates

    def settings(self, server_side: bool, **changes: Any) -> tls.Settings:
        who = changes.pop("who", "server" if server_side else None)
        values: dict[str, Any] = {
            "server_side": server_side,
            "certificate": self.certificates[f"{who}.crt"] if who else b"",
            "key": self.certificates[f"{who}.key"] if who else b"",
            "ca": self.certificates["ca.crt"],
            "verify": ssl.CERT_NONE if server_side else ssl.CERT_REQUIRED,
            "alpn": (),
            "minimum": ssl.TLSVersion.TLSv1_2,
            "maximum": None,
            "tickets": True,
        }
        return tls.Settings(**(values | changes))

    def context(self, name: str, server_side: bool, **changes: Any) -> Any:
        return found(name).make_context(self.settings(server_side, **changes))

    def server(self, name: str, **changes: Any) -> Side:
        context = changes.pop("context", None) or self.context(name, True, **changes)
        return Side(found(name)(context, server_side=True, server_hostname=None))

    def client(self, name: str, host: str | None = "localhost", **changes: Any) -> Side:
        context = changes.pop("context", None) or self.context(name, False, **changes)
        return Side(found(name)(context, server_side=False, server_hostname=host))


@pytest.fixture
def make(certificates: Certificates) -> Maker:
    return Maker(certificates)


@pytest.fixture(params=TESTED)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    return str(request.param)


@pytest.fixture(params=[(s, c) for s in TESTED for c in TESTED], ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each engine as server with each as client."""
    names: tuple[str, str] = request.param
    return names


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def only(version: str) -> dict[str, ssl.TLSVersion]:
    return {"minimum": VERSIONS[version], "maximum": VERSIONS[version]}


class Side:
    """Drives an engine in the order of its contract, as the core does."""

    def __init__(self, engine: tls.Engine, size: int = 1 << 16) -> None:
        self.engine = engine
        self.size = size  # of a read
        self.started = self.opened = self.ended = False
        self.error: ssl.SSLError | None = None
        self.got = bytearray()
        self.out = bytearray()  # to be carried to the peer

    def go(self, data: bytes = b"") -> None:
        """Hand over ciphertext, and take what comes of it."""
        if self.error is None:
            if data:
                self.engine.receive(data)
            try:
                if not self.opened and (data or not self.started):
                    self.started = True
                    self.opened = self.engine.handshake()
                while self.opened and not self.ended:
                    plain = self.engine.read(self.size)
                    if plain is None:
                        break
                    assert len(plain) <= self.size
                    self.got += plain
                    self.ended = not plain
            except ssl.SSLError as error:
                self.error = error
        self.out += self.engine.take()

    def write(self, data: bytes) -> None:
        self.engine.write(data)
        self.out += self.engine.take()

    def end(self) -> None:
        self.engine.end()
        self.out += self.engine.take()

    @property
    def code(self) -> int:
        """What became of it, as the core's codes."""
        return 0 if self.error is None else tls.error_code(self.error)


def pump(a: Side, b: Side, cut: int = 1 << 30) -> None:
    """Carry ciphertext between two sides until neither has any, cut into pieces."""
    a.go()
    b.go()
    while a.out or b.out:
        for sender, receiver in ((a, b), (b, a)):
            data, sender.out = bytes(sender.out), bytearray()
            for start in range(0, len(data), cut):
                receiver.go(data[start : start + cut])


def joined(make: Maker, pair: tuple[str, str], **changes: Any) -> tuple[Side, Side]:
    """A server and a client that have shaken hands."""
    server, client = make.server(pair[0], **changes), make.client(pair[1], **changes)
    pump(server, client)
    assert (server.error, client.error) == (None, None)
    assert server.opened and client.opened
    return server, client


# ---- What works ----------------------------------------------------------------------------------


def test_handshake(make: Maker, pair: tuple[str, str], version: str) -> None:
    server, client = joined(make, pair, **only(version))
    for side in (server, client):
        assert side.engine.query("version") == version
        name, protocol, bits = side.engine.query("cipher")
        assert "AES" in name or "CHACHA20" in name
        assert protocol in (version, "TLSv1.2", "TLSv1.3") and bits in (128, 256)
        assert side.engine.query("alpn") is None
        assert side.engine.query("server_name") == "localhost"
        assert side.engine.query("ssl_object") is not None
        assert not side.engine.query("resumed")
        assert side.engine.query("weather") is None
    leaf = ssl.PEM_cert_to_DER_cert(make.certificates["server.crt"].decode().split("-\n-")[0] + "-")
    assert client.engine.query("peercert_der") == leaf
    assert server.engine.query("peercert_der") is None
    assert server.engine.query("peercert") is None


def test_an_rsa_certificate(make: Maker, pair: tuple[str, str], version: str) -> None:
    server = make.server(pair[0], who="rsa", **only(version))
    client = make.client(pair[1], **only(version))
    pump(server, client)
    assert server.opened and client.opened


def test_certificates_are_described_as_ssl_does(make: Maker, engine: str) -> None:
    described = [joined(make, ("ssl", n))[1].engine.query("peercert") for n in ("ssl", engine)]
    assert described[0] == described[1]
    server, client = make.server("ssl"), make.client(engine, verify=ssl.CERT_NONE)
    pump(server, client)
    assert client.engine.query("peercert") == {}  # not verified: not to be believed
    assert client.engine.query("peercert_der")


@pytest.mark.parametrize("size", [KIB // 2, 16 * KIB, 17 * KIB, KIB * KIB])
def test_messages(make: Maker, pair: tuple[str, str], version: str, size: int) -> None:
    if "tlslite" in pair:
        size = min(size, 96 * KIB)  # a megabyte takes it seconds
    server, client = joined(make, pair, **only(version))
    up, down = os.urandom(size), os.urandom(size)
    client.write(up)
    server.write(down)
    pump(server, client)
    assert server.got == up and client.got == down
    client.write(b"")
    client.write(b"more")
    pump(server, client)
    assert server.got == up + b"more"
    assert not server.ended and not client.ended


def test_a_byte_at_a_time(make: Maker, pair: tuple[str, str], version: str) -> None:
    server, client = make.server(pair[0], **only(version)), make.client(pair[1], **only(version))
    pump(server, client, cut=1)
    assert server.opened and client.opened
    up, down = os.urandom(3 * KIB), os.urandom(3 * KIB)
    client.write(up)
    server.write(down)
    pump(server, client, cut=1)
    client.end()
    pump(server, client, cut=1)
    assert server.got == up and client.got == down
    assert server.ended and (server.error, client.error) == (None, None)


def test_reads_of_one_byte(make: Maker, engine: str) -> None:
    server, client = joined(make, (engine, "ssl"))
    server.size = 1
    client.write(b"one by one")
    client.end()
    pump(server, client)
    assert server.got == b"one by one" and server.ended


def test_reading_late(make: Maker, pair: tuple[str, str]) -> None:
    # Records pile up inside the engine, the end of the peer's direction behind them.
    server, client = joined(make, pair)
    for word in (b"a", b"b" * 17 * KIB, b"c"):
        client.write(word)
    client.end()
    server.engine.receive(bytes(client.out))
    read = bytearray()
    while plain := server.engine.read(1000):
        read += plain
    assert read == b"a" + b"b" * 17 * KIB + b"c" and plain == b""


def test_data_comes_with_the_end_of_the_handshake(make: Maker, pair: tuple[str, str]) -> None:
    server, client = make.server(pair[0], **only("TLSv1.3")), make.client(pair[1])
    client.go()
    server.go(bytes(client.out))
    client.out.clear()
    client.go(bytes(server.out))
    server.out.clear()
    assert client.opened
    client.write(b"early")
    server.go(bytes(client.out))
    assert server.opened and server.got == b"early"


def test_connections_share_nothing(make: Maker, engine: str) -> None:
    server_context, client_context = make.context(engine, True), make.context(engine, False)
    pairs = [
        (make.server(engine, context=server_context), make.client(engine, context=client_context))
        for _ in range(3)
    ]
    for server, client in pairs:  # at once, not one after another
        client.go()
        server.go()
    for server, client in pairs:
        pump(server, client)
    for number, (server, client) in enumerate(pairs):
        client.write(b"%d" % number)
        server.write(b"-%d" % number)
    pump(*pairs[2])
    pairs[2][0].engine.close()
    for server, client in pairs[:2]:
        pump(server, client)
    assert [bytes(s.got) for s, _ in pairs] == [b"0", b"1", b"2"]
    assert [bytes(c.got) for _, c in pairs] == [b"-0", b"-1", b"-2"]
    server, client = pairs[0]
    client.write(b"sealed with another key")
    pairs[1][0].go(bytes(client.out))
    assert pairs[1][0].code == tls.RECORD


@pytest.mark.parametrize("name", ["ssl", "pyopenssl"])
def test_a_key_update_is_not_the_end(make: Maker, name: str) -> None:
    server, client = joined(make, (name, "tlslite"), **only("TLSv1.3"))
    for _ in client.engine.query("ssl_object").send_keyupdate_request(1):
        pass
    client.go()
    update, client.out = bytes(client.out), bytearray()
    server.engine.receive(update)
    assert server.engine.read(100) is None  # progress, and nothing to read
    server.write(b"after")
    client.write(b"after")
    pump(server, client)
    assert server.got == client.got == b"after"


# ---- ALPN and names ------------------------------------------------------------------------------


def test_alpn(make: Maker, pair: tuple[str, str], version: str) -> None:
    server = make.server(pair[0], alpn=("h2", "http/1.1"), **only(version))
    client = make.client(pair[1], alpn=("smtp", "http/1.1"), **only(version))
    pump(server, client)
    assert server.engine.query("alpn") == client.engine.query("alpn") == "http/1.1"
    server = make.server(pair[0], alpn=("h2", "http/1.1"), **only(version))
    client = make.client(pair[1], alpn=("http/1.1", "h2"), **only(version))
    pump(server, client)
    by_client = (pair[0], "choose by its own order") in CANNOT
    assert client.engine.query("alpn") == ("http/1.1" if by_client else "h2")


def test_no_alpn_in_common(make: Maker, pair: tuple[str, str], version: str) -> None:
    server = make.server(pair[0], alpn=("h2",), **only(version))
    client = make.client(pair[1], alpn=("smtp",), **only(version))
    pump(server, client)
    if (pair[0], f"refuse ALPN, {version}") in CANNOT:
        assert server.opened and client.opened and server.engine.query("alpn") is None
    else:
        assert server.code == client.code == tls.ALPN


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None])
def test_addresses_are_verified_but_not_asked_for(
    make: Maker, pair: tuple[str, str], host: str | None
) -> None:
    server, client = make.server(pair[0]), make.client(pair[1], host)
    pump(server, client)
    assert server.opened and client.opened and client.error is None
    assert server.engine.query("server_name") is None
    assert client.engine.query("server_name") is None


def test_what_cannot_be_a_name(make: Maker, engine: str) -> None:
    for host in (".example", "a" * 64 + ".test", ""):
        with pytest.raises(ValueError):
            make.client(engine, host).go()


@pytest.mark.parametrize(
    ("pattern", "name", "covers"),
    [
        ("site.test", "SITE.test", True),
        ("site.test", "a.site.test", False),
        ("*.site.test", "a.site.test", True),
        ("*.site.test", "a.b.site.test", False),
        ("*.site.test", "site.test", False),
        ("*.site.test", ".site.test", False),
        ("*.test", "site.test", False),
        ("*", "site", False),
        ("a*.site.test", "ab.site.test", False),
        ("a.*.test", "a.site.test", False),
    ],
)
def test_which_names_a_certificate_covers(pattern: str, name: str, covers: bool) -> None:
    assert tls._covers(pattern, name) is covers


# ---- Certificates --------------------------------------------------------------------------------


def refused(client: Side, code: int) -> None:
    """A side does not trust its peer."""
    assert client.code == code
    assert isinstance(client.error, ssl.SSLCertVerificationError)
    assert client.error.reason == "CERTIFICATE_VERIFY_FAILED"
    assert client.error.verify_code and client.error.verify_message
    assert not client.opened


@pytest.mark.parametrize(
    "case",
    [
        ("expired", "localhost", tls.UNTRUSTED),
        ("stranger", "localhost", tls.UNTRUSTED),
        ("stranger", None, tls.UNTRUSTED),
        ("other", "localhost", tls.WRONG_NAME),
        ("server", "elsewhere.test", tls.WRONG_NAME),
        ("server", "127.0.0.2", tls.WRONG_NAME),
    ],
)
def test_servers_that_are_not_to_be_trusted(
    make: Maker, pair: tuple[str, str], version: str, case: tuple[str, str | None, int]
) -> None:
    who, host, code = case
    server = make.server(pair[0], who=who, **only(version))
    client = make.client(pair[1], host, **only(version))
    pump(server, client)
    refused(client, code)
    assert server.code == tls.ALERT
    assert "alert" in str(server.error)


def test_a_subject_is_no_name(make: Maker, pair: tuple[str, str], version: str) -> None:
    """RFC 9525 2. To tlslite, by way of cryptography, nobody is good who has no names at all."""
    server = make.server(pair[0], who="unnamed", **only(version))
    client = make.client(pair[1], "localhost", **only(version))
    pump(server, client)
    refused(client, tls.UNTRUSTED if pair[1] == "tlslite" else tls.WRONG_NAME)


def test_who_verifies_nothing_trusts_anybody(make: Maker, pair: tuple[str, str]) -> None:
    server = make.server(pair[0], who="stranger")
    client = make.client(pair[1], "elsewhere.test", verify=ssl.CERT_NONE)
    pump(server, client)
    assert server.opened and client.opened


@pytest.mark.parametrize("verify", [ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL])
def test_a_client_certificate(
    make: Maker, pair: tuple[str, str], version: str, verify: ssl.VerifyMode
) -> None:
    server = make.server(pair[0], verify=verify, **only(version))
    client = make.client(pair[1], who="client", **only(version))
    pump(server, client)
    assert (server.error, client.error) == (None, None)
    assert server.engine.query("peercert")["subject"] == ((("commonName", "a client"),),)
    assert server.engine.query("peercert_der")


def test_no_client_certificate(make: Maker, pair: tuple[str, str], version: str) -> None:
    server = make.server(pair[0], verify=ssl.CERT_REQUIRED, **only(version))
    client = make.client(pair[1], **only(version))
    pump(server, client)
    assert server.code == tls.NO_CERTIFICATE
    # TLS 1.2 has no word for it but handshake_failure.
    assert client.code == (tls.ALERT if version == "TLSv1.3" else tls.CIPHER)

    server = make.server(pair[0], verify=ssl.CERT_OPTIONAL, **only(version))
    client = make.client(pair[1], **only(version))
    pump(server, client)
    assert server.opened and client.opened
    assert server.engine.query("peercert") is None


@pytest.mark.parametrize("verify", [ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL])
@pytest.mark.parametrize("who", ["expired", "stranger"])
def test_clients_that_are_not_to_be_trusted(
    make: Maker, pair: tuple[str, str], version: str, who: str, verify: ssl.VerifyMode
) -> None:
    server = make.server(pair[0], verify=verify, **only(version))
    client = make.client(pair[1], who=who, **only(version))
    pump(server, client)
    refused(server, tls.UNTRUSTED)
    assert client.code == tls.ALERT


# ---- The end -------------------------------------------------------------------------------------


def test_each_direction_ends_on_its_own(make: Maker, pair: tuple[str, str], version: str) -> None:
    server, client = joined(make, pair, **only(version))
    server.write(b"on its way when the client ends")
    client.end()
    pump(server, client)
    assert server.ended
    assert client.got == b"on its way when the client ends"
    if (pair[0], "write after the peer's close_notify") in CANNOT:
        assert client.ended
        with pytest.raises(ssl.SSLError):
            server.write(b"x")
        return
    assert not client.ended
    server.write(b", and after")
    pump(server, client)
    assert client.got.endswith(b", and after") and not client.ended
    server.end()
    pump(server, client)
    assert client.ended
    assert (server.error, client.error) == (None, None)


def test_both_end_at_once(make: Maker, pair: tuple[str, str], version: str) -> None:
    server, client = joined(make, pair, **only(version))
    server.end()
    client.end()
    pump(server, client)
    assert server.ended and client.ended
    assert (server.error, client.error) == (None, None)


def test_what_was_received_can_be_read_after_the_end(make: Maker, pair: tuple[str, str]) -> None:
    server, client = joined(make, pair)
    server.write(b"a" * 40 * KIB)
    sealed = bytes(server.out)
    client.engine.receive(sealed[: 30 * KIB])  # the last record of it is cut
    client.engine.end()
    client.engine.receive(sealed[30 * KIB :])
    client.go()
    assert client.got == b"a" * 40 * KIB
    server.end()
    client.go(bytes(server.out)[len(sealed) :])
    assert client.ended and client.error is None


def test_what_follows_the_end_is_not_looked_at(make: Maker, pair: tuple[str, str]) -> None:
    server, client = joined(make, pair)
    client.write(b"all")
    client.end()
    server.go(bytes(client.out) + b"not TLS at all")
    assert server.got == b"all" and server.ended and server.error is None
    server.engine.receive(b"nor this")
    assert server.engine.read(1) == b""


# ---- What goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"EHLO localhost\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        b"\x16\x03\x01\xff\xff" + b"\x00" * 64,
        b"\x16\x03\x01\x00\x40" + b"\xff" * 64,
        b"\x16\x03\x01\x00\x40\x0b\xff" + b"\xff" * 64,
        b"\x17\x03\x03\x00\x20" + b"\x00" * 32,
    ],
)
@pytest.mark.parametrize("cut", [1, 1000])
def test_garbage_in_place_of_a_hello(make: Maker, engine: str, data: bytes, cut: int) -> None:
    for side in (make.server(engine), make.client(engine)):
        side.go()
        for start in range(0, len(data), cut):
            side.go(data[start : start + cut])
        assert side.code == tls.PROTOCOL, side.error
        assert not side.opened
        assert side.engine.query("version") in (None, "TLSv1.2", "TLSv1.3")
        side.engine.close()


def test_a_handshake_without_end(make: Maker, engine: str) -> None:
    side = make.server(engine)
    side.go()
    # One message, of the longest there can be, a record at a time.
    side.go(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(16 * KIB - 4))
    for _ in range(100):
        side.go(b"\x16\x03\x01\x40\x00" + bytes(16 * KIB))
    assert side.code == tls.PROTOCOL
    assert side.out


def test_a_damaged_record(make: Maker, pair: tuple[str, str], version: str) -> None:
    server, client = joined(make, pair, **only(version))
    client.write(b"damaged on its way")
    client.out[-1] ^= 1
    pump(server, client)
    assert server.code == tls.RECORD and server.got == b""
    assert client.code == tls.RECORD  # by the server's alert


def test_a_damaged_record_in_the_words_of_later_versions_of_openssl(make: Maker) -> None:
    server, client = joined(make, ("ssl", "ssl"))

    class Later:
        def read(self, size: int) -> bytes:
            error = ssl.SSLError(1, "[SSL: RECORD_LAYER_FAILURE] record layer failure")
            error.reason = "RECORD_LAYER_FAILURE"
            raise error

    engine: Any = server.engine
    engine._object = Later()
    client.write(b"x")
    pump(server, client)
    assert server.code == tls.RECORD


def test_no_version_in_common(make: Maker, pair: tuple[str, str]) -> None:
    for ours, theirs in (("TLSv1.2", "TLSv1.3"), ("TLSv1.3", "TLSv1.2")):
        server = make.server(pair[0], **only(ours))
        client = make.client(pair[1], **only(theirs))
        pump(server, client)
        assert (server.code, client.code) == (tls.VERSION, tls.VERSION)


def test_no_cipher_in_common(make: Maker, engine: str) -> None:
    context = make.context("ssl", False, **only("TLSv1.2"))
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # the server's key is not for RSA
    server, client = make.server(engine), make.client("ssl", context=context)
    pump(server, client)
    assert (server.code, client.code) == (tls.CIPHER, tls.CIPHER)


def test_damage_anywhere(make: Maker, pair: tuple[str, str], version: str) -> None:
    chance = random.Random(f"{pair}{version}")
    settings = {"who": "server", "verify": ssl.CERT_OPTIONAL, "alpn": ("h2",), **only(version)}
    server_context = make.context(pair[0], True, **settings)
    settings = {"who": "client", "alpn": ("h2",), **only(version)}
    client_context = make.context(pair[1], False, **settings)
    for _ in range(8):
        server = make.server(pair[0], context=server_context)
        client = make.client(pair[1], context=client_context)
        client.go()
        server.go()
        flight, damaged = 0, chance.randrange(5)
        while server.out or client.out:
            for sender, receiver in ((client, server), (server, client)):
                data, sender.out = sender.out, bytearray()
                if data and flight == damaged:
                    at = chance.randrange(len(data))
                    if chance.random() < 0.5:
                        data[at] ^= 1 << chance.randrange(8)
                    else:
                        data[at:at] = chance.randbytes(9)
                flight += bool(data)
                receiver.go(bytes(data))  # anything but ssl.SSLError fails the test
            if server.opened and client.opened and not client.error and flight < 5:
                client.write(b"x")
        for side in (server, client):
            assert side.got in (b"", b"x", b"xx", b"xxx")
            assert side.code == 0 or tls.RENEGOTIATION <= side.code <= tls.ETLS


def test_a_truncated_stream_is_not_the_engines_business(make: Maker, engine: str) -> None:
    server, client = joined(make, (engine, "ssl"))
    client.write(b"whole")
    client.write(b"half")
    server.go(bytes(client.out)[:-10])
    assert server.got == b"whole" and not server.ended and server.error is None
    assert server.engine.read(1) is None
    server.engine.close()


class Eager(tls.PyOpenSSLEngine):
    """The one that can ask for renegotiation."""

    def __init__(self, context: Any, *, server_side: bool, server_hostname: str | None) -> None:
        super().__init__(context, server_side=server_side, server_hostname=server_hostname)
        self._connection = self._ssl.Connection(context, None)  # without our options
        if server_side:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()

    def ask(self) -> None:
        self._connection.renegotiate()
        self.handshake()


@pytest.mark.parametrize("server_side", [True, False])
def test_renegotiation_is_refused(make: Maker, engine: str, server_side: bool) -> None:
    found("pyopenssl")
    SSL = pytest.importorskip("OpenSSL.SSL")
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    if server_side:
        ours = make.server(engine)
    else:
        ours = make.client(engine)
        context.use_certificate_chain_file(str(make.certificates.folder / "server.crt"))
        context.use_privatekey_file(str(make.certificates.folder / "server.key"))
    peer = Eager(context, server_side=not server_side, server_hostname=None)
    theirs = Side(peer)
    pump(ours, theirs)
    assert ours.opened and theirs.opened
    peer.ask()
    pump(ours, theirs)
    assert ours.code in (0, tls.RENEGOTIATION)
    # OpenSSL takes the refusal as a failure; when it is a server, at its next call.
    ours.write(b"x")
    pump(ours, theirs)
    assert theirs.code == tls.RENEGOTIATION
    assert ours.got == b""


# ---- Contexts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["rsa.key", "other.key"])
def test_a_key_that_does_not_fit(make: Maker, engine: str, other: str) -> None:
    for server_side in (True, False):
        with pytest.raises(ssl.SSLError, match="the key does not fit the certificate") as caught:
            make.context(engine, server_side, who="server", key=make.certificates[other])
        assert tls.error_code(caught.value) == tls.CONFIG


ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMA==\n-----END ENCRYPTED PRIVATE KEY-----\n"
BROKEN = b"-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIB\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"certificate": b""}, "certificate: a server must have one"),
        ({"certificate": b"certificate"}, "certificate: there is no certificate"),
        ({"certificate": BROKEN}, "certificate"),
        ({"certificate": BROKEN.replace(b"MII", b"***")}, "certificate"),
        ({"key": b"key"}, "key: there is no private key"),
        ({"key": b""}, "key: there is no private key"),
        ({"key": ENCRYPTED}, "key: it is encrypted"),
        ({"key": ENCRYPTED.replace(b"ENCRYPTED ", b"")}, "key"),
        ({"ca": b"ca", "verify": ssl.CERT_REQUIRED}, "ca: there is no certificate"),
        ({"ca": BROKEN, "verify": ssl.CERT_REQUIRED}, "ca"),
    ],
)
def test_bad_settings(make: Maker, engine: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, ssl.SSLError), match=words):
        make.context(engine, True, **changes)


def test_a_key_without_a_certificate(make: Maker, engine: str) -> None:
    with pytest.raises(ValueError, match="certificate: there is none for the key"):
        make.context(engine, False, key=make.certificates["server.key"])


def test_the_key_may_be_in_the_certificates_file(make: Maker, engine: str) -> None:
    together = make.certificates["server.pem"]
    server = make.server(engine, certificate=together, key=b"")
    client = make.client("ssl")
    pump(server, client)
    assert client.opened


def test_settings_keep_the_key_to_themselves(make: Maker) -> None:
    assert "PRIVATE KEY" not in repr(make.settings(True))


def test_the_systems_authorities(make: Maker, engine: str) -> None:
    # There may be none on this machine; the tests' own is not among them in any case.
    try:
        client = make.client(engine, ca=b"")
    except ValueError as error:
        assert "authorities" in str(error)
        return
    server = make.server("ssl")
    pump(server, client)
    refused(client, tls.UNTRUSTED)


def default_context(make: Maker) -> ssl.SSLContext:
    """A client's context as users make it."""
    context = ssl.create_default_context(cafile=str(make.certificates.folder / "ca.crt"))
    # The default since Python 3.13; the tests' authorities lack extensions that it asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def sessions(make: Maker, context: Any, engine: str, maximum: str) -> tuple[Any, bool]:
    """Whether a second connection resumes the first one's session: by the server, the client."""
    server = make.server(engine, context=context)
    client_context = default_context(make)
    client_context.maximum_version = VERSIONS[maximum]
    client = make.client("ssl", context=client_context)
    pump(server, client)
    assert client.opened
    session = client.engine.query("ssl_object").session
    client.end()
    pump(server, client)
    if not server.out and engine != "tlslite":
        server.end()  # OpenSSL forgets what did not end in order
    pump(server, client)
    server, client = (
        make.server(engine, context=context),
        make.client("ssl", context=client_context),
    )
    client.engine.query("ssl_object").session = session
    pump(server, client)
    assert server.opened and client.opened
    assert server.engine.query("server_name") == "localhost"
    return server.engine.query("resumed"), client.engine.query("resumed")


@pytest.mark.parametrize("verify", [ssl.CERT_NONE, ssl.CERT_OPTIONAL])
def test_sessions_are_resumed(
    make: Maker, engine: str, version: str, verify: ssl.VerifyMode
) -> None:
    context = make.context(engine, True, verify=verify)
    ours, theirs = sessions(make, context, engine, version)
    assert theirs is True
    assert ours is (None if (engine, f"tell of resumption, {version}") in CANNOT else True)


def test_sessions_are_not_resumed_without_tickets(make: Maker, engine: str, version: str) -> None:
    context = make.context(engine, True, tickets=False)
    _, resumed = sessions(make, context, engine, version)
    assert resumed is ((engine, f"forget sessions, {version}") in CANNOT)


# ---- Contexts that somebody brought --------------------------------------------------------------


def test_a_context_of_ssl(make: Maker) -> None:
    context = default_context(make)
    assert tls.engine_of(context) is tls.MemoryBIOEngine
    before = (context.options, context.sni_callback, context.verify_mode)
    for who, code in (("server", 0), ("other", tls.WRONG_NAME)):
        server, client = make.server("ssl", who=who), make.client("ssl", context=context)
        pump(server, client)
        assert client.code == code
    assert before == (context.options, context.sni_callback, context.verify_mode)


def test_a_context_of_pyopenssl(make: Maker, version: str) -> None:
    found("pyopenssl")
    SSL = pytest.importorskip("OpenSSL.SSL")
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(str(make.certificates.folder / "ca.crt"))
    seen = []

    def verify(connection: Any, certificate: Any, problem: int, depth: int, good: int) -> bool:
        seen.append(depth)
        return bool(good)

    context.set_verify(SSL.VERIFY_PEER, verify)
    assert tls.engine_of(context) is tls.PyOpenSSLEngine
    for who, host, code in (
        ("server", "localhost", 0),
        ("server", None, 0),
        ("other", "localhost", tls.WRONG_NAME),
        ("server", "127.0.0.2", tls.WRONG_NAME),
        ("stranger", "localhost", tls.UNTRUSTED),
    ):
        server = make.server("ssl", who=who, **only(version))
        client = make.client("pyopenssl", host, context=context)
        pump(server, client)
        assert client.code == code
        if code == tls.WRONG_NAME:
            refused(client, code)
            # No alert can be sent then; but in TLS 1.3 the server sees no handshake succeed.
            assert server.opened is (version == "TLSv1.2") and server.error is None
    assert 0 in seen  # the owner's callback was called
    assert context.get_app_data() is None

    context = SSL.Context(SSL.TLS_CLIENT_METHOD)  # verifies nothing
    server, client = make.server("ssl", who="other"), make.client("pyopenssl", context=context)
    pump(server, client)
    assert client.opened


def test_callbacks_of_the_contexts_owner_may_fail(make: Maker) -> None:
    found("pyopenssl")
    SSL = pytest.importorskip("OpenSSL.SSL")
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)

    def verify(*_: object) -> bool:
        raise RuntimeError("the owner's mistake")

    context.set_verify(SSL.VERIFY_PEER, verify)
    server, client = make.server("ssl"), make.client("pyopenssl", context=context)
    pump(server, client)
    assert client.code == tls.ETLS and "the owner's mistake" in str(client.error)
    assert server.error is not None


def test_engine_of(make: Maker, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tls.engine_of(make.context(engine, True)) is found(engine)
    assert tls.engine_of(object()) is None and tls.engine_of(None) is None
    monkeypatch.delitem(sys.modules, "OpenSSL.SSL", raising=False)
    assert tls.engine_of(object()) is None
    assert "OpenSSL.SSL" not in sys.modules


# ---- Finding engines -----------------------------------------------------------------------------


class Rot13(tls.Engine):
    """The least that is an engine."""

    name = "rot13"

    def __init__(self, context: Any, *, server_side: bool, server_hostname: str | None) -> None:
        super().__init__(context, server_side=server_side, server_hostname=server_hostname)
        self._in, self._out = b"", b""

    @classmethod
    def serves(cls, context: object) -> bool:
        return context == "rot13"

    @classmethod
    def make_context(cls, settings: tls.Settings) -> Any:
        return "rot13"

    def handshake(self) -> bool:
        return True

    def receive(self, data: bytes) -> None:
        self._in += data

    def read(self, size: int) -> bytes | None:
        data, self._in = self._in[:size], self._in[size:]
        return data or None

    def write(self, data: bytes) -> None:
        self._out += data

    def take(self) -> bytes:
        data, self._out = self._out, b""
        return data

    def end(self) -> None:
        pass


class NoEngine:
    name = "no engine"


def test_names() -> None:
    assert list(tls.engines())[:3] == NAMES
    for name in NAMES:
        assert tls.engines()[name].name == name
        assert any(character.isdigit() for character in found(name).version())


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"'opnssl' does not exist: there are .*ssl, tlslite"):
        tls.find("opnssl")


@pytest.mark.parametrize(
    ("name", "module"), [("pyopenssl", "OpenSSL.SSL"), ("tlslite", "tlslite.api")]
)
def test_a_missing_library(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"^{name}: pip install becket\[{name}\]$") as caught:
        tls.find(name)
    assert tls.error_code(caught.value) == tls.ENGINE
    assert name in tls.engines()


def test_tlslite_verifies_with_cryptography(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.x509.verification", None)
    with pytest.raises(ValueError, match=r"pip install becket\[tlslite\]"):
        make.context("tlslite", False)
    make.context("tlslite", False, verify=ssl.CERT_NONE)


def test_engines_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Rot13.__module__
    monkeypatch.setitem(sys.modules, here, sys.modules[__name__])
    entries = [
        metadata.EntryPoint("rot13", f"{here}:Rot13", tls.GROUP),
        metadata.EntryPoint("not", f"{here}:NoEngine", tls.GROUP),
        metadata.EntryPoint("gone", "no_such_module:Engine", tls.GROUP),
        metadata.EntryPoint("ssl", f"{here}:Rot13", tls.GROUP),  # ours come first
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries)
    assert tls.find("rot13") is Rot13
    assert tls.find("ssl") is tls.MemoryBIOEngine
    assert list(tls.engines()) == [*NAMES, "rot13"]
    assert tls.engine_of("rot13") is Rot13
    with pytest.raises(TypeError, match="is not an Engine"):
        tls.find("not")
    with pytest.raises(ModuleNotFoundError):
        tls.find("gone")
    with pytest.raises(ValueError, match="there are gone, not, pyopenssl, rot13, ssl, tlslite"):
        tls.find("rot14")


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_known", dict(tls._known))
    tls.register(Rot13)
    tls.register(Rot13)
    assert tls.find("rot13") is Rot13 and tls.engine_of("rot13") is Rot13

    class Another(Rot13):
        pass

    with pytest.raises(ValueError, match="exists already"):
        tls.register(Another)


def test_the_least_engine() -> None:
    with pytest.raises(TypeError, match="abstract"):
        tls.Engine(None, server_side=True, server_hostname=None)  # type: ignore[abstract]
    a, b = (Side(Rot13("rot13", server_side=s, server_hostname=None)) for s in (True, False))
    pump(a, b)
    a.write(b"plain")
    pump(a, b)
    assert b.got == b"plain" and b.engine.query("version") is None
    assert (Rot13.version(), tls.Engine.serves("rot13")) == ("", False)
    Rot13.open()
    a.engine.close()


# ---- Codes ---------------------------------------------------------------------------------------


def test_codes_are_those_of_the_header() -> None:
    header = Path(__file__).resolve().parents[2] / "include" / "becket.h"
    text = header.read_text()
    for name, code in vars(tls).items():
        if type(code) is int and code < -4000:
            full = f"BK_{name}" if name.startswith("ET") else f"BK_ETLS_{name}"
            assert f"{full} = {code}," in text


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("WRONG_VERSION_NUMBER", tls.PROTOCOL),
        ("HTTP_REQUEST", tls.PROTOCOL),
        ("HTTPS_PROXY_REQUEST", tls.PROTOCOL),
        ("UNEXPECTED_MESSAGE", tls.PROTOCOL),
        ("RECORD_LAYER_FAILURE", tls.PROTOCOL),
        ("UNSUPPORTED_PROTOCOL", tls.VERSION),
        ("TLSV1_ALERT_PROTOCOL_VERSION", tls.VERSION),
        ("NO_SHARED_CIPHER", tls.CIPHER),
        ("NO_SUITABLE_SIGNATURE_ALGORITHM", tls.CIPHER),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", tls.CIPHER),
        ("TLSV1_ALERT_INSUFFICIENT_SECURITY", tls.CIPHER),
        ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", tls.RECORD),
        ("SSLV3_ALERT_BAD_RECORD_MAC", tls.RECORD),
        ("TLSV1_ALERT_NO_APPLICATION_PROTOCOL", tls.ALPN),
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", tls.NO_CERTIFICATE),
        ("TLSV1_UNRECOGNIZED_NAME", tls.NAME),
        ("TLSV1_ALERT_UNKNOWN_CA", tls.ALERT),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", tls.ALERT),
        ("SSLV3_ALERT_UNEXPECTED_MESSAGE", tls.ALERT),
        ("TLSV1_ALERT_INTERNAL_ERROR", tls.ALERT),
        ("TLSV1_ALERT_DECODE_ERROR", tls.ALERT),
        ("NO_RENEGOTIATION", tls.RENEGOTIATION),
        ("TLSV1_ALERT_NO_RENEGOTIATION", tls.RENEGOTIATION),
        ("KEY_VALUES_MISMATCH", tls.CONFIG),
        ("UNEXPECTED_EOF_WHILE_READING", tls.ETRUNCATED),
        ("INTERNAL_ERROR", tls.ETLS),
    ],
)
def test_codes_of_reasons(reason: str, code: int) -> None:
    error = ssl.SSLError(1, f"[SSL: {reason}] {reason.lower().replace('_', ' ')} (_ssl.c:1006)")
    assert tls.error_code(error) == code  # by its words
    error.reason = reason
    assert tls.error_code(error) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ssl.SSLError(1, "[SSL] tlsv1 alert no application protocol (_ssl.c:1000)"), tls.ALPN),
        (ssl.SSLError(1, "wrong version number"), tls.PROTOCOL),
        (ssl.SSLError(1, "[SSL] unknown error (_ssl.c:1000)"), tls.ETLS),
        (ssl.SSLError(), tls.ETLS),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), tls.ETRUNCATED),
        (ssl.SSLCertVerificationError("anything"), tls.UNTRUSTED),
        (ssl.SSLCertVerificationError(1, "Hostname mismatch, certificate ..."), tls.WRONG_NAME),
        (ImportError("tlslite: pip install becket[tlslite]"), tls.ENGINE),
        (RuntimeError("an engine's own mistake"), tls.ETLS),
        (KeyboardInterrupt(), tls.ETLS),
    ],
)
def test_codes_of_exceptions(error: BaseException, code: int) -> None:
    assert tls.error_code(error) == code


@pytest.mark.parametrize("code", [tls.ETRUNCATED, tls.ETLS, *range(tls.CONFIG, -4034, -1)])
@pytest.mark.parametrize("words", ["in the library's own words", "wrong version number"])
def test_exceptions_of_codes(code: int, words: str) -> None:
    error = tls.exception_of(code, words)
    assert isinstance(error, ssl.SSLError) and str(error) == words
    assert tls.error_code(error) == code
    distrust = isinstance(error, ssl.SSLCertVerificationError)
    assert distrust is (code in (tls.UNTRUSTED, tls.WRONG_NAME))


def test_exceptions_of_other_codes() -> None:
    assert tls.exception_of(-110, "timed out").errno == ssl.SSLErrorNumber.SSL_ERROR_SSL
    assert tls.exception_of(tls.PROTOCOL, "wrong version number").reason == "WRONG_VERSION_NUMBER"
