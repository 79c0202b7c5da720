"""becket.twisted's own: what Twisted's suites do not ask, as sharing a loop with asyncio, the edges
of what is in C, and what of it is chosen by whom."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import socket
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import base, defer, error, interfaces, protocol
from twisted.internet.endpoints import clientFromString, serverFromString, wrapClientTLS
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.protocols import tls as twisted_tls
from twisted.python import log
from zope.interface import implementer
from zope.interface.verify import verifyObject

import becket
from becket import _becket
from becket.twisted import BecketReactor, endpoints, tcp, tls

# What Twisted and pyOpenSSL say to each other; and a plugin of Twisted's to whoever looks first for
# any, before there is a cache of them.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Passing pyOpenSSL:DeprecationWarning", "ignore:'spwd' is dep:DeprecationWarning"
)

PATIENCE = 10  # seconds until a test that waits for nothing gives up


@pytest.fixture
def failures() -> Iterator[list[Any]]:
    """What is logged as a failure; a test takes out what it expects."""
    seen: list[Any] = []

    def note(event: dict[str, Any]) -> None:
        if event["isError"]:
            seen.append(event["failure"])

    log.addObserver(note)
    yield seen
    log.removeObserver(note)
    assert seen == []


@pytest.fixture
def reactor(failures: list[Any]) -> Iterator[Any]:
    loop = becket.EventLoop()
    made = BecketReactor(loop)
    yield made
    made.disconnectAll()
    for call in made.getDelayedCalls():
        call.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def run(reactor: Any, start: Callable[[], Any]) -> Any:
    """Start, and run until its Deferred has fired; its result, or its exception raised."""
    results: list[Any] = []

    def stop(result: Any) -> None:
        results.append(result)
        reactor.stop()

    def begin() -> None:
        defer.maybeDeferred(start).addBoth(stop)

    reactor.callWhenRunning(begin)
    guard = reactor.callLater(PATIENCE, reactor.crash)
    reactor.run(installSignalHandlers=False)
    if guard.active():
        guard.cancel()
    (result,) = results
    if hasattr(result, "raiseException"):
        result.raiseException()
    return result


class Recorder(protocol.Protocol):
    """Writes down what comes; says who it is with."""

    def __init__(self) -> None:
        self.data = b""
        self.made: defer.Deferred[Any] = defer.Deferred()
        self.lost: defer.Deferred[Any] = defer.Deferred()
        self.waiting: list[tuple[int, defer.Deferred[Any]]] = []

    def connectionMade(self) -> None:
        self.made.callback(self)

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        for n, waiter in self.waiting:
            if len(self.data) >= n and not waiter.called:
                waiter.callback(self.data)

    def read(self, n: int) -> defer.Deferred[Any]:
        waiter: defer.Deferred[Any] = defer.Deferred()
        self.waiting.append((n, waiter))
        if len(self.data) >= n:
            waiter.callback(self.data)
        return waiter

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(reason.type)


class Echo(protocol.Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


def one(made: Any) -> Any:
    """A factory of that protocol."""
    factory = protocol.ClientFactory()
    factory.noisy = False
    factory.buildProtocol = lambda _address: made  # type: ignore[method-assign]
    return factory


@defer.inlineCallbacks
def pair(reactor: Any, server: Any = None, client: Any = None) -> Any:
    """A connection over TCP: both sides' protocols."""
    server, client = server or Recorder(), client or Recorder()
    port = reactor.listenTCP(0, one(server), interface="127.0.0.1")
    reactor.connectTCP("127.0.0.1", port.getHost().port, one(client))
    yield defer.gatherResults([server.made, client.made])
    yield port.stopListening()
    return server, client


# ---- Time ----


def test_a_call_is_an_idelayedcall(reactor: Any) -> None:
    call = reactor.callLater(60, print)
    assert verifyObject(interfaces.IDelayedCall, call)
    assert reactor.getDelayedCalls() == [call]
    assert "print" in repr(call)
    call.cancel()
    with pytest.raises(error.AlreadyCancelled):
        call.cancel()
    assert reactor.getDelayedCalls() == []
    assert "cancelled=1" in repr(call)


def test_what_a_call_is_given(reactor: Any) -> None:
    done: defer.Deferred[Any] = defer.Deferred()
    reactor.callLater(0, lambda *args, **kw: done.callback((args, kw)), 1, 2, a=3)
    assert run(reactor, lambda: done) == ((1, 2), {"a": 3})


def test_calls_at_once_are_made_before_what_is_received(reactor: Any) -> None:
    """As ClientCreator needs it: its Deferred fires by callLater(0), and data may be there."""
    order: list[str] = []

    class Client(Recorder):
        def connectionMade(self) -> None:
            reactor.callLater(0, order.append, "later")
            reactor.callFromThread(order.append, "from a thread")
            super().connectionMade()

        def dataReceived(self, data: bytes) -> None:
            order.append("data")

    class Server(Recorder):
        def connectionMade(self) -> None:
            assert self.transport is not None
            self.transport.write(b"x")
            self.transport.loseConnection()
            super().connectionMade()

    @defer.inlineCallbacks
    def start() -> Any:
        _, client = yield pair(reactor, Server(), Client())
        yield client.lost

    run(reactor, start)
    assert order == ["from a thread", "later", "data"]


def test_calls_from_threads_let_others_be(reactor: Any) -> None:
    """One that brings another is not called again and again in the same turn, and timers go first:
    as runUntilCurrent() has it."""
    order: list[str] = []
    done: defer.Deferred[Any] = defer.Deferred()

    def again() -> None:
        order.append("again")
        done.callback(None)

    def first() -> None:
        order.append("first")
        reactor.callFromThread(again)
        reactor.callLater(0, order.append, "later")

    reactor.callFromThread(first)
    reactor.callFromThread(order.append, "second")
    run(reactor, lambda: done)
    assert order == ["first", "second", "later", "again"]


def test_calls_that_call_others_by_iterating(reactor: Any) -> None:
    order: list[str] = []
    done: defer.Deferred[Any] = defer.Deferred()

    def first() -> None:
        order.append("first")
        reactor.callLater(0, order.append, "later")
        reactor.callFromThread(order.append, "brought by first")
        reactor.iterate()
        order.append("first ends")

    reactor.callFromThread(first)
    reactor.callFromThread(order.append, "second")
    reactor.callLater(0.01, done.callback, None)
    run(reactor, lambda: done)
    assert order == ["first", "second", "brought by first", "later", "first ends"]


def test_who_made_a_call_is_told_when_debugging(
    reactor: Any, failures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = reactor.callLater(60, print)
    assert plain.creator is None
    monkeypatch.setattr(base.DelayedCall, "debug", True)
    call = reactor.callLater(60, print)
    assert "in test_who_made_a_call_is_told_when_debugging" in call.creator[-1]
    assert "traceback at creation" in repr(call)
    call.cancel()
    assert "print" in repr(call)
    seen: list[str] = []
    log.addObserver(note := lambda event: seen.append(log.textFromEventDict(event) or ""))
    done: defer.Deferred[Any] = defer.Deferred()
    reactor.callLater(0, lambda: 1 / 0)
    reactor.callLater(0.01, done.callback, None)
    run(reactor, lambda: done)
    log.removeObserver(note)
    assert any("traceback at creation" in text and "when_debugging" in text for text in seen)
    failures.clear()


@pytest.mark.parametrize("wrong", [(-1, print), (float("nan"), print), (0, None)])
def test_what_cannot_be_called_later(reactor: Any, wrong: tuple[Any, ...]) -> None:
    with pytest.raises(AssertionError):
        reactor.callLater(*wrong)
    with pytest.raises(TypeError):
        reactor.callLater(1)
    with pytest.raises(TypeError):
        reactor.callLater("x", print)


def test_calls_that_are_moved(reactor: Any) -> None:
    order: list[str] = []
    done: defer.Deferred[Any] = defer.Deferred()
    first = reactor.callLater(0.01, order.append, "first")
    later = reactor.callLater(0.02, order.append, "sooner")
    later.reset(0)
    first.delay(0.02)
    assert first.getTime() > later.getTime()
    away = reactor.callLater(0.001, order.append, "never")
    away.delay(50)
    away.delay(-20)
    reactor.callLater(0.05, done.callback, None)
    run(reactor, lambda: done)
    assert order == ["sooner", "first"]
    assert 20 < away.getTime() - reactor.seconds() < 40
    with pytest.raises(error.AlreadyCalled):
        first.reset(1)


def test_what_a_call_raises_is_logged(reactor: Any, failures: list[Any]) -> None:
    done: defer.Deferred[Any] = defer.Deferred()
    reactor.callLater(0, lambda: 1 / 0)
    reactor.callFromThread(lambda: 1 / 0)
    reactor.callLater(0.01, done.callback, None)
    run(reactor, lambda: done)
    assert [failure.type for failure in failures] == [ZeroDivisionError] * 2
    failures.clear()


def test_calls_of_a_loop_that_is_closed() -> None:
    class Thing:
        def call(self) -> None:
            raise AssertionError("a loop that is closed calls nobody")

    loop = becket.EventLoop()
    reactor = BecketReactor(loop)
    thing = Thing()
    gone = weakref.ref(thing)
    call = reactor.callLater(0, thing.call)
    reactor.callFromThread(thing.call)
    loop.close()
    call.cancel()
    with pytest.raises(RuntimeError):
        reactor.callLater(0, print)
    with pytest.raises(RuntimeError):
        reactor.callFromThread(print)
    del thing
    gc.collect()
    assert gone() is None


def test_a_reactor_that_is_forgotten_goes() -> None:
    loop = becket.EventLoop()
    reactor = BecketReactor(loop)
    reactor.callLater(60, reactor.stop)  # refers to what refers to it
    gone = weakref.ref(reactor)
    loop.close()
    del loop, reactor
    gc.collect()
    assert gone() is None


def test_threads_bring_calls_in_order(reactor: Any) -> None:
    seen: list[int] = []
    done: defer.Deferred[Any] = defer.Deferred()

    def bring() -> None:
        for i in range(1000):
            reactor.callFromThread(seen.append, i)
        reactor.callFromThread(done.callback, None)

    run(reactor, lambda: threading.Thread(target=bring).start() or done)
    assert seen == list(range(1000))


def test_one_iteration(reactor: Any) -> None:
    seen: list[Any] = []
    reactor.callLater(0, seen.append, 1)
    reactor.iterate(1)
    assert seen == [1]

    def within() -> None:
        reactor.callLater(0, seen.append, 2)
        reactor.callLater(60, seen.append, 3)
        reactor.iterate(0)

    run(reactor, lambda: within())
    assert seen == [1, 2]


# ---- One loop with asyncio ----


def test_asyncio_and_twisted_at_once(reactor: Any) -> None:
    async def sleep_and_say() -> str:
        assert asyncio.get_running_loop() is reactor._asyncioEventloop
        await asyncio.sleep(0.001)
        from_twisted: defer.Deferred[str] = defer.Deferred()
        reactor.callLater(0, from_twisted.callback, "both")
        return await from_twisted.asFuture(asyncio.get_running_loop())

    def start() -> Any:
        task = asyncio.ensure_future(sleep_and_say(), loop=reactor._asyncioEventloop)
        return defer.Deferred.fromFuture(task)

    assert run(reactor, start) == "both"


def test_within_a_loop_that_runs() -> None:
    async def main() -> bytes:
        reactor = BecketReactor()
        assert reactor._asyncioEventloop is asyncio.get_running_loop()
        reactor.startRunning(installSignalHandlers=False)
        port = reactor.listenTCP(0, protocol.Factory.forProtocol(Echo), interface="127.0.0.1")
        reader, writer = await asyncio.open_connection("127.0.0.1", port.getHost().port)
        writer.write(b"hello")
        answer = await reader.readexactly(5)
        writer.close()
        await writer.wait_closed()
        await asyncio.wait_for(port.stopListening().asFuture(asyncio.get_running_loop()), PATIENCE)
        reactor.disconnectAll()
        return answer

    assert becket.run(main()) == b"hello"


def test_a_closed_loop_is_refused() -> None:
    loop = becket.EventLoop()
    loop.close()
    with pytest.raises(ValueError, match="closed"):
        BecketReactor(loop)


INSTALL = """
import becket.twisted
becket.twisted.install()
from twisted.internet import reactor, asyncioreactor
assert isinstance(reactor, becket.twisted.BecketReactor), reactor
assert isinstance(reactor, asyncioreactor.AsyncioSelectorReactor)
reactor.callWhenRunning(reactor.stop)
reactor.run()
try:
    becket.twisted.install()
except Exception as e:
    print(type(e).__name__)
"""


def program(text: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", text, *args], capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installing() -> None:
    assert program(INSTALL) == "ReactorAlreadyInstalledError\n"


def test_plugins_are_found() -> None:
    text = (
        "from twisted.application.reactors import getReactorTypes\n"
        "print([reactor.shortName for reactor in getReactorTypes()])"
    )
    assert "'becket'" in program(text)


def test_a_signal_stops_it() -> None:
    text = (
        "import becket.twisted; becket.twisted.install()\n"
        "from twisted.internet import reactor; import os, signal\n"
        "reactor.callWhenRunning(os.kill, os.getpid(), signal.SIGTERM)\n"
        "reactor.addSystemEventTrigger('after', 'shutdown', print, 'over')\n"
        "reactor.run()"
    )
    assert program(text) == "over\n"


# ---- Connections ----


def test_the_transfer_is_in_c(reactor: Any) -> None:
    def start() -> Any:
        return pair(reactor)

    server, client = run(reactor, start)
    assert isinstance(server, Recorder)
    assert server.transport is None or isinstance(server.transport, tcp.Server)
    assert isinstance(client.transport, _becket.Wire)


@pytest.mark.parametrize("n", [1, 1000, 100_000, 5_000_000])
def test_there_and_back(reactor: Any, n: int) -> None:
    data = os.urandom(n)

    @defer.inlineCallbacks
    def start() -> Any:
        client = Recorder()
        factory = protocol.Factory.forProtocol(Echo)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        reactor.connectTCP("127.0.0.1", port.getHost().port, one(client))
        yield client.made
        client.transport.write(data[: n // 2])
        client.transport.writeSequence([data[n // 2 :], b""])
        assert (yield client.read(n)) == data
        client.transport.loseConnection()
        reason = yield client.lost
        yield port.stopListening()
        return reason

    assert run(reactor, start) is error.ConnectionDone


@pytest.mark.parametrize(
    "sizes", [[3, 0, 1, 400], [0, 0, 5], [511, 512], [512, 512], [100_000, 2], [], [0]]
)
def test_pieces_arrive_in_order(reactor: Any, sizes: list[int]) -> None:
    """Whether they are joined, as small ones are, or not."""
    pieces = [os.urandom(size) for size in sizes]

    @defer.inlineCallbacks
    def start() -> Any:
        server, client = yield pair(reactor)
        client.transport.write(b"before ")
        client.transport.writeSequence(iter(pieces))
        client.transport.write(b" after")
        sent = b"".join([b"before ", *pieces, b" after"])
        assert (yield server.read(len(sent))) == sent
        client.transport.loseConnection()
        yield server.lost

    run(reactor, start)


def test_own_address(reactor: Any) -> None:
    @defer.inlineCallbacks
    def start() -> Any:
        server, client = yield pair(reactor)
        host = client.transport.getHost()
        assert (host.type, host.host) == ("TCP", "127.0.0.1")
        assert host.port == client.transport.getHandle().getsockname()[1]
        assert client.transport.getHost() == host == server.transport.getPeer()
        assert server.transport.getHost() == client.transport.getPeer()
        client.transport.loseConnection()
        yield server.lost

    run(reactor, start)


@pytest.mark.parametrize("wrong", ["text", bytearray(b"x"), None, 1])
def test_only_bytes_are_sent(reactor: Any, wrong: Any) -> None:
    @defer.inlineCallbacks
    def start() -> Any:
        server, client = yield pair(reactor)
        for call, what in (
            (client.transport.write, wrong),
            (client.transport.writeSequence, [wrong]),
        ):
            with pytest.raises(TypeError, match="bytes"):
                call(what)
        with pytest.raises(TypeError):
            client.transport.writeSequence(1)
        client.transport.loseConnection()
        yield server.lost

    run(reactor, start)


def test_what_a_protocol_raises_ends_its_connection(reactor: Any, failures: list[Any]) -> None:
    class Raising(Recorder):
        def dataReceived(self, data: bytes) -> None:
            raise KeyError(data)

    @defer.inlineCallbacks
    def start() -> Any:
        server, client = yield pair(reactor, server=Raising())
        client.transport.write(b"x")
        reason = yield server.lost
        yield client.lost
        return reason

    assert run(reactor, start) is KeyError
    assert {failure.type for failure in failures} == {KeyError}
    failures.clear()


def test_who_vanishes_is_connection_lost(reactor: Any) -> None:
    @defer.inlineCallbacks
    def start() -> Any:
        server, client = yield pair(reactor)
        client.transport.abortConnection()
        ours, theirs = yield defer.gatherResults([client.lost, server.lost])
        return ours, theirs

    assert run(reactor, start) == (error.ConnectionAborted, error.ConnectionLost)


@implementer(interfaces.IPushProducer)
class Producer:
    """Sends until it is told to pause, and all in all so many bytes."""

    def __init__(self, transport: Any, total: int) -> None:
        self.transport, self.left, self.calls = transport, total, [0, 0]
        self.paused = False

    def go_on(self) -> None:
        while self.left and not self.paused:
            self.left -= 1000
            self.transport.write(b"x" * 1000)
        if not self.left:
            self.transport.unregisterProducer()

    def pauseProducing(self) -> None:
        self.paused = True
        self.calls[0] += 1

    def resumeProducing(self) -> None:
        self.paused = False
        self.calls[1] += 1
        self.go_on()

    def stopProducing(self) -> None:
        self.left = 0


def test_a_producer_is_paused_and_resumed(reactor: Any) -> None:
    total = 10_000_000

    @defer.inlineCallbacks
    def start() -> Any:
        server, client = yield pair(reactor)
        client.transport.pauseProducing()
        producer = Producer(server.transport, total)
        server.transport.registerProducer(producer, True)
        producer.go_on()
        assert producer.paused
        client.transport.resumeProducing()
        server.transport.loseConnection()  # waits for the producer
        reason = yield client.lost
        assert reason is error.ConnectionDone
        return len(client.data), producer.calls

    n, (paused, resumed) = run(reactor, start)
    assert n == total
    assert paused == resumed > 0


def test_connections_that_are_forgotten_with_their_loop() -> None:
    loop = becket.EventLoop()
    reactor = BecketReactor(loop)
    gone = weakref.ref(run(reactor, functools.partial(pair, reactor))[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of sockets that nobody closed
        loop.close()
        del loop, reactor
        gc.collect()
    assert gone() is None


# ---- UNIX ----


@implementer(interfaces.IFileDescriptorReceiver)
class Receiver(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.fds: list[int] = []

    def fileDescriptorReceived(self, descriptor: int) -> None:
        self.fds.append(descriptor)


def test_descriptors_go_with_what_was_written_before(reactor: Any, tmp_path: Path) -> None:
    path = os.path.relpath(tmp_path / "s")
    server, client = Receiver(), Recorder()

    @defer.inlineCallbacks
    def start() -> Any:
        port = reactor.listenUNIX(path, one(server))
        reactor.connectUNIX(path, one(client))
        yield defer.gatherResults([server.made, client.made])
        read, write = os.pipe()
        client.transport.write(b"first ")
        client.transport.sendFileDescriptor(read)
        client.transport.write(b"second")
        assert (yield server.read(12)) == b"first second"
        os.close(read)
        os.write(write, b"through")
        os.close(write)
        (fd,) = server.fds
        assert os.read(fd, 100) == b"through"
        assert not os.get_inheritable(fd)
        os.close(fd)
        client.transport.loseConnection()
        yield server.lost
        yield port.stopListening()

    run(reactor, start)


# ---- TLS ----


@pytest.fixture(scope="module")
def certificate() -> Any:
    import trustme

    issued = trustme.CA().issue_cert("localhost")
    pem = issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
    return PrivateCertificate.loadPEM(pem)


@pytest.mark.parametrize("reached", [True, False], ids=["in C", "in Twisted"])
@pytest.mark.parametrize("n", [1, 16_384, 16_385, 1_000_000])
def test_tls_there_and_back(
    reactor: Any, certificate: Any, monkeypatch: pytest.MonkeyPatch, reached: bool, n: int
) -> None:
    data = os.urandom(n)
    if not reached:
        monkeypatch.setattr(tls, "_functions", lambda: None)

    @defer.inlineCallbacks
    def start() -> Any:
        client = Recorder()
        made: list[Any] = []
        factory = protocol.Factory.forProtocol(Echo)
        port = reactor.listenSSL(0, factory, certificate.options(), interface="127.0.0.1")
        reactor.connectSSL("127.0.0.1", port.getHost().port, one(client), CertificateOptions())
        yield client.made
        client.transport.write(data)
        assert (yield client.read(n)) == data
        made.append(client.transport._adopted)
        client.transport.loseConnection()
        reason = yield client.lost
        yield port.stopListening()
        return made, reason

    assert run(reactor, start) == ([reached], error.ConnectionDone)


def test_functions_of_openssl_are_found() -> None:
    assert tls._functions() is not None


def test_tls_of_others_is_left_alone() -> None:
    class Own(twisted_tls.TLSMemoryBIOFactory):  # type: ignore[misc]
        pass

    class Chosen(twisted_tls.TLSMemoryBIOProtocol):  # type: ignore[misc]
        pass

    options = CertificateOptions()
    for factory in (
        Own(options, True, protocol.Factory(), clock=object()),
        twisted_tls.TLSMemoryBIOFactory(options, True, protocol.Factory(), clock=object()),
    ):
        factory.protocol = Chosen
        tls.use_c(factory)
        assert factory.protocol is Chosen
    tls.use_c(protocol.Factory())


def test_tls_that_endpoints_wrap(reactor: Any, certificate: Any) -> None:
    client = Recorder()

    @defer.inlineCallbacks
    def start() -> Any:
        factory = protocol.Factory.forProtocol(Echo)
        port = reactor.listenSSL(0, factory, certificate.options(), interface="127.0.0.1")
        plain = clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}")
        yield wrapClientTLS(CertificateOptions(), plain).connect(one(client))
        client.transport.write(b"x")
        yield client.read(1)
        adopted = client.transport._adopted
        client.transport.loseConnection()
        yield client.lost
        yield port.stopListening()
        return adopted

    assert run(reactor, start)


def test_what_is_not_tls_any_more(reactor: Any, certificate: Any) -> None:
    """A record that somebody damaged, after the handshake."""
    client = Recorder()

    @defer.inlineCallbacks
    def start() -> Any:
        server = Recorder()
        port = reactor.listenSSL(0, one(server), certificate.options(), interface="127.0.0.1")
        reactor.connectSSL("127.0.0.1", port.getHost().port, one(client), CertificateOptions())
        yield client.made
        client.transport.write(b"x")
        yield server.read(1)
        below = client.transport.transport
        below.write(b"\x17\x03\x03\x00\x20" + b"\0" * 32)
        reason = yield server.lost
        yield client.lost
        yield port.stopListening()
        return reason.__name__

    assert run(reactor, start) == "Error"


@defer.inlineCallbacks
def tls_pair(reactor: Any, certificate: Any, server: Any, wraps: Any = tls.Factory) -> Any:
    """A connection under TLS that has opened, from a client."""
    client = Recorder()
    factory = wraps(certificate.options(), False, one(server))
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    reactor.connectSSL("127.0.0.1", port.getHost().port, one(client), CertificateOptions())
    yield client.made
    client.transport.write(b"0")
    yield server.read(1)
    yield port.stopListening()
    return client


def test_records_that_come_together_and_in_parts(reactor: Any, certificate: Any) -> None:
    server = Recorder()

    @defer.inlineCallbacks
    def start() -> Any:
        client = yield tls_pair(reactor, certificate, server)
        connection = client.transport._tlsConnection
        records = []
        for data in (b"1", b"2" * 1000, b"3", b"4"):
            connection.send(data)
            records.append(connection.bio_read(65536))
        client.transport.transport.write(records[0] + records[1] + records[2][:7])
        assert (yield server.read(1002)) == b"01" + b"2" * 1000
        client.transport.transport.write(records[2][7:] + records[3])
        yield server.read(1004)
        client.transport.write(b"5")
        client.transport.loseConnection()  # its alert comes with the record
        return (yield server.lost)

    assert run(reactor, start) is error.ConnectionDone
    assert server.data == b"01" + b"2" * 1000 + b"345"


@pytest.mark.parametrize("reached", [True, False], ids=["in C", "in Twisted"])
def test_what_a_protocol_raises_under_tls(
    reactor: Any,
    certificate: Any,
    failures: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    reached: bool,
) -> None:
    if not reached:
        monkeypatch.setattr(tls, "_functions", lambda: None)

    class Raising(Recorder):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            if data == b"1":
                raise LookupError("of a test")

    server = Raising()

    @defer.inlineCallbacks
    def start() -> Any:
        client = yield tls_pair(reactor, certificate, server)
        client.transport.write(b"1")
        yield client.lost
        return (yield server.lost)

    assert run(reactor, start) is error.ConnectionLost
    assert [failure.type for failure in failures] == [LookupError]
    failures.clear()


def test_tls_that_is_derived_is_called(reactor: Any, certificate: Any) -> None:
    heard: list[int] = []

    class Derived(tls.Protocol):
        def dataReceived(self, data: bytes) -> None:
            heard.append(len(data))
            super().dataReceived(data)

    class Deriving(tls.Factory):
        protocol = Derived

    server = Recorder()

    @defer.inlineCallbacks
    def start() -> Any:
        client = yield tls_pair(reactor, certificate, server, Deriving)
        known = len(heard)
        client.transport.write(b"1")
        yield server.read(2)
        client.transport.loseConnection()
        yield server.lost
        return len(heard) - known

    assert run(reactor, start) > 0


# ---- becket: endpoints, and serving ----


@pytest.mark.parametrize("where", ["tcp://127.0.0.1:0", "memory:twisted", "tls://127.0.0.1:0"])
def test_endpoints_of_any_scheme(reactor: Any, where: str, tmp_path: Path) -> None:
    data = os.urandom(500_000)
    options = ("?cert=dev", "?verify=none") if where.startswith("tls") else ("", "")

    @defer.inlineCallbacks
    def start() -> Any:
        server = serverFromString(reactor, f"becket:{where}{options[0]}")
        port = yield server.listen(protocol.Factory.forProtocol(Echo))
        host = port.getHost()
        to = where.replace(":0", f":{getattr(host, 'port', 0)}")
        client = Recorder()
        endpoint = clientFromString(reactor, f"becket:{to}{options[1]}")
        factory = one(client)
        assert (yield endpoint.connect(factory)) is client
        assert factory.numPorts == 1
        client.transport.writeSequence([data[:1000], data[1000:]])
        assert (yield client.read(len(data))) == data
        client.transport.loseConnection()
        reason = yield client.lost
        yield port.stopListening()
        return factory, reason

    factory, reason = run(reactor, start)
    assert reason is error.ConnectionDone
    assert factory.numPorts == 0, "it has not been stopped"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize(
    ("endpoint", "wanted"),
    [
        (f"tcp://127.0.0.1:{free_port()}", error.ConnectionRefusedError),
        ("nothing:x", ValueError),
        ("tcp://[::1", ValueError),
    ],
    ids=["nobody listens", "no such scheme", "no endpoint"],
)
def test_endpoints_that_cannot_be_reached(reactor: Any, endpoint: str, wanted: Any) -> None:
    with pytest.raises(wanted):
        run(reactor, lambda: endpoints.ClientEndpoint(reactor, endpoint).connect(one(Recorder())))


def test_endpoints_that_cannot_be_had(reactor: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"becket:tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(error.CannotListenError):
            run(reactor, lambda: serverFromString(reactor, at).listen(protocol.Factory()))


def test_endpoints_are_for_our_reactor() -> None:
    with pytest.raises(ValueError, match="becket"):
        endpoints.ServerEndpoint(object(), "tcp://127.0.0.1:0")


def test_a_factory_under_becket_serve() -> None:
    """What it is in every driver, test_serve_matrix.py asks."""
    ended: list[Any] = []

    @implementer(interfaces.IHalfCloseableProtocol)
    class Half(protocol.Protocol):
        def connectionMade(self) -> None:
            assert interfaces.ITCPTransport.providedBy(self.transport)
            self.transport.setTcpNoDelay(True)
            assert self.transport.getTcpNoDelay()
            self.transport.registerProducer(Producer(self.transport, 10_000_000), True)
            self.transport.producer.go_on()

        def readConnectionLost(self) -> None:
            self.transport.write(b"end")
            self.transport.loseWriteConnection()

        def writeConnectionLost(self) -> None:
            ended.append("write")
            self.transport.loseConnection()

        def connectionLost(self, reason: Any = None) -> None:
            ended.append(reason.type)

    factory = protocol.Factory.forProtocol(Half)
    with becket.Server(factory, "tcp://127.0.0.1:0") as server:
        with becket.connect(server.endpoints[0], timeout=PATIENCE) as connection:
            got = connection.readexactly(10_000_000)
            connection.end()
            assert connection.recv(10) == b"end"
            assert connection.recv(10) == b""
    assert got == b"x" * 10_000_000
    assert ended == ["write", error.ConnectionDone]


@pytest.mark.parametrize("driver", ["loop", "loops:2", "threads:2"])
def test_a_factory_is_started_and_stopped(driver: str) -> None:
    told: list[str] = []

    class Telling(protocol.Factory):
        protocol = Echo
        noisy = False

        def startFactory(self) -> None:
            told.append("started")

        def stopFactory(self) -> None:
            told.append("stopped")

        def buildProtocol(self, addr: Any) -> Any:
            told.append("built")
            return super().buildProtocol(addr)

    with becket.Server(Telling(), "tcp://127.0.0.1:0", driver=driver) as server:
        for _ in range(2):
            with becket.connect(server.endpoints[0], timeout=PATIENCE) as connection:
                connection.send(b"x")
                assert connection.readexactly(1) == b"x"
    assert told == ["started", "built", "built", "stopped"]
    told.clear()
    for _ in range(20):  # some loops have hardly begun when all is over
        with becket.Server(Telling(), "tcp://127.0.0.1:0", driver=driver):
            pass
    assert told == ["started", "stopped"] * 20


def test_a_factory_that_refuses() -> None:
    factory = protocol.Factory()
    factory.buildProtocol = lambda _address: None  # type: ignore[method-assign]
    with becket.Server(factory, "tcp://127.0.0.1:0") as server:
        with becket.connect(server.endpoints[0], timeout=PATIENCE) as connection:
            assert connection.recv(1) == b""
