"""One job: run a method on one split, score what it made. Simulation only: reads raw records."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.utility.plan import (
    AGGREGATED,
    CODES,
    NEUTRAL,
    NOT_PRIVATE,
    OURS,
    OURS_AGGREGATED,
    Job,
)
from benchmarks.utility.records import Records
from benchmarks.utility.splits import Settings, Split
from core.evaluation.baselines.common import Baseline, Sampler, Terms, spent
from core.evaluation.baselines.linear import LinearSettings, linear_classifier
from core.evaluation.baselines.methods import METHODS, utility
from core.evaluation.fidelity import domain_fidelity, mmd, prdc
from core.evaluation.privacy import membership_attack
from core.evaluation.utility import tstr
from core.federation.plan import Plan, PrivacyPlan
from core.federation.rule import NoiseMode, spec_for
from core.privacy import accounting
from core.privacy.noise import NoiseSource, seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.synthesis.request import SynthesisRequest

Cell = dict[str, Any]
Rows = tuple[NDArray[np.float32], NDArray[np.int64]]

# Distances take time and memory with the product of two sets' sizes. Which rows are taken is
# decided by a public seed and the number of rows, by nothing in them.
FIDELITY_ROWS = 2_000
MATRIX_ROWS, MATRIX_CLIENTS = 1_000, 12


def measure(data: Records, parts: Split, settings: Settings, job: Job) -> dict[str, Cell]:
    """The job's cells by key. The same numbers on one BLAS thread as on many, hence on one."""
    with threadpool_limits(1):
        began = time.monotonic()
        if job.method in (OURS, OURS_AGGREGATED):
            cells = _ours(data, parts, settings, job)
        else:
            cells = [_baseline(data, parts, settings, job)]
        seconds = round(time.monotonic() - began, 3)
    for cell in cells:
        used = cell.get("epsilon_spent", 0.0)
        if job.epsilon is not None and used > job.epsilon:
            raise AssertionError(f"{job.name} spent epsilon {used}")
    return {
        name: {**cell, "seconds": seconds}
        for name, cell in zip(job.keys(settings.noise), cells, strict=True)
    }


def noise_seed(job: Job) -> int:
    return int.from_bytes(hashlib.blake2b(job.name.encode(), digest_size=7).digest(), "little")


def _secret(job: Job) -> bytes:
    return hashlib.blake2b(job.name.encode(), digest_size=32).digest()


# --- baselines ---


def fitted(data: Records, parts: Split, settings: Settings, job: Job) -> Baseline:
    """The job's baseline, fitted to the clients' training records."""
    # What is not private reads neither terms nor noise.
    terms = Terms(job.epsilon or 1.0, settings.delta, data.unit, settings.noise, _secret(job))
    noise = seeded(noise_seed(job))
    if job.rate is not None:
        chosen = LinearSettings(learning_rate=job.rate)
        return linear_classifier(parts.sites, data.space, terms, noise, chosen)
    if job.method in ("dp-merf", "dp-cvae"):
        import torch

        torch.set_num_threads(1)  # as for BLAS: sums of another order are other numbers
    return METHODS[job.method](parts.sites, data.space, terms, noise)


def _baseline(data: Records, parts: Split, settings: Settings, job: Job) -> Cell:
    found = fitted(data, parts, settings, job)
    score = utility(found, parts.test_x, parts.test_y, rows=settings.rows, seed=job.seed)
    cell: Cell = asdict(score)
    if job.method not in NOT_PRIVATE:
        cell["epsilon_spent"] = spent(found, settings.delta)
    if job.measures_fidelity and isinstance(found, Sampler):
        cell |= closeness(parts, found.sample(settings.rows, job.seed)[0])
    return cell


# --- ours ---


def simulated(
    data: Records, parts: Split, settings: Settings, job: Job, noise: NoiseSource
) -> Simulated:
    """Our generator from the sketch rounds alone; the budget is split by the plan's rule."""
    if job.epsilon is None:
        raise ValueError("our generator needs an epsilon")
    mode: NoiseMode = "aggregated" if job.method == OURS_AGGREGATED else settings.noise
    privacy = PrivacyPlan(
        epsilon=job.epsilon,
        delta=settings.delta,
        n_max=parts.n_max,
        unit=data.unit,
        rounds=0,
        units_expected=round_number(sum(len(site.unit_ids) for site in parts.sites)),
    )
    plan = Plan(name="utility", space=data.space.name, privacy=privacy, purpose="simulation")
    spec = spec_for("utility", plan, data.space, len(parts.sites), noise_mode=mode)
    sites = [SimulatedSite(client(m), site) for m, site in enumerate(parts.sites)]
    return simulate(spec, sites, noise=noise, secret=_secret(job), noise_mode=mode)


def round_number(units: int) -> int:
    """One significant digit: the federation's size as anybody would say it, steering the rule."""
    return round(units, 1 - len(str(units)))


def client(number: int) -> str:
    """A client's name in a simulated run."""
    return f"site-{number}"


def drawn(found: Simulated, row: str, rows: int, seed: int) -> Rows:
    """Samples of the neutral code, or of all codes in equal shares."""
    if row in (NEUTRAL, AGGREGATED):
        return _sampled(found, "neutral", rows, seed)
    clients = found.generator.clients
    each = -(-rows // len(clients))
    made = [_sampled(found, {name: 1.0}, each, seed + i) for i, name in enumerate(clients)]
    return np.concatenate([x for x, _ in made]), np.concatenate([y for _, y in made])


def _sampled(found: Simulated, mixture: str | Mapping[str, float], n: int, seed: int) -> Rows:
    request = SynthesisRequest.model_validate({"run": "utility", "mixture": mixture, "n": n})
    samples = found.generator.sample(request, seed)
    return samples.x, samples.y


def _ours(data: Records, parts: Split, settings: Settings, job: Job) -> list[Cell]:
    """Cells of our rows, from one simulated run."""
    seed = noise_seed(job)
    found = simulated(data, parts, settings, job, seeded(seed))
    privacy = found.generator.spec.plan.privacy
    common: Cell = {
        "epsilon_spent": max(
            accounting.epsilon(done, settings.delta) for done in found.events.values()
        ),
        "n_max": parts.n_max,
        **privacy.model_dump(include={"sketch_steps", "mean_share", "refine_share"}),
    }
    cells = []
    for row in job.rows(settings.noise):
        x, y = drawn(found, row, settings.rows, seed)
        cell: Cell = asdict(tstr(x, y, parts.test_x, parts.test_y)) | common
        if job.measures_fidelity:
            cell |= closeness(parts, x)
            if row == CODES:
                cell["matrix"] = matrix(parts, found, seed)
        cells.append(cell)
    return cells


# --- against real records ---


def _some(rows: int, most: int) -> NDArray[np.int64]:
    return np.random.default_rng(rows).permutation(rows)[:most]


def closeness(parts: Split, x: NDArray[np.floating]) -> Cell:
    """MMD and PRDC against test records, and a membership attack on the training records.

    ``x`` [n, d] synthetic rows. The attacker sees all of them; elsewhere ``FIDELITY_ROWS`` a side.
    """
    trained = np.concatenate([site.x for site in parts.sites])
    members = trained[_some(len(trained), FIDELITY_ROWS)]
    real = parts.test_x[_some(len(parts.test_x), FIDELITY_ROWS)]
    made = x[_some(len(x), FIDELITY_ROWS)]
    attack = membership_attack(members, real, x)
    return {
        "mmd": mmd(real, made),
        **asdict(prdc(real, made)),
        "membership_auc": attack.auc,
        "membership_null_sd": attack.null_sd,
    }


def matrix(parts: Split, found: Simulated, seed: int) -> Cell:
    """Which client's held-out records does which code reproduce? MMD and TSTR [sources, clients].

    Sources are the clients' codes in the clients' order, then the neutral one. None where a
    client holds too few test records. Of many clients the first ``MATRIX_CLIENTS``.
    """
    clients = range(min(len(parts.sites), MATRIX_CLIENTS))
    mixtures: list[str | dict[str, float]] = [*({client(m): 1.0} for m in clients), "neutral"]
    # One seed for all: sources then differ by their code alone.
    sources = [_sampled(found, mixture, MATRIX_ROWS, seed) for mixture in mixtures]
    own = [np.flatnonzero(parts.test_owner == m) for m in clients]
    some = [rows[_some(len(rows), MATRIX_ROWS)] for rows in own]
    result = domain_fidelity(sources, [(parts.test_x[rows], parts.test_y[rows]) for rows in some])
    return {
        "sources": [*parts.names[: len(clients)], "neutral"],
        "clients": list(parts.names[: len(clients)]),
        "mmd": _plain(result.mmd),
        "tstr": _plain(result.tstr),
        "own_is_nearest": float(result.own_is_nearest().mean()),
    }


def _plain(values: NDArray[np.float64]) -> Sequence[Sequence[float | None]]:
    """As JSON, which has no NaN."""
    return [[None if np.isnan(v) else float(v) for v in row] for row in values]
