"""How handles describe themselves, as asyncio's do; called by the extension, where speed is no aim."""

from __future__ import annotations

import sys
import traceback
from asyncio import format_helpers  # type: ignore[attr-defined]
from typing import Any


def extract_stack() -> traceback.StackSummary:
    """The stack of whoever made a handle, for debug mode."""
    stack: traceback.StackSummary = format_helpers.extract_stack(sys._getframe(1))
    return stack


def handle_repr(handle: Any) -> str:
    """<Handle callback() at file:line>; after asyncio.Handle._repr_info()."""
    info = [type(handle).__name__]
    if handle._cancelled:
        info.append("cancelled")
    if hasattr(handle, "_when"):
        info.append(f"when={handle._when}")
    if handle._callback is not None:
        info.append(format_helpers._format_callback_source(handle._callback, handle._args))
    if handle._source_traceback:
        frame = handle._source_traceback[-1]
        info.append(f"created at {frame[0]}:{frame[1]}")
    return "<{}>".format(" ".join(info))
