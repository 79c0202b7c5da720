"""pytest where asyncio makes becket's loops: what test_anyio.py runs anyio's own tests by."""

import sys

if __name__ == "__main__":  # anyio's worker processes import this too
    import pytest

    import becket

    becket.install()
    sys.exit(pytest.main(sys.argv[1:]))
