"""Secure sums over HTTP: the coordinator learns the sum, exactly, and nothing is opened of less."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.federation.secure_sum import summed
from core.federation.updates import TENSOR
from core.secagg.collector import Collector
from core.secagg.messages import Transcript
from core.wire import tensors
from core.wire.messages import AggregateJob
from tests.api.sums import SITES, a_secure_run
from tests.api.support import Coordinator


def total_of(coordinator: Coordinator, job: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What the transcript and the masked vectors of a job come to."""
    claimed = AggregateJob.model_validate(job)
    assert claimed.transcript is not None
    read = coordinator.ctx.store.get
    transcript = Transcript.model_validate_json(read(claimed.transcript))
    masked = {each.client: read(each.digest) for each in claimed.updates}
    update, _ = tensors.unpack(summed(transcript, masked, claimed.spec))
    total = Collector.of(transcript, masked).total()
    assert len(update[TENSOR]) == len(total)
    return total


async def test_a_whole_run_of_secure_sums(coordinator: Coordinator) -> None:
    """Sketch, spread, one training round; then the run is completed, and its model is served."""
    sites = await a_secure_run(coordinator, privacy={"sketch_steps": 2, "rounds": 1})
    run = sites.run
    kinds = []
    for number in range(run["rounds_planned"]):
        job = await sites.sums()
        kinds.append(job["kind"])
        parts = [site.contributed[number] for site in sites.all.values()]
        assert (total_of(coordinator, job) == sum(parts)).all()
        assert (await coordinator.round(run, number))["state"] == "published"
    assert kinds[:3] == ["sketch", "spread", "train"]
    shown = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert shown["state"] == "completed"
    ledger = await coordinator.ledger("site-a")
    assert [entry["kind"] for entry in ledger["entries"]] == ["reserve", "commit"] * len(kinds)
    events = [entry["event"] for entry in ledger["entries"] if entry["event"]]
    assert {event["collude"] for event in events} == {1}
    assert {event["mechanism"] for event in events} == {"discrete-gaussian"}
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert model["clients"] == []
    assert model["domains"] == {}
    assert {spent["client"] for spent in model["per_client"]} == set(SITES)
