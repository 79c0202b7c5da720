"""The README's programs and the examples do what they say, built as a reader would build them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def readme_blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C library, installed in a folder of its own by `make install-c`."""
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    prefix = tmp_path_factory.mktemp("prefix")
    # The sanitizers of an outer run are not for make and meson.
    environment = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "MAKEFLAGS")}
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / "install.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may build there, too
        subprocess.run(
            ["make", "install-c", f"PREFIX={prefix}", f"PYTHON={sys.executable}"],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
        )
    return prefix


def compile_c(source: str, prefix: Path, folder: Path) -> Path:
    """Compile a program against the installed library, with what pkg-config says."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    pc = next(prefix.rglob("becket.pc"))
    environment["PKG_CONFIG_PATH"] = str(pc.parent)
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "becket"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    program = folder / "program"
    (folder / "program.c").write_text(source)
    subprocess.run(
        [
            os.environ.get("CC", "cc"),
            "-Wall",
            "-Wextra",
            "-Werror",
            str(folder / "program.c"),
            *flags,
            f"-Wl,-rpath,{pc.parent.parent}",
            "-o",
            str(program),
        ],
        env=environment,
        check=True,
    )
    return program


@contextmanager
def running(*command: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A server, killed at the end. A preloaded sanitizer is for Python, not for a plain program."""
    plain = command[0] != sys.executable
    environment = {k: v for k, v in os.environ.items() if not (plain and k == "LD_PRELOAD")}
    with subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        text=True,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def echoes(client: socket.socket) -> None:
    """A connection gives back what it is given, until its end."""
    with client:
        client.sendall(b"hello" * 50_000)
        client.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: client.recv(65536), b""))
        assert received == b"hello" * 50_000


def test_echo_in_c_on_three_endpoints(installed: Path, tmp_path: Path) -> None:
    program = compile_c((ROOT / "examples/echo.c").read_text(), installed, tmp_path)
    path = tmp_path / "echo.sock"
    with running(program, "tcp://127.0.0.1:0", f"unix:{path}", "stdio:", cwd=tmp_path) as server:
        assert server.stderr is not None and server.stdout is not None and server.stdin is not None
        lines = [server.stderr.readline() for _ in range(3)]
        port = next(int(m[1]) for line in lines if (m := re.search(r"tcp://127.0.0.1:(\d+)", line)))
        echoes(socket.create_connection(("127.0.0.1", port)))
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        echoes(client)
        server.stdin.write("over stdio\n")
        assert server.stdout.readline() == "over stdio\n"
        server.stdin.close()  # or it would be waited for
        server.terminate()
        assert server.wait() == 0
    assert not path.exists()


def test_echo_in_c_of_datagrams(installed: Path, tmp_path: Path) -> None:
    program = compile_c((ROOT / "examples/echo_udp.c").read_text(), installed, tmp_path)
    with running(program, "0", cwd=tmp_path) as server:
        assert server.stdout is not None
        told = re.fullmatch(r"echoing at 127.0.0.1:(\d+)\n", server.stdout.readline())
        assert told is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", int(told[1])))
            for data in (b"hello", b"", b"x" * 60_000):
                client.send(data)
                assert client.recv(65536) == data
        server.terminate()
        assert server.wait() == 0


def test_echo_in_c_is_short() -> None:
    assert len((ROOT / "examples/echo.c").read_text().splitlines()) < 30


@pytest.mark.parametrize("source", readme_blocks("c"))
def test_readme_programs_in_c_compile(source: str, installed: Path, tmp_path: Path) -> None:
    assert compile_c(source, installed, tmp_path).exists()


@pytest.mark.parametrize("name", ["echo_serve.py", "echo_asyncio.py"])
def test_readme_shows_the_examples_in_python(name: str) -> None:
    example = (ROOT / "examples" / name).read_text()
    assert any(block in example for block in readme_blocks("python"))


def test_a_server_of_five_lines(tmp_path: Path) -> None:
    source = (ROOT / "examples/echo_serve.py").read_text().replace(":7000", ":0")
    (tmp_path / "echo.py").write_text(source)
    with running(sys.executable, "-W", "error", "echo.py", cwd=tmp_path) as server:
        assert server.stderr is not None
        told = re.search(r"listening at tcp://127.0.0.1:(\d+)$", server.stderr.readline())
        assert told is not None
        with socket.create_connection(("127.0.0.1", int(told[1]))) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello\n"
        server.terminate()
        assert server.wait() == 0


def test_echo_in_python(tmp_path: Path) -> None:
    # On a port of the test's own.
    source = (
        (ROOT / "examples/echo_asyncio.py")
        .read_text()
        .replace(
            'Echo, "127.0.0.1", 7000)',
            'Echo, "127.0.0.1", 0)\n    print(server.sockets[0].getsockname()[1], flush=True)',
        )
    )
    (tmp_path / "echo.py").write_text(source)
    with running(sys.executable, "-W", "error", "echo.py", cwd=tmp_path) as server:
        assert server.stdout is not None
        client = socket.create_connection(("127.0.0.1", int(server.stdout.readline())))
        with client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
