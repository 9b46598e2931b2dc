"""The demo's tables on the console and its figures in ``report.json``."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.demo.evaluation import Row
from benchmarks.demo.federation import Books
from core.federation.plan import RunSpec
from core.privacy.premise import in_words
from worker.answers import JsonObject

HEADING = "simulation: the real-data rows are not private"


@dataclass(frozen=True)
class Report:
    """Everything that the demo measured."""

    spec: RunSpec
    run_id: str
    rounds_published: int
    rows: list[Row]
    books: list[Books]
    seconds: dict[str, float]
    total_seconds: float
    peak_memory: int
    receipts: dict[str, Any]
    views: list[JsonObject]

    def as_json(self) -> dict[str, Any]:
        return {
            "heading": HEADING,
            "run_id": self.run_id,
            "rounds_published": self.rounds_published,
            "plan": self.spec.plan.model_dump(mode="json"),
            "accuracy": [asdict(row) for row in self.rows],
            "views": self.views,
            "clients": [asdict(each) for each in self.books],
            "seconds": {**self.seconds, "total": round(self.total_seconds, 1)},
            "peak_memory_bytes": self.peak_memory,
            "receipts": self.receipts,
            "machine": {"python": platform.python_version(), "system": platform.platform()},
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_json(), indent=2, sort_keys=True) + "\n")

    def show(self, console: Console) -> None:
        privacy = self.spec.plan.privacy
        console.print()
        console.print(
            f"[bold]{HEADING}[/bold]\naccuracy on real held-out records, all and site by site\n"
            f"epsilon {privacy.epsilon:g}, delta {privacy.delta:g} per {privacy.unit} and site",
            highlight=False,
        )
        console.print(self._accuracies())
        console.print(
            "[bold]epsilon spent by each client, and kB sent and fetched per round[/bold]"
        )
        console.print(self._spending())
        if rests := in_words(self.views):
            console.print(rests, highlight=False)
        seconds = max(self.seconds.items(), key=lambda item: item[1])
        console.print(
            f"{self.total_seconds:.0f} s in all, {seconds[1]:.0f} s of it: {seconds[0]}\n"
            f"peak memory of all processes together: {self.peak_memory / 2**30:.2f} GiB",
            highlight=False,
        )

    def _accuracies(self) -> Table:
        table = _table()
        _columns(table, "trained on", "accuracy", *self.rows[0].per_site)
        for row in self.rows:
            values = (row.accuracy, *row.per_site.values())
            table.add_row(
                row.trained_on,
                *(f"{value:.3f}" for value in values),
                style=None if row.private else "red",
            )
        return table

    def _spending(self) -> Table:
        # A round's model comes down at the start of the next: the first training round fetches
        # what the sketch rounds made.
        sketches = self.spec.sketch_rounds
        table = _table()
        _columns(
            table, "client", "epsilon", "at site", "commits", "lost",
            "up:\nsketch", "up:\ntrain", "down:\nsketch", "down:\ntrain",
        )  # fmt: skip
        for each in self.books:
            table.add_row(
                each.name,
                f"{each.epsilon:.3f}",
                f"{each.site_epsilon:.3f}",
                str(each.committed),
                str(each.lost),
                _kilobytes(each.up_bytes[:sketches]),
                _kilobytes(each.up_bytes[sketches:]),
                _kilobytes(each.down_bytes[1 : sketches + 1]),
                _kilobytes(each.down_bytes[sketches + 1 :]),
            )
        return table


def _table() -> Table:
    """Narrow enough for 80 columns. Without a title: rich would wrap it to the table's width."""
    return Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)


def _columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)


def _kilobytes(sizes: tuple[int, ...]) -> str:
    return f"{fmean(sizes) / 1000:,.1f}" if sizes else "-"
