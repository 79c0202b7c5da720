"""becket.smtp.memory: a handler that keeps mail in memory, and how messages are looked at."""

from __future__ import annotations

import asyncio
import threading
from email.message import EmailMessage
from typing import Any

import pytest

from becket.smtp import mime
from becket.smtp.memory import Change, Memory
from mail import SERVERS, Envelope, Session, letter, send


def deliver(memory: Memory, content: bytes | str, sender: str | None = "me@a.org") -> str:
    return asyncio.run(memory.handle_DATA(None, Session(), Envelope(content, sender)))


# ---- The store -----------------------------------------------------------------------------------


@pytest.mark.parametrize("serve", SERVERS)
def test_a_message_that_was_sent_is_there(serve: Any) -> None:
    memory = Memory()
    with serve(memory) as port:
        send(port, letter("over the wire"))
    [message] = memory.messages()
    assert message.parsed["Subject"] == "over the wire"
    assert (message.sender, message.recipients) == ("me@a.org", ("you@b.org",))
    assert (message.peer, message.helo, message.secure) == (
        "127.0.0.1",
        "client.example.org",
        False,
    )


def test_reply_and_fields() -> None:
    memory = Memory()
    assert deliver(memory, "text", None) == "250 2.0.0 message 1 is in memory"
    message = memory.get(1)
    assert message is not None
    assert (message.content, message.sender, message.peer) == (b"text", "", "192.0.2.1")


@pytest.mark.parametrize(
    ("authenticated", "data", "login"),
    [
        (True, b"ada", "ada"),
        (True, "ada", "ada"),
        (True, type("Login", (), {"login": b"ada", "password": b"secret"})(), "ada"),
        (True, ("ada", "secret"), ""),  # which of them is a password cannot be told
        (True, True, ""),
        (False, b"ada", ""),
    ],
)
def test_who_logged_in(authenticated: bool, data: Any, login: str) -> None:
    memory, session = Memory(), Session()
    session.authenticated, session.auth_data = authenticated, data
    asyncio.run(memory.handle_DATA(None, session, Envelope(b"x", "a@b.org")))
    [message] = memory.messages()
    assert message.login == login


def test_the_oldest_go_when_there_are_too_many() -> None:
    memory = Memory(max_messages=3)
    changes: list[Change] = []
    memory.subscribe(changes.append)
    for n in range(5):
        deliver(memory, b"%d" % n)
    assert [m.content for m in memory.messages()] == [b"4", b"3", b"2"]
    assert [change.removed for change in changes] == [(), (), (), (1,), (2,)]


def test_the_oldest_go_when_there_are_too_many_bytes() -> None:
    memory = Memory(max_bytes=100)
    for _ in range(3):
        deliver(memory, b"x" * 40)
    assert (len(memory), memory.size) == (2, 80)
    deliver(memory, b"x" * 100)
    assert (len(memory), memory.size) == (1, 100)


def test_one_that_is_larger_than_the_store_is_refused() -> None:
    memory = Memory(max_bytes=100)
    assert deliver(memory, b"x" * 101).startswith("552 5.3.4 ")
    with pytest.raises(ValueError, match="101 bytes are more than 100"):
        memory.add(b"x" * 101, "", [])
    assert len(memory) == 0


def test_removing() -> None:
    memory = Memory()
    changes: list[Change] = []
    end = memory.subscribe(changes.append)
    deliver(memory, b"a")
    deliver(memory, b"b")
    assert memory.remove(1)
    assert not memory.remove(1)
    assert memory.get(1) is None
    assert memory.clear() == 1
    assert memory.clear() == 0
    assert (len(memory), memory.size) == (0, 0)
    assert [change.removed for change in changes] == [(), (), (1,), (2,)]
    end()
    end()
    deliver(memory, b"c")
    assert len(changes) == 4


@pytest.mark.parametrize("limits", [{"max_messages": 0}, {"max_bytes": 0}])
def test_limits_that_leave_no_room(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="max_messages and max_bytes"):
        Memory(**limits)


def test_threads() -> None:
    memory = Memory(max_messages=50)
    seen: list[int] = []
    memory.subscribe(lambda change: seen.append(change.added.id) if change.added else None)
    threads = [
        threading.Thread(target=lambda: [deliver(memory, b"x") for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == list(range(1, 201))
    assert (len(memory), memory.size) == (50, 50)
    assert repr(memory) == "<becket.smtp.Memory: 50 messages, 50 bytes>"


# ---- Looking at messages -------------------------------------------------------------------------


def test_a_usual_message() -> None:
    message = letter("Grüße", "Text.\n", "<p>HTML")
    message.add_attachment(b"\0\1", maintype="image", subtype="png", filename="ä.png", cid="<a@b>")
    view = mime.read(message.as_bytes())
    assert view.header("SUBJECT") == "Grüße"
    assert view.header("absent") == ""
    assert (view.body("text/plain"), view.body("text/html")) == ("Text.\n", "<p>HTML\n")
    assert [(p.path, p.type, p.name, p.cid, p.data) for p in view.attachments] == [
        ("2", "image/png", "ä.png", "a@b", b"\0\1")
    ]
    assert view.part("1.1") == view.parts[0]
    assert view.part("9") is None
    assert view.problem == ""


def test_a_message_in_a_message_is_a_file() -> None:
    message = EmailMessage()
    message.set_content("see below")
    message.add_attachment(letter("inner"))
    view = mime.read(message.as_bytes())
    [inner] = view.attachments
    assert (inner.name, inner.type) == ("part-2.eml", "message/rfc822")
    assert mime.read(inner.data).header("subject") == "inner"


@pytest.mark.parametrize("nested", [5, 90, 3000])
def test_deep_nesting(nested: int) -> None:
    content = b"Subject: deep\r\n"
    for n in range(nested):
        content += b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
    view = mime.read(content + b"\r\nbottom\r\n")
    assert view.header("subject") == "deep"
    if nested < 1000:
        assert view.body("text/plain") == "bottom"
    else:
        assert view.problem == "nested too deeply: see its source"


def test_nesting_in_many_lines_is_not_begun() -> None:
    content = b"Subject: deep\r\n\tdown\r\n" + b"Content-Type:\r\n multipart/mixed\r\n\r\n" * 200
    view = mime.read(content + b"x\r\n" * 100_000)
    assert view.problem == "nested too deeply: see its source"
    assert view.header("subject") == "deep\tdown"


def test_many_parts() -> None:
    content = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 2000
    view = mime.read(content)
    assert len(view.parts) == mime.MAX_PARTS
    assert view.problem == "more than 500 parts: see its source"


def test_many_headers_and_long_ones() -> None:
    content = b"Subject: " + b"(" * 500_000 + b"\r\n" + b"X: y\r\n" * 2000 + b"\r\n"
    view = mime.read(content)
    assert len(view.headers) == mime.MAX_HEADERS
    assert len(view.header("subject")) == mime.MAX_HEADER


@pytest.mark.parametrize(
    ("charset", "data", "text"),
    [
        (b"iso-8859-1", b"\xe4", "ä"),
        (b"klingon", "ä".encode(), "ä"),
        (b"utf-8", b"\xff", "\ufffd"),
        (b"punycode", b"xn--4ca", "xn--4ca"),
        (b"unicode_escape", rb"\u0041", r"\u0041"),
        (b"base64", b"eA==", "eA=="),
        (b"utf\xff8", b"x", "x"),
        (b"a\0b", b"x", "x"),
        (b'"', b"x", "x"),
    ],
)
def test_charsets(charset: bytes, data: bytes, text: str) -> None:
    content = b"Content-Type: text/plain; charset=" + charset + b"\r\n\r\n" + data
    assert mime.read(content).body("text/plain") == text


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Type: multipart/mixed",
        b"Content-Type: ;;;=",
        b'Content-Type: multipart/mixed; boundary="',
        b"Content-Type: text/plain; charset*0*=x''%ff; charset*2=y",
        b"Content-Disposition: attachment; filename*=klingon'x'%ff%00",
        b"Content-Disposition: \xff\xfe; filename=\xff",
        b"Content-Transfer-Encoding: base64",
        b"Content-Transfer-Encoding: uuencode",
        b"Content-Transfer-Encoding: \xff",
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64",
        b"Content-Type: message/partial; id=1; number=x",
        b"Content-Type: message/delivery-status",
        b"Subject: =?utf-8?b?////?=",
        b"Subject: =?klingon?q?x?=",
        b"From: <<<>>>@,;:",
        b"To: " + b"(" * 4000,
        b"Date: not a date",
        b"Message-ID: <",
        b"\xff\xfe: x",
        b": x",
        b"no header at all",
        b"",
    ],
)
def test_what_is_broken_is_shown_somehow(header: bytes) -> None:
    view = mime.read(
        header + b"\r\nSubject: =?utf-8?q?=E4?=\xff\r\n\r\n--x\r\nbegin 644 a\r\nQQ==\r\n"
    )
    assert all(c.isprintable() or c == "\t" for name, value in view.headers for c in name + value)
    assert isinstance(view.problem, str)
    assert mime.inert(view) is None


@pytest.mark.parametrize(
    "content", [b"", b"\r\n", b"\0", b"\r\n\r\n", b"a\r", b" x", b"From \xff\n"]
)
def test_no_message_at_all(content: bytes) -> None:
    view = mime.read(content)
    assert len(view.parts) == 1 or view.problem


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        (r"C:\windows\system.ini", "system.ini"),
        ("..", ""),
        ("/", ""),
        (".bashrc", "bashrc"),
        ("a\r\nb\0c.txt", "abc.txt"),
        ('a"b<c>|?*:d.txt', "a_b_c_____d.txt"),
        ("evil\u202etxt.exe", "eviltxt.exe"),
        ("x" * 500 + ".tar", "x" * 116 + ".tar"),
        ("x" * 500, "x" * 120),
        ("x." + "y" * 500, "x." + "y" * 118),
        ("日本.txt", "日本.txt"),
        ("a\ud800b", "a_b"),
    ],
)
def test_names_of_files(name: str, safe: str) -> None:
    assert mime.file_name(name) == safe


def test_html_is_made_inert_and_keeps_its_images() -> None:
    message = letter(
        html='<!DOCTYPE html><LINK rel=x><script>1</script><linked><img src="cid:a%40b">'
    )
    message.get_payload()[1].add_related(b"\0", "image", "png", cid="<a@b>")
    assert mime.inert(mime.read(message.as_bytes())) == (
        '<!DOCTYPE html><base target="_blank"><x-LINK rel=x><x-script>1</x-script><linked>'
        '<img src="data:image/png;base64,AA==">\n'
    )


def test_images_in_html_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mime, "MAX_INLINE", 25)
    message = letter(html="cid:a cid:a cid:a cid:other cid:svg")
    message.get_payload()[1].add_related(b"\0" * 10, "image", "png", cid="<a>")
    message.get_payload()[1].add_related(b"\0", "image", "svg+xml", cid="<svg>")
    html = mime.inert(mime.read(message.as_bytes()))
    assert html is not None
    assert html.count("data:image/png") == 2
    assert html.endswith(" cid:a cid:other cid:svg\n")
