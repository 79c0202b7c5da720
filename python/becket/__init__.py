"""becket: one networking core in C under every kind of Python server.

    def echo(connection):
        for line in connection:
            connection.sendall(line)

    becket.serve(echo, "tcp://:7000", "unix:/run/echo.sock", driver="forks:4")

    with becket.connect("tls://example.org:443") as connection:   # blocking
        ...
    reader, writer = await becket.open("unix:app.sock")           # asyncio's streams

    becket.run(main())                                # as asyncio.run()
    asyncio.Runner(loop_factory=becket.EventLoop)     # or where a loop factory is taken
    becket.install()                                  # or for all loops of older code

``serve()`` takes asyncio protocols, coroutines, blocking functions, socketserver handlers; a
``Server`` does the same in the background. ``becket.EventLoop`` is an asyncio event loop;
``becket.tls`` has TLS engines to choose from, ``becket.transports`` is for transports of your own.
``becket --help`` lists what the command line does.
"""

from becket import tls, transports
from becket._becket import __version__, notifiers
from becket.connection import Connection, connect
from becket.loop import EventLoop, EventLoopPolicy, install, new_event_loop, run
from becket.server import Server, serve
from becket.streams import open

__all__ = [
    "Connection",
    "EventLoop",
    "EventLoopPolicy",
    "Server",
    "__version__",
    "connect",
    "install",
    "new_event_loop",
    "notifiers",
    "open",
    "run",
    "serve",
    "tls",
    "transports",
]
