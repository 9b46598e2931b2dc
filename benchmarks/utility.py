"""How useful synthetic records are at a given epsilon: all methods on the same splits.

``python -m benchmarks.utility`` runs on the built-in scanner digits, ``--data FILE.npz`` on
``x`` [n, d], ``y`` [n] and, if present, ``domain`` [n] (one client each) and ``unit`` [n] (then
the privacy unit is the patient). Every finished cell is written at once; the same command goes on
where it stopped.

Simulation: all records lie in one process, and noise is seeded, hence NOT PRIVATE. Epsilon is
recomputed from the events that each method executed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import scanner_digits
from benchmarks.utility_targets import targets
from core.data import EmbeddingDataset
from core.evaluation.baselines.common import NoiseMode, Terms, spent
from core.evaluation.baselines.methods import METHODS, utility
from core.evaluation.utility import Utility, tstr
from core.federation.plan import EmbeddingSpace, Plan, PrivacyPlan, RunSpec, calibrate
from core.privacy import accounting
from core.privacy.noise import seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.storage import sha256_of
from core.synthesis.request import SynthesisRequest

RESULTS = Path(__file__).resolve().parent / "results"
ROWS = 8_000  # synthetic records on which the classifier is trained
CODE_VERSION = 2  # raise when a method changes: cells of another version are not taken up
N_MAX = 10_000  # declared bound on a client's units; public, no count of the data
OURS = ("sketch-neutral", "sketch-codes")
NOT_PRIVATE = ("real", "local-only")
STANDARD = ("real", "local-only", "class-means", "shared-gaussian", "dp-sgd-linear", *OURS)
Unit = Literal["record", "patient"]


@dataclass(frozen=True, eq=False)
class Records:
    """All records; ``groups`` [n] numbers the units, ``domain`` [n] the clients if they are given.

    ``held_out`` draws the test rows of one seed [n] bool; None: a share of the units.
    """

    name: str
    space: EmbeddingSpace
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    groups: NDArray[np.int64]
    unit: Unit
    domain: NDArray[np.int64] | None = None
    held_out: Callable[[int], NDArray[np.bool_]] | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """Clients' training records and the pooled test records of one seed."""

    sites: tuple[EmbeddingDataset, ...]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """What all methods of a table share. ``train`` is the share of units for training."""

    clients: int
    alpha: float
    train: float
    delta: float
    noise: NoiseMode


def built_in() -> Records:
    """Scanner digits: three sites as they are dealt, held-out images drawn anew for each seed."""
    data = scanner_digits.load()
    x = np.concatenate([a for s in data.sites for a in (s.train_x, s.test_x)])
    y = np.concatenate([a for s in data.sites for a in (s.train_y, s.test_y)])
    sizes = [len(s.train_y) + len(s.test_y) for s in data.sites]
    domain = np.repeat(np.arange(len(sizes)), sizes)

    def held_out(seed: int) -> NDArray[np.bool_]:
        own = [
            scanner_digits.hold_out(y[domain == d], seed=scanner_digits.SEED + seed)
            for d in range(len(sizes))
        ]
        return np.concatenate(own)

    return Records(
        "scanner-digits", data.space, x, y, np.arange(len(y)), "record", domain, held_out
    )


def from_file(path: Path) -> Records:
    """Records of an npz file; classes are the distinct values of ``y`` in order."""
    with np.load(path, allow_pickle=False) as stored:
        columns = {name: stored[name] for name in stored.files}
    x = np.asarray(columns["x"], np.float32)
    names, y = np.unique(columns["y"], return_inverse=True)
    space = EmbeddingSpace(
        name="benchmark", backbone=path.name, weights_digest=sha256_of(x.tobytes()),
        preprocessing="as stored", dim=x.shape[1], classes=tuple(str(n) for n in names),
    )  # fmt: skip
    groups = np.arange(len(y))
    if "unit" in columns:
        groups = np.unique(columns["unit"], return_inverse=True)[1]
    domain = None
    if "domain" in columns:
        domain = np.unique(columns["domain"], return_inverse=True)[1]
    unit: Unit = "patient" if "unit" in columns else "record"
    return Records(path.stem, space, x, y.astype(np.int64), groups, unit, domain)


def split(data: Records, settings: Settings, seed: int) -> Split:
    """Test records, and training records dealt to clients: by domain, else Dirichlet by class.

    Whole units are dealt, by the class of a unit's first record.
    """
    draw = np.random.default_rng(seed)
    _, first = np.unique(data.groups, return_index=True)
    if data.held_out is not None:
        test = data.held_out(seed)
    else:
        order = draw.permutation(len(first))
        test = np.isin(data.groups, order[round(settings.train * len(first)) :])
    owner = data.domain
    if owner is None:
        by_unit = np.zeros(len(first), np.int64)
        labels = data.y[first]
        for label in range(len(data.space.classes)):
            mine = draw.permutation(np.flatnonzero(labels == label))
            shares = draw.dirichlet(np.full(settings.clients, settings.alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(mine)).astype(np.int64)
            for client, units in enumerate(np.split(mine, cuts)):
                by_unit[units] = client
        owner = by_unit[data.groups]
    clients = int(owner.max()) + 1 if data.domain is not None else settings.clients
    sites = []
    for client in range(clients):
        rows = np.flatnonzero((owner == client) & ~test)
        names = tuple(b"%d" % g for g in data.groups[rows]) if data.unit == "patient" else None
        sites.append(EmbeddingDataset.from_arrays(data.x[rows], data.y[rows], names))
    return Split(tuple(sites), data.x[test], data.y[test])


# --- one cell ---


def measure(
    data: Records, parts: Split, settings: Settings, method: str, epsilon: float, seed: int
) -> dict[str, float]:
    """Accuracy of one method at one epsilon and seed; epsilon as executed."""
    began = time.monotonic()
    name = f"{method}/{epsilon}/{seed}".encode()
    noise_seed = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "little")
    secret = hashlib.blake2b(name, digest_size=32).digest()
    if method in OURS:
        found = _sketch(data, parts, settings, epsilon, noise_seed, secret)
        used = max(accounting.epsilon(done, settings.delta) for done in found.events.values())
        result = _ours(found, method, parts, noise_seed)
    else:
        terms = Terms(epsilon, settings.delta, data.unit, settings.noise, secret)
        baseline = METHODS[method](parts.sites, data.space, terms, seeded(noise_seed))
        used = spent(baseline, settings.delta)
        result = utility(baseline, parts.test_x, parts.test_y, rows=ROWS, seed=seed)
    if method not in NOT_PRIVATE and used > epsilon:
        raise AssertionError(f"{method} spent epsilon {used}, more than {epsilon}")
    cell = {**asdict(result), "seconds": round(time.monotonic() - began, 3)}
    return cell if method in NOT_PRIVATE else {**cell, "epsilon_spent": used}


def _sketch(
    data: Records, parts: Split, settings: Settings, epsilon: float, noise_seed: int, secret: bytes
) -> Simulated:
    """Our generator from the two sketch rounds alone."""
    privacy = PrivacyPlan(
        epsilon=epsilon, delta=settings.delta, n_max=N_MAX, unit=data.unit,
        rounds=0, sketch_steps=2,
    )  # fmt: skip
    plan = Plan(name="utility", space=data.space.name, privacy=privacy, purpose="simulation")
    spec = RunSpec(run_id="utility", plan=plan, space=data.space, noise=calibrate(privacy))
    sites = [SimulatedSite(f"site-{m}", site) for m, site in enumerate(parts.sites)]
    return simulate(spec, sites, noise=seeded(noise_seed), secret=secret)


def _ours(found: Simulated, method: str, parts: Split, seed: int) -> Utility:
    """TSTR of the neutral code, or of all codes in equal shares."""
    clients = found.generator.clients
    wanted: list[tuple[str | dict[str, float], int]] = [("neutral", ROWS)]
    if method == "sketch-codes":
        wanted = [({name: 1.0}, -(-ROWS // len(clients))) for name in clients]
    made = [
        found.generator.sample(
            SynthesisRequest.model_validate({"run": "utility", "mixture": mixture, "n": n}),
            seed + i,
        )
        for i, (mixture, n) in enumerate(wanted)
    ]
    x, y = np.concatenate([s.x for s in made]), np.concatenate([s.y for s in made])
    return tstr(x, y, parts.test_x, parts.test_y)


# --- all cells ---

Cells = dict[str, dict[str, float]]


def key(method: str, epsilon: float, seed: int) -> str:
    """What is not private does not depend on epsilon: one cell a seed."""
    return f"{method}|{'-' if method in NOT_PRIVATE else f'{epsilon:g}'}|{seed}"


class Store:
    """Finished cells of one configuration in one JSON file, written whole after each."""

    def __init__(self, folder: Path, name: str, configuration: Mapping[str, Any]) -> None:
        text = json.dumps(configuration, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.path = folder / f"utility-{name}-{configuration['noise']}-{digest}.json"
        self.configuration = dict(configuration)
        self.cells: Cells = {}
        if self.path.is_file():
            self.cells = json.loads(self.path.read_text())["cells"]

    def add(self, name: str, cell: dict[str, float]) -> None:
        self.cells[name] = cell
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        content = {"NOT PRIVATE": "seeded noise", **self.configuration, "cells": self.cells}
        part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        part.replace(self.path)


def fill(
    store: Store,
    data: Records,
    settings: Settings,
    methods: Sequence[str],
    epsilons: Sequence[float],
    seeds: Sequence[int],
    console: Console,
) -> None:
    """Measure whatever the store lacks, seed by seed."""
    wanted = [(s, m, e) for s in seeds for m in methods for e in epsilons]
    parts: tuple[int, Split] | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=len(wanted))
        for seed, method, epsilon in wanted:
            name = key(method, epsilon, seed)
            progress.update(task, description=name)
            if name not in store.cells:
                if parts is None or parts[0] != seed:
                    parts = (seed, split(data, settings, seed))
                store.add(name, measure(data, parts[1], settings, method, epsilon, seed))
            progress.advance(task)


def values(
    cells: Cells, method: str, epsilon: float, seeds: Sequence[int], measure_name: str
) -> list[float]:
    return [cells[key(method, epsilon, seed)][measure_name] for seed in seeds]


def _mean_sd(numbers: Sequence[float], signed: bool = False) -> str:
    mean = f"{fmean(numbers):+.3f}" if signed else f"{fmean(numbers):.3f}"
    return mean + (f" ({stdev(numbers):.3f})" if len(numbers) > 1 else "")


def table(
    cells: Cells,
    methods: Sequence[str],
    epsilons: Sequence[float],
    seeds: Sequence[int],
    measure_name: str,
    reference: str | None = None,
) -> Table:
    """Mean and, in brackets, standard deviation over seeds; or of paired differences."""
    title = measure_name.replace("_", " ")
    if reference is not None:
        title += f", minus {reference} on the same split"
    shown = Table(
        "method", *(f"ε = {e:g}" for e in epsilons), title=title, box=box.SIMPLE_HEAD,
        title_justify="left",
    )  # fmt: skip
    for method in methods:
        if method == reference:
            continue
        row = []
        for epsilon in epsilons:
            own = values(cells, method, epsilon, seeds, measure_name)
            if reference is not None:
                other = values(cells, reference, epsilon, seeds, measure_name)
                own = [a - b for a, b in zip(own, other, strict=True)]
            row.append(_mean_sd(own, signed=reference is not None))
        shown.add_row(method + (" (not private)" if method in NOT_PRIVATE else ""), *row)
    return shown


def summary(
    cells: Cells, methods: Sequence[str], epsilons: Sequence[float], seeds: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Mean accuracy by method and epsilon."""
    return {
        method: {
            f"{epsilon:g}": round(fmean(values(cells, method, epsilon, seeds, "accuracy")), 4)
            for epsilon in epsilons
        }
        for method in methods
    }


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utility", description=__doc__)
    parser.add_argument("--data", type=Path, help="npz with x, y and optionally domain, unit")
    parser.add_argument("--clients", type=int, default=10, help="unless the data name domains")
    parser.add_argument("--alpha", type=float, default=0.3, help="Dirichlet concentration")
    parser.add_argument("--train", type=float, default=7 / 12, help="share of units for training")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--delta", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, ...")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *OURS], default=STANDARD)
    parser.add_argument("--noise", choices=["local", "aggregated"], default="local")
    parser.add_argument("--reference", default="class-means", help="of the paired differences")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error("--seeds: at least one")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    console, stderr = Console(), Console(stderr=True)
    data = built_in() if arguments.data is None else from_file(arguments.data)
    noise = cast("NoiseMode", arguments.noise)
    settings = Settings(arguments.clients, arguments.alpha, arguments.train, arguments.delta, noise)
    methods = [m for m in arguments.methods if noise == "local" or m not in OURS]
    if len(methods) < len(arguments.methods):
        stderr.print("our sketch runs with local noise only: left out of this table")
    seeds = range(arguments.seeds)
    configuration = {
        **asdict(settings), "rows": ROWS, "n_max": N_MAX, "version": CODE_VERSION,
        "data": data.name, "x": sha256_of(data.x.tobytes()), "y": sha256_of(data.y.tobytes()),
        "unit": data.unit,
    }  # fmt: skip
    store = Store(arguments.results, data.name, configuration)
    fill(store, data, settings, methods, arguments.epsilons, seeds, stderr)
    console.print(
        f"{data.name}: TSTR on real test records, mean (sd) over {len(seeds)} seeds of split and "
        f"noise; {noise} noise, delta {settings.delta:g}; simulation with seeded noise, NOT PRIVATE"
    )
    for measure_name in ("accuracy", "balanced_accuracy"):
        console.print(table(store.cells, methods, arguments.epsilons, seeds, measure_name))
    if arguments.reference in methods:
        console.print(
            table(store.cells, methods, arguments.epsilons, seeds, "accuracy", arguments.reference)
        )
    stderr.print(f"cells: {store.path}")
    accuracy = summary(store.cells, methods, arguments.epsilons, seeds)
    line = {
        "bench": f"utility-{data.name}-{noise}",
        "figures": {f"{m}@{e}": value for m, by in accuracy.items() for e, value in by.items()},
        "targets": targets(data.name, noise, accuracy),
    }
    console.print(json.dumps(line), soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
