"""becket.socketserver: programs for the standard module run unchanged on it."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.request import urlopen

import pytest

import becket
from becket import socketserver as ours
from conftest import Certificates

pytestmark = pytest.mark.usefixtures("no_leaks")
PATIENCE = 20


class Upper(socketserver.StreamRequestHandler):
    """A handler that knows of nothing but the standard module."""

    timeout = 30

    def handle(self) -> None:
        for line in self.rfile:
            if line == b"who\n":
                said = f"{self.client_address[0]} {threading.current_thread().name}\n"
                self.wfile.write(said.encode())
            elif line == b"raise\n":
                raise RuntimeError("as it should")
            else:
                self.wfile.write(line.upper())


class Plain(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1000):
            self.request.sendall(data)


@contextmanager
def serving(server: Any) -> Iterator[str]:
    """Runs serve_forever() as programs do, and tells where."""
    running = threading.Event()
    actions = server.service_actions

    def service_actions() -> None:
        running.set()
        actions()

    server.service_actions = service_actions
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="caller")
    with server:
        thread.start()
        # Before that, a fork would inherit our client's socket, and its end would not be heard of.
        assert running.wait(PATIENCE)
        address = server.server_address
        yield f"unix:{address}" if isinstance(address, str) else f"tcp://127.0.0.1:{address[1]}"
        server.shutdown()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def ask(endpoint: str, line: bytes = b"hello\n") -> bytes:
    with becket.connect(endpoint, timeout=PATIENCE) as connection:
        connection.sendall(line)
        return connection.readline()


@pytest.mark.parametrize("handler", [Upper, Plain])
@pytest.mark.parametrize(
    "kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer", "UnixStreamServer",
             "ThreadingUnixStreamServer"]
)  # fmt: skip
def test_every_kind_of_server(kind: str, handler: type, short_path: str) -> None:
    address: Any = short_path if "Unix" in kind else ("127.0.0.1", 0)
    with serving(getattr(ours, kind)(address, handler)) as endpoint:
        for _ in range(3):
            assert ask(endpoint) == (b"HELLO\n" if handler is Upper else b"hello\n")


def test_the_names_are_the_standard_ones() -> None:
    missing = {name for name in socketserver.__all__ if not hasattr(ours, name)}
    assert missing <= {"ThreadingUnixDatagramServer", "ForkingUnixDatagramServer",
                       "ForkingUnixStreamServer"}  # fmt: skip
    for name in ("TCPServer", "ThreadingTCPServer"):
        assert issubclass(getattr(ours, name), socketserver.BaseServer)


def test_without_a_mixin_the_caller_handles_one_after_the_other() -> None:
    with serving(ours.TCPServer(("127.0.0.1", 0), Upper)) as endpoint:
        assert ask(endpoint, b"who\n") == b"127.0.0.1 caller\n"
        with becket.connect(endpoint, timeout=PATIENCE) as first:
            first.sendall(b"x\n")
            assert first.readline() == b"X\n"
            with becket.connect(endpoint, timeout=0.3) as second:
                second.sendall(b"y\n")
                with pytest.raises(TimeoutError):
                    second.readline()
                first.close()
                second.settimeout(PATIENCE)
                assert second.readline() == b"Y\n"


def test_threads_are_bounded() -> None:
    class Two(ours.ThreadingTCPServer):
        max_threads = 2

    with serving(Two(("127.0.0.1", 0), Upper)) as endpoint:
        busy = [becket.connect(endpoint, timeout=PATIENCE) for _ in range(2)]
        for one in busy:
            one.sendall(b"x\n")
            assert one.readline() == b"X\n"
        with becket.connect(endpoint, timeout=0.3) as third:
            third.sendall(b"y\n")
            with pytest.raises(TimeoutError):
                third.readline()
            for one in busy:
                one.close()
            third.settimeout(PATIENCE)
            assert third.readline() == b"Y\n"


def test_hooks_are_called() -> None:
    seen: list[str] = []

    class Server(ours.ThreadingTCPServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            seen.append("verify")
            return not refuse

        def process_request(self, request: Any, client_address: Any) -> None:
            seen.append("process")
            super().process_request(request, client_address)

        def finish_request(self, request: Any, client_address: Any) -> None:
            seen.append("finish")
            super().finish_request(request, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            seen.append(f"error from {client_address[0]}")

        def service_actions(self) -> None:
            served.set()

    refuse = False
    served = threading.Event()
    with serving(Server(("127.0.0.1", 0), Upper)) as endpoint:
        assert ask(endpoint) == b"HELLO\n"
        assert seen == ["verify", "process", "finish"]
        assert ask(endpoint, b"raise\n") == b""
        assert seen[-1] == "error from 127.0.0.1"
        refuse = True
        seen.clear()
        assert ask(endpoint) == b""
        assert seen == ["verify"]
        assert served.wait(PATIENCE)


def test_tls_and_limits(tls: Certificates) -> None:
    class Server(ours.ThreadingTCPServer):
        pass

    Server.tls = f"cert={tls.path('server.pem')}"
    Server.limits = {"max_connections": 1}
    with serving(Server(("127.0.0.1", 0), Upper)) as endpoint:
        secure = f"{endpoint.replace('tcp', 'tls', 1)}?ca={tls.path('ca.crt')}&name=localhost"
        with becket.connect(secure, timeout=PATIENCE) as first:
            first.sendall(b"x\n")
            assert first.readline() == b"X\n"
            with pytest.raises((OSError, EOFError)):
                assert ask(secure) != b"", "there is room for one"
                raise EOFError


def test_shutdown_lets_handlers_finish() -> None:
    class Slow(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            began.set()
            time.sleep(0.4)
            self.wfile.write(b"done\n")

    began = threading.Event()
    with serving(ours.ThreadingTCPServer(("127.0.0.1", 0), Slow)) as endpoint:
        connection = becket.connect(endpoint, timeout=PATIENCE)
        connection.sendall(b"go\n")
        assert began.wait(PATIENCE)
    assert connection.readline() == b"done\n"
    connection.close()


def test_a_server_may_serve_again() -> None:
    server = ours.ThreadingTCPServer(("127.0.0.1", 0), Upper)
    with server:
        for _ in range(2):
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            assert ask(f"tcp://127.0.0.1:{server.server_address[1]}") == b"HELLO\n"
            server.shutdown()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_handle_request_is_the_standard_one() -> None:
    with ours.TCPServer(("127.0.0.1", 0), Upper) as server:
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"x\n")
            client.shutdown(socket.SHUT_WR)
            server.handle_request()
            assert client.recv(10) == b"X\n"


def test_the_standard_http_handler() -> None:
    class Page(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *args: Any) -> None:
            pass

    with serving(ours.ThreadingTCPServer(("127.0.0.1", 0), Page)) as endpoint:
        with urlopen(endpoint.replace("tcp", "http", 1), timeout=PATIENCE) as answer:
            assert answer.read() == b"hello"
