"""Very many clients that are in no hurry, in a process of their own:

    loris.py COUNT UNIX-PATH FIRST THEN

Each sends FIRST (in hex) when all are connected, and a byte of THEN (in hex) whenever standard
input has a line. It says ``ready`` when that is done, and how many of them are still connected at
the end.
"""

from __future__ import annotations

import resource
import socket
import sys


def main(count: int, path: str, first: bytes, then: bytes) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    socks = []
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)  # waits while the backlog is full
        socks.append(sock)
    for sock in socks:
        sock.sendall(first)
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        for sock in socks:
            sock.sendall(then[number % len(then) :][:1])
        print("ready", flush=True)
    there = 0
    for sock in socks:
        sock.setblocking(False)
        try:
            there += sock.recv(1 << 16) != b""
        except BlockingIOError:
            there += 1
        except ConnectionResetError:
            pass
    print(there, flush=True)


main(int(sys.argv[1]), sys.argv[2], bytes.fromhex(sys.argv[3]), bytes.fromhex(sys.argv[4]))
