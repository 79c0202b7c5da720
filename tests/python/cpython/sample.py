"""A test of each kind, for test_cpython.py to see what becomes of them; they are not run otherwise.

Run as CPython's are: asyncio's loop has been replaced.
"""

import asyncio
import asyncio.unix_events
import unittest
from collections.abc import Callable


def run(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(asyncio.sleep(0))


class Sample(unittest.TestCase):
    def test_ours(self) -> None:
        for make in (asyncio.new_event_loop, asyncio.SelectorEventLoop, asyncio.BaseEventLoop):
            run(make)

    def test_standard(self) -> None:
        run(asyncio.unix_events._UnixSelectorEventLoop)

    def test_without_loop(self) -> None:
        pass

    def test_failing(self) -> None:
        with self.subTest("one"):
            self.fail("first")
        with self.subTest("two"):
            self.fail("second")

    def test_raising(self) -> None:
        raise ValueError("not as expected")

    @unittest.skip("for a reason")
    def test_skipped(self) -> None:
        pass
