"""Records must be computed alike wherever they lie in a tile, on whatever machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core.privacy import ghost
from core.privacy.clipping import ClipRule
from core.privacy.rowwise import rows_are_alike
from tests.core.test_ghost import World, network_of

NETWORK = network_of("film")


@pytest.fixture
def uneven(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose float32 products round the last rows of a tile otherwise."""
    linear = functional.linear

    def by_place(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result = linear(inputs, weight, bias)
        if result.dtype == torch.float64 or len(result) < 8:
            return result
        place = torch.arange(len(result))[:, None] % 4 == 3
        return torch.where(place, result * (1.0 + 2.0**-22), result)

    monkeypatch.setattr("core.models.grouped.functional.linear", by_place)
    rows_are_alike.cache_clear()
    yield
    rows_are_alike.cache_clear()


def alike(dtype: torch.dtype, *, reduced: bool = False) -> bool:
    return rows_are_alike(NETWORK, 32, "cpu", dtype, reduced, torch.get_num_threads())


def test_the_trial_finds_products_that_depend_on_the_place(uneven: None) -> None:
    assert not alike(torch.float32)


def movement() -> float:
    """By how much removing one unit moves the others, in clip norms; its own part taken off."""
    world = World.draw(NETWORK, [1] * 60, scale=0.5)
    sum_of = partial(world.ghost, ClipRule(1.0), dtype=torch.float32, tile=32)
    fewer = sum_of(units=[unit for unit in world.units if unit != 3])
    return float(np.linalg.norm(sum_of() - fewer - sum_of(units=[3])))


def test_such_a_machine_works_in_float64_and_units_stay_independent(uneven: None) -> None:
    assert movement() <= 1e-9


def test_defect_trusting_float32_rows_moves_other_units(
    uneven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ghost, "rows_are_alike", lambda *_: True)
    assert movement() > 1e-8


def test_the_trial_is_made_once_for_a_setting() -> None:
    rows_are_alike.cache_clear()
    first = alike(torch.float32)
    assert alike(torch.float32) is first
    assert rows_are_alike.cache_info().hits == 1
