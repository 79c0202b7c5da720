"""Calls that a reactor of Twisted's is asked to make, each second, for bench/run.py.

callLater       a call is asked for and cancelled, a thousand in each turn: as time-outs are
callFromThread  a thread brings a thousand calls, and waits until the last was made

Prints one JSON object: how many a second, and the CPU time of one in microseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "servers"))
from python_server import TWISTED, install_reactor

BATCH = 1000


def nothing() -> None:
    pass


def call_later(reactor: Any, over: Callable[[], bool], done: Callable[[int], None]) -> None:
    for _ in range(BATCH):
        reactor.callLater(60, nothing).cancel()
    done(BATCH)
    if not over():
        reactor.callLater(0, call_later, reactor, over, done)


def call_from_thread(reactor: Any, over: Callable[[], bool], done: Callable[[int], None]) -> None:
    def bring() -> None:
        while not over():
            made = threading.Event()
            for _ in range(BATCH - 1):
                reactor.callFromThread(nothing)
            reactor.callFromThread(made.set)
            made.wait()
            reactor.callFromThread(done, BATCH)

    threading.Thread(target=bring, daemon=True).start()


WAYS = {"callLater": call_later, "callFromThread": call_from_thread}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", required=True, choices=TWISTED)
    parser.add_argument("--what", required=True, choices=sorted(WAYS))
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    install_reactor(options.library)
    from twisted.internet import reactor as installed

    reactor: Any = installed
    made, began = 0, time.monotonic()

    def over() -> bool:
        return time.monotonic() - began > options.seconds

    def done(count: int) -> None:
        nonlocal made
        made += count
        if over():
            reactor.stop()

    reactor.callWhenRunning(WAYS[options.what], reactor, over, done)
    cpu = time.process_time()
    reactor.run()
    cpu, spent = time.process_time() - cpu, time.monotonic() - began
    print(json.dumps({"rate": made / spent, "cpu_us": cpu / made * 1e6}))


if __name__ == "__main__":
    main()
