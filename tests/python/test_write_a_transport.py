"""docs/write-a-transport.md: its programs run, its transport passes the suite, and what it shows of
examples/local.c is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
