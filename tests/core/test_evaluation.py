"""Metrics against slow references and known answers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from core.evaluation import distance
from core.evaluation.fidelity import BANDWIDTHS, DomainFidelity, domain_fidelity, mmd, prdc
from core.evaluation.privacy import membership_attack, nearest
from core.evaluation.utility import fit, score, tstr
from tests.core import worlds


def rows(n: int, seed: int, dim: int = 5, shift: float = 0.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(n, dim)) + shift


def on_sphere(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(params=[1_024, 7])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every metric in one chunk and in many."""
    monkeypatch.setattr(distance, "CHUNK_ROWS", request.param)


def slow_mmd(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    def kernel(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
        gap = float(np.sum((p - q) ** 2))
        return float(np.mean([np.exp(-gap / (2 * s * s)) for s in BANDWIDTHS]))

    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i, j in product(range(n), repeat=2) if i != j)
    within_b = sum(kernel(b[i], b[j]) for i, j in product(range(m), repeat=2) if i != j)
    across = sum(kernel(p, q) for p, q in product(a, b))
    return within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * across / (n * m)


@pytest.mark.usefixtures("chunk")
def test_mmd_is_the_slow_double_sum() -> None:
    a, b = rows(23, 0), rows(17, 1, shift=0.5)
    assert mmd(a, b) == pytest.approx(slow_mmd(on_sphere(a), on_sphere(b)), abs=1e-12)
    assert mmd(a, 3.0 * b) == pytest.approx(mmd(a, b), abs=1e-12)  # directions only


def test_mmd_is_unbiased() -> None:
    """Zero on average for one distribution (a biased estimate would be about 2/n = 0.05)."""
    values = [mmd(rows(20, 2 * s), rows(20, 2 * s + 1)) for s in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert np.std(values) / np.sqrt(300) < 0.005
    assert min(values) < 0


def test_mmd_refuses_a_single_row() -> None:
    with pytest.raises(ValueError, match="two rows"):
        mmd(rows(1, 0), rows(5, 0))


def slow_prdc(
    real: NDArray[np.float64], fake: NDArray[np.float64], k: int
) -> tuple[float, float, float, float]:
    def radius(points: NDArray[np.float64], i: int) -> float:
        gaps = [np.linalg.norm(points[i] - q) for j, q in enumerate(points) if j != i]
        return float(sorted(gaps)[k - 1])

    real_r = [radius(real, i) for i in range(len(real))]
    fake_r = [radius(fake, j) for j in range(len(fake))]
    gap = np.array([[np.linalg.norm(p - q) for q in fake] for p in real])
    inside = gap < np.array(real_r)[:, None]
    precision = float(np.mean(inside.any(axis=0)))
    recall = float(np.mean((gap < np.array(fake_r)[None, :]).any(axis=1)))
    density = float(inside.sum() / (k * len(fake)))
    coverage = float(np.mean(gap.min(axis=1) < np.array(real_r)))
    return precision, recall, density, coverage


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_is_the_slow_definition(k: int) -> None:
    real, fake = rows(40, 0), rows(31, 1, shift=0.4)
    found = prdc(real, fake, k)
    expected = slow_prdc(on_sphere(real), on_sphere(fake), k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)


def test_prdc_of_known_cases() -> None:
    real = rows(400, 0)
    same = prdc(real, rows(400, 1))
    assert same.precision > 0.85
    assert same.recall > 0.85
    assert same.density == pytest.approx(1.0, abs=0.15)
    assert same.coverage > 0.9
    far = prdc(rows(50, 0, shift=9.0), rows(50, 1, shift=-9.0))
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    # One real record repeated with tiny changes: precise, dense and hardly any recall or coverage.
    collapsed = prdc(real, real[:1] + 1e-4 * rows(400, 2))
    assert collapsed.precision == 1.0
    assert collapsed.recall < 0.05
    assert collapsed.coverage < 0.1


def test_prdc_needs_more_rows_than_neighbours() -> None:
    with pytest.raises(ValueError, match="k=5"):
        prdc(rows(5, 0), rows(50, 1))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_rows_without_direction_are_refused(bad: float) -> None:
    x = rows(8, 0)
    x[3] = bad
    with pytest.raises(ValueError, match="no direction"):
        mmd(x, rows(8, 1))


# --- per-domain fidelity ---


def domains() -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    sets = [worlds.clusters(150, seed=s, shift=0.35 * s - 0.35) for s in range(3)]
    return [(d.x, d.y) for d in sets]


def test_domain_fidelity_is_mmd_and_tstr_pair_by_pair() -> None:
    sources = domains()
    clients = [(x[::2], y[::2]) for x, y in domains()[:2]]
    found = domain_fidelity(sources, clients)
    for k, m in product(range(3), range(2)):
        assert found.mmd[k, m] == pytest.approx(mmd(sources[k][0], clients[m][0]), abs=1e-12)
        expected = tstr(*sources[k], *clients[m]).accuracy
        assert found.tstr[k, m] == pytest.approx(expected, abs=0.02)  # float32 of directions


def test_the_own_domain_is_found_and_neutral_is_worse() -> None:
    sources = domains()
    pooled = (np.concatenate([x for x, _ in sources]), np.concatenate([y for _, y in sources]))
    clients = [(worlds.clusters(120, seed=50 + s, shift=0.35 * s - 0.35)) for s in range(3)]
    found = domain_fidelity([*sources, pooled], [(d.x, d.y) for d in clients])
    assert found.own_is_nearest().all()
    assert (found.advantage(neutral=3)[[0, 2]] > 0.01).all()
    assert found.mmd.shape == found.tstr.shape == (4, 3)


def test_domain_fidelity_with_absent_classes_and_clients_without_records() -> None:
    x, y = domains()[0]
    one = (x[y == 1], y[y == 1])
    clients = [one, (x[:0], y[:0]), (x[:1], y[:1])]
    found = domain_fidelity([(x, y), one, (x[:30], y[:30])], clients)
    assert np.isnan(found.mmd[:, 1:]).all()
    assert np.isnan(found.tstr[:, 1]).all()
    assert found.tstr[1, 0] == 1.0  # one class in, one class out
    assert not found.own_is_nearest()[1:].any()
    with pytest.raises(ValueError, match="own source"):
        DomainFidelity(found.mmd[:1], found.tstr[:1]).own_is_nearest()


# --- utility ---


def test_balanced_accuracy_is_the_librarys_where_all_predicted_classes_exist() -> None:
    draw = np.random.default_rng(0)
    truth, guess = draw.integers(0, 4, 200), draw.integers(0, 4, 200)
    found = score(guess, truth)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, guess))
    assert found.accuracy == np.mean(truth == guess)


def test_balanced_accuracy_counts_classes_of_the_test_set_only() -> None:
    found = score(np.array([0, 0, 1, 3]), np.array([0, 0, 1, 1]))
    assert found.balanced_accuracy == pytest.approx((1 + 0.5) / 2)


def test_one_class_is_always_predicted_and_none_is_refused() -> None:
    x = rows(9, 0)
    assert (fit(x, np.full(9, 2))(rows(4, 1)) == 2).all()
    with pytest.raises(ValueError, match="at least one"):
        fit(x[:0], np.zeros(0, np.int64))


# --- membership inference ---


@pytest.mark.usefixtures("chunk")
def test_membership_auc_is_that_of_the_library() -> None:
    members, others, made = rows(31, 0), rows(22, 1), rows(40, 2, shift=0.3)
    made[:10] = members[:10] + 0.01
    gaps = [
        min(np.linalg.norm(on_sphere(r[None]) - on_sphere(s[None])) for s in made)
        for r in np.concatenate([members, others])
    ]
    np.testing.assert_allclose(
        nearest(np.concatenate([members, others]), made), np.array(gaps), atol=1e-7
    )
    truth = np.r_[np.ones(31), np.zeros(22)]
    found = membership_attack(members, others, made)
    assert found.auc == pytest.approx(roc_auc_score(truth, -np.array(gaps)), abs=1e-12)


def test_membership_of_copies_is_certain_and_of_fresh_rows_a_guess() -> None:
    members, others = rows(300, 0, dim=20), rows(300, 1, dim=20)
    assert membership_attack(members, others, members).auc > 0.999
    assert membership_attack(others, members, members).auc < 0.001
    fresh = membership_attack(members, others, rows(300, 2, dim=20))
    assert abs(fresh.auc - 0.5) < 4 * fresh.null_sd
    ties = membership_attack(members[:3], members[:3], others)
    assert ties.auc == 0.5


def test_null_sd_is_the_spread_of_the_auc_under_no_difference() -> None:
    made = rows(30, 0)
    found = [membership_attack(rows(25, 2 * s + 1), rows(15, 2 * s + 2), made) for s in range(200)]
    assert np.std([f.auc for f in found]) == pytest.approx(found[0].null_sd, rel=0.2)


def test_the_attack_needs_all_three_sets() -> None:
    with pytest.raises(ValueError, match="needs members"):
        membership_attack(rows(0, 0), rows(3, 0), rows(3, 1))
