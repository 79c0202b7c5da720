"""becket.smtp.store: the header that stores put in front, and what they ask of a session."""

from __future__ import annotations

import re
from typing import Any

import pytest

from becket.smtp.store import content_of, traced
from mail import Envelope, Session, untraced


class Server:
    hostname = "mx.example.org"
    lmtp = False


def trace(server: Any = Server, recipients: tuple[str, ...] = ("you@b.org",), **about: Any) -> str:
    """What is put in front, with its date left out."""
    session, envelope = Session(), Envelope(b"x", "me@a.org", recipients)
    session.__dict__.update({name: v for name, v in about.items() if name != "smtp_utf8"})
    envelope.smtp_utf8 = about.get("smtp_utf8", False)
    content = traced(server, session, envelope)
    assert untraced(content) == b"x"
    text = content.removesuffix(b"x").decode()
    date = re.search(r"\t(\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000)\r\n\Z", text)
    assert date, text
    return text.removesuffix(date[0])


def test_trace() -> None:
    assert trace() == (
        "Received: from client.example.org ([192.0.2.1])\r\n"
        "\tby mx.example.org with SMTP\r\n\tfor <you@b.org>;\r\n"
    )
    assert "for" not in trace(recipients=("a@b", "c@d"))  # that may not know of each other
    assert "([IPv6:2001:db8::1])" in trace(peer=("2001:db8::1", 1, 0, 0))
    assert "from unknown ([unknown])\r\n\tby localhost" in trace(None, host_name=None, peer=None)


@pytest.mark.parametrize(
    ("about", "protocol"),
    [
        ({}, "SMTP"),
        ({"extended_smtp": True}, "ESMTP"),
        ({"extended_smtp": True, "ssl": 1}, "ESMTPS"),
        ({"extended_smtp": True, "ssl": 1, "authenticated": True}, "ESMTPSA"),
        ({"extended_smtp": True, "smtp_utf8": True}, "UTF8SMTP"),
        ({"extended_smtp": True, "smtp_utf8": True, "authenticated": True}, "UTF8SMTPA"),
    ],
)
def test_protocols(about: Any, protocol: str) -> None:
    assert f"with {protocol}\r\n" in trace(**about)


def test_lmtp() -> None:
    server = type("Lmtp", (Server,), {"lmtp": True})
    assert "with LMTP\r\n" in trace(server, extended_smtp=True)
    assert "with UTF8LMTPS\r\n" in trace(server, extended_smtp=True, smtp_utf8=True, ssl=1)


@pytest.mark.parametrize(
    "hostile", ["a\r\nX: y", "a\0b", "a) (b", "a;b", "x y", "\ud800", "<>", "\x7f"]
)
def test_what_a_client_says_ends_no_header(hostile: str) -> None:
    text = trace(host_name=hostile, peer=hostile, recipients=(hostile,))
    assert re.fullmatch(
        r"Received: from WORD \(\[WORD\]\)\r\n\tby \S+ with SMTP\r\n\tfor <WORD>;\r\n".replace(
            "WORD", r"[^\s()<>;]+"
        ),
        text,
    )


@pytest.mark.parametrize("content", [b" x", b"\tx", b"x", b"\r\n x"])
def test_what_begins_as_a_folded_line_is_no_more_of_the_header(content: bytes) -> None:
    kept = traced(Server, Session(), Envelope(content, "me@a.org", ("you@b.org",)))
    apart = b"+0000\r\n\r\n" if content[:1] in (b" ", b"\t") else b"+0000\r\n"
    assert kept.endswith(apart + content)
    assert kept.partition(b"+0000\r\n")[2].startswith((b"\r\n", b"x"))


@pytest.mark.parametrize(
    ("content", "data"),
    [(b"x", b"x"), (None, b""), ("ü\udc80", b"\xc3\xbc\x80"), (bytearray(b"y"), b"y")],
)
def test_content(content: Any, data: bytes) -> None:
    assert content_of(Envelope(content, "a@b")) == data
