"""Child processes: statuses, pipes, and who waits for them; with a descriptor of the process, and
with a thread where there is none."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from typing import Any

import pytest

import becket
from becket import processes
from support import Loop, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a POSIX system's processes")


def no_descriptor(pid: int) -> int:
    raise OSError


@pytest.fixture(params=["descriptor", "thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the end of a child is heard of."""
    if request.param == "thread":
        monkeypatch.setattr(processes, "open_descriptor", no_descriptor)
    return str(request.param)


async def python(code: str, *args: str, **more: Any) -> Process:
    """A child that runs that code."""
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, *args, **more)


# ---- Statuses ------------------------------------------------------------------------------------


def test_statuses(loop: Loop, way: str) -> None:
    async def main() -> None:
        child = await asyncio.create_subprocess_exec("true")
        assert await child.wait() == 0 == child.returncode
        child = await asyncio.create_subprocess_shell("exit 7")
        assert await child.wait() == 7
        assert await child.wait() == 7, "asked once more"

    run(loop, main())


@pytest.mark.parametrize("how", ["terminate", "kill", "send_signal"])
def test_signals(loop: Loop, way: str, how: str) -> None:
    expected = {"terminate": signal.SIGTERM, "kill": signal.SIGKILL, "send_signal": signal.SIGUSR1}

    async def main() -> None:
        child = await asyncio.create_subprocess_exec("sleep", "100")
        getattr(child, how)(*([signal.SIGUSR1] if how == "send_signal" else []))
        assert await child.wait() == -expected[how]
        with pytest.raises(ProcessLookupError):
            child.kill()

    run(loop, main())


def test_many_at_once(loop: Loop, way: str) -> None:
    async def one(status: int) -> None:
        child = await asyncio.create_subprocess_exec("sh", "-c", f"exit {status}")
        assert await child.wait() == status

    async def main() -> None:
        await asyncio.gather(*map(one, range(30)))

    run(loop, main())


def test_a_program_that_is_not_there(loop: Loop) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/nowhere/to/be/found")

    run(loop, main())


def test_one_that_somebody_else_has_waited_for(
    becket_loop: becket.EventLoop, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        assert await child.wait() == processes.UNKNOWN

    with caplog.at_level(logging.WARNING):
        run(becket_loop, main())
    assert "exit status already read" in caplog.text


def test_a_signal_at_the_moment_of_its_end(becket_loop: becket.EventLoop, way: str) -> None:
    """Popen.send_signal() finds that it has ended, and waits for it: that is how it ended."""

    async def main() -> None:
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == -signal.SIGKILL

    run(becket_loop, main())


def test_one_that_is_gone_before_it_is_watched(
    becket_loop: becket.EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(pid: int) -> int:
        raise ProcessLookupError

    async def main() -> None:
        child = await asyncio.create_subprocess_exec("true")
        assert await child.wait() == 0

    monkeypatch.setattr(processes, "open_descriptor", gone)
    run(becket_loop, main())


# ---- Pipes ---------------------------------------------------------------------------------------


def test_both_ways(loop: Loop, way: str) -> None:
    data = os.urandom(1_000_000)

    async def main() -> None:
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        assert await child.communicate(data) == (data, None)
        assert child.returncode == 0

    run(loop, main())


def test_errors_have_a_pipe_of_their_own(loop: Loop) -> None:
    async def main() -> None:
        code = "import sys; sys.stdout.write('out'); sys.stderr.write('err')"
        child = await python(code, stdout=PIPE, stderr=PIPE, stdin=DEVNULL)
        assert await child.communicate() == (b"out", b"err")
        child = await python(code, stdout=PIPE, stderr=STDOUT)
        both, none = await child.communicate()
        assert sorted(both) == sorted(b"outerr") and none is None

    run(loop, main())


def test_pipes_are_pipes(becket_loop: becket.EventLoop) -> None:
    """asyncio gives a child a socket for stdin up to Python 3.11; some programs mind."""

    async def main() -> None:
        code = "import os, sys; print(*(os.fstat(fd).st_mode for fd in (0, 1)))"
        child = await python(code, stdin=PIPE, stdout=PIPE)
        answer, _ = await child.communicate()
        assert [stat.S_ISFIFO(int(mode)) for mode in answer.split()] == [True, True]

    run(becket_loop, main())


def test_a_child_that_does_not_read(loop: Loop) -> None:
    async def main() -> None:
        child = await asyncio.create_subprocess_exec("true", stdin=PIPE)
        assert child.stdin is not None
        assert await child.wait() == 0
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1000):
                child.stdin.write(b"x" * 1000)
                await child.stdin.drain()
        child.stdin.close()

    run(loop, main())


# ---- Waiting for them ----------------------------------------------------------------------------


def test_in_any_thread(way: str) -> None:
    """No loop runs in the main thread, and nobody set a child watcher up."""
    statuses: list[int] = []

    async def main() -> None:
        child = await asyncio.create_subprocess_shell("exit 3")
        statuses.append(await child.wait())

    def work() -> None:
        with asyncio.Runner(loop_factory=becket.EventLoop) as runner:
            runner.run(main())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [3, 3, 3]


def test_a_descriptor_needs_no_thread(becket_loop: becket.EventLoop) -> None:
    if not hasattr(os, "pidfd_open"):
        pytest.skip("this system has no descriptors of processes")

    async def main() -> None:
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        assert not any("waitpid" in thread.name for thread in threading.enumerate())
        assert child.stdin is not None
        child.stdin.close()
        assert await child.wait() == 0

    run(becket_loop, main())


def test_the_loop_is_closed_first(way: str, no_leaks: None) -> None:
    loop = becket.EventLoop()

    async def main() -> tuple[asyncio.SubprocessTransport, asyncio.SubprocessProtocol]:
        return await loop.subprocess_exec(asyncio.SubprocessProtocol, "cat", stdout=None)

    transport, _ = loop.run_until_complete(main())
    process = transport.get_extra_info("subprocess")
    transport.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert process.wait() == -signal.SIGKILL
    for thread in threading.enumerate():
        if "waitpid" in thread.name:
            thread.join()


def test_closing_ends_the_child(loop: Loop, way: str) -> None:
    ended: list[int | None] = []

    class Protocol(asyncio.SubprocessProtocol):
        def process_exited(self) -> None:
            ended.append(transport.get_returncode())

    async def main() -> None:
        nonlocal transport
        transport, _ = await loop.subprocess_exec(Protocol, "sleep", "100")
        transport.close()
        while not ended:
            await asyncio.sleep(0.001)

    transport: Any = None
    run(loop, main())
    assert ended == [-signal.SIGKILL]


def test_creation_is_cancelled(becket_loop: becket.EventLoop, way: str) -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.create_subprocess_exec("sleep", "100", stdin=PIPE))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not becket_loop._children._descriptors

    run(becket_loop, main())


def test_children_that_are_reaped_by_the_system(becket_loop: becket.EventLoop, way: str) -> None:
    """With SIGCHLD ignored nobody learns how they ended; that they did, is heard."""

    async def main() -> None:
        child = await asyncio.create_subprocess_exec("true")
        assert await child.wait() == processes.UNKNOWN

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        run(becket_loop, main())
    finally:
        signal.signal(signal.SIGCHLD, before)
