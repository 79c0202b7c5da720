"""docs/write-a-transport.md: its programs run, its transport passes the suite, and what it shows of
examples/local.c is there."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import becket
from becket import _becket
from support import Echo, Recorder
from support import run as run_on

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "write-a-transport.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The programs of the page, by the names in their first lines."""
    for block in blocks("python"):
        name = block.partition("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder, env=os.environ, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_used(folder: Path) -> None:
    assert run(folder, "use.py") == "b'hello\\n'\n"


def test_it_passes_the_suite(folder: Path) -> None:
    assert re.search(r"^\d\d passed", run(folder, "-m", "pytest", "-q", "test_local.py"), re.M)


def test_a_scheme_in_c_for_python(tmp_path: Path, becket_loop: becket.EventLoop) -> None:
    """An extension of one's own reaches the core, and its scheme serves and connects."""
    compiler = sysconfig.get_config_var("CC").split()[0]
    include = [f"-I{ROOT / 'include'}", f"-I{sysconfig.get_path('include')}"]
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    flags += ["-Wno-missing-field-initializers", "-shared", "-fPIC"]
    made = tmp_path / f"local_python{sysconfig.get_config_var('EXT_SUFFIX')}"
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    source = ROOT / "examples" / "local_python.c"
    subprocess.run([compiler, *flags, *include, source, "-o", made], check=True, env=environment)
    spec = importlib.util.spec_from_file_location("local_python", made)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def main() -> None:
        becket_loop.add_scheme(module.scheme)
        with pytest.raises(ValueError, match="scheme 'local' exists already"):
            becket_loop.add_scheme(module.scheme)
        place = f"local:{os.getpid()}"
        server = _becket.Listener(becket_loop, f"tls+{place}?cert=dev", Echo)
        transport, client = await becket_loop.connect_endpoint(
            lambda: Recorder(becket_loop), f"tls+{place}?verify=none"
        )
        transport.write(b"hello")
        assert await client.received(5) == b"hello"
        transport.close()
        await client.lost
        server.close()
        with pytest.raises(ConnectionRefusedError):
            await becket_loop.connect_endpoint(Echo, place)
        with pytest.raises(ValueError, match="a name is needed here") as caught:
            await becket_loop.connect_endpoint(Echo, "local:")
        assert str(caught.value).endswith("\n  local:\n        ^")

    run_on(becket_loop, main())


def test_what_it_shows_of_c_is_there() -> None:
    code = {line.strip() for line in (ROOT / "examples" / "local.c").read_text().split("\n")}
    code |= {
        line.strip() for line in (ROOT / "tests" / "c" / "test_local.c").read_text().split("\n")
    }
    calls = {  # as the page has them, shorter
        "code = bk_scheme_add(loop, &local_scheme);",
        'code = bk_listen(loop, "local:echo", &echo, &error, NULL);',
        "return bk_conform_transport(&joint, NULL, NULL) != 0;",
    }
    shown = {line.strip() for block in blocks("c") for line in block.split("\n")}
    assert shown - code - calls == set()
