"""becket.connect() and becket.Connection: blocking code, over every transport and TLS engine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import ssl
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import becket
from conftest import Certificates
from interop.mail import ENGINES, see_to
from support import reset, tcp_pair

BIG = bytes(range(256)) * (4 << 12)  # 4 MiB
READ_AHEAD = 64 * 1024
PATIENCE = 20  # a guard: no test comes near it
KINDS = ["tcp", "unix", "fd", "adopted"]

pytestmark = pytest.mark.usefixtures("no_leaks")


class Background:
    """Something that another thread does; its result, or what it raised, is taken at the end."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(work, arguments), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[..., Any], arguments: Any) -> None:
        try:
            self.result = work(*arguments)
        except BaseException as error:
            self.error = error

    def take(self) -> Any:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def receive_all(sock: socket.socket) -> bytes:
    """All up to the end."""
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


@contextlib.contextmanager
def accepting(family: str = "tcp", path: str = "") -> Iterator[tuple[socket.socket, str]]:
    """A listening socket, and its endpoint."""
    if family == "unix":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            yield server, f"unix:{path}"
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server, f"tcp://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def connected(kind: str = "tcp", path: str = "") -> Iterator[tuple[becket.Connection, Any]]:
    """A connection, and the socket at its other end."""
    if kind in ("fd", "adopted"):
        near, far = socket.socketpair()
        loop = becket.EventLoop("poll")
        with far, contextlib.closing(loop):
            if kind == "fd":
                connection = becket.connect(f"fd:{near.detach()}")
            else:
                connection = becket.Connection._adopt(loop, near.detach())
            with connection:
                far.settimeout(PATIENCE)
                yield connection, far
        return
    with accepting(kind, path) as (server, endpoint):
        connection = becket.connect(endpoint, timeout=PATIENCE)
        far, _ = server.accept()
    with connection, far:
        far.settimeout(PATIENCE)
        yield connection, far


@pytest.fixture(params=KINDS)
def ends(request: pytest.FixtureRequest, short_path: str) -> Iterator[tuple[Any, Any]]:
    """A connection of each kind, and the socket at its other end."""
    with connected(request.param, short_path) as both:
        yield both


@pytest.fixture(params=["loop", "socket"])
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """The same, of one kind: one that waits in its loop, because there is a time-out, and one that
    waits in the socket."""
    with connected() as both:
        if request.param == "socket":
            both[0].settimeout(None)
        yield both


# ---- Receiving ----


def test_recv_gives_what_has_come(ends: Any) -> None:
    near, far = ends
    far.sendall(b"hello")
    assert near.recv(2) == b"he"
    assert near.recv() == b"llo"
    far.sendall(b"!")
    assert near.recv(100) == b"!"
    far.close()
    assert near.recv() == b""
    assert near.recv() == b""


def test_recv_of_nothing(both: Any) -> None:
    near, far = both
    assert near.recv(0) == b""
    with pytest.raises(ValueError, match="bufsize: -1"):
        near.recv(-1)
    with pytest.raises(TypeError):
        near.recv("1")
    far.sendall(b"x")
    assert near.recv(1) == b"x"


def test_recv_into(ends: Any) -> None:
    near, far = ends
    room = bytearray(b"........")
    far.sendall(b"hello")
    assert near.recv_into(room) == 5
    assert room == b"hello..."
    far.sendall(b"abc")
    assert near.recv_into(room, 2) == 2
    assert near.recv_into(memoryview(room)[2:], 5) == 1
    assert room == b"abclo..."
    assert near.recv_into(bytearray()) == 0
    with pytest.raises(ValueError, match="nbytes: 9"):
        near.recv_into(room, 9)
    with pytest.raises(TypeError):
        near.recv_into(b"constant")
    far.close()
    assert near.recv_into(room) == 0


def test_much_is_received_in_order(ends: Any) -> None:
    near, far = ends
    sending = Background(lambda: (far.sendall(BIG), far.shutdown(socket.SHUT_WR)))
    pieces = []
    while piece := near.recv():
        pieces.append(piece)
    sending.take()
    assert b"".join(pieces) == BIG


def test_what_is_received_is_never_filled_again(both: Any) -> None:
    near, far = both
    kept = []
    for i in range(50):
        far.sendall(bytes([i]) * 40000)
        kept.append(near.readexactly(20000))
        kept.append(near.readexactly(20000))
    assert kept == [bytes([i // 2]) * 20000 for i in range(100)]


def test_lines(ends: Any) -> None:
    near, far = ends
    far.sendall(b"one\ntwo\n\nfour")
    assert near.readline() == b"one\n"
    assert next(near) == b"two\n"
    assert near.readline(3) == b"\n"
    assert near.readline(2) == b"fo"
    far.shutdown(socket.SHUT_WR)
    assert list(near) == [b"ur"]
    assert near.readline() == b""


def test_a_line_in_pieces(both: Any) -> None:
    near, far = both
    reading = Background(near.readline)
    for piece in (b"a", b"b", b"c\r", b"\nd"):
        far.sendall(piece)
    assert reading.take() == b"abc\r\n"
    assert near.recv() == b"d"


def test_a_line_that_is_too_long(both: Any) -> None:
    near, far = both
    line = b"x" * (3 * READ_AHEAD) + b"\n"
    sending = Background(far.sendall, line * 3)
    assert near.readline() == line[:READ_AHEAD]
    with pytest.raises(asyncio.LimitOverrunError):
        next(near)
    assert near.readline(-1) == line[READ_AHEAD:]
    assert near.readline(1 << 20) == line
    assert near.readline(None) == line[:READ_AHEAD]
    sending.take()


def test_readexactly(ends: Any) -> None:
    near, far = ends
    sending = Background(lambda: (far.sendall(BIG[: 1 << 20] + b"rest"), far.close()))
    assert near.readexactly(0) == b""
    assert near.readexactly(1 << 20) == BIG[: 1 << 20]
    with pytest.raises(asyncio.IncompleteReadError) as info:
        near.readexactly(10)
    assert info.value.partial == b"rest"
    assert info.value.expected == 10
    with pytest.raises(ValueError, match="n: -1"):
        near.readexactly(-1)
    sending.take()


def test_readuntil(ends: Any) -> None:
    near, far = ends
    far.sendall(b"a line\nhead\r\n\r\nbody--")
    assert near.readuntil() == b"a line\n"
    assert near.readuntil(b"\r\n\r\n") == b"head\r\n\r\n"
    with pytest.raises(ValueError, match="separator"):
        near.readuntil(b"")
    with pytest.raises(ValueError, match="limit: -1"):
        near.readuntil(limit=-1)
    far.close()
    with pytest.raises(asyncio.IncompleteReadError) as info:
        near.readuntil(b"---")
    assert info.value.partial == b"body--"
    assert info.value.expected is None


def test_readuntil_that_finds_too_much(both: Any) -> None:
    near, far = both
    far.sendall(b"0123456789;")
    with pytest.raises(asyncio.LimitOverrunError) as info:
        near.readuntil(b";", limit=5)
    assert info.value.consumed in (10, 11)
    assert near.readuntil(b";", limit=10) == b"0123456789;"
    far.sendall(b"x" * 20)
    with pytest.raises(asyncio.LimitOverrunError):
        near.readuntil(b";", limit=5)
    assert near.readexactly(20) == b"x" * 20


def test_readuntil_sees_a_mark_that_was_cut(both: Any) -> None:
    near, far = both
    reading = Background(near.readuntil, b"\r\n.\r\n")
    for byte in b"text\r\n..\r\r\n.\r\n":
        far.sendall(bytes([byte]))
    assert reading.take() == b"text\r\n..\r\r\n.\r\n"


def test_read_ahead_is_bounded(both: Any) -> None:
    """A peer that sends and sends is held up, not kept in memory."""
    near, far = both
    far.setblocking(False)
    sent = 0
    near.settimeout(0)
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            sent += far.send(BIG[: 1 << 16])
        with contextlib.suppress(BlockingIOError, asyncio.LimitOverrunError):
            near.readuntil(b"never there", limit=READ_AHEAD)
    kernel = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    kernel += far.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert sent <= kernel + 4 * READ_AHEAD
    near.settimeout(PATIENCE)
    far.settimeout(PATIENCE)
    for left in range(sent, 0, -READ_AHEAD):
        assert len(near.readexactly(min(left, READ_AHEAD))) == min(left, READ_AHEAD)


# ---- Sending ----


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_sendall_sends_all(ends: Any, kind: Any) -> None:
    near, far = ends
    receiving = Background(receive_all, far)
    near.sendall(kind(b"small"))
    near.sendall(kind(BIG))
    near.sendall(b"")
    near.end()
    assert receiving.take() == b"small" + BIG


def test_what_was_sent_may_change(both: Any) -> None:
    near, far = both
    near.settimeout(0.05)
    data = bytearray(BIG)
    with pytest.raises(TimeoutError):
        near.sendall(data)
    data[:] = b"?" * len(data)
    receiving = Background(receive_all, far)
    near.settimeout(PATIENCE)
    near.end()
    near.close()
    assert receiving.take() == BIG


def test_only_bytes_are_sent(both: Any) -> None:
    near, _ = both
    with pytest.raises(TypeError):
        near.sendall("text")
    with pytest.raises(TypeError):
        near.send(None)


def test_send_takes_all(ends: Any) -> None:
    near, far = ends
    receiving = Background(receive_all, far)
    assert near.send(b"hello") == 5
    assert near.send(BIG) == len(BIG)
    assert near.send(b"") == 0
    near.close()
    assert receiving.take() == b"hello" + BIG


def test_end_is_one_direction(ends: Any) -> None:
    near, far = ends
    near.sendall(b"request")
    near.end()
    near.end()
    assert receive_all(far) == b"request"
    far.sendall(b"answer")
    assert near.recv() == b"answer"
    with pytest.raises(BrokenPipeError):
        near.sendall(b"more")
    with pytest.raises(BrokenPipeError):
        near.send(b"more")


def test_shutdown(both: Any) -> None:
    near, far = both
    far.sendall(b"unheard")
    near.shutdown(socket.SHUT_RD)
    assert near.recv() == b""
    near.sendall(b"heard")
    near.shutdown(socket.SHUT_RDWR)
    assert receive_all(far) == b"heard"
    with pytest.raises(ValueError, match="how: 7"):
        near.shutdown(7)


# ---- Time-outs ----


def test_a_time_out_loses_nothing_received(ends: Any) -> None:
    near, far = ends
    near.settimeout(0.02)
    far.sendall(b"par")
    for read in (near.readline, lambda: near.readexactly(9), near.readuntil, lambda: next(near)):
        with pytest.raises(TimeoutError, match="timed out"):
            read()
    far.sendall(b"tial\n")
    near.settimeout(PATIENCE)
    assert near.readline() == b"partial\n"
    near.settimeout(0.02)
    with pytest.raises(TimeoutError):
        near.recv()
    with pytest.raises(TimeoutError):
        near.recv_into(bytearray(1))


def test_a_time_out_loses_nothing_accepted(ends: Any) -> None:
    near, far = ends
    near.settimeout(0.02)
    with pytest.raises(TimeoutError, match="timed out"):
        near.sendall(BIG)
    with pytest.raises(TimeoutError):  # there is something before it
        near.send(b"never")
    receiving = Background(receive_all, far)
    near.settimeout(PATIENCE)
    near.sendall(b"later")
    near.end()
    assert receiving.take() == BIG + b"later"


def test_without_waiting(ends: Any) -> None:
    near, far = ends
    near.setblocking(False)
    assert near.gettimeout() == near.timeout == 0
    assert not near.getblocking()
    for read in (near.recv, near.readline, lambda: near.recv_into(bytearray(1))):
        with pytest.raises(BlockingIOError):
            read()
    far.sendall(b"now")
    assert near.recv() == b"now"
    near.sendall(BIG)  # what is accepted will be sent
    with pytest.raises(BlockingIOError):
        near.sendall(b"never")
    with pytest.raises(BlockingIOError):
        near.send(b"never")
    receiving = Background(receive_all, far)
    near.setblocking(True)
    assert near.gettimeout() is None
    near.sendall(b"last")
    near.end()
    assert receiving.take() == BIG + b"last"


def test_the_time_out_is_a_number(both: Any) -> None:
    near, _ = both
    near.settimeout(1.5)
    assert near.gettimeout() == 1.5
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            near.settimeout(wrong)
    with pytest.raises(TypeError):
        near.settimeout("1")
    near.settimeout(1e300)
    assert near.gettimeout() > 1e9


# ---- The end ----


def test_close_sends_what_is_queued(ends: Any) -> None:
    near, far = ends
    near.settimeout(0)
    near.send(BIG)
    receiving = Background(receive_all, far)
    near.settimeout(PATIENCE)
    near.close()
    near.close()
    assert receiving.take() == BIG


def test_close_has_patience_within_the_time_out(both: Any) -> None:
    near, far = both
    near.settimeout(0.05)
    much = BIG * 16  # more than the kernel has room for
    near.send(much)
    near.close()
    got = Background(receive_all, far)
    with contextlib.suppress(ConnectionResetError):
        assert len(got.take()) < len(much)


def test_abort_drops_what_is_queued(ends: Any) -> None:
    near, far = ends
    near.settimeout(0)
    near.send(BIG)
    near.abort()
    near.abort()
    assert "closed" in repr(near)
    assert len(receive_all(far)) < len(BIG)


def test_a_closed_connection(ends: Any) -> None:
    near, _ = ends
    assert "open" in repr(near)
    near.close()
    assert near.fileno() == -1
    for use in (
        near.recv,
        near.readline,
        near.readuntil,
        near.end,
        near.makefile,
        near.starttls,
        lambda: near.recv(0),
        lambda: near.recv_into(bytearray(1)),
        lambda: near.readexactly(1),
        lambda: near.send(b"x"),
        lambda: near.sendall(b"x"),
        lambda: next(near),
        lambda: near.shutdown(socket.SHUT_RD),
        lambda: near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ):
        with pytest.raises(OSError, match="Bad file descriptor") as info:
            use()
        assert info.value.errno == errno.EBADF


def test_a_connection_that_was_reset(both: Any) -> None:
    near, far = both
    far.sendall(b"last words")
    assert near.recv(4) == b"last"
    reset(far)
    assert near.recv() == b" words"
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            near.recv()
        with pytest.raises(ConnectionResetError):
            near.sendall(b"x")
    assert "lost" in repr(near)
    assert near.fileno() == -1
    with pytest.raises(OSError, match="not connected"):
        near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_peer_that_is_gone_is_heard_before_it_is_missed(both: Any) -> None:
    """What it sent before its end is there although sending to it failed."""
    near, far = both
    far.sendall(b"413 too large\n")
    far.close()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(1000):
            near.sendall(BIG)
    assert near.readline() == b"413 too large\n"


def test_a_broken_pipe(short_path: str) -> None:
    with connected("unix", short_path) as (near, far):
        far.close()
        with pytest.raises(BrokenPipeError):
            near.sendall(b"x")
        with pytest.raises(BrokenPipeError):
            near.send(b"x")


# ---- As a socket, and as files ----


def test_addresses(both: Any) -> None:
    near, far = both
    assert near.peer == near.getpeername() == far.getsockname()
    assert near.local == near.getsockname() == far.getpeername()
    assert near.get_extra_info("peername") == near.peer
    assert near.get_extra_info("nothing", 7) == 7
    near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    near.close()
    assert near.peer == near.getpeername() == far.getsockname()
    assert near.get_extra_info("peername") is None
    assert repr(near.peer) in repr(near)


def test_a_pipe_has_no_address() -> None:
    readable, writable = os.pipe()
    with open(readable, "rb") as out, becket.connect(f"fd:{writable}") as near:
        assert near.peer is None
        for ask in (near.getpeername, near.getsockname):
            with pytest.raises(OSError):
                ask()
        with pytest.raises(OSError) as info:
            near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert info.value.errno == errno.ENOTSOCK
        near.sendall(b"out")
        near.close()
        assert out.read() == b"out"


def test_files(both: Any) -> None:
    near, far = both
    with near.makefile("rwb") as file:
        far.sendall(b"one\ntwo\n")
        assert file.readline() == b"one\n"
        file.write(b"answer\n")
        file.flush()
        assert far.recv(100) == b"answer\n"
        assert file.readline() == b"two\n"
    with near.makefile("w", encoding="utf-8", newline="\r\n") as text:
        text.write("é\n")
    assert far.recv(100) == b"\xc3\xa9\r\n"
    with near.makefile("rb", 0) as raw:
        assert raw.fileno() == near.fileno()
        far.sendall(b"raw")
        assert raw.read(10) == b"raw"
        assert not raw.writable()
        with pytest.raises(OSError):
            raw.write(b"x")
    far.close()
    with near.makefile() as text:
        assert text.read() == ""
    for mode, buffering in (("x", None), ("", None), ("b", None), ("r", 0)):
        with pytest.raises(ValueError, match=r"mode|buffering"):
            near.makefile(mode, buffering)


def test_a_file_keeps_its_connection(both: Any) -> None:
    near, far = both
    file = near.makefile("rb")
    near.close()
    far.sendall(b"still here")
    far.close()
    assert file.read() == b"still here"
    file.close()
    assert near.fileno() == -1
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_a_file_that_timed_out(both: Any) -> None:
    near, far = both
    with near.makefile("rb") as file:
        near.settimeout(0.02)
        far.sendall(b"par")
        with pytest.raises(TimeoutError):
            file.readline()
        with pytest.raises(OSError, match="timed out object"):
            file.readline()
    with near.makefile("rb", 0) as raw:
        near.settimeout(0)
        assert raw.read(10) is None


# ---- Connecting ----


def test_a_wrong_endpoint_is_shown() -> None:
    with pytest.raises(ValueError, match=r"there is no scheme nothing.*\n  nothing:\n  \^"):
        becket.connect("nothing:")
    with pytest.raises(TypeError, match="endpoint: a str"):
        becket.connect(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout"):
        becket.connect("tcp://127.0.0.1:1", timeout=-1)


def test_nobody_is_there(short_path: str) -> None:
    with accepting() as (_, endpoint):
        pass
    with pytest.raises(ConnectionRefusedError):
        becket.connect(endpoint)
    with pytest.raises(FileNotFoundError):
        becket.connect(f"unix:{short_path}")
    with pytest.raises(socket.gaierror):
        becket.connect("tcp://nobody.invalid:1")


def test_connecting_within_a_time(tls: Certificates) -> None:
    """TLS with somebody who says nothing."""
    with accepting() as (_, endpoint), pytest.raises(TimeoutError):
        becket.connect(f"{endpoint.replace('tcp', 'tls')}?verify=none", timeout=0.05)


def test_the_time_out_stays() -> None:
    with connected() as (near, _):
        assert near.gettimeout() == PATIENCE


# ---- TLS ----


@contextlib.contextmanager
def serving_tls(
    context: ssl.SSLContext, talk: Callable[[ssl.SSLSocket], Any], *, later: bool = False
) -> Iterator[tuple[int, Background]]:
    """A server of one connection, in a thread; its port."""

    def serve() -> Any:
        plain, _ = server.accept()
        plain.settimeout(PATIENCE)
        with plain:
            if later:
                assert plain.recv(100) == b"STARTTLS\r\n"
                plain.sendall(b"220 go\r\n")
            with context.wrap_socket(plain, server_side=True) as secure:
                return talk(secure)

    with socket.create_server(("127.0.0.1", 0)) as server:
        work = Background(serve)
        yield server.getsockname()[1], work
        work.take()


def echo_until_end(secure: ssl.SSLSocket) -> int:
    """Say back what is said."""
    count = 0
    while data := secure.recv(65536):
        secure.sendall(data)
        count += len(data)
    return count


def options(tls: Certificates, engine: str, *, name: str = "localhost") -> str:
    return f"ca={tls.path('ca.crt')}&name={name}&engine={engine}"


@pytest.mark.parametrize("engine", ENGINES)
def test_tls_endpoints(tls: Certificates, engine: str) -> None:
    size = 1 << 16 if engine == "tlslite" else 1 << 20
    query = options(tls, see_to(engine))
    with serving_tls(tls.server(), echo_until_end) as (port, work):
        with becket.connect(f"tls://127.0.0.1:{port}?{query}", timeout=PATIENCE) as near:
            near.sendall(b"hello\n")
            assert near.readline() == b"hello\n"
            sending = Background(near.sendall, BIG[:size])
            assert near.readexactly(size) == BIG[:size]
            sending.take()
            assert near.get_extra_info("cipher")[1].startswith("TLSv1.")
            assert near.getpeername() == ("127.0.0.1", port)
            near.settimeout(0.02)
            with pytest.raises(TimeoutError):
                near.recv()
            near.settimeout(PATIENCE)
        assert work.take() == size + 6


@pytest.mark.parametrize("engine", ENGINES)
def test_starttls_that_an_endpoint_offers(tls: Certificates, engine: str) -> None:
    query = options(tls, see_to(engine))
    with (
        serving_tls(tls.server(), echo_until_end, later=True) as (port, _),
        becket.connect(f"starttls://127.0.0.1:{port}?{query}", timeout=PATIENCE) as near,
    ):
        near.sendall(b"STARTTLS\r\n")
        assert near.readline() == b"220 go\r\n"
        near.starttls()
        near.sendall(b"secret\n")
        assert near.readline() == b"secret\n"
        assert near.get_extra_info("cipher")[1].startswith("TLSv1.")
        assert near.fileno() >= 0


def context_of(engine: str, tls: Certificates) -> Any:
    """A client's context, as that engine takes it."""
    if engine == "pyopenssl":
        from OpenSSL import SSL

        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.load_verify_locations(tls.path("ca.crt"))
        context.set_verify(SSL.VERIFY_PEER)
        return context
    if engine == "ssl":
        return tls.client()
    return becket.tls.Context(engine=engine, ca=tls.path("ca.crt"))


@pytest.mark.parametrize("engine", ["openssl", "gnutls", "ssl", "pyopenssl"])
def test_starttls_with_a_context(tls: Certificates, engine: str) -> None:
    see_to(engine)
    with (
        serving_tls(tls.server(), echo_until_end, later=True) as (port, _),
        becket.connect(f"tcp://127.0.0.1:{port}", timeout=PATIENCE) as near,
    ):
        with pytest.raises(ValueError, match="context: nothing is offered"):
            near.starttls()
        with pytest.raises(TypeError, match=r"ssl.SSLContext"):
            near.starttls(7)
        near.sendall(b"STARTTLS\r\n")
        assert near.readline() == b"220 go\r\n"
        near.starttls(context_of(engine, tls), server_hostname="localhost")
        near.sendall(b"secret\n")
        assert near.readline() == b"secret\n"


def test_starttls_as_a_server(tls: Certificates) -> None:
    def client(sock: socket.socket) -> bytes:
        with tls.client().wrap_socket(sock, server_hostname="localhost") as secure:
            secure.sendall(b"ping")
            return secure.recv(4)

    with connected("adopted") as (near, far):
        work = Background(client, far.dup())
        near.starttls(tls.server(), server_side=True)
        assert near.readexactly(4) == b"ping"
        near.sendall(b"pong")
        near.close()
        assert work.take() == b"pong"


def test_what_was_said_in_plain_is_not_heard_under_tls(tls: Certificates) -> None:
    """Bytes that came before the handshake go into TLS, which they break."""
    with connected("adopted") as (near, far):
        far.sendall(b"STARTTLS\r\nMAIL FROM:<injected>\r\n")
        assert near.readline() == b"STARTTLS\r\n"
        with pytest.raises((ssl.SSLError, OSError)):
            near.starttls(tls.server(), server_side=True)
        with pytest.raises(OSError) as info:
            near.recv()
        assert info.value.errno == errno.EBADF


def test_a_hello_that_came_early_goes_into_tls(tls: Certificates) -> None:
    with connected("adopted") as (near, far):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        peer = tls.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            peer.do_handshake()
        far.sendall(b"STARTTLS\r\n" + outgoing.read())
        assert near.readline() == b"STARTTLS\r\n"

        def shake() -> None:
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    peer.do_handshake()
                    break
                incoming.write(far.recv(65536))
            far.sendall(outgoing.read())

        work = Background(shake)
        near.starttls(tls.server(), server_side=True)
        work.take()
        peer.write(b"under TLS")
        far.sendall(outgoing.read())
        assert near.recv() == b"under TLS"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_certificate_of_somebody_else(tls: Certificates, engine: str) -> None:
    def fail(secure: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            secure.recv(1)

    query = options(tls, see_to(engine), name="elsewhere.example")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            plain, _ = server.accept()
            with plain, contextlib.suppress(OSError):
                tls.server().wrap_socket(plain, server_side=True).close()

        work = Background(serve)
        with pytest.raises(ssl.SSLCertVerificationError):
            becket.connect(f"tls://127.0.0.1:{server.getsockname()[1]}?{query}", timeout=PATIENCE)
        work.take()


def test_a_handshake_that_takes_too_long(tls: Certificates) -> None:
    with connected("adopted") as (near, _):
        near.settimeout(0.05)
        with pytest.raises(TimeoutError):
            near.starttls(tls.client(), server_hostname="localhost")
        assert "closed" in repr(near)


def test_the_end_under_tls(tls: Certificates) -> None:
    """close_notify ends one direction."""

    def answer(secure: ssl.SSLSocket) -> bytes:
        said = b""
        while piece := secure.recv(100):
            said += piece
        secure.sendall(b"heard " + said)
        secure.unwrap()
        return said

    query = options(tls, "openssl")
    with (
        serving_tls(tls.server(), answer) as (port, _),
        becket.connect(f"tls://127.0.0.1:{port}?{query}", timeout=PATIENCE) as near,
    ):
        near.sendall(b"all")
        near.end()
        assert near.readexactly(9) == b"heard all"
        assert near.recv() == b""


# ---- Threads ----


@pytest.mark.parametrize("engine", [None, "openssl", "pyopenssl", "tlslite"])
def test_one_thread_receives_while_another_sends(tls: Certificates, engine: str | None) -> None:
    """Each way at once, much more than buffers hold; engines in Python run in the midst of it."""
    size = {"tlslite": 1 << 17, "pyopenssl": 1 << 20}.get(engine or "", len(BIG))
    if engine is None:
        with connected() as (near, far):
            near.settimeout(None)
            echoing = Background(echo_until_end, far)
            sending = Background(lambda: (near.sendall(BIG), near.sendall(BIG), near.end()))
            assert near.readexactly(2 * len(BIG)) == BIG * 2
            sending.take()
            echoing.take()
        return
    query = options(tls, see_to(engine))
    with (
        serving_tls(tls.server(), echo_until_end) as (port, _),
        becket.connect(f"tls://127.0.0.1:{port}?{query}", timeout=PATIENCE) as near,
    ):
        sending = Background(lambda: [near.sendall(BIG[:size]) for _ in range(2)])
        assert near.readexactly(2 * size) == BIG[:size] * 2
        sending.take()


def test_small_messages_of_two_threads(both: Any) -> None:
    near, far = both
    echoing = Background(echo_until_end, far)
    sending = Background(lambda: [near.sendall(b"%d\n" % i) for i in range(3000)])
    assert [int(near.readline()) for _ in range(3000)] == list(range(3000))
    sending.take()
    near.end()
    echoing.take()


def test_a_thread_waits_for_another_that_turns_the_loop(both: Any) -> None:
    """It is woken for what that thread's turn brings, and takes over when that thread is done."""
    near, far = both
    first = Background(near.recv, 1)
    second = Background(near.recv, 1)
    far.sendall(b"a")
    far.sendall(b"b")
    assert sorted(first.take() + second.take()) == sorted(b"ab")


def test_its_own_time_out_for_each_thread(both: Any) -> None:
    near, far = both
    near.settimeout(0.05)
    waiting = [Background(near.recv) for _ in range(2)]
    for work in waiting:
        with pytest.raises(TimeoutError):
            work.take()
    near.settimeout(PATIENCE)
    far.sendall(b"x")
    assert near.recv() == b"x"


def close_while_another_waits(near: becket.Connection) -> None:
    waiting = Background(near.recv)
    time.sleep(0.05)  # so that it does wait; where it does not, the same is true
    near.close()
    with pytest.raises(OSError) as info:
        waiting.take()
    assert info.value.errno == errno.EBADF


def test_closing_ends_another_thread_s_wait(ends: Any) -> None:
    close_while_another_waits(ends[0])


def test_each_kind_of_end_reaches_another_thread(both: Any) -> None:
    near, far = both
    waiting = [Background(near.recv) for _ in range(2)]
    time.sleep(0.05)
    near.shutdown(socket.SHUT_RD)
    assert [work.take() for work in waiting] == [b"", b""]
    near.sendall(b"x")
    assert far.recv(1) == b"x"


def test_giving_up_ends_another_thread_s_wait(both: Any) -> None:
    near, _ = both
    waiting = [Background(near.recv) for _ in range(2)]
    time.sleep(0.05)
    near.abort()
    for work in waiting:
        with pytest.raises(OSError) as info:
            work.take()
        assert info.value.errno == errno.EBADF


def test_a_reset_reaches_another_thread(both: Any) -> None:
    near, far = both
    waiting = Background(near.recv)
    time.sleep(0.05)
    reset(far)
    with pytest.raises(ConnectionResetError):
        waiting.take()
    with pytest.raises(ConnectionResetError):
        near.sendall(b"x")


def test_no_tls_under_a_thread_that_waits_in_the_socket() -> None:
    near, far = socket.socketpair()
    with far, contextlib.closing(becket.EventLoop("poll")) as loop:
        c = becket.Connection._adopt(loop, near.detach())
        waiting = Background(c.recv)
        with pytest.raises(RuntimeError, match="while another thread receives"):
            while True:  # until it waits
                with contextlib.suppress(TypeError):
                    c._begin_tls(None, None)
        far.sendall(b"x")
        assert waiting.take() == b"x"
        c.close()


def test_what_waits_on_the_loop_is_not_forgotten(both: Any) -> None:
    """A wait in the socket would not turn it."""
    near, far = both
    near._loop.call_later(0.02, far.sendall, b"later")
    assert near.recv() == b"later"
    near._loop.call_soon(far.sendall, b"soon")
    assert near.recv() == b"soon"


@pytest.mark.parametrize("engine", ENGINES)
def test_closing_tls_ends_another_thread_s_wait(tls: Certificates, engine: str) -> None:
    query = options(tls, see_to(engine))
    with serving_tls(tls.server(), echo_until_end) as (port, _):
        close_while_another_waits(becket.connect(f"tls://127.0.0.1:{port}?{query}"))


# ---- Signals ----


class Stop(Exception):
    pass


def interrupt_when_waiting(number: signal.Signals) -> Background:
    """The main thread gets a signal, again and again until it has noticed."""
    done = threading.Event()

    def strike() -> None:
        while not done.wait(0.02):
            os.kill(os.getpid(), number)

    work = Background(strike)
    work.done = done  # type: ignore[attr-defined]
    return work


@pytest.mark.parametrize("other_turns", [False, True])
def test_a_signal_gets_through_a_wait(both: Any, other_turns: bool) -> None:
    near, far = both
    turning = Background(near.recv) if other_turns else None

    def handle(*_: Any) -> None:
        striking.done.set()  # type: ignore[attr-defined]
        raise Stop

    before = signal.signal(signal.SIGUSR1, handle)
    striking = interrupt_when_waiting(signal.SIGUSR1)
    try:
        with pytest.raises(Stop):
            near.recv()
    finally:
        striking.take()
        signal.signal(signal.SIGUSR1, before)
    far.sendall(b"x")
    assert (turning.take() if turning else near.recv()) == b"x"


def test_keyboard_interrupt(both: Any) -> None:
    near, far = both
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    done = threading.Event()

    def strike() -> None:
        while not done.wait(0.02):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    striking = Background(strike)
    try:
        try:
            near.recv()
        except KeyboardInterrupt:
            done.set()
        striking.take()
    finally:
        signal.signal(signal.SIGINT, before)
    far.sendall(b"x")
    assert near.recv() == b"x"


def test_a_handler_may_send(both: Any) -> None:
    """… on the connection that its thread waits for; but not wait for it."""
    near, far = both
    errors: list[str] = []

    def handle(*_: Any) -> None:
        striking.done.set()  # type: ignore[attr-defined]
        near.sendall(b"from the handler")
        try:
            near.recv()
        except RuntimeError as error:
            errors.append(str(error))
        far.sendall(b"x")

    before = signal.signal(signal.SIGUSR1, handle)
    striking = interrupt_when_waiting(signal.SIGUSR1)
    try:
        assert near.recv(1) == b"x"
    finally:
        striking.take()
        signal.signal(signal.SIGUSR1, before)
    assert far.recv(16) == b"from the handler"
    assert "from within a callback" in errors[0]


# ---- On a lent loop ----


def test_a_loop_is_lent_to_one_after_the_other(tls: Certificates) -> None:
    with contextlib.closing(becket.EventLoop("poll")) as loop:
        for i in range(20):
            near, far = tcp_pair()
            with far:
                c = becket.Connection._adopt(loop, near.detach(), b"early ", {"peername": i})
                far.sendall(b"late")
                assert c.readexactly(10) == b"early late"
                assert c.get_extra_info("peername") == i
                if i % 3 == 0:
                    c.sendall(b"answer")
                if i % 3 == 1:
                    c.settimeout(0)
                    c.sendall(BIG)
                c._close(0.01) if i % 2 else c.abort()
                assert loop._watching(far.fileno()) == 0
                assert c.fileno() == -1


def test_a_loop_that_is_closed(tls: Certificates) -> None:
    near, far = socket.socketpair()
    with far:
        loop = becket.EventLoop("poll")
        c = becket.Connection._adopt(loop, near.detach())
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            loop.close()
        for use in (c.recv, lambda: c.sendall(b"x"), c.end):
            with pytest.raises(RuntimeError, match="closed"):
                use()
        c.close()
        assert far.recv(1) == b""


def test_what_cannot_be_adopted() -> None:
    readable, writable = os.pipe()
    with contextlib.closing(becket.EventLoop("poll")) as loop:
        with pytest.raises(OSError):
            becket.Connection._adopt(loop, readable)
        with pytest.raises(TypeError, match="extra"):
            becket.Connection._adopt(loop, readable, b"", [])  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            becket.Connection._adopt(None, readable)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="closed"):
        becket.Connection._adopt(loop, readable)
    os.close(readable)
    os.close(writable)


def test_a_connection_that_is_not_connected() -> None:
    with contextlib.closing(becket.EventLoop("poll")) as loop:
        c = becket.Connection(loop)
        for use in (c.recv, lambda: c.sendall(b"x"), c.end, c.starttls, c.getpeername):
            with pytest.raises(OSError) as info:
                use()
            assert info.value.errno == errno.ENOTCONN
        assert c.peer is None
        with pytest.raises(TypeError, match="transport"):
            c.connection_made(asyncio.Transport())
        c.close()


def test_not_from_within_its_own_loop() -> None:
    near, far = socket.socketpair()
    with far, contextlib.closing(becket.EventLoop("poll")) as loop:
        c = becket.Connection._adopt(loop, near.detach())

        async def receive() -> None:
            with pytest.raises(RuntimeError, match="callback"):
                c.recv()

        loop.run_until_complete(receive())
        far.sendall(b"x")
        assert c.recv() == b"x"
        c.close()


def test_one_that_is_dropped_warns_and_is_closed() -> None:
    with accepting() as (server, endpoint):
        near = becket.connect(endpoint)
        far, _ = server.accept()
    with far:
        with pytest.warns(ResourceWarning, match="unclosed"):
            del near
            gc.collect()
        assert far.recv(1) == b""


def test_nothing_is_left_to_the_collector() -> None:
    near, far = socket.socketpair()
    gc.disable()
    try:
        with far, contextlib.closing(becket.EventLoop("poll")) as loop:
            one = becket.Connection._adopt(loop, near.detach())
            with accepting() as (_, endpoint):
                other = becket.connect(endpoint)
            remain = [weakref.ref(one), weakref.ref(other)]
            with contextlib.suppress(TimeoutError):
                one.settimeout(0.001)
                one.recv()
            one.close()
            other.close()
            del one, other
            assert [ref() for ref in remain] == [None, None]
    finally:
        gc.enable()


def test_an_end_with_linger_zero_resets(both: Any) -> None:
    near, far = both
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    near.close()
    with pytest.raises(ConnectionResetError):
        far.recv(1)
