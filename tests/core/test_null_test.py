"""The null-coordinate test: its law in real updates of every kind, false alarms, and its power."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, getcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from core.errors import UpdateNoiseImplausible
from core.federation import updates
from core.federation.null_test import FALSE_ALARM, accepted, detection, rounding
from core.federation.plan import Noise, RunSpec
from core.federation.updates import TENSOR, check_update, expectation
from core.models.layout import NULL_COORDINATES
from core.privacy.mechanism import noised
from core.privacy.noise import NoiseSource, csprng, seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.training import local, local_steps
from core.training.local import release
from core.wire import tensors
from tests.core import worlds
from tests.core.posted import start

Vector = NDArray[np.float64]
N = NULL_COORDINATES
DATA = worlds.with_units(worlds.clusters(60), np.arange(60) // 2)


# --- the law, exactly ---


def chi_square_tail(x: Decimal) -> Decimal:
    """P(chi-square with 256 degrees of freedom > x), 60 digits: a Poisson sum, for 256 is even."""
    getcontext().prec = 60
    half, term, total = x / 2, Decimal(1), Decimal(0)
    for k in range(N // 2):
        total += term
        term *= half / (k + 1)
    return (-half).exp() * total


@pytest.mark.parametrize("steps", [1, 2, 4, 64])
def test_false_alarms_are_below_1e_9_by_exact_arithmetic(steps: int) -> None:
    """A false alarm needs noise outside the accepted interval, moved inwards by all that float32
    may do: at the worst rounding its probability is still below the stated one.
    """
    low, high = (Decimal(edge) for edge in accepted(steps))
    worst = Decimal(rounding(steps))
    below = 1 - chi_square_tail((low + worst) ** 2)
    above = chi_square_tail((high - worst) ** 2)
    rare = Decimal("1e-55")  # norms beyond which the bound on the rounding does not hold
    assert below + above + rare < Decimal(repr(FALSE_ALARM))
    assert below + above > Decimal("0.999e-9")  # and no wider than it has to be


def test_the_exact_tail_is_the_chi_square_tail() -> None:
    for x in (140.0, 200.0, 256.0, 300.0, 420.0):
        assert float(chi_square_tail(Decimal(x))) == pytest.approx(stats.chi2.sf(x, N), rel=1e-9)


def test_defect_no_margin_for_float32_breaks_the_promise() -> None:
    """The plain quantiles: with the worst rounding the probability passes 1e-9, if by little."""
    low = Decimal(math.sqrt(stats.chi2.ppf(FALSE_ALARM / 2, N)))
    high = Decimal(math.sqrt(stats.chi2.isf(FALSE_ALARM / 2, N)))
    worst = Decimal(rounding(64))
    below = 1 - chi_square_tail((low + worst) ** 2)
    assert below + chi_square_tail((high - worst) ** 2) > Decimal("1e-9")


@pytest.mark.parametrize("std", [1e-20, 0.3, 1e12])
def test_one_release_follows_the_law(std: float) -> None:
    """The real mechanism, 6,000 times, against chi-square with 256 degrees of freedom."""
    noise, found = seeded(1), []
    for _ in range(6_000):
        made = noised(
            np.ones(1), null_coordinates=N, noise_multiplier=2.0, bound=std / 2.0, noise=noise
        )
        null = made[1:].astype(np.float64) / std
        found.append(float(null @ null))
    assert stats.kstest(found, stats.chi2(N).cdf).pvalue > 1e-4


class Recorded:
    """Noise that remembers what it gave, before anybody rounded it."""

    private = True

    def __init__(self) -> None:
        self.draws: list[Vector] = []
        self._source: NoiseSource = csprng()

    def normal(self, size: int, std: float) -> Vector:
        self.draws.append(self._source.normal(size, std))
        return self.draws[-1]


@pytest.mark.parametrize("steps", [1, 4, 32])
def test_float32_moves_the_norm_by_less_than_the_margin(steps: int) -> None:
    spec = worlds.spec(privacy={"local_steps": steps, "local_learning_rate": 1e-3})
    inputs, _, _ = start(spec)
    expected = expectation(spec, 1)
    furthest = 0.0
    for _ in range(10):
        noise = Recorded()
        made = null_of(release(
            spec, 1, 1, "a", DATA, inputs, secret=worlds.SECRET, noise=noise).update)  # fmt: skip
        exact = np.sum(noise.draws, axis=0)[-N:]
        assert len(noise.draws) == steps
        moved = abs(np.linalg.norm(made) - np.linalg.norm(exact)) / expected.noise_std
        furthest = max(furthest, float(moved))
    assert 0.0 < furthest < rounding(steps)


# --- real updates of every kind of round ---


def null_of(body: bytes) -> Vector:
    return np.asarray(tensors.unpack(body)[0][TENSOR][-N:], np.float64)


NOISE = Noise(
    sketch_multiplier=0.7, spread_multiplier=0.9, train_multiplier=1.1, validate_multiplier=0.6,
    report_multiplier=0.8,
)  # fmt: skip
PLANS: dict[str, dict[str, Any]] = {
    "default": {},
    "clip norms by block": {
        "privacy": {"block_clip_norms": {"trunk": 0.1, "heads": 0.7, "prior": 3.0}},
        "model": {"form": "full"},
    },
    "automatic clipping, one part": {
        "privacy": {"clipping": "automatic", "classifier_clip_norm": 0.0, "clip_norm": 5.0},
    },
    "local steps": {"privacy": {"local_steps": 4, "local_learning_rate": 0.01}},
    "trained code, local encoder": {
        "model": {"codes": "trained", "encoder": "local"},
        "privacy": {"local_steps": 2, "block_clip_norms": {"encoder": 2.0, "code": 0.2}},
    },
    "patients, weighted sketch": {"privacy": {"unit": "patient"}},
    "a report": {"privacy": {"report_precision": 0.5, "report_holdout": 0.3}},
}


@cache
def run_of(name: str) -> tuple[RunSpec, Simulated]:
    changes = PLANS[name]
    privacy = {"rounds": 2, "sketch_steps": 2, "validation_share": 0.2} | changes.get("privacy", {})
    spec = worlds.spec(privacy=privacy, model=changes.get("model"), noise=NOISE)
    sites = [SimulatedSite("a", DATA), SimulatedSite("b", worlds.clusters(50, seed=3))]
    return spec, simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET)


def inputs_of(run: Simulated, number: int) -> Mapping[str, bytes]:
    if number == 0 or number > len(run.rounds) - 1:  # sketches read nothing but records
        return {}
    before = run.rounds[number - 1]
    return {"frame": before.frame, "weights": before.weights}


def made(spec: RunSpec, run: Simulated, number: int, attempt: int = 1) -> bytes:
    return release(
        spec, number, attempt, "a", DATA, inputs_of(run, number), secret=worlds.SECRET,
        noise=csprng(),
    ).update  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_null_coordinates_carry_the_promised_noise_in_every_kind_of_round(name: str) -> None:
    """No kind of round, clip rule or block gives them another standard deviation."""
    spec, run = run_of(name)
    kinds = [spec.kind(number) for number in range(spec.last_round + 2)]
    report = ["report"] if name == "a report" else []
    assert kinds == ["sketch", "spread", "train", "train", "validate", *report, "join"]
    for number in range(spec.last_round + 2):
        expected = expectation(spec, number)
        bodies = [made(spec, run, number, attempt) for attempt in range(1, 26)]
        for body in bodies:
            check_update(body, expected)
        nulls = np.stack([null_of(body) for body in bodies]) / expected.noise_std
        # 6,400 draws: the ratio's own standard deviation is 0.9 %.
        assert float(np.sqrt(np.mean(nulls**2))) == pytest.approx(1.0, abs=0.05)
        assert stats.kstest(nulls.ravel(), "norm").pvalue > 1e-5


@pytest.mark.parametrize("name", ["default", "clip norms by block", "automatic clipping, one part"])
def test_all_other_coordinates_carry_the_same_noise(name: str) -> None:
    """Twice the same query: what differs is noise alone, in every block."""
    spec, run = run_of(name)
    for number in range(spec.last_round + 1):
        expected = expectation(spec, number)
        pairs = [[tensors.unpack(made(spec, run, number))[0][TENSOR].astype(np.float64)
                  for _ in range(2)] for _ in range(20)]  # fmt: skip
        noise = np.stack([a - b for a, b in pairs]) / (math.sqrt(2.0) * expected.noise_std)
        parts = np.array_split(noise[:, : expected.size], min(4, expected.size), axis=1)
        for part in [*parts, noise[:, expected.size :]]:
            error = 6.0 / math.sqrt(2.0 * part.size)
            assert float(np.sqrt(np.mean(part**2))) == pytest.approx(1.0, abs=error)


# --- sites that are broken ---


def refused(spec: RunSpec, run: Simulated, number: int, times: int = 6) -> int:
    """How many of some real updates the check refuses."""
    count = 0
    for attempt in range(1, times + 1):
        try:
            check_update(made(spec, run, number, attempt), expectation(spec, number))
        except UpdateNoiseImplausible:
            count += 1
    return count


def changed(**changes: Callable[[float], float]) -> Callable[..., NDArray[np.float32]]:
    """The mechanism with another noise multiplier or bound."""

    def wrong(total: Vector, **named: Any) -> NDArray[np.float32]:
        return noised(total, **named | {k: f(named[k]) for k, f in changes.items()})

    return wrong


def on_gradients_only(total: Vector, **named: Any) -> NDArray[np.float32]:
    released = noised(total, **named)
    released[total.size :] = 0.0
    return released


def on_null_only(total: Vector, **named: Any) -> NDArray[np.float32]:
    released = noised(total, **named)
    released[: total.size] = total
    return released


def of_the_mean(total: Vector, **named: Any) -> NDArray[np.float32]:
    """A mean over the batch where a sum was promised: noise and all."""
    return np.asarray(noised(total, **named) / 20.0, np.float32)


WRONG: dict[str, Callable[..., NDArray[np.float32]]] = {
    "no noise": lambda total, **named: np.concatenate([total, np.zeros(N)]).astype(np.float32),
    "half the noise": changed(noise_multiplier=lambda z: z / 2.0),
    "the noise of every step in each": changed(noise_multiplier=lambda z: 2.0 * z),  # sqrt(E)
    "the variance for the deviation": changed(
        noise_multiplier=lambda z: z * z, bound=lambda s: s * s
    ),
    "the generator's clip norm alone": changed(bound=lambda s: math.sqrt(s * s - 2.0**2)),
    "noise on gradients only": on_gradients_only,
    "a mean instead of a sum": of_the_mean,
}  # fmt: skip


@pytest.mark.parametrize("defect", WRONG)
def test_defect_wrong_noise_is_refused(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real training updates of four local steps by a site with one thing wrong."""
    spec, run = run_of("local steps")
    monkeypatch.setattr(local_steps, "noised", WRONG[defect])
    assert refused(spec, run, 2) == 6


@pytest.mark.parametrize("number", [0, 1, 4])
@pytest.mark.parametrize("defect", ["no noise", "half the noise", "noise on gradients only"])
def test_defect_wrong_noise_is_refused_in_other_rounds(
    defect: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, run = run_of("default")
    monkeypatch.setattr(local, "noised", WRONG[defect])
    assert refused(spec, run, number) == 6


@pytest.mark.parametrize("defect", ["one step", "one draw for all"])
def test_defect_noise_of_one_step_where_four_were_promised(
    defect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, run = run_of("local steps")
    real, draws = csprng(), {}

    class Wrong:
        private = True
        asked = 0

        def normal(self, size: int, std: float) -> Vector:
            self.asked += 1
            if defect == "one step":
                return real.normal(size, std) if self.asked == 1 else np.zeros(size)
            return draws.setdefault(id(self), real.normal(size, std))

    for _ in range(6):
        body = release(
            spec, 2, 1, "a", DATA, inputs_of(run, 2), secret=worlds.SECRET, noise=Wrong()
        ).update
        with pytest.raises(UpdateNoiseImplausible):
            check_update(body, expectation(spec, 2))


def test_a_malicious_site_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Honest noise on the null coordinates and none elsewhere passes: the test says so, too."""
    spec, run = run_of("local steps")
    monkeypatch.setattr(local_steps, "noised", on_null_only)
    assert refused(spec, run, 2) == 0


def test_defect_the_bound_of_one_step_refuses_honest_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that forgets the root of E takes every honest site of four steps for broken."""
    spec, run = run_of("local steps")
    honest = expectation(spec, 2)
    forgot = type(honest)(**{**honest.__dict__, "noise_std": honest.noise_std / 2.0})
    with pytest.raises(UpdateNoiseImplausible):
        check_update(made(spec, run, 2), forgot)


# --- power ---


def table() -> list[tuple[float, float]]:
    """(ratio, probability) as docs/update-checks.md prints them."""
    text = (Path(__file__).parents[2] / "docs" / "update-checks.md").read_text()
    found = re.findall(r"^\| ([0-9.]+) \| ([0-9.]+) %", text, re.MULTILINE)
    return [(float(ratio), float(probability) / 100.0) for ratio, probability in found]


def test_the_printed_power_is_the_computed_one() -> None:
    rows = table()
    assert len(rows) == 12
    for ratio, probability in rows:
        assert detection(ratio) == pytest.approx(probability, abs=6e-5)
    sure = [ratio for ratio, probability in rows if probability >= 0.999]
    assert max(r for r in sure if r < 1) == 0.65
    assert min(r for r in sure if r > 1) == 1.48


@pytest.mark.parametrize("ratio", [0.65, 0.7, 0.742, 0.8, 1.0, 1.2, 1.28, 1.3, 1.4, 1.48])
def test_the_power_against_simulation(ratio: float) -> None:
    low, high = accepted(1)
    trials = 20_000
    draws = np.random.default_rng(7).chisquare(N, trials) ** 0.5 * ratio
    found = float(((draws < low) | (draws > high)).mean())
    error = 5.0 * math.sqrt(max(found * (1 - found), 1e-4) / trials)
    assert detection(ratio) == pytest.approx(found, abs=error)


def test_the_check_uses_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, run = run_of("default")
    monkeypatch.setattr(updates, "accepted", lambda steps: (0.0, 1e-9))
    assert refused(spec, run, 0, times=1) == 1
