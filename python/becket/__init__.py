"""becket: one networking core in C under every kind of Python server.

    import asyncio, becket

    async def main(): ...
    becket.run(main())                                # as asyncio.run()
    asyncio.Runner(loop_factory=becket.EventLoop)     # or where a loop factory is taken

``becket.EventLoop`` is an asyncio event loop; ``becket.tls`` has TLS engines to choose from.
``becket serve`` on the command line serves any protocol; ``becket --help`` lists what else it does.
"""

from becket import tls
from becket._becket import __version__, notifiers
from becket.loop import EventLoop, new_event_loop, run
from becket.server import Server, serve
from becket.streams import open

__all__ = [
    "EventLoop",
    "Server",
    "__version__",
    "new_event_loop",
    "notifiers",
    "open",
    "run",
    "serve",
    "tls",
]
