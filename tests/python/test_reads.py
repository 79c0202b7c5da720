"""Reading from streams without coroutines of Python's: what read() returns is one to all who look,
and what it does is asyncio's, whose own loop runs the same tests.
"""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import inspect
import socket
import warnings
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import make_loop
from support import Loop, run, tcp_pair, turns
from test_streams import close, open_stream

Reader = asyncio.StreamReader
WAYS: dict[str, Callable[[Reader], Any]] = {
    "read": lambda reader: reader.read(10),
    "readexactly": lambda reader: reader.readexactly(5),
    "readuntil": lambda reader: reader.readuntil(b"e\n"),
    "readline": lambda reader: reader.readline(),
    "anext": lambda reader: reader.__anext__(),
}


async def arrival() -> None:
    """What was sent is received, and whom it woke has run: a loop that is busy may look later."""
    await asyncio.sleep(0.001)
    await turns(3)


@asynccontextmanager
async def stream(
    loop: Loop, limit: Any = 1 << 16
) -> AsyncIterator[tuple[Reader, asyncio.StreamWriter, socket.socket]]:
    """A connection's reader and writer, and the socket at its other end."""
    near, far = tcp_pair()
    reader, writer = await open_stream(loop, near, limit=limit)
    yield reader, writer, far
    await close(writer)
    far.close()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Reader], Any]:
    return WAYS[request.param]


def test_the_classes_are_still_asyncios(loop: Loop) -> None:
    async def main() -> None:
        async with stream(loop) as (reader, writer, _far):
            assert isinstance(reader, asyncio.StreamReader)
            assert isinstance(writer.transport.get_protocol(), asyncio.StreamReaderProtocol)
            assert repr(reader).startswith("<StreamReader transport=")

    run(loop, main())


def test_it_is_a_coroutine(loop: Loop, way: Callable[[Reader], Any]) -> None:
    async def main() -> None:
        async with stream(loop) as (reader, _, b):
            for wrap in (
                lambda c: c,
                asyncio.create_task,
                asyncio.ensure_future,
                asyncio.gather,
                lambda c: asyncio.wait_for(c, 10),
            ):
                for early in (True, False):
                    if early:
                        b.send(b"line\n")
                        await arrival()
                    coroutine = way(reader)
                    assert isinstance(coroutine, collections.abc.Coroutine)
                    assert inspect.isawaitable(coroutine)
                    assert asyncio.iscoroutine(coroutine)
                    assert coroutine.__qualname__.startswith("StreamReader.")
                    if not early:
                        loop.call_soon(b.send, b"line\n")
                    assert await wrap(coroutine) in (b"line\n", [b"line\n"])
            task = asyncio.create_task(way(reader))
            await turns(3)
            assert "StreamReader." in repr(task)
            assert task.get_stack() is not None
            task.cancel()

    run(loop, main())


def test_it_is_awaited_once(loop: Loop, way: Callable[[Reader], Any]) -> None:
    async def main() -> None:
        async with stream(loop) as (reader, _, b):
            b.send(b"line\n")
            coroutine = way(reader)
            assert await coroutine == b"line\n"
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                await coroutine
            with pytest.raises((KeyError, RuntimeError)):  # RuntimeError: Python's coroutines
                coroutine.throw(KeyError())
            coroutine.close()

    run(loop, main())


def test_sending_and_throwing_by_hand(loop: Loop, way: Callable[[Reader], Any]) -> None:
    async def main() -> None:
        async with stream(loop) as (reader, _, b):
            unbegun = way(reader)
            with pytest.raises(KeyError):
                unbegun.throw(KeyError("none of mine"))

            waits = way(reader)
            future = waits.send(None)
            assert isinstance(future, asyncio.Future)
            with pytest.raises(KeyError):
                waits.throw(KeyError("thrown"))
            assert not future.done()

            waits = way(reader)  # nobody else waits now
            future = waits.send(None)
            waits.close()
            with pytest.raises(RuntimeError):
                waits.send(None)

            waits = way(reader)
            future = waits.send(None)
            del waits  # dropped, in the middle
            gc.collect()

            b.send(b"line\n")
            waits = way(reader)
            future = waits.send(None)
            await arrival()
            assert future.done()
            with pytest.raises(StopIteration) as caught:
                waits.send(None)
            assert caught.value.value == b"line\n"

    run(loop, main())


def test_one_that_nobody_awaits_is_told_of(loop: Loop, way: Callable[[Reader], Any]) -> None:
    async def main() -> None:
        async with stream(loop) as (reader, _, _far):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                way(reader)
                gc.collect()
            assert [str(w.message) for w in caught if w.category is RuntimeWarning]
            assert "was never awaited" in str(caught[0].message)
            way(reader).close()

    run(loop, main())


@pytest.mark.parametrize("ending", ["eof", "exception", "cancelled", "reset"])
@pytest.mark.parametrize("before", [b"", b"abc"])
def test_ends_while_it_waits(
    loop: Loop, way: Callable[[Reader], Any], ending: str, before: bytes
) -> None:
    """Results, errors and what is left are asyncio's, as a reader of its own class shows."""

    async def outcome(reader: Reader, coroutine: Any) -> tuple[Any, ...]:
        try:
            result: Any = await coroutine
        except asyncio.IncompleteReadError as error:
            return "incomplete", error.partial, error.expected, str(error)
        except (Exception, asyncio.CancelledError, StopAsyncIteration) as error:
            return type(error), str(error)
        return "result", result, reader.at_eof()

    async def main() -> None:
        async with stream(loop) as (reader, _, b):
            asyncios = asyncio.StreamReader(loop=loop)
            readers = (reader, asyncios)
            if before:
                b.send(before)
                await arrival()
                asyncios.feed_data(before)
            tasks = [asyncio.create_task(outcome(r, way(r))) for r in readers]
            await turns(3)
            if ending == "eof":
                b.shutdown(socket.SHUT_WR)
                asyncios.feed_eof()
            elif ending == "exception":
                for r in readers:
                    r.set_exception(ValueError("set by hand"))
            elif ending == "reset":
                error = ConnectionResetError("reset")
                for r in readers:
                    r.set_exception(error)
            else:
                for task in tasks:
                    task.cancel()
            ours, theirs = [await asyncio.wait_for(task, 10) for task in tasks]
            assert ours == theirs
            after = [await outcome(r, way(r)) for r in readers if ending != "cancelled"]
            assert after[:1] == after[1:]
            assert len({bytes(r._buffer) for r in readers}) == 1  # type: ignore[attr-defined]

    run(loop, main())


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.text("ab|\n", min_size=1, max_size=9).map(str.encode), max_size=12),
    calls=st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(-1, 7)),
            st.tuples(st.just("readexactly"), st.integers(-1, 7)),
            st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b"|", b"ab", b"a|b", b""])),
            st.tuples(st.just("readline")),
        ),
        max_size=12,
    ),
    limit=st.integers(1, 12),
    by_hand=st.booleans(),
)
def test_any_calls_on_any_pieces(
    pieces: list[bytes], calls: list[tuple[Any, ...]], limit: int, by_hand: bool
) -> None:
    """Whatever asyncio's own reader would answer, ours does; both have the same errors."""

    async def collect(reader: Reader) -> list[Any]:
        answers: list[Any] = []
        for name, *args in calls:
            try:
                answers.append(await getattr(reader, name)(*args))
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
                answers.append((type(error), str(error), getattr(error, "partial", None)))
        return [*answers, bytes(reader._buffer)]  # type: ignore[attr-defined]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with stream(loop, limit=limit) as (reader, _, b):
            asyncios = asyncio.StreamReader(limit=limit, loop=loop)
            b.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tasks = [asyncio.create_task(collect(r)) for r in (reader, asyncios)]
            assert type(reader) is not asyncio.StreamReader
            await turns(3)
            for piece in pieces:
                asyncios.feed_data(piece)
                if by_hand:
                    reader.feed_data(piece)
                else:  # in the same pieces, as far as the reader's limit lets them in
                    b.send(piece)
                await arrival()
            asyncios.feed_eof()
            if by_hand:
                reader.feed_eof()
            b.shutdown(socket.SHUT_WR)
            ours, theirs = [await task for task in tasks]
            assert ours == theirs

    loop = make_loop("poll")
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.mark.parametrize("give_up", ["cancel", "throw", "close", "drop"])
def test_what_came_for_one_who_gave_up_is_there_for_the_next(
    loop: Loop, way: Callable[[Reader], Any], give_up: str
) -> None:
    """It has been woken already, but has not run yet."""

    async def main() -> None:
        async with stream(loop) as (reader, _, b):
            if give_up == "cancel":
                task = asyncio.create_task(way(reader))
                await turns(3)
                waiter = reader._waiter  # type: ignore[attr-defined]
            else:
                waits = way(reader)
                waiter = waits.send(None)
            b.send(b"line\n")
            while not waiter.done():
                await asyncio.sleep(0)
            if give_up == "cancel":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif give_up == "throw":
                with pytest.raises(KeyError):
                    waits.throw(KeyError("thrown"))
            elif give_up == "close":
                waits.close()
            else:
                del waits
                gc.collect()
            b.send(b"more\n")
            await arrival()
            assert await reader.read(100) == b"line\nmore\n"

    run(loop, main())


@pytest.mark.parametrize("limit", [1 << 80, float("inf"), 20.5])
def test_limits_of_any_kind(loop: Loop, way: Callable[[Reader], Any], limit: Any) -> None:
    async def main() -> None:
        async with stream(loop, limit=limit) as (reader, _, b):
            for early in (True, False):
                task = None if early else asyncio.create_task(way(reader))
                await turns(3)
                b.send(b"line\n")
                await arrival()
                assert await (task or way(reader)) == b"line\n"
            b.send(b"x" * 30)
            if limit == 20.5:
                with pytest.raises(asyncio.LimitOverrunError):
                    await reader.readuntil(b"y")

    run(loop, main())


def test_methods_that_somebody_replaced_are_called(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        for name in ("read", "readline", "readexactly", "readuntil", "feed_data"):
            a, b = tcp_pair()
            called = []
            original = getattr(asyncio.StreamReader, name)

            def replaced(self: Reader, *args: Any) -> Any:
                called.append(name)
                return original(self, *args)

            with monkeypatch.context() as patch:
                patch.setattr(asyncio.StreamReader, name, replaced)
                reader, writer = await open_stream(loop, a)
                b.send(b"line\n" * 4)
                assert await reader.read(5) == b"line\n"
                assert await reader.readline() == b"line\n"
                assert await reader.readexactly(5) == b"line\n"
                assert await reader.readuntil() == b"line\n"
            assert name in called
            await close(writer)
            b.close()

    run(loop, main())


def test_nothing_is_left_to_the_collector(loop: Loop, way: Callable[[Reader], Any]) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        reader, writer = await open_stream(loop, a)
        b.send(b"line\n")
        assert await way(reader) == b"line\n"
        task = asyncio.create_task(way(reader))
        await turns(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await close(writer)
        b.close()
        gone = weakref.ref(reader)
        del reader, writer, task
        await turns(3)
        assert gone() is None

    gc.collect()
    gc.disable()
    try:
        run(loop, main())
    finally:
        gc.enable()


def test_drain_needs_no_future_where_nothing_waits(loop: Loop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        _, writer = await open_stream(loop, a)
        writer.write(b"x")
        with pytest.raises(StopIteration):
            writer.drain().send(None)
        b.close()
        await close(writer)
        with pytest.raises(ConnectionResetError):
            await writer.drain()

    run(loop, main())
