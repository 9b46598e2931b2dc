"""The space and the plans of this benchmark: sizes chosen for their P, nothing to be learnt."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from benchmarks.scanner_digits import Site
from core.federation.model_plan import ModelPlan
from core.federation.plan import EmbeddingSpace, Plan
from core.models.architecture import from_plan

DIM, CLASSES = 128, 8
N_MAX = 1000
EPSILON, DELTA = 4.0, 1e-5
RECORDS = 16  # of one site, where agents train: the protocol is measured, not the training
# Hidden widths by name of the size: their P is a straight line in the width.
HIDDEN = {"33k": 98, "125k": 389, "250k": 785, "500k": 1576, "1250k": 3949}

SPACE = EmbeddingSpace(
    name="bench",
    backbone="none: Gaussian clusters",
    weights_digest="sha256:" + hashlib.sha256(b"bench").hexdigest(),
    preprocessing="none",
    dim=DIM,
    classes=tuple(f"class-{number}" for number in range(CLASSES)),
)


def model(size: str) -> ModelPlan:
    width = HIDDEN[size]
    return ModelPlan(basis_rank=DIM, hidden=width, encoder_hidden=width)


def parameters(size: str) -> int:
    """P of a training round's update."""
    return from_plan(model(size), DIM, CLASSES).size


def plan(name: str, size: str, *, rounds: int, quorum: int, **rules: Any) -> Plan:
    """One sketch, ``rounds`` training rounds of P = ``size``, no validation round."""
    return Plan.model_validate(
        {
            "name": name,
            "space": SPACE.name,
            "privacy": {
                "epsilon": EPSILON, "delta": DELTA, "n_max": N_MAX, "rounds": rounds,
                "sketch_steps": 1, "sketch_share": 0.5, "validation_share": 0.0,
            },
            "model": model(size).model_dump(),
            "round": {"quorum": quorum, "deadline_s": 600.0, "lease_s": 300.0, **rules},
        }
    )  # fmt: skip


def site(name: str, seed: int) -> Site:
    """One site's records: Gaussian clusters, none held out."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, RECORDS)
    centres = np.random.default_rng(0).normal(size=(CLASSES, DIM))
    x = (centres[y] + rng.normal(size=(RECORDS, DIM))).astype(np.float32)
    return Site(name, "clusters", x, y, x[:0], y[:0])
