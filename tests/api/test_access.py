"""Every operation of the OpenAPI document, asked by everybody: who is let in, and to what."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import APIRouter

from api import access
from api.app import create_app
from api.config import Settings
from api.db.models import SCOPES
from api.secure_sums import examples as sums
from core.federation.plan import RunSpec
from core.wire.messages import CONTENT_TYPE_TENSORS, LEASE_HEADER
from tests.api.support import Coordinator, problem, update_body

Operations = dict[str, access.Operation]
# What an identity that is no scope stands for: its token is not valid, or there is none.
INVALID = ("nobody", "unknown", "revoked", "expired")
# Operations of clients whose path names no client, run, work or object; tested one by one below.
NAMELESS = {
    "getOwnClient",
    "getOwnToken",
    "getSpace",
    "listReceiptKeys",
    "listRuns",
    "listSpaces",
    "planBudget",
    "rotateOwnToken",
}


# Of runs with secure sums: whose they are is tested in test_secure_sums_rules.py.
OF_SUMS = {"answerSumStep", "declineSumStep", "getSumStep", "listPeers"}


@pytest.fixture
def operations(coordinator: Coordinator) -> Operations:
    return {each.id: each for each in access.operations(coordinator.app)}


def _documented(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def _body(operation: dict[str, Any]) -> dict[str, Any]:
    """The documented example as the options of a request."""
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        if media == "application/json":
            (example, *_) = content["examples"].values()
            return {"json": example["value"]}
        return {"content": b"none", "headers": {"Content-Type": media}}
    return {}


def _path(path: str, **values: str) -> str:
    """The path of things that do not exist, but for those that are given."""
    known = {"number": "0", "digest": "sha256:" + "0" * 64, "name": "nothing", **values}
    for part in {part.split("}")[0] for part in path.split("{")[1:]}:
        path = path.replace(f"{{{part}}}", known.get(part, str(uuid4())))
    return path


async def _contents(coordinator: Coordinator) -> dict[str, str]:
    """A digest of every table."""
    tables = await coordinator.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    found = {}
    for (table,) in tables:
        rows = await coordinator.sql(
            f"SELECT coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '') FROM {table} t"
        )
        found[table] = rows[0][0]
    return found


def test_every_documented_operation_has_a_rule(
    coordinator: Coordinator, operations: Operations
) -> None:
    documented = {
        (operation["operationId"], method, path)
        for method, path, operation in _documented(coordinator.app.openapi())
    }
    assert {(one.id, one.method, one.path) for one in operations.values()} == documented
    assert set(operations) == set(access.RULES), "a rule of what is not served"
    assert all(each.rule for each in operations.values())
    public = {each.id for each in operations.values() if each.scopes is None}
    assert public == {"getHealth", "getReadiness", "redeemEnrolment"}


def test_a_new_operation_without_a_rule_is_noticed(settings: Settings) -> None:
    app, router = create_app(settings, background=False), APIRouter()

    @router.get("/v1/new", operation_id="somethingNew")
    async def new() -> None:
        return None

    app.include_router(router)
    with pytest.raises(access.NoRule, match="somethingNew"):
        access.operations(app)


def test_the_document_is_current() -> None:
    assert access.DOCUMENT.read_text() == access.described(), "run 'make access-table'"


async def _identity(coordinator: Coordinator, who: str) -> str | None:
    """A name for ``Coordinator.call``, with a token of that kind behind it."""
    if who == "nobody":
        return None
    if who == "unknown":
        coordinator.tokens[who] = "fhv_admin_" + "x" * 43
    elif who == "expired":
        ago = await coordinator.sql("SELECT clock_timestamp()")
        coordinator.tokens[who] = await coordinator.token(
            "admin", expires_at=ago[0][0] - timedelta(seconds=1)
        )
    elif who == "revoked":
        made = await coordinator.ok("POST", "/v1/tokens", json={"scope": "admin", "label": "x"})
        coordinator.tokens[who] = made["token"]
        await coordinator.ok("POST", f"/v1/tokens/{made['id']}/revoke")
    elif who == "client":
        await coordinator.enrol("site-a")
        coordinator.tokens[who] = coordinator.tokens["site-a"]
    else:
        coordinator.tokens[who] = await coordinator.token(who)
    return who


@pytest.mark.parametrize("who", [*SCOPES, *INVALID])
async def test_who_is_let_in(coordinator: Coordinator, operations: Operations, who: str) -> None:
    name = await _identity(coordinator, who)
    before = await _contents(coordinator)
    admitted = 0
    for method, path, documented in _documented(coordinator.app.openapi()):
        allowed = operations[documented["operationId"]].scopes
        body = _body(documented)
        if documented["operationId"] == "planBudget":  # whose accounts: the object's rule, below
            body["json"] = {**body["json"], "clients": []}
        answer = await coordinator.call(method, _path(path), name, **body)
        where = f"{who}: {method} {path}: {answer.status_code} {answer.text[:200]}"
        if allowed is not None and who in INVALID:
            problem(answer, 401, "unauthenticated")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer "), where
        elif allowed is not None and who not in allowed:
            assert "needed: " in problem(answer, 403, "forbidden")["detail"], where
        else:
            admitted += 1
            assert answer.status_code not in (401, 403), where
            assert answer.status_code < 500, where
    if who in INVALID:
        assert admitted == 3  # health, and who has a one-time code
        assert await _contents(coordinator) == before
    else:
        assert 3 < admitted < len(operations)


async def _stage(coordinator: Coordinator) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """A run of two clients with a published round and one under way, in which site-a holds an
    order: ids of what is site-a's, and what it would send.
    """
    await coordinator.enrol("site-a", "site-b", "outsider")
    run = await coordinator.run("site-a", "site-b")
    for name in ("site-a", "site-b"):
        await coordinator.work(name, seed=len(name) + ord(name[-1]))
    await coordinator.aggregate()
    order = await coordinator.poll("site-a")
    assert order is not None
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    await coordinator.ok("GET", "/v1/events")  # readers number the trail: let it be done
    own = {
        "client_id": coordinator.clients["site-a"],
        "run_id": run["id"],
        "work_id": order["work_id"],
        "digest": model["frame"]["digest"],
    }
    lease = {LEASE_HEADER: order["lease_token"]}
    spec = RunSpec.model_validate(order["spec"])
    sent: dict[str, dict[str, Any]] = {
        "renewWork": {"headers": lease},
        "failWork": {"headers": lease, "json": {"code": "site-not-ready"}},
        "putUpdate": {
            "headers": {**lease, "Content-Type": CONTENT_TYPE_TENSORS},
            "content": update_body(spec, order["round_number"]),
        },
        "decideOnPlan": {
            "json": {
                "client": "site-a",
                "spec_digest": run["spec_digest"],
                "decision": "approve",
                "by": "policy",
            }
        },
        "createJoin": {"json": {"clients": ["site-a"]}},
        "leaveRun": {"json": {"why": "no longer"}},
        "setIdentityKey": {"json": sums.IDENTITY},
        "answerSumStep": {"json": sums.ANSWER},
        "declineSumStep": {"json": sums.DECLINE},
    }
    return own, sent


def _of_clients(operations: Operations) -> list[access.Operation]:
    """Operations that a client's token may call and that name something in their path. What ends
    something comes last.
    """
    last = ("putUpdate", "failWork", "eraseUpdates", "leaveRun")
    found = [
        each
        for each in operations.values()
        if each.scopes is not None and "client" in each.scopes and each.id not in NAMELESS
    ]
    assert all("{" in each.path for each in found), "name it in NAMELESS, and test it"
    return sorted(found, key=lambda each: last.index(each.id) if each.id in last else -1)


async def _ask(
    coordinator: Coordinator,
    who: str,
    each: access.Operation,
    own: dict[str, str],
    sent: dict[str, dict[str, Any]],
) -> httpx.Response:
    path = _path(each.path, **{**own, "number": "1" if each.id == "putUpdate" else "0"})
    return await coordinator.call(each.method, path, who, **sent.get(each.id, {}))


@pytest.mark.parametrize("who", ["outsider", "site-b"])
async def test_what_is_another_clients_does_not_exist(
    coordinator: Coordinator, operations: Operations, who: str
) -> None:
    """``outsider`` takes no part in the run, ``site-b`` does: to it the run exists, but not what is
    site-a's in it. Even a lease token of site-a is of no use to either.
    """
    own, sent = await _stage(coordinator)
    before = await _contents(coordinator)
    asked = 0
    for each in _of_clients(operations):
        bound = any(f"{{{part}}}" in each.path for part in ("client_id", "work_id"))
        if who == "site-b" and not (
            bound or each.id in ("createJoin", "decideOnPlan", "putUpdate")
        ):
            continue  # of the run, in which it takes part
        asked += 1
        answer = await _ask(coordinator, who, each, own, sent)
        if each.id == "createJoin":
            problem(answer, 403, "forbidden")
        elif each.id == "putUpdate" and who == "site-b":  # of that round it may send its own
            problem(answer, 409, "lease-lost")
        else:
            problem(answer, 404, "not-found")
        assert await _contents(coordinator) == before, f"{each.id} has changed something"
    assert asked >= 10


async def test_what_is_its_own_a_client_may_use(
    coordinator: Coordinator, operations: Operations
) -> None:
    """The same requests by their owner: the refusals above were not for another reason."""
    own, sent = await _stage(coordinator)
    for each in _of_clients(operations):
        if each.id == "followRun" or each.id in OF_SUMS:  # the first lasts as long as the run
            continue
        answer = await _ask(coordinator, "site-a", each, own, sent)
        if each.id == "createJoin":
            problem(answer, 403, "forbidden", "plan.joining")
        elif each.id == "failWork":
            problem(answer, 409, "lease-lost")  # its update was accepted before
        else:
            assert answer.is_success, f"{each.id}: {answer.status_code} {answer.text}"


async def test_operations_without_a_name_show_a_client_its_own(
    coordinator: Coordinator, operations: Operations
) -> None:
    own, _ = await _stage(coordinator)
    assert set(operations) >= NAMELESS
    assert (await coordinator.ok("GET", "/v1/runs", "outsider"))["items"] == []
    mine = await coordinator.ok("GET", "/v1/clients/me", "outsider")
    assert mine["id"] == coordinator.clients["outsider"] != own["client_id"]
    plan = (await coordinator.ok("GET", f"/v1/runs/{own['run_id']}"))["spec"]["plan"]
    for names in (["site-a"], ["outsider", "site-a"]):
        body = {"plan": {**plan, "name": "next"}, "clients": names, "participants": 2}
        answer = await coordinator.call("POST", "/v1/planner", "outsider", json=body)
        problem(answer, 403, "forbidden", "clients")


async def test_a_client_is_not_told_who_else_takes_part(coordinator: Coordinator) -> None:
    own, _ = await _stage(coordinator)
    run = await coordinator.ok("GET", f"/v1/runs/{own['run_id']}", "site-b")
    (listed,) = (await coordinator.ok("GET", "/v1/runs", "site-b"))["items"]
    for shown in (run, listed):
        assert (shown["clients"], shown["clients_total"]) == (["site-b"], 2)
        assert [seat["client"] for seat in shown["seats"]] == ["site-b"]
        assert "site-a" not in str(shown)
    whole = await coordinator.ok("GET", f"/v1/runs/{own['run_id']}", "scientist")
    assert (whole["clients"], whole["clients_total"]) == (["site-a", "site-b"], 2)


async def test_why_a_run_has_ended_names_nobody_to_a_client(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    await coordinator.work("site-a")
    coordinator.pass_time(10_000)
    for _ in range(3):
        await coordinator.sweep()
        coordinator.pass_time(10_000)
    path = f"/v1/runs/{run['id']}"
    ended = await coordinator.ok("GET", path)
    assert ended["state"] == "failed"
    assert "site-b" in ended["why"]
    mine = await coordinator.ok("GET", path, "site-a")
    assert (mine["state"], mine["why"]) == ("failed", "")


def _ruled(operations: Operations, rule: str) -> list[access.Operation]:
    """Operations of which ``rule`` is said and whose path names something; what ends it last."""
    found = [each for each in operations.values() if rule in each.rule and "{" in each.path]
    assert found, f"no operation has the rule {rule!r}"
    return sorted(found, key=lambda each: each.method == "DELETE")


async def test_a_job_is_its_owners(coordinator: Coordinator, operations: Operations) -> None:
    own, _ = await _stage(coordinator)
    coordinator.tokens["ada"] = await coordinator.token("scientist")
    coordinator.tokens["bob"] = await coordinator.token("scientist")
    body = {"run": own["run_id"], "n": 10}
    job = await coordinator.ok("POST", "/v1/synthesis-jobs", "ada", json=body)
    before = await _contents(coordinator)
    ruled = _ruled(operations, access._OWN_JOBS)
    for each in ruled:
        path = _path(each.path, job_id=job["id"])
        problem(await coordinator.call(each.method, path, "bob"), 404, "not-found")
    assert await _contents(coordinator) == before
    assert (await coordinator.ok("GET", "/v1/synthesis-jobs", "bob"))["items"] == []
    for each in ruled:
        path = _path(each.path, job_id=job["id"])
        assert (await coordinator.call(each.method, path, "ada")).status_code != 404, each.id


async def test_a_worker_does_not_act_for_a_client_that_has_an_agent(
    coordinator: Coordinator, operations: Operations
) -> None:
    """Not even with the client's own lease token."""
    own, sent = await _stage(coordinator)
    before = await _contents(coordinator)
    asked = 0
    for each in operations.values():
        if each.scopes is None or "worker" not in each.scopes or "managed clients" not in each.rule:
            continue
        if "{" not in each.path:
            continue
        asked += 1
        answer = await _ask(coordinator, "worker", each, own, sent)
        where = f"{each.id}: {answer.status_code} {answer.text}"
        assert answer.status_code in (403, 404, 409), where
        assert await _contents(coordinator) == before, f"{each.id} has changed something"
    assert asked >= 5


async def test_a_lease_is_needed(coordinator: Coordinator, operations: Operations) -> None:
    """A worker's token alone, or with the lease of another row, completes nothing."""
    _own, sent = await _stage(coordinator)
    job = (await coordinator.sql("SELECT id FROM jobs ORDER BY id LIMIT 1"))[0][0]
    before = await _contents(coordinator)
    asked = 0
    for each in operations.values():
        if each.rule != access._LEASED:
            continue
        asked += 1
        path = _path(each.path, job_id=str(job))
        body = _body(coordinator.app.openapi()["paths"][each.path][each.method.lower()])
        for headers in ({}, sent["renewWork"]["headers"], {LEASE_HEADER: "forged"}):
            answer = await coordinator.call(each.method, path, "worker", **body, headers=headers)
            where = f"{each.id} {headers}: {answer.status_code} {answer.text}"
            assert answer.status_code in (404, 409, 422), where
            assert await _contents(coordinator) == before, where
    assert asked >= 6
