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

# What ReactorBuilder makes tests of, and what stands on the reactor directly.
REACTOR = [
    "twisted.internet.test.test_core",
    "twisted.internet.test.test_default",
    "twisted.internet.test.test_endpoints",
    "twisted.internet.test.test_fdset",
    "twisted.internet.test.test_process",
    "twisted.internet.test.test_socket",
    "twisted.internet.test.test_stdio",
    "twisted.internet.test.test_threads",
    "twisted.internet.test.test_time",
    "twisted.test.test_internet",
    "twisted.test.test_threads",
]
TCP = [
    "twisted.internet.test.test_tcp",
    "twisted.internet.test.test_udp",
    "twisted.internet.test.test_unix",
    "twisted.test.test_tcp",
    "twisted.test.test_tcp_internals",
    "twisted.test.test_udp",
    "twisted.test.test_unix",
]
TLS = [
    "twisted.internet.test.test_newtls",
    "twisted.internet.test.test_tls",
    "twisted.protocols.test.test_tls",
    "twisted.test.test_ssl",
]
SUITES = {
    "reactor": REACTOR,
    "tcp": TCP,
    "tls": TLS,
    "protocols": ["twisted.protocols.test.test_basic", "twisted.test.test_policies"],
    "web": [
        "twisted.web.test.test_http",
        "twisted.web.test.test_web",
        "twisted.web.test.test_wsgi",
    ],
    "mail": ["twisted.mail.test.test_smtp", "twisted.mail.test.test_pop3"],
    "names": ["twisted.names.test.test_names", "twisted.names.test.test_server"],
    "words": ["twisted.words.test.test_irc"],
    "conch": ["twisted.conch.test.test_ssh", "twisted.conch.test.test_forwarding"],
}
# Whole packages: for who has the time.
LARGE = ["internet", "protocols", "web", "mail", "conch", "names", "words"]
if os.environ.get("BECKET_TWISTED_LARGE") == "1":
    SUITES = {name: [f"twisted.{name}"] for name in LARGE}


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
    return subprocess.Popen(
        [sys.executable, str(HERE / "run.py"), reactor, str(report), *modules],
        cwd=folder / reactor, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
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
