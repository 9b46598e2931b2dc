"""``python -m benchmarks.utility``."""

from __future__ import annotations

import sys

from benchmarks.utility.command import main

if __name__ == "__main__":
    sys.exit(main())
