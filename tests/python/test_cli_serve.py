"""`becket serve` and the commands that list and measure, as users run them."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

import becket
from becket import _becket
from becket.commands import endpoints as grammar
from command import APP, COMMAND, PATIENCE, becket_command, port_of, serving
from conftest import Certificates

DRIVERS = ["loop", "loops:2", "forks:2"]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with a module `app`, and a distribution whose entry points name parts of it."""
    (tmp_path / "app.py").write_text(APP)
    info = tmp_path / "app-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: app\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[becket.protocols]\nshout = app:upper\n[becket.transports]\npigeon = app:Memory\n"
    )
    return tmp_path


def ask(port: int, line: bytes) -> bytes:
    """What a server says to a line, all of it."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(line)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as answer:
            return answer.read()


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> list[str]:
    """End a server; what it said since it listened."""
    process.send_signal(number)
    out, text = process.communicate(timeout=PATIENCE)
    assert out == ""
    return text.splitlines()


# ---- What can be served --------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("app:Echo", b"hello\n"),
        ("app:make", b"hello\n"),
        ("app:upper", b"HELLO\n"),
        ("shout", b"HELLO\n"),
        ("echo", b"hello\n"),
    ],
)
def test_each_kind_under_each_driver(app: Path, name: str, answer: bytes, driver: str) -> None:
    arguments = (name, "--driver", driver, "tcp://127.0.0.1:0")
    with serving(*arguments, folder=app) as (process, (endpoint,)):
        for _ in range(4):
            assert ask(port_of(endpoint), b"hello\n") == answer
        *_, last = end(process)
    assert process.returncode == 0
    assert last == "becket: ended; 4 connections served"


def test_several_endpoints_and_what_they_are_called(app: Path, short_path: str) -> None:
    arguments = ("app:Echo", "tcp://127.0.0.1:0", f"unix:{short_path}?mode=600", "tcp://[::1]:0")
    with serving(*arguments, folder=app) as (process, endpoints):
        assert [e.partition(":")[0] for e in endpoints] == ["tcp", "unix", "tcp"]
        assert os.stat(short_path).st_mode & 0o777 == 0o600
        end(process)
    assert not os.path.exists(short_path)


def test_the_standard_streams(app: Path) -> None:
    result = becket_command("serve", "app:upper", "stdio:", stdin=b"hello\n", folder=app)
    assert (result.returncode, result.stdout) == (0, b"HELLO\n")
    assert b"endpoint=stdio:" in result.stderr
    assert b"ended; 1 connection served" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "hints"),
    [
        (["app:number"], ["5", "asyncio.Protocol", "coroutine function", "socketserver"]),
        (["app:nothing"], ["app:nothing", "attribute 'nothing'"]),
        (["nowhere:Echo"], ["nowhere:Echo", "no module 'nowhere'"]),
        (["app.nowhere:Echo"], ["no module 'app.nowhere'"]),
        (["nonsense"], ["smtp", "echo", "shout"]),
        (["app:Echo", "--driver", "fork:2"], ["driver", "forks:N"]),
        (["app:Echo", "--driver", "forks:0"], ["driver", "1 to 10000"]),
        (["app:Echo", "--drain", "-1"], ["drain", "negative"]),
        (["app:Echo", "--drain", "soon"], ["--drain", "soon"]),
        (["app:Echo", "--threads", "0"], ["max_threads"]),
        (["app:Echo", "--max-connections", "-1"], ["max_connections"]),
        (["app:Echo", "--max-connections", "many"], ["--max-connections", "many"]),
        (["app:Echo", "--access-log", "xml"], ["--access-log", "json"]),
        (["app:Echo", "--log-level", "loud"], ["--log-level", "warning"]),
        (["app:Echo", "--set", "colour"], ["--set", "'colour'", "NAME=VALUE"]),
        (["app:Echo", "--set", "colour=red"], ["colour"]),
        (["echo", "--set", "colour=red"], ["echo", "colour"]),
        (["smtp", "--maildir", "m", "--set", "colour=red"], ["smtp", "colour"]),
        (["smtp", "--maildir", "m", "--driver", "threads:2"], ["smtp", "forks:N"]),
        (["app:Echo", "--colour"], ["--colour"]),
    ],
)
def test_wrong_arguments(app: Path, arguments: list[str], hints: list[str]) -> None:
    result = becket_command("serve", *arguments, "tcp://127.0.0.1:0", folder=app)
    text = result.stderr.decode()
    assert (result.returncode, "Traceback" in text) == (2, False), text
    for hint in hints:
        assert hint in text


def test_a_module_that_is_broken_shows_where(app: Path) -> None:
    (app / "bad.py").write_text("import no_such_module\n")
    result = becket_command("serve", "bad:Echo", "tcp://127.0.0.1:0", folder=app)
    assert result.returncode == 1
    assert b'bad.py", line 1' in result.stderr


def test_settings(tmp_path: Path) -> None:
    """--set is for what has no option of its own, but gives the same."""
    arguments = ("smtp", "--maildir", tmp_path / "m", "--set", "hostname=h", "tcp://127.0.0.1:0")
    result = becket_command("serve", *arguments)
    assert (result.returncode, b"hostname" in result.stderr) == (2, True)  # given twice


# ---- Endpoints that cannot be had ----------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_port_that_is_taken_is_named(driver: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        result = becket_command("serve", "echo", "--driver", driver, "tcp://127.0.0.1:0", endpoint)
    assert result.returncode == 1
    text = result.stderr.decode()
    assert re.search(rf"^becket: {re.escape(endpoint)}: .*in use$", text, re.MULTILINE), text
    assert "Traceback" not in text


def test_certificates_that_cannot_be_read(tmp_path: Path, tls: Certificates) -> None:
    (tmp_path / "text").write_text("no key")
    for key, status, hint in (
        (tmp_path / "missing", 1, "No such file"),
        (tmp_path, 1, "directory"),
        (tmp_path / "text", 2, "key"),
        (tls.path("ca.crt"), 2, "key"),
    ):
        endpoint = f"tls://127.0.0.1:0?cert={tls.path('server.crt')}&key={key}"
        result = becket_command("serve", "echo", endpoint)
        text = result.stderr.decode()
        assert (result.returncode, "Traceback" in text) == (status, False), text
        assert hint in text


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    endpoint = f"unix:/tmp/{'x' * 200}"
    result = becket_command("serve", "echo", endpoint)
    said, shown, mark = result.stderr.decode().splitlines()
    assert result.returncode == 2
    assert "too long" in said
    assert (shown, mark) == (f"  {endpoint}", "       ^")


# ---- Signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_under_way_may_end(app: Path, number: int, driver: str) -> None:
    arguments = ("app:upper", "--driver", driver, "tcp://127.0.0.1:0")
    with serving(*arguments, folder=app) as (process, (endpoint,)):
        with socket.create_connection(("127.0.0.1", port_of(endpoint)), PATIENCE) as sock:
            sock.sendall(b"one\n")
            assert sock.recv(100) == b"ONE\n"
            process.send_signal(number)
            sock.sendall(b"two\n")
            assert sock.recv(100) == b"TWO\n"
            assert process.poll() is None
        _, text = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert text.splitlines()[-1] == "becket: ended; 1 connection served"


@pytest.mark.parametrize("drain", ["0.1", "100"])
def test_what_does_not_end_is_cut(app: Path, drain: str) -> None:
    """When its time is over, or by a second signal."""
    arguments = ("app:upper", "--drain", drain, "tcp://127.0.0.1:0")
    with serving(*arguments, folder=app) as (process, (endpoint,)):
        with socket.create_connection(("127.0.0.1", port_of(endpoint)), PATIENCE) as sock:
            sock.sendall(b"one\n")
            assert sock.recv(100) == b"ONE\n"
            process.send_signal(signal.SIGINT)
            if drain == "100":
                while True:  # until it accepts no more: the first signal has been taken
                    try:
                        socket.create_connection(("127.0.0.1", port_of(endpoint))).close()
                    except OSError:
                        break
                process.send_signal(signal.SIGINT)
            _, text = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "becket: 1 connection was cut" in text


def test_a_drain_of_nothing_cuts_at_once(app: Path) -> None:
    arguments = ("app:upper", "--drain", "0", "tcp://127.0.0.1:0")
    with serving(*arguments, folder=app) as (process, (endpoint,)):
        with socket.create_connection(("127.0.0.1", port_of(endpoint)), PATIENCE) as sock:
            sock.sendall(b"one\n")
            assert sock.recv(100) == b"ONE\n"
            said = end(process)
    assert process.returncode == 0
    assert "cut" not in "".join(said)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_hangup_reads_certificates_again(tmp_path: Path, tls: Certificates, driver: str) -> None:
    (tmp_path / "pem").write_text(
        Path(tls.path("server.crt")).read_text() + Path(tls.path("server.key")).read_text()
    )
    endpoint = f"tls://127.0.0.1:0?cert={tmp_path}/pem&reload=0"
    with serving("echo", "--driver", driver, endpoint) as (process, (endpoint,)):
        address = ("127.0.0.1", port_of(endpoint))
        first = ssl.get_server_certificate(address)
        (tmp_path / "pem").write_text(
            Path(tls.path("other.crt")).read_text() + Path(tls.path("other.key")).read_text()
        )
        process.send_signal(signal.SIGHUP)
        while ssl.get_server_certificate(address) == first:  # it is read in the background
            pass
        end(process)
    assert process.returncode == 0


# ---- What is told --------------------------------------------------------------------------------


def test_the_access_log(app: Path) -> None:
    for arguments, expected in (
        ([], r"time=\S+ endpoint=\S+ peer=\S+ seconds=\S+ in=6 out=6 end=ok"),
        (["--access-log", "json"], r'\{"time": .*"in": 6, "out": 6, "end": "ok"\}'),
        (["--access-log", "off"], None),
        (["--log-level", "warning"], None),
    ):
        with serving("app:Echo", *arguments, "tcp://127.0.0.1:0", folder=app) as (process, where):
            ask(port_of(where[0]), b"hello\n")
            *said, last = end(process)
        assert last.startswith("becket: ended")
        if expected is None:
            assert said == []
        else:
            assert len(said) == 1 and re.fullmatch(expected, said[0]), said


def test_a_protocol_that_fails_is_told_of(app: Path) -> None:
    with serving("app:broken", "tcp://127.0.0.1:0", folder=app) as (process, (endpoint,)):
        assert ask(port_of(endpoint), b"hello\n") == b""
        said = end(process)
    assert "becket: broken failed" in said
    assert "RuntimeError: by design" in said


def test_limits() -> None:
    arguments = ("echo", "--max-connections", "1", "--first-byte", "1", "tcp://127.0.0.1:0")
    with serving(*arguments) as (process, (endpoint,)):
        address = ("127.0.0.1", port_of(endpoint))
        with socket.create_connection(address, PATIENCE) as one:
            one.sendall(b"x")
            assert one.recv(1) == b"x"
            with socket.create_connection(address, PATIENCE) as two:
                try:
                    assert two.recv(1) == b""
                except ConnectionResetError:
                    pass
        said = end(process)
    assert any("end=ok" in line for line in said)
    assert len(said) == 3


# ---- smtp ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_mail_is_counted_under_each_driver(tmp_path: Path, driver: str) -> None:
    arguments = ("--maildir", tmp_path / "m", "--driver", driver, "tcp://127.0.0.1:0")
    with serving("smtp", *arguments) as (process, (endpoint,)):
        for _ in range(6):
            with smtplib.SMTP("127.0.0.1", port_of(endpoint), timeout=PATIENCE) as client:
                client.sendmail("me@example.org", "you@example.org", "Subject: hi\n\nhello")
        *said, last = end(process)
    assert process.returncode == 0
    assert last == "becket: ended; 6 messages stored"
    numbers = [int(line.partition(":")[0]) for line in said if ": from <" in line]
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


# ---- Lists ---------------------------------------------------------------------------------------


def listed(name: str, folder: Path | None = None) -> list[dict[str, object]]:
    result = becket_command(name, "--json", folder=folder)
    assert (result.returncode, result.stderr) == (0, b"")
    found = json.loads(result.stdout)
    assert isinstance(found, list)
    return found


def test_endpoints_are_what_the_core_says(app: Path) -> None:
    """The schemes, and the options of each, by the core's own complaints."""

    async def complaint(endpoint: str) -> str:
        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError) as caught:
            _becket.Listener(loop, endpoint, asyncio.Protocol)  # type: ignore[arg-type]
        return str(caught.value).splitlines()[0]

    schemes = becket.run(complaint("nonsense:")).partition("there are ")[2]
    assert schemes.split(", ") == list(grammar.SCHEMES)
    for name, scheme in grammar.SCHEMES.items():
        known = becket.run(complaint(f"{name}:?nonsense=1")).partition(" it has ")[2]
        assert set(known.split(", ")) - {""} == set(scheme.options)
    items = listed("endpoints", app)
    assert [item["scheme"] for item in items] == [*grammar.SCHEMES, "pigeon"]
    assert items[-1] == {"scheme": "pigeon", "entry_point": "app:Memory"}
    text = becket_command("endpoints", folder=app).stdout.decode()
    for word in ("tcp://HOST:PORT", "backlog", "pigeon:", "entry point of becket.transports"):
        assert word in text


def test_engines() -> None:
    items = {item["engine"]: item for item in listed("engines")}
    assert items["ssl"]["version"] == ssl.OPENSSL_VERSION
    assert {"openssl", "gnutls", "mbedtls", "pyopenssl", "tlslite"} <= set(items)
    assert ssl.OPENSSL_VERSION in becket_command("engines").stdout.decode()


def test_an_engine_that_is_missing_says_how_to_get_it() -> None:
    program = (
        "import sys; sys.modules['tlslite'] = None; sys.modules['tlslite.api'] = None\n"
        "from becket.cli import main; sys.exit(main(['engines']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=PATIENCE
    )
    assert re.search(rb"^tlslite +not here: .*pip install becket\[tlslite\]", result.stdout, re.M)


def test_notifiers() -> None:
    items = listed("notifiers")
    assert [item["notifier"] for item in items] == list(becket.notifiers)
    assert [item["default"] for item in items].count(True) == 1
    last = becket.notifiers[-1]
    result = becket_command("notifiers", environment={"BECKET_NOTIFIER": last})
    assert re.search(rf"^{last} +the default$", result.stdout.decode(), re.MULTILINE)
    result = becket_command("notifiers", environment={"BECKET_NOTIFIER": "nonsense"})
    assert (result.returncode, b"BECKET_NOTIFIER" in result.stderr) == (2, True)


def test_protocols(app: Path) -> None:
    items = {item["protocol"]: item for item in listed("protocols", app)}
    assert {"echo", "smtp", "shout"} <= set(items)
    assert items["shout"]["entry_point"] == "app:upper"
    assert b"becket.protocols" in becket_command("protocols", folder=app).stdout


def test_bold_only_on_a_terminal_that_wants_it() -> None:
    for environment, bold in (({}, True), ({"NO_COLOR": "1"}, False)):
        ours, theirs = pty.openpty()
        base = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        with subprocess.Popen(
            [*COMMAND, "notifiers"], stdout=theirs, env=base | environment
        ) as process:
            os.close(theirs)
            text = b""
            try:
                while data := os.read(ours, 1000):
                    text += data
            except OSError:  # the end, on Linux
                pass
            os.close(ours)
        assert process.returncode == 0
        assert (b"\033[1m" in text) == bold
    assert b"\033" not in becket_command("notifiers").stdout


# ---- The rest ------------------------------------------------------------------------------------


def test_help_lists_what_there_is(app: Path) -> None:
    result = becket_command("serve", "--help", folder=app)
    assert result.returncode == 0
    text = result.stdout.decode()
    for word in ("smtp", "echo", "shout", "module:object", "tcp://HOST:PORT", "forks:N", "unix:"):
        assert word in text
    assert b"--max-per-address" in becket_command("serve", "app:Echo", "--help").stdout
    text = becket_command("--help").stdout.decode()
    assert "exit status" in text


def test_version_with_what_is_used() -> None:
    for arguments in (["--version", "-v"], ["-v", "--version"]):
        lines = becket_command(*arguments).stdout.decode().splitlines()
        assert lines[0] == f"becket {becket.__version__}"
        assert lines[1].startswith(f"Python {sys.version.split()[0]}")
        assert lines[2] == ssl.OPENSSL_VERSION
        assert lines[3].removeprefix("notifier ") in becket.notifiers


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str) -> None:
    result = becket_command("completion", shell)
    assert result.returncode == 0
    assert b"notifiers" in result.stdout
    if shell != "tcsh":  # whose completion does not go so deep
        assert b"--max-per-address" in result.stdout


def test_bash_takes_the_completion() -> None:
    script = becket_command("completion", "bash").stdout
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")


def test_completion_without_its_library() -> None:
    program = (
        "import sys; sys.modules['shtab'] = None\n"
        "from becket.cli import main; sys.exit(main(['completion', 'bash']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, timeout=PATIENCE
    )
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"pip install becket[completion]" in result.stderr


def test_bench_of_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "run.py").write_text("import sys; print(sys.argv[1:]); sys.exit(3)")
    result = becket_command("bench", "--quick", "tcp", folder=tmp_path)
    assert (result.returncode, result.stdout) == (3, b"['--quick', 'tcp']\n")


def test_bench_without_one(tmp_path: Path) -> None:
    result = becket_command("bench", folder=tmp_path)
    assert result.returncode == 0
    lines = result.stdout.decode().splitlines()
    for name, line in zip(("becket", "asyncio"), lines, strict=False):
        assert re.fullmatch(rf"{name} +[\d,]+ messages/s, +[\d.]+ µs of CPU each", line), lines
    assert len(lines) == 3
    result = becket_command("bench", "--quick", folder=tmp_path)
    assert (result.returncode, b"bench/run.py" in result.stderr) == (2, True)
