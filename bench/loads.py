"""Programs that are run on a core of their own; and loads that are others' programs (smtp-source,
wrk), with what the server spent meanwhile. For bench/measure.py, mail.py and web.py.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 60


class Failure(Exception):
    """A measurement that could not be made."""


@dataclass(frozen=True)
class Load:
    """What it took: seconds of the clock, of CPU of the load's own, and of the server's."""

    seconds: float
    own: float
    user: float
    system: float
    said: str

    def sample(self, count: int) -> dict[str, float]:
        """Where so many were served."""
        return {
            "rate": count / self.seconds,
            "user_us": self.user / count * 1e6,
            "system_us": self.system / count * 1e6,
            "cpu_us": (self.user + self.system) / count * 1e6,
        }

    @property
    def busy(self) -> float:
        """The part of the time in which the busier of both had its core."""
        return max(self.own, self.user + self.system) / self.seconds


@contextlib.contextmanager
def on_core(*cores: int) -> Iterator[None]:
    """Children started inside run on these cores only, from their first instruction."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_of(pid: int) -> tuple[float, float]:
    """User and system seconds so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def run_to_end(
    command: Sequence[str], core: int, patience: float = PATIENCE_SECONDS
) -> subprocess.CompletedProcess[str]:
    """A program on *core*, whatever its status is. Failure: it took longer than *patience*."""
    pipe = subprocess.PIPE
    with on_core(core):
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace")
    with process:
        try:
            out, complaint = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            name = Path(command[0]).name
            raise Failure(f"{name} had not ended after {patience:.0f} s") from None
    return subprocess.CompletedProcess(command, process.returncode, out, complaint)


def run(command: Sequence[str], core: int, server: int) -> Load:
    """The load, to its end, on *core*; *server* is a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    user, system = cpu_of(server)
    done = run_to_end(command, core)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise Failure((done.stderr.strip() or f"status {done.returncode}")[:200])
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    user_after, system_after = cpu_of(server)
    return Load(seconds, own, user_after - user, system_after - system, done.stdout)
