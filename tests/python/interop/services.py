"""The servers of others that these tests start: PostgreSQL and Redis, from the distribution's
packages, each with its data in a folder of its own and at a free port of 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from interop.processes import PATIENCE, Server, find_program


def free_port() -> int:
    """One that was free a moment ago: neither server can choose one itself."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def certificates(tls, folder: Path) -> tuple[Path, Path, Path]:
    """Copies of the server's certificate and key and of the authority's certificate."""
    names = ("server.crt", "server.key", "ca.crt")
    for name in names:
        shutil.copy(tls.path(name), folder / name)
        (folder / name).chmod(0o600)
    return folder / names[0], folder / names[1], folder / names[2]


def find_postgresql() -> Path:
    """The folder of its newest version's programs, most of which are not in PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    return found[-1].parent if found else Path(find_program("initdb")).parent


@contextmanager
def own_folder(user: str | None) -> Iterator[Path]:
    """A folder in which UNIX sockets can be, and which belongs to a user."""
    with tempfile.TemporaryDirectory(prefix="bk-") as folder:
        if user is not None:
            shutil.chown(folder, user)
        yield Path(folder)


class Service(Server):
    """A server of others: what it says, it says to itself."""

    def __init__(self, folder: Path, command: Sequence[object], user: str | None = None) -> None:
        """``PORT`` in the *command* stands for a free port."""
        self.folder, self.port = folder, free_port()
        words = [str(word).replace("PORT", str(self.port)) for word in command]
        super().__init__(command=words, user=user, expected=".*")


def start(folder: Path, command: Sequence[object], user: str | None = None) -> Service:
    """Start a service and wait until it serves; another may take its port before it does, so that
    it has to try the next."""
    for _ in range(10):
        service = Service(folder, command, user)
        try:
            service.wait_for("eady to accept connections")
            return service
        except AssertionError as error:
            service.end(signal.SIGKILL)
            service.process.stdout.close()
            if "in use" not in str(error):
                raise
    raise AssertionError("no port could be had")


@contextmanager
def postgresql(tls) -> Iterator[Service]:
    """A PostgreSQL with the database and the user postgres; by TLS too, and at a UNIX socket in
    its folder. It refuses to be root's: then it is another user's."""
    programs = find_postgresql()
    user = "nobody" if os.getuid() == 0 else None
    with own_folder(user) as folder:
        certificate, key, _ = certificates(tls, folder)
        if user is not None:
            for path in (certificate, key):
                shutil.chown(path, user)
        data = folder / "data"
        subprocess.run(
            [programs / "initdb", "--no-sync", "--auth=trust", "--username=postgres",
             "--encoding=UTF8", "--locale=C", data],
            check=True, user=user, stdout=subprocess.DEVNULL, timeout=PATIENCE, cwd=folder,
        )  # fmt: skip
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": folder,
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": certificate,
            "ssl_key_file": key,
        }
        options = [word for item in settings.items() for word in ("-c", "{}={}".format(*item))]
        command = [programs / "postgres", "-D", data, "-p", "PORT", *options]
        with start(folder, command, user) as service:
            yield service


@contextmanager
def redis(tls) -> Iterator[Service]:
    """A Redis that keeps nothing; by TLS too, at the port ``tls_port``, and at the UNIX socket
    ``redis.sock`` in its folder."""
    program = find_program("redis-server")
    with own_folder(None) as folder:
        certificate, key, authority = certificates(tls, folder)
        tls_port = free_port()
        settings = {
            "bind": "127.0.0.1",
            "port": "PORT",
            "unixsocket": folder / "redis.sock",
            "dir": folder,
            "save": "",
            "tls-port": tls_port,
            "tls-cert-file": certificate,
            "tls-key-file": key,
            "tls-ca-cert-file": authority,
            "tls-auth-clients": "no",
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with start(folder, [program, *options]) as service:
            service.tls_port = tls_port
            yield service
