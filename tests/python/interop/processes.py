"""The programs that these tests start: servers on becket, whose every line of output is looked at,
and the clients of others."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# A guard against a hang, below pytest's own so that the reason is told; nothing comes near it.
PATIENCE = 60
# Debug mode tells of callbacks that took long: on a busy machine any may.
SLOW = re.compile(r"Executing .* took [\d.]+ seconds")


def find_program(name: str) -> str:
    """The path of a program; without it the test is skipped."""
    path = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin:/sbin"
    found = shutil.which(name, path=path)
    return found or pytest.skip(f"{name} is not installed")


def environment_of_others() -> dict[str, str]:
    """Sanitizers, when there are any, are for our own code."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def run_program(name: str, *arguments: object, status: int = 0, data: str = "") -> str:
    """Run another's program to its end; returns all it said."""
    done = subprocess.run(
        [find_program(name), *map(str, arguments)],
        input=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment_of_others(),
        encoding="utf-8",
        errors="replace",
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == status, f"{name}: exit status {done.returncode}\n{done.stdout}"
    return done.stdout


DEVELOPMENT = ("-X", "dev", "-W", "error")


class Server:
    """A Python program that serves until it gets a signal, in *development* mode, with warnings as
    errors; or another's program, by a *command*, as a *user*. Use it in a ``with`` statement: what
    it said beyond the *expected* lines (errors that were logged, warnings at exit, tracebacks) is
    then an AssertionError, as is an exit status other than *status*."""

    def __init__(
        self,
        *arguments: object,
        expected: str,
        pass_fds: Sequence[int] = (),
        environment: dict[str, str] | None = None,
        status: int = 0,
        development: bool = True,
        command: Sequence[object] = (),
        user: str | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._status = status
        self._expected = re.compile(expected)
        self._said = threading.Condition()
        self._over = False
        self._ended_by: int | None = None
        if command:
            surroundings = environment_of_others()
        else:
            command = (sys.executable, *(DEVELOPMENT if development else ()))
            surroundings = os.environ | {"PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [*map(str, command), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=surroundings | (environment or {}),
            user=user,
            encoding="utf-8",
            errors="replace",
            pass_fds=pass_fds,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._said:
                self.lines.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self._over = True
            self._said.notify_all()

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until that many of its lines match; returns the last of these matches."""

        def found() -> list[re.Match[str]]:
            return [m for m in map(re.compile(pattern).search, self.lines) if m]

        with self._said:
            self._said.wait_for(lambda: len(found()) >= count or self._over, PATIENCE)
            assert len(found()) >= count, f"{count} x {pattern!r} is not in:\n{self.output}"
            return found()[count - 1]

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def about(self, name: str) -> Path:
        """What the system tells of the process."""
        path = Path("/proc", str(self.process.pid), name)
        return path if path.exists() else pytest.skip("there is no /proc here")

    def descriptors(self) -> int:
        """How many are open."""
        return len(list(self.about("fd").iterdir()))

    def wait_for_descriptors(self, count: int) -> None:
        """Wait until no more than that many are open: whoever has left is noticed in time."""
        deadline = time.monotonic() + PATIENCE
        while (now := self.descriptors()) > count:
            assert time.monotonic() < deadline, f"{now} descriptors are open, there were {count}"
            time.sleep(0.01)

    def end(self, number: int = signal.SIGINT) -> None:
        """End it by a signal and wait for that; SIGKILL is never its own fault."""
        if self._ended_by is None:
            self._ended_by = number
            self.process.send_signal(number)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"signal {number} did not end it:\n{self.output}") from None
        self._reader.join(PATIENCE)

    def check(self) -> None:
        """What it said and how it ended; only after it has."""
        unexpected = [
            line
            for line in self.lines
            if not self._expected.fullmatch(line) and not SLOW.fullmatch(line)
        ]
        assert not unexpected, "the server said:\n" + "\n".join(unexpected[:100])
        status = -signal.SIGKILL if self._ended_by == signal.SIGKILL else self._status
        assert self.process.returncode == status, self.output

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.end()
                self.check()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(PATIENCE)
            self.process.stdout.close()
            if kind is not None:
                print("\n".join(["The server said:", *self.lines[:100]]))


def run_wrk(*arguments: object) -> int:
    """Load a server by wrk, which keeps its connections; returns how many requests were answered.
    AssertionError when one failed, was not answered by 2xx or 3xx, or not as echo.lua wants. On a
    machine that is busy the first answers may come after its time: it is given some more, then."""
    for _ in range(PATIENCE):
        if answered := _run_wrk(*arguments):
            return answered
    return 0


def _run_wrk(*arguments: object) -> int:
    said = run_program("wrk", "--timeout", f"{PATIENCE}s", *arguments)
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said
    wrong = re.search(r"(\d+) wrong answers", said)
    assert wrong is None or wrong[1] == "0", said
    return int(re.search(r"(\d+) requests in", said)[1])
