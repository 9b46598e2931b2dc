"""Outliers of a round are shown to those who look after the run, and to nobody else."""

from __future__ import annotations

from typing import Any

from api.db.run_models import Job
from core.wire.messages import LEASE_HEADER, AggregateJob
from tests.api.support import Coordinator


async def _summed(coordinator: Coordinator, diagnostics: dict[str, Any] | None) -> dict[str, Any]:
    """A run whose sketch round was completed with this report."""
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    for name in ("site-a", "site-b"):
        await coordinator.work(name)
    await coordinator.sweep()
    (job,) = await coordinator.rows(Job, Job.state == "ready")
    claimed = await coordinator.ok("POST", f"/v1/jobs/{job.id}/claim", "worker")
    result = coordinator.sum(AggregateJob.model_validate(claimed))
    if diagnostics is None:
        del result["diagnostics"]
    else:
        result["diagnostics"] = diagnostics
    await coordinator.ok(
        "POST", f"/v1/jobs/{job.id}/complete", "worker", json=result,
        headers={LEASE_HEADER: claimed["lease_token"]},
    )  # fmt: skip
    await coordinator.sweep()
    return run


async def test_outliers_are_for_those_who_look_after_the_run(coordinator: Coordinator) -> None:
    client = {"client_id": coordinator.clients.get("site-b", "c"), "norm": 90.0, "z": 11.0}
    run = await _summed(coordinator, {"clients": [client], "outliers": ["site-b"]})
    path = f"/v1/runs/{run['id']}/rounds/0"
    for who in ("admin", "scientist", "auditor"):
        shown = await coordinator.ok("GET", path, who)
        assert (shown["state"], shown["outliers"]) == ("published", ["site-b"])
    for who in ("site-a", "site-b"):
        assert (await coordinator.ok("GET", path, who))["outliers"] == []
    assert (await coordinator.round(run, 1))["outliers"] == []


async def test_a_worker_of_before_reports_nothing(coordinator: Coordinator) -> None:
    run = await _summed(coordinator, None)
    shown = await coordinator.round(run, 0)
    assert (shown["state"], shown["outliers"]) == ("published", [])
