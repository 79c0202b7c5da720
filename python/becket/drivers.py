"""Drivers: who calls the protocol. ``make("forks:4", plan)`` gives a becket.Server what runs it.

- ``loop``: one event loop.
- ``loops:N``: N threads with a loop each; all accept from the same sockets.
- ``threads:N``: one loop accepts, N threads serve a connection each; what is beyond them waits in
  the backlog.
- ``forks:N``: N processes with a loop each, watched over by one that restarts what dies.

A ``Share`` is what one loop has of a server: its listeners, its pool of threads, and its end. All
drivers are made of shares.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from becket import _becket, access, endpoints
from becket.loop import EventLoop
from becket.pool import Pool

if TYPE_CHECKING:
    from becket.server import Plan

logger = logging.getLogger("becket")

STATS = (
    "accepted",
    "refused",
    "closed",
    "failed",
    "bytes_in",
    "bytes_out",
    "connections",
    "handshakes",
)
POLL = 0.02  # seconds between two looks at what is still under way, when a server ends
SILENT = 0.5  # … for those who have just come to say their first word
UNABLE = '["OSError", ["no worker could begin to serve; the log says why"]]'
LAST_WORDS = 1.0  # … for what was cut to take notice

Sockets = Mapping[str, list[int]]


def make_gate(plan: Plan, failed: Callable[[str, str], object]) -> _becket.Gate:
    """The limits, and the count of connections, of all shares of a process. *failed* hears of the
    one connection of an endpoint, when that did not end in good order: where it was, and why."""
    write = access.writer(plan.access_log) if plan.access_log else None

    def leave(*fields: Any) -> None:
        if write is not None:
            write(*fields)
        if fields[-2] != 0 and endpoints.parse(fields[0]).is_single:
            failed(fields[0], fields[-1])

    single = any(e.is_single for e in plan.parsed.values())
    return _becket.Gate(leave if single else write, **plan.limits)


def reopen_logs() -> None:
    """Open the files of loggers anew, after somebody has moved them away."""
    known = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for one in known for handler in one.handlers}:
        if isinstance(handler, logging.FileHandler) and handler.stream is not None:
            with handler.lock or contextlib.nullcontext():
                handler.stream.close()
                handler.stream = handler._open()


@contextlib.contextmanager
def naming(endpoint: str) -> Iterator[None]:
    """An endpoint that cannot be had is named."""
    try:
        yield
    except OSError as error:
        error.strerror = f"{endpoint}: {error.strerror or error}"
        raise


# ---- A supervisor, such as systemd ---------------------------------------------------------------


def tell_supervisor(state: str) -> None:
    """That it does not hear is no reason to end."""
    try:
        _becket._supervisor_tell(state)
    except OSError as error:
        logger.warning("the supervisor cannot be told: %s", error)


def tell_ready(loop: EventLoop) -> None:
    """The server serves; and as long as this loop turns, it lives."""
    try:
        loop._supervisor_watch()
    except (OSError, ValueError) as error:
        logger.warning("there is no watchdog: %s", error)
    tell_supervisor("READY=1")


@contextlib.contextmanager
def telling_reload() -> Iterator[None]:
    """Within it, what is reloaded is."""
    tell_supervisor(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    yield
    tell_supervisor("READY=1")


# ---- One loop's share ----------------------------------------------------------------------------


class Share:
    """One loop's share of a server. All but stop() and reload() is for the loop's own thread."""

    def __init__(
        self, plan: Plan, gate: _becket.Gate, loop: EventLoop, ended: Callable[[], object]
    ) -> None:
        self.plan = plan
        self.loop = loop
        self.stopping = asyncio.Event()
        self.listeners: list[_becket.Listener] = []
        self._gate = gate
        self._ended = ended  # called when no listener can bring anybody any more
        self._open = 0
        self._hurry = False
        self._drain = plan.drain
        self.pool: Pool | None = None
        self.shared = False  # others accept from the same sockets
        self.copies: list[int] = []  # of listening sockets, closed when it listens no more

    # ---- Listening ----

    def _protocol(self) -> Any:
        """What the listeners have their connections served by."""
        served, plan = self.plan.served, self.plan
        if served.core is not None:
            return served.core(self.loop)
        if served.factory is not None:
            return served.factory(self.loop)
        self.pool = Pool(served, plan.max_threads)
        return _becket.Hand(self.loop, self.pool.give, plan.speaks_first, served.refusal)

    def open(self, sockets: Sockets) -> None:
        """Listen: on the *sockets* there are for an endpoint, else on those it makes. Endpoints
        whose list of sockets is empty belong to another share."""
        protocol = self._protocol()
        for endpoint in self.plan.endpoints:
            self.loop._know_engines(endpoint)
            if sockets.get(endpoint) == []:
                continue
            with naming(endpoint):
                listener = _becket.Listener(
                    self.loop,
                    endpoint,
                    protocol,
                    gate=self._gate,
                    sockets=sockets.get(endpoint, ()),
                    refusal=self.plan.served.refusal,
                    ended=self._over,
                    shared=self.shared,
                )
            self.listeners.append(listener)
            self._open += 1

    def _over(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._ended()

    def sockets(self) -> dict[str, list[int]]:
        """The listening sockets of each endpoint, for other shares."""
        pairs = zip(self.plan.endpoints, self.listeners, strict=True)
        return {endpoint: listener.sockets() for endpoint, listener in pairs}

    def copy(self, sockets: Sockets) -> Sockets:
        """The same sockets, but this share's own."""
        copies = {endpoint: list(map(os.dup, fds)) for endpoint, fds in sockets.items()}
        self.copies = [fd for fds in copies.values() for fd in fds]
        return copies

    def names(self) -> list[str]:
        """Where it listens."""
        return [listener.name or "" for listener in self.listeners]

    # ---- From any thread ----

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended, before those of others
            self.loop.call_soon_threadsafe(function, *args)

    def stop(self, drain: float) -> None:
        """Begin the end; a second time: hurry."""
        self._call(self._stop, drain)

    def _stop(self, drain: float) -> None:
        self._hurry = self._hurry or self.stopping.is_set()
        self._drain = drain
        self.stopping.set()

    def reload(self) -> None:
        """Read certificates again."""
        self._call(self._reload)

    def _reload(self) -> None:
        for listener in self.listeners:
            listener.reload()
        if self.plan.served.reload is not None:
            try:
                self.plan.served.reload()
            except (OSError, ValueError) as error:
                logger.error("what was read before stays: %s", error)

    # ---- The end ----

    def _close(self) -> None:
        for listener in self.listeners:
            listener.drain()
            listener.close()
        for fd in self.copies:
            os.close(fd)
        self.copies.clear()

    def _busy(self, early: bool = False) -> bool:
        """Whether something is under way. *Early*, it may yet be in a PROXY header: connections are
        not counted before."""
        tasks = asyncio.all_tasks(self.loop) - {asyncio.current_task(self.loop)}
        waits = early and any("proxy" in e.options for e in self.plan.parsed.values())
        return self.loop._visits(0) > 0 or bool(tasks) or waits

    async def run(self) -> bool:
        """Serve until stop(); True: nothing had to be cut before its time, which may be none."""
        try:
            await self.stopping.wait()
        finally:  # or something has ended the loop
            self._close()
        began = now = self.loop.time()
        heard = began + min(SILENT, self._drain / 2)
        while not self._hurry and now < began + self._drain and self._busy(now < heard):
            if now >= heard:
                self.loop._visits(1)
            await asyncio.sleep(POLL)
            now = self.loop.time()
        self.loop._visits(1)
        return await self._finish(cut=self._busy() and self._drain > 0)

    async def _finish(self, cut: bool) -> bool:
        left = self.loop._visits(2)
        if left and cut:
            logger.warning("%d connection%s cut", left, " was" if left == 1 else "s were")
        deadline = self.loop.time() + LAST_WORDS
        while self.loop._visits(0) and self.loop.time() < deadline:
            await asyncio.sleep(0)
        stuck = 0
        if self.pool is not None:
            stuck = await asyncio.to_thread(self.pool.close, LAST_WORDS)
        if stuck:
            logger.warning("%d thread%s not returned", stuck, " has" if stuck == 1 else "s have")
        return not cut and not stuck


class ThreadsShare(Share):
    """A share that never has more connections than threads."""

    def __init__(self, threads: int, *args: Any) -> None:
        super().__init__(*args)
        self._free = threads
        self._threads = threads

    def _make_pool(self) -> Pool:
        return Pool(self.plan.served, self._threads, self._done)

    def _protocol(self) -> Any:
        self.pool = self._make_pool()
        return _becket.Hand(self.loop, self._give, True, self.plan.served.refusal, self._freed)

    def _give(self, *handed: Any) -> None:
        self._free -= 1
        if self._free == 0:
            self._pause(True)
        assert self.pool is not None
        self.pool.give(*handed)

    def _done(self) -> None:
        self._call(self._freed)

    def _freed(self) -> None:
        self._free += 1
        if self._free == 1 and not self.stopping.is_set():
            self._pause(False)

    def _pause(self, on: bool) -> None:
        for listener in self.listeners:
            listener.pause(on)


# ---- Drivers -------------------------------------------------------------------------------------


class Driver:
    """Runs a plan. *workers* is what follows the colon in its name."""

    kind = "loop"

    def __init__(self, plan: Plan, workers: int = 1) -> None:
        self.plan = plan
        self.workers = workers
        self.names: list[str] = []
        self.given: Sockets = {}  # sockets that listen already, by their endpoints
        self.shares: list[Share] = []
        self._gate = make_gate(plan, self._one_failed)
        self._broken = False  # the one connection of an endpoint did not end in good order
        self._thread: threading.Thread | None = None
        self._status = 0
        self._error: BaseException | None = None

    def __str__(self) -> str:
        return self.kind if self.kind == "loop" else f"{self.kind}:{self.workers}"

    # ---- What a Server asks ----

    def stats(self) -> dict[str, int]:
        return self._gate.stats()

    def start(self) -> None:
        """Run in a thread; returns when it listens."""
        if self._thread is not None:
            raise RuntimeError("the server was started already")
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run_behind, args=(ready,), name="becket")
        self._thread.start()
        ready.wait()
        if self._error is not None:
            self._thread.join()
            self._thread = None
            self.shares.clear()
            error, self._error = self._error, None
            raise error

    def _run_behind(self, ready: threading.Event) -> None:
        try:
            self._status = self._run(ready.set, signals=False)
        except BaseException as error:
            if ready.is_set():  # nobody waits for it any more
                logger.exception("the server failed")
                self._status = 1
            else:
                self._error = error
        finally:
            ready.set()

    def stop(self, drain: float) -> int:
        thread, self._thread = self._thread, None
        if thread is None:
            return 0
        for share in self.shares:
            share.stop(drain)
        thread.join()
        self.shares.clear()
        return self._status

    def reload(self) -> None:
        with telling_reload():
            reopen_logs()
            for share in self.shares:
                share.reload()

    def run(self, ready: Callable[[], object] | None = None) -> int:
        return self._run(ready or self._announce, signals=True)

    # ---- How it is done ----

    def _announce(self) -> None:
        for name in self.names:
            logger.info("listening at %s", name)

    def _one_failed(self, endpoint: str, why: str) -> None:
        logger.error("%s broke: %s", endpoint, why)
        self._broken = True

    def _share(self, loop: EventLoop) -> Share:
        return Share(self.plan, self._gate, loop, self._end)

    def _end(self) -> None:
        tell_supervisor("STOPPING=1")
        for share in self.shares:
            share.stop(self.plan.drain)

    def _run(self, ready: Callable[[], object], *, signals: bool) -> int:
        """On a loop in this thread."""
        with asyncio.Runner(loop_factory=lambda: EventLoop(self.plan.notifier)) as runner:
            return runner.run(self._main(ready, signals))

    async def _main(self, ready: Callable[[], object], signals: bool) -> int:
        share = self._share(asyncio.get_running_loop())  # type: ignore[arg-type]
        self.shares.append(share)
        if signals:
            self._catch_signals(share.loop)
        share.open(self.given)
        self.names = share.names()
        with self._service(), self._others(share) as others:
            ready()
            if signals:
                tell_ready(share.loop)
            good = await share.run()
            return await asyncio.to_thread(others, good and not self._broken)

    def _catch_signals(self, loop: EventLoop) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self.reload)

    @contextlib.contextmanager
    def _service(self) -> Iterator[None]:
        """What is served hears when it begins, and when all of it is over."""
        served = self.plan.served
        if served.started is not None:
            served.started()
        try:
            yield
        finally:
            if served.ended is not None:
                served.ended()

    @contextlib.contextmanager
    def _others(self, share: Share) -> Any:
        """What runs beside the first share; gives a function that waits for the end of it and, from
        how the first one ended, makes the exit status."""
        yield lambda good: 0 if good else 1


class Loops(Driver):
    kind = "loops"

    def _share(self, loop: EventLoop) -> Share:
        share = super()._share(loop)
        share.shared = self.workers > 1
        return share

    @contextlib.contextmanager
    def _others(self, share: Share) -> Any:
        results: list[bool] = []
        failed: list[BaseException] = []
        first = share.sockets()
        started = threading.Barrier(self.workers)

        def run() -> None:
            try:
                with asyncio.Runner(loop_factory=lambda: EventLoop(self.plan.notifier)) as runner:
                    results.append(runner.run(serve()))
            except BaseException as error:
                logger.debug("a loop of the server failed", exc_info=True)
                failed.append(error)
                started.abort()

        async def serve() -> bool:
            one = self._share(asyncio.get_running_loop())  # type: ignore[arg-type]
            one._open = 1  # it is the first share that may come to its end by itself
            try:
                one.open(one.copy(first))  # which may be closed while others still look at theirs
                self.shares.append(one)
                started.wait()
                return await one.run()
            finally:
                one._close()

        threads = [
            threading.Thread(target=run, name=f"becket-loop-{i}", daemon=True)
            for i in range(2, self.workers + 1)
        ]
        for thread in threads:
            thread.start()
        try:
            started.wait()
        except threading.BrokenBarrierError:
            for thread in threads:
                thread.join()
            raise failed[0] from None

        def wait(good: bool) -> int:
            for thread in threads:
                thread.join()
            return 0 if good and all(results) and len(results) == len(threads) else 1

        try:
            yield wait
        except BaseException:  # of this loop: the others go with it
            for one in self.shares:
                one.stop(0)
            for thread in threads:
                thread.join()
            raise


class Threads(Driver):
    kind = "threads"

    def __init__(self, plan: Plan, workers: int) -> None:
        if plan.served.core is not None:
            raise ValueError(
                f"driver: {plan.served.name} is a protocol of the core, which needs no thread for "
                "a connection; use loop, loops:N or forks:N"
            )
        super().__init__(plan, workers)

    def _share(self, loop: EventLoop) -> Share:
        return ThreadsShare(self.workers, self.plan, self._gate, loop, self._end)


# ---- Forks ---------------------------------------------------------------------------------------


class Board:
    """Where workers write their counters, for whoever asks: memory that processes share."""

    _row = struct.Struct(f"={len(STATS)}Q")

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, workers * self._row.size)
        self._workers = workers

    def write(self, worker: int, stats: Mapping[str, int]) -> None:
        self._row.pack_into(self._memory, worker * self._row.size, *(stats[n] for n in STATS))

    def forget(self, worker: int) -> None:
        """A worker has died, and its connections with it; what it had counted stays."""
        values = dict(zip(STATS, self._read(worker), strict=True))
        values["closed"] += values["connections"]
        values["failed"] += values["connections"]
        self.write(worker, values | {"connections": 0, "handshakes": 0})

    def _read(self, worker: int) -> tuple[int, ...]:
        return self._row.unpack_from(self._memory, worker * self._row.size)

    def base(self, worker: int) -> dict[str, int]:
        """What those before it in its place had counted."""
        return dict(zip(STATS, self._read(worker), strict=True))

    def total(self) -> dict[str, int]:
        rows = [self._read(i) for i in range(self._workers)]
        return dict(zip(STATS, map(sum, zip(*rows, strict=True)), strict=True))


class Worker(Driver):
    """One of the processes of ``forks:N``: as ``loop``, on sockets that its parent has opened."""

    EVERY = 0.25  # seconds between two entries on the board

    def __init__(
        self, plan: Plan, board: Board, place: int, sockets: Sockets, line: socket.socket
    ) -> None:
        super().__init__(plan)
        self._board, self._place, self._sockets = board, place, sockets
        self._base = board.base(place)
        self._line = line  # to the parent

    def _share(self, loop: EventLoop) -> Share:
        share = super()._share(loop)
        share.shared = True
        return share

    def _catch_signals(self, loop: EventLoop) -> None:
        """A terminal's Ctrl-C reaches all processes; the parent tells what is to be done."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _stop(self) -> None:
        for share in self.shares:
            share.stop(self.plan.drain)

    def _orphaned(self) -> None:
        """The parent has been killed: nobody would ever end this process, or start another."""
        [share] = self.shares
        share.loop.remove_reader(self._line)
        if not share.stopping.is_set():
            self._stop()

    def _reload(self) -> None:
        reopen_logs()
        for share in self.shares:
            share.reload()

    async def _main(self, ready: Callable[[], object], signals: bool) -> int:
        share = self._share(asyncio.get_running_loop())  # type: ignore[arg-type]
        self.shares.append(share)
        self._catch_signals(share.loop)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        share.open(self._sockets)
        share.copies = [fd for fds in self._sockets.values() for fd in fds]
        share.loop.add_reader(self._line, self._orphaned)
        with self._service():
            ready()
            self._note(share.loop)
            good = await share.run()
        self._write()
        for number in (signal.SIGTERM, signal.SIGHUP):  # told once more, it need not die of it
            share.loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        return 0 if good and not self._broken else 1

    def _note(self, loop: EventLoop) -> None:
        self._write()
        loop.call_later(self.EVERY, self._note, loop)

    def _write(self) -> None:
        stats = self._gate.stats()
        self._board.write(self._place, {n: stats[n] + self._base[n] for n in STATS})


class Forks(Driver):
    kind = "forks"

    QUICK = 1.0  # seconds: a worker that dies sooner is restarted later and later, …
    FIRST, LONGEST = 0.1, 10.0  # … after so many seconds
    HOPELESS = 5  # quick deaths of workers that never came to serve, until it is given up

    def __init__(self, plan: Plan, workers: int) -> None:
        super().__init__(plan, workers)
        self._board = Board(workers)
        self._pid = 0  # of the parent of workers, when it runs in the background
        self._line: socket.socket | None = None  # between us, as to workers
        self._listeners: list[_becket.Listener] = []  # its own, which it does not accept from

    def stats(self) -> dict[str, int]:
        return self._board.total()

    # ---- In the background: in a process of its own ----

    def start(self) -> None:
        if self._pid:
            raise RuntimeError("the server was started already")
        near, far = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            near.close()
            _leave(lambda: self._supervise(far))
        far.close()
        with near.makefile() as answer:
            told = json.loads(answer.readline() or UNABLE)
        if isinstance(told, dict):
            self._pid, self._line, self.names = pid, near, told["names"]
            return
        near.close()
        os.waitpid(pid, 0)
        kind, args = told
        raise {"ValueError": ValueError, "TypeError": TypeError}.get(kind, OSError)(*args)

    def _supervise(self, line: socket.socket) -> int:
        def ready() -> None:
            line.sendall(json.dumps({"names": self.names}).encode() + b"\n")
            loop = asyncio.get_running_loop()
            loop.add_reader(line, self._orphaned, loop)

        self._line = line
        try:
            return self._run(ready, signals=True)
        except (OSError, ValueError, TypeError) as error:
            kind = "OSError" if isinstance(error, OSError) else type(error).__name__
            args = [error.errno, error.strerror] if isinstance(error, OSError) else [str(error)]
            line.sendall(json.dumps([kind, args]).encode() + b"\n")
            return 1

    def _orphaned(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whoever started it in the background has been killed."""
        assert self._line is not None
        loop.remove_reader(self._line)
        if not self._ending:
            self._end()

    def stop(self, drain: float) -> int:
        pid, self._pid = self._pid, 0
        if not pid:
            return 0
        try:
            return self._stop_process(pid, drain)
        finally:
            assert self._line is not None
            self._line.close()

    @staticmethod
    def _stop_process(pid: int, drain: float) -> int:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + drain
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(POLL)
        os.kill(pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def reload(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGHUP)
            return
        with telling_reload():
            reopen_logs()
            self._tell(signal.SIGHUP)

    # ---- The parent of workers ----

    async def _main(self, ready: Callable[[], object], signals: bool) -> int:
        loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._ending = 0  # how often it was asked to end
        self._deadline = math.inf  # when workers are killed
        # pid: place, start, the line between us, which tells either that the other is gone
        self._pids: dict[int, tuple[int, float, socket.socket]] = {}
        self._due: dict[int, float] = {}  # when a place is to be filled again
        self._quick = [0] * self.workers  # quick deaths in a row
        self._failed = False
        self._serving = asyncio.Event()  # the first worker listens
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        loop.add_signal_handler(signal.SIGCHLD, self._changed.set)
        sockets = self._open(loop)  # type: ignore[arg-type]
        parsed = self.plan.parsed
        self._each = {text for text in parsed if parsed[text].is_each_ones}
        self._alone = not sockets and not self._each
        for place in range(self.workers):
            self._due[place] = 0.0
        watching = asyncio.create_task(self._watch(sockets))
        serving = asyncio.create_task(self._serving.wait())
        await asyncio.wait((watching, serving), return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        if self._serving.is_set() and not self._ending:
            ready()
            tell_ready(loop)  # type: ignore[arg-type]
        return await watching

    def _open(self, loop: EventLoop) -> dict[str, list[int]]:
        """Open what all workers accept from. What is one connection, or is to be opened by each
        worker, is opened there."""
        sockets: dict[str, list[int]] = {}
        for endpoint, parts in self.plan.parsed.items():
            if parts.is_each_ones:
                self.names.append(endpoint)
                continue
            given = self.given.get(endpoint, ())
            with naming(endpoint):
                listener = _becket.Listener(loop, endpoint, asyncio.Protocol, sockets=given)
            listener.pause(True)
            self.names.append(listener.name or "")
            if listener.sockets():
                sockets[endpoint] = listener.sockets()
                self._listeners.append(listener)
            else:  # the first worker's
                listener.close()
                if parts.scheme == "fd":
                    raise ValueError(
                        f"driver: {endpoint} is a connection, which only loop can serve"
                    )
        return sockets

    def _end(self) -> None:
        self._ending += 1
        tell_supervisor("STOPPING=1")
        drain = self.plan.drain if self._ending == 1 else 0.0
        self._deadline = min(self._deadline, time.monotonic() + drain + 2 * LAST_WORDS)
        for listener in self._listeners:  # else clients would wait for nobody
            listener.close()
        self._tell(signal.SIGTERM)
        self._changed.set()

    def _tell(self, number: int) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _fill(self, sockets: Sockets) -> None:
        now = time.monotonic()
        for place, due in list(self._due.items()):
            if due <= now and not self._ending:
                del self._due[place]
                self._fork(place, sockets)

    def _fork(self, place: int, sockets: Sockets) -> None:
        mine = dict(sockets)
        if place > 0:  # what is one connection, is the first worker's
            mine = {**{e: [] for e in self.plan.endpoints if e not in self._each}, **mine}
        near, far = socket.socketpair()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                for line in (near, *(line for _, _, line in self._pids.values())):
                    line.close()
                _leave(lambda: self._work(place, mine, far))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
        far.close()
        self._pids[pid] = (place, time.monotonic(), near)
        asyncio.get_running_loop().add_reader(near, self._told, near)

    def _told(self, line: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(line)
        if line.recv(1):
            self._serving.set()

    def _work(self, place: int, sockets: Sockets, line: socket.socket) -> int:
        asyncio._set_running_loop(None)
        signal.set_wakeup_fd(-1)
        worker = Worker(self.plan, self._board, place, sockets, line)

        def ready() -> None:
            with contextlib.suppress(ConnectionError):  # else the line tells
                line.sendall(b"+")

        try:
            return worker._run(ready, signals=True)
        except (OSError, ValueError) as error:
            logger.error("a worker could not begin: %s", error)
            return 1

    async def _watch(self, sockets: Sockets) -> int:
        self._fill(sockets)
        while self._pids or (self._due and not self._ending):
            wait = None
            if self._ending:
                wait = max(0.0, self._deadline - time.monotonic())
            elif self._due:
                wait = max(0.0, min(self._due.values()) - time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait)
            self._changed.clear()
            self._reap()
            if time.monotonic() >= self._deadline and self._pids:
                logger.warning("workers that do not end are killed")
                self._failed = True
                self._tell(signal.SIGKILL)
                self._deadline += LAST_WORDS
            self._fill(sockets)
        return 1 if self._failed else 0

    def _reap(self) -> None:
        for pid in list(self._pids):
            with contextlib.suppress(ChildProcessError):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self._bury(pid, os.waitstatus_to_exitcode(status))

    def _bury(self, pid: int, status: int) -> None:
        place, began, line = self._pids.pop(pid)
        self._board.forget(place)
        asyncio.get_running_loop().remove_reader(line)
        line.close()
        if self._ending:
            self._failed = self._failed or status != 0
            return
        if place == 0 and self._alone and status in (0, 1) and self._serving.is_set():
            self._failed = self._failed or status != 0
            self._end()  # what it had was one connection
            return
        how = f"killed by signal {-status}" if status < 0 else f"exited with status {status}"
        quick = time.monotonic() - began < self.QUICK
        self._quick[place] = self._quick[place] + 1 if quick else 0
        delay = min(self.FIRST * 2 ** (self._quick[place] - 1), self.LONGEST) if quick else 0.0
        if not self._serving.is_set() and self._quick[place] >= self.HOPELESS:
            logger.error("worker %d was %s again and again, before it served", pid, how)
            self._failed = True
            self._end()
            return
        logger.warning("worker %d was %s; another takes its place in %.1f s", pid, how, delay)
        self._due[place] = time.monotonic() + delay


def _leave(work: Callable[[], int]) -> None:
    """In a child: work, and end without a return to what the parent was about."""
    status = 1
    try:
        status = work()
    except BaseException:
        logger.exception("a process of the server failed")
    finally:
        with contextlib.suppress(Exception):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


DRIVERS: dict[str, type[Driver]] = {"loop": Driver, "loops": Loops, "threads": Threads}
if hasattr(os, "fork"):
    DRIVERS["forks"] = Forks


def make(name: str, plan: Plan) -> Driver:
    """The driver of that name: "loop", "loops:N", "threads:N", "forks:N". ValueError."""
    kind, colon, number = str(name).partition(":")
    wrong = f"driver: {name!r} is none of loop, loops:N, threads:N, forks:N"
    if kind not in DRIVERS or (kind == "loop") == bool(colon):
        raise ValueError(wrong)
    if not colon:
        return DRIVERS[kind](plan, 1)
    if not (number.isascii() and number.isdigit() and 0 < int(number) <= 10000):
        raise ValueError(f"{wrong}, with N from 1 to 10000")
    return DRIVERS[kind](plan, int(number))
