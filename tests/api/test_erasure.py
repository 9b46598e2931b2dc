"""Erasure: rows before bytes, nothing that is needed, nothing that others name, and no way back."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from api.erasure import service as erasure
from api.sweeper import Sweeper
from core.federation.plan import RunSpec
from core.storage import ObjectStore
from tests.api.support import Coordinator, problem, update_body

DAY = 86_400.0


def keep_for(coordinator: Coordinator, days: float | None) -> None:
    changed = coordinator.ctx.settings.model_copy(update={"update_retention_days": days})
    object.__setattr__(coordinator.ctx, "settings", changed)


async def digests(coordinator: Coordinator, where: str = "true") -> list[str]:
    rows = await coordinator.sql(f"SELECT digest FROM updates WHERE {where} ORDER BY id")
    return [row[0] for row in rows]


async def there(coordinator: Coordinator, *where: str) -> list[bool]:
    return [coordinator.ctx.store.exists(item) for item in await digests(coordinator, *where)]


async def erase(coordinator: Coordinator, name: str, who: str | None = None) -> dict[str, Any]:
    path = f"/v1/clients/{coordinator.clients[name]}/updates"
    return dict(await coordinator.ok("DELETE", path, who or name))


async def finished(coordinator: Coordinator) -> dict[str, Any]:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    await coordinator.finish(run, "site-a", "site-b")
    return run


async def models(coordinator: Coordinator) -> list[str]:
    rows = await coordinator.sql(
        "SELECT frame_digest, weights_digest, optimiser_digest FROM rounds"
    )
    return [digest for row in rows for digest in row]


async def test_without_a_period_everything_is_kept(coordinator: Coordinator) -> None:
    await finished(coordinator)
    coordinator.pass_time(1000 * DAY)
    await coordinator.sweep()
    assert await there(coordinator) == [True] * 4


async def test_after_the_period_bytes_go_and_models_stay(coordinator: Coordinator) -> None:
    run = await finished(coordinator)
    keep_for(coordinator, 30)
    coordinator.pass_time(29 * DAY)
    await coordinator.sweep()
    assert await there(coordinator) == [True] * 4
    coordinator.pass_time(2 * DAY)
    await coordinator.sweep()
    assert await there(coordinator) == [False] * 4
    assert all(coordinator.ctx.store.exists(digest) for digest in await models(coordinator))
    assert await coordinator.sql("SELECT DISTINCT reason, done_at IS NULL FROM erasures") == [
        ("retention", False)
    ]
    events = (await coordinator.ok("GET", "/v1/events?kind=updates-erased"))["items"]
    assert [(item["actor"], item["detail"]["updates"]) for item in events] == [("coordinator", 4)]
    body = {"run": run["id"], "n": 2, "seed": 1}
    await coordinator.ok("POST", "/synthesize", "scientist", json=body)
    refused = await coordinator.call("POST", f"/v1/runs/{run['id']}/rounds/0/replay")
    assert problem(refused, 409, "not-replayable")["erased_because"] == "retention"
    assert (await coordinator.ok("GET", "/v1/runs"))["items"][0]["state"] == "completed"


async def test_a_round_under_way_keeps_what_it_needs_and_says_so(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    keep_for(coordinator, 1)
    await coordinator.work("site-a", seed=1)
    await coordinator.work("site-b", seed=2)
    await coordinator.aggregate()
    await coordinator.work("site-a", seed=3)
    answer = await erase(coordinator, "site-a")
    assert answer["erased"] == 1
    (kept,) = answer["kept"]
    assert (kept["run_id"], kept["round"]) == (run["id"], 1)
    assert "the round is open and needs it" in kept["why"]
    site_a = f"client_id = '{coordinator.clients['site-a']}'"
    assert await there(coordinator, site_a) == [False, True]
    assert await there(coordinator, f"NOT {site_a}") == [True]
    assert await erase(coordinator, "site-a") == {**answer, "erased": 0}
    events = (await coordinator.ok("GET", "/v1/events?kind=updates-erased"))["items"]
    assert [item["client_id"] for item in events] == [coordinator.clients["site-a"]]
    await coordinator.work("site-b", seed=4)
    await coordinator.aggregate()
    assert await erase(coordinator, "site-a", "admin") == {
        "client": "site-a",
        "erased": 1,
        "kept": [],
    }
    stranger = f"/v1/clients/{coordinator.clients['site-a']}/updates"
    problem(await coordinator.call("DELETE", stranger, "site-b"), 404, "not-found")
    nobody = f"/v1/clients/{uuid4()}/updates"
    problem(await coordinator.call("DELETE", nobody), 404, "not-found")


async def test_a_failed_round_needs_nothing_any_more(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    await coordinator.work("site-a")
    await coordinator.ok("POST", f"/v1/runs/{run['id']}/cancel")
    assert (await erase(coordinator, "site-a"))["erased"] == 1
    assert await there(coordinator) == [False]


@pytest.mark.parametrize("moment", ["before deleting", "half way", "before saying so"])
async def test_a_killed_erasure_is_finished_by_the_next_pass(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    await finished(coordinator)
    keep_for(coordinator, 1)
    coordinator.pass_time(2 * DAY)
    real, calls = ObjectStore.delete, 0

    def dying(store: ObjectStore, digest: str) -> bool:
        nonlocal calls
        calls += 1
        if moment == "before deleting" or (moment == "half way" and calls == 3):
            raise KeyboardInterrupt
        return real(store, digest)

    async def silent(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "delete", dying)
        if moment == "before saying so":
            patch.setattr("api.erasure.repository.done", silent)
        with pytest.raises(KeyboardInterrupt):
            await coordinator.sweep()
    left = {"before deleting": 4, "half way": 2, "before saying so": 0}[moment]
    assert sum(await there(coordinator)) == left
    # Deletion without a row does not happen: every row was there first.
    assert await coordinator.sql("SELECT count(*), count(done_at) FROM erasures") == [(4, 0)]
    keep_for(coordinator, None)  # also if nobody asks for a period any more
    await Sweeper(coordinator.ctx).sweep()
    assert sum(await there(coordinator)) == 0
    assert await coordinator.sql("SELECT count(*), count(done_at) FROM erasures") == [(4, 4)]


async def test_bytes_that_something_else_names_are_left_alone(coordinator: Coordinator) -> None:
    """A broken site that sends one file twice: the second round still needs it."""
    await coordinator.enrol("site-a")
    run = await coordinator.run("site-a", round={"quorum": 1}, privacy={"rounds": 2})
    await coordinator.work("site-a")
    await coordinator.aggregate()
    spec = RunSpec.model_validate(run["spec"])
    same = update_body(spec, 1, seed=5)
    for number in (1, 2):
        order = await coordinator.poll("site-a")
        assert order is not None
        assert order["round_number"] == number
        assert (await coordinator.send(order, same)).status_code == 201
        if number == 1:
            await coordinator.aggregate()
    answer = await erase(coordinator, "site-a")
    assert answer["erased"] == 1  # the sketch
    assert [kept["round"] for kept in answer["kept"]] == [1, 2]
    await coordinator.aggregate()  # the bytes are there
    assert (await erase(coordinator, "site-a"))["kept"] == []
    (sketch, first, second) = await digests(coordinator)
    assert first == second != sketch
    assert not coordinator.ctx.store.exists(first)


async def test_bytes_of_another_client_are_left_alone(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    for name in ("site-a", "site-b"):
        await coordinator.work(name, seed=7)
    await coordinator.aggregate()
    (kept,) = (await erase(coordinator, "site-a"))["kept"]
    assert "another client" in kept["why"]
    assert await there(coordinator) == [True, True]
    assert (await coordinator.call("POST", f"/v1/runs/{run['id']}/rounds/0/replay")).is_success
    keep_for(coordinator, 1)
    coordinator.pass_time(2 * DAY)
    await coordinator.sweep()
    assert await there(coordinator) == [False, False]


async def test_erased_bytes_never_count_again(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    run = await coordinator.run("site-a", round={"quorum": 1}, privacy={"rounds": 2})
    await coordinator.work("site-a")
    await coordinator.aggregate()
    same = update_body(RunSpec.model_validate(run["spec"]), 1, seed=5)
    order = await coordinator.poll("site-a")
    assert order is not None
    sent = await coordinator.send(order, same)
    assert sent.status_code == 201
    await coordinator.aggregate()
    await erase(coordinator, "site-a")
    later = await coordinator.poll("site-a")
    assert later is not None
    refused = problem(await coordinator.send(later, same), 409, "update-conflict")
    assert "erased" in refused["detail"]
    # A resend to its own round gets its receipt, as ever.
    resent = await coordinator.send(order, same)
    assert (resent.status_code, resent.json()["digest"]) == (200, sent.json()["digest"])
    assert (await coordinator.send(later)).status_code == 201


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE erasures SET reason = 'requested'",
        "UPDATE erasures SET done_at = NULL",
        "DELETE FROM erasures",
        "TRUNCATE erasures",
    ],
)
async def test_an_erasure_is_not_taken_back(coordinator: Coordinator, change: str) -> None:
    await finished(coordinator)
    keep_for(coordinator, 1)
    coordinator.pass_time(2 * DAY)
    assert not await erasure.tidy(coordinator.ctx)
    with pytest.raises(Exception, match=r"immutable|only ever added"):
        await coordinator.sql(change)


def test_a_deleted_object_stays_away_and_deleting_twice_is_harmless(tmp_path: Any) -> None:
    store = ObjectStore(f"file://{tmp_path}")
    digest = store.put(b"body").digest
    assert [store.delete(digest), store.delete(digest)] == [True, False]
    assert not store.exists(digest)
    assert store.put(b"body").digest == digest
    assert store.get(digest) == b"body"
