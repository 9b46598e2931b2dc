"""Signing in to the dashboard: who gets in, to which pages, and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from api.auth import Door
from api.dashboard.sessions import COOKIE
from api.db.models import SCOPES
from api.guard import Guard
from tests.api.support import Coordinator
from tests.api.test_usage import published
from tests.api.visitors import CSRF, ENTER, Visitor, visiting
from tests.browser.furnished import furnish


@pytest.fixture
async def admin(coordinator: Coordinator) -> AsyncIterator[Visitor]:
    async with visiting(coordinator, "admin") as visitor:
        yield visitor


# --- getting in ---


async def test_a_token_opens_a_session_of_which_the_database_holds_an_hmac(
    coordinator: Coordinator,
) -> None:
    async with visiting(coordinator) as visitor:
        answer = await visitor.enter(await coordinator.token("admin"), next="/dashboard/clients")
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/clients")
        (set_cookie,) = [
            line for line in answer.headers.get_list("set-cookie") if line.startswith(COOKIE)
        ]
        for attribute in ("HttpOnly", "Secure", "SameSite=strict", "Path=/"):
            assert attribute in set_cookie
        assert "Domain" not in set_cookie
        secret = visitor.http.cookies[COOKIE]
        ((stored,),) = await coordinator.sql("SELECT encode(mac, 'hex') FROM dashboard_sessions")
        assert secret not in stored
        assert len(stored) == 64
        assert "Overview" in await visitor.page("")
        # The cookie opens pages and nothing of the API.
        assert (await visitor.http.get("/v1/runs")).status_code == 401
        kinds = {each["kind"] for each in (await coordinator.ok("GET", "/v1/events"))["items"]}
        assert "dashboard-entered" in kinds


async def test_what_was_wrong_with_a_token_is_not_said(coordinator: Coordinator) -> None:
    revoked, expired = await coordinator.token("admin"), await coordinator.token("admin")
    await coordinator.sql(
        "UPDATE tokens SET revoked_at = now() WHERE id = (SELECT max(id::text)::uuid FROM tokens)"
    )
    await coordinator.sql(
        "UPDATE tokens SET expires_at = now() - interval '1 s' WHERE revoked_at IS NULL"
    )
    said = set()
    async with visiting(coordinator) as visitor:
        for token in (revoked, expired, "fhv_admin_" + "x" * 43, "", "é\u202e"):
            answer = await visitor.enter(token)
            assert answer.status_code == 401
            assert COOKIE not in visitor.http.cookies
            said.add(CSRF.sub("", answer.text))
    assert len(said) == 1
    assert await coordinator.sql("SELECT 1 FROM dashboard_sessions") == []


async def test_guessing_at_the_door_is_throttled_as_everywhere(coordinator: Coordinator) -> None:
    stopped = Guard(3, clock=lambda: 0.0)
    coordinator.app.state.context = replace(coordinator.ctx, guard=stopped)
    async with visiting(coordinator) as visitor:
        for number in range(3):
            assert (await visitor.enter(f"fhv_admin_{number}")).status_code == 401
        answer = await visitor.enter("fhv_admin_one_more")
        assert answer.status_code == 429
        assert answer.headers["content-type"].startswith("text/html")
        assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("scope", ["worker", "client"])
async def test_programs_have_no_pages(coordinator: Coordinator, scope: str) -> None:
    await coordinator.enrol("site-a")
    token = coordinator.tokens["site-a"] if scope == "client" else await coordinator.token(scope)
    async with visiting(coordinator) as visitor:
        answer = await visitor.enter(token)
        assert answer.status_code == 403
        assert f"A token of scope {scope} has no pages here" in answer.text
        assert (await visitor.get("")).headers["location"] == "/dashboard/login"


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.test", "//evil.test", "/dashboard/../v1", "/dashboard//evil", "/dashboard\\x",
     "/dashboardx", "/dashboard/login", "javascript:1"],
)  # fmt: skip
async def test_signing_in_leads_nowhere_else(coordinator: Coordinator, wanted: str) -> None:
    async with visiting(coordinator) as visitor:
        answer = await visitor.enter(await coordinator.token("admin"), next=wanted)
        assert answer.headers["location"] == "/dashboard"


# --- who sees what ---


def _routes(coordinator: Coordinator) -> Iterator[tuple[str, str, tuple[str, ...] | None]]:
    """(method, path, scopes) of everything under /dashboard; None: no session is needed."""
    for context in iter_route_contexts(coordinator.app.routes):
        route = context.original_route
        path = context.path or ""
        if isinstance(route, APIRoute) and path.startswith("/dashboard"):
            doors = [one.call for one in route.dependant.dependencies if isinstance(one.call, Door)]
            for method in sorted(route.methods or ()):
                yield method, path, doors[0].scopes if doors else None


async def test_every_page_has_a_door_and_lets_in_whom_it_says(coordinator: Coordinator) -> None:
    """Generated from the routes: a page that is added is tried here too."""
    ids = await furnish(coordinator, rounds=1)
    known = {
        "run_id": ids["retina-pilot"],
        "client_id": coordinator.clients["site-a"],
        "enrolment_id": ids["enrolment"],
    }
    routes = list(_routes(coordinator))
    assert len(routes) >= 20
    open_to_all = {path for _, path, scopes in routes if scopes is None}
    assert open_to_all == {"/dashboard/login", "/dashboard/static/{name}"}
    actions = {"runs": "cancel", "enrolments": "approve"}
    for scope in (None, *ENTER):
        async with visiting(coordinator, scope) as visitor:
            for method, path, scopes in routes:
                if scopes is None or path in ("/dashboard/logout", "/dashboard/{rest:path}"):
                    continue
                action = actions.get(path.split("/")[2] if path.count("/") > 1 else "", "")
                url = path.format(**known, action=action)
                answer = await visitor.http.request(method, url)
                if scope is None:
                    assert answer.headers.get("location", "").startswith("/dashboard/login"), url
                elif scope not in scopes:
                    assert answer.status_code == 403, (scope, method, url)
                elif method == "POST":  # let in, but this is no form of ours
                    assert answer.status_code in (403, 422), (scope, url)
                else:
                    assert answer.status_code in (200, 303), (scope, url, answer.text)
                assert "problem+json" not in answer.headers.get("content-type", "")
    assert set(ENTER) < set(SCOPES)


async def test_a_scientist_sees_models_and_the_own_usage(coordinator: Coordinator) -> None:
    await published(coordinator)
    await coordinator.ok("POST", "/synthesize", "scientist", json={"run": "run-1", "n": 2500})
    async with visiting(coordinator, "scientist") as visitor:  # another token of this scope
        assert (await visitor.get("")).headers["location"] == "/dashboard/models"
        assert "run-1" in await visitor.page("/models")
        shown = await visitor.page("/synthesis")
        assert "2,500" not in shown
        assert "This token has not asked for rows" in shown
    async with visiting(coordinator, "auditor") as visitor:
        assert "2,500" in await visitor.page("/synthesis")


# --- how long ---


async def _is_in(visitor: Visitor, **headers: str) -> bool:
    return (await visitor.get("/models", headers=headers)).status_code == 200


async def test_a_revoked_token_ends_its_sessions_at_once(
    coordinator: Coordinator, admin: Visitor
) -> None:
    assert await _is_in(admin)
    await coordinator.sql("UPDATE tokens SET revoked_at = now()")
    assert not await _is_in(admin)
    answer = await admin.get("/runs", headers={"HX-Request": "true"})
    assert answer.status_code == 401
    assert answer.headers["HX-Redirect"] == "/dashboard/login?next=/dashboard/runs"


async def test_an_expired_token_ends_its_sessions_at_once(coordinator: Coordinator) -> None:
    async with visiting(coordinator) as visitor:
        async with coordinator.ctx.database.read() as session:
            now = await coordinator.ctx.database.now(session)
        token = await coordinator.token("admin", expires_at=now + timedelta(minutes=5))
        await visitor.enter(token)
        assert await _is_in(visitor)
        coordinator.pass_time(301)
        assert not await _is_in(visitor)


async def test_idle_and_old_sessions_end_and_refreshing_pages_do_not_keep_them(
    coordinator: Coordinator, admin: Visitor
) -> None:
    idle = coordinator.ctx.settings.dashboard_idle_s
    coordinator.pass_time(idle * 0.7)
    assert await _is_in(admin)  # somebody did something: it begins again
    coordinator.pass_time(idle * 0.7)
    assert await _is_in(admin, **{"HX-Request": "true"})  # only the page did
    coordinator.pass_time(idle * 0.7)
    assert not await _is_in(admin)

    async with visiting(coordinator, "admin") as visitor:
        lasts = coordinator.ctx.settings.dashboard_session_s
        for _ in range(int(lasts / (idle * 0.9))):
            coordinator.pass_time(idle * 0.9)
            assert await _is_in(visitor)
        coordinator.pass_time(idle * 0.9)
        assert not await _is_in(visitor)
        # Who signs in next takes what has ended away.
        await visitor.enter(await coordinator.token("auditor"))
        assert len(await coordinator.sql("SELECT 1 FROM dashboard_sessions")) == 1


async def test_signing_out_ends_the_session_and_not_only_the_cookie(
    coordinator: Coordinator, admin: Visitor
) -> None:
    secret = admin.http.cookies[COOKIE]
    csrf = await admin.csrf("")
    answer = await admin.http.post("/dashboard/logout", data={"csrf": csrf})
    assert answer.headers["location"] == "/dashboard/login?out=true"
    assert COOKIE not in admin.http.cookies
    admin.http.cookies.set(COOKIE, secret, domain="api.test")
    assert not await _is_in(admin)
