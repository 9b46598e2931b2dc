"""Wherever epsilon of secure sums is shown, its premise stands beside it; plain runs have none."""

from __future__ import annotations

import html

from api.dashboard.render import eps
from tests.api.sums import SITES, a_secure_run
from tests.api.support import Coordinator
from tests.api.visitors import visiting

PREMISE = "no more than 1 of a round's other clients work with the coordinator"
TITLE = "What ε rests on"


async def test_pages_and_answers_say_what_epsilon_rests_on(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    await sites.sums()
    run = await coordinator.ok("GET", f"/v1/runs/{sites.run['id']}")
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert model["premise"] == PREMISE
    assert (await coordinator.ledger(SITES[0]))["premise"] == PREMISE
    client = next(seat["client_id"] for seat in run["seats"] if seat["client"] == SITES[0])
    async with visiting(coordinator, "admin") as visitor:
        page = html.unescape(await visitor.page(f"/runs/{run['id']}"))
        assert TITLE in page
        for view in run["views"]:
            assert f">{eps(view['epsilon'])}<" in page
            assert view["premise"] in page
        for path in ("/models", f"/clients/{client}/budget"):
            assert PREMISE in html.unescape(await visitor.page(path)), path
        assert "at most 1 colluding" in await visitor.page(f"/clients/{client}")
        assert "on a premise" in await visitor.page("/runs")
        for path in ("", "/clients"):
            assert "holds on their premise" in await visitor.page(path), path
    metrics = await coordinator.call("GET", "/metrics", "admin")
    assert "on their premise" in metrics.text


async def test_of_a_plain_run_nothing_is_said(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.finish(await coordinator.run("site-a", "site-b"), "site-a", "site-b")
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert model["premise"] == "none"
    assert (await coordinator.ledger("site-a"))["premise"] == "none"
    client = run["seats"][0]["client_id"]
    async with visiting(coordinator, "admin") as visitor:
        for path in (
            "",
            "/runs",
            "/clients",
            "/models",
            f"/runs/{run['id']}",
            f"/clients/{client}/budget",
        ):
            page = await visitor.page(path)
            assert "premise" not in page, path
            assert TITLE not in page, path
