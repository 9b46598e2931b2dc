"""The dashboard over HTTP: what forms do, what pages say, what is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.app import create_app
from api.clients.sightings import EVERY_S
from api.config import Settings
from api.dashboard import render
from tests.api.support import Coordinator
from tests.api.visitors import Visitor, visiting
from tests.browser.furnished import AGENT, HOSTILE, furnish


@pytest.fixture
async def admin(coordinator: Coordinator) -> AsyncIterator[Visitor]:
    async with visiting(coordinator, "admin") as visitor:
        yield visitor


async def _started(coordinator: Coordinator) -> dict[str, Any]:
    await coordinator.enrol("site-a", "site-b")
    return await coordinator.run("site-a", "site-b")


async def _state(coordinator: Coordinator, run: dict[str, Any]) -> str:
    return str((await coordinator.ok("GET", f"/v1/runs/{run['id']}"))["state"])


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
