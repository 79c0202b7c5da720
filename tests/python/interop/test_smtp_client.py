"""becket.smtp's client, and `becket send`, into the mail servers of others: aiosmtpd, smtp-sink,
Postfix, Dovecot."""

from __future__ import annotations

import asyncio
import re
import smtplib
import tempfile
from collections import Counter
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

import becket
from becket import smtp
from becket.cli import main
from interop.mail import digest, every_shape
from interop.mailers import Dovecot, Postfix, Sink, dovecot, postfix
from interop.test_aiosmtpd import AiosmtpdServer


def message(to: str, **headers: str) -> EmailMessage:
    m = EmailMessage()
    for name, text in ({"From": "me@here.example", "To": to} | headers).items():
        m[name] = text
    m.set_content("Hello.\n..dots\n")
    return m


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that users other than ours can enter, with a short path."""
    with tempfile.TemporaryDirectory(prefix="bk-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


# ---- aiosmtpd ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_aiosmtpd(tmp_path, short_path, kind):
    """Each message arrives as it is, all on one connection, in the order they were sent."""
    shapes = every_shape()
    del shapes["long-lines"]  # it takes none
    with AiosmtpdServer(tmp_path, short_path) as server:
        where = f"tcp://127.0.0.1:{server.port}" if kind == "tcp" else f"unix:{server.path}"

        async def run() -> None:
            async with smtp.Client(where) as client:
                results = await asyncio.gather(
                    *(client.send(f"{n}@a.example", "b@c.example", d) for n, d in shapes.items())
                )
                assert all(result.accepted for result in results)

        becket.run(run())
        kept = {people.partition("@")[0]: data for people, data in server.read()}
    got = {re.search(r"[\w-]+$", name)[0]: data for name, data in kept.items()}
    assert digest(got) == digest(shapes)


# ---- smtp-sink -----------------------------------------------------------------------------------


def test_smtp_sink_pipelined(tmp_path):
    """A thousand messages, over one connection and then over four."""
    with Sink(tmp_path / "kept") as sink:
        where = f"tcp://127.0.0.1:{sink.port}"

        async def run() -> None:
            async with smtp.Client(where) as client:
                assert client.offers("PIPELINING") == ""
                await asyncio.gather(
                    *(client.send_message(message(f"a{i}@b.example")) for i in range(500))
                )
            async with smtp.Pool(where, size=4) as pool:
                await asyncio.gather(
                    *(pool.send_message(message(f"b{i}@b.example")) for i in range(500))
                )

        becket.run(run())
        texts = sink.messages()
    to = Counter(re.search(r"X-Rcpt-Args: <(.+)>", text)[1] for text in texts)
    assert to == Counter(f"{letter}{i}@b.example" for letter in "ab" for i in range(500))
    assert all(text.rstrip("\n").endswith("Hello.\n..dots") for text in texts)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["-p"], None),  # no PIPELINING
        (["-e"], None),  # no 8BITMIME, … none of ESMTP
        (["-r", "data"], smtplib.SMTPDataError),
        (["-f", "."], smtplib.SMTPDataError),
        (["-r", "rcpt"], smtplib.SMTPRecipientsRefused),
        (["-f", "mail"], smtplib.SMTPSenderRefused),
        (["-q", "data"], smtplib.SMTPServerDisconnected),
        (["-q", "."], smtplib.SMTPServerDisconnected),
        (["-Q", "rcpt"], smtplib.SMTPServerDisconnected),
        (["-r", "connect"], smtplib.SMTPConnectError),
        (["-f", "ehlo"], None),  # then HELO
        (["-L"], "lmtp"),
    ],
)
def test_smtp_sink_as_it_is_told(tmp_path, options, kind):
    with Sink(tmp_path / "kept", *options) as sink:

        async def run() -> None:
            where = f"tcp://127.0.0.1:{sink.port}"
            async with smtp.Client(where, lmtp=kind == "lmtp") as client:
                for _ in range(2):
                    await client.send_message(message("a@b.example"))

        if isinstance(kind, type):
            with pytest.raises(kind):
                becket.run(run())
        else:
            becket.run(run())
            assert len(sink.messages()) == 2


# ---- Postfix -------------------------------------------------------------------------------------


def read_postfix(server: Postfix, user: str, count: int) -> list[bytes]:
    """Without the header lines that it puts in front of ours."""
    found = server.wait_for(user, count)
    return [text[text.index(b"Subject: ") :] for text in found]


def test_postfix(folder, tls, capsys):
    """By TLS, pipelined; refused recipients are told by themselves; UTF-8; `becket send`."""
    with postfix(folder, tls) as server:
        where = f"starttls://localhost:{server.port}?ca={tls.path('ca.crt')}"
        big = b"Subject: big\r\n\r\n" + b"0123456789" * 7 * 40_000
        big = re.sub(rb"(.{900})", rb"\1\r\n", big)

        async def run() -> None:
            async with smtp.Client(where, tls="required") as client:
                assert client.is_secure and client.offers("SIZE") == "3000000"
                results = await asyncio.gather(
                    *(
                        client.send_message(message("you@test.example", Subject=f"number {i}"))
                        for i in range(50)
                    )
                )
                assert all(result.accepted == ["you@test.example"] for result in results)
                result = await client.send_message(
                    message("her@test.example, x@nowhere.example", Subject="two"),
                    notify="NEVER",
                    envelope_id="x+y",
                )
                assert result.accepted == ["her@test.example"]
                assert result["x@nowhere.example"].enhanced == "5.7.1"
                await client.send("", "her@test.example", big)
                with pytest.raises(smtp.SMTPNotSupportedError, match=r"552 5\.3\.4"):
                    await client.send("a@b.example", "her@test.example", big * 2)
                with pytest.raises(smtp.SMTPRecipientsRefused):
                    await client.send_message(message("x@nowhere.example"))
                await client.send_message(
                    message("you@test.example", Subject="Grüße"), recipients="jörg@test.example"
                )

        becket.run(run())
        texts = read_postfix(server, "you", 50)
        numbers = {int(re.match(rb"Subject: number (\d+)\n", text)[1]) for text in texts}
        assert numbers == set(range(50))
        assert all(text.endswith(b"\n\nHello.\n..dots\n") for text in texts)
        hers = [text.rstrip(b"\n") for text in read_postfix(server, "her", 2)]
        assert big.replace(b"\r\n", b"\n") in hers
        assert "Subject: Grüße\n".encode() in server.wait_for("utf8", 1)[0]

        words = ["--from", "me@here.example", "--to", "her@test.example", "--subject", "cli"]
        assert main(["send", where, "--tls", "required", *words, "--body", "x"]) == 0
        assert "her@test.example: accepted: 250 2.0.0 Ok: queued as" in capsys.readouterr().out
        assert main(["send", where, *words, "--to", "x@nowhere.example"]) == 1
        assert "x@nowhere.example: refused: 554 5.7.1" in capsys.readouterr().err
        read_postfix(server, "her", 4)


# ---- Dovecot -------------------------------------------------------------------------------------


def read_dovecot(server: Dovecot, user: str) -> dict[str, bytes]:
    """By sender, what is behind the header lines of LMTP."""
    ours = re.compile(
        rb"Return-Path: <([^@>]*).*\n(?:Delivered-To: .*\n)?Received: .*\n(?:\t.*\n)+"
    )
    found = {}
    for text in server.messages(user):
        head = ours.match(text)
        found[head[1].decode()] = text[head.end() :]
    return found


def test_dovecot_by_lmtp(folder, capsys):
    """Messages of every shape, for two people each, by one connection."""
    shapes = {
        name: data for name, data in every_shape().items() if name not in ("eight-bit", "big")
    }
    with dovecot(folder) as server:
        where = f"unix:{server.socket}"

        async def run() -> None:
            async with smtp.Client(where, lmtp=True) as client:
                results = await asyncio.gather(
                    *(
                        client.send(f"{n}@a.example", ["jane", "joe@test.example"], d)
                        for n, d in shapes.items()
                    )
                )
                for result in results:
                    assert result.accepted == ["jane", "joe@test.example"]
                    assert [reply.enhanced for reply in result.values()] == ["2.0.0", "2.0.0"]

        becket.run(run())
        expected = digest({n: d.replace(b"\r\n", b"\n") for n, d in shapes.items()})
        for user in ("jane", "joe"):
            assert digest(read_dovecot(server, user)) == expected
        words = ["--lmtp", "--from", "cli@a.example", "--to", "jane", "--body", "Hello"]
        assert main(["send", where, *words]) == 0
        assert "jane: accepted: 250 2.0.0" in capsys.readouterr().out
        assert read_dovecot(server, "jane")["cli"].endswith(b"\nHello\n")
