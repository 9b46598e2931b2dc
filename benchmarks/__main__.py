"""``python -m benchmarks``: the built-in data set at a glance, and whether it is sensible."""

from __future__ import annotations

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import scanner_digits
from benchmarks.demo.narrator import Narrator
from core.evaluation.utility import tstr


def main() -> None:
    """Sites, their digits, and the accuracy of a linear classifier on all real records."""
    console = Console()
    data = scanner_digits.load(track=Narrator(console).track("embedding images (first time only)"))
    table = Table(
        "site",
        "training",
        "held out",
        *scanner_digits.CLASSES,
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for site in data.sites:
        counts = np.bincount(site.train_y, minlength=len(scanner_digits.CLASSES))
        table.add_row(
            f"{site.name} ({site.scanner})",
            str(len(site.train_y)),
            str(len(site.test_y)),
            *(str(count) for count in counts),
        )
    console.print(table)
    real = tstr(*data.pooled_train(), *data.pooled_test())
    console.print(
        f"linear classifier, all real training records (not private): {real.accuracy:.3f}"
    )


if __name__ == "__main__":
    main()
