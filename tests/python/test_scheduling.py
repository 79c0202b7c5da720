"""call_soon() and its relatives, the handles they return, contexts, threads and executors."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import math
import operator
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import becket
from conftest import REFERENCE, make_loop
from support import Loop, Reports, run, tcp_pair, turns, until

# ---- Order ----


def test_callbacks_run_in_the_order_they_were_given(loop: Loop) -> None:
    calls: list[int] = []
    for i in range(1000):
        (loop.call_soon if i % 3 else loop.call_soon_threadsafe)(calls.append, i)
    run(loop, turns())
    assert calls == list(range(1000))


def test_what_a_callback_schedules_runs_in_the_next_turn(loop: Loop) -> None:
    calls: list[str] = []

    def first() -> None:
        calls.append("first")
        loop.call_soon(calls.append, "third")

    loop.call_soon(first)
    loop.call_soon(calls.append, "second")
    run(loop, turns())
    assert calls == ["first", "second", "third"]


def test_a_callback_that_reschedules_itself_does_not_keep_others_waiting(loop: Loop) -> None:
    going = True

    def again() -> None:
        if going:
            loop.call_soon(again)

    async def main() -> None:
        nonlocal going
        loop.call_soon(again)
        await asyncio.sleep(0.01)
        a, b = os.pipe()
        ready = loop.create_future()
        loop.add_reader(a, ready.set_result, None)
        os.write(b, b"x")
        try:
            await ready
        finally:
            going = False
            loop.remove_reader(a)
            os.close(a)
            os.close(b)

    run(loop, main())


def test_what_was_ready_runs_before_what_a_descriptor_brings(loop: Loop) -> None:
    """So a coroutine that awaited a connection goes on before its protocol hears of data."""
    calls: list[str] = []
    a, b = os.pipe()
    os.write(b, b"x")

    def read() -> None:
        os.read(a, 10)
        calls.append("descriptor")

    async def main() -> None:
        loop.add_reader(a, read)
        os.write(b, b"x")
        for name in "123":
            loop.call_soon(calls.append, name)
        await until(lambda: "descriptor" in calls)

    run(loop, main())
    loop.remove_reader(a)
    os.close(a)
    os.close(b)
    assert calls == ["1", "2", "3", "descriptor"]


def test_timers_run_at_their_time_in_their_order(loop: Loop) -> None:
    calls: list[tuple[int, float]] = []
    start = loop.time()
    for delay in (30, 10, 20, 0, -5):
        loop.call_later(delay / 1000, lambda d=delay: calls.append((d, loop.time())))
    run(loop, asyncio.sleep(0.05))
    assert [delay for delay, _ in calls] == [-5, 0, 10, 20, 30]
    assert all(at >= start + delay / 1000 - 1e-6 for delay, at in calls)


def test_timers_of_one_time_run_in_the_order_they_were_given(becket_loop: Loop) -> None:
    calls: list[int] = []
    when = becket_loop.time() + 0.005
    for i in range(100):
        becket_loop.call_at(when, calls.append, i)
    run(becket_loop, asyncio.sleep(0.01))
    assert calls == list(range(100))


def test_a_timer_that_is_due_waits_for_the_next_turn(loop: Loop) -> None:
    calls: list[str] = []
    loop.call_later(0, calls.append, "timer")
    assert calls == []
    loop.call_soon(calls.append, "soon")
    run(loop, asyncio.sleep(0.001))
    assert sorted(calls) == ["soon", "timer"]


def test_a_timer_that_starts_a_timer_that_is_due_lets_others_run(loop: Loop) -> None:
    calls: list[int] = []

    def again() -> None:
        calls.append(1)
        if len(calls) < 1000:
            loop.call_later(-1, again)

    loop.call_later(0, again)
    run(loop, turns(2000))
    assert len(calls) == 1000


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 8)), max_size=60))
def test_any_timers_and_cancellations(kind: str, plan: list[tuple[int, bool, int]]) -> None:
    """Those that are not cancelled run once, in the order of their times."""
    loop = make_loop(kind)
    calls: list[tuple[int, int]] = []
    start = loop.time()
    handles: list[asyncio.TimerHandle] = []
    cancelled: set[int] = set()
    for number, (when, cancel, other) in enumerate(plan):
        handles.append(loop.call_at(start + when / 10000, calls.append, (when, number)))
        if cancel:
            handles[other % len(handles)].cancel()
            cancelled.add(other % len(handles))
    loop.call_at(start + 9 / 10000, loop.stop)
    loop.run_forever()
    loop.close()
    assert [when for when, _ in calls] == sorted(when for when, _ in calls)
    assert sorted(number for _, number in calls) == [
        number for number in range(len(plan)) if number not in cancelled
    ]


def test_time_is_monotonic_and_comparable(loop: Loop) -> None:
    assert abs(loop.time() - time.monotonic()) < 5
    seen = [loop.time() for _ in range(1000)]
    assert seen == sorted(seen)
    assert isinstance(seen[0], float)


def test_sleep_never_ends_early(loop: Loop) -> None:
    async def main() -> None:
        for microseconds in range(0, 3000, 97):
            start = loop.time()
            await asyncio.sleep(microseconds / 1e6)
            # asyncio's loop may be early by the resolution of its clock
            assert (
                loop.time() - start
                >= microseconds / 1e6 - time.get_clock_info("monotonic").resolution
            )

    run(loop, main())


# ---- Cancelling ----


def test_cancel_before_it_runs(loop: Loop) -> None:
    calls: list[int] = []
    handles: list[Any] = [
        loop.call_soon(calls.append, 1),
        loop.call_later(0, calls.append, 2),
        loop.call_at(loop.time(), calls.append, 3),
        loop.call_soon_threadsafe(calls.append, 4),
    ]
    for handle in handles:
        assert not handle.cancelled()
        assert handle.cancel() is None
        assert handle.cancelled()
        handle.cancel()
    run(loop, asyncio.sleep(0.001))
    assert calls == []


def test_cancel_from_an_earlier_callback_of_the_same_turn(loop: Loop) -> None:
    calls: list[int] = []
    handles: list[asyncio.Handle] = []
    loop.call_soon(lambda: [handle.cancel() for handle in handles])
    handles.append(loop.call_soon(calls.append, 1))
    when = loop.time()
    loop.call_at(when, lambda: [handle.cancel() for handle in handles])
    handles.append(loop.call_at(when + 1e-9, calls.append, 2))
    run(loop, asyncio.sleep(0.001))
    assert calls == []


@pytest.mark.parametrize("arguments", [(), (object(),), (object(), object())])
def test_cancel_during_and_after_it_runs(loop: Loop, arguments: tuple[object, ...]) -> None:
    calls: list[int] = []
    handles: list[Any] = []

    def call(handle: Callable[[], Any], *args: object) -> None:
        handle().cancel()
        gc.collect()
        calls.append(len(args))

    for way in (loop.call_soon, functools.partial(loop.call_later, 0)):
        number = len(handles)
        handles.append(way(call, lambda n=number: handles[n], *arguments))
    run(loop, asyncio.sleep(0.001))
    assert calls == [len(arguments)] * 2
    for handle in handles:
        handle.cancel()
        assert handle.cancelled()


def test_a_cancelled_handle_lets_go_of_what_it_held(loop: Loop) -> None:
    class Thing:
        def __call__(self, *args: object) -> None:
            raise AssertionError

    for way in (loop.call_soon, functools.partial(loop.call_later, 3600)):
        thing = Thing()
        known = weakref.ref(thing)
        handle = way(thing, thing)  # type: ignore[operator]
        handle.cancel()
        del thing
        assert known() is None


def test_a_handle_that_ran_is_freed_without_the_collector(loop: Loop) -> None:
    class Thing:
        def __call__(self, *args: object) -> None:
            pass

    for way in (loop.call_soon, functools.partial(loop.call_later, 0)):
        thing = Thing()
        known = weakref.ref(thing)
        gc.disable()
        way(thing, 1, 2)  # type: ignore[operator]
        run(loop, asyncio.sleep(0.001))
        del thing
        assert known() is None
        gc.enable()


def test_many_cancelled_timers_are_given_back(becket_loop: Loop) -> None:
    known = weakref.WeakSet[Any]()
    for _ in range(10_000):
        handle = becket_loop.call_later(3600, print)
        known.add(handle)
        handle.cancel()
    del handle
    assert len(known) == 0


# ---- Arguments ----


def test_times_that_are_no_times(loop: Loop, kind: str) -> None:
    for wrong in ("1", [], object()):
        with pytest.raises(TypeError):
            loop.call_later(wrong, print)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        loop.call_later(None, print)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        loop.call_at(None, print)  # type: ignore[arg-type]
    if kind != REFERENCE:
        for way in (loop.call_later, loop.call_at):
            with pytest.raises(ValueError, match="NaN"):
                way(math.nan, print)


def test_a_timer_in_the_far_future_and_far_past(loop: Loop) -> None:
    calls: list[str] = []
    for far in (math.inf, 1e300, sys.maxsize, 1e10):
        handle = loop.call_later(far, calls.append, "future")
        assert handle.when() >= far
        loop.call_at(far, calls.append, "future")
    for past in (-math.inf, -1e300, -1, 0):
        loop.call_at(past, calls.append, "past")
        loop.call_later(past, calls.append, "past")
    run(loop, asyncio.sleep(0.001))
    assert calls == ["past"] * 8


def test_a_time_may_be_an_int_or_whatever_becomes_a_float(loop: Loop) -> None:
    import decimal
    import fractions

    calls: list[int] = []
    loop.call_later(0, calls.append, 1)
    loop.call_later(False, calls.append, 2)
    if not isinstance(loop, asyncio.SelectorEventLoop) or isinstance(loop, becket.EventLoop):
        loop.call_later(fractions.Fraction(1, 1000), calls.append, 3)  # type: ignore[arg-type]
        loop.call_later(decimal.Decimal("0.001"), calls.append, 4)  # type: ignore[arg-type]
    run(loop, asyncio.sleep(0.005))
    assert calls[:2] == [1, 2]


def test_missing_and_unknown_arguments(loop: Loop) -> None:
    for call in (
        lambda: loop.call_soon(),  # type: ignore[call-arg]
        lambda: loop.call_soon_threadsafe(),  # type: ignore[call-arg]
        lambda: loop.call_later(1),  # type: ignore[call-arg]
        lambda: loop.call_at(1),  # type: ignore[call-arg]
        lambda: loop.call_later(),  # type: ignore[call-arg]
        lambda: loop.call_soon(print, other=1),  # type: ignore[call-arg]
        lambda: loop.call_later(1, print, contxt=None),  # type: ignore[call-arg]
        lambda: loop.call_soon(callback=print, delay=1),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError):
            call()


def test_debug_mode_refuses_what_cannot_be_called(loop: Loop) -> None:
    async def coroutine() -> None:
        pass

    loop.set_debug(True)
    work = coroutine()
    for wrong in (work, coroutine, 1, None):
        for way in (
            loop.call_soon,
            loop.call_soon_threadsafe,
            functools.partial(loop.call_at, 0),
            functools.partial(loop.call_later, 0),
        ):
            with pytest.raises(TypeError):
                way(wrong)  # type: ignore[operator]
    work.close()


def test_what_cannot_be_called_is_reported_when_its_turn_comes(
    loop: Loop, reports: Reports
) -> None:
    loop.call_soon(None)  # type: ignore[arg-type]
    run(loop, turns())
    assert isinstance(reports.take()["exception"], TypeError)


def test_callbacks_get_their_arguments(loop: Loop) -> None:
    calls: list[tuple[object, ...]] = []

    def call(*args: object) -> None:
        calls.append(args)

    given = [(), (1,), ((),), ((1, 2),), (1, 2), (None,) * 20]
    for args in given:
        loop.call_soon(call, *args)
    run(loop, turns())
    for args in given:
        loop.call_later(0, call, *args)
        run(loop, asyncio.sleep(0.0001))
    assert calls == given * 2


# ---- Handles ----


def test_what_a_handle_tells(loop: Loop) -> None:
    def callback() -> None:
        pass

    handle = loop.call_soon(callback)
    line = callback.__code__.co_firstlineno
    where = f"test_what_a_handle_tells.<locals>.callback() at {__file__}:{line}>"
    assert repr(handle) == f"<Handle {where}"
    timer = loop.call_at(12345.5, callback)
    assert repr(timer) == f"<TimerHandle when=12345.5 {where}"
    assert timer.when() == 12345.5
    before = loop.time()
    later = loop.call_later(100, callback)
    assert before + 100 <= later.when() <= loop.time() + 100
    for each in (handle, timer, later):
        each.cancel()
    assert repr(handle) == "<Handle cancelled>"
    assert repr(timer) == "<TimerHandle cancelled when=12345.5>"
    assert timer.when() == 12345.5


def test_what_a_handle_tells_in_debug_mode(loop: Loop) -> None:
    def callback() -> None:
        pass

    loop.set_debug(True)
    handle = loop.call_later(100, callback)
    text = repr(handle)
    line = sys._getframe().f_lineno - 2
    assert text.startswith(f"<TimerHandle when={handle.when()} ")
    assert text.endswith(f" created at {__file__}:{line}>")
    handle.cancel()
    assert repr(handle).startswith(f"<TimerHandle cancelled when={handle.when()} ")
    assert "callback() at " in repr(handle)


def test_handles_compare_hash_and_are_weakly_referenced(loop: Loop) -> None:
    first, second = loop.call_at(1e6, print), loop.call_at(2e6, print)
    twin, other = loop.call_at(1e6, print), loop.call_at(1e6, max)
    assert first < second
    assert second > first
    assert first <= second
    assert second >= first
    assert first == twin
    assert first <= twin
    assert first >= twin
    assert hash(first) == hash(twin)
    assert first != other
    assert not first <= other
    assert first != second
    assert first != "something else"
    with pytest.raises(TypeError):
        operator.lt(first, 1)
    twin.cancel()
    assert first != twin
    soon, too = loop.call_soon(int), loop.call_soon(int)
    assert soon == soon
    assert soon != too
    assert len({soon, too, first, second}) == 4
    for each in (soon, first):
        assert weakref.ref(each)() is each
    for each in (first, second, other):
        each.cancel()
    run(loop, turns())


def test_handles_are_not_made_by_hand() -> None:
    loop = becket.EventLoop()
    for handle in (loop.call_soon(int), loop.call_later(1, int)):
        with pytest.raises(TypeError):
            type(handle)()
    loop.close()


# ---- Contexts ----

name = contextvars.ContextVar("name", default="none")


def test_a_callback_runs_in_a_copy_of_the_current_context(loop: Loop) -> None:
    seen: list[str] = []

    def see() -> None:
        seen.append(name.get())
        name.set("changed by a callback")

    def plan() -> None:
        for value in ("1", "2"):
            name.set(value)
            loop.call_soon(see)
            loop.call_later(0, see)
            loop.call_soon_threadsafe(see)
        name.set("3")

    contextvars.copy_context().run(plan)
    run(loop, asyncio.sleep(0.001))
    assert sorted(seen) == ["1"] * 3 + ["2"] * 3
    assert name.get() == "none"


def test_a_context_may_be_given(loop: Loop) -> None:
    seen: list[str] = []
    context = contextvars.copy_context()
    context.run(name.set, "given")
    handles = [
        way(lambda: seen.append(name.get()), context=context)
        for way in (
            loop.call_soon,
            loop.call_soon_threadsafe,
            functools.partial(loop.call_later, 0),
            functools.partial(loop.call_at, 0),
        )
    ]
    handles.append(loop.call_soon(lambda: seen.append(name.get()), context=None))
    if sys.version_info >= (3, 12):
        assert all(handle.get_context() is context for handle in handles[:4])
    run(loop, asyncio.sleep(0.001))
    assert sorted(seen) == ["given"] * 4 + ["none"]


def test_a_reader_runs_in_the_context_of_add_reader(loop: Loop) -> None:
    seen: list[str] = []
    a, b = os.pipe()
    os.write(b, b"x")

    def read() -> None:
        seen.append(name.get())
        os.read(a, 1)

    def plan() -> None:
        name.set("reader")
        loop.add_reader(a, read)

    contextvars.copy_context().run(plan)
    run(loop, until(lambda: seen))
    loop.remove_reader(a)
    os.close(a)
    os.close(b)
    assert seen == ["reader"]


def test_what_is_no_context_is_refused(becket_loop: Loop) -> None:
    with pytest.raises(TypeError, match="context"):
        becket_loop.call_soon(print, context={})  # type: ignore[arg-type]


# ---- Tasks and futures ----


def test_create_future_belongs_to_the_loop(loop: Loop) -> None:
    future = loop.create_future()
    assert isinstance(future, asyncio.Future)
    assert future.get_loop() is loop
    calls: list[object] = []
    future.add_done_callback(calls.append)
    future.set_result(1)
    assert calls == []
    run(loop, turns())
    assert calls == [future]


def test_create_task_with_names_and_contexts(loop: Loop) -> None:
    context = contextvars.copy_context()
    context.run(name.set, "of the task")

    async def main() -> str:
        return name.get()

    task = loop.create_task(main(), name="my name", context=context)
    assert isinstance(task, asyncio.Task)
    assert task.get_name() == "my name"
    assert task.get_loop() is loop
    assert loop.run_until_complete(task) == "of the task"
    assert loop.run_until_complete(loop.create_task(main())) == "none"
    plain = loop.create_task(main(), name=None)
    assert plain.get_name().startswith("Task-")
    run(loop, turns())


def test_a_task_of_what_is_no_coroutine_is_refused(loop: Loop) -> None:
    for wrong in (1, None, print, loop.create_future()):
        with pytest.raises(TypeError):
            loop.create_task(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        loop.create_task()  # type: ignore[call-arg]


def test_a_task_factory(loop: Loop) -> None:
    made: list[Any] = []

    def factory(of: Loop, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        made.append((of, kwargs))
        return asyncio.Task(coroutine, loop=of, **kwargs)

    async def main() -> str:
        return await asyncio.create_task(asyncio.sleep(0, "inner"), name="inner name")

    assert loop.get_task_factory() is None
    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    assert loop.run_until_complete(main()) == "inner"
    assert len(made) == 2
    assert made[0][0] is loop
    loop.set_task_factory(None)
    assert loop.run_until_complete(main()) == "inner"
    assert len(made) == 2
    with pytest.raises(TypeError):
        loop.set_task_factory("nothing to call")  # type: ignore[arg-type]


if sys.version_info >= (3, 12):

    def test_eager_tasks(loop: Loop) -> None:
        calls: list[str] = []

        async def eager() -> None:
            calls.append("eager")

        async def main() -> None:
            loop.set_task_factory(asyncio.eager_task_factory)
            task = loop.create_task(eager())
            calls.append("main")
            await task

        run(loop, main())
        assert calls == ["eager", "main"]


def test_cancelling_a_task(loop: Loop) -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)
        task.cancel("why")
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()

    run(loop, main())


def test_a_task_whose_exception_nobody_fetched_is_reported(loop: Loop, reports: Reports) -> None:
    async def fail() -> None:
        raise LookupError("nobody")

    async def main() -> None:
        task = asyncio.create_task(fail())
        await turns()
        del task
        gc.collect()

    run(loop, main())
    context = reports.take()
    assert context["message"] == "Task exception was never retrieved"
    assert isinstance(context["exception"], LookupError)


# ---- Threads ----


def test_call_soon_threadsafe_ends_a_wait(loop: Loop) -> None:
    async def main() -> str:
        future = loop.create_future()

        def work() -> None:
            loop.call_soon_threadsafe(future.set_result, "from a thread")

        thread = threading.Thread(target=work)
        loop.call_later(0.01, thread.start)
        result: str = await future
        thread.join()
        return result

    assert run(loop, main()) == "from a thread"


def test_many_threads_at_once_lose_nothing_and_keep_their_order(loop: Loop) -> None:
    threads, each = 8, 2000
    calls: list[tuple[int, int]] = []
    done = loop.create_future()

    def note(thread: int, number: int) -> None:
        calls.append((thread, number))
        if len(calls) == threads * each:
            done.set_result(None)

    def work(thread: int) -> None:
        for number in range(each):
            loop.call_soon_threadsafe(note, thread, number)
            if number % 100 == 0:
                time.sleep(0)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()

    async def main() -> None:
        await done

    run(loop, main())
    for worker in workers:
        worker.join()
    for thread in range(threads):
        assert [n for t, n in calls if t == thread] == list(range(each))


def test_threads_race_with_close(kind: str, no_leaks: None) -> None:
    for _ in range(5):
        loop = make_loop(kind)
        started = threading.Barrier(4)
        errors: list[BaseException] = []

        def work(
            loop: Loop = loop,
            started: threading.Barrier = started,
            errors: list[BaseException] = errors,
        ) -> None:
            started.wait()
            try:
                while True:
                    loop.call_soon_threadsafe(int)
            except RuntimeError as error:
                errors.append(error)

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        started.wait()
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        for worker in workers:
            worker.join()
        assert {str(error) for error in errors} == {"Event loop is closed"}


def test_run_coroutine_threadsafe(loop: Loop) -> None:
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    def work() -> int:
        return asyncio.run_coroutine_threadsafe(add(1, 2), loop).result(60)

    async def main() -> int:
        return await asyncio.to_thread(work)

    assert run(loop, main()) == 3


def test_executors(loop: Loop) -> None:
    import concurrent.futures

    async def main() -> list[object]:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            mine = await loop.run_in_executor(pool, threading.get_ident)
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 / 0)
        return [
            mine,
            await asyncio.gather(
                *(loop.run_in_executor(None, operator.mul, i, i) for i in range(100))
            ),
        ]

    ident, squares = run(loop, main())
    assert ident != threading.get_ident()
    assert squares == [i * i for i in range(100)]


def test_getaddrinfo_and_getnameinfo(loop: Loop) -> None:
    import socket

    async def main() -> None:
        found = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        assert found[0][0] == socket.AF_INET
        assert found[0][4] == ("127.0.0.1", 80)
        assert await loop.getaddrinfo("localhost", None)
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("host.invalid.", 80, flags=socket.AI_NUMERICHOST)
        host, service = await loop.getnameinfo(
            ("127.0.0.1", 9), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        )
        assert (host, service) == ("127.0.0.1", "9")

    run(loop, main())


def test_the_thread_holds_no_lock_while_the_loop_waits(loop: Loop) -> None:
    """Other threads of Python run while nothing happens here."""
    count = 0
    done = loop.create_future()

    def work() -> None:
        nonlocal count
        for _ in range(100_000):
            count += 1
        loop.call_soon_threadsafe(done.set_result, None)

    thread = threading.Thread(target=work)
    thread.start()

    async def main() -> None:
        await done

    run(loop, main())
    thread.join()
    assert count == 100_000


def test_a_connection_is_awaited_before_its_protocol_hears_of_data(loop: Loop) -> None:
    """`_, protocol = await create_connection(…)`: what follows it runs before data_received()."""
    a, b = tcp_pair()
    b.send(b"a greeting")
    calls: list[str] = []

    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            calls.append("data")

    async def main() -> None:
        transport, _ = await loop.create_connection(Protocol, sock=a)
        calls.append("awaited")
        await until(lambda: "data" in calls)
        transport.close()
        await turns()

    run(loop, main())
    b.close()
    assert calls == ["awaited", "data"]
