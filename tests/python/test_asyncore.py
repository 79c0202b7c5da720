"""becket.asyncore runs asyncore's dispatchers as asyncore's own loop does, and asks fewer of them.

A test that takes `loop` runs with asyncore's own, whose behaviour is the reference, by select() and
by poll(), and with becket's on every notifier, telling as either does.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import becket

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import asynchat
    import asyncore

import becket.asyncore

Map = dict[int, Any]
OWN = asyncore.loop
KINDS = ["asyncore", "asyncore+poll2", *becket.notifiers, *(f"{n}+poll2" for n in becket.notifiers)]


def loop_of(kind: str) -> Callable[..., None]:
    name, _, poll2 = kind.partition("+")

    def loop(**kwargs: Any) -> None:
        if name == "asyncore":
            OWN(use_poll=bool(poll2), **kwargs)
        else:
            becket.asyncore.loop(use_poll=bool(poll2), notifier=name, **kwargs)

    return loop


@pytest.fixture(params=KINDS)
def loop(request: pytest.FixtureRequest) -> Callable[..., None]:
    """asyncore.loop(), the reference's or ours; with keywords only."""
    return loop_of(request.param)


@pytest.fixture(params=becket.notifiers)
def ours(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Our loop(), which alone is meant."""
    return loop_of(request.param)


@pytest.fixture(name="map")
def fixture_map() -> Iterator[Map]:
    """A map of the test's own; what is left in it is closed."""
    channels: Map = {}
    yield channels
    asyncore.close_all(channels, ignore_all=True)


def until(loop: Callable[..., None], map: Map, condition: Callable[[], object]) -> None:
    """Turn until something holds; the number of turns guards against none."""
    for _ in range(2000):
        if condition():
            return
        loop(timeout=0.05, map=map, count=1)
    raise AssertionError("it never came true")


class Echo(asyncore.dispatcher_with_send):
    """Sends back what comes; writes down what is called."""

    def __init__(self, sock: socket.socket | None, map: Map) -> None:
        self.calls: list[str] = []
        self.errors: list[BaseException | None] = []
        super().__init__(sock, map)

    def handle_read(self) -> None:
        data = self.recv(65536)
        if data:
            self.send(data)

    def handle_close(self) -> None:
        self.calls.append("close")
        self.close()

    def handle_connect(self) -> None:
        self.calls.append("connect")

    def handle_error(self) -> None:
        self.calls.append("error")
        self.errors.append(sys.exc_info()[1])
        self.close()


class Server(asyncore.dispatcher):
    """Listens, and gives each connection a channel."""

    def __init__(self, map: Map, channel: Callable[[socket.socket, Map], Any]) -> None:
        super().__init__(map=map)
        self.channel = channel
        self.channels: list[Any] = []
        self.create_socket()
        self.set_reuse_addr()
        self.bind(("127.0.0.1", 0))
        self.listen(100)
        self.address = self.socket.getsockname()

    def handle_accept(self) -> None:
        pair = self.accept()
        if pair is not None:
            self.channels.append(self.channel(pair[0], self._map))


class Client(Echo):
    """Connects, and keeps what it receives."""

    def __init__(self, address: Any, map: Map) -> None:
        super().__init__(None, map)
        self.data = b""
        self.create_socket()
        self.connect(address)

    def handle_read(self) -> None:
        self.data += self.recv(65536)


class Idle(asyncore.dispatcher):
    """Counts how often it is asked."""

    asked = 0

    def __init__(self, sock: socket.socket, map: Map, wants_to_write: bool = False) -> None:
        super().__init__(sock, map)
        self.wants_to_write = wants_to_write
        self.calls: list[str] = []

    def readable(self) -> bool:
        Idle.asked += 1
        return True

    def writable(self) -> bool:
        Idle.asked += 1
        return self.wants_to_write

    def handle_read(self) -> None:
        self.calls.append("read")
        self.recv(65536)

    def handle_write(self) -> None:
        self.calls.append("write")
        self.wants_to_write = False

    def handle_close(self) -> None:
        self.calls.append("close")
        self.close()


@contextlib.contextmanager
def pairs(count: int = 1) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Connected sockets; what a dispatcher has not closed is closed."""
    made = [socket.socketpair() for _ in range(count)]
    for near, far in made:
        near.setblocking(False)
        far.setblocking(False)
    try:
        yield made
    finally:
        for pair in made:
            for sock in pair:
                sock.close()


def received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return b""


# ---- Servers and clients ----


def test_echo_and_its_end(loop: Callable[..., None], map: Map) -> None:
    server = Server(map, Echo)
    client = Client(server.address, map)
    until(loop, map, lambda: client.connected)
    assert client.calls == ["connect"]
    client.send(b"x" * 100_000)
    until(loop, map, lambda: len(client.data) == 100_000)
    client.close()
    until(loop, map, lambda: server.channels[0].calls == ["close"])
    assert list(map.values()) == [server]


def test_all_ends_when_the_map_is_empty(loop: Callable[..., None], map: Map) -> None:
    with pairs() as [(near, far)]:
        channel = Echo(near, map)
        far.sendall(b"hello")
        far.shutdown(socket.SHUT_WR)
        loop(timeout=5, map=map)
        assert channel.calls == ["close"]
        assert received(far) == b"hello"


def test_many_connections_come_and_go(loop: Callable[..., None], map: Map) -> None:
    server = Server(map, Echo)
    for _ in range(3):
        clients = [Client(server.address, map) for _ in range(20)]
        for client in clients:
            client.out_buffer = b"hello"
        until(loop, map, lambda: all(c.data == b"hello" for c in clients))
        for client in clients:
            client.close()
        until(loop, map, lambda: len(map) == 1)


def test_refused_connection_is_an_error(loop: Callable[..., None], map: Map) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    client = Client(address, map)
    until(loop, map, lambda: not map)
    assert client.calls == ["error"]
    assert isinstance(client.errors[0], ConnectionRefusedError)


class Lines(asynchat.async_chat):
    """Answers each line; "bye" is the last."""

    def __init__(self, sock: socket.socket, map: Map) -> None:
        super().__init__(sock, map)
        self.set_terminator(b"\r\n")

    def collect_incoming_data(self, data: bytes) -> None:
        self._collect_incoming_data(data)

    def found_terminator(self) -> None:
        line = self._get_data()
        self.push(b"you said " + line + b"\r\n")
        if line == b"bye":
            self.close_when_done()


def test_lines_of_asynchat(loop: Callable[..., None], map: Map) -> None:
    server = Server(map, Lines)
    client = Client(server.address, map)
    client.out_buffer = b"one\r\ntwo\r\nby"
    until(loop, map, lambda: client.data == b"you said one\r\nyou said two\r\n")
    client.send(b"e\r\n")
    until(loop, map, lambda: client.calls == ["connect", "close"])
    assert client.data.endswith(b"you said bye\r\n")


def test_much_is_sent_by_asynchat_while_the_peer_is_slow(
    loop: Callable[..., None], map: Map
) -> None:
    with pairs() as [(near, far)]:
        channel = Lines(near, map)
        channel.push(b"x" * 1_000_000)
        channel.close_when_done()
        data = b""

        def all_came() -> bool:
            nonlocal data
            data += received(far)
            return len(data) == 1_000_000

        until(loop, map, all_came)
        until(loop, map, lambda: not map)


def test_half_close(loop: Callable[..., None], map: Map) -> None:
    """One that goes on sending after the peer's end."""

    class Late(Echo):
        def handle_read(self) -> None:
            data = self.socket.recv(65536)
            if not data:
                self.ended = True
                self.out_buffer = b"after your end"

        ended = False

        def readable(self) -> bool:
            return not self.ended

        def handle_write(self) -> None:
            super().handle_write()
            if not self.out_buffer and self.ended:
                self.close()

        def writable(self) -> bool:
            return bool(self.out_buffer)

    with pairs() as [(near, far)]:
        Late(near, map)
        far.shutdown(socket.SHUT_WR)
        until(loop, map, lambda: not map)
        assert received(far) == b"after your end"


def test_file_dispatcher_on_pipes(loop: Callable[..., None], map: Map) -> None:
    class Reader(asyncore.file_dispatcher):
        data = b""

        def handle_read(self) -> None:
            self.data += self.recv(100)

        def writable(self) -> bool:
            return False

        def handle_expt(self) -> None:
            pass

        def handle_close(self) -> None:
            self.close()

    class Writer(asyncore.file_dispatcher):
        rest = b"through a pipe"

        def readable(self) -> bool:
            return False

        def writable(self) -> bool:
            return bool(self.rest)

        def handle_write(self) -> None:
            self.rest = self.rest[self.send(self.rest) :]
            if not self.rest:
                self.close()

    read_fd, write_fd = os.pipe()
    reader, writer = Reader(read_fd, map), Writer(write_fd, map)
    os.close(read_fd)
    os.close(write_fd)
    until(loop, map, lambda: reader.data == b"through a pipe")
    assert writer._fileno is None
    reader.close()


def test_file_dispatcher_on_a_file(loop: Callable[..., None], map: Map, tmp_path: Any) -> None:
    """A regular file is always ready, also where the notifier will not have it."""

    class Reader(asyncore.file_dispatcher):
        data = b""

        def handle_read(self) -> None:
            piece = self.recv(3)
            self.data += piece
            if not piece:
                self.close()

        def writable(self) -> bool:
            return False

    (tmp_path / "file").write_bytes(b"some words")
    with open(tmp_path / "file", "rb") as file:
        reader = Reader(file, map)
        loop(timeout=5, map=map)
    assert reader.data == b"some words"


# ---- Exceptions ----


@pytest.mark.parametrize("kind", [asyncore.ExitNow, KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_comes_out(
    loop: Callable[..., None], map: Map, kind: type[BaseException]
) -> None:
    class Raises(Echo):
        def handle_read(self) -> None:
            self.recv(100)
            raise kind("enough")

    with pairs() as [(near, far)]:
        channel = Raises(near, map)
        far.sendall(b"x")
        with pytest.raises(kind, match="enough"):
            loop(timeout=5, map=map)
        assert channel.calls == []
        assert list(map.values()) == [channel]
        far.sendall(b"x")  # and the loop can be called again
        with pytest.raises(kind, match="enough"):
            loop(timeout=5, map=map)


def test_other_exceptions_are_told_to_the_dispatcher(loop: Callable[..., None], map: Map) -> None:
    class Raises(Echo):
        def handle_read(self) -> None:
            raise ZeroDivisionError("of a handler")

    with pairs() as [(near, far)]:
        channel = Raises(near, map)
        far.sendall(b"x")
        loop(timeout=5, map=map)
        assert channel.calls == ["error"]
        assert isinstance(channel.errors[0], ZeroDivisionError)


@pytest.mark.parametrize("method", ["readable", "writable"])
def test_what_asking_raises_comes_out_each_time(
    loop: Callable[..., None], map: Map, method: str
) -> None:
    with pairs() as [(near, _far)]:
        channel = Echo(near, map)

        def fail() -> bool:
            raise LookupError(method)

        setattr(channel, method, fail)
        for _ in range(2):
            with pytest.raises(LookupError, match=method):
                loop(timeout=0, map=map, count=1)


def test_a_lost_connection_closes_with_poll2_and_is_an_error_without() -> None:
    class Raises(Echo):
        def handle_read(self) -> None:
            raise ConnectionResetError(104, "of a handler")

    for kind in KINDS:
        channels: Map = {}
        with pairs() as [(near, far)]:
            channel = Raises(near, channels)
            far.sendall(b"x")
            loop_of(kind)(timeout=5, map=channels)
            assert channel.calls == (["close"] if kind.endswith("poll2") else ["error"]), kind


# ---- Closing in handlers ----


def test_one_closes_another_that_is_ready_too(loop: Callable[..., None], map: Map) -> None:
    with pairs(2) as [(a, peer_a), (b, peer_b)]:
        channels: list[Any] = []

        class Rival(Echo):
            def handle_read(self) -> None:
                self.calls.append("read")
                self.recv(100)
                for channel in channels:
                    if channel is not self:
                        channel.close()

        channels += [Rival(a, map), Rival(b, map)]
        peer_a.sendall(b"x")
        peer_b.sendall(b"x")
        loop(timeout=5, map=map, count=1)
        assert sorted(len(c.calls) for c in channels) == [0, 1]
        assert len(map) == 1


def test_a_descriptor_that_is_reused_within_a_turn(ours: Callable[..., None], map: Map) -> None:
    """asyncore hands the event of the old one to the new one, who then finds nothing."""
    with pairs(2) as [(a, peer_a), (b, peer_b)]:
        channels: list[Any] = []
        made: list[Any] = []

        class Replaces(Echo):
            def handle_read(self) -> None:
                self.recv(100)
                for channel in channels:
                    if channel is not self and channel._fileno is not None:
                        number = channel._fileno
                        channel.close()
                        near, far = socket.socketpair()
                        assert number in (near.fileno(), far.fileno())
                        mine, other = (near, far) if near.fileno() == number else (far, near)
                        made.append((Idle(mine, map), other))

        channels += [Replaces(a, map), Replaces(b, map)]
        peer_a.sendall(b"x")
        peer_b.sendall(b"x")
        until(ours, map, lambda: made)
        [(new, other)] = made
        with other:
            ours(timeout=0, map=map, count=1)
            assert new.calls == []
            other.sendall(b"for the new one")
            until(ours, map, lambda: new.calls == ["read"])


def test_a_reader_closes_itself_before_it_would_write(loop: Callable[..., None], map: Map) -> None:
    class Closes(Idle):
        def handle_read(self) -> None:
            self.close()

    with pairs() as [(near, far)]:
        channel = Closes(near, map, wants_to_write=True)
        far.sendall(b"x")
        loop(timeout=5, map=map, count=1)
        assert not map
        assert channel.calls in ([], ["write"])  # which may be told first


def test_close_all_in_a_handler(loop: Callable[..., None], map: Map) -> None:
    class Ends(Echo):
        def handle_read(self) -> None:
            asyncore.close_all(map)

    with pairs(10) as made:
        for near, far in made:
            Ends(near, map)
            far.sendall(b"x")
        loop(timeout=5, map=map)
        assert not map


# ---- The arguments ----


def test_count_and_timeout(loop: Callable[..., None], map: Map) -> None:
    with pairs() as [(near, far)]:
        channel = Idle(near, map)
        start = time.monotonic()
        loop(timeout=0.02, map=map, count=3)
        assert time.monotonic() - start >= 0.06 - 0.005
        far.sendall(b"x")
        loop(timeout=60, map=map, count=1)  # returns at the first event
        assert channel.calls == ["read"]
        loop(timeout=60, map=map, count=0)
        loop(timeout=60, map={}, count=5)
        loop(timeout=60, map={})


def test_nobody_wants_anything(loop: Callable[..., None], map: Map) -> None:
    class Deaf(Idle):
        def readable(self) -> bool:
            return False

    with pairs() as [(near, far)]:
        channel = Deaf(near, map)
        far.sendall(b"x")
        start = time.monotonic()
        loop(timeout=0.02, map=map, count=1)
        assert time.monotonic() - start >= 0.02 - 0.005
        assert channel.calls == []


def test_for_ever(ours: Callable[..., None], map: Map) -> None:
    with pairs() as [(near, far)]:
        channel = Idle(near, map)
        timer = threading.Timer(0.05, far.sendall, [b"x"])
        timer.start()
        ours(timeout=None, map=map, count=1)
        timer.join()
        assert channel.calls == ["read"]


def test_wrong_arguments(map: Map) -> None:
    with pairs() as [(near, _far)]:
        Idle(near, map)
        with pytest.raises(ValueError, match="timeout"):
            becket.asyncore.loop(timeout=-1, map=map)
        with pytest.raises(ValueError, match="sweep"):
            becket.asyncore.loop(sweep=-1, map=map)
        with pytest.raises(ValueError, match="sweep"):
            becket.asyncore.loop(sweep=float("nan"), map=map)
        with pytest.raises(ValueError, match="no notifier 'abacus'"):
            becket.asyncore.loop(notifier="abacus", map=map)


def test_a_descriptor_that_was_closed_behind_our_back(ours: Callable[..., None], map: Map) -> None:
    """As with asyncore's own, the caller hears of it, or the dispatcher: which is up to the
    notifier."""
    with pairs() as [(near, _far)]:
        high = socket.socket(fileno=fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, 900))
        channel = Echo(high, map)
        os.close(high.detach())
        try:
            ours(timeout=0, map=map, count=1)
        except OSError as error:
            channel.errors.append(error)
        assert channel.errors or channel.calls == ["close"]
        map.clear()


# ---- Who is asked ----


@pytest.mark.parametrize("kind", ["asyncore+poll2", *becket.notifiers])
def test_the_idle_are_not_asked(map: Map, kind: str) -> None:
    """2,000 idle and one active: how many are asked follows the active one. (There is no room for
    as many where select() waits.)"""
    idle = 400 if kind == "select" else 2000

    def turn() -> None:
        if kind == "asyncore+poll2":
            OWN(use_poll=True, map=map, count=1)
        else:
            becket.asyncore.loop(map=map, count=1, notifier=kind, sweep=3600)

    with pairs(1 + idle) as [(near, far), *others]:
        Echo(near, map)
        for quiet, _ in others:
            Idle(quiet, map)
        far.sendall(b"x")
        turn()
        Idle.asked = 0
        for _ in range(20):
            far.sendall(b"x")
            turn()
        assert received(far).startswith(b"x")
        assert Idle.asked == (20 * idle * 2 if kind == "asyncore+poll2" else 0)


def test_the_idle_are_asked_in_time(ours: Callable[..., None], map: Map) -> None:
    """A change that nothing tells of: a list that somebody else appends to."""
    queue: list[bytes] = []

    class Quiet(Idle):
        def writable(self) -> bool:
            return bool(queue)

        def handle_write(self) -> None:
            self.send(queue.pop())

    class Appends(Idle):
        def handle_read(self) -> None:
            self.recv(100)
            queue.append(b"unseen")

    with pairs(2) as [(a, peer_a), (b, peer_b)]:
        Quiet(a, map)
        Appends(b, map)
        ours(timeout=0, map=map, count=1)
        peer_b.sendall(b"x")
        until(ours, map, lambda: received(peer_a) == b"unseen")
        # One turn is enough: a wait is cut short for it.
        ours(timeout=0, map=map, count=1)
        peer_b.sendall(b"x")
        ours(timeout=20, map=map, count=1)
        assert queue == [b"unseen"]
        start = time.monotonic()
        ours(timeout=20, map=map, count=1)
        assert queue == [] and time.monotonic() - start < 10


CHANGES: dict[str, Callable[[Any], object]] = {
    "an attribute": lambda channel: setattr(channel, "wants_to_write", True),
    "send": lambda channel: (channel.queue.append(1), channel.send(b"x")),
    "push": lambda channel: channel.push(b"x" * 1_000_000),
    "push_with_producer": lambda channel: channel.push_with_producer(
        asynchat.simple_producer(b"x" * 1_000_000, 65536)
    ),
    "initiate_send": lambda channel: (
        channel.producer_fifo.append(b"x" * 1_000_000),
        channel.initiate_send(),
    ),
    "close_when_done": lambda channel: channel.close_when_done(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_another_is_seen_in_the_next_turn(
    ours: Callable[..., None], map: Map, change: str
) -> None:
    class Target(Lines):
        wants_to_write = False

        def __init__(self, sock: socket.socket, map: Map) -> None:
            super().__init__(sock, map)
            self.queue: list[int] = []
            self.written = 0

        def writable(self) -> bool:
            return bool(self.wants_to_write or self.queue or super().writable())

        def handle_write(self) -> None:
            self.written += 1
            self.wants_to_write = False
            self.queue.clear()
            super().handle_write()

    class Source(Idle):
        def handle_read(self) -> None:
            self.recv(100)
            CHANGES[change](target)

    with pairs(2) as [(a, peer_a), (b, peer_b)]:
        target = Target(a, map)
        Source(b, map)
        ours(timeout=0, map=map, count=1, sweep=3600)  # all are asked this once
        peer_b.sendall(b"x")
        ours(timeout=20, map=map, count=1, sweep=3600)
        assert not target.written
        received(peer_a)
        while not target.written and target._fileno is not None:
            received(peer_a)
            ours(timeout=20, map=map, count=1, sweep=3600)


def test_a_program_that_changes_its_map_itself(ours: Callable[..., None], map: Map) -> None:
    with pairs(2) as [(a, peer_a), (b, peer_b)]:
        first = Idle(a, map)
        elsewhere: Map = {}
        second = Idle(b, elsewhere)
        ours(timeout=0, map=map, count=1)
        map.update(elsewhere)
        peer_b.sendall(b"x")
        until(ours, map, lambda: second.calls == ["read"])
        del map[first._fileno]  # not by del_channel()
        peer_a.sendall(b"x")
        ours(timeout=0.02, map=map, count=1)
        assert first.calls == []
        map[first._fileno] = first
        until(ours, map, lambda: first.calls == ["read"])
        second.close()
        map.pop(b.fileno(), None)


def test_one_that_changes_itself_while_it_is_asked_is_not_asked_for_ever(
    ours: Callable[..., None], map: Map
) -> None:
    class Counts(Idle):
        times = 0

        def readable(self) -> bool:
            self.times += 1
            return True

    with pairs(2) as [(a, _), (b, peer_b)]:
        counts = Counts(a, map)
        Idle(b, map)
        for _ in range(5):
            peer_b.sendall(b"x")
            ours(map=map, count=1, sweep=3600)
        assert counts.times == 1


def test_a_sweep_of_0_asks_all_each_time(map: Map) -> None:
    with pairs(10) as made:
        for near, _ in made:
            Idle(near, map)
        Idle.asked = 0
        for _ in range(5):
            made[0][1].sendall(b"x")
            becket.asyncore.loop(map=map, count=1, sweep=0)
        assert Idle.asked == 5 * 10 * 2


# ---- Threads, processes, loops within loops ----


def test_a_map_for_each_thread(ours: Callable[..., None]) -> None:
    def serve() -> None:
        channels: Map = {}
        server = Server(channels, Echo)
        client = Client(server.address, channels)
        client.out_buffer = b"hello"
        until(ours, channels, lambda: client.data == b"hello")
        asyncore.close_all(channels)
        done.append(True)

    done: list[bool] = []
    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4


def test_another_thread_closes_and_adds(ours: Callable[..., None], map: Map) -> None:
    """As tests do that run a server in a thread: the waiting one finds out when it is woken."""

    class Ends(Idle):
        def handle_read(self) -> None:
            self.recv(100)
            raise asyncore.ExitNow

    with pairs(3) as [(a, peer_a), (b, peer_b), (c, peer_c)]:
        closed = Idle(a, map)
        Ends(b, map)

        def run() -> None:
            try:
                ours(timeout=20, map=map)
            except asyncore.ExitNow:
                ended.append(True)

        ended: list[bool] = []
        thread = threading.Thread(target=run)
        thread.start()
        peer_a.sendall(b"x")
        while closed.calls != ["read"]:
            time.sleep(0.001)
        closed.close()
        added = Idle(c, map)
        peer_c.sendall(b"x")
        while added.calls != ["read"]:  # a sweep finds it, at the latest
            time.sleep(0.001)
        peer_b.sendall(b"x")
        thread.join()
        assert ended == [True]


def test_a_loop_within_a_handler(loop: Callable[..., None], map: Map) -> None:
    class Waits(Idle):
        def handle_read(self) -> None:
            self.recv(100)
            until(loop, map, lambda: received(peer_b) == b"inner")
            self.calls.append("read")

    class Patient(Echo):
        def handle_read(self) -> None:  # the outer loop tells what the inner has dealt with
            with contextlib.suppress(BlockingIOError):
                super().handle_read()

    with pairs(2) as [(a, peer_a), (b, peer_b)]:
        waits, echo = Waits(a, map), Patient(b, map)
        peer_a.sendall(b"x")
        peer_b.sendall(b"inner")
        until(loop, map, lambda: waits.calls == ["read"])
        peer_b.sendall(b"outer")
        until(loop, map, lambda: received(peer_b) == b"outer")
        assert echo.calls == []


def test_after_fork_the_child_has_a_notifier_of_its_own(
    ours: Callable[..., None], map: Map
) -> None:
    with pairs() as [(near, far)]:
        channel = Echo(near, map)
        far.sendall(b"x")
        until(ours, map, lambda: received(far) == b"x")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads that other tests had
            pid = os.fork()
        if pid == 0:
            channel.close()  # the child's copy; the parent's watch must stay
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        far.sendall(b"y")
        until(ours, map, lambda: received(far) == b"y")


def test_nothing_is_left(ours: Callable[..., None]) -> None:
    """Runners are kept for a few maps, and no more."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        channels: Map = {}
        with pairs() as [(near, _far)]:
            Idle(near, channels)
            ours(timeout=0, map=channels, count=1)
            asyncore.close_all(channels)
    assert len(becket.asyncore._runners.all) <= becket.asyncore.KEPT
    assert len(os.listdir("/proc/self/fd")) <= before + 3 * becket.asyncore.KEPT


# ---- In place of asyncore's ----

# Python's own tests of asyncore and asynchat, which went with them.
PYTHONS_TESTS = """
import sys, unittest
import becket.asyncore
from test import test_asyncore, test_asynchat
becket.asyncore.install(sys.argv[1])
for name in ("TestAPI_UseIPv4Select", "TestAPI_UseIPv4Poll", "TestAPI_UseIPv6Select",
             "TestAPI_UseIPv6Poll", "TestAPI_UseUnixSocketsSelect", "TestAPI_UseUnixSocketsPoll"):
    getattr(test_asyncore, name).test_handle_expt = None  # what no notifier tells of
suite = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromModule,
                               (test_asyncore, test_asynchat)))
result = unittest.TextTestRunner(verbosity=0).run(suite)
assert result.testsRun > 100
sys.exit(not result.wasSuccessful())
"""

if importlib.util.find_spec("test.test_asyncore") is not None:

    @pytest.mark.parametrize("notifier", becket.notifiers)
    def test_pythons_own_tests(notifier: str, tmp_path: Any) -> None:
        command = [sys.executable, "-W", "ignore", "-c", PYTHONS_TESTS, notifier]
        done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_ctrl_c_ends_a_wait(ours: Callable[..., None], map: Map) -> None:
    with pairs() as [(near, _far)]:
        Idle(near, map)
        timer = threading.Timer(0.05, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            ours(timeout=20, map=map)
        timer.join()


PROGRAM = """
import asyncore, socket, sys
class Hello(asyncore.dispatcher):
    def handle_connect(self): pass
    def writable(self): return False
    def handle_read(self):
        print(self.recv(100).decode(), flush=True)
        self.close()
near, far = socket.socketpair()
Hello(near)
far.sendall(b"unchanged")
asyncore.loop()
print(asyncore.loop.func.__module__)
"""


def test_install_leaves_programs_unchanged(tmp_path: Any) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    start = "import becket.asyncore, runpy; becket.asyncore.install(); runpy.run_path('program.py')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", start],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "unchanged\nbecket.asyncore\n", done.stderr


def test_install_and_uninstall(map: Map) -> None:
    try:
        becket.asyncore.install("poll", sweep=1)
        with pairs() as [(near, far)]:
            channel = Idle(near, map)
            for function in (asyncore.poll, asyncore.poll2, asyncore.poll3):
                far.sendall(b"x")
                function(5, map)
            far.sendall(b"x")
            asyncore.loop(5, True, map, 1)
            assert channel.calls == ["read"] * 4
            assert [r.notifier for r in becket.asyncore._runners.idle if r.map is map] == ["poll"]
    finally:
        becket.asyncore.uninstall()
    assert asyncore.loop is OWN
