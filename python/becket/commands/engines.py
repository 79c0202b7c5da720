"""``becket engines``: the TLS engines, and why one is not there."""

from __future__ import annotations

import argparse
from typing import Any

from becket import _becket, tls
from becket.commands import add_json, new_parser, print_list

HOW = {
    "openssl": "install OpenSSL 3 (Debian: libssl3)",
    "gnutls": "build becket where GnuTLS's headers are (Debian: libgnutls28-dev, libgnutls30)",
    "mbedtls": "build becket where mbed TLS's headers are (Debian: libmbedtls-dev)",
}


def add(commands: Any) -> None:
    """``becket engines``."""
    parser = new_parser(
        commands,
        "engines",
        "the TLS engines that are here",
        description="List the TLS engines: what their libraries call themselves; or why one is not "
        "there, and how to get it. An endpoint names one by ?engine=NAME.",
    )
    parser.set_defaults(run=run)
    add_json(parser)


def engines() -> list[tuple[str, str | None, str | None]]:
    """All engines: their names, what their libraries call themselves, or why they are not here."""
    found = _becket._tls_engines()
    names = {name for name, _, _ in found}
    found += [(n, None, "becket was built without it") for n in HOW if n not in names]
    for name, engine in tls.engines().items():
        try:
            engine.open()
        except ImportError as error:
            found.append((name, None, str(error).removeprefix(f"{name}: ")))
        else:
            found.append((name, engine.version(), None))
    return found


def run(arguments: argparse.Namespace) -> int:
    """List them."""
    items, texts = [], {}
    for name, version, missing in engines():
        how = HOW.get(name) if version is None else None
        items.append({"engine": name, "version": version, "missing": missing, "how": how})
        texts[name] = version or f"not here: {missing}" + (f"; {how}" if how else "")
    return print_list(items, texts, arguments.json)
