"""What the tests of Python share: the loops they run on, guards against leaks, and BECKET_NO_SKIP.

A test that takes `loop` runs on a becket loop for each notifier and on asyncio's own loop, whose
behaviour is the reference: what fails there is a wrong test. One that takes `becket_loop` is about
something that asyncio does not have.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import becket
from becket import _becket
from support import Reports

REFERENCE = "asyncio"
MEMORY_BIO = "memory-bio"  # a becket loop that does not work on ssl's objects directly
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Where BECKET_NO_SKIP=1 says that nothing may be left out, a skipped test has failed."""
    outcome: Any = yield
    report = outcome.get_result()
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    strict = os.environ.get("BECKET_NO_SKIP") == "1"
    if report.skipped and strict and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and BECKET_NO_SKIP is set: {report.longrepr}"


def pytest_unconfigure(config: pytest.Config) -> None:
    """What no_leaks() has frozen is collected after all, or it would look lost at the exit."""
    gc.unfreeze()
    gc.collect()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """TLS lies above the notifiers: its tests run on one, and on the fallback for ssl's objects,
    which no other test needs."""
    left_out = []
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        about_tls = Path(str(item.path)).name.startswith(("test_tls", "test_start_tls"))
        kinds = becket.notifiers[1:] if about_tls else (MEMORY_BIO,)
        if params.get("kind") in kinds or params.get("becket_loop") in kinds:
            left_out.append(item)
    # BECKET_SHARD=1/2: this process has every second test, and another has the rest.
    shard, _, shards = os.environ.get("BECKET_SHARD", "1/1").partition("/")
    mine = [item for item in items if item not in set(left_out)][int(shard) - 1 :: int(shards)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
    items[:] = mine


def make_loop(kind: str) -> asyncio.AbstractEventLoop:
    """A new loop: REFERENCE, the name of a notifier, or MEMORY_BIO."""
    if kind == REFERENCE:
        return asyncio.SelectorEventLoop()
    loop = becket.EventLoop(None if kind == MEMORY_BIO else kind)
    loop._adopts_ssl = kind != MEMORY_BIO
    return loop  # type: ignore[return-value]


def descriptors() -> dict[str, str]:
    """The descriptors that are open in this process, and what they are."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").is_dir() else ():
        try:
            found[entry.name] = str(entry.readlink())
        except OSError:
            pass  # the one that lists the folder
    return found


def transports() -> list[object]:
    """The transports of becket that are alive, but for those that were frozen."""
    gc.collect()
    kinds = (_becket.Transport, _becket.DatagramTransport)
    return [o for o in gc.get_objects() if isinstance(o, kinds)]


def finish(loop: asyncio.AbstractEventLoop) -> None:
    """End a loop as asyncio.run() does, then close it."""
    if not loop.is_closed():
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        if pending:
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def run_guarded(
    loop: asyncio.AbstractEventLoop, request: pytest.FixtureRequest
) -> Iterator[asyncio.AbstractEventLoop]:
    """Lend a loop to a test; then nothing of it may be left, nor anything reported unseen."""
    reports = Reports(loop)
    yield loop
    finish(loop)
    assert request.node.stash.get(FAILED, False) or not reports.unseen, (
        "the loop's exception handler heard of something: see reports"
    )


@pytest.fixture(params=[REFERENCE, *becket.notifiers, MEMORY_BIO])
def kind(request: pytest.FixtureRequest) -> str:
    """Which loop a test runs on."""
    return str(request.param)


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test opened is closed when it ends, and no transport of becket outlives it."""
    # What is there before a test is not its own, and the collector need not look at it: with every
    # test there is more of it.
    gc.collect()
    gc.freeze()
    before = descriptors()
    yield
    if request.node.stash.get(FAILED, False):
        return  # it did not come to its end, and its frames are kept for the report
    assert transports() == []
    assert descriptors() == before


@pytest.fixture
def loop(
    request: pytest.FixtureRequest, kind: str, no_leaks: None
) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of each kind, closed afterwards."""
    yield from run_guarded(make_loop(kind), request)


@pytest.fixture(params=[*becket.notifiers, MEMORY_BIO])
def becket_loop(request: pytest.FixtureRequest, no_leaks: None) -> Iterator[becket.EventLoop]:
    """A becket loop with each notifier, closed afterwards."""
    yield from run_guarded(make_loop(request.param), request)  # type: ignore[misc]


@pytest.fixture
def reports(loop: asyncio.AbstractEventLoop) -> Iterator[Reports]:
    """What the loop's exception handler was told; a test that takes it expects something."""
    reports = Reports(loop, expected=True)
    yield reports
    reports.all.clear()


@pytest.fixture
def short_path() -> Iterator[str]:
    """A path for a UNIX socket, whose length is limited as pytest's own folders' is not."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="bk-") as folder:
        yield str(Path(folder) / "s")


class Certificates:
    """The certificates of tests/certificates.sh, and contexts made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def der(self, name: str) -> bytes:
        """The first certificate of a file."""
        first = (self.folder / f"{name}.crt").read_text().partition("-----END")[0]
        return ssl.PEM_cert_to_DER_cert(f"{first}-----END CERTIFICATE-----\n")

    def server(self, name: str = "server", **settings: Any) -> ssl.SSLContext:
        """A server's context. Settings are set in the order in which they come."""
        return self._context(ssl.PROTOCOL_TLS_SERVER, name, settings)

    def client(self, name: str | None = None, **settings: Any) -> ssl.SSLContext:
        """A client's context, with a certificate only if one is named."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT, name, settings)

    def _context(self, side: Any, name: str | None, settings: dict[str, Any]) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.load_verify_locations(self.path("ca.crt"))
        if name is not None:
            context.load_cert_chain(self.path(f"{name}.crt"), self.path(f"{name}.key"))
        for setting, value in settings.items():
            setattr(context, setting, value)
        return context


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates and contexts, made anew for each session."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is missing")
    folder = tmp_path_factory.mktemp("certificates")
    subprocess.run([Path(__file__).parent.parent / "certificates.sh", folder], check=True)
    return Certificates(folder)
