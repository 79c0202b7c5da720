"""Twisted's UNIX sockets on becket's core."""

from __future__ import annotations

from twisted.internet.unix import Connector, Port, Server

__all__ = ["Connector", "Port", "Server"]
