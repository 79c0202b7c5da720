"""becket's event loop policy, for programs that take no loop factory: becket.EventLoopPolicy and
becket.install().

Loaded only when one of them is asked for: asyncio's policies are deprecated from Python 3.14 on,
and go in 3.16.
"""

from __future__ import annotations

import asyncio
import sys

from becket.loop import EventLoop

if sys.version_info >= (3, 14):  # its public name warns
    from asyncio.unix_events import _DefaultEventLoopPolicy as _Base
else:
    _Base = asyncio.DefaultEventLoopPolicy


class EventLoopPolicy(_Base):
    """asyncio's own policy, but that its loops are becket.EventLoop.

    For ``asyncio.set_event_loop_policy(becket.EventLoopPolicy())``.
    """

    _loop_factory = EventLoop


def install() -> None:
    """Let asyncio make a becket.EventLoop wherever it is not told which: in asyncio.run(),
    asyncio.new_event_loop(), asyncio.Runner().

    For older programs; new ones had better say becket.run(), or give a loop factory. From Python
    3.14 on this warns as asyncio.set_event_loop_policy() does.
    """
    asyncio.set_event_loop_policy(EventLoopPolicy())
