"""On what was measured."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from benchmarks.clipping.plan import THREADS


def facts() -> dict[str, str | float]:
    """CPU, cores, memory, versions that decide about speed, and how many processes were running:
    two threads on cores that others use measure the others."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "load": round(os.getloadavg()[0], 2),
        "threads": THREADS,
        "python": platform.python_version(),
        "torch": version("torch"),
        "opacus": version("opacus"),
    }


def in_words(found: dict[str, str | float]) -> str:
    return (
        f"{found['cpu']}, {found['threads']} threads on {found['cores']} cores, "
        f"torch {found['torch']}, opacus {found['opacus']}, float32"
    )


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
