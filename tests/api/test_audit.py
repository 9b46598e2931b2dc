"""The audit trail: complete, in the order of commits, unchangeable, shown to whom it may be."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from api import audit
from api.auth import Principal
from api.db.base import uuid7
from api.db.oversight_models import AuditEvent
from core.wire.messages import LEASE_HEADER
from tests.api.support import Coordinator, problem

ROOT = Path(__file__).resolve().parents[2]


async def trail(coordinator: Coordinator, query: str = "", who: str = "auditor") -> list[Any]:
    found = await coordinator.ok("GET", f"/v1/events?limit=200{query}", who)
    return list(found["items"])


async def kinds(coordinator: Coordinator, query: str = "") -> list[str]:
    return [item["kind"] for item in await trail(coordinator, query)]


def test_every_kind_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", text, flags=re.MULTILINE))
    assert {kind: listed.get(kind) for kind in audit.KINDS} == dict(audit.KINDS)


def test_every_kind_that_the_code_writes_is_in_the_list() -> None:
    written = set()
    for path in (ROOT / "api").rglob("*.py"):
        for call in re.findall(
            r"(?:record|_?told|row)\(\s*(?:[\w.]+,\s*)?f?\"([a-z{}-]+)\"", path.read_text()
        ):
            written.add(call)
    assert len(written) > 20
    literal = {kind for kind in written if "{" not in kind}
    assert literal <= set(audit.KINDS)
    assert written - literal == {"run-{state}", "consent-{state}"}
    # And the other way round: nothing is announced that nobody writes.
    ends = {"run-completed", "run-failed", "run-cancelled"}
    assert set(audit.KINDS) - literal - ends == {"consent-approved", "consent-refused"}


async def test_an_unknown_kind_is_refused(coordinator: Coordinator) -> None:
    async with coordinator.ctx.database.write() as session:
        with pytest.raises(ValueError, match="unknown kind of event 'run-exploded'"):
            await audit.record(session, "run-exploded", None)


async def test_a_whole_run_is_told_in_order(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    order = await coordinator.poll("site-a")
    again = await coordinator.poll("site-a")
    assert order == again  # the same lease again is no news
    assert order is not None
    headers = {"X-Request-ID": "the-update"}
    assert (await coordinator.send(order, **headers)).status_code == 201
    assert (await coordinator.send(order)).status_code == 200  # nor is a second receipt
    await coordinator.work("site-b")
    await coordinator.aggregate()
    body = {"run": run["id"], "n": 3, "seed": 1}
    await coordinator.ok("POST", "/synthesize", "scientist", json=body)
    assert await kinds(coordinator, f"&run={run['id']}") == [
        "run-created",
        "consent-approved",
        "consent-approved",
        "run-started",
        "round-moved",
        "work-leased",
        "update-accepted",
        "work-leased",
        "update-accepted",
        "round-moved",
        "round-moved",
        "job-claimed",
        "job-completed",
        "model-published",
        "run-completed",
        "round-moved",
        "synthesis-served",
    ]
    (accepted,) = await trail(
        coordinator, f"&client={coordinator.clients['site-a']}&kind=update-accepted"
    )
    assert accepted["request_id"] == "the-update"
    assert (accepted["actor"], accepted["round"]) == ("client", 0)
    assert accepted["detail"]["attempt"] == 1
    (served,) = await trail(coordinator, "&kind=synthesis-served")
    assert served["detail"]["n"] == 3
    assert "embeddings" not in str(served)
    assert {item["actor"] for item in await trail(coordinator, "&kind=round-moved")} == {
        "coordinator"
    }
    assert await kinds(coordinator, "&actor=admin") == [
        "space-created",
        "client-created",
        "client-created",
        "run-created",
        "run-started",
    ]


async def test_what_goes_wrong_is_told_too(coordinator: Coordinator) -> None:
    shared = {"site": "hospital", "population": "all"}
    await coordinator.enrol("site-a", epsilon=8.0, **shared)
    await coordinator.enrol("poor", epsilon=4.0, **shared)
    await coordinator.enrol("site-c")
    late = await coordinator.run("poor", "site-c", name="run-2", start=False, round={"quorum": 1})
    await coordinator.run("site-a", "site-c", privacy={"rounds": 0})
    await coordinator.ok("POST", f"/v1/runs/{late['id']}/start")
    await coordinator.sweep()
    (left_out,) = await trail(coordinator, "&kind=client-left-out")
    assert left_out["client_id"] == coordinator.clients["poor"]
    assert "more than its budget" in left_out["detail"]["why"]
    order = await coordinator.poll("site-a")
    assert order is not None
    refused = await coordinator.send(order, b"not a tensor file")
    assert refused.status_code == 422
    (told,) = await trail(coordinator, "&kind=update-refused")
    assert told["detail"]["code"] == refused.json()["code"]
    await coordinator.ok(
        "POST",
        f"/v1/work/{order['work_id']}/fail",
        "site-a",
        json={"code": "site-not-ready"},
        headers={LEASE_HEADER: order["lease_token"]},
    )
    (returned,) = await trail(coordinator, "&kind=work-returned")
    assert returned["detail"]["code"] == "site-not-ready"
    await coordinator.poll("site-c")
    coordinator.pass_time(11)
    await coordinator.sweep()
    (lost, *_) = await trail(coordinator, "&kind=work-lost")
    assert "lease ended" in lost["detail"]["why"]
    made = await coordinator.ok("POST", "/v1/tokens", json={"scope": "worker", "label": "w"})
    await coordinator.ok("POST", f"/v1/tokens/{made['id']}/revoke")
    await coordinator.ok("POST", f"/v1/tokens/{made['id']}/revoke")
    tokens = await trail(coordinator, "&kind=token-created&kind=token-revoked")
    assert [item["kind"] for item in tokens] == ["token-created", "token-revoked"]
    assert made["token"] not in str(tokens)


async def test_a_request_that_fails_leaves_no_trace(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    before = await kinds(coordinator)
    with pytest.raises(RuntimeError):
        async with coordinator.ctx.database.write() as session:
            await audit.record(session, "run-started", None, run_id=uuid4())
            raise RuntimeError
    assert await kinds(coordinator) == before


async def test_filters_and_pages_in_both_directions(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    other = await coordinator.run("site-b", name="run-2", round={"quorum": 1})
    whole = [item["id"] for item in await trail(coordinator)]
    assert len(whole) > 7
    for order, wanted in (("asc", whole), ("desc", whole[::-1])):
        seen: list[str] = []
        after = ""
        while True:
            path = f"/v1/events?limit=3&order={order}{after}"
            page = await coordinator.ok("GET", path, "admin")
            seen += [item["id"] for item in page["items"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert seen == wanted
    of_run = await trail(coordinator, f"&run={other['id']}")
    assert {item["run_id"] for item in of_run} == {other["id"]}
    assert {item["round"] for item in await trail(coordinator, f"&run={run['id']}&round=0")} == {0}
    middle = (await trail(coordinator))[4]["at"].replace("+", "%2B")
    early, late = (
        await trail(coordinator, f"&until={middle}"),
        await trail(coordinator, f"&since={middle}"),
    )
    assert [item["id"] for item in early + late] == whole
    for query, field in (
        ("kind=nothing", "kind"),
        ("actor=nobody", "actor"),
        ("since=2026-01-01T00:00:00", "since"),
        (f"after={uuid4()}", "after"),
        ("order=random", "order"),
    ):
        refused = await coordinator.call("GET", f"/v1/events?{query}", "admin")
        problem(refused, 422, "invalid-request", field)


async def test_a_client_reads_what_is_about_itself(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    await coordinator.work("site-a")
    await coordinator.work("site-b")
    own, other = coordinator.clients["site-a"], coordinator.clients["site-b"]
    page = await coordinator.ok("GET", f"/v1/clients/{own}/events", "site-a")
    assert [item["kind"] for item in page["items"]] == [
        "client-created",
        "consent-approved",
        "work-leased",
        "update-accepted",
    ]
    assert {item["client_id"] for item in page["items"]} == {own}
    assert {item["token_id"] for item in page["items"]} == {None}
    stranger = await coordinator.call("GET", f"/v1/clients/{other}/events", "site-a")
    problem(stranger, 404, "not-found")
    problem(await coordinator.call("GET", "/v1/events", "site-a"), 403, "forbidden")
    nobody = await coordinator.call("GET", f"/v1/clients/{uuid4()}/events", "auditor")
    problem(nobody, 404, "not-found")
    assert (
        len((await coordinator.ok("GET", f"/v1/clients/{other}/events", "auditor"))["items"]) == 4
    )


@pytest.mark.parametrize("table", ["audit_events", "audit_order"])
@pytest.mark.parametrize("change", ["UPDATE {} SET run_id = NULL", "DELETE FROM {}", "TRUNCATE {}"])
async def test_nobody_can_rewrite_the_trail(
    coordinator: Coordinator, table: str, change: str
) -> None:
    await coordinator.enrol("site-a")
    assert await kinds(coordinator) != []  # they have their places
    with pytest.raises(Exception, match="only ever added"):
        await coordinator.sql(change.format(table))


async def test_the_order_is_that_of_commits_not_of_ids(coordinator: Coordinator) -> None:
    """The known wrong version: by ids, an event that commits late would appear behind a reader's
    cursor, and a feed would never send it.
    """
    run = uuid4()
    who = Principal(uuid7(), "admin", None)
    async with coordinator.ctx.database.write() as slow:
        await audit.record(slow, "run-created", who, run_id=run)
        await slow.flush()  # its id is made, its transaction is open
        async with coordinator.ctx.database.write() as quick:
            await audit.record(quick, "run-started", who, run_id=run)
        seen = await trail(coordinator, f"&run={run}")
        assert [item["kind"] for item in seen] == ["run-started"]
    after = await trail(coordinator, f"&run={run}&after={seen[-1]['id']}")
    assert [item["kind"] for item in after] == ["run-created"]
    rows = await coordinator.rows(AuditEvent, AuditEvent.run_id == UUID(str(run)))
    assert [row.kind for row in rows] == ["run-created", "run-started"]  # by id: the other way


async def test_readers_at_once_give_each_event_one_place(coordinator: Coordinator) -> None:
    await coordinator.enrol(*(f"site-{letter}" for letter in "abcdef"))
    pages = await asyncio.gather(*(kinds(coordinator, "&kind=client-created") for _ in range(6)))
    assert pages == [["client-created"] * 6] * 6
    placed = "SELECT count(*), count(DISTINCT event_id), max(position) FROM audit_order"
    assert await coordinator.sql(placed) == [(7, 7, 7)]
    assert await coordinator.sql("SELECT 1 FROM audit_inbox") == []


async def test_an_update_that_counts_wakes_nobody_and_is_told_all_the_same(
    coordinator: Coordinator,
) -> None:
    """NOTIFY makes commits wait for one another: not in what every update of every client does."""
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    async with await coordinator.ctx.database.connect_alone() as connection:
        await connection.execute("LISTEN fedhypevae")
        await coordinator.work("site-a")
        await coordinator.ok("POST", f"/v1/runs/{run['id']}/cancel")
        heard = [notice.payload async for notice in connection.notifies(timeout=1)]
    assert heard == [f"run:{run['id']}"]  # from the last request
    told = await kinds(coordinator, f"&run={run['id']}")
    assert "update-accepted" in told
    assert told.index("update-accepted") < told.index("run-cancelled")
