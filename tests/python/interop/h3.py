"""HTTP/3 with aioquic's parts: a client's protocol, and a small server's."""

from __future__ import annotations

import asyncio
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent

PIECE = 10_000


def client_configuration(authority: str | None) -> QuicConfiguration:
    """For a client that trusts an authority, or those of the system."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN)
    if authority is not None:
        configuration.load_verify_locations(authority)
    return configuration


class H3Protocol(QuicConnectionProtocol):
    """A connection; subclasses say what is done with the events of HTTP/3."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop = asyncio.get_running_loop()
        self.http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated) and self.http is None:
            self.http = H3Connection(self._quic)
        for happened in self.http.handle_event(event) if self.http is not None else ():
            self.http_event_received(happened)

    def http_event_received(self, event: H3Event) -> None:
        raise NotImplementedError

    def send(self, number: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a request or a response, its body in pieces."""
        assert self.http is not None
        self.http.send_headers(number, headers)
        for start in range(0, len(body), PIECE):
            self.http.send_data(number, body[start : start + PIECE], end_stream=False)
        self.http.send_data(number, b"", end_stream=True)
        self.transmit()


class H3Client(H3Protocol):
    """Asks, many times at once if need be."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)  # requests may go out before the handshake is over
        self._answers: dict[int, tuple[int, bytearray, asyncio.Future[tuple[int, bytes]]]] = {}

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Make a request; returns the status and the body of the answer."""
        number = self._quic.get_next_available_stream_id()
        answered: asyncio.Future[tuple[int, bytes]] = self.loop.create_future()
        self._answers[number] = 0, bytearray(), answered
        pseudo = {"method": method, "scheme": "https", "authority": "localhost", "path": path}
        headers = [(b":" + key.encode(), value.encode()) for key, value in pseudo.items()]
        self.send(number, headers, body)
        return await answered

    def http_event_received(self, event: H3Event) -> None:
        status, body, answered = self._answers[event.stream_id]
        if isinstance(event, HeadersReceived):
            status = int(dict(event.headers)[b":status"])
            self._answers[event.stream_id] = status, body, answered
        elif isinstance(event, DataReceived):
            body += event.data
        if event.stream_ended:
            answered.set_result((status, bytes(body)))


class H3Echo(H3Protocol):
    """Answers each request by its own body, /loop by the name of the loop's class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._requests: dict[int, tuple[bytes, bytearray]] = {}

    def http_event_received(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            self._requests[event.stream_id] = dict(event.headers)[b":path"], bytearray()
        path, body = self._requests[event.stream_id]
        if isinstance(event, DataReceived):
            body += event.data
        if event.stream_ended:
            answer = type(self.loop).__name__.encode() if path == b"/loop" else bytes(body)
            self.send(event.stream_id, [(b":status", b"200")], answer)
