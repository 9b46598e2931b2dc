"""A revoked client: no rows under its code at once, no code in later models, its updates erased."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from api.db.run_models import Update
from api.erasure import service as erasure
from core.federation.aggregate import Aggregated
from core.federation.plan import Noise
from core.federation.withdrawal import without
from core.models.frame import Frame
from core.privacy.noise import seeded
from core.simulation import SimulatedSite, simulate
from core.wire import tensors
from core.wire.messages import LEASE_HEADER, AggregateJob
from tests.api.support import Coordinator, problem
from tests.core import worlds

QUIET = {"sketch_multiplier": 0.01, "train_multiplier": 0.05}
TWO = ("site-a", "site-b")


async def revoke(coordinator: Coordinator, name: str) -> None:
    path = f"/v1/clients/{coordinator.clients[name]}/revoke"
    await coordinator.ok("POST", path, json={"why": "asked to"})


async def published(coordinator: Coordinator) -> dict[str, object]:
    await coordinator.enrol(*TWO)
    run = await coordinator.run(*TWO, privacy={"rounds": 0})
    await coordinator.finish(run, *TWO)
    return run


@pytest.mark.parametrize(
    "mixture",
    [{"site-a": 1.0}, {"site-a": 0.0, "site-b": 1.0}, {"site-a": 1.0, "site-b": 3.0}],
)
async def test_no_rows_under_its_code_from_now_on(
    coordinator: Coordinator, mixture: dict[str, float]
) -> None:
    await published(coordinator)
    body = {"run": "run-1", "mixture": mixture, "n": 4, "seed": 1}
    before = await coordinator.ok("POST", "/synthesize", "scientist", json=body)
    await revoke(coordinator, "site-a")
    for mode in ("blend", "sample"):
        answer = await coordinator.call(
            "POST", "/synthesize", "scientist", json=body | {"mode": mode}
        )
        problem(answer, 410, "client-withdrawn", "mixture.site-a")
    receipt = before["receipt"]["id"]
    proof = await coordinator.call("GET", f"/v1/receipts/{receipt}/regenerate", "scientist")
    problem(proof, 410, "client-withdrawn", "mixture.site-a")
    assert (await coordinator.call("GET", f"/v1/receipts/{receipt}", "scientist")).is_success
    other = await coordinator.call(
        "POST", "/synthesize", "scientist", json=body | {"mixture": {"site-b": 1.0}}
    )
    assert other.is_success


async def test_neutral_rows_go_on_and_their_receipt_says_who_withdrew(
    coordinator: Coordinator,
) -> None:
    await published(coordinator)
    body = {"run": "run-1", "n": 4, "seed": 1}
    before = await coordinator.ok("POST", "/synthesize", "scientist", json=body)
    await revoke(coordinator, "site-a")
    after = await coordinator.ok("POST", "/synthesize", "scientist", json=body)
    assert after["embeddings"] == before["embeddings"]
    assert before["receipt"]["receipt"]["withdrawn"] == []
    assert after["receipt"]["receipt"]["withdrawn"] == ["site-a"]
    assert after["receipt"]["id"] != before["receipt"]["id"]


async def test_scientists_get_no_files_with_its_code_and_sites_do(
    coordinator: Coordinator,
) -> None:
    run = await published(coordinator)
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    paths = [f"/v1/objects/{model[role]['digest']}" for role in ("frame", "weights")]
    for path in paths:
        assert (await coordinator.call("GET", path, "scientist")).is_success
    await revoke(coordinator, "site-a")
    for path in paths:
        refused = await coordinator.call("GET", path, "scientist")
        assert "site-a" in problem(refused, 410, "client-withdrawn", "digest")["detail"]
        for who in ("site-b", "worker", "admin"):
            assert (await coordinator.call("GET", path, who)).is_success
        problem(await coordinator.call("GET", path, "site-a"), 401, "unauthenticated")


async def test_the_next_model_has_no_code_of_it_and_can_be_replayed(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol(*TWO)
    run = await coordinator.run(*TWO, round={"quorum": 1}, privacy={"rounds": 2})
    for name in TWO:
        await coordinator.work(name, seed=len(name) + ord(name[-1]))
    await coordinator.aggregate()
    first = Frame.from_bytes(await _frame(coordinator, run))
    assert np.abs(first.codes).sum(axis=1).min() > 0
    await revoke(coordinator, "site-a")
    await coordinator.work("site-b", seed=9)
    await coordinator.aggregate()
    second = Frame.from_bytes(await _frame(coordinator, run))
    assert not second.codes[0].any()
    np.testing.assert_array_equal(second.codes[1], first.codes[1])
    np.testing.assert_array_equal(second.base, first.base)
    assert second.client_ids == first.client_ids
    asked = await coordinator.ok("POST", f"/v1/runs/{run['id']}/rounds/1/replay")
    claimed = await coordinator.ok("POST", f"/v1/jobs/{asked['id']}/claim", "worker")
    result = coordinator.sum(AggregateJob.model_validate(claimed))
    lease = {LEASE_HEADER: claimed["lease_token"]}
    await coordinator.ok(
        "POST", f"/v1/jobs/{asked['id']}/complete", "worker", json=result, headers=lease
    )
    path = f"/v1/runs/{run['id']}/rounds/1/replays/{asked['id']}"
    assert (await coordinator.ok("GET", path))["same"] is True


async def _frame(coordinator: Coordinator, run: dict[str, object]) -> bytes:
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    return coordinator.ctx.store.get(model["frame"]["digest"])


async def test_its_updates_are_erased_after_the_period(coordinator: Coordinator) -> None:
    await published(coordinator)
    names = {client_id: name for name, client_id in coordinator.clients.items()}
    digests = {
        names[str(update.client_id)]: update.digest for update in await coordinator.rows(Update)
    }
    await revoke(coordinator, "site-a")
    days = coordinator.ctx.settings.revoked_retention_days
    coordinator.pass_time(timedelta(days=days).total_seconds() - 60)
    await erasure.tidy(coordinator.ctx)
    assert all(coordinator.ctx.store.exists(digest) for digest in digests.values())
    coordinator.pass_time(120)
    await erasure.tidy(coordinator.ctx)
    assert not coordinator.ctx.store.exists(digests["site-a"])
    assert coordinator.ctx.store.exists(digests["site-b"])
    events = await coordinator.ok("GET", "/v1/events?kind=updates-erased")
    assert events["items"][0]["detail"] == {"reason": "revoked", "updates": 1}


def test_only_the_rows_of_who_withdrew_change() -> None:
    spec = worlds.spec(privacy={"rounds": 1}, noise=Noise(**QUIET))
    sites = [
        SimulatedSite(name, worlds.clusters(200, seed=place)) for place, name in enumerate("ab")
    ]
    last = simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET).rounds[-1]
    made = Aggregated(last.frame, last.weights, last.optimiser)
    frame = Frame.from_bytes(made.frame)
    assert without(made, ()) is made
    assert without(made, ("nobody",)) is made
    less = without(made, (frame.client_ids[1],))
    after = Frame.from_bytes(less.frame)
    assert not after.codes[1].any()
    np.testing.assert_array_equal(after.codes[0], frame.codes[0])
    for name in ("base", "directions", "factors", "targets", "class_probs"):
        np.testing.assert_array_equal(getattr(after, name), getattr(frame, name))
    for before, now in ((made.weights, less.weights), (made.optimiser, less.optimiser)):
        (old, facts), (new, same) = tensors.unpack(before), tensors.unpack(now)
        assert (same, set(new)) == (facts, set(old))
        for name, value in old.items():
            if name in ("label_shift", "label_shift_sums"):
                assert not new[name][1].any()
                np.testing.assert_array_equal(new[name][0], value[0])
            else:
                np.testing.assert_array_equal(new[name], value)
    assert "label_shift" in tensors.unpack(made.weights)[0]
