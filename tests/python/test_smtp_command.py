"""becket.smtp.command: a process for each message."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import becket
from becket.smtp import command
from becket.smtp.command import REPLIES, Command
from becket.smtp.store import one_reply
from mail import PATIENCE, SERVERS, Envelope, Session, letter, lines, send, untraced

Make = Callable[..., Command]

TELL = """\
import json, os, sys
text = json.dumps([sys.argv[2:], dict(os.environ), sys.stdin.buffer.read().decode("latin-1")])
with open(sys.argv[1], "a") as file:
    file.write(text + "\\n")
"""


@pytest.fixture
def make(no_leaks: None) -> Iterator[Make]:
    """Makes handlers, and closes them."""
    made: list[Command] = []

    def make(*arguments: Any, **options: Any) -> Command:
        made.append(Command(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def tell(tmp_path: Path) -> tuple[list[str], Callable[[], list[Any]]]:
    """A command that tells how it was run, and what it told."""
    program, log = tmp_path / "tell.py", tmp_path / "log"
    program.write_text(TELL)

    def read() -> list[Any]:
        told = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [[a, b, untraced(c.encode("latin-1")).decode("latin-1")] for a, b, c in told]

    return [sys.executable, str(program), str(log)], read


def deliver(
    handler: Command,
    content: bytes = b"x\r\ny\r\n",
    sender: str | None = "me@a.org",
    recipients: tuple[str, ...] = ("you@b.org",),
    session: Any = None,
    server: Any = None,
) -> Any:
    envelope = Envelope(content, sender, recipients)
    return asyncio.run(handler.handle_DATA(server, session or Session(), envelope))


class Lmtp:
    """A server."""

    lmtp = True


# ---- How it is run -------------------------------------------------------------------------------


def test_message_arguments_environment(make: Make, tell: Any) -> None:
    run, read = tell
    handler = make(
        [*run, "-f", "$SENDER", "--to=${RECIPIENT}", "$PEER/$HELO/$LOGIN", "$$x"],
        environment={"MORE": "yes"},
    )
    session = Session()
    session.authenticated, session.auth_data = True, "ada"
    assert deliver(handler, session=session) == "250 2.0.0 message delivered"
    [[arguments, environment, message]] = read()
    assert arguments == [
        "-f", "me@a.org", "--to=you@b.org", "192.0.2.1/client.example.org/ada", "$x",
    ]  # fmt: skip
    assert message == "x\ny\n"
    told = {name: environment[name] for name in ("SENDER", "RECIPIENT", "PEER", "HELO", "LOGIN")}
    assert told == {
        "SENDER": "me@a.org",
        "RECIPIENT": "you@b.org",
        "PEER": "192.0.2.1",
        "HELO": "client.example.org",
        "LOGIN": "ada",
    }
    assert environment["MORE"] == "yes"


def test_little_of_our_environment_is_passed_on(
    make: Make, tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "key")
    run, read = tell
    deliver(make(run))
    [[_, environment, _]] = read()
    assert "SECRET" not in environment
    assert environment["PATH"] == os.environ["PATH"]


def test_line_ends_are_kept_when_asked_for(make: Make, tell: Any) -> None:
    run, read = tell
    deliver(make(run, crlf=True), b"a\r\nb\r\r\n")
    deliver(make(run), b"a\r\nb\r\r\n")
    assert [message for _, _, message in read()] == ["a\r\nb\r\r\n", "a\nb\r\n"]


def test_many_recipients_of_one_process(make: Make, tell: Any) -> None:
    run, read = tell
    handler = make([*run, "$RECIPIENT", "-x", "<$RECIPIENT>", "$$RECIPIENT"])
    assert deliver(handler, recipients=("a@b", "c@d")) == command.OK
    [[arguments, environment, _]] = read()
    assert arguments == ["a@b", "c@d", "-x", "<a@b>", "<c@d>", "$RECIPIENT"]
    assert environment["RECIPIENT"] == "a@b\nc@d"


def test_a_process_for_each_recipient(make: Make, tell: Any) -> None:
    run, read = tell
    handler = make([*run, "$RECIPIENT"], each_recipient=True)
    assert deliver(handler, recipients=("a@b", "c@d")) == command.OK
    assert sorted(arguments for arguments, _, _ in read()) == [["a@b"], ["c@d"]]


def test_a_text_is_split_as_a_shell_does_but_seen_by_none(make: Make, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    handler = make(f"printf '%s\\n' \"$SENDER\" ';touch' {trap}", each_recipient=True)
    hostile = f"$(touch${{IFS}}{trap})`touch\t{trap}`;touch {trap}"
    assert deliver(handler, sender=hostile.replace("\t", " ")) == command.OK
    assert not trap.exists()


def test_a_shell_when_asked_for(make: Make, tmp_path: Path) -> None:
    out, trap = tmp_path / "out", tmp_path / "trap"
    handler = make(f'{{ echo "$SENDER"; echo "$RECIPIENT"; cat; }} | tr a-z A-Z >{out}', shell=True)
    hostile = f'"$(touch {trap})`touch {trap}`"@a.org'
    assert deliver(handler, b"text\r\n", hostile, ("a@b", "c@d")) == command.OK
    assert out.read_text().startswith(f"{hostile}\na@b\nc@d\nReceived: ".upper())
    assert not trap.exists()


@pytest.mark.parametrize("address", ["-f@b", "--help", "a\nb@c", "a\0b@c", "a\x7f@b"])
def test_addresses_that_may_be_taken_for_something_else(
    make: Make, tell: Any, address: str
) -> None:
    run, read = tell
    handler = make([*run, "$SENDER", "$RECIPIENT"], each_recipient=True)
    assert deliver(handler, sender=address) == command.BAD_SENDER
    replies = deliver(handler, recipients=(address, "a@b"), server=Lmtp)
    assert replies == [command.BAD_RECIPIENT, command.OK]
    assert [arguments for arguments, _, _ in read()] == [["me@a.org", "a@b"]]


def test_other_words_of_the_client_are_cleaned(make: Make, tell: Any) -> None:
    run, read = tell
    session = Session()
    session.host_name = "a\nb\0"
    deliver(make([*run, "$HELO"]), session=session)
    [[arguments, environment, _]] = read()
    assert arguments == [environment["HELO"]] == ["a?b?"]


def test_no_sender(make: Make, tell: Any) -> None:
    run, read = tell
    deliver(make([*run, "$SENDER"]), sender=None)
    [[arguments, environment, _]] = read()
    assert (arguments, environment["SENDER"]) == ([""], "")


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ("", {}, "it is empty"),
        ("  ", {"shell": True}, "a shell needs one text"),
        (["a"], {"shell": True}, "a shell needs one text"),
        ([""], {}, "it is empty"),
        ("a 'b", {}, "No closing quotation"),
        ("a $USER", {}, r"there is no \$USER; there are \$SENDER, \$RECIPIENT, \$PEER"),
        ("a 5$", {}, r"'5\$' has a \$ too many"),
        ("$SENDER", {}, "the program cannot come from a message"),
        ("a", {"processes": 0}, "processes: 0 is less than 1"),
        ("a", {"timeout": 0}, "timeout: 0 is no time"),
    ],
)
def test_commands_that_are_none(arguments: Any, options: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Command(arguments, **options)


# ---- What becomes of it --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, *range(64, 79), 1, 2, 126, 127, 255])
def test_exit_statuses(make: Make, status: int) -> None:
    reply = deliver(make(f"exit {status}", shell=True))
    assert reply == REPLIES.get(status, command.FAILED)
    known = {0: "250", 65: "554", 67: "550", 68: "550", 69: "554", 76: "554", 77: "550"}
    assert reply.startswith(known.get(status, "451"))


def test_every_reply_has_an_enhanced_code() -> None:
    for reply in (*REPLIES.values(), command.FAILED, command.NOT_STARTED, command.TIMEOUT):
        code, enhanced, text = reply.split(" ", 2)
        assert code[0] == enhanced[0] and text


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ("", "550 5.1.1 there is no such user"),
        ("nobody here\\nmore", "550 5.1.1 nobody here"),
        ("nobody\\r\\n", "550 5.1.1 nobody"),
        ("5.7.1 not for you", "550 5.7.1 not for you"),
        ("4.7.1 not for you", "550 5.1.1 4.7.1 not for you"),
        ("a\\rb", "550 5.1.1 there is no such user"),
        ("\\303\\244", "550 5.1.1 there is no such user"),
        ("x\\000y", "550 5.1.1 there is no such user"),
        ("\\nsecond", "550 5.1.1 there is no such user"),
    ],
)
@pytest.mark.parametrize("stream", [1, 2])
def test_what_it_says(make: Make, said: str, reply: str, stream: int) -> None:
    assert deliver(make(f"printf '{said}' >&{stream}; exit 67", shell=True)) == reply


def test_what_it_says_when_all_is_well_is_not_sent(make: Make) -> None:
    assert deliver(make("echo 5.1.1 secret", shell=True)) == command.OK


def test_long_words(make: Make) -> None:
    reply = deliver(make("head -c 5000000 /dev/zero | tr '\\0' x; exit 67", shell=True))
    assert reply == REPLIES[67]


def test_killed_by_a_signal(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    assert deliver(make("kill -9 $$", shell=True)) == command.FAILED
    assert "killed by signal 9" in caplog.text


def test_one_that_does_not_read(make: Make) -> None:
    assert deliver(make("true"), b"x" * 5_000_000) == command.OK


def test_one_that_cannot_be_started(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    assert deliver(make("/absent/program")) == command.NOT_STARTED
    assert "No such file or directory: '/absent/program'" in caplog.text
    assert deliver(make("true", cwd="/absent")) == command.NOT_STARTED


def test_the_message_cannot_be_kept_meanwhile(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.tempfile, "TemporaryFile", full)
    assert deliver(make("true")) == command.NOT_STARTED


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("trap", ["", "trap '' TERM; "])
def test_one_that_takes_too_long_is_ended_with_all_it_started(
    make: Make, tmp_path: Path, trap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "GRACE", 0.2)
    pids = tmp_path / "pids"
    script = f"{trap}sleep 1000 & echo $! $$ >{pids}.new; mv {pids}.new {pids}; wait; sleep 1000"
    handler = make(script, shell=True, timeout=0.5)
    reply = deliver(handler)
    while not pids.exists():  # a machine so slow that it had not begun
        handler._timeout *= 2
        reply = deliver(handler)
    assert reply == command.TIMEOUT
    for pid in map(int, pids.read_text().split()):
        while alive(pid):  # until whoever has it by now has waited for it
            time.sleep(0.01)


def test_one_that_closes_its_output_and_goes_on(make: Make) -> None:
    handler = make("exec >&- 2>&-; sleep 1000", shell=True, timeout=0.3)
    assert deliver(handler) == command.TIMEOUT
    assert deliver(make("exec >&- 2>&-; sleep 0.1; exit 67", shell=True)) == REPLIES[67]


def test_those_left_behind_are_not_waited_for(make: Make, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    assert deliver(make(f"sleep 1000 & echo $! >{pid}; exit 67", shell=True)) == REPLIES[67]
    os.kill(int(pid.read_text()), 9)


# ---- Several ------------------------------------------------------------------------------------


def test_no_more_than_so_many_at_once(make: Make, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    script = f"cd {work}; touch $$; ls | wc -l >../$$; sleep 0.05; rm $$"
    handler = make(script, shell=True, processes=2)

    async def main() -> list[Any]:
        envelope = Envelope(b"x", "a@b")
        return await asyncio.gather(
            *(handler.handle_DATA(None, Session(), envelope) for _ in range(10))
        )

    assert asyncio.run(main()) == [command.OK] * 10
    counts = [int(file.read_text()) for file in tmp_path.iterdir() if file.is_file()]
    assert len(counts) == 10
    assert max(counts) <= 2


def test_each_recipient_has_an_answer(make: Make) -> None:
    handler = make('case "$RECIPIENT" in a*) exit 67;; b*) exit 75;; esac', shell=True,
                   each_recipient=True)  # fmt: skip
    recipients = ("a@x", "b@x", "c@x", "a@y")
    replies = [REPLIES[67], command.FAILED, command.OK, REPLIES[67]]
    assert deliver(handler, recipients=recipients, server=Lmtp) == replies
    assert deliver(handler, recipients=recipients) == command.FAILED
    assert deliver(handler, recipients=("a@x", "c@x")) == REPLIES[67]
    assert deliver(make("true"), recipients=("a@x", "c@x"), server=Lmtp) == [command.OK] * 2


@pytest.mark.parametrize(
    ("replies", "one"),
    [
        (["250 a"], "250 a"),
        (["250 a", "550 b"], "550 b"),
        (["550 a", "450 b", "250 c"], "450 b"),
    ],
)
def test_the_worst_stands_for_all(replies: list[str], one: str) -> None:
    assert one_reply(replies) == one


@pytest.mark.parametrize("serve", SERVERS)
def test_under_a_server(make: Make, tell: Any, serve: Any) -> None:
    run, read = tell
    message = letter("sent", "Text.\n")
    with serve(make([*run, "$RECIPIENT"])) as port:
        send(port, message)
    [[arguments, _, received]] = read()
    assert arguments == ["you@b.org"]
    assert received.encode() == lines(message).replace(b"\r\n", b"\n")


def test_on_a_loop_of_becket(make: Make) -> None:
    async def main() -> None:
        envelope = Envelope(b"x", "a@b")
        assert (
            await make("exit 67", shell=True).handle_DATA(None, Session(), envelope) == REPLIES[67]
        )

    becket.run(main())


def test_threads(make: Make) -> None:
    handler, replies = make("cat", processes=3), []
    threads = [threading.Thread(target=lambda: replies.append(deliver(handler))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert replies == [command.OK] * 6


def test_what_went_wrong_is_logged_on_one_line(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    deliver(make("printf 'a\\033[1mb'; exit 1", shell=True))
    [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage().endswith("exit status 1: a?[1mb")
