"""Ghost clipping through the hypernetwork: equal to written-out gradients, safe in every edge case.

``World`` holds records under two codes, the client's and the neutral one, and runs them through
``core.privacy.ghost`` and through its opponent: one autograd pass a record, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from torch import Tensor

from core.models.architecture import (
    Activation,
    Architecture,
    Conditioning,
    Form,
    Prior,
    group_of,
)
from core.models.generator import initial_weights
from core.models.grouped import trunk_outputs
from core.models.hypernetwork import HyperCVAE
from core.models.layout import train_layout
from core.models.losses import Records
from core.privacy.clipping import ROUNDING, ClipRule
from core.privacy.coins import CoinStream
from core.privacy.ghost import HyperModel, clipped_sum, tiles
from core.privacy.ghost_trunk import Trunk
from core.privacy.rowwise import rows_are_alike
from core.training import gradients
from core.training.compute import Compute
from tests.core import worlds
from tests.core.test_neighbours import frame_for

Vector = NDArray[np.float64]
FORMS: tuple[Form, ...] = ("film", "lowrank", "full")
ACTIVATIONS: tuple[Activation, ...] = ("tanh", "relu", "gelu", "silu")
CONDITIONINGS: tuple[Conditioning, ...] = ("concat", "embedding")
PRIORS: tuple[Prior, ...] = ("class", "standard")
UNCLIPPED = ClipRule(1e300)
# Nothing stands in for a GPU: its kernels and its rounding are what these tests are about. The same
# assertions on the CPU never skip.
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda:0", marks=needs_gpu)]


def network_of(form: Form = "film", **changes: Any) -> Architecture:
    sizes: dict[str, Any] = {
        "inputs": 6, "classes": 3, "code_dim": 4, "trunk": (5, 3), "latent_dim": 2,
        "decoder": (7, 4), "encoder": (6, 5), "rank": 2, "conditioning_dim": 3,
        "classifier": (4,), "classifier_inputs": 5, "beta": 0.8,
    }  # fmt: skip
    return Architecture(form=form, **(sizes | changes))


def wide(form: Form) -> Architecture:
    """About the size of a real run: products are large enough for blocked kernels."""
    return network_of(
        form, inputs=64, classes=10, code_dim=16, trunk=(8,), latent_dim=8, decoder=(32,),
        encoder=(32,), classifier=None, classifier_inputs=0,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class World:
    """A network with random weights, records (float64) and whose they are."""

    network: Architecture
    weights: Mapping[str, Tensor]
    codes: Tensor
    records: Records
    unit_of: NDArray[np.int64]
    code_of: NDArray[np.int64]
    device: str = "cpu"

    @classmethod
    def draw(
        cls, network: Architecture, sizes: Sequence[int], *, seed: int = 0, scale: float = 0.5
    ) -> World:
        """Units of these sizes, their records shuffled, about half of the units neutral."""
        generator = torch.Generator().manual_seed(seed)
        draw = np.random.default_rng(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        unit_of = draw.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int64)
        neutral = draw.random(len(sizes)) < 0.5
        code = normal(network.code_dim)
        weights = {name: scale * normal(*shape) for name, shape in network.blocks}
        if network.trains_code:
            weights["code.weight"] = code[:, None].clone()
        n = len(unit_of)
        features = None if network.classifier is None else normal(n, network.classifier_inputs)
        records = Records(
            normal(n, network.inputs),
            torch.randint(0, network.classes, (n,), generator=generator),
            normal(n, network.latent_dim),
            features,
        )
        codes = torch.stack([code, torch.zeros_like(code)])
        return cls(network, weights, codes, records, unit_of, neutral[unit_of].astype(np.int64))

    @property
    def units(self) -> list[int]:
        return np.unique(self.unit_of).tolist()

    def picked(self, rows: NDArray[np.int64], dtype: torch.dtype = torch.float64) -> Records:
        """The records at ``rows``, on the device."""

        def part(values: Tensor) -> Tensor:
            return values[torch.from_numpy(rows)].to(self.device)

        records = self.records
        features = None if records.features is None else part(records.features).to(dtype)
        return Records(
            part(records.residual).to(dtype), part(records.labels),
            part(records.draws).to(dtype), features,
        )  # fmt: skip

    def ghost(
        self,
        rule: ClipRule,
        *,
        units: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float64,
        tile: int = 32,
        reduced: bool = False,
    ) -> Vector:
        """[P] the clipped sum of all units, or of some."""
        kept = np.arange(len(self.unit_of))
        if units is not None:
            kept = np.flatnonzero(np.isin(self.unit_of, units))
        model = HyperModel(
            self.network,
            {name: value.to(self.device, dtype) for name, value in self.weights.items()},
            self.codes.to(self.device, dtype),
            0 if self.network.trains_code else None,
            reduced,
        )

        def load(rows: NDArray[np.int64]) -> Records:
            assert 1 <= len(rows) <= tile
            return self.picked(kept[rows], dtype)

        sums = clipped_sum(model, self.unit_of[kept], self.code_of[kept], load, rule, tile=tile)
        return sums.vector().cpu().numpy()

    def module_codes(self, rows: NDArray[np.int64]) -> Tensor:
        """What the module is told of the codes of ``rows``."""
        if self.network.trains_code:
            return torch.from_numpy(1.0 - self.code_of[rows])[:, None]
        return self.codes[torch.from_numpy(self.code_of[rows])]

    def module(self) -> HyperCVAE:
        module = HyperCVAE(self.network).double()
        module.load(self.weights)
        return module

    @cached_property
    def gradients(self) -> Vector:
        """[n, P] by one autograd pass a record."""
        module = self.module()
        result = np.zeros((len(self.unit_of), self.network.size))
        for row in range(len(result)):
            one = np.array([row])
            part = self.picked(one)
            module.zero_grad()
            loss = module(
                part.residual, part.labels, part.draws, self.module_codes(one), part.features
            )
            loss.sum().backward()
            result[row] = torch.cat([p.grad.flatten() for p in module.parameters()]).numpy()
        return result

    @cached_property
    def columns(self) -> NDArray[np.str_]:
        """[P] the group of blocks of each coordinate."""
        blocks = self.network.blocks
        return np.concatenate([np.full(math.prod(s), group_of(name)) for name, s in blocks])

    def parts(self, rule: ClipRule) -> dict[str, NDArray[np.bool_]]:
        """part -> [P] which coordinates are clipped in it."""
        names = np.array([rule.part(group) for group in self.columns.tolist()])
        return {str(part): names == part for part in np.unique(names)}

    def cancels(self, rule: ClipRule) -> bool:
        """Whether records of some unit cancel in some part, so that the norm may be raised."""
        for mine in self.parts(rule).values():
            for unit in self.units:
                rows = self.gradients[self.unit_of == unit][:, mine]
                lengths = np.linalg.norm(rows, axis=1).sum()
                if np.linalg.norm(rows.sum(axis=0)) < 0.05 * lengths:
                    return True
        return False

    def slow(self, rule: ClipRule) -> Vector:
        """[P] the clipped sum from written-out gradients."""
        total = np.zeros(self.network.size)
        for unit in self.units:
            gradient = self.gradients[self.unit_of == unit].sum(axis=0)
            for part, mine in self.parts(rule).items():
                norm = float(np.linalg.norm(gradient[mine]))
                limit = rule.norm_of(part) * ROUNDING
                if rule.automatic_gamma is not None:
                    gradient[mine] *= limit / (norm + rule.automatic_gamma)
                elif norm > limit:
                    gradient[mine] *= limit / norm
            total += gradient
        return total


def close(ours: Vector, theirs: Vector, tolerance: float) -> bool:
    """Whether two sums agree to a share of their length."""
    return bool(np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs))


def each_unit_is_scaled_to_its_clip_norm(world: World, tile: int) -> bool:
    """With tiny C the length of a unit's part is C times true norm over the norm found."""
    groups = world.network.groups
    rule = ClipRule(1e-9, dict.fromkeys(groups[::2], 1e-9))
    for unit in world.units:
        vector = world.ghost(rule, units=[unit], tile=tile)
        true = world.gradients[world.unit_of == unit].sum(axis=0)
        for mine in world.parts(rule).values():
            expected = 1e-9 * ROUNDING if np.linalg.norm(true[mine]) > 1e-9 else 0.0
            found = float(np.linalg.norm(vector[mine]))
            if expected and not math.isclose(found, expected, rel_tol=1e-10):
                return False
    return True


# --- equal to one autograd pass a record ---

WIDTHS = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    classifier = draw(st.none() | st.lists(st.integers(1, 7), max_size=1).map(tuple))
    return Architecture(
        form=draw(st.sampled_from(FORMS)),
        inputs=draw(st.integers(1, 7)),
        classes=draw(st.integers(2, 4)),
        code_dim=draw(st.integers(1, 7)),
        trunk=draw(WIDTHS),
        latent_dim=draw(st.integers(1, 4)),
        decoder=draw(WIDTHS),
        encoder=draw(WIDTHS),
        rank=draw(st.integers(1, 3)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        conditioning=draw(st.sampled_from(CONDITIONINGS)),
        conditioning_dim=draw(st.integers(1, 4)),
        beta=draw(st.sampled_from([0.0, 0.5, 1.0])),
        prior=draw(st.sampled_from(PRIORS)),
        classifier=classifier,
        classifier_inputs=draw(st.integers(1, 4)) if classifier is not None else 0,
        trains_code=draw(st.booleans()),
    )


@st.composite
def rules(draw: st.DrawFn, groups: Sequence[str]) -> ClipRule:
    norm = st.sampled_from([1e-3, 0.3, 1.0, 50.0, 1e6])
    blocks = draw(st.dictionaries(st.sampled_from(list(groups)), norm | st.just(0.0), max_size=4))
    return ClipRule(draw(norm), blocks, draw(st.none() | st.sampled_from([1e-3, 0.1, 10.0])))


@given(st.data())
@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_any_architecture_any_units_any_rule(data: st.DataObject) -> None:
    network = data.draw(architectures())
    sizes = data.draw(st.lists(st.sampled_from([1, 1, 2, 3, 7]), max_size=8))
    while sum(sizes) > 25:
        sizes.pop()
    rule = data.draw(rules(network.groups))
    world = World.draw(network, sizes, seed=data.draw(st.integers(0, 10_000)))
    assume(not world.cancels(rule))
    assert close(world.ghost(rule, tile=data.draw(st.integers(1, 40))), world.slow(rule), 1e-10)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("trains_code", [False, True])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_sum_and_norms_of_every_kind_of_network(
    form: Form, activation: Activation, conditioning: Conditioning, trains_code: bool, prior: Prior
) -> None:
    network = network_of(
        form, activation=activation, conditioning=conditioning, trains_code=trains_code, prior=prior
    )
    world = World.draw(network, [1, 1, 3, 2, 5, 1], seed=4)
    mixed = ClipRule(0.5, {"trunk": 0.3, "encoder": 0.2, "classifier": 1e3})
    automatic = replace(mixed, automatic_gamma=0.05)
    for rule in (UNCLIPPED, ClipRule(1.0), mixed, automatic):
        assert not world.cancels(rule)
        assert close(world.ghost(rule, tile=8), world.slow(rule), 1e-10)
        assert close(world.ghost(rule, tile=4), world.slow(rule), 1e-10)
    assert each_unit_is_scaled_to_its_clip_norm(world, 4)


def test_without_its_trunk_part_the_norm_would_be_far_off() -> None:
    """Guards the worlds above: a trunk of no weight would hide a wrong norm of it."""
    for form in FORMS:
        world = World.draw(network_of(form), [1] * 6)
        trunk = world.gradients[:, world.columns == "trunk"]
        share = np.linalg.norm(trunk, axis=1) / np.linalg.norm(world.gradients, axis=1)
        assert share.max() > 0.05


# --- equal to opacus ---


@pytest.mark.parametrize(
    "privacy",
    [
        {"clip_norm": 0.3},
        {"clip_norm": 1e4},
        {"clip_norm": 0.3, "block_clip_norms": {"trunk": 0.1, "encoder": 0.2}},
        {"clipping": "automatic", "automatic_gamma": 0.05, "block_clip_norms": {"heads": 0.5}},
    ],
)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("form", FORMS)
def test_both_engines_give_the_same_sum(form: Form, prior: Prior, privacy: dict[str, Any]) -> None:
    sizes = {"conditioning": "embedding", "hidden_layers": 2, "trunk_layers": 2}
    spec = worlds.spec(
        privacy={"sample_rate": 0.8, **privacy}, model={"form": form, "prior": prior, **sizes}
    )
    units = np.random.default_rng(3).integers(0, 30, 60)
    data, frame = worlds.with_units(worlds.clusters(60, seed=3), units), frame_for(spec)
    size = train_layout(spec).size
    weights = initial_weights(spec) + 0.1 * np.random.default_rng(1).normal(size=size)
    coins = CoinStream(worlds.SECRET, spec.run_id, 1, 1)
    ours, theirs = (
        gradients.clipped_sum(spec, data, frame, weights, "a", coins, compute=compute)
        for compute in (Compute(micro_batch=16), Compute(engine="opacus"))
    )
    assert close(ours, theirs, 1e-5)


@pytest.mark.filterwarnings("ignore:.*non-full backward hook.*")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing.*")
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("trains_code", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_opacus_finds_the_same_gradients_and_norms(
    form: Form, trains_code: bool, prior: Prior
) -> None:
    """opacus as it comes, in float64, over codes expanded to the batch."""
    network = network_of(form, trains_code=trains_code, conditioning="embedding", prior=prior)
    world = World.draw(network, [1] * 10, seed=2)
    rows = np.arange(10)
    part = world.picked(rows)
    module = GradSampleModule(world.module(), batch_first=True, loss_reduction="sum")
    codes = world.module_codes(rows)
    module(part.residual, part.labels, part.draws, codes, part.features).sum().backward()
    theirs = torch.cat([p.grad_sample.reshape(10, -1) for p in module.parameters()], 1).numpy()
    assert close(theirs, world.gradients, 1e-12)
    for row in rows:
        unit = [int(world.unit_of[row])]
        assert close(world.ghost(UNCLIPPED, units=unit), theirs[row], 1e-10)
        scaled = world.ghost(ClipRule(1e-9), units=unit) / (1e-9 * ROUNDING)
        assert close(scaled * np.linalg.norm(theirs[row]), theirs[row], 1e-10)


# --- edge cases ---


def changed(world: World, row: int, *, residual: float | None = None, draw: float | None = None,
            ) -> World:  # fmt: skip
    """The world with one coordinate of a record replaced."""
    residuals, draws = world.records.residual.clone(), world.records.draws.clone()
    if residual is not None:
        residuals[row, 0] = residual
    if draw is not None:
        draws[row, 0] = draw
    return replace(world, records=replace(world.records, residual=residuals, draws=draws))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", FORMS)
def test_a_record_that_is_not_finite_adds_nothing(form: Form, bad: float) -> None:
    for sizes in ([1] * 9, [1, 2, 3, 1, 2]):
        world = World.draw(network_of(form), sizes)
        row = int(np.flatnonzero(world.unit_of == 2)[0])
        others = [unit for unit in world.units if unit != 2]
        rule = ClipRule(1.0, {"encoder": 0.5})
        for broken in (changed(world, row, residual=bad), changed(world, row, draw=bad)):
            for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-9)):
                # All of the unit: its good records, too.
                assert not broken.ghost(rule, units=[2], dtype=dtype).any()
                expected = world.ghost(rule, units=others, dtype=dtype)
                assert close(broken.ghost(rule, dtype=dtype), expected, tolerance)
                assert close(broken.ghost(rule, dtype=dtype, tile=2), expected, 1e-6)


@pytest.mark.parametrize("size", [1, 3, 6])
@pytest.mark.parametrize("form", FORMS)
def test_overflow_of_float32_stays_within_the_clip_norm(form: Form, size: int) -> None:
    world = World.draw(network_of(form), [size, 1, 2], scale=2.0)
    row = int(np.flatnonzero(world.unit_of == 0)[0])
    expected = world.ghost(ClipRule(1.0), units=[1, 2], dtype=torch.float32, tile=4)
    lengths = []
    for huge in (1e10, 1e19, 1e30, 3e38, 1e39):
        large = changed(world, row, residual=huge)
        own = large.ghost(ClipRule(1.0), units=[0], dtype=torch.float32, tile=4)
        lengths.append(float(np.linalg.norm(own)))
        both = large.ghost(ClipRule(1.0), dtype=torch.float32, tile=4)
        np.testing.assert_allclose(both - own, expected, atol=1e-6)
    assert max(lengths) <= 1.0
    assert lengths[0] > 0.99  # long but finite
    assert lengths[-1] == 0.0  # the input itself overflows
    # Products of float32 overflow; where this machine needs float64 layers they are long.
    assert lengths[-2] == 0.0 or lengths[-2] > 0.99


@pytest.mark.parametrize("automatic_gamma", [None, 0.1])
@pytest.mark.parametrize("form", FORMS)
def test_zero_gradients_add_zero(form: Form, automatic_gamma: float | None) -> None:
    """Zero weights, record and draw: reconstruction is exact and posterior equals prior."""
    world = World.draw(
        network_of(form, classifier=None, classifier_inputs=0, activation="gelu"),
        [1, 2, 9],
        scale=0.0,
    )
    records = world.records
    still = replace(world, records=Records(records.residual * 0, records.labels, records.draws * 0))
    assert not still.gradients.any()
    vector = still.ghost(ClipRule(1.0, {"trunk": 0.0}, automatic_gamma), tile=4)
    assert not vector.any()


@pytest.mark.parametrize("form", FORMS)
def test_nobody_adds_zero(form: Form) -> None:
    network = network_of(form, trains_code=True)
    vector = World.draw(network, []).ghost(ClipRule(1.0))
    assert vector.shape == (network.size,)
    assert not vector.any()


@pytest.mark.parametrize("form", FORMS)
def test_tiles_do_not_change_the_sum(form: Form) -> None:
    """Also for units larger than a tile, whose records never meet."""
    world = World.draw(network_of(form, trains_code=True), [11, 1, 1, 6, 2, 3, 1], seed=1)
    for rule in (ClipRule(0.4, {"heads": 0.3}), ClipRule(2.0, {"prior": 0.1}, 0.05)):
        assert not world.cancels(rule)
        whole = world.ghost(rule, tile=64)
        single = world.ghost(rule, tile=64, dtype=torch.float32)
        for tile in (1, 2, 3, 5, 8, 10, 11, 12):
            assert close(world.ghost(rule, tile=tile), whole, 1e-12)
            assert close(world.ghost(rule, tile=tile, dtype=torch.float32), single, 1e-6)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_tiles_hold_whole_units_once(sizes: list[int], tile: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    unit_of = draw.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int64)
    code_of = draw.integers(0, 2, len(sizes))[unit_of] if sizes else unit_of
    seen: list[int] = []
    for rows, units in tiles(unit_of, code_of, tile):
        assert len(rows) <= tile or units == 1
        assert units == len(set(unit_of[rows]))
        assert set(np.flatnonzero(np.isin(unit_of, unit_of[rows]))) == set(rows.tolist())
        assert (np.diff(code_of[rows]) >= 0).all()
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(unit_of)))


def test_a_unit_under_two_codes_is_refused() -> None:
    """Wherever its records and those of others come in the order of tiles."""
    for unit, sizes in ((0, [3, 1]), (1, [1, 2]), (1, [2, 4, 1]), (0, [2])):
        for seed in range(4):
            world = World.draw(network_of(), sizes, seed=seed)
            for row in np.flatnonzero(world.unit_of == unit):
                split = np.array(world.code_of)
                split[row] ^= 1
                with pytest.raises(ValueError, match="one code"):
                    replace(world, code_of=split).ghost(ClipRule(1.0))


@pytest.mark.parametrize("tile", [0, -1])
def test_an_empty_tile_is_refused(tile: int) -> None:
    with pytest.raises(ValueError, match="at least one record"):
        World.draw(network_of(), [3, 1]).ghost(ClipRule(1.0), tile=tile)


@pytest.mark.parametrize("automatic_gamma", [None, 0.1])
@pytest.mark.parametrize("form", FORMS)
def test_clip_norm_zero_silences_a_part_and_nothing_else(
    form: Form, automatic_gamma: float | None
) -> None:
    world = World.draw(network_of(form, trains_code=True), [1, 2, 9])
    for group in world.network.groups:
        apart = ClipRule(1.0, {group: 0.5}, automatic_gamma)
        silent = replace(apart, blocks={group: 0.0})
        vector, mine = world.ghost(silent, tile=4), world.columns == group
        assert not vector[mine].any()
        np.testing.assert_array_equal(vector[~mine], world.ghost(apart, tile=4)[~mine])
        assert np.linalg.norm(vector[~mine]) > 0


# --- records that cancel ---


def opposed(form: Form, distance: float, excess: float, *, rest: float = 1.0) -> World:
    """A unit of two records whose gradients are ``distance`` long and cancel but for ``excess``.

    Same class and draw, a silent encoder: both decode to the same point, and lie on opposite
    sides of it. Their KL terms, ``rest`` times O(1), do not cancel.
    """
    network = network_of(form, classifier=None, classifier_inputs=0, beta=rest)
    world = World.draw(network, [2], seed=3)
    weights = {
        name: value * 0 if name.startswith("encoder.") else value
        for name, value in world.weights.items()
    }
    labels, draws = torch.ones(2, dtype=torch.int64), world.records.draws[:1].expand(2, -1)
    silent = replace(world, weights=weights, records=Records(world.records.residual, labels, draws))
    # The gradient of the last layer's bias is decoded - residual.
    last = len(network.decoder)
    bias = f"heads.bias_{last}.bias" if form == "full" else f"decoder.{last}.bias"
    layout = {}
    start = 0
    for name, shape in network.blocks:
        layout[name] = slice(start, start := start + math.prod(shape))
    decoded = silent.records.residual + torch.from_numpy(silent.gradients[:, layout[bias]])
    away = torch.tensor([[distance], [-distance * (1.0 + excess)]], dtype=torch.float64)
    direction = torch.ones(network.inputs, dtype=torch.float64) / math.sqrt(network.inputs)
    return replace(silent, records=Records(decoded + away * direction, labels, draws))


@pytest.mark.parametrize("form", FORMS)
def test_cancelling_records_stay_within_the_clip_norm(form: Form) -> None:
    """Rounding of what cancels must not lengthen what is left."""
    for distance in (1e4, 1e8, 1e12):
        for excess in (0.0, 1e-12, 1e-7, 1e-5, 1e-3, 1e-2):
            for rest in (1.0, 0.0):
                world = opposed(form, distance, excess, rest=rest)
                for dtype in (torch.float64, torch.float32):
                    for tile in (4, 2, 1):
                        for rule in (ClipRule(1.0), ClipRule(1.0, {}, 1e-6)):
                            vector = world.ghost(rule, dtype=dtype, tile=tile)
                            assert np.linalg.norm(vector) <= 1.0


@pytest.mark.parametrize("tile", [4, 2, 1])
@pytest.mark.parametrize("form", FORMS)
def test_the_norm_of_cancelling_records_is_raised_as_documented(form: Form, tile: int) -> None:
    world = opposed(form, 1e5, 1e-6)
    lengths = np.linalg.norm(world.gradients, axis=1).sum()
    left = world.gradients.sum(axis=0)
    assert np.linalg.norm(left) < 2e-3 * lengths
    raised = math.hypot(float(np.linalg.norm(left)), 2e-3 * lengths)
    expected = left * 1e-3 * ROUNDING / raised
    # Loosely: the norm of what is left is known to rounding of what cancelled.
    assert close(world.ghost(ClipRule(1e-3), tile=tile), expected, 1e-4)
    # Slightly less cancellation: the plain norm.
    plain = opposed(form, 1e5, 1e-2)
    assert close(plain.ghost(ClipRule(1e-3), tile=tile), plain.slow(ClipRule(1e-3)), 1e-9)


# --- the bound, exactly ---


@pytest.mark.parametrize("automatic_gamma", [None, 1e-3])
@pytest.mark.parametrize("trains_code", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_no_contribution_in_float32_exceeds_its_clip_norm(
    form: Form, trains_code: bool, automatic_gamma: float | None
) -> None:
    draw = np.random.default_rng(7)
    closest = 0.0
    for seed in range(8):
        network = network_of(form, trains_code=trains_code, activation=ACTIVATIONS[seed % 4])
        world = World.draw(network, [1, 1, 1, 2, 4, 1, 5, 3], seed=seed, scale=0.3 + 0.2 * seed)
        for unit in world.units:
            clip, own = 10.0 ** draw.uniform(-6, 1, 2)
            rule = ClipRule(float(clip), {"decoder": float(own)}, automatic_gamma)
            if seed % 2:
                rule = ClipRule(float(clip), {}, automatic_gamma)
            vector = world.ghost(rule, units=[unit], dtype=torch.float32, tile=4)
            for part, mine in world.parts(rule).items():
                length = float(np.linalg.norm(vector[mine]))
                assert length <= rule.norm_of(part)
                closest = max(closest, length / rule.norm_of(part))
            assert np.linalg.norm(vector) <= rule.sensitivity(network.groups)
    assert closest > 1 - 1e-6 if automatic_gamma is None else closest > 0.99


@pytest.mark.parametrize("form", FORMS)
def test_automatic_clipping_gives_every_unit_nearly_the_same_length(form: Form) -> None:
    world = World.draw(network_of(form), [1, 1, 3, 2, 6], seed=5)
    for gamma in (1e-6, 0.01, 1.0, 1e3):
        rule = ClipRule(0.7, {}, gamma)
        for unit in world.units:
            norm = float(np.linalg.norm(world.gradients[world.unit_of == unit].sum(axis=0)))
            length = float(np.linalg.norm(world.ghost(rule, units=[unit], tile=4)))
            assert length < 0.7
            assert length == pytest.approx(0.7 * ROUNDING * norm / (norm + gamma), rel=1e-10)


# --- neighbours ---


@pytest.mark.parametrize(
    ("sizes", "tile"),
    [
        ([1] * 200 + [2] * 20 + [10] * 6, 64),
        ([1] * 200 + [2] * 20 + [10] * 6, 50),
        # One tile, of records under both codes.
        ([1] * 40 + [2] * 5, 64),
        ([1] * 80 + [3] * 40, 256),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_a_contribution_does_not_depend_on_who_else_is_there(
    form: Form, sizes: list[int], tile: int
) -> None:
    """Far below the rounding of float32 and bfloat16: what tiles of one shape buy."""
    draw = np.random.default_rng(0)
    world = World.draw(wide(form), draw.permutation(sizes).tolist(), scale=0.2)
    assert set(world.code_of.tolist()) == {0, 1}
    rule = ClipRule(0.1, {"heads": 0.05})
    for reduced in (False, True):
        sum_of = partial(world.ghost, rule, dtype=torch.float32, tile=tile, reduced=reduced)
        whole = sum_of()
        for unit in draw.choice(world.units, 3, replace=False):
            fewer = sum_of(units=[other for other in world.units if other != unit])
            own = sum_of(units=[int(unit)])
            assert np.linalg.norm(whole - fewer - own) <= 1e-9 * 0.1


@pytest.mark.parametrize("form", FORMS)
def test_a_contribution_does_not_depend_on_the_other_codes_records(form: Form) -> None:
    """Alone in their tile, or beside records under the other code."""
    world = World.draw(wide(form), [1] * 48, scale=0.2)
    client, neutral = (np.unique(world.unit_of[world.code_of == k]).tolist() for k in (0, 1))
    for reduced in (False, True):
        sum_of = partial(world.ghost, ClipRule(0.1), dtype=torch.float32, tile=64, reduced=reduced)
        apart = sum_of(units=client) + sum_of(units=neutral)
        assert np.linalg.norm(sum_of() - apart) <= 1e-9 * 0.1


# --- reduced precision ---


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_turns_the_sum_a_little_and_keeps_the_bound(form: Form, device: str) -> None:
    world = World.draw(wide(form), [1] * 40 + [3] * 8 + [40], scale=0.2)
    world = replace(world, device=device)
    full = world.ghost(UNCLIPPED, dtype=torch.float32)
    rough = world.ghost(UNCLIPPED, dtype=torch.float32, reduced=True)
    threads = torch.get_num_threads()
    if rows_are_alike(world.network, 256, device, torch.float32, True, threads):
        assert not np.array_equal(full, rough)  # it does something
    assert close(rough, full, 3e-2)
    for rule in (ClipRule(0.1), ClipRule(0.1, {"trunk": 0.05}, 0.01)):
        for unit in (0, 1, 2, 41, 42, 48):
            vector = world.ghost(rule, units=[unit], dtype=torch.float32, reduced=True)
            assert 0 < np.linalg.norm(vector) <= rule.sensitivity(world.network.groups)


@needs_gpu
@pytest.mark.parametrize("form", FORMS)
def test_a_gpu_gives_the_same_sum_and_keeps_the_bound(form: Form) -> None:
    world = World.draw(wide(form), [1] * 40 + [3] * 8 + [40], scale=0.2)
    there = replace(world, device="cuda:0")
    rule = ClipRule(0.1, {"trunk": 0.05})
    assert close(there.ghost(rule), world.ghost(rule), 1e-10)
    assert close(there.ghost(rule, dtype=torch.float32), world.ghost(rule), 1e-4)
    whole = there.ghost(rule, dtype=torch.float32, tile=32)
    for unit in (0, 41, 48):
        others = [other for other in world.units if other != unit]
        own = there.ghost(rule, units=[unit], dtype=torch.float32, tile=32)
        fewer = there.ghost(rule, units=others, dtype=torch.float32, tile=32)
        assert 0 < np.linalg.norm(own) <= rule.sensitivity(world.network.groups)
        assert np.linalg.norm(whole - fewer - own) <= 1e-9 * 0.1


# --- the trunk ---


@pytest.mark.parametrize("trunk", [(3,), (5, 2), (2, 6, 4)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_trunk_equals_autograd(activation: Activation, trunk: tuple[int, ...]) -> None:
    """Outputs, R R^T = J J^T of parameters and of the trained code, and J^T c for sums of c."""
    network = network_of(activation=activation, trunk=trunk, trains_code=True)
    world = World.draw(network, [])
    ours = Trunk(network, world.weights, world.codes, 0)
    names = [name for name, _ in network.blocks if group_of(name) == "trunk"]

    def outputs(code: Tensor) -> Callable[..., Tensor]:
        def run(*values: Tensor) -> Tensor:
            weights = dict(zip(names, values, strict=True))
            return trunk_outputs(network, weights, code[None])[-1][0]

        return run

    width = trunk[-1]
    sums = {
        group: torch.from_numpy(np.random.default_rng(1).normal(size=(2, width)))
        for group in ("trunk", "code")
    }
    made = ours.gradients(sums)
    expected = {name: torch.zeros_like(value) for name, value in made.items()}
    values = tuple(world.weights[name] for name in names)
    for index, code in enumerate(world.codes):
        torch.testing.assert_close(ours.outputs[index], outputs(code)(*values))
        torch.testing.assert_close(ours.squares[index], outputs(code)(*values).square().sum())
        jacobians = torch.autograd.functional.jacobian(outputs(code), values)
        for name, jacobian in zip(names, jacobians, strict=True):
            expected[name] += torch.tensordot(sums["trunk"][index], jacobian, dims=1)
        flat = torch.cat([jacobian.reshape(width, -1) for jacobian in jacobians], dim=1)
        root = ours.roots[index]["trunk"]
        torch.testing.assert_close(root @ root.T, flat @ flat.T, rtol=1e-12, atol=1e-12)
        root = ours.roots[index]["code"]
        moved = torch.autograd.functional.jacobian(lambda v: outputs(v)(*values), code)
        if index == 1:
            assert not root.any()
            continue
        torch.testing.assert_close(root @ root.T, moved @ moved.T, rtol=1e-12, atol=1e-12)
        expected["code.weight"] += (sums["code"][index] @ moved)[:, None]
    assert made.keys() == {*names, "code.weight"}
    for name, value in made.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
