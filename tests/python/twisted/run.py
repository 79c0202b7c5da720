"""Runs modules of Twisted's own tests on one reactor: `run.py becket REPORT MODULE…`.

The reactor is that of the process, and the only one that Twisted's ReactorBuilder makes its tests
for. What became of each test goes to the file REPORT, a line of JSON for each, under a name that is
the same for every reactor. Started by test_twisted_suites.py.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import json
import sys
import time
import warnings
from typing import Any, TextIO

HANGS_AFTER = 150  # seconds for one test: more than trial allows it


def becket_reactor(case: Any) -> Any:
    """For ReactorBuilder: a reactor on a loop of its own, which goes with the test."""
    import becket
    from becket.twisted import BecketReactor

    before = asyncio.get_event_loop_policy()
    loop = becket.EventLoop()
    asyncio.set_event_loop(loop)

    def clean_up() -> None:
        loop.close()
        asyncio.set_event_loop(None)
        asyncio.set_event_loop_policy(before)

    case.addCleanup(clean_up)
    return BecketReactor(loop)


Reactor = becket_reactor  # its tests are called by this word, as epoll's are here


def epoll_reactor(case: Any) -> Any:
    from twisted.internet.epollreactor import EPollReactor

    return EPollReactor()


def install(name: str) -> None:
    """Make *name* the reactor of this process, and of ReactorBuilder."""
    global Reactor  # noqa: PLW0603 - looked up by its name
    if name == "becket":
        import becket.twisted

        becket.twisted.install()
    else:
        importlib.import_module(f"twisted.internet.{name}reactor").install()
        Reactor = epoll_reactor
    from twisted.internet.test.reactormixins import ReactorBuilder

    ReactorBuilder._reactors = ["run.Reactor"]


def result_class() -> Any:
    from twisted.trial import reporter

    class Result(reporter.TestResult):  # type: ignore[misc]
        """Writes down what became of each test."""

        def __init__(self, report: TextIO) -> None:
            super().__init__()
            self._report = report
            self._outcome, self._text = "passed", ""
            self._began = 0.0

        def tell(self, test: Any, outcome: str, text: str) -> None:
            spent = round(time.monotonic() - self._began, 3)
            line = {"test": test.id(), "outcome": outcome, "text": text, "seconds": spent}
            print(json.dumps(line), file=self._report, flush=True)

        def startTest(self, test: Any) -> None:
            faulthandler.dump_traceback_later(HANGS_AFTER, exit=True, file=sys.__stderr__)
            self._outcome, self._text = "passed", ""
            self._began = time.monotonic()
            self.tell(test, "started", "")
            super().startTest(test)

        def stopTest(self, test: Any) -> None:
            super().stopTest(test)
            self.tell(test, self._outcome, self._text)
            with warnings.catch_warnings():  # what it left behind is not to trouble a later one
                warnings.simplefilter("ignore")
                gc.collect()
            faulthandler.cancel_dump_traceback_later()

        def note(self, outcome: str, text: Any) -> None:
            if hasattr(text, "getTraceback"):
                text = text.getTraceback()
            self._outcome, self._text = outcome, f"{self._text}{text}"

        def addError(self, test: Any, error: Any) -> None:
            self.note("failed", self._getFailure(error))

        addFailure = addError

        def addSkip(self, test: Any, reason: Any) -> None:
            self.note("skipped", reason)

        def addExpectedFailure(self, test: Any, error: Any, todo: Any = None) -> None:
            self.note("todo", "")

        def addUnexpectedSuccess(self, test: Any, todo: Any = None) -> None:
            self.note("failed", "unexpected success")

    return Result


def main(reactor: str, report: str, *modules: str) -> None:
    faulthandler.enable()
    sys.modules["run"] = sys.modules["__main__"]
    install(reactor)
    from twisted.internet.test.test_fdset import ReactorFDSetTestsBuilder
    from twisted.trial.runner import TestLoader, TrialSuite

    # That one waits for what neither reactor does: see not_applicable.txt.
    ReactorFDSetTestsBuilder.test_lostFileDescriptor.timeout = 2
    with open(report, "w", encoding="utf-8") as lines:
        suite = TestLoader().loadByNames(list(modules), True)
        gc.collect()
        gc.freeze()  # the collector need not look at it after each test
        TrialSuite([suite]).run(result_class()(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
