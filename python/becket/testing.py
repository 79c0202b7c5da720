"""Suites that tell whether a part does what its contract says. For pytest, or by hand.

The author of a transport derives a class of pytest's from ``TransportSuite`` and says how to make
two transports that are joined::

    class TestMine(becket.testing.TransportSuite):
        def pair(self, loop):
            return my_pair(loop)

The cases are those of tests/conformance/transport.c, in Python's terms: a transport by itself, and
under asyncio's protocols, which must not be able to tell it from any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import signal
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, ClassVar

from becket import _becket, transports
from becket.loop import EventLoop
from becket.transports import READ, WRITE, Endpoint, Scheme, Transport

__all__ = ["TransportSuite"]

_Pair = tuple[Transport, Transport]
_KIB, _MOST = 1024, 64 * 1024 * 1024  # nothing holds so much


def _check(good: object, words: str) -> None:
    """As assert, but with -O too, and in words."""
    if not good:
        raise AssertionError(words)


# What a side sends depends on the position alone: each byte that comes tells whether it is right.
_PERIOD = 65521
_PATTERNS = tuple(
    bytes((i * 7 + (i >> 8) * 13 + index * 101 + 1) & 255 for i in range(_PERIOD)) * 2
    for index in (0, 1)
)


def _pattern(index: int, position: int, size: int) -> bytes:
    start = position % _PERIOD
    block = _PATTERNS[index] * (size // _PERIOD + 1)
    return block[start : start + size]


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """A method that waits hangs for ever: a signal ends it, with its traceback."""

    def expired(signum: int, frame: object) -> None:
        raise AssertionError("the transport waits, or nothing moves any more")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGALRM, expired)
    before, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, before)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def _unraisable(reports: list[dict[str, Any]]) -> Iterator[None]:
    """What a loop that ends cannot tell its exception handler is told to us."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda args: reports.append({"exception": args.exc_value})
    try:
        with warnings.catch_warnings():  # that a connection is still there may be the case's aim
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        sys.unraisablehook = before


class _Scheme(Scheme):
    """Puts transports that are there already under protocols."""

    name = "suite"

    def __init__(self) -> None:
        self.ready: list[Transport] = []
        self.accept: Callable[[Transport], None] | None = None

    def listen(
        self, loop: EventLoop, endpoint: Endpoint, accept: Callable[[Transport], None]
    ) -> transports.Listener:
        self.accept = accept
        return _Listening()

    def connect(self, loop: EventLoop, endpoint: Endpoint) -> Transport:
        return self.ready.pop(0)


class _Listening:
    name = "suite:"

    def close(self) -> None:
        pass


class _Side(asyncio.Protocol):
    """Checks what every protocol is promised, whatever a case makes it do."""

    def __init__(self, case: _Case, index: int) -> None:
        self.case, self.index = case, index
        self.transport: Any = None
        self.got = self.sent = self.goal = 0
        self.piece = 0
        self.made = self.received = self.ended = self.paused = self.resumed = self.lost = 0
        self.why: BaseException | None = None
        self.keep = False  # what eof_received() returns
        self.quiet = False  # the case has paused it: nothing may be received
        self.closing = False
        self.stopped = False  # by pause_writing()
        self.source = 1 - index  # whose pattern is received
        self.on: dict[str, Callable[[], object]] = {}

    def _do(self, moment: str) -> None:
        if moment in self.on:
            self.on[moment]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.case.must(self.made == 0, "connection_made() came twice")
        self.made += 1
        self.transport = transport
        self._do("made")

    def data_received(self, data: bytes) -> None:
        self.case.must(self.made and not self.lost, "data_received() outside of a connection")
        self.case.must(data, "data_received() of nothing")
        self.case.must(not self.ended, "data_received() after the end")
        self.case.must(not self.quiet, "data_received() while reading was paused")
        self.case.must(not self.closing, "data_received() after close()")
        right = data == _pattern(self.source, self.got, len(data))
        self.case.must(right, f"wrong bytes came, after {self.got} right ones")
        self.received += 1
        self.got += len(data)
        self._do("received")

    def eof_received(self) -> bool:
        self.case.must(not self.ended, "the end came twice")
        self.ended += 1
        self._do("ended")
        return self.keep

    def pause_writing(self) -> None:
        self.case.must(self.paused == self.resumed, "pause_writing() came twice")
        self.paused += 1
        self.stopped = True
        self._do("paused")

    def resume_writing(self) -> None:
        self.case.must(self.resumed == self.paused - 1, "resume_writing() came twice")
        self.resumed += 1
        self.stopped = False
        self._do("resumed")
        self.pump()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.case.must(self.made == 1 and self.lost == 0, "connection_lost() came twice")
        self.lost += 1
        self.why = exc

    def send(self, size: int) -> None:
        data = _pattern(self.index, self.sent, size)
        self.sent += size
        self.transport.write(data if self.sent % 3 else bytearray(data))

    def pump(self) -> None:
        """Send up to the goal, in pieces of all sizes, as long as the transport likes it."""
        while self.sent < self.goal and not self.stopped and not self.closing and not self.lost:
            piece = self.piece or 1 + self.sent * 37 % 70001
            self.send(min(piece, self.goal - self.sent))

    def quiet_down(self, on: bool) -> None:
        self.quiet = on
        if on:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def close(self) -> None:
        self.closing = True
        self.transport.close()

    def abort(self) -> None:
        self.closing = True
        self.transport.abort()


class _BufferedSide(_Side, asyncio.BufferedProtocol):
    """The same, with little memory of its own."""

    def __init__(self, case: _Case, index: int) -> None:
        super().__init__(case, index)
        self.buffer = bytearray(64)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)[: (1, 7, 2, 64)[self.received % 4]]

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.buffer[:nbytes]))


def _more_than(side: _Side, received: int) -> bool:
    return side.received > received


class _Case:
    """One case: its loop, its two transports and, over them, two sides."""

    def __init__(self, suite: TransportSuite, loop: EventLoop) -> None:
        self.suite, self.loop = suite, loop
        self.scheme = _Scheme()
        loop.add_scheme(self.scheme)
        self.ends: list[Transport] = []
        self.adopted = False
        self.sides: tuple[_Side, _Side] = (_Side(self, 0), _Side(self, 1))
        self.failures: list[str] = []
        self.calls = 0  # of the transports' methods
        self.open_ends = 0  # close() was not called
        self.left = False  # for the loop's end

    def must(self, good: object, words: str) -> None:
        """For callbacks, whose exceptions the loop would take."""
        if not good:
            self.failures.append(words)

    async def until(self, condition: Callable[[], object], words: str) -> None:
        """Let the loop turn until something holds."""
        try:
            async with asyncio.timeout(self.suite.patience):
                while not condition():
                    _check(not self.failures, "; ".join(self.failures[:3]))
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(f"waited in vain until {words}") from None

    # ---- Making ----

    async def make(self) -> _Pair:
        """Two transports that are joined."""
        made: Any = self.suite.pair(self.loop)
        pair: _Pair = await made if inspect.isawaitable(made) else made
        self.ends = list(pair)
        for end in pair:
            self._watch(end)
        return pair

    def _watch(self, end: Transport) -> None:
        """Count the calls, and look over what they return."""
        read, write, close = end.read, end.write, end.close
        over: list[str] = []

        def spied_read(size: int) -> Any:
            self.calls += 1
            self.must("close" not in over, "read() was called after close()")
            data = read(size)
            if "end" in over:
                self.must(data == b"", "read() told the end, and then something else")
            elif data is not None and len(data) == 0:
                over.append("end")
            return data

        def spied_write(data: bytes) -> Any:
            self.calls += 1
            return write(data)

        def spied_close() -> None:
            self.must("close" not in over, "close() was called twice")
            over.append("close")
            self.open_ends -= 1
            close()

        self.open_ends += 1

        vars(end).update(read=spied_read, write=spied_write, close=spied_close)

    async def make_open(self) -> _Pair:
        """The same, for those who drive them by themselves: what has to open has done so."""
        pair = await self.make()
        for end in pair:
            await self.until(functools.partial(self._done, end.open), "open() says True")
        return pair

    @staticmethod
    def _done(method: Callable[[], bool]) -> bool:
        try:
            done = method()
        except (BlockingIOError, InterruptedError):
            return False
        _check(isinstance(done, bool), f"{method.__name__}() returned {done!r}, no bool")
        return done

    async def open(self, most: int = 0, *, tls: bool = False) -> tuple[_Side, _Side]:
        """Protocols over both; with *most*, no more than so many bytes move at a time."""
        pair = await self.make()
        for end in pair if most else ():
            self._narrow(end, most)
        self.adopted = True
        if tls:
            _becket.Listener(self.loop, "tls+suite:?cert=dev", lambda: self.sides[1])
            self.scheme.ready = [pair[0]]
            assert self.scheme.accept is not None
            self.scheme.accept(pair[1])
            await self.connect("tls+suite:?verify=none", self.sides[0])
        else:
            self.scheme.ready = list(pair)
            await asyncio.gather(*(self.connect("suite:", side) for side in self.sides))
        await self.until(lambda: all(s.made for s in self.sides), "both are connected")
        return self.sides

    async def connect(self, endpoint: str, side: _Side) -> None:
        try:
            async with asyncio.timeout(self.suite.patience):
                await self.loop.connect_endpoint(lambda: side, endpoint)
        except TimeoutError:
            raise AssertionError("open() never came to an end") from None

    def _narrow(self, end: Transport, most: int) -> None:
        read, write = end.read, end.write

        def narrow_write(data: bytes) -> int | None:
            if len(data) > most:
                self.loop.call_soon(end.wake)
            return write(data[:most])

        vars(end).update(read=lambda size: read(min(size, most)), write=narrow_write)

    # ---- By themselves ----

    async def read(self, end: Transport, peer: Transport, size: int = 65536) -> bytes:
        """What read() gives when it gives something."""
        found: list[Any] = []

        def ready() -> bool:
            self._done(peer.flush)
            try:
                found.append(end.read(size))
            except (BlockingIOError, InterruptedError):
                return False
            return found[-1] is not None

        await self.until(ready, "read() gives something")
        _check(len(found[-1]) <= size, f"read({size}) returned {len(found[-1])} bytes")
        return bytes(found[-1])

    async def write(self, end: Transport, data: bytes) -> int:
        """How many bytes write() takes, when it takes some."""
        taken: list[int] = []

        def ready() -> bool:
            taken.append(self.offer(end, data))
            return taken[-1] > 0

        await self.until(ready, "write() takes something")
        return taken[-1]

    @staticmethod
    def offer(end: Transport, data: bytes) -> int:
        try:
            taken = end.write(data) or 0
        except (BlockingIOError, InterruptedError):
            return 0
        _check(
            isinstance(taken, int) and 0 <= taken <= len(data),
            f"write() returned {taken!r} for {len(data)} bytes",
        )
        return taken

    async def end(self, end: Transport) -> None:
        await self.until(lambda: self._done(end.end), "end() says True")

    # ---- Ends ----

    async def finish(self) -> None:
        """All that was sent comes, both ways; then both are closed, in good order."""
        a, b = self.sides
        await self.until(
            lambda: a.got == b.sent and b.got == a.sent,
            f"all has come: {a.got} of {b.sent}, {b.got} of {a.sent}",
        )
        for side in self.sides:
            if not side.lost:
                side.close()
        await self.closed()
        _check(a.why is None and b.why is None, f"it broke: {a.why!r}, {b.why!r}")

    async def closed(self) -> None:
        await self.until(lambda: all(s.lost for s in self.sides), "both hear connection_lost()")

    async def idle(self) -> None:
        """Nothing is to be done: then nothing is done."""
        await asyncio.sleep(0.05)
        before = self.calls
        await asyncio.sleep(0.05)
        _check(self.calls - before < 200, "the stream spins, with nothing to do")

    def clean_up(self) -> None:
        if self.left:
            return
        for side in self.sides:
            if side.transport is not None:
                side.abort()
        for end in self.ends if not self.adopted else ():
            end.close()


def _case(body: Callable[[Any, _Case], Coroutine[Any, Any, None]]) -> Callable[[Any], None]:
    """A case as pytest takes them."""

    @functools.wraps(body)
    def test(suite: TransportSuite) -> None:
        suite._run(body)

    del test.__wrapped__  # pytest would ask for its arguments
    return test


class TransportSuite:
    """What holds for every transport. Derive from it, and define ``pair()``.

    The class attributes say what does not hold for this one.
    """

    half_close: ClassVar[bool] = True
    """False: it has no end(), and cannot end one direction alone."""
    resets: ClassVar[bool] = True
    """False: a peer that goes with bytes unread looks like one that has ended."""
    truncates: ClassVar[bool] = False
    """True: a peer that goes without an end is an EOFError."""
    patience: ClassVar[float] = 20.0
    """Seconds until a case that waits is given up; none should come near it."""
    arrival: ClassVar[float] = 0.05
    """Seconds until what was sent has come, where nobody could tell that it has."""
    quick: ClassVar[bool] = False
    """Small amounts, for transports that are slow."""

    def pair(self, loop: EventLoop) -> _Pair | Awaitable[_Pair]:
        """Two transports of this loop that are joined; they may still have to open. May be a
        coroutine."""
        raise NotImplementedError

    def new_loop(self) -> EventLoop:
        """The loop of a case; it is closed afterwards."""
        return EventLoop()

    def _run(self, body: Callable[[Any, _Case], Coroutine[Any, Any, None]]) -> None:
        loop = self.new_loop()
        reports: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: reports.append(context))
        case = _Case(self, loop)
        try:
            with _no_longer_than(self.patience * 5):
                loop.run_until_complete(body(self, case))
                case.clean_up()
                loop.run_until_complete(asyncio.sleep(0.01))
        except BaseException as error:
            for report in reports:
                error.add_note(f"The loop's exception handler heard: {report}")
            raise
        finally:
            with _unraisable(reports):
                loop.close()
        _check(case.open_ends == 0, "close() was not called")
        _check(not case.failures, "; ".join(case.failures[:3]))
        _check(not reports, f"the loop's exception handler heard of something: {reports}")

    # ---- By itself, without a stream ----

    @_case
    async def test_bare_bytes(self, case: _Case) -> None:
        """Bytes both ways; and reading does not wait for any."""
        ends = await case.make_open()
        for end in ends:
            with contextlib.suppress(BlockingIOError, InterruptedError):
                _check(end.read(8) is None, "read() gave something, and nothing was sent")
        for end, peer in (ends, ends[::-1]):
            sent, got = 0, b""
            while sent < 5:
                sent += await case.write(end, b"hello"[sent:])
            while len(got) < 5:
                data = await case.read(peer, end, 8)
                _check(data, "an end came, and there was none")
                got += data
            _check(got == b"hello", f"{got!r} came, and b'hello' was sent")

    @_case
    async def test_bare_pieces(self, case: _Case) -> None:
        """Many small pieces: they come in order, in reads of all sizes."""
        ends = await case.make_open()
        got = b""
        for position in range(300):
            await case.write(ends[0], _pattern(0, position, 1))
        for size in (1, 7, 2, 64) * 100:
            if len(got) < 300:
                got += await case.read(ends[1], ends[0], size)
        _check(got == _pattern(0, 0, 300), "the pieces came in another order, or not all")

    @_case
    async def test_bare_full(self, case: _Case) -> None:
        """It is full at last, says so, and goes on when the peer has read."""
        ends = await case.make_open()
        sent = got = refused = 0
        while refused < 3:
            taken = case.offer(ends[0], _pattern(0, sent, 65536))
            refused += not taken
            sent += taken
            _check(sent < _MOST, "write() takes everything: nothing ever holds it back")
            await asyncio.sleep(0 if taken else 0.002)
        while got < sent:
            data = await case.read(ends[1], ends[0])
            _check(data == _pattern(0, got, len(data)), f"wrong bytes came, after {got} right ones")
            got += len(data)
        await case.write(ends[0], b"x")

    @_case
    async def test_bare_ends(self, case: _Case) -> None:
        """Each direction ends on its own; its end is told again to who asks again."""
        ends = await case.make_open()
        if not self.half_close:
            _check(type(ends[0]).end is Transport.end, "it has an end(), and half_close is False")
            return
        await case.write(ends[0], b"x")
        await case.end(ends[0])
        _check(await case.read(ends[1], ends[0]) == b"x", "what came before the end was lost")
        for _ in range(3):
            _check(await case.read(ends[1], ends[0]) == b"", "bytes came after the end")
        await case.write(ends[1], b"y")
        _check(await case.read(ends[0], ends[1]) == b"y", "the other direction ended too")
        try:
            await case.write(ends[0], b"z")
        except BrokenPipeError:
            pass
        else:
            raise AssertionError("write() after end() is no BrokenPipeError")
        await case.end(ends[1])
        _check(await case.read(ends[0], ends[1]) == b"", "bytes came after the end")

    @_case
    async def test_bare_peer_gone(self, case: _Case) -> None:
        """A peer that has closed has ended, and nothing can be written to it."""
        ends = await case.make_open()
        case.ends.remove(ends[1])
        ends[1].close()
        try:
            _check(await case.read(ends[0], ends[0]) == b"", "bytes came from one who is gone")
            _check(not self.truncates, "no EOFError: it truncates")
        except (ConnectionResetError, EOFError):
            pass
        try:
            for _ in range(500):  # the first may still be taken
                case.offer(ends[0], b"x")
                await asyncio.sleep(0.002)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            return
        raise AssertionError("write() goes on, and the peer is gone")

    @_case
    async def test_queries(self, case: _Case) -> None:
        """Names and addresses are in the form that they are needed in."""
        sides = await case.open()
        for end, side in zip(case.ends, sides, strict=True):
            _check(isinstance(end.name, str) and end.name, f"name is {end.name!r}")
            _check(end.query("no such question") is None, "query() answers what nobody knows")
            for direction in (READ, WRITE):
                fd = end.fileno(direction)
                _check(isinstance(fd, int) and fd >= -1, f"fileno() returned {fd!r}")
            for what, name in (("peer", "peername"), ("local", "sockname")):
                told, found = end.query(what), side.transport.get_extra_info(name)
                right = found == told or (told and found and found[:2] == told[:2])
                _check(right, f"query({what!r}) returned {told!r}, and {name} is {found!r}")
        await case.finish()

    # ---- Opening, and bytes both ways ----

    @_case
    async def test_opening(self, case: _Case) -> None:
        """connection_made() comes first, and once; what is written there arrives."""
        for side in case.sides:
            side.on["made"] = functools.partial(side.send, 1000)
        for side in await case.open():
            _check(side.made == 1 and not side.ended, "it began, and was over")
        await case.finish()

    async def _pump_both(self, case: _Case, goal: int, piece: int = 0, most: int = 0) -> None:
        a, b = await case.open(most)
        for side in (a, b):
            side.goal, side.piece = goal, piece
            side.pump()
        await case.until(lambda: a.got == goal == b.got, f"{goal} bytes have come both ways")
        await case.finish()

    @_case
    async def test_large(self, case: _Case) -> None:
        """Much, both ways at once."""
        await self._pump_both(case, 200 * _KIB if self.quick else 4 * _KIB * _KIB)

    @_case
    async def test_one_byte_at_a_time(self, case: _Case) -> None:
        """Whatever the sizes of reads and writes."""
        await self._pump_both(case, 60 if self.quick else 500, 1, 1)

    @_case
    async def test_seven_bytes_at_a_time(self, case: _Case) -> None:
        """Pieces that fit together nowhere."""
        await self._pump_both(case, 500 if self.quick else 5000, 0, 7)

    @_case
    async def test_spurious_wakes(self, case: _Case) -> None:
        """It is asked when there is nothing: no byte comes of that, and no end."""
        a, b = await case.open()
        for _ in range(20):
            for end in case.ends:
                end.wake()
            await asyncio.sleep(0)
        _check(a.received == b.received == a.ended == b.ended == 0, "something came of nothing")
        _check(a.lost == b.lost == 0, f"it broke: {a.why!r}, {b.why!r}")
        a.send(1000)
        await case.finish()

    @_case
    async def test_under_tls(self, case: _Case) -> None:
        """TLS in front of it, with records that meet no border of its own."""
        a, b = await case.open(tls=True)
        goal = 50 * _KIB if self.quick else 500 * _KIB
        for side in (a, b):
            side.goal = goal
            side.pump()
        await case.until(lambda: a.got == goal == b.got, f"{goal} bytes have come both ways")
        a.close()
        await case.closed()
        _check(a.why is None and b.why is None, f"it broke: {a.why!r}, {b.why!r}")

    # ---- Endings ----

    async def _half_close(self, case: _Case, x: _Side, y: _Side) -> None:
        x.keep = y.keep = True
        await case.open()
        x.send(1000)
        if not self.half_close:
            try:
                x.transport.write_eof()
            except OSError:
                await case.finish()  # nothing has happened
                return
            raise AssertionError("write_eof() is no OSError, and half_close is False")
        x.transport.write_eof()
        await case.until(lambda: y.ended, "the peer hears of the end")
        _check(y.got == 1000, "the end came before what was sent")
        await case.idle()
        y.goal = 100_000
        y.pump()
        await case.until(lambda: x.got == y.goal, "the other direction goes on")
        _check(not x.ended, "the other direction ended too")
        y.transport.write_eof()
        await case.until(lambda: x.ended, "the other direction ends")
        for side in (x, y):
            if not side.lost:
                side.close()
        await case.closed()
        _check(x.why is None and y.why is None, f"it broke: {x.why!r}, {y.why!r}")

    @_case
    async def test_half_close_of_the_first(self, case: _Case) -> None:
        """One direction ends, and the other goes on."""
        await self._half_close(case, *case.sides)

    @_case
    async def test_half_close_of_the_second(self, case: _Case) -> None:
        """The same from the other side."""
        await self._half_close(case, *case.sides[::-1])

    @_case
    async def test_without_ended(self, case: _Case) -> None:
        """A protocol that ends with its peer: what it has queued is sent before."""
        x, y = await case.open()
        if not self.half_close:
            await case.finish()
            return
        y.goal = y.piece = 300_000
        y.pump()
        x.keep = True
        x.transport.write_eof()
        await case.until(lambda: x.ended and y.lost, "both directions are over")
        x.close()
        await case.closed()
        _check(x.got == y.goal, f"{x.got} bytes came of {y.goal}")
        _check(x.why is None and y.why is None, f"it broke: {x.why!r}, {y.why!r}")

    @_case
    async def test_close_sends_the_rest(self, case: _Case) -> None:
        """close() sends what is queued, however long the peer takes."""
        x, y = await case.open()
        y.quiet_down(True)
        x.goal = x.piece = 300_000
        x.pump()
        x.close()
        await asyncio.sleep(0.02)
        y.quiet_down(False)
        await case.closed()
        _check(y.got == x.goal, f"{y.got} bytes came of {x.goal}, and then the end")
        _check(y.ended == 1, "no end came")
        _check(x.why is None and y.why is None, f"it broke: {x.why!r}, {y.why!r}")

    @_case
    async def test_gone_with_data_queued(self, case: _Case) -> None:
        """More than fits is on its way when the peer goes: that has to be told."""
        x, y = await case.open()
        x.keep = True
        await self._block(case, x, y)
        y.abort()
        await case.closed()
        told = isinstance(x.why, (BrokenPipeError, ConnectionResetError, EOFError, OSError))
        _check(told, f"connection_lost({x.why!r}), and bytes were lost")

    @_case
    async def test_gone_with_data_unread(self, case: _Case) -> None:
        """The peer goes with our bytes unread: a reset, where the kind has that; else an end."""
        x, y = await case.open()
        y.quiet_down(True)
        x.send(5)
        await asyncio.sleep(self.arrival)
        y.abort()
        await case.closed()
        if self.resets:
            reset = isinstance(x.why, (BrokenPipeError, ConnectionResetError))
            _check(reset, f"connection_lost({x.why!r}), and bytes were not read")
        elif not self.truncates:
            _check(x.why is None and x.ended == 1, f"connection_lost({x.why!r}) for an end")

    async def _end_in_order(self, case: _Case, order: int) -> None:
        x, _ = await case.open()
        x.send(100)
        if order % 2 == 0 and self.half_close:
            x.transport.write_eof()
        x.close()
        x.close()
        if order >= 2:
            x.abort()
        x.close()
        await case.closed()
        _check(x.why is None, f"it broke: {x.why!r}")

    @_case
    async def test_ends_and_closes(self, case: _Case) -> None:
        """Ended, then closed, more than once."""
        await self._end_in_order(case, 0)

    @_case
    async def test_closes(self, case: _Case) -> None:
        """Closed more than once."""
        await self._end_in_order(case, 1)

    @_case
    async def test_ends_and_aborts(self, case: _Case) -> None:
        """Ended, closed and aborted."""
        await self._end_in_order(case, 2)

    @_case
    async def test_aborts(self, case: _Case) -> None:
        """Closed and aborted."""
        await self._end_in_order(case, 3)

    # ---- Closing within each callback ----

    async def _close_within(self, case: _Case, moment: str, end: str) -> None:
        x, y = case.sides
        if moment == "ended" and not self.half_close:
            await case.open()
            await case.finish()
            return

        def act() -> None:
            getattr(x, end)()
            if y.quiet:
                y.quiet_down(False)  # or x would wait on

        x.on[moment] = act
        if moment == "resumed":
            x.on["paused"] = lambda: y.quiet_down(False)
        await case.open()
        if moment == "received":
            y.send(10)
        elif moment == "ended":
            y.keep = True
            y.transport.write_eof()
        elif moment in ("paused", "resumed"):
            y.quiet_down(True)
            x.goal, x.piece = _MOST, 30_000
            x.pump()
        await case.until(lambda: x.lost, "connection_lost() of who closes")
        if not y.lost and moment == "ended":
            y.close()
        await case.closed()
        _check(x.why is None, f"it broke: {x.why!r}")
        if end == "close" and moment != "received":  # (there, unread bytes may make it a reset)
            _check(y.why is None, f"its peer broke: {y.why!r}")
            _check(y.got == x.sent, f"{y.got} bytes came of {x.sent}, and then the end")

    @_case
    async def test_close_in_connection_made(self, case: _Case) -> None:
        """close() from within that callback."""
        await self._close_within(case, "made", "close")

    @_case
    async def test_close_in_data_received(self, case: _Case) -> None:
        """close() from within that callback."""
        await self._close_within(case, "received", "close")

    @_case
    async def test_close_in_eof_received(self, case: _Case) -> None:
        """close() from within that callback."""
        await self._close_within(case, "ended", "close")

    @_case
    async def test_close_in_pause_writing(self, case: _Case) -> None:
        """close() from within that callback."""
        await self._close_within(case, "paused", "close")

    @_case
    async def test_close_in_resume_writing(self, case: _Case) -> None:
        """close() from within that callback."""
        await self._close_within(case, "resumed", "close")

    @_case
    async def test_abort_in_connection_made(self, case: _Case) -> None:
        """abort() from within that callback."""
        await self._close_within(case, "made", "abort")

    @_case
    async def test_abort_in_data_received(self, case: _Case) -> None:
        """abort() from within that callback."""
        await self._close_within(case, "received", "abort")

    @_case
    async def test_abort_in_eof_received(self, case: _Case) -> None:
        """abort() from within that callback."""
        await self._close_within(case, "ended", "abort")

    @_case
    async def test_abort_in_pause_writing(self, case: _Case) -> None:
        """abort() from within that callback."""
        await self._close_within(case, "paused", "abort")

    @_case
    async def test_abort_in_resume_writing(self, case: _Case) -> None:
        """abort() from within that callback."""
        await self._close_within(case, "resumed", "abort")

    # ---- Flow control ----

    async def _block(self, case: _Case, x: _Side, y: _Side) -> None:
        """The peer does not read, and x sends until it is told to stop."""
        y.quiet_down(True)
        x.goal, x.piece = _MOST, 10_000
        x.pump()
        await case.until(lambda: x.paused > x.resumed, "pause_writing() is called")
        x.goal = 0

    @_case
    async def test_peer_stops_reading(self, case: _Case) -> None:
        """A peer that does not read holds the sender back, and neither spins over it."""
        x, y = await case.open()
        await self._block(case, x, y)
        x.goal = x.sent + 200_000
        _check(y.received == 0, "bytes came while reading was paused")
        await case.idle()
        y.quiet_down(False)
        await case.until(lambda: y.got == x.goal, "the rest has come")
        _check(x.resumed, "resume_writing() was not called")
        await case.finish()

    @_case
    async def test_water_marks(self, case: _Case) -> None:
        """The marks of write buffers count what the transport would not take."""
        x, y = await case.open()
        x.transport.set_write_buffer_limits(high=1000, low=100)
        await self._block(case, x, y)
        x.transport.set_write_buffer_limits(high=0)
        x.goal = x.sent + 10_000
        y.quiet_down(False)
        await case.until(lambda: y.got == x.goal, "the rest has come")
        await case.until(lambda: x.resumed == x.paused, "resume_writing() is called")
        await case.finish()

    @_case
    async def test_pauses(self, case: _Case) -> None:
        """Reading is paused after each piece: no other comes, and none is lost."""
        x, y = await case.open()
        y.on["received"] = lambda: y.quiet_down(True)
        x.goal = (20 if self.quick else 500) * 1000
        x.pump()
        while y.got < x.goal:
            before = y.received
            await case.until(functools.partial(_more_than, y, before), "the next piece has come")
            _check(y.received == before + 1, "two pieces came, and one was to come")
            if y.received < 3:
                await case.idle()
            y.quiet_down(False)
        await case.finish()

    @_case
    async def test_paused_from_the_start(self, case: _Case) -> None:
        """A protocol that pauses at once receives nothing, until it goes on."""
        x, y = case.sides
        y.on["made"] = lambda: y.quiet_down(True)
        await case.open()
        x.send(100)
        await case.idle()
        _check(y.received == 0, "bytes came while reading was paused")
        y.quiet_down(False)
        await case.until(lambda: y.got == 100, "what was sent has come")
        await case.finish()

    @_case
    async def test_own_buffer(self, case: _Case) -> None:
        """A BufferedProtocol with little memory."""
        case.sides = (case.sides[0], _BufferedSide(case, 1))
        x, y = await case.open()
        x.goal = 500 if self.quick else 20_000
        x.pump()
        await case.until(lambda: y.got == x.goal, "all has come")
        await case.finish()

    @_case
    async def test_echo(self, case: _Case) -> None:
        """Both directions are full, and nobody waits for the other for ever."""
        x, y = await case.open()
        x.source = 0  # its own comes back
        transport = y.transport
        y.data_received = transport.write  # type: ignore[method-assign]
        y.on = {"paused": transport.pause_reading, "resumed": transport.resume_reading}
        x.quiet_down(True)
        x.goal, x.piece = _MOST, 30_000
        x.pump()
        await case.until(lambda: x.paused > x.resumed, "pause_writing() is called")
        x.goal = x.sent + 100_000
        x.quiet_down(False)
        await case.until(lambda: x.got == x.goal, "all has come back")
        for side in (x, y):
            side.close()
        await case.closed()

    # ---- The end of the loop ----

    @_case
    async def test_loop_closed(self, case: _Case) -> None:
        """The loop is closed with bytes on their way, and lets go of the transports."""
        a, b = await case.open()
        for side in (a, b):
            side.quiet_down(True)
            side.goal, side.piece = _MOST, 20_000
        for side in (a, b):
            side.pump()
        await case.until(lambda: a.paused and b.paused, "both directions are full")
        case.left = True
