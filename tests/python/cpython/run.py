"""Runs one module of CPython's test_asyncio on becket's loop: `run.py test_events [report]`.

becket.EventLoop stands in this process wherever the tests find a loop of asyncio's: in policies, in
asyncio.SelectorEventLoop and asyncio.BaseEventLoop. What became of each test goes to the file
*report*, a line of JSON for each. Started by test_cpython.py; by hand, `run.py test_events -- -v -k
word` is unittest itself.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import asyncio.selector_events
import asyncio.unix_events
import faulthandler
import gc
import heapq
import importlib
import json
import selectors
import sys
import unittest
from typing import Any, TextIO

import becket
from becket import _becket

HANGS_AFTER = 100  # seconds for one test: a guard that no test is to come near

_AsyncioBaseLoop: Any = asyncio.BaseEventLoop


# ---- What stands in the place of asyncio's ----


class Loop(becket.EventLoop):
    """In the place of asyncio.SelectorEventLoop: the selector it is given names the notifier."""

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        notifier = None
        if selector is not None:
            selector.close()
            notifier = type(selector).__name__.removesuffix("Selector").lower()
        super().__init__(notifier)


class BaseLoop(becket.EventLoop):
    """In the place of asyncio.BaseEventLoop, of which CPython's tests make loops with a selector
    that never waits, and with a clock of their own: then timers go by that."""

    # As asyncio's base has it: there is none.
    _sendfile_native = _AsyncioBaseLoop._sendfile_native
    _sock_sendfile_native = _AsyncioBaseLoop._sock_sendfile_native

    def __init__(self) -> None:
        self.readers: dict[int, Any] = {}  # the add_reader() of TestLoop writes down, and no more
        super().__init__()
        self._own_selector = self._selector
        self._has_clock = type(self).time is not BaseLoop.time

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = super().call_soon(callback, *args, context=context)
        self._ready.append(handle)  # tests turn a loop for as long as it has some
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        if not self._has_clock or delay is None:
            return super().call_later(delay, callback, *args, context=context)
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        if not self._has_clock or when is None:
            return super().call_at(when, callback, *args, context=context)
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True
        heapq.heappush(self._scheduled, timer)
        return timer

    def stop(self) -> None:
        if self._selector is self._own_selector:
            super().stop()
        else:
            self._stopping = True  # the core is asked for one turn each time

    def _run_once(self) -> None:
        if self._selector is self._own_selector:
            super()._run_once()
            return
        while self._scheduled and self._scheduled[0]._when < self.time() + self._clock_resolution:
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False
            if not timer.cancelled():
                self.call_soon(timer._run)
        self._ready.clear()
        self._turn(0)


class NoFlow:
    """In the place of an SSLProtocol whose flow a test stops: ours is the peer's affair."""

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


def install(module: str) -> None:
    """Let all that comes from here on find becket's loop for asyncio's."""
    a: Any = asyncio
    a.SelectorEventLoop = a.unix_events.SelectorEventLoop = a.EventLoop = Loop
    a.DefaultEventLoopPolicy._loop_factory = Loop
    a.BaseEventLoop = a.base_events.BaseEventLoop = BaseLoop
    if module == "test_base_events":  # to which it is a loop without a sendfile() of its own
        a.selector_events.BaseSelectorEventLoop = BaseLoop
    # Tests of TLS fill a backlog so; ours fills when it is written to faster than the peer reads.
    transport: Any = _becket.Transport
    transport._test__append_write_backlog = transport.write
    transport._ssl_protocol = NoFlow()


class Watch:
    """Knows which kinds of loops have run since it was asked last."""

    def __init__(self) -> None:
        self._ran: set[str] = set()
        note, run = self._ran.add, _AsyncioBaseLoop.run_forever

        def run_forever(loop: asyncio.BaseEventLoop) -> None:
            note("becket" if isinstance(loop, becket.EventLoop) else type(loop).__qualname__)
            run(loop)

        _AsyncioBaseLoop.run_forever = run_forever

    def take(self) -> list[str]:
        ran = sorted(self._ran)
        self._ran.clear()
        return ran


# ---- Running ----


class Result(unittest.TextTestResult):
    """Writes down what became of each test, and on which loops it ran."""

    def __init__(self, watch: Watch, report: TextIO) -> None:
        super().__init__(sys.stderr, False, 0)  # type: ignore[arg-type]
        self._watch, self._report = watch, report
        self._outcome, self._text = "passed", ""

    def tell(self, name: str, outcome: str, text: str = "") -> None:
        line = {"test": name, "outcome": outcome, "text": text, "loops": self._watch.take()}
        print(json.dumps(line), file=self._report, flush=True)

    def startTest(self, test: unittest.TestCase) -> None:
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        self._outcome, self._text = "passed", ""
        self.tell(name_of(test), "started")
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.tell(name_of(test), self._outcome, self._text)
        faulthandler.cancel_dump_traceback_later()
        if self._outcome == "failed":
            gc.collect()  # what it left behind is not to trouble the next

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._add(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addFailure = addError

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self.addError(test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._text = ""  # of one that was not even started, in some versions
        self._add(test, "skipped", reason)

    def _add(self, test: Any, outcome: str, text: str) -> None:
        if isinstance(test, unittest.TestCase):
            self._outcome, self._text = outcome, self._text + text
        else:  # setUpModule() and the like
            self.tell(str(test), outcome, text)


def name_of(test: unittest.TestCase) -> str:
    """Class.test, as the list of exceptions has it."""
    return ".".join(test.id().rsplit(".", 2)[-2:])


def run(module: str, result: Result) -> None:
    try:
        suite = unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(module))
    except unittest.SkipTest as skipped:
        result.tell("the module", "skipped", str(skipped))
    else:
        suite.run(result)


def main(name: str, *rest: str) -> None:
    """*name*: of a module in test_asyncio; or with a dot in it, of any other."""
    faulthandler.enable()
    watch = Watch()
    install(name)
    from test import support

    support.use_resources = ["cpu", "walltime"]
    module = name if "." in name else f"test.test_asyncio.{name}"
    if rest[:1] == ("--",):
        unittest.main(module, argv=[module, *rest[1:]])
    with open(rest[0], "w", encoding="utf-8") as report:
        run(module, Result(watch, report))


if __name__ == "__main__":
    main(*sys.argv[1:])
