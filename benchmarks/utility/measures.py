"""One job: run a method on one split, score what it made. Simulation only: reads raw records."""

from __future__ import annotations

import math
import time
from dataclasses import asdict

from benchmarks.utility import ours
from benchmarks.utility.ours import Cell, noise_seed, one_thread, secret
from benchmarks.utility.plan import NOT_PRIVATE, OUR_METHODS, Job
from benchmarks.utility.real_records import closeness
from benchmarks.utility.records import Records
from benchmarks.utility.splits import Settings, Split
from core.evaluation.baselines.common import Baseline, Sampler, Terms, spent
from core.evaluation.baselines.linear import LinearSettings, linear_classifier
from core.evaluation.baselines.methods import METHODS, utility
from core.privacy.noise import seeded

UNBOUNDED = "none"  # the epsilon of a method whose guarantee is infinite; JSON has no infinity


def measure(data: Records, parts: Split, settings: Settings, job: Job) -> dict[str, Cell]:
    """The job's cells by key."""
    with one_thread():
        began = time.monotonic()
        if job.method in OUR_METHODS:
            cells = ours.cells(data, parts, settings, job)
        else:
            cells = [_baseline(data, parts, settings, job)]
        seconds = round(time.monotonic() - began, 3)
    for cell in cells:
        used = cell.get("epsilon_spent", UNBOUNDED)
        if job.epsilon is not None and used != UNBOUNDED and used > job.epsilon:
            raise AssertionError(f"{job.name} spent epsilon {used}")
    return {
        name: {**cell, "seconds": seconds}
        for name, cell in zip(job.keys(settings.noise), cells, strict=True)
    }


def fitted(data: Records, parts: Split, settings: Settings, job: Job) -> Baseline:
    """The job's baseline, fitted to the clients' training records."""
    # What is not private reads neither terms nor noise, or an epsilon for its noise alone.
    terms = Terms(job.epsilon or 1.0, settings.delta, data.unit, settings.noise, secret(job))
    noise = seeded(noise_seed(job))
    if job.rate is not None:
        chosen = LinearSettings(learning_rate=job.rate)
        return linear_classifier(parts.sites, data.space, terms, noise, chosen)
    return METHODS[job.method](parts.sites, data.space, terms, noise)


def _baseline(data: Records, parts: Split, settings: Settings, job: Job) -> Cell:
    found = fitted(data, parts, settings, job)
    score = utility(found, parts.test_x, parts.test_y, rows=settings.rows, seed=job.seed)
    cell: Cell = asdict(score)
    if job.method not in NOT_PRIVATE:
        used = spent(found, settings.delta)
        cell["epsilon_spent"] = used if math.isfinite(used) else UNBOUNDED
    if job.measures_fidelity and isinstance(found, Sampler):
        cell |= closeness(parts, found.sample(settings.rows, job.seed)[0])
    return cell
