"""tests/soak/soak.py in small; `make soak` runs it in full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "soak" / "soak.py"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="this system does not tell a process's memory so"
)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--first", "2000", "--connections", "6000"),
        ("--first", "2000", "--connections", "6000", "--kind", "streams"),
        ("--first", "500", "--connections", "1500", "--tls"),
        ("--first", "2000", "--connections", "6000", "--kind", "twisted"),
        ("--first", "500", "--connections", "1500", "--kind", "twisted", "--tls"),
    ],
    ids=["protocol", "streams", "tls", "twisted", "twisted-tls"],
)
def test_nothing_stays_behind(arguments: tuple[str, ...]) -> None:
    subprocess.run([sys.executable, PROGRAM, *arguments], check=True)
