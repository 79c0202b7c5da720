"""The larger examples do what they are there to show, under the load that they are made for."""

from __future__ import annotations

import contextlib
import hashlib
import re
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from test_examples import ROOT, compile_c, installed, running  # noqa: F401 (a fixture)

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def many_descriptors() -> Iterator[None]:
    """Thousands of connections need as many descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def programs(
    installed: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Compile an example, once."""
    made: dict[str, Path] = {}

    def program(name: str) -> Path:
        if name not in made:
            source = (ROOT / f"examples/{name}.c").read_text()
            made[name] = compile_c(source, installed, tmp_path_factory.mktemp(name))
        return made[name]

    return program


def listening_port(server: subprocess.Popen[str]) -> int:
    assert server.stderr is not None
    line = server.stderr.readline()
    found = re.search(r"listening at tcp://127.0.0.1:(\d+)", line)
    assert found, line
    return int(found[1])


def most_memory(pid: int) -> int:
    """Bytes that a process had resident at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, data
        data += piece
    return data


@pytest.mark.parametrize("name", ["chat", "proxy", "aggregator"])
def test_usage_teaches(programs: Callable[[str], Path], name: str) -> None:
    done = subprocess.run([programs(name), "--help"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"usage: {name} " in done.stderr
    assert "tcp://" in done.stderr and "tls://" in done.stderr and "unix:" in done.stderr


# ---- Mail ----


def test_mail(programs: Callable[[str], Path], tmp_path: Path) -> None:
    """What mail_send sends, mail_receive tells of."""
    letter = tmp_path / "letter"
    letter.write_bytes(b"Subject: x\n\n.Hello.\n")
    with running(programs("mail_receive"), "tcp://127.0.0.1:0", cwd=tmp_path) as server:
        where = f"tcp://127.0.0.1:{listening_port(server)}"

        def send(*words: str | Path) -> tuple[int, str, str]:
            done = subprocess.run(
                [programs("mail_send"), *words], check=False, capture_output=True, text=True
            )
            return done.returncode, done.stdout, done.stderr

        status, out, _ = send(where, "a@b.example", "c@d.example,nobody@d.example", letter)
        assert status == 1  # one of them was refused
        assert out == (
            "c@d.example: 250 2.0.0 message accepted\n"
            "nobody@d.example: 550 5.1.1 there is nobody of that name\n"
        )
        assert send(where, "", "c@d.example", letter)[0] == 0
        assert send(where, "a@b\n", "c@d.example", letter)[::2] == (
            1,
            "mail_send: Invalid argument\n",
        )
        server.terminate()
        said, _ = server.communicate()
        assert re.findall("from <(.*)> to <c@d.example>, ", said) == ["a@b.example", ""]
    assert "refused" in send(where, "", "c@d.example", letter)[2]
    assert "there is no scheme x" in send("x://y", "", "c@d.example", letter)[2]
    assert "usage: mail_send " in send()[2]


# ---- The chat ----


def test_chat_with_2000_clients(programs: Callable[[str], Path], tmp_path: Path) -> None:
    with running(programs("chat"), "tcp://127.0.0.1:0", cwd=tmp_path) as server:
        port = listening_port(server)
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                for _ in range(2000)
            ]
            # They are accepted in order: a line of the last comes to all.
            said = b"2000: the last is here\n1: in two pieces\n1: and a second line\n"
            clients[-1].sendall(b"the last is here\n")
            assert read_exactly(clients[-1], 23) == said[:23]
            clients[0].sendall(b"in two pie")
            clients[0].sendall(b"ces\nand a second line\nno line yet")
            assert read_exactly(clients[-1], len(said) - 23) == said[23:]
            assert all(read_exactly(client, len(said)) == said for client in clients[:-1])
            clients[5].close()
            clients[6].sendall(b"x" * 1025)
            assert clients[6].recv(100) == b""
            assert server.stderr is not None
            assert server.stderr.readline() == (
                "chat: 7 was dropped: it sent a line of more than 1024 bytes\n"
            )
            clients[7].sendall(b"goes on\n")
            others = clients[:5] + clients[7:]
            assert {read_exactly(client, 11) for client in others} == {b"8: goes on\n"}
        server.terminate()
        assert server.wait() == 0


def test_chat_drops_who_does_not_read(programs: Callable[[str], Path], tmp_path: Path) -> None:
    """300 clients who do not read, and one who does: memory holds each line once."""
    path = tmp_path / "chat.sock"
    with running(programs("chat"), f"unix:{path}", cwd=tmp_path) as server:
        assert server.stderr is not None
        server.stderr.readline()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(301)]
            for client in clients:
                client.connect(str(path))
            *slow, quick = clients
            line = b"x" * 1000 + b"\n"
            for _ in range(2000):
                quick.sendall(line)
                assert read_exactly(quick, 5 + len(line)) == b"301: " + line
            dropped = [server.stderr.readline() for _ in slow]
            reason = "was dropped: it does not read: 256 KiB are waiting for it\n"
            assert all(line.endswith(reason) for line in dropped), dropped
            assert slow[0].recv(5) == b"301: "  # what its socket had taken is still there
            # Copies would be 300 times 256 KiB.
            assert most_memory(server.pid) < 40 * MIB


# ---- The proxy ----


def send_all(sock: socket.socket, seed: int, size: int) -> None:
    block = bytes((seed + i) % 251 for i in range(MIB))
    for _ in range(size // MIB):
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)


def receive_all(sock: socket.socket) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while piece := sock.recv(MIB):
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def expected(seed: int, size: int) -> tuple[int, str]:
    digest = hashlib.sha256()
    block = bytes((seed + i) % 251 for i in range(MIB))
    for _ in range(size // MIB):
        digest.update(block)
    return size, digest.hexdigest()


@contextlib.contextmanager
def proxied(
    programs: Callable[[str], Path], folder: Path
) -> Iterator[tuple[subprocess.Popen[str], socket.socket, socket.socket]]:
    """A client at a proxy's TCP port, and the connection it brings about at a UNIX socket."""
    path = folder / "behind.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with running(programs("proxy"), "tcp://127.0.0.1:0", f"unix:{path}", cwd=folder) as proxy:
            port = listening_port(proxy)
            with socket.create_connection(("127.0.0.1", port)) as client:
                server, _ = listener.accept()
                with server:
                    yield proxy, client, server
            proxy.terminate()
            assert proxy.wait() == 0


def test_proxy_moves_much_both_ways_at_once(
    programs: Callable[[str], Path], tmp_path: Path
) -> None:
    size = 50 * MIB
    with proxied(programs, tmp_path) as (proxy, client, server):
        senders = [
            threading.Thread(target=send_all, args=(client, 1, size)),
            threading.Thread(target=send_all, args=(server, 2, size)),
        ]
        for thread in senders:
            thread.start()
        got: list[Any] = []
        reader = threading.Thread(target=lambda: got.append(receive_all(server)))
        reader.start()
        assert receive_all(client) == expected(2, size)
        for thread in (*senders, reader):
            thread.join()
        assert got == [expected(1, size)]
        assert most_memory(proxy.pid) < 16 * MIB


def test_proxy_holds_little_for_who_does_not_read(
    programs: Callable[[str], Path], tmp_path: Path
) -> None:
    """50 MiB are offered to a server that takes none of it at first."""
    size = 50 * MIB
    with proxied(programs, tmp_path) as (proxy, client, server):
        client.setblocking(False)
        offered = 0
        with selectors.DefaultSelector() as selector:  # until nobody takes any more
            selector.register(client, selectors.EVENT_WRITE)
            while selector.select(0.3):
                offered += client.send(bytes(MIB))
        assert offered < size
        assert most_memory(proxy.pid) < 16 * MIB
        client.setblocking(True)
        rest = threading.Thread(target=send_all, args=(client, 0, size))
        rest.start()
        assert receive_all(server)[0] == offered + size
        rest.join()
        assert most_memory(proxy.pid) < 16 * MIB


def test_proxy_passes_on_half_closes(programs: Callable[[str], Path], tmp_path: Path) -> None:
    with proxied(programs, tmp_path) as (_proxy, client, server):
        client.sendall(b"a question")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server)[0] == 10
        server.sendall(b"an answer after it")
        assert read_exactly(client, 18) == b"an answer after it"
        server.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_proxy_passes_on_an_error(programs: Callable[[str], Path], tmp_path: Path) -> None:
    with proxied(programs, tmp_path) as (proxy, client, server):
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert server.recv(1) == b""
        assert proxy.stderr is not None
        assert proxy.stderr.readline() == "proxy: who came: Connection reset by peer\n"
    with running(programs("proxy"), "tcp://127.0.0.1:0", "unix:/nowhere", cwd=tmp_path) as proxy:
        with socket.create_connection(("127.0.0.1", listening_port(proxy))) as client:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert proxy.stderr is not None
        assert proxy.stderr.readline() == "proxy: unix:/nowhere: No such file or directory\n"


def test_proxy_says_what_is_wrong_with_an_endpoint(programs: Callable[[str], Path]) -> None:
    for words in (["tcp://:0", "tcp://[x"], ["tcp://[x", "tcp://127.0.0.1:7"]):
        done = subprocess.run([programs("proxy"), *words], check=False, capture_output=True)
        assert done.returncode in (1, 2)
        assert b"this bracket is not closed" in done.stderr


# ---- Clients of thousands ----

SERVER = """
import asyncio, resource, sys
import becket
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

class Lines(asyncio.Protocol):
    all = []
    def connection_made(self, transport):
        self.all.append(transport)
        if len(self.all) == int(sys.argv[1]):  # all are here
            for transport in self.all:
                transport.write(b"a line\\nanother")
            asyncio.get_running_loop().call_later(0.05, self.rest)
    def rest(self):
        for transport in self.all:
            transport.write(b" line\\n")

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Lines, "0.0.0.0", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

becket.run(main())
"""


def summary(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


def test_aggregator_of_10000(programs: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    with running(sys.executable, "server.py", "10000", cwd=tmp_path) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        # Ports to one address run out: there are four.
        endpoints = [f"tcp://127.0.0.{i}:{port}" for i in (1, 2, 3, 4)]
        command = [programs("aggregator"), "-n", "2500", "-c", "200", "-l", "20000", *endpoints]
        with running(*command, cwd=tmp_path) as aggregator:
            out, said = aggregator.communicate()
        assert aggregator.returncode == 0, said
        lines = out.splitlines()
        assert sorted(set(lines)) == ["a line", "another line"]
        assert lines.count("a line") == lines.count("another line") == 10000
        assert summary(said, r"at most (\d+) open at once") == 10000


def test_aggregator_in_asyncio_of_10000(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    with running(sys.executable, "server.py", "10000", cwd=tmp_path) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        hosts = ",".join(f"127.0.0.{i}" for i in (1, 2, 3, 4))
        program = ROOT / "examples/aggregator_asyncio.py"
        options = ["--connections", "10000", "--connecting", "200", "--lines", "20000"]
        command = [sys.executable, "-W", "error", program, *options, "tcp", hosts, port]
        with running(*command, cwd=tmp_path) as aggregator:
            out, said = aggregator.communicate()
        assert aggregator.returncode == 0, said
        assert sorted(out.splitlines()) == ["10000 a line", "10000 another line"]
        assert summary(said, r"ended: .* at most (\d+);") == 10000


class Restarting:
    """A server at a UNIX socket that sends one line and ends, again and again."""

    def __init__(self, path: Path, times: int) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, args=(times,))
        self.thread.start()

    def serve(self, times: int) -> None:
        for number in range(times):
            connection, _ = self.listener.accept()
            connection.sendall(b"line %d\npart of one" % number)
            connection.close()

    def close(self) -> None:
        self.thread.join()
        self.listener.close()


@pytest.mark.parametrize("language", ["c", "python"])
def test_aggregators_connect_again(
    programs: Callable[[str], Path], tmp_path: Path, language: str
) -> None:
    path = tmp_path / "lines.sock"
    with contextlib.closing(Restarting(path, 3)):
        if language == "c":
            command: list[object] = [programs("aggregator"), "-l", "3", f"unix:{path}"]
        else:
            program = ROOT / "examples/aggregator_asyncio.py"
            command = [sys.executable, "-W", "error", program, "--connections", "1"]
            command += ["--lines", "3", "unix", path]
        with running(*command, cwd=tmp_path) as aggregator:
            out, said = aggregator.communicate()
    assert aggregator.returncode == 0, said
    assert re.findall(r"line \d", out) == ["line 0", "line 1", "line 2"]
    assert "part" not in out
    assert summary(said, r"(\d+) made again") == 2


@pytest.mark.parametrize("language", ["c", "python"])
def test_aggregators_end_with_a_summary_when_interrupted(
    programs: Callable[[str], Path], tmp_path: Path, language: str
) -> None:
    path = tmp_path / "lines.sock"
    program: list[object] = [programs("aggregator"), f"unix:{path}"]
    if language == "python":
        program = [sys.executable, "-W", "error", ROOT / "examples/aggregator_asyncio.py"]
        program += ["--connections", "1", "unix", path]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with running(*program, cwd=tmp_path) as aggregator:
            connection, _ = listener.accept()
            with connection:
                aggregator.send_signal(signal.SIGINT)
                _, said = aggregator.communicate()
        assert aggregator.returncode == 0, said
        assert summary(said, r"at most (\d+)") == 1


def test_aggregator_gives_up_when_told_to(programs: Callable[[str], Path], tmp_path: Path) -> None:
    command = [programs("aggregator"), "-n", "3", "-r", "2", f"unix:{tmp_path}/none"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert summary(done.stderr, r"(\d+) given up") == 3
    assert "the last failure: No such file or directory" in done.stderr


def test_aggregator_waits_for_its_reader(programs: Callable[[str], Path], tmp_path: Path) -> None:
    """Nobody reads its output: it stops reading, and holds little."""
    path = tmp_path / "lines.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with running(programs("aggregator"), "-l", "50000", f"unix:{path}", cwd=tmp_path) as reader:
            connection, _ = listener.accept()
            with connection:
                line = b"x" * 999 + b"\n"
                connection.setblocking(False)
                sent = 0
                with selectors.DefaultSelector() as selector:
                    selector.register(connection, selectors.EVENT_WRITE)
                    while selector.select(0.3):
                        sent += connection.send(line * 100)
                assert sent < 25 * MIB
                assert most_memory(reader.pid) < 16 * MIB
                connection.setblocking(True)
                size = 50_000 * len(line)
                rest = (line * 50_000)[sent:]
                sender = threading.Thread(target=connection.sendall, args=(rest,))
                sender.start()
                assert reader.stdout is not None
                out = reader.stdout.read()
                sender.join()
            assert len(out) == size


def test_aggregator_says_what_is_wrong(programs: Callable[[str], Path]) -> None:
    for words, reason in (
        (["-n", "x", "unix:a"], "-n: x is not a number"),
        (["-n", "1"], "usage:"),
        (["nothing://here"], "there is no scheme nothing"),
    ):
        command = [programs("aggregator"), *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode in (1, 2)
        assert reason in done.stderr
