"""How much noise a secure sum really carries, and what server and report make of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.federation.aggregate import Aggregated, aggregate, opened
from core.federation.secure_sum import grid_of, noise_gain
from core.models.evidence import from_sketches
from core.models.frame import Frame
from core.models.layout import layout_of
from core.privacy.discrete import lattice
from core.privacy.discrete.gaussian import seeded
from core.privacy.mechanism import sensitivity
from core.report.released import count_error, released
from core.wire import tensors
from tests.core.secure_world import Round, secure_run, secure_spec

CLIENTS = 5
SPEC = secure_spec(drop=1, collude=1, clients=CLIENTS)


@pytest.fixture(scope="module")
def run() -> list[tuple[Round, Aggregated]]:
    return secure_run(SPEC, CLIENTS)


@pytest.mark.parametrize("survivors", [CLIENTS, CLIENTS - 1])
def test_the_gain_is_the_real_noise_over_the_promised(survivors: int) -> None:
    """sqrt(survivors / shares), and what the grid adds; against the variance of drawn sums."""
    for number in range(SPEC.last_round + 1):
        gain = noise_gain(SPEC, number, CLIENTS, survivors)
        theory = math.sqrt(survivors / (CLIENTS - 2))
        assert theory <= gain < 1.02 * theory
    grid, n = grid_of(SPEC, 0, CLIENTS), 40_000
    total = sum(lattice.released(np.zeros(n), grid, seeded(at)) for at in range(survivors))
    found = float(np.std(np.asarray(total) * grid.step))
    promised = SPEC.event(0).noise_multiplier * sensitivity(SPEC, 0)
    gain = noise_gain(SPEC, 0, CLIENTS, survivors)
    assert found / promised == pytest.approx(gain, rel=5 / math.sqrt(2 * n))


def test_models_of_secure_sums_weigh_by_the_noise_that_is_there(
    run: list[tuple[Round, Aggregated]],
) -> None:
    """Every round's files are those of the opened sum with its own gain; the known wrong version,
    which takes the promised noise for the real one, makes others. Gain 1 changes no byte.
    """
    before: Aggregated | None = None
    for number, (made, after) in enumerate(run):
        job, read, gain = opened(made.job(SPEC, before), made.objects.__getitem__)
        assert gain == noise_gain(SPEC, number, CLIENTS, len(made.masked))
        assert len(made.masked) == CLIENTS - number % 2
        again = aggregate(job, read, gain)
        assert (again.frame, again.weights, again.optimiser) == (
            after.frame, after.weights, after.optimiser,
        )  # fmt: skip
        promised, one = aggregate(job, read), aggregate(job, read, 1.0)
        if SPEC.kind(number) != "validate":  # which only chooses between candidates
            assert promised.frame + promised.weights != after.frame + after.weights
        assert promised == one
        before = after
    first, _ = tensors.unpack(run[0][1].optimiser)
    assert first["sketch_noise_gain"] == [noise_gain(SPEC, 0, CLIENTS, CLIENTS)]
    made = run[0][0]
    job, read, _ = opened(made.job(SPEC), made.objects.__getitem__)
    plain, _ = tensors.unpack(aggregate(job, read).optimiser)
    assert "sketch_noise_gain" not in plain


def test_counts_are_floored_and_reported_with_the_noise_that_is_there(
    run: list[tuple[Round, Aggregated]],
) -> None:
    gain = noise_gain(SPEC, 0, CLIENTS, CLIENTS)
    z = SPEC.noise.sketch_multiplier
    sketch = np.zeros(layout_of(SPEC, 0).size)
    assert from_sketches(SPEC, [sketch], z * gain).count_sd == pytest.approx(
        gain * count_error(SPEC, z)
    )
    frame = Frame.from_bytes(run[0][1].frame)
    said, less = released(SPEC, frame, 1, noise_gain=gain), released(SPEC, frame, 1)
    assert said.sizes[0].units.se == pytest.approx(gain * less.sizes[0].units.se)
    assert said.classes[0].se == pytest.approx(gain * less.classes[0].se)
