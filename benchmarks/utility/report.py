"""What a finished benchmark shows: tables on the console, figures as files."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from benchmarks.utility import figures, tables
from benchmarks.utility.measures import fitted
from benchmarks.utility.ours import drawn, noise_seed, one_thread, simulated
from benchmarks.utility.plan import (
    CODES,
    DOMAIN_EPSILON,
    FIDELITY_EPSILONS,
    NEUTRAL,
    OURS,
    UNGUIDED,
    Job,
    key,
)
from benchmarks.utility.records import Records
from benchmarks.utility.results import Results
from benchmarks.utility.splits import Settings, Split, split
from benchmarks.utility.store import Cells
from core.evaluation.baselines.common import Sampler
from core.privacy.noise import seeded


def show(
    console: Console, data: Records, settings: Settings, results: Results, reference: str | None
) -> None:
    declared = settings.n_max or "the next of 1, 2, 5 x 10^k, as an operator would declare"
    console.print(
        f"{data.name}: {settings.rows:,} synthetic records train a linear classifier that is "
        f"scored on real test records (TSTR); mean ± sd over seeds of split and noise.\n"
        f"{settings.noise} noise, delta {settings.delta:g}, unit: {data.unit}, bound on a "
        f"client's units: {declared}.\nSimulation with seeded noise, NOT PRIVATE.",
        highlight=False,
    )  # fmt: skip
    for measure in tables.UTILITY:
        console.print(f"\n{measure.replace('_', ' ')}")
        console.print(tables.utility(results, measure))
    for note in tables.notes(results):
        console.print(note, highlight=False)
    if reference is not None and len(results.rows) > 1:
        console.print(f"\naccuracy minus {reference}, on the same splits", highlight=False)
        console.print(tables.differences(results, reference))
    for epsilon in FIDELITY_EPSILONS:
        table = tables.fidelity(results, epsilon) if epsilon in results.epsilons else None
        if table is not None:
            console.print(
                f"\nε = {epsilon:g}: against real test records, and the membership attack by "
                "nearest record\n(simulation only; 0.5 is guessing, and proves no privacy)",
                highlight=False,
            )
            console.print(table)
    table = tables.domains(results, DOMAIN_EPSILON)
    if table is not None:
        console.print(
            f"\nε = {DOMAIN_EPSILON:g}: accuracy on a site's own test records, from its own code "
            "and the neutral one\n(pooled: from all codes in equal shares and the neutral one)",
            highlight=False,
        )
        console.print(table)
    if results.run_cost:
        console.print(
            f"\none run of ours at ε = 1, all rounds, 10 clients, 14,000 x 384 generated records: "
            f"{results.run_cost['seconds']:.1f} s, {results.run_cost['peak_mib']:.0f} MiB",
            highlight=False,
        )


def draw(
    data: Records, settings: Settings, cells: Cells, results: Results, stem: Path
) -> list[Path]:
    """The figures for which there is something to show, as ``stem``-NAME.png."""
    title = f"{data.name}, {settings.noise} noise"
    made = []

    def path(name: str) -> Path:
        made.append(stem.with_name(f"{stem.name}-{name}.png"))
        return made[-1]

    if results.rows and results.epsilons:
        figures.accuracy(results, title, path("accuracy"))
    shown = [e for e in FIDELITY_EPSILONS if e in results.epsilons]
    matrices = [
        (epsilon, cell["matrix"])
        for epsilon in shown
        if CODES in results.rows and "matrix" in (cell := cells.get(key(CODES, epsilon, 0), {}))
    ]
    if matrices:
        figures.fidelity(matrices, f"{title}, seed 0", path("fidelity"))
    parts = split(data, settings, 0)
    panels = [
        (row, epsilon, _samples(data, parts, settings, Job(method, epsilon, 0), row))
        for row, method in (("class-means", "class-means"), (UNGUIDED, OURS), (NEUTRAL, OURS))
        if row in results.rows
        for epsilon in shown
    ]
    if panels:
        real = (parts.test_x, parts.test_y)
        figures.projections(real, panels, data.space.classes, title, path("projections"))
    return made


def _samples(
    data: Records, parts: Split, settings: Settings, job: Job, row: str
) -> figures.Labelled:
    """Those on which the row's classifier was trained, made again: cells hold no records."""
    with one_thread():
        if job.method == OURS:
            seed = noise_seed(job)
            found = simulated(data, parts, settings, job, seeded(seed))
            return drawn(found, row, settings.rows, seed)
        baseline = fitted(data, parts, settings, job)
        if not isinstance(baseline, Sampler):
            raise TypeError(f"{job.method} makes no records")
        return baseline.sample(settings.rows, job.seed)
