"""The demo over HTTP: enrol, run, wait, read the ledgers, synthesize. And the sites' own books."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.demo.narrator import Narrator
from benchmarks.demo.sites import Client, Party, budget
from benchmarks.demo.stack import Stack
from core.federation.plan import EmbeddingSpace, Plan, RunSpec
from core.processes import ServiceError, wait_for
from worker.agent.records import Entry
from worker.agent.site import LEDGER_FILE
from worker.agent.spend import SiteLedger
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.errors import ClientError

Mixture = str | dict[str, float]
Guidance = Literal["model", "none"]


@dataclass(frozen=True)
class Books:
    """What was spent by one client: the coordinator's ledger beside the site's own."""

    name: str
    epsilon: float
    delta: float
    reserved: int
    committed: int
    lost: int
    site_epsilon: float
    site_committed: int
    site_lost: int
    up_bytes: tuple[int, ...]  # one per round
    down_bytes: tuple[int, ...]


def enrol(
    client: CoordinatorClient, clients: list[Client], plan: Plan, space: EmbeddingSpace
) -> tuple[dict[str, str], dict[str, str]]:
    """Register the space and the clients; ids by name, and tokens of those not managed."""
    client.create_space(space)
    ids: dict[str, str] = {}
    tokens: dict[str, str] = {}
    for each in clients:
        made = client.enrol_client(
            name=each.name,
            space=space.name,
            site=each.name,
            population=each.population,
            unit=plan.privacy.unit,
            managed=each.managed,
            epsilon=budget(plan),
            delta=plan.privacy.delta,
        )
        ids[each.name] = str(made.client["id"])
        if made.token is not None:
            tokens[each.name] = made.token
    return ids, tokens


def published(client: CoordinatorClient, run_id: str) -> int:
    return int(client.run(run_id)["rounds_published"])


def situation(client: CoordinatorClient, run_id: str) -> str:
    """One line: where the run is and what it waits for."""
    run = client.run(run_id)
    number = run["current_round"]
    if number is None:
        return f"run {run['state']} {run['why']}".strip()
    round_ = client.round(run_id, int(number))
    return f"run {run['state']}; round {number} {round_['state']}: {round_['why']}"


def follow(
    stack: Stack, client: CoordinatorClient, run_id: str, spec: RunSpec, narrator: Narrator
) -> JsonObject:
    """Wait until the run has ended, with a progress bar over its rounds."""
    sketches = spec.sketch_rounds
    total = spec.last_round + 1
    # Every round has a deadline of its own; the demo's patience is far below their sum.
    patience = 120.0 + 20.0 * total
    with narrator.progress() as progress:
        bar = progress.add_task("sketch rounds", total=total)
        last = "nothing yet"

        def ended() -> JsonObject | None:
            nonlocal last
            try:
                run = client.run(run_id)
                last = situation(client, run_id)
            except ClientError as error:
                last = str(error)
                return None
            done = int(run["rounds_published"])
            training = f"training rounds ({total - sketches})"
            what = "sketch rounds" if done < sketches else training
            progress.update(bar, completed=done, description=what)
            return run if run["state"] in ("completed", "failed") else None

        run = wait_for(
            "the run to end", ended, seconds=patience, check=stack.processes.check,
            state=lambda: last, pause_s=0.3,
        )  # fmt: skip
    if run["state"] != "completed":
        raise ServiceError(f"the run has failed: {run['why']} ({last})")
    return run


def rounds_of(client: CoordinatorClient, run_id: str) -> list[JsonObject]:
    """Every round of the run, page after page."""
    items: list[JsonObject] = []
    query: dict[str, str | int] = {"limit": 100}
    while True:
        page = client.rounds(run_id, **query)
        items += page["items"]
        if page["next"] is None:
            return sorted(items, key=lambda each: int(each["number"]))
        query["after"] = str(page["next"])


def fetched(rounds: list[JsonObject]) -> tuple[int, ...]:
    """Bytes that one client downloads in each round; nothing in round 0.

    Objects are named by their content and kept, so each is fetched once: a frame after each
    sketch, new weights in every round. Clients of one worker share its cache and fetch less.
    """
    known: set[str] = set()
    sizes = [0]
    for each in rounds[:-1]:
        new = [
            reference
            for reference in (each["frame"], each["weights"])
            if reference is not None and reference["digest"] not in known
        ]
        known.update(str(reference["digest"]) for reference in new)
        sizes.append(sum(int(reference["size"]) for reference in new))
    return tuple(sizes)


def site_entries(state: Path, population: str) -> list[Entry]:
    """The rows of the site's own ledger for one population."""
    ledger = SiteLedger(state / LEDGER_FILE)
    try:
        return ledger.entries(population)
    finally:
        ledger.close()


def books(
    client: CoordinatorClient,
    each: Client,
    client_id: str,
    party: Party,
    rounds: list[JsonObject],
) -> Books:
    """Both ledgers of one client after the run, and what it sent and fetched."""
    statement = client.client_ledger(client_id)
    kinds = [entry["kind"] for entry in statement["entries"] if entry["client"] == each.name]
    ledger = SiteLedger(party.state / LEDGER_FILE)
    try:
        own = [e for e in ledger.entries(each.population) if e.key.client == each.name]
        site_epsilon = ledger.epsilon(each.population, float(statement["delta"]))
        stored = [ledger.update_of(e.key) for e in own if e.kind == "commit"]
    finally:
        ledger.close()
    return Books(
        name=each.site.name,
        epsilon=float(statement["epsilon_total"]),
        delta=float(statement["delta"]),
        reserved=kinds.count("reserve"),
        committed=kinds.count("commit"),
        lost=kinds.count("lost"),
        site_epsilon=site_epsilon,
        site_committed=sum(e.kind == "commit" for e in own),
        site_lost=sum(e.kind == "lost" for e in own),
        up_bytes=tuple(update.size for update in stored if update is not None),
        down_bytes=fetched(rounds),
    )


def synthesize(
    client: CoordinatorClient,
    run: str,
    mixture: Mixture,
    guidance: Guidance,
    rows: int,
    path: Path,
) -> None:
    """One Parquet answer of ``POST /v1/synthesize`` into ``path``."""
    request = {"run": run, "mixture": mixture, "guidance": guidance, "n": rows}
    table = client.synthesize_table(request)
    path.write_bytes(table.body)


def receipt_of(path: Path) -> dict[str, Any]:
    """The receipt in the metadata of a synthetic table."""
    import pyarrow.parquet as pq

    from core.synthesis.formats import RECEIPT_KEY

    metadata = pq.read_metadata(path).metadata or {}
    found: dict[str, Any] = json.loads(metadata[RECEIPT_KEY.encode()])
    return found
