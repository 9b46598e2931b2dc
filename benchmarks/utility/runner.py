"""Run the jobs whose cells are missing, over worker processes, each finished one written at once.

What a job measures depends on its name alone, never on the number of workers or on their order.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.utility.records import Records, load
from benchmarks.utility.splits import Settings, Split, split
from benchmarks.utility.store import Cells, Store
from core.federation.rule import NoiseMode


class Runnable(Protocol):
    """A job of this or another benchmark."""

    @property
    def seed(self) -> int:
        """Of the split."""

    @property
    def cost(self) -> float:
        """Seconds, roughly."""

    def keys(self, noise: NoiseMode) -> tuple[str, ...]:
        """Cells that it fills."""


J = TypeVar("J", bound=Runnable)
# A function of a module: worker processes import it.
Measure = Callable[[Records, Split, Settings, J], Cells]
Finishing = Generator[tuple[J, Cells], None, None]


class Worker(Generic[J]):
    """Records and settings of one process, and the splits that it needed last."""

    def __init__(self, data: Records, settings: Settings, measure: Measure[J]) -> None:
        self.data, self.settings, self.measure = data, settings, measure
        self.split = lru_cache(maxsize=2)(self._split)

    def _split(self, seed: int) -> Split:
        return split(self.data, self.settings, seed)

    def run(self, job: J) -> tuple[J, Cells]:
        return job, self.measure(self.data, self.split(job.seed), self.settings, job)


_here: Worker[Any] | None = None  # of a worker process


def _start(source: Path | None, settings: Settings, measure: Measure[Any]) -> None:
    global _here
    # Ctrl-C reaches every process of the terminal; only the parent answers, by ending the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _here = Worker(load(source), settings, measure)


def _run(job: J) -> tuple[J, Cells]:
    if _here is None:
        raise RuntimeError("this process was not started as a worker")
    return _here.run(job)


def _serial(
    data: Records, settings: Settings, wanted: Sequence[J], measure: Measure[J]
) -> Finishing[J]:
    worker = Worker(data, settings, measure)
    for job in wanted:
        yield worker.run(job)


def _parallel(
    source: Path | None,
    settings: Settings,
    wanted: Sequence[J],
    measure: Measure[J],
    processes: int,
) -> Finishing[J]:
    # Not forked: locks of BLAS threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, context, _start, (source, settings, measure))
    try:
        # Blocked, not lost: children inherit it until ``_start`` has run, so that Ctrl-C does not
        # find one of them half started.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [pool.submit(_run, job) for job in wanted]
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for future in as_completed(futures):
            yield future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()  # its job may have a minute to go
        raise
    finally:
        pool.shutdown()


def fill(
    store: Store,
    data: Records,
    source: Path | None,
    settings: Settings,
    jobs: Sequence[J],
    measure: Measure[J],
    processes: int,
    console: Console,
) -> None:
    """Measure whatever the store lacks. ``source`` is where workers read ``data`` themselves."""
    wanted = [job for job in jobs if not all(k in store.cells for k in job.keys(settings.noise))]
    if not wanted:
        return
    if processes == 1:
        finished = _serial(data, settings, wanted, measure)
    else:
        finished = _parallel(source, settings, wanted, measure, min(processes, len(wanted)))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    left = (TextColumn("left:"), TimeRemainingColumn(compact=True, elapsed_when_finished=True))
    # Closed when Ctrl-C strikes in this loop, too: workers must not outlive it.
    with closing(finished), Progress(*columns, *left, console=console) as progress:
        task = progress.add_task(f"0/{len(wanted)} runs", total=sum(job.cost for job in wanted))
        for number, (job, cells) in enumerate(finished, 1):
            store.add(cells)
            progress.update(task, description=f"{number}/{len(wanted)} runs", advance=job.cost)
