"""One connection: its two halves, its timers, and its end. It knows no socket and no loop: a port
(scheme.py) gives it packets and the time, and sends what it says."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rudp.packets import Accept, Ack, Data, Init, Packet, Ping, Reset, Retry
from rudp.receiver import Receiver
from rudp.sender import Sender


@dataclass(frozen=True)
class Settings:
    """Times are in seconds, room in bytes."""

    room: int = 128 * 1024  # for what is sent, and for what has come, of each connection
    connect: float = 10.0  # until connecting is given up
    idle: float = 60.0  # without a word from the peer, until it is taken for gone
    linger: float = 30.0  # a connection that was closed may still take to send the rest
    least_rto: float = 0.1
    first_rto: float = 0.5
    most_rto: float = 10.0
    connections: int = 10_000  # of one listener at once


class Port(Protocol):
    """What a connection is carried by."""

    def now(self) -> float: ...
    def send(self, connection: Connection, packet: Packet) -> None: ...
    def at(self, connection: Connection, when: float) -> None: ...
    def forget(self, connection: Connection) -> None: ...


def _nothing() -> None:
    pass


class Connection:
    """From the first packet to the last, which may come long after close()."""

    def __init__(self, port: Port, address: object, settings: Settings) -> None:
        self.port, self.address, self.settings = port, address, settings
        self.number = secrets.randbits(64)  # in what the peer sends
        self.peer: int | None = None  # in what we send; None: we are connecting
        self.sender = Sender(
            settings.room, settings.least_rto, settings.first_rto, settings.most_rto
        )
        self.receiver = Receiver(settings.room)
        self.error: OSError | None = None
        self.wake: Callable[[], object] = _nothing  # whose transport it is
        self.closed = self.gone = self.reset_sent = False
        self.owes_ack = self.refused = False
        self.cookie = b""
        self.began = self.heard = self.asked = port.now()
        self.tries = 0
        self.last: float | None = None  # when all is over, late packets being answered until then

    # ---- Beginning ----

    def connect(self) -> None:
        """As a client: the first packet, once more each time it is called."""
        self.tries += 1
        self.asked = self.port.now()
        self.port.send(self, Init(self.number, self.receiver.window(), self.cookie))
        self.schedule()

    def accept(self, init: Init) -> None:
        """As a server: the answer, also to a first packet that comes again."""
        self.peer = init.client
        self.sender.limit = max(self.sender.limit, init.window)
        self.port.send(self, Accept(self.number, self.receiver.window()))
        self.schedule()

    # ---- The transport's ----

    def read(self, size: int) -> bytes | None:
        if self.error is not None:
            raise self.error
        data = self.receiver.read(size)
        if data and self.receiver.has_news:
            self.owes_ack = True
            self.settle()
        return data if data or self.receiver.ended else None

    def write(self, data: bytes) -> int | None:
        if self.error is not None:
            raise self.error
        if self.sender.finishing:
            raise BrokenPipeError
        taken = self.sender.write(data)
        self.refused = taken < len(data)
        self.settle()
        return taken or None

    def end(self) -> None:
        if self.error is not None:
            raise self.error
        self.sender.finishing = True
        self.settle()

    def close(self) -> None:
        """What was taken is still sent; a peer whose bytes nobody will read is told so."""
        self.closed, self.wake = True, _nothing
        self.began = self.port.now()
        if self.error is not None or self.peer is None:
            self.vanish()
        elif self.receiver.unread or self.receiver.pieces:
            self.send_reset()
        else:
            self.sender.finishing = True
            self.settle()

    # ---- What comes ----

    def receive(self, packet: Packet) -> None:
        """Heed a packet that has our number; settle() is called after the last of several."""
        self.heard = self.port.now()
        if self.reset_sent:
            if not isinstance(packet, Reset):
                self.port.send(self, Reset())
            return
        match packet:
            case Retry(cookie) if self.peer is None and cookie != self.cookie:
                self.cookie = cookie
                self.connect()
            case Accept(server, window):
                if self.peer is None:
                    self.peer, self.sender.limit = server, window
                    self.sender.since = self.heard
                    self.wake()
                self.owes_ack = server == self.peer
            case Data() if self.peer is not None:
                self.receive_data(packet)
            case Ack(position, window, ranges) if self.peer is not None:
                self.sender.acknowledged(self.heard, position, window, ranges)
                if self.refused and self.sender.room > self.sender.queued + self.sender.held:
                    self.refused = False
                    self.wake()
            case Ping() if self.peer is not None:
                self.owes_ack = True
            case Reset():
                self.fail(ConnectionResetError("the peer has reset the connection"))

    def receive_data(self, data: Data) -> None:
        if self.closed and self.receiver.is_new(data.position, data.payload):
            self.send_reset()  # nobody will ever read it
            return
        before = self.receiver.position
        self.receiver.receive(data.position, data.payload, data.fin)
        self.owes_ack = True
        if self.receiver.position != before:
            self.wake()

    def settle(self) -> None:
        """Send what is to be sent, and see whether all is over."""
        if self.gone or self.peer is None or self.error is not None or self.reset_sent:
            return
        now = self.port.now()
        for segment in self.sender.take(now):
            self.port.send(self, Data(segment.position, segment.payload, segment.fin))
        if self.owes_ack:
            self.owes_ack = False
            receiver = self.receiver
            ack = Ack(receiver.position, receiver.window(), receiver.ranges())
            self.port.send(self, ack)
        if self.closed and self.sender.done and self.receiver.ended and self.last is None:
            self.last = now + 20 * self.sender.rto  # the peer may not have heard that we did
        self.schedule()

    # ---- Time ----

    def deadlines(self) -> list[float]:
        """When tick() may have something to do."""
        settings = self.settings
        if self.last is not None:
            return [self.last]
        if self.peer is None:
            return [self.asked + settings.first_rto * 2 ** min(self.tries, 6) / 2]
        found = [max(self.heard, self.asked) + settings.idle / 3]
        if self.sender.deadline is not None:
            found.append(self.sender.deadline)
        if self.closed:
            found.append(self.began + settings.linger)
        return found

    def schedule(self) -> None:
        if not self.gone and (self.error is None or self.last is not None):
            self.port.at(self, min(self.deadlines()))

    def tick(self) -> None:
        """A deadline has come, or one that has moved on since."""
        now = self.port.now()
        if self.gone or now < min(self.deadlines()):
            self.schedule()
            return
        if self.last is not None:
            self.vanish()
        elif self.peer is None:
            self.tick_connecting(now)
        elif now >= self.heard + self.settings.idle:
            self.fail(TimeoutError("nothing was heard from the peer"))
        elif self.closed and now >= self.began + self.settings.linger:
            self.send_reset()
        else:
            self.tick_open(now)

    def tick_connecting(self, now: float) -> None:
        if now >= self.began + self.settings.connect:
            self.fail(TimeoutError("the peer does not answer"))
        else:
            self.connect()

    def tick_open(self, now: float) -> None:
        sender = self.sender
        ask = now >= max(self.heard, self.asked) + self.settings.idle / 3
        if sender.deadline is not None and now >= sender.deadline:
            ask = ask or sender.stuck
            sender.timed_out(now)
        if ask:  # are you there, and is there room again?
            self.asked = now
            self.port.send(self, Ping())
        self.settle()

    # ---- Ends ----

    def fail(self, error: OSError) -> None:
        """It is broken: the transport hears of it."""
        self.error = error
        self.wake()
        if self.closed or self.peer is None:
            self.vanish()

    def send_reset(self) -> None:
        """Its number is kept for a while: who did not hear of the reset is told again."""
        if self.reset_sent:
            return
        self.reset_sent = True
        self.port.send(self, Reset())
        self.last = self.port.now() + 10 * self.sender.rto
        self.schedule()

    def vanish(self) -> None:
        """Nothing is left of it: packets that still come are a stranger's."""
        if not self.gone:
            self.gone = True
            self.port.forget(self)
