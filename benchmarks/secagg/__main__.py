"""``python -m benchmarks.secagg``."""

from __future__ import annotations

import sys

from benchmarks.secagg.command import main

if __name__ == "__main__":
    sys.exit(main())
