"""Issuing one-time codes in the dashboard: shown once, kept nowhere, withdrawn."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator

import pytest

from core.wire.credentials import read_code
from tests.api.support import SPACE, Coordinator
from tests.api.visitors import Visitor, visiting

NEW = "/enrolments/new"
WHO = {
    "name": "east", "site": "hospital <east>", "population": "east/all", "unit": "patient",
    "space": "tiny", "domain": "", "epsilon": "8", "delta": "0.00001", "days": "7",
    "token_days": "180",
}  # fmt: skip
_CODE = re.compile(r"<output>([0-9A-Z-]+)</output>")


@pytest.fixture
async def admin(coordinator: Coordinator) -> AsyncIterator[Visitor]:
    await coordinator.ok("POST", "/v1/spaces", json=SPACE)
    async with visiting(coordinator, "admin") as visitor:
        yield visitor


async def test_a_code_is_shown_once_and_lets_the_site_in(
    coordinator: Coordinator, admin: Visitor
) -> None:
    answer = await admin.act(NEW, **WHO)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    (code,) = _CODE.findall(answer.text)
    assert read_code(code) == code
    assert "hospital <east>" not in answer.text
    for place in ("/clients", "/audit", NEW, ""):
        assert code not in await admin.page(place)
    assert code not in str(await coordinator.sql("SELECT * FROM enrolments"))
    assert code not in str(await coordinator.sql("SELECT * FROM audit_events"))
    shown = await admin.page("/clients")
    assert "Codes that nobody has used yet" in shown
    assert "hospital &lt;east&gt;" in shown

    body = {"code": code, "agent": "an agent"}
    said = (await coordinator.ok("POST", "/v1/enrolments/redeem", None, json=body))["fingerprint"]
    (found,) = (await coordinator.ok("GET", "/v1/enrolments"))["items"]
    assert "Codes that nobody has used yet" not in await admin.page("/clients")
    await admin.act(f"/enrolments/{found['id']}/approve", fingerprint=said)
    (client,) = (await coordinator.ok("GET", "/v1/clients"))["items"]
    assert (client["name"], client["unit"], client["domain"]) == ("east", "patient", None)
    assert client["budget"] == {"epsilon": 8.0, "delta": 1e-5}
    rows = await coordinator.sql(
        "SELECT kind FROM audit_events WHERE kind LIKE 'enrolment-%' AND actor_token = "
        "(SELECT token_id FROM dashboard_sessions) ORDER BY id"
    )
    assert [row[0] for row in rows] == ["enrolment-created", "enrolment-approved"]

    # Its site needs a new token: the page of the client leads to the form.
    assert f"{NEW}?existing=east" in await admin.page(f"/clients/{client['id']}")
    assert "gets a new token" in await admin.page(f"{NEW}?existing=east")
    answer = await admin.act(NEW, existing="east", days="1", token_days="30")
    assert _CODE.search(answer.text)


async def test_a_code_that_nobody_has_used_is_withdrawn(
    coordinator: Coordinator, admin: Visitor
) -> None:
    (code,) = _CODE.findall((await admin.act(NEW, **WHO)).text)
    twice = await admin.act(NEW, **WHO)
    assert twice.status_code == 409
    assert "A code for &#39;east&#39; is out already." in twice.text
    (found,) = (await coordinator.ok("GET", "/v1/enrolments"))["items"]
    path = f"/enrolments/{found['id']}/refuse"
    assert "Withdraw this code?" in await admin.page(path)
    answer = await admin.act(path, why="sent to the wrong people")
    assert answer.headers["location"] == "/dashboard/clients?done=withdraw"
    assert "The code was withdrawn." in await admin.page("/clients?done=withdraw")
    body = {"code": code, "agent": "late"}
    answer = await coordinator.call("POST", "/v1/enrolments/redeem", None, json=body)
    assert answer.json()["code"] == "enrolment-closed"


async def test_what_does_not_fit_is_said_at_its_field_and_nothing_typed_is_lost(
    coordinator: Coordinator, admin: Visitor
) -> None:
    for changes, field in (
        ({"name": "Not a Name"}, "name"),
        ({"name": " "}, "name"),
        ({"domain": "EAST!"}, "domain"),
        ({"space": "nowhere"}, "space"),
        ({"site": "a\u202eb"}, "site"),
        ({"unit": "ward"}, "unit"),
        ({"epsilon": "1e9"}, "epsilon"),
        ({"epsilon": "nan"}, "epsilon"),
        ({"delta": "a lot"}, "delta"),
        ({"days": "soon"}, "days"),
        ({"days": "inf"}, "days"),
        ({"days": "1000"}, "days"),
        ({"token_days": "0"}, "token_days"),
        ({"existing": "nobody"}, ""),
    ):
        answer = await admin.act(NEW, **{**WHO, **changes})
        assert answer.status_code in (409, 422), changes
        wrong = re.search(
            r'<p id="(\w+)-about"[^>]*><span class="wrong" role="alert">', answer.text
        )
        assert (wrong.group(1) if wrong else "") == field, changes
        assert field or 'class="banner bad" role="alert">There is no client' in answer.text
        if not field:
            continue
        assert html.escape(WHO["population"]) in answer.text
        assert _CODE.search(answer.text) is None
    assert (await coordinator.ok("GET", "/v1/enrolments"))["items"] == []


async def test_only_an_administrators_own_form_makes_a_code(
    coordinator: Coordinator, admin: Visitor
) -> None:
    answer = await admin.http.post(f"/dashboard{NEW}", data=WHO)
    assert answer.status_code == 403
    csrf = await admin.csrf(NEW)
    sent = {**WHO, "csrf": csrf}
    foreign = {"Sec-Fetch-Site": "cross-site"}
    answer = await admin.http.post(f"/dashboard{NEW}", data=sent, headers=foreign)
    assert answer.status_code == 403
    async with visiting(coordinator, "auditor") as auditor:
        assert (await auditor.get(NEW)).status_code == 403
        own = await auditor.csrf("/clients")
        answer = await auditor.http.post(f"/dashboard{NEW}", data={**WHO, "csrf": own})
        assert answer.status_code == 403
        assert "Issue a code" not in await auditor.page("/clients")
    assert (await coordinator.ok("GET", "/v1/enrolments"))["items"] == []
