"""What an operator does: spaces, clients, runs, tokens; each refusal names the field."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from core.federation.plan import EmbeddingSpace, RunSpec, digest_of
from tests.api.support import SPACE, Coordinator, a_plan, problem


async def test_a_space_is_registered_once(coordinator: Coordinator) -> None:
    first = await coordinator.call("POST", "/v1/spaces", json=SPACE)
    assert first.status_code == 201
    assert first.json()["digest"] == digest_of(EmbeddingSpace.model_validate(SPACE))
    again = await coordinator.call("POST", "/v1/spaces", json=SPACE)
    assert (again.status_code, again.json()) == (200, first.json())
    other = await coordinator.call("POST", "/v1/spaces", json={**SPACE, "dim": 7})
    problem(other, 409, "space-name-taken", "name")
    assert (await coordinator.ok("GET", "/v1/spaces/tiny", "scientist")) == first.json()
    problem(await coordinator.call("GET", "/v1/spaces/none"), 404, "not-found")
    twice = {**SPACE, "name": "x", "classes": ["a", "a"]}
    problem(
        await coordinator.call("POST", "/v1/spaces", json=twice), 422, "invalid-request", "classes"
    )


CLIENT = {
    "name": "site-a",
    "space": "tiny",
    "site": "h",
    "population": "p",
    "unit": "record",
    "managed": False,
    "budget": {"epsilon": 4.0, "delta": 1e-5},
}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"space": "none"}, "space"),
        ({"name": "Site A"}, "name"),
        ({"unit": "ward"}, "unit"),
        ({"budget": {"epsilon": 0, "delta": 1e-5}}, "budget.epsilon"),
        ({"budget": {"epsilon": 1, "delta": 1.0}}, "budget.delta"),
        ({"colour": "red"}, "colour"),
        ({"managed": None}, "managed"),
    ],
)
async def test_bad_enrolments_name_the_field(
    coordinator: Coordinator, change: dict, field: str
) -> None:
    await coordinator.ok("POST", "/v1/spaces", json=SPACE)
    refused = await coordinator.call("POST", "/v1/clients", json={**CLIENT, **change})
    problem(refused, 422, "invalid-request", field)


async def test_a_population_keeps_its_unit(coordinator: Coordinator) -> None:
    await coordinator.ok("POST", "/v1/spaces", json=SPACE)
    await coordinator.ok("POST", "/v1/clients", json=CLIENT)
    second = {**CLIENT, "name": "site-b", "unit": "patient"}
    problem(
        await coordinator.call("POST", "/v1/clients", json=second), 422, "invalid-request", "unit"
    )
    await coordinator.ok("POST", "/v1/clients", json={**second, "population": "another"})


async def test_enrolment_shows_the_token_once(coordinator: Coordinator) -> None:
    await coordinator.ok("POST", "/v1/spaces", json=SPACE)
    key = {"Idempotency-Key": "enrol-1"}
    first = await coordinator.ok("POST", "/v1/clients", json=CLIENT, headers=key)
    assert first["token"].startswith("fhv_client_")
    again = await coordinator.call("POST", "/v1/clients", json=CLIENT, headers=key)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json()["client"] == first["client"]
    assert again.json()["token"] is None
    assert "not kept" in again.json()["note"]
    other = await coordinator.call(
        "POST", "/v1/clients", json={**CLIENT, "name": "other"}, headers=key
    )
    problem(other, 409, "idempotency-key-reused", "Idempotency-Key")
    taken = await coordinator.call("POST", "/v1/clients", json=CLIENT)
    problem(taken, 409, "client-name-taken", "name")
    managed = await coordinator.ok(
        "POST", "/v1/clients", json={**CLIENT, "name": "site-m", "managed": True}
    )
    assert managed["token"] is None
    assert managed["client"]["account_id"] == first["client"]["account_id"]
    stored = await coordinator.sql("SELECT response::text FROM idempotency_keys")
    assert all(first["token"] not in row[0] for row in stored)


async def test_the_same_key_at_once_enrols_once(coordinator: Coordinator) -> None:
    await coordinator.ok("POST", "/v1/spaces", json=SPACE)
    key = {"Idempotency-Key": "at-once"}
    answers = await asyncio.gather(
        *(coordinator.call("POST", "/v1/clients", json=CLIENT, headers=key) for _ in range(4))
    )
    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({answer.json()["client"]["id"] for answer in answers}) == 1
    assert sum(answer.json()["token"] is not None for answer in answers) == 1


async def test_lists_are_paged(coordinator: Coordinator) -> None:
    names = [f"site-{letter}" for letter in "abcde"]
    await coordinator.enrol(*names)
    seen, after = [], ""
    while True:
        page = await coordinator.ok("GET", f"/v1/clients?limit=2{after}", "auditor")
        seen += [item["name"] for item in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert seen == names
    refused = await coordinator.call("GET", "/v1/clients?limit=0")
    problem(refused, 422, "invalid-request", "limit")
    for path in ("/v1/spaces", "/v1/runs", "/v1/tokens"):
        assert (await coordinator.call("GET", f"{path}?limit=1")).status_code == 200


async def test_a_run_is_specified_in_full(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", start=False, approved=False)
    spec = RunSpec.model_validate(run["spec"])
    assert run["state"] == "draft"
    assert spec.digest == run["spec_digest"]
    assert spec.run_id == run["id"]
    assert 3.5 < run["epsilon_planned"] <= 4.0
    assert run["clients"] == ["site-a", "site-b"]
    assert await coordinator.ok("GET", f"/v1/runs/{run['id']}") == run
    (stored,) = await coordinator.sql("SELECT spec FROM runs")
    assert RunSpec.model_validate(stored[0]).digest == run["spec_digest"]
    for _ in range(2):
        started = await coordinator.ok("POST", f"/v1/runs/{run['id']}/start")
        assert started["state"] == "running"
    assert await coordinator.sql("SELECT count(*) FROM rounds") == [(1,)]


async def test_a_run_of_a_share_of_its_clients_says_how_many_there_are(
    coordinator: Coordinator,
) -> None:
    """The noise, and the epsilon that is checked against budgets, are of who trains most often."""
    names = ("site-a", "site-b", "site-c")
    await coordinator.enrol(*names)
    some = await coordinator.run(
        *names, start=False, round={"quorum": 1, "client_fraction": 0.3}, privacy={"rounds": 4}
    )
    spec = RunSpec.model_validate(some["spec"])
    assert spec.digest == some["spec_digest"]
    assert (spec.founding_clients, spec.participations) == (3, 2)
    assert some["epsilon_planned"] <= spec.plan.privacy.epsilon
    (stored,) = await coordinator.sql("SELECT spec FROM runs")
    assert stored[0] == some["spec"]


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"privacy": {"epsilon": 0}}, "invalid-request", "plan.privacy.epsilon"),
        ({"privacy": {"epsilon": -1.0}}, "invalid-request", "plan.privacy.epsilon"),
        ({"privacy": {"delta": 1.0}}, "invalid-request", "plan.privacy.delta"),
        ({"privacy": {"delta": 0.01}}, "invalid-request", "plan.privacy.delta"),
        ({"privacy": {"sample_rate": 0.0}}, "invalid-request", "plan.privacy.sample_rate"),
        ({"privacy": {"sample_rate": 1.5}}, "invalid-request", "plan.privacy.sample_rate"),
        ({"privacy": {"unit": "patient"}}, "invalid-plan", "plan.privacy.unit"),
        ({"space": "none"}, "invalid-request", "plan.space"),
        ({"round": {"quorum": 3}}, "invalid-plan", "plan.round.quorum"),
        ({"purpose": "simulation"}, "invalid-plan", "plan.purpose"),
        ({"name": "Not A Name"}, "invalid-request", "plan.name"),
        ({"aggregation": "magic"}, "invalid-request", "plan.aggregation"),
        ({"aggregation": "trimmed-mean"}, "invalid-request", "plan.trim_share"),
        ({"trim_share": 0.3}, "invalid-request", "plan.trim_share"),
        ({"round": {"client_fraction": 0}}, "invalid-request", "plan.round.client_fraction"),
        ({"model": {"hidden": 8192, "trunk_width": 4096}}, "invalid-plan", "plan.model"),
    ],
)
async def test_bad_plans_name_the_field(
    coordinator: Coordinator, changes: dict, code: str, field: str
) -> None:
    await coordinator.enrol("site-a", "site-b")
    body = {"plan": a_plan(**changes), "clients": ["site-a", "site-b"]}
    problem(await coordinator.call("POST", "/v1/runs", json=body), 422, code, field)
    assert await coordinator.sql("SELECT 1 FROM runs") == []


@pytest.mark.parametrize(
    ("purpose", "code"), [("production", "invalid-request"), ("simulation", "invalid-plan")]
)
async def test_a_mode_without_a_guarantee_is_refused(
    coordinator: Coordinator, purpose: str, code: str
) -> None:
    await coordinator.enrol("site-a", "site-b")
    plan = a_plan(
        privacy={"mode": "paper"}, purpose=purpose,
        model={"codes": "trained", "encoder": "local", "classifier": "none"},
    )  # fmt: skip
    body = {"plan": plan, "clients": ["site-a", "site-b"]}
    refused = problem(
        await coordinator.call("POST", "/v1/runs", json=body), 422, code, "plan.privacy.mode"
    )
    assert "no record-level guarantee" in refused["detail"]
    assert "'joint'" in refused.get("mend", refused["detail"])
    assert await coordinator.sql("SELECT 1 FROM runs") == []
    plan["privacy"]["mode"], plan["purpose"] = "joint", "production"
    await coordinator.ok("POST", "/v1/runs", json=body)


async def test_clients_that_do_not_fit_a_run(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "poor", epsilon=3.0)
    await coordinator.ok("POST", "/v1/spaces", json={**SPACE, "name": "other-space", "dim": 7})
    await coordinator.ok(
        "POST", "/v1/clients", json={**CLIENT, "name": "stranger", "space": "other-space"}
    )

    async def create(*names: str) -> object:
        body = {"plan": a_plan(round={"quorum": 1}), "clients": list(names)}
        return await coordinator.call("POST", "/v1/runs", json=body)

    problem(await create("nobody"), 422, "invalid-request", "clients.0")
    problem(await create("stranger"), 422, "space-mismatch", "clients.0")
    problem(await create("poor"), 409, "budget-exceeded", "clients.0")
    problem(await create("poor", "poor"), 422, "invalid-request", "clients")
    problem(await create(), 422, "invalid-request", "clients")


async def test_run_names_and_keys_are_unique(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    body = {"plan": a_plan(), "clients": ["site-a", "site-b"]}
    key = {"Idempotency-Key": "run-1"}
    first = await coordinator.ok("POST", "/v1/runs", json=body, headers=key)
    again = await coordinator.call("POST", "/v1/runs", json=body, headers=key)
    assert again.json() == first
    assert again.headers["Idempotency-Replayed"] == "true"
    problem(await coordinator.call("POST", "/v1/runs", json=body), 409, "run-name-taken")
    unknown = uuid4()
    for path in (f"/v1/runs/{unknown}", f"/v1/runs/{unknown}/rounds", f"/v1/runs/{unknown}/model"):
        problem(await coordinator.call("GET", path), 404, "not-found")
    problem(await coordinator.call("POST", f"/v1/runs/{unknown}/start"), 404, "not-found")
    problem(await coordinator.call("GET", f"/v1/runs/{first['id']}/rounds/0"), 404, "not-found")


async def test_tokens_are_refused_when_missing_wrong_revoked_or_expired(
    coordinator: Coordinator,
) -> None:
    path = "/v1/runs"
    found = await coordinator.call("GET", path, None)
    problem(found, 401, "unauthenticated")
    assert found.headers["WWW-Authenticate"].startswith("Bearer")
    for header in ("Bearer fhv_admin_guess", "Bearer ", "Basic YTpi", "fhv_admin_guess"):
        wrong = await coordinator.call("GET", path, None, headers={"Authorization": header})
        problem(wrong, 401, "unauthenticated")
    made = await coordinator.ok(
        "POST", "/v1/tokens", json={"scope": "auditor", "label": "x", "expires_in_s": 60}
    )
    coordinator.tokens["temporary"] = made["token"]
    assert (await coordinator.call("GET", path, "temporary")).status_code == 200
    coordinator.pass_time(61)
    expired = await coordinator.call("GET", path, "temporary")
    assert "expired" in problem(expired, 401, "unauthenticated")["detail"]
    kept = await coordinator.ok("POST", "/v1/tokens", json={"scope": "auditor", "label": "y"})
    coordinator.tokens["kept"] = kept["token"]
    assert (await coordinator.call("GET", path, "kept")).status_code == 200
    for _ in range(2):
        await coordinator.ok("POST", f"/v1/tokens/{kept['id']}/revoke")
    revoked = await coordinator.call("GET", path, "kept")
    assert "revoked" in problem(revoked, 401, "unauthenticated")["detail"]
    listed = await coordinator.ok("GET", "/v1/tokens")
    assert {item["label"] for item in listed["items"]} >= {"x", "y"}
    assert all("token" not in item for item in listed["items"])
    stored = await coordinator.sql("SELECT mac FROM tokens")
    assert all(made["token"].encode() not in row[0] for row in stored)


async def test_client_tokens_can_be_rotated(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    await coordinator.enrol("site-m", managed=True)
    body = {"scope": "client", "label": "rotated", "client": "site-a"}
    made = await coordinator.ok("POST", "/v1/tokens", json=body)
    coordinator.tokens["rotated"] = made["token"]
    assert (await coordinator.ok("GET", "/v1/clients/me", "rotated"))["name"] == "site-a"
    for change in ({"client": None}, {"client": "none"}, {"client": "site-m"}, {"scope": "admin"}):
        refused = await coordinator.call("POST", "/v1/tokens", json={**body, **change})
        problem(refused, 422, "invalid-request", "client")


async def test_a_client_sees_itself_and_its_runs_only(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b", "outsider")
    run = await coordinator.run("site-a", "site-b", round={"quorum": 1})
    own, other = coordinator.clients["site-a"], coordinator.clients["site-b"]
    assert (await coordinator.ok("GET", "/v1/clients/me", "site-a"))["id"] == own
    assert (await coordinator.ok("GET", f"/v1/clients/{own}", "site-a"))["id"] == own
    assert (await coordinator.call("GET", f"/v1/clients/{own}/ledger", "site-a")).is_success
    paths = ("", "/ledger", "/ledger.csv", "/statement")
    for path in (f"/v1/clients/{other}{end}" for end in paths):
        problem(await coordinator.call("GET", path, "site-a"), 404, "not-found")
        assert (await coordinator.call("GET", path, "auditor")).is_success
        for who in ("scientist", "worker"):
            problem(await coordinator.call("GET", path, who), 403, "forbidden")
    problem(await coordinator.call("GET", "/v1/clients", "site-a"), 403, "forbidden")
    problem(await coordinator.call("GET", "/v1/clients/me", "admin"), 403, "forbidden")
    for path in ("", "/rounds", "/rounds/0", "/model"):
        whole = f"/v1/runs/{run['id']}{path}"
        problem(await coordinator.call("GET", whole, "outsider"), 404, "not-found")
    assert (await coordinator.ok("GET", "/v1/runs", "outsider"))["items"] == []
    assert len((await coordinator.ok("GET", "/v1/runs", "site-a"))["items"]) == 1


SOME_ID = "0199c0de-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("POST", "/v1/spaces", {"admin"}),
        ("POST", "/v1/clients", {"admin"}),
        ("POST", "/v1/runs", {"admin"}),
        ("POST", f"/v1/runs/{SOME_ID}/start", {"admin"}),
        ("POST", f"/v1/runs/{SOME_ID}/cancel", {"admin"}),
        ("POST", f"/v1/runs/{SOME_ID}/pause", {"admin"}),
        ("POST", f"/v1/runs/{SOME_ID}/resume", {"admin"}),
        ("POST", f"/v1/runs/{SOME_ID}/clients/{SOME_ID}/release", {"admin"}),
        ("POST", f"/v1/clients/{SOME_ID}/revoke", {"admin"}),
        ("POST", "/v1/tokens", {"admin"}),
        ("GET", "/v1/tokens", {"admin"}),
        ("POST", f"/v1/tokens/{SOME_ID}/revoke", {"admin"}),
        ("GET", "/v1/clients", {"admin", "auditor"}),
        ("POST", "/synthesize", {"admin", "scientist"}),
        ("POST", "/v1/synthesize", {"admin", "scientist"}),
        ("POST", f"/v1/work/{SOME_ID}/claim", {"worker"}),
        ("POST", f"/v1/jobs/{SOME_ID}/claim", {"worker"}),
        ("POST", f"/v1/jobs/{SOME_ID}/renew", {"worker"}),
        ("POST", f"/v1/jobs/{SOME_ID}/complete", {"worker"}),
        ("POST", f"/v1/jobs/{SOME_ID}/fail", {"worker"}),
        ("GET", "/v1/events", {"admin", "auditor"}),
        ("GET", f"/v1/clients/{SOME_ID}/events", {"admin", "auditor", "site-a"}),
        ("POST", f"/v1/runs/{SOME_ID}/rounds/0/replay", {"admin"}),
        ("GET", f"/v1/runs/{SOME_ID}/rounds/0/replays/{SOME_ID}", {"admin", "auditor"}),
        ("DELETE", f"/v1/clients/{SOME_ID}/updates", {"admin", "site-a"}),
    ],
)
async def test_scopes(coordinator: Coordinator, method: str, path: str, scopes: set) -> None:
    await coordinator.enrol("site-a")
    for who in ("admin", "auditor", "scientist", "worker", "site-a"):
        response = await coordinator.call(method, path, who, json={})
        refused = response.status_code == 403
        assert refused == (who not in scopes), (who, response.text)
    problem(await coordinator.call(method, path, None, json={}), 401, "unauthenticated")


async def test_an_expired_token_is_judged_by_the_databases_clock(
    coordinator: Coordinator,
) -> None:
    async with coordinator.ctx.database.read() as session:
        now = await coordinator.ctx.database.now(session)
    coordinator.tokens["old"] = await coordinator.token(
        "admin", expires_at=now - timedelta(seconds=1)
    )
    problem(await coordinator.call("GET", "/v1/runs", "old"), 401, "unauthenticated")
