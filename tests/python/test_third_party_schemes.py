"""Schemes and transports that others bring: how they are known, what their errors are, and what
becomes of those that break their contract."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib.metadata
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import becket
from becket import _becket, transports
from becket.transports import NOW, Endpoint, EndpointError, Listener, Scheme, Transport
from support import Echo, Recorder, Reports, no_more_than, run, until
from test_transport_suite import Memory, joined


class Meeting(Scheme):
    """ "meet:place": whoever connects meets whoever listens there."""

    name = "meet"
    options = ("when", "how")

    def __init__(self, kind: type[Memory] = Memory) -> None:
        self.kind = kind
        self.places: dict[str, Callable[[Transport], None]] = {}
        self.seen: list[Endpoint] = []
        self.closed: list[str] = []

    def listen(
        self, loop: becket.EventLoop, endpoint: Endpoint, accept: Callable[[Transport], None]
    ) -> Listener:
        self.seen.append(endpoint)
        if endpoint.path == "":
            raise EndpointError("a place is missing: meet:place")
        if endpoint.path in self.places:
            raise OSError(errno.EADDRINUSE, f"somebody is at {endpoint.path}")
        if endpoint.options.get("when") == "never":
            raise EndpointError("never is too late", option="when")
        if "wrong" in endpoint.path:
            raise EndpointError("this is wrong", position=endpoint.text.index("wrong"))
        self.places[endpoint.path] = accept
        return Place(self, endpoint.path)

    def connect(self, loop: becket.EventLoop, endpoint: Endpoint) -> Transport:
        self.seen.append(endpoint)
        if endpoint.path not in self.places:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody is there")
        near, far = joined(self.kind)
        loop.call_soon(self.places[endpoint.path], far)
        return near


class Place:
    def __init__(self, scheme: Meeting, place: str) -> None:
        self.scheme, self.place = scheme, place
        self.name = f"meet:{place}"

    def close(self) -> None:
        self.scheme.closed.append(self.place)
        del self.scheme.places[self.place]


def listener(
    loop: becket.EventLoop, endpoint: str, factory: Callable[[], asyncio.BaseProtocol]
) -> _becket.Listener:
    return _becket.Listener(loop, endpoint, factory)


def wrong(call: Callable[[], object]) -> str:
    """The words of a ValueError."""
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


# ---- Endpoints -----------------------------------------------------------------------------------


def test_serves_and_connects(becket_loop: becket.EventLoop) -> None:
    """A scheme of one's own is as any other; endpoints are taken apart for it."""

    async def main() -> None:
        scheme = Meeting()
        becket_loop.add_scheme(scheme)
        server = listener(becket_loop, "meet:here%20?when=now", Echo)
        assert server.name == "meet:here "
        transport, client = await becket_loop.connect_endpoint(
            lambda: Recorder(becket_loop), "meet:here%20?how=fast"
        )
        transport.write(b"hello")
        assert await client.received(5) == b"hello"
        transport.close()
        await client.lost
        server.close()
        assert scheme.closed == ["here "]
        assert [(e.scheme, e.host, e.port, e.path, e.options) for e in scheme.seen] == [
            ("meet", None, None, "here ", {"when": "now"}),
            ("meet", None, None, "here ", {"how": "fast"}),
        ]
        assert scheme.seen[0].text == "meet:here%20?when=now"

    run(becket_loop, main())


def test_under_tls(becket_loop: becket.EventLoop) -> None:
    """TLS in front of it needs nothing of it, and its options are not the scheme's."""

    async def main() -> None:
        scheme = Meeting()
        becket_loop.add_scheme(scheme)
        server = listener(becket_loop, "tls+meet:here?cert=dev&when=now", Echo)
        assert server.name == "tls+meet:here"
        transport, client = await becket_loop.connect_endpoint(
            lambda: Recorder(becket_loop), "tls+meet:here?verify=none"
        )
        transport.write(b"hello" * 10000)
        assert await client.received(50000) == b"hello" * 10000
        transport.close()
        await client.lost
        server.close()
        assert scheme.seen[0].options == {"when": "now"}
        assert scheme.seen[0].scheme == "tls+meet"

    run(becket_loop, main())


def test_errors_point_at_what_is_wrong(becket_loop: becket.EventLoop) -> None:
    """A mark stands under the option, the position, or behind the scheme."""
    becket_loop.add_scheme(Meeting())

    def at(endpoint: str) -> Callable[[], object]:
        return lambda: listener(becket_loop, endpoint, Echo)

    assert wrong(at("meet:")) == "a place is missing: meet:place\n  meet:\n       ^"
    assert wrong(at("meet:x?when=never")) == "never is too late\n  meet:x?when=never\n         ^"
    assert wrong(at("meet:é-wrong")) == "this is wrong\n  meet:é-wrong\n         ^"
    assert "meet has no option who; it has when, how" in wrong(at("meet:x?who=me"))
    with pytest.raises(OSError, match="somebody is at x") as caught:
        listener(becket_loop, "meet:x", Echo)
        listener(becket_loop, "meet:x", Echo)
    assert caught.value.errno == errno.EADDRINUSE


def test_connecting_fails_in_its_own_words(becket_loop: becket.EventLoop) -> None:
    becket_loop.add_scheme(Meeting())
    with pytest.raises(ConnectionRefusedError, match="nobody is there"):
        run(becket_loop, becket_loop.connect_endpoint(Echo, "meet:nowhere"))


def test_a_client_of_tls_must_know_whom_to_verify(becket_loop: becket.EventLoop) -> None:
    """Where the endpoint has no host to take that from."""
    becket_loop.add_scheme(Meeting())
    for endpoint in ("tls+meet:x", "tls+unix:/nowhere"):
        with pytest.raises(ValueError, match="whom to verify is not known"):
            run(becket_loop, becket_loop.connect_endpoint(Echo, endpoint))


def test_one_sided_schemes(becket_loop: becket.EventLoop) -> None:
    """What is not defined is for the other side only."""

    class Client(Scheme):
        name = "client"

        def connect(self, loop: becket.EventLoop, endpoint: Endpoint) -> Transport:
            raise OSError(errno.ENETDOWN, "down")

    class Server(Scheme):
        name = "server"

        def listen(self, loop: Any, endpoint: Endpoint, accept: Any) -> Listener:
            raise OSError(errno.ENETDOWN, "down")

    becket_loop.add_scheme(Client())
    becket_loop.add_scheme(Server())
    with pytest.raises(OSError, match="client is for clients, not for servers"):
        listener(becket_loop, "client:", Echo)
    with pytest.raises(OSError, match="server is for servers, not for clients"):
        run(becket_loop, becket_loop.connect_endpoint(Echo, "server:"))


def test_schemes_are_added_once(becket_loop: becket.EventLoop) -> None:
    class Named(Meeting):
        pass

    becket_loop.add_scheme(Meeting())
    for name, words in (
        ("meet", "scheme 'meet' exists already"),
        ("tcp", "scheme 'tcp' exists already"),
        ("Meet", "scheme 'Meet': a name is small letters"),
        ("", "scheme '': a name is"),
    ):
        Named.name = name
        with pytest.raises(ValueError, match=words):
            becket_loop.add_scheme(Named())
    with pytest.raises(ValueError, match=r"PyCapsule_GetPointer|capsule"):
        becket_loop.add_scheme(object())
    Named.name, Named.options = "many", tuple(f"o{i}" for i in range(30))
    with pytest.raises(ValueError, match="more than 24 options"):
        becket_loop.add_scheme(Named())


# ---- Entry points --------------------------------------------------------------------------------


class Entry:
    def __init__(self, value: object) -> None:
        self.made, self.value = value, "somewhere:thing"

    def load(self) -> object:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """What other packages bring, by name."""
    found: dict[str, object] = {}

    def entry_points(*, group: str, name: str) -> list[Entry]:
        assert group == "becket.transports"
        return [Entry(found[name])] if name in found else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    yield found


def test_packages_bring_schemes(becket_loop: becket.EventLoop, entries: dict[str, object]) -> None:
    entries["meet"] = Meeting
    assert listener(becket_loop, "tls+meet:x?cert=dev", Echo).name == "tls+meet:x"
    entries.clear()
    assert listener(becket_loop, "meet:y", Echo).name == "meet:y"
    words = wrong(lambda: listener(becket_loop, "tls+met:x", Echo))
    assert "there is no scheme tls+met; there are tcp" in words
    assert "meet" in words


def test_registered_for_the_process(
    becket_loop: becket.EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "_known", {})
    transports.register(Meeting)
    transports.register(Meeting)
    assert listener(becket_loop, "meet:x", Echo).name == "meet:x"

    class Other(Meeting):
        pass

    with pytest.raises(ValueError, match="scheme 'meet' exists already"):
        transports.register(Other)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (ImportError("no such library"), "ImportError: no such library"),
        (object(), "is neither a Scheme nor a capsule"),
        (int, "is neither a Scheme nor a capsule"),
        (Meeting, "is the scheme 'meet', not 'bad'"),
    ],
)
def test_what_packages_bring_may_be_broken(
    becket_loop: becket.EventLoop, entries: dict[str, object], value: object, words: str
) -> None:
    entries["bad"] = value
    told = wrong(lambda: listener(becket_loop, "bad:x", Echo))
    assert told.startswith("scheme bad cannot be had: ")
    assert words in told


# ---- Schemes that break their contract -----------------------------------------------------------


@pytest.mark.parametrize("made", [None, 7, Memory, "closed"])
def test_connect_returns_no_transport(becket_loop: becket.EventLoop, made: Any) -> None:
    class Bad(Meeting):
        def connect(self, loop: becket.EventLoop, endpoint: Endpoint) -> Transport:
            return made  # type: ignore[no-any-return]

    reports = Reports(becket_loop, expected=True)
    becket_loop.add_scheme(Bad())
    with pytest.raises(OSError, match="the scheme failed"):
        run(becket_loop, becket_loop.connect_endpoint(Echo, "meet:x"))
    assert "Transport is needed" in str(reports.take()["exception"])


def test_a_transport_is_used_once(becket_loop: becket.EventLoop) -> None:
    near, _ = joined(Memory)

    class Bad(Meeting):
        def connect(self, loop: becket.EventLoop, endpoint: Endpoint) -> Transport:
            return near

    async def main() -> None:
        reports = Reports(becket_loop, expected=True)
        becket_loop.add_scheme(Bad())
        client = Recorder(becket_loop)
        transport, _ = await becket_loop.connect_endpoint(lambda: client, "meet:x")
        with pytest.raises(OSError, match="the scheme failed"):
            await becket_loop.connect_endpoint(Echo, "meet:x")
        assert "is in use already" in str(reports.take()["exception"])
        transport.abort()
        await client.lost

    run(becket_loop, main())


def test_listen_fails_or_returns_no_listener(becket_loop: becket.EventLoop) -> None:
    class Bad(Meeting):
        def listen(self, loop: Any, endpoint: Endpoint, accept: Any) -> Any:
            self.accept = accept
            if endpoint.path == "fails":
                raise ZeroDivisionError
            return object()

    scheme = Bad()
    reports = Reports(becket_loop, expected=True)
    becket_loop.add_scheme(scheme)
    with pytest.raises(OSError, match="the scheme failed"):
        listener(becket_loop, "meet:fails", Echo)
    assert isinstance(reports.take()["exception"], ZeroDivisionError)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="nobody listens any more"):
            scheme.accept(Memory())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", lambda args: None)  # it has no close() either
        with pytest.raises(OSError, match="the scheme failed"):
            listener(becket_loop, "meet:x", Echo)
    assert isinstance(reports.take()["exception"], AttributeError)


def test_accepting_after_the_end(becket_loop: becket.EventLoop) -> None:
    scheme = Meeting()
    becket_loop.add_scheme(scheme)
    server = listener(becket_loop, "meet:x", Echo)
    accept = scheme.places["x"]
    for bad in (None, 1, object()):
        with pytest.raises(TypeError, match="Transport is needed"):
            accept(bad)  # type: ignore[arg-type]
    server.close()
    with pytest.raises(RuntimeError, match="nobody listens any more"):
        accept(Memory())
    becket_loop.close()
    with pytest.raises(RuntimeError):
        accept(Memory())


# ---- Transports that break theirs ----------------------------------------------------------------


def bad(**methods: Any) -> type[Memory]:
    return type("Bad", (Memory,), methods)


def raises(error: BaseException) -> Callable[..., Any]:
    def method(*args: object) -> Any:
        raise error

    return method


def returns(value: object) -> Callable[..., Any]:
    return lambda *args: value


async def lost_with(loop: becket.EventLoop, kind: type[Memory]) -> Any:
    """What connection_lost() of a client gets, over a pair of this kind."""
    loop.add_scheme(Meeting(kind))
    server = listener(loop, "meet:x", Echo)
    client = Recorder(loop, keep_open=True)
    try:
        await loop.connect_endpoint(lambda: client, "meet:x")
    except OSError as error:
        return error
    client.transport.write(b"hello")
    client.transport.write_eof()
    why = await no_more_than(asyncio.shield(client.lost))
    server.close()
    return why


FAULTS = {
    "read a number": ({"read": returns(7)}, TypeError, "bytes-like"),
    "read too much": ({"read": returns(b"x" * 100_000)}, ValueError, "read.. returned 100000"),
    "read raises": ({"read": raises(ZeroDivisionError())}, ZeroDivisionError, ""),
    "write a text": ({"write": returns("x")}, TypeError, "write.. returned 'x'"),
    "write too much": ({"write": returns(6)}, ValueError, "returned 6 and was given 5 bytes"),
    "write a negative": ({"write": returns(-5)}, ValueError, "returned -5 and was given 5"),
    "write a giant": ({"write": returns(1 << 80)}, OverflowError, ""),
    "write raises": ({"write": raises(KeyError("x"))}, KeyError, ""),
    "end nothing": ({"end": returns(None)}, TypeError, "end.. returned None: True, when"),
    "end raises": ({"end": raises(KeyError("x"))}, KeyError, ""),
    "flush nothing": ({"flush": returns(None)}, TypeError, "flush.. returned None"),
    "open nothing": ({"open": returns(None)}, TypeError, "open.. returned None"),
    "open raises": ({"open": raises(KeyError("x"))}, KeyError, ""),
    "wants a text": ({"wants": returns("x")}, TypeError, ""),
    "wants more than there is": ({"wants": returns(1 << 20)}, ValueError, "wants.. returned"),
    "wants raises": ({"wants": raises(KeyError("x"))}, KeyError, ""),
    "fileno a text": ({"fileno": returns("x")}, TypeError, ""),
    "fileno negative": ({"fileno": returns(-7)}, ValueError, "fileno.. returned -7"),
    "fileno raises": ({"fileno": raises(OSError(errno.EBADF, "x"))}, None, ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_and_close_the_connection(
    becket_loop: becket.EventLoop, fault: str
) -> None:
    methods, kind, words = FAULTS[fault]
    reports = Reports(becket_loop, expected=True)
    why = run(becket_loop, lost_with(becket_loop, bad(**methods)))
    assert isinstance(why, OSError)
    if kind is None:
        assert why.errno == errno.EBADF
        assert reports.all == []
    else:
        assert isinstance(why, ConnectionAbortedError | ConnectionResetError | BrokenPipeError)
        assert any(isinstance(e, kind) for e in reports.exceptions), reports.all
        message = next(str(e) for e in reports.exceptions if isinstance(e, kind))
        assert words == "" or re.search(words, message)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), errno.ECONNRESET),
        (ConnectionResetError("words"), errno.ECONNRESET),
        (BrokenPipeError(), errno.EPIPE),
        (ConnectionAbortedError(), errno.ECONNABORTED),
        (ConnectionRefusedError(), errno.ECONNREFUSED),
        (TimeoutError(), errno.ETIMEDOUT),
        (PermissionError(), errno.EACCES),
        (OSError(), errno.EIO),
        (OSError("words"), errno.EIO),
        (OSError(errno.EHOSTUNREACH, "words"), errno.EHOSTUNREACH),
        (OSError(-5, "words"), errno.EIO),
        (EOFError(), None),
        (MemoryError(), None),
    ],
    ids=repr,
)
def test_errors_of_a_transport(
    becket_loop: becket.EventLoop, error: Exception, expected: int | None
) -> None:
    """An OSError breaks the connection, and is what connection_lost() gets; nobody else hears."""
    why = run(becket_loop, lost_with(becket_loop, bad(read=raises(error))))
    if isinstance(error, MemoryError):
        assert isinstance(why, MemoryError)
    elif expected is None:
        assert "ended where its protocol does not allow it" in str(why)
    else:
        assert why.errno == expected


@pytest.mark.parametrize("error", [BlockingIOError(), InterruptedError()], ids=repr)
def test_not_now_by_an_exception(becket_loop: becket.EventLoop, error: OSError) -> None:
    """What sockets raise is not an error, but None."""

    class Shy(Memory):
        asked = 0

        def shy(self) -> None:
            self.asked += 1
            if self.asked % 2:
                becket_loop.call_soon(self.wake)
                raise error

        def read(self, size: int) -> bytes | None:
            self.shy()
            return super().read(size)

        def write(self, data: bytes) -> int | None:
            self.shy()
            return super().write(data)

        def end(self) -> bool:
            self.shy()
            return super().end()

        def open(self) -> bool:
            self.shy()
            return True

    async def main() -> None:
        becket_loop.add_scheme(Meeting(Shy))
        server = listener(becket_loop, "meet:x", Echo)
        client = Recorder(becket_loop)
        transport, _ = await becket_loop.connect_endpoint(lambda: client, "meet:x")
        transport.write(b"hello")
        transport.write_eof()
        assert await client.lost is None
        assert client.data == b"hello"
        server.close()

    run(becket_loop, main())


def test_close_raises(becket_loop: becket.EventLoop) -> None:
    reports = Reports(becket_loop, expected=True)
    closes = raises(KeyError("close"))

    async def main() -> None:
        client = Recorder(becket_loop)
        becket_loop.add_scheme(Meeting(bad(close=closes)))
        listener(becket_loop, "meet:x", Echo)
        transport, _ = await becket_loop.connect_endpoint(lambda: client, "meet:x")
        transport.abort()
        assert await client.lost is None
        await until(lambda: reports.all)

    run(becket_loop, main())
    assert [str(e) for e in reports.exceptions] == ["'close'"]
    with pytest.MonkeyPatch.context() as patch:  # of the other end, which nobody has closed
        heard: list[Any] = []
        patch.setattr("sys.unraisablehook", heard.append)
        with pytest.warns(ResourceWarning):
            becket_loop.close()
        assert len(heard) == 1


@pytest.mark.parametrize("method", ["read", "write", "end", "open"])
def test_exits_end_the_run(becket_loop: becket.EventLoop, method: str) -> None:
    """SystemExit and KeyboardInterrupt come out of the run, as from any callback."""
    right = getattr(Memory, method)
    left = [KeyboardInterrupt()]

    def exits(self: Memory, *args: Any) -> Any:
        if left:
            raise left.pop()
        return right(self, *args)

    with pytest.raises(KeyboardInterrupt):
        run(becket_loop, lost_with(becket_loop, bad(**{method: exits})))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (("127.0.0.1", 7), ("127.0.0.1", 7)),
        (("::1", 7), ("::1", 7, 0, 0)),
        (("fe80::1", 7, 3, 2), ("fe80::1", 7, 3, 2)),
        ("/tmp/x", "/tmp/x"),
        (None, None),
    ],
)
def test_addresses(becket_loop: becket.EventLoop, told: Any, expected: Any) -> None:
    async def main() -> None:
        becket_loop.add_scheme(Meeting(bad(query=returns(told))))
        server = listener(becket_loop, "meet:x", Echo)
        client = Recorder(becket_loop)
        transport, _ = await becket_loop.connect_endpoint(lambda: client, "meet:x")
        assert transport.get_extra_info("peername") == expected
        transport.close()
        await client.lost
        server.close()

    run(becket_loop, main())


@pytest.mark.parametrize(
    "told", [("no number", 7), ("127.0.0.1", 70000), (1, 2), (), 7, "x" * 200, b"/tmp/x"]
)
def test_addresses_that_are_none(becket_loop: becket.EventLoop, told: Any) -> None:
    reports = Reports(becket_loop, expected=True)

    async def main() -> None:
        becket_loop.add_scheme(Meeting(bad(query=returns(told))))
        listener(becket_loop, "meet:x", Echo)
        client = Recorder(becket_loop)
        transport, _ = await becket_loop.connect_endpoint(lambda: client, "meet:x")
        assert transport.get_extra_info("peername") is None
        transport.close()
        await client.lost

    run(becket_loop, main())
    assert all(isinstance(e, ValueError | TypeError) for e in reports.exceptions)
    assert reports.all


# ---- Life ----------------------------------------------------------------------------------------


def test_nothing_is_left(becket_loop: becket.EventLoop) -> None:
    """A transport that is closed is gone, without the collector's help."""
    ends: list[weakref.ref[Memory]] = []

    class Noted(Memory):
        def __init__(self) -> None:
            super().__init__()
            ends.append(weakref.ref(self))

        def close(self) -> None:
            super().close()
            self.peer = self  # or the two would keep each other
            del self.peer

        def read(self, size: int) -> bytes | None:
            return super().read(size) if hasattr(self, "peer") else b""

    async def main() -> None:
        becket_loop.add_scheme(Meeting(Noted))
        server = listener(becket_loop, "meet:x", Echo)
        client = Recorder(becket_loop)
        transport, _ = await becket_loop.connect_endpoint(lambda: client, "meet:x")
        transport.write(b"hello")
        await client.received(5)
        transport.close()
        await client.lost
        await until(lambda: all(end() is None for end in ends))
        server.close()

    gc.disable()
    try:
        run(becket_loop, main())
        assert len(ends) == 2
    finally:
        gc.enable()


def test_a_loop_that_was_dropped_is_collected() -> None:
    """With a scheme, listeners and connections on it, all of which refer to it."""

    class Clinging(Memory):
        loop: Any

    loop = becket.EventLoop()
    Clinging.loop = None
    scheme = Meeting(Clinging)

    async def main(loop: becket.EventLoop, scheme: Meeting) -> None:
        loop.add_scheme(scheme)
        listener(loop, "meet:x", Echo)
        client = Recorder(loop)
        await loop.connect_endpoint(lambda: client, "meet:x")

    run(loop, main(loop, scheme))
    scheme.loop = loop  # type: ignore[attr-defined]
    gone = weakref.ref(scheme)
    with pytest.warns(ResourceWarning):
        del loop, scheme
        gc.collect()
        gc.collect()
    assert gone() is None


def test_schemes_hear_when_the_loop_is_closed() -> None:
    """After all that they have on it."""
    heard: list[object] = []

    class Told(Meeting):
        def loop_closed(self, loop: becket.EventLoop) -> None:
            heard.append((loop, loop.is_closed(), self.closed))

    loop = becket.EventLoop()
    loop.add_scheme(Told())
    listener(loop, "meet:x", Echo)
    loop.close()
    loop.close()
    assert heard == [(loop, True, ["x"])]


def test_wake_means_nothing_before_and_after(becket_loop: becket.EventLoop) -> None:
    end = Memory()
    end.wake()

    async def main() -> None:
        scheme = Meeting()
        becket_loop.add_scheme(scheme)
        server = Recorder(becket_loop)
        listener(becket_loop, "meet:x", lambda: server)
        scheme.places["x"](end)
        await server.made
        server.transport.abort()
        await server.lost
        await until(lambda: end.closed)
        end.wake()

    run(becket_loop, main())
    end.wake()


def test_wants_now(becket_loop: becket.EventLoop) -> None:
    """One that is always ready needs neither a descriptor nor to wake."""

    class Ready(Memory):
        def wants(self, directions: int) -> int:
            return NOW if directions else 0

        def wake(self) -> None:  # hides that of TransportHead
            pass

    async def main() -> None:
        becket_loop.add_scheme(Meeting(Ready))
        server = listener(becket_loop, "meet:x", Echo)
        client = Recorder(becket_loop)
        transport, _ = await becket_loop.connect_endpoint(lambda: client, "meet:x")
        transport.write(b"x" * 200_000)
        assert await client.received(200_000) == b"x" * 200_000
        transport.close()
        await client.lost
        server.close()

    run(becket_loop, main())


def test_the_mail_server_needs_no_change(becket_loop: becket.EventLoop, tmp_path: Any) -> None:
    """What serves an endpoint serves those of a third party."""

    async def main() -> None:
        becket_loop.add_scheme(Meeting())
        smtp = _becket.Smtp(becket_loop, tmp_path / "mail", "mx.example.org")
        assert smtp.listen("meet:post") == "meet:post"
        client = Recorder(becket_loop)
        transport, _ = await becket_loop.connect_endpoint(lambda: client, "meet:post")
        transport.write(b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
        await until(lambda: b"\r\n354 " in client.data)
        transport.write(b"Subject: x\r\n\r\nhello\r\n.\r\nQUIT\r\n")
        await client.lost
        assert client.data.startswith(b"220 mx.example.org")
        assert b"\r\n221 " in client.data
        smtp.close()

    run(becket_loop, main())
    (mail,) = (tmp_path / "mail" / "new").iterdir()
    assert mail.read_bytes().endswith(b"\r\n\r\nhello\r\n")


def test_constants_are_those_of_the_header() -> None:
    assert (transports.READ, transports.WRITE, transports.NOW) == (1, 2, 8)
