"""``privacy.noise`` "discrete" in plain runs: exact noise on a public grid, end to end."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from core.errors import PlanRefused, UpdateNoiseImplausible
from core.federation.null_test import FALSE_ALARM, accepted
from core.federation.plan import Plan, RunSpec
from core.federation.updates import TENSOR, check_update, expectation, read_update
from core.models.layout import NULL_COORDINATES, layout_of
from core.privacy.discrete.gaussian import LEAST, SMOOTH
from core.privacy.mechanism import noised, release_grid, sensitivity
from core.privacy.noise import csprng, seeded
from core.simulation import SimulatedSite, simulate
from core.training.local import execute, release
from core.wire import tensors
from tests.core.rounds import update_of
from tests.core.secure_world import order_of, secure_round, secure_spec, some_data
from tests.core.worlds import SECRET, clusters
from tests.core.worlds import spec as spec_of

DATA = clusters(200)


def discrete(**privacy: object) -> RunSpec:
    return spec_of(privacy={"noise": "discrete"} | privacy)


def _null(spec: RunSpec, number: int, body: bytes) -> np.ndarray:
    expected = expectation(spec, number)
    return read_update(body, expected)[expected.size :].astype(np.float64)


def _whole(values: np.ndarray, step: float) -> bool:
    steps = values.astype(np.float64) / step
    return bool(np.array_equal(steps, np.rint(steps)))


@pytest.mark.parametrize("local_steps", [1, 3])
def test_every_release_of_a_run_is_whole_steps_and_passes_its_checks(local_steps: int) -> None:
    """The order's own path, with private bits: sketch and training, also of several steps."""
    spec = discrete(local_steps=local_steps, local_learning_rate=0.01)
    sites = [SimulatedSite("a", DATA), SimulatedSite("b", clusters(200, seed=1))]
    run = simulate(spec, sites, noise=seeded(0), secret=SECRET)
    for number in range(spec.last_round + 1):
        order = order_of(spec, number, "a", None).model_copy(update={"client_id": "a"})
        before = run.rounds[number - 1]
        inputs = {} if number == 0 else {"frame": before.frame, "weights": before.weights}
        body = execute(order, DATA, inputs, secret=SECRET, noise=csprng()).update
        check_update(body, expectation(spec, number))
        grid = release_grid(spec, number)
        assert grid is not None
        assert spec.event(number).mechanism.endswith("discrete-gaussian")
        if local_steps == 1 or number == 0:
            assert _whole(read_update(body, expectation(spec, number)), grid.step)
        else:  # the float64 sum of steps is on the grid, too; float32 keeps it there
            assert _whole(_null(spec, number, body), grid.step)


def test_defect_float_noise_is_off_the_grid() -> None:
    """The known wrong version: Gaussian draws rounded to float32 take values between the steps."""
    spec, plain = discrete(), spec_of()
    grid = release_grid(spec, 0)
    assert grid is not None
    assert release_grid(plain, 0) is None
    body = release(plain, 0, 1, "a", DATA, {}, secret=SECRET, noise=csprng()).update
    assert not _whole(read_update(body, expectation(plain, 0)), grid.step)


def test_the_release_is_the_slow_reference_s_law() -> None:
    """Around a centre between steps, against N_Z(c, V) summed term by term (inverse step by step).

    P(k) = exp(-(k - c)^2 / 2V) / sum_j: a chi-square test over whole steps.
    """
    spec = discrete()
    made = release_grid(spec, 0)
    assert made is not None
    n, centre = 60_000, 0.37
    total = np.full(n, centre * made.step)
    values = noised(
        total, null_coordinates=0, noise_multiplier=spec.event(0).noise_multiplier,
        bound=sensitivity(spec, 0), noise=seeded(3), grid=made,
    )  # fmt: skip
    steps = np.rint(values.astype(np.float64) / made.step).astype(int)
    reach = int(3.2 * math.sqrt(made.variance))
    rounded = round(centre * 256) / 256
    weights = {
        k: math.exp(-((k - rounded) ** 2) / (2 * made.variance))
        for k in range(-4 * reach, 4 * reach + 1)
    }
    whole = math.fsum(weights.values())
    expected = np.array([weights[k] / whole * n for k in range(-reach, reach + 1)])
    found = np.array([(steps == k).sum() for k in range(-reach, reach + 1)])
    tail = n - expected.sum()
    observed = np.append(found, n - found.sum())
    assert stats.chisquare(observed, np.append(expected, tail)).pvalue > 1e-5


@pytest.mark.parametrize("kind", [0, 1])
def test_the_grid_keeps_the_promised_multiplier_for_little(kind: int) -> None:
    """At least the noise that is booked, at most one part in a hundred more."""
    spec = discrete()
    made = release_grid(spec, kind)
    assert made is not None
    z = spec.event(kind).noise_multiplier
    assert math.sqrt(made.variance - SMOOTH**2) / made.sensitivity >= z * (1 - 1e-12)
    assert made.sensitivity * made.step >= sensitivity(spec, kind)
    assert made.noise_std < 1.012 * z * sensitivity(spec, kind) + 4 * made.step


def test_null_coordinates_follow_chi_square() -> None:
    """|null|^2 / s^2 of the real mechanism with the grid's own s, as of continuous noise."""
    spec, noise = discrete(), seeded(5)
    made, found = release_grid(spec, 0), []
    assert made is not None
    for _ in range(2_000):
        values = noised(
            np.ones(1), null_coordinates=NULL_COORDINATES, bound=sensitivity(spec, 0),
            noise_multiplier=spec.event(0).noise_multiplier, noise=noise, grid=made,
        )[1:].astype(np.float64)  # fmt: skip
        found.append(float(values @ values) / expectation(spec, 0).noise_std ** 2)
    assert stats.kstest(found, stats.chi2(NULL_COORDINATES).cdf).pvalue > 1e-4


@pytest.mark.parametrize("variance", [LEAST, 1_000])
def test_the_null_test_s_false_alarms_are_the_stated_ones_on_a_grid(variance: int) -> None:
    """The exact law of 256 squares of N_Z(0, V), as a convolution; FFT errs by 1e-15 or so."""
    size = 1 << (4 * NULL_COORDINATES * variance - 1).bit_length()
    k = np.arange(1, math.isqrt(size))
    k = k[k < 30 * math.sqrt(variance)]
    weights = 2.0 * np.exp(-(k**2) / (2.0 * variance))
    one = np.zeros(size)
    one[0], one[k**2] = 1.0, weights
    one /= one.sum()
    law = np.fft.irfft(np.fft.rfft(one) ** NULL_COORDINATES, size)
    low, high = accepted(1)
    norms = np.sqrt(np.arange(size) / variance)
    refused = law[norms < low].sum() + law[norms > high].sum()
    assert 0.99 * FALSE_ALARM < refused < FALSE_ALARM


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.5])
def test_noise_of_another_scale_is_refused(factor: float) -> None:
    spec = discrete()
    body = release(spec, 0, 1, "a", DATA, {}, secret=SECRET, noise=csprng()).update
    content, metadata = tensors.unpack(body)
    vector = content[TENSOR].copy()
    vector[-NULL_COORDINATES:] *= np.float32(factor)
    with pytest.raises(UpdateNoiseImplausible):
        check_update(tensors.pack({TENSOR: vector}, metadata), expectation(spec, 0))


def test_local_steps_draw_noise_of_their_own() -> None:
    """E steps carry E times the variance; the same bits each time would carry E^2 of it."""
    spec = discrete(local_steps=4, local_learning_rate=0.01)
    run = simulate(spec, [SimulatedSite("a", DATA)], noise=seeded(0), secret=SECRET)
    inputs = {"frame": run.rounds[0].frame, "weights": run.rounds[0].weights}

    class Again:
        private = False

        def normal(self, size: int, std: float) -> np.ndarray:
            raise AssertionError("this plan's noise is on a grid")

        def bits(self) -> object:
            return seeded(7).bits()

    body = release(spec, 1, 1, "a", DATA, inputs, secret=SECRET, noise=csprng()).update
    check_update(body, expectation(spec, 1))
    same = release(spec, 1, 1, "a", DATA, inputs, secret=SECRET, noise=Again()).update
    with pytest.raises(UpdateNoiseImplausible):
        check_update(same, expectation(spec, 1))


def test_a_site_refuses_seeded_bits_and_a_grid_that_promises_less() -> None:
    spec = discrete()
    production = spec.model_copy(
        update={"plan": spec.plan.model_copy(update={"purpose": "production"})}
    )
    with pytest.raises(PlanRefused, match="seeded"):
        execute(order_of(production, 0, "a", None), DATA, {}, secret=SECRET, noise=seeded(1))
    made = release_grid(spec, 0)
    assert made is not None
    for grid in (replace(made, variance=made.variance // 2), replace(made, shares=2)):
        with pytest.raises(ValueError, match="promised noise"):
            noised(
                np.ones(3), null_coordinates=2, bound=sensitivity(spec, 0), noise=csprng(),
                noise_multiplier=spec.event(0).noise_multiplier, grid=grid,
            )  # fmt: skip


def test_mode_paper_has_no_grid() -> None:
    asked = spec_of(
        privacy={"mode": "paper", "sketch_share": 0.5}, model={"codes": "trained",
        "encoder": "local", "classifier": "none"},
    ).plan.model_dump()  # fmt: skip
    asked["privacy"]["noise"] = "discrete"
    with pytest.raises(ValueError, match=r"privacy\.noise: mode 'paper'"):
        Plan.model_validate(asked)


def test_simulation_and_production_make_the_same_secure_model() -> None:
    """A secure plan simulated, and round by round through orders: the same files, byte by byte."""
    spec, data, bits = (
        secure_spec(drop=1, collude=1, clients=4),
        some_data(4, 100),
        seeded(3).bits(),
    )
    sites = [SimulatedSite(name, each) for name, each in data.items()]
    simulated = simulate(spec, sites, noise=seeded(3), secret=SECRET)
    before = None
    for number, expected in enumerate(simulated.rounds):
        made = secure_round(spec, number, data, before, bits=bits)
        before = made.aggregated(spec, before)
        assert (before.frame, before.weights, before.optimiser) == (
            expected.frame, expected.weights, expected.optimiser,
        )  # fmt: skip


def test_layouts_are_those_of_continuous_noise() -> None:
    """Nothing of the wire format changes: the same length, dtype and size limit."""
    one, other = expectation(discrete(), 0), expectation(spec_of(), 0)
    assert (one.length, one.max_bytes, one.layout) == (other.length, other.max_bytes, other.layout)
    assert layout_of(discrete(), 1).digest == layout_of(spec_of(), 1).digest
    with pytest.raises(UpdateNoiseImplausible):
        check_update(update_of(discrete(), 0, np.zeros(one.size)), one)
