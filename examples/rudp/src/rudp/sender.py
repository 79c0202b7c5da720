"""The sending half of a connection: what is queued, what is on its way, and when to send it again.

Retransmission times are those of RFC 6298; what was overtaken by three later packets is lost (as
in RFC 9002); congestion is met by slow start, and by halving (RFC 5681). The end of the stream
takes one position, behind the last byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rudp.packets import PAYLOAD

OVERTAKEN = 3  # later packets that came, until one that did not is lost
MOST_BACKOFF = 64


@dataclass(slots=True)
class Segment:
    position: int
    payload: bytes
    fin: bool
    sent_at: float = 0.0
    order: int = 0  # of its last sending
    times: int = 0
    lost: bool = False  # is to be sent again

    @property
    def size(self) -> int:
        return len(self.payload) + self.fin

    @property
    def end(self) -> int:
        return self.position + self.size


class Sender:
    def __init__(self, room: int, least_rto: float, first_rto: float, most_rto: float) -> None:
        self.room = room
        self.least_rto, self.rto, self.most_rto = least_rto, first_rto, most_rto
        self.queue: deque[bytes] = deque()
        self.queued = 0  # bytes in it
        self.segments: deque[Segment] = deque()  # sent and not acknowledged
        self.held = self.in_flight = 0  # bytes of them; of those that are not lost
        self.next = 0  # the position of the next new segment
        self.limit = 0  # the peer has room up to here
        self.finishing = self.finished = False  # the end is wanted; it was sent
        self.window = 10.0 * PAYLOAD  # of congestion
        self.threshold = float("inf")
        self.order = self.recovery = 0
        self.backoff = 1
        self.smooth: float | None = None  # the time of a round trip
        self.variation = 0.0
        self.since = 0.0  # the retransmission timer runs since then

    # ---- What the connection asks ----

    @property
    def done(self) -> bool:
        """All has been acknowledged, the end too."""
        return self.finished and not self.segments

    @property
    def stuck(self) -> bool:
        """The peer has no room, and nothing is on its way that would bring news of it."""
        return bool(self.queue) and not self.segments and self.next >= self.limit

    @property
    def deadline(self) -> float | None:
        """When something is to be sent again, or the peer to be asked for room."""
        if not self.segments and not self.stuck:
            return None
        return self.since + min(self.rto * self.backoff, self.most_rto)

    def write(self, data: bytes) -> int:
        """Queue what there is room for."""
        taken = data[: max(0, self.room - self.queued - self.held)]
        if taken:
            self.queue.append(taken)
            self.queued += len(taken)
        return len(taken)

    # ---- Sending ----

    def take(self, now: float) -> Iterator[Segment]:
        """What may be sent now: first what was lost, then what is new."""
        for segment in self.segments:
            if segment.lost:
                if not self._fits(segment.size):
                    return
                yield self._send(segment, now)
        while (new := self._cut()) is not None:
            if not self.segments:
                self.since = now
            self.segments.append(new)
            self.held += new.size
            yield self._send(new, now)

    def _fits(self, size: int) -> bool:
        return self.in_flight == 0 or self.in_flight + size <= self.window

    def _send(self, segment: Segment, now: float) -> Segment:
        self.order += 1
        segment.order, segment.sent_at, segment.lost = self.order, now, False
        segment.times += 1
        self.in_flight += segment.size
        return segment

    def _cut(self) -> Segment | None:
        """The next new segment, if there is anything to be sent, and room for it."""
        size = min(PAYLOAD, self.queued, self.limit - self.next)
        if size <= 0 or not self._fits(size):
            last = not self.queued and self.finishing and not self.finished and self._fits(1)
            if not last:
                return None
            self.finished = True
            self.next += 1
            return Segment(self.next - 1, b"", True)
        pieces, left = [], size
        while left:
            piece = self.queue.popleft()
            if len(piece) > left:
                self.queue.appendleft(piece[left:])
            pieces.append(piece[:left])
            left -= len(pieces[-1])
        self.queued -= size
        self.next += size
        return Segment(self.next - size, b"".join(pieces), False)

    # ---- What has come of it ----

    def acknowledged(
        self, now: float, position: int, window: int, ranges: Iterable[tuple[int, int]]
    ) -> bool:
        """Heed an acknowledgement; whether it was one of something new."""
        if position > self.next:
            return False  # of what was never sent
        self.limit = max(self.limit, position + window)
        come = [
            s
            for s in self.segments
            if s.end <= position or any(a <= s.position and s.end <= b for a, b in ranges)
        ]
        if not come:
            return False
        for segment in come:
            self._arrived(segment)
        newest = max(come, key=lambda s: s.order)
        if newest.times == 1:  # else nobody knows which one came (Karn)
            self._measure(now - newest.sent_at)
        self.backoff = 1
        self.since = now
        self._find_lost(newest.order)
        return True

    def _arrived(self, segment: Segment) -> None:
        self.segments.remove(segment)
        self.held -= segment.size
        if not segment.lost:
            self.in_flight -= segment.size
        if segment.order <= self.recovery:
            return  # it was sent before the window was halved
        if self.window < self.threshold:
            self.window += segment.size
        else:
            self.window += PAYLOAD * segment.size / self.window

    def _measure(self, seconds: float) -> None:
        if self.smooth is None:
            self.smooth, self.variation = seconds, seconds / 2
        else:
            self.variation = 0.75 * self.variation + 0.25 * abs(self.smooth - seconds)
            self.smooth = 0.875 * self.smooth + 0.125 * seconds
        self.rto = max(self.least_rto, self.smooth + 4 * self.variation)

    def _find_lost(self, newest: int) -> None:
        for segment in self.segments:
            if not segment.lost and newest - segment.order >= OVERTAKEN:
                self._lose(segment)

    def _lose(self, segment: Segment) -> None:
        segment.lost = True
        self.in_flight -= segment.size
        if segment.order > self.recovery:  # once for each window
            self.recovery = self.order
            self.threshold = self.window = max(self.window / 2, 2.0 * PAYLOAD)

    def timed_out(self, now: float) -> None:
        """The deadline has passed: all that is on its way is lost, and little is sent at once."""
        for segment in self.segments:
            if not segment.lost:
                self._lose(segment)
        if self.segments:
            self.window = 2.0 * PAYLOAD
        self.backoff = min(self.backoff * 2, MOST_BACKOFF)
        self.since = now
