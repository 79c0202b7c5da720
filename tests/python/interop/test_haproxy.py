"""becket behind HAProxy: PROXY headers of both versions, in front of TLS too, health checks, and
both of them restarted under load."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
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
    bind fd@{fd}
    default_backend back
backend back
    balance roundrobin
    {servers}
"""


class HAProxy:
    """The real one, with a master that reloads it; it listens on a socket of ours, so that nobody
    else can have the port."""

    def __init__(self, folder: Path, *servers: str) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.address = self._socket.getsockname()
        self._admin = str(folder / "admin")
        fd = self._socket.fileno()
        lines = "\n    ".join(f"server s{i} {text}" for i, text in enumerate(servers))
        file = folder / "haproxy.cfg"
        file.write_text(CONFIG.format(folder=folder, fd=fd, servers=lines))
        environment = dict(os.environ)
        environment.pop("LD_PRELOAD", None)  # sanitizers are for our own code
        self.process = subprocess.Popen(
            [find_program("haproxy"), "-W", "-db", "-q", "-f", file],
            pass_fds=[fd],
            env=environment,
        )

    def ask(self, command: str) -> str:
        """What it answers at its socket for administrators; nothing, when it is not there."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE)
            try:
                admin.connect(self._admin)
                admin.sendall(command.encode() + b"\n")
                return admin.makefile().read()
            except OSError:
                return ""

    def pid(self) -> str:
        """Of the process that serves now."""
        return "".join(s for s in self.ask("show info").splitlines() if s.startswith("Pid:"))

    def reload(self) -> None:
        """Returns when another process serves."""
        before = self.pid()
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
        self._socket.close()


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
