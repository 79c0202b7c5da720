"""A server started and stopped very many times under each driver, with clients that connect all the
while: nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import becket
from interop.processes import PATIENCE

TIMES = {"loop": 200, "loops:2": 200, "threads:4": 200, "forks:2": 100}  # which take longer
WARM = 40  # times after which memory is to be steady
ROOM = 4 << 20  # bytes by which it may grow all the same: what allocators keep


class Crowd:
    """Clients that connect wherever a server is now, and ask."""

    def __init__(self, count: int) -> None:
        self.address: tuple[str, int] | None = None
        self.answered = 0
        self.wrong: list[bytes] = []
        self._over = False
        self._threads = [threading.Thread(target=self._work) for _ in range(count)]

    def _work(self) -> None:
        while not self._over:
            if self.address is None:
                time.sleep(0.001)
                continue
            with contextlib.suppress(OSError):
                with socket.create_connection(self.address, PATIENCE) as sock:
                    sock.sendall(b"hello")
                    said = sock.recv(100)
                    if said == b"hello":
                        self.answered += 1
                    elif said:
                        self.wrong.append(said)

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()


def blocking(connection: becket.Connection) -> None:
    while data := connection.recv():
        connection.sendall(data)


def memory() -> int:
    """What this process holds of it."""
    gc.collect()
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def holdings() -> tuple[int, int, str]:
    """Descriptors, threads and children."""
    pid = os.getpid()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return len(os.listdir("/proc/self/fd")), threading.active_count(), children


RUNS = [("echo", "loop"), ("echo", "loops:2"), ("echo", "forks:2")]
RUNS += [(blocking, driver) for driver in ("loop", "loops:2", "threads:4", "forks:2")]


@pytest.mark.parametrize(("target", "driver"), RUNS)
@pytest.mark.usefixtures("no_leaks")
def test_very_many_starts_and_stops(target: Any, driver: str) -> None:
    steady = 0
    before = holdings()
    with Crowd(3) as crowd:
        among = len(os.listdir("/proc/self/task"))
        for number in range(TIMES[driver]):
            if number == WARM:
                steady = memory()
            server = becket.Server(target, "tcp://127.0.0.1:0", driver=driver, drain=5).start()
            host, port = server.endpoints[0].removeprefix("tcp://").split(":")
            crowd.address = (host, int(port))
            if number % 10 == 0:
                goal = crowd.answered + 1
                while crowd.answered < goal:
                    time.sleep(0.001)
            crowd.address = None
            assert server.stop(), number
        grown = memory() - steady
        deadline = time.monotonic() + PATIENCE
        while (
            len(os.listdir("/proc/self/task")) > among
        ):  # the system's own are gone a moment later
            assert time.monotonic() < deadline
    assert crowd.wrong == []
    assert crowd.answered >= TIMES[driver] // 10
    assert holdings() == before
    assert grown < ROOM, f"{grown} bytes more than after {WARM} times"
