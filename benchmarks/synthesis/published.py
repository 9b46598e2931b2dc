"""Two published models: one of a usual width, by two real agents that train; a narrow one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from benchmarks.demo import federation
from benchmarks.demo.sites import Client, write_party
from benchmarks.federation.room import Room
from benchmarks.scanner_digits import Site
from core.federation.plan import EmbeddingSpace, Plan, RunSpec
from core.processes import ServiceError, wait_for
from core.synthesis.sampler import Generator
from worker.answers import JsonObject

CLASSES, RECORDS, SITES = 10, 600, 2
USUAL, NARROW = 384, 64  # numbers of a row
_PATIENCE_S = 240.0


@dataclass(frozen=True)
class Published:
    """``generator``: the same model in this process."""

    run: str
    dim: int
    generator: Generator


def publish(here: Room, dim: int, rounds: int) -> Published:
    """A run of agents with Gaussian clusters of ``dim`` numbers."""
    space, name = _space(dim), f"rows-{dim}"
    plan = Plan.model_validate(
        {
            "name": name,
            "space": space.name,
            "privacy": {
                "epsilon": 8.0, "delta": 1e-5, "n_max": 2 * RECORDS, "rounds": rounds,
                "validation_share": 0.0,
            },
            "round": {"quorum": SITES, "deadline_s": 120.0},
        }
    )  # fmt: skip
    clients = [
        Client(f"site-{dim}-{place}", _site(dim, place), managed=False) for place in range(SITES)
    ]
    _, tokens = federation.enrol(here.operator, clients, plan, space)
    agents = []
    for client in clients:
        party = write_party(here.folder / client.name, [client], plan, space)
        agents.append(f"agent-{client.name}")
        here.stack.start_agent(tokens[client.name], party.config, name=agents[-1])
    run_id = str(here.operator.create_run(plan, [client.name for client in clients])["id"])
    here.operator.start_run(run_id)
    run = _ended(here, run_id)
    for agent in agents:
        here.stack.processes.kill(agent)
    return Published(name, dim, _loaded(here, run))


def _ended(here: Room, run_id: str) -> JsonObject:
    def look() -> JsonObject | None:
        run = here.operator.run(run_id)
        return run if run["state"] in ("completed", "failed") else None

    check = here.stack.processes.check
    run = wait_for("the model", look, seconds=_PATIENCE_S, check=check, pause_s=0.5)
    if run["state"] != "completed":
        raise ServiceError(f"the run has failed: {run['why']}")
    return run


def _loaded(here: Room, run: JsonObject) -> Generator:
    model = here.operator.model(str(run["id"]))
    files = [here.operator.download(str(model[role]["digest"])) for role in ("frame", "weights")]
    return Generator.load(files[0], files[1], RunSpec.model_validate(run["spec"]))


def _space(dim: int) -> EmbeddingSpace:
    return EmbeddingSpace(
        name=f"rows-{dim}",
        backbone="none: Gaussian clusters",
        weights_digest="sha256:" + hashlib.sha256(b"rows").hexdigest(),
        preprocessing="none",
        dim=dim,
        classes=tuple(f"class-{number}" for number in range(CLASSES)),
    )


def _site(dim: int, seed: int) -> Site:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, RECORDS)
    centres = 0.3 * np.random.default_rng(99).normal(size=(CLASSES, dim))
    x = (centres[y] + rng.normal(size=(RECORDS, dim))).astype(np.float32)
    return Site(f"site-{seed}", "clusters", x, y, x[:0], y[:0])
