"""examples/rudp: its transport passes the suite, and carries mail, under TLS too, and over a
network that loses a fifth of all packets; the package is found when it is installed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import becket
from becket import _becket
from conftest import Certificates
from support import Recorder, until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "rudp"
sys.path[:0] = [str(EXAMPLE / "src"), str(EXAMPLE / "tests")]

from test_transport import *  # noqa: E402, F403
from test_wire import *  # noqa: E402, F403

from rudp import Lossy, Rudp, Settings  # noqa: E402

PATIENCE = 60
MAIL = b"Subject: over UDP\r\n\r\n" + b"every line comes, and comes once\r\n" * 3000


class Mail:
    """A mail server over rudp, on a network of some kind."""

    def __init__(self, folder: Path, loss: float) -> None:
        self.loop = becket.EventLoop()
        network = Lossy(11, loss=loss, double=0.05, delay=0.1) if loss else None
        self.rudp = Rudp(Settings(least_rto=0.02, first_rto=0.05, most_rto=0.5), network)
        self.loop.add_scheme(self.rudp)
        self.folder = folder / "mail"
        self.smtp = _becket.Smtp(self.loop, self.folder, "mx.example.org")

    def run(self, work: Any) -> None:
        try:
            self.loop.run_until_complete(asyncio.wait_for(work, PATIENCE))
            self.smtp.close()
        finally:
            self.loop.close()

    def stored(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.folder / "new").iterdir()]


async def say(client: Recorder, transport: Any, text: bytes, reply: bytes) -> None:
    """Say something, and wait for a reply that begins so."""
    before = len(client.data)
    transport.write(text)
    await until(lambda: reply in client.data[before:] and client.data.endswith(b"\r\n"))


async def send_mail(client: Recorder, transport: Any) -> None:
    await say(client, transport, b"EHLO client.example.org\r\n", b"250 ")
    await say(client, transport, b"MAIL FROM:<a@example.org>\r\n", b"250 ")
    await say(client, transport, b"RCPT TO:<b@example.org>\r\n", b"250 ")
    await say(client, transport, b"DATA\r\n", b"354 ")
    await say(client, transport, MAIL + b".\r\n", b"250 ")
    transport.write(b"QUIT\r\n")
    assert await client.lost is None


@pytest.fixture(params=[0.0, 0.2], ids=["good network", "20 % lost"])
def mail(request: pytest.FixtureRequest, tmp_path: Path, no_leaks: None) -> Mail:
    return Mail(tmp_path, request.param)


def test_mail(mail: Mail) -> None:
    async def main() -> None:
        name = mail.smtp.listen("rudp://127.0.0.1:0")
        assert name.startswith("rudp://127.0.0.1:")
        transport, client = await mail.loop.connect_endpoint(lambda: Recorder(mail.loop), name)
        await send_mail(client, transport)

    mail.run(main())
    assert [text.endswith(MAIL) for text in mail.stored()] == [True]
    assert b"127.0.0.1" in mail.stored()[0].partition(b"\r\n\r\n")[0]  # whom it came from


def test_mail_under_tls(mail: Mail, tls: Certificates) -> None:
    async def main() -> None:
        options = f"cert={tls.path('server.crt')}&key={tls.path('server.key')}"
        name = mail.smtp.listen(f"tls+rudp://127.0.0.1:0?{options}")
        assert name.startswith("tls+rudp://127.0.0.1:")
        transport, client = await mail.loop.connect_endpoint(
            lambda: Recorder(mail.loop), f"{name}?ca={tls.path('ca.crt')}&name=localhost"
        )
        await send_mail(client, transport)

    mail.run(main())
    assert [text.endswith(MAIL) for text in mail.stored()] == [True]
    assert b"with ESMTPS" in mail.stored()[0]


def test_mail_with_starttls(mail: Mail, tls: Certificates) -> None:
    async def main() -> None:
        options = f"cert={tls.path('server.crt')}&key={tls.path('server.key')}"
        name = mail.smtp.listen(f"starttls+rudp://127.0.0.1:0?{options}")
        plain = name.removeprefix("starttls+")
        transport, client = await mail.loop.connect_endpoint(lambda: Recorder(mail.loop), plain)
        await say(client, transport, b"EHLO client.example.org\r\n", b"250 ")
        await say(client, transport, b"STARTTLS\r\n", b"220 ")
        secure = await mail.loop.start_tls(
            transport, client, tls.client(), server_hostname="localhost"
        )
        await send_mail(client, secure)

    mail.run(main())
    assert [text.endswith(MAIL) for text in mail.stored()] == [True]
    assert b"with ESMTPS" in mail.stored()[0]


def test_the_package(tmp_path: Path) -> None:
    """Built and installed, becket finds it by its entry point: on the command line, too."""
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--no-deps", "--no-index", "--target", target, source],
        env=environment, check=True, timeout=PATIENCE,
    )  # fmt: skip
    command = [sys.executable, "-m", "becket", "serve", "smtp"]
    server = subprocess.Popen(
        [*command, "--maildir", tmp_path / "mail", "rudp://127.0.0.1:0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(target), *path_of_ours()])},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            while line and "rudp://" not in line:
                line = server.stderr.readline()
            deliver(line.split()[-1])
        finally:
            server.terminate()
    assert len(list((tmp_path / "mail" / "new").iterdir())) == 1


def path_of_ours() -> list[str]:
    """Where the sanitizers' run has becket."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def deliver(endpoint: str) -> None:
    loop = becket.EventLoop()
    loop.add_scheme(Rudp())

    async def main() -> None:
        transport, client = await loop.connect_endpoint(lambda: Recorder(loop), endpoint)
        await send_mail(client, transport)

    try:
        loop.run_until_complete(asyncio.wait_for(main(), PATIENCE))
    finally:
        loop.close()
