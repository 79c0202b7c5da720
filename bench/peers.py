"""Who takes part: becket, and whatever is installed of the libraries it is compared with.

bench/run.py asks find() once, and gets those that are here and, by name, why the others are not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON_SERVER = HERE / "servers" / "python_server.py"
WAYS_SERVER = HERE / "servers" / "ways.py"
MICRO = HERE / "micro.py"
ASYNCORE = HERE / "asyncore_idle.py"
TWISTED_CALLS = HERE / "twisted_calls.py"

sys.path.insert(0, str(PYTHON_SERVER.parent))
from python_server import FAMILY, KINDS, TWISTED, WITH_UDP, WITHOUT_TLS  # noqa: E402

# What is imported for a library, where that is not its name; the last is what has the version.
IMPORTS = {
    "aiofastnet+uvloop": ("uvloop", "aiofastnet"),
    "socketserver": (),
    "asyncio": (),
    "twisted+becket": ("becket", "twisted"),
    "twisted+asyncio+becket": ("becket", "twisted"),
}
# What is imported besides, and for nothing but TLS.
TLS_IMPORTS = dict.fromkeys(TWISTED, ("OpenSSL", "service_identity"))
PLAIN = ("tcp", "unix")
C_SERVERS = {  # with the transports they have
    "becket": (*PLAIN, "tls"),
    "libuv": PLAIN,
    "libevent": PLAIN,
    "libevent-buffered": PLAIN,
    "libevent-openssl": ("tls",),
    "epoll": PLAIN,
    "openssl": ("tls",),
}
# No library at all: shown beside the others, but not a peer to be compared with.
TLS_FLOOR = "openssl"
FLOORS = ("epoll", TLS_FLOOR)


@dataclass(frozen=True)
class Peer:
    """A library, with the kinds of server (protocol, buffered, streams, c) it can be written as."""

    name: str
    version: str
    kinds: tuple[str, ...]
    transports: tuple[str, ...]
    program: str = ""  # of a C server

    @property
    def in_c(self) -> bool:
        return self.kinds == ("c",)

    def command(self, kind: str, endpoint: str) -> list[str]:
        if self.in_c:
            return [self.program, endpoint]
        server = str(PYTHON_SERVER)
        return [sys.executable, server, "--library", self.name, "--kind", kind, endpoint]

    def way_command(self, way: str, endpoint: str) -> list[str]:
        """A server of a serving cell: bench/serving.py says which ways a library has."""
        return [sys.executable, str(WAYS_SERVER), "--way", way, endpoint]

    def micro_command(self, quick: bool) -> list[str]:
        more = ["--quick"] if quick else []
        return [sys.executable, str(MICRO), "--library", self.name, *more]

    def plays(self, kind: str, transport: str) -> bool:
        return kind in self.kinds and transport in self.transports

    @property
    def usual_kind(self) -> str:
        """How a server is written where a cell does not say: as a protocol, where there is one."""
        return self.kinds[0]


def python_peer(name: str) -> Peer:
    """Raises ImportError where it is not installed."""
    version = platform.python_version()
    for module in IMPORTS.get(name, (name,)):
        importlib.import_module(module)
        version = importlib.metadata.version(module)
    if name == "becket" and not hasattr(importlib.import_module(name), "EventLoop"):
        raise ImportError("it has no EventLoop")
    transports = ["tcp"] if name == "rloop" else [*PLAIN]  # no UNIX servers: NotImplementedError
    if why_without_tls(name) is None:
        transports.append("tls")
    if name in WITH_UDP:
        transports.append("udp")
    return Peer(name, version, tuple(KINDS[name]), tuple(transports))


def why_without_tls(name: str) -> str | None:
    """Why a Python library that is here is left out where TLS is measured; None: it is not."""
    if name in WITHOUT_TLS:
        return "it has no TLS servers"
    try:
        for module in TLS_IMPORTS.get(name, ()):
            importlib.import_module(module)
    except ImportError as error:
        return str(error)
    return None


def c_peer(name: str, build: Path) -> Peer:
    """Raises OSError where it was not built."""
    program = build / f"bench-{name}"
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    version = answer.stdout.strip().rpartition(" ")[2]
    version = platform.release() if name == "epoll" else version
    return Peer(name, version, ("c",), C_SERVERS[name], str(program))


def calibrate_command() -> list[str]:
    return [sys.executable, str(WAYS_SERVER), "--calibrate"]


def asyncore_command(loop: str, idle: int, seconds: float, core: int) -> list[str]:
    """One of the loops that asyncore's dispatchers can be run by; the peer is on *core*."""
    options = ["--loop", loop, "--idle", str(idle), "--seconds", str(seconds)]
    return [sys.executable, str(ASYNCORE), *options, "--peer-core", str(core)]


def twisted_command(library: str, what: str, seconds: float) -> list[str]:
    """Calls that one of Twisted's reactors is asked to make."""
    options = ["--library", library, "--what", what, "--seconds", str(seconds)]
    return [sys.executable, str(TWISTED_CALLS), *options]


def find(build: Path, wanted: Sequence[str]) -> tuple[list[Peer], dict[str, str]]:
    """Those that are here, and why others are not. An empty `wanted` means all."""
    present: list[Peer] = []
    missing: dict[str, str] = {}
    for name in KINDS:
        if not wanted or name in wanted:
            try:
                present.append(python_peer(name))
            except ImportError as error:
                missing[name] = str(error)
                continue
            if name in TLS_IMPORTS and (why := why_without_tls(name)):
                missing[f"{name} with TLS"] = why
    for name in C_SERVERS:
        if not wanted or name in wanted:
            try:
                present.append(c_peer(name, build))
            except OSError:
                missing[f"{name} (C)"] = f"bench-{name} was not built"
    return present, missing


def known() -> list[str]:
    return sorted({*KINDS, *C_SERVERS})


__all__ = [
    "FAMILY",
    "FLOORS",
    "TLS_FLOOR",
    "Peer",
    "asyncore_command",
    "calibrate_command",
    "find",
    "known",
    "twisted_command",
]
