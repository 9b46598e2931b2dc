"""Whole simulated runs of every form, by both engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.federation.plan import PrivacyPlan, calibrate
from core.federation.updates import TENSOR
from core.models.architecture import Architecture
from core.models.layout import NULL_COORDINATES
from core.privacy.noise import seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.synthesis.request import SynthesisRequest
from core.training.compute import Compute, tile_rows
from core.training.local import release
from core.wire import tensors
from tests.core import worlds

SITES = [
    SimulatedSite(name, worlds.clusters(120, seed=s, shift=0.1 * s)) for s, name in enumerate("ab")
]
MODELS: list[dict[str, Any]] = [
    {"form": "film", "activation": "gelu", "hidden_layers": 2},
    {"form": "lowrank", "lowrank": 2, "conditioning": "embedding", "conditioning_dim": 3},
    {"form": "full", "activation": "silu", "trunk_layers": 2, "encoder_layers": 2},
    *({"form": form, "prior": "standard"} for form in ("film", "lowrank", "full")),
]


def run(
    model: dict[str, Any], compute: Compute, privacy: dict[str, Any] | None = None
) -> Simulated:
    asked = {"epsilon": 8.0, "delta": 1e-5, "n_max": 400, "rounds": 3, "sample_rate": 0.5}
    plan = PrivacyPlan(
        **(
            {"sketch_share": 0.8, "validation_share": 0.0}
            | asked
            | {"sketch_steps": 1}
            | (privacy or {})
        )
    )
    spec = worlds.spec(privacy=plan.model_dump(), model=model, noise=calibrate(plan))
    return simulate(spec, SITES, noise=seeded(0), secret=worlds.SECRET, compute=compute)


def phi(done: Simulated) -> np.ndarray:
    content, _ = tensors.unpack(done.rounds[-1].weights)
    return np.asarray(content["phi"], np.float64)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: "-".join(map(str, model.values())))
def test_a_run_of_every_form_gives_rows_and_the_same_ones_by_either_engine(
    model: dict[str, Any],
) -> None:
    fast, slow = run(model, Compute()), run(model, Compute(engine="opacus"))
    trained = phi(fast)
    # Adam divides by the size of what it sees, so rounding may grow; noise is the same in both.
    np.testing.assert_allclose(trained, phi(slow), atol=1e-4)
    assert np.linalg.norm(trained - phi(run(model, Compute(micro_batch=7)))) < 1e-4
    for mixture in ("neutral", {"a": 0.3, "b": 0.7}):
        request = SynthesisRequest.model_validate({"run": "r", "n": 500, "mixture": mixture})
        rows = fast.generator.sample(request, seed=1)
        assert np.isfinite(rows.x).all()
        assert set(rows.y.tolist()) == {0, 1, 2}
    assert fast.events == slow.events


def test_noise_follows_the_sensitivity_of_all_parts() -> None:
    """Clip norms of 3 and 4 in two parts: the noise is that of one clip norm of 5."""

    def null_coordinates(privacy: dict[str, Any]) -> np.ndarray:
        spec = worlds.spec(privacy=privacy)
        before = simulate(
            worlds.spec(privacy=privacy | {"rounds": 0}), SITES, noise=seeded(0),
            secret=worlds.SECRET,
        ).rounds[-1]  # fmt: skip
        inputs = {"frame": before.frame, "weights": before.weights}
        body = release(
            spec, 1, 1, "a", SITES[0].data, inputs, secret=worlds.SECRET, noise=seeded(1)
        ).update
        content, _ = tensors.unpack(body)
        return np.asarray(content[TENSOR][-NULL_COORDINATES:], np.float64)

    one = null_coordinates({"clip_norm": 5.0})
    two = null_coordinates({"clip_norm": 3.0, "block_clip_norms": {"trunk": 4.0}})
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert np.std(one) == pytest.approx(5.0, rel=0.2)


def test_tiles_follow_public_numbers() -> None:
    small = Architecture("film", 32, 10, 16, (8,), 8, (32,), (32,))
    wide = Architecture("full", 1280, 10, 16, (8,), 16, (256,), (256,))
    assert tile_rows(small, 10) == 32
    assert tile_rows(small, 300) == 512
    assert tile_rows(wide, 1e6) < tile_rows(small, 1e6)
    spec = worlds.spec()
    assert Compute(micro_batch=5).tile(spec) == 5
    assert tile_rows(wide, 1e6, 1 << 27) == 64 * tile_rows(wide, 1e6)  # what a GPU has room for
    few = spec.plan.privacy.model_copy(update={"n_max": 10**6})
    many = spec.model_copy(update={"plan": spec.plan.model_copy(update={"privacy": few})})
    assert Compute("cuda:0").tile(many) > Compute().tile(many)
    assert Compute().tile(spec) == 256  # half of a third of n_max = 1000 units are expected
