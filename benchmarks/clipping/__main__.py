"""``python -m benchmarks.clipping``."""

from __future__ import annotations

import sys

from benchmarks.clipping.command import main

if __name__ == "__main__":
    sys.exit(main())
