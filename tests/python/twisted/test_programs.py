"""Programs that people run on Twisted, on becket's reactor: programs.py has them."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs.py"
PATIENCE = 60


def command(name: str) -> list[str]:
    return [sys.executable, str(PROGRAMS), "becket", name]


class Server:
    """One of the servers; what it says at its end is in `said`."""

    said = ""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port


@contextlib.contextmanager
def running(name: str) -> Iterator[Server]:
    with subprocess.Popen(
        command(name), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            server = Server(process, int(line))
            yield server
            server.said, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, errors
        finally:
            process.kill()


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return bytes(answer.read())


def need(program: str) -> str:
    found = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def test_web_under_wrk() -> None:
    wrk = need("wrk")
    with running("web") as server:
        url = f"http://127.0.0.1:{server.port}/"
        assert fetch(url) == b"hello"
        options = ["-t1", "-c20", "-d1s", url]
        done = subprocess.run(
            [wrk, *options], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout
    requests = re.search(r"(\d+) requests in", done.stdout)
    assert requests is not None and int(requests[1]) > 0


def test_klein() -> None:
    with running("klein") as server:
        for name in "abc":
            assert fetch(f"http://127.0.0.1:{server.port}/{name}") == f"page {name}".encode()


def test_websockets() -> None:
    """Autobahn's server, and the client of another library."""
    from websockets.asyncio.client import connect

    async def talk(port: int) -> None:
        async with connect(f"ws://127.0.0.1:{port}", max_size=None) as client:
            for message in ("text", b"bytes", b"x" * 300_000):
                await client.send(message)
                assert await client.recv() == message

    with running("websocket") as server:
        asyncio.run(talk(server.port))


def test_smtp_under_smtp_source() -> None:
    source = need("smtp-source")
    with running("smtp") as server:
        options = ["-s", "10", "-m", "200", "-l", "5000", "-f", "a@example.org"]
        to = ["-t", "b@example.org", f"inet:127.0.0.1:{server.port}"]
        subprocess.run([source, *options, *to], check=True, timeout=PATIENCE, capture_output=True)
    count, size = map(int, server.said.split())
    assert count == 200
    assert size > 200 * 4000


class Site(http.server.BaseHTTPRequestHandler):
    """Page n links to 2n and 2n + 1, below 40."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        n = int(name) if name.isdigit() else 0
        links = "".join(f'<a href="/{m}">{m}</a>' for m in (2 * n, 2 * n + 1) if 0 < m < 40)
        body = f"<html><body>{links}</body></html>".encode()
        self.send_response(200 if n else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/1"
        server.shutdown()
        thread.join()


def test_scrapy_crawls_a_site(site: str) -> None:
    """asyncio and Twisted in one process."""
    done = subprocess.run(
        command("scrapy"), env=os.environ | {"SITE": site}, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(map(str, range(1, 40)))


MASTER = """
from pathlib import Path
from buildbot.plugins import schedulers, steps, util, worker
from buildbot.process.results import SUCCESS
from twisted.internet import defer, reactor

class Stop(steps.BuildStep):
    def run(self):
        Path("reactor").write_text(type(reactor).__name__)
        reactor.callLater(0, reactor.stop)
        return defer.succeed(SUCCESS)

BuildmasterConfig = {
    "workers": [worker.Worker("one", "word")],
    "protocols": {"pb": {"port": "unix:../pb"}},
    "builders": [util.BuilderConfig(name="b", workernames=["one"], factory=util.BuildFactory([
        steps.StringDownload("x" * 500_000, workerdest="file", haltOnFailure=True),
        steps.ShellCommand(command="wc -c <file >size", haltOnFailure=True),
        Stop(),
    ]))],
    "schedulers": [schedulers.Periodic(name="p", builderNames=["b"], periodicBuildTimer=3600)],
    "db_url": "sqlite:///state.sqlite",
    "buildbotNetUsageData": None,
}
"""
WORKER = """
from buildbot_worker.bot import Worker
from twisted.application.service import Application

application = Application("worker")
Worker(
    None, None, "one", "word", ".", 600, connection_string="unix:../pb"
).setServiceParent(application)
"""


def test_buildbot_builds(tmp_path: Path) -> None:
    """A master and a worker, over a socket between them, and the worker's processes."""
    programs = Path(sys.executable).parent
    master, worker = tmp_path / "master", tmp_path / "worker"
    create = [programs / "buildbot", "create-master", "-q", master]
    subprocess.run(create, check=True, timeout=PATIENCE)
    (master / "master.cfg").write_text(MASTER)
    worker.mkdir()
    (worker / "buildbot.tac").write_text(WORKER)
    twistd = [programs / "twistd", "-n", "--reactor=becket", "--pidfile=", "-y", "buildbot.tac"]
    with subprocess.Popen(twistd, cwd=worker) as works:
        try:
            subprocess.run(twistd, cwd=master, check=True, timeout=PATIENCE)
            works.terminate()
            assert works.wait(PATIENCE) == -signal.SIGTERM  # so twistd ends
        finally:
            works.kill()
    assert (master / "reactor").read_text() == "BecketReactor"
    assert (worker / "b" / "build" / "size").read_text().strip() == "500000"


def test_trial_finds_the_reactor(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from twisted.trial.unittest import TestCase\n"
        "class T(TestCase):\n"
        "    def test_reactor(self):\n"
        "        from twisted.internet import reactor\n"
        "        assert type(reactor).__name__ == 'BecketReactor'\n"
    )
    trial = Path(sys.executable).parent / "trial"
    done = subprocess.run(
        [trial, "--reactor=becket", "test_it"], cwd=tmp_path, capture_output=True, text=True,
        timeout=PATIENCE, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_many_connections_leave_nothing_behind() -> None:
    """A server has as many descriptors after 1,000 connections as after ten."""
    with running("web") as server:

        def visit(n: int) -> None:
            for i in range(n):
                with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as s:
                    if i % 3:
                        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    while i % 3 == 1 and s.recv(1000):
                        pass

        def descriptors() -> int:
            fetch(f"http://127.0.0.1:{server.port}/")  # whoever came before is dealt with
            return len(os.listdir(f"/proc/{server.process.pid}/fd"))

        visit(10)
        before = descriptors()
        visit(1000)
        assert abs(descriptors() - before) <= 3
