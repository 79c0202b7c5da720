"""A mail server on any Python library of the benchmark's mail cells; bench/run.py starts one a
measurement. All of them take every message whole, and drop it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from typing import Any

from python_server import Place, listen, ready


class Handler:
    """aiosmtpd's interface, which becket has too."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 message accepted"


def run_becket(endpoint: str) -> None:
    from becket.smtp import Server

    scheme, _, rest = endpoint.partition(":")
    address, _, pem = rest.partition("?")
    options = f"?cert={pem}&key={pem}" if scheme == "tls" else ""
    Server(Handler(), f"{scheme}://{address}{options}").run(ready)


def run_aiosmtpd(endpoint: str) -> None:
    from aiosmtpd.smtp import SMTP

    place = listen(endpoint)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        context = place.tls_context()
        server = await loop.create_server(
            lambda: SMTP(Handler(), loop=loop), sock=place.sock, ssl=context
        )
        ready()
        await server.serve_forever()

    asyncio.run(main())


def twisted_factory() -> Any:
    from twisted.internet import defer
    from twisted.mail import smtp
    from zope.interface import implementer

    @implementer(smtp.IMessage)
    class Message:
        def __init__(self) -> None:
            self.lines: list[bytes] = []

        def lineReceived(self, line: bytes) -> None:
            self.lines.append(line)

        def eomReceived(self) -> Any:
            return defer.succeed(None)

        def connectionLost(self) -> None:
            pass

    @implementer(smtp.IMessageDelivery)
    class Delivery:
        def receivedHeader(self, helo: Any, origin: Any, recipients: Any) -> bytes:
            return b""

        def validateFrom(self, helo: Any, origin: Any) -> Any:
            return origin

        def validateTo(self, user: Any) -> Callable[[], Any]:
            return Message

    class Factory(smtp.SMTPFactory):  # type: ignore[misc]
        protocol = smtp.ESMTP
        noisy = False

        def buildProtocol(self, addr: Any) -> Any:
            protocol = super().buildProtocol(addr)
            protocol.delivery = Delivery()
            return protocol

    return Factory()


def run_twisted(endpoint: str) -> None:
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import reactor as installed

    place: Place = listen(endpoint)
    reactor: Any = installed
    place.sock.setblocking(False)
    reactor.adoptStreamPort(place.sock.fileno(), place.sock.family, twisted_factory())
    reactor.callWhenRunning(ready)
    reactor.run()


WAYS: dict[str, Callable[[str], None]] = {
    "becket": run_becket,
    "aiosmtpd": run_aiosmtpd,
    "twisted": run_twisted,
}


def main() -> None:
    description, _, _ = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("endpoint", help="tcp:127.0.0.1:PORT, or tls:127.0.0.1:PORT?PEM")
    parser.add_argument("--library", choices=sorted(WAYS), required=True)
    options = parser.parse_args()
    try:
        WAYS[options.library](options.endpoint)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
