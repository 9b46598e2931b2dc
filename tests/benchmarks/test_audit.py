"""The audit of a run: what is audited is production, and it finds what it is there to find."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.audit import command, tables
from benchmarks.audit.attacker import Belief, Seen, contributions
from benchmarks.audit.bound import Proof, most
from benchmarks.audit.canaries import ORDINARY_CLASSES, build_world
from benchmarks.audit.cases import SITE, Audited, Case, TooQuiet, audit, cases
from core.federation.plan import ModelPlan
from core.federation.updates import expectation, read_update
from core.privacy.coins import CoinStream
from core.privacy.mechanism import sensitivity
from core.privacy.noise import seeded
from core.simulation import SimulatedSite, simulate

README = Path(__file__).resolve().parents[2] / "benchmarks" / "README.md"
SECRET = b"s" * 32
SMALL = Case(
    "small", 120, 32, ordinary=20, rounds=2, sample_rate=1.0, sketch_share=0.5,
    model=ModelPlan(basis_rank=32, latent_dim=1, hidden=8, encoder_hidden=8, code_dropout=0.0),
)  # fmt: skip


def small_audit(case: Case, seed: int = 5) -> Audited:
    return audit(case, seeded(seed), np.random.default_rng(seed), SECRET)


# --- canaries and what they add ---


def test_canaries_are_unlike_all_others() -> None:
    world = build_world(100, 32, 50, seed=0)
    x, y = world.canaries.directions, world.canaries.y
    assert len(world.canaries.unit_ids) == 100
    assert set(y).isdisjoint(world.ordinary.y)
    same = (x @ x.T)[y[:, None] == y[None, :]].reshape(-1)
    np.testing.assert_allclose(np.sort(same)[:-100], 0.0, atol=1e-6)
    means = [world.ordinary.directions[world.ordinary.y == c].mean(0) for c in range(4)]
    assert len(means) == ORDINARY_CLASSES
    assert np.abs(x @ np.array(means).T).max() < 0.1


def test_the_site_holds_the_canaries_whose_coin_says_so_and_nothing_else_changes() -> None:
    world = build_world(40, 16, 10, seed=0)
    included = np.arange(40) % 3 == 0
    site = world.site(included)
    assert set(site.unit) - set(world.ordinary.unit) == {b"canary-%d" % i for i in range(0, 40, 3)}
    assert world.site(np.zeros(40, bool)).unit == world.ordinary.unit


class _NoNoise(TooQuiet):
    def normal(self, size: int, std: float) -> np.ndarray:
        return np.zeros(size)


@pytest.mark.parametrize("moments", [True, False])
def test_contributions_are_what_production_adds(moments: bool) -> None:
    """Ordinary records and included canaries together are the sum of a run without noise.

    Under the site's own coins, that is; an attacker has to average over what it does not know.
    """
    case = replace(SMALL, moments=moments, canaries=60)
    world = build_world(60, 32, 20, seed=0)
    spec = case.spec(world)
    included = np.arange(60) % 2 == 0
    sent: list[bytes] = []
    sites = [SimulatedSite(SITE, world.site(included)), SimulatedSite("b", world.elsewhere)]
    found = simulate(
        spec, sites, noise=_NoNoise(seeded(0), 0.0), secret=SECRET,
        observe=lambda _, updates: sent.append(updates[SITE]),
    )  # fmt: skip
    for number, update in enumerate(sent):
        before = found.rounds[number - 1] if number else None
        inputs = {} if before is None else {"frame": before.frame, "weights": before.weights}
        expected = expectation(spec, number)
        total = read_update(update, expected)[: expected.size]
        seen = Seen(number, inputs, update)
        own = [CoinStream(SECRET + SITE.encode(), spec.run_id, number, 1)]
        rows = contributions(spec, seen, SITE, world.canaries, streams=own)
        rest = contributions(spec, seen, SITE, world.ordinary, summed=True, streams=own)
        sums = np.asarray(rest).ravel() + rows.T @ included.astype(np.float32)
        lengths = np.sqrt(np.asarray((rows * rows).sum(axis=1)).ravel())
        assert lengths.max() <= sensitivity(spec, number) * (1 + 1e-5)
        np.testing.assert_allclose(sums, total, atol=2e-5 * np.abs(total).max())
        # A canary has the length that clipping leaves, so none could be seen better.
        assert lengths.min() > 0.999 * sensitivity(spec, number)
        if spec.kind(number) == "train":
            # What is secret hides a part of that length.
            guessed = contributions(spec, seen, SITE, world.canaries)
            assert np.all((guessed * guessed).sum(axis=1) < lengths**2)


def test_beliefs_of_separate_canaries_are_their_likelihood_ratios() -> None:
    """Orthogonal rows: the belief is a monotone map of row . release / std^2."""
    draw = np.random.default_rng(0)
    rows = np.eye(30, 50, dtype=np.float32) * 2.0
    coins = draw.random(30) < 0.5
    std = 1.5
    observed = coins @ rows + std * draw.standard_normal(50)
    belief = Belief.prior(30).updated(rows, observed, std)
    ratio = (rows @ observed - 0.5 * 4.0) / std**2
    expected = 0.5 + 0.25 * ratio / (1.0 + 0.25 * 4.0 / std**2)
    np.testing.assert_allclose(belief.mean, expected, rtol=1e-5)
    np.testing.assert_allclose(belief.variance, 0.25 / (1.0 + 0.25 * 4.0 / std**2))


def test_beliefs_see_through_overlapping_canaries() -> None:
    """Against the closed form of the least-squares estimate, two rounds one after the other."""
    draw = np.random.default_rng(1)
    rows = (draw.standard_normal((20, 40)) + 1.0).astype(np.float32)
    coins = (draw.random(20) < 0.5).astype(float)
    observed = coins @ rows + 0.1 * draw.standard_normal(40)
    belief = Belief.prior(20).updated(rows, observed, 0.1)
    gain = rows @ np.linalg.inv(rows.T @ rows * 0.25 + 0.01 * np.eye(40)) * 0.25
    np.testing.assert_allclose(belief.mean, 0.5 + gain @ (observed - 0.5 * rows.sum(0)), atol=1e-4)
    np.testing.assert_array_equal(belief.mean > 0.5, coins > 0.5)


# --- healthy runs and broken ones ---


@pytest.mark.parametrize("case", [replace(SMALL, rounds=0), SMALL], ids=["sketch", "run"])
def test_a_healthy_run_is_not_refuted(case: Case) -> None:
    """At an epsilon that so many canaries could refute, or nothing would be tested."""
    found = small_audit(replace(case, target=1.5))
    assert found.could_refute
    assert found.upper == pytest.approx(1.5, rel=1e-2)
    assert found.proof.epsilon <= found.upper


def test_defect_noise_of_a_tenth_is_caught() -> None:
    case = replace(SMALL, target=1.5, broken="all")
    found = small_audit(case)
    assert found.proof.epsilon > found.upper
    assert found.proof.epsilon > small_audit(replace(case, broken="no")).proof.epsilon


def test_defect_noise_of_a_twentieth_in_training_alone_is_caught() -> None:
    case = replace(
        SMALL, target=1.0, sketch_share=0.1, rounds=3, broken="training", factor=0.05
    )  # fmt: skip
    found = small_audit(case)
    assert found.could_refute
    assert found.proof.epsilon > found.upper


def test_canaries_show_at_epsilon_eight() -> None:
    """A lower bound of 0 would mean that the attacker sees nothing at all."""
    found = small_audit(replace(SMALL, rounds=0))
    assert 0.3 < found.proof.epsilon <= found.most < found.upper


# --- the command ---


def test_what_is_audited_is_in_the_readme() -> None:
    text = " ".join(README.read_text().split())
    planned = cases(command.CANARIES, command.MANY)
    for case in planned:
        assert f"`{case.name}`" in text
    assert [case.target for case in planned[:4]] == [8.0] * 4
    assert f"{command.MANY:,} canaries" in text
    large = planned[0]
    # Enough canaries that a ledger of 8 can be refuted, and no more than delta allows.
    assert 8.0 < most(large.canaries, large.delta) < 8.5
    assert all(case.delta < 1.0 / (10.0 * case.n_max) for case in planned)


def test_a_small_run_writes_its_table_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy = replace(SMALL, name="run", rounds=0, moments=False)
    broken = replace(healthy, name="many-broken", target=1.0, broken="all")
    first = command.run([healthy, broken], 3, tmp_path)
    out = capsys.readouterr().out.strip().splitlines()
    content, last = json.loads((tmp_path / "audit.json").read_text()), json.loads(out[-1])
    assert last["bench"] == "audit"
    assert last["targets"] == content["targets"]
    assert set(last["targets"]) == {"lower-bound-below-ledger", "broken-run-is-caught"}
    assert all(target["ok"] for target in last["targets"].values())
    assert len(content["audits"]) == 2
    assert (tmp_path / "audit.png").stat().st_size > 0
    again = command.audited([healthy, broken], 3, command.Console(quiet=True))
    assert [a.proof for a in again] == [a.proof for a in first]


def test_words_of_a_row() -> None:
    base = Audited(
        case=SMALL, upper=8.0, proof=Proof(2.0, 100, 25, 24), most=3.0, ideal=2.2,
        belief=np.zeros(1), included=np.zeros(1, bool),
    )  # fmt: skip
    assert tables.verdict(base) == "not refuted (could not be)"
    assert tables.verdict(replace(base, most=9.0)) == "not refuted"
    assert tables.verdict(replace(base, most=9.0, upper=1.0)) == "ledger refuted"


@pytest.mark.parametrize("argv", [["--fast"], ["--canaries", "7"], ["--only", "x"]])
def test_a_wrong_option_is_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
