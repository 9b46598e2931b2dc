"""What the demo says: one clear line per step, progress bars where it takes a while."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class Narrator:
    """Prints to ``console`` and keeps the seconds of every step for the report."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """A line below the present step."""
        self.console.print(f"           {text}", style="dim", highlight=False, markup=False)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step and, when it is done, note how long it took."""
        self.console.print(
            f"[bold]{self.elapsed:6.1f} s[/bold]  {title}", highlight=False, soft_wrap=True
        )
        began = time.monotonic()
        yield
        self.seconds[title] = round(time.monotonic() - began, 2)

    def progress(self) -> Progress:
        """Bars below the present step (one live display at a time)."""
        return Progress(
            TextColumn("          "),
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )

    def track(self, what: str) -> Tracker:
        """For functions that take an iterable and its length."""
        return Tracker(self, what)


class Tracker:
    """Wraps an iterable into a progress bar: ``for item in tracker(items, total)``."""

    def __init__(self, narrator: Narrator, what: str) -> None:
        self._narrator = narrator
        self._what = what

    def __call__(self, items: Iterable[int], total: int) -> Iterable[int]:
        with self._narrator.progress() as progress:
            task: TaskID = progress.add_task(self._what, total=total)
            for item in items:
                yield item
                progress.advance(task)
