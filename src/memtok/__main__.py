"""`python -m memtok`: the same as the command `memtok`."""

from __future__ import annotations

import sys

from memtok.cli import main

if __name__ == "__main__":
    sys.exit(main())
