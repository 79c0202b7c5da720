"""A bad network, for tests: loses, doubles and delays datagrams, by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Send = Callable[[bytes, Any], object]


class Lossy:
    """Give it to Rudp(network=…). loss, double and delay are shares of all datagrams; what is
    delayed comes up to *late* seconds later, and so behind others."""

    def __init__(
        self,
        seed: int,
        *,
        loss: float = 0.0,
        double: float = 0.0,
        delay: float = 0.0,
        late: float = 0.005,
    ) -> None:
        self.random = random.Random(seed)
        self.loss, self.double, self.delay, self.late = loss, double, delay, late
        self.sent = self.lost = 0

    def send(self, loop: Any, send: Send, datagram: bytes, address: Any) -> None:
        """Do with a datagram what such a network does."""
        self.sent += 1
        if self.random.random() < self.loss:
            self.lost += 1
            return
        for _ in range(2 if self.random.random() < self.double else 1):
            if self.random.random() < self.delay:
                loop.call_later(self.random.uniform(0, self.late), send, datagram, address)
            else:
                send(datagram, address)
