"""A secure run through its wire objects: real orders, participants, transcripts, aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.aggregate import Aggregated, aggregate
from core.federation.plan import Noise, Plan, RunSpec
from core.federation.secure_sum import session_of
from core.models.layout import layout_of
from core.privacy.discrete.gaussian import BitSource, seeded
from core.secagg.collector import Collector
from core.secagg.messages import Session, Transcript
from core.secagg.participant import Participant
from core.storage import sha256_of
from core.training.secure import contribution
from core.wire.messages import AggregateInput, AggregateJob, WorkOrder
from core.wire.secure import SumOrder
from tests.core.worlds import SECRET, clusters
from tests.core.worlds import spec as plain_spec

Integers = NDArray[np.int64]
MOST_CLIENTS = 12


def secure_spec(
    *,
    drop: int = 0,
    collude: int = 1,
    multiplier: float = 1.0,
    dim: int = 12,
    clients: int = MOST_CLIENTS,
) -> RunSpec:
    """Rounds of every kind that has a secure sum; training rounds are subsampled."""
    noise = Noise(
        sketch_multiplier=multiplier, spread_multiplier=multiplier,
        train_multiplier=multiplier, validate_multiplier=multiplier,
    )  # fmt: skip
    plain = plain_spec(
        dim=dim,
        privacy={"sketch_steps": 2, "rounds": 1, "sample_rate": 0.5, "validation_share": 0.1},
        noise=noise,
    )
    terms = {"aggregation": "secure", "secure": {"drop": drop, "collude": collude}}
    plan = Plan.model_validate(plain.plan.model_dump() | terms)
    return RunSpec(
        run_id=plain.run_id, plan=plan, space=plain.space, noise=noise,
        founding_names=names_of(clients),
    )  # fmt: skip


def names_of(clients: int) -> tuple[str, ...]:
    return tuple(f"site-{at}" for at in range(clients))


def order_of(spec: RunSpec, number: int, name: str, sum_order: SumOrder | None) -> WorkOrder:
    return WorkOrder(
        work_id=f"w-{number}-{name}", run_id=spec.run_id, client_id=f"id-{name}", client=name,
        round_number=number, kind=spec.kind(number), attempt=1, lease_token="t", lease_s=60,
        spec=spec, spec_digest=spec.digest, event=spec.event(number),
        update_layout=layout_of(spec, number).digest, max_update_bytes=1 << 24,
        sum=sum_order,
    )  # fmt: skip


@dataclass
class Round:
    """What one secure round leaves: the plain contributions, which only a test sees, too."""

    session: Session
    transcript: Transcript
    masked: dict[str, bytes]
    contributions: dict[str, Integers]
    objects: dict[str, bytes] = field(default_factory=dict)

    def job(self, spec: RunSpec, before: Aggregated | None = None) -> AggregateJob:
        def put(body: bytes) -> str:
            self.objects[sha256_of(body)] = body
            return sha256_of(body)

        previous = {}
        if before is not None:
            previous = {r: put(getattr(before, r)) for r in ("frame", "weights", "optimiser")}
        number = self.session.round_number
        return AggregateJob(
            job_id="j", lease_token="t", lease_s=1, run_id=spec.run_id, round_number=number,
            kind=spec.kind(number), spec=spec, **previous,
            updates=tuple(
                AggregateInput(client_id=f"id-{name}", client=name, digest=put(body))
                for name, body in sorted(self.masked.items())
            ),
            transcript=put(self.transcript.model_dump_json().encode()),
        )  # fmt: skip

    def aggregated(self, spec: RunSpec, before: Aggregated | None = None) -> Aggregated:
        job = self.job(spec, before)
        return aggregate(job, self.objects.__getitem__)

    @property
    def exact(self) -> Integers:
        return np.sum([self.contributions[name] for name in self.masked], axis=0)


def secure_round(
    spec: RunSpec,
    number: int,
    data: Mapping[str, EmbeddingDataset],
    before: Aggregated | None = None,
    *,
    missing: Sequence[str] = (),
    seed: int = 0,
    vectors: Mapping[str, Integers] | None = None,
    bits: BitSource | None = None,
) -> Round:
    """All steps with JSON between the sides; ``missing`` share secrets and send no vector."""
    session = session_of(spec, number, tuple(data))
    keys = {name: Ed25519PrivateKey.generate() for name in data}
    known = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    sites = {name: Participant(session, name, keys[name], known) for name in data}
    collector = Collector(session)
    for site in sites.values():
        collector.advertise(site.advert())
    roster = collector.roster()
    for name, site in sites.items():
        collector.share(name, site.share(roster))
    inputs = {} if before is None else {"frame": before.frame, "weights": before.weights}
    made: dict[str, Integers] = {}
    masked: dict[str, bytes] = {}
    for at, (name, site) in enumerate(sites.items()):
        if name in missing:
            continue
        asked = SumOrder(session=session, inbox=collector.inbox(name), sharers=collector.sharers())
        order = order_of(spec, number, name, asked)
        order = WorkOrder.model_validate_json(order.model_dump_json())
        assert order.sum is not None
        made[name] = (
            vectors[name]
            if vectors is not None
            else contribution(
                order, data[name], inputs, secret=SECRET + name.encode(),
                bits=bits or seeded(1_000 * seed + 10 * number + at),
            )
        )  # fmt: skip
        masked[name] = site.mask(order.sum.inbox, order.sum.sharers, made[name])
        collector.collect(name, masked[name])
    for name in masked:
        collector.confirm(sites[name].confirm(collector.survivors(), collector.attestations()))
    openings = []
    for name in masked:
        openings.append(sites[name].open(collector.confirmations()))
        collector.open(openings[-1])
    transcript = Transcript(
        session=session, adverts=roster, sharers=collector.sharers(), openings=tuple(openings)
    )
    return Round(session, transcript, masked, made)


def some_data(clients: int, n: int = 300, dim: int = 12) -> dict[str, EmbeddingDataset]:
    return {name: clusters(n, dim=dim, seed=at) for at, name in enumerate(names_of(clients))}


def secure_run(spec: RunSpec, clients: int) -> list[tuple[Round, Aggregated]]:
    """Sketch, spread, a subsampled training round and validation; one client missing in two."""
    data, done = some_data(clients), []
    before: Aggregated | None = None
    for number in range(spec.last_round + 1):
        missing = ("site-2",) if number % 2 else ()
        made = secure_round(spec, number, data, before, missing=missing, seed=number)
        before = made.aggregated(spec, before)
        done.append((made, before))
    return done
