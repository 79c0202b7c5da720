"""The web cells: a short answer of twisted.web's, uvicorn's or aiohttp's, asked for by wrk over 50
connections that are kept. bench/measure.py starts the server, and calls measure().
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import loads
from peers import HERE

if TYPE_CHECKING:
    from measure import Bench, Sample, Server

SCRIPT = HERE / "web.lua"


def why_not() -> str | None:
    """Why it cannot be measured; None: it can."""
    return None if shutil.which("wrk") else "wrk is not installed"


def load_command(bench: Bench, endpoint: str, seconds: int) -> list[str]:
    options = ["--threads", "1", "--connections", str(bench.connections)]
    options += ["--duration", f"{seconds}s", "--script", str(SCRIPT)]
    return ["wrk", *options, f"http://{endpoint.removeprefix('tcp:')}/"]


def measure(bench: Bench, server: Server) -> Sample:
    """wrk counts in whole seconds; the first is the warm-up."""
    for seconds in (1, max(1, round(bench.seconds))):
        command = load_command(bench, server.endpoint, seconds)
        load = loads.run(command, bench.load_core, server.pid)
    said = json.loads(load.said.splitlines()[-1])
    if said["errors"] or not said["requests"]:
        raise loads.Failure(f"of {said['requests']} requests {said['errors']} went wrong")
    times = {name: said[name] for name in ("p50_us", "p99_us")}
    return {**load.sample(said["requests"]), **times, "busy": load.busy}
