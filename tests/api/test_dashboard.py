"""The dashboard over HTTP: who gets in, how long, what forms do, what is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from api.app import create_app
from api.auth import Door
from api.clients.sightings import EVERY_S
from api.config import Settings
from api.dashboard import render
from api.dashboard.sessions import COOKIE
from api.db.models import SCOPES
from api.guard import Guard
from tests.api.support import Coordinator
from tests.api.test_usage import published
from tests.browser.furnished import AGENT, HOSTILE, furnish

ENTER = ("admin", "auditor", "scientist")
_CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


class Visitor:
    """A browser: keeps cookies, sends forms with their CSRF token."""

    def __init__(self, coordinator: Coordinator) -> None:
        # Secure cookies are for HTTPS only.
        transport = httpx.ASGITransport(coordinator.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="https://api.test")

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.get(f"/dashboard{path}", **options)

    async def page(self, path: str, **options: Any) -> str:
        answer = await self.get(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.text

    async def csrf(self, path: str) -> str:
        found = _CSRF.search((await self.get(path)).text)
        assert found is not None
        return found.group(1)

    async def enter(self, token: str, **changes: str) -> httpx.Response:
        sent = {"csrf": await self.csrf("/login"), "token": token, **changes}
        return await self.http.post("/dashboard/login", data=sent)

    async def act(self, path: str, **fields: str) -> httpx.Response:
        sent = {"csrf": await self.csrf(path), **fields}
        return await self.http.post(f"/dashboard{path}", data=sent)


@asynccontextmanager
async def visiting(coordinator: Coordinator, scope: str | None = None) -> AsyncIterator[Visitor]:
    visitor = Visitor(coordinator)
    async with visitor.http:
        if scope is not None:
            answer = await visitor.enter(await coordinator.token(scope))
            assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
        yield visitor


@pytest.fixture
async def admin(coordinator: Coordinator) -> AsyncIterator[Visitor]:
    async with visiting(coordinator, "admin") as visitor:
        yield visitor


async def _started(coordinator: Coordinator) -> dict[str, Any]:
    await coordinator.enrol("site-a", "site-b")
    return await coordinator.run("site-a", "site-b")


async def _state(coordinator: Coordinator, run: dict[str, Any]) -> str:
    return str((await coordinator.ok("GET", f"/v1/runs/{run['id']}"))["state"])


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
            said.add(_CSRF.sub("", answer.text))
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


# --- forms ---


async def test_a_form_that_is_not_ours_does_nothing(
    coordinator: Coordinator, admin: Visitor
) -> None:
    run = await _started(coordinator)
    path = f"/runs/{run['id']}/pause"
    csrf = await admin.csrf(path)
    async with visiting(coordinator, "admin") as other:
        foreign = await other.csrf(path)
    good = {"csrf": csrf, "hours": "1"}
    for sent, headers, status in (
        ({"hours": "1"}, {}, 403),
        (good | {"csrf": ""}, {}, 403),
        (good | {"csrf": csrf[:-1] + ("0" if csrf[-1] != "0" else "1")}, {}, 403),
        (good | {"csrf": foreign}, {}, 403),
        (good, {"Sec-Fetch-Site": "cross-site"}, 403),
        (good, {"Sec-Fetch-Site": "same-site"}, 403),
        (good, {"Content-Type": "text/plain"}, 422),
        (good | {"hours": "x" * 20_000}, {}, 413),
        (good | {"hours": "a\x00b"}, {}, 422),
        (good | {"hours": "nan"}, {}, 422),
        (good | {"hours": "-1"}, {}, 422),
        (good | {"hours": "100000"}, {}, 422),
    ):
        answer = await admin.http.post(f"/dashboard{path}", data=sent, headers=headers)
        assert answer.status_code == status, (sent, headers)
        assert answer.headers["content-type"].startswith("text/html")
    assert await _state(coordinator, run) == "running"
    sent = {"token": await coordinator.token("admin")}
    answer = await admin.http.post("/dashboard/login", data=sent)
    assert answer.status_code == 403  # nobody is signed in by another site's form


async def test_a_run_is_paused_resumed_and_cancelled(
    coordinator: Coordinator, admin: Visitor
) -> None:
    run = await _started(coordinator)
    base = f"/runs/{run['id']}"
    answer = await admin.act(f"{base}/pause", hours="8")
    assert answer.headers["location"] == f"/dashboard{base}?done=pause"
    assert await _state(coordinator, run) == "paused"
    shown = await admin.page(f"{base}?done=pause")
    assert "The run is paused." in shown
    assert "/resume" in shown
    await admin.act(f"{base}/resume")
    assert await _state(coordinator, run) == "running"
    wrong = await admin.act(f"{base}/cancel", name="run")
    assert wrong.status_code == 422
    assert await _state(coordinator, run) == "running"
    await admin.act(f"{base}/cancel", name="run-1")
    assert await _state(coordinator, run) == "cancelled"
    assert (await admin.act(f"{base}/pause", hours="1")).status_code == 409
    # The same trail as that of the API, by the token that has signed in.
    rows = await coordinator.sql(
        "SELECT kind FROM audit_events WHERE actor_scope = 'admin' AND actor_token = "
        "(SELECT token_id FROM dashboard_sessions) AND run_id IS NOT NULL ORDER BY id"
    )
    assert [row[0] for row in rows] == ["run-paused", "run-resumed", "round-moved"]


async def test_what_waits_for_an_administrator_is_decided(
    coordinator: Coordinator, admin: Visitor
) -> None:
    """A draft, a quarantine, and a site that waits to be let in."""
    ids = await furnish(coordinator, rounds=1)
    await admin.act(f"/runs/{ids['next-one']}/start")
    assert await _state(coordinator, {"id": ids["next-one"]}) == "running"

    run, site = f"/runs/{ids['retina-main']}", coordinator.clients["site-b"]
    assert "in quarantine" in await admin.page(run)
    await admin.act(f"{run}/clients/{site}/release")
    assert "in quarantine" not in await admin.page(run)

    path = f"/enrolments/{ids['enrolment']}"
    for place in ("", "/clients", "/audit", f"{path}/approve"):
        shown = await admin.page(place)
        assert "site-new" in shown
        assert ids["fingerprint"] not in shown  # it must come from the site's people
    assert (await admin.act(f"{path}/approve", fingerprint="AAAA-AAAA")).status_code == 422
    await admin.act(f"{path}/approve", fingerprint=ids["fingerprint"].lower())
    assert "never seen" in await admin.page("/clients?done=approve")
    names = [one["name"] for one in (await coordinator.ok("GET", "/v1/clients"))["items"]]
    assert "site-new" in names
    assert (await admin.act(f"{path}/refuse", why="x")).status_code == 409


async def test_a_client_is_revoked_with_a_reason(coordinator: Coordinator, admin: Visitor) -> None:
    await coordinator.enrol("site-a")
    path = f"/clients/{coordinator.clients['site-a']}/revoke"
    assert (await admin.act(path, name="site-a", why=" ")).status_code == 422
    assert (await admin.act(path, name="site-b", why="key stolen")).status_code == 422
    assert (await coordinator.call("GET", "/v1/clients/me", "site-a")).status_code == 200
    await admin.act(path, name="site-a", why="key <b>stolen</b>")
    assert (await coordinator.call("GET", "/v1/clients/me", "site-a")).status_code == 401
    shown = await admin.page(f"/clients/{coordinator.clients['site-a']}")
    assert "key &lt;b&gt;stolen&lt;/b&gt;" in shown
    assert "/revoke" not in shown


# --- what pages say ---


async def test_nothing_that_others_wrote_is_markup(
    coordinator: Coordinator, admin: Visitor
) -> None:
    ids = await furnish(coordinator, rounds=1)
    shown = ""
    for path in ("", "/runs", "/clients", f"/clients/{coordinator.clients['ward']}", "/audit",
                 "/models", "/synthesis", f"/runs/{ids['retina-main']}",
                 f"/clients/{coordinator.clients['ward']}/revoke",
                 f"/clients/{coordinator.clients['ward']}/budget"):  # fmt: skip
        shown += await admin.page(path)
    assert HOSTILE not in shown
    assert html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in shown
    assert "49" not in re.findall(r"alert\(1\).{0,20}", shown)
    # Parameters come back escaped, or not at all.
    for path in ("/audit?run=<script>alert(2)</script>", "/runs?state=<script>alert(2)",
                 "/clients?done=<script>alert(2)", "/login?next=<script>alert(2)"):  # fmt: skip
        answer = await admin.get(path)
        assert "<script>alert" not in answer.text


async def test_every_answer_has_a_policy_without_inline_code(
    coordinator: Coordinator, admin: Visitor
) -> None:
    for path in ("", "/login", "/nothing", "/static/dashboard.js"):
        answer = await admin.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert " style=" not in answer.text or path.startswith("/static")
    assert (await admin.get("")).headers["cache-control"] == "no-store"
    kept = await admin.get("/static/dashboard.js")
    assert "immutable" in kept.headers["cache-control"]
    assert (await admin.get("/static/..%2f..%2fapp.py")).status_code == 404
    assert (await admin.get("/static/none.js")).status_code == 404
    assert {name.rpartition(".")[2] for name in render.assets()} == {"js", "css", "svg", "txt"}


async def test_errors_are_pages(coordinator: Coordinator, admin: Visitor) -> None:
    for path in ("/nothing", f"/runs/{uuid4()}", "/runs/none", f"/clients/{uuid4()}",
                 "/audit?client=nobody", f"/runs/{uuid4()}/report"):  # fmt: skip
        answer = await admin.get(path)
        assert answer.status_code == 404, path
        assert "There is no such thing" in answer.text
        assert answer.headers["X-Request-ID"] in answer.text


async def test_a_link_of_another_site_is_followed_once_more_from_here(
    coordinator: Coordinator,
) -> None:
    """There a browser keeps a SameSite=Strict cookie to itself; from a page of ours it sends it."""
    async with visiting(coordinator) as visitor:
        answer = await visitor.get("/runs", headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 200
        assert 'http-equiv="refresh" content="0; url=/dashboard/runs"' in answer.text
        again = await visitor.get("/runs", headers={"Sec-Fetch-Site": "same-origin"})
        assert again.headers["location"] == "/dashboard/login?next=/dashboard/runs"


async def test_the_burn_down_is_the_ledgers_and_the_forecast_the_plans(
    coordinator: Coordinator, admin: Visitor
) -> None:
    run = await _started(coordinator)
    path = f"/clients/{coordinator.clients['site-a']}/budget"
    ledger = await coordinator.ledger("site-a")
    shown = await admin.page(path)
    assert f"<b>{render.eps(ledger['epsilon_total'])}</b> of 8.00 spent" in shown
    planned = (await coordinator.ok("GET", f"/v1/runs/{run['id']}"))["epsilon_planned"]
    assert f"<strong>{render.eps(planned)}</strong> spent" in shown
    assert "run-1 will have ended" in shown
    await coordinator.finish(run, "site-a", "site-b")
    done = await admin.page(path)
    assert "No run under way will spend more" in done
    assert f"<b>{render.eps(planned)}</b> of 8.00 spent" in done


async def test_when_an_agent_was_seen_is_written_once_a_minute(
    coordinator: Coordinator, admin: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await coordinator.enrol("site-a")
    assert "never seen" in await admin.page("/clients")
    coordinator.http.headers["User-Agent"] = AGENT
    await coordinator.poll("site-a")
    shown = await admin.page("/clients")
    assert "connected" in shown
    assert "0.1.0" in shown

    async def seen() -> list[Any]:
        return await coordinator.sql("SELECT at, version FROM client_sightings")

    (first,) = await seen()
    coordinator.pass_time(EVERY_S / 2)
    await coordinator.poll("site-a")
    assert await seen() == [first]
    coordinator.http.headers["User-Agent"] = "fedhypevae-client/<script>"
    await coordinator.poll("site-a")
    ((_, version),) = await seen()
    assert version == ""
    coordinator.pass_time(600)
    assert "silent" in await admin.page("/clients")


async def test_a_coordinator_may_go_without_pages(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"dashboard": False}), background=False)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="https://api.test"
    ) as http:
        assert (await http.get("/dashboard/login")).status_code == 404
