"""Twisted on becket's core: a reactor for any Twisted program.

``import becket.twisted; becket.twisted.install()`` before anything else imports the reactor, or
``trial --reactor=becket`` and ``twist --reactor=becket``. Needs Twisted: ``becket[twisted]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import becket
    from becket.twisted.reactor import BecketReactor as BecketReactor

__all__ = ["BecketReactor", "install"]


def install(loop: becket.EventLoop | None = None) -> None:
    """Make a BecketReactor the reactor of this process.

    *loop* is the event loop it is to share; by default the one that runs, or that asyncio has set
    for this thread, if it is a becket.EventLoop; else a new one, which asyncio's code then finds.
    twisted.internet.error.ReactorAlreadyInstalledError: there is a reactor already.
    """
    from becket.twisted import reactor

    reactor.install(loop)


def __getattr__(name: str) -> object:
    if name == "BecketReactor":  # importing Twisted takes its time
        from becket.twisted.reactor import BecketReactor

        return BecketReactor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
