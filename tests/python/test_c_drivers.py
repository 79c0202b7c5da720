"""The drivers of bk_serve_with(), from outside: a small server in C, run by each of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from conftest import Certificates
from test_examples import ROOT, compile_c, installed  # noqa: F401

SOURCE = r"""
#include <becket.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Lines: "who" is answered with process and thread, "die" ends the process, what else comes is sent
   back. */
static void received(bk_stream *s, const void *data, size_t n) {
    char text[64];
    if (n == 4 && memcmp(data, "die\n", 4) == 0)
        kill(getpid(), SIGKILL);
    if (n == 4 && memcmp(data, "who\n", 4) == 0) {
        int size = snprintf(text, sizeof text, "%ld %lx\n", (long)getpid(),
                            (unsigned long)pthread_self());
        bk_stream_write(s, text, (size_t)size, BK_COPY, NULL);
    } else {
        bk_stream_write(s, data, n, BK_COPY, NULL);
    }
}

static void blocked(bk_stream *s) {
    bk_stream_pause(s);
}

static void writable(bk_stream *s) {
    bk_stream_resume(s);
}

static void refused(bk_stream *s, const bk_protocol *protocol, int why) {
    (void)protocol, (void)why;
    bk_stream_write(s, "full\n", 5, BK_STATIC, NULL);
}

static const bk_protocol answering = {.size = sizeof answering,
                                      .name = "answering",
                                      .received = received,
                                      .blocked = blocked,
                                      .writable = writable,
                                      .refused = refused};

static long parent;

/* FAILING: workers never come to serve. */
static int setup(void *arg, bk_loop *loop, const bk_protocol **ret_protocol) {
    (void)arg, (void)loop, (void)ret_protocol;
    return getpid() != parent && getenv("FAILING") ? -1 : 0;
}

int main(int argc, char **argv) {
    bk_limits limits = {.size = sizeof limits};
    bk_serve_options options = {.size = sizeof options, .setup = setup, .limits = &limits};
    parent = getpid();
    if (argc < 4)
        return 2;
    options.driver = argv[1];
    options.drain = atoi(argv[2]);
    if (getenv("MOST"))
        limits.max_connections = (unsigned)atoi(getenv("MOST"));
    return bk_serve_with(&options, &answering, argv[3], argv[4], NULL);
}
"""

DRIVERS = ("loop", "loops:2", "threads:2", "forks:2")


@pytest.fixture(scope="module")
def program(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return compile_c(SOURCE, installed, tmp_path_factory.mktemp("server"))


class Server:
    """A server in C that has said where it listens."""

    def __init__(self, command: list[str], environment: dict[str, str], lines: int) -> None:
        self.process = subprocess.Popen(
            command,
            env=environment,
            text=True,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self.stderr = self.process.stderr
        self.told = "".join(self.stderr.readline() for _ in range(lines))

    @property
    def port(self) -> int:
        found = re.search(r"at \w+://127\.0\.0\.1:(\d+)", self.told)
        assert found, self.told
        return int(found[1])

    def connect(self) -> Client:
        return Client(socket.create_connection(("127.0.0.1", self.port), timeout=20))

    def until_told(self, text: str) -> None:
        while text not in self.told:
            line = self.stderr.readline()
            assert line, f"{text!r} was not told: {self.told}"
            self.told += line

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        """The exit status; and all that was told is in told."""
        self.told += self.stderr.read()
        return self.process.wait(30)

    def close(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.stderr.close()


class Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.file = connection.makefile("rb")

    def ask(self, line: str) -> str:
        self.connection.sendall(line.encode() + b"\n")
        return self.file.readline().decode().strip()

    def who(self) -> tuple[int, str]:
        """The process, and the thread, that serves it."""
        process, thread = self.ask("who").split()
        return int(process), thread

    def ended(self) -> bool:
        """Wait for the other side's end."""
        try:
            return self.file.read() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.connection.close()


Start = Callable[..., Server]


@pytest.fixture
def start(program: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(
            driver: str,
            *endpoints: str,
            drain: int = 20,
            lines: int | None = None,
            **environment: str,
        ) -> Server:
            endpoints = endpoints or ("tcp://127.0.0.1:0",)
            plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | environment
            command = [str(program), driver, str(drain), *endpoints]
            server = Server(command, plain, len(endpoints) if lines is None else lines)
            stack.callback(server.close)
            return server

        yield begin


def wait_until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not so():
        assert time.monotonic() < end
        time.sleep(0.005)


def refuses(server: Server) -> bool:
    """Whether nobody listens any more. Who is in the backlog when that ends is cut off."""
    try:
        server.connect().close()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("driver", DRIVERS)
def test_each_serves(driver: str, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = start(driver, "tcp://127.0.0.1:0", f"unix:{path}")
    for _ in range(20):
        with closing(server.connect()) as client:
            assert client.ask("hello") == "hello"
    with socket.socket(socket.AF_UNIX) as local:
        local.connect(str(path))
        local.sendall(b"x\n")
        assert local.recv(10) == b"x\n"
    server.signal(signal.SIGTERM)
    assert server.ends() == 0
    assert "cut" not in server.told
    assert not path.exists()


@pytest.mark.parametrize("driver", DRIVERS)
def test_much_comes_back_whole(driver: str, start: Start) -> None:
    server = start(driver)
    content = os.urandom(3_000_000)
    for _ in range(3):
        with closing(server.connect()) as client:
            received = bytearray()
            client.connection.setblocking(False)
            sent = 0
            while len(received) < len(content):
                if sent < len(content):
                    try:
                        sent += client.connection.send(content[sent : sent + 65536])
                    except BlockingIOError:
                        pass
                try:
                    received += client.connection.recv(1 << 20)
                except BlockingIOError:
                    time.sleep(0)
            assert received == content
    server.signal(signal.SIGTERM)
    assert server.ends() == 0


@pytest.mark.parametrize("driver", ["loops:2", "forks:2"])
def test_all_take_part(driver: str, start: Start) -> None:
    server = start(driver)
    seen: set[tuple[int, str]] = set()
    with ExitStack() as stack:
        for _ in range(1000):
            client = stack.enter_context(closing(server.connect()))
            seen.add(client.who())
            if len(seen) == 2:
                break
        assert len(seen) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_signal_at_once(driver: str, number: signal.Signals, start: Start) -> None:
    for _ in range(5):
        server = start(driver)
        server.signal(number)
        assert server.ends() == 0, server.told


@pytest.mark.parametrize("driver", DRIVERS)
def test_hang_ups_at_once_and_under_load(driver: str, start: Start) -> None:
    server = start(driver)
    for _ in range(10):
        server.signal(signal.SIGHUP)
    with closing(server.connect()) as client:
        for i in range(50):
            server.signal(signal.SIGHUP)
            assert client.ask(f"line {i}") == f"line {i}"
    server.signal(signal.SIGTERM)
    assert server.ends() == 0, server.told


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_hang_up_has_certificates_read_again(
    driver: str, start: Start, tls: Certificates
) -> None:
    server = start(driver, f"tls://127.0.0.1:0?cert={tls.path('server.pem')}&reload=0")
    server.signal(signal.SIGHUP)
    for _ in range(1 if driver == "loop" else 2):  # each loop has its own
        server.told = server.told.replace("read again", "")
        server.until_told("the certificate was read again")
    server.signal(signal.SIGTERM)
    assert server.ends() == 0, server.told


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_is_under_way_comes_to_its_end(driver: str, start: Start) -> None:
    server = start(driver)
    with closing(server.connect()) as client:
        assert client.ask("one") == "one"
        server.signal(signal.SIGTERM)
        wait_until(lambda: refuses(server))
        for i in range(20):
            assert client.ask(f"line {i}") == f"line {i}"
        assert server.process.poll() is None
    assert server.ends() == 0, server.told


@pytest.mark.parametrize("driver", DRIVERS)
def test_who_never_spoke_is_not_waited_for(driver: str, start: Start) -> None:
    server = start(driver)
    with closing(server.connect()) as silent, closing(server.connect()) as client:
        assert client.ask("one") == "one"
        server.signal(signal.SIGTERM)
        assert silent.ended()
        assert client.ask("two") == "two"
    assert server.ends() == 0, server.told


@pytest.mark.parametrize("driver", DRIVERS)
def test_who_does_not_end_is_cut_at_the_deadline(driver: str, start: Start) -> None:
    server = start(driver, drain=1)
    with closing(server.connect()) as client:
        assert client.ask("one") == "one"
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert client.ended()
        assert time.monotonic() - began > 0.9
    assert server.ends() == 1
    assert "1 connection was cut" in server.told


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_second_signal_cuts(driver: str, start: Start) -> None:
    server = start(driver, drain=3600)
    with closing(server.connect()) as client:
        assert client.ask("one") == "one"
        server.signal(signal.SIGTERM)
        wait_until(lambda: refuses(server))
        server.signal(signal.SIGINT)
        assert client.ended()
    assert server.ends() == 1
    assert "1 connection was cut" in server.told


@pytest.mark.parametrize("driver", DRIVERS)
def test_no_drain(driver: str, start: Start) -> None:
    server = start(driver, drain=-1)
    with closing(server.connect()) as client:
        assert client.ask("one") == "one"
        server.signal(signal.SIGTERM)
        assert client.ended()
    assert server.ends() == 1


@pytest.mark.parametrize("driver", ["loop", "loops:2", "threads:2"])
def test_limits_are_the_servers(driver: str, start: Start) -> None:
    """Not of each loop."""
    server = start(driver, MOST="1")
    with closing(server.connect()) as client:
        assert client.ask("one") == "one"
        for _ in range(5):
            with closing(server.connect()) as other:
                assert other.file.read() == b"full\n"
    wait_until(lambda: served(server))


def served(server: Server) -> bool:
    try:
        with closing(server.connect()) as client:
            return client.ask("again") == "again"
    except ConnectionError:
        return False


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_supervisor_is_told(driver: str, start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(20)
        server = start(driver, NOTIFY_SOCKET=supervisor.getsockname())
        assert supervisor.recv(1000) == b"READY=1"
        server.signal(signal.SIGHUP)
        assert supervisor.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert supervisor.recv(1000) == b"READY=1"
        server.signal(signal.SIGTERM)
        assert supervisor.recv(1000) == b"STOPPING=1"
        assert server.ends() == 0, server.told


# ---- threads:N -----------------------------------------------------------------------------------


def test_the_third_waits_for_two_threads(start: Start) -> None:
    server = start("threads:2")
    first, second = server.connect(), server.connect()
    with closing(second):
        threads = {first.who(), second.who()}
        assert len(threads) == 2
        with closing(server.connect()) as third:
            third.connection.sendall(b"who\n")
            third.connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                third.connection.recv(100)
            third.connection.settimeout(20)
            free = first.who()
            first.close()
            process, thread = third.connection.recv(100).decode().split()
            assert (int(process), thread) == free
            assert second.ask("still") == "still"
    server.signal(signal.SIGTERM)
    assert server.ends() == 0, server.told


# ---- forks:N -------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_replaced(start: Start) -> None:
    server = start("forks:2")
    with ExitStack() as stack:
        clients: dict[int, Client] = {}
        while len(clients) < 2:
            client = stack.enter_context(closing(server.connect()))
            clients.setdefault(client.who()[0], client)
        victim, other = clients
        clients[victim].connection.sendall(b"half a request")
        os.kill(victim, signal.SIGKILL)
        with suppress(ConnectionResetError):
            assert clients[victim].file.readline() in (b"half a request", b"")
        server.until_told("was killed by signal 9; another takes its place in")
        assert clients[other].ask("still") == "still"
        seen: set[int] = set()

        def both_serve() -> bool:
            with closing(server.connect()) as client:
                seen.add(client.who()[0])
            return len(seen) == 2

        wait_until(both_serve)
        assert other in seen and victim not in seen
    server.signal(signal.SIGTERM)
    assert server.ends() == 0, server.told


def test_workers_that_go_on_dying(start: Start) -> None:
    """Where somebody has served, it is never given up."""
    server = start("forks:1")
    for _ in range(6):
        wait_until(lambda: served(server))
        with closing(server.connect()) as client:
            client.connection.sendall(b"die\n")
            assert client.ended()
        server.until_told("was killed by signal 9")
        server.told = server.told.replace("killed", "")
    server.signal(signal.SIGTERM)
    assert server.ends() == 0, server.told


def test_workers_that_never_serve(start: Start) -> None:
    server = start("forks:2", FAILING="1")
    assert server.ends() == 1
    assert "none has served: giving up" in server.told
    assert re.search(r"takes its place in 0\.1 s", server.told)
    assert re.search(r"takes its place in 0\.8 s", server.told)


def test_the_end_while_a_place_is_empty(start: Start) -> None:
    server = start("forks:1", FAILING="1")
    server.until_told("takes its place in 0.4 s")
    server.signal(signal.SIGTERM)
    assert server.ends() == 0, server.told


def test_workers_do_not_outlive_their_parent(start: Start) -> None:
    server = start("forks:2")
    with closing(server.connect()) as client:
        assert client.ask("one") == "one"
        os.kill(server.process.pid, signal.SIGKILL)
        wait_until(lambda: refuses(server))
        assert client.ask("two") == "two", "what is under way comes to its end"
    assert server.ends() == -signal.SIGKILL  # and nobody has its stderr any more


@pytest.mark.parametrize("driver", DRIVERS)
def test_who_waits_in_the_backlog_is_served(driver: str, start: Start) -> None:
    server = start(driver)
    os.killpg(server.process.pid, signal.SIGSTOP)
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(server.connect())) for _ in range(20)]
        for client in clients:
            client.connection.sendall(b"hello\n")
        server.signal(signal.SIGTERM)
        os.killpg(server.process.pid, signal.SIGCONT)
        for client in clients:
            assert client.file.readline() == b"hello\n"
    assert server.ends() == 0, server.told


def test_what_a_terminal_sends_comes_to_all(start: Start) -> None:
    """Workers get it twice: from the terminal, and from their parent."""
    server = start("forks:2")
    with closing(server.connect()) as client:
        assert client.ask("one") == "one"
        os.killpg(server.process.pid, signal.SIGINT)
        wait_until(lambda: refuses(server))
        assert client.ask("two") == "two"
    assert server.ends() == 0, server.told


def test_a_worker_that_does_not_end_is_killed(start: Start) -> None:
    server = start("forks:1", drain=1)
    with closing(server.connect()) as client:
        os.kill(client.who()[0], signal.SIGSTOP)
        server.signal(signal.SIGTERM)
        assert server.ends() == 1
        assert client.ended()
    assert "workers that do not end are killed" in server.told


def test_a_killed_worker_keeps_the_socket_file(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = start("forks:1", f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as local:
        local.connect(str(path))
        local.sendall(b"die\n")
        assert local.recv(10) == b""
    server.until_told("was killed")
    with socket.socket(socket.AF_UNIX) as local:
        local.connect(str(path))
        local.sendall(b"x\n")
        assert local.recv(10) == b"x\n"
    server.signal(signal.SIGTERM)
    assert server.ends() == 0
    assert not path.exists()


def test_each_worker_opens_what_is_to_be_reused(start: Start) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # kept, not listened at
        server = start("forks:2", f"tcp://127.0.0.1:{port}?reuse_port=1")
        wait_until(lambda: not refuses(server))
        seen: set[int] = set()
        with ExitStack() as stack:
            for _ in range(1000):
                client = stack.enter_context(closing(server.connect()))
                seen.add(client.who()[0])
                if len(seen) == 2:
                    break
            assert len(seen) == 2
            os.kill(seen.pop(), signal.SIGKILL)
            server.until_told("was killed")
            wait_until(lambda: served(server))
        server.signal(signal.SIGTERM)
        assert server.ends() == 0, server.told


# ---- The echo of the examples --------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_environment_chooses(driver: str, installed: Path, tmp_path: Path) -> None:  # noqa: F811
    program = compile_c((ROOT / "examples/echo.c").read_text(), installed, tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run(
        [str(program), "stdio:"],
        env=environment | {"BECKET_DRIVER": driver},
        input=b"hello",
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.returncode) == (b"hello", 0), done.stderr
    done = subprocess.run(
        [str(program), "stdio:"],
        env=environment | {"BECKET_DRIVER": "proc:2"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"becket: BECKET_DRIVER: proc:2 is none of loop, loops:N, ")
