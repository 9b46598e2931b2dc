"""Frame, hypernetwork, decoder: torch and numpy agree; training starts from the class means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from core.federation.plan import Noise
from core.models import generator, grouped
from core.models.architecture import (
    Activation,
    Architecture,
    Conditioning,
    Form,
    Prior,
    architecture_of,
)
from core.models.build import build
from core.models.frame import Frame
from core.models.hypernetwork import HyperCVAE
from core.models.layout import NULL_COORDINATES, sketch_layout, train_layout
from core.models.losses import Records, record_losses
from core.models.shrinkage import james_stein
from core.training.sketch import clipped_sketch
from tests.core import worlds

FORMS: tuple[Form, ...] = ("film", "lowrank", "full")
PRIORS: tuple[Prior, ...] = ("class", "standard")
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


def random_weights(network: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: 0.5 * draw.normal(size=shape) for name, shape in network.blocks}


def silent_encoder(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights with a posterior of N(0, 1) for every record: its draw is its latent."""
    return {
        name: np.zeros_like(value) if name.startswith("encoder.") else value
        for name, value in weights.items()
    }


def expanded_losses(
    network: Architecture, weights: dict[str, torch.Tensor], code: torch.Tensor, records: Records
) -> torch.Tensor:
    """[B] by the module that runs the hypernetwork once a record."""
    module = HyperCVAE(network).double()
    module.load(weights)
    codes = code.expand(len(records.labels), -1)
    losses: torch.Tensor = module(records.residual, records.labels, records.draws, codes)
    return losses


def grouped_losses(
    network: Architecture, weights: dict[str, torch.Tensor], code: torch.Tensor, records: Records
) -> torch.Tensor:
    """[B] by the layers that run it once a code; others have the same records, before and after."""
    codes = torch.stack([code + 1.0, code, torch.zeros_like(code)])
    made = grouped.generate(network, weights, grouped.trunk_outputs(network, weights, codes)[-1])
    count = len(records.labels)
    spans = [grouped.Span(k, k * count, (k + 1) * count) for k in range(3)]
    layers = grouped.Grouped(network, weights, made, spans)
    thrice = Records(
        records.residual.repeat(3, 1), records.labels.repeat(3), records.draws.repeat(3, 1)
    )
    return record_losses(network, layers, thrice)[count : 2 * count]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("losses_of", [expanded_losses, grouped_losses])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("conditioning", ["concat", "embedding"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "silu"])
@pytest.mark.parametrize("form", FORMS)
def test_numpy_decoder_equals_the_torch_decoder(
    form: Form,
    activation: Activation,
    conditioning: Conditioning,
    depth: int,
    losses_of: Callable[..., torch.Tensor],
    prior: Prior,
) -> None:
    """Decoder and prior of the sampler are those of the loss: seen through the loss itself."""
    network = Architecture(
        form=form, inputs=5, classes=3, code_dim=4, trunk=(6, 3, 2)[:depth], latent_dim=2,
        decoder=(7, 4, 3)[:depth], encoder=(4,), rank=2, activation=activation,
        conditioning=conditioning, conditioning_dim=3, beta=0.7,
        prior=prior,
    )  # fmt: skip
    weights = silent_encoder(random_weights(network))
    draw = np.random.default_rng(1)
    code, y, z = draw.normal(size=4), draw.integers(0, 3, 20), draw.normal(size=(20, 2))
    rho = draw.normal(size=(20, 5))
    theta = generator.generate(network, weights, code)
    ours = generator.decode(theta, z, y)
    mean, log_std = theta.prior_mean[y], theta.prior_log_std[y]
    divergence = (0.5 * (np.exp(-2 * log_std) * (1 + mean**2) - 1) + log_std).sum(axis=1)
    expected = 0.5 * np.square(ours - rho).sum(axis=1) + 0.7 * divergence

    residual = torch.from_numpy(rho).requires_grad_(True)
    records = Records(residual, torch.from_numpy(y), torch.from_numpy(z))
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    losses = losses_of(network, tensors, torch.from_numpy(code), records)
    # d/d rho of 0.5 |rho - decoded|^2, the encoder being silent.
    (slope,) = torch.autograd.grad(losses.sum(), residual)
    np.testing.assert_allclose(ours, rho - slope.numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(expected, losses.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("conditioning", ["concat", "embedding"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_the_residual_starts_at_zero(form: Form, layers: int, conditioning: Conditioning) -> None:
    """An untrained generator is the class-mean generator it starts from, under every code."""
    spec = worlds.spec(
        model={"form": form, "hidden_layers": layers, "trunk_layers": layers,
               "conditioning": conditioning}
    )  # fmt: skip
    phi = generator.initial_weights(spec)
    weights = train_layout(spec).split(phi)
    draw = np.random.default_rng(0)
    for code in (np.zeros(4), np.ones(4), 100 * draw.normal(size=4)):
        theta = generator.generate(architecture_of(spec), weights, code)
        residual = generator.decode(theta, draw.normal(size=(9, 2)), np.arange(9) % 3)
        assert not residual.any()
        assert not theta.prior_mean.any()
    np.testing.assert_array_equal(generator.initial_weights(spec), phi)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("form", FORMS)
def test_an_untrained_generator_can_learn_to_follow_its_code(form: Form, prior: Prior) -> None:
    """Zero outputs must not mean zero gradients for ever: a few steps wake every block."""
    spec = worlds.spec(model={"form": form, "prior": prior, "classifier": "none"})
    network = architecture_of(spec)
    module = HyperCVAE(network).double()
    weights = train_layout(spec).split(generator.initial_weights(spec))
    module.load({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    draw = np.random.default_rng(0)
    for _ in range(3):
        module.zero_grad()
        inputs = [torch.from_numpy(draw.normal(size=(30, k))) for k in (5, 2, 4)]
        labels = torch.from_numpy(draw.integers(0, 3, 30))
        module(inputs[0], labels, inputs[1], inputs[2]).sum().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.01 * parameter.grad
    still = [name for name, parameter in module.named_parameters() if not parameter.grad.any()]
    assert not still


@pytest.mark.parametrize("form", FORMS)
def test_a_standard_prior_is_that_of_every_code_and_costs_no_coordinates(form: Form) -> None:
    own, standard = (worlds.spec(model={"form": form, "prior": prior}) for prior in PRIORS)
    layouts = [dict(train_layout(spec).blocks) for spec in (own, standard)]
    assert layouts[0].keys() - layouts[1].keys() == {"prior.weight", "heads.prior.weight"}
    assert "prior" not in architecture_of(standard).groups
    weights = random_weights(architecture_of(standard))
    for code in (np.zeros(4), np.ones(4)):
        theta = generator.generate(architecture_of(standard), weights, code)
        assert theta.prior_mean.shape == theta.prior_log_std.shape == (3, 2)
        assert not theta.prior_mean.any()
        assert not theta.prior_log_std.any()


def test_log_std_is_bounded_whatever_the_noise_did() -> None:
    assert np.abs(generator.soft_bound(np.array([1e300, -1e300]))).max() <= generator.LOG_STD_BOUND
    assert generator.soft_bound(np.array([0.01]))[0] == pytest.approx(0.01, rel=1e-3)


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
