"""Where a client that has joined a run stands: in the model, and in the site's own ledger."""

from __future__ import annotations

import json
from dataclasses import dataclass

from core.privacy import accounting
from core.privacy.premise import resting
from worker.agent.records import charged
from worker.agent.site import Site
from worker.client import CoordinatorClient
from worker.config import ClientConfig
from worker.errors import JoinFailed


@dataclass(frozen=True)
class Joined:
    """A client's place in the model, and what it cost by the site's own ledger."""

    client: ClientConfig
    run_id: str
    run: str
    round_number: int
    clients: tuple[str, ...]
    epsilon_run: float
    epsilon_total: float
    rests: str


def joined(
    coordinator: CoordinatorClient, site: Site, config: ClientConfig, run_id: str, number: int
) -> Joined:
    """Look the client up in the newest model. Raises ``JoinFailed`` if it is not there."""
    model = coordinator.model(run_id)
    if config.name not in model["clients"]:
        raise JoinFailed(
            f"round {number} is published but its model has no code of {config.name!r}.",
            mend="Tell the coordinator's administrator.",
        )
    entries = site.ledger.entries(config.population)
    own = [entry for entry in entries if entry.key.run_id == run_id]
    return Joined(
        client=config,
        run_id=run_id,
        run=str(coordinator.run(run_id)["name"]),
        round_number=number,
        clients=tuple(model["clients"]),
        epsilon_run=accounting.epsilon(charged(own), config.delta),
        epsilon_total=accounting.epsilon(charged(entries), config.delta),
        rests=resting(entry.event.collude for entry in entries),
    )


def place_of(place: Joined, url: str) -> list[str]:
    """Lines for a person: the code is known, what it cost here, and how to use it."""
    name, config = place.client.name, place.client
    others = [other for other in place.clients if other != name]
    mixture = {name: 0.5, others[0]: 0.5} if others else {name: 1.0}
    run, said = f"run {place.run} ({place.run_id})", f"epsilon {place.epsilon_run:.4g} on this run"
    limit = f"{place.epsilon_total:.4g} of {config.max_epsilon:g} in all at delta {config.delta:g}"
    lines = [
        f"{name}: joined {run}; its code is known since round {place.round_number}",
        f"{name}: {said}, {limit}, by this site's own ledger{place.rests}",
        "With a token of scope scientist, rows of its own and of a mixture:",
    ]
    for weights in ({name: 1.0}, mixture):
        body = json.dumps({"run": place.run, "n": 100, "mixture": weights})
        lines.append(
            "  curl -sf -H \"Authorization: Bearer $FHV_TOKEN\" -H 'Content-Type: application/json'"
            f" {url}/synthesize -d '{body}'"
        )
    return lines if others else lines[:-1]
