"""The receiving half of a connection: bytes in order for the reader, and what has come out of order
until the gaps before it are filled. What a peer sends beyond its window is dropped, so that it
cannot make us keep more."""

from __future__ import annotations

from collections import deque

from rudp.packets import PAYLOAD, RANGES

PIECES = 512  # out of order; a peer that sends single bytes gets no further


class Receiver:
    def __init__(self, room: int) -> None:
        self.room = room
        self.ready: deque[bytes] = deque()  # in order, not yet read
        self.unread = 0  # bytes of it
        self.next = 0  # the position that is waited for
        self.end: int | None = None  # of the stream, once that is known
        self.pieces: dict[int, bytes] = {}  # by position
        self.told = room  # the window that the peer was told of

    @property
    def ended(self) -> bool:
        """All has come, and has been read."""
        return self.next == self.end and not self.unread

    @property
    def position(self) -> int:
        """For acknowledgements: the end counts too, once it is reached."""
        return self.next + (self.next == self.end)

    def window(self) -> int:
        """What the peer may send from here on; it is being told."""
        self.told = self.room - self.unread
        return self.told

    @property
    def has_news(self) -> bool:
        """There is room again, and the peer may wait for it."""
        return self.told < 2 * PAYLOAD <= self.room - self.unread

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """What has come out of order, lowest first."""
        merged: list[tuple[int, int]] = []
        for position in sorted(self.pieces):
            end = position + len(self.pieces[position])
            if merged and position <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((position, end))
        return tuple(merged[:RANGES])

    def is_new(self, position: int, payload: bytes) -> bool:
        """Whether there are bytes in it that have not come before."""
        return bool(payload) and position + len(payload) > self.next

    def receive(self, position: int, payload: bytes, fin: bool) -> None:
        """Take a piece of the stream."""
        end = position + len(payload)
        if end > self.next + self.room - self.unread or (self.end is not None and end > self.end):
            return
        if fin and self.end is None:
            if any(at + len(piece) > end for at, piece in self.pieces.items()) or end < self.next:
                return  # it ends before what has come
            self.end = end
        if self.is_new(position, payload) and len(self.pieces) < PIECES:
            if len(payload) > len(self.pieces.get(position, b"")):
                self.pieces[position] = payload
            self._assemble()

    def _assemble(self) -> None:
        for position in sorted(self.pieces):
            if position > self.next:
                return
            piece = self.pieces.pop(position)[self.next - position :]
            if piece:
                self.ready.append(piece)
                self.unread += len(piece)
                self.next += len(piece)

    def read(self, size: int) -> bytes:
        """At most so many bytes; none: there are none."""
        taken, left = [], size
        while left and self.ready:
            piece = self.ready.popleft()
            if len(piece) > left:
                self.ready.appendleft(piece[left:])
                piece = piece[:left]
            taken.append(piece)
            left -= len(piece)
        self.unread -= size - left
        return b"".join(taken)
