"""Signals: handlers on the loop, Ctrl-C, and signals that come at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import becket
from conftest import make_loop
from support import Loop, Reports, run, turns, until


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    """A test leaves the dispositions, and the descriptor that is woken, as it found them."""
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == before
    assert signal.set_wakeup_fd(-1) == -1


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def send_later(seconds: float) -> None:
    """SIGUSR1 to the main thread, from another one. (SIGALRM guards the tests themselves.)"""
    threading.Timer(
        seconds, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)
    ).start()


@contextmanager
def handling(handle: Callable[[int, Any], None]) -> Iterator[None]:
    """A plain handler of SIGUSR1, which stays until every send_later() has sent."""
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield
    finally:
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_is_called_on_the_loop(loop: Loop) -> None:
    calls: list[object] = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "called")
    loop.call_soon(send, signal.SIGUSR1)
    run(loop, until(lambda: calls))
    assert calls == ["called"]
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert loop.remove_signal_handler(signal.SIGUSR1) is False


def test_a_signal_ends_a_wait(loop: Loop) -> None:
    calls: list[object] = []

    def handle() -> None:
        calls.append(asyncio.get_running_loop())
        loop.stop()

    loop.add_signal_handler(signal.SIGUSR1, handle)
    send_later(0.01)
    loop.run_forever()
    assert calls == [loop]
    loop.remove_signal_handler(signal.SIGUSR1)


def test_signals_before_and_between_runs_are_not_lost(loop: Loop) -> None:
    calls: list[int] = []

    async def main() -> None:
        loop.add_signal_handler(signal.SIGUSR2, calls.append, 2)

    loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)
    send(signal.SIGUSR1)
    run(loop, until(lambda: calls))
    run(loop, main())
    send(signal.SIGUSR2)
    run(loop, until(lambda: len(calls) == 2))
    assert calls == [1, 2]
    loop.remove_signal_handler(signal.SIGUSR1)
    loop.remove_signal_handler(signal.SIGUSR2)


def test_replacing_a_handler(loop: Loop) -> None:
    calls: list[int] = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)
    loop.add_signal_handler(signal.SIGUSR1, calls.append, 2)
    send(signal.SIGUSR1)
    run(loop, until(lambda: calls))
    assert calls == [2]
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_handler_that_fails_is_reported(loop: Loop, reports: Reports) -> None:
    loop.add_signal_handler(signal.SIGUSR1, lambda: 1 / 0)
    send(signal.SIGUSR1)
    run(loop, until(lambda: reports.all))
    assert isinstance(reports.take()["exception"], ZeroDivisionError)
    loop.remove_signal_handler(signal.SIGUSR1)


def test_what_cannot_be_handled(loop: Loop) -> None:
    for wrong in (signal.SIGKILL, signal.SIGSTOP):
        with pytest.raises(RuntimeError, match="cannot be caught"):
            loop.add_signal_handler(wrong, print)
    for number in (0, -1, 10_000):
        with pytest.raises(ValueError):
            loop.add_signal_handler(number, print)
    with pytest.raises(TypeError):
        loop.add_signal_handler("SIGUSR1", print)  # type: ignore[arg-type]

    async def coroutine() -> None:
        pass

    with pytest.raises(TypeError, match="coroutines cannot be used"):
        loop.add_signal_handler(signal.SIGUSR1, coroutine)


def test_only_the_main_thread_handles_signals(kind: str) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        loop = make_loop(kind)
        try:
            loop.add_signal_handler(signal.SIGUSR1, print)
        except (ValueError, RuntimeError) as error:
            errors.append(error)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_close_removes_the_handlers(kind: str) -> None:
    loop = make_loop(kind)
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.close()


def test_many_signals(loop: Loop) -> None:
    count = 0

    def handle() -> None:
        nonlocal count
        count += 1

    async def main() -> None:
        for number in range(1, 200):
            send(signal.SIGUSR1)
            await until(lambda n=number: count >= n)

    loop.add_signal_handler(signal.SIGUSR1, handle)
    run(loop, main())
    assert count == 199
    loop.remove_signal_handler(signal.SIGUSR1)


# ---- Handlers of Python ----


def test_a_plain_handler_runs_while_the_loop_waits(loop: Loop) -> None:
    calls: list[int] = []

    def handle(number: int, frame: Any) -> None:
        calls.append(number)
        loop.call_soon_threadsafe(loop.stop)

    with handling(handle):
        send_later(0.01)
        loop.run_forever()
    assert calls == [signal.SIGUSR1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_what_a_plain_handler_raises_comes_out_of_the_run(
    loop: Loop, error: type[BaseException]
) -> None:
    def handle(number: int, frame: Any) -> None:
        raise error

    calls: list[int] = []
    with handling(handle), pytest.raises(error):
        send_later(0.05)
        loop.run_forever()
    loop.call_soon(calls.append, 1)
    run(loop, turns())
    assert calls == [1]


def test_a_signal_in_the_moment_before_the_wait_ends_it(becket_loop: becket.EventLoop) -> None:
    """Its handler must not stay for the next event, which may never come."""
    loop = becket_loop
    calls: list[int] = []

    def handle(number: int, frame: Any) -> None:
        calls.append(number)
        loop.stop()

    with handling(handle):
        for microseconds in range(0, 1000, 10):
            send_later(microseconds / 1e6)
            loop.run_forever()
    assert len(calls) == 100


def test_interrupted_waits_go_on(loop: Loop) -> None:
    calls: list[int] = []
    with handling(lambda number, frame: calls.append(number)):
        for milliseconds in range(1, 40):
            send_later(milliseconds / 1000)
        start = loop.time()
        run(loop, asyncio.sleep(0.05))
        assert loop.time() - start >= 0.05 - 0.001
    assert calls


# ---- Ctrl-C ----


def test_ctrl_c_cancels_what_a_runner_runs(kind: str) -> None:
    ended: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.001, send, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with asyncio.Runner(loop_factory=lambda: make_loop(kind)) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.run(main())
        assert ended == ["cancelled"]
        assert runner.run(asyncio.sleep(0, "and goes on")) == "and goes on"


def test_ctrl_c_in_a_program_that_computes(kind: str) -> None:
    async def main() -> None:
        send(signal.SIGINT)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            await asyncio.sleep(0)

    with (
        pytest.raises(KeyboardInterrupt),
        asyncio.Runner(loop_factory=lambda: make_loop(kind)) as runner,
    ):
        runner.run(main())


def test_ctrl_c_from_outside_ends_a_program() -> None:
    program = (
        "import asyncio, becket\n"
        "async def main():\n"
        "    print('ready', flush=True)\n"
        "    try: await asyncio.Event().wait()\n"
        "    finally: print('ended', flush=True)\n"
        "becket.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert out == "ended\n"
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT


def test_a_loop_without_handlers_leaves_the_wakeup_descriptor_alone(
    becket_loop: becket.EventLoop,
) -> None:
    a, b = os.pipe()
    os.set_blocking(b, False)
    signal.set_wakeup_fd(b)
    run(becket_loop, turns())
    assert signal.set_wakeup_fd(-1) == b
    os.close(a)
    os.close(b)
