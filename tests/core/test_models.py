"""Frame, hypernetwork, decoder: torch and numpy agree; training starts from the class means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.federation.plan import Noise
from core.models import film
from core.models.build import build
from core.models.frame import Frame
from core.models.hypernetwork import FilmHyperCVAE
from core.models.layout import NULL_COORDINATES, sketch_layout, train_layout
from core.models.shrinkage import james_stein
from core.training.sketch import clipped_sketch
from tests.core import worlds

TINY = Noise(sketch_multiplier=1e-6, train_multiplier=1.0)


def exact_frame(classes: int = 3, sites: int = 3) -> tuple[Frame, list[np.ndarray]]:
    """A frame from almost noiseless sketches of sites that differ by a shift."""
    spec = worlds.spec(noise=TINY, classes=classes)
    data = [worlds.clusters(400, seed=s, shift=0.15 * s, classes=classes) for s in range(sites)]
    names = [f"site-{s}" for s in range(sites)]
    frame = build(spec, [clipped_sketch(spec, d) for d in data], names, names)
    return frame, [
        np.stack([np.sqrt(12) * d.directions[d.y == c].mean(axis=0) for c in range(classes)])
        for d in data
    ]


def test_numpy_decoder_equals_the_torch_decoder() -> None:
    spec = worlds.spec()
    draw = np.random.default_rng(0)
    phi = draw.normal(size=train_layout(spec).size)
    code, y = draw.normal(size=4), draw.integers(0, 3, 50)
    z = draw.normal(size=(50, 2))
    weights = train_layout(spec).split(phi)
    theta = film.generate(weights, code, 3)
    ours = film.decode(weights, theta, z, y)

    module = FilmHyperCVAE(spec).double()
    module.load(spec, phi)
    with torch.no_grad():
        labels = torch.eye(3, dtype=torch.float64)[torch.from_numpy(y)]
        trunk = torch.tanh(module.trunk(torch.from_numpy(code).expand(50, -1)))
        scale, shift = module.film(trunk).chunk(2, dim=1)
        hidden = module.decoder_hidden(torch.cat([torch.from_numpy(z), labels], dim=1)).tanh()
        theirs = module.decoder_out(hidden * (1 + scale) + shift).numpy()
        prior = module.prior(labels).numpy()[:, :2]
        shifts = module.prior_shift(trunk).view(50, 3, 2).numpy()[np.arange(50), y]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(theta.prior_mean[y], prior + shifts, rtol=1e-12, atol=1e-12)


def test_the_residual_starts_at_zero() -> None:
    """An untrained generator is the class-mean generator it starts from, under every code."""
    spec = worlds.spec()
    weights = train_layout(spec).split(film.initial_weights(spec))
    theta = film.generate(weights, np.ones(4), 3)
    residual = film.decode(
        weights, theta, np.random.default_rng(0).normal(size=(9, 2)), np.arange(9) % 3
    )
    assert not residual.any()
    assert not theta.prior_mean.any()
    np.testing.assert_array_equal(film.initial_weights(spec), film.initial_weights(spec))


def test_log_std_is_bounded_whatever_the_noise_did() -> None:
    assert np.abs(film.soft_bound(np.array([1e300, -1e300]))).max() <= film.LOG_STD_BOUND
    assert film.soft_bound(np.array([0.01]))[0] == pytest.approx(0.01, rel=1e-3)


def test_codes_reproduce_each_sites_means_and_neutral_the_pooled_ones() -> None:
    frame, truth = exact_frame()
    for index in range(3):
        made = frame.base_output(frame.codes[index])
        assert np.linalg.norm(made - truth[index]) < 0.05 * np.linalg.norm(truth[index])
        assert np.linalg.norm(made - truth[index]) < np.linalg.norm(frame.base - truth[index])
    np.testing.assert_allclose(frame.codes.mean(axis=0), 0, atol=1e-9)
    blend = frame.base_output(0.7 * frame.codes[0] + 0.3 * frame.codes[1])
    parts = 0.7 * frame.base_output(frame.codes[0]) + 0.3 * frame.base_output(frame.codes[1])
    np.testing.assert_allclose(blend, parts)


def test_frame_of_one_site_is_neutral() -> None:
    frame, truth = exact_frame(sites=1)
    np.testing.assert_allclose(frame.codes, 0, atol=1e-9)
    np.testing.assert_allclose(frame.base, truth[0], atol=0.05)


def test_basis_is_orthonormal_and_holds_the_class_contrasts() -> None:
    frame, _ = exact_frame()
    np.testing.assert_allclose(frame.basis @ frame.basis.T, np.eye(5), atol=1e-9)
    contrast = frame.base[0] - frame.base[1]
    assert np.linalg.norm(frame.basis @ contrast) > 0.99 * np.linalg.norm(contrast)


def test_absent_classes_and_pure_noise_stay_finite_and_near_the_pool() -> None:
    spec = worlds.spec(noise=Noise(sketch_multiplier=50.0, train_multiplier=1.0))
    draw = np.random.default_rng(1)
    sketches = [50 * draw.normal(size=sketch_layout(spec).size) for _ in range(3)]
    frame = build(spec, sketches, list("abc"), list("abc"))
    for value in (frame.base, frame.directions, frame.codes, frame.scale, frame.sizes):
        assert np.isfinite(value).all()
    assert (np.linalg.norm(frame.base, axis=1) <= np.sqrt(12) * (1 + 1e-9)).all()
    assert (frame.sizes >= 1).all()
    assert (frame.class_probs > 0).all()
    assert frame.scale[0] > 0


def test_shrink_removes_what_noise_explains_and_keeps_signal() -> None:
    draw = np.random.default_rng(0)
    truth, target = np.zeros(500), np.zeros(500)
    noise = draw.normal(size=500)
    assert np.linalg.norm(james_stein(truth + noise, target, 1.0)) < 0.3 * np.linalg.norm(noise)
    strong = 10 * np.ones(500)
    np.testing.assert_allclose(james_stein(strong + noise, target, 1.0), strong + noise, rtol=0.02)
    np.testing.assert_array_equal(james_stein(target, target, 1.0), target)


def test_frame_survives_its_file() -> None:
    frame, _ = exact_frame()
    again = Frame.from_bytes(frame.to_bytes("sha256:x"))
    np.testing.assert_allclose(again.base, frame.base, rtol=1e-6)
    assert again.client_ids == frame.client_ids
    with pytest.raises(KeyError, match="no code"):
        again.code("stranger")


def test_layout_splits_and_joins() -> None:
    layout = train_layout(worlds.spec())
    flat = np.arange(layout.size, dtype=np.float64)
    np.testing.assert_array_equal(layout.join(layout.split(flat)), flat)
    assert layout.update_length == layout.size + NULL_COORDINATES
    with pytest.raises(ValueError, match="coordinates"):
        layout.split(flat[:-1])
    with pytest.raises(ValueError, match="match the layout"):
        layout.join({})
    assert layout.digest != sketch_layout(worlds.spec()).digest
