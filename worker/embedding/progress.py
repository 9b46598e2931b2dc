"""How far it is: images a second, and how long it still takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from worker.embedding.run import Watch


class _Rate(ProgressColumn):
    """Of the last half minute, in the end of all."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} images/s")


@contextmanager
def watched(total: int) -> Iterator[Watch]:
    """A progress bar on standard error: images a second, and how long it still takes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("embedding", total=total)
        began = False

        def watch(count: int, embedded: bool) -> None:
            nonlocal began
            if not began:  # what an earlier call has done says nothing about the speed of this one
                progress.reset(bar, completed=count)
                began = True
                return
            what = "embedding" if embedded else "looking for more broken images"
            progress.update(bar, advance=count, description=what)

        yield watch
