"""rudp keeps becket's contract for transports, on a good network and on bad ones."""

from __future__ import annotations

import asyncio

import becket
from becket.testing import TransportSuite
from becket.transports import Endpoint, Transport
from rudp import Lossy, Rudp, Settings

QUICK = Settings(least_rto=0.02, first_rto=0.05, most_rto=0.2)


def endpoint(text: str) -> Endpoint:
    host, _, port = text.removeprefix("rudp://").rpartition(":")
    return Endpoint("rudp", host, int(port), "", {}, text)


class TestRudp(TransportSuite):
    """On a network that loses nothing."""

    quick = True

    def network(self) -> Lossy | None:
        return None

    async def pair(self, loop: becket.EventLoop) -> tuple[Transport, Transport]:
        rudp = Rudp(QUICK, self.network())
        loop._schemes["rudp"] = rudp  # which hears when the loop is closed
        accepted: asyncio.Queue[Transport] = asyncio.Queue()
        listener = rudp.listen(loop, endpoint("rudp://127.0.0.1:0"), accepted.put_nowait)
        client = rudp.connect(loop, endpoint(listener.name))
        server = await accepted.get()
        listener.close()
        return client, server


class TestRudpUnderLoss(TestRudp):
    """A fifth is lost, and much comes twice, or late and in another order."""

    patience = 15.0
    arrival = 1.0  # it may have to be sent some times

    def network(self) -> Lossy:
        return Lossy(7, loss=0.2, double=0.1, delay=0.3)
