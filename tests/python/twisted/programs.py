"""Programs that people run on Twisted, on the reactor that is asked for: `programs.py becket web`.

A server prints its port, and ends when its standard input does; a client prints what it got.
Started by test_programs.py.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any


def install(name: str) -> None:
    module = "becket.twisted" if name == "becket" else f"twisted.internet.{name}reactor"
    import_module(module).install()


def serve(port: Any) -> None:
    """Say where, and run until standard input ends."""
    from twisted.internet import reactor

    def wait() -> None:
        sys.stdin.read()
        reactor.callFromThread(reactor.stop)  # type: ignore[attr-defined]

    print(port.getHost().port, flush=True)
    threading.Thread(target=wait, daemon=True).start()
    reactor.run()  # type: ignore[attr-defined]


def listen(factory: Any) -> None:
    from twisted.internet import reactor

    serve(reactor.listenTCP(0, factory, interface="127.0.0.1"))  # type: ignore[attr-defined]


def web() -> None:
    from twisted.web import resource, server

    class Hello(resource.Resource):  # type: ignore[misc]
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return b"hello"

    listen(server.Site(Hello()))


def klein() -> None:
    from klein import Klein
    from twisted.internet import reactor, task
    from twisted.web.server import Site

    app = Klein()

    @app.route("/<name>")
    def page(request: Any, name: str) -> Any:
        later = task.deferLater(reactor, 0.001, lambda: f"page {name}")
        return later

    listen(Site(app.resource()))


def websocket() -> None:
    from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol

    class Echo(WebSocketServerProtocol):  # type: ignore[misc]
        def onMessage(self, payload: bytes, isBinary: bool) -> None:
            self.sendMessage(payload, isBinary)

    factory = WebSocketServerFactory()
    factory.protocol = Echo
    listen(factory)


def smtp() -> None:
    from twisted.mail import smtp as twisted_smtp
    from zope.interface import implementer

    received: list[bytes] = []

    @implementer(twisted_smtp.IMessage)
    class Message:
        def __init__(self) -> None:
            self.lines: list[bytes] = []

        def lineReceived(self, line: bytes) -> None:
            self.lines.append(line)

        def eomReceived(self) -> Any:
            from twisted.internet import defer

            received.append(b"\n".join(self.lines))
            return defer.succeed(None)

        def connectionLost(self) -> None:
            pass

    @implementer(twisted_smtp.IMessageDelivery)
    class Delivery:
        def receivedHeader(self, helo: Any, origin: Any, recipients: Any) -> bytes:
            return b"Received: here"

        def validateFrom(self, helo: Any, origin: Any) -> Any:
            return origin

        def validateTo(self, user: Any) -> Callable[[], Message]:
            return Message

    class Factory(twisted_smtp.SMTPFactory):  # type: ignore[misc]
        def buildProtocol(self, address: Any) -> Any:
            made = super().buildProtocol(address)
            made.delivery = Delivery()
            return made

    listen(Factory())
    print(len(received), sum(map(len, received)), flush=True)


def scrapy() -> None:
    """Crawls the site at the URL in the environment; prints how many pages, and what they were."""
    from scrapy import Spider
    from scrapy.crawler import CrawlerProcess

    found: list[str] = []

    class Pages(Spider):  # type: ignore[misc]
        name = "pages"
        start_urls = (os.environ["SITE"],)

        async def parse(self, response: Any) -> Any:
            import asyncio

            await asyncio.sleep(0.001)  # asyncio's, in a coroutine of Scrapy's
            found.append(response.url.rpartition("/")[2])
            for link in response.css("a::attr(href)").getall():
                yield response.follow(link, self.parse)

    settings = {
        "LOG_LEVEL": "ERROR",
        "TELNETCONSOLE_ENABLED": False,
        "DOWNLOAD_DELAY": 0,
        "TWISTED_REACTOR": None
        if "epoll" in sys.argv[1]
        else "becket.twisted.reactor.BecketReactor",
    }
    process = CrawlerProcess(settings)
    process.crawl(Pages)
    process.start()
    print(" ".join(sorted(found)))


if __name__ == "__main__":
    install(sys.argv[1])
    globals()[sys.argv[2]]()
