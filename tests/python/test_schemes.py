"""Endpoints beyond TCP, as seen from outside: sockets and signs of life under a supervisor,
commands, abstract UNIX sockets and meeting places in memory."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from urllib.parse import quote

import pytest

import becket
from becket import _becket
from support import no_more_than, receive, run, until

# What systemd does between fork and exec: its variables name the process that is to come.
LAUNCHER = """\
import os, sys
socket, arguments = int(sys.argv[1]), sys.argv[2:]
if socket != 3:
    os.dup2(socket, 3)
    os.close(socket)
os.set_inheritable(3, True)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "becket", "serve", "smtp", *arguments])
"""
MESSAGE = "Subject: hello\r\n\r\nHello.\r\n"


def becket_errors(*arguments: str | Path, **environment: str) -> str:
    """What `becket serve smtp` says when it cannot serve."""
    result = subprocess.run(
        [sys.executable, "-m", "becket", "serve", "smtp", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode == 1
    return result.stderr


@contextmanager
def activated(
    given: socket.socket, endpoint: str, maildir: Path, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """`becket serve smtp` with a socket that it did not open."""
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(given.fileno()), endpoint, "--maildir", maildir],
        env=os.environ | {"LISTEN_FDS": "1"} | environment,
        pass_fds=[given.fileno()],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which a supervisor is told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield sock


def next_state(supervisor: socket.socket) -> str:
    """What it is told next, but for signs of life."""
    while (state := supervisor.recv(1000).decode()) == "WATCHDOG=1":
        pass
    return state


# ---- systemd: ------------------------------------------------------------------------------------


def test_a_service_of_systemd(supervisor: socket.socket, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        early = socket.create_connection(given.getsockname())  # it starts because somebody comes
        with activated(
            given,
            "systemd:smtp",
            tmp_path / "mail",
            LISTEN_FDNAMES="smtp",
            NOTIFY_SOCKET=supervisor.getsockname(),
            WATCHDOG_USEC="200000",
        ) as process:
            assert next_state(supervisor) == "READY=1"
            for _ in range(3):
                assert supervisor.recv(1000) == b"WATCHDOG=1"
            with early:
                assert early.recv(1000).startswith(b"220 ")
            with smtplib.SMTP(*given.getsockname()) as client:
                client.sendmail("a@example.org", "b@example.org", MESSAGE)
            assert len(list((tmp_path / "mail" / "new").iterdir())) == 1
            process.send_signal(signal.SIGHUP)
            reloading = next_state(supervisor)
            assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert reloading.rpartition("=")[2].isdigit()
            assert next_state(supervisor) == "READY=1"
            process.send_signal(signal.SIGTERM)
            assert next_state(supervisor) == "STOPPING=1"
            assert process.wait(20) == 0
            assert process.stderr is not None
            port = given.getsockname()[1]
            assert f"becket: SMTP at tcp://127.0.0.1:{port}\n" in process.stderr.read()


def test_a_connection_of_systemd(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    with (
        near,
        activated(far, "systemd:", tmp_path / "mail", LISTEN_FDNAMES="connection") as process,
    ):
        far.close()
        near.settimeout(20)
        assert near.recv(1000).startswith(b"220 ")
        near.sendall(b"QUIT\r\n")
        assert near.recv(1000).startswith(b"221 ")
        assert near.recv(1000) == b""
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_no_socket_of_that_name(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as given,
        activated(given, "systemd:smtp", tmp_path / "mail", LISTEN_FDNAMES="http") as process,
    ):
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert "there is no socket smtp; there are http" in process.stderr.read()


def test_not_started_by_systemd(tmp_path: Path) -> None:
    said = becket_errors("--maildir", tmp_path / "mail", "systemd:smtp")
    assert "no supervisor has passed sockets: LISTEN_PID is not in the environment" in said
    said = becket_errors(
        "--maildir", tmp_path / "mail", "systemd:smtp", LISTEN_PID="1", LISTEN_FDS="1"
    )
    assert "the sockets are another process's: LISTEN_PID is 1, and we are" in said


def test_a_supervisor_that_cannot_be_told(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as given,
        activated(
            given, "systemd:", tmp_path / "mail", NOTIFY_SOCKET="/nowhere", WATCHDOG_USEC="soon"
        ) as process,
    ):
        with smtplib.SMTP(*given.getsockname()) as client:  # it serves all the same
            client.noop()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        said = process.stderr.read()
        assert "becket: there is no watchdog: [Errno 22]" in said
        assert said.count("becket: the supervisor cannot be told: [Errno 2]") == 2


def test_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert _becket._supervisor_tell("READY=1") is False
    with pytest.raises(TypeError, match="state: a str is needed, not <class 'bytes'>"):
        _becket._supervisor_tell(b"READY=1")  # type: ignore[arg-type]
    for wrong in ("", "READY=1\0"):
        with pytest.raises(ValueError, match="is not like 'READY=1'"):
            _becket._supervisor_tell(wrong)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # an abstract name that the kernel thinks up
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + sock.getsockname()[1:].decode())
        assert _becket._supervisor_tell("STATUS=well, thanks, größer") is True
        assert sock.recv(100).decode() == "STATUS=well, thanks, größer"
    with pytest.raises(ConnectionRefusedError):
        _becket._supervisor_tell("READY=1")


def test_watching(
    becket_loop: becket.EventLoop,
    supervisor: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", supervisor.getsockname())
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert becket_loop._supervisor_watch() is False
    monkeypatch.setenv("WATCHDOG_USEC", "-5")
    with pytest.raises(OSError, match="Invalid argument"):
        becket_loop._supervisor_watch()
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    assert becket_loop._supervisor_watch() is True

    async def main() -> None:
        for _ in range(3):
            assert await receive(becket_loop, supervisor, 10) == b"WATCHDOG=1"

    run(becket_loop, main())
    becket_loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        becket_loop._supervisor_watch()


# ---- process: ------------------------------------------------------------------------------------


def has_children() -> bool:
    """Whether a child of ours runs, or is a zombie."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def mail_from(loop: becket.EventLoop, command: str, maildir: Path) -> _becket.Smtp:
    """Serve SMTP to a command."""
    smtp = _becket.Smtp(loop, maildir, "localhost")
    endpoint = f"process:{quote(command)}"
    name = smtp.listen(endpoint)
    assert name.startswith("process:")
    return smtp


def gone(loop: becket.EventLoop) -> None:
    """Wait until there is no child left."""
    run(loop, no_more_than(until(lambda: not has_children())))


def test_a_command_sends_mail(becket_loop: becket.EventLoop, tmp_path: Path) -> None:
    command = r"""
        read greeting; printf 'HELO there\r\n'
        read hello; printf 'MAIL FROM:<a@example.org>\r\n'
        read ok; printf 'RCPT TO:<b@example.org>\r\n'
        read ok; printf 'DATA\r\n'
        read ok; printf 'Subject: 100%% sure?\r\n\r\nHello.\r\n.\r\n'
        read ok; echo "$ok" > said; printf 'QUIT\r\n'; read bye
    """.strip().replace("said", str(tmp_path / "said"))
    smtp = mail_from(becket_loop, command, tmp_path / "mail")
    gone(becket_loop)
    (stored,) = (tmp_path / "mail" / "new").iterdir()
    assert b"Subject: 100% sure?" in stored.read_bytes()
    assert (tmp_path / "said").read_text().startswith("250 ")
    smtp.close()


@pytest.mark.parametrize(
    "command",
    [
        "cat",  # says only what it is told, which is no command
        "false",
        "exec >&-; sleep 1000",
        "exec <&- >&-; sleep 1000",
        "sleep 1000 >&- & exec >&-; wait",
        "no-such-command 2>/dev/null",
        "kill -9 $$",
    ],
)
def test_commands_end(becket_loop: becket.EventLoop, command: str, tmp_path: Path) -> None:
    smtp = mail_from(becket_loop, command, tmp_path / "mail")
    gone(becket_loop)
    smtp.close()


def test_the_loop_takes_its_commands_with_it(becket_loop: becket.EventLoop, tmp_path: Path) -> None:
    mark = tmp_path / "up"
    smtp = mail_from(
        becket_loop, f"trap '' TERM; touch {mark}; while :; do sleep 0.1; done", tmp_path / "mail"
    )
    run(becket_loop, no_more_than(until(mark.exists)))
    assert has_children()
    smtp.close()
    becket_loop.close()
    assert not has_children()


def test_a_command_that_takes_no_hint_is_killed(no_leaks: None, tmp_path: Path) -> None:
    command = "trap '' TERM; exec >&-; while :; do sleep 0.1; done"
    with asyncio.Runner(loop_factory=becket.EventLoop) as runner:
        loop = cast(becket.EventLoop, runner.get_loop())
        smtp = mail_from(loop, command, tmp_path / "mail")
        started = loop.time()
        gone(loop)
        assert loop.time() - started >= 5
        smtp.close()


# ---- unix:@ and memory: --------------------------------------------------------------------------


def test_an_abstract_socket(becket_loop: becket.EventLoop, tmp_path: Path) -> None:
    endpoint = f"unix:@becket-{os.getpid()}"
    smtp = _becket.Smtp(becket_loop, tmp_path / "mail", "localhost")
    assert smtp.listen(endpoint) == endpoint
    with pytest.raises(OSError, match="another server has the name @becket-") as raised:
        smtp.listen(endpoint)
    assert raised.value.errno == errno.EADDRINUSE
    with pytest.raises(ValueError, match="mode is for a socket that has a file"):
        smtp.listen(endpoint + "?mode=600")

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect("\0" + endpoint.removeprefix("unix:@"))
            assert (await receive(becket_loop, sock, 4)).startswith(b"220 ")

    run(becket_loop, main())
    smtp.close()


def test_names_in_memory_belong_to_the_process(
    becket_loop: becket.EventLoop, tmp_path: Path
) -> None:
    smtp = _becket.Smtp(becket_loop, tmp_path / "mail", "localhost")
    assert smtp.listen("memory:mail") == "memory:mail"
    with asyncio.Runner(loop_factory=becket.EventLoop) as runner:
        other = _becket.Smtp(runner.get_loop(), tmp_path / "mail", "localhost")
        with pytest.raises(OSError, match="another listener of this process") as raised:
            other.listen("memory:mail")
        assert raised.value.errno == errno.EADDRINUSE
        smtp.close()
        assert other.listen("memory:mail") == "memory:mail"
        other.close()
