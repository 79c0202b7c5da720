"""`becket serve smtp` with its stores, as users run it."""

from __future__ import annotations

import http.client
import json
import mailbox
import re
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from becket.smtp.memory import Memory
from command import becket_command
from conftest import Certificates
from interop.processes import Server
from mail import PATIENCE, letter, send, serving, untraced

SAID = (
    r"becket: (SMTP|LMTP|page) at .*|  (try|or): .*|becket: mail is .*|becket: ended; .*"
    r"|(\d+|refused): from <.*> to .*, \d+ bytes: .*"
)


@contextmanager
def store(*options: object, expected: str = "", **more: int) -> Iterator[tuple[Server, int]]:
    """The command, and the port where it takes mail."""
    arguments = ("serve", "smtp", *options, "tcp://127.0.0.1:0")
    server = Server("-m", "becket", *arguments, expected=f"{SAID}|{expected}", **more)
    with server:
        port = server.wait_for(r"[SL]MTP at tcp://127\.0\.0\.1:(\d+)")[1]
        server.wait_for("Ctrl-C")
        yield server, int(port)


@pytest.mark.parametrize("driver", ["loop", "loops:2"])
def test_memory_and_its_page(driver: str) -> None:
    options = ("--memory", "--web", "tcp://127.0.0.1:0", "--driver", driver)
    with store(*options) as (server, port):
        for n in range(4):
            send(port, letter(f"number {n}"))
        server.wait_for(r"^4: from <me@a\.org> to you@b\.org, \d+ bytes: 250 2\.0\.0 ")
        page = server.wait_for(r"page at http://(\S+)/")[1]
        connection = http.client.HTTPConnection(page, timeout=PATIENCE)
        connection.request("GET", "/api/messages?search=number")
        answer = json.loads(connection.getresponse().read())
        assert answer["total"] == 4
        connection.close()


@pytest.mark.parametrize("driver", ["loop", "loops:2", "forks:2"])
def test_mbox(tmp_path: Path, driver: str) -> None:
    with store("--mbox", tmp_path / "mbox", "--driver", driver) as (server, port):
        for n in range(4):
            send(port, letter(f"number {n}"))
        server.wait_for(r"^4: from ")
    box = mailbox.mbox(tmp_path / "mbox", create=False)
    assert [message["Subject"] for message in box] == [f"number {n}" for n in range(4)]
    box.close()


def test_deliver(tmp_path: Path) -> None:
    command = f"tee {tmp_path}/$RECIPIENT"
    with store("--deliver", command, "--deliver-each") as (server, port):
        send(port, b"Subject: x\r\n\r\ntext\r\n")
        server.wait_for(r"^1: from ")
    assert untraced((tmp_path / "you@b.org").read_bytes()) == b"Subject: x\n\ntext\n"


def test_deliver_refuses() -> None:
    expected = r"becket: deliver: echo .*: exit status 67: nobody"
    options = ("--deliver", "echo nobody; exit 67", "--deliver-shell")
    with store(*options, expected=expected) as (server, port):
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send(port, letter())
        assert (refused.value.smtp_code, refused.value.smtp_error) == (550, b"5.1.1 nobody")
        server.wait_for(r"^refused: from <me@a\.org> .*: 550 5\.1\.1 nobody")


@pytest.mark.parametrize("driver", ["loop", "loops:2", "forks:2"])
def test_relay(driver: str) -> None:
    memory = Memory()
    with serving(memory) as there:
        options = ("--relay", f"tcp://127.0.0.1:{there}", "--driver", driver)
        with store(*options) as (server, port):
            for n in range(4):
                send(port, letter(f"number {n}"))
            server.wait_for(r"^4: from ")
    assert len(memory) == 4


def test_relay_that_logs_in(tmp_path: Path, tls: Certificates) -> None:
    """Under TLS, with the password of a file."""
    (tmp_path / "password").write_text("secret\nnot this\n")
    users = tmp_path / "users"
    made = [sys.executable, "-m", "becket", "passwd", "ada", users]
    subprocess.run(made, input=b"secret\n", stdout=subprocess.DEVNULL, check=True)
    where = f"starttls+tcp://127.0.0.1:0?cert={tls.path('server.crt')}&key={tls.path('server.key')}"
    behind = Server(
        "-m", "becket", "serve", "smtp", "--drop", "--users", users, "--auth-required", where,
        expected=SAID,
    )  # fmt: skip
    with behind:
        there = behind.wait_for(r"SMTP at starttls://127\.0\.0\.1:(\d+)")[1]
        endpoint = f"starttls://localhost:{there}?ca={tls.path('ca.crt')}"
        options = ("--relay", endpoint, "--relay-user", "ada")
        with store(*options, "--relay-password-file", tmp_path / "password") as (server, port):
            send(port, letter("through"))
            server.wait_for(r"^1: from <me@a\.org> ")
        behind.wait_for(r"^1: from <me@a\.org> ")


def test_lmtp_to_lmtp() -> None:
    memory = Memory()
    with serving(memory, lmtp=True) as there:
        options = ("--relay", f"tcp://127.0.0.1:{there}", "--relay-lmtp", "--lmtp")
        with store(*options) as (server, port):
            with smtplib.LMTP("127.0.0.1", port) as client:
                client.sendmail("me@a.org", ["a@b", "c@d"], b"x\r\n")
                assert client.getreply()[0] == 250  # smtplib reads one of the two
            server.wait_for(r"^1: from ")
    assert [message.recipients for message in memory.messages()] == [("a@b", "c@d")]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "one of the arguments --maildir --memory --mbox --deliver --relay --drop --handler"),
        (["--memory", "--mbox", "x"], "not allowed with argument"),
        (["--mbox", "x", "--web", "tcp://:0"], "--web: there is a page for --memory alone"),
        (["--memory", "--driver", "forks:2"], "--memory: forks:2 would have a memory in each"),
        (["--deliver", "a $X"], "command: there is no $X; there are $SENDER"),
        (["--memory", "--memory-messages", "0"], "max_messages and max_bytes: at least 1"),
        (["--memory", "--web", "nonsense"], "nonsense"),
        (["--relay", "tcp://:1", "--relay-connections", "0"], "connections: 0 is less than 1"),
        (["--relay", "tcp://:1", "--relay-user", "me"], "and --relay-password-file go together"),
        (
            ["--drop", "--relay-user", "me", "--relay-password-file", "x"],
            "--relay-user: there is no --relay",
        ),
        (
            ["--relay", "tcp://:1", "--relay-user", "me", "--relay-password-file", "nowhere"],
            "nowhere",
        ),
        (
            ["--relay", "tcp://:1", "--relay-user", "me", "--relay-password-file", "/dev/null"],
            "--relay-password-file: /dev/null has no password",
        ),
    ],
)
def test_options_that_cannot_be_right(options: list[str], error: str, tmp_path: Path) -> None:
    done = becket_command("serve", "smtp", *options, "tcp://127.0.0.1:0", folder=tmp_path)
    assert done.returncode != 0
    assert error in re.sub(r"\s+", " ", done.stderr.decode())
    assert b"Traceback" not in done.stderr
