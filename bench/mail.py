"""The mail cells: who takes part in each, and how they are measured.

The load is smtp-source, which comes with Postfix: 50 sessions, messages of 1 KiB, a connection for
each or the same ones again; and where TLS is compared with plain, bench/mail_load.c for both. The
servers drop what they get, but for the cell whose server stores it, beside what one who waits for
the disk after each message could store. bench/run.py makes a cell of each entry of CELLS,
bench/report.py shows whether the targets were met.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import loads
from peers import HERE
from serving import Target

if TYPE_CHECKING:
    from measure import Bench, Sample, Server

SESSIONS = 50
SERVER = HERE / "servers" / "mail_server.py"
# What is imported for a library.
LIBRARIES = {"becket": "becket", "aiosmtpd": "aiosmtpd", "twisted": "Twisted"}
SBIN = ("/usr/sbin", "/usr/lib/postfix/sbin", "/sbin")
PYTHON = ("becket", "aiosmtpd", "twisted")
C = "becket (C)"
SINK = "smtp-sink"
PLAIN, TLS, MAILDIR = ", plain", ", TLS", ", Maildir"  # what ends a label
ONE = "one fsync at a time"


@dataclass(frozen=True)
class MailCell:
    """*reused*: messages come on connections that are kept; *own*: the load is mail_load.c, and
    labels say whether it is over TLS. *stored*: messages are on disk when they are answered."""

    labels: tuple[str, ...]
    reused: bool
    own: bool = False
    targets: tuple[Target, ...] = ()
    sessions: int = SESSIONS
    stored: bool = False


def targets(sink: float) -> tuple[Target, ...]:
    return (
        Target(C, "rate", least=sink, ratio_to=SINK),
        Target("becket", "rate", least=6, ratio_to="aiosmtpd"),
        Target("becket", "rate", least=3, ratio_to="twisted"),
    )


ALL = (C, SINK, *PYTHON)
CELLS = {
    "smtp/new": MailCell(ALL, False, targets=targets(1.0)),
    "smtp/reused": MailCell(ALL, True, targets=targets(1.2)),
    "smtp/tls": MailCell(
        (f"{C}{PLAIN}", f"{C}{TLS}", f"becket{PLAIN}", f"becket{TLS}"),
        True,
        own=True,
        targets=(Target(f"{C}{TLS}", "rate", least=0.8, ratio_to=f"{C}{PLAIN}"),),
    ),
    "smtp/maildir": MailCell(
        (f"{C}{MAILDIR}", ONE),
        True,
        targets=(Target(f"{C}{MAILDIR}", "rate", least=2, ratio_to=ONE),),
        sessions=20,
        stored=True,
    ),
}


def find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=":".join(SBIN))


def command(label: str, build: Path, endpoint: str) -> list[str] | None:
    """What starts this server there; None: it is not here."""
    if label == ONE:
        return []  # it is no server
    label = label.removesuffix(PLAIN).removesuffix(TLS).removesuffix(MAILDIR)
    if label == C:
        program = build / "bench-becket-smtp"
        return [str(program), endpoint] if program.exists() else None
    if label == SINK:
        sink = find("smtp-sink")
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        return [sink, *user, endpoint.removeprefix("tcp:"), "1024"] if sink else None
    try:
        importlib.metadata.version(LIBRARIES[label])
    except importlib.metadata.PackageNotFoundError:
        return None
    return [sys.executable, str(SERVER), "--library", label, endpoint]


def labels(cell: MailCell, build: Path) -> Iterator[str]:
    """Those that are here."""
    if cell.own or find("smtp-source"):
        yield from (label for label in cell.labels if command(label, build, "tcp:") is not None)


def load_command(cell: MailCell, build: Path, endpoint: str, count: int) -> list[str]:
    if cell.own:
        return [str(build / "bench-mail-load"), endpoint, str(cell.sessions), str(count)]
    where = endpoint.removeprefix("tcp:")
    keep = ["-d"] if cell.reused else []
    program = find("smtp-source") or "smtp-source"
    size = ["-s", str(cell.sessions), "-l", "1024", "-m", str(count)]
    ends = ["-f", "a@b.example", "-t", "c@d.example", f"inet:{where}"]
    return [program, *size, *keep, *ends]


def measure(bench: Bench, server: Server, cell: MailCell) -> Sample:
    """A little load tells how much fills the window."""

    def once(count: int) -> loads.Load:
        command = load_command(cell, bench.load.parent, server.endpoint, count)
        return loads.run(command, bench.load_core, server.pid)

    trial = 10 * cell.sessions
    count = max(trial, round(trial / once(trial).seconds * bench.seconds))
    load = once(count)
    # Who waits for a disk has his core to himself for nothing.
    return load.sample(count) if cell.stored else {**load.sample(count), "busy": load.busy}


def one_at_a_time(bench: Bench) -> Sample:
    """How many messages a second a store writes that does one after the other what a Maildir asks
    for: write, fsync, rename, fsync of the folder."""
    with tempfile.TemporaryDirectory(dir=bench.scratch) as name:
        tmp, new = Path(name, "tmp"), Path(name, "new")
        tmp.mkdir()
        new.mkdir()
        folder = os.open(new, os.O_RDONLY)
        count, start = 0, time.monotonic()
        while (spent := time.monotonic() - start) < bench.seconds:
            with open(tmp / str(count), "xb", buffering=0) as file:
                file.write(bytes(1400))
                os.fsync(file)
            os.rename(tmp / str(count), new / str(count))
            os.fsync(folder)
            count += 1
        os.close(folder)
    return {"rate": count / spent}
