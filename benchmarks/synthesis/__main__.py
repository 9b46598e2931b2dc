"""``python -m benchmarks.synthesis``."""

from __future__ import annotations

import sys

from benchmarks.synthesis.command import main

if __name__ == "__main__":
    sys.exit(main())
