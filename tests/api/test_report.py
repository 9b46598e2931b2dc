"""The report over HTTP: who may read it, both forms, what it says, and when it is made again."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import httpx
import pytest

from api.report import service
from api.synthesis import models
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.report.report import Report
from tests.api.support import Coordinator, problem


async def published(coordinator: Coordinator, **privacy: Any) -> dict[str, Any]:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 1} | privacy)
    await coordinator.finish(run, "site-a", "site-b")
    return run


async def asked(
    coordinator: Coordinator,
    run: dict[str, Any],
    query: str = "",
    who: str = "scientist",
    **more: Any,
) -> httpx.Response:
    return await coordinator.call("GET", f"/v1/runs/{run['id']}/report{query}", who, **more)


async def as_data(coordinator: Coordinator, run: dict[str, Any], query: str = "") -> Report:
    answer = await asked(coordinator, run, query)
    assert answer.status_code == 200, answer.text
    return Report.model_validate(answer.json())


async def test_who_may_read_it(coordinator: Coordinator) -> None:
    run = await published(coordinator)
    for who in ("scientist", "auditor", "admin"):
        assert (await asked(coordinator, run, who=who)).status_code == 200
    for who in ("site-a", "worker"):
        problem(await asked(coordinator, run, who=who), 403, "forbidden")
    nobody = await coordinator.call("GET", f"/v1/runs/{run['id']}/report", None)
    problem(nobody, 401, "unauthenticated")


async def test_epsilon_of_every_point_is_recomputed_from_the_ledger(
    coordinator: Coordinator,
) -> None:
    run = await published(coordinator)
    report = await as_data(coordinator, run)
    assert [one.client for one in report.privacy.clients] == ["site-a", "site-b"]
    assert report.privacy.epsilon_target == 4.0
    for one in report.privacy.clients:
        entries = (await coordinator.ledger(one.client))["entries"]
        reserved = [e for e in entries if e["kind"] == "reserve"]
        assert [point.round for point in one.curve] == sorted({e["round"] for e in reserved})
        for point in one.curve:
            events = [
                PrivacyEvent.model_validate(e["event"])
                for e in reserved
                if e["round"] <= point.round
            ]
            assert point.epsilon == epsilon(events, report.privacy.delta)
        assert one.epsilon == one.curve[-1].epsilon <= 4.0
        assert (one.reservations, one.lost) == (len(reserved), 0)


async def test_a_lost_attempt_is_shown_and_counts(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    assert await coordinator.poll("site-a") is not None
    coordinator.pass_time(11.0)  # its lease ends
    await coordinator.sweep()
    for place, name in enumerate(("site-a", "site-b")):
        await coordinator.work(name, seed=place)
    await coordinator.aggregate()
    first, second = (await as_data(coordinator, run)).privacy.clients
    assert (first.lost, first.reservations, second.lost) == (1, 2, 0)
    assert first.epsilon > second.epsilon
    page = (await asked(coordinator, run, "?format=html")).text
    assert "1 attempt ended without an accepted update" in page


async def test_both_forms_and_what_accept_chooses(coordinator: Coordinator) -> None:
    run = await published(coordinator)
    for query, accept, media in (
        ("", "*/*", "application/json"),
        ("", "text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
        ("?format=html", "application/json", "text/html"),
        ("?format=json", "text/html", "application/json"),
        ("", "application/*", "application/json"),
    ):
        answer = await asked(coordinator, run, query, headers={"Accept": accept})
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == media
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
        assert "script" not in policy
    refused = await asked(coordinator, run, headers={"Accept": "image/png"})
    problem(refused, 406, "not-acceptable", "Accept")
    problem(await asked(coordinator, run, "?format=pdf"), 422, "invalid-request")


async def test_the_page_needs_nothing_else(coordinator: Coordinator) -> None:
    run = await published(coordinator)
    page = (await asked(coordinator, run, "?format=html")).text
    assert not re.search(r"<(script|link|iframe|img|object|embed)\b", page)
    assert not re.search(r"(https?:)?//[a-z0-9.]", page)
    assert "@import" not in page
    assert "url(" not in page


async def test_without_a_report_round_each_part_says_why_it_is_missing(
    coordinator: Coordinator,
) -> None:
    run = await published(coordinator)
    report = await as_data(coordinator, run)
    assert report.measured is None
    missing = [part for part in report.parts if part.source == "missing"]
    assert len(missing) == 4
    assert all(part.why for part in missing)
    page = (await asked(coordinator, run, "?format=html")).text
    assert page.count("<strong>Not measured.</strong>") == 3
    assert page.count("set no budget aside for it") >= 3


async def test_what_is_known_already_is_not_sent_again(coordinator: Coordinator) -> None:
    run = await published(coordinator)
    first = await asked(coordinator, run)
    tag = first.headers["ETag"]
    again = await asked(coordinator, run, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    page = await asked(coordinator, run, "?format=html", headers={"If-None-Match": tag})
    assert page.status_code == 200
    await coordinator.ok(
        "POST", f"/v1/clients/{coordinator.clients['site-b']}/revoke", json={"why": "they asked"}
    )
    changed = await asked(coordinator, run, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    report = Report.model_validate(changed.json())
    member = report.members[1]
    assert (member.state, member.why, member.has_code) == ("revoked", "they asked", False)
    assert report.synthetic.projection.clients == ("site-a",)
    assert [one.client for one in report.released.sizes] == ["site-a"]


async def test_the_model_of_an_earlier_round_has_its_own(coordinator: Coordinator) -> None:
    run = await published(coordinator)
    early = await as_data(coordinator, run, "?round=0")
    late = await as_data(coordinator, run)
    assert (early.model.round, late.model.round) == (0, 1)
    for before, after in zip(early.privacy.clients, late.privacy.clients, strict=True):
        assert before.epsilon < after.epsilon
    assert [one.accepted for one in early.members] == [1, 1]
    problem(await asked(coordinator, run, "?round=7"), 404, "not-found", "round")


async def test_there_is_none_before_a_round_is_published(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    problem(await asked(coordinator, run), 404, "not-found", "round")
    gone = {"id": "0199c0de-1111-7000-8000-000000000001"}
    problem(await asked(coordinator, gone), 404, "not-found", "run")


async def test_reports_are_made_once(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await published(coordinator)
    made: list[object] = []
    real = service.make

    def counted(*given: Any) -> Report:
        made.append(given)
        return real(*given)

    monkeypatch.setattr(service, "make", counted)
    for query in ("", "?format=html", "", "?round=1"):
        await asked(coordinator, run, query)
    assert len(made) == 1


async def test_a_model_without_a_guarantee_is_refused_or_stamped(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await published(coordinator)
    real = models.Models.published

    async def seeded(*given: Any) -> models.Published:
        found = await real(*given)
        facts = replace(found.facts, noise_mode="seeded")
        model = found.model.model_copy(update={"noise_mode": "seeded"})
        return replace(found, facts=facts, model=model)

    monkeypatch.setattr(models.Models, "published", seeded)
    problem(await asked(coordinator, run), 403, "not-private", "run")
    object.__setattr__(
        coordinator.ctx,
        "settings",
        coordinator.ctx.settings.model_copy(update={"serve_not_private": True}),
    )
    report = await as_data(coordinator, run)
    assert report.label == "NOT PRIVATE"
    page = (await asked(coordinator, run, "?format=html")).text
    assert '<div class="stamp" role="alert"><strong>NOT PRIVATE</strong>' in page
    assert "bound nothing" in page
    assert "50 % is guessing" not in page
