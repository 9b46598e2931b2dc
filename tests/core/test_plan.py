"""Plans: what is refused, with the field in the message, and digests that bind everything."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from core.federation.plan import EmbeddingSpace, Plan, digest_of
from tests.core import worlds

GOOD: dict[str, Any] = {
    "name": "trial",
    "space": "clusters",
    "privacy": {"epsilon": 4.0, "delta": 1e-5, "n_max": 1_000},
}


def with_privacy(**changes: Any) -> dict[str, Any]:
    return GOOD | {"privacy": GOOD["privacy"] | changes}


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        (with_privacy(epsilon=0), "epsilon"),
        (with_privacy(epsilon=-1), "epsilon"),
        (with_privacy(epsilon=float("inf")), "epsilon"),
        (with_privacy(delta=1.0), "delta"),
        (with_privacy(delta=0), "delta"),
        (with_privacy(delta=1e-3), "privacy.delta"),
        (with_privacy(sample_rate=0), "sample_rate"),
        (with_privacy(sample_rate=1.01), "sample_rate"),
        (with_privacy(clip_norm=-1), "clip_norm"),
        (with_privacy(clip_norm=0, classifier_clip_norm=0), "clip_norm"),
        (with_privacy(clip_norm=0) | {"model": {"classifier": "none"}}, "model.classifier"),
        (with_privacy(classifier_clip_norm=-1), "classifier_clip_norm"),
        (GOOD | {"model": {"classifier": "deep"}}, "classifier"),
        (GOOD | {"guidance": {"widen": -1}}, "widen"),
        (with_privacy(n_max=0), "n_max"),
        (with_privacy(sketch_share=1.0), "sketch_share"),
        (with_privacy(sketch_steps=3), "sketch_steps"),
        (with_privacy(mean_share=1.0), "mean_share"),
        (with_privacy(surprise=1), "surprise"),
        (GOOD | {"aggregation": "median"}, "aggregation"),
        (GOOD | {"secure": {"drop": 1}}, "secure"),
        (GOOD | {"aggregation": "secure", "secure": {"collude": 0}}, "secure.collude"),
        (GOOD | {"aggregation": "secure", "round": {"client_fraction": 0.5}}, "client_fraction"),
        (GOOD | {"aggregation": "secure", "model": {"codes": "trained"}}, "model.codes"),
        (GOOD | {"model": {"form": "paper"}}, "form"),
        (GOOD | {"model": {"activation": "sine"}}, "activation"),
        (GOOD | {"model": {"conditioning": "none"}}, "conditioning"),
        (GOOD | {"model": {"hidden_layers": 0}}, "hidden_layers"),
        (GOOD | {"model": {"lowrank": 0}}, "lowrank"),
        (with_privacy(clipping="none"), "clipping"),
        (with_privacy(automatic_gamma=0), "automatic_gamma"),
        (with_privacy(block_clip_norms={"trunk": 0}), "block_clip_norms.trunk"),
        (with_privacy(block_clip_norms={"brain": 1}), "block_clip_norms.brain"),
        (with_privacy(block_clip_norms={"conditioning": 1}), "block_clip_norms.conditioning"),
        (
            with_privacy(block_clip_norms={"prior": 1}) | {"model": {"prior": "standard"}},
            "block_clip_norms.prior",
        ),
        (GOOD | {"model": {"prior": "none"}}, "prior"),
        (
            with_privacy(block_clip_norms={"decoder": 1}) | {"model": {"form": "full"}},
            "block_clip_norms.decoder",
        ),
        (GOOD | {"round": {"quorum": 0}}, "quorum"),
        (GOOD | {"name": "Not a name!"}, "name"),
        (GOOD | {"sketch": {"mean_weight": float("nan")}}, "mean_weight"),
    ],
)
def test_bad_plans_name_the_field(plan: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Plan.model_validate(plan)


def test_simulations_may_compare_at_a_larger_delta() -> None:
    Plan.model_validate(with_privacy(delta=1e-3) | {"purpose": "simulation"})


def test_the_digest_binds_every_value() -> None:
    spec = worlds.spec()
    assert spec.digest == worlds.spec().digest
    others = [
        worlds.spec(privacy={"clip_norm": 1.0000001}),
        worlds.spec(dim=13),
        worlds.spec(purpose="production"),
        spec.model_copy(update={"run_id": "run-2"}),
    ]
    assert len({s.digest for s in [spec, *others]}) == 5
    assert type(spec).model_validate_json(spec.model_dump_json()).digest == spec.digest


def test_spaces_refuse_twice_the_same_class_and_a_vague_digest() -> None:
    good = worlds.space().model_dump()
    with pytest.raises(ValidationError, match="once"):
        EmbeddingSpace.model_validate(good | {"classes": ["a", "a"]})
    with pytest.raises(ValidationError, match="weights_digest"):
        EmbeddingSpace.model_validate(good | {"weights_digest": "latest"})
    other = EmbeddingSpace.model_validate(good | {"preprocessing": "resize"})
    assert digest_of(other) != digest_of(worlds.space())


def test_updates_are_of_bounded_size_in_every_round() -> None:
    """A plan must not be able to make a site run out of memory: when, would tell of its batch."""
    with pytest.raises(ValidationError, match=r"plan\.privacy\.sketch_steps: a spread round"):
        worlds.spec(dim=4_100, privacy={"sketch_steps": 2})
    worlds.spec(dim=3_900, privacy={"sketch_steps": 2})
    with pytest.raises(ValidationError, match=r"plan\.model: a train round"):
        worlds.spec(dim=2_000, model={"hidden": 8_192, "basis_rank": 2_000})


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        (with_privacy(clip_norm=1e300), "clip_norm"),
        (GOOD | {"sketch": {"count_weight": 1e300}}, "count_weight"),
        (GOOD | {"optimiser": {"learning_rate": 1e300}}, "learning_rate"),
        (GOOD | {"model": {"beta": 1e300}}, "beta"),
    ],
)
def test_absurd_values_that_float32_cannot_hold_are_refused(
    plan: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError, match=field):
        Plan.model_validate(plan)
