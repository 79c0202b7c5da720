"""becket.Server and becket.serve(): arguments, limits, the access log, and how a server ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import becket
from becket import drivers
from conftest import Certificates

pytestmark = pytest.mark.usefixtures("no_leaks")
EVENT_DRIVEN = ["loop", "loops:2", "forks:2"]
DRIVERS = [*EVENT_DRIVEN, "threads:4"]
PATIENCE = 20


class Echo(asyncio.Protocol):
    refusal = b"busy\r\n"

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def echo(connection: becket.Connection) -> None:
    for line in connection:
        connection.sendall(line)


def connect(server: becket.Server, timeout: float = PATIENCE) -> becket.Connection:
    return becket.connect(server.endpoints[0], timeout=timeout)


def until(true: Callable[[], bool]) -> None:
    """Wait for something that will happen."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(params=[Echo, echo], ids=["protocol", "blocking"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


# ---- Arguments -----------------------------------------------------------------------------------


def test_what_cannot_be_served_is_told_what_can() -> None:
    with pytest.raises(TypeError) as caught:
        becket.Server(42, "tcp://127.0.0.1:0")
    for words in ("42", "asyncio.Protocol", "coroutine", "becket.Connection", "socketserver"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("smpt", ValueError, r"there is no protocol 'smpt'; there are echo, smtp"),
        ("smtp", TypeError, r"smtp: missing a required .*argument: 'maildir'"),
        (lambda a, b: None, TypeError, "nothing that can be served"),
        (type("Nothing", (), {}), TypeError, "nothing that can be served"),
    ],
)
def test_targets_that_are_wrong(target: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        becket.Server(target, "tcp://127.0.0.1:0")


def test_settings_are_for_protocols_with_a_name() -> None:
    with pytest.raises(TypeError, match="max_connexions: settings are for protocols"):
        becket.Server(Echo, "tcp://127.0.0.1:0", max_connexions=3)
    with pytest.raises(TypeError, match="echo: got an unexpected keyword argument 'maildir'"):
        becket.Server("echo", "tcp://127.0.0.1:0", maildir="x")


@pytest.mark.parametrize(
    "driver", ["lop", "loop:2", "loops:", "threads:0", "forks:x", "forks:-1", "threads:²"]
)
def test_drivers_that_are_wrong(driver: str) -> None:
    with pytest.raises(ValueError, match=r"driver: .* is none of loop, loops:N, threads:N, forks"):
        becket.Server(Echo, "tcp://127.0.0.1:0", driver=driver)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("drain", -1),
        ("max_threads", 0),
        ("access_log", "xml"),
        ("idle", -1),
        ("max_connections", "3"),
        ("total", 2**31),
    ],
)
def test_arguments_that_are_out_of_range_are_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument):
        becket.Server(Echo, "tcp://127.0.0.1:0", **{argument: value})


def test_without_an_endpoint() -> None:
    with pytest.raises(TypeError, match="an endpoint is missing"):
        becket.Server(Echo)


@pytest.mark.parametrize("driver", DRIVERS)
def test_endpoints_that_are_wrong_are_marked(driver: str) -> None:
    with pytest.raises(ValueError, match=r"port 99999 is out of range") as caught:
        becket.Server(Echo, "tcp://127.0.0.1:99999", driver=driver).start()
    assert "^" in str(caught.value)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_port_that_is_taken(driver: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = becket.Server(Echo, f"tcp://127.0.0.1:{port}", driver=driver)
        with pytest.raises(OSError, match="in use"):
            server.start()
        assert server.stop()
    server.start()  # it is free now
    assert server.stop()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_key_that_cannot_be_read(driver: str, tmp_path: Path) -> None:
    server = becket.Server(Echo, f"tls://127.0.0.1:0?cert={tmp_path}/none.pem", driver=driver)
    with pytest.raises((OSError, ValueError), match=r"none\.pem"):
        server.start()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_unix_path_that_is_too_long(driver: str) -> None:
    with pytest.raises(ValueError, match="too long for a UNIX socket"):
        becket.Server(Echo, f"unix:/tmp/{'x' * 200}", driver=driver).start()


def test_a_server_is_started_once() -> None:
    with becket.Server(Echo, "tcp://127.0.0.1:0") as server:
        with pytest.raises(RuntimeError, match="started already"):
            server.start()


def test_what_it_says_of_itself() -> None:
    with becket.Server(Echo, "tcp://127.0.0.1:0", driver="loops:2") as server:
        assert repr(server) == f"<becket.Server Echo at {server.endpoints[0]}: loops:2>"
        assert int(server.endpoints[0].rpartition(":")[2]) > 0
    assert server.stop(), "stopping twice is no error"


# ---- Limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["loop", "threads:4"])
def test_max_connections_and_the_words_for_those_beyond(driver: str) -> None:
    with becket.Server(Echo, "tcp://127.0.0.1:0", driver=driver, max_connections=2) as server:
        first, second = connect(server), connect(server)
        for one in (first, second):
            one.sendall(b"x")
            assert one.recv() == b"x"
        with connect(server) as third:
            third.sendall(b"what it says first does not take the words away")
            assert third.recv() == b"busy\r\n"
            assert third.recv() == b""
        assert (server.connections, server.stats["refused"]) == (2, 1)
        first.close()
        until(lambda: server.connections == 1)
        with connect(server) as fourth:
            fourth.sendall(b"y")
            assert fourth.recv() == b"y"
        second.close()


def test_smtp_says_421(tmp_path: Path) -> None:
    server = becket.Server("smtp", "tcp://127.0.0.1:0", maildir=str(tmp_path), max_connections=1)
    with server, connect(server) as first:
        assert first.readline().startswith(b"220 ")
        with connect(server) as second:
            assert second.readline().startswith(b"421 4.3.2 ")
            assert second.recv() == b""


def test_max_per_address() -> None:
    with becket.Server(Echo, "tcp://127.0.0.1:0", max_per_address=1) as server:
        port = int(server.endpoints[0].rpartition(":")[2])
        with connect(server) as first:
            first.sendall(b"x")
            assert first.recv() == b"x"
            with connect(server) as second:
                assert second.recv() == b"busy\r\n"
            with socket.create_connection(
                ("127.0.0.1", port), source_address=("127.0.0.2", 0)
            ) as s:
                s.sendall(b"z")
                assert s.recv(1) == b"z"


def test_max_pending_handshakes(tls: Certificates) -> None:
    endpoint = f"tls://127.0.0.1:0?cert={tls.path('server.pem')}"
    with becket.Server(Echo, endpoint, max_pending_handshakes=1) as server:
        address = server.endpoints[0].removeprefix("tls://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as silent:
            until(lambda: server.stats["handshakes"] == 1)
            with socket.create_connection((address[0], int(address[1]))) as second:
                assert second.recv(100) == b"", "in plain there is nothing to say"
            silent.close()
        until(lambda: server.stats["handshakes"] == 0)
        with becket.connect(
            f"{server.endpoints[0]}?ca={tls.path('ca.crt')}&name=localhost", timeout=PATIENCE
        ) as third:
            third.sendall(b"x")
            assert third.recv() == b"x"


@pytest.mark.parametrize("driver", ["loop", "threads:4"])
def test_accept_rate(driver: str) -> None:
    with becket.Server(Echo, "tcp://127.0.0.1:0", driver=driver, accept_rate=20) as server:
        began = time.monotonic()
        for _ in range(12):
            with connect(server) as one:
                one.sendall(b"x")
                assert one.recv() == b"x"
        assert time.monotonic() - began > 0.3, "twelve, of which a tenth of a second's came at once"
        assert server.stats["refused"] == 0


@pytest.mark.parametrize("driver", ["loop", "loops:2", "threads:4"])
def test_first_byte(driver: str, kind: Any) -> None:
    with becket.Server(kind, "tcp://127.0.0.1:0", driver=driver, first_byte=1) as server:
        with connect(server) as silent, connect(server) as other:
            other.sendall(b"x\n")
            assert other.readline() == b"x\n"
            assert silent.recv() in (b"", b"done\n"), (
                "a thread of its own: it may say what it has to"
            )
            other.sendall(b"y\n")
            assert other.readline() == b"y\n", "who has spoken is not meant"


@pytest.mark.parametrize("driver", ["loop", "threads:4"])
def test_idle(driver: str, kind: Any) -> None:
    with becket.Server(kind, "tcp://127.0.0.1:0", driver=driver, idle=1) as server:
        with connect(server) as one:
            one.sendall(b"x\n")
            assert one.readline() == b"x\n"
            assert one.recv() == b""
        until(lambda: server.connections == 0)
        assert server.stats["failed"] == 1


@pytest.mark.parametrize("driver", ["loop", "threads:4"])
def test_total(driver: str, kind: Any) -> None:
    with becket.Server(kind, "tcp://127.0.0.1:0", driver=driver, total=1) as server:
        with connect(server) as one:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                while True:
                    one.sendall(b"x\n")
                    one.readexactly(2)
                    time.sleep(0.05)
        until(lambda: server.connections == 0)


def test_write() -> None:
    class Flood(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(bytes(64 << 20))

    with becket.Server(Flood, "tcp://127.0.0.1:0", write=1) as server:
        with connect(server):
            until(lambda: server.stats["failed"] == 1)


# ---- What it tells -------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_stats(driver: str, kind: Any) -> None:
    with becket.Server(kind, "tcp://127.0.0.1:0", driver=driver) as server:
        with connect(server) as one:
            one.sendall(b"abc\n")
            assert one.readline() == b"abc\n"
            until(lambda: server.connections == 1)
        until(lambda: server.stats["closed"] == 1)
        stats = server.stats
    assert stats == {
        "accepted": 1,
        "refused": 0,
        "closed": 1,
        "failed": 0,
        "bytes_in": 4,
        "bytes_out": 4,
        "connections": 0,
        "handshakes": 0,
    }


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("driver", ["loop", "threads:2"])
def test_the_access_log(
    driver: str, form: str, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "becket.access")
    with becket.Server(kind, "tcp://127.0.0.1:0", driver=driver, access_log=form) as server:
        with connect(server) as one:
            peer = one.getsockname()
            one.sendall(b"abc\n")
            one.readline()
        until(lambda: len(caplog.records) == 1)
        endpoint = server.endpoints[0]
    (record,) = caplog.records
    fields = record.connection  # type: ignore[attr-defined]
    assert (fields["endpoint"], fields["peer"]) == (endpoint, f"127.0.0.1:{peer[1]}")
    assert (fields["in"], fields["out"], fields["end"]) == (4, 4, "ok")
    assert 0 <= fields["seconds"] < PATIENCE
    if form == "json":
        assert json.loads(record.getMessage()) == fields
    else:
        assert f"endpoint={endpoint} peer=127.0.0.1:{peer[1]} " in record.getMessage()


# ---- Handlers that fail --------------------------------------------------------------------------


class Raising(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        raise RuntimeError("as it should")


def raising(connection: becket.Connection) -> None:
    connection.readline()
    raise RuntimeError("as it should")


async def raising_coroutine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    raise RuntimeError("as it should")


@pytest.mark.parametrize("driver", ["loop", "loops:2", "threads:2"])
@pytest.mark.parametrize("target", [Raising, raising, raising_coroutine])
def test_a_handler_that_raises_fails_its_connection_alone(
    target: Any, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    with becket.Server(target, "tcp://127.0.0.1:0", driver=driver) as server:
        for _ in range(5):  # more than there are threads
            with connect(server) as one:
                one.sendall(b"x\n")
                with pytest.raises(ConnectionResetError):
                    assert one.recv() == b"", "it may have come to the end first"
                    raise ConnectionResetError
        until(lambda: server.connections == 0)
    count = sum("as it should" in (r.exc_text or str(r.exc_info)) for r in caplog.records)
    caplog.clear()  # whose tracebacks hold the connections
    assert count == 5


# ---- The end -------------------------------------------------------------------------------------


def slow(connection: becket.Connection) -> None:
    connection.readline()
    time.sleep(0.4)
    connection.sendall(b"done\n")


async def slow_coroutine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    await asyncio.sleep(0.4)
    writer.write(b"done\n")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("target", [slow, slow_coroutine])
def test_what_is_under_way_may_finish(target: Any, driver: str) -> None:
    server = becket.Server(target, "tcp://127.0.0.1:0", driver=driver).start()
    with connect(server) as one, connect(server) as silent:
        one.sendall(b"go\n")
        until(lambda: server.connections == 2)
        time.sleep(0.1)
        assert server.stop()
        assert silent.recv() in (b"", b"done\n"), "a thread of its own: it may say what it has to"
        assert one.recv() == b"done\n"
        assert one.recv() == b""


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_does_not_finish_is_cut(driver: str, kind: Any) -> None:
    server = becket.Server(kind, "tcp://127.0.0.1:0", driver=driver).start()
    with connect(server) as one:
        one.sendall(b"x\n")
        assert one.readline() == b"x\n"
        assert not server.stop(drain=0.2)
        try:
            assert one.recv() == b""
        except ConnectionResetError:
            pass
    with pytest.raises(OSError):
        connect(server)


def test_a_thread_that_never_returns_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()

    def stuck(connection: becket.Connection) -> None:
        connection.readline()
        go_on.wait(PATIENCE)

    server = becket.Server(stuck, "tcp://127.0.0.1:0").start()
    with connect(server) as one:
        one.sendall(b"x\n")
        until(lambda: any(t.name == "becket-1" for t in threading.enumerate()))
        assert not server.stop(drain=0.1)
    assert "1 thread has not returned" in caplog.text
    go_on.set()
    until(lambda: not any(t.name == "becket-1" for t in threading.enumerate()))


def test_threads_are_never_more_and_connections_wait() -> None:
    with becket.Server(echo, "tcp://127.0.0.1:0", driver="threads:2") as server:
        busy = [connect(server) for _ in range(2)]
        for one in busy:
            one.sendall(b"x\n")
            assert one.readline() == b"x\n"
        waiting = connect(server, timeout=0.3)
        waiting.sendall(b"y\n")
        with pytest.raises(TimeoutError):
            waiting.readline()
        assert server.connections == 2, "the third is in the backlog"
        busy.pop().close()
        waiting.settimeout(PATIENCE)
        assert waiting.readline() == b"y\n"
        assert sum(t.name.startswith("becket-") for t in threading.enumerate()) == 2
        waiting.close()
        busy.pop().close()


def test_a_connection_that_waits_holds_no_thread() -> None:
    with becket.Server(echo, "tcp://127.0.0.1:0", max_threads=2) as server:
        idle = [connect(server) for _ in range(100)]
        until(lambda: server.connections == 100)
        with connect(server) as one:
            one.sendall(b"x\n")
            assert one.readline() == b"x\n"
        assert sum(t.name.startswith("becket-") for t in threading.enumerate()) == 1
        for silent in idle:
            silent.close()


@pytest.mark.parametrize("driver", ["loop", "threads:2"])
def test_a_server_that_speaks_first(driver: str) -> None:
    def greet(connection: becket.Connection) -> None:
        connection.sendall(b"hello\n")

    with becket.Server(greet, "tcp://127.0.0.1:0", driver=driver, speaks_first=True) as server:
        with connect(server) as one:
            assert one.recv() == b"hello\n"


@pytest.mark.parametrize("driver", ["loop", "threads:2"])
def test_a_function_starts_tls_as_its_endpoint_offers(driver: str, tls: Certificates) -> None:
    def upgrade(connection: becket.Connection) -> None:
        connection.readline()
        connection.sendall(b"go\n")
        connection.starttls(server_side=True)
        connection.sendall(b"sealed\n")

    endpoint = f"starttls://127.0.0.1:0?cert={tls.path('server.pem')}"
    with becket.Server(upgrade, endpoint, driver=driver) as server:
        where = f"{server.endpoints[0]}?ca={tls.path('ca.crt')}&name=localhost"
        with becket.connect(where, timeout=PATIENCE) as one:
            one.sendall(b"starttls\n")
            assert one.readline() == b"go\n"
            one.starttls()
            assert one.readline() == b"sealed\n"


# ---- As a process --------------------------------------------------------------------------------

PROGRAM = """
import asyncio, itertools, os, socketserver, sys, time
import becket

async def coroutine(reader, writer):
    while line := await reader.readline():
        if line == b"pid\\n":
            line = b"%d\\n" % os.getpid()
        if line == b"slow\\n":
            await asyncio.sleep(0.5)
        writer.write(line)

def blocking(connection):
    for line in connection:
        if line == b"pid\\n":
            line = b"%d\\n" % os.getpid()
        if line == b"slow\\n":
            time.sleep(0.5)
        connection.sendall(line)

forked = itertools.count()

def tarry():
    if next(forked) > 1:
        time.sleep(0.3)

if sys.argv[2] == "late":  # all workers but the first begin late
    os.register_at_fork(before=lambda: next(forked), after_in_child=tarry)
    sys.argv[2] = "forks:2"

sys.exit(becket.serve(globals()[sys.argv[1]], "tcp://127.0.0.1:0", driver=sys.argv[2], drain=5))
"""


class Process:
    """A server as a program of its own."""

    def __init__(self, folder: Path, target: str, driver: str) -> None:
        program = folder / "program.py"
        program.write_text(textwrap.dedent(PROGRAM))
        self.popen = subprocess.Popen(
            [sys.executable, program, target, driver], stderr=subprocess.PIPE, text=True
        )

    def listening(self) -> str:
        assert self.popen.stderr is not None
        line = self.popen.stderr.readline()
        assert line.startswith("becket: listening at "), line
        return line.removeprefix("becket: listening at ").strip()

    def connect(self, endpoint: str) -> becket.Connection:
        return becket.connect(endpoint, timeout=PATIENCE)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Its exit status, and the rest of what it said."""
        _, said = self.popen.communicate(timeout=PATIENCE)
        return self.popen.returncode, said


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts servers that do not outlive the test."""
    started: list[Process] = []

    def start(target: str, driver: str) -> Process:
        started.append(Process(tmp_path, target, driver))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.wait()
        assert process.popen.stderr is not None
        process.popen.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("target", ["coroutine", "blocking"])
def test_a_signal_lets_what_is_under_way_finish(
    target: str, driver: str, number: int, start: Callable[..., Process]
) -> None:
    process = start(target, driver)
    endpoint = process.listening()
    with process.connect(endpoint) as one:
        one.sendall(b"pid\n")
        one.readline()
        one.sendall(b"slow\n")
        time.sleep(0.1)
        process.signal(number)
        assert one.readline() == b"slow\n"
    assert process.end() == (0, "")


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_signal_at_once(driver: str, start: Callable[..., Process]) -> None:
    """Whenever it comes after the program has begun to listen, and before anybody has come."""
    process = start("coroutine", driver)
    process.listening()
    process.signal(signal.SIGTERM)
    assert process.end() == (0, "")


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_second_signal_hurries(driver: str, start: Callable[..., Process]) -> None:
    process = start("coroutine", driver)
    with process.connect(process.listening()) as one:
        one.sendall(b"x\n")
        assert one.readline() == b"x\n"
        process.signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.popen.poll() is None, "it waits for the one that is there"
        process.signal(signal.SIGTERM)
        status, _ = process.end()
    assert status == 1, "somebody was cut"


@pytest.mark.parametrize("driver", DRIVERS)
def test_hup_does_not_disturb(driver: str, start: Callable[..., Process]) -> None:
    process = start("coroutine", driver)
    endpoint = process.listening()
    with process.connect(endpoint) as one:
        for _ in range(3):
            process.signal(signal.SIGHUP)
            one.sendall(b"x\n")
            assert one.readline() == b"x\n"
        with process.connect(endpoint) as two:
            two.sendall(b"y\n")
            assert two.readline() == b"y\n"
    process.signal(signal.SIGTERM)
    assert process.end() == (0, "")


@pytest.mark.parametrize("target", ["coroutine", "blocking"])
def test_a_worker_that_is_killed_is_replaced(target: str, start: Callable[..., Process]) -> None:
    process = start(target, "forks:2")
    endpoint = process.listening()
    others: dict[int, becket.Connection] = {}
    while len(others) < 2:
        one = process.connect(endpoint)
        one.sendall(b"pid\n")
        pid = int(one.readline())
        if pid in others:
            one.close()
        else:
            others[pid] = one
    victim, survivor = others
    others[victim].sendall(b"slow\n")
    os.kill(victim, signal.SIGKILL)
    try:
        assert others[victim].recv() == b"", "its connection is gone with it"
    except ConnectionResetError:
        pass
    others[survivor].sendall(b"x\n")
    assert others[survivor].readline() == b"x\n", "the other has noticed nothing"
    seen = {victim}
    while len(seen - {victim, survivor}) < 1:  # somebody has taken its place
        with process.connect(endpoint) as one:
            one.sendall(b"pid\n")
            seen.add(int(one.readline()))
    for one in others.values():
        one.close()
    process.signal(signal.SIGTERM)
    status, said = process.end()
    assert status == 0
    assert "was killed by signal 9; another takes its place" in said


@pytest.mark.parametrize("driver", ["forks:2", "late"])
def test_workers_do_not_outlive_their_parent(driver: str, start: Callable[..., Process]) -> None:
    process = start("coroutine", driver)
    with process.connect(process.listening()) as one:
        one.sendall(b"slow\n")  # who has said nothing is let go
        process.signal(signal.SIGKILL)
        assert one.readline() == b"slow\n", "what is under way comes to its end"
    assert process.end() == (-signal.SIGKILL, "")  # and nobody has its stderr any more


BEHIND = """
import becket, signal, time

async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)

server = becket.Server(echo, "tcp://127.0.0.1:0", driver="forks:1")
server.start()
print(server.endpoints[0], flush=True)
signal.pause()
"""


def test_forks_do_not_outlive_who_has_them_in_the_background() -> None:
    command = [sys.executable, "-c", textwrap.dedent(BEHIND)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with becket.connect(process.stdout.readline().strip(), timeout=PATIENCE) as one:
            process.kill()
            one.sendall(b"x\n")
            assert one.readline() == b"x\n"
        assert process.communicate(timeout=PATIENCE) == ("", None)  # nobody has its stdout


def test_workers_that_cannot_begin_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers.Forks, "FIRST", 0.001)

    def dies(self: Any, *args: Any) -> int:
        raise OSError("no use")

    monkeypatch.setattr(drivers.Worker, "_main", dies)
    server = becket.Server(Echo, "tcp://127.0.0.1:0", driver="forks:1")
    with pytest.raises(OSError):
        server.start()
    assert server.stop()


def test_certificates_are_read_again(tls: Certificates, tmp_path: Path) -> None:
    pem = tmp_path / "site.pem"
    pem.write_bytes(Path(tls.path("server.pem")).read_bytes())
    server = becket.Server(Echo, f"tls://127.0.0.1:0?cert={pem}&reload=0", driver="forks:2")
    with server:
        host, port = server.endpoints[0].removeprefix("tls://").split(":")

        def shown() -> str:
            return ssl.get_server_certificate((host, int(port)))

        before = shown()
        pem.write_bytes(b"".join(Path(tls.path(f"other.{x}")).read_bytes() for x in ("crt", "key")))
        assert shown() == before
        server.reload()
        until(lambda: {shown() for _ in range(6)}.isdisjoint({before}))
