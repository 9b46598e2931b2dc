"""A run with a report round over HTTP: real records, real queries, ledger, replay, failure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.privacy.noise import csprng
from core.report.statistics import Statistics, read
from core.training.local import execute
from core.wire.messages import LEASE_HEADER, AggregateJob, WorkOrder
from tests.api.support import Coordinator, a_plan

SITES = ("site-a", "site-b")
SECRET = bytes(range(32))


def records(seed: int, n: int = 600) -> EmbeddingDataset:
    centres = np.random.default_rng(7).normal(size=(3, 6))
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, n)
    return EmbeddingDataset.from_arrays(centres[y] + 0.3 * draw.normal(size=(n, 6)), y)


async def executed(coordinator: Coordinator, name: str, data: EmbeddingDataset) -> str:
    """Poll, compute on records as a site does, and send; the kind of the round."""
    offer = await coordinator.poll(name)
    assert offer is not None, f"no work for {name}"
    order = WorkOrder.model_validate(offer)
    inputs = {ref.role: coordinator.ctx.store.get(ref.digest) for ref in order.inputs}
    made = execute(order, data, inputs, secret=SECRET, noise=csprng())
    answer = await coordinator.send(offer, made.update)
    assert answer.status_code == 201, answer.text
    return order.kind


async def begun(coordinator: Coordinator, **privacy: Any) -> dict[str, Any]:
    await coordinator.enrol(*SITES, "site-c", epsilon=40.0)
    return await coordinator.run(
        *SITES,
        privacy={
            "epsilon": 30.0, "rounds": 1, "validation_share": 0.0, "report_precision": 0.3,
            "report_holdout": 0.4, **privacy,
        },
    )  # fmt: skip


async def up_to_the_report(coordinator: Coordinator, run: dict[str, Any]) -> RunSpec:
    spec = RunSpec.model_validate(run["spec"])
    for number in range(spec.last_round):
        for place, name in enumerate(SITES):
            assert await executed(coordinator, name, records(place)) == spec.kind(number)
        await coordinator.aggregate()
    return spec


async def statistics(coordinator: Coordinator, run: dict[str, Any]) -> Statistics | None:
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    body = coordinator.ctx.store.get(model["weights"]["digest"])
    return read(RunSpec.model_validate(run["spec"]), body)


@pytest.mark.parametrize("rounds", [0, 1])
async def test_a_run_ends_with_its_report(coordinator: Coordinator, rounds: int) -> None:
    run = await begun(coordinator, rounds=rounds)
    spec = await up_to_the_report(coordinator, run)
    assert spec.kind(spec.last_round) == "report"
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    body = {"run": "run-1", "n": 10, "seed": 4}
    before = await coordinator.ok("POST", "/synthesize", "scientist", json=body)
    for place, name in enumerate(SITES):
        assert await executed(coordinator, name, records(place)) == "report"
    job = await coordinator.aggregate()
    assert job["kind"] == "report"
    ended = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert (ended["state"], ended["rounds_published"]) == ("completed", spec.last_round + 1)

    found = await statistics(coordinator, run)
    assert found is not None
    assert [site.client for site in found.sites] == list(SITES)
    assert found.missing == ()
    pooled = found.pooled
    # 480 of 1,200 units: one noised draw, judged by the error that is told with it.
    for estimate, truth in ((pooled.held_out, 480.0), (pooled.members, 720.0)):
        assert abs(estimate.value - truth) < 5.0 * estimate.se + 60.0
    assert pooled.accuracy.value > 0.85 - 4.0 * pooled.accuracy.se
    assert abs(pooled.attack_auc.value - 0.5) < 5.0 * pooled.attack_auc.se
    assert pooled.epsilon_lower < ended["epsilon_planned"]

    newest = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert newest["round"] == spec.last_round
    assert newest["frame"] == model["frame"]
    after = await coordinator.ok("POST", "/synthesize", "scientist", json=body)
    assert after["embeddings"] == before["embeddings"]

    ledger = await coordinator.ledger("site-a")
    events = [PrivacyEvent.model_validate(entry["event"])
              for entry in ledger["entries"] if entry["kind"] == "reserve"]  # fmt: skip
    assert events == spec.events()
    assert events[-1].noise_multiplier == spec.noise.report_multiplier
    assert ledger["epsilon_total"] == epsilon(events, 1e-5) == ended["epsilon_planned"] <= 30.0
    spent = {each["client"]: each["epsilon"] for each in newest["per_client"]}
    assert spent["site-a"] == ledger["epsilon_total"]
    earlier = {each["client"]: each["epsilon"] for each in model["per_client"]}
    assert earlier["site-a"] < spent["site-a"]


async def test_the_report_is_summed_again_to_the_byte_and_outlives_erasure(
    coordinator: Coordinator,
) -> None:
    run = await begun(coordinator, rounds=0)
    await up_to_the_report(coordinator, run)
    for place, name in enumerate(SITES):
        await executed(coordinator, name, records(place))
    job = AggregateJob.model_validate(await coordinator.aggregate())
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert coordinator.sum(job)["weights"]["digest"] == model["weights"]["digest"]
    before = await statistics(coordinator, run)
    path = f"/v1/clients/{coordinator.clients['site-a']}/updates"
    assert (await coordinator.ok("DELETE", path, "site-a"))["erased"] == 2
    after = await statistics(coordinator, run)
    assert before is not None
    assert after is not None
    assert after.sites[0].accuracy == before.sites[0].accuracy


async def test_a_revoked_clients_report_is_in_no_later_model(coordinator: Coordinator) -> None:
    run = await begun(coordinator, rounds=0)
    await up_to_the_report(coordinator, run)
    for place, name in enumerate(SITES):
        await executed(coordinator, name, records(place))
    await coordinator.aggregate()
    path = f"/v1/clients/{coordinator.clients['site-a']}/revoke"
    await coordinator.ok("POST", path, json={"why": "asked to"})
    await coordinator.join(run, "site-c")
    assert await executed(coordinator, "site-c", records(5)) == "join"
    await coordinator.aggregate()
    found = await statistics(coordinator, run)
    assert found is not None
    assert [site.client for site in found.sites] == ["site-b"]


async def test_one_site_is_enough_and_the_other_is_named(coordinator: Coordinator) -> None:
    """The quorum of two is of training; what one site says of the model is said."""
    run = await begun(coordinator)
    spec = await up_to_the_report(coordinator, run)
    await executed(coordinator, "site-b", records(1))
    await refuse(coordinator, "site-a")
    await coordinator.aggregate()
    found = await statistics(coordinator, run)
    assert found is not None
    assert [site.client for site in found.sites] == ["site-b"]
    assert found.missing == ("site-a",)
    assert (await coordinator.round(run, spec.last_round))["state"] == "published"


async def refuse(coordinator: Coordinator, name: str) -> None:
    order = await coordinator.poll(name)
    assert order is not None
    answer = await coordinator.call(
        "POST", f"/v1/work/{order['work_id']}/fail", name, json={"code": "plan-refused"},
        headers={LEASE_HEADER: order["lease_token"]},
    )  # fmt: skip
    assert answer.status_code == 204


async def test_a_report_that_fails_leaves_the_model_and_the_run_completed(
    coordinator: Coordinator,
) -> None:
    run = await begun(coordinator)
    spec = await up_to_the_report(coordinator, run)
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    for name in SITES:
        await refuse(coordinator, name)
    await coordinator.sweep()
    ended = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert (ended["state"], ended["why"]) == ("completed", "")
    failed = await coordinator.round(run, spec.last_round)
    assert failed["state"] == "failed"
    assert "quorum of 1" in failed["why"]
    assert await coordinator.ok("GET", f"/v1/runs/{run['id']}/model") == model
    assert await statistics(coordinator, run) is None
    rows = {"run": "run-1", "n": 5, "seed": 1}
    answer = await coordinator.ok("POST", "/synthesize", "scientist", json=rows)
    assert answer["receipt"]["receipt"]["model"]["round"] == spec.last_round - 1

    # A client joins behind it all the same.
    await coordinator.join(run, "site-c")
    order = await coordinator.poll("site-c")
    assert order is not None
    assert (order["kind"], order["round_number"]) == ("join", spec.last_round + 1)
    assert order["inputs"] == []
    await coordinator.send(order)
    await coordinator.aggregate()
    newest = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert newest["clients"] == ["site-a", "site-b", "site-c"]


async def test_a_plan_is_refused_whose_parts_do_not_agree(coordinator: Coordinator) -> None:
    await coordinator.enrol(*SITES)
    body = {"plan": a_plan(privacy={"report_holdout": 0.3}), "clients": list(SITES)}
    answer = await coordinator.call("POST", "/v1/runs", json=body)
    assert answer.status_code == 422
    assert "report_holdout" in answer.text
