"""``Memory``: mail kept in memory, for developers and tests. The web page (page.py) shows it.

    memory = Memory()
    with Controller(memory, port=0) as controller: ...
    [message] = memory.messages()
    assert message.parsed["Subject"] == "hello"

Used as the handler of a server; thread-safe, so that servers and pages may run on loops of theirs.
"""

from __future__ import annotations

import email
import email.policy
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

from becket.smtp.store import content_of, login_of, peer_of, sender_of, text_of

MIB = 1024 * 1024


@dataclass(frozen=True, eq=False)
class Message:
    """A message that was received, with its envelope."""

    id: int  # from 1 up, in order of receipt
    content: bytes
    sender: str
    recipients: tuple[str, ...]
    received: datetime = field(default_factory=lambda: datetime.now(UTC))
    peer: str = ""  # the client's address
    helo: str = ""  # the name it gave
    login: str = ""  # who logged in
    secure: bool = False  # under TLS

    @property
    def parsed(self) -> EmailMessage:
        """The message, parsed anew each time, as it is the caller's."""
        message = email.message_from_bytes(self.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        return message


@dataclass(frozen=True)
class Change:
    """What subscribers are told: a message was added, or messages were removed."""

    added: Message | None = None
    removed: tuple[int, ...] = ()


class Memory:
    """At most *max_messages* messages of *max_bytes* together; when there are more, the oldest go.

    ValueError for limits below 1.
    """

    def __init__(self, max_messages: int = 1000, max_bytes: int = 256 * MIB) -> None:
        if max_messages < 1 or max_bytes < 1:
            raise ValueError("max_messages and max_bytes: at least 1 is needed")
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._messages: dict[int, Message] = {}  # the oldest first
        self._bytes = 0
        self._ids = itertools.count(1)
        self._subscribers: list[Callable[[Change], object]] = []
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<becket.smtp.Memory: {len(self)} messages, {self.size} bytes>"

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def size(self) -> int:
        """How many bytes all messages have."""
        return self._bytes

    # ---- A handler ----

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Keep a message."""
        content = content_of(envelope)
        if len(content) > self._max_bytes:
            return f"552 5.3.4 the message is larger than the store: {self._max_bytes} bytes"
        message = self.add(
            content,
            sender_of(text_of(envelope.mail_from)),
            map(text_of, envelope.rcpt_tos),
            peer=peer_of(session),
            helo=text_of(getattr(session, "host_name", None)),
            login=login_of(session),
            secure=getattr(session, "ssl", None) is not None,
        )
        return f"250 2.0.0 message {message.id} is in memory"

    # ---- A store ----

    def add(self, content: bytes, sender: str, recipients: Any, **more: Any) -> Message:
        """Keep a message; *more* are fields of Message. ValueError: it is too large."""
        if len(content) > self._max_bytes:
            raise ValueError(f"content: {len(content)} bytes are more than {self._max_bytes}")
        with self._lock:
            message = Message(next(self._ids), content, sender, tuple(recipients), **more)
            self._messages[message.id] = message
            self._bytes += len(content)
            gone = self._make_room()
            self._tell(Change(message, gone))
        return message

    def _make_room(self) -> tuple[int, ...]:
        gone = []
        while len(self._messages) > self._max_messages or self._bytes > self._max_bytes:
            oldest = next(iter(self._messages))
            self._bytes -= len(self._messages.pop(oldest).content)
            gone.append(oldest)
        return tuple(gone)

    def get(self, id: int) -> Message | None:
        """The message of that number, if it is still there."""
        return self._messages.get(id)

    def messages(self) -> list[Message]:
        """All of them, the newest first."""
        with self._lock:
            return list(reversed(self._messages.values()))

    def remove(self, id: int) -> bool:
        """Forget a message. False: there was none."""
        with self._lock:
            message = self._messages.pop(id, None)
            if message is None:
                return False
            self._bytes -= len(message.content)
            self._tell(Change(removed=(id,)))
            return True

    def clear(self) -> int:
        """Forget all; returns how many there were."""
        with self._lock:
            gone = tuple(self._messages)
            self._messages.clear()
            self._bytes = 0
            if gone:
                self._tell(Change(removed=gone))
            return len(gone)

    # ---- Live updates ----

    def subscribe(self, told: Callable[[Change], object]) -> Callable[[], None]:
        """Have *told* called at each change, in order, in the thread that makes it: it must not
        raise, nor wait. Returns a function that ends it."""
        with self._lock:
            self._subscribers.append(told)

        def unsubscribe() -> None:
            with self._lock:
                if told in self._subscribers:
                    self._subscribers.remove(told)

        return unsubscribe

    def _tell(self, change: Change) -> None:
        for told in list(self._subscribers):
            told(change)
