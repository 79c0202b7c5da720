"""One active connection among many idle ones: asyncore's own loop against becket.asyncore.

Prints, for each loop, messages a second and the CPU time of one: an echo of 64 bytes between two
processes, the idle connections in the server. `python bench/asyncore_idle.py --idle 2000`;
bench/run.py runs it once for each loop.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import time
import warnings

import becket
import becket.asyncore

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import asyncore

OWN = asyncore.loop
MESSAGE = b"x" * 64


class Echo(asyncore.dispatcher_with_send):
    def handle_read(self) -> None:
        self.send(self.recv(8192))

    def handle_close(self) -> None:
        raise asyncore.ExitNow


class Idle(asyncore.dispatcher):
    def writable(self) -> bool:
        return False


def talk(sock: socket.socket, seconds: float, core: int | None) -> None:
    """In a process of its own: one message after the other."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    sock.setblocking(True)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(10):
            sock.sendall(MESSAGE)
            left = len(MESSAGE)
            while left:
                left -= len(sock.recv(left))
    os._exit(0)


class Counting(Echo):
    count = 0

    def handle_read(self) -> None:
        self.count += 1
        super().handle_read()


def measure(kind: str, idle: int, seconds: float, core: int | None) -> dict[str, float]:
    channels: dict[int, object] = {}
    pairs = [socket.socketpair() for _ in range(idle)]
    for near, _ in pairs:
        Idle(near, channels)
    near, far = socket.socketpair()
    active = Counting(near, channels)
    pid = os.fork()
    if pid == 0:
        near.close()
        talk(far, seconds, core)
    far.close()
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    try:
        if kind.startswith("asyncore"):
            OWN(map=channels, use_poll=kind.endswith("poll2"))
        else:
            becket.asyncore.loop(map=channels, notifier=kind.removeprefix("becket, "))
    except asyncore.ExitNow:
        pass
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    os.waitpid(pid, 0)
    asyncore.close_all(channels)
    for _, sock in pairs:
        sock.close()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"rate": active.count / wall, "cpu_us": cpu / active.count * 1e6}


def main() -> None:
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--idle", type=int, default=2000, help="idle connections (2000)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each loop (2)")
    parser.add_argument("--loop", metavar="NAME", help="this one only")
    parser.add_argument("--peer-core", metavar="N", type=int, help="where the other process runs")
    options = parser.parse_args()
    own = ["asyncore, poll2"] + (["asyncore, poll"] if options.idle < 500 else [])
    ours = [f"becket, {n}" for n in becket.notifiers if n != "select" or options.idle < 500]
    if options.loop and options.loop not in own + ours:
        parser.error(f"--loop: with so many idle connections one of {'; '.join(own + ours)}")
    for kind in [options.loop] if options.loop else own + ours:
        sample = measure(kind, options.idle, options.seconds, options.peer_core)
        print(json.dumps({kind: sample}), flush=True)


if __name__ == "__main__":
    main()
