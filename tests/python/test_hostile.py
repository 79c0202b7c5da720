"""Servers under clients that mean no good: ten thousand that dawdle, forged and broken PROXY
headers, storms against the limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import becket
from becket import server as becket_server
from conftest import Certificates
from interop.processes import HERE, Server

PATIENCE = 60
MANY = 10_000
SAID = r"becket: listening at .*"


def until(true: Callable[[], object]) -> None:
    """Wait for something that will happen."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def most_descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


# ---- Very many that dawdle ----


class Loris:
    """So many clients of a UNIX socket that send a byte now and then."""

    def __init__(self, count: int, path: str, first: bytes, then: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "loris.py", str(count), path, first.hex(), then.hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._said("ready")

    def _said(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{word}\n"

    def byte(self) -> None:
        """One from each."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._said("ready")

    def end(self) -> int:
        """How many were still connected."""
        said, _ = self._process.communicate(timeout=PATIENCE)
        return int(said)

    def __enter__(self) -> Loris:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def unlimited() -> None:
    most = most_descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def serving(target: str, *endpoints: str, **options: Any) -> Iterator[Server]:
    """A server in a process that may have as many descriptors as there can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited()  # is inherited
    try:
        server = Server(
            HERE / "serve_app.py",
            target,
            json.dumps({"driver": "loop", "drain": 0.5} | options),
            *endpoints,
            expected=rf"{SAID}|becket: \d+ connections? w(as|ere) cut",
            development=False,  # which notes where each task was made
            status=1,  # they are cut
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with server:
        yield server


def processes_of(server: Server) -> list[int]:
    """It, and those it has forked."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def threads_of(server: Server) -> int:
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in processes_of(server))


def ticks_of(server: Server) -> int:
    """What it has had of processors so far, in hundredths of a second."""
    fields = [
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        for pid in processes_of(server)
    ]
    return sum(int(f[11]) + int(f[12]) for f in fields)


def good_client(server: Server, context: ssl.SSLContext | None = None) -> None:
    """All that it asks is answered, on connections of its own and on one that it keeps."""
    port = int(server.wait_for(r"listening at t.*:(\d+)")[1])

    def connect() -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        return context.wrap_socket(sock, server_hostname="localhost") if context else sock

    with connect() as kept:
        for number in range(10):
            with connect() as once:
                for sock in (kept, once):
                    sock.sendall(b"%d\n" % number)
                    with sock.makefile("rb") as file:
                        assert file.readline().startswith(b"%d" % number)


LORIS = [
    ("Protocol", "loop"),
    ("coroutine", "loop"),
    ("echo", "loop"),
    ("Protocol", "loops:2"),
    ("Protocol", "forks:2"),
    ("coroutine", "forks:2"),
    ("echo", "forks:2"),
]


def check_loris(server: Server, path: str, then: bytes, context: ssl.SSLContext | None) -> None:
    """A good client is answered before, among and after them; they cost no thread, and no work
    while they are silent."""
    good_client(server, context)
    threads = threads_of(server)
    with Loris(MANY, path, then[:1], then[1:]) as loris:
        good_client(server, context)
        for _ in range(2):
            loris.byte()
            good_client(server, context)
        until(lambda: still(server))
        assert threads_of(server) == threads
        good_client(server, context)
        assert loris.end() == MANY, "none was turned away"
    good_client(server, context)
    until(lambda: sum(descriptors_of(pid) for pid in processes_of(server)) < 100)


def still(server: Server) -> bool:
    """Whether it does nothing when nothing comes; a loop that turns would never."""
    before = ticks_of(server)
    time.sleep(0.2)
    return ticks_of(server) - before <= 1


def descriptors_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize(("target", "driver"), LORIS)
def test_ten_thousand_that_dawdle(target: str, driver: str, short_path: str) -> None:
    with serving(target, "tcp://127.0.0.1:0", f"unix:{short_path}", driver=driver) as server:
        server.wait_for("listening at unix")
        server._status = 0  # they have left when it ends
        check_loris(server, short_path, b"abc", None)


@pytest.mark.parametrize("driver", ["loop", "forks:2"])
def test_ten_thousand_handshakes_that_dawdle(
    driver: str, short_path: str, tls: Certificates
) -> None:
    pem = tls.path("server.pem")
    more = f"cert={pem}&reload=0"  # looking after files is work for threads
    endpoints = [f"tls://127.0.0.1:0?{more}", f"tls+unix:{short_path}?{more}"]
    with serving("Protocol", *endpoints, driver=driver) as server:
        server.wait_for(r"listening at tls\+unix")
        server._status = 0
        check_loris(server, short_path, b"\x16\x03\x01\x02\x00\x01\x00", tls.client())


@pytest.mark.parametrize("driver", ["loop", "threads:2"])
def test_thousands_of_proxy_headers_that_dawdle(driver: str, short_path: str) -> None:
    """They are read by the loop: no thread waits for one."""
    endpoints = ["tcp://127.0.0.1:0", f"unix:{short_path}?proxy=require"]
    with serving("blocking", *endpoints, driver=driver) as server:
        server.wait_for("listening at unix")
        server._status = 0
        good_client_in_turn(server)
        with Loris(MANY, short_path, b"P", b"ROXY") as loris:
            for _ in range(2):
                loris.byte()
                good_client_in_turn(server)
            assert threads_of(server) <= 8
            assert loris.end() == MANY
        good_client_in_turn(server)


def good_client_in_turn(server: Server) -> None:
    """One connection at a time: there may be few threads."""
    port = int(server.wait_for(r"listening at t.*:(\d+)")[1])
    for number in range(5):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(b"%d\n" % number)
            with sock.makefile("rb") as file:
                assert file.readline() == b"%d done\n" % number


def test_silent_clients_of_a_blocking_function(short_path: str) -> None:
    """Who says nothing holds no thread, and is sent away by first_byte."""
    endpoints = ["tcp://127.0.0.1:0", f"unix:{short_path}"]
    with serving("blocking", *endpoints, max_threads=2, first_byte=1) as server:
        server.wait_for("listening at unix")
        server._status = 0
        good_client(server)
        threads = threads_of(server)
        with Loris(2000, short_path, b"", b"x"):
            good_client(server)
            assert threads_of(server) == threads
            until(lambda: descriptors_of(server.process.pid) < 100)  # by first_byte
            good_client(server)


def test_dawdling_clients_of_a_blocking_function(short_path: str) -> None:
    """Who has sent a byte and then nothing holds a thread until `idle` is over: there are never
    more than max_threads, and a good client has its turn after those who were there before."""
    endpoints = ["tcp://127.0.0.1:0", f"unix:{short_path}"]
    with serving("blocking", *endpoints, max_threads=4, idle=1) as server:
        server.wait_for("listening at unix")
        server._status = 0
        good_client(server)
        threads = threads_of(server)
        with Loris(10, short_path, b"x", b"x"):
            good_client_in_turn(server)
            assert threads_of(server) <= threads + 4
        good_client(server)


def test_clients_that_dawdle_on_and_on_have_a_total(short_path: str) -> None:
    """A byte now and then is enough for `idle`, and there may be many of them; `total` ends all of
    them at the same time, those too that wait for a thread."""
    endpoints = ["tcp://127.0.0.1:0", f"unix:{short_path}"]
    with serving("blocking", *endpoints, max_threads=4, total=2) as server:
        server.wait_for("listening at unix")
        server._status = 0
        with Loris(200, short_path, b"x", b"x"):
            until(lambda: answers(server))
            assert threads_of(server) <= 10


def answers(server: Server) -> bool:
    """Whether it answers a good client before that one has had its own total."""
    port = int(server.wait_for(r"listening at t.*:(\d+)")[1])
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(b"x\n")
            return sock.recv(100) == b"x done\n"
    except ConnectionError:
        return False


# ---- PROXY headers ----


class Who(asyncio.Protocol):
    """Says to whom it believes to speak, and what was said first."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        host = self.transport.get_extra_info("peername")[0]
        self.transport.write(host.encode() + b" " + data)


def who(connection: becket.Connection) -> None:
    while data := connection.recv():
        connection.sendall(connection.getpeername()[0].encode() + b" " + data)


V1 = b"PROXY TCP4 192.0.2.7 192.0.2.8 1000 2000\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x13" + bytes([192, 0, 2, 7, 192, 0, 2, 8, 3, 232, 7, 208])
V2 += b"\x04\x00\x04abcd"  # a TLV of no meaning
HEADERS = pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
PROXIED = pytest.mark.parametrize(
    ("target", "driver"),
    [(Who, "loop"), (who, "loop"), (Who, "threads:2"), (who, "threads:2"), (Who, "forks:2")],
)


def address_of(server: becket.Server) -> tuple[str, int]:
    host, _, port = server.endpoints[0].partition("://")[2].partition("?")[0].rpartition(":")
    return host, int(port)


def connect(server: becket.Server, **more: Any) -> socket.socket:
    return socket.create_connection(address_of(server), PATIENCE, **more)


def rest_of(sock: socket.socket) -> bytes:
    """All that is sent there, a reset being the end of it."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1000):
            said += data
    return said


@PROXIED
@HEADERS
@pytest.mark.usefixtures("no_leaks")
def test_a_forged_header_is_refused_or_data(
    header: bytes, target: Any, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    for mode in ("require", "accept"):
        endpoint = f"tcp://127.0.0.1:0?proxy={mode}&proxy_from=127.0.0.5"
        with becket.Server(target, endpoint, driver=driver) as server:
            with connect(server, source_address=("127.0.0.1", 0)) as forger:
                forger.sendall(header)
                if mode == "require":
                    assert rest_of(forger) == b""
                else:
                    assert forger.recv(1000) == b"127.0.0.1 " + header
            with connect(server, source_address=("127.0.0.5", 0)) as proxy:
                proxy.sendall(header + b"x")
                assert proxy.recv(1000) == b"192.0.2.7 x"
    if not driver.startswith("forks"):  # whose log is that of other processes
        assert sum("refused" in r.getMessage() for r in caplog.records) == 1


@PROXIED
@HEADERS
@pytest.mark.usefixtures("no_leaks")
def test_every_truncation_of_a_header(header: bytes, target: Any, driver: str) -> None:
    endpoint = "tcp://127.0.0.1:0?proxy=require"
    with becket.Server(target, endpoint, driver=driver) as server:
        for length in range(len(header)):
            with connect(server) as cut:
                cut.sendall(header[:length])
                cut.shutdown(socket.SHUT_WR)
                assert rest_of(cut) == b"", length
        with connect(server) as whole:
            for byte in header + b"x":  # and every place to wait at
                whole.sendall(bytes([byte]))
                time.sleep(0.002)
            assert whole.recv(1000) == b"192.0.2.7 x"
        until(lambda: server.stats["closed"] > 0)
        assert server.stats["accepted"] == 1, "the others had not come in"


@PROXIED
@pytest.mark.usefixtures("no_leaks")
def test_clients_that_leave_within_a_header(target: Any, driver: str) -> None:
    """By a reset."""
    with becket.Server(target, "tcp://127.0.0.1:0?proxy=require", driver=driver) as server:
        for length in (0, 5, 12, 15, 16, 20, len(V2) - 1):
            sock = connect(server)
            sock.sendall(V2[:length])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        with connect(server) as good:
            good.sendall(V2 + b"x")
            assert good.recv(1000) == b"192.0.2.7 x"


# ---- Limits ----


class Echo(asyncio.Protocol):
    refusal = b"busy\n"

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def echo(connection: becket.Connection) -> None:
    while data := connection.recv():
        connection.sendall(data)


echo.refusal = b"busy\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("driver", ["loop", "loops:2", "threads:20"])
@pytest.mark.parametrize("target", [Echo, echo], ids=["protocol", "blocking"])
@pytest.mark.usefixtures("no_leaks")
def test_two_hundred_at_once_and_never_more_than_the_limit(target: Any, driver: str) -> None:
    """All stay until everyone has been told: so it is known how many were let in."""
    limit = 7
    said: list[bytes] = []
    told = threading.Barrier(200)
    with becket.Server(
        target, "tcp://127.0.0.1:0", driver=driver, max_connections=limit, drain=5
    ) as server:

        def client() -> None:
            with connect(server) as sock:
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    sock.sendall(b"x\n")
                said.append(sock.recv(100))
                told.wait(PATIENCE)

        clients = [threading.Thread(target=client) for _ in range(200)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        assert said.count(b"x\n") == limit
        assert said.count(b"busy\n") == 200 - limit
        stats = server.stats
        assert (stats["accepted"], stats["refused"]) == (limit, 200 - limit)
        until(lambda: server.connections == 0)
        with connect(server) as late:
            late.sendall(b"y")
            assert late.recv(1) == b"y"


@pytest.mark.parametrize("driver", ["loop", "loops:2", "threads:4", "forks:2"])
def test_all_limits_together_under_load(driver: str, tls: Certificates) -> None:
    """Good clients come and go, silent ones and those that break off too: whatever is let in is
    answered or was over a limit, and in the end nothing is left."""
    values = {
        "max_connections": 30,
        "max_per_address": 8,
        "max_pending_handshakes": 6,
        "accept_rate": 500,
        "first_byte": 1,
        "idle": 1,
        "write": 1,
        "total": 3,
    }
    assert set(values) == set(becket_server.LIMITS)
    over = time.monotonic() + 3
    answered: list[int] = []
    wrong: list[bytes] = []
    context = tls.client()
    endpoint = f"tls://127.0.0.1:0?cert={tls.path('server.pem')}"
    server = becket.Server(Echo, endpoint, driver=driver, drain=5, **values)  # type: ignore[arg-type]

    def good(number: int) -> None:
        while time.monotonic() < over:
            with contextlib.suppress(OSError):
                plain = connect(server, source_address=(f"127.0.0.{10 + number}", 0))
                with plain, context.wrap_socket(plain, server_hostname="localhost") as sock:
                    sock.sendall(b"x" * 1000)
                    data = sock.recv(1000)
                    answered.append(number)
                    if data.strip(b"x") not in (b"", b"busy\n"):
                        wrong.append(data)

    def bad(number: int) -> None:
        while time.monotonic() < over:
            with contextlib.suppress(OSError):
                with connect(server, source_address=(f"127.0.0.{100 + number}", 0)) as sock:
                    if number % 2:
                        sock.sendall(b"\x16\x03\x01\x02\x00\x01" if number % 4 else b"garbage")
                        sock.settimeout(0.2)
                    sock.recv(1)

    with server:
        threads = [threading.Thread(target=good, args=(i,)) for i in range(4)]
        threads += [threading.Thread(target=bad, args=(i % 3,)) for i in range(12)]
        for thread in threads:
            thread.start()
        until(lambda: len(answered) > 5)
        most = 0
        while time.monotonic() < over:
            most = max(most, server.connections)
            time.sleep(0.02)
        for thread in threads:
            thread.join()
        until(lambda: server.stats["connections"] == server.stats["handshakes"] == 0)
        stats = server.stats
    assert wrong == []
    assert most <= values["max_connections"] * (2 if driver.startswith("forks") else 1)
    assert len(set(answered)) == 4, "nobody was left out"
    assert stats["accepted"] == stats["closed"]
