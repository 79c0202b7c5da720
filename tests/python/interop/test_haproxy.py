"""becket behind HAProxy: PROXY headers of both versions, in front of TLS too, health checks, and
both of them restarted under load."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from interop.processes import HERE, PATIENCE, Server, find_program

SAID = r"becket: listening at .*"
RUNS = [("Protocol", "loop"), ("Protocol", "threads:4"), ("Protocol", "forks:2")]
RUNS += [("blocking", driver) for _, driver in RUNS]
SERVED = pytest.mark.parametrize(("target", "driver"), RUNS)

CONFIG = """
global
    stats socket {folder}/admin mode 600 level admin expose-fd listeners
    hard-stop-after 20s
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    retries 20
    option redispatch 1
frontend front
    bind {address}
    default_backend back
backend back
    balance roundrobin
    {servers}
"""


class HAProxy:
    """The real one, with a master that reloads it; at an address where no client has its port."""

    def __init__(self, folder: Path, *servers: str) -> None:
        with socket.create_server(("127.0.0.3", 0)) as free:
            self.address = free.getsockname()
        self._admin = str(folder / "admin")
        self._master = str(folder / "master")
        address = "{}:{}".format(*self.address)
        lines = "\n    ".join(f"server s{i} {text}" for i, text in enumerate(servers))
        file = folder / "haproxy.cfg"
        file.write_text(CONFIG.format(folder=folder, address=address, servers=lines))
        environment = dict(os.environ)
        environment.pop("LD_PRELOAD", None)  # sanitizers are for our own code
        self.process = subprocess.Popen(
            [find_program("haproxy"), "-W", "-db", "-q", "-S", self._master, "-f", file],
            env=environment,
        )

    def ask(self, command: str, where: str = "") -> str:
        """What it answers at its socket for administrators; nothing, when it is not there."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE)
            try:
                admin.connect(where or self._admin)
                admin.sendall(command.encode() + b"\n")
                admin.shutdown(socket.SHUT_WR)
                return admin.makefile().read()
            except OSError:
                return ""

    def pid(self) -> str:
        """Of the process that serves now."""
        return "".join(s for s in self.ask("show info").splitlines() if s.startswith("Pid:"))

    def reload(self) -> None:
        """Returns when another process serves."""
        before = self.pid()
        until(lambda: self.ask("show proc", self._master))  # it is ready for a signal again
        self.process.send_signal(signal.SIGUSR2)
        until(lambda: self.pid() not in (before, ""))

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, PATIENCE)

    def __enter__(self) -> HAProxy:
        until(self.pid)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def serve(target: str, driver: str, endpoint: str, said: str = SAID, **environment: str) -> Server:
    """A becket server; it has an attribute ``port`` then."""
    options = json.dumps({"driver": driver, "drain": 10})
    server = Server(
        HERE / "serve_app.py", target, options, endpoint, expected=said, environment=environment
    )
    server.port = int(server.wait_for(r"listening at .*:(\d+)")[1])
    return server


def ask(sock: socket.socket, line: bytes) -> bytes:
    sock.sendall(line + b"\n")
    with sock.makefile("rb") as file:
        return file.readline()


# ---- Who it is ----


@SERVED
@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_the_peer_is_the_client(version, target, driver, tmp_path):
    with serve(target, driver, "tcp://127.0.0.1:0?proxy=require") as server:
        with HAProxy(tmp_path, f"127.0.0.1:{server.port} {version}") as proxy:
            for source in ("127.0.0.1", "127.0.0.9"):
                with socket.create_connection(
                    proxy.address, PATIENCE, source_address=(source, 0)
                ) as sock:
                    host, port = ask(sock, b"who").decode().split()
                    assert (host, int(port)) == sock.getsockname()


@SERVED
@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_tls_behind_the_header(version, target, driver, tmp_path, tls):
    endpoint = f"tls://127.0.0.1:0?proxy=require&cert={tls.path('server.pem')}"
    with serve(target, driver, endpoint) as server:
        with HAProxy(tmp_path, f"127.0.0.1:{server.port} {version}") as proxy:
            with proxy.connect() as plain:
                with tls.client().wrap_socket(plain, server_hostname="localhost") as sock:
                    host, port = ask(sock, b"who").decode().split()
                    assert (host, int(port)) == sock.getsockname()


def test_one_that_sends_no_header_is_refused_and_named_once(tmp_path):
    said = f"{SAID}|becket: .*a connection was refused: .*PROXY.*|.*"
    with serve("Protocol", "loop", "tcp://127.0.0.1:0?proxy=require", said) as server:
        with HAProxy(tmp_path, f"127.0.0.1:{server.port}") as proxy:
            for _ in range(3):
                with proxy.connect() as sock:
                    try:
                        assert ask(sock, b"who") == b""
                    except ConnectionResetError:
                        pass
        server.end()
        assert sum("refused" in line for line in server.lines) == 1, server.output


@pytest.mark.parametrize("driver", ["loop", "threads:4", "forks:2"])
@pytest.mark.parametrize("check", ["check", "check check-send-proxy"])
def test_health_checks_do_not_fill_the_log(check, driver, tmp_path):
    """Those with a header say LOCAL, those without one just leave: neither is worth a line."""
    with serve("Protocol", driver, "tcp://127.0.0.1:0?proxy=require") as server:
        options = f"send-proxy-v2 {check} inter 20ms fall 1 rise 1"
        with HAProxy(tmp_path, f"127.0.0.1:{server.port} {options}") as proxy:
            status = proxy.ask("show stat")
            time.sleep(0.5)  # some two dozen checks
            with proxy.connect() as sock:
                assert ask(sock, b"who").split()[0] == b"127.0.0.1"
            assert ",UP," in proxy.ask("show stat"), status


# ---- Restarted under load ----


class Load:
    """Clients that send requests, each on a connection of its own, until they are told to stop."""

    def __init__(self, address: tuple[str, int], clients: int) -> None:
        self._address = address
        self._numbers = itertools.count()
        self._over = threading.Event()
        self.answered: list[bytes] = []
        self.failed: dict[bytes, str] = {}
        self._threads = [threading.Thread(target=self._work) for _ in range(clients)]

    def _work(self) -> None:
        while not self._over.is_set():
            number = next(self._numbers)
            line = b"%s%d" % (b"slow" if number % 16 == 0 else b"quick", number)
            try:
                with socket.create_connection(self._address, PATIENCE) as sock:
                    said = ask(sock, line)
            except OSError as error:
                self.failed[line] = str(error)
                continue
            if said == line + b" done\n":
                self.answered.append(line)
            else:
                self.failed[line] = repr(said)

    def more(self, count: int = 40) -> None:
        """Wait until so many more have been answered."""
        goal = len(self.answered) + count
        until(lambda: len(self.answered) >= goal)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@SERVED
def test_no_request_is_lost_when_haproxy_is_reloaded(target, driver, tmp_path):
    with serve(target, driver, "tcp://127.0.0.2:0?proxy=require") as server:
        with HAProxy(tmp_path, f"127.0.0.2:{server.port} send-proxy-v2") as proxy:
            with Load(proxy.address, 6) as load:
                for _ in range(3):
                    load.more()
                    proxy.reload()
                load.more()
            assert load.failed == {}


@SERVED
def test_no_request_is_lost_when_servers_are_restarted(target, driver, tmp_path):
    """One after the other, by TERM; HAProxy takes the other one when it cannot connect."""
    begun = str(tmp_path / "begun")
    where = "tcp://127.0.0.2:{}?proxy=require"  # no client's port can be in the way there

    def start(port: int) -> Server:
        return serve(target, driver, where.format(port), BEGUN=begun)

    servers = [start(0), start(0)]
    try:
        texts = [f"127.0.0.2:{server.port} send-proxy-v2" for server in servers]
        with HAProxy(tmp_path, *texts) as proxy:
            with Load(proxy.address, 6) as load:
                for _ in range(2):
                    for i in (0, 1):
                        load.more()
                        servers[i].end(signal.SIGTERM)
                        servers[i].__exit__(None)
                        servers[i] = start(servers[i].port)
                load.more()
    finally:
        for server in servers:
            server.__exit__(None)
    lines = Path(begun).read_bytes().splitlines()
    assert load.failed == {}
    assert sorted(lines) == sorted(load.answered)
