"""A server of the serving cells of the benchmark, in one of many ways; bench/run.py starts one a
measurement.

Each way binds as its users do, with its own backlog, where the cell does not give one to all. The
handlers are the same for all: EchoHandler and ComputeHandler are classes of the standard
socketserver, and becket serves them as they are. None sets TCP_NODELAY: an echo has nothing
unacknowledged on its way when it answers.
"""

from __future__ import annotations

import argparse
import os
import socketserver
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from python_server import BACKLOG, CHUNK, Echo, listen, ready, run_asyncio

WORKERS = 2  # as many as the benchmark has cores
COUNT = int(os.environ.get("BENCH_COUNT", "0"))  # turns of compute(), the same for all

# ---- What is served ------------------------------------------------------------------------------


class EchoHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(CHUNK):
                self.request.sendall(data)
        except ConnectionError:
            pass  # the load ends some of its connections with a reset


def compute(count: int) -> int:
    total = 0
    for number in range(count):
        total += number
    return total


def calibrate() -> int:
    """How many turns take a millisecond here; the best of many tries."""
    turns = 50_000
    best = float("inf")
    for _ in range(200):
        start = time.perf_counter()
        compute(turns)
        best = min(best, time.perf_counter() - start)
    return round(turns * 0.001 / best)


class ComputingEcho(Echo):
    def data_received(self, data: bytes) -> None:
        compute(COUNT)
        super().data_received(data)


class ComputeHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(CHUNK):
                compute(COUNT)
                self.request.sendall(data)
        except ConnectionError:
            pass


# ---- Ways to serve it ----------------------------------------------------------------------------


def address_of(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.removeprefix("tcp:").rpartition(":")
    return host, int(port)


def run_becket(target: Any, endpoint: str, *, options: str = "", **more: Any) -> None:
    import becket

    host, port = address_of(endpoint)
    becket.Server(target, f"tcp://{host}:{port}{options}", **more).run(ready)


def run_create_server(endpoint: str) -> None:
    run_asyncio("becket", listen(endpoint), "protocol")


def run_socketserver(base: Any, handler: type, endpoint: str, **settings: Any) -> None:
    """On the standard library's server, or becket's, with its users' settings."""
    settings = {"allow_reuse_address": True, **settings}
    with type("Server", (base,), settings)(address_of(endpoint), handler) as server:
        ready()
        server.serve_forever()


def run_standard(name: str, handler: type, endpoint: str, **settings: Any) -> None:
    run_socketserver(getattr(socketserver, name), handler, endpoint, **settings)


def run_becket_socketserver(endpoint: str, **settings: Any) -> None:
    from becket.socketserver import ThreadingTCPServer

    run_socketserver(ThreadingTCPServer, EchoHandler, endpoint, **settings)


def run_gevent(endpoint: str, **settings: Any) -> None:
    from gevent.server import StreamServer

    def handle(connection: Any, address: Any) -> None:
        EchoHandler(connection, address, None)  # type: ignore[arg-type]

    server = StreamServer(address_of(endpoint), handle, **settings)
    server.start()
    ready()
    server.serve_forever()


Way = Callable[[str], None]
LONG = {"request_queue_size": BACKLOG}
WAYS: dict[str, Way] = {
    "threads": partial(run_becket, EchoHandler, driver="threads:64"),
    "becket.socketserver": run_becket_socketserver,
    "becket.socketserver, backlog": partial(run_becket_socketserver, **LONG),
    "socketserver": partial(run_standard, "ThreadingTCPServer", EchoHandler),
    "socketserver, backlog": partial(run_standard, "ThreadingTCPServer", EchoHandler, **LONG),
    "gevent": run_gevent,
    "gevent, backlog": partial(run_gevent, backlog=BACKLOG),
    "compute": partial(run_becket, ComputingEcho, driver="loop"),
    "compute, forks": partial(run_becket, ComputingEcho, driver=f"forks:{WORKERS}"),
    "compute, socketserver": partial(run_standard, "ForkingTCPServer", ComputeHandler, **LONG),
    "blocking": partial(run_becket, EchoHandler, driver="loop"),
    "create_server": run_create_server,
    "serve": partial(run_becket, Echo),
    "serve, proxy": partial(run_becket, Echo, options="?proxy=require"),
}


def main() -> None:
    description, _, _ = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("endpoint", nargs="?", help="tcp:127.0.0.1:PORT")
    parser.add_argument("--way", choices=sorted(WAYS))
    parser.add_argument("--calibrate", action="store_true", help="say what BENCH_COUNT is to be")
    options = parser.parse_args()
    if options.calibrate:
        print(calibrate())
    elif options.way is None or options.endpoint is None:
        parser.error("an endpoint and --way are needed")
    else:
        try:
            WAYS[options.way](options.endpoint)
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
