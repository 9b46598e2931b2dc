"""Peak memory of a step: by how much this process's resident memory grows (Linux only)."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from statistics import median

from benchmarks.clipping.steps import Step

_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # what the kernel takes in clear_refs as "the peak is what is resident now"


def peak_growth(step: Step, repeats: int = 3) -> int:
    """Bytes; the median of some steps. The step has run before, so that what libraries allocate
    once and keep is not charged to it."""
    found = []
    for _ in range(repeats):
        _release()
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        before = _resident("VmRSS")
        result = step()
        found.append(_resident("VmHWM") - before)
        del result
    return max(0, int(median(found)))


def _release() -> None:
    """Give memory that was freed back to the system, so that a step has to fetch its own."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"{_STATUS} has no {field}")
