"""anyio's own test-suite on its asyncio backend, with becket's loop under it. The suite is in
anyio's source distribution, which pip fetches once for each environment."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from interop.processes import HERE

VERSION = importlib.metadata.version("anyio")
# Guards against a hang, not limits.
LONG = 900

# Every test of the suite is run but these, each with why it says nothing of becket.
NOT_FOR_US = {
    "trio": "another backend",
    "uvloop": "another loop",
    "network": "the Internet",
    "hypothesis": "it has time limits of its own, which a busy machine breaks",
}
# asyncio's own loop fails these on that Python.
FAILS_ON_ASYNCIO = ("TestUDPSocketBackpressure",) if sys.version_info[:3] == (3, 13, 0) else ()
# These need localhost to have an IPv6 address, which it does not have on every machine.
NEEDS_IPV6 = ("ipv6", "test_happy_eyeballs and dualstack", "test_connection_refused and multi")

# So that processes can share the work, and failures are told apart.
PARTS = {
    "sockets": ["tests/test_sockets.py", "tests/streams"],
    "plugin": ["tests/test_pytest_plugin.py"],
    "rest": ["tests", "--ignore=tests/test_sockets.py", "--ignore=tests/streams",
             "--ignore=tests/test_pytest_plugin.py"],
}  # fmt: skip

PROOF = """
import asyncio
import anyio
import becket

async def test_on_becket(anyio_backend_name):
    assert anyio_backend_name == "asyncio"
    assert type(asyncio.get_running_loop()) is becket.EventLoop

def test_run_on_becket():
    async def main():
        assert type(asyncio.get_running_loop()) is becket.EventLoop
    anyio.run(main)
"""


def fetch(folder: Path) -> Path:
    """The source distribution of the version that is installed here."""
    found = folder / f"anyio-{VERSION}.tar.gz"
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            done = subprocess.run(
                [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=anyio",
                 f"--dest={place}", f"anyio=={VERSION}"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONG,
                check=False,
            )  # fmt: skip
            if done.returncode != 0:
                pytest.skip(f"anyio's source distribution cannot be had:\n{done.stdout}")
            (Path(place) / found.name).rename(found)
    return found


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The folder of anyio's source, with one more test in it: that the rest runs on becket."""
    folder = tmp_path_factory.mktemp("anyio")
    with tarfile.open(fetch(Path(sys.prefix, "share", "becket-tests"))) as archive:
        archive.extractall(folder, filter="data")
    source = folder / f"anyio-{VERSION}"
    shutil.rmtree(source / "src")  # what is tested is what is installed
    (source / "tests" / "test_on_becket.py").write_text(PROOF)
    return source


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("localhost", 0))
    except OSError:
        return False
    return True


def run_suite(suite: Path, *arguments: str) -> tuple[int, str]:
    """Run some of it; returns the exit status and what was said."""
    environment = {name: value for name, value in os.environ.items() if name[:6] != "PYTEST"}
    left_out = [*NOT_FOR_US, *FAILS_ON_ASYNCIO, *(() if has_ipv6() else NEEDS_IPV6)]
    done = subprocess.run(
        [sys.executable, HERE / "anyio_suite.py", *arguments,
         "-k", " and ".join(f"not ({words})" for words in left_out)],
        cwd=suite, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, text=True, errors="replace",
        timeout=LONG, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.timeout(2 * LONG)
@pytest.mark.parametrize("part", PARTS)
def test_its_own_tests(suite, part):
    """What fails is tried once more: some tests have little time, and a machine may be busy."""
    status, said = run_suite(suite, *PARTS[part])
    if status == pytest.ExitCode.TESTS_FAILED:
        status, again = run_suite(suite, *PARTS[part], "--last-failed")
        said += again
    assert status == pytest.ExitCode.OK, said
    assert re.search(r"[1-9]\d* passed", said), said


def test_the_loop_is_becket_s(suite):
    """By the same means as the rest."""
    status, said = run_suite(suite, "tests/test_on_becket.py")
    assert status == pytest.ExitCode.OK, said
    assert re.search(r"[2-9] passed", said), said
