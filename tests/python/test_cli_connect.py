"""`becket connect`, as users run it: with files, pipes and terminals, over every transport."""

from __future__ import annotations

import os
import pty
import random
import re
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command import COMMAND, PATIENCE, becket_command, serving
from conftest import Certificates
from interop.mail import ENGINES, see_to

DATA = random.Random(1).randbytes(5_000_000)


@contextmanager
def connecting(*arguments: str, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """`becket connect …` with pipes, unless they are replaced."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | settings
    with subprocess.Popen([*COMMAND, "connect", *arguments], **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server, f"tcp://127.0.0.1:{server.getsockname()[1]}"


def connect(*arguments: str, stdin: bytes = b"", status: int = 0) -> tuple[bytes, str]:
    """To its end: what it wrote, and what it said."""
    result = becket_command("connect", *arguments, stdin=stdin)
    text = result.stderr.decode()
    assert (result.returncode, "Traceback" in text) == (status, False), text
    return result.stdout, text


# ---- Over every transport ------------------------------------------------------------------------


def test_plain(short_path: str) -> None:
    with serving("echo", "tcp://127.0.0.1:0", f"unix:{short_path}") as (_, endpoints):
        for endpoint in endpoints:
            assert connect(endpoint, stdin=DATA) == (DATA, "")
            assert connect(endpoint) == (b"", "")


@pytest.mark.parametrize("engine", ENGINES)
def test_tls(tls: Certificates, engine: str, short_path: str) -> None:
    see_to(engine)
    files = f"?cert={tls.path('server.crt')}&key={tls.path('server.key')}"
    data = DATA[:300_000]
    with serving("echo", f"tls://127.0.0.1:0{files}", f"tls+unix:{short_path}{files}") as (_, ends):
        for endpoint in ends:
            name = "" if "unix" not in endpoint else "&name=localhost"
            options = f"?engine={engine}&ca={tls.path('ca.crt')}{name}"
            out, said = connect("--tls-info", endpoint + options, stdin=data)
            assert out == data
            assert re.search(r"^becket: TLSv1\.[23], \S+, \d+ bits$", said, re.MULTILINE), said
            assert "localhost" in said


def test_starttls_at_once(tls: Certificates, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "async def upgrade(reader, writer):\n"
        "    await writer.start_tls(None)\n"
        "    while data := await reader.readline():\n"
        "        writer.write(data.upper())\n"
    )
    endpoint = f"starttls://127.0.0.1:0?cert={tls.path('server.crt')}&key={tls.path('server.key')}"
    with serving("app:upgrade", endpoint, folder=tmp_path) as (_, (name,)):
        where = f"{name}?ca={tls.path('ca.crt')}"
        with connecting("--starttls", "now", "--tls-info", where) as process:
            out = exchange(process, b"hello\n", b"HELLO\n")
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
            assert out == b"HELLO\n"
            assert b"TLSv1." in process.stderr.read()


def exchange(process: subprocess.Popen[bytes], data: bytes, expected: bytes) -> bytes:
    """Send, and read as much as is expected."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(data)
    process.stdin.flush()
    return os.read(process.stdout.fileno(), len(expected)) if expected else b""


def test_starttls_of_smtp(tls: Certificates, tmp_path: Path) -> None:
    endpoint = f"starttls://127.0.0.1:0?cert={tls.path('server.crt')}&key={tls.path('server.key')}"
    with serving("smtp", "--maildir", tmp_path / "m", endpoint) as (_, (name,)):
        where = f"{name}?ca={tls.path('ca.crt')}"
        out, said = connect("--crlf", "--tls-info", "--starttls", "smtp", where, stdin=b"QUIT\n")
        assert out.startswith(b"221 ")
        assert "TLSv1." in said
        out, said = connect("--starttls", "imap", where, status=1)
        assert (out, "'* OK'" in said, "220 " in said) == (b"", True, True)


def test_a_descriptor() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = theirs.fileno()
        with connecting(f"fd:{number}", pass_fds=(number,)) as process:
            theirs.close()
            ours.sendall(b"hello")
            ours.shutdown(socket.SHUT_WR)
            out, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, said) == (0, b"hello", b"")


# ---- Ends ----------------------------------------------------------------------------------------


def test_half_close_lets_the_peer_go_on() -> None:
    with listening() as (server, endpoint), connecting(endpoint) as process:
        peer, _ = server.accept()
        with peer:
            process.stdin.write(b"question")
            process.stdin.close()
            process.stdin = None
            received = b""
            while data := peer.recv(100):
                received += data
            assert received == b"question"
            peer.sendall(b"answer")
            assert process.poll() is None
        out, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, said) == (0, b"answer", b"")


def test_the_peers_end_ends_it() -> None:
    with listening() as (server, endpoint), connecting(endpoint) as process:
        peer, _ = server.accept()
        peer.sendall(b"bye")
        peer.close()
        assert process.wait(PATIENCE) == 0
        assert process.stdout.read() == b"bye"


def test_a_reset_is_a_failure() -> None:
    with listening() as (server, endpoint), connecting(endpoint) as process:
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        assert process.wait(PATIENCE) == 1
        assert process.stderr.read().decode() == f"becket: {endpoint}: Connection reset by peer\n"


def test_what_cannot_be_done() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
    for where, hint in (
        (endpoint, "refused"),
        ("unix:/no/such/socket", "No such file"),
        ("tcp://host.invalid:1", "host name"),
    ):
        _, said = connect(where, status=1)
        assert said.startswith(f"becket: {where}: ") and hint in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "ENDPOINT"),
        (["tcp://127.0.0.1:99999"], "99999"),
        (["nonsense"], "scheme"),
        (["stdio:"], "stdio:"),
        (["--starttls", "now", "tls://127.0.0.1:1"], "starttls://"),
        (["--starttls", "gopher", "starttls://127.0.0.1:1"], "smtp"),
        (["--timeout", "0", "tcp://127.0.0.1:1"], "--timeout"),
        (["--timeout", "soon", "tcp://127.0.0.1:1"], "soon"),
        (["--notifier", "no", "tcp://127.0.0.1:1"], "epoll"),
    ],
)
def test_wrong_arguments(arguments: list[str], hint: str) -> None:
    _, said = connect(*arguments, status=2)
    assert hint in said


def test_timeouts() -> None:
    with listening() as (_, endpoint):
        _, said = connect("--timeout", "0.2", endpoint.replace("tcp", "tls"), status=1)
        assert "no connection in 0.2 s" in said
        _, said = connect("--timeout", "0.2", endpoint, status=1)
        assert "nothing came or went for 0.2 s" in said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number: int, status: int) -> None:
    with listening() as (server, endpoint), connecting(endpoint) as process:
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"x")
            assert process.stdout.read(1) == b"x"
            process.send_signal(number)
            assert process.wait(PATIENCE) == status
            assert peer.recv(1) == b""
        assert process.stderr.read() == b""


def test_an_output_that_nobody_reads_any_more() -> None:
    with listening() as (server, endpoint), connecting(endpoint) as process:
        peer, _ = server.accept()
        with peer:
            process.stdout.close()
            peer.sendall(b"x" * 1000)
            assert process.wait(PATIENCE) == 1
        assert b"standard input or output: Broken pipe" in process.stderr.read()


# ---- Bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 3, 100])
def test_line_ends(cut: int) -> None:
    """Wherever they were cut."""
    sent, expected = b"a\nb\r\nc\rd\n\n\r\n", b"a\r\nb\r\nc\rd\r\n\r\n\r\n"
    with listening() as (server, endpoint), connecting("--crlf", endpoint) as process:
        peer, _ = server.accept()
        with peer, peer.makefile("rb") as received:
            got = b""
            for at in range(0, len(sent), cut):
                part = sent[at : at + cut]
                exchange(process, part, b"")
                want = expected_of(sent[: at + cut])
                got += received.read(len(want) - len(got))
                assert got == want
            process.stdin.close()
            assert received.read() == b""
            assert got == expected


def expected_of(sent: bytes) -> bytes:
    return re.sub(rb"(?<!\r)\n", b"\r\n", sent)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(DATA)
    with serving("echo", "tcp://127.0.0.1:0") as (_, (endpoint,)):
        with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as sink:
            with connecting(endpoint, stdin=source, stdout=sink) as process:
                assert process.wait(PATIENCE) == 0
    assert (tmp_path / "out").read_bytes() == DATA


def test_whoever_is_slow_makes_the_other_wait() -> None:
    """Nobody reads: neither from the peer nor from standard output is more taken than buffers
    hold."""
    big = b"x" * 100_000_000
    with listening() as (server, endpoint), connecting(endpoint) as process:
        peer, _ = server.accept()
        with peer:
            for fd in (peer.fileno(), process.stdin.fileno()):
                os.set_blocking(fd, False)
            moved = 0
            for fd in (peer.fileno(), process.stdin.fileno()):
                moved += push(fd, big)
            assert moved < 40_000_000


def push(fd: int, data: bytes) -> int:
    """Write until nothing has been taken for half a second; returns how much was."""
    import select

    at = 0
    while select.select([], [fd], [], 0.5)[1]:
        at += os.write(fd, data[at : at + 1_000_000])
        assert at < len(data)
    return at


def test_a_terminal_is_as_it_was() -> None:
    ours, theirs = pty.openpty()
    with listening() as (server, endpoint):
        with connecting(endpoint, stdin=theirs, stdout=theirs) as process:
            peer, _ = server.accept()
            with peer:
                os.write(ours, b"typed\n")
                assert peer.recv(100) == b"typed\n"
                assert not os.get_blocking(theirs)
                os.write(ours, b"\x04")  # Ctrl-D
                assert peer.recv(100) == b""
            assert process.wait(PATIENCE) == 0
        assert os.get_blocking(theirs)
    os.close(ours)
    os.close(theirs)
