"""One run of one variant, scored from the neutral code. Simulation only: reads raw records."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace

import numpy as np

from benchmarks.ablation.variants import NOISE_ONCE, PAIRS, VARIANTS, Run
from benchmarks.utility import ours
from benchmarks.utility.measures import UNBOUNDED, fitted
from benchmarks.utility.ours import Cell, noise_seed, one_thread, secret
from benchmarks.utility.plan import OURS, PAPER, Job
from benchmarks.utility.records import Records
from benchmarks.utility.splits import Settings, Split
from benchmarks.utility.store import Cells
from core.data import EmbeddingDataset
from core.evaluation.baselines.common import spent
from core.evaluation.baselines.methods import utility
from core.evaluation.utility import tstr
from core.privacy.noise import seeded


def measure(data: Records, parts: Split, settings: Settings, run: Run) -> Cells:
    """The run's cell by its key. All variants share the noise and coins of the method's own run
    in ``benchmarks.utility``: the default row is its row ``ours-neutral``.
    """
    with one_thread():
        began = time.monotonic()
        cell = _paper(data, parts, settings, run) if run.variant == PAPER else None
        cell = cell or _ours(data, parts, settings, run)
        cell["seconds"] = round(time.monotonic() - began, 3)
    used = cell["epsilon_spent"]
    if used != UNBOUNDED and used > run.epsilon:
        raise AssertionError(f"{run.name} spent epsilon {used}")
    return {run.name: cell}


def _ours(data: Records, parts: Split, settings: Settings, run: Run) -> Cell:
    job = Job(OURS, run.epsilon, run.seed)
    if run.variant == PAIRS:
        parts = paired_up(parts, run.seed)
    plan = ours.planned(data, parts, settings, job, VARIANTS[run.variant].changes)
    seed = noise_seed(job)
    mode = "aggregated" if run.variant == NOISE_ONCE else settings.noise
    found = ours.ran(plan, data, parts, seeded(seed), secret(job), mode)
    x, y = ours.sampled(found, "neutral", settings.rows, seed)
    score = asdict(tstr(x, y, parts.test_x, parts.test_y))
    return {**score, "epsilon_spent": ours.spent(found, settings.delta)}


def _paper(data: Records, parts: Split, settings: Settings, run: Run) -> Cell:
    found = fitted(data, parts, settings, Job(PAPER, run.epsilon, run.seed))
    score = utility(found, parts.test_x, parts.test_y, rows=settings.rows, seed=run.seed)
    used = spent(found, settings.delta)
    return {**asdict(score), "epsilon_spent": used if math.isfinite(used) else UNBOUNDED}


def paired_up(parts: Split, seed: int) -> Split:
    """The same records, two and two of a site one patient's, by a public draw."""
    sites = []
    for site in parts.sites:
        order = np.random.default_rng([seed, len(site)]).permutation(len(site))
        patient = np.empty(len(site), np.int64)
        patient[order] = np.arange(len(site)) // 2
        units = tuple(b"pair-%d" % number for number in patient)
        sites.append(EmbeddingDataset.from_arrays(site.x, site.y, units))
    return replace(parts, sites=tuple(sites))
