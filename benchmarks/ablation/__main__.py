"""``python -m benchmarks.ablation``."""

from __future__ import annotations

import sys

from benchmarks.ablation.command import main

if __name__ == "__main__":
    sys.exit(main())
