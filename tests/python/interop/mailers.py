"""The mail servers of others that our client sends to: Postfix and its smtp-sink, Dovecot's LMTP,
each with all its files in a folder of its own, and at a free port of 127.0.0.1 or a UNIX socket."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from interop.processes import PATIENCE, Server, environment_of_others, find_program
from interop.services import free_port


def wait_until(found: Callable[[], object], what: str) -> None:
    """Others tell nobody when they are done."""
    deadline = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def needs_root() -> None:
    """Postfix and Dovecot change to users of their own."""
    if os.geteuid() != 0:
        pytest.skip("only root can start it")


# ---- smtp-sink -----------------------------------------------------------------------------------


class Sink(Server):
    """Postfix's smtp-sink; each message it took is a file."""

    def __init__(self, folder: Path, *options: object) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir()
        user = ("-u", "root") if os.geteuid() == 0 else ()
        super().__init__(
            *options,
            *user,
            "-d",
            folder / "%M.",
            f"127.0.0.1:{self.port}",
            100,
            command=[find_program("smtp-sink")],
            expected=".*",
            status=-2,
        )

    def __enter__(self) -> Sink:
        wait_for_port(self.port, self)
        return self

    def messages(self) -> list[str]:
        """What it keeps: a few lines of its own, then the message."""
        return [
            text
            for file in self.folder.iterdir()
            for text in [file.read_text(encoding="latin-1")]
            if "X-Rcpt-Args" in text
        ]


def wait_for_port(port: int, server: Server) -> None:
    import socket

    def there() -> bool:
        assert server.process.poll() is None, server.output
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    wait_until(there, f"nobody listens at {port}")


# ---- Postfix -------------------------------------------------------------------------------------

MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
smtp unix - - n - - smtp
lmtp unix - - n - - lmtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"""

MAIN_CF = """\
compatibility_level = 3.6
maillog_file = {folder}/log/mail
maillog_file_prefixes = {folder}/log
queue_directory = {folder}/queue
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = {daemons}
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.test.example
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
virtual_mailbox_domains = test.example
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = inline:{{ {{ you@test.example = you/ }}, {{ her@test.example = her/ }},
  {{ jörg@test.example = utf8/ }} }}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
smtpd_tls_cert_file = {folder}/server.crt
smtpd_tls_key_file = {folder}/server.key
smtpd_tls_security_level = may
smtpd_recipient_restrictions = reject_unauth_destination
smtpd_peername_lookup = no
smtputf8_enable = yes
local_header_rewrite_clients =
message_size_limit = 3000000
"""


class Postfix:
    """A whole Postfix, from main.cf on; its mail ends in Maildirs."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            [find_program("postfix"), "-c", str(self.folder / "etc"), *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=environment_of_others(),
        )
        assert done.returncode == 0, done.stderr + self.log()

    def log(self) -> str:
        """What it says."""
        file = self.folder / "log" / "mail"
        return file.read_text() if file.exists() else ""

    def wait_for(self, user: str, count: int) -> list[bytes]:
        """The messages in a Maildir, when they are so many."""
        new = self.folder / "mail" / user / "new"
        wait_until(lambda: new.exists() and len(list(new.iterdir())) >= count, self.log())
        return [file.read_bytes() for file in new.iterdir()]


@contextmanager
def postfix(folder: Path, tls) -> Iterator[Postfix]:
    """One that listens at a port of 127.0.0.1. Its folder must be one that its users can enter."""
    find_program("postfix")
    needs_root()
    owner = pwd.getpwnam("postfix")
    daemons = next(p for p in ("/usr/lib/postfix/sbin", "/usr/libexec/postfix") if Path(p).is_dir())
    for name in ("etc", "queue", "data", "log", "mail"):
        (folder / name).mkdir()
    os.chown(folder / "data", owner.pw_uid, owner.pw_gid)
    os.chown(folder / "mail", owner.pw_uid, owner.pw_gid)
    for name in ("server.crt", "server.key"):
        shutil.copy(tls.path(name), folder / name)
    self = Postfix(folder, free_port())
    settings = {"folder": folder, "daemons": daemons, "uid": owner.pw_uid, "gid": owner.pw_gid}
    (folder / "etc" / "main.cf").write_text(MAIN_CF.format(**settings), encoding="utf-8")
    (folder / "etc" / "master.cf").write_text(MASTER_CF.format(port=self.port))
    try:
        self._run("start")
        yield self
    finally:
        self._run("stop")


# ---- Dovecot -------------------------------------------------------------------------------------

DOVECOT_CONF = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols = lmtp
ssl = no
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
mail_location = maildir:{folder}/mail/%n
first_valid_uid = 1
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={folder}/mail/%n allow_all_users={all}
}}
service lmtp {{
  chroot =
  unix_listener {folder}/lmtp {{
    mode = 0666
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
"""


class Dovecot(Server):
    """Dovecot with nothing but LMTP; what it delivers is in Maildirs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "lmtp"
        super().__init__(
            "-F",
            "-c",
            folder / "dovecot.conf",
            command=[find_program("dovecot")],
            expected=".*",
        )

    def __enter__(self) -> Dovecot:
        def there() -> bool:
            assert self.process.poll() is None, self.output + self.log()
            return self.socket.exists()

        wait_until(there, "dovecot does not listen")
        return self

    def log(self) -> str:
        """What it says."""
        file = self.folder / "log"
        return file.read_text() if file.exists() else ""

    def messages(self, user: str) -> list[bytes]:
        """What it delivered."""
        new = self.folder / "mail" / user / "new"
        return [file.read_bytes() for file in sorted(new.iterdir())] if new.exists() else []


@contextmanager
def dovecot(folder: Path) -> Iterator[Dovecot]:
    """One that listens at a UNIX socket, folder/lmtp."""
    find_program("dovecot")
    needs_root()
    owner = pwd.getpwnam("dovecot")
    (folder / "mail").mkdir()
    os.chown(folder / "mail", owner.pw_uid, owner.pw_gid)
    settings = {"folder": folder, "user": "dovecot", "group": "dovecot", "all": "yes"}
    (folder / "dovecot.conf").write_text(DOVECOT_CONF.format(**settings))
    with Dovecot(folder) as server:
        yield server
