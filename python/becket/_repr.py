"""How handles describe themselves, as asyncio's do; called by the extension."""

from __future__ import annotations

import asyncio
import sys
import traceback
from asyncio import format_helpers
from typing import Any


def extract_stack() -> traceback.StackSummary:
    """The stack of whoever made a handle, for debug mode."""
    stack: traceback.StackSummary = format_helpers.extract_stack(sys._getframe(1))
    return stack


def handle_repr(handle: Any) -> str:
    """<Handle callback() at file:line>, in the words of this version of Python."""
    info: list[str] = asyncio.Handle._repr_info(handle)  # type: ignore[attr-defined]
    if hasattr(handle, "_when"):
        info.insert(2 if handle._cancelled else 1, f"when={handle._when}")
    return "<{}>".format(" ".join(info))


def failure_message(handle: Any) -> str:
    """What the exception handler is told when the callback has raised."""
    if handle._callback is None:
        return "Exception in callback None()"  # it cancelled its own handle
    info: list[str] = asyncio.Handle._repr_info(handle)  # type: ignore[attr-defined]
    return f"Exception in callback {info[-2 if handle._source_traceback else -1]}"
