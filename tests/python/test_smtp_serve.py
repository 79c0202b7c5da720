"""``becket serve smtp`` with users, accepted domains and limits; ``becket passwd``; handlers in
Python from the command line."""

from __future__ import annotations

import base64
import os
import smtplib
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest

from interop.processes import Server

SAID = (
    r"becket: (SMTP|LMTP) at .*|  (try|or): .*|becket: mail is .*|becket: ended; .*"
    r"|(\d+|refused): from <.*> to .*, \d+ bytes: .*"
)
STORES = {
    "maildir": ["--maildir", "Maildir"],
    "drop": ["--drop"],
    "mbox": ["--mbox", "mbox"],
}


def passwd(*arguments: object, password: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "becket", "passwd", *map(str, arguments)],
        input=f"{password}\n",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    path = tmp_path_factory.mktemp("users") / "users"
    assert passwd("bob", path, password="secret").returncode == 0
    assert passwd("änne", path, password="gehëim").returncode == 0
    return path


@contextmanager
def serving(folder: Path, *options: object, expected: str = "") -> Iterator[tuple[Server, int]]:
    arguments = ("serve", "smtp", *options, "tcp://127.0.0.1:0")
    with chdir(folder):
        server = Server("-m", "becket", *arguments, expected=f"{SAID}|{expected}")
    with server:
        port = server.wait_for(r"[SL]MTP at tcp://127\.0\.0\.1:(\d+)")[1]
        server.wait_for("Ctrl-C")
        yield server, int(port)


def client_of(port: int) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", port, local_hostname="client.example.org", timeout=60)
    client.ehlo()
    return client


# ---- becket passwd ----


def test_line_of_a_user():
    done = passwd("bob", password="secret")
    assert done.returncode == 0 and done.stderr == ""
    name, _, secret = done.stdout.rstrip("\n").partition(":")
    kind, parameters, keys = secret.split("$")
    assert (name, kind) == ("bob", "SCRAM-SHA-256")
    assert int(parameters.partition(":")[0]) >= 4096
    assert [len(base64.b64decode(key)) for key in keys.split(":")] == [32, 32]
    assert passwd("bob", password="secret").stdout != done.stdout  # by its salt


def test_file_of_users(tmp_path):
    path = tmp_path / "users"
    for user, password in (("a", "1"), ("b", "2"), ("a", "3")):
        assert passwd(user, path, password=password).returncode == 0
    assert [line.partition(":")[0] for line in path.read_text().splitlines()] == ["b", "a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    assert passwd("a", path, "--verify", password="3").returncode == 0
    assert passwd("a", path, "--verify", password="1").returncode == 1
    assert passwd("b", path, "--delete", password="").returncode == 0
    assert path.read_text().startswith("a:") and path.read_text().count("\n") == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["users"]


@pytest.mark.parametrize(
    "arguments, password, reason",
    [
        (["a b"], "x", "USER: 'a b'"),
        (["a:b"], "x", "USER: 'a:b'"),
        ([""], "x", "USER: ''"),
        (["a"], "", "a password has 1 to 1024 bytes"),
        (["a", "--verify"], "x", "FILE: which one?"),
        (["a", "nowhere/users"], "x", "nowhere"),
        (["a", "nowhere/users", "--verify"], "x", "nowhere/users"),
    ],
)
def test_passwd_says_what_is_wrong(arguments, password, reason):
    done = passwd(*arguments, password=password)
    assert done.returncode in (1, 2)
    assert reason in done.stderr and "Traceback" not in done.stderr


# ---- Users ----


@pytest.mark.parametrize("store", STORES)
def test_users_and_domains(tmp_path, users, store):
    """Mail for our domain is anybody's to bring, and for others only that of our users."""
    options = ["--users", users, "--allow-auth-in-clear", "--accept", "example.org"]
    with serving(tmp_path, *STORES[store], *options) as (server, port):
        with client_of(port) as client:
            assert set(client.esmtp_features["auth"].split()) == {
                "SCRAM-SHA-256",
                "PLAIN",
                "LOGIN",
            }
            client.mail("a@b.c")
            assert client.rcpt("you@other.org")[0] == 550
            assert client.rcpt("you@EXAMPLE.org")[0] == 250
            assert client.rcpt("postmaster")[0] == 250
            assert client.data(b"x\r\n")[0] == 250
            for password, code in (("wrong", 535), ("secret", 235)):
                text = base64.b64encode(f"\0bob\0{password}".encode()).decode()
                assert client.docmd("AUTH PLAIN " + text)[0] == code
            client.mail("a@b.c")
            assert client.rcpt("you@other.org")[0] == 250
            assert client.data(b"x\r\n")[0] == 250
        server.wait_for("^2: from <a@b.c> to you@other.org")


def test_auth_required(tmp_path, users):
    options = ["--users", users, "--allow-auth-in-clear", "--auth-required"]
    with serving(tmp_path, "--drop", *options) as (_, port), client_of(port) as client:
        assert client.mail("a@b.c")[0] == 530
        client.user, client.password = "bob", "secret"
        client.auth("LOGIN", client.auth_login)
        assert client.mail("a@b.c")[0] == 250


def test_no_password_in_clear(tmp_path, users):
    with serving(tmp_path, "--drop", "--users", users) as (_, port), client_of(port) as client:
        assert "auth" not in client.esmtp_features
        assert client.docmd("AUTH PLAIN AGJvYgBzZWNyZXQ=")[0] == 538


def test_handler_knows_who_has_logged_in(tmp_path, users):
    (tmp_path / "app.py").write_text(
        "class Handler:\n"
        "    def handle_DATA(self, server, session, envelope):\n"
        "        return f'250 {session.authenticated} {session.auth_data}'\n"
    )
    options = ["--handler", "app:Handler", "--users", users, "--allow-auth-in-clear"]
    with serving(tmp_path, *options) as (server, port), client_of(port) as client:
        assert client.docmd("AUTH PLAIN " + base64.b64encode(b"\0bob\0secret").decode())[0] == 235
        client.sendmail("a@b.c", ["d@e.f"], b"x\r\n")
        server.wait_for("^1: from <a@b.c> to d@e.f, 3 bytes: 250 True bob$")


@pytest.mark.parametrize("store", ["maildir", "drop"])
def test_lmtp(tmp_path, store):
    with serving(tmp_path, *STORES[store], "--lmtp") as (server, port):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            lines = sock.makefile("r", newline="\r\n")
            assert "LMTP" in lines.readline()
            for line, replies in (
                (b"HELO x\r\n", ["500"]),
                (b"LHLO x\r\n", None),
                (b"MAIL FROM:<>\r\n", ["250"]),
                (b"RCPT TO:<a@b.c>\r\n", ["250"]),
                (b"RCPT TO:<d@b.c>\r\n", ["250"]),
                (b"DATA\r\n", ["354"]),
                (b"x\r\n.\r\n", ["250", "250"]),
            ):
                sock.sendall(line)
                if replies is None:
                    while lines.readline()[3] != " ":
                        pass
                    continue
                assert [lines.readline()[:3] for _ in replies] == replies, line
        server.wait_for("^1: from <> to a@b.c, d@b.c")


@pytest.mark.parametrize("store", ["maildir", "drop"])
def test_limits(tmp_path, store):
    options = ["--max-recipients", 2, "--max-messages", 1, "--max-errors", 3]
    with serving(tmp_path, *STORES[store], *options) as (_, port):
        client = client_of(port)
        client.mail("a@b.c")
        assert [client.rcpt(f"{n}@b.c")[0] for n in range(3)] == [250, 250, 452]
        assert client.data(b"x\r\n")[0] == 250
        assert client.mail("a@b.c")[0] == 421
        client.close()
        client = client_of(port)
        assert [client.docmd("FOO")[0] for _ in range(3)] == [500, 500, 421]
        client.close()


@pytest.mark.parametrize(
    "options, reason",
    [
        ([], "one of the arguments --maildir --memory --mbox --deliver --relay --drop"),
        (["--drop", "--auth-required"], "--auth-required: nobody could log in"),
        (["--drop", "--users", "nowhere"], "nowhere: No such file or directory"),
        (["--drop", "--users", "bad"], "bad, line 2: "),
        (["--drop", "--require-tls"], "--require-tls: tcp://127.0.0.1:0 has no TLS"),
        (["--drop", "--max-recipients", "-1"], "max_recipients: a number from 0"),
        (["--drop", "--hostname", "no host"], "hostname"),
        (["--handler", "app"], "--handler: 'app' is not MODULE:CLASS"),
        (["--handler", "nomodule:X"], "there is no module 'nomodule'"),
        (["--maildir", "M", "--hostname", "no host"], "hostname"),
    ],
)
def test_says_what_is_wrong(tmp_path, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_text("# users\nbob:plain\n")
    done = subprocess.run(
        [sys.executable, "-m", "becket", "serve", "smtp", *options, "tcp://127.0.0.1:0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert reason in done.stderr and "Traceback" not in done.stderr
