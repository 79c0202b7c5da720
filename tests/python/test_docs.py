"""The programs in docs/ are programs: they are run, and talked to, as the pages say."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import becket
from test_examples import ROOT, installed, running  # noqa: F401 (a fixture)

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PATIENCE = 60  # seconds: a guard against a hang
OLD = ["-W", "error", "-W", "ignore::DeprecationWarning"]  # asyncore's, in Python 3.11


def blocks(page: Path, language: str = "python") -> list[str]:
    """The page's code blocks in a language; "": in none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def files(page: str) -> dict[str, str]:
    """The page's complete files: blocks that begin with a comment of their name."""
    found = {}
    for language in ("python", "", "c"):
        for block in blocks(DOCS / f"{page}.md", language):
            named = re.match(r"(?:# |/\* )([a-z_]+\.[a-z]+)", block)
            if named:
                assert named[1] not in found
                found[named[1]] = block
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Folder:
    """The files of a page in a folder, with ports of the test's own in place of the page's."""

    def __init__(self, page: str, folder: Path) -> None:
        self.path = folder
        self._ports: dict[str, int] = {}
        for name, text in files(page).items():
            (folder / name).write_text(self.own(text))

    def own(self, text: str) -> str:
        return re.sub(r"\b7[0-9]{3}\b", lambda found: str(self.port(found[0])), text)

    def port(self, written: str | int) -> int:
        return self._ports.setdefault(str(written), free_port())

    def run(self, *command: str) -> object:
        return running(sys.executable, *command, cwd=self.path)


def connect(port: int, server: subprocess.Popen[str]) -> socket.socket:
    """Connect to a program that says nothing when it listens."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), PATIENCE)
        except ConnectionRefusedError:
            assert server.poll() is None, server.communicate()
            time.sleep(0.01)


def ask(endpoint: str, line: bytes = b"hello\n") -> bytes:
    with becket.connect(endpoint, timeout=PATIENCE) as connection:
        connection.sendall(line)
        return connection.readline()


def wait_for(server: subprocess.Popen[str], text: str) -> str:
    """Read what it says up to a line with that text."""
    assert server.stderr is not None
    said = ""
    for line in server.stderr:
        said += line
        if text in line:
            return said
    raise AssertionError(said)


def ends(server: subprocess.Popen[str]) -> str:
    """End it in good order; returns what else it said on standard error."""
    server.terminate()
    _, said = server.communicate(timeout=PATIENCE)
    assert server.returncode == 0, said
    return said


# ---- All pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_blocks_are_python(page: Path) -> None:
    for block in blocks(page):
        ast.parse(block)


def headings(page: Path) -> set[str]:
    """What a link to a part of the page says, as GitHub makes it."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target, part in re.findall(r"\]\(([^)#:]*)#?([^)]*)\)", page.read_text()):
        to = (page.parent / target).resolve() if target else page
        assert to.exists(), target
        assert not part or part in headings(to), f"{target}#{part}"


def test_the_index_has_every_page() -> None:
    listed = re.findall(r"\]\(([a-z-]+\.md)\)", (DOCS / "README.md").read_text())
    assert {page.name for page in PAGES} - {"README.md"} <= set(listed)
    assert len(listed) == len(set(listed))


# ---- The tutorial --------------------------------------------------------------------------------


@pytest.fixture
def tutorial(tmp_path: Path) -> Folder:
    return Folder("tutorial", tmp_path)


def commands(page: str, begins: str) -> list[str]:
    """The page's commands that begin so."""
    text = (DOCS / f"{page}.md").read_text()
    return re.findall(rf"^    \$ ({re.escape(begins)}.*)$", text, re.M)


def words(command: str) -> list[str]:
    """A command as its words, with this Python's becket."""
    first, *rest = shlex.split(command)
    assert first == "becket"
    return ["-m", "becket", *rest]


def client_of(endpoint: str) -> str:
    """The endpoint for a client of what a server's says."""
    where, _, options = endpoint.partition("?")
    told = ["verify=none"] * ("cert=dev" in options) + ["proxy=send"] * ("proxy=" in options)
    return f"{where}?{'&'.join(told)}" if told else where


def test_five_lines(tutorial: Folder) -> None:
    with tutorial.run("shout.py") as server:
        where = f"tcp://127.0.0.1:{tutorial.port(7000)}"
        assert wait_for(server, "listening") == f"becket: listening at {where}\n"
        assert ask(where) == b"HELLO\n"
        ends(server)


@pytest.mark.parametrize("command", commands("tutorial", "becket serve"))
def test_commands_that_serve(tutorial: Folder, command: str) -> None:
    own = words(tutorial.own(command))
    with tutorial.run(*own) as server:
        wait_for(server, "Ctrl-C")
        assert ask(client_of(own[4])) == b"HELLO\n"
        assert "1 connection served" in ends(server)


def test_command_in_a_pipe(tutorial: Folder) -> None:
    [command] = commands("tutorial", "printf")
    said, _, rest = command.partition(" | ")
    assert said == r"printf 'hello\n'"
    with tutorial.run(*words(rest)) as server:
        output, _ = server.communicate("hello\n", timeout=PATIENCE)
    assert (output, server.returncode) == ("HELLO\n", 0)


def test_limits(tutorial: Folder) -> None:
    path = tutorial.path / "limits.py"
    path.write_text(path.read_text().replace("max_per_address=20", "max_per_address=1"))
    where = f"tcp://127.0.0.1:{tutorial.port(7000)}"
    with tutorial.run("limits.py", where) as server:
        wait_for(server, "listening")
        with becket.connect(where, timeout=PATIENCE) as first:
            first.sendall(b"hello\n")
            assert first.readline() == b"HELLO\n"
            assert ask(where) == b"too many connections: come again\n"
        ends(server)


def test_logs(tutorial: Folder) -> None:
    where = f"tcp://127.0.0.1:{tutorial.port(7000)}"
    log = tutorial.path / "access.log"
    with tutorial.run("logs.py", where) as server:
        assert " INFO listening at tcp" in wait_for(server, "listening")
        assert ask(where) == b"HELLO\n"
        while '"end": "ok"' not in log.read_text():
            time.sleep(0.01)
        log.rename(tutorial.path / "access.log.1")
        server.send_signal(signal.SIGHUP)
        while not log.exists():
            time.sleep(0.01)
        assert ask(where) == b"HELLO\n"
        ends(server)
    assert '"in": 6, "out": 6' in log.read_text()


def test_figures(tutorial: Folder) -> None:
    where = f"tcp://127.0.0.1:{tutorial.port(7000)}"
    with tutorial.run("figures.py", where) as server:
        with connect(tutorial.port(7000), server) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"HELLO\n"
        server.terminate()
        output, _ = server.communicate(timeout=PATIENCE)
    shown = re.search(r"^    (\{'accepted'.*\})$", (DOCS / "tutorial.md").read_text(), re.M)
    assert shown and ast.literal_eval(output.splitlines()[-1]) == ast.literal_eval(shown[1])


def test_the_tutorials_tests(tutorial: Folder) -> None:
    with tutorial.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shout.py") as tests:
        output, _ = tests.communicate(timeout=PATIENCE)
    assert "2 passed" in output, output


def test_upgrade_loses_nobody(tutorial: Folder) -> None:
    answers: list[bytes] = []
    over = threading.Event()

    def hammer() -> None:
        while not over.is_set():
            answers.append(ask(f"tcp://127.0.0.1:{tutorial.port(7000)}"))

    with tutorial.run("upgrade.py") as server:
        connect(tutorial.port(7000), server).close()
        clients = [threading.Thread(target=hammer) for _ in range(2)]
        for client in clients:
            client.start()
        assert server.stdin is not None
        for _ in range(3):
            before = len(answers)
            server.stdin.write("\n")
            while len(answers) < before + 100 and any(client.is_alive() for client in clients):
                time.sleep(0.01)
        over.set()
        for client in clients:
            client.join()
        server.communicate(timeout=PATIENCE)
    assert server.returncode == 0
    assert set(answers) == {b"HELLO\n"} and len(answers) >= 300


# ---- … behind HAProxy, and under systemd ---------------------------------------------------------


def need(program: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def test_haproxy_in_front(tutorial: Folder) -> None:
    haproxy = need("haproxy")
    checked = subprocess.run([haproxy, "-c", "-f", "haproxy.cfg"], cwd=tutorial.path, check=False)
    assert checked.returncode == 0
    serve = [words(tutorial.own(c)) for c in commands("tutorial", "becket serve") if "proxy=" in c]
    one, two = (tutorial.run(*command) for command in serve)
    with one as first, two as second:
        for server in (first, second):
            wait_for(server, "Ctrl-C")
        with running(haproxy, "-db", "-f", "haproxy.cfg", cwd=tutorial.path) as proxy:
            for _ in range(4):
                with connect(tutorial.port(7080), proxy) as client:
                    own = f"peer=127.0.0.1:{client.getsockname()[1]} "
                    client.sendall(b"hello\n")
                    assert client.recv(100) == b"HELLO\n"
            proxy.terminate()
            proxy.communicate(timeout=PATIENCE)
        assert own in ends(first) + ends(second)


def test_units_for_systemd(tutorial: Folder) -> None:
    analyze = need("systemd-analyze")
    units = [tutorial.path / "shout.socket", tutorial.path / "shout.service"]
    checked = subprocess.run(
        [analyze, "verify", *units], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.fixture
def supervisor(short_path: str) -> Iterator[socket.socket]:
    """What hears of the service's states."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(short_path)
        heard.settimeout(PATIENCE)
        yield heard


def test_the_service_as_systemd_starts_it(
    tutorial: Folder, supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = (tutorial.path / "shout.service").read_text()
    [command] = re.findall(r"^ExecStart=/usr/bin/env (.*)$", unit, re.M)
    [name] = re.findall(
        r"^FileDescriptorName=(.*)$", (tutorial.path / "shout.socket").read_text(), re.M
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", supervisor.getsockname())
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_FDNAMES", name)
        # In its process: descriptor 3, and its own number.
        start = (
            "import os, runpy, sys; os.environ['LISTEN_PID'] = str(os.getpid()); "
            f"os.dup2({listener.fileno()}, 3); sys.argv = sys.argv[1:]; "
            "runpy.run_module('becket', run_name='__main__', alter_sys=True)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", start, *words(command)[1:]],
            pass_fds=[listener.fileno()],
            cwd=tutorial.path,
            text=True,
            stderr=subprocess.PIPE,
        ) as service:
            while supervisor.recv(1000) != b"READY=1":
                pass
            assert ask(f"tcp://127.0.0.1:{listener.getsockname()[1]}") == b"HELLO\n"
            ends(service)
        assert b"STOPPING=1" in supervisor.recv(1000)


# ---- Endpoints -----------------------------------------------------------------------------------


def rows(heading: str) -> list[list[str]]:
    """The cells of a table of endpoints.md, below the line that begins so."""
    text = (DOCS / "endpoints.md").read_text()
    table = text[text.index(f"\n{heading}") :].split("\n\n")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


SCHEMES = rows("| scheme | written")


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z0-9_]+)`", cell))


def refusal(endpoint: str) -> str:
    with pytest.raises(ValueError) as error:
        becket.connect(endpoint)
    return str(error.value).partition("\n")[0]


def listed(text: str) -> set[str]:
    return set(re.split(r"[;:] (?:there are|it has) ", text)[1].split(", "))


def test_all_schemes_are_in_the_table() -> None:
    table = [names(row[0]) for row in SCHEMES]
    assert set.union(*table) == listed(refusal("nonsense:"))


@pytest.mark.parametrize("row", SCHEMES, ids=lambda row: row[0])
def test_all_options_are_in_the_tables(row: list[str]) -> None:
    [scheme] = names(row[0])
    proxy = [names(cells[0]) for cells in rows("| option | of | says")]
    tls = [names(cells[0]) for cells in rows("| option | says")]
    own = names(row[5]) - {"tls"}
    if scheme in ("tls", "starttls"):
        [below] = [r for r in SCHEMES if r[0] == "`tcp`"]
        own = set.union(names(below[5]), *tls)
    assert own.union(*proxy) == listed(refusal(f"{scheme}://127.0.0.1:1?nonsense=1"))


def test_systemd_alone_is_for_servers() -> None:
    assert [names(row[0]) for row in SCHEMES if row[3:5] != ["yes", "yes"]] == [{"systemd"}]
    with pytest.raises(OSError, match="systemd is for servers"):
        becket.connect("systemd:name")


def test_the_error_that_is_shown() -> None:
    [shown] = [b for b in blocks(DOCS / "endpoints.md", "") if b.startswith("becket: ")]
    endpoint = shown.splitlines()[1].strip()
    with pytest.raises(ValueError) as error:
        becket.connect(endpoint)
    assert f"becket: {error.value}\n" == shown


# ---- Where people come from ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lines_asynchat.py", "lines_protocol.py", "lines_coroutine.py"])
def test_servers_of_lines(name: str, tmp_path: Path) -> None:
    folder = Folder("from-asyncore", tmp_path)
    with folder.run(*OLD, name) as server:
        with connect(folder.port(7000), server) as client:
            client.sendall(b"one\ntw")
            client.sendall(b"o\nbye\nnever")
            answers = b"".join(iter(lambda: client.recv(100), b""))
        assert answers == b"ONE\nTWO\nBYE\n"
        with connect(folder.port(7000), server) as client:
            client.sendall(b"again\n")
            assert client.recv(100) == b"AGAIN\n"


def test_a_server_of_twisted(tmp_path: Path) -> None:
    folder = Folder("from-twisted", tmp_path)
    with folder.run("echo_twisted.py") as server:
        with connect(folder.port(7000), server) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"


def certified(port: int) -> str:
    return f"tls://127.0.0.1:{port}?verify=none"


@pytest.mark.parametrize(
    "name", ["upper.py", "upper_tls.py", "upper_serve.py", "upper_function.py"]
)
def test_socketserver(name: str, tmp_path: Path) -> None:
    folder = Folder("from-socketserver", tmp_path)
    plain, tls = name != "upper_tls.py", name in ("upper_tls.py", "upper_serve.py")
    with folder.run(name) as server:
        connect(folder.port(7000 if plain else 7001), server).close()
        if plain:
            assert ask(f"tcp://127.0.0.1:{folder.port(7000)}") == b"HELLO\n"
        if tls:
            assert ask(certified(folder.port(7001))) == b"HELLO\n"


@pytest.mark.parametrize(
    ("serving", "asking"),
    [("echo_blocking.py", "ask_blocking.py"), ("echo_coroutine.py", "ask_coroutine.py")],
)
def test_gevent(serving: str, asking: str, tmp_path: Path) -> None:
    folder = Folder("from-gevent", tmp_path)
    with folder.run(serving) as server:
        wait_for(server, "listening")
        with connect(folder.port(7000), server) as client:
            client.sendall(b"one\ntwo")
            client.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: client.recv(100), b"")) == b"one\ntwo"
        with folder.run(asking) as program:
            output, errors = program.communicate(timeout=PATIENCE)
        assert (output, errors) == ("[b'one\\n', b'two\\n', b'three\\n']\n", "")
        ends(server)


def test_twisteds_endpoints(tmp_path: Path) -> None:
    folder = Folder("from-twisted-endpoints", tmp_path)
    where = f"tcp://127.0.0.1:{free_port()}"
    with folder.run("echo_endpoint.py", where, "unix:echo.sock") as server:
        wait_for(server, "unix:")
        assert ask(where) == ask(f"unix:{tmp_path}/echo.sock") == b"hello\n"
        ends(server)


def test_endpoints_from_twisteds_are_endpoints() -> None:
    text = (DOCS / "from-twisted-endpoints.md").read_text()
    theirs = re.findall(r"^\| `[^|]*\| `([a-z+]+:[^`]*)`", text, re.M)
    assert len(theirs) > 12
    for endpoint in theirs:  # an unknown option is found before all else
        mark = "&" if "?" in endpoint else "?"
        assert "has no option nonsense" in refusal(f"{endpoint}{mark}nonsense=1"), endpoint


def test_asyncores_protocol_on_every_endpoint(tmp_path: Path) -> None:
    folder = Folder("from-asyncore", tmp_path)
    [line] = [b for b in blocks(DOCS / "from-asyncore.md") if b.startswith("becket.serve(Lines")]
    program = files("from-asyncore")["lines_protocol.py"].split("async def main")[0]
    line = line.replace("cert=site.pem", "cert=dev").replace("tls://:", "tls://127.0.0.1:")
    (tmp_path / "lines_serve.py").write_text(folder.own(program + line))
    with folder.run("lines_serve.py") as server:
        wait_for(server, "listening at tls")
        assert ask(f"tcp://127.0.0.1:{folder.port(7000)}") == b"HELLO\n"
        assert ask(certified(folder.port(7001))) == b"HELLO\n"
        ends(server)


# ---- Parts of one's own --------------------------------------------------------------------------


def shell(page: str, begins: str, count: int) -> str:
    """The page's commands from the one that begins so on, as a script."""
    text = (DOCS / f"{page}.md").read_text()
    found = re.findall(r"^    \$ (.*)$", text[text.index(f"    $ {begins}") :], re.M)
    return "set -e\n" + "\n".join(found[:count])


def run_shell(script: str, folder: Path, prefix: Path) -> str:
    """Run a page's commands, with the library where it was installed and every warning an error."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    environment["BECKET"] = str(ROOT)
    environment["PKG_CONFIG_PATH"] = str(next(prefix.rglob("becket.pc")).parent)
    script = re.sub(r"^cc ", "cc -Wall -Wextra -Werror ", script, flags=re.M)
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=folder,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_notifier_conforms(installed: Path, tmp_path: Path) -> None:  # noqa: F811
    Folder("write-a-notifier", tmp_path)
    said = run_shell(shell("write-a-notifier", "LIB=", 4), tmp_path, installed)
    assert len(re.findall(r"^# notifier mine/\w+: good$", said, re.M)) > 20, said
    assert "loop over mine/" in said and "# loop/" in said


def test_a_loop_over_a_notifier(installed: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = Folder("write-a-notifier", tmp_path)
    build = shell("write-a-notifier", "LIB=", 2) + "\n" + shell("write-a-notifier", "cc echo.c", 1)
    run_shell(build, tmp_path, installed)
    with running(tmp_path / "echo", cwd=tmp_path) as server:
        where = f"tcp://127.0.0.1:{folder.port(7000)}"
        assert wait_for(server, "listening") == f"listening at {where}, over mine\n"
        assert ask(where) == b"hello\n"


def test_an_engine_in_c_conforms(installed: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = Folder("write-a-tls-engine", tmp_path)
    run_shell(shell("write-a-tls-engine", "LIB=", 6), tmp_path, installed)
    with running(tmp_path / "server", cwd=tmp_path) as server:
        wait_for(server, "a certificate for development")
        assert ask(certified(folder.port(7001))) == b"hello\n"
        server.terminate()
        output, _ = server.communicate(timeout=PATIENCE)
    assert (output, server.returncode) == ("opened 6, sealed 6\n", 0)


def test_an_engine_in_python_serves(tmp_path: Path) -> None:
    folder = Folder("write-a-tls-engine", tmp_path)
    with folder.run("mine_serve.py") as server:
        wait_for(server, "listening")
        assert ask(certified(folder.port(7001))) == b"hello\n"
        server.terminate()
        output, _ = server.communicate(timeout=PATIENCE)
    assert ast.literal_eval(output) == {"opened": 6, "sealed": 6}


def test_an_engine_in_python_passes_the_suite(tmp_path: Path) -> None:
    """With itself; its author runs it with all others too."""
    Folder("write-a-tls-engine", tmp_path)
    [command] = commands("write-a-tls-engine", "PYTHONPATH=$MINE ")
    command = command.replace("python3", sys.executable).replace("-k mine", "-k mine-mine")
    done = subprocess.run(
        ["sh", "-c", f"{command} -q -p no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "MINE": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and re.search(r"\d\d passed", done.stdout), done.stdout
