"""``becket serve smtp`` as its users run it: a process that listens on TCP and on a UNIX socket at
once, under swaks, smtplib, Postfix's smtp-source and clients that mean harm."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import smtplib
import socket
import struct
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

import becket
from interop.mail import (
    Session,
    Wire,
    digest,
    every_shape,
    list_maildir,
    read_by_sender,
    read_maildir,
    smtp_source_payload,
)
from interop.processes import Server, run_program

BOTH = pytest.mark.parametrize("kind", ["tcp", "unix"])
SAID = (
    r"becket: (SMTP at|mail is stored in|ended;) .*"
    r"|  (try|or): .*"
    r"|\d+: from <.*> to .*, \d+ bytes: \S+"
)


class SmtpServer(Server):
    """``becket serve smtp`` on a free port and a UNIX socket, into a Maildir in *folder*."""

    def __init__(self, folder: Path, path: str, *options: object) -> None:
        self.maildir = folder / "Maildir"
        self.path = path
        super().__init__(
            "-m",
            "becket",
            "serve",
            "smtp",
            "--maildir",
            self.maildir,
            "--hostname",
            "mx.example.org",
            *options,
            "tcp://127.0.0.1:0",
            f"unix:{self.path}",
            expected=SAID,
        )

    def __enter__(self) -> SmtpServer:
        self.port = int(self.wait_for(r"SMTP at tcp://127\.0\.0\.1:(\d+)$")[1])
        self.wait_for(r"SMTP at unix:")
        self.wait_for(r"mail is stored in")
        return self

    def address(self, kind: str) -> tuple[str, int] | str:
        return ("127.0.0.1", self.port) if kind == "tcp" else self.path

    def wait_stored(self, count: int) -> None:
        self.wait_for(rf"^{count}: from ")


@pytest.fixture
def server(tmp_path, short_path):
    with SmtpServer(tmp_path, short_path) as server:
        yield server
        server.end()
        server.check()
        # The count that it ends with, the lines that it printed and the files are one number.
        stored = len(list_maildir(server.maildir)["new"])
        assert f"ended; {stored} message{'' if stored == 1 else 's'} stored" in server.lines[-1]
        assert sum(": from <" in line for line in server.lines) == stored


# ---- Clients of others ----


@BOTH
def test_swaks(server, kind, tmp_path):
    message = tmp_path / "message"
    message.write_bytes(
        b"Subject: swaks\n\nfirst\n.\n..two dots\n.dot\n\n" + "äöü\n".encode() + b"last\n"
    )
    where = ["--server", f"127.0.0.1:{server.port}"] if kind == "tcp" else ["--socket", server.path]
    for sender in ("a@example.org", "b@example.org"):
        run_program(
            "swaks",
            *where,
            "--from",
            sender,
            "--to",
            "x@example.org,y@example.org",
            "--data",
            f"@{message}",
        )
    # swaks makes the line ends, and adds an empty line of its own.
    expected = message.read_bytes().replace(b"\n", b"\r\n") + b"\r\n"
    assert read_by_sender(server.maildir) == {"a@example.org": expected, "b@example.org": expected}
    server.wait_stored(2)
    assert sum("to x@example.org, y@example.org" in line for line in server.lines) == 2


@BOTH
def test_smtplib_every_shape_in_one_session(server, kind):
    shapes = {f"{name}@example.org": text for name, text in every_shape().items()}
    assert max(map(len, shapes.values())) > 5 * 1024 * 1024
    with Session(server.address(kind)) as session:
        for sender, text in shapes.items():
            refused = session.sendmail(
                sender, ["you@example.org"], text, mail_options=["BODY=8BITMIME"]
            )
            assert not refused
    assert digest(read_by_sender(server.maildir)) == digest(shapes)


@BOTH
def test_every_shape_in_sessions_at_once(server, kind):
    shapes = {f"{name}@example.org": text for name, text in every_shape().items()}
    failures = []

    def send(sender: str, text: bytes) -> None:
        try:
            with Session(server.address(kind)) as session:
                session.sendmail(sender, ["you@example.org"], text)
        except (OSError, smtplib.SMTPException) as error:
            failures.append((sender, error))

    threads = [threading.Thread(target=send, args=shape) for shape in shapes.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert digest(read_by_sender(server.maildir)) == digest(shapes)


def test_message_without_any_byte(server):
    with Wire(server.address("tcp")) as wire:
        wire.begin("empty@example.org")
        assert wire.ask(b".\r\n")[:3] == "250"
        assert wire.ask(b"QUIT\r\n")[:3] == "221"
        assert wire.reply() == ""
    assert read_by_sender(server.maildir) == {"empty@example.org": b""}


def test_many_recipients(server):
    recipients = [f"user{n}@example.org" for n in range(130)]
    with Session(server.address("tcp")) as session:
        refused = session.sendmail("me@example.org", recipients, b"Subject: many\r\n\r\n")
    assert list(refused) == recipients[100:]
    assert {code for code, _ in refused.values()} == {452}
    assert read_by_sender(server.maildir) == {"me@example.org": b"Subject: many\r\n\r\n"}
    server.wait_for(re.escape(f"to {', '.join(recipients[:100])}, "))


@pytest.mark.parametrize(
    "kind, notifier",
    [
        *(("tcp", notifier) for notifier in becket.notifiers),
        ("unix", None),
    ],
)
def test_smtp_source(tmp_path, short_path, kind, notifier):
    """1,000 messages of 10 kB over 20 sessions at once, a new connection each."""
    options = ["--notifier", notifier] if notifier else []
    with SmtpServer(tmp_path, short_path, *options) as server:
        where = f"inet:127.0.0.1:{server.port}" if kind == "tcp" else f"unix:{server.path}"
        said = run_program(
            "smtp-source",
            "-c",
            "-s",
            20,
            "-m",
            1000,
            "-l",
            10_000,
            "-f",
            "from@example.org",
            "-t",
            "to@example.org",
            where,
        )
        assert said.split()[-1].endswith("1000")
        messages = read_maildir(server.maildir)
    assert Counter(sender for sender, _ in messages) == {"from@example.org": 1000}
    parts = [text.partition(b"\r\n\r\n") for _, text in messages]
    assert {end for _, _, end in parts} == {smtp_source_payload(10_000) + b"\r\n"}
    header = re.compile(
        rb"From: <from@example\.org>\r\nTo: <to@example\.org>\r\nDate: [^\r\n]+\r\n"
        rb"Message-Id: <([^\r\n]+)>"
    )
    assert len({header.fullmatch(head)[1] for head, _, _ in parts}) == 1000


@BOTH
def test_smtp_source_with_long_sessions(server, kind, tmp_path):
    """1,000 messages from a file over 20 connections that are kept."""
    file = tmp_path / "message"
    file.write_bytes(b"Subject: kept\n\n.\n..\n" + b"line\n" * 500 + b".last\n")
    where = f"inet:127.0.0.1:{server.port}" if kind == "tcp" else f"unix:{server.path}"
    run_program(
        "smtp-source",
        "-d",
        "-s",
        20,
        "-m",
        1000,
        "-F",
        file,
        "-r",
        3,
        "-f",
        "from@example.org",
        "-t",
        "to@example.org",
        where,
    )
    expected = file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n"  # one more is its own
    assert Counter(read_maildir(server.maildir)) == {("from@example.org", expected): 1000}


# ---- By hand ----


@BOTH
def test_pipelining(server, kind):
    """RFC 2920: groups of commands in one write, the end of a message and what follows in another;
    each reply in its turn."""

    def group(sender: str) -> bytes:
        return f"MAIL FROM:<{sender}>\r\nRCPT TO:<x@example.org>\r\nDATA\r\n".encode()

    with Wire(server.address(kind)) as wire:
        assert "250-PIPELINING" in wire.ask(b"") + wire.ask(b"EHLO client.example.org\r\n")
        wire.send(group("a@example.org"))
        assert wire.codes(3) == ["250", "250", "354"]
        wire.send(b"first\r\n.\r\n" + group("b@example.org"))
        assert wire.codes(4) == ["250", "250", "250", "354"]
        wire.send(b"second\r\n.\r\nNOOP\r\nRSET\r\n" + group("c@example.org"))
        assert wire.codes(6) == ["250", "250", "250", "250", "250", "354"]
        wire.send(b"third\r\n.\r\nQUIT\r\n")
        assert wire.codes(3) == ["250", "221", ""]
    assert read_by_sender(server.maildir) == {
        "a@example.org": b"first\r\n",
        "b@example.org": b"second\r\n",
        "c@example.org": b"third\r\n",
    }


def test_slow_client_beside_fast_ones(server):
    """One sends a byte at a time; others come, send and go between its bytes."""
    text = b"Subject: slow\r\n\r\n.one\r\n..two\r\nthree\r\n"
    wired = text.replace(b"\r\n.", b"\r\n..") + b".\r\n"
    expected = {"slow@example.org": text}
    with Wire(server.address("tcp")) as wire:
        assert wire.codes(1) == ["220"]
        for line, code in (
            (b"EHLO slow.example.org\r\n", "250"),
            (b"MAIL FROM:<slow@example.org>\r\n", "250"),
            (b"RCPT TO:<you@example.org>\r\n", "250"),
            (b"DATA\r\n", "354"),
        ):
            wire.send_bytes_singly(line)
            assert wire.reply()[:3] == code
        for number, byte in enumerate(wired):
            sender = f"fast{number}@example.org"
            with Session(server.address("unix" if number % 2 else "tcp")) as session:
                session.sendmail(sender, ["you@example.org"], b"fast\r\n")
            expected[sender] = b"fast\r\n"
            wire.send(bytes([byte]))
        assert wire.reply()[:3] == "250"
    assert read_by_sender(server.maildir) == expected


def test_client_that_does_not_read(server):
    """One that sends commands and reads no reply stops nobody else, and gets all it has asked."""
    count = 99  # of those that bring no mail, a session may have 100
    with Wire(server.address("tcp")) as wire:
        wire.send(b"HELP\r\n" * count)
        with Session(server.address("tcp")) as session:
            session.sendmail("other@example.org", ["you@example.org"], b"x\r\n")
        assert wire.codes(count + 1) == ["220"] + ["214"] * count
    assert read_by_sender(server.maildir) == {"other@example.org": b"x\r\n"}


# ---- Limits ----


@BOTH
def test_too_big_message_is_refused(tmp_path, short_path, kind):
    fits = b"Subject: fits\r\n\r\n".ljust(4998, b"x") + b"\r\n"
    with SmtpServer(tmp_path, short_path, "--max-message", 5000) as server:
        with Session(server.address(kind)) as session:
            session.ehlo()
            assert session.esmtp_features["size"] == "5000"
            with pytest.raises(smtplib.SMTPSenderRefused) as said:  # by SIZE=
                session.sendmail("said@example.org", ["you@example.org"], fits + b"y\r\n")
            assert said.value.smtp_code == 552
            session.esmtp_features.clear()
            with pytest.raises(smtplib.SMTPDataError) as unsaid:
                session.sendmail("unsaid@example.org", ["you@example.org"], fits + b"y\r\n")
            assert unsaid.value.smtp_code == 552
            with pytest.raises(smtplib.SMTPDataError) as huge:
                session.sendmail("huge@example.org", ["you@example.org"], b"y" * 3_000_000)
            assert huge.value.smtp_code == 552
            session.sendmail("fits@example.org", ["you@example.org"], fits)
        assert read_by_sender(server.maildir) == {"fits@example.org": fits}


SMUGGLED = (
    b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\n"
    b"Subject: smuggled\r\n\r\nevil\r\n"
)
# What some server somewhere has taken for the end of a message. With a CR or LF on its own…
BARE_ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r.\n",
    b"\n.\r",
    b"\r\n.\r\r\n",
    b"\r\n\n.\r\n",
    b"\r\n\r.\r\n",
    b"\n\n.\n\n",
    b"\r\n.\r\x00\n",
    b"\r\x00\n.\r\n",
]
# … and without: parts of a message as others are.
QUIET_ENDS = [
    b"\r\n.\x00\r\n",
    b"\r\n\x00.\r\n",
    b"\r\n. \r\n",
    b"\r\n .\r\n",
    b"\r\n..\r\n",
    b"\r\n.\xa0\r\n",
    b"\r\n.\x0b\r\n",
    b"\r\n.\x85\r\n",
    b"\x85.\x85",
    b"\r\n\xe2\x80\xa8.\r\n",
]


@pytest.mark.parametrize("way", ["at once", "bytes singly"])
def test_smuggling(server, way):
    """There is one end of a message; whatever else looks like one never makes two of it."""
    expected = {}
    for number, end in enumerate(BARE_ENDS + QUIET_ENDS):
        sender = f"s{number}@example.org"
        message = b"Subject: x\r\n\r\nlorem" + end + SMUGGLED
        assert b"\r\n.\r\n" not in message
        with Wire(server.address("tcp")) as wire:
            wire.begin(sender)
            send = wire.send if way == "at once" else wire.send_bytes_singly
            send(message + b".\r\nQUIT\r\n")
            # An early end would show as replies too many.
            said = "250" if end in QUIET_ENDS else "554"
            assert wire.codes(3) == [said, "221", ""], end
        if end in QUIET_ENDS:
            expected[sender] = message.replace(b"\r\n.", b"\r\n")
    assert read_by_sender(server.maildir) == expected


def test_commands_end_in_crlf_only(server):
    """Neither may commands be smuggled into a command."""
    for line in (
        b"NOOP\nMAIL FROM:<evil@example.org>\r\n",
        b"NOOP\rMAIL FROM:<evil@example.org>\r\n",
        b"NOOP\n\r\n",
        b"NOOP\r\r\n",
        b"NO\x00OP\r\n",
    ):
        with Wire(server.address("tcp")) as wire:
            assert wire.ask(b"")[:3] == "220"
            assert wire.ask(b"EHLO client.example.org\r\n")[:3] == "250"
            assert wire.ask(line)[:3] == "500", line
            assert wire.ask(b"RCPT TO:<you@example.org>\r\n")[:3] == "503", line
            assert wire.ask(b"QUIT\r\n")[:3] == "221", line


# ---- Clients and servers that go away ----


@BOTH
def test_client_drops_in_data(server, kind):
    parts = [b"", b"Subject: x\r\n", b"\r\ntext\r\n.", b"\r\ntext\r\n.\r", b"y" * 900_000]
    reset = struct.pack("ii", 1, 0)  # close() then sends RST
    for number, part in enumerate(parts):
        for abruptly in (False, True):
            with Wire(server.address(kind)) as wire:
                wire.begin(f"lost{number}@example.org")
                wire.send(part)
                if abruptly:
                    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    with Session(server.address(kind)) as session:
        session.sendmail("kept@example.org", ["you@example.org"], b"kept\r\n")
    assert read_by_sender(server.maildir) == {"kept@example.org": b"kept\r\n"}
    server.end()
    assert read_by_sender(server.maildir) == {"kept@example.org": b"kept\r\n"}


@BOTH
def test_acknowledged_mail_survives_kill(tmp_path, short_path, kind):
    """The process is killed right after a 250: that message is there."""
    expected = {}
    for number in range(3):
        sender, text = f"k{number}@example.org", b"kill me\r\n" * (10 ** (2 * number))
        with SmtpServer(tmp_path, short_path) as server, Wire(server.address(kind)) as wire:
            wire.begin(sender)
            reply = wire.ask(text + b".\r\n")
            server.end(signal.SIGKILL)
            assert reply[:3] == "250"
        expected[sender] = text
    assert digest(read_by_sender(server.maildir)) == digest(expected)


def test_kill_among_many_messages(tmp_path, short_path):
    """Killed with deliveries under way: all that was acknowledged is whole, and new/ has nothing
    that is not."""
    acknowledged, begun = set(), threading.Barrier(9)

    def send(number: int) -> None:
        with contextlib.suppress(OSError, smtplib.SMTPException), Session(address) as session:
            begun.wait()
            for count in range(10_000):
                sender = f"m{number}.{count}@example.org"
                session.sendmail(sender, ["you@example.org"], sender.encode() * 1000 + b"\r\n")
                acknowledged.add(sender)

    with SmtpServer(tmp_path, short_path) as server:
        address = server.address("tcp")
        threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        begun.wait()
        server.wait_stored(100)
        server.end(signal.SIGKILL)
        for thread in threads:
            thread.join()
    for left in list_maildir(server.maildir)["tmp"]:
        left.unlink()
    stored = read_by_sender(server.maildir)
    assert len(acknowledged) > 50
    assert acknowledged <= stored.keys()
    assert [s for s, text in stored.items() if text != s.encode() * 1000 + b"\r\n"] == []


@BOTH
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_mid_session(tmp_path, short_path, kind, number):
    """It ends at once and cleanly, whatever its clients are at; only whole messages are stored."""
    with SmtpServer(tmp_path, short_path) as server, contextlib.ExitStack() as stack:

        def wire() -> Wire:
            return stack.enter_context(Wire(server.address(kind)))

        silent, greeted, in_data, stored = wire(), wire(), wire(), wire()
        assert greeted.codes(1) == ["220"]
        greeted.send(b"EHLO half")
        in_data.begin("half@example.org")
        in_data.send(b"Subject: half\r\n\r\n" + b"h" * 100_000)
        stored.begin("whole@example.org")
        assert stored.ask(b"whole\r\n.\r\n")[:3] == "250"
        server.end(number)
        server.check()
        assert [w.reply()[:3] for w in (silent, greeted, in_data, stored)] == ["220", "", "", ""]
        assert "ended; 1 message stored" in server.lines[-1]
    assert read_by_sender(server.maildir) == {"whole@example.org": b"whole\r\n"}
    assert not os.path.exists(server.path)


# ---- Storage that fails ----


@contextlib.contextmanager
def folder_is_a_file(server, name):
    """Nothing can be made in new/ (or tmp/), not even by root, whom permissions do not bind."""
    folder = server.maildir / name
    kept = folder.with_name(name + ".kept")
    folder.rename(kept)
    folder.write_bytes(b"")
    yield
    folder.unlink()
    kept.rename(folder)


@contextlib.contextmanager
def files_end_at(server, size):
    """No file of the server's can grow beyond that."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("there is no prlimit here")
    pid, what = server.process.pid, resource.RLIMIT_FSIZE
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (size, before[1]))
    yield
    resource.prlimit(pid, what, before)


@pytest.mark.parametrize("fault", ["new", "tmp", "size"])
def test_message_that_cannot_be_stored(server, fault):
    """It is refused for now, and nothing is left of it; when storage is well, so is the session."""
    text = b"t" * 10_000 + b"\r\n"
    failing = files_end_at(server, 1000) if fault == "size" else folder_is_a_file(server, fault)
    with Session(server.address("tcp")) as session:
        with failing:
            for _ in range(3):
                with pytest.raises(smtplib.SMTPDataError) as refusal:
                    session.sendmail("a@example.org", ["you@example.org"], text)
                assert refusal.value.smtp_code == 451
        assert read_maildir(server.maildir) == []
        session.sendmail("a@example.org", ["you@example.org"], text)
    assert read_by_sender(server.maildir) == {"a@example.org": text}


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for little."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount"):
        pytest.skip("mount is not installed")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "becket-test", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    run_program("umount", folder)


def test_disk_full(small_disk, short_path):
    small, large = b"small\r\n", b"l" * 300_000 + b"\r\n"
    with SmtpServer(small_disk, short_path) as server:
        with Session(server.address("tcp")) as session:
            for number in range(3):
                with pytest.raises(smtplib.SMTPDataError) as refusal:
                    session.sendmail("large@example.org", ["you@example.org"], large)
                assert refusal.value.smtp_code == 452
                session.sendmail(f"small{number}@example.org", ["you@example.org"], small)
        assert read_by_sender(server.maildir) == {
            f"small{number}@example.org": small for number in range(3)
        }
