"""Peak memory of the demo: itself, its children, and the embedded Postgres beside it."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Self

import psutil


def tree(roots: list[int]) -> list[psutil.Process]:
    """The processes of these ids and all that descend from them."""
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        try:
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                found[each.pid] = each
        except psutil.Error:
            continue  # ended meanwhile
    return list(found.values())


def used(processes: list[psutil.Process]) -> int:
    """Bytes. Proportional set size where the system tells it (shared pages are counted once)."""
    total = 0
    for process in processes:
        try:
            full = process.memory_full_info()
            total += int(getattr(full, "pss", full.rss))
        except psutil.AccessDenied:
            total += int(process.memory_info().rss)
        except psutil.Error:
            continue
    return total


class PeakMemory:
    """Samples in a thread while the block runs; ``peak`` is in bytes.

    ``add`` names a process outside our tree: a daemonised server has another parent.
    """

    def __init__(self, every_s: float = 1.0) -> None:
        self.peak = 0
        self._roots = [os.getpid()]
        self._every_s = every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def add(self, pid: int) -> None:
        self._roots.append(pid)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, used(tree(self._roots)))
            if self._end.wait(self._every_s):
                return
