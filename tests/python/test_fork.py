"""A loop in the child of a fork: it says that it is the parent's, and leaves the parent alone.

The programs run in processes of their own: what is tested is what os.fork() does to a whole one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import becket

SAYS = "This event loop is of the process that forked this one"

PROLOGUE = """
import asyncio, becket, gc, os, sys, traceback, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # fork() where there are threads

def forked():
    sys.stdout.flush()
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    return child == 0

def refused(call, *args):
    try:
        call(*args)
    except RuntimeError as error:
        print(str(error)[:54])
    else:
        print("not refused")

def leave():
    sys.stdout.flush()
    os._exit(0)
"""


def lines_of(program: str, *arguments: str, **environment: str) -> list[str]:
    """What a program prints; its errors are ours."""
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + program, *arguments], env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


@pytest.mark.parametrize("notifier", becket.notifiers)
def test_an_idle_loop_is_refused_in_the_child(notifier: str) -> None:
    program = """
loop = becket.EventLoop(sys.argv[1])
a, b = os.pipe()
read = []
loop.add_reader(a, lambda: (read.append(os.read(a, 10)), loop.stop()))
loop.run_until_complete(asyncio.sleep(0))
if forked():
    coroutine = asyncio.sleep(0)
    refused(loop.call_soon, print)
    refused(loop.call_soon_threadsafe, print)
    refused(loop.call_later, 1, print)
    refused(loop.add_reader, b, print)
    refused(loop.run_forever)
    refused(loop.run_until_complete, coroutine)
    coroutine.close()
    loop.remove_reader(a)
    loop.close()
    assert loop.is_closed()
    leave()
os.write(b, b"parent")
loop.run_forever()
print(read)
loop.close()
"""
    assert lines_of(program, notifier) == [SAYS] * 6 + ["[b'parent']"]


def test_a_fork_within_a_run_ends_it_in_the_child(tmp_path: Path) -> None:
    """What the loop has there, connections and a server, goes on in the parent."""
    program = """
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(Echo, sys.argv[1])
    reader, writer = await asyncio.open_unix_connection(sys.argv[1])
    if forked():
        loop.set_exception_handler(lambda loop, context: print("told"))
        return
    assert os.path.exists(sys.argv[1])
    writer.write(b"parent")
    print(await reader.readexactly(6))
    writer.close()
    await writer.wait_closed()
    server.close()

loop = becket.EventLoop()
pid = os.getpid()
try:
    loop.run_until_complete(main())
except RuntimeError as error:
    print(str(error)[:54])
if os.getpid() != pid:
    loop.close()
    del loop
    gc.collect()
    print(becket.run(asyncio.sleep(0, "a loop of its own")))
    leave()
loop.close()
"""
    path = str(tmp_path / "s") if len(str(tmp_path)) < 90 else "s"
    assert lines_of(program, path) == ["told", SAYS, "a loop of its own", "b'parent'"]


def test_a_child_that_exits_in_good_order() -> None:
    """Its interpreter ends, with the parent's loop in it, and connections."""
    program = """
import socket
async def main():
    a, b = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=a)
    if forked():
        del reader, writer
        sys.exit(0)
    b.sendall(b"open")
    print(await reader.readexactly(4))
    writer.close()
    await writer.wait_closed()
    b.close()

pid = os.getpid()
try:
    becket.run(main())
except RuntimeError:  # of the runner, which goes on to use its loop after sys.exit()
    assert os.getpid() != pid
"""
    # A child of the interpreter loses the locks it had, which LeakSanitizer would take for ours.
    options = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
    assert lines_of(program, ASAN_OPTIONS=options)[-1] == "b'open'"


def test_blocking_connections_can_be_used_in_the_child(short_path: str) -> None:
    """As any socket can."""
    program = """
def echo(connection):
    for line in connection:
        connection.sendall(line)

with becket.Server(echo, "unix:" + sys.argv[1], driver="threads:1"):
    with becket.connect("unix:" + sys.argv[1]) as connection:
        if forked():
            connection.sendall(b"child\\n")
            print(connection.recv(10))
            leave()
        connection.sendall(b"parent\\n")
        print(connection.recv(10))
"""
    assert lines_of(program, short_path) == ["b'child\\n'", "b'parent\\n'"]
