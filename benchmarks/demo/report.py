"""The demo's tables on the console and its figures in ``report.json``."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.demo.evaluation import Row
from benchmarks.demo.federation import Books
from core.federation.plan import Plan

HEADING = "simulation: the real-data rows are not private"


@dataclass(frozen=True)
class Report:
    """Everything that the demo measured."""

    plan: Plan
    run_id: str
    rounds_published: int
    rows: list[Row]
    books: list[Books]
    seconds: dict[str, float]
    total_seconds: float
    peak_memory: int
    receipts: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {
            "heading": HEADING,
            "run_id": self.run_id,
            "rounds_published": self.rounds_published,
            "plan": self.plan.model_dump(mode="json"),
            "accuracy": [asdict(row) for row in self.rows],
            "clients": [asdict(each) for each in self.books],
            "seconds": {**self.seconds, "total": round(self.total_seconds, 1)},
            "peak_memory_bytes": self.peak_memory,
            "receipts": self.receipts,
            "machine": {"python": platform.python_version(), "system": platform.platform()},
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_json(), indent=2, sort_keys=True) + "\n")

    def show(self, console: Console) -> None:
        console.print()
        console.print(self._accuracies())
        console.print(self._spending())
        seconds = max(self.seconds.items(), key=lambda item: item[1])
        console.print(
            f"{self.total_seconds:.0f} s in all (longest step: {seconds[0]}, {seconds[1]:.0f} s); "
            f"peak memory of all processes {self.peak_memory / 2**30:.2f} GiB",
            highlight=False,
        )

    def _accuracies(self) -> Table:
        privacy = self.plan.privacy
        table = Table(
            title=f"{HEADING}\naccuracy of a linear classifier on real held-out records "
            f"(epsilon {privacy.epsilon:g}, delta {privacy.delta:g} per {privacy.unit} and site)",
            title_style="bold",
        )
        table.add_column("trained on")
        table.add_column("rows", justify="right")
        table.add_column("accuracy", justify="right")
        table.add_column("balanced", justify="right")
        for name in self.rows[0].per_site:
            table.add_column(f"on {name}", justify="right")
        for row in self.rows:
            table.add_row(
                row.trained_on,
                str(row.rows),
                f"{row.accuracy:.3f}",
                f"{row.balanced:.3f}",
                *(f"{value:.3f}" for value in row.per_site.values()),
                style=None if row.private else "red",
            )
        return table

    def _spending(self) -> Table:
        table = Table(title="what each client spent and sent", title_style="bold")
        for name, justify in (
            ("client", "left"), ("epsilon spent", "right"), ("by its own ledger", "right"),
            ("commits", "right"), ("lost", "right"), ("up, sketch", "right"),
            ("up, per round", "right"), ("down, per round", "right"),
        ):  # fmt: skip
            table.add_column(name, justify="left" if justify == "left" else "right")
        for each in self.books:
            table.add_row(
                each.name,
                f"{each.epsilon:.3f}",
                f"{each.site_epsilon:.3f}",
                str(each.committed),
                str(each.lost),
                _bytes(each.up_bytes[:1]),
                _bytes(each.up_bytes[1:]),
                _bytes(each.down_bytes[1:]),
            )
        return table


def _bytes(sizes: tuple[int, ...]) -> str:
    return f"{fmean(sizes) / 1000:,.1f} kB" if sizes else "-"
