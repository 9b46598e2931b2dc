"""``python -m benchmarks.embedding``."""

from __future__ import annotations

import os
import sys

# Threads that wait in a loop count as work of the bare network wherever other programs run, and
# of the command only where decoding has not told them to wait quietly. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.embedding.command import main

if __name__ == "__main__":
    sys.exit(main())
