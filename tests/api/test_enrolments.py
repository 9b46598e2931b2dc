"""How a site comes in: the code, the site's token, the administrator's yes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.config import Settings
from core.wire.credentials import fingerprint, new_token
from tests.api.support import SPACE, Coordinator, problem

DAY_S = 86_400


def wanted(name: str = "site-a", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "space": "tiny",
        "site": f"hospital-{name}",
        "population": f"{name}/all",
        "unit": "record",
        "managed": False,
        "budget": {"epsilon": 8.0, "delta": 1e-5},
        **changes,
    }


async def issue(coordinator: Coordinator, **body: Any) -> dict[str, Any]:
    await coordinator.ok("POST", "/v1/spaces", json=SPACE)
    made = await coordinator.ok("POST", "/v1/enrolments", json=body or {"client": wanted()})
    return dict(made)


async def redeem(coordinator: Coordinator, code: str, token: str | None = None) -> httpx.Response:
    body = {"code": code, "agent": "a test"} | ({} if token is None else {"token": token})
    return await coordinator.call("POST", "/v1/enrolments/redeem", None, json=body)


async def test_a_site_comes_in(coordinator: Coordinator) -> None:
    made = await issue(coordinator)
    assert (made["state"], made["client"]["name"]) == ("open", "site-a")
    coordinator.tokens["site-a"] = token = new_token("client")
    problem(await coordinator.call("GET", "/v1/clients/me", "site-a"), 401, "unauthenticated")

    first = (await redeem(coordinator, made["code"].lower(), token)).json()
    assert (first["state"], first["token"], first["client"]) == ("waiting", None, None)
    assert first["fingerprint"] == fingerprint(token)
    problem(await coordinator.call("GET", "/v1/clients/me", "site-a"), 401, "unauthenticated")
    assert (await redeem(coordinator, made["code"], token)).json() == first

    (waiting,) = (await coordinator.ok("GET", "/v1/enrolments?state=waiting"))["items"]
    assert (waiting["fingerprint"], waiting["agent"]) == (fingerprint(token), "a test")
    assert waiting["address"]
    assert made["code"] not in str(waiting)

    path = f"/v1/enrolments/{made['id']}/approve"
    approved = await coordinator.ok("POST", path, json={"fingerprint": first["fingerprint"]})
    assert approved["state"] == "approved"
    assert await coordinator.ok("POST", path, json={}) == approved
    last = (await redeem(coordinator, made["code"], token)).json()
    assert (last["state"], last["client"]["id"]) == ("approved", approved["client_id"])
    me = await coordinator.ok("GET", "/v1/clients/me", "site-a")
    assert (me["name"], me["id"]) == ("site-a", approved["client_id"])
    mine = await coordinator.ok("GET", "/v1/tokens/me", "site-a")
    assert mine["renewable"]
    assert mine["expires_at"] == last["token_expires_at"]
    kinds = [event["kind"] for event in (await coordinator.ok("GET", "/v1/events"))["items"]]
    steps = [f"enrolment-{step}" for step in ("created", "redeemed", "approved")]
    assert [kind for kind in kinds if kind.startswith("enrolment-")] == steps
    assert kinds.count("client-created") == 1


async def test_nothing_of_it_is_in_the_database(coordinator: Coordinator) -> None:
    made = await issue(coordinator)
    token = new_token("client")
    await redeem(coordinator, made["code"], token)
    await coordinator.ok("POST", f"/v1/enrolments/{made['id']}/approve", json={})
    tables = await coordinator.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in tables:
        rows = await coordinator.sql(f"SELECT string_agg(t::text, '|') FROM {table} t")
        text = str(rows[0][0])
        assert token not in text
        assert made["code"] not in text
        assert made["code"].replace("-", "") not in text


async def test_a_stolen_code_is_noticed(coordinator: Coordinator) -> None:
    """The thief is faster: the site is told, and the administrator sees another fingerprint."""
    made = await issue(coordinator)
    thief, site = new_token("client"), new_token("client")
    assert (await redeem(coordinator, made["code"], thief)).status_code == 200
    for token in (site, None):
        refused = problem(
            await redeem(coordinator, made["code"], token), 409, "enrolment-code-used"
        )
        assert "somebody else has your code" in refused["mend"]
    path = f"/v1/enrolments/{made['id']}"
    body = {"fingerprint": fingerprint(site)}
    answer = await coordinator.call("POST", f"{path}/approve", json=body)
    problem(answer, 422, "invalid-request", "fingerprint")
    await coordinator.ok("POST", f"{path}/refuse", json={"why": "stolen"})
    told = (await redeem(coordinator, made["code"], thief)).json()
    assert (told["state"], told["why"]) == ("refused", "stolen")
    problem(await coordinator.call("POST", f"{path}/approve", json={}), 409, "conflict")
    coordinator.tokens["thief"] = thief
    problem(await coordinator.call("GET", "/v1/clients/me", "thief"), 401, "unauthenticated")
    assert (await coordinator.ok("GET", "/v1/clients"))["items"] == []


async def test_the_coordinator_makes_the_token_if_asked(coordinator: Coordinator) -> None:
    made = await issue(coordinator)
    told = (await redeem(coordinator, made["code"])).json()
    assert told["fingerprint"] == fingerprint(told["token"])
    again = (await redeem(coordinator, made["code"], told["token"])).json()
    assert (again["state"], again["token"]) == ("waiting", None)
    await coordinator.ok("POST", f"/v1/enrolments/{made['id']}/approve", json={})
    coordinator.tokens["site-a"] = told["token"]
    await coordinator.ok("GET", "/v1/clients/me", "site-a")


async def test_a_code_expires(coordinator: Coordinator) -> None:
    made = await issue(coordinator, client=wanted(), expires_in_s=3_600)
    coordinator.pass_time(3_601)
    answer = await redeem(coordinator, made["code"], new_token("client"))
    assert "expired" in problem(answer, 410, "enrolment-closed")["detail"]
    (shown,) = (await coordinator.ok("GET", "/v1/enrolments?state=expired"))["items"]
    assert shown["state"] == "expired"
    problem(
        await coordinator.call("POST", f"/v1/enrolments/{made['id']}/approve", json={}),
        409,
        "conflict",
    )
    again = await coordinator.ok("POST", "/v1/enrolments", json={"client": wanted()})
    assert again["id"] != made["id"]  # an unused code keeps its name from nobody
    assert len((await coordinator.ok("GET", "/v1/enrolments"))["items"]) == 2


async def test_a_redeemed_code_waits_as_long_as_it_takes(coordinator: Coordinator) -> None:
    made = await issue(coordinator, client=wanted(), expires_in_s=3_600, token_days=1)
    token = new_token("client")
    await redeem(coordinator, made["code"], token)
    coordinator.pass_time(30 * DAY_S)
    await coordinator.ok("POST", f"/v1/enrolments/{made['id']}/approve", json={})
    coordinator.tokens["site-a"] = token
    await coordinator.ok("GET", "/v1/clients/me", "site-a")  # its day begins now
    coordinator.pass_time(DAY_S + 1)
    problem(await coordinator.call("GET", "/v1/clients/me", "site-a"), 401, "unauthenticated")


async def test_a_code_is_withdrawn(coordinator: Coordinator) -> None:
    made = await issue(coordinator)
    path = f"/v1/enrolments/{made['id']}/refuse"
    gone = await coordinator.ok("POST", path, json={"why": "sent to the wrong hospital"})
    assert gone["state"] == "withdrawn"
    assert await coordinator.ok("POST", path, json={"why": "again"}) == gone
    answer = await redeem(coordinator, made["code"], new_token("client"))
    problem(answer, 410, "enrolment-closed")


async def test_one_code_at_a_time_for_a_name(coordinator: Coordinator) -> None:
    await issue(coordinator)
    answer = await coordinator.call("POST", "/v1/enrolments", json={"client": wanted()})
    problem(answer, 409, "client-name-taken", "client.name")


async def test_a_site_that_lost_its_token_gets_a_new_one(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    made = await issue(coordinator, existing="site-a")
    assert (made["client"], made["client_id"]) == (None, coordinator.clients["site-a"])
    coordinator.tokens["new"] = new_token("client")
    await redeem(coordinator, made["code"], coordinator.tokens["new"])
    await coordinator.ok("GET", "/v1/clients/me", "site-a")  # the old one works till then
    await coordinator.ok("POST", f"/v1/enrolments/{made['id']}/approve", json={})
    problem(await coordinator.call("GET", "/v1/clients/me", "site-a"), 401, "unauthenticated")
    me = await coordinator.ok("GET", "/v1/clients/me", "new")
    assert me["id"] == coordinator.clients["site-a"]


async def test_a_revoked_client_does_not_come_back(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    made = await issue(coordinator, existing="site-a")
    await redeem(coordinator, made["code"], new_token("client"))
    path = f"/v1/clients/{coordinator.clients['site-a']}/revoke"
    await coordinator.ok("POST", path, json={"why": "key stolen"})
    answer = await coordinator.call("POST", f"/v1/enrolments/{made['id']}/approve", json={})
    problem(answer, 409, "conflict")
    answer = await coordinator.call("POST", "/v1/enrolments", json={"existing": "site-a"})
    problem(answer, 422, "invalid-request", "existing")


async def test_what_has_changed_meanwhile_is_said_at_approval(coordinator: Coordinator) -> None:
    made = await issue(coordinator)
    await redeem(coordinator, made["code"], new_token("client"))
    await coordinator.enrol("site-a")  # by another administrator
    answer = await coordinator.call("POST", f"/v1/enrolments/{made['id']}/approve", json={})
    problem(answer, 409, "client-name-taken", "name")
    assert (await coordinator.ok("GET", f"/v1/enrolments/{made['id']}"))["state"] == "waiting"


async def test_two_redeem_at_the_same_moment(coordinator: Coordinator) -> None:
    made = await issue(coordinator)
    both = await asyncio.gather(
        *(redeem(coordinator, made["code"], new_token("client")) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in both) == [200, 409, 409, 409]


async def test_two_approve_at_the_same_moment(coordinator: Coordinator) -> None:
    made = await issue(coordinator)
    await redeem(coordinator, made["code"], new_token("client"))
    path = f"/v1/enrolments/{made['id']}/approve"
    both = await asyncio.gather(*(coordinator.ok("POST", path, json={}) for _ in range(4)))
    assert len({each["client_id"] for each in both}) == 1
    assert len((await coordinator.ok("GET", "/v1/clients"))["items"]) == 1


async def test_two_issue_at_the_same_moment(coordinator: Coordinator) -> None:
    await coordinator.ok("POST", "/v1/spaces", json=SPACE)
    body = {"client": wanted()}
    both = await asyncio.gather(
        *(coordinator.call("POST", "/v1/enrolments", json=body) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in both) == [201, 409, 409, 409]


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({}, 422, "invalid-request", "client"),
        ({"client": wanted(), "existing": "site-a"}, 422, "invalid-request", "client"),
        ({"client": wanted(managed=True)}, 422, "invalid-request", "client.managed"),
        ({"client": wanted(space="none")}, 422, "invalid-request", "space"),
        ({"client": wanted(), "approval": "automatic"}, 422, "invalid-request", "approval"),
        ({"client": wanted(), "expires_in_s": 0}, 422, "invalid-request", "expires_in_s"),
        ({"client": wanted(), "token_days": -1}, 422, "invalid-request", "token_days"),
        ({"client": wanted(budget={"epsilon": 0, "delta": 1e-5})}, 422, "invalid-request", None),
        ({"existing": "nobody"}, 422, "invalid-request", "existing"),
        ({"existing": "managed"}, 422, "invalid-request", "existing"),
        ({"client": wanted("managed")}, 409, "client-name-taken", "name"),
    ],
)
async def test_bad_enrolments(
    coordinator: Coordinator, body: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    await coordinator.enrol("managed", managed=True)
    accounts = await coordinator.sql("SELECT count(*) FROM accounts")
    answer = await coordinator.call("POST", "/v1/enrolments", json=body)
    problem(answer, status, code, field)
    assert (await coordinator.ok("GET", "/v1/enrolments"))["items"] == []
    assert await coordinator.sql("SELECT count(*) FROM accounts") == accounts


@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"code": "AAAAA"}, 404, "enrolment-code-unknown", "code"),
        ({"code": ""}, 422, "invalid-request", "code"),
        ({"code": "x" * 65}, 422, "invalid-request", "code"),
        ({"token": "secret"}, 422, "invalid-request", "token"),
        ({"token": "fhv_admin_" + "a" * 43}, 422, "invalid-request", "token"),
        ({"agent": "line\nline"}, 422, "invalid-request", "agent"),
        ({"agent": "\x1b[31m"}, 422, "invalid-request", "agent"),
        ({"agent": "x" * 201}, 422, "invalid-request", "agent"),
        ({"more": 1}, 422, "invalid-request", "more"),
    ],
)
async def test_bad_redemptions(
    coordinator: Coordinator, changes: dict[str, Any], status: int, code: str, field: str
) -> None:
    made = await issue(coordinator)
    body = {"code": made["code"], **changes}
    answer = await coordinator.call("POST", "/v1/enrolments/redeem", None, json=body)
    problem(answer, status, code, field)
    assert (await coordinator.ok("GET", f"/v1/enrolments/{made['id']}"))["state"] == "open"


async def test_a_token_that_is_in_use_is_not_taken(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-b")
    made = await issue(coordinator)
    answer = await redeem(coordinator, made["code"], coordinator.tokens["site-b"])
    problem(answer, 422, "invalid-request", "token")
    waiting = new_token("client")
    await redeem(coordinator, made["code"], waiting)
    other = await coordinator.ok("POST", "/v1/enrolments", json={"client": wanted("site-c")})
    problem(await redeem(coordinator, other["code"], waiting), 422, "invalid-request", "token")


@pytest.fixture
async def trusting(settings: Settings) -> AsyncIterator[Coordinator]:
    app = create_app(settings.model_copy(update={"automatic_enrolment": True}), background=False)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api.test") as http:
            yield Coordinator(app, http)


async def test_approval_by_policy(trusting: Coordinator) -> None:
    made = await issue(trusting, client=wanted(), approval="automatic")
    trusting.tokens["site-a"] = new_token("client")
    told = (await redeem(trusting, made["code"], trusting.tokens["site-a"])).json()
    assert (told["state"], told["client"]["name"]) == ("approved", "site-a")
    await trusting.ok("GET", "/v1/clients/me", "site-a")
    plain = await issue(trusting, client=wanted("site-b"))
    told = (await redeem(trusting, plain["code"], new_token("client"))).json()
    assert told["state"] == "waiting"
