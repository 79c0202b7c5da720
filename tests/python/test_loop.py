"""Running, stopping and closing a loop; choosing its notifier; what happens to exceptions."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

import becket
from conftest import make_loop
from support import Loop, Reports, run, turns

# ---- Running ----


def test_run_until_complete_returns_the_result(loop: Loop) -> None:
    async def main() -> int:
        await asyncio.sleep(0)
        return 7

    assert loop.run_until_complete(main()) == 7
    future = loop.create_future()
    loop.call_soon(future.set_result, 8)
    assert loop.run_until_complete(future) == 8


def test_run_until_complete_raises_what_the_coroutine_raises(loop: Loop) -> None:
    async def main() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        loop.run_until_complete(main())
    assert loop.run_until_complete(asyncio.sleep(0, "goes on")) == "goes on"


def test_run_until_complete_that_is_stopped_early(loop: Loop) -> None:
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        loop.run_until_complete(future)


def test_running_is_seen_inside_and_only_there(loop: Loop) -> None:
    async def main() -> tuple[bool, Loop]:
        return loop.is_running(), asyncio.get_running_loop()

    assert not loop.is_running()
    assert loop.run_until_complete(main()) == (True, loop)
    assert not loop.is_running()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_loop_does_not_run_inside_itself_or_another(loop: Loop, kind: str) -> None:
    other = make_loop(kind)

    async def main() -> None:
        work = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="while another loop is running"):
            other.run_until_complete(work)
        work.close()
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_forever()

    loop.run_until_complete(main())
    other.close()


def test_stop_ends_a_run_after_the_callbacks_that_are_ready(loop: Loop) -> None:
    calls = []
    loop.call_soon(calls.append, 1)
    loop.call_soon(loop.stop)
    loop.call_soon(calls.append, 2)
    loop.call_soon(lambda: loop.call_soon(calls.append, 3))
    loop.run_forever()
    assert calls == [1, 2]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert calls == [1, 2, 3]


def test_stop_before_a_run_lets_one_turn_happen(loop: Loop) -> None:
    calls = []
    loop.call_soon(calls.append, "once")
    loop.stop()
    loop.run_forever()
    assert calls == ["once"]


def test_stop_counts_once(loop: Loop) -> None:
    loop.stop()
    loop.stop()
    loop.run_forever()
    calls: list[int] = []
    loop.call_later(0.01, calls.append, 1)
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert calls == [1]


def test_stop_from_a_timer_and_from_a_thread(loop: Loop) -> None:
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(loop.stop,))
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


def test_a_loop_runs_in_a_thread_that_is_not_the_main_one(kind: str) -> None:
    results = []

    def work() -> None:
        loop = make_loop(kind)
        results.append(loop.run_until_complete(asyncio.sleep(0.001, "done")))
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == ["done"]


def test_run_forever_keeps_asynchronous_generators_in_view(loop: Loop) -> None:
    ended = []

    async def count() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def main() -> AsyncIterator[int]:
        generator = count()
        assert await generator.__anext__() == 1
        return generator

    generator = loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert ended == [True]
    del generator


def test_shutdown_default_executor_waits_for_its_threads(loop: Loop) -> None:
    ended = []
    event = threading.Event()

    def work() -> None:
        event.wait(60)
        ended.append(True)

    future = loop.run_in_executor(None, work)
    loop.call_later(0.01, event.set)
    loop.run_until_complete(loop.shutdown_default_executor())
    assert ended == [True]
    loop.run_until_complete(future)
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        loop.run_in_executor(None, print)


# ---- Closing ----


def test_close_twice_and_what_a_closed_loop_refuses(loop: Loop) -> None:
    loop.close()
    loop.close()
    assert loop.is_closed()
    for call in (
        lambda: loop.call_soon(print),
        lambda: loop.call_soon_threadsafe(print),
        lambda: loop.call_later(1, print),
        lambda: loop.call_at(1, print),
        loop.run_forever,
        lambda: loop.add_reader(0, print),
        lambda: loop.run_in_executor(None, print),
    ):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call()
    work = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.create_task(work)
    work.close()


def test_close_is_refused_while_running(loop: Loop) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop.close()

    loop.run_until_complete(main())
    assert not loop.is_closed()


def test_close_drops_what_still_waits(loop: Loop) -> None:
    class Thing:
        pass

    thing, calls = Thing(), []
    known = weakref.ref(thing)
    loop.call_soon(calls.append, thing)
    loop.call_later(1, calls.append, thing)
    handle = loop.call_later(2, calls.append, thing)
    a, b = os.pipe()
    loop.add_reader(a, calls.append, thing)
    loop.remove_reader(a)
    loop.close()
    handle.cancel()
    os.close(a)
    os.close(b)
    del thing, handle
    gc.collect()
    assert calls == []
    assert known() is None


def test_close_with_a_cycle_through_a_ready_callback_is_collected(kind: str) -> None:
    class Owner:
        def __init__(self, loop: Loop) -> None:
            self.soon = loop.call_soon(self.call)
            self.later = loop.call_later(1, self.call)

        def call(self) -> None:
            raise AssertionError

    loop = make_loop(kind)
    known = weakref.ref(Owner(loop))
    gc.collect()
    assert known() is not None
    loop.close()
    gc.collect()
    assert known() is None


def test_a_loop_that_was_not_closed_warns(kind: str) -> None:
    loop = make_loop(kind)
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        del loop
        gc.collect()


def test_a_closed_loop_is_freed(kind: str) -> None:
    loop = make_loop(kind)
    known = weakref.ref(loop)
    run(loop, asyncio.sleep(0))
    loop.close()
    del loop
    gc.collect()
    assert known() is None


def test_a_thousand_loops_one_after_another(kind: str, no_leaks: None) -> None:
    for _ in range(1000):
        loop = make_loop(kind)
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()


# ---- Exceptions ----


def test_an_exception_in_a_callback_is_reported(loop: Loop, reports: Reports) -> None:
    calls: list[int] = []
    error = ZeroDivisionError("mine")

    def fail() -> None:
        raise error

    handle = loop.call_soon(fail)
    loop.call_soon(calls.append, 1)
    run(loop, turns())
    context = reports.take()
    assert set(context) == {"message", "exception", "handle"}
    assert context["exception"] is error
    assert context["handle"] is handle
    assert context["message"].startswith("Exception in callback ")
    assert "fail() at " in context["message"]
    assert calls == [1]
    assert error.__traceback__ is not None


def test_an_exception_in_a_timer_and_in_a_reader_is_reported(loop: Loop, reports: Reports) -> None:
    def fail(name: str) -> None:
        loop.remove_reader(a)
        raise ZeroDivisionError(name)

    a, b = os.pipe()
    os.write(b, b"x")
    loop.add_reader(a, fail, "reader")
    handle = loop.call_later(0.001, fail, "timer")
    run(loop, asyncio.sleep(0.01))
    assert [str(e) for e in reports.exceptions] == ["reader", "timer"]
    assert reports.all[1]["handle"] is handle
    os.close(a)
    os.close(b)


def test_debug_mode_tells_where_the_callback_came_from(loop: Loop, reports: Reports) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    def schedule() -> None:
        loop.call_soon(fail)

    loop.set_debug(True)
    loop.call_soon(schedule)  # a handle made inside of a callback knows its maker too
    run(loop, turns())
    context = reports.take()
    assert set(context) == {"message", "exception", "handle", "source_traceback"}
    assert context["source_traceback"][-1].name == "schedule"


def test_the_exception_handler_runs_in_the_context_of_the_callback(loop: Loop) -> None:
    import contextvars

    name = contextvars.ContextVar("name", default="outside")
    context = contextvars.copy_context()
    context.run(name.set, "inside")
    seen = []
    loop.set_exception_handler(lambda _loop, _context: seen.append(name.get()))
    loop.call_soon(lambda: 1 / 0, context=context)
    run(loop, turns())
    assert seen == ["inside" if sys.version_info >= (3, 12) else "outside"]


def test_an_exception_handler_that_fails_is_logged(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.set_exception_handler(lambda _loop, _context: 1 / 0)
    loop.call_soon(lambda: [].pop())
    run(loop, turns())
    assert "Unhandled error in exception handler" in caplog.text


def test_the_default_exception_handler_logs(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_exception_handler(None)
    loop.call_soon(lambda: 1 / 0)
    run(loop, turns())
    assert "Exception in callback" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("way", ["soon", "timer", "reader"])
def test_what_ends_a_program_ends_the_run_and_loses_no_callback(
    loop: Loop, error: type[BaseException], way: str
) -> None:
    calls = []

    def end() -> None:
        loop.remove_reader(a)
        loop.call_soon(calls.append, 2)
        raise error

    a, b = os.pipe()
    if way == "soon":
        loop.call_soon(end)
    elif way == "timer":
        loop.call_later(0.001, end)
    else:
        os.write(b, b"x")
        loop.add_reader(a, end)
    if way == "soon":
        loop.call_soon(calls.append, 1)
    with pytest.raises(error):
        loop.run_forever()
    assert not loop.is_running()
    loop.call_soon(calls.append, 3)
    run(loop, turns())
    assert calls == ([1] if way == "soon" else []) + [2, 3]
    os.close(a)
    os.close(b)


def test_a_task_that_raises_keyboard_interrupt_ends_the_run(loop: Loop) -> None:
    async def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    assert loop.run_until_complete(asyncio.sleep(0, "still usable")) == "still usable"


def test_other_base_exceptions_are_reported(loop: Loop, reports: Reports) -> None:
    class Odd(BaseException):
        pass

    def fail() -> None:
        raise Odd

    loop.call_soon(fail)
    run(loop, turns())
    assert isinstance(reports.take()["exception"], Odd)


# ---- Debug mode ----


def test_debug_mode_names_slow_callbacks(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    def slow() -> None:
        pass

    loop.set_debug(True)
    loop.slow_callback_duration = 0  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, "asyncio"):
        loop.call_soon(slow)
        run(loop, turns())
    assert any(
        r.message.startswith("Executing <Handle ")
        and ".slow() at " in r.message
        and r.message.endswith(" seconds")
        and " took " in r.message
        for r in caplog.records
    )
    caplog.clear()
    loop.slow_callback_duration = 60  # type: ignore[attr-defined]
    run(loop, turns())
    assert caplog.records == []


def test_debug_mode_refuses_calls_from_another_thread(loop: Loop) -> None:
    loop.set_debug(True)

    def call() -> None:
        with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
            loop.call_soon(print)
        with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
            loop.call_later(1, print)
        with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
            loop.call_at(1, print)
        loop.call_soon_threadsafe(int)

    async def main() -> None:
        await asyncio.to_thread(call)

    run(loop, main())


def test_debug_mode_checks_inside_of_callbacks_too(loop: Loop) -> None:
    seen: list[BaseException] = []

    def call() -> None:
        try:
            loop.call_soon("no callable")  # type: ignore[arg-type]
        except TypeError as error:
            seen.append(error)

    loop.set_debug(True)
    loop.call_soon(call)
    run(loop, turns())
    assert len(seen) == 1


def test_debug_mode_is_switched(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not loop.get_debug()
    loop.call_soon(loop.set_debug, True)
    loop.call_soon(loop.set_debug, False)
    run(loop, turns())
    assert not loop.get_debug()
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    assert (
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import becket; loop = becket.EventLoop(); print(loop.get_debug());"
                "h = loop.call_soon(int); print(h._source_traceback is not None); loop.close()",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        == "True\nTrue\n"
    )


# ---- Making one ----


def test_repr_tells_the_state(loop: Loop, kind: str) -> None:
    text = repr(loop)
    assert "running=False closed=False debug=False" in text
    loop.close()
    assert "closed=True" in repr(loop)
    if kind != "asyncio":
        assert f"notifier={kind}" in text


def test_a_notifier_is_taken_by_name() -> None:
    assert becket.notifiers
    for name in becket.notifiers:
        for loop in (
            becket.EventLoop(name),
            becket.EventLoop(notifier=name),
            becket.new_event_loop(name),
        ):
            assert loop.notifier == name
            assert isinstance(loop, asyncio.AbstractEventLoop)
            loop.close()
            assert loop.notifier is None


if sys.platform.startswith("linux"):

    def test_linux_has_these_notifiers() -> None:
        assert {"epoll", "poll", "select"} <= set(becket.notifiers)


def test_a_wrong_notifier_is_a_value_error_that_names_what_there_is() -> None:
    for name in ("nothing", "EPOLL", "x" * 1000):
        with pytest.raises(ValueError) as caught:
            becket.EventLoop(name)
        assert all(known in str(caught.value) for known in becket.notifiers)
    for wrong in (1, b"poll", ["poll"]):
        with pytest.raises(TypeError):
            becket.EventLoop(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        becket.EventLoop("poll\0")
    gc.collect()  # what was half made is freed, and warns of nothing


def test_a_loop_is_initialised_once(becket_loop: becket.EventLoop) -> None:
    with pytest.raises(RuntimeError):
        becket_loop.__init__()  # type: ignore[misc]
    run(becket_loop, turns())


def in_environment(value: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"BECKET_NOTIFIER": value},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", becket.notifiers)
def test_the_environment_chooses_a_notifier(name: str) -> None:
    code = "import becket; loop = becket.EventLoop(); print(loop.notifier); loop.close()"
    assert in_environment(name, code).stdout == f"{name}\n"


def test_a_wrong_notifier_in_the_environment_is_named() -> None:
    result = in_environment("nonsense", "import becket; becket.EventLoop()")
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith("ValueError: BECKET_NOTIFIER: ")
    assert "'nonsense'" in last
    assert all(known in last for known in becket.notifiers)


def test_an_argument_is_stronger_than_the_environment() -> None:
    code = "import becket; loop = becket.EventLoop('poll'); print(loop.notifier); loop.close()"
    assert in_environment("select", code).stdout == "poll\n"


def test_run_and_runner() -> None:
    async def main() -> tuple[Loop, bool]:
        loop = asyncio.get_running_loop()
        return loop, loop.get_debug()

    for debug in (False, True):
        loop, seen = becket.run(main(), debug=debug)
        assert isinstance(loop, becket.EventLoop)
        assert loop.is_closed()
        assert seen == debug
    with asyncio.Runner(loop_factory=becket.EventLoop) as runner:
        assert isinstance(runner.run(main())[0], becket.EventLoop)
        assert runner.run(asyncio.sleep(0, "again")) == "again"
    if sys.version_info >= (3, 12):
        assert isinstance(
            asyncio.run(main(), loop_factory=becket.new_event_loop)[0], becket.EventLoop
        )


def test_run_refuses_what_is_no_coroutine_and_a_running_loop() -> None:
    with pytest.raises((ValueError, TypeError)):
        becket.run(lambda: None)  # type: ignore[arg-type]

    async def main() -> None:
        with pytest.raises(RuntimeError, match="running event loop"):
            becket.run(asyncio.sleep(0))

    becket.run(main())


def test_run_cancels_what_is_left_and_raises_what_main_raises() -> None:
    ended = []

    async def stay() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def main() -> None:
        task = asyncio.create_task(stay())
        await asyncio.sleep(0)
        assert not task.done()
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        becket.run(main())
    assert ended == [True]


def test_a_policy_can_make_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    class Derived(becket.EventLoop):
        def call_soon(self, *args: Any, **kwargs: Any) -> Any:
            self.count = getattr(self, "count", 0) + 1
            return super().call_soon(*args, **kwargs)

    loop = Derived("poll")
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert loop.count == 1
    loop.close()


def test_older_code_gets_our_loops() -> None:
    """By the policy, also for subprocesses, which old policies have a part in."""

    async def main() -> int | None:
        assert isinstance(asyncio.get_running_loop(), becket.EventLoop)
        process = await asyncio.create_subprocess_exec("true")
        return await process.wait()

    before = asyncio.get_event_loop_policy()
    try:
        becket.install()
        assert isinstance(asyncio.get_event_loop_policy(), becket.EventLoopPolicy)
        assert asyncio.run(main()) == 0
        loop = asyncio.new_event_loop()
        assert isinstance(loop, becket.EventLoop)
        asyncio.set_event_loop(loop)
        assert asyncio.get_event_loop() is loop
        loop.close()
        asyncio.set_event_loop(None)
    finally:
        asyncio.set_event_loop_policy(before)


def test_the_public_names() -> None:
    assert set(becket.__all__) == {
        "Connection",
        "EventLoop",
        "EventLoopPolicy",
        "Server",
        "__version__",
        "connect",
        "install",
        "new_event_loop",
        "notifiers",
        "open",
        "run",
        "serve",
        "tls",
        "transports",
    }
    assert isinstance(becket.__version__, str)
    assert isinstance(becket.notifiers, tuple)
