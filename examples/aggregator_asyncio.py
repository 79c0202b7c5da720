"""A client of thousands in asyncio, on becket's event loop: only the last line is not asyncio.

    python aggregator_asyncio.py --connections 10000 --lines 100000 tcp 127.0.0.1 7000
    python aggregator_asyncio.py --connections 10000 --seconds 60 unix /run/log.sock

Reads lines from many connections at once, counts how often each has come, and prints the counts at
the end; progress goes to standard error. A semaphore bounds how many connections are being made at
once; one that ends is made again after a pause that doubles; and the end, whatever brings it about,
is a cancellation of the tasks that hold the connections.
"""

import argparse
import asyncio
import collections
import random
import resource
import signal
import sys

import becket

PAUSE = 0.1  # seconds before the first reconnection, doubled for each one after it …
LONGEST = 25.6  # … up to this


class Aggregator:
    """What all connections share."""

    def __init__(self, options):
        self.options = options
        self.counts = collections.Counter()
        self.lines = self.open = self.most_open = self.made_again = self.failures = 0
        self.connecting = asyncio.Semaphore(options.connecting)
        self.enough = asyncio.Event()

    async def open_connection(self, number):
        if self.options.family == "unix":
            return await asyncio.open_unix_connection(self.options.address)
        hosts = self.options.address.split(",")
        return await asyncio.open_connection(hosts[number % len(hosts)], self.options.port)

    async def read_lines(self, reader):
        """Returns how many came before the connection ended."""
        count = 0
        async for line in reader:
            if not line.endswith(b"\n"):  # what is no whole line does not count
                break
            self.counts[line] += 1
            self.lines += 1
            count += 1
            if self.options.lines and self.lines >= self.options.lines:
                self.enough.set()
        return count

    async def hold(self, number):
        """Keep one connection open, until cancelled."""
        pause = PAUSE
        while True:
            try:
                async with self.connecting:
                    reader, writer = await self.open_connection(number)
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                try:
                    if await self.read_lines(reader):
                        pause = PAUSE
                finally:
                    self.open -= 1
                    writer.close()
            except (OSError, ValueError):  # ValueError: a line of more than 64 KiB
                self.failures += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST)
            self.made_again += 1

    def progress(self):
        return (
            f"{self.lines} lines; {self.open} connections open, at most {self.most_open}; "
            f"{self.made_again} made again, {self.failures} failures"
        )

    async def tell(self):
        while True:
            await asyncio.sleep(1)
            print(self.progress(), file=sys.stderr, flush=True)

    async def run(self):
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.enough.set)
        tasks = [asyncio.create_task(self.hold(n)) for n in range(self.options.connections)]
        tasks.append(asyncio.create_task(self.tell()))
        try:
            async with asyncio.timeout(self.options.seconds):
                await self.enough.wait()
        except TimeoutError:
            pass
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def parse():
    parser = argparse.ArgumentParser(
        description="Counts lines from many connections at once.",
        epilog="To one address and port a machine can have some 28,000 connections; for more, or "
        "to spread them, HOST may be several addresses: 127.0.0.1,127.0.0.2.",
    )
    parser.add_argument("--connections", type=int, default=100, metavar="N")
    parser.add_argument("--connecting", type=int, default=100, metavar="N", help="at once")
    parser.add_argument("--lines", type=int, metavar="N", help="stop after so many")
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after that time")
    families = parser.add_subparsers(dest="family", required=True)
    tcp = families.add_parser("tcp")
    tcp.add_argument("address", metavar="HOST")
    tcp.add_argument("port", type=int)
    families.add_parser("unix").add_argument("address", metavar="PATH")
    return parser.parse_args()


async def main(options):
    aggregator = Aggregator(options)
    await aggregator.run()
    for line, count in aggregator.counts.most_common():
        print(count, line.decode(errors="replace").rstrip("\n"))
    print("ended:", aggregator.progress(), file=sys.stderr)


_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a descriptor for each connection
becket.run(main(parse()))
