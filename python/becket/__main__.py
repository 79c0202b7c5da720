"""``python -m becket``: the command line."""

import sys

from becket.cli import main

sys.exit(main())
