"""A whole run in one process: the same site and server functions, no network, no database.

For research, tests and baselines. Nothing is kept from anybody here, so what it prints about
privacy is what the mechanism WOULD guarantee between sites; with a seed it is NOT PRIVATE.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.data import EmbeddingDataset
from core.federation.aggregate import Aggregated, aggregate
from core.federation.plan import RunSpec
from core.privacy.events import PrivacyEvent
from core.privacy.noise import NoiseSource
from core.storage import sha256_of
from core.synthesis.sampler import Generator
from core.training.local import release
from core.wire.messages import AggregateInput, AggregateJob


@dataclass(frozen=True)
class SimulatedSite:
    """A client of a simulated run and its records."""

    name: str
    data: EmbeddingDataset


@dataclass(frozen=True)
class Simulated:
    """The final model, every round's files, and the events that each client executed."""

    generator: Generator
    rounds: tuple[Aggregated, ...]
    events: dict[str, tuple[PrivacyEvent, ...]]


def simulate(
    spec: RunSpec,
    sites: Sequence[SimulatedSite],
    *,
    noise: NoiseSource,
    secret: bytes | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Simulated:
    """Run the sketch and all training rounds of ``spec`` over ``sites``.

    ``secret`` seeds coins for reproducible tests (32 bytes or more); by default a fresh one.
    ``progress`` is called with each finished round's number.
    """
    key = secret if secret is not None else os.urandom(32)
    objects: dict[str, bytes] = {}
    events: dict[str, list[PrivacyEvent]] = {site.name: [] for site in sites}
    published: list[Aggregated] = []
    for number in range(spec.last_round + 1):
        last = published[-1] if published else None
        inputs = {} if last is None else {"frame": last.frame, "weights": last.weights}
        updates = []
        for site in sites:
            body = release(
                spec, number, 1, site.name, site.data, inputs,
                secret=key + site.name.encode(), noise=noise, device=device,
            )  # fmt: skip
            events[site.name].append(spec.event(number))
            digest = sha256_of(body)
            objects[digest] = body
            updates.append(AggregateInput(client_id=site.name, client=site.name, digest=digest))
        previous: dict[str, str] = {}
        if last is not None:
            for role in ("frame", "weights", "optimiser"):
                body = getattr(last, role)
                previous[role] = sha256_of(body)
                objects[previous[role]] = body
        job = AggregateJob(
            job_id=f"simulated-{number}", lease_token="none", lease_s=1.0,  # noqa: S106
            run_id=spec.run_id, round_number=number, kind=spec.kind(number),
            spec=spec, updates=tuple(updates), **previous,
        )  # fmt: skip
        published.append(aggregate(job, objects.__getitem__))
        objects.clear()
        if progress is not None:
            progress(number)
    final = published[-1]
    return Simulated(
        generator=Generator.load(final.frame, final.weights, spec),
        rounds=tuple(published),
        events={name: tuple(done) for name, done in events.items()},
    )
