"""Twisted's own tests, as they come with it, on becket's reactor: each is to end as it does with
Twisted's epoll reactor, a test that skips there as one that skips here, by name.

Each suite is run in two processes, one for each reactor, by run.py. not_applicable.txt has the
tests that end otherwise, and why; a line there that no test needs fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PATIENCE = 900  # seconds for a suite: a guard; run.py has one for each test
REACTORS = ("epoll", "becket")

Ends = dict[str, str]  # by the names of tests: passed, skipped, failed, todo, or started

PACKAGES = ("internet", "protocols", "web", "mail", "conch", "names", "words")
# Of Twisted's oldest tests those that go through the reactor.
OLDEST = (
    "adbapi", "amp", "ftp", "internet", "iutils", "loopback", "policies", "process", "sni", "ssl",
    "sslverify", "stdio", "strports", "tcp", "tcp_internals", "threads", "udp", "unix",
)  # fmt: skip
SUITES = {
    **{name: [f"twisted.{name}"] for name in PACKAGES},
    "oldest": [f"twisted.test.test_{name}" for name in OLDEST],
}


def read_entries(text: str) -> dict[str, str]:
    """Patterns of tests that end otherwise, with the reasons."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {pattern: why for pattern, _, why in (line.partition(": ") for line in lines)}


ENTRIES = read_entries((HERE / "not_applicable.txt").read_text())


def start(reactor: str, modules: list[str], folder: Path) -> subprocess.Popen[str]:
    """The tests, in a folder of their own, in which trial's tests make files."""
    (folder / reactor).mkdir()
    report = folder / f"{reactor}.json"
    report.touch()
    # Some start Twisted's own commands, which are beside the interpreter; some set a locale.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.Popen(
        [sys.executable, str(HERE / "run.py"), reactor, str(report), *modules],
        cwd=folder / reactor, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
        env=os.environ | {"PATH": path, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip


def read_report(path: Path) -> tuple[Ends, dict[str, str]]:
    """How each test ended, and what is said of it."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ends = {line["test"]: line["outcome"] for line in lines}
    return ends, {line["test"]: line["text"] for line in lines}


def run_both(modules: list[str], folder: Path) -> None:
    processes = [start(reactor, modules, folder) for reactor in REACTORS]
    try:
        for reactor, process in zip(REACTORS, processes, strict=True):
            said, _ = process.communicate(timeout=PATIENCE)
            print(said[-10_000:])
            assert process.returncode == 0, f"{reactor}: ended with {process.returncode}"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def judge(theirs: Ends, ours: Ends, texts: dict[str, str], entries: dict[str, str]) -> list[str]:
    """All that is not as it should be."""
    wrong = []
    for test in sorted({*theirs, *ours}):
        there, here = theirs.get(test, "absent"), ours.get(test, "absent")
        listed = {pattern for pattern in entries if fnmatchcase(test, pattern)}
        if there != here and not listed:
            wrong.append(f"{test}: {here}, and with epoll {there}\n{texts.get(test, '')}")
        if there == here and listed:
            wrong.append(f"{test}: stands in not_applicable.txt, and ends as with epoll")
    return wrong


def run_and_read(names: list[str], folder: Path) -> tuple[Ends, Ends, dict[str, str]]:
    run_both(names, folder)
    theirs, _ = read_report(folder / "epoll.json")
    return theirs, *read_report(folder / "becket.json")


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("suite", SUITES)
def test_suite(suite: str, tmp_path: Path) -> None:
    theirs, ours, texts = run_and_read(SUITES[suite], tmp_path)
    # Many of Twisted's tests go by the clock, and two run at once: what differs is run again.
    differ = [test for test in theirs if theirs[test] != ours.get(test) and test not in ENTRIES]
    if differ:
        (tmp_path / "again").mkdir()
        again = run_and_read(differ, tmp_path / "again")
        for first, second in zip((theirs, ours, texts), again, strict=True):
            first.update(second)
    counts = {end: list(ours.values()).count(end) for end in sorted(set(ours.values()))}
    print(f"{suite}: {counts}")
    assert "passed" in counts, "nothing ran"
    wrong = judge(theirs, ours, texts, ENTRIES)
    assert not wrong, "\n".join(wrong)


def test_what_differs_is_told() -> None:
    theirs = {"a": "passed", "b": "skipped", "c": "passed", "d": "skipped", "e": "passed"}
    ours = {"a": "passed", "b": "failed", "c": "skipped", "d": "failed"}
    told = judge(theirs, ours, {"b": "words"}, {"d": "why", "a": "why not"})
    assert [line.partition(":")[0] for line in told] == ["a", "b", "c", "e"]
    assert "words" in told[1]


def test_that_the_list_is_of_tests_that_are_run() -> None:
    modules = [module for modules in SUITES.values() for module in modules]
    for pattern in ENTRIES:
        assert any(pattern.startswith(module) for module in modules), pattern
