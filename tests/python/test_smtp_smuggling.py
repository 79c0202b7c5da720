"""What was said to be one message is one message to everybody: to the server, to its store, and to
whoever reads that. For each way that is known to end a message where another server sees none.

An independent reader tells what a strict server is to make of a dialogue (RFC 5321, RFC 3030). It
believes the replies in what was refused, and in nothing else.
"""

from __future__ import annotations

import email
import mailbox
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from command import PATIENCE, port_of, serving

# ---- The reader ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mail:
    sender: bytes
    data: bytes


def alone(data: bytes) -> bool:
    """Whether a CR or an LF stands alone in it."""
    return re.search(rb"\r(?!\n)|(?<!\r)\n", data) is not None


def apart(data: bytes) -> bytes:
    """What is stored of it: an empty line keeps what begins as a folded line out of the server's
    header."""
    return b"\r\n" + data if data[:1] in (b" ", b"\t") else data


MOST_ERRORS = 20  # the server's: this one is answered by 421


class Reader:
    """Walks through what was said by a client, and what it was answered."""

    def __init__(self, said: bytes, replies: bytes) -> None:
        self.said = said
        self.replies = re.findall(rb"^(?:\d{3}-.*\r\n)*(\d{3}) .*\r\n", replies, re.MULTILINE)
        self.mails: list[Mail] = []
        self.sender = b""
        self.chunks = b""
        self.binary = False
        self.errors = 0
        assert self.reply() == b"220"
        while self.command():
            pass
        assert self.replies == [], "there are more replies than commands"

    def reply(self) -> bytes:
        """The next; none is left when the server has closed, or has not all it waits for."""
        code = self.replies.pop(0) if self.replies else b""
        self.errors += code[:1] == b"5"
        return code

    def refused(self) -> bool:
        """Whether the next reply is a refusal, which may be one too many."""
        code = self.replies[0] if self.replies else b""
        return code[:1] == b"5" or (code == b"421" and self.errors == MOST_ERRORS - 1)

    def take(self, size: int) -> bytes:
        taken, self.said = self.said[:size], self.said[size:]
        return taken

    def command(self) -> bool:
        end = self.said.find(b"\r\n")
        if end < 0:
            # What is wrong already may be refused before its end is there.
            if self.said and self.refused():
                self.reply()
            return False
        line = self.take(end + 2)[:-2]
        refused = self.refused()
        code = self.reply()
        if alone(line) or b"\0" in line:
            assert refused or code == b"", line
        if found := re.match(rb"BDAT (\d+)( LAST)?$", line):
            # The count is obeyed even where the command is refused.
            return self.chunk(int(found[1]), last=bool(found[2]), code=code)
        if code == b"354":
            assert line == b"DATA"
            return self.data()
        if code[:1] == b"2" and line.startswith(b"MAIL"):
            self.sender = line.partition(b"<")[2].partition(b">")[0]
            self.binary = b"BINARYMIME" in line
            self.chunks = b""
        return code not in (b"", b"221", b"421")

    def data(self) -> bool:
        end = 0 if self.said.startswith(b".\r\n") else self.said.find(b"\r\n.\r\n") + 2
        if end == 1:
            return False
        data = self.take(end + 3)[:-3]
        code = self.reply()
        if code == b"250":
            assert not alone(data), "a CR or LF that stands alone was taken"
            unstuffed = re.sub(rb"(^|\r\n)\.", rb"\1", data)
            self.mails.append(Mail(self.sender, apart(unstuffed)))
        return code not in (b"", b"421")

    def chunk(self, size: int, *, last: bool, code: bytes) -> bool:
        if len(self.said) < size:
            assert code != b"250", "it was answered before it was there"
            return False
        self.chunks += self.take(size)
        if code == b"250" and last:
            assert self.binary or not alone(self.chunks)
            self.mails.append(Mail(self.sender, apart(self.chunks)))
        return code not in (b"", b"421")


def test_the_reader_itself() -> None:
    """Of what it is to find, and of what it is to complain about."""
    said = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n..\r\nx\r\n.\r\nMAIL FROM:<>\r\nQUIT\r\n"
    replies = b"220 x\r\n250 x\r\n250 x\r\n354 x\r\n250 x\r\n250-x\r\n250 x\r\n221 x\r\n"
    assert Reader(said, replies).mails == [Mail(b"a@b", b".\r\nx\r\n")]
    with pytest.raises(AssertionError, match="more replies"):
        Reader(said, replies + b"250 x\r\n")
    with pytest.raises(AssertionError, match="stands alone"):
        Reader(said.replace(b"..\r", b".."), replies)


# ---- The server ----------------------------------------------------------------------------------


class Box:
    """A server with its Maildir."""

    def __init__(self, path: Path, port: int) -> None:
        self.path = path
        self.port = port

    def _files(self) -> set[str]:
        return set(os.listdir(self.path / "new"))

    def dialogue(self, *pieces: bytes) -> tuple[bytes, list[bytes]]:
        """Send the pieces, each when what came before was answered; the last ends what is said.
        Returns the replies, and the files that are there afterwards and were not before."""
        before = self._files()
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as s:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            replies = s.recv(65536)
            for piece in pieces[:-1]:
                s.sendall(piece)
                replies += s.recv(65536)
            s.sendall(pieces[-1])
            s.shutdown(socket.SHUT_WR)
            try:
                while received := s.recv(65536):
                    replies += received
            except ConnectionResetError:
                pass  # it had enough of us
        names = self._files() - before

        def order(name: str) -> int:
            number = re.search(r"Q(\d+)R", name)
            assert number is not None
            return int(number[1])

        return replies, [
            (self.path / "new" / name).read_bytes() for name in sorted(names, key=order)
        ]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    path = tmp_path_factory.mktemp("smuggling") / "box"
    arguments = ("smtp", "tcp://127.0.0.1:0", "--maildir", path)
    with serving(*arguments) as (process, (endpoint,)):
        yield Box(path, port_of(endpoint))
        assert process.poll() is None


TRACE = re.compile(rb"Return-Path: <([^>\r\n]*)>\r\nReceived: (?:[^\r\n]*\r\n[ \t])*[^\r\n]*\r\n")


def stored(content: bytes) -> Mail:
    """A file of the store, without the trace header."""
    head = TRACE.match(content)
    assert head is not None, content[:300]
    return Mail(head[1], content[head.end() :])


def parsed(content: bytes) -> Mail:
    """The same, as the parser of the email package sees it."""
    found: Message = email.message_from_bytes(content)
    assert found.get_all("Received") is not None
    assert len(found.get_all("Return-Path", [])) == 1
    payload = found.get_payload()
    assert isinstance(payload, str)
    body = payload.encode("ascii", "surrogateescape")
    return Mail(found["Return-Path"].strip("<>").encode(), body)


def agree(box: Box, *pieces: bytes) -> tuple[bytes, list[Mail]]:
    """The reader and the store agree. Returns the replies, and what is stored."""
    replies, files = box.dialogue(*pieces)
    found = [stored(content) for content in files]
    assert found == Reader(b"".join(pieces), replies).mails
    return replies, found


# ---- Every variant that is known -----------------------------------------------------------------

HELLO = b"EHLO client\r\n"
ENVELOPE = b"MAIL FROM:<honest@example.org>\r\nRCPT TO:<b@example.org>\r\n"
HEADER = b"Subject: x\r\n\r\n"
SMUGGLED = b"MAIL FROM:<smuggler@example.org>\r\nRCPT TO:<v@example.org>\r\nDATA\r\nX: y\r\n\r\nz"
# What some server has been found to take for the end of a message.
ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r.\r",
    b"\r.\r\n",
    b"\r.\n",
    b"\n.\r",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\0\n",
    b"\r\0\n.\r\n",
    b"\0\r\n.\0",
    b"\r\r\n.\r\r\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\n",
    b"\n\n.\n\n",
    b"\n\r.\n\r",
    b"\r\n. \r\n",
    b"\r\n .\r\n",
    b"\r\n.\t\r\n",
    b"\x85.\x85",
    b"\xc2\x85.\xc2\x85",
    b"\xe2\x80\xa8.\xe2\x80\xa8",
    b"\x0b.\x0b",
    b"\x0c.\x0c",
    b"\r\n\x2e\x2e\r\n",
    b"\r\n..\n",
    b"\n..\r\n",
]


def one_or_none(replies: bytes, found: list[Mail]) -> None:
    assert len(found) <= 1
    for mail in found:
        assert mail.sender == b"honest@example.org"
        assert b"smuggler" in mail.data, "the rest of the message is in it"
    assert (len(found) == 1) == (b"\r\n250 2.0.0" in replies)


@pytest.mark.parametrize("end", ENDS, ids=repr)
@pytest.mark.parametrize("stuffing", [b"", b".", b".."], ids=["plain", "dot", "dots"])
def test_only_crlf_dot_crlf_ends_data(box: Box, end: bytes, stuffing: bytes) -> None:
    text = HEADER + stuffing + b"a" + end + SMUGGLED + b"\r\n.\r\n"
    if (first := text.find(b"\r\n.\r\n")) < text.rfind(b"\r\n.\r\n"):
        assert alone(text[:first]), "this variant is no variant"
        one_at_most(box, text)
        return
    replies, found = agree(box, HELLO, ENVELOPE + b"DATA\r\n", text + b"QUIT\r\n")
    one_or_none(replies, found)
    assert bool(found) == (not alone(text))
    assert b"\r\n221 " in replies, "it goes on with the next command"


def one_at_most(box: Box, text: bytes) -> None:
    """It ends truly, after something that stands alone: it is refused, and what follows are
    commands to everybody."""
    replies, found = agree(box, HELLO, ENVELOPE + b"DATA\r\n", text + b"QUIT\r\n")
    assert b"honest@example.org" not in [mail.sender for mail in found]
    assert re.search(rb"^5\d\d ", replies, re.MULTILINE)


@pytest.mark.parametrize("end", ENDS, ids=repr)
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_nothing_ends_bdat_but_its_count(box: Box, end: bytes, binary: bool) -> None:
    text = HEADER + b"a" + end + SMUGGLED + b"\r\n.\r\n"
    envelope = ENVELOPE.replace(b">\r\n", b"> BODY=BINARYMIME\r\n", 1) if binary else ENVELOPE
    for cut in {0, 1, len(HEADER) + 1, len(HEADER) + 2, len(HEADER) + 1 + len(end), len(text)}:
        chunks = b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (
            cut,
            text[:cut],
            len(text) - cut,
            text[cut:],
        )
        _, found = agree(box, HELLO, envelope + chunks + b"QUIT\r\n")
        expected = [Mail(b"honest@example.org", text)] if binary or not alone(text) else []
        assert found == expected


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\0", b"\n\r", b"\0\n"], ids=repr)
def test_nothing_but_crlf_ends_a_command(box: Box, end: bytes) -> None:
    """What hides behind it is part of the command, which is refused."""
    hidden = b"NOOP" + end + b"MAIL FROM:<smuggler@example.org>\r\n"
    replies, found = agree(
        box,
        HELLO,
        hidden + ENVELOPE + b"DATA\r\n",
        HEADER + b"x\r\n.\r\nQUIT\r\n",
    )
    assert found == [Mail(b"honest@example.org", HEADER + b"x\r\n")]
    assert re.search(rb"^5\d\d ", replies, re.MULTILINE)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (b".", b""),
        (b"..", b"."),
        (b"...", b".."),
        (b".a", b"a"),
        (b"a.", b"a."),
        (b" .", b" ."),
        (b"..\r\n..", b".\r\n."),
        (b"x\r\n..\r\n\r\n...\r\n", b"x\r\n.\r\n\r\n..\r\n"),
    ],
)
def test_dots(box: Box, sent: bytes, read: bytes) -> None:
    text = HEADER + sent + b"\r\n.\r\n"
    replies, found = agree(box, HELLO, ENVELOPE + b"DATA\r\n", text + b"QUIT\r\n")
    if sent == b".":  # the end, and then a command that is none
        assert found == [Mail(b"honest@example.org", HEADER)]
        assert b"\r\n500 " in replies
    else:
        assert found == [Mail(b"honest@example.org", HEADER + read + b"\r\n")]


def test_others_read_the_same(box: Box) -> None:
    """Python's Maildir and its parser see what was sent: so many messages, and these."""
    sent = [HEADER + b"%d\r\n.x\r\nFrom y\r\n\r\n.\r\n" % number for number in range(5)]
    dialogue = b"".join(ENVELOPE + b"BDAT %d LAST\r\n%b" % (len(text), text) for text in sent)
    before = {*mailbox.Maildir(box.path, create=False).keys()}
    _, files = box.dialogue(HELLO, dialogue + b"QUIT\r\n")
    assert [parsed(content) for content in files] == [
        Mail(b"honest@example.org", text.removeprefix(HEADER)) for text in sent
    ]
    there = mailbox.Maildir(box.path, create=False)
    assert sorted(there.get_bytes(key) for key in {*there.keys()} - before) == sorted(files)


@pytest.mark.parametrize("space", [b" ", b"\t", b"\r\n "])
def test_a_message_is_no_more_of_the_servers_header(box: Box, space: bytes) -> None:
    text = space + b"for <forged@example.org>\r\nSubject: x\r\n\r\n.\r\n"
    _, (content,) = box.dialogue(HELLO, ENVELOPE + b"DATA\r\n", text + b"QUIT\r\n")
    assert parsed(content) == Mail(b"honest@example.org", text[:-3].removeprefix(b"\r\n"))
    assert b"forged" not in email.message_from_bytes(content)["Received"].encode()


# ---- And those that are not known ----------------------------------------------------------------

TOKENS = st.sampled_from(
    [
        b"\r", b"\n", b"\r\n", b".", b"..", b"\0", b"a", b"\r\n.\r\n", b"\n.\n", b"\r\n.\r",
        b"MAIL FROM:<x@y>", b"RCPT TO:<z@y>", b"DATA", b"DATA\r\n", b"RSET\r\n", b"EHLO c\r\n",
        b"MAIL FROM:<x@y>\r\nRCPT TO:<z@y>\r\nDATA\r\n", b"MAIL FROM:<x@y> BODY=BINARYMIME\r\n",
        b"BDAT 5\r\n", b"BDAT 0 LAST\r\n", b"BDAT 3 LAST\r\n", b"QUIT\r\n", b"\xff", b" ",
    ]
)  # fmt: skip


@settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(TOKENS, max_size=40), st.booleans())
@example([b" ", b"\r\n.\r\n"], True)
@example([b"\0\r\n"] * 20, False)  # the last is one too many
@example([b"\0\r\n"] * 19 + [b"\r", b"\r"], False)  # … and is refused before its end is there
def test_whatever_is_said(box: Box, tokens: list[bytes], begun: bool) -> None:
    start = b"EHLO c\r\nMAIL FROM:<x@y>\r\nRCPT TO:<z@y>\r\nDATA\r\n" if begun else b"EHLO c\r\n"
    _, files = (said := b"".join([start, *tokens])) and box.dialogue(said)
    replies, found = agree(box, said)
    assert [stored(content) for content in files] == found, "it is the same each time"
    for content in files:
        assert stored(content).sender in (b"x@y", b"")
        assert not alone(content) or b"BINARYMIME" in said, replies
