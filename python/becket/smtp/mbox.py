"""``Mbox``: mail appended to one file, in the format mboxrd.

    controller = Controller(Mbox("/var/mail/ada"))

Used as the handler of a server. A message is acknowledged when it is on disk. The file is shared
with other programs by the locks that the field uses: a file ``….lock`` beside it, and fcntl's.

Nothing half-written stays. Before it appends, a writer notes in ``….becket`` (its journal), beside
the mailbox, where the mailbox ends; when all that it appended is on disk, it takes that back, and
only then acknowledges. Both are done under the locks. So a note that is found under the locks tells
of a writer that was killed, and of messages that nobody was promised: they are cut off, unless
somebody else has written since.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import re
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from becket.smtp.store import TRY_AGAIN, sender_of, traced

logger = logging.getLogger("becket")

FROM = re.compile(rb"^(?=>*From )", re.M)
STALE = 300.0  # seconds after which a lock file is taken to be forgotten
PAUSE = 0.05  # seconds between two attempts to lock
NOTE_SIZE = 4096

LOCKED = "451 4.2.0 the mailbox is locked: try again later"
NO_SPACE = "452 4.3.1 no space is left: try again later"


def quote(content: bytes) -> bytes:
    """A message as mboxrd has it: lines end in LF, and those that would begin another message are
    quoted by one more ``>``, which readers take away."""
    content = FROM.sub(b">", content.replace(b"\r\n", b"\n"))
    return content if content.endswith(b"\n") else content + b"\n"


def entry(sender: str, content: bytes) -> bytes:
    """All that is appended for one message."""
    now = time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime())
    name = re.sub(r"[\x00-\x20\x7f]", "_", sender)
    head = f"From {name or 'MAILER-DAEMON'} {now}\nReturn-Path: <{name}>\n"
    return head.encode("utf-8", "replace") + quote(content) + b"\n"


# ---- Locks ---------------------------------------------------------------------------------------


class LockedError(OSError):
    """Somebody else holds a lock for longer than we wait."""


def _is_stale(path: str) -> bool:
    """Whether a lock file was forgotten: its process is no more, or it is old."""
    try:
        with open(path, "rb") as file:
            age = time.time() - os.fstat(file.fileno()).st_mtime
            pid = file.read(20).strip()
    except OSError:
        return False  # it is gone, or not for us to judge
    if pid.isdigit() and 0 < int(pid) < 2**31:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return age > STALE


def _make_lock_file(path: str) -> bool:
    """With our number in it from the first moment on, by which others see whether we live. False:
    there is one already."""
    own = f"{path}.{os.getpid()}"
    fd = os.open(own, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, b"%d\n" % os.getpid())
        os.link(own, path)
    except FileExistsError:
        return False
    finally:
        os.close(fd)
        os.unlink(own)
    return True


def _try_lock(fd: int, lock_file: str | None) -> bool:
    """fcntl's lock first: who has that may remove a stale lock file, and no two of us do."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    try:
        if lock_file is None or _make_lock_file(lock_file):
            return True
        if _is_stale(lock_file):
            logger.warning("mbox: the lock %s was forgotten, and is taken away", lock_file)
            with suppress(FileNotFoundError):
                os.unlink(lock_file)
            if _make_lock_file(lock_file):
                return True
    except OSError:
        fcntl.lockf(fd, fcntl.LOCK_UN)
        raise
    fcntl.lockf(fd, fcntl.LOCK_UN)  # those who lock in the other order are not waited for with it
    return False


def _same_file(fd: int, path: str) -> bool:
    """Whether the name still means that file: mail readers may put a new one in its place."""
    try:
        there, here = os.stat(path), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


# fcntl's locks are a process's: between its threads, these are.
_ours: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@contextmanager
def locked(path: str, lock_file: str | None, wait: float) -> Iterator[int]:
    """The file, made when it is missing, open to be read and written, and locked. LockedError: it
    could not be within *wait* seconds."""
    if not _ours[path].acquire(timeout=wait):
        raise LockedError(errno.EAGAIN, "the mailbox is locked by this program", path)
    try:
        with _locked(path, lock_file, time.monotonic() + wait) as fd:
            yield fd
    finally:
        _ours[path].release()


@contextmanager
def _locked(path: str, lock_file: str | None, deadline: float) -> Iterator[int]:
    while True:
        fd = _open(path)
        try:
            if _try_lock(fd, lock_file):
                try:
                    if _same_file(fd, path):
                        yield fd
                        return
                finally:
                    if lock_file is not None:
                        with suppress(FileNotFoundError):
                            os.unlink(lock_file)
        finally:
            os.close(fd)  # and unlocks
        if time.monotonic() > deadline:
            raise LockedError(errno.EAGAIN, "the mailbox is locked by another program", path)
        time.sleep(PAUSE)


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        fd = os.open(path, flags | os.O_CREAT, 0o600)
        _sync_folder(path)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "a mailbox must be a regular file", path)
    return fd


def _sync_folder(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---- Writing -------------------------------------------------------------------------------------


def _write_all(fd: int, data: bytes, offset: int) -> int:
    """Write at an offset; returns where it ends."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]
    return offset


class Journal:
    """The note of where a mailbox ended before it is appended to."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> Journal:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
            try:
                _sync_folder(self._path)
            except OSError:
                os.close(self._fd)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def note(self, size: int, end: int, first: bytes) -> None:
        """Something that begins with *first* will be appended to *size* bytes, up to *end*."""
        text = json.dumps({"size": size, "end": end, "first": first[:200].decode("latin-1")})
        _write_all(self._fd, text.encode() + b"\n", 0)
        os.fsync(self._fd)

    def clear(self) -> None:
        """It has been, or has been taken back."""
        os.ftruncate(self._fd, 0)
        os.fsync(self._fd)

    def read(self) -> tuple[int, int, bytes] | None:
        """What was noted; None: nothing, or not all of a note, whose writer had not begun."""
        text = os.pread(self._fd, NOTE_SIZE, 0)
        if not text.endswith(b"\n"):
            return None
        try:
            note = json.loads(text)
            return int(note["size"]), int(note["end"]), str(note["first"]).encode("latin-1")
        except (ValueError, KeyError, TypeError):
            return None


def recover(fd: int, journal: Journal) -> None:
    """Cut off what a writer that was killed has left: it had acknowledged none of it."""
    note = journal.read()
    if note is None:
        return
    size, end, first = note
    now = os.fstat(fd).st_size
    found = os.pread(fd, len(first), size)
    if size < now <= end and first.startswith(found):
        logger.warning("mbox: %d bytes of a writer that was killed are cut off", now - size)
        os.ftruncate(fd, size)
        os.fsync(fd)
    elif now > size:
        logger.warning("mbox: others have written since a writer was killed: nothing is cut off")
    journal.clear()


def append(fd: int, journal: Journal, entries: Sequence[bytes]) -> None:
    """Append entries, all or none, and see to it that they are on disk. OSError: none is there."""
    size = os.fstat(fd).st_size
    last = os.pread(fd, 2, max(0, size - 2))
    gap = b"" if size == 0 or last == b"\n\n" else b"\n" if last.endswith(b"\n") else b"\n\n"
    journal.note(size, size + len(gap) + sum(map(len, entries)), gap + entries[0])
    try:
        end = _write_all(fd, gap, size)
        for each in entries:
            end = _write_all(fd, each, end)
        os.fsync(fd)
        journal.clear()
    except OSError:
        with suppress(OSError):  # what is not cut off now, is by who comes next: it is noted
            os.ftruncate(fd, size)
            os.fsync(fd)
            journal.clear()
        raise


# ---- The handler ---------------------------------------------------------------------------------


class Mbox:
    """A mailbox in the file *path*, which is made when it is missing; its folder must be there. To
    lock it, *wait* seconds at most are waited. Without *dot_lock*, for folders in which no files
    may be made, fcntl's lock is the only one; the journal is then to be elsewhere: *journal*.

    Messages that come together are written, and brought to disk, together. Thread-safe.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        wait: float = 30.0,
        dot_lock: bool = True,
        journal: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = os.path.realpath(path)
        self._wait = wait
        self._lock_file = f"{self.path}.lock" if dot_lock else None
        self._journal = os.fspath(journal) if journal is not None else f"{self.path}.becket"
        self._waiting: list[tuple[bytes, Future[None]]] = []
        self._busy = False
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"<becket.smtp.Mbox {self.path}>"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Store a message."""
        sender = sender_of(envelope.mail_from)
        content = traced(server, session, envelope)
        try:
            await asyncio.wrap_future(self.deliver(sender, content))
        except LockedError as error:
            logger.warning("mbox: %s", error)
            return LOCKED
        except OSError as error:
            logger.error("mbox: %s: %s", self.path, error)
            return NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else TRY_AGAIN
        return "250 2.0.0 message stored"

    def deliver(self, sender: str, content: bytes) -> Future[None]:
        """Have a message stored; the future is done when it is on disk. Cancelled in time, it is
        not stored. OSError: it is not; LockedError: because of a lock."""
        future: Future[None] = Future()
        data = entry(sender, content)
        with self._lock:
            self._waiting.append((data, future))
            if not self._busy:
                self._busy = True
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, thread_name_prefix="becket-mbox")
                self._thread.submit(self._work)
        return future

    def close(self) -> None:
        """What has been given is stored. Blocks."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    # ---- In its thread ----

    def _work(self) -> None:
        while True:
            with self._lock:
                taken, self._waiting = self._waiting, []
                if not taken:
                    self._busy = False
                    return
            taken = [each for each in taken if each[1].set_running_or_notify_cancel()]
            self._store(taken)

    def _store(self, taken: list[tuple[bytes, Future[None]]]) -> None:
        if not taken:
            return
        failure: Exception | None = None
        try:
            with locked(self.path, self._lock_file, self._wait) as fd:
                with Journal(self._journal) as journal:
                    recover(fd, journal)
                    append(fd, journal, [data for data, _ in taken])
        except Exception as error:
            failure = error
        for _, future in taken:
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)
