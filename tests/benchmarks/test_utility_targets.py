"""Targets are compared as they are: none is met by rounding up or by a missing figure."""

from __future__ import annotations

from benchmarks.utility_targets import targets

FIGURES = {
    "class-means": {"1": 0.7, "8": 0.71},
    "shared-gaussian": {"1": 0.68, "8": 0.75},
    "sketch-codes": {"1": 0.694, "8": 0.745},
    "sketch-neutral": {"1": 0.69, "8": 0.73},
}


def test_relative_targets_hold_for_any_data() -> None:
    found = targets("own", "local", FIGURES)
    assert {name: t["ok"] for name, t in found.items()} == {
        "ours-minus-best-baseline@1": False,  # -0.006
        "ours-minus-best-baseline@8": True,  # -0.005
        "neutral-minus-codes@1": True,
        "neutral-minus-codes@8": False,
    }


def test_absolute_targets_are_those_of_their_data_set() -> None:
    found = targets("glosses", "local", FIGURES)
    assert found["class-means@1"] == {"value": 0.7, "target": 0.696, "ok": True}
    assert found["class-means@8"]["ok"] is False
    assert found["sketch-codes@8"]["ok"] is True
    assert "sketch-codes@4" not in found
    aggregated = targets("glosses", "aggregated", FIGURES)
    assert aggregated["sketch-codes@1"] == {"value": 0.694, "target": 0.725, "ok": False}
    assert "class-means@1" not in aggregated
