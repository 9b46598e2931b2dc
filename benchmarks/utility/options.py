"""Options that every benchmark over records takes: which records, dealt how, at which terms."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

from benchmarks.last_line import RESULTS
from benchmarks.utility.splits import Settings
from core.federation.rule import NoiseMode

_MOST_ROWS = 50_000  # held in memory, and fitted by a classifier, for every cell


def number(low: float, high: float) -> Callable[[str], float]:
    """An option's value strictly between ``low`` and ``high``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value < high:
            above = f" and below {high:g}" if math.isfinite(high) else ""
            raise argparse.ArgumentTypeError(f"{text!r} is no number above {low:g}{above}")
        return value

    return parse


def count(high: int | None = None, low: int = 1) -> Callable[[str], int]:
    """An option's value, a whole number from ``low``."""

    def parse(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() else -1
        if value < low or (high is not None and value > high):
            bound = "" if high is None else f" to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low}{bound}")
        return value

    return parse


def add_options(parser: argparse.ArgumentParser) -> None:
    """All of them but ``--noise``."""
    add = parser.add_argument
    standard = Settings()
    add("--data", type=Path, help="npz with x, y and optionally domain, unit")
    add("--clients", type=count(1_000), default=standard.clients,
        help="unless the data name domains")  # fmt: skip
    add("--alpha", type=number(0, math.inf), default=standard.alpha, help="of the Dirichlet deal")
    add("--train", type=number(0, 1), default=standard.train, help="share of units for training")
    add("--epsilons", type=number(0, 100), nargs="+", help="instead of the standard plan's")
    add("--delta", type=number(0, 1), default=standard.delta)
    add("--seeds", type=count(), help="how many (0, 1, ...), instead of the standard plan's")
    add("--rows", type=count(_MOST_ROWS), default=standard.rows,
        help="synthetic records for the classifier")  # fmt: skip
    add("--n-max", type=count(),
        help="declared public bound on a client's units; default: the smallest of 1, 2, 5 times a "
        "power of ten that holds, as an operator knows the order of magnitude")  # fmt: skip
    add("--jobs", type=count(64), default=os.cpu_count() or 1, help="worker processes")
    add("--results", type=Path, default=RESULTS, help="folder of cells, figures and tables")


def settings_of(
    arguments: argparse.Namespace, noise: str = "local", drop: int = 0, collude: int = 0
) -> Settings:
    return Settings(
        clients=arguments.clients, alpha=arguments.alpha, train=arguments.train,
        delta=arguments.delta, noise=cast("NoiseMode", noise), rows=arguments.rows,
        n_max=arguments.n_max, drop=drop, collude=collude,
    )  # fmt: skip
