"""Child processes of a becket.EventLoop: asyncio's subprocess transports, whose pipes are the
core's, and whose end is heard of in any thread that runs a loop.

Where the system has descriptors of processes (Linux's pidfd), the loop watches one; elsewhere a
thread waits for each child. Child watchers, which asyncio had until Python 3.13, are not asked.
Called by EventLoop.subprocess_exec() and subprocess_shell().
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
from asyncio import base_subprocess
from asyncio.log import logger
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from becket.loop import EventLoop

    class _Base(base_subprocess.BaseSubprocessTransport):
        _proc: subprocess.Popen[bytes]
        _loop: EventLoop

        def _process_exited(self, returncode: int) -> None: ...
        async def _wait(self) -> int: ...
else:
    _Base = base_subprocess.BaseSubprocessTransport

UNKNOWN = 255  # the status of a child that somebody else has waited for; asyncio's


class SubprocessTransport(_Base):
    """A child process. Not thread-safe."""

    def _start(
        self,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        **more: Any,
    ) -> None:
        self._proc = subprocess.Popen(
            args, shell=shell, stdin=stdin, stdout=stdout, stderr=stderr,
            universal_newlines=False, bufsize=bufsize, **more,
        )  # fmt: skip

    def _ended(self) -> None:
        """On the loop: it can be waited for, and that does not block."""
        status = self._proc.returncode  # close() may have been told already
        if status is None:
            status = wait(self._proc.pid)
        self._process_exited(status)


def wait(pid: int) -> int:
    """Wait for a child; as subprocess's returncode."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        logger.warning(
            "child process %d exit status already read: will report returncode %d", pid, UNKNOWN
        )
        return UNKNOWN


class Waiter:
    """Tells a loop of the end of its children. Of the loop's thread."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop: EventLoop | None = loop  # until it is closed
        self._descriptors: set[int] = set()

    def watch(self, pid: int, ended: Callable[[], object]) -> None:
        """Call *ended* on the loop when that child can be waited for."""
        assert self._loop is not None
        try:
            descriptor = open_descriptor(pid)
        except ProcessLookupError:  # waited for already
            self._loop.call_soon(ended)
        except OSError:  # this system has none, or none is left
            start_thread(self._loop, pid, ended)
        else:
            self._descriptors.add(descriptor)
            self._loop._add_reader(descriptor, self._heard, descriptor, ended)

    def _heard(self, descriptor: int, ended: Callable[[], object]) -> None:
        self._forget(descriptor)
        ended()

    def _forget(self, descriptor: int) -> None:
        assert self._loop is not None
        self._loop._remove_reader(descriptor)
        self._descriptors.remove(descriptor)
        os.close(descriptor)

    def close(self) -> None:
        """What still runs is waited for by nobody."""
        for descriptor in list(self._descriptors):
            self._forget(descriptor)
        self._loop = None


def open_descriptor(pid: int) -> int:
    """A descriptor that can be read from when the process has ended. OSError: there is none."""
    if not hasattr(os, "pidfd_open"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return os.pidfd_open(pid)


def start_thread(loop: EventLoop, pid: int, ended: Callable[[], object]) -> None:
    """The same, where a thread has to wait for the child."""

    def run() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(ended)

    threading.Thread(target=run, name=f"becket-waitpid-{pid}", daemon=True).start()
