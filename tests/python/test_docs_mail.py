"""docs/mail.md: its commands and programs do what it says."""

from __future__ import annotations

import smtplib
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from becket.smtp.memory import Memory
from becket.smtp.server import Server as MailServer
from test_docs import DOCS, PATIENCE, Folder, blocks, commands, connect, ends, wait_for, words

TEXT = "Subject: hello\r\n\r\nHello.\r\n"


@pytest.fixture
def page(tmp_path: Path) -> Folder:
    return Folder("mail", tmp_path)


def command(page: Folder, begins: str) -> list[str]:
    [found] = commands("mail", begins)
    return words(page.own(found))


def block(page: Folder, text: str, name: str) -> str:
    """The one block with that text, as a file."""
    [found] = [b for b in blocks(DOCS / "mail.md") if text in b]
    (page.path / name).write_text(page.own(found))
    return name


def send(port: int, to: str = "you@example.org") -> dict[str, tuple[int, bytes]]:
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
        return client.sendmail("me@example.org", [to], TEXT)


def stored(page: Folder) -> list[str]:
    return [file.read_text() for file in (page.path / "Maildir" / "new").iterdir()]


def test_receiving_by_a_command(page: Folder) -> None:
    arguments = command(page, "becket serve smtp --maildir Maildir tcp:")
    with page.run(*arguments) as server:
        wait_for(server, "Ctrl-C ends this")
        assert send(page.port(7025)) == {}
        ends(server)
    [text] = stored(page)
    assert text.endswith(TEXT.replace("\r\n", "\n"))


def test_receiving_by_a_program(page: Folder) -> None:
    name = block(page, 'becket.serve("smtp"', "program.py")
    with page.run(name) as server:
        wait_for(server, "at tcp://")
        assert send(page.port(7025)) == {}
        ends(server)
    assert len(stored(page)) == 1


def test_a_handler(page: Folder) -> None:
    with page.run("-u", "app.py") as server:
        connect(page.port(7026), server).close()
        assert send(page.port(7026)) == {}
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(page.port(7026), "you@other.org")
        server.terminate()
        said, errors = server.communicate(timeout=PATIENCE)
    assert said == f"127.0.0.1 me@example.org ['you@example.org'] {len(TEXT)}\n", errors
    assert server.returncode == 0


def test_a_handler_by_a_command(page: Folder) -> None:
    arguments = command(page, "becket serve smtp --handler app:Handler")
    with page.run(*arguments) as server:
        wait_for(server, "Ctrl-C ends this")
        assert send(page.port(7027)) == {}
        wait_for(server, "1: from <me@example.org> to you@example.org")
        ends(server)


def test_users(page: Folder) -> None:
    done = subprocess.run(
        [sys.executable, *command(page, "becket passwd bob users")],
        input="secret\n",
        text=True,
        cwd=page.path,
        check=True,
        capture_output=True,
    )
    assert done.stderr == "" and (page.path / "users").read_text().startswith("bob:SCRAM-SHA-256$")
    arguments = command(page, "becket serve smtp --maildir Maildir --users users")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with page.run(*arguments) as server:
        wait_for(server, "Ctrl-C ends this")
        assert send(page.port(7028)) == {}
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(page.port(7028), "you@other.org")
        with smtplib.SMTP("127.0.0.1", page.port(7028), timeout=PATIENCE) as client:
            client.ehlo()
            assert not client.has_extn("auth")
            client.starttls(context=context)
            client.login("bob", "secret")
            assert client.sendmail("me@example.org", ["you@other.org"], TEXT) == {}
        ends(server)
    assert len(stored(page)) == 2


def test_an_authenticator(page: Folder) -> None:
    name = block(page, "def authenticate(", "program.py")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with page.run(name) as server:
        connect(page.port(7465), server).close()
        port = page.port(7465)
        with smtplib.SMTP_SSL("127.0.0.1", port, timeout=PATIENCE, context=context) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("bob", "wrong")
            assert client.login("bob", "secret")[0] == 235
        ends(server)


def test_in_tests(page: Folder) -> None:
    name = block(page, "controller = Controller(memory", "program.py")
    subprocess.run([sys.executable, name], cwd=page.path, check=True)


def test_sending(page: Folder) -> None:
    name = block(page, "await becket.smtp.send(", "program.py")
    memory = Memory()
    with MailServer(memory, f"tcp://127.0.0.1:{page.port(7025)}", drain=0.0):
        subprocess.run([sys.executable, name], cwd=page.path, check=True)
    [message] = memory.messages()
    assert message.parsed["Subject"] == "hello"


def test_modules_that_are_named() -> None:
    """What the table says of imports."""
    import importlib
    import re

    text = (DOCS / "mail.md").read_text()
    pairs = re.findall(r"^\| `(aiosmtpd\.\w+)` \| `(becket\.smtp\.\w+)` \|$", text, re.M)
    assert len(pairs) == 4
    for theirs, ours in pairs:
        assert importlib.import_module(theirs) and importlib.import_module(ours)
