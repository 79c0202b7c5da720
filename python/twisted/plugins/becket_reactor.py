"""Lets Twisted find becket: ``trial --reactor=becket``, ``twist --reactor=becket``, and endpoints
``becket:…``."""

from __future__ import annotations

from typing import Any

from twisted.application.reactors import Reactor
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(
    IPlugin, IStreamServerEndpointStringParser, IStreamClientEndpointStringParserWithReactor
)
class _Parser:
    """Loads what it needs when it is asked."""

    prefix = "becket"

    def parseStreamServer(self, reactor: Any, *words: str, **named: str) -> Any:
        """An IStreamServerEndpoint."""
        from becket.twisted import endpoints

        return endpoints.ServerEndpoint(reactor, endpoints.endpoint_of(words, named))

    def parseStreamClient(self, reactor: Any, *words: str, **named: str) -> Any:
        """An IStreamClientEndpoint."""
        from becket.twisted import endpoints

        return endpoints.ClientEndpoint(reactor, endpoints.endpoint_of(words, named))


becket = Reactor("becket", "becket.twisted", "becket: transports in C, shared with asyncio")
becket_endpoints = _Parser()
