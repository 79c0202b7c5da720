"""The scheme rudp, and the ports that carry its connections: one UDP socket for each listener and
all that came in by it, and one for each client. Nothing is kept for a stranger: who connects has
first to show, by a cookie, that what is sent to his address reaches him."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import socket
import weakref
from collections.abc import Callable
from typing import Any

from becket import EventLoop
from becket.transports import Endpoint, EndpointError, Listener, Scheme, Transport
from rudp.connection import Connection, Settings
from rudp.lossy import Lossy
from rudp.packets import COOKIE_BYTES, Init, Packet, Retry, pack, parse

AT_ONCE = 64  # datagrams that are taken before others have their turn
SOCKET_ROOM = 1 << 20  # bytes that the kernel is asked to hold
COOKIE_SECONDS = 10.0


class RudpTransport(Transport):
    """A connection as becket knows it."""

    name = "rudp"

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        connection.wake = self.wake

    def read(self, size: int) -> bytes | None:
        return self.connection.read(size)

    def write(self, data: bytes) -> int | None:
        return self.connection.write(data)

    def end(self) -> bool:
        self.connection.end()
        return True

    def close(self) -> None:
        self.connection.close()

    def open(self) -> bool:
        if self.connection.error is not None:
            raise self.connection.error
        return self.connection.peer is not None

    def query(self, what: str) -> Any:
        port = self.connection.port
        assert isinstance(port, UdpPort)
        return {"peer": self.connection.address, "local": port.local}.get(what)


class UdpPort:
    """A UDP socket, and the connections over it by the numbers that their peers were given."""

    def __init__(self, rudp: Rudp, loop: EventLoop, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_ROOM)
        self.rudp, self.loop, self.sock = rudp, loop, sock
        self.local = sock.getsockname()
        self.connections: dict[int, Connection] = {}
        self.timers: dict[Connection, Any] = {}
        self.listening: Listening | None = None
        loop.add_reader(sock, self.readable)
        rudp.ports.setdefault(loop, set()).add(self)

    # ---- For connections ----

    def now(self) -> float:
        return self.loop.time()

    def send(self, connection: Connection, packet: Packet) -> None:
        self.send_to(connection.address, pack(connection.peer or 0, packet))

    def send_to(self, address: Any, datagram: bytes) -> None:
        network = self.rudp.network
        if network is None or self.loop.is_closed():
            self.send_now(datagram, address)
        else:
            network.send(self.loop, self.send_now, datagram, address)

    def send_now(self, datagram: bytes, address: Any) -> None:
        # What the kernel has no room for is lost, as on any network.
        with contextlib.suppress(OSError):
            if self.sock.fileno() >= 0:
                self.sock.sendto(datagram, address)

    def at(self, connection: Connection, when: float) -> None:
        """Call tick() then, or before."""
        if self.loop.is_closed():
            return
        timer = self.timers.get(connection)
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self.timers[connection] = self.loop.call_at(when, self.tick, connection)

    def tick(self, connection: Connection) -> None:
        del self.timers[connection]
        connection.tick()

    def add(self, connection: Connection) -> None:
        self.connections[connection.number] = connection

    def forget(self, connection: Connection) -> None:
        timer = self.timers.pop(connection, None)
        if timer is not None:
            timer.cancel()
        self.connections.pop(connection.number, None)
        if self.listening is not None:
            self.listening.forget(connection)
        self.close_if_idle()

    def close_if_idle(self) -> None:
        if not self.connections and (self.listening is None or self.listening.accept is None):
            self.close()

    def close(self) -> None:
        """At once, whatever is left."""
        for timer in self.timers.values():
            timer.cancel()
        self.timers.clear()
        self.rudp.ports.get(self.loop, set()).discard(self)
        if self.sock.fileno() >= 0 and not self.loop.is_closed():
            self.loop.remove_reader(self.sock)
        self.sock.close()

    # ---- What comes ----

    def readable(self) -> None:
        touched: set[Connection] = set()
        for _ in range(AT_ONCE):
            try:
                datagram, address = self.sock.recvfrom(2048)
            except BlockingIOError:
                break
            except OSError as error:
                self.refused(error)
                break
            connection = self.receive(datagram, address)
            if connection is not None:
                touched.add(connection)
        for connection in touched:
            connection.settle()

    def receive(self, datagram: bytes, address: Any) -> Connection | None:
        """Whose it was; None: nobody's. What is not in order is dropped without a word."""
        parsed = parse(datagram)
        if parsed is None:
            return None
        number, packet = parsed
        if isinstance(packet, Init):
            return self.listening.meet(packet, address) if self.listening is not None else None
        connection = self.connections.get(number)
        if connection is None or connection.address != address:
            return None
        connection.receive(packet)
        return connection

    def refused(self, error: OSError) -> None:
        """Nobody is there, says the peer's kernel: believed only of one who has never answered."""
        for connection in list(self.connections.values()):
            if connection.peer is None:
                connection.fail(error)


class Listening:
    """A port that strangers may connect to."""

    def __init__(
        self, port: UdpPort, name: str, accept: Callable[[Transport], None], settings: Settings
    ) -> None:
        self.port, self.name, self.settings = port, name, settings
        self.accept: Callable[[Transport], None] | None = accept  # None: of no new ones
        self.secret = secrets.token_bytes(32)
        self.known: dict[tuple[Any, int], Connection] = {}  # by address and the client's number
        port.listening = self

    def close(self) -> None:
        """Accept no more; the socket is closed with the last connection."""
        self.accept = None
        self.port.close_if_idle()

    def forget(self, connection: Connection) -> None:
        assert connection.peer is not None
        self.known.pop((connection.address, connection.peer), None)

    def cookie(self, address: Any, client: int, age: int) -> bytes:
        """What shows that a client has received what was sent to his address, not long ago."""
        window = int(self.port.now() / COOKIE_SECONDS) - age
        text = repr((address, client, window)).encode()
        return hmac.new(self.secret, text, hashlib.sha256).digest()[:COOKIE_BYTES]

    def meet(self, init: Init, address: Any) -> Connection | None:
        connection = self.known.get((address, init.client))
        if connection is not None:  # our answer was lost
            connection.accept(init)
            return connection
        if self.accept is None:
            return None
        cookies = [self.cookie(address, init.client, age) for age in (0, 1)]
        if not any(hmac.compare_digest(init.cookie, cookie) for cookie in cookies):
            self.port.send_to(address, pack(init.client, Retry(cookies[0])))
            return None
        if len(self.known) >= self.settings.connections:
            return None  # he will ask again
        connection = Connection(self.port, address, self.settings)
        self.known[address, init.client] = connection
        self.port.add(connection)
        connection.accept(init)
        self.accept(RudpTransport(connection))
        return connection


class Rudp(Scheme):
    """rudp://host:port, for servers and clients. IPv4, [IPv6] or a name; port 0: any."""

    name = "rudp"

    def __init__(self, settings: Settings | None = None, network: Lossy | None = None) -> None:
        self.settings = settings or Settings()
        self.network = network
        self.ports: weakref.WeakKeyDictionary[EventLoop, set[UdpPort]] = weakref.WeakKeyDictionary()

    def listen(
        self, loop: EventLoop, endpoint: Endpoint, accept: Callable[[Transport], None]
    ) -> Listener:
        host, number = self.place(endpoint)
        found = socket.getaddrinfo(
            host if host not in ("", "*") else None, number,
            type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE,
        )  # fmt: skip
        family, _, _, _, address = found[0]
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.bind(address)
        except OSError:
            sock.close()
            raise
        port = UdpPort(self, loop, sock)
        shown = f"[{port.local[0]}]" if family == socket.AF_INET6 else port.local[0]
        return Listening(port, f"rudp://{shown}:{port.local[1]}", accept, self.settings)

    def connect(self, loop: EventLoop, endpoint: Endpoint) -> Transport:
        host, number = self.place(endpoint)
        if host in ("", "*"):
            raise EndpointError("a host is missing: rudp://host:port")
        try:
            flags = socket.AI_NUMERICHOST
            found = socket.getaddrinfo(host, number, type=socket.SOCK_DGRAM, flags=flags)
        except socket.gaierror:
            raise EndpointError(
                "a client needs an IP address, as in rudp://127.0.0.1:7000"
            ) from None
        family, _, _, _, address = found[0]
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        port = UdpPort(self, loop, sock)
        connection = Connection(port, sock.getpeername(), self.settings)
        port.add(connection)
        connection.connect()
        return RudpTransport(connection)

    def closed(self, loop: EventLoop) -> None:
        """What still waited for its peers is no more."""
        for port in self.ports.pop(loop, set()).copy():
            port.close()

    @staticmethod
    def place(endpoint: Endpoint) -> tuple[str, int]:
        if endpoint.host is None or endpoint.port is None:
            raise EndpointError("a host and a port are missing: rudp://host:port")
        if endpoint.path not in ("", "/"):
            raise EndpointError("nothing follows the port: rudp://host:port")
        return endpoint.host, endpoint.port
