"""aiosmtpd on becket.EventLoop: the server of test_aiosmtpd.py.

    aiosmtpd_app.py PORT SOCKET FOLDER

Two of aiosmtpd's own controllers, each with a loop in a thread of its own: one at that port of
127.0.0.1, one at the UNIX socket. Each message becomes two files in the folder: what was sent, and
who sent it to whom. It ends by SIGINT or SIGTERM.
"""

from __future__ import annotations

import itertools
import signal
import sys
from pathlib import Path

from aiosmtpd.controller import Controller, UnixSocketController
from aiosmtpd.smtp import SMTP, Envelope, Session

import becket


class Keeper:
    """Keeps each message as it came."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    async def handle_DATA(self, server: SMTP, _: Session, envelope: Envelope) -> str:
        assert isinstance(server.loop, becket.EventLoop)
        name = f"{next(self._numbers)}"
        (self._folder / f"{name}.data").write_bytes(envelope.original_content)
        people = [envelope.mail_from, *envelope.rcpt_tos]
        (self._folder / f"{name}.people").write_text("\n".join(people), encoding="utf-8")
        return "250 kept"


def main(port: str, path: str, folder: str) -> None:
    # Signals are for this thread; it has no loop.
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    keeper = Keeper(Path(folder))
    options = {"data_size_limit": 32 * 1024 * 1024, "ident": "aiosmtpd"}
    controllers = [
        Controller(keeper, "127.0.0.1", int(port), loop=becket.EventLoop(), **options),
        UnixSocketController(keeper, path, loop=becket.EventLoop(), **options),
    ]
    for controller in controllers:
        controller.loop.slow_callback_duration = 60
        controller.start()
    print("listening", flush=True)
    signal.sigwait(signals)
    for controller in controllers:
        controller.stop()
    print("ended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
