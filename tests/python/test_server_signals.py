"""HUP, TERM and INT in every phase of a server's life, under every driver: it ends with the right
status, and says nothing that it should not."""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import Any

import pytest

from conftest import Certificates
from interop.processes import HERE, PATIENCE, Server

DRIVERS = ["loop", "loops:2", "threads:4", "forks:2"]
ENDS = [signal.SIGTERM, signal.SIGINT]
SAID = r"becket: listening at .*"
DRAIN = 5

each_driver = pytest.mark.parametrize("driver", DRIVERS)
each_end = pytest.mark.parametrize("number", ENDS)


def serve(driver: str, endpoint: str = "tcp://127.0.0.1:0", **more: Any) -> Server:
    target = more.pop("target", "Protocol")
    options = json.dumps({"driver": driver, "drain": more.pop("drain", DRAIN)})
    more = {"expected": SAID} | more
    return Server(HERE / "serve_app.py", target, options, endpoint, **more)


def connect(server: Server) -> socket.socket:
    port = int(server.wait_for(r"listening at .*:(\d+)")[1])
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def ask(sock: socket.socket, line: bytes) -> bytes:
    sock.sendall(line + b"\n")
    return hear(sock)


def hear(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as file:
        return file.readline()


@each_driver
@each_end
def test_the_end_before_it_listens(driver: str, number: int) -> None:
    with serve(driver, environment={"EARLY": str(int(number))}) as server:
        server.process.wait(PATIENCE)


@each_driver
def test_hup_before_it_listens(driver: str) -> None:
    with serve(driver, environment={"EARLY": str(int(signal.SIGHUP))}) as server:
        with connect(server) as one:
            assert ask(one, b"x") == b"x done\n"


@each_driver
@pytest.mark.parametrize("target", ["Protocol", "blocking"])
def test_hup_with_requests_under_way_and_while_it_ends(driver: str, target: str) -> None:
    with serve(driver, target=target) as server:
        with connect(server) as one:
            one.sendall(b"slow 1\n")
            time.sleep(0.1)  # it is under way
            server.process.send_signal(signal.SIGHUP)
            assert hear(one) == b"slow 1 done\n"
            one.sendall(b"slow 2\n")
            time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(signal.SIGHUP)
            assert hear(one) == b"slow 2 done\n"
            one.close()
            server.end(signal.SIGHUP)


@each_driver
@each_end
def test_the_end_with_handshakes_pending(driver: str, number: int, tls: Certificates) -> None:
    """Who has not begun to speak is not waited for, and was not cut."""
    with serve(driver, f"tls://127.0.0.1:0?cert={tls.path('server.pem')}", drain=30) as server:
        with connect(server) as silent, connect(server) as halfway:
            halfway.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a client hello
            time.sleep(0.1)
            server.end(number)
            assert silent.recv(1) == b""


@each_driver
@each_end
def test_the_end_with_headers_pending(driver: str, number: int) -> None:
    with serve(driver, "tcp://127.0.0.1:0?proxy=require", drain=30) as server:
        with connect(server) as silent, connect(server) as halfway:
            halfway.sendall(b"PROXY TCP4 192.0.2.1")
            time.sleep(0.1)
            server.end(number)
            for sock in (silent, halfway):
                try:
                    assert sock.recv(1) == b""
                except ConnectionResetError:
                    pass


@each_driver
@pytest.mark.parametrize("pair", [(a, b) for a in ENDS for b in ENDS], ids=str)
def test_twice_with_nobody_there(driver: str, pair: tuple[int, int]) -> None:
    with serve(driver) as server:
        server.wait_for("listening")
        server.process.send_signal(pair[0])
        server.end(pair[1])


@each_driver
@pytest.mark.parametrize("target", ["Protocol", "blocking"])
def test_twice_with_a_request_under_way(driver: str, target: str) -> None:
    """The second time it is cut: the server says so, and its status."""
    said = rf"{SAID}|becket: 1 connection was cut"
    with serve(driver, target=target, expected=said, status=1, drain=30) as server:
        with connect(server) as one:
            assert ask(one, b"x") == b"x done\n"
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            assert server.process.poll() is None, "it waits for the one that is there"
            server.end(signal.SIGTERM)
            try:
                assert one.recv(1) == b""
            except ConnectionResetError:
                pass


@each_driver
def test_a_drain_that_is_over(driver: str) -> None:
    """Who stays is cut when the time is over."""
    said = rf"{SAID}|becket: 1 connection was cut"
    with serve(driver, expected=said, status=1, drain=0.3) as server:
        with connect(server) as one:
            assert ask(one, b"x") == b"x done\n"
            server.end(signal.SIGTERM)


# ---- Those who never return ----


STUCK = [("stuck", driver) for driver in DRIVERS]
STUCK += [("Stuck", "threads:4"), ("Stuck", "forks:2")]


@pytest.mark.parametrize(("target", "driver"), STUCK)
@pytest.mark.parametrize("signals", [1, 2])
def test_one_that_never_returns(target: str, driver: str, signals: int) -> None:
    """It is left behind, or killed with its process, when its time is over; or at once, when
    somebody is in a hurry: the server ends, and tells. (An event loop's only thread cannot be left:
    a protocol that blocks it for ever, blocks the server.)"""
    said = (
        rf"{SAID}|becket: (1 connection was cut|1 thread has not returned"
        r"|workers that do not end are killed)"
    )
    drain = 0.5 if signals == 1 else 3600
    with serve(driver, target=target, expected=said, status=1, drain=drain) as server:
        with connect(server) as one:
            assert ask(one, b"x") == b"stuck\n"
            for _ in range(signals - 1):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            server.end(signal.SIGTERM)
