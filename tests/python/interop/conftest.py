"""The loops that others' programs run on within a test's own process."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import becket
from interop.processes import PATIENCE

Run = Callable[[Coroutine[Any, Any, None]], None]
LOOPS = {
    "becket": (becket.EventLoop, False),
    "becket-debug": (becket.EventLoop, True),
    "asyncio": (asyncio.SelectorEventLoop, False),  # the reference: what fails here is a wrong test
}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest, no_leaks: None) -> Iterator[Run]:
    """Runs a coroutine to its end on each of these loops. What the loop was told of as an error,
    a warning, or something left open is an error."""
    factory, debug = LOOPS[request.param]
    reported: list[dict[str, Any]] = []

    async def guarded(main: Coroutine[Any, Any, None]) -> None:
        loop = asyncio.get_running_loop()
        assert type(loop) is factory
        assert loop.get_debug() is debug
        loop.slow_callback_duration = PATIENCE
        loop.set_exception_handler(lambda _, context: reported.append(context))
        await asyncio.wait_for(main, PATIENCE)
        assert asyncio.get_running_loop() is loop

    def run(main: Coroutine[Any, Any, None]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
                runner.run(guarded(main))

    yield run
    assert not reported, reported
