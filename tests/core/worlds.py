"""Small worlds for the tests of core: specs, Gaussian-cluster records, released transcripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import (
    EmbeddingSpace,
    ModelPlan,
    Noise,
    OptimiserPlan,
    Plan,
    PrivacyPlan,
    RunSpec,
)

SECRET = bytes(range(32))


def space(dim: int = 12, classes: int = 3) -> EmbeddingSpace:
    return EmbeddingSpace(
        name="clusters",
        backbone="gaussian clusters",
        weights_digest="sha256:" + "0" * 64,
        preprocessing="none",
        dim=dim,
        classes=tuple(f"class-{i}" for i in range(classes)),
    )


def spec(
    *,
    dim: int = 12,
    classes: int = 3,
    privacy: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    optimiser: Mapping[str, Any] | None = None,
    noise: Noise | None = None,
    purpose: str = "simulation",
) -> RunSpec:
    """A small simulated run; noise multipliers 1 unless given (no calibration: fast)."""
    base = {"epsilon": 8.0, "delta": 1e-5, "n_max": 1000, "rounds": 3}
    base |= {"sample_rate": 0.5, "sketch_share": 0.8, "validation_share": 0.0}
    base["sketch_steps"] = 1
    asked = dict(privacy or {})
    if asked.get("sketch_steps") == 2:
        base |= {"mean_share": 0.65, "refine_share": 0.5}
    sizes = {
        "code_dim": 4, "trunk_width": 3, "latent_dim": 2, "hidden": 6, "encoder_hidden": 5,
        "basis_rank": 5,
    }  # fmt: skip
    plan = Plan(
        name="test",
        space="clusters",
        privacy=PrivacyPlan.model_validate(base | asked),
        model=ModelPlan.model_validate(sizes | dict(model or {})),
        optimiser=OptimiserPlan.model_validate(dict(optimiser or {})),
        purpose=purpose,
    )
    return RunSpec(
        run_id="run-1",
        plan=plan,
        space=space(dim, classes),
        noise=noise or Noise(sketch_multiplier=1.0, train_multiplier=1.0),
    )


def clusters(
    n: int,
    *,
    dim: int = 12,
    classes: int = 3,
    seed: int = 0,
    shift: float = 0.0,
    spread: float = 0.5,
) -> EmbeddingDataset:
    """Records around one unit-length centre per class (the same centres for every seed)."""
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    draw = np.random.default_rng(seed)
    y = draw.integers(0, classes, n)
    x = centres[y] + spread * draw.normal(size=(n, dim)) / np.sqrt(dim) + shift
    return EmbeddingDataset.from_arrays(x, y)


def with_units(data: EmbeddingDataset, units: NDArray[np.integer]) -> EmbeddingDataset:
    """The same records, grouped."""
    return EmbeddingDataset.from_arrays(data.x, data.y, tuple(f"p{u}".encode() for u in units))


def without_unit(data: EmbeddingDataset, unit: bytes) -> EmbeddingDataset:
    """The neighbouring data set: every record of one unit removed, nothing renamed."""
    keep = [i for i, name in enumerate(data.unit) if name != unit]
    return EmbeddingDataset.from_arrays(
        data.x[keep], data.y[keep], tuple(data.unit[i] for i in keep)
    )
