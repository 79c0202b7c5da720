"""``Command``: each message is given to a process of its own.

    controller = Controller(Command("/usr/bin/procmail -t -a $RECIPIENT"))

Used as the handler of a server. The message is the process's standard input; who sent it to whom is
in its environment, and in its arguments where they name it. Its exit status, one of sysexits.h's,
becomes the reply. No shell sees any of it, unless that is asked for, and what came from the network
cannot become an option.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import select
import shlex
import signal
import string
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

from becket.smtp.store import Reply, answer, login_of, peer_of, sender_of, text_of, traced

logger = logging.getLogger("becket")

# By sysexits.h. What says nothing about the message, but that something is wrong here, is an answer
# for now: the client keeps the message, and nothing is lost by a mistake in a configuration.
OK = "250 2.0.0 message delivered"
FAILED = "451 4.3.0 the message could not be delivered: try again later"
REPLIES = {
    0: OK,
    65: "554 5.6.0 the message is not as it must be",  # EX_DATAERR
    67: "550 5.1.1 there is no such user",  # EX_NOUSER
    68: "550 5.1.2 there is no such host",  # EX_NOHOST
    69: "554 5.3.0 the message cannot be delivered",  # EX_UNAVAILABLE
    73: "451 4.2.0 the message could not be stored: try again later",  # EX_CANTCREAT
    76: "554 5.5.0 the message cannot be delivered",  # EX_PROTOCOL
    77: "550 5.7.1 the message is not permitted",  # EX_NOPERM
    78: "451 4.3.5 delivery is not configured well: try again later",  # EX_CONFIG
}
NOT_STARTED = "451 4.3.5 delivery could not be started: try again later"
TIMEOUT = "451 4.3.0 delivery took too long: try again later"
BAD_SENDER = "553 5.1.7 the sender's address is not one that is delivered from"
BAD_RECIPIENT = "553 5.1.3 the recipient's address is not one that is delivered to"

NAMES = ("SENDER", "RECIPIENT", "PEER", "HELO", "LOGIN")
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR")
SAID = 4096  # bytes of what it says that are kept
GRACE = 2.0  # seconds between a request to end and the end
SAFE = re.compile(r"[\x20-\x7e]{1,200}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _check(template: str) -> None:
    """ValueError: it names what there is not."""
    try:
        string.Template(template).substitute(dict.fromkeys(NAMES, ""))
    except KeyError as error:
        known = ", ".join(f"${name}" for name in NAMES)
        raise ValueError(f"command: there is no ${error.args[0]}; there are {known}") from None
    except ValueError:
        raise ValueError(f"command: {template!r} has a $ too many; $$ means one") from None


class Command:
    """Delivers by *command*: a list of arguments, or a text with quotes as a shell has them.

    In arguments ``$SENDER``, ``$RECIPIENT``, ``$PEER`` (the client's address), ``$HELO`` and
    ``$LOGIN`` stand for what a message has; an argument with ``$RECIPIENT`` is there once for each
    recipient. With *shell*, the text is for ``sh`` as it is, which finds the same in its
    environment: ``"$SENDER"``, in quotes. There, ``$RECIPIENT`` has all recipients, a line each.

    At most *processes* run at once; further messages wait, and with them their clients. One that
    takes longer than *timeout* seconds is ended, with all processes that it started. With
    *each_recipient*, there is a process for each recipient of a message. Lines of the message end
    in LF, or as they were sent with *crlf*. The environment has little of ours, and *environment*.

    Addresses that begin with ``-``, or have control characters, are refused. They may have anything
    else, such as ``/``: think of that before you make names of files of them.

    ValueError for a command that is none. Thread-safe.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        shell: bool = False,
        each_recipient: bool = False,
        processes: int = 20,
        timeout: float = 300.0,
        crlf: bool = False,
        environment: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        if processes < 1:
            raise ValueError(f"processes: {processes} is less than 1")
        if timeout <= 0:
            raise ValueError(f"timeout: {timeout} is no time; seconds are needed")
        self._template = _split(command, shell)
        self._shell = shell
        self._each_recipient = each_recipient
        self._timeout = timeout
        self._crlf = crlf
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self._environment = inherited | dict(environment or {})
        self._cwd = cwd
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="becket-deliver")

    def __repr__(self) -> str:
        return f"<becket.smtp.Command {self._template}>"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Reply:
        """Deliver a message."""
        content = traced(server, session, envelope)
        if not self._crlf:
            content = content.replace(b"\r\n", b"\n")
        sender = sender_of(text_of(envelope.mail_from))
        recipients = [text_of(each) for each in envelope.rcpt_tos]
        about = {
            "SENDER": sender,
            "PEER": peer_of(session),
            "HELO": text_of(getattr(session, "host_name", None)),
            "LOGIN": login_of(session),
        }
        groups = [[each] for each in recipients] if self._each_recipient else [recipients]
        work = [self._deliver(content, about, group) for group in groups]
        replies = await asyncio.gather(*work)
        return answer(server, replies if self._each_recipient else replies * len(recipients))

    async def _deliver(self, content: bytes, about: dict[str, str], recipients: list[str]) -> str:
        if _is_dangerous(about["SENDER"]):
            return BAD_SENDER
        if any(map(_is_dangerous, recipients)):
            return BAD_RECIPIENT
        about = {name: CONTROL.sub("?", value) for name, value in about.items()}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.run, content, about, recipients)

    def close(self) -> None:
        """What was begun is done. Blocks."""
        self._threads.shutdown()

    # ---- In a thread ----

    def run(self, content: bytes, about: dict[str, str], recipients: Sequence[str]) -> str:
        """Run the command once, to its end; the reply. Blocks."""
        environment = self._environment | about | {"RECIPIENT": "\n".join(recipients)}
        try:
            with tempfile.TemporaryFile() as message:
                message.write(content)
                message.seek(0)
                process = subprocess.Popen(
                    self._arguments(about, recipients),
                    stdin=message,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=self._cwd,
                    start_new_session=True,  # so that all it starts can be ended
                )
        except (OSError, ValueError) as error:
            logger.error("deliver: %s: %s", self._template[0], error)
            return NOT_STARTED
        assert process.stdout is not None
        with process.stdout:
            said = _listen(process, process.stdout, time.monotonic() + self._timeout)
        if said is None:
            logger.error("deliver: %s: ended after %g seconds", self._template[0], self._timeout)
            return TIMEOUT
        return self._reply(process.returncode, said)

    def _arguments(self, about: dict[str, str], recipients: Sequence[str]) -> list[str]:
        if self._shell:
            return ["/bin/sh", "-c", *self._template]
        arguments = []
        for each in self._template:
            named = re.search(r"(?<!\$)(?:\$\$)*\$(?:RECIPIENT\b|\{RECIPIENT\})", each)
            for recipient in recipients if named else recipients[:1]:
                values = about | {"RECIPIENT": recipient}
                arguments.append(string.Template(each).substitute(values))
        return arguments

    def _reply(self, status: int, said: bytes) -> str:
        first = said.partition(b"\n")[0].decode("utf-8", "replace").strip()
        if status != 0:
            how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
            log = logger.warning if status in REPLIES else logger.error
            log("deliver: %s: %s: %s", self._template[0], how, CONTROL.sub("?", first)[:200])
        reply = REPLIES.get(status, FAILED)
        return reply if status == 0 else _with_reason(reply, first)


def _split(command: str | Sequence[str], shell: bool) -> list[str]:
    if shell:
        if not isinstance(command, str) or not command.strip():
            raise ValueError("command: a shell needs one text")
        return [command]
    try:
        arguments = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise ValueError(f"command: {command!r}: {error}") from None
    if not arguments or not arguments[0]:
        raise ValueError("command: it is empty")
    if "$" in arguments[0]:
        raise ValueError(f"command: {arguments[0]!r}: the program cannot come from a message")
    for each in arguments:
        _check(each)
    return arguments


def _is_dangerous(address: str) -> bool:
    """Whether a program could take it for an option, or for more than one line."""
    return address.startswith("-") or CONTROL.search(address) is not None


def _with_reason(reply: str, first: str) -> str:
    """The reply with the first thing the process said, if that is safe to be sent; an enhanced
    status code of the same class at its beginning takes the place of ours (as pipe(8) has it)."""
    if not SAFE.fullmatch(first):
        return reply
    code, enhanced, _ = reply.split(" ", 2)
    found = re.match(r"([245])\.\d{1,3}\.\d{1,3} (?=\S)", first)
    if found and found[1] == code[0]:
        return f"{code} {first}"
    return f"{code} {enhanced} {first}"


def _listen(process: subprocess.Popen[bytes], output: IO[bytes], deadline: float) -> bytes | None:
    """What it says, as far as it is kept, when it has ended; None: it had to be ended. Those it
    leaves behind may keep its output open: they are not waited for."""
    said, fd = b"", output.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    pause = 0.005
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(1000 * min(left, pause)):
            data = os.read(fd, 65536)
            if not data:
                break
            said = (said + data)[:SAID]
        elif process.poll() is not None:
            return said
        pause = min(2 * pause, 0.5)
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
        return said
    _end(process)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and all it started. Until it is waited for, its number is nobody else's."""
    _signal(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, process.pid, options) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
