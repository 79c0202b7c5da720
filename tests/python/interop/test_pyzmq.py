"""pyzmq's asyncio, as Jupyter uses it: sockets whose one descriptor, watched by add_reader(), says
once for many messages that something has changed."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager

import pytest
import zmq
import zmq.asyncio


@pytest.fixture(params=["tcp", "ipc", "inproc"])
def sockets(request, short_path):
    """Makes two sockets of a kind each, the first bound and the second connected to it."""

    @contextmanager
    def sockets(bound: int, connected: int):
        with zmq.asyncio.Context() as context:
            with context.socket(bound) as near, context.socket(connected) as far:
                near.linger = far.linger = 0
                where = {"ipc": f"ipc://{short_path}", "inproc": "inproc://here"}
                near.bind(where.get(request.param, "tcp://127.0.0.1:*"))
                far.connect(near.last_endpoint.decode().rstrip("\0"))
                yield near, far

    return sockets


def test_requests_and_replies(run, sockets):
    async def serve(socket) -> None:
        while True:
            await socket.send_multipart(await socket.recv_multipart())

    async def main() -> None:
        with sockets(zmq.REP, zmq.REQ) as (near, far):
            serving = asyncio.create_task(serve(near))
            for size in (0, 1, 255, 65_536, 2_000_000):
                parts = [b"part", os.urandom(size)]
                await far.send_multipart(parts)
                assert await far.recv_multipart() == parts
            for number in range(100):
                await far.send_json({"number": number})
                assert await far.recv_json() == {"number": number}
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving

    run(main())


def test_publishing_to_subscribers(run, sockets):
    async def main() -> None:
        with sockets(zmq.XPUB, zmq.SUB) as (near, far):
            far.subscribe(b"news")
            assert await near.recv() == b"\1news"  # it has arrived
            for number in range(200):
                await near.send_multipart([b"other", b"%d" % number])
                await near.send_multipart([b"news", b"%d" % number])
            for number in range(200):
                assert await far.recv_multipart() == [b"news", b"%d" % number]
            far.unsubscribe(b"news")
            assert await near.recv() == b"\0news"

    run(main())


def test_more_than_the_queues_hold(run):
    """Whoever sends has to wait, and goes on; nothing is lost or changes its place."""
    count = 1000

    async def main() -> None:
        with zmq.asyncio.Context() as context:
            with context.socket(zmq.PULL) as near, context.socket(zmq.PUSH) as far:
                near.rcvhwm = far.sndhwm = 10
                far.linger = 0
                near.bind("tcp://127.0.0.1:*")
                far.connect(near.last_endpoint.decode())

                async def send() -> None:
                    for number in range(count):
                        await far.send(b"%d " % number * 100)

                sending = asyncio.create_task(send())
                for number in range(count):
                    assert await near.recv() == b"%d " % number * 100
                await sending

    run(main())


def test_many_clients_of_a_router(run):
    async def serve(router) -> None:
        while True:
            name, _, text = await router.recv_multipart()
            await router.send_multipart([name, b"", text.upper()])

    async def main() -> None:
        with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as router:
            router.bind("tcp://127.0.0.1:*")
            where = router.last_endpoint.decode()
            serving = asyncio.create_task(serve(router))

            async def talk(number: int) -> None:
                with context.socket(zmq.REQ) as socket:
                    socket.connect(where)
                    for count in range(10):
                        await socket.send(b"client %d, %d" % (number, count))
                        assert await socket.recv() == b"CLIENT %d, %d" % (number, count)

            await asyncio.gather(*(talk(number) for number in range(20)))
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving

    run(main())


def test_a_poller(run, sockets):
    async def main() -> None:
        with sockets(zmq.PAIR, zmq.PAIR) as (near, far):
            poller = zmq.asyncio.Poller()
            poller.register(near, zmq.POLLIN)
            poller.register(far, zmq.POLLIN)
            assert await poller.poll(0) == []
            await far.send(b"hello")
            assert await poller.poll() == [(near, zmq.POLLIN)]
            assert await near.recv() == b"hello"
            await near.send(b"you too")
            assert await poller.poll() == [(far, zmq.POLLIN)]
            assert await far.recv() == b"you too"

    run(main())


def test_a_receive_that_is_cancelled(run, sockets):
    """It takes no message with it."""

    async def main() -> None:
        with sockets(zmq.PAIR, zmq.PAIR) as (near, far):
            waiting = asyncio.ensure_future(near.recv())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await far.send(b"for the next")
            assert await near.recv() == b"for the next"

    run(main())
