"""Time and memory of one simulated run of ours, all rounds, on generated data of a fixed size.

``python -m benchmarks.utility.run_cost`` is that run and nothing else; ``measured`` starts it as a
process of its own, so that imports count and nothing that ran before does.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.utility.ours import drawn, simulated
from benchmarks.utility.plan import NEUTRAL, OURS, Job
from benchmarks.utility.records import Records
from benchmarks.utility.splits import Settings, split
from core.federation.plan import EmbeddingSpace
from core.privacy.noise import seeded

RECORDS, DIM, CLASSES, CLIENTS = 14_000, 384, 12, 10
EPSILON = 1.0


def generated() -> Records:
    """Gaussian classes; ``RECORDS`` for training and as few as may be for the test."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, CLASSES, RECORDS + 1)
    x = draw.standard_normal((CLASSES, DIM), dtype=np.float32)[y]
    x += draw.standard_normal(x.shape, dtype=np.float32)
    space = EmbeddingSpace(
        name="generated", backbone="Gaussian classes", weights_digest="sha256:" + "0" * 64,
        preprocessing="none", dim=DIM, classes=tuple(str(c) for c in range(CLASSES)),
    )  # fmt: skip
    return Records("generated", space, x, y, np.arange(len(y)), "record")


def main() -> None:
    """One run and its samples; prints the peak of this process's memory in MiB."""
    data = generated()
    settings = Settings(clients=CLIENTS, train=RECORDS / (RECORDS + 1))
    job = Job(OURS, EPSILON, 0)
    found = simulated(data, split(data, settings, 0), settings, job, seeded(0))
    x, _ = drawn(found, NEUTRAL, settings.rows, 0)
    sys.stdout.write(json.dumps({"rows": len(x), "peak_mib": round(_peak_mib(), 1)}) + "\n")


def _peak_mib() -> float:
    """Peak resident memory. ``ru_maxrss`` would begin at what the starting process held."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measured() -> dict[str, float]:
    """``seconds`` on the wall, imports included, and ``peak_mib``."""
    root = Path(__file__).resolve().parents[2]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.utility.run_cost"],
        cwd=root, check=True, capture_output=True, text=True,
    )  # fmt: skip
    seconds = round(time.monotonic() - began, 2)
    return {"seconds": seconds, "peak_mib": float(json.loads(done.stdout)["peak_mib"])}


if __name__ == "__main__":
    main()
