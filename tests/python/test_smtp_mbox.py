"""becket.smtp.mbox: quoting, locks, what comes together, and that nothing half-written stays."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mailbox
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from becket.smtp import mbox
from becket.smtp.mbox import Mbox
from mail import PATIENCE, SERVERS, Envelope, Session, letter, send, untraced


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mbox"


@pytest.fixture
def box(path: Path) -> Iterator[Mbox]:
    box = Mbox(path)
    yield box
    box.close()


def deliver(box: Mbox, content: bytes | str, sender: str | None = "me@a.org") -> str:
    return asyncio.run(box.handle_DATA(None, Session(), Envelope(content, sender)))


def subjects(path: Path) -> list[str]:
    """As the standard library reads it."""
    box = mailbox.mbox(path, create=False)
    try:
        return [str(message["Subject"]) for message in box]
    finally:
        box.close()


def messages(path: Path) -> list[bytes]:
    """What mboxrd's rules make of it: the messages as they were sent, but for CRLF."""
    found = re.split(rb"(?:\A|\n)From [^\n]*\nReturn-Path: [^\n]*\n", path.read_bytes())
    assert found[0] == b""
    messages = [re.sub(rb"^>(>*From )", rb"\1", each, flags=re.M) for each in found[1:]]
    return [untraced(each) if each.startswith(b"Received:") else each for each in messages]


# ---- The format ----------------------------------------------------------------------------------


def test_one_message(box: Mbox, path: Path) -> None:
    assert deliver(box, b"Subject: x\r\n\r\ntext\r\n") == "250 2.0.0 message stored"
    assert re.fullmatch(
        rb"From me@a\.org \w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\n"
        rb"Return-Path: <me@a\.org>\nReceived: from .*\n\tby .*\n.*\n.*\nSubject: x\n\ntext\n\n",
        path.read_bytes(),
    )
    assert path.stat().st_mode & 0o777 == 0o600
    assert subjects(path) == ["x"]


@pytest.mark.parametrize(
    ("content", "stored"),
    [
        (b"", b"\n"),
        (b"no end", b"no end\n"),
        (b"a\r\nFrom me\r\n", b"a\n>From me\n"),
        (b"From the start", b">From the start\n"),
        (b">From\r\n>From x\r\n>>From y", b">From\n>>From x\n>>>From y\n"),
        (b"from x\r\n From y\r\nFromage", b"from x\n From y\nFromage\n"),
        (b"a\rFrom b\r\n\r\nFrom c", b"a\rFrom b\n\n>From c\n"),
        (b"a\r\r\nFrom b", b"a\r\n>From b\n"),
    ],
)
def test_quoting(content: bytes, stored: bytes) -> None:
    assert mbox.quote(content) == stored


@pytest.mark.parametrize(
    ("sender", "line"),
    [
        (None, b"From MAILER-DAEMON "),
        ("", b"From MAILER-DAEMON "),
        ('"a b"@c', b'From "a_b"@c '),
        ("a\nFrom b\r\0@c", b"From a_From_b__@c "),
        ("ü@ä.org", "From ü@ä.org ".encode()),
    ],
)
def test_senders(box: Mbox, path: Path, sender: str | None, line: bytes) -> None:
    deliver(box, b"x", sender)
    deliver(box, "text as ü", sender)
    assert path.read_bytes().startswith(line)
    assert len(messages(path)) == 2


@pytest.mark.parametrize("before", [b"From x\n\nold", b"From x\n\nold\n", b"From x\n\nold\n\n"])
def test_an_empty_line_stands_before_each(box: Mbox, path: Path, before: bytes) -> None:
    path.write_bytes(before)
    deliver(box, b"Subject: new\r\n\r\n")
    assert path.read_bytes().startswith(b"From x\n\nold\n\nFrom me@a.org ")


@pytest.mark.parametrize("serve", SERVERS)
def test_what_is_sent_is_what_is_stored(box: Mbox, path: Path, serve: Any) -> None:
    with serve(box) as port:
        for subject in ("one", "two"):
            send(port, letter(subject, "From here\n>From there\n.\n"))
    assert subjects(path) == ["one", "two"]
    assert messages(path)[0].endswith(b"\n\nFrom here\n>From there\n.\n")


# ---- What comes together -------------------------------------------------------------------------


def test_what_comes_together_is_synced_together(
    box: Mbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(box, b"Subject: first\r\n\r\n")
    syncs, sync = [], os.fsync
    begun, go_on = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        syncs.append(fd)
        begun.set()
        assert go_on.wait(PATIENCE)
        sync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    futures = [box.deliver("a@b", b"Subject: 0\r\n\r\n")]
    assert begun.wait(PATIENCE)
    futures += [box.deliver("a@b", b"Subject: %d\r\n\r\n" % n) for n in range(1, 30)]
    go_on.set()
    for future in futures:
        future.result(PATIENCE)
    assert len(syncs) == 6  # a note, the mailbox, and the note's end: twice
    assert subjects(path) == ["first", *map(str, range(30))]


def test_one_that_is_cancelled_is_not_stored(
    box: Mbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, sync = threading.Event(), threading.Event(), os.fsync

    def slow(fd: int) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        sync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    first = box.deliver("a@b", b"Subject: first\r\n\r\n")
    assert begun.wait(PATIENCE)
    lost = box.deliver("a@b", b"Subject: lost\r\n\r\n")
    assert lost.cancel()
    assert not first.cancel()
    go_on.set()
    first.result(PATIENCE)
    box.deliver("a@b", b"Subject: last\r\n\r\n").result(PATIENCE)
    assert subjects(path) == ["first", "last"]


# ---- Locks ---------------------------------------------------------------------------------------


def test_locks_are_held_and_given_back(
    box: Mbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, sync = [], os.fsync

    def look(fd: int) -> None:
        other = os.fork()
        if other == 0:
            with path.open("rb+") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os._exit(1)
            os._exit(0)
        lock = Path(f"{path}.lock")
        seen.append((lock.read_bytes(), os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])))
        sync(fd)

    deliver(box, b"x")
    monkeypatch.setattr(os, "fsync", look)
    deliver(box, b"x")
    assert seen == [(b"%d\n" % os.getpid(), 1)] * 3
    assert sorted(p.name for p in path.parent.iterdir()) == ["mbox", "mbox.becket"]


def test_a_lock_file_of_others_is_waited_for(path: Path) -> None:
    box = Mbox(path, wait=0.1)
    lock = Path(f"{path}.lock")
    for content in (b"", b"%d\n" % os.getpid(), b"1\n", b"host:1\n"):
        lock.write_bytes(content)
        assert deliver(box, b"x") == mbox.LOCKED
        assert lock.exists()
    assert path.read_bytes() == b""
    lock.unlink()
    assert deliver(box, b"x").startswith("250 ")
    box.close()


def test_a_lock_that_is_given_back_in_time(path: Path) -> None:
    box = Mbox(path, wait=PATIENCE)
    lock = Path(f"{path}.lock")
    lock.write_bytes(b"")
    future = box.deliver("a@b", b"x")
    time.sleep(0.2)  # it tries, and may do so for longer
    assert not future.done()
    lock.unlink()
    future.result(PATIENCE)
    box.close()


def test_forgotten_lock_files_are_taken_away(box: Mbox, path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    lock = Path(f"{path}.lock")
    lock.write_bytes(b"%d\n" % ended.pid)
    assert deliver(box, b"x").startswith("250 ")
    lock.write_bytes(b"0\n")
    os.utime(lock, (time.time() - 301,) * 2)
    assert deliver(box, b"x").startswith("250 ")
    assert not lock.exists()


def test_a_kernel_lock_of_others_is_waited_for(path: Path) -> None:
    box = Mbox(path, wait=0.1)
    path.write_bytes(b"")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys; f = open(sys.argv[1], 'rb+');"
         "fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdout.flush(); sys.stdin.read()", path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert deliver(box, b"x") == mbox.LOCKED
    assert deliver(box, b"x").startswith("250 ")
    box.close()


def test_a_mailbox_that_is_replaced_while_it_is_locked(
    box: Mbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"From old\n\nold\n\n")
    lock, replaced = mbox._try_lock, []

    def try_lock(fd: int, lock_file: str | None) -> bool:
        if not replaced:
            replaced.append(path.rename(f"{path}.old"))
            path.write_bytes(b"From new\n\nnew\n\n")
        return lock(fd, lock_file)

    monkeypatch.setattr(mbox, "_try_lock", try_lock)
    assert deliver(box, b"x").startswith("250 ")
    assert replaced[0].read_bytes() == b"From old\n\nold\n\n"
    assert path.read_bytes().startswith(b"From new\n\nnew\n\nFrom me@a.org ")


def test_without_a_lock_file(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    box = Mbox(folder / "mbox", dot_lock=False, journal=tmp_path / "journal")
    assert deliver(box, b"x").startswith("250 ")
    assert [p.name for p in folder.iterdir()] == ["mbox"]
    box.close()


def store(path: Path, name: str) -> None:
    box = Mbox(path, wait=PATIENCE)
    for n in range(10):
        box.deliver("a@b", f"Subject: {name}-{n}\r\n\r\n".encode()).result(PATIENCE)
    box.close()


def test_several_processes_and_threads(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes: list[Any] = [fork.Process(target=store, args=(path, f"p{n}")) for n in range(3)]
    for process in processes:
        process.start()
    processes += [threading.Thread(target=store, args=(path, f"t{n}")) for n in range(3)]
    for thread in processes[3:]:
        thread.start()
    for process in processes:
        process.join(PATIENCE)
    names = [f"{kind}{n}-{k}" for kind in "pt" for n in range(3) for k in range(10)]
    assert sorted(subjects(path)) == sorted(names)


# ---- Failures ------------------------------------------------------------------------------------


def failing(real: Callable[..., Any], nth: int, error: int) -> Callable[..., Any]:
    """A system call whose n-th call fails."""
    calls = iter(range(1, 1000))

    def call(*args: Any) -> Any:
        if next(calls) == nth:
            raise OSError(error, os.strerror(error))
        return real(*args)

    return call


@pytest.mark.parametrize(
    ("name", "nth"),
    [("pwrite", n) for n in (1, 2)]
    + [("fsync", n) for n in (1, 2, 3)]
    + [("ftruncate", 1), ("link", 1), ("pread", 1), ("fstat", 1), ("open", 1), ("open", 2)],
)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_each_call_that_may_fail(
    path: Path, name: str, nth: int, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Mbox(path)
    deliver(box, b"Subject: before\r\n\r\n")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(mbox.os, name, failing(getattr(os, name), nth, error))
        reply = deliver(box, b"Subject: lost\r\n\r\n")
    assert reply == (mbox.NO_SPACE if error == errno.ENOSPC else mbox.TRY_AGAIN)
    assert path.read_bytes() == before
    assert deliver(box, b"Subject: after\r\n\r\n").startswith("250 ")
    assert subjects(path) == ["before", "after"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["mbox", "mbox.becket"]
    box.close()


def test_what_cannot_be_cut_off_is_by_the_next(
    box: Mbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(box, b"Subject: before\r\n\r\n")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "by design")

    with monkeypatch.context() as patch:
        patch.setattr(mbox.os, "ftruncate", fail)
        assert deliver(box, b"Subject: lost\r\n\r\n") == mbox.TRY_AGAIN
    assert path.read_bytes() != before
    deliver(box, b"Subject: after\r\n\r\n")
    assert subjects(path) == ["before", "after"]


def test_short_writes(box: Mbox, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(mbox.os, "pwrite", lambda fd, data, at: write(fd, bytes(data[:7]), at))
    deliver(box, b"Subject: in pieces\r\n\r\nthat are joined\r\n")
    assert subjects(path) == ["in pieces"]
    assert messages(path)[0].endswith(b"\n\nthat are joined\n\n")


@pytest.mark.parametrize("what", ["folder", "absent/mbox", "pipe"])
def test_what_is_no_mailbox(tmp_path: Path, what: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    box = Mbox(tmp_path / what)
    assert deliver(box, b"x") == mbox.TRY_AGAIN
    box.close()


# ---- Writers that are killed ---------------------------------------------------------------------


def note(path: Path, size: int, end: int, first: bytes) -> None:
    with mbox.Journal(f"{path}.becket") as journal:
        journal.note(size, end, first)


OLD = b"From a@b Sat Nov 28 21:00:00 2026\nReturn-Path: <a@b>\nSubject: old\n\n\n"
NEW = b"From c@d Sat Nov 28 21:00:01 2026\nReturn-Path: <c@d>\nSubject: new\n\n\n"
OTHER = b"From e@f Sat Nov 28 21:00:02 2026\nReturn-Path: <e@f>\nSubject: other\n\n\n"


@pytest.mark.parametrize("written", [0, 1, 20, len(NEW) - 1, len(NEW)])
def test_a_tail_that_was_begun_is_cut_off(box: Mbox, path: Path, written: int) -> None:
    path.write_bytes(OLD + NEW[:written])
    note(path, len(OLD), len(OLD + NEW), NEW)
    deliver(box, b"Subject: next\r\n\r\n")
    assert subjects(path) == ["old", "next"]


@pytest.mark.parametrize("now", [OLD + NEW + OTHER, OTHER, OLD, OLD + OTHER[: len(NEW)], b""])
def test_what_others_have_written_since_is_kept(box: Mbox, path: Path, now: bytes) -> None:
    path.write_bytes(now)
    note(path, len(OLD), len(OLD + NEW), NEW)
    deliver(box, b"Subject: next\r\n\r\n")
    assert path.read_bytes().startswith(now)
    assert subjects(path)[-1] == "next"


@pytest.mark.parametrize(
    "text", [b"{", b'{"size": 0, "end": 999}', b"[]\n", b"null\n", b'{"size": "x"}\n', b"\xff\n"]
)
def test_half_a_note_says_nothing(box: Mbox, path: Path, text: bytes) -> None:
    path.write_bytes(OLD)
    Path(f"{path}.becket").write_bytes(text)
    deliver(box, b"Subject: next\r\n\r\n")
    assert subjects(path) == ["old", "next"]


CALLS = ["open", "write", "link", "unlink", "pwrite", "fsync", "ftruncate", "close"]


def deliver_and_die(path: Path, nth: int, before: bool) -> None:
    """Deliver a message, but be killed before or after the n-th call of the system; half of what
    that is to write is written."""
    calls = iter(range(1, 1000))

    def deadly(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            now = next(calls) == nth
            if now and not before:
                if name == "pwrite":
                    args = (args[0], bytes(args[1][: len(args[1]) // 2]), args[2])
                real(*args, **more)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        return call

    for name in CALLS:
        setattr(os, name, deadly(name, getattr(os, name)))
    Mbox(path).deliver("a@b", b"Subject: killed\r\n\r\ntext\r\n").result(PATIENCE)
    os._exit(0)


@pytest.mark.parametrize("before", [True, False])
def test_kill_at_each_call(box: Mbox, path: Path, before: bool) -> None:
    deliver(box, b"Subject: 0\r\n\r\n")
    expected, whole = ["0"], []
    for nth in range(1, 100):
        process = multiprocessing.get_context("fork").Process(
            target=deliver_and_die, args=(path, nth, before)
        )
        process.start()
        process.join(PATIENCE)
        deliver(box, f"Subject: {nth}\r\n\r\n".encode())
        there = subjects(path)[len(expected) :]
        assert there in ([f"{nth}"], ["killed", f"{nth}"])
        expected += there
        assert path.read_bytes().count(b"\n\ntext\n\n") == expected.count("killed")
        whole.append(len(there) == 2)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert nth > 15
    assert whole == sorted(whole)  # at first never, from some call on always


WRITER = """
import os, sys
from becket.smtp.mbox import Mbox

write = os.pwrite
os.pwrite = lambda fd, data, at: write(fd, bytes(data[:2000]), at)
box, begin = Mbox(sys.argv[1]), int(sys.argv[2])
body = b"\\r\\n\\r\\n" + b"From all of us: a line to be quoted\\r\\n" * 3000
for n in range(begin, begin + 100_000, 4):
    futures = [box.deliver("a@b", b"Subject: %d" % k + body) for k in range(n, n + 4)]
    for k, future in enumerate(futures, n):
        future.result()
        print(k, flush=True)
"""


def test_kill_at_any_moment(path: Path) -> None:
    """What was acknowledged is there once, and whole; what is not whole is not there."""
    seed = random.randrange(2**32)
    moments, acknowledged = random.Random(seed), set()
    for attempt in range(25):
        begin = attempt * 1_000_000
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, str(begin)], stdout=subprocess.PIPE, text=True
        )
        with writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(moments.randrange(1, 10))]
            time.sleep(moments.random() / 50)  # a moment that nothing is known of
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        acknowledged |= {int(line) for line in lines if line.endswith("\n")}
    box = Mbox(path)
    assert deliver(box, b"Subject: last\r\n\r\n").startswith("250 ")
    box.close()
    found = messages(path)
    numbers = [re.match(rb"Subject: (\w+)\n", each) for each in found]
    stored = [each[1] for each in numbers if each]
    assert len(stored) == len(found) == len(set(stored)), seed
    assert {b"%d" % n for n in acknowledged} <= set(stored), seed
    assert all(each.count(b"From all of us") == 3000 for each in found[:-1]), seed
