"""The access log: one structured line for each connection, when it has ended.

A ``Gate`` of the core calls ``writer()``'s function; it logs to the logger ``becket.access``, whose
records carry the fields too (``record.connection``), for handlers that want them otherwise.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("becket.access")


def peer_text(peer: Any) -> str:
    """An address as one word; "-": there is none."""
    if isinstance(peer, tuple):
        host, port = peer[0], peer[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(peer, bytes):
        return "@" + peer[1:].decode(errors="backslashreplace")
    return peer or "-"


def iso_time(seconds: float) -> str:
    """A time since 1970 as ISO 8601 has it, in UTC, to the millisecond."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03}+00:00"


def _as_text(fields: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={json.dumps(value) if ' ' in str(value) else value}"
        for name, value in fields.items()
    )


def writer(form: str) -> Callable[..., None]:
    """What a Gate calls for each connection; *form* is "text" or "json"."""
    layout = _as_text if form == "text" else json.dumps

    def leave(
        endpoint: str,
        peer: Any,
        began: float,
        seconds: float,
        bytes_in: int,
        bytes_out: int,
        code: int,
        why: str | None,
    ) -> None:
        fields = {
            "time": iso_time(began),
            "endpoint": endpoint,
            "peer": peer_text(peer),
            "seconds": round(seconds, 6),
            "in": bytes_in,
            "out": bytes_out,
            "end": why or "ok",
        }
        logger.info("%s", layout(fields), extra={"connection": fields})

    return leave
