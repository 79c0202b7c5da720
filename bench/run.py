#!/usr/bin/env python3
"""Compares becket with the libraries that do the same work, in one run on one machine.

Each measurement is a fresh server on one core and the load generator on another. Rounds are
interleaved: all libraries are measured once in a cell, then all of them again, so that what the
machine does meanwhile falls on all alike. The table shows medians, with the least and the greatest.

Writes latest.json, latest.md and latest.png to bench/results/. bench/README.md says what the
numbers mean, and what they do not.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import platform
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mail
import measure
import peers
import report
import serving
from loads import Failure
from measure import Bench, Sample
from peers import Peer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "release" / "bench"
PLAIN_AND_TLS = ("tcp", "unix", "tls")
KINDS = ("protocol", "buffered", "streams", "c")
TLS_KIB = {"protocol": (1, 10, 100), "buffered": (1,), "streams": (1,), "c": (1, 100)}
QUICK = (
    "protocol/tcp/1KiB",
    "protocol/tls/1KiB",
    "streams/tcp/1KiB",
    "c/tcp/1KiB",
    "threads/kept",
    "micro",
)
SELECT_IDLE = 900  # select() cannot watch descriptors above 1023
FULL_IDLE = 5000

Results = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Contestant:
    """A library in one cell: becket may come several times there, with different notifiers."""

    label: str
    peer: Peer
    kind: str
    env: dict[str, str] = field(default_factory=dict)
    idle: int = FULL_IDLE


@dataclass(frozen=True)
class Cell:
    name: str
    what: str  # echo, udp, web, connect, idle, active, micro, serving or asyncore
    kind: str  # as in KINDS; or "python": each library in its usual way; "all": and becket in C
    transport: str = "tcp"
    size: int = 1024

    def takes(self, peer: Peer) -> bool:
        if self.what == "micro":
            return not peer.in_c and peer.name in peers.FAMILY
        if self.transport == "tls" and peer.name == peers.TLS_FLOOR:
            return True  # beside the Python libraries too, as all are compared with it
        if self.kind in ("python", "all"):
            usual = peer.plays(peer.usual_kind, self.transport) and peer.usual_kind != "twisted"
            return usual and (not peer.in_c or (self.kind == "all" and peer.name == "becket"))
        return peer.plays(self.kind, self.transport)

    def contestants(self, present: list[Peer]) -> Iterator[Contestant]:
        for peer in filter(self.takes, present):
            kind = self.kind if self.kind in peer.kinds else peer.usual_kind
            beside = self.kind == "all" and peer.in_c and peer.name not in peers.FLOORS
            yield Contestant(f"{peer.name} (C)" if beside else peer.name, peer, kind)
            if self.what == "active" and peer.name == "becket":
                for notifier, idle in (("poll", FULL_IDLE), ("select", SELECT_IDLE)):
                    env = {"BECKET_NOTIFIER": notifier}
                    yield Contestant(f"becket ({notifier})", peer, kind, env, idle)

    def measure(self, bench: Bench, who: Contestant) -> Sample:
        if self.what == "echo":
            return measure.echo(bench, who.peer, who.kind, self.transport, self.size)
        if self.what == "udp":
            return measure.udp(bench, who.peer, who.kind, self.size)
        if self.what == "web":
            return measure.web_server(bench, who.peer, who.kind)
        if self.what == "connect":
            return measure.connect(bench, who.peer, who.kind, self.transport)
        if self.what == "idle":
            return measure.idle(bench, who.peer, who.kind, self.transport)
        if self.what == "active":
            return measure.active(bench, who.peer, who.kind, who.env, min(who.idle, bench.idle))
        return measure.micro(bench, who.peer)

    def estimate(self, bench: Bench) -> float:
        """Seconds of one measurement; the ETA is corrected as the run goes on."""
        window = bench.seconds + bench.warmup
        if self.what == "micro":
            return 2 if bench.quick else 6
        return {"idle": 3.0, "active": 3 + 2 * window, "web": 3.0}.get(self.what, 0.5 + window)


class ServingCell(Cell):
    """A cell of bench/serving.py: who takes part, in which way, stands there."""

    @property
    def serving(self) -> serving.Serving:
        return serving.CELLS[self.name]

    def contestants(self, present: list[Peer]) -> Iterator[Contestant]:
        here = {peer.name: peer for peer in present if not peer.in_c}
        for way in self.serving.ways:
            if way.library in here:
                yield Contestant(way.label, here[way.library], way.way)

    def measure(self, bench: Bench, who: Contestant) -> Sample:
        (way,) = (way for way in self.serving.ways if way.label == who.label)
        return measure.serve(bench, who.peer, way, self.serving)

    def estimate(self, bench: Bench) -> float:
        opening = 2.0 if self.serving.idle else 0.5
        return opening + max(bench.seconds, self.serving.seconds) + bench.warmup


class AsyncoreCell(Cell):
    """asyncore's dispatchers, on its own loop and on becket's; the peer is the standard library,
    or pyasyncore where that has it no more."""

    def contestants(self, present: list[Peer]) -> Iterator[Contestant]:
        for peer in present:
            if peer.name == "becket" and not peer.in_c:
                for loop in serving.ASYNCORE_LOOPS:
                    yield Contestant(loop, peer, "", idle=serving.ASYNCORE_IDLE)

    def measure(self, bench: Bench, who: Contestant) -> Sample:
        return measure.asyncore(bench, who.label, min(who.idle, bench.idle))

    def estimate(self, bench: Bench) -> float:
        return 0.5 + bench.seconds


class MailCell(Cell):
    """A cell of bench/mail.py; who takes part stands there."""

    @property
    def mail(self) -> mail.MailCell:
        return mail.CELLS[self.name]

    def contestants(self, present: list[Peer]) -> Iterator[Contestant]:
        """becket and its like where they were asked for; smtp-sink, which is none, always."""
        wanted = {peer.name for peer in present}
        for label in mail.labels(self.mail, BUILD):
            name = label.partition(",")[0].removesuffix(" (C)")
            if name in wanted or name not in peers.known():
                yield Contestant(label, Peer(label, "", (), ()), "")

    def measure(self, bench: Bench, who: Contestant) -> Sample:
        return measure.mail_server(bench, who.label, self.mail)

    def estimate(self, bench: Bench) -> float:
        return 1.5 + bench.seconds


class TwistedCell(Cell):
    """Calls that Twisted's reactors are asked to make: the name ends with which."""

    def takes(self, peer: Peer) -> bool:
        return peer.plays("twisted", "tcp")

    def measure(self, bench: Bench, who: Contestant) -> Sample:
        return measure.twisted(bench, who.peer, self.name.rpartition("/")[2])

    def estimate(self, bench: Bench) -> float:
        return 0.5 + bench.seconds


def all_cells() -> list[Cell]:
    cells = [
        Cell(f"{kind}/{transport}/{size}KiB", "echo", kind, transport, size * 1024)
        for kind in KINDS
        for transport in ("tcp", "unix", "tls")
        for size in (TLS_KIB[kind] if transport == "tls" else (1, 10, 100))
    ]
    cells.append(Cell("udp/echo", "udp", "protocol", "udp", 64))
    for what in ("connect", "idle", "active"):
        cells += [Cell(f"{what}/{kind}", what, kind) for kind in ("python", "c")]
        if what != "active":
            cells.append(Cell(f"{what}/tls", what, "all", "tls"))
    cells += [ServingCell(name, "serving", "") for name in serving.CELLS]
    cells.append(AsyncoreCell("asyncore", "asyncore", ""))
    cells += [
        MailCell(name, "mail", "", "tls" if cell.own else "tcp")
        for name, cell in mail.CELLS.items()
    ]
    cells += [Cell(f"twisted/{name}/1KiB", "echo", "twisted", name) for name in PLAIN_AND_TLS]
    cells.append(Cell("twisted/web", "web", "web"))
    calls = ("callLater", "callFromThread")
    cells += [TwistedCell(f"twisted/{name}", "twisted", "twisted") for name in calls]
    cells += [Cell(f"web/{name}", "web", name) for name in ("uvicorn", "aiohttp")]
    return [*cells, Cell("micro", "micro", "python")]


def summary(samples: list[Sample]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
        }
        for name in samples[0]
        for values in [[sample[name] for sample in samples]]
    }


def brief(cell: Cell, sample: Sample) -> str:
    """A measurement in a few words, for the line that shows progress."""
    if cell.what == "idle":
        return f"{sample['bytes']:8.0f} bytes a connection"
    if cell.what == "micro":
        return f"{sample['call_soon, many a turn: cpu_ns']:8.0f} ns call_soon"
    if "user_us" not in sample:
        cpu = f", {sample['cpu_us']:7.2f} us CPU each" if "cpu_us" in sample else ""
        return f"{sample['rate']:8.0f}/s{cpu}"
    per = f"{sample['user_us']:7.2f} us user, {sample['cpu_us']:7.2f} us CPU each"
    if cell.what == "active":
        return f"{per}; alone {sample['alone_cpu_us']:.2f} us CPU"
    note = "  (disturbed)" if sample.get("busy", 1) < measure.UNDISTURBED else ""
    return f"{sample['rate']:8.0f}/s, {per}{note}"


class Progress:
    """A line for each measurement, with the time that is left."""

    def __init__(self, total: int, expected: float) -> None:
        self.total = total
        self.done = 0
        self.expected = expected
        self.expected_done = 0.0
        self.start = time.monotonic()

    def tell(self, cell: Cell, label: str, number: int, text: str, estimate: float) -> None:
        self.done += 1
        self.expected_done += estimate
        spent = time.monotonic() - self.start
        left = (self.expected - self.expected_done) * spent / self.expected_done
        eta = f"{int(left) // 60}:{int(left) % 60:02}"
        where = f"[{self.done:>{len(str(self.total))}}/{self.total}] {eta:>5} left"
        print(f"{where}  {cell.name:<20} {number}  {label:<22} {text}", flush=True)


def rounds_of(cell: Cell, options: argparse.Namespace) -> int:
    """Memory does not vary as time does: once is enough. A small difference takes more."""
    if isinstance(cell, ServingCell):
        return int(options.rounds) * cell.serving.rounds
    return 1 if cell.what == "idle" else int(options.rounds)


def run_cell(
    cell: Cell,
    contestants: list[Contestant],
    rounds: int,
    once: Callable[[Contestant, int], Sample | str],
) -> dict[str, dict[str, Any]]:
    samples: dict[str, list[Sample]] = {who.label: [] for who in contestants}
    failures: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for who in contestants:
            result = once(who, number)
            if isinstance(result, str):
                failures[who.label] = result
            else:
                samples[who.label].append(result)
    return {
        label: {
            **({"rounds": len(got), "metrics": summary(got)} if got else {}),
            **({"failed": failures[label]} if label in failures else {}),
        }
        for label, got in samples.items()
    }


def run(
    cells: list[Cell], present: list[Peer], bench: Bench, options: argparse.Namespace, into: Results
) -> None:
    """Fills `into` cell by cell, so that what was measured before an interrupt is kept."""
    plan = [(cell, list(cell.contestants(present))) for cell in cells]
    plan = [(cell, who) for cell, who in plan if who]
    counts = [(cell, len(who) * rounds_of(cell, options)) for cell, who in plan]
    expected = sum(n * cell.estimate(bench) for cell, n in counts)
    progress = Progress(sum(n for _, n in counts), expected)
    print(f"{progress.total} measurements, about {expected / 60:.0f} minutes")
    for cell, contestants in plan:
        failed: dict[str, str] = {}

        def once(
            who: Contestant, number: int, cell: Cell = cell, failed: dict[str, str] = failed
        ) -> Sample | str:
            result: Sample | str
            if who.label in failed:  # it would fail again, and slowly
                result = failed[who.label]
            else:
                try:
                    result = cell.measure(bench, who)
                except Failure as failure:
                    result = failed[who.label] = str(failure)
            text = f"FAILED: {result}" if isinstance(result, str) else brief(cell, result)
            progress.tell(cell, who.label, number, text, cell.estimate(bench))
            return result

        into[cell.name] = run_cell(cell, contestants, rounds_of(cell, options), once)


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def facts(
    present: list[Peer], missing: dict[str, str], bench: Bench, rounds: int
) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "revision": revision(),
        "load average before": round(os.getloadavg()[0], 2),
        "rounds": rounds,
        "seconds": bench.seconds,
        "warm-up": bench.warmup,
        "connections": bench.connections,
        "idle connections": bench.idle,
        "quick": bench.quick,
        "same core": bench.server_core == bench.load_core,
        "TLS": ssl.OPENSSL_VERSION + " in Python; TLS 1.3, AES-128-GCM, X25519, P-256",
        "versions": {p.name + (" (C)" if p.in_c else ""): p.version for p in present},
        "missing": missing,
    }


def positive(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 600:
        raise argparse.ArgumentTypeError("from 0.05 to 600")
    return value


def count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError("from 1 to 1000")
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  %(prog)s --quick                                  does it work? (under two minutes)
  %(prog)s --cells 'protocol/tcp/*' --rounds 5      some cells, more carefully
  %(prog)s --cells 'active/*,idle/*' --libraries becket,uvloop,libuv
  %(prog)s --list                                   the cells, and who is installed""",
    )
    parser.add_argument("--quick", action="store_true", help="few cells, short windows, one round")
    parser.add_argument("--cells", metavar="GLOB", help="cells to measure, separated by commas")
    parser.add_argument("--libraries", metavar="LIST", help="libraries, separated by commas (all)")
    parser.add_argument("--rounds", metavar="N", type=count, help="rounds (3; 1 when quick)")
    parser.add_argument("--seconds", metavar="S", type=positive, help="window (1.25; 0.8 quick)")
    parser.add_argument(
        "--build",
        metavar="DIR",
        type=Path,
        default=BUILD,
        help="where the C programs are (build/release/bench)",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, default=HERE / "results")
    parser.add_argument("--list", action="store_true", help="say what would be measured, and end")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.8 if options.quick else 1.25)
    options.load = options.build / "bench-load"
    options.libraries = [name.strip() for name in (options.libraries or "").split(",") if name]
    for name in options.libraries:
        if name not in peers.known():
            parser.error(f"no library {name!r}; there are {', '.join(peers.known())}")
    patterns = options.cells.split(",") if options.cells else QUICK if options.quick else ["*"]
    names = [cell.name for cell in all_cells()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            parser.error(f"no cell {pattern!r}; --list shows them")
    options.cells = [
        cell for cell in all_cells() if any(fnmatch.fnmatch(cell.name, p) for p in patterns)
    ]
    return options


def leave_out_tls(options: argparse.Namespace, missing: dict[str, str]) -> None:
    """Where it cannot be measured, its cells are left out, and the results say why."""
    if options.load.exists() and (why := measure.why_no_tls(options.load)):
        options.cells = [cell for cell in options.cells if cell.transport != "tls"]
        missing["the TLS cells"] = why


def make_bench(options: argparse.Namespace, scratch: Path) -> Bench:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        print("There is one core only: server and load share it, and the rates mean little.")
    files = measure.allow_files(FULL_IDLE + 500)
    idle = min(FULL_IDLE, files - 500)
    if idle < FULL_IDLE:
        print(f"The limit on open files allows {idle} idle connections, not {FULL_IDLE}.")
    tls = any(cell.transport == "tls" for cell in options.cells)
    return Bench(
        load=options.load,
        seconds=options.seconds,
        warmup=0.3,
        server_core=cores[0],
        load_core=cores[-1] if len(cores) < 3 else cores[1],
        scratch=scratch,
        pem=measure.make_certificate(scratch) if tls else None,
        idle=idle,
        quick=options.quick,
    )


def show_list(cells: list[Cell], present: list[Peer], missing: dict[str, str]) -> None:
    for cell in cells:
        print(f"{cell.name:<20} {', '.join(who.label for who in cell.contestants(present))}")
    for name, why in missing.items():
        print(f"not installed: {name} ({why})")


def main() -> int:
    options = parse()
    present, missing = peers.find(options.build, options.libraries)
    leave_out_tls(options, missing)
    if options.list:
        show_list(options.cells, present, missing)
        return 0
    for name, why in missing.items():
        print(f"Not installed, and left out: {name} ({why})")
    if not options.load.exists() and any(cell.what != "micro" for cell in options.cells):
        print(f"There is no {options.load}; `make bench` builds it.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = make_bench(options, Path(scratch))
        known = facts(present, missing, bench, options.rounds)
        results: Results = {}
        try:
            run(options.cells, present, bench, options, results)
        except KeyboardInterrupt:
            print("\nInterrupted; what was measured so far is kept.")
            known["interrupted"] = True
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"facts": known, "cells": results}, indent=1)
    (options.output / "latest.json").write_text(text + "\n")
    report.write(options.output, known, results)
    return 130 if "interrupted" in known else 0


if __name__ == "__main__":
    sys.exit(main())
