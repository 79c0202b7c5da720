"""Servers when something goes wrong: handlers that raise whatever can be raised, descriptors that
run out, endpoints that cannot be had, standard output that takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import pwd
import resource
import signal
import socket
import socketserver
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import becket
from conftest import Certificates
from interop.processes import HERE, Server

PATIENCE = 20
DRIVERS = ["loop", "loops:2", "threads:2", "forks:2"]
each_driver = pytest.mark.parametrize("driver", DRIVERS)
APP = [sys.executable, str(HERE / "serve_app.py")]


def until(true: Callable[[], object]) -> None:
    """Wait for something that will happen."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def connect(server: becket.Server) -> socket.socket:
    host, port = server.endpoints[0].removeprefix("tcp://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), PATIENCE)


def ask(sock: socket.socket, line: bytes) -> bytes:
    """The answer; nothing, when the connection ends."""
    with contextlib.suppress(ConnectionError):
        sock.sendall(line + b"\n")
        with sock.makefile("rb") as file:
            return file.readline()
    return b""


# ---- Handlers that raise -------------------------------------------------------------------------


@pytest.fixture
def forgetful(no_leaks: None) -> Iterator[None]:
    """As no_leaks; pytest keeps what is logged, and that refers to what it is about."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Odd(BaseException):
    """Of no kind that anybody knows."""


FAULTS: dict[bytes, type[BaseException]] = {
    b"error": RuntimeError,
    b"exit": SystemExit,
    b"interrupt": KeyboardInterrupt,
    b"odd": Odd,
    b"cancel": asyncio.CancelledError,
}


def do(line: bytes) -> bytes:
    line = line.strip()
    if line in FAULTS:
        raise FAULTS[line]("as it should")
    if line == b"die":
        os._exit(7)
    return line + b" done\n"


class Protocol(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(do(data))


class Buffered(asyncio.BufferedProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.memory = bytearray(100)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.memory

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(do(bytes(self.memory[:nbytes])))


async def coroutine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(do(line))


def blocking(connection: becket.Connection) -> None:
    for line in connection:
        connection.sendall(do(line))


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(do(line))


KINDS = [Protocol, Buffered, coroutine, blocking, Handler]
each_kind = pytest.mark.parametrize("kind", KINDS)
in_threads = pytest.mark.parametrize("kind", [blocking, Handler])


@each_kind
@each_driver
@pytest.mark.usefixtures("forgetful")
def test_an_exception_ends_one_connection(kind: Any, driver: str) -> None:
    """And no other: more of them than there are threads do no harm."""
    with becket.Server(kind, "tcp://127.0.0.1:0", driver=driver, drain=5) as server:
        with connect(server) as other:
            assert ask(other, b"x") == b"x done\n"
            for _ in range(5):
                with connect(server) as one:
                    assert ask(one, b"error") == b""
            assert ask(other, b"y") == b"y done\n"
        until(lambda: server.connections == 0)


@in_threads
@pytest.mark.parametrize("fault", [f for f in FAULTS if f != b"error"])
@each_driver
@pytest.mark.usefixtures("forgetful")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whatever_is_raised_in_a_thread_ends_one_connection(
    kind: Any, driver: str, fault: bytes
) -> None:
    """SystemExit and KeyboardInterrupt too: threads are not the program."""
    server = becket.Server(kind, "tcp://127.0.0.1:0", driver=driver, drain=2, max_threads=2)
    with server:
        for _ in range(5):  # more than there are threads
            with connect(server) as one:
                assert ask(one, fault) == b""
        with connect(server) as good:
            assert ask(good, b"x") == b"x done\n"
        until(lambda: server.connections == 0)
    assert server.stats["failed"] == 5


@pytest.mark.parametrize("kind", [Protocol, coroutine])
@pytest.mark.parametrize("fault", [b"exit", b"interrupt"])
@pytest.mark.usefixtures("forgetful")
def test_exits_in_a_thread_of_its_own_loop_end_one_connection(kind: Any, fault: bytes) -> None:
    with becket.Server(kind, "tcp://127.0.0.1:0", driver="threads:2", drain=2) as server:
        for _ in range(5):
            with connect(server) as one:
                assert ask(one, fault) == b""
        with connect(server) as good:
            assert ask(good, b"x") == b"x done\n"
        until(lambda: server.connections == 0)
    gc.collect()  # tasks that end so are told of when they are freed


@each_kind
@pytest.mark.parametrize("fault", [b"die", b"exit", b"interrupt"])
@pytest.mark.usefixtures("forgetful")
def test_a_worker_that_dies_is_replaced(kind: Any, fault: bytes) -> None:
    """By os._exit(), or by what ends an event loop."""
    with becket.Server(kind, "tcp://127.0.0.1:0", driver="forks:2", drain=5) as server:
        for _ in range(3):
            with connect(server) as one:
                assert ask(one, fault) == b""

        def answers() -> bool:
            with contextlib.suppress(ConnectionError), connect(server) as one:
                return ask(one, b"x") == b"x done\n"
            return False

        for _ in range(10):
            until(answers)


@pytest.mark.parametrize("kind", [Protocol, coroutine])
@pytest.mark.parametrize("driver", ["loop", "loops:2"])
@pytest.mark.parametrize("fault", [b"exit", b"interrupt"])
@pytest.mark.usefixtures("forgetful")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_exits_on_a_loop_end_the_server(kind: Any, driver: str, fault: bytes) -> None:
    """As under asyncio. In the background nobody is there to be told, until it is stopped."""
    server = becket.Server(kind, "tcp://127.0.0.1:0", driver=driver, drain=2).start()
    with connect(server) as one:
        assert ask(one, fault) == b""
    assert not server.stop(), "it had failed"


# ---- Descriptors that run out --------------------------------------------------------------------


def serve(target: str, *endpoints: str, **options: Any) -> Server:
    more = options.pop("more", "")
    return Server(
        HERE / "serve_app.py",
        target,
        json.dumps({"driver": "loop", "drain": 5} | options),
        *endpoints,
        expected=rf"becket: listening at .*{more}",
    )


def descriptors_of(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def threads_of(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


@contextlib.contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """For processes that are started meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("target", "driver"),
    [
        ("Protocol", "loop"),
        ("coroutine", "loop"),
        ("blocking", "loop"),
        ("echo", "loop"),
        ("Protocol", "loops:2"),
        ("blocking", "threads:4"),
        ("Protocol", "threads:4"),
    ],
)
def test_descriptors_that_run_out(target: str, driver: str) -> None:
    """Who has come is served, the others wait; when somebody leaves, it goes on, and nothing has
    leaked. What cannot be given to a thread is closed."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert soft > 200
    words = (
        r"|becket: .*([Tt]oo many open files|accepted again).*"
        r"|(cannot accept connections|connections are accepted again|.*Too many open files).*"
        r"|(Traceback|  File|    |OSError|Exception in|handle:|source_traceback|Object created).*"
    )
    server = serve(target, "tcp://127.0.0.1:0", driver=driver, more=words)
    with server:
        port = int(server.wait_for(r"listening at .*:(\d+)")[1])

        def one_more() -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), PATIENCE)

        clients = [one_more() for _ in range(4)]
        assert all(ask(sock, b"x") for sock in clients)
        most = descriptors_of(server)
        for sock in clients:
            sock.close()
        until(lambda: descriptors_of(server) <= most - 4)
        before, threads = descriptors_of(server), threads_of(server)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (before + 10, before + 10))
        crowd = [one_more() for _ in range(60)]
        for sock in crowd:
            sock.sendall(b"x\n")
        if driver != "threads:4":  # which leaves them in the backlog anyway
            server.wait_for("cannot accept")
            time.sleep(0.4)
            told = sum("cannot accept" in line for line in server.lines)
            most = {"loops:2": 2}.get(driver, 1)
            assert told <= most or target == "blocking", "not ten times a second"
        for sock in crowd[::-1]:
            sock.close()

        def answers() -> bool:
            with one_more() as late:
                return ask(late, b"y").startswith(b"y")

        until(answers)  # at once, but where a thread's copy of the socket was one too many
        # The crowd may have needed one more thread; each has a loop, of an eventfd and two sockets.
        until(lambda: descriptors_of(server) <= before + 3 * (threads_of(server) - threads))
        server.end(signal.SIGTERM)


def test_a_client_without_descriptors_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        becket.connect(endpoint, timeout=PATIENCE).close()
        before = len(os.listdir("/proc/self/fd"))
        lowest = os.dup(0)
        os.close(lowest)
        for room in range(6):
            with few_descriptors(lowest + room):
                try:
                    becket.connect(endpoint, timeout=PATIENCE).close()
                except OSError as error:
                    assert error.errno == errno.EMFILE, error
                    assert room < 5
        becket.connect(endpoint, timeout=PATIENCE).close()
        assert len(os.listdir("/proc/self/fd")) == before


@each_driver
def test_a_server_without_descriptors_is_told(driver: str) -> None:
    """However far it comes: an error says why, and nothing is left open."""
    before = sorted(os.listdir("/proc/self/fd"))
    lowest = os.dup(0)
    os.close(lowest)
    failures = 0
    highest = max(map(int, before))
    for limit in range(lowest, highest + 40, 2):
        server = becket.Server(Protocol, "tcp://127.0.0.1:0", driver=driver, drain=5)
        try:
            with few_descriptors(limit):
                server.start()
        except OSError as error:
            assert error.errno in (errno.EMFILE, None), error
            failures += 1
            continue
        with connect(server) as one:
            assert ask(one, b"x") == b"x done\n"
        assert server.stop()
        break
    else:
        pytest.fail("it was never enough")
    assert failures > 0
    assert sorted(os.listdir("/proc/self/fd")) == before


# ---- Endpoints that cannot be had ----------------------------------------------------------------


def refused(driver: str, endpoint: str) -> str:
    """All that the program says that cannot serve there; the example does not catch the error."""
    options = json.dumps({"driver": driver})
    done = subprocess.run(
        [*APP, "Protocol", options, endpoint],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("tcp://192.0.2.77:7000", "192.0.2.77"),
        ("systemd:nothing", "systemd"),
        ("unix:/no/such/folder/s", "/no/such/folder"),
        ("unix:/" + "x" * 150, "too long for a UNIX socket"),
        ("tls://127.0.0.1:0?cert=/tmp", "/tmp"),
        ("tcp://no-such-host.invalid:7000", "no-such-host.invalid"),
    ],
)
@each_driver
def test_endpoints_that_cannot_be_had_are_named(driver: str, endpoint: str, words: str) -> None:
    assert words in refused(driver, endpoint)


NOBODY = pwd.getpwnam("nobody")


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can become somebody else")
@each_driver
def test_what_others_may_not(driver: str, tmp_path: Path, tls: Certificates) -> None:
    """A key that cannot be read, a port below 1024: each named, with the reason. In a process that
    has become nobody."""
    key = tmp_path / "secret.pem"
    key.write_bytes(Path(tls.path("server.pem")).read_bytes())
    key.chmod(0)
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o700)

    def errors() -> list[str]:
        said = []
        for endpoint in (
            f"tls://127.0.0.1:0?cert={key}",
            "tcp://127.0.0.1:81",
            f"unix:{shut}/s"[:100],
        ):
            try:
                becket.Server(Protocol, endpoint, driver=driver).start()
                said.append("it serves")
            except (OSError, ValueError) as error:
                said.append(str(error))
        return said

    said = as_nobody(errors)
    assert "secret.pem" in said[0] and "ermission denied" in said[0]
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    assert "ermission denied" in said[1] or first <= 81
    assert "ermission denied" in said[2] or "too long" in said[2]


def as_nobody(work: Callable[[], list[str]]) -> list[str]:
    """What it returns, in a child of another user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.setgid(NOBODY.pw_gid)
            os.setuid(NOBODY.pw_uid)
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return list(json.loads(said))


# ---- Standard input and output -------------------------------------------------------------------

STDIO = [(k, d) for k in ("Protocol", "blocking") for d in DRIVERS]
STDIO += [("echo", d) for d in DRIVERS if d != "threads:2"]
on_stdio = pytest.mark.parametrize(("target", "driver"), STDIO)


def run_stdio(target: str, driver: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    options = json.dumps({"driver": driver, "drain": 2})
    return subprocess.run(
        [*APP, target, options, "stdio:"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
        **streams,
    )


def say_on_stdio(target: str, driver: str, lines: str, stdout: Any) -> tuple[int, str]:
    """Its exit status, and what it tells, when it is told that and then waited for."""
    options = json.dumps({"driver": driver, "drain": 2})
    with subprocess.Popen(
        [*APP, target, options, "stdio:"],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(lines)
        process.stdin.flush()
        status = process.wait(PATIENCE)
        return status, process.stderr.read()


@on_stdio
def test_standard_input_that_is_over(target: str, driver: str) -> None:
    done = run_stdio(target, driver, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, "")
    said = "" if driver == "forks:2" else None  # its worker may be through before that is told
    assert done.stderr in ("becket: listening at stdio:\n", said)


@on_stdio
def test_standard_output_that_is_full(target: str, driver: str) -> None:
    with open("/dev/full", "w") as full:
        status, said = say_on_stdio(target, driver, "x\n", full)
    assert status == 1
    assert "stdio: broke: No space left on device" in said


@on_stdio
def test_standard_output_that_nobody_reads(target: str, driver: str) -> None:
    """It ends: neither by a signal, nor with a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        status, said = say_on_stdio(target, driver, "x\n" * 10, writer)
    finally:
        os.close(writer)
    assert status == 1
    assert "stdio: broke: Broken pipe" in said
    assert "Traceback" not in said
