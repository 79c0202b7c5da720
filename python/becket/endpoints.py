"""What an endpoint says, by the core's grammar. Called by becket.drivers and the
command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from becket import _becket


class Endpoint(NamedTuple):
    """An endpoint, in parts. Whether there is such a scheme, or option, is not known by this."""

    cover: str  # "tls" or "starttls" in tls+unix:…; tls://… is tls+tcp://…; "": none
    scheme: str
    options: Mapping[str, str]

    @property
    def is_single(self) -> bool:
        """Whether it brings one connection, whose end is that of the server."""
        return self.scheme in ("stdio", "process")

    @property
    def is_each_ones(self) -> bool:
        """Whether each process is to open it by itself."""
        return self.options.get("reuse_port") == "1"


def parse(text: str) -> Endpoint:
    """ValueError, with a mark under what is wrong."""
    word, options = _becket._parse_endpoint(text)
    cover, plus, scheme = word.partition("+")
    if plus:
        return Endpoint(cover, scheme, options)
    return Endpoint(word, "tcp", options) if word in COVERS else Endpoint("", word, options)


COVERS = ("tls", "starttls")
