"""A whole run in one process: the same site and server functions, no network, no database.

For research, tests and baselines. Nothing is kept from anybody here, so what it prints about
privacy is what the mechanism WOULD guarantee between sites; with a seed it is NOT PRIVATE.

``noise_mode`` "local": each site adds the whole noise to its own sum. "aggregated": noise is added
once, to the sum over sites, as inside a secure aggregation; the guarantee then holds only against
those who see that sum alone. With ``secure`` the sum is a real one of ``core.secagg``, each site's
share of the noise drawn on the grid, with the allowance for drop-outs and colluders that it names.
A plan with ``aggregation`` "secure" is always summed so, on its own terms.
There are no sketches of single sites then, hence one pseudo-client
``ALL_SITES`` and only the neutral code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.data import EmbeddingDataset
from core.federation.aggregate import Aggregated, aggregate
from core.federation.plan import RunSpec
from core.federation.rule import NoiseMode
from core.federation.secure_sum import ALL_SITES as ALL_SITES
from core.federation.secure_sum import noise_gain
from core.federation.selection import selected
from core.models.layout import NULL_COORDINATES
from core.privacy.coins import CoinStream
from core.privacy.events import PrivacyEvent
from core.privacy.mechanism import sensitivity
from core.privacy.noise import NoiseSource
from core.secagg.simulated import SecureTerms, noised_sum
from core.storage import sha256_of
from core.synthesis.sampler import Generator
from core.training.compute import CPU, Compute
from core.training.local import Released, clipped_total, noised_update, packed, release
from core.wire.messages import AggregateInput, AggregateJob


@dataclass(frozen=True)
class SimulatedSite:
    """A client of a simulated run and its records."""

    name: str
    data: EmbeddingDataset


@dataclass(frozen=True)
class Simulated:
    """The final model, every round's files, the events that each client executed, and what each
    client has kept at the end (nothing unless encoders are local).
    """

    generator: Generator
    rounds: tuple[Aggregated, ...]
    events: dict[str, tuple[PrivacyEvent, ...]]
    kept: dict[str, bytes]


def simulate(
    spec: RunSpec,
    sites: Sequence[SimulatedSite],
    *,
    noise: NoiseSource,
    secret: bytes | None = None,
    compute: Compute = CPU,
    progress: Callable[[int], None] | None = None,
    observe: Callable[[int, Mapping[str, bytes]], None] | None = None,
    noise_mode: NoiseMode = "local",
    secure: SecureTerms | None = None,
) -> Simulated:
    """Run the sketch and all training rounds of ``spec`` over ``sites``.

    ``secret`` seeds coins for reproducible tests (32 bytes or more); by default a fresh one.
    ``progress`` is called with each finished round's number; ``observe`` with a round's number and
    its updates by client, which is what a coordinator sees.
    """
    if spec.plan.aggregation == "secure":
        noise_mode, secure = "aggregated", _terms(spec, noise, secure)
    if secure is not None and noise_mode != "aggregated":
        raise ValueError("secure: a secure sum is for noise_mode = 'aggregated'")
    if caveat := spec.plan.privacy.caveat:
        raise ValueError(f"privacy.mode: 'paper' has {caveat}; use core.paper.simulate_paper")
    if spec.founding_clients is not None and noise_mode == "aggregated":
        raise ValueError(
            "noise_mode: with round.client_fraction below 1 each round is of other clients, and "
            "only their own sketches say how many units they have; use 'local'"
        )
    if spec.plan.aggregation == "trimmed-mean" and noise_mode == "aggregated":
        raise ValueError(
            f"noise_mode: aggregation {spec.plan.aggregation!r} compares the sites' own noised "
            "updates, and none exists where noise is added to their sum; use 'local'"
        )
    key = secret if secret is not None else os.urandom(32)
    objects: dict[str, bytes] = {}
    events: dict[str, list[PrivacyEvent]] = {site.name: [] for site in sites}
    published: list[Aggregated] = []
    kept: dict[str, bytes] = {}
    for number in range(spec.last_round + 1):
        last = published[-1] if published else None
        inputs = {} if last is None else {"frame": last.frame, "weights": last.weights}
        chosen = [sites[position] for position in selected(spec, len(sites), number)]
        released = _released(
            spec, number, chosen, inputs, key, noise, compute, noise_mode, kept, secure
        )
        if observe is not None:
            observe(number, {name: made.update for name, made in released.items()})
        updates = []
        for name, made in released.items():
            digest = sha256_of(made.update)
            objects[digest] = made.update
            if made.kept is not None:  # every update is accepted here
                kept[name] = made.kept
            updates.append(AggregateInput(client_id=name, client=name, digest=digest))
        for site in chosen:
            events[site.name].append(spec.event(number))
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
        # Terms beside a plan without secure sums weigh by promised noise, as a plain sum does.
        gain = 1.0
        if spec.is_secure(number):
            gain = noise_gain(spec, number, len(sites), len(sites))
        published.append(aggregate(job, objects.__getitem__, gain))
        objects.clear()
        if progress is not None:
            progress(number)
    final = published[-1]
    return Simulated(
        generator=Generator.load(final.frame, final.weights, spec),
        rounds=tuple(published),
        events={name: tuple(done) for name, done in events.items()},
        kept=kept,
    )


def _terms(spec: RunSpec, noise: NoiseSource, given: SecureTerms | None) -> SecureTerms:
    """Of the plan's secure sums. Raises ``ValueError`` for others than the plan's."""
    drop, collude = spec.plan.secure.drop, spec.plan.secure.collude
    if given is None:
        return SecureTerms(noise.bits(), drop, collude)
    if (given.drop, given.collude) != (drop, collude):
        raise ValueError("secure: drop and collude are the plan's own; leave them out")
    return given


def _released(
    spec: RunSpec,
    number: int,
    sites: Sequence[SimulatedSite],
    inputs: Mapping[str, bytes],
    key: bytes,
    noise: NoiseSource,
    compute: Compute,
    noise_mode: NoiseMode,
    kept: Mapping[str, bytes],
    secure: SecureTerms | None,
) -> dict[str, Released]:
    """A round's updates by client: one of each site, or one of all sites together.

    Raises ``ValueError`` for a plan whose sites add noise by themselves, in the latter mode.
    """
    secrets = {site.name: key + site.name.encode() for site in sites}
    if noise_mode == "local":
        return {
            site.name: release(
                spec, number, 1, site.name, site.data, inputs,
                secret=secrets[site.name], noise=noise, compute=compute,
                kept=kept.get(site.name),
            )
            for site in sites
        }  # fmt: skip
    if spec.plan.model.codes == "trained" or spec.plan.model.encoder == "local":
        raise ValueError(
            "noise_mode: with model.codes = 'trained' or model.encoder = 'local' each site has a "
            "noised part of its own; use 'local'"
        )
    if spec.plan.privacy.local_steps > 1:
        raise ValueError(
            "noise_mode: with privacy.local_steps above 1 a site's next step sees its own noised "
            "sum, so noise cannot be added to the sum over sites; use 'local'"
        )
    totals = {
        site.name: clipped_total(
            spec, number, ALL_SITES, site.data, inputs,
            CoinStream(secrets[site.name], spec.run_id, number, 1), compute=compute,
        )
        for site in sites
    }  # fmt: skip
    if secure is None:
        total = np.sum(list(totals.values()), axis=0)
        return {ALL_SITES: Released(noised_update(spec, number, total, noise, len(sites)))}
    summed = noised_sum(
        {name: np.concatenate([each, np.zeros(NULL_COORDINATES)]) for name, each in totals.items()},
        run_id=spec.run_id,
        round_number=number,
        bound=sensitivity(spec, number),
        noise_multiplier=spec.event(number).noise_multiplier,
        n_max=spec.plan.privacy.n_max,
        terms=secure,
    )
    return {ALL_SITES: Released(packed(spec, number, summed.astype(np.float32)))}
