"""Rows of a request: the same ones in any order, process and number of threads; labels, codes and
temperature as asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.federation.plan import Noise
from core.privacy.noise import seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.synthesis.labels import Counted, Drawn, apportioned
from core.synthesis.request import SynthesisRequest
from core.synthesis.rows import Rows
from core.synthesis.streams import BLOCK_ROWS
from tests.core import worlds

QUIET = Noise(sketch_multiplier=0.01, train_multiplier=0.05)


@pytest.fixture(scope="module")
def run() -> Simulated:
    """Two sites, one training round with a classifier: its rows are guided."""
    sites = [SimulatedSite(name, worlds.clusters(300, seed=i)) for i, name in enumerate("ab")]
    spec = worlds.spec(privacy={"rounds": 3, "sample_rate": 1.0}, noise=QUIET)
    found = simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET)
    assert found.generator.guided
    return found


def rows(run: Simulated, seed: int = 5, **asked: object) -> Rows:
    return run.generator.rows(SynthesisRequest.model_validate({"run": "r"} | asked), seed)


# --- the same rows ---


@pytest.mark.parametrize("guidance", ["model", "none"])
@pytest.mark.parametrize("mode", ["blend", "sample"])
def test_any_block_can_be_made_alone_and_in_any_order(
    run: Simulated, mode: str, guidance: str
) -> None:
    asked = {"mixture": {"a": 3, "b": 1}, "mode": mode, "guidance": guidance}
    long, alone = rows(run, n=2 * BLOCK_ROWS + 7, **asked), rows(run, n=2 * BLOCK_ROWS + 7, **asked)
    one_by_one = list(long)
    assert [len(block.y) for block in one_by_one] == [BLOCK_ROWS, BLOCK_ROWS, 7]
    for number in (2, 0, 1):
        block = alone.block(number)
        np.testing.assert_array_equal(block.x, one_by_one[number].x)
        np.testing.assert_array_equal(block.y, one_by_one[number].y)
        np.testing.assert_array_equal(block.source, one_by_one[number].source)
    assert not (one_by_one[0].x[:7] == one_by_one[2].x).all(axis=1).any()
    short = rows(run, n=30, **asked).block(0)
    np.testing.assert_array_equal(short.x, one_by_one[0].x[:30])
    for beyond in (-1, 3):
        with pytest.raises(IndexError, match="3 blocks"):
            long.block(beyond)


_ELSEWHERE = """
import hashlib, json, sys
from pathlib import Path
from core.federation.plan import RunSpec
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
folder = Path(sys.argv[1])
generator = Generator.load(
    (folder / "frame").read_bytes(), (folder / "weights").read_bytes(),
    RunSpec.model_validate_json((folder / "spec").read_bytes()),
)
digest = hashlib.sha256()
asked = SynthesisRequest.model_validate_json((folder / "asked").read_bytes())
for block in generator.rows(asked, 9):
    digest.update(block.x.tobytes())
    digest.update(block.y.tobytes())
print(digest.hexdigest())
"""


def test_processes_with_other_numbers_of_threads_make_the_same_bytes(
    run: Simulated, tmp_path: Path
) -> None:
    asked = {"run": "r", "n": BLOCK_ROWS + 100, "mixture": {"a": 1, "b": 2}, "mode": "sample"}
    last = run.rounds[-1]
    (tmp_path / "frame").write_bytes(last.frame)
    (tmp_path / "weights").write_bytes(last.weights)
    (tmp_path / "spec").write_text(run.generator.spec.model_dump_json())
    (tmp_path / "asked").write_text(json.dumps(asked))
    here = hashlib.sha256()
    for block in run.generator.rows(SynthesisRequest.model_validate(asked), 9):
        here.update(block.x.tobytes())
        here.update(block.y.tobytes())
    for threads in ("1", "2", "5"):
        variables = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", _ELSEWHERE, str(tmp_path)],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here.hexdigest()


# --- labels ---


def _slowly(counts: tuple[int, ...]) -> list[int]:
    """All labels in the order of ``Counted``, by sorting every row's place."""
    places = [
        (Fraction(2 * row + 1, 2 * count), label)
        for label, count in enumerate(counts)
        for row in range(count)
    ]
    return [label for _, label in sorted(places)]


@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=6).filter(any), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_counted_labels_are_exact_and_every_block_has_the_mix_of_the_whole(
    counts: list[int], seed: int
) -> None:
    source = Counted(tuple(counts), seed)
    blocks = [source.block(b) for b in range(-(-source.n // BLOCK_ROWS))]
    slow = _slowly(tuple(counts))
    for number, block in enumerate(blocks):
        expected = slow[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
        assert sorted(block.tolist()) == sorted(expected)
    found = np.bincount(np.concatenate(blocks), minlength=len(counts))
    assert found.tolist() == counts


@given(
    st.integers(1, 10_000),
    st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda shares: sum(shares) > 0.01),
)
def test_apportioned_rows_are_as_near_as_whole_rows_can_be(n: int, shares: list[float]) -> None:
    counts = apportioned(n, shares)
    assert sum(counts) == n
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - n * share / sum(shares)) < 1 + 1e-9


def test_drawn_labels_follow_their_probabilities() -> None:
    probabilities = np.array([0.5, 0.2, 0.3])
    source = Drawn(3 * BLOCK_ROWS, probabilities, 4)
    labels = np.concatenate([source.block(block) for block in range(3)])
    expected = probabilities * len(labels)
    found = np.bincount(labels, minlength=3)
    assert ((found - expected) ** 2 / expected).sum() < 13.8  # chi-square(2), one in a thousand
    np.testing.assert_array_equal(Drawn(10, probabilities, 4).block(0), labels[:10])


@pytest.mark.parametrize(
    ("labels", "counts"),
    [("uniform", [34, 33, 33]), ({"class-2": 3, "class-0": 1}, [25, 0, 75])],
)
def test_labels_by_share_are_exact(run: Simulated, labels: object, counts: list[int]) -> None:
    found = np.bincount(rows(run, n=100, labels=labels).block(0).y, minlength=3)
    assert found.tolist() == counts


# --- codes ---


def test_sampled_codes_follow_their_weights_and_each_row_is_of_its_code(run: Simulated) -> None:
    asked = {"n": 4_000, "guidance": "none", "labels": {"class-1": 1}}
    mixed = rows(run, mixture={"a": 3, "b": 1}, mode="sample", **asked).block(0)
    share = (mixed.source == 0).mean()
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4_000)
    for number, name in enumerate("ab"):
        own = rows(run, mixture={name: 1}, **asked).block(0).x.mean(axis=0)
        found = mixed.x[mixed.source == number].mean(axis=0)
        others = mixed.x[mixed.source != number].mean(axis=0)
        assert np.linalg.norm(found - own) < np.linalg.norm(others - own)


def test_weights_are_normalised_and_echoed(run: Simulated) -> None:
    asked = SynthesisRequest.model_validate({"run": "r", "n": 5, "mixture": {"a": 3, "b": 1}})
    assert asked.mixture == {"a": 0.75, "b": 0.25}
    assert run.generator.sample(asked, 1).weights == {"a": 0.75, "b": 0.25}


def test_a_temperature_scales_the_spread_around_the_means(run: Simulated) -> None:
    spreads = []
    for temperature in (0.25, 0.5, 1.0):
        made = rows(
            run, n=2_000, guidance="none", labels={"class-0": 1}, temperature=temperature
        ).block(0)
        spreads.append(np.linalg.norm(made.x - made.x.mean(axis=0), axis=1).mean())
    assert spreads[0] < 0.7 * spreads[1] < 0.7 * spreads[2]
    same, default = (rows(run, n=20, **more).block(0).x for more in ({"temperature": 1.0}, {}))
    np.testing.assert_array_equal(same, default)
