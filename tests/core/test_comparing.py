"""Rows of another machine: rounding and a moved boundary pass, other rows do not."""

from __future__ import annotations

import numpy as np
import pytest

from core.receipts.comparing import NEEDED, TOLERANCE, Comparison, compare
from core.synthesis.rows import Block

RNG = np.random.default_rng(0)


def block(n: int = 400, d: int = 8) -> Block:
    x = RNG.standard_normal((n, d)).astype(np.float32)
    y = RNG.integers(0, 3, n)
    return Block(x, y, np.zeros(n, np.int64))


def with_rows(of: Block, x: np.ndarray) -> Block:
    return Block(x.astype(np.float32), of.y, of.source)


def found(file: list[Block], made: list[Block], dtype: str = "float32") -> Comparison:
    return compare(file, made, TOLERANCE[dtype])


def test_rounding_passes() -> None:
    made = [block(), block(7)]
    noise = [with_rows(one, one.x * (1 + 1e-6 * RNG.standard_normal(one.x.shape))) for one in made]
    assert found(noise, made) == Comparison(407, 407, True)
    half = [with_rows(one, one.x.astype(np.float16)) for one in made]
    assert found(half, made, "float16").holds
    assert not found(half, made).holds


def test_a_proposal_on_the_other_side_of_a_boundary_passes() -> None:
    made = block()
    places = np.flatnonzero(made.y == 1)
    x = made.x.copy()
    x[places[10:]] = np.concatenate([made.x[places[11:]], RNG.standard_normal((1, 8))])
    result = found([with_rows(made, x)], [made])
    assert (result.holds, result.same) == (True, 399)


@pytest.mark.parametrize("share", [0.011, 0.5, 1.0])
def test_other_rows_do_not(share: float) -> None:
    made, other = block(), block()
    changed = np.arange(400) < share * 400
    x = np.where(changed[:, None], other.x, made.x)
    result = found([with_rows(made, x)], [made])
    assert not result.holds
    assert result.same < NEEDED * 400


def test_shuffled_shorter_relabelled_and_broken_files_do_not() -> None:
    made = block()
    assert not found([with_rows(made, RNG.permutation(made.x))], [made]).holds
    assert not found([Block(made.x[:-1], made.y[:-1], made.source[:-1])], [made]).holds
    assert not found([], [made]).holds
    assert not found([], []).holds
    relabelled = Block(made.x, (made.y + 1) % 3, made.source)
    assert not found([relabelled], [made]).holds
    assert not found([with_rows(made, np.full_like(made.x, np.nan))], [made]).holds
