"""Lets ``trial --reactor=becket`` and ``twist --reactor=becket`` find becket's reactor."""

from twisted.application.reactors import Reactor

becket = Reactor("becket", "becket.twisted", "becket: transports in C, shared with asyncio")
