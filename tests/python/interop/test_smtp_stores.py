"""becket.smtp's stores between the mail programs of others: Postfix's smtp-source in front, its
smtp-sink and Dovecot behind."""

from __future__ import annotations

import mailbox
import re
import shutil
import smtplib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from becket.smtp import Server
from becket.smtp.command import Command
from becket.smtp.mbox import Mbox
from becket.smtp.memory import Memory
from becket.smtp.relay import Relay
from interop.mail import digest, every_shape
from interop.mailers import Sink, dovecot
from interop.processes import PATIENCE, run_program

MESSAGES = 300


def load(server: Server) -> None:
    """Messages from twenty clients at once, of two recipients each."""
    port = server.endpoints[0].rpartition(":")[2]
    options = ("-s", 20, "-m", MESSAGES, "-r", 2, "-l", 2000, "-f", "a@b.org", "-t", "c@d.org")
    run_program("smtp-source", *options, f"127.0.0.1:{port}")


def test_source_to_memory():
    memory = Memory(max_messages=200)
    with Server(memory, "tcp://127.0.0.1:0", driver="loops:2") as server:
        load(server)
    assert len(memory) == 200
    assert {len(message.recipients) for message in memory.messages()} == {2}


def test_source_to_mbox(tmp_path):
    box = Mbox(tmp_path / "mbox")
    with Server(box, "tcp://127.0.0.1:0") as server:
        load(server)
    box.close()
    stored = mailbox.mbox(tmp_path / "mbox", create=False)
    assert Counter(message["From"] for message in stored) == {"<a@b.org>": MESSAGES}
    stored.close()


def test_source_to_command(tmp_path):
    command = Command(f'echo "$RECIPIENT" >>{tmp_path}/log', shell=True, processes=4)
    with Server(command, "tcp://127.0.0.1:0") as server:
        load(server)
    command.close()
    assert len((tmp_path / "log").read_text().split()) == 2 * MESSAGES


def test_source_to_sink(tmp_path):
    """What is behind takes four connections at a time: the clients wait."""
    with Sink(tmp_path / "kept", "-m", 4) as sink:
        relay = Relay(f"tcp://127.0.0.1:{sink.port}", connections=3)
        with Server(relay, "tcp://127.0.0.1:0") as server:
            load(server)
        texts = sink.messages()
    assert len(texts) == MESSAGES
    assert all(len(re.findall("X-Rcpt-Args", text)) == 2 for text in texts)


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that Dovecot's users can enter."""
    path = Path(tempfile.mkdtemp(prefix="bk-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def read(messages: list[bytes]) -> dict[str, bytes]:
    """By sender, what is behind our header."""
    found = {}
    for text in messages:
        head = re.match(
            rb"Return-Path: <([^@>]*).*?\nReceived: from client[^\n]*\n(?:\t[^\n]*\n)+", text, re.S
        )
        assert head, text[:1000]
        found[head[1].decode()] = text[head.end() :]
    return found


def test_to_dovecot_by_lmtp(folder):
    left_out = ("eight-bit", "big", "long-lines")
    shapes = {name: data for name, data in every_shape().items() if name not in left_out}
    with dovecot(folder) as behind:
        relay = Relay(f"unix:{behind.socket}", lmtp=True, hostname="here.example.org")
        with Server(relay, "tcp://127.0.0.1:0") as server:
            port = int(server.endpoints[0].rpartition(":")[2])
            with smtplib.SMTP("127.0.0.1", port, "client.example.org", PATIENCE) as client:
                for name, data in shapes.items():
                    recipients = ["jane@test.example", "joe@test.example"]
                    client.sendmail(f"{name}@a.example", recipients, data)
        expected = digest({n: d.replace(b"\r\n", b"\n") for n, d in shapes.items()})
        for user in ("jane", "joe"):
            assert digest(read(behind.messages(user))) == expected
