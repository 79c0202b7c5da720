"""``becket:`` endpoints for Twisted: any of becket's, and of third parties', as a string.

``serverFromString(reactor, "becket:tls://:8443?cert=site.pem")`` and ``clientFromString(reactor,
"becket:unix:/run/app.sock")`` say after the word what docs/endpoints.md tells. Needs becket's
reactor.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

from twisted.internet import defer, error, interfaces
from twisted.python.failure import Failure
from zope.interface import implementer

from becket import _becket
from becket.twisted.adapter import Adapter, Address, address_of


def _loop_of(reactor: Any) -> Any:
    loop = getattr(reactor, "_becket", None)
    if loop is None:
        raise ValueError(
            f"becket: endpoints are for becket's reactor (becket.twisted.install()), not {reactor}"
        )
    return loop


def endpoint_of(words: tuple[str, ...], named: dict[str, str]) -> str:
    """What was written after ``becket:``, which Twisted has taken apart at : and =."""
    return ":".join([*words, *(f"{name}={value}" for name, value in named.items())])


@implementer(interfaces.IListeningPort)
class Port:
    """A listener of the core's."""

    def __init__(self, loop: Any, endpoint: str, factory: Any) -> None:
        self._loop, self._endpoint, self.factory = loop, endpoint, factory
        self._listener: Any = None

    def startListening(self) -> None:
        """Accept connections. CannotListenError: it cannot be had."""
        try:
            self._listener = _becket.Listener(
                self._loop, self._endpoint, lambda: Adapter(self.factory)
            )
        except OSError as e:
            raise error.CannotListenError(None, self._endpoint, e) from e
        self.factory.doStart()

    def stopListening(self) -> Any:
        """Accept no more."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            self.factory.doStop()
        return defer.succeed(None)

    def getHost(self) -> Any:
        """Where it listens."""
        name = self._listener.name if self._listener is not None else None
        found = re.search(r"//(?:\[(.*)\]|([^:]*)):(\d+)$", name or "")
        if found is None:
            return Address(name)
        host, port = found[1] or found[2], int(found[3])
        return address_of((host, port, 0, 0) if found[1] else (host, port))


@implementer(interfaces.IStreamServerEndpoint)
class ServerEndpoint:
    """Where to listen."""

    def __init__(self, reactor: Any, endpoint: str) -> None:
        self._loop, self._endpoint = _loop_of(reactor), endpoint

    def listen(self, protocolFactory: Any) -> Any:
        """A Deferred with an IListeningPort."""
        port = Port(self._loop, self._endpoint, protocolFactory)
        made = defer.execute(port.startListening)
        return made.addCallback(lambda _: port)


def _connect_failed(failure: Failure) -> Any:
    """In Twisted's words."""
    e = failure.value
    if isinstance(e, socket.gaierror):
        raise error.DNSLookupError(str(e)) from e
    if type(e).__module__ == "builtins" and isinstance(e, OSError) and e.errno:
        raise error.getConnectError((e.errno, e.strerror)) from e
    return failure


@implementer(interfaces.IStreamClientEndpoint)
class ClientEndpoint:
    """Where to connect."""

    def __init__(self, reactor: Any, endpoint: str) -> None:
        self._loop, self._endpoint = _loop_of(reactor), endpoint

    def connect(self, protocolFactory: Any) -> Any:
        """A Deferred with the protocol."""
        protocolFactory.doStart()
        connecting = self._loop.connect_endpoint(
            lambda: Adapter(protocolFactory, protocolFactory.doStop), self._endpoint
        )
        made = defer.Deferred.fromFuture(asyncio.ensure_future(connecting, loop=self._loop))

        def made_protocol(result: Any) -> Any:
            protocol = result[1].protocol
            if protocol is None:
                raise error.ConnectionAborted
            return protocol

        def give_up(failure: Failure) -> Any:
            protocolFactory.doStop()
            return failure

        return made.addErrback(_connect_failed).addCallback(made_protocol).addErrback(give_up)
