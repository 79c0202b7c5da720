"""asyncpg against a real PostgreSQL: by TCP, at a UNIX socket, and by TLS, which starts in the
midst of a connection."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import io
import os
import ssl

import asyncpg
import pytest

from interop.services import postgresql


@pytest.fixture(scope="module")
def database(tls):
    with postgresql(tls) as service:
        yield service


@pytest.fixture(params=["tcp", "unix", "tls"])
def options(request, database, tls):
    """How to connect."""
    ways = {
        "tcp": {"host": "127.0.0.1", "ssl": False},
        "unix": {"host": str(database.folder), "ssl": False},
        "tls": {"host": "127.0.0.1", "ssl": tls.client()},
    }
    return ways[request.param] | {"port": database.port, "user": "postgres", "timeout": None}


async def is_secure(connection: asyncpg.Connection) -> bool:
    query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    return bool(await connection.fetchval(query))


def test_values_of_many_types(run, options):
    values = (
        (1 << 62, "bigint"),
        ("grüße", "text"),
        (decimal.Decimal("3.14159"), "numeric"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), "timestamptz"),
        ([1, 2, None, 4], "int[]"),
        (os.urandom(3_000_000), "bytea"),
        (None, "text"),
    )

    async def main() -> None:
        connection = await asyncpg.connect(**options)
        assert connection._loop is asyncio.get_running_loop()
        assert await is_secure(connection) == bool(options["ssl"])
        for value, kind in values:
            assert await connection.fetchval(f"SELECT $1::{kind}", value) == value
        rows = await connection.fetch(
            "SELECT n, repeat('x', n) AS x FROM generate_series(1, 2000) n"
        )
        assert [(row["n"], len(row["x"])) for row in rows] == [(n, n) for n in range(1, 2001)]
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval("SELECT 1 / 0")
        await connection.close()

    run(main())


def test_transactions_and_cursors(run, options):
    async def main() -> None:
        connection = await asyncpg.connect(**options)
        await connection.execute("CREATE TEMPORARY TABLE numbers (n int PRIMARY KEY)")
        with pytest.raises(asyncpg.UniqueViolationError):
            async with connection.transaction():
                await connection.executemany("INSERT INTO numbers VALUES ($1)", [(1,), (2,), (1,)])
        assert await connection.fetchval("SELECT count(*) FROM numbers") == 0
        async with connection.transaction():
            count = ((n,) for n in range(5000))
            await connection.executemany("INSERT INTO numbers VALUES ($1)", count)
            cursor = connection.cursor("SELECT n FROM numbers ORDER BY n", prefetch=100)
            assert [row["n"] async for row in cursor] == list(range(5000))
        await connection.close()

    run(main())


def test_copying(run, options):
    """More than any buffer holds, in both directions: whoever is faster has to wait."""
    data = b"".join(b"%d\t%s\n" % (number, b"x" * (number % 1000)) for number in range(5000))

    async def pieces():
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    async def main() -> None:
        connection = await asyncpg.connect(**options)
        await connection.execute("CREATE TEMPORARY TABLE copied (n int, x text)")
        done = await connection.copy_to_table("copied", source=pieces())
        assert done == "COPY 5000"
        back = io.BytesIO()
        await connection.copy_from_query("SELECT * FROM copied ORDER BY n", output=back)
        assert back.getvalue() == data
        await connection.close()

    run(main())


def test_notifications(run, options):
    async def main() -> None:
        heard: asyncio.Queue[str] = asyncio.Queue()
        listener, other = [await asyncpg.connect(**options) for _ in range(2)]
        await listener.add_listener("news", lambda *told: heard.put_nowait(told[-1]))
        for number in range(100):
            await other.execute(f"NOTIFY news, '{number}'")
        assert [await heard.get() for _ in range(100)] == [str(number) for number in range(100)]
        await listener.close()
        await other.close()

    run(main())


def test_a_pool(run, options):
    async def main() -> None:
        async with asyncpg.create_pool(**options, min_size=2, max_size=6) as pool:

            async def ask(number: int) -> None:
                assert await pool.fetchval("SELECT $1::int + 1", number) == number + 1

            await asyncio.gather(*(ask(number) for number in range(60)))

    run(main())


def test_a_query_that_is_cancelled(run, options):
    """The server is told, on a connection of its own, and this one goes on."""

    async def main() -> None:
        connection, other = [await asyncpg.connect(**options) for _ in range(2)]
        asking = asyncio.ensure_future(connection.execute("SELECT pg_sleep(600)"))
        busy = "SELECT wait_event FROM pg_stat_activity WHERE pid = $1"
        while await other.fetchval(busy, connection.get_server_pid()) != "PgSleep":
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await connection.fetchval("SELECT 42") == 42
        await connection.close()
        await other.close()

    run(main())


def test_a_connection_that_the_server_ends(run, options):
    async def main() -> None:
        connection, other = [await asyncpg.connect(**options) for _ in range(2)]
        gone = asyncio.get_running_loop().create_future()
        connection.add_termination_listener(gone.set_result)
        await other.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
        assert await gone is connection
        with pytest.raises(asyncpg.InterfaceError):
            await connection.fetchval("SELECT 1")
        await other.close()

    run(main())


def test_a_certificate_that_is_not_trusted(run, database):
    async def main() -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncpg.connect(
                host="127.0.0.1", port=database.port, user="postgres",
                ssl=ssl.create_default_context(), timeout=None,
            )  # fmt: skip

    run(main())
