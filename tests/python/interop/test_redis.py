"""redis-py's asyncio client against a real Redis: by TCP, at a UNIX socket, and by TLS."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, ResponseError, WatchError

from interop import services


@pytest.fixture(scope="module")
def server(tls):
    with services.redis(tls) as service:
        yield service


@pytest.fixture(params=["tcp", "unix", "tls"])
def connect(request, server, tls):
    """Makes a client, whose keys are deleted first."""
    ways = {
        "tcp": {"host": "127.0.0.1", "port": server.port},
        "unix": {"unix_socket_path": str(server.folder / "redis.sock")},
        "tls": {
            "host": "127.0.0.1",
            "port": server.tls_port,
            "ssl": True,
            "ssl_ca_certs": tls.path("ca.crt"),
        },
    }

    @asynccontextmanager
    async def connect(**options):
        client = redis.asyncio.Redis(**ways[request.param], **options)
        async with client:
            await client.flushall()
            yield client

    return connect


@pytest.mark.parametrize("protocol", [2, 3])
def test_commands(run, connect, protocol):
    async def main() -> None:
        async with connect(protocol=protocol) as client:
            for size in (0, 1, 65_535, 65_536, 3_000_000):
                data = os.urandom(size)
                await client.set("key", data)
                assert await client.get("key") == data
            await client.hset("hash", mapping={"a": 1, "b": 2})
            assert await client.hgetall("hash") == {b"a": b"1", b"b": b"2"}
            with pytest.raises(ResponseError, match="WRONGTYPE"):
                await client.incr("hash")
            assert [await client.incr("count") for _ in range(100)] == list(range(1, 101))
            await client.rpush("list", *range(1000))
            assert await client.lrange("list", 0, -1) == [b"%d" % n for n in range(1000)]
            assert {key async for key in client.scan_iter()} == {b"key", b"hash", b"count", b"list"}

    run(main())


def test_pipelines_and_transactions(run, connect):
    async def main() -> None:
        async with connect() as client:
            async with client.pipeline(transaction=False) as pipe:
                for number in range(500):
                    pipe.set(f"key {number}", "x" * number)
                assert await pipe.execute() == [True] * 500
                for number in range(500):
                    pipe.get(f"key {number}")
                assert await pipe.execute() == [b"x" * number for number in range(500)]
            async with client.pipeline() as pipe:
                await pipe.watch("key 1")
                await client.set("key 1", "changed")
                pipe.multi()
                pipe.set("key 1", "mine")
                with pytest.raises(WatchError):
                    await pipe.execute()

    run(main())


def test_publishing_to_subscribers(run, connect):
    async def main() -> None:
        async with connect() as client, client.pubsub() as pubsub:
            await pubsub.subscribe("news")
            await pubsub.psubscribe("w*")
            messages = pubsub.listen()
            assert (await anext(messages))["type"] == "subscribe"
            assert (await anext(messages))["type"] == "psubscribe"
            for number in range(100):
                assert await client.publish("news", number) == 1
                assert await client.publish("weather", number) == 1
            for number in range(100):
                for kind in ("message", "pmessage"):
                    message = await anext(messages)
                    assert (message["type"], message["data"]) == (kind, b"%d" % number)

    run(main())


def test_waiting_for_what_another_pushes(run, connect):
    async def main() -> None:
        async with connect() as client:
            waiting = asyncio.ensure_future(client.blpop("queue", timeout=0))
            while not (await client.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0)
            await client.rpush("queue", "here")
            assert await waiting == (b"queue", b"here")

    run(main())


def test_many_tasks_share_a_pool(run, connect):
    async def main() -> None:
        async with connect() as client:
            sharing = asyncio.Semaphore(10)

            async def work(number: int) -> None:
                async with sharing:
                    await client.set(f"key {number}", number)
                    assert await client.get(f"key {number}") == b"%d" % number

            await asyncio.gather(*(work(number) for number in range(50)))
            assert await client.dbsize() == 50

    run(main())


def test_a_connection_that_the_server_ends(run, connect):
    """A client that may try again does not even notice; one that may not is told."""

    async def main() -> None:
        async with connect(retry=Retry(NoBackoff(), 1)) as client, connect() as other:
            number = await client.client_id()
            await other.client_kill_filter(_id=number)
            assert await client.ping()
            assert await client.client_id() != number
        async with connect(retry=None) as client, connect() as other:
            waiting = asyncio.ensure_future(client.blpop("queue", timeout=0))
            while not (await other.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0)
            await other.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(ConnectionError):
                await waiting

    run(main())


def test_a_certificate_that_is_not_trusted(run, server):
    async def main() -> None:
        options = {"host": "127.0.0.1", "port": server.tls_port, "ssl": True, "retry": None}
        async with redis.asyncio.Redis(**options) as client:
            with pytest.raises(ConnectionError, match="certificate verify failed"):
                await client.ping()

    run(main())
