"""The cells of serving: who takes part in each, in which way, and what becket is held to.

bench/run.py makes a cell of each entry of CELLS, bench/report.py shows whether TARGETS were met.
The ways are those of bench/servers/ways.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Load = Mapping[str, float | bool]  # options of bench-load
NEW: Load = {"size": 64, "connections": 32}
FEW: Load = {"size": 64, "connections": 16}
KEPT: Load = {"size": 1024, "connections": 50}


@dataclass(frozen=True)
class Way:
    """A server in a cell: a library, used in one of its ways, and what else the load is told."""

    label: str
    library: str
    way: str
    more: Load = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """What becket is held to: a bound of *metric*, or of its ratio to, or difference from, that of
    another way in the cell. A difference without a bound is to be within the rounds' spread."""

    label: str
    metric: str
    least: float | None = None
    most: float | None = None
    ratio_to: str = ""
    less: str = ""


@dataclass(frozen=True)
class Serving:
    """A cell. *seconds*: the least window; *rounds*: so many more of them, for small differences;
    *waits*: the load waits for something else than a core, so that neither side has to be busy;
    *cores*: the server has all of them, in several processes, and its CPU time is not measured."""

    mode: str
    load: Load
    ways: tuple[Way, ...]
    targets: tuple[Target, ...]
    unit: str = "message"
    seconds: float = 0.0
    rounds: int = 1
    idle: bool = False
    waits: bool = False
    cores: bool = False


def threads_ways(backlog: str) -> tuple[Way, ...]:
    return (
        Way("becket, threads:64", "becket", "threads"),
        Way("becket.socketserver", "becket", f"becket.socketserver{backlog}"),
        Way("socketserver", "socketserver", f"socketserver{backlog}"),
        Way("gevent", "gevent", f"gevent{backlog}"),
    )


def threads_targets(rate: bool) -> tuple[Target, ...]:
    ours = ("becket, threads:64", "becket.socketserver")
    faster = [Target(who, "rate", least=10, ratio_to="socketserver") for who in ours if rate]
    cheaper = [Target(who, "cpu_us", most=1, ratio_to="socketserver") for who in ours]
    return (*faster, *cheaper)


FORKS_WAYS = (
    Way("becket, loop", "becket", "compute"),
    Way("becket, forks:2", "becket", "compute, forks"),
    Way("socketserver, forking", "socketserver", "compute, socketserver"),
)
FORKS_TARGETS = (Target("becket, forks:2", "rate", least=1.7, ratio_to="becket, loop"),)
CREATED = Way("becket, create_server", "becket", "create_server")
SERVED = Way("becket.serve", "becket", "serve")
PROXIED = Way("becket.serve, PROXY v2", "becket", "serve, proxy", {"proxy": True})
SAME = (Target(SERVED.label, "cpu_us", less=CREATED.label),)
CELLS: dict[str, Serving] = {
    # The standard server's backlog of 5 overflows, and then clients wait for TCP to try again.
    "threads/connect": Serving(
        "connect",
        NEW,
        threads_ways(""),
        threads_targets(rate=True),
        unit="connection",
        seconds=3,
        waits=True,
    ),
    "threads/connect-1024": Serving(
        "connect", NEW, threads_ways(", backlog"), threads_targets(rate=True), unit="connection"
    ),
    "threads/kept": Serving("echo", KEPT, threads_ways(", backlog"), threads_targets(rate=False)),
    # All connections at once, and then kept: what a worker has accepted stays with it.
    "forks/compute": Serving("echo", FEW, FORKS_WAYS, FORKS_TARGETS, unit="request", cores=True),
    "forks/compute-new": Serving(
        "connect", FEW, FORKS_WAYS, FORKS_TARGETS, unit="connection", cores=True
    ),
    "blocking/idle": Serving(
        "echo",
        {**KEPT, "silent": True},
        (
            Way("becket, loop", "becket", "blocking"),
            Way("socketserver", "socketserver", "socketserver, backlog"),
            Way("gevent", "gevent", "gevent, backlog"),
        ),
        (
            Target("becket, loop", "threads", most=64 + 1 + 1),
            Target("becket, loop", "cpu_us", most=1, ratio_to="gevent"),
        ),
        idle=True,
    ),
    "serve/protocol": Serving("echo", KEPT, (CREATED, SERVED), SAME, rounds=3),
    "serve/connect": Serving("connect", NEW, (CREATED, SERVED), SAME, unit="connection", rounds=3),
    "serve/proxy": Serving(
        "connect",
        NEW,
        (SERVED, PROXIED),
        (Target(PROXIED.label, "cpu_us", most=1, less=SERVED.label),),
        unit="connection",
        rounds=3,
    ),
}

ASYNCORE_IDLE = 2000
ASYNCORE_LOOPS = ("becket, epoll", "becket, poll", "asyncore, poll2")
