"""The site's judgement: each way in which a coordinator could ask for too much is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import PlanRefused
from core.federation.plan import Noise, RunSpec, digest_of
from core.privacy import accounting
from core.privacy.events import PrivacyEvent
from core.wire.messages import WorkOrder
from tests.worker.support import make_config, make_order, make_spec, space
from worker.agent.policy import judge
from worker.agent.records import AttemptKey, Entry
from worker.config import ClientConfig


def entry(order: WorkOrder, kind: str = "reserve", *, unit: str = "record", seq: int = 1) -> Entry:
    return Entry(
        seq, kind, "a/all", unit, AttemptKey.of(order), order.event, order.spec_digest, "now"
    )  # type: ignore[arg-type]


@pytest.fixture
def config() -> ClientConfig:
    return make_config(Path("never-opened.npz"))


def total(spec: RunSpec, *more: PrivacyEvent) -> float:
    return accounting.epsilon([*spec.events(), *more], 1e-5)


@pytest.mark.parametrize("round_number", [0, 1, 2])
def test_an_order_within_the_limits_passes(config: ClientConfig, round_number: int) -> None:
    judge(make_order(round_number=round_number), config, [])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"client": "site-b"}, "client"),
        ({"spec_digest": "sha256:" + "1" * 64}, "spec_digest"),
        ({"run_id": "another"}, "run_id"),
        ({"kind": "train"}, "kind"),
        ({"round_number": 20_000, "kind": "train"}, "round_number"),
    ],
)
def test_an_order_must_agree_with_itself(
    config: ClientConfig, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(PlanRefused) as refused:
        judge(make_order().model_copy(update=changes), config, [])
    assert refused.value.field == field


@pytest.mark.parametrize(
    "lie",
    [
        {"noise_multiplier": 50.0},  # books more noise than the spec asks for
        {"sample_rate": 0.01, "mechanism": "poisson-subsampled-gaussian"},
        {"unit": "patient"},
        {"steps": 2},
    ],
)
def test_the_booked_event_is_recomputed_from_the_spec(
    config: ClientConfig, lie: dict[str, Any]
) -> None:
    order = make_order(round_number=1)
    false = order.model_copy(update={"event": order.event.model_copy(update=lie)})
    with pytest.raises(PlanRefused) as refused:
        judge(false, config, [])
    assert refused.value.field == "event"


def test_sigma_zero_is_refused_even_if_the_message_did_not_check_it(config: ClientConfig) -> None:
    spec = make_spec()
    silent = spec.model_copy(update={"noise": Noise.model_construct(
        sketch_multiplier=0.0, train_multiplier=2.0)})  # fmt: skip
    event = spec.event(0).model_copy(update={"noise_multiplier": 0.0})
    order = make_order(spec).model_copy(
        update={"spec": silent, "spec_digest": silent.digest, "event": event}
    )
    with pytest.raises(PlanRefused):
        judge(order, config, [])


@pytest.mark.parametrize(
    ("noise", "field"),
    [
        (Noise(sketch_multiplier=0.2, train_multiplier=2.0), "noise.sketch_multiplier"),
        (Noise(sketch_multiplier=2.0, train_multiplier=0.2), "noise.train_multiplier"),
        (Noise(sketch_multiplier=2.0), "noise.train_multiplier"),
    ],
)
def test_noise_below_the_floor_is_refused_in_every_round(
    config: ClientConfig, noise: Noise, field: str
) -> None:
    with pytest.raises(PlanRefused) as refused:
        judge(make_order(make_spec(noise=noise)), config, [])
    assert refused.value.field == field


def test_an_inflated_sample_rate_is_refused(config: ClientConfig) -> None:
    careful = config.model_copy(update={"max_sample_rate": 0.5})
    judge(make_order(), careful, [])
    with pytest.raises(PlanRefused) as refused:
        judge(make_order(make_spec(sample_rate=1.0, epsilon=50.0)), careful, [])
    assert refused.value.field == "plan.privacy.sample_rate"


def test_simulation_unit_and_delta(config: ClientConfig) -> None:
    for spec, field in (
        (make_spec(purpose="simulation"), "plan.purpose"),
        (make_spec(unit="patient"), "plan.privacy.unit"),
        (make_spec(delta=2e-5), "plan.privacy.delta"),
    ):
        with pytest.raises(PlanRefused) as refused:
            judge(make_order(spec), config, [])
        assert refused.value.field == field


@pytest.mark.parametrize("round_number", [0, 1])
@pytest.mark.parametrize("purpose", ["production", "simulation"])
def test_a_mode_without_a_guarantee_is_refused(
    config: ClientConfig, purpose: str, round_number: int
) -> None:
    """Even if the coordinator got the plan past the plan's own checks."""
    model = {"codes": "trained", "encoder": "local", "classifier": "none"}
    honest = make_spec(model=model, sketch_share=0.8, validation_share=0.0)
    order = make_order(honest, round_number=round_number)
    judge(order, config, [])
    privacy = honest.plan.privacy.model_copy(update={"mode": "paper"})
    plan = honest.plan.model_copy(update={"privacy": privacy, "purpose": purpose})
    spec = honest.model_copy(update={"plan": plan})
    changed = order.model_copy(update={"spec": spec, "spec_digest": spec.digest})
    with pytest.raises(PlanRefused, match="no record-level guarantee") as refused:
        judge(changed, config, [])
    assert refused.value.field == "plan.privacy.mode"
    assert refused.value.mend is not None


def test_a_pinned_space(config: ClientConfig) -> None:
    right = config.model_copy(update={"space_digest": digest_of(space())})
    judge(make_order(), right, [])
    wrong = config.model_copy(update={"space_digest": "sha256:" + "a" * 64})
    with pytest.raises(PlanRefused) as refused:
        judge(make_order(), wrong, [])
    assert refused.value.field == "space"


def test_a_plan_that_does_not_keep_its_own_promise_is_refused(config: ClientConfig) -> None:
    with pytest.raises(PlanRefused) as refused:
        judge(make_order(make_spec(epsilon=1.0)), config, [])
    assert refused.value.field == "plan.privacy.epsilon"
    assert "promises" in refused.value.message


def test_the_whole_rest_of_the_run_must_fit_before_its_first_round(config: ClientConfig) -> None:
    spec = make_spec()
    exact = config.model_copy(update={"max_epsilon": total(spec)})
    for number in range(3):  # the very budget of the plan is enough for every round of it
        before = [
            e
            for n in range(number)
            for e in (entry(make_order(spec, round_number=n)),
                      entry(make_order(spec, round_number=n), "commit"))
        ]  # fmt: skip
        judge(make_order(spec, round_number=number), exact, before)
    less = config.model_copy(update={"max_epsilon": total(spec) * 0.999})
    with pytest.raises(PlanRefused) as refused:
        judge(make_order(spec), less, [])
    assert "would reach epsilon" in refused.value.message


@pytest.mark.parametrize("outcome", ["lost", None])
def test_lost_and_open_attempts_count(config: ClientConfig, outcome: str | None) -> None:
    spec = make_spec()
    first = make_order(spec, attempt=1)
    rows = [entry(first)] + ([entry(first, outcome)] if outcome else [])
    second = make_order(spec, attempt=2)
    need = total(spec, first.event)
    judge(second, config.model_copy(update={"max_epsilon": need}), rows)
    with pytest.raises(PlanRefused):
        judge(second, config.model_copy(update={"max_epsilon": total(spec)}), rows)


def test_earlier_runs_of_the_population_count(config: ClientConfig) -> None:
    old = make_spec(run_id="run-0")
    rows = [entry(make_order(old, round_number=n, client="site-z")) for n in range(3)]
    spec = make_spec()
    with pytest.raises(PlanRefused):
        judge(make_order(spec), config.model_copy(update={"max_epsilon": total(spec)}), rows)
    both = accounting.epsilon([*old.events(), *spec.events()], 1e-5)
    judge(make_order(spec), config.model_copy(update={"max_epsilon": both}), rows)


def test_a_spec_that_changes_under_the_same_run_is_refused(config: ClientConfig) -> None:
    begun = [entry(make_order()), entry(make_order(), "commit")]
    more_noise = make_spec(noise=Noise(sketch_multiplier=2.0, train_multiplier=3.0))
    with pytest.raises(PlanRefused) as refused:
        judge(make_order(more_noise, round_number=1), config, begun)
    assert refused.value.field == "spec"


def test_another_unit_does_not_open_a_fresh_budget(config: ClientConfig) -> None:
    old = entry(make_order(make_spec(run_id="old")), unit="patient")
    with pytest.raises(PlanRefused) as refused:
        judge(make_order(), config, [old])
    assert refused.value.field == "unit"
