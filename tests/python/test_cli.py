"""The command line: what it says, its exit statuses, and how signals end it."""

from __future__ import annotations

import os
import signal
import smtplib
import socket
import subprocess
from pathlib import Path

import pytest

import becket
from becket import cli, served
from becket.commands import smtp
from command import COMMAND, becket_command, port_of, serving


def test_version_and_help() -> None:
    result = becket_command("--version")
    assert (result.returncode, result.stdout.decode()) == (0, f"becket {becket.__version__}\n")
    result = becket_command("--help")
    assert result.returncode == 0
    assert b"serve" in result.stdout
    result = becket_command("serve", "smtp", "--help")
    assert result.returncode == 0
    for word in (b"--maildir", b"--hostname", b"--max-message", b"--notifier", b"tcp://", b"unix:"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "COMMAND"),
        (["nonsense"], "serve"),
        (["serve"], "PROTOCOL"),
        (["serve", "pop"], "smtp"),
        (["serve", "smtp"], "--maildir"),
        (["serve", "smtp", "--maildir", "DIR"], "ENDPOINT"),
        (["serve", "smtp", "tcp://127.0.0.1:0"], "--maildir"),
        (
            ["serve", "smtp", "--maildir", "DIR", "--notifier", "no", "tcp://127.0.0.1:0"],
            becket.notifiers[0],
        ),
        (
            ["serve", "smtp", "--maildir", "DIR", "--max-message", "much", "tcp://127.0.0.1:0"],
            "much",
        ),
        (
            ["serve", "smtp", "--maildir", "DIR", "--max-message", "-1", "tcp://127.0.0.1:0"],
            "max_message",
        ),
        (
            ["serve", "smtp", "--maildir", "DIR", "--hostname", "no host", "tcp://127.0.0.1:0"],
            "'no host'",
        ),
        (
            ["serve", "smtp", "--maildir", "DIR", "--hostname", "a\nb", "tcp://127.0.0.1:0"],
            "host name",
        ),
        (["serve", "smtp", "--maildir", "DIR", "nonsense"], "tcp://"),
        (["serve", "smtp", "--maildir", "DIR", "gopher://127.0.0.1"], "gopher"),
        (["serve", "smtp", "--maildir", "DIR", "tcp://127.0.0.1:99999"], "99999"),
        (["serve", "smtp", "--maildir", "DIR", "tcp://127.0.0.1"], "port"),
        (["serve", "smtp", "--maildir", "DIR", "tcp://127.0.0.1:0?color=red"], "backlog"),
        (["serve", "smtp", "--maildir", "DIR", "tcp://127.0.0.1:0?backlog=many"], "backlog"),
        (["serve", "smtp", "--maildir", "DIR", "unix:"], "unix"),
        (["serve", "smtp", "--maildir", "DIR", "fd:first"], "fd"),
        (["serve", "smtp", "--maildir", "DIR", ""], "tcp://"),
    ],
)
def test_wrong_arguments(arguments: list[str], hint: str, tmp_path: Path) -> None:
    result = becket_command(*[a.replace("DIR", str(tmp_path / "mail")) for a in arguments])
    text = result.stderr.decode()
    assert result.returncode == 2
    assert hint in text
    assert "Traceback" not in text


def test_an_endpoint_is_shown_with_a_mark_where_it_is_wrong(tmp_path: Path) -> None:
    for endpoint, wrong in (
        ("tcp://127.0.0.1:99999", "99999"),
        ("tcp://127.0.0.1:0?color=red", "color"),
        ("unix:/tmp/mäil?color=red", "color"),
    ):
        result = becket_command("serve", "smtp", "--maildir", tmp_path / "m", endpoint)
        *_, shown, mark = result.stderr.decode().splitlines()
        assert shown == f"  {endpoint}"
        assert mark.strip() == "^"
        assert mark.index("^") == shown.index(wrong)


def test_what_cannot_be_done(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, hint in (
            ([tmp_path / "file", "tcp://127.0.0.1:0"], str(tmp_path / "file")),
            ([tmp_path / "no" / "such" / "folder", "tcp://127.0.0.1:0"], "No such file"),
            ([tmp_path / "m", f"tcp://127.0.0.1:{taken.getsockname()[1]}"], "in use"),
            ([tmp_path / "m", f"unix:{tmp_path}/no/such/socket"], "No such file"),
            ([tmp_path / "m", "fd:250"], "250"),
            ([tmp_path / "m", "tcp://host.invalid:0"], "host.invalid"),
        ):
            result = becket_command("serve", "smtp", "--maildir", *arguments)
            text = result.stderr.decode()
            assert (result.returncode, "Traceback" in text) == (1, False), text
            assert hint in text


def test_a_wrong_notifier_in_the_environment(tmp_path: Path) -> None:
    result = becket_command(
        "serve",
        "smtp",
        "--maildir",
        tmp_path / "m",
        "tcp://127.0.0.1:0",
        environment={"BECKET_NOTIFIER": "nonsense"},
    )
    assert result.returncode == 2
    assert b"BECKET_NOTIFIER" in result.stderr
    assert becket.notifiers[0].encode() in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    with serving("smtp", "--maildir", tmp_path / "m", "tcp://127.0.0.1:0") as (
        process,
        (endpoint,),
    ):
        with socket.create_connection(("127.0.0.1", port_of(endpoint))) as idle:
            assert idle.recv(4) == b"220 "
            process.send_signal(number)
            out, text = process.communicate(timeout=100)
    assert process.returncode == 0
    assert out == ""
    assert text.splitlines()[-1] == "becket: ended; 0 messages stored"
    assert "Traceback" not in text


@pytest.mark.parametrize("notifier", becket.notifiers)
def test_it_receives_mail_at_several_endpoints(tmp_path: Path, notifier: str) -> None:
    with serving(
        "smtp",
        "--maildir",
        tmp_path / "m",
        "--hostname",
        "mail.example.org",
        "--notifier",
        notifier,
        "--max-message",
        "100000",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:0?backlog=5",
    ) as (process, endpoints):
        assert len({port_of(endpoint) for endpoint in endpoints}) == 2
        for endpoint in endpoints:
            with smtplib.SMTP("127.0.0.1", port_of(endpoint), timeout=100) as client:
                assert client.ehlo()[1].startswith(b"mail.example.org")
                assert client.esmtp_features["size"] == "100000"
                client.sendmail("me@example.org", "you@example.org", "Subject: hi\n\nhello")
                with pytest.raises(smtplib.SMTPException):
                    client.sendmail("me@example.org", "you@example.org", "x" * 100_001)
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=100)
    assert text.splitlines()[-1] == "becket: ended; 2 messages stored"
    assert text.count("from <me@example.org> to you@example.org") == 2
    stored = list((tmp_path / "m" / "new").iterdir())
    assert len(stored) == 2
    for message in stored:
        assert "Subject: hi" in message.read_text()


def test_a_unix_endpoint_and_its_permissions(tmp_path: Path, short_path: str) -> None:
    with serving("smtp", "--maildir", tmp_path / "m", f"unix:{short_path}?mode=600") as (
        process,
        _,
    ):
        assert os.stat(short_path).st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(short_path)
            assert client.recv(4) == b"220 "
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=100)
    assert process.returncode == 0
    assert not os.path.exists(short_path)


def test_a_session_on_the_standard_streams(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "serve", "smtp", "--maildir", tmp_path / "m", "stdio:"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"QUIT\r\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"220 ")
        assert process.stdout.readline().startswith(b"221 ")
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=100)
    assert process.returncode == 0
    assert b"Traceback" not in text


def test_main_can_be_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "smtp", "--maildir", str(tmp_path / "m"), "nonsense"]) == 2
    assert "scheme" in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tcp://0.0.0.0:25", "swaks --server 127.0.0.1:25"),
        ("tcp://[::]:25", "swaks --server [::1]:25"),
        ("tcp://[::1]:25", "smtplib.SMTP('::1', 25)"),
        ("unix:/run/mail", "swaks --socket /run/mail"),
    ],
)
def test_it_tells_how_to_send(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    smtp.tell_how_to_send(name)
    assert hint in capsys.readouterr().err


def test_a_host_whose_name_is_no_name_for_smtp(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (
        ("mail.example.org", "mail.example.org"),
        ("", "localhost"),
        ("büro", "localhost"),
        ("under_score", "localhost"),
    ):
        monkeypatch.setattr(socket, "gethostname", lambda n=name: n)
        assert served.own_hostname() == expected
