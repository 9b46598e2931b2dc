"""Our runs, simulated: the whole method by its default plan, and its sketch rounds alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.utility.plan import (
    AGGREGATED_METHODS,
    CLASSIFIER,
    CODES,
    DOMAIN_EPSILON,
    OURS,
    SKETCH,
    SKETCH_AGGREGATED,
    SKETCH_CODES,
    UNGUIDED,
    Job,
)
from benchmarks.utility.real_records import closeness, domain_check, matrix
from benchmarks.utility.records import Records
from benchmarks.utility.splits import Settings, Split
from core.evaluation.distance import unit_rows
from core.evaluation.utility import Utility, score, tstr
from core.federation.plan import Plan
from core.federation.rule import NoiseMode, spec_for
from core.models.classifier import features
from core.privacy import accounting
from core.privacy.discrete.gaussian import seeded as seeded_bits
from core.privacy.noise import NoiseSource, seeded
from core.secagg.simulated import SecureTerms
from core.simulation import Simulated, SimulatedSite, simulate
from core.synthesis.request import SynthesisRequest

Cell = dict[str, Any]
Rows = tuple[NDArray[np.float32], NDArray[np.int64]]
Guidance = Literal["model", "none"]
Changes = Mapping[str, Mapping[str, Any]]  # section of the plan -> field -> value


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread in BLAS and torch: sums of another order would be other numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def noise_seed(job: Job) -> int:
    return int.from_bytes(hashlib.blake2b(job.name.encode(), digest_size=7).digest(), "little")


def secret(job: Job) -> bytes:
    return hashlib.blake2b(job.name.encode(), digest_size=32).digest()


def mode(settings: Settings, job: Job) -> NoiseMode:
    return "aggregated" if job.method in AGGREGATED_METHODS else settings.noise


def simulated(
    data: Records, parts: Split, settings: Settings, job: Job, noise: NoiseSource
) -> Simulated:
    """One run of ours: everything that the plan leaves open is left open."""
    alone = job.method in (SKETCH, SKETCH_AGGREGATED)
    plan = planned(data, parts, settings, job, {"privacy": {"rounds": 0}} if alone else {})
    return ran(plan, data, parts, noise, secret(job), mode(settings, job), terms(settings, job))


def terms(settings: Settings, job: Job) -> SecureTerms | None:
    """Of the secure sums of a table with aggregated noise; None elsewhere, also for the rows of the
    other table that show what noise once in the sum would be worth.
    """
    if settings.noise == "local":
        return None
    bits = seeded_bits(noise_seed(job))
    return SecureTerms(bits, drop=settings.drop, collude=settings.collude)


def planned(data: Records, parts: Split, settings: Settings, job: Job, changes: Changes) -> Plan:
    """The default plan at the job's epsilon, but for ``changes``. Raises ``ValueError``."""
    if job.epsilon is None:
        raise ValueError("our generator needs an epsilon")
    content: dict[str, Any] = {section: dict(fields) for section, fields in changes.items()}
    content["privacy"] = {
        "epsilon": job.epsilon, "delta": settings.delta, "n_max": parts.n_max, "unit": data.unit,
        "units_expected": round_number(sum(len(site.unit_ids) for site in parts.sites)),
        **changes.get("privacy", {}),
    }  # fmt: skip
    about: dict[str, Any] = {
        "name": "utility", "space": data.space.name, "purpose": "simulation",
    }  # fmt: skip
    if settings.noise == "aggregated":
        about["aggregation"] = "secure"
        about["secure"] = {"drop": settings.drop, "collude": settings.collude}
    return Plan.model_validate({**about, **content})


def ran(
    plan: Plan,
    data: Records,
    parts: Split,
    noise: NoiseSource,
    coins: bytes,
    noise_mode: NoiseMode,
    secure: SecureTerms | None = None,
) -> Simulated:
    """The plan carried out over the split's sites; ``coins`` are 32 bytes of secret."""
    spec = spec_for("utility", plan, data.space, len(parts.sites), noise_mode=noise_mode)
    sites = [SimulatedSite(client(m), site) for m, site in enumerate(parts.sites)]
    return simulate(spec, sites, noise=noise, secret=coins, noise_mode=noise_mode, secure=secure)


def round_number(units: int) -> int:
    """One significant digit: the federation's size as anybody would say it, steering the rule."""
    return round(units, 1 - len(str(units)))


def client(number: int) -> str:
    """A client's name in a simulated run."""
    return f"site-{number}"


def drawn(found: Simulated, row: str, rows: int, seed: int) -> Rows:
    """Samples of a row: of the neutral code, or of all codes in equal shares."""
    guidance: Guidance = "none" if row == UNGUIDED else "model"
    if row not in (CODES, SKETCH_CODES):
        return sampled(found, "neutral", rows, seed, guidance)
    clients = found.generator.clients
    each = -(-rows // len(clients))
    made = [sampled(found, {name: 1.0}, each, seed + i) for i, name in enumerate(clients)]
    return np.concatenate([x for x, _ in made]), np.concatenate([y for _, y in made])


def sampled(
    found: Simulated,
    mixture: str | Mapping[str, float],
    n: int,
    seed: int,
    guidance: Guidance = "model",
) -> Rows:
    """``guidance`` "model": labels by the trained classifier, if the run has one."""
    asked = {"run": "utility", "mixture": mixture, "n": n, "guidance": guidance}
    samples = found.generator.sample(SynthesisRequest.model_validate(asked), seed)
    return samples.x, samples.y


def classified(found: Simulated, parts: Split) -> Utility:
    """The trained classifier itself, under the neutral code, on real test records."""
    generator = found.generator
    seen = features(generator.frame, unit_rows(parts.test_x))
    return score(generator.classifier().labels(seen), parts.test_y)


def spent(found: Simulated, delta: float) -> float:
    """Epsilon of the client that spent most, from the events that were executed."""
    return max(accounting.epsilon(done, delta) for done in found.events.values())


def cells(data: Records, parts: Split, settings: Settings, job: Job) -> list[Cell]:
    """Cells of the job's rows, from one simulated run."""
    seed = noise_seed(job)
    found = simulated(data, parts, settings, job, seeded(seed))
    shown = {"sketch_steps", "mean_share", "refine_share", "rounds", "sketch_share"}
    common: Cell = {
        "epsilon_spent": spent(found, settings.delta),
        "n_max": parts.n_max,
        **found.generator.spec.plan.privacy.model_dump(include=shown),
    }
    made = []
    for row in job.rows(settings.noise):
        if row == CLASSIFIER:
            made.append(asdict(classified(found, parts)) | common)
            continue
        x, y = drawn(found, row, settings.rows, seed)
        cell: Cell = asdict(tstr(x, y, parts.test_x, parts.test_y)) | common
        if job.measures_fidelity:
            cell |= closeness(parts, x)
        if row in (CODES, SKETCH_CODES):
            cell |= _by_code(data, parts, job, found, seed)
        made.append(cell)
    return made


def _by_code(data: Records, parts: Split, job: Job, found: Simulated, seed: int) -> Cell:
    """What is said of each code on its own."""
    cell: Cell = {}

    def draw(code: int | None, rows: int) -> Rows:
        # One seed for all: sources then differ by their code alone.
        return sampled(found, "neutral" if code is None else {client(code): 1.0}, rows, seed)

    if job.measures_fidelity and job.method == OURS:
        cell["matrix"] = matrix(parts, draw)
    if data.domain is not None and job.epsilon == DOMAIN_EPSILON:
        cell["domains"] = domain_check(parts, draw)
    return cell
