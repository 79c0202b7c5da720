"""becket: one networking core in C under every kind of Python server.

    import asyncio, becket

    async def main(): ...
    becket.run(main())                                # as asyncio.run()
    asyncio.Runner(loop_factory=becket.EventLoop)     # or where a loop factory is taken

    reader, writer = await becket.open("unix:app.sock")           # streams, to any endpoint
    with becket.connect("tls://example.org:443") as connection:   # the same for blocking code
        ...

``becket.EventLoop`` is an asyncio event loop; ``becket.tls`` has TLS engines to choose from.
``becket serve`` on the command line serves any protocol; ``becket --help`` lists what else it does.
"""

from becket import tls, transports
from becket._becket import __version__, notifiers
from becket.connection import Connection, connect
from becket.loop import EventLoop, new_event_loop, run
from becket.server import Server, serve
from becket.streams import open

__all__ = [
    "Connection",
    "EventLoop",
    "Server",
    "__version__",
    "connect",
    "new_event_loop",
    "notifiers",
    "open",
    "run",
    "serve",
    "tls",
    "transports",
]
