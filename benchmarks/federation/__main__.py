"""``python -m benchmarks.federation``."""

from __future__ import annotations

import sys

from benchmarks.federation.command import main

if __name__ == "__main__":
    sys.exit(main())
