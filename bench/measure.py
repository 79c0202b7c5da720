"""One measurement: starts a server on one core and the load on another, and returns the figures.

bench/run.py calls one function a cell, echo() to micro(), each of which has a fresh server process.
Anything that goes wrong is a Failure with a reason to be shown; it ends this measurement only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import mail
import web
from loads import PATIENCE_SECONDS, Failure, on_core, run_to_end
from peers import Peer, asyncore_command, calibrate_command, twisted_command
from serving import Serving, Way

Sample = dict[str, float]
# In a closed loop with many connections one side is always working. Where neither was, another
# program had the core, and the figures are worth less.
UNDISTURBED = 0.9
START_SECONDS = 20
UDP_PEERS = 64  # each with one datagram on its way: a socket's room is several times that


@dataclass(frozen=True)
class Bench:
    """Where and how the measurements are made: programs, cores, windows."""

    load: Path
    seconds: float
    warmup: float
    server_core: int
    load_core: int
    scratch: Path
    pem: Path | None = None  # certificate and key, where TLS can be measured
    connections: int = 50
    opening: int = 32  # connections in flight where connections are what is counted
    idle: int = 5000
    quick: bool = False


@dataclass
class Server:
    pid: int
    endpoint: str  # as the load is told it
    errors: IO[bytes] = field(repr=False)

    def last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def resident(self) -> int:
        """Bytes; smaps_rollup is exact, where statm may lag behind."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
        raise Failure("the kernel does not tell the server's memory")

    def threads(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("Threads:"):
                return int(line.split()[1])
        raise Failure("the kernel does not tell the server's threads")


def allow_files(count: int) -> int:
    """Raises the limit on open files, for the children too, and returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for new in ((count, max(count, hard)), (min(count, hard), hard)):
        if soft >= count:
            break
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, new)
            soft = new[0]
    return soft


def free_endpoint(transport: str, scratch: Path) -> str:
    if transport == "unix":
        path = scratch / "socket"
        path.unlink(missing_ok=True)
        return f"unix:{path}"
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    with socket.socket(type=kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return f"{transport}:127.0.0.1:{sock.getsockname()[1]}"


def why_no_tls(load: Path) -> str | None:
    """Why TLS cannot be measured; None: it can."""
    answer = subprocess.run([load, "--version"], capture_output=True, text=True, check=False)
    if not answer.stdout.startswith("OpenSSL"):
        return "bench-load was built without OpenSSL (libssl-dev)"
    if not shutil.which("openssl"):
        return "there is no openssl command, which is to make the certificate"
    return None


def make_certificate(scratch: Path) -> Path:
    """A file of a certificate and its key: P-256, as most sites have, and signed by itself."""
    key, certificate, both = (scratch / f"{name}.pem" for name in ("key", "certificate", "site"))
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext"]
    command += ["subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    both.write_text(certificate.read_text() + key.read_text())
    return both


def read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """A line of its stdout; empty when it ended or took too long."""
    assert process.stdout
    readable, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if readable else b""


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """A server and its workers: they are a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def accepts(endpoint: str) -> bool:
    """Whether somebody listens there before long: of a server that does not say so."""
    host, port = endpoint.removeprefix("tcp:").split(":")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port))).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


@contextlib.contextmanager
def started(
    command: Sequence[str],
    endpoint: str,
    cores: Sequence[int],
    env: Mapping[str, str],
    silent: bool = False,
) -> Iterator[Server]:
    with tempfile.TemporaryFile() as errors, contextlib.ExitStack() as stack:
        with on_core(*cores):
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **env},
                process_group=0,
            )
        stack.enter_context(process)
        stack.callback(kill_all, process)
        server = Server(process.pid, endpoint, errors)
        if not (accepts(endpoint) if silent else read_line(process, START_SECONDS) == b"ready\n"):
            raise Failure(f"the server did not start: {server.last_words()}")
        yield server


@contextlib.contextmanager
def serving(
    bench: Bench, peer: Peer, kind: str, transport: str, env: Mapping[str, str]
) -> Iterator[Server]:
    endpoint = free_endpoint(transport, bench.scratch)
    listening = f"{endpoint}?{bench.pem}" if transport == "tls" else endpoint
    with started(peer.command(kind, listening), endpoint, [bench.server_core], env) as server:
        yield server


def load(bench: Bench, server: Server, mode: str, **options: float) -> Sample:
    """True is the value of options that have none."""
    arguments = {"seconds": bench.seconds, "warmup": bench.warmup, **options}
    command = [str(bench.load), mode, server.endpoint, "--server-pid", str(server.pid)]
    for name, value in arguments.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    patience = arguments["seconds"] + arguments["warmup"] + PATIENCE_SECONDS
    done = run_to_end(command, bench.load_core, patience)
    if not done.stdout:
        said = done.stderr.strip().removeprefix("bench-load: ")
        raise Failure(said or f"the load ended with status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    reason = result.pop("complaint")
    if result["errors"]:
        raise Failure(reason)
    sample = {name: float(value) for name, value in result.items()}
    sample["busy"] = max(sample["server_busy"], sample["load_busy"])
    return sample


def echo(bench: Bench, peer: Peer, kind: str, transport: str, size: int) -> Sample:
    with serving(bench, peer, kind, transport, {}) as server:
        return load(bench, server, "echo", size=size, connections=bench.connections)


def udp(bench: Bench, peer: Peer, kind: str, size: int) -> Sample:
    with serving(bench, peer, kind, "udp", {}) as server:
        return load(bench, server, "echo", size=size, connections=UDP_PEERS)


def connect(bench: Bench, peer: Peer, kind: str, transport: str) -> Sample:
    with serving(bench, peer, kind, transport, {}) as server:
        return load(bench, server, "connect", size=64, connections=bench.opening)


def active(bench: Bench, peer: Peer, kind: str, env: Mapping[str, str], idle: int) -> Sample:
    """The same connection alone, and among idle ones, on the same server."""
    with serving(bench, peer, kind, "tcp", env) as server:
        alone = load(bench, server, "active", idle=0)
        among = load(bench, server, "active", idle=idle)
    sample = {f"alone_{name}": value for name, value in alone.items()}
    sample.update(among)
    sample["idle"] = idle
    return sample


def idle(bench: Bench, peer: Peer, kind: str, transport: str) -> Sample:
    """Memory of an idle connection that has echoed a message. A little load goes before, so that
    what a library allocates once is not counted."""
    with serving(bench, peer, kind, transport, {}) as server:
        load(bench, server, "echo", seconds=0.2, warmup=0)
        time.sleep(0.2)
        before = server.resident()
        command = [str(bench.load), "idle", server.endpoint, "--idle", str(bench.idle)]
        pipe = subprocess.PIPE
        with (
            on_core(bench.load_core),
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as holder,
        ):
            if not read_line(holder, PATIENCE_SECONDS):
                holder.kill()
                _, complaint = holder.communicate()
                raise Failure(complaint.decode(errors="replace").strip() or "it took too long")
            time.sleep(0.2)
            after = server.resident()
            holder.communicate(b"\n")
    return {"bytes": (after - before) / bench.idle, "connections": bench.idle}


@contextlib.contextmanager
def most_threads(server: Server) -> Iterator[list[int]]:
    """The number of the server's threads, looked at ten times a second."""
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            seen.append(server.threads())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


@functools.cache
def count_of_a_millisecond(bench: Bench) -> str:
    """Calibrated once, so that all servers of a run compute the same."""
    return output(bench, calibrate_command()).strip()


def serve(bench: Bench, peer: Peer, way: Way, cell: Serving) -> Sample:
    """A server in one of a library's ways; its threads are counted meanwhile."""
    options = {**cell.load, **way.more, "seconds": max(bench.seconds, cell.seconds)}
    if cell.idle:
        options["idle"] = bench.idle
    cores = [bench.server_core, bench.load_core] if cell.cores else [bench.server_core]
    env = {"BENCH_COUNT": count_of_a_millisecond(bench)} if cell.cores else {}
    endpoint = free_endpoint("tcp", bench.scratch)
    with started(peer.way_command(way.way, endpoint), endpoint, cores, env) as server:
        with most_threads(server) as seen:
            sample = load(bench, server, cell.mode, **options)
    sample["threads"] = max(seen)
    if cell.cores:  # the load knows one process only
        for name in ("cpu_us", "user_us", "system_us"):
            del sample[name]
    if cell.cores or cell.waits:
        del sample["busy"]
    return sample


def mail_server(bench: Bench, label: str, cell: mail.MailCell) -> Sample:
    """smtp-sink says nothing when it is ready, so it is asked."""
    if label == mail.ONE:
        return mail.one_at_a_time(bench)
    tls = label.endswith(mail.TLS)
    endpoint = free_endpoint("tls" if tls else "tcp", bench.scratch)
    listening = f"{endpoint}?{bench.pem}" if tls else endpoint
    command = mail.command(label, bench.load.parent, listening) or []
    silent = label == mail.SINK
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        env = {"BENCH_MAILDIR": f"{folder}/box"} if cell.stored else {}
        with started(command, endpoint, [bench.server_core], env, silent) as server:
            return mail.measure(bench, server, cell)


def asyncore(bench: Bench, loop: str, idle: int) -> Sample:
    command = asyncore_command(loop, idle, bench.seconds, bench.load_core)
    sample: Sample = json.loads(output(bench, command))[loop]
    return sample


def web_server(bench: Bench, peer: Peer, kind: str) -> Sample:
    """A web server under wrk."""
    if why := web.why_not():
        raise Failure(why)
    with serving(bench, peer, kind, "tcp", {}) as server:
        return web.measure(bench, server)


def twisted(bench: Bench, peer: Peer, what: str) -> Sample:
    """Calls that a reactor of Twisted's is asked to make."""
    sample: Sample = json.loads(output(bench, twisted_command(peer.name, what, bench.seconds)))
    return sample


def output(bench: Bench, command: Sequence[str]) -> str:
    """What a program on the server's core says."""
    done = run_to_end(command, bench.server_core)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise Failure(lines[-1][:200] if lines else f"status {done.returncode}")
    return done.stdout


def micro(bench: Bench, peer: Peer) -> Sample:
    operations: dict[str, Sample] = json.loads(output(bench, peer.micro_command(bench.quick)))
    return {
        f"{operation}: {clock}": value
        for operation, clocks in operations.items()
        for clock, value in clocks.items()
    }
