"""CPython's own tests of asyncio, as they come with this interpreter, on becket's loop.

Each module is run in a process of its own, by run.py. What does not apply stands in
not_applicable.txt, and is run all the same: what passes there, or is not there any more, fails.
"""

from __future__ import annotations

import importlib.util
import json
import operator
import os
import pkgutil
import re
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PATIENCE = 1000  # seconds for a module: a guard; run.py has one for each test
# They are about what has no loop.
WITHOUT_LOOP = {"test_protocols", "test_transports"}

Report = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A line of not_applicable.txt."""

    pattern: str  # module.Class.test
    why: str

    @property
    def module(self) -> str:
        return self.pattern.partition(".")[0]

    @property
    def is_whole_module(self) -> bool:
        return self.pattern.endswith(".*") and self.pattern.count(".") == 1

    def fits(self, module: str, report: Report) -> bool:
        return fnmatchcase(f"{module}.{report['test']}", self.pattern)


def holds(condition: str, version: tuple[int, ...] = sys.version_info[:3]) -> bool:
    """Whether a condition like ">=3.12" or "<3.12.4" is met."""
    operators = {">=": operator.ge, "<": operator.lt}
    sign, text = re.fullmatch(r"(>=|<)([\d.]+)", condition).groups()  # type: ignore[union-attr]
    return operators[sign](version, tuple(map(int, text.split("."))))


def read_entries(text: str) -> list[Entry]:
    """The entries that are for this version of Python."""
    entries = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.*]+)(?: \[([^]]+)\])?: (.+)", line)
            assert match, f"not_applicable.txt: not in its form: {line}"
            if match[2] is None or holds(match[2]):
                entries.append(Entry(match[1], match[3]))
    return entries


ENTRIES = read_entries((HERE / "not_applicable.txt").read_text())


def installed() -> list[str]:
    """The modules of test_asyncio; none where the interpreter has come without its tests."""
    if importlib.util.find_spec("test") is None:
        return []
    spec = importlib.util.find_spec("test.test_asyncio")
    places = spec.submodule_search_locations if spec is not None else None
    names = [module.name for module in pkgutil.iter_modules(places or [])]
    return sorted(name for name in names if name.startswith("test_"))


def run_module(name: str, folder: Path) -> list[Report]:
    """What became of the tests of a module; one that did not come to its end has "started"."""
    path = folder / "report"
    path.touch()
    command = [sys.executable, str(HERE / "run.py"), name, str(path)]
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=PATIENCE, check=False, errors="replace",
    )  # fmt: skip
    print(done.stdout[-20_000:])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ended = {line["test"] for line in lines if line["outcome"] != "started"}
    reports = [r for r in lines if r["outcome"] != "started" or r["test"] not in ended]
    if done.returncode != 0 or not reports:
        text = f"the process ended with {done.returncode}"
        reports.append({"test": "the module", "outcome": "failed", "text": text, "loops": []})
    return reports


def judge(module: str, reports: list[Report], entries: list[Entry]) -> list[str]:
    """All that is not as it should be."""
    wrong = []
    for report in reports:
        where = f"{module}.{report['test']}"
        listed = any(entry.fits(module, report) for entry in entries)
        foreign = [name for name in report["loops"] if name != "becket"]
        if report["outcome"] in ("failed", "started") and not listed:
            wrong.append(f"{where}: {report['outcome']}\n{report['text']}")
        if report["outcome"] == "passed" and listed:
            wrong.append(f"{where}: stands in not_applicable.txt, and passes")
        if foreign and not listed:
            wrong.append(f"{where}: ran on another loop: {', '.join(foreign)}")
    for entry in entries:
        if entry.module == module and not any(entry.fits(module, r) for r in reports):
            wrong.append(f"{entry.pattern}: stands in not_applicable.txt, and is no test here")
    if module not in WITHOUT_LOOP and not any("becket" in r["loops"] for r in reports):
        wrong.append(f"{module}: nothing of it ran on becket's loop")
    return wrong


# ---- The tests ----

WHOLE = [entry.module for entry in ENTRIES if entry.is_whole_module]


def test_that_the_tests_are_installed() -> None:
    """On Debian and Ubuntu they are a package of their own."""
    assert installed(), (
        f"{sys.executable} has come without CPython's tests (test.test_asyncio). On Debian or "
        "Ubuntu: sudo apt-get install libpython3-testsuite; elsewhere: a Python built from source"
    )
    assert set(WHOLE) <= set(installed()), "not_applicable.txt names a module that is not there"


@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize("module", [name for name in installed() if name not in WHOLE])
def test_asyncio(module: str, tmp_path: Path) -> None:
    wrong = judge(module, run_module(module, tmp_path), ENTRIES)
    assert not wrong, "\n".join(wrong)


# ---- The harness ----


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    return run_module("cpython.sample", tmp_path_factory.mktemp("sample"))


def complaints(sample: list[Report], *entries: str) -> dict[str, str]:
    """What is said of each of the sample's tests."""
    listed = read_entries("\n".join(f"{entry}: why" for entry in entries))
    found = {}
    for text in judge("sample", sample, listed):
        where, _, what = text.partition(": ")
        found[where.removeprefix("sample.")] = what
    return found


def test_what_is_not_right_is_told(sample: list[Report]) -> None:
    found = complaints(sample)
    assert set(found) == {"Sample.test_failing", "Sample.test_raising", "Sample.test_standard"}
    assert "first" in found["Sample.test_failing"]
    assert "second" in found["Sample.test_failing"]
    assert "not as expected" in found["Sample.test_raising"]
    assert found["Sample.test_standard"] == "ran on another loop: _UnixSelectorEventLoop"


def test_what_ran_on_ours_is_known(sample: list[Report]) -> None:
    loops = {report["test"]: report["loops"] for report in sample}
    assert loops["Sample.test_ours"] == ["becket"]
    assert loops["Sample.test_without_loop"] == []
    others = [report for report in sample if report["test"] != "Sample.test_ours"]
    assert complaints(others)["sample"] == "nothing of it ran on becket's loop"


def test_the_list_cannot_rot(sample: list[Report]) -> None:
    found = complaints(
        sample, "sample.*.test_failing", "sample.Sample.test_ours", "sample.Sample.test_gone",
        "sample.Sample.test_other [<3.0]", "sample.Sample.test_standard",
    )  # fmt: skip
    assert set(found) == {
        "Sample.test_raising", "Sample.test_ours", "Sample.test_gone", "Sample.test_standard"
    }  # fmt: skip
    assert found["Sample.test_ours"] == "stands in not_applicable.txt, and passes"
    assert found["Sample.test_gone"] == "stands in not_applicable.txt, and is no test here"


def test_a_process_that_dies_is_no_success(tmp_path: Path) -> None:
    reports = run_module("cpython.not_there", tmp_path)
    assert [report["test"] for report in reports] == ["the module"]
    started = {"test": "A.test_b", "outcome": "started", "text": "", "loops": []}
    assert judge("test_protocols", [started], []) == ["test_protocols.A.test_b: started\n"]


def test_conditions_on_the_version() -> None:
    assert holds(">=3.12", (3, 12, 0))
    assert not holds(">=3.12.1", (3, 12, 0))
    assert holds("<3.12.1", (3, 12, 0))
    assert not holds("<3.12", (3, 12, 0))
